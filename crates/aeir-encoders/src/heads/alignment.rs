//! Alignment vectors of image-sentence pairs, composed of candle's operations: any device, any float type.

use candle_core::Tensor;

use super::linear::Linear;
use super::masked;
use crate::error::Result;
use crate::fragments::Fragments;
use crate::normalise::UnitNorm;
use crate::rehearsal::Product;

/// Slope of the leaky ReLU below zero.
pub(super) const SLOPE: f64 = 0.1;
/// What the normalised attention scores are multiplied with before the softmax.
pub(super) const SHARPNESS: f64 = 9.0;

/// The vector of each word: `unit(W (attended - word)^2 + b)`.
///
/// `images [N, R, D]` and `sentences [M, L, D]` with zeros in padded rows, to `[M, N, L, S]`.
pub(super) fn local_vectors(
    images: &Fragments,
    sentences: &Fragments,
    local: &Linear,
    norm: UnitNorm,
) -> Result<Tensor> {
    let (image_count, regions, dimension) = images.features().dims3()?;
    let (sentence_count, words, _) = sentences.features().dims3()?;
    let scores = fragment_scores(images, sentences)?;
    // Each region's scores become a unit vector over the words of a sentence: [M, N, R, L].
    let scores = masked::leaky_relu(&scores, SLOPE)?.permute((0, 2, 3, 1))?.contiguous()?;
    let scores = norm.apply(&scores)?.transpose(2, 3)?.contiguous()?;
    let region_mask = images.mask().to_dtype(scores.dtype())?.reshape((1, image_count, 1, regions))?;
    let attention = masked::softmax(&(scores * SHARPNESS)?, &region_mask)?;
    // One matmul an image for the words of all sentences.
    let attention =
        attention.transpose(0, 1)?.contiguous()?.reshape((image_count, sentence_count * words, regions))?;
    let attended = norm.apply(&attention.product(&images.features().contiguous()?)?)?;
    let flat_words = sentences.features().reshape((1, sentence_count * words, dimension))?;
    let squares = attended.broadcast_sub(&flat_words)?.sqr()?;
    let vectors = norm.apply(&local.forward(&squares)?)?;
    let vectors = vectors.reshape((image_count, sentence_count, words, ()))?;
    Ok(vectors.transpose(0, 1)?.contiguous()?)
}

/// The vector of the self-attended pair: `image [N, D]` and `sentence [M, D]` to `[M, N, S]`.
pub(super) fn global_vectors(
    image: &Tensor,
    sentence: &Tensor,
    global: &Linear,
    norm: UnitNorm,
) -> Result<Tensor> {
    let squares = image.unsqueeze(0)?.broadcast_sub(&sentence.unsqueeze(1)?)?.sqr()?;
    norm.apply(&global.forward(&squares)?)
}

/// Dot products of every word with every region, `[M, L, N, R]`.
pub(super) fn fragment_scores(images: &Fragments, sentences: &Fragments) -> Result<Tensor> {
    let (image_count, regions, dimension) = images.features().dims3()?;
    let (sentence_count, words, _) = sentences.features().dims3()?;
    let flat_images = images.features().reshape((image_count * regions, dimension))?;
    let flat_words = sentences.features().reshape((sentence_count * words, dimension))?;
    let scores = flat_words.product(&flat_images.t()?.contiguous()?)?;
    Ok(scores.reshape((sentence_count, words, image_count, regions))?)
}
