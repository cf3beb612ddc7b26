//! DANN: domain-adversarial training by gradient reversal.

use aeir_encoders::{DualEncoder, Mode};
use aeir_losses::{dann_schedule, gradient_reversal};
use candle_core::Tensor;

use super::alignment::{Aligned, SourceAlignment};
use super::critics::{Critics, Sides, critic_loss};
use super::{Adaptation, Embeddings, Group, Method, Moment, Objective, PhaseOutcome};
use crate::config::{AdaptationConfig, TrainConfig};
use crate::error::Result;
use crate::parameters::ParameterStore;

/// One critic a modality on the pooled vectors; the encoders get its gradient with the sign changed.
///
/// Equation: `alignment + critic(reverse(x, w(p) weight))`, w(p) the DANN schedule over the adaptation, or 1.
///
/// Source: Ganin et al., *Domain-adversarial training of neural networks*, JMLR 17, 2016.
pub struct Dann {
    encoder: DualEncoder,
    alignment: SourceAlignment,
    critics: Critics,
    adaptation: Adaptation,
    config: AdaptationConfig,
}

impl Dann {
    /// Trains `encoder` with `config`, its critics in `store`.
    ///
    /// # Errors
    /// When the critics can't be made.
    pub fn new(encoder: DualEncoder, config: &TrainConfig, store: &ParameterStore) -> Result<Self> {
        let dimension = encoder.config().pooled_dimension();
        Ok(Self {
            encoder,
            alignment: SourceAlignment::new(config),
            critics: Critics::new([dimension; 2], store)?,
            adaptation: Adaptation::new(config),
            config: config.adaptation,
        })
    }
}

impl Method for Dann {
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
        let Aligned { loss, logged: of_source } =
            self.alignment.loss(&self.encoder, embeddings, moment, mode)?;
        let Some(adaptation) = self.adaptation.progress(moment) else {
            return Ok(PhaseOutcome::encoder(loss, of_source));
        };
        let target = embeddings.target()?;
        let schedule = if self.config.warm_up { dann_schedule(adaptation) } else { 1.0 };
        let strength = self.config.weight * schedule;
        let reverse = |x: Tensor| gradient_reversal(&x, strength);
        let sides = [
            Sides {
                source: reverse(embeddings.source_images.mean()?)?,
                target: reverse(target.images.mean()?)?,
            },
            Sides {
                source: reverse(embeddings.source_sentences.mean()?)?,
                target: reverse(target.sentences.mean()?)?,
            },
        ];
        let (critic_loss, mut logged) = critic_loss(&self.critics.logits(&sides)?)?;
        logged.extend(of_source);
        let objectives = vec![
            Objective { loss, reaches: vec![Group::Encoder] },
            Objective { loss: critic_loss, reaches: vec![Group::Encoder, Group::Critic] },
        ];
        Ok(PhaseOutcome { objectives, logged })
    }
}
