//! `aeir search`.

use std::collections::HashMap;
use std::fmt::Write;

use aeir_data::ImageSource;
use aeir_encoders::{Bundle, Items, Mode};
use aeir_retrieve::{Hit, Index, Query, rerank_hits};
use aeir_train::{ItemTable, TrainError};
use serde::Serialize;

use super::index::MODEL_FOLDER;
use super::{decode_query, print, print_json};
use crate::backbones::extractor_of;
use crate::failure::CliError;
use crate::flags::{Rerank, SearchFlags};
use crate::place::feature_cache;
use crate::progress::extraction;
use crate::terminal::Terminal;

#[derive(Serialize)]
struct Answer<'a> {
    results: Vec<Result<'a>>,
}

#[derive(Serialize)]
struct Result<'a> {
    rank: usize,
    score: f32,
    path: &'a str,
}

/// Answers one query.
pub(crate) fn run(flags: &SearchFlags, terminal: &Terminal) -> anyhow::Result<()> {
    let sentence = flags.sentence.as_deref().map(str::trim);
    if sentence == Some("") {
        return Err(CliError::Usage {
            message: "the sentence is empty".into(),
            hint: "say what the image shows, for instance \"a red car\"".into(),
        }
        .into());
    }
    let index = Index::open(&flags.index)?;
    let device = flags.device.device.open(terminal)?;
    let bundle = Bundle::load(&flags.index.join(MODEL_FOLDER), &device)?;
    index.check_model(bundle.fingerprint())?;
    let items = match (&flags.image, sentence) {
        (Some(image), _) => bundle.image_items(&[decode_query(image)?.image])?,
        (None, sentence) => bundle.sentence_items(&[sentence.unwrap_or_default()])?,
    };
    let rerank = Rerank::of_model(flags.rerank, bundle.encoder().config(), terminal);
    let hits = match (&flags.image, second_stage(&bundle, rerank)) {
        (None, Some(count)) => reranked(&bundle, &index, &items, count, flags.k, terminal)?,
        _ => {
            let query = if flags.image.is_some() {
                bundle.encode_images(&items)?
            } else {
                bundle.encode_sentences(&items)?
            };
            index.search(&query.pooled()?.flatten_all()?.to_vec1::<f32>()?, flags.k)?
        }
    };
    if flags.json {
        let results = hits.iter().map(|Hit { rank, score, item, .. }| Result {
            rank: *rank,
            score: *score,
            path: item,
        });
        return print_json(&Answer { results: results.collect() });
    }
    let mut text = String::new();
    for Hit { rank, score, item, .. } in &hits {
        // Writing to a String can't fail.
        let _ = writeln!(text, "{rank:>4}  {score:.4}  {item}");
    }
    print(&text)
}

/// How many results the model's head looks at; none where it has no head or none is asked for.
fn second_stage(bundle: &Bundle, rerank: Rerank) -> Option<usize> {
    match rerank {
        _ if !bundle.encoder().config().head.is_cross_attentive() => None,
        Rerank::First(0) => None,
        Rerank::First(count) => Some(count),
        Rerank::All => Some(usize::MAX),
    }
}

/// The first `count` results of a sentence, ordered by the model's head; the best `k` of them.
///
/// The head needs the fragments of the images found. They are encoded again, or come from the feature cache; an image that
/// can't be read any more keeps its place behind those that can.
fn reranked(
    bundle: &Bundle,
    index: &Index,
    sentence: &Items,
    count: usize,
    k: usize,
    terminal: &Terminal,
) -> anyhow::Result<Vec<Hit>> {
    let sentence = bundle.encode_sentences(sentence)?;
    let vector = sentence.pooled()?.flatten_all()?.to_vec1::<f32>()?;
    let hits = index.search(&vector, count.max(k).min(index.len()))?;
    let (readable, unreadable, table) = fragments_of(bundle, hits, count, terminal)?;
    let mut scores = Vec::with_capacity(table.len());
    for start in (0..table.len()).step_by(IMAGES_AT_ONCE) {
        let rows: Vec<usize> = (start..table.len().min(start + IMAGES_AT_ONCE)).collect();
        let images = bundle.encode_images(&table.items(&rows, bundle.device())?)?;
        let found = bundle.encoder().scores(&images, &sentence, &mut Mode::Evaluation)?;
        scores.extend(found.flatten_all()?.to_vec1::<f32>()?);
    }
    let by_place: HashMap<usize, f32> =
        readable.iter().map(|hit| hit.position).zip(scores.iter().copied()).collect();
    let mut second = |_: Query, candidates: &[usize]| -> std::result::Result<Vec<f32>, TrainError> {
        Ok(candidates.iter().filter_map(|place| by_place.get(place).copied()).collect())
    };
    let found = if readable.is_empty() {
        Vec::new()
    } else {
        rerank_hits(readable, Query::Sentence(0), count, &mut second)?
    };
    let mut hits: Vec<Hit> = found.into_iter().map(|found| found.hit).chain(unreadable).take(k).collect();
    for (place, hit) in hits.iter_mut().enumerate() {
        hit.rank = place + 1;
    }
    Ok(hits)
}

/// Images whose fragments are encoded and scored at once.
const IMAGES_AT_ONCE: usize = 128;

/// The first `count` hits with their fragments, row by row, and the hits without.
fn fragments_of(
    bundle: &Bundle,
    hits: Vec<Hit>,
    count: usize,
    terminal: &Terminal,
) -> anyhow::Result<(Vec<Hit>, Vec<Hit>, ItemTable)> {
    let behind: Vec<Hit> = hits.iter().skip(count).cloned().collect();
    let first: Vec<Hit> = hits.into_iter().take(count).collect();
    let names: Vec<&str> = first.iter().map(|hit| hit.item.as_str()).collect();
    let images = ImageSource::of_names(&names)?;
    let mut extractor =
        extractor_of(bundle)?.with_cache(&feature_cache()?)?.with_progress(extraction(terminal));
    let extracted = extractor.images("images to re-rank", &images)?;
    super::tell_skipped(terminal, &extracted.skipped, None);
    let (mut readable, mut unreadable) = (Vec::new(), Vec::new());
    for (hit, row) in first.into_iter().zip(&extracted.rows) {
        if row.is_some() { readable.push(hit) } else { unreadable.push(hit) }
    }
    unreadable.extend(behind);
    Ok((readable, unreadable, extracted.table))
}
