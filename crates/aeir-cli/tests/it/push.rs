//! `aeir push` without the network.

use crate::{Scene, flip_a_bit, program};

#[test]
fn a_dry_run_lists_the_model_and_nothing_of_this_machine() {
    let scene = Scene::new();
    scene.copy("model", "mine");
    let listed = scene.run("push mine me/model --dry-run --json").ok().json();
    let names: Vec<&str> =
        listed["files"].as_array().unwrap().iter().map(|file| file["name"].as_str().unwrap()).collect();
    for name in
        ["README.md", "manifest.json", "model.safetensors", "encoders/image/config.json", "config.toml"]
    {
        assert!(names.contains(&name), "{names:?}");
    }
    assert!(
        !names
            .iter()
            .any(|name| ["skipped", "checkpoint", "evaluations", ".lock"].iter().any(|it| name.contains(it)))
    );
    assert_eq!(
        (listed["repository"].as_str(), listed["revision"].as_str()),
        (Some("me/model"), Some("main"))
    );
    let mut command = program();
    command.args(["push", "mine", "me/model@try", "--dry-run"]).env("HF_TOKEN", "hf_secret");
    let told = scene.outcome(command).ok();
    assert!(told.stdout.contains("branch try") && !format!("{told:?}").contains("hf_secret"), "{told:?}");
}

#[test]
fn bad_input_is_refused() {
    let scene = Scene::new();
    scene.copy("model", "mine");
    insta::assert_snapshot!(scene.run("push mine model --dry-run").failure(), @"
    exit 2
    error: model id: expected `org/name` or `org/name@revision`, got `model`

    hint: owner and name are letters, digits, `-`, `_` and `.`, as in `my-name/my-model`
    ");
    insta::assert_snapshot!(scene.run("push mine me/model@a --revision b --dry-run").failure(), @"
    exit 2
    error: `me/model@a` names a revision, and --revision b another

    hint: leave one of them out
    ");
    insta::assert_snapshot!(scene.run("push nowhere me/model").failure(), @"
    exit 4
    error: `nowhere` can't be used as a model: no such folder

    hint: name the --output folder of an `aeir train` that finished
    ");
    if cfg!(not(feature = "hub")) {
        insta::assert_snapshot!(scene.run("push mine me/model").failure(), @"
        exit 2
        error: this aeir was built without the hub's network code

        hint: build it with `cargo build --release -p aeir-cli --features hub`; --dry-run lists what would be sent
        ");
    }
    flip_a_bit(&scene.path("mine/model.safetensors"));
    assert!(scene.run("push mine me/model --dry-run").failure().contains("is damaged"));
}
