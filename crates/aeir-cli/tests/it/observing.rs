//! What a run leaves beside its model, and the page about runs.

use std::fs;

use crate::{BOTH, SHORT, Scene};

#[test]
fn a_run_leaves_a_table_pictures_events_and_its_choice() {
    let scene = Scene::new();
    scene.run(&format!("train {BOTH} --epochs 4 --output run")).ok();
    let table: Vec<String> = scene.lines("run/metrics.csv");
    assert_eq!(table.len(), 5);
    assert!(table[0].starts_with("epoch,step,means.source_loss,source_validation_rsum,"), "{}", table[0]);
    // The last epoch alone adapts: what the others have not recorded is empty.
    let column = table[0].split(',').position(|name| name == "means.critic_accuracy_images").unwrap();
    let cells: Vec<&str> = table[1..].iter().map(|line| line.split(',').nth(column).unwrap()).collect();
    assert!(cells[..3] == ["", "", ""] && cells[3].parse::<f64>().is_ok(), "{cells:?}");
    let metrics = scene.lines("run/metrics.jsonl");
    let last: serde_json::Value = serde_json::from_str(&metrics[3]).unwrap();
    assert_eq!(cells[3].parse::<f64>().unwrap(), last["means"]["critic_accuracy_images"].as_f64().unwrap());

    let selection: serde_json::Value = serde_json::from_slice(&scene.read("run/selection.json")).unwrap();
    assert_eq!(
        (selection["criterion"].as_str(), selection["epoch"].as_u64()),
        (Some("source-validation"), Some(4))
    );
    for name in ["means.source_loss", "source_validation_rsum", "target_mutual_similarity", "gradient_norm"] {
        let svg = String::from_utf8(scene.read(&format!("run/plots/{name}.svg"))).unwrap();
        assert!(svg.starts_with("<svg") && svg.contains("epoch"), "{name}");
    }
    let events: Vec<_> = fs::read_dir(scene.path("run/tensorboard")).unwrap().flatten().collect();
    assert!(events.len() == 1 && events[0].file_name().to_string_lossy().contains("tfevents"));

    // None of it makes the folder another's.
    scene.run(&format!("train {BOTH} --epochs 2 --output run --overwrite")).ok();
    assert_eq!(scene.lines("run/metrics.csv").len(), 3);
    assert_eq!(fs::read_dir(scene.path("run/tensorboard")).unwrap().count(), 1);
}

#[test]
fn a_page_about_a_run_and_about_several() {
    let scene = Scene::new();
    scene.run(&format!("{SHORT} --seed 1")).ok();
    scene.run("train --method source-only --epochs 2 --source source.jsonl --output other --lr 0.01").ok();
    let before = scene.run("report run").ok();
    assert_eq!(before.stdout, "report  run/report.html\n");
    assert!(String::from_utf8(scene.read("run/report.html")).unwrap().contains("Not measured"));

    scene.run("eval --model run --data test.jsonl").ok();
    scene.run("eval --model run --data test.jsonl").ok();
    assert_eq!(scene.lines("run/evaluations.jsonl").len(), 2);
    scene.run("report run").ok();
    let page = String::from_utf8(scene.read("run/report.html")).unwrap();
    assert!(page.contains("test.jsonl: 20 images") && !page.contains("Not measured"));
    assert_eq!(page.matches("test.jsonl: 20 images").count(), 1, "the last of its kind alone");
    assert!(page.contains("An aeir model") && !page.contains("library_name"), "the card without its head");

    fs::remove_file(scene.path("run/report.html")).unwrap();
    let figures = scene.run("report run --json").ok().json();
    assert!(figures["report"].is_null() && figures["runs"][0]["settings"].is_object(), "{figures}");
    assert!(!scene.path("run/report.html").exists(), "figures were asked for, and no page");

    let both = scene.run("report run other --output pages.html --json").ok().json();
    assert_eq!(both["report"], "pages.html");
    assert_eq!(both["runs"][1]["settings"]["optimizer.learning_rate"], "0.01");
    assert_eq!(both["runs"][0]["evaluations"][0]["metrics"]["n_images"], 20);
    let page = String::from_utf8(scene.read("pages.html")).unwrap();
    assert!(page.contains("Settings that differ") && page.contains("optimizer.learning_rate"));
    assert!(
        !page.contains("http://")
            || page.matches("http://").count() == page.matches("http://www.w3.org").count()
    );
}

#[test]
fn an_unfinished_run_has_a_page_too() {
    let scene = Scene::new();
    scene.run(SHORT).ok();
    fs::remove_file(scene.path("run/manifest.json")).unwrap();
    fs::remove_file(scene.path("run/selection.json")).unwrap();
    scene.run("report run").ok();
    assert!(
        String::from_utf8(scene.read("run/report.html")).unwrap().contains("Not finished: 2 of 2 epochs")
    );
}

#[test]
fn what_is_no_run_and_what_is_no_page_is_refused() {
    let scene = Scene::new();
    scene.write("notes.html", "my notes");
    insta::assert_snapshot!(scene.run("report .").failure(), @"
    exit 4
    error: `.` is not a run: no `config.toml` in it

    hint: name the --output folder of an `aeir train`
    ");
    scene.run(SHORT).ok();
    insta::assert_snapshot!(scene.run("report run --output notes.html").failure(), @"
    exit 2
    error: `notes.html` is there already and is not a report

    hint: name another file: nothing is written over it
    ");
    assert_eq!(scene.read("notes.html"), b"my notes");
    scene.write("run/metrics.jsonl", "{\"epoch\": 1}\nnonsense\n");
    insta::assert_snapshot!(scene.run("report run").failure(), @"
    exit 3
    error: `run/metrics.jsonl`:2: expected ident at column 2

    hint: the file was changed: remove that line, or train the run again
    ");
}
