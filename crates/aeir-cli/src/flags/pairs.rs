//! Flags of `aeir pairs`.

use std::path::PathBuf;

use clap::builder::FalseyValueParser;
use clap::{Args, Subcommand, ValueEnum};

use aeir_train::mining::Matching;

use super::{DeviceFlag, ReadingFlags};
use crate::limits::LoadingFlags;

#[derive(Args)]
pub(crate) struct PairsFlags {
    #[command(subcommand)]
    pub(crate) command: PairsCommand,
}

#[derive(Subcommand)]
pub(crate) enum PairsCommand {
    /// Match unpaired images and sentences with a model, and write the pairs with their confidence
    ///
    /// Images times sentences are at most 400 million: all scores are held in memory.
    Export(PairsExportFlags),
}

#[derive(Args)]
pub(crate) struct PairsExportFlags {
    /// Folder of a trained model, or of a CLIP or SigLIP as it was published
    #[arg(long, value_name = "RUN", env = "AEIR_MODEL")]
    pub(crate) model: PathBuf,
    /// The images: a folder, a list file, or those of any data set
    #[arg(long, value_name = "PATH", env = "AEIR_TARGET_IMAGES")]
    pub(crate) target_images: PathBuf,
    /// The sentences: a text file with one a line, or those of any data set
    #[arg(long, value_name = "PATH", env = "AEIR_TARGET_SENTENCES")]
    pub(crate) target_sentences: PathBuf,
    #[command(flatten)]
    pub(crate) reading: ReadingFlags,
    /// File for the pairs, one JSON object a line, the surest first: image, sentence, confidence (0 to 1), score (the cosine),
    /// mutual (each other's nearest), and the next best sentences with theirs
    #[arg(long, short, value_name = "FILE", env = "AEIR_OUTPUT")]
    pub(crate) output: PathBuf,
    /// Also write a page with thumbnails, to look through them
    #[arg(long, value_name = "FILE", env = "AEIR_HTML")]
    pub(crate) html: Option<PathBuf>,
    /// How images and sentences are matched
    #[arg(long, value_enum, default_value = "transport", env = "AEIR_MATCHING")]
    pub(crate) matching: MatchingFlag,
    /// Entropy of the matching, in standard deviations of the scores; what `adapt.epsilon` is in training
    #[arg(long, value_name = "X", default_value_t = 0.15, value_parser = above_zero, env = "AEIR_EPSILON")]
    pub(crate) epsilon: f64,
    /// Share of each set that need not have a partner in the other
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, value_parser = share, env = "AEIR_DUSTBIN")]
    pub(crate) dustbin: f64,
    /// Leave out pairs that are less sure
    #[arg(long, value_name = "X", default_value_t = 0.0, value_parser = share, env = "AEIR_MIN_CONFIDENCE")]
    pub(crate) min_confidence: f64,
    /// Print one JSON object
    #[arg(long, value_parser = FalseyValueParser::new(), env = "AEIR_JSON")]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) loading: LoadingFlags,
    #[command(flatten)]
    pub(crate) device: DeviceFlag,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum MatchingFlag {
    /// Every image gets a partner, and no sentence is everybody's (optimal transport)
    Transport,
    /// Only images and sentences that are each other's nearest under CSLS
    Mutual,
}

impl MatchingFlag {
    pub(crate) fn matching(self) -> Matching {
        match self {
            Self::Transport => Matching::Transport,
            Self::Mutual => Matching::Mutual,
        }
    }
}

fn above_zero(text: &str) -> Result<f64, String> {
    number(text).filter(|value| *value > 0.0).ok_or_else(|| "expected a number above 0".into())
}

fn share(text: &str) -> Result<f64, String> {
    number(text)
        .filter(|value| (0.0..1.0).contains(value))
        .ok_or_else(|| "expected a number from 0 to below 1".into())
}

fn number(text: &str) -> Option<f64> {
    text.parse().ok().filter(|value: &f64| value.is_finite())
}
