//! ResNet in Hugging Face's layout.

use candle_core::{DType, Device, Tensor};

use super::network::{ImageNetwork, channels_last, check_colours, stages};
use crate::batch_norm::VARIANCE_EPSILON;
use crate::checkpoint::Source;
use crate::config::Config;
use crate::convolution::{Convolution, Sliding};
use crate::depthwise::Plane;
use crate::error::Result;
use crate::mode::Mode;
use crate::ops::Activation;
use crate::pooling::{max_pool, mean_pool};
use crate::preprocess::Size;

const COLOURS: usize = 3;
const STEM_KERNEL: usize = 7;
const POOL: Sliding = Sliding { kernel: 3, stride: 2, padding: 1 };
/// A bottleneck's inner convolution has a fourth of the channels.
const REDUCTION: usize = 4;

/// Sizes and kinds. The defaults are those of Hugging Face's `ResNetConfig`.
struct ResNetConfig {
    embedding: usize,
    sizes: Vec<usize>,
    depths: Vec<usize>,
    is_bottleneck: bool,
    strides_first: bool,
    /// Whether the stride of a bottleneck is in its first convolution, not in the second.
    strides_early: bool,
}

impl ResNetConfig {
    fn read(config: &Config<'_>) -> Result<Self> {
        check_colours(config)?;
        config.word("hidden_act", &["relu"], "relu")?;
        let (sizes, depths) = stages(config, &[256, 512, 1024, 2048], &[3, 4, 6, 3])?;
        let is_bottleneck =
            config.word("layer_type", &["basic", "bottleneck"], "bottleneck")? == "bottleneck";
        if is_bottleneck && sizes.iter().any(|size| *size < REDUCTION) {
            return Err(config.wrong("hidden_sizes", "4 or more for a bottleneck"));
        }
        Ok(Self {
            embedding: config.size("embedding_size", 64)?,
            sizes,
            depths,
            is_bottleneck,
            strides_first: config.flag("downsample_in_first_stage", false)?,
            strides_early: config.flag("downsample_in_bottleneck", false)?,
        })
    }

    /// Inputs, outputs, depth and stride of each stage.
    fn stages(&self) -> impl Iterator<Item = (usize, usize, usize, usize)> {
        let inputs = std::iter::once(self.embedding).chain(self.sizes.iter().copied());
        let sizes = inputs.zip(self.sizes.iter().zip(&self.depths)).enumerate();
        sizes.map(|(index, (inputs, (outputs, depth)))| {
            let stride = if index > 0 || self.strides_first { 2 } else { 1 };
            (inputs, *outputs, *depth, stride)
        })
    }
}

/// Residual network (He et al., CVPR 2016), basic or bottleneck.
///
/// Batch normalisation always uses the checkpoint's running statistics, in training as well: its weight and bias are trained, its
/// statistics stay. Small batches would spoil them.
pub(crate) struct ResNet {
    stem: Unit,
    layers: Vec<Layer>,
    config: ResNetConfig,
}

impl ResNet {
    pub(crate) fn load(config: &Config<'_>, source: &Source<'_>) -> Result<Self> {
        let config = ResNetConfig::read(config)?;
        let source = source.under_first(&["", "resnet"], "embedder.embedder.convolution.weight");
        let shape = [config.embedding, COLOURS, STEM_KERNEL, STEM_KERNEL];
        let stem = Unit::load(&source.under("embedder.embedder"), shape, 2, Some(Activation::Relu))?;
        let mut layers = Vec::new();
        for (stage, (inputs, outputs, depth, stride)) in config.stages().enumerate() {
            for index in 0..depth {
                let (inputs, stride) = if index == 0 { (inputs, stride) } else { (outputs, 1) };
                let source = source.under(&format!("encoder.stages.{stage}.layers.{index}"));
                layers.push(Layer::load(&config, &source, inputs, outputs, stride)?);
            }
        }
        Ok(Self { stem, layers, config })
    }
}

impl ImageNetwork for ResNet {
    fn dimension(&self) -> usize {
        self.config.sizes.last().copied().unwrap_or(self.config.embedding)
    }

    fn largest_activation(&self, size: Size) -> usize {
        let half = |plane: Plane| Plane { height: plane.height.div_ceil(2), width: plane.width.div_ceil(2) };
        let mut plane = half(Plane { height: size.height as usize, width: size.width as usize });
        let mut largest = plane.pixels().saturating_mul(self.config.embedding);
        plane = half(plane);
        for (_, outputs, _, stride) in self.config.stages() {
            if stride == 2 {
                plane = half(plane);
            }
            largest = largest.max(plane.pixels().saturating_mul(outputs));
        }
        largest
    }

    fn states(&self, pixel_values: &Tensor, _mode: &mut Mode<'_>) -> Result<Tensor> {
        let mut x = self.stem.forward(&channels_last(pixel_values)?, None)?;
        x = max_pool(&x, POOL)?;
        for layer in &self.layers {
            x = layer.forward(&x)?;
        }
        Ok(x)
    }

    fn pooled(&self, states: &Tensor, _mode: &mut Mode<'_>) -> Result<Tensor> {
        Ok(mean_pool(states)?)
    }

    fn fragments(&self, states: &Tensor) -> Result<Tensor> {
        Ok(states.flatten(1, 2)?)
    }
}

/// Convolutions with a shortcut around them.
struct Layer {
    units: Vec<Unit>,
    shortcut: Option<Unit>,
}

impl Layer {
    fn load(
        config: &ResNetConfig,
        source: &Source<'_>,
        inputs: usize,
        outputs: usize,
        stride: usize,
    ) -> Result<Self> {
        let unit = |index: usize, inputs, outputs, kernel, stride| {
            let source = source.under(&format!("layer.{index}"));
            Unit::load(&source, [outputs, inputs, kernel, kernel], stride, Some(Activation::Relu))
        };
        let units = if config.is_bottleneck {
            let inner = outputs / REDUCTION;
            let (first, second) = if config.strides_early { (stride, 1) } else { (1, stride) };
            vec![
                unit(0, inputs, inner, 1, first)?,
                unit(1, inner, inner, 3, second)?,
                unit(2, inner, outputs, 1, 1)?,
            ]
        } else {
            vec![unit(0, inputs, outputs, 3, stride)?, unit(1, outputs, outputs, 3, 1)?]
        };
        let shortcut = if inputs != outputs || stride != 1 {
            let shape = [outputs, inputs, 1, 1];
            Some(Unit::load(&source.under("shortcut"), shape, stride, None)?)
        } else {
            None
        };
        Ok(Self { units, shortcut })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let residual = match &self.shortcut {
            Some(shortcut) => shortcut.forward(x, None)?,
            None => x.clone(),
        };
        let Some((last, units)) = self.units.split_last() else { return Ok(residual) };
        let mut x = x.clone();
        for unit in units {
            x = unit.forward(&x, None)?;
        }
        last.forward(&x, Some(&residual))
    }
}

/// A convolution with batch normalisation behind it, the latter folded into the filters.
///
/// Equation: `w' = w g / sqrt(v + eps)`, `b' = b - m g / sqrt(v + eps)`.
enum Unit {
    /// Folded once.
    Frozen(Convolution),
    /// Folded at each pass, so that gradients reach all parts.
    Trained(Parts),
}

struct Parts {
    weight: Tensor,
    gain: Tensor,
    shift: Tensor,
    mean: Tensor,
    /// `1 / sqrt(variance + eps)`.
    inverse: Tensor,
    stride: usize,
    activation: Option<Activation>,
}

impl Unit {
    fn load(
        source: &Source<'_>,
        shape: [usize; 4],
        stride: usize,
        activation: Option<Activation>,
    ) -> Result<Self> {
        let [outputs, ..] = shape;
        let norm = source.under("normalization");
        let variance = norm.constant("running_var", &[outputs])?;
        if let Some(value) = variance.to_vec1::<f32>()?.into_iter().find(|value| *value < 0.0) {
            return Err(norm.bad_value("running_var", "values of 0 and more", value));
        }
        let exact = variance.to_device(&Device::Cpu)?.to_dtype(DType::F64)?;
        let inverse = (exact + VARIANCE_EPSILON)?.sqrt()?.recip()?.to_dtype(DType::F32)?;
        let parts = Parts {
            weight: source.tensor("convolution.weight", &shape)?,
            gain: norm.tensor("weight", &[outputs])?,
            shift: norm.tensor("bias", &[outputs])?,
            mean: norm.constant("running_mean", &[outputs])?,
            inverse: inverse.to_device(variance.device())?,
            stride,
            activation,
        };
        let trained = [&parts.weight, &parts.gain, &parts.shift].into_iter().any(Tensor::track_op);
        Ok(if trained { Self::Trained(parts) } else { Self::Frozen(parts.folded()?) })
    }

    /// `relu(convolution + residual)`, without the ReLU where the unit has none.
    fn forward(&self, x: &Tensor, residual: Option<&Tensor>) -> Result<Tensor> {
        match self {
            Self::Frozen(convolution) => convolution.forward(x, residual),
            Self::Trained(parts) => parts.folded()?.forward(x, residual),
        }
    }
}

impl Parts {
    fn folded(&self) -> Result<Convolution> {
        let scale = (&self.gain * &self.inverse)?;
        let (outputs, _, kernel, _) = self.weight.dims4()?;
        let weight = self.weight.broadcast_mul(&scale.reshape((outputs, 1, 1, 1))?)?;
        let bias = (&self.shift - (&self.mean * &scale)?)?;
        Ok(Convolution::new(weight, Some(bias), self.stride, kernel / 2, self.activation)?)
    }
}
