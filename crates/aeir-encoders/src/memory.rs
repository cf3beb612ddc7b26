//! A memory of source pairs: where among them an item stands, told alike for images and sentences.

use candle_core::{D, DType, Device, Shape, Tensor};
use candle_nn::{Init, VarBuilder};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::rehearsal::{Product, is_at_hand};
use crate::{EncoderError, Items, l2_normalise};

/// Steps in which a row's sharpness is sought, Newton's or halvings: halvings alone end within what an `f32` can tell apart.
const STEPS: usize = 48;
/// Halvings of [`calibrated_on_device`]: an entropy is then right to what an `f32` can tell apart.
const BISECTIONS: usize = 28;
/// The natural logarithms of the smallest and the largest sharpness: cosines differ by 2 at most.
const SHARPNESS: [f32; 2] = [-5.0, 12.0];

/// Sizes of a [`PairMemory`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryConfig {
    /// n: source pairs that are remembered.
    pub pairs: usize,
    /// C: length of the code that an item gets.
    pub code_dimension: usize,
    /// Over how many pairs, in effect, an item is spread.
    pub perplexity: f64,
    /// Regression from one modality to the other, where the memory has it too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub regression: Option<RegressionConfig>,
}

impl MemoryConfig {
    /// The lengths of what an item gets beside its tower's vector, one part after the other.
    #[must_use]
    pub fn parts(&self) -> Vec<usize> {
        let regression = self.regression.map_or(0, |regression| regression.dimension);
        let parts = [self.code_dimension, regression, regression];
        parts.into_iter().take(if regression > 0 { 3 } else { 1 }).collect()
    }

    /// The length of all parts together.
    #[must_use]
    pub fn dimension(&self) -> usize {
        self.parts().iter().sum()
    }
}

/// Kernel ridge regression on the remembered pairs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegressionConfig {
    /// R: directions of each modality's features that are predicted.
    pub dimension: usize,
    /// s: how fast a pair's say falls with the distance to it.
    pub sharpness: f64,
}

/// Remembered source pairs, each an image's and a sentence's frozen feature, by which an image and a sentence that never met
/// can be compared.
///
/// Whatever the towers learned, the backbones know which images look alike and which sentences say alike things. An item is
/// therefore also described by the pairs it is near to in its own modality, and two items of different modalities match
/// as far as they are near to the same pairs. Nothing of it is trained, so that nothing of it is bent to the source's looks.
///
/// # Equation
/// For an item with the unit feature `f`, pairs with the unit features `g_j` in the item's modality, and `m_j` the mean of `f . g_j` over
/// the unpaired items of the domain served (a pair that is near to everything tells nothing):
///
/// ```text
/// p_j = softmax_j(b (f . g_j - m_j)),  b such that exp(H(p)) = perplexity      code = l2norm(sum_j sqrt(p_j) r_j)
/// ```
///
/// with `r_j ~ N(0, 1 / C)` the same for both modalities, so that the product of two codes estimates the Bhattacharyya coefficient
/// `sum_j sqrt(p_j q_j)` (Johnson and Lindenstrauss, 1984) at a length that does not grow with the pairs. The embedding is
/// `[w_t tower, w_m code]`, `w_t^2 + w_m^2 = 1`: a unit vector that an index holds as any other. Codes that are orthogonal, as
/// far as their length allows, estimate it with the least error.
///
/// With a regression ([`RegressionConfig`]) each modality is also predicted from the other, so that they are compared once as sentences
/// and once as images. For an image, with `P_t [G, R]` and `P_x [F, R]` directions of both modalities' features, `m` means over the
/// unpaired items of the domain served:
///
/// ```text
/// k_j = exp(s (f . g_j - 1))      predicted = l2norm(k A - m_A),  A = (K + ridge I)^-1 (sentence features) P_t      own = l2norm(f P_x - m_x)
/// ```
///
/// and for a sentence the same with the modalities exchanged. The embedding is then `[w_t tower, w_m code, w_1 predicted, w_2 own]` of
/// an image and `[w_t tower, w_m code, w_1 own, w_2 predicted]` of a sentence. What a pair says there reaches as far as its features do,
/// where the code knows neighbours alone: things that no pair shows are placed between those that some do.
///
/// The calibration to a perplexity is that of van der Maaten and Hinton, *Visualizing data using t-SNE*, JMLR 9, 2008; descriptions by the
/// similarity to paired anchors: Norelli et al., *ASIF: coupled data turns unimodal models to multimodal without training*,
/// NeurIPS 2023. Kernel ridge regression: Saunders et al., *Ridge regression learning algorithm in dual variables*, ICML 1998.
///
/// # Parameters
/// All computed, none trained: `memory_image [n, F]`, `memory_sentence [n, G]`, `memory_image_mean [n]`,
/// `memory_sentence_mean [n]`, `memory_codes [n, C]`, `memory_weights [2]`, with a regression `[4]`, and for it, `m` being `image` or
/// `sentence`, `memory_m_directions [F, R]`, `memory_m_centre [R]`, `memory_m_map [n, R]`, `memory_m_map_centre [R]`.
pub struct PairMemory {
    config: MemoryConfig,
    image: Anchors,
    sentence: Anchors,
    codes: Tensor,
    weights: Tensor,
}

/// One modality of the remembered pairs.
struct Anchors {
    features: Tensor,
    mean: Tensor,
    regression: Option<Regression>,
}

/// From one modality's features: its own directions, and those of the other modality.
struct Regression {
    directions: Tensor,
    centre: Tensor,
    map: Tensor,
    map_centre: Tensor,
}

impl Regression {
    fn new(
        config: RegressionConfig,
        [pairs, dimension]: [usize; 2],
        name: &str,
        builder: &VarBuilder<'_>,
    ) -> Result<Self, EncoderError> {
        let get = |shape: Shape, what: &str| {
            let name = format!("{name}_{what}");
            Ok::<_, EncoderError>(builder.get_with_hints(shape, &name, Init::Const(0.0))?.detach())
        };
        let length = config.dimension;
        Ok(Self {
            directions: get((dimension, length).into(), "directions")?,
            centre: get(length.into(), "centre")?,
            map: get((pairs, length).into(), "map")?,
            map_centre: get(length.into(), "map_centre")?,
        })
    }

    /// The item's own directions, as a unit vector.
    fn own(&self, features: &Tensor) -> Result<Tensor, EncoderError> {
        l2_normalise(&features.product(&self.directions)?.broadcast_sub(&self.centre)?)
    }

    /// What the pairs say of the other modality's directions, as a unit vector.
    fn predicted(&self, kernel: &Tensor) -> Result<Tensor, EncoderError> {
        l2_normalise(&kernel.product(&self.map)?.broadcast_sub(&self.map_centre)?)
    }
}

/// The kernel of the regression, of cosines: `exp(s (x - 1))`.
///
/// # Shapes
/// Any.
///
/// # Errors
/// [`EncoderError::Tensor`] from candle.
pub fn regression_kernel(cosines: &Tensor, sharpness: f64) -> Result<Tensor, EncoderError> {
    Ok(cosines.affine(sharpness, -sharpness)?.exp()?)
}

impl Anchors {
    fn new(
        config: MemoryConfig,
        dimension: usize,
        name: &str,
        builder: &VarBuilder<'_>,
    ) -> Result<Self, EncoderError> {
        let zero = Init::Const(0.0);
        Ok(Self {
            features: builder.get_with_hints((config.pairs, dimension), name, zero)?.detach(),
            mean: builder.get_with_hints(config.pairs, &format!("{name}_mean"), zero)?.detach(),
            regression: config
                .regression
                .map(|regression| Regression::new(regression, [config.pairs, dimension], name, builder))
                .transpose()?,
        })
    }
}

impl PairMemory {
    /// Creates or loads a memory of pairs with features of these lengths. A new one remembers nothing yet: its tensors are set
    /// by whoever owns them.
    ///
    /// # Errors
    /// When the builder has no such tensor, or one of another shape.
    pub(crate) fn new(
        config: MemoryConfig,
        [image, sentence]: [usize; 2],
        builder: &VarBuilder<'_>,
    ) -> Result<Self, EncoderError> {
        let codes = Init::Randn { mean: 0.0, stdev: 1.0 / (config.code_dimension as f64).sqrt() };
        let parts = 1 + config.parts().len();
        let even = Init::Const((1.0 / parts as f64).sqrt());
        Ok(Self {
            config,
            image: Anchors::new(config, image, "memory_image", builder)?,
            sentence: Anchors::new(config, sentence, "memory_sentence", builder)?,
            codes: builder
                .get_with_hints((config.pairs, config.code_dimension), "memory_codes", codes)?
                .detach(),
            weights: builder.get_with_hints(parts, "memory_weights", even)?.detach(),
        })
    }

    /// The embeddings of images with what the memory knows of them beside, each part weighed.
    pub(crate) fn join_images(&self, items: &Items, embeddings: &Tensor) -> Result<Tensor, EncoderError> {
        let Described { code, regression } = self.describe(&self.image, items)?;
        let regression = regression.map(|[own, predicted]| [predicted, own]);
        self.join(embeddings, code, regression)
    }

    /// The embeddings of sentences with what the memory knows of them beside, each part weighed.
    pub(crate) fn join_sentences(&self, items: &Items, embeddings: &Tensor) -> Result<Tensor, EncoderError> {
        let Described { code, regression } = self.describe(&self.sentence, items)?;
        self.join(embeddings, code, regression)
    }

    fn describe(&self, anchors: &Anchors, items: &Items) -> Result<Described, EncoderError> {
        let features = frozen_features(items)?;
        let cosines = features.product(&anchors.features.t()?)?;
        let posterior = calibrated_softmax(&cosines.broadcast_sub(&anchors.mean)?, self.config.perplexity)?;
        let code = l2_normalise(&posterior.sqrt()?.product(&self.codes)?)?;
        let regression = match (&anchors.regression, self.config.regression) {
            (Some(regression), Some(config)) => {
                let kernel = regression_kernel(&cosines, config.sharpness)?;
                Some([regression.own(&features)?, regression.predicted(&kernel)?])
            }
            _ => None,
        };
        Ok(Described { code, regression })
    }

    fn join(
        &self,
        embeddings: &Tensor,
        code: Tensor,
        regression: Option<[Tensor; 2]>,
    ) -> Result<Tensor, EncoderError> {
        let parts = [embeddings.clone(), code].into_iter().chain(regression.into_iter().flatten());
        let weighed = parts
            .enumerate()
            .map(|(place, part)| part.broadcast_mul(&self.weights.narrow(0, place, 1)?))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Tensor::cat(&weighed, D::Minus1)?)
    }
}

/// What a memory says of items of one modality.
struct Described {
    /// `[B, C]`.
    code: Tensor,
    /// Their own directions and what is predicted of the other modality's, `[B, R]` each.
    regression: Option<[Tensor; 2]>,
}

/// Unit vectors of what frozen backbones gave, `[B, F]`: of fragments the mean over the real ones.
///
/// # Errors
/// [`EncoderError::Argument`] for words, which come without features.
pub fn frozen_features(items: &Items) -> Result<Tensor, EncoderError> {
    match items {
        Items::Pooled(features) => l2_normalise(features),
        Items::Fragments(fragments) => l2_normalise(&fragments.mean_pooled()?),
        Items::Words(_) => Err(EncoderError::Argument {
            what: "items to find in a memory of pairs",
            expected: "features of a frozen encoder".into(),
            got: items.kind().into(),
        }),
    }
}

/// The softmax of every row at the sharpness that spreads it over `perplexity` entries in effect.
///
/// Equation: `p = softmax(b x)` with `exp(-sum_j p_j ln p_j) = perplexity`. A row with fewer distinct entries than that, such as one of equal
/// entries, comes as near as it can.
///
/// # Shapes
/// `[N, M]` to `[N, M]`, without a gradient.
///
/// # Errors
/// [`EncoderError::Tensor`] when the values can't be read or written.
pub fn calibrated_softmax(similarities: &Tensor, perplexity: f64) -> Result<Tensor, EncoderError> {
    let (rows, columns) = similarities.dims2()?;
    if !is_at_hand(similarities) {
        return calibrated_on_device(similarities, perplexity);
    }
    let mut values = similarities.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    let entropy = perplexity.max(1.0).ln() as f32;
    values.par_chunks_mut(columns.max(1)).for_each(|row| calibrate(row, entropy));
    Ok(Tensor::from_vec(values, (rows, columns), &Device::Cpu)?.to_device(similarities.device())?)
}

/// [`calibrated_softmax`] of candle's operations, which never waits for the device: sharpness by bisection, all rows at once.
fn calibrated_on_device(similarities: &Tensor, perplexity: f64) -> Result<Tensor, EncoderError> {
    let x = similarities.detach().to_dtype(DType::F32)?;
    let x = x.broadcast_sub(&x.max_keepdim(D::Minus1)?)?;
    let entropy = perplexity.max(1.0).ln();
    let at_all = |value: f32| Tensor::full(value, (x.dim(0)?, 1), x.device());
    let [low, high] = SHARPNESS;
    let (mut low, mut high) = (at_all(low)?, at_all(high)?);
    let middle = |low: &Tensor, high: &Tensor| (low + high)? * 0.5;
    for _ in 0..BISECTIONS {
        let at = middle(&low, &high)?;
        let scaled = x.broadcast_mul(&at.exp()?)?;
        let weights = scaled.exp()?;
        let total = weights.sum_keepdim(D::Minus1)?;
        let mean = ((weights * scaled)?.sum_keepdim(D::Minus1)? / &total)?;
        // The entropy falls as the sharpness rises.
        let above = (total.log()? - mean)?.gt(entropy)?;
        low = above.where_cond(&at, &low)?;
        high = above.where_cond(&high, &at)?;
    }
    let weights = x.broadcast_mul(&middle(&low, &high)?.exp()?)?.exp()?;
    Ok(weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?)
}

/// Replaces a row by its softmax of that entropy.
fn calibrate(row: &mut [f32], entropy: f32) {
    let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    row.iter_mut().for_each(|value| *value -= largest);
    let [mut low, mut high] = SHARPNESS;
    let mut at = 0.5 * (low + high);
    for _ in 0..STEPS {
        let Entropy { value, slope } = entropy_at(row, at.exp());
        if (value - entropy).abs() < 1e-4 {
            break;
        }
        // The entropy falls as the sharpness rises.
        if value > entropy {
            low = at
        } else {
            high = at
        }
        let newton = at + (entropy - value) / slope;
        at = if low < newton && newton < high { newton } else { 0.5 * (low + high) };
    }
    let sharpness = at.exp();
    row.iter_mut().for_each(|value| *value = (*value * sharpness).exp());
    let total: f32 = row.iter().sum();
    row.iter_mut().for_each(|value| *value /= total);
}

/// The entropy of a softmax.
struct Entropy {
    value: f32,
    /// By the logarithm of the sharpness: never positive.
    slope: f32,
}

/// The entropy of `softmax(sharpness x)`, the largest of `x` being 0. Its slope is minus the variance of `sharpness x` under the softmax.
fn entropy_at(row: &[f32], sharpness: f32) -> Entropy {
    let (mut total, mut first, mut second) = (0.0_f64, 0.0_f64, 0.0_f64);
    for value in row {
        let scaled = value * sharpness;
        let weight = f64::from(scaled.exp());
        let scaled = f64::from(scaled);
        total += weight;
        first += weight * scaled;
        second += weight * scaled * scaled;
    }
    let mean = first / total;
    Entropy { value: (total.ln() - mean) as f32, slope: (mean * mean - second / total) as f32 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn perplexities(tensor: &Tensor) -> Vec<f32> {
        let rows = tensor.to_vec2::<f32>().unwrap();
        rows.iter()
            .map(|row| {
                assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-5);
                row.iter().filter(|p| **p > 0.0).map(|p| -p * p.ln()).sum::<f32>().exp()
            })
            .collect()
    }

    #[test]
    fn a_device_calibrates_as_the_cpu_does() {
        let values: Vec<f32> = (0..7 * 40).map(|i| ((i * 37 % 101) as f32 - 50.0) / 60.0).collect();
        let x = Tensor::from_vec(values, (7, 40), &Device::Cpu).unwrap();
        let equal = Tensor::ones((2, 40), DType::F32, &Device::Cpu).unwrap();
        for (x, perplexity) in [(&x, 8.0), (&x, 2.0), (&x, 39.0), (&equal, 8.0)] {
            let (host, device) =
                (calibrated_softmax(x, perplexity).unwrap(), calibrated_on_device(x, perplexity).unwrap());
            let apart =
                (host - device).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
            assert!(apart < 2e-4, "{perplexity}: {apart}");
        }
    }

    #[test]
    fn every_row_is_spread_alike_and_keeps_its_order() {
        // The second row is the first, ten times as flat.
        let row: Vec<f32> = (0..50).map(|index| (index as f32 * 0.37).sin()).collect();
        let flat: Vec<f32> = row.iter().map(|value| value * 0.1).collect();
        let x = Tensor::new(vec![row, flat], &Device::Cpu).unwrap();
        let p = calibrated_softmax(&x, 8.0).unwrap();
        assert!(perplexities(&p).iter().all(|found| (found - 8.0).abs() < 0.01), "{:?}", perplexities(&p));
        let rows = p.to_vec2::<f32>().unwrap();
        let apart = rows[0].iter().zip(&rows[1]).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(apart < 1e-3, "{apart}");
    }

    #[test]
    fn rows_that_cannot_be_spread_so_far_stay_finite() {
        let x = Tensor::new(&[[0.0f32, 0.0, 0.0], [1.0, 0.0, -1.0]], &Device::Cpu).unwrap();
        for perplexity in [0.0, 1.0, 3.0, 100.0] {
            let found = perplexities(&calibrated_softmax(&x, perplexity).unwrap());
            assert!((found[0] - 3.0).abs() < 1e-4 && (0.999..=3.001).contains(&found[1]), "{found:?}");
        }
    }
}
