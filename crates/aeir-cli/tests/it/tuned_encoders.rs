//! Pre-trained encoders that are trained with the towers, from the command line.

use std::fs;

use crate::{Scene, fixtures};

#[test]
fn a_trained_image_encoder_is_a_part_of_the_model() {
    let scene = Scene::new();
    let original = fixtures("parity/tiny-models/vit");
    let flags = |tuning: &str| {
        format!(
            "train --method source-only --epochs 2 --batch-size 20 --source source.jsonl --image-encoder {} \
             --set model.image_backbone.train={tuning} --set model.image_backbone.learning_rate=0.01",
            original.display()
        )
    };
    let weights = |model: &str| scene.read(&format!("{model}/encoders/image/model.safetensors"));
    scene.run(&format!("{} --output frozen", flags("frozen"))).ok();
    assert!(weights("frozen") == fs::read(original.join("model.safetensors")).unwrap());
    for tuning in ["lora", "full"] {
        scene.run(&format!("{} --output {tuning}", flags(tuning))).ok();
        assert!(weights(tuning) != weights("frozen"), "{tuning}");
        assert!(!scene.path(&format!("{tuning}/.encoders.tmp")).exists());
        let scores = scene.run(&format!("eval --model {tuning} --data source.jsonl --split val --json")).ok();
        let rsum = scores.json()["rsum"].as_f64().unwrap();
        assert!(rsum > 0.0, "{scores:?}");
        // What chose the epoch is what the finished model scores.
        let card = String::from_utf8(scene.read(&format!("{tuning}/README.md"))).unwrap();
        assert!(card.contains(&format!("(rSum {rsum:.1})")), "{rsum} in {card}");
    }
    let planned = scene.run(&format!("{} --dry-run --output none", flags("lora"))).ok();
    assert!(planned.stdout.contains("encoder.image_backbone."), "{}", planned.stdout);
    assert!(planned.stdout.contains("learning rate 0.01, weight decay 0.05"), "{}", planned.stdout);
}

#[test]
fn encoders_that_can_not_be_trained() {
    let scene = Scene::new();
    let train = |more: &str| {
        scene
            .run(&format!("train --method source-only --epochs 1 --source source.jsonl --output run {more}"))
            .failure()
    };
    insta::assert_snapshot!(train("--set model.text_backbone.train=lora --text-encoder words"), @"
    exit 2
    vocabulary of 30 words that occur 4 times or more
    error: `model.text_backbone.train` asks to train an encoder, and words have an encoder of their own

    hint: leave it `frozen`
    ");
    insta::assert_snapshot!(scene.run("train --method saf --source source.jsonl --output run --set model.image_backbone.train=full").failure(), @"
    exit 2
    error: `model.image_backbone.train` must be `frozen` with a head that compares fragments, got `full`
    ");
    insta::assert_snapshot!(train("--set model.image_backbone.train=full"), @"
    exit 3
    error: training the encoder of `[REPOSITORY]/fixtures/backbones/efficientnet-lite0/config.json`: expected a network of clip, siglip, vit, dinov2, resnet or convnext, got `efficientnet-lite0`, which can only be `frozen`
    ");
    insta::assert_snapshot!(train("--set model.image_backbone.train=some"), @"
    exit 2
    error: configuration `--set model.image_backbone.train=some`: unknown variant `some`, expected one of `frozen`, `lora`, `full`
    ");
}
