//! Exact nearest neighbours by dot product: the same answer whatever the machine, the batch or the threads.
//!
//! A fast pass in `f32` finds every item that could be among the best, rounding counted in; those few are scored
//! again in `f64` in one fixed order, rounded to `f32`, and sorted. Equal scores keep the order of positions.

use rayon::prelude::*;

use crate::hubness::by_score;
use crate::matrix::euclidean_length;
use crate::scores::same_dimension;
use crate::tiles::{self, TILE_COLUMNS, TILE_ROWS};
use crate::{Error, Matrix, Result};

/// A gallery item and its score.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Neighbour {
    /// Row in the gallery, from 0.
    pub position: usize,
    /// Dot product with the query; larger is more similar.
    pub score: f32,
}

/// The `k` best gallery items of every query, best first, ties by lower position. No score matrix is held.
///
/// Scores are dot products taken in `f64` and rounded once, so they can differ from
/// [`similarity`](crate::similarity), which sums in `f32`, in the last digits.
///
/// Shapes: `queries [Q, D]`, `gallery [G, D]`; each result has `min(k, G)` entries.
///
/// # Errors
/// [`Error::Setting`] where `k` is 0 or embeddings are so long that scores leave `f32`, [`Error::Shape`] where
/// the dimensions differ, [`Error::NotFinite`] on NaN or infinity.
///
/// # Example
/// ```
/// use aeir_retrieve::{Matrix, nearest};
/// let gallery = Matrix::from_rows(&[[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])?;
/// let found = nearest(&Matrix::from_rows(&[[1.0, 0.5]])?, &gallery, 2)?;
/// assert_eq!(found[0].iter().map(|neighbour| neighbour.position).collect::<Vec<_>>(), [0, 2]);
/// # Ok::<(), aeir_retrieve::Error>(())
/// ```
pub fn nearest(queries: &Matrix, gallery: &Matrix, k: usize) -> Result<Vec<Vec<Neighbour>>> {
    let dimension = same_dimension(queries, gallery)?;
    gallery.check_finite("gallery embeddings")?;
    let longest = longest_row(gallery);
    Gallery { values: gallery.values(), rows: gallery.rows(), dimension, longest, penalties: None }
        .search(queries, k)
}

/// The mean of the `k` best dot products of every query, `[Q]`, without holding the score matrix.
///
/// With the gallery as queries and a bank of sentences as gallery this is the `r_j` of [`csls`](crate::csls): half
/// of it is the penalty that makes [`Index::search_corrected`](crate::Index::search_corrected) rank by CSLS.
///
/// # Errors
/// As [`nearest`]; [`Error::Setting`] where `k` is more than the gallery.
pub fn mean_top_k_similarity(queries: &Matrix, gallery: &Matrix, k: usize) -> Result<Vec<f64>> {
    if k > gallery.rows() {
        return Err(Error::Setting {
            name: "k",
            expected: format!("1 to {}", gallery.rows()),
            got: k.to_string(),
        });
    }
    let found = nearest(queries, gallery, k)?;
    Ok(found.iter().map(|best| best.iter().map(|n| f64::from(n.score)).sum::<f64>() / k as f64).collect())
}

pub(crate) fn longest_row(gallery: &Matrix) -> f64 {
    let lengths = (0..gallery.rows()).into_par_iter();
    lengths.map(|i| euclidean_length(gallery.row(i).unwrap_or_default())).reduce(|| 0.0, f64::max)
}

/// Finite embeddings to search in.
#[derive(Clone, Copy)]
pub(crate) struct Gallery<'a> {
    /// `[rows, dimension]`.
    pub(crate) values: &'a [f32],
    pub(crate) rows: usize,
    pub(crate) dimension: usize,
    /// No row is longer.
    pub(crate) longest: f64,
    /// Taken off each item's score, `[rows]`, finite.
    pub(crate) penalties: Option<&'a [f32]>,
}

/// A query scaled to length 1 for the fast pass, and what is needed to judge that pass.
struct Query<'a> {
    original: &'a [f32],
    unit: Vec<f32>,
    length: f64,
    /// Twice the largest error of a fast score.
    slack: f64,
}

impl Gallery<'_> {
    pub(crate) fn search(&self, queries: &Matrix, k: usize) -> Result<Vec<Vec<Neighbour>>> {
        if k == 0 {
            return Err(Error::Setting { name: "k", expected: "1 or more".into(), got: "0".into() });
        }
        if queries.columns() != self.dimension {
            return Err(Error::Shape {
                what: "dimension of the query",
                expected: self.dimension,
                got: queries.columns(),
            });
        }
        queries.check_finite("query")?;
        let heaviest = self.penalties.unwrap_or_default().iter().fold(0.0_f32, |high, p| high.max(p.abs()));
        let prepared: Vec<Query<'_>> =
            (queries.iter_rows()).map(|row| self.prepare(row, f64::from(heaviest))).collect::<Result<_>>()?;
        let k = k.min(self.rows);
        if k == 0 {
            return Ok(vec![Vec::new(); queries.rows()]);
        }
        let blocks: Vec<&[Query<'_>]> = prepared.chunks(TILE_ROWS).collect();
        let ranges = self.ranges(blocks.len());
        let tasks: Vec<(&[Query<'_>], (usize, usize))> =
            blocks.iter().flat_map(|block| ranges.iter().map(move |range| (*block, *range))).collect();
        let found: Vec<Vec<Selector>> =
            tasks.into_par_iter().map(|(block, range)| self.scan(block, range, k)).collect();
        Ok((blocks.par_iter().zip(found.par_chunks(ranges.len().max(1))))
            .flat_map_iter(|(block, parts)| {
                (0..block.len()).filter_map(move |q| {
                    let query = block.get(q)?;
                    let candidates = parts.iter().filter_map(|part| part.get(q)).flat_map(|s| &s.candidates);
                    let mut merged =
                        Selector { candidates: candidates.copied().collect(), ..Selector::new(k) };
                    merged.prune(self, query, 0);
                    Some(self.exact(query, &merged.candidates, k))
                })
            })
            .collect())
    }

    fn prepare<'q>(&self, original: &'q [f32], heaviest: f64) -> Result<Query<'q>> {
        let length = euclidean_length(original);
        let reach = length.max(1.0) * self.longest.max(1.0) + heaviest;
        if reach >= f64::from(f32::MAX) / 4.0 {
            return Err(Error::Setting {
                name: "length of the query times the longest gallery item",
                expected: "well inside f32".into(),
                got: reach.to_string(),
            });
        }
        let length = if length > 0.0 { length } else { 1.0 };
        let unit = original.iter().map(|value| (f64::from(*value) / length) as f32).collect();
        // Rounding of a sum of D products in any order: D u |q| |x|, u = 2^-24; doubled, and room for the scaling
        // of the query, the penalty and the final rounding. The last terms are for numbers below f32's normals.
        let terms = self.dimension as f64 + 16.0;
        let error = terms * f64::from(f32::EPSILON) * (self.longest + heaviest / length)
            + terms * f64::from(f32::MIN_POSITIVE)
            + f64::from(f32::MIN_POSITIVE) / length;
        Ok(Query { original, unit, length, slack: 2.0 * error })
    }

    /// Runs of the gallery, enough of them for all threads, whole tiles each.
    fn ranges(&self, blocks: usize) -> Vec<(usize, usize)> {
        let wanted = (rayon::current_num_threads() * 4).div_ceil(blocks.max(1));
        let tiles = self.rows.div_ceil(TILE_COLUMNS);
        let step = tiles.div_ceil(wanted.max(1)).max(1) * TILE_COLUMNS;
        (0..self.rows).step_by(step).map(|first| (first, (first + step).min(self.rows))).collect()
    }

    /// The fast pass of a block of queries over a run of the gallery.
    fn scan(&self, block: &[Query<'_>], (first, last): (usize, usize), k: usize) -> Vec<Selector> {
        let units: Vec<f32> = block.iter().flat_map(|query| &query.unit).copied().collect();
        let mut selectors: Vec<Selector> = block.iter().map(|_| Selector::new(k)).collect();
        let mut scores = vec![0.0_f32; block.len() * TILE_COLUMNS];
        for start in (first..last).step_by(TILE_COLUMNS) {
            let columns = TILE_COLUMNS.min(last - start);
            let items = self
                .values
                .get(start * self.dimension..(start + columns) * self.dimension)
                .unwrap_or_default();
            let Some(tile) = scores.get_mut(..block.len() * columns) else { continue };
            fast_scores(&units, items, self.dimension, tile);
            for ((query, selector), row) in block.iter().zip(&mut selectors).zip(tile.chunks_mut(columns)) {
                if let Some(penalties) = self.penalties {
                    let penalties = penalties.get(start..).unwrap_or_default();
                    row.iter_mut()
                        .zip(penalties)
                        .for_each(|(score, penalty)| *score -= (f64::from(*penalty) / query.length) as f32);
                }
                selector.take(self, query, row, start);
            }
        }
        selectors
    }

    /// The candidates' true scores, best `k` first.
    fn exact(&self, query: &Query<'_>, candidates: &[(f32, usize)], k: usize) -> Vec<Neighbour> {
        let mut scored: Vec<(f32, usize)> =
            candidates.iter().map(|(_, position)| (self.exact_score(query, *position), *position)).collect();
        scored.sort_unstable_by(|a, b| by_score(*a, *b));
        scored.truncate(k);
        scored.into_iter().map(|(score, position)| Neighbour { position, score }).collect()
    }

    fn exact_score(&self, query: &Query<'_>, position: usize) -> f32 {
        let item =
            self.values.get(position * self.dimension..(position + 1) * self.dimension).unwrap_or_default();
        let penalty = self.penalties.and_then(|p| p.get(position)).copied().unwrap_or(0.0);
        (exact_dot(query.original, item) - f64::from(penalty)) as f32
    }
}

/// Dot products for the fast pass. Few queries are bound by memory: plain sums do; many go through the matrix product.
fn fast_scores(units: &[f32], items: &[f32], dimension: usize, out: &mut [f32]) {
    const FEW: usize = 3;
    if dimension == 0 {
        out.fill(0.0);
        return;
    }
    if units.len() / dimension > FEW {
        tiles::multiply(units, items, dimension, out);
        return;
    }
    let columns = items.len() / dimension;
    for (unit, row) in units.chunks_exact(dimension).zip(out.chunks_mut(columns)) {
        for (slot, item) in row.iter_mut().zip(items.chunks_exact(dimension)) {
            *slot = fast_dot(unit, item);
        }
    }
}

fn fast_dot(left: &[f32], right: &[f32]) -> f32 {
    const LANES: usize = 32;
    let mut sums = [0.0_f32; LANES];
    let (left_chunks, right_chunks) = (left.chunks_exact(LANES), right.chunks_exact(LANES));
    let rest: f32 = left_chunks.remainder().iter().zip(right_chunks.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in left_chunks.zip(right_chunks) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    sums.iter().sum::<f32>() + rest
}

/// The dot product in `f64` (each product of two `f32` is exact there), in one fixed order.
fn exact_dot(left: &[f32], right: &[f32]) -> f64 {
    const LANES: usize = 8;
    let mut sums = [0.0_f64; LANES];
    let (left_chunks, right_chunks) = (left.chunks_exact(LANES), right.chunks_exact(LANES));
    let rest: f64 = (left_chunks.remainder().iter().zip(right_chunks.remainder()))
        .map(|(a, b)| f64::from(*a) * f64::from(*b))
        .sum();
    for (a, b) in left_chunks.zip(right_chunks) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += f64::from(*a) * f64::from(*b);
        }
    }
    sums.iter().sum::<f64>() + rest
}

/// Keeps every item whose fast score could still be among the best `k`.
struct Selector {
    k: usize,
    /// Fast scores (of the unit query) and positions.
    candidates: Vec<(f32, usize)>,
    /// Fast scores below it can't be among the best.
    threshold: f32,
    /// Prune when this many candidates are held.
    capacity: usize,
}

/// Candidates beyond this are settled by exact scores, so that a gallery of copies does not fill the memory.
const MOST_UNSETTLED: usize = 4_096;

impl Selector {
    fn new(k: usize) -> Self {
        let capacity = k.saturating_mul(2).saturating_add(64);
        Self { k, candidates: Vec::new(), threshold: f32::NEG_INFINITY, capacity }
    }

    fn take(&mut self, gallery: &Gallery<'_>, query: &Query<'_>, scores: &[f32], first: usize) {
        const GLANCE: usize = 16;
        for (glance, chunk) in scores.chunks(GLANCE).enumerate() {
            if !chunk.iter().fold(false, |any, score| any | (*score >= self.threshold)) {
                continue;
            }
            for (offset, score) in chunk.iter().enumerate() {
                if *score >= self.threshold {
                    self.candidates.push((*score, first + glance * GLANCE + offset));
                }
            }
            if self.candidates.len() >= self.capacity {
                self.prune(gallery, query, MOST_UNSETTLED);
            }
        }
    }

    /// Drops what can't be among the best; above `unsettled` more than `k`, down to the exact best `k`.
    fn prune(&mut self, gallery: &Gallery<'_>, query: &Query<'_>, unsettled: usize) {
        if self.candidates.len() <= self.k {
            return;
        }
        let (_, kth, _) =
            self.candidates.select_nth_unstable_by(self.k.saturating_sub(1), |a, b| by_score(*a, *b));
        let threshold = ((f64::from(kth.0) - query.slack) as f32).next_down();
        self.threshold = self.threshold.max(threshold);
        let threshold = self.threshold;
        self.candidates.retain(|(score, _)| *score >= threshold);
        if unsettled > 0 && self.candidates.len() > self.k.saturating_add(unsettled) {
            let mut scored: Vec<(f32, usize, f32)> = (self.candidates.iter())
                .map(|(fast, position)| (gallery.exact_score(query, *position), *position, *fast))
                .collect();
            scored.sort_unstable_by(|a, b| by_score((a.0, a.1), (b.0, b.1)));
            scored.truncate(self.k);
            self.candidates = scored.into_iter().map(|(_, position, fast)| (fast, position)).collect();
        }
        let floor = self.k.saturating_mul(2).saturating_add(64);
        self.capacity = self.candidates.len().saturating_mul(2).max(floor);
    }
}
