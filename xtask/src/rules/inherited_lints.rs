//! Every crate takes its lints from the workspace.

use crate::manifest::crates;
use crate::tree::Tree;
use crate::violation::Violation;

pub(crate) fn check(tree: &Tree) -> Vec<Violation> {
    let (crates, _) = crates(tree);
    let without = crates.iter().filter(|member| !member.inherits_lints());
    without
        .map(|member| {
            let what = format!("`{}` does not take the workspace's lints", member.name);
            Violation::new(&member.file, 0, what, "add `[lints]` with `workspace = true`")
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crate_with_lints_of_its_own_is_found() {
        let right = "[package]\nname = \"a\"\n[lints]\nworkspace = true\n";
        let wrong = "[package]\nname = \"b\"\n[lints.rust]\nmissing_docs = \"allow\"\n";
        let found = check(&Tree::of([("crates/a/Cargo.toml", right), ("crates/b/Cargo.toml", wrong)]));
        assert!(found.len() == 1 && found[0].to_string().starts_with("crates/b/Cargo.toml"));
    }
}
