//! Checks of whole training steps, of every method.

use aeir_encoders::{Fragments, Head, ImageInput, Items, Mode, Precision, WordBatch, l2_normalise};
use aeir_train::config::{Adversary, Fidelity, OptimizerKind, Schedule, Selection, Standardise};
use aeir_train::method::{Batch, Inputs, Moment, SentenceKind, TargetBatch, build};
use aeir_train::step::{Rates, Stepper};
use aeir_train::{
    FeatureTable, ItemTable, MethodName, Observer, ParameterStore, SourceData, StepRecord, TargetData,
    TrainConfig, TrainingData, train,
};
use candle_core::{DType, Device, Tensor};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use super::check::{Check, Kind, Named, Place, Values, host};
use super::numbers::Numbers;

const IMAGE_DIMENSION: usize = 24;
const SENTENCE_DIMENSION: usize = 16;
const VOCABULARY: u32 = 40;
const REGIONS: usize = 4;

pub(super) fn all() -> Vec<Check> {
    let mut checks = Vec::new();
    for method in MethodName::ALL {
        let head = pooled_config(method).resolved().ok().and_then(|config| config.model.head);
        if head.is_some_and(Head::is_cross_attentive) {
            checks.push(fragments(method.as_str(), fragment_config(method), SentenceKind::Fragments));
        } else {
            checks.push(pooled(method.as_str(), pooled_config(method)));
        }
    }
    checks.extend(variants());
    checks
}

/// What a setting makes of a method.
fn variants() -> Vec<Check> {
    let mut released = fragment_config(MethodName::Aeir);
    released.aeir.fidelity = Fidelity::Released;
    released.model.head = Some(Head::Saf);
    let mut reversal = pooled_config(MethodName::Aeir);
    reversal.aeir.adversary = Adversary::GradientReversal;
    let mut whitened = pooled_config(MethodName::SourceOnly);
    whitened.standardise = Standardise::Whiten;
    let mut adam = pooled_config(MethodName::SourceOnly);
    // So large an epsilon that a gradient of nearly nothing makes a step of nearly nothing.
    (adam.optimizer.kind, adam.optimizer.epsilon, adam.optimizer.weight_decay) =
        (OptimizerKind::AdamW, 1e-2, 0.05);
    let mut accumulated = pooled_config(MethodName::SourceOnly);
    (accumulated.optimizer.accumulate, accumulated.optimizer.clip_norm) = (2, 0.5);
    let mut vsepp = fragment_config(MethodName::Vsepp);
    vsepp.model.words.word_dimension = 12;
    let mut saf = fragment_config(MethodName::Saf);
    saf.model.words.word_dimension = 12;
    vec![
        fragments("aeir-released-saf", released, SentenceKind::Fragments),
        pooled("aeir-reversal", reversal),
        pooled("whitened", whitened),
        pooled("adamw", adam),
        pooled("accumulated-clipped", accumulated),
        fragments("vsepp-words", vsepp, SentenceKind::Words),
        fragments("saf-words", saf, SentenceKind::Words),
    ]
}

/// Two epochs of `train`, the second of which adapts.
fn pooled(name: &str, config: TrainConfig) -> Check {
    Check::new(Kind::Step, format!("{name}-step"), move |place| {
        let config = TrainConfig { precision: precision(place), ..config.clone() };
        let mut steps = Steps::default();
        let trained = train(&config, &pooled_data()?, None, &place.device, &mut steps)?;
        let mut values = Values { results: steps.0, gradients: Vec::new() };
        for (name, value) in &trained.parameters {
            values = values.with_result(name, value)?;
        }
        Ok(values)
    })
}

/// Two steps on one batch of regions and tokens or words.
fn fragments(name: &str, config: TrainConfig, sentences: SentenceKind) -> Check {
    Check::new(Kind::Step, format!("{name}-step"), move |place| {
        let config = TrainConfig { precision: precision(place), ..config.clone() }.resolved()?;
        let store = ParameterStore::new(config.seed, &place.device);
        let inputs = Inputs {
            image_dimension: IMAGE_DIMENSION,
            images: ImageInput::Fragments(REGIONS),
            sentence_dimension: match sentences {
                SentenceKind::Words => VOCABULARY as usize,
                _ => SENTENCE_DIMENSION,
            },
            sentences,
            pairs: 0,
        };
        let mut stepper = Stepper::new(build(&config, inputs, &store)?, &store, &config)?;
        let batch = fragment_batch(place, sentences)?;
        let rates = Rates { encoder: config.optimizer.learning_rate, critic: 0.05 };
        let mut values = Values::default();
        for step in 0..2 {
            let mut random = ChaCha8Rng::seed_from_u64(step as u64);
            // Late in the training: warm-ups are over, and methods adapt.
            let moment = Moment { step: 8 + step, steps: 10 };
            let outcome = stepper.step(&batch, moment, rates, &mut Mode::Training(&mut random))?;
            let logged = outcome.logged.iter().map(|(name, figure)| Ok((*name, figure.value()?)));
            let logged = logged.collect::<anyhow::Result<Vec<_>>>()?;
            values.results.extend(figures(step + 1, &logged, outcome.encoder_norm.value()?));
        }
        for (name, value) in store.snapshot("")? {
            values.results.push(Named { name, values: host(&value)? });
        }
        Ok(values)
    })
}

fn precision(place: &Place) -> Precision {
    if place.dtype == DType::BF16 { Precision::Bf16 } else { Precision::Fp32 }
}

/// Plain gradient descent, whose step is the gradient: the parameters after it show both.
fn plain(method: MethodName) -> TrainConfig {
    let mut config = TrainConfig {
        method,
        epochs: 2,
        batch_size: 12,
        target_batch_size: 10,
        selection: Some(Selection::Last),
        ..TrainConfig::default()
    };
    let optimizer = &mut config.optimizer;
    (optimizer.kind, optimizer.momentum, optimizer.weight_decay) = (OptimizerKind::Sgd, 0.0, 0.0);
    (optimizer.learning_rate, optimizer.warm_up, optimizer.schedule) = (0.05, 0.0, Schedule::Constant);
    config.adaptation.source_share = 0.5;
    config.adaptation.anchors = 6;
    config.adapt.source_share = 0.5;
    config
}

fn pooled_config(method: MethodName) -> TrainConfig {
    let mut config = plain(method);
    config.model.embedding_dimension = 8;
    config
}

fn fragment_config(method: MethodName) -> TrainConfig {
    let mut config = plain(method);
    config.model.embedding_dimension = 12;
    config.model.head_options.similarity_dimension = 8;
    config
}

/// Losses and gradient norms of every step. Accuracies count items: rounding alone may move them.
#[derive(Default)]
struct Steps(Vec<Named>);

impl Observer for Steps {
    fn measured(&mut self, record: &StepRecord<'_>) {
        self.0.extend(figures(record.step, record.logged, record.gradient_norm));
    }
}

fn figures(step: usize, logged: &[(&'static str, f64)], norm: f64) -> Vec<Named> {
    let named =
        |name: &str, value: f64| Named { name: format!("{name}, step {step}"), values: vec![value as f32] };
    let mut figures: Vec<Named> = logged
        .iter()
        .filter(|(name, _)| !name.contains("accuracy"))
        .map(|(name, value)| named(name, *value))
        .collect();
    figures.push(named("gradient norm", norm));
    figures
}

/// Pairs whose sentences are a mixture of their images' features, and a target of another mean.
fn pooled_data() -> anyhow::Result<TrainingData> {
    let mut numbers = Numbers::new(90);
    let mixing = numbers.tensor(&[IMAGE_DIMENSION, SENTENCE_DIMENSION])?;
    let mut tables = |items: usize, shift: f64| -> anyhow::Result<(ItemTable, ItemTable)> {
        let images = (numbers.tensor(&[items, IMAGE_DIMENSION])? + shift)?;
        let sentences = images.matmul(&mixing)?;
        Ok((table(&images, IMAGE_DIMENSION)?, table(&sentences, SENTENCE_DIMENSION)?))
    };
    let ((images, sentences), (target_images, _), (_, target_sentences)) =
        (tables(24, 0.0)?, tables(20, 0.5)?, tables(22, 0.5)?);
    Ok(TrainingData {
        sources: vec![SourceData {
            name: "selftest".into(),
            images,
            sentences,
            sentences_of: (0..24).map(|row| vec![row]).collect(),
            validation: None,
        }],
        target: Some(TargetData { images: target_images, sentences: target_sentences }),
        labelled: None,
    })
}

fn table(rows: &Tensor, dimension: usize) -> anyhow::Result<ItemTable> {
    Ok(ItemTable::Pooled(FeatureTable::new(host(rows)?, dimension)?))
}

fn fragment_batch(place: &Place, kind: SentenceKind) -> anyhow::Result<Batch> {
    let mut numbers = Numbers::new(91);
    let mut domain = |items: usize| -> anyhow::Result<(Items, Items)> {
        let regions = l2_normalise(&numbers.tensor(&[items, REGIONS, IMAGE_DIMENSION])?)?;
        let images = Items::Fragments(Fragments::unpadded(regions.to_device(&place.device)?)?);
        Ok((images, sentences(&mut numbers, items, kind, &place.device)?))
    };
    let ((source_images, source_sentences), (images, sentences)) = (domain(7)?, domain(6)?);
    let target = Some(TargetBatch { images, sentences, rows: None });
    Ok(Batch { source_images, source_sentences, labelled: 0, target, anchors: None })
}

/// Sentences of one to five words.
fn sentences(
    numbers: &mut Numbers,
    items: usize,
    kind: SentenceKind,
    device: &Device,
) -> anyhow::Result<Items> {
    const LONGEST: usize = 5;
    let length = |item: usize| 1 + item % LONGEST;
    if kind == SentenceKind::Words {
        let ids: Vec<Vec<u32>> =
            (0..items).map(|item| (0..length(item)).map(|_| numbers.below(VOCABULARY)).collect()).collect();
        return Ok(Items::Words(WordBatch::new(&ids, device)?));
    }
    let mask = (0..items * LONGEST)
        .map(|index| if index % LONGEST < length(index / LONGEST) { 1f32 } else { 0.0 })
        .collect();
    let mask = Tensor::from_vec(mask, (items, LONGEST), &Device::Cpu)?.to_device(device)?;
    let tokens = l2_normalise(&numbers.tensor(&[items, LONGEST, SENTENCE_DIMENSION])?)?;
    Ok(Items::Fragments(Fragments::new(tokens.to_device(device)?, mask)?))
}
