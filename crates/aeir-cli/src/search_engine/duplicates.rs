//! Near-identical images among results.

use aeir_retrieve::{Hit, Index};

use super::Found;

/// Images of at least this cosine count as one. docs/search.md has what copies and other images of the fixtures reach.
pub(crate) const DEFAULT_THRESHOLD: f32 = 0.95;

/// The first `k` hits that are not near-identical to one before them, each with those that are, in the order of the hits.
pub(super) struct Groups<'a> {
    index: &'a Index,
    k: usize,
    threshold: f32,
    /// Each with the vector of its first hit.
    groups: Vec<(Found, Vec<f32>)>,
}

impl<'a> Groups<'a> {
    pub(super) fn new(index: &'a Index, k: usize, threshold: f32) -> Self {
        Self { index, k, threshold, groups: Vec::new() }
    }

    /// Goes on with the hits that follow.
    pub(super) fn add(&mut self, hits: Vec<Hit>) {
        for hit in hits {
            let vector = self.index.embedding(hit.position).unwrap_or_default();
            let same = self.groups.iter_mut().find(|(_, first)| dot(first, &vector) >= self.threshold);
            if let Some((found, _)) = same {
                found.duplicates.push(hit);
            } else if self.groups.len() < self.k {
                self.groups.push((Found::alone(hit), vector));
            }
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.groups.len() >= self.k
    }

    pub(super) fn into_found(self) -> Vec<Found> {
        self.groups.into_iter().map(|(found, _)| found).collect()
    }
}

pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
