//! `aeir index`.

use std::path::{Path, PathBuf};

use aeir_data::{RegionFeatures, Skipped, TargetImages, read_captions, write_skipped};
use aeir_encoders::Bundle;
use aeir_retrieve::{IndexBuilder, IndexContent};
use aeir_train::features::FeatureExtractor;
use aeir_train::run::SKIPPED_FILE;
use aeir_train::validate::embed_table;
use anyhow::Context;

use super::{print, tell_skipped};
use crate::backbones::extractor_of;
use crate::flags::IndexFlags;
use crate::place::feature_cache;
use crate::progress::extraction;
use crate::terminal::Terminal;

/// The folder inside an index that holds its model.
pub(crate) const MODEL_FOLDER: &str = "model";

/// Embeds images and stores them for search.
pub(crate) fn run(flags: &IndexFlags, terminal: &Terminal) -> anyhow::Result<()> {
    let device = flags.device.device.open(terminal)?;
    let bundle = Bundle::load(&flags.model, &device)?;
    if is_npy(&flags.images) {
        let count = build_of_regions(&bundle, &flags.images, &flags.output, terminal)?;
        return tell(&flags.output, count);
    }
    let (paths, skipped) = image_paths(&flags.images)?;
    let mut extractor =
        extractor_of(&bundle)?.with_cache(&feature_cache()?)?.with_progress(extraction(terminal));
    let built = build(&bundle, &mut extractor, &paths, skipped, &flags.output)?;
    tell_skipped(terminal, &built.skipped, Some(&flags.output.join(SKIPPED_FILE)));
    tell(&flags.output, built.items.len())
}

fn tell(folder: &Path, count: usize) -> anyhow::Result<()> {
    let folder = folder.display();
    print(&format!(
        "index   {folder}\nimages  {count}\nnext    aeir search --index {folder} \"a sentence\"\n"
    ))
}

fn is_npy(path: &Path) -> bool {
    path.extension().is_some_and(|suffix| suffix.eq_ignore_ascii_case("npy")) && path.is_file()
}

/// An index of a file of region features; an item is named `FILE#ROW`. Gives the number of items.
fn build_of_regions(
    bundle: &Bundle,
    images: &Path,
    folder: &Path,
    terminal: &Terminal,
) -> anyhow::Result<usize> {
    let builder = IndexBuilder::begin(folder)?;
    let absolute = std::path::absolute(images)
        .with_context(|| format!("could not make `{}` absolute", images.display()))?;
    let features = RegionFeatures::open(&absolute)?;
    features.note().iter().for_each(|note| terminal.warn(note));
    let table = extractor_of(bundle)?.regions(&features)?;
    let embeddings = embed_table(&table, bundle.device(), |items| bundle.encode_images(items))?;
    let items: Vec<String> = (0..features.len()).map(|image| features.name(image)).collect();
    let model = builder.staging().join(MODEL_FOLDER);
    std::fs::create_dir_all(&model).with_context(|| format!("could not make `{}`", model.display()))?;
    bundle.copy_to(&model)?;
    write_skipped(&builder.staging().join(SKIPPED_FILE), &[])?;
    builder.commit(IndexContent {
        embeddings: &embeddings,
        items: &items,
        model_fingerprint: bundle.fingerprint(),
    })?;
    Ok(items.len())
}

/// What an index was made of.
pub(crate) struct Built {
    pub(crate) items: Vec<String>,
    pub(crate) skipped: Vec<Skipped>,
}

/// Embeds `paths` and writes the index, with a copy of the model and the list of skipped items in it.
pub(crate) fn build(
    bundle: &Bundle,
    extractor: &mut FeatureExtractor<'_>,
    paths: &[PathBuf],
    mut skipped: Vec<Skipped>,
    folder: &Path,
) -> anyhow::Result<Built> {
    // Claims the folder first: a refusal should not come after the work.
    let builder = IndexBuilder::begin(folder)?;
    let extracted = extractor.images("images", paths)?;
    let embeddings = embed_table(&extracted.table, bundle.device(), |items| bundle.encode_images(items))?;
    let items = extracted
        .kept()
        .filter_map(|index| paths.get(index))
        .map(|path| {
            let absolute = std::path::absolute(path)
                .with_context(|| format!("could not make `{}` absolute", path.display()))?;
            Ok(absolute.to_string_lossy().into_owned())
        })
        .collect::<anyhow::Result<Vec<String>>>()?;
    let model = builder.staging().join(MODEL_FOLDER);
    std::fs::create_dir_all(&model).with_context(|| format!("could not make `{}`", model.display()))?;
    bundle.copy_to(&model)?;
    skipped.extend(extracted.skipped);
    write_skipped(&builder.staging().join(SKIPPED_FILE), &skipped)?;
    builder.commit(IndexContent {
        embeddings: &embeddings,
        items: &items,
        model_fingerprint: bundle.fingerprint(),
    })?;
    Ok(Built { items, skipped })
}

/// The images that a folder, a list or a `.jsonl` file names, each once.
fn image_paths(input: &Path) -> anyhow::Result<(Vec<PathBuf>, Vec<Skipped>)> {
    let jsonl =
        input.extension().is_some_and(|suffix| suffix.eq_ignore_ascii_case("jsonl")) && input.is_file();
    if !jsonl {
        let images = TargetImages::read(input)?;
        return Ok((images.paths().to_vec(), images.skipped().to_vec()));
    }
    let file = read_captions(input)?;
    let mut seen = std::collections::HashSet::new();
    let paths =
        file.items.into_iter().map(|item| item.image).filter(|image| seen.insert(image.clone())).collect();
    Ok((paths, file.skipped))
}
