//! Self-attention that gathers the fragments of one item into a global vector.

use candle_core::{D, Tensor};
use candle_nn::VarBuilder;

use super::linear::Linear;
use super::masked;
use super::{fragment_norm, gated_score};
use crate::batch_norm::BatchNorm;
use crate::dropout::{dropout, mask};
use crate::error::Result;
use crate::fragments::Fragments;
use crate::mode::Mode;
use crate::normalise::UnitNorm;
use crate::ops::Activation;
use crate::weighted_sum::weighted_sum;

/// One branch: of the images, with batch normalisation, or of the sentences, without.
///
/// Equation: `unit(sum_t softmax_t(w . (tanh(norm(W_l x_t)) * tanh(norm(W_g mean(x))))) x_t)`.
#[derive(Debug, Clone)]
pub(super) struct SelfAttention {
    local: Linear,
    global: Linear,
    score: Linear,
    /// One channel a fragment, and one channel a feature.
    batch_norms: Option<(BatchNorm, BatchNorm)>,
    dropout: f32,
    norm: UnitNorm,
}

impl SelfAttention {
    /// `regions` says that the branch has batch normalisation, and over how many fragments.
    pub(super) fn new(
        dimension: usize,
        regions: Option<usize>,
        dropout: f32,
        norm: UnitNorm,
        vb: VarBuilder<'_>,
    ) -> Result<Self> {
        let batch_norms = match regions {
            Some(regions) => Some((
                BatchNorm::new(regions, vb.pp("local_norm"))?,
                BatchNorm::new(dimension, vb.pp("global_norm"))?,
            )),
            None => None,
        };
        Ok(Self {
            local: Linear::new(dimension, dimension, vb.pp("local"))?,
            global: Linear::new(dimension, dimension, vb.pp("global"))?,
            score: Linear::new(dimension, 1, vb.pp("score"))?,
            batch_norms,
            dropout,
            norm,
        })
    }

    pub(super) fn detached(&self) -> Self {
        Self {
            local: self.local.detached(),
            global: self.global.detached(),
            score: self.score.detached(),
            batch_norms: self
                .batch_norms
                .as_ref()
                .map(|(local, global)| (local.detached(), global.detached())),
            dropout: self.dropout,
            norm: self.norm,
        }
    }

    /// Fragments `[B, T, D]` with zeros in padded rows to `[B, D]`.
    pub(super) fn forward(&self, fragments: &Fragments, mode: &mut Mode<'_>) -> Result<Tensor> {
        let features = fragments.features();
        let local = self.local.forward(features)?;
        let mut global = self.global.forward(&fragments.mean_pooled()?)?;
        let mask = fragments.mask().to_dtype(features.dtype())?;
        let training = mode.is_training();
        if let Some((_, norm)) = &self.batch_norms {
            let by_feature = global.t()?.contiguous()?;
            global = norm.forward(&by_feature, &by_feature.ones_like()?, training)?.t()?.contiguous()?;
        }
        let local = match &self.batch_norms {
            #[cfg(feature = "cuda")]
            Some((norm, _)) if training && aeir_kernels::takes(&[&local]) => {
                let mask = fragments.mask();
                let normalised = aeir_kernels::normalised_tanh(&local, mask, norm.weight(), norm.bias())?;
                let [mean, variance, count] = &normalised.statistics;
                norm.update_on_device(mean, variance, count)?;
                normalised.values
            }
            Some((norm, _)) if training && fragment_norm::applies(&local) => {
                fragment_norm::normalised_tanh(norm, &local, fragments)?
            }
            Some((norm, _)) => {
                Activation::Tanh.apply(&normalise_fragments(norm, &local, &mask, training)?)?
            }
            None => Activation::Tanh.apply(&local)?,
        };
        let scores = self.gated_scores(&local, &global.tanh()?, mode)?;
        let weights = masked::softmax(&scores, &mask)?;
        self.norm.apply(&weighted_sum(features, &weights)?)
    }
}

impl SelfAttention {
    /// `local [B, T, D]` and `global [B, D]`, each with dropout, to `[B, T]`.
    fn gated_scores(&self, local: &Tensor, global: &Tensor, mode: &mut Mode<'_>) -> Result<Tensor> {
        if gated_score::applies(local) {
            let dropped = mask(local.elem_count(), self.dropout, mode);
            let global = dropout(global, self.dropout, mode)?;
            let scores = gated_score::gated_scores(local, &global, &self.score.weight, dropped)?;
            return Ok(scores.broadcast_add(&self.score.bias)?);
        }
        let local = dropout(local, self.dropout, mode)?;
        let global = dropout(global, self.dropout, mode)?;
        #[cfg(feature = "cuda")]
        if aeir_kernels::takes(&[&local]) {
            let scores = aeir_kernels::gated_scores(&local, &global, &self.score.weight)?;
            return Ok(scores.broadcast_add(&self.score.bias)?);
        }
        let common = local.broadcast_mul(&global.unsqueeze(1)?)?;
        Ok(self.score.forward(&common)?.squeeze(D::Minus1)?)
    }
}

/// Batch normalisation of `x [B, T, D]` with one channel a fragment.
fn normalise_fragments(norm: &BatchNorm, x: &Tensor, mask: &Tensor, training: bool) -> Result<Tensor> {
    let (batch, fragments, dimension) = x.dims3()?;
    let rows = (fragments, batch * dimension);
    let mask =
        mask.t()?.unsqueeze(2)?.broadcast_as((fragments, batch, dimension))?.contiguous()?.reshape(rows)?;
    let y = norm.forward(&x.transpose(0, 1)?.contiguous()?.reshape(rows)?, &mask, training)?;
    Ok(y.reshape((fragments, batch, dimension))?.transpose(0, 1)?.contiguous()?)
}
