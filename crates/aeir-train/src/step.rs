//! One training step: all gradients of a phase first, then all updates.

use candle_core::Tensor;

use aeir_encoders::{Fragments, Items, Mode};

use crate::config::TrainConfig;
use crate::error::{Result, TrainError};
use crate::method::{Batch, Embeddings, Group, Method, Moment, PhaseOutcome};
use crate::optimizer::{AdamW, Gradients, clip_factor};
use crate::parameters::ParameterStore;

/// A method with the optimisers of its groups.
pub struct Stepper {
    method: Box<dyn Method>,
    optimizers: Vec<(Group, AdamW)>,
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

/// What a step tells.
#[derive(Debug, Clone, Default)]
pub struct StepOutcome {
    /// Losses and accuracies by name.
    pub logged: Vec<(&'static str, f64)>,
    /// Global gradient norm of the encoders before clipping.
    pub encoder_norm: f64,
}

impl Stepper {
    /// Steps `method`, whose parameters are in `store`.
    ///
    /// # Errors
    /// When the moments can't be allocated on the device.
    pub fn new(method: Box<dyn Method>, store: &ParameterStore, config: &TrainConfig) -> Result<Self> {
        let mut optimizers = Vec::new();
        for group in [Group::Encoder, Group::Critic] {
            let parameters = store.trainable(group.prefix());
            if !parameters.is_empty() {
                optimizers.push((group, AdamW::new(parameters, config.optimizer.adamw())?));
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
    pub(crate) fn optimizers(&self) -> &[(Group, AdamW)] {
        &self.optimizers
    }

    /// The optimiser of each group, to restore its state.
    pub(crate) fn optimizers_mut(&mut self) -> &mut [(Group, AdamW)] {
        &mut self.optimizers
    }

    /// Embeds the batch and goes through the method's phases.
    ///
    /// # Errors
    /// When a tensor operation fails; when something stops being finite, the first such tensor is named.
    pub fn step(
        &mut self,
        batch: &Batch,
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
        let embeddings = self.method.embed(batch, moment, mode)?;
        for index in 0..phases {
            let phase = self.method.phase(index, &embeddings, moment, mode)?;
            if let Some((name, _)) = phase.logged.iter().find(|(_, value)| !value.is_finite()) {
                let first = first_not_finite(batch, &embeddings)?.unwrap_or_else(|| (*name).to_owned());
                return Err(TrainError::NotFinite { tensor: first, step: moment.step + 1 });
            }
            if let Some(norm) = self.update(&phase, moment, rates)? {
                outcome.encoder_norm = norm;
            }
            outcome.logged.extend(phase.logged);
        }
        Ok(outcome)
    }

    /// Gives the encoders' gradient norm, where the phase reaches them.
    fn update(&mut self, phase: &PhaseOutcome, moment: Moment, rates: Rates) -> Result<Option<f64>> {
        // All gradients of the phase first: a parameter that was set would change graphs that still hold it.
        let mut gradients: Vec<Gradients> = self.optimizers.iter().map(|_| Gradients::default()).collect();
        for objective in &phase.objectives {
            let store = objective.loss.backward()?;
            for ((group, optimizer), gradients) in self.optimizers.iter().zip(&mut gradients) {
                if objective.reaches.contains(group) {
                    gradients.accumulate(&store, optimizer.parameters())?;
                }
            }
        }
        let mut norms = Vec::with_capacity(gradients.len());
        for gradients in &gradients {
            let norm = gradients.norm()?;
            if !norm.is_finite() {
                let name = gradients.first_not_finite()?.unwrap_or("all together");
                return Err(TrainError::NotFinite {
                    tensor: format!("gradient of {name}"),
                    step: moment.step + 1,
                });
            }
            norms.push(norm);
        }
        if self.method.clips_jointly() {
            let joint = norms.iter().map(|norm| norm * norm).sum::<f64>().sqrt();
            norms.iter_mut().for_each(|norm| *norm = joint);
        }
        let reached = |group: &Group| phase.objectives.iter().any(|it| it.reaches.contains(group));
        let mut encoder_norm = None;
        for (((group, optimizer), gradients), norm) in self.optimizers.iter_mut().zip(&gradients).zip(norms) {
            if !reached(group) {
                continue;
            }
            let rate = match group {
                Group::Encoder => {
                    encoder_norm = Some(norm);
                    rates.encoder
                }
                Group::Critic => rates.critic,
            };
            optimizer.step(gradients, clip_factor(norm, self.clip_norm), rate)?;
        }
        Ok(encoder_norm)
    }
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
