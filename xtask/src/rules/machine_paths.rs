//! No text of the repository names a place on somebody's machine.

use crate::source::Source;
use crate::tree::Tree;
use crate::violation::Violation;

/// First folders of paths that exist on one machine only. Without slashes, so that this list doesn't break the rule.
const FOLDERS: [&str; 5] = ["home", "root", "work", "tmp", "Users"];
const SUFFIXES: [&str; 9] = [".md", ".toml", ".rs", ".cu", ".cuh", ".yml", ".yaml", ".sh", ".py"];
const SCRIPTS: &str = ".ci/";

pub(crate) fn check(tree: &Tree) -> Vec<Violation> {
    let texts = tree.texts().filter(|(path, _)| {
        path.starts_with(SCRIPTS) || SUFFIXES.iter().any(|suffix| path.ends_with(suffix))
    });
    let mut found = Vec::new();
    for (path, text) in texts {
        for (number, line) in lines(path, text) {
            if let Some(named) = machine_path(&line) {
                let what = format!("names the machine path `{named}`");
                found.push(Violation::new(
                    path,
                    number,
                    what,
                    "use a path relative to the repository, or a flag",
                ));
            }
        }
    }
    found
}

/// Lines to look at: tests may name any path, as text that nobody opens.
fn lines(path: &str, text: &str) -> Vec<(usize, String)> {
    if !path.ends_with(".rs") {
        return text.lines().enumerate().map(|(index, line)| (index + 1, line.to_owned())).collect();
    }
    if path.contains("/tests/") || path.ends_with("/tests.rs") {
        return Vec::new();
    }
    Source::new(text).shipped_lines(false)
}

/// The first absolute path in one of the folders, up to where it ends.
fn machine_path(line: &str) -> Option<&str> {
    FOLDERS.iter().find_map(|folder| {
        let start = format!("/{folder}/");
        line.match_indices(&start).map(|(at, _)| at).find(|at| begins_a_path(line, *at)).and_then(|at| {
            let path = line.get(at..)?;
            let end =
                path.find(|character: char| character.is_whitespace() || "\"'`)>],;".contains(character));
            path.get(..end.unwrap_or(path.len()))
        })
    })
}

/// Whether the `/` at `at` begins a path: in `src/work/a` and `$FOLDER/tmp/a` it goes on with one.
fn begins_a_path(line: &str, at: usize) -> bool {
    let before = line.get(..at).unwrap_or_default();
    before.ends_with("file://")
        || !before
            .ends_with(|character: char| character.is_alphanumeric() || "._-~*$)}]>/".contains(character))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(path: &str, text: &str) -> usize {
        check(&Tree::of([(path, text)])).len()
    }

    #[test]
    fn paths_of_one_machine_are_found() {
        for line in [
            "see /home/me/x",
            "`/root/x`",
            "path = \"/work/x\"",
            "(/tmp/x)",
            "A=/tmp/x",
            "<file:///tmp/x>",
            "- /Users/me/x",
        ] {
            for path in [
                "README.md",
                "crates/a/Cargo.toml",
                "crates/a/kernels/b.cu",
                ".ci/run",
                ".github/workflows/ci.yml",
                "a/src/b.rs",
            ] {
                assert_eq!(count(path, line), 1, "{path}: {line}");
            }
        }
    }

    #[test]
    fn other_paths_are_left_alone() {
        for line in [
            "src/work/x",
            "https://example.org/home/x",
            "$DIR/tmp/x",
            "{}/tmp/x",
            "/homeless/x",
            "/tmp",
            "~/work/x",
        ] {
            assert_eq!(count("README.md", line), 0, "{line}");
        }
        assert_eq!(count("fixtures/a.json", "/tmp/x"), 0);
        assert_eq!(count("crates/a/tests/it/b.rs", "\"/tmp/x\""), 0);
        assert_eq!(
            count("crates/a/src/b.rs", "#[cfg(test)]\nmod tests {\n    const A: &str = \"/tmp/x\";\n}\n"),
            0
        );
    }
}
