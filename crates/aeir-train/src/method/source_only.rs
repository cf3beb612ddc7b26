//! Training on the source pairs alone: the baseline every adaptation is measured against.

use aeir_encoders::{DualEncoder, Mode};

use super::alignment::SourceAlignment;
use super::{Batch, Group, Method, Objective, PhaseOutcome, value};
use crate::config::TrainConfig;
use crate::error::Result;

/// The source loss and nothing else.
pub struct SourceOnly {
    encoder: DualEncoder,
    alignment: SourceAlignment,
}

impl SourceOnly {
    /// Trains `encoder` with the source loss of `config`.
    pub fn new(encoder: DualEncoder, config: &TrainConfig) -> Self {
        Self { encoder, alignment: SourceAlignment::new(&config.source_loss) }
    }
}

impl Method for SourceOnly {
    fn phases(&self) -> usize {
        1
    }

    fn phase(&self, _index: usize, batch: &Batch, _progress: f64, mode: &mut Mode<'_>) -> Result<PhaseOutcome> {
        let images = self.encoder.embed_images(&batch.source_images, mode)?;
        let sentences = self.encoder.embed_sentences(&batch.source_sentences, mode)?;
        let loss = self.alignment.loss(&images, &sentences, self.encoder.log_scale())?;
        let logged = vec![("source_loss", value(&loss)?)];
        Ok(PhaseOutcome { objectives: vec![Objective { loss, reaches: vec![Group::Encoder] }], logged })
    }

    fn encoder(&self) -> &DualEncoder {
        &self.encoder
    }
}
