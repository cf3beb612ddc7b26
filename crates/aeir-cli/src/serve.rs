//! `aeir serve`: an index behind HTTP, and a page to use it.
//!
//! `door` is the way in and knows nothing of search: other local pages use it as well. Bodies are read within limits (`body.rs`), queries wait in a
//! bounded queue for one thread with the encoder (`queue.rs`), and the index is exchanged while it is served (`library.rs`).

mod api_key;
mod body;
pub(crate) mod door;
mod library;
pub(crate) mod limits;
mod measures;
mod queue;
pub(crate) mod refusal;
mod routes;
mod thumbnails;
mod wanted;

pub(crate) use api_key::ApiKey;
pub(crate) use library::Library;
pub(crate) use measures::begin as begin_measures;
pub(crate) use routes::{Server, router};
