//! One row on one transfer with one seed: trained and scored by the binary, its outcome kept in a file.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, bail};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::suite::Row;
use super::transfer::Files;

/// What is run.
pub(super) struct Cell<'a> {
    pub(super) transfer: &'static str,
    pub(super) row: &'a Row,
    pub(super) seed: u64,
    pub(super) check: bool,
    /// Hash of the program that trains.
    pub(super) program: &'a str,
    /// Hash of the transfer's files.
    pub(super) data: &'a str,
}

/// What it came to.
#[derive(Clone)]
pub(super) struct Outcome {
    pub(super) transfer: String,
    pub(super) row: String,
    pub(super) rsum: f64,
    /// What each label-free criterion made of the model's epoch, where it has one: the higher, the better.
    pub(super) criteria: [Option<f64>; CRITERIA.len()],
    pub(super) seconds: f64,
    record: Value,
}

/// The label-free criteria, by the figures of a record that each adds up.
pub(super) const CRITERIA: [(&str, &[(&str, f64)]); 5] = [
    ("target-similarity", &[("target_mutual_similarity", 1.0)]),
    ("target-cycle", &[("target_cycle_consistency", 1.0)]),
    ("target-entropy", &[("target_posterior_entropy", -1.0)]),
    ("target-diversity", &[("target_posterior_diversity", 1.0)]),
    ("target-information", &[("target_posterior_diversity", 1.0), ("target_posterior_entropy", -1.0)]),
];

/// Enough epochs to go through every step.
const CHECKED: [&str; 2] = ["epochs = 2\n", "mine_every = 1\n"];

impl Cell<'_> {
    /// The settings that the run is given.
    fn settings(&self) -> String {
        if !self.check {
            return self.row.settings.to_owned();
        }
        let [epochs, round] = CHECKED;
        // Keys of their own come before a section, and a section stands once.
        let settings = self.row.settings;
        match settings.split_once("[adapt]\n") {
            Some((before, own)) => format!("{epochs}{before}[adapt]\n{round}{own}"),
            None => format!("{epochs}{settings}\n[adapt]\n{round}"),
        }
    }

    /// A hash of what decides the outcome: settings, seed, program and data.
    fn identity(&self) -> String {
        let Row { method, standardise, oracle, .. } = self.row;
        let Self { program, data, seed, .. } = self;
        let text = format!("{program} {data} {method} {standardise} {oracle} {seed} {}", self.settings());
        Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Trains and scores.
    pub(super) fn run(
        &self,
        data: &Files,
        binary: &Path,
        results: &Path,
        commit: &str,
    ) -> anyhow::Result<Outcome> {
        let folder =
            results.join(self.transfer).join("runs").join(format!("{}-{}", self.row.name, self.seed));
        let settings = folder.with_extension("toml");
        std::fs::create_dir_all(folder.parent().unwrap_or(results))?;
        std::fs::write(&settings, self.settings())?;
        let mut train = Command::new(binary);
        train.args(["train", "--quiet", "--overwrite", "--method", self.row.method]);
        train.arg("--seed").arg(self.seed.to_string()).arg("--config").arg(&settings);
        train.arg("--source").arg(&data.source);
        if self.row.oracle {
            train.arg("--source").arg(&data.alignment);
        }
        train.arg("--target-images").arg(&data.images).arg("--target-sentences").arg(&data.sentences);
        if self.row.standardise {
            train.arg("--standardise");
        }
        let started = Instant::now();
        output(train.arg("--output").arg(&folder))?;
        let seconds = started.elapsed().as_secs_f64();
        let mut eval = Command::new(binary);
        eval.args(["eval", "--quiet", "--json", "--model"]).arg(&folder).arg("--data").arg(&data.test);
        let metrics: Value = serde_json::from_str(&output(&mut eval)?).context("what `aeir eval` printed")?;
        let figures = chosen_record(&folder);
        // A model with its backbones takes megabytes; the outcome is what counts.
        std::fs::remove_dir_all(&folder)?;
        let record = json!({
            "transfer": self.transfer, "row": self.row.name, "seed": self.seed, "config_sha256": self.identity(),
            "commit": commit, "device": "cpu", "seconds": seconds, "label_free": figures,
            "metrics": metrics,
        });
        Outcome::of(record).context("`aeir eval` printed no `rsum`")
    }
}

impl Outcome {
    fn of(record: Value) -> Option<Self> {
        Some(Self {
            transfer: record["transfer"].as_str()?.to_owned(),
            row: record["row"].as_str()?.to_owned(),
            rsum: record["metrics"]["rsum"].as_f64()?,
            criteria: CRITERIA.map(|(_, figures)| {
                let added =
                    |(name, factor): &(&str, f64)| Some(record["label_free"][*name].as_f64()? * factor);
                figures.iter().map(added).sum()
            }),
            seconds: record["seconds"].as_f64()?,
            record,
        })
    }

    /// One of a given rSum.
    #[cfg(test)]
    pub(super) fn for_tests(transfer: &str, row: &str, rsum: f64) -> Self {
        Self {
            transfer: transfer.into(),
            row: row.into(),
            rsum,
            criteria: [None; CRITERIA.len()],
            seconds: 0.0,
            record: Value::Null,
        }
    }

    /// The outcome of an earlier run of the same cell, where there is one.
    pub(super) fn read(file: &Path, cell: &Cell<'_>) -> anyhow::Result<Option<Self>> {
        let Ok(text) = std::fs::read_to_string(file) else { return Ok(None) };
        let record: Value =
            serde_json::from_str(&text).with_context(|| format!("`{}`: remove it", file.display()))?;
        if record["config_sha256"].as_str() != Some(&cell.identity()) {
            return Ok(None);
        }
        Ok(Self::of(record))
    }

    pub(super) fn write(&self, file: &Path) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(&self.record)? + "\n";
        // Renamed into place, so that a stop leaves no half of it.
        let unfinished = file.with_extension("tmp");
        std::fs::write(&unfinished, text)?;
        std::fs::rename(&unfinished, file).with_context(|| format!("could not write `{}`", file.display()))
    }
}

/// What a program printed; its complaint where it failed.
fn output(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output().with_context(|| format!("could not run {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?} failed:\n{}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The record of the epoch that became the model.
fn chosen_record(run: &Path) -> Option<Value> {
    let text = |name: &str| std::fs::read_to_string(run.join(name)).ok();
    let chosen: Value = serde_json::from_str(&text("selection.json")?).ok()?;
    let records = text("metrics.jsonl")?;
    let mut records = records.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    records.find(|record| record["epoch"] == chosen["epoch"])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reproduce::suite::Suite;

    #[test]
    fn settings_for_a_check_are_one_file_each() {
        let suite = Suite::named("adapt").unwrap();
        for row in suite.rows {
            let cell = Cell { transfer: "t", row, seed: 1, check: true, program: "p", data: "d" };
            let settings = cell.settings();
            assert_eq!(settings.matches("[adapt]").count(), 1, "{settings}");
            let (before, after) = settings.split_once("[adapt]").unwrap();
            assert!(before.starts_with("epochs = 2") && after.contains("mine_every = 1"), "{settings}");
            assert!(!after.contains("selection") && !after.contains("[aeir]"), "{settings}");
        }
    }

    #[test]
    fn an_outcome_of_other_settings_is_run_again() {
        let row = &Suite::named("adapt").unwrap().rows[0];
        let cell = |seed, check| Cell { transfer: "t", row, seed, check, program: "p", data: "d" };
        let other = Cell { data: "e", ..cell(1, false) };
        let record = json!({ "transfer": "t", "row": row.name, "seed": 1, "seconds": 1.0,
            "config_sha256": cell(1, false).identity(), "metrics": { "rsum": 120.5 } });
        let file = std::env::temp_dir().join(format!("aeir-outcome-{}.json", std::process::id()));
        Outcome::of(record).unwrap().write(&file).unwrap();
        assert_eq!(Outcome::read(&file, &cell(1, false)).unwrap().unwrap().rsum, 120.5);
        assert!(Outcome::read(&file, &cell(2, false)).unwrap().is_none());
        assert!(Outcome::read(&file, &other).unwrap().is_none());
        assert!(Outcome::read(&file, &cell(1, true)).unwrap().is_none());
        std::fs::remove_file(&file).unwrap();
        assert!(Outcome::read(&file, &cell(1, false)).unwrap().is_none());
    }
}
