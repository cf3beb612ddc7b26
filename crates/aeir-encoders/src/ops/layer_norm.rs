//! Normalisation of each row, scaled and shifted by column.

use candle_core::{D, Tensor};

use super::linear::checked;
use crate::error::Result;

/// Makes each row's mean zero and its variance one, then scales and shifts its columns (Ba, Kiros and Hinton, 2016).
///
/// Equation: `y = (x - mean) / sqrt(variance + epsilon) * weight + bias`, mean and (biased) variance over the last axis.
///
/// # Shapes
/// `x [.., D]`, `weight [D]`, `bias [D]` to `[.., D]`.
///
/// # Errors
/// [`crate::EncoderError::Shape`] when `weight` or `bias` does not fit, [`crate::EncoderError::Tensor`] from candle.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, epsilon: f64) -> Result<Tensor> {
    let columns = x.dim(D::Minus1)?;
    checked("layer norm weight", weight, &[columns])?;
    bias.map(|bias| checked("layer norm bias", bias, &[columns])).transpose()?;
    composed(x, weight, bias, epsilon)
}

fn composed(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, epsilon: f64) -> Result<Tensor> {
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let deviation = (centred.sqr()?.mean_keepdim(D::Minus1)? + epsilon)?.sqrt()?;
    let y = centred.broadcast_div(&deviation)?.broadcast_mul(weight)?;
    match bias {
        Some(bias) => Ok(y.broadcast_add(bias)?),
        None => Ok(y),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::differences::{assert_gradients, flat, noise};

    #[test]
    fn rows_have_mean_and_deviation_of_the_parameters() {
        let x = noise(1, &[2, 3, 20]);
        let (weight, bias) = (noise(2, &[20]), noise(3, &[20]));
        let y = flat(&layer_norm(&x, &weight, Some(&bias), 0.0).unwrap());
        let unscaled = |row: &[f64]| -> Vec<f64> {
            row.iter()
                .zip(flat(&weight))
                .zip(flat(&bias))
                .map(|((y, weight), bias)| (y - bias) / weight)
                .collect()
        };
        for row in y.chunks(20).map(unscaled) {
            let mean = row.iter().sum::<f64>() / 20.0;
            let variance = row.iter().map(|value| value * value).sum::<f64>() / 20.0;
            assert!(mean.abs() < 1e-10 && (variance - 1.0).abs() < 1e-10, "{mean} {variance}");
        }
    }

    #[test]
    fn gradients_by_finite_differences() {
        let inputs = [noise(1, &[2, 3, 19]), noise(2, &[19]), noise(3, &[19])];
        assert_gradients("layer norm", &inputs, |inputs| {
            layer_norm(&inputs[0], &inputs[1], Some(&inputs[2]), 1e-5)
        });
        assert_gradients("layer norm without bias", &inputs[..2], |inputs| {
            layer_norm(&inputs[0], &inputs[1], None, 1e-5)
        });
    }

    #[test]
    fn constant_rows_stay_finite_and_wrong_shapes_are_told() {
        let x = noise(1, &[2, 8]).zeros_like().unwrap();
        let weight = noise(2, &[8]);
        assert_eq!(flat(&layer_norm(&x, &weight, None, 1e-12).unwrap()), [0.0; 16]);
        let error = layer_norm(&x, &noise(2, &[7]), None, 1e-12).unwrap_err();
        assert_eq!(error.to_string(), "layer norm weight: expected [8], got [7]");
    }
}
