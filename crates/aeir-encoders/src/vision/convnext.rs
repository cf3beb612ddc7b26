//! ConvNeXt in Hugging Face's layout.

use candle_core::Tensor;

use super::network::{ImageNetwork, channels_last, check_colours, stages};
use crate::checkpoint::Source;
use crate::config::Config;
use crate::convolution::Convolution;
use crate::error::Result;
use crate::mode::Mode;
use crate::ops::{self, Activation, Linear};
use crate::pooling::mean_pool;
use crate::preprocess::Size;
use crate::transformer::LayerNorm;

const DEPTHWISE_KERNEL: usize = 7;
const COLOURS: usize = 3;
const MAX_PATCH: usize = 256;
const DOWNSAMPLING: usize = 2;
/// Channels inside a block over those outside.
const EXPANSION: usize = 4;
/// Everywhere but behind the pooling, where the configuration says it.
const EPSILON: f64 = 1e-6;

/// ConvNeXt (Liu et al., CVPR 2022). Stochastic depth is not applied in training.
pub(crate) struct ConvNext {
    patches: Convolution,
    patch_norm: LayerNorm,
    stages: Vec<Stage>,
    norm: LayerNorm,
    sizes: Vec<usize>,
    patch: usize,
}

impl ConvNext {
    pub(crate) fn load(config: &Config<'_>, source: &Source<'_>) -> Result<Self> {
        check_colours(config)?;
        let (sizes, depths) = stages(config, &[96, 192, 384, 768], &[3, 3, 9, 3])?;
        let patch = config.size("patch_size", 4)?;
        if patch > MAX_PATCH {
            return Err(config.wrong("patch_size", format!("1 to {MAX_PATCH}")));
        }
        let activation = config.activation("hidden_act", "gelu")?;
        let epsilon = config.positive("layer_norm_eps", 1e-12)?;
        let has_scale = config
            .get("layer_scale_init_value")
            .is_none_or(|value| value.as_f64().is_some_and(|value| value > 0.0));
        let source = source.under_first(&["", "convnext"], "embeddings.patch_embeddings.weight");
        let first = sizes.first().copied().unwrap_or(0);
        let embeddings = source.under("embeddings");
        let patches =
            convolution(&embeddings.under("patch_embeddings"), [first, COLOURS, patch, patch], patch)?;
        let patch_norm = LayerNorm::load(&embeddings.under("layernorm"), first, EPSILON)?;
        let mut stages = Vec::new();
        let mut inputs = first;
        for (index, (outputs, depth)) in sizes.iter().zip(&depths).enumerate() {
            let source = source.under(&format!("encoder.stages.{index}"));
            let downsampling = match index {
                0 => None,
                _ => Some(Downsampling::load(&source.under("downsampling_layer"), inputs, *outputs)?),
            };
            let blocks = (0..*depth)
                .map(|block| {
                    Block::load(&source.under(&format!("layers.{block}")), *outputs, activation, has_scale)
                })
                .collect::<Result<Vec<_>>>()?;
            stages.push(Stage { downsampling, blocks });
            inputs = *outputs;
        }
        let norm = LayerNorm::load(&source.under("layernorm"), inputs, epsilon)?;
        Ok(Self { patches, patch_norm, stages, norm, sizes, patch })
    }

    /// Pixels of one side that become one cell.
    fn reduction(&self) -> usize {
        self.patch << self.stages.len().saturating_sub(1)
    }
}

impl ImageNetwork for ConvNext {
    fn dimension(&self) -> usize {
        self.sizes.last().copied().unwrap_or(0)
    }

    fn largest_activation(&self, size: Size) -> usize {
        let sizes = self.sizes.iter().enumerate().map(|(stage, channels)| {
            let side = |side: u32| side as usize / (self.patch << stage);
            side(size.height).saturating_mul(side(size.width)).saturating_mul(channels * EXPANSION)
        });
        sizes.max().unwrap_or(0)
    }

    fn takes(&self, size: Size) -> std::result::Result<(), String> {
        let least = self.reduction();
        if size.width as usize >= least && size.height as usize >= least {
            return Ok(());
        }
        Err(format!("sides of {least} pixels or more"))
    }

    fn states(&self, pixel_values: &Tensor, _mode: &mut Mode<'_>) -> Result<Tensor> {
        let mut x = self.patches.forward(&channels_last(pixel_values)?, None)?;
        x = self.patch_norm.forward(&x)?;
        for stage in &self.stages {
            x = stage.forward(&x)?;
        }
        Ok(x)
    }

    fn pooled(&self, states: &Tensor, _mode: &mut Mode<'_>) -> Result<Tensor> {
        self.norm.forward(&mean_pool(states)?)
    }

    fn fragments(&self, states: &Tensor) -> Result<Tensor> {
        Ok(states.flatten(1, 2)?)
    }
}

/// A convolution with a bias whose stride is the size of its filter.
fn convolution(source: &Source<'_>, shape: [usize; 4], stride: usize) -> Result<Convolution> {
    let [outputs, ..] = shape;
    let (weight, bias) = (source.tensor("weight", &shape)?, source.tensor("bias", &[outputs])?);
    Ok(Convolution::new(weight, Some(bias), stride, 0, None)?)
}

struct Stage {
    downsampling: Option<Downsampling>,
    blocks: Vec<Block>,
}

impl Stage {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut x = match &self.downsampling {
            Some(downsampling) => downsampling.convolution.forward(&downsampling.norm.forward(x)?, None)?,
            None => x.clone(),
        };
        for block in &self.blocks {
            x = block.forward(&x)?;
        }
        Ok(x)
    }
}

struct Downsampling {
    norm: LayerNorm,
    convolution: Convolution,
}

impl Downsampling {
    fn load(source: &Source<'_>, inputs: usize, outputs: usize) -> Result<Self> {
        let shape = [outputs, inputs, DOWNSAMPLING, DOWNSAMPLING];
        Ok(Self {
            norm: LayerNorm::load(&source.under("0"), inputs, EPSILON)?,
            convolution: convolution(&source.under("1"), shape, DOWNSAMPLING)?,
        })
    }
}

/// Equation: `x + scale * W2 activation(W1 norm(depthwise(x)))`.
struct Block {
    depthwise: Tensor,
    depthwise_bias: Tensor,
    norm: LayerNorm,
    expand: Linear,
    activation: Activation,
    project: Linear,
    /// The layer scale while it is trained; otherwise `project` has it inside.
    scale: Option<Tensor>,
}

impl Block {
    fn load(source: &Source<'_>, channels: usize, activation: Activation, has_scale: bool) -> Result<Self> {
        let wide = channels * EXPANSION;
        let linear = |name: &str, inputs: usize, outputs: usize| -> Result<(Tensor, Tensor)> {
            let source = source.under(name);
            Ok((source.tensor("weight", &[outputs, inputs])?, source.tensor("bias", &[outputs])?))
        };
        let (expand_weight, expand_bias) = linear("pwconv1", channels, wide)?;
        let (mut project_weight, mut project_bias) = linear("pwconv2", wide, channels)?;
        let mut scale = has_scale.then(|| source.tensor("layer_scale_parameter", &[channels])).transpose()?;
        let parts = [Some(&project_weight), Some(&project_bias), scale.as_ref()];
        if !parts.into_iter().flatten().any(Tensor::track_op)
            && let Some(scale) = scale.take()
        {
            project_weight = project_weight.broadcast_mul(&scale.unsqueeze(1)?)?;
            project_bias = (project_bias * scale)?;
        }
        let shape = [channels, 1, DEPTHWISE_KERNEL, DEPTHWISE_KERNEL];
        Ok(Self {
            depthwise: source.tensor("dwconv.weight", &shape)?,
            depthwise_bias: source.tensor("dwconv.bias", &[channels])?,
            norm: LayerNorm::load(&source.under("layernorm"), channels, EPSILON)?,
            expand: Linear::new(expand_weight, Some(expand_bias))?,
            activation,
            project: Linear::new(project_weight, Some(project_bias))?,
            scale,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = ops::depthwise(x, &self.depthwise, Some(&self.depthwise_bias))?;
        let y = self.expand.forward_activated(&self.norm.forward(&y)?, self.activation)?;
        match &self.scale {
            Some(scale) => Ok((self.project.forward(&y)?.broadcast_mul(scale)? + x)?),
            None => self.project.forward_added(&y, x),
        }
    }
}
