//! A linear layer as one graph node on the CPU, forward and backward on all threads.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};

use crate::packed::{After, Packed};
use crate::product::{Matrix, column_sums, held_values, multiply, values};
use crate::rehearsal::{Product, is_fused};

/// `x W^T + b`: `x [.., F]`, `weight [D, F]`, `bias [D]`, to `[.., D]`.
///
/// In f32 on the CPU a row of the result has the same bits whatever other rows there are.
pub(crate) fn affine(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    if is_fused(&[x]) {
        return x.contiguous()?.apply_op3(&weight.contiguous()?, &bias.contiguous()?, Affine);
    }
    #[cfg(feature = "cuda")]
    if aeir_kernels::takes(&[x, weight, bias]) {
        return aeir_kernels::affine(x, weight, bias);
    }
    let (outputs, inputs) = weight.dims2()?;
    // One flat matmul: candle would otherwise run one small one for every leading index.
    let y = x.reshape(((), inputs))?.product(&weight.t()?)?.broadcast_add(bias)?;
    y.reshape(with_last(x.dims(), outputs))
}

/// The shape with another last axis.
fn with_last(dims: &[usize], last: usize) -> Vec<usize> {
    let leading = dims.split_last().map_or(&[][..], |(_, leading)| leading);
    leading.iter().copied().chain([last]).collect()
}

/// All leading axes together, and the last one.
fn rows(dims: &[usize]) -> (usize, usize) {
    let last = dims.last().copied().unwrap_or(0);
    (dims.iter().rev().skip(1).product(), last)
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
        let (rows, inputs) = rows(x_layout.dims());
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
        Ok((CpuStorage::F32(out), with_last(x_layout.dims(), outputs).into()))
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
        let ((rows, inputs), outputs) = (rows(x.dims()), weight.dim(0)?);
        let (x_storage, x_layout) = x.storage_and_layout();
        let (weight_storage, weight_layout) = weight.storage_and_layout();
        let (gradient_storage, gradient_layout) = gradient.storage_and_layout();
        let gradient_values = held_values(&gradient_storage, gradient_layout)?;
        let by_output = Matrix::new(gradient_values, rows, outputs)?;
        let product = |left, right, like: &Tensor| {
            let mut out = vec![0f32; like.elem_count()];
            multiply(left, right, &mut out)?;
            Tensor::from_vec(out, like.shape(), x.device())
        };
        let x_gradient = || {
            let values = Matrix::new(held_values(&weight_storage, weight_layout)?, outputs, inputs)?;
            product(by_output, values, x)
        };
        let weight_gradient = || {
            let values = Matrix::new(held_values(&x_storage, x_layout)?, rows, inputs)?;
            product(by_output.transposed(), values, weight)
        };
        let bias_gradient = || Tensor::from_vec(column_sums(gradient_values, outputs), outputs, x.device());
        Ok((
            x.track_op().then(x_gradient).transpose()?,
            weight.track_op().then(weight_gradient).transpose()?,
            bias.track_op().then(bias_gradient).transpose()?,
        ))
    }
}
