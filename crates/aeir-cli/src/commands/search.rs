//! `aeir search`.

#[cfg(feature = "milvus")]
mod collection;

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;
use std::path::Path;

use aeir_data::{ImageSource, TestPairs};
use aeir_encoders::{Bundle, PreparedImage};
use aeir_retrieve::{Confidence, ConformalSets, Filter, GraphReport};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde::Serialize;

#[cfg(feature = "milvus")]
use self::collection::run as in_collection;
use super::index::change::lines;
use super::{decode_query, print, print_json, tell_skipped};
use crate::collection::collection_at;
use crate::failure::CliError;
use crate::flags::{Duplicates, Rerank, SearchFlags};
use crate::search_engine::{
    Answer, Asked, Found, Manner, Query, QueryError, SearchEngine, Shelf, Weights, stages_of,
};
use crate::terminal::Terminal;

#[derive(Serialize)]
struct Report<'a> {
    results: Vec<Line<'a>>,
    /// Where the index has a query bank and the query is a sentence.
    #[serde(skip_serializing_if = "Option::is_none")]
    confidence: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    no_good_match: Option<bool>,
    /// What the scores were corrected by.
    #[serde(skip_serializing_if = "Option::is_none")]
    correction: Option<&'static str>,
    /// Where the index has a graph and the search did not have to be exact: how much the graph finds.
    #[serde(skip_serializing_if = "Option::is_none")]
    approximate: Option<GraphReport>,
    #[serde(skip_serializing_if = "Option::is_none")]
    set: Option<SetOfResults>,
}

#[derive(Serialize)]
struct Line<'a> {
    rank: usize,
    score: f32,
    path: &'a str,
    /// Near-identical images, where they are collapsed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    duplicates: Vec<&'a str>,
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
    if sentence == Some("") || flags.minus.iter().any(|term| term.trim().is_empty()) {
        return Err(CliError::Usage {
            message: "the sentence is empty".into(),
            hint: "say what the image shows, for instance \"a red car\"".into(),
        }
        .into());
    }
    if let Some(place) = collection_at(&flags.index) {
        return in_collection(flags, place, terminal);
    }
    if flags.model.is_some() {
        return Err(CliError::Usage {
            message: "--model is of Milvus collections".into(),
            hint: "leave it out: an index holds its model".into(),
        }
        .into());
    }
    let shelf = Shelf::open(&flags.index)?;
    if shelf.index.is_empty() {
        return Err(CliError::Data {
            message: format!("`{}` holds no images any more", flags.index.display()),
            hint: format!("add some with `aeir index add --index {} --images PHOTOS`", flags.index.display()),
        }
        .into());
    }
    let device = flags.device.device.open(terminal)?;
    refuse_confidence_of_others(flags, shelf.confidence.as_ref())?;
    let calibration = flags.calibration.as_deref().map(|path| TestPairs::read(path, None)).transpose()?;
    let engine = SearchEngine::new(shelf, &device)?;
    let query = query_of(flags, &engine.bundle)?;
    let rerank = Rerank::of_model(flags.rerank, engine.bundle.encoder().config(), terminal);
    let mut manner = Manner {
        k: flags.k,
        plain: flags.plain,
        rerank: stages_of(&engine.bundle, rerank),
        same_above: (flags.duplicates == Duplicates::Collapse).then_some(flags.duplicate_threshold),
        min_confidence: flags.min_confidence,
        exact: flags.exact,
        selection: engine.selection_of(&filter_of(flags)?)?,
    };
    let vector = engine.vectors(&[&query])?.pop().unwrap_or(Err(QueryError::Empty))?;
    let mut set = None;
    if let Some(pairs) = &calibration {
        refuse_sets_of_a_head(&manner)?;
        set = Some(set_of_results(flags, pairs, &engine, &query, &vector, &manner, terminal)?);
        manner.k = set.as_ref().map_or(flags.k, |set| set.size.clamp(1, flags.k));
    }
    let mut answers = engine.answers(&[Asked { query: &query, vector: &vector, manner: &manner }], terminal);
    let answer = answers.pop().unwrap_or_else(|| Ok(Answer::default()))?;
    if answer.no_good_match == Some(true) {
        set = None;
    }
    if let Some(SetOfResults { sets, size }) = set.as_ref().filter(|_| !flags.json) {
        terminal.note(&format!(
            "{size} of {} images are needed to hold the right one in {:.0} % of the queries, by {} labelled ones",
            engine.shelf.index.len(),
            100.0 * sets.coverage,
            sets.labelled
        ));
    }
    if answer.found.is_empty()
        && manner.selection.is_some()
        && answer.no_good_match != Some(true)
        && !flags.json
    {
        terminal.note("no image of the index satisfies --where and --ids");
    }
    let approximate = approximate(flags, &engine.shelf, &answer);
    tell(flags, &Report { approximate, ..report(&answer, set) }, &answer, terminal)
}

#[cfg(not(feature = "milvus"))]
fn in_collection(_: &SearchFlags, _: &str, _: &Terminal) -> anyhow::Result<()> {
    Err(crate::collection::without_milvus())
}

/// What the flags ask for.
fn query_of(flags: &SearchFlags, bundle: &Bundle) -> anyhow::Result<Query> {
    Ok(Query {
        text: flags.sentence.as_deref().map(|sentence| sentence.trim().to_owned()),
        image: flags.image.as_deref().map(|path| prepared(bundle, path)).transpose()?,
        item: None,
        minus: flags.minus.iter().map(|term| term.trim().to_owned()).collect(),
        weights: Weights { image: flags.image_weight, minus: flags.minus_weight },
    })
}

fn tell(
    flags: &SearchFlags,
    report: &Report<'_>,
    answer: &Answer,
    terminal: &Terminal,
) -> anyhow::Result<()> {
    tell_skipped(terminal, &answer.skipped, None);
    if flags.json { print_json(report) } else { print(&text_of(answer)) }
}

/// The image of a query, as the model takes it.
fn prepared(bundle: &Bundle, path: &Path) -> anyhow::Result<PreparedImage> {
    let backbone = bundle.encoder_of_images()?;
    Ok(backbone.preprocessor().prepare(&decode_query(path)?.image)?)
}

fn report(answer: &Answer, set: Option<SetOfResults>) -> Report<'_> {
    Report {
        results: answer.found.iter().map(Line::of).collect(),
        confidence: answer.confidence,
        no_good_match: answer.no_good_match,
        correction: answer.correction,
        approximate: None,
        set,
    }
}

/// What the images have to satisfy.
fn filter_of(flags: &SearchFlags) -> anyhow::Result<Filter> {
    let filter =
        flags.filter.iter().fold(Filter::default(), |filter, (key, value)| filter.with_equal(key, value));
    Ok(match &flags.ids {
        Some(file) => filter.with_items(lines(file)?),
        None => filter,
    })
}

/// What a graph that may have been searched says of itself.
fn approximate(flags: &SearchFlags, shelf: &Shelf, answer: &Answer) -> Option<GraphReport> {
    let reports = shelf.index.graphs().map(|(_, report)| report);
    let lowest = reports.min_by(|one, other| one.recall_at_10.total_cmp(&other.recall_at_10));
    lowest.filter(|_| !flags.exact && answer.correction.is_none())
}

impl<'a> Line<'a> {
    fn of(Found { hit, duplicates, .. }: &'a Found) -> Self {
        let duplicates = duplicates.iter().map(|hit| hit.item.as_str()).collect();
        Self { rank: hit.rank, score: hit.score, path: &hit.item, duplicates }
    }
}

fn text_of(answer: &Answer) -> String {
    let mut text = String::new();
    for Found { hit, duplicates, .. } in &answer.found {
        // Writing to a String can't fail.
        let _ = writeln!(text, "{:>4}  {:.4}  {}", hit.rank, hit.score, hit.item);
        for duplicate in duplicates {
            let _ = writeln!(text, "      {:.4}  {} (the same)", duplicate.score, duplicate.item);
        }
    }
    if let (Some(true), Some(confidence)) = (answer.no_good_match, answer.confidence) {
        let _ = writeln!(
            text,
            "no good match: {:.1} % of the target's own sentences find no better one",
            100.0 * confidence
        );
    }
    text
}

/// Confidence was worked out for sentences, where the index has some.
fn refuse_confidence_of_others(flags: &SearchFlags, confidence: Option<&Confidence>) -> anyhow::Result<()> {
    let whole_sentence = flags.image.is_none() && flags.minus.is_empty();
    let (message, hint) = match (flags.min_confidence, confidence) {
        (None, _) => return Ok(()),
        (Some(_), Some(_)) if whole_sentence => return Ok(()),
        (Some(_), _) if !whole_sentence => {
            ("--min-confidence is of queries by sentence", "leave it out with --image and --minus")
        }
        _ => (
            "this index has no query bank: it can't tell how good a match is",
            "index again with --query-bank SENTENCES, unpaired sentences of the target",
        ),
    };
    Err(CliError::Usage { message: message.into(), hint: hint.into() }.into())
}

fn refuse_sets_of_a_head(manner: &Manner) -> anyhow::Result<()> {
    if manner.rerank == 0 {
        return Ok(());
    }
    Err(CliError::Usage {
        message: "--calibration is of pooled vectors: it does not go with a head that re-ranks".into(),
        hint: "add --rerank 0".into(),
    }
    .into())
}

/// How many results a query needs, by labelled pairs whose images are indexed.
fn set_of_results(
    flags: &SearchFlags,
    pairs: &TestPairs,
    engine: &SearchEngine,
    query: &Query,
    vector: &[f32],
    manner: &Manner,
    terminal: &Terminal,
) -> anyhow::Result<SetOfResults> {
    let index = &engine.shelf.index;
    let places: HashMap<&str, usize> = index.items().zip(0..).collect();
    let (mut gaps, mut unknown, mut left_out) = (Vec::new(), 0, 0);
    let labels = one_an_image(pairs);
    for (owner, caption) in &labels {
        let name = pairs.images().get(*owner).map(ImageSource::absolute_name).transpose()?;
        let Some(place) = name.and_then(|name| places.get(name.as_str()).copied()) else {
            unknown += 1;
            continue;
        };
        match gap(engine, caption, place, manner)? {
            Some(gap) => gaps.push(gap),
            None => left_out += 1,
        }
    }
    for (count, why) in [(unknown, "are not indexed"), (left_out, "are left out by --where and --ids")] {
        if count > 0 {
            terminal.warn(&format!("{count} of {} labelled images {why}", labels.len()));
        }
    }
    if gaps.is_empty() {
        return Err(CliError::Data {
            message: "no labelled pair is of an image that can be found".into(),
            hint: "--calibration takes pairs whose images were indexed, under the same paths, and that --where and --ids let through".into(),
        }
        .into());
    }
    let sets = ConformalSets::calibrate(&gaps, flags.coverage)?;
    let all = engine.first_stage(query, vector, index.len(), manner)?;
    let scores: Vec<f32> = all.iter().map(|hit| hit.score).collect();
    Ok(SetOfResults { sets, size: sets.size(&scores) })
}

/// A caption of each image, drawn: several of one image are no independent labels.
fn one_an_image(pairs: &TestPairs) -> Vec<(usize, &str)> {
    let mut by_image: BTreeMap<usize, Vec<&str>> = BTreeMap::new();
    for (caption, owner) in pairs.captions().iter().zip(pairs.owners()) {
        by_image.entry(*owner).or_default().push(caption);
    }
    let mut random = ChaCha8Rng::seed_from_u64(1);
    let mut below = |count: usize| random.next_u64() as usize % count;
    by_image.into_iter().map(|(owner, captions)| (owner, captions[below(captions.len())])).collect()
}

/// How far the right image's score lies below the best one's; none where the right one can't be found.
fn gap(engine: &SearchEngine, caption: &str, place: usize, manner: &Manner) -> anyhow::Result<Option<f64>> {
    let query = Query::of_text(caption);
    let vector = engine.vectors(&[&query])?.pop().unwrap_or(Err(QueryError::Empty))?;
    let all = engine.first_stage(&query, &vector, engine.shelf.index.len(), manner)?;
    let best = all.first().map_or(0.0, |hit| f64::from(hit.score));
    let right = all.iter().find(|hit| hit.position == place);
    Ok(right.map(|right| best - f64::from(right.score)))
}
