//! Files that are read where they lie.

use std::fs::File;
use std::ops::Deref;
use std::path::Path;

use memmap2::Mmap;

use crate::error::{EncoderError, Result};

/// The bytes of a file: mapped into memory, so that the system reads what is used and no copy is kept.
///
/// The file must not be cut short by another program while it is mapped: the system ends a process that reads mapped bytes
/// which are gone. Ours replace files by renaming, which leaves a mapping whole.
#[derive(Debug)]
pub(crate) struct MappedFile(Option<Mmap>);

impl MappedFile {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(EncoderError::read(path))?;
        let length = file.metadata().map_err(EncoderError::read(path))?.len();
        // Some systems refuse to map nothing.
        if length == 0 {
            return Ok(Self(None));
        }
        // SAFETY: the mapping is read-only and private to this value; see above for files that change.
        let map = unsafe { Mmap::map(&file) }.map_err(EncoderError::read(path))?;
        Ok(Self(Some(map)))
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0.as_deref().unwrap_or_default()
    }
}

/// The bytes of a file, mapped or read.
#[derive(Debug)]
pub(crate) enum FileBytes {
    Mapped(MappedFile),
    Read(Vec<u8>),
}

impl Deref for FileBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Read(bytes) => bytes,
        }
    }
}

impl AsRef<[u8]> for FileBytes {
    fn as_ref(&self) -> &[u8] {
        self
    }
}
