//! The recurrence of a gated recurrent unit: a product and a kernel a step, forward and backward.

use candle_core::cuda_backend::cudarc::driver::CudaSlice;
use candle_core::{DType, Result, Tensor, bail};

use crate::elements::column_sums;
use crate::launch::{Argument, Card, Grid, SENTENCES, number};
use crate::node::node;

/// Which words a recurrence sees at each of its steps: the sentences of a step are the first ones of the step before.
#[derive(Debug, Clone)]
pub struct Recurrence {
    /// Sentences with a word at each step, never increasing.
    pub counts: Vec<usize>,
    /// For each step, and in it for each sentence, the row of its word.
    pub rows: Vec<u32>,
}

/// The states of a gated recurrent unit after each word, as PyTorch computes them: `gates [N, 3D]`, the input's part in the order r, z, n,
/// `weight [3D, D]` and `bias [3D]` of the state's part, to `[N, D]`. The first state is zero.
///
/// # Errors
/// When the sizes don't fit; from candle and the driver.
pub fn recurrence(gates: &Tensor, weight: &Tensor, bias: &Tensor, steps: Recurrence) -> Result<Tensor> {
    let [gates, weight, bias] = [gates.contiguous()?, weight.contiguous()?, bias.contiguous()?];
    let Recurrence { counts, rows } = steps;
    let units = weight.dim(1)?;
    let fits = gates.dims() == [rows.len(), 3 * units]
        && weight.dims() == [3 * units, units]
        && bias.dims() == [3 * units]
        && counts.iter().sum::<usize>() == rows.len()
        && counts.is_sorted_by(|before, after| before >= after)
        && rows.iter().all(|row| (*row as usize) < rows.len());
    if !fits {
        bail!(
            "recurrence: {:?}, {:?}, {:?} for {} words",
            gates.dims(),
            weight.dims(),
            bias.dims(),
            rows.len()
        );
    }
    let card = Card::of(&gates)?;
    let rows = Tensor::from_slice(&rows, rows.len(), gates.device())?;
    let pass = Pass { card, units, rows, counts };
    let (states, kept) = pass.forward(&gates.detach(), &weight.detach(), &bias.detach())?;
    let (states, shape) = (pass.card.storage(states), (pass.words(), units));
    node("recurrence", &[&gates, &weight, &bias], states, shape, move |inputs, _, gradient| {
        let &[_, weight, _] = inputs else { return Ok(Vec::new()) };
        pass.backward(&weight.detach(), &kept, gradient)
    })
}

struct Pass {
    card: Card,
    units: usize,
    /// The row of each word, step by step.
    rows: Tensor,
    counts: Vec<usize>,
}

/// What the backward pass needs.
struct Kept {
    /// Of each step, `[n, D]`.
    states: Vec<Tensor>,
    /// Of each step: r, z, n and `U_n h + c_n`, `[n, 4D]`.
    gates: Vec<CudaSlice<f32>>,
}

impl Pass {
    fn words(&self) -> usize {
        self.rows.elem_count()
    }

    /// Each step's rows.
    fn rows_of_steps(&self) -> Result<Vec<Tensor>> {
        let mut start = 0;
        let of_step = |count: &usize| {
            let rows = self.rows.narrow(0, start, *count);
            start += count;
            rows
        };
        self.counts.iter().map(of_step).collect()
    }

    fn forward(&self, gates: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<(CudaSlice<f32>, Kept)> {
        let Self { card, units, .. } = self;
        let all = card.room(self.words() * units)?;
        let turned = weight.t()?;
        let mut kept = Kept { states: Vec::new(), gates: Vec::new() };
        for (count, rows) in self.counts.iter().zip(self.rows_of_steps()?) {
            let before = kept.states.last().map(|state| state.narrow(0, 0, *count)).transpose()?;
            let hidden = before.as_ref().map(|before| before.matmul(&turned)).transpose()?;
            let (state, of_gates) = (card.room(count * units)?, card.room(4 * count * units)?);
            let arguments = [
                Argument::Tensor(gates),
                Argument::Tensor(&rows),
                // The first step has none before it, and does not read them.
                hidden.as_ref().map_or(Argument::Out(&state), Argument::Tensor),
                Argument::Tensor(bias),
                before.as_ref().map_or(Argument::Out(&state), Argument::Tensor),
                Argument::Out(&state),
                Argument::Out(&all),
                Argument::Out(&of_gates),
                Argument::Number(number(*count)?),
                Argument::Number(number(*units)?),
                Argument::Number(u32::from(before.is_none())),
            ];
            card.launch(&SENTENCES, "recurrent_step", &Grid::threads(count * units)?, &arguments)?;
            kept.states.push(card.tensor(state, (*count, *units)));
            kept.gates.push(of_gates);
        }
        Ok((all, kept))
    }

    fn backward(&self, weight: &Tensor, kept: &Kept, upstream: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let Self { card, units, .. } = self;
        let counts = &self.counts;
        let of_gates = card.room(3 * self.words() * units)?;
        let mut of_hidden = Vec::with_capacity(counts.len());
        // From the step after: directly, and through the product.
        let mut carried: Option<[Tensor; 2]> = None;
        let steps = counts.iter().zip(self.rows_of_steps()?).zip(&kept.gates).enumerate();
        for (step, ((count, rows), gates)) in steps.rev() {
            let before = step.checked_sub(1).and_then(|before| kept.states.get(before));
            let (own, direct) = (card.room(3 * count * units)?, card.room(count * units)?);
            let after = carried.as_ref().map_or(Ok(0), |[direct, _]| direct.dim(0))?;
            let [from_direct, from_product] = match &carried {
                Some(both) => both.each_ref().map(Argument::Tensor),
                None => [Argument::Out(&direct), Argument::Out(&direct)],
            };
            let arguments = [
                Argument::Tensor(upstream),
                Argument::Tensor(&rows),
                before.map_or(Argument::Out(&direct), Argument::Tensor),
                Argument::Out(gates),
                from_direct,
                from_product,
                Argument::Out(&of_gates),
                Argument::Out(&own),
                Argument::Out(&direct),
                Argument::Number(number(*count)?),
                Argument::Number(number(after)?),
                Argument::Number(number(*units)?),
                Argument::Number(u32::from(before.is_none())),
            ];
            card.launch(&SENTENCES, "recurrent_step_backward", &Grid::threads(count * units)?, &arguments)?;
            let own = card.tensor(own, (*count, 3 * units));
            carried = match before {
                Some(_) => Some([card.tensor(direct, (*count, *units)), own.matmul(weight)?]),
                None => None,
            };
            of_hidden.push(own);
        }
        of_hidden.reverse();
        let of_bias = column_sums(&Tensor::cat(&of_hidden, 0)?)?;
        let of_weight = self.weight_backward(&of_hidden, kept, upstream)?;
        Ok(vec![Some(card.tensor(of_gates, (self.words(), 3 * units))), Some(of_weight), Some(of_bias)])
    }

    /// One product for all steps that have one before them.
    fn weight_backward(&self, of_hidden: &[Tensor], kept: &Kept, like: &Tensor) -> Result<Tensor> {
        let counts = &self.counts;
        let (Some(gradients), true) = (of_hidden.get(1..), of_hidden.len() > 1) else {
            return Tensor::zeros((3 * self.units, self.units), DType::F32, like.device());
        };
        let before =
            kept.states.iter().zip(counts.iter().skip(1)).map(|(state, count)| state.narrow(0, 0, *count));
        let before = Tensor::cat(&before.collect::<Result<Vec<_>>>()?, 0)?;
        Tensor::cat(gradients, 0)?.t()?.matmul(&before)
    }
}
