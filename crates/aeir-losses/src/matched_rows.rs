//! Sums of dot products of chosen rows, as one operation on the CPU.
//!
//! Composed of candle's operations every chosen item would be copied, and its copy's gradient be added up again, on one thread.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Storage, Tensor, bail};

use crate::rehearsal::{Product, is_fused};
use rayon::prelude::*;

/// Numbers that are summed side by side, in an order that is the same on every machine.
const LANES: usize = 16;

/// The best target fragments of the items that each target item is compared with.
pub(crate) struct MatchedRows {
    /// For each target item and each of its source items, which one it is and, of each of its fragments, the best target fragment.
    found: Vec<Vec<(usize, Vec<usize>)>>,
    /// Source items.
    sources: usize,
    /// Fragments of a target item and of a source item.
    fragments: [usize; 2],
    dimension: usize,
}

impl MatchedRows {
    /// Whether the operation can take these.
    pub(crate) fn takes(target: &Tensor, source: &Tensor) -> bool {
        is_fused(&[target, source])
    }

    /// Looks for the best real fragment of `target [T, F1, D]` for each fragment of the items of `source [S, F2, D]` that `nearest`
    /// `[T, K]` names, by dot product; the first of equal ones. An item without real fragments has its padding to choose from.
    pub(crate) fn find(
        target: &Tensor,
        target_mask: Option<&Tensor>,
        source: &Tensor,
        nearest: &Tensor,
    ) -> Result<Self> {
        let (target, source) = (target.detach(), source.detach());
        let (_, target_fragments, dimension) = target.dims3()?;
        let (sources, source_fragments, _) = source.dims3()?;
        let masks = target_mask.map(Tensor::to_vec2::<u8>).transpose()?;
        let of_item = |(item, nearest): (usize, Vec<u32>)| {
            let mask = masks.as_ref().and_then(|masks| masks.get(item)).map(Vec::as_slice);
            let fragments = target.get(item)?.t()?;
            let of_source = |source_item: u32| {
                let source_item = source_item as usize;
                let cosines = source.get(source_item)?.product(&fragments)?.to_vec2::<f32>()?;
                let best = cosines.iter().map(|cosines| best_of(cosines, mask)).collect();
                Ok((source_item, best))
            };
            nearest.into_iter().map(of_source).collect::<Result<Vec<_>>>()
        };
        let nearest = nearest.to_vec2::<u32>()?;
        let found = nearest.into_par_iter().enumerate().map(of_item).collect::<Result<Vec<_>>>()?;
        Ok(Self { found, sources, fragments: [target_fragments, source_fragments], dimension })
    }

    /// `[T, K]`: of each target item and each of its source items, the products of the source's fragments and their best.
    pub(crate) fn sums(self, target: &Tensor, source: &Tensor) -> Result<Tensor> {
        target.contiguous()?.apply_op2(&source.contiguous()?, self)
    }

    fn fits(&self, target: &[usize], source: &[usize]) -> Result<()> {
        let [of_target, of_source] = self.fragments;
        if target != [self.found.len(), of_target, self.dimension]
            || source != [self.sources, of_source, self.dimension]
        {
            bail!("matched rows: {target:?} and {source:?}");
        }
        Ok(())
    }

    fn target_rows<'a>(&self, values: &'a [f32], item: usize) -> &'a [f32] {
        let size = self.fragments[0] * self.dimension;
        &values[item * size..][..size]
    }

    fn source_rows<'a>(&self, values: &'a [f32], item: usize) -> &'a [f32] {
        let size = self.fragments[1] * self.dimension;
        &values[item * size..][..size]
    }

    fn row<'a>(&self, rows: &'a [f32], index: usize) -> &'a [f32] {
        &rows[index * self.dimension..][..self.dimension]
    }

    /// Gradient of the target from `upstream [T, K]`.
    fn by_target(&self, source: &[f32], upstream: &[f32]) -> Vec<f32> {
        let size = self.fragments[0] * self.dimension;
        let mut out = vec![0f32; self.found.len() * size];
        let count = upstream.len() / self.found.len().max(1);
        let items = out.par_chunks_mut(size).zip(&self.found).zip(upstream.par_chunks(count));
        items.for_each(|((out, found), upstream)| {
            for ((source_item, best), upstream) in found.iter().zip(upstream) {
                let rows = self.source_rows(source, *source_item).chunks_exact(self.dimension);
                for (best, row) in best.iter().zip(rows) {
                    add_scaled(&mut out[best * self.dimension..][..self.dimension], *upstream, row);
                }
            }
        });
        out
    }

    /// Gradient of the source from `upstream [T, K]`: of each item the sum over the target items in order.
    fn by_source(&self, target: &[f32], upstream: &[f32]) -> Vec<f32> {
        let size = self.fragments[1] * self.dimension;
        let mut out = vec![0f32; self.sources * size];
        let count = upstream.len() / self.found.len().max(1);
        out.par_chunks_mut(size).enumerate().for_each(|(source_item, out)| {
            for (item, (found, upstream)) in self.found.iter().zip(upstream.chunks_exact(count)).enumerate() {
                let own = found.iter().zip(upstream).filter(|((of, _), _)| *of == source_item);
                for ((_, best), upstream) in own {
                    let rows = self.target_rows(target, item);
                    for (best, out) in best.iter().zip(out.chunks_exact_mut(self.dimension)) {
                        add_scaled(out, *upstream, self.row(rows, *best));
                    }
                }
            }
        });
        out
    }
}

/// The place of the largest value whose mask is not 0; the first of all where there is none.
fn best_of(cosines: &[f32], mask: Option<&[u8]>) -> usize {
    let mut best = (0, f32::NEG_INFINITY);
    for (index, value) in cosines.iter().enumerate() {
        let counts = mask.is_none_or(|mask| mask.get(index).is_some_and(|mask| *mask != 0));
        if counts && *value > best.1 {
            best = (index, *value);
        }
    }
    best.0
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    let mut sums = [0f32; LANES];
    for (a, b) in a.iter().zip(b) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}

fn add_scaled(out: &mut [f32], factor: f32, row: &[f32]) {
    out.iter_mut().zip(row).for_each(|(out, value)| *out += factor * value);
}

impl CustomOp2 for MatchedRows {
    fn name(&self) -> &'static str {
        "matched-rows"
    }

    fn cpu_fwd(
        &self,
        target: &CpuStorage,
        target_layout: &Layout,
        source: &CpuStorage,
        source_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.fits(target_layout.dims(), source_layout.dims())?;
        let (target, source) = (values(target, target_layout)?, values(source, source_layout)?);
        let of_pair = |target_rows: &[f32], (source_item, best): &(usize, Vec<usize>)| {
            let rows = self.source_rows(source, *source_item).chunks_exact(self.dimension);
            best.iter().zip(rows).map(|(best, row)| dot(self.row(target_rows, *best), row)).sum::<f32>()
        };
        let of_item = |(item, found): (usize, &Vec<(usize, Vec<usize>)>)| {
            let rows = self.target_rows(target, item);
            found.iter().map(|pair| of_pair(rows, pair)).collect::<Vec<f32>>()
        };
        let sums: Vec<Vec<f32>> = self.found.par_iter().enumerate().map(of_item).collect();
        let shape = (sums.len(), sums.first().map_or(0, Vec::len));
        Ok((CpuStorage::F32(sums.concat()), shape.into()))
    }

    fn bwd(
        &self,
        target: &Tensor,
        source: &Tensor,
        _result: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        self.fits(target.dims(), source.dims())?;
        let gradient = gradient.contiguous()?;
        let guards = [target, source, &gradient].map(Tensor::storage_and_layout);
        let slices = guards
            .iter()
            .map(|(storage, layout)| match &**storage {
                Storage::Cpu(storage) => values(storage, layout),
                _ => bail!("matched rows: expected tensors on the CPU"),
            })
            .collect::<Result<Vec<_>>>()?;
        let &[target_values, source_values, upstream] = slices.as_slice() else {
            bail!("matched rows: three tensors")
        };
        let tensor = |values, like: &Tensor| Tensor::from_vec(values, like.shape(), like.device());
        Ok((
            Some(tensor(self.by_target(source_values, upstream), target)?),
            Some(tensor(self.by_source(target_values, upstream), source)?),
        ))
    }
}

/// The numbers of a contiguous f32 tensor.
fn values<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let all = storage.as_slice::<f32>()?;
    match layout.contiguous_offsets().and_then(|(start, end)| all.get(start..end)) {
        Some(values) => Ok(values),
        None => bail!("matched rows: expected contiguous tensors"),
    }
}
