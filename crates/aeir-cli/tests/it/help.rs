//! What `--help` says.

use crate::Scene;

/// Help at the widest, whatever the terminal of the tests.
fn help(command: &str) -> String {
    let scene = Scene::new();
    let mut program = crate::program();
    for name in ["AEIR_IMAGE_ENCODER", "AEIR_TEXT_ENCODER"] {
        program.env_remove(name);
    }
    program.args(command.split_whitespace()).arg("--help").env("COLUMNS", "100");
    let outcome = scene.outcome(program).ok();
    assert_eq!(outcome.stderr, "");
    // Some lines end in blanks, which no editor keeps.
    outcome.stdout.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

#[test]
fn aeir() {
    insta::assert_snapshot!(help(""), @r#"
    Image-sentence retrieval for data without pairs.

    Trains on a public domain whose images have sentences, adapts to your domain, where nobody has
    written down which sentence belongs to which image, and finds images by sentence and by image.

    Usage: aeir [OPTIONS] <COMMAND>

    Commands:
      demo    Train, adapt, score and search on the data sets in `fixtures/`, and write a report
      train   Train a model on source pairs, adapted to unpaired target images and sentences
      eval    Score a model on test pairs, both ways
      index   Embed images with a model and store them for search
      search  Find images by a sentence or by an image
      help    Print this message or the help of the given subcommand(s)

    Options:
      -q, --quiet
              No progress and no notes on stderr; warnings and errors stay

              [env: AEIR_QUIET=]

      -h, --help
              Print help (see a summary with '-h')

      -V, --version
              Print version

    See it work:
      aeir demo

    On your own data:
      aeir train  --source pairs.jsonl --target-images photos --target-sentences lines.txt -o model
      aeir eval   --model model --data test.jsonl
      aeir index  --model model --images photos -o index
      aeir search --index index "a red car"
    "#);
}

#[test]
fn demo() {
    insta::assert_snapshot!(help("demo"), @r"
    Train, adapt, score and search on the data sets in `fixtures/`, and write a report

    Usage: aeir demo [OPTIONS]

    Options:
          --fixtures <DIR>   Folder with `datasets/` and `backbones/` [env: AEIR_FIXTURES=] [default:
                             fixtures]
      -o, --output <DIR>     Folder for models, index and report; an earlier demo in it is replaced
                             [env: AEIR_OUTPUT=] [default: runs/demo]
          --seeds <N>        Seeds for each row of the table [env: AEIR_SEEDS=] [default: 3]
          --config <FILE>    Settings in TOML, for all rows; `configs/demo.toml` holds the defaults
                             [env: AEIR_CONFIG=]
          --device <DEVICE>  Where to compute: auto, cpu, cuda, cuda:N or metal [env: AEIR_DEVICE=]
                             [default: auto]
      -q, --quiet            No progress and no notes on stderr; warnings and errors stay [env:
                             AEIR_QUIET=]
      -h, --help             Print help
    ");
}

#[test]
fn train() {
    insta::assert_snapshot!(help("train"), @r#"
    Train a model on source pairs, adapted to unpaired target images and sentences

    Usage: aeir train [OPTIONS] --source <FILE.jsonl> --output <RUN>

    Options:
          --source <FILE.jsonl>
              Source pairs: one `{"image": path, "captions": [..], "split"?: "train"|"val"}` a line,
              paths relative to the file. May be repeated; each file is a domain of its own

              [env: AEIR_SOURCE=]

          --target-images <LIST|DIR>
              Target images: a list file with one path a line, or a folder

              [env: AEIR_TARGET_IMAGES=]

          --target-sentences <FILE>
              Target sentences, one a line; which belongs to which image need not be known

              [env: AEIR_TARGET_SENTENCES=]

          --method <METHOD>
              What to train [default: aeir]

              Possible values:
              - source-only: Source pairs alone, without adaptation
              - aeir:        Source pairs, and adaptation to the target (semantic and structure
                transfer)

              [env: AEIR_METHOD=]

          --standardise
              Shift and scale the features by each domain's own mean and spread; the target's come from
              its unpaired sets

              [env: AEIR_STANDARDISE=]

          --image-encoder <DIR|ID>
              Frozen image encoder: a folder, or the name of one in `fixtures/backbones` or in the cache

              [env: AEIR_IMAGE_ENCODER=]
              [default: efficientnet-lite0]

          --text-encoder <DIR|ID>
              Frozen sentence encoder: a folder, or the name of one in `fixtures/backbones` or in the
              cache

              [env: AEIR_TEXT_ENCODER=]
              [default: static-minilm]

          --config <FILE>
              Settings in TOML; a flag wins over its line in the file

              [env: AEIR_CONFIG=]

          --epochs <N>
              Passes over the source pairs, or the target sets where those are larger [default: 40]

              [env: AEIR_EPOCHS=]

          --batch-size <N>
              Source pairs a step [default: 128]

              [env: AEIR_BATCH_SIZE=]

          --lr <RATE>
              Peak learning rate [default: 0.002]

              [env: AEIR_LR=]

          --source-loss <LOSS>
              Loss on the source pairs [default: info-nce]

              Possible values:
              - info-nce:        Symmetric InfoNCE with a learned temperature
              - triplet-hardest: Triplet ranking, hardest negative of the batch
              - triplet-all:     Triplet ranking, all negatives of the batch

              [env: AEIR_SOURCE_LOSS=]

          --adversary <HOW>
              How the encoders are set against the domain critics [default: alternating]

              Possible values:
              - alternating:       The critics step first, then the encoders
              - gradient-reversal: Both step at once, the gradient reversed between them

              [env: AEIR_ADVERSARY=]

          --seed <N>
              Decides initial weights, order and dropout [default: 1]

              [env: AEIR_SEED=]

      -o, --output <RUN>
              Folder for the model: new or empty

              [env: AEIR_OUTPUT=]

          --overwrite
              Replace a finished run in the output folder

              [env: AEIR_OVERWRITE=]

          --resume <WHICH>
              Go on from the newest checkpoint; starts afresh where there is none, leaves a finished run
              as it is

              Possible values:
              - latest: The newest checkpoint that is whole

              [env: AEIR_RESUME=]

          --device <DEVICE>
              Where to compute: auto, cpu, cuda, cuda:N or metal

              [env: AEIR_DEVICE=]
              [default: auto]

      -q, --quiet
              No progress and no notes on stderr; warnings and errors stay

              [env: AEIR_QUIET=]

      -h, --help
              Print help (see a summary with '-h')
    "#);
}

#[test]
fn eval() {
    insta::assert_snapshot!(help("eval"), @r#"
    Score a model on test pairs, both ways

    Usage: aeir eval [OPTIONS] --model <RUN> --data <FILE.jsonl>

    Options:
          --model <RUN>        Folder of a trained model [env: AEIR_MODEL=]
          --data <FILE.jsonl>  Test pairs: one `{"image": path, "captions": [..], "split"?: ".."}` a
                               line, paths relative to the file [env: AEIR_DATA=]
          --split <SPLIT>      Score this split only [default: the lines marked `test`, or all where
                               none is] [env: AEIR_SPLIT=] [possible values: train, val, test]
          --json               Print one JSON object [env: AEIR_JSON=]
          --device <DEVICE>    Where to compute: auto, cpu, cuda, cuda:N or metal [env: AEIR_DEVICE=]
                               [default: auto]
      -q, --quiet              No progress and no notes on stderr; warnings and errors stay [env:
                               AEIR_QUIET=]
      -h, --help               Print help
    "#);
}

#[test]
fn index() {
    insta::assert_snapshot!(help("index"), @r"
    Embed images with a model and store them for search

    Usage: aeir index [OPTIONS] --model <RUN> --images <DIR|LIST|FILE.jsonl> --output <IDX>

    Options:
          --model <RUN>                   Folder of a trained model [env: AEIR_MODEL=]
          --images <DIR|LIST|FILE.jsonl>  Images: a folder, a list file with one path a line, or a
                                          `.jsonl` file with an `image` a line [env: AEIR_IMAGES=]
      -o, --output <IDX>                  Folder for the index; an earlier index in it is replaced once
                                          the new one is whole [env: AEIR_OUTPUT=]
          --device <DEVICE>               Where to compute: auto, cpu, cuda, cuda:N or metal [env:
                                          AEIR_DEVICE=] [default: auto]
      -q, --quiet                         No progress and no notes on stderr; warnings and errors stay
                                          [env: AEIR_QUIET=]
      -h, --help                          Print help
    ");
}

#[test]
fn search() {
    insta::assert_snapshot!(help("search"), @r"
    Find images by a sentence or by an image

    Usage: aeir search [OPTIONS] --index <IDX> <SENTENCE|--image <FILE>>

    Arguments:
      [SENTENCE]  What the images should show

    Options:
          --index <IDX>      Folder of an index [env: AEIR_INDEX=]
          --image <FILE>     Look for images like this one
      -k <N>                 Number of results [env: AEIR_K=] [default: 10]
          --json             Print one JSON object [env: AEIR_JSON=]
          --device <DEVICE>  Where to compute: auto, cpu, cuda, cuda:N or metal [env: AEIR_DEVICE=]
                             [default: auto]
      -q, --quiet            No progress and no notes on stderr; warnings and errors stay [env:
                             AEIR_QUIET=]
      -h, --help             Print help
    ");
}

#[test]
fn without_a_command() {
    let scene = Scene::new();
    let outcome = scene.run("");
    assert_eq!((outcome.code, outcome.stdout.as_str()), (Some(2), ""));
    assert!(outcome.stderr.contains("Usage: aeir [OPTIONS] <COMMAND>"), "{outcome:?}");
    let outcome = scene.run("--version").ok();
    assert_eq!(outcome.stdout, concat!("aeir ", env!("CARGO_PKG_VERSION"), "\n"));
}
