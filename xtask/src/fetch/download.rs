//! One file: resumed where it stopped, checked, renamed into place.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::client::{Again, Client, From, Refusal, header};
use super::disk::readable;
use super::progress::Meter;

const BUFFER_BYTES: usize = 1 << 18;
/// A server that asks for a longer wait is told to the user in place of waited for.
const MAX_WAIT: Duration = Duration::from_secs(120);
/// Repetitions towards an address at which nobody answers.
const UNANSWERED_RETRIES: u32 = 2;
const MAX_BACKOFF: Duration = Duration::from_secs(30);

/// How often to try, and how long to wait between.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// Failures in a row, none of which brought anything.
    pub(super) retries: u32,
    pub(super) backoff: Duration,
}

/// What is known of a file before it is there.
pub(super) struct Wanted<'a> {
    pub(super) url: &'a str,
    pub(super) target: &'a Path,
    /// 0 where it is not known.
    pub(super) size: u64,
    /// Empty where it is not known.
    pub(super) sha256: &'a str,
}

/// A file that is whole.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Fetched {
    pub(super) size: u64,
    pub(super) sha256: String,
    /// The commit that the hub says it belongs to.
    pub(super) commit: Option<String>,
}

/// Why a file is not there.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) message: String,
    pub(super) again: Again,
}

impl std::convert::From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self { message: refusal.message, again: refusal.again }
    }
}

impl Failure {
    pub(super) fn never(message: String) -> Self {
        Self { message, again: Again::Never }
    }

    fn later(message: String) -> Self {
        Self { message, again: Again::Later }
    }
}

/// Fetches a file, trying again where that may help. What has come of it stays beside its place as `.part`.
pub(super) fn fetch(
    client: &Client,
    wanted: &Wanted<'_>,
    patience: Patience,
    meter: &Meter,
) -> Result<Fetched, Failure> {
    let mut failures = 0;
    let mut afresh = false;
    loop {
        let before = Part::of(wanted.target).bytes();
        let failure = match attempt(client, wanted, meter) {
            Ok(fetched) => return Ok(fetched),
            Err(failure) => failure,
        };
        let part = Part::of(wanted.target);
        if part.bytes() > before {
            failures = 0;
        }
        let wait = patience.backoff.saturating_mul(2_u32.saturating_pow(failures)).min(MAX_BACKOFF);
        match failure.again {
            // Once: a server that refuses the start as well never gives the file.
            Again::FromTheStart if !afresh => {
                afresh = true;
                part.remove();
            }
            Again::Later if failures < patience.retries => thread::sleep(wait),
            Again::Unanswered if failures < patience.retries.min(UNANSWERED_RETRIES) => thread::sleep(wait),
            Again::Unanswered => {
                return Err(with_what_is_kept(Failure { again: Again::Unreachable, ..failure }, &part));
            }
            Again::After(wait) if failures < patience.retries && wait <= MAX_WAIT => {
                meter.note(&failure.message);
                thread::sleep(wait);
            }
            _ => return Err(with_what_is_kept(failure, &part)),
        }
        failures += 1;
    }
}

fn with_what_is_kept(failure: Failure, part: &Part) -> Failure {
    match part.bytes() {
        0 => failure,
        bytes => {
            let kept = readable(bytes);
            Failure {
                message: format!("{}; {kept} are kept, the next run goes on there", failure.message),
                ..failure
            }
        }
    }
}

/// The unfinished file and what the server called it.
struct Part {
    file: PathBuf,
    etag: PathBuf,
}

impl Part {
    fn of(target: &Path) -> Self {
        let with = |suffix: &str| {
            let mut name = target.as_os_str().to_owned();
            name.push(suffix);
            PathBuf::from(name)
        };
        Self { file: with(".part"), etag: with(".part.etag") }
    }

    fn bytes(&self) -> u64 {
        fs::metadata(&self.file).map_or(0, |found| found.len())
    }

    fn remove(&self) {
        // Where they can't be removed, writing them says why.
        let _ = fs::remove_file(&self.file);
        let _ = fs::remove_file(&self.etag);
    }
}

/// Bytes of an unfinished file of this target: they need no room any more.
pub(super) fn bytes_there(target: &Path) -> u64 {
    Part::of(target).bytes()
}

fn attempt(client: &Client, wanted: &Wanted<'_>, meter: &Meter) -> Result<Fetched, Failure> {
    let part = Part::of(wanted.target);
    if wanted.size > 0 && part.bytes() > wanted.size {
        part.remove();
    }
    let start = part.bytes();
    if wanted.size > 0 && start == wanted.size {
        // It was cut between the last byte and the new name.
        return finish(&part, wanted, None, None, hash_of(&part.file)?.0);
    }
    let etag = fs::read_to_string(&part.etag).ok();
    let (response, said) = client.get(wanted.url, From { bytes: start, etag: etag.as_deref() })?;
    let resumed = response.status().as_u16() == 206;
    let begins = header(response.headers(), "content-range").and_then(first_byte);
    if resumed && begins != Some(start) {
        return Err(Failure {
            message: format!("`{}`: the server sent another part than was asked for", wanted.url),
            again: Again::FromTheStart,
        });
    }
    let start = if resumed { start } else { 0 };
    let length = header(response.headers(), "content-length").and_then(|text| text.parse::<u64>().ok());
    let total = length.map(|length| start.saturating_add(length));
    if let Some(total) = total.filter(|total| wanted.size > 0 && *total != wanted.size) {
        return Err(Failure::never(format!(
            "`{}`: expected {} bytes, the server has {total}",
            wanted.url, wanted.size
        )));
    }
    let (mut hash, mut done) = if resumed { hash_of(&part.file)? } else { (Sha256::new(), 0) };
    keep_etag(&part, header(response.headers(), "etag"))?;
    let mut file = open(&part, resumed)?;
    meter.begin(done, total.unwrap_or(wanted.size));
    let mut reader = response.into_body().into_reader();
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let read = match reader.read(&mut buffer) {
            Ok(read) => read,
            Err(error) => return Err(cut(wanted, done, total, &error.to_string())),
        };
        let Some(bytes) = buffer.get(..read).filter(|bytes| !bytes.is_empty()) else { break };
        file.write_all(bytes).map_err(|error| not_written(&part.file, &error))?;
        hash.update(bytes);
        done = done.saturating_add(read as u64);
        meter.at(done);
    }
    if total.is_some_and(|total| done < total) {
        return Err(cut(wanted, done, total, "the connection ended"));
    }
    file.sync_all().map_err(|error| not_written(&part.file, &error))?;
    let commit = header(&said, "x-repo-commit").map(str::to_owned);
    finish(&part, wanted, header(&said, "x-linked-etag"), commit, hash)
}

/// Checks what came and gives it its name.
fn finish(
    part: &Part,
    wanted: &Wanted<'_>,
    linked: Option<&str>,
    commit: Option<String>,
    hash: Sha256,
) -> Result<Fetched, Failure> {
    let sha256: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    // The hub tells the hash of a large file, which is as good as what it serves.
    let told = linked.map(|etag| etag.trim_matches('"')).filter(|etag| etag.len() == 64);
    let expected = if wanted.sha256.is_empty() { told } else { Some(wanted.sha256) };
    if let Some(expected) = expected.filter(|expected| *expected != sha256) {
        part.remove();
        return Err(Failure::never(format!(
            "`{}`: expected SHA-256 {expected}, got {sha256}; what came was thrown away",
            wanted.url
        )));
    }
    let size = part.bytes();
    fs::rename(&part.file, wanted.target).map_err(|error| not_written(wanted.target, &error))?;
    part.remove();
    Ok(Fetched { size, sha256, commit })
}

/// The first byte of `bytes 100-199/200`.
fn first_byte(range: &str) -> Option<u64> {
    range.strip_prefix("bytes ")?.split('-').next()?.trim().parse().ok()
}

fn keep_etag(part: &Part, etag: Option<&str>) -> Result<(), Failure> {
    // A weak one does not promise the same bytes.
    match etag.filter(|etag| !etag.starts_with("W/")) {
        Some(etag) => fs::write(&part.etag, etag).map_err(|error| not_written(&part.etag, &error)),
        None => {
            let _ = fs::remove_file(&part.etag);
            Ok(())
        }
    }
}

fn open(part: &Part, resumed: bool) -> Result<File, Failure> {
    let mut options = OpenOptions::new();
    let options =
        if resumed { options.append(true) } else { options.write(true).create(true).truncate(true) };
    options.open(&part.file).map_err(|error| not_written(&part.file, &error))
}

/// Hash so far and length of a file.
pub(super) fn hash_of(file: &Path) -> Result<(Sha256, u64), Failure> {
    let read = || -> io::Result<(Sha256, u64)> {
        let mut reader = File::open(file)?;
        let (mut hash, mut length) = (Sha256::new(), 0_u64);
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let read = reader.read(&mut buffer)?;
            let Some(bytes) = buffer.get(..read).filter(|bytes| !bytes.is_empty()) else { break };
            hash.update(bytes);
            length = length.saturating_add(read as u64);
        }
        Ok((hash, length))
    };
    read().map_err(|error| Failure::never(format!("could not read `{}`: {error}", file.display())))
}

/// SHA-256 in hexadecimal digits, and length.
pub(super) fn sha256_of(file: &Path) -> Result<(String, u64), Failure> {
    let (hash, length) = hash_of(file)?;
    Ok((hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect(), length))
}

fn cut(wanted: &Wanted<'_>, done: u64, total: Option<u64>, why: &str) -> Failure {
    let of = total.map(|total| format!(" of {}", readable(total))).unwrap_or_default();
    Failure::later(format!(
        "`{}`: cut off after {}{of}: {why}",
        super::client::bare(wanted.url),
        readable(done)
    ))
}

pub(super) fn not_written(file: &Path, error: &io::Error) -> Failure {
    let full = matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::FileTooLarge | io::ErrorKind::QuotaExceeded
    );
    let what = if full { "no space left for" } else { "could not write" };
    Failure::never(format!("{what} `{}`: {error}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read() {
        assert_eq!(first_byte("bytes 100-199/200"), Some(100));
        assert_eq!(first_byte("bytes */200"), None);
        assert_eq!(first_byte("items 1-2/3"), None);
    }
}
