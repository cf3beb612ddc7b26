//! Building a segment's graph, and how well it searches: recall against the exact search, measured when it is built.

use std::collections::BTreeMap;
use std::path::Path;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use super::GraphReport;
use super::manifest::{FileEntry, SegmentEntry, entry_of};
use super::segment::{LONGEST, write_graph};
use crate::graph::{Graph, MOST_ROWS, NEIGHBOURS, build};
use crate::sampling::below;
use crate::search::{Codes, Gallery, Neighbour, Run, Vectors, exact_dot};
use crate::storage::{check_codable, code_stride, halved, quantised};
use crate::{Error, Matrix, Result, Storage};

/// Queries that recall is measured with.
const QUERIES: usize = 200;
/// The effort is raised by a half until so much is found of what the exact search finds.
const WANTED_RECALL: f64 = 0.95;
const LEAST_EFFORT: usize = 32;
const MOST_EFFORT: usize = 1024;
const K: usize = 10;

/// Builds a graph over rows that were written, writes it beside them and measures it.
pub(super) fn add_graph(
    folder: &Path,
    storage: Storage,
    entry: &mut SegmentEntry,
    files: &mut BTreeMap<String, FileEntry>,
    embeddings: &Matrix,
) -> Result<()> {
    check_rows(embeddings.rows())?;
    check_codable(embeddings.columns())?;
    let (codes, scales) = quantised(embeddings.values(), embeddings.columns());
    let codes = Codes { codes: &codes, scales: &scales, stride: code_stride(embeddings.columns()) };
    let numbers = build(codes);
    let place = folder.join(&entry.name);
    for file in write_graph(&place, storage, &numbers, codes)? {
        files.insert(format!("{}/{file}", entry.name), entry_of(&place.join(file))?);
    }
    if let Some(graph) = Graph::of(&numbers, embeddings.rows()) {
        entry.graph = Some(report(&graph, codes, storage, embeddings)?);
    }
    Ok(())
}

/// Refuses more rows than a graph has numbers for.
fn check_rows(rows: usize) -> Result<()> {
    if rows <= MOST_ROWS {
        return Ok(());
    }
    Err(Error::Setting {
        name: "rows of a segment with a graph",
        expected: format!("at most {MOST_ROWS}"),
        got: rows.to_string(),
    })
}

/// Raises the effort until it is enough.
fn report(graph: &Graph<'_>, codes: Codes<'_>, storage: Storage, embeddings: &Matrix) -> Result<GraphReport> {
    let queries = queries(embeddings)?;
    let gallery = |vectors| Gallery {
        runs: vec![Run { first: 0, rows: embeddings.rows(), vectors }],
        dimension: embeddings.columns(),
        longest: LONGEST,
        penalties: None,
        selected: None,
    };
    let exact = gallery(Vectors::F32(embeddings.values())).search(&queries, K)?;
    let halves = if storage == Storage::F32 { Vec::new() } else { halved(embeddings.values()) };
    let stored = gallery(match storage {
        Storage::F32 => Vectors::F32(embeddings.values()),
        Storage::F16 => Vectors::F16(&halves),
        Storage::Int8 => Vectors::Int8(codes, &halves),
    });
    let mut effort = LEAST_EFFORT;
    loop {
        let found = stored.walk((graph, codes), effort, &queries, K)?;
        let recall_at_10 = recall(&queries, embeddings, &exact, &found);
        if recall_at_10 >= WANTED_RECALL || effort >= MOST_EFFORT {
            return Ok(GraphReport { neighbours: NEIGHBOURS, effort, recall_at_10, queries: queries.rows() });
        }
        effort += effort / 2;
    }
}

/// Items moved towards another item each: near to what is indexed, and nothing that is.
fn queries(embeddings: &Matrix) -> Result<Matrix> {
    let mut random = ChaCha8Rng::seed_from_u64(1);
    let mut values = Vec::with_capacity(QUERIES * embeddings.columns());
    for _ in 0..QUERIES {
        let mut row = || embeddings.row(below(&mut random, embeddings.rows())).unwrap_or_default();
        let (item, other) = (row(), row());
        values.extend(item.iter().zip(other).map(|(item, other)| 2.0 * item + other));
    }
    Matrix::new(values, QUERIES, embeddings.columns())
}

/// Share of the exact results that are among the others, or rows that score as well: of equals any is right.
fn recall(queries: &Matrix, items: &Matrix, exact: &[Vec<Neighbour>], found: &[Vec<Neighbour>]) -> f64 {
    // Found rows come with the scores of rounded vectors: they are scored again as the exact search scores.
    let hits = |((query, exact), found): ((&[f32], &Vec<Neighbour>), &Vec<Neighbour>)| {
        let score =
            |found: &Neighbour| exact_dot(query, items.row(found.position).unwrap_or_default()) as f32;
        let last = exact.last().map_or(f32::INFINITY, |last| last.score);
        found.iter().filter(|found| score(found) >= last).count()
    };
    let all: usize = exact.iter().map(Vec::len).sum();
    let pairs = queries.iter_rows().zip(exact).zip(found);
    pairs.map(hits).sum::<usize>() as f64 / all.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_equal_rows_any_counts_as_found() {
        let items = Matrix::from_rows(&[[1.0, 0.0], [0.8, 0.6], [1.0, 0.0], [1.0, 0.0]]).unwrap();
        let queries = Matrix::from_rows(&[[0.9, 0.1]]).unwrap();
        let found = |positions: &[usize]| {
            // What the scores of rounded vectors are does not matter.
            vec![positions.iter().map(|position| Neighbour { position: *position, score: 0.0 }).collect()]
        };
        let exact = crate::nearest(&queries, &items, 2).unwrap();
        let share = |positions: &[usize]| recall(&queries, &items, &exact, &found(positions));
        assert_eq!(
            [share(&[0, 2]), share(&[3, 2]), share(&[3, 1]), share(&[1]), share(&[])],
            [1.0, 1.0, 0.5, 0.0, 0.0]
        );
    }

    #[test]
    fn more_rows_than_a_graph_has_numbers_for_are_refused() {
        assert!(check_rows(u32::MAX as usize - 1).is_ok());
        assert!(matches!(check_rows(u32::MAX as usize), Err(Error::Setting { .. })));
    }
}
