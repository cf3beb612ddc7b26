//! `aeir sweep`: listed settings and seeds, one run after another, and one table.

mod children;
mod plan;
mod results;

use std::path::{Path, PathBuf};

use aeir_encoders::bundle::MANIFEST_FILE;
use aeir_encoders::write_atomically;
use anyhow::Context;
use serde::Serialize;

use super::report::write_page;
use super::{print, print_json};
use crate::failure::CliError;
use crate::flags::runs::SweepFlags;
use crate::report::runs::RunRecord;
use crate::terminal::Terminal;
use children::{Children, Ended};
use plan::{Cell, Plan};
use results::Results;

/// A line a run.
const TABLE_FILE: &str = "sweep.csv";
const JSON_FILE: &str = "sweep.json";
const PAGE_FILE: &str = "sweep.html";

/// A run that is to be made.
#[derive(Serialize)]
struct Planned<'a> {
    folder: &'a PathBuf,
    values: &'a [String],
    seed: u64,
    finished: bool,
}

/// Trains what is not trained yet, scores it, and writes the table.
pub(crate) fn run(flags: &SweepFlags, terminal: &Terminal) -> anyhow::Result<()> {
    let plan = Plan::read(&flags.sweep, flags.output.as_deref())?;
    if flags.dry_run {
        return list(&plan, flags.json);
    }
    plan.claim()?;
    let children = Children::new(terminal)?;
    let mut failed = Vec::new();
    for (number, cell) in plan.cells.iter().enumerate() {
        let what = format!("run {} of {}: {}", number + 1, plan.cells.len(), cell.name());
        if let Some(reason) = one(&plan, cell, &what, &children, terminal)? {
            terminal.warn(&format!("{what} failed: {reason}"));
            failed.push((cell.folder.clone(), reason));
        }
    }
    let results = Results::collect(&plan, &failed)?;
    write(&plan.output.join(TABLE_FILE), &results.csv()?)?;
    write(&plan.output.join(JSON_FILE), &(serde_json::to_string_pretty(&results)? + "\n"))?;
    let page = plan.output.join(PAGE_FILE);
    write_page(&page, &results.html()?)?;
    if flags.json {
        print_json(&results)?;
    } else {
        print(&format!("{}\nreport  {}\n", results.text(), page.display()))?;
    }
    match failed.len() {
        0 => Ok(()),
        count => anyhow::bail!("{count} of {} runs failed: the table has the others", plan.cells.len()),
    }
}

/// Makes a run whole; a reason where it failed in a way that is its own.
fn one(
    plan: &Plan,
    cell: &Cell,
    what: &str,
    children: &Children<'_>,
    terminal: &Terminal,
) -> anyhow::Result<Option<String>> {
    if cell.folder.join(MANIFEST_FILE).is_file() {
        terminal.note(&format!("{what}: finished already"));
    } else {
        terminal.note(what);
        if let Ended::Failed(code) = children.run("train", &cell.flags)? {
            return failure("aeir train", code);
        }
    }
    let (Some(flags), Some(test)) = (&plan.eval, &plan.test) else { return Ok(None) };
    if results::evaluation(&RunRecord::read(&cell.folder)?, test).is_some() {
        return Ok(None);
    }
    let mut flags = flags.clone();
    flags.push(format!("--model={}", cell.folder.display()));
    match children.run("eval", &flags)? {
        Ended::Failed(code) => failure("aeir eval", code),
        Ended::Well => Ok(None),
    }
}

/// A training that diverges is a result. What is wrong with flags, data or encoders is wrong for all runs.
fn failure(command: &str, code: i32) -> anyhow::Result<Option<String>> {
    if code == i32::from(crate::failure::FAILED) {
        return Ok(Some(format!("`{command}` says why above")));
    }
    Err(CliError::Child {
        command: command.to_owned(),
        code: u8::try_from(code).unwrap_or(crate::failure::FAILED),
    }
    .into())
}

fn list(plan: &Plan, json: bool) -> anyhow::Result<()> {
    let planned: Vec<Planned<'_>> = plan
        .cells
        .iter()
        .map(|cell| Planned {
            folder: &cell.folder,
            values: &cell.values,
            seed: cell.seed,
            finished: cell.folder.join(MANIFEST_FILE).is_file(),
        })
        .collect();
    if json {
        return print_json(&planned);
    }
    let finished = planned.iter().filter(|run| run.finished).count();
    let mut text = format!("{} runs, {finished} of them finished\n", planned.len());
    for run in planned {
        let state = if run.finished { "finished  " } else { "to train  " };
        text.push_str(&format!("{state}{}\n", run.folder.display()));
    }
    print(&text)
}

fn write(file: &Path, text: &str) -> anyhow::Result<()> {
    write_atomically(file, text.as_bytes()).with_context(|| format!("could not write `{}`", file.display()))
}
