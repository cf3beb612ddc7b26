//! What the checks compute with: numbers from a seed that are exact in every type.

use candle_core::{Device, Tensor};
use half::bf16;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// Draws numbers between -1 and 1 that bfloat16 holds exactly: a check in either type starts from the same.
pub(super) struct Numbers(ChaCha8Rng);

impl Numbers {
    pub(super) fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    pub(super) fn values(&mut self, count: usize) -> Vec<f32> {
        let mut draw = || bf16::from_f32(self.0.next_u32() as f32 / 2_147_483_648.0 - 1.0).to_f32();
        (0..count).map(|_| draw()).collect()
    }

    /// A whole number below `end`.
    pub(super) fn below(&mut self, end: u32) -> u32 {
        self.0.next_u32() % end.max(1)
    }

    /// In f32 on the CPU.
    pub(super) fn tensor(&mut self, shape: &[usize]) -> candle_core::Result<Tensor> {
        Tensor::from_vec(self.values(shape.iter().product()), shape, &Device::Cpu)
    }
}

/// The nearest values that bfloat16 holds.
pub(super) fn rounded(x: &Tensor) -> candle_core::Result<Tensor> {
    x.to_dtype(candle_core::DType::BF16)?.to_dtype(candle_core::DType::F32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_exact_in_bfloat16_and_spread() {
        let x = Numbers::new(1).tensor(&[100]).unwrap();
        let (values, again) = (x.to_vec1::<f32>().unwrap(), rounded(&x).unwrap().to_vec1::<f32>().unwrap());
        assert_eq!(values, again);
        assert!(values.iter().any(|value| *value > 0.5) && values.iter().any(|value| *value < -0.5));
    }
}
