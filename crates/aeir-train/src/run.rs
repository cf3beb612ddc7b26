//! The folder of a run: what lies where, and when it counts as finished.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

use aeir_encoders::bundle::MANIFEST_FILE;
use aeir_encoders::write_atomically;
use serde::Serialize;

use crate::checkpoint::{config_hash, settings_differing};
use crate::config::TrainConfig;
use crate::error::{Result, TrainError};
use crate::observer::EpochRecord;

/// The resolved configuration.
pub const CONFIG_FILE: &str = "config.toml";
/// One line an epoch, without times.
pub const METRICS_FILE: &str = "metrics.jsonl";
/// One line an epoch with its seconds.
pub const TIMING_FILE: &str = "timing.jsonl";
/// The labelled pairs of the target that were trained on.
pub const LABELLED_FILE: &str = "labelled.jsonl";
/// Items that were left out, with the reason.
pub const SKIPPED_FILE: &str = "skipped.jsonl";
/// What the guards said, a line a warning.
pub const WARNINGS_FILE: &str = "warnings.jsonl";
/// TensorBoard's event files.
pub const EVENT_FOLDER: &str = "tensorboard";
/// The epoch that became the model, and by what.
pub const SELECTION_FILE: &str = "selection.json";
/// The figures of all epochs as a table.
pub const TABLE_FILE: &str = "metrics.csv";
/// The figures of all epochs as pictures.
pub const PLOT_FOLDER: &str = "plots";
/// The run as a page.
pub const REPORT_FILE: &str = "report.html";
/// What `aeir eval` measured, a line a call.
pub const EVALUATIONS_FILE: &str = "evaluations.jsonl";
/// Holds the checkpoints.
pub const CHECKPOINT_FOLDER: &str = "checkpoints";

/// The hash of the resolved configuration, as `sha256sum -c` reads it.
pub const CONFIG_HASH_FILE: &str = "config.sha256";

/// Everything that a run writes; a folder with other names in it is not replaced.
const OWN_NAMES: [&str; 19] = [
    LABELLED_FILE,
    CONFIG_FILE,
    CONFIG_HASH_FILE,
    METRICS_FILE,
    TIMING_FILE,
    SKIPPED_FILE,
    WARNINGS_FILE,
    EVENT_FOLDER,
    SELECTION_FILE,
    TABLE_FILE,
    PLOT_FOLDER,
    REPORT_FILE,
    EVALUATIONS_FILE,
    CHECKPOINT_FOLDER,
    MANIFEST_FILE,
    aeir_encoders::bundle::WEIGHTS_FILE,
    aeir_encoders::VOCABULARY_FILE,
    "encoders",
    "README.md",
];

/// What a run that starts afresh clears away.
const OF_A_RUN: [&str; 12] = [
    LABELLED_FILE,
    METRICS_FILE,
    TIMING_FILE,
    SKIPPED_FILE,
    WARNINGS_FILE,
    EVENT_FOLDER,
    SELECTION_FILE,
    TABLE_FILE,
    PLOT_FOLDER,
    REPORT_FILE,
    EVALUATIONS_FILE,
    CHECKPOINT_FOLDER,
];

/// What to do where the output folder holds something already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// Refuse a finished run and one with checkpoints; start one that got to neither afresh.
    Refuse,
    /// Start afresh even where a run is finished.
    Overwrite,
    /// Go on from the newest checkpoint; leave a finished run as it is.
    Resume,
}

/// Held while a process trains into a folder.
const LOCK_FILE: &str = ".lock";

/// A run folder open for writing, by this process alone.
pub struct RunFolder {
    path: PathBuf,
    resume: bool,
    _lock: File,
}

/// What [`RunFolder::open`] found.
pub enum Opened {
    /// Train into this.
    Ready(RunFolder),
    /// The run is finished already and was to be resumed.
    Finished,
}

impl RunFolder {
    /// Opens `path`, creating it where needed. A folder with other things in it is never touched.
    ///
    /// # Errors
    /// When it holds a finished run that may not be replaced, or something that is not a run, or can't be written.
    pub fn open(path: &Path, existing: Existing) -> Result<Opened> {
        let refuse = |reason: &str| TrainError::Output { folder: path.to_owned(), reason: reason.into() };
        let names = match fs::read_dir(path) {
            Ok(entries) => entries
                .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
                // A leftover of a killed write is nobody's.
                .filter(|name| name != LOCK_FILE && !name.ends_with(".tmp"))
                .collect::<Vec<String>>(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => {
                return Err(refuse("is a file, not a folder"));
            }
            Err(source) => return Err(TrainError::Read { file: path.to_owned(), source }),
        };
        let occupied = !names.is_empty();
        let finished = path.join(MANIFEST_FILE).exists();
        let foreign = names.iter().any(|name| !OWN_NAMES.contains(&name.as_str()));
        if occupied && (!is_ours(path) || (foreign && existing != Existing::Resume)) {
            return Err(refuse("holds other things: name a folder that is new or empty"));
        }
        if finished {
            match existing {
                Existing::Refuse => return Err(refuse("holds a finished run already")),
                Existing::Resume => return Ok(Opened::Finished),
                Existing::Overwrite => {}
            }
        }
        if existing == Existing::Refuse && path.join(CHECKPOINT_FOLDER).is_dir() {
            return Err(refuse("holds the checkpoints of an unfinished run"));
        }
        fs::create_dir_all(path).map_err(TrainError::write(path))?;
        let lock_file = path.join(LOCK_FILE);
        let lock = File::create(&lock_file).map_err(TrainError::write(&lock_file))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(refuse("is being trained by another process")),
            Err(TryLockError::Error(source)) => return Err(TrainError::Write { file: lock_file, source }),
        }
        let resume = existing == Existing::Resume;
        if occupied && !resume {
            // The manifest goes first: without it nothing here passes for a model.
            remove(&path.join(MANIFEST_FILE))?;
            for name in OF_A_RUN {
                remove(&path.join(name))?;
            }
        }
        Ok(Opened::Ready(Self { path: path.to_owned(), resume, _lock: lock }))
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether a checkpoint is to be taken up.
    pub fn resumes(&self) -> bool {
        self.resume
    }

    /// Where checkpoints lie.
    pub fn checkpoints(&self) -> PathBuf {
        self.path.join(CHECKPOINT_FOLDER)
    }

    /// Writes the resolved configuration and its hash.
    ///
    /// # Errors
    /// When a file can't be written.
    pub fn write_config(&self, config: &TrainConfig) -> Result<()> {
        let text = config.to_toml()?;
        let hash = format!("{}  {CONFIG_FILE}\n", config_hash(&text));
        for (name, content) in [(CONFIG_FILE, text), (CONFIG_HASH_FILE, hash)] {
            let file = self.path.join(name);
            write_atomically(&file, content.as_bytes()).map_err(TrainError::write(&file))?;
        }
        Ok(())
    }

    /// Refuses to go on where the run was begun with other settings than `config`, resolved. One that has no settings yet
    /// takes any.
    ///
    /// # Errors
    /// [`TrainError::OtherRun`] with the keys that differ; when the file can't be read.
    pub fn check_config(&self, config: &TrainConfig) -> Result<()> {
        settings_that_differ(&self.path, config)?.map_or(Ok(()), |differences| {
            Err(TrainError::OtherRun { run: self.path.clone(), differences: vec![differences] })
        })
    }

    /// Sets the line files to the epochs that a checkpoint knows of.
    ///
    /// # Errors
    /// When a file can't be read or written.
    pub(crate) fn restore_records(&self, records: &[EpochRecord]) -> Result<()> {
        let metrics = self.path.join(METRICS_FILE);
        let mut lines = Vec::new();
        for record in records {
            serde_json::to_writer(&mut lines, record)
                .map_err(|error| TrainError::Write { file: metrics.clone(), source: error.into() })?;
            lines.push(b'\n');
        }
        if metrics.exists() || !lines.is_empty() {
            write_atomically(&metrics, &lines).map_err(TrainError::write(&metrics))?;
        }
        let timing = self.path.join(TIMING_FILE);
        if timing.exists() {
            let text = fs::read_to_string(&timing).map_err(TrainError::read(&timing))?;
            let kept: String = text.split_inclusive('\n').take(records.len()).collect();
            write_atomically(&timing, kept.as_bytes()).map_err(TrainError::write(&timing))?;
        }
        Ok(())
    }

    /// Appends a record as one JSON line.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn append(&self, name: &str, record: &impl Serialize) -> Result<()> {
        let path = self.path.join(name);
        let mut line = serde_json::to_vec(record)
            .map_err(|error| TrainError::Write { file: path.clone(), source: error.into() })?;
        line.push(b'\n');
        let append = |line: &[u8]| {
            let mut file: File = OpenOptions::new().create(true).append(true).open(&path)?;
            file.write_all(line)
        };
        append(&line).map_err(TrainError::write(&path))
    }
}

/// Whether the configuration in it is one of a run: other programs have a `config.toml` too.
fn is_ours(path: &Path) -> bool {
    let text = fs::read_to_string(path.join(CONFIG_FILE)).unwrap_or_default();
    let table: toml::Table = text.parse().unwrap_or_default();
    ["version", "method", "checkpoint_every"].iter().all(|key| table.contains_key(*key))
}

/// The configuration of a run as it stands in its folder.
fn settings_of(path: &Path) -> Result<Option<String>> {
    let file = path.join(CONFIG_FILE);
    match fs::read_to_string(&file) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(TrainError::Read { file, source }),
    }
}

/// What a finished run at `path` was trained with and `config` is not, in words.
///
/// # Errors
/// When its configuration can't be read.
pub fn settings_that_differ(path: &Path, config: &TrainConfig) -> Result<Option<String>> {
    settings_of(path)?.map_or(Ok(None), |was| Ok(settings_differing(&was, &config.to_toml()?)))
}

fn remove(path: &Path) -> Result<()> {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(TrainError::Write { file: path.to_owned(), source: error })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_folders_and_finished_runs_are_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let foreign = folder.path().join("photos");
        fs::create_dir(&foreign).unwrap();
        fs::write(foreign.join("a.jpg"), b"x").unwrap();
        for existing in [Existing::Refuse, Existing::Overwrite, Existing::Resume] {
            assert!(RunFolder::open(&foreign, existing).is_err());
        }
        assert!(foreign.join("a.jpg").exists());

        let site = folder.path().join("site");
        fs::create_dir(&site).unwrap();
        fs::write(site.join(CONFIG_FILE), b"title = \"mine\"").unwrap();
        assert!(RunFolder::open(&site, Existing::Overwrite).is_err(), "another program's configuration");

        let run = folder.path().join("runs/one");
        let Opened::Ready(opened) = RunFolder::open(&run, Existing::Refuse).unwrap() else { panic!() };
        opened.write_config(&TrainConfig::default()).unwrap();
        let error = RunFolder::open(&run, Existing::Resume).err().unwrap().to_string();
        assert!(error.contains("another process"), "{error}");
        drop(opened);
        assert!(
            matches!(RunFolder::open(&run, Existing::Refuse).unwrap(), Opened::Ready(_)),
            "nothing to lose"
        );
        fs::create_dir(run.join(CHECKPOINT_FOLDER)).unwrap();
        assert!(RunFolder::open(&run, Existing::Refuse).is_err(), "checkpoints to lose");
        fs::write(run.join(MANIFEST_FILE), b"{}").unwrap();
        assert!(RunFolder::open(&run, Existing::Refuse).is_err());
        assert!(matches!(RunFolder::open(&run, Existing::Resume).unwrap(), Opened::Finished));
        assert!(matches!(RunFolder::open(&run, Existing::Overwrite).unwrap(), Opened::Ready(_)));
        assert!(
            !run.join(MANIFEST_FILE).exists(),
            "an overwritten run is not a model until it is finished again"
        );
    }
}
