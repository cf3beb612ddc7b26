//! The parameter store: every trainable tensor, seeded by name and sorted by name.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Device, Shape, Tensor, Var};
use candle_nn::init::NormalOrUniform;
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use sha2::{Digest, Sha256};

use crate::error::Result;

/// Last parts of the names of tensors that are computed, not trained: they belong to the model and to checkpoints, and
/// no optimiser sees them.
const BUFFERS: [&str; 20] = [
    "running_mean",
    "running_var",
    "canonical_weight",
    "canonical_bias",
    "random_features",
    "random_predictions",
    "memory_image",
    "memory_sentence",
    "memory_image_mean",
    "memory_sentence_mean",
    "memory_codes",
    "memory_weights",
    "memory_image_directions",
    "memory_image_centre",
    "memory_image_map",
    "memory_image_map_centre",
    "memory_sentence_directions",
    "memory_sentence_centre",
    "memory_sentence_map",
    "memory_sentence_map_centre",
];

/// Trainable tensors by name, in name order.
///
/// A clone shares the tensors. Modules take it through [`ParameterStore::builder`], the usual
/// [`VarBuilder`] of candle. A parameter's first value depends on the seed and its own name alone, so that neither the
/// order of construction nor another module's presence changes it: a run with critics starts from the same encoders as
/// one without.
#[derive(Clone)]
pub struct ParameterStore {
    seed: u64,
    device: Device,
    variables: Arc<Mutex<BTreeMap<String, Var>>>,
}

impl ParameterStore {
    /// An empty store that initialises from `seed`.
    pub fn new(seed: u64, device: &Device) -> Self {
        Self { seed, device: device.clone(), variables: Arc::default() }
    }

    /// Where the parameters are.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// A builder that creates parameters here on first request.
    pub fn builder(&self) -> VarBuilder<'static> {
        VarBuilder::from_backend(Box::new(self.clone()), DType::F32, self.device.clone())
    }

    /// Takes variables that a module already has, each name behind `prefix`; they go on being shared with it.
    pub fn adopt<'a>(&self, prefix: &str, variables: impl IntoIterator<Item = (&'a String, &'a Var)>) {
        let mut own = self.variables.lock().unwrap_or_else(PoisonError::into_inner);
        own.extend(variables.into_iter().map(|(name, it)| (format!("{prefix}{name}"), it.clone())));
    }

    /// All parameters whose name starts with `prefix`, sorted by name.
    pub fn with_prefix(&self, prefix: &str) -> Vec<(String, Var)> {
        let variables = self.variables.lock().unwrap_or_else(PoisonError::into_inner);
        variables
            .iter()
            .filter(|(name, _)| name.starts_with(prefix))
            .map(|(name, variable)| (name.clone(), variable.clone()))
            .collect()
    }

    /// Those of [`ParameterStore::with_prefix`] that are trained.
    pub fn trainable(&self, prefix: &str) -> Vec<(String, Var)> {
        let is_buffer = |name: &str| BUFFERS.contains(&name.rsplit('.').next().unwrap_or(name));
        self.with_prefix(prefix).into_iter().filter(|(name, _)| !is_buffer(name)).collect()
    }

    /// Copies of all values under `prefix`. They share no storage with the parameters, which go on changing.
    ///
    /// # Errors
    /// When a copy fails on the device.
    pub fn snapshot(&self, prefix: &str) -> Result<BTreeMap<String, Tensor>> {
        self.with_prefix(prefix)
            .into_iter()
            .map(|(name, variable)| Ok((name, variable.as_detached_tensor().copy()?)))
            .collect()
    }

    /// Sets the parameters named in `values`; others stay.
    ///
    /// # Errors
    /// When a name is unknown or a shape differs.
    pub fn restore(&self, values: &BTreeMap<String, Tensor>) -> Result<()> {
        let variables = self.variables.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, value) in values {
            let variable = variables.get(name).ok_or_else(|| crate::TrainError::Data {
                what: "restored parameters".into(),
                expected: "names of this model".into(),
                got: format!("`{name}`"),
            })?;
            variable.set(&value.to_device(&self.device)?)?;
        }
        Ok(())
    }

    /// Sets the parameters under `to` to those under `from`, of the same names; makes those that are not there. They share
    /// no storage.
    ///
    /// # Errors
    /// When a copy fails on the device or a shape differs.
    pub fn copy(&self, from: &str, to: &str) -> Result<()> {
        for (name, value) in self.snapshot(from)? {
            let name = format!("{to}{}", name.strip_prefix(from).unwrap_or(&name));
            let mut variables = self.variables.lock().unwrap_or_else(PoisonError::into_inner);
            match variables.get(&name) {
                Some(variable) => variable.set(&value)?,
                None => {
                    variables.insert(name, Var::from_tensor(&value)?);
                }
            }
        }
        Ok(())
    }

    /// Moves the parameters under `to` towards those under `from`: `to = keep to + (1 - keep) from`. With the same `keep`
    /// after every step this is an exponential moving average; once, it interpolates two models. A memory of pairs is not
    /// averaged: it stays as it is.
    ///
    /// # Errors
    /// When an operation fails on the device, or `to` lacks a name of `from`.
    pub fn blend(&self, from: &str, to: &str, keep: f64) -> Result<()> {
        let mut blended = BTreeMap::new();
        let mut towards: BTreeMap<String, Var> = self.with_prefix(from).into_iter().collect();
        towards.retain(|name, _| !is_memory(name));
        for (name, variable) in self.with_prefix(to) {
            let source = name.strip_prefix(to).and_then(|rest| towards.get(&format!("{from}{rest}")));
            let Some(source) = source else { continue };
            let moved =
                ((variable.as_detached_tensor() * keep)? + (source.as_detached_tensor() * (1.0 - keep))?)?;
            blended.insert(name, moved);
        }
        if blended.len() < towards.len() {
            return Err(crate::TrainError::Data {
                what: format!("parameters under `{to}`"),
                expected: format!("the {} that `{from}` has", towards.len()),
                got: blended.len().to_string(),
            });
        }
        self.restore(&blended)
    }

    /// The first parameter that holds a value which is not finite.
    ///
    /// # Errors
    /// When a reduction fails on the device.
    pub fn first_not_finite(&self) -> Result<Option<String>> {
        for (name, variable) in self.with_prefix("") {
            // An infinite sum of finite squares means weights beyond use as well.
            if !variable.as_detached_tensor().sqr()?.sum_all()?.to_scalar::<f32>()?.is_finite() {
                return Ok(Some(name));
            }
        }
        Ok(None)
    }

    fn initial(&self, shape: &Shape, name: &str, init: Init) -> candle_core::Result<Tensor> {
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        let digest = Sha256::digest(name.as_bytes());
        random.set_stream(digest.iter().take(8).fold(0, |stream, byte| stream << 8 | u64::from(*byte)));
        let mut uniform = || (random.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        let mut normal = || {
            let (radius, angle) = (-2.0 * (1.0 - uniform()).ln(), std::f64::consts::TAU * uniform());
            radius.sqrt() * angle.cos()
        };
        let count = shape.elem_count();
        let values: Vec<f32> = match init {
            Init::Const(value) => vec![value as f32; count],
            Init::Randn { mean, stdev } => (0..count).map(|_| (mean + stdev * normal()) as f32).collect(),
            Init::Uniform { lo, up } => (0..count).map(|_| (lo + (up - lo) * uniform()) as f32).collect(),
            Init::Kaiming { dist, fan, non_linearity } => {
                let deviation = non_linearity.gain() / (fan.for_shape(shape) as f64).sqrt();
                match dist {
                    NormalOrUniform::Normal => (0..count).map(|_| (deviation * normal()) as f32).collect(),
                    NormalOrUniform::Uniform => {
                        let bound = 3f64.sqrt() * deviation;
                        (0..count).map(|_| (bound * (2.0 * uniform() - 1.0)) as f32).collect()
                    }
                }
            }
        };
        Tensor::from_vec(values, shape, &self.device)
    }
}

impl SimpleBackend for ParameterStore {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        init: Init,
        _dtype: DType,
        _device: &Device,
    ) -> candle_core::Result<Tensor> {
        let mut variables = self.variables.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(variable) = variables.get(name) {
            if variable.shape() != &shape {
                candle_core::bail!("parameter `{name}`: expected {:?}, got {shape:?}", variable.shape());
            }
            return Ok(variable.as_tensor().clone());
        }
        let variable = Var::from_tensor(&self.initial(&shape, name, init)?)?;
        let tensor = variable.as_tensor().clone();
        variables.insert(name.to_owned(), variable);
        Ok(tensor)
    }

    fn get_unchecked(&self, name: &str, _dtype: DType, _device: &Device) -> candle_core::Result<Tensor> {
        let variables = self.variables.lock().unwrap_or_else(PoisonError::into_inner);
        match variables.get(name) {
            Some(variable) => Ok(variable.as_tensor().clone()),
            None => candle_core::bail!("parameter `{name}` has no shape yet"),
        }
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.variables.lock().unwrap_or_else(PoisonError::into_inner).contains_key(name)
    }
}

/// Whether a name is that of a part of [`PairMemory`](aeir_encoders::PairMemory), which is set as a whole and learns nothing.
fn is_memory(name: &str) -> bool {
    name.rsplit('.').next().is_some_and(|last| last.starts_with("memory_"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(store: &ParameterStore, name: &str) -> Vec<f32> {
        let tensor = store.builder().get_with_hints(64, name, Init::Uniform { lo: -1.0, up: 1.0 }).unwrap();
        tensor.to_vec1().unwrap()
    }

    #[test]
    fn a_parameter_depends_on_seed_and_name_alone() {
        let (first, second) = (ParameterStore::new(1, &Device::Cpu), ParameterStore::new(1, &Device::Cpu));
        let alone = values(&first, "b");
        values(&second, "a");
        assert_eq!(alone, values(&second, "b"));
        assert_ne!(alone, values(&second, "a"));
        assert_ne!(alone, values(&ParameterStore::new(2, &Device::Cpu), "b"));
    }

    #[test]
    fn names_come_sorted_and_snapshots_stay() {
        let store = ParameterStore::new(1, &Device::Cpu);
        for name in ["c", "a", "b"] {
            values(&store, name);
        }
        let names: Vec<String> = store.with_prefix("").into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["a", "b", "c"]);
        let before = store.snapshot("a").unwrap();
        let kept: Vec<f32> = before["a"].to_vec1().unwrap();
        store.with_prefix("a")[0].1.set(&Tensor::zeros(64, DType::F32, &Device::Cpu).unwrap()).unwrap();
        assert_eq!(kept, before["a"].to_vec1::<f32>().unwrap());
        store.restore(&before).unwrap();
        assert_eq!(kept, values(&store, "a"));
    }

    #[test]
    fn averages_follow_and_copies_stay() {
        let store = ParameterStore::new(1, &Device::Cpu);
        let before = values(&store, "encoder.w");
        assert!(store.blend("encoder.", "average.", 0.5).is_err(), "there is no average yet");
        store.copy("encoder.", "average.").unwrap();
        let zeros = Tensor::zeros(64, DType::F32, &Device::Cpu).unwrap();
        store.with_prefix("encoder.")[0].1.set(&zeros).unwrap();
        assert_eq!(values(&store, "average.w"), before, "a copy");
        store.blend("encoder.", "average.", 0.75).unwrap();
        let quarter: Vec<f32> = before.iter().map(|value| value * 0.75).collect();
        assert_eq!(values(&store, "average.w"), quarter);
        store.copy("average.", "encoder.").unwrap();
        assert_eq!(values(&store, "encoder.w"), quarter);
    }

    #[test]
    fn initial_values_have_the_asked_moments() {
        let store = ParameterStore::new(7, &Device::Cpu);
        let normal = store
            .builder()
            .get_with_hints((200, 100), "normal", Init::Randn { mean: 1.0, stdev: 2.0 })
            .unwrap();
        let mean = normal.mean_all().unwrap().to_scalar::<f32>().unwrap();
        let spread = normal.var(1).unwrap().mean_all().unwrap().to_scalar::<f32>().unwrap();
        assert!((mean - 1.0).abs() < 0.05 && (spread - 4.0).abs() < 0.1, "{mean} {spread}");
    }
}
