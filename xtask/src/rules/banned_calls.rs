//! Calls of candle that go wrong silently stay banned: `clippy.toml` names them, and no code does.
//!
//! Clippy resolves imports and finds every use; this finds those that are written out, on machines without clippy as well, and that the list
//! of clippy is not shortened or switched off.

use toml::{Table, Value};

use crate::source::{Source, mentions};
use crate::tree::Tree;
use crate::violation::Violation;

const LIST: &str = "clippy.toml";
/// What must be in the list: operations without a gradient, and randomness without a seed.
const BANNED: [&str; 13] = [
    "candle_nn::ops::softmax_last_dim",
    "candle_nn::ops::rms_norm",
    "candle_nn::ops::layer_norm",
    "candle_nn::ops::sdpa",
    "candle_nn::ops::dropout",
    "candle_nn::rotary_emb::rope",
    "candle_nn::VarMap::all_vars",
    "candle_core::Tensor::rand",
    "candle_core::Tensor::randn",
    "candle_nn::LayerNorm",
    "candle_nn::RmsNorm",
    "candle_nn::Dropout",
    "candle_nn::AdamW",
];
/// Matrix products that no rehearsal of a GPU would see, the crates that it watches, and where the products it sees are made. Those of
/// aeir-kernels are made on a card alone, where `aeir selftest` runs them.
const UNSEEN: &str = ".matmul(";
const WATCHED: [&str; 3] = ["crates/aeir-encoders/src/", "crates/aeir-losses/src/", "crates/aeir-train/src/"];
const SEEN_IN: &str = "/rehearsal.rs";
/// How the list would be switched off.
const SWITCHES: [&str; 2] = ["clippy::disallowed_methods", "clippy::disallowed_types"];

pub(crate) fn check(tree: &Tree) -> Vec<Violation> {
    let Some(list) = tree.text(LIST).and_then(|text| text.parse::<Table>().ok()) else {
        return vec![Violation::new(
            LIST,
            0,
            "is not there, or no TOML",
            "restore it: it bans calls that lose gradients",
        )];
    };
    let listed = banned(&list);
    let mut found = Vec::new();
    for path in BANNED.iter().filter(|path| !listed.iter().any(|listed| listed == *path)) {
        found.push(Violation::new(
            LIST,
            0,
            format!("does not ban `{path}`"),
            "put it back, with its replacement as the reason",
        ));
    }
    for (file, text) in tree.rust_files().filter(|(file, _)| file.starts_with("crates/")) {
        for (number, line) in Source::new(text).shipped_lines(true) {
            if let Some(path) = listed.iter().find(|path| names(&line, path)) {
                let what = format!("uses `{path}`, which goes wrong silently");
                found.push(Violation::new(
                    file,
                    number,
                    what,
                    format!("{LIST} names what to use in its place"),
                ));
            }
            let is_watched = WATCHED.iter().any(|folder| file.starts_with(folder));
            if is_watched && !file.ends_with(SEEN_IN) && line.contains(UNSEEN) {
                found.push(Violation::new(
                    file,
                    number,
                    "multiplies by `matmul`, which `aeir selftest` does not see",
                    "call `product` of that crate's `rehearsal::Product`",
                ));
            }
            if let Some(switch) = SWITCHES.iter().find(|switch| mentions(&line, switch)) {
                let remedy = "use what clippy.toml names in its place";
                found.push(Violation::new(file, number, format!("switches `{switch}` off"), remedy));
            }
        }
    }
    found
}

/// Paths in both lists.
fn banned(list: &Table) -> Vec<&str> {
    let entries = ["disallowed-methods", "disallowed-types"]
        .into_iter()
        .filter_map(|key| list.get(key)?.as_array())
        .flatten();
    entries.filter_map(|entry| entry.get("path").and_then(Value::as_str)).collect()
}

/// Whether a path stands in a line and is not the beginning of a longer one.
fn names(line: &str, path: &str) -> bool {
    let in_name = |character: char| character.is_alphanumeric() || character == '_';
    line.match_indices(path)
        .any(|(at, _)| !line.get(at + path.len()..).unwrap_or_default().starts_with(in_name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list() -> String {
        let entries: Vec<String> =
            BANNED.iter().map(|path| format!("{{ path = \"{path}\", reason = \"x\" }}")).collect();
        format!("disallowed-methods = [{}]\n", entries.join(", "))
    }

    fn found(source: &str) -> usize {
        let list = list();
        check(&Tree::of([(LIST, list.as_str()), ("crates/a/src/b.rs", source)])).len()
    }

    #[test]
    fn banned_calls_are_found_and_longer_names_are_not() {
        assert_eq!(found("fn f() { candle_nn::ops::layer_norm(x); }\n"), 1);
        assert_eq!(found("use candle_nn::LayerNorm;\n"), 1);
        assert_eq!(found("fn f() { candle_nn::ops::layer_norm_slow(x); }\n"), 0);
        assert_eq!(found("//! `candle_nn::ops::layer_norm` loses gradients.\n"), 0);
        assert_eq!(found("#[allow(clippy::disallowed_methods)]\nfn f() {}\n"), 1);
    }

    #[test]
    fn products_that_no_rehearsal_sees_are_found() {
        let list = list();
        let found = |file, source| check(&Tree::of([(LIST, list.as_str()), (file, source)])).len();
        let product = "fn f() { a.matmul(&b)?; }\n";
        assert_eq!(found("crates/aeir-losses/src/coral.rs", product), 1);
        assert_eq!(found("crates/aeir-losses/src/rehearsal.rs", product), 0);
        assert_eq!(found("crates/aeir-cli/src/main.rs", product), 0);
        assert_eq!(found("crates/aeir-kernels/src/rows.rs", product), 0);
        // What is banned everywhere is banned there.
        assert_eq!(found("crates/aeir-kernels/src/rows.rs", "use candle_nn::LayerNorm;\n"), 1);
        assert_eq!(
            found(
                "crates/aeir-losses/src/coral.rs",
                "#[cfg(test)]\nmod tests {\n    fn f() { a.matmul(&b); }\n}\n"
            ),
            0
        );
    }

    #[test]
    fn a_shorter_list_is_found() {
        let shorter = list().replacen("candle_nn::ops::sdpa", "other", 1);
        assert_eq!(check(&Tree::of([(LIST, shorter.as_str())])).len(), 1);
        assert_eq!(check(&Tree::default()).len(), 1);
    }
}
