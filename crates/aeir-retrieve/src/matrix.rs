//! A checked row-major matrix of `f32`: what every function here takes and returns.

use rayon::prelude::*;

use crate::{Error, Result};

/// A dense row-major matrix, `[rows, columns]`.
///
/// As embeddings: one item a row, `[items, D]`. As scores: one query a row, one gallery item a column; in a
/// retrieval score matrix rows are images and columns sentences, `[N, M]`, larger is more similar.
///
/// # Example
/// ```
/// let matrix = aeir_retrieve::Matrix::new(vec![3.0, 4.0, 0.0, 0.0], 2, 2)?;
/// assert_eq!(matrix.row(0), Some(&[3.0, 4.0][..]));
/// assert_eq!(matrix.l2_normalised()?.values(), &[0.6, 0.8, 0.0, 0.0]);
/// # Ok::<(), aeir_retrieve::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Matrix {
    rows: usize,
    columns: usize,
    values: Vec<f32>,
}

impl Matrix {
    /// Takes `values` as `[rows, columns]`, row after row. Either size may be 0.
    ///
    /// # Errors
    /// [`Error::Shape`] where `values` does not hold exactly `rows * columns` numbers.
    pub fn new(values: Vec<f32>, rows: usize, columns: usize) -> Result<Self> {
        let expected = rows.saturating_mul(columns);
        if values.len() != expected {
            return Err(Error::Shape { what: "values of a matrix", expected, got: values.len() });
        }
        Ok(Self { rows, columns, values })
    }

    /// Copies rows of equal length into a matrix.
    ///
    /// # Errors
    /// [`Error::Shape`] where a row's length differs from the first one's.
    pub fn from_rows<R: AsRef<[f32]>>(rows: &[R]) -> Result<Self> {
        let columns = rows.first().map_or(0, |row| row.as_ref().len());
        let mut values = Vec::with_capacity(rows.len() * columns);
        for row in rows {
            let row = row.as_ref();
            if row.len() != columns {
                return Err(Error::Shape {
                    what: "length of a matrix row",
                    expected: columns,
                    got: row.len(),
                });
            }
            values.extend_from_slice(row);
        }
        Self::new(values, rows.len(), columns)
    }

    /// How many rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// How many columns.
    #[must_use]
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// All numbers, row after row.
    #[must_use]
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// The numbers, row after row, without a copy.
    #[must_use]
    pub fn into_values(self) -> Vec<f32> {
        self.values
    }

    /// Row `i`, or `None` past the last.
    #[must_use]
    pub fn row(&self, i: usize) -> Option<&[f32]> {
        if i >= self.rows {
            return None;
        }
        self.values.get(i * self.columns..(i + 1) * self.columns)
    }

    /// The number in row `i` and column `j`, or `None` outside.
    #[must_use]
    pub fn get(&self, i: usize, j: usize) -> Option<f32> {
        self.row(i)?.get(j).copied()
    }

    /// The rows in order. A matrix without columns yields empty rows.
    pub fn iter_rows(&self) -> impl ExactSizeIterator<Item = &[f32]> {
        (0..self.rows).map(|i| self.row(i).unwrap_or_default())
    }

    /// The transpose, `[columns, rows]`: scores by sentence instead of by image.
    #[must_use]
    pub fn transposed(&self) -> Self {
        const BLOCK: usize = 32;
        let mut values = vec![0.0_f32; self.values.len()];
        if !values.is_empty() {
            values.par_chunks_mut(self.rows * BLOCK).enumerate().for_each(|(block, out)| {
                let first = block * BLOCK;
                for (i, row) in self.iter_rows().enumerate() {
                    for (line, value) in out.chunks_mut(self.rows).zip(row.iter().skip(first)) {
                        if let Some(slot) = line.get_mut(i) {
                            *slot = *value;
                        }
                    }
                }
            });
        }
        Self { rows: self.columns, columns: self.rows, values }
    }

    /// Copies the rows at `positions`, in that order.
    ///
    /// # Errors
    /// [`Error::Shape`] where a position is past the last row.
    pub fn select_rows(&self, positions: &[usize]) -> Result<Self> {
        let mut values = Vec::with_capacity(positions.len().saturating_mul(self.columns));
        for &position in positions {
            let row = self.row(position).ok_or(Error::Shape {
                what: "row position, rows in the matrix",
                expected: self.rows,
                got: position,
            })?;
            values.extend_from_slice(row);
        }
        Self::new(values, positions.len(), self.columns)
    }

    /// Each row divided by its Euclidean length, so that a dot product is a cosine.
    ///
    /// Equation: `x / sqrt(sum x^2)`, the length taken in `f64` (no overflow or underflow in the squares).
    /// An all-zero row stays zero.
    ///
    /// # Errors
    /// [`Error::NotFinite`] with the first row that holds a NaN or an infinity.
    pub fn l2_normalised(&self) -> Result<Self> {
        self.check_finite("embeddings to normalise")?;
        let mut values = self.values.clone();
        if self.columns > 0 {
            values.par_chunks_mut(self.columns).for_each(|row| {
                let length = euclidean_length(row);
                if length > 0.0 {
                    row.iter_mut().for_each(|value| *value = (f64::from(*value) / length) as f32);
                }
            });
        }
        Ok(Self { rows: self.rows, columns: self.columns, values })
    }

    /// Refuses NaN and infinities, naming the first offending row.
    pub(crate) fn check_finite(&self, what: &'static str) -> Result<()> {
        self.check_each(what, |value| !value.is_finite())
    }

    /// Refuses NaN; infinities may stand for "never" and "always" in scores.
    pub(crate) fn check_not_nan(&self, what: &'static str) -> Result<()> {
        self.check_each(what, f32::is_nan)
    }

    fn check_each(&self, what: &'static str, bad: impl Fn(f32) -> bool + Sync) -> Result<()> {
        if self.columns == 0 {
            return Ok(());
        }
        let offending = self
            .values
            .par_chunks(self.columns)
            .position_first(|row| row.iter().fold(false, |any, value| any | bad(*value)));
        let Some(row) = offending else { return Ok(()) };
        let column = self.row(row).unwrap_or_default().iter().position(|value| bad(*value)).unwrap_or(0);
        Err(Error::NotFinite { what, row, column, got: self.get(row, column).unwrap_or(f32::NAN) })
    }
}

/// The Euclidean length of a vector, in `f64`.
pub(crate) fn euclidean_length(row: &[f32]) -> f64 {
    row.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt()
}
