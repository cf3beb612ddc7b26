//! Filling the memory of source pairs, and weighing it against the towers.

use std::collections::BTreeMap;

use aeir_data::ShuffledSampler;
use aeir_encoders::{DualEncoder, MemoryConfig, Mode, frozen_features, l2_normalise};
use aeir_retrieve::similarity;
use candle_core::{D, Device, Tensor};

use crate::data::{PreparedData, PreparedTarget};
use crate::error::Result;
use crate::items::PreparedItems;
use crate::mining::deviation;
use crate::parameters::ParameterStore;
use crate::validate::{embed_prepared, unit_columns};

/// Stream of the sampler that chooses which pairs are remembered, where not all are.
const PAIR_STREAM: u64 = 0x0ad4;
/// Streams of the samplers that choose the target items by which the memory is weighed.
const WEIGHT_STREAMS: [u64; 2] = [0x0ad5, 0x0ad6];
/// Target items a set that the weights are taken from.
const MOST_WEIGHED: usize = 1_000;
/// Items whose features are read at once.
const AT_ONCE: usize = 512;

/// The memory of an encoder whose parameters are in a store.
pub(super) struct Memory<'a> {
    pub(super) encoder: &'a DualEncoder,
    pub(super) store: &'a ParameterStore,
    pub(super) config: MemoryConfig,
    pub(super) seed: u64,
}

impl Memory<'_> {
    /// Remembers source pairs and labelled pairs, a sentence side being the mean of a pair's sentences; and how near the target is to each on average.
    pub(super) fn learn(&self, data: &PreparedData, target: &PreparedTarget) -> Result<()> {
        let mut pairs = ShuffledSampler::new(data.sentences_of.len(), self.seed, PAIR_STREAM).epoch_order(0);
        // What a person labelled is never left out.
        pairs.sort_by_key(|pair| *pair < data.source_pairs());
        pairs.truncate(self.config.pairs);
        pairs.sort_unstable();
        let mut images = Vec::new();
        let mut sentences = Vec::new();
        for block in pairs.chunks(AT_ONCE) {
            images.push(frozen_features(&data.images.select(block)?)?);
            for pair in block {
                let rows = data.sentences_of.get(*pair).map_or(&[][..], Vec::as_slice);
                sentences.push(frozen_features(&data.sentences.select(rows)?)?.mean_keepdim(0)?);
            }
        }
        let images = Tensor::cat(&images, 0)?;
        let sentences = l2_normalise(&Tensor::cat(&sentences, 0)?)?;
        let values = BTreeMap::from([
            ("encoder.memory_image_mean".to_owned(), mean_similarity(&images, &target.images)?),
            ("encoder.memory_sentence_mean".to_owned(), mean_similarity(&sentences, &target.sentences)?),
            ("encoder.memory_image".to_owned(), images),
            ("encoder.memory_sentence".to_owned(), sentences),
        ]);
        self.store.restore(&values)
    }

    /// Weighs towers and codes so that both spread the scores of the unpaired target sets alike: `w_t^2 : w_m^2 = 1 / std(tower scores) :
    /// 1 / std(code scores)`. What tells images apart well and what does so badly is thus not settled by the scale of its numbers.
    /// `prefix` is that of `encoder`'s parameters.
    pub(super) fn balance(&self, encoder: &DualEncoder, prefix: &str, target: &PreparedTarget) -> Result<()> {
        let [images, sentences] = WEIGHT_STREAMS;
        let images = embed_prepared(&sampled(&target.images, self.seed, images), |items| {
            encoder.encode_images(items, &mut Mode::Evaluation)
        })?;
        let sentences = embed_prepared(&sampled(&target.sentences, self.seed, sentences), |items| {
            encoder.encode_sentences(items, &mut Mode::Evaluation)
        })?;
        let towers = self.encoder.config().trained_dimension();
        let [tower, code] = [0..towers, towers..towers + self.config.code_dimension].map(|part| {
            let scores = similarity(&unit_columns(&images, part.clone())?, &unit_columns(&sentences, part)?)?;
            Ok::<_, crate::TrainError>(1.0 / deviation(scores.values()))
        });
        let (tower, code) = (tower?, code?);
        let weights = [tower, code].map(|weight| (weight / (tower + code)).sqrt() as f32);
        let weights = Tensor::new(&weights, &Device::Cpu)?;
        self.store.restore(&BTreeMap::from([(format!("{prefix}.memory_weights"), weights)]))
    }
}

/// How near unpaired items are to each anchor on average, `[n]`.
fn mean_similarity(anchors: &Tensor, items: &PreparedItems) -> Result<Tensor> {
    let rows: Vec<usize> = (0..items.len()).collect();
    let mut sum: Option<Tensor> = None;
    for block in rows.chunks(AT_ONCE) {
        let features = frozen_features(&items.select(block)?)?.sum_keepdim(0)?;
        sum = Some(match sum {
            Some(sum) => (sum + features)?,
            None => features,
        });
    }
    let Some(sum) = sum else { return Ok(anchors.zeros_like()?.sum(D::Minus1)?) };
    Ok(anchors.matmul(&(sum / items.len() as f64)?.t()?)?.squeeze(1)?)
}

fn sampled(items: &PreparedItems, seed: u64, stream: u64) -> PreparedItems {
    let mut rows = ShuffledSampler::new(items.len(), seed, stream).epoch_order(0);
    rows.truncate(MOST_WEIGHED);
    items.view(rows)
}
