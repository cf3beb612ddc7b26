//! How far two figures order the same things alike.

use crate::error::{Error, Result};

/// Spearman's rank correlation: 1 where both order alike, -1 where one is the reverse of the other.
///
/// Of a selection criterion and the true recall of several runs it says whether the criterion picks good runs.
///
/// Equation: Pearson's correlation of the ranks; of equal values each gets the mean of their ranks (Spearman, *American
/// Journal of Psychology* 15(1):72, 1904).
///
/// None where it is not defined: fewer than two values, or one side all equal.
///
/// # Errors
/// [`Error::Shape`] where the lengths differ, [`Error::NotFinite`] where a value is not finite.
///
/// # Example
/// ```
/// let criterion = [0.31, 0.35, 0.29, 0.40];
/// let recall = [118.0, 127.0, 121.0, 131.0];
/// assert_eq!(aeir_retrieve::spearman(&criterion, &recall)?, Some(0.8));
/// # Ok::<(), aeir_retrieve::Error>(())
/// ```
pub fn spearman(a: &[f64], b: &[f64]) -> Result<Option<f64>> {
    if a.len() != b.len() {
        return Err(Error::Shape { what: "values to correlate", expected: a.len(), got: b.len() });
    }
    let (a, b) = (ranks(a)?, ranks(b)?);
    Ok(pearson(&a, &b))
}

/// Ranks from 1, equal values sharing the mean of theirs.
fn ranks(values: &[f64]) -> Result<Vec<f64>> {
    if let Some((row, value)) = values.iter().enumerate().find(|(_, value)| !value.is_finite()) {
        return Err(Error::NotFinite { what: "values to correlate", row, column: 0, got: *value as f32 });
    }
    let mut order: Vec<(usize, f64)> = values.iter().copied().enumerate().collect();
    order.sort_by(|(_, a), (_, b)| a.total_cmp(b));
    let mut ranks = vec![0.0; values.len()];
    let mut before = 0;
    // `==`, as 0 and -0 are equal.
    for equal in order.chunk_by(|(_, a), (_, b)| a == b) {
        let rank = before as f64 + (equal.len() + 1) as f64 / 2.0;
        for (index, _) in equal {
            if let Some(place) = ranks.get_mut(*index) {
                *place = rank;
            }
        }
        before += equal.len();
    }
    Ok(ranks)
}

fn pearson(a: &[f64], b: &[f64]) -> Option<f64> {
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let (mean_a, mean_b) = (mean(a), mean(b));
    let sum = |product: fn(f64, f64) -> f64| -> f64 {
        a.iter().zip(b).map(|(a, b)| product(a - mean_a, b - mean_b)).sum()
    };
    let scale = (sum(|a, _| a * a) * sum(|_, b| b * b)).sqrt();
    (scale > 0.0).then(|| sum(|a, b| a * b) / scale)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[track_caller]
    fn is(a: &[f64], b: &[f64], expected: f64) {
        let got = spearman(a, b).unwrap().unwrap();
        assert!((got - expected).abs() < 1e-12, "expected {expected}, got {got}");
    }

    #[test]
    fn known_values() {
        // The textbook's: 1 - 6 sum d^2 / (n (n^2 - 1)) with sum d^2 = 194.
        let quotient = [106.0, 100.0, 86.0, 101.0, 99.0, 103.0, 97.0, 113.0, 112.0, 110.0];
        let hours = [7.0, 27.0, 2.0, 50.0, 28.0, 29.0, 20.0, 12.0, 6.0, 17.0];
        is(&quotient, &hours, -29.0 / 165.0);
        is(&[1.0, 2.0, 3.0], &[10.0, 100.0, 1000.0], 1.0);
        is(&[1.0, 2.0, 3.0], &[3.0, 2.0, 1.0], -1.0);
    }

    #[test]
    fn equal_values_share_their_rank() {
        assert_eq!(ranks(&[3.0, 1.0, 3.0, 2.0, 3.0, 1.0]).unwrap(), [5.0, 1.5, 5.0, 3.0, 5.0, 1.5]);
        assert_eq!(ranks(&[0.0, -0.0]).unwrap(), [1.5, 1.5]);
        is(&[1.0, 2.0, 2.0, 3.0], &[1.0, 2.0, 3.0, 4.0], 4.5 / 22.5_f64.sqrt());
        // Ranks (1.5, 1.5, 3, 4) and (2, 2, 4, 2).
        is(&[1.0, 1.0, 2.0, 3.0], &[5.0, 5.0, 6.0, 5.0], 1.0 / 13.5_f64.sqrt());
    }

    #[test]
    fn what_has_no_order_has_no_correlation() {
        for (a, b) in [(vec![], vec![]), (vec![1.0], vec![2.0]), (vec![1.0, 1.0], vec![1.0, 2.0])] {
            assert_eq!(spearman(&a, &b).unwrap(), None);
        }
        assert!(matches!(spearman(&[1.0], &[]), Err(Error::Shape { .. })));
        assert!(matches!(spearman(&[1.0, f64::NAN], &[1.0, 2.0]), Err(Error::NotFinite { row: 1, .. })));
    }

    proptest! {
        #[test]
        fn only_the_order_counts(values in prop::collection::vec((-100_i32..100, -100_i32..100), 2..40)) {
            let (a, b): (Vec<f64>, Vec<f64>) = values.iter().map(|(a, b)| (f64::from(*a), f64::from(*b))).unzip();
            let plain = spearman(&a, &b).unwrap();
            let stretched: Vec<f64> = a.iter().map(|value| (value / 50.0).exp()).collect();
            let turned: Vec<f64> = b.iter().map(|value| -value).collect();
            prop_assert_eq!(spearman(&stretched, &b).unwrap(), plain);
            prop_assert_eq!(spearman(&b, &a).unwrap().is_some(), plain.is_some());
            if let Some(plain) = plain {
                prop_assert!((spearman(&a, &turned).unwrap().unwrap() + plain).abs() < 1e-12);
                prop_assert!(plain.abs() <= 1.0 + 1e-12);
            }
        }
    }
}
