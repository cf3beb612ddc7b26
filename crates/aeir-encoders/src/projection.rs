//! The linear layer that takes backbone features into the joint space.

use candle_core::Tensor;
use candle_nn::{Init, VarBuilder};

use crate::affine::affine;
use crate::dropout::{check_probability, dropout};
use crate::error::{EncoderError, Result};
use crate::mode::Mode;
use crate::precision::{Precision, affine_in_bf16};

/// A linear layer F -> D with dropout on its input. Its output is not normalised.
///
/// Equation: `y = dropout(x) W^T + b`.
///
/// # Parameters
/// `weight [D, F]` and `bias [D]`, both drawn from `U(-1/sqrt(F), 1/sqrt(F))` where the [`VarBuilder`] initialises
/// (PyTorch's `nn.Linear` default: Kaiming uniform with a = sqrt(5)), or read where it loads. Seeding is the
/// business of the builder's backend.
#[derive(Debug, Clone)]
pub struct Projection {
    weight: Tensor,
    bias: Tensor,
    dropout: f32,
    precision: Precision,
}

impl Projection {
    /// Takes `weight` and `bias` from the builder.
    ///
    /// # Errors
    /// [`EncoderError::Argument`] for a zero dimension or a dropout probability outside `[0, 1)`;
    /// [`EncoderError::Tensor`] if the builder has no such parameters, or of another shape.
    pub fn new(input: usize, output: usize, dropout: f32, vb: VarBuilder<'_>) -> Result<Self> {
        check_probability(dropout)?;
        if input == 0 || output == 0 {
            return Err(EncoderError::Argument {
                what: "projection dimensions",
                expected: "two positive numbers".to_owned(),
                got: format!("{input} -> {output}"),
            });
        }
        let bound = 1.0 / (input as f64).sqrt();
        let init = Init::Uniform { lo: -bound, up: bound };
        let weight = vb.get_with_hints((output, input), "weight", init)?;
        let bias = vb.get_with_hints(output, "bias", init)?;
        Ok(Self { weight, bias, dropout, precision: Precision::Fp32 })
    }

    /// Multiplies in this precision in training; the device must support it.
    #[must_use]
    pub fn with_precision(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    /// Input dimension F.
    #[must_use]
    pub fn input_dimension(&self) -> usize {
        self.weight.dims().get(1).copied().unwrap_or(0)
    }

    /// Output dimension D.
    #[must_use]
    pub fn dimension(&self) -> usize {
        self.bias.elem_count()
    }

    /// Projects the last axis.
    ///
    /// # Shapes
    /// `x [.., F]` to `[.., D]`.
    ///
    /// # Errors
    /// [`EncoderError::Shape`] if the last axis is not F; [`EncoderError::Tensor`] from candle.
    pub fn forward(&self, x: &Tensor, mode: &mut Mode<'_>) -> Result<Tensor> {
        let input = self.input_dimension();
        if x.dims().last() != Some(&input) {
            return Err(EncoderError::Shape {
                what: "projection input",
                expected: format!("[.., {input}]"),
                got: x.dims().to_vec(),
            });
        }
        let x = dropout(x, self.dropout, mode)?;
        match self.precision {
            Precision::Bf16 if mode.is_training() => affine_in_bf16(&x, &self.weight, &self.bias),
            _ => Ok(affine(&x, &self.weight, &self.bias)?),
        }
    }
}
