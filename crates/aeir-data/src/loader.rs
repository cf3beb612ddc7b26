//! Decoding ahead of the work that uses the images, in order and with bounded memory.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;

use rayon::prelude::*;

use crate::decode::{DecodedImage, ImageLimits};
use crate::error::DataError;
use crate::image_source::ImageSource;

/// Decodes `images` in batches and hands each batch, in order, to `work`, with the index of every image.
///
/// While `work` is busy with a batch the next one is decoded on rayon's pool, and no more than the next one: two
/// batches of decoded images are in memory at most. Whole photographs are large; where `work` needs only a
/// preprocessed tensor, [`for_each_prepared_batch`] keeps far less. A `batch_size` of 0 counts as 1.
///
/// # Errors
/// What `work` returns; nothing is decoded after that. An image that fails is no error here: `work` gets its
/// [`DataError`] in its place.
pub fn for_each_batch<E>(
    images: &[ImageSource],
    limits: &ImageLimits,
    batch_size: usize,
    work: impl FnMut(Vec<(usize, Result<DecodedImage, DataError>)>) -> Result<(), E>,
) -> Result<(), E> {
    for_each_prepared_batch(images, limits, batch_size, |index, decoded| (index, decoded), work)
}

/// [`for_each_batch`], with `prepare` run on each image where it was decoded, in parallel: what it returns is all that
/// is kept of the image.
///
/// # Errors
/// What `work` returns.
pub fn for_each_prepared_batch<T: Send, E>(
    images: &[ImageSource],
    limits: &ImageLimits,
    batch_size: usize,
    prepare: impl Fn(usize, Result<DecodedImage, DataError>) -> T + Sync,
    mut work: impl FnMut(Vec<T>) -> Result<(), E>,
) -> Result<(), E> {
    let batch_size = batch_size.max(1);
    let stopped = AtomicBool::new(false);
    let load = |index: usize, image: &ImageSource| {
        // After a failed batch, or a panic, the images under way are the last.
        (!stopped.load(Ordering::Relaxed)).then(|| prepare(index, image.decode(limits)))
    };
    let load_batch = |(number, batch): (usize, &[ImageSource])| -> Option<Vec<T>> {
        batch
            .par_iter()
            .enumerate()
            .map(|(offset, image)| load(number * batch_size + offset, image))
            .collect()
    };
    let mut batches = images.chunks(batch_size).enumerate();
    if rayon::current_thread_index().is_some() {
        // On a thread of the pool itself waiting for the pool could wait for ever: one after the other then.
        return batches.filter_map(load_batch).try_for_each(work);
    }
    thread::scope(|scope| {
        // No room in the channel: the one who decodes waits with a finished batch until it is wanted.
        let (sender, receiver) = mpsc::sync_channel(0);
        let stop = StopOnDrop(&stopped);
        scope.spawn(move || {
            batches.all(|batch| load_batch(batch).is_some_and(|loaded| sender.send(loaded).is_ok()))
        });
        let result = receiver.iter().try_for_each(&mut work);
        drop(stop);
        result
    })
}

/// Also when the work panics.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
