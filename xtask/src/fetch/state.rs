//! What an asset's folder is known to hold: a record beside the files, so that nothing is fetched or hashed twice.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::manifest::{Asset, AssetFile};

const NAME: &str = ".fetched.json";

/// Files by their path in the asset's folder.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct State {
    files: BTreeMap<String, Known>,
}

/// A file that was fetched and checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Known {
    pub(super) size: u64,
    pub(super) sha256: String,
    /// Of an archive: files that came out of it. It need not be there any more.
    #[serde(default)]
    pub(super) unpacked: usize,
}

/// Whether there is something to do for a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Found {
    Missing,
    Here(Known),
    /// An archive that is whole and was not unpacked to the end.
    Packed(Known),
    /// A file that nobody fetched lies in its place.
    Foreign,
}

impl State {
    pub(super) fn read(folder: &Path) -> anyhow::Result<Self> {
        let file = folder.join(NAME);
        let Ok(text) = std::fs::read_to_string(&file) else { return Ok(Self::default()) };
        serde_json::from_str(&text).with_context(|| format!("`{}`: remove it", file.display()))
    }

    pub(super) fn add(&mut self, folder: &Path, path: &str, known: Known) -> anyhow::Result<()> {
        self.files.insert(path.to_owned(), known);
        let file = folder.join(NAME);
        let unfinished = folder.join(format!("{NAME}.tmp"));
        let text = serde_json::to_string_pretty(self)? + "\n";
        std::fs::write(&unfinished, text)
            .and_then(|()| std::fs::rename(&unfinished, &file))
            .with_context(|| format!("could not write `{}`", file.display()))
    }

    /// What is there of a file. One that the manifest expects to be another counts as missing.
    pub(super) fn find(&self, folder: &Path, file: &AssetFile) -> Found {
        let there = std::fs::metadata(folder.join(&file.path)).ok().map(|found| found.len());
        let Some(known) = self.files.get(&file.path) else {
            return if there.is_some() { Found::Foreign } else { Found::Missing };
        };
        let expected = file.sha256.is_empty() || file.sha256 == known.sha256;
        match (expected, there == Some(known.size), file.unpack.is_some() && known.unpacked == 0) {
            (true, true, true) => Found::Packed(known.clone()),
            (true, true, false) => Found::Here(known.clone()),
            (true, false, _) if known.unpacked > 0 => Found::Here(known.clone()),
            _ => Found::Missing,
        }
    }
}

/// Where a file of an asset lies.
pub(super) fn place(root: &Path, asset: &Asset, file: &AssetFile) -> PathBuf {
    root.join(asset.place()).join(&file.path)
}
