//! What caches there are under a root, and taking them away.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::{DATA, IN_USE, MANIFEST, Manifest, Precision, file, open_lock};
use crate::error::DataError;

/// One cache under a root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheEntry {
    /// The encoder's fingerprint, in full.
    pub encoder_fingerprint: String,
    /// How values are kept.
    pub precision: Precision,
    /// The folder.
    pub path: PathBuf,
    /// Whole records in the data file.
    pub records: usize,
    /// Bytes of the data file.
    pub bytes: u64,
    /// When something was last added, where the file system says so.
    pub modified: Option<SystemTime>,
    /// When somebody last opened it, where the file system says so.
    pub opened: Option<SystemTime>,
}

impl CacheEntry {
    /// When it was last opened or added to.
    pub fn last_used(&self) -> Option<SystemTime> {
        self.modified.max(self.opened)
    }
}

/// What pruning did.
#[derive(Debug, Clone, Default)]
pub struct Pruned {
    /// Caches that are gone.
    pub removed: Vec<CacheEntry>,
    /// Caches that were to go but are open somewhere. They are untouched.
    pub in_use: Vec<CacheEntry>,
}

/// The caches under a root, sorted by path; none where there is no such folder. Changes nothing. Folders that are no
/// cache of this version are passed over.
///
/// # Errors
/// [`DataError::Io`] where a folder or a data file cannot be read.
pub fn list(root: &Path) -> Result<Vec<CacheEntry>, DataError> {
    let mut entries = Vec::new();
    for encoder in subfolders(root)? {
        for folder in subfolders(&encoder)? {
            // Other versions' caches and other people's folders are not ours to report or to remove.
            if let Ok(Some(manifest)) = Manifest::read(&folder.join(MANIFEST)) {
                entries.push(entry(&folder, manifest)?);
            }
        }
    }
    Ok(entries)
}

fn subfolders(folder: &Path) -> Result<Vec<PathBuf>, DataError> {
    let failed = |error| DataError::io(folder, "read", error);
    let reader = match fs::read_dir(folder) {
        Ok(reader) => reader,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut folders = Vec::new();
    for entry in reader {
        let entry = entry.map_err(failed)?;
        // Not through links: pruning deletes what is listed.
        if entry.file_type().map_err(failed)?.is_dir() {
            folders.push(entry.path());
        }
    }
    folders.sort();
    Ok(folders)
}

fn entry(folder: &Path, manifest: Manifest) -> Result<CacheEntry, DataError> {
    let mut entry = CacheEntry {
        encoder_fingerprint: manifest.encoder_fingerprint,
        precision: manifest.precision,
        path: folder.to_path_buf(),
        records: 0,
        bytes: 0,
        modified: None,
        opened: fs::metadata(folder.join(IN_USE)).and_then(|metadata| metadata.modified()).ok(),
    };
    let path = folder.join(DATA);
    let failed = |error| DataError::io(&path, "read", error);
    let data = match File::open(&path) {
        Ok(data) => data,
        // Between manifest and data file, another process is creating it.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(entry),
        Err(error) => return Err(failed(error)),
    };
    let metadata = data.metadata().map_err(failed)?;
    entry.bytes = metadata.len();
    entry.modified = metadata.modified().ok();
    // A data file of another layout is still listed, so that it can be pruned.
    if let Ok(scan) = file::scan(&data, 0, metadata.len(), manifest.precision, &path) {
        entry.records = scan.records.len();
    }
    Ok(entry)
}

/// Removes the caches that `keep` does not want, except those that are open somewhere.
///
/// # Errors
/// [`DataError::Io`] where a cache cannot be read or removed.
pub fn prune(root: &Path, mut keep: impl FnMut(&CacheEntry) -> bool) -> Result<Pruned, DataError> {
    let mut pruned = Pruned::default();
    for entry in list(root)? {
        if keep(&entry) {
            continue;
        }
        let path = entry.path.join(IN_USE);
        let lock = open_lock(&path)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => {
                pruned.in_use.push(entry);
                continue;
            }
            Err(fs::TryLockError::Error(error)) => return Err(DataError::io(&path, "lock", error)),
        }
        // Held while the rest goes, closed before the folder does: some systems keep open files.
        remove_all_but(&entry.path, &path)?;
        drop(lock);
        fs::remove_dir_all(&entry.path).map_err(|error| DataError::io(&entry.path, "remove", error))?;
        if let Some(encoder) = entry.path.parent() {
            // Fails, as it should, while the encoder has features in another precision.
            let _ = fs::remove_dir(encoder);
        }
        pruned.removed.push(entry);
    }
    Ok(pruned)
}

fn remove_all_but(folder: &Path, kept: &Path) -> Result<(), DataError> {
    let failed = |error| DataError::io(folder, "remove files in", error);
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path != kept && !path.is_dir() {
            fs::remove_file(&path).map_err(failed)?;
        }
    }
    Ok(())
}
