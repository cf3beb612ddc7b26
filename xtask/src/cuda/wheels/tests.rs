//! Against wheels of a few bytes, and a `python3` that is a script.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::Write;
use std::os::unix::fs::PermissionsExt;

use super::*;

/// A wheel with what the toolkit looks for in its package.
fn wheel(file: &Path, members: &[&str]) {
    let mut bytes = Vec::new();
    let mut archive = zip::ZipWriter::new(std::io::Cursor::new(&mut bytes));
    for member in members {
        let options =
            zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
        archive.start_file(*member, options).unwrap();
        archive.write_all(member.as_bytes()).unwrap();
    }
    archive.finish().unwrap();
    fs::write(file, bytes).unwrap();
}

/// What each package brings, cut down.
const CONTENT: [(&str, &[&str]); 8] = [
    ("nvidia_cuda_nvcc-13.0.88", &["nvidia/cu13/bin/nvcc"]),
    ("nvidia_nvvm-13.0.88", &["nvidia/cu13/nvvm/bin/cicc", "nvidia/cu13/lib/libnvvm.so.4"]),
    ("nvidia_cuda_crt-13.0.88", &["nvidia/cu13/include/crt/host_config.h"]),
    ("nvidia_cuda_runtime-13.0.96", &["nvidia/cu13/lib/libcudart.so.13"]),
    ("nvidia_cuda_cccl-13.0.85", &["nvidia/cu13/include/cccl/cub/cub.cuh"]),
    ("nvidia_cublas-13.0.2.14", &["nvidia/cu13/lib/libcublas.so.13", "nvidia/cu13/lib/libcublasLt.so.13"]),
    ("nvidia_curand-10.4.0.35", &["nvidia/cu13/lib/libcurand.so.10"]),
    ("nvidia_cuda_nvrtc-13.0.88", &["nvidia/cu13/lib/libnvrtc.so.13", "nvidia/cu13/lib/libnvrtc.alt.so.13"]),
];

fn all_wheels(folder: &Path) {
    fs::create_dir_all(folder).unwrap();
    for (name, members) in CONTENT {
        wheel(&folder.join(format!("{name}-py3-none-any.whl")), members);
    }
}

/// A machine whose `python3` is this script.
fn host(folder: &Path, python: &str) -> Host {
    let file = folder.join("python3");
    fs::write(&file, format!("#!/bin/sh\n{python}\n")).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    Host {
        root: ".".into(),
        target: "target".into(),
        cargo: "cargo".into(),
        python: file,
        compiler: "cc".into(),
        path: "".into(),
        named: Vec::new(),
    }
}

fn silently(_: &str) -> anyhow::Result<()> {
    Ok(())
}

#[test]
fn wheels_become_a_toolkit_and_a_second_call_does_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let wheels = Wheels::below(folder.path());
    all_wheels(&folder.path().join("wheels"));
    let host = host(folder.path(), "exit 1");
    wheels.unpack(&host, true, &mut silently).unwrap();
    let at = |name: &str| wheels.folder().join(name);
    for program in ["bin/nvcc", "nvvm/bin/cicc"] {
        assert_eq!(fs::metadata(at(program)).unwrap().permissions().mode() & 0o111, 0o111, "{program}");
    }
    for (link, file) in [
        ("libcurand.so", "libcurand.so.10"),
        ("libnvrtc.so", "libnvrtc.so.13"),
        ("libcublas.so", "libcublas.so.13"),
    ] {
        let whole = at("lib64").join(link).canonicalize().unwrap();
        assert_eq!(whole.file_name().unwrap(), file);
    }
    assert!(at("include/crt/host_config.h").exists());
    // Wheels that somebody put there are his.
    assert_eq!(fs::read_dir(folder.path().join("wheels")).unwrap().count(), CONTENT.len());
    assert!(wheels.steps().iter().all(|step| step.ends_with("unpacked already")), "{:?}", wheels.steps());
    fs::remove_dir_all(folder.path().join("wheels")).unwrap();
    wheels.unpack(&host, true, &mut silently).unwrap();
}

#[test]
fn pip_brings_what_is_missing_and_an_interrupted_call_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let wheels = Wheels::below(folder.path());
    let there = folder.path().join("registry");
    all_wheels(&there);
    // Takes the place that follows `--dest` and the requirement behind it; the last package is not to be had at first.
    let script = format!(
        "echo \"$*\" >> {0}/calls\nwhile [ $# -gt 2 ]; do shift; done\nmkdir -p \"$1\"\nname=$(echo \"${{2%%=*}}\" | tr - _)\n\
         [ -e {0}/gone ] && [ \"$name\" = nvidia_cuda_nvrtc ] && {{ echo 'ERROR: No matching distribution' >&2; exit 1; }}\n\
         cp {1}/\"$name\"-* \"$1\"",
        folder.path().display(),
        there.display()
    );
    let host = host(folder.path(), &script);
    fs::write(folder.path().join("gone"), "").unwrap();
    let error = wheels.unpack(&host, false, &mut silently).unwrap_err().to_string();
    assert!(
        error.contains("nvidia-cuda-nvrtc==13.0.*") && error.contains("No matching distribution"),
        "{error}"
    );
    assert!(error.contains("hint: put its wheel"), "{error}");
    let left: Vec<String> = wheels.steps().into_iter().filter(|step| step.contains("pip download")).collect();
    assert_eq!(left, ["nvidia-cuda-nvrtc: pip download nvidia-cuda-nvrtc==13.0.*, unpack"]);
    fs::remove_file(folder.path().join("gone")).unwrap();
    let mut told = Vec::new();
    let mut tell = |line: &str| {
        told.push(line.to_owned());
        Ok(())
    };
    wheels.unpack(&host, false, &mut tell).unwrap();
    assert_eq!(told, ["downloading nvidia-cuda-nvrtc==13.0.*\n"]);
    let calls = fs::read_to_string(folder.path().join("calls")).unwrap();
    assert_eq!(calls.lines().count(), CONTENT.len() + 1, "{calls}");
    assert!(calls.contains("nvidia-curand==10.4.0.*") && calls.contains("--no-deps"), "{calls}");
    // What we fetched is of no use any more.
    assert_eq!(fs::read_dir(folder.path().join("wheels")).unwrap().count(), 0);
}

#[test]
fn what_is_missing_is_said_with_a_way_out() {
    let folder = tempfile::tempdir().unwrap();
    let wheels = Wheels::below(folder.path());
    let told = |host: &Host, offline| wheels.unpack(host, offline, &mut silently).unwrap_err().to_string();
    let offline = told(&host(folder.path(), "exit 1"), true);
    assert!(
        offline.contains("--offline") && offline.contains("wheels") && offline.contains("--toolkit"),
        "{offline}"
    );
    let no_pip = told(&host(folder.path(), "echo 'python3: No module named pip' >&2; exit 1"), false);
    assert!(no_pip.contains("python3-pip"), "{no_pip}");
    let none = Host { python: folder.path().join("nothing"), ..host(folder.path(), "") };
    let no_python = told(&none, false);
    assert!(
        no_python.contains("could not run") && no_python.contains("hint: install Python 3"),
        "{no_python}"
    );
    let empty = told(&host(folder.path(), "exit 0"), false);
    assert!(empty.contains("brought no wheel"), "{empty}");
}

#[test]
fn a_damaged_wheel_is_not_taken() {
    let folder = tempfile::tempdir().unwrap();
    let wheels = Wheels::below(folder.path());
    let place = folder.path().join("wheels");
    all_wheels(&place);
    let file = place.join("nvidia_nvvm-13.0.88-py3-none-any.whl");
    let mut bytes = fs::read(&file).unwrap();
    // In the content of the first member, behind its header and name.
    let at = 30 + "nvidia/cu13/nvvm/bin/cicc".len() + 2;
    bytes[at] ^= 1;
    fs::write(&file, bytes).unwrap();
    let error = wheels.unpack(&host(folder.path(), "exit 1"), true, &mut silently).unwrap_err().to_string();
    assert!(
        error.contains("nvidia_nvvm") && error.contains("checksum") && error.contains("hint: remove"),
        "{error}"
    );
    assert!(wheels.steps()[1].contains("unpack `"), "{:?}", wheels.steps());
}

#[test]
fn wheels_of_another_version_are_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let wheels = Wheels::below(folder.path());
    let place = folder.path().join("wheels");
    fs::create_dir_all(&place).unwrap();
    wheel(&place.join("nvidia_cuda_nvcc-13.5.37-py3-none-any.whl"), &["nvidia/cu13/bin/nvcc"]);
    assert!(wheels.steps()[0].contains("pip download nvidia-cuda-nvcc==13.0.*"), "{:?}", wheels.steps());
}
