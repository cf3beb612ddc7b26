//! The matrix that makes a domain's features uncorrelated.

use aeir_encoders::Standardiser;
use aeir_encoders::rehearsal::Product;
use candle_core::{DType, Device, Tensor};
use faer::{Mat, MatRef, Side};

use crate::error::{Result, TrainError};
use crate::items::ItemTable;

/// Rows that are multiplied at once.
const BLOCK: usize = 1_024;

/// Adds the whitening of all tables' rows to `standardiser`, which was fitted on them.
///
/// # Equation
/// With `R` the covariance of the standardised rows, which is their correlation, and `m = trace(R) / F`:
/// `W = ((1 - s) R + s m I)^(-1/2)`, the symmetric root (ZCA), which of all whitening matrices moves features least. The share `s` is
/// worked out from the rows, `s = min(1, sum_k |z_k z_k^T - R|^2 / (n^2 |R - m I|^2))`: few rows against F leave little of `R`
/// (Ledoit and Wolf, *A well-conditioned estimator for large-dimensional covariance matrices*, Journal of Multivariate Analysis 88, 2004).
///
/// # Errors
/// When the rows can't be read, or are too large to be decomposed.
pub(crate) fn whitened(
    standardiser: Standardiser,
    tables: &[&ItemTable],
    device: &Device,
) -> Result<Standardiser> {
    let Moments { correlation, fourth, count } = Moments::of(&standardiser, tables)?;
    let dimension = standardiser.dimension();
    let shrunk = shrink(correlation, dimension, fourth, count);
    let root = inverse_root(&shrunk, dimension)?;
    Ok(standardiser.with_whitening(Tensor::from_vec(root, (dimension, dimension), device)?)?)
}

/// Sums over standardised rows.
struct Moments {
    /// `[F, F]`, row-major.
    correlation: Vec<f64>,
    /// `sum_k |z_k|^4`.
    fourth: f64,
    count: usize,
}

impl Moments {
    fn of(standardiser: &Standardiser, tables: &[&ItemTable]) -> Result<Self> {
        let dimension = standardiser.dimension();
        let (mean, deviation) = standardiser.to_host()?;
        let mut sums = Sums { product: None, fourth: 0.0, count: 0 };
        let mut rows: Vec<f64> = Vec::new();
        let mut failed = None;
        for table in tables {
            table.each_row(&mut |row| {
                let standardised = row.iter().zip(&mean).zip(&deviation);
                rows.extend(standardised.map(|((x, mean), deviation)| f64::from((x - mean) / deviation)));
                if rows.len() >= BLOCK * dimension && failed.is_none() {
                    failed = sums.add(std::mem::take(&mut rows), dimension).err();
                }
            })?;
        }
        if let Some(error) = failed {
            return Err(error);
        }
        sums.add(rows, dimension)?;
        let Sums { product, fourth, count } = sums;
        let scale = 1.0 / count.max(1) as f64;
        let correlation = match product {
            Some(product) => (product * scale)?.flatten_all()?.to_vec1::<f64>()?,
            None => vec![0.0; dimension * dimension],
        };
        Ok(Self { correlation, fourth, count })
    }
}

struct Sums {
    product: Option<Tensor>,
    fourth: f64,
    count: usize,
}

impl Sums {
    fn add(&mut self, rows: Vec<f64>, dimension: usize) -> Result<()> {
        if rows.is_empty() {
            return Ok(());
        }
        let lengths = rows.chunks_exact(dimension).map(|row| row.iter().map(|x| x * x).sum::<f64>());
        self.fourth += lengths.map(|square| square * square).sum::<f64>();
        let count = rows.len() / dimension;
        self.count += count;
        let block = Tensor::from_vec(rows, (count, dimension), &Device::Cpu)?;
        let product = block.t()?.contiguous()?.product(&block)?;
        self.product = Some(match self.product.take() {
            Some(sum) => (sum + product)?,
            None => product,
        });
        debug_assert_eq!(self.product.as_ref().map(Tensor::dtype), Some(DType::F64));
        Ok(())
    }
}

/// `(1 - s) R + s m I`.
fn shrink(mut correlation: Vec<f64>, dimension: usize, fourth: f64, count: usize) -> Vec<f64> {
    let diagonal = |matrix: &[f64]| matrix.iter().step_by(dimension + 1).sum::<f64>();
    let mean = diagonal(&correlation) / dimension.max(1) as f64;
    let square: f64 = correlation.iter().map(|value| value * value).sum();
    // |R - m I|^2 = |R|^2 - F m^2.
    let distance = square - dimension as f64 * mean * mean;
    let count = count.max(1) as f64;
    let error = (fourth / count - square).max(0.0) / count;
    let share = if distance > 0.0 { (error / distance).min(1.0) } else { 1.0 };
    correlation.iter_mut().for_each(|value| *value *= 1.0 - share);
    correlation.iter_mut().step_by(dimension + 1).for_each(|value| *value += share * mean);
    correlation
}

/// The symmetric `M^(-1/2)` of a symmetric matrix, row-major.
fn inverse_root(matrix: &[f64], dimension: usize) -> Result<Vec<f32>> {
    let refused = || TrainError::Data {
        what: "features to whiten".into(),
        expected: "numbers whose correlations can be decomposed".into(),
        got: "some that are too large".into(),
    };
    let decomposed = MatRef::from_row_major_slice(matrix, dimension, dimension)
        .self_adjoint_eigen(Side::Lower)
        .map_err(|_| refused())?;
    let values: Vec<f64> = decomposed.S().column_vector().iter().copied().collect();
    let largest = values.iter().copied().fold(0.0, f64::max);
    // Nothing is divided by rounding; without any variance nothing is turned.
    let floor = if largest > 0.0 { largest * 1e-6 } else { 1.0 };
    let vectors = decomposed.U();
    let scaled = Mat::from_fn(dimension, dimension, |row, column| {
        let value = values.get(column).copied().unwrap_or(floor);
        vectors.get(row, column) / value.max(floor).sqrt()
    });
    let root = &scaled * vectors.transpose();
    let entries = (0..dimension).flat_map(|row| (0..dimension).map(move |column| (row, column)));
    Ok(entries.map(|(row, column)| *root.get(row, column) as f32).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::items::FeatureTable;
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::{Rng, SeedableRng};

    fn uniform(random: &mut ChaCha8Rng) -> f32 {
        random.next_u32() as f32 / u32::MAX as f32 - 0.5
    }

    /// Rows whose second feature mostly repeats the first.
    fn correlated(count: usize) -> ItemTable {
        let mut random = ChaCha8Rng::seed_from_u64(4);
        let values = (0..count).flat_map(|_| {
            let [a, b, c] = [(); 3].map(|()| uniform(&mut random));
            [3.0 * a + 7.0, 30.0 * a + 6.0 * b, c]
        });
        ItemTable::Pooled(FeatureTable::new(values.collect(), 3).unwrap())
    }

    fn fitted(table: &ItemTable) -> Standardiser {
        let standardiser =
            Standardiser::fit_each(3, &Device::Cpu, |visit| table.each_row(visit).unwrap()).unwrap();
        whitened(standardiser, &[table], &Device::Cpu).unwrap()
    }

    fn covariance(table: &ItemTable, standardiser: &Standardiser) -> Vec<Vec<f32>> {
        let mut rows = Vec::new();
        table.each_row(&mut |row| rows.push(row.to_vec())).unwrap();
        let count = rows.len() as f64;
        let x = standardiser.apply(&Tensor::new(rows, &Device::Cpu).unwrap()).unwrap();
        (x.t().unwrap().product(&x).unwrap() / count).unwrap().to_vec2().unwrap()
    }

    #[test]
    fn many_rows_come_out_uncorrelated() {
        let table = correlated(5_000);
        let found = covariance(&table, &fitted(&table));
        for (row, values) in found.iter().enumerate() {
            for (column, value) in values.iter().enumerate() {
                let expected = f32::from(row == column);
                assert!((value - expected).abs() < 0.05, "{row} {column}: {value}");
            }
        }
    }

    #[test]
    fn the_matrix_is_symmetric_and_few_rows_are_hardly_turned() {
        let matrix = |table: &ItemTable| fitted(table).whitening().unwrap().to_vec2::<f32>().unwrap();
        let (few, many) = (matrix(&correlated(4)), matrix(&correlated(4_000)));
        for (row, values) in many.iter().enumerate() {
            for (column, value) in values.iter().enumerate() {
                assert!((value - many[column][row]).abs() < 1e-5);
            }
        }
        assert!(few[0][1].abs() < many[0][1].abs(), "{few:?} {many:?}");
        let one = ItemTable::Pooled(FeatureTable::new(vec![1.0, 2.0, 3.0], 3).unwrap());
        assert!(
            fitted(&one)
                .whitening()
                .unwrap()
                .to_vec2::<f32>()
                .unwrap()
                .concat()
                .iter()
                .all(|x| x.is_finite())
        );
    }
}
