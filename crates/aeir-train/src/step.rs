//! One training step: all gradients of a phase first, then all updates.

use candle_core::{Tensor, Var};

use aeir_encoders::{Fragments, Items, Mode};

use crate::config::{GroupConfig, OptimizerConfig, TrainConfig};
use crate::error::{Result, TrainError};
use crate::figure::Figure;
use crate::method::{Batch, Embeddings, Group, Method, Moment, PhaseOutcome};
use crate::optimizer::{Gradients, Norm, Optimizer, Parameter};
use crate::parameters::ParameterStore;

/// A method with the optimisers of its groups.
pub struct Stepper {
    method: Box<dyn Method>,
    optimizers: Vec<(Group, Optimizer)>,
    clip_norm: Option<f64>,
}

/// Learning rates of a step.
#[derive(Debug, Clone, Copy)]
pub struct Rates {
    /// Of towers and head.
    pub encoder: f64,
    /// Of the critics.
    pub critic: f64,
}

/// What a step tells. On another device than the CPU its figures are not known yet, so that nobody waits for them.
#[derive(Debug, Clone, Default)]
pub struct StepOutcome {
    /// Losses and accuracies by name.
    pub logged: Vec<(&'static str, Figure)>,
    /// Global gradient norm of the encoders before clipping; 0 where nothing reached them.
    pub encoder_norm: Figure,
}

impl Stepper {
    /// Steps `method`, whose parameters are in `store`.
    ///
    /// # Errors
    /// When a pattern of `optimizer.groups` matches no parameter, all are frozen, or the moments can't be allocated on the
    /// device.
    pub fn new(method: Box<dyn Method>, store: &ParameterStore, config: &TrainConfig) -> Result<Self> {
        check_patterns(store, config)?;
        let mut optimizers = Vec::new();
        for group in [Group::Encoder, Group::Critic] {
            let parameters = trained(store, group, config);
            if !parameters.is_empty() {
                optimizers.push((group, Optimizer::new(parameters, config.optimizer.rule())?));
            }
        }
        let clip_norm = Some(config.optimizer.clip_norm).filter(|limit| *limit > 0.0);
        Ok(Self { method, optimizers, clip_norm })
    }

    /// The method.
    pub fn method(&self) -> &dyn Method {
        self.method.as_ref()
    }

    /// The optimiser of each group.
    pub(crate) fn optimizers(&self) -> &[(Group, Optimizer)] {
        &self.optimizers
    }

    /// The optimiser of each group, to restore its state.
    pub(crate) fn optimizers_mut(&mut self) -> &mut [(Group, Optimizer)] {
        &mut self.optimizers
    }

    /// Embeds the batch and goes through the method's phases.
    ///
    /// # Errors
    /// When a tensor operation fails; when something stops being finite, the first such tensor is named. On another device than the
    /// CPU that is found where the figures are fetched.
    pub fn step(
        &mut self,
        batch: &Batch,
        moment: Moment,
        rates: Rates,
        mode: &mut Mode<'_>,
    ) -> Result<StepOutcome> {
        self.step_all(std::slice::from_ref(batch), moment, rates, mode)
    }

    /// One update for several batches: the mean of their gradients. Each is embedded anew in every phase, so that memory
    /// holds the graph of one batch at a time.
    ///
    /// # Errors
    /// As [`Stepper::step`].
    pub fn step_all(
        &mut self,
        batches: &[Batch],
        moment: Moment,
        rates: Rates,
        mode: &mut Mode<'_>,
    ) -> Result<StepOutcome> {
        self.method.before_step(moment)?;
        let mut outcome = StepOutcome::default();
        let phases = self.method.phases(moment);
        if phases == 0 {
            return Ok(outcome);
        }
        let once = match batches {
            [batch] => Some(self.method.embed(batch, moment, mode)?),
            _ => None,
        };
        for index in 0..phases {
            let mut sums = Sums::new(&self.optimizers);
            for batch in batches {
                let again;
                let embeddings = match &once {
                    Some(embeddings) => embeddings,
                    None => {
                        again = self.method.embed(batch, moment, mode)?;
                        &again
                    }
                };
                let phase = self.method.phase(index, embeddings, moment, mode)?;
                let is_wrong = |figure: &Figure| figure.if_known().is_some_and(|value| !value.is_finite());
                if let Some((name, _)) = phase.logged.iter().find(|(_, figure)| is_wrong(figure)) {
                    let first = first_not_finite(batch, embeddings)?.unwrap_or_else(|| (*name).to_owned());
                    return Err(TrainError::NotFinite { tensor: first, step: moment.step + 1 });
                }
                sums.add(&phase, &self.optimizers)?;
                outcome.logged.extend(phase.logged);
            }
            if batches.len() > 1 {
                sums.scale(1.0 / batches.len() as f64)?;
            }
            if let Some(norm) = self.update(&sums, moment, rates)? {
                outcome.encoder_norm = norm.figure()?;
            }
        }
        Ok(outcome)
    }

    /// Gives the encoders' gradient norm, where the phase reaches them.
    fn update(&mut self, sums: &Sums, moment: Moment, rates: Rates) -> Result<Option<Norm>> {
        let mut norms = Vec::with_capacity(sums.gradients.len());
        for gradients in &sums.gradients {
            let norm = Norm::of(gradients)?;
            if matches!(norm, Norm::Known(norm) if !norm.is_finite()) {
                let name = gradients.first_not_finite()?.unwrap_or("all together");
                return Err(TrainError::NotFinite {
                    tensor: format!("gradient of {name}"),
                    step: moment.step + 1,
                });
            }
            norms.push(norm);
        }
        if self.method.clips_jointly() {
            let joint = Norm::joint(&norms)?;
            norms.fill(joint);
        }
        let mut encoder_norm = None;
        let groups = self.optimizers.iter_mut().zip(&sums.gradients).zip(norms);
        for (((group, optimizer), gradients), norm) in groups {
            if !sums.reached.contains(group) {
                continue;
            }
            let rate = match group {
                Group::Encoder => {
                    encoder_norm = Some(norm.clone());
                    rates.encoder
                }
                Group::Critic => rates.critic,
            };
            optimizer.step_scaled(gradients, &norm.clip_factor(self.clip_norm)?, rate)?;
        }
        Ok(encoder_norm)
    }
}

/// The gradients of a phase, by group. All of them are computed before anything is updated: a parameter that was set would
/// change graphs that still hold it.
struct Sums {
    gradients: Vec<Gradients>,
    reached: Vec<Group>,
}

impl Sums {
    fn new(optimizers: &[(Group, Optimizer)]) -> Self {
        Self { gradients: optimizers.iter().map(|_| Gradients::default()).collect(), reached: Vec::new() }
    }

    fn add(&mut self, phase: &PhaseOutcome, optimizers: &[(Group, Optimizer)]) -> Result<()> {
        for objective in &phase.objectives {
            let store = objective.loss.backward()?;
            for ((group, optimizer), gradients) in optimizers.iter().zip(&mut self.gradients) {
                if objective.reaches.contains(group) {
                    gradients.accumulate(&store, optimizer.parameters())?;
                    self.reached.push(*group);
                }
            }
        }
        Ok(())
    }

    fn scale(&mut self, factor: f64) -> Result<()> {
        self.gradients.iter_mut().try_for_each(|gradients| gradients.scale(factor))
    }
}

/// The parameters of a group that are stepped, with what their pattern says.
fn trained(store: &ParameterStore, group: Group, config: &TrainConfig) -> Vec<Parameter> {
    let OptimizerConfig { learning_rate, weight_decay, groups, .. } = &config.optimizer;
    let base = match group {
        Group::Encoder => *learning_rate,
        Group::Critic => config.adaptation.critic_learning_rate,
    };
    let of = |(name, variable): (String, Var)| {
        let own = groups.iter().find(|own| own.matches(&name));
        if own.is_some_and(|own| own.frozen) {
            return None;
        }
        let rate = rate_of(config, own, &name, base);
        let decay = own.and_then(|own| own.weight_decay).unwrap_or(*weight_decay);
        Some(Parameter { name, variable, rate_scale: rate / base, weight_decay: decay })
    };
    store.trainable(group.prefix()).into_iter().filter_map(of).collect()
}

/// The peak learning rate of a parameter: its group's, its encoder's, or that of the others.
pub(crate) fn rate_of(config: &TrainConfig, own: Option<&GroupConfig>, name: &str, base: f64) -> f64 {
    let of_backbone = config
        .backbones()
        .into_iter()
        .find(|(prefix, _)| name.starts_with(&format!("{}{prefix}", Group::Encoder.prefix())))
        .map(|(_, backbone)| backbone.learning_rate);
    own.and_then(|own| own.learning_rate).or(of_backbone).unwrap_or(base)
}

/// A pattern that fits nothing is a mistake that would otherwise show only in the result.
fn check_patterns(store: &ParameterStore, config: &TrainConfig) -> Result<()> {
    let names: Vec<String> = [Group::Encoder, Group::Critic]
        .iter()
        .flat_map(|group| store.trainable(group.prefix()))
        .map(|(name, _)| name)
        .collect();
    let groups = &config.optimizer.groups;
    if let Some(unused) = groups.iter().find(|own| !names.iter().any(|name| own.matches(name))) {
        return Err(TrainError::Setting {
            key: "optimizer.groups.pattern",
            expected: format!("a pattern that matches a name such as `{}`", example(&names)),
            got: format!("`{}`, which matches none of {}", unused.pattern, names.len()),
        });
    }
    let frozen = |name: &&String| groups.iter().find(|own| own.matches(name)).is_some_and(|own| own.frozen);
    let encoders = || names.iter().filter(|name| name.starts_with(Group::Encoder.prefix()));
    if !groups.is_empty() && encoders().all(|name| frozen(&name)) {
        return Err(TrainError::Setting {
            key: "optimizer.groups.frozen",
            expected: "false for one parameter of the encoders at least".into(),
            got: format!("true for all {}", encoders().count()),
        });
    }
    Ok(())
}

fn example(names: &[String]) -> &str {
    names.iter().find(|name| name.ends_with("weight")).or(names.first()).map_or("", String::as_str)
}

/// The first of a step's inputs and embeddings that holds a value which is not finite.
fn first_not_finite(batch: &Batch, embeddings: &Embeddings) -> Result<Option<String>> {
    let mut inputs =
        vec![("source images", &batch.source_images), ("source sentences", &batch.source_sentences)];
    if let Some(target) = &batch.target {
        inputs.extend([("target images", &target.images), ("target sentences", &target.sentences)]);
    }
    for (name, items) in inputs {
        let finite = match items {
            Items::Pooled(features) => is_finite(features)?,
            Items::Fragments(fragments) => is_finite(fragments.features())?,
            Items::Words(_) => true,
        };
        if !finite {
            return Ok(Some(format!("features of the {name}")));
        }
    }
    let Embeddings { source_images, source_sentences, target, .. } = embeddings;
    let mut outputs = vec![("source images", source_images), ("source sentences", source_sentences)];
    if let Some(target) = target {
        outputs.extend([("target images", &target.images), ("target sentences", &target.sentences)]);
    }
    for (name, encoded) in outputs {
        for member in &encoded.members {
            let fragments = member.fragments.as_ref().map(Fragments::features);
            if !is_finite(&member.pooled)? || !fragments.map_or(Ok(true), is_finite)? {
                return Ok(Some(format!("embeddings of the {name}")));
            }
        }
    }
    Ok(None)
}

fn is_finite(x: &Tensor) -> Result<bool> {
    // A not-a-number or an infinity stays one in the sum of absolute values.
    Ok(x.abs()?.sum_all()?.to_scalar::<f32>()?.is_finite())
}
