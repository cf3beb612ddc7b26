//! `cargo xtask` as it is called, against servers on loopback.

mod archives;
mod fetch;
mod server;
