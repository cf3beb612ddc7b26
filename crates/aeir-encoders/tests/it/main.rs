//! One binary for all integration tests: they link once.

mod broken_folders;
mod fixtures;
mod gradients;
mod parity_efficientnet;
mod parity_preprocessing;
mod parity_static_embedding;
mod properties;
