//! The documents name what there is: every crate, and only tests that exist.

use crate::manifest::crates;
use crate::source::mentions;
use crate::tree::Tree;
use crate::violation::Violation;

const ARCHITECTURE: &str = "ARCHITECTURE.md";
const DOCUMENTS: [&str; 2] = [ARCHITECTURE, "README.md"];

pub(crate) fn check(tree: &Tree) -> Vec<Violation> {
    let mut found = Vec::new();
    let (crates, _) = crates(tree);
    for document in DOCUMENTS {
        let Some(text) = tree.text(document) else {
            found.push(Violation::new(document, 0, "there is no such document", "write it"));
            continue;
        };
        let unnamed =
            crates.iter().filter(|member| member.folder.starts_with("crates/") && !names(text, &member.name));
        found.extend(unnamed.map(|member| {
            let what = format!("does not name the crate `{}`", member.name);
            Violation::new(document, 0, what, "say what it is for")
        }));
    }
    found.extend(tests_that_are_gone(tree));
    found
}

/// Whether `text` has `name` as a whole word: `aeir-data` is not named by `aeir-database`.
fn names(text: &str, name: &str) -> bool {
    let in_name = |character: char| character.is_alphanumeric() || "-_".contains(character);
    text.match_indices(name).any(|(at, _)| {
        let (before, after) =
            (text.get(..at).unwrap_or_default(), text.get(at + name.len()..).unwrap_or_default());
        !before.ends_with(in_name) && !after.starts_with(in_name)
    })
}

/// Tests that the architecture names as `` `PATH.rs::NAME` `` and that are not there.
fn tests_that_are_gone(tree: &Tree) -> Vec<Violation> {
    let mut found = Vec::new();
    for (index, line) in tree.text(ARCHITECTURE).unwrap_or_default().lines().enumerate() {
        for (path, name) in line.split('`').filter_map(|span| span.split_once(".rs::")) {
            let path = format!("{path}.rs");
            let there = tree
                .text(&path)
                .is_some_and(|text| text.lines().any(|line| mentions(line, &format!("fn {name}("))));
            if !there {
                let what = format!("names the test `{name}` of `{path}`, which does not exist");
                found.push(Violation::new(ARCHITECTURE, index + 1, what, "name the test that holds it now"));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANIFEST: (&str, &str) = ("crates/aeir-data/Cargo.toml", "[package]\nname = \"aeir-data\"\n");

    fn found(architecture: &str, readme: &str) -> Vec<String> {
        let source = ("crates/aeir-data/src/a.rs", "//! A.\n    fn it_holds() {\n");
        let tree = Tree::of([MANIFEST, source, (ARCHITECTURE, architecture), ("README.md", readme)]);
        check(&tree).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn every_crate_is_named_in_both() {
        assert!(found("- `aeir-data`: reads.", "aeir-data reads.").is_empty());
        assert_eq!(found("aeir-database", "aeir-data").len(), 1);
        assert_eq!(found("aeir-data", "").len(), 1);
        assert_eq!(check(&Tree::of([MANIFEST])).len(), 2, "both documents are missing");
    }

    #[test]
    fn tests_that_do_not_exist_are_found() {
        assert!(found("aeir-data `crates/aeir-data/src/a.rs::it_holds`", "aeir-data").is_empty());
        let gone = found("aeir-data\n`crates/aeir-data/src/a.rs::it_held`", "aeir-data");
        assert!(gone.len() == 1 && gone[0].starts_with("ARCHITECTURE.md:2: "), "{gone:?}");
        assert_eq!(found("aeir-data `crates/aeir-data/src/b.rs::it_holds`", "aeir-data").len(), 1);
    }
}
