//! A segment: rows that were written at once and never change.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::Path;

use half::f16;
use half::slice::HalfFloatSliceExt;
use memmap2::Mmap;

use super::manifest::{
    FileEntry, Manifest, SegmentEntry, check_crc, check_length, damaged, entry_of, inside,
};
use super::{GraphReport, IndexContent, Metadata};
use crate::bits::Bits;
use crate::files::{at, checksum, sync_folder, write_synced};
use crate::graph::{self, Graph};
use crate::mapped::{Numbers, Texts, map};
use crate::matrix::euclidean_length;
use crate::search::{Codes, Vectors};
use crate::storage::{CODE_ALIGNMENT, check_codable, code_stride, halved, quantised};
use crate::{Error, Matrix, Result, Storage};

/// A row counts as normalised within this distance of length 1.
const LENGTH_TOLERANCE: f64 = 1e-3;
/// No stored row is longer: the tolerance, and what rounding to 16 bits adds.
pub(super) const LONGEST: f64 = 1.002;
/// Numbers that are turned into bytes at a time.
const CHUNK: usize = 1 << 16;

const VECTORS_F32: &str = "vectors.f32";
const VECTORS_F16: &str = "vectors.f16";
const CODES: &str = "codes.u8";
const SCALES: &str = "scales.f32";
const NAMES: &str = "items.txt";
const NAME_OFFSETS: &str = "items.offsets";
const METADATA: &str = "metadata.jsonl";
const METADATA_OFFSETS: &str = "metadata.offsets";
const GRAPH: &str = "graph.u32";

/// An open, verified segment.
#[derive(Debug)]
pub(super) struct Segment {
    rows: usize,
    dimension: usize,
    storage: Storage,
    vectors: StoredVectors,
    /// Of the storage, or of the graph.
    codes: Option<StoredCodes>,
    names: Texts,
    metadata: Option<Texts>,
    graph: Option<(Numbers<u32>, GraphReport)>,
}

#[derive(Debug)]
enum StoredVectors {
    F32(Numbers<f32>),
    F16(Numbers<f16>),
}

#[derive(Debug)]
struct StoredCodes {
    codes: Numbers<u8>,
    scales: Numbers<f32>,
}

/// Refuses content that is no set of normalised vectors with a name each.
pub(super) fn check_content(content: &IndexContent<'_>) -> Result<()> {
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
    if !content.metadata.is_empty() && content.metadata.len() != rows {
        return Err(Error::Shape {
            what: "metadata, one an embedding",
            expected: rows,
            got: content.metadata.len(),
        });
    }
    let mut seen = HashSet::with_capacity(rows);
    if let Some(item) = content.items.iter().find(|item| !seen.insert(item.as_str())) {
        return Err(Error::DuplicateItem { item: item.clone() });
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

/// Writes checked content into a new folder `name` inside the index and syncs it; says which files it has.
pub(super) fn write_segment(
    folder: &Path,
    name: &str,
    storage: Storage,
    content: &IndexContent<'_>,
) -> Result<(SegmentEntry, BTreeMap<String, FileEntry>)> {
    if storage == Storage::Int8 {
        check_codable(content.embeddings.columns())?;
    }
    let place = folder.join(name);
    fs::create_dir(&place).map_err(at(&place))?;
    let mut written = write_vectors(&place, storage, content.embeddings)?;
    write_texts(&place, NAMES, NAME_OFFSETS, content.items.iter().map(String::as_str))?;
    written.extend([NAMES, NAME_OFFSETS]);
    if !content.metadata.is_empty() {
        let lines: Vec<String> = (content.metadata.iter())
            .map(
                |metadata| {
                    if metadata.is_empty() { Ok(String::new()) } else { serde_json::to_string(metadata) }
                },
            )
            .collect::<std::result::Result<_, _>>()
            .map_err(|error| at(&place)(error.into()))?;
        write_texts(&place, METADATA, METADATA_OFFSETS, lines.iter().map(String::as_str))?;
        written.extend([METADATA, METADATA_OFFSETS]);
    }
    sync_folder(&place)?;
    let files = written.into_iter().map(|file| Ok((format!("{name}/{file}"), entry_of(&place.join(file))?)));
    let entry = SegmentEntry {
        name: name.to_string(),
        rows: content.items.len(),
        deleted: 0,
        tombstones: None,
        graph: None,
    };
    Ok((entry, files.collect::<Result<_>>()?))
}

fn write_vectors(place: &Path, storage: Storage, embeddings: &Matrix) -> Result<Vec<&'static str>> {
    let halves = |file: &str| {
        let values = halved(embeddings.values());
        write_numbers(&place.join(file), &values, |value| value.to_le_bytes())
    };
    match storage {
        Storage::F32 => {
            write_numbers(&place.join(VECTORS_F32), embeddings.values(), |value| value.to_le_bytes())?;
            Ok(vec![VECTORS_F32])
        }
        Storage::F16 => {
            halves(VECTORS_F16)?;
            Ok(vec![VECTORS_F16])
        }
        Storage::Int8 => {
            halves(VECTORS_F16)?;
            let (codes, scales) = quantised(embeddings.values(), embeddings.columns());
            let written = write_codes(place, &codes, &scales)?;
            Ok([VECTORS_F16].into_iter().chain(written).collect())
        }
    }
}

fn write_codes(place: &Path, codes: &[u8], scales: &[f32]) -> Result<[&'static str; 2]> {
    write_synced(&place.join(CODES), |writer| writer.write_all(codes))?;
    write_numbers(&place.join(SCALES), scales, f32::to_le_bytes)?;
    Ok([CODES, SCALES])
}

/// Writes a graph beside the rows of a segment, and the codes that it is walked over where the storage has not written them; says
/// which files that are.
pub(super) fn write_graph(
    place: &Path,
    storage: Storage,
    graph: &[u32],
    codes: Codes<'_>,
) -> Result<Vec<&'static str>> {
    write_numbers(&place.join(GRAPH), graph, u32::to_le_bytes)?;
    let mut written = vec![GRAPH];
    if storage != Storage::Int8 {
        written.extend(write_codes(place, codes.codes, codes.scales)?);
    }
    sync_folder(place)?;
    Ok(written)
}

/// Numbers as little-endian bytes.
fn write_numbers<T: Copy, const BYTES: usize>(
    file: &Path,
    values: &[T],
    encode: impl Fn(T) -> [u8; BYTES],
) -> Result<()> {
    write_synced(file, |writer| {
        let mut bytes = Vec::with_capacity(CHUNK * BYTES);
        for values in values.chunks(CHUNK) {
            bytes.clear();
            bytes.extend(values.iter().flat_map(|value| encode(*value)));
            writer.write_all(&bytes)?;
        }
        Ok(())
    })
}

fn write_texts<'a>(
    place: &Path,
    text: &str,
    offsets: &str,
    lines: impl Iterator<Item = &'a str> + Clone,
) -> Result<()> {
    write_synced(&place.join(text), |writer| {
        lines.clone().try_for_each(|line| {
            writer.write_all(line.as_bytes())?;
            writer.write_all(b"\n")
        })
    })?;
    write_synced(&place.join(offsets), |writer| {
        let mut offset = 0_u64;
        writer.write_all(&offset.to_le_bytes())?;
        lines.clone().try_for_each(|line| {
            offset += line.len() as u64 + 1;
            writer.write_all(&offset.to_le_bytes())
        })
    })
}

impl Segment {
    /// Maps and verifies the files of a segment.
    pub(super) fn open(folder: &Path, manifest: &Manifest, entry: &SegmentEntry) -> Result<Self> {
        let files = Files { folder, manifest, segment: &entry.name };
        let (rows, dimension) = (entry.rows, manifest.dimension);
        let storage = manifest.storage;
        let coded = storage == Storage::Int8 || entry.graph.is_some();
        if coded {
            check_codable(dimension)?;
        }
        let vectors = match storage {
            Storage::F32 => StoredVectors::F32(files.numbers(VECTORS_F32, rows, dimension, 4)?),
            Storage::F16 | Storage::Int8 => {
                StoredVectors::F16(files.numbers(VECTORS_F16, rows, dimension, 2)?)
            }
        };
        let graph = match entry.graph {
            Some(report) => Some((files.graph(rows)?, report)),
            None => None,
        };
        let codes = match coded {
            true => Some(StoredCodes {
                codes: files.numbers(CODES, rows, code_stride(dimension), 1)?,
                scales: files.numbers(SCALES, rows, 1, 4)?,
            }),
            false => None,
        };
        let names = files.texts(NAMES, NAME_OFFSETS, rows)?;
        let metadata = match manifest.files.contains_key(&files.name(METADATA)) {
            true => Some(files.texts(METADATA, METADATA_OFFSETS, rows)?),
            false => None,
        };
        Ok(Self { rows, dimension, storage, vectors, codes, names, metadata, graph })
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    pub(super) fn vectors(&self) -> Vectors<'_> {
        match (&self.vectors, self.codes()) {
            (StoredVectors::F32(values), _) => Vectors::F32(values.values()),
            (StoredVectors::F16(values), Some(codes)) if self.storage == Storage::Int8 => {
                Vectors::Int8(codes, values.values())
            }
            (StoredVectors::F16(values), _) => Vectors::F16(values.values()),
        }
    }

    fn codes(&self) -> Option<Codes<'_>> {
        let StoredCodes { codes, scales } = self.codes.as_ref()?;
        Some(Codes { codes: codes.values(), scales: scales.values(), stride: code_stride(self.dimension) })
    }

    /// Row `row`, as exactly as it is kept.
    pub(super) fn vector(&self, row: usize) -> Option<Vec<f32>> {
        let start = row.checked_mul(self.dimension)?;
        let range = start..start.checked_add(self.dimension)?;
        match &self.vectors {
            StoredVectors::F32(values) => Some(values.values().get(range)?.to_vec()),
            StoredVectors::F16(values) => Some(values.values().get(range)?.to_f32_vec()),
        }
    }

    pub(super) fn name(&self, row: usize) -> Option<&str> {
        self.names.get(row)
    }

    /// The JSON object of a row's metadata as it is stored; none where it has none.
    pub(super) fn metadata_text(&self, row: usize) -> Option<&str> {
        self.metadata.as_ref()?.get(row).filter(|text| !text.is_empty())
    }

    pub(super) fn metadata(&self, row: usize) -> Option<Metadata> {
        serde_json::from_str(self.metadata_text(row)?).ok()
    }

    /// How well its graph searches, if it has one.
    pub(super) fn graph_report(&self) -> Option<GraphReport> {
        self.graph.as_ref().map(|(_, report)| *report)
    }

    /// Its graph, and the codes that are walked over.
    pub(super) fn graph(&self) -> Option<(Graph<'_>, Codes<'_>)> {
        Some((Graph::of(self.graph.as_ref()?.0.values(), self.rows)?, self.codes()?))
    }
}

/// The files of one segment.
struct Files<'a> {
    folder: &'a Path,
    manifest: &'a Manifest,
    segment: &'a str,
}

impl Files<'_> {
    fn name(&self, file: &str) -> String {
        format!("{}/{file}", self.segment)
    }

    fn map(&self, file: &str) -> Result<Option<Mmap>> {
        verified_map(self.folder, self.manifest, &self.name(file))
    }

    fn numbers<T: crate::mapped::Number>(
        &self,
        file: &str,
        rows: usize,
        columns: usize,
        bytes: usize,
    ) -> Result<Numbers<T>> {
        let name = self.name(file);
        let entry = self.manifest.entry(self.folder, &name)?;
        let expected = (rows as u128) * (columns as u128) * (bytes as u128);
        if expected != u128::from(entry.bytes) || expected == 0 {
            let path = inside(self.folder, &name);
            return Err(damaged(&path, format!("{expected} bytes for all rows and dimensions"), entry.bytes));
        }
        Ok(Numbers::of(self.map(file)?))
    }

    fn graph(&self, rows: usize) -> Result<Numbers<u32>> {
        let file = inside(self.folder, &self.name(GRAPH));
        let graph = Numbers::of(self.map(GRAPH)?);
        match graph.values().first().copied().map(u64::from) {
            Some(version) if version != graph::VERSION => {
                Err(Error::Version { file, expected: graph::VERSION, got: version })
            }
            _ if Graph::of(graph.values(), rows).is_none_or(|graph| !graph.is_within(rows)) => {
                Err(damaged(&file, format!("a graph of {rows} rows"), "another"))
            }
            _ => Ok(graph),
        }
    }

    fn texts(&self, text: &str, offsets: &str, rows: usize) -> Result<Texts> {
        let texts = Texts::of(self.map(text)?, self.map(offsets)?).filter(|texts| texts.len() == rows);
        texts.ok_or_else(|| {
            damaged(&inside(self.folder, &self.name(text)), format!("{rows} lines"), "another number")
        })
    }
}

/// Maps a file of the index and checks that it is what was written.
pub(super) fn verified_map(folder: &Path, manifest: &Manifest, name: &str) -> Result<Option<Mmap>> {
    let entry = manifest.entry(folder, name)?;
    let path = inside(folder, manifest.place(name));
    check_length(&path, entry)?;
    let map = map(&path)?;
    check_crc(&path, entry, checksum(map.as_deref().unwrap_or_default()))?;
    Ok(map)
}

/// Writes which rows of a segment are deleted.
pub(super) fn write_tombstones(folder: &Path, name: &str, deleted: &Bits) -> Result<FileEntry> {
    let file = inside(folder, name);
    write_synced(&file, |writer| writer.write_all(&deleted.to_bytes()))?;
    entry_of(&file)
}

/// Which rows of a segment are deleted.
pub(super) fn read_tombstones(folder: &Path, manifest: &Manifest, entry: &SegmentEntry) -> Result<Bits> {
    let Some(name) = &entry.tombstones else { return Ok(Bits::none(entry.rows)) };
    let map = verified_map(folder, manifest, name)?;
    Bits::from_bytes(map.as_deref().unwrap_or_default(), entry.rows)
        .filter(|deleted| deleted.count() == entry.deleted)
        .ok_or_else(|| {
            damaged(&inside(folder, name), format!("{} of {} rows", entry.deleted, entry.rows), "others")
        })
}

// The kernel over codes takes rows of whole registers.
const _: () = assert!(CODE_ALIGNMENT.is_power_of_two());

#[cfg(test)]
mod tests {
    use super::super::manifest::put_in_place;
    use super::super::{Index, IndexBuilder};
    use super::*;

    #[test]
    fn a_graph_of_the_first_version_or_with_places_of_no_row_is_refused() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("index");
        let embeddings = Matrix::from_rows(&[[1.0, 0.0], [0.0, 1.0]]).unwrap();
        let items = ["a".to_string(), "b".to_string()];
        let builder = IndexBuilder::begin(&folder).unwrap().with_graph(true);
        builder.commit(IndexContent::new(&embeddings, &items, "m")).unwrap();
        let rewritten = |numbers: &[u32]| {
            let mut manifest = Manifest::read(&folder).unwrap();
            let name = format!("{}/{GRAPH}", manifest.segments[0].name);
            write_numbers(&inside(&folder, &name), numbers, u32::to_le_bytes).unwrap();
            let entry = entry_of(&inside(&folder, &name)).unwrap();
            manifest.files.insert(name, entry);
            manifest.write(&folder).unwrap();
            put_in_place(&folder).unwrap();
            Index::open(&folder)
        };
        // One start, one neighbour a row.
        let error = rewritten(&[1, 1, 1, 0, 1, 0]).unwrap_err();
        assert!(
            matches!(&error, Error::Version { file, expected: 2, got: 1 } if file.ends_with(GRAPH)),
            "{error}"
        );
        assert!(error.to_string().contains("rebuild the index"));
        // Two rows of one neighbour, and the row of the one place above.
        let with_place = |row: u32| {
            let header = [2, 1, 1, 1].into_iter().chain([0; 12]);
            header.chain([1, 0, row]).collect::<Vec<u32>>()
        };
        assert!(rewritten(&with_place(1)).is_ok());
        for numbers in [vec![2, 1, 1], with_place(2), with_place(u32::MAX)] {
            let error = rewritten(&numbers).unwrap_err();
            assert!(matches!(&error, Error::Damaged { file, .. } if file.ends_with(GRAPH)), "{error}");
        }
    }
}
