//! Numerically stable building blocks that pass gradients on every device.

use candle_core::{D, DType, Device, Result, Tensor};

use crate::rehearsal::Product;

/// Rows divided by `sqrt(sum x^2 + epsilon)`: finite value and gradient at a row of zeros.
pub(crate) fn normalise_rows(x: &Tensor, epsilon: f64) -> Result<Tensor> {
    let norm = (x.sqr()?.sum_keepdim(D::Minus1)? + epsilon)?.sqrt()?;
    x.broadcast_div(&norm)
}

/// `ln(sum(exp(x)))` over the last dimension, which stays with size 1.
///
/// The maximum is a constant: its gradient would cancel anyway, and candle's would not at ties.
pub(crate) fn log_sum_exp(x: &Tensor) -> Result<Tensor> {
    let max = x.detach().max_keepdim(D::Minus1)?;
    x.broadcast_sub(&max)?.exp()?.sum_keepdim(D::Minus1)?.log()?.broadcast_add(&max)
}

/// Log-softmax over the last dimension.
pub(crate) fn log_softmax(x: &Tensor) -> Result<Tensor> {
    let shifted = x.broadcast_sub(&x.detach().max_keepdim(D::Minus1)?)?;
    let total = shifted.exp()?.sum_keepdim(D::Minus1)?.log()?;
    shifted.broadcast_sub(&total)
}

/// `ln(1 + exp(x))`, which is `-ln sigmoid(-x)`.
pub(crate) fn softplus(x: &Tensor) -> Result<Tensor> {
    x.relu()? + (x.abs()?.neg()?.exp()? + 1.0)?.log()?
}

/// The diagonal of a square matrix, as a column.
pub(crate) fn diagonal(x: &Tensor) -> Result<Tensor> {
    let rows = u32::try_from(x.dim(0)?).map_err(candle_core::Error::wrap)?;
    x.contiguous()?.gather(&Tensor::arange(0u32, rows, x.device())?.unsqueeze(1)?, 1)
}

/// 0 on the diagonal, 1 elsewhere.
pub(crate) fn off_diagonal(size: usize, dtype: DType, device: &Device) -> Result<Tensor> {
    1.0 - Tensor::eye(size, dtype, device)?
}

pub(crate) fn negative_infinity(like: &Tensor) -> Result<Tensor> {
    Tensor::new(f32::NEG_INFINITY, like.device())?.to_dtype(like.dtype())?.broadcast_as(like.dims())
}

/// Squared Euclidean distances `[N, M]` between the rows of `x` and of `y`, never negative.
///
/// One matmul in place of an `[N, M, D]` difference. Both are centred on the (constant) mean row first: distances stay the
/// same and less is lost to cancellation.
pub(crate) fn squared_distances(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    let centre = Tensor::cat(&[&x.detach(), &y.detach()], 0)?.mean_keepdim(0)?;
    let (x, y) = (x.broadcast_sub(&centre)?, y.broadcast_sub(&centre)?);
    let cross = (x.product(&y.t()?.contiguous()?)? * 2.0)?;
    let squares = x.sqr()?.sum_keepdim(1)?.broadcast_add(&y.sqr()?.sum_keepdim(1)?.t()?)?;
    (squares - cross)?.relu()
}
