//! One file a format, and how they are told apart.

mod coco;
mod features;
pub(crate) mod folder;
pub(crate) mod image_root;
mod json;
pub(crate) mod jsonl;
mod karpathy;
mod list;
#[cfg(feature = "parquet")]
pub(crate) mod parquet;
pub(crate) mod scan;
pub(crate) mod table;
mod webdataset;

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::dataset::{Dataset, Format, ReadOptions};
use crate::error::DataError;
use crate::feature_table;

/// The caption file of a folder, as `aeir data convert` writes it.
const CAPTIONS: &str = "captions.jsonl";

/// Bytes of a file that are looked at to tell its format.
const LOOKED_AT: u64 = 4 * 1024;

/// What a path holds, told by what is there: for a folder the names in it, for a file its suffix, then its content.
///
/// # Errors
/// [`DataError::UnknownFormat`], [`DataError::Io`], [`DataError::EmptyFile`], [`DataError::WrongKind`].
pub(crate) fn detect(path: &Path) -> Result<Format, DataError> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => detect_folder(path),
        Ok(_) => detect_file(path),
        Err(_) if webdataset::is_pattern(path) => Ok(Format::WebDataset),
        Err(error) => Err(DataError::io(path, "read", error)),
    }
}

fn detect_folder(path: &Path) -> Result<Format, DataError> {
    let found = [
        (Format::Scan, scan::is_folder(path)),
        (Format::Karpathy, !karpathy::files_in(path).is_empty()),
        (Format::Coco, !coco::files_in(path).is_empty()),
        (Format::Parquet, !parquet_files_in(path).is_empty()),
        (Format::WebDataset, !webdataset::files_in(path).is_empty()),
    ];
    if let Some((format, _)) = found.into_iter().find(|(_, there)| *there) {
        return Ok(format);
    }
    if path.join(CAPTIONS).is_file() {
        return Ok(Format::JsonLines);
    }
    if folder::has_image(path)? {
        return Ok(Format::Folder);
    }
    Err(DataError::UnknownFormat {
        path: path.to_path_buf(),
        looked_for: format!(
            "train_ims.npy (or dev_, test_), dataset*.json, captions_*.json, *.parquet, *.tar, {CAPTIONS}, and images (files that end in \
             .{}){}",
            folder::IMAGE_SUFFIXES.join(", ."),
            lists_in(path)
        ),
    })
}

/// What to say of files that can be read by themselves.
fn lists_in(folder: &Path) -> String {
    let lists = files_named(folder, |name| name.ends_with(".jsonl") || name.ends_with(".csv"));
    lists.first().map_or_else(String::new, |first| format!("; `{}` can be read by itself", first.display()))
}

/// Whether a folder is one of images, where it also holds something else.
///
/// # Errors
/// [`DataError::Io`].
pub(crate) fn is_folder_of_images(path: &Path) -> Result<bool, DataError> {
    Ok(path.is_dir() && folder::has_image(path)?)
}

fn detect_file(path: &Path) -> Result<Format, DataError> {
    let suffix = path.extension().map(|suffix| suffix.to_string_lossy().to_ascii_lowercase());
    match suffix.as_deref() {
        Some("jsonl" | "ndjson") => Ok(Format::JsonLines),
        Some("json") => json::detect(path),
        Some("csv") => Ok(Format::Table),
        Some("tsv") if is_feature_table(path)? => Ok(Format::FeatureTable),
        Some("tsv") => Ok(Format::Table),
        Some("tar") => Ok(Format::WebDataset),
        Some("parquet") => Ok(Format::Parquet),
        Some("npy") => Ok(Format::Npy),
        Some("safetensors") => Ok(Format::Safetensors),
        _ => list::detect(path),
    }
}

fn is_feature_table(path: &Path) -> Result<bool, DataError> {
    let mut start = Vec::new();
    File::open(path)
        .and_then(|file| file.take(LOOKED_AT).read_to_end(&mut start))
        .map_err(|error| DataError::io(path, "read", error))?;
    Ok(feature_table::is_line(start.split(|byte| *byte == b'\n').next().unwrap_or_default()))
}

fn parquet_files_in(folder: &Path) -> Vec<PathBuf> {
    let is_parquet = |name: &str| name.ends_with(".parquet");
    let here = files_named(folder, is_parquet);
    if here.is_empty() { files_named(&folder.join("data"), is_parquet) } else { here }
}

/// The files of a folder whose names `wanted` takes, sorted. None where the folder can't be read.
fn files_named(folder: &Path, wanted: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = entries
        .filter(|entry| entry.file_name().to_str().is_some_and(|name| !name.starts_with('.') && wanted(name)))
        .map(|entry| entry.path())
        .filter(|path| path.is_file())
        .collect();
    files.sort();
    files
}

/// The files themselves where `path` is a folder, else `path` alone.
fn files_or(path: &Path, in_folder: impl Fn(&Path) -> Vec<PathBuf>) -> Vec<PathBuf> {
    if path.is_dir() { in_folder(path) } else { vec![path.to_path_buf()] }
}

/// Reads a path as a format.
///
/// # Errors
/// Those of the format's reader.
pub(crate) fn read(path: &Path, format: Format, options: &ReadOptions) -> Result<Dataset, DataError> {
    match format {
        Format::JsonLines if path.is_dir() => jsonl::read(&path.join(CAPTIONS), options),
        Format::JsonLines => jsonl::read(path, options),
        Format::Table => table::read(path, options),
        Format::Folder => folder::read(path, options),
        Format::ImageList => list::read_images(path, options),
        Format::SentenceList => list::read_sentences(path),
        Format::Coco => coco::read(path, &files_or(path, coco::files_in), options),
        Format::Karpathy => read_karpathy(path, options),
        Format::Scan => scan::read(path, options),
        Format::Npy | Format::Safetensors | Format::FeatureTable => features::read(path, format, options),
        Format::WebDataset => read_shards(path, options),
        Format::Parquet => read_parquet(path, options),
    }
}

fn read_karpathy(path: &Path, options: &ReadOptions) -> Result<Dataset, DataError> {
    let files = files_or(path, karpathy::files_in);
    match files.as_slice() {
        [file] => karpathy::read(path, file, options),
        several => Err(DataError::Malformed {
            path: path.to_path_buf(),
            format: Format::Karpathy,
            line: None,
            expected: "one dataset*.json in the folder, or the name of one".to_owned(),
            got: several.len().to_string(),
        }),
    }
}

fn read_shards(path: &Path, options: &ReadOptions) -> Result<Dataset, DataError> {
    let files = if path.exists() { files_or(path, webdataset::files_in) } else { webdataset::expand(path)? };
    webdataset::read(path, &files, options)
}

#[cfg(feature = "parquet")]
fn read_parquet(path: &Path, options: &ReadOptions) -> Result<Dataset, DataError> {
    parquet::read(path, &files_or(path, parquet_files_in), options)
}

#[cfg(not(feature = "parquet"))]
fn read_parquet(path: &Path, _: &ReadOptions) -> Result<Dataset, DataError> {
    Err(DataError::Malformed {
        path: path.to_path_buf(),
        format: Format::Parquet,
        line: None,
        expected: "a format of this build".to_owned(),
        got: "Parquet, which needs the feature `parquet`".to_owned(),
    })
}
