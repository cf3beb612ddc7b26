//! Adam, AdamW and SGD over named parameters, with their state in the open, and global-norm clipping.

use std::cell::RefCell;
use std::collections::BTreeMap;

use candle_core::{CpuStorage, DType, Device, InplaceOp2, Layout, Storage, Tensor, Var};
use rayon::prelude::*;

use crate::error::{Result, TrainError};
use crate::figure::{Figure, stays};

/// Settings of Adam and AdamW.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamConfig {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
}

impl Default for AdamConfig {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, epsilon: 1e-8 }
    }
}

/// How a parameter follows its gradient. The rules are PyTorch's, of 2.x, with its defaults.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rule {
    /// Decoupled weight decay.
    ///
    /// Equation (Loshchilov and Hutter, ICLR 2019): `m = b1 m + (1 - b1) g`, `v = b2 v + (1 - b2) g^2`,
    /// `w = w - lr wd w - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)`.
    AdamW(AdamConfig),
    /// As AdamW, but weight decay is a part of the gradient: `g = g + wd w` (Kingma and Ba, ICLR 2015).
    Adam(AdamConfig),
    /// Stochastic gradient descent with momentum.
    ///
    /// Equation: `g = g + wd w`, `u = momentum u + g` (`u = g` at first), `w = w - lr u`, with `nesterov`
    /// `w = w - lr (g + momentum u)`.
    Sgd {
        /// Share of the last update that goes on; 0 for none.
        momentum: f64,
        /// Look ahead by one momentum step.
        nesterov: bool,
    },
}

impl Rule {
    /// How many tensors of state a parameter has.
    pub fn moments(self) -> usize {
        match self {
            Self::AdamW(_) | Self::Adam(_) => 2,
            Self::Sgd { momentum, .. } => usize::from(momentum > 0.0),
        }
    }
}

/// A parameter with what is its own in an update.
#[derive(Clone)]
pub struct Parameter {
    /// Its name.
    pub name: String,
    /// Its values, shared with the model.
    pub variable: Var,
    /// The learning rate is multiplied by this.
    pub rate_scale: f64,
    /// Its weight decay.
    pub weight_decay: f64,
}

/// Steps named parameters by one rule.
///
/// Numerical notes: moments are f32. On the CPU, and for Adam and AdamW on an NVIDIA card, the update is one fused pass over each parameter;
/// elsewhere it is made of candle's operations. They differ in the last bit. Each parameter counts its own steps, as PyTorch does. Vectors
/// (biases, scales) are decayed like the rest unless a group says otherwise.
///
/// Parity: `fixtures/parity/optimizers`.
pub struct Optimizer {
    rule: Rule,
    parameters: Vec<Parameter>,
    states: Vec<State>,
}

/// What a rule remembers of a parameter.
struct State {
    steps: usize,
    moments: Moments,
}

enum Moments {
    Host([Vec<f32>; 2]),
    Device(Vec<Tensor>),
}

/// Names of the moments in [`Optimizer::state`].
const MOMENTS: [&str; 2] = ["first", "second"];

impl Optimizer {
    /// An optimiser of `parameters`, which must come sorted by name.
    ///
    /// # Errors
    /// When the moments can't be allocated on the device.
    pub fn new(parameters: Vec<Parameter>, rule: Rule) -> Result<Self> {
        let states = parameters
            .iter()
            .map(|Parameter { variable, .. }| {
                let moments = match stays(variable.device()) {
                    false => Moments::Host(std::array::from_fn(|moment| {
                        vec![0.0; if moment < rule.moments() { variable.elem_count() } else { 0 }]
                    })),
                    true => Moments::Device(
                        (0..rule.moments()).map(|_| Ok(variable.zeros_like()?)).collect::<Result<_>>()?,
                    ),
                };
                Ok(State { steps: 0, moments })
            })
            .collect::<Result<_>>()?;
        Ok(Self { rule, parameters, states })
    }

    /// The parameters, in order.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// The rule.
    pub fn rule(&self) -> Rule {
        self.rule
    }

    /// One update. Parameters without a gradient stay as they are. Each gradient is multiplied by `scale` first.
    ///
    /// # Errors
    /// When an operation fails on the device.
    pub fn step(&mut self, gradients: &Gradients, scale: f64, learning_rate: f64) -> Result<()> {
        self.step_scaled(gradients, &Scale::Known(scale), learning_rate)
    }

    /// [`Optimizer::step`] with a factor that may still be on the device.
    pub(crate) fn step_scaled(
        &mut self,
        gradients: &Gradients,
        scale: &Scale,
        learning_rate: f64,
    ) -> Result<()> {
        let known = match scale {
            Scale::Known(scale) => *scale,
            Scale::OnDevice(_) => 1.0,
        };
        for (parameter, state) in self.parameters.iter().zip(&mut self.states) {
            let Some(gradient) = gradients.get(&parameter.name) else { continue };
            state.steps += 1;
            #[cfg(feature = "cuda")]
            if step_on_card(self.rule, parameter, state, gradient, scale, learning_rate)? {
                continue;
            }
            let scaled = match scale {
                Scale::Known(_) => None,
                Scale::OnDevice(scale) => Some(gradient.detach().broadcast_mul(scale)?),
            };
            let gradient = scaled.as_ref().unwrap_or(gradient);
            let factors = Factors::new(self.rule, parameter, state.steps, known, learning_rate);
            match &mut state.moments {
                Moments::Host([first, second]) => {
                    let update = Update { factors, moments: RefCell::new((first, second)) };
                    parameter.variable.inplace_op2(&gradient.contiguous()?, &update)?;
                }
                Moments::Device(moments) => factors.step(&parameter.variable, gradient, moments)?,
            }
        }
        Ok(())
    }

    /// The state as named tensors: `first.NAME` and `second.NAME`, as many as the rule has, and `steps`.
    ///
    /// # Errors
    /// When a tensor can't be made.
    pub fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        let mut tensors = BTreeMap::new();
        for (Parameter { name, variable, .. }, state) in self.parameters.iter().zip(&self.states) {
            for (index, moment) in MOMENTS.iter().take(self.rule.moments()).enumerate() {
                let tensor = match &state.moments {
                    Moments::Host(moments) => moments
                        .get(index)
                        .map(|values| Tensor::from_slice(values, variable.shape(), &Device::Cpu))
                        .transpose()?,
                    // A kernel changes them in place.
                    Moments::Device(moments) => moments.get(index).map(Tensor::copy).transpose()?,
                };
                tensors.extend(tensor.map(|tensor| (format!("{moment}.{name}"), tensor)));
            }
        }
        let steps: Vec<i64> = self.states.iter().map(|state| state.steps as i64).collect();
        tensors.insert("steps".into(), Tensor::from_vec(steps, self.states.len(), &Device::Cpu)?);
        Ok(tensors)
    }

    /// Takes a state written by [`Optimizer::state`].
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn restore(&mut self, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
        let steps = find(tensors, "steps")?.to_vec1::<i64>()?;
        if steps.len() != self.parameters.len() {
            return Err(TrainError::Data {
                what: "steps in the optimiser state".into(),
                expected: format!("{} parameters", self.parameters.len()),
                got: steps.len().to_string(),
            });
        }
        let parameters = self.parameters.iter().zip(&mut self.states).zip(steps);
        for ((Parameter { name, variable, .. }, state), steps) in parameters {
            let saved = MOMENTS
                .iter()
                .take(self.rule.moments())
                .map(|moment| moment_of(tensors, &format!("{moment}.{name}"), variable))
                .collect::<Result<Vec<Tensor>>>()?;
            state.steps = usize::try_from(steps).unwrap_or(0);
            match &mut state.moments {
                Moments::Host(moments) => {
                    for (values, saved) in moments.iter_mut().zip(saved) {
                        *values = saved.flatten_all()?.to_vec1()?;
                    }
                }
                Moments::Device(moments) => *moments = saved,
            }
        }
        Ok(())
    }
}

fn find<'a>(tensors: &'a BTreeMap<String, Tensor>, key: &str) -> Result<&'a Tensor> {
    tensors.get(key).ok_or_else(|| TrainError::Data {
        what: "optimiser state".into(),
        expected: format!("tensor `{key}`"),
        got: "none".into(),
    })
}

fn moment_of(tensors: &BTreeMap<String, Tensor>, key: &str, variable: &Var) -> Result<Tensor> {
    let saved = find(tensors, key)?;
    if saved.shape() != variable.shape() {
        return Err(TrainError::Data {
            what: format!("optimiser state `{key}`"),
            expected: format!("{:?}", variable.shape()),
            got: format!("{:?}", saved.shape()),
        });
    }
    // A kernel changes it in place.
    Ok(saved.to_device(variable.device())?.to_dtype(DType::F32)?.copy()?)
}

/// Adam's and AdamW's update of a parameter in one pass, where the kernels for cards take it; else false.
#[cfg(feature = "cuda")]
fn step_on_card(
    rule: Rule,
    parameter: &Parameter,
    state: &State,
    gradient: &Tensor,
    scale: &Scale,
    learning_rate: f64,
) -> Result<bool> {
    let (Rule::Adam(adam) | Rule::AdamW(adam)) = rule else { return Ok(false) };
    let weights = parameter.variable.as_detached_tensor();
    let Moments::Device(moments) = &state.moments else { return Ok(false) };
    let [first, second] = moments.as_slice() else { return Ok(false) };
    if !aeir_kernels::takes(&[&weights, gradient, first, second]) {
        return Ok(false);
    }
    let (scale, scale_on_card) = match scale {
        Scale::Known(scale) => (*scale, None),
        Scale::OnDevice(scale) => (1.0, Some(scale)),
    };
    let Factors { rate, weight_decay, corrections: [correction1, correction2], .. } =
        Factors::new(rule, parameter, state.steps, scale, learning_rate);
    let is_decoupled = matches!(rule, Rule::AdamW(_));
    let step = aeir_kernels::Step {
        scale,
        scale_on_card,
        betas: [adam.beta1, adam.beta2],
        epsilon: adam.epsilon,
        rate: rate / correction1,
        root: correction2.sqrt(),
        kept: if is_decoupled { 1.0 - rate * weight_decay } else { 1.0 },
        decay: if is_decoupled { 0.0 } else { weight_decay },
    };
    aeir_kernels::step(&weights, gradient, aeir_kernels::Moments { first, second }, &step)?;
    Ok(true)
}

/// The numbers of one parameter's update.
struct Factors {
    rule: Rule,
    scale: f64,
    rate: f64,
    weight_decay: f64,
    /// Whether the state has seen no gradient before.
    first: bool,
    /// `1 - b1^t` and `1 - b2^t`.
    corrections: [f64; 2],
}

impl Factors {
    fn new(rule: Rule, parameter: &Parameter, step: usize, scale: f64, learning_rate: f64) -> Self {
        let corrections = match rule {
            Rule::AdamW(adam) | Rule::Adam(adam) => {
                [adam.beta1, adam.beta2].map(|beta| 1.0 - beta.powi(step as i32))
            }
            Rule::Sgd { .. } => [1.0; 2],
        };
        let Parameter { rate_scale, weight_decay, .. } = *parameter;
        Self { rule, scale, rate: learning_rate * rate_scale, weight_decay, first: step == 1, corrections }
    }

    /// The update made of candle's operations.
    fn step(&self, variable: &Var, gradient: &Tensor, moments: &mut [Tensor]) -> Result<()> {
        let Self { scale, rate, weight_decay, corrections: [correction1, correction2], .. } = *self;
        let weights = variable.as_detached_tensor();
        let gradient = if scale == 1.0 { gradient.detach() } else { (gradient.detach() * scale)? };
        let decayed_gradient = || &gradient + (&weights * weight_decay)?;
        let updated = match (self.rule, moments) {
            (Rule::AdamW(adam), [first, second]) => {
                let update = adam_update(adam, &gradient, first, second, correction1, correction2)?;
                ((&weights * (1.0 - rate * weight_decay))? - (update * rate)?)?
            }
            (Rule::Adam(adam), [first, second]) => {
                let update =
                    adam_update(adam, &decayed_gradient()?, first, second, correction1, correction2)?;
                (&weights - (update * rate)?)?
            }
            (Rule::Sgd { momentum, nesterov }, [velocity]) => {
                let gradient = decayed_gradient()?;
                *velocity =
                    if self.first { gradient.clone() } else { ((&*velocity * momentum)? + &gradient)? };
                let update = if nesterov { (gradient + (&*velocity * momentum)?)? } else { velocity.clone() };
                (&weights - (update * rate)?)?
            }
            _ => (&weights - (decayed_gradient()? * rate)?)?,
        };
        Ok(variable.set(&updated)?)
    }
}

fn adam_update(
    adam: AdamConfig,
    gradient: &Tensor,
    first: &mut Tensor,
    second: &mut Tensor,
    correction1: f64,
    correction2: f64,
) -> Result<Tensor> {
    let AdamConfig { beta1, beta2, epsilon } = adam;
    *first = ((&*first * beta1)? + (gradient * (1.0 - beta1))?)?;
    *second = ((&*second * beta2)? + (gradient.sqr()? * (1.0 - beta2))?)?;
    let denominator = ((&*second / correction2)?.sqrt()? + epsilon)?;
    Ok(((&*first / correction1)? / denominator)?)
}

/// Numbers that one task updates or adds up: a constant, so that sums have one order whatever the number of threads.
const CHUNK: usize = 1 << 14;

/// One parameter's update on the CPU: a single pass on all threads, in place.
struct Update<'a> {
    factors: Factors,
    moments: RefCell<(&'a mut [f32], &'a mut [f32])>,
}

impl InplaceOp2 for Update<'_> {
    fn name(&self) -> &'static str {
        "optimizer-step"
    }

    fn cpu_fwd(
        &self,
        weights: &mut CpuStorage,
        weight_layout: &Layout,
        gradient: &CpuStorage,
        gradient_layout: &Layout,
    ) -> candle_core::Result<()> {
        let (CpuStorage::F32(weights), Some(range)) = (weights, weight_layout.contiguous_offsets()) else {
            candle_core::bail!("optimizer-step: expected contiguous f32 parameters");
        };
        let Some(weights) = weights.get_mut(range.0..range.1) else {
            candle_core::bail!("optimizer-step: layout outside of the storage");
        };
        let gradient = numbers(gradient, gradient_layout)?;
        if weights.len() != gradient.len() {
            candle_core::bail!(
                "optimizer-step: {} gradients for {} parameters",
                gradient.len(),
                weights.len()
            );
        }
        let mut moments = self.moments.borrow_mut();
        let (first, second) = &mut *moments;
        self.factors.apply(weights, gradient, first, second);
        Ok(())
    }
}

impl Factors {
    fn apply(&self, weights: &mut [f32], gradient: &[f32], first: &mut [f32], second: &mut [f32]) {
        let (scale, decay) = (self.scale as f32, self.weight_decay as f32);
        match self.rule {
            Rule::AdamW(adam) => {
                let kept = (1.0 - self.rate * self.weight_decay) as f32;
                self.adam(adam, weights, gradient, first, second, move |weight, gradient| {
                    (weight * kept, gradient * scale)
                });
            }
            Rule::Adam(adam) => {
                self.adam(adam, weights, gradient, first, second, move |weight, gradient| {
                    (weight, gradient * scale + decay * weight)
                });
            }
            Rule::Sgd { momentum: 0.0, .. } => {
                let rate = self.rate as f32;
                let chunks = weights.par_chunks_mut(CHUNK).zip(gradient.par_chunks(CHUNK));
                chunks.for_each(|(weights, gradient)| {
                    for (weight, gradient) in weights.iter_mut().zip(gradient) {
                        *weight -= rate * (gradient * scale + decay * *weight);
                    }
                });
            }
            Rule::Sgd { momentum, nesterov } => {
                let (rate, momentum) = (self.rate as f32, momentum as f32);
                // The state is zero before the first gradient, which is what the rule asks for.
                let chunks = weights.par_chunks_mut(CHUNK).zip(gradient.par_chunks(CHUNK));
                chunks.zip(first.par_chunks_mut(CHUNK)).for_each(|((weights, gradient), velocity)| {
                    for ((weight, gradient), velocity) in weights.iter_mut().zip(gradient).zip(velocity) {
                        let gradient = gradient * scale + decay * *weight;
                        *velocity = momentum * *velocity + gradient;
                        let update = if nesterov { gradient + momentum * *velocity } else { *velocity };
                        *weight -= rate * update;
                    }
                });
            }
        }
    }

    /// `decayed` gives the weight to go on from and the gradient that the moments take.
    fn adam(
        &self,
        adam: AdamConfig,
        weights: &mut [f32],
        gradient: &[f32],
        first: &mut [f32],
        second: &mut [f32],
        decayed: impl Fn(f32, f32) -> (f32, f32) + Sync,
    ) {
        let [correction1, correction2] = self.corrections;
        let (beta1, beta2, epsilon) = (adam.beta1 as f32, adam.beta2 as f32, adam.epsilon as f32);
        let (rate, root_correction) = ((self.rate / correction1) as f32, correction2.sqrt() as f32);
        let chunks = weights.par_chunks_mut(CHUNK).zip(gradient.par_chunks(CHUNK));
        let moments = first.par_chunks_mut(CHUNK).zip(second.par_chunks_mut(CHUNK));
        chunks.zip(moments).for_each(|((weights, gradient), (first, second))| {
            let values = weights.iter_mut().zip(gradient).zip(first.iter_mut().zip(second.iter_mut()));
            for ((weight, gradient), (m, v)) in values {
                let (start, gradient) = decayed(*weight, *gradient);
                *m = beta1 * *m + (1.0 - beta1) * gradient;
                *v = beta2 * *v + (1.0 - beta2) * gradient * gradient;
                *weight = start - rate * *m / (v.sqrt() / root_correction + epsilon);
            }
        });
    }
}

/// The numbers of a contiguous f32 tensor on the CPU.
fn numbers<'a>(storage: &'a CpuStorage, layout: &Layout) -> candle_core::Result<&'a [f32]> {
    let range = layout.contiguous_offsets();
    match (storage, range) {
        (CpuStorage::F32(values), Some((start, end))) if end <= values.len() => Ok(&values[start..end]),
        _ => candle_core::bail!("expected a contiguous f32 tensor on the CPU"),
    }
}

/// What gradients are multiplied by before a step.
pub(crate) enum Scale {
    Known(f64),
    /// A scalar on the device of the gradients.
    OnDevice(Tensor),
}

/// The global L2 norm of gradients.
#[derive(Clone)]
pub(crate) enum Norm {
    Known(f64),
    /// A scalar in f32 on the device of the gradients: nobody waits for it.
    OnDevice(Tensor),
}

impl Norm {
    /// Of gradients.
    pub(crate) fn of(gradients: &Gradients) -> Result<Self> {
        let device = gradients.by_name.values().next().map(Tensor::device);
        if !device.is_some_and(stays) {
            return Ok(Self::Known(gradients.norm()?));
        }
        #[cfg(feature = "cuda")]
        {
            let all: Vec<&Tensor> = gradients.by_name.values().collect();
            if aeir_kernels::takes(&all) {
                return Ok(Self::OnDevice(aeir_kernels::sum_of_squares(&all)?.sqrt()?));
            }
        }
        let squares = gradients.by_name.values().map(|it| it.sqr()?.sum_all()?.to_dtype(DType::F32));
        let squares = squares.collect::<candle_core::Result<Vec<_>>>()?;
        Ok(Self::OnDevice(Tensor::stack(&squares, 0)?.sum_all()?.sqrt()?))
    }

    /// Of all of them together.
    pub(crate) fn joint(norms: &[Self]) -> Result<Self> {
        let (mut known, mut on_device) = (0.0, Vec::new());
        for norm in norms {
            match norm {
                Self::Known(norm) => known += norm * norm,
                Self::OnDevice(norm) => on_device.push(norm.sqr()?),
            }
        }
        if on_device.is_empty() {
            return Ok(Self::Known(known.sqrt()));
        }
        Ok(Self::OnDevice((Tensor::stack(&on_device, 0)?.sum_all()? + known)?.sqrt()?))
    }

    /// [`clip_factor`].
    pub(crate) fn clip_factor(&self, limit: Option<f64>) -> Result<Scale> {
        Ok(match (self, limit) {
            (Self::Known(norm), limit) => Scale::Known(clip_factor(*norm, limit)),
            (Self::OnDevice(_), None) => Scale::Known(1.0),
            (Self::OnDevice(norm), Some(limit)) => {
                Scale::OnDevice(((norm + 1e-6)?.recip()? * limit)?.minimum(1.0)?)
            }
        })
    }

    pub(crate) fn figure(&self) -> Result<Figure> {
        match self {
            Self::Known(norm) => Ok(Figure::known(*norm)),
            Self::OnDevice(norm) => Figure::of(norm),
        }
    }
}

/// Gradients by parameter name.
#[derive(Default)]
pub struct Gradients {
    by_name: BTreeMap<String, Tensor>,
}

impl Gradients {
    /// Adds what `store` holds for `parameters`.
    ///
    /// # Errors
    /// When an addition fails on the device.
    pub fn accumulate(
        &mut self,
        store: &candle_core::backprop::GradStore,
        parameters: &[Parameter],
    ) -> Result<()> {
        for Parameter { name, variable, .. } in parameters {
            let Some(gradient) = store.get(variable) else { continue };
            let sum = match self.by_name.get(name) {
                Some(already) => (already + gradient)?,
                None => gradient.clone(),
            };
            self.by_name.insert(name.clone(), sum.detach());
        }
        Ok(())
    }

    /// Multiplies all of them.
    ///
    /// # Errors
    /// When a product fails on the device.
    pub fn scale(&mut self, factor: f64) -> Result<()> {
        for gradient in self.by_name.values_mut() {
            *gradient = (&*gradient * factor)?;
        }
        Ok(())
    }

    /// The gradient of a parameter.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.by_name.get(name)
    }

    /// Names that have a gradient.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.by_name.keys().map(String::as_str)
    }

    /// The global L2 norm over all of them.
    ///
    /// # Errors
    /// When a reduction fails on the device.
    pub fn norm(&self) -> Result<f64> {
        let mut sum = 0.0;
        for gradient in self.by_name.values() {
            sum += match gradient.device() {
                Device::Cpu => sum_of_squares(&gradient.contiguous()?)?,
                _ => f64::from(gradient.sqr()?.sum_all()?.to_dtype(DType::F32)?.to_scalar::<f32>()?),
            };
        }
        Ok(sum.sqrt())
    }

    /// The name of the first gradient that holds a value that is not finite.
    ///
    /// # Errors
    /// When a reduction fails on the device.
    pub fn first_not_finite(&self) -> Result<Option<&str>> {
        for (name, gradient) in &self.by_name {
            // A finite sum of squares means finite entries; an overflow is caught as well, which is wanted here.
            if !gradient.sqr()?.sum_all()?.to_dtype(DType::F32)?.to_scalar::<f32>()?.is_finite() {
                return Ok(Some(name));
            }
        }
        Ok(None)
    }
}

/// On all threads, the parts added in order.
fn sum_of_squares(gradient: &Tensor) -> candle_core::Result<f64> {
    let (storage, layout) = gradient.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else { candle_core::bail!("expected a tensor on the CPU") };
    let square = |value: &f32| f64::from(*value) * f64::from(*value);
    let parts: Vec<f64> = numbers(storage, layout)?
        .par_chunks(CHUNK)
        .map(|values| {
            // Eight sums side by side: one alone would wait for each addition.
            let (lanes, rest) = values.as_chunks::<8>();
            let mut sums = [0f64; 8];
            for values in lanes {
                sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += square(value));
            }
            sums.iter().sum::<f64>() + rest.iter().map(square).sum::<f64>()
        })
        .collect();
    Ok(parts.iter().sum())
}

/// The factor that brings `norm` down to `limit`; 1 where it is below already.
///
/// PyTorch's `clip_grad_norm_`: `min(1, limit / (norm + 1e-6))`.
pub fn clip_factor(norm: f64, limit: Option<f64>) -> f64 {
    limit.map_or(1.0, |limit| (limit / (norm + 1e-6)).min(1.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parameters::ParameterStore;
    use candle_nn::Init;

    /// The published rules in f64, one number.
    fn reference(rule: Rule, start: f64, gradients: &[f64], rate: f64, decay: f64) -> f64 {
        let (mut w, mut m, mut v) = (start, 0.0, 0.0);
        for (t, g) in gradients.iter().enumerate() {
            let t = t as i32 + 1;
            let decayed = g + decay * w;
            match rule {
                Rule::AdamW(adam) | Rule::Adam(adam) => {
                    let decoupled = matches!(rule, Rule::AdamW(_));
                    let g = if decoupled { *g } else { decayed };
                    m = adam.beta1 * m + (1.0 - adam.beta1) * g;
                    v = adam.beta2 * v + (1.0 - adam.beta2) * g * g;
                    w -= if decoupled { rate * decay * w } else { 0.0 };
                    let (m_hat, v_hat) = (m / (1.0 - adam.beta1.powi(t)), v / (1.0 - adam.beta2.powi(t)));
                    w -= rate * m_hat / (v_hat.sqrt() + adam.epsilon);
                }
                Rule::Sgd { momentum, nesterov } => {
                    m = momentum * m + decayed;
                    w -= rate * if nesterov { decayed + momentum * m } else { m };
                }
            }
        }
        w
    }

    const RULES: [Rule; 5] = [
        Rule::AdamW(AdamConfig { beta1: 0.9, beta2: 0.999, epsilon: 1e-8 }),
        Rule::Adam(AdamConfig { beta1: 0.8, beta2: 0.99, epsilon: 1e-6 }),
        Rule::Sgd { momentum: 0.0, nesterov: false },
        Rule::Sgd { momentum: 0.9, nesterov: false },
        Rule::Sgd { momentum: 0.9, nesterov: true },
    ];

    fn parameters(store: &ParameterStore) -> Vec<Parameter> {
        let of = |(name, variable)| Parameter { name, variable, rate_scale: 1.0, weight_decay: 0.05 };
        store.with_prefix("").into_iter().map(of).collect()
    }

    #[test]
    fn rules_are_followed_and_resumed() {
        let scales = [0.3, -2.0, 1e-4, 5.0, -0.2];
        for rule in RULES {
            let store = ParameterStore::new(3, &Device::Cpu);
            let weight = store.builder().get_with_hints(1, "w", Init::Const(0.7)).unwrap();
            let mut optimizer = Optimizer::new(parameters(&store), rule).unwrap();
            for (index, scale) in scales.iter().enumerate() {
                let mut gradients = Gradients::default();
                let loss = (&weight * *scale).unwrap().sum_all().unwrap();
                gradients.accumulate(&loss.backward().unwrap(), optimizer.parameters()).unwrap();
                optimizer.step(&gradients, 1.0, 0.01).unwrap();
                if index == 2 {
                    let state = optimizer.state().unwrap();
                    optimizer = Optimizer::new(parameters(&store), rule).unwrap();
                    optimizer.restore(&state).unwrap();
                }
            }
            let got = weight.to_vec1::<f32>().unwrap()[0];
            let expected = reference(rule, 0.7, &scales, 0.01, 0.05);
            assert!((f64::from(got) - expected).abs() < 1e-6, "{rule:?}: {got}, expected {expected}");
        }
    }

    /// What other devices compute, on this one.
    #[test]
    fn both_ways_of_computing_agree() {
        for rule in RULES {
            let store = ParameterStore::new(3, &Device::Cpu);
            let init = Init::Uniform { lo: -1.0, up: 1.0 };
            let weight = store.builder().get_with_hints(50, "w", init).unwrap();
            let mut optimizer = Optimizer::new(parameters(&store), rule).unwrap();
            let composed = Var::from_tensor(&weight.copy().unwrap()).unwrap();
            let mut moments: Vec<Tensor> =
                (0..rule.moments()).map(|_| composed.zeros_like().unwrap()).collect();
            for step in 1..5 {
                let mut gradients = Gradients::default();
                let loss = weight.sqr().unwrap().sum_all().unwrap();
                gradients.accumulate(&loss.backward().unwrap(), optimizer.parameters()).unwrap();
                let gradient = gradients.get("w").unwrap().copy().unwrap();
                optimizer.step(&gradients, 0.5, 0.1).unwrap();
                let factors = Factors::new(rule, &optimizer.parameters()[0], step, 0.5, 0.1);
                factors.step(&composed, &gradient, &mut moments).unwrap();
            }
            let difference = (weight.detach() - composed.as_detached_tensor()).unwrap().abs().unwrap();
            let largest = difference.max_all().unwrap().to_scalar::<f32>().unwrap();
            assert!(largest < 1e-5, "{rule:?}: {largest}");
        }
    }

    /// Norm, clipping and update that stay on the device, against those of the CPU.
    #[test]
    fn what_stays_on_the_device_steps_as_the_cpu_does() {
        for rule in RULES {
            for limit in [None, Some(0.5), Some(1e6)] {
                let stepped = |forced: bool| {
                    let _forced = forced.then(crate::figure::forced::Forced::new);
                    let store = ParameterStore::new(3, &Device::Cpu);
                    let init = Init::Uniform { lo: -1.0, up: 1.0 };
                    let weights: Vec<Tensor> =
                        ["a", "b"].map(|name| store.builder().get_with_hints(50, name, init).unwrap()).into();
                    let mut optimizer = Optimizer::new(parameters(&store), rule).unwrap();
                    let mut norms = Vec::new();
                    for _ in 0..3 {
                        let mut gradients = Gradients::default();
                        let loss = (weights[0].sqr().unwrap() * &weights[1]).unwrap().sum_all().unwrap();
                        gradients.accumulate(&loss.backward().unwrap(), optimizer.parameters()).unwrap();
                        let norm = Norm::of(&gradients).unwrap();
                        let scale = norm.clip_factor(limit).unwrap();
                        optimizer.step_scaled(&gradients, &scale, 0.1).unwrap();
                        norms.push(norm.figure().unwrap());
                    }
                    assert_eq!(forced, norms.iter().all(|norm| norm.if_known().is_none()));
                    let norms: Vec<f64> = norms.iter().map(|norm| norm.value().unwrap()).collect();
                    (
                        weights.iter().map(|it| it.to_vec1::<f32>().unwrap()).collect::<Vec<_>>().concat(),
                        norms,
                    )
                };
                let ((weights, norms), (host_weights, host_norms)) = (stepped(true), stepped(false));
                for (weight, expected) in weights.iter().zip(&host_weights) {
                    assert!((weight - expected).abs() < 1e-5, "{rule:?} {limit:?}: {weight} {expected}");
                }
                for (norm, expected) in norms.iter().zip(&host_norms) {
                    assert!((norm - expected).abs() < 1e-5 * expected, "{rule:?} {limit:?}");
                }
            }
        }
    }

    #[test]
    fn joint_norms_are_roots_of_sums_of_squares() {
        let on_device = |norm: f32| Norm::OnDevice(Tensor::new(norm, &Device::Cpu).unwrap());
        let value = |norms: &[Norm]| Norm::joint(norms).unwrap().figure().unwrap().value().unwrap();
        assert_eq!(value(&[Norm::Known(3.0), Norm::Known(4.0)]), 5.0);
        assert_eq!(value(&[on_device(3.0), on_device(4.0)]), 5.0);
        assert_eq!(value(&[on_device(3.0), Norm::Known(4.0)]), 5.0);
    }

    #[test]
    fn clipping_brings_the_norm_to_the_limit() {
        assert_eq!(clip_factor(1.0, Some(2.0)), 1.0);
        assert_eq!(clip_factor(10.0, None), 1.0);
        assert!((clip_factor(10.0, Some(2.0)) * 10.0 - 2.0).abs() < 1e-5);
    }
}
