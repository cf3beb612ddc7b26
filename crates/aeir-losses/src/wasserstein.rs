//! The Wasserstein critic with gradient penalty.

use candle_core::Tensor;

use crate::domain_critic::DomainCritic;
use crate::error::{Check, LossError, Within};
use crate::mean_discrepancy::check_sets;

const LOSS: &str = "WassersteinCriticLoss";

/// Wasserstein adversarial loss with gradient penalty (WGAN-GP): the critic estimates how far the domains are apart.
///
/// The critic's output is a score here, not a logit. Its slope is held near 1 between the domains by a penalty, so it never
/// saturates. The critic minimises `critic_loss + gradient_penalty`, on detached vectors, several steps for one of the
/// encoder's; the encoder minimises [`encoder_loss`](Self::encoder_loss).
///
/// # Equation
/// ```text
/// critic  = mean c(target) - mean c(source)
/// encoder = mean c(source) - mean c(target)
/// penalty = weight * mean (|grad_x c(x)| - 1)^2      x = a source + (1 - a) target, a uniform in [0, 1]
/// ```
///
/// Gulrajani et al., *Improved training of Wasserstein GANs*, NeurIPS 2017 (arXiv 1704.00028); for adaptation: Shen et al.,
/// *Wasserstein distance guided representation learning*, AAAI 2018.
///
/// # Shapes
/// `source_scores` `[B1]` or `[B1, 1]`, `target_scores` `[B2]` or `[B2, 1]`; `source` `[B1, D]`, `target` `[B2, D]`, `mix` `[P]`:
/// point i lies between source row `i mod B1` and target row `i mod B2`. Results `[]`.
///
/// # Parameters and units
/// `penalty_weight`: a pure number, 10 by default. `mix`: the caller draws it, so that the run can be repeated.
///
/// # Numerical notes
/// candle has no second derivatives. The critic's input gradient is therefore written out as tensor operations
/// ([`DomainCritic::input_gradient`]) with the ReLUs' masks as constants: the penalty's gradient for the weights is exact
/// except where a hidden unit is exactly 0, the same as automatic second derivatives give. This holds for [`DomainCritic`], not
/// for other critics. The norm is `sqrt(sum g^2 + 1e-12)`. Biases and the points get no gradient from the penalty.
///
/// # Errors
/// [`LossError::Shape`], [`LossError::ElementType`], [`LossError::Parameter`] (`penalty_weight`), [`LossError::Candle`].
///
/// # Deviations from the released procedure
/// The released procedure has the logarithmic losses alone.
///
/// # Parity file
/// `fixtures/parity/losses/wasserstein.safetensors`: the penalty differentiated twice by PyTorch.
///
/// # Example
/// ```
/// use aeir_losses::{DomainCritic, WassersteinCriticLoss};
/// use candle_core::{DType, Device, Tensor};
/// use candle_nn::VarBuilder;
///
/// let critic = DomainCritic::new(4, VarBuilder::zeros(DType::F64, &Device::Cpu))?;
/// let source = Tensor::ones((3, 4), DType::F64, &Device::Cpu)?;
/// let target = Tensor::zeros((2, 4), DType::F64, &Device::Cpu)?;
/// let mix = Tensor::new(&[0.2f64, 0.5, 0.9], &Device::Cpu)?;
/// let penalty = WassersteinCriticLoss::default().gradient_penalty(&critic, &source, &target, &mix)?;
/// // a critic of zeros has slope 0: 10 * (0 - 1)^2
/// assert!((penalty.to_scalar::<f64>()? - 10.).abs() < 1e-4);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WassersteinCriticLoss {
    /// What the gradient penalty is multiplied by.
    pub penalty_weight: f64,
}

impl Default for WassersteinCriticLoss {
    fn default() -> Self {
        Self { penalty_weight: 10.0 }
    }
}

impl WassersteinCriticLoss {
    /// What the critic minimises, before the penalty.
    ///
    /// # Errors
    /// See the type's documentation.
    pub fn critic_loss(&self, source_scores: &Tensor, target_scores: &Tensor) -> Result<Tensor, LossError> {
        self.encoder_loss(source_scores, target_scores)?.neg().within(LOSS)
    }

    /// What the encoder minimises: the critic's estimate of the domains' distance.
    ///
    /// # Errors
    /// See the type's documentation.
    pub fn encoder_loss(&self, source_scores: &Tensor, target_scores: &Tensor) -> Result<Tensor, LossError> {
        let check = Check(LOSS);
        let source = check.logits("source_scores", source_scores)?;
        check.same_type("target_scores", target_scores, source_scores)?;
        let target = check.logits("target_scores", target_scores)?;
        let difference = || source.mean_all()? - target.mean_all()?;
        difference().within(LOSS)
    }

    /// The weighted penalty on the critic's slope at points between the domains.
    ///
    /// # Errors
    /// See the type's documentation.
    pub fn gradient_penalty(
        &self,
        critic: &DomainCritic,
        source: &Tensor,
        target: &Tensor,
        mix: &Tensor,
    ) -> Result<Tensor, LossError> {
        let check = Check(LOSS);
        check.not_negative("penalty_weight", self.penalty_weight)?;
        check_sets(check, source, target)?;
        check.same_type("mix", mix, source)?;
        if mix.rank() != 1 || mix.elem_count() == 0 {
            return Err(check.shape_error("mix", "[P], not empty".to_owned(), mix));
        }
        let points = points_between(source, target, mix).within(LOSS)?;
        let slopes = critic.input_gradient(&points)?;
        let penalty = || {
            let norms = (slopes.sqr()?.sum(1)? + 1e-12)?.sqrt()?;
            (norms - 1.0)?.sqr()?.mean_all()? * self.penalty_weight
        };
        penalty().within(LOSS)
    }
}

fn points_between(source: &Tensor, target: &Tensor, mix: &Tensor) -> candle_core::Result<Tensor> {
    let count = mix.elem_count();
    let source = cycled(&source.detach(), count)?;
    let target = cycled(&target.detach(), count)?;
    let share = mix.detach().unsqueeze(1)?;
    &target + (source - &target)?.broadcast_mul(&share)?
}

/// `count` rows: the first ones, from the start again where they run out.
fn cycled(x: &Tensor, count: usize) -> candle_core::Result<Tensor> {
    let rows = u32::try_from(x.dim(0)?).map_err(candle_core::Error::wrap)?;
    let count = u32::try_from(count).map_err(candle_core::Error::wrap)?;
    let indices: Vec<u32> = (0..rows).cycle().zip(0..count).map(|(row, _)| row).collect();
    x.index_select(&Tensor::new(indices, x.device())?, 0)
}
