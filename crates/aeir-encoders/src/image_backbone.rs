//! What an image backbone offers.

use std::path::PathBuf;

use candle_core::Tensor;
use image::DynamicImage;

use crate::error::Result;
use crate::fragments::Fragments;
use crate::preprocess::{ImagePreprocessor, PreparedImage};

/// A frozen network from images to features.
///
/// Images come in decoded and oriented (Exif applied). A frozen backbone keeps no gradient graph.
pub trait ImageBackbone: Send + Sync {
    /// Dimension F of the features.
    fn dimension(&self) -> usize;

    /// How images become the network's input.
    fn preprocessor(&self) -> &ImagePreprocessor;

    /// SHA-256 in hex over the bytes of all [`files`](Self::files) and a version of the algorithm: features of
    /// two backbones can be compared only if this is the same.
    fn fingerprint(&self) -> &str;

    /// Pooled features, not normalised.
    ///
    /// # Shapes
    /// B images to `[B, F]` f32. An empty slice gives `[0, F]`.
    ///
    /// # Errors
    /// [`crate::EncoderError::ImageSize`] for an image without pixels, [`crate::EncoderError::Tensor`] from candle.
    fn encode(&self, images: &[DynamicImage]) -> Result<Tensor> {
        self.encode_prepared(&self.preprocessor().prepare_all(images)?)
    }

    /// [`encode`](Self::encode) of images that [`preprocessor`](Self::preprocessor) has prepared: the same bits.
    ///
    /// # Errors
    /// [`crate::EncoderError::ImageSize`] for an image that was prepared for another size, [`crate::EncoderError::Tensor`] from
    /// candle.
    fn encode_prepared(&self, images: &[PreparedImage]) -> Result<Tensor>;

    /// Features of the grid cells (or patches), row by row, as fragments.
    ///
    /// # Shapes
    /// `[B, T, F]` with a mask of ones.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    fn fragments(&self, images: &[DynamicImage]) -> Result<Fragments> {
        self.fragments_prepared(&self.preprocessor().prepare_all(images)?)
    }

    /// [`fragments`](Self::fragments) of images that are prepared.
    ///
    /// # Errors
    /// As [`encode_prepared`](Self::encode_prepared).
    fn fragments_prepared(&self, images: &[PreparedImage]) -> Result<Fragments>;

    /// Every file that makes up the backbone, for copying into a bundle. The first lies in the backbone's folder itself, the
    /// others there or below.
    fn files(&self) -> &[PathBuf];
}
