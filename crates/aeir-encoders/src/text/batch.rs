//! A batch of tokenised sentences.

use candle_core::{Device, Tensor};

use crate::error::{EncoderError, Result};

/// Token ids with their mask: what a [`TextModel`](crate::TextModel) takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenBatch {
    ids: Vec<u32>,
    /// 1 for a token of a sentence, 0 for padding.
    mask: Vec<u8>,
    /// Which sentence of a pair each token belongs to; empty where all are of the first.
    types: Vec<u32>,
    count: usize,
    length: usize,
}

impl TokenBatch {
    /// Puts ids and mask together.
    ///
    /// # Shapes
    /// `ids [B, T]` and `mask [B, T]` of integer types; the mask is 1 for a token and 0 for padding.
    ///
    /// # Errors
    /// [`EncoderError::Shape`] when the shapes do not fit, [`EncoderError::Tensor`] from candle.
    pub fn new(ids: &Tensor, mask: &Tensor) -> Result<Self> {
        let &[count, length] = ids.dims() else {
            return Err(shape("token ids", "[batch, tokens]".to_owned(), ids));
        };
        if mask.dims() != [count, length] {
            return Err(shape("token mask", format!("[{count}, {length}]"), mask));
        }
        let mask = integers(mask)?.into_iter().map(|value| u8::from(value != 0)).collect();
        Ok(Self { ids: integers(ids)?, mask, types: Vec::new(), count, length })
    }

    /// The same tokens with types: 0 for those of a first sentence, 1 for those of a second. BERT and XLM-R read them, and take all
    /// for 0 without.
    ///
    /// # Shapes
    /// `types [B, T]` of an integer type.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_types(self, types: &Tensor) -> Result<Self> {
        if types.dims() != [self.count, self.length] {
            return Err(shape("token types", format!("[{}, {}]", self.count, self.length), types));
        }
        Ok(Self { types: integers(types)?, ..self })
    }

    /// Sentences side by side, each padded to `length` (or to the longest, if that is longer).
    pub(crate) fn padded(sentences: &[&[u32]], padding: u32, length: usize) -> Self {
        let longest = sentences.iter().map(|ids| ids.len()).max().unwrap_or(0);
        let length = length.max(longest).max(1);
        let (ids, mask, types) = (Vec::new(), Vec::new(), Vec::new());
        let mut batch = Self { ids, mask, types, count: sentences.len(), length };
        for ids in sentences {
            let missing = length - ids.len();
            batch.ids.extend(ids.iter().copied().chain(std::iter::repeat_n(padding, missing)));
            batch.mask.extend(std::iter::repeat_n(1, ids.len()).chain(std::iter::repeat_n(0, missing)));
        }
        batch
    }

    /// Number of sentences B.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }

    /// Tokens of each row T, padding included.
    #[must_use]
    pub fn length(&self) -> usize {
        self.length
    }

    /// The ids, row by row.
    #[must_use]
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// The mask, `[B, T]` f32.
    ///
    /// # Errors
    /// [`EncoderError::Tensor`] from candle.
    pub fn mask(&self, device: &Device) -> Result<Tensor> {
        let values: Vec<f32> = self.mask.iter().map(|value| f32::from(*value)).collect();
        Ok(Tensor::from_vec(values, (self.count, self.length), device)?)
    }

    /// Ids and mask of each sentence.
    pub(crate) fn rows(&self) -> impl Iterator<Item = (&[u32], &[u8])> {
        let length = self.length.max(1);
        self.ids.chunks_exact(length).zip(self.mask.chunks_exact(length))
    }

    /// Refuses ids that a table of `vocabulary` rows does not have, and rows longer than `positions`.
    pub(crate) fn check(&self, vocabulary: usize, positions: usize) -> Result<()> {
        if self.length > positions {
            return Err(EncoderError::Shape {
                what: "token ids",
                expected: format!("[batch, at most {positions}]"),
                got: vec![self.count, self.length],
            });
        }
        match self.ids.iter().find(|id| **id as usize >= vocabulary) {
            Some(&id) => {
                Err(EncoderError::TokenId { token: format!("#{id}"), expected: vocabulary, got: id })
            }
            None => Ok(()),
        }
    }

    /// The embeddings of the tokens' types, to be broadcast to `[B, T, D]`; `table [N, D]`.
    pub(crate) fn embed_types(&self, table: &Tensor) -> Result<Tensor> {
        if self.types.is_empty() {
            return Ok(table.narrow(0, 0, 1)?.unsqueeze(0)?);
        }
        let rows = table.dim(0)?;
        match self.types.iter().find(|kind| **kind as usize >= rows) {
            Some(&got) => Err(EncoderError::TokenId { token: format!("type {got}"), expected: rows, got }),
            None => look_up(table, self.types.clone(), self.count, self.length),
        }
    }

    /// Rows of an embedding table, `[V, D]` to `[B, T, D]`.
    pub(crate) fn embed(&self, table: &Tensor) -> Result<Tensor> {
        look_up(table, self.ids.clone(), self.count, self.length)
    }
}

/// Rows `indices` of a table, `[V, D]` to `[B, T, D]`.
pub(crate) fn look_up(table: &Tensor, indices: Vec<u32>, count: usize, length: usize) -> Result<Tensor> {
    let rows = Tensor::from_vec(indices, count * length, table.device())?;
    Ok(table.index_select(&rows, 0)?.reshape((count, length, table.dim(1)?))?)
}

fn integers(tensor: &Tensor) -> Result<Vec<u32>> {
    Ok(tensor.to_device(&Device::Cpu)?.to_dtype(candle_core::DType::U32)?.flatten_all()?.to_vec1()?)
}

fn shape(what: &'static str, expected: String, tensor: &Tensor) -> EncoderError {
    EncoderError::Shape { what, expected, got: tensor.dims().to_vec() }
}
