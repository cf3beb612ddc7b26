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
      demo      Train, adapt, score and search on the data sets in `fixtures/`, and write a report
      train     Train a model on source pairs, adapted to unpaired target images and sentences
      diagnose  Say how far source and target are apart, whether the target's two sets fit, and what to
                do
      eval      Score a model on test pairs, both ways
      index     Embed images with a model and store them for search
      search    Find images by a sentence or by an image
      serve     Serve an index over HTTP, with a page to search it
      sweep     Train every combination of listed settings and seeds, one after another, and set the
                results side by side
      report    Show a run, or several side by side, as a page: curves, settings, recall, warnings
      push      Put a trained model with its card onto the Hugging Face hub
      convert   Turn a PyTorch checkpoint into safetensors, without running what is pickled in it
      data      Check, split, convert and unpair data sets
      pairs     Match unpaired images and sentences, to look through what a model takes for pairs
      label     Label a few target pairs where it helps most: plan which, and click them on a local page
      embed     Embed a data set into `.npy`, safetensors or Parquet files, in parts on many machines if
                it is large
      cache     Show and remove cached features of frozen encoders
      bench     Time our work on this machine
      selftest  Check that a device computes what the CPU computes: every operation, head, loss, encoder
                and method, with gradients
      doctor    Look at this machine: devices, drivers, processor, memory, cache, and whether they work
      help      Print this message or the help of the given subcommand(s)

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
      aeir data check pairs.jsonl
      aeir train  --source pairs.jsonl --target-images photos --target-sentences lines.txt -o model
      aeir eval   --model model --data test.jsonl
      aeir index  --model model --images photos -o index
      aeir search --index index "a red car"
      aeir serve  --index index
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
    insta::assert_snapshot!(help("train"), @"
    Train a model on source pairs, adapted to unpaired target images and sentences

    Usage: aeir train [OPTIONS]

    Options:
          --source <PATH>
              Source pairs, in any format: JSON lines, CSV, a folder of images with text files, COCO,
              Karpathy's splits, SCAN's region features, WebDataset or Parquet; docs/data.md shows each.
              May be repeated; each is a domain of its own. With --model and `--method adapt` there may
              be none

              [env: AEIR_SOURCE=]

          --target-images <PATH>
              Target images: a folder, a list file with one path a line, features in `.npy`,
              `.safetensors` or `.tsv`, or the images of any data set; nothing of its sentences is taken

              [env: AEIR_TARGET_IMAGES=]

          --target-sentences <PATH>
              Target sentences: a text file with one a line, or the sentences of any data set; which
              belongs to which image need not be known

              [env: AEIR_TARGET_SENTENCES=]

          --labelled <PAIRS>
              A few pairs of the target that a person labelled, as `aeir label serve` writes them:
              learned from beside the source pairs. Those marked `test` are left out, for `eval
              --labelled`

              [env: AEIR_LABELLED=]

          --columns <ROLE=NAME,..>
              Columns of tables and Parquet files, where their names are not the usual ones, such as
              `image=FILE,caption=TITLE,split=SET`; `caption` may stand several times

              [env: AEIR_COLUMNS=]

          --image-root <DIR>
              Folder that image paths are relative to [default: that of the file, or one of the usual
              ones beside it]

              [env: AEIR_IMAGE_ROOT=]

          --method <METHOD>
              What to train [default: aeir]

              Possible values:
              - source-only: Source pairs alone, without adaptation
              - aeir:        Source pairs, and adaptation to the target (semantic and structure
                transfer)
              - adapt:       Standardisation, a memory of the source pairs, and matches mined between
                the target's sets
              - dann:        Adversarial adaptation by gradient reversal
              - adda:        A target encoder against a fixed source encoder
              - mmd:         Maximum mean discrepancy between the domains
              - coral:       Distance of the domains' covariances
              - cdan:        Adversarial adaptation on embeddings joined with their retrieval posterior
              - cca:         Linear canonical correlation of the source pairs, in closed form
              - dcca:        Canonical correlation of two small networks
              - vsepp:       Source pairs alone: cosine and the hardest negative (VSE++)
              - scan:        Source pairs alone: stacked cross attention
              - saf:         Source pairs alone: similarity attention filtration
              - sgr:         Source pairs alone: similarity graph reasoning
              - sgraf:       Source pairs alone: SAF and SGR, each with towers of its own, averaged

              [env: AEIR_METHOD=]

          --head <HEAD>
              How image and sentence are compared [default: cosine, or what the method stands for].
              Heads other than cosine look at grid cells or regions and at tokens or words; they re-rank
              what the cosine finds

              Possible values:
              - cosine:   Dot product of pooled vectors
              - saf:      Similarity attention filtration
              - sgr:      Similarity graph reasoning
              - sgraf:    Both of these, averaged
              - scan-t2i: Stacked cross attention: words attend to regions
              - scan-i2t: Stacked cross attention: regions attend to words

              [env: AEIR_HEAD=]

          --fidelity <FIDELITY>
              With `aeir`: the paper's procedure, or the released code's with all that is wrong in it
              [default: paper]

              Possible values:
              - paper:    As the paper describes it
              - released: As the released code computes it

              [env: AEIR_FIDELITY=]

          --standardise
              Shift and scale the features by each domain's own mean and spread; the target's come from
              its unpaired sets

              [env: AEIR_STANDARDISE=]

          --model <DIR|ID>
              Start from a CLIP or SigLIP, in place of two encoders that know nothing of each other: a
              folder, an id `org/name[@revision]` of a model on the hub, or the name of one in the
              cache. What is trained changes its space as it is; the learning rate is then 0.0001 unless
              another is given

          --image-encoder <DIR|ID>
              Frozen image encoder: a folder, an id `org/name[@revision]` of a model on the hub, or the
              name of one in `fixtures/backbones` or in the cache; not used with region features

              [env: AEIR_IMAGE_ENCODER=]
              [default: efficientnet-lite0]

          --text-encoder <DIR|ID>
              Frozen sentence encoder: a folder, an id `org/name[@revision]` of a model on the hub, or
              the name of one in `fixtures/backbones` or in the cache; or `words`: a vocabulary of the
              training sentences and a bidirectional GRU, both trained

              [env: AEIR_TEXT_ENCODER=]
              [default: static-minilm]

          --config <FILE>
              Settings in TOML; --set and flags win over its lines

              [env: AEIR_CONFIG=]

          --set <KEY=VALUE>
              One setting, such as optimizer.clip_norm=2; wins over the file, a flag wins over it. May
              be repeated; configs/demo.toml lists the keys

              [env: AEIR_SET=]

          --dry-run
              Print the resolved settings, the parameters by group, and an estimate of steps, time and
              memory; train and write nothing. Without --source the settings alone

              [env: AEIR_DRY_RUN=]

          --epochs <N>
              Passes over the source pairs, or the target sets where those are larger [default: 40]

              [env: AEIR_EPOCHS=]

          --batch-size <N>
              Source pairs a step [default: 128]

              [env: AEIR_BATCH_SIZE=]

          --accumulate <N>
              Batches whose gradients make one step [default: 1]

              [env: AEIR_ACCUMULATE=]

          --precision <PRECISION>
              In which precision the towers' products are computed [default: fp32]

              Possible values:
              - fp32: Single
              - bf16: bfloat16; norms, softmax, heads, losses and the optimiser stay single

              [env: AEIR_PRECISION=]

          --memory-budget <SIZE>
              Memory that the training may take, such as 8GiB: a batch that takes more is refused before
              the first step, with one that doesn't [default: unbounded]

              [env: AEIR_MEMORY_BUDGET=]

          --lr <RATE>
              Peak learning rate [default: 0.002]

              [env: AEIR_LR=]

          --source-loss <LOSS>
              Loss on the source pairs [default: info-nce with the cosine, else triplet-hardest]

              Possible values:
              - info-nce:        Symmetric InfoNCE with a learned temperature
              - triplet-hardest: Triplet ranking, hardest negative of the batch
              - triplet-all:     Triplet ranking, all negatives of the batch

              [env: AEIR_SOURCE_LOSS=]

          --semantic-weight <WEIGHT>
              With `aeir`: weight of the adversarial term; 0 leaves it out [default: 1]

              [env: AEIR_SEMANTIC_WEIGHT=]

          --structure-weight <WEIGHT>
              With `aeir`: weight of structure transfer; 0 leaves it out [default: 0.001]

              [env: AEIR_STRUCTURE_WEIGHT=]

          --adversary <HOW>
              How the encoders are set against the domain critics [default: alternating]

              Possible values:
              - alternating:       The critics step first, then the encoders
              - gradient-reversal: Both step at once, the gradient reversed between them
              - wasserstein:       As alternating, with critics of bounded slope (Wasserstein distance
                with gradient penalty)

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

    Images:
          --max-pixels <N>
              Skip images of more pixels than this: a decoded image takes 3 to 8 bytes a pixel of memory

              [env: AEIR_MAX_PIXELS=]
              [default: 50000000]

          --max-side <N>
              Skip images with a side of more pixels than this

              [env: AEIR_MAX_SIDE=]
              [default: 65535]

          --max-image-bytes <N>
              Skip image files of more bytes than this

              [env: AEIR_MAX_IMAGE_BYTES=]
              [default: 268435456]

          --workers <N>
              Threads in all, for decoding images and for our kernels [default: RAYON_NUM_THREADS, else
              all cores]

              [env: AEIR_WORKERS=]
    ");
}

#[test]
fn diagnose() {
    insta::assert_snapshot!(help("diagnose"), @"
    Say how far source and target are apart, whether the target's two sets fit, and what to do

    Usage: aeir diagnose [OPTIONS] --target-images <PATH> --target-sentences <PATH>

    Options:
          --source <PATH>            Source pairs, in any format that `train --source` takes; may be
                                     repeated. With --model there may be none: then nothing is said of
                                     the distance between domains [env: AEIR_SOURCE=]
          --target-images <PATH>     Target images: a folder, a list file with one path a line,
                                     features, or the images of any data set [env: AEIR_TARGET_IMAGES=]
          --target-sentences <PATH>  Target sentences: a text file with one a line, or the sentences of
                                     any data set [env: AEIR_TARGET_SENTENCES=]
          --columns <ROLE=NAME,..>   Columns of tables and Parquet files, where their names are not the
                                     usual ones, such as `image=FILE,caption=TITLE,split=SET`; `caption`
                                     may stand several times [env: AEIR_COLUMNS=]
          --image-root <DIR>         Folder that image paths are relative to [default: that of the file,
                                     or one of the usual ones beside it] [env: AEIR_IMAGE_ROOT=]
          --model <RUN>              Look at the space of this trained model, or of a CLIP or SigLIP as
                                     it was published [default: of small towers that are trained on the
                                     source for it]
          --image-encoder <DIR|ID>   Frozen image encoder, where no model is given: a folder, an id, or
                                     the name of one in `fixtures/backbones` or in the cache [default:
                                     efficientnet-lite0]
          --text-encoder <DIR|ID>    Frozen sentence encoder, where no model is given: a folder, an id,
                                     or the name of one in `fixtures/backbones` or in the cache
                                     [default: static-minilm]
          --sample <N>               Items of each set that are looked at, 20 or more: larger sets are
                                     sampled, always alike [env: AEIR_SAMPLE=] [default: 2000]
          --seed <N>                 Decides the samples and the shuffles [env: AEIR_SEED=] [default: 0]
      -o, --output <FILE>            Write a page with plots and the hub items: one HTML file that needs
                                     nothing else [env: AEIR_OUTPUT=]
          --json                     Print one JSON object [env: AEIR_JSON=]
          --device <DEVICE>          Where to compute: auto, cpu, cuda, cuda:N or metal [env:
                                     AEIR_DEVICE=] [default: auto]
      -q, --quiet                    No progress and no notes on stderr; warnings and errors stay [env:
                                     AEIR_QUIET=]
      -h, --help                     Print help

    Images:
          --max-pixels <N>       Skip images of more pixels than this: a decoded image takes 3 to 8
                                 bytes a pixel of memory [env: AEIR_MAX_PIXELS=] [default: 50000000]
          --max-side <N>         Skip images with a side of more pixels than this [env: AEIR_MAX_SIDE=]
                                 [default: 65535]
          --max-image-bytes <N>  Skip image files of more bytes than this [env: AEIR_MAX_IMAGE_BYTES=]
                                 [default: 268435456]
          --workers <N>          Threads in all, for decoding images and for our kernels [default:
                                 RAYON_NUM_THREADS, else all cores] [env: AEIR_WORKERS=]
    ");
}

#[test]
fn eval() {
    insta::assert_snapshot!(help("eval"), @"
    Score a model on test pairs, both ways

    Usage: aeir eval [OPTIONS] --model <RUN> <--data <PATH>|--labelled <PAIRS>>

    Options:
          --model <RUN>
              Folder of a trained model, or of a CLIP or SigLIP as it was published

              [env: AEIR_MODEL=]

          --data <PATH>
              Test pairs, in any format that `train --source` takes

              [env: AEIR_DATA=]

          --labelled <PAIRS>
              In place of --data: labelled pairs of the target, as `aeir label serve` writes them. Those
              marked `test` are queries against the whole target sets; each recall has a 95 % interval

              [env: AEIR_LABELLED=]

          --target-images <PATH>
              With --labelled: the images to find the right ones among, as `train --target-images` takes
              them [default: the labelled ones]

              [env: AEIR_TARGET_IMAGES=]

          --target-sentences <PATH>
              With --labelled: the sentences to find the right ones among [default: the labelled ones]

              [env: AEIR_TARGET_SENTENCES=]

          --columns <ROLE=NAME,..>
              Columns of tables and Parquet files, where their names are not the usual ones, such as
              `image=FILE,caption=TITLE,split=SET`; `caption` may stand several times

              [env: AEIR_COLUMNS=]

          --image-root <DIR>
              Folder that image paths are relative to [default: that of the file, or one of the usual
              ones beside it]

              [env: AEIR_IMAGE_ROOT=]

          --split <SPLIT>
              Score this split only [default: the items marked `test`, or all where none is]

              [env: AEIR_SPLIT=]
              [possible values: train, val, test]

          --protocol <PROTOCOL>
              What is scored against what

              Possible values:
              - full:         All images against all sentences
              - five-fold-1k: The mean of five folds of 1,000 images out of COCO's 5,000

              [env: AEIR_PROTOCOL=]
              [default: full]

          --rerank <N|all>
              Of a model with a cross-attentive head: re-rank this many of each query's first results
              with it, 0 for none, or `all` to score every pair [default: 100; all where the head alone
              was trained]

              [env: AEIR_RERANK=]

          --query-bank <PATH>
              Unpaired sentences of the target, none of them a test sentence: shows text to image after
              each hubness correction too

              [env: AEIR_QUERY_BANK=]

          --image-bank <PATH>
              Unpaired images of the target, none of them a test image: shows image to text after each
              hubness correction too

              [env: AEIR_IMAGE_BANK=]

          --beta <B>
              Inverse temperature of the inverted softmaxes and of Sinkhorn

              [env: AEIR_BETA=]
              [default: 20]

          --compare <RUN>
              Score another model on the same pairs, and test whether the two differ

          --replicates <N>
              Resamples of the test images behind intervals and p-values

              [env: AEIR_REPLICATES=]
              [default: 1000]

          --seed <N>
              Decides the resamples

              [env: AEIR_SEED=]
              [default: 0]

          --json
              Print one JSON object

              [env: AEIR_JSON=]

          --device <DEVICE>
              Where to compute: auto, cpu, cuda, cuda:N or metal

              [env: AEIR_DEVICE=]
              [default: auto]

      -q, --quiet
              No progress and no notes on stderr; warnings and errors stay

              [env: AEIR_QUIET=]

      -h, --help
              Print help (see a summary with '-h')

    Images:
          --max-pixels <N>
              Skip images of more pixels than this: a decoded image takes 3 to 8 bytes a pixel of memory

              [env: AEIR_MAX_PIXELS=]
              [default: 50000000]

          --max-side <N>
              Skip images with a side of more pixels than this

              [env: AEIR_MAX_SIDE=]
              [default: 65535]

          --max-image-bytes <N>
              Skip image files of more bytes than this

              [env: AEIR_MAX_IMAGE_BYTES=]
              [default: 268435456]

          --workers <N>
              Threads in all, for decoding images and for our kernels [default: RAYON_NUM_THREADS, else
              all cores]

              [env: AEIR_WORKERS=]
    ");
}

#[test]
fn index() {
    insta::assert_snapshot!(help("index"), @"
    Embed images with a model and store them for search

    Usage: aeir index [OPTIONS] --model <RUN> --images <PATH>
           aeir index <COMMAND>

    Commands:
      add      Add images, in the place of those of the same name
      remove   Delete items by name
      compact  Write an index anew without what was deleted, and build its graph
      info     Say what an index holds
      export   Write vectors, names and metadata as `.npy` and Parquet, for FAISS, pgvector, Qdrant and
               others
      upload   Put an index into a collection of a Milvus server, or bring the collection up to date
      help     Print this message or the help of the given subcommand(s)

    Options:
          --model <RUN>
              Folder of a trained model, or of a CLIP or SigLIP as it was published

              [env: AEIR_MODEL=]

          --images <PATH>
              Images: a folder, a list file with one path a line, features in `.npy`, `.safetensors` or
              `.tsv`, or the images of any data set, of whatever split

              [env: AEIR_IMAGES=]

          --columns <ROLE=NAME,..>
              Columns of tables and Parquet files, where their names are not the usual ones, such as
              `image=FILE,caption=TITLE,split=SET`; `caption` may stand several times

              [env: AEIR_COLUMNS=]

          --image-root <DIR>
              Folder that image paths are relative to [default: that of the file, or one of the usual
              ones beside it]

              [env: AEIR_IMAGE_ROOT=]

          --metadata <FILE>
              JSON lines with what is kept with images: `image` or `item` names one, relative to the
              file, all else can be filtered by

              [env: AEIR_METADATA=]

          --query-bank <PATH>
              Unpaired sentences of the target: what queries look like. Stored with the index as what
              confidence and the correction are worked out from

              [env: AEIR_QUERY_BANK=]

          --correction <HOW>
              Correct searches by sentence for hubs, worked out now so that a query costs no more;
              compare with `aeir eval --query-bank` first

              Possible values:
              - csls:                     Cross-domain similarity local scaling
              - inverted-softmax:         Inverted softmax over the bank
              - dynamic-inverted-softmax: Inverted softmax, for queries alone whose best item is the
                best of a bank sentence (QB-Norm)
              - sinkhorn:                 Optimal transport between the bank and the gallery

              [env: AEIR_CORRECTION=]

          --beta <B>
              Inverse temperature of the inverted softmaxes and of Sinkhorn

              [env: AEIR_BETA=]
              [default: 20]

          --storage <TYPE>
              How vectors are kept: `f16` halves them, `int8` searches a quarter and keeps `f16` beside
              it to order what was found

              [env: AEIR_STORAGE=]
              [default: f32]
              [possible values: f32, f16, int8]

          --approximate[=<WHEN>]
              Build a graph for approximate search, whose recall `aeir index info` and `aeir search
              --json` state; `auto` does from 200,000 images on

              Possible values:
              - auto: With many images
              - yes
              - no

              [env: AEIR_APPROXIMATE=]
              [default: auto]

      -o, --output <IDX>
              Folder for the index; an earlier index in it is replaced once the new one is whole. May be
              left out with --to

              [env: AEIR_OUTPUT=]

          --to <milvus://HOST:PORT/COLLECTION>
              Put the images into a collection of a Milvus server too, or alone; it is made if there is
              none. The same command goes on with an upload that was interrupted. `milvuss://` connects
              with TLS

              [env: AEIR_TO=]

          --milvus-index <KIND>
              With --to: which index the server has of the vectors [default: the one that is there, or
              flat]

              Possible values:
              - flat: Look at every vector
              - hnsw: Walk a graph of near neighbours
              - auto: What the server thinks best

              [env: AEIR_MILVUS_INDEX=]

          --overwrite
              With --to: drop a collection that is of another model or another kind, with all in it, and
              make it anew

              [env: AEIR_OVERWRITE=]

          --delete-others
              With --to: delete images of the collection that are not in this index

              [env: AEIR_DELETE_OTHERS=]

          --milvus-token <TOKEN>
              With a Milvus collection: `user:password` or an API key

              [env: AEIR_MILVUS_TOKEN]

          --milvus-timeout <SECONDS>
              With a Milvus collection: longest time for one request

              [env: AEIR_MILVUS_TIMEOUT=]
              [default: 60]

          --device <DEVICE>
              Where to compute: auto, cpu, cuda, cuda:N or metal

              [env: AEIR_DEVICE=]
              [default: auto]

      -q, --quiet
              No progress and no notes on stderr; warnings and errors stay

              [env: AEIR_QUIET=]

      -h, --help
              Print help (see a summary with '-h')

    Images:
          --max-pixels <N>
              Skip images of more pixels than this: a decoded image takes 3 to 8 bytes a pixel of memory

              [env: AEIR_MAX_PIXELS=]
              [default: 50000000]

          --max-side <N>
              Skip images with a side of more pixels than this

              [env: AEIR_MAX_SIDE=]
              [default: 65535]

          --max-image-bytes <N>
              Skip image files of more bytes than this

              [env: AEIR_MAX_IMAGE_BYTES=]
              [default: 268435456]

          --workers <N>
              Threads in all, for decoding images and for our kernels [default: RAYON_NUM_THREADS, else
              all cores]

              [env: AEIR_WORKERS=]

    Examples:
      aeir index --model model --images photos --output index
      aeir index --model model --images photos --storage int8 --metadata photos.jsonl -o index
      aeir index add     --index index --images new-photos
      aeir index remove  --index index /data/photos/7.jpg
      aeir index compact --index index
      aeir index info    --index index
      aeir index export  --index index --output exported
      aeir index upload  --index index --to milvus://localhost:19530/photos
    ");
}

#[cfg(feature = "serve")]
#[test]
fn serve() {
    insta::assert_snapshot!(help("serve"), @"
    Serve an index over HTTP, with a page to search it

    Usage: aeir serve [OPTIONS] --index <IDX>

    Options:
          --index <IDX>             Folder of an index; a new one that is committed there is taken over
                                    without a restart [env: AEIR_INDEX=]
          --api-key <KEY>           A key that requests have to send as `Authorization: Bearer KEY`;
                                    better given as AEIR_API_KEY or in a file, as others can see the
                                    flags of a process. The page, `/healthz` and `/openapi.json` stay
                                    open [env: AEIR_API_KEY]
          --api-key-file <FILE>     File that holds the key [env: AEIR_API_KEY_FILE=]
          --rerank <N|all>          Of a model with a cross-attentive head: re-rank this many of the
                                    first results with it, 0 for none, or `all` [default: 100; all where
                                    the head alone was trained] [env: AEIR_RERANK=]
          --reload-every <SECONDS>  How often to look for a new index, in seconds; 0 for never [env:
                                    AEIR_RELOAD_EVERY=] [default: 2]
          --device <DEVICE>         Where to compute: auto, cpu, cuda, cuda:N or metal [env:
                                    AEIR_DEVICE=] [default: auto]
      -q, --quiet                   No progress and no notes on stderr; warnings and errors stay [env:
                                    AEIR_QUIET=]
      -h, --help                    Print help

    Address:
          --host <ADDRESS>     Address to listen on. Others than this machine's own are open to
                               everybody who can reach them [env: AEIR_HOST=] [default: 127.0.0.1]
          --port <N>           Port to listen on; 0 for any that is free [env: AEIR_PORT=] [default:
                               8080]
          --allow-host <NAME>  Further names that clients reach this server by, such as that of a
                               reverse proxy. On an address of this machine alone, other names than its
                               own are refused. May be repeated [env: AEIR_ALLOW_HOST=]

    Limits:
          --max-body-bytes <N>          Largest body of a request, in bytes: 413 above it, before it is
                                        read [env: AEIR_MAX_BODY_BYTES=] [default: 16777216]
          --max-text-bytes <N>          Longest sentence, in bytes: 413 above it [env:
                                        AEIR_MAX_TEXT_BYTES=] [default: 8192]
          --max-pixels <N>              Largest image, in pixels: 413 above it, before it is decoded;
                                        images of the index that are larger have no thumbnail [env:
                                        AEIR_MAX_PIXELS=] [default: 50000000]
          --max-side <N>                Longest side of an image, in pixels [env: AEIR_MAX_SIDE=]
                                        [default: 65535]
          --max-results <N>             Most results of a query [env: AEIR_MAX_RESULTS=] [default: 1000]
          --max-requests <N>            Requests that are worked on or wait at once: 429 above it [env:
                                        AEIR_MAX_REQUESTS=] [default: 128]
          --queue-timeout <SECONDS>     Longest wait for the encoder, in seconds: 503 after it [env:
                                        AEIR_QUEUE_TIMEOUT=] [default: 5]
          --max-batch <N>               Queries that are embedded at once, at most [env:
                                        AEIR_MAX_BATCH=] [default: 32]
          --batch-window <SECONDS>      How long a batch waits for queries that are on their way, in
                                        seconds; one that is alone does not wait [env:
                                        AEIR_BATCH_WINDOW=] [default: 0.002]
          --head-timeout <SECONDS>      Longest wait for the head of a request, in seconds; the
                                        connection is closed after it [env: AEIR_HEAD_TIMEOUT=]
                                        [default: 10]
          --body-timeout <SECONDS>      Longest wait for the body of a request, in seconds: 408 after it
                                        [env: AEIR_BODY_TIMEOUT=] [default: 30]
          --shutdown-timeout <SECONDS>  Longest wait for requests under way when the server is asked to
                                        end, in seconds [env: AEIR_SHUTDOWN_TIMEOUT=] [default: 10]
          --thumbnail-bytes <N>         Memory for thumbnails, in bytes [env: AEIR_THUMBNAIL_BYTES=]
                                        [default: 67108864]
    ");
}

#[test]
fn search() {
    insta::assert_snapshot!(help("search"), @r#"
    Find images by a sentence or by an image

    Usage: aeir search [OPTIONS] --index <IDX> <SENTENCE|--image <FILE>>

    Arguments:
      [SENTENCE]
              What the images should show

    Options:
          --index <IDX>
              Folder of an index, or a Milvus collection, `milvus://HOST:PORT/COLLECTION`

              [env: AEIR_INDEX=]

          --model <RUN>
              With a Milvus collection: the trained model, or the index that the collection was made of

          --image <FILE>
              Look for images like this one; with a sentence, for what both have in common

          --minus <SENTENCE>
              What the images should not show. May be repeated

          --image-weight <W>
              How much the image counts beside the sentence, which counts 1

              [env: AEIR_IMAGE_WEIGHT=]
              [default: 1]

          --minus-weight <W>
              How much each --minus counts

              [env: AEIR_MINUS_WEIGHT=]
              [default: 0.5]

      -k <N>
              Number of results

              [env: AEIR_K=]
              [default: 10]

          --rerank <N|all>
              Of a model with a cross-attentive head: re-rank this many of the first results with it, 0
              for none, or `all` [default: 100; all where the head alone was trained]

              [env: AEIR_RERANK=]

          --min-confidence <SHARE>
              Answer "no good match" where a smaller share of the target's own sentences find a worse
              best match. At 0.05 about one in twenty sentences of the target's kind is turned away, and
              more of those of other kinds; needs an index with a query bank

              [env: AEIR_MIN_CONFIDENCE=]

          --calibration <PAIRS>
              Labelled pairs of indexed images: gives as many results as hold the right one in
              --coverage of the queries, `-k` at most. Of several captions of an image one is drawn

              [env: AEIR_CALIBRATION=]

          --coverage <SHARE>
              With --calibration: share of queries whose results are to hold the right image

              [env: AEIR_COVERAGE=]
              [default: 0.9]

          --plain
              Search without the index's hubness correction

              [env: AEIR_PLAIN=]

          --where <KEY=VALUE>
              Only images whose metadata have this value under this key. May be repeated: all have to
              hold

              [env: AEIR_WHERE=]
              [alias: --filter]

          --ids <FILE>
              Only images that this file names, one a line, as results name them

              [env: AEIR_IDS=]

          --exact
              Look at every image, even where the index has a graph for approximate search

              [env: AEIR_EXACT=]

          --duplicates <DUPLICATES>
              What becomes of near-identical images

              Possible values:
              - keep:     Each is a result of its own
              - collapse: The best of them is a result, the others are listed behind it

              [env: AEIR_DUPLICATES=]
              [default: keep]

          --duplicate-threshold <COSINE>
              With --duplicates collapse: images of at least this cosine are the same one

              [env: AEIR_DUPLICATE_THRESHOLD=]
              [default: 0.95]

          --json
              Print one JSON object

              [env: AEIR_JSON=]

          --milvus-token <TOKEN>
              With a Milvus collection: `user:password` or an API key

              [env: AEIR_MILVUS_TOKEN]

          --milvus-timeout <SECONDS>
              With a Milvus collection: longest time for one request

              [env: AEIR_MILVUS_TIMEOUT=]
              [default: 60]

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
fn bench_train() {
    insta::assert_snapshot!(help("bench train"), @"
    Training steps and SAF scoring of the published sizes, on items drawn at random

    Usage: aeir bench train [OPTIONS]

    Options:
          --only <WORK>
              Time this alone [default: all]

              Possible values:
              - saf-step:    A whole step of `aeir --fidelity released --head saf`: 56 + 56 items
              - saf-scoring: All pairs of 200 images and 1,000 sentences
              - towers:      A step of two linear towers on pooled features: 128 pairs
              - words:       A step of a linear layer on regions and a bidirectional GRU on words: 32
                pairs

              [env: AEIR_ONLY=]

          --repeats <N>
              Steps that are timed; their median counts

              [env: AEIR_REPEATS=]
              [default: 5]

          --quick
              Tiny sizes, to see that everything runs

              [env: AEIR_QUICK=]

          --batch-size <N>
              Pairs of a SAF step, and as many target images and sentences [default: 56]

              [env: AEIR_BATCH_SIZE=]

          --json
              Print one JSON object

              [env: AEIR_JSON=]

          --device <DEVICE>
              Where to compute: auto, cpu, cuda, cuda:N or metal

              [env: AEIR_DEVICE=]
              [default: auto]

      -q, --quiet
              No progress and no notes on stderr; warnings and errors stay

              [env: AEIR_QUIET=]

      -h, --help
              Print help (see a summary with '-h')
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

#[test]
fn convert() {
    insta::assert_snapshot!(help("convert"), @r"
    Turn a PyTorch checkpoint into safetensors, without running what is pickled in it

    Usage: aeir convert [OPTIONS] <CHECKPOINT> [OUTPUT]

    Arguments:
      <CHECKPOINT>  A `.pth`, `.pth.tar` or `.pt` file that `torch.save` wrote, of any version
      [OUTPUT]      The safetensors file to write; tensors keep their names and types

    Options:
          --key <NAME>  Take the tensors under this name alone, such as `model` or `model.0` [default:
                        the one value that holds tensors] [env: AEIR_KEY=]
          --list        List what the checkpoint holds and write nothing [env: AEIR_LIST=]
          --overwrite   Replace the output file [env: AEIR_OVERWRITE=]
          --json        Print one JSON object [env: AEIR_JSON=]
      -q, --quiet       No progress and no notes on stderr; warnings and errors stay [env: AEIR_QUIET=]
      -h, --help        Print help
    ");
}

#[test]
fn data() {
    insta::assert_snapshot!(help("data"), @r"
    Check, split, convert and unpair data sets

    Usage: aeir data [OPTIONS] <COMMAND>

    Commands:
      check    Look at every image and sentence: counts, sizes, broken files, duplicates, leaks between
               training and test
      split    Draw training, validation and test splits by image
      convert  Write a data set of any format as JSON lines with images, or as WebDataset shards
      unpair   Make unpaired images and sentences of a parallel data set, the alignment apart
      help     Print this message or the help of the given subcommand(s)

    Options:
      -q, --quiet  No progress and no notes on stderr; warnings and errors stay [env: AEIR_QUIET=]
      -h, --help   Print help
    ");
}

#[test]
fn data_check() {
    insta::assert_snapshot!(help("data check"), @"
    Look at every image and sentence: counts, sizes, broken files, duplicates, leaks between training
    and test

    Usage: aeir data check [OPTIONS] <PATH>...

    Arguments:
      <PATH>...  Data sets, in any format that `train --source` takes

    Options:
          --columns <ROLE=NAME,..>  Columns of tables and Parquet files, where their names are not the
                                    usual ones, such as `image=FILE,caption=TITLE,split=SET`; `caption`
                                    may stand several times [env: AEIR_COLUMNS=]
          --image-root <DIR>        Folder that image paths are relative to [default: that of the file,
                                    or one of the usual ones beside it] [env: AEIR_IMAGE_ROOT=]
          --json                    Print one JSON object [env: AEIR_JSON=]
      -q, --quiet                   No progress and no notes on stderr; warnings and errors stay [env:
                                    AEIR_QUIET=]
      -h, --help                    Print help

    Images:
          --max-pixels <N>       Skip images of more pixels than this: a decoded image takes 3 to 8
                                 bytes a pixel of memory [env: AEIR_MAX_PIXELS=] [default: 50000000]
          --max-side <N>         Skip images with a side of more pixels than this [env: AEIR_MAX_SIDE=]
                                 [default: 65535]
          --max-image-bytes <N>  Skip image files of more bytes than this [env: AEIR_MAX_IMAGE_BYTES=]
                                 [default: 268435456]
          --workers <N>          Threads in all, for decoding images and for our kernels [default:
                                 RAYON_NUM_THREADS, else all cores] [env: AEIR_WORKERS=]

    Examples:
      aeir data check photos/captions.jsonl
      aeir data check train.csv test.csv
      aeir data check flickr30k/ --json | jq .leaked_images.count
    ");
}

#[test]
fn data_convert() {
    insta::assert_snapshot!(help("data convert"), @r#"
    Write a data set of any format as JSON lines with images, or as WebDataset shards

    Usage: aeir data convert [OPTIONS] --output <DIR> <PATH>

    Arguments:
      <PATH>
              A data set, in any format that `train --source` takes

    Options:
          --to <TO>
              What to write

              Possible values:
              - json-lines: `captions.jsonl` with `images/`
              - webdataset: `SPLIT-000000.tar`

              [env: AEIR_TO=]
              [default: json-lines]

          --per-shard <N>
              With `webdataset`: items an archive

              [env: AEIR_PER_SHARD=]
              [default: 1000]

      -o, --output <DIR>
              Folder to write into: new or empty

              [env: AEIR_OUTPUT=]

          --json
              Print one JSON object

              [env: AEIR_JSON=]

          --columns <ROLE=NAME,..>
              Columns of tables and Parquet files, where their names are not the usual ones, such as
              `image=FILE,caption=TITLE,split=SET`; `caption` may stand several times

              [env: AEIR_COLUMNS=]

          --image-root <DIR>
              Folder that image paths are relative to [default: that of the file, or one of the usual
              ones beside it]

              [env: AEIR_IMAGE_ROOT=]

      -q, --quiet
              No progress and no notes on stderr; warnings and errors stay

              [env: AEIR_QUIET=]

      -h, --help
              Print help (see a summary with '-h')

    Images:
          --max-pixels <N>
              Skip images of more pixels than this: a decoded image takes 3 to 8 bytes a pixel of memory

              [env: AEIR_MAX_PIXELS=]
              [default: 50000000]

          --max-side <N>
              Skip images with a side of more pixels than this

              [env: AEIR_MAX_SIDE=]
              [default: 65535]

          --max-image-bytes <N>
              Skip image files of more bytes than this

              [env: AEIR_MAX_IMAGE_BYTES=]
              [default: 268435456]

          --workers <N>
              Threads in all, for decoding images and for our kernels [default: RAYON_NUM_THREADS, else
              all cores]

              [env: AEIR_WORKERS=]

    Examples:
      aeir data convert "shards/{000..012}.tar" --output plain
      aeir data convert dataset_flickr30k.json --image-root flickr30k-images --to webdataset --output
      shards
    "#);
}

#[test]
fn bench_encode() {
    insta::assert_snapshot!(help("bench encode"), @r"
    Images and sentences a second through frozen encoders, on items that are made up

    Usage: aeir bench encode [OPTIONS] <--image-encoder <DIR|ID>|--text-encoder <DIR|ID>>

    Options:
          --image-encoder <DIR|ID>  Image encoder: a folder, or the name of one in `fixtures/backbones`
                                    or in the cache [env: AEIR_IMAGE_ENCODER=]
          --text-encoder <DIR|ID>   Sentence encoder: a folder, or the name of one in
                                    `fixtures/backbones` or in the cache [env: AEIR_TEXT_ENCODER=]
          --batch-size <N>          Items of a batch [env: AEIR_BATCH_SIZE=] [default: 32]
          --tokens <N>              Tokens of a sentence, special tokens included; words where the
                                    encoder is a table [env: AEIR_TOKENS=] [default: 16]
          --threads <N>             Threads [default: all cores] [env: AEIR_THREADS=]
          --fine-tune               Time a step of fine-tuning as well: all parameters of the sentence
                                    encoder, forward and backward [env: AEIR_FINE_TUNE=]
          --json                    Print one JSON object [env: AEIR_JSON=]
          --device <DEVICE>         Where to compute: auto, cpu, cuda, cuda:N or metal [env:
                                    AEIR_DEVICE=] [default: auto]
      -q, --quiet                   No progress and no notes on stderr; warnings and errors stay [env:
                                    AEIR_QUIET=]
      -h, --help                    Print help
    ");
}

#[test]
fn report() {
    insta::assert_snapshot!(help("report"), @"
    Show a run, or several side by side, as a page: curves, settings, recall, warnings

    Usage: aeir report [OPTIONS] <RUN>...

    Arguments:
      <RUN>...  Folders of runs, finished or not; several are set side by side

    Options:
      -o, --output <FILE>  The page to write [default: report.html in the run; of several runs in the
                           working folder] [env: AEIR_OUTPUT=]
          --json           Print one JSON object with all figures; a page is then written with --output
                           alone [env: AEIR_JSON=]
      -q, --quiet          No progress and no notes on stderr; warnings and errors stay [env:
                           AEIR_QUIET=]
      -h, --help           Print help

    Examples:
      aeir report runs/one
      aeir report runs/one runs/two runs/three --output compared.html
    ");
}

#[test]
fn sweep() {
    insta::assert_snapshot!(help("sweep"), @r#"
    Train every combination of listed settings and seeds, one after another, and set the results side by
    side

    Usage: aeir sweep [OPTIONS] <SWEEP.toml>

    Arguments:
      <SWEEP.toml>  What to train, in TOML

    Options:
      -o, --output <DIR>  Folder for all runs and the table; finished runs in it are kept, an
                          interrupted one goes on [default: `output` of the file, else runs/ and the
                          file's name] [env: AEIR_OUTPUT=]
          --dry-run       Check everything, list the runs and train nothing [env: AEIR_DRY_RUN=]
          --json          Print the results as one JSON object [env: AEIR_JSON=]
      -q, --quiet         No progress and no notes on stderr; warnings and errors stay [env:
                          AEIR_QUIET=]
      -h, --help          Print help

    A sweep's file:
      version = 1
      seeds = [1, 2, 3]
      config = "configs/demo.toml"       # what is not varied; may be left out

      [values]                           # every combination is trained
      method = ["source-only", "aeir"]
      optimizer.learning_rate = [0.001, 0.002]

      [train]                            # flags of `aeir train`
      source = "pairs.jsonl"
      target-images = "photos"
      target-sentences = "lines.txt"

      [eval]                             # flags of `aeir eval`; without test pairs leave it out
      data = "test.jsonl"
    "#);
}

#[test]
fn push() {
    insta::assert_snapshot!(help("push"), @"
    Put a trained model with its card onto the Hugging Face hub

    Usage: aeir push [OPTIONS] <RUN> <OWNER/NAME>

    Arguments:
      <RUN>         Folder of a trained model
      <OWNER/NAME>  Where to put it: `owner/name` on the hub, made where it is missing; HF_ENDPOINT
                    names another hub. The token is that of HF_TOKEN, or the one that Hugging Face's own
                    tools have stored

    Options:
          --revision <BRANCH>  Branch to commit to, made where it is missing [default: main] [env:
                               AEIR_REVISION=]
          --private            Make the repository private where it is made; one that is public already
                               is refused [env: AEIR_PRIVATE=]
          --message <TEXT>     First line of the commit [env: AEIR_MESSAGE=]
          --dry-run            List the files and send nothing [env: AEIR_DRY_RUN=]
          --json               Print one JSON object [env: AEIR_JSON=]
      -q, --quiet              No progress and no notes on stderr; warnings and errors stay [env:
                               AEIR_QUIET=]
      -h, --help               Print help

    Examples:
      aeir push runs/one my-name/my-model --dry-run
      HF_TOKEN=hf_... aeir push runs/one my-name/my-model --private
    ");
}

#[test]
fn label_plan() {
    insta::assert_snapshot!(help("label plan"), @"
    Choose which target images to label: those worth most to learn from, and a random sample to measure
    with

    Usage: aeir label plan [OPTIONS] --model <RUN> --target-images <PATH> --target-sentences <PATH> --output <FILE>

    Options:
          --model <RUN>              Folder of a trained model: it finds the candidates, and is asked
                                     where it is undecided [env: AEIR_MODEL=]
          --target-images <PATH>     Target images, as `train --target-images` takes them [env:
                                     AEIR_TARGET_IMAGES=]
          --target-sentences <PATH>  Target sentences, as `train --target-sentences` takes them [env:
                                     AEIR_TARGET_SENTENCES=]
          --columns <ROLE=NAME,..>   Columns of tables and Parquet files, where their names are not the
                                     usual ones, such as `image=FILE,caption=TITLE,split=SET`; `caption`
                                     may stand several times [env: AEIR_COLUMNS=]
          --image-root <DIR>         Folder that image paths are relative to [default: that of the file,
                                     or one of the usual ones beside it] [env: AEIR_IMAGE_ROOT=]
          --budget <N>               Images to label, both parts together [env: AEIR_BUDGET=] [default:
                                     100]
          --measure-share <SHARE>    Share of them drawn at random, to measure with and not to learn
                                     from: 0 for none, 1 for all [env: AEIR_MEASURE_SHARE=] [default:
                                     0.3]
          --candidates <N>           Sentences offered for each image, at most 9 [env: AEIR_CANDIDATES=]
                                     [default: 9]
          --seed <N>                 Decides which images are drawn to measure with [env: AEIR_SEED=]
                                     [default: 0]
      -o, --output <FILE>            File for the plan, one JSON object a line: image, part (`learn` or
                                     `measure`), uncertainty (0 sure, 1 undecided) and candidates, each
                                     a sentence with its score [env: AEIR_OUTPUT=]
          --json                     Print one JSON object [env: AEIR_JSON=]
          --device <DEVICE>          Where to compute: auto, cpu, cuda, cuda:N or metal [env:
                                     AEIR_DEVICE=] [default: auto]
      -q, --quiet                    No progress and no notes on stderr; warnings and errors stay [env:
                                     AEIR_QUIET=]
      -h, --help                     Print help

    Images:
          --max-pixels <N>       Skip images of more pixels than this: a decoded image takes 3 to 8
                                 bytes a pixel of memory [env: AEIR_MAX_PIXELS=] [default: 50000000]
          --max-side <N>         Skip images with a side of more pixels than this [env: AEIR_MAX_SIDE=]
                                 [default: 65535]
          --max-image-bytes <N>  Skip image files of more bytes than this [env: AEIR_MAX_IMAGE_BYTES=]
                                 [default: 268435456]
          --workers <N>          Threads in all, for decoding images and for our kernels [default:
                                 RAYON_NUM_THREADS, else all cores] [env: AEIR_WORKERS=]
    ");
}

#[test]
fn aeir_index_add_and_export() {
    insta::assert_snapshot!(help("index add"), @"
    Add images, in the place of those of the same name

    Usage: aeir index add [OPTIONS] --index <IDX> --images <PATH>

    Options:
          --index <IDX>             Folder of an index [env: AEIR_INDEX=]
          --images <PATH>           Images, as `aeir index --images` takes them; they are embedded by
                                    the model in the index [env: AEIR_IMAGES=]
          --columns <ROLE=NAME,..>  Columns of tables and Parquet files, where their names are not the
                                    usual ones, such as `image=FILE,caption=TITLE,split=SET`; `caption`
                                    may stand several times [env: AEIR_COLUMNS=]
          --image-root <DIR>        Folder that image paths are relative to [default: that of the file,
                                    or one of the usual ones beside it] [env: AEIR_IMAGE_ROOT=]
          --metadata <FILE>         JSON lines with what is kept with images: `image` or `item` names
                                    one, relative to the file, all else can be filtered by [env:
                                    AEIR_METADATA=]
          --device <DEVICE>         Where to compute: auto, cpu, cuda, cuda:N or metal [env:
                                    AEIR_DEVICE=] [default: auto]
      -q, --quiet                   No progress and no notes on stderr; warnings and errors stay [env:
                                    AEIR_QUIET=]
      -h, --help                    Print help

    Images:
          --max-pixels <N>       Skip images of more pixels than this: a decoded image takes 3 to 8
                                 bytes a pixel of memory [env: AEIR_MAX_PIXELS=] [default: 50000000]
          --max-side <N>         Skip images with a side of more pixels than this [env: AEIR_MAX_SIDE=]
                                 [default: 65535]
          --max-image-bytes <N>  Skip image files of more bytes than this [env: AEIR_MAX_IMAGE_BYTES=]
                                 [default: 268435456]
          --workers <N>          Threads in all, for decoding images and for our kernels [default:
                                 RAYON_NUM_THREADS, else all cores] [env: AEIR_WORKERS=]
    ");
    insta::assert_snapshot!(help("index remove"), @"
    Delete items by name

    Usage: aeir index remove [OPTIONS] --index <IDX> <ID|--ids <FILE>>

    Arguments:
      [ID]...  Items, as `aeir search` names them

    Options:
          --index <IDX>  Folder of an index [env: AEIR_INDEX=]
          --ids <FILE>   File with one item a line [env: AEIR_IDS=]
      -q, --quiet        No progress and no notes on stderr; warnings and errors stay [env: AEIR_QUIET=]
      -h, --help         Print help
    ");
    insta::assert_snapshot!(help("index compact"), @"
    Write an index anew without what was deleted, and build its graph

    Usage: aeir index compact [OPTIONS] --index <IDX>

    Options:
          --index <IDX>
              Folder of an index

              [env: AEIR_INDEX=]

          --approximate[=<WHEN>]
              Build a graph for approximate search, whose recall `aeir index info` and `aeir search
              --json` state; `auto` does from 200,000 images on

              Possible values:
              - auto: With many images
              - yes
              - no

              [env: AEIR_APPROXIMATE=]
              [default: auto]

      -q, --quiet
              No progress and no notes on stderr; warnings and errors stay

              [env: AEIR_QUIET=]

      -h, --help
              Print help (see a summary with '-h')
    ");
    insta::assert_snapshot!(help("index info"), @"
    Say what an index holds

    Usage: aeir index info [OPTIONS] --index <IDX>

    Options:
          --index <IDX>  Folder of an index [env: AEIR_INDEX=]
          --json         Print one JSON object [env: AEIR_JSON=]
      -q, --quiet        No progress and no notes on stderr; warnings and errors stay [env: AEIR_QUIET=]
      -h, --help         Print help
    ");
    insta::assert_snapshot!(help("index export"), @"
    Write vectors, names and metadata as `.npy` and Parquet, for FAISS, pgvector, Qdrant and others

    Usage: aeir index export [OPTIONS] --index <IDX> --output <DIR>

    Options:
          --index <IDX>            Folder of an index [env: AEIR_INDEX=]
      -o, --output <DIR>           New or empty folder for `embeddings.npy` and `items.parquet`, in the
                                   same order [env: AEIR_OUTPUT=]
          --precision <PRECISION>  How a value is stored [env: AEIR_PRECISION=] [default: f32] [possible
                                   values: f32, f16]
      -q, --quiet                  No progress and no notes on stderr; warnings and errors stay [env:
                                   AEIR_QUIET=]
      -h, --help                   Print help
    ");
}

#[test]
#[cfg(feature = "serve")]
fn label_serve() {
    insta::assert_snapshot!(help("label serve"), @"
    Show a plan on a local page, and write what is clicked as pairs

    Usage: aeir label serve [OPTIONS] --plan <FILE> --output <FILE>

    Options:
          --plan <FILE>              A plan of `aeir label plan` [env: AEIR_PLAN=]
      -o, --output <FILE>            File for the pairs, whole after every answer; one that is there
                                     already is gone on with [env: AEIR_OUTPUT=]
          --target-sentences <PATH>  All target sentences: adds a search among them, for images whose
                                     sentence is not among the candidates [env: AEIR_TARGET_SENTENCES=]
          --columns <ROLE=NAME,..>   Columns of tables and Parquet files, where their names are not the
                                     usual ones, such as `image=FILE,caption=TITLE,split=SET`; `caption`
                                     may stand several times [env: AEIR_COLUMNS=]
          --image-root <DIR>         Folder that image paths are relative to [default: that of the file,
                                     or one of the usual ones beside it] [env: AEIR_IMAGE_ROOT=]
          --port <N>                 Port on 127.0.0.1; 0 takes one that is free [env: AEIR_PORT=]
                                     [default: 8322]
      -q, --quiet                    No progress and no notes on stderr; warnings and errors stay [env:
                                     AEIR_QUIET=]
      -h, --help                     Print help
    ");
}

#[test]
fn bench_search() {
    insta::assert_snapshot!(help("bench search"), @"
    Exact and approximate search, on vectors that are made up

    Usage: aeir bench search [OPTIONS]

    Options:
          --items <N>
              Vectors to search in; they are made up, in clusters

              [env: AEIR_ITEMS=]
              [default: 100000]

          --dimension <N>
              Numbers of a vector

              [env: AEIR_DIMENSION=]
              [default: 512]

          --queries <N>
              Queries, asked all at once

              [env: AEIR_QUERIES=]
              [default: 1000]

      -k <N>
              Results wanted for each

              [env: AEIR_K=]
              [default: 10]

          --storage <TYPE,..>
              How vectors are kept; several are timed one after the other

              [env: AEIR_STORAGE=]
              [default: f32,f16,int8]
              [possible values: f32, f16, int8]

          --approximate[=<WHEN>]
              Build a graph for approximate search, whose recall `aeir index info` and `aeir search
              --json` state; `auto` does from 200,000 images on

              Possible values:
              - auto: With many images
              - yes
              - no

              [env: AEIR_APPROXIMATE=]
              [default: auto]

          --repeats <N>
              How often everything is timed; the median counts

              [env: AEIR_REPEATS=]
              [default: 3]

          --device <DEVICE>
              Where to compute: auto, cpu, cuda, cuda:N or metal

              [env: AEIR_DEVICE=]
              [default: auto]

          --score-memory <SIZE>
              Memory for scores on a card, at most; at least 16MiB

              [env: AEIR_SCORE_MEMORY=]
              [default: 1GiB]

          --threads <N>
              Threads [default: all cores]

              [env: AEIR_THREADS=]

          --vectors <DIR>
              Write the vectors into this folder too, as `items.npy` and `queries.npy`, for other
              software

              [env: AEIR_VECTORS=]

          --json
              Print one JSON object

              [env: AEIR_JSON=]

      -q, --quiet
              No progress and no notes on stderr; warnings and errors stay

              [env: AEIR_QUIET=]

      -h, --help
              Print help (see a summary with '-h')
    ");
}

#[cfg(feature = "serve")]
#[test]
fn bench_serve() {
    insta::assert_snapshot!(help("bench serve"), @"
    Searches a second that a running `aeir serve` answers, and how long each takes

    Usage: aeir bench serve [OPTIONS] --sentences <FILE>

    Options:
          --url <URL>          Address of the server, as it prints it [env: AEIR_URL=] [default:
                               http://127.0.0.1:8080]
          --sentences <FILE>   What is asked: a text file, one sentence a line [env: AEIR_SENTENCES=]
          --clients <N,..>     Numbers of clients that ask at once, one after the other; each waits for
                               its answer and asks again [env: AEIR_CLIENTS=] [default: 1,8,64]
          --seconds <SECONDS>  How long each number of clients asks, in seconds [env: AEIR_SECONDS=]
                               [default: 10]
      -k <N>                   Number of results [env: AEIR_K=] [default: 10]
          --json               Print one JSON object [env: AEIR_JSON=]
      -q, --quiet              No progress and no notes on stderr; warnings and errors stay [env:
                               AEIR_QUIET=]
      -h, --help               Print help
    ");
}

#[test]
fn selftest() {
    insta::assert_snapshot!(help("selftest"), @"
    Check that a device computes what the CPU computes: every operation, head, loss, encoder and method,
    with gradients

    Each check is compared with the CPU's fused operations in f32. With `--device cpu` the CPU takes the
    operations that other devices take, and refuses the layouts that GPUs refuse. Everything is in the
    program: it needs no other file.

    Usage: aeir selftest [OPTIONS]

    Options:
          --device <DEVICE>
              Where to compute: auto, cpu, cuda, cuda:N or metal

              [env: AEIR_DEVICE=]
              [default: auto]

          --dtype <TYPE,..>
              Types to compute in

              Possible values:
              - f32:  Single precision
              - bf16: bfloat16

              [env: AEIR_DTYPE=]
              [default: f32,bf16]

          --only <NAME>...
              Do these checks alone: names, or parts of names; --list prints them. May be repeated

              [env: AEIR_ONLY=]

          --list
              Print the names of all checks, and do none

              [env: AEIR_LIST=]

          --json
              Print one JSON object

              [env: AEIR_JSON=]

      -q, --quiet
              No progress and no notes on stderr; warnings and errors stay

              [env: AEIR_QUIET=]

      -h, --help
              Print help (see a summary with '-h')
    ");
}

#[test]
fn doctor() {
    insta::assert_snapshot!(help("doctor"), @"
    Look at this machine: devices, drivers, processor, memory, cache, and whether they work

    Usage: aeir doctor [OPTIONS]

    Options:
          --json   Print one JSON object [env: AEIR_JSON=]
      -q, --quiet  No progress and no notes on stderr; warnings and errors stay [env: AEIR_QUIET=]
      -h, --help   Print help
    ");
}
