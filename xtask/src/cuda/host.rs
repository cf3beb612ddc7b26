//! What this machine has: the programs and folders that a build uses.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use serde_json::Value;

/// The programs, and what the environment says of a toolkit.
pub(super) struct Host {
    /// The repository.
    pub(super) root: PathBuf,
    /// Cargo's target folder.
    pub(super) target: PathBuf,
    pub(super) cargo: PathBuf,
    /// `python3`, with pip.
    pub(super) python: PathBuf,
    /// The C compiler.
    pub(super) compiler: PathBuf,
    /// Where programs are looked for.
    pub(super) path: OsString,
    /// Folders that the environment calls a toolkit, with the variable's name.
    pub(super) named: Vec<(&'static str, PathBuf)>,
}

impl Host {
    /// As the environment has it.
    pub(super) fn of_this_machine(root: &Path) -> Self {
        let program = |variable: &str, usual: &str| {
            PathBuf::from(std::env::var_os(variable).unwrap_or_else(|| usual.into()))
        };
        let named = |variable: &'static str| {
            let folder = std::env::var_os(variable).filter(|value| !value.is_empty())?;
            Some((variable, folder.into()))
        };
        Self {
            root: root.to_owned(),
            target: std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from),
            cargo: program("CARGO", "cargo"),
            python: program("PYTHON", "python3"),
            compiler: program("CC", "cc"),
            path: std::env::var_os("PATH").unwrap_or_default(),
            named: ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(named).collect(),
        }
    }

    /// A program on PATH.
    pub(super) fn find(&self, program: &str) -> Option<PathBuf> {
        std::env::split_paths(&self.path).map(|folder| folder.join(program)).find(|file| file.is_file())
    }

    /// The crate that declares CUDA's functions, as cargo has locked it.
    pub(super) fn cudarc(&self, offline: bool) -> anyhow::Result<Cudarc> {
        let mut command = Command::new(&self.cargo);
        command.args(["metadata", "--format-version", "1", "--features", "aeir-cli/cuda"]);
        // Packages of other systems need not be here.
        command.arg("--filter-platform").arg(crate::binary::host()?);
        if offline {
            command.arg("--offline");
        }
        let told = crate::binary::output(command.current_dir(&self.root))?;
        let metadata: Value = serde_json::from_str(&told).context("`cargo metadata` gives no JSON")?;
        let packages = metadata
            .get("packages")
            .and_then(Value::as_array)
            .context("`cargo metadata` names no packages")?;
        let package = packages
            .iter()
            .find(|package| package.get("name").and_then(Value::as_str) == Some("cudarc"))
            .context("`cudarc`, on which candle's CUDA stands, is not among the dependencies")?;
        Cudarc::read(package)
    }
}

/// What is to be known of `cudarc`.
pub(super) struct Cudarc {
    version: String,
    folder: PathBuf,
    /// Versions of CUDA that it knows.
    pub(super) versions: Vec<(u32, u32)>,
}

/// Where it declares the driver's functions.
const DECLARATIONS: &str = "src/driver/sys/mod.rs";

impl Cudarc {
    fn read(package: &Value) -> anyhow::Result<Self> {
        let text = |key: &str| {
            package
                .get(key)
                .and_then(Value::as_str)
                .with_context(|| format!("`cudarc` has no `{key}` in `cargo metadata`"))
        };
        let manifest = Path::new(text("manifest_path")?);
        let features = package.get("features").and_then(Value::as_object).into_iter().flatten();
        let mut versions: Vec<_> = features.filter_map(|(name, _)| version_of_feature(name)).collect();
        versions.sort_unstable();
        Ok(Self {
            version: text("version")?.to_owned(),
            folder: manifest.parent().context("`cudarc` lies nowhere")?.to_owned(),
            versions,
        })
    }

    /// The driver's functions that it declares, sorted.
    pub(super) fn driver_functions(&self) -> anyhow::Result<Vec<String>> {
        let file = self.folder.join(DECLARATIONS);
        let text =
            std::fs::read_to_string(&file).with_context(|| format!("could not read `{}`", file.display()))?;
        let names = functions(&text);
        if names.is_empty() {
            bail!(
                "`{}` of cudarc {} declares no function of the driver: it is written in another way now",
                file.display(),
                self.version
            );
        }
        Ok(names)
    }
}

/// `cuda-13000` is 13.0, `cuda-11080` 11.8.
fn version_of_feature(name: &str) -> Option<(u32, u32)> {
    let digits = name.strip_prefix("cuda-").filter(|digits| digits.len() == 5)?;
    let (major, minor) = (digits.get(..2)?.parse().ok()?, digits.get(2..)?.parse::<u32>().ok()?);
    Some((major, minor / 10))
}

/// The names in `pub unsafe fn cuInit(`, sorted, each once.
fn functions(declarations: &str) -> Vec<String> {
    let name = |line: &str| {
        let name = line.trim_start().strip_prefix("pub unsafe fn ")?.split('(').next()?;
        let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        (name.starts_with("cu") && plain).then(|| name.to_owned())
    };
    let mut names: Vec<String> = declarations.lines().filter_map(name).collect();
    names.sort();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn declarations_of_the_driver_are_found_and_others_are_not() {
        let text = "pub unsafe fn cuInit(Flags: c_uint) -> CUresult {\n        extern \"C\" {\n            fn cuInit(f: u32);\n\
                    pub unsafe fn cuMemAlloc_v2(d: *mut u64) -> CUresult {\npub unsafe fn Lib_new() -> u8 {\n\
                    pub unsafe fn cuInit(Flags: c_uint) -> CUresult {\npub fn cuPlain() {}\npub unsafe fn other() {}\n";
        assert_eq!(functions(text), ["cuInit", "cuMemAlloc_v2"]);
        assert_eq!(version_of_feature("cuda-13000"), Some((13, 0)));
        assert_eq!(version_of_feature("cuda-11080"), Some((11, 8)));
        assert_eq!(version_of_feature("cuda-version-from-build-system"), None);
    }

    #[test]
    fn what_cargo_says_of_cudarc_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let package = serde_json::json!({
            "version": "0.19.10",
            "manifest_path": folder.path().join("Cargo.toml"),
            "features": {"cuda-13000": [], "cuda-11080": [], "cuda-version-from-build-system": [], "driver": []},
        });
        let cudarc = Cudarc::read(&package).unwrap();
        assert_eq!(cudarc.versions, [(11, 8), (13, 0)]);
        let error = cudarc.driver_functions().unwrap_err().to_string();
        assert!(error.contains("could not read") && error.contains("sys"), "{error}");
        let file = folder.path().join(DECLARATIONS);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, "pub fn cuInit() {}").unwrap();
        let error = cudarc.driver_functions().unwrap_err().to_string();
        assert!(error.contains("0.19.10") && error.contains("no function"), "{error}");
        std::fs::write(&file, "pub unsafe fn cuInit(Flags: u32) -> CUresult {").unwrap();
        assert_eq!(cudarc.driver_functions().unwrap(), ["cuInit"]);
    }
}
