//! Notices critics that no longer play.

use std::collections::BTreeMap;

use crate::method::CRITIC_ACCURACIES;

/// Epochs in a row after which a critic counts as stuck.
const EPOCHS: usize = 5;
/// From this accuracy on the critic has won.
const WON: f64 = 0.98;
/// Within this of one half the critic knows nothing.
const CHANCE: f64 = 0.02;

/// Follows the critics' accuracies over the epochs of this process.
#[derive(Debug, Default)]
pub(crate) struct CriticWatch {
    /// For each modality how long it has been how.
    state: [(Stuck, usize); 2],
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Stuck {
    #[default]
    No,
    Won,
    Chance,
}

impl CriticWatch {
    /// Takes an epoch's means; a warning when a critic has been stuck for some epochs, once each time.
    pub(crate) fn epoch(&mut self, means: &BTreeMap<String, f64>) -> Option<String> {
        let mut warning = None;
        for ((state, epochs), name) in self.state.iter_mut().zip(CRITIC_ACCURACIES) {
            let Some(accuracy) = means.get(name) else { continue };
            let now = match *accuracy {
                accuracy if accuracy >= WON => Stuck::Won,
                accuracy if (accuracy - 0.5).abs() <= CHANCE => Stuck::Chance,
                _ => Stuck::No,
            };
            *epochs = if now == *state { *epochs + 1 } else { 1 };
            *state = now;
            if *epochs != EPOCHS {
                continue;
            }
            let told = match now {
                Stuck::No => continue,
                Stuck::Won => format!(
                    "`{name}` has been at {accuracy:.2} for {EPOCHS} epochs: the critic tells the domains apart whatever the \
                     encoders do; lower `adaptation.critic_learning_rate`, or raise the adversarial weight \
                     (`aeir.semantic_weight`, `adaptation.weight`)"
                ),
                Stuck::Chance => format!(
                    "`{name}` has been at {accuracy:.2} for {EPOCHS} epochs, which is chance: either the domains look alike by \
                     now, or the critic never learned; raise `adaptation.critic_learning_rate` and see whether it stays there"
                ),
            };
            warning =
                Some(warning.map_or_else(|| told.clone(), |before: String| format!("{before}\n{told}")));
        }
        warning
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn means(images: f64, sentences: f64) -> BTreeMap<String, f64> {
        CRITIC_ACCURACIES.iter().map(|name| (*name).to_owned()).zip([images, sentences]).collect()
    }

    #[test]
    fn a_stuck_critic_is_told_once_with_the_knob() {
        let mut watch = CriticWatch::default();
        let told: Vec<Option<String>> = (0..12).map(|_| watch.epoch(&means(0.99, 0.7))).collect();
        assert_eq!(told.iter().flatten().count(), 1);
        let warning = told[4].as_ref().unwrap();
        assert!(
            warning.contains("critic_accuracy_images") && warning.contains("adaptation.critic_learning_rate")
        );
        // Once it moves, it may get stuck again.
        assert!(watch.epoch(&means(0.8, 0.7)).is_none());
        let again = (0..5).filter_map(|_| watch.epoch(&means(0.5, 0.51))).collect::<Vec<_>>();
        assert_eq!(again.len(), 1);
        assert!(again[0].contains("images") && again[0].contains("sentences") && again[0].contains("chance"));
    }

    #[test]
    fn a_run_without_critics_is_quiet() {
        let mut watch = CriticWatch::default();
        assert!((0..9).all(|_| watch.epoch(&BTreeMap::new()).is_none()));
    }
}
