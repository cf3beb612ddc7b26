//! Scores of one vector with single rows, here and there in memory: what a walk over a graph asks for.
//!
//! Both sides are codes around 128. Sums are integers: every kernel gives the same scores, and those of the other kernels.

#[cfg(target_arch = "x86_64")]
mod x86;

use super::Codes;
use crate::storage::ZERO_CODE;

/// A vector that rows are scored with, in codes as theirs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Coded<'a> {
    pub(crate) codes: &'a [u8],
    pub(crate) scale: f32,
    /// [`sum_of_codes`].
    pub(crate) sum: i32,
}

impl<'a> Codes<'a> {
    /// The codes of one row; none past the last.
    fn row(&self, row: u32) -> &'a [u8] {
        let start = row as usize * self.stride;
        self.codes.get(start..start + self.stride).unwrap_or_default()
    }

    fn scale(&self, row: u32) -> f32 {
        self.scales.get(row as usize).copied().unwrap_or(0.0)
    }

    /// Whether two rows have the same codes and scale: everything scores alike with both.
    pub(crate) fn are_same(&self, row: u32, other: u32) -> bool {
        self.scale(row) == self.scale(other) && self.row(row) == self.row(other)
    }

    /// A row as what others are scored with; `sum` is the sum of its codes.
    pub(crate) fn coded(&self, row: u32, sum: i32) -> Coded<'a> {
        Coded { codes: self.row(row), scale: self.scale(row), sum }
    }
}

/// The sum of a vector's codes, each less the code of 0.
pub(crate) fn sum_of_codes(codes: &[u8]) -> i32 {
    codes.iter().map(|code| i32::from(*code) - i32::from(ZERO_CODE)).sum()
}

/// The scores of a vector with some rows, in `out`. A row that is not there scores below all others.
pub(crate) fn scores_of(one: Coded<'_>, items: Codes<'_>, rows: &[u32], out: &mut Vec<f32>) {
    out.clear();
    if one.codes.len() != items.stride {
        debug_assert!(false, "codes of the wrong size");
        return out.resize(rows.len(), f32::NEG_INFINITY);
    }
    #[cfg(target_arch = "x86_64")]
    if x86::scores_of(one, items, rows, out) {
        return;
    }
    portable_scores_of(one, items, rows, out);
}

fn portable_scores_of(one: Coded<'_>, items: Codes<'_>, rows: &[u32], out: &mut Vec<f32>) {
    let zero = i32::from(ZERO_CODE);
    out.extend(rows.iter().map(|row| {
        let codes = items.row(*row);
        let products = codes.iter().zip(one.codes);
        let dot: i32 = products.map(|(a, b)| (i32::from(*a) - zero) * (i32::from(*b) - zero)).sum();
        if codes.is_empty() { f32::NEG_INFINITY } else { dot as f32 * (one.scale * items.scale(*row)) }
    }));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::int8::{QueryCodes, scores};
    use crate::sampling::stream;
    use crate::storage::{code_stride, quantised};
    use rand_chacha::rand_core::Rng;

    fn numbers(count: usize, seed: u64) -> Vec<f32> {
        let mut random = stream(seed, 0);
        (0..count).map(|_| random.next_u32() as f32 / u32::MAX as f32 - 0.5).collect()
    }

    #[test]
    fn single_rows_score_as_all_do_with_every_kernel() {
        for (rows, dimension) in [(1, 1), (6, 64), (33, 65), (50, 300), (31, 512), (9, 1000)] {
            let (codes, scales) = quantised(&numbers(rows * dimension, 1), dimension);
            let query = numbers(dimension, 2);
            let (asked, asked_scales) = quantised(&query, dimension);
            let items = Codes { codes: &codes, scales: &scales, stride: code_stride(dimension) };
            let one = Coded { codes: &asked, scale: asked_scales[0], sum: sum_of_codes(&asked) };
            let wanted: Vec<u32> = (0..rows as u32).rev().chain([rows as u32, 0, u32::MAX]).collect();
            let mut expected = vec![0.0; rows];
            scores(&QueryCodes::of(&query, dimension), items, &mut expected);
            expected.reverse();
            expected.extend([f32::NEG_INFINITY, expected[rows - 1], f32::NEG_INFINITY]);
            let mut found = Vec::new();
            portable_scores_of(one, items, &wanted, &mut found);
            assert_eq!(found, expected, "{rows} x {dimension}");
            scores_of(one, items, &wanted, &mut found);
            assert_eq!(found, expected, "{rows} x {dimension}");
            #[cfg(target_arch = "x86_64")]
            for kernel in x86::KERNELS {
                found.clear();
                if kernel(one, items, &wanted, &mut found) {
                    assert_eq!(found, expected, "{rows} x {dimension}");
                }
            }
        }
    }

    #[test]
    fn extreme_codes_do_not_overflow() {
        let dimension = 65_536;
        let (codes, scales) = quantised(&vec![-1.0; dimension], dimension);
        let (asked, asked_scales) = quantised(&vec![1.0; dimension], dimension);
        let items = Codes { codes: &codes, scales: &scales, stride: code_stride(dimension) };
        let one = Coded { codes: &asked, scale: asked_scales[0], sum: sum_of_codes(&asked) };
        let mut found = Vec::new();
        scores_of(one, items, &[0], &mut found);
        assert!((found[0] + dimension as f32).abs() < 1.0, "{found:?}");
    }
}
