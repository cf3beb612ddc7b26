//! Karpathy's splits: `dataset_flickr30k.json`, `dataset_coco.json` and their like.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::image_root::ImageRoot;
use super::json::{self, Id};
use crate::dataset::{Collector, Dataset, Format, Item, ReadOptions};
use crate::error::DataError;
use crate::skipped::Skipped;
use crate::split::Split;

#[derive(Deserialize)]
struct Document {
    images: Vec<Image>,
}

#[derive(Deserialize)]
struct Image {
    filename: String,
    #[serde(default)]
    filepath: String,
    #[serde(default)]
    split: Option<String>,
    sentences: Vec<Sentence>,
    #[serde(default)]
    cocoid: Option<Id>,
    #[serde(default)]
    imgid: Option<Id>,
}

#[derive(Deserialize)]
struct Sentence {
    raw: Option<String>,
    #[serde(default)]
    tokens: Vec<String>,
}

impl Sentence {
    fn text(self) -> String {
        // Some copies keep the words alone.
        self.raw.unwrap_or_else(|| self.tokens.join(" "))
    }
}

/// The documents of a folder.
pub(crate) fn files_in(folder: &Path) -> Vec<PathBuf> {
    super::files_named(folder, |name| name.starts_with("dataset") && name.ends_with(".json"))
}

/// Reads one document. `restval` counts as training, as everybody uses it. The images lie where `filepath` and `filename` say,
/// relative to the folder of the file or to one of the usual folders in it.
///
/// # Errors
/// Those of [`json::read`]; [`DataError::NothingUsable`].
pub(crate) fn read(path: &Path, file: &Path, options: &ReadOptions) -> Result<Dataset, DataError> {
    let document: Document = json::read(file, Format::Karpathy)?;
    let mut collector = Collector::default();
    let folders = ["flickr30k-images", "flickr8k-images", "Flicker8k_Dataset", "..", "../images"];
    let mut root = ImageRoot::new(file, options).also(folders.map(PathBuf::from));
    let mut restval = 0;
    for (position, image) in document.images.into_iter().enumerate() {
        let skip = |reason: String| Skipped::in_file(file, None, &image.filename, reason);
        let split = match image.split.as_deref().map(|name| (name, Split::published(name))) {
            None => None,
            Some((name, Some(split))) => {
                restval += usize::from(name.eq_ignore_ascii_case("restval"));
                Some(split)
            }
            Some((name, None)) => {
                let name: String = name.chars().take(80).collect();
                collector.skipped.push(skip(format!("expected train, restval, val or test, got `{name}`")));
                continue;
            }
        };
        if image.filename.trim().is_empty() || image.filename.contains('\0') {
            collector.skipped.push(Skipped::in_file(
                file,
                None,
                &format!("image {position}"),
                "the file name is empty or has a NUL",
            ));
            continue;
        }
        let name = if image.filepath.is_empty() {
            image.filename.clone()
        } else {
            format!("{}/{}", image.filepath, image.filename)
        };
        let texts: Vec<String> = image.sentences.into_iter().map(Sentence::text).collect();
        let sentences = collector.usable(file, None, &image.filename, texts.iter().map(String::as_str));
        let id = image.cocoid.or(image.imgid).map_or_else(|| image.filename.clone(), |id| id.0);
        collector.add(Item { id, image: Some(root.source(&name)?), sentences, split, line: None });
    }
    if restval > 0 {
        collector.notes.push(format!(
            "`{}`: {restval} images of `restval` count as training, as is usual",
            file.display()
        ));
    }
    collector.notes.extend(root.note());
    collector.finish(path, Format::Karpathy, "image with captions")
}
