//! The CORAL loss.

use candle_core::Tensor;

use crate::error::{Check, LossError, Within};
use crate::mean_discrepancy::{at_least_two, check_sets};
use crate::rehearsal::Product;

const LOSS: &str = "CoralLoss";

/// Correlation alignment: source and target vectors should have the same covariance.
///
/// The cheapest domain loss: no critic, no parameters. Means are not compared.
///
/// # Equation
/// With `C = centred^T centred / (n - 1)`:
///
/// ```text
/// loss = |C_source - C_target|_F^2 / (4 D^2)
/// ```
///
/// Sun and Saenko, *Deep CORAL: correlation alignment for deep domain adaptation*, ECCV workshops 2016 (arXiv 1607.01719).
///
/// # Shapes
/// `source` `[N, D]`, `target` `[M, D]`. Result `[]`.
///
/// # Parameters and units
/// None.
///
/// # Numerical notes
/// Each domain is centred before the product.
///
/// # Errors
/// [`LossError::Shape`], [`LossError::ElementType`], [`LossError::TooFewRows`] (one row has no covariance), [`LossError::Candle`].
///
/// # Deviations from the released procedure
/// The released procedure has no such loss.
///
/// # Parity file
/// `fixtures/parity/losses/coral.safetensors`
///
/// # Example
/// ```
/// use aeir_losses::CoralLoss;
/// use candle_core::{Device, Tensor};
///
/// let source = Tensor::new(&[[0f64, 0.], [2., 0.]], &Device::Cpu)?; // variance 2 along the first axis
/// let target = Tensor::new(&[[7f64, 7.], [7., 7.]], &Device::Cpu)?; // none
/// let loss = CoralLoss.forward(&source, &target)?;
/// assert_eq!(loss.to_scalar::<f64>()?, 4. / 16.);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CoralLoss;

impl CoralLoss {
    /// How far the covariances of two sets of vectors are apart.
    ///
    /// # Errors
    /// See the type's documentation.
    pub fn forward(&self, source: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        let check = Check(LOSS);
        let (source_rows, target_rows) = check_sets(check, source, target)?;
        at_least_two(check, "source", source_rows)?;
        at_least_two(check, "target", target_rows)?;
        let loss = || {
            let dimension = source.dim(1)? as f64;
            let difference = (covariance(source)? - covariance(target)?)?;
            difference.sqr()?.sum_all()? / (4.0 * dimension * dimension)
        };
        loss().within(LOSS)
    }
}

fn covariance(x: &Tensor) -> candle_core::Result<Tensor> {
    let centred = x.broadcast_sub(&x.mean_keepdim(0)?)?;
    centred.t()?.contiguous()?.product(&centred)? / (x.dim(0)? as f64 - 1.0)
}
