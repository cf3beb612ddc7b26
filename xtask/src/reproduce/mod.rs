//! `cargo xtask reproduce`: tables of results, a cell at a time, by running the `aeir` binary.
//!
//! A suite names transfers and rows; a cell is one row on one transfer with one seed. Each cell's outcome is a file of its own under
//! `results/SUITE/`, so that a run that was stopped goes on where it was, and the report is made of whatever is there.

mod cell;
mod estimate;
mod page;
mod paper;
mod published;
mod report;
mod stand_in;
mod suite;
mod summary;
mod transfer;
mod trial;
mod wide;
mod zero_shot;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use sha2::{Digest, Sha256};

use crate::binary::release;
use crate::say;
use crate::tree::workspace_root;
use cell::{Cell, Outcome};
use suite::{Row, Suite};

pub(crate) const HELP: &str = "\
cargo xtask reproduce [--suite adapt|paper|zero-shot] [--scenario NAME,..] [--methods NAME,..] [--seeds N] [--check]

  --suite NAME         Which tables [default: adapt; with --check all]
                         adapt      the recipe, on the fixtures
                         paper      Flickr30K <-> COCO on region features, and within each, beside published figures
                         zero-shot  CLIP and SigLIP as they are, with a query bank, and adapted
  --scenario NAME,..   These transfers alone
  --methods NAME,..    These rows alone
  --seeds N            Seeds a row [default: adapt: what the suite says; paper: 3, curves 1; zero-shot: 1]
  --data DIR           Where fetched data lie [default: AEIR_ASSETS, else assets]
  --device NAME        cpu, cuda or metal, of the suites paper and zero-shot [default: cpu]
  --estimate           Print what each cell of the suite paper takes, and stop
  --binary FILE        An `aeir` that is built already [default: builds target/release/aeir]
  --report             Of the suite adapt: run nothing, the report of what is there already
  --check              Two epochs and one seed of everything, on small stand-ins: does it all run? Writes to results/check

Results lie in results/SUITE, a file a cell; a run that was stopped goes on where it was. The suites paper and zero-shot are shown in
results/report.md and results/report.html; what was not run says so. docs/reproducing.md says how to come by the data.
";

/// What the command line says.
#[derive(Debug, Default, PartialEq)]
struct Arguments {
    suite: Option<String>,
    scenarios: Vec<String>,
    methods: Vec<String>,
    seeds: Option<u64>,
    binary: Option<PathBuf>,
    data: Option<PathBuf>,
    device: Option<String>,
    estimate: bool,
    report: bool,
    check: bool,
}

impl Arguments {
    fn parse(words: &[&str]) -> anyhow::Result<Self> {
        let mut arguments = Self::default();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let mut value = || words.next().with_context(|| format!("`{word}` needs a value\n\n{HELP}"));
            let list = |text: &str| text.split(',').map(str::to_owned).collect();
            match *word {
                "--suite" => arguments.suite = Some((*value()?).to_owned()),
                "--scenario" => arguments.scenarios = list(value()?),
                "--methods" => arguments.methods = list(value()?),
                "--binary" => arguments.binary = Some(PathBuf::from(value()?)),
                "--data" => arguments.data = Some(PathBuf::from(value()?)),
                "--device" => arguments.device = Some((*value()?).to_owned()),
                "--estimate" => arguments.estimate = true,
                "--report" => arguments.report = true,
                "--check" => arguments.check = true,
                "--seeds" => {
                    let text = value()?;
                    let seeds = text.parse().ok().filter(|seeds| *seeds > 0);
                    arguments.seeds =
                        Some(seeds.with_context(|| format!("--seeds: expected 1 or more, got `{text}`"))?);
                }
                other => bail!("no option `{other}`\n\n{HELP}"),
            }
        }
        Ok(arguments)
    }
}

/// Runs what is missing and writes the report.
pub(crate) fn run(words: &[&str]) -> anyhow::Result<()> {
    if words.contains(&"--help") || words.contains(&"-h") {
        return say(HELP);
    }
    let arguments = Arguments::parse(words)?;
    let root = workspace_root()?;
    let suites = match (arguments.suite.as_deref(), arguments.check) {
        (Some(suite), _) => vec![suite],
        (None, true) => vec!["adapt", "paper", "zero-shot"],
        (None, false) => vec!["adapt"],
    };
    for name in suites {
        match name {
            "paper" => wide::run("paper", &arguments, &root)?,
            "zero-shot" => wide::run("zero-shot", &arguments, &root)?,
            name => adapt(Suite::named(name)?, &arguments, &root)?,
        }
    }
    Ok(())
}

/// The suites on the fixtures.
fn adapt(suite: &'static Suite, arguments: &Arguments, root: &Path) -> anyhow::Result<()> {
    let transfers = chosen(suite.transfers, &arguments.scenarios, "transfer", |transfer| transfer.name)?;
    let rows = chosen(suite.rows, &arguments.methods, "row", |row| row.name)?;
    let binary = match &arguments.binary {
        Some(binary) => binary.clone(),
        None => release(root)?,
    };
    let results = root.join("results").join(if arguments.check { "check" } else { suite.name });
    let commit = commit(root);
    let program = hash_of(&binary)?;
    let mut outcomes = Vec::new();
    for (place, transfer) in transfers.iter().enumerate() {
        let data = transfer.prepare(root, &results)?;
        let digest = data.digest()?;
        // In a check the other transfers show that their data can be made: the rows are the same code.
        let rows =
            if arguments.check && place > 0 { rows.get(..1).unwrap_or_default() } else { rows.as_slice() };
        for row in rows {
            for seed in 1..=seeds(row, arguments) {
                let check = arguments.check;
                let cell =
                    Cell { transfer: transfer.name, row, seed, check, program: &program, data: &digest };
                if arguments.report {
                    outcomes.extend(Outcome::read(&file_of(&cell, &results), &cell)?);
                } else {
                    outcomes.push(outcome(&cell, &data, &binary, &results, &commit)?);
                }
            }
        }
    }
    let report = report::markdown(suite, &outcomes);
    let file = results.join("report.md");
    std::fs::write(&file, &report).with_context(|| format!("could not write `{}`", file.display()))?;
    say(&format!("{report}\nreport  {}\n", file.display()))
}

fn seeds(row: &Row, arguments: &Arguments) -> u64 {
    if arguments.check { 1 } else { arguments.seeds.unwrap_or(row.seeds) }
}

/// Those with the given names, or all.
fn chosen<'a, T>(
    all: &'a [T],
    names: &[String],
    what: &str,
    name_of: fn(&T) -> &'static str,
) -> anyhow::Result<Vec<&'a T>> {
    if let Some(unknown) = names.iter().find(|name| all.iter().all(|item| name_of(item) != name.as_str())) {
        let known: Vec<&str> = all.iter().map(name_of).collect();
        bail!("no {what} `{unknown}`; there are {}", known.join(", "));
    }
    Ok(all.iter().filter(|item| names.is_empty() || names.iter().any(|name| name == name_of(item))).collect())
}

/// Where a cell's outcome is kept.
fn file_of(cell: &Cell<'_>, results: &Path) -> PathBuf {
    results.join(cell.transfer).join(format!("{}-{}.json", cell.row.name, cell.seed))
}

/// What the cell came to: read, or run and written.
fn outcome(
    cell: &Cell<'_>,
    data: &transfer::Files,
    binary: &Path,
    results: &Path,
    commit: &str,
) -> anyhow::Result<Outcome> {
    let file = file_of(cell, results);
    if let Some(outcome) = Outcome::read(&file, cell)? {
        return Ok(outcome);
    }
    say(&format!("{} / {} / seed {} ", cell.transfer, cell.row.name, cell.seed))?;
    let outcome = cell.run(data, binary, results, commit)?;
    outcome.write(&file)?;
    say(&format!("rSum {:.1}, {:.0} s\n", outcome.rsum, outcome.seconds))?;
    Ok(outcome)
}

/// SHA-256 of a program.
fn hash_of(binary: &Path) -> anyhow::Result<String> {
    let program = std::fs::read(binary).with_context(|| format!("could not read `{}`", binary.display()))?;
    Ok(Sha256::digest(program).iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The commit that is checked out; unknown outside a repository.
fn commit(root: &Path) -> String {
    let output = Command::new("git").args(["rev-parse", "HEAD"]).current_dir(root).output();
    match output {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        _ => "unknown".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_read_and_refused_by_name() {
        let words = ["--suite", "adapt", "--methods", "adapt,oracle", "--seeds", "2", "--check"];
        let found = Arguments::parse(&words).unwrap();
        assert_eq!(found.methods, ["adapt", "oracle"]);
        assert_eq!((found.seeds, found.check, found.suite.as_deref()), (Some(2), true, Some("adapt")));
        for (words, part) in [(&["--seeds", "0"][..], "0"), (&["--seeds"], "value"), (&["--sede"], "--sede")]
        {
            let error = Arguments::parse(words).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn an_unknown_row_is_named_with_those_there_are() {
        let suite = Suite::named("adapt").unwrap();
        let error = chosen(suite.rows, &["adopt".into()], "row", |row| row.name).err().unwrap().to_string();
        assert!(error.contains("adopt") && error.contains("source-only"), "{error}");
        assert_eq!(chosen(suite.rows, &[], "row", |row| row.name).unwrap().len(), suite.rows.len());
        assert!(Suite::named("other").is_err());
    }
}
