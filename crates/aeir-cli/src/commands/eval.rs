//! `aeir eval`.

mod labelled;
mod table;

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use aeir_data::{ImageSource, Skipped, Split, TargetImages, TargetSentences, TestPairs};
use aeir_encoders::bundle::MANIFEST_FILE;
use aeir_encoders::{Bundle, Encoded};
use aeir_retrieve::{
    BootstrapOptions, Comparison, Confidence, GalleryCorrection, Matrix, MetricIntervals, Ranks, Relevance,
    RetrievalMetrics, Ties, bootstrap_folds, compare, mean_over_folds, nearest, rank_corrected,
};
use aeir_train::EvaluationPairs;
use aeir_train::features::FeatureExtractor;
use aeir_train::score::{HeadReranker, full_scores};
use aeir_train::validate::{embed_table, encode_table};
use candle_core::{Device, Tensor};
use clap::ValueEnum;
use indicatif::ProgressBar;
use serde::Serialize;

use super::{print, print_json, tell_skipped};
use crate::backbones::extractor_of;
use crate::failure::CliError;
use crate::flags::correction::CorrectionFlag;
use crate::flags::{EvalFlags, Protocol, Rerank, SplitFlag};
use crate::place::feature_cache;
use crate::progress::extraction;
use crate::report::runs::{self, Reliability};
use crate::run_files::add_evaluation;
use crate::terminal::Terminal;

/// Images of COCO's test split, of which each fold takes a fifth.
const FIVE_FOLD_IMAGES: usize = 5_000;
/// Bounds of the steps of confidence: the first is what a usual `--min-confidence` turns away.
const RELIABILITY_STEPS: [f64; 7] = [0.0, 0.05, 0.2, 0.4, 0.6, 0.8, 1.0];
/// Of fewer test images a recall says little.
const FEW_IMAGES: usize = 20;
/// The rule for equal scores, as the output states it.
const TIES: &str = "of items with equal scores the wrong ones count first";

/// Scores a model on test pairs.
pub(crate) fn run(flags: &EvalFlags, terminal: &Terminal) -> anyhow::Result<()> {
    let data = match (&flags.data, &flags.labelled) {
        (Some(data), _) => data,
        (None, Some(labelled)) => return labelled::run(flags, labelled, terminal),
        (None, None) => {
            return Err(CliError::Usage {
                message: "there are no pairs to score".into(),
                hint: "add --data or --labelled".into(),
            }
            .into());
        }
    };
    let device = flags.device.device.open(terminal)?;
    let split = flags.split.map(SplitFlag::split);
    let pairs = Pairs::read(flags, data, split, terminal)?;
    let scored = score_model(&flags.model, flags, &pairs, &device, terminal)?;
    remember(flags, data, &scored, terminal)?;
    let images = scored.metrics()?.n_images;
    if images < FEW_IMAGES {
        let plural = if images == 1 { "image" } else { "images" };
        terminal.warn(&format!(
            "{images} test {plural}: a recall of fewer than {FEW_IMAGES} says little, look at its interval"
        ));
    }
    let options =
        BootstrapOptions { replicates: flags.replicates, seed: flags.seed, ..BootstrapOptions::default() };
    let comparison = match &flags.compare {
        Some(model) => Some(scored.against(model, flags, &pairs, &options, &device, terminal)?),
        None => None,
    };
    let evaluation = Evaluation {
        metrics: scored.metrics()?,
        protocol: flags.protocol.name(),
        ties: TIES,
        intervals: bootstrap_folds(&scored.folds, &options)?,
        corrected: scored.corrected,
        reliability: scored.reliability,
        comparison,
    };
    if flags.json {
        return print_json(&evaluation);
    }
    print(&format!("{}{}", scored.how, table::text(&evaluation)))
}

/// What is printed.
#[derive(Serialize)]
struct Evaluation {
    /// The plain figures, at the top.
    #[serde(flatten)]
    metrics: RetrievalMetrics,
    protocol: &'static str,
    ties: &'static str,
    intervals: MetricIntervals,
    /// By name; none where no bank was given.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    corrected: BTreeMap<&'static str, Corrected>,
    /// What confidences of sentence queries are worth; empty where no bank of sentences was given.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    reliability: Vec<Reliability>,
    #[serde(skip_serializing_if = "Option::is_none")]
    comparison: Option<Compared>,
}

/// Figures after a hubness correction.
#[derive(Serialize)]
struct Corrected {
    #[serde(flatten)]
    metrics: RetrievalMetrics,
    /// Unpaired sentences that sentence queries were corrected by; none where that direction is plain.
    bank_sentences: Option<usize>,
    /// Unpaired images that image queries were corrected by; none where that direction is plain.
    bank_images: Option<usize>,
    /// Against the plain figures.
    difference: Comparison,
}

/// Another model on the same pairs.
#[derive(Serialize)]
struct Compared {
    model: String,
    #[serde(flatten)]
    metrics: RetrievalMetrics,
    /// The other model less this one.
    difference: Comparison,
}

/// Test pairs and unpaired sets, read but not encoded.
struct Pairs {
    test: TestPairs,
    sentence_bank: Option<TargetSentences>,
    image_bank: Option<TargetImages>,
}

impl Pairs {
    fn read(
        flags: &EvalFlags,
        data: &Path,
        split: Option<Split>,
        terminal: &Terminal,
    ) -> anyhow::Result<Self> {
        let options = flags.reading.options();
        let test = TestPairs::read_with(data, split, &options)?;
        let read_sentences = |path| TargetSentences::read_with(path, &options);
        let read_images = |path| TargetImages::read_with(path, &options);
        let pairs = Self {
            test,
            sentence_bank: flags.query_bank.as_deref().map(read_sentences).transpose()?,
            image_bank: flags.image_bank.as_deref().map(read_images).transpose()?,
        };
        let of_banks = pairs.sentence_bank.iter().flat_map(TargetSentences::notes);
        let notes = pairs.test.notes().iter().chain(of_banks);
        notes
            .chain(pairs.image_bank.iter().flat_map(TargetImages::notes))
            .for_each(|note| terminal.warn(note));
        pairs.warn_of_leaks(terminal);
        Ok(pairs)
    }

    /// A bank that holds the test queries looks at what it is to be tested on.
    fn warn_of_leaks(&self, terminal: &Terminal) {
        if let Some(bank) = &self.sentence_bank {
            let own: HashSet<&str> = self.test.captions().iter().map(String::as_str).collect();
            let shared = bank.sentences().iter().filter(|sentence| own.contains(sentence.as_str())).count();
            warn_of_leak(
                shared,
                bank.sentences().len(),
                "sentences of the query bank are test sentences",
                terminal,
            );
        }
        if let Some(bank) = &self.image_bank {
            let name = |image: &ImageSource| image.absolute_name().ok();
            let own: HashSet<String> = self.test.images().iter().filter_map(name).collect();
            let shared = bank.images().iter().filter_map(name).filter(|image| own.contains(image)).count();
            warn_of_leak(shared, bank.images().len(), "images of the image bank are test images", terminal);
        }
    }
}

fn warn_of_leak(shared: usize, all: usize, what: &str, terminal: &Terminal) {
    if shared > 0 {
        terminal.warn(&format!("{shared} of {all} {what} too: a bank should hold none of the queries"));
    }
}

/// A model's ranks.
struct Scored {
    /// One a fold.
    folds: Vec<Ranks>,
    corrected: BTreeMap<&'static str, Corrected>,
    reliability: Vec<Reliability>,
    /// How many results the head looked at, where the model has one.
    rerank: Option<String>,
    /// How the head was used, for people.
    how: String,
}

impl Scored {
    fn metrics(&self) -> anyhow::Result<RetrievalMetrics> {
        Ok(mean_over_folds(self.folds.iter().map(Ranks::metrics_with_map).collect())?.mean)
    }

    fn against(
        &self,
        model: &Path,
        flags: &EvalFlags,
        pairs: &Pairs,
        options: &BootstrapOptions,
        device: &Device,
        terminal: &Terminal,
    ) -> anyhow::Result<Compared> {
        let [first] = self.folds.as_slice() else {
            return Err(CliError::Usage {
                message: "--compare takes the protocol `full`".into(),
                hint: "leave --protocol out: two models are compared on all test pairs at once".into(),
            }
            .into());
        };
        let plain = Pairs { test: pairs.test.clone(), sentence_bank: None, image_bank: None };
        let other = score_model(model, flags, &plain, device, terminal)?;
        let ranks = other.folds.first().ok_or_else(|| anyhow::anyhow!("the other model has no figures"))?;
        if ranks.relevance() != first.relevance() {
            return Err(CliError::Data {
                message:
                    "the two models could not be scored on the same pairs: not the same images could be read"
                        .into(),
                hint: "remove the images that were skipped from the test data".into(),
            }
            .into());
        }
        let difference = compare(first, ranks, options)?;
        Ok(Compared { model: model.display().to_string(), metrics: other.metrics()?, difference })
    }
}

fn score_model(
    model: &Path,
    flags: &EvalFlags,
    pairs: &Pairs,
    device: &Device,
    terminal: &Terminal,
) -> anyhow::Result<Scored> {
    let bundle = Bundle::load(model, device)?;
    let mut extractor = extractor_of(&bundle)?
        .with_cache(&feature_cache()?)?
        .with_limits(flags.loading.limits())
        .with_progress(extraction(terminal));
    let (test, mut skipped) = extractor.test(&pairs.test)?;
    skipped.extend(pairs.test.skipped().iter().cloned());
    let rerank = Rerank::of_model(flags.rerank, bundle.encoder().config(), terminal);
    let relevance = Relevance::from_owners(test.images.len(), &test.owners)?;
    let folds = match flags.protocol {
        Protocol::Full => 1,
        Protocol::FiveFold1k if relevance.n_images() == FIVE_FOLD_IMAGES => 5,
        Protocol::FiveFold1k => {
            return Err(CliError::Data {
                message: format!(
                    "protocol five-fold-1k: expected {FIVE_FOLD_IMAGES} images, got {}",
                    relevance.n_images()
                ),
                hint: "it is COCO's, of the 5,000 images of its test split; other data sets are scored with `full`".into(),
            }
            .into());
        }
    };
    let with_head = bundle.encoder().config().head.is_cross_attentive() && rerank != Rerank::First(0);
    let banks = Banks::embed(&bundle, &mut extractor, pairs)?;
    skipped.extend(banks.skipped.iter().cloned());
    if with_head && !banks.is_empty() {
        return Err(CliError::Usage {
            message: "hubness correction is of pooled vectors: it does not go with a head that scores pairs"
                .into(),
            hint:
                "add --rerank 0 to score the pooled vectors alone, or leave --query-bank and --image-bank out"
                    .into(),
        }
        .into());
    }
    let (ranks, corrected, reliability) = if with_head {
        (ranks_with_head(&bundle, &test, rerank, &relevance, folds, terminal)?, BTreeMap::new(), Vec::new())
    } else {
        let images = embed_table(&test.images, bundle.device(), |items| bundle.encode_images(items))?;
        let sentences =
            embed_table(&test.sentences, bundle.device(), |items| bundle.encode_sentences(items))?;
        let (ranks, corrected) = ranks_of_vectors(&images, &sentences, &relevance, folds, &banks, flags)?;
        let reliability = match (&banks.sentences, ranks.as_slice()) {
            (Some(bank), [ranks]) => reliability(&images, &sentences, bank, ranks)?,
            _ => Vec::new(),
        };
        (ranks, corrected, reliability)
    };
    tell_skipped(terminal, &skipped, None);
    let rerank_told = bundle.encoder().config().head.is_cross_attentive().then(|| rerank.to_string());
    Ok(Scored { folds: ranks, corrected, reliability, rerank: rerank_told, how: how(&bundle, rerank) })
}

fn how(bundle: &Bundle, rerank: Rerank) -> String {
    match (bundle.encoder().config().head, rerank) {
        (head, _) if !head.is_cross_attentive() => String::new(),
        (_, Rerank::First(0)) => "pooled vectors alone, without the head\n".to_owned(),
        (head, Rerank::First(count)) => {
            format!("the first {count} of each query re-ranked by head {}\n", head.as_str())
        }
        (head, Rerank::All) => format!("all pairs scored by head {}\n", head.as_str()),
    }
}

/// The unpaired sets in the joint space.
struct Banks {
    sentences: Option<Matrix>,
    images: Option<Matrix>,
    /// What of them could not be read.
    skipped: Vec<Skipped>,
}

impl Banks {
    fn embed(bundle: &Bundle, extractor: &mut FeatureExtractor<'_>, pairs: &Pairs) -> anyhow::Result<Self> {
        let mut skipped = Vec::new();
        let sentences = match &pairs.sentence_bank {
            Some(bank) => {
                skipped.extend(bank.skipped().iter().cloned());
                let table = extractor.sentences("bank sentences", bank.sentences())?;
                Some(embed_table(&table, bundle.device(), |items| bundle.encode_sentences(items))?)
            }
            None => None,
        };
        let images = match &pairs.image_bank {
            Some(bank) => {
                let extracted = extractor.images("bank images", bank.images())?;
                skipped.extend(bank.skipped().iter().cloned().chain(extracted.skipped));
                Some(embed_table(&extracted.table, bundle.device(), |items| bundle.encode_images(items))?)
            }
            None => None,
        };
        Ok(Self { sentences, images, skipped })
    }

    fn is_empty(&self) -> bool {
        self.sentences.is_none() && self.images.is_none()
    }
}

fn ranks_of_vectors(
    images: &Matrix,
    sentences: &Matrix,
    relevance: &Relevance,
    folds: usize,
    banks: &Banks,
    flags: &EvalFlags,
) -> anyhow::Result<(Vec<Ranks>, BTreeMap<&'static str, Corrected>)> {
    let mut parts = Vec::new();
    for fold in relevance.folds(folds)? {
        let rows: Vec<usize> = (fold.first..fold.first + fold.relevance.n_images()).collect();
        parts.push((images.select_rows(&rows)?, sentences.select_rows(&fold.sentences)?, fold.relevance));
    }
    let plain = parts
        .iter()
        .map(|(images, sentences, relevance)| {
            Ok(aeir_retrieve::rank_embeddings(images, sentences, relevance, Ties::Pessimistic)?)
        })
        .collect::<anyhow::Result<Vec<Ranks>>>()?;
    let mut corrected = BTreeMap::new();
    if banks.is_empty() {
        return Ok((plain, corrected));
    }
    let options =
        BootstrapOptions { replicates: flags.replicates, seed: flags.seed, ..BootstrapOptions::default() };
    for kind in CorrectionFlag::value_variants() {
        let correction = kind.correction(flags.beta);
        let of = |gallery: &Matrix, bank: &Option<Matrix>| {
            bank.as_ref().map(|bank| GalleryCorrection::of_bank(correction, gallery, bank)).transpose()
        };
        let ranks = parts
            .iter()
            .map(|(images, sentences, relevance)| {
                let (of_images, of_sentences) =
                    (of(images, &banks.sentences)?, of(sentences, &banks.images)?);
                Ok(rank_corrected(images, sentences, relevance, of_images.as_ref(), of_sentences.as_ref())?)
            })
            .collect::<anyhow::Result<Vec<Ranks>>>()?;
        let entry = Corrected {
            metrics: mean_over_folds(ranks.iter().map(Ranks::metrics_with_map).collect())?.mean,
            bank_sentences: banks.sentences.as_ref().map(Matrix::rows),
            bank_images: banks.images.as_ref().map(Matrix::rows),
            difference: compare(&joined(&plain)?, &joined(&ranks)?, &options)?,
        };
        corrected.insert(correction.name(), entry);
    }
    Ok((plain, corrected))
}

/// Test sentences in steps of confidence.
fn reliability(
    images: &Matrix,
    sentences: &Matrix,
    bank: &Matrix,
    ranks: &Ranks,
) -> anyhow::Result<Vec<Reliability>> {
    let confidence = Confidence::of_bank(images, bank)?;
    let best = nearest(sentences, images, 1)?;
    let of_query = best.iter().map(|found| found.first().map_or(0.0, |best| confidence.of(best.score)));
    let queries: Vec<(f64, u32)> = of_query.zip(ranks.t2i().iter().copied()).collect();
    let steps = RELIABILITY_STEPS.iter().zip(RELIABILITY_STEPS.iter().skip(1));
    Ok(steps
        .map(|(above, up_to)| {
            let inside = |confidence: f64| confidence > *above && confidence <= *up_to;
            let ranks: Vec<u32> =
                queries.iter().filter(|(confidence, _)| inside(*confidence)).map(|(_, rank)| *rank).collect();
            let right = ranks.iter().filter(|rank| **rank == 1).count();
            Reliability {
                above: *above,
                up_to: *up_to,
                share: ranks.len() as f64 / queries.len().max(1) as f64,
                r1: (!ranks.is_empty()).then(|| 100.0 * right as f64 / ranks.len() as f64),
            }
        })
        .collect())
}

/// The ranks of all folds as those of one set: what is compared image by image.
fn joined(folds: &[Ranks]) -> anyhow::Result<Ranks> {
    Ok(Ranks::joined(folds)?)
}

/// Leaves the plain figures in the model's folder, where `aeir report` finds them.
fn remember(flags: &EvalFlags, data: &Path, scored: &Scored, terminal: &Terminal) -> anyhow::Result<()> {
    // A pre-trained model in its own format is somebody else's folder.
    if flags.protocol != Protocol::Full || !flags.model.join(MANIFEST_FILE).exists() {
        return Ok(());
    }
    let evaluation = runs::Evaluation {
        data: std::path::absolute(data)?,
        split: flags.split.map(SplitFlag::name),
        rerank: scored.rerank.clone(),
        metrics: scored.metrics()?,
        reliability: scored.reliability.clone(),
    };
    if let Err(error) = add_evaluation(&flags.model, &evaluation) {
        terminal.warn(&format!(
            "the result is not left in `{}` for `aeir report`: {error}",
            flags.model.display()
        ));
    }
    Ok(())
}

/// The metrics of a model's pooled vectors on features of test pairs.
pub(crate) fn score(bundle: &Bundle, test: &EvaluationPairs) -> anyhow::Result<RetrievalMetrics> {
    let images = embed_table(&test.images, bundle.device(), |items| bundle.encode_images(items))?;
    let sentences = embed_table(&test.sentences, bundle.device(), |items| bundle.encode_sentences(items))?;
    let relevance = Relevance::from_owners(images.rows(), &test.owners)?;
    Ok(aeir_retrieve::evaluate_embeddings(&images, &sentences, &relevance)?)
}

/// Ranks by the model's head: of all pairs, or of the candidates that the pooled vectors find.
fn ranks_with_head(
    bundle: &Bundle,
    test: &EvaluationPairs,
    rerank: Rerank,
    relevance: &Relevance,
    folds: usize,
    terminal: &Terminal,
) -> anyhow::Result<Vec<Ranks>> {
    let encoder = bundle.encoder();
    let images = encode_table(&test.images, bundle.device(), |items| bundle.encode_images(items))?;
    let sentences = encode_table(&test.sentences, bundle.device(), |items| bundle.encode_sentences(items))?;
    let bar = match rerank {
        Rerank::All => terminal.bar("scoring pairs", 0),
        Rerank::First(_) => terminal.bar("re-ranking queries", test.images.len() + test.sentences.len()),
    };
    let mut ranks = Vec::new();
    for fold in relevance.folds(folds)? {
        let rows = |positions: &mut dyn Iterator<Item = usize>| {
            Tensor::new(positions.map(|row| row as u32).collect::<Vec<_>>(), bundle.device())
        };
        let mut own = fold.first..fold.first + fold.relevance.n_images();
        let images = images.select(&rows(&mut own)?)?;
        let sentences = sentences.select(&rows(&mut fold.sentences.iter().copied())?)?;
        ranks.push(match rerank {
            Rerank::All => {
                let scores =
                    full_scores(encoder, &images, &sentences, |done, total| follow(&bar, done, total))?;
                aeir_retrieve::rank_scores(&scores, &fold.relevance, Ties::Pessimistic)?
            }
            Rerank::First(count) => {
                let mut second = HeadReranker::new(encoder, &images, &sentences, || bar.inc(1));
                let (images, sentences) = (vectors(&images)?, vectors(&sentences)?);
                aeir_retrieve::rank_two_stage_embeddings(
                    &images,
                    &sentences,
                    &fold.relevance,
                    count,
                    &mut second,
                )?
            }
        });
    }
    bar.finish();
    Ok(ranks)
}

/// Moves a bar that does not know its length from the start.
fn follow(bar: &ProgressBar, done: usize, total: usize) {
    bar.set_length(total as u64);
    bar.set_position(done as u64);
}

fn vectors(encoded: &Encoded) -> anyhow::Result<Matrix> {
    let pooled = encoded.pooled()?;
    let (rows, columns) = pooled.dims2()?;
    Ok(Matrix::new(pooled.flatten_all()?.to_vec1::<f32>()?, rows, columns)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_of_scoring_all_pairs_learns_its_length_and_moves() {
        let bar = Terminal::new(true).bar("scoring pairs", 0);
        for (done, total) in [(3, 12), (12, 12)] {
            follow(&bar, done, total);
            assert_eq!((bar.position(), bar.length()), (done as u64, Some(total as u64)));
        }
    }
}
