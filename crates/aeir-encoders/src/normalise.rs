//! L2 normalisation that keeps its gradient finite.
//!
//! On the CPU in f32, and on NVIDIA cards, it is one operation with its own backward pass; elsewhere it is composed of candle's.

use candle_core::{CpuStorage, CustomOp1, D, Layout, Shape, Tensor, bail};
use pulp::Arch;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::product::{held_values, values};
use crate::rehearsal::is_fused;

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

#[cfg(feature = "cuda")]
impl UnitNorm {
    /// As kernels for cards name it.
    pub(crate) fn of_kernels(self) -> aeir_kernels::UnitLength {
        match self {
            Self::Smooth => aeir_kernels::UnitLength::Smooth,
            Self::Released => aeir_kernels::UnitLength::Released,
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
    if let Some(y) = fused(x, UnitNorm::Smooth)? {
        return Ok(y);
    }
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
    if let Some(y) = fused(x, UnitNorm::Released)? {
        return Ok(y);
    }
    let squares = x.sqr()?.sum_keepdim(D::Minus1)?;
    let is_zero = squares.eq(0f64)?;
    // The root is taken at 1 where it would be taken at 0.
    let norm = is_zero.where_cond(&squares.ones_like()?, &squares)?.sqrt()?;
    let y = x.broadcast_div(&(norm + 1e-8)?)?;
    Ok(is_zero.broadcast_as(x.dims())?.where_cond(&x.zeros_like()?, &y)?)
}

/// Added to the norm in the released form.
const RELEASED_EPSILON: f32 = 1e-8;
/// Rows that one task scales.
const ROWS: usize = 32;

/// The operation, where it can take `x`.
fn fused(x: &Tensor, norm: UnitNorm) -> Result<Option<Tensor>> {
    #[cfg(feature = "cuda")]
    if aeir_kernels::takes(&[x]) && x.rank() > 0 {
        return Ok(Some(aeir_kernels::unit_rows(x, norm.of_kernels())?));
    }
    let fits = is_fused(&[x]) && x.rank() > 0 && x.elem_count() > 0;
    Ok(if fits { Some(x.contiguous()?.apply_op1(UnitRows(norm))?) } else { None })
}

/// The scaling of one row after the other.
pub(crate) struct UnitRows(pub(crate) UnitNorm);

impl UnitRows {
    /// What a row is divided by.
    #[inline(always)]
    pub(crate) fn denominator(&self, row: &[f32]) -> f32 {
        let squares = dot(row, row);
        match self.0 {
            UnitNorm::Smooth => (squares + L2_EPSILON as f32).sqrt(),
            UnitNorm::Released => squares.sqrt() + RELEASED_EPSILON,
        }
    }

    /// With `y = x / d`, the gradient is `a g - b x`: a and b from `x . g` and d.
    #[inline(always)]
    fn backward_factors(&self, along: f32, denominator: f32) -> (f32, f32) {
        match self.0 {
            UnitNorm::Smooth => (1.0 / denominator, along / denominator.powi(3)),
            UnitNorm::Released => {
                let length = denominator - RELEASED_EPSILON;
                // A row of zeros passes no gradient.
                if length > 0.0 {
                    (1.0 / denominator, along / (length * denominator * denominator))
                } else {
                    (0.0, 0.0)
                }
            }
        }
    }

    /// Turns a row into the gradient there, from that of the unit row.
    #[inline(always)]
    pub(crate) fn backward(&self, row: &mut [f32], upstream: &[f32]) {
        let (all, along) = self.backward_factors(dot(row, upstream), self.denominator(row));
        row.iter_mut().zip(upstream).for_each(|(x, upstream)| *x = all * upstream - along * *x);
    }
}

/// In sixteen sums side by side: the order is the same on every machine.
#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<16>(), b.as_chunks::<16>());
    let mut sums = [0f32; 16];
    for (a, b) in a.iter().zip(b) {
        for lane in 0..16 {
            sums[lane] += a[lane] * b[lane];
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}

impl CustomOp1 for UnitRows {
    fn name(&self) -> &'static str {
        "unit-rows"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let x = values(x, layout)?;
        let width = layout.dims().last().copied().unwrap_or(1).max(1);
        let mut out = vec![0f32; x.len()];
        let tasks = out.par_chunks_mut(ROWS * width).zip(x.par_chunks(ROWS * width));
        tasks.for_each(|(out, x)| {
            Arch::new().dispatch(|| {
                for (out, x) in out.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
                    let denominator = self.denominator(x);
                    out.iter_mut().zip(x).for_each(|(out, x)| *out = x / denominator);
                }
            });
        });
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _result: &Tensor, gradient: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let gradient = gradient.contiguous()?;
        let (storage, layout) = x.storage_and_layout();
        let (gradient_storage, gradient_layout) = gradient.storage_and_layout();
        let (all, upstream) =
            (held_values(&storage, layout)?, held_values(&gradient_storage, gradient_layout)?);
        if all.len() != upstream.len() {
            bail!("unit rows: {} gradients for {} values", upstream.len(), all.len());
        }
        let width = layout.dims().last().copied().unwrap_or(1).max(1);
        let mut out = vec![0f32; all.len()];
        let inputs = all.par_chunks(ROWS * width).zip(upstream.par_chunks(ROWS * width));
        out.par_chunks_mut(ROWS * width).zip(inputs).for_each(|(out, (x, upstream))| {
            Arch::new().dispatch(|| {
                let rows = x.chunks_exact(width).zip(upstream.chunks_exact(width));
                for (out, (x, upstream)) in out.chunks_exact_mut(width).zip(rows) {
                    let (all, along) = self.backward_factors(dot(x, upstream), self.denominator(x));
                    for (out, (x, upstream)) in out.iter_mut().zip(x.iter().zip(upstream)) {
                        *out = all * upstream - along * x;
                    }
                }
            });
        });
        Ok(Some(Tensor::from_vec(out, x.shape(), x.device())?))
    }
}
