//! The crate's one error type, and the checks that produce it.

use candle_core::{DType, Tensor};
use thiserror::Error;

/// Why a loss could not be computed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LossError {
    /// A tensor has the wrong shape.
    #[error("{loss}: tensor `{tensor}`: expected shape {expected}, got {got:?}")]
    Shape {
        /// The loss that was called.
        loss: &'static str,
        /// The argument's name.
        tensor: &'static str,
        /// The shape that was expected, letters with their values.
        expected: String,
        /// The shape that came.
        got: Vec<usize>,
    },
    /// A tensor has the wrong element type.
    #[error("{loss}: tensor `{tensor}`: expected element type {expected}, got {got:?}")]
    ElementType {
        /// The loss that was called.
        loss: &'static str,
        /// The argument's name.
        tensor: &'static str,
        /// The element types that would have been right.
        expected: &'static str,
        /// The element type that came.
        got: DType,
    },
    /// A tensor has too few rows for the loss to be defined.
    #[error("{loss}: tensor `{tensor}`: expected at least {expected} rows, got {got}")]
    TooFewRows {
        /// The loss that was called.
        loss: &'static str,
        /// The argument's name.
        tensor: &'static str,
        /// The smallest number of rows for which the loss is defined.
        expected: usize,
        /// The number of rows that came.
        got: usize,
    },
    /// A parameter of a loss is outside its range.
    #[error("{loss}: parameter `{parameter}`: expected {expected}, got {got}")]
    Parameter {
        /// The loss that was called.
        loss: &'static str,
        /// The parameter's name.
        parameter: &'static str,
        /// The range that would have been right.
        expected: &'static str,
        /// The value that came.
        got: f64,
    },
    /// A tensor holds a NaN or an infinity, or numbers so large that their products do.
    #[error("{loss}: tensor `{tensor}`: expected finite values with finite products, got {got}")]
    NotFinite {
        /// The loss that was called.
        loss: &'static str,
        /// The argument's name.
        tensor: &'static str,
        /// The value, or the product, that is not finite.
        got: f64,
    },
    /// A matrix decomposition did not converge.
    #[error("{loss}: the decomposition of a covariance did not converge")]
    NoConvergence {
        /// The loss that was called.
        loss: &'static str,
    },
    /// candle failed: a device mismatch, a missing weight, no memory left.
    #[error("{loss}: a tensor operation failed")]
    Candle {
        /// The loss that was called.
        loss: &'static str,
        /// What candle said.
        #[source]
        source: candle_core::Error,
    },
}

/// Names the loss in which a tensor operation failed.
pub(crate) trait Within<T> {
    fn within(self, loss: &'static str) -> Result<T, LossError>;
}

impl<T> Within<T> for candle_core::Result<T> {
    fn within(self, loss: &'static str) -> Result<T, LossError> {
        self.map_err(|source| LossError::Candle { loss, source })
    }
}

/// The argument checks of one loss; each failure carries the loss's name.
#[derive(Clone, Copy)]
pub(crate) struct Check(pub(crate) &'static str);

impl Check {
    pub(crate) fn shape_error(self, tensor: &'static str, expected: String, got: &Tensor) -> LossError {
        LossError::Shape { loss: self.0, tensor, expected, got: got.dims().to_vec() }
    }

    pub(crate) fn float(self, name: &'static str, tensor: &Tensor) -> Result<(), LossError> {
        match tensor.dtype() {
            DType::F32 | DType::F64 => Ok(()),
            got => Err(LossError::ElementType { loss: self.0, tensor: name, expected: "F32 or F64", got }),
        }
    }

    /// The same floating-point type as `like`.
    pub(crate) fn same_type(
        self,
        name: &'static str,
        tensor: &Tensor,
        like: &Tensor,
    ) -> Result<(), LossError> {
        self.float(name, tensor)?;
        if tensor.dtype() == like.dtype() {
            return Ok(());
        }
        let expected = if like.dtype() == DType::F32 { "F32" } else { "F64" };
        Err(LossError::ElementType { loss: self.0, tensor: name, expected, got: tensor.dtype() })
    }

    /// `[rows, columns]`, none of them zero.
    pub(crate) fn matrix(
        self,
        name: &'static str,
        expected: &str,
        tensor: &Tensor,
    ) -> Result<(usize, usize), LossError> {
        self.float(name, tensor)?;
        match *tensor.dims() {
            [rows, columns] if rows > 0 && columns > 0 => Ok((rows, columns)),
            _ => Err(self.shape_error(name, format!("{expected}, not empty"), tensor)),
        }
    }

    /// `[B, B]`, B > 0.
    pub(crate) fn square(self, name: &'static str, tensor: &Tensor) -> Result<usize, LossError> {
        self.float(name, tensor)?;
        match *tensor.dims() {
            [rows, columns] if rows == columns && rows > 0 => Ok(rows),
            _ => Err(self.shape_error(name, "[B, B], not empty".to_owned(), tensor)),
        }
    }

    /// The same shape and type as `like`.
    pub(crate) fn same_shape(
        self,
        name: &'static str,
        tensor: &Tensor,
        like: &Tensor,
    ) -> Result<(), LossError> {
        self.same_type(name, tensor, like)?;
        if tensor.dims() == like.dims() {
            return Ok(());
        }
        Err(self.shape_error(name, format!("{:?}", like.dims()), tensor))
    }

    /// A tensor of one element, as shape `[]`.
    pub(crate) fn scalar(
        self,
        name: &'static str,
        tensor: &Tensor,
        like: &Tensor,
    ) -> Result<Tensor, LossError> {
        self.same_type(name, tensor, like)?;
        if tensor.elem_count() != 1 {
            return Err(self.shape_error(name, "[] or [1]".to_owned(), tensor));
        }
        tensor.reshape(()).within(self.0)
    }

    /// Critic outputs `[B]` or `[B, 1]`, as `[B]`.
    pub(crate) fn logits(self, name: &'static str, tensor: &Tensor) -> Result<Tensor, LossError> {
        self.float(name, tensor)?;
        match *tensor.dims() {
            [rows] if rows > 0 => Ok(tensor.clone()),
            [rows, 1] if rows > 0 => tensor.squeeze(1).within(self.0),
            _ => Err(self.shape_error(name, "[B] or [B, 1], not empty".to_owned(), tensor)),
        }
    }

    pub(crate) fn parameter(
        self,
        right: bool,
        parameter: &'static str,
        expected: &'static str,
        got: f64,
    ) -> Result<(), LossError> {
        if right { Ok(()) } else { Err(LossError::Parameter { loss: self.0, parameter, expected, got }) }
    }

    /// A finite number larger than zero.
    pub(crate) fn positive(self, parameter: &'static str, got: f64) -> Result<(), LossError> {
        self.parameter(got.is_finite() && got > 0.0, parameter, "a finite number above 0", got)
    }

    /// A finite number, zero or larger.
    pub(crate) fn not_negative(self, parameter: &'static str, got: f64) -> Result<(), LossError> {
        self.parameter(got.is_finite() && got >= 0.0, parameter, "a finite number, 0 or larger", got)
    }
}
