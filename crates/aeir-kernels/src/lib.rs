#![doc = include_str!("../README.md")]
#![cfg(feature = "cuda")]

mod alignment;
mod attention;
mod elements;
mod filter;
mod fragments;
mod launch;
mod node;
mod optimizer;
mod pair_scores;
mod recurrence;
mod rows;
mod sentences;

pub use attention::{Sight, attention, takes_attention};
pub use elements::{Activation, Drawn, activate, affine, dropout, pixel_values, plain};
pub use fragments::{Normalised, best_values, gated_scores, matched_sums, normalised_tanh};
pub use optimizer::{Moments, Step, step, sum_of_squares};
pub use pair_scores::{Alignment, Filtered, Gate, Layer, aligned, filtered, takes_alignment};
pub use recurrence::{Recurrence, recurrence};
pub use rows::{UnitLength, layer_norm, softmax, unit_rows};
pub use sentences::{Places, chosen_rows, padded_unit_mean};

use candle_core::{DType, Tensor};

/// Whether these can be an operation's: not empty, in f32, on a card.
#[must_use]
pub fn takes(tensors: &[&Tensor]) -> bool {
    tensors
        .iter()
        .all(|tensor| tensor.device().is_cuda() && tensor.dtype() == DType::F32 && tensor.elem_count() > 0)
}
