//! Scoring without target labels, for choosing an epoch, and the final scoring of pairs.

use aeir_data::ShuffledSampler;
use aeir_encoders::{DualEncoder, Mode};
use aeir_retrieve::{Matrix, Relevance, RetrievalMetrics};
use candle_core::Tensor;

use crate::data::{PreparedPairs, PreparedTarget};
use crate::error::Result;

/// Items of each target set that the label-free criterion looks at: enough for a stable mean, few enough for an epoch.
const TARGET_SAMPLE: usize = 2_000;
/// Rows embedded at once, to bound memory.
const ROWS_AT_ONCE: usize = 4_096;
/// Neighbours in the CSLS means.
const CSLS_NEIGHBOURS: usize = 10;

/// Embeds features `[N, F]` with `embed`, in blocks, and brings them to the host.
///
/// # Errors
/// When an operation fails on the device.
pub fn embed_in_blocks(
    features: &Tensor,
    mut embed: impl FnMut(&Tensor) -> std::result::Result<Tensor, aeir_encoders::EncoderError>,
) -> Result<Matrix> {
    let rows = features.dim(0)?;
    let mut values = Vec::new();
    let mut columns = 0;
    for start in (0..rows).step_by(ROWS_AT_ONCE) {
        let block = embed(&features.narrow(0, start, ROWS_AT_ONCE.min(rows - start))?)?;
        columns = block.dim(1)?;
        values.extend(block.flatten_all()?.to_vec1::<f32>()?);
    }
    Ok(Matrix::new(values, rows, columns)?)
}

/// Scores prepared pairs with both towers.
///
/// # Errors
/// When embedding fails or gives values that are not finite.
pub fn score_pairs(encoder: &DualEncoder, pairs: &PreparedPairs) -> Result<RetrievalMetrics> {
    let images = embed_in_blocks(&pairs.images, |x| encoder.embed_images(x, &mut Mode::Evaluation))?;
    let sentences = embed_in_blocks(&pairs.sentences, |x| encoder.embed_sentences(x, &mut Mode::Evaluation))?;
    let relevance = Relevance::from_owners(images.rows(), &pairs.owners)?;
    Ok(aeir_retrieve::evaluate_embeddings(&images, &sentences, &relevance)?)
}

/// Mean rSum over the source validation splits.
///
/// # Errors
/// When scoring fails.
pub fn source_validation_rsum(encoder: &DualEncoder, splits: &[PreparedPairs]) -> Result<Option<f64>> {
    if splits.is_empty() {
        return Ok(None);
    }
    let mut sum = 0.0;
    for split in splits {
        sum += score_pairs(encoder, split)?.rsum;
    }
    Ok(Some(sum / splits.len() as f64))
}

/// Mean CSLS similarity of the mutual nearest neighbours between the unpaired target sets.
///
/// Equation: `csls(x, z) = 2 cos(x, z) - r(x) - r(z)`, r the mean cosine to the 10 nearest of the other set (Conneau et
/// al., ICLR 2018); the mean over pairs that are each other's nearest under it. It is 0 where no pair is mutual.
/// Larger sets are sampled, always alike.
///
/// # Errors
/// When embedding or scoring fails.
pub fn target_mutual_similarity(encoder: &DualEncoder, target: &PreparedTarget) -> Result<f64> {
    // Streams of their own: rows of the same number may belong together, which must not be seen here.
    let sample = |features: &Tensor, stream: u64| {
        let rows = features.dim(0)?;
        if rows <= TARGET_SAMPLE {
            return Ok(features.clone());
        }
        let order = ShuffledSampler::new(rows, 0, stream).epoch_order(0);
        let picked: Vec<u32> = order.iter().take(TARGET_SAMPLE).map(|row| *row as u32).collect();
        features.index_select(&Tensor::new(picked, features.device())?, 0)
    };
    let images =
        embed_in_blocks(&sample(&target.images, 0)?, |x| encoder.embed_images(x, &mut Mode::Evaluation))?;
    let sentences = embed_in_blocks(&sample(&target.sentences, 1)?, |x| {
        encoder.embed_sentences(x, &mut Mode::Evaluation)
    })?;
    let scores = aeir_retrieve::similarity(&images, &sentences)?;
    let neighbours = CSLS_NEIGHBOURS.min(images.rows()).min(sentences.rows());
    let corrected = aeir_retrieve::csls(&scores, neighbours)?;
    Ok(mutual_mean(&corrected))
}

fn mutual_mean(scores: &Matrix) -> f64 {
    let mut best_of_column = vec![(f32::NEG_INFINITY, usize::MAX); scores.columns()];
    let mut best_of_row = Vec::with_capacity(scores.rows());
    for row in 0..scores.rows() {
        let mut best = (f32::NEG_INFINITY, usize::MAX);
        for (column, score) in scores.row(row).unwrap_or_default().iter().enumerate() {
            if *score > best.0 {
                best = (*score, column);
            }
            if let Some(of_column) = best_of_column.get_mut(column)
                && *score > of_column.0
            {
                *of_column = (*score, row);
            }
        }
        best_of_row.push(best);
    }
    let (mut sum, mut count) = (0.0, 0usize);
    for (row, (score, column)) in best_of_row.iter().enumerate() {
        if best_of_column.get(*column).is_some_and(|(_, back)| *back == row) {
            sum += f64::from(*score);
            count += 1;
        }
    }
    sum / count.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_mutual_neighbours_count() {
        // Row 0 and column 0 choose each other; row 1 prefers column 0 as well, column 1 prefers row 1.
        let scores = Matrix::new(vec![0.9, 0.1, 0.8, 0.5], 2, 2).unwrap();
        assert!((mutual_mean(&scores) - f64::from(0.9f32)).abs() < 1e-9);
    }
}
