//! `aeir convert` on files that PyTorch wrote.

use crate::{Scene, fixtures};

/// A scene with copies of the checkpoints.
fn scene() -> Scene {
    let scene = Scene::new();
    for name in ["network_legacy.pth", "several.pth.tar", "module.pth", "sparse.pth"] {
        scene.write(name, std::fs::read(fixtures("formats/pth").join(name)).unwrap());
    }
    scene
}

#[test]
fn tensors_are_written_and_the_rest_is_told() {
    let scene = scene();
    let outcome = scene.run("convert network_legacy.pth model.safetensors").ok();
    assert_eq!(outcome.stdout, "17 tensors in `model.safetensors`\n");
    assert_eq!(outcome.stderr, "3 other values were left out; --list shows them\n");
    let refused = scene.run("convert network_legacy.pth model.safetensors").failure();
    insta::assert_snapshot!(refused, @r"
    exit 2
    error: `model.safetensors` exists

    hint: name another file, or add --overwrite
    ");
    let outcome = scene.run("convert network_legacy.pth model.safetensors --overwrite --quiet --json").ok();
    let told: serde_json::Value = serde_json::from_str(&outcome.stdout).unwrap();
    assert_eq!(told["tensors"][1]["name"], "f16");
    assert_eq!(told["tensors"][1]["shape"], serde_json::json!([2, 3, 4]));
    assert_eq!(told["others"][2]["what"], "an object of `argparse.Namespace`");
}

#[test]
fn a_listing_writes_nothing() {
    let scene = scene();
    let outcome = scene.run("convert several.pth.tar --list --key model").ok();
    assert!(
        outcome.stdout.starts_with("0.weight\tF32\t[3, 4]\n0.bias\tF32\t[4]\n1.rnn.weight"),
        "{}",
        outcome.stdout
    );
    assert!(outcome.stdout.ends_with("Eiters\tno tensor\t17\n"), "{}", outcome.stdout);
}

#[test]
fn checkpoints_that_do_not_say_what_to_take() {
    let scene = scene();
    let told = |command: &str| scene.run(&format!("convert {command}")).failure();
    insta::assert_snapshot!(told("several.pth.tar out.safetensors"), @r"
    exit 2
    error: tensors: expected one value that holds them, got `model` (3 tensors), `optimizer` (3 tensors) in `several.pth.tar`

    hint: give --key one of these names; --list shows every tensor
    ");
    insta::assert_snapshot!(told("several.pth.tar out.safetensors --key state_dict"), @r"
    exit 2
    error: tensors: expected some under `state_dict`, got `model` (3 tensors), `optimizer` (3 tensors) in `several.pth.tar`

    hint: give --key one of these names; --list shows every tensor
    ");
    insta::assert_snapshot!(told("module.pth out.safetensors"), @r"
    exit 4
    error: the checkpoint: expected a dictionary of tensors, got an object of `torch.nn.modules.linear.Linear` in `module.pth`
    ");
    insta::assert_snapshot!(told("sparse.pth out.safetensors"), @r"
    exit 4
    error: byte 375 of `data.pkl`: expected a dense tensor (`torch._utils._rebuild_tensor_v2`), got `torch._utils._rebuild_sparse_tensor` in `sparse.pth`
    ");
    insta::assert_snapshot!(told("test.jsonl out.safetensors"), @r"
    exit 4
    error: the file: expected a file that `torch.save` wrote (zip, or pickle before PyTorch 1.6), got another format in `test.jsonl`
    ");
    insta::assert_snapshot!(told("gone.pth out.safetensors"), @r"
    exit 4
    error: no such file: `gone.pth`
    ");
    assert!(told("network_legacy.pth").contains("OUTPUT"));
    assert!(!scene.path("out.safetensors").exists());
}
