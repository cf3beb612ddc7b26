//! Exact search on a card against the processor's, bit for bit. Without a card it is skipped, and says so; where `AEIR_TEST_CARD` names
//! one, by number, it has to be there.

#![allow(clippy::print_stdout)]

use std::path::Path;

use aeir_retrieve::{
    CardError, CardGallery, CardIndex, CardOptions, Correction, Error, Filter, GalleryCorrection, Hit, Index,
    IndexBuilder, IndexContent, IndexWriter, MOST_ON_CARD, Matrix, SearchOptions, Storage, nearest,
};

/// The least memory for scores: galleries of these tests are cut into chunks.
const SCORE_BYTES: usize = 16 << 20;

/// The card to test on; none where there is none.
fn card() -> Option<CardOptions> {
    let named = std::env::var("AEIR_TEST_CARD").ok().map(|number| number.parse().expect("a number"));
    let options = CardOptions { card: named.unwrap_or(0), score_bytes: SCORE_BYTES, rough_first: false };
    let one = Matrix::new(vec![1.0], 1, 1).unwrap();
    match CardGallery::new(&one, &options) {
        Ok(_) => Some(options),
        Err(error @ CardError::Driver { .. }) if named.is_none() => {
            println!("skipped: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// Numbers in `-1..1` that a seed makes; `steps` of them are different, so that few steps make ties.
fn matrix(rows: usize, columns: usize, seed: u64, steps: u64) -> Matrix {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % (2 * steps + 1)) as f32 / steps as f32 - 1.0
    };
    Matrix::new((0..rows * columns).map(|_| next()).collect(), rows, columns).unwrap()
}

fn names(rows: std::ops::Range<usize>) -> Vec<String> {
    rows.map(|row| format!("{row}.jpg")).collect()
}

/// An index of two segments with deleted items.
fn index(folder: &Path, storage: Storage, dimension: usize) -> Index {
    let (items, more) = (matrix(7_000, dimension, 3, 40_000), matrix(2_003, dimension, 4, 40_000));
    let (items, more) = (items.l2_normalised().unwrap(), more.l2_normalised().unwrap());
    let (first, second) = (names(0..7_000), names(7_000..9_003));
    let content = IndexContent::new(&items, &first, "m");
    IndexBuilder::begin(folder).unwrap().with_storage(storage).commit(content).unwrap();
    let mut writer = IndexWriter::open(folder).unwrap();
    writer.add(IndexContent::new(&more, &second, "m")).unwrap();
    writer.remove(&(0..9_003).step_by(7).map(|row| format!("{row}.jpg")).collect::<Vec<_>>()).unwrap();
    writer.commit().unwrap();
    Index::open(folder).unwrap()
}

#[test]
fn a_matrix_is_searched_as_nearest_does_it() {
    let Some(options) = card() else { return };
    // Rows and dimensions that fill no tile, one query and more than a block of them, k of 1 and beyond all items.
    for (rows, dimension, queries, steps) in
        [(1, 3, 2, 9), (130, 1, 5, 3), (9_001, 33, 1_100, 50_000), (40_003, 64, 1, 50_000)]
    {
        let (items, queries) = (matrix(rows, dimension, 1, steps), matrix(queries, dimension, 2, steps));
        for rough_first in [false, true] {
            let card = CardGallery::new(&items, &CardOptions { rough_first, ..options }).unwrap();
            assert!(card.bytes() >= (rows * dimension * 4) as u64);
            for k in [1, 10, 1_024, rows + 5] {
                if k.min(rows) > MOST_ON_CARD {
                    continue;
                }
                let found = card.nearest(&queries, k).unwrap();
                assert_eq!(
                    found,
                    nearest(&queries, &items, k).unwrap(),
                    "{rows} {dimension} {k} {rough_first}"
                );
                assert_eq!(found, card.nearest(&queries, k).unwrap(), "a second time: {rows} {k}");
            }
        }
    }
}

#[test]
fn ties_beyond_what_is_proposed_go_to_the_processor_and_come_out_in_order() {
    let Some(options) = card() else { return };
    // Three values in four dimensions: 81 different vectors, some hundred copies of each.
    let (items, queries) = (matrix(9_000, 4, 5, 1), matrix(20, 4, 6, 1));
    let card = CardGallery::new(&items, &options).unwrap();
    assert_eq!(card.nearest(&queries, 10).unwrap(), nearest(&queries, &items, 10).unwrap());
    assert!(card.unsettled() > 0);
    // Where nothing is close, the card alone is enough.
    let (items, queries) = (matrix(9_000, 48, 5, 50_000), matrix(20, 48, 6, 50_000));
    let card = CardGallery::new(&items, &options).unwrap();
    assert_eq!(card.nearest(&queries, 10).unwrap(), nearest(&queries, &items, 10).unwrap());
    assert_eq!(card.unsettled(), 0);
}

#[test]
fn an_index_is_searched_as_find_does_it() {
    let Some(card) = card() else { return };
    let place = tempfile::tempdir().unwrap();
    let queries = matrix(70, 40, 8, 40_000);
    for (storage, rough_first) in [(Storage::F32, false), (Storage::F32, true), (Storage::F16, false)] {
        let index = index(&place.path().join(format!("{}-{rough_first}", storage.name())), storage, 40);
        let on_card = CardIndex::new(&index, &CardOptions { rough_first, ..card }).unwrap();
        let embeddings = index.embeddings().unwrap();
        let corrections = [Correction::Csls { k: 10 }, Correction::DynamicInvertedSoftmax { beta: 20.0 }]
            .map(|correction| GalleryCorrection::of_bank(correction, &embeddings, &queries).unwrap());
        let (many, few) = (names(0..5_000), names(100..200));
        let [many, few] =
            [many, few].map(|names| index.select(&Filter::default().with_items(names)).unwrap());
        for (selection, correction) in [
            (None, None),
            (Some(&many), None),
            (Some(&few), None),
            (None, Some(&corrections[0])),
            (Some(&many), Some(&corrections[0])),
            (None, Some(&corrections[1])),
        ] {
            let options = SearchOptions { exact: true, selection, correction, ..SearchOptions::default() };
            let find = || on_card.find(&index, &queries, 12, &options).unwrap();
            let (found, expected) = (find(), index.find(&queries, 12, &options).unwrap());
            assert_eq!(found, expected, "{}", storage.name());
            assert_eq!(found, find(), "a second time");
            let is_deleted = |hit: &Hit| hit.item.trim_end_matches(".jpg").parse::<usize>().unwrap() % 7 == 0;
            assert!(!found.iter().flatten().any(is_deleted));
        }
    }
}

#[test]
fn refusals_name_what_is_wrong() {
    let Some(options) = card() else { return };
    let place = tempfile::tempdir().unwrap();
    let small = CardOptions { score_bytes: 1 << 20, ..options };
    let items = matrix(3_000, 8, 9, 1_000);
    let error = CardGallery::new(&items, &small).unwrap_err();
    assert!(matches!(error, CardError::Search(Error::Setting { .. })), "{error}");
    let error = CardGallery::new(&items, &CardOptions { card: 4_096, ..options }).unwrap_err();
    assert!(matches!(error, CardError::Driver { .. }), "{error}");
    let empty = Matrix::new(Vec::new(), 0, 8).unwrap();
    let error = CardGallery::new(&empty, &options).unwrap_err();
    assert!(matches!(error, CardError::Search(Error::Empty { .. })), "{error}");

    let card = CardGallery::new(&items, &options).unwrap();
    let query = matrix(1, 8, 1, 1_000);
    let error = card.nearest(&query, MOST_ON_CARD + 1).unwrap_err();
    assert!(matches!(error, CardError::TooMany { limit: MOST_ON_CARD, .. }), "{error}");
    let nan = Matrix::new(vec![f32::NAN; 8], 1, 8).unwrap();
    assert!(matches!(card.nearest(&nan, 1), Err(CardError::Search(Error::NotFinite { .. }))));
    assert!(matches!(card.nearest(&query, 0), Err(CardError::Search(Error::Setting { name: "k", .. }))));

    let coded = index(&place.path().join("int8"), Storage::Int8, 8);
    let error = CardIndex::new(&coded, &options).unwrap_err();
    assert!(matches!(error, CardError::Storage { got: "int8" }), "{error}");
    let folder = place.path().join("f16");
    let before = index(&folder, Storage::F16, 8);
    let on_card = CardIndex::new(&before, &options).unwrap();
    let mut writer = IndexWriter::open(&folder).unwrap();
    writer.remove(&["1.jpg".to_string()]).unwrap();
    writer.commit().unwrap();
    let after = Index::open(&folder).unwrap();
    assert!(on_card.is_of(&before) && !on_card.is_of(&after));
    let error = on_card.find(&after, &query, 1, &SearchOptions::default()).unwrap_err();
    assert!(matches!(error, CardError::Search(Error::OtherGeneration { .. })), "{error}");
}
