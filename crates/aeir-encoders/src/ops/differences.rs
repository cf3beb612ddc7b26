//! For the tests of this module: gradients against finite differences.

use candle_core::{DType, Device, Tensor, Var};

use crate::error::Result;

/// Numbers between -1 and 1 in f64 that look random.
pub(super) fn noise(seed: usize, shape: &[usize]) -> Tensor {
    let count = shape.iter().product();
    let values: Vec<f64> =
        (0..count).map(|index| ((index + 31 * seed) * 7919 % 1009) as f64 / 504.5 - 1.0).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// All numbers as f64.
pub(super) fn flat(x: &Tensor) -> Vec<f64> {
    x.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}

/// `sum c y` with fixed numbers c, and its gradient by each input.
fn weighted(inputs: &[Tensor], run: impl Fn(&[Tensor]) -> Result<Tensor>) -> (f64, Vec<Vec<f64>>) {
    let variables: Vec<Var> = inputs.iter().map(|input| Var::from_tensor(input).unwrap()).collect();
    let tensors: Vec<Tensor> = variables.iter().map(|variable| variable.as_tensor().clone()).collect();
    let y = run(&tensors).unwrap();
    let coefficients = noise(17, y.dims()).to_dtype(y.dtype()).unwrap();
    let sum = (y * coefficients).unwrap().to_dtype(DType::F64).unwrap().sum_all().unwrap();
    let gradients = sum.backward().unwrap();
    let flats = variables.iter().map(|variable| flat(gradients.get(variable).expect("a gradient")));
    (sum.to_scalar().unwrap(), flats.collect())
}

/// Checks the gradient by every element of every input (f64): the composed path against central differences, the f32 path
/// against the composed one.
pub(super) fn assert_gradients(name: &str, inputs: &[Tensor], run: impl Fn(&[Tensor]) -> Result<Tensor>) {
    const STEP: f64 = 1e-5;
    let (_, gradients) = weighted(inputs, &run);
    for (which, gradient) in gradients.iter().enumerate() {
        let values = flat(&inputs[which]);
        for (index, gradient) in gradient.iter().enumerate() {
            let at = |shift: f64| {
                let mut moved = values.clone();
                moved[index] += shift;
                let mut inputs = inputs.to_vec();
                inputs[which] = Tensor::from_vec(moved, inputs[which].shape(), &Device::Cpu).unwrap();
                weighted(&inputs, &run).0
            };
            let numeric = (at(STEP) - at(-STEP)) / (2.0 * STEP);
            assert!(
                (gradient - numeric).abs() < 1e-7,
                "{name}, input {which}, {index}: {gradient} {numeric}"
            );
        }
    }
    let single: Vec<Tensor> = inputs.iter().map(|input| input.to_dtype(DType::F32).unwrap()).collect();
    for (which, (exact, single)) in gradients.iter().zip(weighted(&single, &run).1).enumerate() {
        for (index, (exact, single)) in exact.iter().zip(single).enumerate() {
            let tolerance = 1e-5 * exact.abs().max(1.0);
            assert!((exact - single).abs() < tolerance, "{name}, input {which}, {index}: {single} {exact}");
        }
    }
}
