//! Embeds images and sentences with the two backbones of the fixtures folder, and shows which resemble each other.
//!
//! ```text
//! cargo run --release -p aeir-encoders --example embed
//! cargo run --release -p aeir-encoders --example embed -- 256    # and the time an image in a batch of 256
//! ```
#![allow(clippy::print_stdout, reason = "an example shows its result")]

use std::error::Error;
use std::path::Path;
use std::time::Instant;

use aeir_encoders::{l2_normalise, load_image_backbone, load_text_backbone};
use candle_core::{Device, Tensor};
use image::DynamicImage;

const IMAGES: [&str; 4] = [
    "noto-cldr/images/1f61f.webp",
    "noto-cldr/images/1f004.webp",
    "openclipart/images/002c693f44bc.webp",
    "openclipart/images/4cf8e5ba1736.webp",
];
const SENTENCES: [&str; 3] = ["a zebra under a tree", "a horse in the woods", "apple pie with cream"];

fn main() -> Result<(), Box<dyn Error>> {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures");
    let device = Device::Cpu;

    let text = load_text_backbone(&fixtures.join("backbones/static-minilm"), &device)?;
    let sentences = l2_normalise(&text.encode(&SENTENCES)?)?;
    println!("sentences: {} values each, cosine similarities", text.dimension());
    print_similarities(&SENTENCES, &sentences)?;

    let backbone = load_image_backbone(&fixtures.join("backbones/efficientnet-lite0"), &device)?;
    let images: Vec<DynamicImage> = IMAGES
        .iter()
        .map(|name| image::open(fixtures.join("datasets").join(name)))
        .collect::<Result<_, _>>()?;
    let features = l2_normalise(&backbone.encode(&images)?)?;
    println!("images: {} values each, cosine similarities", backbone.dimension());
    print_similarities(&IMAGES, &features)?;

    if let Some(count) = std::env::args().nth(1) {
        let batch: Vec<DynamicImage> = images.iter().cycle().take(count.parse()?).cloned().collect();
        let start = Instant::now();
        backbone.encode(&batch)?;
        let milliseconds = start.elapsed().as_secs_f64() * 1e3 / batch.len().max(1) as f64;
        println!("{milliseconds:.1} ms an image in a batch of {}, preprocessing included", batch.len());
    }
    Ok(())
}

fn print_similarities(names: &[&str], features: &Tensor) -> candle_core::Result<()> {
    let similarities = features.matmul(&features.t()?)?.to_vec2::<f32>()?;
    for (name, row) in names.iter().zip(similarities) {
        let row: Vec<String> = row.iter().map(|value| format!("{value:5.2}")).collect();
        println!("  {}  {name}", row.join(" "));
    }
    Ok(())
}
