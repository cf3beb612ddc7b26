//! Four published image processors against pixels recorded with them.

use aeir_encoders::ImagePreprocessor;
use candle_core::{Device, Tensor};
use image::DynamicImage;

use crate::fixtures::{flat, image, json, rgb, tensors};

const PROCESSORS: [&str; 4] = ["clip", "siglip", "vit", "dinov2"];

fn processor(name: &str) -> ImagePreprocessor {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("preprocessor_config.json");
    let config = &json("parity/preprocessing/preprocessing.json")["processors"][name];
    std::fs::write(&file, serde_json::to_vec(config).unwrap()).unwrap();
    ImagePreprocessor::from_hugging_face(&file).unwrap()
}

fn files() -> Vec<String> {
    let images = json("parity/preprocessing/preprocessing.json");
    let images = images["images"].as_array().unwrap();
    images
        .iter()
        .map(|image| format!("parity/preprocessing/images/{}", image["file"].as_str().unwrap()))
        .collect()
}

/// JPEG decoders differ by a few levels; without that the bytes are the same.
fn check(name: &str, got: &Tensor, expected: &Tensor) {
    let (got, expected) = (flat(got), flat(expected));
    assert_eq!(got.len(), expected.len());
    let largest = got.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    let share = got.iter().zip(&expected).filter(|(a, b)| a != b).count() as f32 / got.len() as f32;
    println!("{name}: max {largest}, {:.2} % of bytes", 100.0 * share);
    let limits = if name.ends_with(".jpg") { (2.0, 0.015) } else { (0.0, 0.0) };
    assert!(largest <= limits.0 && share <= limits.1, "{name}: max {largest}, share {share}");
}

#[test]
fn pixels_after_resize_and_crop() {
    let reference = tensors("parity/preprocessing/preprocessing.safetensors");
    for name in PROCESSORS {
        let processor = processor(name);
        for (index, file) in files().iter().enumerate() {
            let got = processor.pixels_u8(&image(file)).unwrap();
            check(
                &format!("{name} {file}"),
                &got,
                &reference[&format!("{name}.pixels_u8")].get(index).unwrap(),
            );
        }
        // Without the differences between JPEG decoders.
        let got = processor.pixels_u8(&rgb(&reference["decoded.5"])).unwrap();
        check(&format!("{name} decoded"), &got, &reference[&format!("{name}.pixels_u8")].get(5).unwrap());
    }
}

/// An image that has the size a processor resizes to passes through unchanged: what is left is rescaling, exactly.
#[test]
fn pixel_values_are_exact_from_bytes() {
    let reference = tensors("parity/preprocessing/preprocessing.safetensors");
    for name in ["clip", "siglip", "vit"] {
        let pixels = &reference[&format!("{name}.pixels_u8")];
        let images: Vec<DynamicImage> =
            (0..6).map(|index| rgb(&pixels.get(index).unwrap().permute((1, 2, 0)).unwrap())).collect();
        let values = processor(name).pixel_values(&images, &Device::Cpu).unwrap();
        let every_eighth = Tensor::arange_step(0u32, 224, 8, &Device::Cpu).unwrap();
        let sampled = values.index_select(&every_eighth, 2).unwrap().index_select(&every_eighth, 3).unwrap();
        let expected = flat(&reference[&format!("{name}.pixel_values_stride8")]);
        assert_eq!(flat(&sampled.contiguous().unwrap()), expected, "{name}");
    }
}

#[test]
fn means_of_all_pixel_values() {
    let reference = tensors("parity/preprocessing/preprocessing.safetensors");
    for name in PROCESSORS {
        let images: Vec<_> = files().iter().map(|file| image(file)).collect();
        let values = processor(name).pixel_values(&images, &Device::Cpu).unwrap();
        let means = flat(&values.flatten_from(2).unwrap().mean(2).unwrap());
        let expected = flat(&reference[&format!("{name}.pixel_values_mean_f64")]);
        for (got, expected) in means.iter().zip(expected) {
            assert!((got - expected).abs() < 1e-3, "{name}: {got} {expected}");
        }
    }
}

#[test]
fn settings_that_need_another_computation_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("preprocessor_config.json");
    let base = r#""image_mean":[0,0,0],"image_std":[1,1,1]"#;
    for (config, key) in [
        (format!(r#"{{"size":224,"resample":1,{base}}}"#), "resample"),
        (format!(r#"{{"size":0,"resample":2,{base}}}"#), "resize"),
        (format!(r#"{{"size":{{"shortest_edge":224}},"resample":2,{base}}}"#), "crop"),
        (format!(r#"{{"size":32,"resample":2,"do_center_crop":true,"crop_size":64,{base}}}"#), "crop"),
        (format!(r#"{{"size":32,"resample":2,"do_resize":false,{base}}}"#), "do_resize"),
        (r#"{"size":32,"resample":2}"#.to_owned(), "image_mean"),
        (r#"{"size":32,"resample":2,"image_mean":[0,0,0],"image_std":[1,0,1]}"#.to_owned(), "std"),
    ] {
        std::fs::write(&file, &config).unwrap();
        match ImagePreprocessor::from_hugging_face(&file) {
            Err(aeir_encoders::EncoderError::Config { key: got, .. }) => assert_eq!(got, key, "{config}"),
            other => panic!("{config}: {other:?}"),
        }
    }
}

#[test]
fn alpha_is_composited_before_resizing() {
    let clear = image::RgbaImage::from_pixel(40, 30, image::Rgba([200, 10, 10, 0]));
    let folder = crate::fixtures::path("backbones/efficientnet-lite0");
    let backbone = aeir_encoders::load_image_backbone(&folder, &Device::Cpu).unwrap();
    let pixels = flat(&backbone.preprocessor().pixels_u8(&clear.clone().into()).unwrap());
    assert!(pixels.iter().all(|value| *value == 255.0));
    let dropped = flat(&processor("vit").pixels_u8(&clear.into()).unwrap());
    assert_eq!(dropped[0], 200.0);
}

#[test]
fn extreme_shapes_need_no_gigabytes() {
    // Its shorter side scaled to 224 makes the longer one 13 million pixels; only the crop is computed.
    let thread = DynamicImage::new_rgb8(1, 60_000);
    assert_eq!(processor("clip").pixels_u8(&thread).unwrap().dims(), [3, 224, 224]);
    assert!(matches!(
        processor("vit").pixels_u8(&DynamicImage::new_rgb8(0, 5)),
        Err(aeir_encoders::EncoderError::ImageSize { width: 0, height: 5, .. })
    ));
}

#[test]
fn settings_round_trip_through_json() {
    let processor = processor("dinov2");
    let text = serde_json::to_string(&processor).unwrap();
    assert_eq!(serde_json::from_str::<ImagePreprocessor>(&text).unwrap(), processor);
    assert!(serde_json::from_str::<ImagePreprocessor>(&text.replace("0.229", "0.0")).is_err());
}
