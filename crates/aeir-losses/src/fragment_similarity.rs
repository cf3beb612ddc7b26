//! How alike two sets of fragments are.

use candle_core::{D, Tensor};

use crate::error::{Check, LossError, Within};
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
        || normalise_rows(target, EPSILON)?.matmul(&normalise_rows(source, EPSILON)?.t()?.contiguous()?);
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
    let cosines = source.matmul(&target.t()?.contiguous()?)?;
    let best = if fragments == 1 {
        cosines
    } else {
        let cosines = cosines.reshape((source_items * source_fragments, items, fragments))?;
        let best = best_fragments(&cosines, target_mask)?;
        cosines.gather(&best, 2)?.squeeze(2)?
    };
    best.reshape((source_items, source_fragments, items))?.sum(1)?.t()?.contiguous()
}

/// The index of the best real target fragment, `[S F2, T, 1]`.
fn best_fragments(cosines: &Tensor, target_mask: Option<&Tensor>) -> candle_core::Result<Tensor> {
    let cosines = cosines.detach();
    let candidates = match target_mask {
        None => cosines,
        Some(mask) => {
            let mask = mask.unsqueeze(0)?.broadcast_as(cosines.dims())?;
            mask.where_cond(&cosines, &negative_infinity(&cosines)?)?
        }
    };
    candidates.argmax_keepdim(2)
}
