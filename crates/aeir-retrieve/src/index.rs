//! The search index: a folder that is either whole or refused, and changes in whole generations.
//!
//! ```text
//! index/
//!   manifest.json          format, version, generation, dimension, storage, model fingerprint, segments, length and CRC-32 of every file
//!   segment-000001/        rows that were added at once; never changed, memory-mapped
//!     vectors.f32          little-endian, [rows, dimension], row after row; or vectors.f16
//!     codes.u8 scales.f32  8-bit codes beside vectors.f16, or beside a graph
//!     items.txt            the path or id of each item, a line end behind each; items.offsets: where each begins, u64
//!     metadata.jsonl       a JSON object or an empty line an item, where any has metadata; metadata.offsets
//!     graph.u32            neighbours for approximate search, where asked for
//!     deleted-000002.bits  the rows that generation 2 deleted, one bit a row
//!   generation-000002/     files that came with generation 2
//!   ...                    what the writer put beside them (for example model/)
//! ```

mod builder;
mod manifest;
mod measured_graph;
mod place;
mod segment;
mod selection;
mod writer;

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

pub use builder::IndexBuilder;
pub use manifest::{FORMAT, MANIFEST_FILE, VERSION};
#[cfg(feature = "milvus")]
pub(crate) use selection::texts_of;
pub use selection::{Filter, Selection};
pub use writer::{CommitStage, IndexWriter};

use crate::bits::{Bits, Positions};
use crate::files::{at, checksum};
#[cfg(any(feature = "cuda", test))]
use crate::search::proposed::{Manner, Proposal, Proposed, Settled};
use crate::search::{Gallery, Neighbour, Run, merged};
use crate::{Error, GalleryCorrection, Matrix, Result, Storage};
use manifest::{Manifest, SEGMENT_PREFIX, SegmentEntry, check_crc, inside};
use segment::{LONGEST, Segment, read_tombstones, verified_map};

/// A JSON object that is kept with an item.
pub type Metadata = serde_json::Map<String, serde_json::Value>;

/// What goes into an index.
#[derive(Clone, Copy, Debug)]
pub struct IndexContent<'a> {
    /// L2-normalised embeddings, `[items, D]`; all-zero rows are allowed.
    pub embeddings: &'a Matrix,
    /// The path or id of each row: different ones.
    pub items: &'a [String],
    /// What is kept with each row; nothing at all, or one object a row, which may be empty.
    pub metadata: &'a [Metadata],
    /// Names the weights, preprocessing and tokenizer that made the embeddings.
    pub model_fingerprint: &'a str,
}

impl<'a> IndexContent<'a> {
    /// Items without metadata.
    #[must_use]
    pub fn new(embeddings: &'a Matrix, items: &'a [String], model_fingerprint: &'a str) -> Self {
        Self { embeddings, items, metadata: &[], model_fingerprint }
    }
}

/// One result of a search.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hit {
    /// 1 for the best.
    pub rank: usize,
    /// Dot product with the query (less the penalty in a corrected search); larger is more similar.
    pub score: f32,
    /// The item's position in this generation of the index, from 0.
    pub position: usize,
    /// Its path or id.
    pub item: String,
}

/// A graph for approximate search, as it was measured when it was built.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GraphReport {
    /// Neighbours an item has at most.
    pub neighbours: usize,
    /// Candidates that a search keeps: more find more and take longer.
    pub effort: usize,
    /// Share of the ten best that such a search finds, over queries like the items.
    pub recall_at_10: f64,
    /// Queries that was measured with.
    pub queries: usize,
}

/// How a search goes about it.
#[derive(Clone, Copy, Debug, Default)]
pub struct SearchOptions<'a> {
    /// Look at every item, even where the index has a graph.
    pub exact: bool,
    /// Candidates that a search of the graph keeps, in place of those its recall was measured with.
    pub effort: Option<usize>,
    /// Find these items alone.
    pub selection: Option<&'a Selection>,
    /// Taken off the items' scores; such a search is exact.
    pub correction: Option<&'a GalleryCorrection>,
}

/// A graph is walked where at least one row in so many may be found, and no more than one in so many has to be.
const LEAST_SHARE: usize = 8;

/// A segment, and which of its rows are deleted.
#[derive(Clone, Debug)]
struct Part {
    segment: Arc<Segment>,
    deleted: Arc<Bits>,
}

fn live_rows(part: &Part) -> impl Iterator<Item = usize> + '_ {
    (0..part.segment.rows()).filter(|row| !part.deleted.contains(*row))
}

fn segment_name(number: u64) -> String {
    format!("{SEGMENT_PREFIX}{number:06}")
}

fn created_by() -> String {
    concat!("aeir-retrieve ", env!("CARGO_PKG_VERSION")).to_string()
}

/// Whether the index itself writes files of this name.
fn is_own(name: &str) -> bool {
    name.starts_with(SEGMENT_PREFIX) || name.starts_with(manifest::GENERATION_PREFIX) || name == MANIFEST_FILE
}

/// An open, verified generation of an index. Searches need `&self` only and run on the current rayon pool.
///
/// Vectors, names and metadata are memory-mapped. They were verified when the index was opened; a program that writes into the
/// files afterwards changes what searches see. [`IndexWriter`] and [`IndexBuilder`] don't: an open index keeps the generation it
/// opened, and [`Index::reload`] takes it to the newest.
///
/// Items are numbered by position, from 0 without gaps, in the order in which they were added. A later generation may number them
/// otherwise: their names stay.
#[derive(Debug)]
pub struct Index {
    folder: PathBuf,
    manifest: Manifest,
    parts: Vec<Part>,
    positions: Positions,
    /// Position by name, when first asked for.
    by_name: OnceLock<HashMap<String, usize>>,
}

impl Index {
    /// Writes an index without further files; see [`IndexBuilder`] for how it comes to its place.
    ///
    /// # Errors
    /// As [`IndexBuilder::begin`] and [`IndexBuilder::commit`].
    pub fn create(folder: impl AsRef<Path>, content: IndexContent<'_>) -> Result<()> {
        IndexBuilder::begin(folder)?.commit(content)
    }

    /// Opens the generation that was committed last and verifies the length and checksum of every file in it.
    ///
    /// # Errors
    /// [`Error::NotAnIndex`] where the manifest is missing or of another format, [`Error::Version`], [`Error::Damaged`]
    /// where a file is not what was written (cut, changed, missing), [`Error::Io`].
    pub fn open(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref();
        Self::open_newest(folder, Manifest::read(folder)?, None)
    }

    /// A newer generation, if one was committed since this one; of what both have nothing is read again.
    ///
    /// # Errors
    /// As [`Index::open`].
    pub fn newer(&self) -> Result<Option<Self>> {
        let manifest = Manifest::read(&self.folder)?;
        if manifest == self.manifest {
            return Ok(None);
        }
        Self::open_newest(&self.folder, manifest, Some(self)).map(Some)
    }

    /// Goes on with a newer generation, if there is one; says whether. After an error the index is the one it was.
    ///
    /// # Errors
    /// As [`Index::open`].
    pub fn reload(&mut self) -> Result<bool> {
        let newer = self.newer()?;
        let changed = newer.is_some();
        if let Some(newer) = newer {
            *self = newer;
        }
        Ok(changed)
    }

    /// Opens a generation; a writer may take its files away meanwhile, and then there is a newer one.
    fn open_newest(folder: &Path, mut manifest: Manifest, older: Option<&Self>) -> Result<Self> {
        loop {
            match Self::open_generation(folder, manifest.clone(), older) {
                Ok(index) => return Ok(index),
                Err(error) => match Manifest::read(folder) {
                    Ok(newest) if newest != manifest => manifest = newest,
                    _ => return Err(error),
                },
            }
        }
    }

    fn open_generation(folder: &Path, manifest: Manifest, older: Option<&Self>) -> Result<Self> {
        let known = |name: &str| {
            older.is_some_and(|older| older.manifest.files.get(name) == manifest.files.get(name))
        };
        let travelling: Vec<&String> =
            manifest.files.keys().filter(|name| !name.starts_with(SEGMENT_PREFIX) && !known(name)).collect();
        travelling.par_iter().try_for_each(|name| verified_map(folder, &manifest, name).map(|_| ()))?;
        let open = |entry: &SegmentEntry| {
            let deleted = Arc::new(read_tombstones(folder, &manifest, entry)?);
            let same = |old: &(&SegmentEntry, &Part)| {
                let prefix = format!("{}/", entry.name);
                let files = manifest.files.keys().filter(|file| file.starts_with(&prefix));
                old.0.name == entry.name
                    && files.filter(|file| Some(*file) != entry.tombstones.as_ref()).all(|file| known(file))
            };
            let shared = older.and_then(|older| older.manifest.segments.iter().zip(&older.parts).find(same));
            let segment = match shared {
                Some((_, part)) => part.segment.clone(),
                None => Arc::new(Segment::open(folder, &manifest, entry)?),
            };
            Ok(Part { segment, deleted })
        };
        let parts: Vec<Part> = manifest.segments.iter().map(open).collect::<Result<_>>()?;
        let mut live = Bits::all(parts.iter().map(|part| part.segment.rows()).sum());
        let mut first = 0;
        for part in &parts {
            live.remove_all(&part.deleted, first);
            first += part.segment.rows();
        }
        let positions = Positions::of(live);
        Ok(Self { folder: folder.to_path_buf(), manifest, parts, positions, by_name: OnceLock::new() })
    }

    fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// The row of a position.
    fn row(&self, position: usize) -> Option<usize> {
        if self.positions.is_whole() {
            return (position < self.len()).then_some(position);
        }
        self.positions.row(position)
    }

    /// The segment a row lies in, and its number there.
    fn part_of(&self, mut row: usize) -> (Option<&Part>, usize) {
        for part in &self.parts {
            if row < part.segment.rows() {
                return (Some(part), row);
            }
            row -= part.segment.rows();
        }
        (None, row)
    }

    /// The folder it was opened from.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The number of this generation: 1 for a new index, one more with each commit.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.manifest.generation
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

    /// How its vectors are kept.
    #[must_use]
    pub fn storage(&self) -> Storage {
        self.manifest.storage
    }

    /// How many items.
    #[must_use]
    pub fn len(&self) -> usize {
        self.positions.count()
    }

    /// Whether all its items were deleted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Deleted items whose rows still lie in the files; [`IndexWriter::compact`] removes them.
    #[must_use]
    pub fn deleted(&self) -> usize {
        self.positions.live().len() - self.len()
    }

    /// How many segments its rows lie in.
    #[must_use]
    pub fn segments(&self) -> usize {
        self.parts.len()
    }

    /// Bytes of all its files but the manifest.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.manifest.files.values().map(|entry| entry.bytes).sum()
    }

    /// The graphs of its segments, each with its rows; items elsewhere are always searched exactly.
    pub fn graphs(&self) -> impl Iterator<Item = (usize, GraphReport)> + '_ {
        self.parts.iter().filter_map(|part| Some((part.segment.rows(), part.segment.graph_report()?)))
    }

    /// Dimension D of the embeddings.
    #[must_use]
    pub fn dimension(&self) -> usize {
        self.manifest.dimension
    }

    /// The embedding of item `i`, `[D]`, as exactly as it is kept; `None` past the last.
    #[must_use]
    pub fn embedding(&self, i: usize) -> Option<Vec<f32>> {
        let (part, row) = self.part_of(self.row(i)?);
        part?.segment.vector(row)
    }

    /// All embeddings, `[items, D]`, copied.
    ///
    /// # Errors
    /// [`Error::Shape`] where a segment does not hold its rows.
    pub fn embeddings(&self) -> Result<Matrix> {
        let mut values = Vec::with_capacity(self.len() * self.dimension());
        for part in &self.parts {
            live_rows(part).for_each(|row| values.extend(part.segment.vector(row).unwrap_or_default()));
        }
        Matrix::new(values, self.len(), self.dimension())
    }

    /// The path or id of item `i`, or `None` past the last.
    #[must_use]
    pub fn item(&self, i: usize) -> Option<&str> {
        let (part, row) = self.part_of(self.row(i)?);
        part?.segment.name(row)
    }

    /// All paths or ids, in order.
    pub fn items(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().flat_map(|part| live_rows(part).filter_map(|row| part.segment.name(row)))
    }

    /// The position of an item, by its path or id. The first call builds a table of all names.
    #[must_use]
    pub fn position(&self, item: &str) -> Option<usize> {
        let table = || self.items().map(str::to_string).zip(0..).collect();
        self.by_name.get_or_init(table).get(item).copied()
    }

    /// Whether any item has metadata.
    #[must_use]
    pub fn has_metadata(&self) -> bool {
        self.parts.iter().any(|part| live_rows(part).any(|row| part.segment.metadata_text(row).is_some()))
    }

    /// What is kept with item `i`; `None` where it has no metadata, or past the last.
    #[must_use]
    pub fn metadata(&self, i: usize) -> Option<Metadata> {
        let (part, row) = self.part_of(self.row(i)?);
        part?.segment.metadata(row)
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
        let file = inside(&self.folder, self.manifest.place(name));
        let bytes = fs::read(&file).map_err(at(&file))?;
        check_crc(&file, entry, checksum(&bytes))?;
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
    /// `k` is more. The query need not be normalised: its length scales the scores. Every item is looked at.
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
        self.find(queries, k, &SearchOptions { exact: true, ..SearchOptions::default() })
    }

    /// [`Index::search`] by `dot product - penalty`: hubness-corrected search at no cost to the query.
    ///
    /// With half of [`mean_top_k_similarity`](crate::mean_top_k_similarity)`(index embeddings, bank, 10)` as
    /// penalties it ranks as CSLS with that bank does, for queries of length 1.
    ///
    /// # Errors
    /// As [`Index::search`]; [`Error::Shape`] where there is not one penalty an item.
    pub fn search_corrected(&self, query: &[f32], k: usize, penalties: &[f32]) -> Result<Vec<Hit>> {
        let options = SearchOptions { exact: true, ..SearchOptions::default() };
        Ok(self.found(&one_row(query)?, k, &options, Some(penalties))?.pop().unwrap_or_default())
    }

    /// [`Index::search`] by corrected scores; by plain ones where the correction leaves this query alone.
    ///
    /// # Errors
    /// As [`Index::search_corrected`].
    pub fn search_with(&self, query: &[f32], k: usize, correction: &GalleryCorrection) -> Result<Vec<Hit>> {
        let options = SearchOptions { exact: true, correction: Some(correction), ..SearchOptions::default() };
        Ok(self.find(&one_row(query)?, k, &options)?.pop().unwrap_or_default())
    }

    /// The `k` best items of each query `[Q, D]`: by the graph where the index has one and nothing else is asked for, among the
    /// selected items, by corrected scores.
    ///
    /// # Errors
    /// As [`Index::search`]; [`Error::OtherGeneration`] where the selection is of another one, [`Error::Shape`] where the correction
    /// is of another gallery.
    pub fn find(&self, queries: &Matrix, k: usize, options: &SearchOptions<'_>) -> Result<Vec<Vec<Hit>>> {
        by_corrections(queries, k, options, |queries, k, options, penalties| {
            self.found(queries, k, options, penalties)
        })
    }

    /// [`Index::find`] of everything exactly, where something else proposes rows; and how many queries had to be searched here.
    ///
    /// # Errors
    /// As [`Index::find`], and those of whoever proposes.
    #[cfg(any(feature = "cuda", test))]
    pub(crate) fn find_proposed<E: From<Error>>(
        &self,
        queries: &Matrix,
        k: usize,
        options: &SearchOptions<'_>,
        manners: impl Fn(usize) -> Vec<Manner>,
        propose: impl Fn(&Proposal<'_>) -> std::result::Result<Vec<Proposed>, E>,
    ) -> std::result::Result<Settled<Hit>, E> {
        let mut unsettled = 0;
        let found = by_corrections(queries, k, options, |queries, k, options, penalties| {
            let penalties = penalties.map(|penalties| self.by_row(penalties)).transpose()?;
            let gallery = self.gallery(penalties.as_deref(), self.allowed(options)?);
            let settled = gallery.search_proposed(queries, k, &manners(k), &propose)?;
            unsettled += settled.unsettled;
            Ok::<_, E>(self.hits(settled.found))
        })?;
        Ok(Settled { found, unsettled })
    }

    /// All rows of all segments.
    #[cfg(any(feature = "cuda", test))]
    pub(crate) fn gallery<'a>(
        &'a self,
        penalties: Option<&'a [f32]>,
        selected: Option<&'a Bits>,
    ) -> Gallery<'a> {
        let mut first = 0;
        let run = |part: &'a Part| {
            let run = Run { first, rows: part.segment.rows(), vectors: part.segment.vectors() };
            first += run.rows;
            run
        };
        let runs = self.parts.iter().map(run).collect();
        Gallery { runs, dimension: self.dimension(), longest: LONGEST, penalties, selected }
    }

    /// Names this generation among all.
    #[cfg(feature = "cuda")]
    pub(crate) fn generation_mark(&self) -> &str {
        &self.manifest.checksum
    }

    /// The rows that may be found, if not all.
    fn allowed<'a>(&'a self, options: &SearchOptions<'a>) -> Result<Option<&'a Bits>> {
        Ok(match options.selection {
            Some(selection) => Some(self.rows_of(selection)?),
            None => (!self.positions.is_whole()).then(|| self.positions.live()),
        })
    }

    fn found(
        &self,
        queries: &Matrix,
        k: usize,
        options: &SearchOptions<'_>,
        penalties: Option<&[f32]>,
    ) -> Result<Vec<Vec<Hit>>> {
        let penalties = penalties.map(|penalties| self.by_row(penalties)).transpose()?;
        let selected = self.allowed(options)?;
        let gallery = Gallery {
            runs: Vec::new(),
            dimension: self.dimension(),
            longest: LONGEST,
            penalties: penalties.as_deref(),
            selected,
        };
        let (mut scanned, mut found, mut first) = (gallery.clone(), Vec::new(), 0);
        for part in &self.parts {
            let run = Run { first, rows: part.segment.rows(), vectors: part.segment.vectors() };
            first += run.rows;
            let walkable = part.segment.graph_report().filter(|_| !options.exact && penalties.is_none());
            let walk = walkable.and_then(|report| {
                let effort = options.effort.unwrap_or(report.effort).max(k);
                let few = selected.is_some_and(|rows| {
                    rows.count_within(run.first, run.first + run.rows) * LEAST_SHARE < run.rows
                });
                let worth = !few && effort.saturating_mul(LEAST_SHARE) <= run.rows;
                worth.then(|| part.segment.graph()).flatten().map(|(graph, codes)| (graph, codes, effort))
            });
            let Some((graph, codes, effort)) = walk else {
                scanned.runs.push(run);
                continue;
            };
            let there =
                selected.map_or(run.rows, |rows| rows.count_within(run.first, run.first + run.rows)).min(k);
            let walked =
                Gallery { runs: vec![run], ..gallery.clone() }.walk((&graph, codes), effort, queries, k)?;
            // A graph that falls apart (many copies of one item) leaves some out.
            if walked.iter().all(|hits| hits.len() >= there) {
                found.push(walked);
            } else {
                scanned.runs.push(run);
            }
        }
        let all = scanned.search(queries, k)?;
        if found.is_empty() {
            return Ok(self.hits(all));
        }
        let merge = |(query, scanned): (usize, Vec<Neighbour>)| {
            let walked = found.iter().filter_map(|walked| walked.get(query)).flatten().copied();
            merged(scanned.into_iter().chain(walked), k)
        };
        Ok(self.hits(all.into_iter().enumerate().map(merge).collect()))
    }

    /// Penalties, one an item, as one a row.
    fn by_row<'a>(&self, penalties: &'a [f32]) -> Result<Cow<'a, [f32]>> {
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
        if self.positions.is_whole() {
            return Ok(Cow::Borrowed(penalties));
        }
        let mut by_row = vec![0.0; self.positions.live().len()];
        for (row, penalty) in self.positions.live().ones().zip(penalties) {
            if let Some(slot) = by_row.get_mut(row) {
                *slot = *penalty;
            }
        }
        Ok(Cow::Owned(by_row))
    }

    fn hits(&self, found: Vec<Vec<Neighbour>>) -> Vec<Vec<Hit>> {
        let hit = |(rank, neighbour): (usize, Neighbour)| {
            let (part, row) = self.part_of(neighbour.position);
            Hit {
                rank,
                score: neighbour.score,
                position: self.positions.position(neighbour.position).unwrap_or_default(),
                item: part.and_then(|part| part.segment.name(row)).unwrap_or_default().to_string(),
            }
        };
        found.into_par_iter().with_min_len(256).map(|query| (1..).zip(query).map(hit).collect()).collect()
    }
}

/// A search by plain or corrected scores, by `found` from queries, k, options and penalties. Which of a dynamic correction's
/// queries are corrected depends on the best item of each among all.
fn by_corrections<E: From<Error>>(
    queries: &Matrix,
    k: usize,
    options: &SearchOptions<'_>,
    mut found: impl FnMut(
        &Matrix,
        usize,
        &SearchOptions<'_>,
        Option<&[f32]>,
    ) -> std::result::Result<Vec<Vec<Hit>>, E>,
) -> std::result::Result<Vec<Vec<Hit>>, E> {
    let Some(correction) = options.correction else { return found(queries, k, options, None) };
    if !correction.is_dynamic() {
        return found(queries, k, options, Some(correction.penalties()));
    }
    let options = &SearchOptions { exact: true, ..*options };
    let plain = SearchOptions { selection: None, ..*options };
    let best = found(queries, 1, &plain, None)?;
    let is_corrected = |best: &Vec<Hit>| best.first().is_some_and(|best| correction.applies(best.position));
    let mut answers = vec![Vec::new(); queries.rows()];
    for corrected in [false, true] {
        let places: Vec<usize> = (best.iter().enumerate())
            .filter(|(_, best)| is_corrected(best) == corrected)
            .map(|(place, _)| place)
            .collect();
        if places.is_empty() {
            continue;
        }
        let penalties = corrected.then(|| correction.penalties());
        let hits = found(&queries.select_rows(&places)?, k, options, penalties)?;
        for (place, hits) in places.into_iter().zip(hits) {
            if let Some(slot) = answers.get_mut(place) {
                *slot = hits;
            }
        }
    }
    Ok(answers)
}

fn one_row(query: &[f32]) -> Result<Matrix> {
    Matrix::new(query.to_vec(), 1, query.len())
}
