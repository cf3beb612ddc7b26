//! The manifest: which files make up the generation that was committed last.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::GraphReport;
use crate::files::{at, checksum, checksum_file, sync_folder, write_synced};
use crate::{Error, Result, Storage};

/// The `format` of a manifest.
pub const FORMAT: &str = "aeir-index";
/// The format version this crate reads and writes.
pub const VERSION: u64 = 2;
/// The manifest's file name. Written last: a folder without it is no index.
pub const MANIFEST_FILE: &str = "manifest.json";

pub(super) const MANIFEST_TEMPORARY: &str = ".manifest.json.new";
/// A manifest is a few lines a file: more is not one of ours.
const MOST_MANIFEST_BYTES: u64 = 64 << 20;
/// What a segment's name begins with.
pub(super) const SEGMENT_PREFIX: &str = "segment-";
/// What the name of a folder begins with that holds files of a later generation.
pub(super) const GENERATION_PREFIX: &str = "generation-";

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    pub(super) format: String,
    pub(super) version: u64,
    /// 1 for a new index, one more with each commit.
    pub(super) generation: u64,
    pub(super) created_by: String,
    pub(super) model_fingerprint: String,
    pub(super) dimension: usize,
    pub(super) storage: Storage,
    /// Whether segments get a graph when they are written whole.
    pub(super) approximate: bool,
    /// The number of the next segment: none is given twice.
    pub(super) next_segment: u64,
    /// In the order of their rows.
    pub(super) segments: Vec<SegmentEntry>,
    /// By path inside the folder, `/` between parts.
    pub(super) files: BTreeMap<String, FileEntry>,
    /// CRC-32 of this manifest with an empty checksum.
    pub(super) checksum: String,
}

/// Rows that were added at once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SegmentEntry {
    /// Its folder.
    pub(super) name: String,
    pub(super) rows: usize,
    /// Rows that were deleted since.
    pub(super) deleted: usize,
    /// The file that says which, where there are any.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(super) tombstones: Option<String>,
    /// Where it can be searched approximately: how well that goes.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(super) graph: Option<GraphReport>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileEntry {
    pub(super) bytes: u64,
    pub(super) crc32: String,
    /// Where it lies, if not under its own name.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(super) path: Option<String>,
}

/// The part of a manifest that every version has.
#[derive(Deserialize)]
struct ManifestHeader {
    format: String,
    version: u64,
}

impl Manifest {
    fn to_bytes(&self, file: &Path) -> Result<Vec<u8>> {
        let mut bytes = serde_json::to_vec_pretty(self).map_err(|error| at(file)(error.into()))?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    fn own_checksum(&self, file: &Path) -> Result<String> {
        let blank = Self { checksum: String::new(), ..self.clone() };
        Ok(hexadecimal(checksum(&blank.to_bytes(file)?)))
    }

    /// Completes it and brings it to the disk under its temporary name: [`put_in_place`] makes it the index's.
    pub(super) fn write(mut self, folder: &Path) -> Result<Self> {
        let place = folder.join(MANIFEST_FILE);
        self.checksum = self.own_checksum(&place)?;
        let bytes = self.to_bytes(&place)?;
        write_synced(&folder.join(MANIFEST_TEMPORARY), |writer| writer.write_all(&bytes))?;
        Ok(self)
    }

    /// Where a file lies inside the folder.
    pub(super) fn place<'a>(&'a self, name: &'a str) -> &'a str {
        self.files.get(name).and_then(|entry| entry.path.as_deref()).unwrap_or(name)
    }

    /// The manifest's entry of one of the index's own files.
    pub(super) fn entry(&self, folder: &Path, name: &str) -> Result<&FileEntry> {
        (self.files.get(name))
            .ok_or_else(|| damaged(&folder.join(MANIFEST_FILE), format!("`{name}` among its files"), "none"))
    }

    pub(super) fn read(folder: &Path) -> Result<Self> {
        let file = folder.join(MANIFEST_FILE);
        let bytes = manifest_bytes(folder, &file)?;
        let not_an_index = |reason: String| Error::NotAnIndex { folder: folder.to_path_buf(), reason };
        let unreadable = |error: serde_json::Error| not_an_index(format!("`{MANIFEST_FILE}`: {error}"));
        let header: ManifestHeader = serde_json::from_slice(&bytes).map_err(unreadable)?;
        if header.format != FORMAT {
            return Err(not_an_index(format!("expected format `{FORMAT}`, got `{}`", header.format)));
        }
        if header.version != VERSION {
            return Err(Error::Version { file, expected: VERSION, got: header.version });
        }
        let manifest: Self = serde_json::from_slice(&bytes).map_err(unreadable)?;
        let computed = manifest.own_checksum(&file)?;
        if manifest.checksum != computed || manifest.to_bytes(&file)? != bytes {
            return Err(damaged(&file, format!("checksum {}", manifest.checksum), computed));
        }
        let places = manifest.files.values().filter_map(|entry| entry.path.as_ref());
        let segments = manifest.segments.iter().map(|segment| &segment.name);
        if let Some(name) = manifest.files.keys().chain(places).chain(segments).find(|name| !is_plain(name)) {
            return Err(Error::ExtraFile { file: folder.join(name), reason: "its name leaves the index" });
        }
        Ok(manifest)
    }
}

fn manifest_bytes(folder: &Path, file: &Path) -> Result<Vec<u8>> {
    let not_an_index = |reason: String| Error::NotAnIndex { folder: folder.to_path_buf(), reason };
    match fs::metadata(file) {
        Ok(metadata) if metadata.len() > MOST_MANIFEST_BYTES => Err(not_an_index(format!(
            "expected at most {MOST_MANIFEST_BYTES} bytes in `{MANIFEST_FILE}`, got {}",
            metadata.len()
        ))),
        Ok(_) => fs::read(file).map_err(at(file)),
        Err(error)
            if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) =>
        {
            Err(not_an_index(match fs::metadata(folder) {
                Ok(metadata) if !metadata.is_dir() => "expected a folder, got a file".to_string(),
                Ok(_) => format!("no `{MANIFEST_FILE}` in it: not an index, or not finished"),
                Err(_) => "no such folder".to_string(),
            }))
        }
        Err(error) => Err(at(file)(error)),
    }
}

/// Makes a manifest that [`Manifest::write`] wrote the index's: this is the commit. It lasts once the folder is synced.
pub(super) fn put_in_place(folder: &Path) -> Result<()> {
    let place = folder.join(MANIFEST_FILE);
    fs::rename(folder.join(MANIFEST_TEMPORARY), &place).map_err(at(&place))
}

/// Whether there is an index of any version.
pub(super) fn is_index(folder: &Path) -> bool {
    let file = folder.join(MANIFEST_FILE);
    let small = fs::metadata(&file).is_ok_and(|metadata| metadata.len() <= MOST_MANIFEST_BYTES);
    let header = || serde_json::from_slice::<ManifestHeader>(&fs::read(&file).ok()?).ok();
    small && header().is_some_and(|header| header.format == FORMAT)
}

pub(super) fn hexadecimal(crc: u32) -> String {
    format!("{crc:08x}")
}

/// Whether a manifest's file name stays inside its folder on every system.
pub(super) fn is_plain(name: &str) -> bool {
    !name.contains(['\\', ':', '\0']) && name.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

pub(super) fn damaged(file: &Path, expected: impl ToString, got: impl ToString) -> Error {
    Error::Damaged { file: file.to_path_buf(), expected: expected.to_string(), got: got.to_string() }
}

pub(super) fn entry_of(file: &Path) -> Result<FileEntry> {
    let (bytes, crc) = checksum_file(file)?;
    Ok(FileEntry { bytes, crc32: hexadecimal(crc), path: None })
}

/// Refuses a file that is missing or of another length.
pub(super) fn check_length(file: &Path, entry: &FileEntry) -> Result<()> {
    let expected = || format!("{} bytes", entry.bytes);
    let length = match fs::metadata(file) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(damaged(file, expected(), "no file"));
        }
        other => other.map_err(at(file))?.len(),
    };
    if length == entry.bytes { Ok(()) } else { Err(damaged(file, expected(), length)) }
}

pub(super) fn check_crc(file: &Path, entry: &FileEntry, found: u32) -> Result<()> {
    let found = hexadecimal(found);
    if found == entry.crc32 { Ok(()) } else { Err(damaged(file, format!("CRC-32 {}", entry.crc32), found)) }
}

/// Records every file below `folder` and brings it to the disk; `own` names are refused.
pub(super) fn list_files(
    root: &Path,
    folder: &Path,
    own: &dyn Fn(&str) -> Own,
    files: &mut BTreeMap<String, FileEntry>,
) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(at(folder))? {
        let file = entry.map_err(at(folder))?.path();
        let name = inner_name(root, &file)?;
        let kind = fs::symlink_metadata(&file).map_err(at(&file))?.file_type();
        match own(&name) {
            Own::Refused => {
                return Err(Error::ExtraFile { file, reason: "the index writes a file of this name itself" });
            }
            Own::LeftOut => {}
            Own::No if kind.is_dir() => list_files(root, &file, own, files)?,
            Own::No if !kind.is_file() => {
                return Err(Error::ExtraFile {
                    file,
                    reason: "a link or special file can't be part of an index",
                });
            }
            Own::No => {
                // Windows syncs only what may be written.
                let mut options = fs::File::options();
                let opened = options.read(true).write(cfg!(windows)).open(&file);
                opened.and_then(|handle| handle.sync_all()).map_err(at(&file))?;
                files.insert(name, entry_of(&file)?);
            }
        }
    }
    sync_folder(folder)
}

/// Whether a staged file is one that the index itself would write.
pub(super) enum Own {
    No,
    LeftOut,
    Refused,
}

/// A staged file's name inside the index, `/` between parts.
fn inner_name(root: &Path, file: &Path) -> Result<String> {
    let refused =
        || Error::ExtraFile { file: file.to_path_buf(), reason: "a file name in an index is plain UTF-8" };
    let inner = file.strip_prefix(root).map_err(|_| refused())?;
    let parts: Option<Vec<&str>> = inner.components().map(|part| part.as_os_str().to_str()).collect();
    let name = parts.ok_or_else(refused)?.join("/");
    if is_plain(&name) { Ok(name) } else { Err(refused()) }
}

/// `folder/name` for a name with `/` between parts.
pub(super) fn inside(folder: &Path, name: &str) -> PathBuf {
    name.split('/').fold(folder.to_path_buf(), |place, part| place.join(part))
}
