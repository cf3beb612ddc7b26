//! Which of some sentences are alike, and what a network sees in an image: `aeir-encoders` used from outside.
//!
//! ```text
//! cargo run -- SENTENCE_ENCODER IMAGE_ENCODER IMAGE
//! ```
//!
//! In this folder: `cargo run -- ../../fixtures/backbones/static-minilm ../../fixtures/backbones/efficientnet-lite0
//! ../../fixtures/datasets/noto-cldr/images/1f600.webp`.

use std::error::Error;
use std::path::Path;

use aeir_encoders::{l2_normalise, load_image_backbone, load_text_backbone};
use candle_core::Device;

const SENTENCES: [&str; 3] = ["a smiling face", "someone laughs", "a freight train"];

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [sentence_encoder, image_encoder, image] = arguments.as_slice() else {
        return Err("expected three arguments: SENTENCE_ENCODER IMAGE_ENCODER IMAGE".into());
    };

    let encoder = load_text_backbone(Path::new(sentence_encoder), &Device::Cpu)?;
    let vectors = l2_normalise(&encoder.encode(&SENTENCES)?)?;
    let similarities = vectors.matmul(&vectors.t()?)?.to_vec2::<f32>()?;
    for (sentence, row) in SENTENCES.iter().zip(similarities) {
        println!("{sentence:16} {row:5.2?}");
    }

    let encoder = load_image_backbone(Path::new(image_encoder), &Device::Cpu)?;
    let features = encoder.encode(&[image::open(image)?])?;
    println!("{image}: {} features", features.dim(1)?);
    Ok(())
}
