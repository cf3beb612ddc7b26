//! Activations by the names that Hugging Face configurations give them.

use std::path::Path;

use candle_core::Tensor;

use super::gelu::{Gelu, gelu};
use crate::error::{EncoderError, Result};

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
        match self {
            Self::Gelu(form) => gelu(x, form),
            Self::Relu => Ok(x.relu()?),
            Self::Relu6 => Ok(x.clamp(0.0, 6.0)?),
            Self::Silu => Ok(x.silu()?),
            Self::Tanh => Ok(x.tanh()?),
        }
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
