//! EfficientNet-lite0 against features recorded with PyTorch.

use std::path::Path;

use aeir_encoders::{EfficientNet, ImageBackbone};
use candle_core::{DType, Device, Tensor};

use crate::fixtures::{cosine, flat, image, json, max_difference, path, rgb, tensors};

fn fixture() -> EfficientNet {
    EfficientNet::load(&path("backbones/efficientnet-lite0"), &Device::Cpu).unwrap()
}

fn reference_input() -> Tensor {
    let resized = &tensors("parity/backbones/efficientnet_lite0.safetensors")["resized_u8"];
    let scaled = resized.to_dtype(DType::F32).unwrap().affine(1.0 / 255.0, 0.0).unwrap();
    scaled.affine(2.0, -1.0).unwrap()
}

#[test]
fn golden_features_of_four_images() {
    let backbone = fixture();
    for case in json("backbones/efficientnet-lite0/golden.json").as_array().unwrap() {
        let name = case["image"].as_str().unwrap();
        let image = [image(name)];
        let number = |key: &str| case[key].as_f64().unwrap();

        let input = backbone.preprocessor().pixel_values(&image, &Device::Cpu).unwrap();
        let mean = input.mean_all().unwrap().to_scalar::<f32>().unwrap();
        assert!((f64::from(mean) - number("input_mean")).abs() < 2e-5, "{name}: input mean {mean}");

        let features = flat(&backbone.encode(&image).unwrap());
        let norm = features.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
        let sum: f64 = features.iter().map(|v| f64::from(*v)).sum();
        println!("{name}: mean {mean} norm {norm} sum {sum}");
        assert!((norm - number("norm")).abs() < 1e-4, "{name}: norm {norm}");
        assert!((sum - number("sum")).abs() < 2e-3, "{name}: sum {sum}");
        for (index, expected) in case["feature_head"].as_array().unwrap().iter().enumerate() {
            let (got, expected) = (f64::from(features[index]), expected.as_f64().unwrap());
            assert!((got - expected).abs() < 2e-5, "{name}: feature {index}: {got} {expected}");
        }
    }
}

#[test]
fn pooled_features_from_resized_pixels() {
    let reference = tensors("parity/backbones/efficientnet_lite0.safetensors");
    let pooled = fixture().grid(&reference_input()).unwrap().mean(1).unwrap();
    for row in 0..8 {
        let similarity =
            cosine(&flat(&pooled.get(row).unwrap()), &flat(&reference["pooled"].get(row).unwrap()));
        println!("image {row}: cosine {similarity}");
        assert!(similarity >= 0.9999, "image {row}: cosine {similarity}");
    }
}

#[test]
fn raw_images_through_our_own_resize() {
    let reference = tensors("parity/backbones/efficientnet_lite0.safetensors");
    let backbone = fixture();
    let images: Vec<_> = (0..8).map(|index| rgb(&reference[&format!("image.{index}")])).collect();
    for (index, image) in images.iter().enumerate() {
        let got = flat(&backbone.preprocessor().pixels_u8(image).unwrap());
        assert!(got == flat(&reference["resized_u8"].get(index).unwrap()), "image {index}");
    }
    let from_raw = backbone.encode(&images).unwrap();
    for row in 0..8 {
        let similarity =
            cosine(&flat(&from_raw.get(row).unwrap()), &flat(&reference["pooled"].get(row).unwrap()));
        assert!(similarity > 0.999, "image {row}: cosine {similarity}");
    }
}

#[test]
fn grid_and_pooled_features_with_f32_weights() {
    let Ok(folder) = std::env::var("AEIR_EFFICIENTNET_F32_DIR") else {
        println!("skipped: AEIR_EFFICIENTNET_F32_DIR names no folder with f32 weights");
        return;
    };
    let reference = tensors("parity/backbones/efficientnet_lite0.safetensors");
    let backbone = EfficientNet::load(Path::new(&folder), &Device::Cpu).unwrap();
    let grid = backbone.grid(&reference_input()).unwrap();
    let difference = max_difference(&grid.mean(1).unwrap(), &reference["pooled"]);
    assert!(difference < 2e-5, "pooled: {difference}");
    let expected = reference["grid_f16"].flatten_from(2).unwrap().transpose(1, 2).unwrap();
    let difference = max_difference(&grid, &expected);
    assert!(difference < 4e-3, "grid: {difference}");
}

#[test]
fn composed_network_equals_the_fused_one() {
    let backbone = fixture();
    let input = reference_input().narrow(0, 4, 1).unwrap();
    let (fused, composed) = (backbone.grid(&input).unwrap(), backbone.grid_composed(&input).unwrap());
    let difference = max_difference(&fused, &composed);
    println!("largest difference {difference}");
    assert!(difference < 1e-4, "{difference}");
}
