//! Checks of whole encoders: small ones of each architecture, with weights from a seed.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use aeir_encoders::{
    ContrastiveModel, EfficientNet, FineTuning, ImageModel, LoraConfig, Mode, Parameters, StaticEmbedding,
    TextBackbone, TextModel, TokenBatch,
};
use anyhow::Context;
use candle_core::{Device, Tensor, Var};
use serde::Deserialize;
use serde_json::Value;

use super::check::{Check, Kind, Place, Values, with_gradients};
use super::numbers::Numbers;

/// Configurations and the shapes of their tensors.
const MODELS: &str = include_str!("models.json");
const SINGLE: &str = "weights of encoders are f32";

pub(super) fn all() -> Vec<Check> {
    let mut checks = vec![
        text("bert"),
        text("modernbert"),
        image("vit", 32),
        image("dinov2", 56),
        image("convnext", 64),
        image("resnet-basic", 64),
        image("resnet-bottleneck", 64),
        check("bert-adapters", |place| adapters(place, "bert")),
        check("efficientnet", efficientnet),
        check("static-embedding", static_embedding),
    ];
    for name in ["clip", "siglip"] {
        checks.push(check(&format!("{name}-encoders"), move |place| contrastive(place, name)));
    }
    checks
}

fn check(name: &str, work: impl Fn(&Place) -> anyhow::Result<Values> + Send + 'static) -> Check {
    Check::new(Kind::Encoder, name, work).single_only(SINGLE)
}

fn text(name: &'static str) -> Check {
    check(name, move |place| {
        let folder = ModelFolder::write(name)?;
        let (model, parameters) =
            TextModel::load_trainable(folder.path(), &place.device, &FineTuning::default())?;
        let tokens = tokens()?;
        let trained = model.forward(&tokens, &mut Mode::Evaluation)?;
        let frozen =
            TextModel::load(folder.path(), &place.device)?.forward(&tokens, &mut Mode::Evaluation)?;
        with_gradients(&trained, &variables(&parameters))?.with_result("frozen", &frozen)
    })
}

fn image(name: &'static str, side: usize) -> Check {
    check(name, move |place| {
        let folder = ModelFolder::write(name)?;
        let (model, parameters) =
            ImageModel::load_trainable(folder.path(), &place.device, &FineTuning::default())?;
        let pixels = pixels(side)?;
        let trained = model.forward(&pixels, &mut Mode::Evaluation)?;
        let frozen =
            ImageModel::load(folder.path(), &place.device)?.forward(&pixels, &mut Mode::Evaluation)?;
        with_gradients(&trained, &variables(&parameters))?.with_result("frozen", &frozen)
    })
}

/// Low-rank adapters beside frozen weights.
fn adapters(place: &Place, name: &str) -> anyhow::Result<Values> {
    let folder = ModelFolder::write(name)?;
    let plan = FineTuning::lora(LoraConfig::default(), 3);
    let (model, parameters) = TextModel::load_trainable(folder.path(), &place.device, &plan)?;
    let trained = model.forward(&tokens()?, &mut Mode::Evaluation)?;
    with_gradients(&trained, &variables(&parameters))
}

fn contrastive(place: &Place, name: &str) -> anyhow::Result<Values> {
    let folder = ModelFolder::write(name)?;
    let (model, parameters) =
        ContrastiveModel::load_trainable(folder.path(), &place.device, &FineTuning::default())?;
    let contrast = model.forward(&pixels(32)?, &tokens()?, &mut Mode::Evaluation)?;
    with_gradients(&contrast.logits, &variables(&parameters))?
        .with_result("images", &contrast.images)?
        .with_result("sentences", &contrast.sentences)
}

fn efficientnet(place: &Place) -> anyhow::Result<Values> {
    let folder = ModelFolder::write("efficientnet")?;
    let model = EfficientNet::load(folder.path(), &place.device)?;
    Values::of(&model.grid(&pixels(64)?)?)
}

fn static_embedding(place: &Place) -> anyhow::Result<Values> {
    let folder = ModelFolder::write("static-embedding")?;
    let vocabulary: serde_json::Map<String, Value> = ["[UNK]", "a", "red", "cat", "dog", "on", "the", "roof"]
        .iter()
        .zip(0..)
        .map(|(word, id)| ((*word).to_owned(), Value::from(id)))
        .collect();
    let tokenizer = serde_json::json!({
        "version": "1.0",
        "pre_tokenizer": { "type": "Whitespace" },
        "model": { "type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]" },
    });
    folder.add("tokenizer.json", tokenizer.to_string().as_bytes())?;
    let model = StaticEmbedding::load(folder.path(), &place.device)?;
    let sentences = ["a red cat on the roof", "dog", "the dog on a roof"];
    Values::of(&model.encode(&sentences)?)?.with_result("words", model.fragments(&sentences)?.features())
}

fn variables(parameters: &Parameters) -> Vec<(String, Var)> {
    parameters.variables().iter().map(|(name, variable)| (name.clone(), variable.clone())).collect()
}

/// Three sentences of up to nine tokens; an id ends each that the encoders of CLIP look for.
fn tokens() -> anyhow::Result<TokenBatch> {
    const LONGEST: usize = 9;
    const LAST: u32 = 63;
    let mut numbers = Numbers::new(80);
    let (mut ids, mut mask) = (Vec::new(), Vec::new());
    for length in [LONGEST, 4, 6] {
        for position in 0..LONGEST {
            let id = if position + 1 == length { LAST } else { 4 + numbers.below(50) };
            ids.push(if position < length { id } else { 0 });
            mask.push(u32::from(position < length));
        }
    }
    let tensor = |values: Vec<u32>| Tensor::from_vec(values, (3, LONGEST), &Device::Cpu);
    Ok(TokenBatch::new(&tensor(ids)?, &tensor(mask)?)?)
}

/// Two images.
fn pixels(side: usize) -> anyhow::Result<Tensor> {
    Ok(Numbers::new(81).tensor(&[2, 3, side, side])?)
}

#[derive(Deserialize)]
struct Model {
    config: Value,
    tensors: HashMap<String, Vec<usize>>,
}

/// A model's folder in the system's place for temporary files; it goes when this does.
struct ModelFolder(PathBuf);

impl ModelFolder {
    fn write(name: &str) -> anyhow::Result<Self> {
        let mut models: HashMap<String, Model> = serde_json::from_str(MODELS)?;
        let model = models.remove(name).with_context(|| format!("no model `{name}` in this program"))?;
        let path = std::env::temp_dir().join(format!("aeir-selftest-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path)
            .with_context(|| format!("could not make the folder `{}`", path.display()))?;
        let folder = Self(path);
        folder.add("config.json", model.config.to_string().as_bytes())?;
        let mut names: Vec<(String, Vec<usize>)> = model.tensors.into_iter().collect();
        names.sort();
        let mut weights = HashMap::new();
        for ((name, shape), seed) in names.into_iter().zip(200..) {
            let tensor = weight(&name, &shape, seed)?;
            weights.insert(name, tensor);
        }
        candle_core::safetensors::save(&weights, folder.0.join("model.safetensors"))?;
        Ok(folder)
    }

    fn path(&self) -> &Path {
        &self.0
    }

    fn add(&self, name: &str, bytes: &[u8]) -> anyhow::Result<()> {
        let file = self.0.join(name);
        std::fs::write(&file, bytes).with_context(|| format!("could not write `{}`", file.display()))
    }
}

impl Drop for ModelFolder {
    fn drop(&mut self) {
        // Left in a folder for temporary files, it harms nobody.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// First values under which signals neither fade nor grow: norms near one, layers scaled by their inputs.
fn weight(name: &str, shape: &[usize], seed: u64) -> candle_core::Result<Tensor> {
    let noise = Numbers::new(seed).tensor(shape)?;
    let lower = name.to_lowercase();
    let is_norm =
        ["norm", "_bn", "running_var", "layer_scale", "lambda"].iter().any(|part| lower.contains(part));
    if lower.ends_with("bias") || lower.ends_with("running_mean") {
        return noise * 0.1;
    }
    if lower.starts_with("logit_") || is_norm && shape.len() <= 1 {
        return noise.affine(0.2, 1.0);
    }
    let inputs: usize = shape.iter().skip(1).product();
    noise * (3.0 / inputs.max(1) as f64).sqrt()
}
