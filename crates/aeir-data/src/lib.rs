#![doc = include_str!("../README.md")]

mod cache;
mod dataset;
mod decode;
mod domains;
mod durable;
mod error;
mod formats;
mod hash;
mod image_source;
mod lines;
mod loader;
mod npy;
mod region_features;
mod sampler;
mod sentence;
mod skipped;
mod split;

pub use cache::{CacheEntry, FeatureCache, Features, Precision, Pruned, list, prune};
pub use dataset::{Dataset, Format, Item, ReadOptions};
pub use decode::{DecodedImage, ImageLimits, decode_bytes, decode_file};
pub use domains::{AlignedTarget, CaptionedImage, ParallelDomain, TargetImages, TargetSentences, TestPairs};
pub use error::DataError;
pub use formats::folder::IMAGE_SUFFIXES;
pub use hash::{ContentHash, hash_bytes, hash_file, hash_text};
pub use image_source::{FeatureRow, FilePart, ImageSource};
pub use loader::{for_each_batch, for_each_prepared_batch};
pub use npy::FeatureArray;
pub use region_features::{
    CaptionedRegions, RegionDomain, RegionFeatures, RegionItem, RegionTestPairs, TargetRegions,
    is_region_folder,
};
pub use sampler::ShuffledSampler;
pub use sentence::MAX_SENTENCE_CHARACTERS;
pub use skipped::{Skipped, write_skipped};
pub use split::Split;
