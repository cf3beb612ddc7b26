//! CDAN: critics that see an embedding together with what it would retrieve.

use aeir_encoders::rehearsal::Product;
use aeir_encoders::{DualEncoder, Encoded, Mode};
use aeir_losses::{ConditionalAdversarialLoss, ConditionalMap};
use candle_core::{D, Tensor};
use candle_nn::Init;

use super::alignment::{Aligned, SourceAlignment};
use super::critics::{Critics, Sides, logged_sum};
use super::{Adaptation, Embeddings, Method, Moment, PhaseOutcome};
use crate::config::{AdaptationConfig, TrainConfig};
use crate::error::{Result, TrainError};
use crate::figure::Figure;
use crate::parameters::ParameterStore;
use aeir_losses::dann_schedule;

/// Length of the randomised map, as in the authors' code.
const RANDOMISED_WIDTH: usize = 1024;

/// Critics judge the product of an embedding and its prediction. Retrieval has no classes: fixed source pairs, the
/// anchors, take their place. An image's prediction is the softmax of its scaled cosines to the anchors' sentences, a
/// sentence's that to the anchors' images.
///
/// Equation: critics on `x ⊗ softmax(s x A^T)`, entropy-conditioned, A the other modality's anchors; alternating steps;
/// above 4,096 products the randomised map of length 1,024. The critics' hidden layers have D and 64 units: half of so long
/// an input would take most of the time of a training. The encoders minimise `alignment + w(p) weight confusion`.
///
/// Source: Long et al., *Conditional adversarial domain adaptation*, NeurIPS 2018. The anchors are ours.
pub struct Cdan {
    encoder: DualEncoder,
    alignment: SourceAlignment,
    critics: Critics,
    loss: ConditionalAdversarialLoss,
    adaptation: Adaptation,
    config: AdaptationConfig,
}

/// An embedding's product with its prediction, and the prediction, for both domains of a modality.
struct Conditioned {
    joint: Sides,
    predictions: Sides,
}

impl Cdan {
    /// Trains `encoder` with `config`, its critics in `store`.
    ///
    /// # Errors
    /// When the critics can't be made.
    pub fn new(encoder: DualEncoder, config: &TrainConfig, store: &ParameterStore) -> Result<Self> {
        let (dimension, anchors) = (encoder.config().pooled_dimension(), config.adaptation.anchors);
        let product = dimension * anchors;
        let (map, width) = if product <= ConditionalAdversarialLoss::LARGEST_PRODUCT {
            (ConditionalMap::Multilinear, product)
        } else {
            let width = RANDOMISED_WIDTH;
            let builder = store.builder().pp("critic");
            let normal = Init::Randn { mean: 0.0, stdev: 1.0 };
            let random = |rows, name| builder.get_with_hints((rows, width), name, normal);
            let map = ConditionalMap::Randomised {
                features: random(dimension, "random_features")?.detach(),
                predictions: random(anchors, "random_predictions")?.detach(),
            };
            (map, width)
        };
        Ok(Self {
            encoder,
            alignment: SourceAlignment::new(config),
            critics: Critics::with_widths(width, [dimension, 64], store)?,
            loss: ConditionalAdversarialLoss { map, ..ConditionalAdversarialLoss::default() },
            adaptation: Adaptation::new(config),
            config: config.adaptation,
        })
    }

    fn condition(&self, source: &Encoded, target: &Encoded, anchors: &Encoded) -> Result<Conditioned> {
        let anchors = anchors.pooled()?.detach();
        let scale = self.encoder.log_scale().detach().exp()?;
        let (source, target) = (source.pooled()?, target.pooled()?);
        let predict = |x: &Tensor| {
            let scores = x.product(&anchors.t()?)?.broadcast_mul(&scale)?;
            Ok::<_, TrainError>(candle_nn::ops::softmax(&scores, D::Minus1)?)
        };
        let predictions = Sides { source: predict(&source)?, target: predict(&target)? };
        let joint = Sides {
            source: self.loss.condition(&source, &predictions.source)?,
            target: self.loss.condition(&target, &predictions.target)?,
        };
        Ok(Conditioned { joint, predictions })
    }

    fn conditioned(&self, embeddings: &Embeddings) -> Result<[Conditioned; 2]> {
        let target = embeddings.target()?;
        let (anchor_images, anchor_sentences) =
            embeddings.anchors.as_ref().ok_or_else(|| TrainError::Data {
                what: "a step of `cdan`".into(),
                expected: "anchors".into(),
                got: "none".into(),
            })?;
        Ok([
            self.condition(&embeddings.source_images, &target.images, anchor_sentences)?,
            self.condition(&embeddings.source_sentences, &target.sentences, anchor_images)?,
        ])
    }

    fn critic_phase(&self, modalities: &[Conditioned; 2]) -> Result<PhaseOutcome> {
        let [images, sentences] = modalities;
        let logits = self.critics.logits(&[images.joint.detach(), sentences.joint.detach()])?;
        let [image_logits, sentence_logits] = &logits;
        let of = |logits: &(Tensor, Tensor), seen: &Conditioned| {
            let Sides { source, target } = seen.predictions.detach();
            self.loss.critic_loss(&logits.0, &source, &logits.1, &target)
        };
        let losses = [of(image_logits, images)?, of(sentence_logits, sentences)?];
        let (loss, logged) = logged_sum(losses, &logits)?;
        Ok(PhaseOutcome::critic(loss, logged))
    }

    fn confusion(&self, modalities: [Conditioned; 2]) -> Result<Tensor> {
        let [images, sentences] = modalities;
        let [image_logits, sentence_logits] = self.critics.logits(&[images.joint, sentences.joint])?;
        let of = |logits: (Tensor, Tensor), seen: Sides| {
            self.loss.confusion_loss(&logits.0, &seen.source, &logits.1, &seen.target)
        };
        Ok((of(image_logits, images.predictions)? + of(sentence_logits, sentences.predictions)?)?)
    }
}

impl Method for Cdan {
    fn encoder(&self) -> &DualEncoder {
        &self.encoder
    }

    fn uses_target(&self, moment: Moment) -> bool {
        self.adaptation.progress(moment).is_some()
    }

    fn phases(&self, moment: Moment) -> usize {
        if self.uses_target(moment) { 2 } else { 1 }
    }

    fn anchors(&self) -> usize {
        self.config.anchors
    }

    fn phase(
        &self,
        index: usize,
        embeddings: &Embeddings,
        moment: Moment,
        mode: &mut Mode<'_>,
    ) -> Result<PhaseOutcome> {
        let Some(adaptation) = self.adaptation.progress(moment) else {
            let Aligned { loss, logged } = self.alignment.loss(&self.encoder, embeddings, moment, mode)?;
            return Ok(PhaseOutcome::encoder(loss, logged));
        };
        let modalities = self.conditioned(embeddings)?;
        if index == 0 {
            return self.critic_phase(&modalities);
        }
        let Aligned { loss, mut logged } = self.alignment.loss(&self.encoder, embeddings, moment, mode)?;
        let confusion = self.confusion(modalities)?;
        logged.push(("confusion_loss", Figure::of(&confusion)?));
        let schedule = if self.config.warm_up { dann_schedule(adaptation) } else { 1.0 };
        let loss = (loss + (confusion * (self.config.weight * schedule))?)?;
        Ok(PhaseOutcome::encoder(loss, logged))
    }
}
