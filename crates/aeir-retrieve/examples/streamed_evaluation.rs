//! Ranks of a whole split without its score matrix: time, and the memory that the process had at most.
//!
//! `cargo run --release -p aeir-retrieve --example streamed_evaluation -- [IMAGES [DIMENSION]]`; five sentences an image.

#![allow(clippy::print_stdout, reason = "an example shows its result")]

use std::time::Instant;

use aeir_retrieve::{Matrix, Relevance, evaluate_embeddings};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

fn vectors(items: usize, dimension: usize, seed: u64) -> aeir_retrieve::Result<Matrix> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let values = (0..items * dimension).map(|_| random.next_u32() as f32 / u32::MAX as f32 - 0.5).collect();
    Matrix::new(values, items, dimension)?.l2_normalised()
}

/// Where the system says it.
fn most_memory() -> Option<String> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    status.lines().find_map(|line| Some(line.strip_prefix("VmHWM:")?.trim().to_string()))
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    const SENTENCES: usize = 5;
    let sizes: Vec<usize> = std::env::args().skip(1).map(|size| size.parse()).collect::<Result<_, _>>()?;
    let size = |place: usize, default: usize| sizes.get(place).copied().unwrap_or(default);
    let (count, dimension) = (size(0, 5_000), size(1, 256));
    let images = vectors(count, dimension, 1)?;
    let sentences = vectors(SENTENCES * count, dimension, 2)?;
    let owners: Vec<usize> = (0..SENTENCES * count).map(|sentence| sentence / SENTENCES).collect();
    let relevance = Relevance::from_owners(count, &owners)?;
    let start = Instant::now();
    let metrics = evaluate_embeddings(&images, &sentences, &relevance)?;
    let megabytes = |numbers: usize| numbers as f64 * 4.0 / 1e6;
    println!(
        "{count} images, {} sentences of {dimension} numbers: {:.1} s",
        owners.len(),
        start.elapsed().as_secs_f64()
    );
    println!("rSum {:.2}", metrics.rsum);
    println!(
        "score matrix {:.0} MB, embeddings {:.0} MB, most memory {}",
        megabytes(count * owners.len()),
        megabytes((count + owners.len()) * dimension),
        most_memory().unwrap_or("unknown".into())
    );
    Ok(())
}
