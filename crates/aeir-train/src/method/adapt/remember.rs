//! Filling the memory of source pairs, and weighing it against the towers.

use std::collections::BTreeMap;

use aeir_data::ShuffledSampler;
use aeir_encoders::rehearsal::Product;
use aeir_encoders::{DualEncoder, MemoryConfig, Mode, frozen_features, l2_normalise, regression_kernel};
use aeir_retrieve::similarity;
use candle_core::{Device, Tensor};

use super::no_target;
use super::regression::{self, Fitted, orthogonal};
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
/// What each regression counts beside towers and codes.
const REGRESSION_COUNTS: f64 = 0.7;
/// Items whose features are read at once.
const AT_ONCE: usize = 512;

/// The memory of an encoder whose parameters are in a store.
pub(super) struct Memory<'a> {
    pub(super) encoder: &'a DualEncoder,
    pub(super) store: &'a ParameterStore,
    pub(super) config: MemoryConfig,
    pub(super) seed: u64,
    /// What is added to the kernel's diagonal in the regressions.
    pub(super) ridge: f64,
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
        let mut values = BTreeMap::from([
            ("encoder.memory_image_mean".to_owned(), mean_similarity(&images, &target.images)?),
            ("encoder.memory_sentence_mean".to_owned(), mean_similarity(&sentences, &target.sentences)?),
        ]);
        if let Some(drawn) = self.store.snapshot("encoder.memory_codes")?.pop_first() {
            values.insert(drawn.0, orthogonal(&drawn.1)?);
        }
        if let Some(config) = self.config.regression {
            let [of_images, of_sentences] = regression::fit(&images, &sentences, config, self.ridge)?;
            let parts = [
                ("image", &images, of_images, &target.images),
                ("sentence", &sentences, of_sentences, &target.sentences),
            ];
            for (name, anchors, Fitted { directions, map }, items) in parts {
                let name = |part: &str| format!("encoder.memory_{name}_{part}");
                let centre = mean_of(items, |features| Ok(features.product(&directions)?))?;
                let map_centre = mean_of(items, |features| {
                    let cosines = features.product(&anchors.t()?)?;
                    Ok(regression_kernel(&cosines, config.sharpness)?.product(&map)?)
                })?;
                values.insert(name("centre"), centre);
                values.insert(name("map_centre"), map_centre);
                values.insert(name("directions"), directions);
                values.insert(name("map"), map);
            }
        }
        values.insert("encoder.memory_image".to_owned(), images);
        values.insert("encoder.memory_sentence".to_owned(), sentences);
        self.store.restore(&values)
    }

    /// Weighs towers, codes and regressions so that all spread the scores of the unpaired target sets alike: `w_p^2` is in proportion to
    /// `c_p / std(scores of p)`. What tells images apart well and what does so badly is thus not settled by the scale of its numbers.
    /// `c_p` is 1, and 0.7 of each regression, which say one thing twice. `prefix` is that of `encoder`'s parameters.
    pub(super) fn balance(&self, encoder: &DualEncoder, prefix: &str, target: &PreparedTarget) -> Result<()> {
        let [images, sentences] = WEIGHT_STREAMS;
        let images = embed_prepared(&sampled(&target.images, self.seed, images), |items| {
            encoder.encode_images(items, &mut Mode::Evaluation)
        })?;
        let sentences = embed_prepared(&sampled(&target.sentences, self.seed, sentences), |items| {
            encoder.encode_sentences(items, &mut Mode::Evaluation)
        })?;
        let mut shares = Vec::new();
        let mut start = 0;
        let towers = self.encoder.config().trained_dimension();
        for (place, length) in [towers].into_iter().chain(self.config.parts()).enumerate() {
            let part = start..start + length;
            start = part.end;
            let scores = similarity(&unit_columns(&images, part.clone())?, &unit_columns(&sentences, part)?)?;
            let counts = if place < 2 { 1.0 } else { REGRESSION_COUNTS };
            shares.push(counts / deviation(scores.values()));
        }
        let total: f64 = shares.iter().sum();
        let weights: Vec<f32> = shares.iter().map(|share| (share / total).sqrt() as f32).collect();
        let weights = Tensor::new(weights, &Device::Cpu)?;
        self.store.restore(&BTreeMap::from([(format!("{prefix}.memory_weights"), weights)]))
    }
}

/// How near unpaired items are to each anchor on average, `[n]`.
fn mean_similarity(anchors: &Tensor, items: &PreparedItems) -> Result<Tensor> {
    let mean = mean_of(items, |features| Ok(features.clone()))?;
    Ok(anchors.product(&mean.unsqueeze(1)?)?.squeeze(1)?)
}

/// The mean over unpaired items of what `of` makes of their unit features.
fn mean_of(items: &PreparedItems, of: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
    let rows: Vec<usize> = (0..items.len()).collect();
    let mut sum: Option<Tensor> = None;
    for block in rows.chunks(AT_ONCE) {
        let block = of(&frozen_features(&items.select(block)?)?)?.sum(0)?;
        sum = Some(match sum {
            Some(sum) => (sum + block)?,
            None => block,
        });
    }
    let sum = sum.ok_or_else(no_target)?;
    Ok((sum / items.len() as f64)?)
}

fn sampled(items: &PreparedItems, seed: u64, stream: u64) -> PreparedItems {
    let mut rows = ShuffledSampler::new(items.len(), seed, stream).epoch_order(0);
    rows.truncate(MOST_WEIGHED);
    items.view(rows)
}
