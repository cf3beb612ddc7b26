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
    pub(crate) fn forward(
        &self,
        input: &[f32],
        residual: Option<&[f32]>,
        output: &mut [f32],
        parallel: bool,
    ) {
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
            let columns =
                Columns { simd, panel, bias, inputs, outputs, first: index * PANEL, clamp: layer.clamp };
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
    fn rows<const WIDTH: usize, const ROWS: usize>(
        &self,
        input: &[f32],
        residual: &[f32],
        output: &mut [f32],
    ) {
        let inputs = self.inputs;
        let (bias, _) = S::as_simd_f32s(self.bias);
        let (panel, _) = S::as_simd_f32s(self.panel);
        let Some(bias) = bias.first_chunk::<WIDTH>() else { return };
        let Some(weights) = panel.as_chunks::<WIDTH>().0.get(..inputs) else { return };
        if input.len() < ROWS * inputs {
            return;
        }
        let rows: [&[f32]; ROWS] = std::array::from_fn(|row| &input[row * inputs..][..inputs]);
        let sums = self.sums(bias, weights, rows);
        // Written out, since a loop over the rows would index `sums` by a variable and keep it on the stack, which
        // costs a store beside every multiplication.
        self.store(sums.first().copied(), 0, residual, output);
        self.store(sums.get(1).copied(), 1, residual, output);
        self.store(sums.get(2).copied(), 2, residual, output);
        self.store(sums.get(3).copied(), 3, residual, output);
        self.store(sums.get(4).copied(), 4, residual, output);
        self.store(sums.get(5).copied(), 5, residual, output);
    }

    /// The sums of one tile, bias included.
    #[inline(always)]
    fn sums<const WIDTH: usize, const ROWS: usize>(
        &self,
        bias: &[S::f32s; WIDTH],
        weights: &[[S::f32s; WIDTH]],
        rows: [&[f32]; ROWS],
    ) -> [[S::f32s; WIDTH]; ROWS] {
        let mut sums = [*bias; ROWS];
        // The loops over constants are unrolled, and the sums live in registers.
        #[allow(clippy::needless_range_loop, reason = "with iterators the sums go to the stack")]
        for (k, weights) in weights.iter().enumerate() {
            for row in 0..ROWS {
                let value = self.simd.splat_f32s(rows[row][k]);
                for column in 0..WIDTH {
                    sums[row][column] = self.simd.mul_add_e_f32s(value, weights[column], sums[row][column]);
                }
            }
        }
        sums
    }

    /// Adds the residual, applies ReLU6 and writes row `index` of a tile.
    #[inline(always)]
    fn store<const WIDTH: usize>(
        &self,
        sums: Option<[S::f32s; WIDTH]>,
        index: usize,
        residual: &[f32],
        output: &mut [f32],
    ) {
        let Some(sums) = sums else { return };
        let simd = self.simd;
        let (zero, six) = (simd.splat_f32s(0.0), simd.splat_f32s(6.0));
        let finish = |sum: S::f32s, residual: Option<S::f32s>| {
            let sum = residual.map_or(sum, |residual| simd.add_f32s(sum, residual));
            if self.clamp { simd.min_f32s(simd.max_f32s(sum, zero), six) } else { sum }
        };
        let lanes = S::F32_LANES;
        let start = index * self.outputs + self.first;
        let end = (start + WIDTH * lanes).min((index + 1) * self.outputs);
        let Some(output) = output.get_mut(start..end) else { return };
        let residual = residual.get(start..end);
        if let Some(output) = S::as_mut_simd_f32s(output).0.first_chunk_mut::<WIDTH>() {
            let residual = residual.and_then(|residual| S::as_simd_f32s(residual).0.first_chunk::<WIDTH>());
            for column in 0..WIDTH {
                output[column] = finish(sums[column], residual.map(|residual| residual[column]));
            }
            return;
        }
        // Channels that do not fill a panel.
        #[allow(clippy::needless_range_loop, reason = "unrolled, as above")]
        for column in 0..WIDTH {
            let (from, to) = ((column * lanes).min(output.len()), ((column + 1) * lanes).min(output.len()));
            let residual = residual.map(|residual| simd.partial_load_f32s(&residual[from..to]));
            simd.partial_store_f32s(&mut output[from..to], finish(sums[column], residual));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equals_the_plain_triple_loop_for_every_remainder() {
        for (pixels, inputs, outputs) in
            [(1, 3, 5), (7, 27, 32), (13, 16, 24), (97, 40, 41), (200, 8, 7), (5, 1, 16)]
        {
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
                    assert!(
                        (f64::from(*got) - expected).abs() < 1e-4,
                        "{pixels} {inputs} {outputs}: {got} {expected}"
                    );
                }
            }
        }
    }
}
