//! What others see of a gallery on a card.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use super::error::{CardError, Result};
use super::plan::{self, LEAST_SCORES, check_most};
use super::resident::{Pass, Resident};
use crate::search::Gallery;
use crate::search::proposed::{Manner, Proposal, Settled};
use crate::{Error, Hit, Index, Matrix, Neighbour, SearchOptions, Storage};

/// Which card, and how much of its memory for what a search writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CardOptions {
    /// The number of the card, from 0.
    pub card: usize,
    /// Memory for scores, in bytes, at most; less is taken where a gallery needs less or the card has no more. At least 16 MiB.
    pub score_bytes: usize,
    /// Keep 16-bit copies of 32-bit vectors there too, half as much again: tensor cores then make the first pass, and what rounding leaves
    /// open is scored again in `f32`. What is found is the same. Without effect on 16-bit vectors.
    pub rough_first: bool,
}

impl Default for CardOptions {
    fn default() -> Self {
        Self { card: 0, score_bytes: 1 << 30, rough_first: false }
    }
}

impl CardOptions {
    fn check(&self) -> Result<()> {
        if self.score_bytes >= LEAST_SCORES * size_of::<f32>() {
            return Ok(());
        }
        let expected = format!("at least {}", LEAST_SCORES * size_of::<f32>());
        let got = self.score_bytes.to_string();
        Err(Error::Setting { name: "memory for scores, in bytes", expected, got }.into())
    }
}

/// A gallery's vectors on a card, and how often it was not enough to ask the card.
#[derive(Debug)]
struct OnCard {
    resident: Resident,
    unsettled: AtomicU64,
}

impl OnCard {
    fn of(gallery: &Gallery<'_>, options: &CardOptions) -> Result<Self> {
        options.check()?;
        let resident = Resident::of(gallery, options)?;
        Ok(Self { resident, unsettled: AtomicU64::new(0) })
    }

    fn manners(&self, k: usize) -> Vec<Manner> {
        let rows = plan::proposed_for(k);
        let manner = |pass: &Pass| match *pass {
            Pass::Whole => Manner { rows, looseness: 1.0, halved: None },
            // Tensor cores cut off where a sum in f32 is rounded; of two products there are the terms of both.
            Pass::HighAndLow => Manner { rows, looseness: 2.0, halved: None },
            Pass::High { farthest } => Manner { rows, looseness: 2.0, halved: Some(farthest) },
        };
        self.resident.passes().iter().map(manner).collect()
    }

    /// Counts what the processor had to answer.
    fn told<T>(&self, settled: Settled<T>) -> Vec<Vec<T>> {
        self.unsettled.fetch_add(settled.unsettled as u64, Ordering::Relaxed);
        settled.found
    }
}

/// A generation of an [`Index`] on a card, to be searched exactly. Searches need `&self` only, and wait for each other.
///
/// # Example
/// ```no_run
/// use aeir_retrieve::{CardIndex, CardOptions, Index, Matrix, SearchOptions};
/// let index = Index::open("photos.index")?;
/// let card = CardIndex::new(&index, &CardOptions::default())?;
/// let queries = Matrix::new(vec![0.0; 2 * index.dimension()], 2, index.dimension())?;
/// let options = SearchOptions { exact: true, ..SearchOptions::default() };
/// assert_eq!(card.find(&index, &queries, 10, &options)?, index.find(&queries, 10, &options)?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct CardIndex {
    on_card: OnCard,
    generation: String,
}

impl CardIndex {
    /// Copies the vectors of all segments to a card.
    ///
    /// # Errors
    /// [`CardError::Storage`] for 8-bit codes, [`CardError::TooMany`] where rows or dimensions are more than a card is asked for,
    /// [`CardError::OutOfMemory`], [`CardError::Driver`] where there is no such card or it can't be used, [`Error::Setting`] for too
    /// little memory for scores.
    pub fn new(index: &Index, options: &CardOptions) -> Result<Self> {
        if index.storage() == Storage::Int8 {
            return Err(CardError::Storage { got: index.storage().name() });
        }
        let on_card = OnCard::of(&index.gallery(None, None), options)?;
        Ok(Self { on_card, generation: index.generation_mark().to_owned() })
    }

    /// The `k` best items of each query `[Q, D]`: the same as [`Index::find`] finds with [`SearchOptions::exact`], which is taken as
    /// given.
    ///
    /// # Errors
    /// As [`Index::find`]; [`Error::OtherGeneration`] where another generation is on the card, [`CardError::TooMany`] where `k` (of
    /// no more than there are items) is more than [`MOST_ON_CARD`](crate::MOST_ON_CARD), [`CardError::OutOfMemory`] and
    /// [`CardError::Driver`].
    pub fn find(
        &self,
        index: &Index,
        queries: &Matrix,
        k: usize,
        options: &SearchOptions<'_>,
    ) -> Result<Vec<Vec<Hit>>> {
        if !self.is_of(index) {
            return Err(Error::OtherGeneration { folder: index.folder().to_path_buf() }.into());
        }
        check_most(k.min(index.len()))?;
        let manners = |k: usize| self.on_card.manners(k.min(index.len()));
        let propose = |asked: &Proposal<'_>| self.on_card.resident.propose(asked);
        Ok(self.on_card.told(index.find_proposed(queries, k, options, manners, propose)?))
    }

    /// Whether this generation of an index is what lies on the card.
    #[must_use]
    pub fn is_of(&self, index: &Index) -> bool {
        self.generation == index.generation_mark()
    }

    /// Bytes on the card: vectors, and memory for scores.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.on_card.resident.bytes()
    }

    /// Queries so far that the processor had to search for, since more near-ties lay within rounding than the card had proposed.
    #[must_use]
    pub fn unsettled(&self) -> u64 {
        self.on_card.unsettled.load(Ordering::Relaxed)
    }
}

/// A matrix of embeddings on a card, to be searched exactly: [`nearest`](crate::nearest) for many calls with one gallery.
///
/// # Example
/// ```no_run
/// use aeir_retrieve::{CardGallery, CardOptions, Matrix, nearest};
/// let items = Matrix::from_rows(&[[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])?;
/// let queries = Matrix::from_rows(&[[1.0, 0.5]])?;
/// let card = CardGallery::new(&items, &CardOptions::default())?;
/// assert_eq!(card.nearest(&queries, 2)?, nearest(&queries, &items, 2)?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct CardGallery<'a> {
    items: Gallery<'a>,
    on_card: OnCard,
}

impl fmt::Debug for CardGallery<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("CardGallery").field("on_card", &self.on_card).finish_non_exhaustive()
    }
}

impl<'a> CardGallery<'a> {
    /// Copies `items [G, D]` to a card.
    ///
    /// # Errors
    /// [`Error::NotFinite`] on NaN or infinity, [`Error::Empty`] without rows or columns, and as [`CardIndex::new`].
    pub fn new(items: &'a Matrix, options: &CardOptions) -> Result<Self> {
        let items = Gallery::of_matrix(items)?;
        let on_card = OnCard::of(&items, options)?;
        Ok(Self { items, on_card })
    }

    /// The `k` best items of every query `[Q, D]`: the same as [`nearest`](crate::nearest) finds.
    ///
    /// # Errors
    /// As [`nearest`](crate::nearest) and [`CardIndex::find`].
    pub fn nearest(&self, queries: &Matrix, k: usize) -> Result<Vec<Vec<Neighbour>>> {
        let most = k.min(self.items.rows());
        check_most(most)?;
        let propose = |asked: &Proposal<'_>| self.on_card.resident.propose(asked);
        let settled = self.items.search_proposed(queries, k, &self.on_card.manners(most), propose)?;
        Ok(self.on_card.told(settled))
    }

    /// Bytes on the card: vectors, and memory for scores.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.on_card.resident.bytes()
    }

    /// Queries so far that the processor had to search for: [`CardIndex::unsettled`].
    #[must_use]
    pub fn unsettled(&self) -> u64 {
        self.on_card.unsettled.load(Ordering::Relaxed)
    }
}
