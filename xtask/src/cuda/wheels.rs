//! A toolkit made of pip's wheels: the compiler, its parts and the libraries, laid out as an installed one is.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use super::host::Host;
use crate::fetch::manifest::Unpack;
use crate::fetch::unpack;

/// The version of CUDA. A newer compiler would write PTX that drivers of this version can't load.
pub(super) const VERSION: (u32, u32) = (13, 0);

/// A package of pip with the versions that belong to [`VERSION`].
#[derive(Debug, Clone, Copy)]
struct Package {
    name: &'static str,
    version: &'static str,
}

const fn package(name: &'static str) -> Package {
    Package { name, version: "13.0." }
}

/// The curand library has numbers of its own.
const PACKAGES: [Package; 8] = [
    package("nvidia-cuda-nvcc"),
    package("nvidia-nvvm"),
    package("nvidia-cuda-crt"),
    package("nvidia-cuda-runtime"),
    package("nvidia-cuda-cccl"),
    package("nvidia-cublas"),
    Package { name: "nvidia-curand", version: "10.4.0." },
    package("nvidia-cuda-nvrtc"),
];

/// Where the wheels have their files.
const INSIDE: &str = "nvidia/cu13";
/// What a toolkit's folder has beside `lib64`.
const LINKS: [&str; 4] = ["bin", "include", "lib", "nvvm"];
/// Folders whose files are programs.
const PROGRAMS: [&str; 2] = ["bin", "nvvm/bin"];
/// What is linked against, by names without a version.
pub(super) const LIBRARIES: [&str; 5] = ["cudart", "cublas", "cublasLt", "curand", "nvrtc"];
/// Says that a wheel is unpacked whole.
const MARKS: &str = ".unpacked";

/// The toolkit below a target folder.
pub(super) struct Wheels {
    folder: PathBuf,
    wheels: PathBuf,
}

/// Takes lines that say how far things are.
pub(super) type Tell<'a> = &'a mut dyn FnMut(&str) -> anyhow::Result<()>;

impl Wheels {
    pub(super) fn below(target: &Path) -> Self {
        let (major, minor) = VERSION;
        Self { folder: target.join(format!("toolkit-{major}.{minor}")), wheels: target.join("wheels") }
    }

    /// The toolkit.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// What is left to do, a line a wheel.
    pub(super) fn steps(&self) -> Vec<String> {
        let step = |package: &Package| {
            if self.mark(package).exists() {
                return format!("{}: unpacked already", package.name);
            }
            match self.wheel(package) {
                Some(wheel) => format!("{}: unpack `{}`", package.name, wheel.display()),
                None => format!("{}: pip download {}, unpack", package.name, package.requirement()),
            }
        };
        PACKAGES.iter().map(step).collect()
    }

    /// Fetches and unpacks what is missing, and makes links, so that it looks as an installed toolkit does.
    ///
    /// # Errors
    /// When a wheel is not to be had or damaged, or there is no space.
    pub(super) fn unpack(&self, host: &Host, offline: bool, tell: Tell<'_>) -> anyhow::Result<()> {
        fs::create_dir_all(self.folder.join(MARKS))
            .with_context(|| format!("could not make `{}`", self.folder.display()))?;
        for package in PACKAGES.iter().filter(|package| !self.mark(package).exists()) {
            let (wheel, is_ours) = match self.wheel(package) {
                Some(wheel) => (wheel, false),
                None => {
                    tell(&format!("downloading {}\n", package.requirement()))?;
                    (self.download(package, host, offline)?, true)
                }
            };
            unpack(&wheel, Unpack::Zip, &self.folder, &[]).map_err(|failure| {
                anyhow::anyhow!("{}\nhint: remove that file and call again", failure.message)
            })?;
            fs::write(self.mark(package), wheel.file_name().unwrap_or_default().as_encoded_bytes())?;
            if is_ours {
                // Unpacked it is of no more use, and large.
                fs::remove_file(&wheel).with_context(|| format!("could not remove `{}`", wheel.display()))?;
            }
        }
        self.lay_out()
    }

    fn mark(&self, package: &Package) -> PathBuf {
        self.folder.join(MARKS).join(package.name)
    }

    /// A wheel of the package that lies there already, of the right version.
    fn wheel(&self, package: &Package) -> Option<PathBuf> {
        newest(&self.wheels, &package.file_start(), ".whl")
    }

    fn download(&self, package: &Package, host: &Host, offline: bool) -> anyhow::Result<PathBuf> {
        let wanted = package.requirement();
        let place = self.wheels.display();
        let by_hand = format!(
            "put its wheel into `{place}` by hand (`pip download --no-deps '{wanted}'` on another machine), or name an installed \
             toolkit with --toolkit"
        );
        if offline {
            bail!("`{wanted}` is not in `{place}`, and --offline forbids to fetch it\nhint: {by_hand}");
        }
        fs::create_dir_all(&self.wheels).with_context(|| format!("could not make `{place}`"))?;
        let python = host.python.display();
        // A wheel that is half there must not be taken for one: pip writes elsewhere, and what is whole is moved.
        let half = self.wheels.join(".part");
        let output = Command::new(&host.python)
            .args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"])
            .args(["--only-binary", ":all:", "--dest"])
            .arg(&half)
            .arg(&wanted)
            .output()
            .with_context(|| {
                format!("could not run `{python}`, whose pip fetches CUDA's compiler\nhint: install Python 3 with pip, or {by_hand}")
            })?;
        if !output.status.success() {
            let told = String::from_utf8_lossy(&output.stderr);
            let last =
                told.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it says nothing").trim();
            let hint = match told.contains("No module named pip") {
                true => format!(
                    "`{python}` has no pip: on Debian and Ubuntu it is the package `python3-pip`; or {by_hand}"
                ),
                false => by_hand,
            };
            bail!("`pip download {wanted}` failed: {last}\nhint: {hint}");
        }
        let file = newest(&half, &package.file_start(), ".whl")
            .with_context(|| format!("`pip download {wanted}` brought no wheel\nhint: {by_hand}"))?;
        let place = self.wheels.join(file.file_name().unwrap_or_default());
        fs::rename(&file, &place).with_context(|| format!("could not write `{}`", place.display()))?;
        let _ = fs::remove_dir(&half);
        Ok(place)
    }

    /// Links and run bits: wheels carry neither.
    fn lay_out(&self) -> anyhow::Result<()> {
        for name in LINKS {
            link(&Path::new(INSIDE).join(name), &self.folder.join(name))?;
        }
        for folder in PROGRAMS {
            make_runnable(&self.folder.join(INSIDE).join(folder))?;
        }
        let lib64 = self.folder.join("lib64");
        fs::create_dir_all(lib64.join("stubs"))
            .with_context(|| format!("could not make `{}`", lib64.display()))?;
        for name in LIBRARIES {
            let start = format!("lib{name}.so.");
            let file = newest(&self.folder.join("lib"), &start, "").with_context(|| {
                format!(
                    "the wheels bring no `{start}*`\nhint: remove `{}` and call again",
                    self.folder.display()
                )
            })?;
            let target = Path::new("../lib").join(file.file_name().unwrap_or_default());
            link(&target, &lib64.join(format!("lib{name}.so")))?;
        }
        Ok(())
    }
}

impl Package {
    fn requirement(self) -> String {
        format!("{}=={}*", self.name, self.version)
    }

    /// How the names of its wheels begin.
    fn file_start(self) -> String {
        format!("{}-{}", self.name.replace('-', "_"), self.version)
    }
}

/// The last, by name, of the files in a folder whose names begin and end so.
fn newest(folder: &Path, start: &str, end: &str) -> Option<PathBuf> {
    let entries = fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path());
    let fits = |path: &PathBuf| {
        path.file_name()
            .and_then(|name| name.to_str())
            .is_some_and(|name| name.starts_with(start) && name.ends_with(end))
    };
    entries.filter(fits).max()
}

/// Makes `from` lead to `to`, whatever is there now.
#[cfg(unix)]
pub(super) fn link(to: &Path, from: &Path) -> anyhow::Result<()> {
    if fs::read_link(from).is_ok_and(|already| already == to) {
        return Ok(());
    }
    // Of an earlier layout.
    let _ = fs::remove_file(from);
    std::os::unix::fs::symlink(to, from).with_context(|| format!("could not link `{}`", from.display()))
}

#[cfg(not(unix))]
pub(super) fn link(_to: &Path, from: &Path) -> anyhow::Result<()> {
    bail!("could not link `{}`: this system has no such links", from.display())
}

#[cfg(unix)]
fn make_runnable(folder: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt;

    let entries =
        fs::read_dir(folder).with_context(|| format!("the wheels bring no `{}`", folder.display()))?;
    for path in entries.flatten().map(|entry| entry.path()).filter(|path| path.is_file()) {
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))
            .with_context(|| format!("could not make `{}` a program", path.display()))?;
    }
    Ok(())
}

#[cfg(not(unix))]
fn make_runnable(_folder: &Path) -> anyhow::Result<()> {
    Ok(())
}

#[cfg(all(test, unix))]
mod tests;
