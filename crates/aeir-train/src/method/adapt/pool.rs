//! Which items of large unpaired sets a round of matching looks at.

use aeir_retrieve::{Matrix, similarity};

use crate::error::Result;

/// Neighbours of an item that are considered at most.
const MOST_NEIGHBOURS: usize = 32;

/// Finds for each of a few items their nearest of a large set, which is seen a block at a time.
///
/// Two parts that were drawn independently of each other hold hardly any pair: of two sets of a million, 4,096 items each hold 17 of
/// 4,096 partners. So the items of one set are drawn, and of the other those that are near to them are taken.
///
/// Memory: of every drawn item as many neighbours as are considered, and the scores of one block.
pub(super) struct NearestOf<'a> {
    drawn: &'a Matrix,
    wanted: usize,
    neighbours: usize,
    /// Of each drawn item, the best first: score and row.
    best: Vec<Vec<(f32, usize)>>,
    seen: usize,
}

impl<'a> NearestOf<'a> {
    /// Looks for about `wanted` neighbours of `drawn [N, D]` in all.
    pub(super) fn new(drawn: &'a Matrix, wanted: usize) -> Self {
        let neighbours = (2 * wanted).div_ceil(drawn.rows().max(1)).clamp(2, MOST_NEIGHBOURS);
        Self { drawn, wanted, neighbours, best: vec![Vec::new(); drawn.rows()], seen: 0 }
    }

    /// The next rows of the large set, `[B, D]`.
    pub(super) fn block(&mut self, items: &Matrix) -> Result<()> {
        let scores = similarity(self.drawn, items)?;
        for (best, row) in self.best.iter_mut().zip(scores.iter_rows()) {
            let least = |best: &Vec<(f32, usize)>| match best.get(self.neighbours - 1) {
                Some((score, _)) => *score,
                None => f32::NEG_INFINITY,
            };
            for (column, score) in row.iter().enumerate() {
                if *score > least(best) {
                    let place = best.partition_point(|(other, _)| other >= score);
                    best.insert(place, (*score, self.seen + column));
                    best.truncate(self.neighbours);
                }
            }
        }
        self.seen += items.rows();
        Ok(())
    }

    /// The rows found, sorted: first everyone's nearest, then everyone's second, until there are enough.
    pub(super) fn rows(&self) -> Vec<usize> {
        let mut taken = vec![false; self.seen];
        let mut rows = Vec::new();
        for rank in 0..self.neighbours {
            // Of those that compete for the last places the nearest.
            let mut candidates: Vec<(f32, usize)> =
                self.best.iter().filter_map(|best| best.get(rank).copied()).collect();
            candidates.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            for (_, row) in candidates {
                let free = taken.get_mut(row).filter(|taken| !**taken);
                if let Some(taken) = free.filter(|_| rows.len() < self.wanted) {
                    *taken = true;
                    rows.push(row);
                }
            }
        }
        rows.sort_unstable();
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::{Rng, SeedableRng};

    const LARGE: usize = 600;
    const POOL: usize = 40;

    fn unit_rows(count: usize, random: &mut ChaCha8Rng) -> Matrix {
        let values = (0..count * 16).map(|_| random.next_u32() as f32 / u32::MAX as f32 - 0.5).collect();
        Matrix::new(values, count, 16).unwrap().l2_normalised().unwrap()
    }

    /// `near` with noise: row i belongs to row i.
    fn partners(near: &Matrix, noise: f32, random: &mut ChaCha8Rng) -> Matrix {
        let values =
            near.values().iter().map(|x| x + noise * (random.next_u32() as f32 / u32::MAX as f32 - 0.5));
        Matrix::new(values.collect(), near.rows(), near.columns()).unwrap().l2_normalised().unwrap()
    }

    fn found(drawn: &Matrix, large: &Matrix, block: usize, wanted: usize) -> Vec<usize> {
        let mut nearest = NearestOf::new(drawn, wanted);
        let rows: Vec<usize> = (0..large.rows()).collect();
        for rows in rows.chunks(block) {
            nearest.block(&large.select_rows(rows).unwrap()).unwrap();
        }
        nearest.rows()
    }

    #[test]
    fn partners_of_what_was_drawn_are_in_the_pool() {
        for seed in 0..8 {
            let mut random = ChaCha8Rng::seed_from_u64(seed);
            let images = unit_rows(LARGE, &mut random);
            let sentences = partners(&images, 0.4, &mut random);
            let drawn: Vec<usize> = (0..POOL).map(|i| (i * 13 + seed as usize) % LARGE).collect();
            let rows = found(&images.select_rows(&drawn).unwrap(), &sentences, 64, POOL);
            let held = drawn.iter().filter(|image| rows.binary_search(image).is_ok()).count();
            // Of a part drawn at random 40 x 40 / 600 = 2.7.
            assert!(held > 30, "seed {seed}: {held} of {POOL}");
        }
    }

    #[test]
    fn the_pool_is_bounded_without_repetition_and_does_not_depend_on_the_blocks() {
        for seed in 0..8 {
            let mut random = ChaCha8Rng::seed_from_u64(100 + seed);
            let (drawn, large) = (unit_rows(20, &mut random), unit_rows(300, &mut random));
            for wanted in [1, 7, 20, 90] {
                let whole = found(&drawn, &large, 300, wanted);
                assert!(whole.len() <= wanted && !whole.is_empty(), "{}", whole.len());
                assert!(whole.windows(2).all(|pair| pair[0] < pair[1]) && whole.iter().all(|row| *row < 300));
                for block in [1, 33, 128] {
                    assert_eq!(found(&drawn, &large, block, wanted), whole, "blocks of {block}");
                }
            }
            // Everything that is in nobody's way is found: the pool is as large as it was wanted.
            assert!(found(&drawn, &large, 64, 20).len() == 20);
        }
    }
}
