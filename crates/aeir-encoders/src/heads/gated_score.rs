//! The scores of self-attention, dropout and gate in one operation on the CPU.
//!
//! Composed of candle's operations each of three steps would pass over all fragments, on one thread, and in the backward pass
//! leave a gradient of their size behind.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::fused::dense::{add_scaled, dot, vectorised};
use crate::product::{held_values, values};
use crate::rehearsal::is_fused;

/// Whether the operation can take these.
pub(super) fn applies(local: &Tensor) -> bool {
    is_fused(&[local])
}

/// `sum_d w_d g_bd m_btd x_btd`: `local` x `[B, T, D]`, `global` g `[B, D]`, `weight` w `[1, D]` to `[B, T]`. `dropout` m is what
/// each value of x is multiplied with, where there is any.
pub(super) fn gated_scores(
    local: &Tensor,
    global: &Tensor,
    weight: &Tensor,
    dropout: Option<Vec<f32>>,
) -> Result<Tensor> {
    local.contiguous()?.apply_op3(&global.contiguous()?, &weight.contiguous()?, GatedScores { dropout })
}

struct GatedScores {
    dropout: Option<Vec<f32>>,
}

/// Sizes of a batch.
#[derive(Clone, Copy)]
struct Sizes {
    items: usize,
    fragments: usize,
    dimension: usize,
}

impl GatedScores {
    fn sizes(&self, local: &[usize], global: &[usize], weight: &[usize]) -> Result<Sizes> {
        let &[items, fragments, dimension] = local else { bail!("gated scores: {local:?}") };
        let count = items * fragments * dimension;
        let masked = self.dropout.as_ref().is_none_or(|dropout| dropout.len() == count);
        if count == 0 || global != [items, dimension] || weight != [1, dimension] || !masked {
            bail!("gated scores: {local:?}, {global:?}, {weight:?}");
        }
        Ok(Sizes { items, fragments, dimension })
    }

    /// The mask of one item's fragments.
    fn mask(&self, item: usize, size: usize) -> Option<&[f32]> {
        self.dropout.as_ref().and_then(|dropout| dropout.get(item * size..(item + 1) * size))
    }
}

/// What a row of the mask makes of `x`: `out = x mask`.
#[inline(always)]
fn masked(out: &mut [f32], x: &[f32], mask: Option<&[f32]>) {
    match mask {
        Some(mask) => out.iter_mut().zip(x.iter().zip(mask)).for_each(|(out, (x, mask))| *out = x * mask),
        None => out.copy_from_slice(x),
    }
}

impl CustomOp3 for GatedScores {
    fn name(&self) -> &'static str {
        "gated-scores"
    }

    fn cpu_fwd(
        &self,
        local: &CpuStorage,
        local_layout: &Layout,
        global: &CpuStorage,
        global_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let sizes = self.sizes(local_layout.dims(), global_layout.dims(), weight_layout.dims())?;
        let Sizes { items, fragments, dimension } = sizes;
        let (local, global) = (values(local, local_layout)?, values(global, global_layout)?);
        let weight = values(weight, weight_layout)?;
        let mut out = vec![0f32; items * fragments];
        let inputs = local.par_chunks(fragments * dimension).zip(global.par_chunks(dimension));
        out.par_chunks_mut(fragments).zip(inputs).enumerate().for_each(|(item, (out, (local, global)))| {
            let gate: Vec<f32> = global.iter().zip(weight).map(|(global, weight)| global * weight).collect();
            let mut row = vec![0f32; dimension];
            let mask = self.mask(item, fragments * dimension);
            for (fragment, (out, local)) in out.iter_mut().zip(local.chunks_exact(dimension)).enumerate() {
                let mask = mask.and_then(|mask| mask.get(fragment * dimension..(fragment + 1) * dimension));
                vectorised(|| {
                    masked(&mut row, local, mask);
                    *out = dot(&row, &gate);
                });
            }
        });
        Ok((CpuStorage::F32(out), Shape::from((items, fragments))))
    }

    fn bwd(
        &self,
        local: &Tensor,
        global: &Tensor,
        weight: &Tensor,
        _result: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let gradient = gradient.contiguous()?;
        let Sizes { items, fragments, dimension } = self.sizes(local.dims(), global.dims(), weight.dims())?;
        let guards = [local, global, weight, &gradient].map(Tensor::storage_and_layout);
        let slices = guards
            .iter()
            .map(|(storage, layout)| held_values(storage, layout))
            .collect::<Result<Vec<_>>>()?;
        let &[local_values, global_values, weights, upstream] = slices.as_slice() else {
            bail!("gated scores: four tensors")
        };
        let mut by_local = vec![0f32; local_values.len()];
        // Of each item the sum over its fragments of gradient, mask and value: both other gradients are products of it.
        let mut sums = vec![0f32; items * dimension];
        let inputs = local_values
            .par_chunks(fragments * dimension)
            .zip(global_values.par_chunks(dimension))
            .zip(upstream.par_chunks(fragments));
        by_local
            .par_chunks_mut(fragments * dimension)
            .zip(sums.par_chunks_mut(dimension))
            .zip(inputs)
            .enumerate()
            .for_each(|(item, ((by_local, sum), ((local, global), upstream)))| {
                let gate: Vec<f32> =
                    global.iter().zip(weights).map(|(global, weight)| global * weight).collect();
                let mut row = vec![0f32; dimension];
                let mask = self.mask(item, fragments * dimension);
                let rows = by_local.chunks_exact_mut(dimension).zip(local.chunks_exact(dimension));
                for (fragment, ((by_local, local), upstream)) in rows.zip(upstream).enumerate() {
                    let mask =
                        mask.and_then(|mask| mask.get(fragment * dimension..(fragment + 1) * dimension));
                    vectorised(|| {
                        masked(&mut row, local, mask);
                        add_scaled(sum, *upstream, &row);
                        masked(by_local, &gate, mask);
                        by_local.iter_mut().for_each(|value| *value *= upstream);
                    });
                }
            });
        let mut by_global = vec![0f32; sums.len()];
        let mut by_weight = vec![0f32; dimension];
        for ((sum, global), by_global) in sums
            .chunks_exact(dimension)
            .zip(global_values.chunks_exact(dimension))
            .zip(by_global.chunks_exact_mut(dimension))
        {
            for ((sum, (global, weight)), (by_global, by_weight)) in
                sum.iter().zip(global.iter().zip(weights)).zip(by_global.iter_mut().zip(&mut by_weight))
            {
                *by_global = sum * weight;
                *by_weight += sum * global;
            }
        }
        let device = local.device();
        Ok((
            Some(Tensor::from_vec(by_local, local.shape(), device)?),
            Some(Tensor::from_vec(by_global, global.shape(), device)?),
            Some(Tensor::from_vec(by_weight, weight.shape(), device)?),
        ))
    }
}
