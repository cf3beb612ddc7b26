//! The loss on aligned source pairs, shared by all methods.

use aeir_losses::{InfoNceLoss, Negatives, Reduction, TripletRankingLoss};
use candle_core::Tensor;

use crate::config::{SourceLossConfig, SourceLossKind};
use crate::error::Result;

/// The source loss that the configuration names.
pub(super) enum SourceAlignment {
    InfoNce(InfoNceLoss),
    Triplet(TripletRankingLoss),
}

impl SourceAlignment {
    pub(super) fn new(config: &SourceLossConfig) -> Self {
        let triplet = |negatives| {
            Self::Triplet(TripletRankingLoss { margin: config.margin, negatives, reduction: Reduction::Mean })
        };
        match config.kind {
            SourceLossKind::InfoNce => Self::InfoNce(InfoNceLoss::default()),
            SourceLossKind::TripletHardest => triplet(Negatives::Hardest),
            SourceLossKind::TripletAll => triplet(Negatives::All),
        }
    }

    /// The loss of unit vectors `[B, D]`, row i of both being a pair.
    pub(super) fn loss(&self, images: &Tensor, sentences: &Tensor, log_scale: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::InfoNce(loss) => loss.forward(images, sentences, log_scale)?,
            Self::Triplet(loss) => loss.from_scores(&images.matmul(&sentences.t()?)?)?,
        })
    }
}
