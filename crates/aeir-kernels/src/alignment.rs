//! What lies between the matrix products of the alignment of words and regions, forward and backward; no graph records it.

use candle_core::{Result, Tensor};

use crate::launch::{ALIGNMENT, Argument, Card, Grid, THREADS, number};
use crate::rows::UnitLength;

/// Numbers that the threads of a block may share: 48 KiB.
const SHARED: usize = 12 << 10;
/// Numbers of a row that a thread can hold.
const HELD: usize = 8;

/// Whether what a pair of `words` and `regions` shares fits a block, and a row of `dimension` its threads.
pub(crate) fn fits(words: usize, regions: usize, dimension: usize) -> bool {
    2 * words * regions + regions <= SHARED && dimension <= HELD * THREADS as usize
}

/// Weights of each word over the regions of each image, `[N, M L, R]`, from their products `[M L, N R]`: leaky, each region's a unit vector
/// over the words of a sentence, sharpened, softmax over the regions that `mask [N, R]` has.
pub(crate) fn attention_weights(
    card: &Card,
    scores: &Tensor,
    mask: &Tensor,
    words: usize,
    unit: UnitLength,
) -> Result<Tensor> {
    let (images, regions) = mask.dims2()?;
    let rows = scores.dim(0)?;
    let weights = card.room(scores.elem_count())?;
    let arguments = [
        Argument::Tensor(scores),
        Argument::Tensor(mask),
        Argument::Out(&weights),
        Argument::Number(number(words)?),
        Argument::Number(number(regions)?),
        unit.argument(),
    ];
    let grid = Grid::blocks(rows / words, images)?.sharing(words * regions + regions)?;
    card.launch(&ALIGNMENT, "attention_weights", &grid, &arguments)?;
    Ok(card.tensor(weights, (images, rows, regions)))
}

/// The gradient of the products from that of the weights.
pub(crate) fn attention_weights_backward(
    card: &Card,
    scores: &Tensor,
    weights: &Tensor,
    gradient: &Tensor,
    words: usize,
    unit: UnitLength,
) -> Result<Tensor> {
    let (images, rows, regions) = weights.dims3()?;
    let out = card.room(scores.elem_count())?;
    let arguments = [
        Argument::Tensor(scores),
        Argument::Tensor(weights),
        Argument::Tensor(gradient),
        Argument::Out(&out),
        Argument::Number(number(words)?),
        Argument::Number(number(regions)?),
        unit.argument(),
    ];
    let grid = Grid::blocks(rows / words, images)?.sharing(2 * words * regions + regions)?;
    card.launch(&ALIGNMENT, "attention_weights_backward", &grid, &arguments)?;
    Ok(card.tensor(out, scores.shape()))
}

/// `(unit(x) - word)^2`: x `[N, W, D]` and words `[W, D]` to `[N, W, D]`.
pub(crate) fn squared_differences(
    card: &Card,
    x: &Tensor,
    words: &Tensor,
    unit: UnitLength,
) -> Result<Tensor> {
    let (images, count, width) = x.dims3()?;
    let y = card.room(x.elem_count())?;
    let arguments = [
        Argument::Tensor(x),
        Argument::Tensor(words),
        Argument::Out(&y),
        Argument::Number(number(images)?),
        Argument::Number(number(count)?),
        Argument::Number(number(width)?),
        unit.argument(),
    ];
    card.launch(&ALIGNMENT, "squared_differences", &Grid::warps(images * count)?, &arguments)?;
    Ok(card.tensor(y, x.shape()))
}

/// The gradients of x and of the words.
pub(crate) fn squared_differences_backward(
    card: &Card,
    x: &Tensor,
    words: &Tensor,
    gradient: &Tensor,
    unit: UnitLength,
) -> Result<[Tensor; 2]> {
    let (images, count, width) = x.dims3()?;
    let (of_x, of_words) = (card.room(x.elem_count())?, card.room(words.elem_count())?);
    let arguments = [
        Argument::Tensor(x),
        Argument::Tensor(words),
        Argument::Tensor(gradient),
        Argument::Out(&of_x),
        Argument::Out(&of_words),
        Argument::Number(number(images)?),
        Argument::Number(number(count)?),
        Argument::Number(number(width)?),
        unit.argument(),
    ];
    let kernel = if width <= HELD / 2 * THREADS as usize {
        "squared_differences_backward_4"
    } else {
        "squared_differences_backward_8"
    };
    card.launch(&ALIGNMENT, kernel, &Grid::blocks(count, 1)?, &arguments)?;
    Ok([card.tensor(of_x, x.shape()), card.tensor(of_words, words.shape())])
}

/// `(a_n - b_m)^2`: a `[N, D]` and b `[M, D]` to `[N, M, D]`.
pub(crate) fn pair_squares(card: &Card, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let ((rows, width), columns) = (a.dims2()?, b.dim(0)?);
    let count = rows * columns * width;
    let y = card.room(count)?;
    let arguments = [
        Argument::Tensor(a),
        Argument::Tensor(b),
        Argument::Out(&y),
        Argument::Number(number(rows)?),
        Argument::Number(number(columns)?),
        Argument::Number(number(width)?),
    ];
    card.launch(&ALIGNMENT, "pair_squares", &Grid::walking(count)?, &arguments)?;
    Ok(card.tensor(y, (rows, columns, width)))
}

/// The gradients of a and b.
pub(crate) fn pair_squares_backward(
    card: &Card,
    a: &Tensor,
    b: &Tensor,
    gradient: &Tensor,
) -> Result<[Tensor; 2]> {
    let ((rows, width), columns) = (a.dims2()?, b.dim(0)?);
    let of = |own: &Tensor, of_rows: bool| {
        let out = card.room(own.elem_count())?;
        let arguments = [
            Argument::Tensor(a),
            Argument::Tensor(b),
            Argument::Tensor(gradient),
            Argument::Out(&out),
            Argument::Number(number(rows)?),
            Argument::Number(number(columns)?),
            Argument::Number(number(width)?),
            Argument::Number(u32::from(of_rows)),
        ];
        card.launch(&ALIGNMENT, "pair_squares_backward", &Grid::threads(own.elem_count())?, &arguments)?;
        Ok::<_, candle_core::Error>(card.tensor(out, own.shape()))
    };
    Ok([of(a, true)?, of(b, false)?])
}
