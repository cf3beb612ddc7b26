//! Methods: which losses a step computes, and which parameters each of them reaches.
//!
//! A method never steps. It hands losses to the trainer, each with the groups of parameters that its gradient may
//! reach; the trainer computes all gradients of a phase before it changes anything.

mod adapt;
mod adda;
mod aeir;
mod alignment;
mod canonical;
mod cdan;
mod critics;
mod dann;
mod discrepancy;
mod source_only;

use std::collections::BTreeMap;

use aeir_encoders::{
    DualEncoder, DualEncoderConfig, Encoded, ImageInput, Items, MemoryConfig, Mode, RegressionConfig,
    SentenceInput, identity_towers,
};
use candle_core::Tensor;

use crate::config::{MethodName, TowerStart, TrainConfig};
use crate::data::PreparedData;
use crate::error::{Result, TrainError};
use crate::figure::Figure;
use crate::parameters::ParameterStore;

pub use adapt::Adapt;
pub use adda::Adda;
pub use aeir::Aeir;
pub use canonical::{Cca, Dcca};
pub use cdan::Cdan;
pub(crate) use critics::ACCURACIES as CRITIC_ACCURACIES;
pub use dann::Dann;
pub use discrepancy::{Discrepancy, DiscrepancyMethod};
pub use source_only::SourceOnly;

/// A group of parameters with an optimiser of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// Both towers, the head and the temperature.
    Encoder,
    /// The domain critics.
    Critic,
}

impl Group {
    /// How the names of its parameters start.
    pub fn prefix(self) -> &'static str {
        match self {
            Self::Encoder => "encoder.",
            Self::Critic => "critic.",
        }
    }
}

/// A place in the training.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// Steps done.
    pub step: usize,
    /// Steps in all.
    pub steps: usize,
}

impl Moment {
    /// From 0 to 1.
    pub fn progress(self) -> f64 {
        self.step as f64 / self.steps.max(1) as f64
    }
}

/// The standardised items of one step.
pub struct Batch {
    /// B images.
    pub source_images: Items,
    /// B sentences; row i belongs to image i.
    pub source_sentences: Items,
    /// How many of the last of these pairs are labelled ones of the target.
    pub labelled: usize,
    /// The target's, where the run has one.
    pub target: Option<TargetBatch>,
    /// Source pairs that are the same in every step, for methods that ask for them: images and their sentences.
    pub anchors: Option<(Items, Items)>,
}

/// Target items of one step; nothing says which sentence belongs to which image.
pub struct TargetBatch {
    /// T images.
    pub images: Items,
    /// U sentences.
    pub sentences: Items,
    /// Where the method chose them: which they are.
    pub rows: Option<TargetRows>,
}

/// Rows of the target's two sets. A method may take image i and sentence i for a match; nobody has told it so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetRows {
    /// Of the images.
    pub images: Vec<usize>,
    /// Of the sentences.
    pub sentences: Vec<usize>,
}

/// A loss and the groups that its gradient may reach.
pub struct Objective {
    /// Scalar.
    pub loss: Tensor,
    /// Groups that take its gradient; others don't, even where the graph leads to them.
    pub reaches: Vec<Group>,
}

/// What one phase of a step gives.
pub struct PhaseOutcome {
    /// The losses; gradients of a parameter reached by several are added.
    pub objectives: Vec<Objective>,
    /// Figures for the log, by name.
    pub logged: Vec<(&'static str, Figure)>,
}

impl PhaseOutcome {
    /// One loss for the encoders.
    fn encoder(loss: Tensor, logged: Vec<(&'static str, Figure)>) -> Self {
        Self { objectives: vec![Objective { loss, reaches: vec![Group::Encoder] }], logged }
    }

    /// One loss for the critics.
    fn critic(loss: Tensor, logged: Vec<(&'static str, Figure)>) -> Self {
        Self { objectives: vec![Objective { loss, reaches: vec![Group::Critic] }], logged }
    }
}

/// One step's items in the joint space, with their graph.
pub struct Embeddings {
    /// B images.
    pub source_images: Encoded,
    /// B sentences; row i belongs to image i.
    pub source_sentences: Encoded,
    /// How many of the last of these pairs are labelled ones of the target.
    pub labelled: usize,
    /// The target's, where this step uses it.
    pub target: Option<TargetEmbeddings>,
    /// The anchors, where the method asks for them and this step uses the target.
    pub anchors: Option<(Encoded, Encoded)>,
}

/// The target batch in the joint space.
pub struct TargetEmbeddings {
    /// T images.
    pub images: Encoded,
    /// U sentences.
    pub sentences: Encoded,
    /// Where the method chose them: which they are.
    pub rows: Option<TargetRows>,
    /// Unit vectors of the frozen features of both, for methods that compare with them.
    pub frozen: Option<[Tensor; 2]>,
}

impl Embeddings {
    /// Rows of the source pairs alone, of vectors of `source_images` or `source_sentences`: what stands for the source's domain.
    ///
    /// # Errors
    /// When there are fewer rows.
    fn of_source(&self, vectors: Tensor) -> Result<Tensor> {
        if self.labelled == 0 {
            return Ok(vectors);
        }
        let rows = vectors.dim(0)?;
        Ok(vectors.narrow(0, 0, rows.saturating_sub(self.labelled))?)
    }

    /// The target's part.
    ///
    /// # Errors
    /// When this step has none.
    fn target(&self) -> Result<&TargetEmbeddings> {
        self.target.as_ref().ok_or_else(no_target)
    }
}

/// What is trained, and with which losses.
///
/// A step embeds its batch once and goes through the phases. Only the last phase may reach the encoders: what the
/// earlier ones change must not be a part of the embeddings' graph.
pub trait Method: Send {
    /// The encoders being trained.
    fn encoder(&self) -> &DualEncoder;

    /// Whether the step at `moment` uses the target batch.
    fn uses_target(&self, moment: Moment) -> bool;

    /// Phases of the step at `moment`; the parameters are updated after each.
    fn phases(&self, moment: Moment) -> usize;

    /// The losses of a phase.
    ///
    /// # Errors
    /// When a tensor operation fails or the batch lacks what the method needs.
    fn phase(
        &self,
        index: usize,
        embeddings: &Embeddings,
        moment: Moment,
        mode: &mut Mode<'_>,
    ) -> Result<PhaseOutcome>;

    /// Whether one norm clips the gradients of all groups together, as the released procedure does.
    fn clips_jointly(&self) -> bool {
        false
    }

    /// How many source pairs the method wants to see in every step.
    fn anchors(&self) -> usize {
        0
    }

    /// Called before each epoch's first step, with what may be looked at: no pair of the target is in it. Gives figures for
    /// the log.
    ///
    /// # Errors
    /// When a computation fails.
    fn before_epoch(&self, moment: Moment, data: &PreparedData) -> Result<Vec<(&'static str, f64)>> {
        let _ = (moment, data);
        Ok(Vec::new())
    }

    /// What the method remembers beside parameters, for a checkpoint. It must be enough to go on in the middle of an epoch.
    ///
    /// # Errors
    /// When a tensor can't be made.
    fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        Ok(BTreeMap::new())
    }

    /// Takes what [`Method::state`] gave.
    ///
    /// # Errors
    /// When it is not of this method.
    fn restore(&self, state: &BTreeMap<String, Tensor>) -> Result<()> {
        let _ = state;
        Ok(())
    }

    /// The target items of a batch, where the method chooses them itself; `batch` counts over all epochs.
    fn target_rows(&self, batch: u64, size: usize) -> Option<TargetRows> {
        let _ = (batch, size);
        None
    }

    /// Called before each step.
    ///
    /// # Errors
    /// When a tensor operation fails.
    fn before_step(&self, moment: Moment) -> Result<()> {
        let _ = moment;
        Ok(())
    }

    /// Called after each epoch's last step, before validation.
    ///
    /// # Errors
    /// When a computation fails.
    fn after_epoch(&self, data: &PreparedData) -> Result<()> {
        let _ = data;
        Ok(())
    }

    /// Embeds a batch, the target's only where it is used.
    ///
    /// # Errors
    /// When the target is used and missing, or an operation fails.
    fn embed(&self, batch: &Batch, moment: Moment, mode: &mut Mode<'_>) -> Result<Embeddings> {
        embed(self.encoder(), batch, self.uses_target(moment), mode)
    }
}

/// Embeds all of a batch with one encoder.
fn embed(encoder: &DualEncoder, batch: &Batch, uses_target: bool, mode: &mut Mode<'_>) -> Result<Embeddings> {
    let target = match (&batch.target, uses_target) {
        (_, false) => None,
        (Some(target), true) => Some(target),
        (None, true) => return Err(no_target()),
    };
    let source_images = encoder.encode_images(&batch.source_images, mode)?;
    // Both domains' sentences together: reading the words is sequential, and more of them cost little more.
    let sentences: Vec<&Items> = [Some(&batch.source_sentences), target.map(|target| &target.sentences)]
        .into_iter()
        .flatten()
        .collect();
    let mut sentences = encoder.encode_sentence_batches(&sentences, mode)?.into_iter();
    let mut next = || sentences.next().ok_or_else(no_target);
    let source_sentences = next()?;
    let target = target
        .map(|target| {
            let images = encoder.encode_images(&target.images, mode)?;
            Ok::<_, TrainError>(TargetEmbeddings {
                images,
                sentences: next()?,
                rows: target.rows.clone(),
                frozen: None,
            })
        })
        .transpose()?;
    let anchors = match (&batch.anchors, uses_target) {
        (Some((images, sentences)), true) => {
            Some((encoder.encode_images(images, mode)?, encoder.encode_sentences(sentences, mode)?))
        }
        _ => None,
    };
    Ok(Embeddings { source_images, source_sentences, labelled: batch.labelled, target, anchors })
}

fn no_target() -> TrainError {
    TrainError::Data {
        what: "the target domain".into(),
        expected: "target images and target sentences to adapt to".into(),
        got: "none".into(),
    }
}

/// What the towers take: decided by the data.
#[derive(Debug, Clone, Copy)]
pub struct Inputs {
    /// F of the images.
    pub image_dimension: usize,
    /// What images come as.
    pub images: ImageInput,
    /// F of the sentences; for words the size of the vocabulary.
    pub sentence_dimension: usize,
    /// Whether sentences come as vectors, as tokens, or as words.
    pub sentences: SentenceKind,
    /// How many source pairs there are.
    pub pairs: usize,
}

/// What sentences come as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SentenceKind {
    /// One vector.
    Pooled,
    /// The vectors of their tokens.
    Fragments,
    /// Words of a vocabulary.
    Words,
}

impl Inputs {
    /// One vector an item in both modalities.
    pub fn pooled(image_dimension: usize, sentence_dimension: usize) -> Self {
        Self {
            image_dimension,
            images: ImageInput::Pooled,
            sentence_dimension,
            sentences: SentenceKind::Pooled,
            pairs: 0,
        }
    }
}

/// The encoder that `config`, resolved, asks for.
pub(crate) fn encoder_config(config: &TrainConfig, inputs: Inputs) -> DualEncoderConfig {
    let sentence_input = match inputs.sentences {
        SentenceKind::Pooled => SentenceInput::Pooled,
        SentenceKind::Fragments => SentenceInput::Fragments,
        SentenceKind::Words => SentenceInput::Words(config.model.words),
    };
    let head = config.model.head.unwrap_or_default();
    DualEncoderConfig {
        image_dimension: inputs.image_dimension,
        sentence_dimension: inputs.sentence_dimension,
        embedding_dimension: config.model.embedding_dimension,
        input_dropout: config.model.input_dropout,
        hidden_dimension: config.model.hidden_dimension,
        image_input: inputs.images,
        sentence_input,
        head,
        head_options: config.model.head_options,
        norm: config.norm(),
        canonical: config.method == MethodName::Dcca,
        head_only: head.is_cross_attentive() && config.source_loss.pooled_weight == Some(0.0),
        memory: memory_config(config, inputs),
    }
}

/// The memory that the recipe asks for: of frozen features and beside the cosine alone.
fn memory_config(config: &TrainConfig, inputs: Inputs) -> Option<MemoryConfig> {
    let pairs = config.adapt.memory_pairs.min(inputs.pairs);
    let possible = inputs.sentences != SentenceKind::Words && !config.model.head?.is_cross_attentive();
    (config.method == MethodName::Adapt && possible && pairs > 0).then_some(MemoryConfig {
        pairs,
        code_dimension: config.adapt.memory_code,
        perplexity: config.adapt.perplexity,
        regression: regression_config(config, inputs),
    })
}

/// No more directions than both modalities have.
fn regression_config(config: &TrainConfig, inputs: Inputs) -> Option<RegressionConfig> {
    let dimension = config.adapt.regression.min(inputs.image_dimension).min(inputs.sentence_dimension);
    (dimension > 0).then_some(RegressionConfig { dimension, sharpness: config.adapt.sharpness })
}

/// Builds the method that `config`, resolved, names, with its parameters in `store`.
///
/// # Errors
/// When a parameter can't be made, or the method can't work on such inputs.
pub fn build(config: &TrainConfig, inputs: Inputs, store: &ParameterStore) -> Result<Box<dyn Method>> {
    let shape = encoder_config(config, inputs);
    let precision = config.precision;
    if !precision.is_supported(store.device()) {
        return Err(TrainError::Setting {
            key: "precision",
            expected: "`fp32` on this device, which has no products in bfloat16".into(),
            got: format!("`{}`", precision.as_str()),
        });
    }
    let make = |prefix: &str| {
        let builder = store.builder().pp(prefix);
        let encoder = DualEncoder::new(shape, config.source_loss.temperature, builder)?;
        if config.model.start == TowerStart::ZeroShot {
            start_zero_shot(config, inputs, prefix, store)?;
        }
        Ok::<_, TrainError>(encoder.with_precision(precision))
    };
    let encoder = make("encoder")?;
    Ok(match config.method {
        MethodName::SourceOnly
        | MethodName::Vsepp
        | MethodName::Scan
        | MethodName::Saf
        | MethodName::Sgr
        | MethodName::Sgraf => Box::new(SourceOnly::new(encoder, config)),
        MethodName::Aeir => Box::new(Aeir::new(encoder, config, store)?),
        MethodName::Adapt => {
            if config.adapt.geometry_weight > 0.0 && inputs.sentences == SentenceKind::Words {
                return Err(TrainError::Setting {
                    key: "adapt.geometry_weight",
                    expected:
                        "0 with `--text-encoder words`: words have no features of an encoder to hold on to"
                            .into(),
                    got: config.adapt.geometry_weight.to_string(),
                });
            }
            let teacher = (config.adapt.teacher_decay > 0.0).then(|| make(adapt::TEACHER)).transpose()?;
            Box::new(Adapt::new(encoder, teacher, config, inputs.pairs, store)?)
        }
        MethodName::Dann => Box::new(Dann::new(encoder, config, store)?),
        MethodName::Adda => Box::new(Adda::new(encoder, make(adda::REFERENCE)?, config, store)?),
        MethodName::Mmd => Box::new(Discrepancy::new(encoder, config, DiscrepancyMethod::Mmd)),
        MethodName::Coral => Box::new(Discrepancy::new(encoder, config, DiscrepancyMethod::Coral)),
        MethodName::Cdan => Box::new(Cdan::new(encoder, config, store)?),
        MethodName::Cca => Box::new(Cca::new(encoder, config, store)?),
        MethodName::Dcca => Box::new(Dcca::new(encoder, config, store)?),
    })
}

/// Makes the towers under `prefix` leave a pre-trained space as it is.
fn start_zero_shot(config: &TrainConfig, inputs: Inputs, prefix: &str, store: &ParameterStore) -> Result<()> {
    let dimension = config.model.embedding_dimension;
    for features in [inputs.image_dimension, inputs.sentence_dimension] {
        if features != dimension {
            return Err(TrainError::Setting {
                key: "model.embedding_dimension",
                expected: format!("{features}, that of the encoders, with `model.start = \"zero-shot\"`"),
                got: dimension.to_string(),
            });
        }
    }
    let towers = identity_towers(dimension, -config.source_loss.temperature.ln())?;
    let named = towers.into_iter().map(|(name, value)| (format!("{prefix}.{name}"), value));
    store.restore(&named.collect())
}

/// When a method adapts: a share of the epochs belongs to the source alone.
#[derive(Debug, Clone, Copy)]
struct Adaptation {
    /// Where in the training, from 0 to 1, it begins: with an epoch, at the latest with the last one.
    from: f64,
}

impl Adaptation {
    fn new(config: &TrainConfig) -> Self {
        Self::from_share(config.adaptation.source_share, config.epochs)
    }

    fn from_share(source_share: f64, epochs: usize) -> Self {
        let epochs = epochs as f64;
        Self { from: (source_share * epochs).floor() / epochs }
    }

    /// How far the adaptation is, from 0 to 1, where it has begun.
    fn progress(self, moment: Moment) -> Option<f64> {
        let progress = moment.progress();
        (progress >= self.from).then(|| (progress - self.from) / (1.0 - self.from))
    }

    /// Whether the adaptation begins with this step.
    fn begins(self, moment: Moment) -> bool {
        let before = Moment { step: moment.step.wrapping_sub(1), ..moment };
        self.progress(moment).is_some() && (moment.step == 0 || self.progress(before).is_none())
    }
}
