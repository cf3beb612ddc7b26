//! Pooling of channels-last pictures.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::convolution::{Sliding, picture};
use crate::depthwise::Plane;
use crate::product::{held_values, values};
use crate::rehearsal::{Product, is_fused};

/// The largest value under the filter, `[B, H, W, C]` to `[B, H', W', C]`; what lies outside of the picture does not count.
///
/// In f32 on the CPU the gradient goes to the first of several equal values, row by row, as PyTorch does it. Elsewhere equal values
/// share it.
pub(crate) fn max_pool(x: &Tensor, sliding: Sliding) -> Result<Tensor> {
    let (_, plane, _) = picture(x.shape())?;
    let Some(output) = sliding.output(plane).filter(|_| sliding.padding < sliding.kernel) else {
        bail!("max pooling: {sliding:?} does not fit into {plane:?}");
    };
    if is_fused(&[x]) {
        return x.contiguous()?.apply_op1(MaxPool(sliding));
    }
    composed(x, sliding, output)
}

/// The mean over all pixels, `[B, H, W, C]` to `[B, C]`.
pub(crate) fn mean_pool(x: &Tensor) -> Result<Tensor> {
    let (batch, plane, channels) = picture(x.shape())?;
    let pixels = plane.pixels();
    // One small matmul an image instead of a sum over the middle axes, which is slow in candle on CPU.
    let ones = Tensor::ones((batch, 1, pixels), x.dtype(), x.device())?;
    ones.product(&x.contiguous()?.reshape((batch, pixels, channels))?)?.squeeze(1)? / pixels as f64
}

/// Shifted copies of the padded picture, the larger value kept: candle's own max-pooling has no gradient for overlapping filters.
fn composed(x: &Tensor, sliding: Sliding, output: Plane) -> Result<Tensor> {
    let Sliding { kernel, stride, padding } = sliding;
    let x = pad_lowest(&pad_lowest(x, 1, padding)?, 2, padding)?;
    let indices = |first: usize, count: usize| {
        let indices: Vec<u32> = (0..count).map(|index| (first + index * stride) as u32).collect();
        Tensor::from_vec(indices, count, x.device())
    };
    let mut result: Option<Tensor> = None;
    for row in 0..kernel {
        let rows = x.index_select(&indices(row, output.height)?, 1)?;
        for column in 0..kernel {
            let shifted = rows.index_select(&indices(column, output.width)?, 2)?;
            result = Some(match result {
                Some(largest) => largest.maximum(&shifted)?,
                None => shifted,
            });
        }
    }
    result.ok_or_else(|| candle_core::Error::Msg("max pooling: an empty filter".to_owned()))
}

/// Adds rows (or columns) of the lowest number on both sides. Not of infinity: that times zero would be NaN.
fn pad_lowest(x: &Tensor, axis: usize, padding: usize) -> Result<Tensor> {
    if padding == 0 {
        return Ok(x.clone());
    }
    let mut dims = x.dims().to_vec();
    if let Some(side) = dims.get_mut(axis) {
        *side = padding;
    }
    let lowest = Tensor::full(f32::MIN, dims, x.device())?.to_dtype(x.dtype())?;
    Tensor::cat(&[&lowest, x, &lowest], axis)
}

struct MaxPool(Sliding);

impl MaxPool {
    /// The pixels of a picture that the filter at `position` covers, row by row.
    fn covered(&self, plane: Plane, output: Plane, position: usize) -> impl Iterator<Item = usize> + use<> {
        let Sliding { kernel, stride, padding } = self.0;
        let reach = |start: usize, side: usize| {
            start.saturating_sub(padding)..(start + kernel).saturating_sub(padding).min(side)
        };
        let rows = reach(position / output.width * stride, plane.height);
        let columns = reach(position % output.width * stride, plane.width);
        rows.flat_map(move |row| columns.clone().map(move |column| row * plane.width + column))
    }
}

impl CustomOp1 for MaxPool {
    fn name(&self) -> &'static str {
        "max pooling"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (batch, plane, channels) = picture(layout.shape())?;
        let Some(output) = self.0.output(plane) else {
            bail!("max pooling: {:?} does not fit into {plane:?}", self.0);
        };
        let x = values(x, layout)?;
        let shape = Shape::from((batch, output.height, output.width, channels));
        let mut out = vec![f32::NEG_INFINITY; shape.elem_count()];
        let positions = output.pixels().max(1);
        out.par_chunks_mut(channels.max(1)).enumerate().for_each(|(index, out)| {
            let first = index / positions * plane.pixels();
            for pixel in self.covered(plane, output, index % positions) {
                let start = (first + pixel) * channels;
                let values = x.get(start..start + channels).unwrap_or_default();
                // NaN stays: a broken activation should be seen.
                out.iter_mut().zip(values).for_each(|(largest, value)| {
                    *largest = if *value > *largest || value.is_nan() { *value } else { *largest };
                });
            }
        });
        Ok((CpuStorage::F32(out), shape))
    }

    fn bwd(&self, x: &Tensor, _result: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let gradient = gradient.contiguous()?;
        let (_, plane, channels) = picture(x.shape())?;
        let (_, output, _) = picture(gradient.shape())?;
        let (x_storage, x_layout) = x.storage_and_layout();
        let (gradient_storage, gradient_layout) = gradient.storage_and_layout();
        let pictures = held_values(&x_storage, x_layout)?;
        let gradients = held_values(&gradient_storage, gradient_layout)?;
        let mut sums = vec![0f32; pictures.len()];
        let (pixels, positions) = (plane.pixels() * channels, output.pixels() * channels);
        sums.par_chunks_mut(pixels.max(1))
            .zip(pictures.par_chunks(pixels.max(1)).zip(gradients.par_chunks(positions.max(1))))
            .for_each(|(sums, (picture, gradients))| {
                for (position, gradients) in gradients.chunks_exact(channels.max(1)).enumerate() {
                    for (channel, gradient) in gradients.iter().enumerate() {
                        let value = |pixel: usize| picture.get(pixel * channels + channel).copied();
                        let largest = self
                            .covered(plane, output, position)
                            .reduce(|best, pixel| if value(pixel) > value(best) { pixel } else { best });
                        if let Some(sum) = largest.and_then(|pixel| sums.get_mut(pixel * channels + channel))
                        {
                            *sum += gradient;
                        }
                    }
                }
            });
        Ok(Some(Tensor::from_vec(sums, x.shape().clone(), x.device())?))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Var};

    use super::*;

    fn flat(x: &Tensor) -> Vec<f64> {
        x.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap()
    }

    fn pooled(x: &Tensor, sliding: Sliding) -> (Tensor, Tensor) {
        let x = Var::from_tensor(x).unwrap();
        let y = max_pool(&x, sliding).unwrap();
        let coefficients: Vec<f64> = (0..y.elem_count()).map(|index| (index % 7) as f64 + 1.0).collect();
        let coefficients = Tensor::from_vec(coefficients, y.shape().clone(), &Device::Cpu).unwrap();
        let loss = (&y * coefficients.to_dtype(y.dtype()).unwrap()).unwrap().sum_all().unwrap();
        let gradient = loss.backward().unwrap().get(&x).unwrap().clone();
        (y, gradient)
    }

    #[test]
    fn both_ways_of_pooling_agree_where_no_values_are_equal() {
        for (shape, sliding) in [
            ((2, 9, 7, 3), Sliding { kernel: 3, stride: 2, padding: 1 }),
            ((1, 8, 8, 5), Sliding { kernel: 3, stride: 2, padding: 1 }),
            ((1, 1, 1, 2), Sliding { kernel: 3, stride: 2, padding: 1 }),
            ((1, 6, 6, 2), Sliding { kernel: 2, stride: 2, padding: 0 }),
        ] {
            let count = Shape::from(shape).elem_count();
            // All different, all negative: padding must not win.
            let values: Vec<f32> = (0..count).map(|index| -((index * 7919 % 1009) as f32) - 1.0).collect();
            let x = Tensor::from_vec(values, shape, &Device::Cpu).unwrap();
            let (y, gradient) = pooled(&x, sliding);
            let (expected, exact) = pooled(&x.to_dtype(DType::F64).unwrap(), sliding);
            assert_eq!(y.dims(), expected.dims());
            assert_eq!(flat(&y), flat(&expected));
            assert_eq!(flat(&gradient), flat(&exact));
        }
    }

    #[test]
    fn of_equal_values_the_first_gets_the_gradient() {
        let x = Tensor::zeros((1, 3, 3, 1), DType::F32, &Device::Cpu).unwrap();
        let (_, gradient) = pooled(&x, Sliding { kernel: 3, stride: 2, padding: 1 });
        // Four filters with weights 1 to 4, which begin at the corner, at the top, at the left and in the middle.
        assert_eq!(flat(&gradient), [1.0, 2.0, 0.0, 3.0, 4.0, 0.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn means_are_over_all_pixels() {
        let values: Vec<f32> = (0..24).map(|value| value as f32).collect();
        let x = Tensor::from_vec(values, (2, 2, 3, 2), &Device::Cpu).unwrap();
        assert_eq!(flat(&mean_pool(&x).unwrap()), [5.0, 6.0, 17.0, 18.0]);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let x = Tensor::zeros((1, 2, 2, 1), DType::F32, &Device::Cpu).unwrap();
        assert!(max_pool(&x, Sliding { kernel: 3, stride: 2, padding: 0 }).is_err());
        assert!(max_pool(&x, Sliding { kernel: 2, stride: 2, padding: 2 }).is_err());
    }
}
