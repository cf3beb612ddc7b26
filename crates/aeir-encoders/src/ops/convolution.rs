//! Convolutions over pictures.

use candle_core::{CpuStorage, CustomOp3, DType, Layout, Shape, Tensor};
use rayon::prelude::*;

use super::linear::checked;
use crate::depthwise::{Depthwise, Plane};
use crate::error::{EncoderError, Result};
use crate::product::{column_sums, held_values, values};
use crate::rehearsal::is_fused;
use crate::vector::vectorised;

/// Convolution of pictures, channels first.
///
/// # Shapes
/// `x [B, C, H, W]`, `weight [O, C / groups, k, k]`, `bias [O]` to `[B, O, h, w]`, with `padding` zeros on each side.
///
/// # Errors
/// [`EncoderError::Shape`] when `bias` does not fit, [`EncoderError::Tensor`] from candle.
pub fn conv2d(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    (stride, padding, groups): (usize, usize, usize),
) -> Result<Tensor> {
    let outputs = weight.dim(0)?;
    let y = x.conv2d(weight, padding, stride, 1, groups)?;
    match bias {
        Some(bias) => {
            checked("convolution bias", bias, &[outputs])?;
            Ok(y.broadcast_add(&bias.reshape((1, outputs, 1, 1))?)?)
        }
        None => Ok(y),
    }
}

/// Depthwise convolution of pictures, channels last: each channel has a filter of its own. Stride 1; the size stays.
///
/// # Shapes
/// `x [B, H, W, C]`, `weight [C, 1, k, k]` with an odd k, `bias [C]` to `[B, H, W, C]`. Beyond its border a picture is zero.
///
/// # Errors
/// [`EncoderError::Shape`] when the sizes do not fit, [`EncoderError::Tensor`] from candle.
pub fn depthwise(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let &[_, _, _, channels] = x.dims() else {
        return Err(EncoderError::Shape {
            what: "depthwise input",
            expected: "[batch, height, width, channels]".to_owned(),
            got: x.dims().to_vec(),
        });
    };
    let kernel = weight.dim(candle_core::D::Minus1)?;
    if kernel % 2 == 0 {
        return Err(EncoderError::Shape {
            what: "depthwise weight",
            expected: format!("[{channels}, 1, k, k], k odd"),
            got: weight.dims().to_vec(),
        });
    }
    checked("depthwise weight", weight, &[channels, 1, kernel, kernel])?;
    bias.map(|bias| checked("depthwise bias", bias, &[channels])).transpose()?;
    if is_fused(&[x, weight]) && x.elem_count() > 0 {
        let no_bias = bias.is_none().then(|| Tensor::zeros(channels, DType::F32, x.device())).transpose()?;
        let bias = bias.or(no_bias.as_ref()).unwrap_or(weight).contiguous()?;
        return Ok(x.contiguous()?.apply_op3(&weight.contiguous()?, &bias, ChannelsLast { kernel })?);
    }
    composed(x, weight, bias)
}

/// The depthwise convolution as one graph node on the CPU.
struct ChannelsLast {
    kernel: usize,
}

impl ChannelsLast {
    /// `x [B, plane, C]` convolved with `weight [C, k, k]`.
    fn convolve(&self, x: &[f32], plane: Plane, weight: &[f32], bias: &[f32]) -> Vec<f32> {
        let layer = Depthwise::new(weight, bias, (self.kernel, 1), false);
        let size = plane.pixels() * bias.len();
        let mut out = vec![0f32; x.len()];
        let pictures = out.par_chunks_mut(size).zip(x.par_chunks(size));
        pictures.for_each(|(out, x)| layer.forward(x, plane, out, true));
        out
    }

    /// The gradient of the weight, `[C, k, k]`: at each tap, the products of gradient and input that it joined.
    fn weight_gradient(&self, x: &[f32], plane: Plane, gradient: &[f32], channels: usize) -> Vec<f32> {
        let taps: Vec<Vec<f32>> = (0..self.kernel * self.kernel)
            .into_par_iter()
            .map(|tap| {
                let mut sums = vec![0f32; channels];
                let (down, right) = (tap / self.kernel, tap % self.kernel);
                let pictures =
                    x.chunks(plane.pixels() * channels).zip(gradient.chunks(plane.pixels() * channels));
                vectorised(|| {
                    for (x, gradient) in pictures {
                        for (y, gradient) in gradient.chunks(plane.width * channels).enumerate() {
                            self.add_row(x, plane, (y + down, right), gradient, &mut sums);
                        }
                    }
                });
                sums
            })
            .collect();
        (0..channels).flat_map(|channel| taps.iter().map(move |sums| sums[channel])).collect()
    }

    /// Adds what a row of gradients and the input `(down, right)` of it, padding included, have to do with each other.
    #[inline(always)]
    fn add_row(
        &self,
        x: &[f32],
        plane: Plane,
        (down, right): (usize, usize),
        gradient: &[f32],
        sums: &mut [f32],
    ) {
        let (before, channels) = (self.kernel / 2, sums.len());
        let Some(row) = down.checked_sub(before).filter(|row| *row < plane.height) else { return };
        let row = &x[row * plane.width * channels..][..plane.width * channels];
        // Of two rows shifted against each other, the parts that overlap.
        let (skipped, ahead) =
            (before.saturating_sub(right) * channels, right.saturating_sub(before) * channels);
        let overlap = gradient.get(skipped..).unwrap_or_default().chunks(channels);
        for (gradient, x) in overlap.zip(row.get(ahead..).unwrap_or_default().chunks(channels)) {
            for (sum, (gradient, x)) in sums.iter_mut().zip(gradient.iter().zip(x)) {
                *sum += gradient * x;
            }
        }
    }
}

impl CustomOp3 for ChannelsLast {
    fn name(&self) -> &'static str {
        "depthwise"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (_, height, width, _) = x_layout.shape().dims4()?;
        let (weight, bias) = (values(weight, weight_layout)?, values(bias, bias_layout)?);
        let out = self.convolve(values(x, x_layout)?, Plane { height, width }, weight, bias);
        Ok((CpuStorage::F32(out), x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _result: &Tensor,
        gradient: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (_, height, width, channels) = x.dims4()?;
        let plane = Plane { height, width };
        let gradient = gradient.contiguous()?;
        let (gradient_storage, gradient_layout) = gradient.storage_and_layout();
        let (x_storage, x_layout) = x.storage_and_layout();
        let (weight_storage, weight_layout) = weight.storage_and_layout();
        let upstream = held_values(&gradient_storage, gradient_layout)?;
        let device = x.device();
        let of_x = || {
            // The same convolution with the filter turned around.
            let taps = held_values(&weight_storage, weight_layout)?.chunks(self.kernel * self.kernel);
            let turned: Vec<f32> = taps.flat_map(|filter| filter.iter().rev().copied()).collect();
            let out = self.convolve(upstream, plane, &turned, &vec![0.0; channels]);
            Tensor::from_vec(out, x.shape(), device)
        };
        let of_weight = || {
            let out = self.weight_gradient(held_values(&x_storage, x_layout)?, plane, upstream, channels);
            Tensor::from_vec(out, weight.shape(), device)
        };
        let of_bias = || Tensor::from_vec(column_sums(upstream, channels), bias.shape(), device);
        Ok((
            x.track_op().then(of_x).transpose()?,
            weight.track_op().then(of_weight).transpose()?,
            bias.track_op().then(of_bias).transpose()?,
        ))
    }
}

fn composed(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (channels, kernel) = (weight.dim(0)?, weight.dim(2)?);
    let x = x.permute((0, 3, 1, 2))?.contiguous()?;
    let y = conv2d(&x, weight, bias, (1, kernel / 2, channels))?;
    Ok(y.permute((0, 2, 3, 1))?.contiguous()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::differences::{assert_gradients, flat, noise};

    #[test]
    fn depthwise_equals_the_plain_loop() {
        for (batch, height, width, channels, kernel) in
            [(2, 5, 6, 3, 3), (1, 9, 8, 37, 7), (2, 1, 1, 16, 7), (1, 3, 20, 8, 5)]
        {
            let x = noise(1, &[batch, height, width, channels]);
            let (weight, bias) = (noise(2, &[channels, 1, kernel, kernel]), noise(3, &[channels]));
            let y = depthwise(&x, &weight, Some(&bias)).unwrap();
            assert_eq!(y.dims(), x.dims());
            let [single_x, single_weight, single_bias] =
                [&x, &weight, &bias].map(|tensor| tensor.to_dtype(DType::F32).unwrap());
            let single = flat(&depthwise(&single_x, &single_weight, Some(&single_bias)).unwrap());
            let (x, weight, bias) = (flat(&x), flat(&weight), flat(&bias));
            for (index, got) in flat(&y).iter().enumerate() {
                let (channel, pixel) = (index % channels, index / channels);
                let (column, row, item) = (pixel % width, pixel / width % height, pixel / width / height);
                let mut sum = bias[channel];
                for (tap, weight) in weight[channel * kernel * kernel..][..kernel * kernel].iter().enumerate()
                {
                    let row = (row + tap / kernel).wrapping_sub(kernel / 2);
                    let column = (column + tap % kernel).wrapping_sub(kernel / 2);
                    if row < height && column < width {
                        sum += weight * x[((item * height + row) * width + column) * channels + channel];
                    }
                }
                assert!((got - sum).abs() < 1e-12, "{got} {sum}");
                assert!((single[index] - sum).abs() < 1e-5, "{} {sum}", single[index]);
            }
        }
    }

    #[test]
    fn gradients_by_finite_differences() {
        let inputs = [noise(1, &[2, 4, 5, 4]), noise(2, &[4, 1, 3, 3]), noise(3, &[4])];
        assert_gradients("depthwise", &inputs, |inputs| depthwise(&inputs[0], &inputs[1], Some(&inputs[2])));
        let inputs = [noise(1, &[1, 2, 3, 4]), noise(2, &[4, 1, 5, 5])];
        assert_gradients("larger than the picture", &inputs, |inputs| {
            depthwise(&inputs[0], &inputs[1], None)
        });
        let inputs = [noise(1, &[2, 4, 5, 5]), noise(2, &[6, 2, 3, 3]), noise(3, &[6])];
        assert_gradients("convolution", &inputs, |inputs| {
            conv2d(&inputs[0], &inputs[1], Some(&inputs[2]), (2, 1, 2))
        });
    }

    #[test]
    fn sizes_that_do_not_fit_are_told() {
        let x = noise(1, &[1, 4, 4, 3]);
        let error = depthwise(&x, &noise(2, &[3, 1, 4, 4]), None).unwrap_err();
        assert_eq!(error.to_string(), "depthwise weight: expected [3, 1, k, k], k odd, got [3, 1, 4, 4]");
        assert!(depthwise(&x, &noise(2, &[2, 1, 3, 3]), None).is_err());
        assert!(depthwise(&x, &noise(2, &[3, 1, 3, 3]), Some(&noise(2, &[2]))).is_err());
    }
}
