//! Checkpoints: the whole state of a run after an epoch.
//!
//! `checkpoints/epoch-00010/` holds `state.safetensors` (parameters, moments, best weights so far) and `state.json`,
//! written last, with the hash of the former. Order, dropout and sentence choice are functions of seed and step, so the
//! step number is all that there is to save of them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use aeir_encoders::bundle::tensor_bytes;
use aeir_encoders::fingerprint::{sha256_file, sha256_parts};
use aeir_encoders::write_atomically;
use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::config::TrainConfig;
use crate::error::{Result, TrainError};

const VERSION: u32 = 1;
/// Checkpoints kept; the newest may turn out to be damaged.
const KEPT: usize = 2;
const TENSORS_FILE: &str = "state.safetensors";
const STATE_FILE: &str = "state.json";

/// Everything but the tensors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct State {
    version: u32,
    /// Epochs done.
    pub(crate) epoch: usize,
    /// Steps done.
    pub(crate) step: usize,
    /// The epoch chosen so far and its score.
    pub(crate) best: Option<(usize, f64)>,
    /// Hash of configuration and data.
    identity: String,
    tensors_sha256: String,
}

impl State {
    pub(crate) fn new(epoch: usize, step: usize, best: Option<(usize, f64)>, identity: &str) -> Self {
        Self {
            version: VERSION,
            epoch,
            step,
            best,
            identity: identity.to_owned(),
            tensors_sha256: String::new(),
        }
    }
}

/// Hash of what a run computes: a checkpoint of another run is not taken up.
pub(crate) fn identity(config: &TrainConfig, data_digest: &str) -> Result<String> {
    Ok(sha256_parts([("config", config.to_toml()?.as_bytes()), ("data", data_digest.as_bytes())]))
}

/// Writes a checkpoint and drops old ones. `folder` holds all of a run's.
pub(crate) fn save(folder: &Path, mut state: State, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
    let place = folder.join(format!("epoch-{:05}", state.epoch));
    fs::create_dir_all(&place).map_err(TrainError::write(&place))?;
    let (tensors_file, state_file) = (place.join(TENSORS_FILE), place.join(STATE_FILE));
    write_atomically(&tensors_file, &tensor_bytes(tensors)?).map_err(TrainError::write(&tensors_file))?;
    state.tensors_sha256 = sha256_file(&tensors_file).map_err(TrainError::read(&tensors_file))?;
    let text = serde_json::to_vec_pretty(&state)
        .map_err(|error| TrainError::Write { file: state_file.clone(), source: error.into() })?;
    write_atomically(&state_file, &text).map_err(TrainError::write(&state_file))?;
    for old in list(folder)?.into_iter().rev().skip(KEPT) {
        fs::remove_dir_all(&old).map_err(TrainError::write(&old))?;
    }
    Ok(())
}

/// The newest checkpoint that is whole; each damaged one is reported through `warn`.
pub(crate) fn newest(
    folder: &Path,
    identity: &str,
    device: &Device,
    mut warn: impl FnMut(&str),
) -> Result<Option<(State, BTreeMap<String, Tensor>)>> {
    for place in list(folder)?.into_iter().rev() {
        match load(&place, device) {
            Ok((state, _)) if state.identity != identity => {
                return Err(TrainError::Checkpoint {
                    file: place,
                    reason: "was made with another configuration or other data".into(),
                });
            }
            Ok(found) => return Ok(Some(found)),
            Err(error) => warn(&format!("{error}; going back to the one before")),
        }
    }
    Ok(None)
}

fn load(place: &Path, device: &Device) -> Result<(State, BTreeMap<String, Tensor>)> {
    let damaged = |reason: String| TrainError::Checkpoint { file: place.to_owned(), reason };
    let state = fs::read(place.join(STATE_FILE)).map_err(|error| damaged(error.to_string()))?;
    let state: State = serde_json::from_slice(&state).map_err(|error| damaged(error.to_string()))?;
    if state.version != VERSION {
        return Err(damaged(format!("expected version {VERSION}, got {}", state.version)));
    }
    let file = place.join(TENSORS_FILE);
    let sha256 = sha256_file(&file).map_err(|error| damaged(error.to_string()))?;
    if sha256 != state.tensors_sha256 {
        return Err(damaged(format!("`{TENSORS_FILE}` is damaged")));
    }
    let bytes = fs::read(&file).map_err(TrainError::read(&file))?;
    let tensors = candle_core::safetensors::load_buffer(&bytes, device)?;
    Ok((state, tensors.into_iter().collect()))
}

/// All checkpoints, oldest first.
fn list(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(TrainError::Read { file: folder.to_owned(), source }),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(TrainError::read(folder))?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("epoch-")) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// The tensors whose name starts with `prefix`, without it.
pub(crate) fn under(tensors: &BTreeMap<String, Tensor>, prefix: &str) -> BTreeMap<String, Tensor> {
    tensors
        .iter()
        .filter_map(|(name, tensor)| Some((name.strip_prefix(prefix)?.to_owned(), tensor.clone())))
        .collect()
}

/// Adds `tensors` to `all`, each name behind `prefix`.
pub(crate) fn put(all: &mut BTreeMap<String, Tensor>, prefix: &str, tensors: BTreeMap<String, Tensor>) {
    all.extend(tensors.into_iter().map(|(name, tensor)| (format!("{prefix}{name}"), tensor)));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensors(value: f32) -> BTreeMap<String, Tensor> {
        BTreeMap::from([("parameter.w".to_owned(), Tensor::new(&[value], &Device::Cpu).unwrap())])
    }

    fn value(found: &Option<(State, BTreeMap<String, Tensor>)>) -> f32 {
        found.as_ref().unwrap().1["parameter.w"].to_vec1::<f32>().unwrap()[0]
    }

    #[test]
    fn falls_back_over_damage_and_refuses_another_run() {
        let folder = tempfile::tempdir().unwrap();
        assert!(newest(folder.path(), "a", &Device::Cpu, |_| ()).unwrap().is_none());
        for epoch in 1..=4 {
            save(folder.path(), State::new(epoch, epoch * 10, None, "a"), &tensors(epoch as f32)).unwrap();
        }
        assert_eq!(list(folder.path()).unwrap().len(), KEPT);
        assert_eq!(value(&newest(folder.path(), "a", &Device::Cpu, |_| ()).unwrap()), 4.0);
        assert!(newest(folder.path(), "b", &Device::Cpu, |_| ()).is_err());

        let newest_file = folder.path().join("epoch-00004").join(TENSORS_FILE);
        let mut bytes = fs::read(&newest_file).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&newest_file, bytes).unwrap();
        let mut warnings = Vec::new();
        let found =
            newest(folder.path(), "a", &Device::Cpu, |warning| warnings.push(warning.to_owned())).unwrap();
        assert_eq!(value(&found), 3.0);
        assert!(warnings.len() == 1 && warnings[0].contains("damaged"), "{warnings:?}");
    }
}
