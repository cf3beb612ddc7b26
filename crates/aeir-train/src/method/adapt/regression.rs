//! The regressions of a memory of pairs: from images to sentences and back, in closed form.

use aeir_encoders::rehearsal::Product;
use aeir_encoders::{RegressionConfig, regression_kernel};
use aeir_retrieve::{Matrix, PrincipalAxes};
use candle_core::{Device, Tensor};
use faer::linalg::solvers::Solve;
use faer::{Mat, MatRef, Side};

use crate::error::{Result, TrainError};

/// What is predicted from what, of one modality: the parts of [`aeir_encoders::PairMemory`].
pub(super) struct Fitted {
    /// `[F, R]`: directions of its own features.
    pub(super) directions: Tensor,
    /// `[n, R]`: from its kernel to the other modality's directions.
    pub(super) map: Tensor,
}

/// Fits both regressions on pairs with the unit features `images [n, F]` and `sentences [n, G]`; of images and of sentences.
///
/// Equation: with `P` the principal directions of the other modality's features `Y`, `map = (K + ridge I)^-1 Y P`.
///
/// # Errors
/// When the kernel can't be solved for, which a ridge above 0 rules out for finite features.
pub(super) fn fit(
    images: &Tensor,
    sentences: &Tensor,
    config: RegressionConfig,
    ridge: f64,
) -> Result<[Fitted; 2]> {
    let of_images = directions(images, config.dimension)?;
    let of_sentences = directions(sentences, config.dimension)?;
    let image_map = map(images, &sentences.product(&of_sentences)?, config.sharpness, ridge)?;
    let sentence_map = map(sentences, &images.product(&of_images)?, config.sharpness, ridge)?;
    Ok([
        Fitted { directions: of_images, map: image_map },
        Fitted { directions: of_sentences, map: sentence_map },
    ])
}

/// The directions in which features vary most, `[F, R]`.
fn directions(features: &Tensor, count: usize) -> Result<Tensor> {
    let (rows, columns) = features.dims2()?;
    let matrix = Matrix::new(features.flatten_all()?.to_vec1::<f32>()?, rows, columns)?;
    let axes = PrincipalAxes::fit(&matrix, count)?;
    let axes = axes.axes();
    let axes = Tensor::from_slice(axes.values(), (axes.rows(), axes.columns()), &Device::Cpu)?;
    Ok(axes.t()?.contiguous()?.to_device(features.device())?)
}

/// `(K + ridge I)^-1 targets`, in f64.
fn map(features: &Tensor, targets: &Tensor, sharpness: f64, ridge: f64) -> Result<Tensor> {
    let (count, length) = targets.dims2()?;
    let kernel = regression_kernel(&features.product(&features.t()?)?, sharpness)?;
    let kernel = kernel.flatten_all()?.to_vec1::<f32>()?;
    let at = |row: usize, column: usize| kernel.get(row * count + column).copied().map_or(0.0, f64::from);
    let kernel =
        Mat::from_fn(count, count, |row, column| at(row, column) + if row == column { ridge } else { 0.0 });
    let targets_f64: Vec<f64> = targets.flatten_all()?.to_vec1::<f32>()?.into_iter().map(f64::from).collect();
    let right = MatRef::from_row_major_slice(&targets_f64, count, length).to_owned();
    let solved = kernel
        .llt(Side::Lower)
        .map_err(|_| TrainError::Setting {
            key: "adapt.ridge",
            expected: "larger: the source pairs are too much alike".into(),
            got: ridge.to_string(),
        })?
        .solve(&right);
    let entries = (0..count).flat_map(|row| (0..length).map(move |column| (row, column)));
    let values: Vec<f32> = entries.map(|(row, column)| *solved.get(row, column) as f32).collect();
    Ok(Tensor::from_vec(values, (count, length), &Device::Cpu)?.to_device(targets.device())?)
}

/// Codes with orthogonal rows, or with orthogonal columns where there are more rows than columns, in the scale of `codes [n, C]`.
///
/// Of the random matrices with that product's expectation these estimate it with the least error; with as many columns as rows without any.
///
/// # Errors
/// When the values can't be read.
pub(super) fn orthogonal(codes: &Tensor) -> Result<Tensor> {
    let (rows, columns) = codes.dims2()?;
    let tall = rows >= columns;
    let source = if tall { codes.clone() } else { codes.t()?.contiguous()? };
    let (long, short) = source.dims2()?;
    let values: Vec<f64> = source.flatten_all()?.to_vec1::<f32>()?.into_iter().map(f64::from).collect();
    let basis = MatRef::from_row_major_slice(&values, long, short).qr().compute_thin_Q();
    // Rows of unit length on average, as random ones have.
    let scale = (rows as f64 / short as f64).sqrt();
    let entries = (0..rows).flat_map(|row| (0..columns).map(move |column| (row, column)));
    let value = |(row, column): (usize, usize)| {
        let entry = if tall { basis.get(row, column) } else { basis.get(column, row) };
        (entry * scale) as f32
    };
    let values: Vec<f32> = entries.map(value).collect();
    Ok(Tensor::from_vec(values, (rows, columns), &Device::Cpu)?.to_device(codes.device())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use aeir_encoders::l2_normalise;
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::{Rng, SeedableRng};

    fn random(rows: usize, columns: usize, seed: u64) -> Tensor {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let values: Vec<f32> =
            (0..rows * columns).map(|_| random.next_u32() as f32 / u32::MAX as f32 - 0.5).collect();
        Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap()
    }

    fn product(x: &Tensor) -> Vec<Vec<f32>> {
        x.product(&x.t().unwrap()).unwrap().to_vec2().unwrap()
    }

    #[test]
    fn few_codes_are_orthogonal_and_many_have_orthogonal_columns() {
        for (row, values) in product(&orthogonal(&random(5, 9, 1)).unwrap()).iter().enumerate() {
            for (column, value) in values.iter().enumerate() {
                assert!((value - f32::from(row == column)).abs() < 1e-5, "{values:?}");
            }
        }
        let many = orthogonal(&random(12, 4, 2)).unwrap().t().unwrap().contiguous().unwrap();
        for (row, values) in product(&many).iter().enumerate() {
            for (column, value) in values.iter().enumerate() {
                assert!((value - 3.0 * f32::from(row == column)).abs() < 1e-5, "{values:?}");
            }
        }
    }

    #[test]
    fn a_new_image_between_two_pairs_is_placed_between_their_sentences() {
        // Angles of images, and of sentences turned by a constant.
        let at = |angle: f32| [angle.cos(), angle.sin()];
        let angles = [0.0f32, 0.4, 0.8, 1.2, 1.6];
        let images = Tensor::new(&angles.map(at), &Device::Cpu).unwrap();
        let sentences = Tensor::new(&angles.map(|angle| at(angle + 2.0)), &Device::Cpu).unwrap();
        let config = RegressionConfig { dimension: 2, sharpness: 3.0 };
        let [of_images, of_sentences] = fit(&images, &sentences, config, 1e-4).unwrap();
        let query = Tensor::new(&[at(0.6)], &Device::Cpu).unwrap();
        let kernel = regression_kernel(&query.product(&images.t().unwrap()).unwrap(), 3.0).unwrap();
        let predicted = l2_normalise(&kernel.product(&of_images.map).unwrap()).unwrap();
        let wanted =
            Tensor::new(&[at(2.6)], &Device::Cpu).unwrap().product(&of_sentences.directions).unwrap();
        let cosine = (predicted * l2_normalise(&wanted).unwrap()).unwrap().sum_all().unwrap();
        assert!(cosine.to_scalar::<f32>().unwrap() > 0.999);
    }

    #[test]
    fn the_same_pair_many_times_can_be_solved_for() {
        let one = Tensor::new(&[[1.0f32, 0.0]; 6], &Device::Cpu).unwrap();
        let config = RegressionConfig { dimension: 2, sharpness: 3.0 };
        let fitted = fit(&one, &one, config, 0.1).unwrap();
        let values = fitted.map(|it| it.map.flatten_all().unwrap().to_vec1::<f32>().unwrap()).concat();
        assert!(values.iter().all(|value| value.is_finite()), "{values:?}");
        assert!(fit(&one, &one, config, 0.0).is_err());
    }
}
