//! Masked forms of reductions, written so that no masked entry can make a NaN.

use candle_core::{D, Tensor};

use crate::error::Result;
use crate::fragments::Fragments;
use crate::rehearsal::is_at_hand;

/// Stands for minus infinity where a maximum is taken: infinities would make NaN in a row without entries.
const LOWEST: f32 = -1e30;
/// Keeps the sum of a row without entries from being divided by.
const SMALLEST: f64 = 1e-30;

/// The fragments with zeros in the rows of padding, which then get no gradient.
pub(super) fn zeroed(fragments: &Fragments) -> Result<Fragments> {
    // Another device is not asked: it would have to be waited for.
    if is_at_hand(fragments.mask()) && !fragments.has_padding()? {
        return Ok(fragments.clone());
    }
    let mask = fragments.mask().to_dtype(fragments.features().dtype())?.unsqueeze(2)?;
    fragments.with_features(fragments.features().broadcast_mul(&mask)?)
}

/// Softmax over the last axis among the entries with mask 1; the others get exactly 0, and a row without any gets zeros.
///
/// `mask` must broadcast to the shape of `x`.
pub(super) fn softmax(x: &Tensor, mask: &Tensor) -> Result<Tensor> {
    let mask = mask.broadcast_as(x.shape())?;
    let lowest = Tensor::full(LOWEST, (), x.device())?.to_dtype(x.dtype())?.broadcast_as(x.shape())?;
    let x = mask.ne(0f64)?.where_cond(x, &lowest)?;
    let largest = x.detach().max_keepdim(D::Minus1)?;
    let weights = (x.broadcast_sub(&largest)?.exp()? * mask)?;
    let sum = weights.sum_keepdim(D::Minus1)?.maximum(SMALLEST)?;
    Ok(weights.broadcast_div(&sum)?)
}

/// `x` where positive, `slope x` elsewhere.
pub(super) fn leaky_relu(x: &Tensor, slope: f64) -> Result<Tensor> {
    Ok(x.gt(0f64)?.where_cond(x, &(x * slope)?)?)
}
