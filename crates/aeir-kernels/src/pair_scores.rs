//! Alignment vectors of all pairs of a batch, and SAF's gated mean of them: one node of candle's graph each.
//!
//! candle adds up the gradients of a node's inputs from zeros, which passes three times over each. The vectors of all words of all pairs are
//! gigabytes: here none of them crosses a node.

use candle_core::{Result, Tensor, bail};

use crate::alignment::{
    attention_weights, attention_weights_backward, fits, pair_squares, pair_squares_backward,
    squared_differences, squared_differences_backward,
};
use crate::elements::{column_sums, plain};
use crate::filter::{Filter, Sizes};
use crate::launch::Card;
use crate::node::node;
use crate::rows::{UnitLength, unit_backward, unit_forward};

/// Weight `[O, I]` and bias `[O]` of a linear layer.
#[derive(Debug, Clone, Copy)]
pub struct Layer<'a> {
    /// `[O, I]`.
    pub weight: &'a Tensor,
    /// `[O]`.
    pub bias: &'a Tensor,
}

/// What alignment vectors are made of. Padded fragments are zeros.
#[derive(Debug, Clone, Copy)]
pub struct Alignment<'a> {
    /// `[N, R, D]`.
    pub images: &'a Tensor,
    /// `[N, R]`.
    pub image_mask: &'a Tensor,
    /// `[M, L, D]`.
    pub sentences: &'a Tensor,
    /// `[M, L]`.
    pub sentence_mask: &'a Tensor,
    /// `[N, D]`.
    pub image_global: &'a Tensor,
    /// `[M, D]`.
    pub sentence_global: &'a Tensor,
    /// From D to S.
    pub local: Layer<'a>,
    /// From D to S.
    pub global: Layer<'a>,
    /// How vectors are scaled to unit length.
    pub unit: UnitLength,
}

/// Which parameters make a gate of a vector, and which statistics normalise its logit.
#[derive(Debug, Clone, Copy)]
pub struct Gate<'a> {
    /// From S to 1.
    pub layer: Layer<'a>,
    /// Scale and shift of the normalisation, `[1]` each.
    pub norm: [&'a Tensor; 2],
    /// Running mean and variance, `[1]` each; none for those of the batch.
    pub running: Option<[&'a Tensor; 2]>,
}

/// The gated mean of each pair.
pub struct Filtered {
    /// `[N, M, S]`.
    pub vectors: Tensor,
    /// Mean, biased variance and count of each sentence's logits, `[M, 1]` each; none with running ones.
    pub statistics: Option<[Tensor; 3]>,
}

/// Whether the kernels take images of `regions` and sentences of `words`, fragments of `dimension`.
#[must_use]
pub fn takes_alignment(regions: usize, words: usize, dimension: usize) -> bool {
    fits(words, regions, dimension)
}

/// The vectors of all words of all pairs, `[N, M L, S]`, and those of the pairs, `[N, M, S]`.
///
/// Equation (Diao et al., AAAI 2021): `unit(W (unit(sum_r a_lr v_r) - t_l)^2 + b)` and `unit(W (v - t)^2 + b)`.
///
/// # Errors
/// When the sizes don't fit; from candle and the driver.
pub fn aligned(alignment: &Alignment<'_>) -> Result<[Tensor; 2]> {
    let sizes = alignment.sizes()?;
    let card = Card::of(alignment.images)?;
    sizes.check_memory(&card, alignment.is_trained())?;
    let [images, words] = [alignment.images.contiguous()?, alignment.sentences.contiguous()?];
    let parameters = flat(&[alignment.local.weight, alignment.local.bias])?;
    let pass = LocalPass::new(alignment, sizes, &parameters)?;
    let kept = pass.forward(&card, &images.detach(), &words.detach())?;
    let local = unit_forward(&card, &kept.projected, alignment.unit)?;
    let shape = (sizes.images, sizes.sentences * sizes.words, sizes.similarity);
    let local_card = Card::of(alignment.images)?;
    let local = card.storage(local);
    let local =
        node("aligned", &[&images, &words, &parameters], local, shape, move |inputs, _, gradient| {
            let &[images, words, _] = inputs else { return Ok(Vec::new()) };
            let LocalGradients { images, words, weight, bias } =
                pass.backward(&local_card, &images.detach(), &words.detach(), &kept, gradient)?;
            Ok(vec![Some(images), Some(words), Some(flat(&[&weight, &bias])?)])
        })?;
    let [a, b] = [alignment.image_global.contiguous()?, alignment.sentence_global.contiguous()?];
    let parameters = flat(&[alignment.global.weight, alignment.global.bias])?;
    let pass = GlobalPass::new(alignment, sizes, &parameters)?;
    let kept = pass.forward(&card, &a.detach(), &b.detach())?;
    let global = card.storage(unit_forward(&card, &kept.projected, alignment.unit)?);
    let shape = (sizes.images, sizes.sentences, sizes.similarity);
    let global =
        node("aligned-globally", &[&a, &b, &parameters], global, shape, move |inputs, _, gradient| {
            let &[a, b, _] = inputs else { return Ok(Vec::new()) };
            let GlobalGradients { a, b, weight, bias } =
                pass.backward(&card, &a.detach(), &b.detach(), &kept, gradient)?;
            Ok(vec![Some(a), Some(b), Some(flat(&[&weight, &bias])?)])
        })?;
    Ok([local, global])
}

/// The mean of each pair's [`aligned`] vectors by their gates.
///
/// Equation (Diao et al., AAAI 2021): `sum_p g_p x_p / (sum_p g_p + 1e-8)`, `g_p = sigmoid(norm(w . x_p + b))`, statistics of the
/// normalisation those of a sentence over all images.
///
/// # Errors
/// When the sizes don't fit; from candle and the driver.
pub fn filtered(alignment: &Alignment<'_>, gate: &Gate<'_>) -> Result<Filtered> {
    let sizes = alignment.sizes()?;
    let card = Card::of(alignment.images)?;
    sizes.check_memory(&card, alignment.is_trained())?;
    let unit = alignment.unit;
    let [images, words] = [alignment.images.contiguous()?, alignment.sentences.contiguous()?];
    let [a, b] = [alignment.image_global, alignment.sentence_global];
    let (local, global) = (alignment.local, alignment.global);
    // An operation takes three tensors: all else goes in as one.
    let parts = [
        a,
        b,
        local.weight,
        local.bias,
        global.weight,
        global.bias,
        gate.layer.weight,
        gate.layer.bias,
        gate.norm[0],
        gate.norm[1],
    ];
    let parameters = flat(&parts)?;
    let pieces = Pieces::of(&parameters.detach(), &parts)?;
    let local_pass = LocalPass::with(alignment, sizes, pieces.get(2)?, pieces.get(3)?)?;
    let global_pass = GlobalPass { unit, sizes, weight: pieces.get(4)?, bias: pieces.get(5)? };
    let filter = Filter {
        sizes: sizes.of_filter(),
        mask: alignment.sentence_mask.detach().contiguous()?,
        weight: pieces.get(6)?.flatten_all()?,
        bias: pieces.get(7)?,
        norm: flat(&[&pieces.get(8)?, &pieces.get(9)?])?,
        of_batch: gate.running.is_none(),
    };
    let (a, b) = (pieces.get(0)?, pieces.get(1)?);
    let local_kept = local_pass.forward(&card, &images.detach(), &words.detach())?;
    let global_kept = global_pass.forward(&card, &a, &b)?;
    let shape = (sizes.images, sizes.sentences, sizes.similarity);
    let long = (sizes.images, sizes.sentences * sizes.words, sizes.similarity);
    let local = card.tensor(unit_forward(&card, &local_kept.projected, unit)?, long);
    let global = card.tensor(unit_forward(&card, &global_kept.projected, unit)?, shape);
    let (y, kept) = filter.forward(&card, &local, &global, gate.running)?;
    let statistics = match gate.running {
        Some(_) => None,
        None => {
            let row = |index| kept.statistics.narrow(0, index, 1)?.reshape((sizes.sentences, 1));
            Some([row(0)?, row(1)?, row(2)?])
        }
    };
    let y = card.storage(y);
    let vectors = node("filtered", &[&images, &words, &parameters], y, shape, move |inputs, _, gradient| {
        let &[images, words, _] = inputs else { return Ok(Vec::new()) };
        let of_filter = filter.backward(&card, &local, &global, &kept, gradient)?;
        let of_global = global_pass.backward(&card, &a, &b, &global_kept, &of_filter.global)?;
        let of_local =
            local_pass.backward(&card, &images.detach(), &words.detach(), &local_kept, &of_filter.local)?;
        // In the order of the parameters.
        let parameters = flat(&[
            &of_global.a,
            &of_global.b,
            &of_local.weight,
            &of_local.bias,
            &of_global.weight,
            &of_global.bias,
            &of_filter.weight,
            &of_filter.others,
        ])?;
        Ok(vec![Some(of_local.images), Some(of_local.words), Some(parameters)])
    })?;
    Ok(Filtered { vectors, statistics })
}

/// All of them behind one another.
fn flat(tensors: &[&Tensor]) -> Result<Tensor> {
    let flat = tensors.iter().map(|tensor| tensor.flatten_all()).collect::<Result<Vec<_>>>()?;
    Tensor::cat(&flat, 0)
}

/// Tensors that lie in one.
struct Pieces(Vec<Tensor>);

impl Pieces {
    /// `flat`, cut as `like`.
    fn of(flat: &Tensor, like: &[&Tensor]) -> Result<Self> {
        let mut start = 0;
        let piece = |like: &&Tensor| {
            let piece = flat.narrow(0, start, like.elem_count())?.reshape(like.shape());
            start += like.elem_count();
            piece
        };
        Ok(Self(like.iter().map(piece).collect::<Result<_>>()?))
    }

    fn get(&self, index: usize) -> Result<Tensor> {
        match self.0.get(index) {
            Some(piece) => Ok(piece.clone()),
            None => bail!("pair scores: {index} of {} parameters", self.0.len()),
        }
    }
}

#[derive(Clone, Copy)]
struct PairSizes {
    images: usize,
    sentences: usize,
    words: usize,
    dimension: usize,
    similarity: usize,
}

impl PairSizes {
    /// Refuses pairs whose vectors have no room on the card, with their gradients if they are trained.
    fn check_memory(self, card: &Card, is_trained: bool) -> Result<()> {
        let rows = self.images.saturating_mul(self.sentences).saturating_mul(self.words);
        // Attended vectors and squares; projections and unit vectors.
        let numbers = rows.saturating_mul(2).saturating_mul(self.dimension + self.similarity);
        let numbers = if is_trained { numbers.saturating_mul(2) } else { numbers };
        card.refuse_beyond_memory("the alignment of all pairs", numbers)
    }

    fn of_filter(self) -> Sizes {
        let Self { images, sentences, words, similarity, .. } = self;
        Sizes { images, sentences, words, similarity }
    }
}

impl Alignment<'_> {
    /// Whether a backward pass may follow.
    fn is_trained(&self) -> bool {
        [self.images, self.sentences, self.local.weight].iter().any(|tensor| tensor.track_op())
    }

    fn sizes(&self) -> Result<PairSizes> {
        let (images, regions, dimension) = self.images.dims3()?;
        let (sentences, words, same) = self.sentences.dims3()?;
        let similarity = self.local.weight.dim(0)?;
        let fits = same == dimension
            && fits(words, regions, dimension)
            && self.image_mask.dims() == [images, regions]
            && self.sentence_mask.dims() == [sentences, words]
            && self.image_global.dims() == [images, dimension]
            && self.sentence_global.dims() == [sentences, dimension]
            && [self.local, self.global].iter().all(|layer| {
                layer.weight.dims() == [similarity, dimension] && layer.bias.dims() == [similarity]
            });
        if !fits {
            bail!("alignment: {:?} with {:?}", self.images.dims(), self.sentences.dims());
        }
        Ok(PairSizes { images, sentences, words, dimension, similarity })
    }
}

/// Vectors of words.
struct LocalPass {
    unit: UnitLength,
    sizes: PairSizes,
    image_mask: Tensor,
    weight: Tensor,
    bias: Tensor,
}

struct LocalKept {
    /// Products of words and regions, `[M L, N R]`.
    scores: Tensor,
    /// `[N, M L, R]`.
    weights: Tensor,
    /// `[N, M L, D]`.
    attended: Tensor,
    /// `[N M L, D]`.
    squares: Tensor,
    /// Before they become unit vectors, `[N M L, S]`.
    projected: Tensor,
}

struct LocalGradients {
    images: Tensor,
    words: Tensor,
    weight: Tensor,
    bias: Tensor,
}

impl LocalPass {
    /// With weight and bias out of one tensor.
    fn new(alignment: &Alignment<'_>, sizes: PairSizes, parameters: &Tensor) -> Result<Self> {
        let pieces = Pieces::of(&parameters.detach(), &[alignment.local.weight, alignment.local.bias])?;
        Self::with(alignment, sizes, pieces.get(0)?, pieces.get(1)?)
    }

    fn with(alignment: &Alignment<'_>, sizes: PairSizes, weight: Tensor, bias: Tensor) -> Result<Self> {
        let image_mask = alignment.image_mask.detach().contiguous()?;
        Ok(Self { unit: alignment.unit, sizes, image_mask, weight, bias })
    }

    /// Fragments as rows of a matrix.
    fn rows(&self, fragments: &Tensor) -> Result<Tensor> {
        fragments.reshape(((), self.sizes.dimension))
    }

    fn forward(&self, card: &Card, images: &Tensor, words: &Tensor) -> Result<LocalKept> {
        let (flat_images, flat_words) = (self.rows(images)?, self.rows(words)?);
        let scores = flat_words.matmul(&flat_images.t()?)?;
        let weights = attention_weights(card, &scores, &self.image_mask, self.sizes.words, self.unit)?;
        let attended = weights.matmul(images)?;
        let squares = squared_differences(card, &attended, &flat_words, self.unit)?;
        let squares = self.rows(&squares)?;
        let projected = plain(&squares, &self.weight, Some(&self.bias), None, None)?;
        Ok(LocalKept { scores, weights, attended, squares, projected })
    }

    fn backward(
        &self,
        card: &Card,
        images: &Tensor,
        words: &Tensor,
        kept: &LocalKept,
        gradient: &Tensor,
    ) -> Result<LocalGradients> {
        let Self { unit, sizes, .. } = self;
        let LocalKept { scores, weights, attended, squares, projected } = kept;
        let gradient = gradient.reshape(projected.shape())?;
        let of_projected = unit_backward(card, projected, &gradient, *unit)?;
        let of_squares = of_projected.matmul(&self.weight)?.reshape(attended.shape())?;
        let (flat_images, flat_words) = (self.rows(images)?, self.rows(words)?);
        let [of_attended, of_words] =
            squared_differences_backward(card, attended, &flat_words, &of_squares, *unit)?;
        drop(of_squares);
        let of_weights = of_attended.matmul(&images.t()?)?;
        let of_images = weights.t()?.matmul(&of_attended)?;
        let of_scores = attention_weights_backward(card, scores, weights, &of_weights, sizes.words, *unit)?;
        let of_words = (of_words + of_scores.matmul(&flat_images)?)?;
        let of_regions = of_scores.t()?.matmul(&flat_words)?;
        Ok(LocalGradients {
            images: (of_images + of_regions.reshape(images.shape())?)?,
            words: of_words.reshape(words.shape())?,
            weight: of_projected.t()?.matmul(squares)?,
            bias: column_sums(&of_projected)?,
        })
    }
}

/// Vectors of pairs.
struct GlobalPass {
    unit: UnitLength,
    sizes: PairSizes,
    weight: Tensor,
    bias: Tensor,
}

struct GlobalKept {
    /// `[N M, D]`.
    squares: Tensor,
    /// Before they become unit vectors, `[N M, S]`.
    projected: Tensor,
}

struct GlobalGradients {
    a: Tensor,
    b: Tensor,
    weight: Tensor,
    bias: Tensor,
}

impl GlobalPass {
    /// With weight and bias out of one tensor.
    fn new(alignment: &Alignment<'_>, sizes: PairSizes, parameters: &Tensor) -> Result<Self> {
        let pieces = Pieces::of(&parameters.detach(), &[alignment.global.weight, alignment.global.bias])?;
        Ok(Self { unit: alignment.unit, sizes, weight: pieces.get(0)?, bias: pieces.get(1)? })
    }

    /// Of images `a [N, D]` and sentences `b [M, D]`.
    fn forward(&self, card: &Card, a: &Tensor, b: &Tensor) -> Result<GlobalKept> {
        let squares = pair_squares(card, a, b)?.reshape(((), self.sizes.dimension))?;
        let projected = plain(&squares, &self.weight, Some(&self.bias), None, None)?;
        Ok(GlobalKept { squares, projected })
    }

    fn backward(
        &self,
        card: &Card,
        a: &Tensor,
        b: &Tensor,
        kept: &GlobalKept,
        gradient: &Tensor,
    ) -> Result<GlobalGradients> {
        let GlobalKept { squares, projected } = kept;
        let gradient = gradient.reshape(projected.shape())?;
        let of_projected = unit_backward(card, projected, &gradient, self.unit)?;
        let of_squares = of_projected.matmul(&self.weight)?;
        let [of_a, of_b] = pair_squares_backward(card, a, b, &of_squares)?;
        Ok(GlobalGradients {
            a: of_a,
            b: of_b,
            weight: of_projected.t()?.matmul(squares)?,
            bias: column_sums(&of_projected)?,
        })
    }
}
