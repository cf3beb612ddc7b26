//! What was left out of a run, and why.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize, Serializer};

use crate::durable;
use crate::error::DataError;
use crate::image_source::ImageSource;

/// One thing that was left out: a line, a caption, an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// What was left out, as a person would look for it (a path, the beginning of a sentence).
    pub item: String,
    /// The 1-based line it stood on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<usize>,
    /// The file it stood in.
    #[serde(default, skip_serializing_if = "Option::is_none", serialize_with = "lossy")]
    pub file: Option<PathBuf>,
    /// Why.
    pub reason: String,
}

impl Skipped {
    /// A line of a list or of a caption file.
    pub(crate) fn line(file: &Path, line: usize, item: &str, reason: impl Into<String>) -> Self {
        Self::in_file(file, Some(line), item, reason)
    }

    /// Something within a file that may have no lines.
    pub(crate) fn in_file(file: &Path, line: Option<usize>, item: &str, reason: impl Into<String>) -> Self {
        // Enough to recognise it by; the line number leads to the rest.
        const SHOWN: usize = 80;
        let mut shown: String = item.chars().take(SHOWN).collect();
        if item.chars().nth(SHOWN).is_some() {
            shown.push('…');
        }
        Self { item: shown, line, file: Some(file.to_path_buf()), reason: reason.into() }
    }

    /// An image that could not be read or decoded. The item names it, the reason does not.
    pub fn image(image: &ImageSource, error: &DataError) -> Self {
        let item = image.to_string();
        Self { reason: error.with_causes_about(Path::new(&item)), item, line: None, file: None }
    }
}

/// Names of files need not be UTF-8: a report with a replacement character is better than none.
fn lossy<S: Serializer>(file: &Option<PathBuf>, serializer: S) -> Result<S::Ok, S::Error> {
    match file {
        Some(file) => serializer.serialize_str(&file.to_string_lossy()),
        None => serializer.serialize_none(),
    }
}

/// Writes the list as JSON lines, replacing the file in one step.
///
/// # Errors
/// [`DataError::Io`] where the file cannot be written.
pub fn write_skipped(path: &Path, skipped: &[Skipped]) -> Result<(), DataError> {
    let mut text = Vec::new();
    for record in skipped {
        serde_json::to_writer(&mut text, record)
            .map_err(|error| DataError::io(path, "write", std::io::Error::other(error)))?;
        text.push(b'\n');
    }
    durable::replace(path, &text)
}
