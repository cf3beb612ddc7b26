//! CLIP and SigLIP whole against what Hugging Face transformers computed with the same weights.

use aeir_encoders::{
    ContrastiveModel, EncoderError, Mode, PretrainedDualEncoder, TokenBatch, l2_normalise,
    load_image_backbone, load_text_backbone,
};
use candle_core::Device;
use image::DynamicImage;

use crate::fixtures::{flat, max_difference, path, tensors};
use crate::tiny_models::copy;

fn assert_whole(name: &str) {
    let folder = path(&format!("parity/tiny-models/{name}"));
    let golden = tensors(&format!("parity/tiny-models/{name}/golden.safetensors"));
    let ids = &golden["input_ids"];
    let mask = golden.get("attention_mask").cloned().unwrap_or_else(|| ids.ones_like().unwrap());
    let tokens = TokenBatch::new(ids, &mask).unwrap();
    let model = ContrastiveModel::load(&folder, &Device::Cpu).unwrap();
    let got = model.forward(&golden["pixel_values"], &tokens, &mut Mode::Evaluation).unwrap();
    for (got, expected) in
        [(&got.images, "image_embeds"), (&got.sentences, "text_embeds"), (&got.logits, "logits_per_image")]
    {
        let difference = max_difference(got, &golden[expected]);
        assert!(difference < 1e-5, "{name}, {expected}: {difference}");
    }
    let transposed = got.logits.t().unwrap();
    assert!(max_difference(&transposed, &golden["logits_per_text"]) < 1e-5);
}

#[test]
fn clip() {
    assert_whole("clip");
}

#[test]
fn siglip() {
    assert_whole("siglip");
}

/// Images and sentences go the same way as through the two backbones.
#[test]
fn the_dual_encoder_is_its_two_towers() {
    let images = [
        DynamicImage::ImageRgb8(image::RgbImage::from_fn(40, 30, |x, y| {
            image::Rgb([(x * 6) as u8, (y * 8) as u8, (x * y) as u8])
        })),
        DynamicImage::ImageRgb8(image::RgbImage::from_fn(32, 32, |x, _| image::Rgb([255 - x as u8, 3, 200]))),
    ];
    let sentences = ["a red dog", "two children", ""];
    for name in ["clip", "siglip"] {
        let folder = copy(name);
        let dual = PretrainedDualEncoder::load(folder.path(), &Device::Cpu).unwrap();
        let image = load_image_backbone(folder.path(), &Device::Cpu).unwrap();
        let text = load_text_backbone(folder.path(), &Device::Cpu).unwrap();
        let got = (dual.encode_images(&images).unwrap(), dual.encode_sentences(&sentences).unwrap());
        let expected = (image.encode(&images).unwrap(), text.encode(&sentences).unwrap());
        assert_eq!(max_difference(&got.0, &l2_normalise(&expected.0).unwrap()), 0.0);
        assert_eq!(max_difference(&got.1, &l2_normalise(&expected.1).unwrap()), 0.0);
        let scores = dual.logits(&got.0, &got.1).unwrap();
        assert_eq!(scores.dims(), [2, 3]);
        assert!(flat(&scores).iter().all(|score| score.is_finite()));
        assert_eq!(dual.encode_images(&[]).unwrap().dims(), [0, dual.dimension()]);
        assert_eq!(dual.encode_sentences(&[]).unwrap().dims(), [0, dual.dimension()]);
    }
    let folder = copy("bert");
    let error = PretrainedDualEncoder::load(folder.path(), &Device::Cpu).err().expect("an error");
    assert!(matches!(error, EncoderError::Unsupported { supported: ["clip", "siglip"], .. }), "{error}");
}
