//! Flags of `aeir label`.

use std::path::PathBuf;

use clap::builder::FalseyValueParser;
use clap::{Args, Subcommand};

use super::{DeviceFlag, ReadingFlags, at_least_one};
use crate::limits::LoadingFlags;

/// Candidates have a key each.
const MOST_CANDIDATES: usize = 9;

#[derive(Args)]
pub(crate) struct LabelFlags {
    #[command(subcommand)]
    pub(crate) command: LabelCommand,
}

#[derive(Subcommand)]
pub(crate) enum LabelCommand {
    /// Choose which target images to label: those worth most to learn from, and a random sample to measure with
    Plan(LabelPlanFlags),
    /// Show a plan on a local page, and write what is clicked as pairs
    #[cfg(feature = "serve")]
    Serve(LabelServeFlags),
}

#[derive(Args)]
pub(crate) struct LabelPlanFlags {
    /// Folder of a trained model: it finds the candidates, and is asked where it is undecided
    #[arg(long, value_name = "RUN", env = "AEIR_MODEL")]
    pub(crate) model: PathBuf,
    /// Target images, as `train --target-images` takes them
    #[arg(long, value_name = "PATH", env = "AEIR_TARGET_IMAGES")]
    pub(crate) target_images: PathBuf,
    /// Target sentences, as `train --target-sentences` takes them
    #[arg(long, value_name = "PATH", env = "AEIR_TARGET_SENTENCES")]
    pub(crate) target_sentences: PathBuf,
    #[command(flatten)]
    pub(crate) reading: ReadingFlags,
    /// Images to label, both parts together
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = at_least_one, env = "AEIR_BUDGET")]
    pub(crate) budget: usize,
    /// Share of them drawn at random, to measure with and not to learn from: 0 for none, 1 for all
    #[arg(long, value_name = "SHARE", default_value_t = 0.3, value_parser = share, env = "AEIR_MEASURE_SHARE")]
    pub(crate) measure_share: f64,
    /// Sentences offered for each image, at most 9
    #[arg(long, value_name = "N", default_value_t = MOST_CANDIDATES, value_parser = candidates, env = "AEIR_CANDIDATES")]
    pub(crate) candidates: usize,
    /// Decides which images are drawn to measure with
    #[arg(long, value_name = "N", default_value_t = 0, env = "AEIR_SEED")]
    pub(crate) seed: u64,
    /// File for the plan, one JSON object a line: image, part (`learn` or `measure`), uncertainty (0 sure, 1 undecided) and candidates,
    /// each a sentence with its score
    #[arg(long, short, value_name = "FILE", env = "AEIR_OUTPUT")]
    pub(crate) output: PathBuf,
    /// Print one JSON object
    #[arg(long, value_parser = FalseyValueParser::new(), env = "AEIR_JSON")]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) loading: LoadingFlags,
    #[command(flatten)]
    pub(crate) device: DeviceFlag,
}

#[cfg(feature = "serve")]
#[derive(Args)]
pub(crate) struct LabelServeFlags {
    /// A plan of `aeir label plan`
    #[arg(long, value_name = "FILE", env = "AEIR_PLAN")]
    pub(crate) plan: PathBuf,
    /// File for the pairs, whole after every answer; one that is there already is gone on with
    #[arg(long, short, value_name = "FILE", env = "AEIR_OUTPUT")]
    pub(crate) output: PathBuf,
    /// All target sentences: adds a search among them, for images whose sentence is not among the candidates
    #[arg(long, value_name = "PATH", env = "AEIR_TARGET_SENTENCES")]
    pub(crate) target_sentences: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) reading: ReadingFlags,
    /// Port on 127.0.0.1; 0 takes one that is free
    #[arg(long, value_name = "N", default_value_t = 8322, env = "AEIR_PORT")]
    pub(crate) port: u16,
}

fn share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| "expected a number from 0 to 1".into())
}

fn candidates(text: &str) -> Result<usize, String> {
    let count = text.parse().ok().filter(|count| (1..=MOST_CANDIDATES).contains(count));
    count.ok_or_else(|| format!("expected a whole number from 1 to {MOST_CANDIDATES}"))
}
