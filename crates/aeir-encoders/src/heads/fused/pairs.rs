//! Which image-sentence pairs there are, and where the rows of each lie.

use std::ops::Range;

use crate::normalise::UnitNorm;

/// The real words of one sentence among those of all sentences.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sentence {
    /// First row in the packed words.
    pub(super) first: usize,
    /// How many words.
    pub(super) words: usize,
}

/// Sizes and masks of a batch of pairs.
#[derive(Debug)]
pub(super) struct Pairs {
    pub(super) images: usize,
    pub(super) regions: usize,
    pub(super) dimension: usize,
    pub(super) similarity: usize,
    pub(super) norm: UnitNorm,
    /// `[N, R]`, 1 real and 0 padding.
    region_mask: Vec<f32>,
    padded_regions: bool,
    sentences: Vec<Sentence>,
    /// For each packed word its row among the padded ones.
    sources: Vec<usize>,
}

impl Pairs {
    /// `region_mask [N, R]`, `word_mask [M, L]`, both row-major.
    pub(super) fn new(
        region_mask: Vec<f32>,
        word_mask: &[f32],
        (regions, length): (usize, usize),
        (dimension, similarity): (usize, usize),
        norm: UnitNorm,
    ) -> Self {
        let mut sources = Vec::new();
        let mut sentences = Vec::new();
        for (sentence, mask) in word_mask.chunks_exact(length.max(1)).enumerate() {
            let first = sources.len();
            let real = mask.iter().enumerate().filter(|(_, mask)| **mask != 0.0);
            sources.extend(real.map(|(word, _)| sentence * length + word));
            sentences.push(Sentence { first, words: sources.len() - first });
        }
        Self {
            images: region_mask.len() / regions.max(1),
            regions,
            dimension,
            similarity,
            norm,
            padded_regions: region_mask.contains(&0.0),
            region_mask,
            sentences,
            sources,
        }
    }

    pub(super) fn sentences(&self) -> &[Sentence] {
        &self.sentences
    }

    /// Real words of all sentences together.
    pub(super) fn words(&self) -> usize {
        self.sources.len()
    }

    /// The mask of some images' regions, if any region of the batch is padding.
    pub(super) fn region_mask(&self, images: Range<usize>) -> Option<&[f32]> {
        let range = images.start * self.regions..images.end * self.regions;
        self.region_mask.get(range).filter(|_| self.padded_regions)
    }

    /// The real rows of `padded [M, L, D]`, one after the other.
    pub(super) fn pack(&self, padded: &[f32]) -> Vec<f32> {
        let mut packed = Vec::with_capacity(self.sources.len() * self.dimension);
        for source in &self.sources {
            packed.extend_from_slice(&padded[source * self.dimension..(source + 1) * self.dimension]);
        }
        packed
    }

    /// The reverse of [`Self::pack`], with zeros in the padding of `count` rows.
    pub(super) fn unpack(&self, packed: &[f32], count: usize) -> Vec<f32> {
        let mut padded = vec![0.0; count * self.dimension];
        for (source, row) in self.sources.iter().zip(packed.chunks_exact(self.dimension)) {
            padded[source * self.dimension..(source + 1) * self.dimension].copy_from_slice(row);
        }
        padded
    }

    /// Sentences that are worked on together: up to `words` words, at least one sentence. Sentences without words are in none.
    pub(super) fn blocks(&self, which: impl Iterator<Item = usize>, words: usize) -> Vec<Vec<usize>> {
        let mut blocks: Vec<Vec<usize>> = Vec::new();
        let mut room = 0;
        for sentence in which {
            let count = self.sentences[sentence].words;
            if count == 0 {
                continue;
            }
            match blocks.last_mut().filter(|_| count <= room) {
                Some(block) => {
                    block.push(sentence);
                    room -= count;
                }
                None => {
                    blocks.push(vec![sentence]);
                    room = words.saturating_sub(count);
                }
            }
        }
        blocks
    }

    /// Where the local rows of a pair begin, in rows: sentence by sentence, image by image, word by word.
    pub(super) fn row(&self, sentence: usize, image: usize) -> usize {
        let Sentence { first, words } = self.sentences[sentence];
        self.images * first + image * words
    }

    /// The rows of a pair in a buffer of `width` numbers a row.
    pub(super) fn rows(&self, sentence: usize, image: usize, width: usize) -> Range<usize> {
        let start = self.row(sentence, image) * width;
        start..start + self.sentences[sentence].words * width
    }
}
