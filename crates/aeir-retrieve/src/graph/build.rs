//! Building a graph over the codes of rows.
//!
//! Rows are inserted in a random, seeded order, in batches: all rows of a batch look for their neighbours in the graph as it was before
//! the batch, at once on all threads, and are linked together afterwards in one order. So the graph is a function of the codes alone:
//! the same on every machine, with any number of threads. A batch is small against what is there already: its rows would
//! seldom have been each other's neighbours.
//!
//! A layer above the lowest is the graph as it was when it held as many rows.

use rayon::prelude::*;

use super::{Above, Asked, HEADER, Layer, NONE, VERSION, Walk, entry_of, packed, score_of};
use crate::int8::{Coded, Codes, scores_of, sum_of_codes};
use crate::sampling::{sample, stream};

/// Neighbours that a row has at most.
pub(crate) const NEIGHBOURS: usize = 32;
/// A row may have so many before the superfluous are taken away: not for each one that comes.
const ROOM: usize = 48;
/// Candidates that are looked at for a new row's neighbours.
const CANDIDATES: usize = 100;
/// A layer has one row in so many of those of the layer below.
const FEWER: usize = 16;
/// The topmost layer is looked at as a whole: it has no more rows than this.
const MOST_SCANNED: usize = 64;
/// A batch is no more than one in so many of the rows that are there.
const SHARE: usize = 16;
const MOST_AT_ONCE: usize = 512;
/// Of a row's neighbours no more than so many are copies of it: the others lead on.
const MOST_COPIES: usize = 8;

/// Odd, so that different numbers stay different; Knuth's, so that they scatter.
const SCATTER: u32 = 2_654_435_769;

/// A graph that grows.
struct Growing<'a> {
    codes: Codes<'a>,
    /// The sum of each row's codes.
    sums: Vec<i32>,
    /// Rows as they are inserted.
    order: Vec<u32>,
    /// `ROOM` neighbours a row.
    neighbours: Vec<u32>,
}

/// The file of a graph over the codes of normalised rows, as numbers.
pub(crate) fn build(codes: Codes<'_>) -> Vec<u32> {
    let rows = codes.scales.len();
    let sums = codes.codes.par_chunks_exact(codes.stride).map(sum_of_codes).collect();
    let order = sample(&mut stream(1, 0), rows, rows).into_iter().map(|row| row as u32).collect();
    let mut growing = Growing { codes, sums, order, neighbours: vec![NONE; rows * ROOM] };
    let counts = layer_counts(rows);
    let topmost = counts.last().copied().unwrap_or(0);
    let (mut layers, mut done) = (Vec::new(), 0);
    while done < rows {
        let border = counts.iter().copied().filter(|count| *count > done).min().unwrap_or(rows);
        let last = (done + (done / SHARE).clamp(1, MOST_AT_ONCE)).min(border);
        growing.insert(&layers, topmost.min(done), done..last);
        done = last;
        if counts.contains(&done) && done != topmost {
            layers.push(growing.places(done));
        }
    }
    let mut numbers = vec![0; HEADER];
    let header = [VERSION as u32, NEIGHBOURS as u32, counts.len() as u32].into_iter();
    numbers
        .iter_mut()
        .zip(header.chain(counts.iter().map(|count| *count as u32)))
        .for_each(|(to, from)| *to = from);
    numbers.extend(growing.rows());
    numbers.extend(growing.order.iter().take(counts.first().copied().unwrap_or(0)));
    layers.into_iter().rev().for_each(|layer| numbers.extend(layer));
    numbers
}

/// How many rows the layers above the lowest have, the lower ones first.
fn layer_counts(rows: usize) -> Vec<usize> {
    let smaller = |count: &usize| (*count > MOST_SCANNED).then(|| count.div_ceil(FEWER));
    std::iter::successors(Some(rows.div_ceil(FEWER)), smaller).collect()
}

/// A candidate for a row's neighbour, as [`packed`] scores order them.
type Candidate = u64;

impl<'a> Growing<'a> {
    fn coded(&self, row: u32) -> Coded<'a> {
        let sum = self.sums.get(row as usize).copied().unwrap_or(0);
        self.codes.coded(row, sum)
    }

    fn neighbours_of(&self, row: u32) -> impl Iterator<Item = u32> {
        let lowest = Layer { neighbours: &self.neighbours, stride: ROOM, rows: None };
        lowest.of(row).iter().copied().take_while(|row| *row != NONE)
    }

    /// Inserts the rows of one batch.
    fn insert(&mut self, layers: &[Vec<u32>], scanned: usize, batch: std::ops::Range<usize>) {
        let above = Above {
            rows: &self.order,
            scanned,
            degree: NEIGHBOURS,
            layers: layers.iter().map(Vec::as_slice).collect(),
        };
        let rows = self.order.get(batch).unwrap_or_default();
        let walk = || (Walk::new(self.codes.scales.len()), Vec::new());
        let found: Vec<Vec<u32>> = (rows.par_iter())
            .map_init(walk, |(walk, scores), row| self.near(&above, *row, walk, scores))
            .collect();
        let mut links: Vec<(u32, u32)> = (rows.iter().zip(&found))
            .flat_map(|(row, near)| near.iter().map(move |neighbour| (*neighbour, *row)))
            .collect();
        links.par_sort_unstable();
        let groups: Vec<&[(u32, u32)]> = links.chunk_by(|left, right| left.0 == right.0).collect();
        let changed: Vec<(u32, Vec<u32>)> = groups
            .into_par_iter()
            .filter_map(|group| {
                let row = group.first()?.0;
                let all = self.neighbours_of(row).chain(group.iter().map(|(_, other)| *other)).collect();
                Some((row, self.thinned(row, all, ROOM)))
            })
            .collect();
        let new: Vec<(u32, Vec<u32>)> = rows.iter().copied().zip(found).collect();
        for (row, near) in new.into_iter().chain(changed) {
            let start = row as usize * ROOM;
            let places = self.neighbours.get_mut(start..start + ROOM).unwrap_or_default();
            let near = near.into_iter().chain(std::iter::repeat(NONE));
            places.iter_mut().zip(near).for_each(|(place, neighbour)| *place = neighbour);
        }
    }

    /// The neighbours of a new row.
    fn near(&self, above: &Above<'_>, row: u32, walk: &mut Walk, scores: &mut Vec<f32>) -> Vec<u32> {
        let asked = Asked { query: self.coded(row), items: self.codes };
        walk.descend(above, asked);
        walk.layer(
            Layer { neighbours: &self.neighbours, stride: ROOM, rows: None },
            asked,
            CANDIDATES,
            |_| true,
        );
        self.selected(row, &walk.best, scores)
    }

    /// Those of some candidates, best first, that are nearer to the row than to any better one: neighbours in all directions instead
    /// of many in one (the heuristic of the paper, algorithm 4). Beside them some copies of the row, which are compared with nobody:
    /// everything is as near to a copy as to the row, and nothing else would be kept.
    fn selected(&self, base: u32, candidates: &[Candidate], scores: &mut Vec<f32>) -> Vec<u32> {
        let (copies, others) = self.apart(base, candidates);
        let room = NEIGHBOURS - copies.len();
        let mut kept: Vec<u32> = Vec::with_capacity(NEIGHBOURS);
        for candidate in others {
            let (row, score) = (entry_of(candidate), score_of(candidate));
            scores_of(self.coded(row), self.codes, &kept, scores);
            if scores.iter().all(|other| *other < score) {
                kept.push(row);
                if kept.len() == room {
                    break;
                }
            }
        }
        kept.extend(copies);
        kept
    }

    /// Some of the copies of a row among candidates, and the candidates that are none.
    fn apart(&self, base: u32, candidates: &[Candidate]) -> (Vec<u32>, Vec<Candidate>) {
        let (copies, others): (Vec<Candidate>, Vec<Candidate>) =
            candidates.iter().partition(|candidate| self.codes.are_same(base, entry_of(**candidate)));
        let mut copies: Vec<u32> = copies.into_iter().map(entry_of).collect();
        // Each row keeps others of them: were it the same for all, nothing would lead to the rest.
        copies.sort_unstable_by_key(|copy| (base ^ copy).wrapping_mul(SCATTER));
        copies.truncate(MOST_COPIES);
        (copies, others)
    }

    /// At most `room` of a row's neighbours.
    fn thinned(&self, row: u32, neighbours: Vec<u32>, room: usize) -> Vec<u32> {
        if neighbours.len() <= room {
            return neighbours;
        }
        let mut scores = Vec::new();
        scores_of(self.coded(row), self.codes, &neighbours, &mut scores);
        let mut candidates: Vec<Candidate> =
            scores.iter().zip(&neighbours).map(|(score, neighbour)| packed(*score, *neighbour)).collect();
        candidates.sort_unstable_by_key(|candidate| std::cmp::Reverse(*candidate));
        self.selected(row, &candidates, &mut scores)
    }

    /// `NEIGHBOURS` of each row.
    fn rows(&self) -> Vec<u32> {
        let rows: Vec<u32> = (0..self.codes.scales.len() as u32).collect();
        self.lists(&rows, |neighbour| neighbour)
    }

    /// `NEIGHBOURS` of each of the first places, as places.
    fn places(&self, count: usize) -> Vec<u32> {
        let mut place_of = vec![NONE; self.codes.scales.len()];
        let places = self.order.iter().take(count);
        for (place, row) in (0..).zip(places.clone()) {
            if let Some(slot) = place_of.get_mut(*row as usize) {
                *slot = place;
            }
        }
        let rows: Vec<u32> = places.copied().collect();
        self.lists(&rows, |neighbour| place_of.get(neighbour as usize).copied().unwrap_or(NONE))
    }

    fn lists(&self, rows: &[u32], number: impl Fn(u32) -> u32 + Sync) -> Vec<u32> {
        let mut lists = vec![NONE; rows.len() * NEIGHBOURS];
        lists.par_chunks_exact_mut(NEIGHBOURS).zip(rows).for_each(|(list, row)| {
            let near = self.thinned(*row, self.neighbours_of(*row).collect(), NEIGHBOURS);
            list.iter_mut().zip(near).for_each(|(place, neighbour)| *place = number(neighbour));
        });
        lists
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use rand_chacha::rand_core::Rng;

    use super::*;
    use crate::graph::Graph;
    use crate::storage::{code_stride, quantised};

    const DIMENSION: usize = 20;

    fn coded(rows: usize) -> (Vec<u8>, Vec<f32>) {
        coded_from(rows, 3)
    }

    fn coded_from(rows: usize, seed: u64) -> (Vec<u8>, Vec<f32>) {
        let mut random = stream(seed, 0);
        let values: Vec<f32> =
            (0..rows * DIMENSION).map(|_| random.next_u32() as f32 / u32::MAX as f32 - 0.5).collect();
        quantised(&values, DIMENSION)
    }

    fn built(rows: usize, threads: usize) -> Vec<u32> {
        let (codes, scales) = coded(rows);
        let codes = Codes { codes: &codes, scales: &scales, stride: code_stride(DIMENSION) };
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| build(codes))
    }

    #[test]
    fn the_graph_does_not_depend_on_threads() {
        let one = built(3_000, 1);
        assert_eq!(one, built(3_000, 2));
        assert_eq!(one, built(3_000, 5));
    }

    #[test]
    fn rows_have_other_rows_as_neighbours_in_every_layer() {
        for rows in [1, 2, 3, 17, 64, 65, 300, 1_025, 2_100] {
            let numbers = built(rows, 2);
            let graph = Graph::of(&numbers, rows).unwrap();
            assert_eq!(graph.above.layers.len() + 1, layer_counts(rows).len());
            let upper = graph.above.layers.iter().map(|layer| (*layer, layer.len() / NEIGHBOURS));
            for (neighbours, entries) in upper.chain([(graph.lowest.neighbours, rows)]) {
                for (entry, list) in neighbours.chunks(NEIGHBOURS).enumerate() {
                    let near: Vec<u32> = list.iter().copied().take_while(|near| *near != NONE).collect();
                    assert!(near.iter().all(|near| *near as usize != entry && (*near as usize) < entries));
                    assert_eq!(near.iter().collect::<HashSet<_>>().len(), near.len());
                    assert!(entries == 1 || !near.is_empty(), "{rows} {entry}");
                }
            }
        }
    }

    /// Rows of which those with the same number in `of` are copies.
    fn copied(of: &[usize]) -> (Vec<u8>, Vec<f32>) {
        let (codes, scales) = coded(of.iter().max().unwrap() + 1);
        let stride = code_stride(DIMENSION);
        let rows = of.iter().flat_map(|row| codes[row * stride..][..stride].iter().copied());
        (rows.collect(), of.iter().map(|row| scales[*row]).collect())
    }

    /// Share of the ten best by codes, or of rows as good, that walks with 200 candidates find.
    fn recall(graph: &Graph<'_>, codes: Codes<'_>) -> f64 {
        let rows: Vec<u32> = (0..codes.scales.len() as u32).collect();
        let (queries, scales) = coded_from(200, 9);
        let (mut walk, mut hits) = (Walk::new(rows.len()), 0);
        for (query, scale) in queries.chunks(codes.stride).zip(scales) {
            let query = Coded { codes: query, scale, sum: sum_of_codes(query) };
            let mut scores = Vec::new();
            scores_of(query, codes, &rows, &mut scores);
            let found = walk.run(graph, Asked { query, items: codes }, 200, |_| true).take(10);
            let found: Vec<f32> = found.map(|row| scores[row as usize]).collect();
            scores.sort_unstable_by(|a, b| b.total_cmp(a));
            hits += found.iter().filter(|score| **score >= scores[9]).count();
        }
        hits as f64 / 2_000.0
    }

    #[test]
    fn copies_of_rows_do_not_cut_them_off_from_the_others() {
        let twice: Vec<usize> = (0..3_000).map(|row| row % 1_500).collect();
        let ten: Vec<usize> = (0..3_000).map(|row| row % 300).collect();
        let many: Vec<usize> = (0..2_100_usize).map(|row| row.saturating_sub(599)).collect();
        for (name, of, least) in [("twice", twice, 4), ("ten times", ten, 4), ("600 of one", many, 3)] {
            let (codes, scales) = copied(&of);
            let codes = Codes { codes: &codes, scales: &scales, stride: code_stride(DIMENSION) };
            let numbers = build(codes);
            let graph = Graph::of(&numbers, of.len()).unwrap();
            let lists = graph.lowest.neighbours.chunks(NEIGHBOURS);
            let lengths = lists.map(|list| list.iter().filter(|near| **near != NONE).count());
            let (shortest, recall) = (lengths.min().unwrap(), recall(&graph, codes));
            assert!(shortest >= least && recall >= 0.99, "{name}: {shortest} {recall}");
        }
    }

    #[test]
    fn layers_get_smaller_down_to_one_that_is_looked_at_as_a_whole() {
        assert_eq!(layer_counts(100_000), [6_250, 391, 25]);
        assert_eq!(layer_counts(1), [1]);
        assert_eq!(layer_counts(u32::MAX as usize - 1).len(), 7);
    }
}
