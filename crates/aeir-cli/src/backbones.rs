//! Finding the frozen encoders that a user names by folder or id.

use std::path::{Path, PathBuf};

use aeir_encoders::{ImageBackbone, TextBackbone, load_image_backbone, load_text_backbone};
use candle_core::Device;

use crate::failure::CliError;
use crate::place::cache_folder;

/// Both frozen encoders.
pub(crate) struct Backbones {
    pub(crate) image: Box<dyn ImageBackbone>,
    pub(crate) sentence: Box<dyn TextBackbone>,
}

impl Backbones {
    /// Loads both, each from a folder or by id.
    pub(crate) fn load(image: &str, sentence: &str, device: &Device) -> anyhow::Result<Self> {
        let image = load_image_backbone(&find(image, "--image-encoder")?, device)?;
        let sentence = load_text_backbone(&find(sentence, "--text-encoder")?, device)?;
        Ok(Self { image, sentence })
    }
}

/// The folder of an encoder: as named, else `backbones/ID` in the cache, else `fixtures/backbones/ID` in a folder
/// above the working folder or above the program, as in a checkout of this project.
fn find(name: &str, flag: &str) -> anyhow::Result<PathBuf> {
    let as_named = Path::new(name);
    if as_named.is_dir() {
        return Ok(as_named.to_owned());
    }
    let cached = cache_folder()?.join("backbones").join(name);
    // An id is a plain name: a path that isn't there must not be found elsewhere.
    let plain = as_named.components().count() == 1;
    if plain {
        let program = std::env::current_exe().ok();
        let above = [std::env::current_dir().ok(), program];
        let found = above
            .iter()
            .flatten()
            .flat_map(|start| start.ancestors())
            .map(|folder| folder.join("fixtures/backbones").join(name))
            .chain([cached.clone()])
            .find(|folder| folder.join("config.json").is_file());
        if let Some(found) = found {
            return Ok(found);
        }
    }
    if !plain {
        return Err(CliError::Missing {
            message: format!("no encoder `{name}`: no such folder"),
            hint: format!("{flag} takes a folder with `config.json`, `model.safetensors` and, for text, `tokenizer.json`"),
        }
        .into());
    }
    Err(CliError::Missing {
        message: format!(
            "no encoder `{name}`: it is no folder, and neither `fixtures/backbones` nor the cache has it"
        ),
        hint: format!(
            "run in a checkout of aeir, put its files into `{}`, or give {flag} a folder that holds them",
            cached.display()
        ),
    }
    .into())
}
