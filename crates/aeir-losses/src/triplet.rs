//! The triplet ranking loss.

use candle_core::Tensor;

use crate::error::{Check, LossError, Within};
use crate::reduction::Reduction;
use crate::stable::{diagonal, negative_infinity, off_diagonal};

const LOSS: &str = "TripletRankingLoss";

/// Which negatives of the batch a [`TripletRankingLoss`] counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Negatives {
    /// The hardest one for each image and for each sentence (VSE++).
    #[default]
    Hardest,
    /// All of them.
    All,
}

impl Negatives {
    /// All negatives for the first `warm_up_steps` steps, then the hardest: hard negatives alone often keep an untrained model
    /// from starting.
    #[must_use]
    pub fn warm_up(step: usize, warm_up_steps: usize) -> Self {
        if step < warm_up_steps { Self::All } else { Self::Hardest }
    }
}

/// Bidirectional triplet ranking: a pair must score higher than its negatives by a margin.
///
/// For each image the negatives are the other sentences of the batch, for each sentence the other images. With
/// [`Negatives::Hardest`] only the highest-scoring negative counts; several sentences of one image in a batch would make false
/// negatives, so draw one.
///
/// # Equation
/// ```text
/// hardest: sum_i [m + max_{j != i} s_ij - s_ii]_+  +  sum_j [m + max_{i != j} s_ij - s_jj]_+
/// all:     sum_{i != j} [m + s_ij - s_ii]_+ + [m + s_ij - s_jj]_+
/// ```
///
/// Faghri et al., *VSE++: improving visual-semantic embeddings with hard negatives*, BMVC 2018 (arXiv 1707.05612).
///
/// # Shapes
/// `scores` `[B, B]`, rows images, columns sentences, pairs on the diagonal. Result `[]`.
///
/// # Parameters and units
/// `margin`: in units of the score, 0.2 by default; `negatives`; `reduction`: the sum, or the sum divided by B.
///
/// # Numerical notes
/// The hardest negative is found by argmax on a detached matrix, then gathered: at a tie one entry gets the whole gradient
/// (the first on the CPU). A hinge that is exactly 0 passes a gradient, as PyTorch's `clamp` does. A batch of one has no
/// negatives: the loss is 0, with zero gradients.
///
/// # Errors
/// [`LossError::Shape`], [`LossError::ElementType`], [`LossError::Parameter`] (`margin`), [`LossError::Candle`].
///
/// # Deviations from the released procedure
/// None with the default values (margin 0.2, hardest, summed).
///
/// # Parity file
/// `fixtures/parity/losses/triplet.safetensors`, `fixtures/parity/aecr/{saf,sgr}.safetensors` (`train.loss.triplet`)
///
/// # Example
/// ```
/// use aeir_losses::TripletRankingLoss;
/// use candle_core::{Device, Tensor};
///
/// let scores = Tensor::new(&[[0.9f64, 0.8], [0.1, 0.7]], &Device::Cpu)?;
/// let loss = TripletRankingLoss::default().from_scores(&scores)?;
/// // rows: 0.2 + 0.8 - 0.9 and 0; columns: 0 and 0.2 + 0.8 - 0.7
/// assert!((loss.to_scalar::<f64>()? - 0.4).abs() < 1e-12);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TripletRankingLoss {
    /// By how much a pair must score higher than its negatives.
    pub margin: f64,
    /// Which negatives count.
    pub negatives: Negatives,
    /// How the hinges become one number.
    pub reduction: Reduction,
}

impl Default for TripletRankingLoss {
    fn default() -> Self {
        Self { margin: 0.2, negatives: Negatives::Hardest, reduction: Reduction::Sum }
    }
}

impl TripletRankingLoss {
    /// The same loss with the negatives of a warm-up: see [`Negatives::warm_up`].
    #[must_use]
    pub fn at_step(self, step: usize, warm_up_steps: usize) -> Self {
        Self { negatives: Negatives::warm_up(step, warm_up_steps), ..self }
    }

    /// The loss of a score matrix with the pairs on the diagonal.
    ///
    /// # Errors
    /// See the type's documentation.
    pub fn from_scores(&self, scores: &Tensor) -> Result<Tensor, LossError> {
        let check = Check(LOSS);
        check.not_negative("margin", self.margin)?;
        let batch = check.square("scores", scores)?;
        let both = || {
            let sentences = self.one_direction(&scores.contiguous()?, batch)?;
            let images = self.one_direction(&scores.t()?.contiguous()?, batch)?;
            self.reduction.apply((sentences + images)?, batch)
        };
        both().within(LOSS)
    }

    /// The hinges of the rows, added.
    fn one_direction(&self, scores: &Tensor, batch: usize) -> candle_core::Result<Tensor> {
        let positives = diagonal(scores)?;
        // One pair has no hardest negative; all of its none add up to 0.
        if self.negatives == Negatives::Hardest && batch > 1 {
            let hardest = scores.gather(&hardest_negatives(scores, batch)?, 1)?;
            return ((hardest - positives)? + self.margin)?.relu()?.sum_all();
        }
        let hinges = (scores.broadcast_sub(&positives)? + self.margin)?.relu()?;
        (hinges * off_diagonal(batch, scores.dtype(), scores.device())?)?.sum_all()
    }
}

/// The column of each row's largest entry off the diagonal, `[B, 1]`.
fn hardest_negatives(scores: &Tensor, batch: usize) -> candle_core::Result<Tensor> {
    let positives = Tensor::eye(batch, candle_core::DType::U8, scores.device())?;
    positives.where_cond(&negative_infinity(scores)?, &scores.detach())?.argmax_keepdim(1)
}
