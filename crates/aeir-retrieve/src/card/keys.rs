//! Scores and rows as the kernel hands them over: one number each, larger for what comes first.

use rayon::prelude::*;

use crate::search::proposed::Proposed;

/// Queries that one task merges at least: waking more threads takes longer.
const QUERIES_OF_TASK: usize = 64;

/// The score and the row of a key; none for an empty place.
fn taken_apart(key: u64) -> Option<(f32, usize)> {
    if key == 0 {
        return None;
    }
    let (bits, row) = ((key >> 32) as u32, !(key as u32));
    let score = if bits >> 31 == 1 { bits & 0x7fff_ffff } else { !bits };
    Some((f32::from_bits(score), row as usize))
}

/// The best `wanted` of each query, best first, from `keys [queries, slices, kept]`.
pub(super) fn merged(keys: &mut [u64], of_query: usize, wanted: usize) -> Vec<Proposed> {
    let best = |keys: &mut [u64]| {
        keys.sort_unstable_by(|a, b| b.cmp(a));
        keys.iter().take(wanted).map_while(|key| taken_apart(*key)).collect()
    };
    keys.par_chunks_mut(of_query.max(1)).with_min_len(QUERIES_OF_TASK).map(best).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the kernel makes it.
    fn key_of(score: f32, row: u32) -> u64 {
        let bits = (score + 0.0).to_bits();
        let ordered = if bits >> 31 == 1 { !bits } else { bits | 0x8000_0000 };
        u64::from(ordered) << 32 | u64::from(!row)
    }

    #[test]
    fn keys_order_as_scores_and_ties_by_the_lower_row() {
        let scores = [f32::NEG_INFINITY, -2.5, -1e-40, 0.0, 1e-40, 0.25, 0.250_000_03, 3.0, f32::MAX];
        for pair in scores.windows(2) {
            assert!(key_of(pair[0], 0) < key_of(pair[1], u32::MAX - 1), "{pair:?}");
        }
        assert_eq!(key_of(-0.0, 7), key_of(0.0, 7));
        assert!(key_of(0.5, 3) > key_of(0.5, 4));
        for score in scores {
            for row in [0, 1, 1 << 31, u32::MAX - 1] {
                assert_eq!(taken_apart(key_of(score, row)), Some((score, row as usize)));
                assert!(key_of(score, row) > 0);
            }
        }
        assert_eq!(taken_apart(0), None);
    }

    #[test]
    fn slices_are_merged_and_empty_places_left_out() {
        let of = |pairs: &[(f32, u32)], kept: usize| {
            let mut keys: Vec<u64> = pairs.iter().map(|(score, row)| key_of(*score, *row)).collect();
            keys.resize(kept, 0);
            keys
        };
        // Two queries, two slices, three places.
        let mut keys = [
            of(&[(0.5, 4), (0.25, 1), (-1.0, 0)], 3),
            of(&[(0.5, 2)], 3),
            of(&[], 3),
            of(&[(1.0, 9), (0.0, 8)], 3),
        ]
        .concat();
        let best = merged(&mut keys, 6, 3);
        assert_eq!(best, [vec![(0.5, 2), (0.5, 4), (0.25, 1)], vec![(1.0, 9), (0.0, 8)]]);
    }
}
