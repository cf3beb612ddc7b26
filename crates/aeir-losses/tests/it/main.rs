//! Integration tests: parity with recorded reference values, gradients, properties, errors.

mod errors;
mod gradients;
mod parity_aecr;
mod parity_losses;
mod properties;
mod support;
