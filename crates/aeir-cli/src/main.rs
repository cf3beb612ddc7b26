//! `aeir`: image-sentence retrieval for data without pairs.
//!
//! The door to the workspace: flags, messages, progress and reports. What is computed lives in the crates below.

mod backbones;
mod commands;
mod failure;
mod flags;
mod place;
mod progress;
mod report;
mod terminal;

use std::process::ExitCode;

use clap::Parser;

use flags::{Command, Flags};

fn main() -> ExitCode {
    let flags = Flags::parse();
    terminal::start_logging(flags.quiet);
    let terminal = terminal::Terminal::new(flags.quiet);
    let outcome = match flags.command {
        Command::Demo(flags) => commands::demo::run(&flags, &terminal),
        Command::Train(flags) => commands::train::run(&flags, &terminal),
        Command::Eval(flags) => commands::eval::run(&flags, &terminal),
        Command::Index(flags) => commands::index::run(&flags, &terminal),
        Command::Search(flags) => commands::search::run(&flags, &terminal),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failure::report(&error),
    }
}
