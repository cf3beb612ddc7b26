//! Labelled pairs of the target: what of them may be learned from, and which a model has learned from.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use aeir_data::{CaptionedImage, ImageSource, LabelledPairs, ReadOptions, TargetImages, TargetSentences};
use aeir_encoders::write_atomically;
use aeir_train::run::LABELLED_FILE;
use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::failure::CliError;
use crate::terminal::Terminal;

/// A line of a run's list of the labelled pairs that it learned from.
#[derive(Serialize, Deserialize)]
struct Learned {
    image: String,
    captions: Vec<String>,
}

/// Reads pairs of which there is at least one to learn from.
pub(crate) fn to_learn_from(path: &Path, options: &ReadOptions) -> anyhow::Result<LabelledPairs> {
    let pairs = LabelledPairs::read_with(path, options)?;
    if pairs.learn().is_empty() {
        return Err(CliError::Data {
            message: format!(
                "`{}`: all {} pairs are marked `test`, to measure with: none is left to learn from",
                path.display(),
                pairs.measure().len()
            ),
            hint: "label some of the plan's part to learn from, or leave --labelled out".into(),
        }
        .into());
    }
    Ok(pairs)
}

/// Says what is learned from and what is not, and whether the pairs are of the target sets.
pub(crate) fn tell(
    pairs: &LabelledPairs,
    target: Option<&(TargetImages, TargetSentences)>,
    terminal: &Terminal,
) {
    terminal.note(&format!(
        "{} labelled pairs to learn from; {} marked `test` are left out",
        pairs.learn().len(),
        pairs.measure().len()
    ));
    let Some((images, sentences)) = target else { return };
    let Strangers { images, sentences } =
        Strangers::among(pairs.learn(), images.images(), sentences.sentences());
    if images + sentences > 0 {
        terminal.warn(&format!(
            "{images} of the labelled images and {sentences} of their sentences are not in the target sets; they are learned from all the same"
        ));
    }
}

/// How many labelled images and sentences are not in the target sets.
pub(crate) struct Strangers {
    pub(crate) images: usize,
    pub(crate) sentences: usize,
}

impl Strangers {
    fn among(pairs: &[CaptionedImage], images: &[ImageSource], sentences: &[String]) -> Self {
        let known: HashSet<String> = images.iter().filter_map(|image| image.absolute_name().ok()).collect();
        let said: HashSet<&str> = sentences.iter().map(String::as_str).collect();
        let is_known = |image: &ImageSource| image.absolute_name().is_ok_and(|name| known.contains(&name));
        Self {
            images: pairs.iter().filter(|pair| !is_known(&pair.image)).count(),
            sentences: pairs
                .iter()
                .flat_map(|pair| &pair.captions)
                .filter(|caption| !said.contains(caption.as_str()))
                .count(),
        }
    }
}

/// Leaves in a run's folder which labelled pairs it learned from.
pub(crate) fn remember(run: &Path, pairs: &LabelledPairs) -> anyhow::Result<()> {
    let mut lines = Vec::new();
    for CaptionedImage { image, captions } in pairs.learn() {
        let learned = Learned { image: image.absolute_name()?, captions: captions.clone() };
        serde_json::to_writer(&mut lines, &learned)?;
        lines.push(b'\n');
    }
    let file = run.join(LABELLED_FILE);
    write_atomically(&file, &lines).with_context(|| format!("could not write `{}`", file.display()))
}

/// The labelled images that a model learned from; none where its folder has no list of them.
pub(crate) fn learned_from(model: &Path) -> anyhow::Result<HashSet<String>> {
    let file = model.join(LABELLED_FILE);
    let text = match fs::read_to_string(&file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(HashSet::new()),
        Err(error) => return Err(error).with_context(|| format!("could not read `{}`", file.display())),
    };
    text.lines()
        .map(|line| Ok(serde_json::from_str::<Learned>(line)?.image))
        .collect::<anyhow::Result<_>>()
        .with_context(|| format!("`{}`", file.display()))
}
