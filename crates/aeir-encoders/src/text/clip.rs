//! The text towers of CLIP and SigLIP.

use candle_core::Tensor;

use super::batch::TokenBatch;
use super::model::TextNetwork;
use super::pooling::Pooling;
use crate::checkpoint::Source;
use crate::config::Config;
use crate::error::Result;
use crate::mode::Mode;
use crate::ops::AttentionBias;
use crate::transformer::{Block, BlockConfig, BlockNames, LayerNorm, NormPlacement};

/// Names of a block, in the text and the image towers of both.
pub(crate) const CLIP_BLOCK: BlockNames = BlockNames {
    query: "self_attn.q_proj",
    key: "self_attn.k_proj",
    value: "self_attn.v_proj",
    output: "self_attn.out_proj",
    attention_norm: "layer_norm1",
    up: "mlp.fc1",
    down: "mlp.fc2",
    feed_forward_norm: "layer_norm2",
    scales: None,
};

/// `eos_token_id` of the first published files, whose tokenizer ends sentences with the largest id in place of it.
const UNUSED_END: u32 = 2;

/// Which of the two it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    /// Tokens see those before them.
    Clip,
    /// Tokens see all others, padding included.
    Siglip,
}

pub(super) struct ClipTextConfig {
    family: Family,
    vocabulary: usize,
    positions: usize,
    layers: usize,
    block: BlockConfig,
    pub(super) pooling: Pooling,
    /// Length of the embedding, where a layer maps the pooled state to it.
    pub(super) projection: usize,
}

impl ClipTextConfig {
    /// The keys of CLIP's text tower.
    pub(super) fn clip(config: &Config<'_>, projection: Option<usize>) -> Result<Self> {
        let pooling = match config.token("eos_token_id")?.unwrap_or(49_407) {
            UNUSED_END => Pooling::LargestId,
            end => Pooling::FirstOf(end),
        };
        let projection = projection.map_or_else(|| config.size("projection_dim", 512), Ok)?;
        Ok(Self {
            family: Family::Clip,
            vocabulary: config.size("vocab_size", 49_408)?,
            positions: config.size("max_position_embeddings", 77)?,
            layers: config.layers("num_hidden_layers", 12)?,
            block: block(config, (512, 8), 2048, "quick_gelu", 1e-5)?,
            pooling,
            projection,
        })
    }

    /// The keys of SigLIP's text tower.
    pub(super) fn siglip(config: &Config<'_>) -> Result<Self> {
        let block = block(config, (768, 12), 3072, "gelu_pytorch_tanh", 1e-6)?;
        Ok(Self {
            family: Family::Siglip,
            vocabulary: config.size("vocab_size", 32_000)?,
            positions: config.size("max_position_embeddings", 64)?,
            layers: config.layers("num_hidden_layers", 12)?,
            block,
            pooling: Pooling::LastPosition,
            projection: config.size("projection_size", block.hidden)?,
        })
    }

    pub(super) fn longest(&self) -> usize {
        self.positions
    }
}

fn block(
    config: &Config<'_>,
    width: (usize, usize),
    intermediate: usize,
    activation: &str,
    epsilon: f64,
) -> Result<BlockConfig> {
    let (hidden, heads) = config.width("hidden_size", "num_attention_heads", width)?;
    Ok(BlockConfig {
        names: CLIP_BLOCK,
        hidden,
        intermediate: config.size("intermediate_size", intermediate)?,
        heads,
        activation: config.activation("hidden_act", activation)?,
        is_gated: false,
        epsilon: config.positive("layer_norm_eps", epsilon)?,
        placement: NormPlacement::Before,
        has_projection_bias: true,
        attention_dropout: config.dropout("attention_dropout", 0.0)?,
        residual_dropout: [0.0, 0.0],
    })
}

/// Word and position embeddings, blocks that normalise before each part, and a last norm.
pub(super) struct ClipText {
    words: Tensor,
    positions: Tensor,
    blocks: Vec<Block>,
    norm: LayerNorm,
    config: ClipTextConfig,
}

impl ClipText {
    /// `source` is what lies under `text_model`.
    pub(super) fn load(source: &Source<'_>, config: ClipTextConfig) -> Result<Self> {
        let (embeddings, hidden) = (source.under("embeddings"), config.block.hidden);
        Ok(Self {
            words: embeddings.tensor("token_embedding.weight", &[config.vocabulary, hidden])?,
            positions: embeddings.tensor("position_embedding.weight", &[config.positions, hidden])?,
            blocks: Block::load_all(&source.under("encoder.layers"), config.layers, &config.block)?,
            norm: LayerNorm::load(&source.under("final_layer_norm"), hidden, config.block.epsilon)?,
            config,
        })
    }
}

impl TextNetwork for ClipText {
    fn hidden(&self) -> usize {
        self.config.block.hidden
    }

    fn longest(&self) -> usize {
        self.config.positions
    }

    fn states(&self, tokens: &TokenBatch, mode: &mut Mode<'_>) -> Result<Tensor> {
        tokens.check(self.config.vocabulary, self.longest())?;
        let positions = self.positions.narrow(0, 0, tokens.length())?.unsqueeze(0)?;
        let mut x = tokens.embed(&self.words)?.broadcast_add(&positions)?;
        let bias = match self.config.family {
            Family::Clip => AttentionBias::none().with_padding(&tokens.mask(x.device())?)?.causal(),
            Family::Siglip => AttentionBias::none(),
        };
        for block in &self.blocks {
            x = block.forward(&x, &bias, mode)?;
        }
        self.norm.forward(&x)
    }
}
