//! Attention as one graph node on the CPU: each item's heads one after the other, scores and weights in the cache.
//!
//! The backward pass computes the weights again. A result is a sum over the item's own keys up to its last real one, in order: it
//! depends on no other item, on no padding and on no thread.

use candle_core::{CpuStorage, CustomOp3, Layout, Shape, Storage, Tensor, bail};
use rayon::prelude::*;

use super::AttentionBias;
use crate::error::Result;
use crate::ops::softmax::{softmax_backward, softmax_in_place};
use crate::packed::{Packed, Strided};
use crate::product::held_values;
use crate::vector::vectorised;

/// [`super::attention`] of f32 on the CPU, checked and without an empty axis.
pub(super) fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    scale: f64,
    bias: &AttentionBias,
) -> Result<Tensor> {
    let padding = bias.padding.as_ref().map(|mask| mask.flatten_all()?.to_vec1::<f32>()).transpose()?;
    let operation = Attention { scale: scale as f32, bias: bias.clone(), padding };
    let rows = |x: &Tensor| if x.stride().last() == Some(&1) { Ok(x.clone()) } else { x.contiguous() };
    Ok(rows(q)?.apply_op3(&rows(k)?, &rows(v)?, operation)?.transpose(1, 2)?)
}

/// Gives `[B, Q, H, e]`: the heads of a query side by side, as the next layer wants them.
struct Attention {
    scale: f32,
    bias: AttentionBias,
    /// `[B, T]`.
    padding: Option<Vec<f32>>,
}

/// A tensor `[B, H, rows, columns]` whose columns lie side by side.
#[derive(Clone, Copy)]
struct Heads<'a> {
    values: &'a [f32],
    strides: [usize; 3],
    rows: usize,
    columns: usize,
}

impl<'a> Heads<'a> {
    fn new(storage: &'a CpuStorage, layout: &Layout) -> candle_core::Result<Self> {
        let values = storage.as_slice::<f32>()?;
        match (layout.dims(), layout.stride(), values.get(layout.start_offset()..)) {
            (&[_, _, rows, columns], &[item, head, row, 1], Some(values)) => {
                Ok(Self { values, strides: [item, head, row], rows, columns })
            }
            (dims, strides, _) => bail!("attention: shape {dims:?} with strides {strides:?}"),
        }
    }

    /// The rows of a head from `first` on.
    fn head(&self, item: usize, head: usize, first: usize, count: usize) -> Strided<'a> {
        let [item_stride, head_stride, stride] = self.strides;
        let start = item * item_stride + head * head_stride + first * stride;
        Strided { values: self.values.get(start..).unwrap_or_default(), stride, count }
    }
}

/// Memory of one thread.
#[derive(Default)]
struct Scratch {
    packed: Packed,
    weights: Vec<f32>,
    gradient: Vec<f32>,
    turned: Vec<f32>,
}

impl Attention {
    /// Keys of an item up to its last real one, and its mask if a key before that is hidden.
    fn keys(&self, item: usize, keys: usize) -> (usize, Option<&[f32]>) {
        let mask = self.padding.as_ref().and_then(|mask| mask.get(item * keys..(item + 1) * keys));
        let Some(mask) = mask else { return (keys, None) };
        let count = mask.iter().rposition(|real| *real != 0.0).map_or(0, |last| last + 1);
        let real = mask.get(..count).unwrap_or_default();
        (count, real.contains(&0.0).then_some(real))
    }

    /// The weights `[queries, keys]` of a head.
    fn weights(&self, of: &Pairs<'_>, packed: &mut Packed, weights: &mut Vec<f32>) {
        let Pairs { q, k, first, columns, mask } = *of;
        let keys = k.count;
        packed.fill_transposed(k.values, k.stride, keys, columns);
        weights.clear();
        weights.resize(q.count * keys, 0.0);
        packed.multiply(q, weights, keys);
        vectorised(|| {
            for (query, row) in weights.chunks_exact_mut(keys).enumerate() {
                if let Some(mask) = mask {
                    hide(row, mask);
                }
                let reach = self.bias.reach(first + query, keys);
                let (before, rest) = row.split_at_mut(reach.start);
                let (seen, after) = rest.split_at_mut(reach.len());
                before.fill(0.0);
                after.fill(0.0);
                softmax_in_place(seen, self.scale);
            }
        });
    }

    /// The gradients of one item's q, k and v, `[rows, H, columns]` each; those of padding at the end stay zero.
    fn backward(
        &self,
        inputs: [Heads<'_>; 3],
        upstream: &[f32],
        item: usize,
        out: [&mut [f32]; 3],
        scratch: &mut Scratch,
    ) {
        let [q, k, v] = inputs;
        let [q_out, k_out, v_out] = out;
        let Scratch { packed, weights, gradient, turned } = scratch;
        let (keys, mask) = self.keys(item, k.rows);
        if keys == 0 {
            return;
        }
        let queries = q.rows;
        let heads = q_out.len() / (queries * q.columns);
        let width = heads * v.columns;
        for head in 0..heads {
            let (q_rows, k_rows) = (q.head(item, head, 0, queries), k.head(item, head, 0, keys));
            let v_rows = v.head(item, head, 0, keys);
            let pairs = Pairs { q: q_rows, k: k_rows, first: 0, columns: q.columns, mask };
            self.weights(&pairs, packed, weights);
            let at = |columns: usize| head * columns;
            let upstream = upstream.get(at(v.columns)..).unwrap_or_default();
            let upstream = Strided { values: upstream, stride: width, count: queries };
            // Of the values: weights^T upstream.
            transpose(weights, keys, turned);
            packed.fill(upstream.values, width, v.columns, queries);
            let rows = Strided { values: turned, stride: queries, count: keys };
            packed.multiply(rows, v_out.get_mut(at(v.columns)..).unwrap_or_default(), width);
            // Of the weights: upstream v^T; then of the scores.
            packed.fill_transposed(v_rows.values, v_rows.stride, keys, v.columns);
            gradient.clear();
            gradient.resize(queries * keys, 0.0);
            packed.multiply(upstream, gradient, keys);
            vectorised(|| {
                for (row, weights) in gradient.chunks_exact_mut(keys).zip(weights.chunks_exact(keys)) {
                    softmax_backward(row, weights);
                    row.iter_mut().for_each(|value| *value *= self.scale);
                }
            });
            let width = heads * q.columns;
            packed.fill(k_rows.values, k_rows.stride, q.columns, keys);
            let rows = Strided { values: gradient, stride: keys, count: queries };
            packed.multiply(rows, q_out.get_mut(at(q.columns)..).unwrap_or_default(), width);
            transpose(gradient, keys, turned);
            packed.fill(q_rows.values, q_rows.stride, q.columns, queries);
            let rows = Strided { values: turned, stride: queries, count: keys };
            packed.multiply(rows, k_out.get_mut(at(q.columns)..).unwrap_or_default(), width);
        }
    }
}

/// Queries, the first of them `first`, and the keys they are compared with.
#[derive(Clone, Copy)]
struct Pairs<'a> {
    q: Strided<'a>,
    k: Strided<'a>,
    first: usize,
    columns: usize,
    mask: Option<&'a [f32]>,
}

#[inline(always)]
fn hide(scores: &mut [f32], mask: &[f32]) {
    for (score, real) in scores.iter_mut().zip(mask) {
        *score = if *real == 0.0 { f32::NEG_INFINITY } else { *score };
    }
}

/// The transposed `matrix [rows, columns]` into `out`.
fn transpose(matrix: &[f32], columns: usize, out: &mut Vec<f32>) {
    let rows = matrix.len() / columns;
    out.clear();
    out.resize(matrix.len(), 0.0);
    for (row, values) in matrix.chunks_exact(columns).enumerate() {
        values.iter().zip(out.iter_mut().skip(row).step_by(rows)).for_each(|(value, slot)| *slot = *value);
    }
}

fn on_cpu(storage: &Storage) -> candle_core::Result<&CpuStorage> {
    match storage {
        Storage::Cpu(storage) => Ok(storage),
        _ => bail!("attention: expected a tensor on the CPU"),
    }
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (batch, heads, queries, columns) = q_layout.shape().dims4()?;
        let (q, k, v) = (Heads::new(q, q_layout)?, Heads::new(k, k_layout)?, Heads::new(v, v_layout)?);
        let width = heads * v.columns;
        let mut out = vec![0f32; batch * queries * width];
        // Few items are cut into pieces: no result depends on where.
        let pieces = (2 * rayon::current_num_threads()).div_ceil(batch);
        let piece = queries.div_ceil(pieces);
        let items = out.par_chunks_mut(queries * width).enumerate();
        let tasks = items.flat_map(|(item, out)| {
            out.par_chunks_mut(piece * width).enumerate().map(move |(index, out)| (item, index * piece, out))
        });
        tasks.for_each_init(Scratch::default, |scratch, (item, first, out)| {
            let (keys, mask) = self.keys(item, k.rows);
            if keys == 0 {
                return;
            }
            let count = out.len() / width;
            for head in 0..heads {
                let Scratch { packed, weights, .. } = scratch;
                let (q, k) = (q.head(item, head, first, count), k.head(item, head, 0, keys));
                self.weights(&Pairs { q, k, first, columns, mask }, packed, weights);
                let values = v.head(item, head, 0, keys);
                packed.fill(values.values, values.stride, v.columns, keys);
                let out = out.get_mut(head * v.columns..).unwrap_or_default();
                packed.multiply(Strided { values: weights, stride: keys, count }, out, width);
            }
        });
        Ok((CpuStorage::F32(out), (batch, queries, heads, v.columns).into()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        _result: &Tensor,
        gradient: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let gradient = gradient.contiguous()?;
        let (gradient_storage, gradient_layout) = gradient.storage_and_layout();
        let upstream = held_values(&gradient_storage, gradient_layout)?;
        let held = [q, k, v].map(Tensor::storage_and_layout);
        let [q_heads, k_heads, v_heads] =
            held.each_ref().map(|(storage, layout)| Heads::new(on_cpu(storage)?, layout));
        let inputs = [q_heads?, k_heads?, v_heads?];
        // `[B, rows, H, columns]`, like the result.
        let mut gradients = [q, k, v].map(|x| vec![0f32; x.elem_count()]);
        let sizes = [q, k, v].map(|x| x.elem_count() / x.dims().first().copied().unwrap_or(1).max(1));
        let [q_out, k_out, v_out] = &mut gradients;
        let outputs = q_out
            .par_chunks_mut(sizes[0])
            .zip(k_out.par_chunks_mut(sizes[1]))
            .zip(v_out.par_chunks_mut(sizes[2]));
        let size = upstream.len() / q.dim(0)?;
        outputs.zip(upstream.par_chunks(size)).enumerate().for_each_init(
            Scratch::default,
            |scratch, (item, (((q, k), v), upstream))| {
                self.backward(inputs, upstream, item, [q, k, v], scratch)
            },
        );
        let tensor = |values: Vec<f32>, like: &Tensor| {
            let (batch, heads, rows, columns) = like.dims4()?;
            Tensor::from_vec(values, (batch, rows, heads, columns), like.device())?.transpose(1, 2).map(Some)
        };
        let [q_out, k_out, v_out] = gradients;
        Ok((tensor(q_out, q)?, tensor(k_out, k)?, tensor(v_out, v)?))
    }
}
