//! Depthwise convolution over channels-last pixels: one small filter a channel, vectorised over channels.
//!
//! A grouped convolution in candle runs one convolution a group, which makes a network of them crawl.

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use crate::lanes::dispatch;

/// Neighbouring outputs of a row that share the loaded filter.
const NEIGHBOURS: usize = 4;

/// Height and width of a channels-last picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Plane {
    pub(crate) height: usize,
    pub(crate) width: usize,
}

impl Plane {
    pub(crate) fn square(side: usize) -> Self {
        Self { height: side, width: side }
    }

    pub(crate) fn pixels(self) -> usize {
        self.height * self.width
    }

    /// Size after a convolution with TensorFlow's SAME padding.
    pub(crate) fn strided(self, stride: usize) -> Self {
        Self { height: self.height.div_ceil(stride), width: self.width.div_ceil(stride) }
    }
}

/// Padding before and after one axis in TensorFlow's SAME rule: an odd pixel goes after.
pub(crate) fn same_padding(input: usize, kernel: usize, stride: usize) -> (usize, usize) {
    let total = ((input.div_ceil(stride).max(1) - 1) * stride + kernel).saturating_sub(input);
    (total / 2, total - total / 2)
}

/// Filter and bias of a depthwise convolution, and whether ReLU6 follows.
#[derive(Debug, Clone)]
pub(crate) struct Depthwise {
    channels: usize,
    kernel: usize,
    stride: usize,
    /// `[kernel, kernel, channels]`.
    filter: Vec<f32>,
    bias: Vec<f32>,
    clamp: bool,
}

impl Depthwise {
    /// Reorders `weight [channels, kernel, kernel]`. `clamp` puts ReLU6 behind it.
    pub(crate) fn new(weight: &[f32], bias: &[f32], (kernel, stride): (usize, usize), clamp: bool) -> Self {
        let (channels, taps) = (bias.len(), kernel * kernel);
        let filter =
            (0..taps).flat_map(|tap| weight.iter().skip(tap).step_by(taps).take(channels).copied()).collect();
        Self { channels, kernel, stride, filter, bias: bias.to_vec(), clamp }
    }

    /// `input [plane, channels]` to `output [plane.strided(stride), channels]`. `parallel` splits the rows over threads.
    pub(crate) fn forward(&self, input: &[f32], plane: Plane, output: &mut [f32], parallel: bool) {
        let row = plane.strided(self.stride).width * self.channels;
        let run = |(y, output): (usize, &mut [f32])| {
            dispatch(OutputRow { layer: self, input, plane, y, output });
        };
        if parallel {
            output.par_chunks_mut(row).enumerate().for_each(run);
        } else {
            output.chunks_mut(row).enumerate().for_each(run);
        }
    }
}

struct OutputRow<'a> {
    layer: &'a Depthwise,
    input: &'a [f32],
    plane: Plane,
    y: usize,
    output: &'a mut [f32],
}

/// The part of a kernel axis that lies inside the picture.
#[derive(Clone, Copy)]
struct Reach {
    /// First kernel index inside.
    tap: usize,
    /// Kernel indices inside.
    count: usize,
    /// Picture index under `tap`.
    at: usize,
}

impl Reach {
    #[inline(always)]
    fn new(output: usize, stride: usize, kernel: usize, before: usize, size: usize) -> Self {
        let start = output * stride;
        let tap = before.saturating_sub(start);
        let at = (start + tap).saturating_sub(before);
        Self { tap, count: (kernel - tap).min(size.saturating_sub(at)), at }
    }
}

impl WithSimd for OutputRow<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { layer, input, plane, y, output } = self;
        let Depthwise { channels, kernel, stride, .. } = *layer;
        let rows = Reach::new(y, stride, kernel, same_padding(plane.height, kernel, stride).0, plane.height);
        let left = same_padding(plane.width, kernel, stride).0;
        let taps = Taps { simd, layer, input, width: plane.width, rows };
        let width = output.len() / channels;
        let mut x = 0;
        while x < width {
            let reach = Reach::new(x, stride, kernel, left, plane.width);
            let last = Reach::new(x + NEIGHBOURS - 1, stride, kernel, left, plane.width);
            let inside = x + NEIGHBOURS <= width && reach.count == kernel && last.count == kernel;
            let count = if inside { NEIGHBOURS } else { 1 };
            let Some(output) = output.get_mut(x * channels..(x + count) * channels) else { return };
            if inside {
                taps.outputs::<NEIGHBOURS>(reach, output);
            } else {
                taps.outputs::<1>(reach, output);
            }
            x += count;
        }
    }
}

struct Taps<'a, S> {
    simd: S,
    layer: &'a Depthwise,
    input: &'a [f32],
    width: usize,
    rows: Reach,
}

impl<S: Simd> Taps<'_, S> {
    /// COUNT neighbouring outputs that have the same reach.
    #[inline(always)]
    fn outputs<const COUNT: usize>(&self, columns: Reach, output: &mut [f32]) {
        let channels = self.layer.channels;
        let lanes = S::F32_LANES;
        let mut first = 0;
        while first + 2 * lanes <= channels {
            self.block::<COUNT, 2>(columns, first, output);
            first += 2 * lanes;
        }
        while first + lanes <= channels {
            self.block::<COUNT, 1>(columns, first, output);
            first += lanes;
        }
        for channel in first..channels {
            self.scalar::<COUNT>(columns, channel, output);
        }
    }

    /// WIDTH registers of channels from `first` on.
    #[inline(always)]
    fn block<const COUNT: usize, const WIDTH: usize>(
        &self,
        columns: Reach,
        first: usize,
        output: &mut [f32],
    ) {
        let simd = self.simd;
        let Depthwise { channels, kernel, stride, .. } = *self.layer;
        let span = WIDTH * S::F32_LANES;
        let Some(bias) = registers::<S, WIDTH>(&self.layer.bias, first, span) else { return };
        let mut sums = [*bias; COUNT];
        for row in 0..self.rows.count {
            let line = (self.rows.at + row) * self.width + columns.at;
            let taps = (self.rows.tap + row) * kernel + columns.tap;
            for column in 0..columns.count {
                let Some(weights) =
                    registers::<S, WIDTH>(&self.layer.filter, (taps + column) * channels + first, span)
                else {
                    return;
                };
                for (neighbour, sums) in sums.iter_mut().enumerate() {
                    let at = (line + column + neighbour * stride) * channels + first;
                    let Some(values) = registers::<S, WIDTH>(self.input, at, span) else { return };
                    for ((sum, value), weight) in sums.iter_mut().zip(values).zip(weights) {
                        *sum = simd.mul_add_e_f32s(*value, *weight, *sum);
                    }
                }
            }
        }
        let (zero, six) = (simd.splat_f32s(0.0), simd.splat_f32s(6.0));
        for (sums, pixel) in sums.iter().zip(output.chunks_exact_mut(channels)) {
            let Some(pixel) = pixel.get_mut(first..first + span) else { return };
            for (output, sum) in S::as_mut_simd_f32s(pixel).0.iter_mut().zip(sums) {
                *output = if self.layer.clamp { simd.min_f32s(simd.max_f32s(*sum, zero), six) } else { *sum };
            }
        }
    }

    /// One channel of those that fill no register.
    #[inline(always)]
    fn scalar<const COUNT: usize>(&self, columns: Reach, channel: usize, output: &mut [f32]) {
        let Depthwise { channels, kernel, stride, .. } = *self.layer;
        for (neighbour, pixel) in output.chunks_exact_mut(channels).enumerate().take(COUNT) {
            let mut sum = self.layer.bias.get(channel).copied().unwrap_or(0.0);
            for row in 0..self.rows.count {
                let line = (self.rows.at + row) * self.width + columns.at + neighbour * stride;
                let taps = (self.rows.tap + row) * kernel + columns.tap;
                for column in 0..columns.count {
                    let value = self.input.get((line + column) * channels + channel);
                    let weight = self.layer.filter.get((taps + column) * channels + channel);
                    sum += value.zip(weight).map_or(0.0, |(value, weight)| value * weight);
                }
            }
            if let Some(output) = pixel.get_mut(channel) {
                *output = if self.layer.clamp { sum.clamp(0.0, 6.0) } else { sum };
            }
        }
    }
}

#[inline(always)]
fn registers<S: Simd, const WIDTH: usize>(
    values: &[f32],
    start: usize,
    span: usize,
) -> Option<&[S::f32s; WIDTH]> {
    S::as_simd_f32s(values.get(start..start + span)?).0.first_chunk::<WIDTH>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_padding_puts_the_odd_pixel_after() {
        assert_eq!(same_padding(224, 3, 2), (0, 1));
        assert_eq!(same_padding(56, 5, 2), (1, 2));
        assert_eq!(same_padding(14, 5, 1), (2, 2));
        assert_eq!(same_padding(7, 3, 2), (1, 1));
    }

    #[test]
    fn equals_the_plain_loop_at_every_border() {
        let noise = |seed: usize, count: usize| -> Vec<f32> {
            (0..count).map(|i| (((i + seed) * 7919 % 1009) as f32) / 504.5 - 1.0).collect()
        };
        for (height, width, channels, kernel, stride) in [
            (7, 7, 16, 5, 1),
            (9, 14, 24, 3, 2),
            (1, 1, 8, 5, 1),
            (2, 3, 5, 5, 2),
            (12, 11, 40, 3, 1),
            (16, 16, 33, 5, 2),
        ] {
            let plane = Plane { height, width };
            let (input, bias) = (noise(1, plane.pixels() * channels), noise(2, channels));
            let weight = noise(3, channels * kernel * kernel);
            let layer = Depthwise::new(&weight, &bias, (kernel, stride), true);
            let out = plane.strided(stride);
            let mut output = vec![f32::NAN; out.pixels() * channels];
            layer.forward(&input, plane, &mut output, false);
            let mut parallel = vec![f32::NAN; out.pixels() * channels];
            layer.forward(&input, plane, &mut parallel, true);
            assert_eq!(output, parallel);
            let (top, left) = (same_padding(height, kernel, stride).0, same_padding(width, kernel, stride).0);
            for (index, got) in output.iter().enumerate() {
                let (y, x, channel) =
                    (index / channels / out.width, index / channels % out.width, index % channels);
                let mut sum = bias[channel];
                for ky in 0..kernel {
                    for kx in 0..kernel {
                        let (sy, sx) =
                            ((y * stride + ky).wrapping_sub(top), (x * stride + kx).wrapping_sub(left));
                        if sy < height && sx < width {
                            let value = input[(sy * width + sx) * channels + channel];
                            sum += value * weight[(channel * kernel + ky) * kernel + kx];
                        }
                    }
                }
                assert!((got - sum.clamp(0.0, 6.0)).abs() < 1e-5, "{height}x{width}x{channels}: {got} {sum}");
            }
        }
    }
}
