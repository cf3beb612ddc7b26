//! A trained model as one folder.
//!
//! ```text
//! MODEL/
//!   manifest.json        format, version, sizes, fingerprint, hashes; written last
//!   model.safetensors    towers, head, temperature, statistics of each domain
//!   encoders/image/      the frozen image backbone, as its files came
//!   encoders/sentence/   the frozen sentence backbone
//!   vocabulary.json      the words, where the sentence tower was trained on words
//! ```
//!
//! A model of region features has no image backbone: its images come as features.
//!
//! A folder of CLIP or SigLIP is a model as it is: [`Bundle::load`] takes it for one that was not trained any further
//! ([`ZERO_SHOT`]).
//!
//! A folder without its manifest is not a model: training that was cut off never passes for one.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use image::DynamicImage;
use serde::{Deserialize, Serialize};

use crate::contrastive::{self, LogitScale, check_dimensions};
use crate::fingerprint::{sha256_bytes, sha256_file, sha256_parts};
use crate::load::read_file;
use crate::{
    DualEncoder, DualEncoderConfig, Encoded, EncoderError, ImageBackbone, ImageInput, Items, Mode,
    PreparedImage, SentenceInput, Standardisation, TextBackbone, VOCABULARY_FILE, Vocabulary, WordBatch,
    load_image_backbone, load_text_backbone, write_atomically,
};

/// Name of the file that makes a folder a model.
pub const MANIFEST_FILE: &str = "manifest.json";
/// Name of the file with all trained tensors.
pub const WEIGHTS_FILE: &str = "model.safetensors";
/// The method's name of a model that nothing trained beyond its pre-training.
pub const ZERO_SHOT: &str = "zero-shot";
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
    /// The similarity head; every model's pooled vectors can be indexed, other heads than `cosine` re-rank.
    pub similarity_head: String,
    /// The domain whose statistics new items get.
    pub serving_domain: String,
    /// Sizes of the towers.
    pub encoder: DualEncoderConfig,
    /// The image backbone; none where images come as features.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_backbone: Option<BackboneReference>,
    /// The sentence backbone; none where the sentence tower reads words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sentence_backbone: Option<BackboneReference>,
    /// The words' file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vocabulary: Option<FileRecord>,
    /// The weights file.
    pub weights: FileRecord,
    /// SHA-256 of all of the above: what no fingerprint covers, such as the method's name, is not changed unnoticed either.
    checksum: String,
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
    /// The frozen image backbone, if there is one.
    pub image_backbone: Option<&'a dyn ImageBackbone>,
    /// The frozen sentence backbone, if there is one.
    pub sentence_backbone: Option<&'a dyn TextBackbone>,
    /// The words of the sentence tower, if it reads words.
    pub vocabulary: Option<&'a Vocabulary>,
    /// Where the backbones go.
    pub backbones: BackbonePlacement<'a>,
}

/// Writes a bundle into `folder`, the manifest last.
///
/// # Errors
/// When a file can't be written. Without a manifest in `folder` nothing there is taken for a model.
pub fn save(folder: &Path, parts: &BundleParts<'_>) -> Result<Manifest, EncoderError> {
    if let BackbonePlacement::Copied = parts.backbones {
        copy_backbones(&folder.join("encoders"), parts.image_backbone, parts.sentence_backbone)?;
    }
    let mut tensors = parts.parameters.clone();
    tensors.extend(parts.standardisation.tensors());
    let path = folder.join(WEIGHTS_FILE);
    let bytes = tensor_bytes(&tensors)?;
    write_atomically(&path, &bytes).map_err(EncoderError::write(&path))?;

    let vocabulary = parts
        .vocabulary
        .map(|vocabulary| {
            let path = folder.join(VOCABULARY_FILE);
            vocabulary.save(&path)?;
            FileRecord::of(&path)
        })
        .transpose()?;
    let manifest = Manifest::of(parts, FileRecord::of(&path)?, vocabulary);
    manifest.write(folder)?;
    Ok(manifest)
}

/// Copies the backbones into `folder/image` and `folder/sentence`.
///
/// # Errors
/// When a file can't be read or written.
pub fn copy_backbones(
    folder: &Path,
    image: Option<&dyn ImageBackbone>,
    sentence: Option<&dyn TextBackbone>,
) -> Result<(), EncoderError> {
    let parts = [("image", image.map(ImageBackbone::files)), ("sentence", sentence.map(TextBackbone::files))];
    for (modality, files) in parts.into_iter().filter_map(|(modality, files)| Some((modality, files?))) {
        let target = folder.join(modality);
        fs::create_dir_all(&target).map_err(EncoderError::write(&target))?;
        let root = files.first().and_then(|file| file.parent()).unwrap_or(Path::new(""));
        for file in files {
            let bytes = fs::read(file).map_err(EncoderError::read(file))?;
            let within = file.strip_prefix(root).map_err(|_| EncoderError::Argument {
                what: "file of a backbone",
                expected: format!("a file below `{}`", root.display()),
                got: file.display().to_string(),
            })?;
            let copy = target.join(within);
            if let Some(folder) = copy.parent() {
                fs::create_dir_all(folder).map_err(EncoderError::write(folder))?;
            }
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

impl FileRecord {
    fn of(path: &Path) -> Result<Self, EncoderError> {
        let bytes = fs::metadata(path).map_err(EncoderError::read(path))?.len();
        Ok(Self { bytes, sha256: sha256_file(path).map_err(EncoderError::read(path))? })
    }

    /// Nothing, or what differs in the file that lies there.
    fn difference(&self, folder: &Path, name: &str) -> Result<Option<String>, EncoderError> {
        let found = Self::of(&folder.join(name))?;
        Ok((found != *self).then(|| {
            format!(
                "`{name}` is damaged: expected {} bytes with SHA-256 {}, got {} with {}",
                self.bytes, self.sha256, found.bytes, found.sha256
            )
        }))
    }
}

impl Manifest {
    /// The manifest of these parts.
    fn of(parts: &BundleParts<'_>, weights: FileRecord, vocabulary: Option<FileRecord>) -> Self {
        let reference = |modality: &str, fingerprint: Option<&str>| {
            let folder = match parts.backbones {
                BackbonePlacement::Copied => format!("encoders/{modality}"),
                BackbonePlacement::Shared(shared) => format!("{shared}/{modality}"),
            };
            fingerprint.map(|fingerprint| BackboneReference { folder, fingerprint: fingerprint.to_owned() })
        };
        let mut manifest = Self {
            format: FORMAT.into(),
            version: VERSION,
            created_by: concat!("aeir ", env!("CARGO_PKG_VERSION")).into(),
            fingerprint: String::new(),
            method: parts.method.into(),
            similarity_head: parts.encoder.head.as_str().into(),
            serving_domain: parts.standardisation.serving().into(),
            encoder: parts.encoder,
            image_backbone: reference("image", parts.image_backbone.map(ImageBackbone::fingerprint)),
            sentence_backbone: reference("sentence", parts.sentence_backbone.map(TextBackbone::fingerprint)),
            vocabulary,
            weights,
            checksum: String::new(),
        };
        manifest.fingerprint = manifest.computed_fingerprint();
        manifest.checksum = manifest.computed_checksum();
        manifest
    }

    fn computed_fingerprint(&self) -> String {
        // Dropout plays no part in what a trained model computes.
        let mut config = self.encoder;
        config.input_dropout = 0.0;
        config.head_options.dropout = 0.0;
        let config = serde_json::to_vec(&config).unwrap_or_default();
        let backbone = |reference: &Option<BackboneReference>| {
            reference.as_ref().map_or_else(String::new, |reference| reference.fingerprint.clone())
        };
        let words = self.vocabulary.as_ref().map_or("", |file| file.sha256.as_str());
        sha256_parts([
            ("encoder", config.as_slice()),
            ("image", backbone(&self.image_backbone).as_bytes()),
            ("sentence", backbone(&self.sentence_backbone).as_bytes()),
            ("words", words.as_bytes()),
            ("weights", self.weights.sha256.as_bytes()),
            ("domain", self.serving_domain.as_bytes()),
        ])
    }

    fn computed_checksum(&self) -> String {
        let unsigned = Self { checksum: String::new(), ..self.clone() };
        let text = serde_json::to_vec(&unsigned).unwrap_or_default();
        sha256_parts([("manifest", text.as_slice())])
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
        let manifest: Self =
            serde_json::from_slice(&bytes).map_err(|source| EncoderError::Json { file: path, source })?;
        let expected = manifest.computed_checksum();
        if manifest.checksum != expected {
            return Err(refuse(format!(
                "`{MANIFEST_FILE}` was changed: expected checksum {expected}, got {}",
                manifest.checksum
            )));
        }
        Ok(manifest)
    }
}

/// Whether a folder holds a whole CLIP or SigLIP and no model of this project.
fn is_dual_encoder(folder: &Path) -> bool {
    !folder.join(MANIFEST_FILE).exists() && contrastive::kind(folder).is_ok()
}

/// Towers that leave unit vectors of length `dimension` as they are, with the scale that their scores were trained with.
///
/// # Errors
/// [`EncoderError::Tensor`] from candle.
pub fn identity_towers(dimension: usize, log_scale: f64) -> Result<BTreeMap<String, Tensor>, EncoderError> {
    let device = &Device::Cpu;
    let identity = Tensor::eye(dimension, DType::F32, device)?;
    let zero = Tensor::zeros(dimension, DType::F32, device)?;
    let mut towers = BTreeMap::from([("log_scale".to_owned(), Tensor::new(log_scale as f32, device)?)]);
    for modality in ["image", "sentence"] {
        towers.insert(format!("{modality}.projection.weight"), identity.clone());
        towers.insert(format!("{modality}.projection.bias"), zero.clone());
    }
    Ok(towers)
}

/// A trained model, ready to embed.
pub struct Bundle {
    folder: PathBuf,
    /// What the folder doesn't hold in the format of a model: that of a pre-trained dual encoder.
    parameters: Option<BTreeMap<String, Tensor>>,
    manifest: Manifest,
    image_backbone: Option<Box<dyn ImageBackbone>>,
    sentence_backbone: Option<Box<dyn TextBackbone>>,
    vocabulary: Option<Vocabulary>,
    encoder: DualEncoder,
    standardisation: Standardisation,
    device: Device,
}

impl Bundle {
    /// Loads a bundle and checks its files against the manifest; or a folder of CLIP or SigLIP as it was published, whose unit
    /// vectors are then compared as they are.
    ///
    /// # Errors
    /// When a file is missing, damaged or of another version, or a backbone is not the one it was trained with.
    pub fn load(folder: &Path, device: &Device) -> Result<Self, EncoderError> {
        if is_dual_encoder(folder) {
            return Self::zero_shot(folder, device);
        }
        let manifest = Manifest::read(folder)?;
        let refuse = |reason: String| EncoderError::Bundle { folder: folder.to_owned(), reason };
        let path = folder.join(WEIGHTS_FILE);
        if let Some(difference) = manifest.weights.difference(folder, WEIGHTS_FILE)? {
            return Err(refuse(difference));
        }
        if manifest.fingerprint != manifest.computed_fingerprint() {
            return Err(refuse(format!("`{MANIFEST_FILE}` was changed: its fingerprint does not fit")));
        }
        let bytes = read_file(&path)?;
        let tensors: BTreeMap<String, Tensor> =
            candle_core::safetensors::load_buffer(&bytes, device)?.into_iter().collect();
        let standardisation = Standardisation::from_tensors(&tensors, &manifest.serving_domain, &path)?;
        let builder = VarBuilder::from_tensors(tensors.into_iter().collect(), DType::F32, device);
        // The temperature is read from the file: the initial one given here is not used.
        let encoder = DualEncoder::new(manifest.encoder, 1.0, builder)?;

        let whole = |reference: &BackboneReference, found: &str| {
            if reference.fingerprint == found {
                return Ok(());
            }
            Err(refuse(format!(
                "the encoder in `{}` is not the one this model was trained with: expected fingerprint {}, got {found}",
                folder.join(&reference.folder).display(),
                reference.fingerprint
            )))
        };
        let image_backbone = match &manifest.image_backbone {
            None => None,
            Some(reference) => {
                let backbone = load_image_backbone(&folder.join(&reference.folder), device)?;
                whole(reference, backbone.fingerprint())?;
                Some(backbone)
            }
        };
        let sentence_backbone = match &manifest.sentence_backbone {
            None => None,
            Some(reference) => {
                let backbone = load_text_backbone(&folder.join(&reference.folder), device)?;
                whole(reference, backbone.fingerprint())?;
                Some(backbone)
            }
        };
        let vocabulary = match &manifest.vocabulary {
            None => None,
            Some(record) => {
                if let Some(difference) = record.difference(folder, VOCABULARY_FILE)? {
                    return Err(refuse(difference));
                }
                Some(Vocabulary::load(&folder.join(VOCABULARY_FILE))?)
            }
        };
        Ok(Self {
            folder: folder.to_owned(),
            parameters: None,
            manifest,
            image_backbone,
            sentence_backbone,
            vocabulary,
            encoder,
            standardisation,
            device: device.clone(),
        })
    }

    /// Both towers of a pre-trained dual encoder behind projections that change nothing.
    fn zero_shot(folder: &Path, device: &Device) -> Result<Self, EncoderError> {
        let image = load_image_backbone(folder, device)?;
        let sentence = load_text_backbone(folder, device)?;
        let (image_dimension, dimension) = (image.dimension(), sentence.dimension());
        check_dimensions(folder, image_dimension, dimension)?;
        let config = DualEncoderConfig::pooled(dimension, dimension, dimension);
        let parameters = identity_towers(dimension, LogitScale::load_from(folder, device)?.logarithm()?)?;
        let standardisation = Standardisation::new(
            BTreeMap::from([(ZERO_SHOT.to_owned(), crate::DomainStatistics::default())]),
            ZERO_SHOT,
        )?;
        let bytes = tensor_bytes(&parameters)?;
        let weights = FileRecord { bytes: bytes.len() as u64, sha256: sha256_bytes(&bytes) };
        let parts = BundleParts {
            method: ZERO_SHOT,
            encoder: config,
            parameters: &parameters,
            standardisation: &standardisation,
            image_backbone: Some(image.as_ref()),
            sentence_backbone: Some(sentence.as_ref()),
            vocabulary: None,
            backbones: BackbonePlacement::Copied,
        };
        let manifest = Manifest::of(&parts, weights, None);
        let tensors: HashMap<String, Tensor> = parameters.clone().into_iter().collect();
        let encoder = DualEncoder::new(config, 1.0, VarBuilder::from_tensors(tensors, DType::F32, device))?;
        Ok(Self {
            folder: folder.to_owned(),
            parameters: Some(parameters),
            manifest,
            image_backbone: Some(image),
            sentence_backbone: Some(sentence),
            vocabulary: None,
            encoder,
            standardisation,
            device: device.clone(),
        })
    }

    /// Whether this is a pre-trained dual encoder as it was published, in its own format.
    #[must_use]
    pub fn is_zero_shot(&self) -> bool {
        self.parameters.is_some()
    }

    /// Whether features are whitened before they reach the towers.
    #[must_use]
    pub fn whitens(&self) -> bool {
        let served = self.standardisation.domain(&self.manifest.serving_domain).ok();
        let whitens =
            |it: &Option<crate::Standardiser>| it.as_ref().is_some_and(|it| it.whitening().is_some());
        served.is_some_and(|statistics| whitens(&statistics.image) || whitens(&statistics.sentence))
    }

    /// What the bundle says of itself.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Identity of the model.
    pub fn fingerprint(&self) -> &str {
        &self.manifest.fingerprint
    }

    /// Length of its pooled vectors.
    pub fn dimension(&self) -> usize {
        self.manifest.encoder.pooled_dimension()
    }

    /// The device it computes on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The trained towers and their head.
    pub fn encoder(&self) -> &DualEncoder {
        &self.encoder
    }

    /// The frozen image backbone; none where images come as features.
    pub fn image_backbone(&self) -> Option<&dyn ImageBackbone> {
        self.image_backbone.as_deref()
    }

    /// The frozen sentence backbone; none where the sentence tower reads words.
    pub fn sentence_backbone(&self) -> Option<&dyn TextBackbone> {
        self.sentence_backbone.as_deref()
    }

    /// The words of the sentence tower, if it reads words.
    pub fn vocabulary(&self) -> Option<&Vocabulary> {
        self.vocabulary.as_ref()
    }

    /// Decoded images to features, as the towers take them but not standardised.
    ///
    /// # Errors
    /// When the model takes features instead of images, or preprocessing or the network fails.
    pub fn image_items(&self, images: &[DynamicImage]) -> Result<Items, EncoderError> {
        self.prepared_items(&self.encoder_of_images()?.preprocessor().prepare_all(images)?)
    }

    /// [`image_items`](Self::image_items) of images that the preprocessor of [`image_backbone`](Self::image_backbone) has prepared.
    ///
    /// # Errors
    /// As [`image_items`](Self::image_items).
    pub fn prepared_items(&self, images: &[PreparedImage]) -> Result<Items, EncoderError> {
        let backbone = self.encoder_of_images()?;
        Ok(match self.manifest.encoder.image_input {
            ImageInput::Pooled => Items::Pooled(backbone.encode_prepared(images)?),
            ImageInput::Fragments(_) => Items::Fragments(backbone.fragments_prepared(images)?),
        })
    }

    /// The image backbone of a model that takes images.
    ///
    /// # Errors
    /// When the model takes features instead.
    pub fn encoder_of_images(&self) -> Result<&dyn ImageBackbone, EncoderError> {
        self.image_backbone().ok_or_else(|| EncoderError::Argument {
            what: "images to embed",
            expected: "region features: this model has no image encoder".into(),
            got: "image files".into(),
        })
    }

    /// Sentences to features or words, as the towers take them but not standardised.
    ///
    /// # Errors
    /// When tokenising or the network fails.
    pub fn sentence_items(&self, sentences: &[&str]) -> Result<Items, EncoderError> {
        let missing = |what: &str| EncoderError::Bundle {
            folder: self.folder.clone(),
            reason: format!("it has no {what}"),
        };
        let backbone = || self.sentence_backbone.as_ref().ok_or_else(|| missing("sentence encoder"));
        Ok(match self.manifest.encoder.sentence_input {
            SentenceInput::Pooled => Items::Pooled(backbone()?.encode(sentences)?),
            SentenceInput::Fragments => Items::Fragments(backbone()?.fragments(sentences)?),
            SentenceInput::Words(_) => {
                let words = self.vocabulary.as_ref().ok_or_else(|| missing("vocabulary"))?;
                let ids: Vec<Vec<u32>> = sentences.iter().map(|sentence| words.ids(sentence)).collect();
                Items::Words(WordBatch::new(&ids, &self.device)?)
            }
        })
    }

    /// Images in the joint space, from features that are not standardised.
    ///
    /// # Errors
    /// When the features are not what the model takes.
    pub fn encode_images(&self, items: &Items) -> Result<Encoded, EncoderError> {
        let statistics = self.standardisation.domain(&self.manifest.serving_domain)?;
        self.encoder.encode_images(&statistics.standardise_images(items)?, &mut Mode::Evaluation)
    }

    /// Sentences in the joint space, from features that are not standardised, or words.
    ///
    /// # Errors
    /// When the features are not what the model takes.
    pub fn encode_sentences(&self, items: &Items) -> Result<Encoded, EncoderError> {
        let statistics = self.standardisation.domain(&self.manifest.serving_domain)?;
        self.encoder.encode_sentences(&statistics.standardise_sentences(items)?, &mut Mode::Evaluation)
    }

    /// Decoded images to unit vectors `[B, D]`.
    ///
    /// # Errors
    /// When preprocessing or the network fails.
    pub fn embed_images(&self, images: &[DynamicImage]) -> Result<Tensor, EncoderError> {
        self.encode_images(&self.image_items(images)?)?.pooled()
    }

    /// Sentences to unit vectors `[B, D]`.
    ///
    /// # Errors
    /// When tokenising or the network fails.
    pub fn embed_sentences(&self, sentences: &[&str]) -> Result<Tensor, EncoderError> {
        self.encode_sentences(&self.sentence_items(sentences)?)?.pooled()
    }

    /// Writes a whole copy with its backbones into `folder`, which must exist.
    ///
    /// # Errors
    /// When a file can't be read or written.
    pub fn copy_to(&self, folder: &Path) -> Result<(), EncoderError> {
        if let Some(parameters) = &self.parameters {
            let parts = BundleParts {
                method: &self.manifest.method,
                encoder: self.manifest.encoder,
                parameters,
                standardisation: &self.standardisation,
                image_backbone: self.image_backbone(),
                sentence_backbone: self.sentence_backbone(),
                vocabulary: None,
                backbones: BackbonePlacement::Copied,
            };
            return save(folder, &parts).map(drop);
        }
        copy_backbones(&folder.join("encoders"), self.image_backbone(), self.sentence_backbone())?;
        let words = self.vocabulary.as_ref().map(|_| VOCABULARY_FILE);
        for name in [WEIGHTS_FILE].into_iter().chain(words) {
            let (from, to) = (self.folder.join(name), folder.join(name));
            let bytes = fs::read(&from).map_err(EncoderError::read(&from))?;
            write_atomically(&to, &bytes).map_err(EncoderError::write(&to))?;
        }
        let mut manifest = self.manifest.clone();
        let place = |reference: &mut Option<BackboneReference>, folder: &str| {
            if let Some(reference) = reference {
                folder.clone_into(&mut reference.folder);
            }
        };
        place(&mut manifest.image_backbone, "encoders/image");
        place(&mut manifest.sentence_backbone, "encoders/sentence");
        manifest.checksum = manifest.computed_checksum();
        manifest.write(folder)
    }
}
