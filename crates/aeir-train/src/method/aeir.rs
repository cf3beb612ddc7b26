//! AEIR: source alignment, semantic transfer and structure transfer together.

use aeir_encoders::{DualEncoder, Mode};
use aeir_losses::{
    Divergence, DomainAdversarialLoss, DomainCritic, Reduction, StructureTransferLoss, dann_schedule,
    gradient_reversal, pooled_similarity,
};
use candle_core::Tensor;

use super::alignment::SourceAlignment;
use super::{Batch, Group, Method, Objective, PhaseOutcome, value};
use crate::config::{Adversary, AeirConfig, TrainConfig};
use crate::error::{Result, TrainError};
use crate::parameters::ParameterStore;

/// The method of the paper, on one pooled vector an item.
///
/// The encoders minimise `alignment + w(p) semantic_weight confusion + structure_weight structure`, one critic a
/// modality its own loss. With [`Adversary::Alternating`] the critics step first, on detached embeddings; with
/// [`Adversary::GradientReversal`] both step at once. w(p) is the DANN schedule, or 1.
///
/// Source: Yang et al., Frontiers of Computer Science 18(1):181335, 2024; the schedule: Ganin et al., JMLR 17, 2016.
///
/// Deviations from the released procedure: the critics' gradient is that of their own loss alone (the released one adds
/// the encoders' confusion loss to it, which cancels the game), and the structure term takes the pooled vector as the
/// only fragment.
pub struct Aeir {
    encoder: DualEncoder,
    alignment: SourceAlignment,
    critics: [DomainCritic; 2],
    structure: StructureTransferLoss,
    config: AeirConfig,
}

/// Unit vectors of one step, `[B, D]`, `[B, D]`, `[T, D]`, `[U, D]`.
struct Embeddings {
    source_images: Tensor,
    source_sentences: Tensor,
    target_images: Tensor,
    target_sentences: Tensor,
}

impl Aeir {
    /// Trains `encoder` with `config`, its critics in `store`.
    ///
    /// # Errors
    /// When the critics can't be made.
    pub fn new(encoder: DualEncoder, config: &TrainConfig, store: &ParameterStore) -> Result<Self> {
        let dimension = config.model.embedding_dimension;
        let critic =
            |modality: &str| DomainCritic::new(dimension, store.builder().pp("critic").pp(modality));
        Ok(Self {
            encoder,
            alignment: SourceAlignment::new(&config.source_loss),
            critics: [critic("image")?, critic("sentence")?],
            structure: StructureTransferLoss {
                neighbours: config.aeir.neighbours,
                temperature: config.aeir.structure_temperature,
                divergence: Divergence::KullbackLeibler,
                detach_reference: config.aeir.detach_reference,
                reduction: Reduction::Sum,
            },
            config: config.aeir,
        })
    }

    fn embed(&self, batch: &Batch, mode: &mut Mode<'_>) -> Result<Embeddings> {
        let target = batch.target.as_ref().ok_or_else(|| TrainError::Data {
            what: "method `aeir`".into(),
            expected: "target images and target sentences".into(),
            got: "none".into(),
        })?;
        Ok(Embeddings {
            source_images: self.encoder.embed_images(&batch.source_images, mode)?,
            source_sentences: self.encoder.embed_sentences(&batch.source_sentences, mode)?,
            target_images: self.encoder.embed_images(&target.images, mode)?,
            target_sentences: self.encoder.embed_sentences(&target.sentences, mode)?,
        })
    }

    /// What the critics say of source and target, a pair a modality; `pass` goes over the embeddings first.
    fn logits(
        &self,
        embeddings: &Embeddings,
        pass: impl Fn(&Tensor) -> Result<Tensor>,
    ) -> Result<[(Tensor, Tensor); 2]> {
        let [image_critic, sentence_critic] = &self.critics;
        let judge = |critic: &DomainCritic, source: &Tensor, target: &Tensor| {
            Ok::<_, TrainError>((critic.forward(&pass(source)?)?, critic.forward(&pass(target)?)?))
        };
        Ok([
            judge(image_critic, &embeddings.source_images, &embeddings.target_images)?,
            judge(sentence_critic, &embeddings.source_sentences, &embeddings.target_sentences)?,
        ])
    }

    /// Each modality's critic loss and accuracy, and the losses' sum.
    fn critic_loss(logits: &[(Tensor, Tensor); 2]) -> Result<(Tensor, Vec<(&'static str, f64)>)> {
        let [(source_images, target_images), (source_sentences, target_sentences)] = logits;
        let images = DomainAdversarialLoss.critic_loss(source_images, target_images)?;
        let sentences = DomainAdversarialLoss.critic_loss(source_sentences, target_sentences)?;
        let logged = vec![
            ("critic_loss_images", value(&images)?),
            ("critic_loss_sentences", value(&sentences)?),
            ("critic_accuracy_images", DomainCritic::accuracy(source_images, target_images)?),
            ("critic_accuracy_sentences", DomainCritic::accuracy(source_sentences, target_sentences)?),
        ];
        Ok(((images + sentences)?, logged))
    }

    /// Structure transfer, target images against source images and their sentences, and the mirror image.
    fn structure_loss(&self, embeddings: &Embeddings) -> Result<Tensor> {
        let Embeddings { source_images, source_sentences, target_images, target_sentences } = embeddings;
        let images = self.structure.forward(
            &pooled_similarity(target_images, source_images)?,
            &pooled_similarity(target_images, source_sentences)?,
        )?;
        let sentences = self.structure.forward(
            &pooled_similarity(target_sentences, source_sentences)?,
            &pooled_similarity(target_sentences, source_images)?,
        )?;
        Ok((images + sentences)?)
    }

    fn semantic_weight(&self, progress: f64) -> f64 {
        let schedule = if self.config.warm_up { dann_schedule(progress) } else { 1.0 };
        self.config.semantic_weight * schedule
    }

    fn critic_phase(&self, batch: &Batch, mode: &mut Mode<'_>) -> Result<PhaseOutcome> {
        let embeddings = self.embed(batch, mode)?;
        let (loss, logged) = Self::critic_loss(&self.logits(&embeddings, |x| Ok(x.detach()))?)?;
        Ok(PhaseOutcome { objectives: vec![Objective { loss, reaches: vec![Group::Critic] }], logged })
    }

    fn encoder_phase(&self, batch: &Batch, progress: f64, mode: &mut Mode<'_>) -> Result<PhaseOutcome> {
        let embeddings = self.embed(batch, mode)?;
        let alignment = self.alignment.loss(
            &embeddings.source_images,
            &embeddings.source_sentences,
            self.encoder.log_scale(),
        )?;
        let structure = self.structure_loss(&embeddings)?;
        let [images, sentences] = self.logits(&embeddings, |x| Ok(x.clone()))?;
        let confusion = (DomainAdversarialLoss.confusion_loss(&images.0, &images.1)?
            + DomainAdversarialLoss.confusion_loss(&sentences.0, &sentences.1)?)?;
        let logged = vec![
            ("source_loss", value(&alignment)?),
            ("confusion_loss", value(&confusion)?),
            ("structure_loss", value(&structure)?),
        ];
        let loss = ((alignment + (confusion * self.semantic_weight(progress))?)?
            + (structure * self.config.structure_weight)?)?;
        Ok(PhaseOutcome { objectives: vec![Objective { loss, reaches: vec![Group::Encoder] }], logged })
    }

    fn reversal_phase(&self, batch: &Batch, progress: f64, mode: &mut Mode<'_>) -> Result<PhaseOutcome> {
        let embeddings = self.embed(batch, mode)?;
        let alignment = self.alignment.loss(
            &embeddings.source_images,
            &embeddings.source_sentences,
            self.encoder.log_scale(),
        )?;
        let structure = self.structure_loss(&embeddings)?;
        let strength = self.semantic_weight(progress);
        let reversed = self.logits(&embeddings, |x| Ok(gradient_reversal(x, strength)?))?;
        let (critic_loss, mut logged) = Self::critic_loss(&reversed)?;
        logged.extend([("source_loss", value(&alignment)?), ("structure_loss", value(&structure)?)]);
        let encoder_loss = (alignment + (structure * self.config.structure_weight)?)?;
        Ok(PhaseOutcome {
            objectives: vec![
                Objective { loss: encoder_loss, reaches: vec![Group::Encoder] },
                Objective { loss: critic_loss, reaches: vec![Group::Encoder, Group::Critic] },
            ],
            logged,
        })
    }
}

impl Method for Aeir {
    fn phases(&self) -> usize {
        match self.config.adversary {
            Adversary::Alternating => 2,
            Adversary::GradientReversal => 1,
        }
    }

    fn phase(&self, index: usize, batch: &Batch, progress: f64, mode: &mut Mode<'_>) -> Result<PhaseOutcome> {
        match (self.config.adversary, index) {
            (Adversary::GradientReversal, _) => self.reversal_phase(batch, progress, mode),
            (Adversary::Alternating, 0) => self.critic_phase(batch, mode),
            (Adversary::Alternating, _) => self.encoder_phase(batch, progress, mode),
        }
    }

    fn encoder(&self) -> &DualEncoder {
        &self.encoder
    }
}
