//! `cargo xtask tidy`: all house rules over the repository.

use std::process::ExitCode;

use crate::tree::{Tree, workspace_root};
use crate::violation::Violation;
use crate::{complain, rules, say};

/// Prints every violation on stdout; fails where there is one.
pub(crate) fn run() -> anyhow::Result<ExitCode> {
    let violations = check(&Tree::read(&workspace_root()?)?);
    for violation in &violations {
        say(&format!("{violation}\n"))?;
    }
    if violations.is_empty() {
        complain("tidy: no violation\n")?;
        return Ok(ExitCode::SUCCESS);
    }
    complain(&format!("tidy: {} to mend\n", violations.len()))?;
    Ok(ExitCode::FAILURE)
}

/// What all rules find, in the order of files and lines.
fn check(tree: &Tree) -> Vec<Violation> {
    let mut found: Vec<Violation> = rules::ALL.iter().flat_map(|rule| rule(tree)).collect();
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_repository_keeps_its_house_rules() {
        let found = check(&Tree::read(&workspace_root().unwrap()).unwrap());
        let list: Vec<String> = found.iter().map(Violation::to_string).collect();
        assert!(found.is_empty(), "{} to mend\n{}", found.len(), list.join("\n"));
    }

    #[test]
    fn an_empty_tree_breaks_rules_without_a_panic() {
        assert!(!check(&Tree::default()).is_empty());
    }
}
