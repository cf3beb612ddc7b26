//! Models and indexes that are missing, unfinished, damaged, or of another version.

use std::fs;

use crate::{Scene, cut, flip_a_bit};

#[test]
fn models() {
    let scene = Scene::with_model();
    let eval = |model: &str| scene.run(&format!("eval --model {model} --data test.jsonl")).failure();
    insta::assert_snapshot!(eval("gone"), @r"
    exit 4
    error: `gone` can't be used as a model: no such folder

    hint: name the --output folder of an `aeir train` that finished
    ");
    insta::assert_snapshot!(eval("."), @r"
    exit 4
    error: `.` can't be used as a model: no `manifest.json` in it: not a model, or its training did not finish

    hint: name the --output folder of an `aeir train` that finished
    ");
    insta::assert_snapshot!(eval("index"), @r"
    exit 4
    error: `index` can't be used as a model: expected format `aeir-model`, got `aeir-index`
    ");
    insta::assert_snapshot!(eval("test.jsonl"), @r"
    exit 4
    error: could not read `test.jsonl/manifest.json`: Not a directory (os error 20)
    ");

    let edit_manifest = |from: &str, to: &str| {
        scene.copy("model", "bad");
        let text = String::from_utf8(scene.read("bad/manifest.json")).unwrap();
        assert!(text.contains(from), "{text}");
        scene.write("bad/manifest.json", text.replace(from, to));
        eval("bad")
    };
    insta::assert_snapshot!(edit_manifest("\"version\": 1", "\"version\": 2"), @r"
    exit 4
    error: `bad` can't be used as a model: expected model format version 1, got 2: train it again with this version
    ");
    let told = edit_manifest("\"serving_domain\": \"target\"", "\"serving_domain\": \"source\"");
    assert!(
        told.starts_with(
            "exit 4\nerror: `bad` can't be used as a model: `manifest.json` was changed: expected checksum "
        ) && told.contains("\n\nhint: copy the folder again"),
        "{told}"
    );
    insta::assert_snapshot!(edit_manifest("\"method\"", "\"methode\""), @r"
    exit 4
    error: could not parse `bad/manifest.json`: missing field `method` at line 48 column 1
    ");
    scene.write("bad/manifest.json", "{");
    insta::assert_snapshot!(eval("bad"), @r"
    exit 4
    error: could not parse `bad/manifest.json`: EOF while parsing an object at line 1 column 1
    ");
    fs::remove_file(scene.path("bad/manifest.json")).unwrap();
    insta::assert_snapshot!(eval("bad"), @r"
    exit 4
    error: `bad` can't be used as a model: no `manifest.json` in it: not a model, or its training did not finish

    hint: run the same `aeir train` command with --resume latest
    ");

    scene.copy("model", "bad");
    fs::remove_file(scene.path("bad/model.safetensors")).unwrap();
    insta::assert_snapshot!(eval("bad"), @r"
    exit 4
    error: no such file: `bad/model.safetensors`

    hint: the folder is not whole: copy it again, or name another
    ");
    fs::remove_dir_all(scene.path("bad/encoders/image")).unwrap();
    for spoil in [cut, flip_a_bit] {
        for file in
            ["model.safetensors", "encoders/image/model.safetensors", "encoders/sentence/model.safetensors"]
        {
            scene.copy("model", "bad");
            spoil(&scene.path("bad").join(file));
            let told = eval("bad");
            assert!(told.starts_with("exit 4\nerror: "), "{file}: {told}");
        }
    }
    let told = scene.run("index --model bad --images images.txt --output made").failure();
    assert!(told.starts_with("exit 4"), "{told}");
    assert!(!scene.path("made").exists());
}

#[test]
fn a_damaged_model_is_told_by_name() {
    let scene = Scene::with_model();
    scene.copy("model", "bad");
    flip_a_bit(&scene.path("bad/model.safetensors"));
    let told = scene.run("eval --model bad --data test.jsonl").failure();
    assert!(told.contains("`bad` can't be used as a model: `model.safetensors` is damaged"), "{told}");
    assert!(told.contains("\n\nhint: copy the folder again"), "{told}");
}

#[test]
fn indexes() {
    let scene = Scene::with_model();
    let search = |index: &str| scene.run(&format!("search --index {index} dog")).failure();
    insta::assert_snapshot!(search("gone"), @r"
    exit 4
    error: `gone` can't be used as an index: no such folder

    hint: make one with `aeir index --model RUN --images PHOTOS --output INDEX`
    ");
    insta::assert_snapshot!(search("model"), @r#"
    exit 4
    error: `model` can't be used as an index: expected format `aeir-index`, got `aeir-model`

    hint: make one with `aeir index --model RUN --images PHOTOS --output INDEX`
    "#);
    insta::assert_snapshot!(search("test.jsonl"), @r"
    exit 4
    error: `test.jsonl` can't be used as an index: expected a folder, got a file

    hint: make one with `aeir index --model RUN --images PHOTOS --output INDEX`
    ");

    for file in [
        "segment-000001/vectors.f32",
        "segment-000001/items.txt",
        "segment-000001/items.offsets",
        "manifest.json",
        "model/manifest.json",
        "model/model.safetensors",
        "model/encoders/sentence/model.safetensors",
    ] {
        let remove = |file: &std::path::Path| fs::remove_file(file).unwrap();
        for spoil in [cut as fn(&std::path::Path), flip_a_bit, remove] {
            scene.copy("index", "bad");
            spoil(&scene.path("bad").join(file));
            let told = search("bad");
            assert!(told.starts_with("exit 4\nerror: ") && told.contains("bad"), "{file}: {told}");
        }
    }
    scene.copy("index", "bad");
    cut(&scene.path("bad/segment-000001/vectors.f32"));
    insta::assert_snapshot!(search("bad"), @r"
    exit 4
    error: `bad/segment-000001/vectors.f32` is damaged: expected 30720 bytes, got 15360: rebuild the index
    ");
    scene.copy("index", "bad");
    let text = String::from_utf8(scene.read("bad/manifest.json")).unwrap();
    scene.write("bad/manifest.json", text.replace("\"version\": 2", "\"version\": 1"));
    insta::assert_snapshot!(search("bad"), @r"
    exit 4
    error: `bad/manifest.json`: expected index version 2, got 1: rebuild the index
    ");

    // The model inside changed for another one.
    scene.run(crate::SHORT).ok();
    scene.copy("index", "bad");
    fs::remove_dir_all(scene.path("bad/model")).unwrap();
    fs::rename(scene.path("run"), scene.path("bad/model")).unwrap();
    let told = search("bad");
    assert!(told.starts_with("exit 4\nerror: "), "{told}");
}
