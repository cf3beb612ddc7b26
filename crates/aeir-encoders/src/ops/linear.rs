//! Linear layers.

use candle_core::{D, Tensor};

use super::activation::Activation;
use crate::error::{EncoderError, Result};

/// The weight and bias of a linear layer: what a block of an encoder holds.
#[derive(Debug, Clone)]
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    /// A layer from `weight [O, I]` and `bias [O]`.
    ///
    /// # Errors
    /// [`EncoderError::Shape`] when they do not fit each other.
    pub fn new(weight: Tensor, bias: Option<Tensor>) -> Result<Self> {
        let &[outputs, _] = weight.dims() else {
            return Err(EncoderError::Shape {
                what: "linear weight",
                expected: "[outputs, inputs]".to_owned(),
                got: weight.dims().to_vec(),
            });
        };
        bias.as_ref().map(|bias| checked("linear bias", bias, &[outputs])).transpose()?;
        Ok(Self { weight, bias })
    }

    /// `[O, I]`.
    #[must_use]
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// `[O]`.
    #[must_use]
    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }

    /// [`linear`] of `x [.., I]`.
    ///
    /// # Errors
    /// As [`linear`].
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        linear(x, &self.weight, self.bias.as_ref())
    }

    /// `activation(linear(x))`, in one pass where nothing records a graph.
    ///
    /// # Errors
    /// As [`linear`].
    pub fn forward_activated(&self, x: &Tensor, activation: Activation) -> Result<Tensor> {
        activation.apply(&self.forward(x)?)
    }

    /// `linear(x) + residual`, in one pass where nothing records a graph. `residual [.., O]`.
    ///
    /// # Errors
    /// As [`linear`].
    pub fn forward_added(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        Ok((self.forward(x)? + residual)?)
    }
}

/// `x W^T + b` over the last axis.
///
/// # Shapes
/// `x [.., I]`, `weight [O, I]`, `bias [O]` to `[.., O]`. All leading axes are rows of one matrix product.
///
/// # Errors
/// [`EncoderError::Shape`] when the sizes do not fit, [`EncoderError::Tensor`] from candle.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let inputs = x.dim(D::Minus1)?;
    let outputs = weight.dim(0)?;
    checked("linear weight", weight, &[outputs, inputs])?;
    bias.map(|bias| checked("linear bias", bias, &[outputs])).transpose()?;
    let mut shape = x.dims().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = outputs;
    }
    let rows = x.elem_count() / inputs.max(1);
    Ok(composed(&x.reshape((rows, inputs))?, weight, bias)?.reshape(shape)?)
}

fn composed(rows: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let y = rows.matmul(&weight.t()?)?;
    match bias {
        Some(bias) => Ok(y.broadcast_add(bias)?),
        None => Ok(y),
    }
}

/// Refuses a tensor of another shape.
pub(super) fn checked(what: &'static str, tensor: &Tensor, expected: &[usize]) -> Result<()> {
    if tensor.dims() == expected {
        return Ok(());
    }
    Err(EncoderError::Shape { what, expected: format!("{expected:?}"), got: tensor.dims().to_vec() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::differences::{assert_gradients, flat, noise};

    #[test]
    fn equals_the_plain_sums() {
        let (x, weight, bias) = (noise(1, &[2, 3, 5]), noise(2, &[4, 5]), noise(3, &[4]));
        let y = linear(&x, &weight, Some(&bias)).unwrap();
        assert_eq!(y.dims(), [2, 3, 4]);
        let (x, weight, bias) = (flat(&x), flat(&weight), flat(&bias));
        for (index, got) in flat(&y).iter().enumerate() {
            let (row, column) = (index / 4, index % 4);
            let sum: f64 = (0..5).map(|k| x[row * 5 + k] * weight[column * 5 + k]).sum();
            assert!((got - sum - bias[column]).abs() < 1e-12);
        }
    }

    #[test]
    fn gradients_by_finite_differences() {
        let inputs = [noise(1, &[2, 3, 5]), noise(2, &[4, 5]), noise(3, &[4])];
        assert_gradients("linear", &inputs, |inputs| linear(&inputs[0], &inputs[1], Some(&inputs[2])));
        assert_gradients("linear without bias", &inputs[..2], |inputs| linear(&inputs[0], &inputs[1], None));
    }

    #[test]
    fn sizes_that_do_not_fit_are_told() {
        let error = linear(&noise(1, &[2, 5]), &noise(2, &[4, 6]), None).unwrap_err();
        assert_eq!(error.to_string(), "linear weight: expected [4, 5], got [4, 6]");
    }
}
