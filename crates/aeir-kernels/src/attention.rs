//! Attention where nothing records a graph.

use candle_core::{DType, Result, Tensor, bail};

use crate::launch::{ATTENTION, Argument, Card, Grid, number};

/// Numbers that the threads of a block may share: 48 KiB.
const SHARED: usize = 12 << 10;
/// Warps of a block, at most, and queries of each.
const MOST_WARPS: usize = 8;
const QUERIES: usize = 4;
/// Keys of a tile.
const TILE: usize = 32;
/// Numbers of a key or a value, at most.
const LONGEST: usize = 128;

/// Which keys a query sees.
#[derive(Debug, Clone, Copy)]
pub struct Sight<'a> {
    /// `[B, T]`: 0 for padding.
    pub padding: Option<&'a Tensor>,
    /// Distance to the farthest key; none for all.
    pub reach: Option<usize>,
    /// Whether it sees none behind itself.
    pub is_causal: bool,
}

/// Whether the kernel takes such queries and values: `[B, H, ..]`, with at most 128 numbers each, a multiple of 4.
#[must_use]
pub fn takes_attention(q: &Tensor, v: &Tensor) -> bool {
    let last = |x: &Tensor| x.dims().last().copied().unwrap_or(0);
    let heads: usize = q.dims().iter().take(2).product();
    let fits = |x: &Tensor| last(x) % 4 == 0 && last(x) <= LONGEST;
    fits(q) && fits(v) && heads <= usize::from(u16::MAX)
}

/// `softmax(scale q k^T) v` over the keys that a query sees, zeros where it sees none: q `[B, H, Q, d]`, k `[B, H, T, d]`, v `[B, H, T, e]`,
/// which may be views, to `[B, H, Q, e]`, a view of `[B, Q, H, e]`.
///
/// # Errors
/// From candle and the driver.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, scale: f64, sight: &Sight<'_>) -> Result<Tensor> {
    if !takes_attention(q, v) {
        bail!("attention: {:?} with values {:?}", q.dims(), v.dims());
    }
    let ((batch, heads, queries, dimension), (keys, values)) = (q.dims4()?, (k.dim(2)?, v.dim(3)?));
    let padding = sight.padding.map(|mask| mask.to_dtype(DType::F32)?.contiguous()).transpose()?;
    let [q, k, v] = [rows_without_gaps(q)?, rows_without_gaps(k)?, rows_without_gaps(v)?];
    let card = Card::of(&q)?;
    let y = card.room(batch * queries * heads * values)?;
    let strides = |x: &Tensor| match x.stride() {
        [item, head, token, _] => Ok(Argument::Strides([*item, *head, *token].map(|stride| stride as u64))),
        other => bail!("attention: strides {other:?}"),
    };
    let arguments = [
        Argument::View(&q),
        Argument::View(&k),
        Argument::View(&v),
        padding.as_ref().map_or(Argument::Out(&y), Argument::Tensor),
        Argument::Out(&y),
        strides(&q)?,
        strides(&k)?,
        strides(&v)?,
        Argument::Number(number(heads)?),
        Argument::Number(number(queries)?),
        Argument::Number(number(keys)?),
        Argument::Number(number(dimension)?),
        Argument::Number(number(values)?),
        Argument::Number(number(sight.reach.unwrap_or(usize::MAX).min(keys + queries))?),
        Argument::Number(u32::from(sight.is_causal)),
        Argument::Number(u32::from(padding.is_some())),
        Argument::Real(scale as f32),
    ];
    // As many warps as there is room for: six of them with the longest vectors.
    let room = SHARED.saturating_sub(TILE * (dimension + 4 + values)) / (QUERIES * (dimension + TILE));
    let warps = queries.div_ceil(QUERIES).clamp(1, MOST_WARPS.min(room.max(1)));
    let at_once = warps * QUERIES;
    let shared = TILE * (dimension + 4) + at_once * dimension + at_once * TILE + TILE * values;
    let grid = Grid::blocks(queries.div_ceil(at_once), batch * heads)?.sharing(shared)?;
    let grid = Grid { threads: number(warps * TILE)?, ..grid };
    card.launch(&ATTENTION, "attention", &grid, &arguments)?;
    card.tensor(y, (batch, queries, heads, values)).transpose(1, 2)
}

/// A view whose last axis has no gaps and whose rows begin at multiples of four numbers.
fn rows_without_gaps(x: &Tensor) -> Result<Tensor> {
    let is_aligned = match x.stride() {
        [item, head, token, 1] => {
            [*item, *head, *token, x.layout().start_offset()].iter().all(|at| at % 4 == 0)
        }
        _ => false,
    };
    if is_aligned { Ok(x.clone()) } else { x.force_contiguous() }
}
