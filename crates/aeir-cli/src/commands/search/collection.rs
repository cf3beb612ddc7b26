//! Searches of a Milvus collection: the server finds, the model that is named embeds.

use std::path::{Path, PathBuf};

use aeir_encoders::Bundle;
use aeir_retrieve::{Hit, MANIFEST_FILE, Matrix, MilvusCollection, MilvusSearch};

use super::{filter_of, query_of, report, tell};
use crate::collection::refused;
use crate::commands::index::MODEL_FOLDER;
use crate::flags::{Duplicates, Rerank, SearchFlags};
use crate::search_engine::{Answer, Found, Query, QueryError, reranked, stages_of, vectors_of};
use crate::terminal::Terminal;

/// Answers one query.
pub(super) fn run(flags: &SearchFlags, place: &str, terminal: &Terminal) -> anyhow::Result<()> {
    refuse_what_needs_an_index(flags)?;
    let place = place.parse::<aeir_retrieve::MilvusPlace>()?;
    let model = model_of(flags, &place.to_string())?;
    let bundle = Bundle::load(&model, &flags.device.device.open(terminal)?)?;
    let collection = MilvusCollection::open(&place, &flags.milvus.access())?;
    collection.check_model(bundle.fingerprint())?;
    if !collection.is_finished() {
        terminal.warn(&format!("an upload into `{place}` has not ended: images may be missing"));
    }
    super::refuse_confidence_of_others(flags, collection.confidence())?;
    let query = query_of(flags, &bundle)?;
    let vector = vectors_of(&bundle, &[&query], |_| None)?.pop().unwrap_or(Err(QueryError::Empty))?;
    let search = Search { flags, collection: &collection, vector: Matrix::from_rows(&[&vector])? };
    let answer = search.answer(&query, &bundle, terminal)?;
    tell(flags, &report(&answer, None), &answer, terminal)
}

/// One query of one collection.
struct Search<'a> {
    flags: &'a SearchFlags,
    collection: &'a MilvusCollection,
    vector: Matrix,
}

impl Search<'_> {
    fn answer(&self, query: &Query, bundle: &Bundle, terminal: &Terminal) -> anyhow::Result<Answer> {
        let flags = self.flags;
        let confidence = self.confidence(query)?;
        let no_good_match =
            flags.min_confidence.zip(confidence).map(|(least, confidence)| confidence < least);
        // It was worked out for sentences.
        let correction = self.collection.correction().filter(|_| !flags.plain && query.is_of_sentences());
        let mut answer = Answer {
            confidence,
            no_good_match,
            correction: correction.map(|correction| correction.name()),
            ..Answer::default()
        };
        if no_good_match == Some(true) {
            return Ok(answer);
        }
        let stages = stages_of(bundle, Rerank::of_model(flags.rerank, bundle.encoder().config(), terminal));
        let second = query.plain_sentence().filter(|_| stages > 0);
        let depth = if second.is_some() { flags.k.max(stages.min(self.collection.len())) } else { flags.k };
        let filter = filter_of(flags)?;
        let filter = Some(&filter).filter(|filter| !filter.is_empty());
        let mut hits = self.find(depth, &MilvusSearch { filter, corrected: correction.is_some() })?;
        if let Some(sentence) = second {
            (hits, answer.skipped) = reranked(bundle, hits, sentence, stages, terminal)?;
        }
        answer.found = (1..)
            .zip(hits.into_iter().take(flags.k))
            .map(|(rank, hit)| Found { hit: Hit { rank, ..hit }, confidence: None, duplicates: Vec::new() })
            .collect();
        Ok(answer)
    }

    fn find(&self, k: usize, search: &MilvusSearch<'_>) -> anyhow::Result<Vec<Hit>> {
        Ok(self.collection.find(&self.vector, k, search)?.pop().unwrap_or_default())
    }

    /// By the plain score of the best item. The bank is of whole sentences: nothing else can be held against it.
    fn confidence(&self, query: &Query) -> anyhow::Result<Option<f64>> {
        let (Some(confidence), Some(_)) = (self.collection.confidence(), query.plain_sentence()) else {
            return Ok(None);
        };
        let best = self.find(1, &MilvusSearch::default())?;
        Ok(best.first().map(|best| confidence.of(best.score)))
    }
}

/// A collection gives the best results and none of the rest.
fn refuse_what_needs_an_index(flags: &SearchFlags) -> anyhow::Result<()> {
    const HINT: &str = "search the index that the collection was made of, or leave it out";
    for (asked, flag) in [
        (flags.calibration.is_some(), "--calibration"),
        (flags.duplicates == Duplicates::Collapse, "--duplicates collapse"),
    ] {
        if asked {
            return Err(refused(
                format!("{flag} needs all of an index: a Milvus collection can't answer it"),
                HINT,
            ));
        }
    }
    if flags.exact {
        let hint = "`aeir index upload --milvus-index flat` has it look at every vector";
        return Err(refused("--exact: how a collection is searched is up to its server", hint));
    }
    Ok(())
}

/// The model that was named, or that of the index that was.
fn model_of(flags: &SearchFlags, place: &str) -> anyhow::Result<PathBuf> {
    let Some(named) = &flags.model else {
        return Err(refused(
            format!("`{place}` holds vectors, not the model that makes them"),
            "name it with --model: the trained model, or the index that the collection was made of",
        ));
    };
    let inside = named.join(MODEL_FOLDER);
    let is_index = |folder: &Path| folder.join(MANIFEST_FILE).is_file();
    Ok(if is_index(named) && inside.is_dir() { inside } else { named.clone() })
}
