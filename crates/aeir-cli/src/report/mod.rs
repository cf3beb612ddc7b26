//! Pages, tables and pictures of what was measured.

mod chart;
mod demo;
mod layout;
pub(crate) mod runs;
mod summary;
pub(crate) mod sweep;

pub(crate) use chart::Chart;
pub(crate) use demo::{Example, Found, Gallery, Query, Report, Row, RunResult};
pub(crate) use layout::{GENERATOR, is_ours, worded};
pub(crate) use summary::Summary;

/// A name of letters, digits, `-`, `_` and `.`, for a file.
pub(crate) fn slug(name: &str) -> String {
    let keep = |letter: char| letter.is_ascii_alphanumeric() || "-_.".contains(letter);
    name.chars().map(|letter| if keep(letter) { letter } else { '-' }).collect()
}
