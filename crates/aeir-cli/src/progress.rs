//! Progress of extraction and training as bars.

use std::time::{Duration, Instant};

use aeir_train::features::Progress;
use aeir_train::{EpochRecord, Observer, StepRecord};
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

/// Draws one bar for each file on its way from the hub or to it, in mebibytes.
#[cfg(feature = "hub")]
pub(crate) fn transfer<'t>(
    terminal: &'t Terminal,
    what: &'t str,
) -> impl FnMut(aeir_encoders::hub::HubProgress<'_>) + 't {
    const MEBIBYTE: u64 = 1 << 20;
    let mut current: Option<(String, ProgressBar)> = None;
    move |progress| {
        if current.as_ref().is_none_or(|(name, _)| name != progress.file) {
            if let Some((_, bar)) = current.take() {
                bar.finish();
            }
            let total = progress.total.div_ceil(MEBIBYTE) as usize;
            let bar = terminal.bar(&format!("{what} {}", progress.file), total);
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

/// Draws one bar for one training: time left, steps and pairs a second, loss and validation.
pub(crate) struct TrainingBar<'a> {
    terminal: &'a Terminal,
    bar: ProgressBar,
    speed: Speed,
    figures: String,
    interrupt: Option<&'a Interrupt>,
}

impl<'a> TrainingBar<'a> {
    pub(crate) fn new(terminal: &'a Terminal, name: &str) -> Self {
        let bar = terminal.training_bar(name);
        Self { terminal, bar, speed: Speed::new(Instant::now()), figures: String::new(), interrupt: None }
    }

    /// Ends the training when asked to.
    pub(crate) fn stopping_at(self, interrupt: &'a Interrupt) -> Self {
        Self { interrupt: Some(interrupt), ..self }
    }

    fn show(&self) {
        self.bar.set_message(format!("{}{}", self.speed.text, self.figures));
    }
}

impl Observer for TrainingBar<'_> {
    fn started(&mut self, step: usize, steps: usize) {
        self.bar.set_length(steps as u64);
        self.bar.set_position(step as u64);
        // The time left is that of the steps to come, whatever was done before.
        self.bar.reset_eta();
        self.speed = Speed::new(Instant::now());
        if step > 0 {
            self.terminal.note(&format!("resumed at step {step} of {steps}"));
        }
        if step == steps {
            self.bar.finish();
        }
    }

    fn measured(&mut self, record: &StepRecord<'_>) {
        if self.speed.step(record.pairs, Instant::now()) {
            self.show();
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
        self.figures = format!(", loss {loss:.3}{validation}");
        self.show();
    }

    fn interrupts(&mut self) -> bool {
        self.interrupt.is_some_and(Interrupt::asked)
    }

    fn warning(&mut self, message: &str) {
        self.terminal.warn(message);
    }
}

/// Steps and source pairs a second, over stretches of a second.
struct Speed {
    since: Instant,
    steps: usize,
    pairs: usize,
    text: String,
}

impl Speed {
    const STRETCH: Duration = Duration::from_secs(1);

    fn new(now: Instant) -> Self {
        Self { since: now, steps: 0, pairs: 0, text: String::new() }
    }

    /// Counts a step; whether the text is another now.
    fn step(&mut self, pairs: usize, now: Instant) -> bool {
        self.steps += 1;
        self.pairs += pairs;
        let elapsed = now.duration_since(self.since);
        // Something is shown from the first step on.
        if elapsed < Self::STRETCH && !self.text.is_empty() {
            return false;
        }
        let seconds = elapsed.as_secs_f64().max(1e-6);
        let (steps, pairs) = (self.steps as f64 / seconds, self.pairs as f64 / seconds);
        let decimals = if steps < 10.0 { 1 } else { 0 };
        self.text = format!("{steps:.decimals$} steps/s, {pairs:.0} pairs/s");
        (self.since, self.steps, self.pairs) = (now, 0, 0);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speed_is_that_of_the_last_second() {
        let start = Instant::now();
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        let mut speed = Speed::new(start);
        assert!(speed.step(128, at(500)) && speed.text == "2.0 steps/s, 256 pairs/s", "{}", speed.text);
        for step in 1..10 {
            assert!(!speed.step(128, at(500 + step * 100)));
        }
        assert!(speed.step(64, at(1_500)));
        assert_eq!(speed.text, "10 steps/s, 1216 pairs/s");
    }
}
