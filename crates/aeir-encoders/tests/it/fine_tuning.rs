//! Fine-tuning: every parameter gets its gradient, patterns freeze, adapters train and merge.

use std::collections::BTreeSet;
use std::path::Path;

use aeir_encoders::{
    ContrastiveModel, EncoderError, FineTuning, LoraConfig, Mode, Parameters, SentenceTokenizer, TextModel,
    TokenBatch, load_text_backbone,
};
use candle_core::backprop::GradStore;
use candle_core::{Device, Tensor, Var};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use crate::fixtures::{flat, max_difference, path, tensors};
use crate::tiny_models::{TEXT, copy};

/// A trained encoder with an input of its own, whatever it reads.
struct Trained {
    forward: Box<dyn Fn(&mut Mode<'_>) -> Tensor>,
    parameters: Parameters,
}

impl Trained {
    fn text(folder: &Path, name: &str, plan: &FineTuning) -> Result<Self, EncoderError> {
        let golden = tensors(&format!("parity/tiny-models/{name}/golden.safetensors"));
        let ids = &golden["input_ids"];
        let mask = golden.get("attention_mask").cloned().unwrap_or_else(|| ids.ones_like().unwrap());
        let mut tokens = TokenBatch::new(ids, &mask)?;
        if let Some(types) = golden.get("token_type_ids") {
            tokens = tokens.with_types(types)?;
        }
        let (model, parameters) = TextModel::load_trainable(folder, &Device::Cpu, plan)?;
        Ok(Self { forward: Box::new(move |mode| model.forward(&tokens, mode).unwrap()), parameters })
    }

    fn load(name: &str, plan: &FineTuning) -> Self {
        Self::text(&path(&format!("parity/tiny-models/{name}")), name, plan).unwrap()
    }

    /// A weighted sum: a plain one would not move with what a last norm takes out again.
    fn loss(&self, mode: &mut Mode<'_>) -> Tensor {
        let output = (self.forward)(mode);
        let weights: Vec<f32> =
            (0..output.elem_count()).map(|i| ((i * 37 % 23) as f32 - 11.0) / 11.0).collect();
        let weights = Tensor::from_vec(weights, output.shape(), &Device::Cpu).unwrap();
        (output * weights).unwrap().sum_all().unwrap()
    }

    fn value(&self) -> f64 {
        f64::from(self.loss(&mut Mode::Evaluation).to_scalar::<f32>().unwrap())
    }

    fn gradients(&self) -> GradStore {
        self.loss(&mut Mode::Evaluation).backward().unwrap()
    }

    /// One step down the gradient.
    fn step(&self, rate: f64) {
        let gradients = self.gradients();
        for variable in self.parameters.variables().values() {
            let gradient = gradients.get(variable).unwrap();
            variable.set(&(variable.as_tensor() - (gradient * rate).unwrap()).unwrap()).unwrap();
        }
    }
}

fn largest(tensor: &Tensor) -> f32 {
    flat(tensor).into_iter().map(f32::abs).fold(0.0, f32::max)
}

/// Attention weights are the same for any constant that is added to all keys: the gradient of the keys' bias is zero, and what is
/// computed is rounding.
fn is_key_bias(name: &str) -> bool {
    [".key.bias", ".k_lin.bias", ".k_proj.bias"].iter().any(|end| name.ends_with(end))
}

/// Tensors of a file that its sentence embeddings do not depend on.
fn is_unused(model: &str, name: &str) -> bool {
    match model {
        // The vector is the mean over the tokens: the pooler of the first token is not part of it.
        "bert" | "xlm-roberta" => name.starts_with("pooler."),
        "clip" | "siglip" => {
            name.starts_with("vision_model.")
                || name == "visual_projection.weight"
                || name.starts_with("logit_")
        }
        _ => false,
    }
}

#[test]
fn every_parameter_has_a_finite_gradient_that_is_not_zero() {
    for name in TEXT {
        let trained = Trained::load(name, &FineTuning::default());
        let variables = trained.parameters.variables();
        let in_file = tensors(&format!("parity/tiny-models/{name}/model.safetensors"));
        let expected: BTreeSet<_> = in_file.into_keys().filter(|tensor| !is_unused(name, tensor)).collect();
        assert_eq!(variables.keys().cloned().collect::<BTreeSet<_>>(), expected, "{name}");
        let gradients = trained.gradients();
        for (parameter, variable) in variables {
            let gradient = gradients.get(variable).unwrap_or_else(|| panic!("{name}: none for {parameter}"));
            assert!(flat(gradient).iter().all(|value| value.is_finite()), "{name}: {parameter}");
            let size = largest(gradient);
            assert_eq!(size > 1e-4, !is_key_bias(parameter), "{name}: {parameter} has {size}");
        }
    }
}

/// The change of the loss along a direction is the gradient's product with it.
#[test]
fn gradients_are_the_slopes_of_the_loss() {
    for name in TEXT {
        let trained = Trained::load(name, &FineTuning::default());
        let gradients = trained.gradients();
        for (parameter, variable) in trained.parameters.variables() {
            let gradient = gradients.get(variable).unwrap().clone();
            let size = gradient.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
            if is_key_bias(parameter) {
                continue;
            }
            // Down the gradient itself, so that the slope is its length.
            let start = variable.as_tensor().copy().unwrap();
            let step = 1e-2;
            let at = |shift: f64| {
                variable.set(&(&start + (&gradient * (shift / f64::from(size))).unwrap()).unwrap()).unwrap();
                trained.value()
            };
            let slope = (at(step) - at(-step)) / (2.0 * step);
            variable.set(&start).unwrap();
            let relative = (slope / f64::from(size) - 1.0).abs();
            assert!(relative < 0.05, "{name}: {parameter} has slope {slope}, gradient {size}");
        }
    }
}

#[test]
fn a_frozen_model_keeps_no_graph_and_a_trained_one_gives_the_same() {
    for name in TEXT {
        let folder = copy(name);
        let frozen = load_text_backbone(folder.path(), &Device::Cpu).unwrap();
        let tokens = SentenceTokenizer::load(folder.path()).unwrap().batch(&["a dog"]).unwrap();
        let (model, _) =
            TextModel::load_trainable(folder.path(), &Device::Cpu, &FineTuning::default()).unwrap();
        let (first, second) =
            (frozen.encode(&["a dog"]).unwrap(), model.forward(&tokens, &mut Mode::Evaluation).unwrap());
        assert!(!first.track_op() && second.track_op(), "{name}");
        assert_eq!(max_difference(&first, &second), 0.0, "{name}");
    }
}

#[test]
fn patterns_freeze() {
    let trained = Trained::load("bert", &FineTuning::freezing(["embeddings.*", "*.layer.0.*"]));
    let names: Vec<&str> = trained.parameters.variables().keys().map(String::as_str).collect();
    assert_eq!(names.len(), 16);
    assert!(names.iter().all(|name| name.starts_with("encoder.layer.1.")), "{names:?}");
    for (plan, what) in [
        (FineTuning::freezing(["encoder.block.*"]), "pattern of frozen parameters"),
        (FineTuning::freezing(["a[b"]), "name pattern"),
    ] {
        let folder = path("parity/tiny-models/bert");
        let error = TextModel::load_trainable(&folder, &Device::Cpu, &plan).err().expect("an error");
        assert!(matches!(&error, EncoderError::Argument { what: got, .. } if *got == what), "{error}");
    }
}

#[test]
fn dropout_is_seeded_and_off_in_evaluation() {
    for name in ["bert", "distilbert", "xlm-roberta"] {
        let trained = Trained::load(name, &FineTuning::default());
        let draw = |seed: u64| {
            let mut generator = ChaCha8Rng::seed_from_u64(seed);
            flat(&(trained.forward)(&mut Mode::Training(&mut generator)))
        };
        assert_eq!(draw(1), draw(1), "{name}");
        assert_ne!(draw(1), draw(2), "{name}");
        let evaluated = || flat(&(trained.forward)(&mut Mode::Evaluation));
        assert_eq!(evaluated(), evaluated());
        assert_ne!(evaluated(), draw(1), "{name}");
        let mut generator = ChaCha8Rng::seed_from_u64(1);
        let gradients = trained.loss(&mut Mode::Training(&mut generator)).backward().unwrap();
        for (parameter, variable) in trained.parameters.variables() {
            assert!(
                flat(gradients.get(variable).unwrap()).iter().all(|value| value.is_finite()),
                "{parameter}"
            );
        }
    }
}

fn lora() -> LoraConfig {
    LoraConfig { rank: 4, alpha: 8.0, ..LoraConfig::default() }
}

#[test]
fn adapters_start_at_nothing_and_then_learn() {
    for name in TEXT {
        let frozen = Trained::load(name, &FineTuning::default());
        let trained = Trained::load(name, &FineTuning::lora(lora(), 3));
        let variables = trained.parameters.variables();
        assert!(variables.keys().all(|name| name.contains(".lora_")), "{name}");
        assert!(trained.parameters.count() * 3 < frozen.parameters.count(), "{name}");
        assert_eq!(trained.value(), frozen.value(), "{name}");
        let before = trained.value();
        trained.step(1e-3);
        assert!(trained.value() < before, "{name}");
        // Now B is no longer zero: A has a gradient too.
        let gradients = trained.gradients();
        for (parameter, variable) in variables {
            let gradient = gradients.get(variable).unwrap();
            assert!(flat(gradient).iter().all(|value| value.is_finite()), "{name}: {parameter}");
            assert!(largest(gradient) > 1e-6, "{name}: {parameter}");
        }
    }
}

#[test]
fn merged_adapters_load_as_an_ordinary_model() {
    for name in TEXT {
        let (folder, saved) = (copy(name), tempfile::tempdir().unwrap());
        let trained = Trained::text(folder.path(), name, &FineTuning::lora(lora(), 3)).unwrap();
        let before = (trained.forward)(&mut Mode::Evaluation);
        (0..3).for_each(|_| trained.step(1e-3));
        trained.parameters.save(saved.path()).unwrap();
        let after = (trained.forward)(&mut Mode::Evaluation);
        let merged = Trained::text(saved.path(), name, &FineTuning::default()).unwrap();
        assert!(max_difference(&after, &before) > 1e-3, "{name}");
        let difference = max_difference(&after, &(merged.forward)(&mut Mode::Evaluation));
        assert!(difference < 2e-5, "{name}: {difference}");
        // The folder is whole: it has its tokenizer.
        assert!(load_text_backbone(saved.path(), &Device::Cpu).is_ok(), "{name}");
    }
}

#[test]
fn trained_weights_are_saved_and_the_others_kept() {
    let (folder, saved) = (copy("bert"), tempfile::tempdir().unwrap());
    let trained = Trained::text(folder.path(), "bert", &FineTuning::freezing(["embeddings.*"])).unwrap();
    trained.step(1e-3);
    trained.parameters.save(saved.path()).unwrap();
    let again = Trained::text(saved.path(), "bert", &FineTuning::default()).unwrap();
    let (first, second) = ((trained.forward)(&mut Mode::Evaluation), (again.forward)(&mut Mode::Evaluation));
    assert_eq!(max_difference(&first, &second), 0.0);
    let load = |folder: &Path| {
        candle_core::safetensors::load(folder.join("model.safetensors"), &Device::Cpu).unwrap()
    };
    let (old, new) = (load(folder.path()), load(saved.path()));
    assert_eq!(old.len(), new.len());
    for (name, tensor) in &old {
        let is_kept = name.starts_with("embeddings.") || name.starts_with("pooler.");
        assert!(is_key_bias(name) || (flat(tensor) == flat(&new[name])) == is_kept, "{name}");
    }
}

#[test]
fn adapters_are_saved_alone_and_loaded_back() {
    let saved = tempfile::tempdir().unwrap();
    let trained = Trained::load("bert", &FineTuning::lora(lora(), 3));
    trained.step(1e-3);
    trained.parameters.save_adapter(saved.path()).unwrap();
    let after = (trained.forward)(&mut Mode::Evaluation);
    assert_eq!(LoraConfig::load(saved.path()).unwrap().rank, 4);

    // The file names the layers, so that it is all that the next model needs.
    let plan = FineTuning::lora(LoraConfig::load(saved.path()).unwrap(), 99);
    let other = Trained::load("bert", &plan);
    other.parameters.load_adapter(saved.path()).unwrap();
    assert_eq!(max_difference(&after, &(other.forward)(&mut Mode::Evaluation)), 0.0);

    let wide = Trained::load("bert", &FineTuning::lora(LoraConfig { rank: 8, alpha: 16.0, ..lora() }, 3));
    let before = wide.value();
    let error = wide.parameters.load_adapter(saved.path()).expect_err("an error");
    assert!(matches!(error, EncoderError::TensorShape { .. }), "{error}");
    assert_eq!(wide.value(), before);
    let scaled = Trained::load("bert", &FineTuning::lora(LoraConfig { alpha: 9.0, ..lora() }, 3));
    let error = scaled.parameters.load_adapter(saved.path()).expect_err("an error");
    assert!(matches!(error, EncoderError::Argument { .. }), "{error}");
    let error =
        Trained::load("distilbert", &FineTuning::lora(lora(), 3)).parameters.load_adapter(saved.path());
    assert!(matches!(error, Err(EncoderError::MissingTensor { .. })));
    let plain = Trained::load("bert", &FineTuning::default());
    assert!(matches!(plain.parameters.load_adapter(saved.path()), Err(EncoderError::Argument { .. })));
    assert!(matches!(plain.parameters.save_adapter(saved.path()), Err(EncoderError::Argument { .. })));
}

#[test]
fn first_values_depend_on_seed_and_name_alone() {
    let values = |name: &str, seed: u64, targets: &[&str]| {
        let targets = targets.iter().map(|target| (*target).to_owned()).collect();
        let trained = Trained::load(name, &FineTuning::lora(LoraConfig { targets, ..lora() }, seed));
        let variable: &Var =
            &trained.parameters.variables()["encoder.layer.1.attention.self.value.lora_A.weight"];
        flat(variable)
    };
    let first = values("bert", 1, &["*.value"]);
    assert_eq!(first, values("bert", 1, &["*.query", "*.value", "*.dense"]));
    assert_ne!(first, values("bert", 2, &["*.value"]));
}

#[test]
fn adapters_that_can_not_be() {
    let folder = path("parity/tiny-models/bert");
    for config in [
        LoraConfig { rank: 0, ..lora() },
        LoraConfig { alpha: f64::NAN, ..lora() },
        LoraConfig { dropout: 1.0, ..lora() },
        LoraConfig { targets: vec!["*.q_proj".to_owned()], ..lora() },
        LoraConfig { targets: vec!["[".to_owned()], ..lora() },
    ] {
        let plan = FineTuning::lora(config, 1);
        let error = TextModel::load_trainable(&folder, &Device::Cpu, &plan).err().expect("an error");
        assert!(matches!(&error, EncoderError::Argument { .. }), "{error}");
    }
}

/// Both towers, their projections, and the scale and bias of the scores.
#[test]
fn every_parameter_of_a_whole_dual_encoder_has_a_gradient() {
    for name in ["clip", "siglip"] {
        let folder = path(&format!("parity/tiny-models/{name}"));
        let golden = tensors(&format!("parity/tiny-models/{name}/golden.safetensors"));
        let ids = &golden["input_ids"];
        let mask = golden.get("attention_mask").cloned().unwrap_or_else(|| ids.ones_like().unwrap());
        let tokens = TokenBatch::new(ids, &mask).unwrap();
        let (model, parameters) =
            ContrastiveModel::load_trainable(&folder, &Device::Cpu, &FineTuning::default()).unwrap();
        let in_file = tensors(&format!("parity/tiny-models/{name}/model.safetensors"));
        assert_eq!(
            parameters.variables().keys().collect::<BTreeSet<_>>(),
            in_file.keys().collect::<BTreeSet<_>>()
        );
        let logits = model.forward(&golden["pixel_values"], &tokens, &mut Mode::Evaluation).unwrap().logits;
        let weights: Vec<f32> = (0..12).map(|i| (i * 5 % 7) as f32 - 2.5).collect();
        let weights = Tensor::from_vec(weights, (3, 4), &Device::Cpu).unwrap();
        let gradients = (logits * weights).unwrap().sum_all().unwrap().backward().unwrap();
        for (parameter, variable) in parameters.variables() {
            let gradient = gradients.get(variable).unwrap_or_else(|| panic!("{name}: none for {parameter}"));
            assert!(flat(gradient).iter().all(|value| value.is_finite()), "{name}: {parameter}");
            let size = largest(gradient);
            assert!(is_key_bias(parameter) || size > 1e-4, "{name}: {parameter} has {size}");
        }
    }
}
