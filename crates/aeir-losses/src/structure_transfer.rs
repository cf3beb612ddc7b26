//! The structure transfer loss.

use candle_core::{D, DType, Tensor};

use crate::error::{Check, LossError, Within};
use crate::reduction::Reduction;
use crate::stable::{log_softmax, log_sum_exp, negative_infinity};

const LOSS: &str = "StructureTransferLoss";

/// How far apart two distributions over the neighbours are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Divergence {
    /// `KL(p || q) = sum p ln(p / q)`: the published choice.
    #[default]
    KullbackLeibler,
    /// `KL(p || m) / 2 + KL(q || m) / 2` with `m = (p + q) / 2`: symmetric, at most ln 2.
    JensenShannon,
}

/// Structure transfer: a target item relates to its source neighbours' partners as it relates to the neighbours.
///
/// For a target image its K nearest source images are found in the batch; each of them has a sentence. How the image is
/// distributed over the K images (`p`) should be how it is distributed over the K sentences (`q`). That ties the unpaired
/// target to the other modality. Call it once with images as the targets and once with sentences, and add the two.
///
/// # Equation
/// With `y_1..y_K` the source items most similar to the target item `x`, and `z_k` the partner of `y_k`:
///
/// ```text
/// p = softmax_k(sim(x, y_k) / tau)     q = softmax_k(sim(x, z_k) / tau)     loss = sum_x KL(p || q)
/// ```
///
/// Yang et al., *Alignment efficient image-sentence retrieval considering transferable cross-modal representation learning*,
/// Frontiers of Computer Science 18(1), 2024.
///
/// # Shapes
/// `own` `[T, S]`: target items against source items of their own modality; `cross` `[T, S]`: the same target items against
/// the partners of the same source items, column by column. Similarities: [`fragment_similarity`](crate::fragment_similarity),
/// [`pooled_similarity`](crate::pooled_similarity). Result `[]`.
///
/// # Parameters and units
/// `neighbours` K, 3 by default; K above S counts as S; with one neighbour the loss is 0. `temperature` tau, in units of the
/// similarity: 3 by default, which suits sums over some ten fragments and is far too large for cosines. `divergence`.
/// `detach_reference`: no gradient through `p`. `reduction`: the sum over target items, or their mean.
///
/// # Numerical notes
/// All in logarithms, finite for any finite similarity. Neighbours are picked on a detached matrix, at a tie one of them (the
/// first on the CPU).
///
/// # Errors
/// [`LossError::Shape`], [`LossError::ElementType`], [`LossError::Parameter`] (`neighbours`, `temperature`),
/// [`LossError::Candle`].
///
/// # Deviations from the released procedure
/// None with the default values and [`fragment_similarity_released`](crate::fragment_similarity_released).
///
/// # Parity file
/// `fixtures/parity/losses/structure_transfer.safetensors`, `fixtures/parity/aecr/{saf,sgr}.safetensors`
/// (`train.loss.structure`, `train.grad.structure.*`)
///
/// # Example
/// ```
/// use aeir_losses::StructureTransferLoss;
/// use candle_core::{Device, Tensor};
///
/// let own = Tensor::new(&[[5f64, 4., 1., 0.]], &Device::Cpu)?;
/// let cross = Tensor::new(&[[6f64, 5., 2., 9.]], &Device::Cpu)?; // the fourth is no neighbour
/// let loss = StructureTransferLoss::default().forward(&own, &cross)?;
/// assert!(loss.to_scalar::<f64>()?.abs() < 1e-12);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StructureTransferLoss {
    /// How many source neighbours a target item has.
    pub neighbours: usize,
    /// What similarities are divided by.
    pub temperature: f64,
    /// How the two distributions are compared.
    pub divergence: Divergence,
    /// Whether the reference distribution `p` is a constant.
    pub detach_reference: bool,
    /// How the target items' divergences become one number.
    pub reduction: Reduction,
}

impl Default for StructureTransferLoss {
    fn default() -> Self {
        Self {
            neighbours: 3,
            temperature: 3.0,
            divergence: Divergence::KullbackLeibler,
            detach_reference: false,
            reduction: Reduction::Sum,
        }
    }
}

impl StructureTransferLoss {
    /// The loss of a batch of target items.
    ///
    /// # Errors
    /// See the type's documentation.
    pub fn forward(&self, own: &Tensor, cross: &Tensor) -> Result<Tensor, LossError> {
        Check(LOSS).same_shape("cross", cross, own)?;
        let nearest = self.neighbours(own)?;
        let chosen = |scores: &Tensor| scores.contiguous()?.gather(&nearest, 1);
        self.of_neighbours(&chosen(own).within(LOSS)?, &chosen(cross).within(LOSS)?)
    }

    /// The columns of each target item's neighbours, the most similar first: `[T, K]`, u32. Nothing flows through them.
    ///
    /// # Errors
    /// See the type's documentation.
    pub fn neighbours(&self, own: &Tensor) -> Result<Tensor, LossError> {
        let check = Check(LOSS);
        check.parameter(self.neighbours > 0, "neighbours", "at least 1", self.neighbours as f64)?;
        let (_, candidates) = check.matrix("own", "[T, S]", own)?;
        nearest(own, self.neighbours.min(candidates)).within(LOSS)
    }

    /// The loss from the similarities to the neighbours alone, `own` and `cross` `[T, K]`. It is [`Self::forward`] without the
    /// items that are no neighbours, which need no gradient:
    /// [`neighbour_similarity`](crate::neighbour_similarity) computes such.
    ///
    /// # Errors
    /// See the type's documentation.
    pub fn of_neighbours(&self, own: &Tensor, cross: &Tensor) -> Result<Tensor, LossError> {
        let check = Check(LOSS);
        check.positive("temperature", self.temperature)?;
        let (items, _) = check.matrix("own", "[T, K]", own)?;
        check.same_shape("cross", cross, own)?;
        let loss = || {
            let reference = if self.detach_reference { own.detach() } else { own.clone() };
            let reference = log_softmax(&(reference / self.temperature)?)?;
            let model = log_softmax(&(cross / self.temperature)?)?;
            self.reduction.apply(self.divergence.sum(&reference, &model)?, items)
        };
        loss().within(LOSS)
    }
}

impl Divergence {
    /// Added over all rows of log-probabilities.
    fn sum(self, reference: &Tensor, model: &Tensor) -> candle_core::Result<Tensor> {
        match self {
            Self::KullbackLeibler => kullback_leibler(reference, model),
            Self::JensenShannon => {
                let both = Tensor::stack(&[reference, model], D::Minus1)?;
                let middle = (log_sum_exp(&both)?.squeeze(D::Minus1)? - std::f64::consts::LN_2)?;
                (kullback_leibler(reference, &middle)? + kullback_leibler(model, &middle)?)? * 0.5
            }
        }
    }
}

fn kullback_leibler(p: &Tensor, q: &Tensor) -> candle_core::Result<Tensor> {
    (p.exp()? * (p - q)?)?.sum_all()
}

/// The columns of the `count` largest entries of each row, `[T, count]`: `count` rounds of argmax, which no device limits in
/// row length (sorting on a GPU is).
fn nearest(own: &Tensor, count: usize) -> candle_core::Result<Tensor> {
    let mut left = own.detach().contiguous()?;
    let lowest = negative_infinity(&left)?;
    let columns = u32::try_from(left.dim(1)?).map_err(candle_core::Error::wrap)?;
    let columns = Tensor::arange(0u32, columns, left.device())?.unsqueeze(0)?;
    let mut found = Vec::with_capacity(count);
    for _ in 0..count {
        let best = left.argmax_keepdim(1)?.to_dtype(DType::U32)?;
        let taken = columns.broadcast_eq(&best)?;
        left = taken.where_cond(&lowest, &left)?;
        found.push(best);
    }
    Tensor::cat(&found, 1)
}
