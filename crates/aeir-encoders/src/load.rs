//! A backbone from its folder.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use candle_core::Device;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::efficientnet::EfficientNet;
use crate::error::{EncoderError, Result};
use crate::image_backbone::ImageBackbone;
use crate::mapped_file::{FileBytes, MappedFile};
use crate::static_embedding::StaticEmbedding;
use crate::text::{TextTransformer, transformer_folder};
use crate::text_backbone::TextBackbone;
use crate::vision::VisionBackbone;

pub(crate) const CONFIG: &str = "config.json";
pub(crate) const IMAGE_ARCHITECTURES: &[&str] = &[
    EfficientNet::ARCHITECTURE,
    "clip",
    "clip_vision_model",
    "siglip",
    "siglip_vision_model",
    "vit",
    "dinov2",
    "dinov2_with_registers",
    "resnet",
    "convnext",
];
/// The largest published tokenizers have some 30 MB.
const MAX_TOKENIZER_BYTES: u64 = 128 << 20;
/// The longest published configurations name 21,000 classes, in about 1 MB.
const MAX_CONFIG_BYTES: u64 = 16 << 20;
pub(crate) const TEXT_ARCHITECTURES: &[&str] = &[
    StaticEmbedding::MODEL_TYPE,
    "bert",
    "distilbert",
    "xlm-roberta",
    "roberta",
    "modernbert",
    "clip",
    "clip_text_model",
    "siglip",
    "siglip_text_model",
];
/// How the class names in `architectures` begin, and the `model_type` that this means.
const CLASSES: &[(&str, &str)] = &[
    ("Bert", "bert"),
    ("DistilBert", "distilbert"),
    ("XLMRoberta", "xlm-roberta"),
    ("Roberta", "roberta"),
    ("ModernBert", "modernbert"),
    ("CLIPText", "clip_text_model"),
    ("CLIPVision", "clip_vision_model"),
    ("CLIP", "clip"),
    ("SiglipText", "siglip_text_model"),
    ("SiglipVision", "siglip_vision_model"),
    ("Siglip", "siglip"),
    ("ViT", "vit"),
    ("Dinov2WithRegisters", "dinov2_with_registers"),
    ("Dinov2", "dinov2"),
    ("ResNet", "resnet"),
    ("ConvNext", "convnext"),
];

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
        name if IMAGE_ARCHITECTURES.contains(&name) => Ok(Box::new(VisionBackbone::load(folder, device)?)),
        other => Err(unsupported(&folder.join(CONFIG), other, IMAGE_ARCHITECTURES)),
    }
}

/// Loads the sentence backbone of a folder; `architecture` or `model_type` in its `config.json` says which it is.
///
/// # Errors
/// As [`load_image_backbone`], and [`EncoderError::Tokenizer`] for a tokenizer that does not load.
pub fn load_text_backbone(folder: &Path, device: &Device) -> Result<Box<dyn TextBackbone>> {
    match architecture(&transformer_folder(folder)?)?.as_str() {
        StaticEmbedding::MODEL_TYPE => Ok(Box::new(StaticEmbedding::load(folder, device)?)),
        name if TEXT_ARCHITECTURES.contains(&name) => Ok(Box::new(TextTransformer::load(folder, device)?)),
        other => Err(unsupported(&folder.join(CONFIG), other, TEXT_ARCHITECTURES)),
    }
}

/// The architecture a folder's `config.json` names, or what stands there in its place.
fn architecture(folder: &Path) -> Result<String> {
    let file = folder.join(CONFIG);
    let config: Value = parse_json(&read_file(&file)?, &file)?;
    Ok(model_type(&config))
}

/// What a configuration names: `architecture`, `model_type`, or the first class in `architectures`.
pub(crate) fn model_type(config: &Value) -> String {
    match config.get("architecture").or_else(|| config.get("model_type")) {
        Some(Value::String(name)) => name.clone(),
        Some(other) => other.to_string(),
        None => {
            let class = config.pointer("/architectures/0").and_then(Value::as_str).unwrap_or("nothing");
            let known = CLASSES.iter().find(|(start, _)| class.starts_with(start));
            known.map_or(class, |(_, name)| name).to_owned()
        }
    }
}

pub(crate) fn unsupported(file: &Path, got: &str, supported: &'static [&'static str]) -> EncoderError {
    EncoderError::Unsupported {
        file: file.to_path_buf(),
        key: "architecture or model_type".to_owned(),
        got: got.to_owned(),
        supported,
    }
}

/// The bytes of one of a folder's files: weights mapped, others read.
///
/// # Errors
/// [`EncoderError::FileSize`] for a configuration or tokenizer larger than any: parsed it would take many times its size.
pub(crate) fn read_file(file: &Path) -> Result<FileBytes> {
    let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    if name.ends_with(".safetensors") {
        return MappedFile::open(file).map(FileBytes::Mapped);
    }
    let limit = if name == "tokenizer.json" { MAX_TOKENIZER_BYTES } else { MAX_CONFIG_BYTES };
    let mut bytes = Vec::new();
    let opened = File::open(file).map_err(EncoderError::read(file))?;
    opened.take(limit + 1).read_to_end(&mut bytes).map_err(EncoderError::read(file))?;
    if bytes.len() as u64 > limit {
        return Err(EncoderError::FileSize { file: file.to_path_buf(), expected: limit });
    }
    Ok(FileBytes::Read(bytes))
}

pub(crate) fn parse_json<T: DeserializeOwned>(bytes: &[u8], file: &Path) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|source| EncoderError::Json { file: file.to_path_buf(), source })
}
