//! A backbone from its folder.

use std::path::Path;

use candle_core::Device;
use serde::de::DeserializeOwned;

use crate::efficientnet::EfficientNet;
use crate::error::{EncoderError, Result};
use crate::image_backbone::ImageBackbone;
use crate::static_embedding::StaticEmbedding;
use crate::text_backbone::TextBackbone;

const CONFIG: &str = "config.json";
const IMAGE_ARCHITECTURES: &[&str] = &[EfficientNet::ARCHITECTURE];
const TEXT_ARCHITECTURES: &[&str] = &[StaticEmbedding::MODEL_TYPE];

/// Loads the image backbone of a folder; `architecture` or `model_type` in its `config.json` says which it is.
///
/// # Errors
/// [`EncoderError::Unsupported`] for another architecture, with those that there are; [`EncoderError::MissingFile`],
/// [`EncoderError::Read`], [`EncoderError::Json`] and [`EncoderError::Config`] about the folder's files;
/// [`EncoderError::Safetensors`], [`EncoderError::MissingTensor`], [`EncoderError::TensorShape`],
/// [`EncoderError::TensorType`] and [`EncoderError::TensorValue`] about the weights.
pub fn load_image_backbone(folder: &Path, device: &Device) -> Result<Box<dyn ImageBackbone>> {
    match architecture(folder)?.as_str() {
        EfficientNet::ARCHITECTURE => Ok(Box::new(EfficientNet::load(folder, device)?)),
        other => Err(unsupported(folder, other, IMAGE_ARCHITECTURES)),
    }
}

/// Loads the sentence backbone of a folder; `architecture` or `model_type` in its `config.json` says which it is.
///
/// # Errors
/// As [`load_image_backbone`], and [`EncoderError::Tokenizer`] for a tokenizer that does not load.
pub fn load_text_backbone(folder: &Path, device: &Device) -> Result<Box<dyn TextBackbone>> {
    match architecture(folder)?.as_str() {
        StaticEmbedding::MODEL_TYPE => Ok(Box::new(StaticEmbedding::load(folder, device)?)),
        other => Err(unsupported(folder, other, TEXT_ARCHITECTURES)),
    }
}

/// The architecture a folder's `config.json` names, or what stands there in its place.
fn architecture(folder: &Path) -> Result<String> {
    let file = folder.join(CONFIG);
    let config: serde_json::Value = parse_json(&read_file(&file)?, &file)?;
    let named = config.get("architecture").or_else(|| config.get("model_type"));
    Ok(match named {
        Some(serde_json::Value::String(name)) => name.clone(),
        Some(other) => other.to_string(),
        None => "nothing".to_owned(),
    })
}

fn unsupported(folder: &Path, got: &str, supported: &'static [&'static str]) -> EncoderError {
    EncoderError::Unsupported {
        file: folder.join(CONFIG),
        key: "architecture or model_type".to_owned(),
        got: got.to_owned(),
        supported,
    }
}

pub(crate) fn read_file(file: &Path) -> Result<Vec<u8>> {
    std::fs::read(file).map_err(EncoderError::read(file))
}

pub(crate) fn parse_json<T: DeserializeOwned>(bytes: &[u8], file: &Path) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|source| EncoderError::Json { file: file.to_path_buf(), source })
}
