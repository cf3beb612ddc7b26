//! BERT and its kin: XLM-R (RoBERTa) and DistilBERT.

use candle_core::Tensor;

use super::batch::{TokenBatch, look_up};
use super::model::TextNetwork;
use crate::checkpoint::Source;
use crate::config::Config;
use crate::dropout::dropout;
use crate::error::Result;
use crate::mode::Mode;
use crate::ops::AttentionBias;
use crate::transformer::{Block, BlockConfig, BlockNames, LayerNorm, NormPlacement};

const BERT_BLOCK: BlockNames = BlockNames {
    query: "attention.self.query",
    key: "attention.self.key",
    value: "attention.self.value",
    output: "attention.output.dense",
    attention_norm: "attention.output.LayerNorm",
    up: "intermediate.dense",
    down: "output.dense",
    feed_forward_norm: "output.LayerNorm",
    scales: None,
};

const DISTILBERT_BLOCK: BlockNames = BlockNames {
    query: "attention.q_lin",
    key: "attention.k_lin",
    value: "attention.v_lin",
    output: "attention.out_lin",
    attention_norm: "sa_layer_norm",
    up: "ffn.lin1",
    down: "ffn.lin2",
    feed_forward_norm: "output_layer_norm",
    scales: None,
};

/// Which token stands at which position.
#[derive(Clone, Copy)]
enum Positions {
    /// 0, 1, 2, …
    Counted,
    /// Counted from the padding's id + 1 over the tokens that are not padding, which has its own id as position.
    After { padding: u32 },
}

/// What tells the members of the family apart.
pub(super) struct BertConfig {
    vocabulary: usize,
    table: usize,
    positions: Positions,
    /// Rows of the table of token types; none in DistilBERT.
    types: Option<usize>,
    layers: usize,
    block: BlockConfig,
    dropout: f32,
    /// What larger models call the encoder in them, and where its blocks are.
    prefixes: &'static [&'static str],
    blocks: &'static str,
}

impl BertConfig {
    /// BERT: `hidden_size`, `num_hidden_layers`, …
    pub(super) fn bert(config: &Config<'_>) -> Result<Self> {
        Self::of_bert_keys(config, Positions::Counted, &["", "bert"])
    }

    /// XLM-R and RoBERTa: BERT's keys, positions after the padding's id.
    pub(super) fn roberta(config: &Config<'_>) -> Result<Self> {
        let padding = config.token("pad_token_id")?.unwrap_or(1);
        Self::of_bert_keys(config, Positions::After { padding }, &["", "roberta"])
    }

    fn of_bert_keys(
        config: &Config<'_>,
        positions: Positions,
        prefixes: &'static [&'static str],
    ) -> Result<Self> {
        if config.get("position_embedding_type").is_some_and(|kind| kind != "absolute") {
            return Err(config.wrong("position_embedding_type", "\"absolute\""));
        }
        let (hidden, heads) = config.width("hidden_size", "num_attention_heads", (768, 12))?;
        let dropout = config.dropout("hidden_dropout_prob", 0.1)?;
        Ok(Self {
            vocabulary: config.size("vocab_size", 30_522)?,
            table: config.size("max_position_embeddings", 512)?,
            positions,
            types: Some(config.size("type_vocab_size", 2)?),
            layers: config.layers("num_hidden_layers", 12)?,
            block: BlockConfig {
                names: BERT_BLOCK,
                hidden,
                intermediate: config.size("intermediate_size", 3072)?,
                heads,
                activation: config.activation("hidden_act", "gelu")?,
                is_gated: false,
                epsilon: config.positive("layer_norm_eps", 1e-12)?,
                placement: NormPlacement::After,
                has_projection_bias: true,
                attention_dropout: config.dropout("attention_probs_dropout_prob", 0.1)?,
                residual_dropout: [dropout, dropout],
            },
            dropout,
            prefixes,
            blocks: "encoder.layer",
        })
    }

    /// DistilBERT: `dim`, `n_layers`, …
    pub(super) fn distilbert(config: &Config<'_>) -> Result<Self> {
        let (hidden, heads) = config.width("dim", "n_heads", (768, 12))?;
        let dropout = config.dropout("dropout", 0.1)?;
        Ok(Self {
            vocabulary: config.size("vocab_size", 30_522)?,
            table: config.size("max_position_embeddings", 512)?,
            positions: Positions::Counted,
            types: None,
            layers: config.layers("n_layers", 6)?,
            block: BlockConfig {
                names: DISTILBERT_BLOCK,
                hidden,
                intermediate: config.size("hidden_dim", 3072)?,
                heads,
                activation: config.activation("activation", "gelu")?,
                is_gated: false,
                epsilon: 1e-12,
                placement: NormPlacement::After,
                has_projection_bias: true,
                attention_dropout: config.dropout("attention_dropout", 0.1)?,
                residual_dropout: [0.0, dropout],
            },
            dropout,
            prefixes: &["", "distilbert"],
            blocks: "transformer.layer",
        })
    }

    /// How many tokens a sentence can have.
    pub(super) fn longest(&self) -> usize {
        match self.positions {
            Positions::Counted => self.table,
            Positions::After { padding } => self.table.saturating_sub(padding as usize + 1),
        }
    }
}

/// The network: word, position and type embeddings, then blocks that normalise after each shortcut.
pub(super) struct Bert {
    words: Tensor,
    positions: Tensor,
    types: Option<Tensor>,
    norm: LayerNorm,
    blocks: Vec<Block>,
    config: BertConfig,
}

impl Bert {
    pub(super) fn load(source: &Source<'_>, config: BertConfig) -> Result<Self> {
        let source = source.under_first(config.prefixes, "embeddings.word_embeddings.weight");
        let (embeddings, hidden) = (source.under("embeddings"), config.block.hidden);
        let table = |name: &str, rows: usize| embeddings.under(name).tensor("weight", &[rows, hidden]);
        Ok(Self {
            words: table("word_embeddings", config.vocabulary)?,
            positions: table("position_embeddings", config.table)?,
            types: config.types.map(|rows| table("token_type_embeddings", rows)).transpose()?,
            norm: LayerNorm::load(&embeddings.under("LayerNorm"), hidden, config.block.epsilon)?,
            blocks: Block::load_all(&source.under(config.blocks), config.layers, &config.block)?,
            config,
        })
    }

    fn position_embeddings(&self, tokens: &TokenBatch) -> Result<Tensor> {
        let length = tokens.length();
        match self.config.positions {
            Positions::Counted => Ok(self.positions.narrow(0, 0, length)?.unsqueeze(0)?),
            Positions::After { padding } => {
                let positions = tokens.rows().flat_map(|(ids, _)| positions_after(padding, ids)).collect();
                look_up(&self.positions, positions, tokens.count(), length)
            }
        }
    }
}

fn positions_after(padding: u32, ids: &[u32]) -> impl Iterator<Item = u32> {
    ids.iter().scan(padding, move |last, id| {
        if *id == padding {
            return Some(padding);
        }
        *last += 1;
        Some(*last)
    })
}

impl TextNetwork for Bert {
    fn hidden(&self) -> usize {
        self.config.block.hidden
    }

    fn longest(&self) -> usize {
        self.config.longest()
    }

    fn states(&self, tokens: &TokenBatch, mode: &mut Mode<'_>) -> Result<Tensor> {
        tokens.check(self.config.vocabulary, self.longest())?;
        let mut x = tokens.embed(&self.words)?.broadcast_add(&self.position_embeddings(tokens)?)?;
        if let Some(types) = &self.types {
            x = x.broadcast_add(&tokens.embed_types(types)?)?;
        }
        x = dropout(&self.norm.forward(&x)?, self.config.dropout, mode)?;
        let bias = AttentionBias::none().with_padding(&tokens.mask(x.device())?)?;
        for block in &self.blocks {
            x = block.forward(&x, &bias, mode)?;
        }
        Ok(x)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_takes_no_position() {
        let positions: Vec<u32> = positions_after(1, &[0, 7, 1, 9, 2, 1, 1]).collect();
        assert_eq!(positions, [2, 3, 1, 4, 5, 1, 1]);
    }
}
