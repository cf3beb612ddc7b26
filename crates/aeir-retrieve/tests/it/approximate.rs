//! Approximate search against the exact one.

use std::path::{Path, PathBuf};

use aeir_retrieve::{
    Error, Filter, Hit, Index, IndexBuilder, IndexContent, IndexWriter, Matrix, Metadata, SearchOptions,
    Storage,
};
use proptest::prelude::*;
use tempfile::TempDir;

use crate::properties::scattered;

const DIMENSION: usize = 24;

/// Rows around `centres` others: embeddings are never spread evenly.
fn clustered(rows: usize, centres: usize, seed: u64) -> Matrix {
    let (middle, noise) = (scattered(centres, DIMENSION, seed), scattered(rows, DIMENSION, seed + 1));
    let row = |(i, noise): (usize, &[f32])| -> Vec<f32> {
        let middle = middle.row(i % centres).unwrap();
        noise.iter().zip(middle).map(|(noise, middle)| middle + 0.6 * noise).collect()
    };
    let values: Vec<f32> = noise.iter_rows().enumerate().flat_map(row).collect();
    Matrix::new(values, rows, DIMENSION).unwrap().l2_normalised().unwrap()
}

fn names(names: std::ops::Range<usize>) -> Vec<String> {
    names.map(|i| i.to_string()).collect()
}

fn create(embeddings: &Matrix, storage: Storage) -> (TempDir, PathBuf) {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("index");
    let items = names(0..embeddings.rows());
    let metadata: Vec<Metadata> = (0..embeddings.rows())
        .map(|i| serde_json::from_value(serde_json::json!({"third": i % 3, "rare": i % 50 == 0})).unwrap())
        .collect();
    let builder = IndexBuilder::begin(&folder).unwrap().with_storage(storage).with_graph(true);
    builder
        .commit(IndexContent { metadata: &metadata, ..IndexContent::new(embeddings, &items, "m") })
        .unwrap();
    (parent, folder)
}

fn recall(exact: &[Vec<Hit>], found: &[Vec<Hit>]) -> f64 {
    let among = |(exact, found): (&Vec<Hit>, &Vec<Hit>)| {
        exact.iter().filter(|hit| found.iter().any(|other| other.item == hit.item)).count()
    };
    let hits: usize = exact.iter().zip(found).map(among).sum();
    hits as f64 / exact.iter().map(Vec::len).sum::<usize>() as f64
}

fn open(folder: &Path) -> Index {
    Index::open(folder).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]
    #[test]
    fn it_finds_nearly_what_the_exact_search_finds(
        seed in 1_u64..1_000,
        rows in 1_500_usize..4_000,
        centres in 5_usize..80,
        storage in prop::sample::select(vec![Storage::F32, Storage::F16, Storage::Int8]),
    ) {
        let (_parent, folder) = create(&clustered(rows, centres, seed), storage);
        let index = open(&folder);
        let reports: Vec<_> = index.graphs().collect();
        prop_assert_eq!(reports.len(), 1);
        let (covered, report) = reports[0];
        prop_assert_eq!((covered, report.queries), (rows, 200));
        prop_assert!(report.recall_at_10 >= 0.95, "{:?}", report);

        let queries = clustered(60, centres, seed);
        let exact = index.search_batch(&queries, 10).unwrap();
        let found = index.find(&queries, 10, &SearchOptions::default()).unwrap();
        prop_assert!(recall(&exact, &found) >= 0.9, "{}", recall(&exact, &found));
        for (exact, found) in exact.iter().zip(&found) {
            prop_assert_eq!(found.len(), 10);
            // An item that both find has the same score in both, and the order is by score.
            for hit in found {
                let same = exact.iter().find(|other| other.item == hit.item);
                prop_assert!(same.is_none_or(|other| other.score == hit.score));
            }
            prop_assert!(found.windows(2).all(|pair| pair[0].score >= pair[1].score));
        }
        let asked = SearchOptions { exact: true, ..SearchOptions::default() };
        prop_assert_eq!(index.find(&queries, 10, &asked).unwrap(), exact.clone());
        // Enough effort looks at everything.
        for effort in [rows, usize::MAX] {
            let patient = SearchOptions { effort: Some(effort), ..SearchOptions::default() };
            prop_assert_eq!(index.find(&queries, 10, &patient).unwrap(), exact.clone());
        }
    }
}

#[test]
fn what_is_added_later_is_found_exactly_and_what_is_deleted_is_not() {
    let all = clustered(4_000, 20, 7);
    let (_parent, folder) = create(&all, Storage::F32);
    let mut writer = IndexWriter::open(&folder).unwrap();
    let added = clustered(50, 20, 91);
    writer.add(IndexContent::new(&added, &names(4_000..4_050), "m")).unwrap();
    writer.remove(&names(0..1_000)).unwrap();
    writer.commit().unwrap();
    let index = open(&folder);
    assert_eq!(index.graphs().count(), 1, "what is added has no graph");
    let found = index.find(&added, 1, &SearchOptions::default()).unwrap();
    for (i, hits) in found.iter().enumerate() {
        assert_eq!(hits[0].item, (4_000 + i).to_string());
    }
    let deleted = all.select_rows(&(0..200).collect::<Vec<_>>()).unwrap();
    let exact = index.search_batch(&deleted, 10).unwrap();
    let found = index.find(&deleted, 10, &SearchOptions::default()).unwrap();
    assert!(found.iter().flatten().all(|hit| hit.item.parse::<usize>().unwrap() >= 1_000));
    assert!(recall(&exact, &found) >= 0.9, "{}", recall(&exact, &found));

    writer.compact().unwrap();
    writer.commit().unwrap();
    let compact = open(&folder);
    assert_eq!(compact.graphs().map(|(rows, _)| rows).collect::<Vec<_>>(), [3_050]);
    let found = compact.find(&deleted, 10, &SearchOptions::default()).unwrap();
    assert!(recall(&exact, &found) >= 0.9, "{}", recall(&exact, &found));
}

#[test]
fn filters_hold_and_rare_ones_are_searched_exactly() {
    let embeddings = clustered(4_000, 20, 3);
    let (_parent, folder) = create(&embeddings, Storage::Int8);
    let index = open(&folder);
    let queries = clustered(40, 20, 5);
    for (filter, exactly) in [
        (Filter::default().with_equal("third", "1"), false),
        (Filter::default().with_equal("rare", "true"), true),
    ] {
        let selection = index.select(&filter).unwrap();
        let options = SearchOptions { selection: Some(&selection), ..SearchOptions::default() };
        let found = index.find(&queries, 10, &options).unwrap();
        let exact = index.find(&queries, 10, &SearchOptions { exact: true, ..options }).unwrap();
        let holds = |hit: &Hit| {
            let metadata = index.metadata(hit.position).unwrap();
            if exactly { metadata["rare"] == true } else { metadata["third"] == 1 }
        };
        assert!(found.iter().flatten().all(holds));
        assert!(recall(&exact, &found) >= 0.9);
        assert!(!exactly || exact == found);
    }
}

#[test]
fn copies_and_zeros_are_no_trouble() {
    let mut rows = vec![vec![0.0; DIMENSION]; 400];
    rows.extend(clustered(1_000, 10, 1).iter_rows().map(<[f32]>::to_vec));
    rows.extend(vec![rows[700].clone(); 600]);
    let embeddings = Matrix::from_rows(&rows).unwrap();
    let (_parent, folder) = create(&embeddings, Storage::F32);
    let index = open(&folder);
    let hits = index.find(&Matrix::from_rows(&[&rows[700]]).unwrap(), 10, &SearchOptions::default()).unwrap();
    assert_eq!(hits[0].len(), 10);
    assert!(hits[0].iter().all(|hit| (hit.score - 1.0).abs() < 1e-6), "{hits:?}");
}

#[test]
fn a_graph_that_falls_apart_leaves_nothing_out() {
    let mut rows: Vec<Vec<f32>> = clustered(1_000, 10, 1).iter_rows().map(<[f32]>::to_vec).collect();
    rows.extend(vec![rows[7].clone(); 1_000]);
    let embeddings = Matrix::from_rows(&rows).unwrap();
    let (_parent, folder) = create(&embeddings, Storage::F32);
    let index = open(&folder);
    let queries = embeddings.select_rows(&[0, 7, 500, 1_500]).unwrap();
    for k in [10, 100, 200, 249] {
        let found = index.find(&queries, k, &SearchOptions::default()).unwrap();
        assert!(
            found.iter().all(|hits| hits.len() == k),
            "k {k}: {:?}",
            found.iter().map(Vec::len).collect::<Vec<_>>()
        );
    }
}

#[test]
fn a_set_in_which_every_item_comes_twice_is_searched_as_well_as_any() {
    let once = clustered(1_500, 20, 1);
    let twice: Vec<&[f32]> = once.iter_rows().chain(once.iter_rows()).collect();
    let (_parent, folder) = create(&Matrix::from_rows(&twice).unwrap(), Storage::Int8);
    let index = open(&folder);
    let (_, report) = index.graphs().next().unwrap();
    assert!(report.recall_at_10 >= 0.99 && report.effort <= 48, "{report:?}");
    let queries = clustered(60, 20, 1);
    let exact = index.search_batch(&queries, 10).unwrap();
    let found = index.find(&queries, 10, &SearchOptions::default()).unwrap();
    let as_good = |(exact, found): (&Vec<Hit>, &Vec<Hit>)| {
        found.iter().filter(|hit| hit.score >= exact[9].score).count()
    };
    let hits: usize = exact.iter().zip(&found).map(as_good).sum();
    assert!(hits >= 594, "{hits} of 600");
}

#[test]
fn dimensions_that_codes_have_no_room_for_are_refused() {
    let mut wide = vec![0.0; 65_537];
    wide[3] = 1.0;
    let embeddings = Matrix::from_rows(&[wide]).unwrap();
    let committed = |storage, graph| {
        let parent = tempfile::tempdir().unwrap();
        let builder = IndexBuilder::begin(parent.path().join("index")).unwrap();
        let builder = builder.with_storage(storage).with_graph(graph);
        builder.commit(IndexContent::new(&embeddings, &names(0..1), "m"))
    };
    assert!(committed(Storage::F32, false).is_ok() && committed(Storage::F16, false).is_ok());
    for (storage, graph) in [(Storage::Int8, false), (Storage::F32, true), (Storage::F16, true)] {
        let error = committed(storage, graph).unwrap_err();
        assert!(matches!(error, Error::Setting { name: "dimension", .. }), "{error}");
    }
}
