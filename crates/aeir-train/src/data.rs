//! Features of every domain, and the tensors a run trains on.

use std::collections::BTreeMap;

use aeir_encoders::Standardisation;
use aeir_encoders::standardise::{DomainStatistics, Standardiser};
use candle_core::{Device, Tensor};
use sha2::{Digest, Sha256};

use crate::config::TrainConfig;
use crate::error::{Result, TrainError};

/// Frozen-backbone features of a set of items, one row an item, `[N, F]` row-major on the host.
#[derive(Debug, Clone, PartialEq)]
pub struct FeatureTable {
    dimension: usize,
    values: Vec<f32>,
}

impl FeatureTable {
    /// A table of `values.len() / dimension` rows.
    ///
    /// # Errors
    /// When that is not a whole number, or a value is not finite.
    pub fn new(values: Vec<f32>, dimension: usize) -> Result<Self> {
        if dimension == 0 || !values.len().is_multiple_of(dimension) {
            return Err(TrainError::Data {
                what: "feature table".into(),
                expected: format!("a multiple of {dimension} values, {dimension} above 0"),
                got: values.len().to_string(),
            });
        }
        if let Some(position) = values.iter().position(|value| !value.is_finite()) {
            return Err(TrainError::Data {
                what: format!("feature {} of item {}", position % dimension, position / dimension),
                expected: "a finite number".into(),
                got: values.get(position).map_or_else(String::new, f32::to_string),
            });
        }
        Ok(Self { dimension, values })
    }

    /// Number of items.
    pub fn len(&self) -> usize {
        self.values.len() / self.dimension
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// F.
    pub fn dimension(&self) -> usize {
        self.dimension
    }

    /// The features of each item.
    pub fn rows(&self) -> impl Iterator<Item = &[f32]> {
        self.values.chunks_exact(self.dimension)
    }

    /// As a tensor `[N, F]`.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn tensor(&self, device: &Device) -> Result<Tensor> {
        Ok(Tensor::from_slice(&self.values, (self.len(), self.dimension), device)?)
    }
}

/// Pairs to score with, never to train on: nothing makes a training batch of them.
#[derive(Debug, Clone)]
pub struct EvaluationPairs {
    /// One row an image.
    pub images: FeatureTable,
    /// One row a sentence.
    pub sentences: FeatureTable,
    /// The image each sentence belongs to.
    pub owners: Vec<usize>,
}

/// A source domain: images with their sentences.
#[derive(Debug, Clone)]
pub struct SourceData {
    /// Its name; it appears in the model's statistics.
    pub name: String,
    /// One row an image.
    pub images: FeatureTable,
    /// One row a sentence.
    pub sentences: FeatureTable,
    /// For each image the rows of its sentences, one or more.
    pub sentences_of: Vec<Vec<usize>>,
    /// The validation split, where there is one.
    pub validation: Option<EvaluationPairs>,
}

/// The target domain: two sets that nobody has aligned.
#[derive(Debug, Clone)]
pub struct TargetData {
    /// One row an image.
    pub images: FeatureTable,
    /// One row a sentence.
    pub sentences: FeatureTable,
}

/// All that a run trains on.
#[derive(Debug, Clone)]
pub struct TrainingData {
    /// One or more source domains.
    pub sources: Vec<SourceData>,
    /// The target, where the method needs it.
    pub target: Option<TargetData>,
}

/// Name of the target's statistics.
pub const TARGET: &str = "target";
/// Name of the statistics of all sources together.
pub const SOURCE: &str = "source";

impl TrainingData {
    /// A hash of all features, their order, pairing and splits: what a checkpoint must agree with.
    pub fn digest(&self) -> String {
        fn numbers<'a>(hash: &mut Sha256, numbers: impl ExactSizeIterator<Item = &'a usize>) {
            hash.update((numbers.len() as u64).to_le_bytes());
            numbers.for_each(|number| hash.update((*number as u64).to_le_bytes()));
        }
        fn table(hash: &mut Sha256, table: &FeatureTable) {
            numbers(hash, [table.len(), table.dimension].iter());
            table.values.iter().for_each(|value| hash.update(value.to_le_bytes()));
        }
        let mut hash = Sha256::new();
        for source in &self.sources {
            numbers(&mut hash, [source.name.len()].iter());
            hash.update(source.name.as_bytes());
            table(&mut hash, &source.images);
            table(&mut hash, &source.sentences);
            source.sentences_of.iter().for_each(|rows| numbers(&mut hash, rows.iter()));
            hash.update([u8::from(source.validation.is_some())]);
            if let Some(pairs) = &source.validation {
                table(&mut hash, &pairs.images);
                table(&mut hash, &pairs.sentences);
                numbers(&mut hash, pairs.owners.iter());
            }
        }
        if let Some(target) = &self.target {
            table(&mut hash, &target.images);
            table(&mut hash, &target.sentences);
        }
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Standardises everything and puts it on the device.
    ///
    /// # Errors
    /// When there are too few source pairs, dimensions differ, or a target is needed and missing.
    pub fn prepare(&self, config: &TrainConfig, device: &Device) -> Result<PreparedData> {
        let first = self.sources.first().ok_or_else(|| TrainError::Data {
            what: "source domains".into(),
            expected: "one or more".into(),
            got: "none".into(),
        })?;
        let (image_dimension, sentence_dimension) = (first.images.dimension, first.sentences.dimension);
        let pairs: usize = self.sources.iter().map(|source| source.images.len()).sum();
        if pairs < 2 {
            return Err(TrainError::Data {
                what: "source pairs to train on".into(),
                expected: "2 or more".into(),
                got: pairs.to_string(),
            });
        }
        let standardisation = self.standardisation(config, image_dimension, sentence_dimension, device)?;
        let mut names = self.domain_names();
        if !config.standardise {
            names.iter_mut().for_each(|name| SOURCE.clone_into(name));
        }

        let mut sentences_of = Vec::with_capacity(pairs);
        let (mut images, mut sentences, mut validation) = (Vec::new(), Vec::new(), Vec::new());
        let mut sentence_count = 0;
        for (source, name) in self.sources.iter().zip(&names) {
            let statistics = standardisation.domain(name)?;
            images.push(statistics.image.apply(&source.images.tensor(device)?)?);
            sentences.push(statistics.sentence.apply(&source.sentences.tensor(device)?)?);
            for of_image in &source.sentences_of {
                sentences_of.push(of_image.iter().map(|row| row + sentence_count).collect());
            }
            sentence_count += source.sentences.len();
            if let Some(pairs) = &source.validation {
                validation.push(PreparedPairs {
                    images: statistics.image.apply(&pairs.images.tensor(device)?)?,
                    sentences: statistics.sentence.apply(&pairs.sentences.tensor(device)?)?,
                    owners: pairs.owners.clone(),
                });
            }
        }
        let target = match &self.target {
            Some(target) => {
                let statistics = standardisation.domain(standardisation.serving())?;
                Some(PreparedTarget {
                    images: statistics.image.apply(&target.images.tensor(device)?)?,
                    sentences: statistics.sentence.apply(&target.sentences.tensor(device)?)?,
                })
            }
            None => None,
        };
        Ok(PreparedData {
            images: Tensor::cat(&images, 0)?,
            sentences: Tensor::cat(&sentences, 0)?,
            sentences_of,
            validation,
            target,
            standardisation,
        })
    }

    /// Unique names; [`TARGET`] and [`SOURCE`] are taken.
    fn domain_names(&self) -> Vec<String> {
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

    fn standardisation(
        &self,
        config: &TrainConfig,
        image_dimension: usize,
        sentence_dimension: usize,
        device: &Device,
    ) -> Result<Standardisation> {
        let fit = |images: &[&FeatureTable], sentences: &[&FeatureTable]| {
            let image_rows = images.iter().flat_map(|table| table.rows());
            let sentence_rows = sentences.iter().flat_map(|table| table.rows());
            Ok::<_, TrainError>(DomainStatistics {
                image: Standardiser::fit(image_rows, image_dimension, device)?,
                sentence: Standardiser::fit(sentence_rows, sentence_dimension, device)?,
            })
        };
        if !config.standardise {
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

/// Standardised features on the device.
pub struct PreparedData {
    /// Source images `[N, F]`, all domains.
    pub images: Tensor,
    /// Source sentences `[M, G]`, all domains.
    pub sentences: Tensor,
    /// For each source image the rows of its sentences.
    pub sentences_of: Vec<Vec<usize>>,
    /// Validation splits, one a source domain that has one.
    pub validation: Vec<PreparedPairs>,
    /// The target's two sets.
    pub target: Option<PreparedTarget>,
    /// What was applied; goes into the model.
    pub standardisation: Standardisation,
}

/// Standardised pairs to score with.
pub struct PreparedPairs {
    /// `[N, F]`.
    pub images: Tensor,
    /// `[M, G]`.
    pub sentences: Tensor,
    /// The image of each sentence.
    pub owners: Vec<usize>,
}

/// The standardised target sets.
pub struct PreparedTarget {
    /// `[N, F]`.
    pub images: Tensor,
    /// `[M, G]`.
    pub sentences: Tensor,
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::{Rng, SeedableRng};

    /// Two small domains in which a sentence is a fixed rotation of its image plus noise, the target shifted.
    pub(crate) fn toy(pairs: usize, target_images: usize, target_sentences: usize) -> TrainingData {
        let mut random = ChaCha8Rng::seed_from_u64(5);
        let mut draw = move || (random.next_u32() as f32 / u32::MAX as f32) - 0.5;
        let mut table = |count: usize, shift: f32| {
            let values: Vec<f32> = (0..count * 8).map(|_| draw() + shift).collect();
            FeatureTable::new(values, 8).unwrap()
        };
        let sentence_of = |images: &FeatureTable| {
            let values = images.rows().flat_map(|row| row.iter().rev().take(6).copied().collect::<Vec<_>>());
            FeatureTable::new(values.collect(), 6).unwrap()
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
        }
    }

    #[test]
    fn without_the_switch_all_domains_get_the_source_statistics() {
        let data = toy(20, 9, 7);
        let prepared = data.prepare(&TrainConfig::default(), &Device::Cpu).unwrap();
        assert_eq!(prepared.standardisation.serving(), SOURCE);
        let mean = prepared.target.unwrap().images.mean_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(mean > 3.0, "the shift of the target stays: {mean}");
    }

    #[test]
    fn with_the_switch_each_domain_is_centred() {
        let mut data = toy(20, 9, 7);
        data.sources.push(SourceData { name: TARGET.into(), ..data.sources[0].clone() });
        let config = TrainConfig { standardise: true, ..TrainConfig::default() };
        let prepared = data.prepare(&config, &Device::Cpu).unwrap();
        assert_eq!(prepared.standardisation.serving(), TARGET);
        assert!(prepared.standardisation.domain("target-2").is_ok(), "a source called target keeps its own");
        let mean = prepared.target.unwrap().images.mean_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(mean.abs() < 1e-5);
        data.target = None;
        assert!(data.prepare(&config, &Device::Cpu).is_err());
    }

    #[test]
    fn features_that_are_not_finite_are_refused_by_place() {
        let error = FeatureTable::new(vec![0.0, 1.0, f32::NAN, 2.0], 2).unwrap_err().to_string();
        assert!(error.contains("feature 0 of item 1"), "{error}");
        assert!(FeatureTable::new(vec![0.0; 3], 2).is_err());
    }
}
