//! The operations of transformer and convolution encoders, each with its gradient.
//!
//! candle's own layer norm, last-axis softmax and fused attention pass no gradient, and its element-wise operations and
//! reductions run on one thread. These pass gradients everywhere. In f32 on the CPU the hot ones are one graph node each, on all
//! threads, with the same bits on any number of them; in f32 on NVIDIA cards most are kernels of `aeir-kernels`. On other devices and in other
//! types they are composed of candle's operations.
//! A result remembers a graph only where an input does.

mod activation;
mod attention;
mod convolution;
mod gelu;
mod layer_norm;
mod linear;
mod softmax;

pub use activation::Activation;
pub use attention::{AttentionBias, attention};
pub use convolution::{conv2d, depthwise};
pub use gelu::{Gelu, gelu};
pub use layer_norm::layer_norm;
pub use linear::{Linear, linear};
pub use softmax::softmax;

#[cfg(test)]
mod differences;
