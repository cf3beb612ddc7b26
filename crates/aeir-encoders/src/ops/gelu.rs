//! The Gaussian error linear unit in the forms that trained models use.

use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI};

use candle_core::Tensor;

use super::activation::Activation;
use crate::error::Result;

/// Which form of GELU a model was trained with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gelu {
    /// `x / 2 (1 + erf(x / sqrt 2))`, the definition.
    Erf,
    /// `x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`.
    Tanh,
    /// `x / (1 + exp(-1.702 x))`, CLIP's.
    Quick,
}

/// Factor of the cube in [`Gelu::Tanh`].
const CUBE: f64 = 0.044_715;
/// Slope inside [`Gelu::Quick`].
pub(super) const QUICK: f64 = 1.702;
/// `sqrt(2 / pi)`.
const TANH_SLOPE: f64 = FRAC_2_SQRT_PI * FRAC_1_SQRT_2;

/// GELU of each element (Hendrycks and Gimpel, 2016).
///
/// # Shapes
/// Any.
///
/// # Errors
/// [`crate::EncoderError::Tensor`] from candle.
pub fn gelu(x: &Tensor, form: Gelu) -> Result<Tensor> {
    Activation::Gelu(form).apply(x)
}

/// What [`Gelu::Tanh`] is as `x s(w)` with the logistic function s: w at x, and its slope.
#[inline(always)]
pub(super) fn tanh_inner(x: f32) -> (f32, f32) {
    const SCALE: f32 = 2.0 * TANH_SLOPE as f32;
    const CUBED: f32 = CUBE as f32;
    (SCALE * x * (1.0 + CUBED * x * x), SCALE * (1.0 + 3.0 * CUBED * x * x))
}

/// candle's own forms have derivatives with six digits; these are exact.
pub(super) fn composed(x: &Tensor, form: Gelu) -> Result<Tensor> {
    let gate = match form {
        Gelu::Erf => (((x * FRAC_1_SQRT_2)?.erf()? + 1.0)? * 0.5)?,
        Gelu::Tanh => {
            let inner = (x * ((x.sqr()? * CUBE)? + 1.0)?)?;
            (((inner * TANH_SLOPE)?.tanh()? + 1.0)? * 0.5)?
        }
        Gelu::Quick => candle_nn::ops::sigmoid(&(x * QUICK)?)?,
    };
    Ok((x * gate)?)
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;
    use crate::ops::differences::{assert_gradients, noise};

    /// x, and what PyTorch 2 gives in f64 for `gelu`, `gelu(approximate="tanh")` and `x * sigmoid(1.702 x)`.
    const EXPECTED: &[(f64, f64, f64, f64)] = &[
        (-6.0, -5.919525869479969e-9, -8.43964897967453e-11, -0.00022035354978739243),
        (-2.5, -0.015524163314440398, -0.015084266089998577, -0.03498616504857008),
        (-1.0, -0.15865525393145702, -0.15880800939172324, -0.1542042340671787),
        (-0.3, -0.1146265733433142, -0.11462907645724074, -0.11251586461840829),
        (0.0, 0.0, 0.0, 0.0),
        (0.7, 0.5306254434438489, 0.5305701347051167, 0.5368939517231501),
        (1.5, 1.399789198096713, 1.3995715769802328, 1.3916621984470765),
        (3.0, 2.99595030590511, 2.996362607918227, 2.981928690292214),
        (8.0, 7.999999999999995, 8.0, 7.999990233571134),
    ];

    #[test]
    fn values_are_those_of_pytorch() {
        for (x, erf, tanh, quick) in EXPECTED {
            for (form, expected) in [(Gelu::Erf, erf), (Gelu::Tanh, tanh), (Gelu::Quick, quick)] {
                let x = Tensor::new(&[*x], &Device::Cpu).unwrap();
                let at = |dtype| {
                    let y = gelu(&x.to_dtype(dtype).unwrap(), form).unwrap();
                    y.to_dtype(DType::F64).unwrap().to_vec1::<f64>().unwrap()[0]
                };
                assert!(
                    (at(DType::F64) - expected).abs() < 1e-12,
                    "{form:?}({x}): {} {expected}",
                    at(DType::F64)
                );
                assert!(
                    (at(DType::F32) - expected).abs() < 1e-6,
                    "{form:?}({x}): {} {expected}",
                    at(DType::F32)
                );
            }
        }
    }

    #[test]
    fn gradients_by_finite_differences() {
        for form in [Gelu::Erf, Gelu::Tanh, Gelu::Quick] {
            let x = (noise(1, &[4, 33]) * 3.0).unwrap();
            assert_gradients(&format!("{form:?}"), &[x], |inputs| gelu(&inputs[0], form));
        }
    }
}
