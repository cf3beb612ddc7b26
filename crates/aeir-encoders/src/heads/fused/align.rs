//! The alignment vectors of all pairs: forward, and backward with everything but the vectors computed again.

use rayon::prelude::*;

use super::attention::{Attended, attend, by_sentence};
use super::dense::{Matrix, add_scaled, denominator, dot, multiply, unit_backward, vectorised};
use super::pairs::{Pairs, Sentence};
use crate::packed::{Packed, Strided};

/// Words that are worked on together in the forward pass: their rows stay in the second-level cache.
const WORDS: usize = 96;
/// Blocks of words that are compared with an image by one task, which packs the image once.
const BLOCKS: usize = 6;
/// Rows of one product with the projection of global vectors.
const ROWS: usize = 192;
/// Words that are worked on together in the backward pass.
const BACKWARD_WORDS: usize = 192;
/// Parts that the images are divided into in the backward pass, each with weight gradients of its own: a constant, so that
/// the sums have one order whatever the number of threads.
const PARTS: usize = 16;

/// A linear layer: `weight [out, in]`, `bias [out]`.
#[derive(Clone, Copy)]
pub(super) struct Affine<'a> {
    pub(super) weight: &'a [f32],
    pub(super) bias: &'a [f32],
}

/// What the alignment vectors are computed from.
#[derive(Clone, Copy)]
pub(super) struct AlignInput<'a> {
    /// `[N, R, D]`.
    pub(super) images: &'a [f32],
    /// Packed, `[words, D]`.
    pub(super) words: &'a [f32],
    /// `[N, D]`.
    pub(super) image_global: &'a [f32],
    /// `[M, D]`.
    pub(super) sentence_global: &'a [f32],
    pub(super) local: Affine<'a>,
    pub(super) global: Affine<'a>,
}

/// The vectors of unit length, and what each was divided by.
#[derive(Debug, Default)]
pub(super) struct AlignmentVectors {
    /// In the order of [`Pairs::rows`], S numbers a row.
    pub(super) local: Vec<f32>,
    local_denominators: Vec<f32>,
    /// `[M, N, S]`.
    pub(super) global: Vec<f32>,
    global_denominators: Vec<f32>,
}

/// The loss's gradient at the alignment vectors.
pub(super) trait VectorGradient: Sync {
    /// Whether anything of the pair is not zero.
    fn active(&self, sentence: usize, image: usize) -> bool;
    /// Writes the rows of the words, `[words, S]`.
    fn local(&self, sentence: usize, image: usize, out: &mut [f32]);
    /// Writes the row of the global vector, `[S]`.
    fn global(&self, sentence: usize, image: usize, out: &mut [f32]);
}

/// Gradients, shaped as [`AlignInput`].
pub(super) struct AlignGradient {
    pub(super) images: Vec<f32>,
    pub(super) words: Vec<f32>,
    pub(super) image_global: Vec<f32>,
    pub(super) sentence_global: Vec<f32>,
    pub(super) local_weight: Vec<f32>,
    pub(super) local_bias: Vec<f32>,
    pub(super) global_weight: Vec<f32>,
    pub(super) global_bias: Vec<f32>,
}

/// Some sentences against an image, and where their vectors go.
struct Task<'a> {
    blocks: &'a [Vec<usize>],
    image: usize,
    /// For each sentence `[words, S]`.
    vectors: Vec<&'a mut [f32]>,
    denominators: Vec<&'a mut [f32]>,
}

/// The regions of one image, packed for both products with words.
#[derive(Default)]
struct PackedImage {
    /// R outputs from D inputs: dot products with each region.
    scores: Packed,
    /// D outputs from R inputs: mixtures of the regions.
    mixtures: Packed,
}

impl PackedImage {
    fn fill(&mut self, features: &[f32], regions: usize, dimension: usize) {
        self.scores.fill_transposed(features, dimension, regions, dimension);
        self.mixtures.fill(features, dimension, dimension, regions);
    }
}

/// `out = rows W^T`, rows without gaps.
fn product(rows: &[f32], weight: &Packed, out: &mut [f32]) {
    let (stride, outputs) = (weight.inputs(), weight.outputs());
    let count = out.len() / outputs.max(1);
    weight.multiply(Strided { values: rows, stride, count }, out, outputs);
}

/// Buffers of one thread.
#[derive(Default)]
struct Scratch {
    image: PackedImage,
    scores: Vec<f32>,
    denominators: Vec<f32>,
    squares: Vec<f32>,
    projected: Vec<f32>,
}

/// A buffer of `count` numbers of any value.
fn sized(buffer: &mut Vec<f32>, count: usize) -> &mut [f32] {
    if buffer.len() < count {
        buffer.resize(count, 0.0);
    }
    &mut buffer[..count]
}

/// The forward pass.
pub(super) fn align(pairs: &Pairs, input: &AlignInput<'_>, sentences: usize) -> AlignmentVectors {
    let Pairs { images, similarity, dimension, .. } = *pairs;
    let mut vectors = AlignmentVectors {
        local: vec![0.0; images * pairs.words() * similarity],
        local_denominators: vec![0.0; images * pairs.words()],
        global: vec![0.0; images * sentences * similarity],
        global_denominators: vec![0.0; images * sentences],
    };
    let local = Packed::new(input.local.weight, Some(input.local.bias), dimension);
    let global = Packed::new(input.global.weight, Some(input.global.bias), dimension);
    let blocks = pairs.blocks(0..sentences, WORDS);
    let tasks = tasks(pairs, &blocks, &mut vectors);
    tasks
        .into_par_iter()
        .for_each_init(Scratch::default, |scratch, task| task.run(pairs, input, &local, scratch));
    vectors
        .global
        .par_chunks_mut(ROWS * similarity)
        .zip(vectors.global_denominators.par_chunks_mut(ROWS))
        .enumerate()
        .for_each_init(Scratch::default, |scratch, (chunk, (out, denominators))| {
            let squares = sized(&mut scratch.squares, denominators.len() * dimension);
            for (row, squares) in squares.chunks_exact_mut(dimension).enumerate() {
                let (sentence, image) = ((chunk * ROWS + row) / images, (chunk * ROWS + row) % images);
                let image = &input.image_global[image * dimension..][..dimension];
                let sentence = &input.sentence_global[sentence * dimension..][..dimension];
                vectorised(|| squared_difference(squares, image, sentence));
            }
            product(squares, &global, out);
            vectorised(|| finish(pairs, out, denominators));
        });
    vectors
}

/// Cuts the output for the tasks: runs of blocks of sentences, each against every image.
fn tasks<'a>(pairs: &Pairs, blocks: &'a [Vec<usize>], vectors: &'a mut AlignmentVectors) -> Vec<Task<'a>> {
    let Pairs { images, similarity, .. } = *pairs;
    let mut tasks: Vec<Task<'a>> = Vec::new();
    let (mut rest, mut rest_denominators) =
        (vectors.local.as_mut_slice(), vectors.local_denominators.as_mut_slice());
    for blocks in blocks.chunks(BLOCKS) {
        let first = tasks.len();
        let count = blocks.iter().map(Vec::len).sum();
        let (vectors, denominators) = (|| Vec::with_capacity(count), || Vec::with_capacity(count));
        tasks.extend((0..images).map(|image| Task {
            blocks,
            image,
            vectors: vectors(),
            denominators: denominators(),
        }));
        for sentence in blocks.iter().flatten() {
            let words = pairs.sentences()[*sentence].words;
            let (own, others) = rest.split_at_mut(images * words * similarity);
            let (own_denominators, other_denominators) = rest_denominators.split_at_mut(images * words);
            (rest, rest_denominators) = (others, other_denominators);
            let parts = own.chunks_mut(words * similarity).zip(own_denominators.chunks_mut(words));
            for (task, (vectors, denominators)) in tasks.iter_mut().skip(first).zip(parts) {
                task.vectors.push(vectors);
                task.denominators.push(denominators);
            }
        }
    }
    tasks
}

impl Task<'_> {
    fn run(self, pairs: &Pairs, input: &AlignInput<'_>, weight: &Packed, scratch: &mut Scratch) {
        let Pairs { regions, dimension, similarity, norm, .. } = *pairs;
        let sentences = pairs.sentences();
        let features = &input.images[self.image * regions * dimension..][..regions * dimension];
        scratch.image.fill(features, regions, dimension);
        let mask = pairs.region_mask(self.image..self.image + 1);
        let mut targets = self.vectors.into_iter().zip(self.denominators);
        for block in self.blocks {
            let Some(first) = block.first().map(|sentence| sentences[*sentence].first) else { continue };
            let count: usize = block.iter().map(|sentence| sentences[*sentence].words).sum();
            // The words of neighbouring sentences are neighbours.
            let words = &input.words[first * dimension..][..count * dimension];
            let scores = sized(&mut scratch.scores, count * regions);
            product(words, &scratch.image.scores, scores);
            let denominators = sized(&mut scratch.denominators, regions);
            for (_, rows) in by_sentence(block, sentences, regions) {
                vectorised(|| attend(norm, regions, mask, &mut scores[rows], denominators));
            }
            let squares = sized(&mut scratch.squares, count * dimension);
            product(scores, &scratch.image.mixtures, squares);
            vectorised(|| {
                for (row, word) in squares.chunks_exact_mut(dimension).zip(words.chunks_exact(dimension)) {
                    let scale = 1.0 / denominator(norm, dot(row, row));
                    for (value, word) in row.iter_mut().zip(word) {
                        let difference = *value * scale - word;
                        *value = difference * difference;
                    }
                }
            });
            let projected = sized(&mut scratch.projected, count * similarity);
            product(squares, weight, projected);
            for ((_, rows), (out, denominators)) in
                by_sentence(block, sentences, similarity).zip(&mut targets)
            {
                out.copy_from_slice(&projected[rows]);
                vectorised(|| finish(pairs, out, denominators));
            }
        }
    }
}

#[inline(always)]
fn squared_difference(out: &mut [f32], a: &[f32], b: &[f32]) {
    for (out, (a, b)) in out.iter_mut().zip(a.iter().zip(b)) {
        *out = (a - b) * (a - b);
    }
}

/// Scales to unit length.
#[inline(always)]
fn finish(pairs: &Pairs, rows: &mut [f32], denominators: &mut [f32]) {
    for (row, kept) in rows.chunks_exact_mut(pairs.similarity).zip(denominators) {
        let denominator = denominator(pairs.norm, dot(row, row));
        *kept = denominator;
        let scale = 1.0 / denominator;
        row.iter_mut().for_each(|value| *value *= scale);
    }
}

/// Some images' part of the backward pass.
struct Part {
    words: Vec<f32>,
    sentence_global: Vec<f32>,
    local_weight: Vec<f32>,
    local_bias: Vec<f32>,
    global_weight: Vec<f32>,
    global_bias: Vec<f32>,
    scratch: BackwardScratch,
}

#[derive(Default)]
struct BackwardScratch {
    image: PackedImage,
    words: Vec<f32>,
    word_gradient: Vec<f32>,
    scores: Vec<f32>,
    weights: Vec<f32>,
    denominators: Vec<f32>,
    along: Vec<f32>,
    weight_gradient: Vec<f32>,
    attended: Vec<f32>,
    attended_denominators: Vec<f32>,
    squares: Vec<f32>,
    gradient: Vec<f32>,
    vectors: Vec<f32>,
}

/// The backward pass. Pairs whose gradient is zero cost nothing.
pub(super) fn align_backward(
    pairs: &Pairs,
    input: &AlignInput<'_>,
    vectors: &AlignmentVectors,
    upstream: &impl VectorGradient,
) -> AlignGradient {
    let Pairs { images, regions, dimension, .. } = *pairs;
    let mut image_gradient = vec![0.0; input.images.len()];
    let mut image_global = vec![0.0; input.image_global.len()];
    let together = images.div_ceil(PARTS).max(1);
    let [local, global] = [input.local, input.global].map(|layer| {
        let mut transposed = Packed::default();
        transposed.fill(layer.weight, dimension, dimension, pairs.similarity);
        transposed
    });
    let backward = Backward { pairs, input, vectors, upstream, local, global };
    let parts: Vec<Part> = image_gradient
        .par_chunks_mut(together * regions * dimension)
        .zip(image_global.par_chunks_mut(together * dimension))
        .enumerate()
        .map(|(index, (images, globals))| {
            let mut part = Part::new(input);
            let rows = images.chunks_exact_mut(regions * dimension).zip(globals.chunks_exact_mut(dimension));
            for (offset, (image, global)) in rows.enumerate() {
                let number = index * together + offset;
                backward.local(number, image, &mut part);
                backward.global(number, global, &mut part);
            }
            part.scratch = BackwardScratch::default();
            part
        })
        .collect();
    let sum = |get: fn(&Part) -> &[f32]| sum_parts(&parts, get);
    AlignGradient {
        images: image_gradient,
        image_global,
        words: sum(|part| &part.words),
        sentence_global: sum(|part| &part.sentence_global),
        local_weight: sum(|part| &part.local_weight),
        local_bias: sum(|part| &part.local_bias),
        global_weight: sum(|part| &part.global_weight),
        global_bias: sum(|part| &part.global_bias),
    }
}

/// Adds what the parts have, in their order.
fn sum_parts(parts: &[Part], get: fn(&Part) -> &[f32]) -> Vec<f32> {
    const CHUNK: usize = 1 << 14;
    let Some((first, rest)) = parts.split_first() else { return Vec::new() };
    let mut sum = get(first).to_vec();
    sum.par_chunks_mut(CHUNK).enumerate().for_each(|(chunk, sum)| {
        for part in rest {
            let values = &get(part)[chunk * CHUNK..][..sum.len()];
            vectorised(|| add_scaled(sum, 1.0, values));
        }
    });
    sum
}

impl Part {
    fn new(input: &AlignInput<'_>) -> Self {
        let zeros = |like: &[f32]| vec![0.0; like.len()];
        Self {
            words: zeros(input.words),
            sentence_global: zeros(input.sentence_global),
            local_weight: zeros(input.local.weight),
            local_bias: zeros(input.local.bias),
            global_weight: zeros(input.global.weight),
            global_bias: zeros(input.global.bias),
            scratch: BackwardScratch::default(),
        }
    }
}

struct Backward<'a, U> {
    pairs: &'a Pairs,
    input: &'a AlignInput<'a>,
    vectors: &'a AlignmentVectors,
    upstream: &'a U,
    /// The transposed weights: D outputs from S inputs.
    local: Packed,
    global: Packed,
}

impl<U: VectorGradient> Backward<'_, U> {
    fn active(&self, image: usize) -> impl Iterator<Item = usize> {
        (0..self.pairs.sentences().len()).filter(move |sentence| self.upstream.active(*sentence, image))
    }

    /// The words of one image's active pairs.
    fn local(&self, image: usize, image_gradient: &mut [f32], part: &mut Part) {
        let Pairs { regions, dimension, .. } = *self.pairs;
        let features = &self.input.images[image * regions * dimension..][..regions * dimension];
        part.scratch.image.fill(features, regions, dimension);
        let mut gathered = std::mem::take(&mut part.scratch.words);
        for block in self.pairs.blocks(self.active(image), BACKWARD_WORDS) {
            let words = self.words(&block, &mut gathered);
            self.attend_again(&block, image, words, &mut part.scratch);
            self.through_projection(&block, image, words, part);
            self.through_attention(&block, words, image_gradient, part);
        }
        part.scratch.words = gathered;
    }

    /// The words of a block, one after the other: as they lie where the sentences are neighbours, else brought together.
    fn words<'b>(&'b self, block: &[usize], gathered: &'b mut Vec<f32>) -> &'b [f32] {
        let dimension = self.pairs.dimension;
        let rows = |sentence: &usize| {
            let Sentence { first, words } = self.pairs.sentences()[*sentence];
            first * dimension..(first + words) * dimension
        };
        if let (Some(first), Some(last)) = (block.first().map(rows), block.last().map(rows))
            && block.iter().map(|sentence| rows(sentence).len()).sum::<usize>() == last.end - first.start
        {
            return &self.input.words[first.start..last.end];
        }
        gathered.clear();
        block.iter().for_each(|sentence| gathered.extend_from_slice(&self.input.words[rows(sentence)]));
        gathered
    }

    /// Scores, attention and attended vectors once more.
    fn attend_again(&self, block: &[usize], image: usize, words: &[f32], scratch: &mut BackwardScratch) {
        let Pairs { regions, dimension, norm, .. } = *self.pairs;
        let count = words.len() / dimension;
        let scores = sized(&mut scratch.scores, count * regions);
        product(words, &scratch.image.scores, scores);
        let weights = sized(&mut scratch.weights, count * regions);
        weights.copy_from_slice(scores);
        let mask = self.pairs.region_mask(image..image + 1);
        let denominators = sized(&mut scratch.denominators, block.len() * regions);
        let rows = by_sentence(block, self.pairs.sentences(), regions);
        for ((_, rows), denominators) in rows.zip(denominators.chunks_exact_mut(regions)) {
            vectorised(|| attend(norm, regions, mask, &mut weights[rows], denominators));
        }
        let attended = sized(&mut scratch.attended, count * dimension);
        product(weights, &scratch.image.mixtures, attended);
    }

    /// From the vectors back to the attended vectors (left in `gradient`) and the words.
    fn through_projection(&self, block: &[usize], image: usize, words: &[f32], part: &mut Part) {
        let Pairs { dimension, similarity, norm, .. } = *self.pairs;
        let count = words.len() / dimension;
        let scratch = &mut part.scratch;
        let upstream = sized(&mut scratch.vectors, count * similarity);
        for (sentence, rows) in by_sentence(block, self.pairs.sentences(), similarity) {
            let upstream = &mut upstream[rows];
            self.upstream.local(sentence, image, upstream);
            let vectors = &self.vectors.local[self.pairs.rows(sentence, image, similarity)];
            let denominators = &self.vectors.local_denominators[self.pairs.rows(sentence, image, 1)];
            vectorised(|| {
                normalised_backward(self.pairs, upstream, vectors, denominators, &mut part.local_bias);
            });
        }
        let squares = sized(&mut scratch.squares, count * dimension);
        let attended = &mut scratch.attended[..count * dimension];
        let denominators = sized(&mut scratch.attended_denominators, count);
        let rows = || words.chunks_exact(dimension);
        vectorised(|| {
            for (((attended, squares), word), kept) in attended
                .chunks_exact_mut(dimension)
                .zip(squares.chunks_exact_mut(dimension))
                .zip(rows())
                .zip(denominators.iter_mut())
            {
                *kept = denominator(norm, dot(attended, attended));
                let scale = 1.0 / *kept;
                attended.iter_mut().for_each(|value| *value *= scale);
                squared_difference(squares, attended, word);
            }
        });
        let gradient = sized(&mut scratch.gradient, count * dimension);
        through_linear(upstream, squares, &self.local, gradient, &mut part.local_weight);
        let word_gradient = sized(&mut scratch.word_gradient, count * dimension);
        vectorised(|| {
            for ((gradient, attended), ((word, word_gradient), denominator)) in gradient
                .chunks_exact_mut(dimension)
                .zip(attended.chunks_exact(dimension))
                .zip(rows().zip(word_gradient.chunks_exact_mut(dimension)).zip(denominators.iter()))
            {
                for ((gradient, word_gradient), (attended, word)) in
                    gradient.iter_mut().zip(word_gradient.iter_mut()).zip(attended.iter().zip(word))
                {
                    *gradient *= 2.0 * (attended - word);
                    *word_gradient = -*gradient;
                }
                unit_backward(norm, gradient, attended, *denominator);
            }
        });
    }

    /// From the attended vectors back to the regions and, through the scores, the words.
    fn through_attention(&self, block: &[usize], words: &[f32], image_gradient: &mut [f32], part: &mut Part) {
        let Pairs { regions, dimension, norm, .. } = *self.pairs;
        let count = words.len() / dimension;
        let scratch = &mut part.scratch;
        let gradient = Matrix::new(&scratch.gradient, count, dimension);
        let weights = Matrix::new(&scratch.weights, count, regions);
        let weight_gradient = sized(&mut scratch.weight_gradient, count * regions);
        product(&scratch.gradient, &scratch.image.scores, weight_gradient);
        multiply(weights.transposed(), gradient, image_gradient, dimension, true);
        let along = sized(&mut scratch.along, regions);
        let rows = by_sentence(block, self.pairs.sentences(), regions);
        for ((_, rows), denominators) in rows.zip(scratch.denominators.chunks_exact(regions)) {
            let attended = Attended {
                scores: &scratch.scores[rows.clone()],
                weights: &scratch.weights[rows.clone()],
                denominators,
            };
            vectorised(|| attended.backward(norm, &mut weight_gradient[rows], along));
        }
        let score_gradient = Matrix::new(weight_gradient, count, regions);
        let words = Matrix::new(words, count, dimension);
        multiply(score_gradient.transposed(), words, image_gradient, dimension, true);
        // The attended vectors are not needed any more.
        let through_scores = sized(&mut scratch.attended, count * dimension);
        product(weight_gradient, &scratch.image.mixtures, through_scores);
        for (sentence, rows) in by_sentence(block, self.pairs.sentences(), dimension) {
            let first = self.pairs.sentences()[sentence].first * dimension;
            let out = &mut part.words[first..][..rows.len()];
            let parts = scratch.word_gradient[rows.clone()].iter().zip(&through_scores[rows]);
            vectorised(|| out.iter_mut().zip(parts).for_each(|(out, (a, b))| *out += a + b));
        }
    }

    /// The global vectors of one image's active pairs.
    fn global(&self, image: usize, image_gradient: &mut [f32], part: &mut Part) {
        let Pairs { dimension, similarity, images, .. } = *self.pairs;
        let active: Vec<usize> = self.active(image).collect();
        let own = &self.input.image_global[image * dimension..][..dimension];
        let sentence_row = |sentence: usize| &self.input.sentence_global[sentence * dimension..][..dimension];
        for active in active.chunks(BACKWARD_WORDS) {
            let scratch = &mut part.scratch;
            let upstream = sized(&mut scratch.vectors, active.len() * similarity);
            let squares = sized(&mut scratch.squares, active.len() * dimension);
            for (sentence, (upstream, squares)) in active
                .iter()
                .zip(upstream.chunks_exact_mut(similarity).zip(squares.chunks_exact_mut(dimension)))
            {
                self.upstream.global(*sentence, image, upstream);
                let pair = sentence * images + image;
                let vector = &self.vectors.global[pair * similarity..][..similarity];
                let denominator = &self.vectors.global_denominators[pair..=pair];
                vectorised(|| {
                    normalised_backward(self.pairs, upstream, vector, denominator, &mut part.global_bias);
                    squared_difference(squares, own, sentence_row(*sentence));
                });
            }
            let gradient = sized(&mut scratch.gradient, active.len() * dimension);
            through_linear(upstream, squares, &self.global, gradient, &mut part.global_weight);
            for (sentence, gradient) in active.iter().zip(gradient.chunks_exact(dimension)) {
                let out = &mut part.sentence_global[sentence * dimension..][..dimension];
                vectorised(|| {
                    let values = own.iter().zip(sentence_row(*sentence)).zip(gradient);
                    for (((own, other), gradient), (image, sentence)) in
                        values.zip(image_gradient.iter_mut().zip(out))
                    {
                        let difference = 2.0 * (own - other) * gradient;
                        *image += difference;
                        *sentence -= difference;
                    }
                });
            }
        }
    }
}

/// Through the scaling to unit length and the bias, in place.
#[inline(always)]
fn normalised_backward(
    pairs: &Pairs,
    gradient: &mut [f32],
    vectors: &[f32],
    denominators: &[f32],
    bias: &mut [f32],
) {
    let similarity = pairs.similarity;
    for ((gradient, vector), denominator) in
        gradient.chunks_exact_mut(similarity).zip(vectors.chunks_exact(similarity)).zip(denominators)
    {
        unit_backward(pairs.norm, gradient, vector, *denominator);
        add_scaled(bias, 1.0, gradient);
    }
}

/// Through `x W^T`: `gradient = upstream W`, `weight += upstream^T x`; `transposed` is the packed transpose of W.
fn through_linear(
    upstream: &[f32],
    x: &[f32],
    transposed: &Packed,
    gradient: &mut [f32],
    weight: &mut [f32],
) {
    let (inputs, outputs) = (transposed.outputs(), transposed.inputs());
    let rows = upstream.len() / outputs.max(1);
    product(upstream, transposed, gradient);
    let upstream = Matrix::new(upstream, rows, outputs);
    multiply(upstream.transposed(), Matrix::new(x, rows, inputs), weight, inputs, true);
}
