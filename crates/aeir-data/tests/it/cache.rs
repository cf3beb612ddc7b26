//! The feature cache, damage and other writers included.

use std::collections::HashSet;
use std::fs::{self, OpenOptions};
use std::path::Path;

use aeir_data::{ContentHash, DataError, FeatureCache, Features, Precision, hash_text, list, prune};
use proptest::prelude::*;
use tempfile::tempdir;

fn open(root: &Path) -> FeatureCache {
    FeatureCache::open(root, "encoder-1", Precision::F32).unwrap()
}

fn record(number: usize) -> (ContentHash, Features) {
    let (rows, columns) = (1 + number % 3, 4);
    let values = (0..rows * columns).map(|place| number as f32 + place as f32 / 7.0).collect();
    (hash_text(&number.to_string()), Features { rows, columns, values })
}

fn records(numbers: std::ops::Range<usize>) -> Vec<(ContentHash, Features)> {
    numbers.map(record).collect()
}

fn holds(cache: &FeatureCache, numbers: std::ops::Range<usize>) {
    for number in numbers {
        let (key, features) = record(number);
        assert!(cache.contains(&key), "{number}");
        assert_eq!(cache.get(&key).unwrap(), Some(features), "{number}");
    }
}

#[test]
fn kept_over_openings() {
    let root = tempdir().unwrap();
    let cache = open(root.path());
    assert!(cache.is_empty());
    cache.append(&[]).unwrap();
    cache.append(&records(0..5)).unwrap();
    // Some of them again, one twice in the same call.
    cache.append(&[record(3), record(5), record(5), record(6)]).unwrap();
    assert_eq!(cache.len(), 7);
    drop(cache);
    let cache = open(root.path());
    assert_eq!(cache.len(), 7);
    holds(&cache, 0..7);
    assert_eq!(cache.get(&hash_text("unknown")).unwrap(), None);
    assert_eq!(cache.size_on_disk(), fs::metadata(cache.path()).unwrap().len());
    // Half precision is a cache of its own.
    assert!(FeatureCache::open(root.path(), "encoder-1", Precision::F16).unwrap().is_empty());
    assert!(FeatureCache::open(root.path(), "encoder-2", Precision::F32).unwrap().is_empty());
}

#[test]
fn half_precision_gives_back_rounded_values() {
    let root = tempdir().unwrap();
    let cache = FeatureCache::open(root.path(), "e", Precision::F16).unwrap();
    let features = Features::pooled(vec![0.1, -3.3333, 65_504.0, 1e-9, -0.0]);
    let key = hash_text("x");
    cache.append(&[(key, features.clone())]).unwrap();
    let found = cache.get(&key).unwrap().unwrap();
    assert_eq!(found, features.clone().rounded(Precision::F16));
    assert_eq!(found.clone().rounded(Precision::F16), found);
    assert_ne!(found, features);
    assert_eq!(features.clone().rounded(Precision::F32), features);
}

#[test]
fn unfit_features_are_refused_before_anything_is_written() {
    let root = tempdir().unwrap();
    let cache = FeatureCache::open(root.path(), "e", Precision::F16).unwrap();
    let size = cache.size_on_disk();
    let good = record(0);
    let shape = |rows, columns, count| Features { rows, columns, values: vec![0.0; count] };
    for features in [
        shape(2, 3, 5),
        shape(0, 3, 1),
        shape(usize::MAX, 2, 4),
        shape(1 << 20, 1 << 20, 0),
        shape(usize::MAX, 0, 0),
    ] {
        let error = cache.append(&[good.clone(), (hash_text("x"), features)]).unwrap_err();
        assert!(matches!(error, DataError::FeatureShape { .. }), "{error}");
    }
    for value in [f32::NAN, f32::INFINITY, 1e6] {
        let error =
            cache.append(&[good.clone(), (hash_text("x"), Features::pooled(vec![1.0, value]))]).unwrap_err();
        assert!(matches!(error, DataError::FeatureNotFinite { index: 1, .. }), "{error}");
    }
    assert_eq!((cache.len(), cache.size_on_disk()), (0, size));
    // No fragments, or no columns, is a shape like any other.
    cache.append(&[(hash_text("a"), shape(0, 7, 0)), (hash_text("b"), shape(3, 0, 0))]).unwrap();
    assert_eq!(cache.get(&hash_text("a")).unwrap(), Some(shape(0, 7, 0)));
    assert_eq!(cache.get(&hash_text("b")).unwrap(), Some(shape(3, 0, 0)));
}

/// A writer killed at any byte of a record: what was there before is there, the rest is gone, and appending goes on.
#[test]
fn a_torn_end_is_cut_off_at_every_byte() {
    let root = tempdir().unwrap();
    let cache = open(root.path());
    let header = cache.size_on_disk();
    cache.append(&records(0..3)).unwrap();
    let before = cache.size_on_disk();
    cache.append(&records(3..4)).unwrap();
    let after = cache.size_on_disk();
    let path = cache.path().to_path_buf();
    drop(cache);
    let whole = fs::read(&path).unwrap();
    for length in before..after {
        fs::write(&path, &whole[..length as usize]).unwrap();
        let cache = open(root.path());
        assert_eq!((cache.len(), cache.size_on_disk()), (3, before), "cut to {length}");
        assert_eq!(fs::metadata(&path).unwrap().len(), before);
        holds(&cache, 0..3);
        cache.append(&records(3..5)).unwrap();
        drop(cache);
        holds(&open(root.path()), 0..5);
    }
    for length in 0..=header {
        fs::write(&path, &whole[..length as usize]).unwrap();
        let cache = open(root.path());
        assert_eq!((cache.len(), cache.size_on_disk()), (0, header));
        cache.append(&records(0..1)).unwrap();
        holds(&cache, 0..1);
    }
    // Length without content, as a power cut can leave it.
    fs::write(&path, vec![0; 500]).unwrap();
    assert_eq!((open(root.path()).len(), fs::metadata(&path).unwrap().len()), (0, header));
}

#[test]
fn a_torn_end_is_cut_off_before_appending() {
    let root = tempdir().unwrap();
    let cache = open(root.path());
    cache.append(&records(0..2)).unwrap();
    // Another process was killed while this one had the cache open.
    let whole = fs::read(cache.path()).unwrap();
    fs::write(cache.path(), [&whole[..], &whole[16..70]].concat()).unwrap();
    cache.append(&records(2..4)).unwrap();
    holds(&cache, 0..4);
    drop(cache);
    let cache = open(root.path());
    assert_eq!(cache.len(), 4);
    holds(&cache, 0..4);
}

#[test]
fn a_damaged_record_counts_as_absent_and_can_be_appended_anew() {
    let root = tempdir().unwrap();
    let cache = open(root.path());
    cache.append(&records(0..3)).unwrap();
    let path = cache.path().to_path_buf();
    drop(cache);
    let mut bytes = fs::read(&path).unwrap();
    // A value of the first record.
    bytes[16 + 44 + 3] ^= 0x40;
    fs::write(&path, &bytes).unwrap();
    let cache = open(root.path());
    assert_eq!(cache.len(), 3);
    let (key, features) = record(0);
    assert_eq!((cache.get(&key).unwrap(), cache.damaged()), (None, 1));
    assert!(!cache.contains(&key));
    holds(&cache, 1..3);
    cache.append(&[(key, features)]).unwrap();
    holds(&cache, 0..3);
    drop(cache);
    let cache = open(root.path());
    assert_eq!(cache.len(), 3);
    holds(&cache, 0..3);
}

#[test]
fn what_is_not_ours_is_left_as_it_is() {
    let root = tempdir().unwrap();
    let path = open(root.path()).path().to_path_buf();
    let foreign = b"somebody else's file, longer than a header";
    fs::write(&path, foreign).unwrap();
    let error = FeatureCache::open(root.path(), "encoder-1", Precision::F32).unwrap_err();
    assert!(matches!(error, DataError::CacheFormat { .. }), "{error}");
    assert_eq!(fs::read(&path).unwrap(), foreign);
    let manifest = path.with_file_name("manifest.json");
    let text = fs::read_to_string(&manifest).unwrap();
    for (changed, kind) in [
        (text.replace("\"version\": 1", "\"version\": 9"), "version 9"),
        (text.replace("encoder-1", "encoder-9"), "encoder-9"),
        ("{".to_owned(), "manifest"),
    ] {
        fs::write(&manifest, &changed).unwrap();
        let error = FeatureCache::open(root.path(), "encoder-1", Precision::F32).unwrap_err();
        assert!(error.to_string().contains(kind), "{error}");
        assert_eq!(fs::read_to_string(&manifest).unwrap(), changed);
    }
}

#[test]
fn any_fingerprint_makes_a_folder() {
    let root = tempdir().unwrap();
    let fingerprints = ["", "..", "a/b", "ünï", "UPPER", "upper", "nul\0", &"x".repeat(300), "con.txt"];
    for fingerprint in fingerprints {
        let cache = FeatureCache::open(root.path(), fingerprint, Precision::F32).unwrap();
        assert!(cache.is_empty());
        cache.append(&records(0..1)).unwrap();
        assert!(cache.path().starts_with(root.path()));
    }
    let found: HashSet<_> =
        list(root.path()).unwrap().into_iter().map(|entry| entry.encoder_fingerprint).collect();
    assert_eq!(found, fingerprints.iter().map(|text| (*text).to_owned()).collect());
}

#[test]
fn two_handles_see_each_other() {
    let root = tempdir().unwrap();
    let (one, two) = (open(root.path()), open(root.path()));
    one.append(&records(0..3)).unwrap();
    assert!(two.is_empty());
    two.refresh().unwrap();
    holds(&two, 0..3);
    two.append(&records(2..6)).unwrap();
    one.append(&records(4..8)).unwrap();
    holds(&one, 0..8);
    let fresh = open(root.path());
    assert_eq!(fresh.len(), 8);
    holds(&fresh, 0..8);
}

#[test]
fn many_writers_at_once() {
    let root = tempdir().unwrap();
    let shared = open(root.path());
    std::thread::scope(|scope| {
        for writer in 0..6 {
            let (root, shared) = (root.path(), &shared);
            scope.spawn(move || {
                // Half of them share a handle, half have their own, as processes do.
                let own = (writer % 2 == 0).then(|| open(root));
                let cache = own.as_ref().unwrap_or(shared);
                for start in 0..20 {
                    let start = start * 5 + writer * 7;
                    cache.append(&records(start..start + 6)).unwrap();
                    holds(cache, start..start + 6);
                }
            });
        }
    });
    let cache = open(root.path());
    assert_eq!(cache.len(), 95 + 35 + 6);
    holds(&cache, 0..95 + 35 + 6);
    assert_eq!(cache.damaged(), 0);
}

/// Another process: this test binary again, told by its environment what to do.
#[test]
fn processes_share_a_cache_and_may_be_killed() {
    const ROLE: &str = "AEIR_DATA_TEST_CACHE_ROOT";
    if let Some(root) = std::env::var_os(ROLE) {
        let cache = open(Path::new(&root));
        for start in (0..).step_by(10) {
            cache.append(&records(start % 5000..start % 5000 + 10)).unwrap();
        }
    }
    let root = tempdir().unwrap();
    let child = || {
        std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "cache::processes_share_a_cache_and_may_be_killed"])
            .env(ROLE, root.path())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap()
    };
    for _ in 0..4 {
        let mut children = [child(), child()];
        let cache = open(root.path());
        let before = cache.len();
        // Until there is something new, then at once.
        for _ in 0..2000 {
            cache.refresh().unwrap();
            if cache.len() > before + 20 {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        for child in &mut children {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
    let cache = open(root.path());
    let count = cache.len();
    assert!(count >= 10 && count.is_multiple_of(10), "{count}");
    holds(&cache, 0..count);
    assert_eq!(cache.damaged(), 0);
}

#[test]
fn listing_and_pruning() {
    let root = tempdir().unwrap();
    assert!(list(&root.path().join("none")).unwrap().is_empty());
    let small = FeatureCache::open(root.path(), "small", Precision::F16).unwrap();
    small.append(&records(0..2)).unwrap();
    drop(small);
    drop(FeatureCache::open(root.path(), "small", Precision::F32).unwrap());
    let used = FeatureCache::open(root.path(), "used", Precision::F32).unwrap();
    used.append(&records(0..3)).unwrap();
    fs::create_dir_all(root.path().join("foreign/folder")).unwrap();
    fs::write(root.path().join("foreign/folder/manifest.json"), "{}").unwrap();

    let entries = list(root.path()).unwrap();
    let found: Vec<_> = entries
        .iter()
        .map(|entry| (entry.encoder_fingerprint.as_str(), entry.precision, entry.records))
        .collect();
    assert_eq!(
        found,
        [("small", Precision::F16, 2), ("small", Precision::F32, 0), ("used", Precision::F32, 3)]
    );
    assert_eq!(entries[2].bytes, used.size_on_disk());
    // Opening is use, listing is not.
    let long_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(1_000_000);
    for file in ["in-use.lock", "features.bin"] {
        let file = OpenOptions::new().write(true).open(entries[0].path.join(file)).unwrap();
        file.set_modified(long_ago).unwrap();
    }
    let age = |entry: &aeir_data::CacheEntry| entry.last_used().unwrap().elapsed().unwrap().as_secs();
    assert!(age(&list(root.path()).unwrap()[0]) >= 1_000_000);
    drop(FeatureCache::open(root.path(), "small", Precision::F16).unwrap());
    assert!(age(&list(root.path()).unwrap()[0]) < 1000);

    let pruned = prune(root.path(), |entry| entry.precision == Precision::F32 && entry.records == 0).unwrap();
    assert_eq!((pruned.removed.len(), pruned.in_use.len()), (1, 1));
    assert_eq!(pruned.in_use[0].encoder_fingerprint, "used");
    holds(&used, 0..3);
    drop(used);
    let pruned = prune(root.path(), |_| false).unwrap();
    assert_eq!((pruned.removed.len(), pruned.in_use.len()), (2, 0));
    let left: Vec<_> = fs::read_dir(root.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["foreign"]);
    // And it can be made again.
    assert!(FeatureCache::open(root.path(), "used", Precision::F32).unwrap().is_empty());
}

/// A disk that is full before the first byte: `/dev/full` takes none.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_at_creation() {
    let root = tempdir().unwrap();
    let path = open(root.path()).path().to_path_buf();
    fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink("/dev/full", &path).unwrap();
    let error = FeatureCache::open(root.path(), "encoder-1", Precision::F32).unwrap_err();
    assert!(
        matches!(&error, DataError::CacheWrite { source, .. } if source.kind() == std::io::ErrorKind::StorageFull),
        "{error:?}"
    );
}

/// A disk that fills up within an append: this binary again, with a limit on the size of files.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_while_appending() {
    const ROLE: &str = "AEIR_DATA_TEST_FULL_ROOT";
    if let Some(root) = std::env::var_os(ROLE) {
        let cache = open(Path::new(&root));
        cache.append(&records(0..5)).unwrap();
        let before = fs::metadata(cache.path()).unwrap().len();
        // 24 MiB: some of it fits under the limit.
        let large: Vec<_> =
            (100..104).map(|number| (record(number).0, Features::pooled(vec![1.0; 3 << 19]))).collect();
        let error = cache.append(&large).unwrap_err();
        assert!(matches!(error, DataError::CacheWrite { .. }), "{error:?}");
        assert_eq!(fs::metadata(cache.path()).unwrap().len(), before);
        assert_eq!((cache.len(), cache.size_on_disk()), (5, before));
        cache.append(&records(5..8)).unwrap();
        holds(&cache, 0..8);
        drop(cache);
        holds(&open(Path::new(&root)), 0..8);
        return;
    }
    let root = tempdir().unwrap();
    // Blocks of 512 or 1024 bytes, by shell. Ignored, the signal becomes an error of the write.
    let output = std::process::Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 16384; exec \"$0\" \"$@\""])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "cache::a_full_disk_while_appending", "--nocapture"])
        .env(ROLE, root.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    holds(&open(root.path()), 0..8);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn features_come_back(
        shapes in prop::collection::vec((0..6_usize, 0..9_usize), 1..20),
        half in any::<bool>(),
        seed in any::<u32>(),
    ) {
        let precision = if half { Precision::F16 } else { Precision::F32 };
        let root = tempdir().unwrap();
        let features: Vec<_> = shapes.iter().enumerate().map(|(number, (rows, columns))| {
            let value = |place: usize| ((seed as usize ^ (number * 31 + place)) % 2001) as f32 / 13.0 - 77.0;
            let values = (0..rows * columns).map(value).collect();
            (hash_text(&number.to_string()), Features { rows: *rows, columns: *columns, values })
        }).collect();
        let cache = FeatureCache::open(root.path(), "e", precision).unwrap();
        for batch in features.chunks(4) {
            cache.append(batch).unwrap();
        }
        let reopened = FeatureCache::open(root.path(), "e", precision).unwrap();
        for (key, features) in features {
            let expected = Some(features.rounded(precision));
            prop_assert_eq!(&cache.get(&key).unwrap(), &expected);
            prop_assert_eq!(&reopened.get(&key).unwrap(), &expected);
        }
    }

    /// Any bytes changed: what comes back is right or absent.
    #[test]
    fn changed_bytes_never_come_back_as_features(
        changes in prop::collection::vec((any::<prop::sample::Index>(), 1..=255_u8), 1..5)
    ) {
        let root = tempdir().unwrap();
        let cache = open(root.path());
        cache.append(&records(0..6)).unwrap();
        let path = cache.path().to_path_buf();
        drop(cache);
        let mut bytes = fs::read(&path).unwrap();
        for (place, change) in changes {
            let place = 16 + place.index(bytes.len() - 16);
            bytes[place] ^= change;
        }
        OpenOptions::new().write(true).truncate(true).open(&path).unwrap();
        fs::write(&path, &bytes).unwrap();
        let cache = open(root.path());
        for number in 0..6 {
            let (key, features) = record(number);
            let found = cache.get(&key).unwrap();
            prop_assert!(found.is_none() || found == Some(features));
        }
        cache.append(&records(0..6)).unwrap();
        holds(&cache, 0..6);
        drop(cache);
        holds(&open(root.path()), 0..6);
    }
}
