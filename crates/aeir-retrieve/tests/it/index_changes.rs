//! Changes to an index in use: what is committed is there, what is not leaves no trace, and readers notice neither.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use aeir_retrieve::{
    CORRECTION_FILE, CommitStage, Confidence, Correction, Error, Filter, GalleryCorrection, Index,
    IndexBuilder, IndexContent, IndexWriter, Matrix, Metadata, SearchOptions, Storage,
};
use proptest::prelude::*;
use tempfile::TempDir;

use crate::naive;
use crate::properties::scattered;

const MODEL: &str = "m";

fn unit(rows: usize, seed: u64) -> Matrix {
    scattered(rows, 16, seed).l2_normalised().unwrap()
}

fn names(names: std::ops::Range<usize>) -> Vec<String> {
    names.map(|i| format!("{i}.jpg")).collect()
}

fn place() -> (TempDir, PathBuf) {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("photos.index");
    (parent, folder)
}

fn create(folder: &Path, rows: usize, storage: Storage) -> Matrix {
    let embeddings = unit(rows, 1);
    let builder = IndexBuilder::begin(folder).unwrap().with_storage(storage);
    builder.commit(IndexContent::new(&embeddings, &names(0..rows), MODEL)).unwrap();
    embeddings
}

/// Every file below a folder but the lock, with its bytes.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let place = entry.unwrap().path();
        if place.is_dir() {
            found.extend(files(&place));
        } else if !place.ends_with(".writer.lock") {
            found.insert(place.clone(), fs::read(&place).unwrap());
        }
    }
    found
}

#[test]
fn items_are_added_replaced_and_deleted() {
    for storage in [Storage::F32, Storage::F16, Storage::Int8] {
        let (_parent, folder) = place();
        create(&folder, 100, storage);
        let mut reader = Index::open(&folder).unwrap();
        let mut writer = IndexWriter::open(&folder).unwrap();
        let added = unit(20, 2);
        assert_eq!(writer.add(IndexContent::new(&added, &names(90..110), MODEL)).unwrap(), 10);
        writer.remove(&names(0..30)).unwrap();
        assert_eq!((writer.len(), writer.contains("95.jpg"), writer.contains("0.jpg")), (80, true, false));
        assert!(!reader.reload().unwrap());
        assert_eq!(writer.commit().unwrap(), 2);
        assert_eq!(writer.commit().unwrap(), 2, "nothing changed");
        let began = writer.opened();
        assert_eq!((began.len(), began.generation()), (100, 1), "what the writer began with");
        assert_eq!(began.newer().unwrap().unwrap().len(), 80);

        assert_eq!((reader.len(), reader.generation()), (100, 1));
        assert_eq!(reader.search(reader.embedding(0).as_deref().unwrap(), 1).unwrap()[0].item, "0.jpg");
        assert!(reader.reload().unwrap() && !reader.reload().unwrap());
        assert_eq!((reader.len(), reader.deleted(), reader.segments(), reader.generation()), (80, 40, 2, 2));
        let expected: Vec<String> = names(30..90).into_iter().chain(names(90..110)).collect();
        assert_eq!(reader.items().collect::<Vec<_>>(), expected);
        for (position, item) in expected.iter().enumerate() {
            assert_eq!((reader.item(position), reader.position(item)), (Some(item.as_str()), Some(position)));
        }
        let kept = reader.embeddings().unwrap();
        for query in scattered(5, 16, 3).iter_rows() {
            let hits = reader.search(query, 80).unwrap();
            let found: Vec<(usize, f32)> = hits.iter().map(|hit| (hit.position, hit.score)).collect();
            assert_eq!(found, naive::nearest(query, &kept, None), "{storage:?}");
        }
        let newest = added.row(5).unwrap();
        assert_eq!(reader.search(newest, 1).unwrap()[0].item, "95.jpg");

        writer.compact().unwrap();
        assert_eq!(writer.commit().unwrap(), 3);
        let compact = Index::open(&folder).unwrap();
        assert_eq!((compact.len(), compact.deleted(), compact.segments()), (80, 0, 1));
        assert_eq!(compact.embeddings().unwrap(), kept, "nothing is lost by writing anew");
        assert_eq!(compact.search(newest, 9).unwrap(), reader.search(newest, 9).unwrap());
        assert_eq!(compact.files().count(), if storage == Storage::Int8 { 5 } else { 3 });
    }
}

#[test]
fn an_index_can_lose_all_its_items_and_get_new_ones() {
    let (_parent, folder) = place();
    create(&folder, 5, Storage::F32);
    let mut writer = IndexWriter::open(&folder).unwrap();
    writer.remove(&names(0..5)).unwrap();
    writer.commit().unwrap();
    let empty = Index::open(&folder).unwrap();
    assert!(empty.is_empty() && writer.is_empty());
    assert_eq!(empty.search(&[1.0; 16], 3).unwrap(), []);
    assert_eq!((empty.item(0), empty.embedding(0), empty.items().count()), (None, None, 0));
    writer.compact().unwrap();
    writer.commit().unwrap();
    assert_eq!((Index::open(&folder).unwrap().segments(), Index::open(&folder).unwrap().len()), (0, 0));
    writer.add(IndexContent::new(&unit(3, 4), &names(0..3), MODEL)).unwrap();
    writer.commit().unwrap();
    assert_eq!(Index::open(&folder).unwrap().search(unit(3, 4).row(2).unwrap(), 1).unwrap()[0].item, "2.jpg");
}

#[test]
fn what_does_not_fit_is_refused_and_changes_nothing() {
    let (_parent, folder) = place();
    create(&folder, 5, Storage::F32);
    let before = files(&folder);
    let mut writer = IndexWriter::open(&folder).unwrap();
    let mut refused = |embeddings: &Matrix, items: &[String], model: &str| {
        writer.add(IndexContent::new(embeddings, items, model)).unwrap_err()
    };
    assert!(matches!(refused(&unit(2, 1), &names(0..2), "other"), Error::ModelMismatch { .. }));
    let narrow = scattered(2, 15, 1).l2_normalised().unwrap();
    assert!(matches!(refused(&narrow, &names(0..2), MODEL), Error::Shape { expected: 16, got: 15, .. }));
    assert!(matches!(refused(&unit(2, 1), &names(0..3), MODEL), Error::Shape { .. }));
    let twice = vec!["a".to_string(), "a".to_string()];
    assert!(matches!(refused(&unit(2, 1), &twice, MODEL), Error::DuplicateItem { item } if item == "a"));
    let mut values = unit(2, 1).into_values();
    values[17] = f32::NAN;
    let broken = Matrix::new(values, 2, 16).unwrap();
    assert!(matches!(refused(&broken, &names(0..2), MODEL), Error::NotFinite { row: 1, column: 1, .. }));
    let unknown = writer.remove(&["0.jpg".to_string(), "7.jpg".to_string()]);
    assert!(matches!(unknown, Err(Error::UnknownItem { item, .. }) if item == "7.jpg"));
    assert_eq!((writer.commit().unwrap(), writer.len()), (1, 5));
    drop(writer);
    assert_eq!(files(&folder), before);
}

#[test]
fn there_is_one_writer_at_a_time() {
    let (_parent, folder) = place();
    create(&folder, 5, Storage::F32);
    let writer = IndexWriter::open(&folder).unwrap();
    assert!(matches!(IndexWriter::open(&folder), Err(Error::Locked { .. })));
    // A whole new index does not replace one that is being changed.
    let builder = IndexBuilder::begin(&folder).unwrap();
    let refused = builder.commit(IndexContent::new(&unit(2, 9), &names(0..2), MODEL));
    assert!(matches!(refused, Err(Error::Locked { .. })));
    assert_eq!(Index::open(&folder).unwrap().len(), 5);
    drop(writer);
    assert!(IndexWriter::open(&folder).is_ok());
    assert!(matches!(IndexWriter::open(folder.join("nowhere")), Err(Error::NotAnIndex { .. })));
}

#[test]
fn what_was_worked_out_of_all_items_goes_with_them() {
    let (_parent, folder) = place();
    let (gallery, bank) = (unit(30, 1), unit(12, 2));
    let builder = IndexBuilder::begin(&folder).unwrap();
    let correction = Correction::Csls { k: 3 };
    GalleryCorrection::of_bank(correction, &gallery, &bank).unwrap().write(builder.staging()).unwrap();
    Confidence::of_bank(&gallery, &bank).unwrap().write(builder.staging()).unwrap();
    fs::write(builder.staging().join("notes"), "stay").unwrap();
    builder.commit(IndexContent::new(&gallery, &names(0..30), MODEL)).unwrap();

    let mut writer = IndexWriter::open(&folder).unwrap();
    writer.remove(&names(3..7)).unwrap();
    let (left, items, _) = writer.content().unwrap();
    assert_eq!((left.rows(), items.len()), (26, 26));
    let renewed = GalleryCorrection::of_bank(correction, &left, &bank).unwrap();
    renewed.write(writer.staging().unwrap()).unwrap();
    writer.commit().unwrap();
    let index = Index::open(&folder).unwrap();
    assert_eq!(GalleryCorrection::read(&index).unwrap().as_ref(), Some(&renewed));
    assert_eq!(Confidence::read(&index).unwrap(), None, "it was not renewed");
    assert_eq!(index.read_file("notes").unwrap().as_deref(), Some(&b"stay"[..]));
    let query = bank.row(0).unwrap();
    let penalties = renewed.penalties();
    let expected = naive::nearest(query, &left, Some(penalties));
    let found = index.search_with(query, 26, &renewed).unwrap();
    assert_eq!(found.iter().map(|hit| (hit.position, hit.score)).collect::<Vec<_>>(), expected);
    // The first generation's files are gone, and none of its own.
    assert!(!folder.join(CORRECTION_FILE).exists());
    assert!(folder.join("generation-000002").join(CORRECTION_FILE).is_file());

    let mut writer = {
        drop(writer);
        IndexWriter::open(&folder).unwrap()
    };
    writer.add(IndexContent::new(&unit(1, 8), &names(50..51), MODEL)).unwrap();
    writer.commit().unwrap();
    assert_eq!(GalleryCorrection::read(&Index::open(&folder).unwrap()).unwrap(), None);
    assert!(!folder.join("generation-000002").exists());
}

#[test]
fn searches_are_limited_by_name_and_metadata() {
    let (_parent, folder) = place();
    let embeddings = unit(200, 1);
    let metadata: Vec<Metadata> = (0..200)
        .map(|i| match i % 4 {
            0 => Metadata::new(),
            kind => serde_json::from_value(serde_json::json!({"kind": kind, "even": i % 2 == 0})).unwrap(),
        })
        .collect();
    let items = names(0..200);
    let content = IndexContent { metadata: &metadata, ..IndexContent::new(&embeddings, &items, MODEL) };
    Index::create(&folder, content).unwrap();
    let mut writer = IndexWriter::open(&folder).unwrap();
    writer.remove(&names(0..10)).unwrap();
    writer.commit().unwrap();
    drop(writer);
    let index = Index::open(&folder).unwrap();
    assert_eq!(index.metadata(0).as_ref(), metadata.get(10));
    assert_eq!(index.metadata(2), None, "an empty object is no metadata");
    let kept = index.embeddings().unwrap();
    let filters = [
        (Filter::default(), 190),
        (Filter::default().with_equal("kind", "3"), 48),
        (Filter::default().with_equal("kind", "2").with_equal("even", "true"), 48),
        (Filter::default().with_equal("kind", "3").with_equal("even", "true"), 0),
        (Filter::default().with_items(names(5..15)), 5),
        (Filter::default().with_items(names(5..25)).with_equal("kind", "1"), 3),
    ];
    for (filter, expected) in filters {
        let selection = index.select(&filter).unwrap();
        assert_eq!((selection.len(), selection.is_empty()), (expected, expected == 0), "{filter:?}");
        let options = SearchOptions { selection: Some(&selection), ..SearchOptions::default() };
        let queries = scattered(6, 16, 4);
        for (query, hits) in queries.iter_rows().zip(index.find(&queries, 60, &options).unwrap()) {
            let may = |position: usize| {
                let alone = Filter::default().with_items([index.item(position).unwrap().to_string()]);
                let both = index.intersection(&selection, &index.select(&alone).unwrap()).unwrap();
                !both.is_empty()
            };
            let all = naive::nearest(query, &kept, None);
            let wanted: Vec<(usize, f32)> =
                all.into_iter().filter(|(position, _)| may(*position)).take(60).collect();
            assert_eq!(hits.iter().map(|hit| (hit.position, hit.score)).collect::<Vec<_>>(), wanted);
        }
    }
    let without = index.select_without(&[0, 5, 1_000]);
    assert_eq!(without.len(), 188);
    let other = Index::open(&folder).unwrap();
    assert!(
        other
            .select(&Filter::default())
            .is_ok_and(|selection| index.intersection(&selection, &without).is_ok())
    );
    create(&folder, 5, Storage::F32);
    let replaced = Index::open(&folder).unwrap();
    let options = SearchOptions { selection: Some(&without), ..SearchOptions::default() };
    assert!(matches!(replaced.find(&scattered(1, 16, 1), 1, &options), Err(Error::OtherGeneration { .. })));
    let nothing = replaced.select(&Filter::default().with_equal("kind", "1"));
    assert!(matches!(nothing, Err(Error::NoMetadata { .. })));
    let few = Matrix::from_rows(&[[1.0, 0.0]]).unwrap();
    let one = vec!["a".to_string()];
    let content = IndexContent { metadata: &metadata, ..IndexContent::new(&few, &one, MODEL) };
    assert!(matches!(Index::create(&folder, content), Err(Error::Shape { expected: 1, got: 200, .. })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    /// Whatever is added and removed, in whatever order: the index is what a plain map would be.
    #[test]
    fn changes_are_those_of_a_map(
        steps in prop::collection::vec((0_usize..4, 0_usize..30, 1_usize..12), 1..12),
        storage in prop::sample::select(vec![Storage::F32, Storage::F16, Storage::Int8]),
    ) {
        let (_parent, folder) = place();
        let first = create(&folder, 10, storage);
        let mut model: BTreeMap<String, Vec<f32>> =
            names(0..10).into_iter().zip(first.iter_rows().map(<[f32]>::to_vec)).collect();
        let mut reader = Index::open(&folder).unwrap();
        let mut writer = IndexWriter::open(&folder).unwrap();
        for (seed, (kind, start, count)) in steps.into_iter().enumerate() {
            match kind {
                0 | 1 => {
                    let (rows, items) = (unit(count, seed as u64 + 10), names(start..start + count));
                    writer.add(IndexContent::new(&rows, &items, MODEL)).unwrap();
                    model.extend(items.into_iter().zip(rows.iter_rows().map(<[f32]>::to_vec)));
                }
                2 => {
                    let items: Vec<String> =
                        names(start..start + count).into_iter().filter(|item| model.contains_key(item)).collect();
                    writer.remove(&items).unwrap();
                    items.iter().for_each(|item| { model.remove(item); });
                }
                _ => writer.compact().unwrap(),
            }
            if seed % 2 == 0 {
                writer.commit().unwrap();
            }
        }
        writer.commit().unwrap();
        reader.reload().unwrap();
        let fresh = Index::open(&folder).unwrap();
        for index in [&reader, &fresh] {
            let mut items: Vec<&str> = index.items().collect();
            items.sort_unstable();
            prop_assert_eq!(&items, &model.keys().map(String::as_str).collect::<Vec<_>>());
            for (item, vector) in &model {
                let kept = index.embedding(index.position(item).unwrap()).unwrap();
                prop_assert!(kept.iter().zip(vector).all(|(kept, vector)| (kept - vector).abs() < 1e-3));
            }
        }
        // What nothing refers to is gone.
        let listed: Vec<PathBuf> = fresh.files().map(|file| folder.join(file)).collect();
        let all = files(&folder);
        prop_assert_eq!(all.len(), listed.len() + 1, "{:?}", all.keys());
    }
}

const STAGES: [CommitStage; 5] = [
    CommitStage::SegmentsWritten,
    CommitStage::FilesWritten,
    CommitStage::ManifestWritten,
    CommitStage::Committed,
    CommitStage::Cleared,
];
const KILLED_FOLDER: &str = "AEIR_TEST_KILLED_FOLDER";
const KILLED_STAGE: &str = "AEIR_TEST_KILLED_STAGE";

/// The second generation: 5 items more, one replaced, two deleted, a file staged; then one segment of all.
fn change(writer: &mut IndexWriter, compact: bool) {
    writer.add(IndexContent::new(&unit(6, 2), &names(9..15), MODEL)).unwrap();
    writer.remove(&names(0..2)).unwrap();
    if compact {
        writer.compact().unwrap();
    }
    fs::write(writer.staging().unwrap().join("notes"), "second").unwrap();
}

/// Not a test of its own: what `killed_at_each_stage` runs in another process.
#[test]
fn a_writer_that_kills_itself() {
    let (Some(folder), Ok(stage)) = (std::env::var_os(KILLED_FOLDER), std::env::var(KILLED_STAGE)) else {
        return;
    };
    let (stage, compact) = (stage.trim_end_matches('c').to_string(), stage.ends_with('c'));
    let mut writer = IndexWriter::open(folder).unwrap().with_stages(move |reached| {
        if format!("{reached:?}") == stage {
            // As kill -9: no destructor runs.
            std::process::abort();
        }
    });
    change(&mut writer, compact);
    writer.commit().unwrap();
}

#[test]
fn killed_at_each_stage_of_a_commit_it_is_the_last_committed_generation() {
    let expected = |compact: bool| {
        let (parent, folder) = place();
        create(&folder, 10, Storage::F16);
        let mut writer = IndexWriter::open(&folder).unwrap();
        change(&mut writer, compact);
        writer.commit().unwrap();
        let index = Index::open(&folder).unwrap();
        let items: Vec<String> = index.items().map(str::to_string).collect();
        (parent, folder.clone(), items, index.embeddings().unwrap())
    };
    for compact in [false, true] {
        let (_kept, whole, items, embeddings) = expected(compact);
        for stage in STAGES {
            let (_parent, folder) = place();
            create(&folder, 10, Storage::F16);
            let before = files(&folder);
            let reader = Index::open(&folder).unwrap();
            let status = Command::new(std::env::current_exe().unwrap())
                .args(["index_changes::a_writer_that_kills_itself", "--exact", "--nocapture"])
                .env(KILLED_FOLDER, &folder)
                .env(KILLED_STAGE, format!("{stage:?}{}", if compact { "c" } else { "" }))
                .output()
                .unwrap()
                .status;
            assert!(!status.success(), "{stage:?} was not reached");
            let index = Index::open(&folder).unwrap();
            let committed = matches!(stage, CommitStage::Committed | CommitStage::Cleared);
            if committed {
                assert_eq!(
                    (index.generation(), index.items().collect::<Vec<_>>()),
                    (2, items.iter().map(String::as_str).collect())
                );
                assert_eq!(index.embeddings().unwrap(), embeddings);
                assert_eq!(index.read_file("notes").unwrap().as_deref(), Some(&b"second"[..]));
            } else {
                assert_eq!((index.generation(), index.len()), (1, 10));
                let after = files(&folder);
                assert!(before.iter().all(|(file, bytes)| after.get(file) == Some(bytes)), "{stage:?}");
            }
            assert_eq!(reader.len(), 10);
            assert_eq!(reader.search(reader.embedding(3).as_deref().unwrap(), 1).unwrap()[0].position, 3);
            // The next writer clears what the killed one left and can do its work over again.
            let mut writer = IndexWriter::open(&folder).unwrap();
            if !committed {
                assert_eq!(files(&folder), before, "{stage:?}");
                change(&mut writer, compact);
                writer.commit().unwrap();
            }
            drop(writer);
            let relative = |folder: &Path| -> BTreeMap<PathBuf, Vec<u8>> {
                let inside = |(file, bytes): (PathBuf, Vec<u8>)| {
                    (file.strip_prefix(folder).unwrap().to_path_buf(), bytes)
                };
                files(folder).into_iter().map(inside).collect()
            };
            assert_eq!(relative(&folder), relative(&whole), "{stage:?}");
        }
    }
}

#[test]
fn readers_find_a_whole_generation_while_a_writer_commits() {
    let (_parent, folder) = place();
    create(&folder, 50, Storage::F32);
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (done, folder) = (&done, &folder);
        for _ in 0..2 {
            scope.spawn(move || {
                let mut index = Index::open(folder).unwrap();
                let mut last = index.generation();
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    index.reload().unwrap();
                    assert!(index.generation() >= last);
                    last = index.generation();
                    assert_eq!(Index::open(folder).unwrap().len(), 50);
                    let query = index.embedding(7).unwrap();
                    assert_eq!(index.search(&query, 1).unwrap()[0].position, 7);
                }
            });
        }
        let mut writer = IndexWriter::open(folder).unwrap();
        for round in 0..30 {
            writer.add(IndexContent::new(&unit(5, 100 + round), &names(10..15), MODEL)).unwrap();
            if round % 5 == 4 {
                writer.compact().unwrap();
            }
            writer.commit().unwrap();
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}

/// Puts files where the next segments would be, so that none can be written.
fn block_segments(folder: &Path) {
    for number in 0..20 {
        let place = folder.join(format!("segment-{number:06}"));
        if !place.exists() {
            fs::write(&place, "somebody's").unwrap();
        }
    }
}

#[test]
fn a_compaction_that_fails_takes_nothing_away() {
    let (_parent, folder) = place();
    create(&folder, 50, Storage::F32);
    let mut writer = IndexWriter::open(&folder).unwrap();
    writer.add(IndexContent::new(&unit(10, 2), &names(45..55), MODEL)).unwrap();
    writer.commit().unwrap();
    block_segments(&folder);
    let before = Index::open(&folder).unwrap();

    assert!(matches!(writer.compact(), Err(Error::Io { .. })));
    writer.commit().unwrap();
    let after = Index::open(&folder).unwrap();
    assert_eq!(after.items().collect::<Vec<_>>(), before.items().collect::<Vec<_>>());
    assert_eq!(after.len(), 55);
}

#[test]
fn a_commit_that_failed_leaves_no_file_behind_when_it_is_tried_again() {
    let (_parent, folder) = place();
    create(&folder, 50, Storage::F32);
    let mut writer = IndexWriter::open(&folder).unwrap();
    writer.remove(&names(0..1)).unwrap();
    writer.commit().unwrap();

    writer.remove(&names(1..2)).unwrap();
    let in_the_way = folder.join(".manifest.json.new");
    fs::create_dir(&in_the_way).unwrap();
    assert!(matches!(writer.commit(), Err(Error::Io { .. })));
    assert_eq!(Index::open(&folder).unwrap().len(), 49);
    fs::remove_dir(&in_the_way).unwrap();
    writer.commit().unwrap();

    assert_eq!(Index::open(&folder).unwrap().len(), 48);
    let tombstones: Vec<PathBuf> =
        files(&folder).into_keys().filter(|file| file.extension().is_some_and(|end| end == "bits")).collect();
    assert_eq!(tombstones.len(), 1, "{tombstones:?}");
}

#[cfg(unix)]
#[test]
fn a_writer_removes_nothing_behind_a_link() {
    let (parent, folder) = place();
    create(&folder, 50, Storage::F32);
    let elsewhere = parent.path().join("photos");
    fs::create_dir(&elsewhere).unwrap();
    fs::write(elsewhere.join("1.jpg"), "a photo").unwrap();
    std::os::unix::fs::symlink(&elsewhere, folder.join("segment-backup")).unwrap();
    fs::write(folder.join("segment-notes.txt"), "a note").unwrap();
    fs::create_dir(folder.join("segment-000099")).unwrap();
    std::os::unix::fs::symlink(&elsewhere, folder.join("segment-000099").join("deep")).unwrap();

    let mut writer = IndexWriter::open(&folder).unwrap();
    writer.remove(&names(0..1)).unwrap();
    writer.commit().unwrap();
    drop(writer);
    assert_eq!(fs::read_to_string(elsewhere.join("1.jpg")).unwrap(), "a photo");
    assert!(folder.join("segment-notes.txt").exists());
    assert!(!folder.join("segment-000099").exists());
}
