//! Checks of single operations.

use aeir_encoders::ops::{
    Activation, AttentionBias, Gelu, Linear, attention, conv2d, depthwise, layer_norm, linear, softmax,
};
use aeir_encoders::preprocess::{Alpha, Filter, Resize, Size};
use aeir_encoders::{
    BatchNorm, Fragments, ImagePreprocessor, Mode, PreprocessorConfig, WordBatch, WordEncoder,
    WordEncoderConfig, calibrated_softmax, dropout, l2_normalise, l2_normalise_released, regression_kernel,
};
use candle_core::{D, DType, Device, Tensor};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use super::check::{Check, Kind, Parameters, Place, Values, differentiated, with_gradients};
use super::numbers::Numbers;

const BYTES: &str = "pixels are bytes";
const WHOLE_NUMBERS: &str = "its inputs are whole numbers";

pub(super) fn all() -> Vec<Check> {
    let mut checks = products();
    checks.extend(indexing());
    checks.extend(rows());
    checks.extend(activations());
    checks.extend(attentions());
    checks.extend(convolutions());
    checks.extend(fragments());
    checks.push(Check::new(Kind::Operation, "pixel-values", pixel_values).single_only(BYTES));
    checks
}

/// Images as a network takes them.
fn pixel_values(place: &Place) -> anyhow::Result<Values> {
    let size = Size { width: 13, height: 9 };
    let config = PreprocessorConfig {
        resize: Resize::Exact(size),
        filter: Filter::Bicubic,
        crop: None,
        rescale: 1.0 / 255.0,
        mean: [0.48, 0.46, 0.41],
        std: [0.27, 0.26, 0.28],
        alpha: Alpha::Drop,
    };
    let picture = |seed: u32| {
        let pixel =
            |x: u32, y: u32| image::Rgb([x * 7 + seed, y * 11 + seed, x * y].map(|value| value as u8));
        image::DynamicImage::ImageRgb8(image::RgbImage::from_fn(31, 22, pixel))
    };
    let images: Vec<_> = (0..3).map(picture).collect();
    Values::of(&ImagePreprocessor::new(config)?.pixel_values(&images, &place.device)?)
}

type Shapes = &'static [(&'static str, &'static [usize])];

/// An operation of variables alone.
fn operation(
    name: &str,
    seed: u64,
    inputs: Shapes,
    work: impl Fn(&[Tensor]) -> anyhow::Result<Tensor> + Send + 'static,
) -> Check {
    Check::new(Kind::Operation, name, move |place| differentiated(place, seed, inputs, &work))
}

fn missing() -> anyhow::Error {
    anyhow::anyhow!("the check has fewer inputs than it reads")
}

fn one(inputs: &[Tensor]) -> anyhow::Result<&Tensor> {
    inputs.first().ok_or_else(missing)
}

fn two(inputs: &[Tensor]) -> anyhow::Result<(&Tensor, &Tensor)> {
    match inputs {
        [a, b] => Ok((a, b)),
        _ => Err(missing()),
    }
}

fn three(inputs: &[Tensor]) -> anyhow::Result<(&Tensor, &Tensor, &Tensor)> {
    match inputs {
        [a, b, c] => Ok((a, b, c)),
        _ => Err(missing()),
    }
}

fn products() -> Vec<Check> {
    vec![
        operation("product", 1, &[("a", &[37, 65]), ("b", &[65, 19])], |inputs| {
            let (a, b) = two(inputs)?;
            Ok(a.matmul(b)?)
        }),
        operation("product-transposed", 2, &[("a", &[65, 37]), ("b", &[19, 65])], |inputs| {
            let (a, b) = two(inputs)?;
            Ok(a.t()?.matmul(&b.t()?)?)
        }),
        operation("product-batched", 3, &[("a", &[2, 3, 17, 9]), ("b", &[2, 3, 9, 11])], |inputs| {
            let (a, b) = two(inputs)?;
            Ok(a.matmul(b)?)
        }),
        operation("linear", 4, &[("x", &[5, 7, 48]), ("weight", &[33, 48]), ("bias", &[33])], |inputs| {
            let (x, weight, bias) = three(inputs)?;
            Ok(linear(x, weight, Some(bias))?)
        }),
        operation("linear-without-bias", 5, &[("x", &[6, 40]), ("weight", &[24, 40])], |inputs| {
            let (x, weight) = two(inputs)?;
            Ok(linear(x, weight, None)?)
        }),
        // Nothing records a graph: another kernel, with an activation or a residual in the same pass.
        Check::new(Kind::Operation, "linear-frozen", |place| {
            let mut numbers = Numbers::new(6);
            let mut draw = |shape: &[usize]| place.tensor(&numbers.tensor(shape)?);
            let (x, residual) = (draw(&[9, 40])?, draw(&[9, 24])?);
            let layer = Linear::new(draw(&[24, 40])?, Some(draw(&[24])?))?;
            Values::of(&layer.forward(&x)?)?
                .with_result("activated", &layer.forward_activated(&x, Activation::Gelu(Gelu::Erf))?)?
                .with_result("added", &layer.forward_added(&x, &residual)?)
        }),
    ]
}

/// What our code uses of candle's indexing.
fn indexing() -> Vec<Check> {
    vec![
        operation("index-select", 10, &[("x", &[9, 6])], |inputs| {
            let x = one(inputs)?;
            let ids = Tensor::new(&[3u32, 3, 0, 8, 1], x.device())?;
            Ok(x.index_select(&ids, 0)?)
        }),
        operation("index-add", 11, &[("x", &[12, 6]), ("rows", &[5, 6])], |inputs| {
            let (x, rows) = two(inputs)?;
            let ids = Tensor::new(&[11u32, 3, 0, 8, 3], x.device())?;
            Ok(x.index_add(&ids, rows, 0)?)
        }),
        operation("gather", 12, &[("x", &[7, 9])], |inputs| {
            let x = one(inputs)?;
            // No two are equal: devices break ties in ways of their own.
            let order: Vec<f32> = (0u8..63).map(|index| f32::from(index * 4 % 63) / 64.0).collect();
            let order = Tensor::from_vec(order, (7, 9), x.device())?.to_dtype(x.dtype())?;
            Ok(x.gather(&order.argmax_keepdim(1)?, 1)?)
        }),
        operation("choose", 13, &[("x", &[7, 9]), ("y", &[7, 9])], |inputs| {
            let (x, y) = two(inputs)?;
            Ok(x.gt(0f64)?.where_cond(x, y)?)
        }),
        operation("joined-and-cut", 14, &[("x", &[4, 5, 6]), ("y", &[4, 3, 6])], |inputs| {
            let (x, y) = two(inputs)?;
            Ok(Tensor::cat(&[x, y], 1)?.narrow(1, 2, 4)?.contiguous()?)
        }),
        operation("reductions", 15, &[("x", &[5, 70, 6])], |inputs| {
            let x = one(inputs)?;
            let kept = [x.sum_keepdim(1)?, x.mean_keepdim(1)?, x.max_keepdim(1)?];
            Ok(Tensor::cat(&kept, 1)?)
        }),
        Check::new(Kind::Operation, "whole-numbers", |place| {
            let ids = Tensor::new(&[[3u32, 0, 7], [1, 1, 2]], &place.device)?;
            let table = Tensor::arange(0f32, 24.0, &place.device)?.reshape((8, 3))?;
            let rows = table.index_select(&ids.flatten_all()?, 0)?;
            let mask = Tensor::new(&[[1u8, 0, 1], [0, 1, 1]], &place.device)?;
            let identity = Tensor::eye(3, DType::U8, &place.device)?;
            Values::of(&rows)?
                .with_result("mask", &mask.ne(0f64)?)?
                .with_result("identity", &identity)?
                .with_result("as wide numbers", &ids.to_dtype(DType::I64)?)
        })
        .single_only(WHOLE_NUMBERS),
    ]
}

/// Operations on the last axis.
fn rows() -> Vec<Check> {
    let norm: Shapes = &[("x", &[6, 5, 48]), ("weight", &[48]), ("bias", &[48])];
    vec![
        operation("layer-norm", 20, norm, |inputs| {
            let (x, weight, bias) = three(inputs)?;
            Ok(layer_norm(x, weight, Some(bias), 1e-5)?)
        }),
        operation("layer-norm-without-bias", 21, &[("x", &[6, 48]), ("weight", &[48])], |inputs| {
            let (x, weight) = two(inputs)?;
            Ok(layer_norm(x, weight, None, 1e-5)?)
        }),
        operation("softmax", 22, &[("x", &[4, 6, 33])], |inputs| Ok(softmax(&(one(inputs)? * 4.0)?)?)),
        operation("softmax-masked", 23, &[("x", &[4, 8])], |inputs| {
            let x = one(inputs)?;
            let hidden = Tensor::new(
                &[[0f32; 8], [1.0; 8], [0.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0], [0.0; 8]],
                x.device(),
            )?;
            let lowest = (x.zeros_like()? + f64::NEG_INFINITY)?;
            Ok(softmax(&hidden.ne(0f64)?.where_cond(&lowest, x)?)?)
        }),
        operation("unit-rows", 24, &[("x", &[9, 40])], |inputs| Ok(l2_normalise(one(inputs)?)?)),
        operation("unit-rows-released", 25, &[("x", &[9, 40])], |inputs| {
            Ok(l2_normalise_released(one(inputs)?)?)
        }),
        operation("dropout", 26, &[("x", &[33, 17])], |inputs| {
            let mut random = ChaCha8Rng::seed_from_u64(5);
            Ok(dropout(one(inputs)?, 0.3, &mut Mode::Training(&mut random))?)
        }),
        Check::new(Kind::Operation, "calibrated-softmax", |place| {
            let x = Numbers::new(27).tensor(&[6, 20])?.to_device(&place.device)?;
            Values::of(&calibrated_softmax(&x, 5.0)?)
        })
        // The CPU ends its search for the sharpness at an entropy that is right to 1e-4.
        .within(2e-3)
        .single_only("features are f32"),
        operation("regression-kernel", 28, &[("cosines", &[6, 20])], |inputs| {
            Ok(regression_kernel(one(inputs)?, 3.0)?)
        }),
        operation("gradient-reversal", 29, &[("x", &[6, 9])], |inputs| {
            Ok(aeir_losses::gradient_reversal(one(inputs)?, 0.7)?)
        })
        .single_only("losses take f32 and f64 alone"),
    ]
}

fn activations() -> Vec<Check> {
    let all = [
        ("gelu", Activation::Gelu(Gelu::Erf)),
        ("gelu-tanh", Activation::Gelu(Gelu::Tanh)),
        ("gelu-quick", Activation::Gelu(Gelu::Quick)),
        ("relu", Activation::Relu),
        ("relu6", Activation::Relu6),
        ("silu", Activation::Silu),
        ("tanh", Activation::Tanh),
    ];
    all.into_iter()
        .zip(30..)
        .map(|((name, activation), seed)| {
            operation(name, seed, &[("x", &[11, 23])], move |inputs| {
                Ok(activation.apply(&(one(inputs)? * 3.0)?)?)
            })
        })
        .collect()
}

fn attentions() -> Vec<Check> {
    let check = |name, seed, bias: fn(&Device) -> anyhow::Result<AttentionBias>| {
        let inputs: Shapes = &[("q", &[2, 9, 3, 16]), ("k", &[2, 9, 3, 16]), ("v", &[2, 9, 3, 16])];
        operation(name, seed, inputs, move |inputs| {
            let (q, k, v) = three(inputs)?;
            // Views, as a transformer has them.
            let heads = |x: &Tensor| x.transpose(1, 2);
            let y = attention(&heads(q)?, &heads(k)?, &heads(v)?, 0.25, &bias(q.device())?)?;
            Ok(y.transpose(1, 2)?.contiguous()?)
        })
    };
    vec![
        check("attention", 40, |_| Ok(AttentionBias::none())),
        check("attention-padded", 41, |device| {
            let mut mask = vec![1f32; 18];
            mask.iter_mut().skip(14).for_each(|seen| *seen = 0.0);
            Ok(AttentionBias::none().with_padding(&Tensor::from_vec(mask, (2, 9), device)?)?)
        }),
        check("attention-causal", 42, |_| Ok(AttentionBias::none().causal())),
        check("attention-local", 43, |_| Ok(AttentionBias::none().within(2))),
        // Nothing records the second, and both are wide.
        operation(
            "attention-frozen",
            44,
            &[("q", &[1, 40, 2, 128]), ("k", &[1, 70, 2, 128]), ("v", &[1, 70, 2, 128])],
            |inputs| {
                let (q, k, v) = three(inputs)?;
                let heads = |x: &Tensor| x.transpose(1, 2);
                let of = |q: &Tensor, k: &Tensor, v: &Tensor| {
                    attention(&heads(q)?, &heads(k)?, &heads(v)?, 0.1, &AttentionBias::none())
                };
                let both = (of(q, k, v)? + of(&q.detach(), &k.detach(), &v.detach())?)?;
                Ok(both.transpose(1, 2)?.contiguous()?)
            },
        ),
    ]
}

fn convolutions() -> Vec<Check> {
    let checks = vec![
        operation(
            "convolution",
            50,
            &[("x", &[2, 3, 13, 11]), ("weight", &[8, 3, 3, 3]), ("bias", &[8])],
            |inputs| {
                let (x, weight, bias) = three(inputs)?;
                Ok(conv2d(x, weight, Some(bias), (2, 1, 1))?)
            },
        ),
        operation(
            "convolution-patches",
            51,
            &[("x", &[2, 3, 16, 16]), ("weight", &[8, 3, 4, 4])],
            |inputs| {
                let (x, weight) = two(inputs)?;
                Ok(conv2d(x, weight, None, (4, 0, 1))?)
            },
        ),
        operation(
            "convolution-grouped",
            52,
            &[("x", &[2, 4, 9, 9]), ("weight", &[8, 2, 3, 3]), ("bias", &[8])],
            |inputs| {
                let (x, weight, bias) = three(inputs)?;
                Ok(conv2d(x, weight, Some(bias), (1, 1, 2))?)
            },
        ),
        operation(
            "depthwise",
            53,
            &[("x", &[2, 9, 7, 6]), ("weight", &[6, 1, 3, 3]), ("bias", &[6])],
            |inputs| {
                let (x, weight, bias) = three(inputs)?;
                Ok(depthwise(x, weight, Some(bias))?)
            },
        ),
    ];
    checks.into_iter().map(|check| check.not_on_the_cpu("candle convolves no bfloat16 on the CPU")).collect()
}

/// Operations that know of padding.
fn fragments() -> Vec<Check> {
    vec![
        operation("mean-of-fragments", 60, &[("x", &[4, 5, 16])], |inputs| {
            let x = one(inputs)?;
            let mask = (0..20).map(|index| if index % 5 <= index / 5 { 1f32 } else { 0.0 }).collect();
            let mask = Tensor::from_vec(mask, (4, 5), x.device())?;
            let fragments = Fragments::new(x.clone(), mask)?;
            Ok(Tensor::cat(&[fragments.mean_pooled()?, fragments.padded_mean()?], D::Minus1)?)
        }),
        Check::new(Kind::Operation, "batch-norm", |place| batch_norm(place, true)),
        Check::new(Kind::Operation, "batch-norm-evaluation", |place| batch_norm(place, false)),
        Check::new(Kind::Operation, "gru", |place| words(place, false)),
        Check::new(Kind::Operation, "gru-bidirectional", |place| words(place, true)),
    ]
}

fn batch_norm(place: &Place, training: bool) -> anyhow::Result<Values> {
    let parameters = Parameters::of(place, |builder| Ok(BatchNorm::new(6, builder)?))?;
    let norm = BatchNorm::new(6, parameters.builder())?;
    let mut numbers = Numbers::new(61);
    let x = place.variable(&numbers.tensor(&[6, 20])?)?;
    let mask: Vec<f32> = (0..120).map(|index| if index % 7 == 3 { 0.0 } else { 1.0 }).collect();
    let mask = place.tensor(&Tensor::from_vec(mask, (6, 20), &Device::Cpu)?)?;
    let y = norm.forward(x.as_tensor(), &mask, training)?;
    let mut variables = parameters.variables;
    variables.push(("x".into(), x));
    with_gradients(&(y * mask)?, &variables)?
        .with_result("running mean", norm.running_mean())?
        .with_result("running variance", norm.running_variance())
}

fn words(place: &Place, bidirectional: bool) -> anyhow::Result<Values> {
    let mut config = WordEncoderConfig::paper(30);
    (config.word_dimension, config.dimension, config.bidirectional) = (12, 16, bidirectional);
    let parameters = Parameters::of(place, |builder| Ok(WordEncoder::new(config, builder)?))?;
    let encoder = WordEncoder::new(config, parameters.builder())?;
    let sentences: [&[u32]; 4] = [&[3, 4, 5, 6, 7], &[1], &[29, 0, 8], &[9, 9, 9, 2]];
    let batch = WordBatch::new(&sentences, &place.device)?;
    let encoded = encoder.forward(&batch, &mut Mode::Evaluation)?;
    with_gradients(encoded.features(), &parameters.variables)
}
