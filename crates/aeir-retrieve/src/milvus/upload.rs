//! An index on its way into a collection: what is there is compared, what is missing or other is sent, and all of it is verified.

use std::collections::HashMap;
use std::thread::sleep;
use std::time::Duration;

use super::connection::Connection;
use super::error::Result;
use super::expression::among;
use super::layout::{Entity, Layout, UNFINISHED, columns};
use super::rows::{Known, MOST_ROWS, leading};
use super::{MilvusAccess, MilvusCollection, MilvusError, MilvusIndexKind, MilvusPlace};
use crate::{GalleryCorrection, Index, Matrix};

/// Bytes of a request with items, at most; an item alone always goes.
const BATCH_BYTES: usize = 4 << 20;
/// Names that are listed at once.
const LISTED: usize = 1_000;
/// Waits before a request is sent again after the connection broke.
const WAITS: [Duration; 4] =
    [Duration::from_millis(250), Duration::from_secs(1), Duration::from_secs(3), Duration::from_secs(6)];
/// What recall is measured with.
const RECALL_QUERIES: usize = 100;
const RECALL_AT: usize = 10;

/// What an upload does beside adding and replacing.
#[derive(Clone, Copy, Debug, Default)]
pub struct UploadOptions {
    /// Drop a collection that is of another model, of another layout or not of this crate, and make it anew.
    pub overwrite: bool,
    /// Delete the items of the collection that are not in the index.
    pub delete_others: bool,
    /// Which index the server has of the vectors; if nothing is said, the one that is there, or [`MilvusIndexKind::Flat`].
    pub kind: Option<MilvusIndexKind>,
}

/// How far an upload has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UploadProgress {
    /// Items that are in the collection.
    pub done: usize,
    /// Items of the index.
    pub total: usize,
    /// Items that had to be sent.
    pub sent: usize,
}

/// What an upload did. All counts were asked of the server.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct UploadReport {
    /// Items of the index, each verified to be in the collection.
    pub items: usize,
    /// Those that had to be sent.
    pub sent: usize,
    /// Items that were deleted.
    pub deleted: usize,
    /// Items in the collection that are not of the index.
    pub others: usize,
    /// Share of the ten best that a search of the collection finds, with the vectors of evenly spaced items as queries; none where it
    /// holds items of other indexes, or nothing.
    pub recall_at_10: Option<f64>,
}

pub(super) fn upload(
    place: &MilvusPlace,
    access: &MilvusAccess,
    index: &Index,
    options: &UploadOptions,
    told: &mut dyn FnMut(UploadProgress),
) -> Result<UploadReport> {
    let correction = GalleryCorrection::read(index)?;
    let layout = Layout::of(index, correction.as_ref())?;
    let connection = Connection::open(place, access)?;
    let mut upload = Upload { connection, index, correction, layout, sent: 0 };
    upload.prepare(options)?;
    let before = upload.connection.count()?;
    let deleted = upload.make_room(before, options.delete_others)?;
    upload.send(before > 0, told)?;
    let others = upload.finish()?;
    let collection = MilvusCollection {
        layout: upload.layout,
        count: index.len() + others,
        connection: upload.connection,
    };
    let recall_at_10 =
        if others == 0 && !index.is_empty() { Some(collection.recall_by_items(index)?) } else { None };
    Ok(UploadReport { items: index.len(), sent: upload.sent, deleted, others, recall_at_10 })
}

struct Upload<'a> {
    connection: Connection,
    index: &'a Index,
    correction: Option<GalleryCorrection>,
    layout: Layout,
    sent: usize,
}

impl Upload<'_> {
    /// A collection that takes the index: the one that is there, or a new one.
    fn prepare(&self, options: &UploadOptions) -> Result<()> {
        let place = self.connection.place();
        let found = self.connection.describe()?;
        let old = match found.map(|description| self.fits(&description)) {
            None => None,
            Some(Ok(old)) => Some(old),
            Some(Err(_)) if options.overwrite => {
                self.connection.drop_collection()?;
                None
            }
            Some(Err(error)) => return Err(error),
        };
        match old {
            Some(old) => {
                self.connection.set_properties(self.layout.properties())?;
                let stale = self.layout.stale(&old);
                if !stale.is_empty() {
                    self.connection.drop_properties(stale)?;
                }
            }
            None => self.connection.create(&self.layout)?,
        }
        self.connection.ensure_index(options.kind)?;
        self.connection.load()?;
        // Says what is wrong with a server that keeps no properties before anything is sent.
        let kept =
            self.connection.describe()?.ok_or_else(|| MilvusError::NoCollection { place: place.clone() })?;
        Layout::read(place, &kept)?;
        Ok(())
    }

    /// Whether a collection takes the index's items.
    fn fits(&self, description: &milvus::v2::types::CollectionDesc) -> Result<Layout> {
        let place = self.connection.place();
        let old = Layout::read(place, description)?;
        old.check_model(place, &self.layout.model)?;
        let foreign = |reason: String| MilvusError::Foreign { place: place.clone(), reason };
        if old.dimension != self.layout.dimension {
            let (expected, got) = (old.dimension, self.layout.dimension);
            return Err(foreign(format!("it holds embeddings of {expected} numbers, the index of {got}")));
        }
        if old.width() != self.layout.width() {
            let corrected = |layout: &Layout| if layout.correction.is_some() { "with" } else { "without" };
            return Err(foreign(format!(
                "it is {} a correction, the index {} one",
                corrected(&old),
                corrected(&self.layout)
            )));
        }
        Ok(old)
    }

    /// Deletes what is not of the index, if that is asked for; refuses it where the index can't be with others.
    fn make_room(&self, before: usize, delete: bool) -> Result<usize> {
        if before == 0 || !(delete || self.layout.is_of_one_index()) {
            return Ok(0);
        }
        let (mut others, mut last): (Vec<String>, Option<String>) = (Vec::new(), None);
        loop {
            let names = self.connection.names_after(last.as_deref(), LISTED)?;
            let Some(greatest) = names.iter().max().cloned() else { break };
            others.extend(names.into_iter().filter(|name| self.index.position(name).is_none()));
            if last.as_ref() == Some(&greatest) {
                break;
            }
            last = Some(greatest);
        }
        if !delete && !others.is_empty() {
            let place = self.connection.place().clone();
            return Err(MilvusError::OtherItems { place, others: others.len() });
        }
        let mut rest = others.as_slice();
        while !rest.is_empty() {
            let (batch, behind) = rest.split_at(leading(rest, LISTED));
            self.connection.delete(&among(batch))?;
            rest = behind;
        }
        Ok(others.len())
    }

    /// Sends what the collection does not hold, and looks for all of it afterwards.
    fn send(&mut self, compare: bool, told: &mut dyn FnMut(UploadProgress)) -> Result<()> {
        let total = self.index.len();
        let (mut first, mut last_place) = (0, -1);
        while first < total {
            let batch = self.batch(first)?;
            first += batch.len();
            let known = if compare { self.known(&batch)? } else { HashMap::new() };
            let (mut missing, mut expected) = (Vec::new(), Vec::with_capacity(batch.len()));
            for (i, mut entity) in (first - batch.len()..).zip(batch) {
                let same = known
                    .get(&entity.item)
                    .filter(|known| known.digest == entity.digest && known.place > last_place);
                entity.place = match same {
                    Some(known) => known.place,
                    // Behind all before it, and where it is in the index if nothing stands in the way.
                    None => i64::try_from(i).unwrap_or(i64::MAX).max(last_place.saturating_add(1)),
                };
                last_place = entity.place;
                expected.push((entity.item.clone(), entity.digest, entity.place));
                if same.is_none() {
                    missing.push(entity);
                }
            }
            if !missing.is_empty() {
                self.sent += missing.len();
                self.deliver(missing)?;
                self.verify(&expected)?;
            }
            told(UploadProgress { done: first, total, sent: self.sent });
        }
        Ok(())
    }

    /// The next items that make one request.
    fn batch(&self, first: usize) -> Result<Vec<Entity>> {
        let (mut batch, mut bytes): (Vec<Entity>, usize) = (Vec::new(), 0);
        for i in first..self.index.len() {
            let entity = self.layout.entity(self.index, i, self.correction.as_ref())?;
            bytes += entity.bytes();
            if !batch.is_empty() && bytes > BATCH_BYTES {
                break;
            }
            batch.push(entity);
            if batch.len() == MOST_ROWS {
                break;
            }
        }
        let names: Vec<&str> = batch.iter().map(|entity| entity.item.as_str()).collect();
        let fit = leading(&names, MOST_ROWS);
        batch.truncate(fit);
        Ok(batch)
    }

    fn known(&self, batch: &[Entity]) -> Result<HashMap<String, Known>> {
        let names: Vec<&str> = batch.iter().map(|entity| entity.item.as_str()).collect();
        Ok(self.connection.known(&names)?.into_iter().collect())
    }

    /// Sends items; again where the connection broke, which does no harm: they take their own places.
    fn deliver(&self, entities: Vec<Entity>) -> Result<()> {
        let columns = columns(entities);
        for wait in WAITS {
            match self.connection.upsert(columns.clone()) {
                Err(MilvusError::Broken { .. }) => sleep(wait),
                answer => return answer.map(|_| ()),
            }
        }
        self.connection.upsert(columns)?;
        Ok(())
    }

    /// Asks for what was sent, by name.
    fn verify(&self, expected: &[(String, i64, i64)]) -> Result<()> {
        let names: Vec<&str> = expected.iter().map(|(item, ..)| item.as_str()).collect();
        let known: HashMap<String, Known> = self.connection.known(&names)?.into_iter().collect();
        let there = |(item, digest, place): &&(String, i64, i64)| {
            known.get(item).is_some_and(|known| known.digest == *digest && known.place == *place)
        };
        let got = expected.iter().filter(there).count();
        if got == expected.len() {
            return Ok(());
        }
        let place = self.connection.place().clone();
        Err(MilvusError::Count { place, expected: expected.len(), got })
    }

    /// Counts, and says that the collection is whole; how many items in it are not of the index.
    fn finish(&mut self) -> Result<usize> {
        let (expected, got) = (self.index.len(), self.connection.count()?);
        if got < expected || (self.layout.is_of_one_index() && got != expected) {
            let place = self.connection.place().clone();
            return Err(MilvusError::Count { place, expected, got });
        }
        self.connection.drop_properties(vec![UNFINISHED.to_owned()])?;
        self.layout.unfinished = false;
        Ok(got - expected)
    }
}

impl MilvusCollection {
    /// Recall with evenly spaced items of an index as queries.
    fn recall_by_items(&self, index: &Index) -> Result<f64> {
        let count = index.len().min(RECALL_QUERIES);
        let positions = (0..count).map(|query| query * index.len() / count);
        let values: Vec<f32> = positions.flat_map(|i| index.embedding(i).unwrap_or_default()).collect();
        let queries = Matrix::new(values, count, index.dimension())?;
        self.recall(index, &queries, RECALL_AT.min(index.len()))
    }
}
