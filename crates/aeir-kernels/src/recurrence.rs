//! The recurrence of gated recurrent units: a product and a kernel a step, forward and backward, of all directions at once.

use candle_core::cuda_backend::cudarc::driver::CudaSlice;
use candle_core::{DType, Result, Tensor, bail};

use crate::elements::column_sums;
use crate::launch::{Argument, Card, Grid, SENTENCES, number};
use crate::node::node;

/// Which words recurrences see at each of their steps: the sentences of a step are the first ones of the step before.
#[derive(Debug, Clone)]
pub struct Recurrence {
    /// Sentences with a word at each step, never increasing.
    pub counts: Vec<usize>,
    /// For each direction, each step, and in it each sentence, the row of its word.
    pub rows: Vec<Vec<u32>>,
}

/// The states of gated recurrent units after each word, as PyTorch computes them: `gates [E, N, 3D]`, the input's part in the order r, z, n,
/// `weight [E, 3D, D]` and `bias [E, 3D]` of the state's part, for E directions, to `[E, N, D]`. The first state is zero.
///
/// # Errors
/// When the sizes don't fit; from candle and the driver.
pub fn recurrence(gates: &Tensor, weight: &Tensor, bias: &Tensor, steps: &Recurrence) -> Result<Tensor> {
    let [gates, weight, bias] = [gates.contiguous()?, weight.contiguous()?, bias.contiguous()?];
    let Recurrence { counts, rows } = steps;
    let (directions, _, units) = weight.dims3()?;
    let words = counts.iter().sum::<usize>();
    let is_whole = |rows: &Vec<u32>| rows.len() == words && rows.iter().all(|row| (*row as usize) < words);
    let fits = gates.dims() == [directions, words, 3 * units]
        && weight.dims() == [directions, 3 * units, units]
        && bias.dims() == [directions, 3 * units]
        && counts.is_sorted_by(|before, after| before >= after)
        && rows.len() == directions
        && rows.iter().all(is_whole);
    if !fits {
        bail!("recurrence: {:?}, {:?}, {:?} for {words} words", gates.dims(), weight.dims(), bias.dims());
    }
    // Kernels count the numbers of a step in 32 bits.
    number(directions * counts.first().copied().unwrap_or(0) * 4 * units)?;
    let card = Card::of(&gates)?;
    let rows = Tensor::from_vec(rows.concat(), (directions, words), gates.device())?;
    let pass = Pass { card, directions, words, units, rows, counts: counts.clone() };
    let (states, kept) = pass.forward(&gates.detach(), &weight.detach(), &bias.detach())?;
    let (states, shape) = (pass.card.storage(states), (directions, words, units));
    node("recurrence", &[&gates, &weight, &bias], states, shape, move |inputs, _, gradient| {
        let &[_, weight, _] = inputs else { return Ok(Vec::new()) };
        pass.backward(&weight.detach(), &kept, gradient)
    })
}

struct Pass {
    card: Card,
    directions: usize,
    words: usize,
    units: usize,
    /// The row of each word, step by step, `[E, N]`.
    rows: Tensor,
    counts: Vec<usize>,
}

/// What the backward pass needs.
struct Kept {
    /// Of each step, `[E, n, D]`.
    states: Vec<Tensor>,
    /// Of each step: r, z, n and `U_n h + c_n`, `[E, n, 4D]`.
    gates: Vec<CudaSlice<f32>>,
}

impl Pass {
    /// Numbers of a step with `count` words, D of each.
    fn room_of(&self, count: usize, multiple: usize) -> Result<CudaSlice<f32>> {
        self.card.room(self.directions * count * multiple * self.units)
    }

    /// Each step's rows: a view that begins with them in each direction.
    fn rows_of_steps(&self) -> Result<Vec<Tensor>> {
        let flat = self.rows.flatten_all()?;
        let mut start = 0;
        let of_step = |count: &usize| {
            let rows = flat.narrow(0, start, flat.elem_count() - start);
            start += count;
            rows
        };
        self.counts.iter().map(of_step).collect()
    }

    /// Directions, words, and how far one direction's rows lie behind another's.
    fn sizes(&self) -> Result<[Argument<'static>; 3]> {
        Ok([number(self.directions)?, number(self.words)?, number(self.words)?].map(Argument::Number))
    }

    fn forward(&self, gates: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<(CudaSlice<f32>, Kept)> {
        let all = self.room_of(self.words, 1)?;
        let turned = weight.t()?;
        let mut kept = Kept { states: Vec::new(), gates: Vec::new() };
        for (count, rows) in self.counts.iter().zip(self.rows_of_steps()?) {
            let before = kept.states.last();
            let before_count = before.map_or(Ok(0), |before| before.dim(1))?;
            let hidden = match before {
                Some(before) => Some(before.narrow(1, 0, *count)?.matmul(&turned)?),
                None => None,
            };
            let (state, of_gates) = (self.room_of(*count, 1)?, self.room_of(*count, 4)?);
            let [directions, words, row_stride] = self.sizes()?;
            let arguments = [
                Argument::Tensor(gates),
                Argument::Tensor(&rows),
                // The first step has none before it, and does not read them.
                hidden.as_ref().map_or(Argument::Out(&state), Argument::Tensor),
                Argument::Tensor(bias),
                before.map_or(Argument::Out(&state), Argument::Tensor),
                Argument::Out(&state),
                Argument::Out(&all),
                Argument::Out(&of_gates),
                directions,
                words,
                row_stride,
                Argument::Number(number(*count)?),
                Argument::Number(number(before_count)?),
                Argument::Number(number(self.units)?),
            ];
            let grid = Grid::threads(self.directions * count * self.units)?;
            self.card.launch(&SENTENCES, "recurrent_step", &grid, &arguments)?;
            kept.states.push(self.card.tensor(state, (self.directions, *count, self.units)));
            kept.gates.push(of_gates);
        }
        Ok((all, kept))
    }

    fn backward(&self, weight: &Tensor, kept: &Kept, upstream: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let Self { card, directions, words, units, counts, .. } = self;
        let of_gates = self.room_of(*words, 3)?;
        // Step by step, as the words of the steps.
        let of_hidden = card.tensor(self.room_of(*words, 3)?, (*directions, *words, 3 * units));
        // From the step after: directly, and through the product.
        let mut carried: Option<[Tensor; 2]> = None;
        let mut end = *words;
        let steps = counts.iter().zip(self.rows_of_steps()?).zip(&kept.gates).enumerate();
        for (step, ((count, rows), gates)) in steps.rev() {
            let first = end - count;
            let before = step.checked_sub(1).and_then(|before| kept.states.get(before));
            let before_count = before.map_or(Ok(0), |before| before.dim(1))?;
            let direct = self.room_of(*count, 1)?;
            let after = carried.as_ref().map_or(Ok(0), |[direct, _]| direct.dim(1))?;
            let [from_direct, from_product] = match &carried {
                Some(both) => both.each_ref().map(Argument::Tensor),
                None => [Argument::Out(&direct), Argument::Out(&direct)],
            };
            let [of_directions, of_words, row_stride] = self.sizes()?;
            let arguments = [
                Argument::Tensor(upstream),
                Argument::Tensor(&rows),
                before.map_or(Argument::Out(&direct), Argument::Tensor),
                Argument::Out(gates),
                from_direct,
                from_product,
                Argument::Out(&of_gates),
                Argument::Tensor(&of_hidden),
                Argument::Out(&direct),
                of_directions,
                of_words,
                row_stride,
                Argument::Number(number(*count)?),
                Argument::Number(number(before_count)?),
                Argument::Number(number(after)?),
                Argument::Number(number(*units)?),
                Argument::Number(number(first)?),
            ];
            let grid = Grid::threads(directions * count * units)?;
            card.launch(&SENTENCES, "recurrent_step_backward", &grid, &arguments)?;
            carried = match before {
                Some(_) => {
                    let product = of_hidden.narrow(1, first, *count)?.matmul(weight)?;
                    Some([card.tensor(direct, (*directions, *count, *units)), product])
                }
                None => None,
            };
            end = first;
        }
        let of_bias = (0..*directions).map(|direction| column_sums(&of_hidden.get(direction)?));
        let of_bias = Tensor::stack(&of_bias.collect::<Result<Vec<_>>>()?, 0)?;
        let of_weight = self.weight_backward(&of_hidden, kept)?;
        let of_gates = card.tensor(of_gates, (*directions, *words, 3 * units));
        Ok(vec![Some(of_gates), Some(of_weight), Some(of_bias)])
    }

    /// One product for all steps that have one before them.
    fn weight_backward(&self, of_hidden: &Tensor, kept: &Kept) -> Result<Tensor> {
        let Self { directions, words, units, counts, .. } = self;
        let Some((first, later)) = counts.split_first().filter(|(_, later)| !later.is_empty()) else {
            return Tensor::zeros((*directions, 3 * units, *units), DType::F32, of_hidden.device());
        };
        let before = kept.states.iter().zip(later).map(|(state, count)| state.narrow(1, 0, *count));
        let before = Tensor::cat(&before.collect::<Result<Vec<_>>>()?, 1)?;
        of_hidden.narrow(1, *first, words - first)?.t()?.matmul(&before)
    }
}
