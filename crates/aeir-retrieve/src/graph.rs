//! Approximate search: a graph of near neighbours over a segment's rows, walked from row to row towards the query.
//!
//! `hnsw_rs` builds the graph (Malkov and Yashunin, *Efficient and robust approximate nearest neighbor search using hierarchical
//! navigable small world graphs*, TPAMI 2020). What is kept of it is its lowest layer, which holds every row, and some rows of the
//! upper layers to start from. It is one file of numbers that is mapped as it is, and walked over the mapped vectors: opening it
//! costs nothing, vectors are not kept twice, and deleted rows and filters are a question asked of each row.
//!
//! File: `[version, degree, starts, start rows .., degree neighbours a row ..]`, `u32`, little-endian; a row with fewer neighbours
//! is filled up with `u32::MAX`.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::bits::Bits;

const VERSION: u32 = 1;
const HEADER: usize = 3;
/// No row: a segment has fewer.
const NONE: u32 = u32::MAX;
/// Rows that a walk starts from: the best of so many.
#[cfg(feature = "hnsw")]
const STARTS: usize = 128;
/// Walks begin at this many of them.
const BEGINNINGS: usize = 4;

/// The neighbours of rows, as they lie in the file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Graph<'a> {
    starts: &'a [u32],
    neighbours: &'a [u32],
    degree: usize,
}

impl<'a> Graph<'a> {
    /// None where the numbers are no graph of so many rows.
    pub(crate) fn of(numbers: &'a [u32], rows: usize) -> Option<Self> {
        let [version, degree, starts, rest @ ..] = numbers else { return None };
        let (starts, neighbours) = rest.split_at_checked(*starts as usize)?;
        let degree = *degree as usize;
        let whole = rows.checked_mul(degree)? == neighbours.len();
        (*version == VERSION && whole && !starts.is_empty()).then_some(Self { starts, neighbours, degree })
    }

    fn of_row(&self, row: u32) -> &'a [u32] {
        let start = row as usize * self.degree;
        self.neighbours.get(start..start + self.degree).unwrap_or_default()
    }
}

/// A score and a row as one number that orders by score.
fn packed(score: f32, row: u32) -> u64 {
    let bits = score.to_bits();
    // Negative floats order backwards: turn them over, and put them below the others.
    let ordered = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
    u64::from(ordered) << 32 | u64::from(row)
}

fn row_of(packed: u64) -> u32 {
    packed as u32
}

/// What a walk needs and the next one can use again.
#[derive(Debug)]
pub(crate) struct Walk {
    visited: Bits,
    touched: Vec<u32>,
    /// Rows to go on from, best first.
    open: BinaryHeap<u64>,
    /// The best rows so far that may be found, worst first.
    found: BinaryHeap<Reverse<u64>>,
    next: Vec<u32>,
}

impl Walk {
    pub(crate) fn new(rows: usize) -> Self {
        Self {
            visited: Bits::none(rows),
            touched: Vec::new(),
            open: BinaryHeap::new(),
            found: BinaryHeap::new(),
            next: Vec::new(),
        }
    }

    /// The rows found, in no order: `effort` of them where there are so many. `score` is larger for nearer rows, `may` says which
    /// may be found.
    #[inline(always)]
    pub(crate) fn run(
        &mut self,
        graph: Graph<'_>,
        effort: usize,
        prepare: impl Fn(u32),
        score: impl Fn(u32) -> f32,
        may: impl Fn(u32) -> bool,
    ) -> Vec<u32> {
        self.open.clear();
        self.found.clear();
        let mut starts: Vec<u64> = graph.starts.iter().map(|row| packed(score(*row), *row)).collect();
        starts.sort_unstable_by_key(|start| Reverse(*start));
        for start in starts.into_iter().take(BEGINNINGS) {
            self.see(row_of(start));
            self.take(start, effort, &may);
        }
        while let Some(best) = self.open.pop() {
            if self.found.len() >= effort && self.found.peek().is_some_and(|worst| best < worst.0) {
                break;
            }
            self.next.clear();
            for row in graph.of_row(row_of(best)).iter().take_while(|row| **row != NONE) {
                if !self.visited.contains(*row as usize) {
                    self.see(*row);
                    self.next.push(*row);
                    prepare(*row);
                }
            }
            for place in 0..self.next.len() {
                let row = self.next.get(place).copied().unwrap_or(NONE);
                self.take(packed(score(row), row), effort, &may);
            }
        }
        self.touched.drain(..).for_each(|row| self.visited.remove(row as usize));
        self.found.iter().map(|found| row_of(found.0)).collect()
    }

    #[inline(always)]
    fn see(&mut self, row: u32) {
        self.visited.insert(row as usize);
        self.touched.push(row);
    }

    #[inline(always)]
    fn take(&mut self, scored: u64, effort: usize, may: &impl Fn(u32) -> bool) {
        let full = self.found.len() >= effort;
        if full && self.found.peek().is_some_and(|worst| scored <= worst.0) {
            return;
        }
        self.open.push(scored);
        if may(row_of(scored)) {
            if full {
                self.found.pop();
            }
            self.found.push(Reverse(scored));
        }
    }
}

#[cfg(feature = "hnsw")]
pub(crate) use build::{NEIGHBOURS, build};

#[cfg(feature = "hnsw")]
mod build {
    use hnsw_rs::anndists::dist::distances::Distance;
    use hnsw_rs::hnsw::Hnsw;
    use rayon::prelude::*;

    use super::{HEADER, NONE, STARTS, VERSION};
    use crate::Matrix;
    use crate::search::fast_dot;

    /// Neighbours that a row gets when it is inserted; the lowest layer keeps twice as many.
    pub(crate) const NEIGHBOURS: usize = 16;
    /// Candidates that are looked at for them.
    const CANDIDATES: usize = 100;
    const MOST_LAYERS: usize = 16;

    /// 1 - dot product: of vectors of length 1 it orders as the Euclidean distance does.
    #[derive(Clone, Copy)]
    struct OneLessDot;

    impl Distance<f32> for OneLessDot {
        fn eval(&self, left: &[f32], right: &[f32]) -> f32 {
            (1.0 - fast_dot(left, right)).max(0.0)
        }
    }

    /// The file of a graph over normalised rows, as numbers.
    pub(crate) fn build(embeddings: &Matrix) -> Vec<u32> {
        let rows = embeddings.rows();
        let graph: Hnsw<'_, f32, OneLessDot> =
            Hnsw::new(NEIGHBOURS, rows, MOST_LAYERS, CANDIDATES, OneLessDot);
        let values: Vec<&[f32]> = embeddings.iter_rows().collect();
        values.par_iter().enumerate().for_each(|(row, vector)| graph.insert((vector, row)));
        flattened(&graph, rows)
    }

    fn flattened(graph: &Hnsw<'_, f32, OneLessDot>, rows: usize) -> Vec<u32> {
        let degree = 2 * NEIGHBOURS;
        let mut neighbours = vec![NONE; rows * degree];
        let mut by_layer = Vec::new();
        for point in graph.get_point_indexation() {
            let row = point.get_origin_id();
            by_layer.push((point.get_point_id().0, row as u32));
            let lowest = point.get_neighborhood_id().into_iter().next().unwrap_or_default();
            let places = neighbours.get_mut(row * degree..(row + 1) * degree).unwrap_or_default();
            places.iter_mut().zip(lowest).for_each(|(place, neighbour)| *place = neighbour.d_id as u32);
        }
        by_layer.sort_unstable_by_key(|(layer, row)| (std::cmp::Reverse(*layer), *row));
        let starts: Vec<u32> = by_layer.into_iter().take(STARTS).map(|(_, row)| row).collect();
        let mut numbers = Vec::with_capacity(HEADER + starts.len() + neighbours.len());
        numbers.extend([VERSION, degree as u32, starts.len() as u32]);
        numbers.extend(starts);
        numbers.extend(neighbours);
        numbers
    }
}
