//! Methods: which losses a step computes, and which parameters each of them reaches.
//!
//! A method never steps. It hands losses to the trainer, each with the groups of parameters that its gradient may
//! reach; the trainer computes all gradients of a phase before it changes anything.

mod aeir;
mod alignment;
mod source_only;

use aeir_encoders::{DualEncoder, DualEncoderConfig, Mode};
use candle_core::Tensor;

use crate::config::{MethodName, TrainConfig};
use crate::error::{Result, TrainError};
use crate::parameters::ParameterStore;

pub use aeir::Aeir;
pub use source_only::SourceOnly;

/// A group of parameters with an optimiser of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// Both towers and the temperature.
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

/// The standardised features of one step.
pub struct Batch {
    /// `[B, F]`.
    pub source_images: Tensor,
    /// `[B, G]`, row i belongs to image i.
    pub source_sentences: Tensor,
    /// The target's, where the run has one.
    pub target: Option<TargetBatch>,
}

/// Target features of one step; nothing says which sentence belongs to which image.
pub struct TargetBatch {
    /// `[T, F]`.
    pub images: Tensor,
    /// `[U, G]`.
    pub sentences: Tensor,
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
    pub logged: Vec<(&'static str, f64)>,
}

/// Unit vectors of one step, rows `[.., D]`, with their graph.
pub struct Embeddings {
    /// `[B, D]`.
    pub source_images: Tensor,
    /// `[B, D]`, row i belongs to image i.
    pub source_sentences: Tensor,
    /// The target's, where this step uses it.
    pub target: Option<TargetEmbeddings>,
}

/// Unit vectors of the target batch.
pub struct TargetEmbeddings {
    /// `[T, D]`.
    pub images: Tensor,
    /// `[U, D]`.
    pub sentences: Tensor,
}

/// A training method.
///
/// A step embeds the batch once, then goes through the phases. Only the last phase may reach the encoders: what the
/// earlier ones change must not be a part of the embeddings' graph.
pub trait Method: Send {
    /// The encoders being trained.
    fn encoder(&self) -> &DualEncoder;

    /// Whether a step at `progress`, from 0 to 1 over the training, uses the target batch.
    fn uses_target(&self, progress: f64) -> bool;

    /// Phases of a step at `progress`; the parameters are updated after each.
    fn phases(&self, progress: f64) -> usize;

    /// The losses of a phase.
    ///
    /// # Errors
    /// When a tensor operation fails or the batch lacks what the method needs.
    fn phase(&self, index: usize, embeddings: &Embeddings, progress: f64) -> Result<PhaseOutcome>;

    /// Embeds a batch, the target's only where it is used.
    ///
    /// # Errors
    /// When the target is used and missing, or an operation fails.
    fn embed(&self, batch: &Batch, progress: f64, mode: &mut Mode<'_>) -> Result<Embeddings> {
        let encoder = self.encoder();
        let source_images = encoder.embed_images(&batch.source_images, mode)?;
        let source_sentences = encoder.embed_sentences(&batch.source_sentences, mode)?;
        let target = match (&batch.target, self.uses_target(progress)) {
            (_, false) => None,
            (Some(target), true) => Some(TargetEmbeddings {
                images: encoder.embed_images(&target.images, mode)?,
                sentences: encoder.embed_sentences(&target.sentences, mode)?,
            }),
            (None, true) => {
                return Err(TrainError::Data {
                    what: "the target domain".into(),
                    expected: "target images and target sentences to adapt to".into(),
                    got: "none".into(),
                });
            }
        };
        Ok(Embeddings { source_images, source_sentences, target })
    }
}

/// Builds the method that `config` names, with its parameters in `store`.
///
/// # Errors
/// When a parameter can't be made.
pub fn build(
    config: &TrainConfig,
    image_dimension: usize,
    sentence_dimension: usize,
    store: &ParameterStore,
) -> Result<Box<dyn Method>> {
    let encoder = DualEncoder::new(
        DualEncoderConfig {
            image_dimension,
            sentence_dimension,
            embedding_dimension: config.model.embedding_dimension,
            input_dropout: config.model.input_dropout,
        },
        config.source_loss.temperature,
        store.builder().pp("encoder"),
    )?;
    Ok(match config.method {
        MethodName::SourceOnly => Box::new(SourceOnly::new(encoder, config)),
        MethodName::Aeir => Box::new(Aeir::new(encoder, config, store)?),
    })
}

/// The value of a scalar, for the log.
fn value(scalar: &Tensor) -> Result<f64> {
    Ok(f64::from(scalar.to_scalar::<f32>()?))
}
