//! Loops over rows of f32 with the widest instructions of the machine, and functions that vectorise in them.

use pulp::Arch;

/// Numbers that are summed side by side, in an order that is the same on every machine.
const LANES: usize = 16;

/// Runs loops with the widest instructions of this machine. What is called inside must be `#[inline(always)]`.
pub(crate) fn vectorised<R>(body: impl FnOnce() -> R) -> R {
    Arch::new().dispatch(body)
}

/// The sum of `value(a, b)` over two rows.
#[inline(always)]
pub(crate) fn sum_of(a: &[f32], b: &[f32], value: impl Fn(f32, f32) -> f32) -> f32 {
    let (a, b) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    let mut sums = [0.0; LANES];
    for (a, b) in a.0.iter().zip(b.0) {
        for lane in 0..LANES {
            sums[lane] += value(a[lane], b[lane]);
        }
    }
    let rest: f32 = a.1.iter().zip(b.1).map(|(a, b)| value(*a, *b)).sum();
    fold(sums) + rest
}

/// The sum of a row.
#[inline(always)]
pub(crate) fn sum(row: &[f32]) -> f32 {
    sum_of(row, row, |value, _| value)
}

#[inline(always)]
fn fold(mut sums: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            sums[lane] += sums[lane + width];
        }
        width /= 2;
    }
    sums[0]
}

/// The largest value of a row; minus infinity for none.
#[inline(always)]
pub(crate) fn maximum(row: &[f32]) -> f32 {
    let (chunks, rest) = row.as_chunks::<LANES>();
    let mut largest = [f32::NEG_INFINITY; LANES];
    for chunk in chunks {
        for lane in 0..LANES {
            largest[lane] = if chunk[lane] > largest[lane] { chunk[lane] } else { largest[lane] };
        }
    }
    largest.iter().chain(rest).fold(f32::NEG_INFINITY, |largest, value| largest.max(*value))
}

/// e^x within 2 units in the last place, for x in [-87, 88]; beyond that it stays at the ends.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // Adding and subtracting 1.5 2^23 rounds to an integer, which is then found in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let x = x.clamp(-87.0, 88.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let power = shifted - ROUND;
    let x = x - power * LN2_HIGH - power * LN2_LOW;
    let mut series = 1.0 / 5040.0;
    series = series * x + 1.0 / 720.0;
    series = series * x + 1.0 / 120.0;
    series = series * x + 1.0 / 24.0;
    series = series * x + 1.0 / 6.0;
    series = series * x + 0.5;
    series = series * x + 1.0;
    series = series * x + 1.0;
    series * f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3f80_0000))
}

/// 1 / (1 + e^-x).
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// The standard normal distribution at x, and e^(-x^2 / 2): the first within 1e-7 (Abramowitz and Stegun, 7.1.26).
#[inline(always)]
pub(crate) fn normal(x: f32) -> (f32, f32) {
    let size = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let bell = exp(-size * size);
    let t = 1.0 / (1.0 + 0.327_591_1 * size);
    let series = 1.421_413_8 + t * (-1.453_152 + t * 1.061_405_4);
    let tail = 0.5 * bell * t * (0.254_829_6 + t * (-0.284_496_74 + t * series));
    (if x < 0.0 { tail } else { 1.0 - tail }, bell)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_close_and_stays_finite() {
        for step in -8700..=8800 {
            let x = step as f32 / 100.0;
            let expected = f64::from(x).exp();
            assert!((f64::from(exp(x)) - expected).abs() < 3e-7 * expected, "{x}");
        }
        assert!(exp(-1e9) > 0.0 && exp(1e9).is_finite() && exp(f32::NAN).is_nan());
    }

    #[test]
    fn rows_are_folded() {
        let row: Vec<f32> = (0..37).map(|value| value as f32 - 18.5).collect();
        assert_eq!((sum(&row), maximum(&row), maximum(&[])), (-18.5, 17.5, f32::NEG_INFINITY));
        assert_eq!(sum_of(&row, &row, |a, b| a * b), row.iter().map(|value| value * value).sum::<f32>());
    }

    #[test]
    fn the_normal_distribution_has_its_known_values() {
        for (x, expected) in [(0.0, 0.5), (1.0, 0.841_344_746_068_542_9), (-3.0, 0.001_349_898_031_630_094_6)]
        {
            let (got, bell) = normal(x);
            assert!((f64::from(got) - expected).abs() < 1e-7, "{x}: {got}");
            assert!((f64::from(bell) - (-0.5 * f64::from(x * x)).exp()).abs() < 1e-7, "{x}: {bell}");
        }
    }
}
