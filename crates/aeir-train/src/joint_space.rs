//! Source and target sets in one space: of a model, or of towers that are trained on the source for the occasion.

use std::collections::HashMap;

use aeir_encoders::standardise::DomainStatistics;
use aeir_encoders::{Bundle, DualEncoder, Encoded, EncoderError, Items, Mode};
use aeir_retrieve::{Matrix, Relevance, RetrievalMetrics};
use candle_core::{DType, Device};
use candle_nn::VarBuilder;

use crate::config::{MethodName, Standardise, TrainConfig};
use crate::data::{self, SourceData, TARGET, TargetData, TrainingData};
use crate::error::{Result, TrainError};
use crate::observer::Observer;
use crate::trainer::{Trained, train};
use crate::validate::embed_table;

/// Four sets of unit vectors in one space.
#[derive(Debug, Clone)]
pub struct JointSpace {
    /// `[N, D]`, of all sources; empty without any.
    pub source_images: Matrix,
    /// `[M, D]`, all sentences of all sources.
    pub source_sentences: Matrix,
    /// `[N, D]`.
    pub target_images: Matrix,
    /// `[M, D]`.
    pub target_sentences: Matrix,
    /// Recall on the sources' validation pairs: whether the space is of any use where labels exist.
    pub source_validation: Option<RetrievalMetrics>,
}

impl JointSpace {
    /// Trains linear towers on the source pairs, once for each of `seeds`, every domain standardised by itself, and puts
    /// the spaces side by side: the cosine in the result is the mean cosine of the towers.
    ///
    /// Several towers agree on what the features say and differ in their noise.
    ///
    /// # Errors
    /// When there is no target, too few source pairs, or the training fails.
    pub fn of_source_towers(
        data: &TrainingData,
        seeds: u64,
        epochs: usize,
        device: &Device,
        observer: &mut (dyn Observer + Send),
    ) -> Result<Self> {
        let mut spaces = Vec::new();
        for seed in 1..=seeds.max(1) {
            let config = TrainConfig {
                method: MethodName::SourceOnly,
                standardise: Standardise::Standardise,
                seed,
                epochs,
                ..TrainConfig::default()
            };
            let trained = train(&config, data, None, device, observer)?;
            spaces.push(Sets::of_trained(&trained, data, device)?);
        }
        Sets::side_by_side(&spaces)?.space(data)
    }

    /// The vectors of a trained model.
    ///
    /// Target items are embedded as the model serves them. Source items are too, unless the model gives each domain statistics
    /// of its own: then they get those of the source given here.
    ///
    /// # Errors
    /// When there is no target, or the features are not what the model takes.
    pub fn of_bundle(bundle: &Bundle, data: &TrainingData) -> Result<Self> {
        let device = bundle.device();
        let target = target_of(data)?;
        let own = bundle.manifest().serving_domain == TARGET;
        let serve_images = |items: &Items| bundle.encode_images(items);
        let serve_sentences = |items: &Items| bundle.encode_sentences(items);
        let mut sets = Sets {
            target_images: embed_table(&target.images, device, serve_images)?,
            target_sentences: embed_table(&target.sentences, device, serve_sentences)?,
            ..Sets::default()
        };
        for source in &data.sources {
            if own {
                let (images, sentences) = ([&source.images], [&source.sentences]);
                let how = if bundle.whitens() { Standardise::Whiten } else { Standardise::Standardise };
                let statistics = data::statistics(&images, &sentences, how, device)?;
                sets.add_source(
                    source,
                    &Towers { encoder: bundle.encoder(), statistics: &statistics },
                    device,
                )?;
            } else {
                sets.add(source, device, serve_images, serve_sentences)?;
            }
        }
        sets.space(data)
    }
}

fn target_of(data: &TrainingData) -> Result<&TargetData> {
    data.target.as_ref().ok_or_else(|| TrainError::Data {
        what: "a joint space of both domains".into(),
        expected: "target images and target sentences".into(),
        got: "none".into(),
    })
}

/// Towers with the statistics of one domain.
struct Towers<'a> {
    encoder: &'a DualEncoder,
    statistics: &'a DomainStatistics,
}

impl Towers<'_> {
    fn images(&self, items: &Items) -> std::result::Result<Encoded, EncoderError> {
        self.encoder.encode_images(&self.statistics.standardise_images(items)?, &mut Mode::Evaluation)
    }

    fn sentences(&self, items: &Items) -> std::result::Result<Encoded, EncoderError> {
        self.encoder.encode_sentences(&self.statistics.standardise_sentences(items)?, &mut Mode::Evaluation)
    }
}

/// Embedded sets, one matrix a source.
#[derive(Default)]
struct Sets {
    source_images: Vec<Matrix>,
    source_sentences: Vec<Matrix>,
    validation: Vec<(Matrix, Matrix)>,
    target_images: Matrix,
    target_sentences: Matrix,
}

impl Sets {
    fn of_trained(trained: &Trained, data: &TrainingData, device: &Device) -> Result<Self> {
        let parameters: HashMap<_, _> = trained.parameters.clone().into_iter().collect();
        let builder = VarBuilder::from_tensors(parameters, DType::F32, device);
        // The temperature is among the parameters: the initial one given here is not used.
        let encoder = DualEncoder::new(trained.encoder, 1.0, builder)?;
        let target = target_of(data)?;
        let of_target = Towers {
            encoder: &encoder,
            statistics: trained.standardisation.domain(trained.standardisation.serving())?,
        };
        let mut sets = Self {
            target_images: embed_table(&target.images, device, |items| of_target.images(items))?,
            target_sentences: embed_table(&target.sentences, device, |items| of_target.sentences(items))?,
            ..Self::default()
        };
        for (source, name) in data.sources.iter().zip(data.domain_names()) {
            let statistics = trained.standardisation.domain(&name)?;
            sets.add_source(source, &Towers { encoder: &encoder, statistics }, device)?;
        }
        Ok(sets)
    }

    fn add_source(&mut self, source: &SourceData, towers: &Towers<'_>, device: &Device) -> Result<()> {
        self.add(source, device, |items| towers.images(items), |items| towers.sentences(items))
    }

    fn add(
        &mut self,
        source: &SourceData,
        device: &Device,
        images: impl Fn(&Items) -> std::result::Result<Encoded, EncoderError>,
        sentences: impl Fn(&Items) -> std::result::Result<Encoded, EncoderError>,
    ) -> Result<()> {
        self.source_images.push(embed_table(&source.images, device, &images)?);
        self.source_sentences.push(embed_table(&source.sentences, device, &sentences)?);
        if let Some(pairs) = &source.validation {
            let images = embed_table(&pairs.images, device, &images)?;
            self.validation.push((images, embed_table(&pairs.sentences, device, &sentences)?));
        }
        Ok(())
    }

    /// Each item's vectors of all spaces one after the other, scaled back to length 1.
    fn side_by_side(spaces: &[Self]) -> Result<Self> {
        let joined =
            |of: &dyn Fn(&Self) -> Option<&Matrix>| beside(&spaces.iter().filter_map(of).collect::<Vec<_>>());
        let first = spaces.first();
        let sources = first.map_or(0, |space| space.source_images.len());
        let validations = first.map_or(0, |space| space.validation.len());
        Ok(Self {
            source_images: (0..sources)
                .map(|i| joined(&|s| s.source_images.get(i)))
                .collect::<Result<_>>()?,
            source_sentences: (0..sources)
                .map(|i| joined(&|s| s.source_sentences.get(i)))
                .collect::<Result<_>>()?,
            validation: (0..validations)
                .map(|i| {
                    let images = joined(&|s| s.validation.get(i).map(|(images, _)| images))?;
                    Ok((images, joined(&|s| s.validation.get(i).map(|(_, sentences)| sentences))?))
                })
                .collect::<Result<_>>()?,
            target_images: joined(&|s| Some(&s.target_images))?,
            target_sentences: joined(&|s| Some(&s.target_sentences))?,
        })
    }

    fn space(self, data: &TrainingData) -> Result<JointSpace> {
        let splits = data.sources.iter().filter_map(|source| source.validation.as_ref());
        // The first source's: figures of several splits can't be added.
        let source_validation = match (self.validation.first(), splits.into_iter().next()) {
            (Some((images, sentences)), Some(pairs)) => {
                let relevance = Relevance::from_owners(images.rows(), &pairs.owners)?;
                Some(aeir_retrieve::evaluate_embeddings(images, sentences, &relevance)?)
            }
            _ => None,
        };
        Ok(JointSpace {
            source_images: stacked(&self.source_images)?,
            source_sentences: stacked(&self.source_sentences)?,
            target_images: self.target_images,
            target_sentences: self.target_sentences,
            source_validation,
        })
    }
}

/// Rows of all matrices side by side, scaled to length 1.
fn beside(matrices: &[&Matrix]) -> Result<Matrix> {
    let rows = matrices.first().map_or(0, |matrix| matrix.rows());
    let columns = matrices.iter().map(|matrix| matrix.columns()).sum();
    let values = (0..rows)
        .flat_map(|row| matrices.iter().flat_map(move |matrix| matrix.row(row).unwrap_or_default()))
        .copied();
    Ok(Matrix::new(values.collect(), rows, columns)?.l2_normalised()?)
}

/// The rows of all matrices, one after the other.
fn stacked(matrices: &[Matrix]) -> Result<Matrix> {
    if matrices.is_empty() {
        return Ok(Matrix::default());
    }
    let rows = matrices.iter().map(Matrix::rows).sum();
    let columns = matrices.first().map_or(0, Matrix::columns);
    let values = matrices.iter().flat_map(|matrix| matrix.values()).copied().collect();
    Ok(Matrix::new(values, rows, columns)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::tests::toy;
    use crate::observer::Silent;

    #[test]
    fn towers_of_several_seeds_lie_side_by_side() {
        let data = toy(40, 9, 7);
        let space = JointSpace::of_source_towers(&data, 2, 3, &Device::Cpu, &mut Silent).unwrap();
        assert_eq!((space.source_images.rows(), space.source_sentences.rows()), (40, 40));
        assert_eq!((space.target_images.rows(), space.target_sentences.rows()), (9, 7));
        let one = JointSpace::of_source_towers(&data, 1, 3, &Device::Cpu, &mut Silent).unwrap();
        assert_eq!(space.target_images.columns(), 2 * one.target_images.columns());
        let length: f32 = space.target_images.row(3).unwrap().iter().map(|value| value * value).sum();
        assert!((length - 1.0).abs() < 1e-5, "{length}");
        assert_eq!(space.source_validation.unwrap().n_images, 12);
        let without = TrainingData { target: None, ..data };
        assert!(JointSpace::of_source_towers(&without, 1, 1, &Device::Cpu, &mut Silent).is_err());
    }
}
