//! One domain critic a modality, shared by the adversarial methods.

use aeir_losses::{DomainAdversarialLoss, DomainCritic};
use candle_core::Tensor;

use crate::error::Result;
use crate::figure::{Figure, stays};
use crate::parameters::ParameterStore;

/// What a log line about critics and modality is called.
const LOSSES: [&str; 2] = ["critic_loss_images", "critic_loss_sentences"];
/// The share of right verdicts.
pub(crate) const ACCURACIES: [&str; 2] = ["critic_accuracy_images", "critic_accuracy_sentences"];

/// Vectors of both domains in one modality, `[B, D]` and `[T, D]`.
pub(super) struct Sides {
    pub(super) source: Tensor,
    pub(super) target: Tensor,
}

impl Sides {
    pub(super) fn detach(&self) -> Self {
        Self { source: self.source.detach(), target: self.target.detach() }
    }
}

/// Critics of images and sentences.
pub(super) struct Critics([DomainCritic; 2]);

/// The critics' verdicts, one pair of logits a modality: images, sentences.
pub(super) type Logits = [(Tensor, Tensor); 2];

impl Critics {
    /// Critics of vectors of these lengths, in group `critic`.
    pub(super) fn new(dimensions: [usize; 2], store: &ParameterStore) -> Result<Self> {
        let [images, sentences] = dimensions;
        let critic = |dimension, modality: &str| {
            DomainCritic::new(dimension, store.builder().pp("critic").pp(modality))
        };
        Ok(Self([critic(images, "image")?, critic(sentences, "sentence")?]))
    }

    /// Critics of vectors of length `dimension` with hidden layers of other widths than half of that and 64.
    pub(super) fn with_widths(dimension: usize, widths: [usize; 2], store: &ParameterStore) -> Result<Self> {
        let critic = |modality: &str| {
            DomainCritic::with_widths(dimension, widths, store.builder().pp("critic").pp(modality))
        };
        Ok(Self([critic("image")?, critic("sentence")?]))
    }

    pub(super) fn each(&self) -> &[DomainCritic; 2] {
        &self.0
    }

    /// What the critics say.
    pub(super) fn logits(&self, sides: &[Sides; 2]) -> Result<Logits> {
        let [image_critic, sentence_critic] = &self.0;
        let [images, sentences] = sides;
        let judge = |critic: &DomainCritic, sides: &Sides| {
            Ok::<_, crate::TrainError>((critic.forward(&sides.source)?, critic.forward(&sides.target)?))
        };
        Ok([judge(image_critic, images)?, judge(sentence_critic, sentences)?])
    }
}

/// The critics' own loss, both modalities added, with its log lines.
pub(super) fn critic_loss(logits: &Logits) -> Result<(Tensor, Vec<(&'static str, Figure)>)> {
    let losses = each(logits, |source, target| Ok(DomainAdversarialLoss.critic_loss(source, target)?))?;
    logged_sum(losses, logits)
}

/// The loss that sets the encoders against the critics, both modalities added.
pub(super) fn confusion_loss(logits: &Logits) -> Result<Tensor> {
    let [images, sentences] =
        each(logits, |source, target| Ok(DomainAdversarialLoss.confusion_loss(source, target)?))?;
    Ok((images + sentences)?)
}

/// The sum of both modalities' losses, with loss and accuracy of each for the log.
pub(super) fn logged_sum(
    losses: [Tensor; 2],
    logits: &Logits,
) -> Result<(Tensor, Vec<(&'static str, Figure)>)> {
    let mut logged = Vec::with_capacity(4);
    for (name, loss) in LOSSES.into_iter().zip(&losses) {
        logged.push((name, Figure::of(loss)?));
    }
    for (name, (source, target)) in ACCURACIES.into_iter().zip(logits) {
        let accuracy = match stays(source.device()) {
            true => Figure::of(&DomainCritic::accuracy_on_device(source, target)?)?,
            false => Figure::known(DomainCritic::accuracy(source, target)?),
        };
        logged.push((name, accuracy));
    }
    let [images, sentences] = losses;
    Ok(((images + sentences)?, logged))
}

fn each(logits: &Logits, loss: impl Fn(&Tensor, &Tensor) -> Result<Tensor>) -> Result<[Tensor; 2]> {
    let [images, sentences] = logits;
    Ok([loss(&images.0, &images.1)?, loss(&sentences.0, &sentences.1)?])
}
