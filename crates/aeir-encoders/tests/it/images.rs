//! Image networks in training and with input that does not fit.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use aeir_encoders::{EncoderError, FineTuning, ImageModel, Mode, VisionBackbone, load_image_backbone};
use candle_core::{Device, Tensor};
use image::{DynamicImage, RgbImage};
use serde_json::json;

use crate::fixtures::{flat, max_difference, path, tensors};
use crate::tiny_models::{copy, set};

/// All that see images.
const IMAGE: [&str; 8] =
    ["vit", "dinov2", "dinov2-registers", "resnet-basic", "resnet-bottleneck", "convnext", "clip", "siglip"];

fn golden_pixels(name: &str) -> Tensor {
    tensors(&format!("parity/tiny-models/{name}/golden.safetensors"))["pixel_values"].clone()
}

/// A weighted sum: a plain one would not move with what a last norm takes out again.
fn loss(model: &ImageModel, pixels: &Tensor) -> Tensor {
    let output = model.forward(pixels, &mut Mode::Evaluation).unwrap();
    let weights: Vec<f32> = (0..output.elem_count()).map(|i| ((i * 37 % 23) as f32 - 11.0) / 11.0).collect();
    let weights = Tensor::from_vec(weights, output.shape(), &Device::Cpu).unwrap();
    (output * weights).unwrap().sum_all().unwrap()
}

/// Tensors of a file that no image vector depends on, or that are statistics.
fn is_not_trained(name: &str) -> bool {
    name.starts_with("text_")
        || name.starts_with("logit_")
        || name == "embeddings.mask_token"
        || [".running_mean", ".running_var", ".num_batches_tracked"].iter().any(|end| name.ends_with(end))
}

/// Attention weights are the same for any constant that is added to all keys.
fn is_key_bias(name: &str) -> bool {
    name.ends_with(".key.bias") || name.ends_with(".k_proj.bias")
}

#[test]
fn every_parameter_has_a_finite_gradient_that_is_not_zero() {
    for name in IMAGE {
        let folder = path(&format!("parity/tiny-models/{name}"));
        let (model, parameters) =
            ImageModel::load_trainable(&folder, &Device::Cpu, &FineTuning::default()).unwrap();
        let in_file = tensors(&format!("parity/tiny-models/{name}/model.safetensors"));
        let expected: BTreeSet<_> = in_file.into_keys().filter(|tensor| !is_not_trained(tensor)).collect();
        assert_eq!(parameters.variables().keys().cloned().collect::<BTreeSet<_>>(), expected, "{name}");
        let gradients = loss(&model, &golden_pixels(name)).backward().unwrap();
        for (parameter, variable) in parameters.variables() {
            let gradient =
                flat(gradients.get(variable).unwrap_or_else(|| panic!("{name}: none for {parameter}")));
            assert!(gradient.iter().all(|value| value.is_finite()), "{name}: {parameter}");
            let size = gradient.iter().map(|value| value.abs()).fold(0.0, f32::max);
            assert!(size > 1e-5 || is_key_bias(parameter), "{name}: {parameter} has {size}");
        }
    }
}

/// The change of the loss along the gradient is the gradient's squared length.
#[test]
fn gradients_are_the_slopes_of_the_loss() {
    for name in IMAGE {
        let folder = path(&format!("parity/tiny-models/{name}"));
        let (model, parameters) =
            ImageModel::load_trainable(&folder, &Device::Cpu, &FineTuning::default()).unwrap();
        let pixels = golden_pixels(name);
        let gradients = loss(&model, &pixels).backward().unwrap();
        let mut slope = 0.0;
        for variable in parameters.variables().values() {
            slope +=
                flat(gradients.get(variable).unwrap()).iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
        }
        let originals: Vec<Tensor> =
            parameters.variables().values().map(|variable| variable.as_tensor().copy().unwrap()).collect();
        let step = 1e-3 / slope.sqrt();
        let at = |factor: f64| {
            for (variable, original) in parameters.variables().values().zip(&originals) {
                let gradient = gradients.get(variable).unwrap();
                variable.set(&(original + (gradient * (factor * step)).unwrap()).unwrap()).unwrap();
            }
            f64::from(loss(&model, &pixels).to_scalar::<f32>().unwrap())
        };
        let numeric = (at(1.0) - at(-1.0)) / (2.0 * step);
        assert!((numeric / slope - 1.0).abs() < 0.03, "{name}: {numeric} {slope}");
    }
}

#[test]
fn a_trained_network_computes_what_the_frozen_one_does_and_its_statistics_stay() {
    for name in IMAGE {
        let folder = path(&format!("parity/tiny-models/{name}"));
        let pixels = golden_pixels(name);
        let frozen = ImageModel::load(&folder, &Device::Cpu).unwrap();
        let (trained, _) = ImageModel::load_trainable(&folder, &Device::Cpu, &FineTuning::default()).unwrap();
        let expected = frozen.forward(&pixels, &mut Mode::Evaluation).unwrap();
        assert!(!expected.track_op());
        let mut generator = rand_chacha::rand_core::SeedableRng::seed_from_u64(3);
        let got = trained.forward(&pixels, &mut Mode::Training(&mut generator)).unwrap();
        // No dropout in these configurations, and batch normalisation keeps the checkpoint's statistics.
        assert!(got.track_op() && max_difference(&got, &expected) < 1e-5, "{name}");
        let again = trained.forward(&pixels.narrow(0, 0, 1).unwrap(), &mut Mode::Evaluation).unwrap();
        assert!(max_difference(&again, &expected.narrow(0, 0, 1).unwrap()) < 1e-5, "{name}");
    }
}

#[test]
fn frozen_names_stay_out_of_training() {
    let folder = path("parity/tiny-models/resnet-basic");
    let plan = FineTuning::freezing(["embedder.*", "encoder.stages.[0-2].*"]);
    let (model, parameters) = ImageModel::load_trainable(&folder, &Device::Cpu, &plan).unwrap();
    assert!(parameters.variables().keys().all(|name| name.starts_with("encoder.stages.3.")));
    let gradients = loss(&model, &golden_pixels("resnet-basic")).backward().unwrap();
    assert!(parameters.variables().values().all(|variable| gradients.get(variable).is_some()));
}

fn pictures(count: u32) -> Vec<DynamicImage> {
    (0..count)
        .map(|index| {
            RgbImage::from_fn(50 + 7 * index, 60 - index, |x, y| {
                image::Rgb([(x * 5 + index) as u8, (y * 3) as u8, (x * y + 40 * index) as u8])
            })
            .into()
        })
        .collect()
}

#[test]
fn an_image_is_the_same_alone_and_in_any_batch() {
    let images = pictures(19);
    for name in IMAGE {
        let folder = copy(name);
        let backbone = load_image_backbone(folder.path(), &Device::Cpu).unwrap();
        let (all, cells) = (backbone.encode(&images).unwrap(), backbone.fragments(&images).unwrap());
        assert_eq!(all.dims(), [19, backbone.dimension()], "{name}");
        assert_eq!(cells.features().dim(2).unwrap(), backbone.dimension(), "{name}");
        assert!(flat(cells.mask()).iter().all(|value| *value == 1.0));
        for index in [0, 17, 18] {
            let image = std::slice::from_ref(&images[index]);
            let alone = backbone.encode(image).unwrap();
            assert!(max_difference(&alone, &all.narrow(0, index, 1).unwrap()) < 1e-6, "{name} {index}");
            let alone = backbone.fragments(image).unwrap();
            let expected = cells.features().narrow(0, index, 1).unwrap();
            assert!(max_difference(alone.features(), &expected) < 1e-6, "{name} {index}");
        }
        assert_eq!(backbone.encode(&[]).unwrap().dims(), [0, backbone.dimension()]);
        assert_eq!(backbone.fragments(&[]).unwrap().features().dim(0).unwrap(), 0);
        assert_eq!(backbone.files().len(), 3);
    }
}

#[test]
fn fingerprints_follow_weights_configuration_and_preprocessing() {
    let folder = copy("vit");
    let load = || VisionBackbone::load(folder.path(), &Device::Cpu).unwrap();
    let print = |backbone: &VisionBackbone| {
        use aeir_encoders::ImageBackbone;
        backbone.fingerprint().to_owned()
    };
    let first = print(&load());
    assert_eq!(first, print(&load()));
    set(&folder.path().join("preprocessor_config.json"), "/resample", json!(3));
    assert_ne!(first, print(&load()));
}

fn error(folder: &Path) -> EncoderError {
    load_image_backbone(folder, &Device::Cpu).err().expect("an error")
}

#[test]
fn configurations_that_do_not_fit() {
    for (name, pointer, value, key) in [
        ("vit", "/num_attention_heads", json!(5), "num_attention_heads"),
        ("vit", "/hidden_act", json!("glu"), "hidden_act"),
        ("vit", "/num_channels", json!(1), "num_channels"),
        ("vit", "/image_size", json!(1_000_000), "image_size"),
        ("vit", "/patch_size", json!(64), "patch_size"),
        ("vit", "/patch_size", json!(0), "patch_size"),
        ("vit", "/layer_norm_eps", json!(-1.0), "layer_norm_eps"),
        ("vit", "/hidden_dropout_prob", json!(1.5), "hidden_dropout_prob"),
        ("vit", "/pooler_output_size", json!(8), "pooler_output_size"),
        ("dinov2", "/mlp_ratio", json!("four"), "mlp_ratio"),
        ("dinov2", "/use_swiglu_ffn", json!(1), "use_swiglu_ffn"),
        ("resnet-basic", "/layer_type", json!("dense"), "layer_type"),
        ("resnet-basic", "/hidden_act", json!("gelu"), "hidden_act"),
        ("resnet-basic", "/depths", json!([1, 1]), "depths"),
        ("resnet-basic", "/hidden_sizes", json!([]), "hidden_sizes"),
        ("resnet-bottleneck", "/hidden_sizes", json!([2, 16, 24, 32]), "hidden_sizes"),
        ("convnext", "/depths", json!([1, 1, 2, -1]), "depths"),
        ("convnext", "/patch_size", json!(100_000), "patch_size"),
        ("clip", "/vision_config/hidden_act", json!(3), "vision_config.hidden_act"),
        ("clip", "/vision_config", json!(7), "vision_config"),
        ("siglip", "/vision_config/vision_use_head", json!(false), "vision_config.vision_use_head"),
    ] {
        let folder = copy(name);
        set(&folder.path().join("config.json"), pointer, value);
        let error = error(folder.path());
        assert!(
            matches!(&error, EncoderError::Config { key: got, .. } if got == key),
            "{name} {key}: {error}"
        );
    }
    // Sizes without bound end at the first tensor, which is not that large.
    for (name, pointer) in [
        ("dinov2", "/hidden_size"),
        ("vit", "/intermediate_size"),
        ("dinov2", "/mlp_ratio"),
        ("resnet-basic", "/embedding_size"),
        ("clip", "/projection_dim"),
    ] {
        let folder = copy(name);
        set(&folder.path().join("config.json"), pointer, json!(4_000_000_000u64));
        let error = error(folder.path());
        assert!(matches!(&error, EncoderError::TensorShape { .. }), "{name} {pointer}: {error}");
    }
    let folder = copy("vit");
    set(&folder.path().join("config.json"), "/num_hidden_layers", json!(9_999));
    let error = error(folder.path());
    assert!(
        matches!(&error, EncoderError::MissingTensor { key, .. } if key.starts_with("encoder.layer.2.")),
        "{error}"
    );
}

#[test]
fn preprocessing_that_does_not_fit_the_network() {
    for name in ["vit", "clip", "siglip"] {
        let folder = copy(name);
        let file = folder.path().join("preprocessor_config.json");
        set(&file, "/size", json!({"height": 40, "width": 40}));
        set(&file, "/do_center_crop", json!(false));
        let error = error(folder.path());
        assert!(
            matches!(&error, EncoderError::Config { key, expected, got, .. }
                if key == "size" && expected.starts_with("32x32") && got == "40x40"),
            "{name}: {error}"
        );
    }
    // 4096 pixels a side make 85,000 patches: attention over them would need gigabytes.
    let folder = copy("dinov2");
    let file = folder.path().join("preprocessor_config.json");
    set(&file, "/size", json!({"height": 4096, "width": 4096}));
    set(&file, "/do_center_crop", json!(false));
    assert!(matches!(&error(folder.path()), EncoderError::Config { key, .. } if key == "size"));
    fs::remove_file(&file).unwrap();
    assert!(matches!(&error(folder.path()), EncoderError::MissingFile { file: got } if *got == file));
}

#[test]
fn pixel_values_that_do_not_fit() {
    for name in IMAGE {
        let model = ImageModel::load(&path(&format!("parity/tiny-models/{name}")), &Device::Cpu).unwrap();
        for shape in [vec![1, 3, 0, 0], vec![1, 4, 32, 32], vec![3, 32, 32], vec![1, 3, 0, 32]] {
            let pixels = Tensor::zeros(shape.clone(), candle_core::DType::F32, &Device::Cpu).unwrap();
            let result = model.states(&pixels, &mut Mode::Evaluation);
            assert!(matches!(result, Err(EncoderError::Shape { .. })), "{name} {shape:?}");
        }
    }
}

#[test]
fn weights_that_do_not_fit() {
    for name in IMAGE {
        let folder = copy(name);
        let file = folder.path().join("model.safetensors");
        let whole = fs::read(&file).unwrap();
        for length in [0, 7, 8, 100, whole.len() / 2, whole.len() - 1] {
            fs::write(&file, &whole[..length]).unwrap();
            let error = error(folder.path());
            assert!(matches!(&error, EncoderError::Safetensors { .. }), "{name} at {length}: {error}");
        }
        let stored = candle_core::safetensors::load_buffer(&whole, &Device::Cpu).unwrap();
        let used = stored.keys().filter(|name| !is_not_trained(name) || name.ends_with(".running_var"));
        for tensor in used {
            let mut others = stored.clone();
            let removed = others.remove(tensor).unwrap();
            candle_core::safetensors::save(&others, &file).unwrap();
            // A checkpoint may lack these: then the vector is what comes before them.
            let is_optional = tensor == "visual_projection.weight" || tensor == "pooler.dense.weight";
            match load_image_backbone(folder.path(), &Device::Cpu) {
                Err(EncoderError::MissingTensor { key, .. }) if key.ends_with(tensor.as_str()) => {}
                Ok(_) if is_optional => {}
                Err(error) => panic!("{name} without {tensor}: {error}"),
                Ok(_) => panic!("{name} without {tensor}"),
            }
            others.insert(tensor.clone(), removed.flatten_all().unwrap().repeat(2).unwrap());
            candle_core::safetensors::save(&others, &file).unwrap();
            let error = error(folder.path());
            assert!(
                matches!(&error, EncoderError::TensorShape { key, .. } if key == tensor),
                "{name}, {tensor}: {error}"
            );
        }
    }
}

#[test]
fn variances_below_zero_are_refused() {
    let folder = copy("resnet-basic");
    let file = folder.path().join("model.safetensors");
    let mut stored = candle_core::safetensors::load(&file, &Device::Cpu).unwrap();
    let key = "embedder.embedder.normalization.running_var";
    let negative = stored[key].neg().unwrap();
    stored.insert(key.to_owned(), negative);
    candle_core::safetensors::save(&stored, &file).unwrap();
    assert!(matches!(error(folder.path()), EncoderError::TensorValue { .. }));
}
