//! `tanh` of the batch normalisation of fragments, one channel a place, as one operation on the CPU.
//!
//! Composed of candle's operations it would pass some twenty times over all fragments, and twice turn them around.

use std::sync::{Arc, OnceLock};

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::fused::dense::{dot, vectorised};
use crate::batch_norm::{BatchNorm, BatchStatistics, VARIANCE_EPSILON};
use crate::error::Result as EncoderResult;
use crate::fragments::Fragments;
use crate::lanes::{PANEL, load, store, tanh};
use crate::product::{held_values, values};
use crate::rehearsal::is_fused;

/// Whether the operation can take these.
pub(super) fn applies(x: &Tensor) -> bool {
    is_fused(&[x])
}

/// `tanh(norm(x))` of `x [B, T, D]` in training mode: statistics of each place over the batch, of real fragments alone.
pub(super) fn normalised_tanh(norm: &BatchNorm, x: &Tensor, fragments: &Fragments) -> EncoderResult<Tensor> {
    let statistics = Arc::new(OnceLock::new());
    let operation =
        NormalisedTanh { mask: fragments.mask().flatten_all()?.to_vec1()?, statistics: statistics.clone() };
    let y = x.contiguous()?.apply_op3(&norm.weight().contiguous()?, &norm.bias().contiguous()?, operation)?;
    if let Some(statistics) = statistics.get() {
        norm.update(statistics)?;
    }
    Ok(y)
}

/// `x [B, T, D]`, `weight [T]`, `bias [T]` to `[B, T, D]`.
struct NormalisedTanh {
    /// `[B, T]`.
    mask: Vec<f32>,
    /// Of each place.
    statistics: Arc<OnceLock<BatchStatistics>>,
}

/// What the rows of one place are scaled and shifted with.
#[derive(Clone, Copy)]
struct Place {
    mean: f32,
    scale: f32,
}

impl NormalisedTanh {
    /// The real rows of a place.
    fn rows<'a>(
        &'a self,
        x: &'a [f32],
        (places, width): (usize, usize),
        place: usize,
    ) -> impl Iterator<Item = &'a [f32]> {
        let rows = x.chunks_exact(width).zip(&self.mask).skip(place).step_by(places);
        rows.filter(|(_, mask)| **mask != 0.0).map(|(row, _)| row)
    }

    fn places(&self) -> Result<Vec<Place>> {
        let Some(statistics) = self.statistics.get() else { bail!("fragment norm: no statistics were kept") };
        let place = |(mean, variance): (&f64, &f64)| Place {
            mean: *mean as f32,
            scale: (1.0 / (variance + VARIANCE_EPSILON).sqrt()) as f32,
        };
        Ok(statistics.mean.iter().zip(&statistics.variance).map(place).collect())
    }

    fn measure(&self, x: &[f32], (places, width): (usize, usize)) -> BatchStatistics {
        let moments = |place: usize| {
            let count = (self.rows(x, (places, width), place).count() * width) as f64;
            let sum: f64 =
                self.rows(x, (places, width), place).map(|row| f64::from(row.iter().sum::<f32>())).sum();
            let mean = sum / count.max(1.0);
            let squares = |row: &[f32]| {
                vectorised(|| {
                    let mean = mean as f32;
                    let (lanes, rest) = row.as_chunks::<16>();
                    let mut sums = [0f32; 16];
                    for values in lanes {
                        sums.iter_mut()
                            .zip(values)
                            .for_each(|(sum, value)| *sum += (value - mean) * (value - mean));
                    }
                    let rest: f32 = rest.iter().map(|value| (value - mean) * (value - mean)).sum();
                    f64::from(sums.iter().sum::<f32>() + rest)
                })
            };
            let sum: f64 = self.rows(x, (places, width), place).map(squares).sum();
            (mean, sum / count.max(1.0), count)
        };
        let all: Vec<(f64, f64, f64)> = (0..places).into_par_iter().map(moments).collect();
        BatchStatistics {
            mean: all.iter().map(|place| place.0).collect(),
            variance: all.iter().map(|place| place.1).collect(),
            count: all.iter().map(|place| place.2).collect(),
        }
    }
}

fn sizes(dims: &[usize], mask: usize) -> Result<(usize, usize)> {
    match *dims {
        [batch, places, width] if batch * places == mask && mask * width > 0 => Ok((places, width)),
        _ => bail!("fragment norm: {dims:?} with a mask of {mask}"),
    }
}

impl CustomOp3 for NormalisedTanh {
    fn name(&self) -> &'static str {
        "fragment-norm-tanh"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (places, width) = sizes(layout.dims(), self.mask.len())?;
        let x = values(x, layout)?;
        let (weight, bias) = (values(weight, weight_layout)?, values(bias, bias_layout)?);
        if weight.len() != places || bias.len() != places {
            bail!("fragment norm: {} channels for {places} places", weight.len());
        }
        // The cell is new: this runs once.
        let _ = self.statistics.set(self.measure(x, (places, width)));
        let all = self.places()?;
        let mut out = vec![0f32; x.len()];
        let rows = out.par_chunks_mut(width).zip(x.par_chunks(width)).enumerate();
        rows.for_each(|(row, (out, x))| {
            let place = row % places;
            let Place { mean, scale } = all[place];
            let (scale, bias) = (scale * weight[place], bias[place]);
            vectorised(|| {
                for panel in 0..width.div_ceil(PANEL) {
                    let scaled = load(x, panel).map(|x| (x - mean) * scale + bias);
                    store(out, panel, &tanh(&scaled));
                }
            });
        });
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        result: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let gradient = gradient.contiguous()?;
        let (places, width) = sizes(x.dims(), self.mask.len())?;
        let all = self.places()?;
        let guards = [x, weight, result, &gradient].map(Tensor::storage_and_layout);
        let slices = guards
            .iter()
            .map(|(storage, layout)| held_values(storage, layout))
            .collect::<Result<Vec<_>>>()?;
        let &[x_values, weights, y, upstream] = slices.as_slice() else {
            bail!("fragment norm: four tensors")
        };
        // The gradient before tanh.
        let mut inner = vec![0f32; upstream.len()];
        let rows = inner.par_chunks_mut(width).zip(y.par_chunks(width).zip(upstream.par_chunks(width)));
        rows.for_each(|(inner, (y, upstream))| {
            vectorised(|| {
                let values = inner.iter_mut().zip(y.iter().zip(upstream));
                values.for_each(|(inner, (y, upstream))| *inner = upstream * (1.0 - y * y));
            });
        });
        // Of each place: the sum of the gradient, and of its products with the normalised values.
        let of_place = |place: usize| {
            let Place { mean, scale } = all[place];
            let rows = |values| -> Vec<&[f32]> {
                let rows: &[f32] = values;
                rows.chunks_exact(width).skip(place).step_by(places).collect()
            };
            let (mut sum, mut along) = (0f64, 0f64);
            for (row, gradient) in rows(x_values).into_iter().zip(rows(&inner)) {
                vectorised(|| {
                    let total = gradient.iter().sum::<f32>();
                    sum += f64::from(total);
                    along += f64::from((dot(row, gradient) - mean * total) * scale);
                });
            }
            (sum, along)
        };
        let sums: Vec<(f64, f64)> = (0..places).into_par_iter().map(of_place).collect();
        let counts = self.statistics.get().map(|statistics| statistics.count.as_slice()).unwrap_or_default();
        let rows = inner.par_chunks_mut(width).zip(x_values.par_chunks(width)).enumerate();
        rows.for_each(|(row, (inner, x))| {
            let place = row % places;
            let Place { mean, scale } = all[place];
            let (sum, along) = sums[place];
            // Statistics are those of real fragments: through them flows nothing to padding.
            let share = if self.mask[row] == 0.0 { 0.0 } else { 1.0 / counts[place].max(1.0) };
            let (sum, along) = ((sum * share) as f32, (along * share) as f32);
            let weight = weights[place];
            vectorised(|| {
                for (inner, x) in inner.iter_mut().zip(x) {
                    let normalised = (x - mean) * scale;
                    *inner = (*inner - sum - normalised * along) * scale * weight;
                }
            });
        });
        let of =
            |get: fn(&(f64, f64)) -> f64| -> Vec<f32> { sums.iter().map(|sums| get(sums) as f32).collect() };
        let device = x.device();
        Ok((
            Some(Tensor::from_vec(inner, x.shape(), device)?),
            Some(Tensor::from_vec(of(|sums| sums.1), weight.shape(), device)?),
            Some(Tensor::from_vec(of(|sums| sums.0), bias.shape(), device)?),
        ))
    }
}
