//! Tests of the crate from outside.

mod configs;
mod parity_released;
mod real_data;
