//! `aeir train --method adapt` and `aeir pairs export`: the recipe as a user runs it.

use serde_json::Value;

use crate::{BOTH, Scene};

#[test]
fn mined_pairs_come_as_lines_and_as_a_page() {
    let scene = Scene::new();
    scene.run(&format!("train {BOTH} --method adapt --epochs 4 --output recipe")).ok();
    let config = String::from_utf8(scene.read("recipe/config.toml")).unwrap();
    assert!(
        config.contains("method = \"adapt\"") && config.contains("standardise = \"standardise\""),
        "{config}"
    );
    let last = records(&scene, "recipe/metrics.jsonl").pop().unwrap();
    assert!(last["means"]["pair_loss"].as_f64().unwrap().is_finite(), "{last}");
    scene.run("eval --model recipe --data test.jsonl --json").ok();

    let export = format!("pairs export --model recipe {} --output pairs.jsonl", sets());
    let told = scene.run(&format!("{export} --html pairs.html --json")).ok().json();
    let lines = records(&scene, "pairs.jsonl");
    assert_eq!(told["pairs"].as_u64(), Some(lines.len() as u64));
    assert_eq!(told["images"], told["pairs"], "by transport every image has a partner");
    let confidence: Vec<f64> = lines.iter().map(|line| line["confidence"].as_f64().unwrap()).collect();
    assert!(confidence.windows(2).all(|pair| pair[0] >= pair[1]), "the surest first: {confidence:?}");
    assert!(confidence.iter().all(|sure| (0.0..=1.0).contains(sure)));
    assert!(lines.iter().all(|line| line["sentence"].as_str().is_some_and(|text| !text.is_empty())));
    let page = String::from_utf8(scene.read("pairs.html")).unwrap();
    assert_eq!(page.matches("data:image/jpeg;base64").count(), lines.len());
    assert!(!page.contains("<script") && !page.contains("http"), "nothing from elsewhere");

    let some = scene.run(&format!("{export} --matching mutual --min-confidence 0.01 --json")).ok().json();
    assert!(some["pairs"].as_u64().unwrap() <= lines.len() as u64);
    assert_eq!(scene.lines("pairs.jsonl").len() as u64, some["pairs"].as_u64().unwrap());
}

#[test]
fn what_can_not_be_exported_is_said() {
    let scene = Scene::new();
    let without = scene.run(&format!("pairs export --model none {} --output pairs.jsonl", sets()));
    assert_eq!(without.code, Some(4), "{without:?}");
    assert!(without.stderr.contains("none"), "{without:?}");
    let share = scene.run(&format!("pairs export --model none {} --output pairs.jsonl --dustbin 1", sets()));
    assert_eq!(share.code, Some(2), "{share:?}");
    assert!(share.stderr.contains("from 0 to below 1"), "{share:?}");
}

#[test]
fn foreign_files_are_left_alone_and_places_looked_at_first() {
    let scene = Scene::with_model();
    let export =
        |output: &str| scene.run(&format!("pairs export --model model {} --output {output}", sets()));
    scene.write("notes.txt", "my notes\n");
    for output in ["notes.txt", "pairs.jsonl --html notes.txt"] {
        let refused = export(output);
        assert_eq!(refused.code, Some(2), "{refused:?}");
        assert!(refused.stderr.contains("`notes.txt` is there already and is not a"), "{refused:?}");
    }
    assert_eq!(scene.read("notes.txt"), b"my notes\n");
    assert!(!scene.path("pairs.jsonl").exists(), "nothing was begun");
    let nowhere = export("none/pairs.jsonl");
    assert!(nowhere.code == Some(2) && nowhere.stderr.contains("there is no folder `none`"), "{nowhere:?}");
    // Its own files are replaced.
    for _ in 0..2 {
        export("pairs.jsonl --html pairs.html").ok();
    }
    let diagnose = scene.run(&format!("diagnose --source source.jsonl {} --output notes.txt", sets()));
    assert!(diagnose.code == Some(2) && diagnose.stderr.contains("is not a page of ours"), "{diagnose:?}");
    assert_eq!(scene.read("notes.txt"), b"my notes\n");
}

/// The objects of a file that has one a line.
fn records(scene: &Scene, file: &str) -> Vec<Value> {
    scene.lines(file).iter().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The flags of the target's two sets, as `train` is given them.
fn sets() -> String {
    let words: Vec<&str> = BOTH.split_whitespace().collect();
    let flag = |name: &str| {
        let at = words.iter().position(|word| *word == name).unwrap();
        format!("{name} {}", words[at + 1])
    };
    format!("{} {}", flag("--target-images"), flag("--target-sentences"))
}
