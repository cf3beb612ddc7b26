//! What the system does to a command: no space, closed outputs, a cache that can't be written.

use std::fs;
use std::process::{Command, Stdio};

use crate::{SHORT, Scene, program};

/// Runs `aeir` where no file may grow beyond `blocks` of 512 or 1024 bytes, as on a disk that fills up.
#[cfg(target_os = "linux")]
fn run_on_a_small_disk(scene: &Scene, blocks: usize, arguments: &str) -> String {
    let mut command = Command::new("sh");
    crate::clean(&mut command);
    command.args(["-c", &format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$@\""), "sh"]);
    command.arg(env!("CARGO_BIN_EXE_aeir")).args(arguments.split_whitespace());
    scene.outcome(command).failure()
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_while_training() {
    let scene = Scene::new();
    scene.run(&SHORT.replace("--output run", "--output warm")).ok();
    let told = run_on_a_small_disk(&scene, 2000, SHORT);
    insta::assert_snapshot!(told, @r"
    exit 1
    error: could not write `run/checkpoints/.unfinished.tmp/state.safetensors`: File too large (os error 27)

    hint: free some space there, or write to another disk
    ");
    assert_eq!(scene.run("eval --model run --data test.jsonl").code, Some(4));
    assert_eq!(scene.run("index --model run --images images.txt --output made").code, Some(4));
    scene.run(&format!("{SHORT} --resume latest")).ok();
    assert!(scene.read("run/model.safetensors") == scene.read("warm/model.safetensors"));
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_keeps_the_last_checkpoint() {
    let scene = Scene::new();
    scene.write("config.toml", "checkpoint_every = 2\n");
    let flags = format!("{} --config config.toml", SHORT.replace("--epochs 2", "--epochs 8"));
    scene.run(&flags.replace("--output run", "--output warm")).ok();
    // As a run that was killed after its second checkpoint.
    let keep = ["config.toml", "config.sha256", "metrics.jsonl", "timing.jsonl", "skipped.jsonl"];
    scene.run(&flags).ok();
    for name in fs::read_dir(scene.path("run")).unwrap().map(|entry| entry.unwrap().path()) {
        let file = name.file_name().unwrap().to_string_lossy().into_owned();
        if name.is_file() && !keep.contains(&file.as_str()) {
            fs::remove_file(name).unwrap();
        }
    }
    fs::remove_dir_all(scene.path("run/checkpoints/step-00000008")).unwrap();
    let checkpoints = || {
        let names = fs::read_dir(scene.path("run/checkpoints")).unwrap();
        let mut names: Vec<_> = names.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let before = checkpoints();
    assert!(before.contains(&"step-00000006".into()), "{before:?}");
    let told = run_on_a_small_disk(&scene, 2000, &format!("{flags} --resume latest"));
    assert!(told.contains("resumed at step 6 of 8") && told.contains("File too large"), "{told}");
    assert_eq!(checkpoints(), before, "the last good one is kept, and nothing else is left");
    scene.run(&format!("{flags} --resume latest")).ok();
    for file in ["model.safetensors", "metrics.jsonl"] {
        assert!(scene.read(&format!("run/{file}")) == scene.read(&format!("warm/{file}")), "{file}");
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_while_encoding() {
    let scene = Scene::new();
    let cache = scene.path("small-cache");
    let mut command = Command::new("sh");
    crate::clean(&mut command);
    command.args(["-c", "trap '' XFSZ; ulimit -f 100; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_aeir")]);
    command.args(SHORT.split_whitespace()).env("AEIR_CACHE_DIR", &cache);
    let told = scene.outcome(command).failure();
    assert!(told.starts_with("exit 1\nerror: cannot add features to `"), "{told}");
    assert!(
        told.contains("\n\nhint: free some space, or set AEIR_CACHE_DIR to a folder on another disk"),
        "{told}"
    );
    let mut command = program();
    command.args(SHORT.split_whitespace()).env("AEIR_CACHE_DIR", &cache);
    scene.outcome(command).ok();
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_while_indexing() {
    let scene = Scene::with_model();
    let told = run_on_a_small_disk(&scene, 2000, "index --model model --images images.txt --output made");
    assert!(told.starts_with("exit 1\nerror: could not write `"), "{told}");
    assert!(told.ends_with("\n\nhint: free some space there, or write to another disk\n"), "{told}");
    assert!(!scene.path("made").exists());
    let names = fs::read_dir(scene.folder.path()).unwrap().flatten().map(|entry| entry.file_name());
    assert_eq!(
        names.filter(|name| name.to_string_lossy().contains("made")).count(),
        0,
        "nothing is left behind"
    );
}

#[test]
fn a_cache_that_cannot_be_made() {
    let scene = Scene::with_model();
    scene.write("a-file", "");
    let mut command = program();
    command.args("eval --model model --data test.jsonl".split_whitespace()).env("AEIR_CACHE_DIR", "a-file");
    insta::assert_snapshot!(scene.outcome(command).failure(), @r"
    exit 2
    error: could not make the cache folder `a-file/features`: Not a directory (os error 20)

    hint: set AEIR_CACHE_DIR to a folder that can be written
    ");
}

#[test]
fn a_reader_that_has_gone() {
    let scene = Scene::with_model();
    for arguments in ["search --index index dog -k 30", "search --index index dog --json", "train --help"] {
        let mut command = program();
        command.args(arguments.split_whitespace()).current_dir(scene.folder.path());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{arguments}");
        assert_eq!(scene.shown(&output.stderr), "");
    }
}

#[test]
#[cfg(target_os = "linux")]
fn outputs_that_are_full() {
    let scene = Scene::with_model();
    let full = || fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let start = |arguments: &str| {
        let mut command = program();
        command.args(arguments.split_whitespace()).current_dir(scene.folder.path());
        command
    };
    let output = start("search --index index dog").stdout(full()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    insta::assert_snapshot!(scene.shown(&output.stderr), @r"
    error: could not write to stdout: No space left on device (os error 28)

    hint: free some space there, or write to another disk
    ");
    // The exit code stays even where nobody can be told.
    let status = start("eval --model gone --data test.jsonl").stderr(full()).status().unwrap();
    assert_eq!(status.code(), Some(4));
}
