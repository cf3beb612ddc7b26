//! Patches of a picture as tokens, and their positions.

use candle_core::{Device, Tensor};

use super::network::{channels_last, check_colours};
use crate::checkpoint::Source;
use crate::config::Config;
use crate::convolution::Convolution;
use crate::error::{EncoderError, Result};
use crate::preprocess::{Filter, Size};
use crate::rehearsal::Product;

/// Largest side of an image.
const MAX_SIDE: usize = 4096;
/// PyTorch's cubic convolution; Pillow's is -0.5.
const CUBIC: f64 = -0.75;

/// The sizes that all vision transformers have.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Geometry {
    pub(crate) image_size: usize,
    pub(crate) patch_size: usize,
    pub(crate) hidden: usize,
    pub(crate) intermediate: usize,
    pub(crate) heads: usize,
    pub(crate) layers: usize,
}

impl Geometry {
    /// Reads all but `intermediate`, which the file says or the other sizes give.
    pub(crate) fn read(
        config: &Config<'_>,
        patch_size: usize,
        intermediate: impl FnOnce(usize) -> Result<usize>,
    ) -> Result<Self> {
        check_colours(config)?;
        let image_size = config.size("image_size", 224)?;
        if image_size > MAX_SIDE {
            return Err(config.wrong("image_size", format!("1 to {MAX_SIDE}")));
        }
        let patch_size = config.size("patch_size", patch_size)?;
        if patch_size > image_size {
            return Err(config.wrong("patch_size", format!("at most image_size {image_size}")));
        }
        let (hidden, heads) = config.width("hidden_size", "num_attention_heads", (768, 12))?;
        Ok(Self {
            image_size,
            patch_size,
            hidden,
            intermediate: intermediate(hidden)?,
            heads,
            layers: config.layers("num_hidden_layers", 12)?,
        })
    }

    /// Patches along a side of the configured image size.
    pub(crate) fn side(&self) -> usize {
        self.image_size / self.patch_size
    }

    /// Values of the largest tensor for one image with `extra` tokens beside its patches.
    pub(crate) fn largest_activation(&self, size: Size, extra: usize) -> usize {
        let patches = |side: u32| side as usize / self.patch_size;
        let tokens = (patches(size.height) * patches(size.width)).saturating_add(extra);
        tokens.saturating_mul(self.intermediate.max(self.heads.saturating_mul(tokens)))
    }

    /// Whether images of this size are what the positions were made for.
    pub(crate) fn takes(&self, size: Size) -> std::result::Result<(), String> {
        let side = self.image_size;
        if (size.width as usize, size.height as usize) == (side, side) {
            return Ok(());
        }
        Err(format!("{side}x{side}, the image_size of config.json"))
    }
}

/// The first layer: a linear map of each patch.
pub(crate) struct PatchEmbedding {
    convolution: Convolution,
    patch: usize,
}

impl PatchEmbedding {
    /// `weight [hidden, 3, patch, patch]` and, if it `has_bias`, `bias [hidden]` of a source.
    pub(crate) fn load(source: &Source<'_>, geometry: &Geometry, has_bias: bool) -> Result<Self> {
        let patch = geometry.patch_size;
        let weight = source.tensor("weight", &[geometry.hidden, 3, patch, patch])?;
        let bias = has_bias.then(|| source.tensor("bias", &[geometry.hidden])).transpose()?;
        Ok(Self { convolution: Convolution::new(weight, bias, patch, 0, None)?, patch })
    }

    /// `[B, 3, H, W]` to `[B, h, w, hidden]`. Pixels that fill no patch are left out.
    pub(crate) fn forward(&self, pixel_values: &Tensor) -> Result<Tensor> {
        let pixels = channels_last(pixel_values)?;
        let (_, height, width, _) = pixels.dims4()?;
        if height < self.patch || width < self.patch {
            return Err(EncoderError::Shape {
                what: "pixel values",
                expected: format!("[batch, 3, height, width], sides of {} or more", self.patch),
                got: pixel_values.dims().to_vec(),
            });
        }
        self.convolution.forward(&pixels, None)
    }
}

/// Puts tokens before those of each picture: `first [1, n, D]`, `tokens [B, N, D]`, to `[B, n + N, D]`.
pub(crate) fn prepend(first: &Tensor, tokens: &Tensor) -> Result<Tensor> {
    let (batch, _, dimension) = tokens.dims3()?;
    let first = first.broadcast_as((batch, first.dim(1)?, dimension))?;
    Ok(Tensor::cat(&[&first, tokens], 1)?)
}

/// Refuses a grid of patches that has other positions than the model.
pub(crate) fn check_grid(grid: &Tensor, side: usize) -> Result<()> {
    match grid.dims() {
        [_, height, width, _] if (*height, *width) == (side, side) => Ok(()),
        got => Err(EncoderError::Shape {
            what: "patches",
            expected: format!("[batch, {side}, {side}, channels]"),
            got: got.to_vec(),
        }),
    }
}

/// How position embeddings are interpolated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Interpolation {
    /// DINOv2: PyTorch's cubic, the border repeated.
    Bicubic,
    /// DINOv2 with registers: Pillow's cubic, wider where it shrinks, cut at the border.
    Antialiased,
}

/// Position embeddings of a square grid, `[1, side * side, D]`, for a grid of another size: `[1, height * width, D]`.
///
/// Pixel centres are aligned, as Hugging Face does it. Two matrix products, so that gradients pass.
pub(crate) fn interpolate(
    positions: &Tensor,
    side: usize,
    (height, width): (usize, usize),
    interpolation: Interpolation,
) -> Result<Tensor> {
    if (height, width) == (side, side) {
        return Ok(positions.clone());
    }
    let dimension = positions.dim(2)?;
    let weights = |to: usize| -> Result<Tensor> {
        let rows = (0..to).flat_map(|index| match interpolation {
            Interpolation::Bicubic => cubic_weights(index, side, to),
            Interpolation::Antialiased => antialiased_weights(index, side, to),
        });
        let weights = Tensor::from_vec(rows.collect::<Vec<f64>>(), (to, side), &Device::Cpu)?;
        Ok(weights.to_dtype(positions.dtype())?.to_device(positions.device())?)
    };
    // [height, side] by [side, side D], then [width, side] by [side, D] for each row.
    let tall = weights(height)?.product(&positions.reshape((side, side * dimension))?)?;
    let columns = weights(width)?.broadcast_left(height)?.contiguous()?;
    let wide = columns.product(&tall.reshape((height, side, dimension))?)?;
    Ok(wide.reshape((1, height * width, dimension))?)
}

/// What position `index` of `to` takes from each of `from` positions.
fn cubic_weights(index: usize, from: usize, to: usize) -> Vec<f64> {
    let mut weights = vec![0f64; from];
    let centre = (index as f64 + 0.5) * from as f64 / to as f64 - 0.5;
    for offset in -1..=2i32 {
        let at = centre.floor() + f64::from(offset);
        let clamped = at.clamp(0.0, from.saturating_sub(1) as f64) as usize;
        if let Some(weight) = weights.get_mut(clamped) {
            *weight += cubic(centre - at);
        }
    }
    weights
}

/// The same by the filter that resizes images.
fn antialiased_weights(index: usize, from: usize, to: usize) -> Vec<f64> {
    let scale = from as f64 / to as f64;
    let stretch = scale.max(1.0);
    let (centre, support) = ((index as f64 + 0.5) * scale, Filter::Bicubic.support() * stretch);
    let (first, end) = ((centre - support + 0.5).max(0.0) as usize, (centre + support + 0.5) as usize);
    let weight = |at: usize| Filter::Bicubic.weight((at as f64 - centre + 0.5) / stretch);
    let weights: Vec<f64> =
        (0..from).map(|at| if (first..end).contains(&at) { weight(at) } else { 0.0 }).collect();
    let total: f64 = weights.iter().sum();
    weights.iter().map(|weight| weight / total).collect()
}

fn cubic(x: f64) -> f64 {
    let x = x.abs();
    match x {
        x if x <= 1.0 => ((CUBIC + 2.0) * x - (CUBIC + 3.0)) * x * x + 1.0,
        x if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * CUBIC,
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn interpolated_positions_keep_constants_and_their_middle() {
        let grid: Vec<f64> =
            (0..25).map(|index| f64::from(index / 5) + 10.0 * f64::from(index % 5)).collect();
        let positions = Tensor::from_vec(grid, (1, 25, 1), &Device::Cpu).unwrap();
        let values = |height, width| -> Vec<f64> {
            let values = interpolate(&positions, 5, (height, width), Interpolation::Bicubic).unwrap();
            values.flatten_all().unwrap().to_vec1().unwrap()
        };
        assert_eq!(values(5, 5).len(), 25);
        // A ramp is mirrored around its middle, 2 + 10 * 2.
        let odd = values(3, 7);
        assert!((odd[10] - 22.0).abs() < 1e-12, "{odd:?}");
        let ones = positions.ones_like().unwrap();
        for interpolation in [Interpolation::Bicubic, Interpolation::Antialiased] {
            let constant = interpolate(&ones, 5, (3, 11), interpolation).unwrap();
            let constant: Vec<f64> = constant.flatten_all().unwrap().to_vec1().unwrap();
            assert!(constant.iter().all(|value| (value - 1.0).abs() < 1e-12));
        }
    }
}
