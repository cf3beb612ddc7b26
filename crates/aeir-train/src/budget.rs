//! What a training takes of the memory that it may have, estimated before it begins.

use std::fmt;
use std::str::FromStr;

use aeir_encoders::{DualEncoderConfig, Head, ImageInput, SentenceInput};
use serde::{Deserialize, Serialize};

use crate::config::TrainConfig;
use crate::error::{Result, TrainError};
use crate::plan::Memory;

/// Units of [`Bytes`], largest first, with what people type for them.
const UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("TB", 1_000_000_000_000),
    ("GiB", 1 << 30),
    ("GB", 1_000_000_000),
    ("MiB", 1 << 20),
    ("MB", 1_000_000),
    ("KiB", 1 << 10),
    ("kB", 1_000),
    ("B", 1),
];

/// An amount of memory, such as `8GiB` or `1.5 GB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    /// In the largest binary unit that divides it, else with one decimal.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let binary = || UNITS.iter().filter(|(name, _)| name.len() != 2);
        if let Some((name, unit)) = binary().find(|(_, unit)| self.0 >= *unit && self.0.is_multiple_of(*unit))
            && self.0 / unit < 1024
        {
            return write!(f, "{}{name}", self.0 / unit);
        }
        let (name, unit) = binary().find(|(_, unit)| self.0 >= *unit).copied().unwrap_or(("B", 1));
        write!(f, "{:.1}{name}", self.0 as f64 / unit as f64)
    }
}

impl FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let wrong = || format!("expected an amount such as 8GiB or 500MB, got `{text}`");
        let trimmed = text.trim();
        let (name, unit) = UNITS
            .iter()
            .find(|(name, _)| {
                trimmed.len() > name.len()
                    && trimmed
                        .get(trimmed.len() - name.len()..)
                        .is_some_and(|end| end.eq_ignore_ascii_case(name))
            })
            .ok_or_else(wrong)?;
        let number: f64 = trimmed
            .get(..trimmed.len() - name.len())
            .unwrap_or_default()
            .trim()
            .parse()
            .map_err(|_| wrong())?;
        let bytes = number * *unit as f64;
        if !(bytes >= 1.0 && bytes < 2f64.powi(63)) {
            return Err(wrong());
        }
        Ok(Self(bytes as u64))
    }
}

impl TryFrom<String> for Bytes {
    type Error = String;

    fn try_from(text: String) -> std::result::Result<Self, String> {
        text.parse()
    }
}

impl From<Bytes> for String {
    /// Exact, so that what is read is what was written.
    fn from(bytes: Bytes) -> Self {
        let (name, unit) =
            UNITS.iter().find(|(_, unit)| bytes.0.is_multiple_of(*unit)).copied().unwrap_or(("B", 1));
        format!("{}{name}", bytes.0 / unit)
    }
}

/// The items of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StepSizes {
    /// Source pairs, labelled ones and anchors with them.
    pub(crate) pairs: usize,
    /// Target images and target sentences, where a step has such.
    pub(crate) target: [usize; 2],
    /// Words or tokens of a sentence.
    pub(crate) words: usize,
    /// Batches of a step.
    pub(crate) accumulated: usize,
}

/// Bytes that a step takes at once: the graph of one batch, and the batches that wait for theirs.
///
/// On another device than the CPU heads are `composed`, and the next step's batches are loaded meanwhile.
pub(crate) fn step_bytes(encoder: &DualEncoderConfig, sizes: StepSizes, composed: bool) -> u64 {
    let waiting = sizes.accumulated.saturating_sub(1) + if composed { sizes.accumulated } else { 0 };
    graph_bytes(encoder, sizes, composed) + waiting as u64 * batch_bytes(encoder, sizes)
}

/// Bytes of a batch's features, masks and words, before anything is computed of them.
fn batch_bytes(encoder: &DualEncoderConfig, sizes: StepSizes) -> u64 {
    let image = match encoder.image_input {
        ImageInput::Pooled => encoder.image_dimension,
        ImageInput::Fragments(regions) => regions.max(1) * (encoder.image_dimension + 1),
    };
    let sentence = match encoder.sentence_input {
        SentenceInput::Pooled => encoder.sentence_dimension,
        SentenceInput::Fragments => sizes.words.max(1) * (encoder.sentence_dimension + 1),
        // A word's number and its mask.
        SentenceInput::Words(_) => sizes.words.max(1) * 2,
    };
    let [target_images, target_sentences] = sizes.target;
    let values = (sizes.pairs + target_images) * image + (sizes.pairs + target_sentences) * sentence;
    (values * size_of::<f32>()) as u64
}

/// Bytes that one batch's graph takes at once: what the forward pass keeps for the backward one, and the largest part of the
/// gradients.
///
/// An estimate, from the sizes of the intermediate tensors. Where `composed`, the heads are made of candle's operations, which keep what the
/// fused ones compute twice. docs/training.md compares it with what runs took.
fn graph_bytes(encoder: &DualEncoderConfig, sizes: StepSizes, composed: bool) -> u64 {
    let regions = match encoder.image_input {
        ImageInput::Pooled => 1,
        ImageInput::Fragments(regions) => regions.max(1),
    };
    let words = if encoder.sentence_input == SentenceInput::Pooled { 1 } else { sizes.words.max(1) };
    let [target_images, target_sentences] = sizes.target;
    let members = members(encoder.head).len();
    let (images, sentences) = (sizes.pairs + target_images, sizes.pairs + target_sentences);
    let towers = images * regions * image_values(encoder) + sentences * words * sentence_values(encoder);
    let pairs = sizes.pairs * sizes.pairs * pair_values(encoder, regions, words, composed)
        // Target items are compared with the source's by cosines of fragments.
        + (target_images + target_sentences) * sizes.pairs * regions * words * usize::from(target_images > 0);
    let values = towers * members + pairs;
    (values * size_of::<f32>()) as u64 * 3 / 2
}

/// Values that the tower keeps of a region.
fn image_values(encoder: &DualEncoderConfig) -> usize {
    feature_values(encoder, encoder.image_dimension)
}

/// Values that the tower keeps of a word.
fn sentence_values(encoder: &DualEncoderConfig) -> usize {
    match encoder.sentence_input {
        SentenceInput::Words(words) => {
            let directions = if words.bidirectional { 2 } else { 1 };
            // The word and the word after dropout; gates before and after, and the states, each way; the average, and unit vectors.
            2 * words.word_dimension
                + directions * 7 * encoder.embedding_dimension
                + 3 * encoder.embedding_dimension
        }
        SentenceInput::Pooled | SentenceInput::Fragments => {
            feature_values(encoder, encoder.sentence_dimension)
        }
    }
}

/// The features, and again after dropout; the hidden layer before and after its ReLU; the projection, and unit vectors.
fn feature_values(encoder: &DualEncoderConfig, dimension: usize) -> usize {
    let dropped = usize::from(encoder.input_dropout > 0.0);
    (1 + dropped) * dimension + 2 * encoder.hidden_dimension + 3 * encoder.embedding_dimension
}

/// Values that the head keeps of an image and a sentence.
fn pair_values(encoder: &DualEncoderConfig, regions: usize, words: usize, composed: bool) -> usize {
    let (dimension, similarity) = (encoder.embedding_dimension, encoder.head_options.similarity_dimension);
    // Cosines, and what softmax and ranking make of them.
    let scores = 6;
    // Fused, SAF and SGR compute attention and reasoning anew for the gradient.
    let attention = words * regions * if composed { 8 } else { 2 };
    let attended = if composed { 4 * words * dimension } else { 0 };
    let vectors = (words + 1) * similarity * if composed { 6 } else { 1 };
    let reasoning = encoder.head_options.graph_steps * (words + 1) * (4 * (words + 1) + 3 * similarity);
    let of = |head: Head| match head {
        Head::Saf | Head::Sgr if !composed => vectors,
        Head::Saf => attention + attended + vectors,
        Head::Sgr => attention + attended + vectors + reasoning,
        Head::ScanT2i | Head::ScanI2t => attention + attended,
        _ => 0,
    };
    scores + members(encoder.head).iter().map(|member| of(*member)).sum::<usize>()
}

/// The heads that a head is made of, each with towers of its own.
fn members(head: Head) -> Vec<Head> {
    match head {
        Head::Sgraf => vec![Head::Saf, Head::Sgr],
        head => vec![head],
    }
}

/// Refuses a training that takes more than it may, with the largest batch that would not.
///
/// `at` estimates the step for a share of the configured batch sizes.
pub(crate) fn check(config: &TrainConfig, memory: &Memory, at: impl Fn(f64) -> u64) -> Result<()> {
    let Some(Bytes(budget)) = config.memory_budget else { return Ok(()) };
    let lasting = memory.lasting() as u64;
    let needed = lasting.saturating_add(at(1.0));
    if needed <= budget {
        return Ok(());
    }
    let fits = |share: f64| lasting.saturating_add(at(share)) <= budget;
    let size = |share: f64| (share * config.batch_size as f64).floor() as usize;
    let largest =
        (1..=64).rev().map(|part| f64::from(part) / 64.0).find(|share| size(*share) >= 2 && fits(*share));
    let hint = match largest {
        Some(share) => format!(
            "`batch_size = {}` with `target_batch_size = {}` fits; `optimizer.accumulate` makes one step of several such batches",
            size(share),
            ((share * config.target_batch_size as f64).floor() as usize).max(1)
        ),
        None => format!("no batch fits beside what lasts, {}", Bytes(lasting)),
    };
    Err(TrainError::Budget { budget: Bytes(budget).to_string(), needed: Bytes(needed).to_string(), hint })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_read_and_written() {
        for (text, bytes) in [
            ("8GiB", 8 << 30),
            ("500MB", 500_000_000),
            ("1.5 gib", 3 << 29),
            (" 64KiB ", 64 << 10),
            ("7B", 7),
            ("2TB", 2_000_000_000_000),
        ] {
            assert_eq!(text.parse::<Bytes>().unwrap(), Bytes(bytes), "{text}");
            assert_eq!(String::from(Bytes(bytes)).parse::<Bytes>().unwrap(), Bytes(bytes));
        }
        for wrong in ["", "8", "GiB", "-1GB", "0MB", "8 apples", "1e300TiB", "NaNGB", "0.1B"] {
            let error = wrong.parse::<Bytes>().unwrap_err();
            assert!(error.contains("8GiB") && error.contains(&format!("`{wrong}`")), "{error}");
        }
        assert_eq!(Bytes(8 << 30).to_string(), "8GiB");
        assert_eq!(Bytes((1 << 30) + (1 << 29)).to_string(), "1.5GiB");
        assert_eq!(Bytes(12).to_string(), "12B");
    }

    #[test]
    fn a_step_takes_more_with_more_items_and_where_it_is_composed() {
        let mut encoder = DualEncoderConfig::pooled(2048, 300, 256);
        encoder.image_input = ImageInput::Fragments(36);
        encoder.sentence_input = SentenceInput::Fragments;
        let sizes = StepSizes { pairs: 32, target: [0, 0], words: 12, accumulated: 1 };
        for head in [Head::Cosine, Head::Saf, Head::Sgr, Head::Sgraf, Head::ScanT2i, Head::ScanI2t] {
            encoder.head = head;
            let of = |sizes, composed| graph_bytes(&encoder, sizes, composed);
            assert!(of(StepSizes { pairs: 64, ..sizes }, false) > of(sizes, false), "{head:?}");
            assert!(of(StepSizes { target: [32, 32], ..sizes }, false) > of(sizes, false), "{head:?}");
            assert!(of(StepSizes { words: 24, ..sizes }, false) > of(sizes, false), "{head:?}");
            assert_eq!(of(sizes, true) > of(sizes, false), head != Head::Cosine, "{head:?}");
        }
        // Both heads of the ensemble, each with towers of its own.
        let of = |head| graph_bytes(&DualEncoderConfig { head, ..encoder }, sizes, true);
        assert!(of(Head::Sgraf) > of(Head::Saf).max(of(Head::Sgr)));
    }

    #[test]
    fn batches_that_wait_for_their_turn_are_counted() {
        let mut encoder = DualEncoderConfig::pooled(2048, 300, 256);
        let of = |accumulated| StepSizes { pairs: 30, target: [2, 4], words: 12, accumulated };
        assert_eq!(batch_bytes(&encoder, of(1)), 4 * (32 * 2048 + 34 * 300));
        encoder.image_input = ImageInput::Fragments(36);
        encoder.sentence_input = SentenceInput::Fragments;
        assert_eq!(batch_bytes(&encoder, of(1)), 4 * (32 * 36 * 2049 + 34 * 12 * 301));
        let waiting = |accumulated, composed| {
            let more = step_bytes(&encoder, of(accumulated), composed)
                - graph_bytes(&encoder, of(accumulated), composed);
            more / batch_bytes(&encoder, of(accumulated))
        };
        // The others of this step and, on a device, all of the next.
        assert_eq!([1, 4].map(|accumulated| waiting(accumulated, false)), [0, 3]);
        assert_eq!([1, 4].map(|accumulated| waiting(accumulated, true)), [1, 7]);
    }
}
