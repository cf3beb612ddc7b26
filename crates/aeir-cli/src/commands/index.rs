//! `aeir index`.

mod bank;
pub(crate) mod change;
mod export;
mod info;
mod metadata;
mod upload;

use std::path::{Path, PathBuf};

use aeir_data::{Dataset, ImageSource, Skipped, TargetSentences, write_skipped};
use aeir_encoders::Bundle;
use aeir_retrieve::{Correction, IndexBuilder, IndexContent, Matrix, Storage};
use aeir_train::features::FeatureExtractor;
use aeir_train::run::SKIPPED_FILE;
use aeir_train::validate::embed_table;
use anyhow::Context;

use self::metadata::MetadataFile;
use self::upload::Scratch;
use super::{print, tell_skipped};
use crate::backbones::extractor_of;
use crate::failure::CliError;
use crate::flags::index::{Approximate, IndexCommand, IndexFlags};
use crate::place::feature_cache;
use crate::progress::extraction;
use crate::terminal::Terminal;

/// The folder inside an index that holds its model.
pub(crate) const MODEL_FOLDER: &str = "model";

/// Builds an index or changes one.
pub(crate) fn run(flags: &IndexFlags, terminal: &Terminal) -> anyhow::Result<()> {
    match &flags.change {
        None => build_index(flags, terminal),
        Some(IndexCommand::Add(flags)) => change::add(flags, terminal),
        Some(IndexCommand::Remove(flags)) => change::remove(flags),
        Some(IndexCommand::Compact(flags)) => change::compact(flags, terminal),
        Some(IndexCommand::Info(flags)) => info::run(flags),
        Some(IndexCommand::Export(flags)) => export::run(flags),
        Some(IndexCommand::Upload(flags)) => upload::run(flags, terminal),
    }
}

/// A flag that is needed unless a command follows.
fn needed<'a>(value: Option<&'a PathBuf>, flag: &str) -> anyhow::Result<&'a Path> {
    let missing = || CliError::Usage { message: format!("{flag} is missing"), hint: String::new() };
    Ok(value.ok_or_else(missing)?)
}

/// Embeds images and stores them for search.
fn build_index(flags: &IndexFlags, terminal: &Terminal) -> anyhow::Result<()> {
    if let Some(to) = &flags.to {
        upload::check(to)?;
    }
    // Without --output the index is wanted in a collection alone, and is made beside it.
    let scratch = flags.output.is_none().then(Scratch::new);
    let output = match &scratch {
        Some(scratch) => scratch.folder(),
        None => needed(flags.output.as_ref(), "--output")?,
    };
    let device = flags.device.device.open(terminal)?;
    let model = needed(flags.model.as_ref(), "--model")?;
    let bundle = Bundle::load(model, &device)?;
    let metadata = flags.metadata.metadata.as_deref().map(MetadataFile::read).transpose()?;
    let data = Dataset::open_images(needed(flags.images.as_ref(), "--images")?, &flags.reading.options())?;
    data.notes.iter().for_each(|note| terminal.warn(note));
    let (images, mut skipped) = (data.images(), data.skipped);
    let mut extractor = extractor_of(&bundle)?
        .with_cache(&feature_cache()?)?
        .with_limits(flags.loading.limits())
        .with_progress(extraction(terminal));
    let bank = match &flags.query_bank {
        Some(path) => {
            let bank = TargetSentences::read_with(path, &flags.reading.options())?;
            bank.notes().iter().for_each(|note| terminal.warn(note));
            skipped.extend(bank.skipped().iter().cloned());
            Some(QueryBank {
                sentences: bank.sentences().to_vec(),
                correction: flags.correction.map(|correction| correction.correction(flags.beta)),
            })
        }
        None => None,
    };
    let with = Extras {
        bank: bank.as_ref(),
        metadata,
        storage: flags.storage.storage(),
        approximate: flags.approximate.approximate,
    };
    let built = build(&bundle, &mut extractor, &images, skipped, with, output, terminal)?;
    let list = output.join(SKIPPED_FILE);
    tell_skipped(terminal, &built.skipped, scratch.is_none().then_some(&list).map(PathBuf::as_path));
    if scratch.is_none() {
        tell(output, built.items.len(), bank.as_ref())?;
    }
    match &flags.to {
        Some(to) => upload::upload(output, model, to, &flags.upload, terminal),
        None => Ok(()),
    }
}

/// What an index may have beside its images and the model.
pub(crate) struct Extras<'a> {
    bank: Option<&'a QueryBank>,
    metadata: Option<MetadataFile>,
    storage: Storage,
    approximate: Approximate,
}

impl Default for Extras<'_> {
    fn default() -> Self {
        Self { bank: None, metadata: None, storage: Storage::default(), approximate: Approximate::No }
    }
}

/// What queries look like, and how searches are corrected by it.
pub(crate) struct QueryBank {
    sentences: Vec<String>,
    correction: Option<Correction>,
}

fn tell(folder: &Path, count: usize, bank: Option<&QueryBank>) -> anyhow::Result<()> {
    let folder = folder.display();
    let corrected = bank.map_or_else(String::new, |bank| {
        let how = bank.correction.map_or("no correction", |correction| correction.name());
        format!("bank    {} sentences, {how}\n", bank.sentences.len())
    });
    print(&format!(
        "index   {folder}\nimages  {count}\n{corrected}next    aeir search --index {folder} \"a sentence\"\n"
    ))
}

/// What an index was made of.
pub(crate) struct Built {
    pub(crate) items: Vec<String>,
    pub(crate) skipped: Vec<Skipped>,
}

/// Embeds `images` and writes the index, with a copy of the model, the list of skipped items and what was worked out from the
/// query bank in it.
pub(crate) fn build(
    bundle: &Bundle,
    extractor: &mut FeatureExtractor<'_>,
    images: &[ImageSource],
    mut skipped: Vec<Skipped>,
    with: Extras<'_>,
    folder: &Path,
    terminal: &Terminal,
) -> anyhow::Result<Built> {
    // Claims the folder first: a refusal should not come after the work.
    let builder = IndexBuilder::begin(folder)?;
    let (embeddings, items, left_out) = embedded(bundle, extractor, images)?;
    let model = builder.staging().join(MODEL_FOLDER);
    std::fs::create_dir_all(&model).with_context(|| format!("could not make `{}`", model.display()))?;
    bundle.copy_to(&model)?;
    if let Some(QueryBank { sentences, correction }) = with.bank {
        let table = extractor.sentences("bank sentences", sentences)?;
        let queries = embed_table(&table, bundle.device(), |items| bundle.encode_sentences(items))?;
        bank::write(&queries, *correction, &embeddings, builder.staging())?;
    }
    skipped.extend(left_out);
    write_skipped(&builder.staging().join(SKIPPED_FILE), &skipped)?;
    let metadata = with.metadata.map_or_else(Vec::new, |file| file.of(&items, terminal));
    let approximate = with.approximate.of(items.len());
    if approximate {
        terminal.note(&format!("building a graph of {} items", items.len()));
    }
    builder.with_storage(with.storage).with_graph(approximate).commit(IndexContent {
        metadata: &metadata,
        ..IndexContent::new(&embeddings, &items, bundle.fingerprint())
    })?;
    Ok(Built { items, skipped })
}

/// The vectors of images that can be read, their names, and what was left out.
fn embedded(
    bundle: &Bundle,
    extractor: &mut FeatureExtractor<'_>,
    images: &[ImageSource],
) -> anyhow::Result<(Matrix, Vec<String>, Vec<Skipped>)> {
    let extracted = extractor.images("images", images)?;
    let embeddings = embed_table(&extracted.table, bundle.device(), |items| bundle.encode_images(items))?;
    let items = extracted
        .kept()
        .filter_map(|index| images.get(index))
        .map(|image| image.absolute_name().with_context(|| format!("could not make `{image}` absolute")))
        .collect::<anyhow::Result<Vec<String>>>()?;
    Ok((embeddings, items, extracted.skipped))
}
