//! A stand-in for the driver's library to link against: the real one comes with a driver, and a driver with a card.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};

use super::wheels::link;

/// What the real library calls itself, and so what the binary asks for.
const NAME: &str = "libcuda.so.1";
/// `CUDA_ERROR_NO_DEVICE`: what every function says, should the stand-in be loaded.
const NO_DEVICE: u32 = 100;
/// What it says of its errors, should the real library be hidden by it.
const EXPLAINED: &str = "this is the stand-in for the driver's library, which has no device: take its folder out of LD_LIBRARY_PATH";

/// Compiles `lib64/stubs/libcuda.so` of a toolkit with these functions, unless it is there.
///
/// # Errors
/// When there is no C compiler, or a file can't be written.
pub(super) fn write(toolkit: &Path, compiler: &Path, functions: &[String]) -> anyhow::Result<()> {
    let folder = toolkit.join("lib64").join("stubs");
    let library = folder.join("libcuda.so");
    let code = source(functions);
    let file = folder.join("libcuda.c");
    if library.exists() && std::fs::read_to_string(&file).is_ok_and(|earlier| earlier == code) {
        return Ok(());
    }
    // Should this be interrupted, nothing half done is taken for the library.
    let _ = std::fs::remove_file(&library);
    std::fs::write(&file, code).with_context(|| format!("could not write `{}`", file.display()))?;
    let mut command = Command::new(compiler);
    command.args(["-shared", "-fPIC", &format!("-Wl,-soname,{NAME}"), "-o"]).arg(&library).arg(&file);
    let compiler = compiler.display();
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
    link(Path::new("libcuda.so"), &folder.join(NAME))
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
    fn it_is_compiled_once_and_again_when_the_functions_change() {
        let toolkit = tempfile::tempdir().unwrap();
        let stubs = toolkit.path().join("lib64").join("stubs");
        std::fs::create_dir_all(&stubs).unwrap();
        let functions = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let (few, more) = (functions(&["cuInit"]), functions(&["cuInit", "cuCtxCreate"]));
        let (compiler, none) = (Path::new("cc"), Path::new("no-such-compiler"));
        let error = write(toolkit.path(), none, &few).unwrap_err().to_string();
        assert!(error.contains("no-such-compiler") && error.contains("hint: install a C"), "{error}");
        write(toolkit.path(), compiler, &few).unwrap();
        let small = std::fs::read(stubs.join("libcuda.so")).unwrap();
        assert!(small.starts_with(b"\x7fELF"));
        write(toolkit.path(), none, &few).unwrap();
        write(toolkit.path(), none, &more).unwrap_err();
        assert!(!stubs.join("libcuda.so").exists(), "what is not whole is not there");
        write(toolkit.path(), compiler, &more).unwrap();
        assert_ne!(std::fs::read(stubs.join(NAME)).unwrap(), small);
        assert_eq!(
            std::fs::read(stubs.join(NAME)).unwrap(),
            std::fs::read(stubs.join("libcuda.so")).unwrap()
        );
    }

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
