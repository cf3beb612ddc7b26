//! Which parameters of a pre-trained network are trained, and what becomes of them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor, Var};

use crate::atomic_file::write_atomically;
use crate::bundle::tensor_bytes;
use crate::checkpoint::{Checkpoint, Source, Taken};
use crate::error::{EncoderError, Result};
use crate::load::read_file;
use crate::lora::{Adapter, LoraConfig};

/// Weights of a Hugging Face folder.
pub(crate) const WEIGHTS: &str = "model.safetensors";
const ADAPTER: &str = "adapter_model.safetensors";
/// What PEFT writes before the names of an adapter's tensors.
const ADAPTER_PREFIX: &str = "base_model.model.";

/// How a network is fine-tuned. The default trains every parameter.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct FineTuning {
    /// Patterns of parameter names that stay as they are: `*` for any characters, `?` for one, such as `*embeddings*` or
    /// `encoder.layer.[0-5].*`.
    pub freeze: Vec<String>,
    /// Train low-rank adapters in place of the network's own parameters.
    pub lora: Option<LoraConfig>,
    /// Seed of the adapters' first values.
    pub seed: u64,
}

impl FineTuning {
    /// Trains low-rank adapters alone.
    #[must_use]
    pub fn lora(config: LoraConfig, seed: u64) -> Self {
        Self { freeze: Vec::new(), lora: Some(config), seed }
    }

    /// Trains all but the parameters whose names one of the patterns matches.
    #[must_use]
    pub fn freezing<S: Into<String>>(patterns: impl IntoIterator<Item = S>) -> Self {
        Self { freeze: patterns.into_iter().map(Into::into).collect(), ..Self::default() }
    }

    /// Whether the checkpoint's own parameter of this name is trained.
    #[must_use]
    pub fn trains(&self, parameter: &str) -> bool {
        self.lora.is_none() && !self.freeze.iter().any(|pattern| matches(pattern, parameter))
    }

    fn check(&self) -> Result<()> {
        let targets = self.lora.iter().flat_map(|lora| &lora.targets);
        for pattern in self.freeze.iter().chain(targets) {
            if let Err(error) = glob::Pattern::new(pattern) {
                return Err(EncoderError::Argument {
                    what: "name pattern",
                    expected: "`*`, `?`, `[a-z]` and plain characters".to_owned(),
                    got: format!("`{pattern}`: {error}"),
                });
            }
        }
        self.lora.as_ref().map_or(Ok(()), LoraConfig::check)
    }

    /// A pattern that fits nothing is a mistake that would otherwise show only in the result.
    fn check_use(&self, taken: &Taken) -> Result<()> {
        let unused =
            self.freeze.iter().find(|pattern| !taken.names.iter().any(|name| matches(pattern, name)));
        if let Some(pattern) = unused {
            return Err(EncoderError::Argument {
                what: "pattern of frozen parameters",
                expected: format!("part of a name such as `{}`", example(&taken.names)),
                got: format!("`{pattern}`, which matches none of {}", taken.names.len()),
            });
        }
        match &self.lora {
            Some(lora) if taken.adapters.is_empty() => Err(EncoderError::Argument {
                what: "layers with a low-rank adapter",
                expected: format!("the layer of a weight such as `{}`", example(&taken.names)),
                got: format!("{}, which match no linear layer", lora.targets.join(", ")),
            }),
            _ => Ok(()),
        }
    }
}

fn example(names: &[String]) -> &str {
    names.iter().find(|name| name.contains("0.")).or(names.first()).map_or("", String::as_str)
}

/// Whether a pattern matches the whole name.
pub(crate) fn matches(pattern: &str, name: &str) -> bool {
    glob::Pattern::new(pattern).is_ok_and(|pattern| pattern.matches(name))
}

/// The trained parameters of a network that was loaded for training.
///
/// The variables are shared with the network: a step of an optimiser changes what it computes.
pub struct Parameters {
    folder: PathBuf,
    plan: FineTuning,
    variables: BTreeMap<String, Var>,
    adapters: BTreeMap<String, Adapter>,
}

impl Parameters {
    /// Builds a network from a folder with variables in it.
    pub(crate) fn build<N>(
        folder: &Path,
        device: &Device,
        plan: &FineTuning,
        network: impl FnOnce(&Source<'_>) -> Result<N>,
    ) -> Result<(N, Self)> {
        plan.check()?;
        let file = folder.join(WEIGHTS);
        let bytes = read_file(&file)?;
        let checkpoint = Checkpoint::trainable(&file, &bytes, device, plan)?;
        let network = network(&checkpoint.root())?;
        let taken = checkpoint.into_taken();
        plan.check_use(&taken)?;
        let Taken { variables, adapters, .. } = taken;
        Ok((network, Self { folder: folder.to_path_buf(), plan: plan.clone(), variables, adapters }))
    }

    /// The variables by name, in name order: the file's own names, and `LAYER.lora_A.weight` and `LAYER.lora_B.weight` of
    /// adapters.
    #[must_use]
    pub fn variables(&self) -> &BTreeMap<String, Var> {
        &self.variables
    }

    /// Number of trained values.
    #[must_use]
    pub fn count(&self) -> usize {
        self.variables.values().map(|variable| variable.elem_count()).sum()
    }

    /// All tensors of the checkpoint as they are now, adapters merged into the weights of their layers.
    ///
    /// Equation: `W + (alpha / rank) B A`. Tensors that are not trained keep their type.
    ///
    /// # Errors
    /// [`EncoderError::MissingFile`] or [`EncoderError::Read`] when the checkpoint is no longer there,
    /// [`EncoderError::Tensor`] from candle.
    pub fn merged(&self) -> Result<BTreeMap<String, Tensor>> {
        let bytes = read_file(&self.folder.join(WEIGHTS))?;
        let mut tensors: BTreeMap<String, Tensor> =
            candle_core::safetensors::load_buffer(&bytes, &Device::Cpu)?.into_iter().collect();
        for (name, variable) in &self.variables {
            if let Some(tensor) = tensors.get_mut(name) {
                *tensor = variable.as_detached_tensor().to_device(&Device::Cpu)?.copy()?;
            }
        }
        for (layer, adapter) in &self.adapters {
            if let Some(weight) = tensors.get_mut(&format!("{layer}.weight")) {
                let update = adapter.update()?.to_device(&Device::Cpu)?;
                *weight = (weight.to_dtype(update.dtype())? + update)?;
            }
        }
        Ok(tensors)
    }

    /// Writes a folder that loads as the original does: the [`merged`](Self::merged) weights, and every `.json` and `.txt` file
    /// of the original folder and of the folders in it.
    ///
    /// # Errors
    /// As [`merged`](Self::merged), and [`EncoderError::Write`].
    pub fn save(&self, folder: &Path) -> Result<()> {
        let weights = tensor_bytes(&self.merged()?)?;
        for file in text_files(&self.folder, 1)? {
            let bytes = read_file(&file)?;
            let relative = file.strip_prefix(&self.folder).unwrap_or(&file);
            write(&folder.join(relative), &bytes)?;
        }
        write(&folder.join(WEIGHTS), &weights)
    }

    /// Writes the adapters alone, a few megabytes, in the layout of Hugging Face's PEFT: `adapter_model.safetensors` and
    /// `adapter_config.json`.
    ///
    /// # Errors
    /// [`EncoderError::Argument`] when the network has none, [`EncoderError::Write`] from the file system.
    pub fn save_adapter(&self, folder: &Path) -> Result<()> {
        let lora = self.plan.lora.as_ref().ok_or_else(no_adapters)?;
        let tensors = self
            .variables
            .iter()
            .map(|(name, variable)| (format!("{ADAPTER_PREFIX}{name}"), variable.as_detached_tensor()))
            .collect();
        write(&folder.join(ADAPTER), &tensor_bytes(&tensors)?)?;
        lora.save(folder, self.adapters.keys().cloned().collect())
    }

    /// Sets the adapters to those that [`save_adapter`](Self::save_adapter) wrote for the same layers.
    ///
    /// # Errors
    /// [`EncoderError::Argument`] when the network has none or the scale differs; [`EncoderError::MissingTensor`] and
    /// [`EncoderError::TensorShape`] when the adapters are of other layers or sizes; errors about the files.
    pub fn load_adapter(&self, folder: &Path) -> Result<()> {
        let own = self.plan.lora.as_ref().ok_or_else(no_adapters)?;
        let stored = LoraConfig::load(folder)?;
        let scale = |config: &LoraConfig| config.alpha / config.rank as f64;
        if (scale(own) - scale(&stored)).abs() > 1e-9 {
            return Err(EncoderError::Argument {
                what: "scale (alpha / rank) of the adapter",
                expected: scale(own).to_string(),
                got: scale(&stored).to_string(),
            });
        }
        let file = folder.join(ADAPTER);
        let bytes = read_file(&file)?;
        let weights = crate::weights::Weights::parse(&file, &bytes)?;
        let read = |(name, variable): (&String, &Var)| {
            let values = weights.take(&format!("{ADAPTER_PREFIX}{name}"), variable.dims())?;
            Ok((variable.clone(), Tensor::from_vec(values, variable.shape(), variable.device())?))
        };
        // All are read before the first is set: a bad file changes nothing.
        let values = self.variables.iter().map(read).collect::<Result<Vec<_>>>()?;
        values.iter().try_for_each(|(variable, value)| Ok(variable.set(value)?))
    }
}

fn no_adapters() -> EncoderError {
    EncoderError::Argument {
        what: "parameters",
        expected: "a network with low-rank adapters".to_owned(),
        got: "one without".to_owned(),
    }
}

fn write(file: &Path, bytes: &[u8]) -> Result<()> {
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder).map_err(EncoderError::write(folder))?;
    }
    write_atomically(file, bytes).map_err(EncoderError::write(file))
}

/// The `.json` and `.txt` files of a folder and of folders in it, `depth` levels down.
fn text_files(folder: &Path, depth: usize) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(EncoderError::read(folder))? {
        let path = entry.map_err(EncoderError::read(folder))?.path();
        let is_text = path.extension().is_some_and(|extension| extension == "json" || extension == "txt");
        if path.is_dir() && depth > 0 {
            files.extend(text_files(&path, depth - 1)?);
        } else if is_text && path.is_file() {
            files.push(path);
        }
    }
    Ok(files)
}
