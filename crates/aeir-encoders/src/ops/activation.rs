//! Activations by the names that Hugging Face configurations give them.

use std::path::Path;

use candle_core::{CpuStorage, CustomOp1, Layout, Shape, Tensor};
use rayon::prelude::*;

use super::gelu::{self, Gelu};
use crate::error::{EncoderError, Result};
use crate::lanes::exponential_minus_one;
use crate::product::{held_values, values};
use crate::rehearsal::is_fused;
use crate::vector::{normal, sigmoid, vectorised};

/// The function between two linear layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// One of the forms of GELU.
    Gelu(Gelu),
    /// `max(x, 0)`.
    Relu,
    /// `min(max(x, 0), 6)`.
    Relu6,
    /// `x / (1 + exp(-x))`, also called swish.
    Silu,
    /// The hyperbolic tangent.
    Tanh,
}

/// Every name there is, with what it means.
const NAMES: &[(&str, Activation)] = &[
    ("gelu", Activation::Gelu(Gelu::Erf)),
    ("gelu_python", Activation::Gelu(Gelu::Erf)),
    ("gelu_new", Activation::Gelu(Gelu::Tanh)),
    ("gelu_fast", Activation::Gelu(Gelu::Tanh)),
    ("gelu_accurate", Activation::Gelu(Gelu::Tanh)),
    ("gelu_pytorch_tanh", Activation::Gelu(Gelu::Tanh)),
    ("gelu_python_tanh", Activation::Gelu(Gelu::Tanh)),
    ("quick_gelu", Activation::Gelu(Gelu::Quick)),
    ("relu", Activation::Relu),
    ("relu6", Activation::Relu6),
    ("silu", Activation::Silu),
    ("swish", Activation::Silu),
    ("tanh", Activation::Tanh),
];

impl Activation {
    /// The activation of this name, as in `hidden_act` of a `config.json`.
    ///
    /// # Errors
    /// [`EncoderError::Config`] for any other name, with `key` and `file` (where the name stands) and the names that there are.
    ///
    /// # Example
    /// ```
    /// use aeir_encoders::ops::{Activation, Gelu};
    ///
    /// let file = std::path::Path::new("config.json");
    /// assert_eq!(Activation::from_name("gelu", "hidden_act", file)?, Activation::Gelu(Gelu::Erf));
    /// assert!(Activation::from_name("glu", "hidden_act", file).is_err());
    /// # Ok::<_, aeir_encoders::EncoderError>(())
    /// ```
    pub fn from_name(name: &str, key: &str, file: &Path) -> Result<Self> {
        let known = NAMES.iter().find(|(known, _)| *known == name);
        known.map(|(_, activation)| *activation).ok_or_else(|| EncoderError::Config {
            file: file.to_path_buf(),
            key: key.to_owned(),
            expected: format!(
                "one of {}",
                NAMES.iter().map(|(known, _)| *known).collect::<Vec<_>>().join(", ")
            ),
            got: format!("\"{name}\""),
        })
    }

    /// Applies it to each element.
    ///
    /// # Errors
    /// [`EncoderError::Tensor`] from candle.
    pub fn apply(self, x: &Tensor) -> Result<Tensor> {
        if is_fused(&[x]) {
            return Ok(x.contiguous()?.apply_op1(self)?);
        }
        #[cfg(feature = "cuda")]
        if aeir_kernels::takes(&[x]) {
            return Ok(aeir_kernels::activate(x, self.of_kernels())?);
        }
        match self {
            Self::Gelu(form) => gelu::composed(x, form),
            Self::Relu => Ok(x.relu()?),
            Self::Relu6 => Ok(x.clamp(0.0, 6.0)?),
            Self::Silu => Ok(x.silu()?),
            Self::Tanh => Ok(x.tanh()?),
        }
    }

    /// As kernels for cards name it.
    #[cfg(feature = "cuda")]
    pub(crate) fn of_kernels(self) -> aeir_kernels::Activation {
        use aeir_kernels::Activation as Named;
        match self {
            Self::Gelu(Gelu::Erf) => Named::GeluErf,
            Self::Gelu(Gelu::Tanh) => Named::GeluTanh,
            Self::Gelu(Gelu::Quick) => Named::GeluQuick,
            Self::Relu => Named::Relu,
            Self::Relu6 => Named::Relu6,
            Self::Silu => Named::Silu,
            Self::Tanh => Named::Tanh,
        }
    }

    /// Applies it to a row.
    #[inline(always)]
    pub(crate) fn in_place(self, row: &mut [f32]) {
        match self {
            Self::Gelu(Gelu::Erf) => row.iter_mut().for_each(|x| *x *= normal(*x).0),
            Self::Gelu(Gelu::Tanh) => row.iter_mut().for_each(|x| *x *= sigmoid(gelu::tanh_inner(*x).0)),
            Self::Gelu(Gelu::Quick) => row.iter_mut().for_each(|x| *x *= sigmoid(gelu::QUICK as f32 * *x)),
            Self::Relu => row.iter_mut().for_each(|x| *x = if *x <= 0.0 { 0.0 } else { *x }),
            Self::Relu6 => row.iter_mut().for_each(|x| *x = x.clamp(0.0, 6.0)),
            Self::Silu => row.iter_mut().for_each(|x| *x *= sigmoid(*x)),
            Self::Tanh => row.iter_mut().for_each(|x| *x = tanh(*x)),
        }
    }

    /// Multiplies a row of gradients by the derivative at `x`.
    #[inline(always)]
    fn backward(self, gradient: &mut [f32], x: &[f32]) {
        /// `1 / sqrt(2 pi)`.
        const BELL: f32 = std::f32::consts::FRAC_2_SQRT_PI * std::f32::consts::FRAC_1_SQRT_2 / 2.0;
        let rows = gradient.iter_mut().zip(x);
        // Of `x s(w)`, s the logistic function: `s + x s (1 - s) w'`.
        let gated = |x: f32, inner: f32, slope: f32| {
            let gate = sigmoid(inner);
            gate + x * gate * (1.0 - gate) * slope
        };
        match self {
            Self::Gelu(Gelu::Erf) => rows.for_each(|(gradient, x)| {
                let (below, bell) = normal(*x);
                *gradient *= below + x * BELL * bell;
            }),
            Self::Gelu(Gelu::Tanh) => rows.for_each(|(gradient, x)| {
                let (inner, slope) = gelu::tanh_inner(*x);
                *gradient *= gated(*x, inner, slope);
            }),
            Self::Gelu(Gelu::Quick) => rows.for_each(|(gradient, x)| {
                *gradient *= gated(*x, gelu::QUICK as f32 * x, gelu::QUICK as f32);
            }),
            Self::Relu => rows.for_each(|(gradient, x)| *gradient *= if *x > 0.0 { 1.0 } else { 0.0 }),
            Self::Relu6 => {
                rows.for_each(|(gradient, x)| *gradient *= if *x > 0.0 && *x < 6.0 { 1.0 } else { 0.0 })
            }
            Self::Silu => rows.for_each(|(gradient, x)| *gradient *= gated(*x, *x, 1.0)),
            Self::Tanh => rows.for_each(|(gradient, x)| *gradient *= 1.0 - tanh(*x) * tanh(*x)),
        }
    }
}

#[inline(always)]
fn tanh(x: f32) -> f32 {
    // From 20 on the result rounds to one.
    let y = exponential_minus_one((2.0 * x).clamp(-40.0, 40.0));
    y / (y + 2.0)
}

/// Values of a task.
const PIECE: usize = 16 * 1024;

impl CustomOp1 for Activation {
    fn name(&self) -> &'static str {
        "activation"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let mut out = values(x, layout)?.to_vec();
        out.par_chunks_mut(PIECE).for_each(|row| vectorised(|| self.in_place(row)));
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _result: &Tensor, gradient: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let gradient = gradient.contiguous()?;
        let (gradient_storage, gradient_layout) = gradient.storage_and_layout();
        let (x_storage, x_layout) = x.storage_and_layout();
        let x_values = held_values(&x_storage, x_layout)?;
        let mut out = held_values(&gradient_storage, gradient_layout)?.to_vec();
        let rows = out.par_chunks_mut(PIECE).zip(x_values.par_chunks(PIECE));
        rows.for_each(|(gradient, x)| vectorised(|| self.backward(gradient, x)));
        Tensor::from_vec(out, x.shape(), x.device()).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::differences::{assert_gradients, noise};

    #[test]
    fn names_of_configurations() {
        let parse = |name| Activation::from_name(name, "hidden_act", Path::new("config.json"));
        assert_eq!(parse("gelu_new").unwrap(), Activation::Gelu(Gelu::Tanh));
        assert_eq!(parse("swish").unwrap(), Activation::Silu);
        let error = parse("glu").unwrap_err().to_string();
        assert!(
            error.contains("`hidden_act`") && error.contains("quick_gelu") && error.contains("\"glu\""),
            "{error}"
        );
    }

    #[test]
    fn gradients_of_every_activation_by_finite_differences() {
        for (name, activation) in NAMES {
            let x = (noise(1, &[3, 7]) * 3.0).unwrap();
            assert_gradients(name, &[x], |inputs| activation.apply(&inputs[0]));
        }
    }
}
