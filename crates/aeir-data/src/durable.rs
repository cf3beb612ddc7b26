//! Files that are whole or not there: opening what is certainly a file, replacing a file in one step.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::DataError;

/// Opens a regular file and says how long it is. Looked at before opening: to open a named pipe would wait for
/// somebody to write into it.
pub(crate) fn open_regular(path: &Path) -> Result<(File, u64), DataError> {
    let metadata = fs::metadata(path).map_err(|error| DataError::io(path, "read", error))?;
    if metadata.is_dir() {
        return Err(DataError::NotAFile { path: path.to_path_buf(), got: "folder" });
    }
    if !metadata.is_file() {
        return Err(DataError::NotAFile { path: path.to_path_buf(), got: "special file" });
    }
    let file = File::open(path).map_err(|error| DataError::io(path, "read", error))?;
    Ok((file, metadata.len()))
}

/// Writes to a temporary name beside `path`, syncs, renames: a reader sees the old content or the new.
pub(crate) fn replace(path: &Path, content: &[u8]) -> Result<(), DataError> {
    let temporary = temporary_name(path);
    let written = write_synced(&temporary, content).and_then(|()| fs::rename(&temporary, path));
    if let Err(error) = written {
        // The first error is the one to report; what is left of the attempt is in nobody's way.
        let _ = fs::remove_file(&temporary);
        return Err(DataError::io(path, "write", error));
    }
    sync_folder_of(path);
    Ok(())
}

fn write_synced(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(content)?;
    file.sync_all()
}

fn temporary_name(path: &Path) -> PathBuf {
    // Process and counter: neither two processes nor two threads share a name.
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}-{}.tmp", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed)));
    path.with_file_name(name)
}

/// The rename itself lasts only once the folder is on disk. Not every file system can sync a folder, and the
/// content is whole either way: the answer is not looked at.
fn sync_folder_of(path: &Path) {
    if let Some(folder) = path.parent()
        && let Ok(folder) = File::open(folder)
    {
        let _ = folder.sync_all();
    }
}
