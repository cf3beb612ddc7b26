//! The index on disk: what is written comes back, and what is not whole is refused.

use std::fs;
use std::path::{Path, PathBuf};

use aeir_retrieve::{
    Error, Index, IndexBuilder, IndexContent, MANIFEST_FILE, Matrix, csls_with_bank, mean_top_k_similarity,
    similarity,
};
use proptest::prelude::*;
use tempfile::TempDir;

use crate::naive;
use crate::properties::scattered;

const VECTORS: &str = "segment-000001/vectors.f32";
const NAMES: &str = "segment-000001/items.txt";

fn names(count: usize) -> Vec<String> {
    (0..count).map(|i| format!("photos/\"{i}\"\n ü.jpg")).collect()
}

fn create(folder: &Path, rows: usize, seed: u64) -> Matrix {
    let embeddings = scattered(rows, 19, seed).l2_normalised().unwrap();
    let items = names(rows);
    Index::create(folder, IndexContent::new(&embeddings, &items, "clip-vit-b32@abc")).unwrap();
    embeddings
}

fn place() -> (TempDir, PathBuf) {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("photos.index");
    (parent, folder)
}

fn entries(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn what_is_written_comes_back() {
    let (parent, folder) = place();
    let embeddings = create(&folder, 50, 1);
    assert_eq!(entries(parent.path()), ["photos.index"]);
    assert_eq!(entries(&folder), [MANIFEST_FILE, "segment-000001"]);
    let segment = folder.join("segment-000001");
    assert_eq!(entries(&segment), ["items.offsets", "items.txt", "vectors.f32"]);
    let index = Index::open(&folder).unwrap();
    assert_eq!((index.len(), index.dimension(), index.is_empty()), (50, 19, false));
    assert_eq!(index.embeddings().unwrap(), embeddings);
    assert_eq!(index.items().collect::<Vec<_>>(), names(50));
    assert_eq!(index.embedding(49).as_deref(), embeddings.row(49));
    assert_eq!((index.position(&names(50)[7]), index.position("other")), (Some(7), None));
    assert_eq!(index.item(3), Some(names(50)[3].as_str()));
    assert!(
        index.embedding(50).is_none() && index.embedding(usize::MAX).is_none() && index.item(50).is_none()
    );
    assert_eq!(index.model_fingerprint(), "clip-vit-b32@abc");
    assert!(index.created_by().starts_with("aeir-retrieve "));
    assert!(index.check_model("clip-vit-b32@abc").is_ok());
    let message = index.check_model("siglip").unwrap_err().to_string();
    assert!(
        message.contains("clip-vit-b32@abc") && message.contains("siglip") && message.contains("rebuild")
    );
    // Same content, same bytes.
    let again = parent.path().join("again");
    create(&again, 50, 1);
    for name in [MANIFEST_FILE, VECTORS, NAMES, "segment-000001/items.offsets"] {
        assert_eq!(fs::read(folder.join(name)).unwrap(), fs::read(again.join(name)).unwrap(), "{name}");
    }
}

#[test]
fn search_is_the_naive_sort() {
    let (_parent, folder) = place();
    let embeddings = create(&folder, 2_500, 2);
    let index = Index::open(&folder).unwrap();
    let queries = scattered(20, 19, 3);
    let batch = index.search_batch(&queries, 12).unwrap();
    for (query, hits) in queries.iter_rows().zip(&batch) {
        assert_eq!(&index.search(query, 12).unwrap(), hits);
        for ((rank, hit), (position, score)) in (1..).zip(hits).zip(naive::nearest(query, &embeddings, None))
        {
            assert_eq!((hit.rank, hit.position, hit.score), (rank, position, score));
            assert_eq!(hit.item, names(2_500)[position]);
        }
    }
    assert_eq!(index.search(queries.row(0).unwrap(), 9_999).unwrap().len(), 2_500);
}

#[test]
fn corrected_search_ranks_by_csls() {
    let (_parent, folder) = place();
    let gallery = create(&folder, 300, 4);
    let index = Index::open(&folder).unwrap();
    let queries = scattered(6, 19, 5).l2_normalised().unwrap();
    let bank = scattered(80, 19, 6).l2_normalised().unwrap();
    let penalties: Vec<f32> =
        mean_top_k_similarity(&gallery, &bank, 10).unwrap().iter().map(|mean| (mean / 2.0) as f32).collect();
    let corrected =
        csls_with_bank(&similarity(&queries, &gallery).unwrap(), &similarity(&bank, &gallery).unwrap(), 10)
            .unwrap();
    for (query, corrected) in queries.iter_rows().zip(corrected.iter_rows()) {
        let hits = index.search_corrected(query, 10, &penalties).unwrap();
        let expected = naive::nearest(query, &gallery, Some(&penalties));
        let found: Vec<(usize, f32)> = hits.iter().map(|hit| (hit.position, hit.score)).collect();
        assert_eq!(found, expected[..10]);
        let values: Vec<f32> = hits.iter().map(|hit| corrected[hit.position]).collect();
        assert!(values.windows(2).all(|pair| pair[0] >= pair[1] - 1e-6), "{values:?}");
    }
    let query = queries.row(0).unwrap();
    assert!(matches!(
        index.search_corrected(query, 1, &[0.0]),
        Err(Error::Shape { expected: 300, got: 1, .. })
    ));
    let mut broken = penalties;
    broken[7] = f32::NAN;
    assert!(matches!(index.search_corrected(query, 1, &broken), Err(Error::NotFinite { row: 7, .. })));
}

#[test]
fn bad_queries_are_refused() {
    let (_parent, folder) = place();
    create(&folder, 5, 1);
    let index = Index::open(&folder).unwrap();
    assert!(matches!(index.search(&[0.0; 19], 0), Err(Error::Setting { name: "k", .. })));
    assert!(matches!(index.search(&[0.0; 18], 1), Err(Error::Shape { expected: 19, got: 18, .. })));
    assert!(matches!(index.search(&[f32::NAN; 19], 1), Err(Error::NotFinite { row: 0, column: 0, .. })));
    assert!(matches!(index.search(&[f32::MAX; 19], 1), Err(Error::Setting { .. })));
    let zero = index.search(&[0.0; 19], 3).unwrap();
    assert_eq!(zero.iter().map(|hit| hit.position).collect::<Vec<_>>(), [0, 1, 2]);
}

#[test]
fn bad_content_is_refused_and_leaves_nothing() {
    let (parent, folder) = place();
    let unit = Matrix::from_rows(&[[1.0, 0.0], [0.0, 0.0]]).unwrap();
    let refused = |embeddings: &Matrix, items: &[String]| {
        Index::create(&folder, IndexContent::new(embeddings, items, "")).unwrap_err()
    };
    assert!(matches!(refused(&unit, &names(3)), Error::Shape { expected: 2, got: 3, .. }));
    assert!(matches!(refused(&Matrix::new(vec![], 0, 2).unwrap(), &[]), Error::Empty { .. }));
    assert!(matches!(refused(&Matrix::new(vec![], 2, 0).unwrap(), &names(2)), Error::Empty { .. }));
    let long = Matrix::from_rows(&[[1.0, 0.0], [1.0, 1.0]]).unwrap();
    assert!(matches!(refused(&long, &names(2)), Error::NotNormalised { row: 1, .. }));
    let nan = Matrix::from_rows(&[[1.0, f32::NAN]]).unwrap();
    assert!(matches!(refused(&nan, &names(1)), Error::NotFinite { row: 0, column: 1, .. }));
    assert_eq!(entries(parent.path()), Vec::<String>::new());
    assert!(matches!(Index::open(&folder), Err(Error::NotAnIndex { .. })));
}

#[test]
fn staged_files_travel_and_are_checked() {
    let (parent, folder) = place();
    let builder = IndexBuilder::begin(&folder).unwrap();
    let model = builder.staging().join("model");
    fs::create_dir(&model).unwrap();
    fs::write(model.join("weights.bin"), vec![7_u8; 9 << 20]).unwrap();
    fs::write(model.join("empty"), "").unwrap();
    assert!(!folder.exists());
    let embeddings = scattered(3, 4, 1).l2_normalised().unwrap();
    builder.commit(IndexContent::new(&embeddings, &names(3), "m")).unwrap();
    let index = Index::open(&folder).unwrap();
    assert_eq!(
        index.files().collect::<Vec<_>>(),
        ["model/empty", "model/weights.bin", "segment-000001/items.offsets", NAMES, VECTORS]
    );
    assert_eq!(entries(parent.path()), ["photos.index"]);
    let mut weights = fs::read(folder.join("model/weights.bin")).unwrap();
    weights[5 << 20] ^= 1;
    fs::write(folder.join("model/weights.bin"), weights).unwrap();
    let Err(Error::Damaged { file, expected, .. }) = Index::open(&folder) else { panic!("opened") };
    assert!(file.ends_with("model/weights.bin") && expected.starts_with("CRC-32 "), "{expected}");
    fs::remove_file(folder.join("model/weights.bin")).unwrap();
    assert!(matches!(Index::open(&folder), Err(Error::Damaged { got, .. }) if got == "no file"));
}

#[test]
fn staged_names_of_its_own_and_links_are_refused() {
    let (parent, folder) = place();
    let embeddings = scattered(3, 4, 1).l2_normalised().unwrap();
    let items = names(3);
    let content = IndexContent::new(&embeddings, &items, "m");
    let builder = IndexBuilder::begin(&folder).unwrap();
    fs::write(builder.staging().join(MANIFEST_FILE), "{}").unwrap();
    assert!(matches!(builder.commit(content), Err(Error::ExtraFile { .. })));
    #[cfg(unix)]
    {
        let builder = IndexBuilder::begin(&folder).unwrap();
        std::os::unix::fs::symlink("/etc/hostname", builder.staging().join("link")).unwrap();
        assert!(matches!(builder.commit(content), Err(Error::ExtraFile { .. })));
    }
    assert_eq!(entries(parent.path()), Vec::<String>::new());
}

#[test]
fn a_new_index_replaces_an_old_one_and_open_ones_live_on() {
    let (parent, folder) = place();
    let first = create(&folder, 10, 1);
    let open = Index::open(&folder).unwrap();
    let second = create(&folder, 20, 2);
    assert_eq!(Index::open(&folder).unwrap().embeddings().unwrap(), second);
    assert_eq!(open.embeddings().unwrap(), first);
    assert_eq!(entries(parent.path()), ["photos.index"]);
}

#[test]
fn other_folders_and_files_are_not_replaced() {
    let (parent, folder) = place();
    let refused = || {
        let Err(Error::WouldOverwrite { folder: named }) = IndexBuilder::begin(&folder) else {
            panic!("taken")
        };
        assert_eq!(named, folder);
        assert_eq!(entries(parent.path()), ["photos.index"]);
    };
    fs::write(&folder, "a file").unwrap();
    refused();
    fs::remove_file(&folder).unwrap();
    fs::create_dir(&folder).unwrap();
    refused();
    fs::write(folder.join("holiday.jpg"), "not ours").unwrap();
    refused();
    fs::write(folder.join(MANIFEST_FILE), r#"{"format": "another", "version": 1}"#).unwrap();
    refused();
    assert_eq!(fs::read_to_string(folder.join("holiday.jpg")).unwrap(), "not ours");
}

#[test]
fn a_folder_that_turns_up_meanwhile_is_not_replaced() {
    let (parent, folder) = place();
    let builder = IndexBuilder::begin(&folder).unwrap();
    fs::create_dir(&folder).unwrap();
    let embeddings = scattered(3, 4, 1).l2_normalised().unwrap();
    let items = names(3);
    let content = IndexContent::new(&embeddings, &items, "m");
    assert!(matches!(builder.commit(content), Err(Error::WouldOverwrite { .. })));
    assert_eq!(entries(parent.path()), ["photos.index"]);
}

#[test]
fn leftovers_of_killed_writers_are_cleared_and_living_ones_kept() {
    let (parent, folder) = place();
    let alive = IndexBuilder::begin(&folder).unwrap();
    fs::write(alive.staging().join("mine"), "kept").unwrap();
    // A killed writer leaves its folder, and its lock file unlocked or not yet there.
    for dead in
        [".photos.index.aeir-staging-1-1", ".photos.index.aeir-staging-1-2", ".photos.index.aeir-old-1-1"]
    {
        fs::create_dir(parent.path().join(dead)).unwrap();
        fs::write(parent.path().join(dead).join(".writer.lock"), "").unwrap();
        fs::write(parent.path().join(dead).join("half"), "half").unwrap();
    }
    fs::remove_file(parent.path().join(".photos.index.aeir-staging-1-2/.writer.lock")).unwrap();
    let foreign = parent.path().join(".other.index.aeir-staging-1-1");
    fs::create_dir(&foreign).unwrap();
    assert!(matches!(
        Index::open(parent.path().join(".photos.index.aeir-staging-1-1")),
        Err(Error::NotAnIndex { .. })
    ));

    create(&folder, 4, 1);
    assert_eq!(fs::read_to_string(alive.staging().join("mine")).unwrap(), "kept");
    let staging = alive.staging().file_name().unwrap().to_str().unwrap().to_string();
    let mut expected = vec![".other.index.aeir-staging-1-1".to_string(), staging, "photos.index".to_string()];
    expected.sort();
    assert_eq!(entries(parent.path()), expected);
    drop(alive);
    assert_eq!(entries(parent.path()), [".other.index.aeir-staging-1-1", "photos.index"]);
}

#[test]
fn an_index_moved_aside_by_a_killed_writer_comes_back() {
    let (parent, folder) = place();
    let embeddings = create(&folder, 4, 1);
    fs::rename(&folder, parent.path().join(".photos.index.aeir-old-7-0")).unwrap();
    drop(IndexBuilder::begin(&folder).unwrap());
    assert_eq!(Index::open(&folder).unwrap().embeddings().unwrap(), embeddings);
    assert_eq!(entries(parent.path()), ["photos.index"]);
}

#[test]
fn writers_at_once_leave_one_whole_index() {
    let (parent, folder) = place();
    std::thread::scope(|scope| {
        for seed in 0..4 {
            let folder = &folder;
            scope.spawn(move || {
                for round in 0..5 {
                    create(folder, 30, seed * 5 + round + 1);
                    assert_eq!(Index::open(folder).map(|index| index.len()).unwrap_or(30), 30);
                }
            });
        }
    });
    assert_eq!(Index::open(&folder).unwrap().len(), 30);
    assert_eq!(entries(parent.path()), ["photos.index"]);
}

#[test]
fn unfinished_and_other_versions_say_so() {
    let (parent, folder) = place();
    create(&folder, 4, 1);
    let manifest = folder.join(MANIFEST_FILE);
    let text = fs::read_to_string(&manifest).unwrap();
    fs::remove_file(&manifest).unwrap();
    let message = Index::open(&folder).unwrap_err().to_string();
    assert!(message.contains("not an index, or not finished"), "{message}");
    for (place, reason) in
        [(parent.path().join("nowhere"), "no such folder"), (folder.join(NAMES), "expected a folder")]
    {
        let Err(Error::NotAnIndex { reason: told, .. }) = Index::open(place) else { panic!("opened") };
        assert!(told.starts_with(reason), "{told}");
    }

    fs::write(&manifest, text.replace("\"version\": 2", "\"version\": 1")).unwrap();
    assert!(matches!(Index::open(&folder), Err(Error::Version { expected: 2, got: 1, .. })));
    fs::write(&manifest, text.replace("clip", "flip")).unwrap();
    assert!(matches!(Index::open(&folder), Err(Error::Damaged { .. })));
    fs::write(&manifest, text.replace("  ", " ")).unwrap();
    assert!(matches!(Index::open(&folder), Err(Error::Damaged { .. })));
    fs::write(&manifest, &text).unwrap();
    assert!(Index::open(&folder).is_ok());
}

/// Three files of a small index, in memory.
fn small_index() -> (TempDir, PathBuf, Vec<(&'static str, Vec<u8>)>) {
    let (parent, folder) = place();
    create(&folder, 6, 1);
    let files = [VECTORS, NAMES, MANIFEST_FILE];
    let contents = files.map(|name| (name, fs::read(folder.join(name)).unwrap())).to_vec();
    (parent, folder, contents)
}

#[test]
fn every_cut_and_every_flipped_bit_of_the_manifest_is_refused() {
    let (_parent, folder, contents) = small_index();
    let (name, bytes) = &contents[2];
    for place in 0..bytes.len() {
        let mut flipped = bytes.clone();
        flipped[place] ^= 1 << (place % 8);
        fs::write(folder.join(name), &flipped).unwrap();
        assert!(Index::open(&folder).is_err(), "byte {place}");
        fs::write(folder.join(name), &bytes[..place]).unwrap();
        assert!(Index::open(&folder).is_err(), "cut at {place}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn a_changed_file_is_never_taken_for_the_index(
        file in 0_usize..3,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        length in prop::option::of(0_usize..3_000),
    ) {
        let (_parent, folder, contents) = small_index();
        let (name, bytes) = &contents[file];
        let mut changed = bytes.clone();
        for (place, value) in changes {
            let place = place.index(changed.len());
            changed[place] = value;
        }
        if let Some(length) = length {
            changed.resize(length, b'\n');
        }
        fs::write(folder.join(name), &changed).unwrap();
        prop_assert_eq!(Index::open(&folder).is_ok(), &changed == bytes);
    }
}
