//! Losses whose targets are distributions.

use candle_core::{D, Tensor};

use crate::error::Result;

/// Symmetric InfoNCE in which several sentences may belong to an image, each in part.
///
/// Equation: with the targets' rows `q_i` and columns `q'_j` scaled to sum to 1, and weights `w`,
/// `loss = -1/2 (sum_i w_i q_i . ln softmax_row(S)_i + sum_j w_j q'_j . ln softmax_column(S)_j) / sum w`.
/// The identity as targets makes it InfoNCE.
///
/// Shapes: `scores` and `targets` `[B, B]`, `weights` `[B]`; row i and column i were drawn together.
pub(super) fn soft_info_nce(scores: &Tensor, targets: &Tensor, weights: &Tensor) -> Result<Tensor> {
    let rows = weighted(&cross_entropy(scores, &to_one(targets)?)?, weights)?;
    let transposed = targets.t()?.contiguous()?;
    let columns = weighted(&cross_entropy(&scores.t()?.contiguous()?, &to_one(&transposed)?)?, weights)?;
    Ok(((rows + columns)? * 0.5)?)
}

/// `-sum_j p_j ln softmax(S)_j` of every row, `[B]`.
pub(super) fn cross_entropy(scores: &Tensor, targets: &Tensor) -> Result<Tensor> {
    let shifted = scores.broadcast_sub(&scores.detach().max_keepdim(D::Minus1)?)?;
    let total = shifted.exp()?.sum_keepdim(D::Minus1)?.log()?;
    Ok((shifted.broadcast_sub(&total)? * targets)?.sum(D::Minus1)?.neg()?)
}

/// Rows that sum to 1; a row of zeros stays.
fn to_one(targets: &Tensor) -> Result<Tensor> {
    Ok(targets.broadcast_div(&(targets.sum_keepdim(D::Minus1)? + 1e-12)?)?)
}

fn weighted(losses: &Tensor, weights: &Tensor) -> Result<Tensor> {
    Ok((losses * weights)?.sum_all()?.div(&(weights.sum_all()? + 1e-12)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use aeir_losses::InfoNceLoss;
    use candle_core::{DType, Device, Var};

    fn scores() -> Tensor {
        Tensor::new(&[[2.0f32, 0.5, -1.0], [0.3, 1.0, 0.2], [-0.4, 0.8, 3.0]], &Device::Cpu).unwrap()
    }

    fn scalar(tensor: &Tensor) -> f32 {
        tensor.to_scalar().unwrap()
    }

    #[test]
    fn one_partner_each_is_info_nce() {
        let identity = Tensor::eye(3, DType::F32, &Device::Cpu).unwrap();
        let ones = Tensor::ones(3, DType::F32, &Device::Cpu).unwrap();
        let soft = soft_info_nce(&scores(), &identity, &ones).unwrap();
        let hard = InfoNceLoss::default().from_scores(&scores()).unwrap();
        assert!((scalar(&soft) - scalar(&hard)).abs() < 1e-6);
    }

    #[test]
    fn the_gradient_is_that_of_finite_differences_and_a_weight_of_zero_stops_it() {
        let targets =
            Tensor::new(&[[0.6f32, 0.4, 0.0], [0.1, 0.9, 0.0], [0.0, 0.2, 0.8]], &Device::Cpu).unwrap();
        let weights = Tensor::new(&[1.0f32, 0.5, 0.0], &Device::Cpu).unwrap();
        let loss = |scores: &Tensor| soft_info_nce(scores, &targets, &weights).unwrap();
        let variable = Var::from_tensor(&scores()).unwrap();
        let store = loss(variable.as_tensor()).backward().unwrap();
        let gradient = store.get(variable.as_tensor()).unwrap().to_vec2::<f32>().unwrap();
        let base = scores().to_vec2::<f32>().unwrap();
        for row in 0..3 {
            for column in 0..3 {
                let moved = |by: f32| {
                    let mut values = base.clone();
                    values[row][column] += by;
                    scalar(&loss(&Tensor::new(values, &Device::Cpu).unwrap()))
                };
                let slope = (moved(1e-2) - moved(-1e-2)) / 2e-2;
                assert!((slope - gradient[row][column]).abs() < 1e-3, "{row} {column}: {slope}");
            }
        }
        // Row 2 and column 2 weigh nothing.
        assert!(gradient[2][2].abs() < 1e-7);
    }
}
