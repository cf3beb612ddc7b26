#![doc = include_str!("../README.md")]

pub mod atomic_file;
pub mod batch_norm;
pub mod bundle;
pub mod dropout;
pub mod efficientnet;
pub mod error;
pub mod fingerprint;
pub mod fragments;
pub mod heads;
pub mod image_backbone;
pub mod items;
pub mod load;
pub mod mode;
pub mod normalise;
pub mod ops;
pub mod preprocess;
pub mod projection;
pub mod standardise;
pub mod static_embedding;
pub mod text_backbone;
pub mod tokenise_words;
pub mod tower;
pub mod vocabulary;
pub mod word_encoder;

mod affine;
mod depthwise;
mod gru;
mod lanes;
mod pointwise;
mod product;
mod recurrence;
mod resample;
mod weights;

pub use atomic_file::write_atomically;
pub use batch_norm::BatchNorm;
pub use bundle::*;
pub use dropout::dropout;
pub use efficientnet::EfficientNet;
pub use error::{EncoderError, Result};
pub use fragments::Fragments;
pub use heads::{
    HeadConfig, HeadKind, ReleasedName, ScanConfig, ScanPooling, ShardSize, SimilarityHead, released_names,
};
pub use image_backbone::ImageBackbone;
pub use items::{Embedded, Encoded, Items};
pub use load::{load_image_backbone, load_text_backbone};
pub use mode::Mode;
pub use normalise::{UnitNorm, l2_normalise, l2_normalise_released};
pub use preprocess::{ImagePreprocessor, PreprocessorConfig};
pub use projection::Projection;
pub use standardise::{DomainStatistics, Standardisation, Standardiser};
pub use static_embedding::StaticEmbedding;
pub use text_backbone::TextBackbone;
pub use tokenise_words::tokenise_words;
pub use tower::{DualEncoder, DualEncoderConfig, Head, HeadOptions, ImageInput, SentenceInput, WordOptions};
pub use vocabulary::{Coverage, DEFAULT_MAXIMUM_LENGTH, DEFAULT_MINIMUM_COUNT, VOCABULARY_FILE, Vocabulary};
pub use word_encoder::{RELEASED_PARAMETER_NAMES, WordBatch, WordEncoder, WordEncoderConfig};
