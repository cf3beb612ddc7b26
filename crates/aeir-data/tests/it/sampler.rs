//! Shuffled batches.

use std::collections::HashSet;

use aeir_data::{EpochLength, ShuffledSampler};
use proptest::prelude::*;

/// A run must be resumable by another version of the program: these orders never change.
#[test]
fn the_order_is_pinned() {
    let sampler = ShuffledSampler::new(8, 42, 1);
    assert_eq!(sampler.epoch_order(0), [6, 0, 5, 3, 7, 2, 1, 4]);
    assert_eq!(sampler.epoch_order(1), [4, 2, 1, 7, 0, 6, 5, 3]);
    assert_eq!(ShuffledSampler::new(8, 42, 2).epoch_order(0), [5, 0, 4, 6, 7, 1, 2, 3]);
    assert_eq!((0..8).map(|item| sampler.pick(0, item, 5)).collect::<Vec<_>>(), [4, 0, 2, 3, 2, 2, 0, 3]);
}

#[test]
fn small_sets() {
    let empty = ShuffledSampler::new(0, 1, 0);
    assert!(empty.is_empty() && empty.batch(3, 4).is_empty() && empty.epoch_order(9).is_empty());
    for drop_last in [false, true] {
        let small = ShuffledSampler::new(3, 1, 0).drop_last(drop_last);
        for step in 0..5 {
            let mut batch = small.batch(step, 56);
            assert_eq!(batch, small.epoch_order(step));
            batch.sort_unstable();
            assert_eq!(batch, [0, 1, 2]);
        }
    }
    assert_eq!(ShuffledSampler::new(5, 1, 0).batch(7, 0).len(), 1);
    assert_eq!(ShuffledSampler::new(5, 1, 0).pick(0, 0, 0), 0);
    assert_eq!(ShuffledSampler::new(5, 1, 0).pick(u64::MAX, usize::MAX, 1), 0);
    assert_eq!(ShuffledSampler::new(5, 1, 0).batch(u64::MAX, 2).len(), 2);
}

#[test]
fn every_place_is_as_likely() {
    let mut counts = [[0_u32; 6]; 6];
    let sampler = ShuffledSampler::new(6, 3, 0);
    for epoch in 0..6000 {
        for (place, item) in sampler.epoch_order(epoch).into_iter().enumerate() {
            counts[place][item] += 1;
        }
    }
    // 1000 expected, standard deviation 29.
    assert!(counts.iter().flatten().all(|count| (870..1130).contains(count)), "{counts:?}");
    let mut picks = [0_u32; 5];
    (0..50).for_each(|epoch| (0..100).for_each(|item| picks[sampler.pick(epoch, item, 5)] += 1));
    assert!(picks.iter().all(|count| (870..1130).contains(count)), "{picks:?}");
}

proptest! {
    /// Whichever set is the longer, every item of the one that is counted comes once an epoch, and the other goes on from step to
    /// step, also from a step in the middle of a run.
    #[test]
    fn the_set_that_is_counted_is_gone_through_once_an_epoch(
        source in 1..150_usize, images in 1..150_usize, sentences in 1..150_usize, batch in 1..40_usize, epoch in 0..20_u64,
    ) {
        let sampler = |len: usize, stream: u64| ShuffledSampler::new(len, 9, stream);
        let batches = |len: usize| sampler(len, 0).batches_per_epoch(batch);
        let target = [batches(images), batches(sentences)];
        for length in [EpochLength::Longest, EpochLength::Source, EpochLength::Target] {
            let steps = length.steps(batches(source), &target);
            prop_assert_eq!(length.steps(batches(source), &[]), batches(source));
            for (len, stream) in [(source, 1), (images, 2), (sentences, 3)] {
                let seen: Vec<usize> =
                    (epoch * steps..(epoch + 1) * steps).flat_map(|step| sampler(len, stream).batch(step, batch)).collect();
                let distinct: HashSet<usize> = seen.iter().copied().collect();
                if batches(len) == steps {
                    prop_assert_eq!((seen.len(), distinct.len()), (len, len));
                }
                // Two of its own passes begin to fit in: it has started again, and has left nothing out.
                prop_assert!(steps < 2 * batches(len) || distinct.len() == len);
            }
        }
    }

    #[test]
    fn an_epoch_is_every_item_once(
        len in 1..200_usize, batch_size in 1..60_usize, seed in any::<u64>(), epoch in 0..1000_u64, drop_last in any::<bool>(),
    ) {
        let sampler = ShuffledSampler::new(len, seed, 5).drop_last(drop_last);
        let batches = sampler.batches_per_epoch(batch_size);
        let steps = epoch * batches..(epoch + 1) * batches;
        let all: Vec<usize> = steps.clone().flat_map(|step| sampler.batch(step, batch_size)).collect();
        let order = sampler.epoch_order(epoch);
        let expected = if drop_last && len >= batch_size { len - len % batch_size } else { len };
        prop_assert_eq!(&all[..], &order[..expected]);
        prop_assert_eq!(order.iter().collect::<HashSet<_>>().len(), len);
        prop_assert!(order.iter().all(|item| *item < len));
        prop_assert!(steps.clone().all(|step| sampler.epoch_of(step, batch_size) == epoch));
        // Another instance, asked for one step out of the blue, as after a restart.
        let fresh = ShuffledSampler::new(len, seed, 5).drop_last(drop_last);
        prop_assert_eq!(fresh.batch(steps.end - 1, batch_size), sampler.batch(steps.end - 1, batch_size));
    }
}
