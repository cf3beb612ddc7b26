//! From the states of the tokens to one vector a sentence.

use candle_core::Tensor;

use super::batch::TokenBatch;
use crate::error::Result;
use crate::fragments::Fragments;

/// How the tokens' states become one vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// The mean over the tokens, padding left out.
    Mean,
    /// The largest value of each component over the tokens, padding left out.
    Max,
    /// The state of the first token.
    First,
    /// The state at the last position, whatever stands there: SigLIP.
    LastPosition,
    /// The state at the first token with this id, or at the first position where there is none: CLIP.
    FirstOf(u32),
    /// The state at the largest id: CLIP where the configuration names no end token (`eos_token_id` 2, as in the first
    /// published files).
    LargestId,
}

impl Pooling {
    /// `states [B, T, H]` to `[B, H]`.
    pub(crate) fn apply(self, states: &Tensor, tokens: &TokenBatch) -> Result<Tensor> {
        match self {
            Self::Mean => Fragments::new(states.clone(), tokens.mask(states.device())?)?.mean_pooled(),
            Self::Max => maximum(states, tokens),
            Self::First => at(states, tokens, |_| 0),
            Self::LastPosition => at(states, tokens, |ids| ids.len().saturating_sub(1)),
            Self::FirstOf(end) => {
                at(states, tokens, |ids| ids.iter().position(|id| *id == end).unwrap_or_default())
            }
            Self::LargestId => at(states, tokens, largest),
        }
    }
}

/// The first position of the largest id.
fn largest(ids: &[u32]) -> usize {
    let largest = ids.iter().max();
    ids.iter().position(|id| Some(id) == largest).unwrap_or_default()
}

/// The state at one position of each sentence.
fn at(states: &Tensor, tokens: &TokenBatch, position: impl Fn(&[u32]) -> usize) -> Result<Tensor> {
    let (count, length, dimension) = states.dims3()?;
    let rows: Vec<u32> = tokens
        .rows()
        .enumerate()
        .map(|(sentence, (ids, _))| (sentence * length + position(ids)) as u32)
        .collect();
    let rows = Tensor::from_vec(rows, count, states.device())?;
    Ok(states.reshape((count * length, dimension))?.index_select(&rows, 0)?)
}

/// A sentence without any token gives zeros.
fn maximum(states: &Tensor, tokens: &TokenBatch) -> Result<Tensor> {
    let mask = tokens.mask(states.device())?.unsqueeze(2)?;
    let shape = states.dims();
    let hidden = mask.eq(0f64)?.broadcast_as(shape)?;
    let lowest = Tensor::full(f32::MIN, shape, states.device())?;
    let largest = hidden.where_cond(&lowest, states)?.max(1)?;
    let is_empty = mask.sum(1)?.eq(0f64)?.broadcast_as(largest.dims())?;
    Ok(is_empty.where_cond(&largest.zeros_like()?, &largest)?)
}
