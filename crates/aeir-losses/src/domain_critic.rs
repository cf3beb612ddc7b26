//! The network that tells source from target.

use candle_core::{DType, Tensor};
use candle_nn::{Init, Linear, VarBuilder};

use crate::error::{Check, LossError, Within};
use crate::rehearsal::Product;

const LOSS: &str = "DomainCritic";

/// A three-layer perceptron that says from which domain a pooled vector comes.
///
/// The output is a logit, without a sigmoid: positive says source (label 1), negative says target (label 0). One critic a
/// modality, on mean-pooled fragments. The same network without a reading as probability serves
/// [`WassersteinCriticLoss`](crate::WassersteinCriticLoss).
///
/// # Equation
/// ```text
/// c(x) = w3 relu(W2 relu(W1 x + b1) + b2) + b3      widths D -> D/2 -> 64 -> 1
/// ```
///
/// Ganin et al., *Domain-adversarial training of neural networks*, JMLR 17 (2016); widths: the released AECR procedure.
///
/// # Shapes
/// `pooled` `[B, D]`. Result `[B]`.
///
/// # Parameters and units
/// `dimension` D; `widths` of the two hidden layers, `[D/2 (rounded down), 64]` unless given. Weights are
/// `layers.{0,1,2}.{weight,bias}` under the builder's prefix, weights `[out, in]`.
///
/// # Numerical notes
/// All parameters start uniform in `+-1/sqrt(in)`, as PyTorch's `nn.Linear` does (the builder's back end draws them).
///
/// # Errors
/// [`LossError::Parameter`] (a width of 0), [`LossError::Shape`], [`LossError::ElementType`], [`LossError::Candle`] (a weight is
/// missing).
///
/// # Deviations from the released procedure
/// The released critic ends in a sigmoid, and its padded words enter the pooling; here the losses take logits, and pooling
/// happens outside.
///
/// # Parity file
/// `fixtures/parity/aecr/{saf,sgr}.safetensors` (`weights.disc_*`, `train.domain_prob.*`)
///
/// # Example
/// ```
/// use aeir_losses::DomainCritic;
/// use candle_core::{DType, Device, Tensor};
/// use candle_nn::VarBuilder;
///
/// let critic = DomainCritic::new(8, VarBuilder::zeros(DType::F32, &Device::Cpu))?;
/// let logits = critic.forward(&Tensor::ones((5, 8), DType::F32, &Device::Cpu)?)?;
/// assert_eq!(logits.dims(), [5]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct DomainCritic {
    layers: [Linear; 3],
    dimension: usize,
}

impl DomainCritic {
    /// A critic with the published widths, D/2 and 64.
    ///
    /// # Errors
    /// See the type's documentation.
    pub fn new(dimension: usize, builder: VarBuilder<'_>) -> Result<Self, LossError> {
        Self::with_widths(dimension, [dimension / 2, 64], builder)
    }

    /// A critic with other hidden widths.
    ///
    /// # Errors
    /// See the type's documentation.
    pub fn with_widths(
        dimension: usize,
        widths: [usize; 2],
        builder: VarBuilder<'_>,
    ) -> Result<Self, LossError> {
        let [first, second] = widths;
        let check = Check(LOSS);
        check.parameter(dimension > 0, "dimension", "at least 1", dimension as f64)?;
        check.parameter(first > 0, "widths[0]", "at least 1", first as f64)?;
        check.parameter(second > 0, "widths[1]", "at least 1", second as f64)?;
        let builder = builder.pp("layers");
        let layers = [
            linear(dimension, first, builder.pp("0")).within(LOSS)?,
            linear(first, second, builder.pp("1")).within(LOSS)?,
            linear(second, 1, builder.pp("2")).within(LOSS)?,
        ];
        Ok(Self { layers, dimension })
    }

    /// The dimension D of the vectors it judges.
    #[must_use]
    pub fn dimension(&self) -> usize {
        self.dimension
    }

    /// One logit a row; positive says source.
    ///
    /// # Errors
    /// See the type's documentation.
    pub fn forward(&self, pooled: &Tensor) -> Result<Tensor, LossError> {
        self.check(pooled)?;
        let [first, second, third] = &self.layers;
        let logits = || {
            let hidden = through(first, &pooled.contiguous()?)?.relu()?;
            through(third, &through(second, &hidden)?.relu()?)?.squeeze(1)
        };
        logits().within(LOSS)
    }

    /// The derivative of each row's logit with respect to that row, `[B, D]`, as tensor operations.
    ///
    /// candle can't differentiate a gradient again. Here the gradient is written out, with the ReLUs' 0/1 masks as
    /// constants, so it passes gradients to the three weight matrices. That is exact except where a hidden unit is exactly 0.
    /// Biases move only the masks: their derivative is 0 almost everywhere, and none is recorded. Nothing flows to `pooled`.
    ///
    /// # Errors
    /// See the type's documentation.
    pub fn input_gradient(&self, pooled: &Tensor) -> Result<Tensor, LossError> {
        self.check(pooled)?;
        let [first, second, third] = &self.layers;
        let gradient = || {
            let before_first = through(first, &pooled.detach().contiguous()?)?.detach();
            let before_second = through(second, &before_first.relu()?)?.detach();
            let dtype = pooled.dtype();
            let first_mask = before_first.gt(0f64)?.to_dtype(dtype)?;
            let second_mask = before_second.gt(0f64)?.to_dtype(dtype)?;
            let at_second = second_mask.broadcast_mul(third.weight())?;
            let at_first = (at_second.product(second.weight())? * first_mask)?;
            at_first.product(first.weight())
        };
        gradient().within(LOSS)
    }

    /// How often the critic is right, between 0 and 1: the mean of its accuracies on the two domains, so that 0.5 is chance
    /// whatever the batch sizes.
    ///
    /// # Errors
    /// [`LossError::Shape`], [`LossError::ElementType`], [`LossError::Candle`].
    pub fn accuracy(source_logits: &Tensor, target_logits: &Tensor) -> Result<f64, LossError> {
        let check = Check(LOSS);
        let source = check.logits("source_logits", source_logits)?;
        let target = check.logits("target_logits", target_logits)?;
        let share = |right: Tensor| right.to_dtype(DType::F64)?.mean_all()?.to_scalar::<f64>();
        let source = source.to_device(&candle_core::Device::Cpu).and_then(|s| share(s.gt(0f64)?));
        let target = target.to_device(&candle_core::Device::Cpu).and_then(|t| share(t.le(0f64)?));
        Ok((source.within(LOSS)? + target.within(LOSS)?) / 2.0)
    }

    /// [`DomainCritic::accuracy`] as a scalar that stays on the device of the logits, in single precision: to be fetched later.
    ///
    /// # Errors
    /// As [`DomainCritic::accuracy`].
    pub fn accuracy_on_device(source_logits: &Tensor, target_logits: &Tensor) -> Result<Tensor, LossError> {
        let check = Check(LOSS);
        let source = check.logits("source_logits", source_logits)?;
        let target = check.logits("target_logits", target_logits)?;
        let share = |right: Tensor| right.to_dtype(DType::F32)?.mean_all();
        let both = || (share(source.gt(0f64)?)? + share(target.le(0f64)?)?)? / 2.0;
        both().within(LOSS)
    }

    fn check(&self, pooled: &Tensor) -> Result<(), LossError> {
        let check = Check(LOSS);
        let (_, columns) = check.matrix("pooled", "[B, D]", pooled)?;
        if columns == self.dimension {
            return Ok(());
        }
        Err(check.shape_error("pooled", format!("[B, D] with D = {}", self.dimension), pooled))
    }
}

/// What the layer gives for a matrix, by a product that a rehearsal sees; candle's own `forward` hides it.
fn through(layer: &Linear, x: &Tensor) -> candle_core::Result<Tensor> {
    let product = x.product(&layer.weight().t()?)?;
    match layer.bias() {
        Some(bias) => product.broadcast_add(bias),
        None => Ok(product),
    }
}

/// A linear layer with PyTorch's start: weight and bias uniform in `+-1/sqrt(in)`.
fn linear(inputs: usize, outputs: usize, builder: VarBuilder<'_>) -> candle_core::Result<Linear> {
    let bound = 1.0 / (inputs as f64).sqrt();
    let start = Init::Uniform { lo: -bound, up: bound };
    let weight = builder.get_with_hints((outputs, inputs), "weight", start)?;
    let bias = builder.get_with_hints(outputs, "bias", start)?;
    Ok(Linear::new(weight, Some(bias)))
}
