//! Changes to an index that is in use: items added, replaced and deleted, in whole generations.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::manifest::{
    FileEntry, GENERATION_PREFIX, MANIFEST_TEMPORARY, Manifest, Own, SEGMENT_PREFIX, SegmentEntry, inside,
    list_files, put_in_place,
};
use super::measured_graph::add_graph;
use super::place::{lock_folder, lock_index, parent_of};
use super::segment::{Segment, check_content, write_segment, write_tombstones};
use super::{Index, IndexContent, Metadata, Part, created_by, is_own, live_rows, segment_name};
use crate::bits::Bits;
use crate::files::{at, sync_folder};
use crate::{CONFIDENCE_FILE, CORRECTION_FILE, Error, Matrix, PENALTIES_FILE, Result};

/// The steps of a commit, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommitStage {
    /// The rows that were added are on the disk; nothing refers to them.
    SegmentsWritten,
    /// So is which rows are deleted, and what was staged.
    FilesWritten,
    /// The new manifest is on the disk under a temporary name.
    ManifestWritten,
    /// It has taken the old one's place: the generation is committed.
    Committed,
    /// What only older generations needed is gone.
    Cleared,
}

/// Adds, replaces and deletes items of an index without building it anew.
///
/// What is added lies in a new segment, what is deleted is marked; nothing that was committed is written into. Readers see none
/// of it before [`IndexWriter::commit`] and go on with the generation that they opened; [`Index::reload`] takes them to the new
/// one. A writer that is killed leaves the index as it was committed last, and files that nothing refers to; the next writer
/// removes them. There is one writer at a time.
///
/// Files of older generations are removed as soon as a commit has made them superfluous. On Unix an open index keeps what it
/// has mapped; where a system refuses to remove a file that is open, it stays until a later writer can.
///
/// # Example
/// ```
/// use aeir_retrieve::{Index, IndexContent, IndexWriter, Matrix};
/// # let place = tempfile::tempdir().unwrap();
/// # let folder = place.path().join("photos.index");
/// let names = |names: &[&str]| names.iter().map(|name| name.to_string()).collect::<Vec<_>>();
/// let both = Matrix::from_rows(&[[1.0, 0.0], [0.0, 1.0]])?;
/// Index::create(&folder, IndexContent::new(&both, &names(&["cat.jpg", "dog.jpg"]), "clip@1"))?;
/// let mut index = Index::open(&folder)?;
///
/// let mut writer = IndexWriter::open(&folder)?;
/// let added = Matrix::from_rows(&[[0.6, 0.8], [0.8, 0.6]])?;
/// writer.add(IndexContent::new(&added, &names(&["fox.jpg", "dog.jpg"]), "clip@1"))?; // replaces dog.jpg
/// writer.remove(&names(&["cat.jpg"]))?;
/// writer.commit()?;
///
/// assert_eq!(index.len(), 2); // still what was opened
/// assert!(index.reload()?);
/// assert_eq!(index.items().collect::<Vec<_>>(), ["fox.jpg", "dog.jpg"]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct IndexWriter {
    folder: PathBuf,
    /// Held while this writer lives.
    _lock: File,
    /// The generation that was committed when this writer began.
    index: Index,
    /// The generation that is committed.
    committed: Manifest,
    /// The one that is prepared: its segments, with what will be deleted of them.
    parts: Vec<(SegmentEntry, Part)>,
    /// Segments whose tombstones changed.
    changed: HashSet<String>,
    files: BTreeMap<String, FileEntry>,
    next_segment: u64,
    /// Where each item is: segment and row.
    places: HashMap<String, (usize, usize)>,
    staging: Option<PathBuf>,
    /// Whether what is committed is known to be on the disk.
    lasting: bool,
    stage: Option<Box<dyn FnMut(CommitStage)>>,
}

impl std::fmt::Debug for IndexWriter {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("IndexWriter").field("folder", &self.folder).finish_non_exhaustive()
    }
}

impl IndexWriter {
    /// Becomes the writer of an index and clears what killed ones left.
    ///
    /// # Errors
    /// As [`Index::open`]; [`Error::Locked`] where there is another writer.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = std::path::absolute(folder.as_ref()).map_err(at(folder.as_ref()))?;
        // Says what is wrong with a folder that is no index before a lock file is put into it.
        Manifest::read(&folder)?;
        let guard = lock_folder(&parent_of(&folder)?)?;
        let lock = lock_index(&folder)?;
        drop(guard);
        let index = Index::open(&folder)?;
        let committed = index.manifest().clone();
        clear_unreferenced(&folder, &committed)?;
        let parts: Vec<(SegmentEntry, Part)> =
            committed.segments.iter().cloned().zip(index.parts().iter().cloned()).collect();
        let mut places = HashMap::with_capacity(index.len());
        for (segment, (_, part)) in parts.iter().enumerate() {
            for row in live_rows(part) {
                places.insert(part.segment.name(row).unwrap_or_default().to_string(), (segment, row));
            }
        }
        Ok(Self {
            files: committed.files.clone(),
            next_segment: committed.next_segment,
            folder,
            _lock: lock,
            index,
            committed,
            parts,
            changed: HashSet::new(),
            places,
            staging: None,
            lasting: true,
            stage: None,
        })
    }

    /// The index as it was when this writer began: opened and verified once for both.
    #[must_use]
    pub fn opened(&self) -> &Index {
        &self.index
    }

    /// Is told of each stage of a commit as it is reached: for progress, and to see what an interruption leaves.
    #[must_use]
    pub fn with_stages(mut self, told: impl FnMut(CommitStage) + 'static) -> Self {
        self.stage = Some(Box::new(told));
        self
    }

    /// How many items there will be.
    #[must_use]
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether there will be none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Whether there is, or will be, an item of this name.
    #[must_use]
    pub fn contains(&self, item: &str) -> bool {
        self.places.contains_key(item)
    }

    /// Adds items; one whose name is in the index takes the other's place. Returns how many were replaced.
    ///
    /// # Errors
    /// As [`IndexBuilder::commit`](super::IndexBuilder::commit) for the content; [`Error::ModelMismatch`] where it is of another
    /// model, [`Error::Shape`] where its dimension differs; [`Error::Io`].
    pub fn add(&mut self, content: IndexContent<'_>) -> Result<usize> {
        if content.model_fingerprint != self.committed.model_fingerprint {
            return Err(Error::ModelMismatch {
                folder: self.folder.clone(),
                expected: self.committed.model_fingerprint.clone(),
                got: content.model_fingerprint.to_string(),
            });
        }
        if content.embeddings.columns() != self.committed.dimension {
            return Err(Error::Shape {
                what: "dimension of embeddings to add",
                expected: self.committed.dimension,
                got: content.embeddings.columns(),
            });
        }
        check_content(&content)?;
        let segment = self.write_segment(&content, false)?;
        let mut replaced = 0;
        for (row, item) in content.items.iter().enumerate() {
            replaced += usize::from(self.delete(item));
            self.places.insert(item.clone(), (segment, row));
        }
        Ok(replaced)
    }

    /// Deletes items by name. All or none of them.
    ///
    /// # Errors
    /// [`Error::UnknownItem`] with the first that is not in the index.
    pub fn remove(&mut self, items: &[String]) -> Result<()> {
        if let Some(unknown) = items.iter().find(|item| !self.contains(item)) {
            return Err(Error::UnknownItem { folder: self.folder.clone(), item: unknown.clone() });
        }
        for item in items {
            self.delete(item);
        }
        Ok(())
    }

    /// All vectors, as exactly as they are kept, in the order of positions in the generation to come; with their names and metadata.
    ///
    /// # Errors
    /// [`Error::Shape`] where a segment does not hold its rows.
    pub fn content(&self) -> Result<(Matrix, Vec<String>, Vec<Metadata>)> {
        let (mut values, mut names, mut metadata) = (Vec::new(), Vec::new(), Vec::new());
        for (_, part) in &self.parts {
            for row in live_rows(part) {
                values.extend(part.segment.vector(row).unwrap_or_default());
                names.push(part.segment.name(row).unwrap_or_default().to_string());
                metadata.push(part.segment.metadata(row).unwrap_or_default());
            }
        }
        if metadata.iter().all(Metadata::is_empty) {
            metadata.clear();
        }
        Ok((Matrix::new(values, names.len(), self.committed.dimension)?, names, metadata))
    }

    /// Writes all items into one segment, without what was deleted, and builds its graph if the index has them. Vectors are held
    /// in memory meanwhile.
    ///
    /// # Errors
    /// As [`IndexWriter::add`]; what was prepared stays as it was.
    pub fn compact(&mut self) -> Result<()> {
        let (embeddings, items, metadata) = self.content()?;
        let old = self.parts.len();
        if !items.is_empty() {
            let fingerprint = self.committed.model_fingerprint.clone();
            let content = IndexContent {
                embeddings: &embeddings,
                items: &items,
                metadata: &metadata,
                model_fingerprint: &fingerprint,
            };
            // The old segments stay until the new one is there: a full disk takes nothing away.
            self.write_segment(&content, self.committed.approximate)?;
        }
        for place in 0..old {
            self.forget_segment(place);
        }
        self.parts.drain(..old);
        self.changed.clear();
        self.places = items.into_iter().enumerate().map(|(row, item)| (item, (0, row))).collect();
        Ok(())
    }

    /// Whether segments get a graph for approximate search when they are written whole: by [`IndexWriter::compact`], from now on.
    pub fn set_approximate(&mut self, approximate: bool) {
        self.committed.approximate = approximate;
    }

    /// A folder whose files become part of the index with the next commit, in the place of files of the same name.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn staging(&mut self) -> Result<&Path> {
        let place = self.folder.join(format!("{GENERATION_PREFIX}{:06}", self.committed.generation + 1));
        if self.staging.is_none() {
            fs::create_dir_all(&place).map_err(at(&place))?;
        }
        Ok(self.staging.insert(place))
    }

    /// Makes everything since the last commit visible, in one step, and returns the new generation's number. The writer can go on.
    ///
    /// What was worked out from all items, the correction and the confidence, falls away where items changed, unless it was staged
    /// anew. Without changes there is no new generation.
    ///
    /// # Errors
    /// [`Error::ExtraFile`] where a staged file has the name of one of the index's own; [`Error::Io`]. After an error the index is as
    /// it was committed last, or, where only the last sync failed, the new generation with the old one's files beside it.
    pub fn commit(&mut self) -> Result<u64> {
        let items_changed = !self.changed.is_empty()
            || self.parts.iter().map(|(entry, _)| &entry.name).ne(self
                .committed
                .segments
                .iter()
                .map(|s| &s.name));
        if !items_changed && self.staging.is_none() {
            return Ok(self.committed.generation);
        }
        self.told(CommitStage::SegmentsWritten);
        let generation = self.committed.generation + 1;
        let mut files = self.files.clone();
        if items_changed {
            for stale in [CORRECTION_FILE, PENALTIES_FILE, CONFIDENCE_FILE] {
                files.remove(stale);
            }
        }
        self.write_tombstones(generation, &mut files)?;
        self.list_staged(&mut files)?;
        sync_folder(&self.folder)?;
        self.told(CommitStage::FilesWritten);
        let manifest = Manifest {
            generation,
            created_by: created_by(),
            next_segment: self.next_segment,
            segments: self.parts.iter().map(|(entry, _)| entry.clone()).collect(),
            files: files.clone(),
            ..self.committed.clone()
        };
        let manifest = manifest.write(&self.folder)?;
        self.told(CommitStage::ManifestWritten);
        put_in_place(&self.folder)?;
        let old = std::mem::replace(&mut self.committed, manifest);
        (self.files, self.staging) = (files, None);
        self.changed.clear();
        // Until the folder is on the disk, a power loss may bring the old generation back: its files stay.
        self.lasting = false;
        sync_folder(&self.folder)?;
        self.lasting = true;
        self.told(CommitStage::Committed);
        // The new generation is in place: a file that won't go is cleared by a later writer, or does no harm.
        for place in places(&self.folder, &old).difference(&places(&self.folder, &self.committed)) {
            let _ = fs::remove_file(place);
        }
        let _ = clear_unreferenced(&self.folder, &self.committed);
        self.told(CommitStage::Cleared);
        Ok(generation)
    }

    fn told(&mut self, stage: CommitStage) {
        if let Some(told) = &mut self.stage {
            told(stage);
        }
    }

    fn write_segment(&mut self, content: &IndexContent<'_>, graph: bool) -> Result<usize> {
        let name = segment_name(self.next_segment);
        self.next_segment += 1;
        let (mut entry, mut written) = write_segment(&self.folder, &name, self.committed.storage, content)?;
        if graph {
            add_graph(&self.folder, self.committed.storage, &mut entry, &mut written, content.embeddings)?;
        }
        written.extend(self.files.clone());
        let manifest = Manifest { files: written, ..self.committed.clone() };
        let segment = Arc::new(Segment::open(&self.folder, &manifest, &entry)?);
        self.files = manifest.files;
        let deleted = Arc::new(Bits::none(entry.rows));
        self.parts.push((entry, Part { segment, deleted }));
        Ok(self.parts.len() - 1)
    }

    /// Marks an item deleted; false where there is none of this name.
    fn delete(&mut self, item: &str) -> bool {
        let Some((segment, row)) = self.places.remove(item) else { return false };
        if let Some((entry, part)) = self.parts.get_mut(segment) {
            Arc::make_mut(&mut part.deleted).insert(row);
            entry.deleted += 1;
            self.changed.insert(entry.name.clone());
        }
        true
    }

    fn forget_segment(&mut self, place: usize) {
        if let Some((entry, _)) = self.parts.get(place) {
            let prefix = format!("{}/", entry.name);
            self.files.retain(|file, _| !file.starts_with(&prefix));
        }
    }

    fn write_tombstones(&mut self, generation: u64, files: &mut BTreeMap<String, FileEntry>) -> Result<()> {
        for (entry, part) in self.parts.iter_mut().filter(|(entry, _)| self.changed.contains(&entry.name)) {
            // Not the entry's: that of a commit that failed may be there.
            let old = self.committed.segments.iter().find(|old| old.name == entry.name);
            if let Some(old) = old.and_then(|old| old.tombstones.as_ref()) {
                files.remove(old);
            }
            let name = format!("{}/deleted-{generation:06}.bits", entry.name);
            files.insert(name.clone(), write_tombstones(&self.folder, &name, &part.deleted)?);
            sync_folder(&self.folder.join(&entry.name))?;
            entry.tombstones = Some(name);
        }
        Ok(())
    }

    fn list_staged(&self, files: &mut BTreeMap<String, FileEntry>) -> Result<()> {
        let Some(staging) = &self.staging else { return Ok(()) };
        let own = |name: &str| if is_own(name) { Own::Refused } else { Own::No };
        let mut staged = BTreeMap::new();
        list_files(staging, staging, &own, &mut staged)?;
        let folder = staging.file_name().unwrap_or_default().to_string_lossy();
        for (name, entry) in staged {
            let path = Some(format!("{folder}/{name}"));
            files.insert(name, FileEntry { path, ..entry });
        }
        Ok(())
    }
}

impl Drop for IndexWriter {
    fn drop(&mut self) {
        if self.lasting {
            // Nobody is left to tell; the next writer clears what stays.
            let _ = clear_unreferenced(&self.folder, &self.committed);
        }
    }
}

/// Where the files of a generation lie.
fn places(folder: &Path, manifest: &Manifest) -> HashSet<PathBuf> {
    manifest.files.keys().map(|name| inside(folder, manifest.place(name))).collect()
}

/// Removes segments, tombstones and staged files that a manifest does not name.
fn clear_unreferenced(folder: &Path, manifest: &Manifest) -> Result<()> {
    let kept = places(folder, manifest);
    let temporary = folder.join(MANIFEST_TEMPORARY);
    if temporary.exists() {
        fs::remove_file(&temporary).map_err(at(&temporary))?;
    }
    for entry in fs::read_dir(folder).map_err(at(folder))? {
        let entry = entry.map_err(at(folder))?;
        let (place, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        let ours = name.starts_with(SEGMENT_PREFIX) || name.starts_with(GENERATION_PREFIX);
        // Not what a link leads to: that is somebody else's.
        if ours && entry.file_type().map_err(at(&place))?.is_dir() {
            clear_below(&place, &kept)?;
        }
    }
    Ok(())
}

fn clear_below(folder: &Path, kept: &HashSet<PathBuf>) -> Result<()> {
    let (mut left, gone) = (0, |error: &std::io::Error| error.kind() == std::io::ErrorKind::NotFound);
    for entry in fs::read_dir(folder).map_err(at(folder))? {
        let entry = entry.map_err(at(folder))?;
        let place = entry.path();
        if kept.contains(&place) {
            left += 1;
        } else if entry.file_type().map_err(at(&place))?.is_dir() {
            clear_below(&place, kept)?;
            left += usize::from(place.exists());
        } else if let Err(error) = fs::remove_file(&place)
            && !gone(&error)
        {
            return Err(at(&place)(error));
        }
    }
    if left == 0 {
        fs::remove_dir(folder).map_err(at(folder))?;
    }
    Ok(())
}
