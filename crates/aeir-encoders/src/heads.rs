//! Similarity heads that see an image and a sentence at once, fragment by fragment.
//!
//! [`SimilarityHead`] scores every image of a batch against every sentence. Such scores can't be indexed: in retrieval they
//! re-rank what pooled vectors found. In training they are what the ranking loss works on.

mod alignment;
mod filter;
mod fragment_norm;
mod fused;
mod gated_score;
mod graph;
mod linear;
mod masked;
#[cfg(feature = "cuda")]
mod on_card;
mod released_names;
mod scan;
mod self_attention;
mod shards;

use candle_core::Tensor;
use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};

pub use released_names::{ReleasedName, released_names};
pub use scan::{ScanConfig, ScanPooling};
pub use shards::ShardSize;

use crate::dropout::check_probability;
use crate::error::{EncoderError, Result};
use crate::fragments::Fragments;
use crate::mode::Mode;
use crate::normalise::UnitNorm;
use filter::Filter;
use graph::GraphReasoning;
use linear::Linear;
use self_attention::SelfAttention;

/// Which similarity head.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "kebab-case")]
pub enum HeadKind {
    /// Similarity attention filtration (Diao et al., AAAI 2021).
    Saf,
    /// Similarity graph reasoning (Diao et al., AAAI 2021).
    Sgr,
    /// Stacked cross attention, words attend to regions (Lee et al., ECCV 2018).
    ScanT2i,
    /// Stacked cross attention, regions attend to words (Lee et al., ECCV 2018).
    ScanI2t,
}

impl HeadKind {
    /// The name in configurations and on the command line.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Saf => "saf",
            Self::Sgr => "sgr",
            Self::ScanT2i => "scan-t2i",
            Self::ScanI2t => "scan-i2t",
        }
    }

    /// Whether the head has parameters; the two of stacked cross attention have none.
    #[must_use]
    pub fn has_parameters(self) -> bool {
        matches!(self, Self::Saf | Self::Sgr)
    }
}

/// Sizes and settings of a [`SimilarityHead`]. In a file `kind`, `dimension` and `regions` are needed, the rest has defaults.
#[derive(Serialize, Deserialize, Clone, PartialEq, Debug)]
#[serde(deny_unknown_fields)]
pub struct HeadConfig {
    /// Which head.
    pub kind: HeadKind,
    /// Joint dimension D of the fragments.
    pub dimension: usize,
    /// Regions R of an image. SAF and SGR take no other number: their image branch normalises each region by itself.
    pub regions: usize,
    /// Similarity dimension S of the alignment vectors (SAF, SGR).
    #[serde(default = "default_similarity_dimension")]
    pub similarity_dimension: usize,
    /// Rounds of graph reasoning (SGR).
    #[serde(default = "default_graph_steps")]
    pub graph_steps: usize,
    /// Dropout in both self-attention branches (SAF, SGR).
    #[serde(default = "default_dropout")]
    pub dropout: f32,
    /// How vectors are scaled to unit length.
    #[serde(default)]
    pub norm: UnitNorm,
    /// Settings of stacked cross attention.
    #[serde(default)]
    pub scan: ScanConfig,
}

fn default_similarity_dimension() -> usize {
    256
}

fn default_graph_steps() -> usize {
    3
}

fn default_dropout() -> f32 {
    0.4
}

impl HeadConfig {
    /// The published settings for fragments of `dimension` and images of `regions`.
    #[must_use]
    pub fn new(kind: HeadKind, dimension: usize, regions: usize) -> Self {
        Self {
            kind,
            dimension,
            regions,
            similarity_dimension: default_similarity_dimension(),
            graph_steps: default_graph_steps(),
            dropout: default_dropout(),
            norm: UnitNorm::default(),
            scan: ScanConfig::default(),
        }
    }

    fn check(&self) -> Result<()> {
        check_probability(self.dropout)?;
        self.scan.check()?;
        let sizes = [
            ("head dimension", self.dimension),
            ("head regions", self.regions),
            ("similarity dimension", self.similarity_dimension),
            ("graph steps", self.graph_steps),
        ];
        match sizes.into_iter().find(|(_, size)| *size == 0) {
            None => Ok(()),
            Some((what, size)) => Err(EncoderError::Argument {
                what,
                expected: "a positive number".to_owned(),
                got: size.to_string(),
            }),
        }
    }
}

/// Scores images against sentences from their fragments.
///
/// # Equation
/// SAF and SGR (Diao et al., *Similarity reasoning and filtration for image-text matching*, AAAI 2021), for an image with
/// regions `v_r` and a sentence with words `t_l`, all of unit length:
///
/// ```text
/// s_rl = leaky_relu_0.1(v_r . t_l)           alpha_rl = softmax_r(9 s_rl / |s_r.|)        c_l = unit(sum_r alpha_rl v_r)
/// x_l = unit(W_l (c_l - t_l)^2 + b_l)        x_0 = unit(W_g (v - t)^2 + b_g)              v, t: self-attended
/// SAF  g_p = sigmoid(norm(w . x_p + b))      x = unit(sum_p x_p g_p / sum_p g_p)
/// SGR  X <- relu(W softmax(W_q X (W_k X)^T) X + b), three times; x = the first row
/// score = sigmoid(w . x + b)
/// ```
///
/// SCAN (Lee et al., *Stacked cross attention for image-text matching*, ECCV 2018): see [`ScanConfig`].
///
/// # Shapes
/// Images `[N, R, D]` and sentences `[M, L, D]` to scores `[N, M]`. Only real words and regions take part.
///
/// # Parameters
/// SAF and SGR: `local`, `global`, `image_attention.*`, `text_attention.*`, `filter.*` or `graph.*`, `score`; the names of the
/// published checkpoints are in [`released_names`]. SCAN has none.
///
/// # Numerical notes
/// On the CPU in f32, SAF and SGR run in fused operations with their own backward pass. The same input gives the same bits
/// with any number of threads. On an NVIDIA card in f32 they run in kernels of `aeir-kernels`, as far as the sizes fit them; elsewhere,
/// and in f64, they are composed of candle's operations. A sentence without words keeps its global vector alone.
///
/// # Deviations from the released procedure
/// With [`UnitNorm::Released`] none. The batch statistics of SAF's normalisation are one sentence's, over the images of the
/// batch, and enter the running values sentence by sentence, as in the released loop.
///
/// # Parity file
/// `fixtures/parity/aecr/{saf,sgr}.safetensors`
///
/// # Example
/// ```
/// use aeir_encoders::{Fragments, HeadConfig, HeadKind, Mode, SimilarityHead};
/// use candle_core::{DType, Device, Tensor};
/// use candle_nn::VarBuilder;
///
/// let vb = VarBuilder::zeros(DType::F32, &Device::Cpu);
/// let head = SimilarityHead::new(&HeadConfig::new(HeadKind::ScanT2i, 2, 3), vb)?;
/// let image = Tensor::new(&[[[1f32, 0.], [0., 1.], [0.6, 0.8]]], &Device::Cpu)?;
/// let sentences = Tensor::new(&[[[0f32, 1.]], [[-1., 0.]]], &Device::Cpu)?;
/// let (images, sentences) = (Fragments::unpadded(image)?, Fragments::unpadded(sentences)?);
/// let scores = head.scores(&images, &sentences, &mut Mode::Evaluation)?.to_vec2::<f32>()?;
/// assert!(scores[0][0] > scores[0][1]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct SimilarityHead {
    config: HeadConfig,
    alignment: Option<AlignmentHead>,
}

/// The parts of SAF and SGR.
#[derive(Debug, Clone)]
struct AlignmentHead {
    image_attention: SelfAttention,
    text_attention: SelfAttention,
    local: Linear,
    global: Linear,
    reasoning: Reasoning,
    score: Linear,
    norm: UnitNorm,
}

/// What turns the alignment vectors of a pair into one.
#[derive(Debug, Clone)]
enum Reasoning {
    Filter(Filter),
    Graph(GraphReasoning),
}

/// Fragments with the self-attended vector of each item, where the head has one.
struct Prepared {
    fragments: Fragments,
    /// `[B, D]`.
    global: Option<Tensor>,
}

impl SimilarityHead {
    /// Takes the head's parameters from the builder.
    ///
    /// # Errors
    /// [`EncoderError::Argument`] for a zero size or a setting out of range; [`EncoderError::Tensor`] if the builder has no such
    /// parameters, or of another shape.
    pub fn new(config: &HeadConfig, vb: VarBuilder<'_>) -> Result<Self> {
        config.check()?;
        let alignment =
            if config.kind.has_parameters() { Some(AlignmentHead::new(config, vb)?) } else { None };
        Ok(Self { config: config.clone(), alignment })
    }

    /// The settings.
    #[must_use]
    pub fn config(&self) -> &HeadConfig {
        &self.config
    }

    /// Scores of all images against all sentences, larger is more similar.
    ///
    /// Every pair of the batch is in memory at once, with what a backward pass needs; for whole test sets see
    /// [`Self::scores_in_shards`]. One image against K sentences, or K images against one, is re-ranking.
    ///
    /// # Shapes
    /// `images [N, R, D]` and `sentences [M, L, D]`, rows of unit length, to `[N, M]`.
    ///
    /// # Errors
    /// [`EncoderError::Shape`] if D is not the head's, or R is not for SAF and SGR; [`EncoderError::Tensor`] from candle.
    pub fn scores(&self, images: &Fragments, sentences: &Fragments, mode: &mut Mode<'_>) -> Result<Tensor> {
        let images = self.prepare_images(images, mode)?;
        let sentences = self.prepare_sentences(sentences, mode)?;
        self.scores_of(&images, &sentences, mode.is_training())
    }

    /// The same head outside of any graph.
    fn detached(&self) -> Self {
        Self { config: self.config.clone(), alignment: self.alignment.as_ref().map(AlignmentHead::detached) }
    }

    fn prepare_images(&self, images: &Fragments, mode: &mut Mode<'_>) -> Result<Prepared> {
        let HeadConfig { dimension, regions, .. } = self.config;
        let regions = self.alignment.as_ref().map(|_| regions);
        check_fragments("head images", images, dimension, regions)?;
        self.prepare(images, mode, |head| &head.image_attention)
    }

    fn prepare_sentences(&self, sentences: &Fragments, mode: &mut Mode<'_>) -> Result<Prepared> {
        check_fragments("head sentences", sentences, self.config.dimension, None)?;
        self.prepare(sentences, mode, |head| &head.text_attention)
    }

    fn prepare(
        &self,
        fragments: &Fragments,
        mode: &mut Mode<'_>,
        branch: impl Fn(&AlignmentHead) -> &SelfAttention,
    ) -> Result<Prepared> {
        let fragments = masked::zeroed(fragments)?;
        let global = match &self.alignment {
            Some(head) => Some(branch(head).forward(&fragments, mode)?),
            None => None,
        };
        Ok(Prepared { fragments, global })
    }

    fn scores_of(&self, images: &Prepared, sentences: &Prepared, training: bool) -> Result<Tensor> {
        match (&self.alignment, &images.global, &sentences.global) {
            (Some(head), Some(image), Some(sentence)) => {
                head.scores((&images.fragments, image), (&sentences.fragments, sentence), training)
            }
            _ => self.config.scan.scores(
                self.config.kind == HeadKind::ScanT2i,
                self.config.norm,
                &images.fragments,
                &sentences.fragments,
            ),
        }
    }
}

impl AlignmentHead {
    fn new(config: &HeadConfig, vb: VarBuilder<'_>) -> Result<Self> {
        let HeadConfig { dimension, similarity_dimension: similarity, norm, dropout, .. } = *config;
        let reasoning = match config.kind {
            HeadKind::Sgr => {
                Reasoning::Graph(GraphReasoning::new(similarity, config.graph_steps, vb.pp("graph"))?)
            }
            _ => Reasoning::Filter(Filter::new(similarity, norm, vb.pp("filter"))?),
        };
        Ok(Self {
            image_attention: SelfAttention::new(
                dimension,
                Some(config.regions),
                dropout,
                norm,
                vb.pp("image_attention"),
            )?,
            text_attention: SelfAttention::new(dimension, None, dropout, norm, vb.pp("text_attention"))?,
            local: Linear::new(dimension, similarity, vb.pp("local"))?,
            global: Linear::new(dimension, similarity, vb.pp("global"))?,
            reasoning,
            score: Linear::new(similarity, 1, vb.pp("score"))?,
            norm,
        })
    }

    fn detached(&self) -> Self {
        Self {
            image_attention: self.image_attention.detached(),
            text_attention: self.text_attention.detached(),
            local: self.local.detached(),
            global: self.global.detached(),
            reasoning: match &self.reasoning {
                Reasoning::Filter(filter) => Reasoning::Filter(filter.detached()),
                Reasoning::Graph(graph) => Reasoning::Graph(graph.detached()),
            },
            score: self.score.detached(),
            norm: self.norm,
        }
    }

    /// Fragments and self-attended vectors to `[N, M]`.
    fn scores(
        &self,
        (images, image_global): (&Fragments, &Tensor),
        (sentences, sentence_global): (&Fragments, &Tensor),
        training: bool,
    ) -> Result<Tensor> {
        #[cfg(feature = "cuda")]
        if on_card::applies(images, sentences, self) {
            return on_card::scores(self, (images, image_global), (sentences, sentence_global), training);
        }
        let logits = if fused::applies(images, sentences, self) {
            fused::logits(self, (images, image_global), (sentences, sentence_global), training)?
        } else {
            self.composed_logits((images, image_global), (sentences, sentence_global), training)?
        };
        Ok(candle_nn::ops::sigmoid(&logits)?.t()?.contiguous()?)
    }

    /// Logits `[M, N]`, in candle's operations.
    fn composed_logits(
        &self,
        (images, image_global): (&Fragments, &Tensor),
        (sentences, sentence_global): (&Fragments, &Tensor),
        training: bool,
    ) -> Result<Tensor> {
        let local = alignment::local_vectors(images, sentences, &self.local, self.norm)?;
        let global = alignment::global_vectors(image_global, sentence_global, &self.global, self.norm)?;
        // The global vector comes first.
        let vectors = Tensor::cat(&[&global.unsqueeze(2)?, &local], 2)?;
        let mask = sentences.mask().to_dtype(vectors.dtype())?;
        let first = Tensor::ones((mask.dim(0)?, 1), mask.dtype(), mask.device())?;
        let mask = Tensor::cat(&[&first, &mask], 1)?;
        let read = match &self.reasoning {
            Reasoning::Filter(filter) => filter.forward(&vectors, &mask, training)?,
            Reasoning::Graph(graph) => graph.forward(&vectors, &mask.unsqueeze(1)?.unsqueeze(1)?)?,
        };
        Ok(self.score.forward(&read)?.squeeze(2)?)
    }
}

fn check_fragments(
    what: &'static str,
    fragments: &Fragments,
    dimension: usize,
    count: Option<usize>,
) -> Result<()> {
    let got = fragments.features().dims();
    let fits = matches!(got, &[batch, fragments, last] if batch > 0 && last == dimension
        && count.is_none_or(|count| count == fragments));
    if fits {
        return Ok(());
    }
    let count = count.map_or_else(|| "fragments".to_owned(), |count| count.to_string());
    Err(EncoderError::Shape {
        what,
        expected: format!("[one or more, {count}, {dimension}]"),
        got: got.to_vec(),
    })
}
