//! How alike two sets of fragments are.

use candle_core::{D, Tensor};

use crate::error::{Check, LossError, Within};
use crate::matched_rows::MatchedRows;
use crate::rehearsal::{Product, is_at_hand};
use crate::stable::{negative_infinity, normalise_rows};

const LOSS: &str = "fragment_similarity";
const EPSILON: f64 = 1e-12;
/// The released procedure's smallest norm, squared.
const RELEASED_SQUARED_NORM: f64 = 1e-16;

/// How alike target and source items are, fragment by fragment.
///
/// Each fragment of the source item looks for the best fragment of the target item; the cosines found are added. Not
/// symmetric: the sum runs over the source's fragments, so a source item with more fragments scores higher. Items with one
/// fragment each (pooled vectors) are the plain cosine: [`pooled_similarity`] computes that in one matmul.
///
/// # Equation
/// ```text
/// sim(x, y) = sum_{b in fragments(y)} max_{a in fragments(x)} cos(a, b)        x target, y source
/// ```
///
/// Yang et al., *Alignment efficient image-sentence retrieval considering transferable cross-modal representation learning*,
/// Frontiers of Computer Science 18(1), 2024; the form is the released AECR procedure's.
///
/// # Shapes
/// `target` `[T, F1, D]`, `target_mask` `[T, F1]`, `source` `[S, F2, D]`, `source_mask` `[S, F2]`; a mask is not 0 where the
/// fragment is real and may have any element type. Result `[T, S]`.
///
/// # Parameters and units
/// None. Rows need no normalisation beforehand.
///
/// # Numerical notes
/// `x / sqrt(sum x^2 + 1e-12)`. Padding never counts, whatever it holds (not-a-number too), and gets a zero gradient. The
/// best fragment is found by argmax on a detached tensor, then gathered: at a tie one gets the gradient. An item without any
/// real fragment has similarity 0 to all. Memory: `T * F1 * S * F2` numbers, and the same again for the gradient.
///
/// # Errors
/// [`LossError::Shape`], [`LossError::ElementType`], [`LossError::Candle`].
///
/// # Deviations from the released procedure
/// There padded words count as fragments with cosine 0: [`fragment_similarity_released`].
///
/// # Parity file
/// `fixtures/parity/aecr/{saf,sgr}.safetensors` (`train.fragment_similarity.image`; for text the released variant)
///
/// # Example
/// ```
/// use aeir_losses::fragment_similarity;
/// use candle_core::{Device, Tensor};
///
/// let target = Tensor::new(&[[[1f32, 0.], [0., 1.]]], &Device::Cpu)?; // one item, two fragments
/// let source = Tensor::new(&[[[2f32, 0.], [0., 3.], [1., 1.]]], &Device::Cpu)?; // one item, the third is padding
/// let similarity = fragment_similarity(
///     &target,
///     &Tensor::new(&[[1u8, 1]], &Device::Cpu)?,
///     &source,
///     &Tensor::new(&[[1u8, 1, 0]], &Device::Cpu)?,
/// )?;
/// assert!((similarity.to_vec2::<f32>()?[0][0] - 2.).abs() < 1e-6);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn fragment_similarity(
    target: &Tensor,
    target_mask: &Tensor,
    source: &Tensor,
    source_mask: &Tensor,
) -> Result<Tensor, LossError> {
    let (target_fragments, source_fragments) = check_fragments(target, source)?;
    check_mask("target_mask", target_mask, "[T, F1]", target_fragments)?;
    check_mask("source_mask", source_mask, "[S, F2]", source_fragments)?;
    let similarity = || {
        let target_mask = target_mask.ne(0f64)?;
        let target = normalise_rows(&without_padding(target, &target_mask)?, EPSILON)?;
        let source = normalise_rows(&without_padding(source, &source_mask.ne(0f64)?)?, EPSILON)?;
        // A padded source fragment is a row of zeros: its cosines are 0 and add nothing.
        best_and_sum(&target, Some(&target_mask), &source)
    };
    similarity().within(LOSS)
}

/// The released form of [`fragment_similarity`]: padding counts, with cosine 0.
///
/// A target item's padding puts a floor of 0 under each maximum. Padding has to be exact zeros, as the released text encoder
/// leaves it.
///
/// # Equation
/// As [`fragment_similarity`], over all rows; `cos(a, b) = a b / (max(|a|, 1e-8) max(|b|, 1e-8))`.
///
/// # Shapes
/// `target` `[T, F1, D]`, `source` `[S, F2, D]`. Result `[T, S]`.
///
/// # Parameters and units
/// None.
///
/// # Numerical notes
/// A row of zeros gets a zero gradient, where the reference's is of the order 1e6 to 1e7 and then dropped by its encoder.
///
/// # Errors
/// [`LossError::Shape`], [`LossError::ElementType`], [`LossError::Candle`].
///
/// # Deviations from the released procedure
/// The gradient at rows of zeros (above).
///
/// # Parity file
/// `fixtures/parity/aecr/{saf,sgr}.safetensors` (`train.fragment_similarity.*`)
///
/// # Example
/// ```
/// use aeir_losses::fragment_similarity_released;
/// use candle_core::{Device, Tensor};
///
/// let target = Tensor::new(&[[[1f32, 0.], [0., 0.]]], &Device::Cpu)?; // the second is padding
/// let source = Tensor::new(&[[[-2f32, 0.]]], &Device::Cpu)?;
/// let similarity = fragment_similarity_released(&target, &source)?;
/// assert_eq!(similarity.to_vec2::<f32>()?, [[0.]]); // not -1
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn fragment_similarity_released(target: &Tensor, source: &Tensor) -> Result<Tensor, LossError> {
    check_fragments(target, source)?;
    let similarity = || best_and_sum(&released_normalise(target)?, None, &released_normalise(source)?);
    similarity().within(LOSS)
}

/// [`fragment_similarity`] of fragments that are unit vectors already.
///
/// # Equation
/// As [`fragment_similarity`], with the dot product for the cosine.
///
/// # Shapes
/// As [`fragment_similarity`]. Without masks all fragments count, as in [`fragment_similarity_released`].
///
/// # Parameters and units
/// None. Rows must have unit length; where they count, rows of zeros have the similarity 0.
///
/// # Numerical notes
/// As [`fragment_similarity`]. Where nothing records a graph, only the best fragment's value is kept.
///
/// # Errors
/// [`LossError::Shape`], [`LossError::ElementType`], [`LossError::Candle`].
///
/// # Deviations from the released procedure
/// None without masks.
///
/// # Parity file
/// None: the tests compare with [`fragment_similarity`].
///
/// # Example
/// ```
/// use aeir_losses::unit_fragment_similarity;
/// use candle_core::{Device, Tensor};
///
/// let target = Tensor::new(&[[[1f32, 0.], [0., 1.]]], &Device::Cpu)?;
/// let source = Tensor::new(&[[[0.6f32, 0.8], [0., 1.]]], &Device::Cpu)?;
/// let similarity = unit_fragment_similarity(&target, None, &source, None)?;
/// assert!((similarity.to_vec2::<f32>()?[0][0] - 1.8).abs() < 1e-6);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn unit_fragment_similarity(
    target: &Tensor,
    target_mask: Option<&Tensor>,
    source: &Tensor,
    source_mask: Option<&Tensor>,
) -> Result<Tensor, LossError> {
    let (target, target_mask, source) = checked(target, target_mask, source, source_mask)?;
    best_and_sum(&target, target_mask.as_ref(), &source).within(LOSS)
}

/// [`unit_fragment_similarity`] of each target item with the source items that its row of `nearest` names.
///
/// Structure transfer looks at K neighbours of each item: of all pairs their similarities alone need a gradient, and the
/// other items need not be compared at all.
///
/// # Equation
/// As [`unit_fragment_similarity`], with `y` one of the K items.
///
/// # Shapes
/// As [`unit_fragment_similarity`]; `nearest` `[T, K]`, u32, from
/// [`StructureTransferLoss::neighbours`](crate::StructureTransferLoss::neighbours). Result `[T, K]`.
///
/// # Parameters and units
/// None. Rows must have unit length.
///
/// # Numerical notes
/// As [`fragment_similarity`]. In f32 on the CPU it is one operation on all threads that keeps which fragments are the best; on
/// an NVIDIA card too, of which each of the K items is copied once; on other devices and in other types it takes `T * F1 * K * F2` numbers,
/// and `T * K * F2 * D` for the items named.
///
/// # Errors
/// [`LossError::Shape`], [`LossError::ElementType`], [`LossError::Candle`] (an item that isn't there; on an NVIDIA card, which is
/// not asked, such an item counts as zeros).
///
/// # Deviations from the released procedure
/// None without masks.
///
/// # Parity file
/// `fixtures/parity/aecr/{saf,sgr}.safetensors` (`train.loss.structure`, `train.grad.structure.*`)
///
/// # Example
/// ```
/// use aeir_losses::{neighbour_similarity, unit_fragment_similarity};
/// use candle_core::{Device, Tensor};
///
/// let target = Tensor::new(&[[[1f32, 0.], [0., 1.]]], &Device::Cpu)?; // one item
/// let source = Tensor::new(&[[[1f32, 0.]], [[0.6, 0.8]]], &Device::Cpu)?; // two items
/// let all = unit_fragment_similarity(&target, None, &source, None)?;
/// let second = neighbour_similarity(&target, None, &source, None, &Tensor::new(&[[1u32]], &Device::Cpu)?)?;
/// assert_eq!(second.to_vec2::<f32>()?[0][0], all.to_vec2::<f32>()?[0][1]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn neighbour_similarity(
    target: &Tensor,
    target_mask: Option<&Tensor>,
    source: &Tensor,
    source_mask: Option<&Tensor>,
    nearest: &Tensor,
) -> Result<Tensor, LossError> {
    let (target, target_mask, source) = checked(target, target_mask, source, source_mask)?;
    let items = target.dims().first().copied().unwrap_or(0);
    match *nearest.dims() {
        [rows, count] if rows == items && count > 0 => {}
        _ => return Err(Check(LOSS).shape_error("nearest", format!("[{items}, K]"), nearest)),
    }
    best_of_neighbours(&target, target_mask.as_ref(), &source, nearest).within(LOSS)
}

/// Target and source with zeros in their padding, between them the target's mask as a condition.
fn checked(
    target: &Tensor,
    target_mask: Option<&Tensor>,
    source: &Tensor,
    source_mask: Option<&Tensor>,
) -> Result<(Tensor, Option<Tensor>, Tensor), LossError> {
    let (target_fragments, source_fragments) = check_fragments(target, source)?;
    target_mask.map_or(Ok(()), |mask| check_mask("target_mask", mask, "[T, F1]", target_fragments))?;
    source_mask.map_or(Ok(()), |mask| check_mask("source_mask", mask, "[S, F2]", source_fragments))?;
    let prepared = || {
        let conditions = [target_mask, source_mask].map(|mask| mask.map(|mask| mask.ne(0f64)).transpose());
        let [target_mask, source_mask] = conditions;
        let (target_mask, source_mask) = (target_mask?, source_mask?);
        let real = |x: &Tensor, mask: &Option<Tensor>| match mask {
            Some(mask) => without_padding(x, mask),
            None => Ok(x.clone()),
        };
        Ok((real(target, &target_mask)?, target_mask, real(source, &source_mask)?))
    };
    prepared().within(LOSS)
}

/// The cosine of every target row with every source row: [`fragment_similarity`] of items with one fragment each.
///
/// # Equation
/// `sim(x, y) = cos(x, y)`.
///
/// # Shapes
/// `target` `[T, D]`, `source` `[S, D]`. Result `[T, S]`.
///
/// # Parameters and units
/// None. Rows need no normalisation beforehand.
///
/// # Numerical notes
/// `x / sqrt(sum x^2 + 1e-12)`; one matmul.
///
/// # Errors
/// [`LossError::Shape`], [`LossError::ElementType`], [`LossError::Candle`].
///
/// # Deviations from the released procedure
/// The released procedure has no pooled form.
///
/// # Parity file
/// None: the tests compare with [`fragment_similarity`].
///
/// # Example
/// ```
/// use aeir_losses::pooled_similarity;
/// use candle_core::{Device, Tensor};
///
/// let target = Tensor::new(&[[1f64, 0.]], &Device::Cpu)?;
/// let source = Tensor::new(&[[2f64, 0.], [0., 1.]], &Device::Cpu)?;
/// assert_eq!(pooled_similarity(&target, &source)?.dims(), [1, 2]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn pooled_similarity(target: &Tensor, source: &Tensor) -> Result<Tensor, LossError> {
    let check = Check("pooled_similarity");
    let (_, dimension) = check.matrix("target", "[T, D]", target)?;
    check.same_type("source", source, target)?;
    if check.matrix("source", "[S, D]", source)?.1 != dimension {
        return Err(check.shape_error("source", format!("[S, D] with D = {dimension}"), source));
    }
    let similarity =
        || normalise_rows(target, EPSILON)?.product(&normalise_rows(source, EPSILON)?.t()?.contiguous()?);
    similarity().within(check.0)
}

type Fragments = (usize, usize);

fn check_fragments(target: &Tensor, source: &Tensor) -> Result<(Fragments, Fragments), LossError> {
    let check = Check(LOSS);
    check.float("target", target)?;
    check.same_type("source", source, target)?;
    let [items, fragments, dimension] = *target.dims() else {
        return Err(check.shape_error("target", "[T, F1, D]".to_owned(), target));
    };
    if target.elem_count() == 0 {
        return Err(check.shape_error("target", "[T, F1, D], not empty".to_owned(), target));
    }
    match *source.dims() {
        [source_items, source_fragments, same] if same == dimension && source.elem_count() > 0 => {
            Ok(((items, fragments), (source_items, source_fragments)))
        }
        _ => Err(check.shape_error("source", format!("[S, F2, D] with D = {dimension}, not empty"), source)),
    }
}

fn check_mask(
    name: &'static str,
    mask: &Tensor,
    letters: &str,
    fragments: Fragments,
) -> Result<(), LossError> {
    if mask.dims() == [fragments.0, fragments.1] {
        return Ok(());
    }
    let expected = format!("{letters} = [{}, {}]", fragments.0, fragments.1);
    Err(Check(LOSS).shape_error(name, expected, mask))
}

/// Padding replaced by zeros, so that nothing it holds can spread, forwards or backwards.
fn without_padding(x: &Tensor, mask: &Tensor) -> candle_core::Result<Tensor> {
    // Another device is not asked: it would have to be waited for.
    if is_at_hand(mask) && !mask.flatten_all()?.to_vec1::<u8>()?.contains(&0) {
        return Ok(x.clone());
    }
    mask.unsqueeze(D::Minus1)?.broadcast_as(x.dims())?.where_cond(x, &x.zeros_like()?)
}

/// `x / max(|x|, 1e-8)`, with a zero gradient at rows of zeros.
fn released_normalise(x: &Tensor) -> candle_core::Result<Tensor> {
    let squared = x.sqr()?.sum_keepdim(D::Minus1)?;
    let smallest = (squared.zeros_like()? + RELEASED_SQUARED_NORM)?;
    let norm = squared.gt(&smallest)?.where_cond(&squared, &smallest)?.sqrt()?;
    let is_zero = squared.eq(0f64)?.broadcast_as(x.dims())?;
    is_zero.where_cond(&x.zeros_like()?, &x.broadcast_div(&norm)?)
}

/// From unit rows `[T, F1, D]` and `[S, F2, D]` to `[T, S]`.
fn best_and_sum(
    target: &Tensor,
    target_mask: Option<&Tensor>,
    source: &Tensor,
) -> candle_core::Result<Tensor> {
    let (items, fragments, dimension) = target.dims3()?;
    let (source_items, source_fragments, _) = source.dims3()?;
    let target = target.reshape((items * fragments, dimension))?;
    let source = source.reshape((source_items * source_fragments, dimension))?;
    // [S F2, T, F1]: the maximum runs over the last dimension, which is the fast one.
    let cosines = source.product(&transposed(&target)?)?;
    let best = if fragments == 1 {
        cosines
    } else {
        let cosines = cosines.reshape((source_items * source_fragments, items, fragments))?;
        best_of_each(&cosines, target_mask)?
    };
    best.reshape((source_items, source_fragments, items))?.sum(1)?.t()?.contiguous()
}

/// The value of the best real target fragment: `[S F2, T, F1]` to `[S F2, T]`.
fn best_of_each(cosines: &Tensor, target_mask: Option<&Tensor>) -> candle_core::Result<Tensor> {
    #[cfg(feature = "cuda")]
    if aeir_kernels::takes(&[cosines]) && !cosines.track_op() {
        return aeir_kernels::best_values(cosines, target_mask);
    }
    best_values(cosines, target_mask)?.squeeze(2)
}

/// From unit rows `[T, F1, D]` and `[S, F2, D]` to `[T, K]`.
fn best_of_neighbours(
    target: &Tensor,
    target_mask: Option<&Tensor>,
    source: &Tensor,
    nearest: &Tensor,
) -> candle_core::Result<Tensor> {
    if MatchedRows::takes(target, source) {
        return MatchedRows::find(target, target_mask, source, nearest)?.sums(target, source);
    }
    #[cfg(feature = "cuda")]
    if aeir_kernels::takes(&[target, source]) {
        return aeir_kernels::matched_sums(target, target_mask, source, nearest);
    }
    let (items, fragments, dimension) = target.dims3()?;
    let (count, source_fragments) = (nearest.dim(1)?, source.dim(1)?);
    let chosen = source.index_select(&nearest.contiguous()?.flatten_all()?, 0)?;
    let chosen = chosen.reshape((items, count * source_fragments, dimension))?;
    // [K F2, T, F1] for the search of the best, which wants the target items in the middle.
    let cosines = chosen.product(&transposed(target)?)?;
    let best = if fragments == 1 {
        cosines
    } else {
        let by_item = cosines.transpose(0, 1)?.contiguous()?;
        best_values(&by_item, target_mask)?.transpose(0, 1)?.contiguous()?
    };
    best.reshape((items, count, source_fragments))?.sum(D::Minus1)
}

/// The last two axes exchanged; only GPUs want a copy for that.
fn transposed(x: &Tensor) -> candle_core::Result<Tensor> {
    let turned = x.transpose(D::Minus2, D::Minus1)?;
    if x.device().is_cpu() { Ok(turned) } else { turned.contiguous() }
}

/// The value of the best real target fragment, `[S F2, T, 1]`.
fn best_values(cosines: &Tensor, target_mask: Option<&Tensor>) -> candle_core::Result<Tensor> {
    let candidates = match target_mask {
        None => cosines.detach(),
        Some(mask) => {
            let mask = mask.unsqueeze(0)?.broadcast_as(cosines.dims())?;
            mask.where_cond(&cosines.detach(), &negative_infinity(cosines)?)?
        }
    };
    // An item without any real fragment has its padding, zeros, to choose from.
    cosines.gather(&candidates.argmax_keepdim(2)?, 2)
}
