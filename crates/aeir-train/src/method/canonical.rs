//! Canonical correlation: linear in closed form, and of two small networks.

use std::collections::BTreeMap;

use aeir_encoders::{DualEncoder, ImageInput, Items, Mode, SentenceInput};
use aeir_losses::{CanonicalCorrelation, DeepCcaLoss, Rows};
use candle_core::{Device, Tensor};

use super::{Embeddings, Method, Moment, PhaseOutcome};
use crate::config::TrainConfig;
use crate::data::PreparedData;
use crate::error::{Result, TrainError};
use crate::figure::Figure;
use crate::parameters::ParameterStore;

/// Pairs that a decomposition looks at: enough for stable covariances of some thousand features.
const MOST_PAIRS: usize = 50_000;
/// Pairs that are projected at once.
const PAIRS_AT_ONCE: usize = 4_096;

/// Linear canonical correlation analysis of the source pairs, without a single step: the projections are its directions.
///
/// Every sentence makes a pair with its image. Where the joint space is wider than there are directions, the rest is zero.
///
/// Source: Hardoon et al., *Canonical correlation analysis: an overview with application to learning methods*, Neural
/// Computation 16, 2004.
pub struct Cca {
    encoder: DualEncoder,
    regularisation: f64,
    store: ParameterStore,
}

impl Cca {
    /// Fits `encoder`, whose parameters are in `store`.
    ///
    /// # Errors
    /// When its inputs are not one vector an item.
    pub fn new(encoder: DualEncoder, config: &TrainConfig, store: &ParameterStore) -> Result<Self> {
        demand_vectors(&encoder, "cca")?;
        Ok(Self { encoder, regularisation: config.cca.regularisation, store: store.clone() })
    }
}

impl Method for Cca {
    fn encoder(&self) -> &DualEncoder {
        &self.encoder
    }

    fn uses_target(&self, _moment: Moment) -> bool {
        false
    }

    fn phases(&self, _moment: Moment) -> usize {
        0
    }

    fn phase(&self, _: usize, _: &Embeddings, _: Moment, _: &mut Mode<'_>) -> Result<PhaseOutcome> {
        Ok(PhaseOutcome { objectives: Vec::new(), logged: Vec::new() })
    }

    fn after_epoch(&self, data: &PreparedData) -> Result<()> {
        let features = |items: Items| match items {
            Items::Pooled(features) => Ok(features),
            _ => Err(needs_vectors("cca")),
        };
        let (images, sentences) = pair_rows(data, |images, sentences| {
            Ok((features(images.clone())?, features(sentences.clone())?))
        })?;
        let dimension = self.encoder.config().embedding_dimension;
        let fitted = fit(&images, &sentences, self.regularisation, dimension)?;
        let mut values = BTreeMap::new();
        for (modality, mean, directions, width) in [
            ("image", fitted.mean_x(), fitted.wx(), images.columns),
            ("sentence", fitted.mean_y(), fitted.wy(), sentences.columns),
        ] {
            let (weight, bias) = linear(mean, directions, fitted.dimension(), dimension);
            let name = |part: &str| format!("encoder.{modality}.projection.{part}");
            values.insert(name("weight"), Tensor::from_vec(weight, (dimension, width), &Device::Cpu)?);
            values.insert(name("bias"), Tensor::from_vec(bias, dimension, &Device::Cpu)?);
        }
        self.store.restore(&values)
    }
}

/// Deep canonical correlation analysis: two networks with one hidden layer are trained for the largest sum of canonical
/// correlations in a batch; after each epoch the canonical directions of their outputs are computed on the source pairs,
/// and follow the networks in evaluation.
///
/// Source: Andrew et al., *Deep canonical correlation analysis*, ICML 2013; on batches: Wang et al., ICASSP 2015, who
/// show that batches must be much larger than D. A batch here has at least 2 D pairs.
pub struct Dcca {
    encoder: DualEncoder,
    loss: DeepCcaLoss,
    store: ParameterStore,
}

impl Dcca {
    /// Trains `encoder`, whose parameters are in `store`.
    ///
    /// # Errors
    /// When its inputs are not one vector an item.
    pub fn new(encoder: DualEncoder, config: &TrainConfig, store: &ParameterStore) -> Result<Self> {
        demand_vectors(&encoder, "dcca")?;
        let loss = DeepCcaLoss { regularisation: config.cca.regularisation };
        Ok(Self { encoder, loss, store: store.clone() })
    }
}

impl Method for Dcca {
    fn encoder(&self) -> &DualEncoder {
        &self.encoder
    }

    fn uses_target(&self, _moment: Moment) -> bool {
        false
    }

    fn phases(&self, _moment: Moment) -> usize {
        1
    }

    fn phase(
        &self,
        _index: usize,
        embeddings: &Embeddings,
        _moment: Moment,
        _mode: &mut Mode<'_>,
    ) -> Result<PhaseOutcome> {
        let images = embeddings.source_images.pooled()?;
        let loss = self.loss.forward(&images, &embeddings.source_sentences.pooled()?)?;
        let logged = vec![("source_loss", Figure::of(&loss)?)];
        Ok(PhaseOutcome::encoder(loss, logged))
    }

    fn after_epoch(&self, data: &PreparedData) -> Result<()> {
        let (images, sentences) =
            pair_rows(data, |images, sentences| Ok(self.encoder.projections(images, sentences)?))?;
        let dimension = self.encoder.config().embedding_dimension;
        let fitted = fit(&images, &sentences, self.loss.regularisation, dimension)?;
        let mut values = BTreeMap::new();
        for (modality, mean, directions) in
            [("image", fitted.mean_x(), fitted.wx()), ("sentence", fitted.mean_y(), fitted.wy())]
        {
            let (weight, bias) = linear(mean, directions, fitted.dimension(), dimension);
            let weight = Tensor::from_vec(weight, (dimension, dimension), &Device::Cpu)?.t()?.contiguous()?;
            values.insert(format!("encoder.{modality}.canonical_weight"), weight);
            let bias = Tensor::from_vec(bias, dimension, &Device::Cpu)?;
            values.insert(format!("encoder.{modality}.canonical_bias"), bias);
        }
        self.store.restore(&values)
    }
}

fn demand_vectors(encoder: &DualEncoder, method: &'static str) -> Result<()> {
    let config = encoder.config();
    let vectors = config.image_input == ImageInput::Pooled && config.sentence_input == SentenceInput::Pooled;
    if vectors { Ok(()) } else { Err(needs_vectors(method)) }
}

fn needs_vectors(method: &'static str) -> TrainError {
    TrainError::Data {
        what: format!("features for method `{method}`"),
        expected: "one vector an image and one a sentence, from frozen encoders".into(),
        got: "regions or words".into(),
    }
}

/// Rows on the host, one after the other.
struct HostRows {
    values: Vec<f32>,
    columns: usize,
}

/// Both sides of the source pairs, seen through `view`.
fn pair_rows(
    data: &PreparedData,
    view: impl Fn(&Items, &Items) -> Result<(Tensor, Tensor)>,
) -> Result<(HostRows, HostRows)> {
    let pairs: Vec<(usize, usize)> = data
        .sentences_of
        .iter()
        .enumerate()
        .flat_map(|(image, sentences)| sentences.iter().map(move |sentence| (image, *sentence)))
        .collect();
    let pairs: Vec<(usize, usize)> =
        pairs.iter().copied().step_by(pairs.len().div_ceil(MOST_PAIRS).max(1)).collect();
    let (mut images, mut sentences) =
        (HostRows { values: Vec::new(), columns: 1 }, HostRows { values: Vec::new(), columns: 1 });
    for block in pairs.chunks(PAIRS_AT_ONCE) {
        let (image_rows, sentence_rows): (Vec<usize>, Vec<usize>) = block.iter().copied().unzip();
        let seen = view(&data.images.select(&image_rows)?, &data.sentences.select(&sentence_rows)?)?;
        for (rows, tensor) in [(&mut images, seen.0), (&mut sentences, seen.1)] {
            rows.columns = tensor.dim(1)?;
            rows.values.extend(tensor.flatten_all()?.to_vec1::<f32>()?);
        }
    }
    Ok((images, sentences))
}

fn fit(
    images: &HostRows,
    sentences: &HostRows,
    regularisation: f64,
    dimension: usize,
) -> Result<CanonicalCorrelation> {
    let directions = dimension.min(images.columns).min(sentences.columns);
    let (x, y) =
        (Rows::new(&images.values, images.columns)?, Rows::new(&sentences.values, sentences.columns)?);
    Ok(CanonicalCorrelation::fit(x, y, regularisation, directions)?)
}

/// Centring and directions `[F, d]` as the weight `[D, F]` and the bias `[D]` of a linear layer.
fn linear(mean: &[f64], directions: &[f64], count: usize, dimension: usize) -> (Vec<f32>, Vec<f32>) {
    let (mut weight, mut bias) = (Vec::with_capacity(dimension * mean.len()), Vec::with_capacity(dimension));
    for direction in 0..dimension {
        // Beyond the directions there are, zeros.
        let of_feature = |feature: usize| {
            let found = directions.get(feature * count + direction).filter(|_| direction < count);
            found.copied().unwrap_or(0.0)
        };
        weight.extend((0..mean.len()).map(|feature| of_feature(feature) as f32));
        let centre: f64 = mean.iter().enumerate().map(|(feature, mean)| mean * of_feature(feature)).sum();
        bias.push(-centre as f32);
    }
    (weight, bias)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directions_become_a_linear_layer_that_centres_first() {
        // Two features, one direction, a joint space of two.
        let (weight, bias) = linear(&[1.0, -2.0], &[3.0, 0.5], 1, 2);
        assert_eq!(weight, [3.0, 0.5, 0.0, 0.0]);
        assert_eq!(bias, [-2.0, 0.0]);
    }
}
