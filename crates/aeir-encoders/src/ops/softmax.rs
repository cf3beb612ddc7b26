//! Softmax of each row.

use candle_core::{CpuStorage, CustomOp1, D, Layout, Shape, Tensor};
use rayon::prelude::*;

use crate::error::Result;
use crate::product::{held_values, values};
use crate::rehearsal::is_fused;
use crate::vector::{exp, maximum, sum, sum_of, vectorised};

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
    if is_fused(&[x]) && x.elem_count() > 0 {
        return Ok(x.contiguous()?.apply_op1(Softmax)?);
    }
    #[cfg(feature = "cuda")]
    if aeir_kernels::takes(&[x]) && x.rank() > 0 {
        return Ok(aeir_kernels::softmax(x)?);
    }
    composed(x)
}

/// Scales a row of scores by `scale` and turns it into weights; zeros where all are minus infinity.
#[inline(always)]
pub(super) fn softmax_in_place(row: &mut [f32], scale: f32) {
    /// Where the exponential is next to nothing.
    const LEAST: f32 = -87.0;
    row.iter_mut().for_each(|value| *value *= scale);
    let largest = maximum(row);
    if largest == f32::NEG_INFINITY {
        row.fill(0.0);
        return;
    }
    // Our exponential ends above zero.
    row.iter_mut().for_each(|value| {
        let below = *value - largest;
        *value = if below < LEAST { 0.0 } else { exp(below) };
    });
    let factor = 1.0 / sum(row);
    row.iter_mut().for_each(|value| *value *= factor);
}

/// Turns the gradient of a row of weights into that of the scaled scores.
#[inline(always)]
pub(super) fn softmax_backward(gradient: &mut [f32], weights: &[f32]) {
    let mean = sum_of(gradient, weights, |gradient, weight| gradient * weight);
    gradient.iter_mut().zip(weights).for_each(|(gradient, weight)| *gradient = weight * (*gradient - mean));
}

struct Softmax;

/// Rows of a task.
const ROWS: usize = 32;

impl CustomOp1 for Softmax {
    fn name(&self) -> &'static str {
        "softmax"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let columns = layout.shape().dims().last().copied().unwrap_or(1);
        let mut out = values(x, layout)?.to_vec();
        out.par_chunks_mut(ROWS * columns).for_each(|rows| {
            vectorised(|| rows.chunks_mut(columns).for_each(|row| softmax_in_place(row, 1.0)));
        });
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, result: &Tensor, gradient: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let columns = x.dim(D::Minus1)?;
        let gradient = gradient.contiguous()?;
        let (gradient_storage, gradient_layout) = gradient.storage_and_layout();
        let (storage, layout) = result.storage_and_layout();
        let weights = held_values(&storage, layout)?;
        let mut out = held_values(&gradient_storage, gradient_layout)?.to_vec();
        out.par_chunks_mut(ROWS * columns).zip(weights.par_chunks(ROWS * columns)).for_each(
            |(gradient, weights)| {
                let rows = gradient.chunks_mut(columns).zip(weights.chunks(columns));
                vectorised(|| rows.for_each(|(gradient, weights)| softmax_backward(gradient, weights)));
            },
        );
        Tensor::from_vec(out, x.shape(), x.device()).map(Some)
    }
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
