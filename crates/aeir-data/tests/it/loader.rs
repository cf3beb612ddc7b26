//! Decoding in parallel.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use aeir_data::{
    DataError, DecodedImage, ImageSource, LoadOptions, Prepared, for_each_prepared_batch, hash_file,
};

use crate::image;

fn sources(count: usize) -> Vec<ImageSource> {
    (0..count)
        .map(|number| match number % 5 {
            4 => image("missing.png"),
            even if even % 2 == 0 => image("baseline.jpg"),
            _ => image("still.gif"),
        })
        .map(ImageSource::from)
        .collect()
}

fn batches_of(batch_size: usize) -> LoadOptions {
    LoadOptions { batch_size, ..LoadOptions::default() }
}

type Decoded = (usize, Result<DecodedImage, DataError>);

/// The whole picture.
fn keep(index: usize, decoded: Result<DecodedImage, DataError>) -> Prepared<Decoded> {
    let bytes = decoded.as_ref().map_or(0, |decoded| decoded.image.as_bytes().len());
    Prepared { value: (index, decoded), bytes }
}

#[test]
fn batches_come_in_order_with_failures_in_their_place() {
    let images = sources(23);
    let hashes = [hash_file(&image("baseline.jpg")).unwrap(), hash_file(&image("still.gif")).unwrap()];
    for (batch_size, ahead_bytes) in [(0, 1 << 20), (1, 0), (7, 1000), (23, 0), (100, usize::MAX)] {
        let mut next = 0;
        let mut sizes = Vec::new();
        let options = LoadOptions { ahead_bytes, ..batches_of(batch_size) };
        for_each_prepared_batch(&images, &options, keep, |batch| {
            sizes.push(batch.len());
            for (index, decoded) in batch {
                assert_eq!(index, next);
                next += 1;
                match decoded {
                    Ok(decoded) => assert_eq!(decoded.hash, hashes[index % 5 % 2]),
                    Err(error) => assert!(index % 5 == 4 && error.path() == Some(images[index].path())),
                }
            }
            Ok::<_, DataError>(())
        })
        .unwrap();
        assert_eq!(next, 23);
        let expected = batch_size.clamp(1, 23);
        assert!(sizes[..sizes.len() - 1].iter().all(|size| *size == expected), "{sizes:?}");
    }
    for_each_prepared_batch(&[], &batches_of(4), keep, |_| Err("called")).unwrap();
}

#[test]
fn decoding_runs_at_most_a_batch_ahead() {
    let images = sources(60);
    let begun = AtomicUsize::new(0);
    let mut handed = 0;
    let count = |index: usize, decoded: Result<DecodedImage, DataError>| {
        begun.fetch_add(1, Ordering::SeqCst);
        Prepared { value: (index, decoded.is_ok()), bytes: 0 }
    };
    let mut ahead = 0;
    for_each_prepared_batch(&images, &batches_of(6), count, |batch| {
        handed += batch.len();
        std::thread::sleep(Duration::from_millis(5));
        let so_far = begun.load(Ordering::SeqCst);
        assert!(so_far <= handed + 6, "{so_far} begun, {handed} handed over");
        ahead = ahead.max(so_far - handed);
        Ok::<_, ()>(())
    })
    .unwrap();
    assert_eq!((handed, begun.into_inner()), (60, 60));
    assert!(ahead > 0, "the decoding never ran ahead");
}

/// Counts the bytes that are alive.
struct Weight {
    bytes: usize,
    alive: Arc<AtomicUsize>,
}

impl Weight {
    fn new(bytes: usize, alive: &Arc<AtomicUsize>) -> Self {
        alive.fetch_add(bytes, Ordering::SeqCst);
        Self { bytes, alive: Arc::clone(alive) }
    }
}

impl Drop for Weight {
    fn drop(&mut self) {
        self.alive.fetch_sub(self.bytes, Ordering::SeqCst);
    }
}

#[test]
fn what_waits_takes_no_more_bytes_than_allowed() {
    const AHEAD: usize = 1000;
    let images = sources(200);
    let alive = Arc::new(AtomicUsize::new(0));
    // The first are the largest, then small ones, and one that is larger than all that is allowed.
    let bytes_of = |index: usize| match index {
        0..4 => 300,
        150 => 5 * AHEAD,
        _ => 40 + index % 260,
    };
    let weigh = |index: usize, _| {
        let bytes = bytes_of(index);
        Prepared { value: Weight::new(bytes, &alive), bytes }
    };
    let (mut most, mut seen) = (0, 0);
    let options = LoadOptions { ahead_bytes: AHEAD, ..batches_of(16) };
    for_each_prepared_batch(&images, &options, weigh, |batch| {
        std::thread::sleep(Duration::from_millis(5));
        let at_hand: usize = batch.iter().map(|weight| weight.bytes).sum();
        let waiting = alive.load(Ordering::SeqCst) - at_hand;
        // The one that outgrew what was expected of it is there until it is taken.
        let surprise = if (seen..seen + 16 + batch.len()).contains(&150) { 5 * AHEAD } else { 0 };
        assert!(waiting <= AHEAD + surprise, "{waiting} bytes wait behind image {seen}");
        most = most.max(waiting);
        seen += batch.len();
        Ok::<_, ()>(())
    })
    .unwrap();
    assert_eq!((seen, alive.load(Ordering::SeqCst)), (200, 0));
    assert!(most > AHEAD / 2, "the queue was never more than {most} bytes full");
}

#[test]
fn an_error_ends_it() {
    let images = sources(1000);
    let begun = AtomicUsize::new(0);
    let mut calls = 0;
    let count = |_, _| Prepared { value: begun.fetch_add(1, Ordering::SeqCst), bytes: 0 };
    let result = for_each_prepared_batch(&images, &batches_of(5), count, |_| {
        calls += 1;
        if calls == 3 { Err("enough") } else { Ok(()) }
    });
    assert_eq!((result, calls), (Err("enough"), 3));
    assert!(begun.into_inner() <= 20);
}

#[test]
fn panics_pass_through() {
    let images = sources(100);
    let panic = std::panic::catch_unwind(|| {
        for_each_prepared_batch(&images, &batches_of(5), keep, |_| -> Result<(), ()> {
            panic!("in the work")
        })
    });
    assert_eq!(panic.unwrap_err().downcast_ref::<&str>(), Some(&"in the work"));
    let fails = |index: usize, _| {
        assert!(index != 37, "in an image");
        Prepared { value: index, bytes: 0 }
    };
    let panic = std::panic::catch_unwind(|| {
        for_each_prepared_batch(&images, &batches_of(5), fails, |_| Ok::<(), ()>(()))
    });
    assert!(panic.unwrap_err().downcast_ref::<&str>().is_some_and(|text| text.contains("in an image")));
}

#[test]
fn it_works_on_a_thread_of_a_pool() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let images = sources(12);
    let seen = pool.install(|| {
        let mut seen = Vec::new();
        for_each_prepared_batch(&images, &batches_of(5), keep, |batch| {
            seen.extend(batch.iter().map(|(index, _)| *index));
            Ok::<_, ()>(())
        })
        .unwrap();
        seen
    });
    assert_eq!(seen, (0..12).collect::<Vec<_>>());
}
