//! Similarity attention filtration: a gate on each alignment vector.

use candle_core::{D, Tensor};
use candle_nn::VarBuilder;

use super::linear::Linear;
use crate::batch_norm::BatchNorm;
use crate::error::Result;
use crate::normalise::UnitNorm;
use crate::rehearsal::Product;

/// Added to the sum of the gates.
pub(super) const GATE_EPSILON: f64 = 1e-8;

/// The gate's linear layer and its batch normalisation of one channel.
#[derive(Debug, Clone)]
pub(super) struct Filter {
    pub(super) gate: Linear,
    pub(super) batch_norm: BatchNorm,
    norm: UnitNorm,
}

impl Filter {
    pub(super) fn new(similarity: usize, norm: UnitNorm, vb: VarBuilder<'_>) -> Result<Self> {
        Ok(Self {
            gate: Linear::new(similarity, 1, vb.clone())?,
            batch_norm: BatchNorm::new(1, vb.pp("norm"))?,
            norm,
        })
    }

    pub(super) fn detached(&self) -> Self {
        Self { gate: self.gate.detached(), batch_norm: self.batch_norm.detached(), norm: self.norm }
    }

    /// `vectors [M, N, P, S]` and `mask [M, P]` to `[M, N, S]`.
    pub(super) fn forward(&self, vectors: &Tensor, mask: &Tensor, training: bool) -> Result<Tensor> {
        let (sentences, images, positions, _) = vectors.dims4()?;
        let rows = (sentences, images * positions);
        let mask = mask.unsqueeze(1)?.broadcast_as((sentences, images, positions))?.contiguous()?;
        let logits = self.gate.forward(vectors)?.reshape(rows)?;
        let logits = self.batch_norm.forward_groups(&logits, &mask.reshape(rows)?, training)?;
        let gates = (candle_nn::ops::sigmoid(&logits)?.reshape(mask.shape())? * mask)?;
        let gates = gates.broadcast_div(&(gates.sum_keepdim(D::Minus1)? + GATE_EPSILON)?)?;
        self.norm.apply(&gates.unsqueeze(2)?.product(vectors)?.squeeze(2)?)
    }
}
