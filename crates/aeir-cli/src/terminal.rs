//! What goes to stderr while a command works: notes, warnings, progress bars.

use std::io::Write;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Writes a line to stderr. Where that is closed or full nobody reads it, which is no reason to stop.
pub(crate) fn say(message: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{message}");
}

/// The stderr side of the terminal. Bars are drawn on a terminal only.
pub(crate) struct Terminal {
    bars: MultiProgress,
    quiet: bool,
}

impl Terminal {
    pub(crate) fn new(quiet: bool) -> Self {
        let target = if quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        Self { bars: MultiProgress::with_draw_target(target), quiet }
    }

    /// Whether nothing but warnings and errors is wanted.
    pub(crate) fn is_quiet(&self) -> bool {
        self.quiet
    }

    /// A line that tells what is going on.
    pub(crate) fn note(&self, message: &str) {
        if !self.quiet {
            self.line(message);
        }
    }

    /// A line that a user should not miss, also with `--quiet`.
    pub(crate) fn warn(&self, message: &str) {
        self.line(&format!("warning: {message}"));
    }

    fn line(&self, message: &str) {
        self.bars.suspend(|| say(message));
    }

    /// A bar with a name, a count and the time left.
    pub(crate) fn bar(&self, name: &str, total: usize) -> ProgressBar {
        self.styled_bar(name, total, "{prefix:32} {bar:30.cyan/dim} {pos:>6}/{len:<6} {eta:>4} {msg}")
    }

    /// A bar of a training: what it tells beside the count needs room.
    pub(crate) fn training_bar(&self, name: &str) -> ProgressBar {
        self.styled_bar(name, 0, "{prefix} {bar:16.cyan/dim} {pos}/{len} {eta} left  {msg}")
    }

    fn styled_bar(&self, name: &str, total: usize, template: &str) -> ProgressBar {
        let bar = self.bars.add(ProgressBar::new(total as u64));
        // The templates are constant: a typing error in one would show in every test that draws a bar.
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("━╸─"));
        }
        bar.set_prefix(name.to_owned());
        bar
    }
}
