//! The `aeir` binary: built, run, told apart.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

/// Builds `target/release/aeir`.
pub(crate) fn release(root: &Path) -> anyhow::Result<PathBuf> {
    built(root, &["--release"], "release")
}

/// The same with these features.
pub(crate) fn release_with(root: &Path, features: &[&str]) -> anyhow::Result<PathBuf> {
    built(root, &["--release", "--features", &features.join(",")], "release")
}

/// Builds `target/debug/aeir`, which is there sooner.
pub(crate) fn debug(root: &Path) -> anyhow::Result<PathBuf> {
    built(root, &[], "debug")
}

fn built(root: &Path, flags: &[&str], folder: &str) -> anyhow::Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["build", "--quiet", "--package", "aeir-cli"])
        .args(flags)
        .current_dir(root)
        .status()
        .context("could not run cargo")?;
    if !status.success() {
        bail!("`cargo build --package aeir-cli {}` failed", flags.join(" "));
    }
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    Ok(target.join(folder).join(format!("aeir{}", std::env::consts::EXE_SUFFIX)))
}

/// What a program printed; its complaint where it failed.
pub(crate) fn output(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output().with_context(|| format!("could not run {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?} failed:\n{}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// What a binary was built for, where nothing else was asked of cargo.
pub(crate) fn host() -> anyhow::Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let told = output(Command::new(rustc).arg("-vV"))?;
    let host = told.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).context("`rustc -vV` names no host")
}
