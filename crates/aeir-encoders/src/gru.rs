//! A gated recurrent unit over sentences of unequal length, forward or backward in time.

use std::sync::Arc;

use candle_core::Tensor;
use candle_nn::{Init, VarBuilder};

use crate::affine::affine;
use crate::error::Result;
use crate::recurrence::recurrence;
use crate::rehearsal::{Product, is_fused};

/// Which words a recurrence sees at each of its steps.
///
/// Rows of real words lie sentence by sentence, without padding. Step `s` takes the words at position `s` from the start, or
/// from the end for the backward direction, of every sentence that has one. The longest sentence comes first, so the
/// sentences of a step are the first ones of the step before: nothing is masked and nothing is padded. Both directions have
/// as many words at each step, as PyTorch's packed sequences do.
#[derive(Debug)]
pub(crate) struct Steps {
    /// Sentences with a word at each step, never increasing.
    counts: Vec<usize>,
    /// For each step, and in it for each sentence by falling length, the row of its word.
    rows: [Vec<u32>; 2],
}

/// The way a recurrence runs through a sentence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// From the first word to the last.
    Forward,
    /// From the last word to the first.
    Backward,
}

impl Steps {
    pub(crate) fn new(lengths: &[usize]) -> Self {
        let mut sentences: Vec<(usize, usize)> = Vec::with_capacity(lengths.len());
        let mut start = 0;
        for length in lengths {
            sentences.push((start, *length));
            start += length;
        }
        sentences.sort_by_key(|(_, length)| std::cmp::Reverse(*length));
        let longest = sentences.first().map_or(0, |(_, length)| *length);
        let counts: Vec<usize> =
            (0..longest).map(|step| sentences.partition_point(|(_, length)| *length > step)).collect();
        let rows = |row: fn(usize, usize, usize) -> usize| {
            let step_rows = |(step, count): (usize, &usize)| {
                let rows =
                    sentences.iter().take(*count).map(move |(start, length)| row(*start, *length, step));
                // The number of words is that of a tensor of u32 ids, checked where it was made.
                rows.map(|row| row as u32).collect::<Vec<_>>()
            };
            counts.iter().enumerate().flat_map(step_rows).collect()
        };
        let rows =
            [rows(|start, _, step| start + step), rows(|start, length, step| start + length - 1 - step)];
        Self { counts, rows }
    }

    pub(crate) fn counts(&self) -> &[usize] {
        &self.counts
    }

    pub(crate) fn rows(&self, direction: Direction) -> &[u32] {
        let [forward, backward] = &self.rows;
        match direction {
            Direction::Forward => forward,
            Direction::Backward => backward,
        }
    }
}

/// One direction of a gated recurrent unit in PyTorch's form.
///
/// Equation (Cho et al. 2014; the reset gate is applied after the recurrent product, as cuDNN and PyTorch do):
///
/// ```text
/// r = sigmoid(W_r x + b_r + U_r h + c_r)      z = sigmoid(W_z x + b_z + U_z h + c_z)
/// n = tanh(W_n x + b_n + r (U_n h + c_n))     h' = (1 - z) n + z h
/// ```
///
/// # Parameters
/// `input.weight [3D, W]`, `input.bias [3D]`, `hidden.weight [3D, D]`, `hidden.bias [3D]`, rows in the order r, z, n, all drawn
/// from `U(-1/sqrt(D), 1/sqrt(D))`. The first state is zero.
#[derive(Debug, Clone)]
pub(crate) struct Gru {
    direction: Direction,
    input_weight: Tensor,
    input_bias: Tensor,
    hidden_weight: Tensor,
    hidden_bias: Tensor,
}

impl Gru {
    pub(crate) fn new(
        input: usize,
        dimension: usize,
        direction: Direction,
        vb: VarBuilder<'_>,
    ) -> Result<Self> {
        let bound = 1.0 / (dimension as f64).sqrt();
        let init = Init::Uniform { lo: -bound, up: bound };
        let gates = 3 * dimension;
        Ok(Self {
            direction,
            input_weight: vb.get_with_hints((gates, input), "input.weight", init)?,
            input_bias: vb.get_with_hints(gates, "input.bias", init)?,
            hidden_weight: vb.get_with_hints((gates, dimension), "hidden.weight", init)?,
            hidden_bias: vb.get_with_hints(gates, "hidden.bias", init)?,
        })
    }

    /// The states after each word: `words [N, W]`, at least one, to `[N, D]` in the same order.
    pub(crate) fn forward(&self, words: &Tensor, steps: &Arc<Steps>) -> Result<Tensor> {
        let gates = affine(words, &self.input_weight, &self.input_bias)?;
        if is_fused(&[&gates]) {
            return Ok(recurrence(&gates, &self.hidden_weight, &self.hidden_bias, steps, self.direction)?);
        }
        #[cfg(feature = "cuda")]
        if aeir_kernels::takes(&[&gates, &self.hidden_weight]) {
            return Ok(on_card(&[self], &[gates], steps)?.squeeze(0)?);
        }
        self.composed(&gates, steps)
    }

    /// [`Gru::forward`] of two units: a card does both at once.
    pub(crate) fn forward_both(both: [&Self; 2], words: &Tensor, steps: &Arc<Steps>) -> Result<[Tensor; 2]> {
        let [first, second] = both;
        #[cfg(feature = "cuda")]
        if aeir_kernels::takes(&[words, &first.hidden_weight, &second.hidden_weight]) {
            let gates = [
                affine(words, &first.input_weight, &first.input_bias)?,
                affine(words, &second.input_weight, &second.input_bias)?,
            ];
            let states = on_card(&both, &gates, steps)?;
            return Ok([states.get(0)?, states.get(1)?]);
        }
        Ok([first.forward(words, steps)?, second.forward(words, steps)?])
    }

    /// The recurrence in candle's own operations: any device and float type, some ten graph nodes a step.
    fn composed(&self, gates: &Tensor, steps: &Steps) -> Result<Tensor> {
        let dimension = self.hidden_weight.dim(1)?;
        let device = gates.device();
        let rows = steps.rows(self.direction);
        let total = rows.len();
        let gates = gates.index_select(&Tensor::from_slice(rows, total, device)?, 0)?;
        let recurrent = self.hidden_weight.t()?;
        let count = steps.counts().first().copied().unwrap_or(0);
        let mut state = Tensor::zeros((count, dimension), gates.dtype(), device)?;
        let mut states = Vec::with_capacity(steps.counts().len());
        let mut start = 0;
        for count in steps.counts() {
            let input = gates.narrow(0, start, *count)?;
            let before = state.narrow(0, 0, *count)?.contiguous()?;
            let hidden = before.product(&recurrent)?.broadcast_add(&self.hidden_bias)?;
            state = cell(&input, &hidden, &before)?;
            states.push(state.clone());
            start += count;
        }
        Ok(Tensor::cat(&states, 0)?.index_select(&Tensor::from_vec(inverse(rows), total, device)?, 0)?)
    }
}

/// The states of all units, `[E, N, D]`, from their parts of the input.
#[cfg(feature = "cuda")]
fn on_card(units: &[&Gru], gates: &[Tensor], steps: &Steps) -> Result<Tensor> {
    let recurrence = aeir_kernels::Recurrence {
        counts: steps.counts().to_vec(),
        rows: units.iter().map(|unit| steps.rows(unit.direction).to_vec()).collect(),
    };
    let weights: Vec<&Tensor> = units.iter().map(|unit| &unit.hidden_weight).collect();
    let biases: Vec<&Tensor> = units.iter().map(|unit| &unit.hidden_bias).collect();
    let (weights, biases) = (Tensor::stack(&weights, 0)?, Tensor::stack(&biases, 0)?);
    Ok(aeir_kernels::recurrence(&Tensor::stack(gates, 0)?, &weights, &biases, &recurrence)?)
}

/// One step: `input` and `hidden` `[n, 3D]`, `before` `[n, D]`.
fn cell(input: &Tensor, hidden: &Tensor, before: &Tensor) -> candle_core::Result<Tensor> {
    let dimension = before.dim(1)?;
    let gate = |of: &Tensor, index: usize| of.narrow(1, index * dimension, dimension);
    let reset = sigmoid(&(gate(input, 0)? + gate(hidden, 0)?)?)?;
    let update = sigmoid(&(gate(input, 1)? + gate(hidden, 1)?)?)?;
    let new = (gate(input, 2)? + (reset * gate(hidden, 2)?)?)?.tanh()?;
    &new + (update * (before - &new)?)?
}

/// `1 / (1 + exp(-x))` by tanh, which does not overflow and passes gradients on every device.
fn sigmoid(x: &Tensor) -> candle_core::Result<Tensor> {
    (x * 0.5)?.tanh()?.affine(0.5, 0.5)
}

/// The permutation that undoes `rows`.
fn inverse(rows: &[u32]) -> Vec<u32> {
    let mut inverse = vec![0; rows.len()];
    for (index, row) in (0u32..).zip(rows) {
        if let Some(slot) = inverse.get_mut(*row as usize) {
            *slot = index;
        }
    }
    inverse
}
