//! Tables of items: pooled features, fragments or words, and batches of them.

use std::sync::Arc;

use aeir_data::{FeatureRow, RegionFeatures};
use aeir_encoders::rehearsal::Product;
use aeir_encoders::standardise::Standardiser;
use aeir_encoders::{Fragments, Head, ImageInput, Items, Mode, WordBatch};
use candle_core::{DType, Device, Tensor};
use half::f16;
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::error::{Result, TrainError};
use crate::method::SentenceKind;
use crate::tuned::{TunedEncoder, TunedTable};

/// Rows of a mapped file that its digest reads: a 100 GB file can't be hashed at every start.
const DIGEST_ROWS: usize = 1_024;

/// A set of items of one modality, on the host.
#[derive(Debug, Clone)]
pub enum ItemTable {
    /// One vector an item.
    Pooled(FeatureTable),
    /// Regions, grid cells or tokens.
    Fragments(FragmentTable),
    /// Words of a vocabulary.
    Words(WordTable),
    /// Images or sentences of an encoder that is trained.
    Tuned(TunedTable),
}

impl ItemTable {
    /// Number of items.
    pub fn len(&self) -> usize {
        match self {
            Self::Pooled(table) => table.len(),
            Self::Fragments(table) => table.len(),
            Self::Words(table) => table.ids.len(),
            Self::Tuned(table) => table.initial.len(),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// F of the features; for words the size of the vocabulary.
    pub fn dimension(&self) -> usize {
        match self {
            Self::Pooled(table) => table.dimension,
            Self::Fragments(table) => table.dimension,
            Self::Words(table) => table.vocabulary_size,
            Self::Tuned(table) => table.initial.dimension,
        }
    }

    /// The encoder that is trained with the towers, where there is one.
    pub(crate) fn tuned(&self) -> Option<&TunedEncoder> {
        match self {
            Self::Tuned(table) => Some(table.encoder.as_ref()),
            _ => None,
        }
    }

    /// Hands every feature row to `visit`: a vector an item, or one a fragment. Words have none.
    ///
    /// # Errors
    /// When a mapped file can't be read.
    pub fn each_row(&self, visit: &mut dyn FnMut(&[f32])) -> Result<()> {
        match self {
            Self::Pooled(table) | Self::Tuned(TunedTable { initial: table, .. }) => {
                table.rows().for_each(visit);
            }
            Self::Fragments(table) => {
                let mut values = Vec::new();
                for item in 0..table.len() {
                    values.resize(table.padded(item) * table.dimension, 0.0);
                    table.read(item, &mut values)?;
                    values.chunks_exact(table.dimension).take(table.fragments(item)).for_each(&mut *visit);
                }
            }
            Self::Words(_) => {}
        }
        Ok(())
    }

    /// The items of `rows` as a batch, not standardised.
    ///
    /// # Errors
    /// When the device has no room or a mapped file can't be read.
    pub fn items(&self, rows: &[usize], device: &Device) -> Result<Items> {
        PreparedItems::new(&[(self, None)], device)?.select(rows)
    }

    /// Bytes that it takes in memory while it is trained on: vectors lie on the host and, standardised, on the device; a
    /// mapped file takes none.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Pooled(table) => 2 * size_of_val(table.values.as_slice()),
            Self::Tuned(table) => size_of_val(table.initial.values.as_slice()),
            Self::Fragments(table) => match &table.storage {
                Storage::Memory { values, .. } => size_of_val(values.as_slice()),
                Storage::Mapped(_) => 0,
            },
            Self::Words(table) => table.ids.iter().map(|ids| size_of_val(ids.as_slice())).sum(),
        }
    }

    pub(crate) fn digest(&self, hash: &mut Sha256) {
        let mut numbers = |numbers: &[usize]| {
            numbers.iter().for_each(|number| hash.update((*number as u64).to_le_bytes()));
        };
        match self {
            Self::Pooled(table) | Self::Tuned(TunedTable { initial: table, .. }) => {
                numbers(&[0, table.len(), table.dimension]);
                table.values.iter().for_each(|value| hash.update(value.to_le_bytes()));
            }
            Self::Fragments(table) => {
                numbers(&[1, table.len(), table.dimension]);
                table.digest(hash);
            }
            Self::Words(table) => {
                numbers(&[2, table.ids.len(), table.vocabulary_size]);
                for ids in table.ids.iter() {
                    hash.update((ids.len() as u64).to_le_bytes());
                    ids.iter().for_each(|id| hash.update(id.to_le_bytes()));
                }
            }
        }
    }
}

/// Frozen-backbone features of a set of items, one row an item, `[N, F]` row-major on the host.
#[derive(Debug, Clone, PartialEq)]
pub struct FeatureTable {
    dimension: usize,
    values: Vec<f32>,
}

impl FeatureTable {
    /// A table of `values.len() / dimension` rows.
    ///
    /// # Errors
    /// When that is not a whole number, or a value is not finite.
    pub fn new(values: Vec<f32>, dimension: usize) -> Result<Self> {
        if dimension == 0 || !values.len().is_multiple_of(dimension) {
            return Err(TrainError::Data {
                what: "feature table".into(),
                expected: format!("a multiple of {dimension} values, {dimension} above 0"),
                got: values.len().to_string(),
            });
        }
        if let Some(position) = values.iter().position(|value| !value.is_finite()) {
            return Err(TrainError::Data {
                what: format!("feature {} of item {}", position % dimension, position / dimension),
                expected: "a finite number".into(),
                got: values.get(position).map_or_else(String::new, f32::to_string),
            });
        }
        Ok(Self { dimension, values })
    }

    /// Number of items.
    pub fn len(&self) -> usize {
        self.values.len() / self.dimension
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// F.
    pub fn dimension(&self) -> usize {
        self.dimension
    }

    /// The features of each item.
    pub fn rows(&self) -> impl Iterator<Item = &[f32]> {
        self.values.chunks_exact(self.dimension)
    }

    fn tensor(&self, device: &Device) -> Result<Tensor> {
        Ok(Tensor::from_slice(&self.values, (self.len(), self.dimension), device)?)
    }
}

/// Fragments of a set of items: half precision in memory, or regions in a mapped file.
#[derive(Debug, Clone)]
pub struct FragmentTable {
    dimension: usize,
    /// The stored entry of each item; items of equal content share one.
    entries: Arc<Vec<usize>>,
    storage: Storage,
}

#[derive(Debug, Clone)]
enum Storage {
    /// Values of all entries one after the other; entry e begins at fragment `starts[e]` and ends at `starts[e + 1]`.
    Memory { values: Arc<Vec<f16>>, starts: Arc<Vec<usize>> },
    /// Files with the number of their first entry, in order.
    Mapped(Vec<(usize, RegionFeatures)>),
}

impl FragmentTable {
    /// Every image of a file of region features, or those in `rows`.
    ///
    /// # Errors
    /// When a row isn't there.
    pub fn mapped(file: RegionFeatures, rows: Option<Vec<usize>>) -> Result<Self> {
        let entries = rows.unwrap_or_else(|| (0..file.len()).collect());
        if let Some(row) = entries.iter().find(|row| **row >= file.len()) {
            return Err(TrainError::Data {
                what: "rows of region features".into(),
                expected: format!("below {}", file.len()),
                got: row.to_string(),
            });
        }
        let dimension = file.dimension();
        Ok(Self { dimension, entries: Arc::new(entries), storage: Storage::Mapped(vec![(0, file)]) })
    }

    /// These images of one or several files of region features, all of one shape.
    ///
    /// # Errors
    /// When there is none, a row isn't there or the shapes differ.
    pub fn of_rows(rows: &[&FeatureRow]) -> Result<Self> {
        let mut files: Vec<(usize, RegionFeatures)> = Vec::new();
        let mut entries = Vec::with_capacity(rows.len());
        for row in rows {
            let known = files.iter().find(|(_, file)| file.path() == row.features.path());
            let first = match known {
                Some((first, _)) => *first,
                None => {
                    let first = files.last().map_or(0, |(first, file)| first + file.len());
                    if let Some((_, shape)) = files.first() {
                        row.features.check_shape(shape)?;
                    }
                    files.push((first, row.features.clone()));
                    first
                }
            };
            if row.image >= row.features.len() {
                return Err(TrainError::Data {
                    what: "rows of region features".into(),
                    expected: format!("below {}", row.features.len()),
                    got: row.image.to_string(),
                });
            }
            entries.push(first + row.image);
        }
        let (_, first) = files.first().ok_or_else(|| TrainError::Data {
            what: "rows of region features".into(),
            expected: "at least one".into(),
            got: "none".into(),
        })?;
        Ok(Self { dimension: first.dimension(), entries: Arc::new(entries), storage: Storage::Mapped(files) })
    }

    /// Number of items.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// F.
    pub fn dimension(&self) -> usize {
        self.dimension
    }

    /// Number of fragments of an item; 0 for one that isn't there.
    pub fn fragments(&self, item: usize) -> usize {
        let Some(&entry) = self.entries.get(item) else { return 0 };
        match &self.storage {
            Storage::Memory { starts, .. } => match (starts.get(entry), starts.get(entry + 1)) {
                (Some(start), Some(end)) => end - start,
                _ => 0,
            },
            Storage::Mapped(files) => {
                mapped(files, entry).map_or(0, |(first, file)| file.regions_of(entry - first))
            }
        }
    }

    /// Fragments that an item takes with its padding: images of one file of region features always as many, whatever batch they
    /// are in.
    fn padded(&self, item: usize) -> usize {
        match (&self.storage, self.entries.get(item)) {
            (Storage::Mapped(files), Some(entry)) => {
                mapped(files, *entry).map_or(0, |(_, file)| file.regions())
            }
            _ => self.fragments(item),
        }
    }

    /// Writes the fragments of an item, one after the other, to the start of `into`.
    fn read(&self, item: usize, into: &mut [f32]) -> Result<()> {
        let Some(&entry) = self.entries.get(item) else { return Ok(()) };
        match &self.storage {
            Storage::Memory { values, starts } => {
                let start = starts.get(entry).copied().unwrap_or(0) * self.dimension;
                let stored = values.get(start..).unwrap_or_default();
                for (into, value) in into.iter_mut().zip(stored).take(self.fragments(item) * self.dimension) {
                    *into = value.to_f32();
                }
            }
            Storage::Mapped(files) => {
                let Some((first, file)) = mapped(files, entry) else { return Ok(()) };
                if let Some(into) = into.get_mut(..file.image_len()) {
                    file.read_into(entry - first, into)?;
                }
            }
        }
        Ok(())
    }

    fn digest(&self, hash: &mut Sha256) {
        self.entries.iter().for_each(|entry| hash.update((*entry as u64).to_le_bytes()));
        match &self.storage {
            Storage::Memory { values, starts } => {
                starts.iter().for_each(|start| hash.update((*start as u64).to_le_bytes()));
                values.iter().for_each(|value| hash.update(value.to_le_bytes()));
            }
            Storage::Mapped(files) => files.iter().for_each(|(_, file)| {
                let mut row = vec![0f32; file.regions() * file.dimension()];
                for index in (0..file.len()).step_by(file.len().div_ceil(DIGEST_ROWS).max(1)) {
                    // A row that can't be read is reported where it is trained on.
                    if file.read_into(index, &mut row).is_ok() {
                        row.iter().for_each(|value| hash.update(value.to_le_bytes()));
                    }
                }
            }),
        }
    }
}

/// The file of an entry, with the number of its first one.
fn mapped(files: &[(usize, RegionFeatures)], entry: usize) -> Option<&(usize, RegionFeatures)> {
    files.get(files.partition_point(|(first, _)| *first <= entry).checked_sub(1)?)
}

/// Collects fragments in memory, entry by entry.
#[derive(Debug)]
pub(crate) struct FragmentTableBuilder {
    dimension: usize,
    values: Vec<f16>,
    starts: Vec<usize>,
    entries: Vec<usize>,
}

impl FragmentTableBuilder {
    pub(crate) fn new(dimension: usize) -> Self {
        Self { dimension, values: Vec::new(), starts: vec![0], entries: Vec::new() }
    }

    /// Stores an entry, rows of features one after the other, and gives its number.
    pub(crate) fn store(&mut self, values: &[f32]) -> usize {
        self.values.extend(values.iter().map(|value| f16::from_f32(*value)));
        self.starts.push(self.values.len() / self.dimension.max(1));
        self.starts.len() - 2
    }

    /// The next item has the fragments of a stored entry.
    pub(crate) fn item(&mut self, entry: usize) {
        self.entries.push(entry);
    }

    /// # Errors
    /// When a value is not finite, also where half precision has no room for it.
    pub(crate) fn finish(self, what: &str) -> Result<FragmentTable> {
        if let Some(position) = self.values.iter().position(|value| !value.is_finite()) {
            let fragment = position / self.dimension.max(1);
            let entry = self.starts.partition_point(|start| *start <= fragment).saturating_sub(1);
            return Err(TrainError::Data {
                what: format!("{what}: a fragment's feature {} of entry {entry}", position % self.dimension),
                expected: "a finite number below 65,504".into(),
                got: self.values.get(position).map_or_else(String::new, f16::to_string),
            });
        }
        Ok(FragmentTable {
            dimension: self.dimension,
            entries: Arc::new(self.entries),
            storage: Storage::Memory { values: Arc::new(self.values), starts: Arc::new(self.starts) },
        })
    }
}

/// Sentences as ids of a vocabulary's words.
#[derive(Debug, Clone)]
pub struct WordTable {
    /// The words of each sentence.
    pub ids: Arc<Vec<Vec<u32>>>,
    /// Number of words that the vocabulary has.
    pub vocabulary_size: usize,
}

/// Standardised items, ready for batches.
#[derive(Clone)]
pub struct PreparedItems {
    device: Device,
    parts: Parts,
    /// All fragments of the tables, where they lie on the device.
    resident: Option<Arc<Resident>>,
    /// Bytes that a training may take, where that is bounded.
    pub(crate) budget: Option<u64>,
    /// The rows of the tables that these items are, where not all in order.
    rows: Option<Arc<Vec<usize>>>,
    count: usize,
}

#[derive(Clone)]
enum Parts {
    /// All domains in one tensor on the device.
    Pooled(Tensor),
    /// A table a domain, standardised as batches are made.
    Fragments(Vec<FragmentPart>),
    Words {
        parts: Vec<Arc<Vec<Vec<u32>>>>,
        vocabulary_size: usize,
    },
    /// A table a domain, encoded as batches are made.
    Tuned(Vec<TunedPart>),
}

/// Fragments of all items, standardised and padded to the longest: `[N, T, F]` and `[N, T]`.
struct Resident {
    features: Tensor,
    mask: Tensor,
}

/// Share of a budget that the items take that are embedded at once.
const AT_ONCE: u64 = 16;
/// Values of a fragment beside its features that embedding makes: projections, unit vectors, attention.
const EMBEDDING_VALUES: usize = 4_096;
/// Items that are put onto the device at once.
const SETTLED_AT_ONCE: usize = 256;

#[derive(Clone)]
struct TunedPart {
    table: TunedTable,
    /// Mean and deviation.
    statistics: Option<(Vec<f32>, Vec<f32>)>,
}

#[derive(Clone)]
struct FragmentPart {
    table: FragmentTable,
    /// Mean and deviation.
    statistics: Option<(Vec<f32>, Vec<f32>)>,
    /// `[F, F]`: what standardised fragments are multiplied by.
    whitening: Option<Tensor>,
}

impl PreparedItems {
    /// The items of all tables in order, each with its domain's statistics.
    ///
    /// # Errors
    /// When the tables differ in kind or dimension, or the device has no room.
    pub fn new(tables: &[(&ItemTable, Option<&Standardiser>)], device: &Device) -> Result<Self> {
        let count = tables.iter().map(|(table, _)| table.len()).sum();
        let (mut pooled, mut fragments, mut words, mut tuned) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (table, statistics) in tables {
            match table {
                ItemTable::Pooled(table) => {
                    let features = table.tensor(device)?;
                    pooled.push(statistics.map_or_else(|| Ok(features.clone()), |it| it.apply(&features))?);
                }
                ItemTable::Fragments(table) => fragments.push(FragmentPart {
                    table: table.clone(),
                    statistics: statistics.map(Standardiser::to_host).transpose()?,
                    // Fragments are whitened on the host, where they are put together.
                    whitening: statistics
                        .and_then(|it| it.whitening())
                        .map(|it| it.to_device(&Device::Cpu))
                        .transpose()?,
                }),
                ItemTable::Words(table) => words.push(table.ids.clone()),
                ItemTable::Tuned(table) => tuned.push(TunedPart {
                    table: table.clone(),
                    statistics: statistics.map(Standardiser::to_host).transpose()?,
                }),
            }
        }
        let dimensions: Vec<usize> = tables.iter().map(|(table, _)| table.dimension()).collect();
        let alike = dimensions.windows(2).all(|pair| pair.first() == pair.last());
        let parts = match (pooled.len(), fragments.len(), words.len(), tuned.len()) {
            (1.., 0, 0, 0) if alike => Parts::Pooled(Tensor::cat(&pooled, 0)?),
            (0, 1.., 0, 0) if alike => Parts::Fragments(fragments),
            (0, 0, 0, 1..) if alike => Parts::Tuned(tuned),
            (0, 0, 1.., 0) if alike => {
                Parts::Words { parts: words, vocabulary_size: dimensions.first().copied().unwrap_or(0) }
            }
            _ => {
                return Err(TrainError::Data {
                    what: "features of the source domains".into(),
                    expected: "the same kind and dimension in all of them".into(),
                    got: format!("dimensions {dimensions:?}"),
                });
            }
        };
        Ok(Self { device: device.clone(), parts, resident: None, budget: None, rows: None, count })
    }

    /// These items alone, in this order; none may be beyond the last.
    pub(crate) fn view(&self, rows: Vec<usize>) -> Self {
        let of_tables = |row: usize| self.rows.as_ref().map_or(Some(row), |rows| rows.get(row).copied());
        let rows: Vec<usize> = rows.into_iter().filter_map(of_tables).collect();
        Self {
            count: rows.len(),
            rows: Some(Arc::new(rows)),
            parts: self.parts.clone(),
            resident: self.resident.clone(),
            budget: self.budget,
            device: self.device.clone(),
        }
    }

    /// Fragments or words of the longest item; 1 of vectors.
    pub(crate) fn longest(&self) -> usize {
        match &self.parts {
            Parts::Pooled(_) | Parts::Tuned(_) => 1,
            Parts::Fragments(parts) => parts.iter().map(FragmentPart::longest).max().unwrap_or(1).max(1),
            Parts::Words { parts, .. } => {
                parts.iter().flat_map(|part| part.iter()).map(Vec::len).max().unwrap_or(1)
            }
        }
    }

    /// Whether all fragments lie on the device.
    #[cfg(test)]
    pub(crate) fn is_resident(&self) -> bool {
        self.resident.is_some()
    }

    /// Fragments or words of an item, the mean rounded up; 1 of vectors.
    pub(crate) fn mean_length(&self) -> usize {
        let (total, count): (usize, usize) = match &self.parts {
            Parts::Pooled(_) | Parts::Tuned(_) => (1, 1),
            Parts::Fragments(parts) => parts.iter().fold((0, 0), |(total, count), part| {
                let own = (0..part.table.len()).map(|item| part.table.fragments(item)).sum::<usize>();
                (total + own, count + part.table.len())
            }),
            Parts::Words { parts, .. } => parts.iter().fold((0, 0), |(total, count), part| {
                (total + part.iter().map(Vec::len).sum::<usize>(), count + part.len())
            }),
        };
        total.div_ceil(count.max(1)).max(1)
    }

    /// Puts all fragments onto the device where they fit into `room` bytes; how many they take.
    pub(crate) fn settle_on_device(&mut self, room: u64) -> Result<u64> {
        let Parts::Fragments(parts) = &self.parts else { return Ok(0) };
        let count: usize = parts.iter().map(|part| part.table.len()).sum();
        let (longest, dimension) = (self.longest(), self.dimension()?);
        let values = count * longest * (dimension + 1);
        let bytes = (values * size_of::<f32>()) as u64;
        // candle's kernels count the values of a table in 32 bits.
        if count == 0 || bytes > room || u32::try_from(values).is_err() {
            return Ok(0);
        }
        let features = Tensor::zeros((count, longest, dimension), DType::F32, &self.device)?;
        let mask = Tensor::zeros((count, longest), DType::F32, &self.device)?;
        let rows: Vec<usize> = (0..count).collect();
        for (block, rows) in rows.chunks(SETTLED_AT_ONCE).enumerate() {
            let fragments = self.gather(parts, rows)?;
            let missing = longest - fragments.mask().dim(1)?;
            let start = block * SETTLED_AT_ONCE;
            features.slice_set(
                &fragments.features().pad_with_zeros(1, 0, missing)?.contiguous()?,
                0,
                start,
            )?;
            mask.slice_set(&fragments.mask().pad_with_zeros(1, 0, missing)?.contiguous()?, 0, start)?;
        }
        self.resident = Some(Arc::new(Resident { features, mask }));
        Ok(bytes)
    }

    /// Number of items.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// F of the features; for words the size of the vocabulary.
    pub(crate) fn dimension(&self) -> Result<usize> {
        Ok(match &self.parts {
            Parts::Pooled(features) => features.dim(1)?,
            Parts::Fragments(parts) => parts.first().map_or(0, |part| part.table.dimension),
            Parts::Words { vocabulary_size, .. } => *vocabulary_size,
            Parts::Tuned(parts) => parts.first().map_or(0, |part| part.table.initial.dimension),
        })
    }

    /// What sentences come as.
    pub(crate) fn sentence_kind(&self) -> SentenceKind {
        match &self.parts {
            Parts::Pooled(_) | Parts::Tuned(_) => SentenceKind::Pooled,
            Parts::Fragments(_) => SentenceKind::Fragments,
            Parts::Words { .. } => SentenceKind::Words,
        }
    }

    /// What images come as.
    ///
    /// # Errors
    /// Where `head` needs the same number of fragments of every image.
    pub(crate) fn image_input(&self, head: Head) -> Result<ImageInput> {
        let Parts::Fragments(parts) = &self.parts else { return Ok(ImageInput::Pooled) };
        // Region by region, such a head has normalisation of its own: it needs as many of every image.
        let must_agree = matches!(head, Head::Saf | Head::Sgr | Head::Sgraf);
        let mut counts =
            parts.iter().flat_map(|part| (0..part.table.len()).map(|it| part.table.fragments(it)));
        let first = counts.next().unwrap_or(0);
        let most = counts.clone().max().unwrap_or(0).max(first);
        match counts.find(|count| *count != first) {
            Some(other) if must_agree => Err(TrainError::Data {
                what: "regions of the source images".into(),
                expected: format!(
                    "{first} in every image, as the head normalises each region; the heads `cosine`, `scan-t2i` and `scan-i2t` take \
                     images of different numbers"
                ),
                got: other.to_string(),
            }),
            _ => Ok(ImageInput::Fragments(most)),
        }
    }

    /// Items that are embedded at once, to bound memory.
    pub(crate) fn rows_at_once(&self) -> usize {
        let most = match &self.parts {
            Parts::Pooled(_) => 4_096,
            Parts::Fragments(_) | Parts::Words { .. } => 128,
            Parts::Tuned(_) => 32,
        };
        let Some(budget) = self.budget else { return most };
        let features = match &self.parts {
            Parts::Words { .. } => 0,
            _ => self.dimension().unwrap_or(0),
        };
        let bytes = (self.longest() * (features + EMBEDDING_VALUES) * size_of::<f32>()) as u64;
        usize::try_from(budget / AT_ONCE / bytes.max(1)).unwrap_or(most).clamp(1, most)
    }

    /// The encoder that is trained with the towers, where there is one.
    pub fn tuned(&self) -> Option<&Arc<TunedEncoder>> {
        match &self.parts {
            Parts::Tuned(parts) => parts.first().map(|part| &part.table.encoder),
            _ => None,
        }
    }

    /// The items of `rows` as a batch, without a graph.
    ///
    /// # Errors
    /// When a row isn't there, a mapped file can't be read or an image can't be decoded.
    pub fn select(&self, rows: &[usize]) -> Result<Items> {
        self.select_in(rows, &mut Mode::Evaluation)
    }

    /// The items of `rows` as a batch. In training those of an encoder that is trained come with the graph that leads to its
    /// parameters; others are as [`PreparedItems::select`] gives them.
    ///
    /// # Errors
    /// As [`PreparedItems::select`].
    pub fn select_in(&self, rows: &[usize], mode: &mut Mode<'_>) -> Result<Items> {
        if let Some(row) = rows.iter().find(|row| **row >= self.count) {
            return Err(TrainError::Data {
                what: "rows of a batch".into(),
                expected: format!("below {}", self.count),
                got: row.to_string(),
            });
        }
        let viewed: Option<Vec<usize>> =
            self.rows.as_ref().map(|all| rows.iter().filter_map(|row| all.get(*row).copied()).collect());
        let rows = viewed.as_deref().unwrap_or(rows);
        match &self.parts {
            Parts::Pooled(features) => {
                let rows: Vec<u32> = rows.iter().map(|row| *row as u32).collect();
                Ok(Items::Pooled(features.index_select(&Tensor::new(rows, &self.device)?, 0)?))
            }
            Parts::Fragments(parts) => Ok(Items::Fragments(match &self.resident {
                Some(resident) => self.pick(resident, parts, rows)?,
                None => self.gather(parts, rows)?,
            })),
            Parts::Tuned(parts) => Ok(Items::Pooled(self.encode(parts, rows, mode)?)),
            Parts::Words { parts, .. } => {
                let find = |row: usize| {
                    let mut row = row;
                    for part in parts {
                        match part.get(row) {
                            Some(ids) => return ids.as_slice(),
                            None => row -= part.len(),
                        }
                    }
                    &[][..]
                };
                let ids: Vec<&[u32]> = rows.iter().map(|row| find(*row)).collect();
                Ok(Items::Words(WordBatch::new(&ids, &self.device)?))
            }
        }
    }

    /// Encodes items of several domains in one pass, each standardised with its domain's statistics.
    fn encode(&self, parts: &[TunedPart], rows: &[usize], mode: &mut Mode<'_>) -> Result<Tensor> {
        let (mut items, mut means, mut deviations) = (Vec::new(), Vec::new(), Vec::new());
        for row in rows {
            let mut row = *row;
            let found = parts.iter().find_map(|part| match row.checked_sub(part.table.initial.len()) {
                None => Some((part, part.table.items.get(row)?)),
                Some(left) => {
                    row = left;
                    None
                }
            });
            let Some((part, item)) = found else { continue };
            items.push(item);
            if let Some((mean, deviation)) = &part.statistics {
                means.extend_from_slice(mean);
                deviations.extend_from_slice(deviation);
            }
        }
        let Some(part) = parts.first() else { return Ok(Tensor::zeros((0, 1), DType::F32, &self.device)?) };
        let vectors = part.table.encoder.encode(&items, mode)?;
        if part.statistics.is_none() {
            return Ok(vectors);
        }
        let of_rows = |values: Vec<f32>| Tensor::from_vec(values, vectors.shape(), &self.device);
        Ok(((&vectors - of_rows(means)?)? / of_rows(deviations)?)?)
    }

    /// The fragments of `rows`, taken on the device, padded as [`PreparedItems::gather`] does.
    fn pick(&self, resident: &Resident, parts: &[FragmentPart], rows: &[usize]) -> Result<Fragments> {
        let longest = longest_of(&located(parts, rows));
        let indices: Vec<u32> = rows.iter().map(|row| *row as u32).collect();
        let indices = Tensor::new(indices, &self.device)?;
        let of = |all: &Tensor| all.index_select(&indices, 0)?.narrow(1, 0, longest)?.contiguous();
        Ok(Fragments::new(of(&resident.features)?, of(&resident.mask)?)?)
    }

    fn gather(&self, parts: &[FragmentPart], rows: &[usize]) -> Result<Fragments> {
        let found = located(parts, rows);
        let dimension = parts.first().map_or(1, |part| part.table.dimension).max(1);
        let longest = longest_of(&found);
        let mut values = vec![0f32; rows.len() * longest * dimension];
        let mut mask = vec![0f32; rows.len() * longest];
        values
            .par_chunks_exact_mut(longest * dimension)
            .zip(mask.par_chunks_exact_mut(longest))
            .zip(&found)
            .try_for_each(|((values, mask), (part, row))| {
                let count = part.table.fragments(*row);
                part.table.read(*row, values)?;
                mask.iter_mut().take(count).for_each(|mask| *mask = 1.0);
                if let Some((mean, deviation)) = &part.statistics {
                    for fragment in values.chunks_exact_mut(dimension).take(count) {
                        for ((value, mean), deviation) in fragment.iter_mut().zip(mean).zip(deviation) {
                            *value = (*value - mean) / deviation;
                        }
                    }
                }
                Ok::<_, TrainError>(())
            })?;
        let features = Tensor::from_vec(values, (rows.len(), longest, dimension), &Device::Cpu)?;
        let features = whitened(&features, &found)?;
        let mask = Tensor::from_vec(mask, (rows.len(), longest), &Device::Cpu)?;
        Ok(Fragments::new(features.to_device(&self.device)?, mask.to_device(&self.device)?)?)
    }
}

impl FragmentPart {
    fn longest(&self) -> usize {
        (0..self.table.len()).map(|item| self.table.padded(item)).max().unwrap_or(0)
    }
}

/// The table of each row, and the row in it.
fn located<'a>(parts: &'a [FragmentPart], rows: &[usize]) -> Vec<(&'a FragmentPart, usize)> {
    let locate = |row: &usize| {
        let mut row = *row;
        parts.iter().find_map(|part| match row.checked_sub(part.table.len()) {
            None => Some((part, row)),
            Some(left) => {
                row = left;
                None
            }
        })
    };
    rows.iter().filter_map(locate).collect()
}

/// What a batch of these is padded to.
fn longest_of(found: &[(&FragmentPart, usize)]) -> usize {
    found.iter().map(|(part, row)| part.table.padded(*row)).max().unwrap_or(0).max(1)
}

/// Standardised fragments `[B, T, F]`, those of each domain multiplied by its whitening matrix; padding stays 0.
fn whitened(features: &Tensor, found: &[(&FragmentPart, usize)]) -> Result<Tensor> {
    if found.iter().all(|(part, _)| part.whitening.is_none()) {
        return Ok(features.clone());
    }
    let items = found.iter().enumerate().map(|(item, (part, _))| {
        let own = features.get(item)?;
        match &part.whitening {
            Some(whitening) => own.product(whitening),
            None => Ok(own),
        }
    });
    Ok(Tensor::stack(&items.collect::<candle_core::Result<Vec<_>>>()?, 0)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fragments_on_the_device_are_those_of_the_host() {
        let table = |items: &[usize]| {
            let mut builder = FragmentTableBuilder::new(3);
            for (item, count) in items.iter().enumerate() {
                let values: Vec<f32> = (0..3 * count).map(|it| (it * 7 % 5) as f32 + item as f32).collect();
                let entry = builder.store(&values);
                builder.item(entry);
            }
            ItemTable::Fragments(builder.finish("images").unwrap())
        };
        let tables = [table(&[2, 5, 1]), table(&[4, 3])];
        let host = PreparedItems::new(&[(&tables[0], None), (&tables[1], None)], &Device::Cpu).unwrap();
        let mut device = host.view(vec![4, 0, 2, 1]);
        let view = device.clone();
        let bytes = 5 * 5 * 4 * 4;
        assert_eq!(device.settle_on_device(bytes - 1).unwrap(), 0);
        assert!(device.resident.is_none());
        assert_eq!(device.settle_on_device(bytes).unwrap(), bytes);
        for rows in [vec![0], vec![3, 1], vec![2, 2, 1], vec![0, 1, 2, 3]] {
            let of = |items: &PreparedItems| {
                let Items::Fragments(fragments) = items.select(&rows).unwrap() else {
                    panic!("no fragments")
                };
                let shape = fragments.features().dims().to_vec();
                let flat = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                (shape, flat(fragments.features()), flat(fragments.mask()))
            };
            assert_eq!(of(&device), of(&view), "{rows:?}");
        }
    }

    #[test]
    fn a_budget_bounds_what_is_embedded_at_once() {
        let table = ItemTable::Pooled(FeatureTable::new(vec![0.0; 8], 4).unwrap());
        let mut items = PreparedItems::new(&[(&table, None)], &Device::Cpu).unwrap();
        assert_eq!(items.rows_at_once(), 4_096);
        items.budget = Some(16 * 100 * (4 + EMBEDDING_VALUES as u64) * 4);
        assert_eq!(items.rows_at_once(), 100);
        items.budget = Some(1);
        assert_eq!(items.rows_at_once(), 1);
    }

    #[test]
    fn features_that_are_not_finite_are_refused_by_place() {
        let error = FeatureTable::new(vec![0.0, 1.0, f32::NAN, 2.0], 2).unwrap_err().to_string();
        assert!(error.contains("feature 0 of item 1"), "{error}");
        assert!(FeatureTable::new(vec![0.0; 3], 2).is_err());
        let mut builder = FragmentTableBuilder::new(2);
        builder.store(&[0.0, 1.0]);
        builder.store(&[0.0, 1.0, 7e4, 1.0]);
        let error = builder.finish("images").unwrap_err().to_string();
        assert!(error.contains("feature 0 of entry 1"), "{error}");
    }

    fn two_items() -> ItemTable {
        let mut builder = FragmentTableBuilder::new(2);
        let (long, short) = (builder.store(&[1.0, 2.0, 3.0, 4.0]), builder.store(&[5.0, 7.0]));
        for entry in [short, long, short] {
            builder.item(entry);
        }
        ItemTable::Fragments(builder.finish("items").unwrap())
    }

    #[test]
    fn fragments_come_padded_and_standardised_with_their_own_domain() {
        let table = two_items();
        let statistics = Standardiser::fit([&[1.0f32, 2.0][..], &[3.0, 2.0]], 2, &Device::Cpu).unwrap();
        let both = [(&table, None), (&table, Some(&statistics))];
        let items = PreparedItems::new(&both, &Device::Cpu).unwrap();
        assert_eq!(items.len(), 6);
        let Items::Fragments(batch) = items.select(&[1, 2, 4]).unwrap() else { panic!("not fragments") };
        assert_eq!(batch.mask().to_vec2::<f32>().unwrap(), [[1.0, 1.0], [1.0, 0.0], [1.0, 1.0]]);
        let values = batch.features().to_vec3::<f32>().unwrap();
        assert_eq!(values[0], [[1.0, 2.0], [3.0, 4.0]]);
        assert_eq!(values[1], [[5.0, 7.0], [0.0, 0.0]]);
        assert_eq!((values[2][0][0], values[2][1][0]), (-1.0, 1.0));
        assert!(items.select(&[6]).is_err());
        assert!(items.image_input(Head::Saf).is_err(), "the items differ in their number of fragments");
        assert_eq!(items.image_input(Head::Cosine).unwrap(), ImageInput::Fragments(2));
    }

    /// A table of bottom-up attention with one box on its first line and two on its second.
    #[test]
    fn images_of_different_numbers_of_regions_are_padded_and_masked() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f.tsv");
        std::fs::write(&path, "1\t8\t6\t1\tAA==\tAACAPw==\n2\t8\t6\t2\tAA==\tAACAPwAAAEA=\n").unwrap();
        let table = FragmentTable::mapped(RegionFeatures::open(&path).unwrap(), None).unwrap();
        let table = ItemTable::Fragments(table);
        let mut rows = Vec::new();
        table.each_row(&mut |row| rows.push(row.to_vec())).unwrap();
        assert_eq!(rows, [[1.0], [1.0], [2.0]], "padding is no region");
        let items = PreparedItems::new(&[(&table, None)], &Device::Cpu).unwrap();
        // As wide as the image with most, in every batch.
        let Items::Fragments(batch) = items.select(&[0]).unwrap() else { panic!("not fragments") };
        assert_eq!(batch.mask().to_vec2::<f32>().unwrap(), [[1.0, 0.0]]);
        let Items::Fragments(batch) = items.select(&[1, 0]).unwrap() else { panic!("not fragments") };
        assert_eq!(batch.features().to_vec3::<f32>().unwrap(), [[[1.0], [2.0]], [[1.0], [0.0]]]);
        assert_eq!(items.image_input(Head::ScanT2i).unwrap(), ImageInput::Fragments(2));
        let refused = items.image_input(Head::Saf).unwrap_err().to_string();
        assert!(refused.contains("expected 1 in every image") && refused.contains("scan-t2i"), "{refused}");
    }

    #[test]
    fn domains_of_other_sizes_are_refused() {
        let other = ItemTable::Pooled(FeatureTable::new(vec![0.0; 6], 3).unwrap());
        assert!(PreparedItems::new(&[(&two_items(), None), (&other, None)], &Device::Cpu).is_err());
    }

    #[test]
    fn words_are_found_across_domains() {
        let table =
            |ids: Vec<Vec<u32>>| ItemTable::Words(WordTable { ids: Arc::new(ids), vocabulary_size: 9 });
        let (first, second) = (table(vec![vec![1], vec![2, 3]]), table(vec![vec![4, 5, 6]]));
        let items = PreparedItems::new(&[(&first, None), (&second, None)], &Device::Cpu).unwrap();
        let Items::Words(batch) = items.select(&[2, 0]).unwrap() else { panic!("not words") };
        assert_eq!(batch.ids().to_vec2::<u32>().unwrap(), [[4, 5, 6], [1, 0, 0]]);
    }
}
