//! What a run leaves beside its model, and the page about runs.

use std::fs;

use serde_json::Value;

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
    let last: Value = serde_json::from_str(&metrics[3]).unwrap();
    assert_eq!(cells[3].parse::<f64>().unwrap(), last["means"]["critic_accuracy_images"].as_f64().unwrap());

    let selection: Value = serde_json::from_slice(&scene.read("run/selection.json")).unwrap();
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

/// Confidence and whether the own image came first, of each test sentence, as `aeir search` tells them one by one.
fn asked_one_by_one(scene: &Scene) -> Vec<(f64, bool)> {
    let index = "index --model run --images test.jsonl --query-bank sentences.txt --output made";
    scene.run(index).ok();
    let ask = |line: &String| {
        let pair: Value = serde_json::from_str(line).unwrap();
        let sentence = pair["captions"][0].as_str().unwrap();
        let found = scene.run_all(&["search", "--index", "made", sentence, "-k", "1", "--json"]).ok().json();
        let best = found["results"][0]["path"].as_str().unwrap();
        let own = scene.shown(pair["image"].as_str().unwrap().as_bytes());
        (found["confidence"].as_f64().unwrap(), best == own)
    };
    scene.lines("test.jsonl").iter().map(ask).collect()
}

#[test]
fn a_chart_holds_confidence_against_being_right() {
    let scene = Scene::with_model();
    scene.copy("model", "run");
    scene.run("eval --model run --data test.jsonl").ok();
    scene.run("report run").ok();
    let heading = "Confidence against being right";
    let page = String::from_utf8(scene.read("run/report.html")).unwrap();
    assert!(!page.contains(heading), "no bank, no confidence");

    let figures =
        scene.run("eval --model run --data test.jsonl --query-bank sentences.txt --json").ok().json();
    let steps = figures["reliability"].as_array().unwrap();
    let queries = asked_one_by_one(&scene);
    let number = |value: &Value| value.as_f64().unwrap();
    let mut measured = Vec::new();
    for step in steps {
        let (above, up_to) = (number(&step["above"]), number(&step["up_to"]));
        let inside = queries.iter().filter(|(confidence, _)| *confidence > above && *confidence <= up_to);
        let right: Vec<bool> = inside.map(|(_, right)| *right).collect();
        assert_eq!(number(&step["share"]), right.len() as f64 / queries.len() as f64, "{step}");
        let share = 100.0 * right.iter().filter(|right| **right).count() as f64 / right.len() as f64;
        assert_eq!(step["r1"].as_f64(), (!right.is_empty()).then_some(share), "{step}");
        if !right.is_empty() {
            measured.push((50.0 * (above + up_to), share));
        }
    }
    assert_eq!((number(&steps[0]["above"]), number(&steps[steps.len() - 1]["up_to"])), (0.0, 1.0));
    assert!(measured.len() > 2 && queries.iter().any(|(_, right)| *right), "{queries:?}");

    scene.run("report run").ok();
    let page = String::from_utf8(scene.read("run/report.html")).unwrap();
    let section = page.split(heading).nth(1).unwrap().split("</section>").next().unwrap();
    let points = line_of(section);
    assert_eq!(points.len(), measured.len(), "{section}");
    // Pixels grow to the right and downwards, evenly with what they stand for.
    for (pixels, figures) in points.windows(2).zip(measured.windows(2)) {
        let scale =
            (points[points.len() - 1].0 - points[0].0) / (measured[measured.len() - 1].0 - measured[0].0);
        let across = scale * (figures[1].0 - figures[0].0);
        assert!((pixels[1].0 - pixels[0].0 - across).abs() <= 2.0, "{points:?} {measured:?}");
        let (up, more) = (pixels[0].1 - pixels[1].1, figures[1].1 - figures[0].1);
        assert!(up == 0.0 && more == 0.0 || up * more > 0.0, "{points:?} {measured:?}");
    }
}

/// The points of the one line of a chart, in pixels.
fn line_of(chart: &str) -> Vec<(f64, f64)> {
    let lines: Vec<&str> =
        chart.split("<polyline ").skip(1).filter(|line| line.contains("stroke-width=\"2\"")).collect();
    assert_eq!(lines.len(), 1, "{chart}");
    let points = lines[0].split("points=\"").nth(1).unwrap().split('"').next().unwrap();
    let point = |point: &str| {
        let (x, y) = point.split_once(',').unwrap();
        (x.parse().unwrap(), y.parse().unwrap())
    };
    points.split_whitespace().map(point).collect()
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
