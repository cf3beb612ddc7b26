//! A column of vectors: a list of floating-point numbers a row, all of one length.

use std::path::{Path, PathBuf};

use ::parquet::basic::{LogicalType, Type as PhysicalType};
use ::parquet::data_type::{DoubleType, FixedLenByteArray, FixedLenByteArrayType, FloatType};
use ::parquet::errors::ParquetError;
use ::parquet::file::metadata::ParquetMetaData;
use ::parquet::schema::types::ColumnDescriptor;
use half::f16;

use super::{guarded, rows_of_column};
use crate::dataset::Format;
use crate::error::DataError;
use crate::skipped::Skipped;

/// The vectors of a file, in memory: a page of Parquet can't be looked into without decoding it whole.
#[derive(Debug)]
pub(crate) struct VectorColumn {
    path: PathBuf,
    /// The row of the file that each vector stands in, ascending.
    rows: Vec<usize>,
    values: Vec<f32>,
    dimension: usize,
    skipped: Vec<Skipped>,
}

/// Whether a column holds lists of floating-point numbers.
pub(super) fn is_vectors(column: &ColumnDescriptor) -> bool {
    column.max_rep_level() == 1
        && match column.physical_type() {
            PhysicalType::FLOAT | PhysicalType::DOUBLE => true,
            PhysicalType::FIXED_LEN_BYTE_ARRAY => column.logical_type_ref() == Some(&LogicalType::Float16),
            _ => false,
        }
}

impl VectorColumn {
    /// Reads a column. Rows without a vector, or with one of another length than the first, are left out and listed.
    ///
    /// # Errors
    /// [`DataError::Malformed`] where a page does not decode, or no row has a vector.
    pub(super) fn read(path: &Path, metadata: &ParquetMetaData, column: usize) -> Result<Self, DataError> {
        let mut vectors = Self {
            path: path.to_path_buf(),
            rows: Vec::new(),
            values: Vec::new(),
            dimension: 0,
            skipped: Vec::new(),
        };
        let mut row = 0;
        for row_group in 0..metadata.num_row_groups() {
            for vector in guarded(path, || of_group(path, metadata, row_group, column))? {
                vectors.add(row, &vector);
                row += 1;
            }
        }
        if vectors.rows.is_empty() {
            return Err(DataError::Malformed {
                path: path.to_path_buf(),
                format: Format::Parquet,
                line: None,
                expected: "a vector in at least one row".to_owned(),
                got: format!("{row} rows without"),
            });
        }
        Ok(vectors)
    }

    fn add(&mut self, row: usize, vector: &[f32]) {
        if self.dimension == 0 {
            self.dimension = vector.len();
        }
        if vector.is_empty() || vector.len() != self.dimension {
            let reason = match vector.len() {
                0 => "no vector".to_owned(),
                got => format!("expected {} values as before, got {got}", self.dimension),
            };
            self.skipped.push(Skipped::in_file(&self.path, Some(row), &row.to_string(), reason));
            return;
        }
        self.rows.push(row);
        self.values.extend_from_slice(vector);
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows.len()
    }

    pub(crate) fn dimension(&self) -> usize {
        self.dimension
    }

    pub(crate) fn skipped(&self) -> &[Skipped] {
        &self.skipped
    }

    /// The row of the file that a vector stands in.
    pub(crate) fn row_of(&self, vector: usize) -> Option<usize> {
        self.rows.get(vector).copied()
    }

    /// The vector of a row of the file.
    pub(crate) fn find(&self, row: usize) -> Option<usize> {
        self.rows.binary_search(&row).ok()
    }

    fn vector(&self, vector: usize) -> Option<&[f32]> {
        let start = vector.checked_mul(self.dimension)?;
        self.values.get(start..start.checked_add(self.dimension)?)
    }

    pub(crate) fn read_into(&self, vector: usize, into: &mut [f32]) -> Result<(), DataError> {
        let path = || self.path.clone();
        let found = self.vector(vector).ok_or_else(|| DataError::ArrayRow {
            path: path(),
            rows: self.rows(),
            got: vector,
        })?;
        if into.len() != found.len() {
            return Err(DataError::ArrayBuffer { path: path(), expected: found.len(), got: into.len() });
        }
        into.copy_from_slice(found);
        Ok(())
    }

    pub(crate) fn check_finite(&self) -> Result<(), DataError> {
        match self.values.iter().position(|value| !value.is_finite()) {
            None => Ok(()),
            Some(place) => Err(DataError::ArrayNotFinite {
                path: self.path.clone(),
                row: self.row_of(place / self.dimension).unwrap_or_default(),
                region: 0,
                column: place % self.dimension,
                got: self.values.get(place).copied().map_or(f64::NAN, f64::from),
            }),
        }
    }
}

fn of_group(
    path: &Path,
    metadata: &ParquetMetaData,
    row_group: usize,
    column: usize,
) -> Result<Vec<Vec<f32>>, ParquetError> {
    match metadata.file_metadata().schema_descr().column(column).physical_type() {
        PhysicalType::FLOAT => rows_of_column::<FloatType, _>(path, metadata, row_group, column, |it| *it),
        PhysicalType::DOUBLE => {
            rows_of_column::<DoubleType, _>(path, metadata, row_group, column, |it| *it as f32)
        }
        _ => {
            let half = |value: &FixedLenByteArray| {
                value.data().first_chunk().map_or(f32::NAN, |bytes| f16::from_le_bytes(*bytes).to_f32())
            };
            rows_of_column::<FixedLenByteArrayType, _>(path, metadata, row_group, column, half)
        }
    }
}
