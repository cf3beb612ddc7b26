//! One file a command.

pub(crate) mod bench;
pub(crate) mod cache;
pub(crate) mod convert;
pub(crate) mod data;
pub(crate) mod demo;
pub(crate) mod diagnose;
pub(crate) mod doctor;
mod dry_run;
pub(crate) mod embed;
pub(crate) mod eval;
pub(crate) mod index;
pub(crate) mod label;
pub(crate) mod pairs;
mod pretrained;
pub(crate) mod push;
pub(crate) mod report;
pub(crate) mod search;
pub(crate) mod selftest;
#[cfg(feature = "serve")]
pub(crate) mod serve;
pub(crate) mod shell;
pub(crate) mod sweep;
pub(crate) mod train;

use std::io::Write;
use std::path::Path;

use aeir_data::{DecodedImage, ImageLimits, Skipped, decode_file};
use anyhow::Context;
use serde::Serialize;

use crate::terminal::Terminal;

/// Writes to stdout. A reader that has gone away (`| head`) is no failure.
fn print(text: &str) -> anyhow::Result<()> {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        written => written.context("could not write to stdout"),
    }
}

/// Writes one JSON object to stdout.
fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    print(&(serde_json::to_string(value)? + "\n"))
}

/// Says on stderr what was left out, the first few by name, and where the whole list is.
fn tell_skipped(terminal: &Terminal, skipped: &[Skipped], list: Option<&Path>) {
    const SHOWN: usize = 5;
    if skipped.is_empty() {
        return;
    }
    let where_all = list.map_or_else(String::new, |list| format!("; all of them in `{}`", list.display()));
    let items = if skipped.len() == 1 { "item was" } else { "items were" };
    terminal.warn(&format!("{} {items} skipped{where_all}", skipped.len()));
    for Skipped { item, line, file, reason } in skipped.iter().take(SHOWN) {
        let place = match (file, line) {
            (Some(file), Some(line)) => format!("{}:{line}: ", file.display()),
            _ => String::new(),
        };
        let item = match line {
            None => format!("`{item}`: "),
            // An empty line has no name.
            Some(_) if item.is_empty() => String::new(),
            Some(_) => format!("{item}: "),
        };
        terminal.warn(&format!("  {place}{item}{reason}"));
    }
    if skipped.len() > SHOWN {
        terminal.warn(&format!("  and {} more", skipped.len() - SHOWN));
    }
}

/// Decodes the image of a query.
fn decode_query(path: &Path) -> anyhow::Result<DecodedImage> {
    Ok(decode_file(path, &ImageLimits::default())?)
}
