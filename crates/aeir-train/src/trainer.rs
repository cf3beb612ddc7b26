//! The training loop.

use std::collections::BTreeMap;
use std::time::Instant;

use aeir_data::ShuffledSampler;
use aeir_encoders::{DualEncoderConfig, Mode, Standardisation};
use candle_core::{Device, Tensor};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use serde::Serialize;

use crate::budget::{self, step_bytes};
use crate::checkpoint::{self, EpochSums, Identity, Progress};
use crate::config::{Selection, TrainConfig};
use crate::critic_watch::CriticWatch;
use crate::data::{PreparedData, TrainingData};
use crate::error::{Result, TrainError};
use crate::figure::{Figure, fetch, stays};
use crate::gradient_watch::GradientWatch;
use crate::method::{self, Batch, Group, Moment, TargetBatch, TargetRows};
use crate::observer::{EpochRecord, Observer, StepRecord};
use crate::optimizer::clip_factor;
use crate::parameters::ParameterStore;
use crate::plan::{self, Memory, step_sizes};
use crate::ranking_watch::RankingWatch;
use crate::run::{METRICS_FILE, RunFolder, TIMING_FILE};
use crate::step::{Rates, Stepper};
use crate::validate::{domain_distances, source_validation_rsum, target_figures};

/// Backward passes recurse once a node of the graph; the main thread's stack is too small for deep ones.
const STACK_BYTES: usize = 256 << 20;

/// Streams of the samplers, so that orders are independent of each other.
const SOURCE_STREAM: u64 = 0;
const TARGET_IMAGE_STREAM: u64 = 1;
const TARGET_SENTENCE_STREAM: u64 = 2;
const LABELLED_STREAM: u64 = 3;

/// Steps after which the figures of a device are fetched, at the latest. The CPU knows its own at once.
const FETCH_EVERY: usize = 50;

/// Below so many target images or sentences a run that adapts is warned of.
const FEW_TARGET_ITEMS: usize = 20;

/// Prefix of the encoders' averaged parameters.
const AVERAGE: &str = "average.";

/// Prefix of the encoders' parameters with which the adaptation began.
const BEFORE: &str = "before.";

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
    /// Records of all epochs, also of those before an interruption.
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
    // Each thread has an order of its own of what it asks of a GPU: nothing may be left to do when another one goes on with it.
    device.synchronize()?;
    on_large_stack(|| {
        let trained = Trainer::new(&config.resolved()?, data, run, device, observer)?.run()?;
        device.synchronize()?;
        Ok(trained)
    })
}

/// Runs `work` on a thread of its own with a stack that backward passes fit on.
pub(crate) fn on_large_stack<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let (encoders, losses) = (aeir_encoders::rehearsal::current(), aeir_losses::rehearsal::current());
    let work =
        || aeir_encoders::rehearsal::rehearse(encoders, || aeir_losses::rehearsal::rehearse(losses, work));
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("train".into())
            .stack_size(STACK_BYTES)
            .spawn_scoped(scope, work)
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
    identity: Identity,
    data: PreparedData,
    store: ParameterStore,
    stepper: Stepper,
    critics: CriticWatch,
    ranking: RankingWatch,
    gradients: GradientWatch,
    anchors: Option<Anchors>,
    source: ShuffledSampler,
    /// Of the labelled pairs of the target.
    labelled: Option<ShuffledSampler>,
    target: Option<(ShuffledSampler, ShuffledSampler)>,
    length: Length,
    progress: Progress,
    /// The batches of a step to come.
    ahead: Option<Loaded>,
    /// Steps whose figures nobody has asked the device for yet.
    unsettled: Vec<Measured>,
    chosen: BTreeMap<String, Tensor>,
}

/// What a step measured.
struct Measured {
    /// Steps done, this one included.
    step: usize,
    pairs: usize,
    learning_rate: f64,
    gradient_norm: Figure,
    logged: Vec<(&'static str, Figure)>,
}

impl Measured {
    fn figures(&self) -> impl Iterator<Item = &Figure> {
        std::iter::once(&self.gradient_norm).chain(self.logged.iter().map(|(_, figure)| figure))
    }

    fn is_known(&self) -> bool {
        self.figures().all(|figure| figure.if_known().is_some())
    }

    /// Refuses what came from the device and is not finite. What was known was looked at in the step itself.
    fn check_fetched(&self, gradient_norm: f64, logged: &[(&'static str, f64)]) -> Result<()> {
        let values =
            std::iter::once(("gradients of the encoders", gradient_norm)).chain(logged.iter().copied());
        // Losses first: a gradient goes wrong because of one.
        let mut found: Vec<_> = self.figures().zip(values).collect();
        found.rotate_left(1);
        let is_wrong =
            |(figure, (_, value)): &(&Figure, (&str, f64))| figure.if_known().is_none() && !value.is_finite();
        match found.into_iter().find(is_wrong) {
            Some((_, (name, _))) => Err(TrainError::NotFinite { tensor: name.to_owned(), step: self.step }),
            None => Ok(()),
        }
    }
}

/// How long a training is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Length {
    pub(crate) epochs: usize,
    /// Batches an epoch.
    batches: usize,
    /// Batches a step.
    accumulated: usize,
}

impl Length {
    /// Of so many source pairs and, where the method uses them, target images and sentences.
    pub(crate) fn new(config: &TrainConfig, pairs: usize, target: Option<[usize; 2]>) -> Self {
        let source = source_sampler(config, pairs).batches_per_epoch(config.batch_size);
        let of_target = |items: usize| {
            ShuffledSampler::new(items, config.seed, 0).batches_per_epoch(config.target_batch_size)
        };
        let target: Vec<u64> = target.into_iter().flatten().map(of_target).collect();
        let batches = config.epoch_length.steps(source, &target) as usize;
        Self { epochs: config.epochs, batches, accumulated: config.optimizer.accumulate }
    }

    pub(crate) fn steps_per_epoch(self) -> usize {
        self.batches.div_ceil(self.accumulated)
    }

    pub(crate) fn steps(self) -> usize {
        self.epochs * self.steps_per_epoch()
    }

    /// The batches of a step, counted over all epochs. The last step of an epoch takes what is left of it.
    fn batches_of(self, step: usize) -> std::ops::Range<usize> {
        let (epoch, within) = (step / self.steps_per_epoch(), step % self.steps_per_epoch());
        let first = epoch * self.batches + within * self.accumulated;
        first..(first + self.accumulated).min((epoch + 1) * self.batches)
    }
}

fn source_sampler(config: &TrainConfig, pairs: usize) -> ShuffledSampler {
    // A last batch of one pair has no negatives: it would be a step without a loss.
    let lonely_last = pairs > config.batch_size && pairs % config.batch_size == 1;
    ShuffledSampler::new(pairs, config.seed, SOURCE_STREAM).drop_last(lonely_last)
}

impl<'a> Trainer<'a> {
    fn new(
        config: &'a TrainConfig,
        data: &TrainingData,
        run: Option<&'a RunFolder>,
        device: &Device,
        observer: &'a mut (dyn Observer + Send),
    ) -> Result<Self> {
        let mut prepared = data.prepare(config, device)?;
        let store = ParameterStore::new(config.seed, device);
        let inputs = prepared.inputs(config.model.head.unwrap_or_default())?;
        let method = method::build(config, inputs, &store)?;
        let anchors = method.anchors();
        prepared.adopt_tuned(&store)?;
        let stepper = Stepper::new(method, &store, config)?;
        if config.optimizer.ema_decay > 0.0 {
            store.copy(Group::Encoder.prefix(), AVERAGE)?;
        }
        if config.interpolates() {
            store.copy(Group::Encoder.prefix(), BEFORE)?;
        }
        let pairs = prepared.source_pairs();
        let source = source_sampler(config, pairs);
        let labelled = Some(prepared.labelled_pairs()).filter(|count| *count > 0);
        let labelled = labelled.map(|count| ShuffledSampler::new(count, config.seed, LABELLED_STREAM));
        let used = prepared.target.as_ref().filter(|_| config.method.adapts());
        let sizes = used.map(|sets| [sets.images.len(), sets.sentences.len()]);
        let target = sizes.map(|[images, sentences]| {
            (
                ShuffledSampler::new(images, config.seed, TARGET_IMAGE_STREAM),
                ShuffledSampler::new(sentences, config.seed, TARGET_SENTENCE_STREAM),
            )
        });
        if let Some(budget) = config.memory_budget {
            let memory = plan::memory(config, &store, data.bytes());
            let left = budget_left(config, &prepared, memory, stepper.method().encoder().config(), device)?;
            if stays(device) {
                prepared.settle_on_device(left.min(budget.0))?;
            }
        }
        let anchors = match anchors {
            0 => None,
            count => Some(Self::first_pairs(&prepared, &source, count)?),
        };
        // What was put there is read by the thread that loads ahead.
        device.synchronize()?;
        Ok(Self {
            critics: CriticWatch::default(),
            ranking: RankingWatch::new(config),
            gradients: GradientWatch::new(config.optimizer.clip_norm),
            anchors,
            identity: Identity { config: config.identity()?, data: data.digest() },
            config,
            run,
            observer,
            device: device.clone(),
            data: prepared,
            store,
            stepper,
            source,
            labelled,
            target,
            length: Length::new(config, pairs, sizes),
            progress: Progress::default(),
            ahead: None,
            unsettled: Vec::new(),
            chosen: BTreeMap::new(),
        })
    }

    /// The first pairs of a shuffled order, each with its first sentence.
    fn first_pairs(
        data: &PreparedData,
        source: &ShuffledSampler,
        count: usize,
    ) -> Result<(Vec<usize>, Vec<usize>)> {
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
        Ok((pairs, sentences))
    }

    fn run(mut self) -> Result<Trained> {
        self.open_run()?;
        self.warn_of_target();
        self.warn_of_patience();
        self.observer.started(self.progress.step, self.length.steps());
        while !self.is_done() {
            self.epoch()?;
        }
        let epoch = self.progress.best.map_or(self.progress.records.len(), |(epoch, _)| epoch);
        let parameters = self.data.set_tuned(self.chosen)?;
        Ok(Trained {
            encoder: *self.stepper.method().encoder().config(),
            parameters,
            standardisation: self.data.standardisation,
            epoch,
            score: self.progress.best.map(|(_, score)| score),
            history: self.progress.records,
        })
    }

    /// A target that is hardly there, or that no step looks at.
    fn warn_of_target(&mut self) {
        if !self.config.method.adapts() {
            return;
        }
        let sizes = self.data.target.as_ref().map(|target| [target.images.len(), target.sentences.len()]);
        if let Some([images, sentences]) = sizes
            && images.min(sentences) < FEW_TARGET_ITEMS
        {
            self.observer.warning(&format!(
                "the target has {images} images and {sentences} sentences: below {FEW_TARGET_ITEMS} of each there is hardly a domain \
                 to adapt to"
            ));
        }
        if !(0..self.config.epochs).any(|epoch| self.uses_target(epoch * self.length.steps_per_epoch())) {
            self.observer.warning(
                "no step looks at the target: so few epochs are source alignment alone; raise `epochs`, or lower the method's \
                 `source_share`",
            );
        }
    }

    /// An early stop by a figure that this data doesn't give would never come.
    fn warn_of_patience(&mut self) {
        let has_data = match self.config.selected_by() {
            Selection::Last => true,
            Selection::SourceValidation => !self.data.validation.is_empty(),
            _ => self.data.target.is_some(),
        };
        if self.config.patience > 0 && !has_data {
            self.observer.warning(
                "`patience` has no effect: this data gives no figure for `selection` (there is no validation split, or no target); \
                 training goes on to the last epoch",
            );
        }
    }

    /// Whether all epochs are done, or enough of them went by without a better one.
    fn is_done(&self) -> bool {
        let epochs = self.progress.records.len();
        epochs >= self.config.epochs || self.patience_is_over(epochs)
    }

    fn patience_is_over(&self, epochs: usize) -> bool {
        let since = self.progress.best.map_or(0, |(best, _)| epochs - best.min(epochs));
        self.config.patience > 0 && since >= self.config.patience
    }

    /// Writes the configuration and takes up a checkpoint where there is one.
    fn open_run(&mut self) -> Result<()> {
        let Some(run) = self.run else { return Ok(()) };
        if run.resumes() {
            let observer = &mut self.observer;
            let found = checkpoint::newest(&run.checkpoints(), &self.identity, &self.device, |warning| {
                observer.warning(warning);
            })?;
            if let Some((progress, tensors)) = found {
                self.take_up(progress, &tensors)?;
            }
        }
        run.write_config(self.config)?;
        run.restore_records(&self.progress.records)
    }

    fn take_up(&mut self, progress: Progress, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
        self.store.restore(&checkpoint::under(tensors, "parameter."))?;
        for (group, optimizer) in self.stepper.optimizers_mut() {
            optimizer.restore(&checkpoint::under(tensors, &format!("optimizer.{}", group.prefix())))?;
        }
        self.stepper.method().restore(&checkpoint::under(tensors, "method."))?;
        self.chosen = checkpoint::under(tensors, "best.");
        for record in &progress.records {
            // What it says was said before the interruption.
            self.watched(record);
        }
        self.progress = progress;
        Ok(())
    }

    /// Saves everything that the rest of the run depends on; `score` is that of an epoch that ends here.
    fn save(&self, run: &RunFolder, score: Option<f64>) -> Result<()> {
        let mut tensors = BTreeMap::new();
        checkpoint::put(&mut tensors, "parameter.", self.store.snapshot("")?);
        for (group, optimizer) in self.stepper.optimizers() {
            checkpoint::put(&mut tensors, &format!("optimizer.{}", group.prefix()), optimizer.state()?);
        }
        checkpoint::put(&mut tensors, "method.", self.stepper.method().state()?);
        checkpoint::put(&mut tensors, "best.", self.chosen.clone());
        let keep = self.config.keep_checkpoints;
        checkpoint::save(&run.checkpoints(), &self.identity, &self.progress, score, &tensors, keep)
    }

    /// The rest of the epoch that the run stands in, and its validation.
    fn epoch(&mut self) -> Result<()> {
        let (started, first) = (Instant::now(), self.progress.step);
        let epoch = self.progress.records.len() + 1;
        let end = epoch * self.length.steps_per_epoch();
        while self.progress.step < end {
            self.step()?;
            self.observer.stepped(self.progress.step);
            let every = self.config.checkpoint_steps;
            let saves = every > 0 && self.progress.step < end && self.progress.step.is_multiple_of(every);
            if let Some(run) = self.run.filter(|_| saves) {
                self.settle()?;
                self.save(run, None)?;
            }
            if self.observer.interrupts() {
                self.settle()?;
                return Err(self.interrupted(saves)?);
            }
        }
        self.settle()?;
        let (record, score) = self.validated(epoch)?;
        if let Some(run) = self.run {
            run.append(METRICS_FILE, &record)?;
            let seconds = started.elapsed().as_secs_f64();
            let steps_per_second = (end - first) as f64 / seconds.max(1e-9);
            run.append(TIMING_FILE, &Timing { epoch, seconds, steps_per_second })?;
        }
        self.observer.epoch(&record);
        self.progress.records.push(record);
        self.progress.sums = EpochSums::default();
        let saves = self.is_done() || epoch.is_multiple_of(self.config.checkpoint_every);
        if let Some(run) = self.run.filter(|_| saves) {
            self.save(run, score)?;
        }
        if !self.is_done() && self.observer.interrupts() {
            return Err(self.interrupted(saves)?);
        }
        Ok(())
    }

    /// Saves where the run stands, unless a checkpoint of this step is there already, and says that it stops there.
    fn interrupted(&self, is_saved: bool) -> Result<TrainError> {
        if let Some(run) = self.run.filter(|_| !is_saved) {
            self.save(run, None)?;
        }
        let (step, steps) = (self.progress.step, self.length.steps());
        Ok(TrainError::Interrupted { step, steps, saved: self.run.is_some() })
    }

    /// The record of the epoch whose last step is done, and its score where it is a candidate.
    fn validated(&mut self, epoch: usize) -> Result<(EpochRecord, Option<f64>)> {
        if let Some(name) = self.store.first_not_finite()? {
            return Err(TrainError::NotFinite { tensor: name, step: self.progress.step });
        }
        let step = self.progress.step;
        // An epoch before a method adapts is not what was asked for.
        let adapted = self.uses_target(step - self.length.steps_per_epoch());
        let candidate = adapted || !self.config.method.adapts();
        let own = self.put_average()?;
        let mut record = match adapted && self.config.interpolates() {
            true => self.best_mixture(epoch)?,
            false => self.figures(epoch)?,
        };
        let score = record.criterion(self.config.selected_by()).filter(|_| candidate);
        self.choose(epoch, score)?;
        // Before the adaptation and after it: what it did to the distance of the domains.
        let last = epoch == self.config.epochs || self.patience_is_over(epoch);
        let turns = last || (!adapted && self.uses_target(step));
        if let Some(target) = self.data.target.as_ref().filter(|_| turns) {
            record.domain_distances = domain_distances(self.stepper.method().encoder(), &self.data, target)?;
        }
        self.store.restore(&own)?;
        for warning in self.watched(&record).into_iter().flatten() {
            self.observer.warning(&warning);
        }
        Ok((record, score))
    }

    /// The record of an epoch with what the encoders, as they stand, come to without a label of the target.
    fn figures(&self, epoch: usize) -> Result<EpochRecord> {
        let mut record = self.means(epoch);
        self.stepper.method().after_epoch(&self.data)?;
        let encoder = self.stepper.method().encoder();
        record.source_validation_rsum = source_validation_rsum(encoder, &self.data.validation)?;
        if let Some(target) = self.data.target_held_out.as_ref().or(self.data.target.as_ref()) {
            record.set_label_free(target_figures(encoder, target)?);
        }
        Ok(record)
    }

    /// Puts the mixture of the weights before the adaptation and now that the selection's figure likes best into the encoders; the
    /// first where it looks at nothing.
    fn best_mixture(&self, epoch: usize) -> Result<EpochRecord> {
        let prefix = Group::Encoder.prefix();
        let adapted = self.store.snapshot(prefix)?;
        let mut best: Option<(EpochRecord, BTreeMap<String, Tensor>)> = None;
        for share in &self.config.adapt.interpolate {
            self.store.restore(&adapted)?;
            self.store.blend(BEFORE, prefix, 1.0 - share)?;
            let record = EpochRecord { interpolation: Some(*share), ..self.figures(epoch)? };
            let score = |record: &EpochRecord| record.criterion(self.config.selected_by());
            if best.as_ref().is_none_or(|(other, _)| score(&record) > score(other)) {
                best = Some((record, self.store.snapshot(prefix)?));
            }
        }
        let Some((record, weights)) = best else { return self.figures(epoch) };
        self.store.restore(&weights)?;
        Ok(record)
    }

    /// What the watches have to say of an epoch.
    fn watched(&mut self, record: &EpochRecord) -> [Option<String>; 2] {
        [self.critics.epoch(&record.means), self.ranking.epoch(&record.means)]
    }

    /// The record of an epoch's steps, not validated yet.
    fn means(&self, epoch: usize) -> EpochRecord {
        let EpochSums { figures, norms, largest_norm, clipped } = &self.progress.sums;
        let steps = self.length.steps_per_epoch() as f64;
        let means = figures.iter().map(|(name, (sum, count))| (name.clone(), sum / *count as f64));
        EpochRecord {
            epoch,
            step: self.progress.step,
            learning_rate: self.learning_rate(self.progress.step - 1),
            gradient_norm: norms / steps,
            gradient_norm_largest: *largest_norm,
            clipped_share: (self.config.optimizer.clip_norm > 0.0).then(|| *clipped as f64 / steps),
            means: means.collect(),
            ..EpochRecord::default()
        }
    }

    /// Puts the averaged weights into the encoders, where there are any; gives what was there if it is to be put back.
    fn put_average(&self) -> Result<BTreeMap<String, Tensor>> {
        let averages = self.config.optimizer.ema_decay > 0.0;
        if !averages && !self.config.interpolates() {
            return Ok(BTreeMap::new());
        }
        let own = self.store.snapshot(Group::Encoder.prefix())?;
        if averages {
            // Keeping nothing of itself: the encoders take the average, but for a memory.
            self.store.blend(AVERAGE, Group::Encoder.prefix(), 0.0)?;
        }
        Ok(own)
    }

    /// Remembers the weights with which the adaptation begins, where they are mixed in later.
    fn keep_before(&self, step: usize) -> Result<()> {
        let begins = self.uses_target(step) && (step == 0 || !self.uses_target(step - 1));
        if !(begins && self.config.interpolates()) {
            return Ok(());
        }
        let averages = self.config.optimizer.ema_decay > 0.0;
        self.store.copy(if averages { AVERAGE } else { Group::Encoder.prefix() }, BEFORE)
    }

    fn uses_target(&self, step: usize) -> bool {
        let steps = self.length.steps();
        step < steps && self.stepper.method().uses_target(Moment { step, steps })
    }

    /// Keeps the weights where this epoch is the best so far; target labels have no part in it. Where nothing was looked
    /// at, the last is kept.
    fn choose(&mut self, epoch: usize, score: Option<f64>) -> Result<()> {
        let best = self.progress.best;
        let better = match score {
            Some(score) => best.is_none_or(|(_, best)| score > best),
            None => best.is_none() && epoch == self.config.epochs,
        };
        if better {
            self.progress.best = score.map(|score| (epoch, score));
            let prefix = Group::Encoder.prefix();
            self.chosen = checkpoint::under(&self.store.snapshot(prefix)?, prefix);
        }
        Ok(())
    }

    fn learning_rate(&self, step: usize) -> f64 {
        self.config.optimizer.learning_rate_at(step, self.length.steps(), self.config.epochs)
    }

    fn step(&mut self) -> Result<()> {
        let (step, steps) = (self.progress.step, self.length.steps());
        let moment = Moment { step, steps };
        self.keep_before(step)?;
        let mut logged: Vec<(&'static str, Figure)> = Vec::new();
        if step.is_multiple_of(self.length.steps_per_epoch()) {
            let found = self.stepper.method().before_epoch(moment, &self.data)?;
            logged.extend(found.into_iter().map(|(name, value)| (name, Figure::known(value))));
        }
        // Dropout is a function of seed and step: nothing of it has to be saved.
        let mut random = ChaCha8Rng::seed_from_u64(self.config.seed);
        random.set_stream(step as u64);
        let mode = &mut Mode::Training(&mut random);
        let batches = self.batches(step, mode)?;
        let next = self.rows_ahead(step);
        let rates =
            Rates { encoder: self.learning_rate(step), critic: self.config.adaptation.critic_learning_rate };
        let Self { data, anchors, stepper, device, .. } = self;
        let (outcome, ahead) = with_loading(next, data, anchors.as_ref(), device, || {
            stepper.step_all(&batches, moment, rates, mode)
        })?;
        self.ahead = ahead;
        self.progress.step += 1;
        let decay = self.config.optimizer.ema_decay;
        if decay > 0.0 {
            self.store.blend(Group::Encoder.prefix(), AVERAGE, average_keeps(decay, step))?;
        }
        logged.extend(outcome.logged);
        let counts = batches.iter().map(|batch| batch.source_images.count());
        let measured = Measured {
            step: step + 1,
            pairs: counts.sum::<std::result::Result<_, _>>()?,
            learning_rate: rates.encoder,
            gradient_norm: outcome.encoder_norm,
            logged,
        };
        self.unsettled.push(measured);
        if self.unsettled.iter().all(Measured::is_known) || self.unsettled.len() >= FETCH_EVERY {
            self.settle()?;
        }
        Ok(())
    }

    /// Fetches the figures of the steps that are not settled, all in one transfer, and counts and tells them.
    fn settle(&mut self) -> Result<()> {
        let steps = std::mem::take(&mut self.unsettled);
        let figures: Vec<&Figure> = steps.iter().flat_map(Measured::figures).collect();
        let mut values = fetch(&figures)?.into_iter();
        for step in &steps {
            let gradient_norm = values.next().unwrap_or_default();
            let logged = step.logged.iter().map(|(name, _)| *name).zip(&mut values).collect();
            self.count(step, gradient_norm, logged)?;
        }
        Ok(())
    }

    /// Enters a step's figures into the epoch's, and tells them.
    fn count(&mut self, step: &Measured, gradient_norm: f64, logged: Vec<(&'static str, f64)>) -> Result<()> {
        step.check_fetched(gradient_norm, &logged)?;
        if let Some(warning) = self.gradients.step(step.step, gradient_norm) {
            self.observer.warning(&warning);
        }
        self.observer.measured(&StepRecord {
            step: step.step,
            pairs: step.pairs,
            learning_rate: step.learning_rate,
            gradient_norm,
            logged: &logged,
        });
        let limit = Some(self.config.optimizer.clip_norm).filter(|limit| *limit > 0.0);
        let sums = &mut self.progress.sums;
        for (name, value) in logged {
            let (sum, count) = sums.figures.entry(name.to_owned()).or_default();
            *sum += value;
            *count += 1;
        }
        sums.norms += gradient_norm;
        sums.largest_norm = sums.largest_norm.max(gradient_norm);
        sums.clipped += usize::from(clip_factor(gradient_norm, limit) < 1.0);
        Ok(())
    }

    /// The sentence of each pair in an epoch of its sampler.
    fn sentences_for(&self, pairs: &[usize], sampler: &ShuffledSampler, epoch: u64) -> Vec<usize> {
        let sentence = |&pair: &usize| {
            let choices = self.data.sentences_of.get(pair)?;
            choices.get(sampler.pick(epoch, pair, choices.len())).copied()
        };
        pairs.iter().filter_map(sentence).collect()
    }

    /// The labelled pairs of a batch, and which of their epochs it belongs to.
    fn labelled_batch(&self, sampler: &ShuffledSampler, number: u64) -> (Vec<usize>, u64) {
        let first = self.data.source_pairs();
        let size = self.config.labelled_batch_size(sampler.len());
        let pairs = sampler.batch(number, size).into_iter().map(|pair| first + pair).collect();
        (pairs, sampler.epoch_of(number, size))
    }

    /// Which items the batch of that number has, counted over all epochs.
    fn rows_of(&self, number: usize) -> BatchRows {
        let number = number as u64;
        let mut pairs = self.source.batch(number, self.config.batch_size);
        let epoch = self.source.epoch_of(number, self.config.batch_size);
        // One random sentence an image and epoch.
        let mut sentences = self.sentences_for(&pairs, &self.source, epoch);
        let mut labelled = 0;
        if let Some(sampler) = &self.labelled {
            let (more, epoch) = self.labelled_batch(sampler, number);
            sentences.extend(self.sentences_for(&more, sampler, epoch));
            labelled = more.len();
            pairs.extend(more);
        }
        let target = self.target.as_ref().map(|(images, sentences)| {
            let size = self.config.target_batch_size;
            let chosen = self.stepper.method().target_rows(number, size);
            let [of_images, of_sentences] = match &chosen {
                Some(rows) => [rows.images.clone(), rows.sentences.clone()],
                None => [images.batch(number, size), sentences.batch(number, size)],
            };
            TargetChoice { images: of_images, sentences: of_sentences, chosen }
        });
        BatchRows { pairs, sentences, labelled, target }
    }

    /// The batch of that number, counted over all epochs.
    #[cfg(test)]
    fn batch(&self, number: usize, mode: &mut Mode<'_>) -> Result<Batch> {
        self.rows_of(number).load(&self.data, self.anchors.as_ref(), mode)
    }

    /// The batches of a step: those that were loaded ahead, or loaded now.
    fn batches(&mut self, step: usize, mode: &mut Mode<'_>) -> Result<Vec<Batch>> {
        match self.ahead.take() {
            Some((ahead, batches)) if ahead == step => Ok(batches),
            _ => load(&self.rows_of_step(step), &self.data, self.anchors.as_ref(), mode),
        }
    }

    fn rows_of_step(&self, step: usize) -> Vec<BatchRows> {
        self.length.batches_of(step).map(|number| self.rows_of(number)).collect()
    }

    /// The items of the step after `step`, where they can be loaded while a device computes this one: not past an epoch, before which
    /// a method may choose others, and not where loading is a part of the graph. The CPU has its hands full with the step itself.
    fn rows_ahead(&self, step: usize) -> Option<(usize, Vec<BatchRows>)> {
        let next = step + 1;
        let begins = next.is_multiple_of(self.length.steps_per_epoch());
        let ahead = stays(&self.device) && !begins && !self.data.is_tuned();
        ahead.then(|| (next, self.rows_of_step(next)))
    }
}

/// The items of a batch, by their rows.
struct BatchRows {
    pairs: Vec<usize>,
    sentences: Vec<usize>,
    labelled: usize,
    target: Option<TargetChoice>,
}

struct TargetChoice {
    images: Vec<usize>,
    sentences: Vec<usize>,
    /// Where the method chose them.
    chosen: Option<TargetRows>,
}

/// The batches of a step.
type Loaded = (usize, Vec<Batch>);

/// Rows of images and of their sentences.
type Anchors = (Vec<usize>, Vec<usize>);

impl BatchRows {
    fn load(&self, data: &PreparedData, anchors: Option<&Anchors>, mode: &mut Mode<'_>) -> Result<Batch> {
        let target = match (&self.target, &data.target) {
            (Some(rows), Some(features)) => Some(TargetBatch {
                images: features.images.select_in(&rows.images, mode)?,
                sentences: features.sentences.select_in(&rows.sentences, mode)?,
                rows: rows.chosen.clone(),
            }),
            _ => None,
        };
        let anchors = match anchors {
            Some((images, sentences)) => {
                Some((data.images.select_in(images, mode)?, data.sentences.select_in(sentences, mode)?))
            }
            None => None,
        };
        Ok(Batch {
            source_images: data.images.select_in(&self.pairs, mode)?,
            source_sentences: data.sentences.select_in(&self.sentences, mode)?,
            labelled: self.labelled,
            target,
            anchors,
        })
    }
}

fn load(
    rows: &[BatchRows],
    data: &PreparedData,
    anchors: Option<&Anchors>,
    mode: &mut Mode<'_>,
) -> Result<Vec<Batch>> {
    rows.iter().map(|rows| rows.load(data, anchors, mode)).collect()
}

/// Does `work` while the next batches, where there are some, are loaded on another thread.
fn with_loading<T>(
    next: Option<(usize, Vec<BatchRows>)>,
    data: &PreparedData,
    anchors: Option<&Anchors>,
    device: &Device,
    work: impl FnOnce() -> Result<T>,
) -> Result<(T, Option<Loaded>)> {
    let Some((step, rows)) = next else { return Ok((work()?, None)) };
    // This thread waits for what it asked of the device alone, not for the step.
    let load = || {
        let batches = load(&rows, data, anchors, &mut Mode::Evaluation)?;
        device.synchronize()?;
        Ok::<_, TrainError>(batches)
    };
    std::thread::scope(|scope| {
        let loading = std::thread::Builder::new()
            .name("batch".into())
            .spawn_scoped(scope, load)
            .map_err(|error| TrainError::Thread { message: error.to_string() })?;
        let done = work();
        let loaded = loading.join().map_err(|_| TrainError::Thread { message: "loading panicked".into() })?;
        Ok((done?, Some((step, loaded?))))
    })
}

/// What the memory budget has beside everything that a training takes.
fn budget_left(
    config: &TrainConfig,
    data: &PreparedData,
    memory: Memory,
    encoder: &DualEncoderConfig,
    device: &Device,
) -> Result<u64> {
    if data.is_tuned() {
        return Err(TrainError::Setting {
            key: "memory_budget",
            expected:
                "unset where an encoder is trained with the towers: what its graph takes is not estimated"
                    .into(),
            got: "a budget".into(),
        });
    }
    let pairs = [data.source_pairs(), data.labelled_pairs()];
    let words = data.sentence_length(stays(device));
    let adapts = config.method.adapts() && data.target.is_some();
    let at = |share: f64| {
        let scaled = |size: usize| ((share * size as f64).floor() as usize).max(1);
        let smaller = TrainConfig {
            batch_size: scaled(config.batch_size),
            target_batch_size: scaled(config.target_batch_size),
            ..config.clone()
        };
        step_bytes(encoder, step_sizes(&smaller, pairs, adapts, words), stays(device))
    };
    budget::check(config, &memory, at)?;
    let budget = config.memory_budget.map_or(u64::MAX, |budget| budget.0);
    Ok(budget.saturating_sub(memory.lasting() as u64 + at(1.0)))
}

/// How much of itself the average keeps after step `step`, from 0: `min(decay, (1 + t) / (10 + t))`, t the steps done, so that
/// the first weights, drawn at random, are soon forgotten.
fn average_keeps(decay: f64, step: usize) -> f64 {
    let done = step as f64 + 1.0;
    decay.min((1.0 + done) / (10.0 + done))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Adversary, MethodName};
    use crate::data::tests::{toy, toy_fragments};
    use crate::method::{Inputs, Method};
    use crate::observer::Silent;
    use crate::optimizer::Gradients;
    use crate::run::{Existing, Opened};
    use aeir_encoders::Items;

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
            config.adapt.source_share = 0.5;
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
        let ways = [
            (Adversary::Alternating, crate::config::Fidelity::Paper),
            (Adversary::GradientReversal, crate::config::Fidelity::Paper),
            (Adversary::Alternating, crate::config::Fidelity::Released),
        ];
        for (adversary, fidelity) in ways {
            let mut config = small(MethodName::Aeir);
            config.aeir.adversary = adversary;
            config.aeir.fidelity = fidelity;
            config.source_loss.kind = Some(crate::config::SourceLossKind::InfoNce);
            config.adaptation.warm_up = false;
            config.adaptation.source_share = 0.0;
            let mut silent = Silent;
            let trainer = Trainer::new(&config, &data, None, &Device::Cpu, &mut silent).unwrap();
            let batch = trainer.batch(0, &mut Mode::Evaluation).unwrap();
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
                        let optimizers = trainer.stepper.optimizers();
                        let (_, optimizer) = optimizers.iter().find(|(of, _)| *of == group).unwrap();
                        let mut gradients = Gradients::default();
                        gradients.accumulate(&store, optimizer.parameters()).unwrap();
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
                assert!(reached.contains(&name), "{adversary:?}, {fidelity:?}: `{name}` got no gradient");
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
        trainer.step().unwrap();
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

    /// Stops after some steps, and tells how often it was asked.
    struct StopAfter(usize);
    impl Observer for StopAfter {
        fn interrupts(&mut self) -> bool {
            self.0 -= 1;
            self.0 == 0
        }
    }

    #[test]
    fn an_interruption_in_the_middle_of_an_epoch_changes_nothing() {
        let data = toy(40, 17, 23);
        let folder = tempfile::tempdir().unwrap();
        let (whole, cut) = (folder.path().join("whole"), folder.path().join("cut"));
        let read = |folder: &std::path::Path| std::fs::read(folder.join(METRICS_FILE)).unwrap();
        for ema_decay in [0.0, 0.9] {
            let mut config = small(MethodName::Aeir);
            config.optimizer.ema_decay = ema_decay;
            config.optimizer.clip_norm = 0.5;
            let undisturbed =
                train_silently(&config, &data, Some(&open(&whole, Existing::Overwrite))).unwrap();
            let mut existing = Existing::Overwrite;
            let mut stops = 0;
            // Every three steps; an epoch has five, and its last step also ends it.
            let resumed = loop {
                let run = open(&cut, existing);
                match train(&config, &data, Some(&run), &Device::Cpu, &mut StopAfter(3)) {
                    Ok(trained) => break trained,
                    Err(TrainError::Interrupted { saved: true, step, .. }) => {
                        stops += 1;
                        assert!(step <= 3 * stops, "step {step}");
                    }
                    Err(error) => panic!("{error}"),
                }
                existing = Existing::Resume;
            };
            assert!(stops >= 8, "{stops}");
            assert_eq!(bytes(&resumed), bytes(&undisturbed));
            assert_eq!(read(&cut), read(&whole));
            assert_eq!(resumed.history, undisturbed.history);
        }
    }

    #[test]
    fn checkpoints_within_an_epoch_are_as_good_as_those_between() {
        let data = toy(40, 17, 23);
        let mut config = small(MethodName::Aeir);
        config.checkpoint_steps = 2;
        config.keep_checkpoints = 100;
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path().join("run");
        let undisturbed = train_silently(&config, &data, Some(&open(&run, Existing::Refuse))).unwrap();
        let metrics = std::fs::read(run.join(METRICS_FILE)).unwrap();
        let checkpoints = run.join(crate::run::CHECKPOINT_FOLDER);
        let mut names: Vec<_> =
            std::fs::read_dir(&checkpoints).unwrap().map(|it| it.unwrap().path()).collect();
        names.sort();
        assert!(names.len() > 12, "{names:?}");
        // From the newest to the oldest, and then from none.
        while let Some(newest) = names.pop() {
            std::fs::remove_dir_all(&newest).unwrap();
            let resumed = train_silently(&config, &data, Some(&open(&run, Existing::Resume))).unwrap();
            assert_eq!(bytes(&resumed), bytes(&undisturbed), "without {newest:?}");
            assert_eq!(std::fs::read(run.join(METRICS_FILE)).unwrap(), metrics);
            for made in std::fs::read_dir(&checkpoints).unwrap().map(|it| it.unwrap().path()) {
                if !names.contains(&made) {
                    std::fs::remove_dir_all(made).unwrap();
                }
            }
        }
    }

    #[test]
    fn a_changed_setting_is_named_before_anything_is_touched() {
        let data = toy(40, 17, 23);
        let config = small(MethodName::SourceOnly);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run");
        let stopped =
            train(&config, &data, Some(&open(&path, Existing::Refuse)), &Device::Cpu, &mut StopAfter(3));
        assert!(matches!(stopped, Err(TrainError::Interrupted { .. })));
        let mut other = config.clone();
        other.seed = 7;
        other.optimizer.learning_rate = 0.5;
        let run = open(&path, Existing::Resume);
        let told = run.check_config(&other).unwrap_err().to_string();
        assert!(told.contains("`optimizer.learning_rate` was 0.002 and is 0.5"), "{told}");
        assert!(told.contains("`seed` was 1 and is 7"), "{told}");
        assert_eq!(train_silently(&other, &data, Some(&run)).unwrap_err().to_string(), told);
        let told = train_silently(&config, &toy(41, 17, 23), Some(&run)).unwrap_err().to_string();
        assert!(told.contains("other data") && !told.contains("settings"), "{told}");
        run.check_config(&config).unwrap();
        train_silently(&config, &data, Some(&run)).unwrap();
    }

    #[test]
    fn gradients_of_several_batches_make_one_step() {
        let data = toy(40, 17, 23);
        for method in [MethodName::SourceOnly, MethodName::Aeir, MethodName::Dann] {
            let mut config = small(method);
            config.optimizer.accumulate = 2;
            let trained = train_silently(&config, &data, None).unwrap();
            // Five batches an epoch: the third step has one.
            assert_eq!(trained.history.last().unwrap().step, 18, "{method:?}");
            let (first, last) = first_and_last(&trained, "source_loss");
            assert!(last < first, "{method:?}: {last} after {first}");
        }
    }

    /// With plain gradient descent two batches of one mean are their sum halved: what two optimisers would do apart.
    #[test]
    fn the_mean_of_gradients_is_what_is_stepped() {
        let data = toy(16, 17, 23);
        let mut config = small(MethodName::SourceOnly);
        config.model.input_dropout = 0.0;
        config.optimizer.kind = crate::config::OptimizerKind::Sgd;
        (config.optimizer.momentum, config.optimizer.weight_decay) = (0.0, 0.0);
        let mut silent = Silent;
        let mut trainer = Trainer::new(&config, &data, None, &Device::Cpu, &mut silent).unwrap();
        let name = "encoder.image.projection.weight";
        let weight = |trainer: &Trainer<'_>| trainer.store.snapshot(name).unwrap().remove(name).unwrap();
        let start = trainer.store.snapshot("").unwrap();
        let before = weight(&trainer);
        let (moment, rates) = (Moment { step: 0, steps: 10 }, Rates { encoder: 0.1, critic: 0.1 });
        let batches = [
            trainer.batch(0, &mut Mode::Evaluation).unwrap(),
            trainer.batch(1, &mut Mode::Evaluation).unwrap(),
        ];
        let mut moved = Vec::new();
        for chosen in [&batches[..1], &batches[1..], &batches[..]] {
            trainer.store.restore(&start).unwrap();
            trainer.stepper.step_all(chosen, moment, rates, &mut Mode::Evaluation).unwrap();
            moved.push((weight(&trainer) - &before).unwrap());
        }
        let mean = ((&moved[0] + &moved[1]).unwrap() * 0.5).unwrap();
        let difference = (mean - &moved[2]).unwrap().abs().unwrap().max_all().unwrap();
        assert!(difference.to_scalar::<f32>().unwrap() < 1e-7);
        assert!(moved[2].abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap() > 1e-4);
    }

    #[test]
    fn groups_freeze_and_pace_by_name() {
        let data = toy(40, 17, 23);
        let group =
            |pattern: &str| crate::config::GroupConfig { pattern: pattern.into(), ..Default::default() };
        let mut config = small(MethodName::SourceOnly);
        config.optimizer.groups = vec![
            crate::config::GroupConfig { frozen: true, ..group("*.bias") },
            crate::config::GroupConfig { learning_rate: Some(2e-5), ..group("encoder.image.*") },
        ];
        let mut silent = Silent;
        let trainer = Trainer::new(&config, &data, None, &Device::Cpu, &mut silent).unwrap();
        let start = checkpoint::under(&trainer.store.snapshot("encoder.").unwrap(), "encoder.");
        let trained = train_silently(&config, &data, None).unwrap();
        let moved = |name: &str| {
            let difference = (&trained.parameters[name] - &start[name]).unwrap().abs().unwrap();
            difference.max_all().unwrap().to_scalar::<f32>().unwrap()
        };
        assert_eq!((moved("image.projection.bias"), moved("sentence.projection.bias")), (0.0, 0.0));
        let (slow, fast) = (moved("image.projection.weight"), moved("sentence.projection.weight"));
        assert!(slow > 0.0 && slow < 0.05 * fast, "{slow} and {fast}");

        let refused = |groups: Vec<crate::config::GroupConfig>| {
            let mut config = config.clone();
            config.optimizer.groups = groups;
            train_silently(&config, &data, None).unwrap_err().to_string()
        };
        let told = refused(vec![group("encoder.images.*")]);
        assert!(told.contains("matches none of") && told.contains("encoder."), "{told}");
        let told = refused(vec![crate::config::GroupConfig { frozen: true, ..group("*") }]);
        assert!(told.contains("optimizer.groups.frozen"), "{told}");
    }

    #[test]
    fn the_average_is_validated_and_becomes_the_model() {
        let data = toy(40, 17, 23);
        let mut config = small(MethodName::SourceOnly);
        config.selection = Some(crate::config::Selection::Last);
        config.optimizer.ema_decay = 0.8;
        let mut silent = Silent;
        let mut trainer = Trainer::new(&config, &data, None, &Device::Cpu, &mut silent).unwrap();
        // The published rule in f64, beside.
        let name = "encoder.image.projection.bias";
        let value = |trainer: &Trainer<'_>| -> Vec<f64> {
            let values = trainer.store.snapshot(name).unwrap().remove(name).unwrap();
            values.to_vec1::<f32>().unwrap().into_iter().map(f64::from).collect()
        };
        let mut average = value(&trainer);
        for step in 0..4 {
            trainer.step().unwrap();
            let keep = 0.8f64.min((2.0 + f64::from(step)) / (11.0 + f64::from(step)));
            average
                .iter_mut()
                .zip(value(&trainer))
                .for_each(|(average, own)| *average = keep * *average + (1.0 - keep) * own);
        }
        let kept = trainer.store.snapshot(AVERAGE).unwrap();
        let got = kept["average.image.projection.bias"].to_vec1::<f32>().unwrap();
        for (got, expected) in got.into_iter().zip(average) {
            assert!((f64::from(got) - expected).abs() < 1e-6, "{got}, expected {expected}");
        }

        let averaged = train_silently(&config, &data, None).unwrap();
        config.optimizer.ema_decay = 0.0;
        let plain = train_silently(&config, &data, None).unwrap();
        assert_ne!(bytes(&averaged), bytes(&plain));
        // The training itself is the same: the losses come from the weights, the validation from their average.
        let means = |trained: &Trained| trained.history.iter().map(|it| it.means.clone()).collect::<Vec<_>>();
        assert_eq!(means(&averaged), means(&plain));
    }

    #[test]
    fn every_configuration_of_the_repository_trains() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs");
        let mut count = 0;
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let text = std::fs::read_to_string(&path).unwrap();
            let config = TrainConfig::from_toml(&text, &path.display().to_string()).unwrap();
            let small = ["epochs=2", "batch_size=4", "target_batch_size=4", "model.embedding_dimension=8"];
            let config = config.with(&small).unwrap().resolved().unwrap();
            let mut data = toy_fragments(12, 7, 9);
            if config.model.head.unwrap().is_cross_attentive() {
                let words = |table: &crate::ItemTable| {
                    let ids = (0..table.len() as u32).map(|item| vec![1, 4 + item % 9, 4 + item % 5, 2]);
                    let ids = std::sync::Arc::new(ids.collect());
                    crate::ItemTable::Words(crate::WordTable { ids, vocabulary_size: 16 })
                };
                data.sources[0].sentences = words(&data.sources[0].sentences);
                data.sources[0].validation = None;
                let target = data.target.as_mut().unwrap();
                target.sentences = words(&target.sentences);
            } else {
                data = toy(12, 7, 9);
            }
            let trained = train_silently(&config, &data, None);
            let trained = trained.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            let last = trained.history.last().unwrap();
            let adapts = last.means.contains_key("structure_loss");
            assert_eq!(adapts, config.method.adapts(), "{}", path.display());
            count += 1;
        }
        assert!(count >= 4);
    }

    #[test]
    fn every_optimiser_and_schedule_learns() {
        use crate::config::{OptimizerKind, Schedule};
        let data = toy(40, 17, 23);
        for (kind, rate) in
            [(OptimizerKind::AdamW, 1e-2), (OptimizerKind::Adam, 1e-2), (OptimizerKind::Sgd, 0.3)]
        {
            for schedule in [Schedule::Constant, Schedule::Step, Schedule::Cosine] {
                let mut config = TrainConfig { epochs: 10, ..small(MethodName::SourceOnly) };
                (config.optimizer.kind, config.optimizer.learning_rate) = (kind, rate);
                (config.optimizer.schedule, config.optimizer.step_epochs) = (schedule, 4);
                config.optimizer.weight_decay = 1e-3;
                let trained = train_silently(&config, &data, None).unwrap();
                let (first, last) = first_and_last(&trained, "source_loss");
                assert!(last < 0.9 * first, "{kind:?} {schedule:?}: {last} after {first}");
            }
        }
    }

    #[test]
    fn products_in_half_precision_learn_as_well() {
        for method in [MethodName::SourceOnly, MethodName::Aeir] {
            let mut config = TrainConfig { epochs: 12, ..small(method) };
            config.optimizer.learning_rate = 1e-2;
            let exact = train_silently(&config, &toy(40, 17, 23), None).unwrap();
            config.precision = aeir_encoders::Precision::Bf16;
            let rounded = train_silently(&config, &toy(40, 17, 23), None).unwrap();
            assert_ne!(bytes(&rounded), bytes(&exact));
            let (first, last) = first_and_last(&rounded, "source_loss");
            let (_, of_exact) = first_and_last(&exact, "source_loss");
            assert!(last < first && (last - of_exact).abs() < 0.1 * of_exact, "{last} and {of_exact}");
            // Everything that is kept is single precision.
            assert!(rounded.parameters.values().all(|value| value.dtype() == candle_core::DType::F32));
        }
    }

    /// Hears how often figures were fetched, and what they were.
    #[derive(Default)]
    struct Counting {
        fetches: Vec<usize>,
        steps: Vec<(usize, f64)>,
    }

    impl Observer for Counting {
        fn measured(&mut self, record: &StepRecord<'_>) {
            self.steps.push((record.step, record.gradient_norm));
        }

        fn stepped(&mut self, _step: usize) {
            self.fetches.push(crate::figure::forced::fetches());
        }
    }

    /// Trains on this thread, the CPU being another device where `forced`.
    fn train_counting(config: &TrainConfig, data: &TrainingData, forced: bool) -> (Trained, Counting) {
        let _forced = forced.then(crate::figure::forced::Forced::new);
        let config = config.resolved().unwrap();
        let mut counting = Counting::default();
        let trainer = Trainer::new(&config, data, None, &Device::Cpu, &mut counting).unwrap();
        (trainer.run().unwrap(), counting)
    }

    #[test]
    fn no_step_on_a_device_waits_for_it() {
        let data = toy(40, 17, 23);
        let mut methods: Vec<TrainConfig> = [
            MethodName::SourceOnly,
            MethodName::Aeir,
            MethodName::Adapt,
            MethodName::Dann,
            MethodName::Adda,
            MethodName::Mmd,
            MethodName::Coral,
            MethodName::Cdan,
        ]
        .map(small)
        .into();
        let mut triplet = small(MethodName::Aeir);
        triplet.source_loss.kind = Some(crate::config::SourceLossKind::TripletHardest);
        triplet.optimizer.accumulate = 2;
        triplet.aeir.adversary = crate::config::Adversary::GradientReversal;
        methods.push(triplet);
        for mut config in methods {
            config.epochs = 3;
            // What a device rounds differently must not grow.
            config.optimizer.learning_rate = 1e-4;
            let (known, at_once) = train_counting(&config, &data, false);
            let (fetched, counting) = train_counting(&config, &data, true);
            let per_epoch = counting.fetches.len() / config.epochs;
            assert!(per_epoch > 1 && per_epoch < FETCH_EVERY);
            for epoch in counting.fetches.chunks(per_epoch) {
                assert!(epoch.iter().all(|count| *count == epoch[0]), "{:?}: {epoch:?}", config.method);
            }
            // After the steps of an epoch once.
            assert!(counting.fetches[per_epoch] > counting.fetches[per_epoch - 1], "{:?}", config.method);
            assert_eq!(counting.steps.len(), at_once.steps.len());
            for ((step, norm), (same, expected)) in counting.steps.iter().zip(&at_once.steps) {
                assert_eq!(step, same);
                assert!(
                    (norm - expected).abs() <= 2e-3 * expected,
                    "{:?} {step}: {norm}, {expected}",
                    config.method
                );
            }
            for (record, expected) in fetched.history.iter().zip(&known.history) {
                assert_eq!(record.clipped_share, expected.clipped_share, "{:?}", config.method);
                for (name, value) in &record.means {
                    let of = expected.means[name];
                    assert!(
                        (value - of).abs() < 2e-3 * of.abs().max(1.0),
                        "{:?} {name}: {value}, {of}",
                        config.method
                    );
                }
            }
        }
    }

    #[test]
    fn batches_loaded_ahead_are_those_that_would_be_loaded_now() {
        let mut adapt = small(MethodName::Adapt);
        adapt.optimizer.accumulate = 2;
        for config in [small(MethodName::Aeir), adapt] {
            let config = TrainConfig { epochs: 2, ..config }.resolved().unwrap();
            let data = toy(40, 17, 23);
            let mut silent = Silent;
            let _forced = crate::figure::forced::Forced::new();
            let mut trainer = Trainer::new(&config, &data, None, &Device::Cpu, &mut silent).unwrap();
            let per_epoch = trainer.length.steps_per_epoch();
            let pixels = |batch: &Batch| {
                let Items::Pooled(features) = &batch.target.as_ref().unwrap().images else { panic!() };
                features.flatten_all().unwrap().to_vec1::<f32>().unwrap()
            };
            for step in 0..2 * per_epoch {
                trainer.step().unwrap();
                let Some((next, batches)) = &trainer.ahead else {
                    assert_eq!((step + 1) % per_epoch, 0, "only the last step of an epoch loads nothing");
                    continue;
                };
                assert_eq!(*next, step + 1);
                let now: Vec<Batch> = trainer
                    .length
                    .batches_of(step + 1)
                    .map(|number| trainer.batch(number, &mut Mode::Evaluation).unwrap())
                    .collect();
                let both = batches.iter().map(pixels).zip(now.iter().map(pixels));
                assert!(batches.len() == now.len() && both.into_iter().all(|(ahead, now)| ahead == now));
            }
        }
    }

    #[test]
    fn the_budget_has_room_for_the_batches_that_wait() {
        /// Bytes of all that a batch has on its device.
        fn bytes_of(batch: &Batch) -> u64 {
            let of = |items: &Items| match items {
                Items::Pooled(features) => features.elem_count(),
                Items::Fragments(fragments) => {
                    fragments.features().elem_count() + fragments.mask().elem_count()
                }
                Items::Words(_) => 0,
            };
            let target = batch.target.as_ref().unwrap();
            let items = [&batch.source_images, &batch.source_sentences, &target.images, &target.sentences];
            items.into_iter().map(|items| of(items) * size_of::<f32>()).sum::<usize>() as u64
        }
        let _forced = crate::figure::forced::Forced::new();
        for data in [toy(40, 17, 23), toy_fragments(40, 17, 23)] {
            let mut left = Vec::new();
            let mut largest = 0;
            for accumulate in [1, 2] {
                let mut config = small(MethodName::Aeir);
                config.optimizer.accumulate = accumulate;
                config.memory_budget = Some(budget::Bytes(1 << 30));
                let config = config.resolved().unwrap();
                let mut silent = Silent;
                let mut trainer = Trainer::new(&config, &data, None, &Device::Cpu, &mut silent).unwrap();
                let memory = plan::memory(&config, &trainer.store, data.bytes());
                let encoder = *trainer.stepper.method().encoder().config();
                left.push(budget_left(&config, &trainer.data, memory, &encoder, &Device::Cpu).unwrap());
                trainer.step().unwrap();
                let (_, ahead) = trainer.ahead.as_ref().unwrap();
                assert_eq!(ahead.len(), accumulate);
                largest = ahead.iter().map(bytes_of).max().unwrap().max(largest);
            }
            // A second batch of this step, and a second one of the next.
            assert!(largest > 0 && left[0] - left[1] >= 2 * largest, "{left:?} {largest}");
        }
    }

    #[test]
    fn figures_of_a_device_are_fetched_after_so_many_steps_and_before_a_checkpoint() {
        let data = toy(420, 17, 23);
        let config = TrainConfig { epochs: 1, ..small(MethodName::SourceOnly) };
        let (_, counting) = train_counting(&config, &data, true);
        assert!(counting.fetches.len() > FETCH_EVERY, "{}", counting.fetches.len());
        assert_eq!(counting.fetches[FETCH_EVERY - 2..=FETCH_EVERY], [0, 1, 1]);
        let folder = tempfile::tempdir().unwrap();
        let run = open(&folder.path().join("run"), Existing::Refuse);
        let config = TrainConfig { checkpoint_steps: 3, ..config }.resolved().unwrap();
        let _forced = crate::figure::forced::Forced::new();
        let mut counting = Counting::default();
        Trainer::new(&config, &data, Some(&run), &Device::Cpu, &mut counting).unwrap().run().unwrap();
        assert_eq!(counting.fetches[..5], [0, 0, 0, 1, 1]);
    }

    #[test]
    fn what_is_not_finite_on_a_device_is_named_when_it_is_fetched() {
        let mut config = small(MethodName::SourceOnly);
        config.optimizer.learning_rate = 1e30;
        let config = config.resolved().unwrap();
        let _forced = crate::figure::forced::Forced::new();
        let mut silent = Silent;
        let data = toy(40, 17, 23);
        let trainer = Trainer::new(&config, &data, None, &Device::Cpu, &mut silent).unwrap();
        let error = trainer.run().unwrap_err();
        assert!(matches!(&error, TrainError::NotFinite { tensor, .. } if tensor == "source_loss"), "{error}");
    }

    #[test]
    fn a_batch_past_the_budget_is_refused_with_one_that_fits() {
        use crate::budget::Bytes;
        let data = toy_fragments(40, 17, 23);
        let mut config = small(MethodName::Aeir);
        (config.batch_size, config.target_batch_size) = (32, 16);
        let with = |budget: Option<u64>, config: &TrainConfig| {
            let config = TrainConfig { memory_budget: budget.map(Bytes), epochs: 1, ..config.clone() };
            train_silently(&config, &data, None)
        };
        let unbounded = with(None, &config).unwrap();
        assert_eq!(
            bytes(&with(Some(1 << 30), &config).unwrap()),
            bytes(&unbounded),
            "a budget changes nothing"
        );
        let error = with(Some(10), &config).unwrap_err();
        assert!(
            matches!(&error, TrainError::Budget { hint, .. } if hint.starts_with("no batch fits")),
            "{error}"
        );
        // Just below what it takes: a smaller batch is named, and fits.
        let TrainError::Budget { needed, .. } = error else { panic!("{error}") };
        let needed = needed.parse::<Bytes>().unwrap().0;
        let budget = needed - needed / 10;
        let error = with(Some(budget), &config).unwrap_err();
        let TrainError::Budget { hint, .. } = &error else { panic!("{error}") };
        let sizes: Vec<usize> =
            hint.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect();
        let [batch_size, target_batch_size] = sizes[..] else { panic!("{hint}") };
        assert!((2..32).contains(&batch_size) && target_batch_size < 16, "{hint}");
        (config.batch_size, config.target_batch_size) = (batch_size, target_batch_size);
        with(Some(budget), &config).unwrap();
    }

    #[test]
    fn a_run_is_taken_up_under_another_budget() {
        let data = toy(40, 17, 23);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run");
        let config = small(MethodName::SourceOnly);
        let whole = train_silently(&config, &data, Some(&open(&path, Existing::Refuse))).unwrap();
        let config = TrainConfig { memory_budget: Some(crate::budget::Bytes(1 << 30)), ..config };
        let again = train_silently(&config, &data, Some(&open(&path, Existing::Resume))).unwrap();
        assert_eq!(bytes(&again), bytes(&whole));
    }

    #[test]
    fn fragments_that_lie_on_the_device_train_as_those_of_the_host() {
        let data = toy_fragments(40, 17, 23);
        let mut config = TrainConfig { epochs: 2, ..small(MethodName::Aeir) };
        config.optimizer.learning_rate = 1e-4;
        let (of_host, _) = train_counting(&config, &data, true);
        config.memory_budget = Some(crate::budget::Bytes(1 << 30));
        let resolved = config.resolved().unwrap();
        {
            let _forced = crate::figure::forced::Forced::new();
            let mut silent = Silent;
            let trainer = Trainer::new(&resolved, &data, None, &Device::Cpu, &mut silent).unwrap();
            assert!(trainer.data.images.is_resident());
        }
        let (of_device, _) = train_counting(&config, &data, true);
        assert_eq!(bytes(&of_device), bytes(&of_host));
    }

    #[test]
    fn clipping_is_reported() {
        let data = toy(40, 17, 23);
        let mut config = small(MethodName::SourceOnly);
        config.optimizer.clip_norm = 1e-3;
        let record = train_silently(&config, &data, None).unwrap().history.remove(0);
        assert_eq!(record.clipped_share, Some(1.0));
        assert!(record.gradient_norm > 1e-3 && record.gradient_norm_largest >= record.gradient_norm);
        config.optimizer.clip_norm = 0.0;
        assert_eq!(train_silently(&config, &data, None).unwrap().history[0].clipped_share, None);
    }

    /// With five labelled pairs of the target.
    fn labelled_toy() -> TrainingData {
        let mut data = toy(40, 17, 23);
        let labelled = toy(5, 3, 3).sources.remove(0);
        data.labelled = Some(crate::data::SourceData { validation: None, ..labelled });
        data
    }

    #[test]
    fn labelled_pairs_stand_beside_the_source_pairs_of_every_step() {
        let data = labelled_toy();
        for (share, expected) in [(0.2, 2), (1.0, 5)] {
            let config = TrainConfig { labelled_share: share, ..small(MethodName::Aeir) };
            let mut silent = Silent;
            let trainer = Trainer::new(&config, &data, None, &Device::Cpu, &mut silent).unwrap();
            let steps = trainer.length;
            for number in 0..7 {
                let batch = trainer.batch(number, &mut Mode::Evaluation).unwrap();
                let source = trainer.source.batch(number as u64, 8).len();
                // The last of five is alone in its batch.
                assert!(batch.labelled == expected || batch.labelled == 5 % expected, "{}", batch.labelled);
                assert_eq!(batch.source_images.count().unwrap(), source + batch.labelled);
                assert_eq!(batch.source_sentences.count().unwrap(), source + batch.labelled);
            }
            let mut silent = Silent;
            let without = toy(40, 17, 23);
            let plain = Trainer::new(&config, &without, None, &Device::Cpu, &mut silent).unwrap();
            assert_eq!(plain.length, steps, "labels make no training longer");
            assert_ne!(plain.identity.data, trainer.identity.data);
        }
        let config = small(MethodName::SourceOnly);
        let (with, without) = (
            train_silently(&config, &data, None).unwrap(),
            train_silently(&config, &toy(40, 17, 23), None).unwrap(),
        );
        assert_ne!(bytes(&with), bytes(&without));
        let refused = train_silently(&small(MethodName::Mmd), &data, None).unwrap_err().to_string();
        assert!(refused.contains("learns from labelled pairs"), "{refused}");
    }

    #[test]
    fn labelled_pairs_have_the_targets_statistics_and_no_part_in_the_source() {
        let config = TrainConfig {
            standardise: crate::config::Standardise::Standardise,
            ..small(MethodName::SourceOnly)
        };
        let prepared = labelled_toy().prepare(&config, &Device::Cpu).unwrap();
        assert_eq!((prepared.source_pairs(), prepared.labelled_pairs()), (40, 5));
        let [images, sentences] = prepared.source_alone();
        assert_eq!((images.len(), sentences.len(), prepared.images.len()), (40, 40, 45));
        // The toy's target is shifted by 1.5, these labelled pairs are not: of its statistics they are far below the mean.
        let rows: Vec<usize> = (40..45).collect();
        let Items::Pooled(features) = prepared.images.select(&rows).unwrap() else { panic!("not pooled") };
        let mean = features.mean_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(mean < -3.0, "{mean}");
    }

    #[test]
    fn patience_ends_a_run_and_a_resume_leaves_it_there() {
        let data = toy(40, 17, 23);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run");
        let config = TrainConfig { epochs: 200, patience: 3, ..small(MethodName::SourceOnly) };
        let trained = train_silently(&config, &data, Some(&open(&path, Existing::Refuse))).unwrap();
        let last = trained.history.last().unwrap();
        assert!(last.epoch < 200 && last.epoch == trained.epoch + 3, "{} of {}", trained.epoch, last.epoch);
        assert!(last.domain_distances.is_some(), "the last of all");
        let again = train_silently(&config, &data, Some(&open(&path, Existing::Resume))).unwrap();
        assert_eq!(bytes(&again), bytes(&trained));
        assert_eq!(again.history, trained.history);
    }

    #[test]
    fn every_criterion_chooses_among_the_epochs_without_a_label() {
        use crate::config::Selection;
        let data = toy(40, 17, 23);
        for selection in [
            Selection::TargetSimilarity,
            Selection::TargetCycle,
            Selection::TargetEntropy,
            Selection::TargetDiversity,
            Selection::TargetInformation,
        ] {
            for target_held_out in [0.0, 0.4] {
                let config =
                    TrainConfig { selection: Some(selection), target_held_out, ..small(MethodName::Aeir) };
                let trained = train_silently(&config, &data, None).unwrap();
                let scores: Vec<f64> =
                    trained.history.iter().map(|record| record.criterion(selection).unwrap()).collect();
                let adapted = 4..6;
                let best = adapted.clone().map(|epoch| scores[epoch]).fold(f64::NEG_INFINITY, f64::max);
                assert!(adapted.contains(&(trained.epoch - 1)), "{selection:?}");
                assert_eq!(trained.score, Some(best), "{selection:?}");
                assert_eq!(scores[trained.epoch - 1], best);
            }
            let mut without = data.clone();
            without.target = None;
            let config = TrainConfig { selection: Some(selection), ..small(MethodName::SourceOnly) };
            let trained = train_silently(&config, &without, None).unwrap();
            assert_eq!((trained.epoch, trained.score), (6, None), "the last");
        }
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
        trainer.epoch().unwrap();
        trainer.save(&run, None).unwrap();
        let identity = trainer.identity.clone();
        let kept =
            || checkpoint::newest(&run.checkpoints(), &identity, &Device::Cpu, |_| {}).unwrap().unwrap();
        let named = |error: TrainError, expected: &str| {
            assert!(
                matches!(&error, TrainError::NotFinite { tensor, .. } if tensor == expected),
                "{error} names no {expected}"
            );
        };

        let mut batch = trainer.batch(5, &mut Mode::Evaluation).unwrap();
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
        let batch = trainer.batch(5, &mut Mode::Evaluation).unwrap();
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
