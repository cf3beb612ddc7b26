//! Checkpoints: the whole state of a run after a step.
//!
//! `checkpoints/step-00000010/` holds `state.safetensors` (parameters, moments, averages, best weights so far), `config.toml`
//! (the resolved settings) and `state.json` (where the run stands, the hashes of all of these). A folder is staged beside the
//! others, synced and renamed: it is there whole or not at all. Order, dropout and sentence choice are functions of seed and
//! step, so the step number is all that there is to save of them.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use aeir_encoders::bundle::tensor_bytes;
use aeir_encoders::fingerprint::{sha256_bytes, sha256_parts};
use aeir_encoders::write_atomically;
use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::config::layers::differences;
use crate::error::{Result, TrainError};
use crate::observer::EpochRecord;
use crate::run::CONFIG_FILE;

const VERSION: u32 = 2;
const TENSORS_FILE: &str = "state.safetensors";
const STATE_FILE: &str = "state.json";
/// How the names of whole checkpoints begin.
const PREFIX: &str = "step-";
/// Where the next one is written.
const STAGING: &str = ".unfinished.tmp";
/// Where one of the same step lies while the new one takes its place.
const REPLACED: &str = ".replaced.tmp";
/// How the names of those begin that could not be loaded.
const DAMAGED: &str = "damaged-";

/// Where a run stands, its tensors apart.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Progress {
    /// Steps done.
    pub(crate) step: usize,
    /// The epoch chosen so far and its score.
    pub(crate) best: Option<(usize, f64)>,
    /// Sums over the steps of the epoch that is not finished.
    pub(crate) sums: EpochSums,
    /// The epochs that are finished: what `metrics.jsonl` holds.
    pub(crate) records: Vec<EpochRecord>,
}

/// What an epoch's means are made of.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct EpochSums {
    /// Sum and count by name: a figure of some steps only is averaged over those.
    pub(crate) figures: BTreeMap<String, (f64, usize)>,
    /// Sum of the gradient norms.
    pub(crate) norms: f64,
    /// The largest of them.
    pub(crate) largest_norm: f64,
    /// Steps whose norm was clipped.
    pub(crate) clipped: usize,
}

/// What a checkpoint must agree with to be taken up.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Identity {
    /// The resolved configuration as TOML.
    pub(crate) config: String,
    /// Hash of the data.
    pub(crate) data: String,
}

/// All of a checkpoint but the tensors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct State {
    version: u32,
    progress: Progress,
    /// What the selection saw in the epoch that ends here; none within an epoch.
    score: Option<f64>,
    config_sha256: String,
    data_sha256: String,
    tensors_sha256: String,
    /// Of this file, without this line's value.
    sha256: String,
}

impl State {
    fn own_hash(&self) -> io::Result<String> {
        let bare = Self { sha256: String::new(), ..self.clone() };
        Ok(sha256_parts([("state", serde_json::to_vec(&bare)?.as_slice())]))
    }
}

/// The hash of a configuration, as `sha256sum` computes it of the file.
pub(crate) fn config_hash(config: &str) -> String {
    sha256_bytes(config.as_bytes())
}

/// Writes a checkpoint and drops old ones but the `keep` newest and the one with the best score. `folder` holds all of a
/// run's.
pub(crate) fn save(
    folder: &Path,
    identity: &Identity,
    progress: &Progress,
    score: Option<f64>,
    tensors: &BTreeMap<String, Tensor>,
    keep: usize,
) -> Result<()> {
    let staging = folder.join(STAGING);
    remove_folder(&staging)?;
    fs::create_dir_all(&staging).map_err(TrainError::write(&staging))?;
    let place = folder.join(format!("{PREFIX}{:08}", progress.step));
    let written = write(&staging, identity, progress, score, tensors).and_then(|()| {
        // One of the same step was left by an interruption between an epoch's last step and its validation. It is moved, not
        // removed first: whatever happens between the two renames, the one before is whole.
        let replaced = folder.join(REPLACED);
        remove_folder(&replaced)?;
        if place.exists() {
            fs::rename(&place, &replaced).map_err(TrainError::write(&place))?;
        }
        fs::rename(&staging, &place).and_then(|()| sync_folder(folder)).map_err(TrainError::write(&place))?;
        remove_folder(&replaced)
    });
    if written.is_err() {
        // The first error is the one to report. What is left of the staging folder is never read.
        let _ = fs::remove_dir_all(&staging);
        return written;
    }
    rotate(folder, keep)
}

fn write(
    place: &Path,
    identity: &Identity,
    progress: &Progress,
    score: Option<f64>,
    tensors: &BTreeMap<String, Tensor>,
) -> Result<()> {
    let put = |name: &str, bytes: &[u8]| {
        let file = place.join(name);
        write_atomically(&file, bytes).map_err(TrainError::write(&file))
    };
    let bytes = tensor_bytes(tensors)?;
    put(TENSORS_FILE, &bytes)?;
    put(CONFIG_FILE, identity.config.as_bytes())?;
    let mut state = State {
        version: VERSION,
        progress: progress.clone(),
        score,
        config_sha256: config_hash(&identity.config),
        data_sha256: identity.data.clone(),
        tensors_sha256: sha256_bytes(&bytes),
        sha256: String::new(),
    };
    let file = place.join(STATE_FILE);
    state.sha256 = state.own_hash().map_err(TrainError::write(&file))?;
    let text = serde_json::to_vec_pretty(&state)
        .map_err(|error| TrainError::Write { file: file.clone(), source: error.into() })?;
    put(STATE_FILE, &text)?;
    sync_folder(place).map_err(TrainError::write(place))
}

/// Makes the names in a folder last beyond a loss of power, where the system can.
fn sync_folder(folder: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(folder)?.sync_all() } else { Ok(()) }
}

fn remove_folder(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(TrainError::Write { file: folder.to_owned(), source: error })
        }
        _ => Ok(()),
    }
}

fn rotate(folder: &Path, keep: usize) -> Result<()> {
    let all = list(folder)?;
    let score = |place: &PathBuf| read_state(place).ok().and_then(|state| state.score);
    let mut best: Option<(f64, &PathBuf)> = None;
    for place in &all {
        if let Some(score) = score(place)
            && best.is_none_or(|(so_far, _)| score > so_far)
        {
            best = Some((score, place));
        }
    }
    for old in all.iter().rev().skip(keep).filter(|old| best.is_none_or(|(_, best)| best != *old)) {
        remove_folder(old)?;
    }
    Ok(())
}

/// The newest checkpoint that is whole; each damaged one is reported through `warn`.
///
/// # Errors
/// [`TrainError::OtherRun`] where the newest was made under other settings or with other data.
pub(crate) fn newest(
    folder: &Path,
    identity: &Identity,
    device: &Device,
    mut warn: impl FnMut(&str),
) -> Result<Option<(Progress, BTreeMap<String, Tensor>)>> {
    let places = list(folder)?;
    for (older, place) in places.iter().enumerate().rev() {
        match load(place, device) {
            Ok((state, config, tensors)) => {
                let differences = differing(&state, &config, identity);
                if !differences.is_empty() {
                    let run = folder.parent().unwrap_or(folder).to_owned();
                    return Err(TrainError::OtherRun { run, differences });
                }
                return Ok(Some((state.progress, tensors)));
            }
            Err(error) => {
                let next = if older > 0 {
                    "going back to the one before"
                } else {
                    "there is none before it: starting afresh"
                };
                warn(&format!("{error}; {next}"));
                set_aside(place)?;
            }
        }
    }
    Ok(None)
}

/// Renames a damaged checkpoint, so that it neither counts among the newest nor is in the way of a new one.
fn set_aside(place: &Path) -> Result<()> {
    let name = place.file_name().unwrap_or_default().to_string_lossy();
    let aside = place.with_file_name(format!("{DAMAGED}{name}"));
    remove_folder(&aside)?;
    fs::rename(place, &aside).map_err(TrainError::write(&aside))
}

fn differing(state: &State, config: &str, identity: &Identity) -> Vec<String> {
    let mut found: Vec<String> = settings_differing(config, &identity.config).into_iter().collect();
    if state.data_sha256 != identity.data {
        found.push("other data".into());
    }
    found
}

/// What differs between two configurations, in words.
pub(crate) fn settings_differing(was: &str, is: &str) -> Option<String> {
    if was == is {
        return None;
    }
    let table = |text: &str| text.parse::<toml::Table>().unwrap_or_default();
    let found: Vec<String> = differences(&table(was), &table(is)).iter().map(ToString::to_string).collect();
    Some(if found.is_empty() {
        "a configuration of another form".to_owned()
    } else {
        format!("other settings: {}", found.join(", "))
    })
}

fn load(place: &Path, device: &Device) -> Result<(State, String, BTreeMap<String, Tensor>)> {
    let damaged = |reason: String| TrainError::Checkpoint { file: place.to_owned(), reason };
    let state = read_state(place)?;
    let read = |name: &str| fs::read(place.join(name)).map_err(|error| damaged(format!("`{name}`: {error}")));
    let (bytes, config) = (read(TENSORS_FILE)?, read(CONFIG_FILE)?);
    for (name, bytes, hash) in
        [(TENSORS_FILE, &bytes, &state.tensors_sha256), (CONFIG_FILE, &config, &state.config_sha256)]
    {
        if sha256_bytes(bytes) != *hash {
            return Err(damaged(format!("`{name}` is damaged")));
        }
    }
    let config = String::from_utf8(config).map_err(|error| damaged(error.to_string()))?;
    let tensors = candle_core::safetensors::load_buffer(&bytes, device)?;
    Ok((state, config, tensors.into_iter().collect()))
}

fn read_state(place: &Path) -> Result<State> {
    let damaged = |reason: String| TrainError::Checkpoint {
        file: place.to_owned(),
        reason: format!("`{STATE_FILE}`: {reason}"),
    };
    let text = fs::read(place.join(STATE_FILE)).map_err(|error| damaged(error.to_string()))?;
    let state: State = serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
    if state.version != VERSION {
        return Err(damaged(format!("expected version {VERSION}, got {}", state.version)));
    }
    if state.own_hash().map_err(|error| damaged(error.to_string()))? != state.sha256 {
        return Err(damaged("is damaged".into()));
    }
    Ok(state)
}

/// All whole checkpoints, oldest first.
fn list(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(TrainError::Read { file: folder.to_owned(), source }),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(TrainError::read(folder))?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PREFIX)) {
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

    fn identity(seed: u32, data: &str) -> Identity {
        Identity { config: format!("seed = {seed}\n"), data: data.into() }
    }

    fn progress(step: usize) -> Progress {
        // A number without a short decimal form: it must come back to the bit.
        let sums = EpochSums { norms: 0.1 + 0.2, ..EpochSums::default() };
        Progress { step, best: Some((1, 1.0 / 3.0)), sums, records: Vec::new() }
    }

    fn save_steps(folder: &Path, scores: &[Option<f64>]) {
        for (index, score) in scores.iter().enumerate() {
            let step = index + 1;
            save(folder, &identity(1, "a"), &progress(step), *score, &tensors(step as f32), 2).unwrap();
        }
    }

    fn found(folder: &Path) -> (f32, Vec<String>) {
        let mut warnings = Vec::new();
        let newest = newest(folder, &identity(1, "a"), &Device::Cpu, |it| warnings.push(it.to_owned()));
        let (state, tensors) = newest.unwrap().unwrap();
        let value = tensors["parameter.w"].to_vec1::<f32>().unwrap()[0];
        assert_eq!(state, progress(value as usize));
        (value, warnings)
    }

    fn names(folder: &Path) -> Vec<String> {
        let name = |path: PathBuf| path.file_name().unwrap().to_string_lossy().into_owned();
        list(folder).unwrap().into_iter().map(name).collect()
    }

    #[test]
    fn falls_back_over_damage_and_refuses_another_run() {
        let place = tempfile::tempdir().unwrap();
        let folder = &place.path().join("checkpoints");
        assert!(newest(folder, &identity(1, "a"), &Device::Cpu, |_| ()).unwrap().is_none());
        save_steps(folder, &[None; 4]);
        assert_eq!(names(folder), ["step-00000003", "step-00000004"]);
        assert_eq!(found(folder), (4.0, vec![]));

        let other =
            |identity: Identity| newest(folder, &identity, &Device::Cpu, |_| ()).unwrap_err().to_string();
        let told = other(identity(2, "a"));
        assert!(told.contains("`seed` was 1 and is 2") && !told.contains("data"), "{told}");
        assert!(other(identity(1, "b")).contains("other data"));

        let put_back =
            || fs::rename(folder.join("damaged-step-00000004"), folder.join("step-00000004")).unwrap();
        // Every file counts, to the last byte.
        for name in [TENSORS_FILE, CONFIG_FILE, STATE_FILE] {
            let file = folder.join("step-00000004").join(name);
            let whole = fs::read(&file).unwrap();
            let mut bytes = whole.clone();
            let middle = bytes.len() - 4;
            bytes[middle] ^= 1;
            for damaged in [bytes, whole[..whole.len() / 2].to_vec()] {
                fs::write(&file, damaged).unwrap();
                let (value, warnings) = found(folder);
                put_back();
                assert_eq!(value, 3.0, "{name}");
                assert!(
                    warnings.len() == 1
                        && warnings[0].contains("step-00000004")
                        && warnings[0].contains("going back to the one before"),
                    "{warnings:?}"
                );
            }
            fs::remove_file(&file).unwrap();
            assert_eq!(found(folder).0, 3.0, "{name}");
            put_back();
            fs::write(&file, whole).unwrap();
            assert_eq!(found(folder).0, 4.0);
        }
    }

    #[test]
    fn a_damaged_checkpoint_pushes_out_no_whole_one() {
        let place = tempfile::tempdir().unwrap();
        let folder = &place.path().join("checkpoints");
        save_steps(folder, &[None; 3]);
        fs::write(folder.join("step-00000003").join(TENSORS_FILE), b"").unwrap();
        assert_eq!(found(folder).0, 2.0);
        // On from step 2, with another rhythm, and one kept.
        save(folder, &identity(1, "a"), &progress(2), None, &tensors(2.0), 1).unwrap();
        assert_eq!(names(folder), ["step-00000002"]);
        assert_eq!(found(folder), (2.0, vec![]));
    }

    #[test]
    fn the_best_is_kept_beside_the_newest() {
        let place = tempfile::tempdir().unwrap();
        save_steps(place.path(), &[Some(1.0), Some(3.0), None, Some(2.0), None, Some(2.5)]);
        assert_eq!(names(place.path()), ["step-00000002", "step-00000005", "step-00000006"]);
    }

    #[test]
    fn what_a_killed_writer_left_is_nobodys() {
        let place = tempfile::tempdir().unwrap();
        save_steps(place.path(), &[None; 2]);
        let staging = place.path().join(STAGING);
        fs::create_dir(&staging).unwrap();
        fs::write(staging.join(STATE_FILE), b"{").unwrap();
        assert_eq!(found(place.path()), (2.0, vec![]));
        save(place.path(), &identity(1, "a"), &progress(3), None, &tensors(3.0), 2).unwrap();
        assert!(!staging.exists());
        assert_eq!(found(place.path()).0, 3.0);
    }
}
