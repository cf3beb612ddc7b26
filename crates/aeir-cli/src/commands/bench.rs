//! `aeir bench`: how fast this machine does our work, beside its own matrix product.
//!
//! Seconds of different machines, or of one machine on different days, say little. Time a peer in the same run and compare.

mod data;
mod encode;
mod search;
mod serve;
mod train;

use crate::flags::{BenchCommand, BenchFlags};
use crate::terminal::Terminal;

/// Times what the flags name.
pub(crate) fn run(flags: &BenchFlags, terminal: &Terminal) -> anyhow::Result<()> {
    match &flags.work {
        BenchCommand::Data(flags) => data::run(flags, terminal),
        BenchCommand::Serve(flags) => serve::run(flags),
        BenchCommand::Encode(flags) => encode::run(flags, terminal),
        BenchCommand::Train(flags) => train::run(flags, terminal),
        BenchCommand::Search(flags) => search::run(flags, terminal),
    }
}
