//! What hubness correction costs: time to build it, and time of a query with and without it.
//!
//! `cargo run --release -p aeir-retrieve --example corrected_search -- [ITEMS [DIMENSION [BANK]]]`

#![allow(clippy::print_stdout, reason = "an example shows its result")]

use std::time::Instant;

use aeir_retrieve::{Correction, GalleryCorrection, Index, IndexContent, Matrix};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

fn vectors(items: usize, dimension: usize, seed: u64) -> aeir_retrieve::Result<Matrix> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let values = (0..items * dimension).map(|_| random.next_u32() as f32 / u32::MAX as f32 - 0.5).collect();
    Matrix::new(values, items, dimension)?.l2_normalised()
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let sizes: Vec<usize> = std::env::args().skip(1).map(|size| size.parse()).collect::<Result<_, _>>()?;
    let size = |place: usize, default: usize| sizes.get(place).copied().unwrap_or(default);
    let (items, dimension, bank) = (size(0, 100_000), size(1, 256), size(2, 2_000));
    let (gallery, bank, queries) =
        (vectors(items, dimension, 1)?, vectors(bank, dimension, 2)?, vectors(100, dimension, 3)?);
    let place = std::env::temp_dir().join(format!("aeir-corrected-search-{}", std::process::id()));
    let names: Vec<String> = (0..items).map(|item| item.to_string()).collect();
    Index::create(&place, IndexContent::new(&gallery, &names, "random"))?;
    let index = Index::open(&place)?;
    let a_query = |search: &dyn Fn(&[f32]) -> aeir_retrieve::Result<usize>| -> aeir_retrieve::Result<f64> {
        let mut times = Vec::new();
        for query in queries.iter_rows() {
            let start = Instant::now();
            search(query)?;
            times.push(start.elapsed().as_secs_f64());
        }
        times.sort_unstable_by(f64::total_cmp);
        Ok(1e3 * times.get(times.len() / 2).copied().unwrap_or(0.0))
    };
    println!(
        "{items} items of {dimension} numbers, a bank of {}; median of {} queries",
        bank.rows(),
        queries.rows()
    );
    println!(
        "plain                      {:6.2} ms a query",
        a_query(&|query| Ok(index.search(query, 10)?.len()))?
    );
    for correction in [
        Correction::Csls { k: 10 },
        Correction::InvertedSoftmax { beta: 20.0 },
        Correction::DynamicInvertedSoftmax { beta: 20.0 },
        Correction::Sinkhorn { beta: 20.0, iterations: 20 },
    ] {
        let start = Instant::now();
        let made = GalleryCorrection::of_bank(correction, &gallery, &bank)?;
        let built = start.elapsed().as_secs_f64();
        let time = a_query(&|query| Ok(index.search_with(query, 10, &made)?.len()))?;
        println!("{:26} {time:6.2} ms a query, built in {built:.1} s", correction.name());
    }
    std::fs::remove_dir_all(&place)?;
    Ok(())
}
