//! Multi-head attention.

use candle_core::{D, Tensor};

use super::linear::Linear;
use super::rotary::rotate;
use crate::checkpoint::Source;
use crate::dropout::dropout;
use crate::error::Result;
use crate::mode::Mode;
use crate::ops::{self, AttentionBias};
use crate::rehearsal::Product;

/// Queries, keys and values of several heads, and a linear layer over what they find.
#[derive(Debug, Clone)]
pub(crate) struct Attention {
    projections: Projections,
    output: Linear,
    heads: usize,
    dropout: f32,
}

#[derive(Debug, Clone)]
enum Projections {
    Separate {
        query: Linear,
        key: Linear,
        value: Linear,
    },
    /// Rows of queries, then of keys, then of values.
    Fused(Linear),
}

impl Attention {
    /// Three layers and the one over their result. `heads` divides the layers' outputs.
    pub(crate) fn separate(
        [query, key, value]: [Linear; 3],
        output: Linear,
        heads: usize,
        dropout: f32,
    ) -> Result<Self> {
        #[cfg(feature = "cuda")]
        if let Some(projection) = Linear::joined(&[&query, &key, &value])? {
            return Ok(Self::fused(projection, output, heads, dropout));
        }
        Ok(Self { projections: Projections::Separate { query, key, value }, output, heads, dropout })
    }

    /// One layer with three times as many outputs and the one over the result.
    pub(crate) fn fused(projection: Linear, output: Linear, heads: usize, dropout: f32) -> Self {
        Self { projections: Projections::Fused(projection), output, heads, dropout }
    }

    /// The parameters of PyTorch's `nn.MultiheadAttention`: `in_proj_weight [3D, D]`, `in_proj_bias`, `out_proj`.
    pub(crate) fn packed(source: &Source<'_>, dimension: usize, heads: usize) -> Result<Self> {
        let weight = source.tensor("in_proj_weight", &[3 * dimension, dimension])?;
        let bias = source.tensor("in_proj_bias", &[3 * dimension])?;
        let part = |index: usize| -> Result<Linear> {
            let rows = |tensor: &Tensor| tensor.narrow(0, index * dimension, dimension);
            Ok(Linear::new(rows(&weight)?, Some(rows(&bias)?)))
        };
        let output = Linear::load(&source.under("out_proj"), dimension, dimension)?;
        Self::separate([part(0)?, part(1)?, part(2)?], output, heads, 0.0)
    }

    /// Attention of `x [B, T, D]` to itself; `angles` turn queries and keys where positions are rotary.
    pub(crate) fn forward(
        &self,
        x: &Tensor,
        bias: &AttentionBias,
        angles: Option<&(Tensor, Tensor)>,
        mode: &mut Mode<'_>,
    ) -> Result<Tensor> {
        self.output.forward(&self.found(x, bias, angles, mode)?, mode)
    }

    /// `forward(x) + shortcut`.
    pub(crate) fn forward_added(
        &self,
        x: &Tensor,
        bias: &AttentionBias,
        shortcut: &Tensor,
        mode: &mut Mode<'_>,
    ) -> Result<Tensor> {
        self.output.forward_added(&self.found(x, bias, None, mode)?, shortcut, mode)
    }

    /// What each token finds, heads side by side.
    fn found(
        &self,
        x: &Tensor,
        bias: &AttentionBias,
        angles: Option<&(Tensor, Tensor)>,
        mode: &mut Mode<'_>,
    ) -> Result<Tensor> {
        let [mut query, mut key, value] = match &self.projections {
            Projections::Separate { query, key, value } => [
                self.split(&query.forward(x, mode)?)?,
                self.split(&key.forward(x, mode)?)?,
                self.split(&value.forward(x, mode)?)?,
            ],
            Projections::Fused(projection) => self.split_in_three(&projection.forward(x, mode)?)?,
        };
        if let Some(angles) = angles {
            (query, key) = (rotate(&query, angles)?, rotate(&key, angles)?);
        }
        self.attend(&query, &key, &value, bias, mode)
    }

    /// Attention of `queries [B, Q, D]` to `memory [B, T, D]`.
    pub(crate) fn forward_to(
        &self,
        queries: &Tensor,
        memory: &Tensor,
        bias: &AttentionBias,
        mode: &mut Mode<'_>,
    ) -> Result<Tensor> {
        let (query, key, value) = match &self.projections {
            Projections::Separate { query, key, value } => {
                (query.forward(queries, mode)?, key.forward(memory, mode)?, value.forward(memory, mode)?)
            }
            Projections::Fused(projection) => {
                let size = projection.outputs() / 3;
                let both = projection.forward(memory, mode)?;
                let query = projection.forward(queries, mode)?.narrow(D::Minus1, 0, size)?;
                (query, both.narrow(D::Minus1, size, size)?, both.narrow(D::Minus1, 2 * size, size)?)
            }
        };
        let found =
            self.attend(&self.split(&query)?, &self.split(&key)?, &self.split(&value)?, bias, mode)?;
        self.output.forward(&found, mode)
    }

    /// `[B, T, D]` to `[B, H, T, d]`.
    fn split(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, length, dimension) = x.dims3()?;
        Ok(x.reshape((batch, length, self.heads, dimension / self.heads))?.transpose(1, 2)?)
    }

    /// `[B, T, 3D]` to three views `[B, H, T, d]`.
    fn split_in_three(&self, x: &Tensor) -> Result<[Tensor; 3]> {
        let (batch, length, all) = x.dims3()?;
        let x = x.reshape((batch, length, 3, self.heads, all / 3 / self.heads))?;
        let part = |index| x.narrow(2, index, 1)?.squeeze(2)?.transpose(1, 2);
        Ok([part(0)?, part(1)?, part(2)?])
    }

    fn attend(
        &self,
        query: &Tensor,
        key: &Tensor,
        value: &Tensor,
        bias: &AttentionBias,
        mode: &mut Mode<'_>,
    ) -> Result<Tensor> {
        let scale = 1.0 / (query.dim(D::Minus1)? as f64).sqrt();
        let found = if self.dropout > 0.0 && mode.is_training() {
            let weights = dropout(&weights(query, key, scale, bias)?, self.dropout, mode)?;
            weights.product(&value.contiguous()?)?
        } else {
            ops::attention(query, key, value, scale, bias)?
        };
        Ok(found.transpose(1, 2)?.flatten_from(2)?)
    }
}

/// `softmax(scale q k^T + bias)`, for dropout on it.
fn weights(query: &Tensor, key: &Tensor, scale: f64, bias: &AttentionBias) -> Result<Tensor> {
    let scores = (query.contiguous()? * scale)?.product(&key.t()?.contiguous()?)?;
    let (queries, keys) = (scores.dim(D::Minus2)?, scores.dim(D::Minus1)?);
    match bias.additive(queries, keys, scores.dtype(), scores.device())? {
        Some(bias) => ops::softmax(&scores.broadcast_add(&bias)?),
        None => ops::softmax(&scores),
    }
}
