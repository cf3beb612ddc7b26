//! Each optimiser against recorded steps of PyTorch's.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test's helpers")]

use std::collections::HashMap;
use std::path::Path;

use aeir_train::optimizer::{AdamConfig, Gradients, Optimizer, Parameter, Rule, clip_factor};
use candle_core::{DType, Device, Tensor, Var};

const NAMES: [&str; 3] = ["a", "b", "c"];
const RATE: f64 = 0.02;

fn recorded() -> HashMap<String, Tensor> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/parity/optimizers");
    candle_core::safetensors::load(folder.join("optimizers.safetensors"), &Device::Cpu).unwrap()
}

fn single(tensor: &Tensor) -> Tensor {
    tensor.to_dtype(DType::F32).unwrap()
}

fn assert_close(got: &Tensor, expected: &Tensor, what: &str) {
    let flat = |tensor: &Tensor| {
        tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap()
    };
    for (got, expected) in flat(got).into_iter().zip(flat(expected)) {
        assert!((got - expected).abs() <= 2e-6 + 2e-5 * expected.abs(), "{what}: {got}, expected {expected}");
    }
}

/// Gradients that are exactly these tensors.
fn gradients(of: &[(&Parameter, Tensor)]) -> Gradients {
    let mut gradients = Gradients::default();
    for (parameter, gradient) in of {
        let loss = (parameter.variable.as_tensor() * gradient).unwrap().sum_all().unwrap();
        gradients.accumulate(&loss.backward().unwrap(), std::slice::from_ref(*parameter)).unwrap();
    }
    gradients
}

fn parameters(recorded: &HashMap<String, Tensor>, decay: f64) -> Vec<Parameter> {
    NAMES
        .iter()
        .map(|name| Parameter {
            name: (*name).to_owned(),
            variable: Var::from_tensor(&single(&recorded[&format!("start.{name}")])).unwrap(),
            rate_scale: if *name == "b" { 0.25 } else { 1.0 },
            weight_decay: if *name == "b" { 0.0 } else { decay },
        })
        .collect()
}

#[test]
fn every_rule_moves_weights_as_recorded() {
    let recorded = recorded();
    let adam = AdamConfig::default();
    let betas = AdamConfig { beta1: 0.8, beta2: 0.98, epsilon: 1e-6 };
    for (name, rule, decay) in [
        ("adamw", Rule::AdamW(adam), 0.05),
        ("adamw-betas", Rule::AdamW(betas), 0.2),
        ("adam", Rule::Adam(adam), 0.0),
        ("adam-l2", Rule::Adam(adam), 0.05),
        ("sgd", Rule::Sgd { momentum: 0.0, nesterov: false }, 0.05),
        ("sgd-momentum", Rule::Sgd { momentum: 0.9, nesterov: false }, 0.05),
        ("sgd-nesterov", Rule::Sgd { momentum: 0.9, nesterov: true }, 0.05),
    ] {
        let mut optimizer = Optimizer::new(parameters(&recorded, decay), rule).unwrap();
        let steps = recorded["gradient.a"].dim(0).unwrap();
        for step in 0..steps {
            let of: Vec<(&Parameter, Tensor)> = optimizer
                .parameters()
                .iter()
                .filter(|parameter| parameter.name != "c" || step >= 3)
                .map(|it| (it, single(&recorded[&format!("gradient.{}", it.name)].get(step).unwrap())))
                .collect();
            let gradients = gradients(&of);
            optimizer.step(&gradients, 1.0, RATE).unwrap();
            for parameter in optimizer.parameters() {
                let expected = recorded[&format!("{name}.{}", parameter.name)].get(step).unwrap();
                let what = format!("{name}, `{}` after step {}", parameter.name, step + 1);
                assert_close(parameter.variable.as_tensor(), &expected, &what);
            }
        }
    }
}

#[test]
fn clipping_scales_gradients_as_recorded() {
    let recorded = recorded();
    let parameters = parameters(&recorded, 0.0);
    let last = recorded["gradient.a"].dim(0).unwrap() - 1;
    let norms = recorded["clip.norms"].to_vec1::<f64>().unwrap();
    for (limit, norm) in [0.5, 1000.0].into_iter().zip(norms) {
        let of: Vec<(&Parameter, Tensor)> = parameters
            .iter()
            .map(|it| (it, single(&recorded[&format!("gradient.{}", it.name)].get(last).unwrap())))
            .collect();
        let mut gradients = gradients(&of);
        let got = gradients.norm().unwrap();
        assert!((got - norm).abs() < 1e-5 * norm, "{got}, expected {norm}");
        gradients.scale(clip_factor(got, Some(limit))).unwrap();
        for name in NAMES {
            let expected = &recorded[&format!("clip.{limit}.{name}")];
            assert_close(gradients.get(name).unwrap(), expected, &format!("`{name}` clipped to {limit}"));
        }
    }
}
