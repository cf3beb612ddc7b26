//! Exact search on an NVIDIA card (feature `cuda`).
//!
//! The card holds the vectors. It multiplies a block of queries with a chunk of the gallery by cuBLAS and picks the best of each row of
//! scores by a kernel of ours (`kernels/nearest.cu`), some more of them than are wanted. The processor takes the scores of those again, as it
//! does for its own searches, and answers by itself where rounding could have kept an item out: so what is found has the scores and
//! the order of [`Index::find`] with [`SearchOptions::exact`], bit for bit. With very many near-copies that is most of the work.
//!
//! | on the card | passes over all items, the next for queries that those before it leave open |
//! |---|---|
//! | [`Storage::F32`], or a [`Matrix`] | `f32`, without TF32; before it, with [`CardOptions::rough_first`], 16-bit copies and rounded queries |
//! | [`Storage::F16`] | rounded queries; then queries as sums of two 16-bit vectors; both summed in `f32` |
//! | [`Storage::Int8`] | refused: its candidates are those of its codes |
//!
//! Deleted items, several segments, selections and corrections are taken. A selection of few items is scored by the processor one by one, as
//! in every search.

mod error;
mod keys;
#[cfg(feature = "cuda")]
mod on_card;
mod plan;
#[cfg(feature = "cuda")]
mod resident;

#[cfg(feature = "cuda")]
pub use error::CardError;
#[cfg(feature = "cuda")]
pub use on_card::{CardGallery, CardIndex, CardOptions};
#[cfg(feature = "cuda")]
pub use plan::MOST_ON_CARD;
