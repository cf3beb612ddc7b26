//! The flags of `aeir diagnose`.

use std::path::PathBuf;

use clap::Args;
use clap::builder::FalseyValueParser;

use super::{DeviceFlag, ReadingFlags};
use crate::commands::diagnose::FEWEST;
use crate::limits::LoadingFlags;

#[derive(Args)]
pub(crate) struct DiagnoseFlags {
    /// Source pairs, in any format that `train --source` takes; may be repeated. With --model there may be none: then nothing is
    /// said of the distance between domains
    #[arg(long, required_unless_present = "model", value_name = "PATH", env = "AEIR_SOURCE")]
    pub(crate) source: Vec<PathBuf>,
    /// Target images: a folder, a list file with one path a line, features, or the images of any data set
    #[arg(long, value_name = "PATH", env = "AEIR_TARGET_IMAGES")]
    pub(crate) target_images: PathBuf,
    /// Target sentences: a text file with one a line, or the sentences of any data set
    #[arg(long, value_name = "PATH", env = "AEIR_TARGET_SENTENCES")]
    pub(crate) target_sentences: PathBuf,
    #[command(flatten)]
    pub(crate) reading: ReadingFlags,
    /// Look at the space of this trained model, or of a CLIP or SigLIP as it was published [default: of small towers that are trained on the source for it]
    #[arg(long, value_name = "RUN", conflicts_with_all = ["image_encoder", "text_encoder"])]
    pub(crate) model: Option<PathBuf>,
    /// Frozen image encoder, where no model is given: a folder, an id, or the name of one in `fixtures/backbones` or in
    /// the cache [default: efficientnet-lite0]
    #[arg(long, value_name = "DIR|ID")]
    pub(crate) image_encoder: Option<String>,
    /// Frozen sentence encoder, where no model is given: a folder, an id, or the name of one in `fixtures/backbones` or in
    /// the cache [default: static-minilm]
    #[arg(long, value_name = "DIR|ID")]
    pub(crate) text_encoder: Option<String>,
    /// Items of each set that are looked at, 20 or more: larger sets are sampled, always alike
    #[arg(long, value_name = "N", default_value_t = 2_000, value_parser = at_least_twenty, env = "AEIR_SAMPLE")]
    pub(crate) sample: usize,
    /// Decides the samples and the shuffles
    #[arg(long, value_name = "N", default_value_t = 0, env = "AEIR_SEED")]
    pub(crate) seed: u64,
    /// Write a page with plots and the hub items: one HTML file that needs nothing else
    #[arg(long, short, value_name = "FILE", env = "AEIR_OUTPUT")]
    pub(crate) output: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long, value_parser = FalseyValueParser::new(), env = "AEIR_JSON")]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) loading: LoadingFlags,
    #[command(flatten)]
    pub(crate) device: DeviceFlag,
}

/// Fewer items a set say nothing.
fn at_least_twenty(text: &str) -> Result<usize, String> {
    let count = text.parse().ok().filter(|count| *count >= FEWEST);
    count.ok_or_else(|| format!("expected a whole number of at least {FEWEST}"))
}
