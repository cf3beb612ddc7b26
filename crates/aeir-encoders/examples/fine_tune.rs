//! Fine-tunes on the emoji of the fixtures folder and their captions: a head over frozen features, and, if a folder of a
//! text transformer is named, low-rank adapters in that as well.
//!
//! ```text
//! cargo run --release -p aeir-encoders --example fine_tune
//! cargo run --release -p aeir-encoders --example fine_tune -- all-MiniLM-L6-v2    # a folder with config.json, …
//! ```
#![allow(clippy::print_stdout, reason = "an example shows its result")]

use std::collections::HashMap;
use std::error::Error;
use std::path::Path;

use aeir_encoders::{
    FineTuning, LoraConfig, Mode, Projection, SentenceTokenizer, TextModel, l2_normalise,
    load_image_backbone, load_text_backbone, open_image,
};
use candle_core::{DType, Device, Tensor, Var};
use candle_nn::{Optimizer, SGD, VarBuilder};
use image::DynamicImage;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

const PAIRS: usize = 32;
const STEPS: usize = 20;
const TEMPERATURE: f64 = 0.1;
const SEED: u64 = 7;

fn main() -> Result<(), Box<dyn Error>> {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures");
    let device = Device::Cpu;
    let (images, captions) = pairs(&fixtures.join("datasets/noto-cldr"))?;
    let captions: Vec<&str> = captions.iter().map(String::as_str).collect();
    let image_features =
        load_image_backbone(&fixtures.join("backbones/efficientnet-lite0"), &device)?.encode(&images)?;

    println!("a head over frozen features");
    let text = load_text_backbone(&fixtures.join("backbones/static-minilm"), &device)?;
    let sentences = l2_normalise(&text.encode(&captions)?)?;
    let (head, head_variables) = head(image_features.dim(1)?, sentences.dim(1)?)?;
    let mut dropout = ChaCha8Rng::seed_from_u64(SEED);
    train(
        head_variables,
        |mode| {
            let images = l2_normalise(&head.forward(&image_features, mode)?)?;
            contrast(&images, &sentences)
        },
        &mut dropout,
    )?;

    let Some(folder) = std::env::args().nth(1) else {
        println!("name a folder of BERT, MiniLM, … to train low-rank adapters in it too");
        return Ok(());
    };
    println!("low-rank adapters in `{folder}`, and a head");
    let folder = Path::new(&folder);
    let tokens = SentenceTokenizer::load(folder)?.batch(&captions)?;
    let plan = FineTuning::lora(LoraConfig::default(), SEED);
    let (model, parameters) = TextModel::load_trainable(folder, &device, &plan)?;
    println!("  {} trained values in {} matrices", parameters.count(), parameters.variables().len());
    let (head, mut variables) = self::head(image_features.dim(1)?, model.dimension())?;
    variables.extend(parameters.variables().values().cloned());
    train(
        variables,
        |mode| {
            let images = l2_normalise(&head.forward(&image_features, mode)?)?;
            let sentences = l2_normalise(&model.forward(&tokens, mode)?)?;
            contrast(&images, &sentences)
        },
        &mut dropout,
    )
}

/// The first images of a data set, each with its first caption.
fn pairs(folder: &Path) -> Result<(Vec<DynamicImage>, Vec<String>), Box<dyn Error>> {
    let (mut images, mut captions) = (Vec::new(), Vec::new());
    for line in std::fs::read_to_string(folder.join("captions.jsonl"))?.lines().take(PAIRS) {
        let line: serde_json::Value = serde_json::from_str(line)?;
        let image = line["image"].as_str().ok_or("no image")?;
        images.push(open_image(&folder.join(image))?);
        captions.push(line["captions"][0].as_str().ok_or("no caption")?.to_owned());
    }
    Ok((images, captions))
}

/// A linear layer with seeded first values, and its variables. Any parameter store will do: a head takes a `VarBuilder`.
fn head(inputs: usize, outputs: usize) -> Result<(Projection, Vec<Var>), Box<dyn Error>> {
    let mut random = ChaCha8Rng::seed_from_u64(SEED);
    let bound = 1.0 / (inputs as f32).sqrt();
    let values = (0..inputs * outputs).map(|_| bound * (random.next_u32() as f32 / 2f32.powi(31) - 1.0));
    let weight = Var::from_tensor(&Tensor::from_vec(values.collect(), (outputs, inputs), &Device::Cpu)?)?;
    let bias = Var::zeros(outputs, DType::F32, &Device::Cpu)?;
    let named = HashMap::from([
        ("weight".to_owned(), weight.as_tensor().clone()),
        ("bias".to_owned(), bias.as_tensor().clone()),
    ]);
    let builder = VarBuilder::from_tensors(named, DType::F32, &Device::Cpu);
    Ok((Projection::new(inputs, outputs, 0.1, builder)?, vec![weight, bias]))
}

/// The InfoNCE loss from images to sentences: image `i` belongs to sentence `i`.
fn contrast(images: &Tensor, sentences: &Tensor) -> Result<Tensor, Box<dyn Error>> {
    let scores = (images.matmul(&sentences.t()?)? / TEMPERATURE)?;
    let own = Tensor::arange(0u32, images.dim(0)? as u32, images.device())?;
    Ok(candle_nn::loss::cross_entropy(&scores, &own)?)
}

fn train(
    variables: Vec<Var>,
    loss: impl Fn(&mut Mode<'_>) -> Result<Tensor, Box<dyn Error>>,
    dropout: &mut ChaCha8Rng,
) -> Result<(), Box<dyn Error>> {
    let before = loss(&mut Mode::Evaluation)?.to_scalar::<f32>()?;
    let mut optimizer = SGD::new(variables, 0.3)?;
    for _ in 0..STEPS {
        optimizer.backward_step(&loss(&mut Mode::Training(dropout))?)?;
    }
    let after = loss(&mut Mode::Evaluation)?.to_scalar::<f32>()?;
    println!("  loss {before:.3} before, {after:.3} after {STEPS} steps");
    if after < before { Ok(()) } else { Err("the loss did not fall".into()) }
}
