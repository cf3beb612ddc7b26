//! Parquet files as the Hugging Face hub has them: images as `{bytes, path}`, sentences as a text, a list of texts or a list of
//! records.
//!
//! Columns are read by themselves, through the crate's column reader: the row reader of the crate ends at the first text that
//! is not UTF-8, and `arrow` would be eleven crates more to compile for lists of texts. The sentences are read at once; an image
//! is read from its page when it is wanted.

mod image_readers;
mod vectors;
mod zstd;

use std::fmt;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ::parquet::basic::{Compression, ConvertedType, LogicalType, Type as PhysicalType};
use ::parquet::column::page::PageReader;
use ::parquet::column::reader::ColumnReaderImpl;
use ::parquet::data_type::{ByteArray, ByteArrayType, DataType};
use ::parquet::errors::ParquetError;
use ::parquet::file::metadata::ParquetMetaData;
use ::parquet::file::reader::{FileReader, SerializedFileReader};
use ::parquet::file::serialized_reader::SerializedPageReader;
use ::parquet::schema::types::ColumnDescriptor;

use self::image_readers::ImageReaders;
pub(crate) use self::vectors::VectorColumn;
use self::vectors::is_vectors;
use self::zstd::ZstdPages;
use super::image_root::ImageRoot;
use super::table::{Columns, Found, IMAGE_COLUMNS, SENTENCE_COLUMNS};
use crate::dataset::{Collector, Dataset, Format, Item, ReadOptions};
use crate::durable;
use crate::error::DataError;
use crate::image_source::{FeatureRow, ImageSource};
use crate::region_features::RegionFeatures;
use crate::skipped::Skipped;
use crate::split::Split;

/// Records decoded at a time.
const BATCH: usize = 1_024;

/// Column names that hold vectors in place of images, in any case, the first that is there.
const VECTOR_COLUMNS: [&str; 6] =
    ["embedding", "image_embedding", "image_embeddings", "embeddings", "image_features", "features"];

/// An image in a row of a Parquet file.
#[derive(Clone)]
pub struct ParquetCell {
    file: Arc<OpenFile>,
    row_group: usize,
    row_in_group: usize,
    row: usize,
}

struct OpenFile {
    path: PathBuf,
    metadata: ParquetMetaData,
    /// The leaf column with the encoded images.
    images: usize,
    readers: Arc<ImageReaders>,
}

// The metadata is never changed once it is read: a panic elsewhere leaves nothing half-done in it.
impl std::panic::RefUnwindSafe for OpenFile {}
impl std::panic::UnwindSafe for OpenFile {}

impl fmt::Debug for ParquetCell {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "ParquetCell({}#{})", self.file.path.display(), self.row)
    }
}

impl PartialEq for ParquetCell {
    fn eq(&self, other: &Self) -> bool {
        self.row == other.row && self.file.path == other.file.path
    }
}

impl Eq for ParquetCell {}

impl std::hash::Hash for ParquetCell {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.row.hash(state);
        self.file.path.hash(state);
    }
}

impl ParquetCell {
    /// The file.
    pub fn path(&self) -> &Path {
        &self.file.path
    }

    /// The row, counted from 0 through the file.
    pub fn row(&self) -> usize {
        self.row
    }

    /// The encoded image.
    pub(crate) fn read(&self) -> Result<Vec<u8>, DataError> {
        let OpenFile { path, metadata, images, readers } = &*self.file;
        let open = || column_reader::<ByteArrayType>(path, metadata, self.row_group, *images);
        let read = || readers.read(path, self.row_group, self.row_in_group, open);
        let name = || Some(PathBuf::from(format!("{}#{}", path.display(), self.row)));
        guarded(path, read)?.ok_or_else(|| DataError::ImageEmpty { path: name() })
    }
}

/// Calls into the decoder, which is other people's code reading bytes of unknown origin: a panic in it must not end a night's
/// run. Nothing half-changed outlives the call.
fn guarded<T>(path: &Path, work: impl FnOnce() -> Result<T, ParquetError>) -> Result<T, DataError> {
    let refused = |got: String| DataError::Malformed {
        path: path.to_path_buf(),
        format: Format::Parquet,
        line: None,
        expected: "a Parquet file".to_owned(),
        got,
    };
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(result)) => Ok(result),
        Ok(Err(error)) => Err(refused(error.to_string())),
        Err(_) => Err(refused("bytes at which the decoder broke off".to_owned())),
    }
}

fn column_reader<T: DataType>(
    path: &Path,
    metadata: &ParquetMetaData,
    row_group: usize,
    column: usize,
) -> Result<ColumnReaderImpl<T>, ParquetError> {
    let missing = || ParquetError::General("a row group or column is missing".to_owned());
    let group = metadata.row_groups().get(row_group).ok_or_else(missing)?;
    let chunk = group.columns().get(column).ok_or_else(missing)?;
    let rows = usize::try_from(group.num_rows()).map_err(|_| missing())?;
    let file = Arc::new(File::open(path)?);
    let pages: Box<dyn PageReader> = match chunk.compression() {
        Compression::ZSTD(_) => Box::new(ZstdPages::new(file, chunk, rows)?),
        _ => Box::new(SerializedPageReader::new(file, chunk, rows, None)?),
    };
    Ok(ColumnReaderImpl::new(chunk.column_descr_ptr(), pages))
}

/// Which leaf columns are in use.
struct Leaves {
    /// The encoded images.
    bytes: Option<usize>,
    /// Vectors in place of images.
    vectors: Option<usize>,
    /// Paths of images, or their names beside the bytes or vectors.
    path: Option<usize>,
    sentences: Vec<usize>,
    split: Option<usize>,
}

/// Reads files, in this order. The split is a column, or in the names of the files.
///
/// # Errors
/// [`DataError::Malformed`] for a file that is none, or has other columns; [`DataError::Io`]; [`DataError::NothingUsable`].
pub(crate) fn read(path: &Path, files: &[PathBuf], options: &ReadOptions) -> Result<Dataset, DataError> {
    let mut collector = Collector::default();
    let readers = Arc::new(ImageReaders::default());
    for file in files {
        read_file(file, options, &readers, &mut collector)?;
    }
    collector.finish(path, Format::Parquet, "row")
}

fn read_file(
    file: &Path,
    options: &ReadOptions,
    readers: &Arc<ImageReaders>,
    collector: &mut Collector,
) -> Result<(), DataError> {
    let (handle, length) = durable::open_regular(file)?;
    if length == 0 {
        return Err(DataError::EmptyFile { path: file.to_path_buf(), expected: "a Parquet file" });
    }
    let metadata = guarded(file, || Ok(SerializedFileReader::new(handle)?.metadata().clone()))?;
    let leaves = leaves(&metadata, &options.columns).map_err(|(expected, got)| DataError::Malformed {
        path: file.to_path_buf(),
        format: Format::Parquet,
        line: None,
        expected,
        got,
    })?;
    check_codecs(&metadata, &leaves).map_err(|got| DataError::Malformed {
        path: file.to_path_buf(),
        format: Format::Parquet,
        line: None,
        expected: "columns that are not compressed, or with snappy, gzip, lz4 or zstd (`pq.write_table(table, path, \
                   compression=\"zstd\")` writes them anew)"
            .to_owned(),
        got,
    })?;
    let of_file = Split::of_file_name(file);
    // A column says better than the name: Flickr30K's file is called TEST and holds all splits.
    if leaves.split.is_none() && !options.wants(of_file) {
        return Ok(());
    }
    let open = leaves.bytes.map(|images| {
        let (path, metadata, readers) = (file.to_path_buf(), metadata.clone(), Arc::clone(readers));
        Arc::new(OpenFile { path, metadata, images, readers })
    });
    let vectors = match leaves.vectors {
        Some(column) => {
            let column = VectorColumn::read(file, &metadata, column)?;
            collector.skipped.extend(column.skipped().iter().cloned());
            Some(RegionFeatures::of_column(column))
        }
        None => None,
    };
    let mut root = ImageRoot::new(file, options);
    let mut first_row = 0;
    for (row_group, group) in metadata.row_groups().iter().enumerate() {
        let rows = usize::try_from(group.num_rows()).unwrap_or(0);
        let texts = |column: usize| texts_of_column(file, &metadata, row_group, column);
        let path = leaves.path.map(texts).transpose()?;
        let split = leaves.split.map(texts).transpose()?;
        let sentences =
            leaves.sentences.iter().map(|column| texts(*column)).collect::<Result<Vec<_>, _>>()?;
        // A row group's number of rows is only what its header says.
        let counts = [path.as_ref(), split.as_ref()].into_iter().flatten().chain(&sentences).map(Vec::len);
        let rows = counts.min().unwrap_or(rows).min(rows);
        for row_in_group in 0..rows {
            let row = first_row + row_in_group;
            let at = |column: &Option<Vec<Texts>>| -> Option<Result<String, ()>> {
                column.as_ref()?.get(row_in_group)?.first().cloned()
            };
            let mut skip = |item: &str, reason: &str| {
                collector.skipped.push(Skipped::in_file(file, Some(row), item, reason));
            };
            let split = match at(&split) {
                None => of_file,
                Some(Ok(name)) => match Split::published(&name) {
                    Some(split) => Some(split),
                    None => {
                        skip(&name, "expected train, val or test as the split");
                        continue;
                    }
                },
                Some(Err(())) => {
                    skip("", "the split is not UTF-8");
                    continue;
                }
            };
            let name = at(&path).and_then(Result::ok).filter(|name| !name.trim().is_empty());
            let image: Option<ImageSource> = match (&vectors, &open, &name) {
                (Some(features), ..) => match features.find(&row.to_string()) {
                    Some(image) => {
                        Some(ImageSource::Features(FeatureRow { features: features.clone(), image }))
                    }
                    // Listed when the column was read.
                    None => continue,
                },
                (None, Some(file), _) => Some(ImageSource::Parquet(ParquetCell {
                    file: Arc::clone(file),
                    row_group,
                    row_in_group,
                    row,
                })),
                (None, None, Some(name)) => Some(root.source(name)?),
                (None, None, None) => None,
            };
            let mut found = Vec::new();
            for column in &sentences {
                for text in column.get(row_in_group).into_iter().flatten() {
                    match text {
                        Ok(text) => found.push(text.as_str()),
                        Err(()) => skip(name.as_deref().unwrap_or(""), "not UTF-8"),
                    }
                }
            }
            let id = name.unwrap_or_else(|| row.to_string());
            let usable = collector.usable(file, Some(row), &id, found);
            if image.is_none() && usable.is_empty() {
                continue;
            }
            collector.add(Item { id, image, sentences: usable, split, line: Some(row) });
        }
        first_row += usize::try_from(group.num_rows()).unwrap_or(0);
    }
    collector.notes.extend(root.note());
    Ok(())
}

/// The texts of one row; `Err` for one that is not UTF-8.
type Texts = Vec<Result<String, ()>>;

/// All rows of a column of texts or of lists of texts.
fn texts_of_column(
    file: &Path,
    metadata: &ParquetMetaData,
    row_group: usize,
    column: usize,
) -> Result<Vec<Texts>, DataError> {
    let text = |value: &ByteArray| std::str::from_utf8(value.data()).map(str::to_owned).map_err(|_| ());
    guarded(file, || rows_of_column::<ByteArrayType, _>(file, metadata, row_group, column, text))
}

/// The values of each row of a column, at most one list deep.
fn rows_of_column<T: DataType, V>(
    file: &Path,
    metadata: &ParquetMetaData,
    row_group: usize,
    column: usize,
    convert: impl Fn(&T::T) -> V,
) -> Result<Vec<Vec<V>>, ParquetError> {
    let mut reader = column_reader::<T>(file, metadata, row_group, column)?;
    let descriptor = metadata.file_metadata().schema_descr().column(column);
    let (present, repeated) = (descriptor.max_def_level(), descriptor.max_rep_level() > 0);
    let mut rows: Vec<Vec<V>> = Vec::new();
    loop {
        let (mut definition, mut repetition, mut values) = (Vec::new(), Vec::new(), Vec::<T::T>::new());
        let (records, _, levels) =
            reader.read_records(BATCH, Some(&mut definition), Some(&mut repetition), &mut values)?;
        if records == 0 && levels == 0 {
            return Ok(rows);
        }
        let mut values = values.iter();
        for level in 0..levels {
            if !repeated || repetition.get(level).copied().unwrap_or(0) == 0 {
                rows.push(Vec::new());
            }
            // A column that can't be null has no definition levels.
            if present == 0 || definition.get(level) == Some(&present) {
                let Some(value) = values.next() else { break };
                rows.last_mut().into_iter().for_each(|row| row.push(convert(value)));
            }
        }
    }
}

/// Finds the columns by the names of their roots.
fn leaves(metadata: &ParquetMetaData, columns: &Columns) -> Result<Leaves, (String, String)> {
    let schema = metadata.file_metadata().schema_descr();
    let leaves: Vec<(usize, &[String], &ColumnDescriptor)> = (0..schema.num_columns())
        .map(|index| (index, schema.columns().get(index)))
        .filter_map(|(index, column)| column.map(|column| (index, column.path().parts(), column.as_ref())))
        .filter(|(_, _, column)| is_bytes(column) || is_vectors(column))
        .collect();
    let mut roots: Vec<String> = Vec::new();
    for root in leaves.iter().filter_map(|(_, parts, _)| parts.first()) {
        if !roots.contains(root) {
            roots.push(root.clone());
        }
    }
    let all: Vec<&str> = schema.root_schema().get_fields().iter().map(|field| field.name()).collect();
    let got = || format!("the columns {}", all.join(", "));
    let has_images = leaves.iter().any(|(_, parts, column)| {
        is_bytes(column) && !is_text(column) && column.max_rep_level() == 0 && parts.len() <= 2
    });
    let vectors = vector_root(&roots, columns).filter(|_| !has_images);
    let found = match (columns.find(&roots), vectors) {
        // Beside vectors a path is their name.
        (Ok(Found { captions, .. }), Some(found)) if captions.is_empty() => found,
        (Ok(found), _) | (Err(_), Some(found)) => found,
        (Err(expected), None) => return Err((expected, got())),
    };
    let below = |root: usize| {
        let name = roots.get(root).cloned().unwrap_or_default();
        leaves.iter().filter(move |(_, parts, _)| parts.first() == Some(&name))
    };
    let last = |parts: &[String]| parts.last().map(String::as_str).unwrap_or_default().to_owned();
    let (mut bytes, mut path, mut vectors) = (None, None, None);
    if let Some(root) = found.image {
        vectors = below(root).find(|(_, _, column)| is_vectors(column)).map(|(index, ..)| *index);
        for (index, parts, column) in below(root).filter(|(_, _, column)| column.max_rep_level() == 0) {
            match (parts.len(), last(parts).as_str()) {
                (1, _) if is_text(column) => path = Some(*index),
                (1, _) | (_, "bytes") if is_bytes(column) => bytes = Some(*index),
                (_, "path") => path = Some(*index),
                _ => {}
            }
        }
        if bytes.is_none() && path.is_none() && vectors.is_none() {
            let name = roots.get(root).cloned().unwrap_or_default();
            let expected = "bytes, a path, {bytes, path} or a list of floating-point numbers";
            return Err((format!("{expected} in column `{name}`"), got()));
        }
    }
    // The name beside the bytes is often empty; a column of its own says it.
    if (bytes.is_some() || vectors.is_some()) && path.is_none() {
        let is_name = |name: &str| IMAGE_COLUMNS.contains(&name) || (vectors.is_some() && name == "id");
        path = leaves
            .iter()
            .filter(|(_, parts, column)| parts.len() == 1 && column.max_rep_level() == 0 && is_text(column))
            .find(|(_, parts, _)| is_name(last(parts).as_str()))
            .map(|(index, ..)| *index);
    }
    let mut sentences = Vec::new();
    for root in found.captions {
        let candidates: Vec<_> =
            below(root).filter(|(_, _, column)| is_bytes(column) && column.max_rep_level() <= 1).collect();
        let named = candidates.iter().find(|(_, parts, _)| SENTENCE_COLUMNS.contains(&last(parts).as_str()));
        sentences.extend(named.or(candidates.first()).map(|(index, ..)| *index));
    }
    let split = found
        .split
        .and_then(|root| below(root).find(|(_, parts, column)| parts.len() == 1 && is_bytes(column)))
        .map(|(index, ..)| *index);
    Ok(Leaves { bytes, vectors, path, sentences, split })
}

/// Names the first column in use whose compression can't be undone.
fn check_codecs(metadata: &ParquetMetaData, leaves: &Leaves) -> Result<(), String> {
    let single = [leaves.bytes, leaves.vectors, leaves.path, leaves.split];
    let used: Vec<usize> = single.into_iter().flatten().chain(leaves.sentences.iter().copied()).collect();
    let chunks = metadata
        .row_groups()
        .iter()
        .flat_map(|group| used.iter().filter_map(|column| group.columns().get(*column)));
    for chunk in chunks {
        if let codec @ (Compression::BROTLI(_) | Compression::LZO) = chunk.compression() {
            let name = match codec {
                Compression::LZO => "LZO",
                _ => "BROTLI",
            };
            return Err(format!("{name} in column `{}`", chunk.column_path().parts().join(".")));
        }
    }
    Ok(())
}

/// The column of vectors of a file that has neither images nor sentences, where no other was asked for.
fn vector_root(roots: &[String], columns: &Columns) -> Option<Found> {
    let usual = columns.image.is_none() && columns.captions.is_empty() && columns.split.is_none();
    let at = |name: &str| roots.iter().position(|root| root.eq_ignore_ascii_case(name));
    let image = VECTOR_COLUMNS.iter().find_map(|name| at(name)).filter(|_| usual);
    image.map(|image| Found { image: Some(image), captions: Vec::new(), split: at("split") })
}

fn is_bytes(column: &ColumnDescriptor) -> bool {
    column.physical_type() == PhysicalType::BYTE_ARRAY
}

fn is_text(column: &ColumnDescriptor) -> bool {
    column.converted_type() == ConvertedType::UTF8
        || matches!(column.logical_type_ref(), Some(LogicalType::String))
}
