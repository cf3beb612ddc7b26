//! Tests of the crate from outside.

mod configs;
mod real_data;
