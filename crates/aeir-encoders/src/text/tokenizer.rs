//! From sentences to token ids, cut and padded as a model's files say.

use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde_json::Value;
use tokenizers::{Tokenizer, TruncationParams};

use super::batch::TokenBatch;
use super::model::{Padding, TextSetup};
use crate::error::{EncoderError, Result};
use crate::load::{parse_json, read_file};

const TOKENIZER: &str = "tokenizer.json";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const SPECIAL_TOKENS: &str = "special_tokens_map.json";
/// transformers writes 1e30 where a tokenizer has no limit.
const NO_LIMIT: f64 = 1e9;

/// The tokenizer of a text transformer.
///
/// A sentence is cut to the first of these that is given, and never to more than the network has positions: `max_seq_length` of
/// `sentence_bert_config.json`; `truncation` of `tokenizer.json`, unless sentence-transformers wrote the folder (it ignores that);
/// `model_max_length` of `tokenizer_config.json`. Sentences of a batch are padded to its longest: padding is masked, so a
/// fixed length that `tokenizer.json` may ask for would change no result. SigLIP reads its padding, and is padded to all its positions.
pub struct SentenceTokenizer {
    tokenizer: Tokenizer,
    longest: usize,
    padding: Padding,
    padding_id: u32,
    files: Vec<PathBuf>,
}

impl SentenceTokenizer {
    /// Loads the tokenizer of a folder.
    ///
    /// # Errors
    /// [`EncoderError::Tokenizer`] for a tokenizer that does not load, [`EncoderError::Config`] when no file names a padding token, and
    /// as [`crate::load_text_backbone`] about the folder's other files.
    pub fn load(folder: &Path) -> Result<Self> {
        Self::with_setup(&TextSetup::read(folder)?)
    }

    pub(super) fn with_setup(setup: &TextSetup) -> Result<Self> {
        let file = setup.home.join(TOKENIZER);
        let fail = |source| EncoderError::Tokenizer { file: file.clone(), source };
        let mut tokenizer = Tokenizer::from_bytes(read_file(&file)?).map_err(fail)?;
        let config = optional_json(&setup.home.join(TOKENIZER_CONFIG))?;
        let special = optional_json(&setup.home.join(SPECIAL_TOKENS))?;

        let own = tokenizer.get_truncation().cloned();
        let own_length = own.as_ref().filter(|_| !setup.has_modules).map(|truncation| truncation.max_length);
        let longest = setup.limit.or(own_length).or_else(|| limit(config.as_ref())).unwrap_or(usize::MAX);
        let longest = longest.min(setup.longest);
        let padding_id = padding_id(&tokenizer, [config.as_ref(), special.as_ref()])
            .or(setup.padding_id)
            .ok_or_else(|| no_padding(&file))?;

        let truncation = TruncationParams { max_length: longest, ..own.unwrap_or_default() };
        tokenizer.with_truncation(Some(truncation)).map_err(fail)?;
        tokenizer.with_padding(None);
        let optional = [TOKENIZER_CONFIG, SPECIAL_TOKENS].map(|name| setup.home.join(name));
        let files = std::iter::once(file.clone()).chain(optional.into_iter().filter(|file| file.is_file()));
        Ok(Self { tokenizer, longest, padding: setup.padding, padding_id, files: files.collect() })
    }

    /// Tokens of a sentence at most, special tokens included.
    #[must_use]
    pub fn longest(&self) -> usize {
        self.longest
    }

    /// The token ids of each sentence, cut, special tokens included.
    ///
    /// # Errors
    /// [`EncoderError::Tokenise`] from the tokenizer.
    pub fn ids(&self, sentences: &[&str]) -> Result<Vec<Vec<u32>>> {
        // The tokenizer's own batch call asks the environment whether it may use threads.
        sentences
            .par_iter()
            .enumerate()
            .map(|(index, sentence)| {
                let encoding = self
                    .tokenizer
                    .encode_fast(*sentence, true)
                    .map_err(|source| EncoderError::Tokenise { index, source })?;
                Ok(encoding.get_ids().to_vec())
            })
            .collect()
    }

    /// The tokens of sentences as one batch.
    ///
    /// # Errors
    /// As [`ids`](Self::ids).
    pub fn batch(&self, sentences: &[&str]) -> Result<TokenBatch> {
        let ids = self.ids(sentences)?;
        Ok(self.pad(&ids.iter().map(Vec::as_slice).collect::<Vec<_>>()))
    }

    /// Sentences side by side.
    pub(super) fn pad(&self, sentences: &[&[u32]]) -> TokenBatch {
        let length = match self.padding {
            Padding::Longest => 0,
            Padding::Always(length) => length,
        };
        TokenBatch::padded(sentences, self.padding_id, length)
    }

    /// Every file that it was read from.
    pub(super) fn files(&self) -> &[PathBuf] {
        &self.files
    }
}

fn optional_json(file: &Path) -> Result<Option<Value>> {
    if !file.is_file() {
        return Ok(None);
    }
    parse_json(&read_file(file)?, file).map(Some)
}

/// `model_max_length`, if it is one.
fn limit(config: Option<&Value>) -> Option<usize> {
    let length = config?.get("model_max_length")?.as_f64()?;
    (1.0..NO_LIMIT).contains(&length).then_some(length as usize)
}

/// The id that the tokenizer's own padding has, or that of the token which the files beside it name.
fn padding_id(tokenizer: &Tokenizer, files: [Option<&Value>; 2]) -> Option<u32> {
    let named = || {
        let token =
            files.into_iter().flatten().find_map(|file| file.get("pad_token").and_then(token_text))?;
        tokenizer.token_to_id(token)
    };
    tokenizer.get_padding().map(|padding| padding.pad_id).or_else(named)
}

/// A token is written as its text or as an object that holds it.
fn token_text(token: &Value) -> Option<&str> {
    token.as_str().or_else(|| token.get("content").and_then(Value::as_str))
}

fn no_padding(file: &Path) -> EncoderError {
    EncoderError::Config {
        file: file.to_path_buf(),
        key: "padding".to_owned(),
        expected: format!(
            "a padding token here, in `{TOKENIZER_CONFIG}` or as `pad_token_id` in `config.json`"
        ),
        got: "none".to_owned(),
    }
}
