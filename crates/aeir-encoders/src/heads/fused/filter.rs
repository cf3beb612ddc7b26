//! The gate over a pair's alignment vectors, forward and backward, a sentence at a time.

use rayon::prelude::*;

use super::align::{Affine, AlignmentVectors, VectorGradient};
use super::dense::{add_scaled, denominator, dot, sigmoid, unit_backward, vectorised};
use super::pairs::Pairs;
use crate::batch_norm::{BatchStatistics, VARIANCE_EPSILON};
use crate::heads::filter::GATE_EPSILON;

/// The gate's parameters, and the score's.
pub(super) struct FilterInput<'a> {
    /// `weight [1, S]`.
    pub(super) gate: Affine<'a>,
    /// Scale and shift of the batch normalisation.
    pub(super) norm: (f32, f32),
    /// Mean and variance to use in place of the batch's.
    pub(super) running: Option<(f64, f64)>,
    /// `weight [1, S]`.
    pub(super) score: Affine<'a>,
}

/// What the backward pass needs of one sentence against all images. P positions: the global vector, then the words.
#[derive(Debug)]
pub(super) struct Filtered {
    mean: f64,
    variance: f64,
    /// Logits with mean 0 and variance 1, `[N, P]`.
    normalised: Vec<f32>,
    /// `[N, P]`.
    gates: Vec<f32>,
    /// Sum of the gates, `[N]`.
    sums: Vec<f32>,
    /// The filtered vectors of unit length, `[N, S]`, and what they were divided by, `[N]`.
    read: Vec<f32>,
    denominators: Vec<f32>,
    /// Before the last sigmoid, `[N]`.
    pub(super) logits: Vec<f32>,
}

/// A pair's vectors, the global one first.
fn vectors_of<'a>(
    pairs: &Pairs,
    vectors: &'a AlignmentVectors,
    sentence: usize,
    image: usize,
) -> impl Iterator<Item = &'a [f32]> {
    let similarity = pairs.similarity;
    let global = &vectors.global[(sentence * pairs.images + image) * similarity..][..similarity];
    let local = &vectors.local[pairs.rows(sentence, image, similarity)];
    std::iter::once(global).chain(local.chunks_exact(similarity))
}

pub(super) fn filter(pairs: &Pairs, vectors: &AlignmentVectors, input: &FilterInput<'_>) -> Vec<Filtered> {
    (0..pairs.sentences().len())
        .into_par_iter()
        .map(|sentence| vectorised(|| filter_sentence(pairs, vectors, input, sentence)))
        .collect()
}

/// The statistics of the sentences, in order.
pub(super) fn statistics(pairs: &Pairs, filtered: &[Filtered]) -> BatchStatistics {
    BatchStatistics {
        mean: filtered.iter().map(|sentence| sentence.mean).collect(),
        variance: filtered.iter().map(|sentence| sentence.variance).collect(),
        count: pairs
            .sentences()
            .iter()
            .map(|sentence| (pairs.images * (sentence.words + 1)) as f64)
            .collect(),
    }
}

#[inline(always)]
fn filter_sentence(
    pairs: &Pairs,
    vectors: &AlignmentVectors,
    input: &FilterInput<'_>,
    sentence: usize,
) -> Filtered {
    let Pairs { images, similarity, .. } = *pairs;
    let positions = pairs.sentences()[sentence].words + 1;
    let bias = first(input.gate.bias);
    let mut normalised = Vec::with_capacity(images * positions);
    for image in 0..images {
        let rows = vectors_of(pairs, vectors, sentence, image);
        normalised.extend(rows.map(|row| dot(row, input.gate.weight) + bias));
    }
    let (mean, variance) = input.running.unwrap_or_else(|| moments(&normalised));
    let scale = 1.0 / (variance + VARIANCE_EPSILON).sqrt();
    for value in &mut normalised {
        *value = ((f64::from(*value) - mean) * scale) as f32;
    }
    let (weight, shift) = input.norm;
    let gates: Vec<f32> = normalised.iter().map(|value| sigmoid(value * weight + shift)).collect();
    let mut filtered = Filtered {
        mean,
        variance,
        normalised,
        sums: Vec::with_capacity(images),
        read: vec![0.0; images * similarity],
        denominators: Vec::with_capacity(images),
        logits: Vec::with_capacity(images),
        gates: Vec::new(),
    };
    for ((image, gates), read) in
        gates.chunks_exact(positions).enumerate().zip(filtered.read.chunks_exact_mut(similarity))
    {
        let sum = gates.iter().sum::<f32>() + GATE_EPSILON as f32;
        for (gate, row) in gates.iter().zip(vectors_of(pairs, vectors, sentence, image)) {
            add_scaled(read, gate / sum, row);
        }
        let denominator = denominator(pairs.norm, dot(read, read));
        let scale = 1.0 / denominator;
        read.iter_mut().for_each(|value| *value *= scale);
        filtered.sums.push(sum);
        filtered.denominators.push(denominator);
        filtered.logits.push(dot(read, input.score.weight) + first(input.score.bias));
    }
    filtered.gates = gates;
    filtered
}

fn first(values: &[f32]) -> f32 {
    values.first().copied().unwrap_or(0.0)
}

/// Mean and biased variance.
fn moments(values: &[f32]) -> (f64, f64) {
    let count = values.len().max(1) as f64;
    let mean = values.iter().map(|value| f64::from(*value)).sum::<f64>() / count;
    let variance = values.iter().map(|value| (f64::from(*value) - mean).powi(2)).sum::<f64>() / count;
    (mean, variance)
}

/// Gradients of one sentence.
struct FilteredGradient {
    /// How much of the filtered vector's gradient each vector gets, `[N, P]`.
    shares: Vec<f32>,
    /// At the gate's logits, `[N, P]`.
    logits: Vec<f32>,
    /// At the filtered vectors before they were scaled, `[N, S]`.
    read: Vec<f32>,
    parameters: FilterGradient,
}

/// Gradients of the parameters.
#[derive(Clone)]
pub(super) struct FilterGradient {
    pub(super) gate_weight: Vec<f32>,
    pub(super) gate_bias: f32,
    pub(super) norm: (f32, f32),
    pub(super) score_weight: Vec<f32>,
    pub(super) score_bias: f32,
}

/// The gradient at the alignment vectors.
pub(super) struct FilterBackward<'a> {
    pairs: &'a Pairs,
    gate_weight: &'a [f32],
    sentences: Vec<FilteredGradient>,
}

impl<'a> FilterBackward<'a> {
    /// `upstream [M, N]` at the last logits.
    pub(super) fn new(
        pairs: &'a Pairs,
        vectors: &AlignmentVectors,
        input: &FilterInput<'a>,
        filtered: &[Filtered],
        upstream: &[f32],
    ) -> Self {
        let sentences = filtered
            .par_iter()
            .zip(upstream.par_chunks_exact(pairs.images))
            .enumerate()
            .map(|(sentence, (filtered, upstream))| {
                vectorised(|| backward_sentence(pairs, vectors, input, (sentence, filtered), upstream))
            })
            .collect();
        Self { pairs, gate_weight: input.gate.weight, sentences }
    }

    /// The parameters' gradients, added in the order of the sentences.
    pub(super) fn parameters(&self) -> FilterGradient {
        let similarity = self.pairs.similarity;
        let mut total = FilterGradient::zero(similarity);
        for FilteredGradient { parameters, .. } in &self.sentences {
            add_scaled(&mut total.gate_weight, 1.0, &parameters.gate_weight);
            add_scaled(&mut total.score_weight, 1.0, &parameters.score_weight);
            total.gate_bias += parameters.gate_bias;
            total.score_bias += parameters.score_bias;
            total.norm.0 += parameters.norm.0;
            total.norm.1 += parameters.norm.1;
        }
        total
    }

    fn pair(&self, sentence: usize, image: usize) -> (&[f32], &[f32], &[f32]) {
        let positions = self.pairs.sentences()[sentence].words + 1;
        let similarity = self.pairs.similarity;
        let gradient = &self.sentences[sentence];
        (
            &gradient.shares[image * positions..][..positions],
            &gradient.logits[image * positions..][..positions],
            &gradient.read[image * similarity..][..similarity],
        )
    }

    #[inline(always)]
    fn write(&self, share: f32, logit: f32, read: &[f32], out: &mut [f32]) {
        for (out, (read, weight)) in out.iter_mut().zip(read.iter().zip(self.gate_weight)) {
            *out = share * read + logit * weight;
        }
    }
}

impl FilterGradient {
    fn zero(similarity: usize) -> Self {
        Self {
            gate_weight: vec![0.0; similarity],
            gate_bias: 0.0,
            norm: (0.0, 0.0),
            score_weight: vec![0.0; similarity],
            score_bias: 0.0,
        }
    }
}

impl VectorGradient for FilterBackward<'_> {
    fn active(&self, sentence: usize, image: usize) -> bool {
        let (_, logits, read) = self.pair(sentence, image);
        logits.iter().chain(read).any(|value| *value != 0.0)
    }

    fn local(&self, sentence: usize, image: usize, out: &mut [f32]) {
        let (shares, logits, read) = self.pair(sentence, image);
        vectorised(|| {
            let words = shares.iter().zip(logits).skip(1);
            for (out, (share, logit)) in out.chunks_exact_mut(self.pairs.similarity).zip(words) {
                self.write(*share, *logit, read, out);
            }
        });
    }

    fn global(&self, sentence: usize, image: usize, out: &mut [f32]) {
        let (shares, logits, read) = self.pair(sentence, image);
        self.write(first(shares), first(logits), read, out);
    }
}

#[inline(always)]
fn backward_sentence(
    pairs: &Pairs,
    vectors: &AlignmentVectors,
    input: &FilterInput<'_>,
    (sentence, filtered): (usize, &Filtered),
    upstream: &[f32],
) -> FilteredGradient {
    let Pairs { images, similarity, .. } = *pairs;
    let positions = pairs.sentences()[sentence].words + 1;
    let mut parameters = FilterGradient::zero(similarity);
    let mut read_gradient = vec![0.0; images * similarity];
    let mut shares = filtered.gates.clone();
    let mut logits = vec![0.0; images * positions];
    for (image, upstream) in upstream.iter().enumerate() {
        let read = &filtered.read[image * similarity..][..similarity];
        let gradient = &mut read_gradient[image * similarity..][..similarity];
        let denominator = filtered.denominators[image];
        parameters.score_bias += upstream;
        add_scaled(&mut parameters.score_weight, *upstream, read);
        add_scaled(gradient, *upstream, input.score.weight);
        unit_backward(pairs.norm, gradient, read, denominator);
        let mean = dot(gradient, read) * denominator;
        let sum = filtered.sums[image];
        let shares = &mut shares[image * positions..][..positions];
        let logits = &mut logits[image * positions..][..positions];
        for ((share, logit), row) in
            shares.iter_mut().zip(logits).zip(vectors_of(pairs, vectors, sentence, image))
        {
            let gate = *share;
            *logit = (dot(gradient, row) - mean) / sum * gate * (1.0 - gate);
            *share = gate / sum;
        }
    }
    through_batch_norm(input, filtered, &mut logits, &mut parameters);
    for image in 0..images {
        let logits = &logits[image * positions..][..positions];
        for (logit, row) in logits.iter().zip(vectors_of(pairs, vectors, sentence, image)) {
            parameters.gate_bias += logit;
            add_scaled(&mut parameters.gate_weight, *logit, row);
        }
    }
    FilteredGradient { shares, logits, read: read_gradient, parameters }
}

/// `gradient` at the normalised, scaled logits becomes that at the logits.
#[inline(always)]
fn through_batch_norm(
    input: &FilterInput<'_>,
    filtered: &Filtered,
    gradient: &mut [f32],
    parameters: &mut FilterGradient,
) {
    let (mut sum, mut along) = (0.0f64, 0.0f64);
    for (gradient, normalised) in gradient.iter().zip(&filtered.normalised) {
        sum += f64::from(*gradient);
        along += f64::from(*gradient) * f64::from(*normalised);
    }
    parameters.norm = (along as f32, sum as f32);
    let scale = f64::from(input.norm.0) / (filtered.variance + VARIANCE_EPSILON).sqrt();
    let count = gradient.len().max(1) as f64;
    // Running values are constants: nothing flows through mean and variance.
    let (sum, along) = if input.running.is_some() { (0.0, 0.0) } else { (sum / count, along / count) };
    for (gradient, normalised) in gradient.iter_mut().zip(&filtered.normalised) {
        *gradient = ((f64::from(*gradient) - sum - f64::from(*normalised) * along) * scale) as f32;
    }
}
