//! Writing files that survive a crash, and checksums with all cores.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use crate::{Error, Result};

/// Bytes a thread sums at a time.
const CHUNK: usize = 4 << 20;

/// Gives an I/O error its file.
pub(crate) fn at(file: &Path) -> impl FnOnce(io::Error) -> Error + '_ {
    move |source| Error::Io { file: file.to_path_buf(), source }
}

/// CRC-32 of bytes in memory, chunks in parallel.
pub(crate) fn checksum(bytes: &[u8]) -> u32 {
    let parts: Vec<crc32fast::Hasher> = (bytes.par_chunks(CHUNK))
        .map(|chunk| {
            let mut hasher = crc32fast::Hasher::new();
            hasher.update(chunk);
            hasher
        })
        .collect();
    joined(&parts)
}

/// CRC-32 and length of a file, chunks in parallel.
pub(crate) fn checksum_file(file: &Path) -> Result<(u64, u32)> {
    let bytes = fs::metadata(file).map_err(at(file))?.len();
    let starts: Vec<u64> = (0..bytes).step_by(CHUNK).collect();
    let parts: Vec<crc32fast::Hasher> = starts
        .into_par_iter()
        .map(|start| {
            let mut reader = File::open(file)?;
            reader.seek(SeekFrom::Start(start))?;
            let mut buffer = Vec::with_capacity(CHUNK);
            reader.take(CHUNK as u64).read_to_end(&mut buffer)?;
            let mut hasher = crc32fast::Hasher::new();
            hasher.update(&buffer);
            Ok(hasher)
        })
        .collect::<io::Result<_>>()
        .map_err(at(file))?;
    Ok((bytes, joined(&parts)))
}

fn joined(parts: &[crc32fast::Hasher]) -> u32 {
    let mut whole = crc32fast::Hasher::new();
    parts.iter().for_each(|part| whole.combine(part));
    whole.finalize()
}

/// Writes a new file and waits until it is on the disk.
pub(crate) fn write_synced(file: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    let inner = || {
        let mut writer = io::BufWriter::with_capacity(1 << 20, File::create(file)?);
        write(&mut writer)?;
        writer.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
    };
    inner().map_err(at(file))
}

/// Waits until a folder's entries are on the disk. Systems that can't open a folder order renames themselves.
pub(crate) fn sync_folder(folder: &Path) -> Result<()> {
    if cfg!(unix) {
        File::open(folder).and_then(|handle| handle.sync_all()).map_err(at(folder))?;
    }
    Ok(())
}

/// Puts `new` in the place of `old` in one step where the system can; `old` is then where `new` was.
///
/// Where it can't, `old` first moves to `aside`: for a moment nothing is in its place. Returns where the old one is.
pub(crate) fn exchange(new: &Path, old: &Path, aside: &Path) -> Result<PathBuf> {
    if swap(new, old) {
        return Ok(new.to_path_buf());
    }
    fs::rename(old, aside).map_err(at(old))?;
    if let Err(error) = fs::rename(new, old) {
        // Best effort: what was there comes back.
        let _ = fs::rename(aside, old);
        return Err(at(new)(error));
    }
    Ok(aside.to_path_buf())
}

#[cfg(any(target_os = "linux", target_os = "macos"))]
fn swap(new: &Path, old: &Path) -> bool {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    renameat_with(CWD, new, CWD, old, RenameFlags::EXCHANGE).is_ok()
}

#[cfg(not(any(target_os = "linux", target_os = "macos")))]
fn swap(_new: &Path, _old: &Path) -> bool {
    false
}
