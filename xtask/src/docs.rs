//! `cargo xtask docs`: `docs/cli.md` and `docs/config.md`, written by running the binary.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, bail};
use toml::{Table, Value};

use crate::binary::{self, output};
use crate::tree::workspace_root;
use crate::{complain, say};

pub(crate) const HELP: &str = "\
cargo xtask docs [--check] [--binary FILE]

  --check        Write nothing; exits with 1 where a file is not what the binary says
  --binary FILE  An `aeir` that is built already [default: builds target/debug/aeir]
";

const CLI: &str = "docs/cli.md";
const CONFIG: &str = "docs/config.md";
/// Settings with their comments.
const SETTINGS: &str = "configs/demo.toml";
const WIDTH: &str = "100";

/// Writes or checks both files.
pub(crate) fn run(words: &[&str]) -> anyhow::Result<ExitCode> {
    let (mut check, mut named) = (false, None);
    let mut words = words.iter();
    while let Some(word) = words.next() {
        match *word {
            "--help" | "-h" => return say(HELP).map(|()| ExitCode::SUCCESS),
            "--check" => check = true,
            "--binary" => named = Some(PathBuf::from(words.next().context("`--binary` needs a value")?)),
            other => bail!("no option `{other}`\n\n{HELP}"),
        }
    }
    let root = workspace_root()?;
    let program = match named {
        Some(program) => program,
        None => binary::debug(&root)?,
    };
    let mut stale = 0;
    for (file, text) in [(CLI, commands(&program)?), (CONFIG, settings(&program, &root)?)] {
        let path = root.join(file);
        if std::fs::read_to_string(&path).is_ok_and(|old| old == text) {
            continue;
        }
        stale += 1;
        if check {
            complain(&format!("{file}: is not what `aeir` says\n    hint: run `cargo xtask docs`\n"))?;
        } else {
            std::fs::write(&path, text).with_context(|| format!("could not write `{file}`"))?;
            say(&format!("{file}: written\n"))?;
        }
    }
    Ok(if check && stale > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// The help of every command, and of those below it.
fn commands(program: &Path) -> anyhow::Result<String> {
    let mut text =
        String::from("# Commands\n\nWritten by `cargo xtask docs` from what `aeir COMMAND --help` says.\n\n");
    let mut waiting = vec![Vec::<String>::new()];
    while let Some(words) = waiting.pop() {
        let help = help(program, &words)?;
        let name =
            std::iter::once("aeir".to_owned()).chain(words.iter().cloned()).collect::<Vec<_>>().join(" ");
        let level = "#".repeat(words.len().min(2) + 2);
        let _ = write!(text, "{level} {name}\n\n```text\n{help}```\n\n");
        let below = subcommands(&help).into_iter().rev();
        waiting.extend(below.map(|word| words.iter().cloned().chain([word]).collect()));
    }
    Ok(text.trim_end().to_owned() + "\n")
}

fn help(program: &Path, words: &[String]) -> anyhow::Result<String> {
    let printed = output(clean(program).args(words).arg("--help"))?;
    Ok(printed.lines().map(|line| format!("{}\n", line.trim_end())).collect())
}

/// The program without the variables of whoever runs this: help shows them.
fn clean(program: &Path) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("AEIR_") {
            command.env_remove(name);
        }
    }
    command.env("COLUMNS", WIDTH).env_remove("HF_ENDPOINT").env_remove("HF_HUB_CACHE");
    command
}

/// Names under `Commands:`; their descriptions may go on in the next line, further to the right.
fn subcommands(help: &str) -> Vec<String> {
    let listed =
        help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let names = listed.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    let names = names.filter_map(|line| line.split_whitespace().next());
    names.filter(|name| *name != "help").map(str::to_owned).collect()
}

/// Every setting with its default, as a dry run prints it, and what the commented settings say of it.
fn settings(program: &Path, root: &Path) -> anyhow::Result<String> {
    let printed = output(clean(program).args(["train", "--dry-run", "--quiet"]))?;
    let defaults: Table = printed.parse().context("what `aeir train --dry-run` printed")?;
    let commented = std::fs::read_to_string(root.join(SETTINGS))
        .with_context(|| format!("could not read `{SETTINGS}`"))?;
    let comments = comments(&commented);
    let mut text = format!(
        "# Settings\n\nWritten by `cargo xtask docs`: the defaults are those that `aeir train --dry-run` prints, the remarks those of [{SETTINGS}](../{SETTINGS}). A key \
         stands in a file for `--config`, or in `--set key=value`.\n\n| key | default | |\n| --- | --- | --- |\n"
    );
    let mut rows = Vec::new();
    flatten("", &defaults, &mut rows);
    let known: Vec<&String> = rows.iter().map(|(key, _)| key).collect();
    let unset = comments
        .keys()
        .filter(|key| !known.contains(key))
        .map(|key| (key.clone(), "by what else is set".to_owned()));
    let mut rows: Vec<(String, String)> = rows.iter().cloned().chain(unset).collect();
    rows.sort_by_key(|(key, _)| (key.contains('.'), key.clone()));
    for (key, default) in rows {
        let comment = comments.get(&key).map_or("", String::as_str).replace('|', "\\|");
        let _ = writeln!(text, "| `{key}` | {default} | {comment} |");
    }
    Ok(text)
}

fn flatten(prefix: &str, table: &Table, rows: &mut Vec<(String, String)>) {
    for (key, value) in table {
        let key = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        match value {
            Value::Table(inner) => flatten(&key, inner, rows),
            value => rows.push((key, format!("`{value}`"))),
        }
    }
}

/// Comments behind the settings of a file, by key; also of those that are commented out.
fn comments(text: &str) -> BTreeMap<String, String> {
    let (mut section, mut last) = (String::new(), None::<String>);
    let mut found = BTreeMap::<String, String>::new();
    for line in text.lines() {
        if line.starts_with("# [[") || line.starts_with("[[") {
            // Lists of tables are shown by their example.
            break;
        }
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.split(']').next()) {
            section = format!("{name}.");
            last = None;
            continue;
        }
        // A remark that goes on stands alone, far to the right.
        let more = line.strip_prefix("          ").and_then(|rest| rest.trim_start().strip_prefix("# "));
        if let (Some(more), Some(comment)) = (more, last.as_ref().and_then(|key| found.get_mut(key))) {
            *comment += " ";
            *comment += more;
            continue;
        }
        let setting = line.strip_prefix("# ").unwrap_or(line);
        let Some((key, rest)) = setting.split_once(" = ") else { continue };
        let plain =
            key.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
        let Some((_, comment)) = rest.split_once("# ").filter(|_| plain) else { continue };
        let key = format!("{section}{key}");
        found.insert(key.clone(), comment.trim().to_owned());
        last = Some(key);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_found_and_their_descriptions_are_not() {
        let help = "About.\n\nCommands:\n  train     Train\n  diagnose  Say how\n            far\n  help      Print\n\nOptions:\n  -q\n";
        assert_eq!(subcommands(help), ["train", "diagnose"]);
        assert!(subcommands("Usage: aeir\n").is_empty());
    }

    #[test]
    fn comments_belong_to_their_keys() {
        let text = "# Head of the file.\nversion = 1\nepochs = 40  # passes\n                # over the source\n[model]\n# head = \"x\"   # a | b\nwidth = 2 # wide\n# [[groups]]\n# no = 1 # no\n";
        let found = comments(text);
        assert_eq!(found["epochs"], "passes over the source");
        assert_eq!(found["model.head"], "a | b");
        assert_eq!((found["model.width"].as_str(), found.len()), ("wide", 3));
    }
}
