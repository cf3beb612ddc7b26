//! The index as a collection of a Milvus server: past one machine.
//!
//! A collection holds what an [`Index`] holds, one entity an item:
//!
//! ```text
//! item       VarChar, primary key   the path or id
//! vector     FloatVector [D]        the embedding; with a correction [D + 1], the last number less the item's penalty
//! metadata   JSON                   what is kept with the item
//! tags       Array of VarChar       `key=value` for all that a filter can ask of the metadata
//! activated  Bool                   whether a query whose best item it is gets corrected (dynamic inverted softmax)
//! place      Int64                  grows in the order of the index: what ties are ordered by
//! digest     Int64                  CRC-32 of vector, metadata and `activated`: what an upload that goes on need not send
//! ```
//!
//! The metric is the inner product. A query with a 1 behind it finds by corrected scores and one with a 0 by plain ones, so that a
//! correction costs a query nothing here either. The collection's properties (`aeir.model`, `aeir.correction`, ..) say what the index's
//! manifest says. The server finds candidates; their scores are taken again in `f64` from the vectors it holds, as [`Index`] does it.

mod connection;
mod error;
mod expression;
mod layout;
mod place;
mod rows;
mod upload;

use std::collections::HashMap;

pub use connection::MilvusAccess;
pub use error::MilvusError;
pub use layout::MilvusIndexKind;
pub use place::MilvusPlace;
pub use upload::{UploadOptions, UploadProgress, UploadReport};

use crate::search::exact_dot;
use crate::{Confidence, Correction, Error, Filter, Hit, Index, Matrix};
use connection::Connection;
use error::Result;
use expression::filtering;
use layout::{Layout, Row};

/// Results of one query that a Milvus server gives at most.
const MOST_RESULTS: usize = 16_384;
/// Candidates that are asked for beyond those wanted: the server rounds otherwise and does not order ties.
const SPARE: usize = 16;
/// Results of one request, over all its queries: names and scores of so many stay within what a client reads.
const RESULTS_AT_ONCE: usize = 8_192;

/// How a search goes about it.
#[derive(Clone, Copy, Debug, Default)]
pub struct MilvusSearch<'a> {
    /// Find what this lets through alone.
    pub filter: Option<&'a Filter>,
    /// By corrected scores, where the collection holds a correction.
    pub corrected: bool,
}

/// A collection that is open for searches. Calls block; don't make them from within an asynchronous runtime.
#[derive(Debug)]
pub struct MilvusCollection {
    connection: Connection,
    layout: Layout,
    count: usize,
}

impl MilvusCollection {
    /// Puts an index into a collection, which is made if there is none: adds what is missing, replaces what differs, leaves what is the
    /// same. `told` hears of each batch.
    ///
    /// An upload that was interrupted goes on when it is called again. What was sent is verified by name and digest afterwards, and
    /// the number of entities is counted.
    ///
    /// # Errors
    /// [`MilvusError`] says what the server, the network or the collection is at fault with; [`Error::ModelMismatch`] in it, where the
    /// collection is of another model.
    pub fn upload(
        place: &MilvusPlace,
        access: &MilvusAccess,
        index: &Index,
        options: &UploadOptions,
        told: &mut dyn FnMut(UploadProgress),
    ) -> Result<UploadReport> {
        upload::upload(place, access, index, options, told)
    }

    /// Opens a collection that [`MilvusCollection::upload`] made, and has the server load it where it is not loaded.
    ///
    /// # Errors
    /// [`MilvusError`]: the server can't be reached, refuses the token or is none of Milvus's; there is no such collection, or it is
    /// not of this crate.
    pub fn open(place: &MilvusPlace, access: &MilvusAccess) -> Result<Self> {
        let connection = Connection::open(place, access)?;
        let description =
            connection.describe()?.ok_or_else(|| MilvusError::NoCollection { place: place.clone() })?;
        let layout = Layout::read(place, &description)?;
        connection.load()?;
        let count = connection.count()?;
        Ok(Self { connection, layout, count })
    }

    /// Where it is.
    #[must_use]
    pub fn place(&self) -> &MilvusPlace {
        self.connection.place()
    }

    /// How many items it held when it was opened.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether it held none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Dimension D of the embeddings.
    #[must_use]
    pub fn dimension(&self) -> usize {
        self.layout.dimension
    }

    /// The fingerprint of the model that made the embeddings.
    #[must_use]
    pub fn model_fingerprint(&self) -> &str {
        &self.layout.model
    }

    /// Whether the last upload into it has ended; one may be going on.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        !self.layout.unfinished
    }

    /// What corrected searches are corrected by.
    #[must_use]
    pub fn correction(&self) -> Option<Correction> {
        self.layout.correction
    }

    /// What a new query's best score is held against.
    #[must_use]
    pub fn confidence(&self) -> Option<&Confidence> {
        self.layout.confidence.as_ref()
    }

    /// Refuses a model other than the one that made the embeddings.
    ///
    /// # Errors
    /// [`Error::ModelMismatch`]; its message says how to go on.
    pub fn check_model(&self, fingerprint: &str) -> Result<()> {
        self.layout.check_model(self.place(), fingerprint)
    }

    /// The `k` best items of each query `[Q, D]`, best first, ties in the order of the index. [`Hit::position`] is the place in the
    /// list: items have no position here.
    ///
    /// What the server's index finds; all of it is looked at by the default, [`MilvusIndexKind::Flat`].
    ///
    /// # Errors
    /// [`Error::Setting`] where `k` is 0 or more than a server gives, [`Error::Shape`], [`Error::NotFinite`] for the queries, all in
    /// [`MilvusError::Index`]; other [`MilvusError`]s of server and network.
    pub fn find(&self, queries: &Matrix, k: usize, options: &MilvusSearch<'_>) -> Result<Vec<Vec<Hit>>> {
        self.check(queries, k)?;
        if options.filter.is_some_and(Filter::selects_nothing) {
            return Ok(vec![Vec::new(); queries.rows()]);
        }
        let filter = options.filter.map(filtering).transpose()?.unwrap_or_default();
        let correction = self.layout.correction.filter(|_| options.corrected);
        let corrected = match correction {
            None => vec![false; queries.rows()],
            // Whether a query is corrected depends on its best item among all.
            Some(Correction::DynamicInvertedSoftmax { .. }) => {
                let best = self.ranked(queries, 1, "", &vec![false; queries.rows()])?;
                best.iter().map(|best| best.first().is_some_and(|best| best.activated)).collect()
            }
            Some(_) => vec![true; queries.rows()],
        };
        let found = self.ranked(queries, k, &filter, &corrected)?;
        let hit = |(position, found): (usize, Found)| Hit {
            rank: position + 1,
            score: found.score,
            position,
            item: found.item,
        };
        Ok(found.into_iter().map(|query| query.into_iter().enumerate().map(hit).collect()).collect())
    }

    /// Share of the `k` best items by [`Index::search_batch`] that a search here finds too, over `queries [Q, D]`.
    ///
    /// # Errors
    /// As [`MilvusCollection::find`].
    pub fn recall(&self, index: &Index, queries: &Matrix, k: usize) -> Result<f64> {
        let exact = index.search_batch(queries, k)?;
        let found = self.find(queries, k, &MilvusSearch::default())?;
        let (mut wanted, mut both) = (0, 0);
        for (exact, found) in exact.iter().zip(&found) {
            wanted += exact.len();
            both += exact.iter().filter(|hit| found.iter().any(|found| found.item == hit.item)).count();
        }
        Ok(if wanted == 0 { 1.0 } else { both as f64 / wanted as f64 })
    }

    fn check(&self, queries: &Matrix, k: usize) -> Result<()> {
        let most = MOST_RESULTS - SPARE;
        if k == 0 || k > most {
            let expected = format!("1 to {most} in a Milvus collection");
            return Err(Error::Setting { name: "k", expected, got: k.to_string() }.into());
        }
        if queries.columns() != self.dimension() {
            let (expected, got) = (self.dimension(), queries.columns());
            return Err(Error::Shape { what: "dimension of the query", expected, got }.into());
        }
        Ok(queries.check_finite("query embeddings")?)
    }

    /// Candidates of the server, in the order of their exact scores.
    fn ranked(
        &self,
        queries: &Matrix,
        k: usize,
        filter: &str,
        corrected: &[bool],
    ) -> Result<Vec<Vec<Found>>> {
        let limit = k + SPARE;
        let mut ranked = Vec::with_capacity(queries.rows());
        let vectors: Vec<Vec<f32>> = (queries.iter_rows().zip(corrected))
            .map(|(query, corrected)| self.layout.query(query, *corrected))
            .collect();
        for vectors in vectors.chunks((RESULTS_AT_ONCE / limit).max(1)) {
            let candidates = self.connection.search(vectors, limit, filter)?;
            let mut names: Vec<&str> = candidates.iter().flatten().map(String::as_str).collect();
            names.sort_unstable();
            names.dedup();
            let rows: HashMap<String, Row> =
                self.connection.rows(&names)?.into_iter().map(|row| (row.item.clone(), row)).collect();
            for (query, candidates) in vectors.iter().zip(candidates) {
                let mut found: Vec<Found> = candidates
                    .into_iter()
                    .filter_map(|item| rows.get(&item).map(|row| Found::of(query, row, self.dimension())))
                    .collect();
                found.sort_by(Found::before);
                found.truncate(k);
                ranked.push(found);
            }
        }
        Ok(ranked)
    }
}

/// A candidate with its exact score.
struct Found {
    item: String,
    score: f32,
    place: i64,
    activated: bool,
}

impl Found {
    /// The score as the local index takes it: the dot product in `f64`, less the penalty, rounded once.
    fn of(query: &[f32], row: &Row, dimension: usize) -> Self {
        let (query, switch) = query.split_at(dimension.min(query.len()));
        let (vector, penalty) = row.vector.split_at(dimension.min(row.vector.len()));
        let lowered: f64 = switch.iter().zip(penalty).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
        Self {
            item: row.item.clone(),
            score: (exact_dot(query, vector) + lowered) as f32,
            place: row.place,
            activated: row.activated,
        }
    }

    fn before(&self, other: &Self) -> std::cmp::Ordering {
        (other.score.total_cmp(&self.score))
            .then(self.place.cmp(&other.place))
            .then_with(|| self.item.cmp(&other.item))
    }
}
