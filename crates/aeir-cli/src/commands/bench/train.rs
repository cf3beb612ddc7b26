//! `aeir bench train`: whole training steps and SAF scoring, on items that are drawn at random.
//!
//! A step is what `aeir train` does with a batch: towers, head, losses, gradients, clipping and optimiser, through the same
//! code. `benches/peers/saf_speed.py` and `benches/peers/step_speed.py` time the same work in PyTorch.

use std::fmt::Write;
use std::time::Instant;

use aeir_encoders::{
    Fragments, Head, ImageInput, Items, Mode, ShardSize, SimilarityHead, WordBatch, l2_normalise,
};
use aeir_train::config::{Fidelity, Schedule};
use aeir_train::method::{Batch, Inputs, Moment, SentenceKind, TargetBatch, build};
use aeir_train::step::{Rates, Stepper};
use aeir_train::{MethodName, ParameterStore, TrainConfig};
use anyhow::Context;
use candle_core::{Device, Tensor};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde::Serialize;

use crate::commands::{print, print_json};
use crate::device::device_facts;
use crate::flags::{BenchTrainFlags, TrainWork};
use crate::host_memory::check_numbers;
use crate::terminal::Terminal;

/// Backward passes recurse once a node of the graph.
const STACK_BYTES: usize = 256 << 20;
/// Steps of the small towers for each of the others.
const TOWER_STEPS: usize = 20;

/// How much is computed.
struct Sizes {
    /// Side of the square matrices whose product gives the machine's rate.
    matmul: usize,
    regions: usize,
    /// F of a region.
    features: usize,
    /// D of the joint space with fragments.
    dimension: usize,
    /// S of the alignment vectors.
    similarity: usize,
    word_dimension: usize,
    vocabulary: usize,
    /// Words of the shortest and the longest sentence.
    words: (usize, usize),
    /// Pairs of a SAF step, and as many target images and sentences.
    saf_batch: usize,
    /// Pairs of a step with regions and words, compared by cosine.
    words_batch: usize,
    /// Pairs of a step of two linear towers; F of images and sentences; D.
    towers: (usize, usize, usize, usize),
    /// Images and sentences that are scored.
    scored: (usize, usize),
}

/// The published sizes.
const FULL: Sizes = Sizes {
    matmul: 1024,
    regions: 36,
    features: 2048,
    dimension: 1024,
    similarity: 256,
    word_dimension: 300,
    vocabulary: 5000,
    words: (12, 20),
    saf_batch: 56,
    words_batch: 32,
    towers: (128, 1280, 384, 256),
    scored: (200, 1000),
};

/// To see that everything runs.
const QUICK: Sizes = Sizes {
    matmul: 64,
    regions: 4,
    features: 16,
    dimension: 8,
    similarity: 8,
    word_dimension: 8,
    vocabulary: 60,
    words: (2, 5),
    saf_batch: 6,
    words_batch: 4,
    towers: (8, 16, 12, 8),
    scored: (10, 30),
};

/// What was measured. Seconds are medians.
#[derive(Serialize, Default)]
struct Report {
    device: String,
    threads: usize,
    /// Pairs of a SAF step, and as many target images and sentences.
    saf_batch: usize,
    /// Rate of a plain matrix product in f32, in the middle of the run.
    matmul_gflops: f64,
    /// A whole SAF step of `aeir --fidelity released`.
    #[serde(skip_serializing_if = "Option::is_none")]
    step_seconds: Option<f64>,
    /// SAF in evaluation.
    #[serde(skip_serializing_if = "Option::is_none")]
    scored_pairs_per_second: Option<f64>,
    /// Floating-point operations of the scoring over what the product would have done in the same time.
    #[serde(skip_serializing_if = "Option::is_none")]
    scoring_share_of_matmul_rate: Option<f64>,
    /// Two linear towers on pooled features.
    #[serde(skip_serializing_if = "Option::is_none")]
    towers_step_seconds: Option<f64>,
    /// A linear layer on regions and a bidirectional GRU on words.
    #[serde(skip_serializing_if = "Option::is_none")]
    words_step_seconds: Option<f64>,
}

/// Times what the flags name and prints it.
pub(crate) fn run(flags: &BenchTrainFlags, terminal: &Terminal) -> anyhow::Result<()> {
    let device = flags.device.device.open(terminal)?;
    let report = std::thread::scope(|scope| {
        let measured = std::thread::Builder::new()
            .stack_size(STACK_BYTES)
            .spawn_scoped(scope, || measure(flags, &device, terminal))
            .context("could not start a thread")?;
        measured.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })?;
    if flags.json {
        return print_json(&report);
    }
    print(&table(&report))
}

fn measure(flags: &BenchTrainFlags, device: &Device, terminal: &Terminal) -> anyhow::Result<Report> {
    let sizes = if flags.quick { QUICK } else { FULL };
    let sizes = &Sizes { saf_batch: flags.batch_size.unwrap_or(sizes.saf_batch), ..sizes };
    if device.is_cpu() {
        let pairs = [sizes.saf_batch, sizes.saf_batch, sizes.words.1, sizes.similarity];
        check_numbers("the alignment vectors of so many pairs", &pairs, "--batch-size")?;
        check_numbers(
            "the regions of so many images",
            &[4, sizes.saf_batch, sizes.regions, sizes.features],
            "--batch-size",
        )?;
    }
    let asked = |work| flags.only.is_none_or(|only| only == work);
    let repeats = flags.repeats;
    let bar = terminal.bar("timing", 4);
    let mut report = Report {
        device: device_facts(device).name,
        threads: rayon::current_num_threads(),
        saf_batch: sizes.saf_batch,
        ..Report::default()
    };
    let mut rates = vec![matmul_rate(sizes.matmul, device)?];
    if asked(TrainWork::SafStep) {
        report.step_seconds = Some(saf_training(sizes, device)?.seconds(repeats)?);
        rates.push(matmul_rate(sizes.matmul, device)?);
    }
    bar.inc(1);
    if asked(TrainWork::SafScoring) {
        let scoring = Scoring::new(sizes, device)?;
        let seconds = scoring.seconds(repeats.div_ceil(2))?;
        rates.push(matmul_rate(sizes.matmul, device)?);
        let rate = scoring.pairs() as f64 / seconds;
        report.scored_pairs_per_second = Some(rate);
        report.scoring_share_of_matmul_rate = Some(rate * scoring.flop_a_pair(sizes) / median(rates.clone()));
    }
    bar.inc(1);
    if asked(TrainWork::Towers) {
        report.towers_step_seconds = Some(towers_training(sizes, device)?.seconds(TOWER_STEPS * repeats)?);
    }
    bar.inc(1);
    if asked(TrainWork::Words) {
        report.words_step_seconds = Some(words_training(sizes, device)?.seconds(repeats)?);
    }
    bar.finish();
    report.matmul_gflops = median(rates) / 1e9;
    Ok(report)
}

/// A method, its optimisers and one batch.
struct Training {
    stepper: Stepper,
    batch: Batch,
    learning_rate: f64,
    random: ChaCha8Rng,
    device: Device,
}

impl Training {
    fn new(config: &TrainConfig, inputs: Inputs, batch: Batch, device: &Device) -> anyhow::Result<Self> {
        let config = config.resolved()?;
        let store = ParameterStore::new(config.seed, device);
        let stepper = Stepper::new(build(&config, inputs, &store)?, &store, &config)?;
        let learning_rate = config.optimizer.learning_rate;
        let random = ChaCha8Rng::seed_from_u64(config.seed);
        Ok(Self { stepper, batch, learning_rate, random, device: device.clone() })
    }

    fn step(&mut self) -> anyhow::Result<()> {
        let rates = Rates { encoder: self.learning_rate, critic: self.learning_rate };
        let mode = &mut Mode::Training(&mut self.random);
        // Late in the training: no warm-up is left.
        let outcome = self.stepper.step(&self.batch, Moment { step: 9, steps: 10 }, rates, mode)?;
        // A GPU answers before it has computed.
        outcome.encoder_norm.value()?;
        Ok(self.device.synchronize()?)
    }

    /// The median of `repeats` steps, after one that is not counted.
    fn seconds(mut self, repeats: usize) -> anyhow::Result<f64> {
        self.step()?;
        timed(repeats, || self.step())
    }
}

/// The work of the released procedure: triplet ranking, adversarial term, structure transfer, Adam.
fn saf_training(sizes: &Sizes, device: &Device) -> anyhow::Result<Training> {
    let mut config = fragment_config(sizes, MethodName::Aeir);
    config.aeir.fidelity = Fidelity::Released;
    config.adaptation.source_share = 0.0;
    config.model.head = Some(Head::Saf);
    config.model.head_options.similarity_dimension = sizes.similarity;
    let mut random = ChaCha8Rng::seed_from_u64(1);
    let mut domain = || {
        let images = Items::Fragments(Fragments::unpadded(noise(
            &mut random,
            &[sizes.saf_batch, sizes.regions, sizes.features],
            device,
        )?)?);
        anyhow::Ok((images, sentences(&mut random, sizes, sizes.saf_batch, device)?))
    };
    let ((source_images, source_sentences), (images, sentences)) = (domain()?, domain()?);
    let target = Some(TargetBatch { images, sentences, rows: None });
    let batch = Batch { source_images, source_sentences, labelled: 0, target, anchors: None };
    Training::new(&config, fragment_inputs(sizes), batch, device)
}

/// VSE++ on regions and words.
fn words_training(sizes: &Sizes, device: &Device) -> anyhow::Result<Training> {
    let config = fragment_config(sizes, MethodName::Vsepp);
    let mut random = ChaCha8Rng::seed_from_u64(2);
    let regions = noise(&mut random, &[sizes.words_batch, sizes.regions, sizes.features], device)?;
    let batch = Batch {
        labelled: 0,
        source_images: Items::Fragments(Fragments::unpadded(regions)?),
        source_sentences: sentences(&mut random, sizes, sizes.words_batch, device)?,
        target: None,
        anchors: None,
    };
    Training::new(&config, fragment_inputs(sizes), batch, device)
}

/// Two linear towers with the default settings.
fn towers_training(sizes: &Sizes, device: &Device) -> anyhow::Result<Training> {
    let (rows, image_dimension, sentence_dimension, dimension) = sizes.towers;
    let mut config = TrainConfig { method: MethodName::SourceOnly, ..TrainConfig::default() };
    config.model.embedding_dimension = dimension;
    let mut random = ChaCha8Rng::seed_from_u64(3);
    let batch = Batch {
        labelled: 0,
        source_images: Items::Pooled(noise(&mut random, &[rows, image_dimension], device)?),
        source_sentences: Items::Pooled(noise(&mut random, &[rows, sentence_dimension], device)?),
        target: None,
        anchors: None,
    };
    Training::new(&config, Inputs::pooled(image_dimension, sentence_dimension), batch, device)
}

/// Regions and words with the released procedure's optimiser.
fn fragment_config(sizes: &Sizes, method: MethodName) -> TrainConfig {
    let mut config = TrainConfig { method, ..TrainConfig::default() };
    config.model.embedding_dimension = sizes.dimension;
    config.model.input_dropout = 0.0;
    config.model.words.word_dimension = sizes.word_dimension;
    config.optimizer.learning_rate = 1e-4;
    config.optimizer.weight_decay = 0.0;
    config.optimizer.warm_up = 0.0;
    config.optimizer.schedule = Schedule::Constant;
    config.optimizer.clip_norm = 2.0;
    config
}

fn fragment_inputs(sizes: &Sizes) -> Inputs {
    Inputs {
        image_dimension: sizes.features,
        images: ImageInput::Fragments(sizes.regions),
        sentence_dimension: sizes.vocabulary,
        sentences: SentenceKind::Words,
        pairs: 0,
    }
}

/// A SAF head with its first weights, and unit fragments to score.
struct Scoring {
    head: SimilarityHead,
    images: Fragments,
    sentences: Fragments,
}

impl Scoring {
    fn new(sizes: &Sizes, device: &Device) -> anyhow::Result<Self> {
        let mut random = ChaCha8Rng::seed_from_u64(4);
        let mut config =
            aeir_encoders::HeadConfig::new(aeir_encoders::HeadKind::Saf, sizes.dimension, sizes.regions);
        config.similarity_dimension = sizes.similarity;
        let head = SimilarityHead::new(&config, ParameterStore::new(1, device).builder())?;
        let (images, count) = sizes.scored;
        let regions = noise(&mut random, &[images, sizes.regions, sizes.dimension], device)?;
        let longest = sizes.words.1;
        let words = noise(&mut random, &[count, longest, sizes.dimension], device)?;
        let mask: Vec<f32> = (0..count)
            .flat_map(|_| {
                let words = length(&mut random, sizes);
                (0..longest).map(move |word| if word < words { 1.0 } else { 0.0 })
            })
            .collect();
        let mask = Tensor::from_vec(mask, (count, longest), device)?;
        Ok(Self {
            head,
            images: Fragments::unpadded(l2_normalise(&regions)?)?,
            sentences: Fragments::new(l2_normalise(&words)?, mask)?,
        })
    }

    fn pairs(&self) -> usize {
        let count = |fragments: &Fragments| fragments.mask().dims().first().copied().unwrap_or(0);
        count(&self.images) * count(&self.sentences)
    }

    /// Of a mean pair: scores, attended vectors and projection of its words. The global vector's part is not counted.
    fn flop_a_pair(&self, sizes: &Sizes) -> f64 {
        let mask = self.sentences.mask().flatten_all().and_then(|mask| mask.to_vec1::<f32>());
        let words: f64 = mask.unwrap_or_default().iter().map(|mask| f64::from(*mask)).sum();
        let words = words / sizes.scored.1 as f64;
        2.0 * words * (sizes.dimension * (2 * sizes.regions + sizes.similarity)) as f64
    }

    fn seconds(&self, repeats: usize) -> anyhow::Result<f64> {
        let score = || -> anyhow::Result<()> {
            self.head.scores_in_shards(&self.images, &self.sentences, ShardSize::default(), |_, _| {})?;
            Ok(())
        };
        score()?;
        timed(repeats, score)
    }
}

/// Sentences of random words and lengths.
fn sentences(random: &mut ChaCha8Rng, sizes: &Sizes, count: usize, device: &Device) -> anyhow::Result<Items> {
    let ids: Vec<Vec<u32>> = (0..count)
        .map(|_| {
            let words = length(random, sizes);
            (0..words).map(|_| random.next_u32() % sizes.vocabulary as u32).collect()
        })
        .collect();
    Ok(Items::Words(WordBatch::new(&ids, device)?))
}

fn length(random: &mut ChaCha8Rng, sizes: &Sizes) -> usize {
    let (shortest, longest) = sizes.words;
    shortest + random.next_u32() as usize % (longest - shortest + 1)
}

/// Numbers between -1 and 1.
fn noise(random: &mut ChaCha8Rng, shape: &[usize], device: &Device) -> anyhow::Result<Tensor> {
    let count = shape.iter().product();
    let values: Vec<f32> = (0..count).map(|_| random.next_u32() as f32 / 2_147_483_648.0 - 1.0).collect();
    Ok(Tensor::from_vec(values, shape, device)?)
}

/// Floating-point operations a second of a square matrix product on all threads.
fn matmul_rate(size: usize, device: &Device) -> anyhow::Result<f64> {
    let mut random = ChaCha8Rng::seed_from_u64(5);
    let mut draw = || noise(&mut random, &[size, size], device);
    let (a, b) = (draw()?, draw()?);
    let product = || -> anyhow::Result<()> {
        a.matmul(&b)?;
        // A GPU answers before it has computed.
        Ok(device.synchronize()?)
    };
    product()?;
    let seconds = timed(20, product)?;
    Ok(2.0 * (size as f64).powi(3) / seconds)
}

/// The median of the seconds that each of `repeats` calls takes.
fn timed(repeats: usize, mut work: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<f64> {
    let mut seconds = Vec::with_capacity(repeats);
    for _ in 0..repeats {
        let start = Instant::now();
        work()?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    Ok(median(seconds))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let upper = values.get(middle).copied().unwrap_or(f64::NAN);
    match values.len() % 2 {
        0 => (upper + values.get(middle.wrapping_sub(1)).copied().unwrap_or(f64::NAN)) / 2.0,
        _ => upper,
    }
}

fn table(report: &Report) -> String {
    let mut text = format!("{}\nthreads                        {:>10}\n", report.device, report.threads);
    let mut line = |name: &str, value: String| {
        // Writing to a String can't fail.
        let _ = writeln!(text, "{name:30} {value:>10}");
    };
    line("matrix product, GFLOP/s", format!("{:.0}", report.matmul_gflops));
    let milliseconds = |seconds: f64| format!("{:.2}", 1e3 * seconds);
    let seconds = [
        ("SAF step, ms", report.step_seconds),
        ("linear towers, a step, ms", report.towers_step_seconds),
        ("regions and words, a step, ms", report.words_step_seconds),
    ];
    for (name, value) in seconds {
        if let Some(value) = value {
            line(name, milliseconds(value));
        }
    }
    if let Some(rate) = report.scored_pairs_per_second {
        line("SAF scoring, pairs a second", format!("{rate:.0}"));
    }
    if let Some(share) = report.scoring_share_of_matmul_rate {
        line("of the matrix product's rate", format!("{:.0} %", 100.0 * share));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
    }
}
