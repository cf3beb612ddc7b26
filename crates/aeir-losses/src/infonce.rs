//! The symmetric InfoNCE loss.

use candle_core::Tensor;

use crate::error::{Check, LossError, Within};
use crate::rehearsal::Product;
use crate::stable::{diagonal, log_softmax, normalise_rows};

const LOSS: &str = "InfoNceLoss";

/// Symmetric InfoNCE: each image must find its sentence among the batch's, and each sentence its image.
///
/// All other pairs of the batch are negatives, so larger batches are harder. The temperature is learned as
/// `log_scale = ln(1 / temperature)`; a trainer usually starts at `ln(1 / 0.07)` and keeps it below `ln 100`.
///
/// # Equation
/// With `S = exp(log_scale) * normalise(images) normalise(sentences)^T`:
///
/// ```text
/// i2t = -1/B sum_i ln softmax_j(S)_ii     t2i = -1/B sum_j ln softmax_i(S)_jj     loss = (i2t + t2i) / 2
/// ```
///
/// van den Oord et al., *Representation learning with contrastive predictive coding*, 2018 (arXiv 1807.03748); the symmetric
/// form with a learned scale: Radford et al., *Learning transferable visual models from natural language supervision*, ICML 2021.
///
/// # Shapes
/// `images` `[B, D]`, `sentences` `[B, D]`, `log_scale` `[]` or `[1]`; `scores` `[B, B]`, rows images. Result `[]`.
///
/// # Parameters and units
/// `epsilon`: added to a row's squared norm before the root; a pure number, 1e-12 by default.
///
/// # Numerical notes
/// Log-softmax by hand with the row maximum as a constant: finite for any finite score. A row of zeros has finite value and
/// gradient. A batch of one has no negatives: the loss is 0, with zero gradients.
///
/// # Errors
/// [`LossError::Shape`], [`LossError::ElementType`], [`LossError::Parameter`] (`epsilon`), [`LossError::Candle`].
///
/// # Deviations from the released procedure
/// The released procedure has no such loss (it uses [`TripletRankingLoss`](crate::TripletRankingLoss)).
///
/// # Parity file
/// `fixtures/parity/losses/infonce.safetensors`
///
/// # Example
/// ```
/// use aeir_losses::InfoNceLoss;
/// use candle_core::{Device, Tensor};
///
/// let images = Tensor::new(&[[1f32, 0.], [0., 1.]], &Device::Cpu)?;
/// let log_scale = Tensor::new((1f32 / 0.07).ln(), &Device::Cpu)?;
/// let loss = InfoNceLoss::default().forward(&images, &images, &log_scale)?;
/// assert!(loss.to_scalar::<f32>()? < 1e-5);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct InfoNceLoss {
    /// Added to a row's squared norm before the root.
    pub epsilon: f64,
}

impl Default for InfoNceLoss {
    fn default() -> Self {
        Self { epsilon: 1e-12 }
    }
}

impl InfoNceLoss {
    /// The loss of a batch of pairs; row `i` of both belongs together.
    ///
    /// # Errors
    /// See the type's documentation.
    pub fn forward(
        &self,
        images: &Tensor,
        sentences: &Tensor,
        log_scale: &Tensor,
    ) -> Result<Tensor, LossError> {
        let check = Check(LOSS);
        check.positive("epsilon", self.epsilon)?;
        check.matrix("images", "[B, D]", images)?;
        check.same_shape("sentences", sentences, images)?;
        let log_scale = check.scalar("log_scale", log_scale, images)?;
        let scores = || {
            let images = normalise_rows(images, self.epsilon)?;
            let sentences = normalise_rows(sentences, self.epsilon)?;
            images.product(&sentences.t()?.contiguous()?)?.broadcast_mul(&log_scale.exp()?)
        };
        self.from_scores(&scores().within(LOSS)?)
    }

    /// The loss of a score matrix that is already scaled; pairs on the diagonal.
    ///
    /// # Errors
    /// See the type's documentation.
    pub fn from_scores(&self, scores: &Tensor) -> Result<Tensor, LossError> {
        let (image_to_text, text_to_image) = self.directions(scores)?;
        ((image_to_text + text_to_image).within(LOSS)? * 0.5).within(LOSS)
    }

    /// The two directions apart: image to text, text to image.
    ///
    /// # Errors
    /// See the type's documentation.
    pub fn directions(&self, scores: &Tensor) -> Result<(Tensor, Tensor), LossError> {
        Check(LOSS).square("scores", scores)?;
        let image_to_text = one_direction(scores).within(LOSS)?;
        let text_to_image = scores.t().and_then(|t| one_direction(&t.contiguous()?)).within(LOSS)?;
        Ok((image_to_text, text_to_image))
    }
}

fn one_direction(scores: &Tensor) -> candle_core::Result<Tensor> {
    diagonal(&log_softmax(scores)?)?.mean_all()?.neg()
}
