//! `aeir report`.

use std::path::{Path, PathBuf};

use aeir_encoders::write_atomically;
use aeir_train::run::REPORT_FILE;
use anyhow::Context;
use serde::Serialize;

use super::{print, print_json};
use crate::flags::runs::ReportFlags;
use crate::output_file;
use crate::report::is_ours;
use crate::report::runs::{RunRecord, html};
use crate::terminal::Terminal;

#[derive(Serialize)]
struct Written {
    /// The page, where one was written.
    report: Option<PathBuf>,
    runs: Vec<RunRecord>,
}

/// Writes a page about runs.
pub(crate) fn run(flags: &ReportFlags, _terminal: &Terminal) -> anyhow::Result<()> {
    let runs = RunRecord::read_all(&flags.runs)?;
    if flags.json && flags.output.is_none() {
        return print_json(&Written { report: None, runs });
    }
    let report = flags.output.clone().unwrap_or_else(|| match flags.runs.as_slice() {
        [run] => run.join(REPORT_FILE),
        _ => PathBuf::from(REPORT_FILE),
    });
    write_page(&report, &html(&runs)?)?;
    if flags.json {
        return print_json(&Written { report: Some(report), runs });
    }
    print(&format!("report  {}\n", report.display()))
}

/// Writes a page; one of our own is replaced, another file is not.
pub(crate) fn write_page(file: &Path, page: &str) -> anyhow::Result<()> {
    output_file::check(file, "a report", is_ours)?;
    write_atomically(file, page.as_bytes()).with_context(|| format!("could not write `{}`", file.display()))
}
