//! Every command and flag. Each flag can also be given as an environment variable, `AEIR_` and its name.

pub(crate) mod correction;
pub(crate) mod data;
pub(crate) mod diagnose;
pub(crate) mod index;
pub(crate) mod label;
pub(crate) mod milvus;
pub(crate) mod pairs;
pub(crate) mod runs;
pub(crate) mod search_bench;
pub(crate) mod selftest;

use std::path::PathBuf;

use aeir_data::{Columns, ReadOptions, Split};
use aeir_encoders::{Head, Precision};
use aeir_train::budget::Bytes;
use aeir_train::config::{Adversary, Fidelity, SourceLossKind, Standardise};
use aeir_train::{MethodName, TrainConfig};
use clap::builder::FalseyValueParser;
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::age::Age;
use crate::limits::LoadingFlags;
use crate::search_engine::{DEFAULT_THRESHOLD, Weights};
#[cfg(feature = "serve")]
use crate::serve::{door::DoorFlags, limits::LimitFlags};
use crate::shard::Shard;

/// What a newcomer types, in this order.
const WORKFLOW: &str = "\
See it work:
  aeir demo

On your own data:
  aeir data check pairs.jsonl
  aeir train  --source pairs.jsonl --target-images photos --target-sentences lines.txt -o model
  aeir eval   --model model --data test.jsonl
  aeir index  --model model --images photos -o index
  aeir search --index index \"a red car\"
  aeir serve  --index index";

/// Image-sentence retrieval for data without pairs.
///
/// Trains on a public domain whose images have sentences, adapts to your domain, where nobody has written down which
/// sentence belongs to which image, and finds images by sentence and by image.
#[derive(Parser)]
#[command(name = "aeir", bin_name = "aeir", version, max_term_width = 100, after_help = WORKFLOW)]
pub(crate) struct Flags {
    #[command(subcommand)]
    pub(crate) command: Command,
    /// No progress and no notes on stderr; warnings and errors stay
    #[arg(long, short, global = true, display_order = 900, value_parser = FalseyValueParser::new(), env = "AEIR_QUIET")]
    pub(crate) quiet: bool,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Train, adapt, score and search on the data sets in `fixtures/`, and write a report
    Demo(DemoFlags),
    /// Train a model on source pairs, adapted to unpaired target images and sentences
    Train(TrainFlags),
    /// Say how far source and target are apart, whether the target's two sets fit, and what to do
    Diagnose(diagnose::DiagnoseFlags),
    /// Score a model on test pairs, both ways
    Eval(EvalFlags),
    /// Embed images with a model and store them for search
    Index(index::IndexFlags),
    /// Find images by a sentence or by an image
    Search(SearchFlags),
    /// Serve an index over HTTP, with a page to search it
    #[cfg(feature = "serve")]
    Serve(ServeFlags),
    /// Train every combination of listed settings and seeds, one after another, and set the results side by side
    Sweep(runs::SweepFlags),
    /// Show a run, or several side by side, as a page: curves, settings, recall, warnings
    Report(runs::ReportFlags),
    /// Put a trained model with its card onto the Hugging Face hub
    Push(runs::PushFlags),
    /// Turn a PyTorch checkpoint into safetensors, without running what is pickled in it
    Convert(ConvertFlags),
    /// Check, split, convert and unpair data sets
    Data(data::DataFlags),
    /// Match unpaired images and sentences, to look through what a model takes for pairs
    Pairs(pairs::PairsFlags),
    /// Label a few target pairs where it helps most: plan which, and click them on a local page
    Label(label::LabelFlags),
    /// Embed a data set into `.npy`, safetensors or Parquet files, in parts on many machines if it is large
    Embed(EmbedFlags),
    /// Show and remove cached features of frozen encoders
    Cache(CacheFlags),
    /// Time our work on this machine
    Bench(BenchFlags),
    /// Check that a device computes what the CPU computes: every operation, head, loss, encoder and method, with gradients
    ///
    /// Each check is compared with the CPU's fused operations in f32. With `--device cpu` the CPU takes the operations that other
    /// devices take, and refuses the layouts that GPUs refuse. Everything is in the program: it needs no other file.
    Selftest(selftest::SelftestFlags),
    /// Look at this machine: devices, drivers, processor, memory, cache, and whether they work
    Doctor(selftest::DoctorFlags),
    /// Print a script that completes commands and flags in a shell
    #[command(hide = true)]
    Completions(CompletionsFlags),
    /// Write manual pages
    #[command(hide = true)]
    Man(ManFlags),
}

impl Command {
    /// What `--workers` says, of the commands that have it.
    pub(crate) fn workers(&self) -> Option<usize> {
        match self {
            Self::Train(flags) => flags.loading.workers,
            Self::Diagnose(flags) => flags.loading.workers,
            Self::Eval(flags) => flags.loading.workers,
            Self::Index(flags) => flags.workers(),
            Self::Embed(flags) => flags.loading.workers,
            Self::Data(flags) => flags.workers(),
            Self::Pairs(pairs::PairsFlags { command: pairs::PairsCommand::Export(flags) }) => {
                flags.loading.workers
            }
            Self::Label(label::LabelFlags { command: label::LabelCommand::Plan(flags) }) => {
                flags.loading.workers
            }
            _ => None,
        }
    }

    /// Whether it has `--memory-budget`.
    pub(crate) fn has_budget(&self) -> bool {
        matches!(self, Self::Train(_))
    }
}

#[derive(Args)]
pub(crate) struct CompletionsFlags {
    /// The shell
    pub(crate) shell: clap_complete::Shell,
}

#[derive(Args)]
pub(crate) struct ManFlags {
    /// Folder for the pages; it has to be there
    #[arg(value_name = "DIR")]
    pub(crate) output: PathBuf,
}

#[derive(Args)]
pub(crate) struct DemoFlags {
    /// Folder with `datasets/` and `backbones/`
    #[arg(long, value_name = "DIR", default_value = "fixtures", env = "AEIR_FIXTURES")]
    pub(crate) fixtures: PathBuf,
    /// Folder for models, index and report; an earlier demo in it is replaced
    #[arg(long, short, value_name = "DIR", default_value = "runs/demo", env = "AEIR_OUTPUT")]
    pub(crate) output: PathBuf,
    /// Seeds for each row of the table
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=100), env = "AEIR_SEEDS")]
    pub(crate) seeds: u64,
    /// Settings in TOML, for all rows; `configs/demo.toml` holds the defaults
    #[arg(long, value_name = "FILE", env = "AEIR_CONFIG")]
    pub(crate) config: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) device: DeviceFlag,
}

/// Encoders that are used where none is named.
pub(crate) const DEFAULT_IMAGE_ENCODER: &str = "efficientnet-lite0";
pub(crate) const DEFAULT_TEXT_ENCODER: &str = "static-minilm";

#[derive(Args)]
pub(crate) struct TrainFlags {
    /// Source pairs, in any format: JSON lines, CSV, a folder of images with text files, COCO, Karpathy's splits, SCAN's
    /// region features, WebDataset or Parquet; docs/data.md shows each. May be repeated; each is a domain of its own. With
    /// --model and `--method adapt` there may be none
    #[arg(long, required_unless_present_any = ["dry_run", "model"], value_name = "PATH", env = "AEIR_SOURCE")]
    pub(crate) source: Vec<PathBuf>,
    /// Target images: a folder, a list file with one path a line, features in `.npy`, `.safetensors` or `.tsv`, or the images
    /// of any data set; nothing of its sentences is taken
    #[arg(long, value_name = "PATH", env = "AEIR_TARGET_IMAGES")]
    pub(crate) target_images: Option<PathBuf>,
    /// Target sentences: a text file with one a line, or the sentences of any data set; which belongs to which image need not
    /// be known
    #[arg(long, value_name = "PATH", env = "AEIR_TARGET_SENTENCES")]
    pub(crate) target_sentences: Option<PathBuf>,
    /// A few pairs of the target that a person labelled, as `aeir label serve` writes them: learned from beside the source pairs. Those
    /// marked `test` are left out, for `eval --labelled`
    #[arg(long, value_name = "PAIRS", env = "AEIR_LABELLED")]
    pub(crate) labelled: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) reading: ReadingFlags,
    /// What to train [default: aeir]
    #[arg(long, value_enum, env = "AEIR_METHOD")]
    pub(crate) method: Option<MethodFlag>,
    /// How image and sentence are compared [default: cosine, or what the method stands for]. Heads other than cosine look
    /// at grid cells or regions and at tokens or words; they re-rank what the cosine finds
    #[arg(long, value_enum, env = "AEIR_HEAD")]
    pub(crate) head: Option<HeadFlag>,
    /// With `aeir`: the paper's procedure, or the released code's with all that is wrong in it [default: paper]
    #[arg(long, value_enum, env = "AEIR_FIDELITY")]
    pub(crate) fidelity: Option<FidelityFlag>,
    /// Shift and scale the features by each domain's own mean and spread; the target's come from its unpaired sets
    #[arg(long, value_parser = FalseyValueParser::new(), env = "AEIR_STANDARDISE")]
    pub(crate) standardise: bool,
    /// Start from a CLIP or SigLIP, in place of two encoders that know nothing of each other: a folder, an id
    /// `org/name[@revision]` of a model on the hub, or the name of one in the cache. What is trained changes its space as it is;
    /// the learning rate is then 0.0001 unless another is given
    #[arg(long, value_name = "DIR|ID")]
    pub(crate) model: Option<String>,
    /// Frozen image encoder: a folder, an id `org/name[@revision]` of a model on the hub, or the name of one in
    /// `fixtures/backbones` or in the cache; not used with region features
    #[arg(long, value_name = "DIR|ID", default_value = DEFAULT_IMAGE_ENCODER, env = "AEIR_IMAGE_ENCODER")]
    pub(crate) image_encoder: String,
    /// Frozen sentence encoder: a folder, an id `org/name[@revision]` of a model on the hub, or the name of one in
    /// `fixtures/backbones` or in the cache; or `words`: a vocabulary of the training sentences and a bidirectional GRU, both trained
    #[arg(long, value_name = "DIR|ID", default_value = DEFAULT_TEXT_ENCODER, env = "AEIR_TEXT_ENCODER")]
    pub(crate) text_encoder: String,
    /// Settings in TOML; --set and flags win over its lines
    #[arg(long, value_name = "FILE", env = "AEIR_CONFIG")]
    pub(crate) config: Option<PathBuf>,
    /// One setting, such as optimizer.clip_norm=2; wins over the file, a flag wins over it. May be repeated; configs/demo.toml
    /// lists the keys
    #[arg(long, value_name = "KEY=VALUE", env = "AEIR_SET")]
    pub(crate) set: Vec<String>,
    /// Print the resolved settings, the parameters by group, and an estimate of steps, time and memory; train and write nothing.
    /// Without --source the settings alone
    #[arg(long, value_parser = FalseyValueParser::new(), env = "AEIR_DRY_RUN")]
    pub(crate) dry_run: bool,
    /// Passes over the source pairs, or the target sets where those are larger [default: 40]
    #[arg(long, value_name = "N", env = "AEIR_EPOCHS")]
    pub(crate) epochs: Option<usize>,
    /// Source pairs a step [default: 128]
    #[arg(long, value_name = "N", env = "AEIR_BATCH_SIZE")]
    pub(crate) batch_size: Option<usize>,
    /// Batches whose gradients make one step [default: 1]
    #[arg(long, value_name = "N", env = "AEIR_ACCUMULATE")]
    pub(crate) accumulate: Option<usize>,
    /// In which precision the towers' products are computed [default: fp32]
    #[arg(long, value_enum, value_name = "PRECISION", env = "AEIR_PRECISION")]
    pub(crate) precision: Option<TrainPrecisionFlag>,
    /// Memory that the training may take, such as 8GiB: a batch that takes more is refused before the first step, with one that
    /// doesn't [default: unbounded]
    #[arg(long, value_name = "SIZE", env = "AEIR_MEMORY_BUDGET")]
    pub(crate) memory_budget: Option<Bytes>,
    /// Peak learning rate [default: 0.002]
    #[arg(long = "lr", value_name = "RATE", env = "AEIR_LR")]
    pub(crate) learning_rate: Option<f64>,
    /// Loss on the source pairs [default: info-nce with the cosine, else triplet-hardest]
    #[arg(long, value_enum, value_name = "LOSS", env = "AEIR_SOURCE_LOSS")]
    pub(crate) source_loss: Option<SourceLossFlag>,
    /// With `aeir`: weight of the adversarial term; 0 leaves it out [default: 1]
    #[arg(long, value_name = "WEIGHT", env = "AEIR_SEMANTIC_WEIGHT")]
    pub(crate) semantic_weight: Option<f64>,
    /// With `aeir`: weight of structure transfer; 0 leaves it out [default: 0.001]
    #[arg(long, value_name = "WEIGHT", env = "AEIR_STRUCTURE_WEIGHT")]
    pub(crate) structure_weight: Option<f64>,
    /// How the encoders are set against the domain critics [default: alternating]
    #[arg(long, value_enum, value_name = "HOW", env = "AEIR_ADVERSARY")]
    pub(crate) adversary: Option<AdversaryFlag>,
    /// Decides initial weights, order and dropout [default: 1]
    #[arg(long, value_name = "N", env = "AEIR_SEED")]
    pub(crate) seed: Option<u64>,
    /// Folder for the model: new or empty
    #[arg(long, short, required_unless_present = "dry_run", value_name = "RUN", env = "AEIR_OUTPUT")]
    pub(crate) output: Option<PathBuf>,
    /// Replace a finished run in the output folder
    #[arg(long, conflicts_with = "resume", value_parser = FalseyValueParser::new(), env = "AEIR_OVERWRITE")]
    pub(crate) overwrite: bool,
    /// Go on from the newest checkpoint; starts afresh where there is none, leaves a finished run as it is
    #[arg(long, value_enum, value_name = "WHICH", env = "AEIR_RESUME")]
    pub(crate) resume: Option<ResumeFlag>,
    #[command(flatten)]
    pub(crate) loading: LoadingFlags,
    #[command(flatten)]
    pub(crate) device: DeviceFlag,
}

#[derive(Args)]
#[command(group(clap::ArgGroup::new("pairs").required(true).args(["data", "labelled"])))]
pub(crate) struct EvalFlags {
    /// Folder of a trained model, or of a CLIP or SigLIP as it was published
    #[arg(long, value_name = "RUN", env = "AEIR_MODEL")]
    pub(crate) model: PathBuf,
    /// Test pairs, in any format that `train --source` takes
    #[arg(long, value_name = "PATH", env = "AEIR_DATA")]
    pub(crate) data: Option<PathBuf>,
    /// In place of --data: labelled pairs of the target, as `aeir label serve` writes them. Those marked `test` are queries against the
    /// whole target sets; each recall has a 95 % interval
    #[arg(
        long,
        value_name = "PAIRS",
        conflicts_with_all = ["split", "protocol", "query_bank", "image_bank", "compare", "replicates"],
        env = "AEIR_LABELLED"
    )]
    pub(crate) labelled: Option<PathBuf>,
    /// With --labelled: the images to find the right ones among, as `train --target-images` takes them [default: the labelled ones]
    #[arg(long, value_name = "PATH", requires = "labelled", env = "AEIR_TARGET_IMAGES")]
    pub(crate) target_images: Option<PathBuf>,
    /// With --labelled: the sentences to find the right ones among [default: the labelled ones]
    #[arg(long, value_name = "PATH", requires = "labelled", env = "AEIR_TARGET_SENTENCES")]
    pub(crate) target_sentences: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) reading: ReadingFlags,
    /// Score this split only [default: the items marked `test`, or all where none is]
    #[arg(long, value_enum, env = "AEIR_SPLIT")]
    pub(crate) split: Option<SplitFlag>,
    /// What is scored against what
    #[arg(long, value_enum, default_value = "full", env = "AEIR_PROTOCOL")]
    pub(crate) protocol: Protocol,
    /// Of a model with a cross-attentive head: re-rank this many of each query's first results with it, 0 for none, or
    /// `all` to score every pair [default: 100; all where the head alone was trained]
    #[arg(long, value_name = "N|all", env = "AEIR_RERANK")]
    pub(crate) rerank: Option<Rerank>,
    /// Unpaired sentences of the target, none of them a test sentence: shows text to image after each hubness correction too
    #[arg(long, value_name = "PATH", env = "AEIR_QUERY_BANK")]
    pub(crate) query_bank: Option<PathBuf>,
    /// Unpaired images of the target, none of them a test image: shows image to text after each hubness correction too
    #[arg(long, value_name = "PATH", env = "AEIR_IMAGE_BANK")]
    pub(crate) image_bank: Option<PathBuf>,
    /// Inverse temperature of the inverted softmaxes and of Sinkhorn
    #[arg(long, value_name = "B", default_value_t = 20.0, value_parser = correction::inverse_temperature, env = "AEIR_BETA")]
    pub(crate) beta: f64,
    /// Score another model on the same pairs, and test whether the two differ
    #[arg(long, value_name = "RUN")]
    pub(crate) compare: Option<PathBuf>,
    /// Resamples of the test images behind intervals and p-values
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = at_least_one, env = "AEIR_REPLICATES")]
    pub(crate) replicates: usize,
    /// Decides the resamples
    #[arg(long, value_name = "N", default_value_t = 0, env = "AEIR_SEED")]
    pub(crate) seed: u64,
    /// Print one JSON object
    #[arg(long, value_parser = FalseyValueParser::new(), env = "AEIR_JSON")]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) loading: LoadingFlags,
    #[command(flatten)]
    pub(crate) device: DeviceFlag,
}

#[derive(Args)]
#[command(group(clap::ArgGroup::new("query").required(true).multiple(true).args(["sentence", "image"])))]
pub(crate) struct SearchFlags {
    /// Folder of an index, or a Milvus collection, `milvus://HOST:PORT/COLLECTION`
    #[arg(long, value_name = "IDX", env = "AEIR_INDEX")]
    pub(crate) index: PathBuf,
    /// With a Milvus collection: the trained model, or the index that the collection was made of
    #[arg(long, value_name = "RUN")]
    pub(crate) model: Option<PathBuf>,
    /// What the images should show
    pub(crate) sentence: Option<String>,
    /// Look for images like this one; with a sentence, for what both have in common
    #[arg(long, value_name = "FILE")]
    pub(crate) image: Option<PathBuf>,
    /// What the images should not show. May be repeated
    #[arg(long, value_name = "SENTENCE")]
    pub(crate) minus: Vec<String>,
    /// How much the image counts beside the sentence, which counts 1
    #[arg(long, value_name = "W", default_value_t = Weights::default().image, value_parser = weight, env = "AEIR_IMAGE_WEIGHT")]
    pub(crate) image_weight: f32,
    /// How much each --minus counts
    #[arg(long, value_name = "W", default_value_t = Weights::default().minus, value_parser = weight, env = "AEIR_MINUS_WEIGHT")]
    pub(crate) minus_weight: f32,
    /// Number of results
    #[arg(short, value_name = "N", default_value_t = 10, value_parser = at_least_one, allow_negative_numbers = true, env = "AEIR_K")]
    pub(crate) k: usize,
    /// Of a model with a cross-attentive head: re-rank this many of the first results with it, 0 for none, or `all`
    /// [default: 100; all where the head alone was trained]
    #[arg(long, value_name = "N|all", env = "AEIR_RERANK")]
    pub(crate) rerank: Option<Rerank>,
    /// Answer "no good match" where a smaller share of the target's own sentences find a worse best match. At 0.05 about one in twenty
    /// sentences of the target's kind is turned away, and more of those of other kinds; needs an index with a query bank
    #[arg(long, value_name = "SHARE", value_parser = correction::share, env = "AEIR_MIN_CONFIDENCE")]
    pub(crate) min_confidence: Option<f64>,
    /// Labelled pairs of indexed images: gives as many results as hold the right one in --coverage of the queries, `-k` at most.
    /// Of several captions of an image one is drawn
    #[arg(long, value_name = "PAIRS", conflicts_with_all = ["image", "minus"], env = "AEIR_CALIBRATION")]
    pub(crate) calibration: Option<PathBuf>,
    /// With --calibration: share of queries whose results are to hold the right image
    #[arg(long, value_name = "SHARE", default_value_t = 0.9, value_parser = correction::share, env = "AEIR_COVERAGE")]
    pub(crate) coverage: f64,
    /// Search without the index's hubness correction
    #[arg(long, value_parser = FalseyValueParser::new(), env = "AEIR_PLAIN")]
    pub(crate) plain: bool,
    /// Only images whose metadata have this value under this key. May be repeated: all have to hold
    #[arg(long = "where", visible_alias = "filter", value_name = "KEY=VALUE", value_parser = key_and_value, env = "AEIR_WHERE")]
    pub(crate) filter: Vec<(String, String)>,
    /// Only images that this file names, one a line, as results name them
    #[arg(long, value_name = "FILE", env = "AEIR_IDS")]
    pub(crate) ids: Option<PathBuf>,
    /// Look at every image, even where the index has a graph for approximate search
    #[arg(long, value_parser = FalseyValueParser::new(), env = "AEIR_EXACT")]
    pub(crate) exact: bool,
    /// What becomes of near-identical images
    #[arg(long, value_enum, default_value = "keep", env = "AEIR_DUPLICATES")]
    pub(crate) duplicates: Duplicates,
    /// With --duplicates collapse: images of at least this cosine are the same one
    #[arg(long, value_name = "COSINE", default_value_t = DEFAULT_THRESHOLD, value_parser = cosine, env = "AEIR_DUPLICATE_THRESHOLD")]
    pub(crate) duplicate_threshold: f32,
    /// Print one JSON object
    #[arg(long, value_parser = FalseyValueParser::new(), env = "AEIR_JSON")]
    pub(crate) json: bool,
    #[command(flatten)]
    #[cfg_attr(not(feature = "milvus"), allow(dead_code, reason = "taken to be refused, never read"))]
    pub(crate) milvus: milvus::MilvusFlags,
    #[command(flatten)]
    pub(crate) device: DeviceFlag,
}

#[cfg(feature = "serve")]
#[derive(Args)]
pub(crate) struct ServeFlags {
    /// Folder of an index; a new one that is committed there is taken over without a restart
    #[arg(long, value_name = "IDX", env = "AEIR_INDEX")]
    pub(crate) index: PathBuf,
    #[command(flatten)]
    pub(crate) door: DoorFlags,
    /// A key that requests have to send as `Authorization: Bearer KEY`; better given as AEIR_API_KEY or in a file, as others can see the flags
    /// of a process. The page, `/healthz` and `/openapi.json` stay open
    #[arg(long, value_name = "KEY", hide_env_values = true, env = "AEIR_API_KEY")]
    pub(crate) api_key: Option<String>,
    /// File that holds the key
    #[arg(long, value_name = "FILE", conflicts_with = "api_key", env = "AEIR_API_KEY_FILE")]
    pub(crate) api_key_file: Option<PathBuf>,
    /// Of a model with a cross-attentive head: re-rank this many of the first results with it, 0 for none, or `all`
    /// [default: 100; all where the head alone was trained]
    #[arg(long, value_name = "N|all", env = "AEIR_RERANK")]
    pub(crate) rerank: Option<Rerank>,
    /// How often to look for a new index, in seconds; 0 for never
    #[arg(long, value_name = "SECONDS", default_value = "2", value_parser = seconds, env = "AEIR_RELOAD_EVERY")]
    pub(crate) reload_every: std::time::Duration,
    #[command(flatten)]
    pub(crate) limits: LimitFlags,
    #[command(flatten)]
    pub(crate) device: DeviceFlag,
}

/// What becomes of near-identical images among the results.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Duplicates {
    /// Each is a result of its own
    Keep,
    /// The best of them is a result, the others are listed behind it
    Collapse,
}

/// Takes a condition apart.
pub(crate) fn key_and_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("expected KEY=VALUE".to_owned()),
    }
}

/// Refuses what is no weight.
pub(crate) fn weight(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(weight) if weight > 0.0 && weight <= MOST_WEIGHT => Ok(weight),
        _ => Err(format!("expected a number above 0 and at most {MOST_WEIGHT}")),
    }
}

/// More than this says no more: the rest of the query is gone by then.
pub(crate) const MOST_WEIGHT: f32 = 1000.0;

/// Refuses what is no cosine to speak of.
pub(crate) fn cosine(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(cosine) if cosine > 0.0 && cosine <= 1.0 => Ok(cosine),
        _ => Err("expected a number above 0 and at most 1".to_owned()),
    }
}

/// How data sets are read, where their files alone don't say it.
#[derive(Args)]
pub(crate) struct ReadingFlags {
    /// Columns of tables and Parquet files, where their names are not the usual ones, such as
    /// `image=FILE,caption=TITLE,split=SET`; `caption` may stand several times
    #[arg(long, value_name = "ROLE=NAME,..", env = "AEIR_COLUMNS")]
    pub(crate) columns: Option<Columns>,
    /// Folder that image paths are relative to [default: that of the file, or one of the usual ones beside it]
    #[arg(long, value_name = "DIR", env = "AEIR_IMAGE_ROOT")]
    pub(crate) image_root: Option<PathBuf>,
}

impl ReadingFlags {
    pub(crate) fn options(&self) -> ReadOptions {
        ReadOptions {
            columns: self.columns.clone().unwrap_or_default(),
            image_root: self.image_root.clone(),
            ..ReadOptions::default()
        }
    }
}

#[derive(Args)]
pub(crate) struct ConvertFlags {
    /// A `.pth`, `.pth.tar` or `.pt` file that `torch.save` wrote, of any version
    #[arg(value_name = "CHECKPOINT")]
    pub(crate) checkpoint: PathBuf,
    /// The safetensors file to write; tensors keep their names and types
    #[arg(value_name = "OUTPUT", required_unless_present = "list")]
    pub(crate) output: Option<PathBuf>,
    /// Take the tensors under this name alone, such as `model` or `model.0` [default: the one value that holds tensors]
    #[arg(long, value_name = "NAME", env = "AEIR_KEY")]
    pub(crate) key: Option<String>,
    /// List what the checkpoint holds and write nothing
    #[arg(long, value_parser = FalseyValueParser::new(), env = "AEIR_LIST")]
    pub(crate) list: bool,
    /// Replace the output file
    #[arg(long, value_parser = FalseyValueParser::new(), env = "AEIR_OVERWRITE")]
    pub(crate) overwrite: bool,
    /// Print one JSON object
    #[arg(long, value_parser = FalseyValueParser::new(), env = "AEIR_JSON")]
    pub(crate) json: bool,
}

#[derive(Args)]
#[command(group(clap::ArgGroup::new("encoders").required(true).multiple(true).args(["model", "image_encoder", "text_encoder"])))]
pub(crate) struct EmbedFlags {
    /// Folder of a trained model: its unit vectors, images and sentences in one space
    #[arg(long, value_name = "RUN", conflicts_with_all = ["image_encoder", "text_encoder"])]
    pub(crate) model: Option<PathBuf>,
    /// Embed images with this frozen encoder: a folder, or the name of one in `fixtures/backbones` or in the cache
    #[arg(long, value_name = "DIR|ID")]
    pub(crate) image_encoder: Option<String>,
    /// Embed sentences with this frozen encoder: a folder, or the name of one in `fixtures/backbones` or in the cache
    #[arg(long, value_name = "DIR|ID")]
    pub(crate) text_encoder: Option<String>,
    /// Of a model: embed one kind alone [default: what the data has]
    #[arg(long, value_enum, value_name = "KIND", env = "AEIR_ONLY")]
    pub(crate) only: Option<Only>,
    /// The data set, in any format that is read: captions, a folder or list of images, a file of sentences
    #[arg(long, value_name = "PATH", env = "AEIR_DATA")]
    pub(crate) data: PathBuf,
    /// This split only [default: all]
    #[arg(long, value_enum, env = "AEIR_SPLIT")]
    pub(crate) split: Option<SplitFlag>,
    #[command(flatten)]
    pub(crate) reading: ReadingFlags,
    /// Folder for the embeddings: new, empty, or what the same command left unfinished. Or a file that ends in `.npy`,
    /// `.safetensors` or `.parquet`; the rest goes beside it
    #[arg(long, short, value_name = "OUT", env = "AEIR_OUTPUT")]
    pub(crate) output: PathBuf,
    /// How the arrays are written [default: what the suffix of the output says, else npy]
    #[arg(long, value_enum, env = "AEIR_FORMAT")]
    pub(crate) format: Option<ArrayFormat>,
    /// How a value is stored
    #[arg(long, value_enum, default_value = "f32", env = "AEIR_PRECISION")]
    pub(crate) precision: PrecisionFlag,
    /// Scale every embedding to length 1; those of a model are
    #[arg(long, value_parser = FalseyValueParser::new(), env = "AEIR_NORMALISE")]
    pub(crate) normalise: bool,
    /// Part I of N equal parts of the data, 1/N to N/N, each with an output folder of its own
    #[arg(long, value_name = "I/N", default_value = "1/1", env = "AEIR_SHARD")]
    pub(crate) shard: Shard,
    /// Items encoded at once [default: 16 images, 256 sentences]
    #[arg(long, value_name = "N", value_parser = at_least_one, env = "AEIR_BATCH_SIZE")]
    pub(crate) batch_size: Option<usize>,
    /// Print one JSON object
    #[arg(long, value_parser = FalseyValueParser::new(), env = "AEIR_JSON")]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) loading: LoadingFlags,
    #[command(flatten)]
    pub(crate) device: DeviceFlag,
}

#[derive(Args)]
pub(crate) struct CacheFlags {
    #[command(subcommand)]
    pub(crate) command: CacheCommand,
}

#[derive(Subcommand)]
pub(crate) enum CacheCommand {
    /// List the caches: encoder, entries, bytes, last use, folder
    List(CacheListFlags),
    /// Remove caches. Those in use by a running command stay
    Prune(CachePruneFlags),
}

#[derive(Args)]
pub(crate) struct CacheListFlags {
    /// Print one JSON object
    #[arg(long, value_parser = FalseyValueParser::new(), env = "AEIR_JSON")]
    pub(crate) json: bool,
}

#[derive(Args)]
#[command(group(clap::ArgGroup::new("which").required(true).multiple(true).args(["encoder", "older_than", "all"])))]
pub(crate) struct CachePruneFlags {
    /// Those of encoders whose fingerprint begins so, as `aeir cache list` shows it
    #[arg(long, value_name = "PREFIX")]
    pub(crate) encoder: Option<String>,
    /// Those not used for so long: a number of days, or with a unit, such as 12h, 30d, 8w
    #[arg(long, value_name = "AGE")]
    pub(crate) older_than: Option<Age>,
    /// All of them
    #[arg(long, conflicts_with_all = ["encoder", "older_than"])]
    pub(crate) all: bool,
    /// Say what would be removed, and remove nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Print one JSON object
    #[arg(long, value_parser = FalseyValueParser::new(), env = "AEIR_JSON")]
    pub(crate) json: bool,
}

#[derive(Args)]
pub(crate) struct BenchFlags {
    #[command(subcommand)]
    pub(crate) work: BenchCommand,
}

#[derive(Subcommand)]
pub(crate) enum BenchCommand {
    /// Training steps and SAF scoring of the published sizes, on items drawn at random
    Train(BenchTrainFlags),
    /// Images and sentences a second through frozen encoders, on items that are made up
    Encode(BenchEncodeFlags),
    /// JPEG files decoded and resized; the files are made for it
    Data(BenchDataFlags),
    /// Searches a second that a running `aeir serve` answers, and how long each takes
    Serve(BenchServeFlags),
    /// Exact and approximate search, on vectors that are made up
    Search(search_bench::BenchSearchFlags),
}

#[derive(Args)]
pub(crate) struct BenchTrainFlags {
    /// Time this alone [default: all]
    #[arg(long, value_enum, value_name = "WORK", env = "AEIR_ONLY")]
    pub(crate) only: Option<TrainWork>,
    /// Steps that are timed; their median counts
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = at_least_one, env = "AEIR_REPEATS")]
    pub(crate) repeats: usize,
    /// Tiny sizes, to see that everything runs
    #[arg(long, value_parser = FalseyValueParser::new(), env = "AEIR_QUICK")]
    pub(crate) quick: bool,
    /// Pairs of a SAF step, and as many target images and sentences [default: 56]
    #[arg(long, value_name = "N", value_parser = at_least_one, env = "AEIR_BATCH_SIZE")]
    pub(crate) batch_size: Option<usize>,
    /// Print one JSON object
    #[arg(long, value_parser = FalseyValueParser::new(), env = "AEIR_JSON")]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) device: DeviceFlag,
}

#[derive(Args)]
pub(crate) struct BenchDataFlags {
    /// How many files are made
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = at_least_one, env = "AEIR_IMAGES")]
    pub(crate) images: usize,
    /// Numbers of threads to time, one after the other
    #[arg(long, value_name = "N,..", value_delimiter = ',', default_value = "1,2", value_parser = at_least_one, env = "AEIR_THREADS")]
    pub(crate) threads: Vec<usize>,
    /// How often all files are decoded; the median counts
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = at_least_one, env = "AEIR_REPEATS")]
    pub(crate) repeats: usize,
    /// Time the .jpg files of this folder; in a new or empty one they are made, and stay [default: a temporary folder]
    #[arg(long, value_name = "DIR", env = "AEIR_FOLDER")]
    pub(crate) folder: Option<PathBuf>,
    /// Make the files and time nothing
    #[arg(long, requires = "folder")]
    pub(crate) make_only: bool,
    /// Time in place of that how fast a data set of any format is listed and read, on one thread and without decoding
    #[arg(long, value_name = "PATH", conflicts_with_all = ["folder", "make_only"])]
    pub(crate) read: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long, value_parser = FalseyValueParser::new(), env = "AEIR_JSON")]
    pub(crate) json: bool,
}

#[derive(Args)]
pub(crate) struct BenchServeFlags {
    /// Address of the server, as it prints it
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8080", env = "AEIR_URL")]
    pub(crate) url: String,
    /// What is asked: a text file, one sentence a line
    #[arg(long, value_name = "FILE", env = "AEIR_SENTENCES")]
    pub(crate) sentences: PathBuf,
    /// Numbers of clients that ask at once, one after the other; each waits for its answer and asks again
    #[arg(long, value_name = "N,..", value_delimiter = ',', default_value = "1,8,64", value_parser = at_least_one, env = "AEIR_CLIENTS")]
    pub(crate) clients: Vec<usize>,
    /// How long each number of clients asks, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = seconds, env = "AEIR_SECONDS")]
    pub(crate) seconds: std::time::Duration,
    /// Number of results
    #[arg(short, value_name = "N", default_value_t = 10, value_parser = at_least_one, env = "AEIR_K")]
    pub(crate) k: usize,
    /// Print one JSON object
    #[arg(long, value_parser = FalseyValueParser::new(), env = "AEIR_JSON")]
    pub(crate) json: bool,
}

/// Longest time that a flag takes: a day.
const MOST_SECONDS: f64 = 86_400.0;

/// Takes a number of seconds.
pub(crate) fn seconds(text: &str) -> Result<std::time::Duration, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.0..=MOST_SECONDS).contains(&seconds) => {
            Ok(std::time::Duration::from_secs_f64(seconds))
        }
        _ => Err(format!("expected a number of seconds from 0 to {MOST_SECONDS}")),
    }
}

/// Parts of `aeir bench train`.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum TrainWork {
    /// A whole step of `aeir --fidelity released --head saf`: 56 + 56 items
    SafStep,
    /// All pairs of 200 images and 1,000 sentences
    SafScoring,
    /// A step of two linear towers on pooled features: 128 pairs
    Towers,
    /// A step of a linear layer on regions and a bidirectional GRU on words: 32 pairs
    Words,
}

#[derive(Args)]
#[command(group(clap::ArgGroup::new("encoders").required(true).multiple(true).args(["image_encoder", "text_encoder"])))]
pub(crate) struct BenchEncodeFlags {
    /// Image encoder: a folder, or the name of one in `fixtures/backbones` or in the cache
    #[arg(long, value_name = "DIR|ID", env = "AEIR_IMAGE_ENCODER")]
    pub(crate) image_encoder: Option<String>,
    /// Sentence encoder: a folder, or the name of one in `fixtures/backbones` or in the cache
    #[arg(long, value_name = "DIR|ID", env = "AEIR_TEXT_ENCODER")]
    pub(crate) text_encoder: Option<String>,
    /// Items of a batch
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = at_least_one, env = "AEIR_BATCH_SIZE")]
    pub(crate) batch_size: usize,
    /// Tokens of a sentence, special tokens included; words where the encoder is a table
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = at_least_one, env = "AEIR_TOKENS")]
    pub(crate) tokens: usize,
    /// Threads [default: all cores]
    #[arg(long, value_name = "N", value_parser = at_least_one, env = "AEIR_THREADS")]
    pub(crate) threads: Option<usize>,
    /// Time a step of fine-tuning as well: all parameters of the sentence encoder, forward and backward
    #[arg(long, value_parser = FalseyValueParser::new(), env = "AEIR_FINE_TUNE")]
    pub(crate) fine_tune: bool,
    /// Print one JSON object
    #[arg(long, value_parser = FalseyValueParser::new(), env = "AEIR_JSON")]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) device: DeviceFlag,
}

#[derive(Args)]
pub(crate) struct DeviceFlag {
    /// Where to compute: auto, cpu, cuda, cuda:N or metal
    #[arg(long, value_name = "DEVICE", default_value = "auto", env = "AEIR_DEVICE")]
    pub(crate) device: crate::device::DeviceName,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum MethodFlag {
    /// Source pairs alone, without adaptation
    SourceOnly,
    /// Source pairs, and adaptation to the target (semantic and structure transfer)
    Aeir,
    /// Standardisation, a memory of the source pairs, and matches mined between the target's sets
    Adapt,
    /// Adversarial adaptation by gradient reversal
    Dann,
    /// A target encoder against a fixed source encoder
    Adda,
    /// Maximum mean discrepancy between the domains
    Mmd,
    /// Distance of the domains' covariances
    Coral,
    /// Adversarial adaptation on embeddings joined with their retrieval posterior
    Cdan,
    /// Linear canonical correlation of the source pairs, in closed form
    Cca,
    /// Canonical correlation of two small networks
    Dcca,
    /// Source pairs alone: cosine and the hardest negative (VSE++)
    Vsepp,
    /// Source pairs alone: stacked cross attention
    Scan,
    /// Source pairs alone: similarity attention filtration
    Saf,
    /// Source pairs alone: similarity graph reasoning
    Sgr,
    /// Source pairs alone: SAF and SGR, each with towers of its own, averaged
    Sgraf,
}

impl MethodFlag {
    fn method(self) -> MethodName {
        match self {
            Self::SourceOnly => MethodName::SourceOnly,
            Self::Aeir => MethodName::Aeir,
            Self::Adapt => MethodName::Adapt,
            Self::Dann => MethodName::Dann,
            Self::Adda => MethodName::Adda,
            Self::Mmd => MethodName::Mmd,
            Self::Coral => MethodName::Coral,
            Self::Cdan => MethodName::Cdan,
            Self::Cca => MethodName::Cca,
            Self::Dcca => MethodName::Dcca,
            Self::Vsepp => MethodName::Vsepp,
            Self::Scan => MethodName::Scan,
            Self::Saf => MethodName::Saf,
            Self::Sgr => MethodName::Sgr,
            Self::Sgraf => MethodName::Sgraf,
        }
    }
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum HeadFlag {
    /// Dot product of pooled vectors
    Cosine,
    /// Similarity attention filtration
    Saf,
    /// Similarity graph reasoning
    Sgr,
    /// Both of these, averaged
    Sgraf,
    /// Stacked cross attention: words attend to regions
    ScanT2i,
    /// Stacked cross attention: regions attend to words
    ScanI2t,
}

impl HeadFlag {
    fn head(self) -> Head {
        match self {
            Self::Cosine => Head::Cosine,
            Self::Saf => Head::Saf,
            Self::Sgr => Head::Sgr,
            Self::Sgraf => Head::Sgraf,
            Self::ScanT2i => Head::ScanT2i,
            Self::ScanI2t => Head::ScanI2t,
        }
    }
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum FidelityFlag {
    /// As the paper describes it
    Paper,
    /// As the released code computes it
    Released,
}

/// What is scored against what.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Protocol {
    /// All images against all sentences
    Full,
    /// The mean of five folds of 1,000 images out of COCO's 5,000
    #[value(name = "five-fold-1k")]
    FiveFold1k,
}

impl Protocol {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::FiveFold1k => "five-fold-1k",
        }
    }
}

/// How many results the second stage looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rerank {
    First(usize),
    All,
}

impl Rerank {
    /// What was asked for, or what suits the model. A first stage that nothing trained is not used unless asked for, and
    /// then not in silence.
    pub(crate) fn of_model(
        asked: Option<Self>,
        encoder: &aeir_encoders::DualEncoderConfig,
        terminal: &crate::terminal::Terminal,
    ) -> Self {
        match asked {
            None if encoder.head_only => Self::All,
            None => Self::First(100),
            Some(asked @ Self::First(_)) if encoder.head_only => {
                terminal.warn(
                    "this model was trained for its head alone: its pooled vectors find candidates hardly better than \
                     chance; leave --rerank out to score all pairs",
                );
                asked
            }
            Some(asked) => asked,
        }
    }
}

impl std::fmt::Display for Rerank {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::First(count) => write!(formatter, "{count}"),
            Self::All => formatter.write_str("all"),
        }
    }
}

impl std::str::FromStr for Rerank {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "all" => Ok(Self::All),
            number => {
                number.parse().map(Self::First).map_err(|_| "expected a whole number or `all`".to_owned())
            }
        }
    }
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum SourceLossFlag {
    /// Symmetric InfoNCE with a learned temperature
    InfoNce,
    /// Triplet ranking, hardest negative of the batch
    TripletHardest,
    /// Triplet ranking, all negatives of the batch
    TripletAll,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum AdversaryFlag {
    /// The critics step first, then the encoders
    Alternating,
    /// Both step at once, the gradient reversed between them
    GradientReversal,
    /// As alternating, with critics of bounded slope (Wasserstein distance with gradient penalty)
    Wasserstein,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum ResumeFlag {
    /// The newest checkpoint that is whole
    Latest,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum SplitFlag {
    Train,
    Val,
    Test,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Only {
    Images,
    Sentences,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ArrayFormat {
    /// `images.npy` and `sentences.npy`
    Npy,
    /// One `embeddings.safetensors` with the tensors `images` and `sentences`
    Safetensors,
    /// `images.parquet` and `sentences.parquet`, with the names of the rows in them
    Parquet,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum PrecisionFlag {
    F32,
    F16,
}

/// Refuses 0 and everything that is no number in one way.
pub(crate) fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("expected a whole number of at least 1".to_owned()),
        Ok(count) => Ok(count),
    }
}

impl SplitFlag {
    pub(crate) fn split(self) -> Split {
        match self {
            Self::Train => Split::Train,
            Self::Val => Split::Validation,
            Self::Test => Split::Test,
        }
    }

    /// As it is typed.
    pub(crate) fn name(self) -> String {
        match self {
            Self::Train => "train",
            Self::Val => "val",
            Self::Test => "test",
        }
        .to_owned()
    }
}

/// In which precision the towers multiply in training.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum TrainPrecisionFlag {
    /// Single
    Fp32,
    /// bfloat16; norms, softmax, heads, losses and the optimiser stay single
    Bf16,
}

impl TrainPrecisionFlag {
    fn precision(self) -> Precision {
        match self {
            Self::Fp32 => Precision::Fp32,
            Self::Bf16 => Precision::Bf16,
        }
    }
}

impl TrainFlags {
    /// The settings of the file, or the defaults, with the flags on top.
    pub(crate) fn apply(&self, mut config: TrainConfig) -> TrainConfig {
        config.method = self.method.map_or(config.method, MethodFlag::method);
        config.model.head = self.head.map(HeadFlag::head).or(config.model.head);
        config.aeir.semantic_weight = self.semantic_weight.unwrap_or(config.aeir.semantic_weight);
        config.aeir.structure_weight = self.structure_weight.unwrap_or(config.aeir.structure_weight);
        if let Some(fidelity) = self.fidelity {
            config.aeir.fidelity = match fidelity {
                FidelityFlag::Paper => Fidelity::Paper,
                FidelityFlag::Released => Fidelity::Released,
            };
        }
        if self.standardise {
            config.standardise = config.standardise.or_more(Standardise::Standardise);
        }
        config.epochs = self.epochs.unwrap_or(config.epochs);
        config.batch_size = self.batch_size.unwrap_or(config.batch_size);
        config.optimizer.accumulate = self.accumulate.unwrap_or(config.optimizer.accumulate);
        config.precision = self.precision.map_or(config.precision, TrainPrecisionFlag::precision);
        config.memory_budget = self.memory_budget.or(config.memory_budget);
        config.seed = self.seed.unwrap_or(config.seed);
        config.optimizer.learning_rate = self.learning_rate.unwrap_or(config.optimizer.learning_rate);
        if let Some(loss) = self.source_loss {
            config.source_loss.kind = Some(match loss {
                SourceLossFlag::InfoNce => SourceLossKind::InfoNce,
                SourceLossFlag::TripletHardest => SourceLossKind::TripletHardest,
                SourceLossFlag::TripletAll => SourceLossKind::TripletAll,
            });
        }
        if let Some(adversary) = self.adversary {
            config.aeir.adversary = match adversary {
                AdversaryFlag::Alternating => Adversary::Alternating,
                AdversaryFlag::GradientReversal => Adversary::GradientReversal,
                AdversaryFlag::Wasserstein => Adversary::Wasserstein,
            };
        }
        config
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::Flags;

    #[test]
    fn the_flags_are_consistent() {
        Flags::command().debug_assert();
    }

    #[test]
    fn commands_with_a_memory_budget_say_so() {
        let command = Flags::command();
        let has_budget = |command: &&clap::Command| {
            command.get_arguments().any(|argument| argument.get_long() == Some("memory-budget"))
        };
        let with: Vec<&str> =
            command.get_subcommands().filter(has_budget).map(clap::Command::get_name).collect();
        assert_eq!(with, ["train"]);
        let parsed =
            |words: &[&str]| Flags::try_parse_from([&["aeir"], words].concat()).unwrap().command.has_budget();
        assert!(parsed(&["train", "--source", "pairs", "--output", "run"]) && !parsed(&["doctor"]));
    }
}
