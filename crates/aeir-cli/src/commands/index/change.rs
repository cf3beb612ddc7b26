//! `aeir index add`, `remove` and `compact`: changes to an index that is in use.

use std::path::Path;

use aeir_data::Dataset;
use aeir_encoders::Bundle;
use aeir_retrieve::{IndexContent, IndexWriter};
use anyhow::Context;

use super::metadata::MetadataFile;
use super::{MODEL_FOLDER, bank, embedded};
use crate::backbones::extractor_of;
use crate::commands::{print, tell_skipped};
use crate::failure::CliError;
use crate::flags::index::{AddFlags, CompactFlags, RemoveFlags};
use crate::place::feature_cache;
use crate::progress::extraction;
use crate::terminal::Terminal;

/// Embeds images and adds them.
pub(super) fn add(flags: &AddFlags, terminal: &Terminal) -> anyhow::Result<()> {
    // Claims the index first: a refusal should not come after the work.
    let mut writer = IndexWriter::open(&flags.index)?;
    let device = flags.device.device.open(terminal)?;
    let bundle = Bundle::load(&flags.index.join(MODEL_FOLDER), &device)?;
    writer.opened().check_model(bundle.fingerprint())?;
    let metadata = flags.metadata.metadata.as_deref().map(MetadataFile::read).transpose()?;
    let data = Dataset::open_images(&flags.images, &flags.reading.options())?;
    data.notes.iter().for_each(|note| terminal.warn(note));
    let mut extractor = extractor_of(&bundle)?
        .with_cache(&feature_cache()?)?
        .with_limits(flags.loading.limits())
        .with_progress(extraction(terminal));
    let (embeddings, items, skipped) = embedded(&bundle, &mut extractor, &data.images())?;
    let metadata = metadata.map_or_else(Vec::new, |file| file.of(&items, terminal));
    let content =
        IndexContent { metadata: &metadata, ..IndexContent::new(&embeddings, &items, bundle.fingerprint()) };
    let replaced = writer.add(content)?;
    bank::renew(&mut writer)?;
    writer.commit()?;
    let skipped: Vec<_> = data.skipped.into_iter().chain(skipped).collect();
    tell_skipped(terminal, &skipped, None);
    let added = items.len() - replaced;
    print(&format!("added     {added}\nreplaced  {replaced}\nitems     {}\n", writer.len()))
}

/// Deletes items.
pub(super) fn remove(flags: &RemoveFlags) -> anyhow::Result<()> {
    let mut items = flags.items.clone();
    if let Some(file) = &flags.ids {
        items.extend(lines(file)?);
    }
    let mut writer = IndexWriter::open(&flags.index)?;
    // A path may be named as it is typed; items are absolute paths.
    for item in &mut items {
        if !writer.contains(item)
            && let Ok(absolute) = std::path::absolute(&*item)
            && writer.contains(&absolute.to_string_lossy())
        {
            *item = absolute.to_string_lossy().into_owned();
        }
    }
    writer.remove(&items)?;
    let removed = writer.opened().len() - writer.len();
    bank::renew(&mut writer)?;
    writer.commit()?;
    print(&format!("removed  {removed}\nitems    {}\n", writer.len()))
}

/// The lines of a file of items.
pub(crate) fn lines(file: &Path) -> anyhow::Result<Vec<String>> {
    let text =
        std::fs::read_to_string(file).with_context(|| format!("could not read `{}`", file.display()))?;
    let items: Vec<String> = text.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect();
    if items.is_empty() {
        return Err(CliError::Data {
            message: format!("`{}` names no item", file.display()),
            hint: "write one a line, as `aeir search` names them".into(),
        }
        .into());
    }
    Ok(items)
}

/// Writes one segment of what is left.
pub(super) fn compact(flags: &CompactFlags, terminal: &Terminal) -> anyhow::Result<()> {
    let mut writer = IndexWriter::open(&flags.index)?;
    writer.set_approximate(flags.approximate.approximate.of(writer.len()));
    if flags.approximate.approximate.of(writer.len()) {
        terminal.note(&format!("building a graph of {} items", writer.len()));
    }
    writer.compact()?;
    bank::renew(&mut writer)?;
    writer.commit()?;
    let before = writer.opened();
    let bytes = before.newer()?.map_or(before.bytes(), |after| after.bytes());
    print(&format!("items  {}\nbytes  {bytes} (before {})\n", writer.len(), before.bytes()))
}
