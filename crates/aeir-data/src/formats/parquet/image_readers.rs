//! Readers that stand where they read last. Images are mostly read in their order, and a page holds several: a reader that goes on
//! decompresses it once, where a new one would do so for each of them.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use ::parquet::column::reader::ColumnReaderImpl;
use ::parquet::data_type::{ByteArray, ByteArrayType};
use ::parquet::errors::ParquetError;

type Reader = ColumnReaderImpl<ByteArrayType>;

/// Readers that are kept, of all files of a data set: each holds a page. Threads that decode side by side take one each.
const KEPT: usize = 4;

/// How many rows a reader passes over rather than another is opened: those of a few threads that are a little ahead.
const PASSED_OVER: usize = 64;

/// The readers of a data set, those used last at the end.
#[derive(Default)]
pub(super) struct ImageReaders(Mutex<Vec<Standing>>);

struct Standing {
    path: PathBuf,
    row_group: usize,
    /// The row that it would read next.
    next: usize,
    reader: Reader,
}

impl fmt::Debug for ImageReaders {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("ImageReaders")
    }
}

impl ImageReaders {
    /// The value of a row; `None` where there is none. A reader that fails is not used again.
    pub(super) fn read(
        &self,
        path: &Path,
        row_group: usize,
        row: usize,
        open: impl FnOnce() -> Result<Reader, ParquetError>,
    ) -> Result<Option<Vec<u8>>, ParquetError> {
        let mut standing = match self.take(path, row_group, row) {
            Some(standing) => standing,
            None => Standing { path: path.to_path_buf(), row_group, next: 0, reader: open()? },
        };
        let before = row - standing.next;
        if standing.reader.skip_records(before)? != before {
            return Ok(None);
        }
        let (mut levels, mut values) = (Vec::new(), Vec::new());
        standing.reader.read_records(1, Some(&mut levels), None, &mut values)?;
        standing.next = row + 1;
        self.put(standing);
        Ok(values.first().map(|value: &ByteArray| value.data().to_vec()))
    }

    /// The reader that is nearest before a row.
    fn take(&self, path: &Path, row_group: usize, row: usize) -> Option<Standing> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = |it: &Standing| {
            it.row_group == row_group && (it.next..it.next + PASSED_OVER).contains(&row) && it.path == path
        };
        let (place, _) = kept.iter().enumerate().filter(|(_, it)| fits(it)).max_by_key(|(_, it)| it.next)?;
        Some(kept.remove(place))
    }

    fn put(&self, standing: Standing) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == KEPT {
            kept.remove(0);
        }
        kept.push(standing);
    }
}
