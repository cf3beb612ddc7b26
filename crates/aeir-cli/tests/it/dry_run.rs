//! `aeir train --dry-run` and the layers of settings.

use crate::{BOTH, SHORT, Scene};

#[test]
fn the_output_is_the_settings_file_of_the_run() {
    let scene = Scene::new();
    scene.write("my.toml", "epochs = 9\nbatch_size = 16\n[optimizer]\nclip_norm = 3.0\nwarm_up = 0.1\n");
    let flags = format!(
        "train {BOTH} --config my.toml --set optimizer.warm_up=0.2 --set epochs=8 --epochs 3 --output run --quiet"
    );
    let planned = scene.run(&format!("{flags} --dry-run")).ok();
    assert!(!scene.path("run").exists(), "nothing is written");
    let table: toml::Table = planned.stdout.parse().unwrap();
    // A flag wins over --set, that over the file, that over the defaults.
    assert_eq!(table["epochs"].as_integer(), Some(3));
    assert_eq!(table["optimizer"]["warm_up"].as_float(), Some(0.2));
    assert_eq!(table["optimizer"]["clip_norm"].as_float(), Some(3.0));
    assert_eq!(table["target_batch_size"].as_integer(), Some(128));

    scene.run(&flags).ok();
    let written = String::from_utf8(scene.read("run/config.toml")).unwrap();
    assert!(planned.stdout.starts_with(&written), "the same text, the estimates below it");
    let steps =
        |line: &str| line.starts_with("# steps   12, 4 an epoch; 8 on the source alone, 4 with the target");
    assert!(planned.stdout.lines().any(steps), "{}", planned.stdout);
    assert!(scene.lines("run/metrics.jsonl")[2].contains("\"step\":12,"), "as planned");

    scene.write("planned.toml", &planned.stdout);
    let again = flags.replace(
        "--config my.toml --set optimizer.warm_up=0.2 --set epochs=8 --epochs 3",
        "--config planned.toml",
    );
    scene.run(&again.replace("--output run", "--output again")).ok();
    assert!(scene.read("again/model.safetensors") == scene.read("run/model.safetensors"));
    assert!(scene.read("again/config.toml") == scene.read("run/config.toml"));
}

#[test]
fn parameters_come_by_group() {
    let scene = Scene::new();
    scene.write(
        "my.toml",
        "[[optimizer.groups]]\npattern = \"encoder.image.*\"\nfrozen = true\n\
         [[optimizer.groups]]\npattern = \"*.bias\"\nweight_decay = 0.0\n",
    );
    let planned = scene.run(&format!("train {BOTH} --config my.toml --output run --dry-run")).ok();
    let shown: Vec<&str> = planned
        .stdout
        .lines()
        .filter(|line| line.starts_with("#   ") || line.starts_with("# parameters"))
        .collect();
    insta::assert_snapshot!(shown.join("\n"), @"
    # parameters
    #   encoders: 65537 values in 2 tensors, learning rate 0.002, weight decay 0.05
    #     encoder.log_scale []
    #     encoder.sentence.projection.weight [256, 256]
    #   encoders, `encoder.image.*`: 327936 values in 2 tensors, frozen
    #     encoder.image.projection.bias [256]
    #     encoder.image.projection.weight [256, 1280]
    #   encoders, `*.bias`: 256 values in 1 tensor, learning rate 0.002, weight decay 0
    #     encoder.sentence.projection.bias [256]
    #   critics: 82048 values in 6 tensors, learning rate 0.001, weight decay 0.05
    #     critic.image.layers.0.weight [128, 256]
    #     critic.image.layers.1.weight [64, 128]
    #     critic.image.layers.2.weight [1, 64]
    #     critic.sentence.layers.0.weight [128, 256]
    #     critic.sentence.layers.1.weight [64, 128]
    #     critic.sentence.layers.2.weight [1, 64]
    #   critics, `*.bias`: 386 values in 6 tensors, learning rate 0.001, weight decay 0
    #     critic.image.layers.0.bias [128]
    #     critic.image.layers.1.bias [64]
    #     critic.image.layers.2.bias [1]
    #     critic.sentence.layers.0.bias [128]
    #     critic.sentence.layers.1.bias [64]
    #     critic.sentence.layers.2.bias [1]
    ");
    for line in ["# time    ", "# memory  parameters "] {
        assert!(planned.stdout.contains(line), "{}", planned.stdout);
    }
}

#[test]
fn without_data_the_settings_alone() {
    let scene = Scene::new();
    let shown = scene.run("train --method saf --dry-run").ok();
    let table: toml::Table = shown.stdout.parse().unwrap();
    assert_eq!(table["model"]["head"].as_str(), Some("saf"));
    assert_eq!(
        shown.stderr,
        "parameters, steps, time and memory depend on the data: add --source to see them\n"
    );
}

#[test]
fn settings_that_are_not_there() {
    let scene = Scene::new();
    let set = |assignment: &str| {
        let told = scene.run_all(&SHORT.split_whitespace().chain(["--set", assignment]).collect::<Vec<_>>());
        assert!(!scene.path("run").exists(), "refused before anything is written");
        told.failure()
    };
    insta::assert_snapshot!(set("learning_rte=1"), @"
    exit 2
    error: configuration `--set`: unknown key `learning_rte`
      did you mean `optimizer.learning_rate`?
    ");
    insta::assert_snapshot!(set("optimizer.clip_nrom=1"), @"
    exit 2
    error: configuration `--set`: unknown key `optimizer.clip_nrom`
      did you mean `optimizer.clip_norm`?
    ");
    insta::assert_snapshot!(set("epochs"), @"
    exit 2
    error: configuration `--set`: `epochs` has no `=`: expected KEY=VALUE, such as epochs=10
    ");
    insta::assert_snapshot!(set("epochs=many"), @r#"
    exit 2
    error: configuration `--set epochs=many`: invalid type: string "many", expected a whole number, 0 or more
    "#);
    insta::assert_snapshot!(set("optimizer.kind=adma"), @"
    exit 2
    error: configuration `--set optimizer.kind=adma`: unknown variant `adma`, expected one of `adamw`, `adam`, `sgd`
    ");
    insta::assert_snapshot!(set("keep_checkpoints=0"), @"
    exit 2
    error: `keep_checkpoints` must be at least 1, got 0
    ");
    // The names of the parameters are known when there is a model.
    let groups = "optimizer.groups=[{ pattern = 'towers.*', frozen = true }]";
    let flags = SHORT.split_whitespace().chain(["--dry-run", "--set", groups]);
    let told = scene.run_all(&flags.collect::<Vec<_>>());
    insta::assert_snapshot!(told.failure(), @"
    exit 2
    error: `optimizer.groups.pattern` must be a pattern that matches a name such as `encoder.image.projection.weight`, got `towers.*`, which matches none of 5
    ");
}
