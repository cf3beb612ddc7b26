//! `aeir serve`, asked over loopback as clients ask it.

mod browser;
mod faults;
mod life;
mod limits;
mod queries;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine;
use serde_json::Value;
use ureq::Agent;

use crate::{Scene, program};

/// A server that ends with its test.
struct Served {
    child: Child,
    address: String,
    stdout: BufReader<ChildStdout>,
    agent: Agent,
}

/// What came back.
#[derive(Debug)]
struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Reply {
    #[track_caller]
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(found, _)| found == name).map_or("", |(_, value)| value)
    }

    /// Refused with this status and a body that says why.
    #[track_caller]
    fn refused(&self, status: u16, part: &str) -> Value {
        assert_eq!(self.status, status, "{}", self.text());
        let body = self.json();
        let error = body["error"].as_str().unwrap_or_else(|| panic!("{body}"));
        assert!(error.contains(part), "{error}");
        body
    }

    #[track_caller]
    fn ok(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.text());
        self.json()
    }
}

impl Scene {
    /// Serves an index of this folder on a port of its own.
    fn serve(&self, index: &str, flags: &[&str]) -> Served {
        let mut command = program();
        command.args(["serve", "--index", index, "--port", "0"]).args(flags);
        self.serve_by(command)
    }

    fn serve_by(&self, mut command: Command) -> Served {
        let mut child = command
            .current_dir(self.folder.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("serving http://").and_then(|rest| rest.strip_suffix('/'));
        let Some(address) = address.map(str::to_owned) else {
            let mut stderr = String::new();
            child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
            panic!("it does not serve: {line:?}\n{stderr}");
        };
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(Duration::from_secs(60)))
            .build()
            .into();
        Served { child, address, stdout, agent }
    }
}

impl Served {
    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    fn get(&self, path: &str) -> Reply {
        self.get_with(path, &[])
    }

    fn get_with(&self, path: &str, headers: &[(&str, &str)]) -> Reply {
        let mut request = self.agent.get(self.url(path));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        reply(request.call().unwrap())
    }

    fn post(&self, path: &str, kind: &str, body: &[u8]) -> Reply {
        reply(self.agent.post(self.url(path)).header("Content-Type", kind).send(body).unwrap())
    }

    fn json(&self, path: &str, body: &Value) -> Reply {
        self.post(path, "application/json", body.to_string().as_bytes())
    }

    fn search(&self, body: &Value) -> Reply {
        self.json("/v1/search", body)
    }

    /// Names of what a query finds, best first.
    #[track_caller]
    fn names(&self, body: &Value) -> Vec<String> {
        names(&self.search(body).ok())
    }

    /// Says exactly this to the server, and gives all that it answers until it hangs up.
    fn raw(&self, request: &[u8]) -> String {
        let mut stream = self.connect();
        stream.write_all(request).unwrap();
        rest(&mut stream)
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream
    }

    /// Whether queries are answered: what every test of a fault ends with.
    #[track_caller]
    fn lives(&mut self) {
        assert!(self.child.try_wait().unwrap().is_none(), "the server has ended");
        assert_eq!(self.get("/healthz").ok()["status"], "ok");
        assert!(!self.names(&serde_json::json!({"text": "a dog"})).is_empty());
    }

    #[cfg(unix)]
    fn signal(&self, signal: i32) {
        // SAFETY: a signal to a child that was not waited for yet.
        assert_eq!(unsafe { libc::kill(self.child.id() as i32, signal) }, 0);
    }

    /// Waits for the end: exit code and what it said.
    fn end(mut self, within: Duration) -> (Option<i32>, String) {
        let until = Instant::now() + within;
        while self.child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < until, "the server does not end");
            std::thread::sleep(Duration::from_millis(20));
        }
        let (mut text, mut said) = (String::new(), String::new());
        self.stdout.read_to_string(&mut text).unwrap();
        self.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        (self.child.wait().unwrap().code(), said)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn reply(mut response: ureq::http::Response<ureq::Body>) -> Reply {
    let headers = response.headers().iter();
    let headers =
        headers.map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect();
    let body = response.body_mut().read_to_vec().unwrap();
    Reply { status: response.status().as_u16(), headers, body }
}

fn rest(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    // A connection that is reset after the answer has said what it had to say.
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

fn names(answer: &Value) -> Vec<String> {
    let results = answer["results"].as_array().unwrap_or_else(|| panic!("{answer}"));
    results.iter().map(|result| result["name"].as_str().unwrap().to_owned()).collect()
}

fn base64(bytes: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

const BOUNDARY: &str = "a-boundary";

/// A form with text fields and an upload.
fn form(fields: &[(&str, &str)], image: Option<&[u8]>) -> Vec<u8> {
    let mut body = Vec::new();
    for (name, value) in fields {
        let part =
            format!("--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n");
        body.extend(part.bytes());
    }
    if let Some(image) = image {
        let head = format!(
            "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"image\"; filename=\"x\"\r\n\
             Content-Type: application/octet-stream\r\n\r\n"
        );
        body.extend(head.bytes());
        body.extend(image);
        body.extend(b"\r\n");
    }
    body.extend(format!("--{BOUNDARY}--\r\n").bytes());
    body
}

fn form_type() -> String {
    format!("multipart/form-data; boundary={BOUNDARY}")
}
