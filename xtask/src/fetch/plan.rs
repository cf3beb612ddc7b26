//! What is there, what is missing, and whether it fits.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use anyhow::bail;

use super::client::HubVariables;
use super::disk::{free_bytes, readable};
use super::download::{bytes_there, sha256_of};
use super::manifest::{Asset, AssetFile, Trust};
use super::source::{Mirror, Source};
use super::state::{Found, State, place};
use crate::tree::workspace_root;

/// Free space that is left alone.
const RESERVE: u64 = 200_000_000;

/// The files of the chosen assets.
pub(super) struct Plan<'a> {
    pub(super) root: PathBuf,
    assets: Vec<&'a Asset>,
    items: Vec<Item<'a>>,
}

/// One file.
pub(super) struct Item<'a> {
    pub(super) asset: &'a Asset,
    pub(super) file: &'a AssetFile,
    pub(super) target: PathBuf,
    pub(super) found: Found,
}

impl<'a> Plan<'a> {
    /// Looks at what is there; with `verify` at every byte of it.
    pub(super) fn make(root: &Path, assets: &[&'a Asset], verify: bool) -> anyhow::Result<Self> {
        let mut items = Vec::new();
        for asset in assets {
            let folder = root.join(asset.place());
            let state = State::read(&folder)?;
            for file in &asset.files {
                let target = place(root, asset, file);
                let found = match state.find(&folder, file) {
                    Found::Here(known) if verify && !is_whole(&target, &known.sha256)? => Found::Missing,
                    found => found,
                };
                items.push(Item { asset, file, target, found });
            }
        }
        Ok(Self { root: root.to_owned(), assets: assets.to_vec(), items })
    }

    pub(super) fn is_complete(&self) -> bool {
        self.missing().next().is_none()
    }

    /// Files with something left to do.
    pub(super) fn missing(&self) -> impl Iterator<Item = &Item<'a>> {
        self.items.iter().filter(|item| !matches!(item.found, Found::Here(_)))
    }

    /// Assets that lack something.
    pub(super) fn incomplete(&self) -> impl Iterator<Item = &'a Asset> {
        let lacks = |asset: &&&Asset| self.missing().any(|item| item.asset.name == asset.name);
        self.assets.iter().filter(lacks).copied()
    }

    /// The assets and their folders.
    pub(super) fn places(&self) -> impl Iterator<Item = (&'a Asset, PathBuf)> {
        self.assets.iter().map(|asset| (*asset, self.root.join(asset.place())))
    }

    /// Bytes that are still to come, as far as is known.
    pub(super) fn bytes(&self) -> u64 {
        self.missing().map(Item::bytes).sum()
    }

    /// Refuses what would not fit, before anything is asked of a server.
    pub(super) fn check_space(&self) -> anyhow::Result<()> {
        let needed: u64 = self.missing().map(|item| item.needed_bytes()).sum();
        let Some(free) = free_bytes(&self.root) else { return Ok(()) };
        if free < needed.saturating_add(RESERVE) {
            bail!(
                "no space left in `{}`: this takes {} with what is unpacked, {} are free\nhint: another folder with --to, or fewer names",
                self.root.display(),
                readable(needed),
                readable(free)
            );
        }
        Ok(())
    }

    /// What would be done.
    pub(super) fn text(&self, mirror: Option<&Mirror>) -> String {
        let endpoint = HubVariables::read().map(|hub| hub.endpoint).unwrap_or_default();
        let repository = workspace_root().unwrap_or_default();
        let mut text = String::new();
        for (asset, folder) in self.places() {
            let _ = writeln!(
                text,
                "{}: {}\n  licence  {}\n  into     {}",
                asset.name,
                asset.purpose,
                asset.licence,
                folder.display()
            );
            for item in self.items.iter().filter(|item| item.asset.name == asset.name) {
                let source = Source::of(asset, item.file, mirror, &endpoint, &repository);
                let _ = writeln!(
                    text,
                    "  {:<9}{:<36} {:>10}  {}",
                    item.state(),
                    item.file.path,
                    item.size(),
                    source.text(asset)
                );
                let _ = writeln!(text, "           {}", item.trust());
            }
        }
        let free =
            free_bytes(&self.root).map(|free| format!(", {} are free", readable(free))).unwrap_or_default();
        let _ = writeln!(text, "\n{} to fetch{free}. Nothing was fetched.", readable(self.bytes()));
        text
    }

    /// What is not there.
    pub(super) fn missing_text(&self) -> String {
        let mut text = String::from("missing:\n");
        for item in self.missing() {
            let _ = writeln!(text, "  {}/{}  {}", item.asset.place(), item.file.path, item.size());
        }
        text
    }
}

impl Item<'_> {
    /// Room that it still takes.
    fn needed_bytes(&self) -> u64 {
        match &self.found {
            Found::Packed(known) => known.size,
            _ => self.file.needed_bytes().saturating_sub(bytes_there(&self.target)),
        }
    }

    fn bytes(&self) -> u64 {
        self.file.size.max(self.file.about_mb.saturating_mul(1_000_000))
    }

    fn state(&self) -> &'static str {
        match self.found {
            Found::Here(_) => "there",
            Found::Foreign => "unknown",
            Found::Packed(_) => "packed",
            Found::Missing if bytes_there(&self.target) > 0 => "begun",
            Found::Missing => "missing",
        }
    }

    fn size(&self) -> String {
        match (self.file.size, self.file.about_mb) {
            (0, 0) => "size unknown".to_owned(),
            (0, _) => format!("~{}", readable(self.bytes())),
            (size, _) => readable(size),
        }
    }

    fn trust(&self) -> String {
        match (self.file.trust, self.file.sha256.as_str()) {
            (_, "") => {
                "SHA-256 not known: whatever comes first is trusted, and its hash written down".to_owned()
            }
            (Trust::Verified, hash) => format!("SHA-256 {hash}"),
            (Trust::FirstUse, hash) => format!("SHA-256 {hash}, from the first download"),
        }
    }
}

/// Whether the bytes are those that were fetched; of an archive that is gone nothing can be said.
fn is_whole(target: &Path, sha256: &str) -> anyhow::Result<bool> {
    if !target.is_file() {
        return Ok(true);
    }
    let (found, _) = sha256_of(target).map_err(|failure| anyhow::anyhow!(failure.message))?;
    Ok(found == sha256)
}
