//! Settings of the recipe, `method = "adapt"`.

use serde::{Deserialize, Serialize};

use super::{Selection, Standardise};
use crate::error::{Result, TrainError};
use crate::mining::Matching;

/// The recipe; each step can be left out. How the defaults came about: docs/choices.md.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdaptConfig {
    /// Standardise, or whiten, each domain with its own statistics.
    pub standardise: Standardise,
    /// Share of the epochs that are source alignment alone.
    pub source_share: f64,
    /// Source pairs that are remembered at most; 0 for no memory.
    pub memory_pairs: usize,
    /// Length of the code that the memory adds to an embedding.
    pub memory_code: usize,
    /// Over how many remembered pairs an item is spread.
    pub perplexity: f64,
    /// Directions of each modality that the memory predicts from the other; 0 for none.
    pub regression: usize,
    /// How fast a remembered pair's say in the regression falls with the distance to it.
    pub sharpness: f64,
    /// What is added to the diagonal of the regression's kernel.
    pub ridge: f64,
    /// How the target's sets are matched.
    pub matching: Matching,
    /// Entropy of the matching, in standard deviations of the scores.
    pub epsilon: f64,
    /// Share of each target set that need not have a partner in the other.
    pub dustbin: f64,
    /// Share of the matches that are kept in the first round, the surest.
    pub keep_first: f64,
    /// As much at the end; it grows evenly.
    pub keep_last: f64,
    /// Epochs between two rounds of matching.
    pub mine_every: usize,
    /// Items a set that a round looks at, drawn anew for each.
    pub pool: usize,
    /// Weigh down matches that the towers can't fit.
    pub reject_noise: bool,
    /// Decay of the teacher that the matches are mined with; 0 for none: the model itself.
    pub teacher_decay: f64,
    /// Weight of the loss on the matches; 0 leaves it out.
    pub pair_weight: f64,
    /// Weight of the term that keeps the backbones' neighbourhoods.
    pub geometry_weight: f64,
    /// Shares of the weights that the adaptation began with, those of the source-only model or of the pre-trained one, which are
    /// mixed into the adapted ones when an epoch is validated; of several, `selection` chooses. 0 alone leaves it out.
    pub interpolate: Vec<f64>,
    /// Weight of the paper's adversarial term.
    pub semantic_weight: f64,
    /// Weight of the paper's structure transfer.
    pub structure_weight: f64,
}

impl Default for AdaptConfig {
    fn default() -> Self {
        Self {
            standardise: Standardise::Standardise,
            source_share: 0.25,
            memory_pairs: 8_192,
            memory_code: 512,
            perplexity: 16.0,
            regression: 256,
            sharpness: 3.0,
            ridge: 0.1,
            matching: Matching::Transport,
            epsilon: 0.15,
            dustbin: 0.0,
            keep_first: 1.0,
            keep_last: 1.0,
            mine_every: 5,
            pool: 4_096,
            reject_noise: false,
            teacher_decay: 0.0,
            pair_weight: 1.0,
            geometry_weight: 0.0,
            interpolate: vec![0.0],
            semantic_weight: 0.0,
            structure_weight: 0.0,
        }
    }
}

impl AdaptConfig {
    /// Refuses values that can't be trained with.
    pub(super) fn check(&self, selection: Option<Selection>) -> Result<()> {
        fn demand(holds: bool, key: &'static str, expected: &str, got: impl ToString) -> Result<()> {
            if holds {
                return Ok(());
            }
            Err(TrainError::Setting { key, expected: expected.into(), got: got.to_string() })
        }
        let positive = |value: f64| value.is_finite() && value > 0.0;
        let weight = |value: f64| value.is_finite() && value >= 0.0;
        let share = |value: f64| (0.0..1.0).contains(&value);
        let kept = |value: f64| value > 0.0 && value <= 1.0;
        demand(share(self.source_share), "adapt.source_share", "in 0 .. 1", self.source_share)?;
        demand(self.memory_code > 0, "adapt.memory_code", "at least 1", self.memory_code)?;
        demand(
            self.perplexity.is_finite() && self.perplexity >= 1.0,
            "adapt.perplexity",
            "at least 1",
            self.perplexity,
        )?;
        demand(positive(self.sharpness), "adapt.sharpness", "above 0", self.sharpness)?;
        demand(positive(self.ridge), "adapt.ridge", "above 0", self.ridge)?;
        demand(positive(self.epsilon), "adapt.epsilon", "above 0", self.epsilon)?;
        demand(share(self.dustbin), "adapt.dustbin", "in 0 .. 1", self.dustbin)?;
        demand(kept(self.keep_first), "adapt.keep_first", "above 0, at most 1", self.keep_first)?;
        demand(kept(self.keep_last), "adapt.keep_last", "above 0, at most 1", self.keep_last)?;
        demand(self.mine_every > 0, "adapt.mine_every", "at least 1", self.mine_every)?;
        demand(self.pool > 1, "adapt.pool", "at least 2", self.pool)?;
        demand(share(self.teacher_decay), "adapt.teacher_decay", "in 0 .. 1", self.teacher_decay)?;
        demand(weight(self.pair_weight), "adapt.pair_weight", "0 or more", self.pair_weight)?;
        demand(weight(self.geometry_weight), "adapt.geometry_weight", "0 or more", self.geometry_weight)?;
        let shares = &self.interpolate;
        let shown = || format!("{shares:?}");
        let usable = !shares.is_empty() && shares.iter().all(|share| (0.0..=1.0).contains(share));
        demand(usable, "adapt.interpolate", "one or more shares in 0 ..= 1", shown())?;
        let decided = shares.len() == 1 || selection != Some(Selection::Last);
        demand(decided, "adapt.interpolate", "one share with `selection = \"last\"`", shown())?;
        demand(weight(self.semantic_weight), "adapt.semantic_weight", "0 or more", self.semantic_weight)?;
        demand(weight(self.structure_weight), "adapt.structure_weight", "0 or more", self.structure_weight)
    }
}
