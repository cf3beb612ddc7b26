//! L2 normalisation that keeps its gradient finite.

use candle_core::{D, Tensor};
use serde::{Deserialize, Serialize};

use crate::error::Result;

/// How a row becomes a unit vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UnitNorm {
    /// `x / sqrt(sum x^2 + 1e-12)`: [`l2_normalise`].
    #[default]
    Smooth,
    /// `x / (sqrt(sum x^2) + 1e-8)`, the released procedure's: [`l2_normalise_released`].
    Released,
}

impl UnitNorm {
    /// Scales each row to unit length.
    ///
    /// # Shapes
    /// `x [.., D]` to `[.., D]`.
    ///
    /// # Errors
    /// [`crate::EncoderError::Tensor`] from candle.
    pub fn apply(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Smooth => l2_normalise(x),
            Self::Released => l2_normalise_released(x),
        }
    }
}

/// Added under the root. Small against the squared norm of any real feature, large enough that its root is a
/// normal f32.
pub const L2_EPSILON: f64 = 1e-12;

/// Scales each row to unit length.
///
/// Equation: `y = x / sqrt(sum x^2 + eps)`, eps = [`L2_EPSILON`]. The root is never taken at zero, so a row of zeros stays zero and
/// its gradient is finite.
///
/// # Shapes
/// `x [.., D]` to `[.., D]`.
///
/// # Errors
/// [`crate::EncoderError::Tensor`] from candle, such as for a scalar.
pub fn l2_normalise(x: &Tensor) -> Result<Tensor> {
    let norm = (x.sqr()?.sum_keepdim(D::Minus1)? + L2_EPSILON)?.sqrt()?;
    Ok(x.broadcast_div(&norm)?)
}

/// The released procedure's form of [`l2_normalise`], with a zero gradient at rows of zeros.
///
/// Equation: `y = x / (sqrt(sum x^2) + 1e-8)`. At a row of zeros the root has no derivative; such a row stays zero and
/// passes none.
///
/// # Shapes
/// `x [.., D]` to `[.., D]`.
///
/// # Errors
/// [`crate::EncoderError::Tensor`] from candle, such as for a scalar.
pub fn l2_normalise_released(x: &Tensor) -> Result<Tensor> {
    let squares = x.sqr()?.sum_keepdim(D::Minus1)?;
    let is_zero = squares.eq(0f64)?;
    // The root is taken at 1 where it would be taken at 0.
    let norm = is_zero.where_cond(&squares.ones_like()?, &squares)?.sqrt()?;
    let y = x.broadcast_div(&(norm + 1e-8)?)?;
    Ok(is_zero.broadcast_as(x.dims())?.where_cond(&x.zeros_like()?, &y)?)
}
