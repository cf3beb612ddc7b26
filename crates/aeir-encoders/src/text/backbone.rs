//! A frozen text transformer with its tokenizer.

use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};

use super::batch::TokenBatch;
use super::model::{TextModel, TextSetup};
use super::tokenizer::SentenceTokenizer;
use crate::checkpoint::Checkpoint;
use crate::error::Result;
use crate::fine_tuning::WEIGHTS;
use crate::fingerprint::sha256_parts;
use crate::fragments::Fragments;
use crate::load::read_file;
use crate::mode::Mode;
use crate::text_backbone::TextBackbone;

/// Sentences of one pass at most, and their tokens with padding.
const BATCH: usize = 32;
const BATCH_TOKENS: usize = 8192;

/// A text transformer as a [`TextBackbone`]: a [`TextModel`] without variables and a [`SentenceTokenizer`].
///
/// Sentences are sorted by length and go through the network in batches of up to 32, each padded to its longest. What comes
/// out is in the order of the sentences.
pub struct TextTransformer {
    model: TextModel,
    tokenizer: SentenceTokenizer,
    fingerprint: String,
    files: Vec<PathBuf>,
}

impl TextTransformer {
    const ALGORITHM: &str = "text-transformer/1";

    /// Loads a folder.
    ///
    /// # Errors
    /// As [`crate::load_text_backbone`].
    pub fn load(folder: &Path, device: &Device) -> Result<Self> {
        let setup = TextSetup::read(folder)?;
        let tokenizer = SentenceTokenizer::with_setup(&setup)?;
        let weights = setup.home.join(WEIGHTS);
        let mut files = setup.files.clone();
        files.extend_from_slice(tokenizer.files());
        let bytes = read_file(&weights)?;
        let fingerprint = fingerprint(folder, &files, &bytes)?;
        let model = setup.build(&Checkpoint::frozen(&weights, &bytes, device)?.root())?;
        files.push(weights);
        Ok(Self { model, tokenizer, fingerprint, files })
    }

    /// The network.
    #[must_use]
    pub fn model(&self) -> &TextModel {
        &self.model
    }

    /// The tokenizer.
    #[must_use]
    pub fn tokenizer(&self) -> &SentenceTokenizer {
        &self.tokenizer
    }

    /// The sentences' places, longest first, in groups that go through the network together.
    fn groups(lengths: &[usize]) -> Vec<Vec<usize>> {
        let mut order: Vec<usize> = (0..lengths.len()).collect();
        let length = |index: usize| lengths.get(index).copied().unwrap_or(0);
        order.sort_by_key(|index| std::cmp::Reverse(length(*index)));
        let mut groups: Vec<Vec<usize>> = Vec::new();
        for index in order {
            match groups.last_mut() {
                Some(group)
                    if group.len() < BATCH
                        && (group.len() + 1) * length(group.first().copied().unwrap_or(index))
                            <= BATCH_TOKENS =>
                {
                    group.push(index);
                }
                _ => groups.push(vec![index]),
            }
        }
        groups
    }

    /// Runs `network` on each group of sentences, and puts the results in their order.
    fn in_groups(&self, ids: &[Vec<u32>], network: impl Fn(&TokenBatch) -> Result<Tensor>) -> Result<Tensor> {
        let groups = Self::groups(&ids.iter().map(Vec::len).collect::<Vec<_>>());
        let outputs = groups
            .iter()
            .map(|group| {
                let rows: Vec<&[u32]> =
                    group.iter().filter_map(|index| ids.get(*index)).map(Vec::as_slice).collect();
                network(&self.tokenizer.pad(&rows))
            })
            .collect::<Result<Vec<_>>>()?;
        let mut places = vec![0u32; ids.len()];
        for (row, index) in groups.iter().flatten().enumerate() {
            if let Some(place) = places.get_mut(*index) {
                *place = row as u32;
            }
        }
        let places = Tensor::from_vec(places, ids.len(), self.model.device())?;
        Ok(Tensor::cat(&outputs, 0)?.index_select(&places, 0)?)
    }
}

/// Of the names within the folder and the bytes of all files.
fn fingerprint(folder: &Path, files: &[PathBuf], weights: &[u8]) -> Result<String> {
    let contents = files.iter().map(|file| read_file(file)).collect::<Result<Vec<_>>>()?;
    let names: Vec<String> = files
        .iter()
        .map(|file| file.strip_prefix(folder).unwrap_or(file).to_string_lossy().replace('\\', "/"))
        .collect();
    let parts = names.iter().map(String::as_str).zip(contents.iter().map(AsRef::as_ref));
    Ok(sha256_parts(
        std::iter::once((TextTransformer::ALGORITHM, &[][..]))
            .chain(parts)
            .chain(std::iter::once((WEIGHTS, weights))),
    ))
}

impl TextBackbone for TextTransformer {
    fn dimension(&self) -> usize {
        self.model.dimension()
    }

    fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    fn encode(&self, sentences: &[&str]) -> Result<Tensor> {
        if sentences.is_empty() {
            return Ok(Tensor::zeros((0, self.dimension()), candle_core::DType::F32, self.model.device())?);
        }
        self.in_groups(&self.tokenizer.ids(sentences)?, |tokens| {
            self.model.forward(tokens, &mut Mode::Evaluation)
        })
    }

    fn fragments(&self, sentences: &[&str]) -> Result<Fragments> {
        let device = self.model.device();
        if sentences.is_empty() {
            let nothing = Tensor::zeros((0, 1, self.dimension()), candle_core::DType::F32, device)?;
            return Fragments::unpadded(nothing);
        }
        let ids = self.tokenizer.ids(sentences)?;
        let longest = ids.iter().map(Vec::len).max().unwrap_or(0).max(1);
        let features = self.in_groups(&ids, |tokens| {
            let states = self.model.states(tokens, &mut Mode::Evaluation)?;
            let fragments = self.model.fragments(&states, tokens, &mut Mode::Evaluation)?;
            let kept = fragments.features().narrow(1, 0, tokens.length().min(longest))?;
            Ok(kept.pad_with_zeros(1, 0, longest.saturating_sub(tokens.length()))?)
        })?;
        let mask: Vec<f32> = ids
            .iter()
            .flat_map(|ids| (0..longest).map(|token| if token < ids.len() { 1.0 } else { 0.0 }))
            .collect();
        Fragments::new(features, Tensor::from_vec(mask, (sentences.len(), longest), device)?)
    }

    fn files(&self) -> &[PathBuf] {
        &self.files
    }
}
