//! Runs side by side: what their folders hold, as a page.

mod page;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use aeir_encoders::bundle::MANIFEST_FILE;
use aeir_retrieve::RetrievalMetrics;
use aeir_train::recorder::Warning;
use aeir_train::run::{
    CONFIG_FILE, EVALUATIONS_FILE, METRICS_FILE, SELECTION_FILE, TIMING_FILE, WARNINGS_FILE,
};
use anyhow::Context;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::chart::{COLOURS, Series, Stroke};
use crate::failure::CliError;

/// The model card.
const CARD_FILE: &str = "README.md";

/// The figures of an epoch by name, as `metrics.jsonl` has them; nested names are joined with a point.
pub(crate) type Figures = BTreeMap<String, f64>;

/// What a run's folder tells.
#[derive(Debug, Serialize)]
pub(crate) struct RunRecord {
    /// The folder's name; where several have the same, its path.
    pub(crate) name: String,
    pub(crate) folder: PathBuf,
    /// Whether it holds a model.
    pub(crate) finished: bool,
    /// Of training; epochs that were done twice count once.
    pub(crate) seconds: Option<f64>,
    /// The epoch that became the model.
    pub(crate) selection: Option<SelectionRecord>,
    pub(crate) evaluations: Vec<Evaluation>,
    pub(crate) warnings: Vec<Warning>,
    /// All settings by dotted key, as the configuration writes them.
    pub(crate) settings: BTreeMap<String, String>,
    #[serde(skip)]
    pub(crate) config: String,
    #[serde(skip)]
    pub(crate) card: Option<String>,
    pub(crate) epochs: Vec<Figures>,
}

/// Which epoch became the model, and by what.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct SelectionRecord {
    /// `selection` of the settings.
    pub(crate) criterion: String,
    /// From 1.
    pub(crate) epoch: usize,
    /// What the criterion saw in it; none where the last epoch was to be taken.
    pub(crate) score: Option<f64>,
}

/// What `aeir eval` measured once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Evaluation {
    /// The test pairs.
    pub(crate) data: PathBuf,
    /// The split of them that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) split: Option<String>,
    /// How many results the head re-ranked, where the model has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) rerank: Option<String>,
    pub(crate) metrics: RetrievalMetrics,
    /// Test sentences in steps of confidence, where a query bank was given.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) reliability: Vec<Reliability>,
}

/// Test sentences by their confidence, which no label went into, and how often they found their image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Reliability {
    pub(crate) above: f64,
    pub(crate) up_to: f64,
    /// Share of the test sentences; where they are of the bank's kind, about `up_to - above`.
    pub(crate) share: f64,
    /// Per cent of them whose own image came first; absent where there are none.
    pub(crate) r1: Option<f64>,
}

impl Evaluation {
    /// Whether it measures the same as another one.
    pub(crate) fn is_like(&self, other: &Self) -> bool {
        (&self.data, &self.split, &self.rerank) == (&other.data, &other.split, &other.rerank)
    }
}

impl RunRecord {
    /// Reads a run's folder, finished or not.
    pub(crate) fn read(folder: &Path) -> anyhow::Result<Self> {
        let Some(config) = text(&folder.join(CONFIG_FILE))? else {
            return Err(CliError::Missing {
                message: format!("`{}` is not a run: no `{CONFIG_FILE}` in it", folder.display()),
                hint: "name the --output folder of an `aeir train`".into(),
            }
            .into());
        };
        let table: toml::Table = config
            .parse()
            .with_context(|| format!("could not read `{}`", folder.join(CONFIG_FILE).display()))?;
        let mut settings = BTreeMap::new();
        flatten_settings("", &toml::Value::Table(table), &mut settings);
        let epochs: Vec<serde_json::Value> = lines(&folder.join(METRICS_FILE))?;
        let timing: Vec<BTreeMap<String, f64>> = lines(&folder.join(TIMING_FILE))?;
        let mut evaluations: Vec<Evaluation> = Vec::new();
        for evaluation in lines::<Evaluation>(&folder.join(EVALUATIONS_FILE))? {
            // The last of its kind counts: the model may be another by now.
            evaluations.retain(|earlier| !earlier.is_like(&evaluation));
            evaluations.push(evaluation);
        }
        let selection = text(&folder.join(SELECTION_FILE))?
            .map(|text| serde_json::from_str(&text))
            .transpose()
            .with_context(|| format!("could not read `{}`", folder.join(SELECTION_FILE).display()))?;
        Ok(Self {
            name: folder
                .file_name()
                .map_or_else(|| folder.display().to_string(), |name| name.to_string_lossy().into_owned()),
            folder: folder.to_owned(),
            finished: folder.join(MANIFEST_FILE).is_file(),
            seconds: timing.iter().map(|line| line.get("seconds").copied()).sum(),
            selection,
            evaluations,
            warnings: lines(&folder.join(WARNINGS_FILE))?,
            settings,
            config,
            card: text(&folder.join(CARD_FILE))?,
            epochs: epochs
                .iter()
                .map(|epoch| {
                    let mut figures = Figures::new();
                    flatten_figures("", epoch, &mut figures);
                    figures
                })
                .collect(),
        })
    }

    /// Several; each gets a name of its own.
    pub(crate) fn read_all(folders: &[PathBuf]) -> anyhow::Result<Vec<Self>> {
        let mut runs = folders.iter().map(|folder| Self::read(folder)).collect::<anyhow::Result<Vec<_>>>()?;
        let names: Vec<String> = runs.iter().map(|run| run.name.clone()).collect();
        for run in &mut runs {
            if names.iter().filter(|name| **name == run.name).count() > 1 {
                run.name = run.folder.display().to_string();
            }
        }
        Ok(runs)
    }

    /// A setting's value without its quotes.
    pub(crate) fn setting(&self, key: &str) -> Option<&str> {
        Some(self.settings.get(key)?.trim_matches('"'))
    }

    /// The figures of the epoch that became the model.
    pub(crate) fn chosen(&self) -> Option<&Figures> {
        let epoch = self.selection.as_ref()?.epoch as f64;
        self.epochs.iter().find(|figures| figures.get("epoch") == Some(&epoch))
    }

    /// A figure over the epochs.
    fn points(&self, figure: &str) -> Vec<(f64, f64)> {
        self.epochs.iter().filter_map(|epoch| Some((*epoch.get("epoch")?, *epoch.get(figure)?))).collect()
    }
}

/// A figure of all runs, a line each, the chosen epoch marked.
pub(crate) fn series(runs: &[RunRecord], figure: &str) -> Vec<Series> {
    runs.iter()
        .zip(COLOURS.iter().cycle())
        .enumerate()
        .map(|(index, (run, colour))| Series {
            name: run.name.clone(),
            colour,
            points: run.points(figure),
            stroke: Stroke::of(index),
            marked: run.selection.as_ref().map(|selection| selection.epoch as f64),
        })
        .collect()
}

/// Every figure that any of the runs recorded, the important ones first.
pub(crate) fn figure_names(runs: &[RunRecord]) -> Vec<String> {
    let recorded: BTreeSet<&String> =
        runs.iter().flat_map(|run| &run.epochs).flat_map(BTreeMap::keys).collect();
    let mut names: Vec<String> =
        recorded.into_iter().filter(|name| !matches!(name.as_str(), "epoch" | "step")).cloned().collect();
    names.sort_by_key(|name| {
        let first =
            ["means.source_loss", "source_validation_rsum", "target_mutual_similarity", "gradient_norm"];
        first.iter().position(|known| known == name).unwrap_or(first.len())
    });
    names
}

/// The figures of an epoch by which epochs and runs may be chosen, the higher the better: none of them sees a label of the target.
///
/// The entropy of the posterior is better when lower. It stands here as `target_posterior_certainty`, minus the entropy, and
/// `target_information` is the diversity less the entropy, as the selections of these names have it.
pub(crate) fn criteria(figures: &Figures) -> Figures {
    const ENTROPY: &str = "target_posterior_entropy";
    let is_criterion = |figure: &str| {
        figure != ENTROPY && ["source_validation", "target_"].iter().any(|start| figure.starts_with(start))
    };
    let mut criteria: Figures = figures
        .iter()
        .filter(|(name, _)| is_criterion(name))
        .map(|(name, value)| (name.clone(), *value))
        .collect();
    if let Some(entropy) = figures.get(ENTROPY) {
        criteria.insert("target_posterior_certainty".to_owned(), -entropy);
        if let Some(diversity) = figures.get("target_posterior_diversity") {
            criteria.insert("target_information".to_owned(), diversity - entropy);
        }
    }
    criteria
}

/// What a figure is called where people read.
pub(crate) fn title(figure: &str) -> String {
    match figure {
        "source_validation_rsum" => "Source validation, rSum".to_owned(),
        "target_mutual_similarity" => {
            "Unpaired target sets: mean CSLS similarity of mutual neighbours".to_owned()
        }
        "gradient_norm" => "Gradient norm of the encoders before clipping".to_owned(),
        _ => {
            let plain = figure.strip_prefix("means.").unwrap_or(figure).replace('_', " ").replace('.', ", ");
            let mut letters = plain.chars();
            letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
        }
    }
}

/// The page.
pub(crate) fn html(runs: &[RunRecord]) -> anyhow::Result<String> {
    page::html(runs)
}

/// Keys whose values differ between runs; a key that a run lacks differs.
pub(crate) fn differing_settings(runs: &[RunRecord]) -> Vec<String> {
    let keys: BTreeSet<&String> = runs.iter().flat_map(|run| run.settings.keys()).collect();
    let differs = |key: &&String| {
        let values: BTreeSet<Option<&String>> = runs.iter().map(|run| run.settings.get(*key)).collect();
        values.len() > 1
    };
    keys.into_iter().filter(differs).cloned().collect()
}

/// A file's text; none where it is not there.
fn text(file: &Path) -> anyhow::Result<Option<String>> {
    match fs::read_to_string(file) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("could not read `{}`", file.display())),
    }
}

/// The lines of a JSON lines file; none where it is not there. A last line without its end is still being written.
fn lines<T: DeserializeOwned>(file: &Path) -> anyhow::Result<Vec<T>> {
    let text = text(file)?.unwrap_or_default();
    text.split_inclusive('\n')
        .filter(|line| line.ends_with('\n'))
        .enumerate()
        .map(|(index, line)| {
            serde_json::from_str(line).map_err(|error| {
                CliError::Data {
                    // It counts lines within this one.
                    message: format!(
                        "`{}`:{}: {}",
                        file.display(),
                        index + 1,
                        error.to_string().replace(" at line 1", " at")
                    ),
                    hint: "the file was changed: remove that line, or train the run again".into(),
                }
                .into()
            })
        })
        .collect()
}

/// Values by dotted key, as TOML writes them.
pub(crate) fn flatten_settings(path: &str, value: &toml::Value, settings: &mut BTreeMap<String, String>) {
    match value {
        toml::Value::Table(table) => {
            for (key, value) in table {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                flatten_settings(&path, value, settings);
            }
        }
        value => {
            settings.insert(path.to_owned(), value.to_string());
        }
    }
}

/// Numbers by their path.
fn flatten_figures(path: &str, value: &serde_json::Value, figures: &mut Figures) {
    if let Some(number) = value.as_f64() {
        figures.insert(path.to_owned(), number);
    }
    for (name, value) in value.as_object().into_iter().flatten() {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        flatten_figures(&path, value, figures);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(folder: &Path, name: &str, learning_rate: &str) -> PathBuf {
        let run = folder.join(name);
        fs::create_dir_all(&run).unwrap();
        let write = |file: &str, text: &str| fs::write(run.join(file), text).unwrap();
        write(CONFIG_FILE, &format!("method = \"aeir\"\n[optimizer]\nlearning_rate = {learning_rate}\n"));
        write(
            METRICS_FILE,
            "{\"epoch\":1,\"step\":5,\"means\":{\"source_loss\":2.5},\"source_validation_rsum\":100.0,\"target_mutual_similarity\":null}\n\
             {\"epoch\":2,\"step\":10,\"means\":{\"source_loss\":1.5},\"source_validation_rsum\":110.5}\n{\"epoch\":3,\"st",
        );
        write(TIMING_FILE, "{\"epoch\":1,\"seconds\":2.5}\n{\"epoch\":2,\"seconds\":1.5}\n");
        write(WARNINGS_FILE, "{\"step\":7,\"message\":\"<b>a critic</b> is stuck\"}\n");
        write(SELECTION_FILE, "{\"criterion\":\"source-validation\",\"epoch\":2,\"score\":110.5}");
        run
    }

    #[test]
    fn a_run_is_read_while_it_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let record = RunRecord::read(&run(folder.path(), "one", "0.1")).unwrap();
        assert_eq!((record.epochs.len(), record.seconds, record.finished), (2, Some(4.0), false));
        assert_eq!(record.epochs[0]["means.source_loss"], 2.5);
        assert!(!record.epochs[0].contains_key("target_mutual_similarity"));
        assert_eq!(record.chosen().unwrap()["source_validation_rsum"], 110.5);
        assert_eq!(record.setting("method"), Some("aeir"));
        assert_eq!(record.warnings[0].step, 7);
        assert!(RunRecord::read(folder.path()).unwrap_err().to_string().contains("not a run"));
    }

    #[test]
    fn every_criterion_is_better_when_higher() {
        let figures = [
            ("epoch", 1.0),
            ("source_validation_rsum", 90.0),
            ("target_posterior_entropy", 0.25),
            ("target_posterior_diversity", 0.75),
        ];
        let found = criteria(&figures.map(|(name, value)| (name.to_owned(), value)).into());
        let expected = [
            ("source_validation_rsum", 90.0),
            ("target_information", 0.5),
            ("target_posterior_certainty", -0.25),
            ("target_posterior_diversity", 0.75),
        ];
        assert_eq!(found, expected.map(|(name, value)| (name.to_owned(), value)).into());
    }

    #[test]
    fn damage_is_told_with_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let run = run(folder.path(), "one", "0.1");
        fs::write(run.join(METRICS_FILE), "{}\nnonsense\n").unwrap();
        let error = RunRecord::read(&run).unwrap_err().to_string();
        assert!(error.contains("metrics.jsonl`:2:"), "{error}");
    }

    #[test]
    fn runs_are_compared_by_what_differs() {
        let folder = tempfile::tempdir().unwrap();
        let folders = [run(folder.path(), "a/one", "0.1"), run(folder.path(), "b/one", "0.2")];
        let runs = RunRecord::read_all(&folders).unwrap();
        assert_ne!(runs[0].name, runs[1].name, "the same folder name twice");
        assert_eq!(differing_settings(&runs), ["optimizer.learning_rate"]);
        let page = html(&runs).unwrap();
        assert!(page.contains("optimizer.learning_rate") && page.contains("0.2"));
        assert!(
            page.contains("&lt;b&gt;a critic") && !page.contains("<b>a critic"),
            "what is quoted is escaped"
        );
        assert!(page.contains("role=\"img\"") && !page.contains("<script") && !page.contains("src=\"http"));
        let single = html(&runs[..1]).unwrap();
        assert!(single.contains("source-validation") && !single.contains("Settings that differ"));
    }

    #[test]
    fn figures_have_names_and_an_order() {
        let folder = tempfile::tempdir().unwrap();
        let runs = [RunRecord::read(&run(folder.path(), "one", "0.1")).unwrap()];
        assert_eq!(figure_names(&runs), ["means.source_loss", "source_validation_rsum"]);
        assert_eq!(title("means.critic_accuracy_images"), "Critic accuracy images");
        assert_eq!(title("domain_distances.images"), "Domain distances, images");
    }
}
