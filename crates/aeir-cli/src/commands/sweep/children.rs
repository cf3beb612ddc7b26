//! Runs of this program as child processes, one at a time.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::Context;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use crate::failure::CliError;
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
    stop: Arc<AtomicBool>,
}

impl<'a> Children<'a> {
    /// From now on a signal to end is passed on: nothing goes on training behind the user's back.
    pub(super) fn new(terminal: &'a Terminal) -> anyhow::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            flag::register(signal, Arc::clone(&stop)).context("could not listen for signals")?;
        }
        let program = std::env::current_exe().context("could not find this program's own file")?;
        Ok(Self { program, terminal, stop })
    }

    /// Runs `aeir COMMAND FLAGS`. What it prints to stdout is not shown; its stderr is this one's.
    pub(super) fn run(&self, command: &str, flags: &[String]) -> anyhow::Result<Ended> {
        let mut child = Command::new(&self.program);
        child.arg(command).args(flags).stdin(Stdio::null()).stdout(Stdio::null());
        if self.terminal.is_quiet() {
            child.arg("--quiet");
        }
        let mut child = child.spawn().with_context(|| format!("could not start `{}`", self.program.display()))?;
        let mut told = false;
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if self.stop.load(Ordering::Relaxed) && !told {
                told = true;
                ask_to_end(&mut child);
            }
            thread::sleep(PAUSE);
        };
        if self.stop.load(Ordering::Relaxed) || status.code() == Some(i32::from(crate::failure::INTERRUPTED)) {
            return Err(CliError::Interrupted { hint: "the same `aeir sweep` goes on where it stopped".into() }.into());
        }
        Ok(match status.code() {
            Some(0) => Ended::Well,
            Some(code) => Ended::Failed(code),
            None => anyhow::bail!("`aeir {command}` was ended by a signal ({status}); the same `aeir sweep` goes on"),
        })
    }
}

/// A training saves what it has before it ends. From a terminal it has heard of Ctrl-C already; twice does no harm.
fn ask_to_end(child: &mut Child) {
    #[cfg(unix)]
    if let Ok(process) = libc::pid_t::try_from(child.id()) {
        // SAFETY: sends a signal to a child that has not been waited for: its number is not another's.
        unsafe { libc::kill(process, libc::SIGTERM) };
    }
    #[cfg(not(unix))]
    let _ = child.kill();
}
