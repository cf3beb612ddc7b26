//! What the routes answer.

use std::time::Duration;

use aeir_retrieve::{Hit, Metadata};
use serde::Serialize;
use utoipa::ToSchema;

use crate::search_engine::{Answer, Found};
use crate::serve::library::{ItemId, Volume};

/// What a search found.
#[derive(Serialize, ToSchema)]
pub(super) struct Results {
    /// Best first.
    results: Vec<ResultLine>,
    /// Of a sentence, where the index has a query bank: the share of the bank's sentences whose best match is no better.
    #[serde(skip_serializing_if = "Option::is_none")]
    confidence: Option<f64>,
    /// With `min_confidence`: whether nothing was good enough.
    #[serde(skip_serializing_if = "Option::is_none")]
    no_good_match: Option<bool>,
    /// The hubness correction that the scores went through.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    correction: Option<&'static str>,
    /// Which state of the index answered.
    generation: u64,
    /// From the head of the request to the answer.
    took_ms: f64,
}

/// One image.
#[derive(Serialize, ToSchema)]
struct ResultLine {
    /// 1 for the best.
    rank: usize,
    /// Larger is more similar: a cosine, less the correction; or the score of the model's head.
    score: f32,
    /// As `confidence` of the whole, with this image in place of the best.
    #[serde(skip_serializing_if = "Option::is_none")]
    confidence: Option<f64>,
    #[serde(flatten)]
    item: ItemLine,
    /// What was indexed with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    metadata: Option<Metadata>,
    /// Near-identical images, where they are collapsed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    duplicates: Vec<ItemLine>,
}

/// An image by name.
#[derive(Serialize, ToSchema)]
struct ItemLine {
    /// For `/v1/items/{id}` and for `item` in a query.
    id: String,
    /// Its file below the folder that all images share.
    name: String,
}

impl ItemLine {
    fn of(volume: &Volume, item: &str) -> Self {
        Self { id: ItemId::of(item).to_string(), name: volume.name(item).to_owned() }
    }
}

impl Results {
    pub(super) fn of(volume: &Volume, answer: Answer, took: Duration) -> Self {
        let line = |Found { hit: Hit { rank, score, item, position }, confidence, duplicates }| ResultLine {
            rank,
            score,
            confidence,
            item: ItemLine::of(volume, &item),
            metadata: volume.engine.shelf.index.metadata(position),
            duplicates: duplicates.iter().map(|hit| ItemLine::of(volume, &hit.item)).collect(),
        };
        Self {
            results: answer.found.into_iter().map(line).collect(),
            confidence: answer.confidence,
            no_good_match: answer.no_good_match,
            correction: answer.correction,
            generation: volume.generation,
            took_ms: milliseconds(took),
        }
    }
}

/// The vector of a query.
#[derive(Serialize, ToSchema)]
pub(super) struct Vector {
    /// Of length 1.
    embedding: Vec<f32>,
    /// How many numbers that are.
    dimension: usize,
    /// The model's fingerprint: vectors of another one can't be compared.
    model: String,
}

impl Vector {
    pub(super) fn of(volume: &Volume, embedding: Vec<f32>) -> Self {
        let model = volume.engine.bundle.fingerprint().to_owned();
        Self { dimension: embedding.len(), embedding, model }
    }
}

/// An item of the index.
#[derive(Serialize, ToSchema)]
pub(super) struct Item {
    #[serde(flatten)]
    item: ItemLine,
    /// Its row in the index.
    position: usize,
    /// What was indexed with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    metadata: Option<Metadata>,
    /// Which state of the index that is.
    generation: u64,
}

impl Item {
    pub(super) fn of(volume: &Volume, position: usize) -> Option<Self> {
        let item = ItemLine::of(volume, volume.engine.shelf.index.item(position)?);
        let metadata = volume.engine.shelf.index.metadata(position);
        Some(Self { item, position, metadata, generation: volume.generation })
    }
}

/// Some items of the index.
#[derive(Serialize, ToSchema)]
pub(super) struct Items {
    items: Vec<Item>,
    /// How many the index has.
    total: usize,
}

impl Items {
    /// At most `wanted`, at equal distances.
    pub(super) fn spread(volume: &Volume, wanted: usize) -> Self {
        let total = volume.items();
        let count = wanted.min(total);
        let items = (0..count).filter_map(|i| Item::of(volume, i * total / count)).collect();
        Self { items, total }
    }
}

/// The model and the index that are served.
#[derive(Serialize, ToSchema)]
pub(super) struct Card {
    /// The name of the index's folder.
    name: String,
    /// Images that can be found.
    items: usize,
    /// Which state of the index is served; goes up when a new one is taken over.
    generation: u64,
    /// The program that wrote the index.
    index_written_by: String,
    /// The method that trained the model.
    method: String,
    /// How image and sentence are compared; other heads than `cosine` re-rank.
    head: String,
    /// Length of its vectors.
    dimension: usize,
    /// The domain that it serves.
    domain: String,
    /// Identity of the model: weights, preprocessing, tokenizer, statistics.
    fingerprint: String,
    /// Whether queries may be images.
    takes_images: bool,
    /// The hubness correction of the index.
    #[schema(value_type = Option<String>)]
    correction: Option<&'static str>,
    /// Sentences that confidence is worked out from; 0 for no confidence.
    bank_sentences: usize,
}

impl Card {
    pub(super) fn of(volume: &Volume) -> Self {
        let (shelf, bundle) = (&volume.engine.shelf, &volume.engine.bundle);
        let manifest = bundle.manifest();
        let folder = shelf.index.folder();
        let named = std::path::absolute(folder).ok();
        let named = named.as_deref().unwrap_or(folder).file_name();
        Self {
            name: named.unwrap_or_default().to_string_lossy().into_owned(),
            items: shelf.index.len(),
            generation: volume.generation,
            index_written_by: shelf.index.created_by().to_owned(),
            method: manifest.method.clone(),
            head: manifest.similarity_head.clone(),
            dimension: bundle.dimension(),
            domain: manifest.serving_domain.clone(),
            fingerprint: manifest.fingerprint.clone(),
            takes_images: bundle.image_backbone().is_some(),
            correction: shelf.correction_name(),
            bank_sentences: shelf.confidence.as_ref().map_or(0, aeir_retrieve::Confidence::bank),
        }
    }
}

/// That queries are answered.
#[derive(Serialize, ToSchema)]
pub(super) struct Health {
    /// `ok`, or `stale` where a newer index can't be served.
    status: &'static str,
    /// How long a sentence took to be embedded, with its wait.
    embedding_ms: f64,
    /// Images that can be found.
    items: usize,
    /// Which state of the index is served.
    generation: u64,
    /// Where it is stale: what that means.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    trouble: Option<&'static str>,
}

impl Health {
    pub(super) fn of(volume: &Volume, took: Duration, trouble: bool) -> Self {
        Self {
            status: if trouble { "stale" } else { "ok" },
            embedding_ms: milliseconds(took),
            items: volume.engine.shelf.index.len(),
            generation: volume.generation,
            trouble: trouble.then_some("a newer index can't be served: stderr of the server says why"),
        }
    }
}

fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e5).round() / 100.0
}
