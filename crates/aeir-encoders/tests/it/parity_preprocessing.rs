//! Four published image processors against pixels recorded with them.

use aeir_encoders::ImagePreprocessor;
use aeir_encoders::preprocess::{Alpha, Filter, Resize, Size};
use candle_core::{Device, Tensor};
use image::DynamicImage;
use serde_json::json;

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
        (format!(r#"{{"size":224,"resample":6,{base}}}"#), "resample"),
        (format!(r#"{{"size":0,"resample":2,{base}}}"#), "resize"),
        (format!(r#"{{"size":{{"shortest_edge":224}},"resample":2,{base}}}"#), "crop"),
        (format!(r#"{{"size":32,"resample":2,"do_center_crop":true,"crop_size":5000,{base}}}"#), "crop"),
        (format!(r#"{{"size":{{"shortest_edge":32,"longest_edge":64}},{base}}}"#), "size"),
        (format!(r#"{{"size":{{"shortest_edge":32}},"crop_pct":0.0,{base}}}"#), "crop_pct"),
        (format!(r#"{{"size":{{"shortest_edge":32}},"crop_pct":1e-9,{base}}}"#), "resize"),
        (
            r#"{"image_processor_type":"Siglip2ImageProcessor","patch_size":16}"#.to_owned(),
            "image_processor_type",
        ),
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

fn from_json(config: &serde_json::Value) -> ImagePreprocessor {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("preprocessor_config.json");
    std::fs::write(&file, serde_json::to_vec(config).unwrap()).unwrap();
    ImagePreprocessor::from_hugging_face(&file).unwrap()
}

#[test]
fn each_family_has_its_own_defaults() {
    let of = |kind: &str, mut config: serde_json::Value| {
        config["image_processor_type"] = kind.into();
        config["image_mean"] = json!([0.5, 0.5, 0.5]);
        config["image_std"] = json!([0.5, 0.5, 0.5]);
        from_json(&config).config().clone()
    };
    let square = |side| Size { width: side, height: side };
    let exact = |side| Resize::Exact(square(side));
    for (kind, config, resize, crop, filter) in [
        (
            "CLIPImageProcessor",
            json!({"size": 224, "crop_size": 224}),
            Resize::ShortestEdge(224),
            Some(square(224)),
            Filter::Bicubic,
        ),
        (
            "BitImageProcessor",
            json!({"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}}),
            Resize::ShortestEdge(256),
            Some(square(224)),
            Filter::Bicubic,
        ),
        (
            "SiglipImageProcessor",
            json!({"size": {"height": 384, "width": 384}}),
            exact(384),
            None,
            Filter::Bicubic,
        ),
        ("ViTFeatureExtractor", json!({"size": 224}), exact(224), None, Filter::Bilinear),
        (
            "DeiTImageProcessor",
            json!({"size": 256, "crop_size": 224}),
            exact(256),
            Some(square(224)),
            Filter::Bicubic,
        ),
        (
            "ConvNextFeatureExtractor",
            json!({"size": 224, "crop_pct": 0.875, "resample": 3}),
            Resize::ShortestEdge(256),
            Some(square(224)),
            Filter::Bicubic,
        ),
        (
            "ConvNextImageProcessor",
            json!({"size": {"shortest_edge": 64}}),
            Resize::ShortestEdge(73),
            Some(square(64)),
            Filter::Bilinear,
        ),
        (
            "ConvNextImageProcessor",
            json!({"size": {"shortest_edge": 384}, "crop_pct": null}),
            exact(384),
            None,
            Filter::Bilinear,
        ),
        ("ViTImageProcessor", json!({"size": 224, "resample": 1}), exact(224), None, Filter::Lanczos),
    ] {
        let got = of(kind, config.clone());
        assert_eq!((got.resize, got.crop, got.filter), (resize, crop, filter), "{kind} {config}");
        assert_eq!(got.alpha, Alpha::Drop);
    }
}

#[test]
fn a_crop_larger_than_the_image_is_black_around_it() {
    let white = DynamicImage::from(image::RgbImage::from_pixel(10, 10, image::Rgb([255; 3])));
    let config = json!({"size": {"height": 4, "width": 7}, "resample": 2, "do_center_crop": true,
        "crop_size": {"height": 7, "width": 4}, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]});
    let processor = from_json(&config);
    let pixels = processor.pixels_u8(&white).unwrap().to_vec3::<u8>().unwrap();
    // Three rows are missing: two before, one after. Columns are cut as always.
    for channel in pixels {
        let rows: Vec<u8> = channel.iter().map(|row| row[0]).collect();
        assert_eq!(rows, [0, 0, 255, 255, 255, 255, 0]);
        assert!(channel.iter().all(|row| row.len() == 4 && row.iter().all(|value| *value == row[0])));
    }
    // Black is a colour like any other: it is normalised.
    let values = flat(&processor.pixel_values(&[white], &Device::Cpu).unwrap());
    assert_eq!((values[0], values[8]), (-1.0, 1.0));
}

#[test]
fn images_of_every_kind_become_rgb() {
    let grey = image::GrayImage::from_fn(9, 8, |x, y| image::Luma([(x * 20 + y) as u8]));
    let processor = processor("vit");
    let expected = flat(&processor.pixels_u8(&DynamicImage::from(grey.clone())).unwrap());
    let wide: image::ImageBuffer<image::Luma<u16>, Vec<u16>> =
        image::ImageBuffer::from_fn(9, 8, |x, y| image::Luma([((x * 20 + y) * 256 + 255) as u16]));
    let grey = DynamicImage::from(grey);
    for image in [
        DynamicImage::from(grey.to_rgb8()),
        DynamicImage::from(grey.to_rgba8()),
        DynamicImage::from(grey.to_luma_alpha8()),
        DynamicImage::from(wide),
    ] {
        assert_eq!(flat(&processor.pixels_u8(&image).unwrap()), expected, "{:?}", image.color());
    }
    let float = DynamicImage::from(grey.to_rgb32f());
    assert_eq!(flat(&processor.pixels_u8(&float).unwrap()), expected);
}

#[test]
fn any_size_gives_the_size_of_the_network() {
    let sides = [1, 2, 3, 17, 224, 225, 3000];
    for name in PROCESSORS {
        let processor = processor(name);
        for (width, height) in sides.iter().flat_map(|width| sides.map(|height| (*width, height))) {
            let image =
                DynamicImage::from(image::RgbImage::from_pixel(width, height, image::Rgb([9, 99, 199])));
            let pixels = processor.pixels_u8(&image).unwrap();
            assert_eq!(pixels.dims(), [3, 224, 224]);
            // One colour stays that colour, whatever the weights are.
            for (plane, colour) in flat(&pixels).chunks(224 * 224).zip([9.0, 99.0, 199.0]) {
                assert!(plane.iter().all(|value| *value == colour), "{name} {width}x{height}");
            }
        }
    }
}

#[test]
fn a_batch_is_its_images() {
    let images: Vec<_> = files().iter().map(|file| image(file)).collect();
    let processor = processor("clip");
    let batch = processor.pixel_values(&images, &Device::Cpu).unwrap();
    for (index, image) in images.iter().enumerate() {
        let alone = processor.pixel_values(std::slice::from_ref(image), &Device::Cpu).unwrap();
        assert_eq!(flat(&alone), flat(&batch.get(index).unwrap()));
    }
    assert_eq!(processor.pixel_values(&[], &Device::Cpu).unwrap().dims(), [0, 3, 224, 224]);
}

#[test]
fn opened_images_are_upright() {
    for file in files() {
        let opened = aeir_encoders::open_image(&crate::fixtures::path(&file)).unwrap();
        assert_eq!(opened, image(&file), "{file}");
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("picture.jpg");
    let open = || aeir_encoders::open_image(&file);
    assert!(matches!(open(), Err(aeir_encoders::EncoderError::MissingFile { .. })));
    let whole = std::fs::read(crate::fixtures::path(&files()[0])).unwrap();
    for bytes in [&b"no picture"[..], &[], &whole[..whole.len() / 2], &whole[..20]] {
        std::fs::write(&file, bytes).unwrap();
        let error = open().unwrap_err();
        assert!(
            matches!(&error, aeir_encoders::EncoderError::Image { file: got, .. } if *got == file),
            "{error}"
        );
    }
    // A header that promises 65,535 by 65,535 pixels.
    let mut huge = vec![b'B', b'M', 0, 0, 0, 0, 0, 0, 0, 0, 54, 0, 0, 0, 40, 0, 0, 0];
    huge.extend(65_535u32.to_le_bytes());
    huge.extend(65_535u32.to_le_bytes());
    huge.extend([1, 0, 24, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    std::fs::write(&file, huge).unwrap();
    assert!(matches!(open(), Err(aeir_encoders::EncoderError::Image { .. })));
}

#[test]
fn rules_of_convnext_and_crops_beyond_the_picture() {
    let reference = tensors("parity/preprocessing/other_rules.safetensors");
    let names = ["wide_rgb_418x169", "grey_259x260", "tiny_20x30"];
    for (index, name) in names.into_iter().enumerate() {
        let image = image(&format!("parity/preprocessing/images/{name}.png"));
        let pixels = |kind: &str, mut config: serde_json::Value| {
            config["image_processor_type"] = kind.into();
            config["do_normalize"] = false.into();
            from_json(&config).pixels_u8(&image).unwrap()
        };
        let small = pixels(
            "ConvNextImageProcessor",
            json!({"size": {"shortest_edge": 64}, "crop_pct": 0.875, "resample": 3}),
        );
        check(&format!("convnext {name}"), &small, &reference[&format!("convnext.{index}")]);
        let large = pixels("ConvNextImageProcessor", json!({"size": {"shortest_edge": 384}, "resample": 2}));
        let every_eighth = Tensor::arange_step(0u32, 384, 8, &Device::Cpu).unwrap();
        let sampled = large.index_select(&every_eighth, 1).unwrap().index_select(&every_eighth, 2).unwrap();
        let expected = &reference[&format!("convnext_large_stride8.{index}")];
        check(&format!("large convnext {name}"), &sampled.contiguous().unwrap(), expected);
        let padded = pixels(
            "CLIPImageProcessor",
            json!({"size": {"shortest_edge": 20}, "crop_size": {"height": 33, "width": 40}, "resample": 3}),
        );
        check(&format!("padded {name}"), &padded, &reference[&format!("padded.{index}")]);
    }
}
