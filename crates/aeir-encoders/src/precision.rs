//! The precision that large products of a training are computed in.

use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::rehearsal::Product;

/// In which precision the linear layers of the towers multiply in training. Parameters, their gradients and moments, and all
/// else (norms, softmax, recurrence, heads, losses, every evaluation) stay single precision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Single precision.
    #[default]
    Fp32,
    /// Inputs and weights rounded to bfloat16, as PyTorch's autocast does; results are single precision again.
    Bf16,
}

impl Precision {
    /// As in files.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fp32 => "fp32",
            Self::Bf16 => "bf16",
        }
    }

    /// Whether the device can multiply so.
    #[must_use]
    pub fn is_supported(self, device: &Device) -> bool {
        let product = || {
            let ones = Tensor::ones((2, 2), DType::BF16, device)?;
            ones.product(&ones)?.to_dtype(DType::F32)?.to_vec2::<f32>()
        };
        self == Self::Fp32 || product().is_ok_and(|product| product.iter().flatten().all(|it| *it == 2.0))
    }
}

/// `x W^T + b` with the product in bfloat16: `x [.., F]`, `weight [D, F]`, `bias [D]`, to `[.., D]` f32. The gradient of the
/// product is computed in bfloat16 too, and arrives at `x` and the weight as f32.
pub(crate) fn affine_in_bf16(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let (outputs, inputs) = weight.dims2()?;
    let rounded = x.reshape(((), inputs))?.to_dtype(DType::BF16)?;
    // Made contiguous: not every device multiplies by a transposed view.
    let weight = weight.to_dtype(DType::BF16)?.t()?.contiguous()?;
    let y = rounded.product(&weight)?.to_dtype(DType::F32)?.broadcast_add(bias)?;
    let mut shape = x.dims().to_vec();
    shape.pop();
    shape.push(outputs);
    Ok(y.reshape(shape)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_product_in_bfloat16_is_near_and_passes_gradients() {
        assert!(Precision::Bf16.is_supported(&Device::Cpu));
        let row =
            |count: usize, scale: f32| (0..count).map(|i| scale * ((i * 7 % 11) as f32 - 5.0)).collect();
        let variable = |values: Vec<f32>, shape: &[usize]| {
            candle_core::Var::from_tensor(&Tensor::from_vec(values, shape, &Device::Cpu).unwrap()).unwrap()
        };
        let x = variable(row(24, 0.1), &[2, 3, 4]);
        let (weight, bias) = (variable(row(20, 0.2), &[5, 4]), variable(row(5, 0.3), &[5]));
        let rounded = affine_in_bf16(&x, &weight, &bias).unwrap();
        let exact = crate::affine::affine(&x, &weight, &bias).unwrap();
        assert_eq!((rounded.dims(), rounded.dtype()), (&[2, 3, 5][..], DType::F32));
        let largest = |a: &Tensor, b: &Tensor| {
            (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap()
        };
        // Eight bits of mantissa: some percent of values around one.
        assert!(largest(&rounded, &exact) < 0.03);
        let of = |y: &Tensor| y.sqr().unwrap().sum_all().unwrap().backward().unwrap();
        let (near, own) = (of(&rounded), of(&exact));
        for variable in [&x, &weight, &bias] {
            let (near, own) = (near.get(variable).unwrap(), own.get(variable).unwrap());
            assert_eq!(near.dtype(), DType::F32);
            let size = own.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
            assert!(largest(near, own) < 0.03 * size, "{near} and {own}");
        }
    }
}
