//! Layer normalisation with its parameters.

use candle_core::Tensor;

use crate::checkpoint::Source;
use crate::error::Result;
use crate::ops;

/// [`ops::layer_norm`] with a weight and, mostly, a bias.
#[derive(Debug, Clone)]
pub(crate) struct LayerNorm {
    weight: Tensor,
    bias: Option<Tensor>,
    epsilon: f64,
}

impl LayerNorm {
    /// `weight [D]` and `bias [D]` of a source; checkpoints of TensorFlow's days say `gamma` and `beta`.
    pub(crate) fn load(source: &Source<'_>, dimension: usize, epsilon: f64) -> Result<Self> {
        let (weight, bias) = match source.contains("gamma") {
            true => ("gamma", "beta"),
            false => ("weight", "bias"),
        };
        Ok(Self {
            weight: source.tensor(weight, &[dimension])?,
            bias: Some(source.tensor(bias, &[dimension])?),
            epsilon,
        })
    }

    /// `weight [D]` of a source, with `bias [D]` if it `has_bias`.
    pub(crate) fn load_with(
        source: &Source<'_>,
        dimension: usize,
        epsilon: f64,
        has_bias: bool,
    ) -> Result<Self> {
        if has_bias {
            return Self::load(source, dimension, epsilon);
        }
        Ok(Self { weight: source.tensor("weight", &[dimension])?, bias: None, epsilon })
    }

    /// `x [.., D]` to `[.., D]`.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        ops::layer_norm(x, &self.weight, self.bias.as_ref(), self.epsilon)
    }
}
