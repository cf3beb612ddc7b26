//! Runs of this program as child processes, one at a time.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::Context;

use crate::failure::CliError;
use crate::interrupt::{INTERRUPTED, Interrupt};
use crate::terminal::Terminal;

/// Between looks at the child.
const PAUSE: Duration = Duration::from_millis(50);

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    Well,
    /// With this exit code.
    Failed(i32),
}

/// Starts children, and ends them where this process is asked to end.
pub(super) struct Children<'a> {
    program: PathBuf,
    terminal: &'a Terminal,
    interrupt: Interrupt,
}

impl<'a> Children<'a> {
    /// From now on a signal to end is passed on: nothing goes on training behind the user's back.
    pub(super) fn new(terminal: &'a Terminal) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("could not find this program's own file")?;
        Ok(Self { program, terminal, interrupt: Interrupt::listen()? })
    }

    /// Runs `aeir COMMAND FLAGS`. What it prints to stdout is not shown; its stderr is this one's.
    pub(super) fn run(&self, command: &str, flags: &[String]) -> anyhow::Result<Ended> {
        let mut child = Command::new(&self.program);
        child.arg(command).args(flags).stdin(Stdio::null()).stdout(Stdio::null());
        if self.terminal.is_quiet() {
            child.arg("--quiet");
        }
        // In a group of its own a terminal's Ctrl-C does not reach it: it hears of it from here, once. Twice would end it at once.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut child, 0);
        let mut child =
            child.spawn().with_context(|| format!("could not start `{}`", self.program.display()))?;
        let mut told = false;
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if self.interrupt.asked() && !told {
                told = true;
                ask_to_end(&mut child);
            }
            thread::sleep(PAUSE);
        };
        if self.interrupt.asked() || status.code() == Some(i32::from(INTERRUPTED)) {
            return Err(CliError::Interrupted {
                hint: "the same `aeir sweep` goes on where it stopped".into(),
            }
            .into());
        }
        Ok(match status.code() {
            Some(0) => Ended::Well,
            Some(code) => Ended::Failed(code),
            None => anyhow::bail!(
                "`aeir {command}` was ended by a signal ({status}); the same `aeir sweep` goes on"
            ),
        })
    }
}

/// A training saves what it has before it ends.
fn ask_to_end(child: &mut Child) {
    #[cfg(unix)]
    if let Ok(process) = libc::pid_t::try_from(child.id()) {
        // SAFETY: sends a signal to a child that has not been waited for: its number is not another's.
        unsafe { libc::kill(process, libc::SIGTERM) };
    }
    #[cfg(not(unix))]
    let _ = child.kill();
}
