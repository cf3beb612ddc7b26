//! A table of token vectors: the sentence is the mean of its rows.

use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use rayon::prelude::*;
use serde::Deserialize;
use tokenizers::Tokenizer;

use crate::error::{EncoderError, Result};
use crate::fingerprint::sha256_parts;
use crate::fragments::Fragments;
use crate::load::{parse_json, read_file};
use crate::text_backbone::TextBackbone;
use crate::weights::Weights;

const EMBEDDINGS: &str = "embeddings";

/// Static token embeddings in model2vec's layout: `config.json`, `tokenizer.json`, `model.safetensors`.
///
/// A sentence is tokenised without special tokens and without truncation; unknown tokens are left out, as
/// model2vec does; the feature is the mean of the remaining rows, scaled to unit length if `normalize` is set. A
/// sentence without any known token gives zeros.
///
/// # Parity file
/// `golden.json` beside the weights: tokens and ids equal, embeddings within 1e-5.
pub struct StaticEmbedding {
    tokenizer: Tokenizer,
    unknown: Option<u32>,
    /// `[V, F]`, row-major.
    table: Vec<f32>,
    rows: usize,
    dimension: usize,
    normalise: bool,
    device: Device,
    fingerprint: String,
    files: Vec<PathBuf>,
}

#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    normalize: bool,
    hidden_dim: Option<usize>,
    vocab_size: Option<usize>,
}

#[derive(Deserialize)]
struct TokenizerFile {
    model: TokenizerModel,
}

#[derive(Deserialize)]
struct TokenizerModel {
    unk_token: Option<String>,
    unk_id: Option<u32>,
}

impl StaticEmbedding {
    /// What `model_type` says in `config.json`.
    pub const MODEL_TYPE: &str = "model2vec";
    const ALGORITHM: &str = "static-embedding/1";

    /// Loads a folder.
    ///
    /// # Errors
    /// As [`crate::load_text_backbone`].
    pub fn load(folder: &Path, device: &Device) -> Result<Self> {
        let files = ["config.json", "tokenizer.json", "model.safetensors"].map(|name| folder.join(name));
        let [config_file, tokenizer_file, weights_file] = &files;
        let (config_bytes, tokenizer_bytes) = (read_file(config_file)?, read_file(tokenizer_file)?);
        let weights_bytes = read_file(weights_file)?;
        let config: Config = parse_json(&config_bytes, config_file)?;
        let (tokenizer, unknown) = load_tokenizer(&tokenizer_bytes, tokenizer_file)?;
        let (table, rows, dimension) = load_table(&config, &weights_bytes, weights_file)?;
        let fingerprint = sha256_parts([
            (Self::ALGORITHM, &[][..]),
            ("config.json", &config_bytes),
            ("tokenizer.json", &tokenizer_bytes),
            ("model.safetensors", &weights_bytes),
        ]);
        Ok(Self {
            tokenizer,
            unknown,
            table,
            rows,
            dimension,
            normalise: config.normalize,
            device: device.clone(),
            fingerprint,
            files: files.to_vec(),
        })
    }

    /// The tokens of a sentence with their ids, unknown ones included.
    ///
    /// # Errors
    /// [`EncoderError::Tokenise`] from the tokenizer.
    pub fn tokenise(&self, sentence: &str) -> Result<Vec<(String, u32)>> {
        let encoding = self
            .tokenizer
            .encode(sentence, false)
            .map_err(|source| EncoderError::Tokenise { index: 0, source })?;
        Ok(encoding.get_tokens().iter().cloned().zip(encoding.get_ids().iter().copied()).collect())
    }

    /// The known tokens' rows of each sentence.
    fn rows_of(&self, sentences: &[&str]) -> Result<Vec<Vec<&[f32]>>> {
        // The tokenizer's own batch call asks the environment whether it may use threads.
        sentences
            .par_iter()
            .enumerate()
            .map(|(index, sentence)| {
                let encoding = self
                    .tokenizer
                    .encode_fast(*sentence, false)
                    .map_err(|source| EncoderError::Tokenise { index, source })?;
                encoding
                    .get_ids()
                    .iter()
                    .filter(|id| Some(**id) != self.unknown)
                    .map(|id| self.row(*id))
                    .collect()
            })
            .collect()
    }

    fn row(&self, id: u32) -> Result<&[f32]> {
        let start = (id as usize).saturating_mul(self.dimension);
        self.table.get(start..start.saturating_add(self.dimension)).ok_or_else(|| EncoderError::TokenId {
            token: self.tokenizer.id_to_token(id).unwrap_or_default(),
            expected: self.rows,
            got: id,
        })
    }

    fn pool(&self, rows: &[&[f32]], output: &mut [f32]) {
        for row in rows {
            output.iter_mut().zip(*row).for_each(|(sum, value)| *sum += value);
        }
        let count = rows.len().max(1) as f32;
        output.iter_mut().for_each(|sum| *sum /= count);
        if !self.normalise {
            return;
        }
        let norm =
            output.iter().map(|value| f64::from(*value) * f64::from(*value)).sum::<f64>().sqrt() as f32;
        if norm > 0.0 {
            output.iter_mut().for_each(|value| *value /= norm);
        }
    }
}

impl TextBackbone for StaticEmbedding {
    fn dimension(&self) -> usize {
        self.dimension
    }

    fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    fn encode(&self, sentences: &[&str]) -> Result<Tensor> {
        let rows = self.rows_of(sentences)?;
        let mut features = vec![0f32; sentences.len() * self.dimension];
        features.par_chunks_mut(self.dimension).zip(&rows).for_each(|(output, rows)| self.pool(rows, output));
        Ok(Tensor::from_vec(features, (sentences.len(), self.dimension), &Device::Cpu)?
            .to_device(&self.device)?)
    }

    fn fragments(&self, sentences: &[&str]) -> Result<Fragments> {
        let rows = self.rows_of(sentences)?;
        let longest = rows.iter().map(Vec::len).max().unwrap_or(0).max(1);
        let mut features = vec![0f32; sentences.len() * longest * self.dimension];
        let mut mask = vec![0f32; sentences.len() * longest];
        let padded = features.chunks_exact_mut(longest * self.dimension).zip(mask.chunks_exact_mut(longest));
        for ((features, mask), rows) in padded.zip(&rows) {
            for ((output, mask), row) in features.chunks_exact_mut(self.dimension).zip(mask).zip(rows) {
                output.copy_from_slice(row);
                *mask = 1.0;
            }
        }
        let features = Tensor::from_vec(features, (sentences.len(), longest, self.dimension), &Device::Cpu)?;
        let mask = Tensor::from_vec(mask, (sentences.len(), longest), &Device::Cpu)?;
        Fragments::new(features.to_device(&self.device)?, mask.to_device(&self.device)?)
    }

    fn files(&self) -> &[PathBuf] {
        &self.files
    }
}

/// The tokenizer without the truncation and padding its file may ask for, and the id of its unknown token.
fn load_tokenizer(bytes: &[u8], file: &Path) -> Result<(Tokenizer, Option<u32>)> {
    let fail = |source| EncoderError::Tokenizer { file: file.to_path_buf(), source };
    let mut tokenizer = Tokenizer::from_bytes(bytes).map_err(fail)?;
    tokenizer.with_truncation(None).map_err(fail)?;
    tokenizer.with_padding(None);
    let TokenizerFile { model } = parse_json(bytes, file)?;
    let unknown = model.unk_id.or_else(|| model.unk_token.and_then(|token| tokenizer.token_to_id(&token)));
    Ok((tokenizer, unknown))
}

fn load_table(config: &Config, bytes: &[u8], file: &Path) -> Result<(Vec<f32>, usize, usize)> {
    let weights = Weights::parse(file, bytes)?;
    // Later model2vec versions share rows between tokens, or scale them: leaving that out would be silently wrong.
    if let Some(extra) = ["mapping", "weights"].into_iter().find(|key| weights.contains(key)) {
        return Err(EncoderError::Unsupported {
            file: file.to_path_buf(),
            key: "tensor".to_owned(),
            got: extra.to_owned(),
            supported: &[EMBEDDINGS],
        });
    }
    let expected = [config.vocab_size.unwrap_or(0), config.hidden_dim.unwrap_or(0)];
    let shape = weights.shape(EMBEDDINGS, &expected)?;
    let fits = |got: usize, configured: Option<usize>| {
        got > 0 && configured.is_none_or(|configured| configured == got)
    };
    match shape.as_slice() {
        &[rows, dimension] if fits(rows, config.vocab_size) && fits(dimension, config.hidden_dim) => {
            Ok((weights.take(EMBEDDINGS, &shape)?, rows, dimension))
        }
        _ => Err(EncoderError::TensorShape {
            file: file.to_path_buf(),
            key: EMBEDDINGS.to_owned(),
            expected: expected.to_vec(),
            got: shape,
        }),
    }
}
