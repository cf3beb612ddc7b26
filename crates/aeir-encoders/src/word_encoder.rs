//! The paper's trainable text encoder: word embedding and bidirectional GRU.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use candle_nn::{Init, VarBuilder};
use serde::{Deserialize, Serialize};

use crate::dropout::{check_probability, dropout};
use crate::error::{EncoderError, Result};
use crate::fragments::Fragments;
use crate::gru::{Direction, Gru, Steps};
use crate::mode::Mode;
use crate::normalise::UnitNorm;
use crate::padded_rows::{Placed, padded_unit_mean};

/// Each parameter of a [`WordEncoder`] beside its name in the released checkpoints of VSE++, SCAN, SGRAF and AECR. The shapes
/// are the same; without the backward direction those with `_reverse` are absent.
pub const RELEASED_PARAMETER_NAMES: [(&str, &str); 9] = [
    ("words.weight", "txt_enc.embed.weight"),
    ("gru.forward.input.weight", "txt_enc.cap_rnn.weight_ih_l0"),
    ("gru.forward.input.bias", "txt_enc.cap_rnn.bias_ih_l0"),
    ("gru.forward.hidden.weight", "txt_enc.cap_rnn.weight_hh_l0"),
    ("gru.forward.hidden.bias", "txt_enc.cap_rnn.bias_hh_l0"),
    ("gru.backward.input.weight", "txt_enc.cap_rnn.weight_ih_l0_reverse"),
    ("gru.backward.input.bias", "txt_enc.cap_rnn.bias_ih_l0_reverse"),
    ("gru.backward.hidden.weight", "txt_enc.cap_rnn.weight_hh_l0_reverse"),
    ("gru.backward.hidden.bias", "txt_enc.cap_rnn.bias_hh_l0_reverse"),
];

/// Sentences as padded word ids.
///
/// # Shapes
/// `ids [B, L]` u32, padded with 0; `mask [B, L]` f32, 1 for a word and 0 for padding. L is the longest sentence, at least 1.
#[derive(Debug, Clone)]
pub struct WordBatch {
    ids: Tensor,
    mask: Tensor,
    /// The ids of real words, sentence by sentence.
    real: Vec<u32>,
    /// Where each real word stands in the flattened `[B, L]`.
    positions: Vec<u32>,
    /// Words of each sentence.
    lengths: Vec<usize>,
    steps: Arc<Steps>,
}

impl WordBatch {
    /// Pads sentences to the longest of them.
    ///
    /// A sentence may be empty: its row is all padding, and a [`WordEncoder`] makes zeros of it.
    ///
    /// # Errors
    /// [`EncoderError::Argument`] without any sentence, or for more words than a u32 counts.
    pub fn new<S: AsRef<[u32]>>(sentences: &[S], device: &Device) -> Result<Self> {
        let lengths: Vec<usize> = sentences.iter().map(|sentence| sentence.as_ref().len()).collect();
        let (batch, longest) = (lengths.len(), lengths.iter().copied().max().unwrap_or(0).max(1));
        let size = batch.saturating_mul(longest);
        if size == 0 || u32::try_from(size).is_err() {
            return Err(EncoderError::Argument {
                what: "sentences of a batch",
                expected: "at least one, and fewer than 2^32 words with padding".to_owned(),
                got: format!("{batch} sentences of up to {longest} words"),
            });
        }
        let (mut ids, mut mask) = (vec![0u32; size], vec![0f32; size]);
        let (mut real, mut positions) = (Vec::new(), Vec::new());
        let padded = ids.chunks_exact_mut(longest).zip(mask.chunks_exact_mut(longest));
        for ((row, (ids, mask)), sentence) in padded.enumerate().zip(sentences) {
            let sentence = sentence.as_ref();
            ids.iter_mut().zip(sentence).for_each(|(slot, id)| *slot = *id);
            mask.iter_mut().zip(sentence).for_each(|(slot, _)| *slot = 1.0);
            real.extend_from_slice(sentence);
            positions.extend((0..sentence.len()).map(|position| (row * longest + position) as u32));
        }
        Ok(Self {
            ids: Tensor::from_vec(ids, (batch, longest), device)?,
            mask: Tensor::from_vec(mask, (batch, longest), device)?,
            real,
            positions,
            steps: Arc::new(Steps::new(&lengths)),
            lengths,
        })
    }

    /// The sentences of several batches, in order.
    fn joined(batches: &[&Self]) -> Result<Self> {
        let mut sentences: Vec<&[u32]> = Vec::new();
        for batch in batches {
            let mut rest = batch.real.as_slice();
            for length in &batch.lengths {
                let (sentence, after) = rest.split_at_checked(*length).unwrap_or((rest, &[]));
                sentences.push(sentence);
                rest = after;
            }
        }
        let device = batches.first().map_or(&Device::Cpu, |batch| batch.ids.device());
        Self::new(&sentences, device)
    }

    /// The ids, `[B, L]` u32, 0 where there is padding.
    #[must_use]
    pub fn ids(&self) -> &Tensor {
        &self.ids
    }

    /// The mask, `[B, L]` f32, 1 for a word and 0 for padding.
    #[must_use]
    pub fn mask(&self) -> &Tensor {
        &self.mask
    }
}

/// What a [`WordEncoder`] is made of.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WordEncoderConfig {
    /// Rows of the embedding table V: [`crate::Vocabulary::size`].
    pub vocabulary_size: usize,
    /// Dimension W of a word's embedding.
    pub word_dimension: usize,
    /// Joint dimension D, the GRU's units in each direction.
    pub dimension: usize,
    /// Probability of dropping a value of a word's embedding.
    pub dropout: f32,
    /// Whether a second GRU reads the sentence from its end.
    pub bidirectional: bool,
    /// How the output rows become unit vectors.
    pub norm: UnitNorm,
}

impl WordEncoderConfig {
    /// The paper's setting: W = 300, D = 1024, dropout 0.4, both directions.
    #[must_use]
    pub fn paper(vocabulary_size: usize) -> Self {
        Self {
            vocabulary_size,
            word_dimension: 300,
            dimension: 1024,
            dropout: 0.4,
            bidirectional: true,
            norm: UnitNorm::default(),
        }
    }
}

/// Word embedding, dropout, bidirectional GRU, mean of the directions, unit norm.
///
/// Only real words are computed: each direction starts with zeros at a sentence's own first or last word, and padding comes
/// out as exact zeros, whatever the length of the longest sentence.
///
/// # Equation
/// `y_t = norm((f_t + b_t) / 2)`, with `f` and `b` the states of two GRUs that read the embedded words from the start and from
/// the end. Faghri et al., *VSE++*, BMVC 2018; Lee et al., *Stacked cross attention*, ECCV 2018; Diao et al., *Similarity
/// reasoning and filtration*, AAAI 2021.
///
/// ```text
/// r = sigmoid(W_r x + b_r + U_r h + c_r)      z = sigmoid(W_z x + b_z + U_z h + c_z)
/// n = tanh(W_n x + b_n + r (U_n h + c_n))     h' = (1 - z) n + z h
/// ```
///
/// # Shapes
/// [`WordBatch`] `[B, L]` to [`Fragments`] `[B, L, D]`.
///
/// # Parameters
/// `words.weight [V, W]` from `U(-0.1, 0.1)`; for each direction `gru.{forward,backward}.input.{weight [3D, W],bias [3D]}` and
/// `gru.{forward,backward}.hidden.{weight [3D, D],bias [3D]}`, rows in the order r, z, n, from `U(-1/sqrt(D), 1/sqrt(D))`, which
/// is PyTorch's initialisation. [`RELEASED_PARAMETER_NAMES`] has the names in released checkpoints.
///
/// # Numerical notes
/// Rows of padding never enter the computation, so the norm of a zero row is never differentiated. Dropout draws its mask for
/// real words only: padding does not change it.
///
/// # Errors
/// [`EncoderError::Argument`] for a word id the table does not have; [`EncoderError::Tensor`] from candle.
///
/// # Deviations from the released procedure
/// None with [`UnitNorm::Released`], but for which values the random mask drops.
///
/// # Parity file
/// `fixtures/parity/aecr/{saf,sgr}.safetensors` (`eval.{source,target}.text_emb`)
///
/// # Example
/// ```
/// use aeir_encoders::{Mode, Vocabulary, WordBatch, WordEncoder, WordEncoderConfig};
/// use candle_core::{DType, Device};
/// use candle_nn::VarBuilder;
///
/// let sentences = ["A red ball on grass.", "A kite."];
/// let vocabulary = Vocabulary::build(sentences.into_iter(), 1);
/// let ids: Vec<_> = sentences.iter().map(|sentence| vocabulary.ids(sentence)).collect();
/// let words = WordBatch::new(&ids, &Device::Cpu)?;
///
/// let config = WordEncoderConfig { dimension: 16, ..WordEncoderConfig::paper(vocabulary.size()) };
/// let encoder = WordEncoder::new(config, VarBuilder::zeros(DType::F32, &Device::Cpu))?;
/// let fragments = encoder.forward(&words, &mut Mode::Evaluation)?;
/// assert_eq!(fragments.features().dims(), [2, 8, 16]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct WordEncoder {
    config: WordEncoderConfig,
    words: Tensor,
    forward: Gru,
    backward: Option<Gru>,
}

impl WordEncoder {
    /// Takes the parameters from the builder.
    ///
    /// # Errors
    /// [`EncoderError::Argument`] for a zero dimension or a dropout probability outside `[0, 1)`; [`EncoderError::Tensor`] if
    /// the builder has no such parameters, or of another shape.
    pub fn new(config: WordEncoderConfig, vb: VarBuilder<'_>) -> Result<Self> {
        check_probability(config.dropout)?;
        let WordEncoderConfig { vocabulary_size, word_dimension, dimension, bidirectional, .. } = config;
        if vocabulary_size == 0 || word_dimension == 0 || dimension == 0 {
            return Err(EncoderError::Argument {
                what: "word encoder dimensions",
                expected: "positive vocabulary size, word dimension and dimension".to_owned(),
                got: format!("{vocabulary_size}, {word_dimension}, {dimension}"),
            });
        }
        let init = Init::Uniform { lo: -0.1, up: 0.1 };
        let words = vb.get_with_hints((vocabulary_size, word_dimension), "words.weight", init)?;
        let gru =
            |name: &str, direction| Gru::new(word_dimension, dimension, direction, vb.pp("gru").pp(name));
        let forward = gru("forward", Direction::Forward)?;
        let backward = bidirectional.then(|| gru("backward", Direction::Backward)).transpose()?;
        Ok(Self { config, words, forward, backward })
    }

    /// What the encoder is made of.
    #[must_use]
    pub fn config(&self) -> &WordEncoderConfig {
        &self.config
    }

    /// Encodes sentences.
    ///
    /// # Errors
    /// See the type's documentation.
    pub fn forward(&self, words: &WordBatch, mode: &mut Mode<'_>) -> Result<Fragments> {
        let states = self.states(words, mode)?;
        self.fragments(words, states.as_ref(), 0)
    }

    /// Encodes several batches in one pass: the recurrent weights are read once a step for all of them.
    ///
    /// Each comes out as from [`Self::forward`], but for which values dropout drops.
    ///
    /// # Errors
    /// See the type's documentation.
    pub fn forward_all(&self, batches: &[&WordBatch], mode: &mut Mode<'_>) -> Result<Vec<Fragments>> {
        if let [only] = batches {
            return Ok(vec![self.forward(only, mode)?]);
        }
        let states = self.states(&WordBatch::joined(batches)?, mode)?;
        let mut start = 0;
        batches
            .iter()
            .map(|batch| {
                let fragments = self.fragments(batch, states.as_ref(), start);
                start += batch.real.len();
                fragments
            })
            .collect()
    }

    /// The states of both directions, `[N, D]` of the real words; of one alone twice. None where there are no words.
    fn states(&self, words: &WordBatch, mode: &mut Mode<'_>) -> Result<Option<[Tensor; 2]>> {
        if words.real.is_empty() {
            return Ok(None);
        }
        let embedded = dropout(&self.embed(words)?, self.config.dropout, mode)?;
        let states = match &self.backward {
            Some(backward) => Gru::forward_both([&self.forward, backward], &embedded, &words.steps)?,
            None => {
                let states = self.forward.forward(&embedded, &words.steps)?;
                [states.clone(), states]
            }
        };
        Ok(Some(states))
    }

    /// The fragments of a batch whose words' states begin at row `start`.
    fn fragments(&self, words: &WordBatch, states: Option<&[Tensor; 2]>, start: usize) -> Result<Fragments> {
        let padded = words.ids.dims2()?;
        let Some([forward, backward]) = states.filter(|_| !words.real.is_empty()) else {
            let shape = (padded.0, padded.1, self.config.dimension);
            let zeros = Tensor::zeros(shape, self.words.dtype(), self.words.device())?;
            return Fragments::new(zeros, words.mask.clone());
        };
        let rows = start..start + words.real.len();
        let placed = Placed { rows, positions: &words.positions, padded };
        let features = padded_unit_mean(forward, backward, &placed, self.config.norm)?;
        Fragments::new(features, words.mask.clone())
    }

    /// The embeddings of the real words, `[N, W]`.
    fn embed(&self, words: &WordBatch) -> Result<Tensor> {
        let vocabulary_size = self.config.vocabulary_size;
        if let Some(id) = words.real.iter().find(|id| **id as usize >= vocabulary_size) {
            return Err(EncoderError::Argument {
                what: "word id",
                expected: format!("below {vocabulary_size}, the rows of the embedding table"),
                got: id.to_string(),
            });
        }
        let ids = Tensor::from_slice(&words.real, words.real.len(), self.words.device())?;
        #[cfg(feature = "cuda")]
        if aeir_kernels::takes(&[&self.words]) {
            return Ok(aeir_kernels::chosen_rows(&self.words, &ids)?);
        }
        Ok(self.words.index_select(&ids, 0)?)
    }
}
