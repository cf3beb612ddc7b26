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
