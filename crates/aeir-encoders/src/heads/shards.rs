//! Scores of whole test sets in bounded memory.

use candle_core::{DType, Device, Tensor};

use super::{Prepared, SimilarityHead};
use crate::error::{EncoderError, Result};
use crate::fragments::Fragments;
use crate::mode::Mode;

/// How many images and sentences are scored at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShardSize {
    /// Images at once.
    pub images: usize,
    /// Sentences at once.
    pub sentences: usize,
}

impl Default for ShardSize {
    /// 64 images by 64 sentences: some 70 MB of alignment vectors with the published sizes.
    fn default() -> Self {
        Self { images: 64, sentences: 64 }
    }
}

impl SimilarityHead {
    /// Scores of all images against all sentences in evaluation mode, a shard after the other, without a graph for a backward
    /// pass.
    ///
    /// A score does not depend on the shards but for rounding. `progress` hears of the pairs that are done and of all.
    ///
    /// # Shapes
    /// `images [N, R, D]`, `sentences [M, L, D]`; the result is row-major, `[N, M]`.
    ///
    /// # Errors
    /// [`EncoderError::Argument`] for an empty shard; otherwise as [`Self::scores`].
    pub fn scores_in_shards(
        &self,
        images: &Fragments,
        sentences: &Fragments,
        size: ShardSize,
        mut progress: impl FnMut(usize, usize),
    ) -> Result<Vec<f32>> {
        if size.images == 0 || size.sentences == 0 {
            return Err(EncoderError::Argument {
                what: "shard size",
                expected: "at least one image and one sentence".to_owned(),
                got: format!("{} x {}", size.images, size.sentences),
            });
        }
        let detached = self.detached();
        // Self-attention is an item's own affair: done once, not once a shard.
        let images =
            shards(images, size.images, |part| detached.prepare_images(part, &mut Mode::Evaluation))?;
        let sentences = shards(sentences, size.sentences, |part| {
            detached.prepare_sentences(part, &mut Mode::Evaluation)
        })?;
        let columns: usize = sentences.iter().map(Prepared::len).sum();
        let rows: usize = images.iter().map(Prepared::len).sum();
        let mut all = vec![0f32; rows * columns];
        let (mut row, mut done) = (0, 0);
        for image_shard in &images {
            let mut column = 0;
            for sentence_shard in &sentences {
                let width = sentence_shard.len();
                let scores = detached.scores_of(image_shard, sentence_shard, false)?;
                let scores: Vec<f32> =
                    scores.to_dtype(DType::F32)?.to_device(&Device::Cpu)?.flatten_all()?.to_vec1()?;
                let rows = all.chunks_mut(columns).skip(row);
                for (scores, row) in scores.chunks(width).zip(rows) {
                    for (target, score) in row.iter_mut().skip(column).zip(scores) {
                        *target = *score;
                    }
                }
                column += width;
                done += scores.len();
                progress(done, all.len());
            }
            row += image_shard.len();
        }
        Ok(all)
    }
}

impl Prepared {
    fn len(&self) -> usize {
        self.fragments.mask().dims().first().copied().unwrap_or(0)
    }
}

/// Cuts a batch and prepares each part.
fn shards(
    fragments: &Fragments,
    size: usize,
    prepare: impl Fn(&Fragments) -> Result<Prepared>,
) -> Result<Vec<Prepared>> {
    let (features, mask) = (fragments.features().detach(), fragments.mask().detach());
    let total = mask.dims().first().copied().unwrap_or(0);
    (0..total)
        .step_by(size)
        .map(|start| {
            let count = size.min(total - start);
            let part =
                |tensor: &Tensor| -> Result<Tensor> { Ok(tensor.narrow(0, start, count)?.contiguous()?) };
            prepare(&Fragments::new(part(&features)?, part(&mask)?)?)
        })
        .collect()
}
