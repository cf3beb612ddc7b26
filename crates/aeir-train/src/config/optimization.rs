//! How parameters are stepped: rule, learning rates over time, groups by name.

use serde::{Deserialize, Serialize};

use super::{demand, positive, weight};
use crate::error::{Result, TrainError};
use crate::optimizer::{AdamConfig, Rule};

/// The optimiser.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OptimizerConfig {
    /// Update rule.
    pub kind: OptimizerKind,
    /// Peak learning rate of the encoders.
    pub learning_rate: f64,
    /// Weight decay: decoupled in AdamW, added to the gradient in Adam and SGD, as in PyTorch.
    pub weight_decay: f64,
    /// Adam and AdamW: decay of the first moment.
    pub beta1: f64,
    /// Adam and AdamW: decay of the second moment.
    pub beta2: f64,
    /// Adam and AdamW: added to the root of the second moment.
    pub epsilon: f64,
    /// SGD: share of the last update that goes on.
    pub momentum: f64,
    /// SGD: look ahead by one momentum step.
    pub nesterov: bool,
    /// Learning rate over time.
    pub schedule: Schedule,
    /// Share of all steps in which the rate rises from 0 to its peak.
    pub warm_up: f64,
    /// With schedule `step`: epochs after which the rate falls, each time again.
    pub step_epochs: usize,
    /// With schedule `step`: what the rate is multiplied by.
    pub step_factor: f64,
    /// Largest global gradient norm; 0 switches clipping off.
    pub clip_norm: f64,
    /// Batches whose gradients are averaged before one update.
    pub accumulate: usize,
    /// Decay of the moving average of the weights that is validated and becomes the model; 0 takes the weights themselves.
    pub ema_decay: f64,
    /// Parameters with settings of their own; of several patterns that match a name the first counts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<GroupConfig>,
}

/// Update rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerKind {
    /// Adam with decoupled weight decay.
    AdamW,
    /// Adam; weight decay is a part of the gradient.
    Adam,
    /// Stochastic gradient descent with momentum.
    Sgd,
}

/// Settings of the parameters whose names a pattern matches.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupConfig {
    /// `*` for any characters, `?` for one: `encoder.image.*`, `*.bias`. `aeir train --dry-run` lists the names.
    pub pattern: String,
    /// Their peak learning rate; where it is not given, that of the others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub learning_rate: Option<f64>,
    /// Their weight decay; where it is not given, that of the others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight_decay: Option<f64>,
    /// They stay as they are.
    #[serde(default)]
    pub frozen: bool,
}

/// Learning rate over time, after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Schedule {
    /// Stays at the peak.
    Constant,
    /// Multiplied by `step_factor` every `step_epochs` epochs.
    Step,
    /// Half a cosine down to 0.
    Cosine,
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        let AdamConfig { beta1, beta2, epsilon } = AdamConfig::default();
        Self {
            kind: OptimizerKind::AdamW,
            learning_rate: 2e-3,
            weight_decay: 0.05,
            beta1,
            beta2,
            epsilon,
            momentum: 0.9,
            nesterov: false,
            schedule: Schedule::Cosine,
            warm_up: 0.05,
            step_epochs: 15,
            step_factor: 0.1,
            clip_norm: 0.0,
            accumulate: 1,
            ema_decay: 0.0,
            groups: Vec::new(),
        }
    }
}

impl OptimizerConfig {
    /// The learning rate of step `step`, from 0, of `steps` in `epochs` epochs.
    ///
    /// Equation: linear from `peak / w` to `peak` over the first `w = warm_up * steps` steps; then constant; or
    /// `peak f^(e / n)`, e the epochs done and n `step_epochs`, rounded down; or `peak (1 + cos(pi p)) / 2` with p from 0 to 1
    /// over the rest.
    pub fn learning_rate_at(&self, step: usize, steps: usize, epochs: usize) -> f64 {
        let warm_up = (self.warm_up * steps as f64).round();
        let done = step as f64;
        if done < warm_up {
            return self.learning_rate * (done + 1.0) / warm_up;
        }
        match self.schedule {
            Schedule::Constant => self.learning_rate,
            Schedule::Step => {
                let epoch = step * epochs / steps.max(1);
                self.learning_rate * self.step_factor.powi((epoch / self.step_epochs.max(1)) as i32)
            }
            Schedule::Cosine => {
                let progress = (done - warm_up) / (steps as f64 - warm_up).max(1.0);
                self.learning_rate * 0.5 * (1.0 + (std::f64::consts::PI * progress).cos())
            }
        }
    }

    /// The update rule with its settings.
    pub(crate) fn rule(&self) -> Rule {
        let adam = AdamConfig { beta1: self.beta1, beta2: self.beta2, epsilon: self.epsilon };
        match self.kind {
            OptimizerKind::AdamW => Rule::AdamW(adam),
            OptimizerKind::Adam => Rule::Adam(adam),
            OptimizerKind::Sgd => Rule::Sgd { momentum: self.momentum, nesterov: self.nesterov },
        }
    }

    pub(super) fn check(&self) -> Result<()> {
        let share = |value: f64| (0.0..1.0).contains(&value);
        demand(positive(self.learning_rate), "optimizer.learning_rate", "above 0", self.learning_rate)?;
        demand(weight(self.weight_decay), "optimizer.weight_decay", "0 or more", self.weight_decay)?;
        demand(share(self.beta1), "optimizer.beta1", "in 0 .. 1", self.beta1)?;
        demand(share(self.beta2), "optimizer.beta2", "in 0 .. 1", self.beta2)?;
        demand(positive(self.epsilon), "optimizer.epsilon", "above 0", self.epsilon)?;
        demand(share(self.momentum), "optimizer.momentum", "in 0 .. 1", self.momentum)?;
        demand(
            !self.nesterov || self.momentum > 0.0,
            "optimizer.nesterov",
            "false where `optimizer.momentum` is 0",
            self.nesterov,
        )?;
        demand(share(self.warm_up), "optimizer.warm_up", "in 0 .. 1", self.warm_up)?;
        demand(self.step_epochs > 0, "optimizer.step_epochs", "at least 1", self.step_epochs)?;
        demand(positive(self.step_factor), "optimizer.step_factor", "above 0", self.step_factor)?;
        demand(weight(self.clip_norm), "optimizer.clip_norm", "0 or more", self.clip_norm)?;
        demand(self.accumulate > 0, "optimizer.accumulate", "at least 1", self.accumulate)?;
        demand(share(self.ema_decay), "optimizer.ema_decay", "in 0 .. 1", self.ema_decay)?;
        self.groups.iter().try_for_each(GroupConfig::check)
    }
}

impl GroupConfig {
    fn check(&self) -> Result<()> {
        if let Err(error) = glob::Pattern::new(&self.pattern) {
            return Err(TrainError::Setting {
                key: "optimizer.groups.pattern",
                expected: "a pattern of `*`, `?`, `[a-z]` and plain characters".into(),
                got: format!("`{}`: {error}", self.pattern),
            });
        }
        let rate = self.learning_rate.unwrap_or(1.0);
        demand(positive(rate), "optimizer.groups.learning_rate", "above 0", rate)?;
        let decay = self.weight_decay.unwrap_or(0.0);
        demand(weight(decay), "optimizer.groups.weight_decay", "0 or more", decay)
    }

    /// Whether it is about the parameter of this name.
    pub fn matches(&self, name: &str) -> bool {
        glob::Pattern::new(&self.pattern).is_ok_and(|pattern| pattern.matches(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schedule_rises_then_falls() {
        let config = OptimizerConfig { learning_rate: 1.0, warm_up: 0.1, ..OptimizerConfig::default() };
        let rates: Vec<f64> = (0..100).map(|step| config.learning_rate_at(step, 100, 10)).collect();
        assert!(
            (rates[0] - 0.1).abs() < 1e-12
                && (rates[9] - 1.0).abs() < 1e-12
                && (rates[10] - 1.0).abs() < 1e-12
        );
        assert!(rates[10..].windows(2).all(|pair| pair[0] >= pair[1]));
        assert!(rates[99] < 0.01);
    }

    #[test]
    fn steps_fall_with_the_epochs() {
        let config = OptimizerConfig {
            learning_rate: 1.0,
            warm_up: 0.0,
            schedule: Schedule::Step,
            step_epochs: 2,
            ..OptimizerConfig::default()
        };
        // Five epochs of seven steps.
        let rates: Vec<f64> = (0..35).map(|step| config.learning_rate_at(step, 35, 5)).collect();
        for (step, rate) in rates.iter().enumerate() {
            let expected = [1.0, 1.0, 0.1, 0.1, 0.01][step / 7];
            assert!((rate - expected).abs() < 1e-12, "step {step}: {rate}");
        }
        let constant = OptimizerConfig { schedule: Schedule::Constant, ..config };
        assert!((0..35).all(|step| constant.learning_rate_at(step, 35, 5) == 1.0));
    }

    #[test]
    fn groups_match_whole_names_and_bad_patterns_are_refused() {
        let group = |pattern: &str| GroupConfig { pattern: pattern.into(), ..GroupConfig::default() };
        assert!(group("encoder.image.*").matches("encoder.image.projection.weight"));
        assert!(!group("image").matches("encoder.image.projection.weight"));
        let config = OptimizerConfig { groups: vec![group("a[")], ..OptimizerConfig::default() };
        assert!(config.check().unwrap_err().to_string().contains("optimizer.groups.pattern"));
    }
}
