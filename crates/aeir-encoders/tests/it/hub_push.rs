//! Models onto a hub on loopback: whole, in parts, cut off, refused.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use aeir_encoders::EncoderError;
use aeir_encoders::hub::{Hub, HubConfig, HubProgress, Push, PushFile, Pushed};

use crate::push_server::{Fault, PushServer};

const TOKEN: &str = "hf_a_secret";
const CARD: &[u8] = b"---\nlibrary_name: aeir\n---\n# A model\n";

/// Large enough for several reads.
fn weights() -> Vec<u8> {
    (0..300_000_u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

/// A folder with a model, and its files.
fn model(folder: &Path) -> Vec<PushFile> {
    fs::create_dir_all(folder.join("encoders/image")).unwrap();
    let write = |name: &str, bytes: &[u8]| {
        fs::write(folder.join(name), bytes).unwrap();
        PushFile { name: name.to_owned(), path: folder.join(name) }
    };
    vec![
        write("README.md", CARD),
        write("empty.safetensors", b""),
        write("encoders/image/config.json", b"{}"),
        write("model.safetensors", &weights()),
    ]
}

/// The card alone.
fn card(folder: &Path) -> Vec<PushFile> {
    vec![PushFile { name: "README.md".to_owned(), path: folder.join("README.md") }]
}

fn hub(server: &PushServer, token: Option<&str>) -> Hub {
    let mut config = HubConfig::new(std::env::temp_dir());
    config.endpoint.clone_from(&server.address);
    config.token = token.map(str::to_owned);
    config.backoff = Duration::from_millis(1);
    config.timeout = Duration::from_secs(10);
    config.retries = 3;
    Hub::new(config)
}

fn push(files: Vec<PushFile>) -> Push {
    Push { id: "me/model".parse().unwrap(), private: false, message: "a model".into(), files }
}

fn send(server: &PushServer, push: &Push) -> Result<Pushed, EncoderError> {
    hub(server, Some(TOKEN)).push(push, &mut |_: HubProgress<'_>| {})
}

/// What a user sees of an error.
fn told(error: &EncoderError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        text.push_str(&format!(": {inner}"));
        source = inner.source();
    }
    assert!(!text.contains(TOKEN) && !text.contains("X-Signature"), "{text}");
    text
}

fn is_whole(server: &PushServer, branch: &str) {
    assert_eq!(server.file("me/model", branch, "README.md").unwrap(), CARD);
    assert_eq!(server.file("me/model", branch, "encoders/image/config.json").unwrap(), b"{}");
    assert_eq!(server.file("me/model", branch, "empty.safetensors").unwrap(), b"");
    assert!(server.file("me/model", branch, "model.safetensors").unwrap() == weights());
}

#[test]
fn a_model_is_made_with_one_commit() {
    let (server, folder) = (PushServer::new(TOKEN), tempfile::tempdir().unwrap());
    let push = push(model(folder.path()));
    let mut seen = Vec::new();
    let pushed = hub(&server, Some(TOKEN))
        .push(&push, &mut |progress| seen.push((progress.file.to_owned(), progress.done, progress.total)))
        .unwrap();
    is_whole(&server, "main");
    assert_eq!(pushed.url, format!("{}/me/model", server.address));
    assert_eq!((pushed.sent.len(), pushed.unchanged.len(), pushed.commit.is_some()), (4, 0, true));
    assert_eq!(server.state().repositories["me/model"].commits, ["a model"]);
    assert_eq!(server.state().verified.len(), 1);
    assert_eq!(seen.last(), Some(&("model.safetensors".to_owned(), 300_000, 300_000)));
    // Signed addresses and the token don't go together.
    let stored = server.asked("PUT", "/storage/");
    assert!(stored.iter().all(|asked| asked.headers["content-length"] == "300000"));
    let commit = &server.asked("POST", "/commit/main")[0];
    assert_eq!(commit.headers["content-type"], "application/x-ndjson");
}

#[test]
fn what_is_there_already_is_not_sent_again() {
    let (server, folder) = (PushServer::new(TOKEN), tempfile::tempdir().unwrap());
    let push = push(model(folder.path()));
    send(&server, &push).unwrap();
    let again = send(&server, &push).unwrap();
    assert_eq!((again.commit, again.sent.len(), again.unchanged.len()), (None, 0, 4));
    fs::write(folder.path().join("README.md"), b"another card").unwrap();
    let changed = send(&server, &push).unwrap();
    assert_eq!((changed.sent, changed.unchanged.len()), (vec!["README.md".to_owned()], 3));
    assert_eq!(server.asked("PUT", "/storage/").len(), 1, "the weights went once");
    assert_eq!(server.state().repositories["me/model"].commits.len(), 2);
}

#[test]
fn a_branch_is_made_where_it_is_missing() {
    let (server, folder) = (PushServer::new(TOKEN), tempfile::tempdir().unwrap());
    let push = Push { id: "me/model@try/one".parse().unwrap(), ..push(model(folder.path())) };
    send(&server, &push).unwrap();
    is_whole(&server, "try/one");
    assert!(server.file("me/model", "main", "README.md").is_none());
    send(&server, &push).unwrap();
}

#[test]
fn large_files_go_in_parts_and_a_part_that_fails_goes_again_alone() {
    let (server, folder) = (PushServer::new(TOKEN), tempfile::tempdir().unwrap());
    server.state().part = Some(70_000);
    server.state().faults = vec![
        ("/2?", Fault::Cut),
        ("/4?", Fault::Status(503, None)),
        ("/complete/", Fault::Status(500, None)),
    ];
    send(&server, &push(model(folder.path()))).unwrap();
    is_whole(&server, "main");
    let sent: Vec<usize> = (1..=5).map(|part| server.asked("PUT", &format!("/{part}?")).len()).collect();
    assert_eq!(sent, [1, 2, 1, 2, 1]);
    let last = &server.asked("PUT", "/5?")[0];
    assert_eq!(last.body.len(), 300_000 - 4 * 70_000);
    assert!(
        !last.headers.contains_key("content-type"),
        "a signed address takes the headers that it was signed with"
    );
}

#[test]
fn cut_connections_are_taken_up() {
    let (server, folder) = (PushServer::new(TOKEN), tempfile::tempdir().unwrap());
    server.state().faults = vec![
        ("/api/repos/create", Fault::LostAnswer),
        ("/preupload/", Fault::Cut),
        ("/objects/batch", Fault::Cut),
        ("/storage/whole", Fault::Cut),
        ("/storage/verify", Fault::LostAnswer),
        ("/commit/", Fault::Cut),
    ];
    let pushed = send(&server, &push(model(folder.path()))).unwrap();
    is_whole(&server, "main");
    assert!(pushed.commit.is_some());
    assert_eq!(server.state().repositories["me/model"].commits.len(), 1);
}

#[test]
fn a_commit_whose_answer_is_lost_is_not_made_twice() {
    let (server, folder) = (PushServer::new(TOKEN), tempfile::tempdir().unwrap());
    server.state().faults = vec![("/commit/", Fault::LostAnswer)];
    let pushed = send(&server, &push(model(folder.path()))).unwrap();
    is_whole(&server, "main");
    assert_eq!(server.state().repositories["me/model"].commits.len(), 1);
    assert_eq!((pushed.commit, pushed.sent.len(), pushed.unchanged.len()), (None, 4, 0));
}

#[test]
fn a_commit_of_others_in_between_is_built_upon() {
    let (server, folder) = (PushServer::new(TOKEN), tempfile::tempdir().unwrap());
    server.state().faults = vec![("/commit/", Fault::Status(412, None))];
    send(&server, &push(model(folder.path()))).unwrap();
    is_whole(&server, "main");
    // But not forever.
    server.state().faults = vec![("/commit/", Fault::Status(409, None)); 9];
    fs::write(folder.path().join("README.md"), b"another card").unwrap();
    let error = send(&server, &push(card(folder.path()))).unwrap_err();
    assert!(told(&error).contains("status 409"), "{}", told(&error));
}

#[test]
fn a_full_hub_is_waited_for_as_it_asks() {
    let (server, folder) = (PushServer::new(TOKEN), tempfile::tempdir().unwrap());
    server.state().faults = vec![("/preupload/", Fault::Status(429, Some(1)))];
    let started = Instant::now();
    send(&server, &push(model(folder.path()))).unwrap();
    assert!(started.elapsed() >= Duration::from_secs(1));
    server.state().faults = vec![("/preupload/", Fault::Status(429, Some(100_000)))];
    let error = send(&server, &push(model(folder.path()))).unwrap_err();
    assert!(told(&error).contains("status 429: as the test wants it"), "{}", told(&error));
}

#[test]
fn refusals_say_what_was_tried_and_why() {
    let folder = tempfile::tempdir().unwrap();
    let files = model(folder.path());
    let server = PushServer::new("another token");
    let error = send(&server, &push(files.clone())).unwrap_err();
    assert!(
        told(&error).starts_with("could not make the model `me/model`: ")
            && told(&error).contains("status 401"),
        "{}",
        told(&error)
    );
    assert!(told(&error).contains("Invalid credentials"), "{}", told(&error));

    let server = PushServer::new(TOKEN);
    let closed = Push { id: "closed/model".parse().unwrap(), ..push(files.clone()) };
    let error = send(&server, &closed).unwrap_err();
    assert!(told(&error).contains("status 403: You don't have the rights"), "{}", told(&error));

    let error = hub(&server, None).push(&push(files.clone()), &mut |_| {}).unwrap_err();
    assert!(matches!(error, EncoderError::HubToken { .. }));

    server.state().faults = vec![("/objects/batch", Fault::Status(404, None))];
    let error = send(&server, &push(files.clone())).unwrap_err();
    assert!(told(&error).starts_with("could not put files into `me/model`: "), "{}", told(&error));

    fs::remove_file(folder.path().join("README.md")).unwrap();
    let error = send(&server, &push(files)).unwrap_err();
    assert!(
        told(&error).starts_with("no such file: ") && told(&error).contains("README.md"),
        "{}",
        told(&error)
    );
}

#[test]
fn a_model_that_was_to_be_private_never_goes_to_a_public_one() {
    let (server, folder) = (PushServer::new(TOKEN), tempfile::tempdir().unwrap());
    let private = Push { private: true, ..push(model(folder.path())) };
    send(&server, &private).unwrap();
    assert!(server.state().repositories["me/model"].private);
    send(&server, &private).unwrap();
    server.state().repositories.get_mut("me/model").unwrap().private = false;
    let error = send(&server, &private).unwrap_err();
    assert!(told(&error).contains("a public one"), "{}", told(&error));
}

#[test]
fn a_token_for_one_model_alone_is_enough() {
    let (server, folder) = (PushServer::new(TOKEN), tempfile::tempdir().unwrap());
    send(&server, &push(model(folder.path()))).unwrap();
    server.state().faults = vec![("/api/repos/create", Fault::Status(403, None))];
    fs::write(folder.path().join("README.md"), b"another card").unwrap();
    assert_eq!(send(&server, &push(card(folder.path()))).unwrap().sent, ["README.md"]);
}

#[test]
fn files_that_the_model_ignores_are_told() {
    let (server, folder) = (PushServer::new(TOKEN), tempfile::tempdir().unwrap());
    server.state().ignored = vec!["README.md"];
    let pushed = send(&server, &push(model(folder.path()))).unwrap();
    assert_eq!(pushed.ignored, ["README.md"]);
    assert!(server.file("me/model", "main", "README.md").is_none());
}
