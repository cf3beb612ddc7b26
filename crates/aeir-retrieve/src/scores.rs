//! The score matrix of two sets of embeddings.

use rayon::prelude::*;

use crate::tiles::{self, Destination, TILE_COLUMNS, TILE_ROWS};
use crate::{Error, Matrix, Result};

/// Dot products of every query with every gallery item; cosines where both are L2-normalised.
///
/// Equation: `scores[i, j] = sum_d queries[i, d] * gallery[j, d]`.
///
/// Shapes: queries `[N, D]`, gallery `[M, D]`, result `[N, M]`. Work is spread over the current rayon pool in
/// tiles. The number for a pair of rows does not depend on where they stand, nor on the number of threads, so
/// equal embeddings have equal scores.
///
/// # Errors
/// [`Error::Shape`] where the two dimensions differ.
///
/// # Example
/// ```
/// use aeir_retrieve::{Matrix, similarity};
/// let images = Matrix::from_rows(&[[1.0, 0.0], [0.0, 1.0]])?;
/// let sentences = Matrix::from_rows(&[[0.6, 0.8]])?;
/// assert_eq!(similarity(&images, &sentences)?.values(), &[0.6, 0.8]);
/// # Ok::<(), aeir_retrieve::Error>(())
/// ```
pub fn similarity(queries: &Matrix, gallery: &Matrix) -> Result<Matrix> {
    let dimension = same_dimension(queries, gallery)?;
    let (rows, columns) = (queries.rows(), gallery.rows());
    let mut values = vec![0.0_f32; rows.saturating_mul(columns)];
    if dimension > 0 && !values.is_empty() {
        let whole = Destination { pointer: values.as_mut_ptr(), stride: columns };
        tile_grid(rows, columns).into_par_iter().for_each(|(first_row, first_column)| {
            let left = block(queries, first_row, TILE_ROWS);
            let right = block(gallery, first_column, TILE_COLUMNS);
            // SAFETY: the grid's rectangles lie inside `values` and do not overlap; `values` outlives the loop.
            unsafe {
                let pointer = { whole }.pointer.add(first_row * columns + first_column);
                tiles::multiply_into(left, right, dimension, Destination { pointer, stride: columns });
            }
        });
    }
    Matrix::new(values, rows, columns)
}

/// The dimension two sets of embeddings share.
pub(crate) fn same_dimension(left: &Matrix, right: &Matrix) -> Result<usize> {
    if left.columns() != right.columns() {
        return Err(Error::Shape {
            what: "dimension of the embeddings",
            expected: left.columns(),
            got: right.columns(),
        });
    }
    Ok(left.columns())
}

/// The first row and column of every tile of an `[rows, columns]` score matrix.
pub(crate) fn tile_grid(rows: usize, columns: usize) -> Vec<(usize, usize)> {
    (0..columns)
        .step_by(TILE_COLUMNS)
        .flat_map(|column| (0..rows).step_by(TILE_ROWS).map(move |row| (row, column)))
        .collect()
}

/// The numbers of up to `count` rows from `first` on.
pub(crate) fn block(matrix: &Matrix, first: usize, count: usize) -> &[f32] {
    let last = first.saturating_add(count).min(matrix.rows());
    matrix.values().get(first * matrix.columns()..last * matrix.columns()).unwrap_or_default()
}
