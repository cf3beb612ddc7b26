#![doc = include_str!("../README.md")]

mod cache;
mod captions;
mod decode;
mod domains;
mod durable;
mod error;
mod hash;
mod lines;
mod loader;
mod npy;
mod region_features;
mod sampler;
mod skipped;

pub use cache::{CacheEntry, FeatureCache, Features, Precision, Pruned, list, prune};
pub use captions::{CaptionFile, CaptionedImage, MAX_SENTENCE_CHARACTERS, Split, read_captions};
pub use decode::{DecodedImage, ImageLimits, decode_bytes, decode_file};
pub use domains::{AlignedTarget, IMAGE_SUFFIXES, ParallelDomain, TargetImages, TargetSentences, TestPairs};
pub use error::DataError;
pub use hash::{ContentHash, hash_bytes, hash_file, hash_text};
pub use loader::{for_each_batch, for_each_prepared_batch};
pub use npy::FeatureArray;
pub use region_features::{
    CaptionedRegions, RegionDomain, RegionFeatures, RegionItem, RegionTestPairs, TargetRegions,
    is_region_folder,
};
pub use sampler::ShuffledSampler;
pub use skipped::{Skipped, write_skipped};
