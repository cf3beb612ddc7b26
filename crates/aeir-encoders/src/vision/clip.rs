//! The image towers of CLIP and SigLIP in Hugging Face's layout.

use candle_core::Tensor;

use super::network::ImageNetwork;
use super::patches::{Geometry, PatchEmbedding, check_grid, prepend};
use crate::checkpoint::Source;
use crate::config::Config;
use crate::error::Result;
use crate::mode::Mode;
use crate::ops::AttentionBias;
use crate::preprocess::Size;
use crate::transformer::{
    Attention, Block, BlockConfig, BlockNames, FeedForward, LayerNorm, Linear, NormPlacement,
};

const NAMES: BlockNames = BlockNames {
    query: "self_attn.q_proj",
    key: "self_attn.k_proj",
    value: "self_attn.v_proj",
    output: "self_attn.out_proj",
    attention_norm: "layer_norm1",
    up: "mlp.fc1",
    down: "mlp.fc2",
    feed_forward_norm: "layer_norm2",
    scales: None,
};

/// Width of CLIP's joint space where its configuration does not say it.
const PROJECTION: usize = 512;

/// What CLIP and SigLIP do differently where their configurations say nothing.
struct Defaults {
    patch_size: usize,
    activation: &'static str,
    epsilon: f64,
}

const CLIP: Defaults = Defaults { patch_size: 32, activation: "quick_gelu", epsilon: 1e-5 };
const SIGLIP: Defaults = Defaults { patch_size: 16, activation: "gelu_pytorch_tanh", epsilon: 1e-6 };

fn parts(config: &Config<'_>, defaults: &Defaults) -> Result<(Geometry, BlockConfig)> {
    let geometry = Geometry::read(config, defaults.patch_size, |_| config.size("intermediate_size", 3072))?;
    let block = BlockConfig {
        names: NAMES,
        hidden: geometry.hidden,
        intermediate: geometry.intermediate,
        heads: geometry.heads,
        activation: config.activation("hidden_act", defaults.activation)?,
        is_gated: false,
        epsilon: config.positive("layer_norm_eps", defaults.epsilon)?,
        placement: NormPlacement::Before,
        has_projection_bias: true,
        attention_dropout: config.dropout("attention_dropout", 0.0)?,
        residual_dropout: [0.0; 2],
    };
    Ok((geometry, block))
}

/// The image tower of CLIP (Radford et al., ICML 2021) with its projection, where the checkpoint has one.
///
/// Patches go through the same norm and projection as the class token, so that they lie in the same space.
pub(crate) struct ClipVision {
    geometry: Geometry,
    class: Tensor,
    positions: Tensor,
    patches: PatchEmbedding,
    first_norm: LayerNorm,
    blocks: Vec<Block>,
    last_norm: LayerNorm,
    projection: Option<Linear>,
    dimension: usize,
}

impl ClipVision {
    /// `config` is the tower's own part; `whole` says the width of the joint space, if it is the configuration of both towers.
    pub(crate) fn load(config: &Config<'_>, whole: Option<&Config<'_>>, source: &Source<'_>) -> Result<Self> {
        let (geometry, block) = parts(config, &CLIP)?;
        let (hidden, count) = (geometry.hidden, geometry.side() * geometry.side());
        let tower = source.under("vision_model");
        let embeddings = tower.under("embeddings");
        let norm = |name: &str| LayerNorm::load(&tower.under(name), hidden, block.epsilon);
        let width = whole.unwrap_or(config).size("projection_dim", PROJECTION)?;
        let projection = match source.contains("visual_projection.weight") {
            true => Some(Linear::load_with(&source.under("visual_projection"), hidden, width, false)?),
            false => None,
        };
        Ok(Self {
            geometry,
            class: embeddings.tensor("class_embedding", &[hidden])?,
            positions: embeddings.tensor("position_embedding.weight", &[count + 1, hidden])?,
            patches: PatchEmbedding::load(&embeddings.under("patch_embedding"), &geometry, false)?,
            // Misspelt in the published checkpoints.
            first_norm: norm("pre_layrnorm")?,
            blocks: Block::load_all(&tower.under("encoder.layers"), geometry.layers, &block)?,
            last_norm: norm("post_layernorm")?,
            dimension: if projection.is_some() { width } else { hidden },
            projection,
        })
    }

    fn project(&self, states: &Tensor) -> Result<Tensor> {
        let states = self.last_norm.forward(&states.contiguous()?)?;
        match &self.projection {
            Some(projection) => projection.forward(&states, &mut Mode::Evaluation),
            None => Ok(states),
        }
    }
}

impl ImageNetwork for ClipVision {
    fn dimension(&self) -> usize {
        self.dimension
    }

    fn largest_activation(&self, size: Size) -> usize {
        self.geometry.largest_activation(size, 1)
    }

    fn takes(&self, size: Size) -> std::result::Result<(), String> {
        self.geometry.takes(size)
    }

    fn states(&self, pixel_values: &Tensor, mode: &mut Mode<'_>) -> Result<Tensor> {
        let grid = self.patches.forward(pixel_values)?;
        check_grid(&grid, self.geometry.side())?;
        let class = self.class.reshape((1, 1, self.geometry.hidden))?;
        let tokens = prepend(&class, &grid.flatten(1, 2)?)?.broadcast_add(&self.positions)?;
        let mut x = self.first_norm.forward(&tokens)?;
        for block in &self.blocks {
            x = block.forward(&x, &AttentionBias::none(), mode)?;
        }
        Ok(x)
    }

    fn pooled(&self, states: &Tensor, _mode: &mut Mode<'_>) -> Result<Tensor> {
        self.project(&states.narrow(1, 0, 1)?.squeeze(1)?)
    }

    fn fragments(&self, states: &Tensor) -> Result<Tensor> {
        self.project(&states.narrow(1, 1, states.dim(1)? - 1)?)
    }
}

/// The image tower of SigLIP (Zhai et al., ICCV 2023): no class token, and a learnt query that attends to all patches.
pub(crate) struct SiglipVision {
    geometry: Geometry,
    positions: Tensor,
    patches: PatchEmbedding,
    blocks: Vec<Block>,
    last_norm: LayerNorm,
    probe: Tensor,
    attention: Attention,
    head_norm: LayerNorm,
    feed_forward: FeedForward,
}

impl SiglipVision {
    pub(crate) fn load(config: &Config<'_>, source: &Source<'_>) -> Result<Self> {
        if !config.flag("vision_use_head", true)? {
            return Err(config.wrong("vision_use_head", "true: the embedding is what the head finds"));
        }
        let (geometry, block) = parts(config, &SIGLIP)?;
        let (hidden, intermediate) = (geometry.hidden, geometry.intermediate);
        let tower = source.under("vision_model");
        let (embeddings, head) = (tower.under("embeddings"), tower.under("head"));
        let count = geometry.side() * geometry.side();
        Ok(Self {
            geometry,
            positions: embeddings.tensor("position_embedding.weight", &[count, hidden])?,
            patches: PatchEmbedding::load(&embeddings.under("patch_embedding"), &geometry, true)?,
            blocks: Block::load_all(&tower.under("encoder.layers"), geometry.layers, &block)?,
            last_norm: LayerNorm::load(&tower.under("post_layernorm"), hidden, block.epsilon)?,
            probe: head.tensor("probe", &[1, 1, hidden])?,
            attention: Attention::packed(&head.under("attention"), hidden, geometry.heads)?,
            head_norm: LayerNorm::load(&head.under("layernorm"), hidden, block.epsilon)?,
            feed_forward: FeedForward {
                up: Linear::load(&head.under("mlp.fc1"), hidden, intermediate)?,
                activation: block.activation,
                down: Linear::load(&head.under("mlp.fc2"), intermediate, hidden)?,
            },
        })
    }
}

impl ImageNetwork for SiglipVision {
    fn dimension(&self) -> usize {
        self.geometry.hidden
    }

    fn largest_activation(&self, size: Size) -> usize {
        self.geometry.largest_activation(size, 0)
    }

    fn takes(&self, size: Size) -> std::result::Result<(), String> {
        self.geometry.takes(size)
    }

    fn states(&self, pixel_values: &Tensor, mode: &mut Mode<'_>) -> Result<Tensor> {
        let grid = self.patches.forward(pixel_values)?;
        check_grid(&grid, self.geometry.side())?;
        let mut x = grid.flatten(1, 2)?.broadcast_add(&self.positions)?;
        for block in &self.blocks {
            x = block.forward(&x, &AttentionBias::none(), mode)?;
        }
        self.last_norm.forward(&x)
    }

    fn pooled(&self, states: &Tensor, mode: &mut Mode<'_>) -> Result<Tensor> {
        let (batch, _, hidden) = states.dims3()?;
        let probe = self.probe.broadcast_as((batch, 1, hidden))?.contiguous()?;
        let found = self.attention.forward_to(&probe, states, &AttentionBias::none(), mode)?;
        let fed = self.feed_forward.forward(&self.head_norm.forward(&found)?, mode)?;
        Ok((&found + fed)?.squeeze(1)?)
    }

    fn fragments(&self, states: &Tensor) -> Result<Tensor> {
        Ok(states.clone())
    }
}
