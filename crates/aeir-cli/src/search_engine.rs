//! Search as `aeir search` and `aeir serve` do it: an index with the model inside it, from a query to ordered results.
//!
//! A query becomes a unit vector; the index gives the items nearest to it, corrected for hubs where that was worked out; the model's head, if it has
//! one, orders the first of them anew; near-identical images are set aside as groups; confidence says how good the match is.

mod duplicates;
mod query;
mod second_stage;

use std::path::Path;
use std::sync::Arc;

use aeir_data::Skipped;
use aeir_encoders::Bundle;
use aeir_retrieve::{Confidence, GalleryCorrection, Hit, Index, Matrix};
use candle_core::Device;

pub(crate) use duplicates::DEFAULT_THRESHOLD;
pub(crate) use query::{Query, QueryError, Weights};
pub(crate) use second_stage::stages_of;

use crate::commands::index::MODEL_FOLDER;
use crate::terminal::Terminal;

/// Hits that are looked at, at most, to find enough that are no duplicates.
const MOST_LOOKED_THROUGH: usize = 10_000;

/// An index as it was opened, with what it says of its own scores.
pub(crate) struct Shelf {
    pub(crate) index: Index,
    pub(crate) correction: Option<GalleryCorrection>,
    pub(crate) confidence: Option<Confidence>,
}

impl Shelf {
    /// Opens and verifies an index.
    pub(crate) fn open(folder: &Path) -> anyhow::Result<Self> {
        let index = Index::open(folder)?;
        let correction = GalleryCorrection::read(&index)?;
        let confidence = Confidence::read(&index)?;
        Ok(Self { index, correction, confidence })
    }

    pub(crate) fn correction_name(&self) -> Option<&'static str> {
        self.correction.as_ref().map(|correction| correction.correction().name())
    }
}

/// How a query is answered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Manner {
    /// Results wanted.
    pub(crate) k: usize,
    /// Without the index's hubness correction.
    pub(crate) plain: bool,
    /// First results that the model's head orders anew; 0 for none.
    pub(crate) rerank: usize,
    /// Images of at least this cosine count as the same one; none keeps all apart.
    pub(crate) same_above: Option<f32>,
    /// No results where the confidence is lower.
    pub(crate) min_confidence: Option<f64>,
}

/// One result.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) hit: Hit,
    /// Share of the bank's sentences whose best match is no better than this one; of sentence queries alone.
    pub(crate) confidence: Option<f64>,
    /// Near-identical images behind it, best first.
    pub(crate) duplicates: Vec<Hit>,
}

/// What a query found.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    pub(crate) found: Vec<Found>,
    /// Of a sentence query, where the index has a query bank.
    pub(crate) confidence: Option<f64>,
    /// Whether the confidence is below the least that was asked for.
    pub(crate) no_good_match: Option<bool>,
    /// What the scores were corrected by.
    pub(crate) correction: Option<&'static str>,
    /// Images that could not be read for the second stage.
    pub(crate) skipped: Vec<Skipped>,
}

/// An index and its model, ready to answer.
pub(crate) struct SearchEngine {
    pub(crate) shelf: Shelf,
    pub(crate) bundle: Arc<Bundle>,
}

impl SearchEngine {
    /// Loads the model that lies in the index.
    pub(crate) fn new(shelf: Shelf, device: &Device) -> anyhow::Result<Self> {
        let bundle = Bundle::load(&shelf.index.folder().join(MODEL_FOLDER), device)?;
        Self::with_bundle(shelf, Arc::new(bundle))
    }

    /// With a model that is loaded already. Refuses another than the one that made the index.
    pub(crate) fn with_bundle(shelf: Shelf, bundle: Arc<Bundle>) -> anyhow::Result<Self> {
        shelf.index.check_model(bundle.fingerprint())?;
        Ok(Self { shelf, bundle })
    }

    /// Answers queries whose vectors are known, each in its manner. Those that go without correction are searched together.
    ///
    /// One query's failure is not the others'.
    pub(crate) fn answers(
        &self,
        asked: &[(&Query, &[f32], Manner)],
        terminal: &Terminal,
    ) -> Vec<anyhow::Result<Answer>> {
        let mut first = self.first_stages(asked);
        let mut answers = Vec::with_capacity(asked.len());
        for (place, (query, vector, manner)) in asked.iter().enumerate() {
            let hits = first.get_mut(place).and_then(Option::take);
            answers.push(self.answer(query, vector, *manner, hits, terminal));
        }
        answers
    }

    /// The first stages of all queries that need nothing but the plain order, in one pass over the index.
    fn first_stages(&self, asked: &[(&Query, &[f32], Manner)]) -> Vec<Option<Vec<Hit>>> {
        let mut found: Vec<Option<Vec<Hit>>> = vec![None; asked.len()];
        let together: Vec<usize> = (asked.iter().enumerate())
            .filter(|(_, (query, _, manner))| self.correction_of(query, *manner).is_none())
            .map(|(place, _)| place)
            .collect();
        // One alone gains nothing, and is searched by whoever needs it.
        if together.len() < 2 {
            return found;
        }
        let rows: Vec<&[f32]> = together.iter().filter_map(|place| Some(asked.get(*place)?.1)).collect();
        let depth = together
            .iter()
            .filter_map(|place| asked.get(*place).map(|(query, _, manner)| depth_of(query, *manner)))
            .max()
            .unwrap_or(1);
        // A query that can't be searched fails the batch: each is then searched, and refused, by itself.
        let Ok(batch) = Matrix::from_rows(&rows).and_then(|rows| self.shelf.index.search_batch(&rows, depth))
        else {
            return found;
        };
        for (place, hits) in together.into_iter().zip(batch) {
            if let Some(slot) = found.get_mut(place) {
                *slot = Some(hits);
            }
        }
        found
    }

    fn answer(
        &self,
        query: &Query,
        vector: &[f32],
        manner: Manner,
        first: Option<Vec<Hit>>,
        terminal: &Terminal,
    ) -> anyhow::Result<Answer> {
        let correction = self.correction_of(query, manner);
        let confidence = self.confidence_of(query, vector, first.as_deref())?;
        let mut answer = Answer {
            confidence,
            no_good_match: manner
                .min_confidence
                .zip(confidence)
                .map(|(least, confidence)| confidence < least),
            correction: correction.map(|correction| correction.correction().name()),
            ..Answer::default()
        };
        if answer.no_good_match == Some(true) {
            return Ok(answer);
        }
        let depth = depth_of(query, manner);
        let hits = match first {
            Some(mut hits) => {
                hits.truncate(depth);
                hits
            }
            None => self.first_stage(query, vector, depth, manner)?,
        };
        let (hits, skipped) = self.second_stage(query, hits, manner, terminal)?;
        answer.skipped = skipped;
        answer.found = self.grouped(query, vector, hits, manner)?;
        for (place, found) in answer.found.iter_mut().enumerate() {
            found.hit.rank = place + 1;
            found.confidence = self.confidence_of_item(query, vector, found.hit.position);
        }
        Ok(answer)
    }

    /// The `depth` items nearest to a query.
    pub(crate) fn first_stage(
        &self,
        query: &Query,
        vector: &[f32],
        depth: usize,
        manner: Manner,
    ) -> anyhow::Result<Vec<Hit>> {
        let depth = depth.min(self.shelf.index.len());
        Ok(match self.correction_of(query, manner) {
            Some(correction) => self.shelf.index.search_with(vector, depth, correction)?,
            None => self.shelf.index.search(vector, depth)?,
        })
    }

    /// Orders the first hits anew where the model's head can tell, and that was asked for.
    fn second_stage(
        &self,
        query: &Query,
        hits: Vec<Hit>,
        manner: Manner,
        terminal: &Terminal,
    ) -> anyhow::Result<(Vec<Hit>, Vec<Skipped>)> {
        match (query.plain_sentence(), manner.rerank) {
            (Some(sentence), count @ 1..) if self.bundle.encoder().config().head.is_cross_attentive() => {
                second_stage::reranked(&self.bundle, hits, sentence, count, terminal)
            }
            _ => Ok((hits, Vec::new())),
        }
    }

    /// The best `k`, duplicates behind the first of their kind. Goes deeper where too few are left.
    fn grouped(
        &self,
        query: &Query,
        vector: &[f32],
        mut hits: Vec<Hit>,
        manner: Manner,
    ) -> anyhow::Result<Vec<Found>> {
        let Some(threshold) = manner.same_above else {
            return Ok(hits.into_iter().take(manner.k).map(Found::alone).collect());
        };
        loop {
            let found = duplicates::grouped(&self.shelf.index, &hits, manner.k, threshold);
            let most = self.shelf.index.len().min(MOST_LOOKED_THROUGH);
            if found.len() >= manner.k || hits.len() >= most {
                return Ok(found);
            }
            let deeper = self.first_stage(query, vector, (4 * hits.len().max(1)).min(most), manner)?;
            let seen: std::collections::HashSet<usize> = hits.iter().map(|hit| hit.position).collect();
            hits.extend(deeper.into_iter().filter(|hit| !seen.contains(&hit.position)));
        }
    }

    /// What a query's scores are corrected by. It was worked out for sentences.
    fn correction_of(&self, query: &Query, manner: Manner) -> Option<&GalleryCorrection> {
        self.shelf.correction.as_ref().filter(|_| !manner.plain && query.is_of_sentences())
    }

    /// By the plain score of the best item, corrected or not. The bank is of whole sentences: nothing else can be held against it.
    fn confidence_of(
        &self,
        query: &Query,
        vector: &[f32],
        plain: Option<&[Hit]>,
    ) -> anyhow::Result<Option<f64>> {
        let (Some(confidence), Some(_)) = (&self.shelf.confidence, query.plain_sentence()) else {
            return Ok(None);
        };
        let best = match plain {
            Some(hits) => hits.first().map(|hit| hit.score),
            None => self.shelf.index.search(vector, 1)?.first().map(|hit| hit.score),
        };
        Ok(best.map(|best| confidence.of(best)))
    }

    fn confidence_of_item(&self, query: &Query, vector: &[f32], position: usize) -> Option<f64> {
        query.plain_sentence()?;
        let item = self.shelf.index.embedding(position)?;
        Some(self.shelf.confidence.as_ref()?.of(duplicates::dot(vector, item)))
    }
}

impl Found {
    fn alone(hit: Hit) -> Self {
        Self { hit, confidence: None, duplicates: Vec::new() }
    }
}

/// Hits that are needed from the first stage.
fn depth_of(query: &Query, manner: Manner) -> usize {
    match query.plain_sentence() {
        Some(_) => manner.k.max(manner.rerank),
        None => manner.k,
    }
}
