//! Hubness correction that is worked out once for a gallery, from a bank of queries, and costs a query one subtraction an item.

use std::path::Path;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::files::{at, write_synced};
use crate::scores::same_dimension;
use crate::search::mean_top_k_similarity;
use crate::{
    Error, Index, Matrix, Ranks, Relevance, Result, Ties, k_occurrence_embeddings, nearest, rank_embeddings,
    similarity,
};

/// The file of a stored correction: what it is and of what bank.
pub const CORRECTION_FILE: &str = "correction.json";
/// The penalties of a stored correction: one little-endian `f32` an item.
pub const PENALTIES_FILE: &str = "penalties.f32";
const CORRECTION_VERSION: u64 = 1;
/// Gallery rows scored against the bank at once, at most.
const BLOCK: usize = 1_024;
/// Scores held at once, at most: a large bank takes fewer rows.
const BLOCK_SCORES: usize = 1 << 24;

/// Which correction, with its settings.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Correction {
    /// [`csls`](crate::csls): an item is lowered by half its mean score with the `k` bank queries nearest to it.
    Csls {
        /// Neighbours; 10 in the paper. A smaller bank is taken whole.
        k: usize,
    },
    /// [`inverted_softmax`](crate::inverted_softmax): an item is lowered by `ln sum_b exp(beta s_bj) / beta`.
    InvertedSoftmax {
        /// Inverse temperature, 20 in the paper.
        beta: f64,
    },
    /// [`dynamic_inverted_softmax`](crate::dynamic_inverted_softmax): the same, for queries alone whose raw best item is the best of a
    /// bank query.
    DynamicInvertedSoftmax {
        /// Inverse temperature, 20 in the paper.
        beta: f64,
    },
    /// The item's potential in the entropic optimal transport between bank and gallery, both with equal weights (Cuturi, *Sinkhorn
    /// distances*, NeurIPS 2013): the penalties under which every item gets the same share of the bank.
    Sinkhorn {
        /// Inverse temperature: one over the weight of the entropy.
        beta: f64,
        /// Rounds; rows then columns each.
        iterations: usize,
    },
}

impl Correction {
    /// Its name in flags, files and JSON.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Csls { .. } => "csls",
            Self::InvertedSoftmax { .. } => "inverted-softmax",
            Self::DynamicInvertedSoftmax { .. } => "dynamic-inverted-softmax",
            Self::Sinkhorn { .. } => "sinkhorn",
        }
    }

    fn check(&self) -> Result<()> {
        let setting =
            |name, expected: &str, got: String| Err(Error::Setting { name, expected: expected.into(), got });
        match *self {
            Self::Csls { k: 0 } => setting("k", "1 or more", "0".into()),
            Self::Sinkhorn { iterations: 0, .. } => setting("iterations", "1 or more", "0".into()),
            Self::InvertedSoftmax { beta }
            | Self::DynamicInvertedSoftmax { beta }
            | Self::Sinkhorn { beta, .. }
                if !(beta > 0.0 && beta.is_finite()) =>
            {
                setting("beta", "a positive number", beta.to_string())
            }
            _ => Ok(()),
        }
    }
}

/// A gallery's penalties: the corrected score of an item is the dot product less its penalty.
///
/// For one query at a time this ranks as the published correction does: what a correction takes off a query (the `r_i` of CSLS, the
/// temperature of a softmax) is the same for all items. The bank must not hold the queries that are scored: take unpaired training
/// sentences of the target.
///
/// # Example
/// ```
/// use aeir_retrieve::{Correction, GalleryCorrection, Matrix};
/// let gallery = Matrix::from_rows(&[[1.0, 0.0], [0.8, 0.6]])?;
/// let bank = Matrix::from_rows(&[[0.9, 0.5], [0.6, 0.8], [0.7, 0.7]])?;
/// let correction = GalleryCorrection::of_bank(Correction::Csls { k: 2 }, &gallery, &bank)?;
/// assert!(correction.penalties()[1] > correction.penalties()[0]); // nearer to everything
/// # Ok::<(), aeir_retrieve::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct GalleryCorrection {
    correction: Correction,
    bank: usize,
    penalties: Vec<f32>,
    /// Items that are the best of a bank query; empty where every query is corrected.
    activated: Vec<bool>,
}

/// What is stored beside the penalties.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    version: u64,
    correction: Correction,
    bank: usize,
    items: usize,
    /// Positions of the activation set.
    activated: Vec<usize>,
}

impl GalleryCorrection {
    /// Works the penalties out from `bank [B, D]` against `gallery [G, D]`. Scores are made in blocks and not held; `sinkhorn` makes
    /// them anew in every round.
    ///
    /// # Errors
    /// [`Error::Empty`] without bank or gallery, [`Error::Setting`] on settings that make no sense, [`Error::Shape`] where the
    /// dimensions differ, [`Error::NotFinite`] on NaN or infinity.
    pub fn of_bank(correction: Correction, gallery: &Matrix, bank: &Matrix) -> Result<Self> {
        correction.check()?;
        same_dimension(gallery, bank)?;
        for (what, set) in [("query bank", bank), ("gallery", gallery)] {
            if set.rows() == 0 {
                return Err(Error::Empty { what });
            }
        }
        gallery.check_finite("gallery embeddings")?;
        bank.check_finite("bank embeddings")?;
        let penalties: Vec<f64> = match correction {
            Correction::Csls { k } => {
                let means = mean_top_k_similarity(gallery, bank, k.min(bank.rows()))?;
                means.into_iter().map(|mean| mean / 2.0).collect()
            }
            Correction::InvertedSoftmax { beta } | Correction::DynamicInvertedSoftmax { beta } => {
                let none = vec![0.0; bank.rows()];
                log_sums(gallery, bank, beta, &none)?.into_iter().map(|log| log / beta).collect()
            }
            Correction::Sinkhorn { beta, iterations } => potentials(gallery, bank, beta, iterations)?,
        };
        let activated = match correction {
            Correction::DynamicInvertedSoftmax { .. } => {
                k_occurrence_embeddings(bank, gallery, 1)?.into_iter().map(|count| count > 0).collect()
            }
            _ => Vec::new(),
        };
        let penalties = penalties.into_iter().map(|penalty| penalty as f32).collect();
        Ok(Self { correction, bank: bank.rows(), penalties, activated })
    }

    /// What it is.
    #[must_use]
    pub fn correction(&self) -> Correction {
        self.correction
    }

    /// Bank queries it was worked out from.
    #[must_use]
    pub fn bank(&self) -> usize {
        self.bank
    }

    /// What is taken off each item's score, `[G]`.
    #[must_use]
    pub fn penalties(&self) -> &[f32] {
        &self.penalties
    }

    /// Whether a query whose raw best item is `best` is corrected.
    #[must_use]
    pub fn applies(&self, best: usize) -> bool {
        self.activated.is_empty() || self.activated.get(best).copied().unwrap_or(false)
    }

    /// Whether it depends on the query's raw best item.
    #[must_use]
    pub fn is_dynamic(&self) -> bool {
        !self.activated.is_empty()
    }

    /// Every query's rank in the corrected gallery, with one direction's true pairs, without holding scores.
    ///
    /// Shapes: `images [N, D]`, `sentences [M, D]`; `images` are the gallery, `sentences` the queries; only [`Ranks::t2i`] is corrected.
    /// For the other direction exchange the two and the relevance: [`rank_corrected`].
    fn t2i(&self, images: &Matrix, sentences: &Matrix, relevance: &Relevance) -> Result<Ranks> {
        let gallery = with_column(images, |i| -self.penalties.get(i).copied().unwrap_or(0.0))?;
        let mut ranks =
            rank_embeddings(&gallery, &with_column(sentences, |_| 1.0)?, relevance, Ties::Pessimistic)?;
        if self.is_dynamic() {
            let raw = rank_embeddings(images, sentences, relevance, Ties::Pessimistic)?;
            let best = nearest(sentences, images, 1)?;
            let applies: Vec<bool> = best
                .iter()
                .map(|found| found.first().is_some_and(|best| self.applies(best.position)))
                .collect();
            ranks = ranks.t2i_where(&applies, &raw);
        }
        Ok(ranks)
    }

    /// Writes [`CORRECTION_FILE`] and [`PENALTIES_FILE`] into a folder: an index's staging folder makes them part of the index.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&self, folder: &Path) -> Result<()> {
        let file = folder.join(CORRECTION_FILE);
        let positions =
            self.activated.iter().enumerate().filter(|(_, activated)| **activated).map(|(i, _)| i);
        let stored = Stored {
            version: CORRECTION_VERSION,
            correction: self.correction,
            bank: self.bank,
            items: self.penalties.len(),
            activated: positions.collect(),
        };
        let bytes = serde_json::to_vec(&stored).map_err(|error| at(&file)(error.into()))?;
        write_synced(&file, |writer| writer.write_all(&bytes))?;
        write_synced(&folder.join(PENALTIES_FILE), |writer| {
            self.penalties.iter().try_for_each(|penalty| writer.write_all(&penalty.to_le_bytes()))
        })
    }

    /// Reads what [`GalleryCorrection::write`] put into an index; none where the index holds no correction.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Version`], [`Error::Damaged`] where the files don't fit together or the gallery.
    pub fn read(index: &Index) -> Result<Option<Self>> {
        let (file, items) = (index.folder().join(CORRECTION_FILE), index.len());
        let Some(bytes) = index.read_file(CORRECTION_FILE)? else { return Ok(None) };
        let damaged =
            |file: &Path, expected: String, got: String| Error::Damaged { file: file.into(), expected, got };
        let stored: Stored = serde_json::from_slice(&bytes)
            .map_err(|error| damaged(&file, "a stored correction".into(), error.to_string()))?;
        if stored.version != CORRECTION_VERSION {
            return Err(Error::Version { file, expected: CORRECTION_VERSION, got: stored.version });
        }
        let place = index.folder().join(PENALTIES_FILE);
        let bytes = index
            .read_file(PENALTIES_FILE)?
            .ok_or_else(|| damaged(&place, "a file of the index".into(), "none".into()))?;
        if stored.items != items || bytes.len() != 4 * items {
            let expected = format!("{items} penalties");
            return Err(damaged(&place, expected, format!("{} for {} items", bytes.len() / 4, stored.items)));
        }
        let decode = |bytes: &[u8]| bytes.try_into().map_or(f32::NAN, f32::from_le_bytes);
        let penalties: Vec<f32> = bytes.chunks_exact(4).map(decode).collect();
        if penalties.iter().any(|penalty| !penalty.is_finite()) {
            return Err(damaged(&place, "finite penalties".into(), "others".into()));
        }
        let mut activated = Vec::new();
        if matches!(stored.correction, Correction::DynamicInvertedSoftmax { .. }) {
            activated = vec![false; items];
            for position in stored.activated {
                let slot = activated.get_mut(position);
                *slot.ok_or_else(|| {
                    damaged(&file, format!("positions below {items}"), position.to_string())
                })? = true;
            }
        }
        Ok(Some(Self { correction: stored.correction, bank: stored.bank, penalties, activated }))
    }
}

/// Ranks of both directions, each corrected where a correction is given for its gallery.
///
/// Shapes: `images [N, D]`, `sentences [M, D]`; `of_images` corrects sentence queries, `of_sentences` image queries. No score matrix
/// is held.
///
/// # Errors
/// As [`rank_embeddings`]; [`Error::Shape`] where a correction is of another gallery.
pub fn rank_corrected(
    images: &Matrix,
    sentences: &Matrix,
    relevance: &Relevance,
    of_images: Option<&GalleryCorrection>,
    of_sentences: Option<&GalleryCorrection>,
) -> Result<Ranks> {
    for (gallery, correction) in [(images, of_images), (sentences, of_sentences)] {
        if let Some(correction) = correction.filter(|correction| correction.penalties.len() != gallery.rows())
        {
            let got = correction.penalties.len();
            return Err(Error::Shape { what: "penalties, one an item", expected: gallery.rows(), got });
        }
    }
    let mut ranks = match of_images {
        Some(correction) => correction.t2i(images, sentences, relevance)?,
        None => rank_embeddings(images, sentences, relevance, Ties::Pessimistic)?,
    };
    let i2t = match of_sentences {
        Some(correction) => {
            let gallery = with_column(sentences, |i| -correction.penalties.get(i).copied().unwrap_or(0.0))?;
            let queries = with_column(images, |_| 1.0)?;
            let mut corrected = rank_embeddings(&queries, &gallery, relevance, Ties::Pessimistic)?;
            if correction.is_dynamic() {
                let raw = rank_embeddings(images, sentences, relevance, Ties::Pessimistic)?;
                let best = nearest(images, sentences, 1)?;
                let applies: Vec<bool> = best
                    .iter()
                    .map(|found| found.first().is_some_and(|best| correction.applies(best.position)))
                    .collect();
                corrected = corrected.i2t_where(&applies, &raw);
            }
            Some(corrected)
        }
        None if of_images.is_some() => {
            Some(rank_embeddings(images, sentences, relevance, Ties::Pessimistic)?)
        }
        None => None,
    };
    if let Some(i2t) = i2t {
        ranks = ranks.with_i2t_of(&i2t);
    }
    Ok(ranks)
}

/// The vectors with one more entry: a constant 1 in queries makes it a term of the score.
fn with_column(set: &Matrix, value: impl Fn(usize) -> f32) -> Result<Matrix> {
    let values = (set.iter_rows().enumerate())
        .flat_map(|(i, row)| row.iter().copied().chain(std::iter::once(value(i))));
    Matrix::new(values.collect(), set.rows(), set.columns() + 1)
}

/// `ln sum_b exp(beta s[j, b] + shift_b)` of every gallery item.
fn log_sums(gallery: &Matrix, bank: &Matrix, beta: f64, shifts: &[f64]) -> Result<Vec<f64>> {
    let mut sums = Vec::with_capacity(gallery.rows());
    let block = (BLOCK_SCORES / bank.rows().max(1)).clamp(1, BLOCK);
    for first in (0..gallery.rows()).step_by(block) {
        let rows: Vec<usize> = (first..gallery.rows().min(first + block)).collect();
        let scores = similarity(&gallery.select_rows(&rows)?, bank)?;
        let of_row = |i: usize| {
            let row = scores.row(i).unwrap_or_default();
            let terms = || row.iter().zip(shifts).map(|(score, shift)| beta * f64::from(*score) + shift);
            let highest = terms().fold(f64::NEG_INFINITY, f64::max);
            highest + terms().map(|term| (term - highest).exp()).sum::<f64>().ln()
        };
        sums.par_extend((0..scores.rows()).into_par_iter().map(of_row));
    }
    Ok(sums)
}

/// The gallery's potentials, negated, in units of the score. First the bank's side of each round, then the gallery's, from zero.
fn potentials(gallery: &Matrix, bank: &Matrix, beta: f64, iterations: usize) -> Result<Vec<f64>> {
    let share = |set: &Matrix| -(set.rows() as f64).ln();
    let (of_bank, of_gallery) = (share(bank), share(gallery));
    let mut columns = vec![0.0; gallery.rows()];
    for _ in 0..iterations {
        let rows: Vec<f64> =
            log_sums(bank, gallery, beta, &columns)?.into_iter().map(|log| of_bank - log).collect();
        columns = log_sums(gallery, bank, beta, &rows)?.into_iter().map(|log| of_gallery - log).collect();
    }
    Ok(columns.into_iter().map(|potential| -potential / beta).collect())
}
