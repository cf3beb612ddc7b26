//! What holds whatever the numbers are: order, batching and padding do not change a result.

use aeir_encoders::preprocess::Size;
use aeir_encoders::{
    EncoderError, Fragments, ImageBackbone, ImagePreprocessor, Mode, PreparedImage, Projection, TextBackbone,
    dropout, load_image_backbone, load_text_backbone,
};
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use image::DynamicImage;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::fixtures::{flat, image, max_difference, path};

fn image_backbone() -> Box<dyn ImageBackbone> {
    load_image_backbone(&path("backbones/efficientnet-lite0"), &Device::Cpu).unwrap()
}

fn text_backbone() -> Box<dyn TextBackbone> {
    load_text_backbone(&path("backbones/static-minilm"), &Device::Cpu).unwrap()
}

fn images() -> Vec<DynamicImage> {
    ["wide_rgb_418x169.png", "tall_rgba_147x421.png", "tiny_20x30.png"]
        .map(|name| image(&format!("parity/preprocessing/images/{name}")))
        .to_vec()
}

#[test]
fn an_image_has_the_same_bits_alone_and_in_any_batch() {
    let backbone = image_backbone();
    let images = images();
    let together = flat(&backbone.encode(&images).unwrap());
    let alone: Vec<f32> = images
        .iter()
        .flat_map(|image| flat(&backbone.encode(std::slice::from_ref(image)).unwrap()))
        .collect();
    assert_eq!(together, alone);
    let reversed: Vec<_> = images.iter().rev().cloned().collect();
    let reversed = backbone.encode(&reversed).unwrap();
    let back: Vec<f32> = (0..3).rev().flat_map(|row| flat(&reversed.get(row).unwrap())).collect();
    assert_eq!(together, back);
}

/// Prepared elsewhere, one by one, as a loader does it.
#[test]
fn prepared_images_have_the_same_bits() {
    let backbone = image_backbone();
    let images = images();
    let prepared: Vec<PreparedImage> =
        images.iter().map(|image| backbone.preprocessor().prepare(image).unwrap()).collect();
    assert_eq!((prepared[0].size().width, prepared[0].bytes().len()), (224, 224 * 224 * 3));
    let whole = flat(&backbone.encode(&images).unwrap());
    assert_eq!(flat(&backbone.encode_prepared(&prepared).unwrap()), whole);
    let planes = backbone.preprocessor().pixels_u8(&images[1]).unwrap().permute((1, 2, 0)).unwrap();
    assert_eq!(planes.flatten_all().unwrap().to_vec1::<u8>().unwrap(), prepared[1].bytes());

    let mut config = backbone.preprocessor().config().clone();
    config.crop = Some(Size { width: 100, height: 50 });
    let other = ImagePreprocessor::new(config).unwrap().prepare(&images[0]).unwrap();
    let refused = backbone.encode_prepared(&[other]).unwrap_err();
    assert!(matches!(refused, EncoderError::ImageSize { width: 100, height: 50, .. }), "{refused}");
}

#[test]
fn grid_fragments_pool_to_the_feature() {
    let backbone = image_backbone();
    let images = images();
    let fragments = backbone.fragments(&images).unwrap();
    assert_eq!(fragments.features().dims(), [3, 49, backbone.dimension()]);
    let difference = max_difference(&fragments.mean_pooled().unwrap(), &backbone.encode(&images).unwrap());
    assert!(difference < 1e-5, "{difference}");
}

#[test]
fn nothing_in_nothing_out() {
    assert_eq!(image_backbone().encode(&[]).unwrap().dims(), [0, 1280]);
    assert_eq!(text_backbone().encode(&[]).unwrap().dims(), [0, 256]);
    assert_eq!(text_backbone().fragments(&[]).unwrap().features().dims(), [0, 1, 256]);
}

#[test]
fn fingerprints_name_the_files() {
    let (image, text) = (image_backbone(), text_backbone());
    assert_eq!(image.fingerprint(), image_backbone().fingerprint());
    assert_ne!(image.fingerprint(), text.fingerprint());
    assert_eq!(image.fingerprint().len(), 64);
    assert_eq!((image.files().len(), text.files().len()), (2, 3));
    assert!(image.files().iter().chain(text.files()).all(|file| file.is_file()));
}

#[test]
fn sentences_do_not_see_each_other() {
    let backbone = text_backbone();
    let long = "a red apple beside the tree ".repeat(20_000);
    let sentences = ["a red apple", "", "Ünïcödé 苹果 🍎", "\u{0}\u{fffd}", long.as_str()];
    let together = backbone.encode(&sentences).unwrap();
    let alone: Vec<Tensor> = sentences.iter().map(|sentence| backbone.encode(&[sentence]).unwrap()).collect();
    assert_eq!(flat(&together), flat(&Tensor::cat(&alone, 0).unwrap()));
    assert!(flat(&together).iter().all(|value| value.is_finite()));
    assert!(flat(&together.get(1).unwrap()).iter().all(|value| *value == 0.0));
}

#[test]
fn word_fragments_pool_to_the_direction_of_the_feature() {
    let backbone = text_backbone();
    let sentences = ["a zebra", "apple pie, dessert, food", ""];
    let fragments = backbone.fragments(&sentences).unwrap();
    assert_eq!(flat(&fragments.counts().unwrap()), [2.0, 6.0, 0.0]);
    let pooled = aeir_encoders::l2_normalise(&fragments.mean_pooled().unwrap()).unwrap();
    let difference = max_difference(&pooled, &backbone.encode(&sentences).unwrap());
    assert!(difference < 1e-5, "{difference}");
}

#[test]
fn padding_is_never_pooled() {
    let device = Device::Cpu;
    let features =
        Tensor::from_vec(vec![1f32, 2., 3., 4., 99., -99., 5., 6., 7., 8., 9., 10.], (2, 3, 2), &device)
            .unwrap();
    let mask = Tensor::from_vec(vec![1u8, 1, 0, 1, 1, 1], (2, 3), &device).unwrap();
    let pooled = Fragments::new(features.clone(), mask).unwrap().mean_pooled().unwrap();
    assert_eq!(flat(&pooled), [2.0, 3.0, 7.0, 8.0]);
    let nothing = Tensor::zeros((2, 3), DType::F32, &device).unwrap();
    assert_eq!(flat(&Fragments::new(features.clone(), nothing).unwrap().mean_pooled().unwrap()), [0.0; 4]);
    let wrong = Tensor::zeros((2, 4), DType::F32, &device).unwrap();
    assert!(matches!(Fragments::new(features, wrong), Err(EncoderError::Shape { .. })));
}

#[test]
fn dropout_repeats_with_its_seed_and_keeps_the_mean() {
    let x = Tensor::ones((200, 500), DType::F32, &Device::Cpu).unwrap();
    let draw = |seed: u64| {
        let mut generator = ChaCha8Rng::seed_from_u64(seed);
        flat(&dropout(&x, 0.4, &mut Mode::Training(&mut generator)).unwrap())
    };
    let (first, again, other) = (draw(1), draw(1), draw(2));
    assert_eq!(first, again);
    assert_ne!(first, other);
    let kept = first.iter().filter(|value| **value != 0.0).count() as f32 / first.len() as f32;
    assert!((kept - 0.6).abs() < 0.01, "{kept}");
    let mean = first.iter().sum::<f32>() / first.len() as f32;
    assert!((mean - 1.0).abs() < 0.02, "{mean}");
}

#[test]
fn dropout_off_leaves_values_and_generator_alone() {
    let x = Tensor::ones((3, 4), DType::F32, &Device::Cpu).unwrap();
    assert_eq!(flat(&dropout(&x, 0.9, &mut Mode::Evaluation).unwrap()), [1.0; 12]);
    let mut generator = ChaCha8Rng::seed_from_u64(3);
    dropout(&x, 0.0, &mut Mode::Training(&mut generator)).unwrap();
    assert_eq!(generator.next_u32(), ChaCha8Rng::seed_from_u64(3).next_u32());
    for probability in [1.0, -0.1, f32::NAN] {
        assert!(matches!(
            dropout(&x, probability, &mut Mode::Evaluation),
            Err(EncoderError::Argument { .. })
        ));
    }
}

#[test]
fn projection_is_the_linear_layer_over_the_last_axis() {
    let device = Device::Cpu;
    let weight = Tensor::from_vec(vec![1f32, 0., 2., 0., 1., -1.], (2, 3), &device).unwrap();
    let bias = Tensor::from_vec(vec![0.5f32, -0.5], 2, &device).unwrap();
    let named = std::collections::HashMap::from([("weight".to_owned(), weight), ("bias".to_owned(), bias)]);
    let builder = VarBuilder::from_tensors(named.clone(), DType::F32, &device);
    let projection = Projection::new(3, 2, 0.5, builder).unwrap();
    assert_eq!((projection.input_dimension(), projection.dimension()), (3, 2));
    let x = Tensor::from_vec(vec![1f32, 2., 3., 0., 0., 0.], (1, 2, 3), &device).unwrap();
    let y = projection.forward(&x, &mut Mode::Evaluation).unwrap();
    assert_eq!(y.dims(), [1, 2, 2]);
    assert_eq!(flat(&y), [7.5, -1.5, 0.5, -0.5]);
    let wrong = Tensor::zeros((2, 4), DType::F32, &device).unwrap();
    assert!(matches!(projection.forward(&wrong, &mut Mode::Evaluation), Err(EncoderError::Shape { .. })));
    let builder = VarBuilder::from_tensors(named, DType::F32, &device);
    assert!(matches!(Projection::new(4, 2, 0.5, builder), Err(EncoderError::Tensor { .. })));
}
