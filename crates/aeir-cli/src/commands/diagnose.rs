//! `aeir diagnose`: how far the domains are apart, and whether adaptation can help.

mod measure;
mod page;
mod plots;
mod table;
mod verdict;

use aeir_data::{ImageSource, ParallelDomain, ShuffledSampler, Skipped, TargetImages, TargetSentences};
use aeir_encoders::{Bundle, write_atomically};
use aeir_train::features::FeatureExtractor;
use aeir_train::joint_space::JointSpace;
use aeir_train::{TargetData, TrainingData};
use anyhow::Context;

use self::measure::{Names, Request};
use super::{print, print_json, tell_skipped};
use crate::backbones::{Backbones, Sentences, extractor_of, load_image, load_sentence};
use crate::failure::CliError;
use crate::flags::diagnose::DiagnoseFlags;
use crate::output_file;
use crate::place::feature_cache;
use crate::progress::{TrainingBar, extraction};
use crate::report::is_ours;
use crate::terminal::Terminal;

/// Towers that are trained where no model is given: several, so that what they agree on stands out.
const TOWERS: u64 = 3;
/// Passes over the source pairs for each.
const TOWER_EPOCHS: usize = 20;
/// Of source data without a validation split every so many-th image is held out.
const HELD_OUT_OF: usize = 10;
/// Sets of fewer items say nothing.
pub(crate) const FEWEST: usize = 20;

/// Measures the domains against each other and says what to do.
pub(crate) fn run(flags: &DiagnoseFlags, terminal: &Terminal) -> anyhow::Result<()> {
    if let Some(page) = &flags.output {
        output_file::check(page, "a page of ours", is_ours)?;
    }
    let device = flags.device.device.open(terminal)?;
    let inputs = Inputs::read(flags, terminal)?;
    let cache = feature_cache()?;
    let limits = flags.loading.limits();
    let prepare = |extractor: FeatureExtractor<'_>| -> anyhow::Result<(TrainingData, Inputs)> {
        let mut extractor =
            extractor.with_cache(&cache)?.with_limits(limits).with_progress(extraction(terminal));
        inputs.encode(&mut extractor)
    };
    let (data, inputs, space, joint) = match &flags.model {
        Some(model) => {
            let bundle = Bundle::load(model, &device)?;
            if bundle.encoder().config().head_only {
                terminal.warn(
                    "this model was trained for its head alone: what is said of the joint space is said of pooled vectors that \
                     nothing trained",
                );
            }
            let (data, inputs) = prepare(extractor_of(&bundle)?)?;
            let space = JointSpace::of_bundle(&bundle, &data)?;
            (data, inputs, space, format!("the model in `{}`", model.display()))
        }
        None => {
            let backbones = inputs.backbones(flags, &device, terminal)?;
            let (data, inputs) = prepare(backbones.extractor())?;
            let mut bar = TrainingBar::new(terminal, "towers on the source");
            let space = JointSpace::of_source_towers(&data, TOWERS, TOWER_EPOCHS, &device, &mut bar)?;
            (data, inputs, space, format!("{TOWERS} linear towers trained on the source"))
        }
    };
    tell_skipped(terminal, &inputs.skipped, None);
    let names = Names { images: inputs.target_images, sentences: inputs.target_sentences };
    let request = Request { data: &data, space: &space, joint, names: &names, seed: flags.seed };
    let diagnosis = measure::diagnose(&request)?;
    if let Some(file) = &flags.output {
        let page = page::html(&diagnosis, &space, &names, &limits)?;
        write_atomically(file, page.as_bytes())
            .with_context(|| format!("could not write `{}`", file.display()))?;
    }
    if flags.json {
        return print_json(&diagnosis);
    }
    let mut text = table::text(&diagnosis);
    if let Some(file) = &flags.output {
        text.push_str(&format!("\npage    {}\n", file.display()));
    }
    print(&text)
}

/// What the flags name, sampled, not decoded.
struct Inputs {
    sources: Vec<ParallelDomain>,
    target_images: Vec<ImageSource>,
    target_sentences: Vec<String>,
    skipped: Vec<Skipped>,
}

impl Inputs {
    fn read(flags: &DiagnoseFlags, terminal: &Terminal) -> anyhow::Result<Self> {
        let options = flags.reading.options();
        let mut sources: Vec<ParallelDomain> = flags
            .source
            .iter()
            .map(|path| ParallelDomain::read_with(path, &options))
            .collect::<Result<_, _>>()?;
        let images = TargetImages::read_with(&flags.target_images, &options)?;
        let sentences = TargetSentences::read_with(&flags.target_sentences, &options)?;
        let notes =
            sources.iter().flat_map(|source| &source.notes).chain(images.notes()).chain(sentences.notes());
        notes.for_each(|note| terminal.warn(note));
        let mut skipped: Vec<Skipped> =
            sources.iter().flat_map(|source| &source.skipped).chain(images.skipped()).cloned().collect();
        skipped.extend(sentences.skipped().iter().cloned());
        let train = sources.iter().map(|source| source.train.len()).sum();
        check_counts(
            (!sources.is_empty()).then_some(train),
            images.images().len(),
            sentences.sentences().len(),
        )?;
        let (of_sources, seed) = (flags.sample.div_ceil(sources.len().max(1)), flags.seed);
        for (stream, source) in sources.iter_mut().enumerate() {
            hold_out(source);
            source.train = sampled(&source.train, of_sources, seed, 16 + stream as u64);
            source.validation = sampled(&source.validation, of_sources, seed, 1024 + stream as u64);
        }
        Ok(Self {
            target_images: sampled(images.images(), flags.sample, seed, 0),
            target_sentences: sampled(sentences.sentences(), flags.sample, seed, 1),
            sources,
            skipped,
        })
    }

    fn backbones(
        &self,
        flags: &DiagnoseFlags,
        device: &candle_core::Device,
        terminal: &Terminal,
    ) -> anyhow::Result<Backbones> {
        let regions = self.target_images.first().is_some_and(|image| image.features().is_some());
        let of = |name: &Option<String>, variable: &str, default: &str| {
            name.clone().or_else(|| std::env::var(variable).ok()).unwrap_or_else(|| default.to_owned())
        };
        let image = of(&flags.image_encoder, "AEIR_IMAGE_ENCODER", "efficientnet-lite0");
        let text = of(&flags.text_encoder, "AEIR_TEXT_ENCODER", "static-minilm");
        Ok(Backbones {
            image: if regions { None } else { Some(load_image(&image, device, terminal)?) },
            sentence: Sentences::Backbone(load_sentence(&text, device, terminal)?),
            fragments: false,
            tuned: [None, None],
        })
    }

    /// Features of everything, and the inputs that have some.
    fn encode(&self, extractor: &mut FeatureExtractor<'_>) -> anyhow::Result<(TrainingData, Self)> {
        let (mut sources, mut skipped) = (Vec::new(), self.skipped.clone());
        for domain in &self.sources {
            let (source, more) = extractor.source(domain)?;
            sources.push(source);
            skipped.extend(more);
        }
        let extracted = extractor.images("target images", &self.target_images)?;
        let kept = extracted.kept().filter_map(|index| self.target_images.get(index)).cloned().collect();
        let sentences = extractor.sentences("target sentences", &self.target_sentences)?;
        skipped.extend(extracted.skipped);
        // Once more: damaged images are only found by decoding.
        let train = sources.iter().map(|source| source.images.len()).sum();
        let train = (!sources.is_empty()).then_some(train);
        check_counts(train, extracted.table.len(), sentences.len())?;
        let target = TargetData { images: extracted.table, sentences };
        let inputs = Self {
            sources: Vec::new(),
            target_images: kept,
            target_sentences: self.target_sentences.clone(),
            skipped,
        };
        Ok((TrainingData { sources, target: Some(target), labelled: None }, inputs))
    }
}

/// Refuses sets that are too small to be compared; the source may be none at all.
fn check_counts(source: Option<usize>, images: usize, sentences: usize) -> Result<(), CliError> {
    let target = [("target images", images), ("target sentences", sentences)];
    let mut counts = source.map(|count| ("source images", count)).into_iter().chain(target);
    match counts.find(|(_, count)| *count < FEWEST) {
        None => Ok(()),
        Some((what, count)) => Err(CliError::Data {
            message: format!("{what}: expected {FEWEST} or more to compare domains, got {count}"),
            hint: "with so few items every figure is chance".into(),
        }),
    }
}

/// Without a validation split, some training images are one, where enough are left.
fn hold_out(source: &mut ParallelDomain) {
    let held_out = source.train.len().div_ceil(HELD_OUT_OF);
    if !source.validation.is_empty() || source.train.len() < FEWEST + held_out {
        return;
    }
    let (held_out, train) =
        (source.train.drain(..).enumerate()).partition::<Vec<_>, _>(|(i, _)| i % HELD_OUT_OF == 0);
    source.train = train.into_iter().map(|(_, item)| item).collect();
    source.validation = held_out.into_iter().map(|(_, item)| item).collect();
}

/// At most `most` items, always the same, in their order.
fn sampled<T: Clone>(items: &[T], most: usize, seed: u64, stream: u64) -> Vec<T> {
    if items.len() <= most {
        return items.to_vec();
    }
    let order = ShuffledSampler::new(items.len(), seed, stream).epoch_order(0);
    let mut chosen: Vec<usize> = order.iter().take(most).copied().collect();
    chosen.sort_unstable();
    chosen.into_iter().filter_map(|index| items.get(index)).cloned().collect()
}
