//! Near-identical images among results.

use aeir_retrieve::{Hit, Index};

use super::Found;

/// Images of at least this cosine count as one. docs/search.md has what copies and other images of the fixtures reach.
pub(crate) const DEFAULT_THRESHOLD: f32 = 0.95;

/// The first `k` hits that are not near-identical to one before them, each with those that are, in the order of the hits.
pub(super) fn grouped(index: &Index, hits: &[Hit], k: usize, threshold: f32) -> Vec<Found> {
    let mut groups: Vec<(Found, Vec<f32>)> = Vec::new();
    for hit in hits {
        let vector = index.embedding(hit.position).unwrap_or_default();
        let same = groups.iter_mut().find(|(_, first)| dot(first, &vector) >= threshold);
        if let Some((found, _)) = same {
            found.duplicates.push(hit.clone());
        } else if groups.len() < k {
            groups.push((Found::alone(hit.clone()), vector));
        }
    }
    groups.into_iter().map(|(found, _)| found).collect()
}

pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
