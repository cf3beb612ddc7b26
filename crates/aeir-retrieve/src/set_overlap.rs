//! Whether a set of sentences speaks of a set of images at all, without knowing any pair.

use rand_chacha::rand_core::Rng;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::modality_gap::mean_row;
use crate::principal_axes::PrincipalAxes;
use crate::sampling::{sample, stream};
use crate::scores::same_dimension;
use crate::{Error, Matrix, Result, csls, mutual_neighbours, similarity};

/// How the sets are sampled and turned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OverlapOptions {
    /// Neighbours in the CSLS means; 10 by default.
    pub neighbours: usize,
    /// Turned copies of the sentences that the figures are held against; 199 by default.
    pub draws: usize,
    /// Items drawn from each set at most; 600 by default.
    pub per_set: usize,
    /// Seed of the samples and of the turns; 0 by default.
    pub seed: u64,
}

impl Default for OverlapOptions {
    fn default() -> Self {
        Self { neighbours: 10, draws: 199, per_set: 600, seed: 0 }
    }
}

/// A figure beside what it is where the sets have nothing to do with each other.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AgainstNull {
    /// Of the sets as they are.
    pub observed: f64,
    /// Its mean over the turned copies.
    pub null_mean: f64,
    /// Its standard deviation over them.
    pub null_deviation: f64,
    /// Share of the copies, the sets as they are counted in, with a figure at least as large.
    pub p_value: f64,
    /// The figure of every copy. Not in JSON.
    #[serde(skip)]
    pub null: Vec<f64>,
}

/// Three figures of how two unpaired sets fit each other.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SetOverlap {
    /// Images looked at.
    pub images: usize,
    /// Sentences looked at.
    pub sentences: usize,
    /// Turned copies.
    pub draws: usize,
    /// Share of the smaller set that has a mutual nearest neighbour under CSLS, 0 to 1. Any two sets have many: alone it says
    /// little.
    pub mutual_share: AgainstNull,
    /// Mean CSLS of these mutual neighbours.
    pub mutual_similarity: AgainstNull,
    /// Skewness of all scores: positive where some pairs fit far better than most, and none fit as much worse. The figure to go
    /// by.
    pub skewness: AgainstNull,
}

/// Holds two unpaired sets against sentences that were turned away from the images.
///
/// Both sets are centred and scaled to length 1 (which takes the modality gap away). Each turned copy flips the sentences along a
/// random half of the principal axes of both sets together. It keeps everything within the sentences (their distances, clusters
/// and hubs) and how far they spread along each axis, and loses only which side of an axis stands for what. Where a sentence
/// set speaks of the images, both sets crowd on the same sides and their scores have a long upper tail; after a turn the tail is as
/// long below as above. What is tested is "which side is which carries nothing", not "the sets share no topic": sets of one
/// topic without a single true pair pass, as they should, for no figure without labels can tell those apart. A weak space can
/// fail to show what is there.
///
/// Shapes: `images [N, D]`, `sentences [M, D]` in one space.
///
/// # Errors
/// [`Error::Shape`] where the dimensions differ, [`Error::NotFinite`] on NaN or infinity, [`Error::Setting`] where a set has fewer
/// than 2 items or `draws` is 0.
pub fn set_overlap(images: &Matrix, sentences: &Matrix, options: &OverlapOptions) -> Result<SetOverlap> {
    same_dimension(images, sentences)?;
    for (name, got, least) in
        [("images", images.rows(), 2), ("sentences", sentences.rows(), 2), ("draws", options.draws, 1)]
    {
        if got < least {
            return Err(Error::Setting { name, expected: format!("{least} or more"), got: got.to_string() });
        }
    }
    // Rows of the same number may belong together: streams of their own.
    let drawn = |set: &Matrix, of: u64| {
        centred(&set.select_rows(&sample(
            &mut stream(options.seed, of),
            set.rows(),
            options.per_set.max(2),
        ))?)
    };
    let (images, sentences) = (drawn(images, 0)?, drawn(sentences, 1)?);
    let (images, sentences) = on_common_axes(&images, &sentences)?;
    let k = options.neighbours.clamp(1, images.rows().min(sentences.rows()));
    let observed = Figures::of(&images, &sentences, k)?;
    let turned = (0..options.draws as u64)
        .into_par_iter()
        .map(|draw| {
            // Streams 0 and 1 drew the items.
            let mut random = stream(options.seed, 2 + draw);
            let signs: Vec<f32> = (0..sentences.columns())
                .map(|_| if random.next_u32() & 1 == 0 { 1.0 } else { -1.0 })
                .collect();
            Figures::of(&images, &flipped(&sentences, &signs)?, k)
        })
        .collect::<Result<Vec<Figures>>>()?;
    let against =
        |value: fn(&Figures) -> f64| AgainstNull::new(value(&observed), turned.iter().map(value).collect());
    Ok(SetOverlap {
        images: images.rows(),
        sentences: sentences.rows(),
        draws: options.draws,
        mutual_share: against(|figures| figures.mutual_share),
        mutual_similarity: against(|figures| figures.mutual_similarity),
        skewness: against(|figures| figures.skewness),
    })
}

impl AgainstNull {
    fn new(observed: f64, null: Vec<f64>) -> Self {
        let count = null.len().max(1) as f64;
        let null_mean = null.iter().sum::<f64>() / count;
        let squares: f64 = null.iter().map(|value| (value - null_mean).powi(2)).sum();
        let as_large = null.iter().filter(|value| **value >= observed).count();
        Self {
            observed,
            null_mean,
            null_deviation: (squares / (count - 1.0).max(1.0)).sqrt(),
            p_value: (1 + as_large) as f64 / (1.0 + null.len() as f64),
            null,
        }
    }
}

struct Figures {
    mutual_share: f64,
    mutual_similarity: f64,
    skewness: f64,
}

impl Figures {
    fn of(images: &Matrix, sentences: &Matrix, k: usize) -> Result<Self> {
        let scores = similarity(images, sentences)?;
        let skewness = skewness(scores.values());
        let mutual: Vec<f64> =
            mutual_neighbours(&csls(&scores, k)?).into_iter().map(|pair| f64::from(pair.score)).collect();
        let smaller = images.rows().min(sentences.rows()) as f64;
        Ok(Self {
            mutual_share: mutual.len() as f64 / smaller,
            mutual_similarity: mutual.iter().sum::<f64>() / mutual.len().max(1) as f64,
            skewness,
        })
    }
}

/// The rows less their mean, scaled to length 1.
fn centred(set: &Matrix) -> Result<Matrix> {
    set.check_finite("embeddings")?;
    let mean = mean_row(set);
    let values =
        set.iter_rows().flat_map(|row| row.iter().zip(&mean).map(|(x, mean)| (f64::from(*x) - mean) as f32));
    Matrix::new(values.collect(), set.rows(), set.columns())?.l2_normalised()
}

/// Both sets in the coordinates of their common principal axes.
fn on_common_axes(images: &Matrix, sentences: &Matrix) -> Result<(Matrix, Matrix)> {
    let values = images.values().iter().chain(sentences.values()).copied().collect();
    let both = Matrix::new(values, images.rows() + sentences.rows(), images.columns())?;
    let axes = PrincipalAxes::fit(&both, images.columns())?;
    Ok((axes.project(images)?, axes.project(sentences)?))
}

fn flipped(set: &Matrix, signs: &[f32]) -> Result<Matrix> {
    let values = set.iter_rows().flat_map(|row| row.iter().zip(signs).map(|(value, sign)| value * sign));
    Matrix::new(values.collect(), set.rows(), set.columns())
}

/// `m3 / m2^1.5` of values, 0 where all are equal.
fn skewness(values: &[f32]) -> f64 {
    let count = values.len().max(1) as f64;
    let mean = values.iter().map(|value| f64::from(*value)).sum::<f64>() / count;
    let (mut second, mut third) = (0.0, 0.0);
    for value in values {
        let difference = f64::from(*value) - mean;
        second += difference.powi(2);
        third += difference.powi(3);
    }
    if second > 0.0 { third / count / (second / count).powf(1.5) } else { 0.0 }
}
