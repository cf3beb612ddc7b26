//! What a run tells while it goes on.

use std::collections::BTreeMap;

use aeir_retrieve::RetrievalMetrics;
use serde::{Deserialize, Serialize};

/// One line of `metrics.jsonl`. It holds no times, so that the same run gives the same bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EpochRecord {
    /// From 1.
    pub epoch: usize,
    /// Optimiser steps done.
    pub step: usize,
    /// Learning rate of the last step.
    pub learning_rate: f64,
    /// Global gradient norm of the encoders before clipping, mean over the epoch's steps.
    pub gradient_norm: f64,
    /// Losses and critic accuracies, means over the epoch's steps.
    pub means: BTreeMap<String, f64>,
    /// Retrieval on the source validation splits, rSum averaged over domains; none without such a split.
    pub source_validation_rsum: Option<f64>,
    /// Mean CSLS similarity of mutual nearest neighbours between the unpaired target sets: needs no labels.
    pub target_mutual_similarity: Option<f64>,
    /// Proxy A-distance of source and target, where there is a target: of the last epoch before an adaptation begins
    /// and of the last of all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain_distances: Option<DomainDistances>,
}

/// How well a linear classifier tells source from target by their embeddings: 0 not at all, 2 always.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct DomainDistances {
    /// By images.
    pub images: f64,
    /// By sentences.
    pub sentences: f64,
}

/// Hears what a run does. All methods have empty defaults.
pub trait Observer {
    /// Before the first step, or after a resume: `step` of `steps` are done.
    fn started(&mut self, step: usize, steps: usize) {
        let _ = (step, steps);
    }

    /// After each step.
    fn stepped(&mut self, step: usize) {
        let _ = step;
    }

    /// After each epoch.
    fn epoch(&mut self, record: &EpochRecord) {
        let _ = record;
    }

    /// Something the user should know, though the run goes on.
    fn warning(&mut self, message: &str) {
        let _ = message;
    }
}

/// Hears nothing.
pub struct Silent;

impl Observer for Silent {}

/// The figures of a scored model, as `eval --json` prints them.
pub type Scores = RetrievalMetrics;
