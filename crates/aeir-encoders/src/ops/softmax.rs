//! Softmax of each row.

use candle_core::{D, Tensor};

use crate::error::Result;

/// Scales `exp(x)` of each row to a sum of one.
///
/// Equation: `y = exp(x - m) / sum exp(x - m)`, `m` the row's largest value. A row that is minus infinity throughout (all of it
/// masked) gives zeros and passes none of its gradient.
///
/// # Shapes
/// `x [.., D]` to `[.., D]`.
///
/// # Errors
/// [`crate::EncoderError::Tensor`] from candle, such as for a scalar.
pub fn softmax(x: &Tensor) -> Result<Tensor> {
    composed(x)
}

fn composed(x: &Tensor) -> Result<Tensor> {
    // The maximum cancels, and passes no gradient. A masked row is shifted by nothing.
    let maximum = x.detach().max_keepdim(D::Minus1)?;
    let maximum = maximum.eq(f64::NEG_INFINITY)?.where_cond(&maximum.zeros_like()?, &maximum)?;
    let exponentials = x.broadcast_sub(&maximum)?.exp()?;
    let sum = exponentials.sum_keepdim(D::Minus1)?;
    let is_masked = sum.eq(0f64)?.to_dtype(x.dtype())?;
    Ok(exponentials.broadcast_div(&(sum + is_masked)?)?)
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Var};

    use super::*;
    use crate::ops::differences::{assert_gradients, flat, noise};

    #[test]
    fn gradients_by_finite_differences() {
        assert_gradients("softmax", &[noise(1, &[2, 3, 9])], |inputs| softmax(&inputs[0]));
    }

    #[test]
    fn large_values_and_masked_rows_stay_finite() {
        let infinity = f32::NEG_INFINITY;
        let rows = [[1e30f32, 1e30, 0.0], [0.0, infinity, 0.0], [infinity; 3]];
        for dtype in [DType::F32, DType::F64] {
            let x = Tensor::new(&rows, &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
            let x = Var::from_tensor(&x).unwrap();
            let y = softmax(&x).unwrap();
            assert_eq!(flat(&y), [0.5, 0.5, 0.0, 0.5, 0.0, 0.5, 0.0, 0.0, 0.0]);
            let gradient = flat(y.sqr().unwrap().sum_all().unwrap().backward().unwrap().get(&x).unwrap());
            assert!(gradient.iter().all(|value| value.is_finite()), "{gradient:?}");
        }
    }
}
