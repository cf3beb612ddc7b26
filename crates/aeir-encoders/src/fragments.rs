//! Fragments (regions of an image, words of a sentence) and their mask.

use candle_core::{D, DType, Tensor};

use crate::error::{EncoderError, Result};
use crate::weighted_sum::weighted_sum;

/// A batch of fragment features that never travels without its mask.
///
/// # Shapes
/// `features [B, T, D]`, `mask [B, T]` f32, 1 for a real fragment and 0 for padding.
#[derive(Debug, Clone)]
pub struct Fragments {
    features: Tensor,
    mask: Tensor,
}

impl Fragments {
    /// Puts features and mask together.
    ///
    /// # Shapes
    /// `features [B, T, D]`; `mask [B, T]` of any number type, 1 real and 0 padding; stored as f32.
    ///
    /// # Errors
    /// [`EncoderError::Shape`] if the shapes do not fit each other.
    pub fn new(features: Tensor, mask: Tensor) -> Result<Self> {
        let &[batch, count, _] = features.dims() else {
            return Err(EncoderError::Shape {
                what: "fragment features",
                expected: "[batch, fragments, dimension]".to_owned(),
                got: features.dims().to_vec(),
            });
        };
        if mask.dims() != [batch, count] {
            return Err(EncoderError::Shape {
                what: "fragment mask",
                expected: format!("[{batch}, {count}]"),
                got: mask.dims().to_vec(),
            });
        }
        let mask = mask.to_dtype(DType::F32)?;
        Ok(Self { features, mask })
    }

    /// Fragments without padding: a mask of ones.
    ///
    /// # Errors
    /// [`EncoderError::Shape`] if `features` is not `[B, T, D]`.
    pub fn unpadded(features: Tensor) -> Result<Self> {
        let mask = match features.dims() {
            &[batch, count, _] => Tensor::ones((batch, count), DType::F32, features.device())?,
            // `new` says what is wrong with the shape.
            _ => Tensor::ones((0, 0), DType::F32, features.device())?,
        };
        Self::new(features, mask)
    }

    /// The features, `[B, T, D]`. Rows of padding hold any finite values.
    #[must_use]
    pub fn features(&self) -> &Tensor {
        &self.features
    }

    /// The mask, `[B, T]` f32, 1 real and 0 padding.
    #[must_use]
    pub fn mask(&self) -> &Tensor {
        &self.mask
    }

    /// The same mask over other features, such as the projected ones.
    ///
    /// # Errors
    /// [`EncoderError::Shape`] if `features` is not `[B, T, _]` with the batch and fragment count of the mask.
    pub fn with_features(&self, features: Tensor) -> Result<Self> {
        Self::new(features, self.mask.clone())
    }

    /// The same values without their graph.
    #[must_use]
    pub fn detach(&self) -> Self {
        Self { features: self.features.detach(), mask: self.mask.clone() }
    }

    /// Mean over the real fragments; padding is never pooled.
    ///
    /// Equation: `sum_t mask_t x_t / max(sum_t mask_t, 1)`. A row without any real fragment gives zeros. Values
    /// under the mask do not count whatever they are, as long as they are finite.
    ///
    /// # Shapes
    /// `[B, D]`; gradients reach the real fragments only.
    ///
    /// # Errors
    /// [`EncoderError::Tensor`] from candle.
    pub fn mean_pooled(&self) -> Result<Tensor> {
        let weights = self.mask.to_dtype(self.features.dtype())?;
        let counts = weights.sum_keepdim(1)?.maximum(1.0)?;
        Ok(weighted_sum(&self.features, &weights)?.broadcast_div(&counts)?)
    }

    /// Whether any fragment of the batch is padding.
    ///
    /// # Errors
    /// [`EncoderError::Tensor`] from candle.
    pub fn has_padding(&self) -> Result<bool> {
        Ok(self.mask.flatten_all()?.to_vec1::<f32>()?.contains(&0.0))
    }

    /// Mean over all positions, padding included: what the released procedure pools.
    ///
    /// # Shapes
    /// `[B, D]`.
    ///
    /// # Errors
    /// [`EncoderError::Tensor`] from candle.
    pub fn padded_mean(&self) -> Result<Tensor> {
        let (batch, count, _) = self.features.dims3()?;
        let (dtype, device) = (self.features.dtype(), self.features.device());
        let weights = (Tensor::ones((batch, count), dtype, device)? / count.max(1) as f64)?;
        Ok(weighted_sum(&self.features, &weights)?)
    }

    /// Number of real fragments a row, `[B]` f32.
    ///
    /// # Errors
    /// [`EncoderError::Tensor`] from candle.
    pub fn counts(&self) -> Result<Tensor> {
        Ok(self.mask.sum(D::Minus1)?)
    }
}
