//! What a sentence backbone offers.

use std::path::PathBuf;

use candle_core::Tensor;

use crate::error::Result;
use crate::fragments::Fragments;

/// A frozen encoder from sentences to features.
pub trait TextBackbone: Send + Sync {
    /// Dimension F of the features.
    fn dimension(&self) -> usize;

    /// SHA-256 in hex over the bytes of all [`files`](Self::files) and a version of the algorithm: features of
    /// two backbones can be compared only if this is the same.
    fn fingerprint(&self) -> &str;

    /// Pooled features, as the model defines them.
    ///
    /// # Shapes
    /// B sentences to `[B, F]` f32. An empty slice gives `[0, F]`.
    ///
    /// # Errors
    /// [`crate::EncoderError::Tokenise`] from the tokenizer, [`crate::EncoderError::Tensor`] from candle.
    fn encode(&self, sentences: &[&str]) -> Result<Tensor>;

    /// Features of the words (tokens) as fragments.
    ///
    /// # Shapes
    /// `[B, T, F]`, T the longest sentence of the batch and at least 1; the mask is 0 where a sentence is shorter.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    fn fragments(&self, sentences: &[&str]) -> Result<Fragments>;

    /// Every file that makes up the backbone, for copying into a bundle. The first lies in the backbone's folder itself, the
    /// others there or below.
    fn files(&self) -> &[PathBuf];
}
