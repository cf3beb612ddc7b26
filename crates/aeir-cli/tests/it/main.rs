//! The `aeir` command, run as a user runs it: on a small part of the real data sets, in a folder of its own.

// Helpers of tests are tests: the lint only knows the functions marked as such.
#![allow(clippy::unwrap_used, clippy::panic)]

mod bad_data;
mod bad_models;
mod bad_settings;
mod bench;
mod cache;
mod convert;
mod data_commands;
mod diagnose;
mod dry_run;
mod embed;
mod help;
mod index_commands;
mod label;
mod methods;
mod milvus;
mod observing;
mod odd_batches;
mod pairs;
mod push;
mod resume;
mod selection;
mod selftest;
#[cfg(feature = "serve")]
mod serve;
mod sweep;
mod system;
mod trust;
mod tuned_encoders;
mod workflow;
mod zero_shot;

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use serde_json::Value;
use tempfile::TempDir;

/// The root of the repository.
fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap().to_owned()
}

fn fixtures(inside: &str) -> PathBuf {
    repository().join("fixtures").join(inside)
}

/// A small image of a special kind, written by other software.
fn odd_image(name: &str) -> String {
    repository().join("crates/aeir-data/tests/images").join(name).display().to_string()
}

/// The program without any setting of whoever runs the tests.
fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_aeir"));
    clean(&mut command);
    command
}

fn clean(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        let name_text = name.to_string_lossy();
        if name_text.starts_with("AEIR_") || name_text.starts_with("HF_") || name == "RUST_BACKTRACE" {
            command.env_remove(name);
        }
    }
    command
        .env("AEIR_IMAGE_ENCODER", fixtures("backbones/efficientnet-lite0"))
        .env("AEIR_TEXT_ENCODER", fixtures("backbones/static-minilm"))
        .env("HF_HOME", SHARED.cache.join("hugging-face"))
        .env("HF_HUB_OFFLINE", "1")
        .env("AEIR_CACHE_DIR", &SHARED.cache);
}

/// What all tests of one build have in common: encoded features, a model, an index.
struct Shared {
    folder: PathBuf,
    cache: PathBuf,
}

static SHARED: LazyLock<Shared> = LazyLock::new(|| {
    let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join("aeir-cli-it");
    let folder = place.join(build());
    fs::create_dir_all(&folder).unwrap();
    // It is in use: whoever cleans up leaves it.
    let _ = fs::File::open(&folder).and_then(|opened| opened.set_modified(SystemTime::now()));
    // A static is never dropped: what earlier builds left behind goes now.
    for entry in fs::read_dir(&place).unwrap().flatten().filter(|entry| entry.path() != folder) {
        let age = entry.metadata().and_then(|data| data.modified()).ok();
        let age =
            age.and_then(|modified| SystemTime::now().duration_since(modified).ok()).unwrap_or_default();
        if age > Duration::from_secs(3600) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    Shared { cache: folder.join("cache"), folder }
});

/// Names what the shared files follow from: the program, these tests and the fixtures.
fn build() -> String {
    let mut hasher = DefaultHasher::new();
    for program in [env!("CARGO_BIN_EXE_aeir").into(), std::env::current_exe().unwrap()] {
        let data = fs::metadata(program).unwrap();
        (data.len(), data.modified().unwrap()).hash(&mut hasher);
    }
    fs::read(fixtures("MANIFEST.sha256")).unwrap().hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

/// A standardised AEIR model and an index of the target's images, never to be changed. Made once a build: a runner that gives
/// each test a process of its own has them all wait for the first. They are made in another place: who is killed leaves nothing here.
static MODEL_AND_INDEX: LazyLock<(PathBuf, PathBuf)> = LazyLock::new(|| {
    let (model, index) = (SHARED.folder.join("model"), SHARED.folder.join("index"));
    let lock = fs::File::create(SHARED.folder.join("lock")).unwrap();
    lock.lock().unwrap();
    let whole = SHARED.folder.join("whole");
    if !whole.exists() {
        let scene = Scene::within(TempDir::new_in(&SHARED.folder).unwrap());
        scene.run(&format!("train {BOTH} --standardise --epochs 6 --output model")).ok();
        scene.run("index --model model --images images.txt --output index").ok();
        for (name, place) in [("model", &model), ("index", &index)] {
            let _ = fs::remove_dir_all(place);
            fs::rename(scene.path(name), place).unwrap();
        }
        fs::write(whole, "").unwrap();
    }
    (model, index)
});

/// Flags of a training on source and target.
const BOTH: &str = "--source source.jsonl --target-images images.txt --target-sentences sentences.txt";

/// Flags of a short training on the source alone.
const SHORT: &str = "train --method source-only --epochs 2 --source source.jsonl --output run";

/// A working folder with `source.jsonl` (50 train, 10 val), `images.txt`, `sentences.txt` (30 each) and `test.jsonl` (20).
struct Scene {
    folder: TempDir,
}

/// The first `count` lines of a file that `wanted` takes.
fn lines(file: &Path, count: usize, wanted: impl Fn(&str) -> bool) -> Vec<String> {
    let text = fs::read_to_string(file).unwrap();
    text.lines().filter(|line| wanted(line)).take(count).map(str::to_owned).collect()
}

/// A record of a caption file with its image path made absolute.
fn absolute_record(folder: &Path, line: &str) -> String {
    let mut record: Value = serde_json::from_str(line).unwrap();
    let image = folder.join(record["image"].as_str().unwrap());
    record["image"] = image.display().to_string().into();
    record.to_string()
}

impl Scene {
    fn new() -> Self {
        Self::within(tempfile::tempdir().unwrap())
    }

    fn within(folder: TempDir) -> Self {
        let scene = Self { folder };
        let (source, target) = (fixtures("datasets/noto-cldr"), fixtures("datasets/openclipart"));
        let captions = source.join("captions.jsonl");
        let mut records = lines(&captions, 50, |line| line.contains(r#""split": "train""#));
        records.extend(lines(&captions, 10, |line| line.contains(r#""split": "val""#)));
        let absolute = |folder: &Path, records: &[String]| -> Vec<String> {
            records.iter().map(|line| absolute_record(folder, line)).collect()
        };
        scene.write_lines("source.jsonl", &absolute(&source, &records));
        let test = lines(&target.join("test.jsonl"), 20, |_| true);
        scene.write_lines("test.jsonl", &absolute(&target, &test));
        let images = lines(&target.join("train_images.txt"), 30, |_| true);
        let images: Vec<String> =
            images.iter().map(|image| target.join(image).display().to_string()).collect();
        scene.write_lines("images.txt", &images);
        scene.write_lines("sentences.txt", &lines(&target.join("train_sentences.txt"), 30, |_| true));
        scene
    }

    /// With the shared model as `model` and the shared index as `index`, to be read only: what a command adds to them is the scene's own.
    fn with_model() -> Self {
        let scene = Self::new();
        let (model, index) = &*MODEL_AND_INDEX;
        for (shared, name) in [(model, "model"), (index, "index")] {
            #[cfg(unix)]
            link_entries(shared, &scene.path(name));
            #[cfg(not(unix))]
            copy_folder(shared, &scene.path(name));
        }
        scene
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn write_lines<T: AsRef<str>>(&self, name: &str, lines: &[T]) {
        let text: String = lines.iter().flat_map(|line| [line.as_ref(), "\n"]).collect();
        self.write(name, text);
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }

    fn lines(&self, name: &str) -> Vec<String> {
        lines(&self.path(name), usize::MAX, |_| true)
    }

    /// A copy of the shared model or index to spoil.
    fn copy(&self, of: &str, name: &str) {
        let (model, index) = &*MODEL_AND_INDEX;
        let target = self.path(name);
        let _ = fs::remove_dir_all(&target);
        copy_folder(if of == "model" { model } else { index }, &target);
    }

    /// Runs `aeir` with arguments that hold no blanks.
    fn run(&self, arguments: &str) -> Outcome {
        self.run_all(&arguments.split_whitespace().collect::<Vec<_>>())
    }

    fn run_all(&self, arguments: &[&str]) -> Outcome {
        let mut command = program();
        command.args(arguments);
        self.outcome(command)
    }

    /// Runs a command in this folder. One that hangs is killed, and then has no exit code.
    fn outcome(&self, mut command: Command) -> Outcome {
        command.current_dir(self.folder.path());
        let output =
            assert_cmd::Command::from_std(command).timeout(Duration::from_secs(120)).output().unwrap();
        Outcome {
            code: output.status.code(),
            stdout: self.shown(&output.stdout),
            stderr: self.shown(&output.stderr),
        }
    }

    /// Text without what differs between machines.
    fn shown(&self, bytes: &[u8]) -> String {
        let mut text = String::from_utf8(bytes.to_vec()).unwrap();
        let folder = self.folder.path();
        for (path, name) in [
            (folder.canonicalize().unwrap(), "[FOLDER]"),
            (folder.to_owned(), "[FOLDER]"),
            (SHARED.folder.clone(), "[SHARED]"),
            (repository(), "[REPOSITORY]"),
        ] {
            text = text.replace(&path.display().to_string(), name);
        }
        text
    }
}

/// A folder of its own whose entries are those of another.
#[cfg(unix)]
fn link_entries(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten() {
        std::os::unix::fs::symlink(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Turns one bit in the middle of a file.
fn flip_a_bit(file: &Path) {
    let mut bytes = fs::read(file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(file, bytes).unwrap();
}

/// Cuts a file to half its length.
fn cut(file: &Path) {
    let bytes = fs::read(file).unwrap();
    fs::write(file, &bytes[..bytes.len() / 2]).unwrap();
}

/// How a command ended.
#[derive(Debug)]
struct Outcome {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Outcome {
    #[track_caller]
    fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "{self:?}");
        self
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Exit code and stderr of a command that failed, for a snapshot.
    #[track_caller]
    fn failure(&self) -> String {
        assert!(self.code != Some(0) && self.code.is_some() && self.stdout.is_empty(), "{self:?}");
        assert!(!self.stderr.contains("panicked"), "{self:?}");
        format!("exit {}\n{}", self.code.unwrap(), self.stderr)
    }
}
