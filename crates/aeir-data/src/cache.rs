//! Features of frozen encoders on disk, by the hash of what was encoded.
//!
//! `root/<encoder fingerprint>/<precision>/` holds a manifest, one append-only data file and two lock files. Records
//! are `[header length, rows, columns, key, header checksum][values][checksum]`, little-endian.

mod file;
mod listing;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};

use half::f16;
use serde::{Deserialize, Serialize};

use crate::durable;
use crate::error::DataError;
use crate::hash::{ContentHash, hash_text};
use file::Location;
pub use listing::{CacheEntry, Pruned, list, prune};

const MANIFEST: &str = "manifest.json";
const DATA: &str = "features.bin";
const IN_USE: &str = "in-use.lock";
const APPENDING: &str = "appending.lock";

const FORMAT: &str = "aeir feature cache";
const VERSION: u32 = 1;

/// A record of more values than this (4 GiB as `f32`) is a mistake, not features.
const MAX_VALUES: usize = 1 << 30;

/// Records are written in parts of about this many bytes, however many are appended at once.
const WRITE_AT_ONCE: usize = 8 * 1024 * 1024;

/// How values are kept on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// As they are, 4 bytes a value.
    F32,
    /// Rounded to the nearest half-precision number, 2 bytes a value.
    F16,
}

impl Precision {
    /// The value as it will come back from a cache of this precision.
    pub fn round(self, value: f32) -> f32 {
        match self {
            Self::F32 => value,
            Self::F16 => f16::from_f32(value).to_f32(),
        }
    }

    fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
        }
    }

    fn encode(self, values: &[f32], into: &mut Vec<u8>) {
        match self {
            Self::F32 => into.extend(values.iter().flat_map(|value| value.to_le_bytes())),
            Self::F16 => into.extend(values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes())),
        }
    }

    fn decode(self, bytes: &[u8]) -> Vec<f32> {
        match self {
            Self::F32 => bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(),
            Self::F16 => {
                bytes.as_chunks().0.iter().map(|bytes| f16::from_le_bytes(*bytes).to_f32()).collect()
            }
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
        })
    }
}

impl FromStr for Precision {
    type Err = DataError;

    fn from_str(text: &str) -> Result<Self, DataError> {
        match text {
            "f32" => Ok(Self::F32),
            "f16" => Ok(Self::F16),
            other => {
                Err(DataError::UnknownName { expected: "f32 or f16", got: other.chars().take(80).collect() })
            }
        }
    }
}

/// What an encoder made of one image or sentence: a row a fragment, or a single row where it pools.
#[derive(Debug, Clone, PartialEq)]
pub struct Features {
    /// Fragments (regions, patches, words).
    pub rows: usize,
    /// Feature dimension.
    pub columns: usize,
    /// `rows * columns` values, row by row.
    pub values: Vec<f32>,
}

impl Features {
    /// One vector.
    pub fn pooled(values: Vec<f32>) -> Self {
        Self { rows: 1, columns: values.len(), values }
    }

    /// The features as they will come back from a cache of this precision. A run that computes features and the next
    /// one, which reads them, work with the same numbers only if both use these.
    #[must_use]
    pub fn rounded(mut self, precision: Precision) -> Self {
        self.values.iter_mut().for_each(|value| *value = precision.round(*value));
        self
    }

    fn check(&self, key: &ContentHash, precision: Precision) -> Result<(), DataError> {
        let shape = |expected| DataError::FeatureShape {
            key: *key,
            rows: self.rows,
            columns: self.columns,
            expected,
            got: self.values.len(),
        };
        let expected = self.rows.checked_mul(self.columns).filter(|count| *count <= MAX_VALUES);
        let expected = expected.ok_or_else(|| shape(MAX_VALUES))?;
        let fits = u32::try_from(self.rows).is_ok() && u32::try_from(self.columns).is_ok();
        if expected != self.values.len() || !fits {
            return Err(shape(expected));
        }
        match self.values.iter().position(|value| !precision.round(*value).is_finite()) {
            None => Ok(()),
            Some(index) => Err(DataError::FeatureNotFinite {
                key: *key,
                index,
                got: self.values.get(index).copied().unwrap_or(f32::NAN),
                precision,
            }),
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Manifest {
    format: String,
    version: u32,
    encoder_fingerprint: String,
    precision: Precision,
}

impl Manifest {
    fn new(encoder_fingerprint: &str, precision: Precision) -> Self {
        Self {
            format: FORMAT.to_owned(),
            version: VERSION,
            encoder_fingerprint: encoder_fingerprint.to_owned(),
            precision,
        }
    }

    /// `None` where there is no manifest.
    fn read(path: &Path) -> Result<Option<Self>, DataError> {
        let bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(DataError::io(path, "read", error)),
        };
        let manifest: Self = serde_json::from_slice(&bytes)
            .map_err(|source| DataError::CacheManifest { path: path.to_path_buf(), source })?;
        if manifest.format != FORMAT || manifest.version != VERSION {
            return Err(DataError::CacheFormat {
                path: path.to_path_buf(),
                expected: format!("{FORMAT} version {VERSION}"),
                got: format!("{} version {}", manifest.format, manifest.version),
            });
        }
        Ok(Some(manifest))
    }

    fn write(&self, path: &Path) -> Result<(), DataError> {
        let bytes = serde_json::to_vec_pretty(self)
            .map_err(|source| DataError::CacheManifest { path: path.to_path_buf(), source })?;
        durable::replace(path, &bytes)
    }
}

/// What is known of the data file.
#[derive(Debug, Default)]
struct Index {
    locations: HashMap<ContentHash, Location>,
    /// The file is known up to here; a whole record ends here.
    end: u64,
}

/// Features of one encoder in one precision. Threads share it by reference; processes share the folder.
///
/// - A writer that is killed loses at most what it was appending: a torn end is found by the next one to open or to
///   append, under a lock, and cut off.
/// - A record that no longer matches its checksum counts as absent ([`FeatureCache::damaged`]); once appended anew it
///   is back.
/// - What another process appends is seen after the next [`FeatureCache::append`] or [`FeatureCache::refresh`].
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// use aeir_data::{FeatureCache, Features, Precision, hash_text};
/// let cache = FeatureCache::open(folder.path(), "encoder-1", Precision::F16)?;
/// let key = hash_text("a red house");
/// cache.append(&[(key, Features::pooled(vec![0.5, -1.0]))])?;
/// assert_eq!(cache.get(&key)?, Some(Features::pooled(vec![0.5, -1.0])));
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct FeatureCache {
    path: PathBuf,
    data: File,
    /// Locked exclusively by whoever changes the data file. A file of its own, as some systems let nobody read a
    /// locked file. Behind a mutex, as the system's lock tells processes apart but not the threads of this one.
    appending: Mutex<File>,
    /// Locked by all users together, so that pruning can tell that there are some.
    _in_use: File,
    precision: Precision,
    index: RwLock<Index>,
    damaged: AtomicUsize,
}

impl FeatureCache {
    /// Opens the cache of an encoder, creating it where it is not there. Reads the headers of the records, not their
    /// values. The fingerprint stands for everything the features depend on: weights, preprocessing, tokenizer.
    ///
    /// # Errors
    /// [`DataError::Io`]; [`DataError::CacheFormat`] and [`DataError::CacheManifest`] where the folder holds something
    /// that this version cannot read, which is left as it is.
    pub fn open(root: &Path, encoder_fingerprint: &str, precision: Precision) -> Result<Self, DataError> {
        let folder = root.join(folder_name(encoder_fingerprint)).join(precision.to_string());
        let in_use = claim(&folder)?;
        let appending = Mutex::new(open_lock(&folder.join(APPENDING))?);
        let path = folder.join(DATA);
        let data = {
            let _guard = Exclusive::lock(&appending, &folder.join(APPENDING))?;
            let manifest_path = folder.join(MANIFEST);
            let wanted = Manifest::new(encoder_fingerprint, precision);
            match Manifest::read(&manifest_path)? {
                None => wanted.write(&manifest_path)?,
                Some(found) => found.must_match(&wanted, &manifest_path)?,
            }
            OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path)
                .map_err(|error| DataError::io(&path, "open", error))?
        };
        let cache = Self {
            path,
            data,
            appending,
            _in_use: in_use,
            precision,
            index: RwLock::default(),
            damaged: AtomicUsize::new(0),
        };
        cache.refresh()?;
        Ok(cache)
    }

    /// The features under a key, `None` where there are none (or damaged ones, see [`FeatureCache::damaged`]).
    ///
    /// # Errors
    /// [`DataError::Io`] where the data file cannot be read.
    pub fn get(&self, key: &ContentHash) -> Result<Option<Features>, DataError> {
        let Some(location) = self.read_index(|index| index.locations.get(key).copied()) else {
            return Ok(None);
        };
        let features = file::read_record(&self.data, key, location, self.precision)
            .map_err(|error| DataError::io(&self.path, "read", error))?;
        if features.is_none() {
            self.damaged.fetch_add(1, Ordering::Relaxed);
            self.write_index(|index| {
                // Unless it was appended anew in the meantime.
                if index.locations.get(key) == Some(&location) {
                    index.locations.remove(key);
                }
            });
        }
        Ok(features)
    }

    /// Whether there are features under a key.
    pub fn contains(&self, key: &ContentHash) -> bool {
        self.read_index(|index| index.locations.contains_key(key))
    }

    /// Adds features and syncs them to disk; keys that are there already are passed over, also those another process
    /// added. All or none of them are in the cache afterwards.
    ///
    /// # Errors
    /// [`DataError::FeatureShape`] and [`DataError::FeatureNotFinite`], both before anything is written;
    /// [`DataError::CacheWrite`] where the disk is full, the file being set back to what it was; [`DataError::Io`].
    pub fn append(&self, features: &[(ContentHash, Features)]) -> Result<(), DataError> {
        features.iter().try_for_each(|(key, features)| features.check(key, self.precision))?;
        let _guard = Exclusive::lock(&self.appending, &self.path)?;
        self.catch_up()?;
        let (start, fresh) = self.read_index(|index| {
            let mut taken = HashSet::new();
            let fresh =
                features.iter().filter(|(key, _)| !index.locations.contains_key(key) && taken.insert(*key));
            (index.end, fresh.collect::<Vec<_>>())
        });
        if fresh.is_empty() {
            return Ok(());
        }
        let written = self.write_records(start, &fresh);
        let (end, added) = match written {
            Ok(written) => written,
            Err(source) => {
                // What was written of the batch is past the known end: even if this fails, nobody reads it.
                let _ = self.data.set_len(start);
                return Err(DataError::CacheWrite { path: self.path.clone(), source });
            }
        };
        self.write_index(|index| {
            index.locations.extend(added);
            index.end = end;
        });
        Ok(())
    }

    fn write_records(
        &self,
        start: u64,
        records: &[&(ContentHash, Features)],
    ) -> std::io::Result<(u64, Vec<(ContentHash, Location)>)> {
        let mut end = start;
        let mut buffer = Vec::new();
        let mut added = Vec::with_capacity(records.len());
        for (key, features) in records {
            let offset = end + buffer.len() as u64;
            added.push((*key, file::encode_record(key, features, self.precision, offset, &mut buffer)));
            if buffer.len() >= WRITE_AT_ONCE {
                file::write_all_at(&self.data, &buffer, end)?;
                end += buffer.len() as u64;
                buffer.clear();
            }
        }
        file::write_all_at(&self.data, &buffer, end)?;
        self.data.sync_data()?;
        Ok((end + buffer.len() as u64, added))
    }

    /// Takes in what other processes appended since.
    ///
    /// # Errors
    /// [`DataError::Io`]; [`DataError::CacheFormat`] where the data file is none of ours.
    pub fn refresh(&self) -> Result<(), DataError> {
        let _guard = Exclusive::lock(&self.appending, &self.path)?;
        self.catch_up()
    }

    /// With the lock held: reads the headers behind the known end and cuts off what is no whole record there.
    fn catch_up(&self) -> Result<(), DataError> {
        let failed = |error| DataError::io(&self.path, "read", error);
        let length = self.data.metadata().map_err(failed)?.len();
        let known = self.read_index(|index| index.end);
        if length == known && known > 0 {
            return Ok(());
        }
        // Shorter than known: somebody else set the file back. What is known of it may be gone.
        let from = if length < known { 0 } else { known };
        let scan = file::scan(&self.data, from, length, self.precision, &self.path)?;
        if scan.end < length {
            self.data
                .set_len(scan.end)
                .map_err(|error| DataError::io(&self.path, "cut off the torn end of", error))?;
        }
        if scan.end == 0 {
            file::write_header(&self.data, self.precision)
                .map_err(|source| DataError::CacheWrite { path: self.path.clone(), source })?;
        }
        self.write_index(|index| {
            if from == 0 {
                index.locations.clear();
            }
            index.locations.extend(scan.records);
            index.end = scan.end.max(file::FILE_HEADER);
        });
        Ok(())
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.read_index(|index| index.locations.len())
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of the data file, as far as it is known.
    pub fn size_on_disk(&self) -> u64 {
        self.read_index(|index| index.end)
    }

    /// How many records turned out damaged when they were asked for.
    pub fn damaged(&self) -> usize {
        self.damaged.load(Ordering::Relaxed)
    }

    /// How values are kept.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// The data file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    // No code that can panic runs under the lock with the index half-changed: a poisoned lock is good to use.
    fn read_index<T>(&self, look: impl FnOnce(&Index) -> T) -> T {
        look(&self.index.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write_index<T>(&self, change: impl FnOnce(&mut Index) -> T) -> T {
        change(&mut self.index.write().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Manifest {
    fn must_match(&self, wanted: &Self, path: &Path) -> Result<(), DataError> {
        if self.encoder_fingerprint == wanted.encoder_fingerprint && self.precision == wanted.precision {
            return Ok(());
        }
        Err(DataError::CacheFormat {
            path: path.to_path_buf(),
            expected: format!("features of encoder {} in {}", wanted.encoder_fingerprint, wanted.precision),
            got: format!("features of encoder {} in {}", self.encoder_fingerprint, self.precision),
        })
    }
}

/// The fingerprint itself where every file system takes it as a name, else its hash; the manifest has it in full.
fn folder_name(encoder_fingerprint: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_');
    if (1..=100).contains(&encoder_fingerprint.len()) && encoder_fingerprint.bytes().all(plain) {
        encoder_fingerprint.to_owned()
    } else {
        hash_text(encoder_fingerprint).to_string()
    }
}

fn open_lock(path: &Path) -> Result<File, DataError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(|error| DataError::io(path, "open", error))
}

/// Marks the folder as in use. Pruning may take the folder away between its creation and the lock: then once more.
fn claim(folder: &Path) -> Result<File, DataError> {
    const ATTEMPTS: usize = 8;
    let path = folder.join(IN_USE);
    let mut attempt = 1;
    loop {
        fs::create_dir_all(folder).map_err(|error| DataError::io(folder, "create", error))?;
        match open_lock(&path) {
            Ok(file) => {
                file.lock_shared().map_err(|error| DataError::io(&path, "lock", error))?;
                if path.exists() || attempt == ATTEMPTS {
                    // For whoever prunes by age. A file system that keeps no times is no reason to stop.
                    let _ = file.set_modified(std::time::SystemTime::now());
                    return Ok(file);
                }
            }
            Err(error) if attempt == ATTEMPTS => return Err(error),
            Err(_) => {}
        }
        attempt += 1;
    }
}

/// An exclusive lock until it is dropped; the system frees it when the process ends, however it ends.
struct Exclusive<'a>(MutexGuard<'a, File>);

impl<'a> Exclusive<'a> {
    fn lock(file: &'a Mutex<File>, path: &Path) -> Result<Self, DataError> {
        // Nothing is behind the mutex that a panic could leave half-changed.
        let file = file.lock().unwrap_or_else(PoisonError::into_inner);
        file.lock().map_err(|error| DataError::io(path, "lock", error))?;
        Ok(Self(file))
    }
}

impl Drop for Exclusive<'_> {
    fn drop(&mut self) {
        // Fails only for a handle that holds no lock.
        let _ = self.0.unlock();
    }
}
