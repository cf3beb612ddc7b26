//! One file a format, and how they are told apart.

pub(crate) mod folder;
pub(crate) mod jsonl;
pub(crate) mod list;

use std::fs;
use std::path::Path;

use crate::dataset::{Dataset, Format, ReadOptions};
use crate::error::DataError;

/// What a path holds, told by what is there: for a folder the names in it, for a file its suffix, then its content.
///
/// # Errors
/// [`DataError::UnknownFormat`], [`DataError::Io`], [`DataError::EmptyFile`], [`DataError::WrongKind`].
pub(crate) fn detect(path: &Path) -> Result<Format, DataError> {
    let metadata = fs::metadata(path).map_err(|error| DataError::io(path, "read", error))?;
    if metadata.is_dir() { detect_folder(path) } else { detect_file(path) }
}

fn detect_folder(path: &Path) -> Result<Format, DataError> {
    if folder::has_image(path)? {
        return Ok(Format::Folder);
    }
    Err(DataError::UnknownFormat {
        path: path.to_path_buf(),
        looked_for: format!("images (files that end in .{})", folder::IMAGE_SUFFIXES.join(", .")),
    })
}

fn detect_file(path: &Path) -> Result<Format, DataError> {
    let suffix = path.extension().map(|suffix| suffix.to_string_lossy().to_ascii_lowercase());
    match suffix.as_deref() {
        Some("jsonl" | "ndjson") => Ok(Format::JsonLines),
        _ => list::detect(path),
    }
}

/// Reads a path as a format.
///
/// # Errors
/// Those of the format's reader.
pub(crate) fn read(path: &Path, format: Format, options: &ReadOptions) -> Result<Dataset, DataError> {
    match format {
        Format::JsonLines => jsonl::read(path, options),
        Format::Folder => folder::read(path),
        Format::ImageList => list::read_images(path),
        Format::SentenceList => list::read_sentences(path),
    }
}
