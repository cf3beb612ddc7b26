//! The loss on aligned source pairs, shared by all methods.

use aeir_encoders::{DualEncoder, Encoded, Mode};
use aeir_losses::{InfoNceLoss, Negatives, Reduction, TripletRankingLoss};
use candle_core::Tensor;

use super::{Embeddings, Moment};
use crate::config::{SourceLossKind, TrainConfig};
use crate::error::Result;

/// The source loss that the configuration names, on the head's scores, and beside a cross-attentive head InfoNCE on the
/// pooled vectors.
pub(super) struct SourceAlignment {
    loss: SourceLoss,
    /// Until this share of the training all negatives count.
    all_negatives_share: f64,
    pooled_weight: f64,
}

enum SourceLoss {
    InfoNce(InfoNceLoss),
    Triplet(TripletRankingLoss),
}

impl SourceAlignment {
    pub(super) fn new(config: &TrainConfig) -> Self {
        let reduction = if config.is_released() { Reduction::Sum } else { Reduction::Mean };
        let triplet = |negatives| {
            SourceLoss::Triplet(TripletRankingLoss {
                margin: config.source_loss.margin,
                negatives,
                reduction,
            })
        };
        let loss = match config.source_loss.kind.unwrap_or(SourceLossKind::InfoNce) {
            SourceLossKind::InfoNce => SourceLoss::InfoNce(InfoNceLoss::default()),
            SourceLossKind::TripletHardest => triplet(Negatives::Hardest),
            SourceLossKind::TripletAll => triplet(Negatives::All),
        };
        Self {
            loss,
            all_negatives_share: config.source_loss.all_negatives_share,
            pooled_weight: config.source_loss.pooled_weight.unwrap_or(0.0),
        }
    }

    /// The loss of a batch whose row i of both modalities is a pair; members of an ensemble are added, as each has
    /// parameters of its own.
    pub(super) fn loss(
        &self,
        encoder: &DualEncoder,
        embeddings: &Embeddings,
        moment: Moment,
        mode: &mut Mode<'_>,
    ) -> Result<Tensor> {
        let Embeddings { source_images, source_sentences, .. } = embeddings;
        let mut total: Option<Tensor> = None;
        for scores in encoder.member_scores(source_images, source_sentences, mode)? {
            let loss = self.of_scores(&scores, encoder, moment)?;
            total = Some(match total {
                Some(total) => (total + loss)?,
                None => loss,
            });
        }
        let total = total
            .map_or_else(|| Tensor::zeros((), candle_core::DType::F32, &candle_core::Device::Cpu), Ok)?;
        if self.pooled_weight > 0.0 && encoder.config().head.is_cross_attentive() {
            return Ok(
                (total + (pooled_loss(encoder, source_images, source_sentences)? * self.pooled_weight)?)?
            );
        }
        Ok(total)
    }

    fn of_scores(&self, scores: &Tensor, encoder: &DualEncoder, moment: Moment) -> Result<Tensor> {
        Ok(match &self.loss {
            SourceLoss::InfoNce(loss) => {
                loss.from_scores(&scores.broadcast_mul(&encoder.log_scale().exp()?)?)?
            }
            SourceLoss::Triplet(loss) => {
                let warm_up = (self.all_negatives_share * moment.steps as f64).round() as usize;
                match loss.negatives {
                    Negatives::Hardest => loss.at_step(moment.step, warm_up).from_scores(scores)?,
                    Negatives::All => loss.from_scores(scores)?,
                }
            }
        })
    }
}

/// InfoNCE on the vectors that an index holds.
fn pooled_loss(encoder: &DualEncoder, images: &Encoded, sentences: &Encoded) -> Result<Tensor> {
    let scores = images.pooled()?.matmul(&sentences.pooled()?.t()?)?;
    Ok(InfoNceLoss::default().from_scores(&scores.broadcast_mul(&encoder.log_scale().exp()?)?)?)
}
