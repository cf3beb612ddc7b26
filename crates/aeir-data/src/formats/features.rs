//! Files of features alone: arrays in `.npy` and `.safetensors`, tables of bottom-up attention.

use std::path::{Path, PathBuf};

use super::scan;
use crate::dataset::{Collector, Dataset, Format, Item, ReadOptions};
use crate::error::DataError;
use crate::image_source::{FeatureRow, ImageSource};
use crate::lines::{LineContent, open_lines};
use crate::region_features::RegionFeatures;

/// No id is longer.
const MAX_ID_BYTES: usize = 32 * 1024;

/// Reads a file of features: an item an image. Sentences are taken from SCAN's caption file where there is one beside it;
/// names from `STEM.ids.txt` or `ids.txt`, one a line, or from `STEM.jsonl` or `images.jsonl` as `aeir embed` writes them, an object
/// with `id` a line.
///
/// # Errors
/// Those of [`RegionFeatures::open`]; [`DataError::Malformed`] where there are more or fewer names than images.
pub(crate) fn read(path: &Path, format: Format, options: &ReadOptions) -> Result<Dataset, DataError> {
    let mut collector = Collector::default();
    if let Some(captions) = scan::captions_beside(path).filter(|_| !options.images_only) {
        scan::read_files(path, &captions, None, &mut collector)?;
        return collector.finish(path, format, "image with captions");
    }
    let features = RegionFeatures::open(path)?;
    collector.notes.extend(features.note());
    collector.skipped.extend(features.skipped().iter().cloned());
    let ids = match ids_beside(path) {
        Some(file) => Some(read_ids(&file, &features)?),
        None => None,
    };
    for image in 0..features.len() {
        let id = ids.as_ref().and_then(|ids| ids.get(image).cloned());
        collector.add(Item {
            id: id.unwrap_or_else(|| features.place(image)),
            image: Some(ImageSource::Features(FeatureRow { features: features.clone(), image })),
            sentences: Vec::new(),
            split: None,
            line: None,
        });
    }
    collector.finish(path, format, "row")
}

fn ids_beside(path: &Path) -> Option<PathBuf> {
    let plain = [path.with_extension("ids.txt"), path.with_file_name("ids.txt")];
    let mut records = vec![path.with_extension("jsonl")];
    if path.extension().is_some_and(|suffix| suffix.eq_ignore_ascii_case("safetensors")) {
        // One file of two tensors has the names of each in a file of its own.
        records.extend(["images.jsonl", "sentences.jsonl"].map(|name| path.with_file_name(name)));
    }
    let plain = plain.into_iter().find(|file| file.is_file());
    plain.or_else(|| records.into_iter().find(|file| names_ids(file)))
}

/// Whether a file of JSON lines gives ids, and is not a caption file of the same name.
fn names_ids(file: &Path) -> bool {
    let first = open_lines(file, MAX_ID_BYTES, "a name a line")
        .and_then(|mut lines| lines.next_line().map_err(|error| DataError::io(file, "read", error)));
    matches!(first, Ok(Some((_, LineContent::Text(text)))) if id_of(&text).is_some())
}

/// The id of a record.
fn id_of(line: &str) -> Option<String> {
    let record: serde_json::Map<String, serde_json::Value> = serde_json::from_str(line).ok()?;
    Some(record.get("id")?.as_str()?.to_owned())
}

fn read_ids(file: &Path, features: &RegionFeatures) -> Result<Vec<String>, DataError> {
    let records = file.extension().is_some_and(|suffix| suffix == "jsonl");
    let mut lines = open_lines(file, MAX_ID_BYTES, "a name a line")?;
    let mut ids = Vec::new();
    while let Some((line, content)) = lines.next_line().map_err(|error| DataError::io(file, "read", error))? {
        match content {
            LineContent::Text(text) if records => match id_of(&text) {
                Some(id) => ids.push(id),
                None => return Err(refusal(file, Some(line), "an object with `id`".to_owned(), text)),
            },
            LineContent::Text(text) => ids.push(text),
            LineContent::NotUtf8 => return Err(DataError::NotUtf8 { path: file.to_path_buf(), line }),
            LineContent::TooLong => {
                return Err(DataError::LineTooLong { path: file.to_path_buf(), line, limit: MAX_ID_BYTES });
            }
        }
    }
    if ids.len() == features.len() {
        return Ok(ids);
    }
    let expected = format!("{} names, as many as `{}` has images", features.len(), features.path().display());
    Err(refusal(file, None, expected, ids.len().to_string()))
}

fn refusal(file: &Path, line: Option<usize>, expected: String, got: String) -> DataError {
    let got = got.chars().take(80).collect();
    DataError::Malformed { path: file.to_path_buf(), format: Format::Npy, line, expected, got }
}
