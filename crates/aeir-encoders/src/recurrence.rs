//! The recurrence of a gated recurrent unit as one graph node on the CPU, with its backward pass through time.
//!
//! At each step every thread computes some of the units for all sentences, so that the recurrent weights are read once a step,
//! and at the next step reads all of them. States and gates lie in panels of 16 units (`lanes.rs`): what a thread writes is
//! one contiguous piece. A state is one sum over the units in order, so it depends neither on the other sentences nor on the
//! number of threads.

use std::sync::{Arc, OnceLock};

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use crate::gru::{Direction, Steps};
use crate::lanes::{Lanes, PANEL, Rows, TILE, load, multiply_add, rows_at_once, sigmoid, store, tanh};
use crate::product::{Matrix, column_sums, held_values, multiply, values};

const ZERO: Lanes = [0.0; PANEL];
/// Lines of the recurrent weights that the backward pass works on together, a multiple of a panel's.
const BACKWARD_LINES: usize = 16 * PANEL;

/// The states after each word.
///
/// `gates [N, 3D]` (the input's part, rows as in [`Steps`]), `weight [3D, D]`, `bias [3D]`, all f32 on the CPU, to `[N, D]`.
pub(crate) fn recurrence(
    gates: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    steps: &Arc<Steps>,
    direction: Direction,
) -> Result<Tensor> {
    let keep = gates.track_op() || weight.track_op() || bias.track_op();
    let operation = Recurrence { steps: Arc::clone(steps), direction, keep, kept: OnceLock::new() };
    gates.contiguous()?.apply_op3(&weight.contiguous()?, &bias.contiguous()?, operation)
}

struct Recurrence {
    steps: Arc<Steps>,
    direction: Direction,
    /// Whether a backward pass may follow.
    keep: bool,
    kept: OnceLock<Kept>,
}

/// What the backward pass needs of the forward pass.
struct Kept {
    /// For each step `[panels, n]`.
    states: Vec<Lanes>,
    /// For each step `[panels, 4, n]`: r, z, n, and `U_n h + c_n`.
    gates: Vec<Lanes>,
}

/// Sizes, and where each step and each word lies.
struct Plan<'a> {
    units: usize,
    panels: usize,
    steps: Vec<Step<'a>>,
    /// For each row of words, where its step begins, its place there, and how many words the step has.
    places: Vec<(usize, usize, usize)>,
}

#[derive(Clone, Copy)]
struct Step<'a> {
    /// Words of all steps before.
    start: usize,
    /// Words of this step.
    count: usize,
    /// Their rows.
    rows: &'a [u32],
}

impl<'a> Plan<'a> {
    fn new(steps: &'a Steps, direction: Direction, units: usize) -> Self {
        let mut rest = steps.rows(direction);
        let mut places = vec![(0, 0, 0); rest.len()];
        let mut start = 0;
        let step = |count: &usize| {
            let (rows, after) = rest.split_at_checked(*count).unwrap_or((rest, &[]));
            rest = after;
            let step = Step { start, count: rows.len(), rows };
            for (rank, row) in rows.iter().enumerate() {
                if let Some(place) = places.get_mut(*row as usize) {
                    *place = (start, rank, step.count);
                }
            }
            start += step.count;
            step
        };
        let steps = steps.counts().iter().map(step).collect();
        Self { units, panels: units.div_ceil(PANEL), steps, places }
    }

    /// Sentences of the first step.
    fn sentences(&self) -> usize {
        self.steps.first().map_or(0, |step| step.count)
    }

    fn words(&self) -> usize {
        self.places.len()
    }

    /// Fills `out [N, width]`: `fill` gets a row, the first of its step's words, its place there, and their number.
    fn rows(&self, width: usize, fill: impl Fn(&mut [f32], usize, usize, usize) + Sync) -> Vec<f32> {
        let mut out = vec![0f32; self.words() * width];
        let rows = out.par_chunks_mut(width).zip(&self.places).with_min_len(16);
        rows.for_each(|(row, (start, rank, count))| fill(row, *start, *rank, *count));
        out
    }
}

impl Recurrence {
    fn plan(&self, gates: &[usize], weight: &[usize], bias: &[usize]) -> Result<Plan<'_>> {
        let words = self.steps.rows(self.direction).len();
        let units = weight.last().copied().unwrap_or(0);
        if units == 0 || weight != [3 * units, units] || bias != [3 * units] || gates != [words, 3 * units] {
            bail!("recurrence: {gates:?}, {weight:?}, {bias:?} for {words} words");
        }
        Ok(Plan::new(&self.steps, self.direction, units))
    }
}

impl CustomOp3 for Recurrence {
    fn name(&self) -> &'static str {
        "gru-recurrence"
    }

    fn cpu_fwd(
        &self,
        gates: &CpuStorage,
        gates_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let plan = self.plan(gates_layout.dims(), weight_layout.dims(), bias_layout.dims())?;
        let gates = values(gates, gates_layout)?;
        let (weight, bias) = (values(weight, weight_layout)?, values(bias, bias_layout)?);
        let shape = (plan.words(), plan.units);
        let (out, kept) = in_pool(|| forward(&plan, gates, weight, bias, self.keep));
        if self.keep {
            // Candle runs an operation forward once.
            let _ = self.kept.set(kept);
        }
        Ok((CpuStorage::F32(out), shape.into()))
    }

    fn bwd(
        &self,
        gates: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _result: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let plan = self.plan(gates.dims(), weight.dims(), bias.dims())?;
        let Some(kept) = self.kept.get() else { bail!("recurrence: nothing was kept for the backward pass") };
        let gradient = gradient.contiguous()?;
        let (gradient_storage, gradient_layout) = gradient.storage_and_layout();
        let (weight_storage, weight_layout) = weight.storage_and_layout();
        let weight_values = held_values(&weight_storage, weight_layout)?;
        let gradient_values = held_values(&gradient_storage, gradient_layout)?;
        let gradients = in_pool(|| backward(&plan, kept, weight_values, gradient_values))?;
        let device = gates.device();
        Ok((
            Some(Tensor::from_vec(gradients.gates, gates.shape(), device)?),
            Some(Tensor::from_vec(gradients.weight, weight.shape(), device)?),
            Some(Tensor::from_vec(gradients.bias, bias.shape(), device)?),
        ))
    }
}

/// Runs `work` on a thread of the pool: from outside, each of many short parallel loops would wait for the pool to wake.
fn in_pool<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    rayon::scope(|_| work())
}

fn forward(plan: &Plan<'_>, gates: &[f32], weight: &[f32], bias: &[f32], keep: bool) -> (Vec<f32>, Kept) {
    let panels = plan.panels;
    let weights = pack_forward(plan, weight);
    let biases = (0..panels).map(|panel| gate_rows(bias, plan.units).map(|bias| load(bias, panel)));
    let biases: Vec<[Lanes; 3]> = biases.collect();
    let mut states = vec![ZERO; plan.words() * panels];
    // Without a backward pass the gates of one step are enough.
    let kept_words = if keep { plan.words() } else { plan.sentences() };
    let mut kept_gates = vec![ZERO; kept_words * panels * 4];
    let mut before_count = 0;
    for step in &plan.steps {
        let (before, now) = states.split_at_mut(step.start * panels);
        let before = &before[before.len() - before_count * panels..];
        let gates_start = if keep { step.start * panels * 4 } else { 0 };
        let states = now[..step.count * panels].par_chunks_mut(step.count);
        let kept = kept_gates[gates_start..][..step.count * panels * 4].par_chunks_mut(4 * step.count);
        let weights = weights.par_chunks(3 * panels * PANEL).zip(&biases);
        states.zip(kept).zip(weights).enumerate().for_each(|(panel, ((states, kept), (weights, bias)))| {
            let (units, rows) = (plan.units, step.rows);
            let work =
                ForwardStep { units, panel, rows, gates, weights, bias, before, before_count, states, kept };
            Arch::new().dispatch(work);
        });
        before_count = step.count;
    }
    let out = plan.rows(plan.units, |row, start, rank, count| {
        for panel in 0..panels {
            store(row, panel, &states[start * panels + panel * count + rank]);
        }
    });
    (out, Kept { states, gates: kept_gates })
}

/// The three parts of a row or bias that holds r, z and n.
fn gate_rows(row: &[f32], units: usize) -> [&[f32]; 3] {
    let (reset, rest) = row.split_at(units);
    let (update, new) = rest.split_at(units);
    [reset, update, &new[..units]]
}

/// The recurrent weights as `[panels of units][3 gates][units before, padded][16 units]`.
fn pack_forward(plan: &Plan<'_>, weight: &[f32]) -> Vec<Lanes> {
    let (units, panels) = (plan.units, plan.panels);
    let mut packed = vec![ZERO; panels * 3 * panels * PANEL];
    packed.par_chunks_mut(panels * PANEL).enumerate().for_each(|(index, packed)| {
        let (panel, gate) = (index / 3, index % 3);
        let rows = weight[gate * units * units..][..units * units].chunks_exact(units);
        let rows: Vec<&[f32]> = rows.skip(panel * PANEL).take(PANEL).collect();
        for (block, packed) in packed.as_chunks_mut::<PANEL>().0.iter_mut().enumerate() {
            for (unit, row) in rows.iter().enumerate() {
                let values = load(row, block);
                packed.iter_mut().zip(values).for_each(|(lanes, value)| lanes[unit] = value);
            }
        }
    });
    packed
}

/// The transposed recurrent weights as `[panels of units before][panels of units][3 gates][16 units][16 units before]`: the
/// lines in the order in which the gradient of the gates lies.
fn pack_backward(plan: &Plan<'_>, weight: &[f32]) -> Vec<Lanes> {
    let (units, panels) = (plan.units, plan.panels);
    let mut packed = vec![ZERO; panels * panels * 3 * PANEL];
    packed.par_chunks_mut(panels * 3 * PANEL).enumerate().for_each(|(panel, packed)| {
        for (block, packed) in packed.as_chunks_mut::<PANEL>().0.iter_mut().enumerate() {
            let (first, gate) = (block / 3 * PANEL, block % 3);
            for (unit, lanes) in (first..units).zip(packed) {
                *lanes = load(&weight[(gate * units + unit) * units..][..units], panel);
            }
        }
    });
    packed
}

/// Sixteen units of one step for all its sentences.
struct ForwardStep<'a> {
    units: usize,
    panel: usize,
    rows: &'a [u32],
    gates: &'a [f32],
    weights: &'a [Lanes],
    bias: &'a [Lanes; 3],
    before: &'a [Lanes],
    before_count: usize,
    states: &'a mut [Lanes],
    kept: &'a mut [Lanes],
}

impl WithSimd for ForwardStep<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { units, panel, rows, gates, weights, bias, before, before_count, states, kept } = self;
        let total = states.len();
        let together = rows_at_once::<S>();
        for first in (0..total).step_by(together) {
            let count = together.min(total - first);
            let mut gated = [[bias[0]; TILE], [bias[1]; TILE]];
            let mut hidden = [[bias[2]; TILE]];
            let left = Rows { panels: before, rows: before_count, first, count };
            let (of_reset, rest) = weights.split_at(weights.len() / 3);
            let (of_update, of_new) = rest.split_at(weights.len() / 3);
            multiply_add(simd, left, [of_reset, of_update], &mut gated);
            multiply_add(simd, left, [of_new], &mut hidden);
            let ([reset, update], [new]) = (&gated, &hidden);
            for row in 0..count {
                let rank = first + row;
                let input = gate_rows(&gates[rows[rank] as usize * 3 * units..][..3 * units], units);
                let [input_reset, input_update, input_new] = input.map(|gate| load(gate, panel));
                let before = before.get(panel * before_count + rank).unwrap_or(&ZERO);
                let reset = sigmoid(&add(&input_reset, &reset[row]));
                let update = sigmoid(&add(&input_update, &update[row]));
                let hidden = new[row];
                let new = tanh(&lanes(|i| input_new[i] + reset[i] * hidden[i]));
                states[rank] = lanes(|i| new[i] + update[i] * (before[i] - new[i]));
                let [r, z, n, h] = [0, 1, 2, 3].map(|part| part * total + rank);
                (kept[r], kept[z], kept[n], kept[h]) = (reset, update, new, hidden);
            }
        }
    }
}

#[inline(always)]
fn lanes(value: impl Fn(usize) -> f32) -> Lanes {
    std::array::from_fn(value)
}

#[inline(always)]
fn add(a: &Lanes, b: &Lanes) -> Lanes {
    lanes(|i| a[i] + b[i])
}

struct Gradients {
    gates: Vec<f32>,
    weight: Vec<f32>,
    bias: Vec<f32>,
}

fn backward(plan: &Plan<'_>, kept: &Kept, weight: &[f32], gradient: &[f32]) -> Result<Gradients> {
    let (units, panels, words) = (plan.units, plan.panels, plan.words());
    let weights = pack_backward(plan, weight);
    // For each step `[panels, 3, n]`, by r, z and `U_n h + c_n`; and `[panels, n]`, by `W_n x + b_n`.
    let mut hidden = vec![ZERO; words * panels * 3];
    let mut new = vec![ZERO; words * panels];
    // `[panels, sentences]`: the part of a state's gradient that comes from the next state directly.
    let mut carry = vec![ZERO; plan.sentences() * panels];
    let mut after_count = 0;
    for (index, step) in plan.steps.iter().enumerate().rev() {
        let before_count =
            index.checked_sub(1).and_then(|index| plan.steps.get(index)).map_or(0, |step| step.count);
        let before = &kept.states[(step.start - before_count) * panels..][..before_count * panels];
        let kept = kept.gates[step.start * panels * 4..].par_chunks(2 * 4 * step.count);
        let (now, after) = hidden[step.start * panels * 3..].split_at_mut(step.count * panels * 3);
        let after = &after[..after_count * panels * 3];
        let hidden = now.par_chunks_mut(2 * 3 * step.count);
        let new = new[step.start * panels..][..step.count * panels].par_chunks_mut(2 * step.count);
        let weights = weights.par_chunks(2 * panels * 3 * PANEL);
        let carry = carry.par_chunks_mut(2 * plan.sentences());
        let outputs = hidden.zip(new).zip(carry);
        outputs.zip(weights.zip(kept)).enumerate().for_each(
            |(pair, (((hidden, new), carry), (weights, kept)))| {
                let work = BackwardStep {
                    units,
                    first_panel: 2 * pair,
                    rows: step.rows,
                    gradient,
                    weights,
                    after,
                    after_count,
                    before,
                    before_count,
                    kept,
                    hidden,
                    new,
                    carry,
                };
                Arch::new().dispatch(work);
            },
        );
        after_count = step.count;
    }
    // Back to rows.
    let gates = plan.rows(3 * units, |row, start, rank, count| {
        let (reset, rest) = row.split_at_mut(units);
        let (update, last) = rest.split_at_mut(units);
        for panel in 0..panels {
            let of_panel = &hidden[(start * panels + panel * count) * 3..];
            store(reset, panel, &of_panel[rank]);
            store(update, panel, &of_panel[count + rank]);
            store(last, panel, &new[start * panels + panel * count + rank]);
        }
    });
    let hidden_new = plan.rows(units, |row, start, rank, count| {
        for panel in 0..panels {
            store(row, panel, &hidden[(start * panels + panel * count) * 3 + 2 * count + rank]);
        }
    });
    let before = states_before(plan, &kept.states);
    let before = Matrix::new(&before, words, units)?;
    let mut weight = vec![0f32; 3 * units * units];
    let (reset_update, of_new) = weight.split_at_mut(2 * units * units);
    let by_gate = Matrix::new(&gates, words, 3 * units)?.transposed();
    multiply(by_gate.rows(0, 2 * units), before, reset_update)?;
    multiply(Matrix::new(&hidden_new, words, units)?.transposed(), before, of_new)?;
    let mut bias = column_sums(&gates, 3 * units);
    bias.truncate(2 * units);
    bias.extend(column_sums(&hidden_new, units));
    Ok(Gradients { gates, weight, bias })
}

/// The state each word meets, `[N, D]`; zeros at the first word.
fn states_before(plan: &Plan<'_>, states: &[Lanes]) -> Vec<f32> {
    // The step before has as many words or more, and a sentence keeps its place.
    let counts: std::collections::HashMap<usize, usize> = plan
        .steps
        .iter()
        .zip(plan.steps.iter().skip(1))
        .map(|(before, step)| (step.start, before.count))
        .collect();
    plan.rows(plan.units, |row, start, rank, _| {
        let Some(count) = counts.get(&start) else { return };
        for panel in 0..plan.panels {
            store(row, panel, &states[(start - count) * plan.panels + panel * count + rank]);
        }
    })
}

/// Two panels of sixteen units, or the last one, of one step, backward, for all its sentences.
struct BackwardStep<'a> {
    units: usize,
    first_panel: usize,
    rows: &'a [u32],
    gradient: &'a [f32],
    weights: &'a [Lanes],
    after: &'a [Lanes],
    after_count: usize,
    before: &'a [Lanes],
    before_count: usize,
    kept: &'a [Lanes],
    hidden: &'a mut [Lanes],
    new: &'a mut [Lanes],
    carry: &'a mut [Lanes],
}

impl WithSimd for BackwardStep<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let total = self.rows.len();
        let panels = self.new.len() / total.max(1);
        if panels == 2 {
            self.carry_over::<S, 2>(simd);
        } else {
            self.carry_over::<S, 1>(simd);
        }
        for panel in 0..panels {
            self.through_cells(panel, total, self.carry.len() / panels);
        }
    }
}

impl BackwardStep<'_> {
    /// Adds to the carry what comes from the gates of the step after.
    #[inline(always)]
    fn carry_over<S: Simd, const PANELS: usize>(&mut self, simd: S) {
        let Self { weights, after, after_count, .. } = *self;
        let (sentences, lines) = (self.carry.len() / PANELS, weights.len() / PANELS);
        let together = rows_at_once::<S>();
        // Some lines for all sentences before the next ones: they stay in the first-level cache.
        for start in (0..lines).step_by(BACKWARD_LINES) {
            let end = lines.min(start + BACKWARD_LINES);
            let weights = std::array::from_fn(|panel| &weights[panel * lines..][start..end]);
            let panels = &after[start / PANEL * after_count..end / PANEL * after_count];
            for first in (0..after_count).step_by(together) {
                let count = together.min(after_count - first);
                let mut tiles = [[ZERO; TILE]; PANELS];
                for (tile, carry) in tiles.iter_mut().zip(self.carry.chunks_exact(sentences)) {
                    tile[..count].copy_from_slice(&carry[first..first + count]);
                }
                let left = Rows { panels, rows: after_count, first, count };
                multiply_add::<S, PANELS>(simd, left, weights, &mut tiles);
                for (tile, carry) in tiles.iter().zip(self.carry.chunks_exact_mut(sentences)) {
                    carry[first..first + count].copy_from_slice(&tile[..count]);
                }
            }
        }
    }

    /// One panel from the gradient of its states to that of its gates.
    #[inline(always)]
    fn through_cells(&mut self, panel: usize, total: usize, sentences: usize) {
        let Self { units, first_panel, rows, gradient, before, before_count, kept, .. } = *self;
        let before = before.get((first_panel + panel) * before_count..).unwrap_or_default();
        let kept = &kept[4 * panel * total..][..4 * total];
        let hidden = &mut self.hidden[3 * panel * total..][..3 * total];
        let new = &mut self.new[panel * total..][..total];
        let carry = &mut self.carry[panel * sentences..][..sentences];
        for (rank, row) in rows.iter().enumerate() {
            let by_output = load(&gradient[*row as usize * units..][..units], first_panel + panel);
            let by_state = add(&by_output, &carry[rank]);
            let [r, z, n, h] = [0, 1, 2, 3].map(|part| &kept[part * total + rank]);
            let before = before.get(rank).unwrap_or(&ZERO);
            let by_new = lanes(|i| by_state[i] * (1.0 - z[i]) * (1.0 - n[i] * n[i]));
            new[rank] = by_new;
            hidden[rank] = lanes(|i| by_new[i] * h[i] * r[i] * (1.0 - r[i]));
            hidden[total + rank] = lanes(|i| by_state[i] * (before[i] - n[i]) * z[i] * (1.0 - z[i]));
            hidden[2 * total + rank] = lanes(|i| by_new[i] * r[i]);
            carry[rank] = lanes(|i| by_state[i] * z[i]);
        }
    }
}
