//! Integration tests of the crate, one binary.

// Helpers of tests stand outside the test functions that clippy.toml exempts.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod approximate;
#[cfg(feature = "cuda")]
mod card;
mod domain_distance;
mod index_changes;
mod index_folder;
mod labelling;
#[cfg(feature = "milvus")]
mod milvus;
mod naive;
mod parity;
mod properties;
mod refusals;
mod streamed;
mod trust;
mod two_sets;
mod two_stage;
