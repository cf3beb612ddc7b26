//! Files of a folder onto the hub, as one commit.
//!
//! The hub is asked which files it wants as what (`preupload`): small texts go into the commit itself, large files into its
//! object storage (Git LFS' batch interface; in parts where the hub gives addresses of parts), and the commit names them. A
//! file that is there already is not sent again, so that the same push after an interruption goes on.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::client::{Client, Failure, Sent, reply_error};
use super::{HubConfig, HubProgress, ModelId, git_blob_hash, is_commit};
use crate::error::{EncoderError, Result};
use crate::fingerprint::sha256_file;

/// What the hub looks at to tell a text from binary data.
const SAMPLE_BYTES: u64 = 512;
/// Files that are asked about at once.
const FILES_AT_ONCE: usize = 256;
const LFS_TYPE: &str = "application/vnd.git-lfs+json";
const COMMIT_TYPE: &str = "application/x-ndjson";
const JSON_TYPE: &str = "application/json";
/// More parts than a file on the hub has.
const MOST_PARTS: u64 = 100_000;

/// What is to be put on the hub.
#[derive(Debug, Clone)]
pub struct Push {
    /// Where: a model, and a branch of it, which is made where it is missing.
    pub id: ModelId,
    /// Make the model private where it is not there yet. A public one of that name is refused.
    pub private: bool,
    /// First line of the commit.
    pub message: String,
    /// The files.
    pub files: Vec<PushFile>,
}

/// A file that is to be put on the hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PushFile {
    /// Its name there, folders divided by `/`.
    pub name: String,
    /// Where it lies.
    pub path: PathBuf,
}

/// What a push did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Pushed {
    /// The page of the model.
    pub url: String,
    /// The commit; none where everything was there already.
    pub commit: Option<String>,
    /// Names of the files in it.
    pub sent: Vec<String>,
    /// Names of the files that were there already.
    pub unchanged: Vec<String>,
    /// Names of the files that the model's own `.gitignore` leaves out.
    pub ignored: Vec<String>,
}

/// A file with what the hub has to know of it.
struct Local<'a> {
    name: &'a str,
    path: &'a PathBuf,
    size: u64,
    sha256: String,
    sample: String,
}

/// What is still to be sent.
#[derive(Default)]
struct Pending<'a> {
    regular: Vec<&'a Local<'a>>,
    large: Vec<&'a Local<'a>>,
    ignored: Vec<String>,
}

impl Pending<'_> {
    fn is_empty(&self) -> bool {
        self.regular.is_empty() && self.large.is_empty()
    }

    fn names(&self) -> Vec<String> {
        self.regular.iter().chain(&self.large).map(|file| file.name.to_owned()).collect()
    }
}

#[derive(Deserialize)]
struct Preupload {
    files: Vec<Wanted>,
}

/// How the hub wants a file.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Wanted {
    path: String,
    upload_mode: String,
    #[serde(default)]
    should_ignore: bool,
    /// The content that it has under this name: git's hash, or SHA-256 of a large file.
    #[serde(default)]
    oid: Option<String>,
}

#[derive(Deserialize)]
struct Batch {
    objects: Vec<Object>,
}

#[derive(Deserialize)]
struct Object {
    oid: String,
    /// None where the storage has it.
    #[serde(default)]
    actions: Option<Actions>,
    #[serde(default)]
    error: Option<ObjectError>,
}

#[derive(Deserialize)]
struct Actions {
    upload: Option<Action>,
    #[serde(default)]
    verify: Option<Action>,
}

#[derive(Deserialize)]
struct Action {
    href: String,
    #[serde(default)]
    header: BTreeMap<String, Value>,
}

#[derive(Deserialize)]
struct ObjectError {
    code: u16,
    message: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Committed {
    commit_oid: String,
}

#[derive(Deserialize)]
struct ModelInfo {
    #[serde(default)]
    private: bool,
}

/// A push on its way.
pub(super) struct Upload<'a> {
    config: &'a HubConfig,
    client: Client<'a>,
    push: &'a Push,
}

impl<'a> Upload<'a> {
    pub(super) fn new(config: &'a HubConfig, push: &'a Push) -> Result<Self> {
        Ok(Self { config, client: Client::new(config)?, push })
    }

    pub(super) fn run(&self, progress: &mut dyn FnMut(HubProgress<'_>)) -> Result<Pushed> {
        let files = self.push.files.iter().map(local).collect::<Result<Vec<_>>>()?;
        let name = self.push.id.name();
        self.make_model().map_err(|error| self.failed(format!("make the model `{name}`"), error))?;
        self.make_branch()
            .map_err(|error| self.failed(format!("make the branch `{}`", self.push.id.revision()), error))?;
        let sending = |error| self.failed(format!("put files into `{}`", self.push.id), error);
        let mut attempts = 0;
        let mut sent = Vec::new();
        loop {
            let pending = self.pending(&files).map_err(sending)?;
            // Where the answer to a commit was lost, all is there now.
            let commit = if pending.is_empty() { Ok(None) } else { self.send(&pending, progress).map(Some) };
            match commit {
                Ok(commit) => {
                    if commit.is_some() {
                        sent = pending.names();
                    }
                    let there = |file: &&Local<'_>| {
                        !sent.iter().chain(&pending.ignored).any(|name| name == file.name)
                    };
                    return Ok(Pushed {
                        url: format!("{}/{name}", self.config.endpoint),
                        commit,
                        unchanged: files.iter().filter(there).map(|file| file.name.to_owned()).collect(),
                        sent,
                        ignored: pending.ignored,
                    });
                }
                Err(failure) => {
                    sent = pending.names();
                    self.client.wait(attempts, failure).map_err(sending)?;
                    attempts += 1;
                }
            }
        }
    }

    fn failed(&self, what: String, source: EncoderError) -> EncoderError {
        EncoderError::HubPush { what, source: Box::new(source) }
    }

    fn api(&self, rest: &str) -> String {
        format!("{}/api/models/{}{rest}", self.config.endpoint, self.push.id.name())
    }

    fn revision(&self) -> String {
        self.push.id.revision().replace('/', "%2F")
    }

    /// Sends JSON and gives the answer, repeated where that may help.
    fn ask(&self, url: &str, content_type: &str, body: &Value) -> Result<String> {
        let body = body.to_string().into_bytes();
        self.client.repeated(|| self.client.post(url, &[("Content-Type", content_type)], &body))
    }

    fn asked<T: for<'d> Deserialize<'d>>(&self, url: &str, content_type: &str, body: &Value) -> Result<T> {
        parsed(url, &self.ask(url, content_type, body)?)
    }

    fn make_model(&self) -> Result<()> {
        let url = format!("{}/api/repos/create", self.config.endpoint);
        let (owner, name) = self.push.id.name().split_once('/').unwrap_or_default();
        let body =
            json!({ "type": "model", "organization": owner, "name": name, "private": self.push.private });
        let refused = match self.ask(&url, JSON_TYPE, &body) {
            Ok(_) => return Ok(()),
            Err(error) => error,
        };
        // It is there already; or a token that may write to this model may make none.
        if !matches!(refused, EncoderError::HubStatus { status: 403 | 409, .. }) {
            return Err(refused);
        }
        let Ok((url, text)) = self.client.text(&format!("api/models/{}", self.push.id.name())) else {
            return Err(refused);
        };
        let model: ModelInfo = parsed(&url, &text)?;
        if self.push.private && !model.private {
            return Err(reply_error(&url, "a private model, or none yet", "a public one"));
        }
        Ok(())
    }

    fn make_branch(&self) -> Result<()> {
        let revision = self.push.id.revision();
        if revision == super::DEFAULT_REVISION || revision.starts_with("refs/") || is_commit(revision) {
            return Ok(());
        }
        match self.ask(&self.api(&format!("/branch/{}", self.revision())), JSON_TYPE, &json!({})) {
            Ok(_) | Err(EncoderError::HubStatus { status: 409, .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Asks the hub which files it lacks, and how it wants them.
    fn pending<'f>(&self, files: &'f [Local<'f>]) -> Result<Pending<'f>> {
        let url = self.api(&format!("/preupload/{}", self.revision()));
        let mut pending = Pending::default();
        for files in files.chunks(FILES_AT_ONCE) {
            let listed: Vec<Value> = files
                .iter()
                .map(|file| json!({ "path": file.name, "size": file.size, "sample": file.sample }))
                .collect();
            let answer: Preupload = self.asked(&url, JSON_TYPE, &json!({ "files": listed }))?;
            for file in files {
                let Some(wanted) = answer.files.iter().find(|wanted| wanted.path == file.name) else {
                    return Err(reply_error(&url, &format!("a line about `{}`", file.name), "none"));
                };
                let large = match wanted.upload_mode.as_str() {
                    // The storage takes nothing without content.
                    "lfs" => file.size > 0,
                    "regular" => false,
                    other => return Err(reply_error(&url, "`lfs` or `regular`", other)),
                };
                if wanted.should_ignore {
                    pending.ignored.push(file.name.to_owned());
                } else if !file.is(wanted.oid.as_deref())? {
                    if large { pending.large.push(file) } else { pending.regular.push(file) }
                }
            }
        }
        Ok(pending)
    }

    /// Large files into the storage, then the commit.
    fn send(
        &self,
        pending: &Pending<'_>,
        progress: &mut dyn FnMut(HubProgress<'_>),
    ) -> std::result::Result<String, Failure> {
        self.store(&pending.large, progress).map_err(Failure::last)?;
        let url = self.api(&format!("/commit/{}", self.revision()));
        let body = self.commit(pending).map_err(Failure::last)?;
        let text = self.client.post(&url, &[("Content-Type", COMMIT_TYPE)], &body).map_err(|failure| {
            // Somebody else's commit came in between: this one is made anew on top of it.
            let again = matches!(*failure.error, EncoderError::HubStatus { status: 409 | 412, .. });
            if again { failure.later() } else { failure }
        })?;
        let committed: Committed = parsed(&url, &text).map_err(Failure::last)?;
        Ok(committed.commit_oid)
    }

    /// The lines of a commit.
    fn commit(&self, pending: &Pending<'_>) -> Result<Vec<u8>> {
        let mut lines =
            vec![json!({ "key": "header", "value": { "summary": self.push.message, "description": "" } })];
        for file in &pending.regular {
            let bytes = fs::read(file.path).map_err(EncoderError::read(file.path))?;
            lines.push(json!({ "key": "file", "value": { "content": base64(&bytes), "path": file.name, "encoding": "base64" } }));
        }
        for file in &pending.large {
            lines.push(json!({
                "key": "lfsFile",
                "value": { "path": file.name, "algo": "sha256", "oid": file.sha256, "size": file.size }
            }));
        }
        Ok(lines.iter().map(|line| format!("{line}\n")).collect::<String>().into_bytes())
    }

    /// Puts large files into the hub's storage.
    fn store(&self, files: &[&Local<'_>], progress: &mut dyn FnMut(HubProgress<'_>)) -> Result<()> {
        let url = format!("{}/{}.git/info/lfs/objects/batch", self.config.endpoint, self.push.id.name());
        for files in files.chunks(FILES_AT_ONCE) {
            let objects: Vec<Value> =
                files.iter().map(|file| json!({ "oid": file.sha256, "size": file.size })).collect();
            let body = json!({
                "operation": "upload",
                "transfers": ["basic", "multipart"],
                "hash_algo": "sha256",
                "ref": { "name": self.push.id.revision() },
                "objects": objects,
            });
            let batch: Batch = self.asked(&url, LFS_TYPE, &body)?;
            for file in files {
                let Some(object) = batch.objects.iter().find(|object| object.oid == file.sha256) else {
                    return Err(reply_error(&url, &format!("where to put `{}`", file.name), "nothing"));
                };
                self.store_one(&url, file, object, progress)?;
            }
        }
        Ok(())
    }

    fn store_one(
        &self,
        url: &str,
        file: &Local<'_>,
        object: &Object,
        progress: &mut dyn FnMut(HubProgress<'_>),
    ) -> Result<()> {
        if let Some(ObjectError { code, message }) = &object.error {
            let message = format!("`{}`: {message}", file.name);
            return Err(EncoderError::HubStatus { url: url.to_owned(), status: *code, message });
        }
        let Some(actions) = &object.actions else {
            progress(HubProgress { file: file.name, done: file.size, total: file.size });
            return Ok(());
        };
        let Some(upload) = &actions.upload else {
            return Err(reply_error(url, "an address to send to", "none"));
        };
        match upload.header.get("chunk_size") {
            None => {
                self.put(file, &upload.href, &headers(upload), 0..file.size, progress)?;
            }
            Some(size) => self.put_parts(file, upload, number(size).unwrap_or(0), progress)?,
        }
        if let Some(verify) = &actions.verify {
            self.told(&verify.href, &headers(verify), &json!({ "oid": file.sha256, "size": file.size }))?;
        }
        Ok(())
    }

    /// A file in parts of `size` bytes, each to an address of its own; a part that fails is sent again, the others are not.
    fn put_parts(
        &self,
        file: &Local<'_>,
        upload: &Action,
        size: u64,
        progress: &mut dyn FnMut(HubProgress<'_>),
    ) -> Result<()> {
        let count = if size == 0 { 0 } else { file.size.div_ceil(size) };
        if count == 0 || count > MOST_PARTS {
            return Err(reply_error(&upload.href, "a usable `chunk_size`", &size.to_string()));
        }
        let mut addresses: Vec<(u64, &str)> = upload
            .header
            .iter()
            .filter_map(|(name, address)| Some((name.parse().ok()?, address.as_str()?)))
            .collect();
        addresses.sort_unstable();
        if !addresses.iter().map(|(number, _)| *number).eq(1..=count) {
            let expected = format!("addresses of parts 1 to {count}");
            return Err(reply_error(&upload.href, &expected, &format!("{} of them", addresses.len())));
        }
        let mut parts = Vec::new();
        for (number, address) in addresses {
            let start = (number - 1) * size;
            let tag = self.put(file, address, &[], start..file.size.min(start + size), progress)?;
            let Some(tag) = tag else { return Err(reply_error(address, "an ETag", "none")) };
            parts.push(json!({ "partNumber": number, "etag": tag }));
        }
        self.told(&upload.href, &[], &json!({ "oid": file.sha256, "parts": parts }))
    }

    /// Sends some bytes of a file; gives the answer's ETag.
    fn put(
        &self,
        file: &Local<'_>,
        address: &str,
        headers: &[(&str, &str)],
        range: std::ops::Range<u64>,
        progress: &mut dyn FnMut(HubProgress<'_>),
    ) -> Result<Option<String>> {
        self.client.repeated(|| {
            let read = |error| Failure::last(EncoderError::read(file.path)(error));
            let mut opened = File::open(file.path).map_err(read)?;
            opened.seek(SeekFrom::Start(range.start)).map_err(read)?;
            let length = range.end - range.start;
            let mut body = Counted {
                inner: opened.take(length),
                done: range.start,
                file: file.name,
                total: file.size,
                progress: &mut *progress,
            };
            let sent = Sent { headers, body: &mut body, length };
            self.client.put(address, sent)
        })
    }

    /// Tells the storage something.
    fn told(&self, address: &str, headers: &[(&str, &str)], body: &Value) -> Result<()> {
        let body = body.to_string().into_bytes();
        let mut all = vec![("Content-Type", LFS_TYPE), ("Accept", LFS_TYPE)];
        all.extend(headers.iter().filter(|(name, _)| !name.eq_ignore_ascii_case("content-type")));
        self.client.repeated(|| self.client.post(address, &all, &body).map(drop))
    }
}

impl Local<'_> {
    /// Whether it is what the hub has under its name.
    fn is(&self, oid: Option<&str>) -> Result<bool> {
        match oid {
            Some(oid) if oid.len() == 64 => Ok(oid.eq_ignore_ascii_case(&self.sha256)),
            Some(oid) => {
                let own = git_blob_hash(self.path, self.size).map_err(EncoderError::read(self.path))?;
                Ok(oid.eq_ignore_ascii_case(&own))
            }
            None => Ok(false),
        }
    }
}

/// Reads and tells how far it is.
struct Counted<'a, 'p> {
    inner: io::Take<File>,
    done: u64,
    file: &'a str,
    total: u64,
    progress: &'a mut (dyn FnMut(HubProgress<'_>) + 'p),
}

impl Read for Counted<'_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.done += count as u64;
        (self.progress)(HubProgress { file: self.file, done: self.done, total: self.total });
        Ok(count)
    }
}

fn local(file: &PushFile) -> Result<Local<'_>> {
    let PushFile { name, path } = file;
    let size = fs::metadata(path).map_err(EncoderError::read(path))?.len();
    let mut sample = Vec::new();
    let read = File::open(path).and_then(|opened| opened.take(SAMPLE_BYTES).read_to_end(&mut sample));
    read.map_err(EncoderError::read(path))?;
    let sha256 = sha256_file(path).map_err(EncoderError::read(path))?;
    Ok(Local { name, path, size, sha256, sample: base64(&sample) })
}

fn headers(action: &Action) -> Vec<(&str, &str)> {
    action.header.iter().filter_map(|(name, value)| Some((name.as_str(), value.as_str()?))).collect()
}

/// The hub writes numbers as texts here.
fn number(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| value.as_str()?.parse().ok())
}

fn parsed<T: for<'d> Deserialize<'d>>(url: &str, text: &str) -> Result<T> {
    serde_json::from_str(text).map_err(|error| {
        let start: String = text.chars().take(80).collect();
        reply_error(url, "an answer in JSON as the hub's", &format!("`{start}` ({error})"))
    })
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_told_by_their_start() {
        let error = parsed::<Committed>("https://hub/x?signature=secret", "<html>").unwrap_err().to_string();
        assert!(
            error.contains("`https://hub/x`") && error.contains("<html>") && !error.contains("secret"),
            "{error}"
        );
        assert_eq!(number(&json!("5000")), Some(5000));
        assert_eq!(number(&json!(7)), Some(7));
        assert_eq!(number(&json!("x")), None);
    }
}
