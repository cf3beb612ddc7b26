//! The parts that transformer encoders of text and images are made of.
//!
//! Every part takes its tensors from a [`Source`](crate::checkpoint::Source), so that the same code infers and is trained, and its
//! dropout from a [`Mode`](crate::Mode).

mod attention;
mod block;
mod feed_forward;
mod linear;
mod norm;
mod rotary;

pub(crate) use attention::Attention;
pub(crate) use block::{Block, BlockConfig, BlockNames, NormPlacement};
pub(crate) use feed_forward::{FeedForward, GatedFeedForward};
pub(crate) use linear::Linear;
pub(crate) use norm::LayerNorm;
pub(crate) use rotary::Rotary;
