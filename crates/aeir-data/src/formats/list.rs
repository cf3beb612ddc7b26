//! Text files with an image path or a sentence a line.

use std::collections::HashMap;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use super::folder::has_image_suffix;
use super::image_root::ImageRoot;
use super::table;
use crate::dataset::{Collector, Dataset, Format, Item, ReadOptions};
use crate::error::DataError;
use crate::image_source::ImageSource;
use crate::lines::{LineContent, NumberedLines, open_lines};
use crate::sentence::{MAX_SENTENCE_CHARACTERS, sentence};
use crate::skipped::Skipped;

/// No path is longer; some systems end at 4,096.
const MAX_PATH_BYTES: usize = 32 * 1024;

/// Four bytes are the most a character takes: the limit in characters is checked afterwards.
const MAX_SENTENCE_BYTES: usize = 4 * MAX_SENTENCE_CHARACTERS;

/// What the first line with words looks like: a record, an image path or a sentence.
///
/// # Errors
/// [`DataError::Io`], [`DataError::EmptyFile`], [`DataError::WrongKind`] for an image and for UTF-16.
pub(crate) fn detect(path: &Path) -> Result<Format, DataError> {
    let mut lines = open(path, MAX_SENTENCE_BYTES, "a list with an image path or a sentence a line")?;
    while let Some((_, content)) = lines.next_line().map_err(|error| DataError::io(path, "read", error))? {
        let LineContent::Text(text) = content else { continue };
        let text = text.trim();
        if text.is_empty() {
            continue;
        }
        return Ok(match text {
            _ if is_json_object(text) => Format::JsonLines,
            _ if table::is_header(text) => Format::Table,
            _ if has_image_suffix(Path::new(text)) => Format::ImageList,
            _ => Format::SentenceList,
        });
    }
    Ok(Format::SentenceList)
}

/// A caption file given as a list would be read without complaint, its braces as words.
fn is_json_object(text: &str) -> bool {
    text.starts_with('{') && serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(text).is_ok()
}

fn open(
    path: &Path,
    limit: usize,
    expected: &'static str,
) -> Result<NumberedLines<BufReader<File>>, DataError> {
    let lines = open_lines(path, limit, expected)?;
    lines.refuse_image(path, expected)?;
    Ok(lines)
}

/// Reads a list of images: one path a line, absolute or relative to the folder of the file, or
/// `FILE#PLACE`. The list keeps its order; a path
/// that stands twice is taken once.
///
/// # Errors
/// [`DataError::Io`], [`DataError::EmptyFile`], [`DataError::WrongKind`], [`DataError::NothingUsable`].
pub(crate) fn read_images(path: &Path, options: &ReadOptions) -> Result<Dataset, DataError> {
    let mut root = ImageRoot::here(path, options);
    let mut collector = Collector::default();
    let mut first_line: HashMap<ImageSource, usize> = HashMap::new();
    let mut lines = open_lines(path, MAX_PATH_BYTES, "an image path a line")?;
    lines.refuse_image(path, "a folder or a list with an image path a line")?;
    while let Some((line, content)) = lines.next_line().map_err(|error| DataError::io(path, "read", error))? {
        let text = match content {
            LineContent::Text(text) => text,
            LineContent::NotUtf8 => {
                collector.skipped.push(Skipped::line(path, line, "", "not UTF-8"));
                continue;
            }
            LineContent::TooLong => {
                let reason = format!("longer than {MAX_PATH_BYTES} bytes");
                collector.skipped.push(Skipped::line(path, line, "", reason));
                continue;
            }
        };
        let text = text.trim();
        if text.is_empty() {
            continue;
        }
        let image = root.source(text)?;
        if let Some(first) = first_line.get(&image) {
            let reason = format!("listed before, on line {first}");
            collector.skipped.push(Skipped::line(path, line, text, reason));
            continue;
        }
        first_line.insert(image.clone(), line);
        collector.add(Item {
            id: text.to_owned(),
            image: Some(image),
            sentences: Vec::new(),
            split: None,
            line: Some(line),
        });
    }
    collector.finish(path, Format::ImageList, "image path")
}

/// Reads one sentence a line, trimmed. The same sentence may stand in it several times. Lines that can't be used are left out
/// and listed.
///
/// # Errors
/// [`DataError::Io`], [`DataError::EmptyFile`], [`DataError::WrongKind`], [`DataError::NothingUsable`].
pub(crate) fn read_sentences(path: &Path) -> Result<Dataset, DataError> {
    let mut collector = Collector::default();
    let mut lines = open(path, MAX_SENTENCE_BYTES, "a sentence a line")?;
    while let Some((line, content)) = lines.next_line().map_err(|error| DataError::io(path, "read", error))? {
        let (shown, found) = match &content {
            LineContent::Text(text) if text.trim().is_empty() => ("", Err("empty line".to_owned())),
            LineContent::Text(text) => (text.as_str(), sentence(text)),
            LineContent::NotUtf8 => ("", Err("not UTF-8".to_owned())),
            LineContent::TooLong => ("", Err(format!("longer than {MAX_SENTENCE_CHARACTERS} characters"))),
        };
        match found {
            Ok(text) => collector.add(Item {
                id: line.to_string(),
                image: None,
                sentences: vec![text.to_owned()],
                split: None,
                line: Some(line),
            }),
            Err(reason) => collector.skipped.push(Skipped::line(path, line, shown, reason)),
        }
    }
    collector.finish(path, Format::SentenceList, "sentence")
}
