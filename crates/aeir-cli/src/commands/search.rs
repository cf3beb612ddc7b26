//! `aeir search`.

use std::collections::HashMap;
use std::fmt::Write;

use aeir_data::{ImageSource, TestPairs};
use aeir_encoders::{Bundle, Encoded, Mode};
use aeir_retrieve::{Confidence, ConformalSets, GalleryCorrection, Hit, Index, Query, rerank_hits};
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
    /// Where the index has a query bank and the query is a sentence.
    #[serde(skip_serializing_if = "Option::is_none")]
    confidence: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    no_good_match: Option<bool>,
    /// What the scores were corrected by.
    #[serde(skip_serializing_if = "Option::is_none")]
    correction: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    set: Option<SetOfResults>,
}

#[derive(Serialize)]
struct Result<'a> {
    rank: usize,
    score: f32,
    path: &'a str,
}

/// As many results as hold the right one often enough.
#[derive(Serialize)]
struct SetOfResults {
    #[serde(flatten)]
    sets: ConformalSets,
    /// Items of the index that belong to it, shown or not.
    size: usize,
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
    let trust = Trust::read(flags, &index)?;
    let bundle = Bundle::load(&flags.index.join(MODEL_FOLDER), &device)?;
    index.check_model(bundle.fingerprint())?;
    let items = match (&flags.image, sentence) {
        (Some(image), _) => bundle.image_items(&[decode_query(image)?.image])?,
        (None, sentence) => bundle.sentence_items(&[sentence.unwrap_or_default()])?,
    };
    let rerank = Rerank::of_model(flags.rerank, bundle.encoder().config(), terminal);
    let query = if flags.image.is_some() {
        bundle.encode_images(&items)?
    } else {
        bundle.encode_sentences(&items)?
    };
    let vector = query.pooled()?.flatten_all()?.to_vec1::<f32>()?;
    let confidence = trust.confidence_of(&index, &vector)?;
    let no_good_match = flags.min_confidence.zip(confidence).map(|(least, confidence)| confidence < least);
    let (mut hits, mut set) = (Vec::new(), None);
    if no_good_match != Some(true) {
        hits = match (&flags.image, second_stage(&bundle, rerank)) {
            (None, Some(count)) => {
                trust.refuse_sets_of_a_head()?;
                reranked(&bundle, &index, &trust, &query, &vector, count, flags.k, terminal)?
            }
            _ => {
                set = trust.set(flags, &bundle, &index, &vector, terminal)?;
                let shown = set.as_ref().map_or(flags.k, |set| set.size.clamp(1, flags.k));
                trust.search(&index, &vector, shown)?
            }
        };
    }
    if flags.json {
        let results = hits.iter().map(|Hit { rank, score, item, .. }| Result {
            rank: *rank,
            score: *score,
            path: item,
        });
        let results = results.collect();
        return print_json(&Answer {
            results,
            confidence,
            no_good_match,
            correction: trust.correction_name(),
            set,
        });
    }
    let mut text = String::new();
    for Hit { rank, score, item, .. } in &hits {
        // Writing to a String can't fail.
        let _ = writeln!(text, "{rank:>4}  {score:.4}  {item}");
    }
    if let (Some(true), Some(confidence)) = (no_good_match, confidence) {
        let _ = writeln!(
            text,
            "no good match: {:.1} % of the target's own sentences find no better one",
            100.0 * confidence
        );
    }
    if let Some(SetOfResults { sets, size }) = &set {
        terminal.note(&format!(
            "{size} of {} images are needed to hold the right one in {:.0} % of the queries, by {} labelled ones",
            index.len(),
            100.0 * sets.coverage,
            sets.labelled
        ));
    }
    print(&text)
}

/// What an index says of itself beside its vectors, and what labelled pairs add.
struct Trust {
    correction: Option<GalleryCorrection>,
    confidence: Option<Confidence>,
    calibration: Option<TestPairs>,
}

impl Trust {
    /// Of an index, for the kind of query that is asked: all of it was worked out for sentences.
    fn read(flags: &SearchFlags, index: &Index) -> anyhow::Result<Self> {
        let confidence = Confidence::read(index)?;
        if flags.min_confidence.is_some() && (confidence.is_none() || flags.image.is_some()) {
            let (message, hint) = match flags.image {
                Some(_) => ("--min-confidence is of queries by sentence", "leave it out with --image"),
                None => (
                    "this index has no query bank: it can't tell how good a match is",
                    "index again with --query-bank SENTENCES, unpaired sentences of the target",
                ),
            };
            return Err(CliError::Usage { message: message.into(), hint: hint.into() }.into());
        }
        if flags.image.is_some() {
            return Ok(Self { correction: None, confidence: None, calibration: None });
        }
        let correction = GalleryCorrection::read(index)?.filter(|_| !flags.plain);
        let calibration = flags.calibration.as_deref().map(|path| TestPairs::read(path, None)).transpose()?;
        Ok(Self { correction, confidence, calibration })
    }

    fn correction_name(&self) -> Option<&'static str> {
        self.correction.as_ref().map(|correction| correction.correction().name())
    }

    fn search(&self, index: &Index, vector: &[f32], k: usize) -> anyhow::Result<Vec<Hit>> {
        Ok(match &self.correction {
            Some(correction) => index.search_with(vector, k, correction)?,
            None => index.search(vector, k)?,
        })
    }

    /// By the plain score of the best item, corrected or not.
    fn confidence_of(&self, index: &Index, vector: &[f32]) -> anyhow::Result<Option<f64>> {
        let Some(confidence) = &self.confidence else { return Ok(None) };
        Ok(index.search(vector, 1)?.first().map(|best| confidence.of(best.score)))
    }

    fn refuse_sets_of_a_head(&self) -> anyhow::Result<()> {
        match self.calibration {
            None => Ok(()),
            Some(_) => Err(CliError::Usage {
                message: "--calibration is of pooled vectors: it does not go with a head that re-ranks"
                    .into(),
                hint: "add --rerank 0".into(),
            }
            .into()),
        }
    }

    /// How many results a query needs, by labelled pairs whose images are indexed.
    fn set(
        &self,
        flags: &SearchFlags,
        bundle: &Bundle,
        index: &Index,
        vector: &[f32],
        terminal: &Terminal,
    ) -> anyhow::Result<Option<SetOfResults>> {
        let Some(pairs) = &self.calibration else { return Ok(None) };
        let places: HashMap<&str, usize> = index.items().zip(0..).collect();
        let (mut gaps, mut unknown) = (Vec::new(), 0);
        for (caption, owner) in pairs.captions().iter().zip(pairs.owners()) {
            let name = pairs.images().get(*owner).map(ImageSource::absolute_name).transpose()?;
            let Some(place) = name.and_then(|name| places.get(name.as_str()).copied()) else {
                unknown += 1;
                continue;
            };
            let query = bundle.embed_sentences(&[caption])?.flatten_all()?.to_vec1::<f32>()?;
            let all = self.search(index, &query, index.len())?;
            let best = all.first().map_or(0.0, |hit| f64::from(hit.score));
            let right = all
                .iter()
                .find(|hit| hit.position == place)
                .map_or(f64::NEG_INFINITY, |hit| f64::from(hit.score));
            gaps.push(best - right);
        }
        if unknown > 0 {
            terminal.warn(&format!(
                "{unknown} of {} labelled sentences are of images that are not indexed",
                pairs.captions().len()
            ));
        }
        if gaps.is_empty() {
            return Err(CliError::Data {
                message: "no labelled pair is of an indexed image".into(),
                hint: "--calibration takes pairs whose images were indexed, under the same paths".into(),
            }
            .into());
        }
        let sets = ConformalSets::calibrate(&gaps, flags.coverage)?;
        let scores: Vec<f32> = self.search(index, vector, index.len())?.iter().map(|hit| hit.score).collect();
        Ok(Some(SetOfResults { sets, size: sets.size(&scores) }))
    }
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
#[allow(clippy::too_many_arguments)]
fn reranked(
    bundle: &Bundle,
    index: &Index,
    trust: &Trust,
    sentence: &Encoded,
    vector: &[f32],
    count: usize,
    k: usize,
    terminal: &Terminal,
) -> anyhow::Result<Vec<Hit>> {
    let hits = trust.search(index, vector, count.max(k).min(index.len()))?;
    let (readable, unreadable, table) = fragments_of(bundle, hits, count, terminal)?;
    let mut scores = Vec::with_capacity(table.len());
    for start in (0..table.len()).step_by(IMAGES_AT_ONCE) {
        let rows: Vec<usize> = (start..table.len().min(start + IMAGES_AT_ONCE)).collect();
        let images = bundle.encode_images(&table.items(&rows, bundle.device())?)?;
        let found = bundle.encoder().scores(&images, sentence, &mut Mode::Evaluation)?;
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
