//! Writes what a run tells into its folder: TensorBoard events and warnings.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use aeir_encoders::write_atomically;
use serde::{Deserialize, Serialize};

use crate::error::{Result, TrainError};
use crate::event_file::{Event, EventWriter};
use crate::observer::{EpochRecord, Observer, StepRecord};
use crate::run::{EVENT_FOLDER, METRICS_FILE, RunFolder, WARNINGS_FILE};

/// Prefix of figures of a step.
const STEP: &str = "step/";
/// Prefix of figures of an epoch, as `metrics.jsonl` has them.
const EPOCH: &str = "epoch/";

/// One line of `warnings.jsonl`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Warning {
    /// Steps done when it was raised.
    pub step: usize,
    /// What was said.
    pub message: String,
}

/// An observer that keeps what it hears: losses, accuracies, the learning rate and the gradient norm of every step and the
/// figures of every epoch in `tensorboard/`, warnings in `warnings.jsonl`.
///
/// After an interruption both go on at the step that the run goes on from: what was recorded later is cut off, as it comes
/// again, and epochs that a kill kept from being recorded are taken from `metrics.jsonl`.
pub struct Recorder<'a> {
    run: &'a RunFolder,
    events: Option<EventWriter>,
    step: usize,
    /// Raised before the first step is known.
    early: Vec<String>,
    started: bool,
    failure: Option<TrainError>,
}

impl<'a> Recorder<'a> {
    /// Records into the folder of a run that is open.
    #[must_use]
    pub fn new(run: &'a RunFolder) -> Self {
        Self { run, events: None, step: 0, early: Vec::new(), started: false, failure: None }
    }

    /// The first file that could not be written. A run goes on without its records.
    ///
    /// # Errors
    /// That failure.
    pub fn finish(self) -> Result<()> {
        self.failure.map_or(Ok(()), Err)
    }

    /// Nothing is written after a failure: a gap would pass for a step that was not made.
    fn keep(&mut self, written: Result<()>) {
        if let Err(error) = written {
            self.failure.get_or_insert(error);
            self.events = None;
        }
    }

    fn start(&mut self, step: usize) -> Result<()> {
        self.cut_warnings(step)?;
        for message in std::mem::take(&mut self.early) {
            self.run.append(WARNINGS_FILE, &Warning { step, message })?;
        }
        let folder = self.run.path().join(EVENT_FOLDER);
        let (writer, kept) = EventWriter::resume(&folder, step as u64).map_err(TrainError::write(&folder))?;
        let recorded = kept.iter().filter(|event| is_epoch(event)).map(|event| event.step).max();
        self.events = Some(writer);
        for record in records(&self.run.path().join(METRICS_FILE))? {
            if recorded.is_none_or(|last| record.step as u64 > last) && record.step <= step {
                self.write(record.step, &epoch_figures(&record))?;
            }
        }
        Ok(())
    }

    /// Drops the warnings of steps that are made again.
    fn cut_warnings(&self, step: usize) -> Result<()> {
        let file = self.run.path().join(WARNINGS_FILE);
        let text = match fs::read_to_string(&file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            text => text.map_err(TrainError::read(&file))?,
        };
        let stays = |line: &&str| serde_json::from_str::<Warning>(line).is_ok_and(|it| it.step <= step);
        let kept: String = text.split_inclusive('\n').filter(stays).collect();
        if kept.len() == text.len() {
            return Ok(());
        }
        write_atomically(&file, kept.as_bytes()).map_err(TrainError::write(&file))
    }

    fn write(&mut self, step: usize, figures: &[(String, f64)]) -> Result<()> {
        let Some(events) = &mut self.events else { return Ok(()) };
        events.scalars(step as u64, figures).map_err(TrainError::write(events.path()))
    }
}

impl Observer for Recorder<'_> {
    fn started(&mut self, step: usize, _steps: usize) {
        (self.step, self.started) = (step, true);
        let started = self.start(step);
        self.keep(started);
    }

    fn measured(&mut self, record: &StepRecord<'_>) {
        self.step = record.step;
        let mut figures = vec![
            (format!("{STEP}learning_rate"), record.learning_rate),
            (format!("{STEP}gradient_norm"), record.gradient_norm),
        ];
        figures.extend(record.logged.iter().map(|(name, value)| (format!("{STEP}{name}"), *value)));
        let written = self.write(record.step, &figures);
        self.keep(written);
    }

    fn epoch(&mut self, record: &EpochRecord) {
        let written = self.write(record.step, &epoch_figures(record));
        self.keep(written);
    }

    fn warning(&mut self, message: &str) {
        if !self.started {
            self.early.push(message.to_owned());
            return;
        }
        let written =
            self.run.append(WARNINGS_FILE, &Warning { step: self.step, message: message.to_owned() });
        self.keep(written);
    }
}

fn is_epoch(event: &Event) -> bool {
    event.scalars.iter().any(|(tag, _)| tag.starts_with(EPOCH))
}

/// The lines of `metrics.jsonl`; none where the file is not there yet.
fn records(file: &Path) -> Result<Vec<EpochRecord>> {
    let text = match fs::read_to_string(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        text => text.map_err(TrainError::read(file))?,
    };
    let read = |line| serde_json::from_str(line).map_err(|error| damaged(file, error));
    text.lines().map(read).collect()
}

fn damaged(file: &Path, error: serde_json::Error) -> TrainError {
    TrainError::Read { file: PathBuf::from(file), source: error.into() }
}

/// All numbers of an epoch's record by name, but its number and step.
fn epoch_figures(record: &EpochRecord) -> Vec<(String, f64)> {
    let mut figures = BTreeMap::new();
    flatten("", &serde_json::to_value(record).unwrap_or_default(), &mut figures);
    figures
        .into_iter()
        .filter(|(name, _)| name != "epoch" && name != "step")
        .map(|(name, value)| (format!("{EPOCH}{}", name.strip_prefix("means/").unwrap_or(&name)), value))
        .collect()
}

/// The numbers in a JSON value by their path.
fn flatten(path: &str, value: &serde_json::Value, figures: &mut BTreeMap<String, f64>) {
    if let Some(number) = value.as_f64() {
        figures.insert(path.to_owned(), number);
    }
    for (name, value) in value.as_object().into_iter().flatten() {
        let path = if path.is_empty() { name.clone() } else { format!("{path}/{name}") };
        flatten(&path, value, figures);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event_file::read_folder;
    use crate::run::{Existing, Opened};
    use crate::{TrainConfig, TrainingData};
    use candle_core::Device;

    fn open(folder: &Path, existing: Existing) -> RunFolder {
        let Opened::Ready(run) = RunFolder::open(folder, existing).unwrap() else { panic!("finished") };
        run.write_config(&TrainConfig::default()).unwrap();
        run
    }

    fn epoch(step: usize) -> EpochRecord {
        EpochRecord {
            epoch: step / 10,
            step,
            learning_rate: 0.1,
            gradient_norm: 1.0,
            means: BTreeMap::from([("source_loss".to_owned(), 1.0 / step as f64)]),
            source_validation_rsum: Some(step as f64),
            ..EpochRecord::default()
        }
    }

    fn steps_of(folder: &Path, prefix: &str) -> Vec<u64> {
        let ours = |event: &Event| event.scalars.iter().any(|(tag, _)| tag.starts_with(prefix));
        read_folder(&folder.join(EVENT_FOLDER)).into_iter().filter(ours).map(|event| event.step).collect()
    }

    /// Steps `from` (from 0) to `to`, an epoch every ten; `metrics.jsonl` as the trainer leaves it.
    fn go(recorder: &mut Recorder<'_>, run: &RunFolder, from: usize, to: usize) {
        recorder.started(from, 100);
        for step in from + 1..=to {
            recorder.measured(&StepRecord {
                step,
                pairs: 8,
                learning_rate: 0.1,
                gradient_norm: 1.0,
                logged: &[("source_loss", 0.5)],
            });
            if step % 10 == 0 {
                run.append(METRICS_FILE, &epoch(step)).unwrap();
                recorder.epoch(&epoch(step));
            }
            if step == 15 {
                recorder.warning("it is the fifteenth");
            }
        }
    }

    fn warnings(folder: &Path) -> Vec<usize> {
        let text = fs::read_to_string(folder.join(WARNINGS_FILE)).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str::<Warning>(line).unwrap().step).collect()
    }

    #[test]
    fn a_resumed_run_has_every_step_epoch_and_warning_once() {
        let folder = tempfile::tempdir().unwrap();
        let run = open(folder.path(), Existing::Resume);
        let mut recorder = Recorder::new(&run);
        go(&mut recorder, &run, 0, 17);
        assert_eq!(warnings(folder.path()), [15]);
        drop(recorder);

        // Killed at step 17, after the checkpoint at 10.
        run.restore_records(&[epoch(10)]).unwrap();
        let mut recorder = Recorder::new(&run);
        recorder.warning("a damaged checkpoint");
        go(&mut recorder, &run, 10, 24);
        assert_eq!(steps_of(folder.path(), STEP), (1..=24).collect::<Vec<_>>());
        assert_eq!(steps_of(folder.path(), EPOCH), [10, 20]);
        assert_eq!(warnings(folder.path()), [10, 15]);
        recorder.finish().unwrap();

        // Killed at step 24, before the first checkpoint: from the start.
        run.restore_records(&[]).unwrap();
        let mut recorder = Recorder::new(&run);
        go(&mut recorder, &run, 0, 12);
        assert_eq!(steps_of(folder.path(), STEP), (1..=12).collect::<Vec<_>>());
        assert_eq!(steps_of(folder.path(), EPOCH), [10]);
        assert!(warnings(folder.path()).is_empty());
    }

    #[test]
    fn an_epoch_that_a_kill_kept_from_the_events_is_made_up_for() {
        let folder = tempfile::tempdir().unwrap();
        let run = open(folder.path(), Existing::Resume);
        let mut recorder = Recorder::new(&run);
        go(&mut recorder, &run, 0, 19);
        // The checkpoint of step 20 was written, and then came the kill.
        recorder.measured(&StepRecord {
            step: 20,
            pairs: 8,
            learning_rate: 0.1,
            gradient_norm: 1.0,
            logged: &[],
        });
        run.append(METRICS_FILE, &epoch(20)).unwrap();
        drop(recorder);
        let mut recorder = Recorder::new(&run);
        go(&mut recorder, &run, 20, 30);
        assert_eq!(steps_of(folder.path(), EPOCH), [10, 20, 30]);
        let events = read_folder(&folder.path().join(EVENT_FOLDER));
        let made_up = events.iter().find(|event| event.step == 20 && is_epoch(event)).unwrap();
        assert!(made_up.scalars.contains(&("epoch/source_validation_rsum".to_owned(), 20.0)));
        assert!(made_up.scalars.contains(&("epoch/source_loss".to_owned(), 0.05)));
    }

    #[test]
    fn a_folder_that_can_not_be_written_is_told_and_stops_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let run = open(folder.path(), Existing::Resume);
        fs::write(folder.path().join(EVENT_FOLDER), b"in the way").unwrap();
        let mut recorder = Recorder::new(&run);
        go(&mut recorder, &run, 0, 12);
        assert!(recorder.finish().unwrap_err().to_string().contains(EVENT_FOLDER));
    }

    #[test]
    fn a_real_run_is_recorded_step_by_step() {
        let folder = tempfile::tempdir().unwrap();
        let run = open(folder.path(), Existing::Overwrite);
        let data: TrainingData = crate::data::tests::toy(40, 17, 23);
        let config = TrainConfig { epochs: 2, batch_size: 8, target_batch_size: 8, ..TrainConfig::default() };
        let mut recorder = Recorder::new(&run);
        let trained = crate::train(&config, &data, Some(&run), &Device::Cpu, &mut recorder).unwrap();
        recorder.finish().unwrap();
        let last = trained.history.last().unwrap();
        assert_eq!(steps_of(folder.path(), STEP), (1..=last.step as u64).collect::<Vec<_>>());
        let recorded: f64 = read_folder(&folder.path().join(EVENT_FOLDER))
            .iter()
            .filter(|event| event.step > last.step as u64 / 2)
            .flat_map(|event| &event.scalars)
            .filter(|(tag, _)| tag == "step/source_loss")
            .map(|(_, value)| f64::from(*value))
            .sum();
        let mean = recorded / (last.step as f64 / 2.0);
        assert!((mean - last.means["source_loss"]).abs() < 1e-5, "the epoch's mean is that of its steps");
    }
}
