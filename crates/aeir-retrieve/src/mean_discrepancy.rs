//! Whether two domains differ at all: maximum mean discrepancy with a permutation test.

use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::sampling::{sample, stream};
use crate::scores::same_dimension;
use crate::{Error, Matrix, Result};

/// Widths of the Gaussians, as multiples of the mean squared distance.
const SCALES: [f64; 5] = [0.25, 0.5, 1.0, 2.0, 4.0];

/// The same split in another order of summation counts as equally large.
const ROUNDING: f64 = 1e-12;

/// How the two domains are sampled and the labels shuffled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MeanDiscrepancyOptions {
    /// Items drawn from each domain at most; 500 by default. Time and memory grow with its square.
    pub per_domain: usize,
    /// Shuffles of the labels; 500 by default. The smallest p-value is one over one more than that.
    pub permutations: usize,
    /// Seed of the draw and of the shuffles; 0 by default.
    pub seed: u64,
}

impl Default for MeanDiscrepancyOptions {
    fn default() -> Self {
        Self { per_domain: 500, permutations: 500, seed: 0 }
    }
}

/// The discrepancy and how likely one as large is where both sets come from one domain.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct MeanDiscrepancy {
    /// The unbiased estimate of the squared discrepancy: around 0 where the domains are alike, and then as often below.
    pub squared: f64,
    /// Share of label shuffles, the true labels counted in, with a discrepancy at least as large.
    pub p_value: f64,
    /// Shuffles.
    pub permutations: usize,
    /// Source items looked at.
    pub n_source: usize,
    /// Target items looked at.
    pub n_target: usize,
}

/// The squared maximum mean discrepancy of two sets of embeddings, and its p-value.
///
/// Equation: `mean k(x, x') + mean k(y, y') - 2 mean k(x, y)`, pairs of one item with itself left out (the unbiased form of Gretton
/// et al., *A kernel two-sample test*, JMLR 13, 2012), with `k(u, v) = sum_s exp(-|u - v|^2 / (2 s m))`, `s` in 0.25, 0.5, 1, 2, 4
/// and `m` the mean squared distance of distinct items. The p-value is `(1 + shuffles at least as large) / (1 + shuffles)`: exact,
/// whatever the embeddings' distribution. Where each domain was standardised by itself beforehand, the labels went into the
/// embeddings: the p-value is then conservative, too large rather than too small.
///
/// Shapes: `source [N, D]`, `target [M, D]`. The test takes items to be independent: give one sentence an image, not all of them.
///
/// # Errors
/// [`Error::Setting`] where a domain or `per_domain` has fewer than 2 items or `permutations` is 0, [`Error::Shape`] where the
/// dimensions differ, [`Error::NotFinite`] on NaN or infinity.
///
/// Parity file: `fixtures/parity/losses/mmd.safetensors`.
///
/// # Example
/// ```
/// use aeir_retrieve::{Matrix, MeanDiscrepancyOptions, maximum_mean_discrepancy};
/// let near: Vec<[f32; 2]> = (0..20).map(|i| [i as f32 % 5.0, i as f32 % 3.0]).collect();
/// let far: Vec<[f32; 2]> = near.iter().map(|[x, y]| [x + 9.0, *y]).collect();
/// let (near, far) = (Matrix::from_rows(&near)?, Matrix::from_rows(&far)?);
/// let found = maximum_mean_discrepancy(&near, &far, &MeanDiscrepancyOptions::default())?;
/// assert!(found.squared > 0.5 && found.p_value < 0.01);
/// # Ok::<(), aeir_retrieve::Error>(())
/// ```
pub fn maximum_mean_discrepancy(
    source: &Matrix,
    target: &Matrix,
    options: &MeanDiscrepancyOptions,
) -> Result<MeanDiscrepancy> {
    same_dimension(source, target)?;
    for (name, got, least) in [
        ("source items", source.rows(), 2),
        ("target items", target.rows(), 2),
        ("per_domain", options.per_domain, 2),
        ("permutations", options.permutations, 1),
    ] {
        if got < least {
            return Err(Error::Setting { name, expected: format!("{least} or more"), got: got.to_string() });
        }
    }
    source.check_finite("source embeddings")?;
    target.check_finite("target embeddings")?;
    let drawn = |domain: &Matrix, of: u64| {
        domain.select_rows(&sample(&mut stream(options.seed, of), domain.rows(), options.per_domain))
    };
    let (source, target) = (drawn(source, 0)?, drawn(target, 1)?);
    let gram = Gram::new(&source, &target);
    let observed = gram.discrepancy(&(0..source.rows()).collect::<Vec<_>>());
    let as_large = (0..options.permutations as u64)
        .into_par_iter()
        .filter(|shuffle| {
            // Streams 0 and 1 drew the items.
            let mut random: ChaCha8Rng = stream(options.seed, 2 + shuffle);
            gram.discrepancy(&sample(&mut random, gram.items, source.rows())) >= observed - ROUNDING
        })
        .count();
    Ok(MeanDiscrepancy {
        squared: observed,
        p_value: (1 + as_large) as f64 / (1 + options.permutations) as f64,
        permutations: options.permutations,
        n_source: source.rows(),
        n_target: target.rows(),
    })
}

/// Kernel values of all items of both domains, 0 on the diagonal.
struct Gram {
    items: usize,
    values: Vec<f64>,
    row_sums: Vec<f64>,
    total: f64,
}

impl Gram {
    fn new(source: &Matrix, target: &Matrix) -> Self {
        let rows: Vec<&[f32]> = source.iter_rows().chain(target.iter_rows()).collect();
        let items = rows.len();
        let mut values = vec![0.0; items * items];
        values.par_chunks_mut(items).zip(&rows).for_each(|(line, left)| {
            line.iter_mut().zip(&rows).for_each(|(slot, right)| *slot = squared_distance(left, right));
        });
        let mean = values.par_iter().sum::<f64>() / (items * (items - 1)) as f64;
        // Where all items are equal, so is every kernel value, whatever its width.
        let mean = if mean > 0.0 { mean } else { 1.0 };
        values.par_iter_mut().for_each(|value| {
            *value = SCALES.iter().map(|scale| (-*value / (2.0 * scale * mean)).exp()).sum();
        });
        for (row, line) in values.chunks_mut(items).enumerate() {
            line.iter_mut().skip(row).take(1).for_each(|value| *value = 0.0);
        }
        let row_sums: Vec<f64> = values.par_chunks(items).map(|line| line.iter().sum()).collect();
        let total = row_sums.iter().sum();
        Self { items, values, row_sums, total }
    }

    /// With `first` as one domain and all other items as the other.
    fn discrepancy(&self, first: &[usize]) -> f64 {
        let sum_of_row = |row: &usize| self.row_sums.get(*row).copied().unwrap_or(0.0);
        let inside: f64 = first
            .iter()
            .filter_map(|row| self.values.get(row * self.items..(row + 1) * self.items))
            .map(|line| first.iter().filter_map(|column| line.get(*column)).sum::<f64>())
            .sum();
        let across = first.iter().map(sum_of_row).sum::<f64>() - inside;
        let outside = self.total - inside - 2.0 * across;
        let (n, m) = (first.len() as f64, (self.items - first.len()) as f64);
        inside / (n * (n - 1.0)) + outside / (m * (m - 1.0)) - 2.0 * across / (n * m)
    }
}

fn squared_distance(left: &[f32], right: &[f32]) -> f64 {
    left.iter().zip(right).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum()
}
