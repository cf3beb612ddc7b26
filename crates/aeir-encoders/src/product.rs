//! Matrix products of slices on all threads, with the same bits on any number of them.

use candle_core::{CpuStorage, Layout, Result, Storage, bail};
use gemm::{Parallelism, gemm};
use rayon::prelude::*;

use crate::rehearsal;

/// Rows of the result that one task computes, about. Fixed, since the order of summation may depend on it.
const BLOCK: usize = 256;

/// A matrix in a slice.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Matrix<'a> {
    values: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// Row-major values without gaps.
    pub(crate) fn new(values: &'a [f32], rows: usize, columns: usize) -> Result<Self> {
        if Some(values.len()) != rows.checked_mul(columns) {
            bail!("matrix: expected {rows} x {columns} values, got {}", values.len());
        }
        Ok(Self { values, rows, columns, row_stride: columns, column_stride: 1 })
    }

    pub(crate) fn transposed(self) -> Self {
        let Self { values, rows, columns, row_stride, column_stride } = self;
        Self { values, rows: columns, columns: rows, row_stride: column_stride, column_stride: row_stride }
    }

    /// The rows from `first` on, `count` of them or as many as there are.
    pub(crate) fn rows(self, first: usize, count: usize) -> Self {
        let first = first.min(self.rows);
        let rows = count.min(self.rows - first);
        let start = (first * self.row_stride).min(self.values.len());
        Self { values: self.values.get(start..).unwrap_or_default(), rows, ..self }
    }

    /// Whether every element lies in the slice.
    fn is_inside(&self) -> bool {
        if self.rows == 0 || self.columns == 0 {
            return true;
        }
        (self.rows - 1) * self.row_stride + (self.columns - 1) * self.column_stride < self.values.len()
    }
}

/// `out [m, n] = left [m, k] right [k, n]`, row-major.
pub(crate) fn multiply(left: Matrix<'_>, right: Matrix<'_>, out: &mut [f32]) -> Result<()> {
    let (m, n) = (left.rows, right.columns);
    if left.columns != right.rows || Some(out.len()) != m.checked_mul(n) {
        bail!("product: {m} x {} by {} x {n} into {} values", left.columns, right.rows, out.len());
    }
    if out.is_empty() {
        return Ok(());
    }
    // An even number of equal blocks: two threads get the same share.
    let block = m.div_ceil(2 * m.div_ceil(2 * BLOCK));
    let blocks = out.par_chunks_mut(block * n).enumerate();
    blocks.try_for_each(|(index, out)| serial(left.rows(index * block, block), right, out))
}

fn serial(left: Matrix<'_>, right: Matrix<'_>, out: &mut [f32]) -> Result<()> {
    let (m, n, k) = (left.rows, right.columns, right.rows);
    if !left.is_inside() || !right.is_inside() || left.columns != k || out.len() != m * n {
        bail!("product: a matrix of {m} x {k} or {k} x {n} is larger than its values");
    }
    // SAFETY: as was just checked, every element that the strides reach lies in its slice; `out` is borrowed exclusively.
    unsafe {
        gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            n as isize,
            false,
            left.values.as_ptr(),
            left.column_stride as isize,
            left.row_stride as isize,
            right.values.as_ptr(),
            right.column_stride as isize,
            right.row_stride as isize,
            0.0,
            1.0,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
    Ok(())
}

/// The sum of each column of row-major values, the rows in order.
pub(crate) fn column_sums(values: &[f32], columns: usize) -> Vec<f32> {
    const WIDTH: usize = 256;
    let mut sums = vec![0f32; columns];
    sums.par_chunks_mut(WIDTH).enumerate().for_each(|(index, sums)| {
        for row in values.chunks_exact(columns.max(1)) {
            let row = row.get(index * WIDTH..).unwrap_or_default();
            sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
        }
    });
    sums
}

/// The values of a contiguous f32 tensor on the CPU, for an operation that only the CPU has.
pub(crate) fn values<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    if rehearsal::current().is_some() {
        bail!("an operation that only the CPU has was called where a GPU would compute");
    }
    let all = storage.as_slice::<f32>()?;
    match layout.contiguous_offsets().and_then(|(start, end)| all.get(start..end)) {
        Some(values) => Ok(values),
        None => bail!("expected a contiguous tensor, got strides {:?}", layout.stride()),
    }
}

/// [`values`] of a tensor whose storage is held.
pub(crate) fn held_values<'a>(storage: &'a Storage, layout: &Layout) -> Result<&'a [f32]> {
    match storage {
        Storage::Cpu(storage) => values(storage, layout),
        _ => bail!("expected a tensor on the CPU"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|index| ((index + seed) * 7919 % 101) as f32 / 50.0 - 1.0).collect()
    }

    #[test]
    fn equals_the_plain_triple_loop_in_every_layout() {
        for (m, n, k) in [(1, 1, 1), (3, 5, 7), (600, 3, 4), (257, 19, 33)] {
            let (a, b) = (noise(m * k, 1), noise(k * n, 2));
            let transpose = |x: &[f32], rows: usize, columns: usize| -> Vec<f32> {
                (0..columns * rows).map(|index| x[index % rows * columns + index / rows]).collect()
            };
            let (a_transposed, b_transposed) = (transpose(&a, m, k), transpose(&b, k, n));
            let lefts =
                [Matrix::new(&a, m, k).unwrap(), Matrix::new(&a_transposed, k, m).unwrap().transposed()];
            let rights =
                [Matrix::new(&b, k, n).unwrap(), Matrix::new(&b_transposed, n, k).unwrap().transposed()];
            for left in lefts {
                for right in rights {
                    let mut out = vec![f32::NAN; m * n];
                    multiply(left, right, &mut out).unwrap();
                    for (index, got) in out.iter().enumerate() {
                        let expected: f32 = (0..k).map(|i| a[index / n * k + i] * b[i * n + index % n]).sum();
                        assert!((got - expected).abs() < 1e-4, "{m} {n} {k}");
                    }
                }
            }
        }
        let x = noise(6, 1);
        let (x, mut out) = (Matrix::new(&x, 2, 3).unwrap(), [0.0; 4]);
        assert!(multiply(x, x, &mut out).is_err());
        assert!(multiply(x, x.transposed(), &mut out[..3]).is_err());
        assert!(Matrix::new(&[0.0], 2, 1).is_err());
    }

    #[test]
    fn columns_are_summed() {
        let x = noise(3 * 300, 1);
        let sums = column_sums(&x, 300);
        assert!((0..300).all(|column| sums[column] == x[column] + x[300 + column] + x[600 + column]));
    }
}
