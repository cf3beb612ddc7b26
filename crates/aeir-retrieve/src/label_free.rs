//! How well two sets fit together that nobody has aligned: figures for choosing a model without labels.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::{Error, Matrix, Result, csls};

/// How the label-free figures are computed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LabelFreeOptions {
    /// Neighbours in the CSLS means; 10 by default, fewer where a set is smaller.
    pub neighbours: usize,
    /// Divides the scores before the softmax of the retrieval posterior; 0.05 by default.
    pub temperature: f64,
}

impl Default for LabelFreeOptions {
    fn default() -> Self {
        Self { neighbours: 10, temperature: 0.05 }
    }
}

/// What the scores between two unaligned sets tell, each figure a mean over both directions.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LabelFree {
    /// Mean CSLS score of the pairs that are each other's nearest; 0 where no pair is. Higher is better.
    pub mutual_similarity: f64,
    /// Share of items that come back to themselves: the nearest of their nearest is they. 0 to 1, higher is better.
    pub cycle_consistency: f64,
    /// Mean entropy of a query's posterior over the gallery, as a share of the largest: 0 sure, 1 clueless.
    pub posterior_entropy: f64,
    /// Entropy of the mean posterior, as a share of the largest: 0 where all queries find the same item, 1 where all
    /// items are found alike.
    pub posterior_diversity: f64,
}

impl LabelFree {
    /// Diversity less entropy: the mutual information of query and answer, as a share of the largest there can be.
    #[must_use]
    pub fn information(&self) -> f64 {
        self.posterior_diversity - self.posterior_entropy
    }
}

/// Figures of how well rows and columns fit together, without knowing which belong to each other.
///
/// Equations: mutual neighbours and cycles under [`csls`]; the posterior of a query `i` is
/// `p_i = softmax(s_i / temperature)` over the gallery of G items, the entropy `mean_i H(p_i) / ln G`, the diversity
/// `H(mean_i p_i) / ln G`. Their difference is the criterion of Shi and Sha, *Information-theoretical learning of
/// discriminative clusters for unsupervised domain adaptation*, ICML 2012, with the gallery's items as the classes.
///
/// Shapes: `scores [N, M]`.
///
/// Numerical notes: sums run in `f64`, in one order whatever the number of threads.
///
/// # Errors
/// [`Error::Empty`] where a set is empty, [`Error::Setting`] for a temperature that is not above 0 or no neighbours,
/// [`Error::NotFinite`] on NaN or infinity.
///
/// # Example
/// ```
/// use aeir_retrieve::{LabelFreeOptions, Matrix, label_free};
/// let fitting = Matrix::from_rows(&[[0.9, 0.1], [0.2, 0.8]])?;
/// let found = label_free(&fitting, &LabelFreeOptions { neighbours: 1, ..Default::default() })?;
/// assert_eq!(found.cycle_consistency, 1.0);
/// assert!(found.information() > 0.9);
/// # Ok::<(), aeir_retrieve::Error>(())
/// ```
pub fn label_free(scores: &Matrix, options: &LabelFreeOptions) -> Result<LabelFree> {
    if scores.rows() == 0 || scores.columns() == 0 {
        return Err(Error::Empty { what: "a set to compare" });
    }
    let LabelFreeOptions { neighbours, temperature } = *options;
    if !(temperature.is_finite() && temperature > 0.0) {
        return Err(Error::Setting {
            name: "temperature",
            expected: "above 0".into(),
            got: temperature.to_string(),
        });
    }
    let corrected = csls(scores, neighbours.min(scores.rows()).min(scores.columns()))?;
    let pairs = mutual_neighbours(&corrected);
    let similarity: f64 = pairs.iter().map(|pair| f64::from(pair.score)).sum();
    let returned = |items: usize| pairs.len() as f64 / items as f64;
    let images = posterior(scores, temperature);
    let sentences = posterior(&scores.transposed(), temperature);
    Ok(LabelFree {
        mutual_similarity: similarity / pairs.len().max(1) as f64,
        cycle_consistency: f64::midpoint(returned(scores.rows()), returned(scores.columns())),
        posterior_entropy: f64::midpoint(images.entropy, sentences.entropy),
        posterior_diversity: f64::midpoint(images.diversity, sentences.diversity),
    })
}

/// A row and a column that are each other's best.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MutualPair {
    /// The row.
    pub row: usize,
    /// The column.
    pub column: usize,
    /// Their score.
    pub score: f32,
}

/// Pairs that are each other's best, by row. Of equal scores the first counts.
///
/// Shapes: `scores [N, M]`; at most min(N, M) pairs.
#[must_use]
pub fn mutual_neighbours(scores: &Matrix) -> Vec<MutualPair> {
    let mut best_row = vec![(f32::NEG_INFINITY, usize::MAX); scores.columns()];
    let mut best_column = Vec::with_capacity(scores.rows());
    for (row, values) in scores.iter_rows().enumerate() {
        let mut best = (f32::NEG_INFINITY, usize::MAX);
        for (column, (score, of_column)) in values.iter().zip(&mut best_row).enumerate() {
            if *score > best.0 {
                best = (*score, column);
            }
            if *score > of_column.0 {
                *of_column = (*score, row);
            }
        }
        best_column.push(best);
    }
    let mutual = |(row, (score, column)): (usize, &(f32, usize))| {
        let back = best_row.get(*column).is_some_and(|(_, back)| *back == row);
        back.then_some(MutualPair { row, column: *column, score: *score })
    };
    best_column.iter().enumerate().filter_map(mutual).collect()
}

struct Posterior {
    entropy: f64,
    diversity: f64,
}

/// Rows that are summed together: a constant, so that the sums have one order.
const BLOCK: usize = 64;

fn posterior(scores: &Matrix, temperature: f64) -> Posterior {
    let (rows, columns) = (scores.rows(), scores.columns());
    // A posterior over one item is sure of it and there is nothing else to find.
    let largest = (columns as f64).ln();
    if columns < 2 {
        return Posterior { entropy: 0.0, diversity: 0.0 };
    }
    let parts: Vec<(f64, Vec<f64>)> = (0..rows.div_ceil(BLOCK))
        .into_par_iter()
        .map(|block| {
            let (mut entropies, mut sums) = (0.0, vec![0.0; columns]);
            for row in block * BLOCK..rows.min((block + 1) * BLOCK) {
                entropies += add_posterior(scores.row(row).unwrap_or_default(), temperature, &mut sums);
            }
            (entropies, sums)
        })
        .collect();
    let (mut entropies, mut mean) = (0.0, vec![0.0; columns]);
    for (entropy, sums) in parts {
        entropies += entropy;
        mean.iter_mut().zip(sums).for_each(|(mean, sum)| *mean += sum / rows as f64);
    }
    let diversity = -mean.iter().filter(|share| **share > 0.0).map(|share| share * share.ln()).sum::<f64>();
    Posterior { entropy: entropies / rows as f64 / largest, diversity: diversity / largest }
}

/// Adds a query's posterior to `sums`; gives its entropy.
fn add_posterior(scores: &[f32], temperature: f64, sums: &mut [f64]) -> f64 {
    let most = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let logit = |score: &f32| f64::from(*score - most) / temperature;
    let weights: Vec<f64> = scores.iter().map(|score| logit(score).exp()).collect();
    let total: f64 = weights.iter().sum();
    let mut entropy = total.ln();
    for ((score, weight), sum) in scores.iter().zip(weights).zip(sums) {
        let share = weight / total;
        *sum += share;
        entropy -= share * logit(score);
    }
    entropy
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(rows: &[[f32; 3]]) -> LabelFree {
        let options = LabelFreeOptions { neighbours: 1, ..LabelFreeOptions::default() };
        label_free(&Matrix::from_rows(rows).unwrap(), &options).unwrap()
    }

    #[test]
    fn only_mutual_neighbours_count() {
        // Row 0 and column 0 choose each other; row 1 prefers column 0 as well, column 1 prefers row 1.
        let scores = Matrix::from_rows(&[[0.9, 0.1], [0.8, 0.5]]).unwrap();
        assert_eq!(mutual_neighbours(&scores), [MutualPair { row: 0, column: 0, score: 0.9 }]);
    }

    #[test]
    fn sets_that_fit_score_better_than_sets_that_do_not() {
        let fitting = figures(&[[0.9, 0.1, 0.1], [0.1, 0.9, 0.1], [0.1, 0.1, 0.9]]);
        assert!((fitting.cycle_consistency - 1.0).abs() < 1e-12);
        assert!(fitting.posterior_entropy < 0.01 && fitting.posterior_diversity > 0.99, "{fitting:?}");
        let clueless = figures(&[[0.5, 0.5, 0.5]; 3]);
        assert!((clueless.posterior_entropy - 1.0).abs() < 1e-9, "{clueless:?}");
        assert!(clueless.information().abs() < 1e-9);
        // Every image finds the first sentence: sure, and of no use.
        let hub = figures(&[[0.9, 0.1, 0.1]; 3]);
        assert!(hub.posterior_diversity < fitting.posterior_diversity, "{hub:?}");
        assert!(hub.information() < fitting.information());
    }

    #[test]
    fn entropy_is_that_of_the_definition() {
        let scores = [0.3f32, 0.1, -0.2];
        let weights: Vec<f64> = scores.iter().map(|score| (f64::from(*score) / 0.05).exp()).collect();
        let total: f64 = weights.iter().sum();
        let entropy: f64 = weights.iter().map(|weight| -(weight / total) * (weight / total).ln()).sum();
        let mut sums = [0.0; 3];
        assert!((add_posterior(&scores, 0.05, &mut sums) - entropy).abs() < 1e-6);
        assert!((sums.iter().sum::<f64>() - 1.0).abs() < 1e-12);
    }

    #[test]
    fn single_items_and_empty_sets() {
        let one = Matrix::from_rows(&[[0.4]]).unwrap();
        let found = label_free(&one, &LabelFreeOptions::default()).unwrap();
        assert_eq!((found.cycle_consistency, found.posterior_entropy), (1.0, 0.0));
        assert!(label_free(&Matrix::new(vec![], 0, 3).unwrap(), &LabelFreeOptions::default()).is_err());
        let options = LabelFreeOptions { temperature: 0.0, ..LabelFreeOptions::default() };
        assert!(label_free(&one, &options).is_err());
    }
}
