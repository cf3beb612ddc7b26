//! The linear layer of the heads.

use candle_core::Tensor;
use candle_nn::{Init, VarBuilder};

use crate::affine::affine;
use crate::error::Result;

/// `y = x W^T + b`, with PyTorch's default first values.
#[derive(Debug, Clone)]
pub(super) struct Linear {
    /// `[out, in]`.
    pub(super) weight: Tensor,
    /// `[out]`.
    pub(super) bias: Tensor,
}

impl Linear {
    pub(super) fn new(input: usize, output: usize, vb: VarBuilder<'_>) -> Result<Self> {
        let bound = 1.0 / (input as f64).sqrt();
        let init = Init::Uniform { lo: -bound, up: bound };
        Ok(Self {
            weight: vb.get_with_hints((output, input), "weight", init)?,
            bias: vb.get_with_hints(output, "bias", init)?,
        })
    }

    /// `x [.., in]` to `[.., out]`.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(affine(x, &self.weight, &self.bias)?)
    }

    /// The same layer outside of any graph.
    pub(super) fn detached(&self) -> Self {
        Self { weight: self.weight.detach(), bias: self.bias.detach() }
    }
}
