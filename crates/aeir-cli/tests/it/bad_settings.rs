//! Flags and settings that can't be used.

use crate::{SHORT, Scene, program};

#[test]
fn what_changes_nothing_is_said() {
    let scene = Scene::new();
    let train = "train --method source-only --source source.jsonl --epochs 1 --output run --overwrite";
    let told = scene.run(&format!("{train} --semantic-weight 2 --set adapt.teacher_decay=0.9")).ok().stderr;
    for part in ["--semantic-weight", "setting `adapt.teacher_decay`"] {
        assert!(told.contains(&format!("warning: {part} has no effect with method `source-only`")), "{told}");
    }
    let quiet = scene.run(&format!("{train} --lr 0.01 --set model.input_dropout=0.2")).ok().stderr;
    assert!(!quiet.contains("no effect"), "{quiet}");
}

#[test]
fn flags_that_do_not_go_together() {
    let scene = Scene::new();
    let train = |flags: &str| {
        let told = scene.run(&format!("train --source source.jsonl --output run {flags}")).failure();
        assert!(!scene.path("run").exists(), "refused before anything is written");
        told
    };
    insta::assert_snapshot!(train(""), @r"
    exit 2
    error: method `aeir` adapts to a target: --target-images and --target-sentences are missing

    hint: add both, or train on the source alone with --method source-only
    ");
    insta::assert_snapshot!(train("--method source-only --standardise"), @r"
    exit 2
    error: --standardise takes the target's statistics: --target-images and --target-sentences are missing

    hint: add both, or train on the source alone with --method source-only
    ");
    insta::assert_snapshot!(train("--target-images images.txt"), @r"
    exit 2
    error: --target-images is given without --target-sentences

    hint: the target domain needs both sets; which sentence belongs to which image need not be known
    ");
    insta::assert_snapshot!(train("--target-sentences sentences.txt"), @r"
    exit 2
    error: --target-sentences is given without --target-images

    hint: the target domain needs both sets; which sentence belongs to which image need not be known
    ");
    insta::assert_snapshot!(train("--method aier"), @r"
    exit 2
    error: invalid value 'aier' for '--method <METHOD>'
      [possible values: source-only, aeir, adapt, dann, adda, mmd, coral, cdan, cca, dcca, vsepp, scan, saf, sgr, sgraf]

      tip: a similar value exists: 'aeir'

    For more information, try '--help'.
    ");
    insta::assert_snapshot!(train("--method source-only --device gpu"), @r"
    exit 2
    error: invalid value 'gpu' for '--device <DEVICE>': expected auto, cpu, cuda, cuda:N or metal

    For more information, try '--help'.
    ");
    insta::assert_snapshot!(train("--method source-only --epochs 0"), @r"
    exit 2
    error: `epochs` must be at least 1, got 0
    ");
    insta::assert_snapshot!(train("--method source-only --batch-size 1"), @r"
    exit 2
    error: `batch_size` must be at least 2: other pairs are the negatives, got 1
    ");
    insta::assert_snapshot!(train("--method source-only --lr nan"), @r"
    exit 2
    error: `optimizer.learning_rate` must be above 0, got NaN
    ");
    insta::assert_snapshot!(train("--method source-only --epochs -1"), @"
    exit 2
    error: unexpected argument '-1' found

    Usage: aeir train [OPTIONS]

    For more information, try '--help'.
    ");
}

#[test]
#[cfg(not(feature = "cuda"))]
fn a_device_that_is_not_built_in() {
    let scene = Scene::new();
    let mut command = program();
    // candle appends a stack to its messages then.
    command.args(SHORT.split_whitespace()).args(["--device", "cuda"]).env("RUST_BACKTRACE", "1");
    insta::assert_snapshot!(scene.outcome(command).failure(), @"
    exit 2
    error: device cuda can't be used: this aeir was built without CUDA

    hint: build one with `cargo xtask cuda build`, which needs no CUDA toolkit (docs/cuda.md), or pass --device cpu
    ");
}

#[test]
fn numbers_of_results() {
    let scene = Scene::with_model();
    let search = |count: &str| scene.run(&format!("search --index index dog -k {count}")).failure();
    insta::assert_snapshot!(search("0"), @r"
    exit 2
    error: invalid value '0' for '-k <N>': expected a whole number of at least 1

    For more information, try '--help'.
    ");
    for wrong in ["-1", "x", "99999999999999999999999"] {
        let told = search(wrong);
        assert!(told.contains("expected a whole number of at least 1"), "{told}");
    }
    insta::assert_snapshot!(scene.run("search --index index").failure(), @r"
    exit 2
    error: the following required arguments were not provided:
      <SENTENCE|--image <FILE>>

    Usage: aeir search --index <IDX> <SENTENCE|--image <FILE>>

    For more information, try '--help'.
    ");
    insta::assert_snapshot!(scene.run("search --index index dog --image dog.png").failure(), @r"
    exit 3
    error: cannot read `dog.png`: No such file or directory (os error 2)
    ");
}

#[test]
fn configurations() {
    let scene = Scene::new();
    let train = |content: &str| {
        scene.write("my.toml", content);
        let told = scene.run(&format!("{SHORT} --config my.toml")).failure();
        assert!(told.starts_with("exit 2") && !scene.path("run").exists(), "{told}");
        told
    };
    insta::assert_snapshot!(train("epoch = 3\n"), @"
    exit 2
    error: configuration `my.toml`: TOML parse error at line 1, column 1
      |
    1 | epoch = 3
      | ^^^^^
    unknown field `epoch`, expected one of `version`, `method`, `standardise`, `seed`, `epochs`, `epoch_length`, `batch_size`, `target_batch_size`, `labelled_share`, `precision`, `memory_budget`, `model`, `source_loss`, `adaptation`, `aeir`, `adapt`, `cca`, `optimizer`, `selection`, `patience`, `target_held_out`, `checkpoint_every`, `checkpoint_steps`, `keep_checkpoints`
      did you mean `epochs`?
    ");
    insta::assert_snapshot!(train("[optimizer]\nlearning_rte = 0.1\n"), @"
    exit 2
    error: configuration `my.toml`: TOML parse error at line 2, column 1
      |
    2 | learning_rte = 0.1
      | ^^^^^^^^^^^^
    unknown field `learning_rte`, expected one of `kind`, `learning_rate`, `weight_decay`, `beta1`, `beta2`, `epsilon`, `momentum`, `nesterov`, `schedule`, `warm_up`, `step_epochs`, `step_factor`, `clip_norm`, `accumulate`, `ema_decay`, `groups`
      did you mean `learning_rate`?
    ");
    insta::assert_snapshot!(train("epochs = \"many\"\n"), @r#"
    exit 2
    error: configuration `my.toml`: TOML parse error at line 1, column 10
      |
    1 | epochs = "many"
      |          ^^^^^^
    invalid type: string "many", expected a whole number, 0 or more
    "#);
    insta::assert_snapshot!(train("version = 9\n"), @r"
    exit 2
    error: `version` must be 1, got 9
    ");
    insta::assert_snapshot!(train("[aeir]\nneighbours = 0\n"), @r"
    exit 2
    error: `aeir.neighbours` must be at least 1, got 0
    ");
    insta::assert_snapshot!(train("epochs = \n"), @r"
    exit 2
    error: configuration `my.toml`: TOML parse error at line 1, column 10
      |
    1 | epochs = 
      |          ^
    string values must be quoted, expected literal string
    ");
    insta::assert_snapshot!(scene.run(&format!("{SHORT} --config gone.toml")).failure(), @r"
    exit 2
    error: could not read the configuration `gone.toml`: No such file or directory (os error 2)
    ");
}

#[test]
fn encoders() {
    let scene = Scene::new();
    let train = |flag: &str, value: &str| {
        let mut command = program();
        command.args(SHORT.split_whitespace()).args([flag, value]);
        let told = scene.outcome(command).failure();
        assert!(told.starts_with("exit 4"), "{told}");
        told
    };
    insta::assert_snapshot!(train("--image-encoder", "no-such-encoder"), @r"
    exit 4
    error: no encoder `no-such-encoder`: it is no folder, and neither `fixtures/backbones` nor the cache has it

    hint: run in a checkout of aeir, put its files into `[SHARED]/cache/backbones/no-such-encoder`, or give --image-encoder a folder that holds them
    ");
    insta::assert_snapshot!(train("--text-encoder", "./gone/encoder"), @r"
    exit 4
    error: no encoder `./gone/encoder`: no such folder

    hint: --text-encoder takes a folder with `config.json`, `model.safetensors` and, for text, `tokenizer.json`, or an id `org/name`
    ");
    // The build of the tests has no downloads, and the variable is set: the hint depends on the feature.
    let told = train("--text-encoder", "org/model@v2");
    let snapshot = "[SHARED]/cache/hugging-face/hub/models--org--model/snapshots/v2";
    assert!(
        told.starts_with(&format!(
            "exit 4\nerror: the model `org/model@v2` is not in the cache: no config.json, model.safetensors in `{snapshot}`\n\n\
             hint: put the model's files into `{snapshot}`, or name a folder that holds them; to fetch them, "
        )),
        "{told}"
    );
    insta::assert_snapshot!(train("--text-encoder", "."), @r"
    exit 4
    error: no such file: `./config.json`

    hint: the folder is not whole: copy it again, or name another
    ");
    let wrong = crate::fixtures("backbones/efficientnet-lite0").display().to_string();
    insta::assert_snapshot!(train("--text-encoder", &wrong), @r"
    exit 4
    error: unsupported `architecture or model_type` efficientnet-lite0 in `[REPOSITORY]/fixtures/backbones/efficientnet-lite0/config.json` (supported: model2vec, bert, distilbert, xlm-roberta, roberta, modernbert, clip, clip_text_model, siglip, siglip_text_model)
    ");
}

#[test]
fn a_learning_rate_that_blows_up() {
    let scene = Scene::new();
    let told = scene.run(&format!("{SHORT} --lr 1e30")).failure();
    assert!(told.starts_with("exit 1\n") && told.contains("\n\nhint: lower --lr"), "{told}");
    assert_eq!(scene.run("eval --model run --data test.jsonl").code, Some(4));
}

#[test]
fn flags_from_the_environment() {
    let scene = Scene::with_model();
    for (value, json) in
        [("1", true), ("true", true), ("yes", true), ("0", false), ("false", false), ("", false)]
    {
        let mut command = program();
        command.args(["search", "--index", "index", "dog"]).env("AEIR_JSON", value).env("AEIR_QUIET", value);
        assert_eq!(scene.outcome(command).ok().stdout.starts_with('{'), json, "AEIR_JSON={value}");
    }
    let mut command = program();
    command.args(["search", "dog"]).env("AEIR_INDEX", "index").env("AEIR_K", "3");
    assert_eq!(scene.outcome(command).ok().stdout.lines().count(), 3);
    let mut command = program();
    command.args("train --method source-only --source source.jsonl --output run".split_whitespace());
    command.env("AEIR_EPOCHS", "1");
    scene.outcome(command).ok();
    assert_eq!(scene.lines("run/metrics.jsonl").len(), 1);
}
