//! Inverted dropout with a mask that can be seeded.

use candle_core::{Device, Tensor};
use rand_chacha::rand_core::Rng;

use crate::error::{EncoderError, Result};
use crate::mode::Mode;

/// Sets each value to zero with `probability` and scales the rest by `1 / (1 - probability)`.
///
/// In evaluation, or with `probability` 0, the input comes back as it is and the generator is not advanced.
/// The mask is drawn on the CPU, one 32-bit word a value in row-major order, so the same generator state gives
/// the same mask on every device.
///
/// # Shapes
/// Any; the output has the shape of `x`. `x` must be a float tensor.
///
/// # Errors
/// [`EncoderError::Argument`] if `probability` is not in `[0, 1)`; [`EncoderError::Tensor`] from candle.
///
/// # Example
/// ```
/// use aeir_encoders::{Mode, dropout};
/// use candle_core::{DType, Device, Tensor};
/// use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};
///
/// let x = Tensor::ones((4, 8), DType::F32, &Device::Cpu)?;
/// let mut generator = ChaCha8Rng::seed_from_u64(7);
/// let y = dropout(&x, 0.5, &mut Mode::Training(&mut generator))?;
/// assert_eq!(y.dims(), &[4, 8]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn dropout(x: &Tensor, probability: f32, mode: &mut Mode<'_>) -> Result<Tensor> {
    check_probability(probability)?;
    let Mode::Training(generator) = mode else {
        return Ok(x.clone());
    };
    if probability == 0.0 {
        return Ok(x.clone());
    }
    // A word below the threshold is a dropped value: exact to 2^-32, and no float rounding decides it.
    let threshold = (f64::from(probability) * 4_294_967_296.0) as u64;
    let scale = 1.0 / (1.0 - probability);
    let mask: Vec<f32> = (0..x.elem_count())
        .map(|_| if u64::from(generator.next_u32()) < threshold { 0.0 } else { scale })
        .collect();
    let mask = Tensor::from_vec(mask, x.shape(), &Device::Cpu)?.to_dtype(x.dtype())?.to_device(x.device())?;
    Ok((x * mask)?)
}

pub(crate) fn check_probability(probability: f32) -> Result<()> {
    if (0.0..1.0).contains(&probability) {
        return Ok(());
    }
    Err(EncoderError::Argument {
        what: "dropout probability",
        expected: "a value in [0, 1)".to_owned(),
        got: probability.to_string(),
    })
}
