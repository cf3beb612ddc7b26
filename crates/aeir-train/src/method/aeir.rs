//! AEIR: source alignment, semantic transfer and structure transfer together.

use aeir_encoders::{DualEncoder, Embedded, Encoded, Fragments, Mode, l2_normalise_released};
use aeir_losses::{
    Divergence, Reduction, StructureTransferLoss, WassersteinCriticLoss, dann_schedule, gradient_reversal,
    neighbour_similarity, pooled_similarity, unit_fragment_similarity,
};
use candle_core::{Device, Tensor};

use super::alignment::{Aligned, SourceAlignment};
use super::critics::{Critics, Logits, Sides, confusion_loss, critic_loss, logged_sum};
use super::{Adaptation, Embeddings, Group, Method, Moment, Objective, PhaseOutcome, TargetEmbeddings};
use crate::config::{AdaptationConfig, Adversary, AeirConfig, DivergenceName, Fidelity, TrainConfig};
use crate::error::Result;
use crate::figure::Figure;
use crate::parameters::ParameterStore;

/// The method of the paper.
///
/// The first part of the training, `source_share` of the epochs, is source alignment alone: the paper starts from such a
/// model. Then the encoders minimise `alignment + w(p) semantic_weight confusion + structure_weight structure`, and one
/// critic a modality its own loss. With [`Adversary::Alternating`] the critics step first, on detached embeddings; with
/// [`Adversary::GradientReversal`] both step at once; [`Adversary::Wasserstein`] alternates with a critic of bounded
/// slope. w(p) is the DANN schedule over the second part, or 1. A weight of 0 leaves a term out: these are the paper's
/// ablations.
///
/// Structure transfer compares fragments where the towers have them, else the pooled vectors as items of one fragment.
/// The source loss is a mean over the batch and the structure loss a sum over it, as the weights of the paper belong to
/// the released procedure, where both are sums: against its source loss, the structure term here weighs B times as much.
///
/// Source: Yang et al., Frontiers of Computer Science 18(1):181335, 2024; the schedule: Ganin et al., JMLR 17, 2016; the
/// bounded critic: Gulrajani et al., NeurIPS 2017.
///
/// Deviations from the released procedure, with [`Fidelity::Paper`]: the critics' gradient is that of their own loss alone
/// (the released one adds the encoders' confusion loss to it, which cancels the game), padding takes part in nothing, each
/// group has its own gradient norm. [`Fidelity::Released`] repeats all of that.
///
/// Parity: `fixtures/parity/aecr`, with [`Fidelity::Released`].
pub struct Aeir {
    encoder: DualEncoder,
    alignment: SourceAlignment,
    critics: Critics,
    structure: StructureTransferLoss,
    config: AeirConfig,
    shared: AdaptationConfig,
    adaptation: Adaptation,
}

impl Aeir {
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
            structure: StructureTransferLoss {
                neighbours: config.aeir.neighbours,
                temperature: config.aeir.structure_temperature,
                divergence: match config.aeir.divergence {
                    DivergenceName::KullbackLeibler => Divergence::KullbackLeibler,
                    DivergenceName::JensenShannon => Divergence::JensenShannon,
                },
                detach_reference: config.aeir.detach_reference,
                reduction: Reduction::Sum,
            },
            config: config.aeir,
            shared: config.adaptation,
            adaptation: Adaptation::new(config),
        })
    }

    fn released(&self) -> bool {
        self.config.fidelity == Fidelity::Released
    }

    /// What the critics judge.
    fn sides(&self, embeddings: &Embeddings, target: &TargetEmbeddings) -> Result<[Sides; 2]> {
        let mean = |encoded: &Encoded| {
            if self.released() { padded_mean(encoded) } else { Ok(encoded.mean()?) }
        };
        Ok([
            Sides {
                source: embeddings.of_source(mean(&embeddings.source_images)?)?,
                target: mean(&target.images)?,
            },
            Sides {
                source: embeddings.of_source(mean(&embeddings.source_sentences)?)?,
                target: mean(&target.sentences)?,
            },
        ])
    }

    /// Structure transfer, target images against source images and their sentences, and the mirror image.
    fn structure_loss(&self, embeddings: &Embeddings, target: &TargetEmbeddings) -> Result<Tensor> {
        let Embeddings { source_images, source_sentences, .. } = embeddings;
        let (source_images, source_sentences) = (unit_rows(source_images)?, unit_rows(source_sentences)?);
        let (target_images, target_sentences) = (unit_rows(&target.images)?, unit_rows(&target.sentences)?);
        let images = self.one_direction(&target_images, &source_images, &source_sentences)?;
        let sentences = self.one_direction(&target_sentences, &source_sentences, &source_images)?;
        Ok((images + sentences)?)
    }

    /// The mean over the members of an ensemble.
    fn one_direction(&self, target: &Encoded, own: &Encoded, partners: &Encoded) -> Result<Tensor> {
        let members = target.members.iter().zip(&own.members).zip(&partners.members);
        let losses = members
            .map(|((target, own), partners)| self.of_member(target, own, partners))
            .collect::<Result<Vec<_>>>()?;
        Ok(Tensor::stack(&losses, 0)?.mean_all()?)
    }

    fn of_member(&self, target: &Embedded, own: &Embedded, partners: &Embedded) -> Result<Tensor> {
        let sides = (&target.fragments, &own.fragments, &partners.fragments);
        let (Some(target), Some(own), Some(partners)) = sides else {
            let own = pooled_similarity(&target.pooled, &own.pooled)?;
            let cross = pooled_similarity(&target.pooled, &partners.pooled)?;
            return Ok(self.structure.forward(&own, &cross)?);
        };
        // All pairs are compared to find the neighbours; the gradient goes through the neighbours alone.
        let all = unit_fragment_similarity(
            &target.features().detach(),
            self.counted(target),
            &own.features().detach(),
            self.counted(own),
        )?;
        let nearest = self.structure.neighbours(&all)?;
        let to = |source: &Fragments| {
            let (mask, source_mask) = (self.counted(target), self.counted(source));
            neighbour_similarity(target.features(), mask, source.features(), source_mask, &nearest)
        };
        Ok(self.structure.of_neighbours(&to(own)?, &to(partners)?)?)
    }

    /// The mask that the similarity of fragments takes: in the released procedure padding counts.
    fn counted<'a>(&self, fragments: &'a Fragments) -> Option<&'a Tensor> {
        (!self.released()).then(|| fragments.mask())
    }

    /// `adaptation` runs from 0 to 1 over the second part.
    fn semantic_weight(&self, adaptation: f64) -> f64 {
        let warms_up = self.shared.warm_up && !self.released();
        let schedule = if warms_up { dann_schedule(adaptation) } else { 1.0 };
        self.config.semantic_weight * schedule
    }

    /// The weighted structure loss, where it has a weight, and its log line.
    fn weighted_structure(
        &self,
        embeddings: &Embeddings,
        target: &TargetEmbeddings,
        logged: &mut Vec<(&'static str, Figure)>,
    ) -> Result<Option<Tensor>> {
        if self.config.structure_weight == 0.0 {
            return Ok(None);
        }
        let structure = self.structure_loss(embeddings, target)?;
        logged.push(("structure_loss", Figure::of(&structure)?));
        Ok(Some((structure * self.config.structure_weight)?))
    }

    /// The critics' own step, on embeddings without a graph.
    fn critic_phase(&self, embeddings: &Embeddings, target: &TargetEmbeddings) -> Result<PhaseOutcome> {
        let [images, sentences] = self.sides(embeddings, target)?;
        let sides = [images.detach(), sentences.detach()];
        let logits = self.critics.logits(&sides)?;
        let (loss, logged) = match self.config.adversary {
            Adversary::Wasserstein => self.wasserstein_critic_loss(&sides, &logits)?,
            Adversary::Alternating | Adversary::GradientReversal => critic_loss(&logits)?,
        };
        Ok(PhaseOutcome::critic(loss, logged))
    }

    fn wasserstein_critic_loss(
        &self,
        sides: &[Sides; 2],
        logits: &Logits,
    ) -> Result<(Tensor, Vec<(&'static str, Figure)>)> {
        let [image_critic, sentence_critic] = self.critics.each();
        let [images, sentences] = sides;
        let [image_logits, sentence_logits] = logits;
        let loss = WassersteinCriticLoss::default();
        let of = |critic, sides: &Sides, logits: &(Tensor, Tensor)| {
            let mix = spread_over_unit(sides.source.dim(0)?, sides.source.device())?;
            let penalty = loss.gradient_penalty(critic, &sides.source, &sides.target, &mix)?;
            Ok::<_, crate::TrainError>((loss.critic_loss(&logits.0, &logits.1)? + penalty)?)
        };
        let losses =
            [of(image_critic, images, image_logits)?, of(sentence_critic, sentences, sentence_logits)?];
        logged_sum(losses, logits)
    }

    /// What sets the encoders against the critics.
    fn confusion(&self, logits: &Logits) -> Result<Tensor> {
        match self.config.adversary {
            Adversary::Alternating | Adversary::GradientReversal => confusion_loss(logits),
            Adversary::Wasserstein => {
                let [images, sentences] = logits;
                let loss = WassersteinCriticLoss::default();
                Ok((loss.encoder_loss(&images.0, &images.1)?
                    + loss.encoder_loss(&sentences.0, &sentences.1)?)?)
            }
        }
    }

    fn encoder_phase(
        &self,
        alignment: Aligned,
        embeddings: &Embeddings,
        target: &TargetEmbeddings,
        adaptation: f64,
    ) -> Result<PhaseOutcome> {
        let Aligned { mut loss, mut logged } = alignment;
        if let Some(structure) = self.weighted_structure(embeddings, target, &mut logged)? {
            loss = (loss + structure)?;
        }
        if self.config.semantic_weight > 0.0 {
            let confusion = self.confusion(&self.critics.logits(&self.sides(embeddings, target)?)?)?;
            logged.push(("confusion_loss", Figure::of(&confusion)?));
            loss = (loss + (confusion * self.semantic_weight(adaptation))?)?;
        }
        Ok(PhaseOutcome::encoder(loss, logged))
    }

    fn reversal_phase(
        &self,
        alignment: Aligned,
        embeddings: &Embeddings,
        target: &TargetEmbeddings,
        adaptation: f64,
    ) -> Result<PhaseOutcome> {
        let strength = self.semantic_weight(adaptation);
        let reverse = |sides: Sides| {
            Ok::<_, crate::TrainError>(Sides {
                source: gradient_reversal(&sides.source, strength)?,
                target: gradient_reversal(&sides.target, strength)?,
            })
        };
        let [images, sentences] = self.sides(embeddings, target)?;
        let (critic_loss, mut logged) =
            critic_loss(&self.critics.logits(&[reverse(images)?, reverse(sentences)?])?)?;
        let Aligned { mut loss, logged: of_source } = alignment;
        logged.extend(of_source);
        if let Some(structure) = self.weighted_structure(embeddings, target, &mut logged)? {
            loss = (loss + structure)?;
        }
        let objectives = vec![
            Objective { loss, reaches: vec![Group::Encoder] },
            Objective { loss: critic_loss, reaches: vec![Group::Encoder, Group::Critic] },
        ];
        Ok(PhaseOutcome { objectives, logged })
    }

    /// Both losses from one forward pass; the critics also take the gradient of the encoders' loss.
    fn released_phase(
        &self,
        alignment: Aligned,
        embeddings: &Embeddings,
        target: &TargetEmbeddings,
    ) -> Result<PhaseOutcome> {
        let [images, sentences] = self.sides(embeddings, target)?;
        let mut outcome = self.encoder_phase(alignment, embeddings, target, 1.0)?;
        for objective in &mut outcome.objectives {
            objective.reaches.push(Group::Critic);
        }
        // Its gradient reaches the critics alone: with a graph behind the sides it would be computed through all encoders.
        let (loss, logged) = critic_loss(&self.critics.logits(&[images.detach(), sentences.detach()])?)?;
        outcome.objectives.push(Objective { loss, reaches: vec![Group::Critic] });
        outcome.logged.extend(logged);
        Ok(outcome)
    }
}

impl Method for Aeir {
    fn encoder(&self) -> &DualEncoder {
        &self.encoder
    }

    fn uses_target(&self, moment: Moment) -> bool {
        self.adaptation.progress(moment).is_some()
    }

    fn phases(&self, moment: Moment) -> usize {
        let alternates = self.config.adversary != Adversary::GradientReversal && !self.released();
        let adversarial = self.config.semantic_weight > 0.0;
        if self.uses_target(moment) && alternates && adversarial { 2 } else { 1 }
    }

    fn clips_jointly(&self) -> bool {
        self.released()
    }

    fn phase(
        &self,
        index: usize,
        embeddings: &Embeddings,
        moment: Moment,
        mode: &mut Mode<'_>,
    ) -> Result<PhaseOutcome> {
        let adaptation = self.adaptation.progress(moment);
        let (Some(adaptation), Some(target)) = (adaptation, &embeddings.target) else {
            let Aligned { loss, logged } = self.alignment.loss(&self.encoder, embeddings, moment, mode)?;
            return Ok(PhaseOutcome::encoder(loss, logged));
        };
        if self.phases(moment) == 2 && index == 0 {
            return self.critic_phase(embeddings, target);
        }
        let alignment = self.alignment.loss(&self.encoder, embeddings, moment, mode)?;
        if self.released() {
            return self.released_phase(alignment, embeddings, target);
        }
        let reverses = self.config.adversary == Adversary::GradientReversal;
        if reverses && self.config.semantic_weight > 0.0 {
            return self.reversal_phase(alignment, embeddings, target, adaptation);
        }
        self.encoder_phase(alignment, embeddings, target, adaptation)
    }
}

/// Fragments of unit length: what a tower gives are such, but the gradient of this scaling is a part of the similarity's.
fn unit_rows(encoded: &Encoded) -> Result<Encoded> {
    let of_member = |member: &Embedded| {
        let fragments = member.fragments.as_ref().map(|fragments| {
            let unit = l2_normalise_released(fragments.features())?;
            fragments.with_features(unit)
        });
        Ok(Embedded { fragments: fragments.transpose()?, pooled: member.pooled.clone() })
    };
    Ok(Encoded { members: encoded.members.iter().map(of_member).collect::<Result<_>>()? })
}

/// The mean over all positions, padding included.
fn padded_mean(encoded: &Encoded) -> Result<Tensor> {
    let means = encoded
        .members
        .iter()
        .map(|member| match &member.fragments {
            Some(fragments) => Ok(fragments.padded_mean()?),
            None => Ok(member.pooled.clone()),
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(Tensor::cat(&means, 1)?)
}

/// Where between the domains the slope is looked at: evenly spread, so that nothing random has to be stored. The batches
/// are shuffled already.
fn spread_over_unit(count: usize, device: &Device) -> Result<Tensor> {
    let points: Vec<f32> = (0..count).map(|index| (index as f32 + 0.5) / count as f32).collect();
    Ok(Tensor::new(points, device)?)
}
