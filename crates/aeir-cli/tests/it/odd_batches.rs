//! Features that are not numbers, and batches, sentences and neighbourhoods of unusual size.

use std::fs;

use serde_json::Value;

use crate::{BOTH, Scene, copy_folder, fixtures};

/// Values of an image in `fixtures/formats/scan`, 4 regions of 8.
const IMAGE: usize = 4 * 8;
const SCAN: &str = "train --source scan --text-encoder words --epochs 2 --batch-size 4 -o run";

fn scan() -> Scene {
    let scene = Scene::new();
    copy_folder(&fixtures("formats/scan"), &scene.path("scan"));
    scene
}

/// Writes one value of a `.npy` file of f32.
fn set(scene: &Scene, name: &str, index: usize, value: f32) {
    let mut bytes = scene.read(name);
    let header = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    bytes[header + 4 * index..][..4].copy_from_slice(&value.to_le_bytes());
    scene.write(name, bytes);
}

fn metrics(scene: &Scene, run: &str) -> Vec<Value> {
    let lines = scene.lines(&format!("{run}/metrics.jsonl"));
    lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn region_features_that_are_not_finite_are_named_wherever_they_come_in() {
    let scene = scan();
    scene.run(&format!("{SCAN} --method saf")).ok();
    set(&scene, "scan/test_ims.npy", 2 * IMAGE + 9, f32::INFINITY);
    set(&scene, "scan/dev_ims.npy", 31, f32::NAN);
    let told = |arguments: &str| {
        scene.run(arguments).failure().replace("vocabulary of 29 words that occur 4 times or more\n", "")
    };
    insta::assert_snapshot!(told("eval --model run --data scan"), @"
    exit 3
    error: `scan/test_ims.npy` row 2, region 1, column 1: inf is not finite in f32
    ");
    insta::assert_snapshot!(told("index --model run --images scan/test_ims.npy -o index"), @"
    exit 3
    error: `scan/test_ims.npy` row 2, region 1, column 1: inf is not finite in f32
    ");
    assert!(!scene.path("index").exists());
    // As the target, and as validation images of the source.
    scene.write("pairs/train_ims.npy", scene.read("scan/train_ims.npy"));
    scene.write("pairs/train_caps.txt", scene.read("scan/train_caps.txt"));
    insta::assert_snapshot!(
        told("train --source pairs --target-images scan/test_ims.npy --target-sentences scan/train_caps.txt \
              --text-encoder words --head sgr --epochs 2 --batch-size 4 -o other"), @"
    exit 3
    error: `scan/test_ims.npy` row 2, region 1, column 1: inf is not finite in f32
    ");
    insta::assert_snapshot!(told("train --source scan --text-encoder words --method saf --epochs 2 -o third"), @"
    exit 3
    error: `scan/dev_ims.npy` row 0, region 3, column 7: NaN is not finite in f32
    ");
}

#[test]
fn a_run_whose_features_went_bad_keeps_its_checkpoint() {
    let scene = scan();
    let train = format!("{SCAN} --method saf --resume latest");
    scene.run(&train).ok();
    let whole = scene.read("run/model.safetensors");
    // As if it had been killed just before its end.
    fs::remove_file(scene.path("run/manifest.json")).unwrap();
    let state = || {
        let folders = fs::read_dir(scene.path("run/checkpoints")).unwrap().flatten();
        let last = folders.map(|folder| folder.path()).max().unwrap();
        fs::read(last.join("state.safetensors")).unwrap()
    };
    let (kept, good) = (state(), scene.read("scan/train_ims.npy"));
    set(&scene, "scan/train_ims.npy", 3 * IMAGE + 5, f32::NAN);
    let refused = scene.run(&train);
    assert_eq!(refused.code, Some(3), "{refused:?}");
    assert!(refused.stderr.contains("`scan/train_ims.npy` row 3, region 0, column 5: NaN"), "{refused:?}");
    assert!(state() == kept, "nothing is lost");
    scene.write("scan/train_ims.npy", good);
    scene.run(&train).ok();
    assert!(scene.read("run/model.safetensors") == whole);
}

#[test]
fn the_first_tensor_that_stops_being_finite_is_named() {
    let scene = scan();
    scene.write("config.toml", "checkpoint_every = 1\n[optimizer]\nwarm_up = 0.0\n");
    let train = format!(
        "{} --method source-only --head saf --config config.toml",
        SCAN.replace("--epochs 2", "--epochs 9")
    );
    let told = scene.run(&format!("{train} --lr 1e38"));
    assert_eq!(told.code, Some(1), "{told:?}");
    insta::assert_snapshot!(told.stderr, @"
    vocabulary of 29 words that occur 4 times or more
    error: step 2: `embeddings of the source images` is not finite

    hint: lower --lr, or set `clip_norm` under [optimizer]; the last checkpoint is kept
    ");
}

#[test]
fn sentences_of_one_word_or_none_and_images_of_nothing() {
    let scene = scan();
    // One word; words that nobody knows; the same word again.
    let words = ["noun", "zzz", "noun"].iter().cycle().take(60).copied().collect::<Vec<_>>();
    scene.write_lines("scan/train_caps.txt", &words);
    for value in 0..4 * IMAGE {
        set(&scene, "scan/train_ims.npy", value, 0.0);
    }
    for head in ["saf", "sgr", "scan-t2i", "scan-i2t"] {
        let train = SCAN.replace("-o run", &format!("-o {head}"));
        scene.run(&format!("{train} --method source-only --head {head}")).ok();
        let trained = metrics(&scene, head);
        assert!(trained.iter().all(|epoch| epoch["means"]["source_loss"].as_f64().unwrap().is_finite()));
        let scores = scene.run(&format!("eval --model {head} --data scan --rerank all --json")).ok().json();
        assert!(scores["rsum"].as_f64().unwrap().is_finite(), "{head}: {scores}");
    }
}

#[test]
fn a_target_of_one_item_and_more_neighbours_than_a_batch() {
    let scene = scan();
    scene.write_lines("sentence.txt", &["noun"]);
    scene.write("config.toml", "target_batch_size = 1\n[aeir]\nneighbours = 50\nstructure_weight = 1.0\n");
    let target = "--target-images scan/test_ims.npy --target-sentences sentence.txt";
    for (fidelity, head) in [("paper", "saf"), ("released", "sgr")] {
        let train = SCAN.replace("-o run", &format!("-o {fidelity}"));
        let flags = format!("--config config.toml --head {head} --fidelity {fidelity}");
        scene.run(&format!("{train} {target} {flags}")).ok();
        let last = metrics(&scene, fidelity).pop().unwrap();
        let structure = last["means"]["structure_loss"].as_f64().unwrap();
        assert!(structure.is_finite() && structure > 0.0, "{fidelity}: {last}");
    }
}

#[test]
fn a_last_batch_of_one_pair_is_left_out() {
    let scene = scan();
    // Twelve images in batches of eleven.
    let train = SCAN.replace("--batch-size 4", "--batch-size 11");
    scene.run(&format!("{train} --method saf")).ok();
    assert_eq!(metrics(&scene, "run").pop().unwrap()["step"], 2, "a step an epoch");
    let refused = scene.run(&SCAN.replace("--batch-size 4", "--batch-size 1 --method saf")).failure();
    assert!(refused.contains("`batch_size` must be at least 2"), "{refused}");
}

#[test]
fn neighbours_beyond_the_batch_on_pooled_vectors() {
    let scene = Scene::new();
    scene.write("config.toml", "target_batch_size = 3\n[aeir]\nneighbours = 64\n");
    scene.run(&format!("train {BOTH} --config config.toml --epochs 4 --batch-size 2 --output run")).ok();
    scene.run("eval --model run --data test.jsonl").ok();
}

#[test]
fn a_batch_past_the_memory_budget_is_refused_before_the_first_step() {
    let scene = Scene::new();
    let train = "train --method source-only --source source.jsonl --epochs 1 --output run";
    let told = scene.run(&format!("{train} --memory-budget 1MiB")).failure();
    assert!(told.starts_with("exit 2\nerror: this training takes about "), "{told}");
    assert!(told.contains("`memory_budget` allows 1MiB") && told.contains("hint: no batch fits"), "{told}");
    let told = scene.run(&format!("{train} --memory-budget lots")).failure();
    assert!(told.contains("expected an amount such as 8GiB or 500MB, got `lots`"), "{told}");
    let flags = "--overwrite --memory-budget 2GiB --precision bf16 --accumulate 2";
    scene.run(&format!("{train} {flags}")).ok();
    let settings = String::from_utf8(scene.read("run/config.toml")).unwrap();
    for line in ["memory_budget = \"2GiB\"", "precision = \"bf16\"", "accumulate = 2"] {
        assert!(settings.contains(line), "{settings}");
    }
    let planned = scene.run(&format!("{train} --overwrite --dry-run")).ok().stdout;
    assert!(planned.contains(", a step's graph about "), "{planned}");
}
