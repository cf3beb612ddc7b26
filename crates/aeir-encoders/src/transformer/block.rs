//! A transformer block: attention and two linear layers, each with a shortcut around it.

use candle_core::Tensor;

use super::attention::Attention;
use super::feed_forward::{FeedForward, GatedFeedForward};
use super::linear::Linear;
use super::norm::LayerNorm;
use crate::checkpoint::Source;
use crate::dropout::dropout;
use crate::error::Result;
use crate::mode::Mode;
use crate::ops::{Activation, AttentionBias};

/// Where a block normalises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NormPlacement {
    /// `y = x + f(norm(x))`: ViT, DINOv2, CLIP, SigLIP.
    Before,
    /// `y = norm(x + f(x))`: BERT and its kin.
    After,
}

/// What an architecture calls the parts of a block. Names of linear layers and norms, without `weight` and `bias`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BlockNames {
    pub(crate) query: &'static str,
    pub(crate) key: &'static str,
    pub(crate) value: &'static str,
    pub(crate) output: &'static str,
    pub(crate) attention_norm: &'static str,
    pub(crate) up: &'static str,
    pub(crate) down: &'static str,
    pub(crate) feed_forward_norm: &'static str,
    /// Tensors that scale what attention and the linear layers add, where there are any (DINOv2).
    pub(crate) scales: Option<[&'static str; 2]>,
}

/// Sizes and kinds of a block. `heads` divides `hidden`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BlockConfig {
    pub(crate) names: BlockNames,
    pub(crate) hidden: usize,
    pub(crate) intermediate: usize,
    pub(crate) heads: usize,
    pub(crate) activation: Activation,
    /// Whether the first linear layer has a gate beside each of its values.
    pub(crate) is_gated: bool,
    pub(crate) epsilon: f64,
    pub(crate) placement: NormPlacement,
    /// Whether queries, keys and values have a bias.
    pub(crate) has_projection_bias: bool,
    /// Dropout on attention weights.
    pub(crate) attention_dropout: f32,
    /// Dropout on what attention adds, and on what the linear layers add.
    pub(crate) residual_dropout: [f32; 2],
}

/// One block with its tensors.
#[derive(Debug, Clone)]
pub(crate) struct Block {
    attention: Attention,
    attention_norm: LayerNorm,
    feed_forward: Inner,
    feed_forward_norm: LayerNorm,
    scales: Option<[Tensor; 2]>,
    placement: NormPlacement,
    residual_dropout: [f32; 2],
}

#[derive(Debug, Clone)]
enum Inner {
    Plain(FeedForward),
    Gated(GatedFeedForward),
}

impl Inner {
    fn load(source: &Source<'_>, config: &BlockConfig) -> Result<Self> {
        let BlockConfig { names, hidden, intermediate, activation, .. } = *config;
        let gates = if config.is_gated { intermediate } else { 0 };
        let up = Linear::load(&source.under(names.up), hidden, intermediate + gates)?;
        let down = Linear::load(&source.under(names.down), intermediate, hidden)?;
        Ok(match config.is_gated {
            true => Self::Gated(GatedFeedForward { up, activation, down, dropout: 0.0 }),
            false => Self::Plain(FeedForward { up, activation, down }),
        })
    }

    fn forward(&self, x: &Tensor, mode: &mut Mode<'_>) -> Result<Tensor> {
        match self {
            Self::Plain(layers) => layers.forward(x, mode),
            Self::Gated(layers) => layers.forward(x, mode),
        }
    }

    /// `forward(x) + shortcut`.
    fn forward_added(&self, x: &Tensor, shortcut: &Tensor, mode: &mut Mode<'_>) -> Result<Tensor> {
        match self {
            Self::Plain(layers) => layers.forward_added(x, shortcut, mode),
            Self::Gated(layers) => Ok((layers.forward(x, mode)? + shortcut)?),
        }
    }
}

impl Block {
    /// Takes the tensors of one block.
    pub(crate) fn load(source: &Source<'_>, config: &BlockConfig) -> Result<Self> {
        let BlockConfig { names, hidden, heads, epsilon, .. } = *config;
        let project =
            |name: &str| Linear::load_with(&source.under(name), hidden, hidden, config.has_projection_bias);
        let projections = [project(names.query)?, project(names.key)?, project(names.value)?];
        let output = Linear::load(&source.under(names.output), hidden, hidden)?;
        let norm = |name: &str| LayerNorm::load(&source.under(name), hidden, epsilon);
        let scales = match names.scales {
            Some([first, second]) => {
                Some([source.tensor(first, &[hidden])?, source.tensor(second, &[hidden])?])
            }
            None => None,
        };
        Ok(Self {
            attention: Attention::separate(projections, output, heads, config.attention_dropout)?,
            attention_norm: norm(names.attention_norm)?,
            feed_forward: Inner::load(source, config)?,
            feed_forward_norm: norm(names.feed_forward_norm)?,
            scales,
            placement: config.placement,
            residual_dropout: config.residual_dropout,
        })
    }

    /// The blocks `0`, `1`, … `count - 1` of a source.
    pub(crate) fn load_all(source: &Source<'_>, count: usize, config: &BlockConfig) -> Result<Vec<Self>> {
        (0..count).map(|index| Self::load(&source.under(&index.to_string()), config)).collect()
    }

    /// `x [B, T, D]` to `[B, T, D]`.
    pub(crate) fn forward(&self, x: &Tensor, bias: &AttentionBias, mode: &mut Mode<'_>) -> Result<Tensor> {
        match self.placement {
            NormPlacement::Before => {
                let x = self.attended(&self.attention_norm.forward(x)?, x, bias, mode)?;
                self.fed(&self.feed_forward_norm.forward(&x)?, &x, mode)
            }
            NormPlacement::After => {
                let x = self.attention_norm.forward(&self.attended(x, x, bias, mode)?)?;
                self.feed_forward_norm.forward(&self.fed(&x, &x, mode)?)
            }
        }
    }

    /// Attention with its shortcut.
    fn attended(
        &self,
        x: &Tensor,
        shortcut: &Tensor,
        bias: &AttentionBias,
        mode: &mut Mode<'_>,
    ) -> Result<Tensor> {
        if self.adds_as_is(mode) {
            return self.attention.forward_added(x, bias, shortcut, mode);
        }
        let attended = self.attention.forward(x, bias, None, mode)?;
        self.add(shortcut, &attended, 0, mode)
    }

    /// The linear layers with their shortcut.
    fn fed(&self, x: &Tensor, shortcut: &Tensor, mode: &mut Mode<'_>) -> Result<Tensor> {
        if self.adds_as_is(mode) {
            return self.feed_forward.forward_added(x, shortcut, mode);
        }
        let fed = self.feed_forward.forward(x, mode)?;
        self.add(shortcut, &fed, 1, mode)
    }

    /// Whether a part is added to its shortcut without scale or dropout.
    fn adds_as_is(&self, mode: &Mode<'_>) -> bool {
        self.scales.is_none() && !mode.is_training()
    }

    /// The shortcut: `x`, and what part 0 (attention) or 1 (linear layers) adds.
    fn add(&self, x: &Tensor, part: &Tensor, index: usize, mode: &mut Mode<'_>) -> Result<Tensor> {
        let scaled = match self.scales.as_ref().and_then(|scales| scales.get(index)) {
            Some(scale) => &part.broadcast_mul(scale)?,
            None => part,
        };
        let probability = self.residual_dropout.get(index).copied().unwrap_or(0.0);
        Ok((x + dropout(scaled, probability, mode)?)?)
    }
}
