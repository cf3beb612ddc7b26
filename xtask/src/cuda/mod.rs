//! `cargo xtask cuda build`: the `aeir` binary with CUDA, on a machine that may have neither a card nor a toolkit.

mod driver_stub;
mod host;
mod outcome;
mod shared_objects;
mod toolkit;
mod wheels;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, bail};
use clap::{Parser, Subcommand};

use crate::fetch::{free_bytes, readable};
use crate::tree::workspace_root;
use crate::{complain, say};
use host::Host;
use toolkit::{Toolkit, TrialRun};

/// What the wheels, their content and the build take at most, together.
const SPACE: u64 = 5_000_000_000;

/// Build `aeir` for CUDA
#[derive(Parser)]
#[command(name = "cargo xtask cuda", bin_name = "cargo xtask cuda", max_term_width = 100)]
struct Flags {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    Build(Build),
}

/// Compile `aeir` with the feature `cuda`; needs neither a card nor an installed CUDA toolkit
///
/// Where a toolkit is installed (CUDA_HOME, CUDA_PATH, or `nvcc` on PATH) it is used. Elsewhere, on Linux, its compiler and libraries
/// come from pip's wheels of CUDA 13.0 (660 MB), which are unpacked below the target folder (1.3 GB), with a stand-in for the driver's
/// library to link against. What is done already is not done again: an interrupted call goes on where it stopped.
///
/// The binary needs a driver and CUDA's libraries to start: docs/cuda.md. PYTHON and CC name other programs than `python3` and `cc`.
#[derive(clap::Args)]
struct Build {
    /// Compute capability of the oldest card to run on, without the dot; later cards compile for themselves when they first run it. 90:
    /// Hopper, 80: Ampere and all later ones
    #[arg(long, value_name = "NN", default_value = USUAL_CAPABILITY)]
    compute_cap: String,
    /// An installed toolkit: the folder with bin/nvcc
    #[arg(long, value_name = "DIR")]
    toolkit: Option<PathBuf>,
    /// Target folder of this build, also of the wheels and what is in them [default: cuda in cargo's target folder]
    #[arg(long, value_name = "DIR")]
    target_dir: Option<PathBuf>,
    /// Use no network: wheels are looked for in wheels/ of the target folder, crates where cargo keeps them
    #[arg(long)]
    offline: bool,
    /// Say what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
}

/// Does what the words say.
pub(crate) fn run(words: &[&str]) -> anyhow::Result<ExitCode> {
    let words = std::iter::once("cargo xtask cuda").chain(words.iter().copied());
    match Flags::try_parse_from(words) {
        Ok(Flags { command: Task::Build(build) }) => build.run().map(|_| ExitCode::SUCCESS),
        Err(error) => {
            // Help goes to stdout, a complaint to stderr.
            let _ = error.print();
            Ok(ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2)))
        }
    }
}

/// What a build has made.
pub(crate) struct Built {
    pub(crate) binary: PathBuf,
    /// Where CUDA's libraries lie that it needs; the driver's is not among them.
    pub(crate) libraries: Vec<PathBuf>,
}

/// What runs on Ampere and all later cards.
pub(crate) const USUAL_CAPABILITY: &str = "80";

/// Builds as `cargo xtask cuda build` does, for cards of this capability and later ones.
pub(crate) fn built(capability: &str) -> anyhow::Result<Built> {
    let words = ["cargo xtask cuda", "build", "--compute-cap", capability];
    let Flags { command: Task::Build(build) } = Flags::try_parse_from(words)?;
    build.run()?.context("a build that is no dry run builds")
}

impl Build {
    /// None where it was only asked what would be done.
    fn run(&self) -> anyhow::Result<Option<Built>> {
        let capability = capability(&self.compute_cap)?;
        let root = workspace_root()?;
        let host = Host::of_this_machine(&root);
        let target =
            std::path::absolute(self.target_dir.clone().unwrap_or_else(|| host.target.join("cuda")))?;
        let toolkit = Toolkit::find(self.toolkit.as_deref(), &host, &target)?;
        if self.dry_run {
            say(&self.plan(&toolkit, &host, &target)?)?;
            return Ok(None);
        }
        check_space(&target)?;
        if let Toolkit::Wheels(wheels) = &toolkit {
            wheels.unpack(&host, self.offline, &mut |line| complain(line))?;
            let functions = host.cudarc(self.offline)?.driver_functions()?;
            driver_stub::write(wheels.folder(), &host.compiler, &functions)?;
        }
        toolkit.check_version(&host, self.offline)?;
        match toolkit.compiles(&host, capability, &target)? {
            TrialRun::Compiled => {}
            TrialRun::Refused(complaint) => bail!(refusal(&toolkit, capability, &complaint)),
        }
        let mut command = self.cargo(&toolkit, &host, &target);
        complain(&format!("building in `{}`; the kernels take minutes\n", target.display()))?;
        let status = command.status().with_context(|| format!("could not run `{}`", host.cargo.display()))?;
        if !status.success() {
            bail!(
                "`cargo build` failed; what it said is above\nhint: docs/cuda.md lists errors and what they mean"
            );
        }
        let binary = target.join("release").join("aeir");
        say(&outcome::told(&binary, &toolkit, capability)?)?;
        Ok(Some(Built { binary, libraries: outcome::libraries(toolkit.folder()) }))
    }

    /// The build itself, with its environment.
    fn cargo(&self, toolkit: &Toolkit, host: &Host, target: &Path) -> Command {
        let mut command = Command::new(&host.cargo);
        command.args(["build", "--release", "--package", "aeir-cli", "--features", "cuda"]);
        command.arg("--target-dir").arg(target).current_dir(&host.root);
        if self.offline {
            command.arg("--offline");
        }
        command.envs(environment(toolkit.folder(), &self.compute_cap, &host.path));
        command
    }

    fn plan(&self, toolkit: &Toolkit, host: &Host, target: &Path) -> anyhow::Result<String> {
        use std::fmt::Write;
        let mut text = String::new();
        match toolkit {
            Toolkit::Installed(folder) => {
                writeln!(text, "toolkit: installed in `{}`", folder.display())?;
            }
            Toolkit::Wheels(wheels) => {
                writeln!(
                    text,
                    "toolkit: none is installed; wheels, unpacked to `{}`",
                    wheels.folder().display()
                )?;
                for step in wheels.steps() {
                    writeln!(text, "  {step}")?;
                }
                writeln!(text, "  compile lib64/stubs/libcuda.so with `{}`", host.compiler.display())?;
            }
        }
        let command = self.cargo(toolkit, host, target);
        text.push_str("build:\n");
        for (name, value) in command.get_envs() {
            // The whole of PATH says little.
            let value = value.unwrap_or_default();
            let value = if name == "PATH" {
                format!("{}:$PATH", toolkit.folder().join("bin").display())
            } else {
                value.display().to_string()
            };
            writeln!(text, "  {}={value}", name.display())?;
        }
        let arguments: Vec<String> = command.get_args().map(|word| word.display().to_string()).collect();
        writeln!(text, "  cargo {}", arguments.join(" "))?;
        writeln!(text, "then: look at target/release/aeir and start it once")?;
        Ok(text.replace("target/release/aeir", &target.join("release/aeir").display().to_string()))
    }
}

/// What the build scripts of candle's CUDA crates look at. They find `lib64` and its stubs below CUDA_HOME.
fn environment(folder: &Path, capability: &str, path: &OsString) -> Vec<(&'static str, OsString)> {
    let bin = folder.join("bin");
    let mut paths = vec![bin.clone()];
    paths.extend(std::env::split_paths(path).filter(|other| *other != bin));
    // A folder with the list's own separator in its name can't be listed: nvcc is then found by NVCC alone.
    let path = std::env::join_paths(paths).unwrap_or_else(|_| path.clone());
    vec![
        ("CUDA_HOME", folder.into()),
        ("CUDA_PATH", folder.into()),
        ("NVCC", bin.join("nvcc").into()),
        ("PATH", path),
        ("CUDA_COMPUTE_CAP", capability.into()),
    ]
}

/// `80`, `90` or `90a`: unset, the build asks a card that may not be there.
fn capability(text: &str) -> anyhow::Result<&str> {
    let digits = text.strip_suffix('a').unwrap_or(text);
    if !(2..=3).contains(&digits.len()) || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        bail!("--compute-cap: expected a compute capability without its dot, such as 80 or 90, got `{text}`");
    }
    Ok(text)
}

fn check_space(target: &Path) -> anyhow::Result<()> {
    // Once there is a binary, what comes takes little more.
    let needed = if target.join("release").join("aeir").exists() { SPACE / 5 } else { SPACE };
    match free_bytes(target).filter(|free| *free < needed) {
        Some(free) => bail!(
            "no space in `{}`: wheels, toolkit and build take up to {}, {} are free\nhint: name a folder on another disk with --target-dir",
            target.display(),
            readable(needed),
            readable(free)
        ),
        None => Ok(()),
    }
}

/// Why nvcc can't compile for this.
fn refusal(toolkit: &Toolkit, capability: &str, complaint: &str) -> String {
    let nvcc = toolkit.folder().join("bin").join("nvcc");
    let hint = if complaint.contains("Unsupported gpu architecture")
        || complaint.contains("is not defined for option")
    {
        format!(
            "this toolkit knows no capability {capability}: choose another with --compute-cap; `nvcc --list-gpu-arch` lists them"
        )
    } else if complaint.contains("unsupported GNU version") || complaint.contains("host_config") {
        "this toolkit knows no C++ compiler as new as yours: install an older one and name it by NVCC_CCBIN"
            .to_owned()
    } else {
        "nvcc needs a C++ compiler: on Debian and Ubuntu it is the package `g++`".to_owned()
    };
    format!("`{}` can't compile an empty kernel: {complaint}\nhint: {hint}", nvcc.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_two_or_three_digits() {
        for good in ["80", "90", "90a", "120"] {
            assert_eq!(capability(good).unwrap(), good);
        }
        for bad in ["", "8", "8.0", "sm_80", "a", "9a", "1200", "-8"] {
            let error = capability(bad).unwrap_err().to_string();
            assert!(error.contains("such as 80 or 90") && error.contains(&format!("`{bad}`")), "{error}");
        }
    }

    #[test]
    fn the_toolkit_comes_first_on_the_path_and_once() {
        let folder = Path::new("cuda kit");
        let before = std::env::join_paths(["usual", "cuda kit/bin"]).unwrap();
        let set = environment(folder, "90", &before);
        let of = |name: &str| set.iter().find(|(own, _)| *own == name).unwrap().1.clone();
        let paths: Vec<PathBuf> = std::env::split_paths(&of("PATH")).collect();
        assert_eq!(paths, [folder.join("bin"), PathBuf::from("usual")]);
        assert_eq!((of("CUDA_HOME"), of("CUDA_COMPUTE_CAP")), ("cuda kit".into(), "90".into()));
        assert_eq!(of("NVCC"), folder.join("bin").join("nvcc"));
    }

    #[test]
    fn complaints_of_the_compiler_have_a_hint_of_their_own() {
        let toolkit = Toolkit::Installed("kit".into());
        let told = |complaint| refusal(&toolkit, "30", complaint);
        assert!(told("nvcc fatal   : Unsupported gpu architecture 'compute_30'").contains("--compute-cap"));
        assert!(told("error: -- unsupported GNU version! gcc versions later than 15").contains("NVCC_CCBIN"));
        assert!(told("sh: 1: gcc: not found").contains("`g++`"));
    }
}
