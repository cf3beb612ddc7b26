//! Shuffling that is a pure function of seed and step: to resume needs no state but the step.

use std::sync::{Arc, Mutex, PoisonError};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

/// Two uses of one seed and stream must not share random numbers.
#[derive(Clone, Copy)]
enum Purpose {
    Order = 0,
    Pick = 1,
}

/// Whose passes an epoch is counted by, where source and target differ in size.
///
/// ```
/// use aeir_data::EpochLength;
/// assert_eq!(EpochLength::Longest.steps(3, &[7, 5]), 7);
/// assert_eq!((EpochLength::Source.steps(3, &[7, 5]), EpochLength::Target.steps(9, &[7, 5])), (3, 7));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EpochLength {
    /// The longest set: each of the others starts again until it is through.
    #[default]
    Longest,
    /// The source pairs: a longer target goes on in the next epoch where it stopped, a shorter one starts again.
    Source,
    /// The longer of the two target sets: a longer source goes on in the next epoch, a shorter one starts again.
    Target,
}

impl EpochLength {
    /// Steps of an epoch, from the batches an epoch of the source and of each target set; at least 1. Without target sets, those
    /// of the source.
    pub fn steps(self, source: u64, target: &[u64]) -> u64 {
        let longest = target.iter().copied().max();
        match (self, longest) {
            (Self::Longest, Some(target)) => source.max(target),
            (Self::Target, Some(target)) => target,
            (Self::Source, _) | (_, None) => source,
        }
        .max(1)
    }
}

/// An endless stream of shuffled batches over `len` items, shuffled anew each epoch.
///
/// Source and target sets differ in size: each has its own sampler, and both are asked for the batch of the same
/// step. The shorter set starts again while the longer is still in its first epoch.
///
/// A batch never holds an item twice: it ends with its epoch. The last one of an epoch may thus be smaller
/// ([`ShuffledSampler::drop_last`] leaves it out), and a set smaller than a batch gives the whole set each time.
///
/// ```
/// let sampler = aeir_data::ShuffledSampler::new(10, 7, 0);
/// assert_eq!(sampler.batches_per_epoch(4), 3);
/// assert_eq!(sampler.batch(5, 4).len(), 2);
/// assert_eq!(sampler.batch(5, 4), sampler.epoch_order(1)[8..]);
/// ```
#[derive(Debug)]
pub struct ShuffledSampler {
    len: usize,
    seed: u64,
    stream: u64,
    drop_last: bool,
    // The order of the epoch asked for last: the next step is nearly always in it.
    recent: Mutex<Option<(u64, Arc<[usize]>)>>,
}

impl Clone for ShuffledSampler {
    fn clone(&self) -> Self {
        Self::new(self.len, self.seed, self.stream).drop_last(self.drop_last)
    }
}

impl ShuffledSampler {
    /// A sampler over `0..len`. `stream` tells samplers of one run apart that share its seed.
    pub fn new(len: usize, seed: u64, stream: u64) -> Self {
        Self { len, seed, stream, drop_last: false, recent: Mutex::new(None) }
    }

    /// Whether to leave out the smaller last batch of an epoch. A set smaller than a batch is still given whole.
    #[must_use]
    pub fn drop_last(mut self, drop_last: bool) -> Self {
        self.drop_last = drop_last;
        self
    }

    /// How many items there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is nothing to sample; all batches are empty then.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The order of one epoch: each of `0..len` once.
    pub fn epoch_order(&self, epoch: u64) -> Vec<usize> {
        self.shared_order(epoch).to_vec()
    }

    /// How many batches an epoch has, at least 1. A `batch_size` of 0 counts as 1.
    pub fn batches_per_epoch(&self, batch_size: usize) -> u64 {
        let batch_size = batch_size.max(1);
        let batches = if self.drop_last { self.len / batch_size } else { self.len.div_ceil(batch_size) };
        batches.max(1) as u64
    }

    /// The epoch that a step lies in.
    pub fn epoch_of(&self, step: u64, batch_size: usize) -> u64 {
        step / self.batches_per_epoch(batch_size)
    }

    /// The batch of a step, counted from 0 over all epochs.
    pub fn batch(&self, step: u64, batch_size: usize) -> Vec<usize> {
        let batch_size = batch_size.max(1);
        let batches = self.batches_per_epoch(batch_size);
        let order = self.shared_order(step / batches);
        // Below the number of batches, which came from a usize.
        let start = (step % batches) as usize * batch_size;
        order.iter().skip(start).take(batch_size).copied().collect()
    }

    /// One of `count` alternatives for an item in an epoch: which of its captions an image is trained with. Pure in
    /// seed, stream, epoch and item; 0 where `count` is 0.
    pub fn pick(&self, epoch: u64, item: usize, count: usize) -> usize {
        let mut random = self.random(epoch, Purpose::Pick);
        // Each item has its own place in the key stream, one 64-byte block.
        random.set_word_pos(item as u128 * 16);
        below(&mut random, count)
    }

    fn shared_order(&self, epoch: u64) -> Arc<[usize]> {
        // What is behind the lock is only ever replaced whole: it is good even if a holder panicked.
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        match recent.as_ref() {
            Some((of, order)) if *of == epoch => Arc::clone(order),
            _ => {
                let order: Arc<[usize]> = self.shuffle(epoch).into();
                *recent = Some((epoch, Arc::clone(&order)));
                order
            }
        }
    }

    fn shuffle(&self, epoch: u64) -> Vec<usize> {
        let mut random = self.random(epoch, Purpose::Order);
        let mut order: Vec<usize> = (0..self.len).collect();
        for last in (1..self.len).rev() {
            order.swap(last, below(&mut random, last + 1));
        }
        order
    }

    fn random(&self, epoch: u64, purpose: Purpose) -> ChaCha8Rng {
        let mut key = [0; 32];
        let parts = [self.seed, self.stream, purpose as u64];
        for (place, part) in key.chunks_exact_mut(8).zip(parts) {
            place.copy_from_slice(&part.to_le_bytes());
        }
        let mut random = ChaCha8Rng::from_seed(key);
        random.set_stream(epoch);
        random
    }
}

/// Uniform in `0..bound` by multiplication: of 2^64 values at most `bound` are favoured, which nothing can see.
fn below(random: &mut ChaCha8Rng, bound: usize) -> usize {
    ((u128::from(random.next_u64()) * bound as u128) >> 64) as usize
}
