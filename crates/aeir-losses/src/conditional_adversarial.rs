//! The conditional adversarial loss (CDAN).

use candle_core::{D, Tensor};

use crate::error::{Check, LossError, Within};
use crate::rehearsal::Product;
use crate::stable::softplus;

const LOSS: &str = "ConditionalAdversarialLoss";

/// How a feature vector and a prediction vector become the critic's input.
#[derive(Debug, Clone)]
pub enum ConditionalMap {
    /// Every product of a feature with a prediction, `[B, D * C]`: exact, for products up to
    /// [`ConditionalAdversarialLoss::LARGEST_PRODUCT`].
    Multilinear,
    /// Products of random projections, `[B, R]`: an estimate of the multilinear inner product. The projections stay fixed in
    /// training; draw them with unit variance from a seeded generator and save them with the model.
    Randomised {
        /// `[D, R]`
        features: Tensor,
        /// `[C, R]`
        predictions: Tensor,
    },
}

/// Conditional domain-adversarial loss (CDAN): the critic sees features together with what the model makes of them.
///
/// Matching features alone can map target items onto the wrong source items. Here the critic judges the joint of a pooled
/// vector and a distribution predicted from it; in retrieval that is a softmax over prototypes, clusters, or a bank of source
/// items. Critic: [`DomainCritic::with_widths`](crate::DomainCritic::with_widths) on the
/// [`condition`](Self::condition)ed vectors.
///
/// # Equation
/// With features f, predictions g, critic c on the map T:
///
/// ```text
/// T(f, g) = f (x) g                               multilinear
/// T(f, g) = (R_f f) * (R_g g) / sqrt(R)           randomised
/// critic  = -sum w ln c(source) / sum w  -  sum w ln(1 - c(target)) / sum w       w = 1 + exp(-H(g)), or 1
/// ```
///
/// Long et al., *Conditional adversarial domain adaptation*, NeurIPS 2018 (arXiv 1705.10667).
///
/// # Shapes
/// `features` `[B, D]`, `predictions` `[B, C]` (rows are probabilities), `*_logits` `[B]` or `[B, 1]`; the domains' sizes may
/// differ. [`condition`](Self::condition): `[B, D * C]` or `[B, R]`; losses `[]`.
///
/// # Parameters and units
/// `map`; `entropy_conditioning`: confident items weigh more (CDAN+E), weights are constants; `detach_predictions`: no
/// gradient through the predictions, as the authors' code has it.
///
/// # Numerical notes
/// Losses from logits, as in [`DomainAdversarialLoss`](crate::DomainAdversarialLoss). A probability of 0 adds no entropy.
///
/// # Errors
/// [`LossError::Shape`], [`LossError::ElementType`], [`LossError::Candle`].
///
/// # Deviations from the released procedure
/// The released procedure is not conditional.
///
/// # Parity file
/// `fixtures/parity/losses/conditional_adversarial.safetensors`
///
/// # Example
/// ```
/// use aeir_losses::ConditionalAdversarialLoss;
/// use candle_core::{Device, Tensor};
///
/// let features = Tensor::new(&[[1f64, 2.]], &Device::Cpu)?;
/// let predictions = Tensor::new(&[[0.25f64, 0.75]], &Device::Cpu)?;
/// let joint = ConditionalAdversarialLoss::default().condition(&features, &predictions)?;
/// assert_eq!(joint.to_vec2::<f64>()?, [[0.25, 0.75, 0.5, 1.5]]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct ConditionalAdversarialLoss {
    /// How features and predictions are joined.
    pub map: ConditionalMap,
    /// Whether confident items weigh more.
    pub entropy_conditioning: bool,
    /// Whether the predictions are constants in [`condition`](Self::condition).
    pub detach_predictions: bool,
}

impl Default for ConditionalAdversarialLoss {
    fn default() -> Self {
        Self { map: ConditionalMap::Multilinear, entropy_conditioning: true, detach_predictions: true }
    }
}

impl ConditionalAdversarialLoss {
    /// The product D * C above which the paper takes the randomised map.
    pub const LARGEST_PRODUCT: usize = 4096;

    /// The critic's input.
    ///
    /// # Errors
    /// See the type's documentation.
    pub fn condition(&self, features: &Tensor, predictions: &Tensor) -> Result<Tensor, LossError> {
        let check = Check(LOSS);
        let (rows, dimension) = check.matrix("features", "[B, D]", features)?;
        check.same_type("predictions", predictions, features)?;
        let (prediction_rows, classes) = check.matrix("predictions", "[B, C]", predictions)?;
        if prediction_rows != rows {
            return Err(check.shape_error("predictions", format!("[B, C] with B = {rows}"), predictions));
        }
        let predictions = if self.detach_predictions { predictions.detach() } else { predictions.clone() };
        match &self.map {
            ConditionalMap::Multilinear => {
                let product = features.unsqueeze(2).and_then(|f| {
                    f.broadcast_mul(&predictions.unsqueeze(1)?)?.reshape((rows, dimension * classes))
                });
                product.within(LOSS)
            }
            ConditionalMap::Randomised { features: of_features, predictions: of_predictions } => {
                let size = projection(check, "map.features", of_features, features, dimension)?;
                if projection(check, "map.predictions", of_predictions, features, classes)? != size {
                    return Err(check.shape_error(
                        "map.predictions",
                        format!("[{classes}, {size}]"),
                        of_predictions,
                    ));
                }
                let product = || {
                    let features = features.contiguous()?.product(&of_features.contiguous()?)?;
                    let predictions = predictions.contiguous()?.product(&of_predictions.contiguous()?)?;
                    (features * predictions)? / (size as f64).sqrt()
                };
                product().within(LOSS)
            }
        }
    }

    /// What the critic minimises: source is 1, target 0.
    ///
    /// # Errors
    /// See the type's documentation.
    pub fn critic_loss(
        &self,
        source_logits: &Tensor,
        source_predictions: &Tensor,
        target_logits: &Tensor,
        target_predictions: &Tensor,
    ) -> Result<Tensor, LossError> {
        let check = Check(LOSS);
        let source = check.logits("source_logits", source_logits)?;
        check.same_type("target_logits", target_logits, source_logits)?;
        let target = check.logits("target_logits", target_logits)?;
        let source = source.neg().within(LOSS)?;
        let source = self.weighted_mean(&source, "source_predictions", source_predictions)?;
        let target = self.weighted_mean(&target, "target_predictions", target_predictions)?;
        (source + target).within(LOSS)
    }

    /// What the encoder minimises: the same with the domains exchanged.
    ///
    /// # Errors
    /// See the type's documentation.
    pub fn confusion_loss(
        &self,
        source_logits: &Tensor,
        source_predictions: &Tensor,
        target_logits: &Tensor,
        target_predictions: &Tensor,
    ) -> Result<Tensor, LossError> {
        let check = Check(LOSS);
        let source = check.logits("source_logits", source_logits)?;
        check.same_type("target_logits", target_logits, source_logits)?;
        let target = check.logits("target_logits", target_logits)?.neg().within(LOSS)?;
        let source = self.weighted_mean(&source, "source_predictions", source_predictions)?;
        let target = self.weighted_mean(&target, "target_predictions", target_predictions)?;
        (source + target).within(LOSS)
    }

    /// The weighted mean of `ln(1 + exp(x))`.
    fn weighted_mean(
        &self,
        x: &Tensor,
        name: &'static str,
        predictions: &Tensor,
    ) -> Result<Tensor, LossError> {
        let check = Check(LOSS);
        check.same_type(name, predictions, x)?;
        let (rows, _) = check.matrix(name, "[B, C]", predictions)?;
        if x.dims() != [rows] {
            return Err(check.shape_error(name, format!("[B, C] with B = {}", x.elem_count()), predictions));
        }
        let mean = || {
            let terms = softplus(x)?;
            if !self.entropy_conditioning {
                return terms.mean_all();
            }
            let weights = (entropy(&predictions.detach())?.neg()?.exp()? + 1.0)?;
            (terms * &weights)?.sum_all()? / weights.sum_all()?
        };
        mean().within(LOSS)
    }
}

fn projection(
    check: Check,
    name: &'static str,
    matrix: &Tensor,
    like: &Tensor,
    inputs: usize,
) -> Result<usize, LossError> {
    check.same_type(name, matrix, like)?;
    match check.matrix(name, "[D, R]", matrix)? {
        (rows, size) if rows == inputs => Ok(size),
        _ => Err(check.shape_error(name, format!("[{inputs}, R]"), matrix)),
    }
}

/// The entropy of each row, `[B]`, in nats.
fn entropy(probabilities: &Tensor) -> candle_core::Result<Tensor> {
    let logarithms = probabilities.maximum(1e-30)?.log()?;
    (probabilities * logarithms)?.sum(D::Minus1)?.neg()
}
