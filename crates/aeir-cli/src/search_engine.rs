//! Search as `aeir search` and `aeir serve` do it: an index with the model inside it, from a query to ordered results.
//!
//! A query becomes a unit vector; the index gives the items nearest to it, corrected for hubs where that was worked out; the model's head, if it has
//! one, orders the first of them anew; near-identical images are set aside as groups; confidence says how good the match is.

mod duplicates;
mod query;
mod second_stage;

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use aeir_data::Skipped;
use aeir_encoders::Bundle;
use aeir_retrieve::{Confidence, Filter, GalleryCorrection, Hit, Index, Matrix, SearchOptions, Selection};
use candle_core::Device;

pub(crate) use duplicates::DEFAULT_THRESHOLD;
use duplicates::Groups;
#[cfg(feature = "milvus")]
pub(crate) use query::vectors_of;
pub(crate) use query::{Query, QueryError, Weights};
#[cfg(feature = "milvus")]
pub(crate) use second_stage::reranked;
pub(crate) use second_stage::stages_of;

use crate::commands::index::MODEL_FOLDER;
use crate::search_card::OnCard;
#[cfg(feature = "serve")]
use crate::search_card::{Room, number_of, takes};
use crate::terminal::{Terminal, say};

/// Hits that are looked at, at most, to find enough that are no duplicates.
const MOST_LOOKED_THROUGH: usize = 10_000;
/// Filters whose selections are kept.
const MOST_SELECTIONS: usize = 16;
/// Memory for scores on a card. Queries that come together are few.
#[cfg(feature = "serve")]
const SCORE_BYTES: usize = 64 << 20;

/// An index as it was opened, with what it says of its own scores.
pub(crate) struct Shelf {
    pub(crate) index: Index,
    pub(crate) correction: Option<GalleryCorrection>,
    pub(crate) confidence: Option<Confidence>,
}

impl Shelf {
    /// Opens and verifies an index.
    pub(crate) fn open(folder: &Path) -> anyhow::Result<Self> {
        Self::of(Index::open(folder)?)
    }

    /// The generation that was committed last, unless it is this one; what the two have in common is not read again.
    #[cfg(feature = "serve")]
    pub(crate) fn newer(&self) -> anyhow::Result<Option<Self>> {
        self.index.newer()?.map(Self::of).transpose()
    }

    /// A commit between opening the index and reading what goes with it takes those files away: then it is the newer one.
    fn of(mut index: Index) -> anyhow::Result<Self> {
        loop {
            match scores_of(&index) {
                Ok((correction, confidence)) => return Ok(Self { index, correction, confidence }),
                Err(error) => match index.newer() {
                    Ok(Some(newer)) => index = newer,
                    _ => return Err(error),
                },
            }
        }
    }

    pub(crate) fn correction_name(&self) -> Option<&'static str> {
        self.correction.as_ref().map(|correction| correction.correction().name())
    }
}

fn scores_of(index: &Index) -> anyhow::Result<(Option<GalleryCorrection>, Option<Confidence>)> {
    Ok((GalleryCorrection::read(index)?, Confidence::read(index)?))
}

/// How a query is answered.
#[derive(Clone, Debug)]
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
    /// Look at every item, even where the index has a graph.
    pub(crate) exact: bool,
    /// Find these items alone; see [`SearchEngine::selection_of`].
    pub(crate) selection: Option<Arc<Selection>>,
}

/// A query with its vector, and how it is to be answered.
#[derive(Clone, Copy)]
pub(crate) struct Asked<'a> {
    pub(crate) query: &'a Query,
    pub(crate) vector: &'a [f32],
    pub(crate) manner: &'a Manner,
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
    /// What the last filters let through.
    selections: Mutex<VecDeque<(Filter, Arc<Selection>)>>,
    /// The index's vectors on a card, for exact searches.
    card: Option<OnCard>,
    /// Whether it was told that the card has failed.
    told: AtomicBool,
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
        Ok(Self { shelf, bundle, selections: Mutex::default(), card: None, told: AtomicBool::new(false) })
    }

    /// Exact searches are made on the card, if `device` is one. Where it can't hold the vectors the processor searches, and that is told.
    #[cfg(feature = "serve")]
    pub(crate) fn searching_on(mut self, device: &Device) -> Self {
        let index = &self.shelf.index;
        let Some(card) = number_of(device).filter(|_| takes(index.storage())) else { return self };
        match OnCard::load(index, &Room { card, score_bytes: SCORE_BYTES, rough_first: false }) {
            Ok(card) => self.card = Some(card),
            Err(error) => say(&format!("warning: the processor searches: {error:#}")),
        }
        self
    }

    /// The `k` best items of each query, on the card where it finds what the index would find: exactly.
    fn find(&self, queries: &Matrix, k: usize, options: &SearchOptions<'_>) -> anyhow::Result<Vec<Vec<Hit>>> {
        let index = &self.shelf.index;
        let is_exact = options.exact || options.correction.is_some() || index.graphs().next().is_none();
        if let Some(card) = self.card.as_ref().filter(|_| is_exact && OnCard::gives(k)) {
            match card.find(index, queries, k, options) {
                // Another program may have taken the card's memory. What is wrong with the query is wrong for the processor, too.
                Err(error) if !error.is::<aeir_retrieve::Error>() => {
                    if !self.told.swap(true, Ordering::Relaxed) {
                        say(&format!("warning: the processor searches what the card does not: {error:#}"));
                    }
                }
                found => return found,
            }
        }
        Ok(index.find(queries, k, options)?)
    }

    /// Answers queries whose vectors are known, each in its manner. Those that ask for the same kind of search, as deep, go over the index
    /// together: how deep a search goes decides what a graph or 8-bit codes find, and that is nobody else's business.
    ///
    /// One query's failure is not the others'.
    pub(crate) fn answers(&self, asked: &[Asked<'_>], terminal: &Terminal) -> Vec<anyhow::Result<Answer>> {
        let mut first: Vec<Option<Vec<Hit>>> = vec![None; asked.len()];
        let mut groups: BTreeMap<(bool, usize), Vec<usize>> = BTreeMap::new();
        for (place, Asked { query, manner, .. }) in asked.iter().enumerate() {
            if manner.selection.is_none() && !manner.exact {
                let corrected = self.correction_of(query, manner).is_some();
                groups.entry((corrected, self.depth_of(query, manner))).or_default().push(place);
            }
        }
        // One alone gains nothing, and is searched by whoever needs it.
        for ((corrected, depth), places) in groups.into_iter().filter(|(_, places)| places.len() > 1) {
            self.search_together(asked, &places, corrected, depth, &mut first);
        }
        asked.iter().zip(first).map(|(asked, hits)| self.answer(*asked, hits, terminal)).collect()
    }

    /// The first stages of some queries over the whole index, with or without its correction, in one pass.
    fn search_together(
        &self,
        asked: &[Asked<'_>],
        places: &[usize],
        corrected: bool,
        depth: usize,
        found: &mut [Option<Vec<Hit>>],
    ) {
        let rows: Vec<&[f32]> = places.iter().filter_map(|place| Some(asked.get(*place)?.vector)).collect();
        let correction = self.shelf.correction.as_ref().filter(|_| corrected);
        let options = SearchOptions { correction, ..SearchOptions::default() };
        // A query that can't be searched fails the batch: each is then searched, and refused, by itself.
        let Ok(batch) =
            Matrix::from_rows(&rows).map_err(Into::into).and_then(|rows| self.find(&rows, depth, &options))
        else {
            return;
        };
        for (place, hits) in places.iter().zip(batch) {
            if let Some(slot) = found.get_mut(*place) {
                *slot = Some(hits);
            }
        }
    }

    fn answer(
        &self,
        Asked { query, vector, manner }: Asked<'_>,
        first: Option<Vec<Hit>>,
        terminal: &Terminal,
    ) -> anyhow::Result<Answer> {
        let correction = self.correction_of(query, manner);
        let plain = first.as_deref().filter(|_| correction.is_none());
        let confidence = self.confidence_of(query, vector, manner, plain)?;
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
        let hits = match first {
            Some(hits) => hits,
            None => self.first_stage(query, vector, self.depth_of(query, manner), manner)?,
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
        manner: &Manner,
    ) -> anyhow::Result<Vec<Hit>> {
        self.search(vector, depth, manner, self.correction_of(query, manner))
    }

    fn search(
        &self,
        vector: &[f32],
        depth: usize,
        manner: &Manner,
        correction: Option<&GalleryCorrection>,
    ) -> anyhow::Result<Vec<Hit>> {
        let index = &self.shelf.index;
        let selection = manner.selection.as_deref();
        let options =
            SearchOptions { exact: manner.exact, selection, correction, ..SearchOptions::default() };
        let found = self.find(&Matrix::from_rows(&[vector])?, depth.min(index.len()).max(1), &options)?;
        Ok(found.into_iter().next().unwrap_or_default())
    }

    /// What a filter lets through; kept for queries that ask the same. Looks at every item: not for threads that others wait for.
    pub(crate) fn selection_of(&self, filter: &Filter) -> anyhow::Result<Option<Arc<Selection>>> {
        if filter.is_empty() {
            return Ok(None);
        }
        if let Some(known) = self.known_selection(filter) {
            return Ok(Some(known));
        }
        // Without the lock: another filter's query does not wait for this one.
        let selection = Arc::new(self.shelf.index.select(filter)?);
        let mut kept = self.selections.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= MOST_SELECTIONS {
            kept.pop_front();
        }
        kept.push_back((filter.clone(), Arc::clone(&selection)));
        Ok(Some(selection))
    }

    /// What a filter of late lets through.
    pub(crate) fn known_selection(&self, filter: &Filter) -> Option<Arc<Selection>> {
        let kept = self.selections.lock().unwrap_or_else(PoisonError::into_inner);
        kept.iter().find(|(known, _)| known == filter).map(|(_, selection)| Arc::clone(selection))
    }

    /// Orders the first hits anew where the model's head can tell, and that was asked for.
    fn second_stage(
        &self,
        query: &Query,
        hits: Vec<Hit>,
        manner: &Manner,
        terminal: &Terminal,
    ) -> anyhow::Result<(Vec<Hit>, Vec<Skipped>)> {
        match (query.plain_sentence(), manner.rerank) {
            (Some(sentence), count @ 1..) if self.bundle.encoder().config().head.is_cross_attentive() => {
                second_stage::reranked(&self.bundle, hits, sentence, count, terminal)
            }
            _ => Ok((hits, Vec::new())),
        }
    }

    /// The best `k`, duplicates behind the first of their kind. Goes deeper where too few are left, as long as that finds more.
    fn grouped(
        &self,
        query: &Query,
        vector: &[f32],
        mut hits: Vec<Hit>,
        manner: &Manner,
    ) -> anyhow::Result<Vec<Found>> {
        let Some(threshold) = manner.same_above else {
            return Ok(hits.into_iter().take(manner.k).map(Found::alone).collect());
        };
        let most = self.shelf.index.len().min(MOST_LOOKED_THROUGH);
        let mut groups = Groups::new(&self.shelf.index, manner.k, threshold);
        let mut seen = HashSet::new();
        // A filter lets few through, and the walk of a graph may end early: there need not be as many as asked for.
        while !hits.is_empty() {
            seen.extend(hits.iter().map(|hit| hit.position));
            groups.add(hits);
            if groups.is_full() || seen.len() >= most {
                break;
            }
            hits = self.first_stage(query, vector, (4 * seen.len()).min(most), manner)?;
            hits.retain(|hit| !seen.contains(&hit.position));
        }
        Ok(groups.into_found())
    }

    /// Hits that are needed from the first stage.
    fn depth_of(&self, query: &Query, manner: &Manner) -> usize {
        let depth = match query.plain_sentence() {
            Some(_) => manner.k.max(manner.rerank),
            None => manner.k,
        };
        depth.min(self.shelf.index.len()).max(1)
    }

    /// What a query's scores are corrected by. It was worked out for sentences.
    fn correction_of(&self, query: &Query, manner: &Manner) -> Option<&GalleryCorrection> {
        self.shelf.correction.as_ref().filter(|_| !manner.plain && query.is_of_sentences())
    }

    /// By the plain score of the best item, corrected or not. The bank is of whole sentences: nothing else can be held against it.
    fn confidence_of(
        &self,
        query: &Query,
        vector: &[f32],
        manner: &Manner,
        plain: Option<&[Hit]>,
    ) -> anyhow::Result<Option<f64>> {
        let (Some(confidence), Some(_)) = (&self.shelf.confidence, query.plain_sentence()) else {
            return Ok(None);
        };
        let best = match plain {
            Some(hits) => hits.first().map(|hit| hit.score),
            None => self.search(vector, 1, manner, None)?.first().map(|hit| hit.score),
        };
        Ok(best.map(|best| confidence.of(best)))
    }

    fn confidence_of_item(&self, query: &Query, vector: &[f32], position: usize) -> Option<f64> {
        query.plain_sentence()?;
        let item = self.shelf.index.embedding(position)?;
        Some(self.shelf.confidence.as_ref()?.of(duplicates::dot(vector, &item)))
    }
}

impl Found {
    fn alone(hit: Hit) -> Self {
        Self { hit, confidence: None, duplicates: Vec::new() }
    }
}
