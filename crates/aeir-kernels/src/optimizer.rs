//! A parameter's update in one pass, and the sum of squares of many tensors.

use candle_core::{Result, Tensor, bail};

use crate::launch::{Argument, Card, Grid, OPTIMIZER, number};

/// Blocks that add up a tensor's squares, at most.
const MOST_BLOCKS: usize = 256;
/// Numbers of a block, about.
const BLOCK: usize = 1 << 12;

/// The state that Adam keeps of a parameter, both of its shape.
#[derive(Debug, Clone, Copy)]
pub struct Moments<'a> {
    /// The mean of gradients.
    pub first: &'a Tensor,
    /// The mean of their squares.
    pub second: &'a Tensor,
}

/// The numbers of an update: `w = kept w - rate m / (sqrt(v) / root + epsilon)`, m and v the moments of `scale g + decay w`.
#[derive(Debug, Clone, Copy)]
pub struct Step<'a> {
    /// What gradients are multiplied by.
    pub scale: f64,
    /// What they are multiplied by besides: one number on the card.
    pub scale_on_card: Option<&'a Tensor>,
    /// Decay of the first moment and of the second.
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// The learning rate over the first moment's correction.
    pub rate: f64,
    /// The root of the second moment's correction.
    pub root: f64,
    /// What is kept of a weight.
    pub kept: f64,
    /// How much of a weight enters its gradient.
    pub decay: f64,
}

/// Updates `weights` and `moments` in place, by Adam or AdamW. Nothing else may hold their storage for what it was.
///
/// # Errors
/// When the shapes differ or a tensor has gaps; from candle and the driver.
pub fn step(weights: &Tensor, gradient: &Tensor, moments: Moments<'_>, step: &Step<'_>) -> Result<()> {
    let Moments { first, second } = moments;
    let gradient = gradient.contiguous()?;
    for other in [&gradient, first, second] {
        if other.shape() != weights.shape() {
            bail!("optimizer step: {:?} for weights {:?}", other.dims(), weights.dims());
        }
    }
    let Step { scale, scale_on_card, betas: [beta1, beta2], epsilon, rate, root, kept, decay } = *step;
    if scale_on_card.is_some_and(|scale| scale.elem_count() != 1) {
        bail!("optimizer step: the scale is not one number");
    }
    let count = weights.elem_count();
    let real = |number: f64| Argument::Real(number as f32);
    let arguments = [
        Argument::Tensor(weights),
        Argument::Tensor(&gradient),
        Argument::Tensor(first),
        Argument::Tensor(second),
        Argument::Tensor(scale_on_card.unwrap_or(weights)),
        Argument::Long(count as u64),
        real(scale),
        real(beta1),
        real(beta2),
        real(epsilon),
        real(rate),
        real(root),
        real(kept),
        real(decay),
        Argument::Number(u32::from(scale_on_card.is_some())),
    ];
    Card::of(weights)?.launch(&OPTIMIZER, "adam", &Grid::walking(count)?, &arguments)
}

/// The sum of the squares of all numbers of all tensors, a scalar.
///
/// # Errors
/// Without any tensor; from candle and the driver.
pub fn sum_of_squares(tensors: &[&Tensor]) -> Result<Tensor> {
    let Some(first) = tensors.first() else { bail!("sum of squares: no tensors") };
    let card = Card::of(first)?;
    let blocks: Vec<usize> =
        tensors.iter().map(|x| x.elem_count().div_ceil(BLOCK).clamp(1, MOST_BLOCKS)).collect();
    let all = blocks.iter().sum();
    let parts = card.room(all)?;
    let mut start = 0;
    for (x, blocks) in tensors.iter().zip(&blocks) {
        let x = x.contiguous()?;
        let arguments =
            [Argument::Tensor(&x), Argument::OutFrom(&parts, start), Argument::Long(x.elem_count() as u64)];
        card.launch(&OPTIMIZER, "sums_of_squares", &Grid::blocks(*blocks, 1)?, &arguments)?;
        start += blocks;
    }
    let sum = card.room(1)?;
    let arguments = [Argument::Out(&parts), Argument::Out(&sum), Argument::Number(number(all)?)];
    card.launch(&OPTIMIZER, "total", &Grid::blocks(1, 1)?, &arguments)?;
    Ok(card.tensor(sum, ()))
}
