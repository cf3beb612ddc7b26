//! Stacked cross attention of all pairs in one operation with its own backward pass: the CPU, f32.
//!
//! The dot products of all words with all regions are one matrix product outside of it. Each pair's block of them becomes a
//! number within the cache; the backward pass computes the block again, and only where the pair has a gradient: with the
//! hardest negatives that is two or three of a row.

use candle_core::{CpuStorage, CustomOp3, D, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::dense::{Matrix, add_scaled, backward_factors, denominator, dot, exp, multiply, vectorised};
use crate::error::Result as EncoderResult;
use crate::fragments::Fragments;
use crate::heads::alignment::fragment_scores;
use crate::heads::scan::{ScanConfig, ScanPooling};
use crate::normalise::{L2_EPSILON, UnitNorm};
use crate::product::{held_values, values};
use crate::rehearsal::Product;

/// Parts that the sentences are divided into in the backward pass, each with sums of its own: a constant, so that they have
/// one order whatever the number of threads.
const PARTS: usize = 16;
/// Keeps the sum of a row without entries from being divided by.
const SMALLEST: f32 = 1e-30;

/// Scores `[N, M]`. Padded rows of the fragments hold zeros.
pub(in crate::heads) fn scores(
    config: ScanConfig,
    words_attend: bool,
    norm: UnitNorm,
    images: &Fragments,
    sentences: &Fragments,
) -> EncoderResult<Tensor> {
    let (images_count, regions, _) = images.features().dims3()?;
    let (sentences_count, words, _) = sentences.features().dims3()?;
    let products = fragment_scores(images, sentences)?;
    let (asking, asked) = if words_attend { (sentences, images) } else { (images, sentences) };
    let features = asked.features().contiguous()?;
    let among = features.product(&features.transpose(1, 2)?.contiguous()?)?;
    let own = (asking.features().sqr()?.sum(D::Minus1)? + L2_EPSILON)?.sqrt()?;
    let mask = |fragments: &Fragments| fragments.mask().flatten_all()?.to_vec1::<f32>();
    let operation = StackedAttention {
        config,
        words_attend,
        norm,
        sizes: Sizes { sentences: sentences_count, words, images: images_count, regions },
        asking_mask: mask(asking)?,
        asked_mask: mask(asked)?,
    };
    Ok(products.apply_op3(&among, &own, operation)?.t()?.contiguous()?)
}

#[derive(Debug, Clone, Copy)]
struct Sizes {
    sentences: usize,
    words: usize,
    images: usize,
    regions: usize,
}

/// Dot products `[M, L, N, R]`, those among the asked fragments of an item `[asked items, C, C]`, and the lengths of the asking
/// ones `[asking items, T]`, to `[M, N]`.
struct StackedAttention {
    config: ScanConfig,
    words_attend: bool,
    norm: UnitNorm,
    sizes: Sizes,
    /// `[asking items, T]`, 1 real and 0 padding.
    asking_mask: Vec<f32>,
    /// `[asked items, C]`.
    asked_mask: Vec<f32>,
}

/// What belongs to one pair beside its dot products. T fragments ask C.
struct Pair<'a> {
    /// `[C, C]`.
    among: &'a [f32],
    /// `[T]`.
    own: &'a [f32],
    asking_mask: &'a [f32],
    asked_mask: &'a [f32],
}

/// One pair's numbers, row-major `[T, C]`, or one a row or a column.
#[derive(Default)]
struct Block {
    products: Vec<f32>,
    /// What the scores of each asked fragment are divided by.
    denominators: Vec<f32>,
    /// Attention: rows that sum to 1.
    weights: Vec<f32>,
    /// Attention times the products among the asked fragments.
    mixed: Vec<f32>,
    /// Of the attended vectors.
    lengths: Vec<f32>,
    cosines: Vec<f32>,
    /// The loss's gradient at the cosines, then what the length takes of it.
    by_cosine: Vec<f32>,
    gradient: Vec<f32>,
    along: Vec<f32>,
}

/// Sums of one part in the backward pass.
struct Part {
    among: Vec<f32>,
    own: Vec<f32>,
}

impl Sizes {
    /// Numbers of one sentence among the dot products.
    fn sentence(self) -> usize {
        self.words * self.images * self.regions
    }
}

impl StackedAttention {
    /// T and C.
    fn block(&self) -> (usize, usize) {
        let Sizes { words, regions, .. } = self.sizes;
        if self.words_attend { (words, regions) } else { (regions, words) }
    }

    /// The items that ask and that are asked.
    fn items(&self, sentence: usize, image: usize) -> (usize, usize) {
        if self.words_attend { (sentence, image) } else { (image, sentence) }
    }

    fn pair<'a>(&'a self, sentence: usize, image: usize, among: &'a [f32], own: &'a [f32]) -> Pair<'a> {
        let ((rows, columns), (asking, asked)) = (self.block(), self.items(sentence, image));
        Pair {
            among: &among[asked * columns * columns..][..columns * columns],
            own: &own[asking * rows..][..rows],
            asking_mask: &self.asking_mask[asking * rows..][..rows],
            asked_mask: &self.asked_mask[asked * columns..][..columns],
        }
    }

    /// Where the numbers of word `word` and one image lie among those of a sentence.
    fn row(&self, word: usize, image: usize) -> std::ops::Range<usize> {
        let Sizes { images, regions, .. } = self.sizes;
        let start = (word * images + image) * regions;
        start..start + regions
    }

    /// Takes one pair's dot products out of a sentence's `[L, N, R]`.
    fn take(&self, sentence: &[f32], image: usize, block: &mut [f32]) {
        let Sizes { words, regions, .. } = self.sizes;
        for word in 0..words {
            let row = &sentence[self.row(word, image)];
            if self.words_attend {
                block[word * regions..][..regions].copy_from_slice(row);
            } else {
                block.iter_mut().skip(word).step_by(words).zip(row).for_each(|(to, from)| *to = *from);
            }
        }
    }

    /// The reverse of [`Self::take`].
    fn put(&self, block: &[f32], image: usize, sentence: &mut [f32]) {
        let Sizes { words, regions, .. } = self.sizes;
        for word in 0..words {
            let row = &mut sentence[self.row(word, image)];
            if self.words_attend {
                row.copy_from_slice(&block[word * regions..][..regions]);
            } else {
                row.iter_mut().zip(block.iter().skip(word).step_by(words)).for_each(|(to, from)| *to = *from);
            }
        }
    }

    fn checked(&self, products: &[usize], among: &[usize], own: &[usize]) -> Result<()> {
        let Sizes { sentences, words, images, regions } = self.sizes;
        let (rows, columns) = self.block();
        let (asking, asked) = if self.words_attend { (sentences, images) } else { (images, sentences) };
        let fits = products == [sentences, words, images, regions]
            && among == [asked, columns, columns]
            && own == [asking, rows]
            && self.asking_mask.len() == asking * rows
            && self.asked_mask.len() == asked * columns;
        if !fits || self.sizes.sentence() == 0 {
            bail!("stacked attention: {products:?}, {among:?}, {own:?} for {:?}", self.sizes);
        }
        Ok(())
    }

    /// Some sentences' part of the backward pass: `products` of them, `upstream` of all.
    fn part(
        &self,
        first: usize,
        (products, among, own): (&[f32], &[f32], &[f32]),
        upstream: &[f32],
        gradient: &mut [f32],
    ) -> Part {
        let Sizes { images, .. } = self.sizes;
        let mut part = Part { among: vec![0.0; among.len()], own: vec![0.0; own.len()] };
        let mut block = Block::default();
        let size = self.sizes.sentence();
        for (index, gradient) in gradient.chunks_exact_mut(size).enumerate() {
            let sentence = first + index;
            let products = &products[sentence * size..][..size];
            for image in 0..images {
                let upstream = upstream[sentence * images + image];
                if upstream == 0.0 {
                    continue;
                }
                let pair = self.pair(sentence, image, among, own);
                self.take(products, image, block.sized(self.block()));
                block.score(self.config, self.norm, &pair);
                let ((rows, columns), (asking, asked)) = (self.block(), self.items(sentence, image));
                let own = &mut part.own[asking * rows..][..rows];
                let among = &mut part.among[asked * columns * columns..][..columns * columns];
                block.backward(self.config, self.norm, &pair, upstream, own, among);
                self.put(&block.gradient, image, gradient);
            }
        }
        part
    }
}

impl Block {
    /// Makes room for a block of this size; gives the place of its dot products.
    fn sized(&mut self, (rows, columns): (usize, usize)) -> &mut [f32] {
        let of_block = [&mut self.products, &mut self.weights, &mut self.mixed, &mut self.gradient];
        of_block.into_iter().for_each(|buffer| buffer.resize(rows * columns, 0.0));
        let of_rows = [&mut self.lengths, &mut self.cosines, &mut self.by_cosine];
        of_rows.into_iter().for_each(|buffer| buffer.resize(rows, 0.0));
        [&mut self.denominators, &mut self.along].into_iter().for_each(|buffer| buffer.resize(columns, 0.0));
        &mut self.products
    }

    /// The pair's score from its dot products; 0 where there is nothing to ask, or nobody who asks.
    fn score(&mut self, config: ScanConfig, norm: UnitNorm, pair: &Pair<'_>) -> f32 {
        let (rows, columns) = (pair.own.len(), pair.asked_mask.len());
        vectorised(|| self.attend(config, norm, pair.asked_mask));
        let among = Matrix::new(pair.among, columns, columns);
        multiply(Matrix::new(&self.weights, rows, columns), among, &mut self.mixed, columns, false);
        vectorised(|| self.compare(pair.own));
        pool(config.pooling, &self.cosines, pair)
    }

    #[inline(always)]
    fn attend(&mut self, config: ScanConfig, norm: UnitNorm, mask: &[f32]) {
        let (slope, temperature) = (config.negative_slope as f32, config.temperature as f32);
        let columns = mask.len();
        self.denominators.fill(0.0);
        for (weights, products) in
            self.weights.chunks_exact_mut(columns).zip(self.products.chunks_exact(columns))
        {
            for ((weight, product), sum) in weights.iter_mut().zip(products).zip(&mut self.denominators) {
                *weight = leaky(*product, slope);
                *sum += *weight * *weight;
            }
        }
        self.denominators.iter_mut().for_each(|sum| *sum = denominator(norm, *sum));
        for weights in self.weights.chunks_exact_mut(columns) {
            let mut largest = f32::NEG_INFINITY;
            for ((weight, denominator), mask) in weights.iter_mut().zip(&self.denominators).zip(mask) {
                *weight = temperature * (*weight / denominator);
                largest = if *mask == 0.0 { largest } else { largest.max(*weight) };
            }
            for (weight, mask) in weights.iter_mut().zip(mask) {
                *weight = exp(*weight - largest) * mask;
            }
            let scale = 1.0 / dot(weights, mask).max(SMALLEST);
            weights.iter_mut().for_each(|weight| *weight *= scale);
        }
    }

    /// Cosines of the asking fragments and what they attend to.
    #[inline(always)]
    fn compare(&mut self, own: &[f32]) {
        let columns = self.denominators.len();
        let rows = self.weights.chunks_exact(columns).zip(self.mixed.chunks_exact(columns));
        let rows = rows.zip(self.products.chunks_exact(columns)).zip(own);
        let out = self.lengths.iter_mut().zip(&mut self.cosines);
        for ((length, cosine), (((weights, mixed), products), own)) in out.zip(rows) {
            *length = (dot(weights, mixed).max(0.0) + L2_EPSILON as f32).sqrt();
            *cosine = dot(weights, products) / *length / own;
        }
    }

    /// After [`Self::score`]: the gradient of the dot products, and what is added to those of the lengths and of the products
    /// among the asked fragments.
    fn backward(
        &mut self,
        config: ScanConfig,
        norm: UnitNorm,
        pair: &Pair<'_>,
        upstream: f32,
        own: &mut [f32],
        among: &mut [f32],
    ) {
        let (rows, columns) = (pair.own.len(), pair.asked_mask.len());
        pool_backward(config.pooling, &self.cosines, pair, upstream, &mut self.by_cosine);
        for ((own, length), (by_cosine, cosine)) in
            own.iter_mut().zip(pair.own).zip(self.by_cosine.iter().zip(&self.cosines))
        {
            *own -= by_cosine * cosine / length;
        }
        vectorised(|| self.through_attention(config, norm, pair.own));
        // Each row's weights have been scaled by what the squared length takes of the gradient.
        let (scaled, weights) =
            (Matrix::new(&self.mixed, rows, columns), Matrix::new(&self.weights, rows, columns));
        multiply(scaled.transposed(), weights, among, columns, true);
    }

    /// Leaves in `mixed` the attention times the gradient of the squared length.
    #[inline(always)]
    fn through_attention(&mut self, config: ScanConfig, norm: UnitNorm, own: &[f32]) {
        let (slope, temperature) = (config.negative_slope as f32, config.temperature as f32);
        let columns = self.denominators.len();
        self.along.fill(0.0);
        for (row, own) in own.iter().enumerate() {
            let range = row * columns..(row + 1) * columns;
            let (products, weights) = (&self.products[range.clone()], &self.weights[range.clone()]);
            let (mixed, gradient) = (&mut self.mixed[range.clone()], &mut self.gradient[range]);
            let (by_cosine, cosine, length) = (self.by_cosine[row], self.cosines[row], self.lengths[row]);
            let by_product = by_cosine / (length * own);
            let squared = length * length - L2_EPSILON as f32;
            let by_square = if squared > 0.0 { -0.5 * by_cosine * cosine / (length * length) } else { 0.0 };
            for ((gradient, product), mixed) in gradient.iter_mut().zip(products).zip(mixed.iter()) {
                *gradient = by_product * product + 2.0 * by_square * mixed;
            }
            let mean = dot(gradient, weights);
            let places = gradient.iter_mut().zip(weights).zip(products.iter().zip(&self.denominators));
            for (((gradient, weight), (product, denominator)), along) in places.zip(&mut self.along) {
                *gradient = temperature * weight * (*gradient - mean);
                *along += *gradient * (leaky(*product, slope) / denominator);
            }
            mixed.iter_mut().zip(weights).for_each(|(mixed, weight)| *mixed = by_square * weight);
        }
        for (row, own) in own.iter().enumerate() {
            let range = row * columns..(row + 1) * columns;
            let by_product = self.by_cosine[row] / (self.lengths[row] * own);
            let places = self.gradient[range.clone()].iter_mut().zip(&self.products[range.clone()]);
            let columns = self.denominators.iter().zip(&self.along).zip(&self.weights[range]);
            for ((gradient, product), ((denominator, along), weight)) in places.zip(columns) {
                let (factor, all) = backward_factors(norm, *denominator);
                let clipped = (*gradient - factor * along * (leaky(*product, slope) / denominator)) * all;
                let clipped = if *product > 0.0 { clipped } else { slope * clipped };
                *gradient = clipped + by_product * weight;
            }
        }
    }
}

#[inline(always)]
fn leaky(x: f32, slope: f32) -> f32 {
    if x > 0.0 { x } else { slope * x }
}

/// Whether the asked item has any fragment: otherwise nothing is pooled.
fn is_asked(pair: &Pair<'_>) -> bool {
    pair.asked_mask.iter().any(|mask| *mask != 0.0)
}

/// Of a real fragment, how much its cosine weighs in the sum.
fn share(lambda: f64, cosine: f32, mask: f32) -> f64 {
    // A cosine is at most 1, which takes the place of the largest.
    if mask == 0.0 { 0.0 } else { ((f64::from(cosine) - 1.0) * lambda).exp() }
}

fn pool(pooling: ScanPooling, cosines: &[f32], pair: &Pair<'_>) -> f32 {
    let count = pair.asking_mask.iter().filter(|mask| **mask != 0.0).count();
    if count == 0 || !is_asked(pair) {
        return 0.0;
    }
    let cosines = cosines.iter().zip(pair.asking_mask);
    match pooling {
        ScanPooling::Mean => {
            let sum: f32 = cosines.map(|(cosine, mask)| cosine * mask).sum();
            sum / count as f32
        }
        ScanPooling::LogSumExp { lambda } => {
            let sum: f64 = cosines.map(|(cosine, mask)| share(lambda, *cosine, *mask)).sum();
            (sum.ln() / lambda + 1.0) as f32
        }
    }
}

fn pool_backward(pooling: ScanPooling, cosines: &[f32], pair: &Pair<'_>, upstream: f32, out: &mut [f32]) {
    if !is_asked(pair) {
        out.fill(0.0);
        return;
    }
    let fragments = || cosines.iter().zip(pair.asking_mask);
    match pooling {
        ScanPooling::Mean => {
            let count = pair.asking_mask.iter().filter(|mask| **mask != 0.0).count().max(1);
            out.iter_mut()
                .zip(pair.asking_mask)
                .for_each(|(out, mask)| *out = upstream * mask / count as f32);
        }
        ScanPooling::LogSumExp { lambda } => {
            let sum: f64 = fragments().map(|(cosine, mask)| share(lambda, *cosine, *mask)).sum();
            for (out, (cosine, mask)) in out.iter_mut().zip(fragments()) {
                let share = share(lambda, *cosine, *mask);
                *out = if share == 0.0 { 0.0 } else { (f64::from(upstream) * share / sum) as f32 };
            }
        }
    }
}

impl CustomOp3 for StackedAttention {
    fn name(&self) -> &'static str {
        "stacked-attention"
    }

    fn cpu_fwd(
        &self,
        products: &CpuStorage,
        products_layout: &Layout,
        among: &CpuStorage,
        among_layout: &Layout,
        own: &CpuStorage,
        own_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.checked(products_layout.dims(), among_layout.dims(), own_layout.dims())?;
        let (products, among) = (values(products, products_layout)?, values(among, among_layout)?);
        let own = values(own, own_layout)?;
        let Sizes { sentences, images, .. } = self.sizes;
        let mut out = vec![0f32; sentences * images];
        let tasks = out.par_chunks_mut(images).zip(products.par_chunks(self.sizes.sentence())).enumerate();
        tasks.for_each_init(Block::default, |block, (sentence, (out, products))| {
            for (image, out) in out.iter_mut().enumerate() {
                self.take(products, image, block.sized(self.block()));
                *out = block.score(self.config, self.norm, &self.pair(sentence, image, among, own));
            }
        });
        Ok((CpuStorage::F32(out), Shape::from((sentences, images))))
    }

    fn bwd(
        &self,
        products: &Tensor,
        among: &Tensor,
        own: &Tensor,
        _result: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let gradient = gradient.contiguous()?;
        self.checked(products.dims(), among.dims(), own.dims())?;
        let guards = [products, among, own, &gradient].map(Tensor::storage_and_layout);
        let slices = guards
            .iter()
            .map(|(storage, layout)| held_values(storage, layout))
            .collect::<Result<Vec<_>>>()?;
        let &[product_values, among_values, own_values, upstream] = slices.as_slice() else {
            bail!("stacked attention: four tensors");
        };
        let inputs = (product_values, among_values, own_values);
        let together = self.sizes.sentences.div_ceil(PARTS).max(1);
        let mut by_product = vec![0f32; product_values.len()];
        let parts: Vec<Part> = by_product
            .par_chunks_mut(together * self.sizes.sentence())
            .enumerate()
            .map(|(index, gradient)| self.part(index * together, inputs, upstream, gradient))
            .collect();
        let sum = |get: fn(&Part) -> &[f32], like: &Tensor| {
            let mut sum = vec![0f32; like.elem_count()];
            parts.iter().for_each(|part| add_scaled(&mut sum, 1.0, get(part)));
            Tensor::from_vec(sum, like.shape(), like.device())
        };
        Ok((
            Some(Tensor::from_vec(by_product, products.shape(), products.device())?),
            Some(sum(|part| &part.among, among)?),
            Some(sum(|part| &part.own, own)?),
        ))
    }
}
