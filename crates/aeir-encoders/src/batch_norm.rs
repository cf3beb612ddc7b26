//! Batch normalisation with a mask and with running statistics that live beside the parameters.

use candle_core::{D, Device, Tensor, Var};
use candle_nn::{Init, VarBuilder};

use crate::error::{EncoderError, Result};
use crate::rehearsal::{Product, is_at_hand};

/// How much of a batch's statistics enters the running value.
pub const MOMENTUM: f64 = 0.1;
/// Added to the variance under the root.
pub const VARIANCE_EPSILON: f64 = 1e-5;

/// Batch normalisation over one axis of channels.
///
/// In training a channel is normalised with its own mean and variance over the batch, and the running values move towards
/// them; in evaluation the running values are used and nothing changes. Entries under a mask do not count.
///
/// # Equation
/// ```text
/// y = (x - mean) / sqrt(variance + 1e-5) weight + bias      variance: biased, sum (x - mean)^2 / n
/// running <- 0.9 running + 0.1 (mean, variance n / (n - 1))
/// ```
/// Ioffe and Szegedy, *Batch normalization*, ICML 2015, as PyTorch computes it.
///
/// # Parameters
/// `weight [C]` (ones) and `bias [C]` (zeros); the buffers `running_mean [C]` (zeros) and `running_var [C]` (ones). The
/// buffers get no gradient. They are taken from the builder as variables: if the builder's tensor is one, its storage is
/// shared and the store that owns it sees every update; with a builder of plain tensors they are copies.
///
/// # Numerical notes
/// A channel with one entry has no unbiased variance: it is normalised to `bias`, its running mean moves and its running
/// variance stays. A channel without any entry changes nothing.
#[derive(Debug, Clone)]
pub struct BatchNorm {
    weight: Tensor,
    bias: Tensor,
    running_mean: Var,
    running_variance: Var,
}

/// Mean and biased variance of groups of numbers, and how many numbers each had.
#[derive(Debug, Clone)]
pub(crate) struct BatchStatistics {
    pub(crate) mean: Vec<f64>,
    pub(crate) variance: Vec<f64>,
    pub(crate) count: Vec<f64>,
}

impl BatchNorm {
    /// Takes `weight`, `bias`, `running_mean` and `running_var` from the builder.
    ///
    /// # Errors
    /// [`EncoderError::Argument`] for zero channels; [`EncoderError::Tensor`] if the builder has no such tensors, or of another
    /// shape.
    pub fn new(channels: usize, vb: VarBuilder<'_>) -> Result<Self> {
        if channels == 0 {
            return Err(EncoderError::Argument {
                what: "batch norm channels",
                expected: "a positive number".to_owned(),
                got: channels.to_string(),
            });
        }
        let get = |name: &str, value: f64| vb.get_with_hints(channels, name, Init::Const(value));
        Ok(Self {
            weight: get("weight", 1.0)?,
            bias: get("bias", 0.0)?,
            running_mean: Var::from_tensor(&get("running_mean", 0.0)?)?,
            running_variance: Var::from_tensor(&get("running_var", 1.0)?)?,
        })
    }

    /// Number of channels C.
    #[must_use]
    pub fn channels(&self) -> usize {
        self.weight.elem_count()
    }

    /// The scale, `[C]`.
    #[must_use]
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// The shift, `[C]`.
    #[must_use]
    pub fn bias(&self) -> &Tensor {
        &self.bias
    }

    /// The running mean, `[C]`.
    #[must_use]
    pub fn running_mean(&self) -> &Tensor {
        self.running_mean.as_tensor()
    }

    /// The running variance, `[C]`.
    #[must_use]
    pub fn running_variance(&self) -> &Tensor {
        self.running_variance.as_tensor()
    }

    /// Normalises channels that each have their own row.
    ///
    /// # Shapes
    /// `x [C, K]`, `mask [C, K]` of 1 and 0 in the type of `x`; result `[C, K]`. Entries under the mask come out finite and
    /// mean nothing.
    ///
    /// # Errors
    /// [`EncoderError::Shape`] if `x` is not `[C, K]`; [`EncoderError::Tensor`] from candle.
    pub fn forward(&self, x: &Tensor, mask: &Tensor, training: bool) -> Result<Tensor> {
        self.check(x, self.channels())?;
        let (mean, variance) = if training {
            let (mean, variance) = self.batch(x, mask)?;
            (mean, variance)
        } else {
            (column(self.running_mean())?, column(self.running_variance())?)
        };
        self.scale(x, &mean, &variance)
    }

    /// Normalises groups with one channel, each with its own statistics; the running values move once a group, in order.
    ///
    /// That is how a model is trained that calls its one normalisation in a loop: sentence by sentence, say.
    ///
    /// # Shapes
    /// `x [G, K]`, `mask [G, K]` of 1 and 0 in the type of `x`; result `[G, K]`. The layer has one channel.
    ///
    /// # Errors
    /// [`EncoderError::Shape`] if the layer has several channels or `x` two axes not; [`EncoderError::Tensor`] from candle.
    pub fn forward_groups(&self, x: &Tensor, mask: &Tensor, training: bool) -> Result<Tensor> {
        if self.channels() != 1 {
            return Err(EncoderError::Shape {
                what: "batch norm over groups",
                expected: "one channel".to_owned(),
                got: vec![self.channels()],
            });
        }
        let groups = x.dims().first().copied().unwrap_or(0);
        self.check(x, groups)?;
        let (mean, variance) = if training {
            self.batch(x, mask)?
        } else {
            (column(self.running_mean())?, column(self.running_variance())?)
        };
        self.scale(x, &mean, &variance)
    }

    /// The same layer outside of any graph; the running values are shared.
    pub(crate) fn detached(&self) -> Self {
        Self { weight: self.weight.detach(), bias: self.bias.detach(), ..self.clone() }
    }

    fn check(&self, x: &Tensor, rows: usize) -> Result<()> {
        match x.dims() {
            &[first, _] if first == rows => Ok(()),
            got => Err(EncoderError::Shape {
                what: "batch norm input",
                expected: format!("[{rows}, values]"),
                got: got.to_vec(),
            }),
        }
    }

    /// Mean and biased variance of each row, `[rows, 1]`, entered into the running values.
    fn batch(&self, x: &Tensor, mask: &Tensor) -> Result<(Tensor, Tensor)> {
        let count = mask.sum_keepdim(D::Minus1)?;
        let divisor = count.maximum(1.0)?;
        let mean = (x * mask)?.sum_keepdim(D::Minus1)?.broadcast_div(&divisor)?;
        let centred = (x.broadcast_sub(&mean)? * mask)?;
        let variance = centred.sqr()?.sum_keepdim(D::Minus1)?.broadcast_div(&divisor)?;
        if is_at_hand(x) {
            self.update(&BatchStatistics {
                mean: host(&mean)?,
                variance: host(&variance)?,
                count: host(&count)?,
            })?;
        } else {
            self.update_on_device(&mean, &variance, &count)?;
        }
        Ok((mean, variance))
    }

    /// [`BatchNorm::update`] of candle's operations, from columns `[G, 1]`: the device is not waited for.
    pub(crate) fn update_on_device(&self, mean: &Tensor, variance: &Tensor, count: &Tensor) -> Result<()> {
        let count = count.detach();
        let unbiased = ((variance.detach() * &count)? / (&count - 1.0)?.maximum(1.0)?)?;
        self.running_mean.set(&self.moved(&self.running_mean, &mean.detach(), &count.gt(0f64)?)?)?;
        Ok(self.running_variance.set(&self.moved(&self.running_variance, &unbiased, &count.gt(1f64)?)?)?)
    }

    /// Running values after those of all groups have moved them, in order, where they `count`: group g leaves `0.9` of what was there
    /// and so counts `0.1` times `0.9` to the number of those behind it.
    fn moved(&self, running: &Var, values: &Tensor, counts: &Tensor) -> Result<Tensor> {
        let channels = self.channels().max(1);
        let rounds = values.elem_count() / channels;
        let of_rounds = |x: &Tensor| x.to_dtype(running.dtype())?.reshape((rounds, channels));
        let (values, counts) = (of_rounds(values)?, of_rounds(counts)?);
        let kept = (&counts * (1.0 - MOMENTUM).ln())?;
        let from_here = Tensor::triu2(rounds, running.dtype(), running.device())?.product(&kept)?;
        let shares = ((from_here - &kept)?.exp()? * (counts * MOMENTUM)?)?;
        let left = (running.as_detached_tensor() * kept.sum(0)?.exp()?)?;
        Ok((left + (shares * values)?.sum(0)?)?)
    }

    fn scale(&self, x: &Tensor, mean: &Tensor, variance: &Tensor) -> Result<Tensor> {
        let deviation = (variance + VARIANCE_EPSILON)?.sqrt()?;
        let y = x.broadcast_sub(mean)?.broadcast_div(&deviation)?;
        Ok(y.broadcast_mul(&self.weight.unsqueeze(1)?)?.broadcast_add(&self.bias.unsqueeze(1)?)?)
    }

    /// Running mean and variance of the first channel, on the host.
    pub(crate) fn running(&self) -> Result<(f64, f64)> {
        let first = |values: &Tensor| -> Result<f64> { Ok(host(values)?.first().copied().unwrap_or(0.0)) };
        Ok((first(self.running_mean())?, first(self.running_variance())?))
    }

    /// Enters statistics into the running values: one a channel, or one after the other into a single channel.
    pub(crate) fn update(&self, statistics: &BatchStatistics) -> Result<()> {
        let mut mean = host(self.running_mean())?;
        let mut variance = host(self.running_variance())?;
        let channels = mean.len().max(1);
        let BatchStatistics { mean: means, variance: variances, count } = statistics;
        for (group, ((batch_mean, batch_variance), count)) in
            means.iter().zip(variances).zip(count).enumerate()
        {
            if let Some(running) = mean.get_mut(group % channels).filter(|_| *count > 0.0) {
                *running += MOMENTUM * (batch_mean - *running);
            }
            if let Some(running) = variance.get_mut(group % channels).filter(|_| *count > 1.0) {
                *running += MOMENTUM * (batch_variance * count / (count - 1.0) - *running);
            }
        }
        for (variable, values) in [(&self.running_mean, mean), (&self.running_variance, variance)] {
            let shape = variable.shape().clone();
            // Not every device has f64.
            let values = Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(variable.dtype())?;
            variable.set(&values.to_device(variable.device())?)?;
        }
        Ok(())
    }
}

/// A running value as a constant column.
fn column(values: &Tensor) -> Result<Tensor> {
    Ok(values.detach().unsqueeze(1)?)
}

fn host(values: &Tensor) -> Result<Vec<f64>> {
    let values = values.detach().flatten_all()?.to_device(&Device::Cpu)?;
    Ok(values.to_dtype(candle_core::DType::F64)?.to_vec1()?)
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    fn norm(channels: usize) -> BatchNorm {
        BatchNorm::new(channels, VarBuilder::zeros(DType::F32, &Device::Cpu)).unwrap()
    }

    #[test]
    fn running_values_move_on_a_device_as_on_the_cpu() {
        let column = |values: &[f32]| Tensor::from_slice(values, (values.len(), 1), &Device::Cpu).unwrap();
        let mean = column(&[0.5, -2.0, 7.0, 1.5, 3.0]);
        let variance = column(&[1.0, 0.2, 9.0, 0.0, 4.0]);
        // A group without entries moves nothing, one with a single entry the mean alone.
        let count = column(&[12.0, 3.0, 0.0, 1.0, 8.0]);
        for channels in [1, 5] {
            let (host, device) = (norm(channels), norm(channels));
            for _ in 0..3 {
                let [mean, variance, count] = [&mean, &variance, &count].map(|it| super::host(it).unwrap());
                host.update(&BatchStatistics { mean, variance, count }).unwrap();
            }
            for _ in 0..3 {
                device.update_on_device(&mean, &variance, &count).unwrap();
            }
            for (host, device) in [
                (&host.running_mean, &device.running_mean),
                (&host.running_variance, &device.running_variance),
            ] {
                let [host, device] = [host, device].map(|it| super::host(it).unwrap());
                let near = host.iter().zip(&device).all(|(host, device)| (host - device).abs() < 1e-5);
                assert!(near && host.len() == channels, "{host:?}, {device:?}");
            }
        }
    }
}
