//! `cargo xtask labels`: what a few labels are worth, with the fixtures' true pairs in the place of a person.

use std::collections::HashMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use serde_json::{Value, json};

use crate::say;
use crate::tree::workspace_root;

pub(crate) const HELP: &str = "\
cargo xtask labels --binary FILE [--budgets N,..] [--methods NAME,..] [--seeds N]

Trains on noto-cldr for openclipart without labels, plans labels with that model, answers the plan from the true pairs, trains again
with them and scores both on the test pairs. Outcomes are kept in results/labels; a run that was stopped goes on where it was.

  --binary FILE        An `aeir` that is built
  --budgets N,..       Labels [default: 25,50,100,200]
  --methods NAME,..    What is trained [default: source-only,adapt]
  --seeds N            Seeds of training, plan and draw [default: 3]
";

/// What the command line says.
struct Arguments {
    binary: PathBuf,
    budgets: Vec<usize>,
    methods: Vec<String>,
    seeds: u64,
}

impl Arguments {
    fn parse(words: &[&str]) -> anyhow::Result<Self> {
        let (mut binary, mut seeds) = (None, 3);
        let mut budgets = vec![25, 50, 100, 200];
        let mut methods = vec!["source-only".to_owned(), "adapt".to_owned()];
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let value = words.next().with_context(|| format!("`{word}` needs a value\n\n{HELP}"))?;
            match *word {
                "--binary" => binary = Some(std::path::absolute(value)?),
                "--methods" => methods = value.split(',').map(str::to_owned).collect(),
                "--seeds" => seeds = number(word, value)?,
                "--budgets" => {
                    budgets =
                        value.split(',').map(|text| number(word, text)).collect::<anyhow::Result<_>>()?;
                }
                other => bail!("no option `{other}`\n\n{HELP}"),
            }
        }
        Ok(Self { binary: binary.with_context(|| HELP.to_owned())?, budgets, methods, seeds })
    }
}

fn number<T: std::str::FromStr + PartialOrd + From<u8>>(word: &str, text: &str) -> anyhow::Result<T> {
    let number = text.parse().ok().filter(|number| *number >= T::from(1));
    number.with_context(|| format!("{word}: expected 1 or more, got `{text}`"))
}

/// How images are chosen: the shares of a plan that measure.
const CHOICES: [(&str, &str); 2] = [("active", "0"), ("random", "1")];

/// Runs what is missing and prints the table.
pub(crate) fn run(words: &[&str]) -> anyhow::Result<()> {
    if words.is_empty() || words.contains(&"--help") || words.contains(&"-h") {
        return say(HELP);
    }
    let arguments = Arguments::parse(words)?;
    let root = workspace_root()?;
    let bench = Bench::new(&root, &arguments.binary)?;
    std::fs::create_dir_all(&bench.results)?;
    let mut table = String::from("| method | labels | active | random |\n| --- | --- | --- | --- |\n");
    for method in &arguments.methods {
        let mut base = Vec::new();
        for seed in 1..=arguments.seeds {
            base.push(bench.trained(method, seed, "none", None)?);
        }
        let _ = writeln!(table, "| {method} | 0 | {} | |", told(&base));
        for budget in &arguments.budgets {
            let mut row = format!("| {method} | {budget} |");
            for (name, share) in CHOICES {
                let mut rsums = Vec::new();
                for seed in 1..=arguments.seeds {
                    rsums.push(bench.labelled(method, seed, *budget, name, share)?);
                }
                let _ = write!(row, " {} |", told(&rsums));
            }
            let _ = writeln!(table, "{row}");
        }
        let mut all = Vec::new();
        for seed in 1..=arguments.seeds {
            all.push(bench.trained(method, seed, "all", Some(&bench.truth))?);
        }
        let _ = writeln!(table, "| {method} | all {} | {} | |", bench.pairs.len(), told(&all));
    }
    std::fs::write(bench.results.join("report.md"), &table)?;
    say(&table)
}

/// Mean and sample standard deviation.
fn told(values: &[f64]) -> String {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let spread =
        (values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (count - 1.0).max(1.0)).sqrt();
    format!("{mean:.1} ± {spread:.1} ({})", values.len())
}

/// Files of the transfer, and the program.
struct Bench {
    data: PathBuf,
    results: PathBuf,
    binary: PathBuf,
    /// The true pairs as a file of labels.
    truth: PathBuf,
    /// The sentences of each image, by its absolute name.
    pairs: HashMap<String, Value>,
}

impl Bench {
    fn new(root: &Path, binary: &Path) -> anyhow::Result<Self> {
        let data = root.join("fixtures").join("datasets");
        let folder = data.join("openclipart");
        let results = root.join("results").join("labels");
        let mut pairs = HashMap::new();
        for line in read(&folder.join("train_alignment.jsonl"))?.lines() {
            let record: Value = serde_json::from_str(line)?;
            let image = folder.join(record["image"].as_str().context("no `image`")?);
            pairs.insert(image.display().to_string(), record["captions"].clone());
        }
        let truth = folder.join("train_alignment.jsonl");
        Ok(Self { data, results, binary: binary.to_owned(), truth, pairs })
    }

    /// rSum of a model with labels that a plan chose.
    fn labelled(
        &self,
        method: &str,
        seed: u64,
        budget: usize,
        name: &str,
        share: &str,
    ) -> anyhow::Result<f64> {
        let what = format!("{name}-{budget}");
        let stem = self.results.join(format!("{method}-{what}-{seed}"));
        let (plan, pairs) = (stem.with_extension("plan.jsonl"), stem.with_extension("pairs.jsonl"));
        if !stem.with_extension("json").exists() {
            let mut command = self.program("label");
            command.arg("plan").arg("--model").arg(self.model(method, seed)).args(["--measure-share", share]);
            command.arg("--budget").arg(budget.to_string()).arg("--seed").arg(seed.to_string());
            self.with_target(&mut command);
            output(command.arg("--output").arg(&plan))?;
            std::fs::write(&pairs, self.answers(&read(&plan)?)?)?;
        }
        self.trained(method, seed, &what, Some(&pairs))
    }

    /// A person who knows everything. What a plan draws at random is learned from here as well: it stands for labels without a plan.
    fn answers(&self, plan: &str) -> anyhow::Result<String> {
        let answer = |line: &str| {
            let planned: Value = serde_json::from_str(line)?;
            let image = planned["image"].as_str().context("no `image` in the plan")?;
            let captions = self.pairs.get(image).with_context(|| format!("no true pair of `{image}`"))?;
            Ok(json!({ "image": image, "captions": captions, "split": "train" }).to_string() + "\n")
        };
        plan.lines().map(answer).collect()
    }

    /// rSum of a model on the test pairs: read, or trained and written.
    fn trained(&self, method: &str, seed: u64, what: &str, labels: Option<&Path>) -> anyhow::Result<f64> {
        let file = self.results.join(format!("{method}-{what}-{seed}.json"));
        if !file.exists() {
            let model = match labels {
                None => self.model(method, seed),
                Some(_) => self.results.join("model"),
            };
            let mut train = self.program("train");
            train
                .args(["--overwrite", "--method", method, "--standardise"])
                .arg("--seed")
                .arg(seed.to_string());
            train.arg("--source").arg(self.data.join("noto-cldr").join("captions.jsonl"));
            self.with_target(&mut train);
            if let Some(labels) = labels {
                train.arg("--labelled").arg(labels);
            }
            output(train.arg("--output").arg(&model))?;
            let mut eval = self.program("eval");
            eval.arg("--json").arg("--model").arg(&model);
            let printed = output(eval.arg("--data").arg(self.data.join("openclipart").join("test.jsonl")))?;
            std::fs::write(&file, &printed)?;
            say(&format!("{method} / {what} / seed {seed}\n"))?;
        }
        let metrics: Value =
            serde_json::from_str(&read(&file)?).with_context(|| format!("`{}`", file.display()))?;
        metrics["rsum"].as_f64().with_context(|| format!("no rSum in `{}`", file.display()))
    }

    fn model(&self, method: &str, seed: u64) -> PathBuf {
        self.results.join(format!("{method}-{seed}"))
    }

    fn program(&self, command: &str) -> Command {
        let mut program = Command::new(&self.binary);
        program.args(["--quiet", command]);
        program
    }

    fn with_target(&self, command: &mut Command) {
        let folder = self.data.join("openclipart");
        command.arg("--target-images").arg(folder.join("train_images.txt"));
        command.arg("--target-sentences").arg(folder.join("train_sentences.txt"));
    }
}

fn read(file: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(file).with_context(|| format!("could not read `{}`", file.display()))
}

/// What a program printed; its complaint where it failed.
fn output(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output().with_context(|| format!("could not run {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?} failed:\n{}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_is_answered_from_the_true_pairs() {
        let root = workspace_root().unwrap();
        let bench = Bench::new(&root, Path::new("aeir")).unwrap();
        assert_eq!(bench.pairs.len(), 366);
        let image = bench.pairs.keys().min().unwrap();
        let plan = json!({ "image": image, "part": "measure" }).to_string();
        let answer: Value = serde_json::from_str(&bench.answers(&plan).unwrap()).unwrap();
        assert_eq!((&answer["captions"], &answer["split"]), (&bench.pairs[image], &json!("train")));
        assert!(bench.answers(&json!({ "image": "/other.png" }).to_string()).is_err());
    }

    #[test]
    fn arguments_are_read_and_refused_by_name() {
        let found = Arguments::parse(&["--binary", "aeir", "--budgets", "5,7", "--seeds", "2"]).unwrap();
        assert_eq!((found.budgets, found.seeds, found.methods.len()), (vec![5, 7], 2, 2));
        for words in [&["--seeds", "1"][..], &["--binary", "a", "--seeds", "0"], &["--what", "a"]] {
            assert!(Arguments::parse(words).is_err());
        }
        assert_eq!(told(&[1.0, 3.0]), "2.0 ± 1.4 (2)");
    }
}
