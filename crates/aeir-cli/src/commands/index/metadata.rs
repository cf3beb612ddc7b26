//! What is kept with items: JSON lines, matched by name.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use aeir_retrieve::Metadata;
use anyhow::Context;
use serde_json::Value;

use crate::failure::CliError;
use crate::terminal::Terminal;

/// Keys that name an item.
const NAMES: [&str; 2] = ["item", "image"];

/// The lines of a file, by the name of the item.
pub(super) struct MetadataFile {
    path: PathBuf,
    lines: HashMap<String, Metadata>,
}

impl MetadataFile {
    /// # Errors
    /// Where a line is no JSON object that names an item, or two name the same.
    pub(super) fn read(path: &Path) -> anyhow::Result<Self> {
        let failed = || format!("could not read `{}`", path.display());
        let base = std::path::absolute(path).with_context(failed)?;
        let base = base.parent().unwrap_or(Path::new("/"));
        let mut lines = HashMap::new();
        for (number, line) in (1..).zip(BufReader::new(File::open(path).with_context(failed)?).lines()) {
            let line = line.with_context(failed)?;
            if line.trim().is_empty() {
                continue;
            }
            let bad = |message: String| CliError::Data {
                message: format!("`{}:{number}`: {message}", path.display()),
                hint: "a line is an object such as {\"image\": \"photos/1.jpg\", \"licence\": \"cc0\"}"
                    .into(),
            };
            let mut metadata: Metadata = serde_json::from_str(&line)
                .map_err(|error| bad(format!("expected a JSON object: {error}")))?;
            let name = NAMES.iter().find_map(|key| match metadata.remove(*key) {
                Some(Value::String(name)) => Some(name),
                _ => None,
            });
            let name = name.ok_or_else(|| bad("neither `image` nor `item` is a text".into()))?;
            // An absolute path stays what it is.
            let name = base.join(name).to_string_lossy().into_owned();
            if lines.insert(name.clone(), metadata).is_some() {
                return Err(bad(format!("`{name}` was described before")).into());
            }
        }
        Ok(Self { path: path.to_owned(), lines })
    }

    /// One object an item, empty where the file has none; says how many lines belong to no item.
    pub(super) fn of(mut self, items: &[String], terminal: &Terminal) -> Vec<Metadata> {
        let metadata = items.iter().map(|item| self.lines.remove(item).unwrap_or_default()).collect();
        if let Some(one) = self.lines.keys().min() {
            terminal.warn(&format!(
                "{} lines of `{}` are of no image that is indexed, for instance `{one}`",
                self.lines.len(),
                self.path.display()
            ));
        }
        metadata
    }
}
