//! Decoding and preparing images ahead of the work that uses them: in parallel, in order, with bounded memory.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use rayon::Scope;
use rayon::prelude::*;

use crate::decode::{DecodedImage, ImageLimits};
use crate::error::DataError;
use crate::image_source::ImageSource;

/// How images are loaded.
///
/// ```
/// let options = aeir_data::LoadOptions { batch_size: 16, ..Default::default() };
/// assert_eq!(options.ahead_bytes, 256 << 20);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadOptions {
    /// What an image is held against before it is decoded.
    pub limits: ImageLimits,
    /// Images that the work gets at once, and as many may be prepared or under way behind them. 0 counts as 1.
    pub batch_size: usize,
    /// Bytes that prepared images which wait for the work may take.
    pub ahead_bytes: usize,
}

impl Default for LoadOptions {
    /// Batches of 32 images, 256 MiB ahead.
    fn default() -> Self {
        Self { limits: ImageLimits::default(), batch_size: 32, ahead_bytes: 256 << 20 }
    }
}

/// What is kept of an image until the work takes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prepared<T> {
    /// Anything.
    pub value: T,
    /// The memory it takes.
    pub bytes: usize,
}

/// Decodes `images`, runs `prepare` on each where it was decoded, and hands batches of what that returns, in order, to `work`.
///
/// Decoding and preparing run on rayon's pool, an image a thread, also while `work` is busy. They wait as soon as as many
/// images as a batch has, or [`LoadOptions::ahead_bytes`] of them, stand behind the batch at hand; an image counts from when it
/// is begun, with the size of the largest so far until its own is known. The image that the work waits for is always let
/// through, however large. Besides the prepared ones, one decoded image a thread is in memory.
///
/// On a thread of the pool itself, which must not wait for the pool, nothing runs ahead: batches are prepared in parallel and
/// handed over one after the other.
///
/// # Errors
/// What `work` returns; no image is begun after that. An image that fails is no error here: `prepare` gets its [`DataError`].
pub fn for_each_prepared_batch<T: Send, E>(
    images: &[ImageSource],
    options: &LoadOptions,
    prepare: impl Fn(usize, Result<DecodedImage, DataError>) -> Prepared<T> + Sync,
    mut work: impl FnMut(Vec<T>) -> Result<(), E>,
) -> Result<(), E> {
    let batch_size = options.batch_size.max(1);
    let load = |index: usize, image: &ImageSource| prepare(index, image.decode(&options.limits));
    if rayon::current_thread_index().is_some() {
        return images.chunks(batch_size).enumerate().try_for_each(|(number, batch)| {
            let loaded = batch.par_iter().enumerate();
            work(loaded.map(|(offset, image)| load(number * batch_size + offset, image).value).collect())
        });
    }
    let queue = Queue {
        batch_size,
        ahead_bytes: options.ahead_bytes,
        threads: rayon::current_num_threads(),
        state: Mutex::new(State::default()),
        arrived: Condvar::new(),
    };
    rayon::in_place_scope(|scope| {
        // Also when the work panics: the scope waits for what is under way, and nothing else is begun.
        let _stop = StopOnDrop(&queue);
        for first in (0..images.len()).step_by(batch_size) {
            let size = batch_size.min(images.len() - first);
            let mut batch = Vec::with_capacity(size);
            while batch.len() < size {
                begin(scope, images, &queue, &load);
                let Some(value) = queue.take() else { return Ok(()) };
                batch.push(value);
            }
            begin(scope, images, &queue, &load);
            work(batch)?;
        }
        Ok(())
    })
}

/// Begins as many images as there is room for; each goes on with the next ones when it is done.
fn begin<'scope, T: Send>(
    scope: &Scope<'scope>,
    images: &'scope [ImageSource],
    queue: &'scope Queue<T>,
    load: &'scope (impl Fn(usize, &ImageSource) -> Prepared<T> + Sync),
) {
    while let Some((index, image)) = queue.begin(images) {
        scope.spawn(move |scope| {
            // A panic of `prepare` must not leave the work waiting for this image.
            let stop = StopOnDrop(queue);
            let loaded = load(index, image);
            std::mem::forget(stop);
            queue.put(index, loaded);
            begin(scope, images, queue, load);
        });
    }
}

/// Images between the decoder and the work.
struct Queue<T> {
    batch_size: usize,
    ahead_bytes: usize,
    threads: usize,
    state: Mutex<State<T>>,
    arrived: Condvar,
}

struct State<T> {
    /// The first image that nobody has begun.
    next: usize,
    /// The image that the work wants next.
    wanted: usize,
    running: usize,
    waiting: BTreeMap<usize, Prepared<T>>,
    waiting_bytes: usize,
    /// Of the images so far.
    largest: usize,
    stopped: bool,
}

impl<T> Default for State<T> {
    fn default() -> Self {
        let waiting = BTreeMap::new();
        Self { next: 0, wanted: 0, running: 0, waiting, waiting_bytes: 0, largest: 0, stopped: false }
    }
}

impl<T> Queue<T> {
    /// Nothing that panics runs under the lock.
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next image, if there is one and there is room for it.
    fn begin<'a>(&self, images: &'a [ImageSource]) -> Option<(usize, &'a ImageSource)> {
        let mut state = self.lock();
        let index = state.next;
        let image = images.get(index)?;
        let bytes = state.running.saturating_add(1).saturating_mul(state.largest);
        let is_room = state.running < self.threads
            && index - state.wanted < self.batch_size
            && state.waiting_bytes.saturating_add(bytes) <= self.ahead_bytes;
        if state.stopped || !(is_room || index == state.wanted) {
            return None;
        }
        state.next += 1;
        state.running += 1;
        Some((index, image))
    }

    fn put(&self, index: usize, loaded: Prepared<T>) {
        let mut state = self.lock();
        state.running -= 1;
        state.waiting_bytes = state.waiting_bytes.saturating_add(loaded.bytes);
        state.largest = state.largest.max(loaded.bytes);
        state.waiting.insert(index, loaded);
        drop(state);
        self.arrived.notify_one();
    }

    /// Waits for the next image in order; `None` where it will never come.
    fn take(&self) -> Option<T> {
        let mut state = self.lock();
        loop {
            let wanted = state.wanted;
            if let Some(loaded) = state.waiting.remove(&wanted) {
                state.wanted += 1;
                state.waiting_bytes -= loaded.bytes;
                return Some(loaded.value);
            }
            if state.stopped {
                return None;
            }
            state = self.arrived.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

struct StopOnDrop<'a, T>(&'a Queue<T>);

impl<T> Drop for StopOnDrop<'_, T> {
    fn drop(&mut self) {
        self.0.lock().stopped = true;
        self.0.arrived.notify_one();
    }
}
