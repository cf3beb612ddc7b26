//! SAF's gates and the gated mean of a pair's alignment vectors.

use candle_core::cuda_backend::cudarc::driver::CudaSlice;
use candle_core::{Result, Tensor};

use crate::elements::{column_sums, summed_blocks};
use crate::launch::{Argument, Card, FILTER, Grid, number};

/// Added to the variance under the root.
const VARIANCE_EPSILON: f64 = 1e-5;
/// Positions of which a block adds up what the gate's weight gets.
const POSITIONS_PER_BLOCK: usize = 256;

/// Sizes of a batch of pairs.
#[derive(Clone, Copy)]
pub(crate) struct Sizes {
    pub(crate) images: usize,
    pub(crate) sentences: usize,
    pub(crate) words: usize,
    pub(crate) similarity: usize,
}

impl Sizes {
    fn positions(self) -> usize {
        self.images * self.sentences * (self.words + 1)
    }

    /// A block for each pair, with room for its positions.
    fn pairs(self) -> Result<Grid> {
        Grid::blocks(self.sentences, self.images)?.sharing(self.words + 1)
    }

    fn of_pair(self) -> Result<[Argument<'static>; 2]> {
        Ok([number(self.words)?, number(self.similarity)?].map(Argument::Number))
    }

    fn of_sentence(self) -> Result<[Argument<'static>; 3]> {
        Ok([number(self.images)?, number(self.sentences)?, number(self.words)?].map(Argument::Number))
    }
}

/// SAF's gates over a batch of pairs.
pub(crate) struct Filter {
    pub(crate) sizes: Sizes,
    /// `[M, L]`.
    pub(crate) mask: Tensor,
    /// The gate's weight `[S]` and bias `[1]`; scale and shift of its normalisation `[2]`.
    pub(crate) weight: Tensor,
    pub(crate) bias: Tensor,
    pub(crate) norm: Tensor,
    /// Whether statistics are the batch's own.
    pub(crate) of_batch: bool,
}

/// What the backward pass needs of the forward pass.
pub(crate) struct Kept {
    /// `[N, M, P]`.
    logits: CudaSlice<f32>,
    /// Mean, biased variance and count of each sentence, `[3, M]`.
    pub(crate) statistics: Tensor,
    /// `[N, M, P]`.
    gates: CudaSlice<f32>,
    /// `[N, M]`.
    sums: CudaSlice<f32>,
}

/// Gradients of the vectors and of the parameters.
pub(crate) struct FilterGradients {
    pub(crate) local: Tensor,
    pub(crate) global: Tensor,
    /// `[S]`.
    pub(crate) weight: Tensor,
    /// Of the gate's bias, of scale and shift, `[3]`.
    pub(crate) others: Tensor,
}

impl Filter {
    /// Local vectors `[N, M L, S]` and global ones `[N, M, S]` to the mean of each pair's vectors by their gates, `[N, M, S]`. `running`:
    /// mean and variance, for those of the batch.
    pub(crate) fn forward(
        &self,
        card: &Card,
        local: &Tensor,
        global: &Tensor,
        running: Option<[&Tensor; 2]>,
    ) -> Result<(CudaSlice<f32>, Kept)> {
        let Self { sizes, mask, weight, bias, norm, .. } = self;
        let Sizes { images, sentences, similarity, .. } = *sizes;
        let positions = sizes.positions();
        let logits = card.room(positions)?;
        let [words, width] = sizes.of_pair()?;
        let arguments = [
            Argument::Tensor(local),
            Argument::Tensor(global),
            Argument::Tensor(weight),
            Argument::Tensor(bias),
            Argument::Out(&logits),
            Argument::Long(positions as u64),
            words,
            width,
        ];
        card.launch(&FILTER, "gate_logits", &Grid::warps(positions)?, &arguments)?;
        let statistics = match running {
            Some([mean, variance]) => {
                let row = |value: &Tensor| value.detach().reshape((1, 1))?.broadcast_as((1, sentences));
                let (mean, variance) = (row(mean)?, row(variance)?);
                Tensor::cat(&[&mean, &variance, &variance.ones_like()?], 0)?.contiguous()?
            }
            None => self.measured(card, &logits)?,
        };
        let pairs = images * sentences;
        let (gates, sums) = (card.room(positions)?, card.room(pairs)?);
        let y = card.room(pairs * similarity)?;
        let [words, width] = sizes.of_pair()?;
        let arguments = [
            Argument::Tensor(local),
            Argument::Tensor(global),
            Argument::Out(&logits),
            Argument::Tensor(mask),
            Argument::Tensor(&statistics),
            Argument::Tensor(norm),
            Argument::Out(&gates),
            Argument::Out(&sums),
            Argument::Out(&y),
            words,
            width,
            Argument::Real(VARIANCE_EPSILON as f32),
        ];
        card.launch(&FILTER, "gated_mean", &sizes.pairs()?, &arguments)?;
        Ok((y, Kept { logits, statistics, gates, sums }))
    }

    /// Mean, variance and count of each sentence's logits, `[3, M]`.
    fn measured(&self, card: &Card, logits: &CudaSlice<f32>) -> Result<Tensor> {
        let sentences = self.sizes.sentences;
        let statistics = card.room(3 * sentences)?;
        let [images, sentences_argument, words] = self.sizes.of_sentence()?;
        let arguments = [
            Argument::Out(logits),
            Argument::Tensor(&self.mask),
            Argument::Out(&statistics),
            images,
            sentences_argument,
            words,
        ];
        card.launch(&FILTER, "gate_statistics", &Grid::blocks(sentences, 1)?, &arguments)?;
        Ok(card.tensor(statistics, (3, sentences)))
    }

    /// From the gradient of the means.
    pub(crate) fn backward(
        &self,
        card: &Card,
        local: &Tensor,
        global: &Tensor,
        kept: &Kept,
        upstream: &Tensor,
    ) -> Result<FilterGradients> {
        let Self { sizes, weight, .. } = self;
        let positions = sizes.positions();
        let logits = card.room(positions)?;
        let [words, width] = sizes.of_pair()?;
        let arguments = [
            Argument::Tensor(local),
            Argument::Tensor(global),
            Argument::Out(&kept.gates),
            Argument::Out(&kept.sums),
            Argument::Tensor(upstream),
            Argument::Out(&logits),
            words,
            width,
        ];
        card.launch(&FILTER, "gates_backward", &sizes.pairs()?, &arguments)?;
        let others = self.norm_backward(card, kept, &logits)?;
        let (of_local, of_global) = (card.room(local.elem_count())?, card.room(global.elem_count())?);
        let [words, width] = sizes.of_pair()?;
        let arguments = [
            Argument::Out(&kept.gates),
            Argument::Out(&logits),
            Argument::Tensor(upstream),
            Argument::Tensor(weight),
            Argument::Out(&of_local),
            Argument::Out(&of_global),
            Argument::Long(positions as u64),
            words,
            width,
        ];
        card.launch(&FILTER, "gated_vectors_backward", &Grid::warps(positions)?, &arguments)?;
        Ok(FilterGradients {
            weight: self.weight_backward(card, local, global, &logits)?,
            local: card.tensor(of_local, local.shape()),
            global: card.tensor(of_global, global.shape()),
            others,
        })
    }

    /// Turns the gradients of normalised logits into those of the logits; returns those of the gate's bias, scale and shift.
    fn norm_backward(&self, card: &Card, kept: &Kept, logits: &CudaSlice<f32>) -> Result<Tensor> {
        let Self { sizes, mask, norm, of_batch, .. } = self;
        let parts = card.room(3 * sizes.sentences)?;
        let [images, sentences, words] = sizes.of_sentence()?;
        let arguments = [
            Argument::Out(&kept.logits),
            Argument::Tensor(mask),
            Argument::Tensor(&kept.statistics),
            Argument::Tensor(norm),
            Argument::Out(logits),
            Argument::Out(&parts),
            images,
            sentences,
            words,
            Argument::Number(u32::from(*of_batch)),
            Argument::Real(VARIANCE_EPSILON as f32),
        ];
        card.launch(&FILTER, "gate_norm_backward", &Grid::blocks(sizes.sentences, 1)?, &arguments)?;
        column_sums(&card.tensor(parts, (sizes.sentences, 3)))
    }

    fn weight_backward(
        &self,
        card: &Card,
        local: &Tensor,
        global: &Tensor,
        logits: &CudaSlice<f32>,
    ) -> Result<Tensor> {
        let sizes = self.sizes;
        let positions = sizes.positions();
        let blocks = positions.div_ceil(POSITIONS_PER_BLOCK);
        let parts = card.room(blocks * sizes.similarity)?;
        let [words, width] = sizes.of_pair()?;
        let arguments = [
            Argument::Tensor(local),
            Argument::Tensor(global),
            Argument::Out(logits),
            Argument::Out(&parts),
            Argument::Long(positions as u64),
            words,
            width,
            Argument::Number(number(POSITIONS_PER_BLOCK)?),
        ];
        card.launch(&FILTER, "gate_weight_backward", &Grid::blocks(blocks, 1)?, &arguments)?;
        summed_blocks(card, parts, blocks, sizes.similarity)
    }
}
