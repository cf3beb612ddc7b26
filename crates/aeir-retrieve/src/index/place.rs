//! Where an index lies: what is beside it while it is replaced, who may write, and what killed writers left.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::manifest::is_index;
use crate::files::at;
use crate::{Error, Result};

/// The lock of whoever writes into a folder.
pub(super) const LOCK_FILE: &str = ".writer.lock";

pub(super) fn parent_of(folder: &Path) -> Result<PathBuf> {
    match (folder.parent(), folder.file_name()) {
        (Some(parent), Some(_)) => Ok(parent.to_path_buf()),
        _ => Err(Error::WouldOverwrite { folder: folder.to_path_buf() }),
    }
}

/// What the names of a folder's temporary neighbours begin with.
fn sibling_prefix(folder: &Path, kind: &str) -> String {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    format!(".{name}.aeir-{kind}-")
}

/// A neighbour that does not exist yet.
pub(super) fn sibling(folder: &Path, parent: &Path, kind: &str) -> Result<PathBuf> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let prefix = sibling_prefix(folder, kind);
    loop {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let place = parent.join(format!("{prefix}{}-{number}", std::process::id()));
        match fs::symlink_metadata(&place) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(place),
            Err(error) => return Err(at(&place)(error)),
            Ok(_) => {}
        }
    }
}

/// Keeps other writers out of a parent folder for a moment. Systems that can't open a folder go without.
pub(super) fn lock_folder(parent: &Path) -> Result<Option<File>> {
    if !cfg!(unix) {
        return Ok(None);
    }
    let handle = File::open(parent).map_err(at(parent))?;
    match handle.lock() {
        Ok(()) => Ok(Some(handle)),
        // Some network file systems have no locks.
        Err(error) if error.kind() == std::io::ErrorKind::Unsupported => Ok(None),
        Err(error) => Err(at(parent)(error)),
    }
}

/// Becomes the one writer of an index.
pub(super) fn lock_index(folder: &Path) -> Result<File> {
    let place = folder.join(LOCK_FILE);
    let lock = File::options().create(true).truncate(false).write(true).open(&place).map_err(at(&place))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(Error::Locked { folder: folder.to_path_buf() }),
        // Some network file systems have no locks.
        Err(TryLockError::Error(error)) if error.kind() == std::io::ErrorKind::Unsupported => Ok(lock),
        Err(TryLockError::Error(error)) => Err(at(&place)(error)),
    }
}

/// Removes what killed writers of this folder left, and puts back an index that was aside when one was killed.
pub(super) fn clear_leftovers(folder: &Path, parent: &Path) -> Result<()> {
    let (staging, old) = (sibling_prefix(folder, "staging"), sibling_prefix(folder, "old"));
    for entry in fs::read_dir(parent).map_err(at(parent))? {
        let place = entry.map_err(at(parent))?.path();
        let name = place.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with(&old) && is_index(&place) && fs::symlink_metadata(folder).is_err() {
            fs::rename(&place, folder).map_err(at(&place))?;
        } else if name.starts_with(&old) || (name.starts_with(&staging) && !has_writer(&place)) {
            match fs::remove_dir_all(&place) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(at(&place)(error)),
                _ => {}
            }
        }
    }
    Ok(())
}

/// Whether somebody may hold a folder's lock: what can't be asked counts as held.
pub(super) fn has_writer(folder: &Path) -> bool {
    // Network file systems lock only what may be written.
    match File::options().write(true).open(folder.join(LOCK_FILE)) {
        Err(error) => error.kind() != std::io::ErrorKind::NotFound,
        Ok(file) => match file.try_lock() {
            Ok(()) => false,
            Err(TryLockError::WouldBlock) => true,
            Err(TryLockError::Error(error)) => error.kind() != std::io::ErrorKind::Unsupported,
        },
    }
}

pub(super) fn refuse_foreign(folder: &Path) -> Result<()> {
    match fs::symlink_metadata(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(at(folder)(error)),
        Ok(metadata) if metadata.is_dir() && is_index(folder) => Ok(()),
        Ok(_) => Err(Error::WouldOverwrite { folder: folder.to_path_buf() }),
    }
}
