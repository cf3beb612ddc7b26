//! A text network with its pooling, from tokens to vectors.

use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use serde_json::Value;

use super::batch::TokenBatch;
use super::bert::{Bert, BertConfig};
use super::clip::{ClipText, ClipTextConfig};
use super::modern_bert::{ModernBert, ModernBertConfig};
use super::pooling::Pooling;
use super::sentence_transformers::Modules;
use crate::checkpoint::{Checkpoint, Source};
use crate::config::Config;
use crate::error::Result;
use crate::fine_tuning::{FineTuning, Parameters, WEIGHTS};
use crate::fragments::Fragments;
use crate::load::{CONFIG, TEXT_ARCHITECTURES, model_type, parse_json, read_file, unsupported};
use crate::mode::Mode;
use crate::normalise::l2_normalise;
use crate::transformer::Linear;

/// A network over tokens.
pub(super) trait TextNetwork: Send + Sync {
    /// Dimension H of the states.
    fn hidden(&self) -> usize;

    /// How many tokens a sentence can have.
    fn longest(&self) -> usize;

    /// The last hidden states, `[B, T, H]`.
    fn states(&self, tokens: &TokenBatch, mode: &mut Mode<'_>) -> Result<Tensor>;
}

/// A transformer from tokens to sentence vectors: BERT, XLM-R (RoBERTa), DistilBERT, ModernBERT, and the text towers of CLIP and
/// SigLIP.
///
/// It is built from `config.json` and `model.safetensors`, the names of the tensors being Hugging Face's. The vector of a sentence is
/// pooled as the folder says: by the modules of sentence-transformers if there are any (`modules.json`), by CLIP's and SigLIP's own
/// rule and projection, and by the mean over the tokens otherwise, not normalised.
///
/// [`TextTransformer`](crate::TextTransformer) is this model, frozen, with its tokenizer.
///
/// # Parity files
/// `fixtures/parity/tiny-models`: last hidden states and pooled vectors within 1e-5 of Hugging Face transformers.
///
/// # Example
/// ```no_run
/// use aeir_encoders::{FineTuning, Mode, SentenceTokenizer, TextModel};
/// use candle_core::Device;
/// use std::path::Path;
///
/// let folder = Path::new("all-MiniLM-L6-v2");
/// let tokens = SentenceTokenizer::load(folder)?.batch(&["a dog on the beach"])?;
/// let (model, parameters) = TextModel::load_trainable(folder, &Device::Cpu, &FineTuning::default())?;
/// let embedding = model.forward(&tokens, &mut Mode::Evaluation)?; // [1, 384]
/// let gradients = embedding.sqr()?.sum_all()?.backward()?;
/// assert!(parameters.variables().values().all(|variable| gradients.get(variable).is_some()));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct TextModel {
    network: Box<dyn TextNetwork>,
    pooling: Pooling,
    projection: Option<Linear>,
    normalise: bool,
    device: Device,
}

impl TextModel {
    /// Loads a frozen model: nothing it computes remembers a graph.
    ///
    /// # Errors
    /// As [`crate::load_text_backbone`].
    pub fn load(folder: &Path, device: &Device) -> Result<Self> {
        let setup = TextSetup::read(folder)?;
        let file = setup.home.join(WEIGHTS);
        let bytes = read_file(&file)?;
        setup.build(&Checkpoint::frozen(&file, &bytes, device)?.root())
    }

    /// Loads a model to train, and its parameters.
    ///
    /// # Errors
    /// As [`crate::load_text_backbone`], and [`crate::EncoderError::Argument`] for a plan that does not fit the model.
    pub fn load_trainable(folder: &Path, device: &Device, plan: &FineTuning) -> Result<(Self, Parameters)> {
        let setup = TextSetup::read(folder)?;
        let home = setup.home.clone();
        Parameters::build(&home, device, plan, |source| setup.build(source))
    }

    /// Dimension F of the vectors.
    #[must_use]
    pub fn dimension(&self) -> usize {
        self.projection.as_ref().map_or_else(|| self.network.hidden(), Linear::outputs)
    }

    /// Dimension H of the tokens' states.
    #[must_use]
    pub fn hidden_dimension(&self) -> usize {
        self.network.hidden()
    }

    /// How many tokens a sentence can have.
    #[must_use]
    pub fn longest(&self) -> usize {
        self.network.longest()
    }

    /// How the states become one vector.
    #[must_use]
    pub fn pooling(&self) -> Pooling {
        self.pooling
    }

    /// Where its tensors are.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The vectors of sentences: [`pool`](Self::pool) of [`states`](Self::states).
    ///
    /// # Shapes
    /// `[B, F]`.
    ///
    /// # Errors
    /// As [`states`](Self::states).
    pub fn forward(&self, tokens: &TokenBatch, mode: &mut Mode<'_>) -> Result<Tensor> {
        let states = self.states(tokens, mode)?;
        self.pool(&states, tokens, mode)
    }

    /// The last hidden states of the tokens.
    ///
    /// # Shapes
    /// `[B, T, H]`. Rows of padding hold any finite values.
    ///
    /// # Errors
    /// [`crate::EncoderError::TokenId`] for an id that the model does not have, [`crate::EncoderError::Shape`] for more tokens than it
    /// takes, [`crate::EncoderError::Tensor`] from candle.
    pub fn states(&self, tokens: &TokenBatch, mode: &mut Mode<'_>) -> Result<Tensor> {
        if tokens.count() == 0 {
            let shape = (0, tokens.length(), self.network.hidden());
            return Ok(Tensor::zeros(shape, candle_core::DType::F32, &self.device)?);
        }
        self.network.states(tokens, mode)
    }

    /// One vector a sentence: the states pooled, projected and normalised as the model's configuration says.
    ///
    /// # Shapes
    /// `states [B, T, H]` to `[B, F]`.
    ///
    /// # Errors
    /// [`crate::EncoderError::Tensor`] from candle, such as for states of other tokens.
    pub fn pool(&self, states: &Tensor, tokens: &TokenBatch, mode: &mut Mode<'_>) -> Result<Tensor> {
        let pooled = self.project(&self.pooling.apply(states, tokens)?, mode)?;
        if self.normalise { l2_normalise(&pooled) } else { Ok(pooled) }
    }

    /// The tokens as fragments in the space of the vectors: their states, projected where the model projects.
    ///
    /// # Shapes
    /// `states [B, T, H]` to `[B, T, F]`, with the mask of the tokens.
    ///
    /// # Errors
    /// [`crate::EncoderError::Tensor`] from candle, such as for states of other tokens.
    pub fn fragments(&self, states: &Tensor, tokens: &TokenBatch, mode: &mut Mode<'_>) -> Result<Fragments> {
        Fragments::new(self.project(states, mode)?, tokens.mask(states.device())?)
    }

    fn project(&self, x: &Tensor, mode: &mut Mode<'_>) -> Result<Tensor> {
        self.projection.as_ref().map_or_else(|| Ok(x.clone()), |projection| projection.forward(x, mode))
    }
}

/// How sentences are padded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Padding {
    /// To the longest of a batch; the network never sees it.
    Longest,
    /// To this length; the network sees it.
    Always(usize),
}

/// What the configuration files of a folder say.
pub(crate) struct TextSetup {
    /// Where the weights and the tokenizer are.
    pub(super) home: PathBuf,
    network: NetworkConfig,
    pooling: Pooling,
    normalise: bool,
    /// Whether sentence-transformers wrote the folder.
    pub(super) has_modules: bool,
    /// Tokens at most, by sentence-transformers' files.
    pub(super) limit: Option<usize>,
    /// Tokens at most, by the network.
    pub(super) longest: usize,
    pub(super) padding: Padding,
    /// `pad_token_id`.
    pub(super) padding_id: Option<u32>,
    /// The configuration files, the first directly in the folder.
    pub(super) files: Vec<PathBuf>,
}

enum NetworkConfig {
    Bert(BertConfig),
    ModernBert(ModernBertConfig),
    Clip { config: ClipTextConfig, is_projected: bool },
    Siglip(ClipTextConfig),
}

impl TextSetup {
    pub(crate) fn read(folder: &Path) -> Result<Self> {
        let modules = Modules::read(folder)?;
        let home = modules.as_ref().map_or(folder, |modules| modules.transformer.as_path()).to_path_buf();
        let file = home.join(CONFIG);
        let value: Value = parse_json(&read_file(&file)?, &file)?;
        let config = Config::new(&file, &value)?;
        let (network, padding_id) = NetworkConfig::read(&config, &value, &file)?;
        let mut files = modules.as_ref().map(|modules| modules.files.clone()).unwrap_or_default();
        files.push(file.clone());
        let own_pooling = modules.as_ref().and_then(|modules| modules.pooling);
        Ok(Self {
            home,
            pooling: own_pooling.unwrap_or(network.pooling()),
            normalise: modules.as_ref().is_some_and(|modules| modules.normalise),
            has_modules: modules.is_some(),
            limit: modules.and_then(|modules| modules.longest),
            longest: network.longest(),
            padding: network.padding(),
            padding_id,
            network,
            files,
        })
    }

    /// Takes the tensors.
    pub(crate) fn build(self, source: &Source<'_>) -> Result<TextModel> {
        let (network, projection) = self.network.build(source)?;
        Ok(TextModel {
            network,
            pooling: self.pooling,
            projection,
            normalise: self.normalise,
            device: source.device().clone(),
        })
    }
}

impl NetworkConfig {
    /// The network and the id of its padding.
    fn read(config: &Config<'_>, value: &Value, file: &Path) -> Result<(Self, Option<u32>)> {
        let (text, network) = match model_type(value).as_str() {
            "bert" => (None, Self::Bert(BertConfig::bert(config)?)),
            "xlm-roberta" | "roberta" => (None, Self::Bert(BertConfig::roberta(config)?)),
            "distilbert" => (None, Self::Bert(BertConfig::distilbert(config)?)),
            "modernbert" => (None, Self::ModernBert(ModernBertConfig::new(config)?)),
            "clip" => {
                let text = config.part("text_config")?;
                let projection = config.size("projection_dim", 512)?;
                let clip = ClipTextConfig::clip(&text, Some(projection))?;
                (Some(text), Self::Clip { config: clip, is_projected: true })
            }
            "clip_text_model" => {
                let is_projected = value.get("architectures").is_some_and(names_projection);
                (None, Self::Clip { config: ClipTextConfig::clip(config, None)?, is_projected })
            }
            "siglip" => {
                let text = config.part("text_config")?;
                let siglip = ClipTextConfig::siglip(&text)?;
                (Some(text), Self::Siglip(siglip))
            }
            "siglip_text_model" => (None, Self::Siglip(ClipTextConfig::siglip(config)?)),
            other => return Err(unsupported(file, other, TEXT_ARCHITECTURES)),
        };
        let padding = text.as_ref().unwrap_or(config).token("pad_token_id")?;
        Ok((network, padding))
    }

    fn pooling(&self) -> Pooling {
        match self {
            Self::Bert(_) | Self::ModernBert(_) => Pooling::Mean,
            Self::Clip { config, .. } | Self::Siglip(config) => config.pooling,
        }
    }

    fn longest(&self) -> usize {
        match self {
            Self::Bert(config) => config.longest(),
            Self::ModernBert(config) => config.longest(),
            Self::Clip { config, .. } | Self::Siglip(config) => config.longest(),
        }
    }

    fn padding(&self) -> Padding {
        match self {
            Self::Siglip(config) => Padding::Always(config.longest()),
            _ => Padding::Longest,
        }
    }

    fn build(self, source: &Source<'_>) -> Result<(Box<dyn TextNetwork>, Option<Linear>)> {
        match self {
            Self::Bert(config) => Ok((Box::new(Bert::load(source, config)?), None)),
            Self::ModernBert(config) => Ok((Box::new(ModernBert::load(source, config)?), None)),
            Self::Clip { config, is_projected } => {
                let outputs = config.projection;
                let network = ClipText::load(&source.under("text_model"), config)?;
                let load =
                    || Linear::load_with(&source.under("text_projection"), network.hidden(), outputs, false);
                let projection = is_projected.then(load).transpose()?;
                Ok((Box::new(network), projection))
            }
            Self::Siglip(config) => {
                let outputs = config.projection;
                let tower = source.under("text_model");
                let network = ClipText::load(&tower, config)?;
                let projection = Linear::load(&tower.under("head"), network.hidden(), outputs)?;
                Ok((Box::new(network), Some(projection)))
            }
        }
    }
}

/// Whether `architectures` names a class that ends in a projection.
fn names_projection(architectures: &Value) -> bool {
    let names = architectures.as_array().map(Vec::as_slice).unwrap_or_default();
    names.iter().filter_map(Value::as_str).any(|name| name.ends_with("WithProjection"))
}
