//! One cell of the suites `paper` and `zero-shot`: trained and scored by the binary, its outcome kept in a file.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::Context;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::binary::output;

/// What is run.
pub(super) struct Trial {
    pub(super) suite: &'static str,
    pub(super) scenario: String,
    pub(super) row: String,
    pub(super) seed: u64,
    pub(super) stand_in: bool,
    /// What `aeir train` is given beside seed and output; none where the model is there.
    pub(super) train: Option<Vec<OsString>>,
    /// The settings file among them, whose text decides the outcome too.
    pub(super) config: Option<PathBuf>,
    /// The model that is scored where nothing is trained.
    pub(super) model: PathBuf,
    pub(super) evaluations: Vec<Evaluation>,
    /// Images and sentences to look some up in.
    pub(super) examples: Option<Examples>,
}

/// One way to score.
pub(super) struct Evaluation {
    pub(super) protocol: &'static str,
    /// What `aeir eval` is given beside the model.
    pub(super) arguments: Vec<OsString>,
    /// Of the corrections that it reports, the one whose figures are wanted.
    pub(super) correction: Option<&'static str>,
}

/// A test split whose first sentences are looked up.
pub(super) struct Examples {
    pub(super) images: PathBuf,
    pub(super) sentences: PathBuf,
    /// Sentences an image, one after the other.
    pub(super) each: usize,
}

/// What a cell came to, as it lies on disk.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) suite: String,
    pub(super) scenario: String,
    pub(super) row: String,
    pub(super) seed: u64,
    pub(super) stand_in: bool,
    pub(super) config_sha256: String,
    pub(super) commit: String,
    pub(super) device: String,
    pub(super) seconds: f64,
    pub(super) scores: Vec<Scores>,
    /// Validation on the source, by epoch.
    pub(super) curve: Vec<(f64, f64)>,
    pub(super) examples: Vec<Example>,
}

/// Recall@1, 5, 10 from image to text, then from text to image.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Scores {
    pub(super) protocol: String,
    pub(super) recalls: [f64; 6],
    pub(super) rsum: f64,
}

/// A sentence and what was found for it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Example {
    pub(super) sentence: String,
    /// Rows of the images, and whether one is the sentence's own.
    pub(super) found: Vec<(String, bool)>,
}

/// What all cells are run with.
pub(super) struct Bench<'a> {
    pub(super) binary: &'a Path,
    /// Hash of the binary.
    pub(super) program: &'a str,
    /// Folder of the suite's results.
    pub(super) results: PathBuf,
    pub(super) commit: &'a str,
    pub(super) device: &'a str,
}

const EXAMPLES: usize = 4;
const FOUND: usize = 5;

impl Trial {
    /// The outcome: that of an earlier run with the same program, settings and seed, or a new one. The second value says which.
    pub(super) fn outcome(&self, bench: &Bench<'_>) -> anyhow::Result<(Record, bool)> {
        let identity = self.identity(bench)?;
        let file = bench.results.join(&self.scenario).join(format!("{}-{}.json", self.row, self.seed));
        if let Some(record) = read(&file)?.filter(|record| record.config_sha256 == identity) {
            return Ok((record, false));
        }
        let record = self.run(bench, identity)?;
        let text = serde_json::to_string_pretty(&record)? + "\n";
        // Renamed into place, so that a stop leaves no half of it.
        let unfinished = file.with_extension("tmp");
        std::fs::write(&unfinished, text)
            .and_then(|()| std::fs::rename(&unfinished, &file))
            .with_context(|| format!("could not write `{}`", file.display()))?;
        Ok((record, true))
    }

    /// A hash of what decides the outcome.
    fn identity(&self, bench: &Bench<'_>) -> anyhow::Result<String> {
        let mut hash = Sha256::new();
        let mut add = |part: &[u8]| {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        };
        add(bench.program.as_bytes());
        add(bench.device.as_bytes());
        add(&self.seed.to_le_bytes());
        for argument in
            self.train.iter().flatten().chain(self.evaluations.iter().flat_map(|it| &it.arguments))
        {
            add(argument.as_encoded_bytes());
        }
        add(self.model.as_os_str().as_encoded_bytes());
        if let Some(config) = &self.config {
            add(&std::fs::read(config).with_context(|| format!("could not read `{}`", config.display()))?);
        }
        Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }

    fn run(&self, bench: &Bench<'_>, identity: String) -> anyhow::Result<Record> {
        let started = Instant::now();
        // A run of other settings must not be gone on with.
        let short = identity.get(..8).unwrap_or_default();
        let folder = bench
            .results
            .join(&self.scenario)
            .join("runs")
            .join(format!("{}-{}-{short}", self.row, self.seed));
        std::fs::create_dir_all(folder.parent().unwrap_or(&bench.results))?;
        let model = match &self.train {
            None => self.model.clone(),
            Some(arguments) => {
                let mut train = Command::new(bench.binary);
                train
                    .args(["train", "--quiet", "--resume", "latest", "--device", bench.device])
                    .args(arguments);
                output(train.arg("--seed").arg(self.seed.to_string()).arg("--output").arg(&folder))?;
                folder.clone()
            }
        };
        let scores = self
            .evaluations
            .iter()
            .map(|evaluation| evaluation.scores(&model, bench))
            .collect::<Result<_, _>>()?;
        let examples = match &self.examples {
            Some(examples) => examples.look_up(&model, &folder.with_extension("index"), bench)?,
            None => Vec::new(),
        };
        let curve = curve(&folder.join("metrics.jsonl"));
        if self.stand_in && folder.exists() {
            std::fs::remove_dir_all(&folder)?;
        }
        Ok(Record {
            suite: self.suite.to_owned(),
            scenario: self.scenario.clone(),
            row: self.row.clone(),
            seed: self.seed,
            stand_in: self.stand_in,
            config_sha256: identity,
            commit: bench.commit.to_owned(),
            device: bench.device.to_owned(),
            seconds: started.elapsed().as_secs_f64(),
            scores,
            curve,
            examples,
        })
    }
}

fn read(file: &Path) -> anyhow::Result<Option<Record>> {
    let Ok(text) = std::fs::read_to_string(file) else { return Ok(None) };
    serde_json::from_str(&text).map(Some).with_context(|| format!("`{}`: remove it", file.display()))
}

impl Evaluation {
    fn scores(&self, model: &Path, bench: &Bench<'_>) -> anyhow::Result<Scores> {
        let mut eval = Command::new(bench.binary);
        // Intervals are over seeds here, not over resamples.
        eval.args(["eval", "--quiet", "--json", "--replicates", "1", "--device", bench.device]);
        let printed = output(eval.arg("--model").arg(model).args(&self.arguments))?;
        let printed: Value = serde_json::from_str(&printed).context("what `aeir eval` printed")?;
        let figures = match self.correction {
            Some(correction) => &printed["corrected"][correction],
            None => &printed,
        };
        let recall = |way: &str, at: &str| figures[way][at].as_f64();
        let recalls = || {
            Some([
                recall("i2t", "r1")?,
                recall("i2t", "r5")?,
                recall("i2t", "r10")?,
                recall("t2i", "r1")?,
                recall("t2i", "r5")?,
                recall("t2i", "r10")?,
            ])
        };
        let recalls =
            recalls().with_context(|| format!("`aeir eval` printed no recalls for `{}`", self.protocol))?;
        Ok(Scores { protocol: self.protocol.to_owned(), recalls, rsum: recalls.iter().sum() })
    }
}

impl Examples {
    /// Looks up the first sentences of some images.
    fn look_up(&self, model: &Path, index: &Path, bench: &Bench<'_>) -> anyhow::Result<Vec<Example>> {
        let mut build = Command::new(bench.binary);
        build.args(["index", "--quiet", "--device", bench.device, "--model"]).arg(model);
        output(build.arg("--images").arg(&self.images).arg("--output").arg(index))?;
        let text = std::fs::read_to_string(&self.sentences)
            .with_context(|| format!("could not read `{}`", self.sentences.display()))?;
        let mut examples = Vec::new();
        for (image, sentence) in text.lines().step_by(self.each.max(1)).take(EXAMPLES).enumerate() {
            let mut search = Command::new(bench.binary);
            search
                .args(["search", "--quiet", "--json", "--device", bench.device, "-k"])
                .arg(FOUND.to_string());
            let printed = output(search.arg("--index").arg(index).arg("--").arg(sentence))?;
            let printed: Value = serde_json::from_str(&printed).context("what `aeir search` printed")?;
            let rows = printed["results"].as_array().context("`aeir search` printed no `results`")?;
            let row = |result: &Value| Some(result["path"].as_str()?.rsplit('#').next()?.to_owned());
            let own = image.to_string();
            let found = rows
                .iter()
                .filter_map(row)
                .map(|row| (row == own, row))
                .map(|(own, row)| (row, own))
                .collect();
            examples.push(Example { sentence: sentence.to_owned(), found });
        }
        std::fs::remove_dir_all(index)?;
        Ok(examples)
    }
}

/// Epochs with the source's validation; empty where there was none.
fn curve(metrics: &Path) -> Vec<(f64, f64)> {
    let text = std::fs::read_to_string(metrics).unwrap_or_default();
    let records = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    records.filter_map(|it| Some((it["epoch"].as_f64()?, it["source_validation_rsum"].as_f64()?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trial(row: &str, argument: &str) -> Trial {
        Trial {
            suite: "paper",
            scenario: "s".into(),
            row: row.into(),
            seed: 1,
            stand_in: false,
            train: Some(vec![argument.into()]),
            config: None,
            model: PathBuf::new(),
            evaluations: Vec::new(),
            examples: None,
        }
    }

    #[test]
    fn other_settings_are_another_cell() {
        let bench = |program| Bench {
            binary: Path::new(""),
            program,
            results: PathBuf::new(),
            commit: "",
            device: "cpu",
        };
        let identity = |argument, program| trial("r", argument).identity(&bench(program)).unwrap();
        assert_eq!(identity("a", "p"), identity("a", "p"));
        assert_ne!(identity("a", "p"), identity("b", "p"));
        assert_ne!(identity("a", "p"), identity("a", "q"));
    }

    #[cfg(unix)]
    #[test]
    fn a_cell_is_run_once_and_found_again() {
        use std::os::unix::fs::PermissionsExt;

        let folder = tempfile::tempdir().unwrap();
        let binary = folder.path().join("aeir");
        let way = r#"{"r1":1.0,"r5":2.0,"r10":3.0}"#;
        let script = format!(
            "#!/bin/sh\necho \"$1\" >> '{}/calls'\n[ \"$1\" = eval ] && echo '{{\"i2t\":{way},\"t2i\":{way}}}'\nexit 0\n",
            folder.path().display()
        );
        std::fs::write(&binary, script).unwrap();
        std::fs::set_permissions(&binary, std::fs::Permissions::from_mode(0o755)).unwrap();
        let bench = Bench {
            binary: &binary,
            program: "p",
            results: folder.path().join("results"),
            commit: "c",
            device: "cpu",
        };
        let evaluation = Evaluation { protocol: "1k", arguments: Vec::new(), correction: None };
        let trial = Trial { evaluations: vec![evaluation], ..trial("r", "a") };
        let (record, fresh) = trial.outcome(&bench).unwrap();
        assert!(fresh && record.scores[0].rsum == 12.0);
        let (again, fresh) = trial.outcome(&bench).unwrap();
        assert!(!fresh && again.scores[0].recalls == record.scores[0].recalls);
        assert_eq!(std::fs::read_to_string(folder.path().join("calls")).unwrap(), "train\neval\n");
        std::fs::write(folder.path().join("results/s/r-1.json"), "{").unwrap();
        assert!(trial.outcome(&bench).unwrap_err().to_string().contains("remove it"));
    }
}
