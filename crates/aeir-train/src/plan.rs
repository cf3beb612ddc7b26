//! What a training would be: its parameters, its length, what it takes.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use aeir_encoders::Mode;
use candle_core::Device;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use crate::budget::{StepSizes, step_bytes};
use crate::config::{MethodName, TrainConfig};
use crate::data::{PreparedData, TrainingData};
use crate::error::{Result, TrainError};
use crate::figure::stays;
use crate::method::{self, Batch, Group, Inputs, Moment, TargetBatch};
use crate::parameters::ParameterStore;
use crate::step::{Rates, Stepper, rate_of};
use crate::trainer::{Length, on_large_stack};

/// A trial step that takes longer than this is not repeated.
const LONG_STEP: Duration = Duration::from_secs(5);

/// How large the data are of which a plan sees a sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// Source images that have sentences.
    pub pairs: usize,
    /// Labelled images of the target.
    pub labelled: usize,
    /// Target images and target sentences, where there is a target.
    pub target: Option<[usize; 2]>,
}

/// What [`plan`] finds.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Parameters with the same settings.
    pub groups: Vec<PlannedGroup>,
    /// Updates an epoch.
    pub steps_per_epoch: usize,
    /// Updates in all.
    pub steps: usize,
    /// Those of them that use the target.
    pub adapting_steps: usize,
    /// Seconds of a step on the source alone and, where there are such, of one that adapts.
    pub seconds: [Option<f64>; 2],
    /// Bytes of what lives as long as the training.
    pub memory: Memory,
}

impl Plan {
    /// Seconds of all steps, without validation.
    pub fn training_seconds(&self) -> f64 {
        let [source, adapting] = self.seconds.map(Option::unwrap_or_default);
        source * (self.steps - self.adapting_steps) as f64 + adapting * self.adapting_steps as f64
    }
}

/// A parameter's name and shape.
pub type NamedShape = (String, Vec<usize>);

/// Parameters that are stepped alike.
#[derive(Debug, Clone)]
pub struct PlannedGroup {
    /// The pattern of `optimizer.groups` that chose them; none for the rest.
    pub pattern: Option<String>,
    /// Whether they belong to the critics.
    pub critics: bool,
    /// Peak learning rate; none where they are frozen.
    pub learning_rate: Option<f64>,
    /// Weight decay.
    pub weight_decay: f64,
    /// Names and shapes.
    pub parameters: Vec<NamedShape>,
}

impl PlannedGroup {
    /// How many numbers they are.
    pub fn values(&self) -> usize {
        self.parameters.iter().map(|(_, shape)| shape.iter().product::<usize>()).sum()
    }
}

/// Bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// All parameters and computed tensors of the model.
    pub parameters: usize,
    /// Gradients and moments.
    pub optimizer: usize,
    /// The best weights so far, the moving average, and the weights before the adaptation where they are mixed in.
    pub copies: usize,
    /// The features of all items.
    pub features: usize,
    /// One batch's graph and the batches that wait for theirs, estimated from the sizes of their tensors; none where an encoder is trained, of which nothing is known.
    pub step: Option<u64>,
}

impl Memory {
    /// What lives as long as the training.
    pub fn lasting(&self) -> usize {
        self.parameters + self.optimizer + self.copies + self.features
    }
}

/// Looks ahead: builds the model that `config`, resolved, asks for on a `sample` of the data, and times steps of full size on
/// it, its items repeated.
///
/// # Errors
/// As [`train`](crate::train).
pub fn plan(config: &TrainConfig, sample: &TrainingData, sizes: Sizes, device: &Device) -> Result<Plan> {
    on_large_stack(|| look_ahead(config, sample, sizes, device))
}

fn look_ahead(config: &TrainConfig, sample: &TrainingData, sizes: Sizes, device: &Device) -> Result<Plan> {
    let target = sizes.target.filter(|_| config.method.adapts());
    let kept = |items: usize| items - (config.target_held_out * items as f64).round() as usize;
    let length = Length::new(config, sizes.pairs, target.map(|sizes| sizes.map(kept)));
    // Of a sample nothing can be held out.
    let whole = TrainConfig { target_held_out: 0.0, ..config.clone() };
    let prepared = sample.prepare(&whole, device)?;
    let store = ParameterStore::new(config.seed, device);
    // What grows with the data, such as a memory of pairs, is planned in its full size.
    let pairs = sizes.pairs + sizes.labelled;
    let inputs = Inputs { pairs, ..prepared.inputs(config.model.head.unwrap_or_default())? };
    let method = method::build(config, inputs, &store)?;
    prepared.adopt_tuned(&store)?;
    let mut stepper = Stepper::new(method, &store, config)?;
    let (steps, per_epoch) = (length.steps(), length.steps_per_epoch());
    let adapts = |stepper: &Stepper, step| stepper.method().uses_target(Moment { step, steps });
    let adapting_steps =
        (0..length.epochs).filter(|epoch| adapts(&stepper, epoch * per_epoch)).count() * per_epoch;
    let composed = stays(device);
    let words = prepared.sentence_length(composed);
    let encoder = *stepper.method().encoder().config();
    let sizes_of_step = step_sizes(config, [sizes.pairs, sizes.labelled], target.is_some(), words);
    let step = (!prepared.is_tuned()).then(|| step_bytes(&encoder, sizes_of_step, composed));
    let memory = Memory { step, ..memory(config, &store, sample.bytes_of(sizes)) };
    let groups = groups(config, &store);
    let labelled = config.labelled_batch_size(sizes.labelled);
    let mut seconds = [None; 2];
    for (place, step) in [(0, 0), (1, steps.saturating_sub(1))] {
        // The first step may adapt already, and the last one may not.
        if adapts(&stepper, step) == (place == 1) {
            let time = timed(config, &mut stepper, &prepared, labelled, Moment { step, steps })?;
            if let Some(slot) = seconds.get_mut(place) {
                *slot = Some(time.as_secs_f64() * config.optimizer.accumulate as f64);
            }
        }
    }
    Ok(Plan { groups, steps_per_epoch: per_epoch, steps, adapting_steps, seconds, memory })
}

fn timed(
    config: &TrainConfig,
    stepper: &mut Stepper,
    data: &PreparedData,
    labelled: usize,
    moment: Moment,
) -> Result<Duration> {
    let rates = Rates {
        encoder: config.optimizer.learning_rate_at(moment.step, moment.steps, config.epochs),
        critic: config.adaptation.critic_learning_rate,
    };
    let mut step = || {
        let started = Instant::now();
        let mut random = ChaCha8Rng::seed_from_u64(config.seed);
        let mode = &mut Mode::Training(&mut random);
        let batch = trial_batch(config, data, labelled, stepper.method().anchors(), mode)?;
        stepper.step(&batch, moment, rates, mode)?;
        Ok::<_, TrainError>(started.elapsed())
    };
    let first = step()?;
    // The first one also fetches memory from the system.
    if first > LONG_STEP { Ok(first) } else { Ok(first.min(step()?)) }
}

/// As many rows as a batch has, those of the sample again and again.
fn trial_batch(
    config: &TrainConfig,
    data: &PreparedData,
    labelled: usize,
    anchors: usize,
    mode: &mut Mode<'_>,
) -> Result<Batch> {
    let pairs = data.sentences_of.len();
    let rows = |count: usize, of: usize| {
        (0..if of == 0 { 0 } else { count }).map(move |row| row % of).collect::<Vec<_>>()
    };
    let sentence = |pair: &usize| data.sentences_of.get(*pair).and_then(|rows| rows.first().copied());
    let mut pick = |count: usize| {
        let chosen = rows(count, pairs);
        let sentences: Vec<usize> = chosen.iter().filter_map(sentence).collect();
        Ok::<_, TrainError>((
            data.images.select_in(&chosen, mode)?,
            data.sentences.select_in(&sentences, mode)?,
        ))
    };
    let (source_images, source_sentences) = pick(config.batch_size + labelled)?;
    let anchors = if anchors > 0 { Some(pick(anchors)?) } else { None };
    let target = match &data.target {
        Some(target) if config.method.adapts() => Some(TargetBatch {
            images: target.images.select_in(&rows(config.target_batch_size, target.images.len()), mode)?,
            sentences: target
                .sentences
                .select_in(&rows(config.target_batch_size, target.sentences.len()), mode)?,
            rows: None,
        }),
        _ => None,
    };
    Ok(Batch { source_images, source_sentences, labelled, target, anchors })
}

fn groups(config: &TrainConfig, store: &ParameterStore) -> Vec<PlannedGroup> {
    let own = &config.optimizer.groups;
    // Alike are those of the same optimiser, pattern and pre-trained encoder.
    let mut found: BTreeMap<(bool, Option<usize>, Option<usize>), Vec<NamedShape>> = BTreeMap::new();
    for group in [Group::Encoder, Group::Critic] {
        for (name, variable) in store.trainable(group.prefix()) {
            let place = own.iter().position(|own| own.matches(&name));
            let inner = name.strip_prefix(group.prefix()).unwrap_or_default();
            let backbone = config.backbones().iter().position(|(prefix, _)| inner.starts_with(prefix));
            let shape = variable.dims().to_vec();
            found.entry((group == Group::Critic, place, backbone)).or_default().push((name, shape));
        }
    }
    let described = |((critics, place, _), parameters): ((bool, Option<usize>, _), Vec<NamedShape>)| {
        let own = place.and_then(|place| own.get(place));
        let base =
            if critics { config.adaptation.critic_learning_rate } else { config.optimizer.learning_rate };
        let name = parameters.first().map_or("", |(name, _)| name);
        PlannedGroup {
            pattern: own.map(|own| own.pattern.clone()),
            critics,
            learning_rate: (!own.is_some_and(|own| own.frozen)).then_some(rate_of(config, own, name, base)),
            weight_decay: own.and_then(|own| own.weight_decay).unwrap_or(config.optimizer.weight_decay),
            parameters,
        }
    };
    found.into_iter().map(described).collect()
}

/// The items of a step of `config`, of so many source and labelled pairs.
pub(crate) fn step_sizes(
    config: &TrainConfig,
    [pairs, labelled]: [usize; 2],
    adapts: bool,
    words: usize,
) -> StepSizes {
    let anchors = if config.method == MethodName::Cdan { config.adaptation.anchors } else { 0 };
    let labelled = config.labelled_batch_size(labelled);
    StepSizes {
        pairs: config.batch_size.min(pairs) + labelled + anchors,
        target: if adapts { [config.target_batch_size; 2] } else { [0; 2] },
        words,
        accumulated: config.optimizer.accumulate,
    }
}

/// Without the step.
pub(crate) fn memory(config: &TrainConfig, store: &ParameterStore, features: usize) -> Memory {
    let bytes = |of: Vec<(String, candle_core::Var)>| {
        of.iter().map(|(_, variable)| variable.elem_count() * size_of::<f32>()).sum::<usize>()
    };
    let encoders = bytes(store.with_prefix(Group::Encoder.prefix()));
    let trained =
        bytes(store.trainable(Group::Encoder.prefix())) + bytes(store.trainable(Group::Critic.prefix()));
    let copies = 1 + usize::from(config.optimizer.ema_decay > 0.0) + usize::from(config.interpolates());
    Memory {
        parameters: bytes(store.with_prefix("")),
        optimizer: trained * (1 + config.optimizer.rule().moments()),
        copies: copies * encoders,
        features,
        step: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::GroupConfig;
    use crate::data::tests::toy;

    #[test]
    fn a_sample_is_enough_to_know_length_and_groups() {
        let mut config = TrainConfig { epochs: 8, batch_size: 32, ..TrainConfig::default() };
        config.optimizer.groups = vec![
            GroupConfig { pattern: "*.bias".into(), weight_decay: Some(0.0), ..GroupConfig::default() },
            GroupConfig { pattern: "encoder.image.*".into(), frozen: true, ..GroupConfig::default() },
        ];
        config.optimizer.accumulate = 2;
        let config = config.resolved().unwrap();
        let sizes = Sizes { pairs: 1_000, labelled: 0, target: Some([300, 5_000]) };
        let found = plan(&config, &toy(6, 4, 5), sizes, &Device::Cpu).unwrap();
        // 40 batches of 128 sentences are more than 32 of 32 pairs; two batches a step.
        assert_eq!((found.steps_per_epoch, found.steps, found.adapting_steps), (20, 160, 40));
        assert!(found.seconds.iter().all(Option::is_some) && found.training_seconds() > 0.0);
        let frozen = found.groups.iter().find(|group| group.learning_rate.is_none()).unwrap();
        assert_eq!(frozen.parameters, [("encoder.image.projection.weight".to_owned(), vec![256, 8])]);
        assert_eq!(frozen.values(), 2_048);
        assert!(found.groups.iter().any(|group| group.critics && group.pattern.is_none()));
        // 1,000 and 300 images of 8 numbers, 1,000 and 5,000 sentences of 6, on the host and on the device.
        assert_eq!(found.memory.features, 2 * 4 * (1_300 * 8 + 6_000 * 6));
        let source = TrainConfig { method: MethodName::SourceOnly, ..config }.resolved().unwrap();
        let found = plan(&source, &toy(6, 4, 5), sizes, &Device::Cpu).unwrap();
        assert_eq!((found.steps_per_epoch, found.adapting_steps), (16, 0));
        assert!(found.seconds[1].is_none());
    }
}
