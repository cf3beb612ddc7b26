//! What becomes of a pre-trained encoder.

use serde::{Deserialize, Serialize};

use super::{demand, positive};
use crate::error::Result;

/// How the names of a trained image encoder's parameters begin, behind the prefix of the encoders.
pub const IMAGE_BACKBONE: &str = "image_backbone.";
/// How the names of a trained sentence encoder's parameters begin.
pub const TEXT_BACKBONE: &str = "text_backbone.";

/// A pre-trained encoder under its towers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BackboneConfig {
    /// Whether and how it is trained.
    pub train: Tuning,
    /// Peak learning rate of its parameters.
    pub learning_rate: f64,
    /// With `full`: patterns of its parameters' names that stay as they are.
    pub freeze: Vec<String>,
    /// With `lora`: rank of the adapters.
    pub rank: usize,
    /// With `lora`: scale of the adapters, divided by the rank.
    pub alpha: f64,
    /// With `lora`: dropout on the adapters' input.
    pub dropout: f32,
    /// With `lora`: patterns of the layers that get an adapter; none for the projections of the attention.
    pub targets: Vec<String>,
}

/// Whether and how a pre-trained encoder is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tuning {
    /// It stays as it is; its features are computed once.
    Frozen,
    /// By low-rank adapters on its layers, which are merged into them in the end.
    Lora,
    /// All of its parameters, but for those that `freeze` names.
    Full,
}

impl Tuning {
    /// As in files.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Frozen => "frozen",
            Self::Lora => "lora",
            Self::Full => "full",
        }
    }
}

impl Default for BackboneConfig {
    fn default() -> Self {
        Self {
            train: Tuning::Frozen,
            learning_rate: 1e-4,
            freeze: Vec::new(),
            rank: 8,
            alpha: 16.0,
            dropout: 0.0,
            targets: Vec::new(),
        }
    }
}

impl BackboneConfig {
    pub(super) fn check(&self) -> Result<()> {
        let rate = self.learning_rate;
        demand(
            positive(rate),
            "model.image_backbone.learning_rate or model.text_backbone.learning_rate",
            "above 0",
            rate,
        )?;
        demand(
            self.rank > 0,
            "model.image_backbone.rank or model.text_backbone.rank",
            "at least 1",
            self.rank,
        )
    }
}
