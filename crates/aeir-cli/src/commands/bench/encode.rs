//! `aeir bench encode`: images and sentences a second through frozen backbones, preparation and network apart.
//!
//! `benches/peers/encode_speed.py` times the same networks in PyTorch.

use std::fmt::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use aeir_encoders::{
    EncoderError, FineTuning, ImageBackbone, Mode, TextBackbone, TextModel, TextTransformer,
    load_image_backbone, load_text_backbone,
};
use anyhow::Context;
use candle_core::{Device, Tensor};
use image::{DynamicImage, RgbImage};
use serde::Serialize;

use crate::backbones::find;
use crate::commands::{print, print_json};
use crate::flags::BenchEncodeFlags;
use crate::host_memory::check_numbers;
use crate::terminal::Terminal;

/// Each work is repeated for about this long, at least [`LEAST_REPEATS`] times.
const TIMED: Duration = Duration::from_millis(1500);
const LEAST_REPEATS: usize = 5;
/// Backward passes recurse once a node of the graph.
const STACK_BYTES: usize = 256 << 20;
/// Size of the images that are made up: about a photograph of the public data sets.
const WIDTH: u32 = 500;
const HEIGHT: u32 = 375;
/// Words that are one token in most vocabularies.
const WORDS: [&str; 8] = ["a", "dog", "and", "the", "man", "in", "red", "water"];
/// Components of the first vector that the report names, for a peer to compare.
const SHOWN: usize = 8;

/// What was measured.
#[derive(Serialize)]
struct Report {
    threads: usize,
    batch_size: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<TextReport>,
    #[serde(skip_serializing_if = "Option::is_none")]
    image: Option<ImageReport>,
}

/// Rates are a batch over the median of its seconds.
#[derive(Serialize)]
struct TextReport {
    encoder: String,
    dimension: usize,
    /// The sentence that fills the batch.
    sentence: String,
    /// Its token ids, special tokens included.
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<u32>>,
    /// From text to vectors.
    sentences_per_second: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    tokenised_sentences_per_second: Option<f64>,
    /// From token ids to vectors.
    #[serde(skip_serializing_if = "Option::is_none")]
    network_sentences_per_second: Option<f64>,
    /// Forward and backward pass of all parameters.
    #[serde(skip_serializing_if = "Option::is_none")]
    fine_tuning_step_seconds: Option<f64>,
    /// The first components of the first sentence's vector.
    first: Vec<f32>,
}

#[derive(Serialize)]
struct ImageReport {
    encoder: String,
    dimension: usize,
    /// From decoded images to vectors.
    images_per_second: f64,
    preprocessed_images_per_second: f64,
    /// From resized and cropped images to vectors.
    network_images_per_second: f64,
    /// The first components of the first image's vector.
    first: Vec<f32>,
}

/// Times what the flags name and prints it.
pub(crate) fn run(flags: &BenchEncodeFlags, terminal: &Terminal) -> anyhow::Result<()> {
    // An image of 224 x 224 in three colours, as it was and prepared.
    check_numbers("so many images", &[flags.batch_size, 2, 3 * 224 * 224], "--batch-size")?;
    check_numbers("so many words", &[flags.batch_size, flags.tokens, 8], "--batch-size or --tokens")?;
    let device = flags.device.device.open(terminal)?;
    let threads = flags.threads.unwrap_or_else(rayon::current_num_threads);
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .stack_size(STACK_BYTES)
        .build()
        .context("could not start threads")?;
    let report = pool.install(|| measure(flags, threads, &device, terminal))?;
    if flags.json {
        return print_json(&report);
    }
    print(&table(&report))
}

fn measure(
    flags: &BenchEncodeFlags,
    threads: usize,
    device: &Device,
    terminal: &Terminal,
) -> anyhow::Result<Report> {
    let text = flags.text_encoder.as_deref().map(|name| {
        let folder = find(name, "--text-encoder", terminal)?;
        text_report(name, &folder, flags, device)
    });
    let image = flags.image_encoder.as_deref().map(|name| {
        let backbone = load_image_backbone(&find(name, "--image-encoder", terminal)?, device)?;
        image_report(name, backbone.as_ref(), flags.batch_size)
    });
    Ok(Report { threads, batch_size: flags.batch_size, text: text.transpose()?, image: image.transpose()? })
}

fn text_report(
    name: &str,
    folder: &Path,
    flags: &BenchEncodeFlags,
    device: &Device,
) -> anyhow::Result<TextReport> {
    match TextTransformer::load(folder, device) {
        Ok(transformer) => transformer_report(name, folder, &transformer, flags),
        // Tables of tokens are no transformers: the whole alone can be timed.
        Err(EncoderError::Unsupported { .. }) => {
            let backbone = load_text_backbone(folder, device)?;
            let sentences = vec![sentence_of(flags.tokens); flags.batch_size];
            whole_text_report(name, backbone.as_ref(), &sentences)
        }
        Err(error) => Err(error.into()),
    }
}

fn transformer_report(
    name: &str,
    folder: &Path,
    transformer: &TextTransformer,
    flags: &BenchEncodeFlags,
) -> anyhow::Result<TextReport> {
    let tokenizer = transformer.tokenizer();
    let length = |words: usize| -> anyhow::Result<usize> {
        Ok(tokenizer.ids(&[&sentence_of(words)])?.first().map_or(0, Vec::len))
    };
    // Special tokens count too.
    let mut words = flags.tokens;
    while words > 0 && length(words)? > flags.tokens {
        words -= 1;
    }
    let sentences = vec![sentence_of(words); flags.batch_size];
    let mut report = whole_text_report(name, transformer, &sentences)?;
    let texts: Vec<&str> = sentences.iter().map(String::as_str).collect();
    let batch = tokenizer.batch(&texts)?;
    let rate = |seconds: f64| texts.len() as f64 / seconds;
    report.token_ids = tokenizer.ids(&texts)?.into_iter().next();
    let tokenising = seconds(|| {
        tokenizer.ids(&texts)?;
        Ok(())
    })?;
    report.tokenised_sentences_per_second = Some(rate(tokenising));
    let model = transformer.model();
    report.network_sentences_per_second =
        Some(rate(seconds(|| settle(&model.forward(&batch, &mut Mode::Evaluation)?))?));
    if flags.fine_tune {
        let (model, _parameters) = TextModel::load_trainable(folder, model.device(), &FineTuning::default())?;
        report.fine_tuning_step_seconds = Some(seconds(|| {
            let loss = model.forward(&batch, &mut Mode::Evaluation)?.sum_all()?;
            loss.backward()?;
            // A GPU answers before it has computed.
            Ok(model.device().synchronize()?)
        })?);
    }
    Ok(report)
}

fn whole_text_report(
    name: &str,
    backbone: &dyn TextBackbone,
    sentences: &[String],
) -> anyhow::Result<TextReport> {
    let texts: Vec<&str> = sentences.iter().map(String::as_str).collect();
    let whole = seconds(|| settle(&backbone.encode(&texts)?))?;
    Ok(TextReport {
        encoder: name.to_owned(),
        dimension: backbone.dimension(),
        sentence: sentences.first().cloned().unwrap_or_default(),
        token_ids: None,
        sentences_per_second: texts.len() as f64 / whole,
        tokenised_sentences_per_second: None,
        network_sentences_per_second: None,
        fine_tuning_step_seconds: None,
        first: first(&backbone.encode(&texts)?)?,
    })
}

fn image_report(name: &str, backbone: &dyn ImageBackbone, count: usize) -> anyhow::Result<ImageReport> {
    let images: Vec<DynamicImage> = (0..count as u32).map(picture).collect();
    let rate = |seconds: f64| count as f64 / seconds;
    let whole = seconds(|| settle(&backbone.encode(&images)?))?;
    let preparation = seconds(|| settle(&backbone.preprocessor().pixel_values(&images, &Device::Cpu)?))?;
    let prepared = backbone.preprocessor().prepare_all(&images)?;
    let network = seconds(|| settle(&backbone.encode_prepared(&prepared)?))?;
    Ok(ImageReport {
        encoder: name.to_owned(),
        dimension: backbone.dimension(),
        images_per_second: rate(whole),
        preprocessed_images_per_second: rate(preparation),
        network_images_per_second: rate(network),
        first: first(&backbone.encode(&images)?)?,
    })
}

/// So many words.
fn sentence_of(words: usize) -> String {
    WORDS.iter().cycle().take(words).copied().collect::<Vec<_>>().join(" ")
}

/// A picture of gradients, another for each seed.
fn picture(seed: u32) -> DynamicImage {
    let pixel =
        |x: u32, y: u32| image::Rgb([x + 31 * seed, y + 17 * seed, x * y / 64].map(|value| value as u8));
    DynamicImage::ImageRgb8(RgbImage::from_fn(WIDTH, HEIGHT, pixel))
}

/// Waits until a result is there: devices other than the CPU compute later.
fn settle(result: &Tensor) -> anyhow::Result<()> {
    Ok(result.device().synchronize()?)
}

fn first(vectors: &Tensor) -> anyhow::Result<Vec<f32>> {
    let mut first = vectors.get(0)?.to_vec1::<f32>()?;
    first.truncate(SHOWN);
    Ok(first)
}

/// The median time of `work`, after one run that does not count.
fn seconds(mut work: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<f64> {
    work()?;
    let start = Instant::now();
    let mut times = Vec::new();
    while times.len() < LEAST_REPEATS || start.elapsed() < TIMED {
        let before = Instant::now();
        work()?;
        times.push(before.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    Ok(times.get(times.len() / 2).copied().unwrap_or(f64::NAN))
}

fn table(report: &Report) -> String {
    let mut text = format!("{} threads, batches of {}\n", report.threads, report.batch_size);
    let mut line = |name: &str, value: f64, unit: &str| {
        // Writing to a string can't fail.
        let _ = writeln!(text, "{name:<36} {value:>10.1} {unit}");
    };
    if let Some(found) = &report.text {
        line(&format!("{}: sentences", found.encoder), found.sentences_per_second, "/s");
        if let Some(rate) = found.tokenised_sentences_per_second {
            line("  tokenising alone", rate, "/s");
        }
        if let Some(rate) = found.network_sentences_per_second {
            line("  network alone", rate, "/s");
        }
        if let Some(seconds) = found.fine_tuning_step_seconds {
            line("  forward and backward", seconds * 1e3, "ms");
        }
    }
    if let Some(found) = &report.image {
        line(&format!("{}: images", found.encoder), found.images_per_second, "/s");
        line("  preprocessing alone", found.preprocessed_images_per_second, "/s");
        line("  network alone", found.network_images_per_second, "/s");
    }
    text
}
