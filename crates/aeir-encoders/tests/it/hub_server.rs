//! A small hub on loopback: one model, and faults on demand.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use sha1::Digest as _;

pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What goes wrong with a request for a file's bytes, each once and in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// This many bytes of the body, then the end of the connection.
    Cut(usize),
    /// This status, with `Retry-After` in seconds if there is one.
    Status(u16, Option<u64>),
    /// The whole file although a part was asked for.
    NoRanges,
    /// One byte is another.
    WrongByte,
}

/// A request as it came in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) range: Option<String>,
    pub(crate) token: Option<String>,
}

#[derive(Default)]
struct State {
    files: BTreeMap<String, Vec<u8>>,
    faults: Vec<Fault>,
    asked: Vec<Asked>,
    /// Status of every request.
    closed: Option<(u16, &'static str)>,
    /// Where bytes of large files are, if not here.
    storage: Option<String>,
}

/// Runs until the test ends.
pub(crate) struct HubServer {
    pub(crate) address: String,
    state: Arc<Mutex<State>>,
}

impl HubServer {
    pub(crate) fn new(files: &[(&str, &[u8])]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let files = files.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.to_vec())).collect();
        let state = Arc::new(Mutex::new(State { files, ..State::default() }));
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = Arc::clone(&shared);
                // Clients that hang up are part of what is tested.
                thread::spawn(move || answer(stream, &state).unwrap_or_default());
            }
        });
        Self { address, state }
    }

    pub(crate) fn faults(&self, faults: &[Fault]) {
        self.state.lock().unwrap().faults = faults.to_vec();
    }

    pub(crate) fn close(&self, status: u16, message: &'static str) {
        self.state.lock().unwrap().closed = Some((status, message));
    }

    /// Large files are redirected there.
    pub(crate) fn storage(&self, address: &str) {
        self.state.lock().unwrap().storage = Some(address.to_owned());
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.state.lock().unwrap().asked.clone()
    }

    /// Requests for the bytes of a file.
    pub(crate) fn gets(&self, file: &str) -> Vec<Asked> {
        let wanted = |asked: &Asked| asked.method == "GET" && asked.path.ends_with(&format!("/{file}"));
        self.asked().into_iter().filter(wanted).collect()
    }
}

pub(crate) fn is_large(file: &str) -> bool {
    file.ends_with(".safetensors")
}

/// What the hub calls a file's content.
pub(crate) fn etag(file: &str, bytes: &[u8]) -> String {
    let hex = |digest: &[u8]| digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    if is_large(file) {
        return hex(&sha2::Sha256::digest(bytes));
    }
    let mut hash = sha1::Sha1::new();
    hash.update(format!("blob {}\0", bytes.len()));
    hash.update(bytes);
    hex(&hash.finalize())
}

fn answer(stream: TcpStream, state: &Mutex<State>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    while let Some(asked) = read_request(&mut reader)? {
        let mut state = state.lock().unwrap();
        state.asked.push(asked.clone());
        if !respond(&stream, &asked, &mut state)? {
            break;
        }
    }
    stream.shutdown(std::net::Shutdown::Both)
}

fn read_request(reader: &mut impl BufRead) -> std::io::Result<Option<Asked>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace().map(str::to_owned);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut asked = Asked { method, path, range: None, token: None };
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        let Some((name, value)) = header.trim().split_once(':') else { break };
        match name.to_ascii_lowercase().as_str() {
            "range" => asked.range = Some(value.trim().to_owned()),
            "authorization" => asked.token = Some(value.trim().to_owned()),
            _ => {}
        }
    }
    Ok(Some(asked))
}

/// Whether the connection goes on.
fn respond(mut stream: &TcpStream, asked: &Asked, state: &mut State) -> std::io::Result<bool> {
    let mut send = |status: u16, headers: &str, length: usize, body: &[u8]| {
        write!(stream, "HTTP/1.1 {status} X\r\n{headers}Content-Length: {length}\r\n\r\n")?;
        if asked.method == "GET" {
            stream.write_all(body)?;
        }
        stream.flush()
    };
    if let Some((status, message)) = state.closed {
        send(status, &format!("X-Error-Message: {message}\r\n"), 0, b"")?;
        return Ok(true);
    }
    if asked.path.starts_with("/api/models/org/model/revision/") {
        let names: Vec<String> =
            state.files.keys().map(|name| format!("{{\"rfilename\": \"{name}\"}}")).collect();
        let body = format!("{{\"sha\": \"{COMMIT}\", \"siblings\": [{}]}}", names.join(", "));
        send(200, "", body.len(), body.as_bytes())?;
        return Ok(true);
    }
    let prefix = format!("/org/model/resolve/{COMMIT}/");
    let name = asked.path.strip_prefix(&prefix).unwrap_or_default();
    let Some(bytes) = state.files.get(name).cloned() else {
        send(404, "", 0, b"")?;
        return Ok(true);
    };
    let named = format!("ETag: \"{}\"\r\n", etag(name, &bytes));
    if let Some(storage) = state.storage.as_ref().filter(|_| is_large(name)) {
        let headers = format!(
            "Location: {storage}{}\r\nETag: \"of-the-redirect\"\r\nX-Linked-ETag: \"{}\"\r\nX-Linked-Size: {}\r\n",
            asked.path,
            etag(name, &bytes),
            bytes.len()
        );
        send(302, &headers, 0, b"")?;
        return Ok(true);
    }
    if asked.method == "HEAD" {
        send(200, &named, bytes.len(), b"")?;
        return Ok(true);
    }
    let faulty = is_large(name) && !state.faults.is_empty();
    let fault = faulty.then(|| state.faults.remove(0));
    let start = asked
        .range
        .as_deref()
        .and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
    let start: usize = if fault == Some(Fault::NoRanges) { 0 } else { start.unwrap_or(0) };
    let status = if start > 0 { 206 } else { 200 };
    let range = format!("Content-Range: bytes {start}-{}/{}\r\n", bytes.len() - 1, bytes.len());
    let headers = if start > 0 { format!("{named}{range}") } else { named };
    let mut rest = bytes[start..].to_vec();
    match fault {
        Some(Fault::Cut(count)) => {
            send(status, &headers, rest.len(), &rest[..count])?;
            return Ok(false);
        }
        Some(Fault::Status(status, after)) => {
            let after = after.map_or_else(String::new, |seconds| format!("Retry-After: {seconds}\r\n"));
            send(status, &after, 0, b"")?;
            return Ok(true);
        }
        Some(Fault::WrongByte) => rest[0] ^= 1,
        Some(Fault::NoRanges) | None => {}
    }
    send(status, &headers, rest.len(), &rest)?;
    Ok(true)
}
