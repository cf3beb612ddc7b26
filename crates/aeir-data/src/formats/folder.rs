//! A folder of images, searched with its subfolders; an image's sentences stand in the text file of the same name.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::dataset::{Collector, Dataset, Format, Item, ReadOptions};
use crate::error::DataError;
use crate::lines::{LineContent, open_lines};
use crate::sentence::MAX_SENTENCE_CHARACTERS;
use crate::skipped::Skipped;

/// Files with one of these suffixes (in any case) are taken from a folder. What they are is decided by their
/// content.
pub const IMAGE_SUFFIXES: &[&str] = &["jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp"];

/// Four bytes are the most a character takes: the limit in characters is checked afterwards.
const MAX_LINE_BYTES: usize = 4 * MAX_SENTENCE_CHARACTERS;

/// Whether a path ends like an image.
pub(crate) fn has_image_suffix(path: &Path) -> bool {
    path.extension()
        .and_then(|suffix| suffix.to_str())
        .is_some_and(|suffix| IMAGE_SUFFIXES.iter().any(|known| known.eq_ignore_ascii_case(suffix)))
}

/// Files below a folder, and folders below it that can't be read.
#[derive(Default)]
pub(crate) struct Found {
    /// Sorted by path.
    pub(crate) files: Vec<PathBuf>,
    pub(crate) skipped: Vec<Skipped>,
}

/// The files below `root` that `wanted` takes, sorted by path.
///
/// Names that start with a dot are passed over (previews and bookkeeping of other programs), links are followed, each folder
/// is entered once: a link may lead back up, or to a folder that is reached by two ways.
///
/// # Errors
/// [`DataError::Io`] where `root` can't be read; a folder below it is left out and named.
pub(crate) fn search(root: &Path, wanted: impl Fn(&Path) -> bool) -> Result<Found, DataError> {
    let mut found = Found::default();
    let mut entered = HashSet::new();
    let mut waiting = vec![root.to_path_buf()];
    while let Some(folder) = waiting.pop() {
        match enter(&folder, &mut entered, &wanted, &mut found.files) {
            Ok(subfolders) => waiting.extend(subfolders.into_iter().rev()),
            Err(error) if folder == root => return Err(DataError::io(root, "read", error)),
            Err(error) => found.skipped.push(Skipped {
                item: folder.display().to_string(),
                line: None,
                file: None,
                reason: format!("cannot read the folder: {error}"),
            }),
        }
    }
    found.files.sort();
    Ok(found)
}

/// Takes the files of one folder and returns its subfolders, sorted.
fn enter(
    folder: &Path,
    entered: &mut HashSet<PathBuf>,
    wanted: &impl Fn(&Path) -> bool,
    files: &mut Vec<PathBuf>,
) -> std::io::Result<Vec<PathBuf>> {
    if !entered.insert(folder.canonicalize()?) {
        return Ok(Vec::new());
    }
    let mut subfolders = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let path = entry.path();
        // Follows links. One that leads nowhere counts by its suffix: decoding will say that it is missing.
        if path.is_dir() {
            subfolders.push(path);
        } else if wanted(&path) {
            files.push(path);
        }
    }
    subfolders.sort();
    Ok(subfolders)
}

/// Whether there is an image anywhere below a folder.
///
/// # Errors
/// [`DataError::Io`] where the folder can't be read.
pub(crate) fn has_image(root: &Path) -> Result<bool, DataError> {
    Ok(!search(root, has_image_suffix)?.files.is_empty())
}

/// Reads the images of a folder, each with the lines of the text file of the same name, where there is one.
///
/// # Errors
/// [`DataError::Io`]; [`DataError::NothingUsable`] where there is no image.
pub(crate) fn read(root: &Path, options: &ReadOptions) -> Result<Dataset, DataError> {
    let found = search(root, has_image_suffix)?;
    let mut collector = Collector::default();
    collector.skipped = found.skipped;
    for path in found.files {
        let sentences =
            if options.images_only { Vec::new() } else { sentences_beside(&path, &mut collector) };
        let id = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().into_owned();
        collector.add(Item { id, image: Some(path.into()), sentences, split: None, line: None });
    }
    collector.finish(root, Format::Folder, "image path")
}

fn sentences_beside(image: &Path, collector: &mut Collector) -> Vec<String> {
    let file = image.with_extension("txt");
    // None is no fault: a folder may hold images alone. One that can't be read is.
    if !file.exists() {
        return Vec::new();
    }
    match read_lines(&file, collector) {
        Ok(sentences) => sentences,
        Err(error) => {
            collector.skipped.push(Skipped {
                item: file.display().to_string(),
                line: None,
                file: None,
                reason: error.with_causes_about(&file),
            });
            Vec::new()
        }
    }
}

fn read_lines(file: &Path, collector: &mut Collector) -> Result<Vec<String>, DataError> {
    const EXPECTED: &str = "a sentence a line";
    let mut lines = open_lines(file, MAX_LINE_BYTES, EXPECTED)?;
    lines.refuse_image(file, EXPECTED)?;
    let mut sentences = Vec::new();
    while let Some((line, content)) = lines.next_line().map_err(|error| DataError::io(file, "read", error))? {
        match content {
            // Many editors end a file with an empty line.
            LineContent::Text(text) if text.trim().is_empty() => {}
            LineContent::Text(text) => sentences.extend(collector.usable(file, Some(line), "", [&*text])),
            LineContent::NotUtf8 => collector.skipped.push(Skipped::line(file, line, "", "not UTF-8")),
            LineContent::TooLong => {
                let reason = format!("longer than {MAX_SENTENCE_CHARACTERS} characters");
                collector.skipped.push(Skipped::line(file, line, "", reason));
            }
        }
    }
    Ok(sentences)
}
