#![doc = include_str!("../README.md")]

pub mod atomic_file;
pub mod bundle;
pub mod dropout;
pub mod efficientnet;
pub mod error;
pub mod fingerprint;
pub mod fragments;
pub mod image_backbone;
pub mod load;
pub mod mode;
pub mod normalise;
pub mod preprocess;
pub mod projection;
pub mod standardise;
pub mod static_embedding;
pub mod text_backbone;
pub mod tower;

mod depthwise;
mod pointwise;
mod resample;
mod weights;

pub use atomic_file::write_atomically;
pub use bundle::*;
pub use dropout::dropout;
pub use efficientnet::EfficientNet;
pub use error::{EncoderError, Result};
pub use fragments::Fragments;
pub use image_backbone::ImageBackbone;
pub use load::{load_image_backbone, load_text_backbone};
pub use mode::Mode;
pub use normalise::l2_normalise;
pub use preprocess::{ImagePreprocessor, PreprocessorConfig};
pub use projection::Projection;
pub use standardise::{DomainStatistics, Standardisation, Standardiser};
pub use static_embedding::StaticEmbedding;
pub use text_backbone::TextBackbone;
pub use tower::{DualEncoder, DualEncoderConfig};
