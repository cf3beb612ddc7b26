//! `cargo xtask` as it is called, against servers on loopback.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod archives;
mod fetch;
mod server;
