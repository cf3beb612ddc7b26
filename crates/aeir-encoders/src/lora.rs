//! Low-rank adapters: fine-tuning a large network by training a few small matrices.

use std::path::Path;

use candle_core::{DType, Device, Tensor, Var};
use serde::{Deserialize, Serialize};

use crate::atomic_file::write_atomically;
use crate::dropout::{check_probability, dropout};
use crate::error::{EncoderError, Result};
use crate::fine_tuning::matches;
use crate::load::{parse_json, read_file};
use crate::mode::Mode;
use crate::ops::linear;
use crate::rehearsal::Product;
use crate::seeded;

/// The attention projections of BERT, XLM-R, ViT and DINOv2; of CLIP and SigLIP; of DistilBERT; of ModernBERT.
const ATTENTION: [&str; 10] = [
    "*.query", "*.key", "*.value", "*.q_proj", "*.k_proj", "*.v_proj", "*.q_lin", "*.k_lin", "*.v_lin",
    "*.Wqkv",
];

/// Which layers get an adapter, and of what size (Hu et al., *LoRA*, ICLR 2022).
///
/// Equation: `y = W x + b + (alpha / rank) B A dropout(x)`, W and b frozen, `A [rank, I]` drawn from a normal distribution with
/// deviation `1 / rank`, `B [O, rank]` zero: before the first step nothing has changed.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraConfig {
    /// Rank of the update; 1 or more.
    pub rank: usize,
    /// Scale of the update, divided by the rank.
    pub alpha: f64,
    /// Dropout on the adapter's input, in training.
    pub dropout: f32,
    /// Patterns of layer names (`*` for any characters, `?` for one).
    pub targets: Vec<String>,
}

impl Default for LoraConfig {
    /// Rank 8, alpha 16, no dropout, on the attention projections of every architecture here.
    fn default() -> Self {
        Self { rank: 8, alpha: 16.0, dropout: 0.0, targets: ATTENTION.map(str::to_owned).to_vec() }
    }
}

impl LoraConfig {
    /// Whether the layer of this name gets an adapter.
    #[must_use]
    pub fn adapts(&self, layer: &str) -> bool {
        self.targets.iter().any(|target| matches(target, layer))
    }

    pub(crate) fn check(&self) -> Result<()> {
        check_probability(self.dropout)?;
        if self.rank == 0 || !self.alpha.is_finite() {
            return Err(EncoderError::Argument {
                what: "low-rank adapter",
                expected: "a rank of 1 or more and a finite alpha".to_owned(),
                got: format!("rank {}, alpha {}", self.rank, self.alpha),
            });
        }
        Ok(())
    }

    /// Reads `adapter_config.json` of a folder that [`Parameters::save_adapter`](crate::Parameters::save_adapter) wrote.
    ///
    /// # Errors
    /// [`EncoderError::MissingFile`], [`EncoderError::Read`] and [`EncoderError::Json`] about the file;
    /// [`EncoderError::Argument`] for values that can't be used.
    pub fn load(folder: &Path) -> Result<Self> {
        let file = folder.join(CONFIG_FILE);
        let stored: Stored = parse_json(&read_file(&file)?, &file)?;
        let config = Self {
            rank: stored.r,
            alpha: stored.lora_alpha,
            dropout: stored.lora_dropout,
            targets: stored.target_modules,
        };
        config.check()?;
        Ok(config)
    }

    /// The file that [`load`](Self::load) reads, for these layers.
    pub(crate) fn save(&self, folder: &Path, layers: Vec<String>) -> Result<()> {
        let file = folder.join(CONFIG_FILE);
        let stored = Stored {
            peft_type: "LORA".to_owned(),
            r: self.rank,
            lora_alpha: self.alpha,
            lora_dropout: self.dropout,
            target_modules: layers,
        };
        let bytes = serde_json::to_vec_pretty(&stored)
            .map_err(|source| EncoderError::Json { file: file.clone(), source })?;
        write_atomically(&file, &bytes).map_err(EncoderError::write(&file))
    }
}

const CONFIG_FILE: &str = "adapter_config.json";

/// The configuration under the names of Hugging Face's PEFT.
#[derive(Serialize, Deserialize)]
struct Stored {
    peft_type: String,
    r: usize,
    lora_alpha: f64,
    #[serde(default)]
    lora_dropout: f32,
    target_modules: Vec<String>,
}

/// The two matrices of one layer.
#[derive(Debug, Clone)]
pub(crate) struct Adapter {
    down: Var,
    up: Var,
    scale: f64,
    dropout: f32,
}

impl Adapter {
    pub(crate) fn new(
        config: &LoraConfig,
        layer: &str,
        (inputs, outputs): (usize, usize),
        seed: u64,
        device: &Device,
    ) -> Result<Self> {
        let deviation = 1.0 / config.rank as f64;
        let values = seeded::normal(seed, &down_name(layer), config.rank * inputs, deviation);
        let down = Tensor::from_vec(values, (config.rank, inputs), device)?;
        Ok(Self {
            down: Var::from_tensor(&down)?,
            up: Var::zeros((outputs, config.rank), DType::F32, device)?,
            scale: config.alpha / config.rank as f64,
            dropout: config.dropout,
        })
    }

    /// Both matrices by name.
    pub(crate) fn variables(&self, layer: &str) -> [(String, Var); 2] {
        [(down_name(layer), self.down.clone()), (up_name(layer), self.up.clone())]
    }

    /// What the adapter adds to the layer's output.
    pub(crate) fn forward(&self, x: &Tensor, mode: &mut Mode<'_>) -> Result<Tensor> {
        let x = dropout(x, self.dropout, mode)?;
        Ok((linear(&linear(&x, &self.down, None)?, &self.up, None)? * self.scale)?)
    }

    /// What the adapter adds to the layer's weight, without a graph.
    pub(crate) fn update(&self) -> Result<Tensor> {
        let (up, down) = (self.up.as_detached_tensor(), self.down.as_detached_tensor());
        Ok((up.product(&down)? * self.scale)?)
    }
}

fn down_name(layer: &str) -> String {
    format!("{layer}.lora_A.weight")
}

fn up_name(layer: &str) -> String {
    format!("{layer}.lora_B.weight")
}
