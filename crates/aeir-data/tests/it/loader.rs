//! Decoding in parallel.

use std::sync::atomic::{AtomicUsize, Ordering};

use aeir_data::{DataError, ImageLimits, ImageSource, for_each_batch, for_each_prepared_batch, hash_file};

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

#[test]
fn batches_come_in_order_with_failures_in_their_place() {
    let images = sources(23);
    let hashes = [hash_file(&image("baseline.jpg")).unwrap(), hash_file(&image("still.gif")).unwrap()];
    for batch_size in [0, 1, 7, 23, 100] {
        let mut next = 0;
        let mut sizes = Vec::new();
        for_each_batch(&images, &ImageLimits::default(), batch_size, |batch| {
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
    for_each_batch(&[], &ImageLimits::default(), 4, |_| Err("called")).unwrap();
}

#[test]
fn decoding_runs_at_most_a_batch_ahead() {
    let images = sources(60);
    let prepared = AtomicUsize::new(0);
    let mut handed = 0;
    for_each_prepared_batch(
        &images,
        &ImageLimits::default(),
        6,
        |index, decoded| {
            prepared.fetch_add(1, Ordering::SeqCst);
            (index, decoded.is_ok())
        },
        |batch| {
            handed += batch.len();
            std::thread::sleep(std::time::Duration::from_millis(5));
            // The batch at hand, the finished one that waits behind it, and no third.
            assert!(prepared.load(Ordering::SeqCst) <= handed + 6);
            Ok::<_, ()>(())
        },
    )
    .unwrap();
    assert_eq!((handed, prepared.into_inner()), (60, 60));
}

#[test]
fn an_error_ends_it() {
    let images = sources(1000);
    let prepared = AtomicUsize::new(0);
    let mut calls = 0;
    let result = for_each_prepared_batch(
        &images,
        &ImageLimits::default(),
        5,
        |_, _| prepared.fetch_add(1, Ordering::SeqCst),
        |_| {
            calls += 1;
            if calls == 3 { Err("enough") } else { Ok(()) }
        },
    );
    assert_eq!((result, calls), (Err("enough"), 3));
    assert!(prepared.into_inner() <= 20);
}

#[test]
fn a_panic_of_the_work_passes_through() {
    let images = sources(100);
    let panic = std::panic::catch_unwind(|| {
        for_each_batch(&images, &ImageLimits::default(), 5, |_| -> Result<(), ()> { panic!("in the work") })
    });
    assert_eq!(panic.unwrap_err().downcast_ref::<&str>(), Some(&"in the work"));
}

#[test]
fn it_works_on_a_thread_of_a_pool() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let images = sources(12);
    let seen = pool.install(|| {
        let mut seen = Vec::new();
        for_each_batch(&images, &ImageLimits::default(), 5, |batch| {
            seen.extend(batch.iter().map(|(index, _)| *index));
            Ok::<_, ()>(())
        })
        .unwrap();
        seen
    });
    assert_eq!(seen, (0..12).collect::<Vec<_>>());
}
