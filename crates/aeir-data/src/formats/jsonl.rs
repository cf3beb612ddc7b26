//! Caption files: JSON lines of images with their sentences.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::image_root::ImageRoot;
use crate::dataset::{Collector, Dataset, Format, Item, ReadOptions};
use crate::error::DataError;
use crate::lines::{LineContent, open_lines};
use crate::skipped::Skipped;
use crate::split::Split;

const EXPECTED: &str = "an image with captions a line";

/// A record may have many captions: more bytes than this on one line is no caption record.
const MAX_RECORD_BYTES: usize = 16 * 1024 * 1024;

#[derive(Deserialize)]
struct Record {
    image: String,
    captions: Vec<String>,
    #[serde(default)]
    split: Option<Split>,
}

/// Reads a caption file: one `{"image": path, "captions": [..], "split"?: "train|val|test"}` a line.
///
/// Paths are absolute or relative to the folder of the file. Blank lines are passed over, other keys ignored. Captions are
/// trimmed; those that can't be used are left out and listed, as is an image with no caption left.
///
/// # Errors
/// [`DataError::CaptionRecord`], [`DataError::NotUtf8`] or [`DataError::LineTooLong`] with the line;
/// [`DataError::WrongKind`] for UTF-16 and for an image; [`DataError::EmptyFile`]; [`DataError::NothingUsable`] where no line
/// gave an item; [`DataError::NotAFile`] and [`DataError::Io`].
pub(crate) fn read(path: &Path, options: &ReadOptions) -> Result<Dataset, DataError> {
    let mut root = ImageRoot::here(path, options);
    let mut lines = open_lines(path, MAX_RECORD_BYTES, EXPECTED)?;
    lines.refuse_image(path, EXPECTED)?;
    let mut collector = Collector::default();
    while let Some((line, content)) = lines.next_line().map_err(|error| DataError::io(path, "read", error))? {
        let text = match content {
            LineContent::Text(text) => text,
            LineContent::NotUtf8 => return Err(DataError::NotUtf8 { path: path.to_path_buf(), line }),
            LineContent::TooLong => {
                return Err(DataError::LineTooLong {
                    path: path.to_path_buf(),
                    line,
                    limit: MAX_RECORD_BYTES,
                });
            }
        };
        if text.trim().is_empty() {
            continue;
        }
        let record = parse(&text).map_err(|error| DataError::CaptionRecord {
            path: path.to_path_buf(),
            line,
            reason: inside_a_line(&error),
        })?;
        if record.image.trim().is_empty() {
            collector.skipped.push(Skipped::line(path, line, &text, "the image path is empty"));
            continue;
        }
        let captions = record.captions.iter().map(String::as_str);
        let sentences = collector.usable(path, Some(line), &record.image, captions);
        if sentences.is_empty() {
            collector.skipped.push(Skipped::line(path, line, &record.image, "no usable caption"));
            continue;
        }
        collector.add(Item {
            image: Some(root.source(&record.image)?),
            id: record.image,
            sentences,
            split: record.split,
            line: Some(line),
        });
    }
    collector.finish(path, Format::JsonLines, "image with captions")
}

/// By way of a map: a key that stands twice in an object counts once, the last one, as in most JSON readers.
fn parse(text: &str) -> Result<Record, serde_json::Error> {
    let object: Map<String, Value> = serde_json::from_str(text)?;
    serde_json::from_value(Value::Object(object))
}

/// The parser's answer without its line number, which counts inside the line.
pub(crate) fn inside_a_line(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.strip_suffix(&format!(" at line {} column {}", error.line(), error.column())) {
        Some(answer) => format!("{answer} at column {}", error.column()),
        None => text,
    }
}
