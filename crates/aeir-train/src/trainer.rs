//! The training loop.

use std::collections::BTreeMap;
use std::time::Instant;

use aeir_data::ShuffledSampler;
use aeir_encoders::{DualEncoderConfig, Items, Mode, Standardisation};
use candle_core::{Device, Tensor};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use serde::Serialize;

use crate::checkpoint::{self, State};
use crate::config::{Selection, TrainConfig};
use crate::critic_watch::CriticWatch;
use crate::data::{PreparedData, TrainingData};
use crate::error::{Result, TrainError};
use crate::method::{self, Batch, Group, Inputs, Moment, TargetBatch};
use crate::observer::{EpochRecord, Observer};
use crate::parameters::ParameterStore;
use crate::run::{METRICS_FILE, RunFolder, TIMING_FILE};
use crate::step::{Rates, Stepper};
use crate::validate::{domain_distances, source_validation_rsum, target_mutual_similarity};

/// Backward passes recurse once a node of the graph; the main thread's stack is too small for deep ones.
const STACK_BYTES: usize = 256 << 20;

/// Streams of the samplers, so that orders are independent of each other.
const SOURCE_STREAM: u64 = 0;
const TARGET_IMAGE_STREAM: u64 = 1;
const TARGET_SENTENCE_STREAM: u64 = 2;

/// What a run leaves.
#[derive(Debug)]
pub struct Trained {
    /// Sizes, inputs and head of the towers.
    pub encoder: DualEncoderConfig,
    /// The towers' parameters at the chosen epoch, by name.
    pub parameters: BTreeMap<String, Tensor>,
    /// The statistics of each domain.
    pub standardisation: Standardisation,
    /// The chosen epoch, from 1.
    pub epoch: usize,
    /// What the selection saw in it; none where the last epoch was to be taken.
    pub score: Option<f64>,
    /// Records of the epochs trained in this process.
    pub history: Vec<EpochRecord>,
}

#[derive(Serialize)]
struct Timing {
    epoch: usize,
    seconds: f64,
    steps_per_second: f64,
}

/// Trains as `config` says. With a `run`, writes its configuration, metrics and checkpoints, and takes up the newest
/// checkpoint where the folder was opened for resuming.
///
/// The same configuration, data and seed give the same bytes on a CPU, also after an interruption.
///
/// # Errors
/// When the configuration or the data can't be trained with, a loss stops being finite, or a file can't be written.
pub fn train(
    config: &TrainConfig,
    data: &TrainingData,
    run: Option<&RunFolder>,
    device: &Device,
    observer: &mut (dyn Observer + Send),
) -> Result<Trained> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("train".into())
            .stack_size(STACK_BYTES)
            .spawn_scoped(scope, || Trainer::new(&config.resolved()?, data, run, device, observer)?.run())
            .map_err(|error| TrainError::Thread { message: error.to_string() })?;
        thread.join().map_err(|panic| TrainError::Thread {
            message: panic
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
                .unwrap_or_else(|| "it panicked".into()),
        })?
    })
}

struct Trainer<'a> {
    config: &'a TrainConfig,
    run: Option<&'a RunFolder>,
    observer: &'a mut (dyn Observer + Send),
    device: Device,
    identity: String,
    data: PreparedData,
    store: ParameterStore,
    stepper: Stepper,
    watch: CriticWatch,
    anchors: Option<(Items, Items)>,
    source: ShuffledSampler,
    target: Option<(ShuffledSampler, ShuffledSampler)>,
    steps_per_epoch: usize,
    first_epoch: usize,
    best: Option<(usize, f64)>,
    chosen: BTreeMap<String, Tensor>,
}

impl<'a> Trainer<'a> {
    fn new(
        config: &'a TrainConfig,
        data: &TrainingData,
        run: Option<&'a RunFolder>,
        device: &Device,
        observer: &'a mut (dyn Observer + Send),
    ) -> Result<Self> {
        let prepared = data.prepare(config, device)?;
        let store = ParameterStore::new(config.seed, device);
        let inputs = Inputs {
            image_dimension: prepared.images.dimension()?,
            images: prepared.image_input(config.model.head.unwrap_or_default())?,
            sentence_dimension: prepared.sentences.dimension()?,
            sentences: prepared.sentences.sentence_kind(),
        };
        let method = method::build(config, inputs, &store)?;
        let anchors = method.anchors();
        let stepper = Stepper::new(method, &store, config)?;
        let pairs = prepared.sentences_of.len();
        // A last batch of one pair has no negatives: it would be a step without a loss.
        let lonely_last = pairs > config.batch_size && pairs % config.batch_size == 1;
        let source = ShuffledSampler::new(pairs, config.seed, SOURCE_STREAM).drop_last(lonely_last);
        let mut target_batches = Vec::new();
        let mut target = None;
        if let (true, Some(sets)) = (config.method.adapts(), &prepared.target) {
            let images = ShuffledSampler::new(sets.images.len(), config.seed, TARGET_IMAGE_STREAM);
            let sentences = ShuffledSampler::new(sets.sentences.len(), config.seed, TARGET_SENTENCE_STREAM);
            for sampler in [&images, &sentences] {
                target_batches.push(sampler.batches_per_epoch(config.target_batch_size));
            }
            target = Some((images, sentences));
        }
        let source_batches = source.batches_per_epoch(config.batch_size);
        let steps_per_epoch = config.epoch_length.steps(source_batches, &target_batches);
        let anchors = match anchors {
            0 => None,
            count => Some(Self::first_pairs(&prepared, &source, count)?),
        };
        Ok(Self {
            watch: CriticWatch::default(),
            anchors,
            identity: checkpoint::identity(config, &data.digest())?,
            config,
            run,
            observer,
            device: device.clone(),
            data: prepared,
            store,
            stepper,
            source,
            target,
            steps_per_epoch: steps_per_epoch as usize,
            first_epoch: 0,
            best: None,
            chosen: BTreeMap::new(),
        })
    }

    /// The first pairs of a shuffled order, each with its first sentence.
    fn first_pairs(data: &PreparedData, source: &ShuffledSampler, count: usize) -> Result<(Items, Items)> {
        let pairs: Vec<usize> = source.epoch_order(0).iter().take(count).copied().collect();
        if pairs.len() < count {
            return Err(TrainError::Data {
                what: "source pairs for `adaptation.anchors`".into(),
                expected: format!("{count} or more"),
                got: pairs.len().to_string(),
            });
        }
        let first = |pair: &usize| data.sentences_of.get(*pair).and_then(|rows| rows.first().copied());
        let sentences: Vec<usize> = pairs.iter().filter_map(first).collect();
        Ok((data.images.select(&pairs)?, data.sentences.select(&sentences)?))
    }

    fn run(mut self) -> Result<Trained> {
        self.open_run()?;
        let steps = self.config.epochs * self.steps_per_epoch;
        self.observer.started(self.first_epoch * self.steps_per_epoch, steps);
        let mut history = Vec::new();
        for epoch in self.first_epoch..self.config.epochs {
            let started = Instant::now();
            let record = self.epoch(epoch, steps)?;
            let last = epoch + 1 == self.config.epochs;
            if let Some(run) = self.run {
                run.append(METRICS_FILE, &record)?;
                let seconds = started.elapsed().as_secs_f64();
                let steps_per_second = self.steps_per_epoch as f64 / seconds.max(1e-9);
                run.append(TIMING_FILE, &Timing { epoch: epoch + 1, seconds, steps_per_second })?;
                if last || (epoch + 1) % self.config.checkpoint_every == 0 {
                    self.save_checkpoint(run, &record)?;
                }
            }
            self.observer.epoch(&record);
            history.push(record);
        }
        let epoch = self.best.map_or(self.config.epochs, |(epoch, _)| epoch);
        let score = self.best.map(|(_, score)| score);
        Ok(Trained {
            encoder: *self.stepper.method().encoder().config(),
            parameters: self.chosen,
            standardisation: self.data.standardisation,
            epoch,
            score,
            history,
        })
    }

    /// Writes the configuration and takes up a checkpoint where there is one.
    fn open_run(&mut self) -> Result<()> {
        let Some(run) = self.run else { return Ok(()) };
        let mut found = None;
        if run.resumes() {
            let observer = &mut self.observer;
            found = checkpoint::newest(&run.checkpoints(), &self.identity, &self.device, |warning| {
                observer.warning(warning);
            })?;
        }
        run.write_config(self.config)?;
        if let Some((state, tensors)) = found {
            self.store.restore(&checkpoint::under(&tensors, "parameter."))?;
            for (group, optimizer) in self.stepper.optimizers_mut() {
                optimizer.restore(&checkpoint::under(&tensors, &format!("optimizer.{}", group.prefix())))?;
            }
            self.chosen = checkpoint::under(&tensors, "best.");
            self.best = state.best;
            self.first_epoch = state.epoch;
        }
        run.truncate_records(self.first_epoch)
    }

    fn save_checkpoint(&self, run: &RunFolder, record: &EpochRecord) -> Result<()> {
        let mut tensors = BTreeMap::new();
        checkpoint::put(&mut tensors, "parameter.", self.store.snapshot("")?);
        for (group, optimizer) in self.stepper.optimizers() {
            checkpoint::put(&mut tensors, &format!("optimizer.{}", group.prefix()), optimizer.state()?);
        }
        checkpoint::put(&mut tensors, "best.", self.chosen.clone());
        let state = State::new(record.epoch, record.step, self.best, &self.identity);
        checkpoint::save(&run.checkpoints(), state, &tensors)
    }

    /// One epoch from `epoch` (from 0) and its validation.
    fn epoch(&mut self, epoch: usize, steps: usize) -> Result<EpochRecord> {
        // A figure of some steps only is averaged over those.
        let mut sums: BTreeMap<String, (f64, usize)> = BTreeMap::new();
        let mut norm_sum = 0.0;
        let first = epoch * self.steps_per_epoch;
        let mut learning_rate = 0.0;
        for step in first..first + self.steps_per_epoch {
            learning_rate = self.config.optimizer.learning_rate_at(step, steps);
            norm_sum += self.step(step, steps, &mut sums)?;
            self.observer.stepped(step + 1);
        }
        let count = self.steps_per_epoch as f64;
        let means = sums.into_iter().map(|(name, (sum, count))| (name, sum / count as f64)).collect();
        if let Some(name) = self.store.first_not_finite()? {
            return Err(TrainError::NotFinite { tensor: name, step: first + self.steps_per_epoch });
        }
        self.stepper.method().after_epoch(&self.data)?;
        let encoder = self.stepper.method().encoder();
        let source_validation_rsum = source_validation_rsum(encoder, &self.data.validation)?;
        let target_mutual_similarity =
            self.data.target.as_ref().map(|target| target_mutual_similarity(encoder, target)).transpose()?;
        // An epoch before a method adapts is not what was asked for.
        let adapted = self.uses_target(first, steps);
        let candidate = adapted || !self.config.method.adapts();
        // Before the adaptation and after it: what it did to the distance of the domains.
        let next = first + self.steps_per_epoch;
        let turns = next == steps || (!adapted && self.uses_target(next, steps));
        let domain_distances = match &self.data.target {
            Some(target) if turns => domain_distances(encoder, &self.data, target)?,
            _ => None,
        };
        self.choose(epoch + 1, candidate, source_validation_rsum, target_mutual_similarity)?;
        if let Some(warning) = self.watch.epoch(&means) {
            self.observer.warning(&warning);
        }
        Ok(EpochRecord {
            epoch: epoch + 1,
            step: first + self.steps_per_epoch,
            learning_rate,
            gradient_norm: norm_sum / count,
            means,
            source_validation_rsum,
            target_mutual_similarity,
            domain_distances,
        })
    }

    fn uses_target(&self, step: usize, steps: usize) -> bool {
        step < steps && self.stepper.method().uses_target(Moment { step, steps })
    }

    /// Keeps the weights where this epoch is the best so far; target labels have no part in it.
    fn choose(
        &mut self,
        epoch: usize,
        candidate: bool,
        source_validation: Option<f64>,
        target_similarity: Option<f64>,
    ) -> Result<()> {
        let score = match self.config.selection {
            Selection::Last => None,
            Selection::SourceValidation => source_validation,
            Selection::TargetSimilarity => target_similarity,
        };
        let better = match score {
            Some(score) => candidate && self.best.is_none_or(|(_, best)| score > best),
            None => epoch == self.config.epochs,
        };
        if better {
            self.best = score.map(|score| (epoch, score));
            let prefix = Group::Encoder.prefix();
            self.chosen = checkpoint::under(&self.store.snapshot(prefix)?, prefix);
        }
        Ok(())
    }

    /// One step from `step` (from 0); gives the encoders' gradient norm.
    fn step(&mut self, step: usize, steps: usize, sums: &mut BTreeMap<String, (f64, usize)>) -> Result<f64> {
        let batch = self.batch(step)?;
        // Dropout is a function of seed and step: nothing of it has to be saved.
        let mut random = ChaCha8Rng::seed_from_u64(self.config.seed);
        random.set_stream(step as u64);
        let rates = Rates {
            encoder: self.config.optimizer.learning_rate_at(step, steps),
            critic: self.config.adaptation.critic_learning_rate,
        };
        let mode = &mut Mode::Training(&mut random);
        let outcome = self.stepper.step(&batch, Moment { step, steps }, rates, mode)?;
        for (name, value) in outcome.logged {
            let (sum, count) = sums.entry(name.to_owned()).or_default();
            *sum += value;
            *count += 1;
        }
        Ok(outcome.encoder_norm)
    }

    fn batch(&self, step: usize) -> Result<Batch> {
        let step = step as u64;
        let pairs = self.source.batch(step, self.config.batch_size);
        let epoch = self.source.epoch_of(step, self.config.batch_size);
        // One random sentence an image and epoch.
        let sentences: Vec<usize> = pairs
            .iter()
            .filter_map(|&pair| {
                let choices = self.data.sentences_of.get(pair)?;
                choices.get(self.source.pick(epoch, pair, choices.len())).copied()
            })
            .collect();
        let target = match (&self.target, &self.data.target) {
            (Some((images, sentences)), Some(features)) => {
                let size = self.config.target_batch_size;
                Some(TargetBatch {
                    images: features.images.select(&images.batch(step, size))?,
                    sentences: features.sentences.select(&sentences.batch(step, size))?,
                })
            }
            _ => None,
        };
        Ok(Batch {
            source_images: self.data.images.select(&pairs)?,
            source_sentences: self.data.sentences.select(&sentences)?,
            target,
            anchors: self.anchors.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Adversary, MethodName};
    use crate::data::tests::{toy, toy_fragments};
    use crate::method::Method;
    use crate::observer::Silent;
    use crate::optimizer::Gradients;
    use crate::run::{Existing, Opened};

    fn small(method: MethodName) -> TrainConfig {
        let mut config = TrainConfig {
            method,
            epochs: 6,
            batch_size: 8,
            target_batch_size: 8,
            checkpoint_every: 2,
            ..TrainConfig::default()
        };
        config.model.embedding_dimension = 8;
        config.adaptation.anchors = 4;
        config.resolved().unwrap()
    }

    fn train_silently(config: &TrainConfig, data: &TrainingData, run: Option<&RunFolder>) -> Result<Trained> {
        train(config, data, run, &Device::Cpu, &mut Silent)
    }

    #[test]
    fn learning_lowers_the_loss_with_every_method() {
        for (method, adversary) in [
            (MethodName::SourceOnly, Adversary::Alternating),
            (MethodName::Aeir, Adversary::Alternating),
            (MethodName::Aeir, Adversary::GradientReversal),
        ] {
            let mut config = TrainConfig { epochs: 30, ..small(method) };
            config.optimizer.learning_rate = 1e-2;
            config.aeir.adversary = adversary;
            let trained = train_silently(&config, &toy(40, 17, 23), None).unwrap();
            let loss = |record: &EpochRecord| record.means["source_loss"];
            let (first, last) = (trained.history.first().unwrap(), trained.history.last().unwrap());
            assert!(loss(last) < 0.7 * loss(first), "{method:?} {adversary:?}");
            assert!(last.source_validation_rsum.unwrap() > first.source_validation_rsum.unwrap());
        }
    }

    fn first_and_last(trained: &Trained, name: &str) -> (f64, f64) {
        let figure = |record: Option<&EpochRecord>| record.unwrap().means[name];
        (figure(trained.history.first()), figure(trained.history.last()))
    }

    #[test]
    fn every_method_trains_on_pooled_features() {
        for method in MethodName::ALL {
            let mut config = TrainConfig { method, epochs: 8, batch_size: 16, ..TrainConfig::default() };
            config.target_batch_size = 8;
            config.model.embedding_dimension = 4;
            config.adaptation.anchors = 4;
            config.adaptation.source_share = 0.5;
            config.optimizer.learning_rate = 1e-2;
            if config.resolved().unwrap().model.head.unwrap().is_cross_attentive() {
                let error = train_silently(&config, &toy(40, 17, 23), None).unwrap_err().to_string();
                assert!(error.contains("fragments"), "{method:?}: {error}");
                continue;
            }
            let trained = train_silently(&config, &toy(40, 17, 23), None).unwrap();
            let rsum = |record: &EpochRecord| record.source_validation_rsum.unwrap();
            let best = trained.history.iter().map(rsum).fold(0.0, f64::max);
            // Twelve held-out pairs; chance is 266.7.
            assert!(best > 300.0, "{method:?}: {best}");
            let last = trained.history.last().unwrap();
            let distances = last.domain_distances.unwrap();
            // Some twenty items a domain say little; that the figure measures a shift is tested where it is computed.
            assert!((-2.0..=2.0).contains(&distances.images), "{distances:?}");
            assert!((-2.0..=2.0).contains(&distances.sentences), "{distances:?}");
            if method.adapts() {
                assert!(trained.history[3].domain_distances.is_some(), "{method:?}: before the adaptation");
            }
        }
    }

    #[test]
    fn every_head_learns_from_fragments_with_and_without_adaptation() {
        use aeir_encoders::Head;
        for (method, head) in [
            (MethodName::Saf, None),
            (MethodName::Sgr, None),
            (MethodName::Sgraf, None),
            (MethodName::Scan, None),
            (MethodName::Scan, Some(Head::ScanI2t)),
            (MethodName::Aeir, Some(Head::Cosine)),
            (MethodName::Aeir, Some(Head::Saf)),
            (MethodName::Aeir, Some(Head::Sgraf)),
            (MethodName::Dann, Some(Head::Sgr)),
            (MethodName::Mmd, Some(Head::ScanT2i)),
        ] {
            let mut config = TrainConfig { method, epochs: 6, batch_size: 10, ..TrainConfig::default() };
            config.target_batch_size = 8;
            config.model.embedding_dimension = 6;
            config.model.input_dropout = 0.0;
            config.model.head = head;
            config.model.head_options.similarity_dimension = 6;
            config.model.head_options.dropout = 0.0;
            config.adaptation.source_share = 0.5;
            config.optimizer.learning_rate = 1e-2;
            let trained = train_silently(&config, &toy_fragments(40, 17, 23), None).unwrap();
            let (first, last) = first_and_last(&trained, "source_loss");
            assert!(last < first, "{method:?} {head:?}: {last} after {first}");
            assert!(trained.parameters.values().all(|value| value.dims().len() < 4));
        }
    }

    #[test]
    fn a_weight_of_zero_leaves_its_term_out() {
        for (semantic, structure) in [(0.0, 1e-3), (1.0, 0.0), (0.0, 0.0)] {
            let mut config = small(MethodName::Aeir);
            config.aeir.semantic_weight = semantic;
            config.aeir.structure_weight = structure;
            let trained = train_silently(&config, &toy(40, 17, 23), None).unwrap();
            let means = &trained.history.last().unwrap().means;
            assert_eq!(means.contains_key("confusion_loss"), semantic > 0.0);
            assert_eq!(means.contains_key("critic_accuracy_images"), semantic > 0.0);
            assert_eq!(means.contains_key("structure_loss"), structure > 0.0);
        }
    }

    #[test]
    fn every_adversary_and_fidelity_runs() {
        for adversary in [Adversary::Alternating, Adversary::GradientReversal, Adversary::Wasserstein] {
            for fidelity in [crate::config::Fidelity::Paper, crate::config::Fidelity::Released] {
                let mut config = small(MethodName::Aeir);
                config.aeir.adversary = adversary;
                config.aeir.fidelity = fidelity;
                // More neighbours than the batch has.
                config.aeir.neighbours = 50;
                train_silently(&config, &toy(40, 17, 23), None).unwrap();
            }
        }
    }

    /// Every parameter of a group gets a finite gradient that is not all zero, and no other group's does.
    #[test]
    fn gradients_reach_their_group_and_no_other() {
        let data = toy(40, 17, 23);
        for adversary in [Adversary::Alternating, Adversary::GradientReversal] {
            let mut config = small(MethodName::Aeir);
            config.aeir.adversary = adversary;
            config.adaptation.warm_up = false;
            config.adaptation.source_share = 0.0;
            let mut silent = Silent;
            let trainer = Trainer::new(&config, &data, None, &Device::Cpu, &mut silent).unwrap();
            let batch = trainer.batch(0).unwrap();
            let mut reached = Vec::new();
            let mut random = ChaCha8Rng::seed_from_u64(1);
            let mode = &mut Mode::Training(&mut random);
            let moment = Moment { step: 5, steps: 10 };
            let method = trainer.stepper.method();
            let embeddings = method.embed(&batch, moment, mode).unwrap();
            for phase in 0..method.phases(moment) {
                let outcome = method.phase(phase, &embeddings, moment, mode).unwrap();
                for objective in outcome.objectives {
                    let store = objective.loss.backward().unwrap();
                    if !objective.reaches.contains(&Group::Encoder) {
                        for (name, variable) in trainer.store.with_prefix(Group::Encoder.prefix()) {
                            assert!(store.get(&variable).is_none(), "the critics' loss reaches `{name}`");
                        }
                    }
                    for group in objective.reaches {
                        let parameters = trainer.store.with_prefix(group.prefix());
                        let mut gradients = Gradients::default();
                        gradients.accumulate(&store, &parameters).unwrap();
                        assert!(gradients.norm().unwrap().is_finite());
                        for name in gradients.names() {
                            let gradient = gradients.get(name).unwrap();
                            let size = gradient.abs().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
                            if size > 0.0 {
                                reached.push(name.to_owned());
                            }
                        }
                    }
                }
            }
            for (name, _) in trainer.store.with_prefix("") {
                assert!(reached.contains(&name), "{adversary:?}: `{name}` got no gradient");
            }
        }
    }

    /// The encoders' loss goes through the critics: its gradient must not move them.
    #[test]
    fn a_group_that_no_loss_names_stays_as_it_is() {
        struct Encoders(Box<dyn Method>);
        impl Method for Encoders {
            fn encoder(&self) -> &aeir_encoders::DualEncoder {
                self.0.encoder()
            }
            fn uses_target(&self, moment: Moment) -> bool {
                self.0.uses_target(moment)
            }
            fn phases(&self, _moment: Moment) -> usize {
                1
            }
            fn phase(
                &self,
                _index: usize,
                embeddings: &method::Embeddings,
                moment: Moment,
                mode: &mut Mode<'_>,
            ) -> Result<method::PhaseOutcome> {
                self.0.phase(1, embeddings, moment, mode)
            }
        }
        let data = toy(40, 17, 23);
        let mut config = small(MethodName::Aeir);
        config.adaptation.source_share = 0.0;
        config.adaptation.warm_up = false;
        let mut silent = Silent;
        let mut trainer = Trainer::new(&config, &data, None, &Device::Cpu, &mut silent).unwrap();
        let whole = method::build(&config, Inputs::pooled(8, 6), &trainer.store).unwrap();
        trainer.stepper = Stepper::new(Box::new(Encoders(whole)), &trainer.store, &config).unwrap();
        let state = |trainer: &Trainer<'_>, group: Group| {
            aeir_encoders::bundle::tensor_bytes(&trainer.store.snapshot(group.prefix()).unwrap()).unwrap()
        };
        let (encoders, critics) = (state(&trainer, Group::Encoder), state(&trainer, Group::Critic));
        trainer.step(0, 10, &mut BTreeMap::new()).unwrap();
        assert_ne!(state(&trainer, Group::Encoder), encoders);
        assert_eq!(state(&trainer, Group::Critic), critics);
    }

    #[test]
    fn critics_do_not_change_where_the_encoders_start() {
        let data = toy(40, 17, 23);
        let start = |method| {
            let config = small(method);
            let mut silent = Silent;
            let trainer = Trainer::new(&config, &data, None, &Device::Cpu, &mut silent).unwrap();
            let weight = trainer.store.snapshot("encoder.image.projection.weight").unwrap();
            weight.values().next().unwrap().to_vec2::<f32>().unwrap()
        };
        assert_eq!(start(MethodName::SourceOnly), start(MethodName::Aeir));
    }

    fn bytes(trained: &Trained) -> Vec<u8> {
        aeir_encoders::bundle::tensor_bytes(&trained.parameters).unwrap()
    }

    fn open(path: &std::path::Path, existing: Existing) -> RunFolder {
        match RunFolder::open(path, existing).unwrap() {
            Opened::Ready(run) => run,
            Opened::Finished => panic!("finished"),
        }
    }

    #[test]
    fn the_seed_decides_everything_and_an_interruption_changes_nothing() {
        let data = toy(40, 17, 23);
        let config = small(MethodName::Aeir);
        let folder = tempfile::tempdir().unwrap();
        let (whole, cut) = (folder.path().join("whole"), folder.path().join("cut"));
        let undisturbed = train_silently(&config, &data, Some(&open(&whole, Existing::Refuse))).unwrap();

        struct StopAt(usize);
        impl Observer for StopAt {
            fn stepped(&mut self, step: usize) {
                assert!(step < self.0, "pulled the plug");
            }
        }
        // Before the first checkpoint, just after one, in the middle of an epoch.
        for stop in [1, 11, 23] {
            let run = open(&cut, Existing::Overwrite);
            assert!(train(&config, &data, Some(&run), &Device::Cpu, &mut StopAt(stop)).is_err());
            drop(run);
            let resumed = train_silently(&config, &data, Some(&open(&cut, Existing::Resume))).unwrap();
            assert_eq!(bytes(&resumed), bytes(&undisturbed), "stopped at {stop}");
            let metrics = |folder: &std::path::Path| std::fs::read(folder.join(METRICS_FILE)).unwrap();
            assert_eq!(metrics(&cut), metrics(&whole), "stopped at {stop}");
        }
        let other = TrainConfig { seed: 2, ..config };
        assert!(train_silently(&other, &data, Some(&open(&cut, Existing::Resume))).is_err());
        assert_ne!(bytes(&train_silently(&other, &data, None).unwrap()), bytes(&undisturbed));
    }

    #[test]
    fn target_sets_shorter_than_a_batch_are_used_whole() {
        let config = small(MethodName::Aeir);
        for (images, sentences) in [(1, 1), (3, 2), (2, 60)] {
            train_silently(&config, &toy(20, images, sentences), None).unwrap();
        }
        let mut without = toy(20, 3, 3);
        without.target = None;
        assert!(train_silently(&config, &without, None).is_err());
        assert!(train_silently(&config, &toy(1, 3, 3), None).is_err());
        train_silently(&small(MethodName::SourceOnly), &toy(9, 3, 3), None).unwrap();
    }

    #[test]
    fn only_adapted_epochs_are_candidates() {
        let config = small(MethodName::Aeir);
        let trained = train_silently(&config, &toy(40, 17, 23), None).unwrap();
        let adapted: Vec<usize> = trained
            .history
            .iter()
            .filter(|record| record.means.contains_key("structure_loss"))
            .map(|record| record.epoch)
            .collect();
        assert!(adapted.contains(&6) && !adapted.contains(&3), "the last part adapts: {adapted:?}");
        assert!(adapted.contains(&trained.epoch), "{} of {adapted:?}", trained.epoch);
    }

    #[test]
    fn even_one_short_epoch_adapts_and_makes_a_whole_model() {
        for (epochs, pairs) in [(1, 6), (2, 6), (3, 20)] {
            let config = TrainConfig { epochs, ..small(MethodName::Aeir) };
            let trained = train_silently(&config, &toy(pairs, 17, 23), None).unwrap();
            assert!(trained.parameters.contains_key("image.projection.weight"));
            assert!(trained.history.last().unwrap().means.contains_key("structure_loss"));
        }
    }

    #[test]
    fn weights_that_run_away_are_named() {
        let mut config = small(MethodName::SourceOnly);
        config.optimizer.learning_rate = 1e30;
        let error = train_silently(&config, &toy(40, 17, 23), None).unwrap_err();
        assert!(matches!(error, TrainError::NotFinite { .. }), "{error}");
    }

    #[test]
    fn what_is_not_finite_is_named_and_the_checkpoint_kept() {
        let (config, data) = (small(MethodName::SourceOnly), toy(40, 17, 23));
        let folder = tempfile::tempdir().unwrap();
        let run = open(&folder.path().join("run"), Existing::Refuse);
        let mut silent = Silent;
        let mut trainer = Trainer::new(&config, &data, Some(&run), &Device::Cpu, &mut silent).unwrap();
        trainer.open_run().unwrap();
        let record = trainer.epoch(0, 30).unwrap();
        trainer.save_checkpoint(&run, &record).unwrap();
        let identity = trainer.identity.clone();
        let kept =
            || checkpoint::newest(&run.checkpoints(), &identity, &Device::Cpu, |_| {}).unwrap().unwrap();
        let named = |error: TrainError, expected: &str| {
            assert!(
                matches!(&error, TrainError::NotFinite { tensor, .. } if tensor == expected),
                "{error} names no {expected}"
            );
        };

        let mut batch = trainer.batch(5).unwrap();
        let Items::Pooled(features) = &batch.source_images else { panic!("not pooled") };
        batch.source_images = Items::Pooled((features * f64::NAN).unwrap());
        let mut random = ChaCha8Rng::seed_from_u64(1);
        let (rates, moment) = (Rates { encoder: 1e-3, critic: 1e-3 }, Moment { step: 5, steps: 30 });
        let mode = &mut Mode::Training(&mut random);
        named(
            trainer.stepper.step(&batch, moment, rates, mode).unwrap_err(),
            "features of the source images",
        );

        let (_, before) = kept();
        let (_, weight) = trainer.store.with_prefix("encoder.sentence.projection.weight").remove(0);
        weight.set(&(weight.as_detached_tensor() * f64::NAN).unwrap()).unwrap();
        let batch = trainer.batch(5).unwrap();
        named(
            trainer.stepper.step(&batch, moment, rates, mode).unwrap_err(),
            "embeddings of the source sentences",
        );
        let bytes =
            |tensors: &BTreeMap<String, Tensor>| aeir_encoders::bundle::tensor_bytes(tensors).unwrap();
        assert_eq!(bytes(&kept().1), bytes(&before));
    }

    #[test]
    fn batches_of_one_train_where_they_mean_something() {
        let one = TrainConfig { batch_size: 1, ..small(MethodName::Aeir) };
        let error = train_silently(&one, &toy(40, 17, 23), None).unwrap_err().to_string();
        assert!(error.contains("batch_size") && error.contains("negatives"), "{error}");
        for head in [aeir_encoders::Head::Cosine, aeir_encoders::Head::Saf, aeir_encoders::Head::Sgr] {
            let mut config = small(MethodName::Aeir);
            config.model.head = Some(head);
            config.source_loss.kind = None;
            config.target_batch_size = 1;
            config.adaptation.source_share = 0.0;
            train_silently(&config, &toy_fragments(12, 5, 3), None).unwrap();
        }
    }

    #[test]
    fn the_best_epoch_on_source_validation_is_the_model() {
        let data = toy(40, 17, 23);
        let trained = train_silently(&small(MethodName::SourceOnly), &data, None).unwrap();
        let best = trained
            .history
            .iter()
            .max_by(|a, b| {
                let score = |record: &EpochRecord| record.source_validation_rsum.unwrap();
                // Of equal ones the first is kept.
                score(a).total_cmp(&score(b)).then(b.epoch.cmp(&a.epoch))
            })
            .unwrap();
        assert_eq!(trained.epoch, best.epoch);
    }
}
