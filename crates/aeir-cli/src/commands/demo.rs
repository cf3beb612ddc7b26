//! `aeir demo`: the whole job on the data in `fixtures/`, with the baselines beside it.

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use aeir_data::{
    AlignedTarget, ImageSource, ParallelDomain, Skipped, TargetImages, TargetSentences, TestPairs,
    write_skipped,
};
use aeir_encoders::Head;
use aeir_encoders::bundle::{BackbonePlacement, copy_backbones};
use aeir_encoders::{Bundle, write_atomically};
use aeir_retrieve::{Index, Matrix, Relevance, RetrievalMetrics};
use aeir_train::config::Standardise;
use aeir_train::features::FeatureExtractor;
use aeir_train::run::{Existing, METRICS_FILE, Opened, RunFolder, SKIPPED_FILE};
use aeir_train::validate::embed_table;
use aeir_train::{EpochRecord, EvaluationPairs, MethodName, Observer, TrainConfig, TrainingData, train};
use anyhow::Context;
use candle_core::Device;
use indicatif::ProgressBar;
use serde::Serialize;

use super::eval::score;
use super::train::{read_config, save_bundle, write_card};
use super::{decode_query, index, print, tell_skipped};
use crate::backbones::Backbones;
use crate::failure::CliError;
use crate::flags::DemoFlags;
use crate::place::feature_cache;
use crate::progress::extraction;
use crate::report::{self, Example, Gallery, Report, Row, RunResult};
use crate::run_files;
use crate::terminal::Terminal;

/// The configuration as resolved for all rows; each run has its own beside its metrics.
const CONFIG_FILE: &str = "config.toml";
/// Written last: its presence means that the demo went through.
const REPORT_FILE: &str = "report.html";
/// Marks a folder as a demo's, so that it may be replaced.
const MARKER_FILE: &str = ".aeir-demo";
const SHARED_ENCODERS: &str = "encoders";
const INDEX_FOLDER: &str = "index";

const SENTENCE_QUERIES: [&str; 3] = ["birthday cake", "a bird", "red car"];
/// Test image whose neighbours are shown.
const IMAGE_QUERY: &str = "images/4cf8e5ba1736.webp";
const RESULTS_SHOWN: usize = 8;

/// What is trained, in the order of the table.
const PLANS: [Plan; 5] = [
    Plan {
        key: "source-only",
        title: "Source only",
        what: "trained on the source pairs, the target never seen",
        method: MethodName::SourceOnly,
        standardise: false,
        oracle: false,
    },
    Plan {
        key: "source-only-standardised",
        title: "Source only, standardised",
        what: "the same weights; each domain's features standardised with its own statistics",
        method: MethodName::SourceOnly,
        standardise: true,
        oracle: false,
    },
    Plan {
        key: "aeir",
        title: "AEIR",
        what: "source alignment, semantic transfer and structure transfer, as the paper describes them",
        method: MethodName::Aeir,
        standardise: false,
        oracle: false,
    },
    Plan {
        key: "adapt",
        title: "Adapt (the recipe)",
        what: "each domain standardised, a memory of the source pairs, matches mined between the target's unpaired sets",
        method: MethodName::Adapt,
        standardise: true,
        oracle: false,
    },
    Plan {
        key: "oracle",
        title: "Oracle",
        what: "source pairs and the target's training pairs with their true alignment: what labels would buy",
        method: MethodName::SourceOnly,
        standardise: true,
        oracle: true,
    },
];
/// The plan whose first model is indexed and shown in the gallery.
const SHOWN_PLAN: &str = "adapt";

struct Plan {
    key: &'static str,
    title: &'static str,
    what: &'static str,
    method: MethodName,
    standardise: bool,
    oracle: bool,
}

/// One line of the demo's own `metrics.jsonl`.
#[derive(Serialize)]
struct RunLine<'a> {
    row: &'a str,
    seed: u64,
    epoch: usize,
    target_test: &'a RetrievalMetrics,
}

/// Runs the demo.
pub(crate) fn run(flags: &DemoFlags, terminal: &Terminal) -> anyhow::Result<()> {
    let started = Instant::now();
    let config = read_config(flags.config.as_deref())?;
    config.check()?;
    if config.model.head.is_some_and(|head| head != Head::Cosine) {
        return Err(CliError::Usage {
            message: "the demo compares by cosine: `model.head` in its settings names another head".into(),
            hint: "train with other heads by `aeir train --head`".into(),
        }
        .into());
    }
    let device = flags.device.device.open(terminal)?;
    let inputs = Inputs::read(&flags.fixtures)?;
    claim(&flags.output)?;
    write(&flags.output.join(CONFIG_FILE), config.to_toml()?.as_bytes())?;

    let backbones = Backbones::load(
        &flags.fixtures.join("backbones/efficientnet-lite0").to_string_lossy(),
        &flags.fixtures.join("backbones/static-minilm").to_string_lossy(),
        &device,
        terminal,
    )?;
    copy_backbones(
        &flags.output.join(SHARED_ENCODERS),
        backbones.image.as_deref(),
        backbones.sentence_backbone(),
    )?;
    let mut extractor =
        backbones.extractor().with_cache(&feature_cache()?)?.with_progress(extraction(terminal));
    let encoding = Instant::now();
    let (features, mut skipped) = inputs.encode(&mut extractor)?;
    let encoding_seconds = encoding.elapsed().as_secs_f64();

    let training = Instant::now();
    let jobs = Jobs { flags, config: &config, features: &features, backbones: &backbones, device: &device };
    let rows = jobs.run(terminal)?;
    let training_seconds = training.elapsed().as_secs_f64();

    let bundle = Bundle::load(&jobs.folder(SHOWN_PLAN, 1), &device)?;
    let built = index::build(
        &bundle,
        &mut extractor,
        &inputs.images,
        Vec::new(),
        index::Extras::default(),
        &flags.output.join(INDEX_FOLDER),
        terminal,
    )?;
    skipped.extend(built.skipped);
    write_skipped(&flags.output.join(SKIPPED_FILE), &skipped)?;
    tell_skipped(terminal, &skipped, Some(&flags.output.join(SKIPPED_FILE)));

    let relevance = Relevance::from_owners(features.test.images.len(), &features.test.owners)?;
    let report = Report {
        rows,
        chance: aeir_retrieve::chance(&relevance),
        searches: searches(&bundle, &flags.output.join(INDEX_FOLDER), &inputs.image_query)?,
        galleries: galleries(&bundle, &features, &inputs)?,
        shown: PLANS.iter().find(|plan| plan.key == SHOWN_PLAN).map_or("", |plan| plan.title),
        config: config.to_toml()?,
        encoding_seconds,
        training_seconds,
        total_seconds: started.elapsed().as_secs_f64(),
        source: (features.source.sources.iter().map(|s| s.images.len()).sum(), features.source_sentences()),
        target: features.target_sizes(),
        test: (features.test.images.len(), features.test.sentences.len()),
    };
    write(&flags.output.join(REPORT_FILE), report.html()?.as_bytes())?;
    let report_file = flags.output.join(REPORT_FILE);
    print(&format!("{}\n{}\nreport  {}\n", report.table(), report.searches_text(), report_file.display()))
}

/// The data of the demo, read but not decoded.
struct Inputs {
    source: ParallelDomain,
    target_images: TargetImages,
    target_sentences: TargetSentences,
    aligned: AlignedTarget,
    test: TestPairs,
    /// All target images, for the index.
    images: Vec<ImageSource>,
    image_query: PathBuf,
}

impl Inputs {
    fn read(fixtures: &Path) -> anyhow::Result<Self> {
        let (source, target) = (fixtures.join("datasets/noto-cldr"), fixtures.join("datasets/openclipart"));
        for needed in [source.join("captions.jsonl"), target.join("test.jsonl")] {
            if !needed.is_file() {
                return Err(CliError::Missing {
                    message: format!("no demo data: `{}` is not there", needed.display()),
                    hint: "run it from the root of the repository, or name its `fixtures` folder with --fixtures".into(),
                }
                .into());
            }
        }
        let target_images = TargetImages::read(&target.join("train_images.txt"))?;
        let test = TestPairs::read(&target.join("test.jsonl"), None)?;
        let images = target_images.images().iter().chain(test.images()).cloned().collect();
        Ok(Self {
            source: ParallelDomain::read(&source.join("captions.jsonl"))?,
            target_sentences: TargetSentences::read(&target.join("train_sentences.txt"))?,
            aligned: AlignedTarget::read(&target.join("train_alignment.jsonl"))?,
            target_images,
            test,
            images,
            image_query: target.join(IMAGE_QUERY),
        })
    }

    fn encode(&self, extractor: &mut FeatureExtractor<'_>) -> anyhow::Result<(EncodedInputs, Vec<Skipped>)> {
        let (source, mut skipped) = extractor.source(&self.source)?;
        let (target, more) = extractor.target(&self.target_images, &self.target_sentences)?;
        skipped.extend(more);
        let (test, more) = extractor.test(&self.test)?;
        if let Some(first) = more.first() {
            return Err(CliError::Data {
                message: format!("the demo's test images are not whole: `{}`: {}", first.item, first.reason),
                hint: "restore the `fixtures` folder".into(),
            }
            .into());
        }
        // The oracle's images are the target's: only its pairing is new.
        let (aligned, _) = extractor.aligned_target("openclipart aligned", &self.aligned)?;
        let source = TrainingData { sources: vec![source], target: Some(target), labelled: None };
        let mut oracle = source.clone();
        oracle.sources.push(aligned);
        Ok((EncodedInputs { source, oracle, test }, skipped))
    }
}

/// The features of everything.
struct EncodedInputs {
    source: TrainingData,
    /// With the target's true pairs as a second source; no other run sees it.
    oracle: TrainingData,
    test: EvaluationPairs,
}

impl EncodedInputs {
    fn source_sentences(&self) -> usize {
        self.source.sources.iter().map(|source| source.sentences.len()).sum()
    }

    fn target_sizes(&self) -> (usize, usize) {
        self.source.target.as_ref().map_or((0, 0), |target| (target.images.len(), target.sentences.len()))
    }
}

/// All trainings of the table.
struct Jobs<'a> {
    flags: &'a DemoFlags,
    config: &'a TrainConfig,
    features: &'a EncodedInputs,
    backbones: &'a Backbones,
    device: &'a Device,
}

impl Jobs<'_> {
    /// The folder of a run.
    fn folder(&self, key: &str, seed: u64) -> PathBuf {
        self.flags.output.join(key).join(format!("seed-{seed}"))
    }

    /// Trains and scores everything, several runs at a time: one small model keeps one core busy.
    fn run(&self, terminal: &Terminal) -> anyhow::Result<Vec<Row>> {
        let queue: VecDeque<(usize, u64)> =
            (0..PLANS.len()).flat_map(|plan| (1..=self.flags.seeds).map(move |seed| (plan, seed))).collect();
        let bar = terminal.bar("training", queue.len() * 100);
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let workers = if self.device.is_cpu() { cores.min(queue.len()).min(8) } else { 1 };
        let queue = Mutex::new(queue);
        let results = Mutex::new(Vec::new());
        let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        let work = || -> anyhow::Result<()> {
            while let Some((plan, seed)) = next() {
                let result = self.one(PLANS.get(plan).context("no such plan")?, seed, &bar)?;
                results.lock().unwrap_or_else(PoisonError::into_inner).push((plan, seed, result));
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
            threads.into_iter().try_for_each(|thread| match thread.join() {
                Ok(outcome) => outcome,
                Err(_) => anyhow::bail!("a training thread panicked"),
            })
        })?;
        bar.finish();
        let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
        results.sort_by_key(|(plan, seed, _)| (*plan, *seed));
        self.record(&results)?;
        let mut rows: Vec<Row> = PLANS
            .iter()
            .map(|plan| Row { key: plan.key, title: plan.title, what: plan.what, runs: Vec::new() })
            .collect();
        for (plan, _, result) in results {
            if let Some(row) = rows.get_mut(plan) {
                row.runs.push(result);
            }
        }
        Ok(rows)
    }

    fn one(&self, plan: &Plan, seed: u64, bar: &ProgressBar) -> anyhow::Result<RunResult> {
        let config = TrainConfig {
            method: plan.method,
            standardise: if plan.standardise { Standardise::Standardise } else { Standardise::None },
            seed,
            ..self.config.clone()
        }
        .resolved()?;
        let data = if plan.oracle { &self.features.oracle } else { &self.features.source };
        let folder = self.folder(plan.key, seed);
        let Opened::Ready(run) = RunFolder::open(&folder, Existing::Overwrite)? else {
            anyhow::bail!("`{}` could not be opened afresh", folder.display());
        };
        let mut share = Share { bar, steps: 1, done: 0 };
        let trained = train(&config, data, Some(&run), self.device, &mut share)?;
        write_card(&folder, &config, data, &trained)?;
        run_files::finish(&folder, &config, &trained)?;
        let shared = format!("../../{SHARED_ENCODERS}");
        save_bundle(&folder, &config, &trained, self.backbones, BackbonePlacement::Shared(&shared))?;
        // Scored as a user would: from the folder.
        let metrics = score(&Bundle::load(&folder, self.device)?, &self.features.test)?;
        Ok(RunResult { seed, epoch: trained.epoch, metrics, history: trained.history })
    }

    fn record(&self, results: &[(usize, u64, RunResult)]) -> anyhow::Result<()> {
        let mut lines = Vec::new();
        for (plan, seed, result) in results {
            let row = PLANS.get(*plan).map_or("", |plan| plan.key);
            let line = RunLine { row, seed: *seed, epoch: result.epoch, target_test: &result.metrics };
            serde_json::to_writer(&mut lines, &line)?;
            lines.push(b'\n');
        }
        write(&self.flags.output.join(METRICS_FILE), &lines)
    }
}

/// One run's hundredths of the common bar.
struct Share<'a> {
    bar: &'a ProgressBar,
    steps: usize,
    done: usize,
}

impl Observer for Share<'_> {
    fn started(&mut self, _step: usize, steps: usize) {
        self.steps = steps.max(1);
    }

    fn stepped(&mut self, step: usize) {
        let done = 100 * step / self.steps;
        self.bar.inc((done - self.done) as u64);
        self.done = done;
    }

    fn epoch(&mut self, _record: &EpochRecord) {}
}

/// Takes the output folder: new, empty, or an earlier demo's, whose content is removed.
fn claim(folder: &Path) -> anyhow::Result<()> {
    let marker = folder.join(MARKER_FILE);
    let occupied = fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some());
    if occupied && !marker.exists() {
        return Err(CliError::Usage {
            message: format!("`{}` holds other things than a demo", folder.display()),
            hint: "name a new or empty folder with --output".into(),
        }
        .into());
    }
    fs::create_dir_all(folder).with_context(|| format!("could not make `{}`", folder.display()))?;
    write(&marker, b"")?;
    let folders = PLANS.iter().map(|plan| plan.key).chain([SHARED_ENCODERS, INDEX_FOLDER]);
    let files = [REPORT_FILE, CONFIG_FILE, METRICS_FILE, SKIPPED_FILE];
    for name in files.into_iter().chain(folders) {
        let path = folder.join(name);
        let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        match removed {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("could not remove `{}`", path.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

fn write(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    write_atomically(path, bytes).with_context(|| format!("could not write `{}`", path.display()))
}

/// Three queries by sentence and one by image over the index.
fn searches(bundle: &Bundle, folder: &Path, image_query: &Path) -> anyhow::Result<Vec<Example>> {
    let index = Index::open(folder)?;
    index.check_model(bundle.fingerprint())?;
    let mut examples = Vec::new();
    let mut answer = |query: report::Query, embedding: candle_core::Tensor, skip_first: bool| {
        let hits = index.search(&embedding.flatten_all()?.to_vec1::<f32>()?, RESULTS_SHOWN + 1)?;
        // An indexed image finds itself first.
        let results = hits
            .into_iter()
            .filter(|hit| !(skip_first && query.is_image(Path::new(&hit.item))))
            .take(RESULTS_SHOWN)
            .map(|hit| report::Found { path: hit.item.into(), score: hit.score, right: None })
            .collect();
        examples.push(Example { query, results, right_rank: None, right_image: None });
        anyhow::Ok(())
    };
    for sentence in SENTENCE_QUERIES {
        answer(report::Query::Sentence(sentence.into()), bundle.embed_sentences(&[sentence])?, false)?;
    }
    let image = decode_query(image_query)?.image;
    let absolute = std::path::absolute(image_query)
        .with_context(|| format!("could not make `{}` absolute", image_query.display()))?;
    answer(report::Query::Image(absolute), bundle.embed_images(&[image])?, true)?;
    Ok(examples)
}

/// Test queries in three groups by the rank of the right image, each spread evenly over the test set, and images with
/// the sentences found for them.
fn galleries(bundle: &Bundle, features: &EncodedInputs, inputs: &Inputs) -> anyhow::Result<Vec<Gallery>> {
    let test = &features.test;
    let images = embed_table(&test.images, bundle.device(), |items| bundle.encode_images(items))?;
    let sentences = embed_table(&test.sentences, bundle.device(), |items| bundle.encode_sentences(items))?;
    let by_sentence = aeir_retrieve::similarity(&sentences, &images)?;
    let mut groups: [Vec<Example>; 3] = Default::default();
    for (sentence, owner) in test.owners.iter().enumerate() {
        let scores = by_sentence.row(sentence).unwrap_or_default();
        let rank = rank_of(scores, *owner);
        let group = match rank {
            1 => 0,
            2..=10 => 1,
            _ => 2,
        };
        // Where the right image is not among those shown, it takes the last place.
        let shown = if rank > RESULTS_SHOWN { RESULTS_SHOWN - 1 } else { RESULTS_SHOWN };
        let results = best(scores)
            .into_iter()
            .take(shown)
            .filter_map(|(image, score)| {
                let path = inputs.test.images().get(image)?.path().to_path_buf();
                Some(report::Found { path, score, right: Some(image == *owner) })
            })
            .collect();
        let caption = inputs.test.captions().get(sentence).cloned().unwrap_or_default();
        if let Some(group) = groups.get_mut(group) {
            group.push(Example {
                query: report::Query::Sentence(caption),
                results,
                right_rank: Some(rank),
                right_image: inputs.test.images().get(*owner).map(|image| image.path().to_path_buf()),
            });
        }
    }
    let titles = [
        ("Right at once", "the sentence's own image comes first"),
        ("Near", "the sentence's own image is among the first ten"),
        ("Wrong", "the sentence's own image is not among the first ten; it stands at the end, with its rank"),
    ];
    let total = test.owners.len();
    let galleries = groups.into_iter().zip(titles).map(|(examples, (title, what))| Gallery {
        title: format!("{title}: {} of {total}", examples.len()),
        what: what.into(),
        examples: spread(examples, 4),
    });
    Ok(galleries.chain([sentence_gallery(&images, &sentences, features, inputs)?]).collect())
}

/// For a few test images, the sentences found for them.
fn sentence_gallery(
    images: &Matrix,
    sentences: &Matrix,
    features: &EncodedInputs,
    inputs: &Inputs,
) -> anyhow::Result<Gallery> {
    let by_image = aeir_retrieve::similarity(images, sentences)?;
    let mut examples = Vec::new();
    for (image, source) in inputs.test.images().iter().enumerate().take(images.rows()) {
        let scores = by_image.row(image).unwrap_or_default();
        let own = features.test.owners.iter().position(|owner| *owner == image).unwrap_or_default();
        let results = best(scores)
            .into_iter()
            .take(5)
            .filter_map(|(sentence, score)| {
                let text = inputs.test.captions().get(sentence)?;
                Some(report::Found { path: text.into(), score, right: Some(sentence == own) })
            })
            .collect();
        examples.push(Example {
            query: report::Query::Image(source.path().to_path_buf()),
            results,
            right_rank: Some(rank_of(scores, own)),
            right_image: None,
        });
    }
    Ok(Gallery {
        title: "From image to sentence".into(),
        what: "test images, spread evenly over the test set, with the five sentences found first".into(),
        examples: spread(examples, 6),
    })
}

/// Items with their scores, best first; of equal ones the earlier.
fn best(scores: &[f32]) -> Vec<(usize, f32)> {
    let mut order: Vec<(usize, f32)> = scores.iter().copied().enumerate().collect();
    order.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    order
}

/// 1 + the others that score as much or more.
fn rank_of(scores: &[f32], right: usize) -> usize {
    let own = scores.get(right).copied().unwrap_or(f32::NEG_INFINITY);
    1 + scores.iter().enumerate().filter(|(item, score)| *item != right && **score >= own).count()
}

/// `count` of them, evenly spaced.
fn spread(examples: Vec<Example>, count: usize) -> Vec<Example> {
    let (total, count) = (examples.len(), count.min(examples.len()));
    let wanted: Vec<usize> = (0..count).map(|index| index * total / count.max(1)).collect();
    examples.into_iter().enumerate().filter(|(index, _)| wanted.contains(index)).map(|(_, it)| it).collect()
}
