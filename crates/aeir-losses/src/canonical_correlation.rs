//! Canonical correlation: the linear projections in closed form, and the loss of deep CCA.

use candle_core::{DType, Device, Tensor};
use faer::linalg::matmul::matmul;
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::reborrow::Reborrow;
use faer::{Accum, Mat, MatRef, Par, Side};

use crate::error::{Check, LossError, Within};
use crate::mean_discrepancy::at_least_two;

const FIT: &str = "CanonicalCorrelation";
const ROWS: &str = "Rows";
const LOSS: &str = "DeepCcaLoss";
/// How many items are centred and multiplied at once: the copy in f64 stays small beside the features.
const BLOCK: usize = 1024;
/// Correlations below it are rounding: their directions are arbitrary and get no gradient.
const UNCORRELATED: f64 = 1e-9;

/// Features of items, one row an item: plain numbers with their shape, `[items, columns]`.
///
/// # Example
/// ```
/// let rows = aeir_losses::Rows::new(&[1f32, 2., 3., 4., 5., 6.], 3)?;
/// assert_eq!((rows.items(), rows.columns()), (2, 3));
/// # Ok::<(), aeir_losses::LossError>(())
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a, T> {
    values: &'a [T],
    columns: usize,
}

impl<'a, T: Copy + Into<f64>> Rows<'a, T> {
    /// Reads `values` as rows of `columns` numbers each, row after row.
    ///
    /// # Errors
    /// [`LossError::Shape`] where `values` is empty or no whole number of rows, or `columns` is 0.
    pub fn new(values: &'a [T], columns: usize) -> Result<Self, LossError> {
        if columns > 0 && !values.is_empty() && values.len().is_multiple_of(columns) {
            return Ok(Self { values, columns });
        }
        let expected = format!("a whole number of rows of {columns} numbers, not empty");
        Err(LossError::Shape { loss: ROWS, tensor: "values", expected, got: vec![values.len()] })
    }

    /// How many items (rows).
    #[must_use]
    pub fn items(&self) -> usize {
        self.values.len() / self.columns
    }

    /// How many numbers an item has.
    #[must_use]
    pub fn columns(&self) -> usize {
        self.columns
    }

    fn mean(&self, tensor: &'static str) -> Result<Vec<f64>, LossError> {
        let mut mean = vec![0.0; self.columns];
        for row in self.values.chunks_exact(self.columns) {
            for (sum, value) in mean.iter_mut().zip(row) {
                *sum += (*value).into();
            }
        }
        let items = self.items() as f64;
        mean.iter_mut().for_each(|sum| *sum /= items);
        // A NaN or an infinity among the values stays one in the sum.
        finite(FIT, tensor, mean.iter().copied())?;
        Ok(mean)
    }

    /// The rows less `mean`, in blocks.
    fn centred_blocks(self, mean: &'a [f64]) -> impl Iterator<Item = Mat<f64>> + 'a
    where
        T: 'a,
    {
        self.values.chunks(BLOCK * self.columns).map(move |block| {
            let values: Vec<f64> = (block.chunks_exact(self.columns))
                .flat_map(|row| row.iter().zip(mean).map(|(value, mean)| (*value).into() - mean))
                .collect();
            MatRef::from_row_major_slice(&values, block.len() / self.columns, self.columns).to_owned()
        })
    }
}

/// Linear canonical correlation analysis: projections of two views under which paired items correlate most.
///
/// The classical way to a joint space of images and sentences: no training, one decomposition. Column by column, the
/// projections of `x` and of `y` have variance 1 (less what the regularisation takes), are uncorrelated with those of other
/// columns, and correlate with their counterpart as much as any linear projection can.
///
/// # Equation
/// With centred rows, covariances over n - 1, and the singular value decomposition `U diag(correlations) V^T`:
///
/// ```text
/// S_xx = X^T X / (n - 1) + r I     S_yy = Y^T Y / (n - 1) + r I     S_xy = X^T Y / (n - 1)
/// S_xx^-1/2 S_xy S_yy^-1/2 = U diag(correlations) V^T     wx = S_xx^-1/2 U     wy = S_yy^-1/2 V
/// ```
///
/// Hotelling, *Relations between two sets of variates*, Biometrika 28 (1936); with regularisation: Hardoon et al., *Canonical
/// correlation analysis: an overview with application to learning methods*, Neural Computation 16 (2004).
///
/// # Shapes
/// `x` `[N, F]`, `y` `[N, G]`, row `i` of both the same item; `wx` `[F, d]`, `wy` `[G, d]`, correlations `[d]`, largest first.
///
/// # Parameters and units
/// `regularisation` r: added to both covariances' diagonals, in squared units of the features, 0 or larger. `dimension` d: at
/// least 1, at most the smaller rank of the two regularised covariances (with r = 0: of the features; else the smaller of F
/// and G).
///
/// # Numerical notes
/// All in f64; features are read twice, in blocks, so that f32 rows are never copied as a whole. Inverse square roots leave
/// out directions without variance (eigenvalues below F eps times the largest): a constant feature, or fewer items than
/// features, is no failure at r = 0. But with at most as many items as features and r = 0 any pairing correlates perfectly:
/// all correlations are 1 and mean nothing. The largest entry of each column of `wx` is positive; correlations that are equal
/// leave their columns free to turn. About 2 N F^2 + 10 F^3 operations on one thread.
///
/// # Errors
/// [`LossError::Shape`] (`y` with other items than `x`), [`LossError::TooFewRows`], [`LossError::Parameter`]
/// (`regularisation`, `dimension`), [`LossError::NotFinite`], [`LossError::NoConvergence`].
///
/// # Deviations from the released procedure
/// The released procedure has no canonical correlation.
///
/// # Parity file
/// `fixtures/parity/metrics/cca.safetensors`
///
/// # Example
/// ```
/// use aeir_losses::{CanonicalCorrelation, Rows};
///
/// // The second feature of x is the first of y, less 1; the rest is unrelated.
/// let x = [0.3, 1., -0.2, 2., 0.4, 3., -0.1, 4., 0.9, 5.];
/// let y = [2., 0.5, 3., 0.1, 4., -0.6, 5., 0.2, 6., 0.4];
/// let (x, y) = (Rows::new(&x, 2)?, Rows::new(&y, 2)?);
/// let cca = CanonicalCorrelation::fit(x, y, 0., 1)?;
/// assert!((cca.correlations()[0] - 1.).abs() < 1e-9);
/// let (image, sentence) = (cca.project_x(x)?, cca.project_y(y)?);
/// assert!((image[3] - sentence[3]).abs() < 1e-9);
/// # Ok::<(), aeir_losses::LossError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct CanonicalCorrelation {
    x: Projection,
    y: Projection,
    correlations: Vec<f64>,
}

/// A centring and a linear map.
#[derive(Debug, Clone, PartialEq)]
struct Projection {
    mean: Vec<f64>,
    /// `[mean.len(), d]`, row after row.
    weights: Vec<f64>,
}

impl CanonicalCorrelation {
    /// The projections of paired items.
    ///
    /// # Errors
    /// See the type's documentation.
    pub fn fit<T: Copy + Into<f64>>(
        x: Rows<'_, T>,
        y: Rows<'_, T>,
        regularisation: f64,
        dimension: usize,
    ) -> Result<Self, LossError> {
        let check = Check(FIT);
        check.not_negative("regularisation", regularisation)?;
        at_least_two(check, "x", x.items())?;
        if y.items() != x.items() {
            let expected = format!("[N, G] with N = {}", x.items());
            return Err(LossError::Shape {
                loss: FIT,
                tensor: "y",
                expected,
                got: vec![y.items(), y.columns()],
            });
        }
        let (x_mean, y_mean) = (x.mean("x")?, y.mean("y")?);
        let covariances = Covariances::of_rows(x, &x_mean, y, &y_mean);
        let x_whitening = whitening(FIT, "x", covariances.xx.as_ref(), regularisation)?;
        let y_whitening = whitening(FIT, "y", covariances.yy.as_ref(), regularisation)?;
        let found = Directions::new(FIT, &x_whitening, &covariances.xy, &y_whitening)?;
        let ranks = found.correlations.len();
        let right = (1..=ranks).contains(&dimension);
        check.parameter(right, "dimension", "1 to the smaller rank of x and y", dimension as f64)?;
        let signs: Vec<f64> = (0..dimension).map(|column| sign(&found.x, column)).collect();
        Ok(Self {
            x: Projection { mean: x_mean, weights: row_major(&found.x, &signs) },
            y: Projection { mean: y_mean, weights: row_major(&found.y, &signs) },
            // Rounding must not make a correlation of 1 larger than 1.
            correlations: found.correlations.iter().take(dimension).map(|c| c.min(1.0)).collect(),
        })
    }

    /// How many columns the projections have: d.
    #[must_use]
    pub fn dimension(&self) -> usize {
        self.correlations.len()
    }

    /// The canonical correlations, 0 to 1, largest first, `[d]`.
    #[must_use]
    pub fn correlations(&self) -> &[f64] {
        &self.correlations
    }

    /// The mean row of `x`, `[F]`.
    #[must_use]
    pub fn mean_x(&self) -> &[f64] {
        &self.x.mean
    }

    /// The mean row of `y`, `[G]`.
    #[must_use]
    pub fn mean_y(&self) -> &[f64] {
        &self.y.mean
    }

    /// The projection of `x`, `[F, d]`, row after row.
    #[must_use]
    pub fn wx(&self) -> &[f64] {
        &self.x.weights
    }

    /// The projection of `y`, `[G, d]`, row after row.
    #[must_use]
    pub fn wy(&self) -> &[f64] {
        &self.y.weights
    }

    /// `(x - mean_x) wx`, `[items, d]`, row after row.
    ///
    /// # Errors
    /// [`LossError::Shape`] where `x` has other columns than the fitted one.
    pub fn project_x<T: Copy + Into<f64>>(&self, x: Rows<'_, T>) -> Result<Vec<f64>, LossError> {
        self.x.apply("x", x)
    }

    /// `(y - mean_y) wy`, `[items, d]`, row after row.
    ///
    /// # Errors
    /// [`LossError::Shape`] where `y` has other columns than the fitted one.
    pub fn project_y<T: Copy + Into<f64>>(&self, y: Rows<'_, T>) -> Result<Vec<f64>, LossError> {
        self.y.apply("y", y)
    }
}

impl Projection {
    fn apply<T: Copy + Into<f64>>(
        &self,
        tensor: &'static str,
        rows: Rows<'_, T>,
    ) -> Result<Vec<f64>, LossError> {
        let features = self.mean.len();
        if rows.columns() != features {
            let expected = format!("[items, {features}]");
            return Err(LossError::Shape {
                loss: FIT,
                tensor,
                expected,
                got: vec![rows.items(), rows.columns()],
            });
        }
        let weights = MatRef::from_row_major_slice(&self.weights, features, self.weights.len() / features);
        let mut projected = Vec::with_capacity(rows.items() * weights.ncols());
        for block in rows.centred_blocks(&self.mean) {
            let block = product(block.as_ref(), weights);
            projected.extend(row_major(&block, &vec![1.0; weights.ncols()]));
        }
        Ok(projected)
    }
}

/// Deep CCA: the batch's canonical correlations, all of them, should be large.
///
/// Trains two encoders on paired items so that linear projections of their outputs correlate. The gradient needs whole
/// covariances: batches have to be larger than D and E (several times larger, or regularised strongly), otherwise any two
/// batches correlate almost perfectly and nothing is learnt.
///
/// # Equation
/// With the covariances and directions of [`CanonicalCorrelation`] over the batch, r > 0:
///
/// ```text
/// loss = -sum_k correlation_k = -|S_xx^-1/2 S_xy S_yy^-1/2|_*
/// d loss / dx = -(Y wy - X wx diag(correlations)) wx^T / (B - 1)     (X, Y centred; y likewise)
/// ```
///
/// Andrew, Arora, Bilmes and Livescu, *Deep canonical correlation analysis*, ICML 2013 (the gradient: their equations 10
/// to 13).
///
/// # Shapes
/// `x` `[B, D]`, `y` `[B, E]`, row `i` of both the same item. Result `[]`, between -min(B - 1, D, E) and 0.
///
/// # Parameters and units
/// `regularisation` r: added to both covariances' diagonals, in squared units of the features, above 0; 1e-4 by default.
///
/// # Numerical notes
/// Value and gradient are computed on the host in f64 from a copy of the batch, by a decomposition of covariances (B > D) or
/// of the items' inner products (B <= D); a GPU waits for it. The gradient is first-order: it can't be differentiated again.
/// Pairs of directions that do not correlate at all (a constant feature, a constant batch) get no gradient: the value has a
/// kink there, and 0 lies between its slopes.
///
/// # Errors
/// [`LossError::Shape`], [`LossError::ElementType`], [`LossError::TooFewRows`] (one row has no covariance),
/// [`LossError::Parameter`] (`regularisation`), [`LossError::NotFinite`], [`LossError::NoConvergence`], [`LossError::Candle`].
///
/// # Deviations from the released procedure
/// The released procedure has no canonical correlation.
///
/// # Parity file
/// `fixtures/parity/metrics/cca.safetensors` (the sum of its correlations); the gradient is tested by finite differences.
///
/// # Example
/// ```
/// use aeir_losses::DeepCcaLoss;
/// use candle_core::{Device, Tensor};
///
/// let x = Tensor::new(&[[0f64, 1.], [2., 0.], [1., 3.], [5., 2.], [3., 3.]], &Device::Cpu)?;
/// let turned = x.matmul(&Tensor::new(&[[0f64, -2.], [1., 1.]], &Device::Cpu)?)?;
/// let loss = DeepCcaLoss::default().forward(&x, &turned)?;
/// assert!((loss.to_scalar::<f64>()? + 2.).abs() < 1e-3); // two perfect correlations
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DeepCcaLoss {
    /// What is added to both covariances' diagonals.
    pub regularisation: f64,
}

impl Default for DeepCcaLoss {
    fn default() -> Self {
        Self { regularisation: 1e-4 }
    }
}

impl DeepCcaLoss {
    /// The negative sum of the batch's canonical correlations.
    ///
    /// # Errors
    /// See the type's documentation.
    pub fn forward(&self, x: &Tensor, y: &Tensor) -> Result<Tensor, LossError> {
        let check = Check(LOSS);
        check.positive("regularisation", self.regularisation)?;
        let (items, _) = check.matrix("x", "[B, D]", x)?;
        check.same_type("y", y, x)?;
        let (y_items, _) = check.matrix("y", "[B, E]", y)?;
        if y_items != items {
            return Err(check.shape_error("y", format!("[B, E] with B = {items}"), y));
        }
        at_least_two(check, "x", items)?;
        let (x_centred, y_centred) = (centred("x", x)?, centred("y", y)?);
        let x_whitening = self.batch_whitening("x", &x_centred)?;
        let y_whitening = self.batch_whitening("y", &y_centred)?;
        let between = scaled(product(x_centred.transpose(), y_centred.as_ref()), 1.0 / (items - 1) as f64);
        let found = Directions::new(LOSS, &x_whitening, &between, &y_whitening)?;
        let value = -found.correlations.iter().sum::<f64>();
        let found = found.correlated();
        let x_slope = slope(&x_centred, &found.x, &y_centred, &found.y, &found.correlations);
        let y_slope = slope(&y_centred, &found.y, &x_centred, &found.x, &found.correlations);
        let loss = || {
            let along = ((x * like(&x_slope, x)?)?.sum_all()? + (y * like(&y_slope, y)?)?.sum_all()?)?;
            // The value of the first, the gradient of the second.
            Tensor::new(value, x.device())?.to_dtype(x.dtype())? + (&along - along.detach())?
        };
        loss().within(LOSS)
    }

    fn batch_whitening(&self, tensor: &'static str, centred: &Mat<f64>) -> Result<Mat<f64>, LossError> {
        let over = 1.0 / (centred.nrows() - 1) as f64;
        if centred.nrows() > centred.ncols() {
            let covariance = scaled(product(centred.transpose(), centred.as_ref()), over);
            return whitening(LOSS, tensor, covariance.as_ref(), self.regularisation);
        }
        // The covariance has the eigenvalues of the items' inner products, and 0, where nothing correlates.
        let inner = scaled(product(centred.as_ref(), centred.transpose()), over);
        let (values, vectors) = eigen(LOSS, tensor, inner.as_ref())?;
        let floor = noise(&values);
        let kept: Vec<usize> = positions(&values, |value| value > floor);
        let scale = |value: f64| over.sqrt() / (value * (value + self.regularisation)).sqrt();
        let vectors = selected(&vectors, &kept, |place| values.get(place).map_or(0.0, |value| scale(*value)));
        Ok(product(centred.transpose(), vectors.as_ref()))
    }
}

/// The covariances of two views of the same items.
struct Covariances {
    /// The lower triangle only.
    xx: Mat<f64>,
    /// The lower triangle only.
    yy: Mat<f64>,
    xy: Mat<f64>,
}

impl Covariances {
    fn of_rows<T: Copy + Into<f64>>(x: Rows<'_, T>, x_mean: &[f64], y: Rows<'_, T>, y_mean: &[f64]) -> Self {
        let (features, others) = (x.columns(), y.columns());
        let mut sums = Self {
            xx: Mat::zeros(features, features),
            yy: Mat::zeros(others, others),
            xy: Mat::zeros(features, others),
        };
        let over = 1.0 / (x.items() - 1) as f64;
        for (x, y) in x.centred_blocks(x_mean).zip(y.centred_blocks(y_mean)) {
            add_square(&mut sums.xx, &x, over);
            add_square(&mut sums.yy, &y, over);
            matmul(sums.xy.as_mut(), Accum::Add, x.transpose(), y.as_ref(), over, Par::Seq);
        }
        sums
    }
}

/// Adds `factor rows^T rows` to the lower triangle of `sum`.
fn add_square(sum: &mut Mat<f64>, rows: &Mat<f64>, factor: f64) {
    triangular::matmul(
        sum.as_mut(),
        BlockStructure::TriangularLower,
        Accum::Add,
        rows.transpose(),
        BlockStructure::Rectangular,
        rows.as_ref(),
        BlockStructure::Rectangular,
        factor,
        Par::Seq,
    );
}

/// Canonical directions of both views, `[F, r]` and `[G, r]`, and their correlations, largest first.
struct Directions {
    x: Mat<f64>,
    y: Mat<f64>,
    correlations: Vec<f64>,
}

impl Directions {
    fn new(
        loss: &'static str,
        x_whitening: &Mat<f64>,
        between: &Mat<f64>,
        y_whitening: &Mat<f64>,
    ) -> Result<Self, LossError> {
        if x_whitening.ncols() == 0 || y_whitening.ncols() == 0 {
            let none = |whitening: &Mat<f64>| Mat::zeros(whitening.nrows(), 0);
            return Ok(Self { x: none(x_whitening), y: none(y_whitening), correlations: Vec::new() });
        }
        let core = product(product(x_whitening.transpose(), between.as_ref()).as_ref(), y_whitening.as_ref());
        finite(loss, "x", core.col_iter().flat_map(|column| column.iter().copied()))?;
        let decomposed = core.thin_svd().map_err(|_| LossError::NoConvergence { loss })?;
        Ok(Self {
            x: product(x_whitening.as_ref(), decomposed.U()),
            y: product(y_whitening.as_ref(), decomposed.V()),
            correlations: decomposed.S().column_vector().iter().copied().collect(),
        })
    }

    /// Those that correlate.
    fn correlated(self) -> Self {
        let count = self.correlations.iter().take_while(|c| **c > UNCORRELATED).count();
        Self {
            x: self.x.subcols(0, count).to_owned(),
            y: self.y.subcols(0, count).to_owned(),
            correlations: self.correlations.into_iter().take(count).collect(),
        }
    }
}

/// The loss's gradient for `own`, `[B, D]`: `-(other other_directions - own directions diag(correlations)) directions^T / (B - 1)`.
fn slope(
    own: &Mat<f64>,
    directions: &Mat<f64>,
    other: &Mat<f64>,
    other_directions: &Mat<f64>,
    correlations: &[f64],
) -> Mat<f64> {
    let mut difference = product(own.as_ref(), directions.as_ref());
    let towards = product(other.as_ref(), other_directions.as_ref());
    let over = 1.0 / (own.nrows() - 1) as f64;
    for ((column, towards), correlation) in
        difference.col_iter_mut().zip(towards.col_iter()).zip(correlations)
    {
        for (own, towards) in column.iter_mut().zip(towards.iter()) {
            *own = (*own * correlation - towards) * over;
        }
    }
    product(difference.as_ref(), directions.transpose())
}

/// `W` with `W^T (covariance + regularisation I) W = I`, `[F, rank]`, from the covariance's lower triangle.
fn whitening(
    loss: &'static str,
    tensor: &'static str,
    covariance: MatRef<'_, f64>,
    regularisation: f64,
) -> Result<Mat<f64>, LossError> {
    let (values, vectors) = eigen(loss, tensor, covariance)?;
    let floor = noise(&values);
    // A covariance has no negative eigenvalues: what is below 0 is rounding.
    let variances: Vec<f64> = values.iter().map(|value| value.max(0.0) + regularisation).collect();
    let kept = positions(&variances, |variance| variance > floor);
    let scale = |place: usize| variances.get(place).map_or(0.0, |variance| 1.0 / variance.sqrt());
    Ok(selected(&vectors, &kept, scale))
}

/// Eigenvalues, smallest first, and eigenvectors of a symmetric matrix, given by its lower triangle.
fn eigen(
    loss: &'static str,
    tensor: &'static str,
    symmetric: MatRef<'_, f64>,
) -> Result<(Vec<f64>, Mat<f64>), LossError> {
    finite(loss, tensor, symmetric.col_iter().flat_map(|column| column.iter().copied()))?;
    let decomposed =
        symmetric.self_adjoint_eigen(Side::Lower).map_err(|_| LossError::NoConvergence { loss })?;
    let values = decomposed.S().column_vector().iter().copied().collect();
    Ok((values, decomposed.U().to_owned()))
}

/// Eigenvalues up to it are rounding.
fn noise(values: &[f64]) -> f64 {
    values.iter().fold(0.0_f64, |most, value| most.max(*value)) * values.len() as f64 * f64::EPSILON
}

fn positions(values: &[f64], keep: impl Fn(f64) -> bool) -> Vec<usize> {
    values.iter().enumerate().filter(|(_, value)| keep(**value)).map(|(place, _)| place).collect()
}

/// The columns at `kept`, each times its factor.
fn selected(columns: &Mat<f64>, kept: &[usize], factor: impl Fn(usize) -> f64) -> Mat<f64> {
    let mut chosen = Mat::zeros(columns.nrows(), kept.len());
    for (slot, &place) in chosen.col_iter_mut().zip(kept) {
        let factor = factor(place);
        slot.iter_mut().zip(columns.col(place).iter()).for_each(|(slot, value)| *slot = value * factor);
    }
    chosen
}

fn product(left: MatRef<'_, f64>, right: MatRef<'_, f64>) -> Mat<f64> {
    let mut result = Mat::zeros(left.nrows(), right.ncols());
    matmul(result.as_mut(), Accum::Replace, left, right, 1.0, Par::Seq);
    result
}

fn scaled(mut matrix: Mat<f64>, factor: f64) -> Mat<f64> {
    matrix.col_iter_mut().for_each(|column| column.iter_mut().for_each(|value| *value *= factor));
    matrix
}

/// 1 where the largest entry of a column is positive, else -1.
fn sign(matrix: &Mat<f64>, column: usize) -> f64 {
    let largest = matrix.col(column).iter().fold(0.0_f64, |a, b| if b.abs() > a.abs() { *b } else { a });
    if largest < 0.0 { -1.0 } else { 1.0 }
}

/// The first columns, one for each factor and times it, row after row.
fn row_major(matrix: &Mat<f64>, factors: &[f64]) -> Vec<f64> {
    (matrix.row_iter())
        .flat_map(|row| row.iter().zip(factors).map(|(value, factor)| value * factor).collect::<Vec<_>>())
        .collect()
}

fn finite(
    loss: &'static str,
    tensor: &'static str,
    mut values: impl Iterator<Item = f64>,
) -> Result<(), LossError> {
    match values.find(|value| !value.is_finite()) {
        Some(got) => Err(LossError::NotFinite { loss, tensor, got }),
        None => Ok(()),
    }
}

/// A batch on the host, in f64, less its mean row.
fn centred(name: &'static str, x: &Tensor) -> Result<Mat<f64>, LossError> {
    let values = || x.detach().to_device(&Device::Cpu)?.to_dtype(DType::F64)?.to_vec2::<f64>();
    let rows = values().within(LOSS)?;
    finite(LOSS, name, rows.iter().flatten().copied())?;
    let columns = rows.first().map_or(0, Vec::len);
    let values: Vec<f64> = rows.into_iter().flatten().collect();
    let items = values.len() / columns.max(1);
    let mut matrix = MatRef::from_row_major_slice(&values, items, columns).to_owned();
    for column in matrix.col_iter_mut() {
        let mean = column.rb().iter().sum::<f64>() / items as f64;
        column.iter_mut().for_each(|value| *value -= mean);
    }
    Ok(matrix)
}

/// A matrix as a constant of the type and on the device of `x`.
fn like(matrix: &Mat<f64>, x: &Tensor) -> candle_core::Result<Tensor> {
    let values = row_major(matrix, &vec![1.0; matrix.ncols()]);
    Tensor::from_vec(values, x.shape(), &Device::Cpu)?.to_dtype(x.dtype())?.to_device(x.device())
}
