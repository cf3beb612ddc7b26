//! Which sentence belongs to which image.

use crate::{Error, Result};

/// The true pairs of a test split: each sentence has one image, each image one sentence or more.
///
/// # Example
/// ```
/// // Image 0 has sentences 0 and 1, image 1 has sentence 2.
/// let relevance = aeir_retrieve::Relevance::from_owners(2, &[0, 0, 1])?;
/// assert_eq!(relevance.sentences_of(0), &[0, 1]);
/// assert_eq!(relevance.owner_of(2), Some(1));
/// # Ok::<(), aeir_retrieve::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relevance {
    owners: Vec<usize>,
    /// Sentence positions grouped by image; image `i` has `grouped[starts[i]..starts[i + 1]]`.
    grouped: Vec<usize>,
    starts: Vec<usize>,
}

/// A run of images with its sentences.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fold {
    /// Its pairs, renumbered from 0.
    pub relevance: Relevance,
    /// The position of its first image in the whole.
    pub first: usize,
    /// The positions of its sentences in the whole.
    pub sentences: Vec<usize>,
}

impl Relevance {
    /// From the image each sentence belongs to: `owners[j]` is the image of sentence `j`, in any order.
    ///
    /// # Errors
    /// [`Error::Empty`] without images, [`Error::Owner`] where a sentence names an image that does not exist,
    /// [`Error::ImageWithoutSentence`] where an image has no sentence.
    pub fn from_owners(n_images: usize, owners: &[usize]) -> Result<Self> {
        if n_images == 0 {
            return Err(Error::Empty { what: "set of images" });
        }
        let mut counts = vec![0_usize; n_images];
        for (sentence, &owner) in owners.iter().enumerate() {
            let count =
                counts.get_mut(owner).ok_or(Error::Owner { sentence, got: owner, images: n_images })?;
            *count += 1;
        }
        if let Some(image) = counts.iter().position(|count| *count == 0) {
            return Err(Error::ImageWithoutSentence { image });
        }
        let mut starts = Vec::with_capacity(n_images + 1);
        let mut next = 0;
        starts.push(0);
        for count in counts {
            next += count;
            starts.push(next);
        }
        let mut grouped: Vec<usize> = (0..owners.len()).collect();
        grouped.sort_by_key(|&sentence| owners.get(sentence).copied());
        Ok(Self { owners: owners.to_vec(), grouped, starts })
    }

    /// The usual case of benchmark splits: `per_image` sentences an image, side by side (5 in COCO, Flickr30K).
    ///
    /// # Errors
    /// As [`Relevance::from_owners`]; `per_image` 0 leaves every image without a sentence.
    pub fn consecutive(n_images: usize, per_image: usize) -> Result<Self> {
        let owners: Vec<usize> =
            (0..n_images).flat_map(|image| std::iter::repeat_n(image, per_image)).collect();
        Self::from_owners(n_images, &owners)
    }

    /// How many images.
    #[must_use]
    pub fn n_images(&self) -> usize {
        self.starts.len().saturating_sub(1)
    }

    /// How many sentences.
    #[must_use]
    pub fn n_sentences(&self) -> usize {
        self.owners.len()
    }

    /// The image of each sentence.
    #[must_use]
    pub fn owners(&self) -> &[usize] {
        &self.owners
    }

    /// The image of sentence `j`, or `None` past the last.
    #[must_use]
    pub fn owner_of(&self, sentence: usize) -> Option<usize> {
        self.owners.get(sentence).copied()
    }

    /// The sentences of image `i`, ascending; empty past the last image.
    #[must_use]
    pub fn sentences_of(&self, image: usize) -> &[usize] {
        match (self.starts.get(image), self.starts.get(image + 1)) {
            (Some(&start), Some(&end)) => self.grouped.get(start..end).unwrap_or_default(),
            _ => &[],
        }
    }

    /// Equal runs of images, in order, each with its own sentences alone. COCO's "1K" figures are the mean over five folds of
    /// its 5,000 test images.
    ///
    /// # Errors
    /// [`Error::Setting`] where `folds` is 0 or does not divide the number of images.
    pub fn folds(&self, folds: usize) -> Result<Vec<Fold>> {
        let n_images = self.n_images();
        if folds == 0 || !n_images.is_multiple_of(folds) {
            return Err(Error::Setting {
                name: "folds",
                expected: format!("a divisor of the {n_images} images"),
                got: folds.to_string(),
            });
        }
        let size = n_images / folds;
        (0..folds)
            .map(|fold| {
                let first = fold * size;
                let (relevance, sentences) = self.fold(first, size)?;
                Ok(Fold { relevance, first, sentences })
            })
            .collect()
    }

    /// The pairs of the images `first..first + count`, renumbered from 0, and their sentences' old positions.
    pub(crate) fn fold(&self, first: usize, count: usize) -> Result<(Self, Vec<usize>)> {
        let inside = |owner: &usize| (first..first + count).contains(owner);
        let sentences: Vec<usize> =
            self.owners.iter().enumerate().filter(|(_, owner)| inside(owner)).map(|(j, _)| j).collect();
        let owners: Vec<usize> =
            self.owners.iter().filter(|o| inside(o)).map(|owner| owner - first).collect();
        Ok((Self::from_owners(count, &owners)?, sentences))
    }

    /// Refuses a number of images or sentences that differs from this split's.
    pub(crate) fn check(&self, images: usize, sentences: usize) -> Result<()> {
        if images != self.n_images() {
            return Err(Error::Shape { what: "images (rows)", expected: self.n_images(), got: images });
        }
        if sentences != self.n_sentences() {
            return Err(Error::Shape {
                what: "sentences (columns)",
                expected: self.n_sentences(),
                got: sentences,
            });
        }
        Ok(())
    }
}
