//! The suites `paper` and `zero-shot`: on data that has to be fetched, or on small stand-ins.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::bail;

use super::estimate::Estimates;
use super::paper::{self, Part, Row, SCENARIOS, Scenario};
use super::trial::{Bench, Trial};
use super::{Arguments, chosen, commit, hash_of, stand_in, summary, zero_shot};
use crate::binary::release;
use crate::say;

/// Where `cargo xtask fetch` puts things.
const ASSETS: &str = "assets";
const MAIN_SEEDS: u64 = 3;
/// Small models and two epochs: enough to go through every step.
const CHECKED: [&str; 9] = [
    "epochs=2",
    "batch_size=32",
    "target_batch_size=32",
    "model.embedding_dimension=32",
    "model.head_options.similarity_dimension=16",
    "model.words.word_dimension=16",
    "optimizer.step_epochs=1",
    "adaptation.source_share=0.5",
    "checkpoint_every=2",
];
const CHECKED_ADAPTATION: [&str; 3] = ["epochs=2", "batch_size=32", "adapt.mine_every=1"];

/// Runs what is missing of a suite, as far as its data are there, and writes the report.
pub(super) fn run(suite: &'static str, arguments: &Arguments, root: &Path) -> anyhow::Result<()> {
    let binary = match &arguments.binary {
        Some(binary) => binary.clone(),
        None => release(root)?,
    };
    let program = hash_of(&binary)?;
    let all = root.join("results");
    let results = if arguments.check { all.join("check") } else { all.clone() };
    let assets = if arguments.check {
        let folder = results.join("stand-ins");
        stand_in::make(root, &binary, &folder)?;
        folder
    } else {
        assets(arguments, root)
    };
    let job = Job {
        suite,
        arguments,
        root,
        assets: &assets,
        results: results.join(suite),
        binary: &binary,
        program: &program,
    };
    let planned = if suite == "paper" { job.paper()? } else { job.zero_shot()? };
    if arguments.estimate {
        return Ok(());
    }
    let commit = commit(root);
    let device = arguments.device.as_deref().unwrap_or("cpu");
    let bench =
        Bench { binary: &binary, program: &program, results: job.results.clone(), commit: &commit, device };
    for trial in &planned.trials {
        let (record, fresh) = trial.outcome(&bench)?;
        let first = record.scores.first().map_or(0.0, |scores| scores.rsum);
        let how = if fresh { format!("{:.0} s", record.seconds) } else { "from an earlier run".to_owned() };
        say(&format!("{} / {} / seed {} rSum {first:.1}, {how}\n", trial.scenario, trial.row, trial.seed))?;
    }
    let report = summary::write(root, &all)?;
    say(&format!("{}report  {report}\n", planned.left_out()))
}

fn assets(arguments: &Arguments, root: &Path) -> PathBuf {
    let named = std::env::var_os("AEIR_ASSETS").filter(|folder| !folder.is_empty()).map(PathBuf::from);
    arguments.data.clone().or(named).unwrap_or_else(|| root.join(ASSETS))
}

struct Job<'a> {
    suite: &'static str,
    arguments: &'a Arguments,
    root: &'a Path,
    assets: &'a Path,
    results: PathBuf,
    binary: &'a Path,
    program: &'a str,
}

/// What can be run, and what can't.
#[derive(Default)]
struct Planned {
    trials: Vec<Trial>,
    not_run: usize,
    lacking: BTreeSet<PathBuf>,
}

impl Planned {
    /// What was not run, and how to come by what it needs.
    fn left_out(&self) -> String {
        if self.not_run == 0 {
            return String::new();
        }
        let files: Vec<String> = self.lacking.iter().map(|file| format!("  {}\n", file.display())).collect();
        format!(
            "\n{} cells not run, for lack of\n{}`cargo xtask fetch` brings them; docs/reproducing.md says how to come by region features.\n",
            self.not_run,
            files.concat()
        )
    }
}

impl Job<'_> {
    fn seeds(&self, default: u64) -> u64 {
        if self.arguments.check { 1 } else { self.arguments.seeds.unwrap_or(default) }
    }

    fn paper(&self) -> anyhow::Result<Planned> {
        let scenarios = chosen(&SCENARIOS, &self.arguments.scenarios, "scenario", |scenario| scenario.name)?;
        let data = self.assets.join("datasets");
        let (check, mut planned) = (self.arguments.check, Planned::default());
        let settings: &[_] = if check { &CHECKED } else { &[] };
        let place = paper::Place { root: self.root, data: &data, stand_in: check, settings };
        let all: Vec<(&Scenario, Vec<Row>)> =
            scenarios.into_iter().map(|scenario| (scenario, self.rows(scenario))).collect();
        self.check_names(all.iter().flat_map(|(_, rows)| rows.iter().map(|row| row.name.as_str())))?;
        let mut cells: Vec<(&Scenario, &Row)> = Vec::new();
        for (scenario, rows) in &all {
            let lacking = scenario.lacking(&data);
            for row in rows.iter().filter(|row| self.wants(&row.name)) {
                let seeds = self.seeds(if matches!(row.part, Part::Curve(..)) { 1 } else { MAIN_SEEDS });
                if lacking.is_empty() {
                    planned.trials.extend((1..=seeds).map(|seed| scenario.trial(row, seed, &place)));
                } else {
                    planned.not_run += usize::try_from(seeds)?;
                    planned.lacking.extend(lacking.iter().cloned());
                }
                if lacking.is_empty() || self.arguments.estimate {
                    cells.push((scenario, row));
                }
            }
        }
        // In a check one measurement shows that it works.
        cells.truncate(if check { 1 } else { usize::MAX });
        if !cells.is_empty() {
            std::fs::create_dir_all(&self.results)?;
            let estimates = Estimates {
                root: self.root,
                binary: self.binary,
                program: self.program,
                results: &self.results,
            };
            say(&estimates.text(&cells)?)?;
        }
        Ok(planned)
    }

    /// In a check the second transfer has the rows without curves: they are the same code.
    fn rows(&self, scenario: &Scenario) -> Vec<Row> {
        let first = SCENARIOS.first().is_some_and(|first| first.name == scenario.name);
        let kept = |row: &Row| {
            !self.arguments.check
                || first
                || !scenario.is_transfer()
                || ["source-only", "aeir"].contains(&row.name.as_str())
        };
        scenario.rows().into_iter().filter(kept).collect()
    }

    fn zero_shot(&self) -> anyhow::Result<Planned> {
        let names: Vec<&str> = zero_shot::SCENARIOS.iter().map(|(name, _)| *name).collect();
        if let Some(unknown) = self.arguments.scenarios.iter().find(|name| !names.contains(&name.as_str())) {
            bail!("no scenario `{unknown}`; there are {}", names.join(", "));
        }
        let check = self.arguments.check;
        let settings: &[_] = if check { &CHECKED_ADAPTATION } else { &[] };
        let place =
            zero_shot::Place { assets: self.assets, stand_in: check, results: &self.results, settings };
        let candidates = place.candidates();
        self.check_names(candidates.iter().map(|candidate| candidate.row.as_str()))?;
        let mut planned = Planned::default();
        let wanted = |scenario: &str| {
            self.arguments.scenarios.is_empty() || self.arguments.scenarios.iter().any(|it| it == scenario)
        };
        for candidate in candidates.iter().filter(|it| self.wants(&it.row) && wanted(it.scenario)) {
            let seeds = if candidate.is_trained() { self.seeds(1) } else { 1 };
            if candidate.lacking.is_empty() {
                planned.trials.extend(
                    (1..=seeds)
                        .map(|seed| place.trial(candidate, seed))
                        .collect::<anyhow::Result<Vec<_>>>()?,
                );
            } else {
                planned.not_run += usize::try_from(seeds)?;
                planned.lacking.extend(candidate.lacking.iter().cloned());
            }
        }
        Ok(planned)
    }

    fn wants(&self, row: &str) -> bool {
        self.arguments.methods.is_empty() || self.arguments.methods.iter().any(|name| name == row)
    }

    fn check_names<'n>(&self, rows: impl Iterator<Item = &'n str>) -> anyhow::Result<()> {
        let known: BTreeSet<&str> = rows.collect();
        match self.arguments.methods.iter().find(|name| !known.contains(name.as_str())) {
            Some(unknown) => {
                let known: Vec<&str> = known.into_iter().collect();
                bail!("no row `{unknown}` in the suite `{}`; there are {}", self.suite, known.join(", "))
            }
            None => Ok(()),
        }
    }
}
