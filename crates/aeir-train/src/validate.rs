//! Scoring without target labels, for choosing an epoch, and the final scoring of pairs.

use std::ops::Range;

use aeir_data::ShuffledSampler;
use aeir_encoders::{DualEncoder, Encoded, EncoderError, Items, Mode};
use aeir_retrieve::{
    LabelFree, LabelFreeOptions, Matrix, ProxyADistanceOptions, Relevance, RetrievalMetrics,
};
use candle_core::Device;

use crate::data::{PreparedData, PreparedPairs, PreparedTarget};
use crate::error::{Result, TrainError};
use crate::items::{ItemTable, PreparedItems};
use crate::observer::DomainDistances;
use crate::score::{full_scores, joined};

/// Items of a set that the label-free figures look at: enough for a stable mean, few enough for an epoch.
const SAMPLE: usize = 2_000;
/// Images of a validation split that a cross-attentive head scores after each epoch.
const MOST_VALIDATION_IMAGES: usize = 1_000;
/// Items of a domain below which its distance to another says nothing.
const FEWEST_FOR_DISTANCE: usize = 8;

/// The pooled vectors of a table's items, encoded with `encode` in blocks, on the host.
///
/// # Errors
/// When an operation fails on the device.
pub fn embed_table(
    table: &ItemTable,
    device: &Device,
    encode: impl FnMut(&Items) -> std::result::Result<Encoded, EncoderError>,
) -> Result<Matrix> {
    embed_prepared(&PreparedItems::new(&[(table, None)], device)?, encode)
}

pub(crate) fn embed_prepared(
    items: &PreparedItems,
    mut encode: impl FnMut(&Items) -> std::result::Result<Encoded, EncoderError>,
) -> Result<Matrix> {
    let mut values = Vec::new();
    let mut columns = 0;
    for block in blocks(items) {
        let pooled = encode(&items.select(&block)?)?.pooled()?;
        columns = pooled.dim(1)?;
        values.extend(pooled.flatten_all()?.to_vec1::<f32>()?);
    }
    Ok(Matrix::new(values, items.len(), columns)?)
}

/// Row numbers in blocks that bound memory.
fn blocks(items: &PreparedItems) -> impl Iterator<Item = Vec<usize>> {
    let (count, size) = (items.len(), items.rows_at_once());
    (0..count).step_by(size).map(move |start| (start..count.min(start + size)).collect())
}

/// All of a table's items encoded with `encode`, fragments included, block by block without a graph.
///
/// # Errors
/// When an operation fails on the device.
pub fn encode_table(
    table: &ItemTable,
    device: &Device,
    encode: impl FnMut(&Items) -> std::result::Result<Encoded, EncoderError>,
) -> Result<Encoded> {
    encode_prepared(&PreparedItems::new(&[(table, None)], device)?, encode)
}

fn encode_prepared(
    items: &PreparedItems,
    mut encode: impl FnMut(&Items) -> std::result::Result<Encoded, EncoderError>,
) -> Result<Encoded> {
    let encoded = blocks(items)
        .map(|block| Ok(encode(&items.select(&block)?)?.detach()))
        .collect::<Result<Vec<_>>>()?;
    joined(&encoded)
}

/// Scores prepared pairs: with the cosine, or with the cross-attentive head in full.
///
/// # Errors
/// When embedding fails or gives values that are not finite.
pub fn score_pairs(encoder: &DualEncoder, pairs: &PreparedPairs) -> Result<RetrievalMetrics> {
    let relevance = Relevance::from_owners(pairs.images.len(), &pairs.owners)?;
    let images = |items: &Items| encoder.encode_images(items, &mut Mode::Evaluation);
    let sentences = |items: &Items| encoder.encode_sentences(items, &mut Mode::Evaluation);
    if !encoder.config().head.is_cross_attentive() {
        let images = embed_prepared(&pairs.images, images)?;
        let sentences = embed_prepared(&pairs.sentences, sentences)?;
        return Ok(aeir_retrieve::evaluate_embeddings(&images, &sentences, &relevance)?);
    }
    let images = encode_prepared(&pairs.images, images)?;
    let sentences = encode_prepared(&pairs.sentences, sentences)?;
    let scores = full_scores(encoder, &images, &sentences, |_, _| ())?;
    Ok(aeir_retrieve::evaluate(&scores, &relevance)?)
}

/// Mean rSum over the source validation splits. Of a split with many images a cross-attentive head scores the first
/// thousand, the size the field reports.
///
/// # Errors
/// When scoring fails.
pub fn source_validation_rsum(encoder: &DualEncoder, splits: &[PreparedPairs]) -> Result<Option<f64>> {
    if splits.is_empty() {
        return Ok(None);
    }
    let mut sum = 0.0;
    for split in splits {
        sum += if encoder.config().head.is_cross_attentive() && split.images.len() > MOST_VALIDATION_IMAGES {
            score_pairs(encoder, &split.first(MOST_VALIDATION_IMAGES))?.rsum
        } else {
            score_pairs(encoder, split)?.rsum
        };
    }
    Ok(Some(sum / splits.len() as f64))
}

/// How well the unpaired target sets fit together, by their pooled vectors, without a label. Larger sets are sampled, always
/// alike.
///
/// The figures are those of [`aeir_retrieve::label_free`], with 10 neighbours and a temperature of 0.05.
///
/// # Errors
/// When embedding or scoring fails.
pub fn target_figures(encoder: &DualEncoder, target: &PreparedTarget) -> Result<LabelFree> {
    // Streams of their own: rows of the same number may belong together, which must not be seen here.
    let images = sampled(encoder, Modality::Images, &target.images, 0)?;
    let sentences = sampled(encoder, Modality::Sentences, &target.sentences, 1)?;
    let scores = aeir_retrieve::similarity(&images, &sentences)?;
    Ok(aeir_retrieve::label_free(&scores, &LabelFreeOptions::default())?)
}

/// Proxy A-distance of source and target, by the pooled vectors of each modality. Larger sets are sampled, always alike.
///
/// Of a model with a memory the towers' part is looked at: a source item finds itself in the memory, which tells it from any
/// other and says nothing of the domains.
///
/// # Errors
/// When embedding fails or a domain has too few items to be split.
pub fn domain_distances(
    encoder: &DualEncoder,
    source: &PreparedData,
    target: &PreparedTarget,
) -> Result<Option<DomainDistances>> {
    let distance = |modality, source: &PreparedItems, target: &PreparedItems| {
        if source.len() < FEWEST_FOR_DISTANCE || target.len() < FEWEST_FOR_DISTANCE {
            return Ok(None);
        }
        let source = towers_alone(encoder, sampled(encoder, modality, source, 2)?)?;
        let target = towers_alone(encoder, sampled(encoder, modality, target, 3)?)?;
        let distance = aeir_retrieve::proxy_a_distance(&source, &target, &ProxyADistanceOptions::default())?;
        Ok::<_, TrainError>(Some(distance.distance))
    };
    let [source_images, source_sentences] = source.source_alone();
    let images = distance(Modality::Images, &source_images, &target.images)?;
    let sentences = distance(Modality::Sentences, &source_sentences, &target.sentences)?;
    Ok(images.zip(sentences).map(|(images, sentences)| DomainDistances { images, sentences }))
}

#[derive(Clone, Copy)]
enum Modality {
    Images,
    Sentences,
}

/// What the towers made of joined vectors, in the scale of vectors without a memory.
fn towers_alone(encoder: &DualEncoder, embeddings: Matrix) -> Result<Matrix> {
    let config = encoder.config();
    if config.memory.is_none() {
        Ok(embeddings)
    } else {
        unit_columns(&embeddings, 0..config.trained_dimension())
    }
}

/// Unit vectors of a range of columns.
pub(crate) fn unit_columns(embeddings: &Matrix, columns: Range<usize>) -> Result<Matrix> {
    let rows: Vec<&[f32]> =
        embeddings.iter_rows().map(|row| row.get(columns.clone()).unwrap_or_default()).collect();
    Ok(Matrix::from_rows(&rows)?.l2_normalised()?)
}

/// Pooled vectors of some of the items, always the same for a stream.
fn sampled(encoder: &DualEncoder, modality: Modality, items: &PreparedItems, stream: u64) -> Result<Matrix> {
    let mut rows: Vec<usize> = (0..items.len()).collect();
    if rows.len() > SAMPLE {
        let order = ShuffledSampler::new(rows.len(), 0, stream).epoch_order(0);
        rows = order.iter().take(SAMPLE).copied().collect();
    }
    let (mut values, mut columns) = (Vec::new(), 0);
    for block in rows.chunks(items.rows_at_once()) {
        let items = items.select(block)?;
        let encoded = match modality {
            Modality::Images => encoder.encode_images(&items, &mut Mode::Evaluation)?,
            Modality::Sentences => encoder.encode_sentences(&items, &mut Mode::Evaluation)?,
        };
        let pooled = encoded.pooled()?;
        columns = pooled.dim(1)?;
        values.extend(pooled.flatten_all()?.to_vec1::<f32>()?);
    }
    Ok(Matrix::new(values, rows.len(), columns)?)
}
