//! Seeded draws: the same on every machine, with any number of threads.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// A generator of its own for each stream of a seed.
pub(crate) fn stream(seed: u64, stream: u64) -> ChaCha8Rng {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(stream);
    random
}

/// A whole number below `count`, uniform up to 1 part in 2^64 / `count`: the high half of a 64 x 64 bit product.
pub(crate) fn below(random: &mut ChaCha8Rng, count: usize) -> usize {
    ((u128::from(random.next_u64()) * count as u128) >> 64) as usize
}

/// `wanted` of the positions `0..count` (all of them where there are fewer), without repetition, in random order.
pub(crate) fn sample(random: &mut ChaCha8Rng, count: usize, wanted: usize) -> Vec<usize> {
    let mut positions: Vec<usize> = (0..count).collect();
    let wanted = wanted.min(count);
    for place in 0..wanted {
        let drawn = place + below(random, count - place);
        positions.swap(place, drawn);
    }
    positions.truncate(wanted);
    positions
}
