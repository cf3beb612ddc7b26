//! What a build has made: how large it is, which libraries it needs, and whether it starts.

use std::ffi::OsString;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use super::shared_objects::needed;
use super::toolkit::Toolkit;
use crate::fetch::readable;

/// Libraries that come from CUDA or the driver, by how their names begin; a system has the others.
const OF_CUDA: [&str; 5] = ["libcuda.", "libcudart.", "libcublas", "libcurand.", "libnvrtc."];

/// Looks at the binary and starts it once.
///
/// # Errors
/// When it is not there, needs nothing of CUDA, or doesn't start.
pub(super) fn told(binary: &Path, toolkit: &Toolkit, capability: &str) -> anyhow::Result<String> {
    let size =
        std::fs::metadata(binary).with_context(|| format!("there is no `{}`", binary.display()))?.len();
    let needed = if cfg!(target_os = "linux") { needed(binary)? } else { Vec::new() };
    let (of_cuda, others): (Vec<&String>, Vec<&String>) =
        needed.iter().partition(|name| OF_CUDA.iter().any(|start| name.starts_with(start)));
    if cfg!(target_os = "linux") && of_cuda.is_empty() {
        bail!("`{}` needs no library of CUDA: it was built without", binary.display());
    }
    let mut text = format!(
        "{}\n  {}, for compute capability {capability} and later\n",
        binary.display(),
        readable(size)
    );
    for (title, names) in [("needs of CUDA", of_cuda), ("needs of the system", others)] {
        if !names.is_empty() {
            let names: Vec<&str> = names.into_iter().map(String::as_str).collect();
            writeln!(text, "  {title}: {}", names.join(", "))?;
        }
    }
    let mut places = libraries(toolkit.folder());
    // The stand-in for the driver comes last.
    places.extend(Some(toolkit.folder().join("lib64").join("stubs")).filter(|folder| folder.is_dir()));
    text.push_str(&started(binary, &places)?);
    text.push_str("  docs/cuda.md says what a machine with a card needs to run it\n");
    Ok(text)
}

/// Where CUDA's libraries lie that the binary needs. The stand-in for the driver's is not there: it would hide the real one.
pub(super) fn libraries(toolkit: &Path) -> Vec<PathBuf> {
    ["lib64", "lib"].iter().map(|name| toolkit.join(name)).filter(|folder| folder.is_dir()).collect()
}

/// Starts it with the libraries that it was linked with; `--version` needs no card.
fn started(binary: &Path, places: &[PathBuf]) -> anyhow::Result<String> {
    let given = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    // What the system has comes first: a real driver before its stand-in.
    let all = std::env::split_paths(&given)
        .filter(|place| !place.as_os_str().is_empty())
        .chain(places.iter().cloned());
    let path: OsString = std::env::join_paths(all)?;
    let output = Command::new(binary)
        .arg("--version")
        .env("LD_LIBRARY_PATH", &path)
        .output()
        .with_context(|| format!("could not run `{}`", binary.display()))?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        bail!("`{} --version` failed: {}", binary.display(), complaint.trim());
    }
    let version = String::from_utf8_lossy(&output.stdout);
    let folders: Vec<String> = places.iter().map(|place| place.display().to_string()).collect();
    Ok(format!("  starts: {} (with LD_LIBRARY_PATH={})\n", version.trim(), folders.join(":")))
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_program_without_cuda_is_no_outcome() {
        let folder = tempfile::tempdir().unwrap();
        let toolkit = Toolkit::Installed(folder.path().to_owned());
        let own = std::env::current_exe().unwrap();
        let error = told(&own, &toolkit, "80").unwrap_err().to_string();
        assert!(error.contains("built without"), "{error}");
        let error = told(&folder.path().join("aeir"), &toolkit, "80").unwrap_err().to_string();
        assert!(error.contains("there is no"), "{error}");
    }

    #[test]
    fn a_program_that_does_not_start_says_why() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let script = |text: &str| {
            let file = folder.path().join("aeir");
            std::fs::write(&file, format!("#!/bin/sh\n{text}\n")).unwrap();
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
            file
        };
        let lib = folder.path().join("lib64");
        std::fs::create_dir_all(lib.join("stubs")).unwrap();
        let places = libraries(folder.path());
        assert_eq!(places, std::slice::from_ref(&lib));
        let missing = "libcublas.so.13: cannot open shared object file";
        let error =
            started(&script(&format!("echo {missing} >&2; exit 127")), &places).unwrap_err().to_string();
        assert!(error.contains(missing), "{error}");
        let told = started(&script("echo aeir 1 $LD_LIBRARY_PATH"), &places).unwrap();
        assert!(told.contains("aeir 1") && told.matches(lib.to_str().unwrap()).count() == 2, "{told}");
    }
}
