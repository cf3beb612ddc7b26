//! ModernBERT: rotary positions, local and global attention, gated linear layers (Warner et al., 2024).

use candle_core::Tensor;
use serde_json::Value;

use super::batch::TokenBatch;
use super::model::TextNetwork;
use crate::checkpoint::Source;
use crate::config::Config;
use crate::dropout::dropout;
use crate::error::Result;
use crate::mode::Mode;
use crate::ops::{Activation, AttentionBias};
use crate::transformer::{Attention, GatedFeedForward, LayerNorm, Linear, Rotary};

const GLOBAL: &str = "full_attention";
const LOCAL: &str = "sliding_attention";

pub(super) struct ModernBertConfig {
    vocabulary: usize,
    hidden: usize,
    heads: usize,
    intermediate: usize,
    longest: usize,
    activation: Activation,
    epsilon: f64,
    has_norm_bias: bool,
    has_attention_bias: bool,
    has_mlp_bias: bool,
    embedding_dropout: f32,
    attention_dropout: f32,
    mlp_dropout: f32,
    /// For each layer, whether its tokens see all others.
    is_global: Vec<bool>,
    /// How far a token of a local layer sees, to each side.
    reach: usize,
    global_theta: f64,
    local_theta: f64,
}

impl ModernBertConfig {
    /// Both the keys of transformers 4 (`global_rope_theta`, `global_attn_every_n_layers`) and those of 5 (`rope_parameters`,
    /// `layer_types`).
    pub(super) fn new(config: &Config<'_>) -> Result<Self> {
        let (hidden, heads) = config.width("hidden_size", "num_attention_heads", (768, 12))?;
        if (hidden / heads) % 2 != 0 {
            return Err(config.wrong("num_attention_heads", "heads of an even size"));
        }
        let epsilon = if config.get("norm_eps").is_some() { "norm_eps" } else { "layer_norm_eps" };
        let global_theta = theta(config, GLOBAL, "global_rope_theta", 160_000.0)?;
        Ok(Self {
            vocabulary: config.size("vocab_size", 50_368)?,
            hidden,
            heads,
            intermediate: config.size("intermediate_size", 1152)?,
            longest: config.size("max_position_embeddings", 8192)?,
            activation: config.activation("hidden_activation", "gelu")?,
            epsilon: config.positive(epsilon, 1e-5)?,
            has_norm_bias: config.flag("norm_bias", false)?,
            has_attention_bias: config.flag("attention_bias", false)?,
            has_mlp_bias: config.flag("mlp_bias", false)?,
            embedding_dropout: config.dropout("embedding_dropout", 0.0)?,
            attention_dropout: config.dropout("attention_dropout", 0.0)?,
            mlp_dropout: config.dropout("mlp_dropout", 0.0)?,
            is_global: layer_kinds(config, config.layers("num_hidden_layers", 22)?)?,
            reach: config.size("local_attention", 128)? / 2,
            global_theta,
            local_theta: theta(config, LOCAL, "local_rope_theta", 10_000.0)?,
        })
    }

    pub(super) fn longest(&self) -> usize {
        self.longest
    }
}

/// The base of the angles of one kind of layer.
fn theta(config: &Config<'_>, kind: &str, key: &str, default: f64) -> Result<f64> {
    if config.get("rope_parameters").is_none() {
        return config.positive(key, default);
    }
    let rope = config.part("rope_parameters")?.part(kind)?;
    match rope.get("rope_type") {
        None => {}
        Some(kind) if kind == "default" => {}
        Some(_) => return Err(rope.wrong("rope_type", "\"default\"")),
    }
    rope.positive("rope_theta", default)
}

/// For each layer, whether it is global.
fn layer_kinds(config: &Config<'_>, layers: usize) -> Result<Vec<bool>> {
    let Some(kinds) = config.get("layer_types") else {
        let every = config.size("global_attn_every_n_layers", 3)?;
        return Ok((0..layers).map(|layer| layer % every == 0).collect());
    };
    let wrong = || config.wrong("layer_types", format!("{layers} times \"{GLOBAL}\" or \"{LOCAL}\""));
    let kinds = kinds.as_array().filter(|kinds| kinds.len() == layers).ok_or_else(wrong)?;
    let is_global = |kind: &Value| match kind.as_str() {
        Some(GLOBAL) => Ok(true),
        Some(LOCAL) => Ok(false),
        _ => Err(wrong()),
    };
    kinds.iter().map(is_global).collect()
}

pub(super) struct ModernBert {
    words: Tensor,
    norm: LayerNorm,
    layers: Vec<Layer>,
    final_norm: LayerNorm,
    global: Rotary,
    local: Rotary,
    config: ModernBertConfig,
}

struct Layer {
    /// The first layer has none: the embeddings are already normalised.
    attention_norm: Option<LayerNorm>,
    attention: Attention,
    feed_forward_norm: LayerNorm,
    feed_forward: GatedFeedForward,
    is_global: bool,
}

impl ModernBert {
    pub(super) fn load(source: &Source<'_>, config: ModernBertConfig) -> Result<Self> {
        let source = source.under_first(&["", "model"], "embeddings.tok_embeddings.weight");
        let embeddings = source.under("embeddings");
        let head = config.hidden / config.heads;
        let layers = config.is_global.iter().enumerate();
        let layers = layers
            .map(|(index, is_global)| {
                Layer::load(&source.under(&format!("layers.{index}")), index, *is_global, &config)
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            words: embeddings.tensor("tok_embeddings.weight", &[config.vocabulary, config.hidden])?,
            norm: norm(&embeddings.under("norm"), &config)?,
            layers,
            final_norm: norm(&source.under("final_norm"), &config)?,
            global: Rotary::new(head, config.global_theta),
            local: Rotary::new(head, config.local_theta),
            config,
        })
    }
}

fn norm(source: &Source<'_>, config: &ModernBertConfig) -> Result<LayerNorm> {
    LayerNorm::load_with(source, config.hidden, config.epsilon, config.has_norm_bias)
}

impl Layer {
    fn load(source: &Source<'_>, index: usize, is_global: bool, config: &ModernBertConfig) -> Result<Self> {
        let (hidden, inner) = (config.hidden, config.intermediate);
        let attention = |name: &str, outputs: usize| {
            Linear::load_with(&source.under(name), hidden, outputs, config.has_attention_bias)
        };
        let mlp = |name: &str, inputs: usize, outputs: usize| {
            Linear::load_with(&source.under(name), inputs, outputs, config.has_mlp_bias)
        };
        Ok(Self {
            attention_norm: (index > 0).then(|| norm(&source.under("attn_norm"), config)).transpose()?,
            attention: Attention::fused(
                attention("attn.Wqkv", 3 * hidden)?,
                attention("attn.Wo", hidden)?,
                config.heads,
                config.attention_dropout,
            ),
            feed_forward_norm: norm(&source.under("mlp_norm"), config)?,
            feed_forward: GatedFeedForward {
                up: mlp("mlp.Wi", hidden, 2 * inner)?,
                activation: config.activation,
                down: mlp("mlp.Wo", inner, hidden)?,
                dropout: config.mlp_dropout,
            },
            is_global,
        })
    }

    fn forward(
        &self,
        x: &Tensor,
        bias: &AttentionBias,
        angles: &(Tensor, Tensor),
        dropout_probability: f32,
        mode: &mut Mode<'_>,
    ) -> Result<Tensor> {
        let normed = match &self.attention_norm {
            Some(norm) => norm.forward(x)?,
            None => x.clone(),
        };
        let attended = self.attention.forward(&normed, bias, Some(angles), mode)?;
        let x = (x + dropout(&attended, dropout_probability, mode)?)?;
        let fed = self.feed_forward.forward(&self.feed_forward_norm.forward(&x)?, mode)?;
        Ok((x + fed)?)
    }
}

impl TextNetwork for ModernBert {
    fn hidden(&self) -> usize {
        self.config.hidden
    }

    fn longest(&self) -> usize {
        self.config.longest
    }

    fn states(&self, tokens: &TokenBatch, mode: &mut Mode<'_>) -> Result<Tensor> {
        tokens.check(self.config.vocabulary, self.longest())?;
        let x = self.norm.forward(&tokens.embed(&self.words)?)?;
        let mut x = dropout(&x, self.config.embedding_dropout, mode)?;
        let everywhere = AttentionBias::none().with_padding(&tokens.mask(x.device())?)?;
        let near = everywhere.clone().within(self.config.reach);
        let global = self.global.angles(tokens.length(), x.device())?;
        let local = self.local.angles(tokens.length(), x.device())?;
        for layer in &self.layers {
            let (bias, angles) = if layer.is_global { (&everywhere, &global) } else { (&near, &local) };
            x = layer.forward(&x, bias, angles, self.config.attention_dropout, mode)?;
        }
        self.final_norm.forward(&x)
    }
}
