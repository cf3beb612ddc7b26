//! Graph reasoning over a pair's alignment vectors, forward and backward, many pairs at a time.

use rayon::prelude::*;

use super::align::{Affine, AlignmentVectors, VectorGradient};
use super::dense::{Matrix, add_scaled, dot, exp, multiply, vectorised};
use super::pairs::Pairs;

/// Nodes of the pairs that are worked on together.
const ROWS: usize = 256;
/// Parts that the sentences are divided into in the backward pass, each with weight gradients of its own.
const PARTS: usize = 16;

/// The layers of one round.
#[derive(Clone, Copy)]
pub(super) struct Step<'a> {
    pub(super) query: Affine<'a>,
    pub(super) key: Affine<'a>,
    pub(super) output: Affine<'a>,
}

/// The rounds, and the score's layer.
pub(super) struct GraphInput<'a> {
    pub(super) steps: Vec<Step<'a>>,
    /// `weight [1, S]`.
    pub(super) score: Affine<'a>,
}

/// A round on pairs of P nodes each; A of them ask: all, or in the last round the first.
struct Round {
    positions: usize,
    asking: usize,
    /// `[pairs, P, S]`.
    nodes: Vec<f32>,
    /// `[pairs, A, S]`; empty where all nodes ask.
    asking_nodes: Vec<f32>,
    /// `[pairs, A, S]`.
    query: Vec<f32>,
    /// `[pairs, P, S]`.
    key: Vec<f32>,
    /// `[pairs, A, P]`.
    edges: Vec<f32>,
    /// `[pairs, A, S]`.
    mixed: Vec<f32>,
    /// `[pairs, A, S]`.
    output: Vec<f32>,
}

/// `x W^T + b`.
fn linear(x: &[f32], layer: Affine<'_>) -> Vec<f32> {
    let similarity = layer.bias.len();
    let rows = x.len() / similarity;
    let mut out = vec![0.0; rows * similarity];
    for row in out.chunks_exact_mut(similarity) {
        row.copy_from_slice(layer.bias);
    }
    let weight = Matrix::new(layer.weight, similarity, similarity).transposed();
    multiply(Matrix::new(x, rows, similarity), weight, &mut out, similarity, true);
    out
}

impl Round {
    fn new(nodes: Vec<f32>, positions: usize, step: &Step<'_>, last: bool) -> Self {
        let similarity = step.query.bias.len();
        let asking = if last { 1 } else { positions };
        let pair = positions * similarity;
        let asking_nodes: Vec<f32> = if last {
            nodes.chunks_exact(pair).flat_map(|nodes| nodes.iter().take(similarity).copied()).collect()
        } else {
            Vec::new()
        };
        let query = linear(if last { &asking_nodes } else { &nodes }, step.query);
        let key = linear(&nodes, step.key);
        let pairs = nodes.len() / pair;
        let mut edges = vec![0.0; pairs * asking * positions];
        let mut mixed = vec![0.0; pairs * asking * similarity];
        for (((query, key), nodes), (edges, mixed)) in query
            .chunks_exact(asking * similarity)
            .zip(key.chunks_exact(pair))
            .zip(nodes.chunks_exact(pair))
            .zip(edges.chunks_exact_mut(asking * positions).zip(mixed.chunks_exact_mut(asking * similarity)))
        {
            let key = Matrix::new(key, positions, similarity).transposed();
            multiply(Matrix::new(query, asking, similarity), key, edges, positions, false);
            vectorised(|| edges.chunks_exact_mut(positions).for_each(softmax));
            let weights = Matrix::new(edges, asking, positions);
            multiply(weights, Matrix::new(nodes, positions, similarity), mixed, similarity, false);
        }
        let mut output = linear(&mixed, step.output);
        output.iter_mut().for_each(|value| *value = value.max(0.0));
        Self { positions, asking, nodes, asking_nodes, query, key, edges, mixed, output }
    }

    /// From `upstream` at the output to the nodes; adds to the layers' gradients.
    fn backward(&self, step: &Step<'_>, mut upstream: Vec<f32>, out: &mut StepGradient) -> Vec<f32> {
        let Self { positions, asking, .. } = *self;
        let similarity = step.query.bias.len();
        for (upstream, output) in upstream.iter_mut().zip(&self.output) {
            if *output <= 0.0 {
                *upstream = 0.0;
            }
        }
        let mut mixed = vec![0.0; self.mixed.len()];
        linear_backward(step.output, &self.mixed, &upstream, &mut mixed, &mut out.output);
        let mut nodes = vec![0.0; self.nodes.len()];
        let mut query = vec![0.0; self.query.len()];
        let mut key = vec![0.0; self.key.len()];
        let mut edges = vec![0.0; asking * positions];
        let (pair, asked) = (positions * similarity, asking * similarity);
        for index in 0..self.nodes.len() / pair {
            let all = |values: &'_ [f32]| index * pair..(index * pair + pair).min(values.len());
            let some = index * asked..(index + 1) * asked;
            let weights = &self.edges[index * asking * positions..][..asking * positions];
            let upstream = Matrix::new(&mixed[some.clone()], asking, similarity);
            let own = Matrix::new(&self.nodes[all(&self.nodes)], positions, similarity);
            multiply(upstream, own.transposed(), &mut edges, positions, false);
            let weight_matrix = Matrix::new(weights, asking, positions);
            let range = all(&nodes);
            multiply(weight_matrix.transposed(), upstream, &mut nodes[range], similarity, true);
            for (gradient, weights) in edges.chunks_exact_mut(positions).zip(weights.chunks_exact(positions))
            {
                vectorised(|| softmax_backward(gradient, weights));
            }
            let gradient = Matrix::new(&edges, asking, positions);
            let keys = Matrix::new(&self.key[all(&self.key)], positions, similarity);
            multiply(gradient, keys, &mut query[some.clone()], similarity, false);
            let queries = Matrix::new(&self.query[some], asking, similarity);
            let range = all(&key);
            multiply(gradient.transposed(), queries, &mut key[range], similarity, false);
        }
        linear_backward(step.key, &self.nodes, &key, &mut nodes, &mut out.key);
        if self.asking_nodes.is_empty() {
            linear_backward(step.query, &self.nodes, &query, &mut nodes, &mut out.query);
            return nodes;
        }
        let mut first = vec![0.0; self.asking_nodes.len()];
        linear_backward(step.query, &self.asking_nodes, &query, &mut first, &mut out.query);
        for (nodes, first) in nodes.chunks_exact_mut(pair).zip(first.chunks_exact(similarity)) {
            add_scaled(nodes, 1.0, first);
        }
        nodes
    }
}

#[inline(always)]
fn softmax(row: &mut [f32]) {
    let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for value in row.iter_mut() {
        *value = exp(*value - largest);
        sum += *value;
    }
    row.iter_mut().for_each(|value| *value /= sum);
}

#[inline(always)]
fn softmax_backward(gradient: &mut [f32], weights: &[f32]) {
    let mean: f32 = gradient.iter().zip(weights).map(|(gradient, weight)| gradient * weight).sum();
    for (gradient, weight) in gradient.iter_mut().zip(weights) {
        *gradient = weight * (*gradient - mean);
    }
}

/// Gradients of one layer.
#[derive(Clone)]
pub(super) struct AffineGradient {
    pub(super) weight: Vec<f32>,
    pub(super) bias: Vec<f32>,
}

/// Gradients of one round's layers.
#[derive(Clone)]
pub(super) struct StepGradient {
    pub(super) query: AffineGradient,
    pub(super) key: AffineGradient,
    pub(super) output: AffineGradient,
}

/// Gradients of all parameters.
#[derive(Clone)]
pub(super) struct GraphGradient {
    pub(super) steps: Vec<StepGradient>,
    pub(super) score: AffineGradient,
}

impl AffineGradient {
    fn zero(layer: Affine<'_>) -> Self {
        Self { weight: vec![0.0; layer.weight.len()], bias: vec![0.0; layer.bias.len()] }
    }

    fn add(&mut self, other: &Self) {
        add_scaled(&mut self.weight, 1.0, &other.weight);
        add_scaled(&mut self.bias, 1.0, &other.bias);
    }
}

impl GraphGradient {
    fn zero(input: &GraphInput<'_>) -> Self {
        let step = |step: &Step<'_>| StepGradient {
            query: AffineGradient::zero(step.query),
            key: AffineGradient::zero(step.key),
            output: AffineGradient::zero(step.output),
        };
        Self { steps: input.steps.iter().map(step).collect(), score: AffineGradient::zero(input.score) }
    }

    fn add(&mut self, other: &Self) {
        for (own, other) in self.steps.iter_mut().zip(&other.steps) {
            own.query.add(&other.query);
            own.key.add(&other.key);
            own.output.add(&other.output);
        }
        self.score.add(&other.score);
    }
}

/// `x += upstream W`, and the layer's gradients.
fn linear_backward(
    layer: Affine<'_>,
    x: &[f32],
    upstream: &[f32],
    x_gradient: &mut [f32],
    out: &mut AffineGradient,
) {
    let similarity = layer.bias.len();
    let rows = upstream.len() / similarity;
    let gradient = Matrix::new(upstream, rows, similarity);
    let x = Matrix::new(x, rows, similarity);
    multiply(gradient.transposed(), x, &mut out.weight, similarity, true);
    multiply(gradient, Matrix::new(layer.weight, similarity, similarity), x_gradient, similarity, true);
    for row in upstream.chunks_exact(similarity) {
        add_scaled(&mut out.bias, 1.0, row);
    }
}

/// Brings the vectors of one sentence against some images together: `[images, P, S]`.
fn gather(pairs: &Pairs, vectors: &AlignmentVectors, sentence: usize, images: &[usize]) -> Vec<f32> {
    let similarity = pairs.similarity;
    let mut nodes = Vec::new();
    for image in images {
        let global = (sentence * pairs.images + image) * similarity;
        nodes.extend_from_slice(&vectors.global[global..][..similarity]);
        nodes.extend_from_slice(&vectors.local[pairs.rows(sentence, *image, similarity)]);
    }
    nodes
}

/// All rounds. The last one's output is `[images, S]`.
fn rounds(input: &GraphInput<'_>, mut nodes: Vec<f32>, positions: usize) -> Vec<Round> {
    let mut rounds: Vec<Round> = Vec::with_capacity(input.steps.len());
    for (index, step) in input.steps.iter().enumerate() {
        if let Some(last) = rounds.last() {
            nodes = last.output.clone();
        }
        let last = index + 1 == input.steps.len();
        rounds.push(Round::new(std::mem::take(&mut nodes), positions, step, last));
    }
    rounds
}

fn images_at_once(positions: usize) -> usize {
    (ROWS / positions).max(1)
}

/// Before the last sigmoid, `[M, N]`.
pub(super) fn reason(pairs: &Pairs, vectors: &AlignmentVectors, input: &GraphInput<'_>) -> Vec<f32> {
    let all: Vec<usize> = (0..pairs.images).collect();
    let tasks: Vec<(usize, &[usize])> = pairs
        .sentences()
        .iter()
        .enumerate()
        .flat_map(|(index, sentence)| {
            all.chunks(images_at_once(sentence.words + 1)).map(move |images| (index, images))
        })
        .collect();
    let logits: Vec<Vec<f32>> = tasks
        .into_par_iter()
        .map(|(sentence, images)| {
            let nodes = gather(pairs, vectors, sentence, images);
            let rounds = rounds(input, nodes, pairs.sentences()[sentence].words + 1);
            let bias = input.score.bias.first().copied().unwrap_or(0.0);
            let read = rounds.last().map(|round| round.output.as_slice()).unwrap_or_default();
            vectorised(|| {
                read.chunks_exact(pairs.similarity).map(|row| dot(row, input.score.weight) + bias).collect()
            })
        })
        .collect();
    logits.concat()
}

/// The gradient at the alignment vectors, and the parameters'.
pub(super) struct GraphBackward {
    images: usize,
    similarity: usize,
    /// For each sentence and image `[P, S]`, or nothing where the gradient is zero.
    nodes: Vec<Option<Vec<f32>>>,
    pub(super) parameters: GraphGradient,
}

impl GraphBackward {
    /// `upstream [M, N]` at the last logits. The rounds of pairs with a gradient are computed once more.
    pub(super) fn new(
        pairs: &Pairs,
        vectors: &AlignmentVectors,
        input: &GraphInput<'_>,
        upstream: &[f32],
    ) -> Self {
        let together = pairs.sentences().len().div_ceil(PARTS).max(1);
        let mut nodes: Vec<Option<Vec<f32>>> = vec![None; upstream.len()];
        let parts: Vec<GraphGradient> = nodes
            .par_chunks_mut(together * pairs.images)
            .zip(upstream.par_chunks(together * pairs.images))
            .enumerate()
            .map(|(part, (nodes, upstream))| {
                let mut gradient = GraphGradient::zero(input);
                let sentences = nodes.chunks_exact_mut(pairs.images).zip(upstream.chunks_exact(pairs.images));
                for (offset, (nodes, upstream)) in sentences.enumerate() {
                    let sentence = part * together + offset;
                    backward_sentence(pairs, vectors, input, sentence, upstream, nodes, &mut gradient);
                }
                gradient
            })
            .collect();
        let mut parameters = GraphGradient::zero(input);
        parts.iter().for_each(|part| parameters.add(part));
        Self { images: pairs.images, similarity: pairs.similarity, nodes, parameters }
    }

    fn rows(&self, sentence: usize, image: usize) -> &[f32] {
        self.nodes[sentence * self.images + image].as_deref().unwrap_or_default()
    }
}

impl VectorGradient for GraphBackward {
    fn active(&self, sentence: usize, image: usize) -> bool {
        self.nodes[sentence * self.images + image].is_some()
    }

    fn local(&self, sentence: usize, image: usize, out: &mut [f32]) {
        out.copy_from_slice(&self.rows(sentence, image)[self.similarity..]);
    }

    fn global(&self, sentence: usize, image: usize, out: &mut [f32]) {
        out.copy_from_slice(&self.rows(sentence, image)[..self.similarity]);
    }
}

fn backward_sentence(
    pairs: &Pairs,
    vectors: &AlignmentVectors,
    input: &GraphInput<'_>,
    sentence: usize,
    upstream: &[f32],
    out: &mut [Option<Vec<f32>>],
    gradient: &mut GraphGradient,
) {
    let positions = pairs.sentences()[sentence].words + 1;
    let similarity = pairs.similarity;
    let active: Vec<usize> = (0..pairs.images).filter(|image| upstream[*image] != 0.0).collect();
    for images in active.chunks(images_at_once(positions)) {
        let rounds = rounds(input, gather(pairs, vectors, sentence, images), positions);
        let Some(last) = rounds.last() else { return };
        let mut nodes = vec![0.0; last.output.len()];
        for ((image, read), nodes) in
            images.iter().zip(last.output.chunks_exact(similarity)).zip(nodes.chunks_exact_mut(similarity))
        {
            let upstream = upstream[*image];
            add_scaled(nodes, upstream, input.score.weight);
            add_scaled(&mut gradient.score.weight, upstream, read);
            add_scaled(&mut gradient.score.bias, upstream, &[1.0]);
        }
        for (round, (step, gradient)) in
            rounds.iter().zip(input.steps.iter().zip(gradient.steps.iter_mut())).rev()
        {
            nodes = round.backward(step, nodes, gradient);
        }
        for (image, nodes) in images.iter().zip(nodes.chunks_exact(positions * similarity)) {
            out[*image] = Some(nodes.to_vec());
        }
    }
}
