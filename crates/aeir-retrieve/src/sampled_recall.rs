//! Recall of a few labelled queries against a whole gallery, with intervals that hold for few.

use serde::{Deserialize, Serialize};

use crate::{Error, Interval, Matrix, Result};

/// A recall in per cent, and where that of all queries may lie.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct SampledRecall {
    /// Of the queries that were asked.
    pub value: f64,
    /// Wilson's interval.
    pub interval: Interval,
}

/// The recalls of one direction.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct SampledRecalls {
    /// Recall@1.
    pub r1: SampledRecall,
    /// Recall@5.
    pub r5: SampledRecall,
    /// Recall@10.
    pub r10: SampledRecall,
    /// Median rank of the best right answer, 1 the first.
    pub medr: f64,
    /// Queries asked.
    pub queries: usize,
}

/// The rank of each query's best right answer, 1 the first; wrong answers with an equal score count first.
///
/// Shapes: `scores [Q, G]`; `right` has the gallery's columns that are right for each of the Q queries.
///
/// # Errors
/// [`Error::Shape`] where there are not as many queries in both, or a column is not in the gallery; [`Error::Empty`] for a query without a
/// right answer; [`Error::NotFinite`].
///
/// # Example
/// ```
/// use aeir_retrieve::{Matrix, ranks_in_gallery};
/// let scores = Matrix::from_rows(&[[0.9, 0.1, 0.3], [0.5, 0.5, 0.2]])?;
/// assert_eq!(ranks_in_gallery(&scores, &[vec![2], vec![0]])?, [2, 2]);
/// # Ok::<(), aeir_retrieve::Error>(())
/// ```
pub fn ranks_in_gallery(scores: &Matrix, right: &[Vec<usize>]) -> Result<Vec<usize>> {
    if scores.rows() != right.len() {
        return Err(Error::Shape {
            what: "queries with right answers",
            expected: scores.rows(),
            got: right.len(),
        });
    }
    scores.check_finite("scores of the queries")?;
    scores.iter_rows().zip(right).map(|(row, right)| rank(row, right)).collect()
}

fn rank(row: &[f32], right: &[usize]) -> Result<usize> {
    let mut best = f32::NEG_INFINITY;
    for column in right {
        let score = row.get(*column).ok_or(Error::Shape {
            what: "column of a right answer, in a gallery of",
            expected: row.len(),
            got: *column,
        })?;
        best = best.max(*score);
    }
    if right.is_empty() {
        return Err(Error::Empty { what: "list of right answers of a query" });
    }
    let before =
        row.iter().enumerate().filter(|(column, score)| **score >= best && !right.contains(column)).count();
    Ok(before + 1)
}

/// Recall at 1, 5 and 10 of queries that were drawn at random, with 95 % intervals.
///
/// Equation: with `h` of `n` queries answered, `p = h / n` and `z = 1.96`, Wilson's interval is
/// `(p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)` (Wilson, *JASA* 22, 1927). Unlike `p +- z sqrt(p (1 - p) / n)` and the bootstrap
/// it is no point where nothing or everything was answered. It is of independent queries: where an image brings several
/// sentences, `independent` is the number of images, which `n` is taken for.
///
/// # Errors
/// [`Error::Empty`] without queries.
///
/// # Example
/// ```
/// let recalls = aeir_retrieve::sampled_recalls(&[1, 3, 12, 40], 4)?;
/// assert_eq!((recalls.r1.value, recalls.r5.value, recalls.r10.value), (25.0, 50.0, 50.0));
/// assert!(recalls.r1.interval.low > 4.0 && recalls.r1.interval.high < 70.0);
/// # Ok::<(), aeir_retrieve::Error>(())
/// ```
pub fn sampled_recalls(ranks: &[usize], independent: usize) -> Result<SampledRecalls> {
    if ranks.is_empty() || independent == 0 {
        return Err(Error::Empty { what: "set of labelled queries" });
    }
    let recall = |k: usize| {
        let share = ranks.iter().filter(|rank| **rank <= k).count() as f64 / ranks.len() as f64;
        SampledRecall { value: 100.0 * share, interval: wilson(share, independent) }
    };
    let mut sorted = ranks.to_vec();
    sorted.sort_unstable();
    let at = |place: usize| sorted.get(place).copied().unwrap_or(0) as f64;
    let medr = 0.5 * (at((sorted.len() - 1) / 2) + at(sorted.len() / 2));
    Ok(SampledRecalls { r1: recall(1), r5: recall(5), r10: recall(10), medr, queries: ranks.len() })
}

/// Two-sided 95 % of the normal distribution.
const Z: f64 = 1.959_963_984_540_054;

/// Wilson's interval of a share among `n`, in per cent.
fn wilson(share: f64, n: usize) -> Interval {
    let n = n as f64;
    let square = Z * Z / n;
    let middle = share + 0.5 * square;
    let half = Z * (share * (1.0 - share) / n + 0.25 * square / n).sqrt();
    let end = |value: f64| (100.0 * value / (1.0 + square)).clamp(0.0, 100.0);
    Interval { low: end(middle - half), high: end(middle + half) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_those_of_the_tables() {
        // Newcombe, Statistics in Medicine 17 (1998), table I: 81/263, 15/148, 0/20, 1/29.
        for (hits, n, low, high) in
            [(81, 263, 25.53, 36.62), (15, 148, 6.24, 16.05), (0, 20, 0.0, 16.11), (1, 29, 0.61, 17.18)]
        {
            let Interval { low: found_low, high: found_high } = wilson(f64::from(hits) / n as f64, n);
            assert!((found_low - low).abs() < 0.01 && (found_high - high).abs() < 0.01, "{hits}/{n}");
        }
        assert_eq!(wilson(1.0, 20).high, 100.0);
    }
}
