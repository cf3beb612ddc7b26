//! Rotary position embedding.

use candle_core::{D, Device, Tensor};

use crate::error::Result;

/// Turns pairs of query and key components by an angle that grows with the position (Su et al., 2021).
///
/// Equation: component `i` and component `i + d/2` of the vector at position `p` turn by `p theta^(-2i/d)`.
#[derive(Debug, Clone)]
pub(crate) struct Rotary {
    /// `theta^(-2i/d)`.
    frequencies: Vec<f64>,
}

impl Rotary {
    /// For heads of an even `dimension`.
    pub(crate) fn new(dimension: usize, theta: f64) -> Self {
        let pairs = dimension / 2;
        let frequencies = (0..pairs).map(|pair| theta.powf(-(pair as f64) / pairs as f64)).collect();
        Self { frequencies }
    }

    /// Cosines and sines of the first `length` positions, `[T, d/2]` each.
    pub(crate) fn angles(&self, length: usize, device: &Device) -> Result<(Tensor, Tensor)> {
        let angles = || {
            (0..length).flat_map(|position| self.frequencies.iter().map(move |step| position as f64 * step))
        };
        let table = |values: Vec<f32>| Tensor::from_vec(values, (length, self.frequencies.len()), device);
        Ok((
            table(angles().map(|angle| angle.cos() as f32).collect())?,
            table(angles().map(|angle| angle.sin() as f32).collect())?,
        ))
    }
}

/// Turns `x [B, H, T, d]`.
pub(crate) fn rotate(x: &Tensor, (cosines, sines): &(Tensor, Tensor)) -> Result<Tensor> {
    let half = x.dim(D::Minus1)? / 2;
    let (first, second) = (x.narrow(D::Minus1, 0, half)?, x.narrow(D::Minus1, half, half)?);
    let turned_first = (first.broadcast_mul(cosines)? - second.broadcast_mul(sines)?)?;
    let turned_second = (second.broadcast_mul(cosines)? + first.broadcast_mul(sines)?)?;
    Ok(Tensor::cat(&[turned_first, turned_second], D::Minus1)?)
}
