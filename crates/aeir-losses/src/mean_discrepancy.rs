//! The maximum mean discrepancy.

use candle_core::Tensor;

use crate::error::{Check, LossError, Within};
use crate::stable::{off_diagonal, squared_distances};

const LOSS: &str = "MaximumMeanDiscrepancy";
/// Below this mean squared distance all rows count as one point.
const COINCIDENT: f64 = 1e-12;

/// The widths of the Gaussian kernels, as squared standard deviations.
#[derive(Debug, Clone, PartialEq)]
pub enum Bandwidths {
    /// These, in squared units of the vectors.
    Fixed(Vec<f64>),
    /// These, times the batch's mean squared distance (a constant in the gradient): independent of the vectors' scale.
    Scaled(Vec<f64>),
}

/// How the kernel means are estimated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Estimator {
    /// With each row's kernel with itself: never negative (up to rounding), 0 for equal sets.
    #[default]
    Biased,
    /// Without: right on average, can be negative, needs two rows a domain.
    Unbiased,
}

/// Maximum mean discrepancy: the distance of two sets of vectors in a kernel space, with several Gaussian kernels added.
///
/// A domain loss without a critic. The two sets may differ in size.
///
/// # Equation
/// With `k(u, v) = sum_l exp(-|u - v|^2 / (2 sigma_l^2))` (a sum, not a mean):
///
/// ```text
/// loss = mean k(source, source') + mean k(target, target') - 2 mean k(source, target)
/// ```
///
/// Unbiased: the first two means leave out the pairs of a row with itself. Gretton et al., *A kernel two-sample test*, JMLR
/// 13 (2012); several kernels for adaptation: Long et al., *Learning transferable features with deep adaptation networks*, ICML 2015.
///
/// # Shapes
/// `source` `[N, D]`, `target` `[M, D]`. Result `[]`.
///
/// # Parameters and units
/// `bandwidths`: squared standard deviations, fixed, or as multiples of the mean squared distance over all ordered pairs of
/// distinct rows of both sets together (default: 0.25, 0.5, 1, 2, 4 times that). `estimator`.
///
/// # Numerical notes
/// Distances come from one matmul of centred rows and are cut at 0. Where all rows coincide (mean squared distance below
/// 1e-12) scaled bandwidths use 1 in its place: the loss is 0, not 0/0.
///
/// # Errors
/// [`LossError::Shape`], [`LossError::ElementType`], [`LossError::Parameter`] (`bandwidths`), [`LossError::TooFewRows`] (unbiased,
/// one row), [`LossError::Candle`].
///
/// # Deviations from the released procedure
/// The released procedure has no such loss.
///
/// # Parity file
/// `fixtures/parity/losses/mmd.safetensors`
///
/// # Example
/// ```
/// use aeir_losses::MaximumMeanDiscrepancy;
/// use candle_core::{Device, Tensor};
///
/// let source = Tensor::new(&[[0f64, 0.], [1., 0.], [0., 1.]], &Device::Cpu)?;
/// let target = (&source + 5.)?;
/// let loss = MaximumMeanDiscrepancy::default();
/// let apart = loss.forward(&source, &target)?.to_scalar::<f64>()?;
/// let same = loss.forward(&source, &source)?.to_scalar::<f64>()?;
/// assert!(apart > 1. && same.abs() < 1e-12);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct MaximumMeanDiscrepancy {
    /// The widths of the kernels.
    pub bandwidths: Bandwidths,
    /// How the kernel means are estimated.
    pub estimator: Estimator,
}

impl Default for MaximumMeanDiscrepancy {
    fn default() -> Self {
        Self { bandwidths: Bandwidths::Scaled(vec![0.25, 0.5, 1.0, 2.0, 4.0]), estimator: Estimator::Biased }
    }
}

impl MaximumMeanDiscrepancy {
    /// The discrepancy of two sets of vectors.
    ///
    /// # Errors
    /// See the type's documentation.
    pub fn forward(&self, source: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        self.check(source, target)?;
        self.discrepancy(source, target).within(LOSS)
    }

    fn check(&self, source: &Tensor, target: &Tensor) -> Result<(), LossError> {
        let check = Check(LOSS);
        let (source_rows, target_rows) = check_sets(check, source, target)?;
        let (Bandwidths::Fixed(values) | Bandwidths::Scaled(values)) = &self.bandwidths;
        check.parameter(!values.is_empty(), "bandwidths", "at least one", 0.0)?;
        for &value in values {
            check.positive("bandwidths", value)?;
        }
        if self.estimator == Estimator::Biased {
            return Ok(());
        }
        at_least_two(check, "source", source_rows)?;
        at_least_two(check, "target", target_rows)
    }

    fn discrepancy(&self, source: &Tensor, target: &Tensor) -> candle_core::Result<Tensor> {
        let within_source = distances_within(source)?;
        let within_target = distances_within(target)?;
        let between = squared_distances(source, target)?;
        let scale = match &self.bandwidths {
            Bandwidths::Fixed(_) => None,
            Bandwidths::Scaled(_) => Some(mean_distance(&within_source, &within_target, &between)?),
        };
        let kernel = |distances: &Tensor| self.kernel(distances, scale.as_ref());
        let source_mean = self.mean_within(&kernel(&within_source)?)?;
        let target_mean = self.mean_within(&kernel(&within_target)?)?;
        (source_mean + target_mean)? - (kernel(&between)?.mean_all()? * 2.0)?
    }

    fn kernel(&self, distances: &Tensor, scale: Option<&Tensor>) -> candle_core::Result<Tensor> {
        let distances = match scale {
            Some(scale) => distances.broadcast_div(scale)?,
            None => distances.clone(),
        };
        let (Bandwidths::Fixed(values) | Bandwidths::Scaled(values)) = &self.bandwidths;
        let mut sum = distances.zeros_like()?;
        for value in values {
            sum = (sum + (&distances * (-0.5 / value))?.exp()?)?;
        }
        Ok(sum)
    }

    fn mean_within(&self, kernel: &Tensor) -> candle_core::Result<Tensor> {
        if self.estimator == Estimator::Biased {
            return kernel.mean_all();
        }
        let rows = kernel.dim(0)?;
        let others = (kernel * off_diagonal(rows, kernel.dtype(), kernel.device())?)?.sum_all()?;
        others / (rows * (rows - 1)) as f64
    }
}

/// Distances within one set, exactly 0 on the diagonal.
fn distances_within(x: &Tensor) -> candle_core::Result<Tensor> {
    squared_distances(x, x)? * off_diagonal(x.dim(0)?, x.dtype(), x.device())?
}

/// The mean over ordered pairs of distinct rows of both sets together, as a constant.
fn mean_distance(source: &Tensor, target: &Tensor, between: &Tensor) -> candle_core::Result<Tensor> {
    let rows = source.dim(0)? + target.dim(0)?;
    let sum =
        ((source.detach().sum_all()? + target.detach().sum_all()?)? + (between.detach().sum_all()? * 2.0)?)?;
    let mean = (sum / (rows * (rows - 1)) as f64)?;
    mean.gt(COINCIDENT)?.where_cond(&mean, &mean.ones_like()?)
}

/// Two sets of vectors of one dimension and type: their numbers of rows.
pub(crate) fn check_sets(
    check: Check,
    source: &Tensor,
    target: &Tensor,
) -> Result<(usize, usize), LossError> {
    let (source_rows, dimension) = check.matrix("source", "[N, D]", source)?;
    check.same_type("target", target, source)?;
    let (target_rows, target_dimension) = check.matrix("target", "[M, D]", target)?;
    if target_dimension == dimension {
        return Ok((source_rows, target_rows));
    }
    Err(check.shape_error("target", format!("[M, D] with D = {dimension}"), target))
}

pub(crate) fn at_least_two(check: Check, tensor: &'static str, got: usize) -> Result<(), LossError> {
    if got >= 2 { Ok(()) } else { Err(LossError::TooFewRows { loss: check.0, tensor, expected: 2, got }) }
}
