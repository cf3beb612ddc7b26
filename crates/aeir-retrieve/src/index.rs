//! The exact search index: a folder that is either whole or refused.
//!
//! ```text
//! index/
//!   manifest.json    format, version, dimension, items, model fingerprint, length and CRC-32 of every file
//!   embeddings.f32   little-endian f32, [items, dimension], row after row, from byte 0 (memory-mapped: page-aligned)
//!   items.jsonl      one JSON string a line: the path or id of each item
//!   ...              what the writer put beside them (for example model/)
//! ```

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::Mmap;
use serde::{Deserialize, Serialize};

use crate::files::{at, checksum, checksum_file, exchange, sync_folder, write_synced};
use crate::matrix::euclidean_length;
use crate::search::{Gallery, Neighbour};
use crate::{Error, GalleryCorrection, Matrix, Result};

/// The `format` of a manifest.
pub const FORMAT: &str = "aeir-index";
/// The format version this crate reads and writes.
pub const VERSION: u64 = 1;
/// The manifest's file name. Written last: a folder without it is no index.
pub const MANIFEST_FILE: &str = "manifest.json";
/// The embeddings' file name.
pub const EMBEDDINGS_FILE: &str = "embeddings.f32";
/// The item names' file name.
pub const ITEMS_FILE: &str = "items.jsonl";

const LOCK_FILE: &str = ".writer.lock";
const MANIFEST_TEMPORARY: &str = ".manifest.json.new";
/// A row counts as normalised within this distance of length 1.
const LENGTH_TOLERANCE: f64 = 1e-3;
/// A manifest is a few lines a file: more is not one of ours.
const MOST_MANIFEST_BYTES: u64 = 64 << 20;

/// What goes into an index.
#[derive(Clone, Copy, Debug)]
pub struct IndexContent<'a> {
    /// L2-normalised embeddings, `[items, D]`; all-zero rows are allowed.
    pub embeddings: &'a Matrix,
    /// The path or id of each row.
    pub items: &'a [String],
    /// Names the weights, preprocessing and tokenizer that made the embeddings.
    pub model_fingerprint: &'a str,
}

/// One result of a search.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hit {
    /// 1 for the best.
    pub rank: usize,
    /// Dot product with the query (less the penalty in a corrected search); larger is more similar.
    pub score: f32,
    /// The item's row in the index, from 0.
    pub position: usize,
    /// Its path or id.
    pub item: String,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    format: String,
    version: u64,
    created_by: String,
    model_fingerprint: String,
    dimension: usize,
    items: usize,
    /// By path inside the folder, `/` between parts.
    files: BTreeMap<String, FileEntry>,
    /// CRC-32 of this manifest with an empty checksum.
    checksum: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileEntry {
    bytes: u64,
    crc32: String,
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
        let blank = Manifest { checksum: String::new(), files: self.files.clone(), ..self.shallow() };
        Ok(hexadecimal(checksum(&blank.to_bytes(file)?)))
    }

    fn shallow(&self) -> Manifest {
        Manifest {
            format: self.format.clone(),
            version: self.version,
            created_by: self.created_by.clone(),
            model_fingerprint: self.model_fingerprint.clone(),
            dimension: self.dimension,
            items: self.items,
            files: BTreeMap::new(),
            checksum: String::new(),
        }
    }
}

fn hexadecimal(crc: u32) -> String {
    format!("{crc:08x}")
}

/// Builds an index beside its final place and moves it there when it is complete.
///
/// Nothing is visible under the folder's name before [`IndexBuilder::commit`]; dropping the builder removes what
/// was staged. Staging folders of killed writers are removed by the next one.
///
/// # Example
/// ```
/// use aeir_retrieve::{Index, IndexBuilder, IndexContent, Matrix};
/// # let place = tempfile::tempdir().unwrap();
/// # let folder = place.path().join("photos.index");
/// let builder = IndexBuilder::begin(&folder)?;
/// std::fs::write(builder.staging().join("notes.txt"), "any file that should travel along")?;
/// let embeddings = Matrix::from_rows(&[[1.0, 0.0], [0.0, 1.0]])?;
/// let items = ["cat.jpg".to_string(), "dog.jpg".to_string()];
/// builder.commit(IndexContent { embeddings: &embeddings, items: &items, model_fingerprint: "clip@1" })?;
///
/// let index = Index::open(&folder)?;
/// assert_eq!(index.search(&[0.1, 0.9], 1)?[0].item, "dog.jpg");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct IndexBuilder {
    folder: PathBuf,
    staging: PathBuf,
    /// Held while this writer lives, so that no other takes its staging folder for a leftover.
    lock: Option<File>,
    committed: bool,
}

impl IndexBuilder {
    /// Starts an index at `folder`: makes a staging folder beside it and clears leftovers of killed writers.
    ///
    /// # Errors
    /// [`Error::WouldOverwrite`] where `folder` exists and is not an index, [`Error::Io`] from the file system.
    pub fn begin(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = std::path::absolute(folder.as_ref()).map_err(at(folder.as_ref()))?;
        let parent = parent_of(&folder)?;
        fs::create_dir_all(&parent).map_err(at(&parent))?;
        let guard = lock_folder(&parent)?;
        clear_leftovers(&folder, &parent)?;
        refuse_foreign(&folder)?;
        let staging = sibling(&folder, &parent, "staging")?;
        fs::create_dir(&staging).map_err(at(&staging))?;
        let mut builder = Self { folder, staging, lock: None, committed: false };
        let lock_file = builder.staging.join(LOCK_FILE);
        let lock = File::create(&lock_file).map_err(at(&lock_file))?;
        lock.lock().map_err(at(&lock_file))?;
        builder.lock = Some(lock);
        drop(guard);
        Ok(builder)
    }

    /// The folder to put further files in. They become part of the index and are checked when it is opened.
    #[must_use]
    pub fn staging(&self) -> &Path {
        &self.staging
    }

    /// Writes the content, then the manifest, syncs, and moves everything to its place in one rename.
    ///
    /// An index that was there is replaced: on Linux and macOS the two are exchanged in one step; elsewhere, and
    /// on file systems without that, the old one is moved aside first and comes back if the second move fails.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::Empty`], [`Error::NotFinite`], [`Error::NotNormalised`] where the content does not
    /// fit together; [`Error::ExtraFile`] where a staged file has the name of one of the index's own or is a link;
    /// [`Error::WouldOverwrite`] where something else was put in the place meanwhile; [`Error::Io`].
    pub fn commit(mut self, content: IndexContent<'_>) -> Result<()> {
        check_content(&content)?;
        let mut files = BTreeMap::new();
        list_extra_files(&self.staging, &self.staging, &mut files)?;
        write_embeddings(&self.staging.join(EMBEDDINGS_FILE), content.embeddings)?;
        write_items(&self.staging.join(ITEMS_FILE), content.items)?;
        for name in [EMBEDDINGS_FILE, ITEMS_FILE] {
            files.insert(name.to_string(), entry_of(&self.staging.join(name))?);
        }
        self.write_manifest(&content, files)?;
        self.publish()?;
        self.committed = true;
        Ok(())
    }

    fn write_manifest(&self, content: &IndexContent<'_>, files: BTreeMap<String, FileEntry>) -> Result<()> {
        let place = self.staging.join(MANIFEST_FILE);
        let mut manifest = Manifest {
            format: FORMAT.to_string(),
            version: VERSION,
            created_by: concat!("aeir-retrieve ", env!("CARGO_PKG_VERSION")).to_string(),
            model_fingerprint: content.model_fingerprint.to_string(),
            dimension: content.embeddings.columns(),
            items: content.items.len(),
            files,
            checksum: String::new(),
        };
        manifest.checksum = manifest.own_checksum(&place)?;
        let bytes = manifest.to_bytes(&place)?;
        let temporary = self.staging.join(MANIFEST_TEMPORARY);
        write_synced(&temporary, |writer| writer.write_all(&bytes))?;
        fs::rename(&temporary, &place).map_err(at(&place))?;
        sync_folder(&self.staging)
    }

    fn publish(&mut self) -> Result<()> {
        let parent = parent_of(&self.folder)?;
        let guard = lock_folder(&parent)?;
        refuse_foreign(&self.folder)?;
        // The lock is of no more use, and an open file would keep some systems from moving its folder.
        self.lock = None;
        let lock_file = self.staging.join(LOCK_FILE);
        fs::remove_file(&lock_file).map_err(at(&lock_file))?;
        if fs::symlink_metadata(&self.folder).is_ok() {
            let aside = sibling(&self.folder, &parent, "old")?;
            let old = exchange(&self.staging, &self.folder, &aside)?;
            sync_folder(&parent)?;
            // The new index is in place: a file of the old one that won't go is cleared by the next writer.
            let _ = fs::remove_dir_all(old);
        } else {
            fs::rename(&self.staging, &self.folder).map_err(at(&self.folder))?;
            sync_folder(&parent)?;
        }
        drop(guard);
        Ok(())
    }
}

impl Drop for IndexBuilder {
    fn drop(&mut self) {
        if !self.committed {
            // Nobody is left to tell; the next writer clears what stays.
            let _ = fs::remove_dir_all(&self.staging);
        }
    }
}

fn parent_of(folder: &Path) -> Result<PathBuf> {
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
fn sibling(folder: &Path, parent: &Path, kind: &str) -> Result<PathBuf> {
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
fn lock_folder(parent: &Path) -> Result<Option<File>> {
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

/// Removes what killed writers of this folder left, and puts back an index that was aside when one was killed.
fn clear_leftovers(folder: &Path, parent: &Path) -> Result<()> {
    let (staging, old) = (sibling_prefix(folder, "staging"), sibling_prefix(folder, "old"));
    for entry in fs::read_dir(parent).map_err(at(parent))? {
        let place = entry.map_err(at(parent))?.path();
        let name = place.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with(&old) && is_index(&place) && fs::symlink_metadata(folder).is_err() {
            fs::rename(&place, folder).map_err(at(&place))?;
        } else if name.starts_with(&old) || (name.starts_with(&staging) && !is_alive(&place)) {
            match fs::remove_dir_all(&place) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(at(&place)(error)),
                _ => {}
            }
        }
    }
    Ok(())
}

/// Whether the writer of a staging folder still holds its lock.
fn is_alive(staging: &Path) -> bool {
    match File::open(staging.join(LOCK_FILE)).map(|file| file.try_lock()) {
        Ok(Ok(())) | Err(_) => false,
        Ok(Err(TryLockError::WouldBlock)) => true,
        Ok(Err(TryLockError::Error(_))) => false,
    }
}

fn is_index(folder: &Path) -> bool {
    let file = folder.join(MANIFEST_FILE);
    let small = fs::metadata(&file).is_ok_and(|metadata| metadata.len() <= MOST_MANIFEST_BYTES);
    let header = || serde_json::from_slice::<ManifestHeader>(&fs::read(&file).ok()?).ok();
    small && header().is_some_and(|header| header.format == FORMAT)
}

fn refuse_foreign(folder: &Path) -> Result<()> {
    match fs::symlink_metadata(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(at(folder)(error)),
        Ok(metadata) if metadata.is_dir() && is_index(folder) => Ok(()),
        Ok(_) => Err(Error::WouldOverwrite { folder: folder.to_path_buf() }),
    }
}

fn check_content(content: &IndexContent<'_>) -> Result<()> {
    let (rows, columns) = (content.embeddings.rows(), content.embeddings.columns());
    if rows == 0 || columns == 0 {
        return Err(Error::Empty { what: "set of embeddings to index" });
    }
    if content.items.len() != rows {
        return Err(Error::Shape {
            what: "item names, one an embedding",
            expected: rows,
            got: content.items.len(),
        });
    }
    content.embeddings.check_finite("embeddings to index")?;
    for (row, values) in content.embeddings.iter_rows().enumerate() {
        let length = euclidean_length(values);
        if length != 0.0 && (length - 1.0).abs() > LENGTH_TOLERANCE {
            return Err(Error::NotNormalised { what: "embeddings to index", row, got: length });
        }
    }
    Ok(())
}

/// Records every staged file below `folder` and brings it to the disk.
fn list_extra_files(root: &Path, folder: &Path, files: &mut BTreeMap<String, FileEntry>) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(at(folder))? {
        let file = entry.map_err(at(folder))?.path();
        let name = inner_name(root, &file)?;
        let kind = fs::symlink_metadata(&file).map_err(at(&file))?.file_type();
        if kind.is_dir() {
            list_extra_files(root, &file, files)?;
        } else if !kind.is_file() {
            return Err(Error::ExtraFile {
                file,
                reason: "a link or special file can't be part of an index",
            });
        } else if [MANIFEST_FILE, MANIFEST_TEMPORARY, EMBEDDINGS_FILE, ITEMS_FILE].contains(&name.as_str()) {
            return Err(Error::ExtraFile { file, reason: "the index writes a file of this name itself" });
        } else if name != LOCK_FILE {
            File::open(&file).and_then(|handle| handle.sync_all()).map_err(at(&file))?;
            files.insert(name, entry_of(&file)?);
        }
    }
    sync_folder(folder)
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

/// Whether a manifest's file name stays inside its folder on every system.
fn is_plain(name: &str) -> bool {
    !name.contains(['\\', ':', '\0']) && name.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

fn entry_of(file: &Path) -> Result<FileEntry> {
    let (bytes, crc) = checksum_file(file)?;
    Ok(FileEntry { bytes, crc32: hexadecimal(crc) })
}

fn write_embeddings(file: &Path, embeddings: &Matrix) -> Result<()> {
    write_synced(file, |writer| {
        let mut bytes = Vec::new();
        for values in embeddings.values().chunks(1 << 16) {
            bytes.clear();
            bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
            writer.write_all(&bytes)?;
        }
        Ok(())
    })
}

fn write_items(file: &Path, items: &[String]) -> Result<()> {
    write_synced(file, |writer| {
        for item in items {
            serde_json::to_writer(&mut *writer, item)?;
            writer.write_all(b"\n")?;
        }
        Ok(())
    })
}

/// The embeddings of an open index.
#[derive(Debug)]
enum Embeddings {
    Mapped(Mmap),
    /// Where the machine's own numbers are big-endian.
    Decoded(Vec<f32>),
}

impl Embeddings {
    fn values(&self) -> &[f32] {
        match self {
            Self::Mapped(map) => bytemuck::try_cast_slice(map).unwrap_or_default(),
            Self::Decoded(values) => values,
        }
    }
}

/// An open, verified index. Searches need `&self` only and run on the current rayon pool.
///
/// The embeddings are memory-mapped. They were verified when the index was opened; a program that writes into the
/// file afterwards changes what searches see. Replacing the whole folder (as [`IndexBuilder`] does) is safe: an
/// open index keeps the old files.
#[derive(Debug)]
pub struct Index {
    folder: PathBuf,
    manifest: Manifest,
    embeddings: Embeddings,
    items: Vec<String>,
}

impl Index {
    /// Writes an index without further files; see [`IndexBuilder`] for how it comes to its place.
    ///
    /// # Errors
    /// As [`IndexBuilder::begin`] and [`IndexBuilder::commit`].
    pub fn create(folder: impl AsRef<Path>, content: IndexContent<'_>) -> Result<()> {
        IndexBuilder::begin(folder)?.commit(content)
    }

    /// Opens an index and verifies the length and checksum of every file in it.
    ///
    /// # Errors
    /// [`Error::NotAnIndex`] where the manifest is missing or of another format, [`Error::Version`], [`Error::Damaged`]
    /// where a file is not what was written (cut, changed, missing), [`Error::Io`].
    pub fn open(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref().to_path_buf();
        let manifest = read_manifest(&folder)?;
        for (name, entry) in &manifest.files {
            if name != EMBEDDINGS_FILE {
                verify(&folder, name, entry)?;
            }
        }
        let embeddings = open_embeddings(&folder, &manifest)?;
        let items = read_items(&folder, &manifest)?;
        Ok(Self { folder, manifest, embeddings, items })
    }

    /// The folder it was opened from.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The fingerprint of the model that made the embeddings.
    #[must_use]
    pub fn model_fingerprint(&self) -> &str {
        &self.manifest.model_fingerprint
    }

    /// The program and version that wrote it.
    #[must_use]
    pub fn created_by(&self) -> &str {
        &self.manifest.created_by
    }

    /// How many items.
    #[must_use]
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether it has no items; an index always has some.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Dimension D of the embeddings.
    #[must_use]
    pub fn dimension(&self) -> usize {
        self.manifest.dimension
    }

    /// The embedding of item `i`, `[D]`, or `None` past the last.
    #[must_use]
    pub fn embedding(&self, i: usize) -> Option<&[f32]> {
        let dimension = self.dimension();
        let start = i.checked_mul(dimension)?;
        self.embeddings.values().get(start..start.checked_add(dimension)?)
    }

    /// All embeddings, `[items, D]`, row after row.
    #[must_use]
    pub fn embeddings(&self) -> &[f32] {
        self.embeddings.values()
    }

    /// The path or id of item `i`, or `None` past the last.
    #[must_use]
    pub fn item(&self, i: usize) -> Option<&str> {
        self.items.get(i).map(String::as_str)
    }

    /// All paths or ids, in order.
    #[must_use]
    pub fn items(&self) -> &[String] {
        &self.items
    }

    /// The names of all files of the index but the manifest, `/` between parts.
    pub fn files(&self) -> impl Iterator<Item = &str> {
        self.manifest.files.keys().map(String::as_str)
    }

    /// The bytes of one of its files, checked once more: what is parsed is what was written with the index. None where the manifest
    /// does not list it, whatever lies in the folder.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Damaged`] where the file has changed since the index was opened.
    pub fn read_file(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let Some(entry) = self.manifest.files.get(name) else { return Ok(None) };
        let file = self.folder.join(name);
        let bytes = fs::read(&file).map_err(at(&file))?;
        check_crc(&file, entry, &hexadecimal(checksum(&bytes)))?;
        Ok(Some(bytes))
    }

    /// Refuses a model other than the one that made the embeddings.
    ///
    /// # Errors
    /// [`Error::ModelMismatch`]; its message says how to go on.
    pub fn check_model(&self, fingerprint: &str) -> Result<()> {
        if fingerprint == self.model_fingerprint() {
            return Ok(());
        }
        Err(Error::ModelMismatch {
            folder: self.folder.clone(),
            expected: self.model_fingerprint().to_string(),
            got: fingerprint.to_string(),
        })
    }

    /// The `k` items most similar to a query embedding `[D]`, best first, ties by lower position; all items where
    /// `k` is more. The query need not be normalised: its length scales the scores.
    ///
    /// # Errors
    /// [`Error::Setting`] where `k` is 0 (or the query is so long that scores leave `f32`), [`Error::Shape`] where
    /// the dimension differs, [`Error::NotFinite`] on NaN or infinity.
    pub fn search(&self, query: &[f32], k: usize) -> Result<Vec<Hit>> {
        Ok(self.search_batch(&one_row(query)?, k)?.pop().unwrap_or_default())
    }

    /// [`Index::search`] of many queries `[Q, D]` at once, much faster than one by one and with the same results.
    ///
    /// # Errors
    /// As [`Index::search`].
    pub fn search_batch(&self, queries: &Matrix, k: usize) -> Result<Vec<Vec<Hit>>> {
        Ok(self.hits(self.gallery(None).search(queries, k)?))
    }

    /// [`Index::search`] by `dot product - penalty`: hubness-corrected search at no cost to the query.
    ///
    /// With half of [`mean_top_k_similarity`](crate::mean_top_k_similarity)`(index embeddings, bank, 10)` as
    /// penalties it ranks as CSLS with that bank does, for queries of length 1.
    ///
    /// # Errors
    /// As [`Index::search`]; [`Error::Shape`] where there is not one penalty an item.
    pub fn search_corrected(&self, query: &[f32], k: usize, penalties: &[f32]) -> Result<Vec<Hit>> {
        if penalties.len() != self.len() {
            return Err(Error::Shape {
                what: "penalties, one an item",
                expected: self.len(),
                got: penalties.len(),
            });
        }
        if let Some(row) = penalties.iter().position(|penalty| !penalty.is_finite()) {
            let got = penalties.get(row).copied().unwrap_or(f32::NAN);
            return Err(Error::NotFinite { what: "penalties", row, column: 0, got });
        }
        let found = self.gallery(Some(penalties)).search(&one_row(query)?, k)?;
        Ok(self.hits(found).pop().unwrap_or_default())
    }

    /// [`Index::search`] by corrected scores; by plain ones where the correction leaves this query alone.
    ///
    /// # Errors
    /// As [`Index::search_corrected`].
    pub fn search_with(&self, query: &[f32], k: usize, correction: &GalleryCorrection) -> Result<Vec<Hit>> {
        if correction.is_dynamic() {
            let plain = self.search(query, k)?;
            if !plain.first().is_some_and(|best| correction.applies(best.position)) {
                return Ok(plain);
            }
        }
        self.search_corrected(query, k, correction.penalties())
    }

    fn gallery<'a>(&'a self, penalties: Option<&'a [f32]>) -> Gallery<'a> {
        Gallery {
            values: self.embeddings.values(),
            rows: self.len(),
            dimension: self.dimension(),
            longest: 1.0 + LENGTH_TOLERANCE,
            penalties,
        }
    }

    fn hits(&self, found: Vec<Vec<Neighbour>>) -> Vec<Vec<Hit>> {
        let hit = |(rank, neighbour): (usize, Neighbour)| Hit {
            rank,
            score: neighbour.score,
            position: neighbour.position,
            item: self.item(neighbour.position).unwrap_or_default().to_string(),
        };
        found.into_iter().map(|query| (1..).zip(query).map(hit).collect()).collect()
    }
}

fn one_row(query: &[f32]) -> Result<Matrix> {
    Matrix::new(query.to_vec(), 1, query.len())
}

fn read_manifest(folder: &Path) -> Result<Manifest> {
    let file = folder.join(MANIFEST_FILE);
    let not_an_index = |reason: String| Error::NotAnIndex { folder: folder.to_path_buf(), reason };
    let bytes = match fs::metadata(&file) {
        Ok(metadata) if metadata.len() > MOST_MANIFEST_BYTES => {
            return Err(not_an_index(format!(
                "expected at most {MOST_MANIFEST_BYTES} bytes in `{MANIFEST_FILE}`, got {}",
                metadata.len()
            )));
        }
        Ok(_) => fs::read(&file).map_err(at(&file))?,
        Err(error)
            if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) =>
        {
            return Err(not_an_index(match fs::metadata(folder) {
                Ok(metadata) if !metadata.is_dir() => "expected a folder, got a file".to_string(),
                Ok(_) => format!("no `{MANIFEST_FILE}` in it: not an index, or not finished"),
                Err(_) => "no such folder".to_string(),
            }));
        }
        Err(error) => return Err(at(&file)(error)),
    };
    let unreadable = |error: serde_json::Error| not_an_index(format!("`{MANIFEST_FILE}`: {error}"));
    let header: ManifestHeader = serde_json::from_slice(&bytes).map_err(unreadable)?;
    if header.format != FORMAT {
        return Err(not_an_index(format!("expected format `{FORMAT}`, got `{}`", header.format)));
    }
    if header.version != VERSION {
        return Err(Error::Version { file, expected: VERSION, got: header.version });
    }
    let manifest: Manifest = serde_json::from_slice(&bytes).map_err(unreadable)?;
    let computed = manifest.own_checksum(&file)?;
    if manifest.checksum != computed || manifest.to_bytes(&file)? != bytes {
        return Err(damaged(&file, format!("checksum {}", manifest.checksum), computed));
    }
    for name in manifest.files.keys() {
        if !is_plain(name) {
            return Err(Error::ExtraFile { file: folder.join(name), reason: "its name leaves the index" });
        }
    }
    Ok(manifest)
}

fn damaged(file: &Path, expected: String, got: impl ToString) -> Error {
    Error::Damaged { file: file.to_path_buf(), expected, got: got.to_string() }
}

/// The manifest's entry of one of the index's own files.
fn entry<'m>(folder: &Path, manifest: &'m Manifest, name: &'static str) -> Result<&'m FileEntry> {
    manifest
        .files
        .get(name)
        .ok_or_else(|| damaged(&folder.join(MANIFEST_FILE), format!("`{name}` among its files"), "none"))
}

fn check_length(file: &Path, entry: &FileEntry) -> Result<()> {
    let expected = || format!("{} bytes", entry.bytes);
    let length = match fs::metadata(file) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(damaged(file, expected(), "no file"));
        }
        other => other.map_err(at(file))?.len(),
    };
    if length == entry.bytes { Ok(()) } else { Err(damaged(file, expected(), length)) }
}

fn verify(folder: &Path, name: &str, entry: &FileEntry) -> Result<()> {
    let file = folder.join(name);
    check_length(&file, entry)?;
    let found = entry_of(&file)?;
    check_crc(&file, entry, &found.crc32)
}

fn check_crc(file: &Path, entry: &FileEntry, found: &str) -> Result<()> {
    if found == entry.crc32 { Ok(()) } else { Err(damaged(file, format!("CRC-32 {}", entry.crc32), found)) }
}

fn open_embeddings(folder: &Path, manifest: &Manifest) -> Result<Embeddings> {
    let entry = entry(folder, manifest, EMBEDDINGS_FILE)?;
    let path = folder.join(EMBEDDINGS_FILE);
    check_length(&path, entry)?;
    let bytes = (manifest.items as u128) * (manifest.dimension as u128) * 4;
    if bytes != u128::from(entry.bytes) || bytes == 0 {
        return Err(damaged(&path, format!("{bytes} bytes for all items and dimensions"), entry.bytes));
    }
    let file = File::open(&path).map_err(at(&path))?;
    // SAFETY: mapped read-only; the type's documentation says what a later writer into the file would do.
    let map = unsafe { Mmap::map(&file) }.map_err(at(&path))?;
    check_crc(&path, entry, &hexadecimal(checksum(&map)))?;
    if cfg!(target_endian = "big") {
        let decode = |bytes: &[u8]| bytes.try_into().map(f32::from_le_bytes).unwrap_or(f32::NAN);
        return Ok(Embeddings::Decoded(map.chunks_exact(4).map(decode).collect()));
    }
    let count = bytemuck::try_cast_slice::<u8, f32>(&map).map_or(0, <[f32]>::len);
    if count as u128 * 4 != bytes {
        return Err(damaged(&path, format!("{bytes} mapped bytes"), map.len()));
    }
    Ok(Embeddings::Mapped(map))
}

fn read_items(folder: &Path, manifest: &Manifest) -> Result<Vec<String>> {
    let entry = entry(folder, manifest, ITEMS_FILE)?;
    let file = folder.join(ITEMS_FILE);
    let bytes = fs::read(&file).map_err(at(&file))?;
    // What is parsed is what is verified, even if the file changed since the check of the folder.
    check_crc(&file, entry, &hexadecimal(checksum(&bytes)))?;
    let items: Vec<String> = (bytes.split_inclusive(|byte| *byte == b'\n'))
        .map(serde_json::from_slice)
        .collect::<std::result::Result<_, _>>()
        .map_err(|error| damaged(&file, "a JSON string a line".to_string(), error))?;
    if items.len() != manifest.items {
        return Err(damaged(&file, format!("{} lines", manifest.items), items.len()));
    }
    Ok(items)
}
