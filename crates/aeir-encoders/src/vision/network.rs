//! What all image networks have in common.

use candle_core::Tensor;

use crate::config::Config;
use crate::error::{EncoderError, Result};
use crate::mode::Mode;
use crate::preprocess::Size;

/// A network from pixel values to features, frozen or trained: that depends on the tensors it was built of.
///
/// The pass has two parts. [`states`](Self::states) runs the network; the other two read from its result.
pub(crate) trait ImageNetwork: Send + Sync {
    /// Dimension F of pooled features and of fragments.
    fn dimension(&self) -> usize;

    /// Values of the largest tensor that one image of this size makes, for bounding batches.
    fn largest_activation(&self, size: Size) -> usize;

    /// Whether the network takes images of this size; what it would take, if not.
    fn takes(&self, _size: Size) -> std::result::Result<(), String> {
        Ok(())
    }

    /// The last hidden states of `pixel_values [B, 3, H, W]`: tokens `[B, N, C]`, or channels-last cells `[B, h, w, C]`.
    fn states(&self, pixel_values: &Tensor, mode: &mut Mode<'_>) -> Result<Tensor>;

    /// One vector an image, `[B, F]`.
    fn pooled(&self, states: &Tensor, mode: &mut Mode<'_>) -> Result<Tensor>;

    /// Patches or grid cells row by row, `[B, T, F]`.
    fn fragments(&self, states: &Tensor) -> Result<Tensor>;
}

/// `[B, 3, H, W]` to `[B, H, W, 3]`.
pub(crate) fn channels_last(pixel_values: &Tensor) -> Result<Tensor> {
    match pixel_values.dims() {
        [_, 3, height, width] if *height > 0 && *width > 0 => {
            Ok(pixel_values.permute((0, 2, 3, 1))?.contiguous()?)
        }
        got => Err(EncoderError::Shape {
            what: "pixel values",
            expected: "[batch, 3, height, width]".to_owned(),
            got: got.to_vec(),
        }),
    }
}

/// Pictures are made of red, green and blue.
pub(crate) fn check_colours(config: &Config<'_>) -> Result<()> {
    match config.size("num_channels", 3)? {
        3 => Ok(()),
        _ => Err(config.wrong("num_channels", "3")),
    }
}

/// Channels and depth of each stage of a convolution network.
pub(crate) fn stages(
    config: &Config<'_>,
    sizes: &[usize],
    depths: &[usize],
) -> Result<(Vec<usize>, Vec<usize>)> {
    let (sizes, depths) = (config.sizes("hidden_sizes", sizes)?, config.sizes("depths", depths)?);
    if sizes.len() != depths.len() {
        let expected = format!("{} numbers, as many as `hidden_sizes` has", sizes.len());
        return Err(config.wrong("depths", expected));
    }
    Ok((sizes, depths))
}
