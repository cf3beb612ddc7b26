//! ViT and DINOv2 in Hugging Face's layout.

use candle_core::Tensor;

use super::network::ImageNetwork;
use super::patches::{Geometry, Interpolation, PatchEmbedding, check_grid, interpolate, prepend};
use crate::checkpoint::Source;
use crate::config::Config;
use crate::dropout::dropout;
use crate::error::Result;
use crate::mode::Mode;
use crate::ops::{Activation, AttentionBias};
use crate::preprocess::Size;
use crate::transformer::{Block, BlockConfig, BlockNames, LayerNorm, Linear, NormPlacement};

const ATTENTION_NAMES: BlockNames = BlockNames {
    query: "attention.attention.query",
    key: "attention.attention.key",
    value: "attention.attention.value",
    output: "attention.output.dense",
    attention_norm: "layernorm_before",
    up: "intermediate.dense",
    down: "output.dense",
    feed_forward_norm: "layernorm_after",
    scales: None,
};
const DINO_NAMES: BlockNames = BlockNames {
    attention_norm: "norm1",
    up: "mlp.fc1",
    down: "mlp.fc2",
    feed_forward_norm: "norm2",
    scales: Some(["layer_scale1.lambda1", "layer_scale2.lambda1"]),
    ..ATTENTION_NAMES
};
const GATED_DINO_NAMES: BlockNames =
    BlockNames { up: "mlp.weights_in", down: "mlp.weights_out", ..DINO_NAMES };

/// Vision transformer with a class token: ViT (Dosovitskiy et al., ICLR 2021), DINOv2 (Oquab et al., 2023), the latter with
/// registers as well (Darcet et al., ICLR 2024). Stochastic depth is not applied in training.
pub(crate) struct Vit {
    geometry: Geometry,
    class: Tensor,
    /// Of the class token, `[1, 1, D]`, and of the patches, `[1, N, D]`.
    positions: Tensor,
    registers: Option<Tensor>,
    patches: PatchEmbedding,
    blocks: Vec<Block>,
    norm: LayerNorm,
    pooler: Option<(Linear, Activation)>,
    dropout: f32,
    /// How positions are interpolated for images of another size, if such images are taken.
    interpolation: Option<Interpolation>,
}

impl Vit {
    pub(crate) fn load(config: &Config<'_>, source: &Source<'_>) -> Result<Self> {
        let geometry = Geometry::read(config, 16, |_| config.size("intermediate_size", 3072))?;
        let hidden = geometry.hidden;
        if config.size("pooler_output_size", hidden)? != hidden {
            return Err(config.wrong("pooler_output_size", format!("hidden_size {hidden}")));
        }
        let dropout = config.dropout("hidden_dropout_prob", 0.0)?;
        let block = BlockConfig {
            residual_dropout: [dropout; 2],
            ..block_config(config, &geometry, ATTENTION_NAMES, 1e-12)?
        };
        let pooler_activation = config.activation("pooler_act", "tanh")?;
        let source = source.under_first(&["", "vit"], "embeddings.cls_token");
        let mut vit = Self::assemble(&source, geometry, &block)?;
        if source.contains("pooler.dense.weight") {
            let dense = Linear::load(&source.under("pooler.dense"), hidden, hidden)?;
            vit.pooler = Some((dense, pooler_activation));
        }
        Ok(vit)
    }

    pub(crate) fn load_dino(config: &Config<'_>, has_registers: bool, source: &Source<'_>) -> Result<Self> {
        let is_gated = config.flag("use_swiglu_ffn", false)?;
        let ratio = config.size("mlp_ratio", 4)?;
        let geometry = Geometry::read(config, 14, |hidden| {
            let wide = hidden.saturating_mul(ratio);
            // Two thirds, rounded up to eights: three matrices in place of two.
            Ok(if is_gated { (wide / 3 * 2 + wide % 3 * 2 / 3).next_multiple_of(8) } else { wide })
        })?;
        let dropout = config.dropout("hidden_dropout_prob", 0.0)?;
        let names = if is_gated { GATED_DINO_NAMES } else { DINO_NAMES };
        let mut block = BlockConfig {
            is_gated,
            residual_dropout: [dropout, 0.0],
            ..block_config(config, &geometry, names, 1e-6)?
        };
        if is_gated {
            block.activation = Activation::Silu;
        }
        let prefix = if has_registers { "dinov2_with_registers" } else { "dinov2" };
        let source = source.under_first(&["", prefix], "embeddings.cls_token");
        let mut vit = Self::assemble(&source, geometry, &block)?;
        vit.interpolation = Some(match has_registers {
            true => Interpolation::Antialiased,
            false => Interpolation::Bicubic,
        });
        if has_registers {
            let shape = [1, config.size("num_register_tokens", 4)?, geometry.hidden];
            vit.registers = Some(source.tensor("embeddings.register_tokens", &shape)?);
        }
        Ok(vit)
    }

    fn assemble(source: &Source<'_>, geometry: Geometry, block: &BlockConfig) -> Result<Self> {
        let (hidden, count) = (geometry.hidden, geometry.side() * geometry.side());
        let embeddings = source.under("embeddings");
        Ok(Self {
            geometry,
            class: embeddings.tensor("cls_token", &[1, 1, hidden])?,
            positions: embeddings.tensor("position_embeddings", &[1, count + 1, hidden])?,
            registers: None,
            patches: PatchEmbedding::load(&embeddings.under("patch_embeddings.projection"), &geometry, true)?,
            blocks: Block::load_all(&source.under("encoder.layer"), geometry.layers, block)?,
            norm: LayerNorm::load(&source.under("layernorm"), hidden, block.epsilon)?,
            pooler: None,
            dropout: block.residual_dropout[0],
            interpolation: None,
        })
    }

    /// Tokens that are no patches: the class token and the registers.
    fn extra(&self) -> Result<usize> {
        Ok(1 + self.registers.as_ref().map(|registers| registers.dim(1)).transpose()?.unwrap_or(0))
    }

    /// Positions of the class token and of a grid.
    fn positions(&self, grid: &Tensor) -> Result<Tensor> {
        let side = self.geometry.side();
        let Some(interpolation) = self.interpolation else {
            check_grid(grid, side)?;
            return Ok(self.positions.clone());
        };
        let (_, height, width, _) = grid.dims4()?;
        if (height, width) == (side, side) {
            return Ok(self.positions.clone());
        }
        let patches = self.positions.narrow(1, 1, side * side)?;
        let patches = interpolate(&patches, side, (height, width), interpolation)?;
        Ok(Tensor::cat(&[&self.positions.narrow(1, 0, 1)?, &patches], 1)?)
    }
}

/// What the blocks of both have in common.
fn block_config(
    config: &Config<'_>,
    geometry: &Geometry,
    names: BlockNames,
    epsilon: f64,
) -> Result<BlockConfig> {
    Ok(BlockConfig {
        names,
        hidden: geometry.hidden,
        intermediate: geometry.intermediate,
        heads: geometry.heads,
        activation: config.activation("hidden_act", "gelu")?,
        is_gated: false,
        epsilon: config.positive("layer_norm_eps", epsilon)?,
        placement: NormPlacement::Before,
        has_projection_bias: config.flag("qkv_bias", true)?,
        attention_dropout: config.dropout("attention_probs_dropout_prob", 0.0)?,
        residual_dropout: [0.0; 2],
    })
}

impl ImageNetwork for Vit {
    fn dimension(&self) -> usize {
        self.geometry.hidden
    }

    fn largest_activation(&self, size: Size) -> usize {
        self.geometry.largest_activation(size, self.extra().unwrap_or(1))
    }

    fn takes(&self, size: Size) -> std::result::Result<(), String> {
        if self.interpolation.is_none() {
            return self.geometry.takes(size);
        }
        let least = self.geometry.patch_size;
        if size.width as usize >= least && size.height as usize >= least {
            return Ok(());
        }
        Err(format!("sides of {least} pixels or more"))
    }

    fn states(&self, pixel_values: &Tensor, mode: &mut Mode<'_>) -> Result<Tensor> {
        let grid = self.patches.forward(pixel_values)?;
        let tokens = prepend(&self.class, &grid.flatten(1, 2)?)?.broadcast_add(&self.positions(&grid)?)?;
        let tokens = match &self.registers {
            Some(registers) => {
                let patches = tokens.narrow(1, 1, tokens.dim(1)? - 1)?;
                Tensor::cat(&[tokens.narrow(1, 0, 1)?, prepend(registers, &patches)?], 1)?
            }
            None => tokens,
        };
        let mut x = dropout(&tokens, self.dropout, mode)?;
        for block in &self.blocks {
            x = block.forward(&x, &AttentionBias::none(), mode)?;
        }
        self.norm.forward(&x)
    }

    fn pooled(&self, states: &Tensor, mode: &mut Mode<'_>) -> Result<Tensor> {
        let class = states.narrow(1, 0, 1)?.squeeze(1)?.contiguous()?;
        match &self.pooler {
            Some((dense, activation)) => activation.apply(&dense.forward(&class, mode)?),
            None => Ok(class),
        }
    }

    fn fragments(&self, states: &Tensor) -> Result<Tensor> {
        let extra = self.extra()?;
        Ok(states.narrow(1, extra, states.dim(1)? - extra)?.contiguous()?)
    }
}
