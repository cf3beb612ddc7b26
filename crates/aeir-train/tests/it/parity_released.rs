//! `fidelity = "released"` against recorded runs of the released procedure: every file in `fixtures/parity/aecr`, and
//! those that `AEIR_PARITY_EXTRA` names, separated by `:`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test's helpers")]

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use aeir_encoders::word_encoder::RELEASED_PARAMETER_NAMES;
use aeir_encoders::{
    Embedded, Encoded, Fragments, Head, HeadKind, ImageInput, Items, Mode, WordBatch, released_names,
};
use aeir_train::config::{Fidelity, Schedule};
use aeir_train::method::{
    Batch, Embeddings, Inputs, Method, Moment, SentenceKind, TargetBatch, TargetEmbeddings, build,
};
use aeir_train::step::{Rates, Stepper};
use aeir_train::{MethodName, ParameterStore, TrainConfig};
use candle_core::{DType, Device, Tensor, Var};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

const DEVICE: Device = Device::Cpu;
/// Critic layers in the recorded files: linear layers of a sequence.
const CRITIC_LAYERS: [(usize, usize); 3] = [(0, 0), (1, 3), (2, 6)];

/// A recorded run.
struct Recording {
    name: String,
    /// Whether it is one of the repository's own, whose terms all carry signal.
    own: bool,
    tensors: HashMap<String, Tensor>,
    settings: HashMap<String, String>,
}

impl Recording {
    fn load(path: &Path, own: bool) -> Self {
        let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        Self {
            name: path.display().to_string(),
            own,
            tensors: candle_core::safetensors::load_buffer(&bytes, &DEVICE).unwrap(),
            settings: header.metadata().clone().unwrap(),
        }
    }

    /// All of them: an empty folder would test nothing.
    fn all() -> Vec<Self> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/parity/aecr");
        let mut paths: Vec<PathBuf> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|suffix| suffix == "safetensors"))
            .collect();
        paths.sort();
        assert!(paths.len() >= 2, "{paths:?}");
        let extra = std::env::var_os("AEIR_PARITY_EXTRA").unwrap_or_default();
        let extra = std::env::split_paths(&extra).filter(|path| !path.as_os_str().is_empty());
        let own = paths.iter().map(|path| Self::load(path, true));
        own.chain(extra.map(|path| Self::load(&path, false))).collect()
    }

    fn get(&self, key: &str) -> &Tensor {
        self.tensors.get(key).unwrap_or_else(|| panic!("{}: no `{key}`", self.name))
    }

    fn size(&self, key: &str, axis: usize) -> usize {
        self.get(key).dims()[axis]
    }

    fn setting(&self, key: &str) -> f64 {
        self.settings[key].parse().unwrap_or_else(|_| panic!("{}: `{key}`", self.name))
    }

    fn kind(&self) -> HeadKind {
        match self.settings["module"].as_str() {
            "SAF" => HeadKind::Saf,
            "SGR" => HeadKind::Sgr,
            other => panic!("{}: module `{other}`", self.name),
        }
    }

    fn graph_steps(&self) -> usize {
        (0..).take_while(|step| self.tensors.contains_key(&graph_key(*step))).count()
    }

    fn config(&self) -> TrainConfig {
        let mut config = TrainConfig { method: MethodName::Aeir, epochs: 1, ..TrainConfig::default() };
        config.aeir.fidelity = Fidelity::Released;
        config.aeir.structure_weight = self.setting("lambda");
        config.aeir.semantic_weight = 1.0;
        config.aeir.neighbours = self.setting("K") as usize;
        config.aeir.structure_temperature = self.setting("tau");
        config.adaptation.source_share = 0.0;
        config.source_loss.margin = self.setting("margin");
        config.optimizer.clip_norm = self.setting("grad_clip");
        config.optimizer.weight_decay = 0.0;
        config.optimizer.warm_up = 0.0;
        config.optimizer.schedule = Schedule::Constant;
        config.optimizer.learning_rate = self.setting("lr");
        config.model.embedding_dimension = self.size("weights.img_enc.fc.weight", 0);
        config.model.input_dropout = 0.0;
        config.model.head = Some(if self.kind() == HeadKind::Saf { Head::Saf } else { Head::Sgr });
        config.model.head_options.similarity_dimension = self.size("weights.sim_enc.sim_tranloc_w.weight", 0);
        config.model.head_options.graph_steps = self.graph_steps().max(1);
        config.model.head_options.dropout = 0.0;
        config.model.words.word_dimension = self.size("weights.txt_enc.embed.weight", 1);
        config.model.words.dropout = 0.0;
        config.model.words.bidirectional =
            self.tensors.contains_key("weights.txt_enc.cap_rnn.weight_ih_l0_reverse");
        config.resolved().unwrap()
    }

    /// Released names of all tensors of the model, beside ours in the parameter store.
    fn names(&self) -> Vec<(String, String)> {
        let mut names = vec![
            ("img_enc.fc.weight".to_owned(), "encoder.image.projection.weight".to_owned()),
            ("img_enc.fc.bias".into(), "encoder.image.projection.bias".into()),
        ];
        names.extend(
            RELEASED_PARAMETER_NAMES
                .iter()
                .map(|(ours, released)| ((*released).to_owned(), format!("encoder.sentence.{ours}"))),
        );
        names.extend(
            released_names(self.kind(), self.graph_steps())
                .into_iter()
                .filter_map(|name| Some((name.released, format!("encoder.head.{}", name.ours?)))),
        );
        for (critic, modality) in [("disc_img", "image"), ("disc_txt", "sentence")] {
            for (ours, released) in CRITIC_LAYERS {
                for part in ["weight", "bias"] {
                    names.push((
                        format!("{critic}.discriminator.{released}.{part}"),
                        format!("critic.{modality}.layers.{ours}.{part}"),
                    ));
                }
            }
        }
        names.retain(|(released, _)| self.tensors.contains_key(&format!("weights.{released}")));
        names
    }

    fn build(&self, config: &TrainConfig) -> (ParameterStore, Box<dyn Method>) {
        let store = ParameterStore::new(0, &DEVICE);
        let inputs = Inputs {
            image_dimension: self.size("in.source.images", 2),
            images: ImageInput::Fragments(self.size("in.source.images", 1)),
            sentence_dimension: self.size("weights.txt_enc.embed.weight", 0),
            sentences: SentenceKind::Words,
            pairs: 0,
        };
        let method = build(config, inputs, &store).unwrap();
        let names = self.names();
        // Nothing of the model may keep its random start, and nothing recorded may be forgotten.
        let known: Vec<&String> = names.iter().map(|(_, ours)| ours).collect();
        for (name, _) in store.with_prefix("") {
            assert!(known.contains(&&name) || name == "encoder.log_scale", "{}: `{name}`", self.name);
        }
        for key in self.tensors.keys().filter_map(|key| key.strip_prefix("weights.")) {
            let counted = key.ends_with("num_batches_tracked");
            assert!(counted || names.iter().any(|(released, _)| released == key), "{}: `{key}`", self.name);
        }
        let values: BTreeMap<String, Tensor> = names
            .into_iter()
            .map(|(released, ours)| (ours, self.get(&format!("weights.{released}")).clone()))
            .collect();
        store.restore(&values).unwrap();
        (store, method)
    }

    fn images(&self, domain: &str) -> Items {
        Items::Fragments(Fragments::unpadded(self.get(&format!("in.{domain}.images")).clone()).unwrap())
    }

    fn sentences(&self, domain: &str) -> Items {
        let tokens =
            self.get(&format!("in.{domain}.tokens")).to_dtype(DType::U32).unwrap().to_vec2::<u32>().unwrap();
        let lengths = self.get(&format!("in.{domain}.lengths")).to_vec1::<i64>().unwrap();
        let ids: Vec<Vec<u32>> =
            tokens.into_iter().zip(lengths).map(|(ids, length)| ids[..length as usize].to_vec()).collect();
        Items::Words(WordBatch::new(&ids, &DEVICE).unwrap())
    }

    fn batch(&self) -> Batch {
        Batch {
            source_images: self.images("source"),
            labelled: 0,
            source_sentences: self.sentences("source"),
            target: Some(TargetBatch {
                images: self.images("target"),
                sentences: self.sentences("target"),
                rows: None,
            }),
            anchors: None,
        }
    }

    /// Recorded embeddings as variables, so that losses can be differentiated by them.
    fn embeddings(&self) -> (Embeddings, Vec<(&'static str, Var, Tensor)>) {
        let mut variables = Vec::new();
        let mut encoded = |label: &'static str, key: &str| {
            let values = self.get(key);
            // Padding comes out of the released encoder as rows of zeros.
            let mask = values.sqr().unwrap().sum(2).unwrap().ne(0f32).unwrap().to_dtype(DType::F32).unwrap();
            let variable = Var::from_tensor(values).unwrap();
            let fragments = Fragments::new(variable.as_tensor().clone(), mask.clone()).unwrap();
            variables.push((label, variable, mask));
            let pooled = fragments.mean_pooled().unwrap();
            Encoded { members: vec![Embedded { fragments: Some(fragments), pooled }] }
        };
        let embeddings = Embeddings {
            source_images: encoded("source_image_emb", "eval.source.image_emb"),
            labelled: 0,
            source_sentences: encoded("source_text_emb", "eval.source.text_emb"),
            target: Some(TargetEmbeddings {
                images: encoded("target_image_emb", "eval.target.image_emb"),
                sentences: encoded("target_text_emb", "eval.target.text_emb"),
                rows: None,
                frozen: None,
            }),
            anchors: None,
        };
        (embeddings, variables)
    }

    fn close(&self, what: &str, found: &Tensor, expected: &Tensor, tolerance: f64) {
        let (found, expected) = (numbers(found), numbers(expected));
        assert_eq!(found.len(), expected.len(), "{} {what}", self.name);
        for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
            let allowed = tolerance * expected.abs().max(1.0);
            assert!(
                (found - expected).abs() <= allowed,
                "{} {what}[{index}]: {found} for {expected}",
                self.name
            );
        }
    }
}

fn graph_key(step: usize) -> String {
    format!("weights.sim_enc.SGR_module.{step}.graph_key_w.weight")
}

fn numbers(x: &Tensor) -> Vec<f64> {
    x.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn random() -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(0)
}

const MOMENT: Moment = Moment { step: 0, steps: 3 };

#[test]
fn embeddings_and_similarities() {
    for file in Recording::all() {
        let (_, method) = file.build(&file.config());
        let encoder = method.encoder();
        let mut encoded = Vec::new();
        for domain in ["source", "target"] {
            let images = encoder.encode_images(&file.images(domain), &mut Mode::Evaluation).unwrap();
            let sentences = encoder.encode_sentences(&file.sentences(domain), &mut Mode::Evaluation).unwrap();
            for (key, found) in [("image_emb", &images), ("text_emb", &sentences)] {
                let features = found.members[0].fragments.as_ref().unwrap().features();
                file.close(key, features, file.get(&format!("eval.{domain}.{key}")), 2e-6);
            }
            encoded.push((images, sentences));
        }
        let (images, sentences) = &encoded[0];
        let scores = encoder.scores(images, sentences, &mut Mode::Evaluation).unwrap();
        file.close("eval.source.similarity", &scores, file.get("eval.source.similarity"), 1e-5);
        let scores = encoder.scores(images, sentences, &mut Mode::Training(&mut random())).unwrap();
        file.close("train.source.similarity", &scores, file.get("train.source.similarity"), 1e-5);
    }
}

#[test]
fn losses() {
    for file in Recording::all() {
        let mut config = file.config();
        // A term without a weight is not computed.
        config.aeir.structure_weight = 1.0;
        let (_, method) = file.build(&config);
        let mut generator = random();
        let mode = &mut Mode::Training(&mut generator);
        let embeddings = method.embed(&file.batch(), MOMENT, mode).unwrap();
        let outcome = method.phase(0, &embeddings, MOMENT, mode).unwrap();
        let logged: HashMap<&str, f64> =
            outcome.logged.into_iter().map(|(name, figure)| (name, figure.value().unwrap())).collect();
        let critic = logged["critic_loss_images"] + logged["critic_loss_sentences"];
        for (key, found) in [
            ("triplet", logged["source_loss"]),
            ("confusion", logged["confusion_loss"]),
            ("structure", logged["structure_loss"]),
            ("discriminator", critic),
        ] {
            let expected = numbers(file.get(&format!("train.loss.{key}")))[0];
            let allowed = 1e-5 * expected.abs().max(1.0);
            assert!((found - expected).abs() <= allowed, "{} {key}: {found} for {expected}", file.name);
        }
    }
}

/// The gradient of the encoders' loss at the recorded embeddings, with these weights of its two transfer terms.
fn gradients(file: &Recording, semantic: f64, structure: f64) -> Vec<(&'static str, Option<Tensor>, Tensor)> {
    let mut config = file.config();
    config.aeir.semantic_weight = semantic;
    config.aeir.structure_weight = structure;
    let (_, method) = file.build(&config);
    let (embeddings, variables) = file.embeddings();
    let outcome = method.phase(0, &embeddings, MOMENT, &mut Mode::Training(&mut random())).unwrap();
    let store = outcome.objectives[0].loss.backward().unwrap();
    variables
        .into_iter()
        .map(|(label, variable, mask)| (label, store.get(&variable).cloned(), mask))
        .collect()
}

#[test]
fn gradients_of_each_loss() {
    for file in Recording::all() {
        let triplet = gradients(&file, 0.0, 0.0);
        for (label, found, _) in &triplet {
            if let (true, Some(found)) = (label.starts_with("source"), found) {
                file.close(label, found, file.get(&format!("train.grad.triplet.{label}")), 1e-4);
            }
            assert_eq!(label.starts_with("source"), found.is_some(), "{label}");
        }
        for (loss, semantic, structure) in [("confusion", 1.0, 0.0), ("structure", 0.0, 1.0)] {
            let all = gradients(&file, semantic, structure);
            for ((label, found, mask), (_, without, _)) in all.iter().zip(&triplet) {
                let found = found.as_ref().unwrap();
                let found = match without {
                    Some(without) => (found - without).unwrap(),
                    None => found.clone(),
                };
                let mut expected = file.get(&format!("train.grad.{loss}.{label}")).clone();
                if loss == "structure" {
                    // At rows of zeros the recorded gradient is huge and its encoder drops it; ours is 0.
                    let real =
                        mask.ne(0f32).unwrap().unsqueeze(2).unwrap().broadcast_as(expected.dims()).unwrap();
                    expected = real.where_cond(&expected, &expected.zeros_like().unwrap()).unwrap();
                }
                file.close(&format!("{loss} {label}"), &found, &expected, 1e-4);
                let signal = numbers(&expected).iter().any(|value| value.abs() > 1e-7);
                assert!(signal || !file.own, "{} {loss} {label}", file.name);
            }
        }
    }
}

#[test]
fn weights_after_three_steps() {
    for file in Recording::all() {
        let config = file.config();
        let (store, method) = file.build(&config);
        let mut stepper = Stepper::new(method, &store, &config).unwrap();
        let batch = file.batch();
        let rates = Rates { encoder: file.setting("lr"), critic: file.setting("lr") };
        for step in 0..3 {
            let moment = Moment { step, steps: 3 };
            stepper.step(&batch, moment, rates, &mut Mode::Training(&mut random())).unwrap();
        }
        // Where the exact gradient is 0, as of a bias before a normalisation, Adam walks by the sign of rounding errors: up
        // to 1 learning rate a step and side. The limits are those of the recorded rate, 1e-4, and grow with larger ones.
        let (near, far) = ((0.1 * file.setting("lr")).max(1e-5), (6.0 * file.setting("lr")).max(6e-4));
        let state = store.snapshot("").unwrap();
        let (mut entries, mut outliers, mut moved) = (0, 0, 0.0f64);
        for (released, ours) in file.names() {
            let (found, expected) =
                (numbers(&state[&ours]), numbers(file.get(&format!("after3.{released}"))));
            let start = numbers(file.get(&format!("weights.{released}")));
            assert_eq!(found.len(), expected.len(), "{} {ours}", file.name);
            for ((found, expected), start) in found.iter().zip(&expected).zip(&start) {
                let difference = (found - expected).abs();
                assert!(difference <= far, "{} {ours}: {found} for {expected}", file.name);
                entries += 1;
                outliers += usize::from(difference > near);
                moved = moved.max((expected - start).abs());
            }
        }
        assert!(moved > 0.1 * file.setting("lr"), "{}: the recorded steps moved nothing", file.name);
        assert!(
            outliers * 200 <= entries,
            "{}: {outliers} of {entries} differ by more than {near}",
            file.name
        );
    }
}
