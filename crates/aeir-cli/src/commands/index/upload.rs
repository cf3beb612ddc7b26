//! `aeir index upload`, and `aeir index --to`: an index into a collection of a Milvus server.

use std::path::{Path, PathBuf};

use crate::flags::index::UploadCommandFlags;
use crate::flags::milvus::UploadFlags;
use crate::terminal::Terminal;

/// Puts an index that is there into a collection.
pub(super) fn run(flags: &UploadCommandFlags, terminal: &Terminal) -> anyhow::Result<()> {
    upload(&flags.index, &flags.index, &flags.to, &flags.upload, terminal)
}

/// Puts the index of a folder into a collection; `model` is where a search finds the model.
#[cfg(feature = "milvus")]
pub(super) fn upload(
    folder: &Path,
    model: &Path,
    to: &str,
    flags: &UploadFlags,
    terminal: &Terminal,
) -> anyhow::Result<()> {
    use aeir_retrieve::{Index, MilvusCollection, UploadProgress};

    let place = parsed(to)?;
    let index = Index::open(folder)?;
    let bar = terminal.bar("items", index.len());
    let report =
        MilvusCollection::upload(&place, &flags.milvus.access(), &index, &flags.options(), &mut |progress| {
            let UploadProgress { done, sent, .. } = progress;
            bar.set_position(done as u64);
            bar.set_message(format!("{sent} sent"));
        });
    bar.finish_and_clear();
    let report = report?;
    let mut text = format!(
        "collection {place}\nimages     {}: {} sent, {} were there\n",
        report.items,
        report.sent,
        report.items - report.sent
    );
    if report.deleted > 0 {
        text.push_str(&format!("deleted    {}\n", report.deleted));
    }
    if report.others > 0 {
        text.push_str(&format!("others     {}, not of this index\n", report.others));
    }
    if let Some(recall) = report.recall_at_10 {
        text.push_str(&format!("recall@10  {recall:.4} of an exact search of the index\n"));
    }
    let model = model.display();
    crate::commands::print(&format!(
        "{text}next       aeir search --index {place} --model {model} \"a sentence\"\n"
    ))
}

/// Refuses what names no collection, before there is work to lose.
#[cfg(feature = "milvus")]
pub(super) fn check(to: &str) -> anyhow::Result<()> {
    parsed(to).map(|_| ())
}

#[cfg(feature = "milvus")]
fn parsed(to: &str) -> anyhow::Result<aeir_retrieve::MilvusPlace> {
    Ok(to.parse()?)
}

#[cfg(not(feature = "milvus"))]
pub(super) fn upload(_: &Path, _: &Path, to: &str, _: &UploadFlags, _: &Terminal) -> anyhow::Result<()> {
    check(to)
}

#[cfg(not(feature = "milvus"))]
pub(super) fn check(_: &str) -> anyhow::Result<()> {
    Err(crate::collection::without_milvus())
}

/// A folder for an index that is wanted in a collection alone; it goes when the command ends.
pub(super) struct Scratch(PathBuf);

impl Scratch {
    pub(super) fn new() -> Self {
        Self(std::env::temp_dir().join(format!("aeir-index-{}", std::process::id())))
    }

    pub(super) fn folder(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Nobody is left to tell; the system clears the folder of temporary files.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
