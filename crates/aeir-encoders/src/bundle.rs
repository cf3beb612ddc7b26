//! A trained model as one folder.
//!
//! ```text
//! MODEL/
//!   manifest.json        format, version, sizes, fingerprint, hashes; written last
//!   model.safetensors    projections, temperature, statistics of each domain
//!   encoders/image/      the frozen image backbone, as its files came
//!   encoders/sentence/   the frozen sentence backbone
//! ```
//!
//! A folder without its manifest is not a model: training that was cut off never passes for one.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use image::DynamicImage;
use serde::{Deserialize, Serialize};

use crate::fingerprint::{sha256_file, sha256_parts};
use crate::{
    DualEncoder, DualEncoderConfig, EncoderError, ImageBackbone, Mode, Standardisation, TextBackbone,
    load_image_backbone, load_text_backbone, write_atomically,
};

/// Name of the file that makes a folder a model.
pub const MANIFEST_FILE: &str = "manifest.json";
/// Name of the file with all trained tensors.
pub const WEIGHTS_FILE: &str = "model.safetensors";
const FORMAT: &str = "aeir-model";
const VERSION: u32 = 1;

/// What a bundle says of itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Manifest {
    format: String,
    version: u32,
    created_by: String,
    /// Identity of the model: weights, backbones with their preprocessing and tokenizer, statistics, head.
    pub fingerprint: String,
    /// Name of the method that trained it.
    pub method: String,
    /// The similarity head; `cosine` can be indexed.
    pub similarity_head: String,
    /// The domain whose statistics new items get.
    pub serving_domain: String,
    /// Sizes of the towers.
    pub encoder: DualEncoderConfig,
    /// The image backbone.
    pub image_backbone: BackboneReference,
    /// The sentence backbone.
    pub sentence_backbone: BackboneReference,
    /// The weights file.
    pub weights: FileRecord,
}

/// Where a backbone lies and which one it has to be.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BackboneReference {
    /// Folder, relative to the bundle.
    pub folder: String,
    /// Its fingerprint.
    pub fingerprint: String,
}

/// Length and hash of a file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FileRecord {
    /// Length in bytes.
    pub bytes: u64,
    /// SHA-256, lower-case hexadecimal.
    pub sha256: String,
}

/// Where [`save`] puts the backbones.
#[derive(Debug, Clone, Copy)]
pub enum BackbonePlacement<'a> {
    /// Copied into the bundle, which can then be moved alone.
    Copied,
    /// In `DIR/image` and `DIR/sentence`, where [`copy_backbones`] put them; DIR is relative to the bundle. For several
    /// bundles side by side.
    Shared(&'a str),
}

/// What [`save`] writes.
pub struct BundleParts<'a> {
    /// Name of the method that trained it.
    pub method: &'a str,
    /// Sizes of the towers.
    pub encoder: DualEncoderConfig,
    /// The towers' parameters by name.
    pub parameters: &'a BTreeMap<String, Tensor>,
    /// Statistics of each domain.
    pub standardisation: &'a Standardisation,
    /// The frozen image backbone.
    pub image_backbone: &'a dyn ImageBackbone,
    /// The frozen sentence backbone.
    pub sentence_backbone: &'a dyn TextBackbone,
    /// Where the backbones go.
    pub backbones: BackbonePlacement<'a>,
}

/// Writes a bundle into `folder`, the manifest last.
///
/// # Errors
/// When a file can't be written. Without a manifest in `folder` nothing there is taken for a model.
pub fn save(folder: &Path, parts: &BundleParts<'_>) -> Result<Manifest, EncoderError> {
    let reference = |modality: &str, fingerprint: &str| BackboneReference {
        folder: match parts.backbones {
            BackbonePlacement::Copied => format!("encoders/{modality}"),
            BackbonePlacement::Shared(shared) => format!("{shared}/{modality}"),
        },
        fingerprint: fingerprint.to_owned(),
    };
    if let BackbonePlacement::Copied = parts.backbones {
        copy_backbones(&folder.join("encoders"), parts.image_backbone, parts.sentence_backbone)?;
    }
    let mut tensors = parts.parameters.clone();
    tensors.extend(parts.standardisation.tensors());
    let path = folder.join(WEIGHTS_FILE);
    let bytes = tensor_bytes(&tensors)?;
    write_atomically(&path, &bytes).map_err(EncoderError::write(&path))?;

    let mut manifest = Manifest {
        format: FORMAT.into(),
        version: VERSION,
        created_by: concat!("aeir ", env!("CARGO_PKG_VERSION")).into(),
        fingerprint: String::new(),
        method: parts.method.into(),
        similarity_head: "cosine".into(),
        serving_domain: parts.standardisation.serving().into(),
        encoder: parts.encoder,
        image_backbone: reference("image", parts.image_backbone.fingerprint()),
        sentence_backbone: reference("sentence", parts.sentence_backbone.fingerprint()),
        weights: FileRecord {
            bytes: bytes.len() as u64,
            sha256: sha256_file(&path).map_err(EncoderError::read(&path))?,
        },
    };
    manifest.fingerprint = manifest.computed_fingerprint();
    manifest.write(folder)?;
    Ok(manifest)
}

/// Copies both backbones into `folder/image` and `folder/sentence`.
///
/// # Errors
/// When a file can't be read or written.
pub fn copy_backbones(
    folder: &Path,
    image: &dyn ImageBackbone,
    sentence: &dyn TextBackbone,
) -> Result<(), EncoderError> {
    for (modality, files) in [("image", image.files()), ("sentence", sentence.files())] {
        let target = folder.join(modality);
        fs::create_dir_all(&target).map_err(EncoderError::write(&target))?;
        for file in files {
            let bytes = fs::read(file).map_err(EncoderError::read(file))?;
            let copy = target.join(file.file_name().unwrap_or_default());
            write_atomically(&copy, &bytes).map_err(EncoderError::write(&copy))?;
        }
    }
    Ok(())
}

/// The bytes of a safetensors file. The same tensors give the same bytes.
///
/// # Errors
/// When a tensor can't be read from its device.
pub fn tensor_bytes(tensors: &BTreeMap<String, Tensor>) -> Result<Vec<u8>, EncoderError> {
    safetensors::serialize(tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)), None)
        .map_err(|source| EncoderError::Safetensors { file: PathBuf::from(WEIGHTS_FILE), source })
}

impl Manifest {
    fn computed_fingerprint(&self) -> String {
        let DualEncoderConfig { image_dimension, sentence_dimension, embedding_dimension, input_dropout: _ } =
            self.encoder;
        let sizes = format!("{image_dimension} {sentence_dimension} {embedding_dimension}");
        sha256_parts([
            ("sizes", sizes.as_bytes()),
            ("image", self.image_backbone.fingerprint.as_bytes()),
            ("sentence", self.sentence_backbone.fingerprint.as_bytes()),
            ("weights", self.weights.sha256.as_bytes()),
            ("head", self.similarity_head.as_bytes()),
            ("domain", self.serving_domain.as_bytes()),
        ])
    }

    fn write(&self, folder: &Path) -> Result<(), EncoderError> {
        let path = folder.join(MANIFEST_FILE);
        let text = serde_json::to_vec_pretty(self)
            .map_err(|source| EncoderError::Json { file: path.clone(), source })?;
        write_atomically(&path, &text).map_err(EncoderError::write(&path))
    }

    /// Reads and checks the manifest of a bundle.
    ///
    /// # Errors
    /// When there is none, or it is of another format or version.
    pub fn read(folder: &Path) -> Result<Self, EncoderError> {
        let path = folder.join(MANIFEST_FILE);
        let refuse = |reason: String| EncoderError::Bundle { folder: folder.to_owned(), reason };
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(refuse(if folder.is_dir() {
                    format!("no `{MANIFEST_FILE}` in it: not a model, or its training did not finish")
                } else {
                    "no such folder".into()
                }));
            }
            Err(error) => return Err(EncoderError::read(&path)(error)),
        };
        #[derive(Deserialize)]
        struct Head {
            format: String,
            version: u32,
        }
        let head: Head = serde_json::from_slice(&bytes)
            .map_err(|source| EncoderError::Json { file: path.clone(), source })?;
        if head.format != FORMAT {
            return Err(refuse(format!("expected format `{FORMAT}`, got `{}`", head.format)));
        }
        if head.version != VERSION {
            return Err(refuse(format!(
                "expected model format version {VERSION}, got {}: train it again with this version",
                head.version
            )));
        }
        serde_json::from_slice(&bytes).map_err(|source| EncoderError::Json { file: path, source })
    }
}

/// A trained model, ready to embed.
pub struct Bundle {
    folder: PathBuf,
    manifest: Manifest,
    image_backbone: Box<dyn ImageBackbone>,
    sentence_backbone: Box<dyn TextBackbone>,
    encoder: DualEncoder,
    standardisation: Standardisation,
    device: Device,
}

impl Bundle {
    /// Loads a bundle and checks its files against the manifest.
    ///
    /// # Errors
    /// When a file is missing, damaged or of another version, or a backbone is not the one it was trained with.
    pub fn load(folder: &Path, device: &Device) -> Result<Self, EncoderError> {
        let manifest = Manifest::read(folder)?;
        let refuse = |reason: String| EncoderError::Bundle { folder: folder.to_owned(), reason };
        let path = folder.join(WEIGHTS_FILE);
        let bytes = fs::read(&path).map_err(EncoderError::read(&path))?;
        let sha256 = sha256_file(&path).map_err(EncoderError::read(&path))?;
        let found = FileRecord { bytes: bytes.len() as u64, sha256 };
        if found != manifest.weights {
            return Err(refuse(format!(
                "`{WEIGHTS_FILE}` is damaged: expected {} bytes with SHA-256 {}, got {} with {}",
                manifest.weights.bytes, manifest.weights.sha256, found.bytes, found.sha256
            )));
        }
        if manifest.fingerprint != manifest.computed_fingerprint() {
            return Err(refuse(format!("`{MANIFEST_FILE}` was changed: its fingerprint does not fit")));
        }
        let tensors: BTreeMap<String, Tensor> =
            candle_core::safetensors::load_buffer(&bytes, device)?.into_iter().collect();
        let standardisation = Standardisation::from_tensors(&tensors, &manifest.serving_domain, &path)?;
        let builder = VarBuilder::from_tensors(tensors.into_iter().collect(), DType::F32, device);
        // The temperature is read from the file: the initial one given here is not used.
        let encoder = DualEncoder::new(manifest.encoder, 1.0, builder)?;

        let image_folder = folder.join(&manifest.image_backbone.folder);
        let sentence_folder = folder.join(&manifest.sentence_backbone.folder);
        let image_backbone = load_image_backbone(&image_folder, device)?;
        let sentence_backbone = load_text_backbone(&sentence_folder, device)?;
        for (place, reference, found) in [
            (&image_folder, &manifest.image_backbone, image_backbone.fingerprint()),
            (&sentence_folder, &manifest.sentence_backbone, sentence_backbone.fingerprint()),
        ] {
            if reference.fingerprint != found {
                return Err(refuse(format!(
                    "the encoder in `{}` is not the one this model was trained with: expected fingerprint {}, got {found}",
                    place.display(),
                    reference.fingerprint
                )));
            }
        }
        Ok(Self {
            folder: folder.to_owned(),
            manifest,
            image_backbone,
            sentence_backbone,
            encoder,
            standardisation,
            device: device.clone(),
        })
    }

    /// What the bundle says of itself.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Identity of the model.
    pub fn fingerprint(&self) -> &str {
        &self.manifest.fingerprint
    }

    /// D of its embeddings.
    pub fn dimension(&self) -> usize {
        self.manifest.encoder.embedding_dimension
    }

    /// The device it computes on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The frozen image backbone.
    pub fn image_backbone(&self) -> &dyn ImageBackbone {
        self.image_backbone.as_ref()
    }

    /// The frozen sentence backbone.
    pub fn sentence_backbone(&self) -> &dyn TextBackbone {
        self.sentence_backbone.as_ref()
    }

    /// Decoded images to unit vectors `[B, D]`.
    ///
    /// # Errors
    /// When preprocessing or the network fails.
    pub fn embed_images(&self, images: &[DynamicImage]) -> Result<Tensor, EncoderError> {
        self.embed_image_features(&self.image_backbone.encode(images)?)
    }

    /// Sentences to unit vectors `[B, D]`.
    ///
    /// # Errors
    /// When tokenising or the network fails.
    pub fn embed_sentences(&self, sentences: &[&str]) -> Result<Tensor, EncoderError> {
        self.embed_sentence_features(&self.sentence_backbone.encode(sentences)?)
    }

    /// Image backbone features `[B, F]` to unit vectors `[B, D]`.
    ///
    /// # Errors
    /// When F differs from the backbone's.
    pub fn embed_image_features(&self, features: &Tensor) -> Result<Tensor, EncoderError> {
        let statistics = self.standardisation.domain(&self.manifest.serving_domain)?;
        self.encoder.embed_images(&statistics.image.apply(features)?, &mut Mode::Evaluation)
    }

    /// Sentence backbone features `[B, F]` to unit vectors `[B, D]`.
    ///
    /// # Errors
    /// When F differs from the backbone's.
    pub fn embed_sentence_features(&self, features: &Tensor) -> Result<Tensor, EncoderError> {
        let statistics = self.standardisation.domain(&self.manifest.serving_domain)?;
        self.encoder.embed_sentences(&statistics.sentence.apply(features)?, &mut Mode::Evaluation)
    }

    /// Writes a whole copy with its backbones into `folder`, which must exist.
    ///
    /// # Errors
    /// When a file can't be read or written.
    pub fn copy_to(&self, folder: &Path) -> Result<(), EncoderError> {
        copy_backbones(&folder.join("encoders"), self.image_backbone(), self.sentence_backbone())?;
        let (from, to) = (self.folder.join(WEIGHTS_FILE), folder.join(WEIGHTS_FILE));
        let bytes = fs::read(&from).map_err(EncoderError::read(&from))?;
        write_atomically(&to, &bytes).map_err(EncoderError::write(&to))?;
        let mut manifest = self.manifest.clone();
        manifest.image_backbone.folder = "encoders/image".into();
        manifest.sentence_backbone.folder = "encoders/sentence".into();
        manifest.write(folder)
    }
}
