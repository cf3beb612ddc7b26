//! Flags of `aeir index` and its commands, and what searches are limited by.

use std::path::PathBuf;

use aeir_retrieve::Storage;
use clap::builder::FalseyValueParser;
use clap::{Args, Subcommand, ValueEnum};

use super::milvus::UploadFlags;
use super::{DeviceFlag, PrecisionFlag, ReadingFlags, correction};
use crate::limits::LoadingFlags;

const EXAMPLES: &str = "\
Examples:
  aeir index --model model --images photos --output index
  aeir index --model model --images photos --storage int8 --metadata photos.jsonl -o index
  aeir index add     --index index --images new-photos
  aeir index remove  --index index /data/photos/7.jpg
  aeir index compact --index index
  aeir index info    --index index
  aeir index export  --index index --output exported
  aeir index upload  --index index --to milvus://localhost:19530/photos";

/// Flags of `aeir index`.
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true, after_help = EXAMPLES)]
pub(crate) struct IndexFlags {
    #[command(subcommand)]
    pub(crate) change: Option<IndexCommand>,
    /// Folder of a trained model, or of a CLIP or SigLIP as it was published
    #[arg(long, value_name = "RUN", required = true, env = "AEIR_MODEL")]
    pub(crate) model: Option<PathBuf>,
    /// Images: a folder, a list file with one path a line, features in `.npy`, `.safetensors` or `.tsv`, or the images of any
    /// data set, of whatever split
    #[arg(long, value_name = "PATH", required = true, env = "AEIR_IMAGES")]
    pub(crate) images: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) reading: ReadingFlags,
    #[command(flatten)]
    pub(crate) metadata: MetadataFlag,
    /// Unpaired sentences of the target: what queries look like. Stored with the index as what confidence and the correction are
    /// worked out from
    #[arg(long, value_name = "PATH", env = "AEIR_QUERY_BANK")]
    pub(crate) query_bank: Option<PathBuf>,
    /// Correct searches by sentence for hubs, worked out now so that a query costs no more; compare with `aeir eval --query-bank` first
    #[arg(long, value_enum, value_name = "HOW", requires = "query_bank", env = "AEIR_CORRECTION")]
    pub(crate) correction: Option<correction::CorrectionFlag>,
    /// Inverse temperature of the inverted softmaxes and of Sinkhorn
    #[arg(long, value_name = "B", default_value_t = 20.0, value_parser = correction::inverse_temperature, env = "AEIR_BETA")]
    pub(crate) beta: f64,
    /// How vectors are kept: `f16` halves them, `int8` searches a quarter and keeps `f16` beside it to order what was found
    #[arg(long, value_enum, value_name = "TYPE", default_value = "f32", env = "AEIR_STORAGE")]
    pub(crate) storage: StorageFlag,
    #[command(flatten)]
    pub(crate) approximate: ApproximateFlag,
    /// Folder for the index; an earlier index in it is replaced once the new one is whole. May be left out with --to
    #[arg(long, short, value_name = "IDX", required_unless_present = "to", env = "AEIR_OUTPUT")]
    pub(crate) output: Option<PathBuf>,
    /// Put the images into a collection of a Milvus server too, or alone; it is made if there is none. The same command goes on with
    /// an upload that was interrupted. `milvuss://` connects with TLS
    #[arg(long, value_name = "milvus://HOST:PORT/COLLECTION", env = "AEIR_TO")]
    pub(crate) to: Option<String>,
    #[command(flatten)]
    pub(crate) upload: UploadFlags,
    #[command(flatten)]
    pub(crate) loading: LoadingFlags,
    #[command(flatten)]
    pub(crate) device: DeviceFlag,
}

impl IndexFlags {
    /// What `--workers` says.
    pub(crate) fn workers(&self) -> Option<usize> {
        match &self.change {
            Some(IndexCommand::Add(flags)) => flags.loading.workers,
            Some(_) => None,
            None => self.loading.workers,
        }
    }
}

#[derive(Subcommand)]
pub(crate) enum IndexCommand {
    /// Add images, in the place of those of the same name
    Add(AddFlags),
    /// Delete items by name
    Remove(RemoveFlags),
    /// Write an index anew without what was deleted, and build its graph
    Compact(CompactFlags),
    /// Say what an index holds
    Info(InfoFlags),
    /// Write vectors, names and metadata as `.npy` and Parquet, for FAISS, pgvector, Qdrant and others
    Export(ExportFlags),
    /// Put an index into a collection of a Milvus server, or bring the collection up to date
    Upload(UploadCommandFlags),
}

#[derive(Args)]
pub(crate) struct AddFlags {
    /// Folder of an index
    #[arg(long, value_name = "IDX", env = "AEIR_INDEX")]
    pub(crate) index: PathBuf,
    /// Images, as `aeir index --images` takes them; they are embedded by the model in the index
    #[arg(long, value_name = "PATH", env = "AEIR_IMAGES")]
    pub(crate) images: PathBuf,
    #[command(flatten)]
    pub(crate) reading: ReadingFlags,
    #[command(flatten)]
    pub(crate) metadata: MetadataFlag,
    #[command(flatten)]
    pub(crate) loading: LoadingFlags,
    #[command(flatten)]
    pub(crate) device: DeviceFlag,
}

#[derive(Args)]
#[command(group(clap::ArgGroup::new("which").required(true).multiple(true).args(["items", "ids"])))]
pub(crate) struct RemoveFlags {
    /// Folder of an index
    #[arg(long, value_name = "IDX", env = "AEIR_INDEX")]
    pub(crate) index: PathBuf,
    /// Items, as `aeir search` names them
    #[arg(value_name = "ID")]
    pub(crate) items: Vec<String>,
    /// File with one item a line
    #[arg(long, value_name = "FILE", env = "AEIR_IDS")]
    pub(crate) ids: Option<PathBuf>,
}

#[derive(Args)]
pub(crate) struct CompactFlags {
    /// Folder of an index
    #[arg(long, value_name = "IDX", env = "AEIR_INDEX")]
    pub(crate) index: PathBuf,
    #[command(flatten)]
    pub(crate) approximate: ApproximateFlag,
}

#[derive(Args)]
pub(crate) struct InfoFlags {
    /// Folder of an index
    #[arg(long, value_name = "IDX", env = "AEIR_INDEX")]
    pub(crate) index: PathBuf,
    /// Print one JSON object
    #[arg(long, value_parser = FalseyValueParser::new(), env = "AEIR_JSON")]
    pub(crate) json: bool,
}

#[derive(Args)]
pub(crate) struct ExportFlags {
    /// Folder of an index
    #[arg(long, value_name = "IDX", env = "AEIR_INDEX")]
    pub(crate) index: PathBuf,
    /// New or empty folder for `embeddings.npy` and `items.parquet`, in the same order
    #[arg(long, short, value_name = "DIR", env = "AEIR_OUTPUT")]
    pub(crate) output: PathBuf,
    /// How a value is stored
    #[arg(long, value_enum, default_value = "f32", env = "AEIR_PRECISION")]
    pub(crate) precision: PrecisionFlag,
}

#[derive(Args)]
pub(crate) struct UploadCommandFlags {
    /// Folder of an index
    #[arg(long, value_name = "IDX", env = "AEIR_INDEX")]
    pub(crate) index: PathBuf,
    /// The collection; it is made if there is none. The same command goes on with an upload that was interrupted. `milvuss://`
    /// connects with TLS
    #[arg(long, value_name = "milvus://HOST:PORT/COLLECTION", env = "AEIR_TO")]
    pub(crate) to: String,
    #[command(flatten)]
    pub(crate) upload: UploadFlags,
}

/// What is kept with items.
#[derive(Args)]
pub(crate) struct MetadataFlag {
    /// JSON lines with what is kept with images: `image` or `item` names one, relative to the file, all else can be filtered by
    #[arg(long, value_name = "FILE", env = "AEIR_METADATA")]
    pub(crate) metadata: Option<PathBuf>,
}

/// Whether there is a graph.
#[derive(Args)]
pub(crate) struct ApproximateFlag {
    /// Build a graph for approximate search, whose recall `aeir index info` and `aeir search --json` state; `auto` does from 200,000 images on
    #[arg(long, value_enum, value_name = "WHEN", num_args = 0..=1, require_equals = true, default_value = "auto", default_missing_value = "yes", env = "AEIR_APPROXIMATE")]
    pub(crate) approximate: Approximate,
}

/// From so many items on an exact search of one query takes longer than people wait for.
const MANY_ITEMS: usize = 200_000;

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Approximate {
    /// With many images
    Auto,
    Yes,
    No,
}

impl Approximate {
    /// Whether so many items get a graph.
    pub(crate) fn of(self, items: usize) -> bool {
        match self {
            Self::Auto => items >= MANY_ITEMS,
            Self::Yes => true,
            Self::No => false,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum StorageFlag {
    F32,
    F16,
    Int8,
}

impl StorageFlag {
    pub(crate) fn storage(self) -> Storage {
        match self {
            Self::F32 => Storage::F32,
            Self::F16 => Storage::F16,
            Self::Int8 => Storage::Int8,
        }
    }
}
