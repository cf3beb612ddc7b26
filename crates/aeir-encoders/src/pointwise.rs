//! 1x1 convolution over channels-last pixels: a matrix product with bias, residual and activation in one pass.

use pulp::{Arch, Scalar, Simd, WithSimd};
use rayon::prelude::*;

/// Output channels that are computed together. Two 8-lane registers.
const PANEL: usize = 16;
/// Pixels that are computed together: 6 x 2 sums, 2 weights and a broadcast input fit 16 registers.
const TILE: usize = 6;
/// Pixels per task; the inputs and outputs of a band stay in the second-level cache while all panels pass over it.
const BAND: usize = 16 * TILE;

/// The weights of a 1x1 convolution (or of any matrix product over rows) with their bias.
///
/// Each output is one sum over the input channels in order, starting from the bias: its value does not depend on how many
/// pixels, images or threads there are.
#[derive(Debug, Clone)]
pub(crate) struct Pointwise {
    inputs: usize,
    outputs: usize,
    /// `[outputs / 16 rounded up][inputs][16]`; missing channels are zero. A tail of at most 8 channels takes 8.
    panels: Vec<f32>,
    /// Bias, padded like the panels.
    bias: Vec<f32>,
    clamp: bool,
}

impl Pointwise {
    /// Packs `weight [outputs, inputs]`. `clamp` puts ReLU6 behind it.
    pub(crate) fn new(weight: &[f32], bias: &[f32], inputs: usize, clamp: bool) -> Self {
        let outputs = bias.len();
        let mut panels = Vec::new();
        let mut padded_bias = Vec::new();
        for (rows, bias) in weight.chunks(PANEL * inputs).zip(bias.chunks(PANEL)) {
            let width = if bias.len() <= PANEL / 2 { PANEL / 2 } else { PANEL };
            let value = |row: usize, input: usize| rows.get(row * inputs + input).copied().unwrap_or(0.0);
            panels.extend((0..inputs).flat_map(|input| (0..width).map(move |row| value(row, input))));
            padded_bias.extend((0..width).map(|row| bias.get(row).copied().unwrap_or(0.0)));
        }
        Self { inputs, outputs, panels, bias: padded_bias, clamp }
    }

    pub(crate) fn outputs(&self) -> usize {
        self.outputs
    }

    /// `output = activation(input W^T + bias + residual)`.
    ///
    /// `input [pixels, inputs]`, `output` and `residual` `[pixels, outputs]`. `parallel` splits the pixels over threads.
    pub(crate) fn forward(&self, input: &[f32], residual: Option<&[f32]>, output: &mut [f32], parallel: bool) {
        let (inputs, outputs) = (self.inputs, self.outputs);
        let run = |(index, output): (usize, &mut [f32])| {
            let pixels = output.len() / outputs;
            let start = index * BAND;
            let input = input.get(start * inputs..(start + pixels) * inputs).unwrap_or_default();
            let residual = residual.and_then(|all| all.get(start * outputs..(start + pixels) * outputs));
            Arch::new().dispatch(Band { layer: self, input, residual, output });
        };
        if parallel {
            output.par_chunks_mut(BAND * outputs).enumerate().for_each(run);
        } else {
            output.chunks_mut(BAND * outputs).enumerate().for_each(run);
        }
    }
}

struct Band<'a> {
    layer: &'a Pointwise,
    input: &'a [f32],
    residual: Option<&'a [f32]>,
    output: &'a mut [f32],
}

impl WithSimd for Band<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        // Registers wider than half a panel would straddle two rows of a tail panel.
        if S::F32_LANES == 8 {
            self.run::<S, 2, 1>(simd);
        } else if S::F32_LANES == 4 {
            self.run::<S, 4, 2>(simd);
        } else {
            self.run::<Scalar, PANEL, { PANEL / 2 }>(Scalar::new());
        }
    }
}

impl Band<'_> {
    /// WIDE and NARROW: registers in a full panel and in a tail panel.
    #[inline(always)]
    fn run<S: Simd, const WIDE: usize, const NARROW: usize>(self, simd: S) {
        let Self { layer, input, residual, output } = self;
        let (inputs, outputs) = (layer.inputs, layer.outputs);
        let mut panels = layer.panels.as_slice();
        for (index, bias) in layer.bias.chunks(PANEL).enumerate() {
            let Some((panel, rest)) = panels.split_at_checked(inputs * bias.len()) else { return };
            panels = rest;
            let columns = Columns { simd, panel, bias, inputs, outputs, first: index * PANEL, clamp: layer.clamp };
            let tiles = input.chunks(TILE * inputs).zip(output.chunks_mut(TILE * outputs)).enumerate();
            for (tile, (input, output)) in tiles {
                let residual = residual.and_then(|all| all.get(tile * TILE * outputs..)).unwrap_or_default();
                if bias.len() == PANEL {
                    columns.tile::<WIDE>(input, residual, output);
                } else {
                    columns.tile::<NARROW>(input, residual, output);
                }
            }
        }
    }
}

/// One panel: up to 16 output channels.
#[derive(Clone, Copy)]
struct Columns<'a, S> {
    simd: S,
    panel: &'a [f32],
    bias: &'a [f32],
    inputs: usize,
    outputs: usize,
    first: usize,
    clamp: bool,
}

impl<S: Simd> Columns<'_, S> {
    #[inline(always)]
    fn tile<const WIDTH: usize>(&self, input: &[f32], residual: &[f32], output: &mut [f32]) {
        match output.len() / self.outputs {
            6 => self.rows::<WIDTH, 6>(input, residual, output),
            5 => self.rows::<WIDTH, 5>(input, residual, output),
            4 => self.rows::<WIDTH, 4>(input, residual, output),
            3 => self.rows::<WIDTH, 3>(input, residual, output),
            2 => self.rows::<WIDTH, 2>(input, residual, output),
            1 => self.rows::<WIDTH, 1>(input, residual, output),
            _ => {}
        }
    }

    #[inline(always)]
    fn rows<const WIDTH: usize, const ROWS: usize>(&self, input: &[f32], residual: &[f32], output: &mut [f32]) {
        let simd = self.simd;
        let inputs = self.inputs;
        let (bias, _) = S::as_simd_f32s(self.bias);
        let (panel, _) = S::as_simd_f32s(self.panel);
        let Some(bias) = bias.first_chunk::<WIDTH>() else { return };
        if input.len() < ROWS * inputs {
            return;
        }
        // All rows have `inputs` values: with that said once, the loop below needs no checks.
        let rows: [&[f32]; ROWS] = std::array::from_fn(|row| &input[row * inputs..][..inputs]);
        let mut sums = [*bias; ROWS];
        for (k, weights) in panel.as_chunks::<WIDTH>().0.iter().enumerate().take(inputs) {
            for (sums, row) in sums.iter_mut().zip(rows) {
                let value = simd.splat_f32s(row[k]);
                for (sum, weight) in sums.iter_mut().zip(weights) {
                    *sum = simd.mul_add_e_f32s(value, *weight, *sum);
                }
            }
        }
        for (index, sums) in sums.iter().enumerate() {
            let start = index * self.outputs + self.first;
            let end = (start + WIDTH * S::F32_LANES).min((index + 1) * self.outputs);
            let residual = residual.get(start..end);
            let Some(output) = output.get_mut(start..end) else { return };
            self.store(sums, residual, output);
        }
    }

    #[inline(always)]
    fn store<const WIDTH: usize>(&self, sums: &[S::f32s; WIDTH], residual: Option<&[f32]>, output: &mut [f32]) {
        let simd = self.simd;
        let (zero, six) = (simd.splat_f32s(0.0), simd.splat_f32s(6.0));
        let finish = |sum: S::f32s, residual: Option<S::f32s>| {
            let sum = residual.map_or(sum, |residual| simd.add_f32s(sum, residual));
            if self.clamp { simd.min_f32s(simd.max_f32s(sum, zero), six) } else { sum }
        };
        if output.len() == WIDTH * S::F32_LANES {
            let residual = residual.map(|residual| S::as_simd_f32s(residual).0);
            for (index, (output, sum)) in S::as_mut_simd_f32s(output).0.iter_mut().zip(sums).enumerate() {
                *output = finish(*sum, residual.and_then(|residual| residual.get(index)).copied());
            }
            return;
        }
        // Channels that do not fill a panel.
        for (index, (chunk, sum)) in output.chunks_mut(S::F32_LANES).zip(sums).enumerate() {
            let residual = residual
                .and_then(|residual| residual.chunks(S::F32_LANES).nth(index))
                .map(|residual| simd.partial_load_f32s(residual));
            simd.partial_store_f32s(chunk, finish(*sum, residual));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equals_the_plain_triple_loop_for_every_remainder() {
        for (pixels, inputs, outputs) in [(1, 3, 5), (7, 27, 32), (13, 16, 24), (97, 40, 41), (200, 8, 7), (5, 1, 16)] {
            let noise = |seed: usize, count: usize| -> Vec<f32> {
                (0..count).map(|i| (((i + seed) * 7919 % 1009) as f32) / 504.5 - 1.0).collect()
            };
            let (input, weight) = (noise(1, pixels * inputs), noise(2, outputs * inputs));
            let (bias, residual) = (noise(3, outputs), noise(4, pixels * outputs));
            for clamp in [false, true] {
                let layer = Pointwise::new(&weight, &bias, inputs, clamp);
                let mut output = vec![f32::NAN; pixels * outputs];
                layer.forward(&input, Some(&residual), &mut output, false);
                let mut parallel = vec![f32::NAN; pixels * outputs];
                layer.forward(&input, Some(&residual), &mut parallel, true);
                assert_eq!(output, parallel);
                for (index, got) in output.iter().enumerate() {
                    let (pixel, channel) = (index / outputs, index % outputs);
                    let mut sum = f64::from(bias[channel]) + f64::from(residual[index]);
                    for k in 0..inputs {
                        sum += f64::from(input[pixel * inputs + k]) * f64::from(weight[channel * inputs + k]);
                    }
                    let expected = if clamp { sum.clamp(0.0, 6.0) } else { sum };
                    assert!((f64::from(*got) - expected).abs() < 1e-4, "{pixels} {inputs} {outputs}: {got} {expected}");
                }
            }
        }
    }
}
