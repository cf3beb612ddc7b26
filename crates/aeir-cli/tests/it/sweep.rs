//! `aeir sweep`: every run once, one table, and nothing runs where the file is wrong.

use std::fs;

use crate::{Scene, program};

const TRAIN: &str = "[train]\nsource = \"source.jsonl\"\n";
const FILE: &str = "\
version = 1
seeds = [1, 2]
[values]
optimizer.learning_rate = [0.001, 0.01]
[train]
source = \"source.jsonl\"
method = \"source-only\"
epochs = 2
[eval]
data = \"test.jsonl\"
";

#[test]
fn every_combination_is_trained_once_and_scored() {
    let scene = Scene::new();
    scene.write("lr.toml", FILE);
    let planned = scene.run("sweep lr.toml --dry-run").ok();
    assert!(
        planned.stdout.starts_with("4 runs, 0 of them finished\n") && !scene.path("runs").exists(),
        "{planned:?}"
    );

    let first = scene.run("sweep lr.toml").ok();
    assert!(
        first.stdout.contains("optimizer.learning_rate  seeds") && first.stdout.contains("over 4 runs"),
        "{first:?}"
    );
    assert_eq!(scene.lines("runs/lr/sweep.csv").len(), 5);
    let page = String::from_utf8(scene.read("runs/lr/sweep.html")).unwrap();
    assert!(page.contains("optimizer.learning_rate = 0.01") && page.contains("Test rSum by"));
    let results: serde_json::Value = serde_json::from_slice(&scene.read("runs/lr/sweep.json")).unwrap();
    assert_eq!(results["settings"][0]["seeds"], 2);
    // What the sweep says is what `aeir eval` says.
    let folder = results["runs"][3]["folder"].as_str().unwrap();
    let evaluated = scene.run(&format!("eval --model {folder} --data test.jsonl --json")).ok().json();
    assert_eq!(results["runs"][3]["test"]["rsum"], evaluated["rsum"]);

    // One run was killed, one value is new, and the rest stays.
    let weights = |folder: &str| {
        fs::metadata(scene.path(folder).join("model.safetensors")).unwrap().modified().unwrap()
    };
    let kept = weights("runs/lr/learning_rate-0.001/seed-1");
    let metrics = scene.read("runs/lr/learning_rate-0.001/seed-2/metrics.jsonl");
    fs::remove_file(scene.path("runs/lr/learning_rate-0.001/seed-2/manifest.json")).unwrap();
    scene.write("lr.toml", FILE.replace("0.01]", "0.01, 0.1]"));
    let second = scene.run("sweep lr.toml --json").ok();
    assert_eq!(second.json()["settings"].as_array().unwrap().len(), 3);
    assert_eq!(second.stderr.matches("finished already").count(), 3, "{}", second.stderr);
    assert_eq!(weights("runs/lr/learning_rate-0.001/seed-1"), kept);
    assert_eq!(scene.read("runs/lr/learning_rate-0.001/seed-2/metrics.jsonl"), metrics);

    // Other settings in the same place would pass for these.
    scene.write("lr.toml", FILE.replace("version = 1", "version = 1\nconfig = \"base.toml\""));
    scene.write("base.toml", "checkpoint_every = 7\n");
    let refused = scene.run("sweep lr.toml").failure();
    assert!(
        refused.contains("was trained with other settings") && refused.contains("checkpoint_every"),
        "{refused}"
    );
    scene.write("lr.toml", FILE.replace("epochs = 2", "epochs = 3"));
    assert!(scene.run("sweep lr.toml").failure().contains("other flags under [train]"));
}

#[test]
fn a_run_that_diverges_is_told_and_the_others_are_made() {
    let scene = Scene::new();
    scene
        .write("lr.toml", FILE.replace("0.001, 0.01", "1e38, 0.01").replace("seeds = [1, 2]", "seeds = [1]"));
    let outcome = scene.run("sweep lr.toml");
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    assert!(
        outcome.stderr.contains("1 of 2 runs failed") && outcome.stderr.contains("not finite"),
        "{outcome:?}"
    );
    assert!(
        outcome.stdout.contains("Failed: ") && scene.lines("runs/lr/sweep.csv").len() == 2,
        "{outcome:?}"
    );
}

#[test]
fn a_wrong_file_is_refused_before_anything_runs() {
    let scene = Scene::new();
    let refused = |text: &str, told: &str| {
        scene.write("bad.toml", text);
        let outcome = scene.run("sweep bad.toml");
        assert_eq!(outcome.code, Some(2), "{outcome:?}");
        assert!(outcome.stderr.contains(told), "expected {told}: {}", outcome.stderr);
        assert!(!scene.path("runs").exists(), "{text}");
    };
    let with = |values: &str| {
        format!("version = 1\nseeds = [1]\n[values]\n{values}\n{TRAIN}method = \"source-only\"\n")
    };
    refused("nonsense", "bad.toml");
    refused(&with("").replace("version = 1", "version = 7"), "`version` must be 1, got 7");
    refused(&with("").replace("[1]", "[]"), "`seeds` is empty");
    refused(&with("").replace("[1]", "[3, 3]"), "`seeds` has 3 twice");
    refused(&with("").replace("seeds", "sedes"), "unknown field `sedes`");
    refused(&with("optimizer.learning_rate = [0.1, -1.0]"), "`optimizer.learning_rate` must be");
    refused(&with("optimizer.learnig_rate = [0.1]"), "did you mean `learning_rate`");
    refused(&with("optimizer.learning_rate = 0.1"), "must be a list");
    refused(&with("optimizer.learning_rate = []"), "is empty");
    refused(&with("optimizer.learning_rate = [0.1, 0.1]"), "0.1 twice");
    refused(&with("seed = [1]"), "list it under `seeds`");
    refused(&with("epochs.x = [1]"), "epochs");
    refused(&with("method = [\"source-only\", \"aeir\"]"), "`method` is to be");
    refused(
        &format!("version = 1\nseeds = [1]\n{TRAIN}"),
        "--target-images and --target-sentences are missing",
    );
    refused(
        &with("").replace("source.jsonl", "nowhere.jsonl"),
        "`train.source`: `nowhere.jsonl` is not there",
    );
    refused(&format!("{}sede = 1\n", with("")), "[train]: unexpected argument '--sede'");
    refused(&format!("{}output = \"x\"\n", with("")), "the sweep sets --output itself");
    refused(
        &format!("{}[eval]\ndata = \"nowhere.jsonl\"\n", with("")),
        "`eval.data`: `nowhere.jsonl` is not there",
    );
    refused(
        &format!("{}[eval]\ndata = \"source.jsonl\"\nprotocol = \"five-fold-1k\"\n", with("")),
        "`eval.protocol` must be \"full\", got \"five-fold-1k\"",
    );
    refused(&format!("config = \"none.toml\"\n{}", with("")), "could not read `config`");

    scene.write("good.toml", with(""));
    scene.write("mine/photo.txt", "x");
    let outcome = scene.run("sweep good.toml --output mine");
    assert!(outcome.failure().contains("holds other things than a sweep"));
    let mut command = program();
    command.args(["sweep", "good.toml"]).env("AEIR_SEED", "9");
    assert!(scene.outcome(command).failure().contains("`seed` is to be 1, but it would be 9"));
    assert!(!scene.path("runs").exists());
}
