//! Embeddings with the names of their rows in a Parquet file, as `Dataset::open` and other programs read them.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ::parquet::basic::{ConvertedType, LogicalType, Repetition, Type as PhysicalType};
use ::parquet::column::writer::ColumnWriterImpl;
use ::parquet::data_type::{
    ByteArray, ByteArrayType, DataType, FixedLenByteArray, FixedLenByteArrayType, FloatType, Int64Type,
};
use ::parquet::errors::ParquetError;
use ::parquet::file::metadata::KeyValue;
use ::parquet::file::properties::WriterProperties;
use ::parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use ::parquet::schema::types::{Type, TypePtr};
use half::f16;
use serde::{Deserialize, Serialize};

use crate::error::DataError;

/// Values that are collected before they are written.
const GROUP_VALUES: usize = 4 << 20;

/// The name of a row of embeddings.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EmbeddingName {
    /// Position of the image, or of the sentence's image, in its data set.
    pub item: u64,
    /// What the data set calls it.
    pub id: String,
    /// The sentence, of an embedding of one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sentence: Option<String>,
    /// What is kept with it: a JSON object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<String>,
}

/// What stands in the file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EmbeddingColumns {
    /// A column `sentence`.
    pub sentences: bool,
    /// A column `metadata`, JSON objects.
    pub item_metadata: bool,
    /// Values of 2 bytes in place of 4.
    pub half_precision: bool,
    /// Remarks about the whole file.
    pub metadata: Vec<(&'static str, String)>,
}

/// Writes `item`, `id`, `sentence` and `metadata` where there are any, and `embedding`, a list of numbers. Uncompressed: embeddings hardly get
/// smaller.
///
/// ```
/// # fn main() -> Result<(), aeir_data::DataError> {
/// # let folder = tempfile::tempdir().unwrap();
/// # let path = folder.path().join("images.parquet");
/// use aeir_data::{Dataset, EmbeddingColumns, EmbeddingName, EmbeddingWriter};
/// let columns = EmbeddingColumns { half_precision: true, ..EmbeddingColumns::default() };
/// let mut writer = EmbeddingWriter::create(&path, &columns)?;
/// writer.add(&EmbeddingName { id: "a.jpg".into(), ..EmbeddingName::default() }, &[0.5, -1.0])?;
/// writer.finish()?;
/// let data = Dataset::open(&path, &Default::default())?;
/// assert_eq!((data.items.len(), data.items[0].id.as_str()), (1, "a.jpg"));
/// # Ok(()) }
/// ```
pub struct EmbeddingWriter {
    path: PathBuf,
    temporary: PathBuf,
    writer: SerializedFileWriter<File>,
    half_precision: bool,
    sentences: bool,
    item_metadata: bool,
    group: Group,
}

/// Rows that are not written yet.
#[derive(Default)]
struct Group {
    items: Vec<i64>,
    ids: Vec<ByteArray>,
    sentences: Vec<ByteArray>,
    metadata: Vec<ByteArray>,
    /// How many values each row has.
    lengths: Vec<usize>,
    values: Vec<f32>,
}

impl EmbeddingWriter {
    /// Begins a file under a temporary name.
    ///
    /// # Errors
    /// [`DataError::Io`].
    pub fn create(path: &Path, columns: &EmbeddingColumns) -> Result<Self, DataError> {
        let failed = |error: ParquetError| DataError::io(path, "write", std::io::Error::other(error));
        let temporary = path.with_extension("parquet.tmp");
        let file = File::create(&temporary).map_err(|error| DataError::io(&temporary, "create", error))?;
        let remark = |(key, value): &(&str, String)| KeyValue::new((*key).to_owned(), value.clone());
        let properties = WriterProperties::builder()
            .set_dictionary_enabled(false)
            .set_key_value_metadata(Some(columns.metadata.iter().map(remark).collect()))
            .build();
        let schema = schema(columns).map_err(failed)?;
        let writer = SerializedFileWriter::new(file, schema, Arc::new(properties)).map_err(failed)?;
        Ok(Self {
            path: path.to_path_buf(),
            temporary,
            writer,
            half_precision: columns.half_precision,
            sentences: columns.sentences,
            item_metadata: columns.item_metadata,
            group: Group::default(),
        })
    }

    /// Adds a row.
    ///
    /// # Errors
    /// [`DataError::Io`].
    pub fn add(&mut self, name: &EmbeddingName, embedding: &[f32]) -> Result<(), DataError> {
        let group = &mut self.group;
        group.items.push(i64::try_from(name.item).unwrap_or(i64::MAX));
        group.ids.push(name.id.as_bytes().to_vec().into());
        if self.sentences {
            group.sentences.push(name.sentence.as_deref().unwrap_or_default().as_bytes().to_vec().into());
        }
        if self.item_metadata {
            group.metadata.push(name.metadata.as_deref().unwrap_or("{}").as_bytes().to_vec().into());
        }
        group.lengths.push(embedding.len());
        group.values.extend_from_slice(embedding);
        if group.values.len() < GROUP_VALUES { Ok(()) } else { self.write_group() }
    }

    /// Writes what is left, and gives the file its name.
    ///
    /// # Errors
    /// [`DataError::Io`].
    pub fn finish(mut self) -> Result<(), DataError> {
        self.write_group()?;
        let Self { path, temporary, writer, .. } = self;
        let failed = |error| DataError::io(&path, "write", error);
        let mut file = writer.into_inner().map_err(|error| failed(std::io::Error::other(error)))?;
        file.flush().and_then(|()| file.sync_all()).map_err(failed)?;
        fs::rename(&temporary, &path).map_err(failed)
    }

    fn write_group(&mut self) -> Result<(), DataError> {
        let group = std::mem::take(&mut self.group);
        if group.items.is_empty() {
            return Ok(());
        }
        let half_precision = self.half_precision;
        let write = |writer: &mut SerializedFileWriter<File>| {
            let mut columns = writer.next_row_group()?;
            column::<Int64Type>(&mut columns, |column| column.write_batch(&group.items, None, None))?;
            column::<ByteArrayType>(&mut columns, |column| column.write_batch(&group.ids, None, None))?;
            if !group.sentences.is_empty() {
                column::<ByteArrayType>(&mut columns, |column| {
                    column.write_batch(&group.sentences, None, None)
                })?;
            }
            if !group.metadata.is_empty() {
                column::<ByteArrayType>(&mut columns, |column| {
                    column.write_batch(&group.metadata, None, None)
                })?;
            }
            let (definition, repetition) = group.levels();
            let levels = (Some(definition.as_slice()), Some(repetition.as_slice()));
            if half_precision {
                let half =
                    |value: &f32| FixedLenByteArray::from(f16::from_f32(*value).to_le_bytes().to_vec());
                let values: Vec<_> = group.values.iter().map(half).collect();
                column::<FixedLenByteArrayType>(&mut columns, |column| {
                    column.write_batch(&values, levels.0, levels.1)
                })?;
            } else {
                column::<FloatType>(&mut columns, |column| {
                    column.write_batch(&group.values, levels.0, levels.1)
                })?;
            }
            columns.close().map(drop)
        };
        write(&mut self.writer)
            .map_err(|error| DataError::io(&self.temporary, "write", std::io::Error::other(error)))
    }
}

impl Group {
    /// Of each value whether it is there, and whether it goes on with the list before it. An empty list has one entry.
    fn levels(&self) -> (Vec<i16>, Vec<i16>) {
        let (mut definition, mut repetition) = (Vec::new(), Vec::new());
        for length in &self.lengths {
            definition.extend(std::iter::repeat_n(1, *length));
            repetition.push(0);
            repetition.extend(std::iter::repeat_n(1, length.saturating_sub(1)));
            if *length == 0 {
                definition.push(0);
            }
        }
        (definition, repetition)
    }
}

fn column<T: DataType>(
    columns: &mut SerializedRowGroupWriter<'_, File>,
    write: impl FnOnce(&mut ColumnWriterImpl<'_, T>) -> Result<usize, ParquetError>,
) -> Result<(), ParquetError> {
    let missing = || ParquetError::General("a column is missing".to_owned());
    let mut column = columns.next_column()?.ok_or_else(missing)?;
    write(column.typed::<T>())?;
    column.close()
}

fn schema(columns: &EmbeddingColumns) -> Result<TypePtr, ParquetError> {
    let text = |name: &str| {
        Type::primitive_type_builder(name, PhysicalType::BYTE_ARRAY)
            .with_repetition(Repetition::REQUIRED)
            .with_logical_type(Some(LogicalType::String))
            .with_converted_type(ConvertedType::UTF8)
            .build()
            .map(Arc::new)
    };
    let item = Type::primitive_type_builder("item", PhysicalType::INT64)
        .with_repetition(Repetition::REQUIRED)
        .build()?;
    let value = if columns.half_precision {
        Type::primitive_type_builder("element", PhysicalType::FIXED_LEN_BYTE_ARRAY)
            .with_length(2)
            .with_logical_type(Some(LogicalType::Float16))
    } else {
        Type::primitive_type_builder("element", PhysicalType::FLOAT)
    };
    let value = value.with_repetition(Repetition::REQUIRED).build()?;
    let list = Type::group_type_builder("list")
        .with_repetition(Repetition::REPEATED)
        .with_fields(vec![Arc::new(value)])
        .build()?;
    let embedding = Type::group_type_builder("embedding")
        .with_repetition(Repetition::REQUIRED)
        .with_logical_type(Some(LogicalType::List))
        .with_converted_type(ConvertedType::LIST)
        .with_fields(vec![Arc::new(list)])
        .build()?;
    let mut fields = vec![Arc::new(item), text("id")?];
    if columns.sentences {
        fields.push(text("sentence")?);
    }
    if columns.item_metadata {
        fields.push(text("metadata")?);
    }
    fields.push(Arc::new(embedding));
    Type::group_type_builder("schema").with_fields(fields).build().map(Arc::new)
}
