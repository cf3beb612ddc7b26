//! Inverted dropout with a mask that can be seeded.

use candle_core::{CpuStorage, CustomOp1, Device, Layout, Shape, Tensor, bail};
use rand_chacha::rand_core::Rng;
use rayon::prelude::*;

use crate::error::{EncoderError, Result};
use crate::mode::Mode;
use crate::product::{held_values, values};
use crate::rehearsal::is_fused;

/// Values that one task draws: a multiple of a block of the generator.
const CHUNK: usize = 1 << 14;

/// Sets each value to zero with `probability` and scales the rest by `1 / (1 - probability)`.
///
/// In evaluation, or with `probability` 0, the input comes back as it is and the generator is not advanced.
/// The mask takes one 32-bit word of the generator a value, in row-major order, so the same generator state gives the same mask on
/// every device. It is drawn on the CPU, but for f32 on an NVIDIA card, which draws it itself.
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
    #[cfg(feature = "cuda")]
    if let Mode::Training(generator) = mode
        && probability > 0.0
        && aeir_kernels::takes(&[x])
        && let Ok(first_word) = u64::try_from(generator.get_word_pos())
    {
        let drawn = aeir_kernels::Drawn {
            first_word,
            threshold: threshold(probability),
            scale: scale(probability),
            generator: words_of(generator),
        };
        generator.set_word_pos(u128::from(first_word).wrapping_add(x.elem_count() as u128));
        return Ok(aeir_kernels::dropout(x, drawn)?);
    }
    let Some(mask) = mask(x.elem_count(), probability, mode) else { return Ok(x.clone()) };
    if is_fused(&[x]) {
        return Ok(x.contiguous()?.apply_op1(Scaled(mask))?);
    }
    // A byte a value goes to the device, and nothing comes back.
    let kept: Vec<u8> = mask.par_iter().map(|value| u8::from(*value != 0.0)).collect();
    let kept = Tensor::from_vec(kept, x.shape(), &Device::Cpu)?.to_device(x.device())?;
    Ok((x * (kept.to_dtype(x.dtype())? * f64::from(scale(probability)))?)?)
}

/// A word below it is a dropped value: exact to 2^-32, and no float rounding decides it.
fn threshold(probability: f32) -> u64 {
    (f64::from(probability) * 4_294_967_296.0) as u64
}

/// What a value that stays is multiplied by.
fn scale(probability: f32) -> f32 {
    1.0 / (1.0 - probability)
}

/// The generator's key and stream.
#[cfg(feature = "cuda")]
fn words_of(generator: &rand_chacha::ChaCha8Rng) -> [u32; 10] {
    let (seed, stream) = (generator.get_seed(), generator.get_stream().to_le_bytes());
    let mut words = [0; 10];
    let parts = seed.as_chunks::<4>().0.iter().chain(stream.as_chunks::<4>().0);
    words.iter_mut().zip(parts).for_each(|(word, bytes)| *word = u32::from_le_bytes(*bytes));
    words
}

/// What each of `count` values is multiplied by; none where nothing is dropped. Every task draws at its own place of the
/// generator's stream, so that the mask is the one that a single task would draw.
pub(crate) fn mask(count: usize, probability: f32, mode: &mut Mode<'_>) -> Option<Vec<f32>> {
    let Mode::Training(generator) = mode else { return None };
    if probability == 0.0 {
        return None;
    }
    let (threshold, scale) = (threshold(probability), scale(probability));
    let start = generator.get_word_pos();
    let mut mask = vec![0f32; count];
    mask.par_chunks_mut(CHUNK).enumerate().for_each(|(index, mask)| {
        let mut words = generator.clone();
        words.set_word_pos(start.wrapping_add((index * CHUNK) as u128));
        for value in mask {
            *value = if u64::from(words.next_u32()) < threshold { 0.0 } else { scale };
        }
    });
    generator.set_word_pos(start.wrapping_add(count as u128));
    Some(mask)
}

/// A product with constants, all threads at work; candle would keep a tensor of them and multiply on one.
struct Scaled(Vec<f32>);

impl Scaled {
    fn apply(&self, x: &[f32]) -> candle_core::Result<Vec<f32>> {
        if x.len() != self.0.len() {
            bail!("dropout: {} values for a mask of {}", x.len(), self.0.len());
        }
        let mut out = vec![0f32; x.len()];
        let parts = x.par_chunks(CHUNK).zip(self.0.par_chunks(CHUNK));
        out.par_chunks_mut(CHUNK).zip(parts).for_each(|(out, (x, mask))| {
            out.iter_mut().zip(x.iter().zip(mask)).for_each(|(out, (x, mask))| *out = x * mask);
        });
        Ok(out)
    }
}

impl CustomOp1 for Scaled {
    fn name(&self) -> &'static str {
        "dropout"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(self.apply(values(x, layout)?)?), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _result: &Tensor, gradient: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let gradient = gradient.contiguous()?;
        let (storage, layout) = gradient.storage_and_layout();
        Ok(Some(Tensor::from_vec(self.apply(held_values(&storage, layout)?)?, x.shape(), x.device())?))
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::DType;
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::SeedableRng;

    #[test]
    fn the_mask_is_that_of_one_stream_and_the_generator_goes_on_behind_it() {
        let mut generator = ChaCha8Rng::seed_from_u64(3);
        // Not at the beginning of a block.
        generator.next_u32();
        let mut one_by_one = generator.clone();
        let count = 2 * CHUNK + 77;
        let mask = mask(count, 0.4, &mut Mode::Training(&mut generator)).unwrap();
        let threshold = (f64::from(0.4f32) * 4_294_967_296.0) as u64;
        for value in mask {
            assert_eq!(value == 0.0, u64::from(one_by_one.next_u32()) < threshold);
        }
        assert_eq!(generator.next_u32(), one_by_one.next_u32());
    }

    #[test]
    fn the_gradient_is_the_mask() {
        let x =
            candle_core::Var::from_tensor(&Tensor::ones((3, 50), DType::F32, &Device::Cpu).unwrap()).unwrap();
        let mut generator = ChaCha8Rng::seed_from_u64(5);
        let y = dropout(&x, 0.3, &mut Mode::Training(&mut generator)).unwrap();
        let gradients = y.sum_all().unwrap().backward().unwrap();
        let flat = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(flat(gradients.get(&x).unwrap()), flat(&y));
        assert!(flat(&y).contains(&0.0) && flat(&y).iter().any(|value| *value > 1.0));
    }
}
