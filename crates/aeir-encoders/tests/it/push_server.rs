//! A small hub on loopback that takes files: repositories, large file storage, commits, and faults on demand.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;

use serde_json::{Value, json};
use sha1::Digest as _;

/// What goes wrong with the next requests whose path holds a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fault {
    /// This status, with `Retry-After` in seconds if there is one.
    Status(u16, Option<u64>),
    /// The connection ends before the body is read.
    Cut,
    /// What was asked for is done, and the connection ends without an answer.
    LostAnswer,
}

/// A request as it came in.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Vec<u8>,
}

/// A repository.
#[derive(Debug, Default, Clone)]
pub(crate) struct Repository {
    pub(crate) private: bool,
    pub(crate) branches: BTreeMap<String, BTreeMap<String, Vec<u8>>>,
    pub(crate) commits: Vec<String>,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) repositories: BTreeMap<String, Repository>,
    pub(crate) storage: BTreeMap<String, Vec<u8>>,
    pub(crate) verified: BTreeSet<String>,
    pub(crate) asked: Vec<Asked>,
    /// Of the requests whose path holds the text, in order.
    pub(crate) faults: Vec<(&'static str, Fault)>,
    /// Bytes of a part; none to take files whole.
    pub(crate) part: Option<usize>,
    parts: BTreeMap<String, BTreeMap<usize, Vec<u8>>>,
    /// The only token that may write.
    pub(crate) token: String,
    /// Names that `.gitignore` leaves out.
    pub(crate) ignored: Vec<&'static str>,
}

/// Runs until the test ends.
pub(crate) struct PushServer {
    pub(crate) address: String,
    state: Arc<Mutex<State>>,
}

impl PushServer {
    pub(crate) fn new(token: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(State { token: token.to_owned(), ..State::default() }));
        let (shared, own) = (Arc::clone(&state), address.clone());
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (state, own) = (Arc::clone(&shared), own.clone());
                // Clients that hang up are part of what is tested.
                thread::spawn(move || answer(&stream, &state, &own).unwrap_or_default());
            }
        });
        Self { address, state }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Requests of a method whose path holds a text.
    pub(crate) fn asked(&self, method: &str, text: &str) -> Vec<Asked> {
        let state = self.state();
        state
            .asked
            .iter()
            .filter(|asked| asked.method == method && asked.path.contains(text))
            .cloned()
            .collect()
    }

    pub(crate) fn file(&self, name: &str, branch: &str, file: &str) -> Option<Vec<u8>> {
        self.state().repositories.get(name)?.branches.get(branch)?.get(file).cloned()
    }
}

fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn sha256(bytes: &[u8]) -> String {
    hex(&sha2::Sha256::digest(bytes))
}

fn git_hash(bytes: &[u8]) -> String {
    let mut hash = sha1::Sha1::new();
    hash.update(format!("blob {}\0", bytes.len()));
    hash.update(bytes);
    hex(&hash.finalize())
}

fn is_large(name: &str) -> bool {
    name.ends_with(".safetensors")
}

fn decoded(text: &str) -> Vec<u8> {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.decode(text).unwrap()
}

fn answer(stream: &TcpStream, state: &Mutex<State>, own: &str) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    while let Some((mut asked, length)) = read_head(&mut reader)? {
        let fault = {
            let mut state = state.lock().unwrap();
            let at = state.faults.iter().position(|(text, _)| asked.path.contains(text));
            at.map(|at| state.faults.remove(at).1)
        };
        if fault == Some(Fault::Cut) {
            state.lock().unwrap().asked.push(asked);
            break;
        }
        reader.by_ref().take(length).read_to_end(&mut asked.body)?;
        let mut state = state.lock().unwrap();
        state.asked.push(asked.clone());
        let (status, headers, body) = match fault {
            Some(Fault::Status(status, after)) => {
                let after = after.map_or_else(String::new, |seconds| format!("Retry-After: {seconds}\r\n"));
                (status, after, json!({ "error": "as the test wants it" }))
            }
            _ => respond(&asked, &mut state, own),
        };
        if fault == Some(Fault::LostAnswer) {
            break;
        }
        let body = body.to_string();
        let mut stream = stream;
        write!(stream, "HTTP/1.1 {status} X\r\n{headers}Content-Length: {}\r\n\r\n{body}", body.len())?;
        stream.flush()?;
    }
    stream.shutdown(std::net::Shutdown::Both)
}

fn read_head(reader: &mut impl BufRead) -> std::io::Result<Option<(Asked, u64)>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace().map(str::to_owned);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut headers = BTreeMap::new();
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        let Some((name, value)) = header.trim().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let length = headers.get("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
    Ok(Some((Asked { method, path, headers, body: Vec::new() }, length)))
}

type Answer = (u16, String, Value);

fn plain(status: u16, body: Value) -> Answer {
    (status, String::new(), body)
}

fn respond(asked: &Asked, state: &mut State, own: &str) -> Answer {
    let path = asked.path.as_str();
    // Addresses of the storage are signed: they know no token.
    if let Some(rest) = path.strip_prefix("/storage/") {
        return storage(asked, rest, state);
    }
    let token = asked.headers.get("authorization").and_then(|text| text.strip_prefix("Bearer "));
    if token != Some(state.token.as_str()) {
        return plain(401, json!({ "error": "Invalid credentials in Authorization header" }));
    }
    let json = || serde_json::from_slice::<Value>(&asked.body).unwrap_or_default();
    if path == "/api/repos/create" {
        return create(&json(), state);
    }
    if let Some(name) = path.strip_suffix(".git/info/lfs/objects/batch") {
        let name = name.trim_start_matches('/');
        return if state.repositories.contains_key(name) {
            batch(&json(), state, own)
        } else {
            plain(404, json!({}))
        };
    }
    let Some(rest) = path.strip_prefix("/api/models/") else { return plain(404, json!({})) };
    let mut parts = rest.splitn(4, '/');
    let name = format!("{}/{}", parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let (action, revision) =
        (parts.next().unwrap_or_default(), parts.next().unwrap_or_default().replace("%2F", "/"));
    let ignored = state.ignored.clone();
    let (stored, repositories) = (&state.storage, &mut state.repositories);
    let Some(repository) = repositories.get_mut(&name) else {
        return plain(404, json!({ "error": "Repository not found" }));
    };
    match action {
        "" => plain(200, json!({ "id": name, "private": repository.private })),
        "branch" if repository.branches.contains_key(&revision) => {
            plain(409, json!({ "error": "Reference already exists" }))
        }
        "branch" => {
            let files = repository.branches.get("main").cloned().unwrap_or_default();
            repository.branches.insert(revision, files);
            plain(200, json!({}))
        }
        "preupload" => match repository.branches.get(&revision) {
            None => plain(404, json!({ "error": "Invalid rev id" })),
            Some(files) => plain(200, preupload(&json(), files, &ignored)),
        },
        "commit" => match repository.branches.get_mut(&revision) {
            None => plain(404, json!({ "error": "Invalid rev id" })),
            Some(files) => match commit(&asked.body, files, stored) {
                Ok(summary) => {
                    repository.commits.push(summary);
                    plain(
                        200,
                        json!({ "success": true, "commitOid": format!("{:040}", repository.commits.len()) }),
                    )
                }
                Err(error) => plain(400, json!({ "error": error })),
            },
        },
        _ => plain(404, json!({})),
    }
}

fn create(body: &Value, state: &mut State) -> Answer {
    let name = format!("{}/{}", body["organization"].as_str().unwrap(), body["name"].as_str().unwrap());
    if name.starts_with("closed/") {
        return plain(
            403,
            json!({ "error": "You don't have the rights to create a model under the namespace" }),
        );
    }
    if state.repositories.contains_key(&name) {
        return plain(409, json!({ "error": "You already created this model repo" }));
    }
    let branches =
        BTreeMap::from([("main".to_owned(), BTreeMap::from([(".gitattributes".to_owned(), b"x".to_vec())]))]);
    let private = body["private"].as_bool().unwrap();
    state.repositories.insert(name, Repository { private, branches, commits: Vec::new() });
    plain(200, json!({}))
}

fn preupload(body: &Value, files: &BTreeMap<String, Vec<u8>>, ignored: &[&str]) -> Value {
    let lines: Vec<Value> = body["files"]
        .as_array()
        .unwrap()
        .iter()
        .map(|file| {
            let name = file["path"].as_str().unwrap();
            assert!(decoded(file["sample"].as_str().unwrap()).len() <= 512);
            let mode = if is_large(name) { "lfs" } else { "regular" };
            let oid =
                files.get(name).map(|bytes| if is_large(name) { sha256(bytes) } else { git_hash(bytes) });
            json!({ "path": name, "uploadMode": mode, "shouldIgnore": ignored.contains(&name), "oid": oid })
        })
        .collect();
    json!({ "files": lines })
}

fn batch(body: &Value, state: &State, own: &str) -> Answer {
    assert_eq!((body["operation"].as_str(), body["hash_algo"].as_str()), (Some("upload"), Some("sha256")));
    let objects: Vec<Value> = body["objects"]
        .as_array()
        .unwrap()
        .iter()
        .map(|object| {
            let (oid, size) = (object["oid"].as_str().unwrap(), object["size"].as_u64().unwrap() as usize);
            if state.storage.contains_key(oid) {
                return json!({ "oid": oid, "size": size });
            }
            let upload = match state.part {
                None => json!({ "href": format!("{own}/storage/whole/{oid}?X-Signature=a") }),
                Some(part) => {
                    let mut header = serde_json::Map::from_iter([("chunk_size".to_owned(), json!(part.to_string()))]);
                    for number in 1..=size.div_ceil(part) {
                        header.insert(format!("{number:05}"), json!(format!("{own}/storage/part/{oid}/{number}?X-Signature=b")));
                    }
                    json!({ "href": format!("{own}/storage/complete/{oid}"), "header": header })
                }
            };
            let verify = json!({ "href": format!("{own}/storage/verify/{oid}"), "header": { "X-Extra": "verify" } });
            json!({ "oid": oid, "size": size, "authenticated": true, "actions": { "upload": upload, "verify": verify } })
        })
        .collect();
    plain(200, json!({ "transfer": "basic", "objects": objects }))
}

fn storage(asked: &Asked, rest: &str, state: &mut State) -> Answer {
    let rest = rest.split('?').next().unwrap_or_default();
    let mut parts = rest.split('/');
    let (action, oid) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default().to_owned());
    let number: usize = parts.next().and_then(|text| text.parse().ok()).unwrap_or(0);
    match (asked.method.as_str(), action) {
        ("PUT", "whole") if sha256(&asked.body) == oid => {
            state.storage.insert(oid, asked.body.clone());
            plain(200, json!({}))
        }
        ("PUT", "part") => {
            state.parts.entry(oid).or_default().insert(number, asked.body.clone());
            (200, format!("ETag: \"tag-{number}\"\r\n"), json!({}))
        }
        ("POST", "complete") => {
            let body: Value = serde_json::from_slice(&asked.body).unwrap();
            let tags: Vec<&str> =
                body["parts"].as_array().unwrap().iter().map(|part| part["etag"].as_str().unwrap()).collect();
            let sent = state.parts.get(&oid).cloned().unwrap_or_default();
            let expected: Vec<String> = sent.keys().map(|number| format!("\"tag-{number}\"")).collect();
            let whole: Vec<u8> = sent.into_values().flatten().collect();
            if tags != expected || sha256(&whole) != oid {
                return plain(400, json!({ "message": "the parts don't give the file" }));
            }
            state.storage.insert(oid, whole);
            plain(200, json!({}))
        }
        ("POST", "verify") if state.storage.contains_key(&oid) && asked.headers.contains_key("x-extra") => {
            state.verified.insert(oid);
            plain(200, json!({}))
        }
        _ => plain(400, json!({ "message": "not what was signed" })),
    }
}

/// Applies a commit; gives its first line.
fn commit(
    body: &[u8],
    files: &mut BTreeMap<String, Vec<u8>>,
    storage: &BTreeMap<String, Vec<u8>>,
) -> Result<String, String> {
    let text = String::from_utf8(body.to_vec()).unwrap();
    let mut summary = None;
    for line in text.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let value = &line["value"];
        match line["key"].as_str().unwrap() {
            "header" => summary = value["summary"].as_str().map(str::to_owned),
            "file" => {
                assert_eq!(value["encoding"], "base64");
                files.insert(
                    value["path"].as_str().unwrap().to_owned(),
                    decoded(value["content"].as_str().unwrap()),
                );
            }
            "lfsFile" => {
                let stored = storage
                    .get(value["oid"].as_str().unwrap())
                    .ok_or("LFS pointer pointed to a file that does not exist")?;
                files.insert(value["path"].as_str().unwrap().to_owned(), stored.clone());
            }
            other => return Err(format!("unknown key {other}")),
        }
    }
    summary.ok_or_else(|| "no header".to_owned())
}
