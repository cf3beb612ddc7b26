//! Hubness: how unevenly a gallery is hit, and the score corrections that even it out.
//!
//! In every matrix here rows are queries and columns the gallery. For text-to-image retrieval pass
//! [`Matrix::transposed`] of the `[images, sentences]` scores. Sums run in `f64`.

use std::cmp::Ordering;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::{Error, Matrix, Result};

/// Cross-domain similarity local scaling: lowers the scores of items that are near to everything.
///
/// Equation (Conneau et al., *Word Translation Without Parallel Data*, ICLR 2018):
/// `csls[i, j] = 2 s[i, j] - r_i - r_j`, `r_i` the mean of the `k` best scores of row `i`, `r_j` of column `j`.
///
/// Shapes: `scores [Q, G]`, result `[Q, G]`. Their usual `k` is 10.
///
/// # Errors
/// [`Error::Setting`] where `k` is 0 or more than the rows or columns, [`Error::NotFinite`] on NaN or infinity.
///
/// # Example
/// ```
/// use aeir_retrieve::{Matrix, csls};
/// let scores = Matrix::from_rows(&[[0.9, 0.8], [0.9, 0.1]])?;
/// let corrected = csls(&scores, 2)?;
/// assert!(corrected.get(0, 1) > corrected.get(0, 0)); // column 0 was a hub
/// # Ok::<(), aeir_retrieve::Error>(())
/// ```
pub fn csls(scores: &Matrix, k: usize) -> Result<Matrix> {
    csls_with_bank(scores, scores, k)
}

/// [`csls`] with `r_j` taken from a bank of other queries: single queries can then be corrected too.
///
/// Shapes: `scores [Q, G]`, `bank_scores [B, G]` (bank queries against the same gallery), result `[Q, G]`.
///
/// # Errors
/// As [`csls`]; [`Error::Shape`] where the two galleries differ.
pub fn csls_with_bank(scores: &Matrix, bank_scores: &Matrix, k: usize) -> Result<Matrix> {
    same_gallery(scores, bank_scores)?;
    let queries = mean_top_k_rows(scores, k)?;
    let gallery = mean_top_k_columns(bank_scores, k)?;
    let values = map_rows(scores, |i, row, out| {
        let r_query = queries.get(i).copied().unwrap_or(0.0);
        for ((slot, score), r_gallery) in out.iter_mut().zip(row).zip(&gallery) {
            *slot = (2.0 * f64::from(*score) - r_query - r_gallery) as f32;
        }
    });
    Matrix::new(values, scores.rows(), scores.columns())
}

/// The mean of the `k` best scores of every row, `[Q]`.
///
/// # Errors
/// As [`csls`].
pub fn mean_top_k_rows(scores: &Matrix, k: usize) -> Result<Vec<f64>> {
    check_k(k, scores.columns())?;
    scores.check_finite("scores")?;
    Ok((0..scores.rows())
        .into_par_iter()
        .map(|i| {
            let mut best = top_k(scores.row(i).unwrap_or_default(), k);
            // Sorted, so that the sum does not depend on how the selection left them.
            best.sort_unstable_by(|a, b| by_score(*a, *b));
            best.iter().map(|(score, _)| f64::from(*score)).sum::<f64>() / k as f64
        })
        .collect())
}

/// The mean of the `k` best scores of every column, `[G]`.
///
/// # Errors
/// As [`csls`].
pub fn mean_top_k_columns(scores: &Matrix, k: usize) -> Result<Vec<f64>> {
    mean_top_k_rows(&scores.transposed(), k)
}

/// What a bank of queries says about the gallery: the denominators of the inverted softmax and which items are hubs.
///
/// Take training or target-domain sentences as the bank, never the test queries (Bogolin et al., *Cross Modal
/// Retrieval with Querybank Normalisation*, CVPR 2022).
#[derive(Clone, Debug, PartialEq)]
pub struct QueryBank {
    beta: f64,
    log_denominators: Vec<f64>,
    activation_set: Vec<bool>,
}

impl QueryBank {
    /// From the scores of the bank's queries against the gallery, `[B, G]`.
    ///
    /// `beta` is the inverse temperature (20 in the paper), `k` how many of each bank query's best items enter
    /// the activation set (1 in the paper; ties to the lower position).
    ///
    /// # Errors
    /// [`Error::Empty`] without bank queries, [`Error::Setting`] where `beta` is not positive and finite or `k`
    /// is 0 or more than the gallery, [`Error::NotFinite`] on NaN or infinity.
    pub fn new(bank_scores: &Matrix, beta: f64, k: usize) -> Result<Self> {
        check_beta(beta)?;
        check_k(k, bank_scores.columns())?;
        let log_denominators = log_denominators(bank_scores, beta)?;
        let activation_set = k_occurrence(bank_scores, k)?.into_iter().map(|count| count > 0).collect();
        Ok(Self { beta, log_denominators, activation_set })
    }

    /// Gallery items that are among the `k` best of at least one bank query, `[G]`.
    #[must_use]
    pub fn activation_set(&self) -> &[bool] {
        &self.activation_set
    }

    /// `log sum_b exp(beta s[b, j])` of every gallery item, `[G]`.
    #[must_use]
    pub fn log_denominators(&self) -> &[f64] {
        &self.log_denominators
    }

    /// `beta s[i, j] - log sum_b exp(beta s[b, j])`, `[Q, G]`: the same order as the inverted softmax in every row,
    /// without its underflow.
    ///
    /// # Errors
    /// [`Error::Shape`] where the gallery differs, [`Error::NotFinite`] on NaN or infinity.
    pub fn log_inverted_softmax(&self, scores: &Matrix) -> Result<Matrix> {
        self.check(scores)?;
        let values = map_rows(scores, |_, row, out| self.log_row(row, out, |log| log as f32));
        Matrix::new(values, scores.rows(), scores.columns())
    }

    /// `exp(beta s[i, j]) / sum_b exp(beta s[b, j])`, `[Q, G]`; the denominator holds bank queries only.
    ///
    /// # Errors
    /// As [`QueryBank::log_inverted_softmax`].
    pub fn inverted_softmax(&self, scores: &Matrix) -> Result<Matrix> {
        self.check(scores)?;
        let values = map_rows(scores, |_, row, out| self.log_row(row, out, |log| log.exp() as f32));
        Matrix::new(values, scores.rows(), scores.columns())
    }

    /// The dynamic inverted softmax: a query is corrected only where its raw best match is in the activation set.
    ///
    /// # Errors
    /// As [`QueryBank::log_inverted_softmax`].
    pub fn dynamic(&self, scores: &Matrix) -> Result<DynamicInvertedSoftmax> {
        self.dynamic_by(scores, |log| log.exp() as f32)
    }

    /// [`QueryBank::dynamic`] with logarithms in the corrected rows: the same order in every row, and no underflow
    /// at a large `beta`. Rows of the two kinds can't be compared with each other in either form.
    ///
    /// # Errors
    /// As [`QueryBank::log_inverted_softmax`].
    pub fn dynamic_log(&self, scores: &Matrix) -> Result<DynamicInvertedSoftmax> {
        self.dynamic_by(scores, |log| log as f32)
    }

    fn dynamic_by(
        &self,
        scores: &Matrix,
        finish: impl Fn(f64) -> f32 + Sync,
    ) -> Result<DynamicInvertedSoftmax> {
        self.check(scores)?;
        let activated: Vec<bool> = (scores.iter_rows())
            .map(|row| best(row).and_then(|j| self.activation_set.get(j)).copied().unwrap_or(false))
            .collect();
        let values = map_rows(scores, |i, row, out| {
            if activated.get(i).copied().unwrap_or(false) {
                self.log_row(row, out, &finish);
            } else {
                out.copy_from_slice(row);
            }
        });
        let scores = Matrix::new(values, scores.rows(), scores.columns())?;
        Ok(DynamicInvertedSoftmax { scores, activated })
    }

    fn log_row(&self, row: &[f32], out: &mut [f32], finish: impl Fn(f64) -> f32) {
        for ((slot, score), log_denominator) in out.iter_mut().zip(row).zip(&self.log_denominators) {
            *slot = finish(self.beta * f64::from(*score) - log_denominator);
        }
    }

    fn check(&self, scores: &Matrix) -> Result<()> {
        if scores.columns() != self.log_denominators.len() {
            return Err(Error::Shape {
                what: "gallery items (columns)",
                expected: self.log_denominators.len(),
                got: scores.columns(),
            });
        }
        scores.check_finite("scores")
    }
}

/// Scores after the dynamic inverted softmax, and which queries it touched.
#[derive(Clone, Debug, PartialEq)]
pub struct DynamicInvertedSoftmax {
    /// `[Q, G]`: the inverted softmax in activated rows, the raw scores in the others. Comparable within a row only.
    pub scores: Matrix,
    /// Queries whose raw best match is in the activation set, `[Q]`.
    pub activated: Vec<bool>,
}

/// Inverted softmax over a bank of queries: [`QueryBank::inverted_softmax`] in one call.
///
/// Equation (Smith et al., ICLR 2017; bank form of Bogolin et al., CVPR 2022):
/// `exp(beta s[i, j]) / sum_b exp(beta s[b, j])`.
///
/// Shapes: `scores [Q, G]`, `bank_scores [B, G]`, result `[Q, G]`.
///
/// # Errors
/// As [`QueryBank::new`] and [`QueryBank::inverted_softmax`].
pub fn inverted_softmax(scores: &Matrix, bank_scores: &Matrix, beta: f64) -> Result<Matrix> {
    QueryBank::new(bank_scores, beta, 1)?.inverted_softmax(scores)
}

/// Inverted softmax whose denominator runs over the test queries themselves.
///
/// It looks at all test queries at once: report it as a transductive figure.
///
/// # Errors
/// As [`inverted_softmax`].
pub fn classic_inverted_softmax(scores: &Matrix, beta: f64) -> Result<Matrix> {
    inverted_softmax(scores, scores, beta)
}

/// Dynamic inverted softmax with a bank of queries: [`QueryBank::dynamic`] in one call.
///
/// Source: Bogolin et al., *Cross Modal Retrieval with Querybank Normalisation*, CVPR 2022; there `beta` = 20, `k` = 1.
///
/// # Errors
/// As [`QueryBank::new`] and [`QueryBank::dynamic`].
pub fn dynamic_inverted_softmax(
    scores: &Matrix,
    bank_scores: &Matrix,
    beta: f64,
    k: usize,
) -> Result<DynamicInvertedSoftmax> {
    same_gallery(scores, bank_scores)?;
    QueryBank::new(bank_scores, beta, k)?.dynamic(scores)
}

/// How many rows have column `j` among their `k` best (ties to the lower position), `[G]`.
///
/// # Errors
/// [`Error::Setting`] where `k` is 0 or more than the columns, [`Error::NotFinite`] on NaN or infinity.
pub fn k_occurrence(scores: &Matrix, k: usize) -> Result<Vec<usize>> {
    check_k(k, scores.columns())?;
    scores.check_finite("scores")?;
    let zeros = || vec![0_usize; scores.columns()];
    let counts = (0..scores.rows())
        .into_par_iter()
        .with_min_len(64)
        .fold(zeros, |mut counts, i| {
            let row = scores.row(i).unwrap_or_default();
            for (_, j) in top_k(row, k) {
                if let Some(count) = counts.get_mut(j) {
                    *count += 1;
                }
            }
            counts
        })
        .reduce(zeros, |mut left, right| {
            left.iter_mut().zip(right).for_each(|(total, count)| *total += count);
            left
        });
    Ok(counts)
}

/// [`k_occurrence`] of the dot products of `queries [Q, D]` and `gallery [G, D]`, without holding their score matrix.
///
/// # Errors
/// As [`crate::nearest`]; [`Error::Setting`] where `k` is 0 or more than the gallery.
pub fn k_occurrence_embeddings(queries: &Matrix, gallery: &Matrix, k: usize) -> Result<Vec<usize>> {
    check_k(k, gallery.rows())?;
    let mut occurrences = vec![0_usize; gallery.rows()];
    for neighbour in crate::nearest(queries, gallery, k)?.into_iter().flatten() {
        if let Some(count) = occurrences.get_mut(neighbour.position) {
            *count += 1;
        }
    }
    Ok(occurrences)
}

/// Skewness of k-occurrences, population moments: `m3 / m2^1.5`; 0 where all are equal. Above about 1 means hubs.
///
/// Source: Radovanovic et al., *Hubs in Space*, JMLR 11, 2010.
#[must_use]
pub fn skewness(occurrences: &[usize]) -> f64 {
    let n = occurrences.len().max(1) as f64;
    let mean = occurrences.iter().map(|count| *count as f64).sum::<f64>() / n;
    let moment = |power: i32| occurrences.iter().map(|c| (*c as f64 - mean).powi(power)).sum::<f64>() / n;
    let variance = moment(2);
    if variance > 0.0 { moment(3) / variance.powf(1.5) } else { 0.0 }
}

/// [`skewness`] times `sqrt(n (n - 1)) / (n - 2)`, the usual correction for a small gallery; NaN below 3 items.
#[must_use]
pub fn skewness_adjusted(occurrences: &[usize]) -> f64 {
    let n = occurrences.len() as f64;
    if n < 3.0 {
        return f64::NAN;
    }
    skewness(occurrences) * (n * (n - 1.0)).sqrt() / (n - 2.0)
}

/// How many gallery items are in nobody's `k` best: they can't be found.
#[must_use]
pub fn anti_hubs(occurrences: &[usize]) -> usize {
    occurrences.iter().filter(|count| **count == 0).count()
}

/// Hubness of a gallery under a set of queries, in one struct.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hubness {
    /// Neighbours counted.
    pub k: usize,
    /// Queries.
    pub queries: usize,
    /// Gallery items.
    pub gallery: usize,
    /// [`skewness`].
    pub skewness: f64,
    /// [`skewness_adjusted`]; absent below 3 items.
    pub skewness_adjusted: Option<f64>,
    /// [`anti_hubs`].
    pub anti_hubs: usize,
    /// Items that occur more than `2 k` times.
    pub hubs_above_2k: usize,
    /// The most frequent item's occurrences.
    pub max_occurrence: usize,
}

impl Hubness {
    /// Of a score matrix `[Q, G]`.
    ///
    /// # Errors
    /// As [`k_occurrence`].
    pub fn measure(scores: &Matrix, k: usize) -> Result<Self> {
        Ok(Self::of(&k_occurrence(scores, k)?, scores.rows(), k))
    }

    /// Of two sets of embeddings, `queries [Q, D]` and `gallery [G, D]`, without holding their score matrix.
    ///
    /// # Errors
    /// As [`crate::nearest`]; [`Error::Setting`] where `k` is more than the gallery.
    pub fn measure_embeddings(queries: &Matrix, gallery: &Matrix, k: usize) -> Result<Self> {
        Ok(Self::of(&k_occurrence_embeddings(queries, gallery, k)?, queries.rows(), k))
    }

    /// Of k-occurrences that were counted already, over `queries` queries.
    #[must_use]
    pub fn of(occurrences: &[usize], queries: usize, k: usize) -> Self {
        Self {
            k,
            queries,
            gallery: occurrences.len(),
            skewness: skewness(occurrences),
            skewness_adjusted: Some(skewness_adjusted(occurrences)).filter(|value| value.is_finite()),
            anti_hubs: anti_hubs(occurrences),
            hubs_above_2k: occurrences.iter().filter(|count| **count > 2 * k).count(),
            max_occurrence: occurrences.iter().copied().max().unwrap_or(0),
        }
    }
}

/// `log sum_b exp(beta s[b, j])` of every column, shifted by its maximum.
fn log_denominators(bank_scores: &Matrix, beta: f64) -> Result<Vec<f64>> {
    if bank_scores.rows() == 0 {
        return Err(Error::Empty { what: "query bank" });
    }
    bank_scores.check_finite("bank scores")?;
    let mut highest = vec![f64::NEG_INFINITY; bank_scores.columns()];
    for row in bank_scores.iter_rows() {
        highest.iter_mut().zip(row).for_each(|(high, score)| *high = high.max(beta * f64::from(*score)));
    }
    let mut sums = vec![0.0_f64; bank_scores.columns()];
    for row in bank_scores.iter_rows() {
        for ((sum, score), high) in sums.iter_mut().zip(row).zip(&highest) {
            *sum += (beta * f64::from(*score) - high).exp();
        }
    }
    Ok(sums.into_iter().zip(highest).map(|(sum, high)| high + sum.ln()).collect())
}

/// Best first; equal scores by lower position.
pub(crate) fn by_score(left: (f32, usize), right: (f32, usize)) -> Ordering {
    // Adding 0 turns -0 into +0: the two are equal scores.
    (right.0 + 0.0).total_cmp(&(left.0 + 0.0)).then(left.1.cmp(&right.1))
}

/// The `k` best scores of a row and where they stand, in no order; ties to the lower position.
fn top_k(row: &[f32], k: usize) -> Vec<(f32, usize)> {
    const GLANCE: usize = 16;
    let capacity = k.saturating_mul(2).saturating_add(4 * GLANCE);
    let mut kept: Vec<(f32, usize)> = Vec::with_capacity(capacity.min(row.len()) + GLANCE);
    let cut = |kept: &mut Vec<(f32, usize)>| {
        if k < kept.len() {
            kept.select_nth_unstable_by(k, |a, b| by_score(*a, *b));
            kept.truncate(k);
        }
    };
    // Later positions lose ties: once k are held, only what is strictly better than all left out can enter.
    let mut threshold = f32::NEG_INFINITY;
    for (glance, chunk) in row.chunks(GLANCE).enumerate() {
        if !chunk.iter().fold(false, |any, score| any | (*score > threshold)) {
            continue;
        }
        let places = chunk.iter().copied().zip(glance * GLANCE..);
        kept.extend(places.filter(|(score, _)| *score > threshold));
        if kept.len() >= capacity {
            cut(&mut kept);
            threshold = kept.iter().fold(f32::INFINITY, |low, (score, _)| low.min(*score));
        }
    }
    cut(&mut kept);
    kept
}

fn best(row: &[f32]) -> Option<usize> {
    row.iter().copied().zip(0..).min_by(|a, b| by_score(*a, *b)).map(|(_, position)| position)
}

fn map_rows(scores: &Matrix, fill: impl Fn(usize, &[f32], &mut [f32]) + Sync) -> Vec<f32> {
    let mut values = vec![0.0_f32; scores.values().len()];
    if scores.columns() > 0 {
        let rows = values.par_chunks_mut(scores.columns()).zip(scores.values().par_chunks(scores.columns()));
        rows.enumerate().for_each(|(i, (out, row))| fill(i, row, out));
    }
    values
}

fn same_gallery(scores: &Matrix, bank_scores: &Matrix) -> Result<()> {
    if scores.columns() != bank_scores.columns() {
        return Err(Error::Shape {
            what: "gallery items (columns)",
            expected: scores.columns(),
            got: bank_scores.columns(),
        });
    }
    Ok(())
}

fn check_k(k: usize, available: usize) -> Result<()> {
    if k == 0 || k > available {
        return Err(Error::Setting { name: "k", expected: format!("1 to {available}"), got: k.to_string() });
    }
    Ok(())
}

fn check_beta(beta: f64) -> Result<()> {
    if beta > 0.0 && beta.is_finite() {
        return Ok(());
    }
    Err(Error::Setting { name: "beta", expected: "a positive number".into(), got: beta.to_string() })
}
