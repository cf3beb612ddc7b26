//! The device features pass through, and do nothing else.

use std::collections::BTreeSet;

use crate::manifest::{Crate, crates, is_candle};
use crate::tree::Tree;
use crate::violation::Violation;

const DEVICES: [&str; 5] = ["cuda", "cudnn", "metal", "mkl", "accelerate"];

/// Each candle crate has the five features; each turns on the same feature of candle's crates and of ours below, and
/// nothing else. A crate of ours that another one on the list passes it to need not be listed again.
pub(crate) fn check(tree: &Tree) -> Vec<Violation> {
    let (all, _) = crates(tree);
    let with_candle: Vec<&Crate<'_>> = all.iter().filter(|member| member.uses_candle()).collect();
    let mut found = Vec::new();
    for member in &with_candle {
        for device in DEVICES {
            let wanted = wanted(member, device, &with_candle);
            let line = member.line_of(device);
            let Some(given) = member.feature(device) else {
                let remedy = format!("add `{device} = [{}]` under [features]", list(&wanted));
                let what = format!("`{}` has no feature `{device}`", member.name);
                found.push(Violation::new(&member.file, 0, what, remedy));
                continue;
            };
            let reached = reached(member, device, &with_candle);
            let missing: BTreeSet<String> =
                wanted.iter().filter(|entry| !reached.contains(*entry)).cloned().collect();
            if !missing.is_empty() {
                let what = format!("feature `{device}` does not pass on to {}", list(&missing));
                found.push(Violation::new(&member.file, line, what, format!("add {}", list(&missing))));
            }
            for entry in given.iter().filter(|entry| !passes(member, entry, device)) {
                let what = format!("feature `{device}` turns on `{entry}`");
                let remedy = format!("a device feature only passes `{device}` on to dependencies: remove it");
                found.push(Violation::new(&member.file, line, what, remedy));
            }
        }
    }
    found
}

/// Whether `entry` is the same feature of a dependency.
fn passes(member: &Crate<'_>, entry: &str, device: &str) -> bool {
    entry.split_once('/').is_some_and(|(key, feature)| {
        feature == device && member.dependencies.iter().any(|dependency| dependency.key == key)
    })
}

/// Entries that the feature has to reach, each `PACKAGE/DEVICE`.
fn wanted(member: &Crate<'_>, device: &str, with_candle: &[&Crate<'_>]) -> BTreeSet<String> {
    let ours = |package: &str| with_candle.iter().any(|other| other.name == package);
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
