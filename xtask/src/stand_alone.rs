//! What a project that takes `aeir-encoders` alone gets with it.

use std::collections::BTreeSet;
use std::process::Command;

use crate::tree::workspace_root;

/// Packages of the default build, our own included: a new dependency is a decision, and this number its record. The last
/// one was aeir-kernels, which the encoders' operations call on a card and which is empty without the feature `cuda`.
const MOST_PACKAGES: usize = 166;
/// Networks, TLS, C libraries, programs, CUDA, and our own crates above: none belongs into an encoder.
const UNWANTED: [&str; 21] = [
    "ureq",
    "hf-hub",
    "reqwest",
    "hyper",
    "rustls",
    "ring",
    "native-tls",
    "openssl-sys",
    "aws-lc-sys",
    "tokio",
    "socket2",
    "onig_sys",
    "clap",
    "anyhow",
    "cudaforge",
    "cudarc",
    "aeir-data",
    "aeir-losses",
    "aeir-retrieve",
    "aeir-train",
    "aeir-cli",
];

/// Names of the packages that `aeir-encoders` builds from, with these flags; none where some were never fetched.
fn packages(flags: &[&str]) -> Option<BTreeSet<String>> {
    let output = Command::new(env!("CARGO"))
        .args([
            "tree",
            "--quiet",
            "--offline",
            "--locked",
            "-p",
            "aeir-encoders",
            "-e",
            "normal,build",
            "--prefix",
            "none",
        ])
        .args(["--format", "{p}"])
        .args(flags)
        .current_dir(workspace_root().unwrap())
        .output()
        .unwrap();
    let (text, told) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    if told.contains("--offline") {
        return None;
    }
    assert!(output.status.success(), "{told}");
    Some(text.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect())
}

#[test]
fn no_network_no_training_and_not_many_packages() {
    for flags in [&["--no-default-features"][..], &[]] {
        let packages = packages(flags).expect("this workspace builds from them");
        let unwanted: Vec<_> = UNWANTED.into_iter().filter(|name| packages.contains(*name)).collect();
        assert!(unwanted.is_empty(), "{flags:?}: {unwanted:?}");
        assert!(
            packages.contains("candle-core") && packages.len() <= MOST_PACKAGES,
            "{flags:?}: {}",
            packages.len()
        );
    }
}

#[test]
fn the_feature_hub_is_what_brings_the_network() {
    let (Some(with), Some(without)) = (packages(&["--features", "hub"]), packages(&[])) else {
        println!("skipped: the packages of the feature `hub` were never fetched, and tests use no network");
        return;
    };
    assert!(with.contains("ureq") && with.contains("rustls"));
    assert!(with.len() - without.len() <= 25, "{:?}", with.difference(&without).collect::<Vec<_>>());
}
