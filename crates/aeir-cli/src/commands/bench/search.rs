//! `aeir bench search`: exact and approximate search of many queries, and what it takes to open an index.
//!
//! With a card, exact search is timed on it too, and compared with the processor's.
//!
//! `benches/peers/search_speed.py` times FAISS and usearch on the same vectors, in turn with this.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;
use std::time::Instant;

use aeir_retrieve::{Hit, Index, IndexBuilder, IndexContent, Matrix, SearchOptions, Storage};
use anyhow::Context;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use rayon::prelude::*;
use serde::Serialize;

use crate::commands::embed::arrays::npy_header;
use crate::commands::{print, print_json};
use crate::flags::PrecisionFlag;
use crate::flags::search_bench::BenchSearchFlags;
use crate::host_memory::check_numbers;
use crate::search_card::{MOST_RESULTS, OnCard, Room, card_of, takes};
use crate::temporary_folder::TemporaryFolder;
use crate::terminal::Terminal;

/// Items of one cluster, about: real embeddings are not spread evenly, and a graph lives on that.
const CLUSTER: usize = 100;
/// Directions in which the items of a cluster differ.
const DIRECTIONS: usize = 24;
/// How far they lie from its centre, which has length 1.
const SPREAD: f32 = 0.7;
/// Efforts that the graph is searched with, in turn.
const EFFORTS: [usize; 11] = [10, 12, 14, 16, 20, 24, 32, 48, 64, 128, 256];

/// What was measured; seconds are medians, of all queries together.
#[derive(Serialize)]
struct Report {
    threads: usize,
    items: usize,
    dimension: usize,
    queries: usize,
    k: usize,
    exact: Vec<Exact>,
    /// Missing where no card searches.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    on_card: Vec<CardRow>,
    approximate: Vec<Graph>,
}

/// Exact search on a card.
#[derive(Serialize)]
struct CardRow {
    storage: &'static str,
    /// What the products of the first pass are made of.
    first_pass: &'static str,
    /// `cuda:0`, say.
    device: String,
    seconds: f64,
    queries_per_second: f64,
    /// Against the processor's exact search of the same storage.
    recall: f64,
    /// Whether items, order and scores are the processor's to the bit.
    same: bool,
    /// Queries that the processor had to search for, of one run.
    unsettled: u64,
    /// One query alone.
    single_query_seconds: f64,
    /// Copying the vectors of an open index to the card.
    load_seconds: f64,
    /// On the card: vectors, and memory for scores.
    bytes: u64,
}

#[derive(Serialize)]
struct Exact {
    storage: &'static str,
    seconds: f64,
    queries_per_second: f64,
    /// Against the exact search of `f32`; missing where that was not asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    recall: Option<f64>,
    /// One query alone.
    single_query_seconds: f64,
    /// Opening and verifying the index.
    open_seconds: f64,
    /// Writing it, vectors in memory.
    build_seconds: f64,
    bytes: u64,
}

#[derive(Serialize)]
struct Graph {
    storage: &'static str,
    /// Writing the index and building its graph.
    build_seconds: f64,
    /// What the index states of itself.
    stated_recall_at_10: f64,
    stated_effort: usize,
    bytes: u64,
    runs: Vec<Run>,
}

#[derive(Serialize)]
struct Run {
    effort: usize,
    recall: f64,
    queries_per_second: f64,
}

/// Times what the flags name and prints it.
pub(crate) fn run(flags: &BenchSearchFlags, terminal: &Terminal) -> anyhow::Result<()> {
    let threads = flags.threads.unwrap_or_else(rayon::current_num_threads);
    let pool =
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().context("could not start threads")?;
    let card = card_of(flags.device.device, terminal)?;
    let report = pool.install(|| measure(flags, card, threads, terminal))?;
    if flags.json { print_json(&report) } else { print(&table(&report)) }
}

/// The card, where it gives as many results as are wanted.
fn card_for(flags: &BenchSearchFlags, card: Option<usize>, terminal: &Terminal) -> Option<usize> {
    let too_many = card.is_some() && flags.k.min(flags.items) > MOST_RESULTS;
    if too_many {
        terminal.warn(&format!(
            "a card gives at most {MOST_RESULTS} results a query: only the processor is timed"
        ));
    }
    card.filter(|_| !too_many)
}

fn measure(
    flags: &BenchSearchFlags,
    card: Option<usize>,
    threads: usize,
    terminal: &Terminal,
) -> anyhow::Result<Report> {
    let card = card_for(flags, card, terminal);
    check_numbers(
        "so many vectors, and an index of them,",
        &[2, flags.items, flags.dimension],
        "--items or --dimension",
    )?;
    check_numbers("so many queries", &[flags.queries, flags.dimension], "--queries")?;
    terminal.note(&format!("making {} vectors", flags.items.saturating_add(flags.queries)));
    let centres = centres(flags.items.div_ceil(CLUSTER), flags.dimension);
    let items = vectors(&centres, flags.items, flags.dimension, 1)?;
    let queries = vectors(&centres, flags.queries, flags.dimension, 2)?;
    if let Some(folder) = &flags.vectors {
        std::fs::create_dir_all(folder).with_context(|| format!("could not make `{}`", folder.display()))?;
        for (name, matrix) in [("items.npy", &items), ("queries.npy", &queries)] {
            let file = folder.join(name);
            write_array(matrix, &file).with_context(|| format!("could not write `{}`", file.display()))?;
        }
    }
    let place = TemporaryFolder::new("bench")?;
    let names: Vec<String> = (0..flags.items).map(|item| format!("{item}.jpg")).collect();
    let content = IndexContent::new(&items, &names, "bench");
    let exact_options = SearchOptions { exact: true, ..SearchOptions::default() };
    let mut report = Report {
        threads,
        items: flags.items,
        dimension: flags.dimension,
        queries: flags.queries,
        k: flags.k,
        exact: Vec::new(),
        on_card: Vec::new(),
        approximate: Vec::new(),
    };
    let mut truth: Option<Vec<Vec<Hit>>> = None;
    for storage in flags.storage.iter().map(|flag| flag.storage()) {
        terminal.note(&format!("exact search of {}", storage.name()));
        let folder = place.0.join(storage.name());
        let built = built(&folder, storage, false, content)?;
        let (open_seconds, index) = opened(&folder, flags.repeats)?;
        let find = || Ok(index.find(&queries, flags.k, &exact_options)?);
        let (seconds, found) = median(flags.repeats, find)?;
        let one = Matrix::new(queries.row(0).unwrap_or_default().to_vec(), 1, flags.dimension)?;
        let (single_query_seconds, _) =
            median(flags.repeats.max(5), || Ok(index.find(&one, flags.k, &exact_options)?))?;
        report.exact.push(Exact {
            storage: storage.name(),
            seconds,
            queries_per_second: flags.queries as f64 / seconds,
            recall: truth.as_ref().map(|truth| recall(truth, &found)),
            single_query_seconds,
            open_seconds,
            build_seconds: built,
            bytes: index.bytes(),
        });
        if let Some(card) = card.filter(|_| takes(storage)) {
            terminal.note(&format!("exact search of {} on cuda:{card}", storage.name()));
            // 16-bit vectors are looked at in 16 bits first in any case.
            let passes = if storage == Storage::F32 { &[false, true][..] } else { &[true] };
            for rough_first in passes {
                report.on_card.push(on_card(&index, (card, *rough_first), (&queries, &one), &found, flags)?);
            }
        }
        if storage == Storage::F32 {
            truth = Some(found);
        }
    }
    let truth = match truth {
        Some(truth) => truth,
        None => aeir_retrieve::nearest(&queries, &items, flags.k)?.into_iter().map(hits).collect(),
    };
    if flags.approximate.approximate.of(flags.items) {
        for storage in flags.storage.iter().map(|flag| flag.storage()) {
            terminal.note(&format!("graph over {}", storage.name()));
            let folder = place.0.join(format!("{}-graph", storage.name()));
            report.approximate.push(graph(&folder, storage, content, &queries, &truth, flags)?);
        }
    }
    Ok(report)
}

/// Exact search of `(many, one)` queries on a card; `expected` is what the processor has found.
fn on_card(
    index: &Index,
    (card, rough_first): (usize, bool),
    (queries, one): (&Matrix, &Matrix),
    expected: &[Vec<Hit>],
    flags: &BenchSearchFlags,
) -> anyhow::Result<CardRow> {
    let score_bytes = usize::try_from(flags.score_memory.0).unwrap_or(usize::MAX);
    let options = SearchOptions { exact: true, ..SearchOptions::default() };
    // What opens a card for the first time is not the time to copy vectors. It is closed before the next: both may not fit.
    let room = Room { card, score_bytes, rough_first };
    OnCard::load(index, &room)?;
    let start = Instant::now();
    let there = OnCard::load(index, &room)?;
    let load_seconds = start.elapsed().as_secs_f64();
    let mut unsettled = 0;
    let (seconds, found) = median(flags.repeats, || {
        let before = there.unsettled();
        let found = there.find(index, queries, flags.k, &options)?;
        unsettled = there.unsettled() - before;
        Ok(found)
    })?;
    let (single_query_seconds, _) =
        median(flags.repeats.max(5), || there.find(index, one, flags.k, &options))?;
    Ok(CardRow {
        storage: index.storage().name(),
        first_pass: if rough_first { "f16" } else { "f32" },
        device: format!("cuda:{card}"),
        seconds,
        queries_per_second: queries.rows() as f64 / seconds,
        recall: recall(expected, &found),
        same: found == expected,
        unsettled,
        single_query_seconds,
        load_seconds,
        bytes: there.bytes(),
    })
}

fn hits(found: Vec<aeir_retrieve::Neighbour>) -> Vec<Hit> {
    let hit = |(rank, found): (usize, aeir_retrieve::Neighbour)| Hit {
        rank,
        score: found.score,
        position: found.position,
        item: String::new(),
    };
    (1..).zip(found).map(hit).collect()
}

fn graph(
    folder: &Path,
    storage: Storage,
    content: IndexContent<'_>,
    queries: &Matrix,
    truth: &[Vec<Hit>],
    flags: &BenchSearchFlags,
) -> anyhow::Result<Graph> {
    let build_seconds = built(folder, storage, true, content)?;
    let index = Index::open(folder)?;
    let stated = index.graphs().next().map(|(_, report)| report).context("the index has no graph")?;
    let mut runs = Vec::new();
    for effort in EFFORTS {
        let options = SearchOptions { effort: Some(effort), ..SearchOptions::default() };
        let (seconds, found) = median(flags.repeats, || Ok(index.find(queries, flags.k, &options)?))?;
        let recall = recall(truth, &found);
        runs.push(Run { effort, recall, queries_per_second: queries.rows() as f64 / seconds });
        if recall > 0.995 {
            break;
        }
    }
    Ok(Graph {
        storage: storage.name(),
        build_seconds,
        stated_recall_at_10: stated.recall_at_10,
        stated_effort: stated.effort,
        bytes: index.bytes(),
        runs,
    })
}

/// Writes an index; says how long that took.
fn built(
    folder: &Path,
    storage: Storage,
    approximate: bool,
    content: IndexContent<'_>,
) -> anyhow::Result<f64> {
    let start = Instant::now();
    IndexBuilder::begin(folder)?.with_storage(storage).with_graph(approximate).commit(content)?;
    Ok(start.elapsed().as_secs_f64())
}

fn opened(folder: &Path, repeats: usize) -> anyhow::Result<(f64, Index)> {
    median(repeats, || Ok(Index::open(folder)?))
}

/// The median time of some runs after one that is not counted, and what the last one gave.
fn median<T>(repeats: usize, mut work: impl FnMut() -> anyhow::Result<T>) -> anyhow::Result<(f64, T)> {
    let mut last = work()?;
    let mut times = Vec::with_capacity(repeats);
    for _ in 0..repeats {
        let start = Instant::now();
        last = work()?;
        times.push(start.elapsed().as_secs_f64());
    }
    times.sort_unstable_by(f64::total_cmp);
    Ok((times.get(times.len() / 2).copied().unwrap_or(f64::NAN), last))
}

/// Share of the exact results that were found, by position: the made-up vectors have no copies, whose order would be chance.
fn recall(truth: &[Vec<Hit>], found: &[Vec<Hit>]) -> f64 {
    let among = |(truth, found): (&Vec<Hit>, &Vec<Hit>)| {
        truth.iter().filter(|hit| found.iter().any(|other| other.position == hit.position)).count()
    };
    let all: usize = truth.iter().map(Vec::len).sum();
    truth.iter().zip(found).map(among).sum::<usize>() as f64 / all.max(1) as f64
}

/// About normal: the sum of four uniform numbers.
fn noise(random: &mut ChaCha8Rng) -> f32 {
    let sum: f32 = (0..4).map(|_| random.next_u32() as f32 / u32::MAX as f32 - 0.5).sum();
    sum * 3.0_f32.sqrt()
}

/// A centre of length about 1 for each cluster, and the directions in which its items differ.
fn centres(count: usize, dimension: usize) -> Vec<Vec<f32>> {
    let scale = 1.0 / (dimension as f32).sqrt();
    (0..count.max(1))
        .into_par_iter()
        .map(|centre| {
            let mut random = ChaCha8Rng::seed_from_u64(3);
            random.set_stream(centre as u64);
            (0..dimension * (1 + DIRECTIONS)).map(|_| scale * noise(&mut random)).collect()
        })
        .collect()
}

/// Vectors around the centres, of length 1; each has a generator of its own.
fn vectors(centres: &[Vec<f32>], count: usize, dimension: usize, seed: u64) -> anyhow::Result<Matrix> {
    let mut values = vec![0.0_f32; count * dimension];
    values.par_chunks_mut(dimension).enumerate().for_each(|(row, values)| {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        random.set_stream(row as u64);
        let Some(cluster) = centres.get(random.next_u64() as usize % centres.len()) else { return };
        let (centre, directions) = cluster.split_at(dimension);
        values.copy_from_slice(centre);
        let scale = SPREAD / (DIRECTIONS as f32).sqrt();
        for direction in directions.chunks(dimension) {
            let weight = scale * noise(&mut random);
            values.iter_mut().zip(direction).for_each(|(value, direction)| *value += weight * direction);
        }
    });
    Ok(Matrix::new(values, count, dimension)?.l2_normalised()?)
}

fn write_array(matrix: &Matrix, file: &Path) -> std::io::Result<()> {
    let mut writer = BufWriter::with_capacity(1 << 20, File::create(file)?);
    writer.write_all(&npy_header(matrix.rows(), matrix.columns(), PrecisionFlag::F32))?;
    matrix.values().iter().try_for_each(|value| writer.write_all(&value.to_le_bytes()))?;
    writer.flush()
}

fn table(report: &Report) -> String {
    let Report { threads, items, dimension, queries, k, exact, on_card, approximate } = report;
    let mut text = format!(
        "{queries} queries, the {k} best of {items} items of {dimension} numbers, {threads} threads\n\n"
    );
    // Writing to a String can't fail.
    let _ = writeln!(text, "exact        queries/s   one query    recall      open     build        bytes");
    for Exact {
        storage,
        queries_per_second,
        recall,
        single_query_seconds,
        open_seconds,
        build_seconds,
        bytes,
        ..
    } in exact
    {
        let recall = recall.map_or("1".to_owned(), |recall| format!("{recall:.4}"));
        let _ = writeln!(
            text,
            "  {storage:<8} {queries_per_second:>11.0} {:>8.2} ms {recall:>9} {:>6.0} ms {build_seconds:>7.2} s {bytes:>12}",
            1e3 * single_query_seconds,
            1e3 * open_seconds
        );
    }
    text.push_str(&card_table(on_card));
    for Graph { storage, build_seconds, stated_recall_at_10, stated_effort, bytes, runs } in approximate {
        let _ = writeln!(
            text,
            "\ngraph over {storage}, built in {build_seconds:.1} s, {bytes} bytes; it states recall {stated_recall_at_10:.3} at effort {stated_effort}"
        );
        let _ = writeln!(text, "  effort   recall   queries/s");
        for Run { effort, recall, queries_per_second } in runs {
            let _ = writeln!(text, "  {effort:>6} {recall:>8.4} {queries_per_second:>11.0}");
        }
    }
    text
}

fn card_table(rows: &[CardRow]) -> String {
    let mut text = String::new();
    if !rows.is_empty() {
        text.push_str(
            "\non the card first pass   queries/s   one query    recall   to the bit   unsettled      load        bytes\n",
        );
    }
    for CardRow {
        storage,
        first_pass,
        queries_per_second,
        recall,
        same,
        unsettled,
        single_query_seconds,
        load_seconds,
        bytes,
        ..
    } in rows
    {
        // Writing to a String can't fail.
        let _ = writeln!(
            text,
            "  {storage:<8} {first_pass:>11} {queries_per_second:>11.0} {:>8.2} ms {recall:>9.4} {:>12} {unsettled:>11} {:>6.0} ms {bytes:>12}",
            1e3 * single_query_seconds,
            if *same { "same" } else { "OTHER" },
            1e3 * load_seconds
        );
    }
    text
}
