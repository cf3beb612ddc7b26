//! Building a segment's graph, and how well it searches: recall against the exact search, measured when it is built.

use std::collections::BTreeMap;
use std::path::Path;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use super::GraphReport;
use super::manifest::{FileEntry, SegmentEntry, entry_of};
use super::segment::{LONGEST, write_graph};
use crate::graph::{Graph, NEIGHBOURS, build};
use crate::sampling::below;
use crate::search::{Codes, Gallery, Neighbour, Run, Vectors};
use crate::storage::{code_stride, halved, quantised};
use crate::{Matrix, Result, Storage};

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
        let recall_at_10 = recall(&exact, &stored.walk((graph, codes), effort, &queries, K)?);
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

/// Share of the exact results that are among the others.
fn recall(exact: &[Vec<Neighbour>], found: &[Vec<Neighbour>]) -> f64 {
    let hits = |(exact, found): (&Vec<Neighbour>, &Vec<Neighbour>)| {
        exact.iter().filter(|wanted| found.iter().any(|other| other.position == wanted.position)).count()
    };
    let all: usize = exact.iter().map(Vec::len).sum();
    exact.iter().zip(found).map(hits).sum::<usize>() as f64 / all.max(1) as f64
}
