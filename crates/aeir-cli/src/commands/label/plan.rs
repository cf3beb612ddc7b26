//! `aeir label plan`.

use std::collections::HashSet;
use std::path::Path;

use aeir_data::{ImageSource, TargetImages, TargetSentences};
use aeir_encoders::{Bundle, write_atomically};
use aeir_retrieve::{LabelPlan, LabelPlanOptions, PlannedLabel, plan_labels};
use aeir_train::validate::embed_table;
use anyhow::Context;
use serde::Serialize;

use super::{Candidate, Part, PlannedImage};
use crate::backbones::extractor_of;
use crate::commands::{print, print_json, tell_skipped};
use crate::failure::CliError;
use crate::flags::label::LabelPlanFlags;
use crate::output_file;
use crate::place::feature_cache;
use crate::progress::extraction;
use crate::terminal::Terminal;

#[derive(Serialize)]
struct Summary<'a> {
    output: &'a Path,
    images: usize,
    sentences: usize,
    learn: usize,
    measure: usize,
    mean_uncertainty: f64,
    skipped: usize,
}

/// Writes a plan.
pub(super) fn run(flags: &LabelPlanFlags, terminal: &Terminal) -> anyhow::Result<()> {
    output_file::check(&flags.output, "a plan", is_plan)?;
    let device = flags.device.device.open(terminal)?;
    let options = flags.reading.options();
    let images = TargetImages::read_with(&flags.target_images, &options)?;
    let sentences = TargetSentences::read_with(&flags.target_sentences, &options)?;
    images.notes().iter().chain(sentences.notes()).for_each(|note| terminal.warn(note));
    refuse_features(images.images())?;
    let bundle = Bundle::load(&flags.model, &device)?;
    let mut extractor = extractor_of(&bundle)?
        .with_cache(&feature_cache()?)?
        .with_limits(flags.loading.limits())
        .with_progress(extraction(terminal));
    let extracted = extractor.images("target images", images.images())?;
    let distinct = distinct(sentences.sentences());
    let table = extractor.sentences("target sentences", &distinct)?;
    let of_images = embed_table(&extracted.table, bundle.device(), |items| bundle.encode_images(items))?;
    let of_sentences = embed_table(&table, bundle.device(), |items| bundle.encode_sentences(items))?;
    let kept: Vec<&ImageSource> = extracted.kept().filter_map(|place| images.images().get(place)).collect();
    let plan = plan_labels(&of_images, &of_sentences, &parts(flags, kept.len(), terminal))?;
    let planned = planned(&plan, &kept, &distinct)?;
    write(&flags.output, &planned)?;
    let mut skipped = extracted.skipped;
    skipped.extend(images.skipped().iter().chain(sentences.skipped()).cloned());
    tell_skipped(terminal, &skipped, None);
    let mean_uncertainty =
        planned.iter().map(|image| image.uncertainty).sum::<f64>() / planned.len().max(1) as f64;
    let summary = Summary {
        output: &flags.output,
        images: kept.len(),
        sentences: distinct.len(),
        learn: plan.learn.len(),
        measure: plan.measure.len(),
        mean_uncertainty,
        skipped: skipped.len(),
    };
    if flags.json { print_json(&summary) } else { print(&told(&summary, flags)) }
}

/// Whether a text is an earlier plan.
fn is_plan(text: &str) -> bool {
    text.lines().all(|line| serde_json::from_str::<PlannedImage>(line).is_ok())
}

/// A person can't look at numbers.
fn refuse_features(images: &[ImageSource]) -> Result<(), CliError> {
    match images.iter().find(|image| image.features().is_some()) {
        None => Ok(()),
        Some(image) => Err(CliError::Data {
            message: format!("`{image}` is a row of features: there is no image to show to a person"),
            hint: "give --target-images the images that the features were made of, and a model that takes images".into(),
        }),
    }
}

/// A sentence that stands several times is one to choose.
fn distinct(sentences: &[String]) -> Vec<String> {
    let mut seen = HashSet::new();
    sentences.iter().filter(|sentence| seen.insert(sentence.as_str())).cloned().collect()
}

/// How many images each part gets.
fn parts(flags: &LabelPlanFlags, images: usize, terminal: &Terminal) -> LabelPlanOptions {
    if flags.budget > images {
        terminal
            .warn(&format!("--budget {}: there are {images} images, all of them are planned", flags.budget));
    }
    let budget = flags.budget.min(images);
    let measure = (flags.measure_share * budget as f64).round() as usize;
    LabelPlanOptions { learn: budget - measure, measure, candidates: flags.candidates, seed: flags.seed }
}

/// Both parts, evenly mixed: whoever stops half-way has half of each.
fn planned(
    plan: &LabelPlan,
    images: &[&ImageSource],
    sentences: &[String],
) -> anyhow::Result<Vec<PlannedImage>> {
    let place = |part: Part, of: &[PlannedLabel]| -> Vec<(f64, Part, PlannedLabel)> {
        let count = of.len() as f64;
        let at =
            |(number, label): (usize, &PlannedLabel)| ((number as f64 + 0.5) / count, part, label.clone());
        of.iter().enumerate().map(at).collect()
    };
    let mut all = place(Part::Learn, &plan.learn);
    all.extend(place(Part::Measure, &plan.measure));
    all.sort_by(|a, b| a.0.total_cmp(&b.0));
    let planned = all.into_iter().map(|(_, part, label)| {
        let image = images.get(label.image).context("the plan names an image that is not there")?;
        let candidates = label.candidates.iter().filter_map(|candidate| {
            let sentence = sentences.get(candidate.position)?.clone();
            Some(Candidate { sentence, score: candidate.score })
        });
        Ok(PlannedImage {
            image: image.absolute_name()?,
            part,
            uncertainty: label.uncertainty,
            candidates: candidates.collect(),
        })
    });
    planned.collect()
}

fn write(file: &Path, planned: &[PlannedImage]) -> anyhow::Result<()> {
    let mut lines = Vec::new();
    for image in planned {
        serde_json::to_writer(&mut lines, image)?;
        lines.push(b'\n');
    }
    write_atomically(file, &lines).with_context(|| format!("could not write `{}`", file.display()))
}

fn told(summary: &Summary<'_>, flags: &LabelPlanFlags) -> String {
    let place = flags.output.display();
    format!(
        "plan    {place}\nimages  {learn} to learn from, {measure} drawn at random to measure with; of {images}\nunsure  {mean:.2} on average (0: sure, 1: undecided)\nnext    aeir label serve --plan {place} --target-sentences {sentences} --output pairs.jsonl\n",
        learn = summary.learn,
        measure = summary.measure,
        images = summary.images,
        mean = summary.mean_uncertainty,
        sentences = flags.target_sentences.display(),
    )
}
