//! From files and sentences to feature tables: the bridge between data, frozen backbones and the feature cache.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use aeir_data::{
    AlignedTarget, CaptionedImage, ContentHash, DataError, DecodedImage, FeatureCache, FeatureRow, Features,
    ImageLimits, ImageSource, LabelledPairs, LoadOptions, ParallelDomain, Precision, Prepared, Skipped,
    TargetImages, TargetSentences, TestPairs, for_each_prepared_batch, hash_text,
};
use aeir_encoders::{Fragments, ImageBackbone, TextBackbone, Vocabulary};
use candle_core::Tensor;
use rayon::prelude::*;

use crate::data::{EvaluationPairs, LABELLED, SourceData, TargetData};
use crate::error::{Result, TrainError};
use crate::items::{FeatureTable, FragmentTable, FragmentTableBuilder, ItemTable, WordTable};
use crate::tuned::{RawItems, TunedEncoder, TunedTable};

/// Images encoded at once.
const IMAGE_BATCH: usize = 16;
/// Sentences encoded at once.
const SENTENCE_BATCH: usize = 256;

/// What becomes of an image file.
#[derive(Clone, Copy)]
pub enum ImageEncoder<'a> {
    /// One vector of a frozen backbone.
    Pooled(&'a dyn ImageBackbone),
    /// The grid cells of a frozen backbone.
    Fragments(&'a dyn ImageBackbone),
    /// Images come as region features: there is nothing to encode.
    Regions,
}

/// What becomes of a sentence.
#[derive(Clone, Copy)]
pub enum SentenceEncoder<'a> {
    /// One vector of a frozen backbone.
    Pooled(&'a dyn TextBackbone),
    /// The tokens of a frozen backbone.
    Fragments(&'a dyn TextBackbone),
    /// Words, for an encoder that is trained.
    Words(&'a Vocabulary),
}

/// Encodes with frozen backbones, each item once: the cache knows it by content and encoder.
///
/// Pooled features are f32; fragments, which are some fifty times as many, are kept in half precision.
pub struct FeatureExtractor<'a> {
    images: ImageEncoder<'a>,
    sentences: SentenceEncoder<'a>,
    image_cache: Option<FeatureCache>,
    sentence_cache: Option<FeatureCache>,
    limits: ImageLimits,
    tuned_images: Option<Arc<TunedEncoder>>,
    tuned_sentences: Option<Arc<TunedEncoder>>,
    progress: Box<dyn FnMut(Progress<'_>) + Send + 'a>,
}

/// How far an extraction is.
#[derive(Debug, Clone, Copy)]
pub struct Progress<'a> {
    /// What is being encoded.
    pub what: &'a str,
    /// Items done.
    pub done: usize,
    /// Items in all.
    pub total: usize,
    /// How many of them the cache had.
    pub cached: usize,
}

/// Features of a list of items, some of which may have been left out.
pub struct Extracted {
    /// One row an item that could be encoded.
    pub table: ItemTable,
    /// The row of each item asked for.
    pub rows: Vec<Option<usize>>,
    /// What was left out, and why.
    pub skipped: Vec<Skipped>,
}

impl Extracted {
    /// The positions of the items that have a row, in row order.
    pub fn kept(&self) -> impl Iterator<Item = usize> + '_ {
        self.rows.iter().enumerate().filter_map(|(index, row)| row.map(|_| index))
    }
}

impl<'a> FeatureExtractor<'a> {
    /// Encodes with these backbones, without a cache, without progress.
    pub fn new(images: ImageEncoder<'a>, sentences: SentenceEncoder<'a>) -> Self {
        Self {
            images,
            sentences,
            image_cache: None,
            sentence_cache: None,
            limits: ImageLimits::default(),
            tuned_images: None,
            tuned_sentences: None,
            progress: Box::new(|_| ()),
        }
    }

    /// Keeps features in `folder`.
    ///
    /// # Errors
    /// When the cache can't be opened or made.
    pub fn with_cache(mut self, folder: &Path) -> Result<Self> {
        let open = |fingerprint: &str, kind: Kind| {
            // Fragments are other values of the same encoder: a name of their own.
            Ok::<_, TrainError>(Some(match kind {
                Kind::Pooled => FeatureCache::open(folder, fingerprint, Precision::F32)?,
                Kind::Fragments => {
                    FeatureCache::open(folder, &format!("{fingerprint}-fragments"), Precision::F16)?
                }
            }))
        };
        self.image_cache = match self.images {
            ImageEncoder::Pooled(backbone) => open(backbone.fingerprint(), Kind::Pooled)?,
            ImageEncoder::Fragments(backbone) => open(backbone.fingerprint(), Kind::Fragments)?,
            ImageEncoder::Regions => None,
        };
        self.sentence_cache = match self.sentences {
            SentenceEncoder::Pooled(backbone) => open(backbone.fingerprint(), Kind::Pooled)?,
            SentenceEncoder::Fragments(backbone) => open(backbone.fingerprint(), Kind::Fragments)?,
            SentenceEncoder::Words(_) => None,
        };
        Ok(self)
    }

    /// Limits that an image is checked against before it is decoded.
    pub fn with_limits(mut self, limits: ImageLimits) -> Self {
        self.limits = limits;
        self
    }

    /// Keeps the items beside their vectors, for encoders that are trained: of images, of sentences.
    pub fn with_tuned(
        mut self,
        images: Option<Arc<TunedEncoder>>,
        sentences: Option<Arc<TunedEncoder>>,
    ) -> Self {
        (self.tuned_images, self.tuned_sentences) = (images, sentences);
        self
    }

    /// Calls `progress` as items are done.
    pub fn with_progress(mut self, progress: impl FnMut(Progress<'_>) + Send + 'a) -> Self {
        self.progress = Box::new(progress);
        self
    }

    /// Features of images. One that is missing or can't be decoded is left out and listed.
    ///
    /// # Errors
    /// When none is left, the network fails or the cache can't be written.
    pub fn images(&mut self, what: &str, images: &[ImageSource]) -> Result<Extracted> {
        let features: Vec<&FeatureRow> = images.iter().filter_map(ImageSource::features).collect();
        if !features.is_empty() {
            return self.regions(what, images, &features);
        }
        let (backbone, kind) = match self.images {
            ImageEncoder::Pooled(backbone) => (backbone, Kind::Pooled),
            ImageEncoder::Fragments(backbone) => (backbone, Kind::Fragments),
            ImageEncoder::Regions => {
                return Err(TrainError::Data {
                    what: what.into(),
                    expected: "region features in a `.npy` file, as the model has no image encoder".into(),
                    got: "image files".into(),
                });
            }
        };
        let limits = self.limits;
        let hashes: Vec<std::result::Result<ContentHash, DataError>> =
            images.par_iter().map(|image| image.hash(&limits)).collect();
        let mut found: HashMap<ContentHash, usize> = HashMap::new();
        let mut table = TableBuilder::new(kind, backbone.dimension());
        let mut failed: HashMap<ContentHash, Skipped> = HashMap::new();
        let mut missing: Vec<(ContentHash, ImageSource)> = Vec::new();
        let mut seen = HashSet::new();
        for (hash, image) in hashes.iter().zip(images) {
            let Ok(hash) = hash else { continue };
            if !seen.insert(*hash) {
                continue;
            }
            match self.image_cache.as_ref().map(|cache| cache.get(hash)).transpose()?.flatten() {
                Some(features) => drop(found.insert(*hash, table.store(&features.values))),
                None => missing.push((*hash, image.clone())),
            }
        }
        let (cached, total) = (found.len(), found.len() + missing.len());
        (self.progress)(Progress { what, done: cached, total, cached });

        let to_encode: Vec<ImageSource> = missing.iter().map(|(_, image)| image.clone()).collect();
        let mut done = cached;
        let options = LoadOptions { limits, batch_size: IMAGE_BATCH, ..LoadOptions::default() };
        // Resized where it was decoded: of a photograph no more is kept than the network looks at.
        let prepare = |index: usize, decoded: std::result::Result<DecodedImage, DataError>| {
            let value = decoded
                .map(|decoded| (index, decoded.hash, backbone.preprocessor().prepare(&decoded.image)))
                .map_err(|error| (index, error));
            let bytes = match &value {
                Ok((.., Ok(image))) => image.bytes().len(),
                _ => 0,
            };
            Prepared { value, bytes }
        };
        for_each_prepared_batch(&to_encode, &options, prepare, |batch| {
            let (mut keys, mut prepared) = (Vec::new(), Vec::new());
            done += batch.len();
            for read in batch {
                let (Ok((index, ..)) | Err((index, _))) = &read;
                let Some((hash, source)) = missing.get(*index) else { continue };
                match read {
                    // The file may have changed since it was hashed: its features go by what was decoded.
                    Ok((_, of_decoded, image)) if of_decoded == *hash => {
                        keys.push(*hash);
                        prepared.push(image?);
                    }
                    Ok(_) => {
                        let reason = "changed while it was being read".to_owned();
                        let item = source.to_string();
                        failed.insert(*hash, Skipped { item, line: None, file: None, reason });
                    }
                    Err((_, error)) => drop(failed.insert(*hash, Skipped::image(source, &error))),
                }
            }
            if !prepared.is_empty() {
                let features = match kind {
                    Kind::Pooled => pooled_features(&backbone.encode_prepared(&prepared)?)?,
                    Kind::Fragments => fragment_features(&backbone.fragments_prepared(&prepared)?)?,
                };
                store(self.image_cache.as_ref(), keys, features, &mut table, &mut found)?;
            }
            (self.progress)(Progress { what, done, total, cached });
            Ok::<_, TrainError>(())
        })?;

        let mut rows = Rows::new(table);
        for (hash, image) in hashes.into_iter().zip(images) {
            let skip = |reason: &str| Skipped {
                item: image.to_string(),
                line: None,
                file: None,
                reason: reason.to_owned(),
            };
            match hash {
                Ok(hash) => match (found.get(&hash), failed.get(&hash)) {
                    (Some(entry), _) => rows.push(*entry),
                    (None, Some(skipped)) => rows.skip(skip(&skipped.reason)),
                    (None, None) => rows.skip(skip("was not encoded")),
                },
                Err(error) => rows.skip(Skipped::image(image, &error)),
            }
        }
        let mut extracted = rows.finish(what, "image")?;
        if let (Some(encoder), ItemTable::Pooled(initial)) = (&self.tuned_images, &extracted.table) {
            let kept = extracted.kept().filter_map(|row| images.get(row).cloned()).collect();
            extracted.table = ItemTable::Tuned(TunedTable {
                initial: initial.clone(),
                items: RawItems::Images(Arc::new(kept)),
                encoder: Arc::clone(encoder),
            });
        }
        Ok(extracted)
    }

    /// Images that come as features. All values are looked at once: one that is not finite would end the training later.
    fn regions(&self, what: &str, images: &[ImageSource], features: &[&FeatureRow]) -> Result<Extracted> {
        let refused = |expected: &str, got: &str| TrainError::Data {
            what: what.into(),
            expected: expected.into(),
            got: got.into(),
        };
        if let Some(other) = images.iter().find(|image| image.features().is_none()) {
            return Err(refused("all images as features, as some are", &format!("`{other}`")));
        }
        if !matches!(self.images, ImageEncoder::Regions) {
            return Err(refused("images to decode, as there is an image encoder", "features"));
        }
        let mut checked: Vec<&Path> = Vec::new();
        for row in features {
            if !checked.contains(&row.features.path()) {
                row.features.check_finite()?;
                checked.push(row.features.path());
            }
        }
        let table = ItemTable::Fragments(FragmentTable::of_rows(features)?);
        Ok(Extracted { table, rows: (0..images.len()).map(Some).collect(), skipped: Vec::new() })
    }

    /// Features, or words, of sentences, one item each, in order.
    ///
    /// # Errors
    /// When tokenising fails or the cache can't be written.
    pub fn sentences(&mut self, what: &str, sentences: &[String]) -> Result<ItemTable> {
        let (backbone, kind) = match self.sentences {
            SentenceEncoder::Pooled(backbone) => (backbone, Kind::Pooled),
            SentenceEncoder::Fragments(backbone) => (backbone, Kind::Fragments),
            SentenceEncoder::Words(vocabulary) => {
                let ids = sentences.iter().map(|sentence| vocabulary.ids(sentence)).collect();
                let vocabulary_size = vocabulary.size();
                return Ok(ItemTable::Words(WordTable { ids: Arc::new(ids), vocabulary_size }));
            }
        };
        let keys: Vec<ContentHash> = sentences.iter().map(|sentence| hash_text(sentence)).collect();
        let mut found: HashMap<ContentHash, usize> = HashMap::new();
        let mut table = TableBuilder::new(kind, backbone.dimension());
        let mut missing: BTreeMap<ContentHash, &str> = BTreeMap::new();
        for (key, sentence) in keys.iter().zip(sentences) {
            if found.contains_key(key) || missing.contains_key(key) {
                continue;
            }
            match self.sentence_cache.as_ref().map(|cache| cache.get(key)).transpose()?.flatten() {
                Some(features) => drop(found.insert(*key, table.store(&features.values))),
                None => drop(missing.insert(*key, sentence)),
            }
        }
        let (cached, total) = (found.len(), found.len() + missing.len());
        (self.progress)(Progress { what, done: cached, total, cached });
        let missing: Vec<(ContentHash, &str)> = missing.into_iter().collect();
        for batch in missing.chunks(SENTENCE_BATCH) {
            let texts: Vec<&str> = batch.iter().map(|(_, text)| *text).collect();
            let features = match kind {
                Kind::Pooled => pooled_features(&backbone.encode(&texts)?)?,
                Kind::Fragments => fragment_features(&backbone.fragments(&texts)?)?,
            };
            let keys = batch.iter().map(|(key, _)| *key).collect();
            store(self.sentence_cache.as_ref(), keys, features, &mut table, &mut found)?;
            (self.progress)(Progress { what, done: found.len(), total, cached });
        }
        let mut rows = Rows::new(table);
        keys.iter().filter_map(|key| found.get(key)).for_each(|entry| rows.push(*entry));
        Ok(match (rows.finish(what, "sentence")?.table, &self.tuned_sentences) {
            (ItemTable::Pooled(initial), Some(encoder)) => ItemTable::Tuned(TunedTable {
                initial,
                items: RawItems::Sentences(Arc::new(sentences.to_vec())),
                encoder: Arc::clone(encoder),
            }),
            (table, _) => table,
        })
    }

    /// A source domain with its validation split. Images that can't be encoded take their sentences with them.
    ///
    /// # Errors
    /// When no training image is left.
    pub fn source(&mut self, domain: &ParallelDomain) -> Result<(SourceData, Vec<Skipped>)> {
        let (images, sentences, sentences_of, mut skipped) = self.captioned(&domain.name, &domain.train)?;
        let mut validation = None;
        if !domain.validation.is_empty() {
            let what = format!("{} validation", domain.name);
            let (images, sentences, sentences_of, more) = self.captioned(&what, &domain.validation)?;
            validation = Some(EvaluationPairs { owners: owners(&sentences_of), images, sentences });
            skipped.extend(more);
        }
        let name = domain.name.clone();
        Ok((SourceData { name, images, sentences, sentences_of, validation }, skipped))
    }

    /// The target's training pairs as a source domain. For the oracle alone: no other run may see them.
    ///
    /// # Errors
    /// When no image is left.
    pub fn aligned_target(
        &mut self,
        name: &str,
        target: &AlignedTarget,
    ) -> Result<(SourceData, Vec<Skipped>)> {
        let (images, sentences, sentences_of, skipped) = self.captioned(name, target.items())?;
        Ok((SourceData { name: name.into(), images, sentences, sentences_of, validation: None }, skipped))
    }

    /// Pairs of the target that a person labelled, those to learn from.
    ///
    /// # Errors
    /// When no image is left.
    pub fn labelled(&mut self, pairs: &LabelledPairs) -> Result<(SourceData, Vec<Skipped>)> {
        let (images, sentences, sentences_of, skipped) = self.captioned(LABELLED, pairs.learn())?;
        Ok((SourceData { name: LABELLED.into(), images, sentences, sentences_of, validation: None }, skipped))
    }

    /// The two unpaired target sets.
    ///
    /// # Errors
    /// When no image is left.
    pub fn target(
        &mut self,
        images: &TargetImages,
        sentences: &TargetSentences,
    ) -> Result<(TargetData, Vec<Skipped>)> {
        let extracted = self.images("target images", images.images())?;
        let sentences = self.sentences("target sentences", sentences.sentences())?;
        Ok((TargetData { images: extracted.table, sentences }, extracted.skipped))
    }

    /// Pairs to score with.
    ///
    /// # Errors
    /// When no image is left.
    pub fn test(&mut self, pairs: &TestPairs) -> Result<(EvaluationPairs, Vec<Skipped>)> {
        let extracted = self.images("test images", pairs.images())?;
        let (mut kept, mut owners) = (Vec::new(), Vec::new());
        for (caption, owner) in pairs.captions().iter().zip(pairs.owners()) {
            if let Some(row) = extracted.rows.get(*owner).copied().flatten() {
                kept.push(caption.clone());
                owners.push(row);
            }
        }
        let sentences = self.sentences("test sentences", &kept)?;
        Ok((EvaluationPairs { images: extracted.table, sentences, owners }, extracted.skipped))
    }

    #[allow(clippy::type_complexity)]
    fn captioned(
        &mut self,
        what: &str,
        items: &[CaptionedImage],
    ) -> Result<(ItemTable, ItemTable, Vec<Vec<usize>>, Vec<Skipped>)> {
        let images: Vec<ImageSource> = items.iter().map(|item| item.image.clone()).collect();
        let extracted = self.images(&format!("{what} images"), &images)?;
        let (mut captions, mut sentences_of) = (Vec::new(), Vec::new());
        for item in extracted.kept().filter_map(|index| items.get(index)) {
            let first = captions.len();
            captions.extend(item.captions.iter().cloned());
            sentences_of.push((first..captions.len()).collect());
        }
        let sentences = self.sentences(&format!("{what} sentences"), &captions)?;
        Ok((extracted.table, sentences, sentences_of, extracted.skipped))
    }
}

/// The image of each sentence, from the sentences of each image.
fn owners(sentences_of: &[Vec<usize>]) -> Vec<usize> {
    sentences_of.iter().enumerate().flat_map(|(image, of)| of.iter().map(move |_| image)).collect()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Pooled,
    Fragments,
}

fn pooled_features(encoded: &Tensor) -> Result<Vec<Features>> {
    Ok(encoded.to_vec2::<f32>()?.into_iter().map(Features::pooled).collect())
}

/// The real fragments of each item, in half precision.
fn fragment_features(encoded: &Fragments) -> Result<Vec<Features>> {
    let masks = encoded.mask().to_vec2::<f32>()?;
    let features = encoded.features().to_vec3::<f32>()?;
    let columns = encoded.features().dim(2)?;
    let of_item = |(fragments, mask): (Vec<Vec<f32>>, Vec<f32>)| {
        let real = fragments.into_iter().zip(mask).filter(|(_, mask)| *mask != 0.0);
        let values: Vec<f32> = real.flat_map(|(fragment, _)| fragment).collect();
        Features { rows: values.len() / columns.max(1), columns, values }.rounded(Precision::F16)
    };
    Ok(features.into_iter().zip(masks).map(of_item).collect())
}

/// Puts encoded items into the cache, into the table and into `found`.
fn store(
    cache: Option<&FeatureCache>,
    keys: Vec<ContentHash>,
    features: Vec<Features>,
    table: &mut TableBuilder,
    found: &mut HashMap<ContentHash, usize>,
) -> Result<()> {
    let features: Vec<(ContentHash, Features)> = keys.into_iter().zip(features).collect();
    if let Some(cache) = cache {
        cache.append(&features)?;
    }
    found.extend(features.iter().map(|(key, features)| (*key, table.store(&features.values))));
    Ok(())
}

/// Features of different items, each once.
enum TableBuilder {
    Pooled { dimension: usize, entries: Vec<f32> },
    Fragments(FragmentTableBuilder),
}

impl TableBuilder {
    fn new(kind: Kind, dimension: usize) -> Self {
        match kind {
            Kind::Pooled => Self::Pooled { dimension, entries: Vec::new() },
            Kind::Fragments => Self::Fragments(FragmentTableBuilder::new(dimension)),
        }
    }

    /// The number of the new entry.
    fn store(&mut self, values: &[f32]) -> usize {
        match self {
            Self::Pooled { dimension, entries } => {
                entries.extend_from_slice(values);
                entries.len() / (*dimension).max(1) - 1
            }
            Self::Fragments(builder) => builder.store(values),
        }
    }
}

/// Items in the order asked for, as entries of a table.
struct Rows {
    table: TableBuilder,
    entries: Vec<usize>,
    rows: Vec<Option<usize>>,
    skipped: Vec<Skipped>,
}

impl Rows {
    fn new(table: TableBuilder) -> Self {
        Self { table, entries: Vec::new(), rows: Vec::new(), skipped: Vec::new() }
    }

    fn push(&mut self, entry: usize) {
        self.rows.push(Some(self.entries.len()));
        self.entries.push(entry);
    }

    fn skip(&mut self, skipped: Skipped) {
        self.rows.push(None);
        self.skipped.push(skipped);
    }

    fn finish(self, what: &str, kind: &str) -> Result<Extracted> {
        if self.entries.is_empty() {
            let first = self.skipped.first().map_or_else(String::new, |first| {
                format!("; the first of {}: `{}`: {}", self.skipped.len(), first.item, first.reason)
            });
            return Err(TrainError::Data {
                what: what.into(),
                expected: format!("at least one usable {kind}"),
                got: format!("none{first}"),
            });
        }
        let table = match self.table {
            TableBuilder::Pooled { dimension, entries } => {
                let row = |entry: &usize| entries.get(entry * dimension..(entry + 1) * dimension);
                let values: Vec<f32> = self.entries.iter().filter_map(row).flatten().copied().collect();
                ItemTable::Pooled(FeatureTable::new(values, dimension)?)
            }
            TableBuilder::Fragments(mut builder) => {
                self.entries.iter().for_each(|entry| builder.item(*entry));
                ItemTable::Fragments(builder.finish(what)?)
            }
        };
        Ok(Extracted { table, rows: self.rows, skipped: self.skipped })
    }
}
