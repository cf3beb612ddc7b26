//! How fast the similarity heads are on this machine, beside its own matrix product.
//!
//! `cargo run --release -p aeir-encoders --example head_speed [saf|sgr|scan-t2i|scan-i2t]`

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a program that prints figures"
)]

use std::time::Instant;

use aeir_encoders::{Fragments, HeadConfig, HeadKind, Mode, ShardSize, SimilarityHead, l2_normalise};
use candle_core::{DType, Device, Tensor, Var};
use candle_nn::VarBuilder;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

const REGIONS: usize = 36;
const DIMENSION: usize = 1024;
const BATCH: usize = 56;
/// Counted: a pair of 16 words in f32.
const FLOP_A_PAIR: f64 = 10.8e6;

fn noise(generator: &mut ChaCha8Rng, shape: &[usize]) -> Result<Tensor, candle_core::Error> {
    let values: Vec<f32> = (0..shape.iter().product::<usize>())
        .map(|_| generator.next_u32() as f32 / 2_147_483_648.0 - 1.0)
        .collect();
    Tensor::from_vec(values, shape, &Device::Cpu)
}

fn fragments(
    generator: &mut ChaCha8Rng,
    items: usize,
    lengths: std::ops::RangeInclusive<usize>,
) -> Result<Fragments, Box<dyn std::error::Error>> {
    let longest = *lengths.end();
    let spread = longest - lengths.start() + 1;
    let rows = l2_normalise(&noise(generator, &[items, longest, DIMENSION])?)?;
    let mask: Vec<f32> = (0..items)
        .flat_map(|item| {
            let real = lengths.start() + item % spread;
            (0..longest).map(move |word| f32::from(u8::from(word < real)))
        })
        .collect();
    Ok(Fragments::new(rows, Tensor::from_vec(mask, (items, longest), &Device::Cpu)?)?)
}

/// Rate of a plain product on all threads, in FLOP a second.
fn matmul_rate(generator: &mut ChaCha8Rng) -> Result<f64, candle_core::Error> {
    let size = 1024;
    let (a, b) = (noise(generator, &[size, size])?, noise(generator, &[size, size])?);
    let mut best = f64::INFINITY;
    for _ in 0..20 {
        let start = Instant::now();
        a.matmul(&b)?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(2.0 * (size as f64).powi(3) / best)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let kind = match std::env::args().nth(1) {
        Some(name) => serde_json::from_value(serde_json::Value::String(name))?,
        None => HeadKind::Saf,
    };
    let mut generator = ChaCha8Rng::seed_from_u64(1);
    let config = HeadConfig::new(kind, DIMENSION, REGIONS);
    let mut parameters = std::collections::HashMap::new();
    for name in
        aeir_encoders::released_names(kind, config.graph_steps).into_iter().filter_map(|name| name.ours)
    {
        let tensor = parameter(&mut generator, &name)?;
        parameters.insert(name, Var::from_tensor(&tensor)?.as_tensor().clone());
    }
    let head = SimilarityHead::new(&config, VarBuilder::from_tensors(parameters, DType::F32, &Device::Cpu))?;

    let rate = matmul_rate(&mut generator)?;
    println!("matmul 1024^3: {:.0} GFLOP/s", rate / 1e9);
    let images = fragments(&mut generator, BATCH, REGIONS..=REGIONS)?;
    let words = fragments(&mut generator, BATCH, 12..=20)?;
    let image_rows = Var::from_tensor(images.features())?;
    let word_rows = Var::from_tensor(words.features())?;
    let (images, words) = (
        images.with_features(image_rows.as_tensor().clone())?,
        words.with_features(word_rows.as_tensor().clone())?,
    );
    for _ in 0..5 {
        let start = Instant::now();
        let scores = head.scores(&images, &words, &mut Mode::Training(&mut generator))?;
        let forward = start.elapsed().as_secs_f64();
        let loss = hardest(&scores)?;
        let gradients = loss.backward()?;
        assert!(gradients.get(&image_rows).is_some());
        println!(
            "training {BATCH} x {BATCH}: forward {forward:.3} s, with backward {:.3} s",
            start.elapsed().as_secs_f64()
        );
    }

    let images = fragments(&mut generator, 200, REGIONS..=REGIONS)?;
    let words = fragments(&mut generator, 1000, 12..=20)?;
    for _ in 0..3 {
        let start = Instant::now();
        let scores = head.scores_in_shards(&images, &words, ShardSize::default(), |_, _| {})?;
        let pairs = scores.len() as f64 / start.elapsed().as_secs_f64();
        let rate = matmul_rate(&mut generator)?;
        println!(
            "scoring 200 x 1000: {:.2} s, {pairs:.0} pairs/s; at 10.8 MFLOP a pair {:.0} GFLOP/s, {:.0} % of matmul ({:.0})",
            start.elapsed().as_secs_f64(),
            pairs * FLOP_A_PAIR / 1e9,
            100.0 * pairs * FLOP_A_PAIR / rate,
            rate / 1e9,
        );
    }
    Ok(())
}

fn parameter(generator: &mut ChaCha8Rng, name: &str) -> Result<Tensor, candle_core::Error> {
    let similarity = 256;
    let (module, part) = name.rsplit_once('.').unwrap_or(("", name));
    if module.ends_with("norm") {
        let channels = match module {
            "filter.norm" => 1,
            "image_attention.local_norm" => REGIONS,
            _ => DIMENSION,
        };
        let value: f32 = if part == "weight" || part == "running_var" { 1.0 } else { 0.0 };
        return Tensor::full(value, channels, &Device::Cpu);
    }
    let (output, input) = match module {
        "local" | "global" => (similarity, DIMENSION),
        "score" | "filter" => (1, similarity),
        _ if module.starts_with("graph") => (similarity, similarity),
        _ if module.ends_with("score") => (1, DIMENSION),
        _ => (DIMENSION, DIMENSION),
    };
    let shape = if part == "weight" { vec![output, input] } else { vec![output] };
    noise(generator, &shape)? / (input as f64).sqrt()
}

/// Triplet ranking against the hardest negatives.
fn hardest(scores: &Tensor) -> Result<Tensor, candle_core::Error> {
    let count = scores.dim(0)?;
    let own = Tensor::eye(count, DType::F32, &Device::Cpu)?;
    let matched = (scores * &own)?.sum_keepdim(1)?;
    let others = (scores.detach() - (&own * 10.0)?)?;
    let sentence = scores.gather(&others.argmax_keepdim(1)?, 1)?;
    let image = scores.t()?.contiguous()?.gather(&others.t()?.contiguous()?.argmax_keepdim(1)?, 1)?;
    let hinge = |negative: &Tensor| ((negative - &matched)? + 0.2)?.relu()?.sum_all();
    hinge(&sentence)? + hinge(&image)?
}
