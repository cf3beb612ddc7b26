//! Pre-trained encoders that are trained together with the towers, as a whole or by low-rank adapters.
//!
//! Their items stay images and sentences: every batch is decoded and encoded anew, in training with the graph that leads to
//! the encoder's parameters.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use aeir_data::{ImageLimits, ImageSource};
use aeir_encoders::{
    EncoderError, FineTuning, ImageModel, ImagePreprocessor, LoraConfig, Mode, Parameters, SentenceTokenizer,
    TextModel,
};
use candle_core::{Device, Tensor, Var};
use rayon::prelude::*;

use crate::config::{BackboneConfig, Tuning};
use crate::error::{Result, TrainError};
use crate::items::FeatureTable;

/// Where Hugging Face's folders say how images are prepared.
const PREPROCESSOR_FILE: &str = "preprocessor_config.json";

/// A pre-trained encoder with its trained parameters.
pub struct TunedEncoder {
    network: Network,
    parameters: Parameters,
    /// What the parameters were when they were loaded.
    initial: BTreeMap<String, Tensor>,
}

enum Network {
    Images { model: ImageModel, preprocessor: ImagePreprocessor, limits: ImageLimits },
    Sentences { model: TextModel, tokenizer: Box<SentenceTokenizer> },
}

/// What is encoded.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Raw<'a> {
    Image(&'a ImageSource),
    Sentence(&'a str),
}

impl TunedEncoder {
    /// Loads the image encoder of a folder to train it as `config` says.
    ///
    /// # Errors
    /// When the folder has no image network that can be trained, or `config` does not fit it.
    pub fn images(
        folder: &Path,
        device: &Device,
        config: &BackboneConfig,
        seed: u64,
        limits: ImageLimits,
    ) -> Result<Self> {
        let loaded = ImageModel::load_trainable(folder, device, &plan(config, seed));
        let (model, parameters) = loaded.map_err(|error| can_not_train(error, IMAGE_NETWORKS))?;
        let preprocessor = ImagePreprocessor::from_hugging_face(&folder.join(PREPROCESSOR_FILE))?;
        Self::new(Network::Images { model, preprocessor, limits }, parameters)
    }

    /// Loads the sentence encoder of a folder to train it as `config` says.
    ///
    /// # Errors
    /// When the folder has no text network that can be trained, or `config` does not fit it.
    pub fn sentences(folder: &Path, device: &Device, config: &BackboneConfig, seed: u64) -> Result<Self> {
        let loaded = TextModel::load_trainable(folder, device, &plan(config, seed));
        let (model, parameters) = loaded.map_err(|error| can_not_train(error, TEXT_NETWORKS))?;
        let tokenizer = Box::new(SentenceTokenizer::load(folder)?);
        Self::new(Network::Sentences { model, tokenizer }, parameters)
    }

    fn new(network: Network, parameters: Parameters) -> Result<Self> {
        let copy =
            |(name, variable): (&String, &Var)| Ok((name.clone(), variable.as_detached_tensor().copy()?));
        let initial = parameters.variables().iter().map(copy).collect::<Result<_>>()?;
        Ok(Self { network, parameters, initial })
    }

    /// The trained parameters by name; a step of an optimiser changes what the encoder computes.
    pub fn variables(&self) -> &BTreeMap<String, Var> {
        self.parameters.variables()
    }

    /// Sets the parameters back to what they were when they were loaded.
    ///
    /// # Errors
    /// When a copy fails on the device.
    pub fn reset(&self) -> Result<()> {
        self.set(&self.initial)
    }

    /// Sets the parameters named in `values`.
    ///
    /// # Errors
    /// When a shape differs or a copy fails on the device.
    pub fn set(&self, values: &BTreeMap<String, Tensor>) -> Result<()> {
        for (name, variable) in self.variables() {
            if let Some(value) = values.get(name) {
                variable.set(value)?;
            }
        }
        Ok(())
    }

    /// Writes a folder that loads as the original one does, with the parameters as they are now; adapters are merged.
    ///
    /// # Errors
    /// When a file can't be read or written.
    pub fn save(&self, folder: &Path) -> Result<()> {
        Ok(self.parameters.save(folder)?)
    }

    /// `[B, F]`; without a graph unless in training.
    pub(crate) fn encode(&self, items: &[Raw<'_>], mode: &mut Mode<'_>) -> Result<Tensor> {
        let vectors = match &self.network {
            Network::Images { model, preprocessor, limits } => {
                let images = items
                    .par_iter()
                    .map(|item| match item {
                        Raw::Image(source) => Ok(source.decode(limits)?.image),
                        Raw::Sentence(_) => Err(wrong_kind("images", "sentences")),
                    })
                    .collect::<Result<Vec<_>>>()?;
                model.forward(&preprocessor.pixel_values(&images, model.device())?, mode)?
            }
            Network::Sentences { model, tokenizer } => {
                let sentences: Vec<&str> = items
                    .iter()
                    .map(|item| match item {
                        Raw::Sentence(sentence) => Ok(*sentence),
                        Raw::Image(_) => Err(wrong_kind("sentences", "images")),
                    })
                    .collect::<Result<_>>()?;
                model.forward(&tokenizer.batch(&sentences)?, mode)?
            }
        };
        Ok(if mode.is_training() { vectors } else { vectors.detach() })
    }
}

impl std::fmt::Debug for TunedEncoder {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = match self.network {
            Network::Images { .. } => "images",
            Network::Sentences { .. } => "sentences",
        };
        formatter.debug_struct("TunedEncoder").field("of", &kind).finish_non_exhaustive()
    }
}

/// What passes gradients, in the words of an error.
const IMAGE_NETWORKS: &str = "clip, siglip, vit, dinov2, resnet or convnext";
const TEXT_NETWORKS: &str = "bert, distilbert, roberta, xlm-roberta, modernbert, clip or siglip";

/// An encoder that can be used frozen and not be trained is told apart from one that can't be used.
fn can_not_train(error: EncoderError, networks: &str) -> TrainError {
    match error {
        EncoderError::Unsupported { file, got, .. } => TrainError::Data {
            what: format!("training the encoder of `{}`", file.display()),
            expected: format!("a network of {networks}"),
            got: format!("`{got}`, which can only be `frozen`"),
        },
        other => other.into(),
    }
}

fn wrong_kind(expected: &str, got: &str) -> TrainError {
    TrainError::Data { what: "items of a trained encoder".into(), expected: expected.into(), got: got.into() }
}

fn plan(config: &BackboneConfig, seed: u64) -> FineTuning {
    match config.train {
        Tuning::Frozen | Tuning::Full => FineTuning { freeze: config.freeze.clone(), lora: None, seed },
        Tuning::Lora => {
            let default = LoraConfig::default();
            let targets = if config.targets.is_empty() { default.targets } else { config.targets.clone() };
            let lora =
                LoraConfig { rank: config.rank, alpha: config.alpha, dropout: config.dropout, targets };
            FineTuning::lora(lora, seed)
        }
    }
}

/// Items of an encoder that is trained.
#[derive(Debug, Clone)]
pub struct TunedTable {
    /// Their vectors before training: what the domain's statistics are taken of.
    pub(crate) initial: FeatureTable,
    pub(crate) items: RawItems,
    pub(crate) encoder: Arc<TunedEncoder>,
}

/// The items themselves.
#[derive(Debug, Clone)]
pub(crate) enum RawItems {
    Images(Arc<Vec<ImageSource>>),
    Sentences(Arc<Vec<String>>),
}

impl RawItems {
    pub(crate) fn get(&self, row: usize) -> Option<Raw<'_>> {
        match self {
            Self::Images(images) => images.get(row).map(Raw::Image),
            Self::Sentences(sentences) => sentences.get(row).map(|sentence| Raw::Sentence(sentence)),
        }
    }
}
