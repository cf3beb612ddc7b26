//! Downloads from a hub on loopback: whole, cut, wrong, refused, shared.

use std::fs;
use std::path::Path;
use std::time::Duration;

use aeir_encoders::EncoderError;
use aeir_encoders::hub::{Hub, HubConfig, ModelId};

use crate::hub_server::{COMMIT, Fault, HubServer, etag};

const CONFIG: &[u8] = br#"{"model_type": "test"}"#;
const POOLING: &[u8] = b"{}";

/// Large enough for several reads.
fn weights() -> Vec<u8> {
    (0..1_000_000_u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

fn server() -> HubServer {
    let weights = weights();
    HubServer::new(&[
        ("config.json", CONFIG),
        ("1_Pooling/config.json", POOLING),
        ("model.safetensors", &weights),
        ("pytorch_model.bin", b"not needed"),
        ("README.md", b"not needed"),
    ])
}

fn id() -> ModelId {
    "org/model".parse().unwrap()
}

fn hub(server: &HubServer, cache: &Path) -> Hub {
    let mut config = HubConfig::new(cache.to_owned());
    config.endpoint.clone_from(&server.address);
    config.token = Some("secret".into());
    config.backoff = Duration::from_millis(1);
    config.timeout = Duration::from_secs(10);
    config.retries = 3;
    Hub::new(config)
}

fn fetch(hub: &Hub) -> Result<std::path::PathBuf, EncoderError> {
    hub.fetch(&id(), &mut |_| {})
}

fn is_whole(snapshot: &Path) {
    assert_eq!(fs::read(snapshot.join("config.json")).unwrap(), CONFIG);
    assert_eq!(fs::read(snapshot.join("1_Pooling/config.json")).unwrap(), POOLING);
    assert!(fs::read(snapshot.join("model.safetensors")).unwrap() == weights());
}

fn leftovers(cache: &Path) -> Vec<String> {
    let blobs = fs::read_dir(cache.join("models--org--model/blobs")).unwrap();
    let names = blobs.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.ends_with(".incomplete")).collect()
}

#[test]
fn only_what_is_needed_and_in_the_layout_of_other_tools() {
    let (server, cache) = (server(), tempfile::tempdir().unwrap());
    let hub = hub(&server, cache.path());
    let mut seen = Vec::new();
    let snapshot = hub
        .fetch(&id(), &mut |progress| seen.push((progress.file.to_owned(), progress.done, progress.total)))
        .unwrap();
    assert_eq!(snapshot, cache.path().join("models--org--model/snapshots").join(COMMIT));
    is_whole(&snapshot);
    assert!(!snapshot.join("pytorch_model.bin").exists() && !snapshot.join("README.md").exists());
    let folder = cache.path().join("models--org--model");
    assert_eq!(fs::read_to_string(folder.join("refs/main")).unwrap(), COMMIT);
    assert!(folder.join("blobs").join(etag("model.safetensors", &weights())).is_file());
    assert!(folder.join("blobs").join(etag("config.json", CONFIG)).is_file());
    assert_eq!(seen.last(), Some(&("model.safetensors".to_owned(), 1_000_000, 1_000_000)));
    assert!(leftovers(cache.path()).is_empty());
    // The cache can be moved.
    #[cfg(unix)]
    assert!(fs::read_link(snapshot.join("1_Pooling/config.json")).unwrap().starts_with("../../../blobs"));

    // What is there needs no network.
    let requests = server.asked().len();
    assert_eq!(fetch(&hub).unwrap(), snapshot);
    assert_eq!(hub.cached(&id()).unwrap(), snapshot);
    assert_eq!(server.asked().len(), requests);
    let by_commit: ModelId = format!("org/model@{COMMIT}").parse().unwrap();
    assert_eq!(hub.cached(&by_commit).unwrap(), snapshot);
}

#[test]
fn a_cut_connection_goes_on_where_it_stopped() {
    let (server, cache) = (server(), tempfile::tempdir().unwrap());
    server.faults(&[Fault::Cut(300_000), Fault::Cut(200_000)]);
    is_whole(&fetch(&hub(&server, cache.path())).unwrap());
    let ranges: Vec<_> = server.gets("model.safetensors").into_iter().map(|asked| asked.range).collect();
    assert_eq!(ranges, [None, Some("bytes=300000-".to_owned()), Some("bytes=500000-".to_owned())]);
}

#[test]
fn what_another_process_left_is_gone_on_with() {
    let (server, cache) = (server(), tempfile::tempdir().unwrap());
    let blobs = cache.path().join("models--org--model/blobs");
    fs::create_dir_all(&blobs).unwrap();
    let incomplete = blobs.join(format!("{}.incomplete", etag("model.safetensors", &weights())));
    fs::write(&incomplete, &weights()[..400_000]).unwrap();
    is_whole(&fetch(&hub(&server, cache.path())).unwrap());
    assert_eq!(server.gets("model.safetensors")[0].range.as_deref(), Some("bytes=400000-"));
    assert!(!incomplete.exists());
}

#[test]
fn a_wrong_beginning_is_fetched_again() {
    for length in [400_000, 1_000_000, 1_200_000] {
        let (server, cache) = (server(), tempfile::tempdir().unwrap());
        let blobs = cache.path().join("models--org--model/blobs");
        fs::create_dir_all(&blobs).unwrap();
        let incomplete = blobs.join(format!("{}.incomplete", etag("model.safetensors", &weights())));
        fs::write(&incomplete, vec![7; length]).unwrap();
        is_whole(&fetch(&hub(&server, cache.path())).unwrap());
        assert_eq!(server.gets("model.safetensors").last().unwrap().range, None, "{length}");
    }
}

#[test]
fn a_server_without_ranges_begins_anew() {
    let (server, cache) = (server(), tempfile::tempdir().unwrap());
    server.faults(&[Fault::Cut(300_000), Fault::NoRanges]);
    is_whole(&fetch(&hub(&server, cache.path())).unwrap());
}

#[test]
fn a_connection_that_brings_nothing_is_given_up() {
    let (server, cache) = (server(), tempfile::tempdir().unwrap());
    server.faults(&[Fault::Cut(0); 4]);
    let error = fetch(&hub(&server, cache.path())).unwrap_err();
    assert!(
        matches!(&error, EncoderError::HubTransport { url, .. } if url.ends_with("/model.safetensors")),
        "{error}"
    );
    assert!(hub(&server, cache.path()).cached(&id()).is_err());
    assert!(!cache.path().join("models--org--model/refs/main").exists(), "a reference to half a model");
}

#[test]
fn a_wrong_hash_is_never_served() {
    let (server, cache) = (server(), tempfile::tempdir().unwrap());
    server.faults(&[Fault::WrongByte]);
    let error = fetch(&hub(&server, cache.path())).unwrap_err();
    let EncoderError::HubHash { expected, got, .. } = &error else { panic!("{error}") };
    assert_eq!(expected, &etag("model.safetensors", &weights()));
    assert_ne!(got, expected);
    assert!(leftovers(cache.path()).is_empty());
    assert!(matches!(hub(&server, cache.path()).cached(&id()), Err(EncoderError::NotCached { .. })));
    // The next time all is well.
    is_whole(&fetch(&hub(&server, cache.path())).unwrap());
}

#[test]
fn refusals_of_the_hub() {
    for (status, message) in
        [(401, "Access to model org/model is restricted"), (403, ""), (404, "Repository not found")]
    {
        let (server, cache) = (server(), tempfile::tempdir().unwrap());
        server.close(status, message);
        let error = fetch(&hub(&server, cache.path())).unwrap_err();
        match &error {
            EncoderError::HubStatus { status: got, message: told, .. } => {
                assert_eq!((*got, told.as_str()), (status, message));
            }
            other => panic!("{other}"),
        }
        assert_eq!(server.asked().len(), 1, "{status} was repeated");
        assert!(!cache.path().join("models--org--model/refs").exists());
    }
}

#[test]
fn busy_servers_are_asked_again_when_they_say() {
    let (server, cache) = (server(), tempfile::tempdir().unwrap());
    server.faults(&[Fault::Status(429, Some(0)), Fault::Status(503, None), Fault::Status(500, None)]);
    is_whole(&fetch(&hub(&server, cache.path())).unwrap());
    assert_eq!(server.gets("model.safetensors").len(), 4);

    // Longer than anyone waits: told at once.
    let (server, cache) = (self::server(), tempfile::tempdir().unwrap());
    server.faults(&[Fault::Status(429, Some(3600))]);
    let error = fetch(&hub(&server, cache.path())).unwrap_err();
    assert!(matches!(error, EncoderError::HubStatus { status: 429, .. }), "{error}");
    assert_eq!(server.gets("model.safetensors").len(), 1);
}

#[test]
fn the_token_does_not_follow_a_redirect_to_another_server() {
    let (front, storage, cache) = (server(), server(), tempfile::tempdir().unwrap());
    front.storage(&storage.address);
    is_whole(&fetch(&hub(&front, cache.path())).unwrap());
    assert!(front.asked().iter().all(|asked| asked.token.as_deref() == Some("Bearer secret")));
    let asked = storage.asked();
    assert_eq!(asked.len(), 1, "only the bytes: {asked:?}");
    assert_eq!(asked[0].token, None);
}

#[test]
fn offline_takes_what_is_there_and_names_what_is_not() {
    let (server, cache) = (server(), tempfile::tempdir().unwrap());
    let mut config = HubConfig::new(cache.path().to_owned());
    config.endpoint.clone_from(&server.address);
    config.offline = true;
    let offline = Hub::new(config);
    let error = fetch(&offline).unwrap_err();
    let EncoderError::NotCached { folder, missing, .. } = &error else { panic!("{error}") };
    assert_eq!(*folder, cache.path().join("models--org--model/snapshots/main"));
    assert_eq!(missing.as_slice(), ["config.json", "model.safetensors"]);
    assert!(error.to_string().contains(&folder.display().to_string()));
    // Filling the folder that the error names is enough.
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("config.json"), CONFIG).unwrap();
    let error = fetch(&offline).unwrap_err();
    assert!(
        matches!(&error, EncoderError::NotCached { missing, .. } if missing == &["model.safetensors"]),
        "{error}"
    );
    fs::write(folder.join("model.safetensors"), weights()).unwrap();
    assert_eq!(&fetch(&offline).unwrap(), folder);
    assert!(server.asked().is_empty());
}

#[test]
fn replies_that_make_no_sense() {
    let cache = tempfile::tempdir().unwrap();
    let server = HubServer::new(&[("config.json", CONFIG), ("pytorch_model.bin", b"weights")]);
    let error = fetch(&hub(&server, cache.path())).unwrap_err();
    let EncoderError::HubReply { expected, got, .. } = &error else { panic!("{error}") };
    assert_eq!(
        (expected.as_str(), got.as_str()),
        ("a model with `model.safetensors`", "config.json, pytorch_model.bin")
    );

    let mut config = HubConfig::new(cache.path().to_owned());
    // A port that nothing listens on.
    config.endpoint = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        format!("http://{}", listener.local_addr().unwrap())
    };
    let error = fetch(&Hub::new(config)).unwrap_err();
    assert!(matches!(error, EncoderError::HubTransport { .. }), "{error}");
}

#[test]
fn several_that_want_the_same_model_fetch_it_once() {
    let (server, cache) = (server(), tempfile::tempdir().unwrap());
    std::thread::scope(|scope| {
        let fetches: Vec<_> =
            (0..4).map(|_| scope.spawn(|| fetch(&hub(&server, cache.path())).unwrap())).collect();
        fetches.into_iter().for_each(|fetch| is_whole(&fetch.join().unwrap()));
    });
    assert_eq!(server.gets("model.safetensors").len(), 1);
    // `1_Pooling/config.json` is counted in.
    assert_eq!(server.gets("config.json").len(), 2);
}

/// Where the processes of the next test find the hub and the cache.
const PLACE: &str = "AEIR_HUB_TEST_PLACE";

#[test]
fn two_processes_want_the_same_model() {
    if let Ok(place) = std::env::var(PLACE) {
        let (address, cache) = place.split_once(' ').unwrap();
        let mut config = HubConfig::new(cache.into());
        config.endpoint = address.to_owned();
        is_whole(&fetch(&Hub::new(config)).unwrap());
        return;
    }
    let (server, cache) = (server(), tempfile::tempdir().unwrap());
    let place = format!("{} {}", server.address, cache.path().display());
    let start = || {
        std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "hub::two_processes_want_the_same_model"])
            .env(PLACE, &place)
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap()
    };
    for mut process in [start(), start()] {
        assert!(process.wait().unwrap().success());
    }
    assert_eq!(server.gets("model.safetensors").len(), 1);
}
