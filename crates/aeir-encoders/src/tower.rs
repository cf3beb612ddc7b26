//! Two towers: a projection per modality into one joint space.

use candle_core::Tensor;
use candle_nn::{Init, VarBuilder};
use serde::{Deserialize, Serialize};

use crate::{EncoderError, Mode, Projection, l2_normalise};

/// Sizes and dropout of a [`DualEncoder`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DualEncoderConfig {
    /// F of the image features.
    pub image_dimension: usize,
    /// F of the sentence features.
    pub sentence_dimension: usize,
    /// D of the joint space.
    pub embedding_dimension: usize,
    /// Probability of dropping an input feature in training.
    pub input_dropout: f32,
}

/// An image projection, a sentence projection and the temperature that scales their cosines.
///
/// Parameters: `image.projection.{weight,bias}`, `sentence.projection.{weight,bias}` and the scalar `log_scale`, the
/// natural logarithm of the inverse temperature.
pub struct DualEncoder {
    config: DualEncoderConfig,
    image: Projection,
    sentence: Projection,
    log_scale: Tensor,
}

impl DualEncoder {
    /// Creates or loads the parameters through `builder`. `temperature` is the initial one.
    ///
    /// # Errors
    /// When the builder has no such tensor, or one of another shape.
    pub fn new(
        config: DualEncoderConfig,
        temperature: f64,
        builder: VarBuilder<'_>,
    ) -> Result<Self, EncoderError> {
        let DualEncoderConfig { image_dimension, sentence_dimension, embedding_dimension, input_dropout } =
            config;
        let project = |modality: &str, input| {
            Projection::new(input, embedding_dimension, input_dropout, builder.pp(modality).pp("projection"))
        };
        Ok(Self {
            config,
            image: project("image", image_dimension)?,
            sentence: project("sentence", sentence_dimension)?,
            log_scale: builder.get_with_hints((), "log_scale", Init::Const(-temperature.ln()))?,
        })
    }

    /// Image features `[B, F]` to unit vectors `[B, D]`.
    ///
    /// # Errors
    /// When F differs from the configuration.
    pub fn embed_images(&self, features: &Tensor, mode: &mut Mode<'_>) -> Result<Tensor, EncoderError> {
        l2_normalise(&self.image.forward(features, mode)?)
    }

    /// Sentence features `[B, F]` to unit vectors `[B, D]`.
    ///
    /// # Errors
    /// When F differs from the configuration.
    pub fn embed_sentences(&self, features: &Tensor, mode: &mut Mode<'_>) -> Result<Tensor, EncoderError> {
        l2_normalise(&self.sentence.forward(features, mode)?)
    }

    /// Logarithm of the inverse temperature, a scalar.
    pub fn log_scale(&self) -> &Tensor {
        &self.log_scale
    }

    /// Sizes and dropout.
    pub fn config(&self) -> &DualEncoderConfig {
        &self.config
    }
}
