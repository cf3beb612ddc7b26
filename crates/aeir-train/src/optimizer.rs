//! AdamW over named parameters, with its state in the open, and global-norm clipping.

use std::cell::RefCell;
use std::collections::BTreeMap;

use candle_core::{CpuStorage, DType, Device, InplaceOp2, Layout, Storage, Tensor, Var};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::error::{Result, TrainError};

/// Settings of [`AdamW`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdamWConfig {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decoupled weight decay, multiplied by the learning rate; 0 makes this Adam.
    pub weight_decay: f64,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.0 }
    }
}

/// AdamW with decoupled weight decay.
///
/// Equation (Loshchilov and Hutter, ICLR 2019): `m = b1 m + (1 - b1) g`, `v = b2 v + (1 - b2) g^2`,
/// `w = w - lr wd w - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)`.
///
/// Numerical notes: moments are f32. On the CPU the update is one fused pass over each parameter; elsewhere it is made
/// of candle's operations, which differ in the last bit. Vectors (biases, scales) are decayed like the rest, as
/// PyTorch does with one parameter group.
pub struct AdamW {
    config: AdamWConfig,
    parameters: Vec<(String, Var)>,
    moments: Vec<Moments>,
    step: usize,
}

enum Moments {
    Host { first: Vec<f32>, second: Vec<f32> },
    Device { first: Tensor, second: Tensor },
}

impl AdamW {
    /// An optimiser of `parameters`, which must come sorted by name.
    ///
    /// # Errors
    /// When the moments can't be allocated on the device.
    pub fn new(parameters: Vec<(String, Var)>, config: AdamWConfig) -> Result<Self> {
        let moments = parameters
            .iter()
            .map(|(_, variable)| {
                Ok(match variable.device() {
                    Device::Cpu => {
                        let count = variable.elem_count();
                        Moments::Host { first: vec![0.0; count], second: vec![0.0; count] }
                    }
                    _ => Moments::Device { first: variable.zeros_like()?, second: variable.zeros_like()? },
                })
            })
            .collect::<Result<_>>()?;
        Ok(Self { config, parameters, moments, step: 0 })
    }

    /// Names and parameters, in order.
    pub fn parameters(&self) -> &[(String, Var)] {
        &self.parameters
    }

    /// One update. Parameters without a gradient stay as they are. Each gradient is multiplied by `scale` first.
    ///
    /// # Errors
    /// When an operation fails on the device.
    pub fn step(&mut self, gradients: &Gradients, scale: f64, learning_rate: f64) -> Result<()> {
        self.step += 1;
        let AdamWConfig { beta1, beta2, epsilon, weight_decay } = self.config;
        let correction1 = 1.0 - beta1.powi(self.step as i32);
        let correction2 = 1.0 - beta2.powi(self.step as i32);
        for ((name, variable), moments) in self.parameters.iter().zip(&mut self.moments) {
            let Some(gradient) = gradients.get(name) else { continue };
            match moments {
                Moments::Host { first, second } => {
                    let update = Update {
                        beta1: beta1 as f32,
                        beta2: beta2 as f32,
                        scale: scale as f32,
                        decay: (1.0 - learning_rate * weight_decay) as f32,
                        rate: (learning_rate / correction1) as f32,
                        root_correction: correction2.sqrt() as f32,
                        epsilon: epsilon as f32,
                        moments: RefCell::new((first, second)),
                    };
                    variable.inplace_op2(&gradient.contiguous()?, &update)?;
                }
                Moments::Device { first, second } => {
                    let gradient = (gradient.detach() * scale)?;
                    *first = ((&*first * beta1)? + (&gradient * (1.0 - beta1))?)?;
                    *second = ((&*second * beta2)? + (gradient.sqr()? * (1.0 - beta2))?)?;
                    let denominator = ((&*second / correction2)?.sqrt()? + epsilon)?;
                    let update = ((&*first / correction1)? / denominator)?;
                    let decayed = (variable.as_detached_tensor() * (1.0 - learning_rate * weight_decay))?;
                    variable.set(&(decayed - (update * learning_rate)?)?)?;
                }
            }
        }
        Ok(())
    }

    /// The state as named tensors: `first.NAME`, `second.NAME`, `step`.
    ///
    /// # Errors
    /// When a tensor can't be made.
    pub fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        let mut state = BTreeMap::new();
        for ((name, variable), moments) in self.parameters.iter().zip(&self.moments) {
            let (first, second) = match moments {
                Moments::Host { first, second } => (
                    Tensor::from_slice(first, variable.shape(), &Device::Cpu)?,
                    Tensor::from_slice(second, variable.shape(), &Device::Cpu)?,
                ),
                Moments::Device { first, second } => (first.clone(), second.clone()),
            };
            state.insert(format!("first.{name}"), first);
            state.insert(format!("second.{name}"), second);
        }
        state.insert("step".into(), Tensor::new(&[self.step as i64], &Device::Cpu)?);
        Ok(state)
    }

    /// Takes a state written by [`AdamW::state`].
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn restore(&mut self, state: &BTreeMap<String, Tensor>) -> Result<()> {
        let find = |key: String| {
            state.get(&key).ok_or_else(|| TrainError::Data {
                what: "optimiser state".into(),
                expected: format!("tensor `{key}`"),
                got: "none".into(),
            })
        };
        for ((name, variable), moments) in self.parameters.iter().zip(&mut self.moments) {
            let (saved_first, saved_second) =
                (find(format!("first.{name}"))?, find(format!("second.{name}"))?);
            for saved in [saved_first, saved_second] {
                if saved.shape() != variable.shape() {
                    return Err(TrainError::Data {
                        what: format!("optimiser state of `{name}`"),
                        expected: format!("{:?}", variable.shape()),
                        got: format!("{:?}", saved.shape()),
                    });
                }
            }
            match moments {
                Moments::Host { first, second } => {
                    *first = saved_first.flatten_all()?.to_vec1()?;
                    *second = saved_second.flatten_all()?.to_vec1()?;
                }
                Moments::Device { first, second } => {
                    *first = saved_first.to_device(variable.device())?;
                    *second = saved_second.to_device(variable.device())?;
                }
            }
        }
        self.step = find("step".into())?.to_vec1::<i64>()?.first().copied().unwrap_or(0) as usize;
        Ok(())
    }
}

/// Numbers that one task updates or adds up: a constant, so that sums have one order whatever the number of threads.
const CHUNK: usize = 1 << 14;

/// One parameter's update on the CPU: a single pass on all threads, in place.
struct Update<'a> {
    beta1: f32,
    beta2: f32,
    scale: f32,
    decay: f32,
    rate: f32,
    root_correction: f32,
    epsilon: f32,
    moments: RefCell<(&'a mut [f32], &'a mut [f32])>,
}

impl InplaceOp2 for Update<'_> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(
        &self,
        weights: &mut CpuStorage,
        weight_layout: &Layout,
        gradient: &CpuStorage,
        gradient_layout: &Layout,
    ) -> candle_core::Result<()> {
        let (CpuStorage::F32(weights), Some(range)) = (weights, weight_layout.contiguous_offsets()) else {
            candle_core::bail!("adamw: expected contiguous f32 parameters");
        };
        let Some(weights) = weights.get_mut(range.0..range.1) else {
            candle_core::bail!("adamw: layout outside of the storage");
        };
        let gradient = numbers(gradient, gradient_layout)?;
        let mut moments = self.moments.borrow_mut();
        let (first, second) = &mut *moments;
        if [weights.len(), first.len(), second.len()] != [gradient.len(); 3] {
            candle_core::bail!("adamw: {} gradients for {} parameters", gradient.len(), weights.len());
        }
        let Self { beta1, beta2, scale, decay, rate, root_correction, epsilon, .. } = *self;
        let chunks = weights.par_chunks_mut(CHUNK).zip(gradient.par_chunks(CHUNK));
        let moments = first.par_chunks_mut(CHUNK).zip(second.par_chunks_mut(CHUNK));
        chunks.zip(moments).for_each(|((weights, gradient), (first, second))| {
            let values = weights.iter_mut().zip(gradient).zip(first.iter_mut().zip(second.iter_mut()));
            for ((weight, gradient), (m, v)) in values {
                let gradient = gradient * scale;
                *m = beta1 * *m + (1.0 - beta1) * gradient;
                *v = beta2 * *v + (1.0 - beta2) * gradient * gradient;
                *weight = *weight * decay - rate * *m / (v.sqrt() / root_correction + epsilon);
            }
        });
        Ok(())
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
        parameters: &[(String, Var)],
    ) -> Result<()> {
        for (name, variable) in parameters {
            let Some(gradient) = store.get(variable) else { continue };
            let sum = match self.by_name.get(name) {
                Some(already) => (already + gradient)?,
                None => gradient.clone(),
            };
            self.by_name.insert(name.clone(), sum.detach());
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

    /// The published rule in f64, one number.
    fn reference(start: f64, gradients: &[f64], rate: f64, config: AdamWConfig) -> f64 {
        let (mut w, mut m, mut v) = (start, 0.0, 0.0);
        for (t, g) in gradients.iter().enumerate() {
            let t = t as i32 + 1;
            m = config.beta1 * m + (1.0 - config.beta1) * g;
            v = config.beta2 * v + (1.0 - config.beta2) * g * g;
            w -= rate * config.weight_decay * w;
            let (m_hat, v_hat) = (m / (1.0 - config.beta1.powi(t)), v / (1.0 - config.beta2.powi(t)));
            w -= rate * m_hat / (v_hat.sqrt() + config.epsilon);
        }
        w
    }

    #[test]
    fn follows_the_published_rule_and_resumes() {
        let config = AdamWConfig { weight_decay: 0.05, ..AdamWConfig::default() };
        let store = ParameterStore::new(3, &Device::Cpu);
        let weight = store.builder().get_with_hints(1, "w", Init::Const(0.7)).unwrap();
        let mut optimizer = AdamW::new(store.with_prefix(""), config).unwrap();
        let scales = [0.3, -2.0, 1e-4, 5.0, -0.2];
        for (index, scale) in scales.iter().enumerate() {
            let mut gradients = Gradients::default();
            let loss = (&weight * *scale).unwrap().sum_all().unwrap();
            gradients.accumulate(&loss.backward().unwrap(), optimizer.parameters()).unwrap();
            optimizer.step(&gradients, 1.0, 0.01).unwrap();
            if index == 2 {
                let state = optimizer.state().unwrap();
                optimizer = AdamW::new(store.with_prefix(""), config).unwrap();
                optimizer.restore(&state).unwrap();
            }
        }
        let got = weight.to_vec1::<f32>().unwrap()[0];
        assert!((f64::from(got) - reference(0.7, &scales, 0.01, config)).abs() < 1e-6, "{got}");
    }

    #[test]
    fn clipping_brings_the_norm_to_the_limit() {
        assert_eq!(clip_factor(1.0, Some(2.0)), 1.0);
        assert_eq!(clip_factor(10.0, None), 1.0);
        assert!((clip_factor(10.0, Some(2.0)) * 10.0 - 2.0).abs() < 1e-5);
    }
}
