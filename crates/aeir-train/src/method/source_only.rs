//! Training on the source pairs alone: the baseline every adaptation is measured against.

use aeir_encoders::DualEncoder;

use super::alignment::SourceAlignment;
use super::{Embeddings, Group, Method, Objective, PhaseOutcome, value};
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
    fn encoder(&self) -> &DualEncoder {
        &self.encoder
    }

    fn uses_target(&self, _progress: f64) -> bool {
        false
    }

    fn phases(&self, _progress: f64) -> usize {
        1
    }

    fn phase(&self, _index: usize, embeddings: &Embeddings, _progress: f64) -> Result<PhaseOutcome> {
        let loss = self.alignment.loss(
            &embeddings.source_images,
            &embeddings.source_sentences,
            self.encoder.log_scale(),
        )?;
        let logged = vec![("source_loss", value(&loss)?)];
        Ok(PhaseOutcome { objectives: vec![Objective { loss, reaches: vec![Group::Encoder] }], logged })
    }
}
