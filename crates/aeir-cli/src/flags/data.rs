//! Flags of `aeir data`.

use std::path::PathBuf;

use clap::builder::FalseyValueParser;
use clap::{Args, Subcommand, ValueEnum};

use super::ReadingFlags;
use crate::limits::LoadingFlags;

const CHECK_EXAMPLES: &str = "\
Examples:
  aeir data check photos/captions.jsonl
  aeir data check train.csv test.csv
  aeir data check flickr30k/ --json | jq .leaked_images.count";

const SPLIT_EXAMPLES: &str = "\
Example:
  aeir data split captions.csv --val 0.1 --test 0.2 --output splits
  aeir train --source splits/train.jsonl ...";

const CONVERT_EXAMPLES: &str = "\
Examples:
  aeir data convert \"shards/{000..012}.tar\" --output plain
  aeir data convert dataset_flickr30k.json --image-root flickr30k-images --to webdataset --output shards";

const UNPAIR_EXAMPLES: &str = "\
Example:
  aeir data unpair captions.jsonl --output unpaired
  aeir train --source pairs.jsonl --target-images unpaired/images.txt --target-sentences unpaired/sentences.txt -o model";

/// Flags of `aeir data`.
#[derive(Args)]
pub(crate) struct DataFlags {
    #[command(subcommand)]
    pub(crate) command: DataCommand,
}

impl DataFlags {
    /// What `--workers` says.
    pub(crate) fn workers(&self) -> Option<usize> {
        match &self.command {
            DataCommand::Check(flags) => flags.loading.workers,
            DataCommand::Split(flags) => flags.loading.workers,
            DataCommand::Convert(flags) => flags.loading.workers,
            DataCommand::Unpair(_) => None,
        }
    }
}

#[derive(Subcommand)]
pub(crate) enum DataCommand {
    /// Look at every image and sentence: counts, sizes, broken files, duplicates, leaks between training and test
    Check(CheckFlags),
    /// Draw training, validation and test splits by image
    Split(DrawFlags),
    /// Write a data set of any format as JSON lines with images, or as WebDataset shards
    Convert(ConvertFlags),
    /// Make unpaired images and sentences of a parallel data set, the alignment apart
    Unpair(UnpairFlags),
}

#[derive(Args)]
#[command(after_help = CHECK_EXAMPLES)]
pub(crate) struct CheckFlags {
    /// Data sets, in any format that `train --source` takes
    #[arg(required = true, value_name = "PATH")]
    pub(crate) paths: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) reading: ReadingFlags,
    /// Print one JSON object
    #[arg(long, value_parser = FalseyValueParser::new(), env = "AEIR_JSON")]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) loading: LoadingFlags,
}

#[derive(Args)]
#[command(after_help = SPLIT_EXAMPLES)]
pub(crate) struct DrawFlags {
    /// A data set, in any format that `train --source` takes; its own splits are not looked at
    #[arg(value_name = "PATH")]
    pub(crate) path: PathBuf,
    /// Share of the images to choose a checkpoint with
    #[arg(long = "val", value_name = "SHARE", default_value_t = 0.1, value_parser = share, env = "AEIR_VAL")]
    pub(crate) validation: f64,
    /// Share of the images to score with
    #[arg(long, value_name = "SHARE", default_value_t = 0.1, value_parser = share, env = "AEIR_TEST")]
    pub(crate) test: f64,
    /// Decides which images go where
    #[arg(long, value_name = "N", default_value_t = 1, env = "AEIR_SEED")]
    pub(crate) seed: u64,
    #[command(flatten)]
    pub(crate) writing: WritingFlags,
    #[command(flatten)]
    pub(crate) reading: ReadingFlags,
    #[command(flatten)]
    pub(crate) loading: LoadingFlags,
}

#[derive(Args)]
#[command(after_help = CONVERT_EXAMPLES)]
pub(crate) struct ConvertFlags {
    /// A data set, in any format that `train --source` takes
    #[arg(value_name = "PATH")]
    pub(crate) path: PathBuf,
    /// What to write
    #[arg(long, value_enum, default_value = "json-lines", env = "AEIR_TO")]
    pub(crate) to: TargetFormat,
    /// With `webdataset`: items an archive
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = super::at_least_one, env = "AEIR_PER_SHARD")]
    pub(crate) per_shard: usize,
    #[command(flatten)]
    pub(crate) writing: WritingFlags,
    #[command(flatten)]
    pub(crate) reading: ReadingFlags,
    #[command(flatten)]
    pub(crate) loading: LoadingFlags,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum TargetFormat {
    /// `captions.jsonl` with `images/`
    JsonLines,
    /// `SPLIT-000000.tar`
    #[value(name = "webdataset")]
    WebDataset,
}

#[derive(Args)]
#[command(after_help = UNPAIR_EXAMPLES)]
pub(crate) struct UnpairFlags {
    /// A data set, in any format that `train --source` takes
    #[arg(value_name = "PATH")]
    pub(crate) path: PathBuf,
    /// Decides the two orders
    #[arg(long, value_name = "N", default_value_t = 1, env = "AEIR_SEED")]
    pub(crate) seed: u64,
    #[command(flatten)]
    pub(crate) writing: WritingFlags,
    #[command(flatten)]
    pub(crate) reading: ReadingFlags,
}

#[derive(Args)]
pub(crate) struct WritingFlags {
    /// Folder to write into: new or empty
    #[arg(long, short, value_name = "DIR", env = "AEIR_OUTPUT")]
    pub(crate) output: PathBuf,
    /// Print one JSON object
    #[arg(long, value_parser = FalseyValueParser::new(), env = "AEIR_JSON")]
    pub(crate) json: bool,
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if (0.0..1.0).contains(&share) => Ok(share),
        _ => Err("expected a number from 0 to below 1".to_owned()),
    }
}
