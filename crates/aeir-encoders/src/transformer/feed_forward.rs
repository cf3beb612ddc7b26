//! The two linear layers of a block.

use candle_core::{D, Tensor};

use super::linear::Linear;
use crate::error::Result;
use crate::mode::Mode;
use crate::ops::Activation;

/// Equation: `W2 activation(W1 x + b1) + b2`.
#[derive(Debug, Clone)]
pub(crate) struct FeedForward {
    pub(crate) up: Linear,
    pub(crate) activation: Activation,
    pub(crate) down: Linear,
}

impl FeedForward {
    pub(crate) fn forward(&self, x: &Tensor, mode: &mut Mode<'_>) -> Result<Tensor> {
        let inner = self.up.forward_activated(x, self.activation, mode)?;
        self.down.forward(&inner, mode)
    }

    /// `forward(x) + shortcut`.
    pub(crate) fn forward_added(&self, x: &Tensor, shortcut: &Tensor, mode: &mut Mode<'_>) -> Result<Tensor> {
        let inner = self.up.forward_activated(x, self.activation, mode)?;
        self.down.forward_added(&inner, shortcut, mode)
    }
}

/// Equation: `W2 (activation(a) * g)`, `[a, g] = W1 x` (Shazeer, 2020).
#[derive(Debug, Clone)]
pub(crate) struct GatedFeedForward {
    /// Rows of the activated half, then of the gate.
    pub(crate) up: Linear,
    pub(crate) activation: Activation,
    pub(crate) down: Linear,
    pub(crate) dropout: f32,
}

impl GatedFeedForward {
    pub(crate) fn forward(&self, x: &Tensor, mode: &mut Mode<'_>) -> Result<Tensor> {
        let both = self.up.forward(x, mode)?;
        let size = self.up.outputs() / 2;
        let activated = self.activation.apply(&both.narrow(D::Minus1, 0, size)?)?;
        let inner = (activated * both.narrow(D::Minus1, size, size)?)?;
        self.down.forward(&crate::dropout(&inner, self.dropout, mode)?, mode)
    }
}
