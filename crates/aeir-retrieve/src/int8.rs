//! Dot products of 8-bit codes.
//!
//! Items are unsigned codes around 128, queries signed ones: `sum (c - 128) q = sum c q - 128 sum q`, so that the instructions that
//! multiply unsigned by signed bytes serve, and the correction is one number a query. All sums are integers: every kernel gives the
//! same scores.

mod rows;
#[cfg(target_arch = "x86_64")]
mod x86;

pub(crate) use rows::{Coded, scores_of, sum_of_codes};

use crate::storage::{ZERO_CODE, code_stride};

/// The codes of items, rows of `stride` bytes, and the scale of each.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Codes<'a> {
    pub(crate) codes: &'a [u8],
    pub(crate) scales: &'a [f32],
    pub(crate) stride: usize,
}

impl Codes<'_> {
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

    /// Each query's codes, scale and offset.
    fn each(&self) -> impl Iterator<Item = (&[i8], f32, i32)> {
        let numbers = self.scales.iter().zip(&self.offsets);
        self.codes
            .chunks_exact(self.stride.max(1))
            .zip(numbers)
            .map(|(codes, (scale, offset))| (codes, *scale, *offset))
    }
}

/// The scores of all queries with some items, `[queries, items]`.
pub(crate) fn scores(queries: &QueryCodes, items: Codes<'_>, out: &mut [f32]) {
    let fits = out.len() == queries.scales.len() * items.scales.len()
        && items.codes.len() == items.scales.len() * items.stride
        && queries.stride == items.stride;
    if !fits {
        debug_assert!(false, "codes of the wrong size");
        return out.fill(f32::NAN);
    }
    #[cfg(target_arch = "x86_64")]
    if x86::scores(queries, items, out) {
        return;
    }
    portable_scores(queries, items, out);
}

fn portable_scores(queries: &QueryCodes, items: Codes<'_>, out: &mut [f32]) {
    for ((query, scale, offset), row) in queries.each().zip(out.chunks_mut(items.scales.len().max(1))) {
        let codes = items.codes.chunks_exact(items.stride).zip(items.scales);
        for (slot, (item, item_scale)) in row.iter_mut().zip(codes) {
            let dot: i32 =
                item.iter().zip(query).map(|(item, query)| i32::from(*item) * i32::from(*query)).sum();
            *slot = (dot - offset) as f32 * (scale * item_scale);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::quantised;
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::{Rng, SeedableRng};

    fn numbers(count: usize, seed: u64) -> Vec<f32> {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        (0..count).map(|_| random.next_u32() as f32 / u32::MAX as f32 - 0.5).collect()
    }

    #[test]
    fn all_kernels_give_the_same_scores() {
        for (rows, queries, dimension) in
            [(1, 1, 1), (7, 2, 64), (33, 9, 65), (64, 16, 128), (100, 21, 300), (31, 8, 512), (5, 3, 1000)]
        {
            let (values, asked) = (numbers(rows * dimension, 1), numbers(queries * dimension, 2));
            let (codes, scales) = quantised(&values, dimension);
            let items = Codes { codes: &codes, scales: &scales, stride: code_stride(dimension) };
            let asked_codes = QueryCodes::of(&asked, dimension);
            let mut expected = vec![0.0; rows * queries];
            portable_scores(&asked_codes, items, &mut expected);
            let mut found = vec![f32::NAN; rows * queries];
            scores(&asked_codes, items, &mut found);
            assert_eq!(found, expected, "{rows} x {queries} x {dimension}");
            #[cfg(target_arch = "x86_64")]
            for kernel in x86::KERNELS {
                let mut found = vec![f32::NAN; rows * queries];
                if kernel(&asked_codes, items, &mut found) {
                    assert_eq!(found, expected, "{rows} x {queries} x {dimension}");
                }
            }
            for (query, row) in asked.chunks(dimension).zip(expected.chunks(rows)) {
                for (item, score) in values.chunks(dimension).zip(row) {
                    let dot: f32 = item.iter().zip(query).map(|(a, b)| a * b).sum();
                    assert!((dot - score).abs() < 0.01 * (dimension as f32).sqrt(), "{dot} {score}");
                }
            }
        }
    }

    #[test]
    fn extreme_codes_do_not_overflow() {
        // All magnitudes at their largest, all signs alike: the largest sums there are.
        let dimension = 65_536;
        let (values, asked) = (vec![-1.0; dimension], vec![1.0; dimension]);
        let (codes, scales) = quantised(&values, dimension);
        let items = Codes { codes: &codes, scales: &scales, stride: code_stride(dimension) };
        let mut found = [0.0];
        scores(&QueryCodes::of(&asked, dimension), items, &mut found);
        assert!((found[0] + dimension as f32).abs() < 1.0, "{found:?}");
    }
}
