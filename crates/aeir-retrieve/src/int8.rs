//! Dot products of 8-bit codes.
//!
//! Items are unsigned codes around 128, queries signed ones: `sum (c - 128) q = sum c q - 128 sum q`, so that the instructions that
//! multiply unsigned by signed bytes serve, and the correction is one number a query. All sums are integers: every kernel gives the
//! same scores.

use crate::storage::{ZERO_CODE, code_stride};

/// The codes of items, rows of `stride` bytes, and the scale of each.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Codes<'a> {
    pub(crate) codes: &'a [u8],
    pub(crate) scales: &'a [f32],
    pub(crate) stride: usize,
}

impl<'a> Codes<'a> {
    /// Some rows of them; none past the last.
    pub(crate) fn rows(&self, first: usize, last: usize) -> Self {
        Self {
            codes: self.codes.get(first * self.stride..last * self.stride).unwrap_or_default(),
            scales: self.scales.get(first..last).unwrap_or_default(),
            stride: self.stride,
        }
    }
}

/// The codes of queries.
#[derive(Debug)]
pub(crate) struct QueryCodes {
    codes: Vec<i8>,
    stride: usize,
    scales: Vec<f32>,
    /// 128 times the sum of each query's codes.
    offsets: Vec<i32>,
}

impl QueryCodes {
    /// Of finite queries `[Q, dimension]`: `code = round(value / scale)`, `scale = largest magnitude / 127`.
    pub(crate) fn of(queries: &[f32], dimension: usize) -> Self {
        let stride = code_stride(dimension);
        let count = queries.len().checked_div(dimension).unwrap_or(0);
        let mut made =
            Self { codes: vec![0; count * stride], stride, scales: Vec::new(), offsets: Vec::new() };
        for (query, codes) in
            queries.chunks_exact(dimension.max(1)).zip(made.codes.chunks_exact_mut(stride.max(1)))
        {
            let largest = query.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
            let scale = largest / 127.0;
            let usable = scale >= f32::MIN_POSITIVE;
            if usable {
                codes.iter_mut().zip(query).for_each(|(code, value)| *code = (value / scale).round() as i8);
            }
            made.scales.push(if usable { scale } else { 0.0 });
            made.offsets.push(i32::from(ZERO_CODE) * codes.iter().map(|code| i32::from(*code)).sum::<i32>());
        }
        made
    }
}

/// The scores of all queries with some items, `[queries, items]`.
pub(crate) fn scores(queries: &QueryCodes, items: Codes<'_>, out: &mut [f32]) {
    let columns = items.scales.len();
    let rows = queries.codes.chunks_exact(queries.stride).zip(queries.scales.iter().zip(&queries.offsets));
    for ((query, (scale, offset)), row) in rows.zip(out.chunks_mut(columns.max(1))) {
        let codes = items.codes.chunks_exact(items.stride).zip(items.scales);
        for (slot, (item, item_scale)) in row.iter_mut().zip(codes) {
            *slot = (portable_dot(item, query) - offset) as f32 * (scale * item_scale);
        }
    }
}

fn portable_dot(item: &[u8], query: &[i8]) -> i32 {
    item.iter().zip(query).map(|(item, query)| i32::from(*item) * i32::from(*query)).sum()
}
