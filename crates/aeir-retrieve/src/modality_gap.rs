//! How two modalities lie in a joint space: the gap between them and how evenly each spreads.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::sampling::{sample, stream};
use crate::scores::same_dimension;
use crate::{Error, Matrix, Result};

/// Items of a set whose pairs are looked at: two million pairs give the mean to three digits.
const MOST_FOR_UNIFORMITY: usize = 2_000;

/// How images and sentences lie in one space.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModalityGap {
    /// Distance of the two means of the unit vectors: 0 on one another, 2 at opposite poles.
    pub gap: f64,
    /// [`uniformity`] of the images.
    pub uniformity_images: f64,
    /// [`uniformity`] of the sentences.
    pub uniformity_sentences: f64,
}

impl ModalityGap {
    /// Of `images [N, D]` and `sentences [M, D]`, L2-normalised here.
    ///
    /// Equation: `|mean_i x_i - mean_j z_j|` of unit vectors (Liang et al., *Mind the gap*, NeurIPS 2022).
    ///
    /// # Errors
    /// [`Error::Shape`] where the dimensions differ, [`Error::NotFinite`] on NaN or infinity, [`Error::Setting`] where a set has
    /// fewer than 2 items.
    ///
    /// # Example
    /// ```
    /// use aeir_retrieve::{Matrix, ModalityGap};
    /// let images = Matrix::from_rows(&[[1.0, 0.1], [1.0, -0.1]])?;
    /// let sentences = Matrix::from_rows(&[[-1.0, 0.1], [-1.0, -0.1]])?;
    /// assert!(ModalityGap::measure(&images, &sentences)?.gap > 1.9);
    /// # Ok::<(), aeir_retrieve::Error>(())
    /// ```
    pub fn measure(images: &Matrix, sentences: &Matrix) -> Result<Self> {
        same_dimension(images, sentences)?;
        let (uniformity_images, uniformity_sentences) = (uniformity(images)?, uniformity(sentences)?);
        let (images, sentences) = (mean_row(&images.l2_normalised()?), mean_row(&sentences.l2_normalised()?));
        let gap = images.iter().zip(&sentences).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt();
        Ok(Self { gap, uniformity_images, uniformity_sentences })
    }
}

/// How evenly embeddings spread over the sphere: 0 all on one point, the more negative the more even, hardly below -4.
///
/// Equation (Wang and Isola, *Understanding contrastive representation learning through alignment and uniformity on the
/// hypersphere*, ICML 2020): `ln mean exp(-2 |x - y|^2)` over distinct pairs of unit vectors. Of more than 2,000 items that
/// many are drawn, always the same.
///
/// # Errors
/// [`Error::NotFinite`] on NaN or infinity, [`Error::Setting`] where there are fewer than 2 items.
pub fn uniformity(embeddings: &Matrix) -> Result<f64> {
    let items = embeddings.rows();
    if items < 2 {
        return Err(Error::Setting { name: "items", expected: "2 or more".into(), got: items.to_string() });
    }
    let drawn = sample(&mut stream(0, 0), items, MOST_FOR_UNIFORMITY);
    let unit = embeddings.select_rows(&drawn)?.l2_normalised()?;
    let rows: Vec<&[f32]> = unit.iter_rows().collect();
    let sums: Vec<f64> = rows
        .par_iter()
        .enumerate()
        .map(|(i, left)| {
            rows.iter().skip(i + 1).map(|right| (-2.0 * squared_distance(left, right)).exp()).sum()
        })
        .collect();
    let pairs = rows.len() * (rows.len() - 1) / 2;
    Ok((sums.iter().sum::<f64>() / pairs as f64).ln())
}

fn squared_distance(left: &[f32], right: &[f32]) -> f64 {
    left.iter().zip(right).map(|(a, b)| f64::from(a - b).powi(2)).sum()
}

/// The mean of the rows, in `f64`.
pub(crate) fn mean_row(matrix: &Matrix) -> Vec<f64> {
    let mut sums = vec![0.0; matrix.columns()];
    for row in matrix.iter_rows() {
        sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += f64::from(*value));
    }
    let count = matrix.rows().max(1) as f64;
    sums.iter_mut().for_each(|sum| *sum /= count);
    sums
}
