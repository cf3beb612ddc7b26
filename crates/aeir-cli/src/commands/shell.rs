//! `aeir completions` and `aeir man`: what `cargo xtask dist` puts into an archive. Hidden: whoever installs the archive has both.

use anyhow::Context;
use clap::CommandFactory;

use super::print;
use crate::flags::{CompletionsFlags, Flags, ManFlags};

/// Prints a completion script.
pub(crate) fn completions(flags: &CompletionsFlags) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(flags.shell, &mut Flags::command(), "aeir", &mut script);
    print(&String::from_utf8(script).context("the script is not UTF-8")?)
}

/// Writes a manual page for each command.
pub(crate) fn manual(flags: &ManFlags) -> anyhow::Result<()> {
    clap_mangen::generate_to(Flags::command(), &flags.output)
        .with_context(|| format!("could not write manual pages into `{}`", flags.output.display()))
}
