//! Which images of an unpaired set are most worth a person's label, and which to measure with.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use rayon::prelude::*;

use crate::sampling::{sample, stream};
use crate::scores::same_dimension;
use crate::search::mean_top_k_similarity;
use crate::{Error, Matrix, Neighbour, Result, nearest, similarity};

/// How labels are planned.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LabelPlanOptions {
    /// Images to learn from; 70 by default.
    pub learn: usize,
    /// Images to measure with; 30 by default.
    pub measure: usize,
    /// Sentences offered for each; 9 by default.
    pub candidates: usize,
    /// Decides which images measure, and the samples of large sets; 0 by default.
    pub seed: u64,
}

impl Default for LabelPlanOptions {
    fn default() -> Self {
        Self { learn: 70, measure: 30, candidates: 9, seed: 0 }
    }
}

/// Images to label, in two parts that have none in common.
#[derive(Clone, Debug, PartialEq)]
pub struct LabelPlan {
    /// Chosen for what they teach, the most useful first.
    pub learn: Vec<PlannedLabel>,
    /// Drawn uniformly from all images, in random order: recall on them is recall on the set.
    pub measure: Vec<PlannedLabel>,
}

/// One image to label.
#[derive(Clone, Debug, PartialEq)]
pub struct PlannedLabel {
    /// Its row.
    pub image: usize,
    /// Sentences that may belong to it, the likeliest first; the score is the cosine, less half of what the sentence reaches on
    /// average with its ten nearest images.
    pub candidates: Vec<Neighbour>,
    /// How undecided the model is between them: 0 sure, 1 all alike.
    pub uncertainty: f64,
}

/// Neighbours in the CSLS means.
const NEIGHBOURS: usize = 10;
/// How many times the candidates are looked at before hubs are taken off.
const WIDER: usize = 4;
/// Temperature of the candidates' softmax in standard deviations of the scores: what the matching of the recipe takes too.
const TEMPERATURE: f64 = 0.15;
/// Images that may be chosen, and images that are to be represented: larger sets are sampled.
const MOST_CHOICES: usize = 10_000;
const MOST_REPRESENTED: usize = 2_000;
/// Items of each set that the spread of the scores is taken from.
const MOST_SPREAD: usize = 1_000;
/// Streams of the seed.
const MEASURE_STREAM: u64 = 0;
const CHOICE_STREAM: u64 = 1;
const REPRESENTED_STREAM: u64 = 2;
const SPREAD_STREAMS: [u64; 2] = [3, 4];

/// Chooses images to learn from and draws images to measure with.
///
/// The part to measure with is drawn first, uniformly: figures on images that were chosen for being hard are no estimate of anything.
/// The part to learn from is chosen among the others, for two reasons at once. *Uncertainty*: the model can't decide between the
/// image's best sentences, and yet one of them may fit; an image that nothing comes near to is likely to have no sentence, and
/// teaches nothing. *Diversity*: what is chosen should stand for the undecided part of the set, not for one corner of it.
///
/// Equation: with `s_ij` the cosine less half of the sentence's mean over its ten nearest images (as CSLS lowers hubs), `u_i` the entropy of
/// the softmax of `s_i / t` over the candidates divided by its largest value, `t` 0.15 standard deviations of the scores, and `q_i` the
/// share of images whose best score is not above that of `i`, the chosen set `S` is grown greedily on
///
/// ```text
/// f(S) = sum_i u_i q_i max_{c in S} max(0, cos(x_i, x_c))
/// ```
///
/// a facility location: monotone and submodular, so that greedy growth reaches 1 - 1/e of the best (Nemhauser, Wolsey and Fisher,
/// *Mathematical Programming* 14, 1978), and the first `n` chosen are the choice of `n`. That representative items
/// beat the most uncertain ones where labels are few: Hacohen et al., *Active learning on a budget*, ICML 2022.
///
/// Shapes: `images [N, D]`, `sentences [M, D]`, L2-normalised, in one space. At most N images are planned, those to measure with first.
/// Of more than 10,000 images a random 10,000 may be chosen, of more than 2,000 a random 2,000 is represented.
///
/// # Errors
/// [`Error::Setting`] where `learn` and `measure` are both 0, or `candidates` is; [`Error::Empty`] where a set is empty; [`Error::Shape`],
/// [`Error::NotFinite`].
///
/// # Example
/// ```
/// use aeir_retrieve::{LabelPlanOptions, Matrix, plan_labels};
/// let images = Matrix::from_rows(&[[1.0, 0.0], [0.7, 0.7]])?.l2_normalised()?;
/// let sentences = Matrix::from_rows(&[[1.0, 0.0], [0.0, 1.0]])?;
/// let options = LabelPlanOptions { learn: 1, measure: 0, ..Default::default() };
/// let plan = plan_labels(&images, &sentences, &options)?;
/// assert_eq!(plan.learn[0].image, 1); // both sentences fit it alike
/// # Ok::<(), aeir_retrieve::Error>(())
/// ```
pub fn plan_labels(images: &Matrix, sentences: &Matrix, options: &LabelPlanOptions) -> Result<LabelPlan> {
    check(images, sentences, options)?;
    let offered = offers(images, sentences, options)?;
    let measured = sample(&mut stream(options.seed, MEASURE_STREAM), images.rows(), options.measure);
    let mut free = vec![true; images.rows()];
    for image in &measured {
        if let Some(free) = free.get_mut(*image) {
            *free = false;
        }
    }
    let chosen = representatives(images, &weights(&offered), &free, options)?;
    let planned = |rows: Vec<usize>| {
        let of_row = |image: usize| offered.get(image).map(|offer| offer.planned(image));
        rows.into_iter().filter_map(of_row).collect()
    };
    Ok(LabelPlan { learn: planned(chosen), measure: planned(measured) })
}

fn check(images: &Matrix, sentences: &Matrix, options: &LabelPlanOptions) -> Result<()> {
    same_dimension(images, sentences)?;
    let counts = [("learn + measure", options.learn + options.measure), ("candidates", options.candidates)];
    for (name, got) in counts {
        if got == 0 {
            return Err(Error::Setting { name, expected: "1 or more".into(), got: "0".into() });
        }
    }
    for (what, set) in [("set of images", images), ("set of sentences", sentences)] {
        if set.rows() == 0 {
            return Err(Error::Empty { what });
        }
    }
    images.check_finite("image embeddings")
}

/// The sentences of one image.
struct Offer {
    candidates: Vec<Neighbour>,
    uncertainty: f64,
}

impl Offer {
    fn planned(&self, image: usize) -> PlannedLabel {
        PlannedLabel { image, candidates: self.candidates.clone(), uncertainty: self.uncertainty }
    }

    fn best(&self) -> f32 {
        self.candidates.first().map_or(f32::NEG_INFINITY, |candidate| candidate.score)
    }
}

/// The candidates of every image.
fn offers(images: &Matrix, sentences: &Matrix, options: &LabelPlanOptions) -> Result<Vec<Offer>> {
    let hubs = mean_top_k_similarity(sentences, images, NEIGHBOURS.min(images.rows()))?;
    let temperature = TEMPERATURE * spread(images, sentences, options.seed)?;
    let wider = options.candidates.saturating_mul(WIDER).min(sentences.rows());
    let offer = |found: Vec<Neighbour>| {
        let lowered = |found: Neighbour| {
            let hub = hubs.get(found.position).copied().unwrap_or(0.0);
            Neighbour { score: (f64::from(found.score) - 0.5 * hub) as f32, ..found }
        };
        let mut candidates: Vec<Neighbour> = found.into_iter().map(lowered).collect();
        candidates.sort_by(|a, b| b.score.total_cmp(&a.score).then(a.position.cmp(&b.position)));
        candidates.truncate(options.candidates);
        let uncertainty = entropy(&candidates, temperature);
        Offer { candidates, uncertainty }
    };
    Ok(nearest(images, sentences, wider)?.into_iter().map(offer).collect())
}

/// The standard deviation of the scores between samples of both sets; 1 where they are all the same.
fn spread(images: &Matrix, sentences: &Matrix, seed: u64) -> Result<f64> {
    let [of_images, of_sentences] = SPREAD_STREAMS;
    let drawn =
        |set: &Matrix, of: u64| set.select_rows(&sample(&mut stream(seed, of), set.rows(), MOST_SPREAD));
    let scores = similarity(&drawn(images, of_images)?, &drawn(sentences, of_sentences)?)?;
    let count = scores.values().len().max(1) as f64;
    let mean = scores.values().iter().map(|score| f64::from(*score)).sum::<f64>() / count;
    let square = scores.values().iter().map(|score| (f64::from(*score) - mean).powi(2)).sum::<f64>() / count;
    Ok(if square > 0.0 { square.sqrt() } else { 1.0 })
}

/// Entropy of the softmax of scores, over its largest value; 0 of a single score.
fn entropy(candidates: &[Neighbour], temperature: f64) -> f64 {
    let Some(highest) = candidates.first().map(|candidate| candidate.score) else { return 0.0 };
    let term =
        |candidate: &Neighbour| (f64::from(candidate.score) - f64::from(highest)).min(0.0) / temperature;
    let terms: Vec<f64> = candidates.iter().map(|candidate| term(candidate).exp()).collect();
    let sum: f64 = terms.iter().sum();
    let entropy: f64 = terms.iter().map(|term| term / sum).filter(|p| *p > 0.0).map(|p| -p * p.ln()).sum();
    if candidates.len() > 1 { (entropy / (candidates.len() as f64).ln()).clamp(0.0, 1.0) } else { 0.0 }
}

/// Uncertainty times plausibility of each image; alike where all of them are 0.
fn weights(offered: &[Offer]) -> Vec<f64> {
    let mut best: Vec<f32> = offered.iter().map(Offer::best).collect();
    best.sort_unstable_by(f32::total_cmp);
    let weight = |offer: &Offer| {
        let not_above = best.partition_point(|score| *score <= offer.best());
        offer.uncertainty * not_above as f64 / offered.len().max(1) as f64
    };
    let weights: Vec<f64> = offered.iter().map(weight).collect();
    if weights.iter().all(|weight| *weight == 0.0) { vec![1.0; offered.len()] } else { weights }
}

/// How much an image would add, as far as is known: it can only have become less since.
struct Gain {
    value: f64,
    choice: usize,
    /// How many were chosen when it was worked out.
    known_at: usize,
}

impl Ord for Gain {
    /// The largest first; of equals that of the first image.
    fn cmp(&self, other: &Self) -> Ordering {
        self.value.total_cmp(&other.value).then(other.choice.cmp(&self.choice))
    }
}

impl PartialOrd for Gain {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Gain {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Gain {}

/// The images that stand for all others, weighted, the most useful first. Gains only fall as the set grows, so that most of them need
/// not be worked out again (Minoux, 1978).
fn representatives(
    images: &Matrix,
    weights: &[f64],
    free: &[bool],
    options: &LabelPlanOptions,
) -> Result<Vec<usize>> {
    let drawn = |of: u64, most: usize| {
        let mut rows = sample(&mut stream(options.seed, of), images.rows(), most);
        rows.sort_unstable();
        rows
    };
    let mut choices = drawn(CHOICE_STREAM, MOST_CHOICES);
    choices.retain(|row| free.get(*row).copied().unwrap_or(false));
    let represented = drawn(REPRESENTED_STREAM, MOST_REPRESENTED);
    let nearness = similarity(&images.select_rows(&choices)?, &images.select_rows(&represented)?)?;
    let weights: Vec<f64> = represented.iter().map(|row| weights.get(*row).copied().unwrap_or(0.0)).collect();
    let mut reached = vec![0.0_f32; represented.len()];
    let gain = |choice: usize, reached: &[f32]| -> f64 {
        let row = nearness.row(choice).unwrap_or_default();
        let added = row.iter().zip(reached).map(|(near, reached)| f64::from((near - reached).max(0.0)));
        added.zip(&weights).map(|(added, weight)| added * weight).sum()
    };
    let first: Vec<Gain> = (0..choices.len())
        .into_par_iter()
        .map(|choice| Gain { value: gain(choice, &reached), choice, known_at: 0 })
        .collect();
    let mut waiting = BinaryHeap::from(first);
    let mut chosen = Vec::new();
    while chosen.len() < options.learn {
        let Some(best) = waiting.pop() else { break };
        if best.known_at < chosen.len() {
            let value = gain(best.choice, &reached);
            waiting.push(Gain { value, known_at: chosen.len(), ..best });
            continue;
        }
        for (reached, near) in reached.iter_mut().zip(nearness.row(best.choice).unwrap_or_default()) {
            *reached = reached.max(*near);
        }
        chosen.extend(choices.get(best.choice));
    }
    Ok(chosen)
}
