//! `aeir index info`: what an index holds.

use std::fmt::Write;

use aeir_retrieve::{Confidence, GalleryCorrection, GraphReport, Index};
use serde::Serialize;

use super::bank;
use crate::commands::{print, print_json};
use crate::flags::index::InfoFlags;

#[derive(Serialize)]
struct Info<'a> {
    folder: String,
    generation: u64,
    items: usize,
    /// Whose rows still lie in the files.
    deleted: usize,
    segments: usize,
    dimension: usize,
    storage: &'static str,
    bytes: u64,
    model_fingerprint: &'a str,
    created_by: &'a str,
    metadata: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    query_bank: Option<usize>,
    confidence: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    correction: Option<&'static str>,
    graphs: Vec<Graph>,
}

#[derive(Serialize)]
struct Graph {
    items: usize,
    #[serde(flatten)]
    report: GraphReport,
}

/// Opens and verifies an index and says what is in it.
pub(super) fn run(flags: &InfoFlags) -> anyhow::Result<()> {
    let index = Index::open(&flags.index)?;
    let info = Info {
        folder: flags.index.display().to_string(),
        generation: index.generation(),
        items: index.len(),
        deleted: index.deleted(),
        segments: index.segments(),
        dimension: index.dimension(),
        storage: index.storage().name(),
        bytes: index.bytes(),
        model_fingerprint: index.model_fingerprint(),
        created_by: index.created_by(),
        metadata: index.has_metadata(),
        query_bank: bank::sentences(&index)?,
        confidence: Confidence::read(&index)?.is_some(),
        correction: GalleryCorrection::read(&index)?.map(|correction| correction.correction().name()),
        graphs: index.graphs().map(|(items, report)| Graph { items, report }).collect(),
    };
    if flags.json {
        return print_json(&info);
    }
    print(&text_of(&info))
}

fn text_of(info: &Info<'_>) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        // Writing to a String can't fail.
        let _ = writeln!(text, "{name:<12}{value}");
    };
    line("index", info.folder.clone());
    line("generation", info.generation.to_string());
    let deleted = match info.deleted {
        0 => String::new(),
        deleted => format!(" ({deleted} deleted ones still take room until `aeir index compact`)"),
    };
    line("items", format!("{}{deleted}", info.items));
    line("segments", info.segments.to_string());
    line("vectors", format!("{} numbers each, kept as {}", info.dimension, info.storage));
    line("bytes", info.bytes.to_string());
    line("model", info.model_fingerprint.to_owned());
    line("metadata", if info.metadata { "yes" } else { "none" }.to_owned());
    let correction = info.correction.map_or_else(String::new, |name| format!(", correction {name}"));
    line(
        "query bank",
        info.query_bank.map_or("none".to_owned(), |count| format!("{count} sentences{correction}")),
    );
    if info.graphs.is_empty() {
        line("search", "exact".to_owned());
    }
    for Graph { items, report } in &info.graphs {
        line(
            "search",
            format!(
                "approximate for {items} items: {:.1} % of the ten best found, by {} queries like the items (effort {})",
                100.0 * report.recall_at_10,
                report.queries,
                report.effort
            ),
        );
    }
    text
}
