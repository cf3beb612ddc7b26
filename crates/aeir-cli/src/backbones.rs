//! The encoders that a user names by folder or id, and what a model makes of images and sentences with them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use aeir_encoders::hub::{Hub, ModelId};
use aeir_encoders::{
    Bundle, ImageBackbone, ImageInput, SentenceInput, TextBackbone, Vocabulary, load_image_backbone,
    load_text_backbone,
};
use aeir_train::TunedEncoder;
use aeir_train::features::{FeatureExtractor, ImageEncoder, SentenceEncoder};
use candle_core::Device;

use crate::failure::CliError;
use crate::place::{cache_folder, hub_config};
use crate::terminal::Terminal;

/// What `--text-encoder` says for a vocabulary and a recurrent network that are trained.
pub(crate) const WORDS: &str = "words";

/// The encoders of a run.
pub(crate) struct Backbones {
    /// None where images come as region features.
    pub(crate) image: Option<Box<dyn ImageBackbone>>,
    pub(crate) sentence: Sentences,
    /// Whether the head needs grid cells and tokens.
    pub(crate) fragments: bool,
    /// Those of them that are trained: of images, of sentences.
    pub(crate) tuned: [Option<Arc<TunedEncoder>>; 2],
}

/// What becomes of sentences.
pub(crate) enum Sentences {
    Backbone(Box<dyn TextBackbone>),
    Words(Box<Vocabulary>),
}

impl Backbones {
    /// Loads both frozen encoders, each from a folder or by id.
    pub(crate) fn load(
        image: &str,
        sentence: &str,
        device: &Device,
        terminal: &Terminal,
    ) -> anyhow::Result<Self> {
        Ok(Self {
            image: Some(load_image(image, device, terminal)?),
            sentence: Sentences::Backbone(load_sentence(sentence, device, terminal)?),
            fragments: false,
            tuned: [None, None],
        })
    }

    /// Puts trained encoders, as they are now, in the place of the frozen ones: written below `folder` and loaded again.
    pub(crate) fn take_tuned(&mut self, folder: &Path, device: &Device) -> anyhow::Result<()> {
        let [images, sentences] = &self.tuned;
        if let Some(encoder) = images {
            let folder = folder.join("image");
            encoder.save(&folder)?;
            self.image = Some(load_image_backbone(&folder, device)?);
        }
        if let Some(encoder) = sentences {
            let folder = folder.join("sentence");
            encoder.save(&folder)?;
            self.sentence = Sentences::Backbone(load_text_backbone(&folder, device)?);
        }
        Ok(())
    }

    pub(crate) fn sentence_backbone(&self) -> Option<&dyn TextBackbone> {
        match &self.sentence {
            Sentences::Backbone(backbone) => Some(backbone.as_ref()),
            Sentences::Words(_) => None,
        }
    }

    pub(crate) fn vocabulary(&self) -> Option<&Vocabulary> {
        match &self.sentence {
            Sentences::Backbone(_) => None,
            Sentences::Words(vocabulary) => Some(vocabulary),
        }
    }

    /// Encodes as the head needs it.
    pub(crate) fn extractor(&self) -> FeatureExtractor<'_> {
        let image = match (self.image.as_deref(), self.fragments) {
            (None, _) => ImageEncoder::Regions,
            (Some(backbone), false) => ImageEncoder::Pooled(backbone),
            (Some(backbone), true) => ImageEncoder::Fragments(backbone),
        };
        let sentence = match (&self.sentence, self.fragments) {
            (Sentences::Words(vocabulary), _) => SentenceEncoder::Words(vocabulary),
            (Sentences::Backbone(backbone), false) => SentenceEncoder::Pooled(backbone.as_ref()),
            (Sentences::Backbone(backbone), true) => SentenceEncoder::Fragments(backbone.as_ref()),
        };
        let [images, sentences] = self.tuned.clone();
        FeatureExtractor::new(image, sentence).with_tuned(images, sentences)
    }
}

/// The frozen image encoder that `--image-encoder` names.
pub(crate) fn load_image(
    name: &str,
    device: &Device,
    terminal: &Terminal,
) -> anyhow::Result<Box<dyn ImageBackbone>> {
    Ok(load_image_backbone(&find(name, "--image-encoder", terminal)?, device)?)
}

/// The frozen sentence encoder that `--text-encoder` names.
pub(crate) fn load_sentence(
    name: &str,
    device: &Device,
    terminal: &Terminal,
) -> anyhow::Result<Box<dyn TextBackbone>> {
    Ok(load_text_backbone(&find(name, "--text-encoder", terminal)?, device)?)
}

/// Encodes as a trained model needs it.
pub(crate) fn extractor_of(bundle: &Bundle) -> anyhow::Result<FeatureExtractor<'_>> {
    let config = &bundle.manifest().encoder;
    let image = match (bundle.image_backbone(), config.image_input) {
        (None, _) => ImageEncoder::Regions,
        (Some(backbone), ImageInput::Pooled) => ImageEncoder::Pooled(backbone),
        (Some(backbone), ImageInput::Fragments(_)) => ImageEncoder::Fragments(backbone),
    };
    let sentence = match (bundle.sentence_backbone(), bundle.vocabulary(), config.sentence_input) {
        (Some(backbone), _, SentenceInput::Pooled) => SentenceEncoder::Pooled(backbone),
        (Some(backbone), _, SentenceInput::Fragments) => SentenceEncoder::Fragments(backbone),
        (_, Some(vocabulary), SentenceInput::Words(_)) => SentenceEncoder::Words(vocabulary),
        _ => {
            return Err(CliError::Data {
                message: "the model lacks the encoder of its sentences".into(),
                hint: "train it again".into(),
            }
            .into());
        }
    };
    Ok(FeatureExtractor::new(image, sentence))
}

/// The folder of an encoder: as named; else of a plain name `backbones/NAME` in the cache, or `fixtures/backbones/NAME` in a folder
/// above the working folder or above the program, as in a checkout of this project; else of an id `org/name` in the hub's cache,
/// or fetched from the hub.
pub(crate) fn find(name: &str, flag: &str, terminal: &Terminal) -> anyhow::Result<PathBuf> {
    let as_named = Path::new(name);
    if as_named.is_dir() {
        return Ok(as_named.to_owned());
    }
    if let Ok(id) = name.parse::<ModelId>() {
        return from_hub(&id, terminal);
    }
    let cached = cache_folder()?.join("backbones").join(name);
    // A path that isn't there must not be found elsewhere.
    if as_named.components().count() != 1 {
        return Err(CliError::Missing {
            message: format!("no encoder `{name}`: no such folder"),
            hint: format!(
                "{flag} takes a folder with `config.json`, `model.safetensors` and, for text, `tokenizer.json`, or an id `org/name`"
            ),
        }
        .into());
    }
    let program = std::env::current_exe().ok();
    let above = [std::env::current_dir().ok(), program];
    let found = above
        .iter()
        .flatten()
        .flat_map(|start| start.ancestors())
        .map(|folder| folder.join("fixtures/backbones").join(name))
        .chain([cached.clone()])
        .find(|folder| folder.join("config.json").is_file());
    found.ok_or_else(|| {
        CliError::Missing {
            message: format!(
                "no encoder `{name}`: it is no folder, and neither `fixtures/backbones` nor the cache has it"
            ),
            hint: format!(
                "run in a checkout of aeir, put its files into `{}`, or give {flag} a folder that holds them",
                cached.display()
            ),
        }
        .into()
    })
}

/// The folder of a model of the hub.
#[cfg(feature = "hub")]
fn from_hub(id: &ModelId, terminal: &Terminal) -> anyhow::Result<PathBuf> {
    let hub = Hub::new(hub_config()?);
    Ok(hub.fetch(id, &mut crate::progress::transfer(terminal, "fetching"))?)
}

/// The folder of a model of the hub, if it is in the cache: this build has no downloads.
#[cfg(not(feature = "hub"))]
fn from_hub(id: &ModelId, _terminal: &Terminal) -> anyhow::Result<PathBuf> {
    Ok(Hub::new(hub_config()?).cached(id)?)
}
