//! What came out of a sweep: a table of settings, and how far each criterion orders the runs as their recall does.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use aeir_retrieve::{RetrievalMetrics, spearman};
use serde::Serialize;

use super::plan::{Cell, Plan, Test};
use crate::report::Summary;
use crate::report::runs::{self, Evaluation, RunRecord};
use crate::report::sweep::{self, CriterionPlot, Row};

/// The results of all runs that are there.
#[derive(Serialize)]
pub(super) struct Results {
    /// Names of the settings that are varied.
    pub(super) keys: Vec<String>,
    /// A line a combination of values, the mean over its seeds.
    pub(super) settings: Vec<Setting>,
    /// A line a run.
    pub(super) runs: Vec<RunResult>,
    /// Of each criterion with the recall on test pairs, over runs; empty without test pairs.
    pub(super) rank_correlations: Vec<RankCorrelation>,
    pub(super) failed: Vec<Failed>,
}

#[derive(Serialize)]
pub(super) struct RunResult {
    pub(super) folder: PathBuf,
    pub(super) values: Vec<String>,
    pub(super) seed: u64,
    /// The epoch that became the model.
    pub(super) epoch: Option<usize>,
    /// What chose that epoch.
    pub(super) selection: Option<String>,
    /// What it saw in it.
    pub(super) score: Option<f64>,
    /// Of the epoch that became the model; none of them sees a label of the target.
    pub(super) criteria: BTreeMap<String, f64>,
    /// On test pairs.
    pub(super) test: Option<RetrievalMetrics>,
    pub(super) seconds: Option<f64>,
    pub(super) warnings: usize,
}

#[derive(Serialize)]
pub(super) struct Setting {
    pub(super) values: Vec<String>,
    pub(super) seeds: usize,
    /// Of what chose the epochs.
    pub(super) score: Option<Summary>,
    pub(super) criteria: BTreeMap<String, Summary>,
    pub(super) test_rsum: Option<Summary>,
}

#[derive(Serialize)]
pub(super) struct RankCorrelation {
    pub(super) criterion: String,
    /// Spearman's, over single runs.
    pub(super) over_runs: Option<f64>,
    pub(super) runs: usize,
    /// Over the means of settings.
    pub(super) over_settings: Option<f64>,
    pub(super) settings: usize,
}

#[derive(Serialize)]
pub(super) struct Failed {
    pub(super) folder: PathBuf,
    pub(super) reason: String,
}

/// What was measured on the sweep's own test pairs.
pub(super) fn evaluation<'a>(run: &'a RunRecord, test: &Test) -> Option<&'a Evaluation> {
    run.evaluations.iter().rev().find(|found| test.is_of(found))
}

impl Results {
    /// Reads all runs but those that failed.
    pub(super) fn collect(plan: &Plan, failed: &[(PathBuf, String)]) -> anyhow::Result<Self> {
        let whole = plan.cells.iter().filter(|cell| failed.iter().all(|(folder, _)| *folder != cell.folder));
        let runs = whole.map(|cell| RunResult::read(cell, plan)).collect::<anyhow::Result<Vec<_>>>()?;
        let failed =
            failed.iter().map(|(folder, reason)| Failed { folder: folder.clone(), reason: reason.clone() });
        Self::of(plan.keys.clone(), runs, failed.collect())
    }

    fn of(keys: Vec<String>, runs: Vec<RunResult>, failed: Vec<Failed>) -> anyhow::Result<Self> {
        let settings: Vec<Setting> = runs.chunk_by(|a, b| a.values == b.values).map(Setting::of).collect();
        let rank_correlations = criteria(&runs)
            .into_iter()
            .filter_map(|criterion| correlation(criterion, &runs, &settings).transpose())
            .collect::<anyhow::Result<Vec<_>>>()?;
        Ok(Self { keys, settings, runs, rank_correlations, failed })
    }

    /// What chose the epochs, where it is the same in all runs: by its score settings are compared.
    fn chooser(&self) -> Option<&str> {
        let names: BTreeSet<&str> = self.runs.iter().filter_map(|run| run.selection.as_deref()).collect();
        names.first().copied().filter(|_| names.len() == 1)
    }

    /// What the criterion would choose, and what the test pairs would.
    pub(super) fn verdicts(&self) -> Vec<String> {
        let mut told = Vec::new();
        let best = |value: &dyn Fn(&Setting) -> Option<f64>| {
            let rated = self.settings.iter().filter_map(|setting| Some((setting, value(setting)?)));
            // Of equal ones the first, as of epochs.
            rated.reduce(|best, next| if next.1 > best.1 { next } else { best }).map(|(setting, _)| setting)
        };
        let recall = |setting: &Setting| {
            setting.test_rsum.map_or_else(String::new, |rsum| format!(", test rSum {}", rsum.text()))
        };
        if let Some(criterion) = self.chooser().filter(|_| self.settings.len() > 1) {
            if let Some(chosen) = best(&|setting| Some(setting.score?.mean)) {
                told.push(format!(
                    "By {criterion} the best setting is {}{}.",
                    chosen.name(&self.keys),
                    recall(chosen)
                ));
            }
            if let Some(truly) = best(&|setting| Some(setting.test_rsum?.mean)) {
                told.push(format!(
                    "By recall on the test pairs it would be {}{}; test pairs are no means to choose.",
                    truly.name(&self.keys),
                    recall(truly)
                ));
            }
        }
        for RankCorrelation { criterion, over_runs, runs, over_settings, settings } in &self.rank_correlations
        {
            let number = |value: &Option<f64>, count: usize| match value {
                _ if count < FEWEST_RANKED => "too few to rank".to_owned(),
                Some(value) => format!("{value:.2}"),
                None => "not defined".to_owned(),
            };
            told.push(format!(
                "Rank correlation (Spearman) of {criterion} with test rSum: {} over {runs} runs, {} over {settings} settings.",
                number(over_runs, *runs),
                number(over_settings, *settings)
            ));
        }
        told.extend(
            self.failed
                .iter()
                .map(|failed| format!("Failed: {}: {}.", failed.folder.display(), failed.reason)),
        );
        told
    }

    /// The table for a terminal.
    pub(super) fn text(&self) -> String {
        let criteria = criteria(&self.runs);
        let tested = self.settings.iter().any(|setting| setting.test_rsum.is_some());
        let mut rows = vec![
            self.keys
                .iter()
                .map(String::as_str)
                .chain(["seeds"])
                .chain(criteria.iter().map(String::as_str))
                .chain(tested.then_some("test rSum"))
                .map(str::to_owned)
                .collect::<Vec<String>>(),
        ];
        for setting in &self.settings {
            let mut row = setting.values.clone();
            row.push(setting.seeds.to_string());
            row.extend(
                criteria
                    .iter()
                    .map(|name| setting.criteria.get(name).map_or_else(|| "-".to_owned(), |it| precise(*it))),
            );
            if tested {
                row.push(setting.test_rsum.map_or_else(|| "-".to_owned(), Summary::text));
            }
            rows.push(row);
        }
        let widths: Vec<usize> = (0..rows.first().map_or(0, Vec::len))
            .map(|column| {
                rows.iter()
                    .filter_map(|row| row.get(column))
                    .map(|cell| cell.chars().count())
                    .max()
                    .unwrap_or(0)
            })
            .collect();
        let mut text = String::from("Mean over seeds, ± sample standard deviation.\n\n");
        for row in &rows {
            // Settings are texts, the rest numbers.
            let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, width))| {
                if column < self.keys.len() { format!("{cell:width$}") } else { format!("{cell:>width$}") }
            });
            text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
            text.push('\n');
        }
        text.push('\n');
        self.verdicts().iter().for_each(|line| {
            text.push_str(line);
            text.push('\n');
        });
        text
    }

    /// A line a run, with all figures.
    pub(super) fn csv(&self) -> anyhow::Result<String> {
        let criteria = criteria(&self.runs);
        let tests = ["i2t_r1", "i2t_r5", "i2t_r10", "t2i_r1", "t2i_r5", "t2i_r10", "test_rsum"];
        let mut writer = csv::Writer::from_writer(Vec::new());
        let head = self
            .keys
            .iter()
            .map(String::as_str)
            .chain(["seed", "epoch"])
            .chain(criteria.iter().map(String::as_str));
        writer.write_record(head.chain(tests).chain(["seconds", "warnings", "folder"]))?;
        let number = |value: Option<f64>| value.map_or_else(String::new, |value| value.to_string());
        for run in &self.runs {
            let mut row = run.values.clone();
            row.push(run.seed.to_string());
            row.push(run.epoch.map_or_else(String::new, |epoch| epoch.to_string()));
            row.extend(criteria.iter().map(|name| number(run.criteria.get(name).copied())));
            let test = run
                .test
                .map(|it| [it.i2t.r1, it.i2t.r5, it.i2t.r10, it.t2i.r1, it.t2i.r5, it.t2i.r10, it.rsum]);
            row.extend((0..tests.len()).map(|index| number(test.and_then(|test| test.get(index).copied()))));
            row.extend([number(run.seconds), run.warnings.to_string(), run.folder.display().to_string()]);
            writer.write_record(row)?;
        }
        Ok(String::from_utf8(writer.into_inner()?)?)
    }

    /// The page.
    pub(super) fn html(&self) -> anyhow::Result<String> {
        let criteria = criteria(&self.runs);
        let rows: Vec<Row> = self
            .settings
            .iter()
            .map(|setting| Row {
                name: setting.name(&self.keys),
                seeds: setting.seeds,
                criteria: criteria
                    .iter()
                    .map(|name| setting.criteria.get(name).map(|it| precise(*it)))
                    .collect(),
                test: setting.test_rsum,
            })
            .collect();
        let plots: Vec<CriterionPlot> = criteria
            .iter()
            .map(|name| CriterionPlot {
                criterion: name.clone(),
                settings: self
                    .settings
                    .iter()
                    .map(|setting| {
                        let of_setting = self.runs.iter().filter(|run| run.values == setting.values);
                        let point = |run: &RunResult| Some((*run.criteria.get(name)?, run.test?.rsum));
                        (setting.name(&self.keys), of_setting.filter_map(point).collect())
                    })
                    .collect(),
            })
            .collect();
        sweep::html(&criteria, &rows, &self.verdicts(), &plots)
    }
}

impl RunResult {
    fn read(cell: &Cell, plan: &Plan) -> anyhow::Result<Self> {
        let run = RunRecord::read(&cell.folder)?;
        Ok(Self {
            folder: cell.folder.clone(),
            values: cell.values.clone(),
            seed: cell.seed,
            epoch: run.selection.as_ref().map(|selection| selection.epoch),
            selection: run.selection.as_ref().map(|selection| selection.criterion.clone()),
            score: run.selection.as_ref().and_then(|selection| selection.score),
            criteria: run.chosen().map(runs::criteria).unwrap_or_default(),
            test: plan.test.as_ref().and_then(|test| Some(evaluation(&run, test)?.metrics)),
            seconds: run.seconds,
            warnings: run.warnings.len(),
        })
    }
}

impl Setting {
    /// Of the runs of one combination.
    fn of(runs: &[RunResult]) -> Self {
        let summary = |value: &dyn Fn(&RunResult) -> Option<f64>| {
            let values: Vec<f64> = runs.iter().filter_map(value).collect();
            (!values.is_empty()).then(|| Summary::of(&values))
        };
        Self {
            values: runs.first().map(|run| run.values.clone()).unwrap_or_default(),
            seeds: runs.len(),
            score: summary(&|run| run.score),
            criteria: criteria(runs)
                .into_iter()
                .filter_map(|name| Some((name.clone(), summary(&|run| run.criteria.get(&name).copied())?)))
                .collect(),
            test_rsum: summary(&|run| Some(run.test?.rsum)),
        }
    }

    fn name(&self, keys: &[String]) -> String {
        if keys.is_empty() {
            return "the one setting".to_owned();
        }
        keys.iter()
            .zip(&self.values)
            .map(|(key, value)| format!("{key} = {value}"))
            .collect::<Vec<_>>()
            .join(", ")
    }
}

/// Fewer have a rank correlation that says nothing: two are always in order, or in the other.
const FEWEST_RANKED: usize = 4;

/// Names of all criteria that a run recorded.
fn criteria(runs: &[RunResult]) -> Vec<String> {
    runs.iter().flat_map(|run| run.criteria.keys()).collect::<BTreeSet<_>>().into_iter().cloned().collect()
}

fn correlation(
    criterion: String,
    runs: &[RunResult],
    settings: &[Setting],
) -> anyhow::Result<Option<RankCorrelation>> {
    let of_runs: Vec<(f64, f64)> =
        runs.iter().filter_map(|run| Some((*run.criteria.get(&criterion)?, run.test?.rsum))).collect();
    let of_settings: Vec<(f64, f64)> = settings
        .iter()
        .filter_map(|setting| Some((setting.criteria.get(&criterion)?.mean, setting.test_rsum?.mean)))
        .collect();
    if of_runs.is_empty() {
        return Ok(None);
    }
    let correlation = |pairs: &[(f64, f64)]| {
        if pairs.len() < FEWEST_RANKED {
            return Ok(None);
        }
        let (a, b): (Vec<f64>, Vec<f64>) = pairs.iter().copied().unzip();
        spearman(&a, &b)
    };
    Ok(Some(RankCorrelation {
        over_runs: correlation(&of_runs)?,
        runs: of_runs.len(),
        over_settings: correlation(&of_settings)?,
        settings: of_settings.len(),
        criterion,
    }))
}

/// A criterion may be a recall or a small similarity.
fn precise(summary: Summary) -> String {
    summary.text_with(if summary.mean.abs() >= 10.0 { 1 } else { 4 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use aeir_retrieve::DirectionMetrics;

    fn run(value: &str, seed: u64, criterion: f64, recall: f64) -> RunResult {
        let direction =
            DirectionMetrics { r1: recall, r5: recall, r10: recall, medr: 1.0, meanr: 1.0, map: None };
        RunResult {
            folder: PathBuf::from(format!("{value}/seed-{seed}")),
            values: vec![value.to_owned()],
            seed,
            epoch: Some(3),
            selection: Some("source-validation".into()),
            score: Some(criterion),
            criteria: BTreeMap::from([("source_validation_rsum".to_owned(), criterion)]),
            test: Some(RetrievalMetrics {
                n_images: 9,
                n_sentences: 9,
                i2t: direction,
                t2i: direction,
                rsum: 6.0 * recall,
            }),
            seconds: Some(1.5),
            warnings: 0,
        }
    }

    fn results() -> Results {
        let runs = vec![
            run("0.1", 1, 100.0, 10.0),
            run("0.1", 2, 104.0, 12.0),
            run("0.2", 1, 110.0, 11.0),
            run("0.2", 2, 112.0, 9.0),
        ];
        Results::of(vec!["optimizer.learning_rate".into()], runs, Vec::new()).unwrap()
    }

    #[test]
    fn settings_are_means_over_seeds() {
        let results = results();
        let first = &results.settings[0];
        assert_eq!((first.seeds, first.test_rsum.unwrap().mean), (2, 66.0));
        assert_eq!(first.criteria["source_validation_rsum"].text(), "102.0 ± 2.8");
        let correlation = &results.rank_correlations[0];
        // Ranks (1, 2, 3, 4) and (2, 4, 3, 1).
        assert!((correlation.over_runs.unwrap() + 0.4).abs() < 1e-12, "{:?}", correlation.over_runs);
        assert_eq!((correlation.over_settings, correlation.settings), (None, 2), "two are always in order");
    }

    #[test]
    fn the_choice_is_the_criterions_and_not_the_recalls() {
        let results = results();
        let verdicts = results.verdicts().join("\n");
        assert!(
            verdicts.contains("By source-validation the best setting is optimizer.learning_rate = 0.2"),
            "{verdicts}"
        );
        assert!(
            verdicts.contains("By recall on the test pairs it would be optimizer.learning_rate = 0.1"),
            "{verdicts}"
        );
        assert!(verdicts.contains("-0.40 over 4 runs, too few to rank over 2 settings"), "{verdicts}");
        let text = results.text();
        let table: Vec<&str> = text.lines().skip(2).take(3).collect();
        assert_eq!(
            table,
            [
                "optimizer.learning_rate  seeds  source_validation_rsum   test rSum",
                "0.1                          2             102.0 ± 2.8  66.0 ± 8.5",
                "0.2                          2             111.0 ± 1.4  60.0 ± 8.5",
            ]
        );
    }

    #[test]
    fn without_test_pairs_nothing_is_said_of_recall() {
        let mut runs = results().runs;
        runs.iter_mut().for_each(|run| run.test = None);
        let results = Results::of(vec!["a".into()], runs, Vec::new()).unwrap();
        assert!(results.rank_correlations.is_empty() && !results.text().contains("rSum"));
        assert!(!results.html().unwrap().contains("Spearman"));
    }

    #[test]
    fn the_table_has_a_line_a_run() {
        let csv = results().csv().unwrap();
        assert_eq!(csv.lines().count(), 5);
        assert!(
            csv.starts_with("optimizer.learning_rate,seed,epoch,source_validation_rsum,i2t_r1,"),
            "{csv}"
        );
        assert!(csv.contains("\n0.1,1,3,100,10,10,10,10,10,10,60,1.5,0,0.1/seed-1\n"), "{csv}");
    }
}
