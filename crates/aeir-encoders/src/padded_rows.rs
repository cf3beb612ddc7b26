//! The states of words as unit rows in padded sentences, as one operation on the CPU.
//!
//! Composed of candle's operations, mean, scaling and padding would each pass over all states, forward and backward, on one thread.

use std::ops::Range;

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::normalise::{UnitNorm, UnitRows};
use crate::product::{held_values, values};
use crate::rehearsal::is_fused;
use crate::vector::vectorised;

/// Which words a batch of sentences has.
pub(crate) struct Placed<'a> {
    /// Rows of the states.
    pub(crate) rows: Range<usize>,
    /// Where each of these rows stands in the flattened `[B, L]`, in rising order.
    pub(crate) positions: &'a [u32],
    /// B and L.
    pub(crate) padded: (usize, usize),
}

/// `unit((forward + backward) / 2)`, zeros where there is padding: states `[N, D]` each to `[B, L, D]`.
pub(crate) fn padded_unit_mean(
    forward: &Tensor,
    backward: &Tensor,
    placed: &Placed<'_>,
    norm: UnitNorm,
) -> Result<Tensor> {
    let Placed { rows, positions, padded: (batch, longest) } = placed;
    let (_, dimension) = forward.dims2()?;
    if is_fused(&[forward, backward]) && dimension > 0 {
        let operation = PaddedUnitMean {
            rows: rows.clone(),
            positions: positions.to_vec(),
            padded: (*batch, *longest),
            unit: UnitRows(norm),
        };
        return forward.contiguous()?.apply_op2(&backward.contiguous()?, operation);
    }
    #[cfg(feature = "cuda")]
    if aeir_kernels::takes(&[forward, backward]) && batch * longest > 0 {
        let places = aeir_kernels::Places { rows: rows.clone(), positions, padded: placed.padded };
        return aeir_kernels::padded_unit_mean(forward, backward, &places, norm.of_kernels());
    }
    let of_batch = |states: &Tensor| states.narrow(0, rows.start, rows.len());
    let mean = ((of_batch(forward)? + of_batch(backward)?)? * 0.5)?;
    let unit = norm.apply(&mean).map_err(candle_core::Error::wrap)?;
    let padding = Tensor::zeros((batch * longest, dimension), forward.dtype(), forward.device())?;
    let positions = Tensor::from_slice(positions, positions.len(), forward.device())?;
    padding.index_add(&positions, &unit, 0)?.reshape((*batch, *longest, dimension))
}

struct PaddedUnitMean {
    rows: Range<usize>,
    positions: Vec<u32>,
    padded: (usize, usize),
    unit: UnitRows,
}

impl PaddedUnitMean {
    /// D, if the states have it and all rows.
    fn dimension(&self, forward: &[usize], backward: &[usize]) -> Result<usize> {
        match *forward {
            [words, dimension]
                if forward == backward
                    && self.rows.end <= words
                    && self.rows.len() == self.positions.len()
                    && self.positions.iter().all(|at| (*at as usize) < self.padded.0 * self.padded.1)
                    && dimension > 0 =>
            {
                Ok(dimension)
            }
            _ => bail!("padded rows: {forward:?} and {backward:?} for the rows {:?}", self.rows),
        }
    }

    /// Calls `fill` with each padded place that holds a word, and the word's row.
    fn for_each_word(&self, out: &mut [f32], dimension: usize, fill: impl Fn(&mut [f32], usize) + Sync) {
        let (_, longest) = self.padded;
        let sentences = out.par_chunks_mut(longest.max(1) * dimension).enumerate();
        sentences.for_each(|(sentence, out)| {
            let first = sentence * longest;
            let start = self.positions.partition_point(|position| (*position as usize) < first);
            let words = self.positions.iter().skip(start).take_while(|at| **at as usize - first < longest);
            for (offset, position) in words.enumerate() {
                let out = &mut out[(*position as usize - first) * dimension..][..dimension];
                fill(out, self.rows.start + start + offset);
            }
        });
    }
}

#[inline(always)]
fn mean(out: &mut [f32], forward: &[f32], backward: &[f32]) {
    out.iter_mut().zip(forward.iter().zip(backward)).for_each(|(out, (a, b))| *out = (a + b) * 0.5);
}

impl CustomOp2 for PaddedUnitMean {
    fn name(&self) -> &'static str {
        "padded-unit-mean"
    }

    fn cpu_fwd(
        &self,
        forward: &CpuStorage,
        forward_layout: &Layout,
        backward: &CpuStorage,
        backward_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let dimension = self.dimension(forward_layout.dims(), backward_layout.dims())?;
        let (forward, backward) = (values(forward, forward_layout)?, values(backward, backward_layout)?);
        let (batch, longest) = self.padded;
        let mut out = vec![0f32; batch * longest * dimension];
        self.for_each_word(&mut out, dimension, |out, row| {
            let row = row * dimension..(row + 1) * dimension;
            vectorised(|| {
                mean(out, &forward[row.clone()], &backward[row]);
                let denominator = self.unit.denominator(out);
                out.iter_mut().for_each(|value| *value /= denominator);
            });
        });
        Ok((CpuStorage::F32(out), Shape::from((batch, longest, dimension))))
    }

    fn bwd(
        &self,
        forward: &Tensor,
        backward: &Tensor,
        _result: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let dimension = self.dimension(forward.dims(), backward.dims())?;
        let gradient = gradient.contiguous()?;
        let guards = [forward, backward, &gradient].map(Tensor::storage_and_layout);
        let slices = guards
            .iter()
            .map(|(storage, layout)| held_values(storage, layout))
            .collect::<Result<Vec<_>>>()?;
        let &[forward_values, backward_values, upstream] = slices.as_slice() else {
            bail!("padded rows: three tensors")
        };
        // Both directions have the same gradient.
        let mut out = vec![0f32; forward_values.len()];
        let rows = out.par_chunks_mut(dimension).enumerate().skip(self.rows.start).zip(&self.positions);
        rows.for_each(|((row, out), position)| {
            let row = row * dimension..(row + 1) * dimension;
            let upstream = &upstream[*position as usize * dimension..][..dimension];
            vectorised(|| {
                mean(out, &forward_values[row.clone()], &backward_values[row]);
                self.unit.backward(out, upstream);
                out.iter_mut().for_each(|value| *value *= 0.5);
            });
        });
        let out = Tensor::from_vec(out, forward.shape(), forward.device())?;
        Ok((Some(out.clone()), Some(out)))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Var};

    use super::*;

    fn noise(shape: &[usize], seed: usize) -> Tensor {
        let count = shape.iter().product::<usize>();
        let values: Vec<f32> = (0..count).map(|i| (((i + seed) * 7919 % 101) as f32) / 50.0 - 1.0).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    }

    fn flat(x: &Tensor) -> Vec<f64> {
        x.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    /// Three sentences of one, three and no words, behind two rows of another batch and before one.
    #[test]
    fn equals_the_composed_operations_forward_and_backward() {
        let positions = [0, 3, 4, 5];
        let placed = || Placed { rows: 2..6, positions: &positions, padded: (3, 3) };
        for norm in [UnitNorm::Smooth, UnitNorm::Released] {
            let run = |dtype: DType| {
                let [forward, backward] = [1, 5]
                    .map(|seed| Var::from_tensor(&noise(&[7, 21], seed).to_dtype(dtype).unwrap()).unwrap());
                let padded = padded_unit_mean(&forward, &backward, &placed(), norm).unwrap();
                let upstream = noise(&[3, 3, 21], 9).to_dtype(dtype).unwrap();
                let gradients = (&padded * upstream).unwrap().sum_all().unwrap().backward().unwrap();
                let of = |x: &Var| gradients.get(x).unwrap().clone();
                [padded.detach(), of(&forward), of(&backward)]
            };
            for (single, double) in run(DType::F32).iter().zip(&run(DType::F64)) {
                assert_eq!(single.dims(), double.dims());
                let pairs = flat(single).into_iter().zip(flat(double));
                pairs.for_each(|(a, b)| assert!((a - b).abs() < 1e-5, "{norm:?}: {a} {b}"));
            }
        }
    }

    #[test]
    fn sizes_that_do_not_fit_are_told() {
        let placed = Placed { rows: 0..2, positions: &[0, 1], padded: (1, 2) };
        let norm = UnitNorm::Smooth;
        assert!(padded_unit_mean(&noise(&[2, 4], 0), &noise(&[2, 5], 0), &placed, norm).is_err());
        assert!(padded_unit_mean(&noise(&[1, 4], 0), &noise(&[1, 4], 0), &placed, norm).is_err());
    }
}
