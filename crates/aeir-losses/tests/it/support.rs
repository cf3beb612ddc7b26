//! Fixtures, comparison, seeded numbers, finite differences.

use std::collections::HashMap;
use std::path::PathBuf;

use candle_core::{DType, Device, Tensor, Var};

pub(crate) fn fixture_path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/parity").join(name)
}

pub(crate) struct Fixture {
    tensors: HashMap<String, Tensor>,
    metadata: HashMap<String, String>,
}

impl Fixture {
    pub(crate) fn load(name: &str) -> Self {
        let bytes = std::fs::read(fixture_path(name)).unwrap();
        let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        let tensors = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu).unwrap();
        Self { tensors, metadata: header.metadata().clone().unwrap_or_default() }
    }

    pub(crate) fn get(&self, name: &str) -> Tensor {
        self.tensors.get(name).unwrap_or_else(|| panic!("no tensor {name}")).clone()
    }

    pub(crate) fn number(&self, name: &str) -> f64 {
        number(&self.get(name))
    }

    pub(crate) fn setting(&self, name: &str) -> f64 {
        self.metadata[name].parse().unwrap()
    }
}

pub(crate) fn numbers(x: &Tensor) -> Vec<f64> {
    x.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

pub(crate) fn number(x: &Tensor) -> f64 {
    let all = numbers(x);
    assert_eq!(all.len(), 1);
    all[0]
}

/// rtol and atol of an element type.
pub(crate) fn tolerance(dtype: DType) -> (f64, f64) {
    if dtype == DType::F64 { (1e-9, 1e-9) } else { (2e-5, 2e-6) }
}

pub(crate) fn assert_close(what: &str, got: &Tensor, expected: &Tensor, (rtol, atol): (f64, f64)) {
    assert_eq!(got.elem_count(), expected.elem_count(), "{what}");
    for (i, (g, e)) in numbers(got).iter().zip(numbers(expected)).enumerate() {
        assert!((g - e).abs() <= atol + rtol * e.abs(), "{what}[{i}]: got {g}, expected {e}");
    }
}

pub(crate) fn assert_near(what: &str, got: f64, expected: f64, tolerance: f64) {
    assert!((got - expected).abs() <= tolerance, "{what}: got {got}, expected {expected}");
}

pub(crate) fn var(x: &Tensor, dtype: DType) -> Var {
    Var::from_tensor(&x.to_dtype(dtype).unwrap().contiguous().unwrap()).unwrap()
}

/// Seeded numbers (splitmix64).
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    pub(crate) fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Roughly normal: a sum of uniform numbers.
    pub(crate) fn tensor(&mut self, dims: &[usize]) -> Tensor {
        let count = dims.iter().product();
        let values: Vec<f64> =
            (0..count).map(|_| (0..12).map(|_| self.uniform()).sum::<f64>() - 6.0).collect();
        Tensor::from_vec(values, dims, &Device::Cpu).unwrap()
    }

    pub(crate) fn permutation(&mut self, size: usize) -> Tensor {
        let mut order: Vec<u32> = (0..size as u32).collect();
        for i in (1..size).rev() {
            order.swap(i, (self.uniform() * (i + 1) as f64) as usize);
        }
        Tensor::new(order, &Device::Cpu).unwrap()
    }
}

/// Compares the gradient of `loss` for each input with central differences, in f64.
pub(crate) fn check_gradients(what: &str, inputs: &[Tensor], loss: impl Fn(&[Tensor]) -> Tensor) {
    let vars: Vec<Var> = inputs.iter().map(|x| var(x, DType::F64)).collect();
    let tensors: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
    let value = loss(&tensors);
    assert!(value.dims().is_empty(), "{what}: not a scalar");
    let gradients = value.backward().unwrap();
    let step = 1e-5;
    for (k, input) in inputs.iter().enumerate() {
        let gradient = gradients.get(&vars[k]).unwrap_or_else(|| panic!("{what}: no gradient at input {k}"));
        let gradient = numbers(gradient);
        assert!(gradient.iter().any(|g| *g != 0.0), "{what}: zero gradient at input {k}");
        let start = numbers(input);
        for i in 0..start.len() {
            let moved = |by: f64| {
                let mut values = start.clone();
                values[i] += by;
                let mut moved = inputs.to_vec();
                moved[k] = Tensor::from_vec(values, input.dims(), &Device::Cpu).unwrap();
                number(&loss(&moved))
            };
            let expected = (moved(step) - moved(-step)) / (2.0 * step);
            let got = gradient[i];
            let right = (got - expected).abs() <= 1e-6 * (1.0 + expected.abs());
            assert!(right, "{what}, input {k}[{i}]: got {got}, expected {expected}");
        }
    }
}

/// Random weights for a critic, by name.
pub(crate) fn critic_weights(
    numbers: &mut Numbers,
    dimension: usize,
    widths: [usize; 2],
) -> Vec<(String, Tensor)> {
    let sizes = [(dimension, widths[0]), (widths[0], widths[1]), (widths[1], 1)];
    let mut weights = Vec::new();
    for (i, (inputs, outputs)) in sizes.into_iter().enumerate() {
        let weight = (numbers.tensor(&[outputs, inputs]) * 0.5).unwrap();
        weights.push((format!("layers.{i}.weight"), weight));
        weights.push((format!("layers.{i}.bias"), (numbers.tensor(&[outputs]) * 0.5).unwrap()));
    }
    weights
}

pub(crate) fn critic(
    weights: impl IntoIterator<Item = (String, Tensor)>,
    dimension: usize,
    widths: [usize; 2],
) -> aeir_losses::DomainCritic {
    let weights: HashMap<String, Tensor> = weights.into_iter().collect();
    let dtype = weights["layers.0.weight"].dtype();
    let builder = candle_nn::VarBuilder::from_tensors(weights, dtype, &Device::Cpu);
    aeir_losses::DomainCritic::with_widths(dimension, widths, builder).unwrap()
}
