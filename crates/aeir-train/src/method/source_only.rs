//! Training on the source pairs alone: the baseline every adaptation is measured against.

use aeir_encoders::{DualEncoder, Mode};

use super::alignment::{Aligned, SourceAlignment};
use super::{Embeddings, Method, Moment, PhaseOutcome};
use crate::config::TrainConfig;
use crate::error::Result;

/// The source loss and nothing else. With the head and loss of a published model it is that model: VSE++, SCAN, SAF,
/// SGR, SGRAF.
pub struct SourceOnly {
    encoder: DualEncoder,
    alignment: SourceAlignment,
}

impl SourceOnly {
    /// Trains `encoder` with the source loss of `config`.
    pub fn new(encoder: DualEncoder, config: &TrainConfig) -> Self {
        Self { encoder, alignment: SourceAlignment::new(config) }
    }
}

impl Method for SourceOnly {
    fn encoder(&self) -> &DualEncoder {
        &self.encoder
    }

    fn uses_target(&self, _moment: Moment) -> bool {
        false
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
        let Aligned { loss, logged } = self.alignment.loss(&self.encoder, embeddings, moment, mode)?;
        Ok(PhaseOutcome::encoder(loss, logged))
    }
}
