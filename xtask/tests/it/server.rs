//! An HTTP server on loopback that can misbehave.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

/// What goes wrong with one answer.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// The connection ends after so many bytes.
    Cut(usize),
    /// A status and a header.
    Status(u16, String),
    /// 200 and the whole file, whatever was asked for.
    NoRanges,
    /// 416 to every range.
    RangeRefused,
    /// Other bytes of the same length.
    Wrong,
}

/// A request as it came.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) path: String,
    headers: BTreeMap<String, String>,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

#[derive(Default)]
struct Content {
    files: BTreeMap<String, Vec<u8>>,
    /// Taken one an answer, in order; the last one of a path with `forever` stays.
    faults: Vec<(String, Fault, bool)>,
    redirects: BTreeMap<String, String>,
    headers: Vec<String>,
    seen: Vec<Seen>,
}

/// Answers until the test ends.
pub(crate) struct Server {
    pub(crate) address: String,
    content: Arc<Mutex<Content>>,
}

impl Server {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let content = Arc::<Mutex<Content>>::default();
        let shared = Arc::clone(&content);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&shared);
                thread::spawn(move || answer(stream, &shared));
            }
        });
        Self { address, content }
    }

    pub(crate) fn put(&self, path: &str, bytes: &[u8]) {
        self.content.lock().unwrap().files.insert(path.to_owned(), bytes.to_vec());
    }

    /// The next answer to this path goes wrong.
    pub(crate) fn once(&self, path: &str, fault: Fault) {
        self.content.lock().unwrap().faults.push((path.to_owned(), fault, false));
    }

    /// All answers to this path go wrong.
    pub(crate) fn always(&self, path: &str, fault: Fault) {
        self.content.lock().unwrap().faults.push((path.to_owned(), fault, true));
    }

    pub(crate) fn mend(&self) {
        self.content.lock().unwrap().faults.clear();
    }

    pub(crate) fn redirect(&self, path: &str, to: String) {
        self.content.lock().unwrap().redirects.insert(path.to_owned(), to);
    }

    /// A header line of every answer.
    pub(crate) fn say(&self, line: &str) {
        self.content.lock().unwrap().headers.push(line.to_owned());
    }

    /// The requests since the last time.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.content.lock().unwrap().seen)
    }
}

fn read_request(stream: &TcpStream) -> Option<Seen> {
    let mut lines = BufReader::new(stream).lines();
    let path = lines.next()?.ok()?.split(' ').nth(1)?.to_owned();
    let mut headers = BTreeMap::new();
    for line in lines.map_while(Result::ok).take_while(|line| !line.is_empty()) {
        let (name, value) = line.split_once(':')?;
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    Some(Seen { path, headers })
}

fn answer(stream: TcpStream, shared: &Mutex<Content>) {
    let Some(seen) = read_request(&stream) else { return };
    let mut content = shared.lock().unwrap();
    content.seen.push(seen.clone());
    let place = content.faults.iter().position(|(path, ..)| *path == seen.path);
    let fault = place.map(|place| {
        let (_, fault, forever) = content.faults[place].clone();
        if !forever {
            content.faults.remove(place);
        }
        fault
    });
    let extra: String = content.headers.iter().map(|line| format!("{line}\r\n")).collect();
    let file = content.files.get(&seen.path).cloned();
    let redirect = content.redirects.get(&seen.path).cloned();
    drop(content);
    // The client may be gone already.
    let _ = respond(stream, &seen, fault, file, redirect, &extra);
}

fn respond(
    mut stream: TcpStream,
    seen: &Seen,
    fault: Option<Fault>,
    file: Option<Vec<u8>>,
    redirect: Option<String>,
    extra: &str,
) -> std::io::Result<()> {
    if let Some(Fault::Status(status, line)) = &fault {
        return write!(
            stream,
            "HTTP/1.1 {status} x\r\n{line}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
    }
    if let Some(to) = redirect {
        return write!(
            stream,
            "HTTP/1.1 302 x\r\nLocation: {to}\r\n{extra}Content-Length: 0\r\nConnection: close\r\n\r\n"
        );
    }
    let Some(mut bytes) = file else {
        return write!(stream, "HTTP/1.1 404 x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    };
    let etag = format!("\"{}-{}\"", bytes.len(), bytes.iter().map(|byte| u64::from(*byte)).sum::<u64>());
    let same = seen.header("if-range").is_none_or(|asked| asked == etag);
    let range =
        seen.header("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
    let start: usize = range.filter(|_| same && !matches!(fault, Some(Fault::NoRanges))).unwrap_or(0);
    if start > 0 && (matches!(fault, Some(Fault::RangeRefused)) || start >= bytes.len()) {
        return write!(stream, "HTTP/1.1 416 x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    }
    if matches!(fault, Some(Fault::Wrong)) {
        bytes.iter_mut().for_each(|byte| *byte = !*byte);
    }
    let total = bytes.len();
    let part = &bytes[start..];
    let status = if start > 0 { "206 Partial Content" } else { "200 OK" };
    write!(
        stream,
        "HTTP/1.1 {status}\r\nETag: {etag}\r\n{extra}Content-Length: {}\r\nConnection: close\r\n",
        part.len()
    )?;
    if start > 0 {
        write!(stream, "Content-Range: bytes {start}-{}/{total}\r\n", total - 1)?;
    }
    stream.write_all(b"\r\n")?;
    match fault {
        Some(Fault::Cut(length)) => stream.write_all(&part[..length.min(part.len())]),
        _ => stream.write_all(part),
    }
}

/// A proxy that opens tunnels; what it was asked to open, in order.
pub(crate) fn proxy() -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let opened = Arc::<Mutex<Vec<String>>>::default();
    let shared = Arc::clone(&opened);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let shared = Arc::clone(&shared);
            thread::spawn(move || tunnel(stream, &shared));
        }
    });
    (address, opened)
}

fn tunnel(mut client: TcpStream, opened: &Mutex<Vec<String>>) {
    let Some(asked) = read_request(&client) else { return };
    opened.lock().unwrap().push(asked.path.clone());
    let Ok(mut server) = TcpStream::connect(&asked.path) else { return };
    if client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").is_err() {
        return;
    }
    let (mut from_client, mut to_server) = (client.try_clone().unwrap(), server.try_clone().unwrap());
    thread::spawn(move || std::io::copy(&mut from_client, &mut to_server));
    let mut buffer = [0; 4096];
    while let Ok(read @ 1..) = server.read(&mut buffer) {
        if client.write_all(&buffer[..read]).is_err() {
            return;
        }
    }
    let _ = client.shutdown(std::net::Shutdown::Both);
}
