//! The one place that multiplies: a tile of dot products between rows of two matrices.
//!
//! Every score in this crate that has to equal another one bit for bit comes from here. Between two given rows
//! the sum runs in one fixed order, wherever in a tile the pair lies: the shapes for which the matrix product
//! below changes its order of summation (vectors, very small products) are padded up to the common path.

/// Images in a tile.
pub(crate) const TILE_ROWS: usize = 256;
/// Sentences in a tile.
pub(crate) const TILE_COLUMNS: usize = 1024;

/// Below these sizes gemm takes paths that sum in another order.
const LEAST_ROWS: usize = 4;
const LEAST_COLUMNS: usize = 65;

/// Where a tile's scores go: row `i`, column `j` at `pointer + i * stride + j`.
#[derive(Clone, Copy)]
pub(crate) struct Destination {
    pub(crate) pointer: *mut f32,
    pub(crate) stride: usize,
}

// SAFETY: only a place; whoever writes through it (`multiply_into`) promises that no two writers overlap.
unsafe impl Send for Destination {}
// SAFETY: as above.
unsafe impl Sync for Destination {}

/// `left [rows, d]` times `right [columns, d]` transposed, both row-major, into `out [rows, columns]`.
///
/// Callers slice checked matrices; sizes that do not fit would give NaN, never a wrong score.
pub(crate) fn multiply(left: &[f32], right: &[f32], dimension: usize, out: &mut [f32]) {
    if dimension == 0 {
        out.fill(0.0);
        return;
    }
    let (rows, columns) = (left.len() / dimension, right.len() / dimension);
    if out.len() != rows * columns {
        debug_assert!(false, "tile of the wrong size");
        out.fill(f32::NAN);
        return;
    }
    // SAFETY: `out` is exclusive and holds rows * columns numbers, stride columns.
    unsafe {
        multiply_into(left, right, dimension, Destination { pointer: out.as_mut_ptr(), stride: columns })
    }
}

/// [`multiply`] into a rectangle of a larger matrix.
///
/// # Safety
/// The rectangle `[left.len() / dimension, right.len() / dimension]` at `out` must lie inside one allocation and
/// nobody else may read or write it during the call. `dimension` is not 0.
pub(crate) unsafe fn multiply_into(left: &[f32], right: &[f32], dimension: usize, out: Destination) {
    let (rows, columns) = (left.len() / dimension, right.len() / dimension);
    if rows == 0 || columns == 0 {
        return;
    }
    if rows >= LEAST_ROWS && columns >= LEAST_COLUMNS {
        // SAFETY: the caller's promise; the slices hold rows * dimension and columns * dimension numbers.
        unsafe { product(left, right, rows, columns, dimension, out) };
        return;
    }
    let (padded_rows, padded_columns) = (rows.max(LEAST_ROWS), columns.max(LEAST_COLUMNS));
    let padded = |values: &[f32], count: usize, padded_count: usize| {
        let mut copy = vec![0.0_f32; padded_count * dimension];
        copy.iter_mut().zip(values.iter().take(count * dimension)).for_each(|(to, from)| *to = *from);
        copy
    };
    let left = padded(left, rows, padded_rows);
    let right = padded(right, columns, padded_columns);
    let mut whole = vec![0.0_f32; padded_rows * padded_columns];
    let scratch = Destination { pointer: whole.as_mut_ptr(), stride: padded_columns };
    // SAFETY: the scratch matrix is ours and of the padded size.
    unsafe { product(&left, &right, padded_rows, padded_columns, dimension, scratch) };
    for (i, row) in whole.chunks_exact(padded_columns).take(rows).enumerate() {
        // SAFETY: row i < rows of the caller's rectangle, columns <= padded_columns numbers from `whole`.
        unsafe { std::ptr::copy_nonoverlapping(row.as_ptr(), out.pointer.add(i * out.stride), columns) };
    }
}

/// # Safety
/// `left` holds `rows * dimension` numbers, `right` `columns * dimension`, `out` is writable as a rectangle.
unsafe fn product(
    left: &[f32],
    right: &[f32],
    rows: usize,
    columns: usize,
    dimension: usize,
    out: Destination,
) {
    // SAFETY: strides describe exactly the three rectangles that the caller vouches for.
    unsafe {
        gemm::gemm(
            rows,
            columns,
            dimension,
            out.pointer,
            1,
            out.stride as isize,
            false,
            left.as_ptr(),
            1,
            dimension as isize,
            right.as_ptr(),
            dimension as isize,
            1,
            0.0_f32,
            1.0_f32,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}
