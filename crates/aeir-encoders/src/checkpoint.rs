//! A checkpoint's tensors, taken by name while a network is built: plain ones for inference, variables for training.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{Device, Tensor, Var};

use crate::error::{EncoderError, Result};
use crate::fine_tuning::FineTuning;
use crate::lora::Adapter;
use crate::weights::Weights;

/// A safetensors file and what is to become of its tensors.
///
/// The same code builds a network for inference and for training: it asks a [`Source`] for a tensor, and gets a constant
/// or a variable. Without a plan everything is constant and no operation on it records a graph.
pub(crate) struct Checkpoint<'a> {
    weights: Weights<'a>,
    device: Device,
    plan: Option<&'a FineTuning>,
    taken: RefCell<Taken>,
}

/// What a network that was built for training holds on to.
#[derive(Default)]
pub(crate) struct Taken {
    /// The variables, by the names of the file, and the adapters' matrices.
    pub(crate) variables: BTreeMap<String, Var>,
    /// The adapters by the name of the layer that each belongs to.
    pub(crate) adapters: BTreeMap<String, Adapter>,
    /// Names of all tensors that the network uses.
    pub(crate) names: Vec<String>,
}

impl<'a> Checkpoint<'a> {
    /// Parses a file for inference.
    pub(crate) fn frozen(file: &Path, bytes: &'a [u8], device: &Device) -> Result<Self> {
        Self::open(file, bytes, device, None)
    }

    /// Parses a file for training.
    pub(crate) fn trainable(
        file: &Path,
        bytes: &'a [u8],
        device: &Device,
        plan: &'a FineTuning,
    ) -> Result<Self> {
        Self::open(file, bytes, device, Some(plan))
    }

    fn open(file: &Path, bytes: &'a [u8], device: &Device, plan: Option<&'a FineTuning>) -> Result<Self> {
        let weights = Weights::parse(file, bytes)?;
        Ok(Self { weights, device: device.clone(), plan, taken: RefCell::default() })
    }

    /// All tensors, under their full names.
    pub(crate) fn root(&self) -> Source<'_> {
        Source { checkpoint: self, prefix: String::new() }
    }

    /// What was taken since it was opened.
    pub(crate) fn into_taken(self) -> Taken {
        self.taken.into_inner()
    }
}

/// The tensors of a [`Checkpoint`] whose names start with a prefix.
#[derive(Clone)]
pub(crate) struct Source<'a> {
    checkpoint: &'a Checkpoint<'a>,
    prefix: String,
}

impl Source<'_> {
    /// The tensors below `name`.
    pub(crate) fn under(&self, name: &str) -> Self {
        Self { checkpoint: self.checkpoint, prefix: self.name(name) }
    }

    /// The full name of a tensor, or this source's own for an empty name.
    pub(crate) fn name(&self, name: &str) -> String {
        match (self.prefix.as_str(), name) {
            ("", name) => name.to_owned(),
            (prefix, "") => prefix.to_owned(),
            (prefix, name) => format!("{prefix}.{name}"),
        }
    }

    /// Whether the file has a tensor.
    pub(crate) fn contains(&self, name: &str) -> bool {
        self.checkpoint.weights.contains(&self.name(name))
    }

    /// Below the first of `prefixes` where `anchor` is: the same network is published alone and as a part of a larger one.
    /// Below none of them if it is nowhere, so that the error names what is missing.
    pub(crate) fn under_first(&self, prefixes: &[&str], anchor: &str) -> Self {
        let found = prefixes.iter().map(|prefix| self.under(prefix)).find(|source| source.contains(anchor));
        found.unwrap_or_else(|| self.clone())
    }

    /// Where the tensors go.
    pub(crate) fn device(&self) -> &Device {
        &self.checkpoint.device
    }

    /// A tensor of this shape, as f32: a variable if the network is trained and no pattern freezes it.
    pub(crate) fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let name = self.name(name);
        let values = self.checkpoint.weights.take(&name, shape)?;
        let tensor = Tensor::from_vec(values, shape, self.device())?;
        let mut taken = self.checkpoint.taken.borrow_mut();
        taken.names.push(name.clone());
        match self.checkpoint.plan {
            Some(plan) if plan.trains(&name) => {
                // A tensor that two parts share, such as tied embeddings, is one variable.
                let variable = match taken.variables.remove(&name) {
                    Some(variable) => variable,
                    None => Var::from_tensor(&tensor)?,
                };
                let tensor = variable.as_tensor().clone();
                taken.variables.insert(name, variable);
                Ok(tensor)
            }
            _ => Ok(tensor),
        }
    }

    /// A tensor of this shape that is never trained, such as running statistics.
    pub(crate) fn constant(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let values = self.checkpoint.weights.take(&self.name(name), shape)?;
        Ok(Tensor::from_vec(values, shape, self.device())?)
    }

    /// The error for a tensor whose values can't be used.
    pub(crate) fn bad_value(&self, name: &str, expected: &'static str, got: f32) -> EncoderError {
        self.checkpoint.weights.bad_value(&self.name(name), expected, got)
    }

    /// The low-rank adapter of the linear layer at this source, if the plan wants one there.
    pub(crate) fn adapter(&self, inputs: usize, outputs: usize) -> Result<Option<Adapter>> {
        let Some(plan) = self.checkpoint.plan else { return Ok(None) };
        let Some(config) = plan.lora.as_ref().filter(|config| config.adapts(&self.prefix)) else {
            return Ok(None);
        };
        let adapter = Adapter::new(config, &self.prefix, (inputs, outputs), plan.seed, self.device())?;
        let mut taken = self.checkpoint.taken.borrow_mut();
        taken.variables.extend(adapter.variables(&self.prefix));
        taken.adapters.insert(self.prefix.clone(), adapter.clone());
        Ok(Some(adapter))
    }
}
