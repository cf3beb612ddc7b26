//! Gradients: they arrive, they are finite, and they are right.

use aeir_encoders::{Fragments, Mode, Projection, l2_normalise};
use candle_core::{DType, Device, Tensor, Var};
use candle_nn::VarBuilder;

use crate::fixtures::flat;

fn weighted(x: &Tensor) -> f64 {
    let y = l2_normalise(x).unwrap();
    (y * coefficients(x)).unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap()
}

fn coefficients(x: &Tensor) -> Tensor {
    let values: Vec<f64> = (0..x.elem_count()).map(|i| ((i * 37 % 11) as f64) - 4.5).collect();
    Tensor::from_vec(values, x.shape(), &Device::Cpu).unwrap()
}

#[test]
fn l2_normalise_by_finite_differences() {
    let values: Vec<f64> = (0..12).map(|i| (f64::from(i) * 0.7).sin() + 0.1).collect();
    let x = Var::from_tensor(&Tensor::from_vec(values.clone(), (3, 4), &Device::Cpu).unwrap()).unwrap();
    let loss = (l2_normalise(&x).unwrap() * coefficients(&x)).unwrap().sum_all().unwrap();
    let gradient = loss.backward().unwrap().get(&x).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
    let step = 1e-6;
    for index in 0..values.len() {
        let at = |shift: f64| {
            let mut moved = values.clone();
            moved[index] += shift;
            weighted(&Tensor::from_vec(moved, (3, 4), &Device::Cpu).unwrap())
        };
        let numeric = (at(step) - at(-step)) / (2.0 * step);
        assert!((gradient[index] - numeric).abs() < 1e-7, "{index}: {} {numeric}", gradient[index]);
    }
}

#[test]
fn l2_normalise_keeps_zero_rows_and_their_gradient_finite() {
    for dtype in [DType::F32, DType::F64] {
        let x = Tensor::new(&[[0f32, 0., 0.], [3., 4., 0.], [1e-30, 0., 0.]], &Device::Cpu).unwrap();
        let x = Var::from_tensor(&x.to_dtype(dtype).unwrap()).unwrap();
        let y = l2_normalise(&x).unwrap();
        assert_eq!(flat(&y)[..3], [0.0; 3]);
        let gradient = flat(y.sum_all().unwrap().backward().unwrap().get(&x).unwrap());
        assert!(gradient.iter().all(|value| value.is_finite()), "{gradient:?}");
    }
}

#[test]
fn l2_normalise_takes_any_leading_axes() {
    for shape in [vec![4], vec![2, 4], vec![2, 3, 4]] {
        let x = Tensor::ones(shape.clone(), DType::F32, &Device::Cpu).unwrap();
        let y = l2_normalise(&x).unwrap();
        assert_eq!(y.dims(), shape);
        assert!(flat(&y).iter().all(|value| (value - 0.5).abs() < 1e-6));
    }
}

#[test]
fn projection_and_pooling_pass_gradients_to_real_fragments_only() {
    let device = Device::Cpu;
    let ramp = |shape: &[usize]| {
        let count = shape.iter().product::<usize>();
        let values: Vec<f32> = (0..count).map(|i| (i as f32 * 0.37).cos()).collect();
        Var::from_tensor(&Tensor::from_vec(values, shape, &device).unwrap()).unwrap()
    };
    let (weight, bias, x) = (ramp(&[5, 3]), ramp(&[5]), ramp(&[2, 4, 3]));
    let named = std::collections::HashMap::from([
        ("weight".to_owned(), weight.as_tensor().clone()),
        ("bias".to_owned(), bias.as_tensor().clone()),
    ]);
    let projection =
        Projection::new(3, 5, 0.0, VarBuilder::from_tensors(named, DType::F32, &device)).unwrap();
    let mask = Tensor::new(&[[1f32, 1., 0., 0.], [1., 1., 1., 0.]], &device).unwrap();
    let projected = projection.forward(&x, &mut Mode::Evaluation).unwrap();
    let pooled = Fragments::new(projected, mask.clone()).unwrap().mean_pooled().unwrap();
    let gradients = pooled.sqr().unwrap().sum_all().unwrap().backward().unwrap();
    for parameter in [&weight, &bias] {
        let gradient = flat(gradients.get(parameter).unwrap());
        assert!(gradient.iter().all(|value| value.is_finite()) && gradient.iter().any(|value| *value != 0.0));
    }
    let by_fragment = gradients.get(&x).unwrap().abs().unwrap().sum(2).unwrap();
    for (gradient, mask) in flat(&by_fragment).iter().zip(flat(&mask)) {
        assert_eq!(*gradient != 0.0, mask != 0.0);
    }
}
