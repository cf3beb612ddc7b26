//! `aeir cache`: what is there, and taking it away.

use std::fs;
use std::time::{Duration, SystemTime};

use serde_json::Value;

use crate::{Outcome, SHORT, Scene, program};

fn run(scene: &Scene, arguments: &str) -> Outcome {
    let mut command = program();
    command.args(arguments.split_whitespace()).env("AEIR_CACHE_DIR", scene.path("cache"));
    scene.outcome(command)
}

fn listed(scene: &Scene) -> Vec<Value> {
    run(scene, "cache list --json").ok().json()["caches"].as_array().unwrap().clone()
}

#[test]
fn caches_are_listed_and_removed() {
    let scene = Scene::new();
    let empty = run(&scene, "cache list").ok();
    assert_eq!(empty.stdout, "no cached features in [FOLDER]/cache/features\n");
    run(&scene, SHORT).ok();
    let caches = listed(&scene);
    assert_eq!(caches.len(), 2);
    let (images, sentences) = match caches[0]["entries"].as_u64() {
        Some(60) => (&caches[0], &caches[1]),
        _ => (&caches[1], &caches[0]),
    };
    assert_eq!((images["entries"].as_u64(), images["precision"].as_str()), (Some(60), Some("f32")));
    assert!(images["bytes"].as_u64().unwrap() > 60 * 1280 * 4);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    assert!(now - images["last_used"].as_u64().unwrap() < 600);
    let table = run(&scene, "cache list").ok().stdout;
    let encoder = images["encoder"].as_str().unwrap();
    assert!(table.contains(&format!("{}  pooled     f32               60", &encoder[..16])), "{table}");
    assert!(table.contains(" now ") && table.contains(" in all, in [FOLDER]/cache/features"), "{table}");

    // Two months later, by the clock of the files.
    let path = scene.path("cache/features").join(encoder).join("f32");
    for file in ["in-use.lock", "features.bin"] {
        let file = fs::OpenOptions::new().write(true).open(path.join(file)).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(60 * 24 * 3600)).unwrap();
    }
    let dry = run(&scene, "cache prune --older-than 8w --dry-run --json").ok().json();
    assert_eq!((dry["dry_run"].as_bool(), dry["removed"].as_array().unwrap().len()), (Some(true), 1));
    assert_eq!((&dry["removed"][0]["encoder"], listed(&scene).len()), (&images["encoder"], 2));
    assert_eq!(run(&scene, "cache prune --older-than 9w").ok().stdout, "nothing to remove\n");
    let pruned = run(&scene, "cache prune --older-than 8w").ok().stdout;
    assert!(pruned.contains("60 d ago") && pruned.ends_with(" freed\n"), "{pruned}");
    assert_eq!(listed(&scene), std::slice::from_ref(sentences));

    let prefix = &sentences["encoder"].as_str().unwrap()[..8];
    assert_eq!(run(&scene, "cache prune --encoder zzz").ok().stdout, "nothing to remove\n");
    run(&scene, &format!("cache prune --encoder {prefix}")).ok();
    assert!(listed(&scene).is_empty());
    // What was removed is computed again.
    run(&scene, &SHORT.replace("--output run", "--output again")).ok();
    assert_eq!(listed(&scene).len(), 2);
    assert_eq!(scene.read("run/model.safetensors"), scene.read("again/model.safetensors"));
    run(&scene, "cache prune --all").ok();
    assert!(listed(&scene).is_empty());
}

#[test]
fn pruning_asks_what() {
    let scene = Scene::new();
    let told = run(&scene, "cache prune").failure();
    assert!(told.starts_with("exit 2") && told.contains("--all"), "{told}");
    let told = run(&scene, "cache prune --older-than soon").failure();
    assert!(told.contains("expected a number of days, or such as 12h, 30d, 8w"), "{told}");
    let told = run(&scene, "cache prune --all --encoder a").failure();
    assert!(told.starts_with("exit 2"), "{told}");
}
