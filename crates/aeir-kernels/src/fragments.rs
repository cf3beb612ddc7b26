//! Fragments of a batch: their normalisation, scores of self-attention, and best matches.

use candle_core::cuda_backend::cudarc::driver::CudaSlice;
use candle_core::{DType, Result, Tensor, bail};

use crate::elements::{column_sums, summed_blocks};
use crate::launch::{Argument, Card, FRAGMENTS, Grid, number};
use crate::node::node;
use crate::sentences::rows_of_table;

/// Items whose rows of a place one block adds up.
const ITEMS_PER_CHUNK: usize = 4;
/// Added to the variance under the root.
const VARIANCE_EPSILON: f32 = 1e-5;

/// Fragments that were normalised.
pub struct Normalised {
    /// `[B, T, D]`.
    pub values: Tensor,
    /// Mean, biased variance and count of each place, `[T, 1]` each.
    pub statistics: [Tensor; 3],
}

/// Sizes of a batch of fragments.
#[derive(Clone, Copy)]
struct Sizes {
    items: usize,
    places: usize,
    width: usize,
}

impl Sizes {
    fn of(x: &Tensor) -> Result<Self> {
        let (items, places, width) = x.dims3()?;
        Ok(Self { items, places, width })
    }

    fn chunks(self) -> usize {
        self.items.div_ceil(ITEMS_PER_CHUNK)
    }

    fn rows(self) -> usize {
        self.items * self.places
    }

    fn of_chunks(self) -> Result<[Argument<'static>; 4]> {
        let sizes = [self.items, self.places, self.width, ITEMS_PER_CHUNK];
        let [items, places, width, chunk] = sizes.map(number);
        Ok([items?, places?, width?, chunk?].map(Argument::Number))
    }

    fn of_rows(self) -> Result<[Argument<'static>; 3]> {
        Ok([number(self.rows())?, number(self.places)?, number(self.width)?].map(Argument::Number))
    }
}

/// `tanh((x - mean) / sqrt(variance + 1e-5) weight + bias)` of `x [B, T, D]`: mean and biased variance of each place over the real fragments of
/// the batch, `mask [B, T]`; `weight [T]`, `bias [T]`.
///
/// # Errors
/// When the sizes don't fit; from candle and the driver.
pub fn normalised_tanh(x: &Tensor, mask: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Normalised> {
    let [x, weight, bias] = [x.contiguous()?, weight.contiguous()?, bias.contiguous()?];
    let mask = mask.detach().to_dtype(DType::F32)?.contiguous()?;
    let sizes = Sizes::of(&x)?;
    let Sizes { items, places, .. } = sizes;
    if mask.dims() != [items, places] || weight.dims() != [places] || bias.dims() != [places] {
        bail!("normalised fragments: {:?} with {:?} and a mask {:?}", x.dims(), weight.dims(), mask.dims());
    }
    let card = Card::of(&x)?;
    let statistics = measured(&card, &x, &mask, sizes)?;
    let y = card.room(x.elem_count())?;
    let [rows, of_places, width] = sizes.of_rows()?;
    let arguments = [
        Argument::Tensor(&x),
        Argument::Tensor(&statistics),
        Argument::Tensor(&weight),
        Argument::Tensor(&bias),
        Argument::Out(&y),
        rows,
        of_places,
        width,
        Argument::Real(VARIANCE_EPSILON),
    ];
    card.launch(&FRAGMENTS, "normalised_tanh", &Grid::warps(sizes.rows())?, &arguments)?;
    let row = |index| statistics.narrow(0, index, 1)?.reshape((places, 1));
    let of_places = [row(0)?, row(1)?, row(2)?];
    let (y, shape) = (card.storage(y), x.shape().clone());
    let inputs = [&x, &weight, &bias];
    let values = node("normalised-tanh", &inputs, y, shape, move |inputs, y, gradient| {
        let &[x, weight, _] = inputs else { return Ok(Vec::new()) };
        let sums = place_sums(&card, x, y, gradient, &statistics, sizes)?;
        let out = card.room(x.elem_count())?;
        let [rows, of_places, width] = sizes.of_rows()?;
        let arguments = [
            Argument::Tensor(x),
            Argument::Tensor(y),
            Argument::Tensor(gradient),
            Argument::Tensor(&mask),
            Argument::Tensor(&statistics),
            Argument::Tensor(weight),
            Argument::Tensor(&sums),
            Argument::Out(&out),
            rows,
            of_places,
            width,
            Argument::Real(VARIANCE_EPSILON),
        ];
        card.launch(&FRAGMENTS, "normalised_tanh_backward", &Grid::warps(sizes.rows())?, &arguments)?;
        let of_weight = sums.narrow(0, sizes.places, sizes.places)?.copy()?;
        let of_bias = sums.narrow(0, 0, sizes.places)?.copy()?;
        Ok(vec![Some(card.tensor(out, x.shape())), Some(of_weight), Some(of_bias)])
    })?;
    Ok(Normalised { values, statistics: of_places })
}

/// Mean, biased variance and count of each place, `[3, T]`.
fn measured(card: &Card, x: &Tensor, mask: &Tensor, sizes: Sizes) -> Result<Tensor> {
    let Sizes { places, .. } = sizes;
    let chunks = sizes.chunks();
    let (moments, statistics) = (card.room(3 * places * chunks)?, card.room(3 * places)?);
    let [items, of_places, width, chunk] = sizes.of_chunks()?;
    let arguments = [
        Argument::Tensor(x),
        Argument::Tensor(mask),
        Argument::Out(&moments),
        items,
        of_places,
        width,
        chunk,
    ];
    card.launch(&FRAGMENTS, "place_moments", &Grid::blocks(places, chunks)?, &arguments)?;
    let arguments = [
        Argument::Out(&moments),
        Argument::Out(&statistics),
        Argument::Number(number(places)?),
        Argument::Number(number(chunks)?),
    ];
    card.launch(&FRAGMENTS, "place_statistics", &Grid::threads(places)?, &arguments)?;
    Ok(card.tensor(statistics, (3, places)))
}

/// Of each place the sum of the gradient before tanh, and of its products with the normalised values, `[2 T]`.
fn place_sums(
    card: &Card,
    x: &Tensor,
    y: &Tensor,
    gradient: &Tensor,
    statistics: &Tensor,
    sizes: Sizes,
) -> Result<Tensor> {
    let chunks = sizes.chunks();
    let parts: CudaSlice<f32> = card.room(chunks * 2 * sizes.places)?;
    let [items, of_places, width, chunk] = sizes.of_chunks()?;
    let arguments = [
        Argument::Tensor(x),
        Argument::Tensor(y),
        Argument::Tensor(gradient),
        Argument::Tensor(statistics),
        Argument::Out(&parts),
        items,
        of_places,
        width,
        chunk,
        Argument::Real(VARIANCE_EPSILON),
    ];
    card.launch(&FRAGMENTS, "place_gradients", &Grid::blocks(sizes.places, chunks)?, &arguments)?;
    summed_blocks(card, parts, chunks, 2 * sizes.places)
}

/// `sum_d w_d g_bd x_btd`: x `[B, T, D]`, gates g `[B, D]`, weight w `[1, D]` to `[B, T]`.
///
/// # Errors
/// When the sizes don't fit; from candle and the driver.
pub fn gated_scores(x: &Tensor, gates: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let [x, gates, weight] = [x.contiguous()?, gates.contiguous()?, weight.contiguous()?];
    let sizes = Sizes::of(&x)?;
    let Sizes { items, places, width } = sizes;
    if gates.dims() != [items, width] || weight.elem_count() != width {
        bail!("gated scores: {:?} with {:?} and {:?}", x.dims(), gates.dims(), weight.dims());
    }
    let card = Card::of(&x)?;
    let y = card.room(items * places)?;
    let [rows, of_places, of_width] = sizes.of_rows()?;
    let arguments = [
        Argument::Tensor(&x),
        Argument::Tensor(&gates),
        Argument::Tensor(&weight),
        Argument::Out(&y),
        rows,
        of_places,
        of_width,
    ];
    card.launch(&FRAGMENTS, "gated_scores", &Grid::warps(sizes.rows())?, &arguments)?;
    let inputs = [&x, &gates, &weight];
    node("gated-scores", &inputs, card.storage(y), (items, places), move |inputs, _, gradient| {
        let &[x, gates, weight] = inputs else { return Ok(Vec::new()) };
        let (of_x, of_gates) = (card.room(x.elem_count())?, card.room(items * width)?);
        let of_weight = card.room(items * width)?;
        let arguments = [
            Argument::Tensor(x),
            Argument::Tensor(gates),
            Argument::Tensor(weight),
            Argument::Tensor(gradient),
            Argument::Out(&of_x),
            Argument::Out(&of_gates),
            Argument::Out(&of_weight),
            Argument::Number(number(places)?),
            Argument::Number(number(width)?),
        ];
        card.launch(&FRAGMENTS, "gated_scores_backward", &Grid::columns(width, items)?, &arguments)?;
        let of_weight = column_sums(&card.tensor(of_weight, (items, width)))?;
        Ok(vec![
            Some(card.tensor(of_x, x.shape())),
            Some(card.tensor(of_gates, gates.shape())),
            Some(of_weight.reshape(weight.shape())?),
        ])
    })
}

/// The largest of each row among those with mask 1, and its place, as the bits of a u32: cosines `[.., F1]` in rows of which `per_item` after
/// one another belong to an item of `mask [T, F1]`.
fn best_fragments(
    card: &Card,
    cosines: &Tensor,
    mask: Option<&Tensor>,
    per_item: usize,
) -> Result<(CudaSlice<f32>, CudaSlice<f32>)> {
    let fragments = cosines.dims().last().copied().unwrap_or(1);
    let rows = cosines.elem_count() / fragments.max(1);
    let items = mask.map_or(Ok(1), |mask| mask.dim(0))?;
    let (values, places) = (card.room(rows)?, card.room(rows)?);
    let arguments = [
        Argument::Tensor(cosines),
        Argument::Tensor(mask.unwrap_or(cosines)),
        Argument::Out(&values),
        Argument::Out(&places),
        Argument::Number(number(rows)?),
        Argument::Number(number(per_item)?),
        Argument::Number(number(fragments)?),
        Argument::Number(number(items)?),
        Argument::Number(u32::from(mask.is_some())),
    ];
    card.launch(&FRAGMENTS, "best_fragments", &Grid::warps(rows)?, &arguments)?;
    Ok((values, places))
}

/// The largest cosine of each row, outside of any graph: `cosines [E, T, F1]` to `[E, T]`, among the fragments that `mask [T, F1]` has; of an
/// item without any, among all.
///
/// # Errors
/// When the sizes don't fit; from candle and the driver.
pub fn best_values(cosines: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
    let cosines = cosines.contiguous()?;
    let (entries, items, fragments) = cosines.dims3()?;
    let mask = mask.map(|mask| mask.to_dtype(DType::F32)?.contiguous()).transpose()?;
    if mask.as_ref().is_some_and(|mask| mask.dims() != [items, fragments]) {
        bail!("best values: {:?} and another mask", cosines.dims());
    }
    let card = Card::of(&cosines)?;
    let (values, _) = best_fragments(&card, &cosines, mask.as_ref(), 1)?;
    Ok(card.tensor(values, (entries, items)))
}

/// For each target item and each of its K source items, the products of the source's fragments and their best among the real target
/// fragments, added up: target `[T, F1, D]`, its mask `[T, F1]`, source `[S, F2, D]` and `nearest [T, K]` in u32 to `[T, K]`.
///
/// Of equals the first is the best; an item without real fragments has its padding to choose from. Only the best get a gradient.
///
/// # Errors
/// When the sizes don't fit; from candle and the driver. A source item that isn't there counts as zeros: nothing is read back to look for one.
pub fn matched_sums(
    target: &Tensor,
    target_mask: Option<&Tensor>,
    source: &Tensor,
    nearest: &Tensor,
) -> Result<Tensor> {
    let [target, source, nearest] = [target.contiguous()?, source.contiguous()?, nearest.contiguous()?];
    let ((items, fragments, width), (sources, source_fragments, same)) = (target.dims3()?, source.dims3()?);
    let (rows, neighbours) = nearest.dims2()?;
    let mask = target_mask.map(|mask| mask.to_dtype(DType::F32)?.contiguous()).transpose()?;
    if nearest.dtype() != DType::U32 {
        bail!("matched sums: items named in {:?}, expected u32", nearest.dtype());
    }
    let is_masked = |mask: &Tensor| mask.dims() == [items, fragments];
    if rows != items || same != width || !mask.as_ref().is_none_or(is_masked) {
        bail!("matched sums: {:?}, {:?} and {:?}", target.dims(), source.dims(), nearest.dims());
    }
    let card = Card::of(&target)?;
    let entries = neighbours * source_fragments;
    let table = source.detach().reshape((sources, source_fragments * width))?;
    let chosen = rows_of_table(&card, &table, &nearest.flatten_all()?)?;
    let chosen = card.tensor(chosen, (items, entries, width));
    let cosines = chosen.matmul(&target.detach().t()?)?;
    let (values, places) = best_fragments(&card, &cosines, mask.as_ref(), entries)?;
    let sums = card.room(items * neighbours)?;
    let arguments = [
        Argument::Out(&values),
        Argument::Out(&sums),
        Argument::Number(number(items * neighbours)?),
        Argument::Number(number(source_fragments)?),
    ];
    card.launch(&FRAGMENTS, "row_sums", &Grid::warps(items * neighbours)?, &arguments)?;
    let (sums, shape) = (card.storage(sums), (items, neighbours));
    node("matched-sums", &[&target, &source], sums, shape, move |inputs, _, gradient| {
        let &[target, source] = inputs else { return Ok(Vec::new()) };
        let of_target = || {
            let out = card.room(target.elem_count())?;
            let arguments = [
                Argument::Tensor(source),
                Argument::Tensor(&nearest),
                Argument::Out(&places),
                Argument::Tensor(gradient),
                Argument::Out(&out),
                Argument::Number(number(fragments)?),
                Argument::Number(number(neighbours)?),
                Argument::Number(number(source_fragments)?),
                Argument::Number(number(width)?),
                Argument::Number(number(sources)?),
            ];
            card.launch(&FRAGMENTS, "matched_target_backward", &Grid::blocks(fragments, items)?, &arguments)?;
            Ok::<_, candle_core::Error>(card.tensor(out, target.shape()))
        };
        let of_source = || {
            let out = card.room(source.elem_count())?;
            let arguments = [
                Argument::Tensor(target),
                Argument::Tensor(&nearest),
                Argument::Out(&places),
                Argument::Tensor(gradient),
                Argument::Out(&out),
                Argument::Number(number(items)?),
                Argument::Number(number(fragments)?),
                Argument::Number(number(neighbours)?),
                Argument::Number(number(source_fragments)?),
                Argument::Number(number(width)?),
            ];
            let grid = Grid::blocks(source_fragments, sources)?;
            card.launch(&FRAGMENTS, "matched_source_backward", &grid, &arguments)?;
            Ok::<_, candle_core::Error>(card.tensor(out, source.shape()))
        };
        Ok(vec![
            target.track_op().then(of_target).transpose()?,
            source.track_op().then(of_source).transpose()?,
        ])
    })
}
