//! L2 normalisation that keeps its gradient finite.

use candle_core::{D, Tensor};

use crate::error::Result;

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
