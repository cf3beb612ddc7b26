//! Files from the hub into the cache.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use sha1::{Digest, Sha1};

use super::client::{Client, Failure, Request, header, interrupted, reply_error};
use super::needed_files::{lacking, needed_files};
use super::{HubConfig, HubProgress, ModelId, is_commit};
use crate::atomic_file::write_atomically;
use crate::error::{EncoderError, Result};
use crate::fingerprint::{hex, sha256_file};

const BUFFER_BYTES: usize = 1 << 18;

/// One model on its way into the cache.
pub(super) struct Download<'a> {
    config: &'a HubConfig,
    client: Client<'a>,
    /// `models--ORG--NAME`.
    folder: PathBuf,
}

/// What the hub says of a model.
#[derive(Deserialize)]
struct Description {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
}

/// A file of a model, as the hub describes it.
struct Remote<'a> {
    name: &'a str,
    url: String,
    hash: Hash,
    size: u64,
}

/// What a file's bytes have to give.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Hash {
    /// Of large files.
    Sha256(String),
    /// Of small ones: git's, over `blob LENGTH`, a zero and the bytes.
    Git(String),
}

impl<'a> Download<'a> {
    pub(super) fn new(config: &'a HubConfig, folder: PathBuf) -> Result<Self> {
        Ok(Self { config, client: Client::new(config)?, folder })
    }

    /// Fetches what is missing of a model. The reference is written last: it never names a model that is not whole.
    pub(super) fn model(&self, id: &ModelId, progress: &mut dyn FnMut(HubProgress<'_>)) -> Result<PathBuf> {
        let path = format!("api/models/{}/revision/{}", id.name(), id.revision().replace('/', "%2F"));
        let (url, text) = self.client.text(&path)?;
        let description: Description = serde_json::from_str(&text)
            .map_err(|error| reply_error(&url, "a model's description in JSON", &error.to_string()))?;
        if !is_commit(&description.sha) {
            return Err(reply_error(&url, "a commit of 40 hexadecimal digits", &description.sha));
        }
        let all: Vec<&str> = description.siblings.iter().map(|file| file.rfilename.as_str()).collect();
        if let Some(file) = lacking(&all) {
            let got = all.iter().take(20).copied().collect::<Vec<_>>().join(", ");
            return Err(reply_error(&url, &format!("a model with `{file}`"), &got));
        }
        let snapshot = self.folder.join("snapshots").join(&description.sha);
        for name in needed_files(&all) {
            if !snapshot.join(name).is_file() {
                self.file(id, &description.sha, name, &snapshot, progress)?;
            }
        }
        if id.revision() != description.sha {
            let reference = self.folder.join("refs").join(id.revision());
            make_parent(&reference)?;
            let _lock = self.lock("refs")?;
            write_atomically(&reference, description.sha.as_bytes())
                .map_err(EncoderError::write(&reference))?;
        }
        Ok(snapshot)
    }

    fn file(
        &self,
        id: &ModelId,
        commit: &str,
        name: &str,
        snapshot: &Path,
        progress: &mut dyn FnMut(HubProgress<'_>),
    ) -> Result<()> {
        let url = format!("{}/{}/resolve/{commit}/{name}", self.config.endpoint, id.name());
        let remote = self.describe(name, url)?;
        let blob = self.folder.join("blobs").join(remote.hash.text());
        make_parent(&blob)?;
        // Other tools lock the same file. The lock goes with the process, however that ends.
        let lock = self.lock(remote.hash.text())?;
        if snapshot.join(name).is_file() {
            return Ok(());
        }
        if fs::metadata(&blob).is_ok_and(|found| found.len() == remote.size) {
            progress(HubProgress { file: name, done: remote.size, total: remote.size });
        } else {
            self.blob(&remote, &blob, progress)?;
        }
        let linked = link(&blob, &snapshot.join(name));
        drop(lock);
        linked
    }

    fn describe<'n>(&self, name: &'n str, url: String) -> Result<Remote<'n>> {
        let headers = self.client.headers(&url)?;
        let tag = header(&headers, "x-linked-etag").or_else(|| header(&headers, "etag")).unwrap_or_default();
        let hash = Hash::parse(tag.trim_start_matches("W/").trim_matches('"'))
            .ok_or_else(|| reply_error(&url, "a SHA-256 or a git hash as ETag", tag))?;
        let size = header(&headers, "x-linked-size")
            .or_else(|| header(&headers, "content-length"))
            .unwrap_or_default();
        let size = size.parse().map_err(|_| reply_error(&url, "the file's size", size))?;
        Ok(Remote { name, url, hash, size })
    }

    fn lock(&self, hash: &str) -> Result<File> {
        let folder = self.folder.file_name().unwrap_or_default();
        let path = self.config.cache.join(".locks").join(folder).join(format!("{hash}.lock"));
        make_parent(&path)?;
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(EncoderError::write(&path))?;
        file.lock().map_err(EncoderError::write(&path))?;
        Ok(file)
    }

    /// Fetches the bytes under a temporary name, checks them and renames.
    fn blob(
        &self,
        remote: &Remote<'_>,
        blob: &Path,
        progress: &mut dyn FnMut(HubProgress<'_>),
    ) -> Result<()> {
        let path = blob.with_file_name(format!("{}.incomplete", remote.hash.text()));
        let write = || EncoderError::write(&path);
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)
            .map_err(write())?;
        let mut begun = file.metadata().map_err(write())?.len() > 0;
        loop {
            self.bytes(remote, &path, &mut file, progress)?;
            file.sync_all().map_err(write())?;
            let got = remote.hash.of(&path, remote.size).map_err(EncoderError::read(&path))?;
            if got == remote.hash.text() {
                return fs::rename(&path, blob).map_err(EncoderError::write(blob));
            }
            // What an earlier attempt left may be wrong: once from the start.
            if !begun {
                drop(file);
                // The hash is the error to report; a leftover is looked at again next time.
                let _ = fs::remove_file(&path);
                return Err(EncoderError::HubHash {
                    url: remote.url.clone(),
                    expected: remote.hash.text().to_owned(),
                    got,
                });
            }
            file.set_len(0).map_err(write())?;
            begun = false;
        }
    }

    /// Goes on with a file until it has its size. Only attempts that bring nothing count as failures.
    fn bytes(
        &self,
        remote: &Remote<'_>,
        path: &Path,
        file: &mut File,
        progress: &mut dyn FnMut(HubProgress<'_>),
    ) -> Result<()> {
        let (mut failures, mut most) = (0, 0);
        loop {
            let have = file.metadata().map_err(EncoderError::write(path))?.len();
            if have > remote.size {
                file.set_len(0).map_err(EncoderError::write(path))?;
                continue;
            }
            progress(HubProgress { file: remote.name, done: have, total: remote.size });
            if have == remote.size {
                return Ok(());
            }
            if have > most {
                (failures, most) = (0, have);
            }
            if let Err(failure) = self.part(remote, path, file, have, progress) {
                self.client.wait(failures, failure)?;
                failures += 1;
            }
        }
    }

    /// One request for what is missing.
    fn part(
        &self,
        remote: &Remote<'_>,
        path: &Path,
        file: &mut File,
        have: u64,
        progress: &mut dyn FnMut(HubProgress<'_>),
    ) -> Result<(), Failure> {
        let url = &remote.url;
        let response = self.client.followed(url, Request::Get(have), |_| false)?;
        let from = if response.status().as_u16() == 206 { have } else { 0 };
        let told = header(response.headers(), "content-range").unwrap_or_default();
        if from > 0 && !told.starts_with(&format!("bytes {from}-")) {
            return Err(Failure::last(reply_error(url, &format!("bytes from {from} on"), told)));
        }
        let write = |error| Failure::last(EncoderError::write(path)(error));
        // A server that knows no ranges begins at the start.
        file.set_len(from).map_err(write)?;
        file.seek(SeekFrom::Start(from)).map_err(write)?;
        // One byte more than there should be shows that there are more.
        let mut body = response.into_body().into_reader().take(remote.size - from + 1);
        let mut buffer = vec![0; BUFFER_BYTES];
        let mut done = from;
        loop {
            let count = match body.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(interrupted(url, error)),
            };
            file.write_all(buffer.get(..count).unwrap_or_default()).map_err(write)?;
            done += count as u64;
            progress(HubProgress { file: remote.name, done: done.min(remote.size), total: remote.size });
        }
        match done.cmp(&remote.size) {
            std::cmp::Ordering::Equal => Ok(()),
            std::cmp::Ordering::Less => Err(interrupted(url, io::ErrorKind::UnexpectedEof.into())),
            std::cmp::Ordering::Greater => {
                let expected = format!("{} bytes", remote.size);
                Err(Failure::last(reply_error(url, &expected, "more")))
            }
        }
    }
}

impl Hash {
    fn parse(text: &str) -> Option<Self> {
        if !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        match text.len() {
            64 => Some(Self::Sha256(text.to_ascii_lowercase())),
            40 => Some(Self::Git(text.to_ascii_lowercase())),
            _ => None,
        }
    }

    fn text(&self) -> &str {
        match self {
            Self::Sha256(text) | Self::Git(text) => text,
        }
    }

    /// What a file gives.
    fn of(&self, path: &Path, size: u64) -> io::Result<String> {
        match self {
            Self::Sha256(_) => sha256_file(path),
            Self::Git(_) => git_blob_hash(path, size),
        }
    }
}

/// What git calls a file's content.
pub(super) fn git_blob_hash(path: &Path, size: u64) -> io::Result<String> {
    let mut hash = Sha1::new();
    hash.update(format!("blob {size}\0"));
    let mut file = File::open(path)?;
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let count = file.read(&mut buffer)?;
        if count == 0 {
            return Ok(hex(&hash.finalize()));
        }
        hash.update(buffer.get(..count).unwrap_or_default());
    }
}

fn make_parent(path: &Path) -> Result<()> {
    let folder = path.parent().unwrap_or(path);
    fs::create_dir_all(folder).map_err(EncoderError::write(folder))
}

/// Puts a blob under its name into a snapshot: a relative link, so that the cache can be moved; where there are no links a copy.
fn link(blob: &Path, name: &Path) -> Result<()> {
    make_parent(name)?;
    let write = || EncoderError::write(name);
    // A link whose blob is gone would stand in the way.
    match fs::remove_file(name) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(write()(error)),
        _ => {}
    }
    #[cfg(unix)]
    {
        // The snapshot lies two folders below the model's, and a module's file one deeper.
        let cache = blob.parent().and_then(Path::parent).unwrap_or(blob);
        let depth = name.strip_prefix(cache).map_or(3, |inside| inside.components().count()) - 1;
        let hash = blob.file_name().unwrap_or_default();
        let target = std::iter::repeat_n("..", depth).collect::<PathBuf>().join("blobs").join(hash);
        std::os::unix::fs::symlink(target, name).map_err(write())
    }
    #[cfg(not(unix))]
    {
        fs::hard_link(blob, name).or_else(|_| fs::copy(blob, name).map(drop)).map_err(write())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_of_both_kinds() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, "hello\n").unwrap();
        // `git hash-object` and `sha256sum` of the same bytes.
        for text in [
            "ce013625030ba8dba906f756967f9e9ca394464a",
            "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03",
        ] {
            let hash = Hash::parse(text).unwrap();
            assert_eq!(hash.of(&path, 6).unwrap(), text);
        }
        for wrong in ["", "abc", "../../../../../../../../../../etc/passwd00"] {
            assert_eq!(Hash::parse(wrong), None);
        }
    }
}
