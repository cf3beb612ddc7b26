//! Named tensors of a safetensors file, checked as they are taken.

use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};

use crate::error::{EncoderError, Result};

/// The tensors of one file. Every value is looked at once: a NaN in the weights is found here, not in the features.
pub(crate) struct Weights<'a> {
    file: PathBuf,
    tensors: SafeTensors<'a>,
}

impl<'a> Weights<'a> {
    /// Parses the header; lengths and offsets are checked against the bytes.
    pub(crate) fn parse(file: &Path, bytes: &'a [u8]) -> Result<Self> {
        let tensors = SafeTensors::deserialize(bytes)
            .map_err(|source| EncoderError::Safetensors { file: file.to_path_buf(), source })?;
        Ok(Self { file: file.to_path_buf(), tensors })
    }

    /// Whether the file has a tensor of this name.
    pub(crate) fn contains(&self, key: &str) -> bool {
        self.tensors.tensor(key).is_ok()
    }

    /// The shape of a tensor; `expected` is for the error alone.
    pub(crate) fn shape(&self, key: &str, expected: &[usize]) -> Result<Vec<usize>> {
        match self.tensors.tensor(key) {
            Ok(view) => Ok(view.shape().to_vec()),
            Err(_) => Err(EncoderError::MissingTensor {
                file: self.file.clone(),
                key: key.to_owned(),
                expected: expected.to_vec(),
            }),
        }
    }

    /// A tensor of this shape as f32, row-major; stored as f32, f16 or bf16.
    pub(crate) fn take(&self, key: &str, expected: &[usize]) -> Result<Vec<f32>> {
        let got = self.shape(key, expected)?;
        if got != expected {
            return Err(EncoderError::TensorShape {
                file: self.file.clone(),
                key: key.to_owned(),
                expected: expected.to_vec(),
                got,
            });
        }
        let view = self
            .tensors
            .tensor(key)
            .map_err(|source| EncoderError::Safetensors { file: self.file.clone(), source })?;
        let bytes = view.data();
        let values: Vec<f32> = match view.dtype() {
            Dtype::F32 => bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(),
            Dtype::F16 => bytes
                .as_chunks::<2>()
                .0
                .iter()
                .map(|bytes| half::f16::from_le_bytes(*bytes).to_f32())
                .collect(),
            Dtype::BF16 => bytes
                .as_chunks::<2>()
                .0
                .iter()
                .map(|bytes| half::bf16::from_le_bytes(*bytes).to_f32())
                .collect(),
            other => {
                return Err(EncoderError::TensorType {
                    file: self.file.clone(),
                    key: key.to_owned(),
                    expected: "f32, f16 or bf16",
                    got: format!("{other:?}"),
                });
            }
        };
        match values.iter().find(|value| !value.is_finite()) {
            Some(value) => Err(self.bad_value(key, "finite values", *value)),
            None => Ok(values),
        }
    }

    /// The error for a value that can't be used.
    pub(crate) fn bad_value(&self, key: &str, expected: &'static str, got: f32) -> EncoderError {
        EncoderError::TensorValue { file: self.file.clone(), key: key.to_owned(), expected, got }
    }
}
