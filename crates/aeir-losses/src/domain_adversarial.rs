//! The domain-adversarial loss.

use candle_core::Tensor;

use crate::error::{Check, LossError, Within};
use crate::stable::softplus;

const LOSS: &str = "DomainAdversarialLoss";

/// Domain-adversarial loss: a critic tells the domains apart, the encoder makes that impossible.
///
/// Two ways to play the game. Alternation: step the critic on [`critic_loss`](Self::critic_loss) of detached vectors, then the
/// encoder on [`confusion_loss`](Self::confusion_loss) with the critic fixed. Gradient reversal: one step on
/// [`critic_loss`](Self::critic_loss) of vectors that went through [`gradient_reversal`](crate::gradient_reversal). One call a
/// modality; the two are added.
///
/// # Equation
/// With `c(x) = sigmoid(logit)`, the probability of the source:
///
/// ```text
/// critic    = -mean ln c(source) - mean ln(1 - c(target))
/// confusion = -mean ln(1 - c(source)) - mean ln c(target)
/// ```
///
/// Ganin et al., *Domain-adversarial training of neural networks*, JMLR 17 (2016); exchanged labels for the encoder: Goodfellow
/// et al., *Generative adversarial nets*, NeurIPS 2014.
///
/// # Shapes
/// `source_logits` `[B1]` or `[B1, 1]`, `target_logits` `[B2]` or `[B2, 1]`; sizes may differ. Result `[]`.
///
/// # Parameters and units
/// None.
///
/// # Numerical notes
/// From logits: `-ln sigmoid(x) = max(-x, 0) + ln(1 + exp(-|x|))`, finite for any finite logit. A batch of one is defined.
///
/// # Errors
/// [`LossError::Shape`], [`LossError::ElementType`], [`LossError::Candle`].
///
/// # Deviations from the released procedure
/// The values are the same. The released step adds both losses' gradients in the critic, which makes the adversarial part
/// do nothing; whether to do that is the caller's choice.
///
/// # Parity file
/// `fixtures/parity/losses/domain_adversarial.safetensors`, `fixtures/parity/aecr/{saf,sgr}.safetensors`
/// (`train.loss.{discriminator,confusion}`)
///
/// # Example
/// ```
/// use aeir_losses::DomainAdversarialLoss;
/// use candle_core::{Device, Tensor};
///
/// let source = Tensor::new(&[4f64, 5.], &Device::Cpu)?;
/// let target = Tensor::new(&[-6f64], &Device::Cpu)?;
/// let critic = DomainAdversarialLoss.critic_loss(&source, &target)?.to_scalar::<f64>()?;
/// let confusion = DomainAdversarialLoss.confusion_loss(&source, &target)?.to_scalar::<f64>()?;
/// assert!(critic < 0.05 && confusion > 10.);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DomainAdversarialLoss;

impl DomainAdversarialLoss {
    /// What the critic minimises: source is 1, target 0.
    ///
    /// # Errors
    /// See the type's documentation.
    pub fn critic_loss(&self, source_logits: &Tensor, target_logits: &Tensor) -> Result<Tensor, LossError> {
        let check = Check(LOSS);
        let source = check.logits("source_logits", source_logits)?;
        check.same_type("target_logits", target_logits, source_logits)?;
        let target = check.logits("target_logits", target_logits)?;
        let both = || softplus(&source.neg()?)?.mean_all()? + softplus(&target)?.mean_all()?;
        both().within(LOSS)
    }

    /// What the encoder minimises: the same with the domains exchanged.
    ///
    /// # Errors
    /// See the type's documentation.
    pub fn confusion_loss(
        &self,
        source_logits: &Tensor,
        target_logits: &Tensor,
    ) -> Result<Tensor, LossError> {
        let check = Check(LOSS);
        let source = check.logits("source_logits", source_logits)?;
        check.same_type("target_logits", target_logits, source_logits)?;
        let target = check.logits("target_logits", target_logits)?;
        let both = || softplus(&source)?.mean_all()? + softplus(&target.neg()?)?.mean_all()?;
        both().within(LOSS)
    }
}
