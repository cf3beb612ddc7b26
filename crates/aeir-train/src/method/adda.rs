//! ADDA: a target encoder learns to look like a fixed source encoder.

use aeir_encoders::{DualEncoder, Mode};

use super::alignment::{Aligned, SourceAlignment};
use super::critics::{Critics, Sides, confusion_loss, critic_loss};
use super::{
    Adaptation, Batch, Embeddings, Group, Method, Moment, PhaseOutcome, TargetEmbeddings, embed, no_target,
};
use crate::config::{AdaptationConfig, TrainConfig};
use crate::error::Result;
use crate::figure::Figure;
use crate::parameters::ParameterStore;

/// Prefix of the fixed source encoder's parameters.
pub(super) const REFERENCE: &str = "reference";

/// First the encoder is trained on the source. Then a copy of it stays as it is and embeds the source, while the encoder
/// goes on with the target alone: critics tell the copy's source from the encoder's target, and the encoder minimises
/// `-log c(target)`. The encoder is the model.
///
/// Source: Tzeng et al., *Adversarial discriminative domain adaptation*, CVPR 2017.
///
/// Deviations: nothing in the second part holds the two modalities of the target together but the start and the small
/// number of steps, as in the original nothing holds features and classifier together. The temperature and, of a
/// cross-attentive head, its parameters stay as they are: no loss of that part reaches them.
pub struct Adda {
    encoder: DualEncoder,
    reference: DualEncoder,
    alignment: SourceAlignment,
    critics: Critics,
    adaptation: Adaptation,
    config: AdaptationConfig,
    store: ParameterStore,
}

impl Adda {
    /// Trains `encoder`, with `reference` of the same shape under the prefix `reference.` in `store`.
    ///
    /// # Errors
    /// When the critics can't be made.
    pub fn new(
        encoder: DualEncoder,
        reference: DualEncoder,
        config: &TrainConfig,
        store: &ParameterStore,
    ) -> Result<Self> {
        let dimension = encoder.config().pooled_dimension();
        Ok(Self {
            encoder,
            reference,
            alignment: SourceAlignment::new(config),
            critics: Critics::new([dimension; 2], store)?,
            adaptation: Adaptation::new(config),
            config: config.adaptation,
            store: store.clone(),
        })
    }

    fn sides(embeddings: &Embeddings, target: &TargetEmbeddings) -> Result<[Sides; 2]> {
        Ok([
            Sides { source: embeddings.source_images.mean()?, target: target.images.mean()? },
            Sides { source: embeddings.source_sentences.mean()?, target: target.sentences.mean()? },
        ])
    }
}

impl Method for Adda {
    fn encoder(&self) -> &DualEncoder {
        &self.encoder
    }

    fn uses_target(&self, moment: Moment) -> bool {
        self.adaptation.progress(moment).is_some()
    }

    fn phases(&self, moment: Moment) -> usize {
        if self.uses_target(moment) { 2 } else { 1 }
    }

    fn before_step(&self, moment: Moment) -> Result<()> {
        if !self.adaptation.begins(moment) {
            return Ok(());
        }
        let trained = self.store.snapshot(Group::Encoder.prefix())?;
        let copied = trained.into_iter().filter_map(|(name, value)| {
            let name = name.strip_prefix(Group::Encoder.prefix())?;
            Some((format!("{REFERENCE}.{name}"), value))
        });
        self.store.restore(&copied.collect())
    }

    fn embed(&self, batch: &Batch, moment: Moment, mode: &mut Mode<'_>) -> Result<Embeddings> {
        if !self.uses_target(moment) {
            return embed(&self.encoder, batch, false, mode);
        }
        let target = batch.target.as_ref().ok_or_else(no_target)?;
        // The fixed encoder is no longer in training: its dropout is off.
        let source = embed(&self.reference, batch, false, &mut Mode::Evaluation)?;
        Ok(Embeddings {
            source_images: source.source_images.detach(),
            labelled: source.labelled,
            source_sentences: source.source_sentences.detach(),
            target: Some(TargetEmbeddings {
                images: self.encoder.encode_images(&target.images, mode)?,
                sentences: self.encoder.encode_sentences(&target.sentences, mode)?,
                rows: None,
                frozen: None,
            }),
            anchors: None,
        })
    }

    fn phase(
        &self,
        index: usize,
        embeddings: &Embeddings,
        moment: Moment,
        mode: &mut Mode<'_>,
    ) -> Result<PhaseOutcome> {
        if !self.uses_target(moment) {
            let Aligned { loss, logged } = self.alignment.loss(&self.encoder, embeddings, moment, mode)?;
            return Ok(PhaseOutcome::encoder(loss, logged));
        }
        let [images, sentences] = Self::sides(embeddings, embeddings.target()?)?;
        if index == 0 {
            let logits = self.critics.logits(&[images.detach(), sentences.detach()])?;
            let (loss, logged) = critic_loss(&logits)?;
            return Ok(PhaseOutcome::critic(loss, logged));
        }
        // The source's part of it is a constant: its embeddings have no graph.
        let loss = confusion_loss(&self.critics.logits(&[images, sentences])?)?;
        let logged = vec![("confusion_loss", Figure::of(&loss)?)];
        Ok(PhaseOutcome::encoder((loss * self.config.weight)?, logged))
    }
}
