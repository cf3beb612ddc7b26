//! How an index keeps its vectors.

use half::f16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// How an index keeps its vectors, and what a search walks over.
///
/// | | bytes a vector of D on disk | walked over by a search | what a score is the dot product with |
/// |---|---|---|---|
/// | `F32` | 4 D | 4 D | the vector |
/// | `F16` | 2 D | 2 D | the vector, each number rounded to 11 significant bits |
/// | `Int8` | 3 D + 4 | D + 4 | as `F16`, of the best by 8-bit codes |
///
/// `F32` and `F16` are searched exactly, for what they hold. With `Int8` a first pass over codes (one scale a vector) picks
/// `2 k + 64` candidates an item, which are scored again by the 16-bit vectors beside them: an item can be missed that rounding
/// of the codes throws so far back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Storage {
    /// 32-bit floating point.
    #[default]
    F32,
    /// 16-bit floating point.
    F16,
    /// 8-bit integers with 16-bit floating point beside them.
    Int8,
}

impl Storage {
    /// Its name in flags, files and JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Int8 => "int8",
        }
    }
}

/// Codes of a row are padded to a multiple of this many bytes, so that wide instructions need no remainder.
pub(crate) const CODE_ALIGNMENT: usize = 64;
/// The code of 0.
pub(crate) const ZERO_CODE: u8 = 128;

/// 255 times 127 fits into an `i32` 66,311 times.
const MOST_CODED: usize = 1 << 16;

/// Bytes between the codes of two rows.
pub(crate) fn code_stride(dimension: usize) -> usize {
    dimension.next_multiple_of(CODE_ALIGNMENT)
}

/// Refuses more dimensions than sums of products of codes, `i32`, have room for.
pub(crate) fn check_codable(dimension: usize) -> Result<()> {
    if dimension <= MOST_CODED {
        return Ok(());
    }
    Err(Error::Setting {
        name: "dimension",
        expected: format!("at most {MOST_CODED} for 8-bit codes (storage int8, or a graph)"),
        got: dimension.to_string(),
    })
}

/// 8-bit codes of rows: `code = 128 + round(value / scale)`, `scale = largest magnitude of the row / 127`.
pub(crate) fn quantised(values: &[f32], dimension: usize) -> (Vec<u8>, Vec<f32>) {
    let stride = code_stride(dimension);
    let rows = values.len().checked_div(dimension).unwrap_or(0);
    let mut codes = vec![ZERO_CODE; rows * stride];
    let scales = (codes.par_chunks_exact_mut(stride.max(1)))
        .zip(values.par_chunks_exact(dimension.max(1)))
        .map(|(codes, row)| {
            let largest = row.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
            let scale = largest / 127.0;
            // A row so short that its scale is no normal number keeps the code of 0.
            if scale >= f32::MIN_POSITIVE {
                for (code, value) in codes.iter_mut().zip(row) {
                    *code = (f32::from(ZERO_CODE) + (value / scale).round()) as u8;
                }
                scale
            } else {
                0.0
            }
        })
        .collect();
    (codes, scales)
}

/// Each number rounded to 16 bits.
pub(crate) fn halved(values: &[f32]) -> Vec<f16> {
    let mut halves = vec![f16::ZERO; values.len()];
    const CHUNK: usize = 1 << 16;
    (halves.par_chunks_mut(CHUNK).zip(values.par_chunks(CHUNK)))
        .for_each(|(halves, values)| halves.convert_from_f32_slice(values));
    halves
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dimensions_whose_sums_overflow_are_refused() {
        assert!(check_codable(65_536).is_ok());
        let error = check_codable(65_537).unwrap_err();
        assert!(matches!(&error, Error::Setting { name: "dimension", got, .. } if got == "65537"), "{error}");
    }

    #[test]
    fn codes_are_within_half_a_step_and_padded_with_zero() {
        let values = [0.5, -1.0, 0.25, 0.0, 0.0, 0.0, 1e-42, 0.0, 0.0];
        let (codes, scales) = quantised(&values, 3);
        assert_eq!((codes.len(), scales.len()), (3 * 64, 3));
        for ((row, scale), codes) in values.chunks(3).zip(&scales).zip(codes.chunks(64)) {
            for (value, code) in row.iter().zip(codes) {
                let back = f32::from(*code) - f32::from(ZERO_CODE);
                assert!((back * scale - value).abs() <= 0.5 * scale + 1e-30, "{value} {code}");
            }
            assert!(codes[3..].iter().all(|code| *code == ZERO_CODE));
        }
        assert_eq!(&codes[..3], &[128 + 64, 1, 128 + 32]);
        assert_eq!(scales[1..], [0.0, 0.0]);
    }
}
