//! How far the figures would move with other test queries: seeded bootstrap intervals.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::{Error, Ranks, Result};

/// How to resample.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BootstrapOptions {
    /// Resamples drawn; 1,000 by default.
    pub replicates: usize,
    /// Share of resamples inside the interval, between 0 and 1 exclusive; 0.95 by default.
    pub confidence: f64,
    /// Seed of the ChaCha8 generator; 0 by default.
    pub seed: u64,
}

impl Default for BootstrapOptions {
    fn default() -> Self {
        Self { replicates: 1_000, confidence: 0.95, seed: 0 }
    }
}

/// A percentile interval, in the figure's own unit.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// Intervals of one direction's recalls, in percent.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct DirectionIntervals {
    /// Recall@1.
    pub r1: Interval,
    /// Recall@5.
    pub r5: Interval,
    /// Recall@10.
    pub r10: Interval,
}

/// Intervals of the six recalls and their sum.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct MetricIntervals {
    /// Image to text.
    pub i2t: DirectionIntervals,
    /// Text to image.
    pub t2i: DirectionIntervals,
    /// rSum, 0 to 600.
    pub rsum: Interval,
    /// Resamples drawn.
    pub replicates: usize,
    /// Share of resamples inside.
    pub confidence: f64,
    /// The seed.
    pub seed: u64,
}

/// Percentile bootstrap intervals of the recalls and rSum.
///
/// Each resample draws N images with replacement; an image brings all its sentences along, because sentences of
/// one image are not independent. The gallery stays as it was, so ranks are not computed again. The interval says
/// how the choice of test queries moves the figure; it says nothing about training seeds.
///
/// Each resample has its own ChaCha8 stream: same seed, same intervals, with any number of threads.
///
/// # Errors
/// [`Error::Setting`] where `replicates` is 0 or `confidence` is not between 0 and 1.
///
/// # Example
/// ```
/// use aeir_retrieve::{BootstrapOptions, Matrix, Relevance, Ties, bootstrap, rank_scores};
/// let scores = Matrix::from_rows(&[[0.9, 0.1], [0.8, 0.7]])?;
/// let ranks = rank_scores(&scores, &Relevance::consecutive(2, 1)?, Ties::Pessimistic)?;
/// let intervals = bootstrap(&ranks, &BootstrapOptions::default())?;
/// assert!(intervals.rsum.low <= ranks.metrics().rsum && ranks.metrics().rsum <= intervals.rsum.high);
/// # Ok::<(), aeir_retrieve::Error>(())
/// ```
pub fn bootstrap(ranks: &Ranks, options: &BootstrapOptions) -> Result<MetricIntervals> {
    if options.replicates == 0 {
        return Err(Error::Setting { name: "replicates", expected: "1 or more".into(), got: "0".into() });
    }
    if !(options.confidence > 0.0 && options.confidence < 1.0) {
        return Err(Error::Setting {
            name: "confidence",
            expected: "between 0 and 1, both excluded".into(),
            got: options.confidence.to_string(),
        });
    }
    let images = image_hits(ranks);
    let figures: Vec<[f64; 7]> = (0..options.replicates as u64)
        .into_par_iter()
        .map(|replicate| {
            let mut random = ChaCha8Rng::seed_from_u64(options.seed);
            random.set_stream(replicate);
            resample(&images, &mut random)
        })
        .collect();
    let [a, b, c, d, e, f, rsum] = std::array::from_fn(|column| {
        let mut values: Vec<f64> = figures.iter().filter_map(|row| row.get(column)).copied().collect();
        values.sort_unstable_by(f64::total_cmp);
        let tail = (1.0 - options.confidence) / 2.0;
        Interval { low: quantile(&values, tail), high: quantile(&values, 1.0 - tail) }
    });
    Ok(MetricIntervals {
        i2t: DirectionIntervals { r1: a, r5: b, r10: c },
        t2i: DirectionIntervals { r1: d, r5: e, r10: f },
        rsum,
        replicates: options.replicates,
        confidence: options.confidence,
        seed: options.seed,
    })
}

/// One image with its sentences: hits at 1, 5, 10, and how many sentences.
struct ImageHits {
    i2t: [u64; 3],
    t2i: [u64; 3],
    sentences: u64,
}

fn image_hits(ranks: &Ranks) -> Vec<ImageHits> {
    let hits = |rank: u32| [1, 5, 10].map(|k| u64::from(rank <= k));
    let relevance = ranks.relevance();
    (ranks.i2t().iter().enumerate())
        .map(|(image, rank)| {
            let sentences = relevance.sentences_of(image);
            let mut t2i = [0; 3];
            for rank in sentences.iter().filter_map(|&sentence| ranks.t2i().get(sentence)) {
                t2i.iter_mut().zip(hits(*rank)).for_each(|(total, hit)| *total += hit);
            }
            ImageHits { i2t: hits(*rank), t2i, sentences: sentences.len() as u64 }
        })
        .collect()
}

fn resample(images: &[ImageHits], random: &mut ChaCha8Rng) -> [f64; 7] {
    let (mut i2t, mut t2i, mut sentences) = ([0_u64; 3], [0_u64; 3], 0_u64);
    for _ in 0..images.len() {
        // The high half of a 64 x 64 bit product: uniform up to 1 part in 2^64 / N.
        let drawn = ((u128::from(random.next_u64()) * images.len() as u128) >> 64) as usize;
        if let Some(image) = images.get(drawn) {
            i2t.iter_mut().zip(image.i2t).for_each(|(total, hit)| *total += hit);
            t2i.iter_mut().zip(image.t2i).for_each(|(total, hit)| *total += hit);
            sentences += image.sentences;
        }
    }
    let percent = |hits: u64, queries: u64| 100.0 * hits as f64 / queries.max(1) as f64;
    let [a, b, c] = i2t.map(|hits| percent(hits, images.len() as u64));
    let [d, e, f] = t2i.map(|hits| percent(hits, sentences));
    [a, b, c, d, e, f, a + b + c + d + e + f]
}

/// The quantile of sorted values, linear between the two nearest.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let place = share.clamp(0.0, 1.0) * sorted.len().saturating_sub(1) as f64;
    let (below, above) = (place.floor() as usize, place.ceil() as usize);
    match (sorted.get(below), sorted.get(above)) {
        (Some(low), Some(high)) => low + (high - low) * (place - place.floor()),
        _ => 0.0,
    }
}
