//! First values of parameters, from a seed and a name.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use sha2::{Digest, Sha256};

/// `count` values of a normal distribution around zero. They depend on the seed and the name alone, not on the order in which
/// parameters are made.
pub(crate) fn normal(seed: u64, name: &str, count: usize, deviation: f64) -> Vec<f32> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let digest = Sha256::digest(name.as_bytes());
    random.set_stream(digest.iter().take(8).fold(0, |stream, byte| stream << 8 | u64::from(*byte)));
    let mut uniform = || (random.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
    let mut draw = || {
        let (radius, angle) = (-2.0 * (1.0 - uniform()).ln(), std::f64::consts::TAU * uniform());
        (deviation * radius.sqrt() * angle.cos()) as f32
    };
    (0..count).map(|_| draw()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_depend_on_seed_and_name_and_have_the_asked_spread() {
        let values = normal(1, "a", 20_000, 0.5);
        assert_eq!(values, normal(1, "a", 20_000, 0.5));
        assert_ne!(values, normal(2, "a", 20_000, 0.5));
        assert_ne!(values, normal(1, "b", 20_000, 0.5));
        let mean = values.iter().sum::<f32>() / values.len() as f32;
        let spread = values.iter().map(|value| (value - mean).powi(2)).sum::<f32>() / values.len() as f32;
        assert!(mean.abs() < 0.02 && (spread - 0.25).abs() < 0.01, "{mean} {spread}");
    }
}
