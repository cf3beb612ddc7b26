//! MMD and CORAL: a distance between the domains' embeddings, without a critic.

use aeir_encoders::{DualEncoder, Mode};
use aeir_losses::{CoralLoss, MaximumMeanDiscrepancy};
use candle_core::Tensor;

use super::alignment::{Aligned, SourceAlignment};
use super::{Adaptation, Embeddings, Method, Moment, PhaseOutcome};
use crate::config::TrainConfig;
use crate::error::Result;
use crate::figure::Figure;

/// Which distance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiscrepancyMethod {
    /// Multi-kernel maximum mean discrepancy (Long et al., ICML 2015).
    Mmd,
    /// The distance of covariances (Sun and Saenko, ECCV workshops 2016).
    Coral,
}

/// Equation: `alignment + weight (distance(images) + distance(sentences))` on the pooled vectors, once the adaptation has
/// begun.
pub struct Discrepancy {
    encoder: DualEncoder,
    alignment: SourceAlignment,
    method: DiscrepancyMethod,
    adaptation: Adaptation,
    weight: f64,
}

impl Discrepancy {
    /// Trains `encoder` with `config`.
    pub fn new(encoder: DualEncoder, config: &TrainConfig, method: DiscrepancyMethod) -> Self {
        Self {
            encoder,
            alignment: SourceAlignment::new(config),
            method,
            adaptation: Adaptation::new(config),
            weight: config.adaptation.weight,
        }
    }

    fn distance(&self, source: &Tensor, target: &Tensor) -> Result<Tensor> {
        Ok(match self.method {
            DiscrepancyMethod::Mmd => MaximumMeanDiscrepancy::default().forward(source, target)?,
            // A covariance needs two rows of each: one target item says nothing of the spread.
            DiscrepancyMethod::Coral if target.dim(0)? < 2 => (target.sum_all()? * 0.0)?,
            DiscrepancyMethod::Coral => CoralLoss.forward(source, target)?,
        })
    }
}

impl Method for Discrepancy {
    fn encoder(&self) -> &DualEncoder {
        &self.encoder
    }

    fn uses_target(&self, moment: Moment) -> bool {
        self.adaptation.progress(moment).is_some()
    }

    fn phases(&self, _moment: Moment) -> usize {
        1
    }

    fn phase(
        &self,
        _index: usize,
        embeddings: &Embeddings,
        moment: Moment,
        mode: &mut Mode<'_>,
    ) -> Result<PhaseOutcome> {
        let Aligned { loss, mut logged } = self.alignment.loss(&self.encoder, embeddings, moment, mode)?;
        if self.adaptation.progress(moment).is_none() {
            return Ok(PhaseOutcome::encoder(loss, logged));
        }
        let target = embeddings.target()?;
        let images = self.distance(&embeddings.source_images.mean()?, &target.images.mean()?)?;
        let sentences = self.distance(&embeddings.source_sentences.mean()?, &target.sentences.mean()?)?;
        logged.push(("distance_images", Figure::of(&images)?));
        logged.push(("distance_sentences", Figure::of(&sentences)?));
        let loss = (loss + ((images + sentences)? * self.weight)?)?;
        Ok(PhaseOutcome::encoder(loss, logged))
    }
}
