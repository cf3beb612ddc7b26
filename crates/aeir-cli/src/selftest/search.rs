//! Checks of exact search: a card finds what the processor finds, to the bit.
//!
//! The CPU has one way to search: where it is the device, the same is done twice.

use aeir_retrieve::{
    Correction, GalleryCorrection, Hit, Index, IndexBuilder, IndexContent, IndexWriter, Matrix,
    SearchOptions, Storage,
};

use super::check::{Check, Kind, Named, Place, Values};
use super::numbers::Numbers;
use crate::search_card::{OnCard, Room, number_of};
use crate::temporary_folder::TemporaryFolder;

/// Why an index is not searched in bfloat16.
const STORAGES: &str = "an index keeps f32, f16 or codes";
const DIMENSION: usize = 40;
/// Rows of two segments; every [`DELETED`]th is deleted.
const ROWS: [usize; 2] = [4_300, 701];
const DELETED: usize = 6;
const QUERIES: usize = 30;
/// Memory for scores on a card: the least.
const SCORE_BYTES: usize = 16 << 20;

/// What is searched, and how.
#[derive(Clone, Copy)]
struct Search {
    storage: Storage,
    k: usize,
    /// Three different vectors a segment, many times each: more near-ties than a card proposes.
    copies: bool,
    selected: bool,
    correction: Option<Correction>,
    /// A card's first pass is made with 16-bit copies.
    rough_first: bool,
}

const PLAIN: Search = Search {
    storage: Storage::F32,
    k: 10,
    copies: false,
    selected: false,
    correction: None,
    rough_first: false,
};

pub(super) fn all() -> Vec<Check> {
    let csls = Some(Correction::Csls { k: 10 });
    let dynamic = Some(Correction::DynamicInvertedSoftmax { beta: 20.0 });
    [
        ("search-f32", PLAIN),
        ("search-rough-first", Search { rough_first: true, ..PLAIN }),
        ("search-f16", Search { storage: Storage::F16, ..PLAIN }),
        ("search-ties", Search { copies: true, rough_first: true, ..PLAIN }),
        ("search-many", Search { k: 1_024, ..PLAIN }),
        ("search-selected", Search { selected: true, ..PLAIN }),
        ("search-corrected", Search { correction: csls, ..PLAIN }),
        ("search-corrected-dynamic", Search { correction: dynamic, storage: Storage::F16, ..PLAIN }),
    ]
    .into_iter()
    .map(|(name, search)| Check::new(Kind::Search, name, move |place| searched(place, search)))
    .chain([Check::new(Kind::Search, "search-few-items", few_items)])
    .map(|check| check.single_only(STORAGES))
    .collect()
}

/// Positions and scores of all hits.
fn searched(place: &Place, search: Search) -> anyhow::Result<Values> {
    let folder = TemporaryFolder::new("selftest")?;
    let index = index(&folder, search)?;
    let queries = Matrix::new(Numbers::new(202).values(QUERIES * DIMENSION), QUERIES, DIMENSION)?;
    let correction = (search.correction)
        .map(|correction| GalleryCorrection::of_bank(correction, &index.embeddings()?, &queries))
        .transpose()?;
    let some: Vec<usize> = (0..index.len()).step_by(3).collect();
    let selection = search.selected.then(|| index.select_without(&some));
    let options = SearchOptions {
        exact: true,
        selection: selection.as_ref(),
        correction: correction.as_ref(),
        ..SearchOptions::default()
    };
    Ok(values(&found(place, &index, &queries, search.k, &options, search.rough_first)?))
}

/// More results than there are items, and queries that are refused.
fn few_items(place: &Place) -> anyhow::Result<Values> {
    let folder = TemporaryFolder::new("selftest")?;
    let path = folder.0.join("index");
    let items = Matrix::new(Numbers::new(203).values(7 * 3), 7, 3)?.l2_normalised()?;
    Index::create(&path, IndexContent::new(&items, &names(0..7), "selftest"))?;
    let index = Index::open(&path)?;
    let options = SearchOptions { exact: true, ..SearchOptions::default() };
    let queries = Matrix::from_rows(&[[0.5, -1.0, 0.25], [0.0, 0.0, 0.0]])?;
    let mut values = values(&found(place, &index, &queries, 50, &options, false)?);
    let broken = Matrix::from_rows(&[[0.5, f32::NAN, 0.25]])?;
    let refused = found(place, &index, &broken, 2, &options, false).is_err();
    values.results.push(Named { name: "NaN is refused".into(), values: vec![f32::from(refused)] });
    Ok(values)
}

fn found(
    place: &Place,
    index: &Index,
    queries: &Matrix,
    k: usize,
    options: &SearchOptions<'_>,
    rough_first: bool,
) -> anyhow::Result<Vec<Vec<Hit>>> {
    match number_of(&place.device) {
        Some(card) => {
            let room = Room { card, score_bytes: SCORE_BYTES, rough_first };
            OnCard::load(index, &room)?.find(index, queries, k, options)
        }
        None => Ok(index.find(queries, k, options)?),
    }
}

fn values(found: &[Vec<Hit>]) -> Values {
    let of = |name: &str, value: fn(&Hit) -> f32| Named {
        name: name.into(),
        values: found.iter().flatten().map(value).collect(),
    };
    let counts = found.iter().map(|hits| hits.len() as f32).collect();
    let results = vec![
        Named { name: "hits of a query".into(), values: counts },
        of("positions", |hit| hit.position as f32),
        of("scores", |hit| hit.score),
    ];
    Values { results, gradients: Vec::new() }
}

fn names(rows: std::ops::Range<usize>) -> Vec<String> {
    rows.map(|row| row.to_string()).collect()
}

/// An index of two segments with deleted items.
fn index(folder: &TemporaryFolder, search: Search) -> anyhow::Result<Index> {
    let path = folder.0.join("index");
    let rows = |count: usize, seed: u64| -> anyhow::Result<Matrix> {
        let different = if search.copies { 3 } else { count };
        let values = Numbers::new(seed).values(different * DIMENSION);
        let values: Vec<f32> = values.iter().cycle().take(count * DIMENSION).copied().collect();
        Ok(Matrix::new(values, count, DIMENSION)?.l2_normalised()?)
    };
    let [first, second] = ROWS;
    let (items, more) = (rows(first, 200)?, rows(second, 201)?);
    let (names_of_items, names_of_more) = (names(0..first), names(first..first + second));
    IndexBuilder::begin(&path)?.with_storage(search.storage).commit(IndexContent::new(
        &items,
        &names_of_items,
        "selftest",
    ))?;
    let mut writer = IndexWriter::open(&path)?;
    writer.add(IndexContent::new(&more, &names_of_more, "selftest"))?;
    let deleted: Vec<String> = (0..first + second).step_by(DELETED).map(|row| row.to_string()).collect();
    writer.remove(&deleted)?;
    writer.commit()?;
    Ok(Index::open(&path)?)
}
