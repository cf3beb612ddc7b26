//! MSCOCO's caption files: `captions_train2014.json` and its like.

use std::collections::HashMap;
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
    #[serde(default)]
    annotations: Vec<Annotation>,
}

#[derive(Deserialize)]
struct Image {
    id: Id,
    file_name: String,
}

#[derive(Deserialize)]
struct Annotation {
    image_id: Id,
    /// Boxes and masks, which lie beside the captions in some files, have none.
    caption: Option<String>,
}

/// The caption files of a folder, or of `annotations` in it.
pub(crate) fn files_in(folder: &Path) -> Vec<PathBuf> {
    let is_captions = |name: &str| name.starts_with("captions_") && name.ends_with(".json");
    let here = super::files_named(folder, is_captions);
    if here.is_empty() { super::files_named(&folder.join("annotations"), is_captions) } else { here }
}

/// Reads caption files. The split is in the name of the file; the images lie beside it, in `images`, or in the folder that the
/// name of the file tells (`train2014`).
///
/// # Errors
/// Those of [`json::read`]; [`DataError::NothingUsable`].
pub(crate) fn read(path: &Path, files: &[PathBuf], options: &ReadOptions) -> Result<Dataset, DataError> {
    let mut collector = Collector::default();
    for file in files {
        let split = Split::of_file_name(file);
        if options.wants(split) {
            read_file(file, split, options, &mut collector)?;
        }
    }
    collector.finish(path, Format::Coco, "image")
}

fn read_file(
    file: &Path,
    split: Option<Split>,
    options: &ReadOptions,
    collector: &mut Collector,
) -> Result<(), DataError> {
    let document: Document = json::read(file, Format::Coco)?;
    let mut root = ImageRoot::new(file, options).also(usual_folders(file));
    let skip = |item: &str, reason: String| Skipped::in_file(file, None, item, reason);
    let mut positions: HashMap<&str, usize> = HashMap::with_capacity(document.images.len());
    let mut captions: Vec<Vec<&str>> = vec![Vec::new(); document.images.len()];
    for (position, image) in document.images.iter().enumerate() {
        if positions.contains_key(image.id.0.as_str()) {
            let reason = format!("image id {} stands before", image.id.0);
            collector.skipped.push(skip(&image.file_name, reason));
        } else {
            positions.insert(&image.id.0, position);
        }
    }
    for annotation in &document.annotations {
        let Some(caption) = annotation.caption.as_deref() else { continue };
        match positions.get(annotation.image_id.0.as_str()).and_then(|position| captions.get_mut(*position)) {
            Some(captions) => captions.push(caption),
            None => {
                let reason = format!("image id {} is not in the file", annotation.image_id.0);
                collector.skipped.push(skip(caption, reason));
            }
        }
    }
    for (position, (image, captions)) in document.images.iter().zip(captions).enumerate() {
        if positions.get(image.id.0.as_str()) != Some(&position) {
            continue;
        }
        if image.file_name.trim().is_empty() || image.file_name.contains('\0') {
            collector.skipped.push(skip(&image.id.0, "the file name is empty or has a NUL".to_owned()));
            continue;
        }
        let sentences = collector.usable(file, None, &image.file_name, captions);
        collector.add(Item {
            id: image.id.0.clone(),
            image: Some(root.source(&image.file_name)?),
            sentences,
            split,
            line: None,
        });
    }
    collector.notes.extend(root.note());
    Ok(())
}

/// `train2014` of `annotations/captions_train2014.json`, beside the file, in `images`, and the same one folder up.
fn usual_folders(file: &Path) -> Vec<PathBuf> {
    let stem = file.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let part = stem.strip_prefix("captions_").unwrap_or(&stem);
    let up = Path::new("..");
    vec![
        PathBuf::from(part),
        Path::new("images").join(part),
        up.join(part),
        up.join("images").join(part),
        up.join("images"),
        up.to_path_buf(),
    ]
}
