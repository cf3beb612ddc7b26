//! Standardisation of features with the statistics of a domain.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{Device, Tensor};

use crate::rehearsal::Product;
use crate::{EncoderError, Items};

/// Mean and deviation of each feature over a set of vectors, in one modality of one domain.
///
/// Per-domain standardisation gives each domain its own statistics, the target's from its unpaired training sets: the
/// first two moments of both domains then agree before anything is learned, at no cost and without labels.
///
/// With a whitening matrix the features are decorrelated as well: all second moments of both domains agree. The matrix is
/// worked out by whoever has the features ([`Standardiser::with_whitening`]).
///
/// Shapes: applied to `[.., F]`.
///
/// Numerical notes: sums run in f64. A deviation below a hundredth of the mean deviation is raised to it, so that a
/// feature which is constant in a small set doesn't explode on an item where it is not.
#[derive(Debug, Clone)]
pub struct Standardiser {
    mean: Tensor,
    deviation: Tensor,
    /// `[F, F]`, symmetric.
    whitening: Option<Tensor>,
}

impl Standardiser {
    /// The statistics of `rows`, each of `dimension` values.
    ///
    /// # Errors
    /// When there is no row, or one has another length.
    pub fn fit<'a>(
        rows: impl IntoIterator<Item = &'a [f32]>,
        dimension: usize,
        device: &Device,
    ) -> Result<Self, EncoderError> {
        Self::fit_each(dimension, device, |visit| rows.into_iter().for_each(visit))
    }

    /// As [`Standardiser::fit`], over rows that exist one at a time: `each` hands all of them to its argument.
    ///
    /// # Errors
    /// When there is no row, or one has another length.
    pub fn fit_each(
        dimension: usize,
        device: &Device,
        each: impl FnOnce(&mut dyn FnMut(&[f32])),
    ) -> Result<Self, EncoderError> {
        let (mut count, mut sums, mut squares) = (0usize, vec![0f64; dimension], vec![0f64; dimension]);
        let mut misfit = None;
        each(&mut |row| {
            if row.len() != dimension {
                misfit = Some(row.len());
                return;
            }
            count += 1;
            for ((sum, square), value) in sums.iter_mut().zip(&mut squares).zip(row) {
                *sum += f64::from(*value);
                *square += f64::from(*value) * f64::from(*value);
            }
        });
        if let Some(length) = misfit {
            return Err(EncoderError::Shape {
                what: "features to standardise",
                expected: format!("[{dimension}]"),
                got: vec![length],
            });
        }
        if count == 0 {
            return Err(EncoderError::Argument {
                what: "rows to standardise with",
                expected: "one or more".into(),
                got: "none".into(),
            });
        }
        let scale = 1.0 / count as f64;
        let mean: Vec<f64> = sums.iter().map(|sum| sum * scale).collect();
        let mut deviation: Vec<f64> = squares
            .iter()
            .zip(&mean)
            .map(|(square, mean)| (square * scale - mean * mean).max(0.0).sqrt())
            .collect();
        let typical = deviation.iter().sum::<f64>() / dimension.max(1) as f64;
        // One row, or rows that are all the same: centre only.
        let floor = if typical > 0.0 { 0.01 * typical } else { 1.0 };
        deviation.iter_mut().for_each(|value| *value = value.max(floor));
        let tensor = |values: Vec<f64>| {
            let values: Vec<f32> = values.into_iter().map(|value| value as f32).collect();
            Tensor::from_vec(values, dimension, device)
        };
        Ok(Self { mean: tensor(mean)?, deviation: tensor(deviation)?, whitening: None })
    }

    /// Multiplies standardised features by `whitening` too.
    ///
    /// # Shapes
    /// `[F, F]`.
    ///
    /// # Errors
    /// [`EncoderError::Shape`] when it is of another shape.
    pub fn with_whitening(self, whitening: Tensor) -> Result<Self, EncoderError> {
        let dimension = self.dimension();
        if whitening.dims() != [dimension, dimension] {
            return Err(EncoderError::Shape {
                what: "whitening matrix",
                expected: format!("[{dimension}, {dimension}]"),
                got: whitening.dims().to_vec(),
            });
        }
        Ok(Self { whitening: Some(whitening), ..self })
    }

    /// The matrix that standardised features are multiplied by, where there is one, `[F, F]`.
    #[must_use]
    pub fn whitening(&self) -> Option<&Tensor> {
        self.whitening.as_ref()
    }

    /// `(x - mean) / deviation`, and times the whitening matrix where there is one.
    ///
    /// # Errors
    /// When the last dimension of `x` differs.
    pub fn apply(&self, x: &Tensor) -> Result<Tensor, EncoderError> {
        let standardised = x.broadcast_sub(&self.mean)?.broadcast_div(&self.deviation)?;
        let Some(whitening) = &self.whitening else { return Ok(standardised) };
        let rows = standardised.reshape(((), self.dimension()))?;
        Ok(rows.product(whitening)?.reshape(standardised.shape())?)
    }

    /// Mean and deviation on the host, for rows that are standardised one by one.
    ///
    /// # Errors
    /// When they can't be read from their device.
    pub fn to_host(&self) -> Result<(Vec<f32>, Vec<f32>), EncoderError> {
        Ok((self.mean.to_vec1()?, self.deviation.to_vec1()?))
    }

    /// Number of features.
    pub fn dimension(&self) -> usize {
        self.mean.elem_count()
    }
}

/// The statistics of one domain, both modalities. A modality without any is taken as it is: words have no features, and
/// the released procedure takes region features raw.
#[derive(Debug, Clone, Default)]
pub struct DomainStatistics {
    /// Of image features.
    pub image: Option<Standardiser>,
    /// Of sentence features.
    pub sentence: Option<Standardiser>,
}

impl DomainStatistics {
    /// Image features with this domain's statistics; as they are where there are none.
    ///
    /// # Errors
    /// When the last dimension differs.
    pub fn standardise_images(&self, items: &Items) -> Result<Items, EncoderError> {
        standardise(self.image.as_ref(), items)
    }

    /// Sentence features with this domain's statistics; words, and features without statistics, as they are.
    ///
    /// # Errors
    /// When the last dimension differs.
    pub fn standardise_sentences(&self, items: &Items) -> Result<Items, EncoderError> {
        standardise(self.sentence.as_ref(), items)
    }
}

fn standardise(standardiser: Option<&Standardiser>, items: &Items) -> Result<Items, EncoderError> {
    let Some(standardiser) = standardiser else { return Ok(items.clone()) };
    Ok(match items {
        Items::Pooled(features) => Items::Pooled(standardiser.apply(features)?),
        Items::Fragments(fragments) => {
            Items::Fragments(fragments.with_features(standardiser.apply(fragments.features())?)?)
        }
        Items::Words(_) => items.clone(),
    })
}

/// The statistics of all domains of a training run, and which of them new items get.
///
/// Stored in a bundle as tensors `domain.NAME.{image,sentence}.{mean,deviation}` and, of whitened features, `.whitening`.
#[derive(Debug, Clone)]
pub struct Standardisation {
    domains: BTreeMap<String, DomainStatistics>,
    serving: String,
}

impl Standardisation {
    /// `serving` names the domain whose statistics new items get: the target, where it has statistics of its own.
    ///
    /// # Errors
    /// When `serving` is none of `domains`.
    pub fn new(domains: BTreeMap<String, DomainStatistics>, serving: &str) -> Result<Self, EncoderError> {
        if !domains.contains_key(serving) {
            return Err(unknown_domain(serving));
        }
        Ok(Self { domains, serving: serving.to_owned() })
    }

    /// The domain whose statistics new items get.
    pub fn serving(&self) -> &str {
        &self.serving
    }

    /// The statistics of a domain.
    ///
    /// # Errors
    /// When there is no such domain.
    pub fn domain(&self, name: &str) -> Result<&DomainStatistics, EncoderError> {
        self.domains.get(name).ok_or_else(|| unknown_domain(name))
    }

    /// All of it as named tensors.
    pub fn tensors(&self) -> BTreeMap<String, Tensor> {
        let mut tensors = BTreeMap::new();
        for (name, domain) in &self.domains {
            for (modality, standardiser) in [("image", &domain.image), ("sentence", &domain.sentence)] {
                let Some(standardiser) = standardiser else { continue };
                tensors.insert(format!("domain.{name}.{modality}.mean"), standardiser.mean.clone());
                tensors.insert(format!("domain.{name}.{modality}.deviation"), standardiser.deviation.clone());
                if let Some(whitening) = &standardiser.whitening {
                    tensors.insert(format!("domain.{name}.{modality}.whitening"), whitening.clone());
                }
            }
        }
        tensors
    }

    /// Reads what [`Standardisation::tensors`] gave; `file` names the origin in errors.
    ///
    /// # Errors
    /// When a tensor is missing or two of a modality differ in shape.
    pub fn from_tensors(
        tensors: &BTreeMap<String, Tensor>,
        serving: &str,
        file: &Path,
    ) -> Result<Self, EncoderError> {
        let mut domains: BTreeMap<String, DomainStatistics> = BTreeMap::new();
        for (key, mean) in tensors {
            let Some((name, modality)) = key
                .strip_prefix("domain.")
                .and_then(|key| key.strip_suffix(".mean"))
                .and_then(|key| key.rsplit_once('.'))
            else {
                continue;
            };
            let deviation_key = format!("domain.{name}.{modality}.deviation");
            let deviation = tensors.get(&deviation_key).ok_or_else(|| EncoderError::MissingTensor {
                file: file.to_owned(),
                key: deviation_key.clone(),
                expected: mean.dims().to_vec(),
            })?;
            if mean.dims().len() != 1 || mean.dims() != deviation.dims() {
                return Err(EncoderError::TensorShape {
                    file: file.to_owned(),
                    key: deviation_key,
                    expected: mean.dims().to_vec(),
                    got: deviation.dims().to_vec(),
                });
            }
            let key = format!("domain.{name}.{modality}.whitening");
            let whitening = whitening(tensors, &key, mean.elem_count(), file)?;
            let standardiser = Standardiser { mean: mean.clone(), deviation: deviation.clone(), whitening };
            let domain = domains.entry(name.to_owned()).or_default();
            match modality {
                "image" => domain.image = Some(standardiser),
                _ => domain.sentence = Some(standardiser),
            }
        }
        if domains.is_empty() {
            // Features taken as they are leave no tensor.
            domains.insert(serving.to_owned(), DomainStatistics::default());
        }
        Self::new(domains, serving)
    }
}

/// The whitening matrix of that key, where there is one.
fn whitening(
    tensors: &BTreeMap<String, Tensor>,
    key: &str,
    dimension: usize,
    file: &Path,
) -> Result<Option<Tensor>, EncoderError> {
    let Some(whitening) = tensors.get(key) else { return Ok(None) };
    let expected = vec![dimension, dimension];
    if whitening.dims() != expected {
        return Err(EncoderError::TensorShape {
            file: file.to_owned(),
            key: key.to_owned(),
            expected,
            got: whitening.dims().to_vec(),
        });
    }
    Ok(Some(whitening.clone()))
}

fn unknown_domain(name: &str) -> EncoderError {
    EncoderError::Argument {
        what: "domain",
        expected: "one that the statistics were taken of".into(),
        got: format!("`{name}`"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fitted_set_has_mean_zero_and_deviation_one() {
        let rows = [[1.0f32, 10.0], [3.0, 30.0], [5.0, 20.0]];
        let fitted = Standardiser::fit(rows.iter().map(|row| &row[..]), 2, &Device::Cpu).unwrap();
        let applied = fitted.apply(&Tensor::new(&rows, &Device::Cpu).unwrap()).unwrap();
        for column in applied.t().unwrap().to_vec2::<f32>().unwrap() {
            let mean = column.iter().sum::<f32>() / 3.0;
            let variance = column.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / 3.0;
            assert!(mean.abs() < 1e-6 && (variance - 1.0).abs() < 1e-5);
        }
    }

    #[test]
    fn constant_features_and_single_rows_stay_finite() {
        for rows in [vec![[2.0f32, 1.0], [2.0, 3.0]], vec![[2.0, 1.0]]] {
            let fitted = Standardiser::fit(rows.iter().map(|row| &row[..]), 2, &Device::Cpu).unwrap();
            let unseen = Tensor::new(&[[3.0f32, 3.0]], &Device::Cpu).unwrap();
            let applied = fitted.apply(&unseen).unwrap().to_vec2::<f32>().unwrap();
            assert!(applied[0].iter().all(|value| value.abs() <= 200.5), "{applied:?}");
        }
        assert!(Standardiser::fit(std::iter::empty(), 2, &Device::Cpu).is_err());
    }

    #[test]
    fn a_whitening_matrix_is_applied_to_every_row_and_has_to_fit() {
        let rows = [[1.0f32, 10.0], [3.0, 30.0]];
        let fitted = Standardiser::fit(rows.iter().map(|row| &row[..]), 2, &Device::Cpu).unwrap();
        let turned = Tensor::new(&[[0.0f32, 1.0], [1.0, 0.0]], &Device::Cpu).unwrap();
        let whitened = fitted.clone().with_whitening(turned).unwrap();
        // Two items of one fragment each.
        let x = Tensor::new(&[[[1.0f32, 30.0]], [[3.0, 10.0]]], &Device::Cpu).unwrap();
        let found = whitened.apply(&x).unwrap().to_vec3::<f32>().unwrap();
        assert_eq!(found, vec![vec![vec![1.0, -1.0]], vec![vec![-1.0, 1.0]]]);
        let narrow = Tensor::new(&[[1.0f32]], &Device::Cpu).unwrap();
        assert!(fitted.with_whitening(narrow).is_err());
    }

    #[test]
    fn survives_a_round_trip() {
        let fit = |offset: f32| {
            let rows = [[offset, 1.0], [0.0, offset + 2.0]];
            Standardiser::fit(rows.iter().map(|row| &row[..]), 2, &Device::Cpu).unwrap()
        };
        let matrix = Tensor::new(&[[1.0f32, 0.5], [0.5, 2.0]], &Device::Cpu).unwrap();
        let whitened = fit(4.0).with_whitening(matrix).unwrap();
        let statistics = DomainStatistics { image: Some(fit(0.5)), sentence: Some(whitened) };
        // A domain is named after a file or folder: dots and spaces occur.
        let domains = BTreeMap::from([("my data.v2".to_owned(), statistics)]);
        let written = Standardisation::new(domains, "my data.v2").unwrap().tensors();
        let read = Standardisation::from_tensors(&written, "my data.v2", Path::new("a file")).unwrap();
        let bits = |tensors: &BTreeMap<String, Tensor>| {
            let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            tensors.iter().map(|(k, t)| (k.clone(), values(t))).collect::<Vec<_>>()
        };
        assert_eq!(bits(&read.tensors()), bits(&written));
        assert_eq!(written.len(), 5, "mean and deviation of both, one matrix");
        let mut damaged = written.clone();
        damaged.insert(
            "domain.my data.v2.sentence.whitening".into(),
            Tensor::zeros((2, 3), candle_core::DType::F32, &Device::Cpu).unwrap(),
        );
        assert!(Standardisation::from_tensors(&damaged, "my data.v2", Path::new("a file")).is_err());
        assert!(Standardisation::from_tensors(&written, "other", Path::new("a file")).is_err());
    }
}
