//! Caption files: JSON lines of images with their sentences.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::DataError;
use crate::lines::{LineContent, open_lines};
use crate::skipped::Skipped;

/// Captions and sentences longer than this (in characters) are skipped: no encoder reads that far, and such a line
/// is a document that got into the list.
pub const MAX_SENTENCE_CHARACTERS: usize = 10_000;

/// A record may have many captions: more bytes than this on one line is no caption record.
const MAX_RECORD_BYTES: usize = 16 * 1024 * 1024;

/// The part of a data set an image belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Split {
    /// For training; also what a line without a split means.
    #[serde(rename = "train")]
    Train,
    /// For choosing a checkpoint: `val`; `validation` and `dev` are read too.
    #[serde(rename = "val", alias = "validation", alias = "dev")]
    Validation,
    /// For scoring alone.
    #[serde(rename = "test")]
    Test,
}

impl fmt::Display for Split {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Train => "train",
            Self::Validation => "val",
            Self::Test => "test",
        })
    }
}

impl FromStr for Split {
    type Err = DataError;

    fn from_str(text: &str) -> Result<Self, DataError> {
        match text {
            "train" => Ok(Self::Train),
            "val" | "validation" | "dev" => Ok(Self::Validation),
            "test" => Ok(Self::Test),
            other => Err(DataError::UnknownName {
                expected: "train, val or test",
                got: other.chars().take(80).collect(),
            }),
        }
    }
}

/// An image with its sentences: at least one, trimmed, none empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaptionedImage {
    /// Resolved against the folder of the caption file.
    pub image: PathBuf,
    /// In the order of the file.
    pub captions: Vec<String>,
    /// As the line names it; see [`CaptionedImage::effective_split`].
    pub split: Option<Split>,
    /// The 1-based line (the first one, where several name the same image and split).
    pub line: usize,
}

impl CaptionedImage {
    /// The split, [`Split::Train`] where the line names none.
    pub fn effective_split(&self) -> Split {
        self.split.unwrap_or(Split::Train)
    }
}

/// A caption file as read, every split still in it.
#[derive(Debug, Clone)]
pub struct CaptionFile {
    /// The file.
    pub path: PathBuf,
    /// In the order of the file.
    pub items: Vec<CaptionedImage>,
    /// Captions and lines that were left out.
    pub skipped: Vec<Skipped>,
}

impl CaptionFile {
    /// Images that stand in more than one split: what was trained on would be scored on.
    pub fn images_in_several_splits(&self) -> Vec<&Path> {
        let mut first: HashMap<&Path, Split> = HashMap::new();
        let mut several = Vec::new();
        for item in &self.items {
            let split = item.effective_split();
            if *first.entry(&item.image).or_insert(split) != split && !several.contains(&item.image.as_path())
            {
                several.push(item.image.as_path());
            }
        }
        several
    }
}

#[derive(Deserialize)]
struct Record {
    image: String,
    captions: Vec<String>,
    #[serde(default)]
    split: Option<Split>,
}

/// Reads a caption file: one `{"image": path, "captions": [..], "split"?: "train|val|test"}` a line.
///
/// Paths are absolute or relative to the folder of the file; whether the image exists is seen when it is decoded.
/// Blank lines are passed over, other keys ignored. Captions are trimmed; empty ones and those over
/// [`MAX_SENTENCE_CHARACTERS`] are left out and listed in `skipped`, as is an image with no caption left. Lines
/// that name the same image and the same split are one item with the captions of all of them: the same image twice
/// would be its own hardest negative in training and its own rival in scoring.
///
/// # Errors
/// [`DataError::CaptionRecord`], [`DataError::NotUtf8`] or [`DataError::LineTooLong`] with the line;
/// [`DataError::WrongKind`] for UTF-16 and for an image;
/// [`DataError::EmptyFile`]; [`DataError::NothingUsable`] where no line gave an item; [`DataError::NotAFile`] and
/// [`DataError::Io`].
pub fn read_captions(path: &Path) -> Result<CaptionFile, DataError> {
    const EXPECTED: &str = "an image with captions a line";
    let folder = path.parent().unwrap_or(Path::new(""));
    let mut lines = open_lines(path, MAX_RECORD_BYTES, EXPECTED)?;
    lines.refuse_image(path, EXPECTED)?;
    let mut items: Vec<CaptionedImage> = Vec::new();
    let mut skipped = Vec::new();
    let mut position: HashMap<(PathBuf, Option<Split>), usize> = HashMap::new();
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
            skipped.push(Skipped::line(path, line, &text, "the image path is empty"));
            continue;
        }
        let captions = usable_captions(path, line, &record, &mut skipped);
        if captions.is_empty() {
            skipped.push(Skipped::line(path, line, &record.image, "no usable caption"));
            continue;
        }
        let image = folder.join(&record.image);
        // Without a split a line means the training split: both spellings are the same item.
        let key = (image.clone(), Some(record.split.unwrap_or(Split::Train)));
        match position.get(&key).and_then(|index| items.get_mut(*index)) {
            Some(item) => {
                item.captions.extend(captions);
                item.split = item.split.or(record.split);
            }
            None => {
                position.insert(key, items.len());
                items.push(CaptionedImage { image, captions, split: record.split, line });
            }
        }
    }
    if items.is_empty() {
        return Err(DataError::NothingUsable {
            path: path.to_path_buf(),
            expected: "image with captions",
            skipped: skipped.len(),
        });
    }
    Ok(CaptionFile { path: path.to_path_buf(), items, skipped })
}

/// By way of a map: a key that stands twice in an object counts once, the last one, as in most JSON readers.
fn parse(text: &str) -> Result<Record, serde_json::Error> {
    let object: Map<String, Value> = serde_json::from_str(text)?;
    serde_json::from_value(Value::Object(object))
}

/// The parser's answer without its line number, which counts inside the line.
fn inside_a_line(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.strip_suffix(&format!(" at line {} column {}", error.line(), error.column())) {
        Some(answer) => format!("{answer} at column {}", error.column()),
        None => text,
    }
}

fn usable_captions(path: &Path, line: usize, record: &Record, skipped: &mut Vec<Skipped>) -> Vec<String> {
    let mut usable = Vec::new();
    for caption in &record.captions {
        match sentence(caption) {
            Ok(caption) => usable.push(caption.to_owned()),
            Err(reason) => {
                let shown = if caption.trim().is_empty() { &record.image } else { caption };
                skipped.push(Skipped::line(path, line, shown, reason));
            }
        }
    }
    usable
}

/// The trimmed sentence, or why it can't be used.
pub(crate) fn sentence(text: &str) -> Result<&str, String> {
    let text = text.trim();
    if text.is_empty() {
        return Err("empty caption".to_owned());
    }
    if text.contains('\0') {
        return Err("contains a NUL character".to_owned());
    }
    if text.chars().nth(MAX_SENTENCE_CHARACTERS).is_some() {
        return Err(format!("longer than {MAX_SENTENCE_CHARACTERS} characters"));
    }
    Ok(text)
}
