//! Linear layers.

use std::sync::{Arc, OnceLock};

#[cfg(feature = "cuda")]
use aeir_kernels::takes;
use candle_core::{DType, Tensor};

use super::activation::Activation;
use crate::affine::affine;
use crate::error::{EncoderError, Result};
use crate::packed::{After, Packed};
use crate::product::held_values;
use crate::rehearsal::{Product, is_fused};

/// The weight and bias of a linear layer: what a block of an encoder holds.
///
/// Where neither is trained, the weight is packed once for the CPU's kernel, at the first forward pass.
#[derive(Debug, Clone)]
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
    packed: OnceLock<Arc<Packed>>,
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
        Ok(Self::unchecked(weight, bias))
    }

    /// A layer whose tensors are checked when it first runs.
    pub(crate) fn unchecked(weight: Tensor, bias: Option<Tensor>) -> Self {
        Self { weight, bias, packed: OnceLock::new() }
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
        if self.is_plain(&[x]) {
            return self.plain(x, None, None);
        }
        linear(x, &self.weight, self.bias.as_ref())
    }

    /// `activation(linear(x))`, in one pass where nothing records a graph.
    ///
    /// # Errors
    /// As [`linear`].
    pub fn forward_activated(&self, x: &Tensor, activation: Activation) -> Result<Tensor> {
        if self.is_plain(&[x]) {
            return self.plain(x, None, Some(activation));
        }
        activation.apply(&self.forward(x)?)
    }

    /// `linear(x) + residual`, in one pass where nothing records a graph. `residual [.., O]`.
    ///
    /// # Errors
    /// As [`linear`].
    pub fn forward_added(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        if self.is_plain(&[x, residual]) {
            return self.plain(x, Some(residual), None);
        }
        Ok((self.forward(x)? + residual)?)
    }

    /// Whether nothing records a graph and the kernel takes it.
    fn is_plain(&self, inputs: &[&Tensor]) -> bool {
        let all = || inputs.iter().copied().chain([&self.weight]).chain(&self.bias);
        if all().any(Tensor::track_op) {
            return false;
        }
        #[cfg(feature = "cuda")]
        if all().all(|tensor| takes(&[tensor])) {
            return true;
        }
        all().all(|tensor| is_fused(&[tensor]))
    }

    fn plain(&self, x: &Tensor, residual: Option<&Tensor>, activation: Option<Activation>) -> Result<Tensor> {
        let (outputs, inputs) = self.weight.dims2()?;
        let shape = output_shape(x, inputs, outputs)?;
        residual.map(|residual| checked("linear residual", residual, &shape)).transpose()?;
        #[cfg(feature = "cuda")]
        if takes(&[x]) {
            self.bias.as_ref().map(|bias| checked("linear bias", bias, &[outputs])).transpose()?;
            let activation = activation.map(Activation::of_kernels);
            return Ok(aeir_kernels::plain(x, &self.weight, self.bias.as_ref(), activation, residual)?);
        }
        let packed = match self.packed.get() {
            Some(packed) => packed,
            None => {
                let packed = self.pack(inputs, outputs)?;
                self.packed.get_or_init(|| Arc::new(packed))
            }
        };
        let x = x.contiguous()?;
        let residual = residual.map(Tensor::contiguous).transpose()?;
        let (x_storage, x_layout) = x.storage_and_layout();
        let residual = residual.as_ref().map(Tensor::storage_and_layout);
        let residual = residual.as_ref().map(|(storage, layout)| held_values(storage, layout)).transpose()?;
        let mut out = vec![0f32; shape.iter().product()];
        packed.forward(held_values(&x_storage, x_layout)?, After { residual, activation }, &mut out, true);
        Ok(Tensor::from_vec(out, shape, x.device())?)
    }

    fn pack(&self, inputs: usize, outputs: usize) -> Result<Packed> {
        self.bias.as_ref().map(|bias| checked("linear bias", bias, &[outputs])).transpose()?;
        let weight = self.weight.contiguous()?;
        let (weight_storage, weight_layout) = weight.storage_and_layout();
        let bias = self.bias.as_ref().map(Tensor::contiguous).transpose()?;
        let bias = bias.as_ref().map(Tensor::storage_and_layout);
        let bias = bias.as_ref().map(|(storage, layout)| held_values(storage, layout)).transpose()?;
        Ok(Packed::new(held_values(&weight_storage, weight_layout)?, bias, inputs))
    }
}

/// The shape of the result of a linear layer.
fn output_shape(x: &Tensor, inputs: usize, outputs: usize) -> Result<Vec<usize>> {
    match x.dims() {
        [leading @ .., last] if *last == inputs => Ok(leading.iter().copied().chain([outputs]).collect()),
        other => Err(EncoderError::Shape {
            what: "linear input",
            expected: format!("[.., {inputs}]"),
            got: other.to_vec(),
        }),
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
    let (outputs, inputs) = weight.dims2()?;
    let shape = output_shape(x, inputs, outputs)?;
    bias.map(|bias| checked("linear bias", bias, &[outputs])).transpose()?;
    let rows = x.reshape((x.elem_count() / inputs.max(1), inputs))?;
    let y = if is_fused(&[x, weight]) && inputs * outputs > 0 {
        let no_bias = bias.is_none().then(|| Tensor::zeros(outputs, DType::F32, x.device())).transpose()?;
        affine(&rows, weight, bias.or(no_bias.as_ref()).unwrap_or(weight))?
    } else {
        composed(&rows, weight, bias)?
    };
    Ok(y.reshape(shape)?)
}

fn composed(rows: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if let Some(bias) = bias
        && takes(&[rows, weight, bias])
    {
        return Ok(affine(rows, weight, bias)?);
    }
    let y = rows.product(&weight.t()?)?;
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
    use candle_core::Var;

    use super::*;
    use crate::ops::Gelu;
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
        assert_eq!(error.to_string(), "linear input: expected [.., 6], got [2, 5]");
    }

    #[test]
    fn a_layer_gives_the_same_with_and_without_a_graph() {
        let single = |x: Tensor| x.to_dtype(DType::F32).unwrap();
        let [x, residual] = [(1, 40), (4, 37)].map(|(seed, width)| single(noise(seed, &[3, 5, width])));
        let [weight, bias] = [noise(2, &[37, 40]), noise(3, &[37])].map(single);
        let frozen = Linear::new(weight.clone(), Some(bias.clone())).unwrap();
        let trained =
            Linear::new(Var::from_tensor(&weight).unwrap().as_tensor().clone(), Some(bias)).unwrap();
        let activation = Activation::Gelu(Gelu::Erf);
        let runs: [&dyn Fn(&Linear) -> Tensor; 3] = [
            &|layer| layer.forward(&x).unwrap(),
            &|layer| layer.forward_activated(&x, activation).unwrap(),
            &|layer| layer.forward_added(&x, &residual).unwrap(),
        ];
        for run in runs {
            let (frozen, trained) = (run(&frozen), run(&trained));
            assert!(!frozen.track_op() && trained.track_op());
            assert_eq!(frozen.dims(), [3, 5, 37]);
            assert_eq!(flat(&frozen), flat(&trained));
        }
        assert!(frozen.forward_added(&x, &x).is_err() && frozen.forward(&residual).is_err());
    }
}
