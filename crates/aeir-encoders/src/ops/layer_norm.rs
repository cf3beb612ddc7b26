//! Normalisation of each row, scaled and shifted by column.

use candle_core::{CpuStorage, CustomOp3, D, Layout, Shape, Tensor};
use rayon::prelude::*;

use super::linear::checked;
use crate::error::Result;
use crate::product::{column_sums, held_values, values};
use crate::rehearsal::is_fused;
use crate::vector::{sum, sum_of, vectorised};

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
    let or_zeros = || bias.map_or_else(|| weight.zeros_like(), Tensor::contiguous);
    #[cfg(feature = "cuda")]
    if aeir_kernels::takes(&[x, weight]) && bias.is_none_or(|bias| aeir_kernels::takes(&[bias])) {
        return Ok(aeir_kernels::layer_norm(x, weight, &or_zeros()?, epsilon)?);
    }
    if is_fused(&[x, weight]) && bias.is_none_or(|bias| is_fused(&[bias])) && columns > 0 {
        let bias = or_zeros()?;
        let operation = LayerNorm { epsilon: epsilon as f32 };
        return Ok(x.contiguous()?.apply_op3(&weight.contiguous()?, &bias, operation)?);
    }
    composed(x, weight, bias, epsilon)
}

struct LayerNorm {
    epsilon: f32,
}

/// Rows of a task. Fixed, since the gradients of the parameters are summed task by task.
const ROWS: usize = 32;

impl LayerNorm {
    /// Mean, and one over the deviation.
    #[inline(always)]
    fn statistics(&self, row: &[f32]) -> (f32, f32) {
        let count = row.len() as f32;
        let mean = sum(row) / count;
        let variance = sum_of(row, row, |x, _| (x - mean) * (x - mean)) / count;
        (mean, 1.0 / (variance + self.epsilon).sqrt())
    }

    #[inline(always)]
    fn forward(&self, x: &[f32], weight: &[f32], bias: &[f32], out: &mut [f32]) {
        let (mean, scale) = self.statistics(x);
        for ((out, x), (weight, bias)) in out.iter_mut().zip(x).zip(weight.iter().zip(bias)) {
            *out = (x - mean) * scale * weight + bias;
        }
    }

    /// Turns the gradient of a row of the result into that of `x`; adds to those of weight and bias.
    #[inline(always)]
    fn backward(
        &self,
        x: &[f32],
        weight: &[f32],
        gradient: &mut [f32],
        parameters: &mut (Vec<f32>, Vec<f32>),
    ) {
        let (mean, scale) = self.statistics(x);
        let (weights, biases) = parameters;
        for ((gradient, x), (weight, bias)) in
            gradient.iter().zip(x).zip(weights.iter_mut().zip(biases.iter_mut()))
        {
            *weight += gradient * ((x - mean) * scale);
            *bias += gradient;
        }
        gradient.iter_mut().zip(weight).for_each(|(gradient, weight)| *gradient *= weight);
        let count = x.len() as f32;
        let shared = sum(gradient) / count;
        let along = sum_of(gradient, x, |gradient, x| gradient * ((x - mean) * scale)) / count;
        for (gradient, x) in gradient.iter_mut().zip(x) {
            *gradient = scale * (*gradient - shared - (x - mean) * scale * along);
        }
    }
}

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        "layer-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let x = values(x, x_layout)?;
        let (weight, bias) = (values(weight, weight_layout)?, values(bias, bias_layout)?);
        let columns = weight.len();
        let mut out = vec![0f32; x.len()];
        out.par_chunks_mut(ROWS * columns).zip(x.par_chunks(ROWS * columns)).for_each(|(out, x)| {
            let rows = out.chunks_mut(columns).zip(x.chunks(columns));
            vectorised(|| rows.for_each(|(out, x)| self.forward(x, weight, bias, out)));
        });
        Ok((CpuStorage::F32(out), x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _result: &Tensor,
        gradient: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let gradient = gradient.contiguous()?;
        let (x_storage, x_layout) = x.storage_and_layout();
        let (weight_storage, weight_layout) = weight.storage_and_layout();
        let (gradient_storage, gradient_layout) = gradient.storage_and_layout();
        let (x_values, weights) =
            (held_values(&x_storage, x_layout)?, held_values(&weight_storage, weight_layout)?);
        let columns = weights.len();
        let mut out = held_values(&gradient_storage, gradient_layout)?.to_vec();
        let tasks = out.par_chunks_mut(ROWS * columns).zip(x_values.par_chunks(ROWS * columns));
        let parts: Vec<_> = tasks
            .map(|(gradient, x)| {
                let mut parameters = (vec![0f32; columns], vec![0f32; columns]);
                let rows = gradient.chunks_mut(columns).zip(x.chunks(columns));
                vectorised(|| {
                    rows.for_each(|(gradient, x)| self.backward(x, weights, gradient, &mut parameters));
                });
                parameters
            })
            .collect();
        let (weight_parts, bias_parts): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
        let total = |parts: Vec<Vec<f32>>| column_sums(&parts.concat(), columns);
        let device = x.device();
        Ok((
            Some(Tensor::from_vec(out, x.shape(), device)?),
            Some(Tensor::from_vec(total(weight_parts), weight.shape(), device)?),
            Some(Tensor::from_vec(total(bias_parts), bias.shape(), device)?),
        ))
    }
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
