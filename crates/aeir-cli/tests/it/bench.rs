//! `aeir bench`: what it says, not how fast it is.

use serde_json::Value;

use crate::{Scene, program};

#[test]
fn encode_times_both_encoders() {
    let scene = Scene::new();
    let outcome = scene.run("bench encode --batch-size 2 --tokens 5 --threads 2 --json").ok();
    let report: Value = serde_json::from_str(&outcome.stdout).unwrap();
    assert_eq!(report["threads"], 2);
    assert_eq!(report["text"]["sentence"], "a dog and the man");
    assert_eq!(report["text"]["dimension"], 256);
    assert_eq!(report["image"]["dimension"], 1280);
    for rate in [
        &report["text"]["sentences_per_second"],
        &report["image"]["images_per_second"],
        &report["image"]["network_images_per_second"],
    ] {
        assert!(rate.as_f64().unwrap() > 0.0, "{report}");
    }
}

#[test]
fn encode_needs_an_encoder() {
    let scene = Scene::new();
    let mut command = program();
    command.env_remove("AEIR_IMAGE_ENCODER").env_remove("AEIR_TEXT_ENCODER").args(["bench", "encode"]);
    let failure = scene.outcome(command).failure();
    assert!(failure.starts_with("exit 2\n") && failure.contains("--text-encoder"), "{failure}");
}

#[test]
fn data_times_readers() {
    let scene = Scene::new();
    for (path, items) in [("test.jsonl", 20), ("[scan]", 12), ("[parquet]", 4)] {
        let formats = crate::fixtures("formats");
        let path = match path {
            "[scan]" => formats.join("scan/train_ims.npy").display().to_string(),
            "[parquet]" => formats.join("parquet/zstd.parquet").display().to_string(),
            other => other.to_owned(),
        };
        let report = scene.run(&format!("bench data --read {path} --repeats 1 --json")).ok().json();
        assert_eq!((&report["items"], &report["failed"]), (&items.into(), &0.into()), "{report}");
        for rate in ["listed_per_second", "read_per_second", "gigabytes_per_second"] {
            assert!(report[rate].as_f64().unwrap() > 0.0, "{report}");
        }
    }
    let none = scene.run("bench data --read sentences.txt --repeats 1").ok();
    assert!(none.stdout.contains("list of sentences, 30 items"), "{none:?}");
}

#[test]
fn search_times_every_storage_and_the_graph() {
    let scene = Scene::new();
    let report = scene
        .run("bench search --items 2000 --dimension 32 --queries 20 --repeats 1 --approximate --vectors made --json")
        .ok()
        .json();
    // Without a card there is no line of one.
    assert!(report.get("on_card").is_none(), "{report}");
    let exact = report["exact"].as_array().unwrap();
    let storages: Vec<&str> = exact.iter().map(|line| line["storage"].as_str().unwrap()).collect();
    assert_eq!(storages, ["f32", "f16", "int8"]);
    assert!(exact.iter().all(|line| line["queries_per_second"].as_f64().unwrap() > 0.0), "{report}");
    assert!(exact[1..].iter().all(|line| line["recall"].as_f64().unwrap() > 0.95), "{report}");
    let graphs = report["approximate"].as_array().unwrap();
    assert_eq!(graphs.len(), 3);
    assert!(graphs.iter().all(|graph| graph["stated_recall_at_10"].as_f64().unwrap() >= 0.95), "{report}");
    assert_eq!(scene.read("made/items.npy").len(), 128 + 2000 * 32 * 4);
    let text = scene.run("bench search --items 500 --dimension 16 --queries 5 --repeats 1").ok().stdout;
    assert!(
        text.contains("queries/s") && !text.contains("graph over") && !text.contains("on the card"),
        "{text}"
    );
}

#[test]
fn a_search_on_a_card_needs_a_build_for_one() {
    if cfg!(feature = "cuda") {
        return;
    }
    let refused = Scene::new().run("bench search --items 100 --dimension 4 --queries 1 --device cuda");
    assert_eq!(refused.code, Some(2));
    assert!(refused.stderr.contains("this aeir was built without CUDA"), "{refused:?}");
    assert!(refused.stderr.contains("hint: build one with"), "{refused:?}");
}
