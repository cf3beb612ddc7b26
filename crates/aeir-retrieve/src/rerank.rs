//! Two-stage retrieval: a second, slower judge re-orders the first items of a ranking.
//!
//! Whatever the second stage says, an item behind the first `k` can't overtake one of them: the two stages' scores need
//! not be on the same scale.

use std::fmt;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::hubness::by_score;
use crate::metrics::rank_of;
use crate::{Error, Hit, Matrix, Ranks, Relevance, RetrievalMetrics, similarity};

/// How many queries' first-stage scores are held at once.
const BLOCK: usize = 64;

/// Which item asks: an image looks for sentences, a sentence for images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Query {
    /// The image at this position; the candidates are sentences.
    Image(usize),
    /// The sentence at this position; the candidates are images.
    Sentence(usize),
}

impl fmt::Display for Query {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Image(position) => write!(formatter, "image {position}"),
            Self::Sentence(position) => write!(formatter, "sentence {position}"),
        }
    }
}

/// A second stage: scores of one query with a few candidates, for instance by a head that attends to both at once.
///
/// Every closure `FnMut(Query, &[usize]) -> Result<Vec<f32>, E>` is one; write its arguments' types out.
pub trait Reranker {
    /// What its own computation fails with; it comes back as the source of [`RerankError::Reranker`].
    type Error: std::error::Error + 'static;

    /// One score a candidate, in the candidates' order; larger is more similar.
    ///
    /// `candidates` are positions in the gallery, best of the first stage first, none twice, at least one.
    ///
    /// # Errors
    /// The implementation's own.
    fn scores(&mut self, query: Query, candidates: &[usize]) -> Result<Vec<f32>, Self::Error>;
}

impl<F, E> Reranker for F
where
    F: FnMut(Query, &[usize]) -> Result<Vec<f32>, E>,
    E: std::error::Error + 'static,
{
    type Error = E;

    fn scores(&mut self, query: Query, candidates: &[usize]) -> Result<Vec<f32>, E> {
        self(query, candidates)
    }
}

/// Why a two-stage ranking failed; `E` is the [`Reranker`]'s own error.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RerankError<E: std::error::Error + 'static> {
    /// The first stage's scores or a setting are wrong.
    #[error(transparent)]
    Retrieve(#[from] Error),
    /// The second stage failed.
    #[error("the second stage failed on {query}")]
    Reranker {
        /// The query it was asked about.
        query: Query,
        /// Its own error.
        #[source]
        source: E,
    },
    /// The second stage gave too few or too many scores.
    #[error("second-stage scores of {query}: expected {expected}, got {got}")]
    Count {
        /// The query.
        query: Query,
        /// How many candidates there were.
        expected: usize,
        /// How many scores came.
        got: usize,
    },
    /// The second stage gave a NaN or an infinity.
    #[error("second-stage score of {query} with candidate {candidate} is {got}, not a finite number")]
    NotFinite {
        /// The query.
        query: Query,
        /// The first offending candidate's position in the gallery.
        candidate: usize,
        /// The score.
        got: f32,
    },
}

/// A search result after the second stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RerankedHit {
    /// The result with its new rank. Its score is the second stage's if [`rescored`](Self::rescored), else still the first's:
    /// the two don't compare.
    #[serde(flatten)]
    pub hit: Hit,
    /// Whether the second stage has scored it.
    pub rescored: bool,
    /// Its rank in the first stage.
    pub first_rank: usize,
    /// Its score in the first stage.
    pub first_score: f32,
}

/// Re-orders the first `k` results of a search by the second stage's score; what is behind stays as it is.
///
/// Equal second-stage scores keep their first-stage order. `k` beyond the results means all of them. Candidates are the hits'
/// positions; `query` is handed to `reranker` as it is.
///
/// # Errors
/// [`Error::Setting`] (in [`RerankError::Retrieve`]) where `k` is 0, and what the second stage does wrong: [`RerankError`].
///
/// # Example
/// ```
/// use std::convert::Infallible;
/// use aeir_retrieve::{Hit, Query, rerank_hits};
///
/// let hit = |rank: usize, score: f32, item: &str| Hit { rank, score, position: rank - 1, item: item.into() };
/// let hits = vec![hit(1, 0.9, "beach"), hit(2, 0.8, "forest"), hit(3, 0.7, "city")];
/// let mut second = |_: Query, candidates: &[usize]| -> Result<Vec<f32>, Infallible> {
///     Ok(candidates.iter().map(|position| *position as f32).collect())
/// };
/// let found = rerank_hits(hits, Query::Sentence(0), 2, &mut second)?;
/// let order: Vec<&str> = found.iter().map(|found| found.hit.item.as_str()).collect();
/// assert_eq!(order, ["forest", "beach", "city"]);
/// assert_eq!((found[0].hit.score, found[0].first_score), (1.0, 0.8));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn rerank_hits<R: Reranker + ?Sized>(
    hits: Vec<Hit>,
    query: Query,
    k: usize,
    reranker: &mut R,
) -> Result<Vec<RerankedHit>, RerankError<R::Error>> {
    let mut stage = SecondStage::new(k, reranker)?;
    let candidates: Vec<usize> = hits.iter().take(k).map(|hit| hit.position).collect();
    let second = stage.scores(query, &candidates)?;
    let mut found: Vec<RerankedHit> = hits
        .into_iter()
        .map(|hit| RerankedHit { rescored: false, first_rank: hit.rank, first_score: hit.score, hit })
        .collect();
    for (found, score) in found.iter_mut().zip(&second) {
        found.hit.score = *score;
        found.rescored = true;
    }
    if let Some(head) = found.get_mut(..second.len()) {
        // Stable: equal scores stay in the order of the first stage. Adding 0 turns -0 into +0.
        head.sort_by(|a, b| (b.hit.score + 0.0).total_cmp(&(a.hit.score + 0.0)));
    }
    for (place, found) in found.iter_mut().enumerate() {
        found.hit.rank = place + 1;
    }
    Ok(found)
}

/// The figures of a two-stage system, both ways: [`rank_two_stage`] as metrics.
///
/// # Errors
/// As [`rank_two_stage`].
pub fn evaluate_two_stage<R: Reranker + ?Sized>(
    scores: &Matrix,
    relevance: &Relevance,
    k: usize,
    reranker: &mut R,
) -> Result<RetrievalMetrics, RerankError<R::Error>> {
    Ok(rank_two_stage(scores, relevance, k, reranker)?.metrics())
}

/// Every query's rank after its `k` best items were scored again: each image's sentences, then each sentence's images.
///
/// Protocol: an item among the first `k` stands before every other; within the two groups order is by the second and by the
/// first stage's score. Ties count against the query, as in [`Ranks`]: at the edge of the first `k` wrong items go first, too.
/// So a second stage that repeats the first one's scores changes no rank, and `k` beyond the gallery is the ranking by the
/// second stage alone.
///
/// Shapes: `scores [N images, M sentences]` of the first stage. The second stage is asked for `N min(k, M) + M min(k, N)`
/// scores, one query at a time, images first; only one query's are held.
///
/// # Errors
/// [`Error::Setting`] where `k` is 0, [`Error::Shape`] where the sizes differ from those of `relevance`,
/// [`Error::NotFinite`] on a NaN in `scores` (all in [`RerankError::Retrieve`]), and what the second stage does wrong:
/// [`RerankError`].
///
/// # Example
/// ```
/// use std::convert::Infallible;
/// use aeir_retrieve::{Matrix, Query, Relevance, evaluate, evaluate_two_stage};
///
/// let scores = Matrix::from_rows(&[[0.6, 0.7, 0.1], [0.7, 0.6, 0.2], [0.1, 0.2, 0.9]])?;
/// let relevance = Relevance::consecutive(3, 1)?;
/// let mut second = |query: Query, candidates: &[usize]| -> Result<Vec<f32>, Infallible> {
///     let (Query::Image(own) | Query::Sentence(own)) = query;
///     Ok(candidates.iter().map(|candidate| if *candidate == own { 1.0 } else { 0.0 }).collect())
/// };
/// assert!(evaluate(&scores, &relevance)?.i2t.r1 < 50.0);
/// assert_eq!(evaluate_two_stage(&scores, &relevance, 2, &mut second)?.i2t.r1, 100.0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn rank_two_stage<R: Reranker + ?Sized>(
    scores: &Matrix,
    relevance: &Relevance,
    k: usize,
    reranker: &mut R,
) -> Result<Ranks, RerankError<R::Error>> {
    relevance.check(scores.rows(), scores.columns())?;
    let rows = |first: usize, count: usize| {
        let positions: Vec<usize> = (first..first + count).collect();
        scores.select_rows(&positions)
    };
    let columns = |first: usize, count: usize| {
        let values = scores.iter_rows().flat_map(|row| row.get(first..first + count).unwrap_or_default());
        Ok(Matrix::new(values.copied().collect(), scores.rows(), count)?.transposed())
    };
    scores.check_not_nan("scores")?;
    rank_both(relevance, SecondStage::new(k, reranker)?, rows, columns)
}

/// [`rank_two_stage`] with `similarity(images, sentences)` as the first stage, without holding that matrix.
///
/// Shapes: `images [N, D]`, `sentences [M, D]`.
///
/// # Errors
/// As [`rank_two_stage`]; [`Error::Shape`] where the dimensions differ, [`Error::NotFinite`] on a NaN or infinity in an
/// embedding or a NaN in a score.
pub fn rank_two_stage_embeddings<R: Reranker + ?Sized>(
    images: &Matrix,
    sentences: &Matrix,
    relevance: &Relevance,
    k: usize,
    reranker: &mut R,
) -> Result<Ranks, RerankError<R::Error>> {
    relevance.check(images.rows(), sentences.rows())?;
    images.check_finite("image embeddings")?;
    sentences.check_finite("sentence embeddings")?;
    let block_of = |queries: &Matrix, gallery: &Matrix, first: usize, count: usize| {
        let positions: Vec<usize> = (first..first + count).collect();
        let scores = similarity(&queries.select_rows(&positions)?, gallery)?;
        scores.check_not_nan("scores")?;
        Ok(scores)
    };
    let rows = |first: usize, count: usize| block_of(images, sentences, first, count);
    let columns = |first: usize, count: usize| block_of(sentences, images, first, count);
    rank_both(relevance, SecondStage::new(k, reranker)?, rows, columns)
}

/// Ranks both ways; `rows` and `columns` give the first-stage scores of `count` images or sentences from `first` on, free of
/// NaN, one query a row.
fn rank_both<R: Reranker + ?Sized>(
    relevance: &Relevance,
    mut stage: SecondStage<'_, R>,
    rows: impl Fn(usize, usize) -> Result<Matrix, Error>,
    columns: impl Fn(usize, usize) -> Result<Matrix, Error>,
) -> Result<Ranks, RerankError<R::Error>> {
    let sentences_of = |image: usize| relevance.sentences_of(image);
    let owner_of = |sentence: usize| relevance.owners().get(sentence..=sentence).unwrap_or_default();
    let i2t = stage.ranks(relevance.n_images(), Query::Image, sentences_of, rows)?;
    let t2i = stage.ranks(relevance.n_sentences(), Query::Sentence, owner_of, columns)?;
    Ok(Ranks::from_directions(relevance.clone(), i2t, t2i))
}

struct SecondStage<'r, R: ?Sized> {
    k: usize,
    reranker: &'r mut R,
}

/// Where an item stands: all rescored ones before all others, by score within.
#[derive(Clone, Copy, PartialEq, PartialOrd)]
struct Standing {
    rescored: bool,
    score: f32,
}

impl<'r, R: Reranker + ?Sized> SecondStage<'r, R> {
    fn new(k: usize, reranker: &'r mut R) -> Result<Self, Error> {
        if k == 0 {
            return Err(Error::Setting { name: "k", expected: "1 or more".into(), got: "0".into() });
        }
        Ok(Self { k, reranker })
    }

    /// The reranker's scores, checked.
    fn scores(&mut self, query: Query, candidates: &[usize]) -> Result<Vec<f32>, RerankError<R::Error>> {
        if candidates.is_empty() {
            return Ok(Vec::new());
        }
        let scores = self.reranker.scores(query, candidates);
        let scores = scores.map_err(|source| RerankError::Reranker { query, source })?;
        if scores.len() != candidates.len() {
            return Err(RerankError::Count { query, expected: candidates.len(), got: scores.len() });
        }
        match scores.iter().zip(candidates).find(|(score, _)| !score.is_finite()) {
            Some((got, candidate)) => Err(RerankError::NotFinite { query, candidate: *candidate, got: *got }),
            None => Ok(scores),
        }
    }

    /// Rank and average precision of every query of one direction.
    fn ranks<'v>(
        &mut self,
        queries: usize,
        query_at: fn(usize) -> Query,
        right_of: impl Fn(usize) -> &'v [usize] + Sync,
        block_of: impl Fn(usize, usize) -> Result<Matrix, Error>,
    ) -> Result<Vec<(u32, f64)>, RerankError<R::Error>> {
        let mut ranks = Vec::with_capacity(queries);
        let k = self.k;
        for first in (0..queries).step_by(BLOCK) {
            let block = block_of(first, BLOCK.min(queries - first))?;
            let candidates: Vec<Vec<usize>> = (0..block.rows())
                .into_par_iter()
                .map(|offset| first_of(block.row(offset).unwrap_or_default(), right_of(first + offset), k))
                .collect();
            for ((position, row), candidates) in (first..).zip(block.iter_rows()).zip(&candidates) {
                let second = self.scores(query_at(position), candidates)?;
                ranks.push(rank_among(row, candidates, &second, right_of(position)));
            }
        }
        Ok(ranks)
    }
}

/// Rank and average precision of one query, from its first-stage scores, its candidates and their second-stage scores, and its
/// right items.
fn rank_among(row: &[f32], candidates: &[usize], second: &[f32], right: &[usize]) -> (u32, f64) {
    let at_least = |scores: &[f32], own: f32| scores.iter().map(|score| u32::from(*score >= own)).sum();
    let standing = |item: &usize| match candidates.iter().position(|candidate| candidate == item) {
        Some(place) => {
            let score = *second.get(place)?;
            Some((Standing { rescored: true, score }, at_least(second, score)))
        }
        // Every candidate scored at least as much in the first stage: the first stage's count has them all.
        None => {
            let score = *row.get(*item)?;
            Some((Standing { rescored: false, score }, at_least(row, score)))
        }
    };
    let right: Vec<(Standing, u32)> = right.iter().filter_map(standing).collect();
    rank_of(&right, |other, own| other >= own)
}

/// The `k` (at least 1) best items of a row, best first; at equal scores wrong ones before right ones, then by position.
fn first_of(row: &[f32], right: &[usize], k: usize) -> Vec<usize> {
    let mut least = f32::NEG_INFINITY;
    if k < row.len() {
        let mut scores = row.to_vec();
        least = *scores.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a)).1;
    }
    // Positions of right items count from the end of the gallery on: `by_score` settles ties by position.
    let behind = |item: usize| if right.binary_search(&item).is_ok() { item + row.len() } else { item };
    let mut best: Vec<(f32, usize)> = (row.iter().enumerate())
        .filter(|(_, score)| **score >= least)
        .map(|(item, score)| (*score, behind(item)))
        .collect();
    best.sort_unstable_by(|a, b| by_score(*a, *b));
    best.truncate(k);
    best.into_iter().map(|(_, item)| if item >= row.len() { item - row.len() } else { item }).collect()
}
