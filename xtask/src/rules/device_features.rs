//! The device features pass through, and do nothing else.

use std::collections::BTreeSet;

use crate::manifest::{Crate, crates, is_candle};
use crate::tree::Tree;
use crate::violation::Violation;

const DEVICES: [&str; 5] = ["cuda", "cudnn", "metal", "mkl", "accelerate"];
const CUDA: &str = "cuda";
/// Has code for NVIDIA cards alone: those above it pass `cuda` on to it, and of another device it has no more than candle's feature.
const OF_CARDS: &str = "aeir-kernels";
/// Crates with kernels in CUDA, and what their `cuda` turns on for them: the kernels' compiler and, without candle, the driver.
const WITH_KERNELS: [(&str, &[&str]); 2] =
    [(OF_CARDS, &["dep:cudaforge"]), ("aeir-retrieve", &["dep:cudaforge", "dep:cudarc"])];

/// Each candle crate has the five features; each turns on the same feature of candle's crates and of ours below, and
/// nothing else but what kernels of its own need. A crate of ours that another one on the list passes it to need not be listed again.
pub(crate) fn check(tree: &Tree) -> Vec<Violation> {
    let (all, _) = crates(tree);
    let with_candle: Vec<&Crate<'_>> = all.iter().filter(|member| member.uses_candle()).collect();
    let mut found = Vec::new();
    for member in &all {
        for device in DEVICES {
            let line = member.line_of(device);
            let given = member.feature(device);
            let more = given.iter().flatten().filter(|entry| !may(member, entry, device));
            found.extend(more.map(|entry| {
                let what = format!("feature `{device}` turns on `{entry}`");
                let remedy = format!("a device feature only passes `{device}` on to dependencies: remove it");
                Violation::new(&member.file, line, what, remedy)
            }));
            if !member.uses_candle() {
                continue;
            }
            let wanted = wanted(member, device, &with_candle);
            if given.is_none() {
                let remedy = format!("add `{device} = [{}]` under [features]", list(&wanted));
                let what = format!("`{}` has no feature `{device}`", member.name);
                found.push(Violation::new(&member.file, 0, what, remedy));
                continue;
            }
            let reached = reached(member, device, &with_candle);
            let missing: BTreeSet<String> =
                wanted.iter().filter(|entry| !reached.contains(*entry)).cloned().collect();
            if !missing.is_empty() {
                let what = format!("feature `{device}` does not pass on to {}", list(&missing));
                found.push(Violation::new(&member.file, line, what, format!("add {}", list(&missing))));
            }
        }
    }
    found
}

/// Whether the feature may turn `entry` on.
fn may(member: &Crate<'_>, entry: &str, device: &str) -> bool {
    let is_own =
        WITH_KERNELS.iter().any(|(name, own)| device == CUDA && *name == member.name && own.contains(&entry));
    is_own || passes(member, entry, device)
}

/// Whether `entry` is the same feature of a dependency.
fn passes(member: &Crate<'_>, entry: &str, device: &str) -> bool {
    entry.split_once('/').is_some_and(|(key, feature)| {
        feature == device && member.dependencies.iter().any(|dependency| dependency.key == key)
    })
}

/// Entries that the feature has to reach, each `PACKAGE/DEVICE`.
fn wanted(member: &Crate<'_>, device: &str, with_candle: &[&Crate<'_>]) -> BTreeSet<String> {
    let ours = |package: &str| {
        with_candle.iter().any(|other| other.name == package) && (package != OF_CARDS || device == CUDA)
    };
    member
        .dependencies
        .iter()
        .filter(|dependency| !dependency.development)
        .filter(|dependency| is_candle(&dependency.package) || ours(&dependency.package))
        .map(|dependency| format!("{}/{device}", dependency.key))
        .collect()
}

/// What the feature reaches: candle's crates listed here, and of ours also those that a listed one passes it to.
fn reached(member: &Crate<'_>, device: &str, with_candle: &[&Crate<'_>]) -> BTreeSet<String> {
    let mut reached: BTreeSet<String> = owned(member.feature(device));
    loop {
        let next: BTreeSet<String> = with_candle
            .iter()
            .filter(|other| reached.contains(&format!("{}/{device}", other.name)))
            .flat_map(|other| owned(other.feature(device)))
            .filter(|entry| !is_candle(entry.split('/').next().unwrap_or_default()))
            .collect();
        if next.is_subset(&reached) {
            return reached;
        }
        reached.extend(next);
    }
}

fn owned(entries: Option<Vec<&str>>) -> BTreeSet<String> {
    entries.unwrap_or_default().into_iter().map(str::to_owned).collect()
}

fn list(entries: &BTreeSet<String>) -> String {
    entries.iter().map(|entry| format!("\"{entry}\"")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A manifest whose five features turn on `entries`, `@` standing for the feature's name.
    fn manifest(name: &str, dependencies: &[&str], entries: &str) -> String {
        let mut text = format!("[package]\nname = \"{name}\"\n[dependencies]\n");
        text.extend(dependencies.iter().map(|dependency| format!("{dependency} = \"1\"\n")));
        text.push_str("[features]\n");
        text.extend(DEVICES.iter().map(|device| format!("{device} = [{}]\n", entries.replace('@', device))));
        text
    }

    fn found(manifests: &[String]) -> Vec<String> {
        let paths: Vec<String> =
            (0..manifests.len()).map(|index| format!("crates/c{index}/Cargo.toml")).collect();
        let files = paths.iter().zip(manifests).map(|(path, text)| (path.as_str(), text.as_str()));
        check(&Tree::of(files)).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn passing_through_is_right_also_through_a_crate_between() {
        let losses =
            manifest("aeir-losses", &["candle-core", "candle-nn"], r#""candle-core/@", "candle-nn/@""#);
        let train =
            manifest("aeir-train", &["candle-core", "aeir-losses"], r#""candle-core/@", "aeir-losses/@""#);
        let cli = manifest(
            "aeir-cli",
            &["candle-core", "aeir-train", "aeir-losses"],
            r#""candle-core/@", "aeir-train/@""#,
        );
        assert_eq!(found(&[losses, train, cli]), Vec::<String>::new());
    }

    /// A manifest with candle, but for `aeir-retrieve`, whose feature `device` also turns on `more`.
    fn with(name: &str, device: &str, more: &str) -> String {
        if name == "aeir-retrieve" {
            return format!("[package]\nname = \"{name}\"\n[features]\n{device} = [\"{more}\"]\n");
        }
        let plain = format!("\n{device} = [\"candle-core/{device}\"");
        manifest(name, &["candle-core"], r#""candle-core/@""#)
            .replace(&plain, &format!("{plain}, \"{more}\""))
    }

    #[test]
    fn what_kernels_need_is_turned_on_by_cuda_and_where_kernels_are() {
        for (name, own) in
            [("aeir-kernels", "cudaforge"), ("aeir-retrieve", "cudaforge"), ("aeir-retrieve", "cudarc")]
        {
            let own = format!("dep:{own}");
            assert_eq!(found(&[with(name, "cuda", &own)]), Vec::<String>::new());
            let elsewhere = found(&[with(name, "metal", &own)]);
            assert!(elsewhere.len() == 1 && elsewhere[0].contains(&own), "{elsewhere:?}");
        }
        for (name, other) in [
            ("aeir-kernels", "dep:cudarc"),
            ("aeir-losses", "dep:cudaforge"),
            ("aeir-encoders", "dep:cudaforge"),
            ("aeir-retrieve", "dep:tokio"),
        ] {
            assert_eq!(found(&[with(name, "cuda", other)]).len(), 1, "{name} {other}");
        }
    }

    #[test]
    fn kernels_have_the_five_features_and_are_passed_cuda() {
        let kernels = || manifest("aeir-kernels", &["candle-core"], r#""candle-core/@""#);
        let losses = manifest("aeir-losses", &["candle-core", "aeir-kernels"], r#""candle-core/@""#);
        let gap = found(&[kernels(), losses.clone()]);
        assert!(gap.len() == 1 && gap[0].contains("aeir-kernels/cuda"), "{gap:?}");
        let passed = losses.replace("\ncuda = [", "\ncuda = [\"aeir-kernels/cuda\", ");
        assert_eq!(found(&[kernels(), passed]), Vec::<String>::new());
        let without = kernels().replace("metal =", "other =");
        assert!(found(&[without])[0].contains("has no feature `metal`"));
    }

    #[test]
    fn gaps_additions_and_absence_are_found() {
        let gap = found(&[manifest("aeir-losses", &["candle-core", "candle-nn"], r#""candle-core/@""#)]);
        assert!(gap.len() == 5 && gap[0].contains("candle-nn/cuda"), "{gap:?}");
        let more = found(&[manifest("aeir-losses", &["candle-core"], r#""candle-core/@", "hub""#)]);
        assert!(more.len() == 5 && more[0].contains("`hub`"), "{more:?}");
        let other =
            found(&[manifest("aeir-losses", &["candle-core"], r#""candle-core/@", "candle-core/f16""#)]);
        assert_eq!(other.len(), 5);
        let none = "[package]\nname = \"aeir-losses\"\n[dependencies]\ncandle-core = \"1\"\n".to_owned();
        assert_eq!(found(&[none]).len(), 5);
        let losses = manifest("aeir-losses", &["candle-core"], r#""candle-core/@""#);
        let train = manifest("aeir-train", &["candle-core", "aeir-losses"], r#""candle-core/@""#);
        assert_eq!(found(&[losses, train]).len(), 5);
    }
}
