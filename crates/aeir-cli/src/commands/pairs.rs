//! `aeir pairs`: matches between unpaired sets, for people to look through.

mod page;

use std::io::Write;
use std::path::Path;

use aeir_data::{ImageLimits, ImageSource, TargetImages, TargetSentences};
use aeir_encoders::{Bundle, write_atomically};
use aeir_retrieve::{Matrix, similarity};
use aeir_train::mining::{Match, MiningOptions, match_sets};
use aeir_train::validate::embed_table;
use anyhow::Context;
use serde::Serialize;
use serde_json::Value;

use super::{print, print_json, tell_skipped};
use crate::backbones::extractor_of;
use crate::failure::CliError;
use crate::flags::pairs::{PairsCommand, PairsExportFlags, PairsFlags};
use crate::output_file;
use crate::place::feature_cache;
use crate::progress::extraction;
use crate::report::is_ours;
use crate::terminal::Terminal;

/// Images times sentences whose scores are held at most; matching copies them.
const MOST_SCORES: usize = 400_000_000;
/// Of a score and its copy in the other order.
const BYTES_A_SCORE: usize = 8;
/// Sentences beside the best that are told.
const ALTERNATIVES: usize = 2;

/// Does what the subcommand says.
pub(crate) fn run(flags: &PairsFlags, terminal: &Terminal) -> anyhow::Result<()> {
    match &flags.command {
        PairsCommand::Export(flags) => export(flags, terminal),
    }
}

/// A line of the output.
#[derive(Serialize)]
struct Pair<'a> {
    image: String,
    sentence: &'a str,
    confidence: f32,
    score: f32,
    mutual: bool,
    alternatives: Vec<Alternative<'a>>,
    #[serde(skip)]
    source: &'a ImageSource,
}

/// Another sentence for the image.
#[derive(Serialize)]
struct Alternative<'a> {
    sentence: &'a str,
    confidence: f32,
}

#[derive(Serialize)]
struct Summary<'a> {
    output: &'a Path,
    html: Option<&'a Path>,
    images: usize,
    sentences: usize,
    pairs: usize,
    mutual: usize,
    mean_confidence: f64,
    skipped: usize,
}

fn export(flags: &PairsExportFlags, terminal: &Terminal) -> anyhow::Result<()> {
    output_file::check(&flags.output, "a list of pairs", is_list)?;
    if let Some(page) = &flags.html {
        output_file::check(page, "a page of ours", is_ours)?;
    }
    let device = flags.device.device.open(terminal)?;
    let options = flags.reading.options();
    let images = TargetImages::read_with(&flags.target_images, &options)?;
    let sentences = TargetSentences::read_with(&flags.target_sentences, &options)?;
    images.notes().iter().chain(sentences.notes()).for_each(|note| terminal.warn(note));
    check_size(images.images().len(), sentences.sentences().len())?;
    let bundle = Bundle::load(&flags.model, &device)?;
    let mut extractor = extractor_of(&bundle)?
        .with_cache(&feature_cache()?)?
        .with_limits(flags.loading.limits())
        .with_progress(extraction(terminal));
    let extracted = extractor.images("target images", images.images())?;
    let table = extractor.sentences("target sentences", sentences.sentences())?;
    let of_images = embed_table(&extracted.table, bundle.device(), |items| bundle.encode_images(items))?;
    let of_sentences = embed_table(&table, bundle.device(), |items| bundle.encode_sentences(items))?;
    let kept: Vec<&ImageSource> = extracted.kept().filter_map(|place| images.images().get(place)).collect();
    let scores = similarity(&of_images, &of_sentences)?;
    let pairs = pairs(flags, &scores, &kept, sentences.sentences())?;
    write_lines(&flags.output, &pairs)?;
    if let Some(file) = &flags.html {
        let page = page::html(&pairs, &flags.model, &flags.loading.limits());
        write_atomically(file, page.as_bytes())
            .with_context(|| format!("could not write `{}`", file.display()))?;
    }
    let mut skipped = extracted.skipped;
    skipped.extend(images.skipped().iter().chain(sentences.skipped()).cloned());
    tell_skipped(terminal, &skipped, None);
    tell(flags, &pairs, (kept.len(), sentences.sentences().len()), skipped.len())
}

/// Whether a text is what an earlier export wrote; without a pair it is empty.
fn is_list(text: &str) -> bool {
    let has_keys = |value: Value| ["image", "sentence", "confidence"].iter().all(|key| !value[key].is_null());
    text.lines().next().is_none_or(|line| serde_json::from_str(line).is_ok_and(has_keys))
}

/// Refuses sets whose scores would not fit into memory, before anything is encoded.
fn check_size(images: usize, sentences: usize) -> Result<(), CliError> {
    let scores = images.saturating_mul(sentences);
    if scores <= MOST_SCORES {
        return Ok(());
    }
    Err(CliError::Data {
        message: format!(
            "{images} images and {sentences} sentences: expected at most {} million scores, got {} million, for which matching needs \
             {} GB of memory or more",
            MOST_SCORES / 1_000_000,
            scores.div_ceil(1_000_000),
            scores.saturating_mul(BYTES_A_SCORE).div_ceil(1_000_000_000)
        ),
        hint: "give smaller sets, such as a part of the images at a time".into(),
    })
}

/// The matches, the surest first.
fn pairs<'a>(
    flags: &PairsExportFlags,
    scores: &Matrix,
    images: &[&'a ImageSource],
    sentences: &'a [String],
) -> anyhow::Result<Vec<Pair<'a>>> {
    let options =
        MiningOptions { matching: flags.matching.matching(), epsilon: flags.epsilon, dustbin: flags.dustbin };
    let nearest_image = nearest(&scores.transposed());
    let nearest_sentence = nearest(scores);
    let sentence_of = |row: usize| sentences.get(row).map(String::as_str);
    let of_match = |found: &Match| {
        let (best, share) = *found.partners.first()?;
        let alternative = |(sentence, own): &(usize, f32)| {
            // Shares are of what went to any sentence; the best one's confidence says of how much that was.
            Some(Alternative {
                sentence: sentence_of(*sentence)?,
                confidence: found.confidence * own / share,
            })
        };
        let source = images.get(found.image).copied()?;
        Some(Pair {
            image: source.to_string(),
            sentence: sentence_of(best)?,
            confidence: found.confidence,
            score: scores.get(found.image, best)?,
            mutual: nearest_sentence.get(found.image) == Some(&best)
                && nearest_image.get(best) == Some(&found.image),
            alternatives: found.partners.iter().skip(1).take(ALTERNATIVES).filter_map(alternative).collect(),
            source,
        })
    };
    let matches = match_sets(scores, &options)?;
    let mut pairs: Vec<Pair<'_>> = matches.rows().iter().filter_map(of_match).collect();
    pairs.retain(|pair| f64::from(pair.confidence) >= flags.min_confidence);
    pairs.sort_by(|a, b| b.confidence.total_cmp(&a.confidence).then_with(|| a.image.cmp(&b.image)));
    Ok(pairs)
}

/// The column of each row's best score.
fn nearest(scores: &Matrix) -> Vec<usize> {
    let best = |row: &[f32]| {
        let better = |best: (usize, f32), next: (usize, f32)| if next.1 > best.1 { next } else { best };
        row.iter().copied().enumerate().reduce(better).map_or(0, |(place, _)| place)
    };
    scores.iter_rows().map(best).collect()
}

fn write_lines(file: &Path, pairs: &[Pair<'_>]) -> anyhow::Result<()> {
    let mut lines = Vec::new();
    for pair in pairs {
        serde_json::to_writer(&mut lines, pair)?;
        lines.write_all(b"\n")?;
    }
    write_atomically(file, &lines).with_context(|| format!("could not write `{}`", file.display()))
}

fn tell(
    flags: &PairsExportFlags,
    pairs: &[Pair<'_>],
    (images, sentences): (usize, usize),
    skipped: usize,
) -> anyhow::Result<()> {
    let sum: f64 = pairs.iter().map(|pair| f64::from(pair.confidence)).sum();
    let summary = Summary {
        output: &flags.output,
        html: flags.html.as_deref(),
        images,
        sentences,
        pairs: pairs.len(),
        mutual: pairs.iter().filter(|pair| pair.mutual).count(),
        mean_confidence: sum / pairs.len().max(1) as f64,
        skipped,
    };
    if flags.json {
        return print_json(&summary);
    }
    let page = flags.html.as_ref().map_or_else(String::new, |file| format!("page    {}\n", file.display()));
    print(&format!(
        "pairs   {output}\n{page}images  {images}, sentences {sentences}\nmatched {count}, {mutual} of them each other's nearest; mean confidence {mean:.2}\n",
        output = flags.output.display(),
        count = summary.pairs,
        mutual = summary.mutual,
        mean = summary.mean_confidence,
    ))
}

/// A picture small enough for a page of hundreds.
fn thumbnail(source: &ImageSource, limits: &ImageLimits) -> Option<Vec<u8>> {
    /// Of the longer side.
    const PIXELS: u32 = 96;
    let image = source.decode(limits).ok()?.image.thumbnail(PIXELS, PIXELS);
    let mut bytes = std::io::Cursor::new(Vec::new());
    image.to_rgb8().write_to(&mut bytes, image::ImageFormat::Jpeg).ok()?;
    Some(bytes.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_too_large_to_match_are_refused_with_what_they_would_need() {
        assert!(check_size(20_000, 20_000).is_ok());
        let told = check_size(20_001, 100_000).unwrap_err().to_string();
        assert!(told.contains("400 million scores, got 2001 million") && told.contains("17 GB"), "{told}");
        assert!(check_size(usize::MAX, 2).is_err());
    }
}
