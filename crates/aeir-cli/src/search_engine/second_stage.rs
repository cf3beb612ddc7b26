//! Results in the order of the model's cross-attentive head.

use std::collections::HashMap;

use aeir_data::{ImageSource, Skipped};
use aeir_encoders::{Bundle, Mode};
use aeir_retrieve::{Hit, Query, rerank_hits};
use aeir_train::{ItemTable, TrainError};

use crate::backbones::extractor_of;
use crate::flags::Rerank;
use crate::place::feature_cache;
use crate::progress::extraction;
use crate::terminal::Terminal;

/// Images whose fragments are encoded and scored at once.
const IMAGES_AT_ONCE: usize = 128;

/// How many results the model's head looks at; 0 where it has no head or none is asked for.
pub(crate) fn stages_of(bundle: &Bundle, rerank: Rerank) -> usize {
    match rerank {
        _ if !bundle.encoder().config().head.is_cross_attentive() => 0,
        Rerank::First(count) => count,
        Rerank::All => usize::MAX,
    }
}

/// Hits of a sentence, the first `count` of them ordered by the model's head.
///
/// The head needs the fragments of the images found. They are encoded again, or come from the feature cache; an image that
/// can't be read any more keeps its place behind those that can.
pub(crate) fn reranked(
    bundle: &Bundle,
    hits: Vec<Hit>,
    sentence: &str,
    count: usize,
    terminal: &Terminal,
) -> anyhow::Result<(Vec<Hit>, Vec<Skipped>)> {
    let sentence = bundle.encode_sentences(&bundle.sentence_items(&[sentence])?)?;
    let Fragments { readable, unreadable, table, skipped } = fragments_of(bundle, hits, count, terminal)?;
    let mut scores = Vec::with_capacity(table.len());
    for start in (0..table.len()).step_by(IMAGES_AT_ONCE) {
        let rows: Vec<usize> = (start..table.len().min(start + IMAGES_AT_ONCE)).collect();
        let images = bundle.encode_images(&table.items(&rows, bundle.device())?)?;
        let found = bundle.encoder().scores(&images, &sentence, &mut Mode::Evaluation)?;
        scores.extend(found.flatten_all()?.to_vec1::<f32>()?);
    }
    if readable.is_empty() {
        return Ok((unreadable, skipped));
    }
    let by_place: HashMap<usize, f32> =
        readable.iter().map(|hit| hit.position).zip(scores.iter().copied()).collect();
    let mut second = |_: Query, candidates: &[usize]| -> std::result::Result<Vec<f32>, TrainError> {
        Ok(candidates.iter().filter_map(|place| by_place.get(place).copied()).collect())
    };
    let found = rerank_hits(readable, Query::Sentence(0), count, &mut second)?;
    Ok((found.into_iter().map(|found| found.hit).chain(unreadable).collect(), skipped))
}

/// Hits with their fragments, row by row, and the hits without.
struct Fragments {
    readable: Vec<Hit>,
    unreadable: Vec<Hit>,
    table: ItemTable,
    skipped: Vec<Skipped>,
}

/// The fragments of the first `count` hits.
fn fragments_of(
    bundle: &Bundle,
    hits: Vec<Hit>,
    count: usize,
    terminal: &Terminal,
) -> anyhow::Result<Fragments> {
    let behind: Vec<Hit> = hits.iter().skip(count).cloned().collect();
    let first: Vec<Hit> = hits.into_iter().take(count).collect();
    let names: Vec<&str> = first.iter().map(|hit| hit.item.as_str()).collect();
    let images = ImageSource::of_names(&names)?;
    let mut extractor =
        extractor_of(bundle)?.with_cache(&feature_cache()?)?.with_progress(extraction(terminal));
    let extracted = extractor.images("images to re-rank", &images)?;
    let (mut readable, mut unreadable) = (Vec::new(), Vec::new());
    for (hit, row) in first.into_iter().zip(&extracted.rows) {
        if row.is_some() { readable.push(hit) } else { unreadable.push(hit) }
    }
    unreadable.extend(behind);
    Ok(Fragments { readable, unreadable, table: extracted.table, skipped: extracted.skipped })
}
