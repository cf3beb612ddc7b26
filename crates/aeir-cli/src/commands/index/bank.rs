//! The query bank of an index: kept as vectors, so that what was worked out from it can be worked out anew.

use std::path::Path;

use aeir_retrieve::{Confidence, Correction, GalleryCorrection, Index, IndexWriter, Matrix};
use anyhow::Context;

/// The vectors of the bank: little-endian `f32`, a sentence after the other.
const BANK_FILE: &str = "query-bank.f32";
/// The correction that was chosen: the index drops its penalties whenever items change, and all of them when none is left.
const CHOICE_FILE: &str = "query-bank-correction.json";

/// Works confidence and correction out and puts them, and the bank, into a folder.
pub(super) fn write(
    bank: &Matrix,
    correction: Option<Correction>,
    embeddings: &Matrix,
    folder: &Path,
) -> anyhow::Result<()> {
    let bytes: Vec<u8> = bank.values().iter().flat_map(|value| value.to_le_bytes()).collect();
    let file = folder.join(BANK_FILE);
    std::fs::write(&file, bytes).with_context(|| format!("could not write `{}`", file.display()))?;
    Confidence::of_bank(embeddings, bank)?.write(folder)?;
    if let Some(correction) = correction {
        let file = folder.join(CHOICE_FILE);
        let choice = serde_json::to_vec(&correction)?;
        std::fs::write(&file, choice).with_context(|| format!("could not write `{}`", file.display()))?;
        GalleryCorrection::of_bank(correction, embeddings, bank)?.write(folder)?;
    }
    Ok(())
}

/// Sentences of an index's bank; none where it has no bank.
pub(super) fn sentences(index: &Index) -> anyhow::Result<Option<usize>> {
    Ok(read(index)?.map(|bank| bank.rows()))
}

fn read(index: &Index) -> anyhow::Result<Option<Matrix>> {
    let Some(bytes) = index.read_file(BANK_FILE)? else { return Ok(None) };
    let values: Vec<f32> = bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    let rows = values.len() / index.dimension().max(1);
    Ok(Some(Matrix::new(values, rows, index.dimension())?))
}

/// Works out anew, for the items that a writer will commit, what its index has of a bank.
pub(super) fn renew(writer: &mut IndexWriter) -> anyhow::Result<()> {
    let index = writer.opened();
    let Some(bank) = read(index)? else { return Ok(()) };
    if writer.is_empty() {
        return Ok(());
    }
    let choice = index.read_file(CHOICE_FILE)?;
    let correction = choice.map(|choice| serde_json::from_slice(&choice)).transpose();
    let correction = correction.with_context(|| format!("could not read `{CHOICE_FILE}` of the index"))?;
    let (embeddings, ..) = writer.content()?;
    write(&bank, correction, &embeddings, writer.staging()?)
}
