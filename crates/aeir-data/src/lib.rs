#![doc = include_str!("../README.md")]
#![allow(
    clippy::mutable_key_type,
    reason = "places in one Parquet file share its readers, which neither hash nor equality look at"
)]

mod cache;
mod check;
mod containers;
mod dataset;
mod decode;
mod domains;
mod durable;
#[cfg(feature = "parquet")]
mod embedding_writer;
mod error;
mod export;
mod feature_table;
mod formats;
mod hash;
mod image_source;
mod labelled;
mod lines;
mod loader;
mod npy;
mod region_features;
mod sampler;
mod sentence;
mod skipped;
mod split;

pub use cache::{CacheEntry, FeatureCache, Features, Precision, Pruned, list, prune};
pub use check::{CheckReport, Finding, PartReport, Spread, check};
pub use containers::Containers;
pub use dataset::{Columns, Dataset, Format, Item, ReadOptions};
pub use decode::{DecodedImage, ImageLimits, decode_bytes, decode_file};
pub use domains::{AlignedTarget, CaptionedImage, ParallelDomain, TargetImages, TargetSentences, TestPairs};
#[cfg(feature = "parquet")]
pub use embedding_writer::{EmbeddingColumns, EmbeddingName, EmbeddingWriter};
pub use error::DataError;
pub use export::{Exported, Shares, write_json_lines, write_splits, write_unpaired, write_webdataset};
pub use formats::folder::IMAGE_SUFFIXES;
#[cfg(feature = "parquet")]
pub use formats::parquet::ParquetCell;
pub use hash::{ContentHash, hash_bytes, hash_file, hash_text};
pub use image_source::{FeatureRow, FilePart, ImageSource};
pub use labelled::LabelledPairs;
pub use loader::{LoadOptions, Prepared, for_each_prepared_batch};
pub use npy::FeatureArray;
pub use region_features::RegionFeatures;
pub use sampler::{EpochLength, ShuffledSampler};
pub use sentence::MAX_SENTENCE_CHARACTERS;
pub use skipped::{Skipped, write_skipped};
pub use split::Split;
