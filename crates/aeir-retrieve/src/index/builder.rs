//! A whole new index, beside its place until it is complete.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use super::manifest::{
    FORMAT, FileEntry, MANIFEST_FILE, MANIFEST_TEMPORARY, Manifest, Own, VERSION, list_files, put_in_place,
};
use super::measured_graph::add_graph;
use super::place::{LOCK_FILE, clear_leftovers, has_writer, lock_folder, parent_of, refuse_foreign, sibling};
use super::segment::{check_content, write_segment};
use super::{IndexContent, created_by, is_own, segment_name};
use crate::files::{at, exchange, sync_folder};
use crate::{Error, Result, Storage};

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
/// builder.commit(IndexContent::new(&embeddings, &items, "clip@1"))?;
///
/// let index = Index::open(&folder)?;
/// assert_eq!(index.search(&[0.1, 0.9], 1)?[0].item, "dog.jpg");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct IndexBuilder {
    folder: PathBuf,
    staging: PathBuf,
    storage: Storage,
    approximate: bool,
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
        let mut builder = Self {
            folder,
            staging,
            storage: Storage::default(),
            approximate: false,
            lock: None,
            committed: false,
        };
        let lock_file = builder.staging.join(LOCK_FILE);
        let lock = File::create(&lock_file).map_err(at(&lock_file))?;
        lock.lock().map_err(at(&lock_file))?;
        builder.lock = Some(lock);
        drop(guard);
        Ok(builder)
    }

    /// How vectors are kept; [`Storage::F32`] if nothing is said.
    #[must_use]
    pub fn with_storage(mut self, storage: Storage) -> Self {
        self.storage = storage;
        self
    }

    /// Whether a graph for approximate search is built, here and by [`IndexWriter::compact`](super::IndexWriter::compact).
    #[must_use]
    pub fn with_graph(mut self, approximate: bool) -> Self {
        self.approximate = approximate;
        self
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
    /// [`Error::Shape`], [`Error::Empty`], [`Error::NotFinite`], [`Error::NotNormalised`], [`Error::DuplicateItem`] where the content
    /// does not fit together; [`Error::Setting`] where 8-bit codes or a graph are wanted of more than 65,536 dimensions;
    /// [`Error::ExtraFile`] where a staged file has the name of one of the index's own or is a link;
    /// [`Error::WouldOverwrite`] where something else was put in the place meanwhile; [`Error::Locked`] where somebody is adding to
    /// the index that is to be replaced; [`Error::Io`].
    pub fn commit(mut self, content: IndexContent<'_>) -> Result<()> {
        check_content(&content)?;
        let mut files = BTreeMap::new();
        let own = |name: &str| match name {
            LOCK_FILE => Own::LeftOut,
            MANIFEST_FILE | MANIFEST_TEMPORARY => Own::Refused,
            name if is_own(name) => Own::Refused,
            _ => Own::No,
        };
        list_files(&self.staging, &self.staging, &own, &mut files)?;
        self.write(&content, files)?;
        self.publish()?;
        self.committed = true;
        Ok(())
    }

    fn write(&self, content: &IndexContent<'_>, mut files: BTreeMap<String, FileEntry>) -> Result<()> {
        let (mut segment, written) = write_segment(&self.staging, &segment_name(1), self.storage, content)?;
        files.extend(written);
        if self.approximate {
            add_graph(&self.staging, self.storage, &mut segment, &mut files, content.embeddings)?;
        }
        let manifest = Manifest {
            format: FORMAT.to_string(),
            version: VERSION,
            generation: 1,
            created_by: created_by(),
            model_fingerprint: content.model_fingerprint.to_string(),
            dimension: content.embeddings.columns(),
            storage: self.storage,
            approximate: self.approximate,
            next_segment: 2,
            segments: vec![segment],
            files,
            checksum: String::new(),
        };
        manifest.write(&self.staging)?;
        put_in_place(&self.staging)?;
        sync_folder(&self.staging)
    }

    fn publish(&mut self) -> Result<()> {
        let parent = parent_of(&self.folder)?;
        let guard = lock_folder(&parent)?;
        refuse_foreign(&self.folder)?;
        if has_writer(&self.folder) {
            return Err(Error::Locked { folder: self.folder.clone() });
        }
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
