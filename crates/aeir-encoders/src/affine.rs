//! A linear layer as one graph node on the CPU, forward and backward on all threads.

use candle_core::{CpuStorage, CustomOp3, DType, Layout, Result, Shape, Tensor, bail};

use crate::packed::{After, Packed};
use crate::product::{Matrix, column_sums, held_values, multiply, values};

/// `x W^T + b`: `x [N, F]`, `weight [D, F]`, `bias [D]`, to `[N, D]`.
///
/// In f32 on the CPU a row of the result has the same bits whatever other rows there are.
pub(crate) fn affine(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    if x.device().is_cpu() && x.dtype() == DType::F32 {
        return x.contiguous()?.apply_op3(&weight.contiguous()?, &bias.contiguous()?, Affine);
    }
    x.matmul(&weight.t()?)?.broadcast_add(bias)
}

struct Affine;

impl CustomOp3 for Affine {
    fn name(&self) -> &'static str {
        "affine"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (rows, inputs) = x_layout.shape().dims2()?;
        let (outputs, columns) = weight_layout.shape().dims2()?;
        if inputs != columns || bias_layout.shape().dims() != [outputs] || outputs == 0 || inputs == 0 {
            bail!(
                "affine: {:?} by {:?} and {:?}",
                x_layout.shape(),
                weight_layout.shape(),
                bias_layout.shape()
            );
        }
        let (weight, bias) = (values(weight, weight_layout)?, values(bias, bias_layout)?);
        let layer = Packed::new(weight, Some(bias), inputs);
        let mut out = vec![0f32; rows * outputs];
        layer.forward(values(x, x_layout)?, After::default(), &mut out, true);
        Ok((CpuStorage::F32(out), (rows, outputs).into()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _result: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let gradient = gradient.contiguous()?;
        let ((rows, inputs), outputs) = (x.dims2()?, weight.dim(0)?);
        let (x_storage, x_layout) = x.storage_and_layout();
        let (weight_storage, weight_layout) = weight.storage_and_layout();
        let (gradient_storage, gradient_layout) = gradient.storage_and_layout();
        let gradient_values = held_values(&gradient_storage, gradient_layout)?;
        let by_output = Matrix::new(gradient_values, rows, outputs)?;
        let product = |left, right, m: usize, n: usize| {
            let mut out = vec![0f32; m * n];
            multiply(left, right, &mut out)?;
            Tensor::from_vec(out, (m, n), x.device())
        };
        let x_gradient = || {
            let weight = Matrix::new(held_values(&weight_storage, weight_layout)?, outputs, inputs)?;
            product(by_output, weight, rows, inputs)
        };
        let weight_gradient = || {
            let x = Matrix::new(held_values(&x_storage, x_layout)?, rows, inputs)?;
            product(by_output.transposed(), x, outputs, inputs)
        };
        let bias_gradient = || Tensor::from_vec(column_sums(gradient_values, outputs), outputs, x.device());
        Ok((
            x.track_op().then(x_gradient).transpose()?,
            weight.track_op().then(weight_gradient).transpose()?,
            bias.track_op().then(bias_gradient).transpose()?,
        ))
    }
}
