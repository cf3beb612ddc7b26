//! Exact nearest neighbours by dot product: the same answer whatever the machine, the batch or the threads.
//!
//! A fast pass in `f32` finds every item that could be among the best, rounding counted in; those few are scored
//! again in `f64` in one fixed order, rounded to `f32`, and sorted. Equal scores keep the order of positions.

#[cfg(any(feature = "cuda", test))]
pub(crate) mod proposed;

use half::f16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

use crate::ask_for::ask_for;
use crate::bits::Bits;
use crate::graph::{Asked, Graph, Walk};
use crate::hubness::by_score;
pub(crate) use crate::int8::Codes;
use crate::int8::{self, Coded, QueryCodes, sum_of_codes};
use crate::matrix::euclidean_length;
use crate::scores::same_dimension;
use crate::storage::quantised;
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
    same_dimension(queries, gallery)?;
    Gallery::of_matrix(gallery)?.search(queries, k)
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

/// How some rows are kept.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Vectors<'a> {
    F32(&'a [f32]),
    F16(&'a [f16]),
    /// Codes for the first pass, and what candidates are scored by.
    Int8(Codes<'a>, &'a [f16]),
}

/// Rows that lie together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run<'a> {
    /// The number of its first row.
    pub(crate) first: usize,
    pub(crate) rows: usize,
    /// `[rows, dimension]`.
    pub(crate) vectors: Vectors<'a>,
}

impl Run<'_> {
    /// Asks for the memory of a row's vector.
    fn ask_for(&self, row: usize, dimension: usize) {
        let start = (row - self.first) * dimension;
        let range = start..start + dimension;
        match self.vectors {
            Vectors::F32(values) => ask_for(values.get(range).unwrap_or_default()),
            Vectors::F16(values) | Vectors::Int8(_, values) => {
                ask_for(values.get(range).unwrap_or_default());
            }
        }
    }
}

/// Finite embeddings to search in.
#[derive(Clone)]
pub(crate) struct Gallery<'a> {
    /// In the order of their rows, without gaps.
    pub(crate) runs: Vec<Run<'a>>,
    pub(crate) dimension: usize,
    /// No row is longer.
    pub(crate) longest: f64,
    /// Taken off each row's score, finite.
    pub(crate) penalties: Option<&'a [f32]>,
    /// The rows that may be found, if not all.
    pub(crate) selected: Option<&'a Bits>,
}

/// A query scaled to length 1 for the fast pass, and what is needed to judge that pass.
struct Query<'a> {
    original: &'a [f32],
    unit: Vec<f32>,
    length: f64,
    /// Twice the largest error of a fast score.
    slack: f64,
}

/// Rows of a run, counted from its first.
#[derive(Clone, Copy)]
struct Range<'a> {
    run: Run<'a>,
    first: usize,
    last: usize,
}

/// Below this share of selected rows they are scored one by one instead of all in tiles.
const FEW_SELECTED: usize = 16;

impl<'g> Gallery<'g> {
    /// All rows of a matrix; refuses those that are not finite.
    pub(crate) fn of_matrix(items: &'g Matrix) -> Result<Self> {
        items.check_finite("gallery embeddings")?;
        let run = Run { first: 0, rows: items.rows(), vectors: Vectors::F32(items.values()) };
        let (dimension, longest) = (items.columns(), longest_row(items));
        Ok(Self { runs: vec![run], dimension, longest, penalties: None, selected: None })
    }

    pub(crate) fn rows(&self) -> usize {
        self.runs.iter().map(|run| run.rows).sum()
    }

    /// How many rows may be found.
    fn selected(&self) -> usize {
        let within = |rows: &Bits| {
            self.runs.iter().map(|run| rows.count_within(run.first, run.first + run.rows)).sum()
        };
        self.selected.map_or_else(|| self.rows(), within)
    }

    /// Whether selected rows are scored one by one.
    fn is_few(&self, selected: usize) -> bool {
        self.selected.is_some() && selected * FEW_SELECTED <= self.rows()
    }

    /// Neighbours by row: the best of all.
    pub(crate) fn search(&self, queries: &Matrix, k: usize) -> Result<Vec<Vec<Neighbour>>> {
        let prepared = self.prepared(queries, k)?;
        let selected = self.selected();
        let k = k.min(selected);
        if k == 0 {
            return Ok(vec![Vec::new(); queries.rows()]);
        }
        if let Some(rows) = self.selected
            && self.is_few(selected)
        {
            let within = |run: &Run<'_>| run.first..run.first + run.rows;
            let rows: Vec<usize> =
                self.runs.iter().flat_map(within).filter(|row| rows.contains(*row)).collect();
            return Ok(prepared.iter().map(|query| self.best_of(query, &rows, k)).collect());
        }
        let blocks: Vec<&[Query<'_>]> = prepared.chunks(TILE_ROWS).collect();
        let ranges = self.ranges(blocks.len());
        let tasks: Vec<(&[Query<'_>], Range<'_>)> =
            blocks.iter().flat_map(|block| ranges.iter().map(move |range| (*block, *range))).collect();
        let wanted = self.candidates(k);
        let found: Vec<Vec<Selector>> =
            tasks.into_par_iter().map(|(block, range)| self.scan(block, range, wanted)).collect();
        Ok((blocks.par_iter().zip(found.par_chunks(ranges.len().max(1))))
            .flat_map_iter(|(block, parts)| {
                (0..block.len()).filter_map(move |q| {
                    let query = block.get(q)?;
                    let candidates = parts.iter().filter_map(|part| part.get(q)).flat_map(|s| &s.candidates);
                    let mut merged =
                        Selector { candidates: candidates.copied().collect(), ..Selector::new(wanted) };
                    merged.prune(self, query, 0);
                    Some(self.exact(query, &merged.candidates, k))
                })
            })
            .collect())
    }

    /// Neighbours by row, of the one run there is: the best of those that walks over its graph and the codes of its rows come to.
    pub(crate) fn walk(
        &self,
        (graph, items): (&Graph<'_>, Codes<'_>),
        effort: usize,
        queries: &Matrix,
        k: usize,
    ) -> Result<Vec<Vec<Neighbour>>> {
        let prepared = self.prepared(queries, k)?;
        let Some(run) = self.runs.first() else { return Ok(vec![Vec::new(); queries.rows()]) };
        let may = |row: u32| self.selected.is_none_or(|rows| rows.contains(run.first + row as usize));
        let walked = prepared.par_iter().map_init(
            || Walk::new(run.rows),
            |walk, query| {
                let (codes, scales) = quantised(&query.unit, self.dimension);
                let scale = scales.first().copied().unwrap_or(0.0);
                let coded = Coded { codes: &codes, scale, sum: sum_of_codes(&codes) };
                let rows = walk.run(graph, Asked { query: coded, items }, effort, may);
                let rows: Vec<usize> =
                    rows.take(coded_candidates(k)).map(|row| run.first + row as usize).collect();
                best(self.scored_apart(query, *run, &rows), k)
            },
        );
        Ok(walked.collect())
    }

    /// Checked queries.
    fn prepared<'q>(&self, queries: &'q Matrix, k: usize) -> Result<Vec<Query<'q>>> {
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
        let prepare = |row: usize| self.prepare(queries.row(row).unwrap_or_default(), f64::from(heaviest));
        let prepared: Vec<Result<Query<'_>>> =
            (0..queries.rows()).into_par_iter().with_min_len(64).map(prepare).collect();
        // The first that is refused is told, on any number of threads.
        prepared.into_iter().collect()
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
        // Codes are too coarse for a bound to be of use: more candidates are taken instead.
        let slack = if self.has_codes() { 0.0 } else { 2.0 * error };
        Ok(Query { original, unit, length, slack })
    }

    fn has_codes(&self) -> bool {
        self.runs.iter().any(|run| matches!(run.vectors, Vectors::Int8(..)))
    }

    /// How many of the fast pass are scored again, at least.
    fn candidates(&self, k: usize) -> usize {
        if self.has_codes() { coded_candidates(k) } else { k }
    }

    /// Parts of runs, enough of them for all threads, whole tiles each.
    fn ranges(&self, blocks: usize) -> Vec<Range<'g>> {
        let wanted = (rayon::current_num_threads() * 4).div_ceil(blocks.max(1));
        let tiles = self.rows().div_ceil(TILE_COLUMNS);
        let step = tiles.div_ceil(wanted.max(1)).max(1) * TILE_COLUMNS;
        let within = |run: Run<'g>| {
            let starts = (0..run.rows).step_by(step);
            starts.map(move |first| Range { run, first, last: (first + step).min(run.rows) })
        };
        self.runs.iter().copied().flat_map(within).collect()
    }

    /// The fast pass of a block of queries over some rows.
    fn scan(&self, block: &[Query<'_>], range: Range<'_>, wanted: usize) -> Vec<Selector> {
        let units: Vec<f32> = block.iter().flat_map(|query| &query.unit).copied().collect();
        let mut scorer = Scorer::new(&units, self.dimension, range.run.vectors);
        let mut selectors: Vec<Selector> = block.iter().map(|_| Selector::new(wanted)).collect();
        let mut scores = vec![0.0_f32; block.len() * TILE_COLUMNS];
        for start in (range.first..range.last).step_by(TILE_COLUMNS) {
            let end = range.last.min(start + TILE_COLUMNS);
            let (columns, first) = (end - start, range.run.first + start);
            let left_out =
                self.selected.map_or_else(Vec::new, |rows| rows.zeros_within(first, first + columns));
            let Some(tile) = scores.get_mut(..block.len() * columns) else { continue };
            if left_out.len() == columns {
                continue;
            }
            scorer.scores(start, end, tile);
            for ((query, selector), row) in block.iter().zip(&mut selectors).zip(tile.chunks_mut(columns)) {
                if let Some(penalties) = self.penalties {
                    let penalties = penalties.get(first..).unwrap_or_default();
                    row.iter_mut()
                        .zip(penalties)
                        .for_each(|(score, penalty)| *score -= (f64::from(*penalty) / query.length) as f32);
                }
                // Not a number is never among the best.
                for place in &left_out {
                    if let Some(score) = row.get_mut(*place) {
                        *score = f32::NAN;
                    }
                }
                selector.take(self, query, row, first);
            }
        }
        selectors
    }

    /// The candidates' true scores, best `k` first.
    fn exact(&self, query: &Query<'_>, candidates: &[(f32, usize)], k: usize) -> Vec<Neighbour> {
        let scored = candidates.iter().map(|(_, row)| (self.exact_score(query, *row), *row)).collect();
        best(scored, k)
    }

    /// The best `k` of some rows by their true scores.
    fn best_of(&self, query: &Query<'_>, rows: &[usize], k: usize) -> Vec<Neighbour> {
        best(rows.par_iter().map(|row| (self.exact_score(query, *row), *row)).collect(), k)
    }

    /// The true scores of a run's rows that lie far from each other.
    fn scored_apart(&self, query: &Query<'_>, run: Run<'_>, rows: &[usize]) -> Vec<(f32, usize)> {
        const AHEAD: usize = 4;
        rows.iter().take(AHEAD).for_each(|row| run.ask_for(*row, self.dimension));
        let score = |(place, row): (usize, &usize)| {
            rows.iter().skip(place + AHEAD).take(1).for_each(|row| run.ask_for(*row, self.dimension));
            (self.exact_score(query, *row), *row)
        };
        rows.iter().enumerate().map(score).collect()
    }

    fn exact_score(&self, query: &Query<'_>, row: usize) -> f32 {
        let place = self.runs.partition_point(|run| run.first <= row).saturating_sub(1);
        let Some(run) = self.runs.get(place) else { return f32::NAN };
        let start = (row - run.first) * self.dimension;
        let range = start..start + self.dimension;
        let dot = match run.vectors {
            Vectors::F32(values) => exact_dot(query.original, values.get(range).unwrap_or_default()),
            Vectors::F16(values) | Vectors::Int8(_, values) => {
                exact_dot(query.original, &values.get(range).unwrap_or_default().to_f32_vec())
            }
        };
        let penalty = self.penalties.and_then(|p| p.get(row)).copied().unwrap_or(0.0);
        (dot - f64::from(penalty)) as f32
    }
}

/// How many of the best by codes are scored again for the best `k`.
fn coded_candidates(k: usize) -> usize {
    k.saturating_mul(2).saturating_add(64)
}

/// The best `k`, best first.
pub(crate) fn merged(lists: impl Iterator<Item = Neighbour>, k: usize) -> Vec<Neighbour> {
    best(lists.map(|neighbour| (neighbour.score, neighbour.position)).collect(), k)
}

fn best(mut scored: Vec<(f32, usize)>, k: usize) -> Vec<Neighbour> {
    if k < scored.len() {
        scored.select_nth_unstable_by(k, |a, b| by_score(*a, *b));
        scored.truncate(k);
    }
    scored.sort_unstable_by(|a, b| by_score(*a, *b));
    scored.into_iter().map(|(score, position)| Neighbour { position, score }).collect()
}

/// Up to this many queries, each row is taken once for all of them; above it a matrix product pays.
const FEW_QUERIES: usize = 3;

/// Scores a block of unit queries with rows of one run, within the rounding that [`Query::slack`] allows for.
struct Scorer<'a> {
    units: &'a [f32],
    dimension: usize,
    vectors: Vectors<'a>,
    codes: QueryCodes,
    /// Room for rows that are made wider.
    wide: Vec<f32>,
}

impl<'a> Scorer<'a> {
    fn new(units: &'a [f32], dimension: usize, vectors: Vectors<'a>) -> Self {
        let coded = if matches!(vectors, Vectors::Int8(..)) { units } else { &[] };
        Self { units, dimension, vectors, codes: QueryCodes::of(coded, dimension), wide: Vec::new() }
    }

    /// `out [queries, last - first]`.
    fn scores(&mut self, first: usize, last: usize, out: &mut [f32]) {
        let (dimension, columns) = (self.dimension, last - first);
        if dimension == 0 {
            return out.fill(0.0);
        }
        let range = first * dimension..last * dimension;
        let few = self.units.len() / dimension <= FEW_QUERIES;
        match self.vectors {
            Vectors::F32(values) if few => {
                let items = values.get(range).unwrap_or_default().chunks_exact(dimension);
                items.enumerate().for_each(|(column, item)| self.column(item, column, columns, out));
            }
            Vectors::F32(values) => {
                tiles::multiply(self.units, values.get(range).unwrap_or_default(), dimension, out);
            }
            Vectors::F16(values) if few => {
                let mut wide = vec![0.0; dimension];
                let items = values.get(range).unwrap_or_default().chunks_exact(dimension);
                for (column, item) in items.enumerate() {
                    item.convert_to_f32_slice(&mut wide);
                    self.column(&wide, column, columns, out);
                }
            }
            Vectors::F16(values) => {
                let items = values.get(range).unwrap_or_default();
                self.wide.resize(items.len(), 0.0);
                items.convert_to_f32_slice(&mut self.wide);
                tiles::multiply(self.units, &self.wide, dimension, out);
            }
            Vectors::Int8(codes, _) => int8::scores(&self.codes, codes.rows(first, last), out),
        }
    }

    /// One item's scores with all queries.
    fn column(&self, item: &[f32], column: usize, columns: usize, out: &mut [f32]) {
        for (unit, row) in self.units.chunks_exact(self.dimension).zip(out.chunks_mut(columns)) {
            if let Some(slot) = row.get_mut(column) {
                *slot = fast_dot(unit, item);
            }
        }
    }
}

/// With the widest instructions of this machine.
pub(crate) fn fast_dot(left: &[f32], right: &[f32]) -> f32 {
    pulp::Arch::new().dispatch(
        #[inline(always)]
        || dot_in_lanes(left, right),
    )
}

#[inline(always)]
fn dot_in_lanes(left: &[f32], right: &[f32]) -> f32 {
    const LANES: usize = 64;
    let mut sums = [0.0_f32; LANES];
    let (left, right) = (left.as_chunks::<LANES>(), right.as_chunks::<LANES>());
    let rest: f32 = left.1.iter().zip(right.1).map(|(a, b)| a * b).sum();
    for (a, b) in left.0.iter().zip(right.0) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    sums.iter().sum::<f32>() + rest
}

/// The dot product in `f64` (each product of two `f32` is exact there), in one fixed order, whatever the instructions.
pub(crate) fn exact_dot(left: &[f32], right: &[f32]) -> f64 {
    pulp::Arch::new().dispatch(
        #[inline(always)]
        || exact_in_lanes(left, right),
    )
}

#[inline(always)]
fn exact_in_lanes(left: &[f32], right: &[f32]) -> f64 {
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
