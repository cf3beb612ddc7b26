//! The definitions written out as plain loops, to hold the fast code against.

use aeir_retrieve::{Matrix, Relevance, Ties};

/// Rank of a query: smallest over right items of 1 + wrong items that beat it.
fn rank(scores: &[f32], right: &[usize], ties: Ties) -> u32 {
    let beats = |wrong: f32, own: f32| match ties {
        Ties::Pessimistic => wrong >= own,
        Ties::Optimistic => wrong > own,
    };
    right
        .iter()
        .map(|&r| {
            let mut rank = 1;
            for (j, score) in scores.iter().enumerate() {
                if !right.contains(&j) && beats(*score, scores[r]) {
                    rank += 1;
                }
            }
            rank
        })
        .min()
        .expect("a right item")
}

pub(crate) fn ranks(scores: &Matrix, relevance: &Relevance, ties: Ties) -> (Vec<u32>, Vec<u32>) {
    let i2t = (0..scores.rows())
        .map(|i| rank(scores.row(i).expect("row"), relevance.sentences_of(i), ties))
        .collect();
    let t2i = (0..scores.columns())
        .map(|j| {
            let column: Vec<f32> = (0..scores.rows()).map(|i| scores.get(i, j).expect("score")).collect();
            rank(&column, &[relevance.owner_of(j).expect("owner")], ties)
        })
        .collect();
    (i2t, t2i)
}

/// Positions sorted by the dot product in `f64`, rounded to `f32`, then by position.
pub(crate) fn nearest(query: &[f32], gallery: &Matrix, penalties: Option<&[f32]>) -> Vec<(usize, f32)> {
    let mut all: Vec<(usize, f32)> = gallery
        .iter_rows()
        .map(|row| query.iter().zip(row).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>())
        .enumerate()
        .map(|(j, score)| (j, (score - penalties.map_or(0.0, |p| f64::from(p[j]))) as f32))
        .collect();
    all.sort_by(|a, b| b.1.partial_cmp(&a.1).expect("no NaN").then(a.0.cmp(&b.0)));
    all
}
