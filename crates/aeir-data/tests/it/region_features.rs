//! Arrays of features and the layout of region features.

use std::path::{Path, PathBuf};

use aeir_data::{
    DataError, Dataset, FeatureArray, Format, ImageSource, ParallelDomain, ReadOptions, RegionFeatures,
    Split, TargetImages, TargetSentences, TestPairs,
};
use half::f16;
use proptest::prelude::*;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use tempfile::tempdir;

use crate::write;

/// An array file as NumPy writes it.
fn npy(version: u8, descr: &str, shape: &[usize], values: &[f64]) -> Vec<u8> {
    let extents: String = shape.iter().map(|extent| format!("{extent}, ")).collect();
    let text = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({extents}), }}");
    let mut file = with_header(version, &text);
    file.extend(values.iter().flat_map(|value| stored(descr, *value)));
    file
}

fn with_header(version: u8, text: &str) -> Vec<u8> {
    let before = if version == 1 { 10 } else { 12 };
    let text = format!("{text}{}\n", " ".repeat(63 - (before + text.len()) % 64));
    let length = u32::try_from(text.len()).unwrap().to_le_bytes();
    let length = if version == 1 { &length[..2] } else { &length[..] };
    [b"\x93NUMPY", &[version, 0][..], length, text.as_bytes()].concat()
}

fn stored(descr: &str, value: f64) -> Vec<u8> {
    let mut bytes = match &descr[1..] {
        "f2" => f16::from_f64(value).to_le_bytes().to_vec(),
        "f4" => (value as f32).to_le_bytes().to_vec(),
        _ => value.to_le_bytes().to_vec(),
    };
    if descr.starts_with('>') {
        bytes.reverse();
    }
    bytes
}

const DESCRIPTIONS: [&str; 6] = ["<f2", ">f2", "<f4", ">f4", "<f8", ">f8"];

fn row(array: &FeatureArray, row: usize) -> Vec<f32> {
    let mut values = vec![f32::NAN; array.row_len()];
    array.read_into(row, &mut values).unwrap();
    values
}

fn image(features: &RegionFeatures, image: usize) -> Vec<f32> {
    let mut values = vec![f32::NAN; features.image_len()];
    features.read_into(image, &mut values).unwrap();
    values
}

fn scan() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/formats/scan")
}

/// What the README of the fixture says about image `i` of all splits.
fn fixture_image(i: usize) -> Vec<f32> {
    (0..32).map(|place| ((7 * (i * 32 + place)) % 101) as f32 - 50.0).collect()
}

fn values(source: &ImageSource) -> Vec<f32> {
    let row = source.features().unwrap();
    image(&row.features, row.image)
}

#[test]
fn the_fixture_is_read_exactly() {
    let domain = ParallelDomain::read(&scan()).unwrap();
    assert_eq!((domain.name.as_str(), domain.notes.len(), domain.skipped.len()), ("scan", 0, 0));
    for (items, first, count, captions) in [(&domain.train, 0, 12, 5), (&domain.validation, 12, 4, 1)] {
        assert_eq!(items.len(), count);
        for (index, item) in items.iter().enumerate() {
            let row = item.image.features().unwrap();
            let features = &row.features;
            assert_eq!((features.len(), features.regions(), features.dimension()), (count, 4, 8));
            assert_eq!(row.image, index);
            assert_eq!(values(&item.image), fixture_image(first + index));
            assert_eq!(item.captions.len(), captions);
            features.check_finite().unwrap();
        }
    }
    assert_eq!(domain.train[1].captions[4], "somebody drew a cat");
    let validation: Vec<&str> = domain.validation.iter().map(|item| item.captions[0].as_str()).collect();
    assert_eq!(validation, ["a ball", "a lamp", "a train", "a bridge"]);

    let pairs = TestPairs::read(&scan(), None).unwrap();
    assert_eq!((pairs.images().len(), pairs.captions().len()), (6, 30));
    assert_eq!(pairs.owners(), (0..30).map(|caption| caption / 5).collect::<Vec<_>>());
    assert!(pairs.captions()[25..].iter().all(|caption| caption.contains("fish")));
    assert_eq!(values(&pairs.images()[5]), fixture_image(21));
    assert!(pairs.notes().is_empty() && pairs.skipped().is_empty());
    assert_eq!(TestPairs::read(&scan(), Some(Split::Validation)).unwrap().owners(), [0, 1, 2, 3]);

    let target = TargetImages::read(&scan().join("train_ims.npy")).unwrap();
    let sentences = TargetSentences::read(&scan().join("train_caps.txt")).unwrap();
    assert_eq!((target.images().len(), sentences.sentences().len()), (12, 60));
    let of_domain: Vec<&String> = domain.train.iter().flat_map(|item| &item.captions).collect();
    assert!(sentences.sentences().iter().eq(of_domain));
    assert!(target.images()[7].to_string().ends_with("train_ims.npy#7"));
    // The whole set, and an array with the captions beside it.
    let data = Dataset::open(&scan(), &ReadOptions::default()).unwrap();
    assert_eq!((data.format, data.image_count(), data.sentence_count()), (Format::Scan, 22, 94));
    let data = Dataset::open(&scan().join("test_ims.npy"), &ReadOptions::default()).unwrap();
    assert_eq!((data.format, data.image_count(), data.sentence_count()), (Format::Npy, 6, 30));
}

#[test]
fn every_version_and_element_type() {
    let folder = tempdir().unwrap();
    let values = [0.0, -1.5, 1024.0, 0.25, 65504.0, -0.0];
    for version in 1..=3 {
        for descr in DESCRIPTIONS {
            let path = write(folder.path(), "a.npy", npy(version, descr, &[3, 2], &values));
            let array = FeatureArray::open(&path).unwrap();
            assert_eq!((array.shape(), array.regions(), array.dimension()), (&[3, 2][..], 1, 2));
            let read: Vec<f64> = (0..3).flat_map(|index| row(&array, index)).map(f64::from).collect();
            assert_eq!(read, values, "{version} {descr}");
            array.check_finite().unwrap();
        }
    }
}

#[test]
fn what_is_not_finite_is_named() {
    let folder = tempdir().unwrap();
    let mut random = ChaCha8Rng::seed_from_u64(5);
    // More than one thread looks through.
    let shape = [70, 5, 1031];
    let count: usize = shape.iter().product();
    for descr in DESCRIPTIONS {
        let mut values = vec![0.5; count];
        let second = 1 + random.next_u32() as usize % (count - 1);
        let first = random.next_u32() as usize % second;
        values[first] = f64::NAN;
        values[second] = f64::INFINITY;
        let path = write(folder.path(), "a.npy", npy(1, descr, &shape, &values));
        let told = FeatureArray::open(&path).unwrap().check_finite().unwrap_err();
        let DataError::ArrayNotFinite { row, region, column, got, .. } = told else { panic!("{told}") };
        assert_eq!((row * 5 + region) * 1031 + column, first, "{descr}");
        assert!(region < 5 && column < 1031 && got.is_nan());
    }
    // Finite as it is stored, and not as it is used.
    let path = write(folder.path(), "a.npy", npy(1, "<f8", &[2, 2, 2], &[0., 0., 0., 0., 0., 1e39, 0., 0.]));
    let told = RegionFeatures::open(&path).unwrap().check_finite().unwrap_err().to_string();
    let expected = format!(
        "`{}` row 1, region 0, column 1: 1000000000000000000000000000000000000000 is",
        path.display()
    );
    assert!(told.starts_with(&expected), "{told}");
}

#[test]
fn rows_and_room_are_checked() {
    let array = FeatureArray::open(&scan().join("dev_ims.npy")).unwrap();
    let mut values = vec![0.0; 32];
    for wrong in [4, usize::MAX, usize::MAX / 128 + 1] {
        let told = array.read_into(wrong, &mut values);
        assert!(matches!(told, Err(DataError::ArrayRow { rows: 4, got, .. }) if got == wrong));
        let features = RegionFeatures::open(array.path()).unwrap();
        assert!(matches!(features.read_into(wrong, &mut values), Err(DataError::ArrayRow { rows: 4, .. })));
    }
    for wrong in [0, 31, 33] {
        let told = array.read_into(0, &mut vec![0.0; wrong]);
        assert!(matches!(told, Err(DataError::ArrayBuffer { expected: 32, got, .. }) if got == wrong));
    }
}

#[test]
fn other_files_are_refused() {
    let folder = tempdir().unwrap();
    let good = npy(1, "<f4", &[2, 3], &[1.0; 6]);
    let header = |descr: &str, order: &str, shape: &str| {
        let text = format!("{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}");
        [with_header(1, &text), vec![0; 24]].concat()
    };
    let changed = |place: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[place] = byte;
        bytes
    };
    for (bytes, got) in [
        (b"PK\x03\x04 an archive".to_vec(), "begins with `PK\\x03\\x04 a`"),
        (b"\x93NUM".to_vec(), "begins with `\\x93NUM`"),
        (good[..7].to_vec(), "cut short after 7 bytes"),
        (good[..9].to_vec(), "cut short after 9 bytes"),
        (good[..100].to_vec(), "118 bytes of it in 100 bytes of file"),
        (changed(6, 9), "got 9.0"),
        (changed(7, 1), "got 1.1"),
        // A header length that lies: into the values, before the end of the dictionary, behind the file, and far too long.
        (changed(8, 122), "got `{'descr'"),
        (changed(8, 30), "got `{'descr': '<f4', 'fortran_orde`"),
        (changed(8, 200), "200 bytes of it in 152 bytes of file"),
        (
            [b"\x93NUMPY\x02\x00\xff\xff\xff\xff".to_vec(), vec![b' '; 100]].concat(),
            "at most 65536 bytes, got 4294967295",
        ),
        (header("'<f4'", "True", "(2, 3)"), "got Fortran order"),
        (header("'<i8'", "False", "(3, 1)"), "f2, f4 or f8, got `<i8`"),
        (header("'|O'", "False", "(3, 1)"), "f2, f4 or f8, got `|O`"),
        (header("[('a', '<f4'), ('b', '<f4')]", "False", "(3, 1)"), "got records"),
        (header("'<f4'", "False", "()"), "2 or 3 dimensions, got []"),
        (header("'<f4'", "False", "(6,)"), "2 or 3 dimensions, got [6]"),
        (header("'<f4'", "False", "(1, 1, 2, 3)"), "2 or 3 dimensions, got [1, 1, 2, 3]"),
        (header("'<f4'", "False", "(0, 3)"), "without a zero, got [0, 3]"),
        (header("'<f4'", "False", "(2, 3, 0)"), "without a zero, got [2, 3, 0]"),
        // 2^62 values of 4 bytes; 2^64 values, which as a wrapped product would be none; 2^64 + 6.
        (header("'<f4'", "False", "(2147483648, 2147483648)"), "fits into memory"),
        (header("'<f4'", "False", "(4294967296, 4294967296)"), "fits into memory"),
        (header("'<f4'", "False", "(2, 9223372036854775811)"), "fits into memory"),
    ] {
        let path = write(folder.path(), "a.npy", bytes);
        let error = FeatureArray::open(&path).unwrap_err();
        assert!(matches!(error, DataError::ArrayFormat { .. }), "{error:?}");
        assert_eq!(error.path(), Some(path.as_path()));
        let told = error.to_string();
        assert!(
            told.starts_with(&format!("`{}`: expected ", path.display())) && told.contains(got),
            "{told}"
        );
    }
    let whole = good.len() as u64;
    for length in [whole - 24, whole - 1, whole + 1] {
        let mut bytes = good.clone();
        bytes.resize(usize::try_from(length).unwrap(), 0);
        let error = FeatureArray::open(&write(folder.path(), "a.npy", bytes)).unwrap_err();
        assert!(
            matches!(error, DataError::ArrayLength { expected, got, .. } if expected == whole && got == length)
        );
    }
    let error = |path: &Path| FeatureArray::open(path).unwrap_err();
    assert!(matches!(error(&write(folder.path(), "e.npy", "")), DataError::EmptyFile { .. }));
    assert!(matches!(error(folder.path()), DataError::NotAFile { got: "folder", .. }));
    assert!(matches!(error(&folder.path().join("missing.npy")), DataError::Io { .. }));
}

/// 103 GB by length, a few KB on disk: nothing but the rows that are read takes memory.
#[cfg(unix)]
#[test]
fn a_large_file_costs_nothing() {
    let folder = tempdir().unwrap();
    let text = "{'descr': '<f4', 'fortran_order': False, 'shape': (350000, 36, 2048), }";
    let path = write(folder.path(), "a.npy", with_header(1, text));
    let start = std::fs::metadata(&path).unwrap().len();
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    if file.set_len(start + 350_000 * 36 * 2048 * 4).is_err() {
        // A file system that has no files of this length, or none with holes.
        return;
    }
    let last = start + (350_000 * 36 * 2048 - 1) * 4;
    std::os::unix::fs::FileExt::write_all_at(&file, &2.5_f32.to_le_bytes(), last).unwrap();
    let array = FeatureArray::open(&path).unwrap();
    assert_eq!(row(&array, 349_999).last(), Some(&2.5));
}

fn folder_with(split: &str, images: usize, captions: impl AsRef<[u8]>) -> tempfile::TempDir {
    let folder = tempdir().unwrap();
    let values: Vec<f64> = (0..images * 6).map(|value| value as f64).collect();
    write(folder.path(), &format!("{split}_ims.npy"), npy(1, "<f4", &[images, 2, 3], &values));
    write(folder.path(), &format!("{split}_caps.txt"), captions);
    folder
}

#[test]
fn lines_that_cannot_be_used_keep_their_place() {
    let long = "x".repeat(10_001);
    let lines: [&[u8]; 8] =
        [b"\xef\xbb\xbfa0 \r", b"", b"a2", b"\xff", b" \t", long.as_bytes(), b"a\0", b"\xc3\xa93"];
    let folder = folder_with("train", 4, lines.join(&b'\n'));
    let domain = ParallelDomain::read(folder.path()).unwrap();
    assert!(domain.validation.is_empty() && domain.notes.is_empty());
    let found: Vec<_> = domain
        .train
        .iter()
        .map(|item| (item.image.features().unwrap().image, item.captions[0].as_str(), item.captions.len()))
        .collect();
    assert_eq!(found, [(0, "a0", 1), (1, "a2", 1), (3, "é3", 1)]);
    let skipped: Vec<_> =
        domain.skipped.iter().map(|skipped| (skipped.line.unwrap(), skipped.reason.as_str())).collect();
    assert_eq!(
        skipped,
        [
            (2, "empty caption"),
            (4, "not UTF-8"),
            (5, "empty caption"),
            (6, "longer than 10000 characters"),
            (5, "no usable caption"),
            (7, "contains a NUL character"),
        ]
    );
    assert!(domain.skipped[4].item.ends_with("train_ims.npy#2"));

    let pairs = TestPairs::read(folder.path(), Some(Split::Train)).unwrap();
    assert_eq!((pairs.images().len(), pairs.owners()), (3, &[0, 1, 2][..]));
    assert_eq!((pairs.captions(), pairs.skipped().len()), (&["a0", "a2", "é3"].map(String::from)[..], 6));
}

#[test]
fn lines_are_a_whole_multiple_of_images() {
    for (lines, whole) in [(1, false), (2, false), (3, true), (4, false), (8, false), (9, true), (15, true)] {
        let folder = folder_with("test", 3, "a dog\n".repeat(lines));
        match TestPairs::read(folder.path(), None) {
            Ok(pairs) => assert!(whole && pairs.captions().len() == lines),
            Err(error) => {
                let counted = DataError::CaptionCount {
                    path: folder.path().join("test_caps.txt"),
                    features: folder.path().join("test_ims.npy"),
                    images: 3,
                    lines,
                };
                assert!(!whole);
                assert_eq!(error.to_string(), counted.to_string());
            }
        }
    }
    let nothing = folder_with("test", 2, " \n\n");
    let told = TestPairs::read(nothing.path(), None);
    assert!(matches!(told, Err(DataError::NothingUsable { skipped: 4, .. })), "{told:?}");
    let empty = folder_with("test", 2, "");
    assert!(matches!(TestPairs::read(empty.path(), None), Err(DataError::EmptyFile { .. })));
}

#[test]
fn printed_byte_strings_are_read_as_text() {
    let most = "b'a dog'\nb\"a dog's\"\nb'caf\\xc3\\xa9'\nb'\\xff'\nb is a letter\nb''\n";
    let folder = folder_with("train", 3, most);
    let domain = ParallelDomain::read(folder.path()).unwrap();
    let captions: Vec<&str> =
        domain.train.iter().flat_map(|item| &item.captions).map(String::as_str).collect();
    assert_eq!(captions, ["a dog", "a dog's", "café", "b is a letter"]);
    let skipped: Vec<_> =
        domain.skipped.iter().map(|skipped| (skipped.line, skipped.reason.as_str())).collect();
    assert_eq!(skipped, [(Some(4), "not UTF-8"), (Some(6), "empty caption")]);
    assert!(domain.notes.len() == 1 && domain.notes[0].contains("5 of 6 lines"), "{:?}", domain.notes);
    assert!(domain.notes[0].ends_with("read as the text they stand for"));

    // Half of the lines are not most of them.
    let folder = folder_with("test", 2, "b'a dog'\na cat");
    let pairs = TestPairs::read(folder.path(), None).unwrap();
    assert_eq!(pairs.captions(), ["b'a dog'", "a cat"]);
    assert!(
        pairs.notes()[0]
            .ends_with("1 of 2 lines are printed byte strings like b'a dog'; they are taken as they are")
    );
}

#[test]
fn images_that_stand_several_times_are_one() {
    let folder = tempdir().unwrap();
    let captions: String = (0..30).map(|line| format!("sentence {line}\n")).collect();
    write(folder.path(), "test_caps.txt", &captions);
    // Three images in five rows each, the second and third alike: groups are five rows all the same.
    let of_row = |row: usize| [1.0, 2.0, 2.0, 3.0, 4.0, 5.0][row / 5];
    let values: Vec<f64> = (0..30 * 6).map(|place| of_row(place / 6) + (place % 6) as f64).collect();
    let path = write(folder.path(), "test_ims.npy", npy(1, "<f4", &[30, 2, 3], &values));
    let pairs = TestPairs::read(folder.path(), None).unwrap();
    let features = &pairs.images()[0].features().unwrap().features;
    assert_eq!((features.len(), features.rows_per_image(), pairs.images().len()), (6, 5, 6));
    assert_eq!(pairs.owners(), (0..30).map(|caption| caption / 5).collect::<Vec<_>>());
    assert_eq!(image(features, 4), [4.0, 5.0, 6.0, 7.0, 8.0, 9.0]);
    assert!(features.name(4).ends_with("#20"));
    assert!(matches!(features.read_into(6, &mut [0.0; 6]), Err(DataError::ArrayRow { rows: 6, got: 6, .. })));
    assert!(pairs.notes()[0].contains("every image stands in 5 rows, so that 30 rows are 6 images"));

    // One row that differs: nothing says that the others are meant as one.
    let mut other = values.clone();
    other[7] += 0.5;
    write(folder.path(), "test_ims.npy", npy(1, "<f4", &[30, 2, 3], &other));
    assert_eq!(TestPairs::read(folder.path(), None).unwrap().images().len(), 30);
    // All rows the same: no groups to be seen.
    write(folder.path(), "test_ims.npy", npy(1, "<f4", &[30, 2, 3], &[0.0; 180]));
    assert_eq!(RegionFeatures::open(&path).unwrap().len(), 30);
}

#[test]
fn splits_have_the_same_shape_and_both_their_files() {
    let folder = folder_with("train", 2, "a\nb");
    let base = folder.path();
    assert!(ParallelDomain::read(base).unwrap().validation.is_empty());
    // The test split is not looked at, whatever it is.
    write(base, "test_ims.npy", "no array");
    let dev = write(base, "dev_ims.npy", npy(1, "<f2", &[1, 3, 2], &[1.0; 6]));
    assert!(matches!(
        ParallelDomain::read(base),
        Err(DataError::Io { path, .. }) if path.ends_with("dev_caps.txt")
    ));
    write(base, "dev_caps.txt", "c");
    let told = ParallelDomain::read(base).unwrap_err().to_string();
    let expected =
        format!("`{}`: expected 2 regions of 3 values an image, got 3 regions of 2", dev.display());
    assert!(told.starts_with(&expected[..expected.len() - " regions of 2".len()]), "{told}");
    write(base, "dev_ims.npy", npy(1, "<f2", &[1, 2, 3], &[1.0; 6]));
    assert_eq!(ParallelDomain::read(base).unwrap().validation.len(), 1);
    std::fs::remove_file(base.join("train_ims.npy")).unwrap();
    assert!(matches!(
        ParallelDomain::read(base),
        Err(DataError::Io { path, .. }) if path.ends_with("train_ims.npy")
    ));
}

/// Two thousand damaged files: each is read or refused, and what is read has the length of the file.
#[test]
fn mutated_arrays_are_read_or_refused() {
    let folder = tempdir().unwrap();
    let mut random = ChaCha8Rng::seed_from_u64(11);
    let mut below = move |bound: usize| (random.next_u32() as usize) % bound;
    let (mut read, mut refused) = (0, 0);
    for round in 0..2000 {
        let descr = DESCRIPTIONS[below(6)];
        let mut bytes = npy(1 + (round % 3) as u8, descr, &[3, 2, 2], &[0.5; 12]);
        for _ in 0..1 + below(3) {
            // As often where the header says something as anywhere.
            let end = if below(2) == 0 { bytes.len() } else { 80 };
            let place = below(end);
            match below(8) {
                0..=2 => bytes[place] = below(256) as u8,
                3 | 4 => bytes[place] = b"0123456789<>f,()' "[below(18)],
                5 | 6 => bytes[place] ^= 1 << below(8),
                _ => drop(bytes.splice(place..place, std::iter::repeat_n(b'9', below(20)))),
            }
        }
        if below(8) == 0 {
            bytes.truncate(1 + below(bytes.len()));
        }
        let path = write(folder.path(), "a.npy", &bytes);
        match FeatureArray::open(&path) {
            Ok(array) => {
                let values: usize = (0..array.rows()).map(|index| row(&array, index).len()).sum();
                assert!(values * 2 <= bytes.len() && array.shape().iter().product::<usize>() == values);
                let _ = array.check_finite();
                read += 1;
            }
            Err(DataError::ArrayFormat { .. } | DataError::ArrayLength { .. }) => refused += 1,
            Err(other) => panic!("{other:?}"),
        }
    }
    assert!(read > 50 && refused > 1000, "{read} read, {refused} refused");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_was_written_is_read(
        version in 1..=3_u8,
        descr in prop::sample::select(DESCRIPTIONS.to_vec()),
        shape in prop::collection::vec(1..6_usize, 2..=3),
        bits in prop::collection::vec(any::<u64>(), 125),
    ) {
        let count: usize = shape.iter().product();
        // Any bits: values of every size, and those that are none.
        let values: Vec<f64> = bits[..count].iter().map(|bits| match &descr[1..] {
            "f2" => f16::from_bits(*bits as u16).to_f64(),
            "f4" => f64::from(f32::from_bits(*bits as u32)),
            _ => f64::from_bits(*bits),
        }).collect();
        let folder = tempdir().unwrap();
        let path = write(folder.path(), "a.npy", npy(version, descr, &shape, &values));
        let array = FeatureArray::open(&path).unwrap();
        prop_assert_eq!(array.shape(), &shape[..]);
        let read: Vec<f32> = (0..array.rows()).flat_map(|index| row(&array, index)).collect();
        for (read, written) in read.iter().zip(&values) {
            let expected = *written as f32;
            prop_assert!(read.to_bits() == expected.to_bits() || (read.is_nan() && expected.is_nan()));
        }
        let broken = values.iter().position(|value| !(*value as f32).is_finite());
        let found = match array.check_finite() {
            Ok(()) => None,
            Err(DataError::ArrayNotFinite { row, region, column, .. }) => {
                Some((row * array.regions() + region) * array.dimension() + column)
            }
            Err(other) => return Err(TestCaseError::fail(other.to_string())),
        };
        prop_assert_eq!(found, broken);
    }

    #[test]
    fn mutated_captions_are_read_or_refused(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        end in any::<prop::sample::Index>(),
    ) {
        let mut bytes = b"b'a dog'\nb'a \\xc3\\xa9 cat'\nb\"it's\"\nfour\n".to_vec();
        for (place, byte) in changes {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        bytes.truncate(end.index(bytes.len()) + 1);
        let folder = folder_with("train", 2, &bytes);
        if let Ok(domain) = ParallelDomain::read(folder.path()) {
            for item in &domain.train {
                prop_assert!(item.image.features().unwrap().image < 2 && !item.captions.is_empty());
            }
        }
    }
}
