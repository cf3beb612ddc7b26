//! Recall, ranks and rSum of a score matrix, both ways, and what chance would give.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::scores::{block, same_dimension, tile_grid};
use crate::tiles::{self, TILE_COLUMNS, TILE_ROWS};
use crate::{Error, Fold, Matrix, Relevance, Result};

/// What equal scores of a right and a wrong item count as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ties {
    /// The wrong item comes first: a constant score gets the worst rank, not the best. The rule of every figure here.
    #[default]
    Pessimistic,
    /// The right item comes first: what many published scripts do by accident. For comparison.
    Optimistic,
}

/// The figures of one direction of retrieval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct DirectionMetrics {
    /// Recall@1 in percent: queries with at least one right item at the top.
    pub r1: f64,
    /// Recall@5 in percent: queries with at least one right item among the first 5.
    pub r5: f64,
    /// Recall@10 in percent.
    pub r10: f64,
    /// Median rank, the ordinary median: it ends in .5 where two middle ranks differ by an odd number.
    pub medr: f64,
    /// Mean rank.
    pub meanr: f64,
    /// Mean average precision, 0 to 1. `None` (and absent from JSON) unless asked for by [`Ranks::metrics_with_map`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub map: Option<f64>,
}

/// The figures of both directions.
///
/// As JSON: `{"n_images", "n_sentences", "i2t": {"r1", "r5", "r10", "medr", "meanr"}, "t2i": {..}, "rsum"}`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct RetrievalMetrics {
    /// Images: queries of `i2t`, gallery of `t2i`.
    pub n_images: usize,
    /// Sentences: gallery of `i2t`, queries of `t2i`.
    pub n_sentences: usize,
    /// Image to text.
    pub i2t: DirectionMetrics,
    /// Text to image.
    pub t2i: DirectionMetrics,
    /// The six recalls added, 0 to 600.
    pub rsum: f64,
}

impl RetrievalMetrics {
    fn of(n_images: usize, n_sentences: usize, i2t: DirectionMetrics, t2i: DirectionMetrics) -> Self {
        let rsum = i2t.r1 + i2t.r5 + i2t.r10 + t2i.r1 + t2i.r5 + t2i.r10;
        Self { n_images, n_sentences, i2t, t2i, rsum }
    }
}

/// The rank and average precision of every query: what the figures are made of.
///
/// Rank of a query: the smallest over its right items of 1 + the wrong items that score more or equal
/// ([`Ties::Pessimistic`]). Other right items never count.
///
/// Average precision of a query: the mean over its right items, best first, of `t / position_t`, where
/// `position_t` = `t` + the wrong items before the `t`-th right one (tied ones by the same rule).
#[derive(Clone, Debug, PartialEq)]
pub struct Ranks {
    relevance: Relevance,
    i2t: Vec<u32>,
    t2i: Vec<u32>,
    i2t_precision: Vec<f64>,
    t2i_precision: Vec<f64>,
}

impl Ranks {
    /// From the rank and average precision of every image, `[N]`, and of every sentence, `[M]`.
    pub(crate) fn from_directions(relevance: Relevance, i2t: Vec<(u32, f64)>, t2i: Vec<(u32, f64)>) -> Self {
        let (i2t, i2t_precision) = i2t.into_iter().unzip();
        let (t2i, t2i_precision) = t2i.into_iter().unzip();
        Self { relevance, i2t, t2i, i2t_precision, t2i_precision }
    }

    /// The rank of each image's best sentence, 1-based, `[N]`.
    #[must_use]
    pub fn i2t(&self) -> &[u32] {
        &self.i2t
    }

    /// The rank of each sentence's image, 1-based, `[M]`.
    #[must_use]
    pub fn t2i(&self) -> &[u32] {
        &self.t2i
    }

    /// The average precision of each image's sentences, `[N]`, 0 to 1.
    #[must_use]
    pub fn i2t_average_precision(&self) -> &[f64] {
        &self.i2t_precision
    }

    /// The average precision of each sentence's image, `[M]`: one over the rank.
    #[must_use]
    pub fn t2i_average_precision(&self) -> &[f64] {
        &self.t2i_precision
    }

    /// The true pairs these ranks were taken by.
    #[must_use]
    pub fn relevance(&self) -> &Relevance {
        &self.relevance
    }

    /// The ranks of several folds as those of one set, images and sentences renumbered in order: figures of it are means over all
    /// queries, each among its own fold.
    ///
    /// # Errors
    /// [`Error::Empty`] without folds.
    pub fn joined(folds: &[Self]) -> Result<Self> {
        let mut owners = Vec::new();
        let mut images = 0;
        for fold in folds {
            owners.extend(fold.relevance.owners().iter().map(|owner| owner + images));
            images += fold.relevance.n_images();
        }
        let all = |of: fn(&Self) -> &[u32]| folds.iter().flat_map(of).copied().collect();
        let precisions = |of: fn(&Self) -> &[f64]| folds.iter().flat_map(of).copied().collect();
        Ok(Self {
            relevance: Relevance::from_owners(images, &owners)?,
            i2t: all(Self::i2t),
            t2i: all(Self::t2i),
            i2t_precision: precisions(Self::i2t_average_precision),
            t2i_precision: precisions(Self::t2i_average_precision),
        })
    }

    /// Sentence queries' ranks from here where `keep`, from `other` elsewhere.
    pub(crate) fn t2i_where(self, keep: &[bool], other: &Self) -> Self {
        let t2i = chosen(keep, &self.t2i, &other.t2i);
        Self { t2i, t2i_precision: chosen(keep, &self.t2i_precision, &other.t2i_precision), ..self }
    }

    /// Image queries' ranks from here where `keep`, from `other` elsewhere.
    pub(crate) fn i2t_where(self, keep: &[bool], other: &Self) -> Self {
        let i2t = chosen(keep, &self.i2t, &other.i2t);
        Self { i2t, i2t_precision: chosen(keep, &self.i2t_precision, &other.i2t_precision), ..self }
    }

    /// With the image queries' ranks of `other`.
    pub(crate) fn with_i2t_of(self, other: &Self) -> Self {
        Self { i2t: other.i2t.clone(), i2t_precision: other.i2t_precision.clone(), ..self }
    }

    /// The figures, without mean average precision.
    #[must_use]
    pub fn metrics(&self) -> RetrievalMetrics {
        self.figures(None, None)
    }

    /// The figures, with mean average precision.
    #[must_use]
    pub fn metrics_with_map(&self) -> RetrievalMetrics {
        self.figures(Some(mean(&self.i2t_precision)), Some(mean(&self.t2i_precision)))
    }

    fn figures(&self, i2t_map: Option<f64>, t2i_map: Option<f64>) -> RetrievalMetrics {
        let (images, sentences) = (self.relevance.n_images(), self.relevance.n_sentences());
        let (i2t, t2i) = (direction(&self.i2t, i2t_map), direction(&self.t2i, t2i_map));
        RetrievalMetrics::of(images, sentences, i2t, t2i)
    }
}

/// Entries of the first where `keep`, of the second elsewhere.
fn chosen<T: Copy>(keep: &[bool], first: &[T], second: &[T]) -> Vec<T> {
    keep.iter().zip(first.iter().zip(second)).map(|(keep, (a, b))| if *keep { *a } else { *b }).collect()
}

/// The figures of a score matrix, pessimistic in ties.
///
/// Protocol: recall@K is the share of queries with at least one right item in the top K (any-hit); see [`Ranks`]
/// for ranks and [`RetrievalMetrics`] for the rest.
///
/// Shapes: `scores [N images, M sentences]`, larger is more similar. Infinities are allowed (never, always).
///
/// # Errors
/// [`Error::Shape`] where the sizes differ from those of `relevance`, [`Error::NotFinite`] on a NaN.
///
/// # Example
/// ```
/// use aeir_retrieve::{Matrix, Relevance, evaluate};
/// let scores = Matrix::from_rows(&[[0.9, 0.8, 0.1], [0.2, 0.8, 0.7]])?;
/// let metrics = evaluate(&scores, &Relevance::from_owners(2, &[0, 0, 1])?)?;
/// assert_eq!(metrics.i2t.r1, 50.0); // image 1 finds a wrong sentence first
/// assert_eq!(metrics.t2i.medr, 1.0); // sentence 1 ties with a wrong image: rank 2
/// # Ok::<(), aeir_retrieve::Error>(())
/// ```
pub fn evaluate(scores: &Matrix, relevance: &Relevance) -> Result<RetrievalMetrics> {
    Ok(rank_scores(scores, relevance, Ties::Pessimistic)?.metrics())
}

/// [`evaluate`] of `similarity(images, sentences)`, without ever holding that `[N, M]` matrix.
///
/// The scores are made tile by tile with the same arithmetic, so the figures are the same. Memory is a few
/// numbers a query. Tiles that hold true pairs are computed twice: with sentences in the order of their images
/// that is a small share.
///
/// Shapes: `images [N, D]`, `sentences [M, D]`.
///
/// # Errors
/// [`Error::Shape`] where sizes or dimensions differ, [`Error::NotFinite`] on a NaN or infinity in an embedding
/// or a score.
pub fn evaluate_embeddings(
    images: &Matrix,
    sentences: &Matrix,
    relevance: &Relevance,
) -> Result<RetrievalMetrics> {
    Ok(rank_embeddings(images, sentences, relevance, Ties::Pessimistic)?.metrics())
}

/// The figures of two score matrices, one a direction: after a hubness correction the two differ.
///
/// Shapes: `i2t [N images, M sentences]`, `t2i [M sentences, N images]` (queries are rows in both).
///
/// # Errors
/// As [`evaluate`], for either matrix.
pub fn evaluate_directions(i2t: &Matrix, t2i: &Matrix, relevance: &Relevance) -> Result<RetrievalMetrics> {
    let mut ranks = rank_scores(i2t, relevance, Ties::Pessimistic)?;
    let other = rank_scores(&t2i.transposed(), relevance, Ties::Pessimistic)?;
    ranks.t2i = other.t2i;
    ranks.t2i_precision = other.t2i_precision;
    Ok(ranks.metrics())
}

/// Every query's rank in a score matrix `[N images, M sentences]`.
///
/// # Errors
/// As [`evaluate`].
pub fn rank_scores(scores: &Matrix, relevance: &Relevance, ties: Ties) -> Result<Ranks> {
    relevance.check(scores.rows(), scores.columns())?;
    scores.check_not_nan("scores")?;
    let own = (0..relevance.n_sentences())
        .map(|j| relevance.owner_of(j).and_then(|i| scores.get(i, j)).unwrap_or(f32::NAN))
        .collect();
    let counter = Counter::new(relevance, own, ties);
    tile_grid(scores.rows(), scores.columns()).into_par_iter().for_each(|(first_row, first_column)| {
        let rows = (first_row..scores.rows().min(first_row + TILE_ROWS)).map(|i| {
            let row = scores.row(i).unwrap_or_default();
            row.get(first_column..row.len().min(first_column + TILE_COLUMNS)).unwrap_or_default()
        });
        counter.add(first_row, first_column, rows);
    });
    Ok(counter.finish())
}

/// Every query's rank by the dot products of two sets of embeddings; see [`evaluate_embeddings`].
///
/// # Errors
/// As [`evaluate_embeddings`].
pub fn rank_embeddings(
    images: &Matrix,
    sentences: &Matrix,
    relevance: &Relevance,
    ties: Ties,
) -> Result<Ranks> {
    relevance.check(images.rows(), sentences.rows())?;
    let dimension = same_dimension(images, sentences)?;
    images.check_finite("image embeddings")?;
    sentences.check_finite("sentence embeddings")?;
    let tile = |first_row: usize, first_column: usize| {
        let left = block(images, first_row, TILE_ROWS);
        let right = block(sentences, first_column, TILE_COLUMNS);
        let rows = TILE_ROWS.min(images.rows() - first_row);
        let columns = TILE_COLUMNS.min(sentences.rows() - first_column);
        let mut values = vec![0.0_f32; rows * columns];
        tiles::multiply(left, right, dimension, &mut values);
        (values, columns)
    };
    let own = own_scores(relevance, &tile);
    let counter = Counter::new(relevance, own, ties);
    tile_grid(images.rows(), sentences.rows()).into_par_iter().try_for_each(
        |(first_row, first_column)| {
            let (values, columns) = tile(first_row, first_column);
            if let Some(place) = values.iter().position(|value| value.is_nan()) {
                let (row, column) = (first_row + place / columns, first_column + place % columns);
                return Err(Error::NotFinite { what: "scores", row, column, got: f32::NAN });
            }
            counter.add(first_row, first_column, values.chunks_exact(columns));
            Ok(())
        },
    )?;
    Ok(counter.finish())
}

/// The score of every sentence with its own image, out of the tiles that hold such a pair.
fn own_scores(relevance: &Relevance, tile: &(impl Fn(usize, usize) -> (Vec<f32>, usize) + Sync)) -> Vec<f32> {
    let mut wanted: BTreeMap<(usize, usize), Vec<(usize, usize)>> = BTreeMap::new();
    for (sentence, &image) in relevance.owners().iter().enumerate() {
        let corner = (image / TILE_ROWS * TILE_ROWS, sentence / TILE_COLUMNS * TILE_COLUMNS);
        wanted.entry(corner).or_default().push((image, sentence));
    }
    let found: Vec<Vec<(usize, f32)>> = wanted
        .into_par_iter()
        .map(|((first_row, first_column), pairs)| {
            let (values, columns) = tile(first_row, first_column);
            let score = |image: usize, sentence: usize| {
                values.get((image - first_row) * columns + sentence - first_column).copied()
            };
            pairs.into_iter().map(|(i, j)| (j, score(i, j).unwrap_or(f32::NAN))).collect()
        })
        .collect();
    let mut own = vec![f32::NAN; relevance.n_sentences()];
    for (sentence, score) in found.into_iter().flatten() {
        if let Some(slot) = own.get_mut(sentence) {
            *slot = score;
        }
    }
    own
}

/// Counts, for every true pair, the items that beat it in its row and in its column. Whole numbers are added, so
/// the order in which tiles arrive changes nothing.
struct Counter<'a> {
    relevance: &'a Relevance,
    ties: Ties,
    /// Score of each sentence with its own image.
    own: Vec<f32>,
    /// By sentence: sentences that beat it for its image, right ones included.
    in_row: Vec<AtomicU32>,
    /// By sentence: images that beat its own, itself included.
    in_column: Vec<AtomicU32>,
}

impl<'a> Counter<'a> {
    fn new(relevance: &'a Relevance, own: Vec<f32>, ties: Ties) -> Self {
        let zeros = || own.iter().map(|_| AtomicU32::new(0)).collect();
        Self { relevance, ties, in_row: zeros(), in_column: zeros(), own }
    }

    fn beats(&self, score: f32, own: f32) -> bool {
        match self.ties {
            Ties::Pessimistic => score >= own,
            Ties::Optimistic => score > own,
        }
    }

    /// Adds the rows `first_row..` of the columns `first_column..`, free of NaN.
    fn add<'v>(&self, first_row: usize, first_column: usize, rows: impl Iterator<Item = &'v [f32]>) {
        match self.ties {
            Ties::Pessimistic => self.add_with(first_row, first_column, rows, |score, own| score >= own),
            Ties::Optimistic => self.add_with(first_row, first_column, rows, |score, own| score > own),
        }
    }

    fn add_with<'v>(
        &self,
        first_row: usize,
        first_column: usize,
        rows: impl Iterator<Item = &'v [f32]>,
        beats: impl Fn(f32, f32) -> bool,
    ) {
        let own = self.own.get(first_column..).unwrap_or_default();
        let mut in_column = vec![0_u32; TILE_COLUMNS];
        for (offset, row) in rows.enumerate() {
            for ((count, score), own) in in_column.iter_mut().zip(row).zip(own) {
                *count += u32::from(beats(*score, *own));
            }
            for &sentence in self.relevance.sentences_of(first_row + offset) {
                if let (Some(&own), Some(total)) = (self.own.get(sentence), self.in_row.get(sentence)) {
                    let count: u32 = row.iter().map(|score| u32::from(beats(*score, own))).sum();
                    total.fetch_add(count, Ordering::Relaxed);
                }
            }
        }
        for (total, count) in self.in_column.iter().skip(first_column).zip(in_column) {
            total.fetch_add(count, Ordering::Relaxed);
        }
    }

    fn finish(self) -> Ranks {
        let (i2t, i2t_precision) = (0..self.relevance.n_images()).map(|image| self.image_rank(image)).unzip();
        let wrong_images = |count: &AtomicU32| {
            let itself = u32::from(self.ties == Ties::Pessimistic);
            count.load(Ordering::Relaxed).saturating_sub(itself)
        };
        let t2i: Vec<u32> = self.in_column.iter().map(|count| 1 + wrong_images(count)).collect();
        let t2i_precision = t2i.iter().map(|rank| 1.0 / f64::from(*rank)).collect();
        Ranks { relevance: self.relevance.clone(), i2t, t2i, i2t_precision, t2i_precision }
    }

    fn image_rank(&self, image: usize) -> (u32, f64) {
        let right: Vec<(f32, u32)> = (self.relevance.sentences_of(image).iter())
            .filter_map(|&j| Some((*self.own.get(j)?, self.in_row.get(j)?.load(Ordering::Relaxed))))
            .collect();
        rank_of(&right, |other, own| self.beats(*other, *own))
    }
}

/// Rank and average precision of a query from its right items: each one's score, and how many items beat it, right ones
/// included.
pub(crate) fn rank_of<S>(right: &[(S, u32)], beats: impl Fn(&S, &S) -> bool) -> (u32, f64) {
    let mut wrong: Vec<u32> = (right.iter())
        .map(|(own, beaten_by)| {
            let among_right = right.iter().filter(|(other, _)| beats(other, own)).count();
            beaten_by.saturating_sub(u32::try_from(among_right).unwrap_or(u32::MAX))
        })
        .collect();
    wrong.sort_unstable();
    let precisions =
        (1_u32..).zip(&wrong).map(|(t, wrong)| f64::from(t) / (f64::from(t) + f64::from(*wrong)));
    let precision = precisions.sum::<f64>() / wrong.len().max(1) as f64;
    (1 + wrong.first().copied().unwrap_or(0), precision)
}

/// The five-fold protocol's result: each fold, and the mean of every figure over the folds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FoldMetrics {
    /// Each fold's own figures, in order.
    pub folds: Vec<RetrievalMetrics>,
    /// Every figure averaged over the folds (`n_images` and `n_sentences` are those of the first fold).
    pub mean: RetrievalMetrics,
}

/// The figures of `folds` equal runs of images, each with its own sentences as the only gallery.
///
/// Fold `f` holds the images `f * N / folds .. (f + 1) * N / folds` and the sentences that belong to them.
/// COCO's "1K" figures are the mean of five folds of its 5,000 test images: see [`five_fold_1k`].
///
/// # Errors
/// As [`evaluate`]; [`Error::Setting`] where `folds` is 0 or does not divide the number of images.
pub fn evaluate_folds(scores: &Matrix, relevance: &Relevance, folds: usize) -> Result<FoldMetrics> {
    relevance.check(scores.rows(), scores.columns())?;
    over_folds(relevance, folds, |part, first, sentences| {
        let mut values = Vec::with_capacity(part.n_images() * sentences.len());
        for i in first..first + part.n_images() {
            let row = scores.row(i).unwrap_or_default();
            values.extend(sentences.iter().filter_map(|&j| row.get(j)));
        }
        evaluate(&Matrix::new(values, part.n_images(), sentences.len())?, part)
    })
}

/// [`evaluate_folds`] of `similarity(images, sentences)`, without holding that matrix.
///
/// # Errors
/// As [`evaluate_embeddings`] and [`evaluate_folds`].
pub fn evaluate_embeddings_folds(
    images: &Matrix,
    sentences: &Matrix,
    relevance: &Relevance,
    folds: usize,
) -> Result<FoldMetrics> {
    relevance.check(images.rows(), sentences.rows())?;
    over_folds(relevance, folds, |part, first, positions| {
        let rows: Vec<usize> = (first..first + part.n_images()).collect();
        evaluate_embeddings(&images.select_rows(&rows)?, &sentences.select_rows(positions)?, part)
    })
}

/// COCO's 1K protocol: five folds of 1,000 images out of 5,000, figures averaged.
///
/// # Errors
/// As [`evaluate_folds`]; [`Error::Shape`] where there are not exactly 5,000 images.
pub fn five_fold_1k(scores: &Matrix, relevance: &Relevance) -> Result<FoldMetrics> {
    if relevance.n_images() != 5_000 {
        return Err(Error::Shape {
            what: "images of the five-fold 1K protocol",
            expected: 5_000,
            got: relevance.n_images(),
        });
    }
    evaluate_folds(scores, relevance, 5)
}

fn over_folds(
    relevance: &Relevance,
    folds: usize,
    evaluate_fold: impl Fn(&Relevance, usize, &[usize]) -> Result<RetrievalMetrics>,
) -> Result<FoldMetrics> {
    let folds = relevance
        .folds(folds)?
        .iter()
        .map(|Fold { relevance, first, sentences }| evaluate_fold(relevance, *first, sentences))
        .collect::<Result<Vec<_>>>()?;
    mean_over_folds(folds)
}

/// The mean of every figure over folds that were scored one by one.
///
/// # Errors
/// [`Error::Empty`] without folds.
pub fn mean_over_folds(folds: Vec<RetrievalMetrics>) -> Result<FoldMetrics> {
    let first = folds.first().ok_or(Error::Empty { what: "list of folds" })?;
    let average = |of: fn(&RetrievalMetrics) -> f64| mean(&folds.iter().map(of).collect::<Vec<_>>());
    let i2t = DirectionMetrics {
        r1: average(|m| m.i2t.r1),
        r5: average(|m| m.i2t.r5),
        r10: average(|m| m.i2t.r10),
        medr: average(|m| m.i2t.medr),
        meanr: average(|m| m.i2t.meanr),
        map: first.i2t.map.map(|_| average(|m| m.i2t.map.unwrap_or(0.0))),
    };
    let t2i = DirectionMetrics {
        r1: average(|m| m.t2i.r1),
        r5: average(|m| m.t2i.r5),
        r10: average(|m| m.t2i.r10),
        medr: average(|m| m.t2i.medr),
        meanr: average(|m| m.t2i.meanr),
        map: first.t2i.map.map(|_| average(|m| m.t2i.map.unwrap_or(0.0))),
    };
    let mean = RetrievalMetrics::of(first.n_images, first.n_sentences, i2t, t2i);
    Ok(FoldMetrics { folds, mean })
}

/// What a uniformly random order of the gallery gives, in expectation: the floor to hold every figure against.
///
/// For a query with `R` right items among `G`:
/// - recall@K, exact (hypergeometric): `100 (1 - C(G - R, K) / C(G, K))`, averaged over queries;
/// - `meanr`, exact: the first of the right items stands at `(G + 1) / (R + 1)` on average;
/// - `map`, exact: `((R - 1)(G - H_G) / (G - 1) + H_G) / G` with the harmonic number `H_G = 1 + 1/2 + .. + 1/G`;
/// - `medr`: the median of the rank's distribution (all queries mixed), the middle of the two where it lies
///   between ranks. The expected median of a finite sample of queries is close to it, not equal.
#[must_use]
pub fn chance(relevance: &Relevance) -> RetrievalMetrics {
    let (n_images, n_sentences) = (relevance.n_images(), relevance.n_sentences());
    let mut by_size: BTreeMap<usize, usize> = BTreeMap::new();
    for image in 0..n_images {
        *by_size.entry(relevance.sentences_of(image).len()).or_default() += 1;
    }
    let i2t = chance_direction(n_sentences, &by_size);
    let t2i = chance_direction(n_images, &BTreeMap::from([(1, n_sentences)]));
    RetrievalMetrics::of(n_images, n_sentences, i2t, t2i)
}

/// `queries`: how many queries have how many right items, out of `gallery`.
fn chance_direction(gallery: usize, queries: &BTreeMap<usize, usize>) -> DirectionMetrics {
    let total = queries.values().sum::<usize>().max(1) as f64;
    let over_queries = |of: &dyn Fn(usize) -> f64| {
        queries.iter().map(|(right, count)| of(*right) * *count as f64).sum::<f64>() / total
    };
    // Share of queries whose best right item is within the first k.
    let within = |k: usize| over_queries(&|right| 1.0 - all_miss(gallery, right, k));
    let harmonic: f64 = (1..=gallery).rev().map(|i| 1.0 / i as f64).sum();
    let (size, last) = (gallery as f64, gallery.saturating_sub(1).max(1) as f64);
    let precision = |right: usize| {
        ((right.saturating_sub(1)) as f64 * (size - harmonic) / last + harmonic) / size.max(1.0)
    };
    DirectionMetrics {
        r1: 100.0 * within(1),
        r5: 100.0 * within(5),
        r10: 100.0 * within(10),
        medr: chance_median(gallery, &within),
        meanr: over_queries(&|right| (size + 1.0) / (right as f64 + 1.0)),
        map: Some(over_queries(&precision)),
    }
}

/// Probability that none of `right` items is among the first `k` of `gallery`: `C(gallery - right, k) / C(gallery, k)`,
/// written as the product over the right items.
fn all_miss(gallery: usize, right: usize, k: usize) -> f64 {
    (0..right)
        .map(|t| gallery.saturating_sub(k + t) as f64 / gallery.saturating_sub(t).max(1) as f64)
        .product()
}

fn chance_median(gallery: usize, within: &dyn Fn(usize) -> f64) -> f64 {
    const ROUNDING: f64 = 1e-12;
    let first_with = |reached: &dyn Fn(f64) -> bool| {
        let (mut low, mut high) = (1, gallery.max(1));
        while low < high {
            let middle = low + (high - low) / 2;
            if reached(within(middle)) { high = middle } else { low = middle + 1 }
        }
        low as f64
    };
    let lower = first_with(&|share| share >= 0.5 - ROUNDING);
    let upper = first_with(&|share| share > 0.5 + ROUNDING);
    f64::midpoint(lower, upper)
}

fn direction(ranks: &[u32], map: Option<f64>) -> DirectionMetrics {
    DirectionMetrics {
        r1: recall(ranks, 1),
        r5: recall(ranks, 5),
        r10: recall(ranks, 10),
        medr: median(ranks),
        meanr: ranks.iter().map(|rank| f64::from(*rank)).sum::<f64>() / ranks.len().max(1) as f64,
        map,
    }
}

/// Share of ranks up to `k`, in percent.
fn recall(ranks: &[u32], k: u32) -> f64 {
    let hits = ranks.iter().filter(|rank| **rank <= k).count();
    100.0 * hits as f64 / ranks.len().max(1) as f64
}

fn median(ranks: &[u32]) -> f64 {
    let mut sorted = ranks.to_vec();
    sorted.sort_unstable();
    let at = |place: usize| sorted.get(place).copied().map_or(0.0, f64::from);
    f64::midpoint(at(sorted.len().saturating_sub(1) / 2), at(sorted.len() / 2))
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}
