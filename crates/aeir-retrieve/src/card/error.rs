//! What can go wrong with a gallery on a card.

use crate::Error;

pub(super) type Result<T> = std::result::Result<T, CardError>;

/// Why a card can't be searched.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CardError {
    /// What every search refuses.
    #[error(transparent)]
    Search(#[from] Error),
    /// The driver, or a library of CUDA, refuses or fails.
    #[error("the card failed {doing}: {source}")]
    Driver {
        /// At what.
        doing: &'static str,
        /// The driver's or the library's own error.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The card has no room left.
    #[error("the card has no memory left for {what}: {needed} bytes are needed, {free} are free")]
    OutOfMemory {
        /// What was to be put there.
        what: &'static str,
        /// Its bytes.
        needed: u64,
        /// Bytes that nobody uses.
        free: u64,
    },
    /// More than a card is asked for.
    #[error("{what}: a card takes at most {limit}, got {got}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// The most.
        limit: usize,
        /// How many there are.
        got: usize,
    },
    /// An index whose vectors are kept in a way that is not searched on a card.
    #[error("vectors kept as {got} are not searched on a card: expected f32 or f16")]
    Storage {
        /// How they are kept.
        got: &'static str,
    },
}
