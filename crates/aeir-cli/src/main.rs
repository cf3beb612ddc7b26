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

/// Gives our own kernels and image decoding all cores, and candle's operations one thread.
///
/// The towers are small: handing their operations to other threads costs more than it saves, and without
/// `RAYON_NUM_THREADS` candle reads `/proc/cpuinfo` at every matrix product. A value that the user set bounds our own
/// threads.
fn set_threads() {
    const VARIABLE: &str = "RAYON_NUM_THREADS";
    let asked = std::env::var(VARIABLE).ok().and_then(|text| text.parse().ok()).filter(|count| *count > 0);
    let cores = asked.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    // SAFETY: nothing has started a thread yet.
    unsafe { std::env::set_var(VARIABLE, "1") };
    // Fails only if the pool exists already, and then it has its threads.
    let _ = rayon::ThreadPoolBuilder::new().num_threads(cores).build_global();
}

fn main() -> ExitCode {
    set_threads();
    let flags = Flags::parse();
    let terminal = terminal::Terminal::new(flags.quiet);
    let outcome = match flags.command {
        Command::Convert(flags) => commands::convert::run(&flags, &terminal),
        Command::Demo(flags) => commands::demo::run(&flags, &terminal),
        Command::Train(flags) => commands::train::run(&flags, &terminal),
        Command::Eval(flags) => commands::eval::run(&flags, &terminal),
        Command::Index(flags) => commands::index::run(&flags, &terminal),
        Command::Search(flags) => commands::search::run(&flags, &terminal),
        Command::Data(flags) => commands::data::run(&flags, &terminal),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failure::report(&error),
    }
}
