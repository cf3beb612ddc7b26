//! Tests of the crate from outside.

mod configs;
mod killed;
mod parity_optimizers;
mod parity_released;
mod real_data;
mod tuned;
