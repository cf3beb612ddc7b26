//! `cargo xtask`: automation of this workspace.

mod binary;
mod cuda;
mod dist;
mod docs;
mod fetch;
mod fixtures;
mod gpu_check;
mod labels;
mod manifest;
mod reproduce;
mod rules;
mod source;
#[cfg(test)]
mod stand_alone;
mod tidy;
mod tree;
mod violation;

use std::io::Write;
use std::process::ExitCode;

const HELP: &str = "\
cargo xtask COMMAND

Commands:
  tidy      Check the house rules; exits with 1 and lists what to do where one is broken
  cuda      Build the program for CUDA, without a card or a toolkit; `cuda build --help`
  dist      Build an archive to give away: program, completions, manual pages; `dist --help`
  docs      Write docs/cli.md and docs/config.md by running the program; `docs --help`
  fetch     Fetch backbones and data sets, or list them; `fetch --help`
  fixtures  Write fixtures/MANIFEST.sha256 anew from the files that are there
  gpu-check Check a GPU and time our work on it beside PyTorch; `gpu-check --help`
  labels    What a few labels are worth on the fixtures; `labels --help`
  reproduce Run the tables of results, cell by cell, and write the report; `reproduce --help`
  help      Print this
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [] | ["help" | "--help" | "-h"] => say(HELP).map(|()| ExitCode::SUCCESS),
        ["tidy"] => tidy::run(),
        ["cuda", rest @ ..] => cuda::run(rest),
        ["dist", rest @ ..] => dist::run(rest).map(|()| ExitCode::SUCCESS),
        ["docs", rest @ ..] => docs::run(rest),
        ["fetch", rest @ ..] => fetch::run(rest),
        ["reproduce", rest @ ..] => reproduce::run(rest).map(|()| ExitCode::SUCCESS),
        ["gpu-check", rest @ ..] => gpu_check::run(rest).map(|()| ExitCode::SUCCESS),
        ["labels", rest @ ..] => labels::run(rest).map(|()| ExitCode::SUCCESS),
        ["fixtures"] => fixtures::run().map(|()| ExitCode::SUCCESS),
        other => complain(&format!("error: no command `{}`\n\n{HELP}", other.join(" ")))
            .map(|()| ExitCode::from(2)),
    };
    outcome.unwrap_or_else(|error| {
        // Nobody is left to tell where stderr is gone.
        let _ = complain(&format!("error: {error:#}\n"));
        ExitCode::FAILURE
    })
}

/// Writes to stdout.
fn say(text: &str) -> anyhow::Result<()> {
    Ok(std::io::stdout().lock().write_all(text.as_bytes())?)
}

/// Writes to stderr.
fn complain(text: &str) -> anyhow::Result<()> {
    Ok(std::io::stderr().lock().write_all(text.as_bytes())?)
}
