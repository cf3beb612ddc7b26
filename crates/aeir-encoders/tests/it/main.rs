//! One binary for all integration tests: they link once.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::needless_range_loop,
    clippy::type_complexity,
    reason = "tests: helpers outside of #[test] functions fail by panicking too"
)]

mod broken_folders;
mod bundles;
mod fine_tuning;
mod fixtures;
mod gradients;
mod heads;
#[cfg(feature = "hub")]
mod hub;
#[cfg(feature = "hub")]
mod hub_push;
#[cfg(feature = "hub")]
mod hub_server;
mod images;
mod mutation;
mod parity_contrastive;
mod parity_efficientnet;
mod parity_heads;
mod parity_minilm;
mod parity_preprocessing;
mod parity_static_embedding;
mod parity_text;
mod parity_vision;
mod parity_words;
mod properties;
#[cfg(feature = "hub")]
mod push_server;
mod sentences;
mod tiny_models;
mod torch_checkpoints;
mod words;
