//! Approximate search: a graph of near neighbours over a segment's rows, walked from row to row towards the query.
//!
//! The graph is that of Malkov and Yashunin (*Efficient and robust approximate nearest neighbor search using hierarchical navigable
//! small world graphs*, TPAMI 2020): every row in the lowest layer, a sixteenth of the rows in each layer above another. The topmost
//! layer is small and looked at as a whole; the best of each layer are where the walk through the next one begins.
//!
//! A walk scores rows by their 8-bit codes (a quarter of the memory that `f32` would have to fetch); what it ends with is scored again
//! by the vectors themselves. The file is numbers that are mapped as they are: opening it costs nothing, and deleted rows and filters
//! are a question asked of each row.
//!
//! File: `u32`, little-endian. A header of 16 numbers: `[version, degree, layers, rows of each layer above the lowest ..]`, the lower
//! ones first. Then `degree` neighbours of each row; the rows of the first layer above, those of the second first and so on, so that a
//! place in this list is the same row in all layers; and for each layer but the topmost `degree` neighbours of each place, as places. Who
//! has fewer neighbours has `u32::MAX` for the rest.

mod build;

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::ask_for::ask_for;
use crate::bits::Bits;
use crate::int8::{Coded, Codes, scores_of};

pub(crate) use build::{NEIGHBOURS, build};

/// Version 1 had one layer, and was walked over vectors.
pub(crate) const VERSION: u64 = 2;
/// A graph has no more rows: the last number says that there is none.
pub(crate) const MOST_ROWS: usize = NONE as usize - 1;
/// As long as a line of the cache: a row's neighbours lie in whole lines.
const HEADER: usize = 16;
/// No row: a segment with a graph has fewer.
const NONE: u32 = u32::MAX;
/// A walk goes on into the layer below from so many places.
const BEAM: usize = 4;

/// Neighbours that an entry has at most, and where they are: the entry's number is a row or a place.
#[derive(Clone, Copy, Debug)]
struct Layer<'a> {
    neighbours: &'a [u32],
    /// Numbers from one entry's neighbours to the next one's.
    stride: usize,
    /// The rows of places; none where numbers are rows.
    rows: Option<&'a [u32]>,
}

impl<'a> Layer<'a> {
    #[inline(always)]
    fn of(&self, entry: u32) -> &'a [u32] {
        let start = entry as usize * self.stride;
        self.neighbours.get(start..start + self.stride).unwrap_or_default()
    }

    #[inline(always)]
    fn row(&self, entry: u32) -> u32 {
        self.rows.map_or(entry, |rows| rows.get(entry as usize).copied().unwrap_or(NONE))
    }
}

/// The layers above the lowest.
#[derive(Clone, Debug)]
struct Above<'a> {
    /// The row of each place.
    rows: &'a [u32],
    /// Places that are looked at in any case: the topmost layer.
    scanned: usize,
    degree: usize,
    /// Neighbours of places, from above.
    layers: Vec<&'a [u32]>,
}

/// A graph, as it lies in its file.
#[derive(Clone, Debug)]
pub(crate) struct Graph<'a> {
    above: Above<'a>,
    lowest: Layer<'a>,
}

impl<'a> Graph<'a> {
    /// None where the numbers are no graph of so many rows.
    pub(crate) fn of(numbers: &'a [u32], rows: usize) -> Option<Self> {
        let (header, rest) = numbers.split_at_checked(HEADER)?;
        let [version, degree, layers, counts @ ..] = header else { return None };
        let degree = *degree as usize;
        let counts = counts.get(..*layers as usize)?;
        let falling = counts.windows(2).all(|pair| matches!(pair, [lower, upper] if upper < lower));
        let (first, last) = (*counts.first()? as usize, *counts.last()? as usize);
        if u64::from(*version) != VERSION || !falling || last == 0 || first > rows {
            return None;
        }
        let (neighbours, rest) = rest.split_at_checked(rows.checked_mul(degree)?)?;
        let (places, mut rest) = rest.split_at_checked(first)?;
        let mut above = Vec::new();
        for count in counts.iter().take(counts.len() - 1) {
            let layer;
            (layer, rest) = rest.split_at_checked((*count as usize).checked_mul(degree)?)?;
            above.push(layer);
        }
        above.reverse();
        let whole = rest.is_empty();
        whole.then_some(Self {
            above: Above { rows: places, scanned: last, degree, layers: above },
            lowest: Layer { neighbours, stride: degree, rows: None },
        })
    }

    /// Whether the places above are rows. It looks at all of them: asked when a file is opened, not by each search.
    pub(crate) fn is_within(&self, rows: usize) -> bool {
        self.above.rows.iter().all(|row| (*row as usize) < rows)
    }
}

/// A score and an entry as one number that orders by score.
fn packed(score: f32, entry: u32) -> u64 {
    let bits = score.to_bits();
    // Negative floats order backwards: turn them over, and put them below the others.
    let ordered = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
    u64::from(ordered) << 32 | u64::from(entry)
}

fn entry_of(packed: u64) -> u32 {
    packed as u32
}

fn score_of(packed: u64) -> f32 {
    let ordered = (packed >> 32) as u32;
    f32::from_bits(if ordered >> 31 == 1 { ordered & !(1 << 31) } else { !ordered })
}

/// What is looked for, and among what.
#[derive(Clone, Copy)]
pub(crate) struct Asked<'a> {
    pub(crate) query: Coded<'a>,
    pub(crate) items: Codes<'a>,
}

/// What a walk needs and the next one can use again.
#[derive(Debug)]
pub(crate) struct Walk {
    visited: Bits,
    touched: Vec<u32>,
    /// Entries to go on from, best first.
    open: BinaryHeap<u64>,
    /// The best entries so far that may be found, worst first.
    found: BinaryHeap<Reverse<u64>>,
    /// Those of the layer that was walked last, best first.
    best: Vec<u64>,
    next: Vec<u32>,
    rows: Vec<u32>,
    scores: Vec<f32>,
}

impl Walk {
    pub(crate) fn new(rows: usize) -> Self {
        Self {
            visited: Bits::none(rows),
            touched: Vec::new(),
            open: BinaryHeap::new(),
            found: BinaryHeap::new(),
            best: Vec::new(),
            next: Vec::new(),
            rows: Vec::new(),
            scores: Vec::new(),
        }
    }

    /// The rows found, best first: `effort` of them where there are so many. `may` says which may be found.
    pub(crate) fn run(
        &mut self,
        graph: &Graph<'_>,
        asked: Asked<'_>,
        effort: usize,
        may: impl Fn(u32) -> bool,
    ) -> impl Iterator<Item = u32> {
        self.descend(&graph.above, asked);
        self.layer(graph.lowest, asked, effort, may);
        self.best.iter().map(|best| entry_of(*best))
    }

    /// From the topmost layer down to where the lowest is entered; those rows, best first.
    fn descend(&mut self, above: &Above<'_>, asked: Asked<'_>) {
        let rows = above.rows.get(..above.scanned).unwrap_or_default();
        scores_of(asked.query, asked.items, rows, &mut self.scores);
        self.best.clear();
        self.best.extend((0..).zip(&self.scores).map(|(place, score)| packed(*score, place)));
        self.best.sort_unstable_by_key(|best| Reverse(*best));
        for neighbours in &above.layers {
            self.best.truncate(BEAM);
            let layer = Layer { neighbours, stride: above.degree, rows: Some(above.rows) };
            self.layer(layer, asked, BEAM, |_| true);
        }
        self.best.truncate(BEAM);
        for best in &mut self.best {
            let place = entry_of(*best);
            let row = above.rows.get(place as usize).copied().unwrap_or(NONE);
            *best = *best - u64::from(place) + u64::from(row);
        }
    }

    /// Walks one layer from the best of the one above.
    #[inline(always)]
    fn layer(&mut self, layer: Layer<'_>, asked: Asked<'_>, effort: usize, may: impl Fn(u32) -> bool) {
        for place in 0..self.best.len() {
            let start = self.best.get(place).copied().unwrap_or_default();
            self.see(entry_of(start));
            self.take(start, layer, effort, &may);
        }
        while let Some(best) = self.open.pop() {
            if self.found.len() >= effort && self.found.peek().is_some_and(|worst| best < worst.0) {
                break;
            }
            self.next.clear();
            self.rows.clear();
            for entry in layer.of(entry_of(best)).iter().take_while(|entry| **entry != NONE) {
                if self.visited.insert_new(*entry as usize) {
                    self.touched.push(*entry);
                    self.next.push(*entry);
                    self.rows.push(layer.row(*entry));
                }
            }
            scores_of(asked.query, asked.items, &self.rows, &mut self.scores);
            for place in 0..self.next.len() {
                let entry = self.next.get(place).copied().unwrap_or(NONE);
                let score = self.scores.get(place).copied().unwrap_or(f32::NEG_INFINITY);
                self.take(packed(score, entry), layer, effort, &may);
            }
        }
        self.open.clear();
        self.touched.drain(..).for_each(|entry| self.visited.remove(entry as usize));
        self.best.clear();
        self.best.extend(self.found.drain().map(|found| found.0));
        self.best.sort_unstable_by_key(|best| Reverse(*best));
    }

    #[inline(always)]
    fn see(&mut self, entry: u32) {
        self.visited.insert(entry as usize);
        self.touched.push(entry);
    }

    #[inline(always)]
    fn take(&mut self, scored: u64, layer: Layer<'_>, effort: usize, may: &impl Fn(u32) -> bool) {
        let full = self.found.len() >= effort;
        if full && self.found.peek().is_some_and(|worst| scored <= worst.0) {
            return;
        }
        // The walk will most likely come by here.
        ask_for(layer.of(entry_of(scored)));
        self.open.push(scored);
        if may(entry_of(scored)) {
            if full {
                self.found.pop();
            }
            self.found.push(Reverse(scored));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_are_no_graph_are_refused() {
        // Five rows of two neighbours; three places above, of which one is the topmost layer.
        let good = |counts: [u32; 2], numbers: usize| {
            let mut all = vec![VERSION as u32, 2, 2, counts[0], counts[1]];
            all.resize(HEADER, 0);
            all.resize(HEADER + numbers, NONE);
            all
        };
        assert!(Graph::of(&good([3, 1], 10 + 3 + 6), 5).is_some());
        for (counts, numbers) in
            [([3, 1], 18), ([3, 1], 20), ([3, 0], 19), ([3, 3], 19), ([1, 3], 19), ([6, 1], 28)]
        {
            assert!(Graph::of(&good(counts, numbers), 5).is_none(), "{counts:?} {numbers}");
        }
        let with = |place: usize, number: u32| {
            let mut all = good([3, 1], 19);
            all[place] = number;
            Graph::of(&all, 5).is_none()
        };
        assert!(with(0, 1) && with(1, 3) && with(1, u32::MAX) && with(2, 0) && with(2, 1) && with(2, 99));
        assert!(Graph::of(&[], 5).is_none() && Graph::of(&good([3, 1], 19), 6).is_none());
    }

    #[test]
    fn packed_numbers_order_as_scores_do() {
        let scores = [f32::NEG_INFINITY, -2.0, -1e-9, 0.0, 1e-9, 0.5, 2.0];
        assert!(scores.windows(2).all(|pair| packed(pair[0], 9) < packed(pair[1], 3)));
        assert!(packed(0.5, 3) < packed(0.5, 4));
        for score in scores {
            assert_eq!((score_of(packed(score, 7)), entry_of(packed(score, 7))), (score, 7));
        }
    }
}
