//! How far apart two domains are: the proxy A-distance, from how well a linear classifier tells them apart.

use faer::linalg::matmul::matmul;
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::linalg::solvers::Solve;
use faer::{Accum, Mat, MatRef, Par, Scale, Side};
use serde::{Deserialize, Serialize};

use crate::sampling::{self, sample};
use crate::scores::same_dimension;
use crate::{Error, Matrix, Result};

const NEWTON_STEPS: usize = 100;
const HALVINGS: i32 = 40;
/// Decrements (step times gradient) this small against the loss are lost in its rounding.
const BELOW_THE_LOSS: f64 = 1e-10;
/// Decrement at which the weights are exact to about 1e-11: it is no smaller than their squared error.
const CONVERGED: f64 = 1e-22;

/// How the two domains are sampled and told apart.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ProxyADistanceOptions {
    /// Weight of the data against the penalty, larger fits closer; 1 by default.
    pub c: f64,
    /// Items drawn from each domain at most, half to train on and half to test on; 1,000 by default.
    pub per_domain: usize,
    /// Seed of the draw and of the halves; 0 by default.
    pub seed: u64,
    /// Whether each domain is standardised by itself before, and its rows scaled to length 1. The statistics are those of the training
    /// half alone: of all items they would centre the test halves on each other exactly, and hide a difference that new items show. Off
    /// by default.
    pub standardise: bool,
}

impl Default for ProxyADistanceOptions {
    fn default() -> Self {
        Self { c: 1.0, per_domain: 1_000, seed: 0, standardise: false }
    }
}

/// The proxy A-distance and what it was measured on.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProxyADistance {
    /// `2 (1 - 2 error)`: 0 where the domains can't be told apart, 2 where they always can. Slightly below 0 by chance.
    pub distance: f64,
    /// Share of the test items given to the wrong domain; `classifier_error` in JSON.
    #[serde(rename = "classifier_error")]
    pub error: f64,
    /// Items of each domain that the classifier was trained on.
    pub n_train: usize,
    /// Items of each domain that it was tested on.
    pub n_test: usize,
}

/// How far apart two sets of embeddings are: 0 alike, 2 separable by a plane.
///
/// From both domains the same number of items is drawn; a logistic regression learns to tell one half's domains apart and is
/// tested on the other half.
///
/// Equation: `2 (1 - 2 error)`. Ben-David et al., *A theory of learning from different domains*, Machine Learning 79 (2010);
/// as computed here: Ganin et al., *Domain-adversarial training of neural networks*, JMLR 17 (2016), section 5.1.5.
///
/// Shapes: `source [N, D]`, `target [M, D]`, at least 2 rows each. Features are taken as they are: compare distances only
/// between embeddings of one scale (L2-normalise first). With few items against D a plane separates the training half of
/// anything, and the test half is what counts: 500 items a half give the distance to about 0.06.
///
/// Time: a few Newton steps of `2 n D^2 + D^3 / 3` operations with n the training items of both domains.
///
/// # Errors
/// As [`DomainClassifier::fit`]; [`Error::Setting`] where `per_domain` or a domain has fewer than 2 items.
///
/// # Example
/// ```
/// use aeir_retrieve::{Matrix, ProxyADistanceOptions, proxy_a_distance};
/// let photos = Matrix::from_rows(&[[1.0, 0.2], [0.9, -0.3], [1.1, 0.1], [1.0, -0.1]])?;
/// let drawings = Matrix::from_rows(&[[-1.0, 0.1], [-0.9, 0.3], [-1.1, -0.2], [-0.8, 0.0]])?;
/// assert_eq!(proxy_a_distance(&photos, &drawings, &ProxyADistanceOptions::default())?.distance, 2.0);
/// # Ok::<(), aeir_retrieve::Error>(())
/// ```
pub fn proxy_a_distance(
    source: &Matrix,
    target: &Matrix,
    options: &ProxyADistanceOptions,
) -> Result<ProxyADistance> {
    for (name, items) in
        [("source items", source.rows()), ("target items", target.rows()), ("per_domain", options.per_domain)]
    {
        if items < 2 {
            return Err(Error::Setting { name, expected: "2 or more".into(), got: items.to_string() });
        }
    }
    // As many of both: otherwise naming the larger domain every time would look like telling them apart.
    let items = options.per_domain.min(source.rows()).min(target.rows());
    let (source_train, source_test) = prepared(halves(source, items, options.seed, 0)?, options)?;
    let (target_train, target_test) = prepared(halves(target, items, options.seed, 1)?, options)?;
    let classifier = DomainClassifier::fit(&source_train, &target_train, options.c)?;
    let error = classifier.error(&source_test, &target_test)?;
    Ok(ProxyADistance {
        distance: 2.0 * (1.0 - 2.0 * error),
        error,
        n_train: source_train.rows(),
        n_test: source_test.rows(),
    })
}

/// `items` random rows, without repetition, in two halves.
fn halves(domain: &Matrix, items: usize, seed: u64, stream: u64) -> Result<(Matrix, Matrix)> {
    let positions = sample(&mut sampling::stream(seed, stream), domain.rows(), items);
    let (train, test) = positions.split_at(items / 2);
    Ok((domain.select_rows(train)?, domain.select_rows(test)?))
}

/// The halves of a domain, standardised with the statistics of the first where the options say so.
fn prepared((train, test): (Matrix, Matrix), options: &ProxyADistanceOptions) -> Result<(Matrix, Matrix)> {
    if !options.standardise {
        return Ok((train, test));
    }
    let scale = FeatureScale::of(&train);
    let scaled = |half: &Matrix| scale.applied(half)?.l2_normalised();
    Ok((scaled(&train)?, scaled(&test)?))
}

/// Mean and deviation of each feature over a set, to apply to it or to another.
#[derive(Clone, Debug, PartialEq)]
pub struct FeatureScale {
    mean: Vec<f64>,
    deviation: Vec<f64>,
}

impl FeatureScale {
    /// The statistics of `set [N, D]`. A deviation below a hundredth of the mean deviation is raised to it, so that a feature
    /// that hardly varies in a small set does not explode elsewhere.
    #[must_use]
    pub fn of(set: &Matrix) -> Self {
        let count = set.rows().max(1) as f64;
        let (mut mean, mut square) = (vec![0.0_f64; set.columns()], vec![0.0_f64; set.columns()]);
        for row in set.iter_rows() {
            for ((mean, square), value) in mean.iter_mut().zip(&mut square).zip(row) {
                *mean += f64::from(*value) / count;
                *square += f64::from(*value).powi(2) / count;
            }
        }
        let deviations =
            mean.iter().zip(&square).map(|(mean, square)| (square - mean * mean).max(0.0).sqrt());
        let mut deviation: Vec<f64> = deviations.collect();
        let floor = 0.01 * deviation.iter().sum::<f64>() / deviation.len().max(1) as f64;
        deviation.iter_mut().for_each(|value| *value = value.max(floor).max(1e-12));
        Self { mean, deviation }
    }

    /// `(x - mean) / deviation` of every row.
    ///
    /// # Errors
    /// [`Error::Shape`] where the dimension differs.
    pub fn applied(&self, set: &Matrix) -> Result<Matrix> {
        if set.columns() != self.mean.len() {
            return Err(Error::Shape {
                what: "dimension of the features",
                expected: self.mean.len(),
                got: set.columns(),
            });
        }
        let scaled = |row: &[f32]| -> Vec<f32> {
            (row.iter().zip(&self.mean).zip(&self.deviation))
                .map(|((value, mean), deviation)| ((f64::from(*value) - mean) / deviation) as f32)
                .collect()
        };
        Matrix::new(set.iter_rows().flat_map(scaled).collect(), set.rows(), set.columns())
    }
}

/// A logistic regression that tells target items from source items.
///
/// Equation: with label y = -1 for source and 1 for target,
/// `min 0.5 |w|^2 + c sum_i ln(1 + exp(-y_i (w x_i + b)))`; the intercept b is not penalised. Solved by Newton's method with
/// step halving in `f64`, as far as rounding allows: the minimum is unique, so the answer does not depend on the solver.
#[derive(Clone, Debug, PartialEq)]
pub struct DomainClassifier {
    weights: Vec<f64>,
    intercept: f64,
}

impl DomainClassifier {
    /// Learns from `source [N, D]` and `target [M, D]`.
    ///
    /// # Errors
    /// [`Error::Empty`] where a domain has no item, [`Error::Shape`] where the dimensions differ, [`Error::NotFinite`] on NaN or
    /// infinity, [`Error::Setting`] where `c` is not a positive number, or features and `c` are so large that `f64` can't
    /// solve for the weights.
    pub fn fit(source: &Matrix, target: &Matrix, c: f64) -> Result<Self> {
        if !(c.is_finite() && c > 0.0) {
            return Err(Error::Setting {
                name: "c",
                expected: "a finite number above 0".into(),
                got: c.to_string(),
            });
        }
        let dimension = same_dimension(source, target)?;
        for (what, domain) in [("set of source items", source), ("set of target items", target)] {
            if domain.rows() == 0 {
                return Err(Error::Empty { what });
            }
        }
        source.check_finite("source embeddings")?;
        target.check_finite("target embeddings")?;
        let problem = Problem::new(source, target, dimension, c);
        let solved = problem.solve().ok_or_else(|| Error::Setting {
            name: "c, or the size of the features",
            expected: "small enough to solve for the weights in f64".into(),
            got: c.to_string(),
        })?;
        Ok(problem.classifier(&solved))
    }

    /// The weight of each feature, `[D]`.
    #[must_use]
    pub fn weights(&self) -> &[f64] {
        &self.weights
    }

    /// What is added to the weighted features.
    #[must_use]
    pub fn intercept(&self) -> f64 {
        self.intercept
    }

    /// The probability that each item is of the target domain, `[items]`.
    ///
    /// # Errors
    /// [`Error::Shape`] where the dimension differs from the weights'.
    pub fn target_probabilities(&self, items: &Matrix) -> Result<Vec<f64>> {
        if items.columns() != self.weights.len() {
            return Err(Error::Shape {
                what: "dimension of the embeddings",
                expected: self.weights.len(),
                got: items.columns(),
            });
        }
        let logit = |row: &[f32]| row.iter().zip(&self.weights).map(|(x, w)| f64::from(*x) * w).sum::<f64>();
        Ok(items.iter_rows().map(|row| sigmoid(logit(row) + self.intercept)).collect())
    }

    /// Share of the items of both domains given to the wrong one; at a probability of 1/2 the guess is source.
    ///
    /// # Errors
    /// As [`DomainClassifier::target_probabilities`]; [`Error::Empty`] where there is no item at all.
    pub fn error(&self, source: &Matrix, target: &Matrix) -> Result<f64> {
        let items = source.rows() + target.rows();
        if items == 0 {
            return Err(Error::Empty { what: "set of items to test on" });
        }
        let as_target =
            |domain| Ok(self.target_probabilities(domain)?.into_iter().filter(|p| *p > 0.5).count());
        let wrong = as_target(source)? + target.rows() - as_target(target)?;
        Ok(wrong as f64 / items as f64)
    }
}

/// Features less their mean, a column of ones after them, and the labels.
struct Problem {
    mean: Vec<f64>,
    /// `[n, D + 1]`.
    features: Mat<f64>,
    /// 0 source, 1 target.
    labels: Vec<f64>,
    c: f64,
}

impl Problem {
    fn new(source: &Matrix, target: &Matrix, dimension: usize, c: f64) -> Self {
        let rows = || source.iter_rows().chain(target.iter_rows());
        let items = source.rows() + target.rows();
        let mut mean = vec![0.0; dimension];
        for row in rows() {
            mean.iter_mut().zip(row).for_each(|(sum, value)| *sum += f64::from(*value));
        }
        mean.iter_mut().for_each(|sum| *sum /= items as f64);
        // Centred features leave less to the intercept, so the system is better conditioned; `classifier` undoes it.
        let values: Vec<f64> = rows()
            .flat_map(|row| {
                row.iter()
                    .zip(&mean)
                    .map(|(value, mean)| f64::from(*value) - mean)
                    .chain(std::iter::once(1.0))
            })
            .collect();
        let features = MatRef::from_row_major_slice(&values, items, dimension + 1).to_owned();
        let labels = (0..items).map(|item| if item < source.rows() { 0.0 } else { 1.0 }).collect();
        Self { mean, features, labels, c }
    }

    /// The weights and, last, the intercept; `None` where a system can't be solved.
    fn solve(&self) -> Option<Mat<f64>> {
        let mut solution = Mat::zeros(self.features.ncols(), 1);
        let mut last_decrement = f64::INFINITY;
        for _ in 0..NEWTON_STEPS {
            let logits = self.logits(&solution);
            let loss = self.loss(&solution, &logits);
            let gradient = self.gradient(&solution, &logits);
            let step = self.hessian(&logits).llt(Side::Lower).ok()?.solve(&gradient);
            let decrement = entries(&step).zip(entries(&gradient)).map(|(s, g)| s * g).sum::<f64>();
            if !decrement.is_finite() {
                return None;
            }
            if decrement > BELOW_THE_LOSS * (1.0 + loss) {
                solution = self.descend(&solution, &step, loss)?;
                continue;
            }
            // The loss can't tell such steps from rounding, and this near to the minimum a whole one is right.
            solution -= step;
            if decrement <= CONVERGED || decrement >= last_decrement {
                break;
            }
            last_decrement = decrement;
        }
        Some(solution)
    }

    /// Along the longest of 1, 1/2, 1/4 .. of a step that lowers the loss.
    fn descend(&self, from: &Mat<f64>, step: &Mat<f64>, loss: f64) -> Option<Mat<f64>> {
        let along = |halvings: i32| from - Scale(0.5_f64.powi(halvings)) * step;
        (0..HALVINGS).map(along).find(|solution| self.loss(solution, &self.logits(solution)) < loss)
    }

    fn logits(&self, solution: &Mat<f64>) -> Mat<f64> {
        let mut logits = Mat::zeros(self.features.nrows(), 1);
        matmul(logits.as_mut(), Accum::Replace, self.features.as_ref(), solution.as_ref(), 1.0, Par::Seq);
        logits
    }

    fn loss(&self, solution: &Mat<f64>, logits: &Mat<f64>) -> f64 {
        let penalty: f64 = entries(solution).take(self.mean.len()).map(|weight| weight * weight).sum();
        let data: f64 = entries(logits)
            .zip(&self.labels)
            .map(|(logit, label)| logit.max(0.0) - logit * label + (-logit.abs()).exp().ln_1p())
            .sum();
        0.5 * penalty + self.c * data
    }

    fn gradient(&self, solution: &Mat<f64>, logits: &Mat<f64>) -> Mat<f64> {
        let residuals: Vec<f64> =
            entries(logits).zip(&self.labels).map(|(logit, label)| sigmoid(logit) - label).collect();
        let residuals = MatRef::from_column_major_slice(&residuals, self.labels.len(), 1);
        let mut gradient = solution.clone();
        self.clear_intercept(&mut gradient);
        matmul(gradient.as_mut(), Accum::Add, self.features.transpose(), residuals, self.c, Par::Seq);
        gradient
    }

    /// The lower triangle of the second derivative.
    fn hessian(&self, logits: &Mat<f64>) -> Mat<f64> {
        let curvatures: Vec<f64> =
            entries(logits).map(|logit| (self.c * sigmoid(logit) * sigmoid(-logit)).sqrt()).collect();
        let mut scaled = self.features.clone();
        for column in scaled.col_iter_mut() {
            column.iter_mut().zip(&curvatures).for_each(|(value, factor)| *value *= factor);
        }
        let width = self.features.ncols();
        let mut hessian = Mat::from_fn(width, width, |i, j| if i == j { 1.0 } else { 0.0 });
        if let Some(corner) =
            hessian.col_iter_mut().next_back().and_then(|column| column.iter_mut().next_back())
        {
            *corner = 0.0;
        }
        triangular::matmul(
            hessian.as_mut(),
            BlockStructure::TriangularLower,
            Accum::Add,
            scaled.transpose(),
            BlockStructure::Rectangular,
            scaled.as_ref(),
            BlockStructure::Rectangular,
            1.0,
            Par::Seq,
        );
        hessian
    }

    /// The intercept is not penalised.
    fn clear_intercept(&self, gradient: &mut Mat<f64>) {
        for column in gradient.col_iter_mut() {
            column.iter_mut().skip(self.mean.len()).for_each(|value| *value = 0.0);
        }
    }

    fn classifier(&self, solution: &Mat<f64>) -> DomainClassifier {
        let mut weights: Vec<f64> = entries(solution).collect();
        let centred = weights.pop().unwrap_or(0.0);
        let shift: f64 = weights.iter().zip(&self.mean).map(|(weight, mean)| weight * mean).sum();
        DomainClassifier { weights, intercept: centred - shift }
    }
}

/// The entries of a one-column matrix.
fn entries(column: &Mat<f64>) -> impl Iterator<Item = f64> {
    column.col_iter().next().into_iter().flat_map(|column| column.iter().copied())
}

fn sigmoid(logit: f64) -> f64 {
    1.0 / (1.0 + (-logit).exp())
}
