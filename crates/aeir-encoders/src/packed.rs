//! Products of rows and a packed matrix, with bias and residual in the same pass.
//!
//! Linear layers, 1x1 convolutions over channels-last pixels and both products of attention are this. Each output is one sum
//! over the columns of its row in order, starting from the bias: its bits depend on no other row, on no thread and on no kind of
//! vector register (where there is a fused multiply-add).

mod registers;

use std::ops::Range;

use pulp::{Arch, Scalar, Simd, WithSimd};
use rayon::prelude::*;

use self::registers::Registers;

use crate::lanes::PANEL;
use crate::ops::Activation;
use crate::vector::vectorised;

/// Rows that are computed together at most: parts of a matrix begin at a multiple.
const TALL: usize = 12;
/// Input values of a band: they stay in the second-level cache while all panels pass over them.
const BAND: usize = 128 * 1024;
/// Inputs that are summed at a time, about.
const DEPTH: usize = 256;

/// Sixteen neighbouring outputs: a cache line.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; PANEL]);

const ZERO: Line = Line([0.0; PANEL]);

impl Line {
    fn copy(&mut self, values: &[f32]) {
        self.0.iter_mut().zip(values).for_each(|(slot, value)| *slot = *value);
    }
}

/// A matrix `[outputs, inputs]` in panels of 16 or 32 outputs, and a bias.
///
/// Panel after panel, each `[inputs][lines]`; outputs that are missing in the last one are zero.
#[derive(Debug, Clone, Default)]
pub(crate) struct Packed {
    inputs: usize,
    outputs: usize,
    lines: Vec<Line>,
    bias: Vec<Line>,
}

/// Lines of a full panel: with 16-lane registers two, so that 12 rows at a time fill the registers.
fn lines_of_panel() -> usize {
    if registers::has_wide() { 2 } else { 1 }
}

impl Packed {
    /// Packs `weight [outputs, inputs]`, row-major. Without a bias it is zero.
    pub(crate) fn new(weight: &[f32], bias: Option<&[f32]>, inputs: usize) -> Self {
        let outputs = weight.len() / inputs.max(1);
        let mut packed = Self::default();
        packed.resize(outputs, inputs);
        let (full, width) = (lines_of_panel(), lines_of_panel() * PANEL);
        let panels = packed.lines.par_chunks_mut((full * inputs).max(1)).enumerate();
        panels.for_each(|(index, panel)| {
            transpose(weight, inputs, index * width..outputs.min((index + 1) * width), panel)
        });
        if let Some(bias) = bias {
            packed.bias.iter_mut().zip(bias.chunks(PANEL)).for_each(|(line, bias)| line.copy(bias));
        }
        packed
    }

    pub(crate) fn inputs(&self) -> usize {
        self.inputs
    }

    pub(crate) fn outputs(&self) -> usize {
        self.outputs
    }

    /// Packs again, into the same memory: row `o` of `weight` holds output `o` and begins at `o stride`.
    pub(crate) fn fill_transposed(&mut self, weight: &[f32], stride: usize, outputs: usize, inputs: usize) {
        self.resize(outputs, inputs);
        let (full, width) = (lines_of_panel(), lines_of_panel() * PANEL);
        let panels = self.lines.chunks_mut((full * inputs).max(1)).enumerate();
        panels.for_each(|(index, panel)| {
            transpose(weight, stride, index * width..outputs.min((index + 1) * width), panel)
        });
    }

    /// Packs again, into the same memory: row `i` of `values` holds what input `i` is multiplied with and begins at `i stride`.
    pub(crate) fn fill(&mut self, values: &[f32], stride: usize, outputs: usize, inputs: usize) {
        self.resize(outputs, inputs);
        let full = lines_of_panel();
        for (index, panel) in self.lines.chunks_mut((full * inputs).max(1)).enumerate() {
            let first = index * full * PANEL;
            let count = (outputs - first).min(full * PANEL);
            for (input, lines) in panel.chunks_exact_mut(count.div_ceil(PANEL)).enumerate() {
                let start = input * stride + first;
                let row = values.get(start..start + count).unwrap_or_default();
                lines.iter_mut().zip(row.chunks(PANEL)).for_each(|(line, values)| line.copy(values));
            }
        }
    }

    fn resize(&mut self, outputs: usize, inputs: usize) {
        let lines = outputs.div_ceil(PANEL);
        (self.outputs, self.inputs) = (outputs, inputs);
        // What a smaller matrix leaves in the last panel has to be zero.
        self.lines.clear();
        self.lines.resize(lines * inputs, ZERO);
        self.bias.clear();
        self.bias.resize(lines, ZERO);
    }

    /// `out = rows W^T + bias`, on this thread; the rows of `out` begin `out_stride` apart.
    pub(crate) fn multiply(&self, rows: Strided<'_>, out: &mut [f32], out_stride: usize) {
        Band { packed: self, rows, after: After::default(), out, out_stride }.compute();
    }

    /// `out = activation(input W^T + bias + residual)`, rows without gaps. `parallel` shares them out to all threads.
    pub(crate) fn forward(&self, input: &[f32], after: After<'_>, out: &mut [f32], parallel: bool) {
        let (inputs, outputs) = (self.inputs, self.outputs);
        let count = out.len() / outputs.max(1);
        if count.saturating_sub(TALL) * inputs > BAND {
            let middle = (count / 2).next_multiple_of(TALL);
            let Some((before, rest)) = input.split_at_checked(middle * inputs) else { return };
            let (out, out_rest) = out.split_at_mut(middle * outputs);
            let (first, second) = after.split_at(middle * outputs);
            let mut run = || self.forward(before, first, out, parallel);
            let mut run_rest = || self.forward(rest, second, out_rest, parallel);
            if parallel {
                rayon::join(run, run_rest);
            } else {
                run();
                run_rest();
            }
            return;
        }
        let rows = Strided { values: input, stride: inputs, count };
        Band { packed: self, rows, after, out, out_stride: outputs }.compute();
        if let Some(activation) = after.activation.filter(|activation| bounds(*activation).is_none()) {
            vectorised(|| activation.in_place(out));
        }
    }
}

/// What comes after a product.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct After<'a> {
    /// Added to the product: rows as those of the output.
    pub(crate) residual: Option<&'a [f32]>,
    pub(crate) activation: Option<Activation>,
}

impl After<'_> {
    fn split_at(self, middle: usize) -> (Self, Self) {
        let halves = self.residual.and_then(|residual| residual.split_at_checked(middle));
        let after = |residual| Self { residual, ..self };
        (after(halves.map(|(first, _)| first)), after(halves.map(|(_, second)| second)))
    }
}

/// The range that an activation cuts values to, if that is all it does.
fn bounds(activation: Activation) -> Option<(f32, f32)> {
    match activation {
        Activation::Relu => Some((0.0, f32::INFINITY)),
        Activation::Relu6 => Some((0.0, 6.0)),
        Activation::Gelu(_) | Activation::Silu | Activation::Tanh => None,
    }
}

/// Writes rows `outputs` of `weight`, `stride` apart, to a panel `[inputs][lines]`.
fn transpose(weight: &[f32], stride: usize, outputs: Range<usize>, panel: &mut [Line]) {
    let width = outputs.len().div_ceil(PANEL).max(1);
    // Sixteen inputs at a time: what is written stays in the first-level cache.
    for (block, lines) in panel.chunks_mut(PANEL * width).enumerate() {
        for (lane, output) in outputs.clone().enumerate() {
            let start = output * stride + block * PANEL;
            let row = weight.get(start..start + lines.len() / width).unwrap_or_default();
            let slots = lines.iter_mut().skip(lane / PANEL).step_by(width);
            row.iter().zip(slots).for_each(|(value, line)| line.0[lane % PANEL] = *value);
        }
    }
}

/// Rows of a slice: `count` of them, `stride` apart.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Strided<'a> {
    pub(crate) values: &'a [f32],
    pub(crate) stride: usize,
    pub(crate) count: usize,
}

struct Band<'a> {
    packed: &'a Packed,
    rows: Strided<'a>,
    after: After<'a>,
    out: &'a mut [f32],
    out_stride: usize,
}

impl WithSimd for Band<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        // Sums, weights and a broadcast input fill the registers: 16 of 8 lanes or 32 of 4.
        if S::F32_LANES == 8 {
            self.run::<S, 1, 2, 1, 6>(simd);
        } else if S::F32_LANES == 4 {
            self.run::<S, 1, 4, 2, 6>(simd);
        } else {
            self.run::<Scalar, 1, PANEL, { PANEL / 2 }, 6>(Scalar::new());
        }
    }
}

impl Band<'_> {
    fn compute(self) {
        if registers::has_wide() {
            registers::compute_wide(self);
        } else {
            Arch::new().dispatch(self);
        }
    }

    /// LINES of a full panel; WIDE and NARROW: registers of a panel, and of one that is at most half full; TALL: rows that are
    /// computed together.
    #[inline(always)]
    fn run<R: Registers, const LINES: usize, const WIDE: usize, const NARROW: usize, const TALL: usize>(
        self,
        simd: R,
    ) {
        let Self { packed, rows, after, out, out_stride } = self;
        let inputs = packed.inputs;
        let residual = after.residual;
        let bounds = after.activation.and_then(bounds);
        let bounds = bounds.map(|(low, high)| (simd.splat(low), simd.splat(high)));
        let mut lines = packed.lines.as_slice();
        for (index, bias) in packed.bias.chunks(LINES).enumerate() {
            let Some((weights, rest)) = lines.split_at_checked(inputs * bias.len()) else { return };
            lines = rest;
            let first = index * LINES * PANEL;
            let width = (packed.outputs - first).min(LINES * PANEL);
            let inputs = 0..0;
            let mut columns = Columns {
                simd,
                weights,
                bias,
                rows,
                residual,
                bounds,
                out,
                out_stride,
                first,
                width,
                inputs,
            };
            if bias.len() < LINES {
                columns.all::<1, NARROW, TALL>();
            } else if width <= NARROW * R::LANES {
                columns.all::<LINES, NARROW, TALL>();
            } else {
                columns.all::<LINES, WIDE, TALL>();
            }
        }
    }
}

/// The outputs of one panel.
struct Columns<'a, 'out, R: Registers> {
    simd: R,
    weights: &'a [Line],
    bias: &'a [Line],
    rows: Strided<'a>,
    residual: Option<&'a [f32]>,
    bounds: Option<(R::Register, R::Register)>,
    out: &'out mut [f32],
    out_stride: usize,
    /// First output, and how many.
    first: usize,
    width: usize,
    /// Those that are summed at present.
    inputs: Range<usize>,
}

impl<R: Registers> Columns<'_, '_, R> {
    /// LINES of the panel, of which WIDTH registers are used. Of a deep panel some inputs for all rows before the next ones: their
    /// weights stay in the first-level cache, and the sums go on from what was stored.
    #[inline(always)]
    fn all<const LINES: usize, const WIDTH: usize, const TALL: usize>(&mut self) {
        let inputs = self.weights.len() / LINES;
        let depth = inputs.div_ceil(inputs.div_ceil(DEPTH).max(1)).max(1);
        for start in (0..inputs.max(1)).step_by(depth) {
            self.inputs = start..inputs.min(start + depth);
            let mut row = 0;
            while row < self.rows.count {
                row += match self.rows.count - row {
                    left if left >= TALL => self.tile::<LINES, WIDTH, TALL>(row),
                    6.. => self.tile::<LINES, WIDTH, 6>(row),
                    4.. => self.tile::<LINES, WIDTH, 4>(row),
                    2.. => self.tile::<LINES, WIDTH, 2>(row),
                    _ => self.tile::<LINES, WIDTH, 1>(row),
                };
            }
        }
    }

    /// Computes ROWS rows from `first_row` on.
    #[inline(always)]
    fn tile<const LINES: usize, const WIDTH: usize, const ROWS: usize>(&mut self, first_row: usize) -> usize {
        let Strided { values, stride, .. } = self.rows;
        let all = self.weights.as_chunks::<LINES>().0;
        let start = first_row * stride;
        if let Some(weights) = all.get(self.inputs.clone())
            && let Some(bias) = self.bias.first_chunk::<LINES>()
            && start + (ROWS - 1) * stride + all.len() <= values.len()
        {
            let start = start + self.inputs.start;
            let rows: [&[f32]; ROWS] =
                std::array::from_fn(|row| &values[start + row * stride..][..weights.len()]);
            let begin = if self.inputs.start == 0 {
                [self.load::<LINES, WIDTH>(bias); ROWS]
            } else {
                std::array::from_fn(|row| self.stored::<WIDTH>(first_row + row))
            };
            let sums = self.sums::<LINES, WIDTH, ROWS>(begin, weights, rows);
            self.store_all::<WIDTH, ROWS>(&sums, first_row, self.inputs.end == all.len());
        }
        ROWS
    }

    /// What [`Self::store`] left of a row's sums.
    #[inline(always)]
    fn stored<const WIDTH: usize>(&self, row: usize) -> [R::Register; WIDTH] {
        let start = row * self.out_stride + self.first;
        let out = self.out.get(start..start + self.width).unwrap_or_default();
        std::array::from_fn(|column| {
            let range = (column * R::LANES).min(out.len())..((column + 1) * R::LANES).min(out.len());
            self.simd.load(&out[range])
        })
    }

    #[inline(always)]
    fn sums<const LINES: usize, const WIDTH: usize, const ROWS: usize>(
        &self,
        mut sums: [[R::Register; WIDTH]; ROWS],
        weights: &[[Line; LINES]],
        rows: [&[f32]; ROWS],
    ) -> [[R::Register; WIDTH]; ROWS] {
        // The loops over constants are unrolled, and the sums live in registers.
        #[allow(clippy::needless_range_loop, reason = "with iterators the sums go to the stack")]
        for k in 0..weights.len() {
            let weights = self.load::<LINES, WIDTH>(&weights[k]);
            for row in 0..ROWS {
                let value = self.simd.splat(rows[row][k]);
                for column in 0..WIDTH {
                    sums[row][column] = self.simd.multiply_add(value, weights[column], sums[row][column]);
                }
            }
        }
        sums
    }

    /// Written out, since a loop over the rows would index `sums` by a variable and keep it on the stack, which costs a store
    /// beside every multiplication.
    #[inline(always)]
    fn store_all<const WIDTH: usize, const ROWS: usize>(
        &mut self,
        sums: &[[R::Register; WIDTH]; ROWS],
        first_row: usize,
        last: bool,
    ) {
        self.store(sums.first(), first_row, last);
        self.store(sums.get(1), first_row + 1, last);
        self.store(sums.get(2), first_row + 2, last);
        self.store(sums.get(3), first_row + 3, last);
        self.store(sums.get(4), first_row + 4, last);
        self.store(sums.get(5), first_row + 5, last);
        self.store(sums.get(6), first_row + 6, last);
        self.store(sums.get(7), first_row + 7, last);
        self.store(sums.get(8), first_row + 8, last);
        self.store(sums.get(9), first_row + 9, last);
        self.store(sums.get(10), first_row + 10, last);
        self.store(sums.get(11), first_row + 11, last);
    }

    /// Writes one row of the tile; with the last inputs it adds the residual and cuts to the bounds.
    #[inline(always)]
    fn store<const WIDTH: usize>(&mut self, sums: Option<&[R::Register; WIDTH]>, row: usize, last: bool) {
        let Some(sums) = sums else { return };
        let simd = self.simd;
        let start = row * self.out_stride + self.first;
        let Some(out) = self.out.get_mut(start..start + self.width) else { return };
        let residual = self.residual.filter(|_| last).and_then(|all| all.get(start..start + self.width));
        let bounds = self.bounds.filter(|_| last);
        for (column, sum) in sums.iter().enumerate() {
            let range = (column * R::LANES).min(out.len())..((column + 1) * R::LANES).min(out.len());
            let mut value = *sum;
            if let Some(residual) = residual {
                value = simd.add(value, simd.load(&residual[range.clone()]));
            }
            if let Some((low, high)) = bounds {
                value = simd.minimum(simd.maximum(value, low), high);
            }
            simd.store(&mut out[range], value);
        }
    }

    /// The first WIDTH registers of some lines.
    #[inline(always)]
    fn load<const LINES: usize, const WIDTH: usize>(&self, lines: &[Line; LINES]) -> [R::Register; WIDTH] {
        let per_line = PANEL / R::LANES;
        std::array::from_fn(|index| self.simd.part(&lines[index / per_line].0, index % per_line))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::Gelu;

    fn noise(seed: usize, count: usize) -> Vec<f32> {
        (0..count).map(|i| (((i + seed) * 7919 % 1009) as f32) / 504.5 - 1.0).collect()
    }

    #[test]
    fn equals_the_plain_triple_loop_for_every_remainder() {
        for (count, inputs, outputs) in [
            (1, 3, 5),
            (7, 27, 32),
            (13, 16, 24),
            (97, 40, 41),
            (23, 8, 7),
            (5, 1, 16),
            (35, 33, 72),
            (29, 600, 41),
        ] {
            let (rows, weight) = (noise(1, count * inputs), noise(2, outputs * inputs));
            let (bias, residual) = (noise(3, outputs), noise(4, count * outputs));
            let packed = Packed::new(&weight, Some(&bias), inputs);
            let activations = [None, Some(Activation::Relu6), Some(Activation::Gelu(Gelu::Quick))];
            for activation in activations {
                let after = After { residual: Some(&residual), activation };
                let [mut out, mut parallel] = [(); 2].map(|()| vec![f32::NAN; count * outputs]);
                packed.forward(&rows, after, &mut out, false);
                packed.forward(&rows, after, &mut parallel, true);
                assert_eq!(out, parallel);
                for (index, got) in out.iter().enumerate() {
                    let (row, output) = (index / outputs, index % outputs);
                    let mut sum = f64::from(bias[output]) + f64::from(residual[index]);
                    for k in 0..inputs {
                        sum += f64::from(rows[row * inputs + k]) * f64::from(weight[output * inputs + k]);
                    }
                    let expected = match activation {
                        None => sum,
                        Some(Activation::Relu6) => sum.clamp(0.0, 6.0),
                        Some(_) => sum / (1.0 + (-1.702 * sum).exp()),
                    };
                    assert!(
                        (f64::from(*got) - expected).abs() < 1e-4 + 1e-6 * expected.abs(),
                        "{count} {inputs} {outputs} {activation:?}: {got} {expected}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_row_has_the_same_bits_alone_and_among_others_on_any_number_of_threads() {
        let (count, inputs, outputs) = (700, 500, 35);
        let (rows, weight) = (noise(1, count * inputs), noise(2, outputs * inputs));
        let packed = Packed::new(&weight, None, inputs);
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let mut out = vec![f32::NAN; count * outputs];
            pool.install(|| packed.forward(&rows, After::default(), &mut out, true));
            out
        };
        let out = run(1);
        assert_eq!(out, run(3));
        for (row, expected) in rows.chunks(inputs).zip(out.chunks(outputs)) {
            let mut alone = vec![f32::NAN; outputs];
            packed.forward(row, After::default(), &mut alone, true);
            assert_eq!(alone, expected);
        }
    }

    #[test]
    fn rows_apart_and_both_ways_of_packing_give_the_same_bits() {
        let (count, inputs, outputs) = (15, 21, 37);
        let (rows, weight) = (noise(1, count * inputs), noise(2, outputs * inputs));
        let mut packed = Packed::new(&noise(5, 5000), None, 50);
        packed.fill_transposed(&weight, inputs, outputs, inputs);
        let mut expected = vec![f32::NAN; count * outputs];
        packed.multiply(Strided { values: &rows, stride: inputs, count }, &mut expected, outputs);
        // The same numbers with gaps, and the weights the other way round.
        let (gap, out_gap) = (inputs + 3, outputs + 2);
        let spread: Vec<f32> =
            rows.chunks(inputs).flat_map(|row| row.iter().copied().chain([9.0; 3])).collect();
        let turned: Vec<f32> =
            (0..inputs * outputs).map(|index| weight[index % outputs * inputs + index / outputs]).collect();
        packed.fill(&turned, outputs, outputs, inputs);
        let mut out = vec![7.0; count * out_gap];
        packed.multiply(Strided { values: &spread, stride: gap, count }, &mut out, out_gap);
        for (row, expected) in out.chunks(out_gap).zip(expected.chunks(outputs)) {
            assert_eq!(row[..outputs], *expected);
            assert_eq!(row[outputs..], [7.0; 2]);
        }
    }
}
