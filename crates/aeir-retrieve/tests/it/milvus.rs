//! The index as a collection of a Milvus server, against one that the tests start.
//!
//! `AEIR_MILVUS_LITE` names the program `milvus-lite` (`pip install milvus-lite==3.2.2 pymilvus`); without it these tests say that
//! they are skipped. One server serves all of them, one after another: its Python takes seconds to start.

mod cutting_proxy;
mod lite_server;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use aeir_retrieve::{
    Confidence, Correction, Error, Filter, GalleryCorrection, Index, IndexBuilder, IndexContent, IndexWriter,
    Matrix, Metadata, MilvusAccess, MilvusCollection, MilvusError, MilvusIndexKind, MilvusPlace,
    MilvusSearch, SearchOptions, Storage, UploadOptions, UploadProgress, UploadReport,
};
use tempfile::TempDir;

use crate::properties::scattered;
use cutting_proxy::CuttingProxy;
use lite_server::LiteServer;

const MODEL: &str = "clip@1";
const DIMENSION: usize = 16;

fn unit(rows: usize, seed: u64) -> Matrix {
    scattered(rows, DIMENSION, seed).l2_normalised().unwrap()
}

fn access() -> MilvusAccess {
    MilvusAccess { timeout: Duration::from_secs(30), ..MilvusAccess::default() }
}

/// An index in a folder of its own.
struct Local {
    index: Index,
    parent: TempDir,
}

impl Local {
    fn folder(&self) -> std::path::PathBuf {
        self.parent.path().join("index")
    }
}

fn local(
    embeddings: &Matrix,
    items: &[String],
    metadata: &[Metadata],
    bank: Option<(&Matrix, Correction)>,
) -> Local {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("index");
    let builder = IndexBuilder::begin(&folder).unwrap();
    if let Some((bank, correction)) = bank {
        Confidence::of_bank(embeddings, bank).unwrap().write(builder.staging()).unwrap();
        GalleryCorrection::of_bank(correction, embeddings, bank).unwrap().write(builder.staging()).unwrap();
    }
    builder.commit(IndexContent { metadata, ..IndexContent::new(embeddings, items, MODEL) }).unwrap();
    Local { index: Index::open(&folder).unwrap(), parent }
}

fn names(count: usize) -> Vec<String> {
    (0..count).map(|i| format!("/photos/{i}.jpg")).collect()
}

/// Names that would end a literal that was not quoted, or a line, or mean something to the server.
fn odd_names() -> Vec<String> {
    ["a\"] or item != \"", "b' or 1 == 1 --", "c\\", "d\ne\rf\tg", "é/日本.jpg", "%", "{x}", "h\\\"i", " "]
        .map(String::from)
        .into()
}

fn upload(place: &MilvusPlace, index: &Index, options: UploadOptions) -> Result<UploadReport, MilvusError> {
    MilvusCollection::upload(place, &access(), index, &options, &mut |_| {})
}

fn plain_upload(place: &MilvusPlace, index: &Index) -> UploadReport {
    upload(place, index, UploadOptions::default()).unwrap()
}

/// Ranks, scores and names: what has to be the same here and there.
fn told(hits: Vec<Vec<aeir_retrieve::Hit>>) -> Vec<Vec<(usize, u32, String)>> {
    let of = |hits: Vec<aeir_retrieve::Hit>| {
        hits.into_iter().map(|hit| (hit.rank, hit.score.to_bits(), hit.item)).collect()
    };
    hits.into_iter().map(of).collect()
}

fn assert_same(index: &Index, collection: &MilvusCollection, queries: &Matrix, k: usize) {
    let found = collection.find(queries, k, &MilvusSearch::default()).unwrap();
    assert_eq!(told(found), told(index.search_batch(queries, k).unwrap()));
}

#[test]
fn collections_are_indexes() {
    let Some(server) = LiteServer::start() else { return };
    results_are_those_of_the_index(&server);
    filters_select_the_same_and_names_are_quoted(&server);
    corrections_and_confidence_come_along(&server);
    an_upload_sends_what_differs(&server);
    indexes_share_a_collection_and_one_with_a_bank_does_not(&server);
    an_interrupted_upload_goes_on(&server);
    a_killed_upload_goes_on(&server);
    other_collections_are_refused_and_replaced_when_asked(&server);
    bad_queries_are_refused(&server);
    missing_collections_are_named(&server);
    tokens_are_refused_by_a_server_that_has_others(&server);
}

/// To the bit, also where scores tie: half of the images are there twice.
fn results_are_those_of_the_index(server: &LiteServer) {
    let place = server.place("same");
    let half = unit(300, 1);
    let twice: Vec<f32> = half.values().iter().chain(half.values()).copied().collect();
    let embeddings = Matrix::new(twice, 600, DIMENSION).unwrap();
    for (storage, kind) in [(Storage::F32, None), (Storage::Int8, Some(MilvusIndexKind::Flat))] {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("index");
        let builder = IndexBuilder::begin(&folder).unwrap().with_storage(storage);
        builder.commit(IndexContent::new(&embeddings, &names(600), MODEL)).unwrap();
        let index = Index::open(&folder).unwrap();
        let report = upload(&place, &index, UploadOptions { kind, ..UploadOptions::default() }).unwrap();
        assert_eq!((report.items, report.sent, report.deleted, report.others), (600, 600, 0, 0));
        assert!(report.recall_at_10.is_some_and(|recall| recall >= 0.99), "{report:?}");
        let collection = MilvusCollection::open(&place, &access()).unwrap();
        assert_eq!(
            (collection.len(), collection.dimension(), collection.is_finished()),
            (600, DIMENSION, true)
        );
        collection.check_model(MODEL).unwrap();
        let queries = unit(40, 2);
        for k in [1, 7, 10] {
            assert_same(&index, &collection, &queries, k);
        }
        // All of them, and no more than there are.
        assert_same(&index, &collection, &unit(2, 3), 5_000);
        assert_eq!(collection.recall(&index, &queries, 10).unwrap(), 1.0);
    }
}

fn filters_select_the_same_and_names_are_quoted(server: &LiteServer) {
    let place = server.place("filtered");
    let items: Vec<String> = odd_names().into_iter().chain(names(40)).collect();
    let metadata: Vec<Metadata> = (0..items.len())
        .map(|i| {
            let json = match i % 4 {
                0 => r#"{"licence": "cc0", "year": 2019, "tags": ["red", 7], "deep": {"a": 1}}"#,
                1 => r#"{"licence": "a\"] or item != \"", "year": 2020.5, "free": true}"#,
                2 => r#"{"licence": null, "a=b": "c\\", "free": false}"#,
                _ => "{}",
            };
            serde_json::from_str(json).unwrap()
        })
        .collect();
    let here = local(&unit(items.len(), 4), &items, &metadata, None);
    plain_upload(&place, &here.index);
    let collection = MilvusCollection::open(&place, &access()).unwrap();
    let queries = unit(5, 5);
    let equal = |key: &str, value: &str| Filter::default().with_equal(key, value);
    let mut filters = vec![
        equal("licence", "cc0"),
        equal("licence", "a\"] or item != \""),
        equal("licence", "null"),
        equal("year", "2019"),
        equal("year", "2020.5"),
        equal("tags", "7"),
        equal("tags", "red"),
        equal("free", "true"),
        equal("deep", "1"),
        equal("a=b", "c\\"),
        equal("a", "b=c\\"),
        equal("no such key", ""),
        equal("licence", "cc0").with_equal("year", "2019"),
        equal("licence", "cc0").with_equal("free", "true"),
        Filter::default().with_items(odd_names()),
        Filter::default().with_items(["/photos/3.jpg".to_string(), "\" or item != \"".to_string()]),
        Filter::default().with_items([]),
        equal("licence", "cc0").with_items(items.iter().take(20).cloned()),
    ];
    filters.extend(odd_names().into_iter().map(|name| Filter::default().with_items([name])));
    for filter in &filters {
        let selection = here.index.select(filter).unwrap();
        let options = SearchOptions { exact: true, selection: Some(&selection), ..SearchOptions::default() };
        let expected = here.index.find(&queries, 10, &options).unwrap();
        let search = MilvusSearch { filter: Some(filter), corrected: false };
        assert_eq!(told(collection.find(&queries, 10, &search).unwrap()), told(expected), "{filter:?}");
    }
}

fn corrections_and_confidence_come_along(server: &LiteServer) {
    let (embeddings, bank, queries) = (unit(200, 6), unit(80, 7), unit(30, 8));
    for (name, correction) in [
        ("csls", Correction::Csls { k: 5 }),
        ("softmax", Correction::InvertedSoftmax { beta: 20.0 }),
        ("dynamic", Correction::DynamicInvertedSoftmax { beta: 20.0 }),
        ("sinkhorn", Correction::Sinkhorn { beta: 20.0, iterations: 5 }),
    ] {
        let place = server.place(name);
        let here = local(&embeddings, &names(200), &[], Some((&bank, correction)));
        plain_upload(&place, &here.index);
        let collection = MilvusCollection::open(&place, &access()).unwrap();
        assert_eq!(collection.correction(), Some(correction));
        assert_eq!(collection.confidence(), Confidence::read(&here.index).unwrap().as_ref());
        assert_same(&here.index, &collection, &queries, 10);
        let stored = GalleryCorrection::read(&here.index).unwrap().unwrap();
        let options = SearchOptions { exact: true, correction: Some(&stored), ..SearchOptions::default() };
        let expected = told(here.index.find(&queries, 10, &options).unwrap());
        let search = MilvusSearch { corrected: true, ..MilvusSearch::default() };
        let found = told(collection.find(&queries, 10, &search).unwrap());
        assert_eq!(found, expected, "{name}");
        let plain = told(here.index.search_batch(&queries, 10).unwrap());
        assert_ne!(found, plain, "{name}: a correction that changes nothing shows nothing");
    }
}

fn an_upload_sends_what_differs(server: &LiteServer) {
    let place = server.place("changing");
    let mut here = local(&unit(50, 9), &names(50), &[], None);
    assert_eq!(plain_upload(&place, &here.index).sent, 50);
    assert_eq!(plain_upload(&place, &here.index).sent, 0);
    let mut writer = IndexWriter::open(here.folder()).unwrap();
    let new = ["/photos/7.jpg", "/photos/new.jpg"].map(String::from);
    writer.add(IndexContent::new(&unit(2, 10), &new, MODEL)).unwrap();
    writer.remove(&["/photos/3.jpg", "/photos/4.jpg"].map(String::from)).unwrap();
    writer.commit().unwrap();
    here.index.reload().unwrap();
    let report = plain_upload(&place, &here.index);
    assert_eq!((report.items, report.sent, report.deleted, report.others), (49, 2, 0, 2));
    assert_eq!(report.recall_at_10, None, "the two deleted ones are still in the collection");
    let options = UploadOptions { delete_others: true, ..UploadOptions::default() };
    let report = upload(&place, &here.index, options).unwrap();
    assert_eq!((report.sent, report.deleted, report.others), (0, 2, 0));
    let collection = MilvusCollection::open(&place, &access()).unwrap();
    assert_same(&here.index, &collection, &unit(20, 11), 10);
}

fn indexes_share_a_collection_and_one_with_a_bank_does_not(server: &LiteServer) {
    let place = server.place("shared");
    let first = local(&unit(30, 12), &names(30), &[], None);
    let others: Vec<String> = (0..20).map(|i| format!("/elsewhere/{i}.jpg")).collect();
    let second = local(&unit(20, 13), &others, &[], None);
    plain_upload(&place, &first.index);
    let report = plain_upload(&place, &second.index);
    assert_eq!((report.items, report.others), (20, 30));
    assert_eq!(MilvusCollection::open(&place, &access()).unwrap().len(), 50);

    let place = server.place("alone");
    let bank = unit(40, 14);
    let correction = Some((&bank, Correction::Csls { k: 5 }));
    let first = local(&unit(30, 12), &names(30), &[], correction);
    let second = local(&unit(20, 13), &others, &[], correction);
    plain_upload(&place, &first.index);
    let error = upload(&place, &second.index, UploadOptions::default()).unwrap_err();
    assert!(matches!(error, MilvusError::OtherItems { others: 30, .. }), "{error}");
    assert_eq!(MilvusCollection::open(&place, &access()).unwrap().len(), 30, "nothing was sent");
}

/// Cut off for a moment it goes on by itself, cut off for good it says so, and the next one sends the rest.
fn an_interrupted_upload_goes_on(server: &LiteServer) {
    let here = local(&unit(9_000, 15), &names(9_000), &[], None);
    let direct = server.place("interrupted");
    let proxy = CuttingProxy::start(server.port(), 500_000, true);
    let place = proxy.place("interrupted");
    assert_eq!(plain_upload(&place, &here.index).items, 9_000);
    assert_eq!(proxy.cuts(), 1);

    let proxy = CuttingProxy::start(server.port(), 700_000, false);
    let place = proxy.place("cut_off");
    let error = upload(&place, &here.index, UploadOptions::default()).unwrap_err();
    assert!(matches!(error, MilvusError::Broken { .. } | MilvusError::Timeout { .. }), "{error}");
    let direct_again = server.place("cut_off");
    let collection = MilvusCollection::open(&direct_again, &access()).unwrap();
    assert!(!collection.is_finished() && (1..9_000).contains(&collection.len()), "{}", collection.len());
    let report = plain_upload(&direct_again, &here.index);
    assert_eq!((report.items, report.others), (9_000, 0));
    assert!((1..9_000).contains(&report.sent), "{report:?}");
    for place in [direct, direct_again] {
        let collection = MilvusCollection::open(&place, &access()).unwrap();
        assert!(collection.is_finished());
        assert_same(&here.index, &collection, &unit(5, 16), 10);
    }
}

const KILLED_INDEX: &str = "AEIR_TEST_KILLED_INDEX";
const KILLED_PLACE: &str = "AEIR_TEST_KILLED_PLACE";

/// What a killed upload sent is not sent again.
fn a_killed_upload_goes_on(server: &LiteServer) {
    let here = local(&unit(9_000, 24), &names(9_000), &[], None);
    let place = server.place("killed");
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "milvus::an_upload_to_be_killed", "--nocapture"])
        .env(KILLED_INDEX, here.folder())
        .env(KILLED_PLACE, place.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut told = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let done = told.find_map(|line| line.strip_prefix("done ")?.parse::<usize>().ok()).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!((1..9_000).contains(&done), "{done}");
    let collection = MilvusCollection::open(&place, &access()).unwrap();
    assert!(!collection.is_finished() && (done..9_000).contains(&collection.len()), "{}", collection.len());
    let report = plain_upload(&place, &here.index);
    assert_eq!((report.items, report.others), (9_000, 0));
    assert!(report.sent <= 9_000 - done, "{report:?} after {done}");
    assert_same(&here.index, &MilvusCollection::open(&place, &access()).unwrap(), &unit(5, 25), 10);
}

/// What [`a_killed_upload_goes_on`] kills; without its settings nothing.
#[test]
fn an_upload_to_be_killed() {
    let (Ok(folder), Ok(place)) = (std::env::var(KILLED_INDEX), std::env::var(KILLED_PLACE)) else { return };
    let index = Index::open(folder).unwrap();
    let told = &mut |progress: UploadProgress| println!("done {}", progress.done);
    MilvusCollection::upload(&place.parse().unwrap(), &access(), &index, &UploadOptions::default(), told)
        .unwrap();
}

fn other_collections_are_refused_and_replaced_when_asked(server: &LiteServer) {
    let here = local(&unit(10, 17), &names(10), &[], None);
    let other = scattered(10, 8, 18).l2_normalised().unwrap();
    let narrower = local(&other, &names(10), &[], None);
    let bank = unit(40, 19);
    let corrected = local(&unit(10, 17), &names(10), &[], Some((&bank, Correction::Csls { k: 5 })));
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("index");
    Index::create(&folder, IndexContent::new(&unit(10, 20), &names(10), "clip@2")).unwrap();
    let other_model = Index::open(&folder).unwrap();

    server.python(
        "from pymilvus import MilvusClient\nMilvusClient(uri=URI).create_collection('foreign', dimension=16)",
    );
    let foreign = server.place("foreign");
    let error = MilvusCollection::open(&foreign, &access()).unwrap_err();
    assert!(matches!(&error, MilvusError::Foreign { .. }), "{error}");
    let taken = server.place("taken");
    plain_upload(&taken, &here.index);
    for (place, index, message) in [
        (&foreign, &here.index, "was not made by"),
        (&taken, &narrower.index, "embeddings of 16 numbers, the index of 8"),
        (&taken, &corrected.index, "it is without a correction, the index with one"),
        (&taken, &other_model, "was built with model `clip@1`, the query's model is `clip@2`"),
    ] {
        let error = upload(place, index, UploadOptions::default()).unwrap_err().to_string();
        assert!(error.contains(message) && error.contains("milvus://127.0.0.1"), "{error}");
        let options = UploadOptions { overwrite: true, ..UploadOptions::default() };
        assert_eq!(upload(place, index, options).unwrap().sent, 10);
        assert_same(
            index,
            &MilvusCollection::open(place, &access()).unwrap(),
            &index.embeddings().unwrap(),
            5,
        );
        upload(place, &here.index, options).unwrap();
    }
    let error = MilvusCollection::open(&taken, &access()).unwrap().check_model("clip@2").unwrap_err();
    assert!(matches!(error, MilvusError::Index(Error::ModelMismatch { .. })), "{error}");
}

fn bad_queries_are_refused(server: &LiteServer) {
    let place = server.place("queried");
    plain_upload(&place, &local(&unit(10, 21), &names(10), &[], None).index);
    let collection = MilvusCollection::open(&place, &access()).unwrap();
    let find =
        |queries: &Matrix, k: usize| collection.find(queries, k, &MilvusSearch::default()).unwrap_err();
    let setting = |error: MilvusError| matches!(error, MilvusError::Index(Error::Setting { name: "k", .. }));
    assert!(setting(find(&unit(1, 1), 0)));
    assert!(setting(find(&unit(1, 1), 20_000)));
    let narrow = scattered(1, 8, 1);
    assert!(matches!(find(&narrow, 1), MilvusError::Index(Error::Shape { expected: DIMENSION, got: 8, .. })));
    let mut values = unit(1, 1).into_values();
    values[3] = f32::NAN;
    let error = find(&Matrix::new(values, 1, DIMENSION).unwrap(), 1);
    assert!(matches!(error, MilvusError::Index(Error::NotFinite { column: 3, .. })), "{error}");
    // A name that no collection takes is refused before anything of its batch is sent.
    let long = "x".repeat(70_000);
    let items: Vec<String> = names(1).into_iter().chain([long]).collect();
    let error =
        upload(&server.place("long"), &local(&unit(2, 1), &items, &[], None).index, UploadOptions::default());
    assert!(matches!(error, Err(MilvusError::TooLong { limit: 65_535, got: 70_000, .. })));
}

fn missing_collections_are_named(server: &LiteServer) {
    let error = MilvusCollection::open(&server.place("nowhere"), &access()).unwrap_err();
    assert!(
        matches!(&error, MilvusError::NoCollection { place } if place.collection() == "nowhere"),
        "{error}"
    );
    let place: MilvusPlace = format!("milvus://127.0.0.1:{}/nobase/photos", server.port()).parse().unwrap();
    let error = MilvusCollection::open(&place, &access()).unwrap_err();
    assert!(matches!(&error, MilvusError::Server { .. } | MilvusError::NoCollection { .. }), "{error}");
}

fn tokens_are_refused_by_a_server_that_has_others(server: &LiteServer) {
    let guarded = server.guarded("root:secret");
    let place = guarded.place("guarded");
    let with = |token: Option<&str>| MilvusAccess { token: token.map(str::to_owned), ..access() };
    for (token, message) in [(None, "without a token"), (Some("root:wrong"), "refuses this token")] {
        let error = MilvusCollection::open(&place, &with(token)).unwrap_err();
        assert!(matches!(&error, MilvusError::Denied { .. }), "{error}");
        assert!(error.to_string().contains(message) && !error.to_string().contains("wrong"), "{error}");
    }
    let here = local(&unit(10, 22), &names(10), &[], None);
    let options = UploadOptions::default();
    let right = with(Some("root:secret"));
    MilvusCollection::upload(&place, &right, &here.index, &options, &mut |_| {}).unwrap();
    assert_same(&here.index, &MilvusCollection::open(&place, &right).unwrap(), &unit(3, 23), 5);
    assert!(!format!("{right:?}").contains("secret"));
}

/// What stands at a port that is no Milvus server says something else, or nothing.
#[test]
fn what_is_no_milvus_server_is_told_apart() {
    let quick = MilvusAccess { timeout: Duration::from_secs(2), ..MilvusAccess::default() };
    let open = |port: u16, scheme: &str| {
        let place: MilvusPlace = format!("{scheme}://127.0.0.1:{port}/photos").parse().unwrap();
        let start = Instant::now();
        let error = MilvusCollection::open(&place, &quick).unwrap_err();
        assert!(start.elapsed() < Duration::from_secs(8));
        error
    };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let error = open(port, "milvus");
    assert!(matches!(&error, MilvusError::Unreachable { .. }), "{error}");

    for answer in [Some("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"), None] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        // Ends with the process.
        std::thread::spawn(move || {
            let mut silent = Vec::new();
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                match answer {
                    Some(answer) => {
                        let _ = stream.read(&mut [0; 1_024]);
                        let _ = stream.write_all(answer.as_bytes());
                    }
                    None => silent.push(stream),
                }
            }
        });
        for scheme in ["milvus", "milvuss"] {
            let error = open(port, scheme);
            assert!(matches!(&error, MilvusError::NotMilvus { .. }), "{scheme} {answer:?}: {error}");
        }
    }
}

/// What the crate's documentation says of the place of a test server.
#[test]
fn a_server_is_named_or_its_absence_is_told() {
    if let Some(program) = lite_server::program() {
        assert!(Path::new(&program).is_file(), "AEIR_MILVUS_LITE names no file: {program:?}");
    }
}
