//! A stand-in for the driver's library to link against: the real one comes with a driver, and a driver with a card.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};

use super::host::Host;

/// What the real library calls itself, and so what the binary asks for.
const NAME: &str = "libcuda.so.1";
/// `CUDA_ERROR_NO_DEVICE`: what every function says, should the stand-in be loaded.
const NO_DEVICE: u32 = 100;
/// What it says of its errors, should the real library be hidden by it.
const EXPLAINED: &str = "this is the stand-in for the driver's library, which has no device: take its folder out of LD_LIBRARY_PATH";

/// Compiles `lib64/stubs/libcuda.so` of a toolkit, unless it is there.
///
/// # Errors
/// When there is no C compiler, or the functions to stand in for are not found.
pub(super) fn write(toolkit: &Path, host: &Host, offline: bool) -> anyhow::Result<()> {
    let folder = toolkit.join("lib64").join("stubs");
    let library = folder.join("libcuda.so");
    let code = source(&host.cudarc(offline)?.driver_functions()?);
    let file = folder.join("libcuda.c");
    if library.exists() && std::fs::read_to_string(&file).is_ok_and(|earlier| earlier == code) {
        return Ok(());
    }
    std::fs::write(&file, code).with_context(|| format!("could not write `{}`", file.display()))?;
    let mut command = Command::new(&host.compiler);
    command.args(["-shared", "-fPIC", &format!("-Wl,-soname,{NAME}"), "-o"]).arg(&library).arg(&file);
    let compiler = host.compiler.display();
    let output = command.output().with_context(|| {
        format!(
            "could not run `{compiler}`, to stand in for the driver's library\nhint: install a C and C++ compiler (on Debian and Ubuntu \
             the package `g++`), or name one by CC"
        )
    })?;
    if !output.status.success() {
        bail!("`{compiler}` failed:\n{}", String::from_utf8_lossy(&output.stderr).trim_end());
    }
    // By this name the binary finds it, should one want to see it start.
    let named = folder.join(NAME);
    std::fs::copy(&library, &named).with_context(|| format!("could not write `{}`", named.display()))?;
    Ok(())
}

/// C code of a library that has these functions and no device.
fn source(functions: &[String]) -> String {
    let header = "/* Stands in for the driver's library where there is no driver: to link against, not to run with. */\n";
    let function = |name: &String| match name.as_str() {
        // Asked for what an error means.
        "cuGetErrorString" => {
            format!("int {name}(int error, const char **text) {{ *text = \"{EXPLAINED}\"; return 0; }}\n")
        }
        _ => format!("int {name}(void) {{ return {NO_DEVICE}; }}\n"),
    };
    std::iter::once(header.to_owned()).chain(functions.iter().map(function)).collect()
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use crate::cuda::shared_objects::needed;

    #[test]
    fn a_program_links_against_it_and_asks_for_the_real_one() {
        let folder = tempfile::tempdir().unwrap();
        let of = |name: &str| folder.path().join(name);
        let functions = ["cuGetErrorString", "cuInit", "cuLaunchKernel"].map(str::to_owned);
        std::fs::write(of("libcuda.c"), source(&functions)).unwrap();
        let main = "#include <stdio.h>\nint cuInit(unsigned); int cuGetErrorString(int, const char **);\n\
                    int main(void) { const char *t = 0; cuGetErrorString(100, &t); puts(t); return cuInit(0); }";
        std::fs::write(of("main.c"), main).unwrap();
        let compile = |words: &[&str]| {
            let status = Command::new("cc").args(words).current_dir(folder.path()).status().unwrap();
            assert!(status.success(), "cc {words:?}");
        };
        compile(&["-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", "libcuda.so", "libcuda.c"]);
        compile(&["-o", "main", "main.c", "-L.", "-lcuda"]);
        assert!(needed(&of("main")).unwrap().contains(&NAME.to_owned()));
        std::fs::copy(of("libcuda.so"), of(NAME)).unwrap();
        let run = Command::new(of("main")).env("LD_LIBRARY_PATH", folder.path()).output().unwrap();
        assert_eq!(run.status.code(), Some(100), "no device");
        assert!(String::from_utf8_lossy(&run.stdout).contains("stand-in"), "{run:?}");
    }
}
