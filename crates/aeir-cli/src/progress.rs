//! Progress of extraction and training as bars.

use aeir_train::features::Progress;
use aeir_train::{EpochRecord, Observer};
use indicatif::ProgressBar;

use crate::interrupt::Interrupt;
use crate::terminal::Terminal;

/// Draws one bar for each set that is encoded.
pub(crate) fn extraction(terminal: &Terminal) -> impl FnMut(Progress<'_>) + Send + '_ {
    let mut current: Option<(String, ProgressBar)> = None;
    move |progress| {
        let Progress { what, done, total, cached } = progress;
        if current.as_ref().is_none_or(|(name, _)| name != what) {
            if let Some((_, bar)) = current.take() {
                bar.finish();
            }
            current = Some((what.to_owned(), terminal.bar(what, total)));
        }
        if let Some((_, bar)) = &current {
            bar.set_position(done as u64);
            if cached > 0 {
                bar.set_message(format!("{cached} from the cache"));
            }
            if done == total {
                bar.finish();
            }
        }
    }
}

/// Draws one bar for each file that is fetched, in mebibytes.
#[cfg(feature = "hub")]
pub(crate) fn download(terminal: &Terminal) -> impl FnMut(aeir_encoders::hub::HubProgress<'_>) + '_ {
    const MEBIBYTE: u64 = 1 << 20;
    let mut current: Option<(String, ProgressBar)> = None;
    move |progress| {
        if current.as_ref().is_none_or(|(name, _)| name != progress.file) {
            if let Some((_, bar)) = current.take() {
                bar.finish();
            }
            let total = progress.total.div_ceil(MEBIBYTE) as usize;
            let bar = terminal.bar(&format!("fetching {}", progress.file), total);
            bar.set_message("MiB");
            current = Some((progress.file.to_owned(), bar));
        }
        if let Some((_, bar)) = &current {
            bar.set_position(progress.done.div_ceil(MEBIBYTE));
            if progress.done == progress.total {
                bar.finish();
            }
        }
    }
}

/// Draws one bar for one training.
pub(crate) struct TrainingBar<'a> {
    terminal: &'a Terminal,
    bar: ProgressBar,
    interrupt: Option<&'a Interrupt>,
}

impl<'a> TrainingBar<'a> {
    pub(crate) fn new(terminal: &'a Terminal, name: &str) -> Self {
        Self { terminal, bar: terminal.bar(name, 0), interrupt: None }
    }

    /// Ends the training when asked to.
    pub(crate) fn stopping_at(self, interrupt: &'a Interrupt) -> Self {
        Self { interrupt: Some(interrupt), ..self }
    }
}

impl Observer for TrainingBar<'_> {
    fn started(&mut self, step: usize, steps: usize) {
        self.bar.set_length(steps as u64);
        self.bar.set_position(step as u64);
        if step > 0 {
            self.terminal.note(&format!("resumed at step {step} of {steps}"));
        }
        if step == steps {
            self.bar.finish();
        }
    }

    fn stepped(&mut self, step: usize) {
        self.bar.set_position(step as u64);
        if self.bar.length() == Some(step as u64) {
            self.bar.finish();
        }
    }

    fn epoch(&mut self, record: &EpochRecord) {
        let loss = record.means.get("source_loss").copied().unwrap_or_default();
        let validation = record
            .source_validation_rsum
            .map_or_else(String::new, |rsum| format!(", source validation rSum {rsum:.1}"));
        self.bar.set_message(format!("loss {loss:.3}{validation}"));
    }

    fn interrupts(&mut self) -> bool {
        self.interrupt.is_some_and(Interrupt::asked)
    }

    fn warning(&mut self, message: &str) {
        self.terminal.warn(message);
    }
}
