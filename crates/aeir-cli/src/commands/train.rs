//! `aeir train`.

use std::fs;
use std::path::Path;

use aeir_data::{ParallelDomain, Skipped, TargetImages, TargetSentences, write_skipped};
use aeir_encoders::bundle::{BackbonePlacement, BundleParts, save};
use aeir_encoders::write_atomically;
use aeir_train::config::Selection;
use aeir_train::features::FeatureExtractor;
use aeir_train::run::{CONFIG_FILE, Existing, Opened, RunFolder, SKIPPED_FILE};
use aeir_train::{MethodName, TrainConfig, Trained, TrainingData, train};
use anyhow::Context;

use super::{print, tell_skipped};
use crate::backbones::Backbones;
use crate::failure::CliError;
use crate::flags::TrainFlags;
use crate::place::feature_cache;
use crate::progress::{TrainingBar, extraction};
use crate::terminal::Terminal;

/// Trains a model into the output folder.
pub(crate) fn run(flags: &TrainFlags, terminal: &Terminal) -> anyhow::Result<()> {
    let config = flags.apply(read_config(flags.config.as_deref())?);
    config.check()?;
    let device = flags.device.device.open(terminal)?;
    let inputs = Inputs::read(flags, &config)?;

    let backbones = Backbones::load(&flags.image_encoder, &flags.text_encoder, &device)?;
    let existing = match (flags.overwrite, flags.resume) {
        (true, _) => Existing::Overwrite,
        (false, Some(_)) => Existing::Resume,
        (false, None) => Existing::Refuse,
    };
    let run = match RunFolder::open(&flags.output, existing)? {
        Opened::Ready(run) => run,
        Opened::Finished => {
            terminal.note(&format!("`{}` holds a finished run: nothing to do", flags.output.display()));
            return Ok(());
        }
    };
    if !run.resumes() || !run.path().join(CONFIG_FILE).exists() {
        // Says at once what this folder is. A resumed run keeps its own until it is known to be the same.
        run.write_config(&config)?;
    }
    let (data, skipped) = inputs.encode(&backbones, terminal)?;
    write_skipped(&run.path().join(SKIPPED_FILE), &skipped)?;

    let mut bar = TrainingBar::new(terminal, &format!("training {}", config.method.as_str()));
    let trained = train(&config, &data, Some(&run), &device, &mut bar)?;
    write_card(run.path(), &config, &data, &trained)?;
    save_bundle(run.path(), &config, &trained, &backbones, BackbonePlacement::Copied)?;

    tell_skipped(terminal, &skipped, Some(&run.path().join(SKIPPED_FILE)));
    print(&summary(run.path(), &config, &trained))
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
struct Inputs {
    sources: Vec<ParallelDomain>,
    target: Option<(TargetImages, TargetSentences)>,
}

impl Inputs {
    fn read(flags: &TrainFlags, config: &TrainConfig) -> anyhow::Result<Self> {
        let target = match (&flags.target_images, &flags.target_sentences) {
            (Some(images), Some(sentences)) => Some((images, sentences)),
            (None, None) => {
                let reason = match (config.method, config.standardise) {
                    (MethodName::Aeir, _) => "method `aeir` adapts to a target",
                    (_, true) => "--standardise takes the target's statistics",
                    (MethodName::SourceOnly, false) => "",
                };
                if !reason.is_empty() {
                    return Err(CliError::Usage {
                        message: format!("{reason}: --target-images and --target-sentences are missing"),
                        hint: "add both, or train on the source alone with --method source-only".into(),
                    }
                    .into());
                }
                None
            }
            (images, _) => {
                let (given, missing) = match images {
                    Some(_) => ("--target-images", "--target-sentences"),
                    None => ("--target-sentences", "--target-images"),
                };
                return Err(CliError::Usage {
                    message: format!("{given} is given without {missing}"),
                    hint: "the target domain needs both sets; which sentence belongs to which image need not be known"
                        .into(),
                }
                .into());
            }
        };
        let sources = flags.source.iter().map(|file| ParallelDomain::read(file)).collect::<Result<_, _>>()?;
        let target = match target {
            Some((images, sentences)) => {
                Some((TargetImages::read(images)?, TargetSentences::read(sentences)?))
            }
            None => None,
        };
        Ok(Self { sources, target })
    }

    fn encode(
        self,
        backbones: &Backbones,
        terminal: &Terminal,
    ) -> anyhow::Result<(TrainingData, Vec<Skipped>)> {
        let mut extractor = FeatureExtractor::new(backbones.image.as_ref(), backbones.sentence.as_ref())
            .with_cache(&feature_cache()?)?
            .with_progress(extraction(terminal));
        let (mut sources, mut skipped) = (Vec::new(), Vec::new());
        for domain in &self.sources {
            skipped.extend(domain.skipped.iter().cloned());
            let (source, more) = extractor.source(domain)?;
            sources.push(source);
            skipped.extend(more);
        }
        let target = match &self.target {
            Some((images, sentences)) => {
                skipped.extend(images.skipped().iter().chain(sentences.skipped()).cloned());
                let (target, more) = extractor.target(images, sentences)?;
                skipped.extend(more);
                Some(target)
            }
            None => None,
        };
        Ok((TrainingData { sources, target }, skipped))
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
            image_backbone: backbones.image.as_ref(),
            sentence_backbone: backbones.sentence.as_ref(),
            backbones: placement,
        },
    )?;
    Ok(())
}

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
    let statistics = if config.standardise {
        "each domain's own; new items get the target's"
    } else {
        "the source's, for all domains"
    };
    let card = format!(
        "# An aeir model\n\n\
         Finds images by sentence and sentences by image. Trained with aeir {version}, method `{method}`, seed {seed}.\n\n\
         ## Data\n\n{sources}{target}\n\
         ## Training\n\n\
         - {epochs} epochs; the model is that of epoch {epoch}{chosen}\n\
         - feature statistics: {statistics}\n\
         - all settings: `config.toml`; losses by epoch: `metrics.jsonl`; left-out items: `skipped.jsonl`\n\n\
         ## Use\n\n\
         ```text\n\
         aeir eval   --model THIS_FOLDER --data test.jsonl\n\
         aeir index  --model THIS_FOLDER --images photos --output my-index\n\
         aeir search --index my-index \"a sentence\"\n\
         ```\n\n\
         ## Licence\n\n\
         The frozen encoders under `encoders/` keep their own licences; the trained weights follow the data they were \
         trained on.\n",
        version = env!("CARGO_PKG_VERSION"),
        method = config.method.as_str(),
        seed = config.seed,
        epochs = config.epochs,
        epoch = trained.epoch,
        chosen = chosen_by(config, trained),
    );
    let file = folder.join("README.md");
    write_atomically(&file, card.as_bytes()).with_context(|| format!("could not write `{}`", file.display()))
}

/// Why the chosen epoch was chosen; nothing where it is simply the last.
fn chosen_by(config: &TrainConfig, trained: &Trained) -> String {
    match (config.selection, trained.score) {
        (Selection::SourceValidation, Some(rsum)) => {
            format!(", the best on source validation (rSum {rsum:.1})")
        }
        (Selection::TargetSimilarity, Some(similarity)) => {
            format!(", the best by mutual similarity of the unpaired target sets ({similarity:.4})")
        }
        (Selection::Last, _) | (_, None) => String::new(),
    }
}

fn summary(folder: &Path, config: &TrainConfig, trained: &Trained) -> String {
    let epoch = format!("{} of {}{}", trained.epoch, config.epochs, chosen_by(config, trained));
    let standardised = if config.standardise { ", standardised per domain" } else { "" };
    format!(
        "model   {folder}\nmethod  {method}{standardised}, seed {seed}\nepoch   {epoch}\nnext    aeir index --model {folder} --images PHOTOS --output INDEX\n",
        folder = folder.display(),
        method = config.method.as_str(),
        seed = config.seed,
    )
}
