//! Every fixture says where it comes from; data sets and backbones bring their licence.

use crate::tree::Tree;
use crate::violation::Violation;

pub(crate) fn check(tree: &Tree) -> Vec<Violation> {
    let mut found = Vec::new();
    for (kind, with_licence) in [("datasets", true), ("backbones", true), ("parity", false)] {
        let parent = format!("fixtures/{kind}/");
        for name in tree.folders_in(&parent) {
            let folder = format!("{parent}{name}/");
            if !tree.contains(&format!("{folder}README.md")) {
                let remedy = "say what it is, where it comes from and how it was made";
                found.push(Violation::new(&folder, 0, "has no README.md", remedy));
            }
            let licensed = tree
                .paths()
                .filter_map(|path| path.strip_prefix(&folder))
                .any(|file| file.starts_with("LICENSE") || file.starts_with("LICENCE"));
            if with_licence && !licensed {
                let remedy =
                    "put the licence it came under beside it, as a file whose name begins with LICENSE";
                found.push(Violation::new(&folder, 0, "has no licence file", remedy));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_without_origin_or_licence_are_found() {
        let right = [
            ("fixtures/datasets/a/README.md", ""),
            ("fixtures/datasets/a/LICENSE-CC0.txt", ""),
            ("fixtures/parity/losses/README.md", ""),
            ("fixtures/parity/losses/a.safetensors", ""),
        ];
        assert!(check(&Tree::of(right)).is_empty());
        let found = check(&Tree::of([
            ("fixtures/datasets/a/README.md", ""),
            ("fixtures/backbones/b/model.safetensors", ""),
            ("fixtures/parity/losses/a.safetensors", ""),
        ]));
        assert_eq!(found.len(), 4);
    }
}
