//! A linear layer that can carry a low-rank adapter.

use candle_core::Tensor;

use crate::checkpoint::Source;
use crate::error::Result;
use crate::lora::Adapter;
use crate::mode::Mode;
use crate::ops::{self, Activation};

/// `x W^T + b`, and what the adapter adds.
#[derive(Debug, Clone)]
pub(crate) struct Linear {
    layer: ops::Linear,
    adapter: Option<Adapter>,
}

impl Linear {
    /// `weight [O, I]` and `bias [O]` of a source.
    pub(crate) fn load(source: &Source<'_>, inputs: usize, outputs: usize) -> Result<Self> {
        Self::load_with(source, inputs, outputs, true)
    }

    /// `weight [O, I]` of a source, with its bias if it `has_bias`.
    pub(crate) fn load_with(
        source: &Source<'_>,
        inputs: usize,
        outputs: usize,
        has_bias: bool,
    ) -> Result<Self> {
        let weight = source.tensor("weight", &[outputs, inputs])?;
        let bias = has_bias.then(|| source.tensor("bias", &[outputs])).transpose()?;
        Ok(Self { layer: ops::Linear::unchecked(weight, bias), adapter: source.adapter(inputs, outputs)? })
    }

    /// A layer of tensors at hand, such as rows of a larger matrix.
    pub(crate) fn new(weight: Tensor, bias: Option<Tensor>) -> Self {
        Self { layer: ops::Linear::unchecked(weight, bias), adapter: None }
    }

    /// Layers of the same input as one, their outputs behind one another, where nothing trains them and they lie on an NVIDIA card: one
    /// product keeps more of it busy than three.
    #[cfg(feature = "cuda")]
    pub(crate) fn joined(layers: &[&Self]) -> Result<Option<Self>> {
        let weights: Vec<&Tensor> = layers.iter().map(|layer| layer.layer.weight()).collect();
        let biases: Vec<&Tensor> = layers.iter().filter_map(|layer| layer.layer.bias()).collect();
        let is_tracked = weights.iter().chain(&biases).any(|tensor| tensor.track_op());
        let has_adapter = layers.iter().any(|layer| layer.adapter.is_some());
        let fits = biases.is_empty() || biases.len() == layers.len();
        if is_tracked || has_adapter || !fits || !aeir_kernels::takes(&weights) {
            return Ok(None);
        }
        let bias = if biases.is_empty() { None } else { Some(Tensor::cat(&biases, 0)?) };
        Ok(Some(Self::new(Tensor::cat(&weights, 0)?, bias)))
    }

    /// Number of outputs.
    pub(crate) fn outputs(&self) -> usize {
        self.layer.weight().dims().first().copied().unwrap_or(0)
    }

    /// `x [.., I]` to `[.., O]`.
    pub(crate) fn forward(&self, x: &Tensor, mode: &mut Mode<'_>) -> Result<Tensor> {
        let y = self.layer.forward(x)?;
        match &self.adapter {
            Some(adapter) => Ok((y + adapter.forward(x, mode)?)?),
            None => Ok(y),
        }
    }

    /// `activation(forward(x))`.
    pub(crate) fn forward_activated(
        &self,
        x: &Tensor,
        activation: Activation,
        mode: &mut Mode<'_>,
    ) -> Result<Tensor> {
        match &self.adapter {
            Some(_) => activation.apply(&self.forward(x, mode)?),
            None => self.layer.forward_activated(x, activation),
        }
    }

    /// `forward(x) + shortcut`.
    pub(crate) fn forward_added(&self, x: &Tensor, shortcut: &Tensor, mode: &mut Mode<'_>) -> Result<Tensor> {
        match &self.adapter {
            Some(_) => Ok((self.forward(x, mode)? + shortcut)?),
            None => self.layer.forward_added(x, shortcut),
        }
    }
}
