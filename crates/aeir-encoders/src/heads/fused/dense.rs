//! Matrix products and row operations on plain slices, one thread each: the callers split the work.

use gemm::Parallelism;
use pulp::Arch;

use crate::normalise::{L2_EPSILON, UnitNorm};

/// Added to the norm in the released form.
const RELEASED_EPSILON: f32 = 1e-8;

/// Numbers that are summed side by side, in an order that is the same on every machine.
const LANES: usize = 16;

/// A matrix inside a slice.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a> {
    data: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// Rows one after the other.
    pub(super) fn new(data: &'a [f32], rows: usize, columns: usize) -> Self {
        Self::strided(data, rows, columns, columns)
    }

    /// Rows that start `stride` apart.
    pub(super) fn strided(data: &'a [f32], rows: usize, columns: usize, stride: usize) -> Self {
        Self { data, rows, columns, row_stride: stride, column_stride: 1 }
    }

    pub(super) fn transposed(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }

    fn fits(&self) -> bool {
        let last = (self.rows.max(1) - 1) * self.row_stride + (self.columns.max(1) - 1) * self.column_stride;
        self.rows * self.columns == 0 || last < self.data.len()
    }
}

/// `out = left right`, or `out += left right`; the rows of `out` start `stride` apart.
///
/// Sizes come from shapes that were checked; any that do not fit would give NaN, never a wrong score.
pub(super) fn multiply(left: Matrix<'_>, right: Matrix<'_>, out: &mut [f32], stride: usize, add: bool) {
    let (rows, columns, inner) = (left.rows, right.columns, left.columns);
    if rows * columns == 0 {
        return;
    }
    let last = (rows - 1) * stride + columns - 1;
    if inner != right.rows || !left.fits() || !right.fits() || last >= out.len() || columns > stride {
        debug_assert!(false, "matrix product of the wrong size");
        out.fill(f32::NAN);
        return;
    }
    // SAFETY: the three rectangles lie inside their slices, as just checked, and `out` is borrowed alone.
    unsafe {
        gemm::gemm(
            rows,
            columns,
            inner,
            out.as_mut_ptr(),
            1,
            stride as isize,
            add,
            left.data.as_ptr(),
            left.column_stride as isize,
            left.row_stride as isize,
            right.data.as_ptr(),
            right.column_stride as isize,
            right.row_stride as isize,
            1.0_f32,
            1.0_f32,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

/// Runs loops with the widest instructions of this machine. What is called inside must be `#[inline(always)]`.
pub(in crate::heads) fn vectorised<R>(body: impl FnOnce() -> R) -> R {
    Arch::new().dispatch(body)
}

#[inline(always)]
pub(in crate::heads) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (a, b) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    let mut sums = [0.0; LANES];
    for (a, b) in a.0.iter().zip(b.0) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    let rest: f32 = a.1.iter().zip(b.1).map(|(a, b)| a * b).sum();
    fold(sums) + rest
}

#[inline(always)]
fn fold(mut sums: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            sums[lane] += sums[lane + width];
        }
        width /= 2;
    }
    sums[0]
}

/// `out += factor x`.
#[inline(always)]
pub(in crate::heads) fn add_scaled(out: &mut [f32], factor: f32, x: &[f32]) {
    for (out, x) in out.iter_mut().zip(x) {
        *out += factor * x;
    }
}

/// What a vector of this squared length is divided by.
#[inline(always)]
pub(super) fn denominator(norm: UnitNorm, squares: f32) -> f32 {
    match norm {
        UnitNorm::Smooth => (squares + L2_EPSILON as f32).sqrt(),
        UnitNorm::Released => squares.sqrt() + RELEASED_EPSILON,
    }
}

/// The factor of `y (y . g)` in [`unit_backward`], and the one of the whole.
#[inline(always)]
pub(super) fn backward_factors(norm: UnitNorm, denominator: f32) -> (f32, f32) {
    match norm {
        UnitNorm::Smooth => (1.0, 1.0 / denominator),
        UnitNorm::Released => {
            let length = denominator - RELEASED_EPSILON;
            // A vector of zeros passes no gradient.
            if length > 0.0 { (denominator / length, 1.0 / denominator) } else { (0.0, 0.0) }
        }
    }
}

/// The gradient of `x` in `y = x / denominator(x)` from that of `y`, in place.
#[inline(always)]
pub(super) fn unit_backward(norm: UnitNorm, gradient: &mut [f32], y: &[f32], denominator: f32) {
    let (along, all) = backward_factors(norm, denominator);
    let along = along * dot(y, gradient);
    for (gradient, y) in gradient.iter_mut().zip(y) {
        *gradient = (*gradient - along * y) * all;
    }
}

/// e^x within 2 units in the last place, for x in [-87, 88]; beyond that it stays at the ends.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    // Adding and subtracting 1.5 2^23 rounds to an integer, which is then found in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let x = x.clamp(-87.0, 88.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let power = shifted - ROUND;
    let x = x - power * LN2_HIGH - power * LN2_LOW;
    let mut series = 1.0 / 5040.0;
    series = series * x + 1.0 / 720.0;
    series = series * x + 1.0 / 120.0;
    series = series * x + 1.0 / 24.0;
    series = series * x + 1.0 / 6.0;
    series = series * x + 0.5;
    series = series * x + 1.0;
    series = series * x + 1.0;
    series * f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3f80_0000))
}

/// 1 / (1 + e^-x).
#[inline(always)]
pub(super) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_close_and_stays_finite() {
        for step in -8700..=8800 {
            let x = step as f32 / 100.0;
            let expected = f64::from(x).exp();
            assert!((f64::from(exp(x)) - expected).abs() < 3e-7 * expected, "{x}");
        }
        assert!(exp(-1e9) > 0.0 && exp(1e9).is_finite());
    }

    #[test]
    fn products_equal_plain_loops() {
        let noise = |count: usize| -> Vec<f32> { (0..count).map(|i| (i as f32 * 0.7).sin()).collect() };
        for (rows, inner, columns) in [(1, 1, 1), (3, 5, 2), (17, 36, 40), (64, 128, 9)] {
            let (left, right) = (noise(rows * inner), noise(columns * inner));
            for add in [false, true] {
                let mut out = vec![1.0; rows * (columns + 2)];
                let right = Matrix::new(&right, columns, inner).transposed();
                multiply(Matrix::new(&left, rows, inner), right, &mut out, columns + 2, add);
                for (row, values) in out.chunks_exact(columns + 2).enumerate() {
                    assert_eq!(values[columns..], [1.0; 2]);
                    for (column, value) in values.iter().take(columns).enumerate() {
                        let sum: f64 = (0..inner)
                            .map(|k| {
                                f64::from(left[row * inner + k])
                                    * f64::from(noise(columns * inner)[column * inner + k])
                            })
                            .sum();
                        assert!((f64::from(*value) - sum - if add { 1.0 } else { 0.0 }).abs() < 1e-4);
                    }
                }
            }
        }
    }
}
