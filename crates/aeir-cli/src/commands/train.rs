//! `aeir train`.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use aeir_data::{
    FeatureRow, ImageLimits, ImageSource, LabelledPairs, ParallelDomain, Skipped, TargetImages,
    TargetSentences, write_skipped,
};
use aeir_encoders::bundle::{BackbonePlacement, BundleParts, save};
use aeir_encoders::{DEFAULT_MINIMUM_COUNT, Vocabulary, write_atomically};
use aeir_train::config::{Selection, Standardise, TowerStart, Tuning};
use aeir_train::observer::All;
use aeir_train::plan::Sizes;
use aeir_train::run::{Existing, Opened, RunFolder, SKIPPED_FILE, settings_that_differ};
use aeir_train::{MethodName, Recorder, TrainConfig, Trained, TrainingData, TunedEncoder, train};
use anyhow::Context;
use candle_core::Device;

use super::dry_run::dry_run;
use super::{pretrained, print, tell_skipped};
use crate::backbones::{Backbones, Sentences, WORDS, find, load_image, load_sentence};
use crate::failure::CliError;
use crate::flags::TrainFlags;
use crate::interrupt::Interrupt;
use crate::labelled;
use crate::place::feature_cache;
use crate::progress::{TrainingBar, extraction};
use crate::run_files;
use crate::terminal::Terminal;

/// Holds trained encoders until the model has a copy of them.
const TUNED_FOLDER: &str = ".encoders.tmp";

/// Trains a model into the output folder.
pub(crate) fn run(flags: &TrainFlags, terminal: &Terminal) -> anyhow::Result<()> {
    let settings = read_config(flags.config.as_deref())?.with(&flags.set)?;
    warn_of_idle(flags, &settings, terminal)?;
    let settings = pretrained::begun(flags, flags.apply(settings), terminal)?;
    let mut config = settings.resolved()?;
    pretrained::check(flags, &config)?;
    let Some(output) = flags.output.as_deref().filter(|_| !flags.dry_run) else {
        return dry_run(flags, &config, terminal);
    };
    let device = flags.device.device.open(terminal)?;
    let inputs = Inputs::read(flags, &config)?;

    let mut backbones = inputs.backbones(flags, &config, terminal, &device)?;
    pretrained::fit(&mut config, &backbones);
    let existing = match (flags.overwrite, flags.resume) {
        (true, _) => Existing::Overwrite,
        (false, Some(_)) => Existing::Resume,
        (false, None) => Existing::Refuse,
    };
    let run = match RunFolder::open(output, existing)? {
        Opened::Ready(run) => run,
        Opened::Finished => {
            terminal.note(&format!("`{}` holds a finished run: nothing to do", output.display()));
            if let Some(differences) = settings_that_differ(output, &config)? {
                terminal.warn(&format!("it was trained with {differences}"));
            }
            return Ok(());
        }
    };
    if run.resumes() {
        run.check_config(&config)?;
    }
    // Says at once what this folder is.
    run.write_config(&config)?;
    let labelled = inputs.labelled.clone();
    let (data, skipped) =
        inputs.encode(&backbones, flags.loading.limits(), Some(&feature_cache()?), terminal)?;
    write_skipped(&run.path().join(SKIPPED_FILE), &skipped)?;
    if let Some(pairs) = &labelled {
        labelled::remember(run.path(), pairs)?;
    }

    let interrupt = Interrupt::listen()?;
    let name = format!("training {}", config.method.as_str());
    let mut bar = TrainingBar::new(terminal, &name).stopping_at(&interrupt);
    let mut recorder = Recorder::new(&run);
    let trained = train(&config, &data, Some(&run), &device, &mut All(vec![&mut bar, &mut recorder]))?;
    if let Err(error) = recorder.finish() {
        terminal.warn(&format!("what was recorded beside the metrics is not whole: {error}"));
    }
    run_files::finish(run.path(), &config, &trained)?;
    let tuned = run.path().join(TUNED_FOLDER);
    backbones.take_tuned(&tuned, &device)?;
    write_card(run.path(), &config, &data, &trained)?;
    save_bundle(run.path(), &config, &trained, &backbones, BackbonePlacement::Copied)?;
    if tuned.exists() {
        fs::remove_dir_all(&tuned).with_context(|| format!("could not remove `{}`", tuned.display()))?;
    }

    tell_skipped(terminal, &skipped, Some(&run.path().join(SKIPPED_FILE)));
    print(&summary(run.path(), &config, &data, &trained))
}

/// Says which flags and settings change nothing: they belong to another method.
fn warn_of_idle(flags: &TrainFlags, settings: &TrainConfig, terminal: &Terminal) -> anyhow::Result<()> {
    let method = flags.apply(settings.clone()).method;
    let told = |what: &str| terminal.warn(&format!("{what} has no effect with method `{}`", method.as_str()));
    let of_aeir = [
        ("--fidelity", flags.fidelity.is_some()),
        ("--semantic-weight", flags.semantic_weight.is_some()),
        ("--structure-weight", flags.structure_weight.is_some()),
        ("--adversary", flags.adversary.is_some()),
    ];
    of_aeir.iter().filter(|(_, given)| *given && method != MethodName::Aeir).for_each(|(flag, _)| told(flag));
    let settings = TrainConfig { method, ..settings.clone() };
    settings.without_effect()?.iter().for_each(|key| told(&format!("setting `{key}`")));
    Ok(())
}

/// The settings file, or the defaults.
pub(crate) fn read_config(file: Option<&Path>) -> anyhow::Result<TrainConfig> {
    let Some(file) = file else { return Ok(TrainConfig::default()) };
    let text = fs::read_to_string(file).map_err(|error| CliError::Usage {
        message: format!("could not read the configuration `{}`: {error}", file.display()),
        hint: String::new(),
    })?;
    Ok(TrainConfig::from_toml(&text, &file.display().to_string())?)
}

/// What the flags name, read but not decoded.
pub(super) struct Inputs {
    sources: Vec<ParallelDomain>,
    target: Option<(TargetImages, TargetSentences)>,
    /// A few pairs of the target, those to learn from.
    labelled: Option<LabelledPairs>,
    /// Whether the images come as features.
    regions: bool,
}

impl Inputs {
    pub(super) fn read(flags: &TrainFlags, config: &TrainConfig) -> anyhow::Result<Self> {
        let target = target_files(flags, config)?;
        let options = flags.reading.options();
        let sources: Vec<ParallelDomain> = flags
            .source
            .iter()
            .map(|path| ParallelDomain::read_with(path, &options))
            .collect::<Result<_, _>>()?;
        let target = match target {
            Some((images, sentences)) => Some((
                TargetImages::read_with(images, &options)?,
                TargetSentences::read_with(sentences, &options)?,
            )),
            None => None,
        };
        let as_features = |source: &&ParallelDomain| {
            source.train.first().is_some_and(|item| item.image.features().is_some())
        };
        let regions = sources.iter().filter(as_features).count();
        if regions > 0 && regions < sources.len() {
            return Err(CliError::Usage {
                message: "some --source are folders of region features and some are not".into(),
                hint: "all sources must have the same kind of features".into(),
            }
            .into());
        }
        let target_regions = target.as_ref().is_some_and(|(images, _)| has_features(images.images()));
        let regions = if sources.is_empty() { target_regions } else { regions > 0 };
        if regions && flags.model.is_some() {
            return Err(CliError::Usage {
                message: "--model has an image encoder of its own, and the images come as features".into(),
                hint: "give image files".into(),
            }
            .into());
        }
        let labelled = match &flags.labelled {
            Some(path) => {
                config.check_labelled()?;
                Some(labelled::to_learn_from(path, &options)?)
            }
            None => None,
        };
        let inputs = Self { sources, target, labelled, regions };
        inputs.check_shapes()?;
        Ok(inputs)
    }

    /// Features of all domains go through one encoder.
    fn check_shapes(&self) -> anyhow::Result<()> {
        let of_sources =
            self.sources.iter().filter_map(|source| source.train.first()).map(|item| &item.image);
        let of_target = self.target.iter().filter_map(|(images, _)| images.images().first());
        let of_labelled = self.labelled.iter().filter_map(|pairs| pairs.learn().first());
        let of_target = of_target.chain(of_labelled.map(|item| &item.image));
        let mut features = of_sources.chain(of_target).filter_map(ImageSource::features);
        let Some(FeatureRow { features: first, .. }) = features.next() else { return Ok(()) };
        for row in features {
            row.features.check_shape(first)?;
        }
        Ok(())
    }

    /// Loads what images and sentences are encoded with; for words, collects the vocabulary from the training sentences.
    pub(super) fn backbones(
        &self,
        flags: &TrainFlags,
        config: &TrainConfig,
        terminal: &Terminal,
        device: &Device,
    ) -> anyhow::Result<Backbones> {
        let (image_encoder, text_encoder) = pretrained::encoders(flags);
        let image = if self.regions { None } else { Some(load_image(image_encoder, device, terminal)?) };
        let sentence = if text_encoder == WORDS {
            let vocabulary = Vocabulary::build(self.training_sentences().into_iter(), DEFAULT_MINIMUM_COUNT);
            terminal.note(&format!(
                "vocabulary of {} words that occur {DEFAULT_MINIMUM_COUNT} times or more",
                vocabulary.size()
            ));
            Sentences::Words(Box::new(vocabulary))
        } else {
            Sentences::Backbone(load_sentence(text_encoder, device, terminal)?)
        };
        let fragments = config.model.head.unwrap_or_default().is_cross_attentive();
        let tuned = self.tuned(flags, config, terminal, device)?;
        Ok(Backbones { image, sentence, fragments, tuned })
    }

    /// The pre-trained encoders that are trained as well.
    fn tuned(
        &self,
        flags: &TrainFlags,
        config: &TrainConfig,
        terminal: &Terminal,
        device: &Device,
    ) -> anyhow::Result<[Option<Arc<TunedEncoder>>; 2]> {
        let refuse = |key: &str, what: &str| CliError::Usage {
            message: format!("`{key}` asks to train an encoder, and {what}"),
            hint: "leave it `frozen`".into(),
        };
        let (image_encoder, text_encoder) = pretrained::encoders(flags);
        let (mut images, mut sentences) = (None, None);
        let settings = &config.model.image_backbone;
        if settings.train != Tuning::Frozen {
            if self.regions {
                return Err(refuse("model.image_backbone.train", "the images come as features").into());
            }
            let folder = find(image_encoder, "--image-encoder", terminal)?;
            let limits = flags.loading.limits();
            images = Some(TunedEncoder::images(&folder, device, settings, config.seed, limits)?);
        }
        let settings = &config.model.text_backbone;
        if settings.train != Tuning::Frozen {
            if text_encoder == WORDS {
                return Err(refuse("model.text_backbone.train", "words have an encoder of their own").into());
            }
            let folder = find(text_encoder, "--text-encoder", terminal)?;
            sentences = Some(TunedEncoder::sentences(&folder, device, settings, config.seed)?);
        }
        Ok([images.map(Arc::new), sentences.map(Arc::new)])
    }

    /// Of both domains; never validation or test sentences.
    fn training_sentences(&self) -> Vec<&str> {
        let source = self.sources.iter().flat_map(|source| &source.train).flat_map(|item| &item.captions);
        let target = self.target.iter().flat_map(|(_, sentences)| sentences.sentences());
        let labelled = self.labelled.iter().flat_map(LabelledPairs::learn).flat_map(|item| &item.captions);
        source.chain(target).chain(labelled).map(String::as_str).collect()
    }

    /// How many items there are.
    pub(super) fn sizes(&self) -> Sizes {
        Sizes {
            pairs: self.sources.iter().map(|source| source.train.len()).sum(),
            labelled: self.labelled.as_ref().map_or(0, |pairs| pairs.learn().len()),
            target: self
                .target
                .as_ref()
                .map(|(images, sentences)| [images.images().len(), sentences.sentences().len()]),
        }
    }

    /// The first `count` items of each kind, nothing for validation.
    pub(super) fn sample(mut self, count: usize) -> Self {
        for source in &mut self.sources {
            source.train.truncate(count);
            source.validation.clear();
        }
        self.target = self.target.map(|(images, sentences)| (images.first(count), sentences.first(count)));
        self.labelled = self.labelled.map(|pairs| pairs.first(count));
        self
    }

    pub(super) fn encode(
        self,
        backbones: &Backbones,
        limits: ImageLimits,
        cache: Option<&Path>,
        terminal: &Terminal,
    ) -> anyhow::Result<(TrainingData, Vec<Skipped>)> {
        let mut extractor = backbones.extractor();
        if let Some(cache) = cache {
            extractor = extractor.with_cache(cache)?;
        }
        let mut extractor = extractor.with_limits(limits).with_progress(extraction(terminal));
        let (mut data, mut skipped) =
            (TrainingData { sources: Vec::new(), target: None, labelled: None }, Vec::new());
        for domain in &self.sources {
            domain.notes.iter().for_each(|note| terminal.warn(note));
            skipped.extend(domain.skipped.iter().cloned());
            let (source, more) = extractor.source(domain)?;
            data.sources.push(source);
            skipped.extend(more);
        }
        if let Some((images, sentences)) = &self.target {
            images.notes().iter().chain(sentences.notes()).for_each(|note| terminal.warn(note));
            skipped.extend(images.skipped().iter().chain(sentences.skipped()).cloned());
            let (target, more) = extractor.target(images, sentences)?;
            data.target = Some(target);
            skipped.extend(more);
        }
        if let Some(pairs) = &self.labelled {
            pairs.notes().iter().for_each(|note| terminal.warn(note));
            skipped.extend(pairs.skipped().iter().cloned());
            labelled::tell(pairs, self.target.as_ref(), terminal);
            let (labelled, more) = extractor.labelled(pairs)?;
            data.labelled = Some(labelled);
            skipped.extend(more);
        }
        Ok((data, skipped))
    }
}

fn has_features(images: &[ImageSource]) -> bool {
    images.first().is_some_and(|image| image.features().is_some())
}

/// Whether the target flags are those that the settings need.
pub(crate) fn check_target_flags(flags: &TrainFlags, config: &TrainConfig) -> anyhow::Result<()> {
    target_files(flags, config).map(drop)
}

/// The two target flags: both, or none where none is needed.
fn target_files<'a>(
    flags: &'a TrainFlags,
    config: &TrainConfig,
) -> anyhow::Result<Option<(&'a Path, &'a Path)>> {
    match (&flags.target_images, &flags.target_sentences) {
        (Some(images), Some(sentences)) => Ok(Some((images, sentences))),
        (None, None) => {
            let reason = if config.method.adapts() {
                format!("method `{}` adapts to a target", config.method.as_str())
            } else if config.standardise.is_per_domain() {
                "--standardise takes the target's statistics".to_owned()
            } else {
                return Ok(None);
            };
            Err(CliError::Usage {
                message: format!("{reason}: --target-images and --target-sentences are missing"),
                hint: "add both, or train on the source alone with --method source-only".into(),
            }
            .into())
        }
        (images, _) => {
            let (given, missing) = match images {
                Some(_) => ("--target-images", "--target-sentences"),
                None => ("--target-sentences", "--target-images"),
            };
            Err(CliError::Usage {
                message: format!("{given} is given without {missing}"),
                hint: "the target domain needs both sets; which sentence belongs to which image need not be known"
                    .into(),
            }
            .into())
        }
    }
}

/// Writes the weights and the manifest that makes the folder a model.
pub(crate) fn save_bundle(
    folder: &Path,
    config: &TrainConfig,
    trained: &Trained,
    backbones: &Backbones,
    placement: BackbonePlacement<'_>,
) -> anyhow::Result<()> {
    save(
        folder,
        &BundleParts {
            method: config.method.as_str(),
            encoder: trained.encoder,
            parameters: &trained.parameters,
            standardisation: &trained.standardisation,
            image_backbone: backbones.image.as_deref(),
            sentence_backbone: backbones.sentence_backbone(),
            vocabulary: backbones.vocabulary(),
            backbones: placement,
        },
    )?;
    Ok(())
}

/// What Hugging Face reads from a card's head. The licence is that of encoders and data, which only the reader knows.
const CARD_HEAD: &str = "\
---
library_name: aeir
pipeline_tag: feature-extraction
license: other
license_name: of-the-encoders-and-the-training-data
tags:
- image-text-retrieval
- domain-adaptation
metrics:
- recall
---

";

/// The model card.
pub(crate) fn write_card(
    folder: &Path,
    config: &TrainConfig,
    data: &TrainingData,
    trained: &Trained,
) -> anyhow::Result<()> {
    let sources: String = data
        .sources
        .iter()
        .map(|source| {
            let held_out = source.validation.as_ref().map_or(0, |pairs| pairs.images.len());
            format!(
                "- source `{}`: {} images with {} sentences to train on, {held_out} images held out for validation\n",
                source.name,
                source.images.len(),
                source.sentences.len()
            )
        })
        .collect();
    let labelled = data.labelled.as_ref().map_or_else(String::new, |pairs| {
        format!(
            "- labelled pairs of the target: {} images with {} sentences, a share of every step (`labelled.jsonl`)\n",
            pairs.images.len(),
            pairs.sentences.len()
        )
    });
    let none = if data.sources.is_empty() { "- no source pairs\n" } else { "" };
    let target = data.target.as_ref().map_or_else(
        || "- no target domain was given\n".to_owned(),
        |target| {
            format!(
                "- target, unpaired: {} images, {} sentences\n",
                target.images.len(),
                target.sentences.len()
            )
        },
    );
    let statistics = statistics_told(config);
    let card = format!(
        "{CARD_HEAD}# An aeir model\n\n\
         Finds images by sentence and sentences by image. Trained with aeir {version}, method `{method}`, seed {seed}.\n\n\
         ## Data\n\n{sources}{none}{target}{labelled}\n\
         ## Training\n\n\
         - similarity head `{head}`\n\
         - {epochs} epochs; the model is that of epoch {epoch}{chosen}\n\
         - feature statistics: {statistics}\n\
         {distances}\
         - all settings: `config.toml`; losses by epoch: `metrics.jsonl`; left-out items: `skipped.jsonl`\n\n\
         ## Metrics\n\n{metrics}\n\
         ## Use\n\n\
         ```text\n\
         aeir eval   --model THIS_FOLDER --data test.jsonl\n\
         aeir index  --model THIS_FOLDER --images photos --output my-index\n\
         aeir search --index my-index \"a sentence\"\n\
         ```\n\n\
         ## Licence\n\n\
         The frozen encoders under `encoders/` keep their own licences; the trained weights follow the data they were \
         trained on.\n",
        metrics = metrics(trained),
        version = env!("CARGO_PKG_VERSION"),
        method = config.method.as_str(),
        seed = config.seed,
        head = config.model.head.unwrap_or_default().as_str(),
        distances = distances(trained).map_or_else(String::new, |text| format!("- {text}\n")),
        epochs = trained.history.len(),
        epoch = trained.epoch,
        chosen = chosen_by(config, trained),
    );
    let file = folder.join("README.md");
    write_atomically(&file, card.as_bytes()).with_context(|| format!("could not write `{}`", file.display()))
}

/// Whose statistics features are brought to one scale with.
fn statistics_told(config: &TrainConfig) -> &'static str {
    match (config.standardise, config.model.start) {
        (Standardise::Standardise, _) => "each domain's own; new items get the target's",
        (Standardise::Whiten, _) => "each domain's own, whitened; new items get the target's",
        (Standardise::None, TowerStart::Random) => "the source's, for all domains",
        (Standardise::None, TowerStart::ZeroShot) => "none: as the pre-trained model gives them",
    }
}

/// What was measured in training. Labels of the target play no part in it: how good the model is there, `eval` tells.
fn metrics(trained: &Trained) -> String {
    let chosen = trained.history.iter().find(|record| record.epoch == trained.epoch);
    let validation = chosen.and_then(|record| record.source_validation_rsum).map_or_else(
        || "- no pairs were held out on the source".to_owned(),
        |rsum| format!("- source validation: rSum {rsum:.1} (recall at 1, 5 and 10, both ways, in percent, added up; at most 600)"),
    );
    format!("{validation}\n- target: not measured in training; `aeir eval` does, with test pairs\n")
}

/// Why the chosen epoch was chosen; nothing where it is simply the last.
fn chosen_by(config: &TrainConfig, trained: &Trained) -> String {
    let Some(score) = trained.score else { return String::new() };
    let of_target = match config.selected_by() {
        Selection::Last => return String::new(),
        Selection::SourceValidation => return format!(", the best on source validation (rSum {score:.1})"),
        Selection::TargetSimilarity => "mutual similarity",
        Selection::TargetCycle => "cycle consistency",
        Selection::TargetEntropy => {
            let entropy = -score;
            return format!(", the surest retrieval between the unpaired target sets (entropy {entropy:.4})");
        }
        Selection::TargetDiversity => "diversity of the retrieval posterior",
        Selection::TargetInformation => "information of the retrieval posterior",
    };
    format!(", the best by {of_target} of the unpaired target sets ({score:.4})")
}

/// How far apart the domains are, before the adaptation and after it.
fn distances(trained: &Trained) -> Option<String> {
    let measured: Vec<_> = trained.history.iter().filter_map(|record| record.domain_distances).collect();
    let (first, last) = (measured.first()?, measured.last()?);
    let change = |before: f64, after: f64| match measured.len() {
        1 => format!("{after:.2}"),
        _ => format!("{before:.2} before the adaptation, {after:.2} after it"),
    };
    Some(format!(
        "proxy A-distance of source and target (0: alike, 2: always told apart): images {}; sentences {}",
        change(first.images, last.images),
        change(first.sentences, last.sentences)
    ))
}

fn summary(folder: &Path, config: &TrainConfig, data: &TrainingData, trained: &Trained) -> String {
    let epoch = format!("{} of {}{}", trained.epoch, trained.history.len(), chosen_by(config, trained));
    let standardised = match config.standardise {
        Standardise::None => "",
        Standardise::Standardise => ", standardised per domain",
        Standardise::Whiten => ", whitened per domain",
    };
    let head = config.model.head.unwrap_or_default();
    let head = if head.is_cross_attentive() { format!(", head {}", head.as_str()) } else { String::new() };
    let labelled = data.labelled.as_ref().map_or_else(String::new, |pairs| {
        format!("learned from {} labelled pairs of the target\n", pairs.images.len())
    });
    let domains = distances(trained).map_or_else(String::new, |text| format!("domains {text}\n"));
    format!(
        "model   {folder}\nmethod  {method}{head}{standardised}, seed {seed}\n{labelled}epoch   {epoch}\n{domains}next    aeir index --model {folder} --images PHOTOS --output INDEX\n",
        folder = folder.display(),
        method = config.method.as_str(),
        seed = config.seed,
    )
}
