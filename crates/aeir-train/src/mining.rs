//! Matches between two sets that nobody has aligned: which sentence goes with which image, and how sure that is.

use std::collections::BTreeMap;

use aeir_losses::sinkhorn_plan;
use aeir_retrieve::{Matrix, csls};
use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::error::{Result, TrainError};

/// Partners of an image that are remembered: the mass beyond them is small change.
const MOST_PARTNERS: usize = 64;
/// Iterations of the transport; its columns are exact after each, its rows soon are.
const ITERATIONS: usize = 60;
/// Neighbours in the CSLS means.
const CSLS_NEIGHBOURS: usize = 10;

/// How two sets are matched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Matching {
    /// Every image has several partners with a mass each, such that no sentence is everybody's: optimal transport.
    Transport,
    /// Only images and sentences that are each other's nearest under CSLS, one partner each.
    Mutual,
}

/// What [`match_sets`] goes by.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MiningOptions {
    /// How the sets are matched.
    pub matching: Matching,
    /// Entropy of the transport, in standard deviations of the scores: small for few partners, large for many.
    pub epsilon: f64,
    /// Share of each set that need not have a partner in the other.
    pub dustbin: f64,
}

/// Images with their partners among the sentences.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Matches {
    rows: Vec<Match>,
}

/// One image's.
#[derive(Debug, Clone, PartialEq)]
pub struct Match {
    /// Row of the image.
    pub image: usize,
    /// Rows of sentences with their share of the image's mass, the largest first; the shares add up to 1.
    pub partners: Vec<(usize, f32)>,
    /// How sure the best partner is, 0 to 1: its share of the image's mass, what went to no partner counted in; for
    /// mutual neighbours the share that it has in a softmax over the image's sentences.
    pub confidence: f32,
    /// What it weighs in training, 0 to 1.
    pub weight: f32,
}

/// Matches images, the rows of `scores`, with sentences, its columns.
///
/// # Equation
/// Transport: with `C = -scores / std(scores)`, the plan of least `<P, C> - epsilon H(P)` whose rows sum to `1 / N` and columns to `1 / M`. With
/// a dustbin of share `r` one row and one column more, of mass `r` and cost 0 to everything, take what has no partner; nothing goes from one
/// dustbin to the other (Chapel et al., *Partial optimal transport with applications on positive-unlabeled learning*, NeurIPS 2020).
///
/// Mutual: `i` and `j` each other's nearest under `csls = 2 s_ij - r_i - r_j`, `r` the mean of the ten best (Conneau et al., *Word translation without
/// parallel data*, ICLR 2018).
///
/// # Errors
/// When a set is empty, or a score is not finite.
pub fn match_sets(scores: &Matrix, options: &MiningOptions) -> Result<Matches> {
    let sizes = (scores.rows(), scores.columns());
    if sizes.0.min(sizes.1) == 0 {
        return Err(TrainError::Data {
            what: "sets to find matches between".into(),
            expected: "one image and one sentence, or more".into(),
            got: format!("{} images, {} sentences", sizes.0, sizes.1),
        });
    }
    if let Some(value) = scores.values().iter().find(|value| !value.is_finite()) {
        return Err(TrainError::Data {
            what: "scores to find matches by".into(),
            expected: "finite numbers".into(),
            got: value.to_string(),
        });
    }
    match options.matching {
        Matching::Transport => transported(scores, options),
        Matching::Mutual => mutual(scores, options.epsilon),
    }
}

/// The standard deviation of all values; 1 where they are all the same.
pub(crate) fn deviation(values: &[f32]) -> f64 {
    let count = values.len().max(1) as f64;
    let mean = values.iter().map(|value| f64::from(*value)).sum::<f64>() / count;
    let square = values.iter().map(|value| (f64::from(*value) - mean).powi(2)).sum::<f64>() / count;
    if square > 0.0 { square.sqrt() } else { 1.0 }
}

fn transported(scores: &Matrix, options: &MiningOptions) -> Result<Matches> {
    let (rows, columns) = (scores.rows(), scores.columns());
    let scale = -1.0 / deviation(scores.values());
    let cost = Tensor::from_slice(scores.values(), (rows, columns), &Device::Cpu)?.affine(scale, 0.0)?;
    let (cost, marginals) = with_dustbin(cost, options.dustbin)?;
    let [row_marginal, column_marginal] = marginals;
    let plan = sinkhorn_plan(&cost, &row_marginal, &column_marginal, options.epsilon, ITERATIONS)?.plan;
    let plan = plan.narrow(0, 0, rows)?.narrow(1, 0, columns)?.to_vec2::<f32>()?;
    let found =
        plan.iter().enumerate().filter_map(|(image, masses)| of_masses(image, masses, rows)).collect();
    Ok(Matches { rows: found })
}

/// The cost with a dustbin for each side, and the marginals of both sides.
fn with_dustbin(cost: Tensor, share: f64) -> Result<(Tensor, [Tensor; 2])> {
    let (rows, columns) = cost.dims2()?;
    let uniform = |count: usize| vec![(1.0 / count as f64) as f32; count];
    let (mut row_marginal, mut column_marginal) = (uniform(rows), uniform(columns));
    let mut cost = cost;
    if share > 0.0 {
        // Far more than any score is away from the mean: from dustbin to dustbin goes nothing.
        let forbidden = 1e3_f32;
        let right = Tensor::zeros((rows, 1), candle_core::DType::F32, &Device::Cpu)?;
        let below = Tensor::zeros((1, columns), candle_core::DType::F32, &Device::Cpu)?;
        let corner = Tensor::full(forbidden, (1, 1), &Device::Cpu)?;
        let top = Tensor::cat(&[&cost, &right], 1)?;
        cost = Tensor::cat(&[&top, &Tensor::cat(&[&below, &corner], 1)?], 0)?;
        row_marginal.push(share as f32);
        column_marginal.push(share as f32);
    }
    let marginal = |values: Vec<f32>| {
        let count = values.len();
        Tensor::from_vec(values, count, &Device::Cpu)
    };
    Ok((cost, [marginal(row_marginal)?, marginal(column_marginal)?]))
}

/// The best partners of an image, where any mass goes to one.
fn of_masses(image: usize, masses: &[f32], images: usize) -> Option<Match> {
    let mut partners: Vec<(usize, f32)> = masses.iter().copied().enumerate().collect();
    // Ties by number, so that the order is the same everywhere.
    partners.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    partners.truncate(MOST_PARTNERS);
    partners.retain(|(_, mass)| *mass > 0.0);
    let confidence = (partners.first()?.1 * images as f32).min(1.0);
    let total: f32 = partners.iter().map(|(_, mass)| mass).sum();
    partners.iter_mut().for_each(|(_, mass)| *mass /= total);
    Some(Match { image, partners, confidence, weight: 1.0 })
}

fn mutual(scores: &Matrix, epsilon: f64) -> Result<Matches> {
    let neighbours = CSLS_NEIGHBOURS.min(scores.rows()).min(scores.columns());
    let corrected = csls(scores, neighbours)?;
    let best_images: Vec<Option<usize>> =
        corrected.transposed().iter_rows().map(|row| largest(row).map(|(place, _)| place)).collect();
    // CSLS doubles the scores.
    let scale = 1.0 / (2.0 * deviation(scores.values()) * epsilon);
    let mut rows = Vec::new();
    for (image, row) in corrected.iter_rows().enumerate() {
        let Some((sentence, best)) = largest(row) else { continue };
        if best_images.get(sentence).copied().flatten() != Some(image) {
            continue;
        }
        let total: f64 = row.iter().map(|score| (f64::from(score - best) * scale).exp()).sum();
        let confidence = (1.0 / total) as f32;
        rows.push(Match { image, partners: vec![(sentence, 1.0)], confidence, weight: 1.0 });
    }
    Ok(Matches { rows })
}

/// The first of the largest values with its place.
fn largest(row: &[f32]) -> Option<(usize, f32)> {
    row.iter().copied().enumerate().reduce(|best, next| if next.1 > best.1 { next } else { best })
}

impl Matches {
    /// The images that have a partner, in order of their rows.
    pub fn rows(&self) -> &[Match] {
        &self.rows
    }

    /// How many images have a partner.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether none has.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The surest ones: this share of them, rounded up, in order of their rows.
    #[must_use]
    pub fn surest(mut self, share: f64) -> Self {
        let kept = (share * self.rows.len() as f64).ceil() as usize;
        self.rows.sort_by(|a, b| b.confidence.total_cmp(&a.confidence).then(a.image.cmp(&b.image)));
        self.rows.truncate(kept);
        self.rows.sort_by_key(|row| row.image);
        self
    }

    /// With rows numbered as in the sets that `images` and `sentences` were taken from.
    #[must_use]
    pub(crate) fn renumbered(mut self, images: &[usize], sentences: &[usize]) -> Self {
        for row in &mut self.rows {
            row.image = images.get(row.image).copied().unwrap_or(row.image);
            for (sentence, _) in &mut row.partners {
                *sentence = sentences.get(*sentence).copied().unwrap_or(*sentence);
            }
        }
        self
    }

    /// Sets what each weighs.
    pub(crate) fn weigh(&mut self, weights: &[f32]) {
        for (row, weight) in self.rows.iter_mut().zip(weights) {
            row.weight = *weight;
        }
    }

    /// As tensors, for a checkpoint.
    pub(crate) fn tensors(&self) -> Result<BTreeMap<String, Tensor>> {
        let (count, width) = (self.rows.len(), MOST_PARTNERS);
        let mut partners = Vec::with_capacity(count * width);
        let mut masses = Vec::with_capacity(count * width);
        for row in &self.rows {
            let padded = row.partners.iter().copied().chain(std::iter::repeat((0, 0.0))).take(width);
            for (sentence, mass) in padded {
                partners.push(sentence as u32);
                masses.push(mass);
            }
        }
        let column = |of: fn(&Match) -> f32| {
            Tensor::from_vec(self.rows.iter().map(of).collect::<Vec<f32>>(), count, &Device::Cpu)
        };
        let images: Vec<u32> = self.rows.iter().map(|row| row.image as u32).collect();
        Ok(BTreeMap::from([
            ("images".to_owned(), Tensor::from_vec(images, count, &Device::Cpu)?),
            ("partners".to_owned(), Tensor::from_vec(partners, (count, width), &Device::Cpu)?),
            ("masses".to_owned(), Tensor::from_vec(masses, (count, width), &Device::Cpu)?),
            ("confidence".to_owned(), column(|row| row.confidence)?),
            ("weight".to_owned(), column(|row| row.weight)?),
        ]))
    }

    /// What [`Self::tensors`] gave.
    pub(crate) fn from_tensors(tensors: &BTreeMap<String, Tensor>) -> Result<Self> {
        let get = |name: &str| {
            tensors.get(name).ok_or_else(|| TrainError::Data {
                what: "matches in a checkpoint".into(),
                expected: format!("a tensor `{name}`"),
                got: "none".into(),
            })
        };
        let images = get("images")?.to_vec1::<u32>()?;
        let partners = get("partners")?.to_vec2::<u32>()?;
        let masses = get("masses")?.to_vec2::<f32>()?;
        let confidence = get("confidence")?.to_vec1::<f32>()?;
        let weight = get("weight")?.to_vec1::<f32>()?;
        let rows = images
            .into_iter()
            .zip(partners.iter().zip(&masses))
            .zip(confidence.into_iter().zip(weight))
            .map(|((image, (partners, masses)), (confidence, weight))| Match {
                image: image as usize,
                partners: partners
                    .iter()
                    .zip(masses)
                    .filter(|(_, mass)| **mass > 0.0)
                    .map(|(sentence, mass)| (*sentence as usize, *mass))
                    .collect(),
                confidence,
                weight,
            })
            .collect();
        Ok(Self { rows })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRANSPORT: MiningOptions =
        MiningOptions { matching: Matching::Transport, epsilon: 0.1, dustbin: 0.0 };

    fn best(matches: &Matches) -> Vec<(usize, usize)> {
        matches.rows().iter().map(|row| (row.image, row.partners[0].0)).collect()
    }

    /// Column 0 is the nearest of all rows; without it, row and column go together by number.
    fn with_hub() -> Matrix {
        Matrix::from_rows(&[[0.9f32, 0.1, 0.0], [0.8, 0.7, 0.1], [0.8, 0.1, 0.7]]).unwrap()
    }

    #[test]
    fn a_hub_is_not_everybodys_partner() {
        assert_eq!(best(&match_sets(&with_hub(), &TRANSPORT).unwrap()), [(0, 0), (1, 1), (2, 2)]);
        let options = MiningOptions { matching: Matching::Mutual, ..TRANSPORT };
        let found = match_sets(&with_hub(), &options).unwrap();
        assert!(best(&found).contains(&(0, 0)), "{found:?}");
    }

    #[test]
    fn what_has_no_partner_goes_to_the_dustbin() {
        // Row 2 fits nothing, nor does column 2 to any row.
        let scores = Matrix::from_rows(&[[0.9f32, 0.0, -0.5], [0.0, 0.9, -0.5], [-0.5, -0.5, -0.6]]).unwrap();
        let found = |dustbin| match_sets(&scores, &MiningOptions { dustbin, ..TRANSPORT }).unwrap();
        let confidence = |matches: &Matches, image: usize| matches.rows()[image].confidence;
        assert!(confidence(&found(0.0), 2) > 0.9, "without a dustbin everything has a partner");
        let with = found(1.0 / 3.0);
        assert!(confidence(&with, 2) < 0.1 && confidence(&with, 0) > 0.9, "{with:?}");
        assert_eq!(best(&with.surest(0.6)), [(0, 0), (1, 1)]);
    }

    #[test]
    fn sets_of_different_size_and_scale_are_matched() {
        let scores = Matrix::from_rows(&[[9e3f32, 0.0, 1e2, 0.0], [0.0, 8e3, 0.0, 1e2]]).unwrap();
        let found = match_sets(&scores, &TRANSPORT).unwrap();
        assert_eq!(best(&found), [(0, 0), (1, 1)]);
        let share: f32 = found.rows()[0].partners.iter().map(|(_, mass)| mass).sum();
        assert!((share - 1.0).abs() < 1e-5);
    }

    #[test]
    fn matches_survive_a_checkpoint() {
        let mut found = match_sets(&with_hub(), &TRANSPORT).unwrap();
        found.weigh(&[0.5, 1.0, 0.25]);
        assert_eq!(Matches::from_tensors(&found.tensors().unwrap()).unwrap(), found);
        let none = Matches::default();
        assert_eq!(Matches::from_tensors(&none.tensors().unwrap()).unwrap(), none);
        assert!(Matches::from_tensors(&BTreeMap::new()).is_err());
    }

    #[test]
    fn empty_sets_and_scores_that_are_no_numbers_are_refused() {
        assert!(match_sets(&Matrix::new(Vec::new(), 0, 3).unwrap(), &TRANSPORT).is_err());
        assert!(match_sets(&Matrix::new(vec![f32::NAN], 1, 1).unwrap(), &TRANSPORT).is_err());
    }
}
