//! Attention of queries to keys, with masks.

mod fused;

use std::ops::Range;

use candle_core::{D, DType, Device, Tensor};

use super::softmax::softmax;
use crate::error::{EncoderError, Result};
use crate::rehearsal::{Product, is_fused};

/// Which keys a query sees. Restrictions add up.
///
/// # Example
/// ```
/// use aeir_encoders::ops::AttentionBias;
/// use candle_core::{Device, Tensor};
///
/// let mask = Tensor::new(&[[1f32, 1., 0.]], &Device::Cpu)?;
/// let sentences = AttentionBias::none().with_padding(&mask)?; // BERT
/// let causal = AttentionBias::none().causal(); // CLIP's text encoder
/// let local = AttentionBias::none().with_padding(&mask)?.within(64); // local layers of ModernBERT
/// # Ok::<_, aeir_encoders::EncoderError>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct AttentionBias {
    /// `[B, T]` f32: 1 for a key, 0 for padding.
    padding: Option<Tensor>,
    is_causal: bool,
    window: Option<usize>,
}

impl AttentionBias {
    /// Every query sees every key.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// No query sees padding. A query whose keys are all hidden gives zeros.
    ///
    /// # Shapes
    /// `mask [B, T]` of any number type, T the keys: not 0 for a key, 0 for padding.
    ///
    /// # Errors
    /// [`EncoderError::Shape`] when the mask has another number of axes, [`EncoderError::Tensor`] from candle.
    pub fn with_padding(self, mask: &Tensor) -> Result<Self> {
        if mask.rank() != 2 {
            return Err(EncoderError::Shape {
                what: "attention mask",
                expected: "[batch, keys]".to_owned(),
                got: mask.dims().to_vec(),
            });
        }
        let mask = mask.detach().ne(&mask.zeros_like()?)?.to_dtype(DType::F32)?;
        Ok(Self { padding: Some(mask), ..self })
    }

    /// Query `i` sees keys up to `i`.
    #[must_use]
    pub fn causal(self) -> Self {
        Self { is_causal: true, ..self }
    }

    /// Query `i` sees keys from `i - distance` to `i + distance`.
    #[must_use]
    pub fn within(self, distance: usize) -> Self {
        Self { window: Some(distance), ..self }
    }

    /// The keys that position alone lets `query` see, of `keys`.
    fn reach(&self, query: usize, keys: usize) -> Range<usize> {
        let (first, end) = match self.window {
            Some(distance) => {
                (query.saturating_sub(distance), query.saturating_add(distance).saturating_add(1))
            }
            None => (0, keys),
        };
        let end = if self.is_causal { end.min(query + 1) } else { end }.min(keys);
        first.min(end)..end
    }

    /// What is added to scores: 0 or minus infinity, broadcast to `[B, H, queries, keys]`.
    pub(crate) fn additive(
        &self,
        queries: usize,
        keys: usize,
        dtype: DType,
        device: &Device,
    ) -> Result<Option<Tensor>> {
        let hide = |is_visible: &Tensor| -> Result<Tensor> {
            let zeros = is_visible.zeros_like()?;
            Ok(is_visible.ne(0f32)?.where_cond(&zeros, &(&zeros + f64::NEG_INFINITY)?)?.to_dtype(dtype)?)
        };
        let padding =
            self.padding.as_ref().map(|mask| hide(&mask.unsqueeze(1)?.unsqueeze(1)?)).transpose()?;
        if !self.is_causal && self.window.is_none() {
            return Ok(padding);
        }
        let reach: Vec<f32> = (0..queries)
            .flat_map(|query| {
                let reach = self.reach(query, keys);
                (0..keys).map(move |key| if reach.contains(&key) { 1.0 } else { 0.0 })
            })
            .collect();
        let reach = hide(&Tensor::from_vec(reach, (1, 1, queries, keys), device)?)?;
        match padding {
            Some(padding) => Ok(Some(padding.broadcast_add(&reach)?)),
            None => Ok(Some(reach)),
        }
    }
}

/// Scaled dot-product attention (Vaswani et al., 2017).
///
/// Equation: `softmax(scale q k^T + bias) v`, the bias minus infinity where `bias` hides a key, else 0. A query that sees no key gives
/// zeros, and its gradient is zero.
///
/// # Shapes
/// `q [B, H, Q, d]`, `k [B, H, T, d]`, `v [B, H, T, e]` to `[B, H, Q, e]`: B items, H heads. The three may be views, such as
/// `x.reshape((b, t, h, d))?.transpose(1, 2)?`; transposing axes 1 and 2 back and flattening the heads copies nothing.
///
/// # Errors
/// [`EncoderError::Shape`] when the sizes do not fit, [`EncoderError::Tensor`] from candle.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, scale: f64, bias: &AttentionBias) -> Result<Tensor> {
    let (batch, heads, queries, keys) = check(q, k, v, bias)?;
    if batch * heads * queries * keys == 0 {
        return Ok(Tensor::zeros((batch, heads, queries, v.dim(3)?), q.dtype(), q.device())?);
    }
    if is_fused(&[q, k, v]) && q.elem_count() > 0 && v.elem_count() > 0 {
        return fused::attention(q, k, v, scale, bias);
    }
    #[cfg(feature = "cuda")]
    if aeir_kernels::takes(&[q, k, v])
        && !(q.track_op() || k.track_op() || v.track_op())
        && aeir_kernels::takes_attention(q, v)
    {
        let AttentionBias { padding, is_causal, window } = bias;
        let sight = aeir_kernels::Sight { padding: padding.as_ref(), reach: *window, is_causal: *is_causal };
        return Ok(aeir_kernels::attention(q, k, v, scale, &sight)?);
    }
    composed(q, k, v, scale, bias)
}

/// Items, heads, queries and keys.
fn check(q: &Tensor, k: &Tensor, v: &Tensor, bias: &AttentionBias) -> Result<(usize, usize, usize, usize)> {
    let wrong = |what, expected: String, got: &Tensor| {
        Err(EncoderError::Shape { what, expected, got: got.dims().to_vec() })
    };
    let &[batch, heads, queries, dimension] = q.dims() else {
        return wrong("attention queries", "[batch, heads, queries, dimension]".to_owned(), q);
    };
    let keys = match k.dims() {
        &[b, h, keys, d] if (b, h, d) == (batch, heads, dimension) => keys,
        _ => return wrong("attention keys", format!("[{batch}, {heads}, keys, {dimension}]"), k),
    };
    match v.dims() {
        &[b, h, t, _] if (b, h, t) == (batch, heads, keys) => {}
        _ => return wrong("attention values", format!("[{batch}, {heads}, {keys}, dimension]"), v),
    }
    match &bias.padding {
        Some(mask) if mask.dims() != [batch, keys] => {
            wrong("attention mask", format!("[{batch}, {keys}]"), mask)
        }
        _ => Ok((batch, heads, queries, keys)),
    }
}

fn composed(q: &Tensor, k: &Tensor, v: &Tensor, scale: f64, bias: &AttentionBias) -> Result<Tensor> {
    let (queries, keys) = (q.dim(D::Minus2)?, k.dim(D::Minus2)?);
    // CUDA and Metal multiply contiguous matrices only.
    let (q, k, v) = ((q.contiguous()? * scale)?, k.t()?.contiguous()?, v.contiguous()?);
    let scores = q.product(&k)?;
    let scores = match bias.additive(queries, keys, q.dtype(), q.device())? {
        Some(bias) => scores.broadcast_add(&bias)?,
        None => scores,
    };
    Ok(softmax(&scores)?.product(&v)?)
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;
    use crate::ops::differences::{assert_gradients, flat, noise};

    fn biases() -> Vec<(&'static str, AttentionBias)> {
        let mask =
            Tensor::new(&[[1u32, 1, 1, 1, 1], [1, 1, 1, 0, 0], [0, 1, 0, 1, 0]], &Device::Cpu).unwrap();
        let padding = AttentionBias::none().with_padding(&mask).unwrap();
        vec![
            ("none", AttentionBias::none()),
            ("padding", padding.clone()),
            ("causal", AttentionBias::none().causal()),
            ("window", AttentionBias::none().within(1)),
            ("padding and window", padding.clone().within(1)),
            ("all", padding.causal().within(2)),
        ]
    }

    /// Whether position alone lets `query` see `key`.
    fn reaches(bias: &AttentionBias, query: usize, key: usize) -> bool {
        let near = bias.window.is_none_or(|distance| query.abs_diff(key) <= distance);
        near && !(bias.is_causal && key > query)
    }

    /// The equation in plain loops.
    fn expected(q: &Tensor, k: &Tensor, v: &Tensor, scale: f64, bias: &AttentionBias) -> Vec<f64> {
        let (batch, heads, queries, d) = q.dims4().unwrap();
        let (keys, e) = (k.dim(2).unwrap(), v.dim(3).unwrap());
        let mask = bias.padding.as_ref().map(flat);
        let (q, k, v) = (flat(q), flat(k), flat(v));
        let mut out = Vec::new();
        for item in 0..batch {
            for head in (0..heads).map(|head| item * heads + head) {
                for query in 0..queries {
                    let sees = |key| {
                        reaches(bias, query, key)
                            && mask.as_ref().is_none_or(|mask| mask[item * keys + key] != 0.0)
                    };
                    let weight = |key: usize| -> f64 {
                        let (q, k) = (&q[(head * queries + query) * d..], &k[(head * keys + key) * d..]);
                        if sees(key) { ((0..d).map(|i| q[i] * k[i]).sum::<f64>() * scale).exp() } else { 0.0 }
                    };
                    let sum: f64 = (0..keys).map(weight).sum();
                    out.extend((0..e).map(|i| {
                        let weighted = |key| weight(key) * v[(head * keys + key) * e + i];
                        if sum == 0.0 { 0.0 } else { (0..keys).map(weighted).sum::<f64>() / sum }
                    }));
                }
            }
        }
        out
    }

    #[test]
    fn equals_the_plain_loops_for_every_mask_type_and_layout() {
        for (name, bias) in biases() {
            let of = |seed, dimension| noise(seed, &[3, 5, 2, dimension]);
            for dtype in [DType::F64, DType::F32] {
                let [q, k, v] = [of(1, 4), of(2, 4), of(3, 6)]
                    .map(|x| x.to_dtype(dtype).unwrap().transpose(1, 2).unwrap());
                let tolerance = if dtype == DType::F64 { 1e-12 } else { 1e-6 };
                for [q, k, v] in
                    [[&q, &k, &v].map(Clone::clone), [&q, &k, &v].map(|x| x.contiguous().unwrap())]
                {
                    let got = attention(&q, &k, &v, 0.5, &bias).unwrap();
                    assert_eq!(got.dims(), [3, 2, 5, 6]);
                    for (got, expected) in flat(&got).iter().zip(expected(&q, &k, &v, 0.5, &bias)) {
                        assert!((got - expected).abs() < tolerance, "{name}: {got} {expected}");
                    }
                }
            }
        }
    }

    #[test]
    fn gradients_by_finite_differences() {
        let inputs = [noise(1, &[3, 2, 5, 4]), noise(2, &[3, 2, 5, 4]), noise(3, &[3, 2, 5, 3])];
        for (name, bias) in biases() {
            assert_gradients(name, &inputs, |inputs| {
                attention(&inputs[0], &inputs[1], &inputs[2], 0.7, &bias)
            });
        }
        let one_query = [noise(1, &[3, 2, 1, 4]), inputs[1].clone(), inputs[2].clone()];
        let (_, padding) = &biases()[1];
        assert_gradients("one query", &one_query, |inputs| {
            attention(&inputs[0], &inputs[1], &inputs[2], 0.7, padding)
        });
    }

    #[test]
    fn an_item_of_padding_alone_gives_zeros_and_finite_gradients() {
        let mask = Tensor::new(&[[1f32, 1.], [0., 0.]], &Device::Cpu).unwrap();
        let bias = AttentionBias::none().with_padding(&mask).unwrap();
        for dtype in [DType::F32, DType::F64] {
            let x = Var::from_tensor(&noise(1, &[2, 1, 2, 3]).to_dtype(dtype).unwrap()).unwrap();
            let y = attention(&x, &x, &x, 1.0, &bias).unwrap();
            assert_eq!(flat(&y)[6..], [0.0; 6]);
            let gradient = flat(y.sqr().unwrap().sum_all().unwrap().backward().unwrap().get(&x).unwrap());
            assert!(
                gradient.iter().all(|value| value.is_finite()) && gradient[..6] != [0.0; 6],
                "{gradient:?}"
            );
        }
    }

    #[test]
    fn a_mask_of_another_size_is_told() {
        let x = noise(1, &[2, 1, 3, 4]);
        let mask = Tensor::ones((2, 4), DType::F32, &Device::Cpu).unwrap();
        let bias = AttentionBias::none().with_padding(&mask).unwrap();
        let error = attention(&x, &x, &x, 1.0, &bias).unwrap_err();
        assert_eq!(error.to_string(), "attention mask: expected [2, 3], got [2, 4]");
    }
}
