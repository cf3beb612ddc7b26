//! Where CUDA's compiler and libraries come from: an installed toolkit, or pip's wheels.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use super::host::Host;
use super::wheels::Wheels;

/// A toolkit to build with.
pub(super) enum Toolkit {
    /// On this machine already.
    Installed(PathBuf),
    /// To be made of wheels.
    Wheels(Wheels),
}

/// What came of an empty kernel.
pub(super) enum TrialRun {
    Compiled,
    /// With what the compiler said.
    Refused(String),
}

impl Toolkit {
    /// The one that is named, or else installed; wheels where there is none.
    ///
    /// # Errors
    /// When what is named is no toolkit, or there is none and no wheels for this system.
    pub(super) fn find(named: Option<&Path>, host: &Host, target: &Path) -> anyhow::Result<Self> {
        if let Some(folder) = named {
            return installed(folder, "--toolkit");
        }
        if let Some((variable, folder)) = host.named.first() {
            return installed(folder, variable);
        }
        if let Some(folder) = host.find(&nvcc_name()).and_then(|nvcc| above_bin(&nvcc)) {
            return Ok(Self::Installed(folder));
        }
        if !cfg!(target_os = "linux") {
            bail!(
                "no CUDA toolkit is installed, and its wheels are used on Linux alone\nhint: install the toolkit and name its folder with \
                 --toolkit"
            );
        }
        Ok(Self::Wheels(Wheels::below(target)))
    }

    /// The folder that CUDA_HOME names.
    pub(super) fn folder(&self) -> &Path {
        match self {
            Self::Installed(folder) => folder,
            Self::Wheels(wheels) => wheels.folder(),
        }
    }

    fn nvcc(&self) -> PathBuf {
        self.folder().join("bin").join(nvcc_name())
    }

    /// Refuses a version that candle's CUDA crate doesn't know.
    pub(super) fn check_version(&self, host: &Host, offline: bool) -> anyhow::Result<()> {
        let told = crate::binary::output(Command::new(self.nvcc()).arg("--version"))?;
        let version =
            release(&told).with_context(|| format!("`nvcc --version` names no release:\n{told}"))?;
        let known = host.cudarc(offline)?.versions;
        if known.contains(&version) {
            return Ok(());
        }
        let range = match (known.first(), known.last()) {
            (Some((major, minor)), Some((last, last_minor))) => {
                format!("{major}.{minor} to {last}.{last_minor}")
            }
            _ => "none".to_owned(),
        };
        bail!(
            "`{}` is of CUDA {}.{}; candle's crate for CUDA knows {range}\nhint: name another toolkit with --toolkit, or none at all: \
             without CUDA_HOME and without nvcc on PATH, wheels are used",
            self.folder().display(),
            version.0,
            version.1
        )
    }

    /// Compiles an empty kernel, which shows in a second what a build would show after minutes.
    pub(super) fn compiles(&self, host: &Host, capability: &str, target: &Path) -> anyhow::Result<TrialRun> {
        std::fs::create_dir_all(target).with_context(|| format!("could not make `{}`", target.display()))?;
        let (code, ptx) = (target.join("empty.cu"), target.join("empty.ptx"));
        std::fs::write(&code, "#include <cuda_runtime.h>\n__global__ void nothing() {}\n")
            .with_context(|| format!("could not write `{}`", code.display()))?;
        let mut command = Command::new(self.nvcc());
        command.arg("--ptx").arg(format!("-arch=sm_{capability}")).arg("-o").arg(&ptx).arg(&code);
        command.envs(super::environment(self.folder(), capability, &host.path));
        if let Some(compiler) = std::env::var_os("NVCC_CCBIN") {
            command.arg("-ccbin").arg(compiler);
        }
        let output =
            command.output().with_context(|| format!("could not run `{}`", self.nvcc().display()))?;
        let _ = std::fs::remove_file(&code);
        let _ = std::fs::remove_file(&ptx);
        if output.status.success() {
            return Ok(TrialRun::Compiled);
        }
        let complaint =
            format!("{}{}", String::from_utf8_lossy(&output.stderr), String::from_utf8_lossy(&output.stdout));
        Ok(TrialRun::Refused(complaint.trim().to_owned()))
    }
}

fn nvcc_name() -> String {
    format!("nvcc{}", std::env::consts::EXE_SUFFIX)
}

/// A folder that somebody named.
fn installed(folder: &Path, named_by: &str) -> anyhow::Result<Toolkit> {
    let nvcc = folder.join("bin").join(nvcc_name());
    if !nvcc.is_file() {
        bail!(
            "{named_by} names `{}`, in which there is no `bin/{}`\nhint: name the folder of a whole toolkit, or none: wheels are then \
             used",
            folder.display(),
            nvcc_name()
        );
    }
    Ok(Toolkit::Installed(std::path::absolute(folder)?))
}

/// The toolkit of an `nvcc`, also of one that is a link to it.
fn above_bin(nvcc: &Path) -> Option<PathBuf> {
    let whole = nvcc.canonicalize().ok()?;
    whole.parent()?.parent().map(Path::to_owned)
}

/// `release 13.0, V13.0.88` is 13.0.
fn release(told: &str) -> Option<(u32, u32)> {
    let (_, rest) = told.split_once("release ")?;
    let (major, minor) = rest.split(',').next()?.trim().split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use super::*;
    use std::ffi::OsString;

    /// A machine with these folders on PATH.
    fn host(path: &[&Path], named: Vec<(&'static str, PathBuf)>) -> Host {
        let path: OsString = std::env::join_paths(path).unwrap();
        let program = |name: &str| PathBuf::from(name);
        Host {
            root: ".".into(),
            target: "target".into(),
            cargo: program("cargo"),
            python: program("python3"),
            compiler: program("cc"),
            path,
            named,
        }
    }

    fn toolkit_in(folder: &Path) {
        std::fs::create_dir_all(folder.join("bin")).unwrap();
        std::fs::write(folder.join("bin").join("nvcc"), "").unwrap();
    }

    #[test]
    fn what_is_named_comes_before_what_is_on_the_path_and_wheels_come_last() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().canonicalize().unwrap().join(name);
        for name in ["flag", "variable", "path"] {
            toolkit_in(&at(name));
        }
        let named = vec![("CUDA_HOME", at("variable"))];
        let bin = at("path").join("bin");
        let found = |flag: Option<&Path>, host: &Host| {
            Toolkit::find(flag, host, &at("target")).unwrap().folder().to_owned()
        };
        let all = host(&[&bin], named);
        assert_eq!(found(Some(&at("flag")), &all), at("flag"));
        assert_eq!(found(None, &all), at("variable"));
        assert_eq!(found(None, &host(&[&bin], Vec::new())), at("path"));
        if cfg!(target_os = "linux") {
            let wheels = found(None, &host(&[&at("nothing")], Vec::new()));
            assert_eq!(wheels, at("target").join("toolkit-13.0"));
        }
    }

    #[test]
    fn an_nvcc_that_is_a_link_leads_to_its_toolkit() {
        let folder = tempfile::tempdir().unwrap();
        let real = folder.path().canonicalize().unwrap().join("cuda-13.0");
        toolkit_in(&real);
        let bin = folder.path().join("usr");
        std::fs::create_dir(&bin).unwrap();
        std::os::unix::fs::symlink(real.join("bin/nvcc"), bin.join("nvcc")).unwrap();
        let toolkit = Toolkit::find(None, &host(&[&bin], Vec::new()), folder.path()).unwrap();
        assert_eq!(toolkit.folder(), real);
    }

    #[test]
    fn a_folder_without_a_compiler_is_refused_with_who_named_it() {
        let folder = tempfile::tempdir().unwrap();
        let told = |flag: Option<&Path>, host: &Host| match Toolkit::find(flag, host, folder.path()) {
            Ok(_) => panic!("taken for a toolkit"),
            Err(error) => error.to_string(),
        };
        let empty = host(&[], vec![("CUDA_PATH", folder.path().to_owned())]);
        assert!(told(None, &empty).starts_with("CUDA_PATH names"));
        assert!(told(Some(folder.path()), &empty).starts_with("--toolkit names"));
    }

    #[test]
    fn releases_are_read() {
        let told =
            "Cuda compilation tools, release 13.0, V13.0.88\nBuild cuda_13.0.r13.0/compiler.36424714_0\n";
        assert_eq!(release(told), Some((13, 0)));
        assert_eq!(release("nvcc: something else"), None);
    }
}
