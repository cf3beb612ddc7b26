//! How far it is: a bar a file and one for all on a terminal, a line a file elsewhere.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicU64, Ordering};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::complain;

/// All bars.
pub(super) struct Board {
    bars: Option<(MultiProgress, ProgressBar)>,
}

/// One file on its way.
pub(super) struct Meter<'a> {
    board: &'a Board,
    bar: Option<ProgressBar>,
    name: String,
    /// What the bar of all has been told of this file.
    told: AtomicU64,
}

impl Board {
    /// For files that take so many bytes together.
    pub(super) fn new(bytes: u64) -> Self {
        if !std::io::stderr().is_terminal() {
            return Self { bars: None };
        }
        let board = MultiProgress::new();
        let all = board.add(ProgressBar::new(bytes).with_style(style("all")).with_message("all"));
        Self { bars: Some((board, all)) }
    }

    pub(super) fn meter(&self, name: &str) -> Meter<'_> {
        let bar = self.bars.as_ref().map(|(board, all)| {
            let bar = ProgressBar::new(0).with_style(style("file")).with_message(name.to_owned());
            board.insert_before(all, bar)
        });
        Meter { board: self, bar, name: name.to_owned(), told: AtomicU64::new(0) }
    }

    /// A line that stays.
    pub(super) fn say(&self, line: &str) {
        match &self.bars {
            Some((board, _)) => {
                let _ = board.println(line);
            }
            // Nobody is left to tell where stderr is gone.
            None => {
                let _ = complain(&format!("{line}\n"));
            }
        }
    }

    pub(super) fn end(&self) {
        if let Some((_, all)) = &self.bars {
            all.finish_and_clear();
        }
    }
}

fn style(kind: &str) -> ProgressStyle {
    let template = match kind {
        "all" => "{msg:40!} {bytes:>10} of {total_bytes:>10}  {bytes_per_sec:>12}  {eta} left",
        _ => "{msg:40!} {bar:20} {bytes:>10} of {total_bytes:>10}",
    };
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

impl Meter<'_> {
    /// A transfer begins, at a byte of so many.
    pub(super) fn begin(&self, done: u64, total: u64) {
        if let Some(bar) = &self.bar {
            bar.set_length(total);
        }
        self.at(done);
    }

    pub(super) fn at(&self, done: u64) {
        let Some(bar) = &self.bar else { return };
        bar.set_position(done);
        let told = self.told.swap(done, Ordering::Relaxed);
        if let Some((_, all)) = &self.board.bars {
            all.inc(done.saturating_sub(told));
        }
    }

    /// Something that happened to this file.
    pub(super) fn note(&self, text: &str) {
        self.board.say(&format!("{}: {text}", self.name));
    }

    pub(super) fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
