//! `aeir eval --labelled`: recall that a few labelled pairs tell, each against the whole unpaired target sets.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use aeir_data::{CaptionedImage, ImageSource, LabelledPairs, Skipped, TargetImages, TargetSentences};
use aeir_encoders::{Bundle, Encoded, Head};
use aeir_retrieve::{Matrix, SampledRecalls, ranks_in_gallery, sampled_recalls, similarity};
use aeir_train::ItemTable;
use aeir_train::features::FeatureExtractor;
use aeir_train::score::full_scores;
use aeir_train::validate::{embed_table, encode_table};
use candle_core::Tensor;
use serde::Serialize;

use super::{FEW_IMAGES, TIES, how};
use crate::backbones::extractor_of;
use crate::commands::{print, print_json, tell_skipped};
use crate::failure::CliError;
use crate::flags::{EvalFlags, Rerank};
use crate::labelled::learned_from;
use crate::place::feature_cache;
use crate::progress::extraction;
use crate::terminal::Terminal;

/// How the intervals were made, as the output states it.
const INTERVALS: &str = "Wilson, 95 %, of the labelled queries as a random sample";

/// What is printed.
#[derive(Serialize)]
struct Report {
    /// Queries are the images, the sentences are looked for.
    i2t: SampledRecalls,
    /// Queries are the sentences, the images are looked for.
    t2i: SampledRecalls,
    /// The six recalls added up, 0 to 600.
    rsum: f64,
    /// Labelled images that were asked.
    n_images: usize,
    /// Their sentences.
    n_sentences: usize,
    gallery: GallerySizes,
    /// Labelled images that no sentence fits: no queries.
    unanswered: usize,
    intervals: &'static str,
    ties: &'static str,
}

/// What was looked among.
#[derive(Serialize)]
struct GallerySizes {
    images: usize,
    /// Different ones.
    sentences: usize,
    /// Whether it was the target sets, or the labelled pairs alone.
    whole: bool,
}

/// Scores a model on labelled pairs.
pub(super) fn run(flags: &EvalFlags, path: &Path, terminal: &Terminal) -> anyhow::Result<()> {
    let device = flags.device.device.open(terminal)?;
    let labelled = LabelledPairs::read_with(path, &flags.reading.options())?;
    labelled.notes().iter().for_each(|note| terminal.warn(note));
    let pairs = measured(&labelled, path, terminal)?;
    refuse_learned(flags, pairs)?;
    let gallery = Gallery::read(flags, &labelled, terminal)?;
    let bundle = Bundle::load(&flags.model, &device)?;
    let rerank = rerank_of(flags, &bundle, terminal)?;
    let mut extractor = extractor_of(&bundle)?
        .with_cache(&feature_cache()?)?
        .with_limits(flags.loading.limits())
        .with_progress(extraction(terminal));
    let (found, mut skipped) = gallery.found(pairs, &mut extractor)?;
    skipped.extend(labelled.skipped().iter().cloned());
    tell_skipped(terminal, &skipped, None);
    if found.images.len() < FEW_IMAGES {
        terminal.warn(&format!(
            "{} labelled images: the intervals are wide, and of so few even they are rough",
            found.images.len()
        ));
    }
    let report = found.report(&bundle, rerank, &gallery, labelled.unanswered())?;
    if flags.json {
        return print_json(&report);
    }
    print(&format!("{}{}", how(&bundle, rerank), text(&report)))
}

/// The pairs to measure with.
fn measured<'a>(
    labelled: &'a LabelledPairs,
    path: &Path,
    terminal: &Terminal,
) -> anyhow::Result<&'a [CaptionedImage]> {
    if !labelled.measure().is_empty() {
        let left_out = labelled.learn().len();
        if left_out > 0 {
            terminal.note(&format!("{left_out} pairs to learn from are left out"));
        }
        if labelled.unanswered() > 0 {
            terminal.warn(&format!(
                "{} labelled images fit no sentence: no queries, and the recall is that of images which have one",
                labelled.unanswered()
            ));
        }
        return Ok(labelled.measure());
    }
    if labelled.is_divided() {
        return Err(CliError::Data {
            message: format!("`{}`: no pair is marked `test`, to measure with", path.display()),
            hint: "label the random part of a plan (`aeir label plan --measure-share`): pairs that were chosen to learn from say nothing \
                   of the rest"
                .into(),
        }
        .into());
    }
    terminal.warn(&format!(
        "`{}` marks no pair as `test`: all {} are scored, and the intervals hold only if they were drawn at random and no model \
         has learned from them",
        path.display(),
        labelled.learn().len()
    ));
    Ok(labelled.learn())
}

/// What a model has learned from is no test of it.
fn refuse_learned(flags: &EvalFlags, pairs: &[CaptionedImage]) -> anyhow::Result<()> {
    let learned = learned_from(&flags.model)?;
    let known = |pair: &&CaptionedImage| pair.image.absolute_name().is_ok_and(|name| learned.contains(&name));
    let count = pairs.iter().filter(known).count();
    if count == 0 {
        return Ok(());
    }
    Err(CliError::Data {
        message: format!("{count} of the {} pairs to score are among those that the model learned from", pairs.len()),
        hint: "mark pairs to measure with as `\"split\": \"test\"` before training: `train --labelled` leaves those out".into(),
    }
    .into())
}

/// A head scores all pairs of the few queries, or is not used.
fn rerank_of(flags: &EvalFlags, bundle: &Bundle, terminal: &Terminal) -> anyhow::Result<Rerank> {
    let config = bundle.encoder().config();
    if !config.head.is_cross_attentive() {
        return Ok(Rerank::First(0));
    }
    match flags.rerank {
        None | Some(Rerank::All) => Ok(Rerank::All),
        Some(Rerank::First(0)) => Ok(Rerank::of_model(flags.rerank, config, terminal)),
        Some(Rerank::First(count)) => Err(CliError::Usage {
            message: format!("--labelled takes --rerank all or 0, got {count}"),
            hint: "the queries are few: all pairs are soon scored".into(),
        }
        .into()),
    }
}

/// What is looked among, read but not encoded.
struct Gallery {
    images: Vec<ImageSource>,
    /// Each once.
    sentences: Vec<String>,
    whole: bool,
    skipped: Vec<Skipped>,
}

impl Gallery {
    fn read(flags: &EvalFlags, labelled: &LabelledPairs, terminal: &Terminal) -> anyhow::Result<Self> {
        let options = flags.reading.options();
        let (images, sentences) = match (&flags.target_images, &flags.target_sentences) {
            (Some(images), Some(sentences)) => {
                (TargetImages::read_with(images, &options)?, TargetSentences::read_with(sentences, &options)?)
            }
            (None, None) => return Ok(Self::of_labels(labelled, terminal)),
            (images, _) => {
                let (given, missing) = match images {
                    Some(_) => ("--target-images", "--target-sentences"),
                    None => ("--target-sentences", "--target-images"),
                };
                return Err(CliError::Usage {
                    message: format!("{given} is given without {missing}"),
                    hint: "give both: each direction has its set to look among".into(),
                }
                .into());
            }
        };
        images.notes().iter().chain(sentences.notes()).for_each(|note| terminal.warn(note));
        Ok(Self {
            images: images.images().to_vec(),
            sentences: once(sentences.sentences().iter()),
            whole: true,
            skipped: images.skipped().iter().chain(sentences.skipped()).cloned().collect(),
        })
    }

    fn of_labels(labelled: &LabelledPairs, terminal: &Terminal) -> Self {
        terminal.warn(
            "the right ones are looked for among the labelled items alone, which is far easier than in use: give --target-images and \
             --target-sentences",
        );
        let pairs = || labelled.measure().iter().chain(labelled.learn());
        Self {
            images: pairs().map(|pair| pair.image.clone()).collect(),
            sentences: once(pairs().flat_map(|pair| &pair.captions)),
            whole: false,
            skipped: Vec::new(),
        }
    }

    /// Finds the pairs in the gallery, which is encoded for it.
    fn found(
        &self,
        pairs: &[CaptionedImage],
        extractor: &mut FeatureExtractor<'_>,
    ) -> anyhow::Result<(Found, Vec<Skipped>)> {
        let named = |(place, image): (usize, &ImageSource)| Some((image.absolute_name().ok()?, place));
        let places: HashMap<String, usize> = self.images.iter().enumerate().filter_map(named).collect();
        let said: HashMap<&str, usize> =
            self.sentences.iter().enumerate().map(|(place, sentence)| (sentence.as_str(), place)).collect();
        let extracted = extractor.images("images to look among", &self.images)?;
        let mut queries: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for pair in pairs {
            let place = places.get(&pair.image.absolute_name()?).copied();
            let place = place.ok_or_else(|| stranger("image", &pair.image.to_string()))?;
            let mut own = Vec::new();
            for caption in &pair.captions {
                own.push(*said.get(caption.as_str()).ok_or_else(|| stranger("sentence", caption))?);
            }
            // One that can't be read is among the skipped.
            if let Some(row) = extracted.rows.get(place).copied().flatten() {
                queries.entry(row).or_default().extend(own);
            }
        }
        if queries.is_empty() {
            return Err(CliError::Data {
                message: "none of the labelled images to measure with can be read".into(),
                hint: "the warnings above say why".into(),
            }
            .into());
        }
        let sentences = extractor.sentences("sentences to look among", &self.sentences)?;
        let (images, right): (Vec<usize>, Vec<Vec<usize>>) = queries.into_iter().unzip();
        let mut skipped = extracted.skipped;
        skipped.extend(self.skipped.iter().cloned());
        Ok((Found { images, right, of_images: extracted.table, of_sentences: sentences }, skipped))
    }
}

/// Each text once.
fn once<'a>(texts: impl Iterator<Item = &'a String>) -> Vec<String> {
    let mut seen = std::collections::HashSet::new();
    texts.filter(|text| seen.insert(text.as_str())).cloned().collect()
}

fn stranger(what: &str, name: &str) -> CliError {
    CliError::Data {
        message: format!("the labelled {what} `{name}` is not in the target sets"),
        hint: "give --target-images and --target-sentences that the plan was made of".into(),
    }
}

/// The labelled pairs in an encoded gallery.
struct Found {
    /// Rows of the images that are asked.
    images: Vec<usize>,
    /// Of each, the rows of its sentences.
    right: Vec<Vec<usize>>,
    of_images: ItemTable,
    of_sentences: ItemTable,
}

impl Found {
    fn report(
        &self,
        bundle: &Bundle,
        rerank: Rerank,
        gallery: &Gallery,
        unanswered: usize,
    ) -> anyhow::Result<Report> {
        let pairs = self.images.iter().zip(&self.right);
        let mut owners: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (image, sentences) in pairs {
            sentences.iter().for_each(|sentence| owners.entry(*sentence).or_default().push(*image));
        }
        let (asked, owners): (Vec<usize>, Vec<Vec<usize>>) = owners.into_iter().unzip();
        let [of_images, of_sentences] = self.scores(bundle, rerank, &asked)?;
        // Sentences of one image are no evidence of their own.
        let independent = self.images.len().min(asked.len());
        let i2t = sampled_recalls(&ranks_in_gallery(&of_images, &self.right)?, self.images.len())?;
        let t2i = sampled_recalls(&ranks_in_gallery(&of_sentences, &owners)?, independent)?;
        let sum = |recalls: &SampledRecalls| recalls.r1.value + recalls.r5.value + recalls.r10.value;
        Ok(Report {
            rsum: sum(&i2t) + sum(&t2i),
            i2t,
            t2i,
            n_images: self.images.len(),
            n_sentences: asked.len(),
            gallery: GallerySizes {
                images: self.of_images.len(),
                sentences: gallery.sentences.len(),
                whole: gallery.whole,
            },
            unanswered,
            intervals: INTERVALS,
            ties: TIES,
        })
    }

    /// Of the asked images against all sentences, and of the asked sentences against all images.
    fn scores(&self, bundle: &Bundle, rerank: Rerank, asked: &[usize]) -> anyhow::Result<[Matrix; 2]> {
        if rerank == Rerank::All && bundle.encoder().config().head != Head::Cosine {
            return self.scores_of_head(bundle, asked);
        }
        let images = embed_table(&self.of_images, bundle.device(), |items| bundle.encode_images(items))?;
        let sentences =
            embed_table(&self.of_sentences, bundle.device(), |items| bundle.encode_sentences(items))?;
        Ok([
            similarity(&images.select_rows(&self.images)?, &sentences)?,
            similarity(&sentences.select_rows(asked)?, &images)?,
        ])
    }

    fn scores_of_head(&self, bundle: &Bundle, asked: &[usize]) -> anyhow::Result<[Matrix; 2]> {
        let images = encode_table(&self.of_images, bundle.device(), |items| bundle.encode_images(items))?;
        let sentences =
            encode_table(&self.of_sentences, bundle.device(), |items| bundle.encode_sentences(items))?;
        let some = |encoded: &Encoded, rows: &[usize]| -> anyhow::Result<Encoded> {
            let rows: Vec<u32> = rows.iter().map(|row| *row as u32).collect();
            Ok(encoded.select(&Tensor::new(rows, bundle.device())?)?)
        };
        let score = |images: &Encoded, sentences: &Encoded| {
            full_scores(bundle.encoder(), images, sentences, |_, _| ())
        };
        Ok([
            score(&some(&images, &self.images)?, &sentences)?,
            score(&images, &some(&sentences, asked)?)?.transposed(),
        ])
    }
}

/// The report for people.
fn text(report: &Report) -> String {
    let GallerySizes { images, sentences, .. } = report.gallery;
    let line = |name: &str, recalls: &SampledRecalls| {
        let cells: String = [&recalls.r1, &recalls.r5, &recalls.r10]
            .into_iter()
            .map(|recall| {
                let interval = format!("{:.0} to {:.0}", recall.interval.low, recall.interval.high);
                format!("  {:5.1} ({interval:>9})", recall.value)
            })
            .collect();
        format!("{name:<15}{cells}  {:6}\n", recalls.medr)
    };
    format!(
        "{} labelled images and {} labelled sentences, each against all {sentences} sentences and {images} images\n\n\
         {:<15}{:>19}{:>19}{:>19}  {:>6}\n{}{}\nrSum {:.1}. In brackets the 95 % interval (Wilson); {TIES}.\n",
        report.n_images,
        report.n_sentences,
        "",
        "R@1",
        "R@5",
        "R@10",
        "median",
        line("image to text", &report.i2t),
        line("text to image", &report.t2i),
        report.rsum,
    )
}
