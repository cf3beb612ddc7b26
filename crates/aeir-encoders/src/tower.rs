//! Two towers into one joint space, and the head that compares what they give.

use candle_core::Tensor;
use candle_nn::{Init, VarBuilder};
use serde::{Deserialize, Serialize};

use crate::heads::ScanConfig;
use crate::memory::{MemoryConfig, PairMemory};
use crate::rehearsal::Product;
use crate::{
    Embedded, Encoded, EncoderError, HeadConfig, HeadKind, Items, Mode, Precision, Projection,
    SimilarityHead, UnitNorm, WordBatch, WordEncoder, WordEncoderConfig,
};

/// How an image and a sentence are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Head {
    /// The dot product of pooled unit vectors: can be indexed.
    #[default]
    Cosine,
    /// Similarity attention filtration (Diao et al., AAAI 2021).
    Saf,
    /// Similarity graph reasoning (Diao et al., AAAI 2021).
    Sgr,
    /// SAF and SGR, each with towers of its own, averaged.
    Sgraf,
    /// Stacked cross attention, words attend to regions (Lee et al., ECCV 2018).
    ScanT2i,
    /// Stacked cross attention, regions attend to words.
    ScanI2t,
}

impl Head {
    /// As in files and flags.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cosine => "cosine",
            Self::Saf => "saf",
            Self::Sgr => "sgr",
            Self::Sgraf => "sgraf",
            Self::ScanT2i => "scan-t2i",
            Self::ScanI2t => "scan-i2t",
        }
    }

    /// Whether it looks at fragments of both sides at once, so that it can only re-rank.
    #[must_use]
    pub fn is_cross_attentive(self) -> bool {
        self != Self::Cosine
    }

    /// The parameter prefix and the head of each member.
    fn members(self) -> &'static [(&'static str, Option<HeadKind>)] {
        match self {
            Self::Cosine => &[("", None)],
            Self::Saf => &[("", Some(HeadKind::Saf))],
            Self::Sgr => &[("", Some(HeadKind::Sgr))],
            Self::ScanT2i => &[("", Some(HeadKind::ScanT2i))],
            Self::ScanI2t => &[("", Some(HeadKind::ScanI2t))],
            Self::Sgraf => &[("saf", Some(HeadKind::Saf)), ("sgr", Some(HeadKind::Sgr))],
        }
    }
}

/// Sizes of the cross-attentive heads.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HeadOptions {
    /// S: length of a similarity vector.
    pub similarity_dimension: usize,
    /// Steps of graph reasoning.
    pub graph_steps: usize,
    /// Dropout in both self-attention branches.
    pub dropout: f32,
    /// Settings of the SCAN heads.
    pub scan: ScanConfig,
}

impl Default for HeadOptions {
    fn default() -> Self {
        Self { similarity_dimension: 256, graph_steps: 3, dropout: 0.4, scan: ScanConfig::default() }
    }
}

/// What an image comes as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum ImageInput {
    /// One vector.
    #[default]
    Pooled,
    /// This many regions or grid cells, the same for every image.
    Fragments(usize),
}

/// What a sentence comes as.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum SentenceInput {
    /// One vector.
    #[default]
    Pooled,
    /// The tokens' vectors of a frozen encoder.
    Fragments,
    /// Words of a vocabulary, embedded and read by a recurrent network that is trained.
    Words(WordOptions),
}

/// The trained word encoder.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WordOptions {
    /// Length of a word vector.
    pub word_dimension: usize,
    /// Dropout on the word vectors.
    pub dropout: f32,
    /// Read both ways and average, or forwards alone.
    pub bidirectional: bool,
}

impl Default for WordOptions {
    fn default() -> Self {
        Self { word_dimension: 300, dropout: 0.4, bidirectional: true }
    }
}

/// Sizes, inputs and head of a [`DualEncoder`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DualEncoderConfig {
    /// F of the image features.
    pub image_dimension: usize,
    /// F of the sentence features; for words the size of the vocabulary.
    pub sentence_dimension: usize,
    /// D of the joint space.
    pub embedding_dimension: usize,
    /// Probability of dropping an input feature in training.
    pub input_dropout: f32,
    /// Width of a hidden layer with ReLU before each projection of features; 0 for none.
    #[serde(default)]
    pub hidden_dimension: usize,
    /// What an image comes as.
    #[serde(default)]
    pub image_input: ImageInput,
    /// What a sentence comes as.
    #[serde(default)]
    pub sentence_input: SentenceInput,
    /// How both are compared.
    #[serde(default)]
    pub head: Head,
    /// Sizes of a cross-attentive head.
    #[serde(default)]
    pub head_options: HeadOptions,
    /// How rows become unit vectors.
    #[serde(default)]
    pub norm: UnitNorm,
    /// Whether canonical directions follow the projections in evaluation; training then sees the projections as they
    /// are, not normalised (deep canonical correlation analysis).
    #[serde(default)]
    pub canonical: bool,
    /// Whether the head's scores alone were trained: the pooled vectors then find no candidates worth re-ranking.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub head_only: bool,
    /// Remembered source pairs that take part in evaluation; training sees the towers alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<MemoryConfig>,
}

impl DualEncoderConfig {
    /// Two linear towers on pooled features, compared by cosine.
    #[must_use]
    pub fn pooled(image_dimension: usize, sentence_dimension: usize, embedding_dimension: usize) -> Self {
        Self {
            image_dimension,
            sentence_dimension,
            embedding_dimension,
            input_dropout: 0.0,
            hidden_dimension: 0,
            image_input: ImageInput::Pooled,
            sentence_input: SentenceInput::Pooled,
            head: Head::Cosine,
            head_options: HeadOptions::default(),
            norm: UnitNorm::Smooth,
            canonical: false,
            head_only: false,
            memory: None,
        }
    }

    /// Length of a pooled vector: D times the members, and the code of a memory.
    #[must_use]
    pub fn pooled_dimension(&self) -> usize {
        self.trained_dimension() + self.memory.map_or(0, |memory| memory.dimension())
    }

    /// Length of a pooled vector in training, when a memory takes no part: D times the members.
    #[must_use]
    pub fn trained_dimension(&self) -> usize {
        self.embedding_dimension * self.head.members().len()
    }

    fn head_config(&self, kind: HeadKind) -> HeadConfig {
        let HeadOptions { similarity_dimension, graph_steps, dropout, scan } = self.head_options;
        let regions = match self.image_input {
            ImageInput::Fragments(count) => count,
            ImageInput::Pooled => 1,
        };
        HeadConfig {
            kind,
            dimension: self.embedding_dimension,
            regions,
            similarity_dimension,
            graph_steps,
            dropout,
            norm: self.norm,
            scan,
        }
    }

    fn check(&self) -> Result<(), EncoderError> {
        let pooled = self.image_input == ImageInput::Pooled || self.sentence_input == SentenceInput::Pooled;
        if self.head.is_cross_attentive() && pooled {
            return Err(EncoderError::Argument {
                what: "inputs of a cross-attentive head",
                expected: "fragments of images and of sentences".into(),
                got: format!("{:?} images, {:?} sentences", self.image_input, self.sentence_input),
            });
        }
        let words = matches!(self.sentence_input, SentenceInput::Words(_));
        if self.memory.is_some() && (self.head.is_cross_attentive() || words) {
            return Err(EncoderError::Argument {
                what: "an encoder with a memory of pairs",
                expected: "the cosine, and frozen features of both modalities".into(),
                got: format!("head `{}`, {:?} sentences", self.head.as_str(), self.sentence_input),
            });
        }
        Ok(())
    }
}

/// An image tower, a sentence tower, the head that compares them, and the temperature that scales cosines.
///
/// Parameters: `{image,sentence}.projection.{weight,bias}`, with a hidden layer `{image,sentence}.hidden.*`, for words
/// `sentence.words.*` in place of the projection; `head.*`; the scalar `log_scale`, the natural logarithm of the inverse
/// temperature. The two members of [`Head::Sgraf`] have theirs under `saf.` and `sgr.`. A [`PairMemory`] adds its `memory_*`.
pub struct DualEncoder {
    config: DualEncoderConfig,
    members: Vec<Member>,
    log_scale: Tensor,
}

struct Member {
    image: FeatureTower,
    sentence: SentenceTower,
    head: Option<SimilarityHead>,
    memory: Option<PairMemory>,
}

impl DualEncoder {
    /// Creates or loads the parameters through `builder`. `temperature` is the initial one.
    ///
    /// # Errors
    /// When the builder has no such tensor, or one of another shape, or the head needs fragments and the input has none.
    pub fn new(
        config: DualEncoderConfig,
        temperature: f64,
        builder: VarBuilder<'_>,
    ) -> Result<Self, EncoderError> {
        config.check()?;
        let members = config
            .head
            .members()
            .iter()
            .map(|(prefix, kind)| {
                let builder = if prefix.is_empty() { builder.clone() } else { builder.pp(prefix) };
                Member::new(&config, *kind, &builder)
            })
            .collect::<Result<Vec<_>, _>>()?;
        let log_scale = builder.get_with_hints((), "log_scale", Init::Const(-temperature.ln()))?;
        Ok(Self { config, members, log_scale })
    }

    /// Multiplies features in this precision in training. The device must support it.
    #[must_use]
    pub fn with_precision(mut self, precision: Precision) -> Self {
        for member in &mut self.members {
            member.image.set_precision(precision);
            if let SentenceTower::Features(tower) = &mut member.sentence {
                tower.set_precision(precision);
            }
        }
        self
    }

    /// Images into the joint space.
    ///
    /// # Errors
    /// When the items are not what the configuration says, or F differs.
    pub fn encode_images(&self, images: &Items, mode: &mut Mode<'_>) -> Result<Encoded, EncoderError> {
        let encode = |member: &Member| {
            let mut embedded = member.image.encode(images, &self.config, mode)?;
            if let Some(memory) = member.memory(mode) {
                embedded.pooled = memory.join_images(images, &embedded.pooled)?;
            }
            Ok::<_, EncoderError>(embedded)
        };
        Ok(Encoded { members: self.members.iter().map(encode).collect::<Result<_, _>>()? })
    }

    /// Sentences into the joint space.
    ///
    /// # Errors
    /// When the items are not what the configuration says, or F differs.
    pub fn encode_sentences(&self, sentences: &Items, mode: &mut Mode<'_>) -> Result<Encoded, EncoderError> {
        let encode = |member: &Member| match &member.sentence {
            SentenceTower::Features(tower) => {
                let mut embedded = tower.encode(sentences, &self.config, mode)?;
                if let Some(memory) = member.memory(mode) {
                    embedded.pooled = memory.join_sentences(sentences, &embedded.pooled)?;
                }
                Ok(embedded)
            }
            SentenceTower::Words(words) => match sentences {
                Items::Words(batch) => Embedded::of_fragments(words.forward(batch, mode)?, self.config.norm),
                other => Err(wrong_items("words of the model's vocabulary", other)),
            },
        };
        Ok(Encoded { members: self.members.iter().map(encode).collect::<Result<_, _>>()? })
    }

    /// Several batches of sentences into the joint space; words of all of them in one pass.
    ///
    /// # Errors
    /// As [`Self::encode_sentences`].
    pub fn encode_sentence_batches(
        &self,
        batches: &[&Items],
        mode: &mut Mode<'_>,
    ) -> Result<Vec<Encoded>, EncoderError> {
        fn words<'a>(items: &&'a Items) -> Option<&'a WordBatch> {
            match items {
                Items::Words(batch) => Some(batch),
                _ => None,
            }
        }
        let Some(words) = batches.iter().map(words).collect::<Option<Vec<&WordBatch>>>() else {
            return batches.iter().map(|items| self.encode_sentences(items, mode)).collect();
        };
        let mut encoded: Vec<Encoded> = batches.iter().map(|_| Encoded { members: Vec::new() }).collect();
        for member in &self.members {
            let SentenceTower::Words(tower) = &member.sentence else {
                return batches.iter().map(|items| self.encode_sentences(items, mode)).collect();
            };
            for (encoded, fragments) in encoded.iter_mut().zip(tower.forward_all(&words, mode)?) {
                encoded.members.push(Embedded::of_fragments(fragments, self.config.norm)?);
            }
        }
        Ok(encoded)
    }

    /// What the projections of features give in evaluation, `[B, D]` each, before canonical directions and
    /// normalisation; of the first member.
    ///
    /// # Errors
    /// When the items are not pooled features.
    pub fn projections(&self, images: &Items, sentences: &Items) -> Result<(Tensor, Tensor), EncoderError> {
        let towers = self.members.first().map(|member| (&member.image, &member.sentence));
        match (towers, images, sentences) {
            (
                Some((image, SentenceTower::Features(sentence))),
                Items::Pooled(images),
                Items::Pooled(sentences),
            ) => Ok((
                image.projected(images, &mut Mode::Evaluation)?,
                sentence.projected(sentences, &mut Mode::Evaluation)?,
            )),
            _ => Err(wrong_items("one vector an item", images)),
        }
    }

    /// Every member's scores of all images against all sentences, `[N, M]` each.
    ///
    /// # Errors
    /// When sizes do not fit.
    pub fn member_scores(
        &self,
        images: &Encoded,
        sentences: &Encoded,
        mode: &mut Mode<'_>,
    ) -> Result<Vec<Tensor>, EncoderError> {
        let parts = self.members.iter().zip(&images.members).zip(&sentences.members);
        parts
            .map(|((member, image), sentence)| match (&member.head, &image.fragments, &sentence.fragments) {
                (Some(head), Some(regions), Some(words)) => head.scores(regions, words, mode),
                _ => Ok(image.pooled.product(&sentence.pooled.t()?)?),
            })
            .collect()
    }

    /// Scores of all images against all sentences, `[N, M]`: the head's, or the mean over the members of an ensemble.
    ///
    /// # Errors
    /// When sizes do not fit.
    pub fn scores(
        &self,
        images: &Encoded,
        sentences: &Encoded,
        mode: &mut Mode<'_>,
    ) -> Result<Tensor, EncoderError> {
        let scores = self.member_scores(images, sentences, mode)?;
        match scores.as_slice() {
            [only] => Ok(only.clone()),
            all => Ok((Tensor::stack(all, 0)?.sum(0)? / all.len() as f64)?),
        }
    }

    /// The heads with each member's place; none for the cosine.
    pub fn heads(&self) -> impl Iterator<Item = (usize, &SimilarityHead)> {
        self.members.iter().enumerate().filter_map(|(index, member)| Some((index, member.head.as_ref()?)))
    }

    /// Logarithm of the inverse temperature, a scalar.
    pub fn log_scale(&self) -> &Tensor {
        &self.log_scale
    }

    /// Sizes, inputs and head.
    pub fn config(&self) -> &DualEncoderConfig {
        &self.config
    }
}

impl Member {
    fn new(
        config: &DualEncoderConfig,
        kind: Option<HeadKind>,
        builder: &VarBuilder<'_>,
    ) -> Result<Self, EncoderError> {
        let sentence =
            match config.sentence_input {
                SentenceInput::Pooled | SentenceInput::Fragments => SentenceTower::Features(
                    FeatureTower::new(config.sentence_dimension, config, builder.pp("sentence"))?,
                ),
                SentenceInput::Words(WordOptions { word_dimension, dropout, bidirectional }) => {
                    let words = WordEncoderConfig {
                        vocabulary_size: config.sentence_dimension,
                        word_dimension,
                        dimension: config.embedding_dimension,
                        dropout,
                        bidirectional,
                        norm: config.norm,
                    };
                    SentenceTower::Words(Box::new(WordEncoder::new(words, builder.pp("sentence"))?))
                }
            };
        let head = kind
            .map(|kind| SimilarityHead::new(&config.head_config(kind), builder.pp("head")))
            .transpose()?;
        let image = FeatureTower::new(config.image_dimension, config, builder.pp("image"))?;
        let dimensions = [config.image_dimension, config.sentence_dimension];
        let memory = config.memory.map(|memory| PairMemory::new(memory, dimensions, builder)).transpose()?;
        Ok(Self { image, sentence, head, memory })
    }

    /// The memory, where there is one and it takes part.
    fn memory(&self, mode: &Mode<'_>) -> Option<&PairMemory> {
        self.memory.as_ref().filter(|_| !mode.is_training())
    }
}

enum SentenceTower {
    Features(FeatureTower),
    Words(Box<WordEncoder>),
}

/// From features of a frozen backbone to the joint space.
struct FeatureTower {
    hidden: Option<Projection>,
    projection: Projection,
    canonical: Option<Canonical>,
}

/// A linear map that is computed, not trained.
struct Canonical {
    weight: Tensor,
    bias: Tensor,
}

impl FeatureTower {
    fn new(input: usize, config: &DualEncoderConfig, builder: VarBuilder<'_>) -> Result<Self, EncoderError> {
        let dimension = config.embedding_dimension;
        let (hidden, width, dropout) = match config.hidden_dimension {
            0 => (None, input, config.input_dropout),
            width => {
                let hidden = Projection::new(input, width, config.input_dropout, builder.pp("hidden"))?;
                (Some(hidden), width, 0.0)
            }
        };
        let canonical = config
            .canonical
            .then(|| {
                Ok::<_, EncoderError>(Canonical {
                    weight: builder.get_with_hints(
                        (dimension, dimension),
                        "canonical_weight",
                        Init::Const(0.0),
                    )?,
                    bias: builder.get_with_hints(dimension, "canonical_bias", Init::Const(0.0))?,
                })
            })
            .transpose()?;
        let projection = Projection::new(width, dimension, dropout, builder.pp("projection"))?;
        Ok(Self { hidden, projection, canonical })
    }

    fn set_precision(&mut self, precision: Precision) {
        self.hidden = self.hidden.take().map(|hidden| hidden.with_precision(precision));
        self.projection = self.projection.clone().with_precision(precision);
    }

    fn encode(
        &self,
        items: &Items,
        config: &DualEncoderConfig,
        mode: &mut Mode<'_>,
    ) -> Result<Embedded, EncoderError> {
        match items {
            Items::Pooled(features) => {
                let pooled = self.project(features, mode)?;
                let raw = config.canonical && mode.is_training();
                let pooled = if raw { pooled } else { config.norm.apply(&pooled)? };
                Ok(Embedded { fragments: None, pooled })
            }
            Items::Fragments(fragments) => {
                let projected = config.norm.apply(&self.project(fragments.features(), mode)?)?;
                Embedded::of_fragments(fragments.with_features(projected)?, config.norm)
            }
            Items::Words(_) => Err(wrong_items("features", items)),
        }
    }

    fn projected(&self, features: &Tensor, mode: &mut Mode<'_>) -> Result<Tensor, EncoderError> {
        match &self.hidden {
            Some(hidden) => self.projection.forward(&hidden.forward(features, mode)?.relu()?, mode),
            None => self.projection.forward(features, mode),
        }
    }

    fn project(&self, features: &Tensor, mode: &mut Mode<'_>) -> Result<Tensor, EncoderError> {
        let projected = self.projected(features, mode)?;
        match &self.canonical {
            Some(Canonical { weight, bias }) if !mode.is_training() => {
                Ok(projected.product(&weight.detach())?.broadcast_add(&bias.detach())?)
            }
            _ => Ok(projected),
        }
    }
}

fn wrong_items(expected: &str, got: &Items) -> EncoderError {
    EncoderError::Argument { what: "items to encode", expected: expected.into(), got: got.kind().into() }
}
