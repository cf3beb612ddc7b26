//! Parquet files as the Hugging Face hub has them: images as `{bytes, path}`, sentences as a text, a list of texts or a list of
//! records.
//!
//! Columns are read by themselves, through the crate's column reader: the row reader of the crate ends at the first text that
//! is not UTF-8, and `arrow` would be eleven crates more to compile for lists of texts. The sentences are read at once; an image
//! is read from its page when it is wanted.

use std::fmt;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ::parquet::basic::{ConvertedType, LogicalType, Type as PhysicalType};
use ::parquet::column::reader::ColumnReaderImpl;
use ::parquet::data_type::{ByteArray, ByteArrayType};
use ::parquet::errors::ParquetError;
use ::parquet::file::metadata::ParquetMetaData;
use ::parquet::file::reader::{FileReader, SerializedFileReader};
use ::parquet::file::serialized_reader::SerializedPageReader;
use ::parquet::schema::types::ColumnDescriptor;

use super::image_root::ImageRoot;
use super::table::{Columns, IMAGE_COLUMNS, SENTENCE_COLUMNS};
use crate::dataset::{Collector, Dataset, Format, Item, ReadOptions};
use crate::durable;
use crate::error::DataError;
use crate::image_source::ImageSource;
use crate::skipped::Skipped;
use crate::split::Split;

/// Records decoded at a time.
const BATCH: usize = 1_024;

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
        let read = || -> Result<Option<Vec<u8>>, ParquetError> {
            let mut reader =
                column_reader(&self.file.path, &self.file.metadata, self.row_group, self.file.images)?;
            if reader.skip_records(self.row_in_group)? != self.row_in_group {
                return Ok(None);
            }
            let (mut levels, mut values) = (Vec::new(), Vec::new());
            reader.read_records(1, Some(&mut levels), None, &mut values)?;
            Ok(values.first().map(|value: &ByteArray| value.data().to_vec()))
        };
        let name = || Some(PathBuf::from(format!("{}#{}", self.file.path.display(), self.row)));
        guarded(&self.file.path, read)?.ok_or_else(|| DataError::ImageEmpty { path: name() })
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

fn column_reader(
    path: &Path,
    metadata: &ParquetMetaData,
    row_group: usize,
    column: usize,
) -> Result<ColumnReaderImpl<ByteArrayType>, ParquetError> {
    let missing = || ParquetError::General("a row group or column is missing".to_owned());
    let group = metadata.row_groups().get(row_group).ok_or_else(missing)?;
    let chunk = group.columns().get(column).ok_or_else(missing)?;
    let rows = usize::try_from(group.num_rows()).map_err(|_| missing())?;
    let pages = SerializedPageReader::new(Arc::new(File::open(path)?), chunk, rows, None)?;
    Ok(ColumnReaderImpl::new(chunk.column_descr_ptr(), Box::new(pages)))
}

/// Which leaf columns are in use.
struct Leaves {
    /// The encoded images.
    bytes: Option<usize>,
    /// Paths of images, or their names beside the bytes.
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
    for file in files {
        read_file(file, options, &mut collector)?;
    }
    collector.finish(path, Format::Parquet, "row")
}

fn read_file(file: &Path, options: &ReadOptions, collector: &mut Collector) -> Result<(), DataError> {
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
    let of_file = Split::of_file_name(file);
    // A column says better than the name: Flickr30K's file is called TEST and holds all splits.
    if leaves.split.is_none() && !options.wants(of_file) {
        return Ok(());
    }
    let open = leaves
        .bytes
        .map(|images| Arc::new(OpenFile { path: file.to_path_buf(), metadata: metadata.clone(), images }));
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
            let image: Option<ImageSource> = match (&open, &name) {
                (Some(file), _) => Some(ImageSource::Parquet(ParquetCell {
                    file: Arc::clone(file),
                    row_group,
                    row_in_group,
                    row,
                })),
                (None, Some(name)) => Some(root.source(name)?),
                (None, None) => None,
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
    guarded(file, || {
        let mut reader = column_reader(file, metadata, row_group, column)?;
        let descriptor = metadata.file_metadata().schema_descr().column(column);
        let (present, repeated) = (descriptor.max_def_level(), descriptor.max_rep_level() > 0);
        let mut rows: Vec<Texts> = Vec::new();
        loop {
            let (mut definition, mut repetition, mut values) =
                (Vec::new(), Vec::new(), Vec::<ByteArray>::new());
            let (records, _, levels) =
                reader.read_records(BATCH, Some(&mut definition), Some(&mut repetition), &mut values)?;
            if records == 0 && levels == 0 {
                return Ok(rows);
            }
            let mut values = values.into_iter();
            for level in 0..levels {
                if !repeated || repetition.get(level).copied().unwrap_or(0) == 0 {
                    rows.push(Vec::new());
                }
                // A column that can't be null has no definition levels.
                if present == 0 || definition.get(level) == Some(&present) {
                    let Some(value) = values.next() else { break };
                    let text = std::str::from_utf8(value.data()).map(str::to_owned).map_err(|_| ());
                    rows.last_mut().into_iter().for_each(|row| row.push(text.clone()));
                }
            }
        }
    })
}

/// Finds the columns by the names of their roots.
fn leaves(metadata: &ParquetMetaData, columns: &Columns) -> Result<Leaves, (String, String)> {
    let schema = metadata.file_metadata().schema_descr();
    let leaves: Vec<(usize, &[String], &ColumnDescriptor)> = (0..schema.num_columns())
        .map(|index| (index, schema.columns().get(index)))
        .filter_map(|(index, column)| column.map(|column| (index, column.path().parts(), column.as_ref())))
        .filter(|(_, _, column)| column.physical_type() == PhysicalType::BYTE_ARRAY)
        .collect();
    let mut roots: Vec<String> = Vec::new();
    for root in leaves.iter().filter_map(|(_, parts, _)| parts.first()) {
        if !roots.contains(root) {
            roots.push(root.clone());
        }
    }
    let all: Vec<&str> = schema.root_schema().get_fields().iter().map(|field| field.name()).collect();
    let got = || format!("the columns {}", all.join(", "));
    let found = columns.find(&roots).map_err(|expected| (expected, got()))?;
    let below = |root: usize| {
        let name = roots.get(root).cloned().unwrap_or_default();
        leaves.iter().filter(move |(_, parts, _)| parts.first() == Some(&name))
    };
    let last = |parts: &[String]| parts.last().map(String::as_str).unwrap_or_default().to_owned();
    let (mut bytes, mut path) = (None, None);
    if let Some(root) = found.image {
        for (index, parts, column) in below(root).filter(|(_, _, column)| column.max_rep_level() == 0) {
            match (parts.len(), last(parts).as_str()) {
                (1, _) if is_text(column) => path = Some(*index),
                (1, _) | (_, "bytes") => bytes = Some(*index),
                (_, "path") => path = Some(*index),
                _ => {}
            }
        }
        if bytes.is_none() && path.is_none() {
            let name = roots.get(root).cloned().unwrap_or_default();
            return Err((format!("bytes, a path or {{bytes, path}} in column `{name}`"), got()));
        }
    }
    // The name beside the bytes is often empty; a column of its own says it.
    if bytes.is_some() && path.is_none() {
        path = leaves
            .iter()
            .filter(|(_, parts, column)| parts.len() == 1 && column.max_rep_level() == 0 && is_text(column))
            .find(|(_, parts, _)| IMAGE_COLUMNS.contains(&last(parts).as_str()))
            .map(|(index, ..)| *index);
    }
    let mut sentences = Vec::new();
    for root in found.captions {
        let candidates: Vec<_> = below(root).filter(|(_, _, column)| column.max_rep_level() <= 1).collect();
        let named = candidates.iter().find(|(_, parts, _)| SENTENCE_COLUMNS.contains(&last(parts).as_str()));
        sentences.extend(named.or(candidates.first()).map(|(index, ..)| *index));
    }
    let split = found
        .split
        .and_then(|root| below(root).find(|(_, parts, _)| parts.len() == 1))
        .map(|(index, ..)| *index);
    Ok(Leaves { bytes, path, sentences, split })
}

fn is_text(column: &ColumnDescriptor) -> bool {
    column.converted_type() == ConvertedType::UTF8
        || matches!(column.logical_type_ref(), Some(LogicalType::String))
}
