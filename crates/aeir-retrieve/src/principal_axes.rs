//! Principal axes of a set of embeddings: for pictures in two dimensions, and to turn clouds within their own shape.

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatRef, Par, Side};

use crate::modality_gap::mean_row;
use crate::{Error, Matrix, Result};

/// The directions in which embeddings vary most, longest first.
#[derive(Clone, Debug, PartialEq)]
pub struct PrincipalAxes {
    mean: Vec<f64>,
    /// `[axes, D]`, orthonormal rows.
    axes: Matrix,
    /// Variance along every axis, kept or not, longest first.
    variances: Vec<f64>,
}

impl PrincipalAxes {
    /// The `count` longest principal axes of `embeddings [N, D]` (all D where that is fewer).
    ///
    /// Numerical notes: the covariance is summed in `f64` and decomposed whole, `D^3` operations. The sign of an axis makes its
    /// largest entry positive.
    ///
    /// # Errors
    /// [`Error::Empty`] without embeddings, [`Error::NotFinite`] on NaN or infinity, [`Error::Setting`] where `count` is 0 or the
    /// decomposition does not converge.
    ///
    /// # Example
    /// ```
    /// use aeir_retrieve::{Matrix, PrincipalAxes};
    /// let points = Matrix::from_rows(&[[0.0, 1.0], [1.0, 1.1], [2.0, 0.9], [3.0, 1.0]])?;
    /// let axes = PrincipalAxes::fit(&points, 1)?;
    /// assert!(axes.explained() > 0.99);
    /// assert_eq!(axes.project(&points)?.columns(), 1);
    /// # Ok::<(), aeir_retrieve::Error>(())
    /// ```
    pub fn fit(embeddings: &Matrix, count: usize) -> Result<Self> {
        let (items, dimension) = (embeddings.rows(), embeddings.columns());
        if items == 0 || dimension == 0 {
            return Err(Error::Empty { what: "set of embeddings to take principal axes of" });
        }
        if count == 0 {
            return Err(Error::Setting { name: "count", expected: "1 or more".into(), got: "0".into() });
        }
        embeddings.check_finite("embeddings")?;
        let mean = mean_row(embeddings);
        let centred: Vec<f64> = embeddings
            .iter_rows()
            .flat_map(|row| row.iter().zip(&mean).map(|(value, mean)| f64::from(*value) - mean))
            .collect();
        let centred = MatRef::from_row_major_slice(&centred, items, dimension);
        let mut covariance = Mat::zeros(dimension, dimension);
        matmul(
            covariance.as_mut(),
            Accum::Replace,
            centred.transpose(),
            centred,
            1.0 / items as f64,
            Par::Seq,
        );
        let decomposed = covariance.self_adjoint_eigen(Side::Lower).map_err(|_| Error::Setting {
            name: "embeddings",
            expected: "values whose covariance can be decomposed".into(),
            got: "no convergence".into(),
        })?;
        // Ascending there, descending here.
        let variances: Vec<f64> =
            decomposed.S().column_vector().iter().rev().map(|variance| variance.max(0.0)).collect();
        let vectors: Vec<Vec<f64>> = decomposed
            .U()
            .col_iter()
            .rev()
            .take(count)
            .map(|column| column.iter().copied().collect())
            .collect();
        let rows: Vec<Vec<f32>> = vectors.into_iter().map(|axis| signed(&axis)).collect();
        Ok(Self { mean, axes: Matrix::from_rows(&rows)?, variances })
    }

    /// The axes as rows, `[axes, D]`, longest first.
    #[must_use]
    pub fn axes(&self) -> &Matrix {
        &self.axes
    }

    /// Share of the variance along the kept axes, 0 to 1.
    #[must_use]
    pub fn explained(&self) -> f64 {
        let all: f64 = self.variances.iter().sum();
        let kept: f64 = self.variances.iter().take(self.axes.rows()).sum();
        if all > 0.0 { kept / all } else { 0.0 }
    }

    /// Coordinates along the kept axes, `[N, axes]`, from the mean of what the axes were taken of.
    ///
    /// # Errors
    /// [`Error::Shape`] where the dimension differs.
    pub fn project(&self, embeddings: &Matrix) -> Result<Matrix> {
        if embeddings.columns() != self.mean.len() {
            return Err(Error::Shape {
                what: "dimension of the embeddings",
                expected: self.mean.len(),
                got: embeddings.columns(),
            });
        }
        let centred: Vec<f32> = embeddings
            .iter_rows()
            .flat_map(|row| row.iter().zip(&self.mean).map(|(value, mean)| (f64::from(*value) - mean) as f32))
            .collect();
        crate::similarity(&Matrix::new(centred, embeddings.rows(), self.mean.len())?, &self.axes)
    }
}

/// The axis with its largest entry positive.
fn signed(axis: &[f64]) -> Vec<f32> {
    let largest =
        axis.iter().copied().fold(0.0_f64, |best, value| if value.abs() > best.abs() { value } else { best });
    let sign = if largest < 0.0 { -1.0 } else { 1.0 };
    axis.iter().map(|value| (sign * value) as f32).collect()
}
