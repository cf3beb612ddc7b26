//! Every method and head through `aeir train`, and what the second stage of a search reads.

use std::fs;

use serde_json::Value;

use crate::{BOTH, Outcome, Scene, copy_folder, fixtures, program};

/// Methods that learn from the target.
const ADAPTING: [&str; 6] = ["aeir", "dann", "adda", "mmd", "coral", "cdan"];
/// Published models, which bring their head.
const SUPERVISED: [&str; 5] = ["vsepp", "scan", "saf", "sgr", "sgraf"];
const HEADS: [&str; 5] = ["saf", "sgr", "sgraf", "scan-t2i", "scan-i2t"];
const SMALL: &str = "[model]\nembedding_dimension = 16\n[model.head_options]\nsimilarity_dimension = 8\n\
                     [adaptation]\nanchors = 4\n";

/// The scene with region features as source and target, and the flags of a short training on them.
fn regions(scene: &Scene) -> String {
    copy_folder(&fixtures("formats/scan"), &scene.path("scan"));
    scene.write("small.toml", SMALL);
    "train --source scan --target-images scan/test_ims.npy --target-sentences scan/test_caps.txt \
     --config small.toml --epochs 2 --batch-size 6"
        .to_owned()
}

fn last_means(scene: &Scene, run: &str) -> Value {
    let line = scene.lines(&format!("{run}/metrics.jsonl")).pop().unwrap();
    serde_json::from_str::<Value>(&line).unwrap()["means"].clone()
}

/// A run with a finite loss that can be scored.
fn assert_trained(scene: &Scene, run: &str, data: &str) {
    let means = last_means(scene, run);
    let finite = means.as_object().unwrap().values().all(|value| value.as_f64().unwrap().is_finite());
    assert!(finite, "{run}: {means}");
    let scores = scene.run(&format!("eval --model {run} --data {data} --json")).ok().json();
    assert!(scores["rsum"].as_f64().unwrap() > 0.0, "{run}: {scores}");
}

#[test]
fn every_method_on_region_features_and_words() {
    let scene = Scene::new();
    let train = regions(&scene);
    for method in ADAPTING {
        for head in ["cosine", "saf"] {
            let run = format!("{method}-{head}");
            scene.run(&format!("{train} --text-encoder words --method {method} --head {head} -o {run}")).ok();
            assert_trained(&scene, &run, "scan");
        }
    }
    for method in SUPERVISED {
        let run = format!("{method}-model");
        scene.run(&format!("{train} --text-encoder words --method {method} -o {run}")).ok();
        assert_trained(&scene, &run, "scan");
    }
}

#[test]
fn every_head_on_region_features_and_tokens() {
    let scene = Scene::new();
    let train = regions(&scene);
    for method in ["source-only", "aeir"] {
        for head in HEADS {
            let run = format!("{method}-{head}");
            scene.run(&format!("{train} --method {method} --head {head} -o {run}")).ok();
            assert_trained(&scene, &run, "scan");
        }
    }
}

#[test]
fn every_method_and_head_on_grid_cells_and_tokens() {
    let scene = Scene::new();
    scene.write("small.toml", SMALL);
    let train = format!("train {BOTH} --config small.toml --epochs 2 --batch-size 16");
    let cosine = ["source-only", "cca", "dcca"].iter().chain(&ADAPTING).map(|method| (*method, "cosine"));
    let published = SUPERVISED.into_iter().zip(["cosine", "scan-t2i", "saf", "sgr", "sgraf"]);
    let heads = HEADS.into_iter().map(|head| ("aeir", head));
    for (method, head) in cosine.chain(published).chain(heads).chain([("scan", "scan-i2t")]) {
        let run = format!("{method}-{head}");
        let trained = scene.run(&format!("{train} --method {method} --head {head} -o {run}")).ok();
        let told = trained.stdout.lines().nth(1).unwrap_or_default().to_owned();
        assert!(told.contains(method) && (head == "cosine" || told.contains(head)), "{told}");
        assert_trained(&scene, &run, "test.jsonl");
    }
}

/// Each transfer term leaves with its weight: the paper's ablations.
#[test]
fn ablations_through_flags() {
    let scene = Scene::new();
    let train = regions(&scene);
    for (flags, semantic, structure) in [
        ("", true, true),
        ("--semantic-weight 0", false, true),
        ("--structure-weight 0", true, false),
        ("--semantic-weight 0 --structure-weight 0", false, false),
    ] {
        for fidelity in ["paper", "released"] {
            let more = format!("--head saf --fidelity {fidelity} {flags} --overwrite -o run");
            scene.run(&format!("{train} --text-encoder words {more}")).ok();
            let means = last_means(&scene, "run");
            let has = |name: &str| means.get(name).is_some();
            let told = format!("{fidelity} {flags}: {means}");
            assert_eq!((has("confusion_loss"), has("structure_loss")), (semantic, structure), "{told}");
            // The released procedure trains its critics whatever their weight in the encoders' loss.
            assert_eq!(has("critic_loss_images"), semantic || fidelity == "released", "{told}");
        }
    }
}

/// A loss that collapses is told, with the setting that helps.
#[test]
fn a_ranking_loss_at_twice_the_margin_is_warned_of() {
    let scene = Scene::new();
    // A head that can hardly move: all scores stay alike.
    let settings =
        "[optimizer]\nwarm_up = 0.0\nlearning_rate = 1e-12\n[source_loss]\nall_negatives_share = 0.0\n";
    scene.write("still.toml", settings);
    let trained = scene
        .run("train --method sgr --source source.jsonl --config still.toml --epochs 4 --batch-size 16 -o run")
        .ok();
    assert!(trained.stderr.contains("`ranking_loss` has been at 0.40 for 3 epochs"), "{trained:?}");
    assert!(trained.stderr.contains("`source_loss.all_negatives_share` (0 in this run)"), "{trained:?}");
    assert_eq!(trained.stderr.matches("ranking_loss").count(), 1, "{trained:?}");
}

#[test]
fn saf_and_sgr_take_all_negatives_first_and_the_released_procedure_does_not() {
    let scene = Scene::new();
    let train = regions(&scene);
    let share = |flags: &str| {
        scene.run(&format!("{train} --text-encoder words {flags} --overwrite -o run")).ok();
        let settings = String::from_utf8(scene.read("run/config.toml")).unwrap();
        settings.lines().find(|line| line.starts_with("all_negatives_share")).unwrap().to_owned()
    };
    assert_eq!(share("--method saf"), "all_negatives_share = 0.6");
    assert_eq!(share("--method aeir --head sgr"), "all_negatives_share = 0.6");
    assert_eq!(share("--method aeir --head saf --fidelity released"), "all_negatives_share = 0.0");
    assert_eq!(share("--method vsepp"), "all_negatives_share = 0.0");
    assert_eq!(share("--method scan"), "all_negatives_share = 0.0");
}

/// The second stage takes the fragments of what the first one found from the cache, and puts there what is missing.
#[test]
fn a_re_ranking_search_encodes_each_image_once() {
    let scene = Scene::new();
    scene
        .run("train --method source-only --head saf --epochs 1 --batch-size 16 --source source.jsonl -o run")
        .ok();
    fs::create_dir(scene.path("photos")).unwrap();
    for (number, image) in scene.lines("images.txt").iter().enumerate() {
        fs::copy(image, scene.path(&format!("photos/{number}.webp"))).unwrap();
    }
    scene.run("index --model run --images photos -o index").ok();
    let cache = scene.path("fresh-cache");
    let asked = |rerank: &str| {
        let mut command = program();
        command.args(["search", "--index", "index", "a cat", "--json", "--rerank", rerank]);
        command.env("AEIR_CACHE_DIR", &cache);
        scene.outcome(command).ok()
    };
    let search = |rerank: &str| asked(rerank).stdout;
    let stored = || -> u64 {
        let (mut bytes, mut open) = (0, vec![cache.clone()]);
        while let Some(folder) = open.pop() {
            for entry in fs::read_dir(folder).unwrap().flatten() {
                if entry.path().is_dir() {
                    open.push(entry.path());
                } else if entry.file_name() == "features.bin" {
                    bytes += entry.metadata().unwrap().len();
                }
            }
        }
        bytes
    };
    let few = search("5");
    let of_few = stored();
    assert!(of_few > 0, "five images were encoded and kept");
    assert_eq!(search("5"), few);
    assert_eq!(stored(), of_few, "the second search encodes nothing");
    search("20");
    let of_more = stored();
    assert!(of_more > of_few, "the others are added");
    search("5");
    search("20");
    assert_eq!(stored(), of_more);

    // One that was deleted since is named; it stays among the results, behind those that could be compared.
    let paths = |found: &Outcome| -> Vec<String> {
        let results = found.json()["results"].as_array().unwrap().clone();
        results.iter().map(|result| result["path"].as_str().unwrap().to_owned()).collect()
    };
    let before = paths(&asked("10"));
    let gone = before[2].replace("[FOLDER]", &scene.path("").display().to_string());
    fs::remove_file(gone).unwrap();
    let after = asked("10");
    assert!(after.stderr.contains(&before[2]), "{after:?}");
    let (mut expected, gone) = (before.clone(), before[2].clone());
    expected.retain(|path| *path != gone);
    expected.push(gone);
    assert_eq!(paths(&after), expected);
}
