//! How far to trust a search: confidence from unpaired sentences, and sets of results with a stated coverage from a few labels.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::files::{at, write_synced};
use crate::{Error, Index, Matrix, Result, nearest};

/// The file of a stored [`Confidence`].
pub const CONFIDENCE_FILE: &str = "confidence.json";
const CONFIDENCE_VERSION: u64 = 1;
/// Scores that are stored: enough for confidences in steps of a thousandth.
const MOST_STORED: usize = 1_000;

/// What best scores the target's own queries get: what a new query's best score is held against.
///
/// Equation: `confidence(q) = (1 + #{b : best(b) <= best(q)}) / (1 + B)` over the `B` queries of the bank, `best` the highest dot
/// product with any item of the gallery.
///
/// What the number means: the share of the bank's sentences whose best match is no better. For a query that is drawn like the
/// bank's, it is at most `c` with probability at most `c`, whatever the scores' distribution, as rank among exchangeable numbers
/// (a conformal p-value): "no good match below 0.05" turns away about one in twenty queries of the target's own kind, and more of
/// those that are of another kind. It is **not** the probability that the first result is right, which no unpaired data tells.
///
/// # Example
/// ```
/// use aeir_retrieve::{Confidence, Matrix};
/// let gallery = Matrix::from_rows(&[[1.0, 0.0], [0.0, 1.0]])?;
/// let bank = Matrix::from_rows(&[[0.9, 0.1], [0.8, 0.2], [0.1, 0.7]])?;
/// let confidence = Confidence::of_bank(&gallery, &bank)?;
/// assert_eq!((confidence.of(0.95), confidence.of(0.2)), (1.0, 0.25));
/// # Ok::<(), aeir_retrieve::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Confidence {
    version: u64,
    /// Sentences of the bank.
    bank: usize,
    /// Their best scores, ascending; of a larger bank evenly spaced quantiles.
    best: Vec<f32>,
}

impl Confidence {
    /// From `gallery [G, D]` and unpaired queries of the target, `bank [B, D]`.
    ///
    /// # Errors
    /// As [`nearest`]; [`Error::Empty`] without bank or gallery.
    pub fn of_bank(gallery: &Matrix, bank: &Matrix) -> Result<Self> {
        for (what, set) in [("query bank", bank), ("gallery", gallery)] {
            if set.rows() == 0 {
                return Err(Error::Empty { what });
            }
        }
        let mut all: Vec<f32> =
            nearest(bank, gallery, 1)?.iter().flatten().map(|found| found.score).collect();
        all.sort_unstable_by(f32::total_cmp);
        let count = all.len().min(MOST_STORED);
        let best = (0..count).filter_map(|i| all.get(i * all.len() / count).copied()).collect();
        Ok(Self { version: CONFIDENCE_VERSION, bank: bank.rows(), best })
    }

    /// The confidence of a query whose best item scores `best`, above 0 and at most 1.
    #[must_use]
    pub fn of(&self, best: f32) -> f64 {
        (1 + self.best.partition_point(|other| *other <= best)) as f64 / (1 + self.best.len()) as f64
    }

    /// Sentences of the bank.
    #[must_use]
    pub fn bank(&self) -> usize {
        self.bank
    }

    fn is_sound(&self) -> bool {
        self.best.is_sorted() && self.best.iter().all(|score| score.is_finite())
    }

    /// As text.
    #[cfg(feature = "milvus")]
    pub(crate) fn to_json(&self) -> Option<String> {
        serde_json::to_string(self).ok()
    }

    /// From the text that [`Confidence::to_json`] made.
    #[cfg(feature = "milvus")]
    pub(crate) fn from_json(text: &str) -> Option<Self> {
        let stored: Self = serde_json::from_str(text).ok()?;
        (stored.version == CONFIDENCE_VERSION && stored.is_sound()).then_some(stored)
    }

    /// Writes [`CONFIDENCE_FILE`] into a folder.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&self, folder: &Path) -> Result<()> {
        let file = folder.join(CONFIDENCE_FILE);
        let bytes = serde_json::to_vec(self).map_err(|error| at(&file)(error.into()))?;
        write_synced(&file, |writer| writer.write_all(&bytes))
    }

    /// Reads what [`Confidence::write`] put into an index; none where the index has none.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Version`], [`Error::Damaged`].
    pub fn read(index: &Index) -> Result<Option<Self>> {
        let file = index.folder().join(CONFIDENCE_FILE);
        let Some(bytes) = index.read_file(CONFIDENCE_FILE)? else { return Ok(None) };
        let damaged = |expected: &str, got: String| Error::Damaged {
            file: file.clone(),
            expected: expected.into(),
            got,
        };
        let stored: Self = serde_json::from_slice(&bytes)
            .map_err(|error| damaged("stored best scores", error.to_string()))?;
        if stored.version != CONFIDENCE_VERSION {
            return Err(Error::Version { file, expected: CONFIDENCE_VERSION, got: stored.version });
        }
        if !stored.is_sound() {
            return Err(damaged("finite scores in ascending order", "others".into()));
        }
        Ok(Some(stored))
    }
}

/// How far below the best score results have to reach to hold the right item as often as asked.
///
/// Equation (split conformal prediction, Vovk et al. 2005; Lei et al., JASA 2018): of `n` labelled queries, the gaps
/// `best(q) - score(q, right)`; `gap` is the `ceil((n + 1) coverage)`-th smallest. The set of a new query is all items within `gap` of
/// its best score. It holds the right item with probability at least `coverage`, if the new query is drawn like the labelled ones and
/// has a right item in the gallery. That is a statement over queries, not about each one.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConformalSets {
    /// Labelled queries.
    pub labelled: usize,
    /// Share of queries whose set holds the right item, at least.
    pub coverage: f64,
    /// Items this far below the best belong to the set; infinite where there are too few labels to leave any out.
    pub gap: f64,
}

impl ConformalSets {
    /// From the gap of each labelled query: its best score less the score of its (best) right item; 0 where that is the best.
    ///
    /// # Errors
    /// [`Error::Empty`] without gaps, [`Error::Setting`] where `coverage` is not between 0 and 1 or a gap is negative or NaN.
    ///
    /// # Example
    /// ```
    /// let gaps = [0.0, 0.0, 0.1, 0.0, 0.3, 0.05, 0.0, 0.2, 0.0];
    /// let sets = aeir_retrieve::ConformalSets::calibrate(&gaps, 0.8)?;
    /// assert_eq!(sets.gap, 0.2); // the 8th of 9
    /// assert_eq!(sets.size(&[0.9, 0.75, 0.69]), 2);
    /// # Ok::<(), aeir_retrieve::Error>(())
    /// ```
    pub fn calibrate(gaps: &[f64], coverage: f64) -> Result<Self> {
        if gaps.is_empty() {
            return Err(Error::Empty { what: "set of labelled queries" });
        }
        if !(coverage > 0.0 && coverage < 1.0) {
            return Err(Error::Setting {
                name: "coverage",
                expected: "between 0 and 1, both excluded".into(),
                got: coverage.to_string(),
            });
        }
        if let Some(gap) = gaps.iter().find(|gap| gap.is_nan() || **gap < 0.0) {
            return Err(Error::Setting { name: "gap", expected: "0 or more".into(), got: gap.to_string() });
        }
        let mut sorted = gaps.to_vec();
        sorted.sort_unstable_by(f64::total_cmp);
        // Rounding must not ask for one more than a whole number of queries.
        let wanted = ((sorted.len() + 1) as f64 * coverage - 1e-9).ceil().max(1.0) as usize;
        let gap = sorted.get(wanted - 1).copied().unwrap_or(f64::INFINITY);
        Ok(Self { labelled: gaps.len(), coverage, gap })
    }

    /// How many of some scores, best first, belong to the set.
    #[must_use]
    pub fn size(&self, scores: &[f32]) -> usize {
        let best = scores.first().map_or(0.0, |best| f64::from(*best));
        scores.iter().take_while(|score| best - f64::from(**score) <= self.gap).count()
    }
}
