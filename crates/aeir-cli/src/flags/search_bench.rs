//! Flags of `aeir bench search`.

use std::path::PathBuf;

use aeir_train::budget::Bytes;
use clap::Args;
use clap::builder::FalseyValueParser;

use super::index::{ApproximateFlag, StorageFlag};
use super::{DeviceFlag, at_least_one};

#[derive(Args)]
pub(crate) struct BenchSearchFlags {
    /// Vectors to search in; they are made up, in clusters
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = at_least_one, env = "AEIR_ITEMS")]
    pub(crate) items: usize,
    /// Numbers of a vector
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = at_least_one, env = "AEIR_DIMENSION")]
    pub(crate) dimension: usize,
    /// Queries, asked all at once
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = at_least_one, env = "AEIR_QUERIES")]
    pub(crate) queries: usize,
    /// Results wanted for each
    #[arg(short, value_name = "N", default_value_t = 10, value_parser = at_least_one, env = "AEIR_K")]
    pub(crate) k: usize,
    /// How vectors are kept; several are timed one after the other
    #[arg(
        long,
        value_enum,
        value_name = "TYPE,..",
        value_delimiter = ',',
        default_value = "f32,f16,int8",
        env = "AEIR_STORAGE"
    )]
    pub(crate) storage: Vec<StorageFlag>,
    #[command(flatten)]
    pub(crate) approximate: ApproximateFlag,
    /// How often everything is timed; the median counts
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = at_least_one, env = "AEIR_REPEATS")]
    pub(crate) repeats: usize,
    #[command(flatten)]
    pub(crate) device: DeviceFlag,
    /// Memory for scores on a card, at most; at least 16MiB
    #[arg(long, value_name = "SIZE", default_value = "1GiB", env = "AEIR_SCORE_MEMORY")]
    pub(crate) score_memory: Bytes,
    /// Threads [default: all cores]
    #[arg(long, value_name = "N", value_parser = at_least_one, env = "AEIR_THREADS")]
    pub(crate) threads: Option<usize>,
    /// Write the vectors into this folder too, as `items.npy` and `queries.npy`, for other software
    #[arg(long, value_name = "DIR", env = "AEIR_VECTORS")]
    pub(crate) vectors: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long, value_parser = FalseyValueParser::new(), env = "AEIR_JSON")]
    pub(crate) json: bool,
}
