//! How a search is cut into what a card takes at once.

use super::error::{CardError, Result};

/// Results of one query that a card is asked for at most.
pub const MOST_ON_CARD: usize = 1_792;
/// Best scores of a row that the kernel keeps at most: they and as many that wait are in the shared memory of a block.
const MOST_KEPT: usize = 2_048;
/// Places in shared memory at least: with fewer the kernel sorts more often.
const LEAST_ROOM: usize = 1_024;
/// Queries of a block at most.
const MOST_QUERIES: usize = 1_024;
/// Numbers that there is memory for at least: a block of queries with a chunk of 4,096 items.
pub(super) const LEAST_SCORES: usize = MOST_QUERIES * 4_096;
/// A chunk has a multiple of so many items: whole tiles of a product, and rows of scores that begin at 16 bytes.
const CHUNK_UNIT: usize = 128;
/// Blocks of threads that keep a card busy to the end of a launch.
const BLOCKS: usize = 2_048;
/// Below so many columns a slice is not worth a block.
const LEAST_SLICE: usize = 4_096;

// As many as are kept may wait.
const _: () = assert!(proposed_for(MOST_ON_CARD) <= MOST_KEPT && MOST_KEPT.is_power_of_two());

/// Rows that are proposed for the `k` best: a margin for what is closer than rounding.
pub(super) const fn proposed_for(k: usize) -> usize {
    let margin = k / 8;
    k + if margin > 64 { margin } else { 64 }
}

/// Places for keys in a block's shared memory: a power of two, at least twice as many as are kept.
pub(super) fn room_for(kept: usize) -> usize {
    (2 * kept).next_power_of_two().max(LEAST_ROOM)
}

/// Refuses more results than a card is asked for.
pub(super) fn check_most(k: usize) -> Result<()> {
    within("results of a query", k, MOST_ON_CARD)
}

/// Refuses galleries whose rows and sizes are no 32-bit numbers, or that have none.
pub(super) fn check_sizes(rows: usize, dimension: usize) -> Result<()> {
    if rows == 0 || dimension == 0 {
        return Err(crate::Error::Empty { what: "gallery to put on a card" }.into());
    }
    // The complement of a row is part of a key, and 0 is none.
    within("rows of a gallery", rows, u32::MAX as usize - 1)?;
    within("dimensions", dimension, i32::MAX as usize)
}

fn within(what: &'static str, got: usize, limit: usize) -> Result<()> {
    if got <= limit { Ok(()) } else { Err(CardError::TooMany { what, limit, got }) }
}

/// Scores, in numbers, that a gallery of so many rows has use for.
pub(super) fn most_scores(rows: usize) -> usize {
    rows.next_multiple_of(CHUNK_UNIT).saturating_mul(MOST_QUERIES).max(LEAST_SCORES)
}

/// What is done at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// Queries of a block.
    pub(super) queries: usize,
    /// Items of a chunk.
    pub(super) columns: usize,
    /// Blocks of threads for a row of scores.
    pub(super) slices: usize,
}

/// Cuts evenly, so that no block and no chunk is a small rest; `scores` is the memory for them, in numbers.
pub(super) fn plan(queries: usize, rows: usize, scores: usize) -> Plan {
    let queries = queries.div_ceil(queries.div_ceil(MOST_QUERIES).max(1)).max(1);
    let most = (scores / queries).min(i32::MAX as usize) / CHUNK_UNIT * CHUNK_UNIT;
    let columns = rows.div_ceil(rows.div_ceil(most.max(CHUNK_UNIT)).max(1)).next_multiple_of(CHUNK_UNIT);
    let slices = BLOCKS.div_ceil(queries).min(columns / LEAST_SLICE).max(1);
    Plan { queries, columns, slices }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Error;

    proptest! {
        #[test]
        fn what_is_done_at_once_fits(
            queries in 1_usize..100_000,
            rows in 1_usize..=u32::MAX as usize - 1,
            scores in LEAST_SCORES..1 << 36,
        ) {
            let Plan { queries: block, columns, slices } = plan(queries, rows, scores);
            prop_assert!(block <= MOST_QUERIES.min(queries));
            prop_assert!(block * columns <= scores);
            prop_assert!(columns.is_multiple_of(CHUNK_UNIT) && columns <= i32::MAX as usize);
            // Even: a block or a chunk less would not do.
            prop_assert_eq!(queries.div_ceil(block), queries.div_ceil(MOST_QUERIES));
            prop_assert!((1..=BLOCKS).contains(&slices) && (slices == 1 || slices * LEAST_SLICE <= columns));
            // A grid's second side.
            prop_assert!(block <= 65_535);
        }

        #[test]
        fn shared_memory_holds_what_is_kept_and_what_waits(k in 1_usize..=MOST_ON_CARD) {
            let (kept, room) = (proposed_for(k), room_for(proposed_for(k)));
            prop_assert!(room.is_power_of_two() && room >= 2 * kept && kept >= k + 64);
            prop_assert!(room * size_of::<u64>() <= 32 << 10);
        }
    }

    #[test]
    fn a_million_items_are_few_chunks() {
        assert_eq!(plan(1_000, 1_000_000, 1 << 28), Plan { queries: 1_000, columns: 250_112, slices: 3 });
        // One query: its row is cut for the whole card.
        assert_eq!(plan(1, 1_000_000, 1 << 28), Plan { queries: 1, columns: 1_000_064, slices: 244 });
        assert_eq!(plan(1_025, 100, LEAST_SCORES), Plan { queries: 513, columns: 128, slices: 1 });
        assert_eq!(most_scores(100), LEAST_SCORES);
        assert_eq!(most_scores(1_000_000), 1_000_064 * 1_024);
    }

    #[test]
    fn what_a_card_is_not_asked_for_is_refused_with_the_limit() {
        assert!(check_most(MOST_ON_CARD).is_ok());
        let error = check_most(MOST_ON_CARD + 1).unwrap_err();
        assert!(matches!(error, CardError::TooMany { limit: 1_792, got: 1_793, .. }), "{error}");
        assert!(error.to_string().contains("at most 1792, got 1793"), "{error}");
        assert!(check_sizes(u32::MAX as usize - 1, 1).is_ok());
        let error = check_sizes(u32::MAX as usize, 1).unwrap_err();
        assert!(matches!(error, CardError::TooMany { what: "rows of a gallery", .. }), "{error}");
        assert!(matches!(check_sizes(1, 1 << 31), Err(CardError::TooMany { what: "dimensions", .. })));
        for (rows, dimension) in [(0, 3), (3, 0)] {
            let error = check_sizes(rows, dimension).unwrap_err();
            assert!(matches!(error, CardError::Search(Error::Empty { .. })), "{error}");
        }
    }
}
