//! The pairwise sigmoid loss of SigLIP.

use candle_core::Tensor;

use crate::error::{Check, LossError, Within};
use crate::rehearsal::Product;
use crate::stable::{normalise_rows, softplus};

const LOSS: &str = "SigLipLoss";

/// Pairwise sigmoid loss: each image-sentence combination is its own yes-or-no question.
///
/// Without a softmax over the batch, small batches do well. Scale and bias are learned; published starts are
/// `log_scale = ln 10`, `bias = -10`, since nearly all combinations are negatives.
///
/// # Equation
/// With `z = exp(log_scale) * normalise(images) normalise(sentences)^T + bias`, `y_ij` = 1 on the diagonal, else -1:
///
/// ```text
/// loss = -1/B sum_ij ln sigmoid(y_ij z_ij)
/// ```
///
/// Zhai et al., *Sigmoid loss for language image pre-training*, ICCV 2023 (arXiv 2303.15343).
///
/// # Shapes
/// `images` `[B, D]`, `sentences` `[B, D]`, `log_scale` and `bias` `[]` or `[1]`; `logits` `[B, B]`, rows images. Result `[]`.
///
/// # Parameters and units
/// `epsilon`: added to a row's squared norm before the root; a pure number, 1e-12 by default.
///
/// # Numerical notes
/// `-ln sigmoid(x) = max(-x, 0) + ln(1 + exp(-|x|))`, finite for any finite logit. A batch of one is defined: one positive.
///
/// # Errors
/// [`LossError::Shape`], [`LossError::ElementType`], [`LossError::Parameter`] (`epsilon`), [`LossError::Candle`].
///
/// # Deviations from the released procedure
/// The released procedure has no such loss.
///
/// # Parity file
/// `fixtures/parity/losses/siglip.safetensors`
///
/// # Example
/// ```
/// use aeir_losses::SigLipLoss;
/// use candle_core::{Device, Tensor};
///
/// let logits = Tensor::new(&[[9f64, -9.], [-9., 9.]], &Device::Cpu)?;
/// let loss = SigLipLoss::default().from_logits(&logits)?;
/// assert!(loss.to_scalar::<f64>()? < 1e-3);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SigLipLoss {
    /// Added to a row's squared norm before the root.
    pub epsilon: f64,
}

impl Default for SigLipLoss {
    fn default() -> Self {
        Self { epsilon: 1e-12 }
    }
}

impl SigLipLoss {
    /// The loss of a batch of pairs; row `i` of both belongs together.
    ///
    /// # Errors
    /// See the type's documentation.
    pub fn forward(
        &self,
        images: &Tensor,
        sentences: &Tensor,
        log_scale: &Tensor,
        bias: &Tensor,
    ) -> Result<Tensor, LossError> {
        let check = Check(LOSS);
        check.positive("epsilon", self.epsilon)?;
        check.matrix("images", "[B, D]", images)?;
        check.same_shape("sentences", sentences, images)?;
        let log_scale = check.scalar("log_scale", log_scale, images)?;
        let bias = check.scalar("bias", bias, images)?;
        let logits = || {
            let images = normalise_rows(images, self.epsilon)?;
            let sentences = normalise_rows(sentences, self.epsilon)?;
            let cosines = images.product(&sentences.t()?.contiguous()?)?;
            cosines.broadcast_mul(&log_scale.exp()?)?.broadcast_add(&bias)
        };
        self.from_logits(&logits().within(LOSS)?)
    }

    /// The loss of a matrix of logits, already scaled and shifted; pairs on the diagonal.
    ///
    /// # Errors
    /// See the type's documentation.
    pub fn from_logits(&self, logits: &Tensor) -> Result<Tensor, LossError> {
        let batch = Check(LOSS).square("logits", logits)?;
        let loss = || {
            // -y: -1 on the diagonal, 1 elsewhere.
            let signs = (1.0 - (Tensor::eye(batch, logits.dtype(), logits.device())? * 2.0)?)?;
            softplus(&(logits * signs)?)?.sum_all()? / batch as f64
        };
        loss().within(LOSS)
    }
}
