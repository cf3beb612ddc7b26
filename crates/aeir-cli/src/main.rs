//! `aeir`: image-sentence retrieval for data without pairs.
//!
//! The door to the workspace: flags, messages, progress and reports. What is computed lives in the crates below.

mod age;
mod backbones;
mod collection;
mod commands;
mod device;
mod failure;
mod flags;
mod host_memory;
mod interrupt;
mod labelled;
mod limits;
mod output_file;
mod place;
mod progress;
mod report;
mod run_files;
mod search_card;
mod search_engine;
mod selftest;
#[cfg(feature = "serve")]
mod serve;
mod shard;
mod temporary_folder;
mod terminal;

use std::process::ExitCode;

use clap::Parser;

use flags::{Command, Flags};

/// A matrix product of fewer multiplications stays on its thread: the towers are small, and handing such a product to another
/// thread costs more than it saves.
const SMALLEST_SHARED_PRODUCT: usize = 1 << 22;

/// Gives our own kernels, image decoding and candle's large operations all cores.
///
/// candle's element-wise operations stay on one thread: its pool for them spins beside ours and gains nothing.
///
/// Without `RAYON_NUM_THREADS` candle reads `/proc/cpuinfo` at every matrix product. A value that the user set bounds all
/// threads, and `--workers` does before it: there is one pool, so that decoding and encoding never have more threads than
/// that together.
fn set_threads(workers: Option<usize>) {
    const VARIABLE: &str = "RAYON_NUM_THREADS";
    let asked = std::env::var(VARIABLE).ok().and_then(|text| text.parse().ok()).filter(|count| *count > 0);
    let cores =
        workers.or(asked).unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    // SAFETY: nothing has started a thread yet.
    unsafe {
        std::env::set_var(VARIABLE, cores.to_string());
        std::env::set_var("CANDLE_NUM_THREADS", "1");
    }
    gemm::set_threading_threshold(SMALLEST_SHARED_PRODUCT);
    // Fails only if the pool exists already, and then it has its threads.
    let _ = rayon::ThreadPoolBuilder::new().num_threads(cores).build_global();
}

/// Lets the C library keep the memory that is freed.
///
/// A training step allocates and frees buffers of many megabytes. By default each is given back to the system and comes as
/// fresh pages that are cleared one by one, which takes a tenth to a fifth of a step.
fn keep_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: only sets parameters of the allocator, before any thread is started.
    unsafe {
        // The largest that is accepted.
        libc::mallopt(libc::M_MMAP_THRESHOLD, 32 << 20);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 1 << 30);
        // The arenas of other threads than the first are small and give memory back whatever the limits.
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

fn main() -> ExitCode {
    keep_memory();
    let flags = Flags::parse();
    set_threads(flags.command.workers());
    let has_budget = flags.command.has_budget();
    let terminal = terminal::Terminal::new(flags.quiet);
    let outcome = match flags.command {
        Command::Convert(flags) => commands::convert::run(&flags, &terminal),
        Command::Demo(flags) => commands::demo::run(&flags, &terminal),
        Command::Train(flags) => commands::train::run(&flags, &terminal),
        Command::Diagnose(flags) => commands::diagnose::run(&flags, &terminal),
        Command::Eval(flags) => commands::eval::run(&flags, &terminal),
        Command::Index(flags) => commands::index::run(&flags, &terminal),
        Command::Search(flags) => commands::search::run(&flags, &terminal),
        #[cfg(feature = "serve")]
        Command::Serve(flags) => commands::serve::run(&flags, terminal),
        Command::Push(flags) => commands::push::run(&flags, &terminal),
        Command::Sweep(flags) => commands::sweep::run(&flags, &terminal),
        Command::Report(flags) => commands::report::run(&flags, &terminal),
        Command::Data(flags) => commands::data::run(&flags, &terminal),
        Command::Pairs(flags) => commands::pairs::run(&flags, &terminal),
        Command::Label(flags) => commands::label::run(&flags, &terminal),
        Command::Embed(flags) => commands::embed::run(&flags, &terminal),
        Command::Bench(flags) => commands::bench::run(&flags, &terminal),
        Command::Selftest(flags) => commands::selftest::run(&flags, &terminal),
        Command::Doctor(flags) => commands::doctor::run(&flags),
        Command::Completions(flags) => commands::shell::completions(&flags),
        Command::Man(flags) => commands::shell::manual(&flags),
        Command::Cache(flags) => commands::cache::run(&flags.command, &terminal),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failure::report(&error, has_budget),
    }
}
