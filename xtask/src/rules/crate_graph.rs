//! Which crate may import which, in tests too.

use super::DOOR;
use crate::manifest::{Crate, Dependency, crates, is_candle};
use crate::tree::Tree;
use crate::violation::Violation;

const ISLANDS: [&str; 4] = ["aeir-data", "aeir-encoders", "aeir-losses", "aeir-retrieve"];
const BRIDGE: &str = "aeir-train";
/// Kernels of cards, below the islands, and the islands that compute with them. The bridge may too.
const GROUND: &str = "aeir-kernels";
const ON_THE_GROUND: [&str; 2] = ["aeir-encoders", "aeir-losses"];
/// All that the ground is made of: tensors, and the compiler of its kernels.
const OF_THE_GROUND: [&str; 2] = ["candle-core", "cudaforge"];
const WITHOUT_CANDLE: [&str; 3] = ["aeir-data", "aeir-retrieve", "xtask"];
/// Packages that belong to programs, and the crates that may have them.
const OF_PROGRAMS: [(&str, &[&str]); 3] =
    [("clap", &[DOOR, "xtask"]), ("anyhow", &[DOOR, "xtask"]), ("tracing-subscriber", &[DOOR])];

pub(crate) fn check(tree: &Tree) -> Vec<Violation> {
    let (crates, mut found) = crates(tree);
    let ours: Vec<&str> = crates.iter().map(|member| member.name.as_str()).collect();
    for member in &crates {
        found.extend(check_name(member));
        for dependency in &member.dependencies {
            let broken = [
                edge(member, dependency, &ours),
                candle(member, dependency),
                ground(member, dependency, &ours),
                program(member, dependency),
            ];
            found.extend(
                broken
                    .into_iter()
                    .flatten()
                    .map(|(what, remedy)| Violation::new(&member.file, dependency.line, what, remedy)),
            );
        }
    }
    found
}

fn check_name(member: &Crate<'_>) -> Option<Violation> {
    let name = member.name.as_str();
    let known = ISLANDS.contains(&name) || [GROUND, BRIDGE, DOOR, "xtask"].contains(&name);
    if !known {
        return Some(Violation::new(
            &member.file,
            member.line_of("name"),
            format!("`{}` has no place in the crate graph", member.name),
            "give it one in xtask/src/rules/crate_graph.rs and in ARCHITECTURE.md",
        ));
    }
    let folder = member.folder.rsplit('/').next().unwrap_or_default();
    (folder != member.name).then(|| {
        Violation::new(
            &member.file,
            member.line_of("name"),
            format!("`{}` lies in a folder named `{folder}`", member.name),
            "give folder and crate the same name",
        )
    })
}

/// What our crates may import of each other.
fn edge(member: &Crate<'_>, dependency: &Dependency, ours: &[&str]) -> Option<(String, String)> {
    let (from, to) = (member.name.as_str(), dependency.package.as_str());
    let allowed = match from {
        DOOR => true,
        BRIDGE => ISLANDS.contains(&to) || to == GROUND,
        from => to == GROUND && ON_THE_GROUND.contains(&from),
    };
    let remedy = match from {
        BRIDGE => "the bridge imports the four islands, the kernels below them and nothing else of ours",
        GROUND => "the kernels lie below all crates of ours: hand over what they need as an argument",
        "xtask" => "xtask imports none of our crates: run the `aeir` command",
        _ if to == GROUND => "its kernels work on candle's tensors, which this crate does without",
        _ => "an island imports none of our crates but the kernels: let aeir-train bring them together",
    };
    (ours.contains(&to) && !allowed).then(|| (format!("`{from}` imports `{to}`"), remedy.to_owned()))
}

fn candle(member: &Crate<'_>, dependency: &Dependency) -> Option<(String, String)> {
    (WITHOUT_CANDLE.contains(&member.name.as_str()) && is_candle(&dependency.package)).then(|| {
        (
            format!("`{}` imports `{}`", member.name, dependency.package),
            "work on plain slices; tensors belong to the crates that compute with candle".to_owned(),
        )
    })
}

/// What else than tensors the kernels bring along, to everyone above them.
fn ground(member: &Crate<'_>, dependency: &Dependency, ours: &[&str]) -> Option<(String, String)> {
    let package = dependency.package.as_str();
    let broken = member.name == GROUND
        && !dependency.development
        && !OF_THE_GROUND.contains(&package)
        && !ours.contains(&package);
    broken.then(|| {
        (
            format!("`{GROUND}` imports `{package}`"),
            format!("it makes do with {}; candle re-exports the driver", OF_THE_GROUND.join(" and ")),
        )
    })
}

fn program(member: &Crate<'_>, dependency: &Dependency) -> Option<(String, String)> {
    let (package, allowed) = OF_PROGRAMS.iter().find(|(package, _)| *package == dependency.package)?;
    (!allowed.contains(&member.name.as_str())).then(|| {
        (
            format!("`{}` imports `{package}`", member.name),
            format!(
                "only {} may; a library has typed errors and logs through `tracing`",
                allowed.join(" and ")
            ),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(name: &str, dependencies: &str) -> Vec<String> {
        let manifest = format!("[package]\nname = \"{name}\"\n{dependencies}");
        let folder =
            if name == "xtask" { "xtask/Cargo.toml".to_owned() } else { format!("crates/{name}/Cargo.toml") };
        let others = ["aeir-data", "aeir-kernels", "aeir-train", "aeir-losses"]
            .into_iter()
            .filter(|other| *other != name)
            .map(|other| (format!("crates/{other}/Cargo.toml"), format!("[package]\nname = \"{other}\"\n")));
        let others: Vec<(String, String)> = others.collect();
        let mut files: Vec<(&str, &str)> = others.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
        files.push((&folder, &manifest));
        check(&Tree::of(files)).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn islands_import_none_of_ours() {
        let broken = found("aeir-losses", "[dev-dependencies]\naeir-data.workspace = true\n");
        assert!(
            broken.len() == 1 && broken[0].starts_with("crates/aeir-losses/Cargo.toml:4: "),
            "{broken:?}"
        );
        assert_eq!(found("xtask", "[dependencies]\naeir-data = \"0.1\"\n").len(), 1);
        assert_eq!(
            found("aeir-encoders", "[target.'cfg(unix)'.dependencies]\naeir-train = \"0.1\"\n").len(),
            1
        );
    }

    #[test]
    fn the_bridge_imports_islands_and_the_door_anything() {
        assert!(found("aeir-train", "[dependencies]\naeir-data.workspace = true\n").is_empty());
        assert!(
            found("aeir-cli", "[dependencies]\naeir-train.workspace = true\nclap = \"4\"\nanyhow = \"1\"\n")
                .is_empty()
        );
        let both = "[dependencies]\naeir-cli.workspace = true\n";
        let door = ("crates/aeir-cli/Cargo.toml", "[package]\nname = \"aeir-cli\"\n");
        let bridge = format!("[package]\nname = \"aeir-train\"\n{both}");
        assert_eq!(check(&Tree::of([door, ("crates/aeir-train/Cargo.toml", bridge.as_str())])).len(), 1);
    }

    #[test]
    fn kernels_lie_below_the_crates_that_compute_with_candle() {
        let kernels = "[dependencies]\naeir-kernels.workspace = true\n";
        for above in ["aeir-encoders", "aeir-losses", "aeir-train", "aeir-cli"] {
            assert!(found(above, kernels).is_empty(), "{above}");
        }
        for without in ["aeir-data", "aeir-retrieve", "xtask"] {
            assert_eq!(found(without, kernels).len(), 1, "{without}");
        }
    }

    #[test]
    fn kernels_are_made_of_tensors_and_their_compiler_alone() {
        let of = |dependencies: &str| found("aeir-kernels", dependencies);
        let own = "[dependencies]\ncandle-core = \"1\"\n[build-dependencies]\ncudaforge = \"1\"\n\
                   [dev-dependencies]\nproptest = \"1\"\n";
        assert_eq!(of(own), Vec::<String>::new());
        for other in ["candle-nn", "cudarc", "aeir-losses", "aeir-data"] {
            let told = of(&format!("[dependencies]\n{other} = \"1\"\n"));
            assert!(told.len() == 1 && told[0].contains(other), "{told:?}");
        }
    }

    #[test]
    fn candle_stays_out_of_data_and_retrieve() {
        assert_eq!(
            found("aeir-retrieve", "[dependencies]\nt = { package = \"candle-core\", version = \"1\" }\n")
                .len(),
            1
        );
        assert!(found("aeir-losses", "[dependencies]\ncandle-core = \"1\"\n").is_empty());
    }

    #[test]
    fn what_belongs_to_programs_stays_in_the_door() {
        for package in ["clap", "anyhow", "tracing-subscriber"] {
            assert_eq!(
                found("aeir-train", &format!("[dependencies]\n{package} = \"1\"\n")).len(),
                1,
                "{package}"
            );
        }
        assert!(found("xtask", "[dependencies]\nanyhow = \"1\"\n").is_empty());
        assert_eq!(found("xtask", "[dependencies]\ntracing-subscriber = \"1\"\n").len(), 1);
    }

    #[test]
    fn every_crate_has_its_place_and_its_folder() {
        assert_eq!(found("aeir-new", "").len(), 1);
        let moved = Tree::of([("crates/data/Cargo.toml", "[package]\nname = \"aeir-data\"\n")]);
        assert_eq!(check(&moved).len(), 1);
    }
}
