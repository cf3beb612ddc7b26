//! A module says what it is for, first thing, and is named after it.

use crate::tree::Tree;
use crate::violation::Violation;

/// Names under which anything gathers.
const CATCH_ALL: [&str; 2] = ["utils", "common"];

pub(crate) fn check(tree: &Tree) -> Vec<Violation> {
    let mut found = Vec::new();
    for (path, text) in tree.rust_files() {
        let first = text.lines().map(str::trim_start).find(|line| !line.is_empty()).unwrap_or_default();
        if !first.starts_with("//!") && !first.starts_with("#![doc = include_str!") {
            found.push(Violation::new(
                path,
                1,
                "the module does not begin with `//!`",
                "say in its first line what it is for",
            ));
        }
        let mut names = path.trim_end_matches(".rs").split('/');
        if let Some(name) = names.find(|name| CATCH_ALL.contains(name)) {
            let what = format!("`{name}` says nothing about its content");
            found.push(Violation::new(path, 0, what, "name the file after the concept in it"));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(path: &str, text: &str) -> usize {
        check(&Tree::of([(path, text)])).len()
    }

    #[test]
    fn modules_begin_with_their_purpose() {
        assert_eq!(count("crates/a/src/lib.rs", "#![doc = include_str!(\"../README.md\")]\n"), 0);
        assert_eq!(count("crates/a/src/b.rs", "\n//! B.\n\nuse x;\n"), 0);
        for wrong in ["", "use x;\n//! B.\n", "// B.\n", "/// B.\nstruct B;\n"] {
            assert_eq!(count("crates/a/src/b.rs", wrong), 1, "{wrong:?}");
        }
    }

    #[test]
    fn names_that_say_nothing_are_found() {
        for path in ["crates/a/src/utils.rs", "crates/a/tests/common/mod.rs", "xtask/src/common.rs"] {
            assert_eq!(count(path, "//! A.\n"), 1, "{path}");
        }
        assert_eq!(count("crates/a/src/common_words.rs", "//! A.\n"), 0);
    }
}
