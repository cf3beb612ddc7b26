//! The files of the repository, read once; rules are functions of them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

/// Folders whose name starts with a dot and that belong to the repository; others are a tool's.
const HIDDEN_BUT_OURS: [&str; 3] = [".cargo", ".ci", ".github"];

/// Content of every file by its path from the root, `/` between parts.
#[derive(Debug, Default)]
pub(crate) struct Tree {
    files: BTreeMap<String, Vec<u8>>,
}

impl Tree {
    /// Reads the repository at `root`, without what its `.gitignore` names. Links are left out.
    pub(crate) fn read(root: &Path) -> anyhow::Result<Self> {
        let ignored = Ignored::read(root)?;
        let mut tree = Self::default();
        tree.read_folder(root, "", &ignored)?;
        Ok(tree)
    }

    fn read_folder(&mut self, folder: &Path, prefix: &str, ignored: &Ignored) -> anyhow::Result<()> {
        let entries =
            fs::read_dir(folder).with_context(|| format!("could not read `{}`", folder.display()))?;
        for entry in entries {
            let entry = entry?;
            let path = entry.path();
            let Ok(name) = entry.file_name().into_string() else {
                bail!("`{}`: the name is not UTF-8", path.display());
            };
            let inner = format!("{prefix}{name}");
            let kind = entry.file_type()?;
            let hidden = kind.is_dir() && name.starts_with('.') && !HIDDEN_BUT_OURS.contains(&name.as_str());
            if hidden || ignored.covers(&inner) {
                continue;
            }
            if kind.is_dir() {
                self.read_folder(&path, &format!("{inner}/"), ignored)?;
            } else if kind.is_file() {
                let content =
                    fs::read(&path).with_context(|| format!("could not read `{}`", path.display()))?;
                self.files.insert(inner, content);
            }
        }
        Ok(())
    }

    /// Paths in order.
    pub(crate) fn paths(&self) -> impl Iterator<Item = &str> {
        self.files.keys().map(String::as_str)
    }

    /// Paths and content of the files in a folder, at any depth, in order. `folder` ends with `/`.
    pub(crate) fn under(&self, folder: &str) -> impl Iterator<Item = (&str, &[u8])> {
        self.files
            .iter()
            .filter(move |(path, _)| path.starts_with(folder))
            .map(|(path, content)| (path.as_str(), content.as_slice()))
    }

    pub(crate) fn contains(&self, path: &str) -> bool {
        self.files.contains_key(path)
    }

    /// A file as text; `None` where it is missing or not UTF-8.
    pub(crate) fn text(&self, path: &str) -> Option<&str> {
        std::str::from_utf8(self.files.get(path)?).ok()
    }

    /// All files that are text.
    pub(crate) fn texts(&self) -> impl Iterator<Item = (&str, &str)> {
        self.files
            .iter()
            .filter_map(|(path, content)| Some((path.as_str(), std::str::from_utf8(content).ok()?)))
    }

    /// All Rust files.
    pub(crate) fn rust_files(&self) -> impl Iterator<Item = (&str, &str)> {
        self.texts().filter(|(path, _)| path.ends_with(".rs"))
    }

    /// Names of the folders directly in `folder`, which ends with `/`.
    pub(crate) fn folders_in(&self, folder: &str) -> Vec<&str> {
        let mut names: Vec<&str> = self
            .paths()
            .filter_map(|path| path.strip_prefix(folder)?.split_once('/'))
            .map(|(name, _)| name)
            .collect();
        names.dedup();
        names
    }

    #[cfg(test)]
    pub(crate) fn of<'a>(files: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let files = files.into_iter().map(|(path, text)| (path.to_owned(), text.as_bytes().to_vec()));
        Self { files: files.collect() }
    }
}

/// What is no part of the repository: what the root's `.gitignore` names as `/path` or `*suffix`.
struct Ignored {
    paths: Vec<String>,
    suffixes: Vec<String>,
}

impl Ignored {
    fn read(root: &Path) -> anyhow::Result<Self> {
        let file = root.join(".gitignore");
        let text =
            fs::read_to_string(&file).with_context(|| format!("could not read `{}`", file.display()))?;
        let mut ignored = Self { paths: Vec::new(), suffixes: Vec::new() };
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            match (line.strip_prefix('/'), line.strip_prefix('*')) {
                (Some(path), _) => ignored.paths.push(path.trim_end_matches('/').to_owned()),
                (None, Some(suffix)) => ignored.suffixes.push(suffix.to_owned()),
                (None, None) => {
                    bail!("`.gitignore`: `{line}` is neither `/path` nor `*suffix`, which is all xtask knows")
                }
            }
        }
        Ok(ignored)
    }

    fn covers(&self, path: &str) -> bool {
        self.paths.iter().any(|ignored| ignored == path)
            || self.suffixes.iter().any(|suffix| path.ends_with(suffix))
    }
}

/// The root of the workspace: the nearest folder above the working folder whose `Cargo.toml` has a `[workspace]`.
pub(crate) fn workspace_root() -> anyhow::Result<PathBuf> {
    let start = std::env::current_dir().context("could not tell the working folder")?;
    let is_root = |folder: &&Path| {
        fs::read_to_string(folder.join("Cargo.toml"))
            .is_ok_and(|text| text.lines().any(|line| line.trim() == "[workspace]"))
    };
    match start.ancestors().find(is_root) {
        Some(root) => Ok(root.to_owned()),
        None => bail!("no workspace above `{}`: run it inside the repository", start.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_files_are_no_part_of_the_tree() {
        let ignored = Ignored { paths: vec!["target".into()], suffixes: vec![".tmp".into()] };
        assert!(ignored.covers("target") && ignored.covers("crates/a/b.tmp"));
        assert!(!ignored.covers("targets") && !ignored.covers("crates/target"));
    }

    #[test]
    fn the_repository_is_read_from_its_root() {
        let tree = Tree::read(&workspace_root().unwrap()).unwrap();
        assert!(tree.contains(".ci/run"));
        assert!(tree.contains("xtask/src/tree.rs") && tree.text("Cargo.toml").is_some());
        assert!(tree.paths().all(|path| !path.starts_with("target/") && !path.starts_with(".git/")));
        assert!(tree.folders_in("crates/").contains(&"aeir-data"));
    }
}
