//! How far the figures would move with other test queries: seeded bootstrap intervals.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::Rng;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::sampling::{below, stream};
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
    bootstrap_folds(std::slice::from_ref(ranks), options)
}

/// [`bootstrap`] of figures that are the mean over folds: every resample draws anew in each fold.
///
/// # Errors
/// As [`bootstrap`]; [`Error::Empty`] without folds.
pub fn bootstrap_folds(folds: &[Ranks], options: &BootstrapOptions) -> Result<MetricIntervals> {
    options.check()?;
    if folds.is_empty() {
        return Err(Error::Empty { what: "list of folds" });
    }
    let folds: Vec<Vec<ImageHits>> = folds.iter().map(image_hits).collect();
    let figures = replicates(options, |random| {
        let mut mean = [0.0; 7];
        for images in &folds {
            let figures = resample(images, random);
            mean.iter_mut().zip(figures).for_each(|(sum, figure)| *sum += figure / folds.len() as f64);
        }
        mean
    });
    let [a, b, c, d, e, f, rsum] = options.intervals(&figures);
    Ok(MetricIntervals {
        i2t: DirectionIntervals { r1: a, r5: b, r10: c },
        t2i: DirectionIntervals { r1: d, r5: e, r10: f },
        rsum,
        replicates: options.replicates,
        confidence: options.confidence,
        seed: options.seed,
    })
}

impl BootstrapOptions {
    fn check(&self) -> Result<()> {
        if self.replicates == 0 {
            return Err(Error::Setting { name: "replicates", expected: "1 or more".into(), got: "0".into() });
        }
        if !(self.confidence > 0.0 && self.confidence < 1.0) {
            return Err(Error::Setting {
                name: "confidence",
                expected: "between 0 and 1, both excluded".into(),
                got: self.confidence.to_string(),
            });
        }
        Ok(())
    }

    fn intervals(&self, figures: &[[f64; 7]]) -> [Interval; 7] {
        std::array::from_fn(|column| {
            let mut values: Vec<f64> = figures.iter().filter_map(|row| row.get(column)).copied().collect();
            values.sort_unstable_by(f64::total_cmp);
            let tail = (1.0 - self.confidence) / 2.0;
            Interval { low: quantile(&values, tail), high: quantile(&values, 1.0 - tail) }
        })
    }
}

/// One figure of each of the replicates, every one with a stream of its own.
fn replicates<T: Send>(options: &BootstrapOptions, draw: impl Fn(&mut ChaCha8Rng) -> T + Sync) -> Vec<T> {
    (0..options.replicates as u64)
        .into_par_iter()
        .map(|replicate| draw(&mut stream(options.seed, replicate)))
        .collect()
}

/// How much better one of two models is in a figure, and whether chance could do that.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Difference {
    /// Second less first, in the figure's own unit.
    pub difference: f64,
    /// Bootstrap interval of it.
    pub interval: Interval,
    /// How often models that are equally good differ as much, two-sided.
    pub p_value: f64,
}

/// The differences of one direction.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct DirectionDifferences {
    /// Recall@1.
    pub r1: Difference,
    /// Recall@5.
    pub r5: Difference,
    /// Recall@10.
    pub r10: Difference,
}

/// The differences of two models on the same queries.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// Image to text.
    pub i2t: DirectionDifferences,
    /// Text to image.
    pub t2i: DirectionDifferences,
    /// rSum.
    pub rsum: Difference,
    /// Resamples, and swaps, drawn.
    pub replicates: usize,
    /// Share of resamples inside the intervals.
    pub confidence: f64,
    /// The seed.
    pub seed: u64,
}

/// Two models on the same test pairs, image by image.
///
/// The interval is a paired bootstrap: both models get the same resampled images, each with all its sentences. The p-value is a
/// randomisation test: where both are equally good, exchanging their results on any of the images changes nothing; it is the share of
/// random exchanges, the true order counted in, with a difference at least as large. Both say something about the choice of
/// test queries, nothing about training seeds.
///
/// # Errors
/// As [`bootstrap`]; [`Error::Shape`] where the two were not scored on the same pairs.
pub fn compare(first: &Ranks, second: &Ranks, options: &BootstrapOptions) -> Result<Comparison> {
    options.check()?;
    let (left, right) = (first.relevance(), second.relevance());
    if left != right {
        let (expected, got) = (left.n_sentences(), right.n_sentences());
        return Err(Error::Shape {
            what: "sentences of the compared model, on the same pairs",
            expected,
            got,
        });
    }
    let (first, second) = (image_hits(first), image_hits(second));
    let of = |images: &mut dyn Iterator<Item = &ImageHits>| figures(images);
    let minus = |a: [f64; 7], b: [f64; 7]| -> [f64; 7] {
        let mut difference = a;
        difference.iter_mut().zip(b).for_each(|(a, b)| *a -= b);
        difference
    };
    let observed = minus(of(&mut second.iter()), of(&mut first.iter()));
    let resampled = replicates(options, |random| {
        let drawn: Vec<usize> = (0..first.len()).map(|_| below(random, first.len())).collect();
        let pick = |images: &[ImageHits]| of(&mut drawn.iter().filter_map(|image| images.get(*image)));
        minus(pick(&second), pick(&first))
    });
    let swapped = replicates(options, |random| {
        let swaps: Vec<bool> = (0..first.len()).map(|_| random.next_u32() & 1 == 1).collect();
        let pairs = || swaps.iter().zip(first.iter().zip(&second));
        let one = of(&mut pairs().map(|(swap, (a, b))| if *swap { b } else { a }));
        let other = of(&mut pairs().map(|(swap, (a, b))| if *swap { a } else { b }));
        minus(other, one)
    });
    let intervals = options.intervals(&resampled);
    let mut found = observed.iter().zip(intervals).enumerate().map(|(column, (difference, interval))| {
        // Equal figures differ by rounding alone.
        let as_large =
            |row: &&[f64; 7]| row.get(column).is_some_and(|it| it.abs() >= difference.abs() - 1e-9);
        let as_large = swapped.iter().filter(as_large).count();
        let p_value = (1 + as_large) as f64 / (1 + swapped.len()) as f64;
        Difference { difference: *difference, interval, p_value }
    });
    let none = Difference { difference: 0.0, interval: Interval { low: 0.0, high: 0.0 }, p_value: 1.0 };
    let mut next = || found.next().unwrap_or(none);
    Ok(Comparison {
        i2t: DirectionDifferences { r1: next(), r5: next(), r10: next() },
        t2i: DirectionDifferences { r1: next(), r5: next(), r10: next() },
        rsum: next(),
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
    let drawn: Vec<usize> = (0..images.len()).map(|_| below(random, images.len())).collect();
    figures(&mut drawn.iter().filter_map(|image| images.get(*image)))
}

/// The six recalls, in percent, and their sum.
fn figures(images: &mut dyn Iterator<Item = &ImageHits>) -> [f64; 7] {
    let (mut i2t, mut t2i, mut count, mut sentences) = ([0_u64; 3], [0_u64; 3], 0_u64, 0_u64);
    for image in images {
        i2t.iter_mut().zip(image.i2t).for_each(|(total, hit)| *total += hit);
        t2i.iter_mut().zip(image.t2i).for_each(|(total, hit)| *total += hit);
        count += 1;
        sentences += image.sentences;
    }
    let percent = |hits: u64, queries: u64| 100.0 * hits as f64 / queries.max(1) as f64;
    let [a, b, c] = i2t.map(|hits| percent(hits, count));
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
