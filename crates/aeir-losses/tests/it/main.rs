//! Integration tests: parity with recorded reference values, gradients, properties, errors.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers outside #[test] functions fail tests, too")]

mod errors;
mod gradients;
mod parity_adversaries;
mod parity_aecr;
mod parity_losses;
mod properties;
mod support;
