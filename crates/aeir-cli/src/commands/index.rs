//! `aeir index`.

use std::path::Path;

use aeir_data::{Dataset, ImageSource, Skipped, TargetSentences, write_skipped};
use aeir_encoders::Bundle;
use aeir_retrieve::{Confidence, Correction, GalleryCorrection, IndexBuilder, IndexContent};
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
    let data = Dataset::open_images(&flags.images, &flags.reading.options())?;
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
    let built = build(&bundle, &mut extractor, &images, skipped, bank.as_ref(), &flags.output)?;
    tell_skipped(terminal, &built.skipped, Some(&flags.output.join(SKIPPED_FILE)));
    tell(&flags.output, built.items.len(), bank.as_ref())
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
    bank: Option<&QueryBank>,
    folder: &Path,
) -> anyhow::Result<Built> {
    // Claims the folder first: a refusal should not come after the work.
    let builder = IndexBuilder::begin(folder)?;
    let extracted = extractor.images("images", images)?;
    let embeddings = embed_table(&extracted.table, bundle.device(), |items| bundle.encode_images(items))?;
    let items = extracted
        .kept()
        .filter_map(|index| images.get(index))
        .map(|image| image.absolute_name().with_context(|| format!("could not make `{image}` absolute")))
        .collect::<anyhow::Result<Vec<String>>>()?;
    let model = builder.staging().join(MODEL_FOLDER);
    std::fs::create_dir_all(&model).with_context(|| format!("could not make `{}`", model.display()))?;
    bundle.copy_to(&model)?;
    if let Some(QueryBank { sentences, correction }) = bank {
        let table = extractor.sentences("bank sentences", sentences)?;
        let queries = embed_table(&table, bundle.device(), |items| bundle.encode_sentences(items))?;
        Confidence::of_bank(&embeddings, &queries)?.write(builder.staging())?;
        if let Some(correction) = correction {
            GalleryCorrection::of_bank(*correction, &embeddings, &queries)?.write(builder.staging())?;
        }
    }
    skipped.extend(extracted.skipped);
    write_skipped(&builder.staging().join(SKIPPED_FILE), &skipped)?;
    builder.commit(IndexContent::new(&embeddings, &items, bundle.fingerprint()))?;
    Ok(Built { items, skipped })
}
