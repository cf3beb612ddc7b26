//! Notices a ranking loss that no longer ranks.

use std::collections::BTreeMap;

use crate::config::TrainConfig;

/// The figure in an epoch's means: the triplet ranking loss a pair and counted negative, both directions added, of a mean
/// member of an ensemble. Twice the margin where all scores are equal, whatever batch, reduction and negatives.
pub(crate) const RANKING_LOSS: &str = "ranking_loss";

/// Epochs in a row after which the loss counts as stalled.
const EPOCHS: usize = 3;
/// How near to twice the margin, as a share of it.
const NEAR: f64 = 0.02;

/// Follows the ranking loss over the epochs of this process.
///
/// A model that gives all pairs the same score has a loss of exactly twice the margin: both hinges of a pair are the margin.
/// The hardest negatives can lead there and hold it there, since with equal scores they are picked by noise.
#[derive(Debug)]
pub(crate) struct RankingWatch {
    collapsed: f64,
    all_negatives_share: f64,
    epochs: usize,
}

impl RankingWatch {
    /// For a resolved configuration.
    pub(crate) fn new(config: &TrainConfig) -> Self {
        Self {
            collapsed: 2.0 * config.source_loss.margin,
            all_negatives_share: config.source_loss.all_negatives_share.unwrap_or(0.0),
            epochs: 0,
        }
    }

    /// Takes an epoch's means; a warning when the loss has stood at twice the margin for some epochs, once each time.
    pub(crate) fn epoch(&mut self, means: &BTreeMap<String, f64>) -> Option<String> {
        let loss = means.get(RANKING_LOSS)?;
        let near = (loss - self.collapsed).abs() <= NEAR * self.collapsed;
        self.epochs = if near { self.epochs + 1 } else { 0 };
        (self.epochs == EPOCHS).then(|| {
            format!(
                "`{RANKING_LOSS}` has been at {loss:.2} for {EPOCHS} epochs, twice the margin: all pairs have nearly the same score, and \
                 the hardest negatives teach nothing; raise `source_loss.all_negatives_share` ({} in this run) or lower \
                 `optimizer.learning_rate`",
                self.all_negatives_share
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch() -> RankingWatch {
        RankingWatch::new(&TrainConfig::default())
    }

    fn told(watch: &mut RankingWatch, losses: &[f64]) -> Vec<String> {
        let means = |loss: &f64| BTreeMap::from([(RANKING_LOSS.to_owned(), *loss)]);
        losses.iter().filter_map(|loss| watch.epoch(&means(loss))).collect()
    }

    #[test]
    fn a_loss_at_twice_the_margin_is_told_once_with_the_knob() {
        let told = told(&mut watch(), &[0.5, 0.401, 0.4, 0.399, 0.4, 0.4]);
        assert_eq!(told.len(), 1);
        assert!(told[0].contains("source_loss.all_negatives_share") && told[0].contains("0.40"), "{told:?}");
    }

    #[test]
    fn a_loss_that_passes_by_is_no_collapse() {
        assert!(told(&mut watch(), &[0.5, 0.4, 0.4, 0.38, 0.4, 0.4, 0.2]).is_empty());
        let mut watch = watch();
        assert!((0..9).all(|_| watch.epoch(&BTreeMap::new()).is_none()), "no ranking loss in this run");
        // Once it has moved, it may stall again.
        assert_eq!(told(&mut watch, &[0.4, 0.4, 0.4, 0.3, 0.4, 0.4, 0.4]).len(), 2);
    }
}
