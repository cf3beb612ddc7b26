//! From files and sentences to feature tables: the bridge between data, frozen backbones and the feature cache.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

use aeir_data::{
    AlignedTarget, CaptionedImage, ContentHash, DataError, FeatureCache, Features, ImageLimits,
    ParallelDomain, Precision, Skipped, TargetImages, TargetSentences, TestPairs, for_each_batch, hash_file,
    hash_text,
};
use aeir_encoders::{ImageBackbone, TextBackbone};
use rayon::prelude::*;

use crate::data::{EvaluationPairs, FeatureTable, SourceData, TargetData};
use crate::error::{Result, TrainError};

/// Images encoded at once.
const IMAGE_BATCH: usize = 16;
/// Sentences encoded at once.
const SENTENCE_BATCH: usize = 256;

/// Encodes with frozen backbones, each item once: the cache knows it by content and encoder.
pub struct FeatureExtractor<'a> {
    images: &'a dyn ImageBackbone,
    sentences: &'a dyn TextBackbone,
    image_cache: Option<FeatureCache>,
    sentence_cache: Option<FeatureCache>,
    limits: ImageLimits,
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
    pub table: FeatureTable,
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
    pub fn new(images: &'a dyn ImageBackbone, sentences: &'a dyn TextBackbone) -> Self {
        Self {
            images,
            sentences,
            image_cache: None,
            sentence_cache: None,
            limits: ImageLimits::default(),
            progress: Box::new(|_| ()),
        }
    }

    /// Keeps pooled features in `folder`, f32.
    ///
    /// # Errors
    /// When the cache can't be opened or made.
    pub fn with_cache(mut self, folder: &Path) -> Result<Self> {
        self.image_cache = Some(FeatureCache::open(folder, self.images.fingerprint(), Precision::F32)?);
        self.sentence_cache = Some(FeatureCache::open(folder, self.sentences.fingerprint(), Precision::F32)?);
        Ok(self)
    }

    /// Limits that an image is checked against before it is decoded.
    pub fn with_limits(mut self, limits: ImageLimits) -> Self {
        self.limits = limits;
        self
    }

    /// Calls `progress` as items are done.
    pub fn with_progress(mut self, progress: impl FnMut(Progress<'_>) + Send + 'a) -> Self {
        self.progress = Box::new(progress);
        self
    }

    /// Pooled features of image files. One that is missing or can't be decoded is left out and listed.
    ///
    /// # Errors
    /// When none is left, the network fails or the cache can't be written.
    pub fn images(&mut self, what: &str, paths: &[PathBuf]) -> Result<Extracted> {
        let limits = self.limits;
        let hashes: Vec<std::result::Result<ContentHash, DataError>> =
            paths.par_iter().map(|path| hash_within(path, &limits)).collect();
        let mut found: HashMap<ContentHash, Vec<f32>> = HashMap::new();
        let mut failed: HashMap<ContentHash, Skipped> = HashMap::new();
        let mut missing: Vec<(ContentHash, PathBuf)> = Vec::new();
        let mut seen = HashSet::new();
        for (hash, path) in hashes.iter().zip(paths) {
            let Ok(hash) = hash else { continue };
            if !seen.insert(*hash) {
                continue;
            }
            match self.image_cache.as_ref().map(|cache| cache.get(hash)).transpose()?.flatten() {
                Some(features) => drop(found.insert(*hash, features.values)),
                None => missing.push((*hash, path.clone())),
            }
        }
        let (cached, total) = (found.len(), found.len() + missing.len());
        (self.progress)(Progress { what, done: cached, total, cached });

        let to_encode: Vec<PathBuf> = missing.iter().map(|(_, path)| path.clone()).collect();
        let mut done = cached;
        for_each_batch(&to_encode, &limits, IMAGE_BATCH, |batch| {
            let (mut keys, mut decoded) = (Vec::new(), Vec::new());
            done += batch.len();
            for (index, image) in batch {
                let Some((hash, path)) = missing.get(index) else { continue };
                match image {
                    // The file may have changed since it was hashed: its features go by what was decoded.
                    Ok(image) if image.hash == *hash => {
                        keys.push(*hash);
                        decoded.push(image.image);
                    }
                    Ok(_) => {
                        let reason = "changed while it was being read".to_owned();
                        let item = path.display().to_string();
                        failed.insert(*hash, Skipped { item, line: None, file: None, reason });
                    }
                    Err(error) => drop(failed.insert(*hash, Skipped::image(path, &error))),
                }
            }
            if !decoded.is_empty() {
                let rows = self.images.encode(&decoded)?.to_vec2::<f32>()?;
                store(self.image_cache.as_ref(), keys, rows, &mut found)?;
            }
            (self.progress)(Progress { what, done, total, cached });
            Ok::<_, TrainError>(())
        })?;

        let mut builder = TableBuilder::new(self.images.dimension());
        for (hash, path) in hashes.into_iter().zip(paths) {
            match hash {
                Ok(hash) => match (found.get(&hash), failed.get(&hash)) {
                    (Some(values), _) => builder.push(values),
                    (None, Some(skipped)) => {
                        builder.skip(Skipped { item: path.display().to_string(), ..skipped.clone() });
                    }
                    (None, None) => builder.skip(Skipped {
                        item: path.display().to_string(),
                        line: None,
                        file: None,
                        reason: "was not encoded".into(),
                    }),
                },
                Err(error) => builder.skip(Skipped::image(path, &error)),
            }
        }
        builder.finish(what, "image")
    }

    /// Pooled features of sentences, one row each, in order.
    ///
    /// # Errors
    /// When tokenising fails or the cache can't be written.
    pub fn sentences(&mut self, what: &str, sentences: &[String]) -> Result<FeatureTable> {
        let keys: Vec<ContentHash> = sentences.iter().map(|sentence| hash_text(sentence)).collect();
        let mut found: HashMap<ContentHash, Vec<f32>> = HashMap::new();
        let mut missing: BTreeMap<ContentHash, &str> = BTreeMap::new();
        for (key, sentence) in keys.iter().zip(sentences) {
            if found.contains_key(key) || missing.contains_key(key) {
                continue;
            }
            match self.sentence_cache.as_ref().map(|cache| cache.get(key)).transpose()?.flatten() {
                Some(features) => drop(found.insert(*key, features.values)),
                None => drop(missing.insert(*key, sentence)),
            }
        }
        let (cached, total) = (found.len(), found.len() + missing.len());
        (self.progress)(Progress { what, done: cached, total, cached });
        let missing: Vec<(ContentHash, &str)> = missing.into_iter().collect();
        for batch in missing.chunks(SENTENCE_BATCH) {
            let texts: Vec<&str> = batch.iter().map(|(_, text)| *text).collect();
            let rows = self.sentences.encode(&texts)?.to_vec2::<f32>()?;
            store(
                self.sentence_cache.as_ref(),
                batch.iter().map(|(key, _)| *key).collect(),
                rows,
                &mut found,
            )?;
            (self.progress)(Progress { what, done: found.len(), total, cached });
        }
        let mut values = Vec::with_capacity(keys.len() * self.sentences.dimension());
        for key in &keys {
            values.extend_from_slice(found.get(key).map_or(&[][..], Vec::as_slice));
        }
        FeatureTable::new(values, self.sentences.dimension())
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
            let owners =
                sentences_of.iter().enumerate().flat_map(|(image, of)| of.iter().map(move |_| image));
            validation = Some(EvaluationPairs { owners: owners.collect(), images, sentences });
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

    /// The two unpaired target sets.
    ///
    /// # Errors
    /// When no image is left.
    pub fn target(
        &mut self,
        images: &TargetImages,
        sentences: &TargetSentences,
    ) -> Result<(TargetData, Vec<Skipped>)> {
        let extracted = self.images("target images", images.paths())?;
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
    ) -> Result<(FeatureTable, FeatureTable, Vec<Vec<usize>>, Vec<Skipped>)> {
        let paths: Vec<PathBuf> = items.iter().map(|item| item.image.clone()).collect();
        let extracted = self.images(&format!("{what} images"), &paths)?;
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

/// The hash of a file that is not too large to be decoded anyway.
fn hash_within(path: &Path, limits: &ImageLimits) -> std::result::Result<ContentHash, DataError> {
    match std::fs::metadata(path) {
        // Decoding says what is wrong with it, without reading it.
        Ok(metadata) if !metadata.is_file() || metadata.len() > limits.max_bytes => {
            aeir_data::decode_file(path, limits).map(|image| image.hash)
        }
        _ => hash_file(path),
    }
}

/// Puts encoded rows into the cache and into `found`.
fn store(
    cache: Option<&FeatureCache>,
    keys: Vec<ContentHash>,
    rows: Vec<Vec<f32>>,
    found: &mut HashMap<ContentHash, Vec<f32>>,
) -> Result<()> {
    let features: Vec<(ContentHash, Features)> =
        keys.into_iter().zip(rows.into_iter().map(Features::pooled)).collect();
    if let Some(cache) = cache {
        cache.append(&features)?;
    }
    found.extend(features.into_iter().map(|(key, features)| (key, features.values)));
    Ok(())
}

struct TableBuilder {
    dimension: usize,
    values: Vec<f32>,
    rows: Vec<Option<usize>>,
    skipped: Vec<Skipped>,
}

impl TableBuilder {
    fn new(dimension: usize) -> Self {
        Self { dimension, values: Vec::new(), rows: Vec::new(), skipped: Vec::new() }
    }

    fn push(&mut self, values: &[f32]) {
        self.rows.push(Some(self.values.len() / self.dimension.max(1)));
        self.values.extend_from_slice(values);
    }

    fn skip(&mut self, skipped: Skipped) {
        self.rows.push(None);
        self.skipped.push(skipped);
    }

    fn finish(self, what: &str, kind: &str) -> Result<Extracted> {
        if self.values.is_empty() {
            let first = self.skipped.first().map_or_else(String::new, |first| {
                format!("; the first of {}: `{}`: {}", self.skipped.len(), first.item, first.reason)
            });
            return Err(TrainError::Data {
                what: what.into(),
                expected: format!("at least one usable {kind}"),
                got: format!("none{first}"),
            });
        }
        let table = FeatureTable::new(self.values, self.dimension)?;
        Ok(Extracted { table, rows: self.rows, skipped: self.skipped })
    }
}
