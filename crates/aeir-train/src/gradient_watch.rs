//! Notices gradients that explode.

/// Steps whose norms say what is usual.
const WINDOW: usize = 100;
/// Steps before anything is said: the first norms of a run are not usual.
const FEWEST: usize = 20;
/// Times the median from which a norm counts as exploded.
const FACTOR: f64 = 30.0;
/// Exploded norms within a window after which there is a warning: a single one is an odd batch.
const SPIKES: usize = 3;
/// Times the median of the first window that the present one may grow to, however slowly.
const DRIFT: f64 = 100.0;

/// Follows the encoders' gradient norms over the steps of this process.
#[derive(Debug)]
pub(crate) struct GradientWatch {
    /// 0: gradients are not clipped.
    clip_norm: f64,
    /// The last norms, as a ring.
    norms: Vec<f64>,
    next: usize,
    /// The median of the first whole window.
    first_median: Option<f64>,
    /// The largest usual norm up to then. Late in a run norms may be next to nothing, and one like the first is no explosion.
    ceiling: f64,
    spikes: usize,
    /// Steps since a spike, or since the last warning.
    calm: usize,
    warned: bool,
}

impl GradientWatch {
    /// Says in its warnings whether gradients are clipped, and at what.
    pub(crate) fn new(clip_norm: f64) -> Self {
        Self {
            clip_norm,
            norms: Vec::with_capacity(WINDOW),
            next: 0,
            first_median: None,
            ceiling: 0.0,
            spikes: 0,
            calm: 0,
            warned: false,
        }
    }

    /// Takes the norm of `step` (from 1); a warning where norms explode, once until they have been calm for a while.
    ///
    /// Steps without a gradient (a loss of 0, a method in closed form) don't count.
    pub(crate) fn step(&mut self, step: usize, norm: f64) -> Option<String> {
        if norm <= 0.0 {
            return None;
        }
        let median = (self.norms.len() >= FEWEST).then(|| self.median());
        if self.first_median.is_none() && self.norms.len() == WINDOW {
            self.first_median = median;
        }
        let usual = median.filter(|median| norm > FACTOR * median && norm > self.ceiling);
        let drifted = self.first_median.filter(|first| median.is_some_and(|median| median > DRIFT * first));
        self.remember(norm);
        if usual.is_none() && drifted.is_none() {
            if self.first_median.is_none() {
                self.ceiling = self.ceiling.max(norm);
            }
            self.calm += 1;
            if self.calm >= WINDOW {
                (self.spikes, self.warned) = (0, false);
            }
            return None;
        }
        self.calm = 0;
        self.spikes += 1;
        if self.warned || self.spikes < SPIKES {
            return None;
        }
        self.warned = true;
        Some(self.message(step, norm, usual, drifted))
    }

    fn message(&self, step: usize, norm: f64, usual: Option<f64>, drifted: Option<f64>) -> String {
        let compared = match (usual, drifted) {
            (None, Some(first)) => {
                format!(
                    "{:.0} times what it was in the run's first {WINDOW} steps ({first:.3})",
                    norm / first
                )
            }
            (usual, _) => {
                let median = usual.unwrap_or(norm);
                format!("{:.0} times the median of the steps before ({median:.3})", norm / median)
            }
        };
        let knob = if self.clip_norm > 0.0 {
            format!(
                "it is clipped to `optimizer.clip_norm` = {}, but the direction of such a step says little: lower \
                 `optimizer.learning_rate` (--lr)",
                self.clip_norm
            )
        } else {
            "lower `optimizer.learning_rate` (--lr), or set `optimizer.clip_norm` (2 is usual; now gradients are not clipped)"
                .to_owned()
        };
        format!("the encoders' gradient norm explodes: {norm:.3} at step {step}, {compared}; {knob}")
    }

    fn remember(&mut self, norm: f64) {
        match self.norms.get_mut(self.next) {
            Some(oldest) => *oldest = norm,
            None => self.norms.push(norm),
        }
        self.next = (self.next + 1) % WINDOW;
    }

    fn median(&self) -> f64 {
        let mut sorted = self.norms.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() / 2).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn warnings(watch: &mut GradientWatch, norms: impl IntoIterator<Item = f64>) -> Vec<String> {
        norms.into_iter().enumerate().filter_map(|(index, norm)| watch.step(index + 1, norm)).collect()
    }

    /// Norms that vary by a factor of 3, as batches do.
    fn usual(count: usize) -> impl Iterator<Item = f64> {
        (0..count).map(|step| 1.0 + (step * 7 % 5) as f64 / 2.0)
    }

    #[test]
    fn an_explosion_is_told_once_with_the_knob() {
        let mut watch = GradientWatch::new(0.0);
        let norms = usual(60).chain((0..10).map(|step| 100.0 * f64::from(1 << step)));
        let told = warnings(&mut watch, norms);
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].contains("step 63") && told[0].contains("optimizer.clip_norm"), "{told:?}");
        // Calm again, it may explode again.
        assert!(warnings(&mut watch, usual(250)).is_empty());
        assert_eq!(warnings(&mut watch, [1e4; 5]).len(), 1);
    }

    #[test]
    fn a_slow_rise_is_told_too() {
        let mut watch = GradientWatch::new(2.0);
        let told = warnings(&mut watch, (0..800).map(|step| 1.01_f64.powi(step)));
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(
            told[0].contains("first 100 steps") && told[0].contains("`optimizer.clip_norm` = 2"),
            "{told:?}"
        );
    }

    #[test]
    fn single_spikes_and_a_decay_are_quiet() {
        let mut watch = GradientWatch::new(0.0);
        let spiked = usual(500).enumerate().map(|(step, norm)| if step % 60 == 59 { 50.0 } else { norm });
        assert!(warnings(&mut watch, spiked.take(130)).is_empty());
        assert!(warnings(&mut GradientWatch::new(0.0), (0..500).map(|step| 0.98_f64.powi(step))).is_empty());
        let converged = usual(200).chain((0..300).map(|step| if step % 10 == 0 { 2.0 } else { 1e-4 }));
        assert!(warnings(&mut GradientWatch::new(0.0), converged).is_empty(), "large beside next to nothing");
        assert!(warnings(&mut GradientWatch::new(0.0), [0.0; 300]).is_empty(), "no gradients at all");
    }
}
