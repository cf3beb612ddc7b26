//! Unit length, softmax and layer norm of rows.

use candle_core::cuda_backend::cudarc::driver::CudaSlice;
use candle_core::{Result, Tensor};

use crate::elements::{rows_per_block, summed_blocks};
use crate::launch::{Argument, Card, Grid, ROWS, number};
use crate::node::node;

/// Rows whose parts of the parameters' gradients one block adds up.
const ROWS_PER_BLOCK: usize = 64;

/// How a row becomes a unit vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnitLength {
    /// `x / sqrt(sum x^2 + 1e-12)`.
    Smooth,
    /// `x / (sqrt(sum x^2) + 1e-8)`; a row of zeros passes no gradient.
    Released,
}

impl UnitLength {
    pub(crate) fn argument(self) -> Argument<'static> {
        Argument::Number(u32::from(self == Self::Released))
    }
}

/// All leading axes together, and the last one.
pub(crate) fn rows_of(x: &Tensor) -> (usize, usize) {
    let width = x.dims().last().copied().unwrap_or(1);
    (x.elem_count() / width.max(1), width)
}

/// Their number and their width, as kernels take them.
fn sizes_of(x: &Tensor) -> Result<[Argument<'static>; 2]> {
    let (rows, width) = rows_of(x);
    Ok([number(rows)?, number(width)?].map(Argument::Number))
}

/// Each row divided by its length, outside of any graph.
pub(crate) fn unit_forward(card: &Card, x: &Tensor, unit: UnitLength) -> Result<CudaSlice<f32>> {
    let y = card.room(x.elem_count())?;
    let [rows, width] = sizes_of(x)?;
    let arguments = [Argument::Tensor(x), Argument::Out(&y), rows, width, unit.argument()];
    card.launch(&ROWS, "unit_rows", &Grid::warps(rows_of(x).0)?, &arguments)?;
    Ok(y)
}

/// The gradient of x from that of the unit rows.
pub(crate) fn unit_backward(card: &Card, x: &Tensor, gradient: &Tensor, unit: UnitLength) -> Result<Tensor> {
    let out = card.room(x.elem_count())?;
    let [rows, width] = sizes_of(x)?;
    let arguments =
        [Argument::Tensor(x), Argument::Tensor(gradient), Argument::Out(&out), rows, width, unit.argument()];
    card.launch(&ROWS, "unit_rows_backward", &Grid::warps(rows_of(x).0)?, &arguments)?;
    Ok(card.tensor(out, x.shape()))
}

/// Divides each row of `x [.., D]` by its length.
///
/// # Errors
/// From candle and the driver.
pub fn unit_rows(x: &Tensor, unit: UnitLength) -> Result<Tensor> {
    let x = x.contiguous()?;
    let card = Card::of(&x)?;
    let y = unit_forward(&card, &x, unit)?;
    let (y, shape) = (card.storage(y), x.shape().clone());
    node("unit-rows", &[&x], y, shape, move |inputs, _, gradient| {
        let &[x] = inputs else { return Ok(Vec::new()) };
        Ok(vec![Some(unit_backward(&card, x, gradient, unit)?)])
    })
}

/// `exp(x)` of each row of `x [.., D]`, scaled to a sum of one; zeros where all of a row is minus infinity.
///
/// # Errors
/// From candle and the driver.
pub fn softmax(x: &Tensor) -> Result<Tensor> {
    let x = x.contiguous()?;
    let card = Card::of(&x)?;
    let y = card.room(x.elem_count())?;
    let [rows, width] = sizes_of(&x)?;
    let arguments = [Argument::Tensor(&x), Argument::Out(&y), rows, width];
    card.launch(&ROWS, "softmax_rows", &Grid::warps(rows_of(&x).0)?, &arguments)?;
    let (y, shape) = (card.storage(y), x.shape().clone());
    node("softmax", &[&x], y, shape, move |_, y, gradient| {
        let out = card.room(y.elem_count())?;
        let [rows, width] = sizes_of(y)?;
        let arguments = [Argument::Tensor(y), Argument::Tensor(gradient), Argument::Out(&out), rows, width];
        card.launch(&ROWS, "softmax_rows_backward", &Grid::warps(rows_of(y).0)?, &arguments)?;
        Ok(vec![Some(card.tensor(out, y.shape()))])
    })
}

/// Rows of `x [.., D]` with mean zero and variance one, times `weight [D]`, plus `bias [D]`; `epsilon` is added to the variance.
///
/// # Errors
/// From candle and the driver.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, epsilon: f64) -> Result<Tensor> {
    let [x, weight, bias] = [x.contiguous()?, weight.contiguous()?, bias.contiguous()?];
    let (card, (rows, _)) = (Card::of(&x)?, rows_of(&x));
    let (y, statistics) = (card.room(x.elem_count())?, card.room(2 * rows)?);
    let [rows_argument, width] = sizes_of(&x)?;
    let arguments = [
        Argument::Tensor(&x),
        Argument::Tensor(&weight),
        Argument::Tensor(&bias),
        Argument::Out(&y),
        Argument::Out(&statistics),
        rows_argument,
        width,
        Argument::Real(epsilon as f32),
    ];
    card.launch(&ROWS, "layer_norm", &Grid::warps(rows)?, &arguments)?;
    let (y, shape) = (card.storage(y), x.shape().clone());
    node("layer-norm", &[&x, &weight, &bias], y, shape, move |inputs, _, gradient| {
        let &[x, weight, bias] = inputs else { return Ok(Vec::new()) };
        let of_x = || of_rows(&card, x, weight, &statistics, gradient);
        let (of_weight, of_bias) = if weight.track_op() || bias.track_op() {
            let (weights, biases) = of_parameters(&card, x, &statistics, gradient)?;
            (Some(weights.reshape(weight.shape())?), Some(biases.reshape(bias.shape())?))
        } else {
            (None, None)
        };
        Ok(vec![x.track_op().then(of_x).transpose()?, of_weight, of_bias])
    })
}

/// Layer norm's gradient of x.
fn of_rows(
    card: &Card,
    x: &Tensor,
    weight: &Tensor,
    statistics: &CudaSlice<f32>,
    gradient: &Tensor,
) -> Result<Tensor> {
    let out = card.room(x.elem_count())?;
    let [rows, width] = sizes_of(x)?;
    let arguments = [
        Argument::Tensor(x),
        Argument::Tensor(weight),
        Argument::Out(statistics),
        Argument::Tensor(gradient),
        Argument::Out(&out),
        rows,
        width,
    ];
    card.launch(&ROWS, "layer_norm_backward", &Grid::warps(rows_of(x).0)?, &arguments)?;
    Ok(card.tensor(out, x.shape()))
}

/// Layer norm's gradients of weight and bias.
fn of_parameters(
    card: &Card,
    x: &Tensor,
    statistics: &CudaSlice<f32>,
    gradient: &Tensor,
) -> Result<(Tensor, Tensor)> {
    let (rows, width) = rows_of(x);
    let of_block = rows_per_block(rows, ROWS_PER_BLOCK);
    let blocks = rows.div_ceil(of_block);
    let (weights, biases) = (card.room(blocks * width)?, card.room(blocks * width)?);
    let [rows_argument, width_argument] = sizes_of(x)?;
    let arguments = [
        Argument::Tensor(x),
        Argument::Out(statistics),
        Argument::Tensor(gradient),
        Argument::Out(&weights),
        Argument::Out(&biases),
        rows_argument,
        width_argument,
        Argument::Number(number(of_block)?),
    ];
    card.launch(&ROWS, "layer_norm_parameters", &Grid::columns(width, blocks)?, &arguments)?;
    Ok((summed_blocks(card, weights, blocks, width)?, summed_blocks(card, biases, blocks, width)?))
}
