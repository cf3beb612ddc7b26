//! `fixtures/MANIFEST.sha256` agrees with the files.

use std::collections::BTreeMap;

use crate::fixtures::{FOLDER, MANIFEST, sums};
use crate::tree::Tree;
use crate::violation::Violation;

const RENEW: &str = "where that is meant, run `cargo xtask fixtures`";

pub(crate) fn check(tree: &Tree) -> Vec<Violation> {
    let Some(text) = tree.text(MANIFEST) else {
        return vec![Violation::new(MANIFEST, 0, "there is no such file", "run `cargo xtask fixtures`")];
    };
    let mut found = Vec::new();
    let mut listed = BTreeMap::new();
    let mut last = "";
    for (index, line) in text.lines().enumerate() {
        let Some((sum, path)) = line.split_once("  ") else {
            found.push(Violation::new(
                MANIFEST,
                index + 1,
                "is no line `SHA-256  PATH`",
                "run `cargo xtask fixtures`",
            ));
            continue;
        };
        if path <= last {
            let what = format!("`{path}` is out of order");
            found.push(Violation::new(MANIFEST, index + 1, what, "run `cargo xtask fixtures`"));
        }
        last = path;
        listed.insert(path, (index + 1, sum));
    }
    for (path, sum) in sums(tree) {
        let file = format!("{FOLDER}{path}");
        match listed.remove(path) {
            None => found.push(Violation::new(&file, 0, format!("is not in `{MANIFEST}`"), RENEW)),
            Some((line, listed)) if listed != sum => {
                let what = format!("`{file}` is not what it was: expected {listed}, got {sum}");
                found.push(Violation::new(MANIFEST, line, what, format!("restore the file; {RENEW}")));
            }
            Some(_) => {}
        }
    }
    found.extend(listed.into_iter().map(|(path, (line, _))| {
        Violation::new(MANIFEST, line, format!("`{FOLDER}{path}` is missing"), format!("restore it; {RENEW}"))
    }));
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::manifest_of;

    const FILES: [(&str, &str); 2] = [("fixtures/b", "two"), ("fixtures/a/c", "one")];

    fn found(files: [(&str, &str); 2], manifest: &str) -> Vec<String> {
        let tree = Tree::of(files.into_iter().chain([(MANIFEST, manifest)]));
        check(&tree).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn additions_losses_and_changes_are_found() {
        let manifest = manifest_of(&Tree::of(FILES));
        assert!(found(FILES, &manifest).is_empty());
        assert_eq!(check(&Tree::of(FILES)).len(), 1, "no manifest");
        let changed = found([("fixtures/b", "three"), FILES[1]], &manifest);
        assert!(changed.len() == 1 && changed[0].contains("MANIFEST.sha256:2: "), "{changed:?}");
        assert_eq!(found([("fixtures/d", "two"), FILES[1]], &manifest).len(), 2, "one new, one missing");
    }

    #[test]
    fn lines_are_whole_and_in_order() {
        let manifest = manifest_of(&Tree::of(FILES));
        let turned: Vec<&str> = manifest.lines().rev().collect();
        assert_eq!(found(FILES, &turned.join("\n")).len(), 1);
        assert_eq!(found(FILES, &format!("{manifest}nonsense\n")).len(), 1);
    }
}
