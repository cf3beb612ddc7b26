//! AEIR: source alignment, semantic transfer and structure transfer together.

use aeir_encoders::DualEncoder;
use aeir_losses::{
    Divergence, DomainAdversarialLoss, DomainCritic, Reduction, StructureTransferLoss, dann_schedule,
    gradient_reversal, pooled_similarity,
};
use candle_core::Tensor;

use super::alignment::SourceAlignment;
use super::{Embeddings, Group, Method, Objective, PhaseOutcome, TargetEmbeddings, value};
use crate::config::{Adversary, AeirConfig, TrainConfig};
use crate::error::{Result, TrainError};
use crate::parameters::ParameterStore;

/// The method of the paper, on one pooled vector an item.
///
/// The first part of the training, `source_share` of the epochs, is source alignment alone: the paper starts from such a model. Then
/// the encoders minimise `alignment + w(p) semantic_weight confusion + structure_weight structure`, and one critic a
/// modality its own loss. With [`Adversary::Alternating`] the critics step first, on detached embeddings; with
/// [`Adversary::GradientReversal`] both step at once. w(p) is the DANN schedule over the second part, or 1.
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
    /// Where in the training, from 0 to 1, the second part begins: with an epoch, at the latest with the last one.
    adapts_from: f64,
}

impl Aeir {
    /// Trains `encoder` with `config`, its critics in `store`.
    ///
    /// # Errors
    /// When the critics can't be made.
    pub fn new(encoder: DualEncoder, config: &TrainConfig, store: &ParameterStore) -> Result<Self> {
        let dimension = config.model.embedding_dimension;
        let critic = |modality: &str| DomainCritic::new(dimension, store.builder().pp("critic").pp(modality));
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
            adapts_from: (config.aeir.source_share * config.epochs as f64).floor() / config.epochs as f64,
        })
    }

    /// How far the second part is, where it has begun.
    fn adaptation(&self, progress: f64) -> Option<f64> {
        let first = self.adapts_from;
        (progress >= first).then(|| (progress - first) / (1.0 - first))
    }

    fn source_loss(&self, embeddings: &Embeddings) -> Result<Tensor> {
        let Embeddings { source_images, source_sentences, .. } = embeddings;
        self.alignment.loss(source_images, source_sentences, self.encoder.log_scale())
    }

    /// What the critics say of source and target, a pair a modality; `pass` goes over the embeddings first.
    fn logits(
        &self,
        embeddings: &Embeddings,
        target: &TargetEmbeddings,
        pass: impl Fn(&Tensor) -> Result<Tensor>,
    ) -> Result<[(Tensor, Tensor); 2]> {
        let [image_critic, sentence_critic] = &self.critics;
        let judge = |critic: &DomainCritic, source: &Tensor, target: &Tensor| {
            Ok::<_, TrainError>((critic.forward(&pass(source)?)?, critic.forward(&pass(target)?)?))
        };
        Ok([
            judge(image_critic, &embeddings.source_images, &target.images)?,
            judge(sentence_critic, &embeddings.source_sentences, &target.sentences)?,
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
    fn structure_loss(&self, embeddings: &Embeddings, target: &TargetEmbeddings) -> Result<Tensor> {
        let Embeddings { source_images, source_sentences, .. } = embeddings;
        let images = self.structure.forward(
            &pooled_similarity(&target.images, source_images)?,
            &pooled_similarity(&target.images, source_sentences)?,
        )?;
        let sentences = self.structure.forward(
            &pooled_similarity(&target.sentences, source_sentences)?,
            &pooled_similarity(&target.sentences, source_images)?,
        )?;
        Ok((images + sentences)?)
    }

    /// `adaptation` runs from 0 to 1 over the second part.
    fn semantic_weight(&self, adaptation: f64) -> f64 {
        let schedule = if self.config.warm_up { dann_schedule(adaptation) } else { 1.0 };
        self.config.semantic_weight * schedule
    }

    fn critic_phase(&self, embeddings: &Embeddings, target: &TargetEmbeddings) -> Result<PhaseOutcome> {
        let (loss, logged) = Self::critic_loss(&self.logits(embeddings, target, |x| Ok(x.detach()))?)?;
        Ok(PhaseOutcome { objectives: vec![Objective { loss, reaches: vec![Group::Critic] }], logged })
    }

    fn encoder_phase(
        &self,
        embeddings: &Embeddings,
        target: &TargetEmbeddings,
        adaptation: f64,
    ) -> Result<PhaseOutcome> {
        let alignment = self.source_loss(embeddings)?;
        let structure = self.structure_loss(embeddings, target)?;
        let [images, sentences] = self.logits(embeddings, target, |x| Ok(x.clone()))?;
        let confusion = (DomainAdversarialLoss.confusion_loss(&images.0, &images.1)?
            + DomainAdversarialLoss.confusion_loss(&sentences.0, &sentences.1)?)?;
        let logged = vec![
            ("source_loss", value(&alignment)?),
            ("confusion_loss", value(&confusion)?),
            ("structure_loss", value(&structure)?),
        ];
        let loss = ((alignment + (confusion * self.semantic_weight(adaptation))?)?
            + (structure * self.config.structure_weight)?)?;
        Ok(PhaseOutcome { objectives: vec![Objective { loss, reaches: vec![Group::Encoder] }], logged })
    }

    fn reversal_phase(
        &self,
        embeddings: &Embeddings,
        target: &TargetEmbeddings,
        adaptation: f64,
    ) -> Result<PhaseOutcome> {
        let alignment = self.source_loss(embeddings)?;
        let structure = self.structure_loss(embeddings, target)?;
        let strength = self.semantic_weight(adaptation);
        let reversed = self.logits(embeddings, target, |x| Ok(gradient_reversal(x, strength)?))?;
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
    fn encoder(&self) -> &DualEncoder {
        &self.encoder
    }

    fn uses_target(&self, progress: f64) -> bool {
        self.adaptation(progress).is_some()
    }

    fn phases(&self, progress: f64) -> usize {
        match (self.adaptation(progress), self.config.adversary) {
            (Some(_), Adversary::Alternating) => 2,
            (Some(_), Adversary::GradientReversal) | (None, _) => 1,
        }
    }

    fn phase(&self, index: usize, embeddings: &Embeddings, progress: f64) -> Result<PhaseOutcome> {
        let (Some(adaptation), Some(target)) = (self.adaptation(progress), &embeddings.target) else {
            let loss = self.source_loss(embeddings)?;
            let logged = vec![("source_loss", value(&loss)?)];
            let objectives = vec![Objective { loss, reaches: vec![Group::Encoder] }];
            return Ok(PhaseOutcome { objectives, logged });
        };
        match (self.config.adversary, index) {
            (Adversary::GradientReversal, _) => self.reversal_phase(embeddings, target, adaptation),
            (Adversary::Alternating, 0) => self.critic_phase(embeddings, target),
            (Adversary::Alternating, _) => self.encoder_phase(embeddings, target, adaptation),
        }
    }
}
