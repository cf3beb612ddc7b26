//! What every domain's items are to a run: features or words, and the tensors a run trains on.

use std::collections::BTreeMap;

use aeir_data::ShuffledSampler;
use aeir_encoders::standardise::{DomainStatistics, Standardiser};
use aeir_encoders::{Head, ImageInput, Standardisation};
use candle_core::{Device, Tensor};
use sha2::{Digest, Sha256};

use crate::checkpoint;
use crate::config::{IMAGE_BACKBONE, Standardise, TEXT_BACKBONE, TrainConfig};
use crate::error::{Result, TrainError};
use crate::items::{ItemTable, PreparedItems};
use crate::method::{Group, Inputs};
use crate::parameters::ParameterStore;
use crate::plan::Sizes;
use crate::tuned::TunedEncoder;
use crate::whitening::whitened;

/// Pairs to score with, never to train on: nothing makes a training batch of them.
#[derive(Debug, Clone)]
pub struct EvaluationPairs {
    /// One row an image.
    pub images: ItemTable,
    /// One row a sentence.
    pub sentences: ItemTable,
    /// The image each sentence belongs to.
    pub owners: Vec<usize>,
}

/// A source domain: images with their sentences.
#[derive(Debug, Clone)]
pub struct SourceData {
    /// Its name; it appears in the model's statistics.
    pub name: String,
    /// One row an image.
    pub images: ItemTable,
    /// One row a sentence.
    pub sentences: ItemTable,
    /// For each image the rows of its sentences, one or more.
    pub sentences_of: Vec<Vec<usize>>,
    /// The validation split, where there is one.
    pub validation: Option<EvaluationPairs>,
}

/// The target domain: two sets that nobody has aligned.
#[derive(Debug, Clone)]
pub struct TargetData {
    /// One row an image.
    pub images: ItemTable,
    /// One row a sentence.
    pub sentences: ItemTable,
}

/// All that a run trains on.
#[derive(Debug, Clone)]
pub struct TrainingData {
    /// One or more source domains.
    pub sources: Vec<SourceData>,
    /// The target, where the method needs it.
    pub target: Option<TargetData>,
    /// Pairs of the target that a person labelled, where there are some. They get the target's statistics, and a share of every
    /// step. Nothing is validated on them: their validation split stays unused.
    pub labelled: Option<SourceData>,
}

/// What the source of the labelled pairs is called.
pub const LABELLED: &str = "labelled pairs of the target";
/// Name of the target's statistics.
pub const TARGET: &str = "target";
/// Name of the statistics of all sources together.
pub const SOURCE: &str = "source";

impl TrainingData {
    /// The image encoder that is trained with the towers, where there is one.
    pub fn tuned_images(&self) -> Option<&TunedEncoder> {
        let source = self.sources.first().map(|source| &source.images);
        source.or(self.target.as_ref().map(|target| &target.images)).and_then(ItemTable::tuned)
    }

    /// The sentence encoder that is trained with the towers, where there is one.
    pub fn tuned_sentences(&self) -> Option<&TunedEncoder> {
        let source = self.sources.first().map(|source| &source.sentences);
        source.or(self.target.as_ref().map(|target| &target.sentences)).and_then(ItemTable::tuned)
    }

    /// A hash of all features, their order, pairing and splits: what a checkpoint must agree with.
    pub fn digest(&self) -> String {
        fn numbers<'a>(hash: &mut Sha256, numbers: impl ExactSizeIterator<Item = &'a usize>) {
            hash.update((numbers.len() as u64).to_le_bytes());
            numbers.for_each(|number| hash.update((*number as u64).to_le_bytes()));
        }
        let mut hash = Sha256::new();
        for source in &self.sources {
            numbers(&mut hash, [source.name.len()].iter());
            hash.update(source.name.as_bytes());
            source.images.digest(&mut hash);
            source.sentences.digest(&mut hash);
            source.sentences_of.iter().for_each(|rows| numbers(&mut hash, rows.iter()));
            hash.update([u8::from(source.validation.is_some())]);
            if let Some(pairs) = &source.validation {
                pairs.images.digest(&mut hash);
                pairs.sentences.digest(&mut hash);
                numbers(&mut hash, pairs.owners.iter());
            }
        }
        if let Some(target) = &self.target {
            target.images.digest(&mut hash);
            target.sentences.digest(&mut hash);
        }
        if let Some(labelled) = &self.labelled {
            hash.update(b"labelled");
            labelled.images.digest(&mut hash);
            labelled.sentences.digest(&mut hash);
            labelled.sentences_of.iter().for_each(|rows| numbers(&mut hash, rows.iter()));
        }
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Bytes that the features of all items take.
    pub(crate) fn bytes(&self) -> usize {
        let of = |source: &SourceData| source.images.bytes() + source.sentences.bytes();
        let sources: usize = self.sources.iter().chain(&self.labelled).map(of).sum();
        sources + self.target.as_ref().map_or(0, |target| target.images.bytes() + target.sentences.bytes())
    }

    /// Bytes that the features of so many items take, judged by these.
    pub(crate) fn bytes_of(&self, sizes: Sizes) -> usize {
        let of = |tables: Vec<&ItemTable>, items: f64| {
            let (bytes, count) = tables
                .iter()
                .fold((0, 0), |(bytes, count), table| (bytes + table.bytes(), count + table.len()));
            (bytes as f64 / count.max(1) as f64 * items) as usize
        };
        let images: usize = self.sources.iter().map(|source| source.images.len()).sum();
        let sentences: usize = self.sources.iter().map(|source| source.sentences.len()).sum();
        let pairs = (sizes.pairs + sizes.labelled) as f64;
        let mut bytes = of(self.sources.iter().map(|source| &source.images).collect(), pairs)
            + of(
                self.sources.iter().map(|source| &source.sentences).collect(),
                pairs * sentences as f64 / images.max(1) as f64,
            );
        if let (Some(target), Some([images, sentences])) = (&self.target, sizes.target) {
            bytes += of(vec![&target.images], images as f64) + of(vec![&target.sentences], sentences as f64);
        }
        bytes
    }

    /// Standardises everything and makes it ready for batches on the device.
    ///
    /// # Errors
    /// When there are too few source pairs, dimensions differ, or a target is needed and missing.
    pub fn prepare(&self, config: &TrainConfig, device: &Device) -> Result<PreparedData> {
        let pairs: usize = self.sources.iter().map(|source| source.images.len()).sum();
        self.check_pairs(config, pairs)?;
        if self.labelled.is_some() {
            config.check_labelled()?;
        }
        let standardisation = self.standardisation(config, device)?;
        let mut names = self.domain_names();
        if !config.standardise.is_per_domain() {
            names.iter_mut().for_each(|name| SOURCE.clone_into(name));
        }

        let mut sentences_of = Vec::with_capacity(pairs);
        let (mut images, mut sentences, mut validation) = (Vec::new(), Vec::new(), Vec::new());
        let mut sentence_count = 0;
        for (source, name) in self.sources.iter().zip(&names) {
            let statistics = standardisation.domain(name)?;
            images.push((&source.images, statistics.image.as_ref()));
            sentences.push((&source.sentences, statistics.sentence.as_ref()));
            for of_image in &source.sentences_of {
                sentences_of.push(of_image.iter().map(|row| row + sentence_count).collect());
            }
            sentence_count += source.sentences.len();
            if let Some(pairs) = &source.validation {
                validation.push(PreparedPairs {
                    images: PreparedItems::new(&[(&pairs.images, statistics.image.as_ref())], device)?,
                    sentences: PreparedItems::new(
                        &[(&pairs.sentences, statistics.sentence.as_ref())],
                        device,
                    )?,
                    owners: pairs.owners.clone(),
                });
            }
        }
        let first_labelled = [sentences_of.len(), sentence_count];
        if let Some(labelled) = &self.labelled {
            let statistics = standardisation.domain(standardisation.serving())?;
            images.push((&labelled.images, statistics.image.as_ref()));
            sentences.push((&labelled.sentences, statistics.sentence.as_ref()));
            for of_image in &labelled.sentences_of {
                sentences_of.push(of_image.iter().map(|row| row + sentence_count).collect());
            }
        }
        let (target, target_held_out) = match &self.target {
            Some(target) => {
                let statistics = standardisation.domain(standardisation.serving())?;
                let whole = PreparedTarget {
                    images: PreparedItems::new(&[(&target.images, statistics.image.as_ref())], device)?,
                    sentences: PreparedItems::new(
                        &[(&target.sentences, statistics.sentence.as_ref())],
                        device,
                    )?,
                };
                let (trained, held_out) = whole.split(config.target_held_out, config.seed)?;
                (Some(trained), held_out)
            }
            None => (None, None),
        };
        let (images, sentences) = match &target {
            // Nothing, of the target's kind.
            Some(target) if images.is_empty() => {
                (target.images.view(Vec::new()), target.sentences.view(Vec::new()))
            }
            _ => (PreparedItems::new(&images, device)?, PreparedItems::new(&sentences, device)?),
        };
        let mut prepared = PreparedData {
            images,
            sentences,
            sentences_of,
            first_labelled,
            validation,
            target,
            target_held_out,
            standardisation,
        };
        if let Some(budget) = config.memory_budget {
            prepared.within(budget.0);
        }
        Ok(prepared)
    }

    /// Refuses too few source pairs. A pre-trained dual encoder can be adapted without any.
    fn check_pairs(&self, config: &TrainConfig, pairs: usize) -> Result<()> {
        let without = pairs == 0 && self.target.is_some() && config.needs_no_source();
        if without || pairs >= 2 {
            return Ok(());
        }
        Err(TrainError::Data {
            what: "source pairs to train on".into(),
            expected: "2 or more".into(),
            got: pairs.to_string(),
        })
    }

    /// Unique names; [`TARGET`] and [`SOURCE`] are taken.
    pub(crate) fn domain_names(&self) -> Vec<String> {
        let mut names: Vec<String> = Vec::with_capacity(self.sources.len());
        for source in &self.sources {
            let taken =
                |name: &str| name == TARGET || name == SOURCE || names.iter().any(|other| other == name);
            let mut name = source.name.clone();
            let mut number = 2;
            while taken(&name) {
                name = format!("{}-{number}", source.name);
                number += 1;
            }
            names.push(name);
        }
        names
    }

    fn standardisation(&self, config: &TrainConfig, device: &Device) -> Result<Standardisation> {
        let fit = |images: &[&ItemTable], sentences: &[&ItemTable]| match config.raw_features() {
            true => Ok(DomainStatistics::default()),
            false => statistics(images, sentences, config.standardise, device),
        };
        if !config.standardise.is_per_domain() {
            let images: Vec<_> = self.sources.iter().map(|source| &source.images).collect();
            let sentences: Vec<_> = self.sources.iter().map(|source| &source.sentences).collect();
            let domains = BTreeMap::from([(SOURCE.to_owned(), fit(&images, &sentences)?)]);
            return Ok(Standardisation::new(domains, SOURCE)?);
        }
        let target = self.target.as_ref().ok_or_else(|| TrainError::Data {
            what: "per-domain standardisation".into(),
            expected: "target images and target sentences to take statistics of".into(),
            got: "none".into(),
        })?;
        let mut domains =
            BTreeMap::from([(TARGET.to_owned(), fit(&[&target.images], &[&target.sentences])?)]);
        for (source, name) in self.sources.iter().zip(self.domain_names()) {
            domains.insert(name, fit(&[&source.images], &[&source.sentences])?);
        }
        Ok(Standardisation::new(domains, TARGET)?)
    }
}

/// The statistics of one domain.
pub(crate) fn statistics(
    images: &[&ItemTable],
    sentences: &[&ItemTable],
    how: Standardise,
    device: &Device,
) -> Result<DomainStatistics> {
    Ok(DomainStatistics { image: fit(images, how, device)?, sentence: fit(sentences, how, device)? })
}

/// Statistics over all rows of all tables; none for words.
fn fit(tables: &[&ItemTable], how: Standardise, device: &Device) -> Result<Option<Standardiser>> {
    let Some(first) = tables.first() else { return Ok(None) };
    if matches!(first, ItemTable::Words(_)) {
        return Ok(None);
    }
    let mut failed = None;
    let fitted = Standardiser::fit_each(first.dimension(), device, |visit| {
        failed = tables.iter().try_for_each(|table| table.each_row(visit)).err();
    });
    if let Some(error) = failed {
        return Err(error);
    }
    match how {
        Standardise::Whiten => Ok(Some(whitened(fitted?, tables, device)?)),
        _ => Ok(Some(fitted?)),
    }
}

/// Standardised features, ready for batches.
pub struct PreparedData {
    /// Source images, all domains; behind them the labelled ones of the target.
    pub images: PreparedItems,
    /// Source sentences, all domains; behind them those of the labelled pairs.
    pub sentences: PreparedItems,
    /// For each image the rows of its sentences.
    pub sentences_of: Vec<Vec<usize>>,
    /// The rows at which the labelled pairs of the target begin: of the images, of the sentences.
    first_labelled: [usize; 2],
    /// Validation splits, one a source domain that has one.
    pub validation: Vec<PreparedPairs>,
    /// The target's two sets, without what is held out of them.
    pub target: Option<PreparedTarget>,
    /// The parts of the target's sets that nothing is trained on, where the configuration asks for them. Their features
    /// have a share in the statistics of the domain, which need no labels either.
    pub target_held_out: Option<PreparedTarget>,
    /// What was applied; goes into the model.
    pub standardisation: Standardisation,
}

impl PreparedData {
    /// How many source pairs there are: the first rows of the images.
    pub fn source_pairs(&self) -> usize {
        let [images, _] = self.first_labelled;
        images
    }

    /// How many labelled pairs of the target there are: the last rows.
    pub fn labelled_pairs(&self) -> usize {
        self.sentences_of.len() - self.source_pairs()
    }

    /// The source's images and sentences alone.
    pub(crate) fn source_alone(&self) -> [PreparedItems; 2] {
        let [images, sentences] = self.first_labelled;
        [self.images.view((0..images).collect()), self.sentences.view((0..sentences).collect())]
    }

    /// Words or tokens that a sentence takes in a step: of the longest where batches are padded, and else the mean.
    pub(crate) fn sentence_length(&self, padded: bool) -> usize {
        let of = |items: &PreparedItems| if padded { items.longest() } else { items.mean_length() };
        self.target.as_ref().map_or(0, |target| of(&target.sentences)).max(of(&self.sentences))
    }

    /// Bounds how many items are embedded at once outside of steps.
    fn within(&mut self, budget: u64) {
        let sets = self.validation.iter_mut().flat_map(|pairs| [&mut pairs.images, &mut pairs.sentences]);
        let targets = [&mut self.target, &mut self.target_held_out].into_iter().flatten();
        let targets = targets.flat_map(|target| [&mut target.images, &mut target.sentences]);
        for items in sets.chain(targets).chain([&mut self.images, &mut self.sentences]) {
            items.budget = Some(budget);
        }
    }

    /// Puts fragments that are trained on onto the device where `room` has space for all of a set's; the bytes that are left.
    ///
    /// # Errors
    /// When the device has no room or a mapped file can't be read.
    pub(crate) fn settle_on_device(&mut self, mut room: u64) -> Result<u64> {
        let target = self.target.iter_mut().flat_map(|target| [&mut target.images, &mut target.sentences]);
        for items in [&mut self.images, &mut self.sentences].into_iter().chain(target) {
            room -= items.settle_on_device(room)?;
        }
        Ok(room)
    }

    /// Whether an encoder is trained with the towers.
    pub(crate) fn is_tuned(&self) -> bool {
        self.tuned().next().is_some()
    }

    /// The encoders that are trained with the towers, each with how its parameters' names begin.
    fn tuned(&self) -> impl Iterator<Item = (&'static str, &TunedEncoder)> {
        let images = self.images.tuned().map(|encoder| (IMAGE_BACKBONE, encoder.as_ref()));
        let sentences = self.sentences.tuned().map(|encoder| (TEXT_BACKBONE, encoder.as_ref()));
        images.into_iter().chain(sentences)
    }

    /// Makes the parameters of trained encoders a part of the encoders in `store`, as they were when they were loaded.
    ///
    /// # Errors
    /// When a copy fails on the device.
    pub(crate) fn adopt_tuned(&self, store: &ParameterStore) -> Result<()> {
        for (name, encoder) in self.tuned() {
            encoder.reset()?;
            store.adopt(&format!("{}{name}", Group::Encoder.prefix()), encoder.variables());
        }
        Ok(())
    }

    /// Sets trained encoders to the `chosen` parameters; gives those of the towers.
    ///
    /// # Errors
    /// When a copy fails on the device.
    pub(crate) fn set_tuned(&self, mut chosen: BTreeMap<String, Tensor>) -> Result<BTreeMap<String, Tensor>> {
        for (name, encoder) in self.tuned() {
            encoder.set(&checkpoint::under(&chosen, name))?;
            chosen.retain(|parameter, _| !parameter.starts_with(name));
        }
        Ok(chosen)
    }

    /// What the towers take.
    ///
    /// # Errors
    /// When images come as fragments, not as many for every image, and `head` needs that.
    pub fn inputs(&self, head: Head) -> Result<Inputs> {
        Ok(Inputs {
            image_dimension: self.images.dimension()?,
            images: self.image_input(head)?,
            sentence_dimension: self.sentences.dimension()?,
            sentences: self.sentences.sentence_kind(),
            pairs: self.sentences_of.len(),
        })
    }

    /// What images come as.
    ///
    /// # Errors
    /// When they come as fragments, not as many for every image, and `head` needs that.
    pub fn image_input(&self, head: Head) -> Result<ImageInput> {
        self.images.image_input(head)
    }
}

/// Standardised pairs to score with.
pub struct PreparedPairs {
    /// N images.
    pub images: PreparedItems,
    /// M sentences.
    pub sentences: PreparedItems,
    /// The image of each sentence.
    pub owners: Vec<usize>,
}

impl PreparedPairs {
    /// The first `count` images with their sentences.
    pub(crate) fn first(&self, count: usize) -> Self {
        let kept: Vec<usize> =
            self.owners.iter().enumerate().filter(|(_, owner)| **owner < count).map(|(row, _)| row).collect();
        let owners = kept.iter().filter_map(|row| self.owners.get(*row).copied()).collect();
        Self {
            images: self.images.view((0..count.min(self.images.len())).collect()),
            sentences: self.sentences.view(kept),
            owners,
        }
    }
}

/// The standardised target sets.
pub struct PreparedTarget {
    /// N images.
    pub images: PreparedItems,
    /// M sentences.
    pub sentences: PreparedItems,
}

/// Streams of the samplers that choose what is held out of the target: which image and which sentence say nothing of each
/// other.
const HELD_OUT_STREAMS: [u64; 2] = [0x7e57, 0x7e58];

impl PreparedTarget {
    /// What is trained on, and what is held out.
    fn split(self, share: f64, seed: u64) -> Result<(Self, Option<Self>)> {
        if share == 0.0 {
            return Ok((self, None));
        }
        let [images, sentences] = HELD_OUT_STREAMS;
        let (images, held_images) = part(&self.images, share, seed, images)?;
        let (sentences, held_sentences) = part(&self.sentences, share, seed, sentences)?;
        let held_out = Self { images: held_images, sentences: held_sentences };
        Ok((Self { images, sentences }, Some(held_out)))
    }
}

/// The items in their order, without a share of them drawn at random, and that share.
fn part(items: &PreparedItems, share: f64, seed: u64, stream: u64) -> Result<(PreparedItems, PreparedItems)> {
    let count = (share * items.len() as f64).round() as usize;
    if count == 0 || count >= items.len() {
        return Err(TrainError::Data {
            what: "items of the target for `target_held_out`".into(),
            expected: "enough that one can be held out and one is left".into(),
            got: items.len().to_string(),
        });
    }
    let mut order = ShuffledSampler::new(items.len(), seed, stream).epoch_order(0);
    let mut kept = order.split_off(count);
    order.sort_unstable();
    kept.sort_unstable();
    Ok((items.view(kept), items.view(order)))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::items::{FeatureTable, FragmentTableBuilder};
    use aeir_encoders::Items;
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::{Rng, SeedableRng};

    /// Two small domains in which a sentence is a fixed rotation of its image plus noise, the target shifted.
    pub(crate) fn toy(pairs: usize, target_images: usize, target_sentences: usize) -> TrainingData {
        let mut random = ChaCha8Rng::seed_from_u64(5);
        let mut draw = move || (random.next_u32() as f32 / u32::MAX as f32) - 0.5;
        let mut table = |count: usize, shift: f32| {
            let values: Vec<f32> = (0..count * 8).map(|_| draw() + shift).collect();
            ItemTable::Pooled(FeatureTable::new(values, 8).unwrap())
        };
        let sentence_of = |images: &ItemTable| {
            let mut values = Vec::new();
            images.each_row(&mut |row| values.extend(row.iter().rev().take(6))).unwrap();
            ItemTable::Pooled(FeatureTable::new(values, 6).unwrap())
        };
        let images = table(pairs, 0.0);
        let held_out = table(12, 0.0);
        let (shifted_images, shifted_sentences) = (table(target_images, 1.5), table(target_sentences, 1.5));
        TrainingData {
            sources: vec![SourceData {
                name: "toy".into(),
                sentences: sentence_of(&images),
                sentences_of: (0..pairs).map(|index| vec![index]).collect(),
                images,
                validation: Some(EvaluationPairs {
                    sentences: sentence_of(&held_out),
                    owners: (0..12).collect(),
                    images: held_out,
                }),
            }],
            target: Some(TargetData { images: shifted_images, sentences: sentence_of(&shifted_sentences) }),
            labelled: None,
        }
    }

    /// The same with three regions an image and one to three tokens a sentence.
    pub(crate) fn toy_fragments(pairs: usize, target_images: usize, target_sentences: usize) -> TrainingData {
        let pooled = toy(pairs, target_images, target_sentences);
        let regions = |table: &ItemTable, count: fn(usize) -> usize| {
            let mut builder = FragmentTableBuilder::new(table.dimension());
            let mut item = 0;
            table
                .each_row(&mut |row| {
                    let turned = |turn: usize| row.iter().map(move |value| value * (1.0 + 0.2 * turn as f32));
                    let values: Vec<f32> = (0..count(item)).flat_map(turned).collect();
                    let entry = builder.store(&values);
                    builder.item(entry);
                    item += 1;
                })
                .unwrap();
            ItemTable::Fragments(builder.finish("toy").unwrap())
        };
        let images = |table: &ItemTable| regions(table, |_| 3);
        let sentences = |table: &ItemTable| regions(table, |item| 1 + item % 3);
        let source = &pooled.sources[0];
        let validation = source.validation.as_ref().map(|pairs| EvaluationPairs {
            images: images(&pairs.images),
            sentences: sentences(&pairs.sentences),
            owners: pairs.owners.clone(),
        });
        let target = pooled.target.as_ref().unwrap();
        TrainingData {
            target: Some(TargetData {
                images: images(&target.images),
                sentences: sentences(&target.sentences),
            }),
            sources: vec![SourceData {
                images: images(&source.images),
                sentences: sentences(&source.sentences),
                validation,
                ..source.clone()
            }],
            labelled: None,
        }
    }

    fn mean(items: &PreparedItems) -> f32 {
        let rows: Vec<usize> = (0..items.len()).collect();
        let Items::Pooled(features) = items.select(&rows).unwrap() else { panic!("not pooled") };
        features.mean_all().unwrap().to_scalar::<f32>().unwrap()
    }

    #[test]
    fn without_the_switch_all_domains_get_the_source_statistics() {
        let data = toy(20, 9, 7);
        let prepared = data.prepare(&TrainConfig::default(), &Device::Cpu).unwrap();
        assert_eq!(prepared.standardisation.serving(), SOURCE);
        let mean = mean(&prepared.target.unwrap().images);
        assert!(mean > 3.0, "the shift of the target stays: {mean}");
    }

    #[test]
    fn whitened_features_are_uncorrelated_in_every_domain_pooled_or_not() {
        let config = TrainConfig { standardise: Standardise::Whiten, ..TrainConfig::default() };
        for data in [toy(60, 200, 200), toy_fragments(60, 200, 200)] {
            let prepared = data.prepare(&config, &Device::Cpu).unwrap();
            let target = prepared.target.unwrap();
            let rows: Vec<usize> = (0..target.images.len()).collect();
            let features = match target.images.select(&rows).unwrap() {
                Items::Pooled(features) => features,
                Items::Fragments(fragments) => fragments.features().flatten(0, 1).unwrap(),
                Items::Words(_) => panic!("words"),
            };
            let count = features.dim(0).unwrap() as f64;
            let covariance = (features.t().unwrap().matmul(&features).unwrap() / count).unwrap();
            for (row, values) in covariance.to_vec2::<f32>().unwrap().iter().enumerate() {
                for (column, value) in values.iter().enumerate() {
                    let expected = f32::from(row == column);
                    assert!((value - expected).abs() < 0.3, "{row} {column}: {value}");
                }
            }
            let served = prepared.standardisation.domain(TARGET).unwrap();
            assert!(served.image.as_ref().unwrap().whitening().is_some());
        }
    }

    #[test]
    fn a_part_of_the_target_is_held_out() {
        let data = toy(20, 10, 30);
        let config = TrainConfig { target_held_out: 0.2, ..TrainConfig::default() };
        let prepared = data.prepare(&config, &Device::Cpu).unwrap();
        let (trained, held) = (prepared.target.unwrap(), prepared.target_held_out.unwrap());
        assert_eq!((trained.images.len(), held.images.len()), (8, 2));
        assert_eq!((trained.sentences.len(), held.sentences.len()), (24, 6));
        let whole = data.prepare(&TrainConfig::default(), &Device::Cpu).unwrap();
        assert!(whole.target_held_out.is_none());
        let sum = |items: &PreparedItems| mean(items) * items.len() as f32;
        let images = whole.target.unwrap().images;
        assert!((sum(&trained.images) + sum(&held.images) - sum(&images)).abs() < 1e-3, "nothing is lost");
        let config = TrainConfig { target_held_out: 0.01, ..TrainConfig::default() };
        assert!(data.prepare(&config, &Device::Cpu).is_err());
    }

    #[test]
    fn with_the_switch_each_domain_is_centred() {
        let mut data = toy(20, 9, 7);
        data.sources.push(SourceData { name: TARGET.into(), ..data.sources[0].clone() });
        let config = TrainConfig { standardise: Standardise::Standardise, ..TrainConfig::default() };
        let prepared = data.prepare(&config, &Device::Cpu).unwrap();
        assert_eq!(prepared.standardisation.serving(), TARGET);
        assert!(prepared.standardisation.domain("target-2").is_ok(), "a source called target keeps its own");
        let mean = mean(&prepared.target.unwrap().images);
        assert!(mean.abs() < 1e-5);
        data.target = None;
        assert!(data.prepare(&config, &Device::Cpu).is_err());
    }
}
