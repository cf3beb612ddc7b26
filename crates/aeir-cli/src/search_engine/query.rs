//! What is asked: a sentence, an image, an item of the index, or several at once, less what it should not be.

use aeir_encoders::{Bundle, PreparedImage};
use candle_core::Tensor;

use super::SearchEngine;

/// A sum shorter than this has no direction left: its parts are unit vectors times weights.
const SHORTEST: f32 = 1e-4;

/// How much the parts of a query count beside its sentence, which counts 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Weights {
    /// Of an image, and of an item of the index.
    pub(crate) image: f32,
    /// Of each term that is taken away.
    pub(crate) minus: f32,
}

impl Default for Weights {
    /// Equal parts; what is taken away counts half, so that it turns a query and doesn't replace it.
    fn default() -> Self {
        Self { image: 1.0, minus: 0.5 }
    }
}

/// A query before it is embedded. At least one of its first three parts is there.
#[derive(Clone, Debug, Default)]
pub(crate) struct Query {
    pub(crate) text: Option<String>,
    pub(crate) image: Option<PreparedImage>,
    /// Position of an item whose vector is part of the query: "more like this".
    pub(crate) item: Option<usize>,
    /// What the images should not show.
    pub(crate) minus: Vec<String>,
    pub(crate) weights: Weights,
}

/// Why a query has no vector.
#[derive(Debug, thiserror::Error)]
pub(crate) enum QueryError {
    /// Neither a sentence nor an image.
    #[error("the query is empty")]
    Empty,
    /// Equal parts, taken from each other.
    #[error("the parts of the query cancel out: nothing is left to look for")]
    Cancelled,
    /// The model's fault.
    #[error("the model gave a vector that is not finite: it can't be searched with")]
    NotFinite,
    /// An item that this index does not have.
    #[error("no item {0} in this index")]
    NoItem(usize),
}

impl Query {
    pub(crate) fn of_text(text: impl Into<String>) -> Self {
        Self { text: Some(text.into()), ..Self::default() }
    }

    /// The sentence, where the query is one and nothing else.
    pub(crate) fn plain_sentence(&self) -> Option<&str> {
        self.text.as_deref().filter(|_| self.is_of_sentences() && self.minus.is_empty())
    }

    /// Whether sentences alone make it.
    pub(crate) fn is_of_sentences(&self) -> bool {
        self.text.is_some() && self.image.is_none() && self.item.is_none()
    }

    fn sentences(&self) -> impl Iterator<Item = &str> {
        self.text.iter().chain(&self.minus).map(String::as_str)
    }
}

impl SearchEngine {
    /// [`vectors_of`] queries with the engine's model and the items of its index.
    ///
    /// # Errors
    /// As [`vectors_of`].
    pub(crate) fn vectors(&self, queries: &[&Query]) -> anyhow::Result<Vec<Result<Vec<f32>, QueryError>>> {
        vectors_of(&self.bundle, queries, |position| self.shelf.index.embedding(position))
    }
}

/// Unit vectors of some queries, all sentences in one batch and all images in another.
///
/// Equation: `q = t + w_image (i + x) - w_minus sum_m m`, scaled to length 1, of the unit vectors of sentence, image, item and terms.
/// A sentence or an image alone stays as the model gives it.
///
/// # Errors
/// Where the model fails on a batch; inside, why single queries have no vector.
pub(crate) fn vectors_of(
    bundle: &Bundle,
    queries: &[&Query],
    item_at: impl Fn(usize) -> Option<Vec<f32>>,
) -> anyhow::Result<Vec<Result<Vec<f32>, QueryError>>> {
    let sentences: Vec<&str> = queries.iter().flat_map(|query| query.sentences()).collect();
    let images: Vec<PreparedImage> = queries.iter().filter_map(|query| query.image.clone()).collect();
    let mut sentences = embed_sentences(bundle, &sentences)?.into_iter();
    let mut images = embed_images(bundle, &images)?.into_iter();
    let vectors = queries.iter().map(|query| {
        let text = query.text.as_ref().and_then(|_| sentences.next());
        let minus: Vec<Vec<f32>> = sentences.by_ref().take(query.minus.len()).collect();
        let image = query.image.as_ref().and_then(|_| images.next());
        let item = match query.item {
            Some(position) => Some(item_at(position).ok_or(QueryError::NoItem(position))?),
            None => None,
        };
        let Weights { image: of_image, minus: of_minus } = query.weights;
        let mut parts: Vec<(f32, Vec<f32>)> = Vec::new();
        parts.extend(text.map(|vector| (1.0, vector)));
        parts.extend(image.into_iter().chain(item).map(|vector| (of_image, vector)));
        if parts.is_empty() {
            return Err(QueryError::Empty);
        }
        parts.extend(minus.into_iter().map(|vector| (-of_minus, vector)));
        combined(parts)
    });
    Ok(vectors.collect())
}

fn embed_sentences(bundle: &Bundle, sentences: &[&str]) -> anyhow::Result<Vec<Vec<f32>>> {
    if sentences.is_empty() {
        return Ok(Vec::new());
    }
    rows(&bundle.embed_sentences(sentences)?)
}

fn embed_images(bundle: &Bundle, images: &[PreparedImage]) -> anyhow::Result<Vec<Vec<f32>>> {
    if images.is_empty() {
        return Ok(Vec::new());
    }
    rows(&bundle.encode_images(&bundle.prepared_items(images)?)?.pooled()?)
}

fn rows(vectors: &Tensor) -> anyhow::Result<Vec<Vec<f32>>> {
    Ok(vectors.to_vec2::<f32>()?)
}

/// The weighted sum at length 1; a single part as it is.
fn combined(mut parts: Vec<(f32, Vec<f32>)>) -> Result<Vec<f32>, QueryError> {
    if parts.iter().flat_map(|(_, vector)| vector).any(|value| !value.is_finite()) {
        return Err(QueryError::NotFinite);
    }
    if let [(_, _)] = parts.as_slice() {
        return Ok(parts.pop().map(|(_, vector)| vector).unwrap_or_default());
    }
    let mut sum = vec![0.0f32; parts.first().map_or(0, |(_, vector)| vector.len())];
    for (weight, vector) in &parts {
        for (total, value) in sum.iter_mut().zip(vector) {
            *total += weight * value;
        }
    }
    let length = sum.iter().map(|value| value * value).sum::<f32>().sqrt();
    if !length.is_finite() || length < SHORTEST {
        return Err(QueryError::Cancelled);
    }
    for value in &mut sum {
        *value /= length;
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_added_and_terms_taken_away() {
        let (x, y) = (vec![1.0, 0.0], vec![0.0, 1.0]);
        let sum = combined(vec![(1.0, x.clone()), (1.0, y.clone())]).unwrap();
        assert!(sum.iter().all(|value| (value - 0.5f32.sqrt()).abs() < 1e-6), "{sum:?}");
        let less = combined(vec![(1.0, sum), (-0.5, y.clone())]).unwrap();
        assert!(less[0] > 0.95 && less[1] > 0.0, "{less:?}");
        assert_eq!(
            combined(vec![(7.0, vec![0.6, 0.8])]).unwrap(),
            [0.6, 0.8],
            "one part alone stays as it is"
        );
    }

    #[test]
    fn what_has_no_direction_is_refused() {
        let x = vec![1.0, 0.0];
        let none = combined(vec![(0.5, x.clone()), (-0.5, x.clone())]);
        assert!(matches!(none, Err(QueryError::Cancelled)), "{none:?}");
        let broken = combined(vec![(1.0, vec![f32::NAN, 0.0])]);
        assert!(matches!(broken, Err(QueryError::NotFinite)), "{broken:?}");
        let endless = combined(vec![(f32::MAX, x.clone()), (f32::MAX, x)]);
        assert!(matches!(endless, Err(QueryError::Cancelled)), "{endless:?}");
    }
}
