//! The loss on aligned source pairs, shared by all methods.

use aeir_encoders::rehearsal::Product;
use aeir_encoders::{DualEncoder, Encoded, Mode};
use aeir_losses::{InfoNceLoss, Negatives, Reduction, TripletRankingLoss};
use candle_core::Tensor;

use super::{Embeddings, Moment};
use crate::config::{SourceLossKind, TrainConfig};
use crate::error::Result;
use crate::figure::Figure;
use crate::ranking_watch::RANKING_LOSS;

/// The source loss that the configuration names, on the head's scores, and beside a cross-attentive head InfoNCE on the
/// pooled vectors.
pub(super) struct SourceAlignment {
    loss: SourceLoss,
    /// Until this share of the training all negatives count.
    all_negatives_share: f64,
    pooled_weight: f64,
}

/// The loss of a batch, and its lines for the log.
pub(super) struct Aligned {
    pub(super) loss: Tensor,
    pub(super) logged: Vec<(&'static str, Figure)>,
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
            all_negatives_share: config.source_loss.all_negatives_share.unwrap_or(0.0),
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
    ) -> Result<Aligned> {
        let Embeddings { source_images, source_sentences, .. } = embeddings;
        let scores = encoder.member_scores(source_images, source_sentences, mode)?;
        let losses = scores
            .iter()
            .map(|scores| self.of_scores(scores, encoder, moment))
            .collect::<Result<Vec<Tensor>>>()?;
        let mut loss = Tensor::stack(&losses, 0)?.sum_all()?;
        let pairs = scores.first().and_then(|scores| scores.dims().first()).copied().unwrap_or(0);
        let ranking = Figure::of(&loss)?.divided(losses.len() as f64).divided(self.terms(pairs, moment));
        if self.pooled_weight > 0.0 && encoder.config().head.is_cross_attentive() {
            let pooled = pooled_loss(encoder, source_images, source_sentences)?;
            loss = (loss + (pooled * self.pooled_weight)?)?;
        }
        let mut logged = vec![("source_loss", Figure::of(&loss)?)];
        if matches!(self.loss, SourceLoss::Triplet(_)) {
            logged.push((RANKING_LOSS, ranking));
        }
        Ok(Aligned { loss, logged })
    }

    /// How many pairs and negatives the loss of one member adds up, so that it can be compared between batches, reductions and
    /// the negatives that count.
    fn terms(&self, pairs: usize, moment: Moment) -> f64 {
        let SourceLoss::Triplet(loss) = &self.loss else { return 1.0 };
        let rows = if loss.reduction == Reduction::Sum { pairs } else { 1 };
        let negatives = match self.at(*loss, moment).negatives {
            Negatives::Hardest => 1,
            Negatives::All => pairs.saturating_sub(1),
        };
        (rows * negatives).max(1) as f64
    }

    /// The ranking loss with the negatives that count at this moment.
    fn at(&self, loss: TripletRankingLoss, moment: Moment) -> TripletRankingLoss {
        let warm_up = (self.all_negatives_share * moment.steps as f64).round() as usize;
        match loss.negatives {
            Negatives::Hardest => loss.at_step(moment.step, warm_up),
            Negatives::All => loss,
        }
    }

    fn of_scores(&self, scores: &Tensor, encoder: &DualEncoder, moment: Moment) -> Result<Tensor> {
        Ok(match &self.loss {
            SourceLoss::InfoNce(loss) => {
                loss.from_scores(&scores.broadcast_mul(&encoder.log_scale().exp()?)?)?
            }
            SourceLoss::Triplet(loss) => self.at(*loss, moment).from_scores(scores)?,
        })
    }
}

/// InfoNCE on the vectors that an index holds.
fn pooled_loss(encoder: &DualEncoder, images: &Encoded, sentences: &Encoded) -> Result<Tensor> {
    let scores = images.pooled()?.product(&sentences.pooled()?.t()?)?;
    Ok(InfoNceLoss::default().from_scores(&scores.broadcast_mul(&encoder.log_scale().exp()?)?)?)
}
