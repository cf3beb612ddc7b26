//! Words attend to regions: from dot products to weights, and back.

use super::dense::{backward_factors, denominator, exp};
use super::pairs::Sentence;
use crate::heads::alignment::{SHARPNESS, SLOPE};
use crate::normalise::UnitNorm;

const SHARP: f32 = SHARPNESS as f32;
const SLOPE_BELOW: f32 = SLOPE as f32;
/// Keeps the sum of an image without regions from being divided by.
const SMALLEST: f32 = 1e-30;

/// Turns `weights`, dot products `[words, images regions]` of one sentence, into attention in place.
///
/// `denominators [images regions]` becomes what each region's scores were divided by.
#[inline(always)]
pub(super) fn attend(
    norm: UnitNorm,
    regions: usize,
    mask: Option<&[f32]>,
    weights: &mut [f32],
    denominators: &mut [f32],
) {
    let width = denominators.len();
    denominators.fill(0.0);
    for row in weights.chunks_exact_mut(width) {
        for (value, sum) in row.iter_mut().zip(denominators.iter_mut()) {
            let clipped = leaky(*value);
            *value = clipped;
            *sum += clipped * clipped;
        }
    }
    for sum in denominators.iter_mut() {
        *sum = denominator(norm, *sum);
    }
    for row in weights.chunks_exact_mut(width) {
        // A normalised score is at most 1, and e^9 is far from the end of the range: no maximum is subtracted.
        for (value, denominator) in row.iter_mut().zip(denominators.iter()) {
            *value = exp(SHARP * (*value / denominator));
        }
        if let Some(mask) = mask {
            row.iter_mut().zip(mask).for_each(|(value, mask)| *value *= mask);
        }
        for image in row.chunks_exact_mut(regions) {
            let sum: f32 = image.iter().sum();
            let scale = 1.0 / sum.max(SMALLEST);
            image.iter_mut().for_each(|value| *value *= scale);
        }
    }
}

#[inline(always)]
fn leaky(x: f32) -> f32 {
    if x > 0.0 { x } else { SLOPE_BELOW * x }
}

/// What the backward pass of [`attend`] needs, for one sentence and one image.
pub(super) struct Attended<'a> {
    /// Dot products `[words, regions]`.
    pub(super) scores: &'a [f32],
    /// Attention `[words, regions]`.
    pub(super) weights: &'a [f32],
    /// `[regions]`.
    pub(super) denominators: &'a [f32],
}

impl Attended<'_> {
    /// `gradient [words, regions]` of the attention becomes that of the dot products. `along [regions]` is scratch.
    #[inline(always)]
    pub(super) fn backward(&self, norm: UnitNorm, gradient: &mut [f32], along: &mut [f32]) {
        let regions = self.denominators.len();
        along.fill(0.0);
        let rows = || self.scores.chunks_exact(regions).zip(self.weights.chunks_exact(regions));
        for (gradient, (scores, weights)) in gradient.chunks_exact_mut(regions).zip(rows()) {
            let mean: f32 = gradient.iter().zip(weights).map(|(gradient, weight)| gradient * weight).sum();
            for ((gradient, weight), ((score, denominator), along)) in gradient
                .iter_mut()
                .zip(weights)
                .zip(scores.iter().zip(self.denominators).zip(along.iter_mut()))
            {
                *gradient = SHARP * weight * (*gradient - mean);
                *along += *gradient * (leaky(*score) / denominator);
            }
        }
        for (gradient, (scores, _)) in gradient.chunks_exact_mut(regions).zip(rows()) {
            for ((gradient, score), (denominator, along)) in
                gradient.iter_mut().zip(scores).zip(self.denominators.iter().zip(along.iter()))
            {
                let (factor, all) = backward_factors(norm, *denominator);
                let clipped = (*gradient - factor * along * (leaky(*score) / denominator)) * all;
                *gradient = if *score > 0.0 { clipped } else { SLOPE_BELOW * clipped };
            }
        }
    }
}

/// The rows of each sentence of a block, in a buffer of `width` numbers a row.
pub(super) fn by_sentence<'a>(
    block: &'a [usize],
    sentences: &'a [Sentence],
    width: usize,
) -> impl Iterator<Item = (usize, std::ops::Range<usize>)> + 'a {
    let mut row = 0;
    block.iter().map(move |sentence| {
        let start = row;
        row += sentences[*sentence].words;
        (*sentence, start * width..row * width)
    })
}
