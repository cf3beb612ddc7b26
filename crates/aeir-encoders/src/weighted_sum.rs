//! Weighted sums over the fragments of each item, as one operation on the CPU.
//!
//! candle would run a small matrix product for each item, forward and backward, all of them on one thread.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::product::{held_values, values};
use crate::rehearsal::{Product, is_fused};
use crate::vector::{sum_of, vectorised};

/// `sum_t w_bt x_bt`: features x `[B, T, D]` and weights w `[B, T]` to `[B, D]`.
pub(crate) fn weighted_sum(features: &Tensor, weights: &Tensor) -> Result<Tensor> {
    if is_fused(&[features, weights]) && features.elem_count() > 0 {
        return features.contiguous()?.apply_op2(&weights.contiguous()?, WeightedSum);
    }
    weights.unsqueeze(1)?.contiguous()?.product(&features.contiguous()?)?.squeeze(1)
}

struct WeightedSum;

/// Fragments of an item, and D.
fn sizes(features: &[usize], weights: &[usize]) -> Result<(usize, usize)> {
    match (features, weights) {
        (&[items, fragments, dimension], &[of, each]) if (of, each) == (items, fragments) => {
            Ok((fragments, dimension))
        }
        _ => bail!("weighted sum: {features:?} with weights {weights:?}"),
    }
}

impl CustomOp2 for WeightedSum {
    fn name(&self) -> &'static str {
        "weighted-sum"
    }

    fn cpu_fwd(
        &self,
        features: &CpuStorage,
        features_layout: &Layout,
        weights: &CpuStorage,
        weights_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (fragments, dimension) = sizes(features_layout.dims(), weights_layout.dims())?;
        let (features, weights) = (values(features, features_layout)?, values(weights, weights_layout)?);
        let items = weights.len() / fragments;
        let mut out = vec![0f32; items * dimension];
        let inputs = features.par_chunks(fragments * dimension).zip(weights.par_chunks(fragments));
        out.par_chunks_mut(dimension).zip(inputs).for_each(|(out, (features, weights))| {
            vectorised(|| {
                for (row, weight) in features.chunks_exact(dimension).zip(weights) {
                    out.iter_mut().zip(row).for_each(|(sum, value)| *sum += weight * value);
                }
            });
        });
        Ok((CpuStorage::F32(out), Shape::from((items, dimension))))
    }

    fn bwd(
        &self,
        features: &Tensor,
        weights: &Tensor,
        _result: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let gradient = gradient.contiguous()?;
        let (fragments, dimension) = sizes(features.dims(), weights.dims())?;
        let guards = [features, weights, &gradient].map(Tensor::storage_and_layout);
        let slices = guards
            .iter()
            .map(|(storage, layout)| held_values(storage, layout))
            .collect::<Result<Vec<_>>>()?;
        let &[feature_values, weight_values, upstream] = slices.as_slice() else {
            bail!("weighted sum: three tensors")
        };
        let by_features = || {
            let mut out = vec![0f32; feature_values.len()];
            let inputs = weight_values.par_chunks(fragments).zip(upstream.par_chunks(dimension));
            out.par_chunks_mut(fragments * dimension).zip(inputs).for_each(|(out, (weights, upstream))| {
                vectorised(|| {
                    for (row, weight) in out.chunks_exact_mut(dimension).zip(weights) {
                        row.iter_mut().zip(upstream).for_each(|(out, value)| *out = weight * value);
                    }
                });
            });
            Tensor::from_vec(out, features.shape(), features.device())
        };
        let by_weights = || {
            let mut out = vec![0f32; weight_values.len()];
            let inputs = feature_values.par_chunks(fragments * dimension).zip(upstream.par_chunks(dimension));
            out.par_chunks_mut(fragments).zip(inputs).for_each(|(out, (features, upstream))| {
                vectorised(|| {
                    for (out, row) in out.iter_mut().zip(features.chunks_exact(dimension)) {
                        *out = sum_of(row, upstream, |value, gradient| value * gradient);
                    }
                });
            });
            Tensor::from_vec(out, weights.shape(), weights.device())
        };
        Ok((
            features.track_op().then(by_features).transpose()?,
            weights.track_op().then(by_weights).transpose()?,
        ))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Var};

    use super::*;

    fn flat(x: &Tensor) -> Vec<f64> {
        x.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn equals_the_matrix_products_forward_and_backward() {
        let noise = |shape: &[usize]| {
            let count = shape.iter().product::<usize>();
            let values: Vec<f32> = (0..count).map(|i| ((i * 7919 % 101) as f32) / 50.0 - 1.0).collect();
            Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
        };
        let run = |dtype: DType| {
            let [features, weights] = [noise(&[3, 4, 21]), noise(&[3, 4])]
                .map(|x| Var::from_tensor(&x.to_dtype(dtype).unwrap()).unwrap());
            let sum = weighted_sum(&features, &weights).unwrap();
            let loss = (&sum * noise(&[3, 21]).to_dtype(dtype).unwrap()).unwrap().sum_all().unwrap();
            let gradients = loss.backward().unwrap();
            [
                sum.detach(),
                gradients.get(&features).unwrap().clone(),
                gradients.get(&weights).unwrap().clone(),
            ]
        };
        for (single, double) in run(DType::F32).iter().zip(&run(DType::F64)) {
            assert_eq!(single.dims(), double.dims());
            let pairs = flat(single).into_iter().zip(flat(double));
            pairs.for_each(|(single, double)| assert!((single - double).abs() < 1e-5, "{single} {double}"));
        }
    }

    #[test]
    fn sizes_that_do_not_fit_are_told() {
        let ones = |shape: &[usize]| Tensor::ones(shape, DType::F32, &Device::Cpu).unwrap();
        assert!(weighted_sum(&ones(&[2, 3, 4]), &ones(&[2, 4])).is_err());
    }
}
