//! Cargo manifests: what each crate of the workspace depends on.

use std::collections::BTreeMap;

use toml::{Table, Value};

use crate::tree::Tree;
use crate::violation::Violation;

/// A crate of the workspace.
#[derive(Debug)]
pub(crate) struct Crate<'a> {
    /// Package name.
    pub(crate) name: String,
    /// Folder from the root, without a `/` at the end.
    pub(crate) folder: &'a str,
    /// Path of its manifest.
    pub(crate) file: String,
    text: &'a str,
    table: Table,
    pub(crate) dependencies: Vec<Dependency>,
}

/// One entry of a dependency table.
#[derive(Debug)]
pub(crate) struct Dependency {
    /// Name that the manifest gives it.
    pub(crate) key: String,
    /// Name of the package, which a manifest may rename.
    pub(crate) package: String,
    /// Line of the manifest, from 1.
    pub(crate) line: usize,
    /// Whether it is for tests alone.
    pub(crate) development: bool,
}

/// All crates of the workspace, and manifests that can't be read.
pub(crate) fn crates(tree: &Tree) -> (Vec<Crate<'_>>, Vec<Violation>) {
    let workspace = tree.text("Cargo.toml").and_then(|text| text.parse::<Table>().ok()).unwrap_or_default();
    let renamed = renamed_packages(&workspace);
    let (mut found, mut violations) = (Vec::new(), Vec::new());
    let manifests = tree.texts().filter(|(path, _)| {
        (path.starts_with("crates/") && path.matches('/').count() == 2) || path.starts_with("xtask/")
    });
    for (file, text) in manifests {
        let Some(folder) = file.strip_suffix("/Cargo.toml") else { continue };
        match Crate::parse(file, folder, text, &renamed) {
            Ok(parsed) => found.push(parsed),
            Err(reason) => violations.push(Violation::new(file, 0, reason, "mend the manifest")),
        }
    }
    (found, violations)
}

/// Packages of `[workspace.dependencies]` whose key is another name.
fn renamed_packages(workspace: &Table) -> BTreeMap<String, String> {
    let entries =
        workspace.get("workspace").and_then(|table| table.get("dependencies")).and_then(Value::as_table);
    entries.into_iter().flatten().filter_map(|(key, entry)| Some((key.clone(), package_of(entry)?))).collect()
}

fn package_of(entry: &Value) -> Option<String> {
    Some(entry.get("package")?.as_str()?.to_owned())
}

impl<'a> Crate<'a> {
    fn parse(
        file: &str,
        folder: &'a str,
        text: &'a str,
        renamed: &BTreeMap<String, String>,
    ) -> Result<Self, String> {
        let table: Table = text.parse().map_err(|error| format!("is no TOML: {error}"))?;
        let name = table.get("package").and_then(|package| package.get("name")).and_then(Value::as_str);
        let name = name.ok_or("has no package name")?.to_owned();
        let mut parsed = Self { name, folder, file: file.to_owned(), text, dependencies: Vec::new(), table };
        let mut tables = vec![&parsed.table];
        tables.extend(
            parsed
                .table
                .get("target")
                .and_then(Value::as_table)
                .into_iter()
                .flatten()
                .filter_map(|(_, target)| target.as_table()),
        );
        let mut dependencies = Vec::new();
        for (section, development) in
            [("dependencies", false), ("build-dependencies", false), ("dev-dependencies", true)]
        {
            let entries = tables.iter().filter_map(|table| table.get(section)?.as_table()).flatten();
            dependencies.extend(entries.map(|(key, entry)| Dependency {
                package:
                    package_of(entry).or_else(|| renamed.get(key).cloned()).unwrap_or_else(|| key.clone()),
                line: parsed.line_of(key),
                key: key.clone(),
                development,
            }));
        }
        parsed.dependencies = dependencies;
        Ok(parsed)
    }

    /// The line that sets `key`, from 1; 0 where there is none.
    pub(crate) fn line_of(&self, key: &str) -> usize {
        let sets = |line: &str| {
            let rest = line.trim_start().trim_start_matches('"').strip_prefix(key);
            rest.is_some_and(|rest| rest.starts_with(['.', ' ', '=', '"']))
        };
        self.text.lines().position(sets).map_or(0, |index| index + 1)
    }

    /// Whether it takes its lints from the workspace.
    pub(crate) fn inherits_lints(&self) -> bool {
        self.table.get("lints").and_then(|lints| lints.get("workspace")).and_then(Value::as_bool)
            == Some(true)
    }

    /// What a feature turns on; `None` where there is no such feature.
    pub(crate) fn feature(&self, name: &str) -> Option<Vec<&str>> {
        let entries = self.table.get("features")?.get(name)?.as_array()?;
        Some(entries.iter().filter_map(Value::as_str).collect())
    }

    /// Whether it computes with candle.
    pub(crate) fn uses_candle(&self) -> bool {
        self.dependencies.iter().any(|dependency| !dependency.development && is_candle(&dependency.package))
    }
}

/// Whether a package is one of candle's.
pub(crate) fn is_candle(package: &str) -> bool {
    package == "candle" || package.starts_with("candle-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_dependency_is_seen() {
        let tree = Tree::of([
            (
                "Cargo.toml",
                "[workspace.dependencies]\nother = { package = \"candle-core\", version = \"1\" }\n",
            ),
            (
                "crates/a/Cargo.toml",
                "[package]\nname = \"a\"\n[dependencies]\nother.workspace = true\n[dev-dependencies]\nproptest = \"1\"\n\
                 [build-dependencies]\ncc = \"1\"\n[target.'cfg(unix)'.dependencies]\nlog = { package = \"tracing\" }\n",
            ),
            ("crates/a/tests/data/Cargo.toml", "not a manifest"),
            ("crates/b/Cargo.toml", "not a manifest"),
        ]);
        let (crates, violations) = crates(&tree);
        let seen: Vec<_> =
            crates[0].dependencies.iter().map(|it| (it.package.as_str(), it.line, it.development)).collect();
        assert_eq!(
            seen,
            [("candle-core", 4, false), ("tracing", 10, false), ("cc", 8, false), ("proptest", 6, true)]
        );
        assert!(crates[0].uses_candle());
        assert_eq!((crates.len(), violations.len()), (1, 1));
    }
}
