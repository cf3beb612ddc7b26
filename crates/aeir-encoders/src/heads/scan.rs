//! Stacked cross attention.

use candle_core::{D, DType, Tensor};
use serde::{Deserialize, Serialize};

use super::alignment::fragment_scores;
use super::{fused, masked};
use crate::error::{EncoderError, Result};
use crate::fragments::Fragments;
use crate::normalise::{L2_EPSILON, UnitNorm};
use crate::rehearsal::{Product, is_fused};

/// Settings of stacked cross attention, both directions.
///
/// # Equation
/// Lee et al., *Stacked cross attention for image-text matching*, ECCV 2018. For words that attend to regions (t2i):
///
/// ```text
/// s_rl = [cos(v_r, t_l)]_+ / sqrt(sum_l [cos(v_r, t_l)]_+^2)      a_l = sum_r softmax_r(temperature s_rl) v_r
/// score = log(sum_l exp(lambda cos(t_l, a_l))) / lambda           or the mean of cos(t_l, a_l)
/// ```
///
/// For regions that attend to words (i2t) the two change places: normalised over the regions, softmax over the words,
/// pooled over the regions.
///
/// # Numerical notes
/// The attended vectors are never formed: their products follow from the scores, and their lengths from the dot products
/// among the fragments of one item. A pair without words or without regions scores 0. On the CPU in f32 all pairs are one
/// operation with its own backward pass.
///
/// # Deviations from the released procedure
/// The authors' code has a leaky ReLU in place of `[.]_+`: `negative_slope` 0.1.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Debug)]
#[serde(deny_unknown_fields, default)]
pub struct ScanConfig {
    /// What the normalised scores are multiplied with before the softmax: 9 for t2i; the paper takes 4 for i2t.
    pub temperature: f64,
    /// How the cosines of the fragments become one number.
    pub pooling: ScanPooling,
    /// Slope of the clipping below zero: 0 as in the paper.
    pub negative_slope: f64,
}

/// How the cosines of the fragments become one number.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Debug)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum ScanPooling {
    /// `log(sum exp(lambda cos)) / lambda`: close to the largest for a large lambda.
    LogSumExp {
        /// Sharpness.
        lambda: f64,
    },
    /// The mean over the real fragments.
    Mean,
}

impl Default for ScanConfig {
    fn default() -> Self {
        Self { temperature: 9.0, pooling: ScanPooling::LogSumExp { lambda: 6.0 }, negative_slope: 0.0 }
    }
}

impl ScanConfig {
    pub(super) fn check(&self) -> Result<()> {
        let lambda = match self.pooling {
            ScanPooling::LogSumExp { lambda } => lambda,
            ScanPooling::Mean => 1.0,
        };
        let positive = [("scan temperature", self.temperature), ("scan lambda", lambda)];
        let bad = positive.into_iter().find(|(_, value)| !(value.is_finite() && *value > 0.0));
        let bad = bad.or(Some(("scan negative slope", self.negative_slope))
            .filter(|(_, slope)| !(0.0..=1.0).contains(slope)));
        match bad {
            None => Ok(()),
            Some((what, value)) => Err(EncoderError::Argument {
                what,
                expected: if what == "scan negative slope" {
                    "a value in [0, 1]"
                } else {
                    "a positive number"
                }
                .to_owned(),
                got: value.to_string(),
            }),
        }
    }

    /// `images [N, R, D]` and `sentences [M, L, D]` with zeros in padded rows to `[N, M]`.
    pub(super) fn scores(
        &self,
        words_attend: bool,
        norm: UnitNorm,
        images: &Fragments,
        sentences: &Fragments,
    ) -> Result<Tensor> {
        if is_fused(&[images.features(), sentences.features()]) {
            return fused::scan::scores(*self, words_attend, norm, images, sentences);
        }
        let dtype = images.features().dtype();
        if matches!(dtype, DType::BF16 | DType::F16) {
            // A sharp softmax of cosines needs more than the digits of half precision.
            let single = |of: &Fragments| of.with_features(of.features().to_dtype(DType::F32)?);
            let scores = self.scores(words_attend, norm, &single(images)?, &single(sentences)?)?;
            return Ok(scores.to_dtype(dtype)?);
        }
        // Sentences or images ask; the asking fragments are the last axis but one: [A, B, asking, asked].
        let scores = fragment_scores(images, sentences)?;
        if words_attend {
            let scores = scores.permute((2, 0, 1, 3))?.contiguous()?;
            self.attend(&scores, norm, sentences, images)
        } else {
            let scores = scores.permute((0, 2, 3, 1))?.contiguous()?;
            Ok(self.attend(&scores, norm, images, sentences)?.t()?.contiguous()?)
        }
    }

    /// `scores [asked items, asking items, asking fragments, asked fragments]` to `[asked items, asking items]`.
    fn attend(
        &self,
        scores: &Tensor,
        norm: UnitNorm,
        asking: &Fragments,
        asked: &Fragments,
    ) -> Result<Tensor> {
        let (items, others, rows, columns) = scores.dims4()?;
        let asked_mask = asked.mask().to_dtype(scores.dtype())?.reshape((items, 1, 1, columns))?;
        let asking_mask = asking.mask().to_dtype(scores.dtype())?.unsqueeze(0)?;
        // Without anything to attend to, nothing is pooled.
        let any_asked = asked_mask.max_keepdim(3)?.squeeze(3)?;
        let asking_mask = asking_mask.broadcast_mul(&any_asked)?;
        let clipped = masked::leaky_relu(scores, self.negative_slope)?.transpose(2, 3)?.contiguous()?;
        let sharp = (norm.apply(&clipped)?.transpose(2, 3)?.contiguous()? * self.temperature)?;
        let attention = masked::softmax(&sharp, &asked_mask)?;
        // a . t = sum_r alpha_r (v_r . t), |a|^2 = alpha G alpha with G the products among the asked fragments.
        let products = (&attention * scores)?.sum(D::Minus1)?;
        let features = asked.features().contiguous()?;
        let among = features.product(&features.transpose(1, 2)?.contiguous()?)?;
        let flat = attention.reshape((items, others * rows, columns))?;
        let squares = (flat.product(&among)? * &flat)?.sum(D::Minus1)?.reshape((items, others, rows))?;
        let lengths = (squares.relu()? + L2_EPSILON)?.sqrt()?;
        let own = (asking.features().sqr()?.sum(D::Minus1)? + L2_EPSILON)?.sqrt()?;
        let cosines = products.div(&lengths)?.broadcast_div(&own.unsqueeze(0)?)?;
        self.pooling.apply(&cosines, &asking_mask)
    }
}

impl ScanPooling {
    /// Over the last axis, among the entries with mask 1; `mask` must broadcast to `x`.
    fn apply(self, x: &Tensor, mask: &Tensor) -> Result<Tensor> {
        let mask = mask.broadcast_as(x.shape())?.contiguous()?;
        let count = mask.sum(D::Minus1)?;
        match self {
            Self::Mean => Ok((x * &mask)?.sum(D::Minus1)?.div(&count.maximum(1.0)?)?),
            Self::LogSumExp { lambda } => {
                // A cosine is at most 1, which takes the place of the largest.
                let sum = ((((x - 1.0)? * lambda)?.exp()? * &mask)?).sum(D::Minus1)?;
                let some = count.gt(0f64)?;
                let sum = some.where_cond(&sum, &sum.ones_like()?)?;
                let pooled = ((sum.log()? / lambda)? + 1.0)?;
                Ok(some.where_cond(&pooled, &pooled.zeros_like()?)?)
            }
        }
    }
}
