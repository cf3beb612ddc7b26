//! Words' states as padded unit rows, and rows of a table chosen by an index.

use std::ops::Range;

use candle_core::cuda_backend::cudarc::driver::CudaSlice;
use candle_core::{DType, Result, Tensor, bail};

use crate::launch::{Argument, Card, Grid, SENTENCES, number};
use crate::node::node;
use crate::rows::UnitLength;

/// A place or a row that is none.
const NONE: u32 = u32::MAX;

/// Which words a batch of sentences has.
#[derive(Debug, Clone)]
pub struct Places<'a> {
    /// Rows of the states.
    pub rows: Range<usize>,
    /// Where each of these rows stands in the flattened `[B, L]`.
    pub positions: &'a [u32],
    /// B and L.
    pub padded: (usize, usize),
}

/// `unit((forward + backward) / 2)`, zeros where there is padding: states `[N, D]` each to `[B, L, D]`.
///
/// # Errors
/// When the sizes don't fit; from candle and the driver.
pub fn padded_unit_mean(
    forward: &Tensor,
    backward: &Tensor,
    places: &Places<'_>,
    unit: UnitLength,
) -> Result<Tensor> {
    let (forward, backward) = (forward.contiguous()?, backward.contiguous()?);
    let (words, width) = forward.dims2()?;
    let Places { rows, positions, padded: (batch, longest) } = places;
    let places = batch * longest;
    let fits = forward.dims() == backward.dims() && rows.end <= words && rows.len() == positions.len();
    if !fits || positions.iter().any(|place| *place as usize >= places) {
        bail!("padded rows: {:?} and {:?} for the rows {rows:?}", forward.dims(), backward.dims());
    }
    let (mut row_of, mut place_of) = (vec![NONE; places], vec![NONE; words]);
    for (row, place) in rows.clone().zip(positions.iter()) {
        if let (Some(of), Some(at)) = (row_of.get_mut(*place as usize), place_of.get_mut(row)) {
            (*of, *at) = (number(row)?, *place);
        }
    }
    let card = Card::of(&forward)?;
    let row_of = Tensor::from_vec(row_of, places, forward.device())?;
    let place_of = Tensor::from_vec(place_of, words, forward.device())?;
    let y = card.room(places * width)?;
    let arguments = [
        Argument::Tensor(&forward),
        Argument::Tensor(&backward),
        Argument::Tensor(&row_of),
        Argument::Out(&y),
        Argument::Number(number(places)?),
        Argument::Number(number(width)?),
        unit.argument(),
    ];
    card.launch(&SENTENCES, "padded_unit_mean", &Grid::warps(places)?, &arguments)?;
    let (y, shape) = (card.storage(y), (*batch, *longest, width));
    node("padded-unit-mean", &[&forward, &backward], y, shape, move |inputs, _, gradient| {
        let &[forward, backward] = inputs else { return Ok(Vec::new()) };
        let out = card.room(forward.elem_count())?;
        let arguments = [
            Argument::Tensor(forward),
            Argument::Tensor(backward),
            Argument::Tensor(&place_of),
            Argument::Tensor(gradient),
            Argument::Out(&out),
            Argument::Number(number(words)?),
            Argument::Number(number(width)?),
            unit.argument(),
        ];
        card.launch(&SENTENCES, "padded_unit_mean_backward", &Grid::warps(words)?, &arguments)?;
        // Both directions have the same gradient.
        let out = card.tensor(out, forward.shape());
        Ok(vec![Some(out.clone()), Some(out)])
    })
}

/// The rows of a table `[V, W]` that `ids [N]` names, `[N, W]`; candle would let each column of the gradient wait for all ids. An id that the
/// table has not gives zeros: nothing is read back to look for one.
///
/// # Errors
/// From candle and the driver.
pub fn chosen_rows(table: &Tensor, ids: &Tensor) -> Result<Tensor> {
    let (table, ids) = (table.contiguous()?, ids.contiguous()?);
    let (rows, width) = table.dims2()?;
    if ids.dtype() != DType::U32 {
        bail!("chosen rows: ids in {:?}, expected u32", ids.dtype());
    }
    let card = Card::of(&table)?;
    let uses = ids.elem_count();
    let chosen = rows_of_table(&card, &table, &ids)?;
    node("chosen-rows", &[&table], card.storage(chosen), (uses, width), move |inputs, _, gradient| {
        let &[table] = inputs else { return Ok(Vec::new()) };
        let out = card.room(rows * width)?;
        let arguments = [
            Argument::Tensor(&ids),
            Argument::Tensor(gradient),
            Argument::Out(&out),
            Argument::Number(number(uses)?),
            Argument::Number(number(width)?),
        ];
        card.launch(&SENTENCES, "chosen_rows_backward", &Grid::blocks(rows, 1)?, &arguments)?;
        Ok(vec![Some(card.tensor(out, table.shape()))])
    })
}

/// The rows that `ids` names, outside of any graph.
pub(crate) fn rows_of_table(card: &Card, table: &Tensor, ids: &Tensor) -> Result<CudaSlice<f32>> {
    let (rows, width) = table.dims2()?;
    let uses = ids.elem_count();
    let chosen = card.room(uses * width)?;
    let arguments = [
        Argument::Tensor(table),
        Argument::Tensor(ids),
        Argument::Out(&chosen),
        Argument::Number(number(uses)?),
        Argument::Number(number(width)?),
        Argument::Number(number(rows)?),
    ];
    card.launch(&SENTENCES, "chosen_rows", &Grid::warps(uses)?, &arguments)?;
    Ok(chosen)
}
