//! The crate from outside.

// Helpers of tests are tests: the lint only knows the functions marked as such.
#![allow(clippy::unwrap_used, clippy::panic)]
// The library says why.
#![allow(clippy::mutable_key_type)]

mod cache;
mod captions;
mod domains;
mod fixtures;
mod formats;
mod images;
mod labelled;
mod loader;
mod region_features;
mod sampler;

use std::path::{Path, PathBuf};

/// Writes a file into a folder and returns its path.
fn write(folder: &Path, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
    let path = folder.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, content).unwrap();
    path
}

/// A small image written by other software.
fn image(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/images").join(name)
}

/// All of them.
fn images() -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(image("")).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|suffix| suffix != "md"));
    paths.sort();
    assert!(paths.len() > 30);
    paths
}

/// The workspace's data sets.
fn dataset(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/datasets").join(name)
}
