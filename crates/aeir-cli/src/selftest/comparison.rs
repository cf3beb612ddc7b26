//! How far the values of two places are apart.

use candle_core::DType;
use serde::Serialize;

use super::check::{Kind, Named, Values};

/// Gradients and results smaller than this share of the largest one of their check are compared on its scale: what cancels to
/// nothing but rounding has none of its own.
fn smallest_scale(dtype: DType) -> f32 {
    if dtype == DType::BF16 { 0.1 } else { 0.01 }
}

/// Where two places differ most.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Difference {
    /// The tensor.
    pub(crate) tensor: String,
    /// Largest difference over the largest absolute value of the reference; none where they can't be compared.
    pub(crate) error: Option<f64>,
}

/// What `error` may be at most.
pub(crate) fn tolerance(kind: Kind, dtype: DType) -> f64 {
    match (dtype, kind) {
        (DType::BF16, Kind::Operation | Kind::Loss) => 0.05,
        // A softmax of nine times the scores, and what a step chooses by them, make the rounding larger.
        (DType::BF16, Kind::Head | Kind::Encoder) => 0.2,
        (DType::BF16, Kind::Step) => 0.3,
        (_, Kind::Operation | Kind::Loss) => 1e-4,
        (_, Kind::Head) => 5e-4,
        (_, Kind::Encoder | Kind::Step) => 1e-3,
        (_, Kind::Search) => 0.0,
    }
}

impl Difference {
    pub(crate) fn is_within(&self, tolerance: f64) -> bool {
        self.error.is_some_and(|error| error <= tolerance)
    }
}

/// The largest difference of all tensors.
pub(super) fn largest(expected: &Values, got: &Values, dtype: DType) -> Difference {
    let groups = [(&expected.results, &got.results), (&expected.gradients, &got.gradients)];
    let mut worst = Difference { tensor: "-".into(), error: Some(0.0) };
    for (expected, got) in groups {
        for difference in differences(expected, got, smallest_scale(dtype)) {
            let error = |difference: &Difference| difference.error.unwrap_or(f64::INFINITY);
            if error(&difference) > error(&worst) || worst.tensor == "-" {
                worst = difference;
            }
        }
    }
    worst
}

fn differences(expected: &[Named], got: &[Named], smallest: f32) -> Vec<Difference> {
    let floor = smallest * expected.iter().map(|one| size(&one.values)).fold(0.0, f32::max);
    if expected.len() != got.len() {
        return vec![Difference { tensor: "the number of tensors".into(), error: None }];
    }
    expected.iter().zip(got).map(|(expected, got)| difference(expected, got, floor)).collect()
}

fn difference(expected: &Named, got: &Named, floor: f32) -> Difference {
    let tensor = expected.name.clone();
    let finite = |values: &[f32]| values.iter().all(|value| value.is_finite());
    let fits = expected.name == got.name
        && expected.values.len() == got.values.len()
        && finite(&expected.values)
        && finite(&got.values);
    if !fits {
        return Difference { tensor, error: None };
    }
    let apart = expected.values.iter().zip(&got.values).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    let scale = size(&expected.values).max(floor);
    let error = if apart == 0.0 { 0.0 } else { f64::from(apart) / f64::from(scale) };
    Difference { tensor, error: Some(error).filter(|error| error.is_finite()) }
}

/// The largest absolute value.
fn size(values: &[f32]) -> f32 {
    values.iter().map(|value| value.abs()).fold(0.0, f32::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(results: &[f32], gradients: &[f32]) -> Values {
        let named = |name: &str, values: &[f32]| vec![Named { name: name.into(), values: values.to_vec() }];
        Values { results: named("result", results), gradients: named("gradient", gradients) }
    }

    #[test]
    fn equal_values_are_not_apart_and_others_are_found() {
        let reference = values(&[1.0, -2.0, 0.5], &[0.1, 0.2]);
        assert_eq!(largest(&reference, &reference, DType::F32).error, Some(0.0));
        let wrong = largest(&reference, &values(&[1.0, -2.0, 0.5], &[0.1, 0.21]), DType::F32);
        assert_eq!(wrong.tensor, "gradient");
        assert!((wrong.error.unwrap() - 0.05).abs() < 1e-3, "{wrong:?}");
        assert!(!wrong.is_within(tolerance(Kind::Loss, DType::F32)));
        assert!(wrong.is_within(0.06));
    }

    #[test]
    fn what_cannot_be_compared_is_never_within() {
        let reference = values(&[1.0, 2.0], &[1.0]);
        let others = [
            values(&[1.0], &[1.0]),
            values(&[1.0, 2.0], &[]),
            values(&[1.0, f32::NAN], &[1.0]),
            values(&[1.0, f32::INFINITY], &[1.0]),
            Values { gradients: Vec::new(), ..reference.clone() },
        ];
        for other in others {
            let difference = largest(&reference, &other, DType::F32);
            assert!(!difference.is_within(1e9), "{difference:?}");
        }
    }

    #[test]
    fn rounding_in_what_cancels_does_not_count() {
        let named = |name: &str, value: f32| Named { name: name.into(), values: vec![value] };
        let with_bias = |bias: f32| Values {
            results: Vec::new(),
            gradients: vec![named("weight", 1.0), named("bias", bias)],
        };
        let difference = largest(&with_bias(1e-9), &with_bias(-3e-9), DType::F32);
        assert!(difference.is_within(1e-5), "{difference:?}");
        assert!(!largest(&with_bias(1e-9), &with_bias(1e-3), DType::F32).is_within(1e-4));
    }
}
