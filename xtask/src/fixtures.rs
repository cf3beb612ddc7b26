//! `cargo xtask fixtures`: the list of all fixtures with their hashes.

use anyhow::Context;
use sha2::{Digest, Sha256};

use crate::say;
use crate::tree::{Tree, workspace_root};

/// Where fixtures lie.
pub(crate) const FOLDER: &str = "fixtures/";
/// Their list: a line a file, sorted by path, as `sha256sum --check` inside the folder takes it.
pub(crate) const MANIFEST: &str = "fixtures/MANIFEST.sha256";

/// Writes the list anew.
pub(crate) fn run() -> anyhow::Result<()> {
    let root = workspace_root()?;
    let text = manifest_of(&Tree::read(&root)?);
    std::fs::write(root.join(MANIFEST), &text).with_context(|| format!("could not write `{MANIFEST}`"))?;
    say(&format!("{MANIFEST}: {} files\n", text.lines().count()))
}

/// The text of the list.
pub(crate) fn manifest_of(tree: &Tree) -> String {
    sums(tree).map(|(path, sum)| format!("{sum}  {path}\n")).collect()
}

/// Path inside the folder and SHA-256 of every fixture, in the order of paths.
pub(crate) fn sums(tree: &Tree) -> impl Iterator<Item = (&str, String)> {
    tree.under(FOLDER).filter(|(path, _)| *path != MANIFEST).map(|(path, content)| {
        (path.strip_prefix(FOLDER).unwrap_or(path), hexadecimal(&Sha256::digest(content)))
    })
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_what_sha256sum_writes() {
        let tree = Tree::of([("fixtures/b", ""), ("fixtures/a/b", "x"), (MANIFEST, "old"), ("other", "")]);
        assert_eq!(
            manifest_of(&tree),
            "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881  a/b\n\
             e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855  b\n"
        );
    }
}
