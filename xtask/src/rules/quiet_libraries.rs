//! Libraries never print, exit or read the environment.

use super::DOOR;
use crate::source::{Source, mentions};
use crate::tree::Tree;
use crate::violation::Violation;

const FORBIDDEN: [(&str, &str); 12] = [
    ("println!", PRINTS),
    ("print!", PRINTS),
    ("eprintln!", PRINTS),
    ("eprint!", PRINTS),
    ("dbg!", PRINTS),
    ("io::stdout", PRINTS),
    ("io::stderr", PRINTS),
    ("process::exit", "return an error: the caller decides when to end"),
    ("process::abort", "return an error: the caller decides when to end"),
    ("env::var", "take it as an argument: aeir-cli reads the environment"),
    ("env::vars", "take it as an argument: aeir-cli reads the environment"),
    ("env::args", "take it as an argument: aeir-cli reads the flags"),
];
const PRINTS: &str = "return it, or log it with `tracing`: only aeir-cli prints";

pub(crate) fn check(tree: &Tree) -> Vec<Violation> {
    let door = format!("crates/{DOOR}/");
    let sources = tree.rust_files().filter(|(path, _)| {
        path.starts_with("crates/")
            && !path.starts_with(&door)
            && path.contains("/src/")
            && !path.ends_with("/tests.rs")
    });
    let mut found = Vec::new();
    for (path, text) in sources {
        for (number, line) in Source::new(text).shipped_lines(true) {
            let broken = FORBIDDEN.iter().find(|(pattern, _)| mentions(&line, pattern));
            if let Some((pattern, remedy)) = broken {
                found.push(Violation::new(path, number, format!("a library uses `{pattern}`"), *remedy));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(path: &str, text: &str) -> usize {
        check(&Tree::of([(path, text)])).len()
    }

    #[test]
    fn each_way_to_the_outside_is_found() {
        for (pattern, _) in FORBIDDEN {
            let text = format!("//! A.\nfn f() {{ std::{pattern}(\"x\") }}\n");
            let found = check(&Tree::of([("crates/aeir-data/src/a.rs", text.as_str())]));
            assert!(found.len() == 1 && found[0].to_string().contains("a.rs:2: "), "{pattern}");
        }
    }

    #[test]
    fn tests_examples_documentation_and_the_command_may() {
        let text = "//! `println!`\n/// println!(\"x\");\nfn f() { \"eprintln!\"; env!(\"X\"); }\n\
                    #[cfg(test)]\nmod tests { fn g() { println!(\"\"); } }\n";
        assert_eq!(lines("crates/aeir-data/src/a.rs", text), 0);
        for path in
            ["crates/aeir-cli/src/a.rs", "crates/aeir-data/tests/it/a.rs", "crates/aeir-data/examples/a.rs"]
        {
            assert_eq!(lines(path, "fn f() { println!(\"\") }"), 0, "{path}");
        }
    }
}
