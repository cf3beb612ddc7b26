//! Entropic optimal transport and the Sinkhorn divergence.

use candle_core::{DType, Device, Tensor};

use crate::error::{Check, LossError, Within};
use crate::mean_discrepancy::check_sets;
use crate::stable::{log_sum_exp, squared_distances};

const LOSS: &str = "SinkhornDivergence";
const PLAN: &str = "sinkhorn_plan";
const LARGEST_HALVINGS: usize = 64;

/// An entropic transport plan with its potentials; all constants, without gradients.
#[derive(Debug, Clone)]
pub struct SinkhornPlan {
    /// How much mass goes from each row to each column, `[N, M]`; columns sum to their marginal exactly, rows as far as the
    /// iterations have converged.
    pub plan: Tensor,
    /// The rows' potentials f, `[N]`, in units of the cost.
    pub row_potential: Tensor,
    /// The columns' potentials g, `[M]`, in units of the cost.
    pub column_potential: Tensor,
}

/// The entropic optimal transport plan between two marginals, by Sinkhorn's iterations.
///
/// Computed on detached tensors: no gradient passes. [`SinkhornDivergence`] is the differentiable loss on top of it.
///
/// # Equation
/// From `f = g = 0`, each iteration:
///
/// ```text
/// f_i = eps (ln r_i - lse_j((g_j - C_ij) / eps))     g_j = eps (ln c_j - lse_i((f_i - C_ij) / eps))
/// plan_ij = exp((f_i + g_j - C_ij) / eps)
/// ```
///
/// Cuturi, *Sinkhorn distances: lightspeed computation of optimal transport*, NeurIPS 2013; in logarithms: Peyré and Cuturi,
/// *Computational optimal transport*, 2019, section 4.4.
///
/// # Shapes
/// `cost` `[N, M]`, `row_marginal` `[N]`, `column_marginal` `[M]`.
///
/// # Parameters and units
/// `epsilon`: in units of the cost; `iterations`: at least 1. Marginals: not negative, with the same sum above 0.
///
/// # Numerical notes
/// In the log domain, stable for small `epsilon`, which then needs more iterations. A marginal entry of 0 gives a plan entry
/// of 0 and a potential of minus infinity. The marginals are read back to the host to be checked.
///
/// # Errors
/// [`LossError::Shape`], [`LossError::ElementType`], [`LossError::Parameter`] (`epsilon`, `iterations`, the marginals' values),
/// [`LossError::Candle`].
///
/// # Deviations from the released procedure
/// The released procedure has no optimal transport.
///
/// # Parity file
/// `fixtures/parity/losses/sinkhorn.safetensors`
///
/// # Example
/// ```
/// use aeir_losses::sinkhorn_plan;
/// use candle_core::{Device, Tensor};
///
/// let cost = Tensor::new(&[[0f64, 1.], [1., 0.]], &Device::Cpu)?;
/// let half = Tensor::new(&[0.5f64, 0.5], &Device::Cpu)?;
/// let plan = sinkhorn_plan(&cost, &half, &half, 0.05, 20)?.plan.to_vec2::<f64>()?;
/// assert!((plan[0][0] - 0.5).abs() < 1e-6 && plan[0][1] < 1e-6);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn sinkhorn_plan(
    cost: &Tensor,
    row_marginal: &Tensor,
    column_marginal: &Tensor,
    epsilon: f64,
    iterations: usize,
) -> Result<SinkhornPlan, LossError> {
    let check = Check(PLAN);
    check.positive("epsilon", epsilon)?;
    check.parameter(iterations > 0, "iterations", "at least 1", iterations as f64)?;
    let (rows, columns) = check.matrix("cost", "[N, M]", cost)?;
    let row_sum = marginal_sum(check, "row_marginal", row_marginal, cost, rows)?;
    let column_sum = marginal_sum(check, "column_marginal", column_marginal, cost, columns)?;
    let same = (row_sum - column_sum).abs() <= 1e-4 * row_sum;
    check.parameter(same, "column_marginal", "the row marginal's sum", column_sum)?;
    let plan = || {
        let problem = Problem::new(cost, row_marginal, column_marginal)?;
        problem.iterate(column_marginal.zeros_like()?, epsilon, iterations)
    };
    plan().within(PLAN)
}

/// Sinkhorn divergence: the transport cost between two sets of vectors, corrected so that equal sets are 0 apart.
///
/// A domain loss without a critic that, unlike [`MaximumMeanDiscrepancy`](crate::MaximumMeanDiscrepancy), still pulls when the
/// sets are far apart. Rows weigh the same; the sets may differ in size.
///
/// # Equation
/// With cost `|x - y|^2 / 2` and `OT(a, b) = min_P <P, C> + eps KL(P || a b^T)`:
///
/// ```text
/// loss = OT(source, target) - OT(source, source) / 2 - OT(target, target) / 2
/// ```
///
/// Feydy et al., *Interpolating between optimal transport and MMD using Sinkhorn divergences*, AISTATS 2019 (arXiv 1810.08278).
///
/// # Shapes
/// `source` `[N, D]`, `target` `[M, D]`. Result `[]`.
///
/// # Parameters and units
/// `epsilon`: in units of the cost, so squared units of the vectors, 0.05 by default (fits rows of norm 1); `iterations`: 100
/// by default.
///
/// # Numerical notes
/// The value is the dual objective; the gradient goes through the cost with the plan as a constant, which is exact once the
/// iterations have converged (the envelope theorem) and keeps the graph short. Epsilon first falls from the largest cost,
/// halving a step, before `iterations` run at its own value; still, a smaller `epsilon` needs more. The largest cost is read
/// back to the host. One row a side is defined: half the squared distance.
///
/// # Errors
/// [`LossError::Shape`], [`LossError::ElementType`], [`LossError::Parameter`] (`epsilon`, `iterations`), [`LossError::Candle`].
///
/// # Deviations from the released procedure
/// The released procedure has no optimal transport.
///
/// # Parity file
/// `fixtures/parity/losses/sinkhorn_divergence.safetensors`: the iterations differentiated by PyTorch as they ran.
///
/// # Example
/// ```
/// use aeir_losses::SinkhornDivergence;
/// use candle_core::{Device, Tensor};
///
/// let source = Tensor::new(&[[0f64, 0.], [0., 1.]], &Device::Cpu)?;
/// let target = (&source + 1.)?;
/// let loss = SinkhornDivergence::default().forward(&source, &target)?;
/// assert!((loss.to_scalar::<f64>()? - 1.).abs() < 1e-6); // moved by (1, 1): half of 2
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SinkhornDivergence {
    /// The weight of the entropy, in units of the cost.
    pub epsilon: f64,
    /// How many Sinkhorn iterations.
    pub iterations: usize,
}

impl Default for SinkhornDivergence {
    fn default() -> Self {
        Self { epsilon: 0.05, iterations: 100 }
    }
}

impl SinkhornDivergence {
    /// The divergence of two sets of vectors.
    ///
    /// # Errors
    /// See the type's documentation.
    pub fn forward(&self, source: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        let check = Check(LOSS);
        check.positive("epsilon", self.epsilon)?;
        check.parameter(self.iterations > 0, "iterations", "at least 1", self.iterations as f64)?;
        check_sets(check, source, target)?;
        let divergence = || {
            let between = self.transport(source, target)?;
            let within = (self.transport(source, source)? + self.transport(target, target)?)?;
            between - (within * 0.5)?
        };
        divergence().within(LOSS)
    }

    /// The entropic transport cost between two sets of equally weighted rows.
    fn transport(&self, x: &Tensor, y: &Tensor) -> candle_core::Result<Tensor> {
        let cost = (squared_distances(x, y)? * 0.5)?;
        let problem = Problem::new(&cost, &uniform(x)?, &uniform(y)?)?;
        let found = problem.iterate(problem.anneal(self.epsilon)?, self.epsilon, self.iterations)?;
        // The potentials hold eps ln(marginal); the divergence from the product of the marginals doesn't want it.
        let entropy = self.epsilon * (x.dim(0)? as f64 * y.dim(0)? as f64).ln();
        let value = ((found.row_potential.mean_all()? + found.column_potential.mean_all()?)? + entropy)?;
        let moved = (found.plan * cost)?.sum_all()?;
        // The value of the first, the gradient of the second.
        value + (&moved - moved.detach())?
    }
}

fn uniform(x: &Tensor) -> candle_core::Result<Tensor> {
    let rows = x.dim(0)?;
    Tensor::ones(rows, x.dtype(), x.device())? / rows as f64
}

/// A cost matrix with its marginals, detached, laid out for both directions.
struct Problem {
    cost: Tensor,
    transposed: Tensor,
    log_rows: Tensor,
    log_columns: Tensor,
}

impl Problem {
    fn new(cost: &Tensor, row_marginal: &Tensor, column_marginal: &Tensor) -> candle_core::Result<Self> {
        let cost = cost.detach().contiguous()?;
        Ok(Self {
            transposed: cost.t()?.contiguous()?,
            cost,
            log_rows: row_marginal.detach().log()?,
            log_columns: column_marginal.detach().log()?,
        })
    }

    /// One iteration: both potentials from the columns' one.
    fn step(&self, column: &Tensor, epsilon: f64) -> candle_core::Result<(Tensor, Tensor)> {
        let row = update(&self.log_rows, column, &self.cost, epsilon)?;
        let column = update(&self.log_columns, &row, &self.transposed, epsilon)?;
        Ok((row, column))
    }

    /// From the columns' potential `column`, `iterations` (at least 1) steps.
    fn iterate(&self, column: Tensor, epsilon: f64, iterations: usize) -> candle_core::Result<SinkhornPlan> {
        let (mut row, mut column) = self.step(&column, epsilon)?;
        for _ in 1..iterations {
            (row, column) = self.step(&column, epsilon)?;
        }
        let exponent = row.unsqueeze(1)?.broadcast_add(&column.unsqueeze(0)?)?.sub(&self.cost)?;
        Ok(SinkhornPlan { plan: (exponent / epsilon)?.exp()?, row_potential: row, column_potential: column })
    }

    /// A columns' potential to start from: one step at each of ever smaller epsilons, from the largest cost down. From zeros, a
    /// small epsilon would need thousands of iterations.
    fn anneal(&self, epsilon: f64) -> candle_core::Result<Tensor> {
        let mut column = self.log_columns.zeros_like()?;
        let mut current =
            self.cost.max_all()?.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.to_scalar::<f64>()?;
        for _ in 0..LARGEST_HALVINGS {
            if !current.is_finite() || current <= epsilon {
                break;
            }
            column = self.step(&column, current)?.1;
            current /= 2.0;
        }
        Ok(column)
    }
}

/// `eps (ln marginal_i - lse_j((potential_j - cost_ij) / eps))`
fn update(
    log_marginal: &Tensor,
    potential: &Tensor,
    cost: &Tensor,
    epsilon: f64,
) -> candle_core::Result<Tensor> {
    let exponent = (cost.neg()?.broadcast_add(potential)? / epsilon)?;
    (log_marginal - log_sum_exp(&exponent)?.squeeze(1)?)? * epsilon
}

fn marginal_sum(
    check: Check,
    name: &'static str,
    marginal: &Tensor,
    cost: &Tensor,
    size: usize,
) -> Result<f64, LossError> {
    check.same_type(name, marginal, cost)?;
    if marginal.dims() != [size] {
        return Err(check.shape_error(name, format!("[{size}]"), marginal));
    }
    let values = marginal.to_device(&Device::Cpu).and_then(|m| m.to_dtype(DType::F64)?.to_vec1::<f64>());
    let values = values.within(check.0)?;
    for &value in &values {
        check.not_negative(name, value)?;
    }
    let sum = values.iter().sum();
    check.positive(name, sum)?;
    Ok(sum)
}
