//! What a run tells while it goes on.

use std::collections::BTreeMap;

use aeir_retrieve::{LabelFree, RetrievalMetrics};
use serde::{Deserialize, Serialize};

use crate::config::Selection;

/// One line of `metrics.jsonl`. It holds no times, so that the same run gives the same bytes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct EpochRecord {
    /// From 1.
    pub epoch: usize,
    /// Optimiser steps done.
    pub step: usize,
    /// Learning rate of the last step.
    pub learning_rate: f64,
    /// Global gradient norm of the encoders before clipping, mean over the epoch's steps.
    pub gradient_norm: f64,
    /// The largest of these norms.
    #[serde(default)]
    pub gradient_norm_largest: f64,
    /// Share of the epoch's steps whose norm was clipped; none where nothing clips.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clipped_share: Option<f64>,
    /// Losses and critic accuracies, means over the epoch's steps.
    pub means: BTreeMap<String, f64>,
    /// Retrieval on the source validation splits, rSum averaged over domains; none without such a split.
    pub source_validation_rsum: Option<f64>,
    /// Mean CSLS similarity of mutual nearest neighbours between the unpaired target sets: needs no labels.
    pub target_mutual_similarity: Option<f64>,
    /// Share of the target's items that come back to themselves by way of their nearest of the other set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_cycle_consistency: Option<f64>,
    /// Entropy of the retrieval posterior between the target sets, 0 sure, 1 clueless.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_posterior_entropy: Option<f64>,
    /// Entropy of the mean posterior: how diverse the answers are, 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_posterior_diversity: Option<f64>,
    /// Of the weights before the adaptation, the share that is in those looked at; none where nothing is mixed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interpolation: Option<f64>,
    /// Proxy A-distance of source and target, where there is a target: of the last epoch before an adaptation begins
    /// and of the last of all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain_distances: Option<DomainDistances>,
}

impl EpochRecord {
    /// The label-free figures, where there is a target.
    pub(crate) fn set_label_free(&mut self, figures: LabelFree) {
        self.target_mutual_similarity = Some(figures.mutual_similarity);
        self.target_cycle_consistency = Some(figures.cycle_consistency);
        self.target_posterior_entropy = Some(figures.posterior_entropy);
        self.target_posterior_diversity = Some(figures.posterior_diversity);
    }

    /// What `selection` goes by; the higher, the better. None where it looks at nothing, or at what this run does not have.
    pub fn criterion(&self, selection: Selection) -> Option<f64> {
        match selection {
            Selection::Last => None,
            Selection::SourceValidation => self.source_validation_rsum,
            Selection::TargetSimilarity => self.target_mutual_similarity,
            Selection::TargetCycle => self.target_cycle_consistency,
            Selection::TargetEntropy => self.target_posterior_entropy.map(|entropy| -entropy),
            Selection::TargetDiversity => self.target_posterior_diversity,
            Selection::TargetInformation => {
                Some(self.target_posterior_diversity? - self.target_posterior_entropy?)
            }
        }
    }
}

/// How well a linear classifier tells source from target by their embeddings: 0 not at all, 2 always.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct DomainDistances {
    /// By images.
    pub images: f64,
    /// By sentences.
    pub sentences: f64,
}

/// What one step measured.
#[derive(Debug, Clone, Copy)]
pub struct StepRecord<'a> {
    /// Steps done, this one included.
    pub step: usize,
    /// Source pairs in its batch.
    pub pairs: usize,
    /// Learning rate of the encoders.
    pub learning_rate: f64,
    /// Global gradient norm of the encoders before clipping.
    pub gradient_norm: f64,
    /// Losses and critic accuracies by name.
    pub logged: &'a [(&'static str, f64)],
}

/// Hears what a run does. All methods have empty defaults.
pub trait Observer {
    /// Before the first step, or after a resume: `step` of `steps` are done.
    fn started(&mut self, step: usize, steps: usize) {
        let _ = (step, steps);
    }

    /// After each step, with what it measured.
    fn measured(&mut self, record: &StepRecord<'_>) {
        let _ = record;
    }

    /// After each step.
    fn stepped(&mut self, step: usize) {
        let _ = step;
    }

    /// After each epoch.
    fn epoch(&mut self, record: &EpochRecord) {
        let _ = record;
    }

    /// Asked after each step: whether to stop here. The state is saved and training ends with
    /// [`TrainError::Interrupted`](crate::TrainError::Interrupted).
    fn interrupts(&mut self) -> bool {
        false
    }

    /// Something the user should know, though the run goes on.
    fn warning(&mut self, message: &str) {
        let _ = message;
    }
}

/// Hears nothing.
pub struct Silent;

impl Observer for Silent {}

/// Tells each of its observers, in order.
pub struct All<'a>(pub Vec<&'a mut (dyn Observer + Send)>);

impl Observer for All<'_> {
    fn started(&mut self, step: usize, steps: usize) {
        self.0.iter_mut().for_each(|observer| observer.started(step, steps));
    }

    fn measured(&mut self, record: &StepRecord<'_>) {
        self.0.iter_mut().for_each(|observer| observer.measured(record));
    }

    fn stepped(&mut self, step: usize) {
        self.0.iter_mut().for_each(|observer| observer.stepped(step));
    }

    fn epoch(&mut self, record: &EpochRecord) {
        self.0.iter_mut().for_each(|observer| observer.epoch(record));
    }

    fn interrupts(&mut self) -> bool {
        self.0.iter_mut().any(|observer| observer.interrupts())
    }

    fn warning(&mut self, message: &str) {
        self.0.iter_mut().for_each(|observer| observer.warning(message));
    }
}

/// The figures of a scored model, as `eval --json` prints them.
pub type Scores = RetrievalMetrics;
