//! Gradient reversal and its schedule.

use candle_core::Tensor;

use crate::error::{Check, LossError, Within};

const LOSS: &str = "gradient_reversal";

/// Passes a tensor on unchanged and turns its gradient round.
///
/// Placed between encoder and critic, it lets one backward pass train both against each other. `strength` usually follows
/// [`dann_schedule`].
///
/// # Equation
/// `y = x`, `dL/dx = -strength * dL/dy`. Ganin et al., *Domain-adversarial training of neural networks*, JMLR 17 (2016).
///
/// # Shapes
/// Any. The result has the input's shape.
///
/// # Parameters and units
/// `strength`: a pure number, 0 (no gradient) or larger.
///
/// # Numerical notes
/// Built as `constant(x) - strength * (x - constant(x))`: for finite input the value is `x` to the last bit, on every device.
///
/// # Errors
/// [`LossError::ElementType`], [`LossError::Parameter`] (`strength`), [`LossError::Candle`].
///
/// # Deviations from the released procedure
/// The released procedure has no gradient reversal.
///
/// # Parity file
/// `fixtures/parity/losses/domain_adversarial.safetensors` (`reversed.*`)
///
/// # Example
/// ```
/// use aeir_losses::gradient_reversal;
/// use candle_core::{Device, Var};
///
/// let x = Var::new(&[3f64], &Device::Cpu)?;
/// let y = gradient_reversal(&x, 0.5)?;
/// assert_eq!(y.to_vec1::<f64>()?, [3.]);
/// let gradients = y.sum_all()?.backward()?;
/// assert_eq!(gradients.get(&x).map(|g| g.to_vec1::<f64>()).transpose()?, Some(vec![-0.5]));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn gradient_reversal(x: &Tensor, strength: f64) -> Result<Tensor, LossError> {
    let check = Check(LOSS);
    check.not_negative("strength", strength)?;
    check.float("x", x)?;
    let constant = x.detach();
    let reversed = || &constant - ((x - &constant)? * strength)?;
    reversed().within(LOSS)
}

/// The adversarial strength at a share of the training: from 0 at the start to almost 1 at the end.
///
/// The critic is noise at first; its say grows as it learns. A progress outside 0 to 1 counts as the nearer end.
///
/// # Equation
/// `2 / (1 + exp(-10 progress)) - 1`. Ganin et al., *Domain-adversarial training of neural networks*, JMLR 17 (2016).
///
/// # Shapes
/// Plain numbers.
///
/// # Parameters and units
/// `progress`: steps done / all steps.
///
/// # Numerical notes
/// Not-a-number counts as 0.
///
/// # Errors
/// None.
///
/// # Deviations from the released procedure
/// The released procedure has no schedule.
///
/// # Parity file
/// `fixtures/parity/losses/domain_adversarial.safetensors` (`schedule`)
///
/// # Example
/// ```
/// use aeir_losses::dann_schedule;
///
/// assert_eq!(dann_schedule(0.), 0.);
/// assert!(dann_schedule(1.) > 0.9999);
/// ```
#[must_use]
pub fn dann_schedule(progress: f64) -> f64 {
    let progress = if progress.is_nan() { 0.0 } else { progress.clamp(0.0, 1.0) };
    2.0 / (1.0 + (-10.0 * progress).exp()) - 1.0
}
