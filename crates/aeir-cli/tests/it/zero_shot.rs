//! A CLIP or SigLIP without any source pairs, as a user runs it: as it is, and adapted. The models are small random stand-ins, so that
//! what is tested is the way, not how well it goes.

use std::collections::BTreeMap;
use std::fs;

use serde_json::{Value, json};

use crate::{Scene, fixtures};

const SETS: &str = "--target-images images.txt --target-sentences sentences.txt";

/// A scene with the stand-in in the folder of its name.
fn scene(model: &str) -> Scene {
    let scene = Scene::new();
    let from = fixtures(&format!("parity/tiny-models/{model}"));
    for name in ["config.json", "model.safetensors", "preprocessor_config.json"] {
        scene.write(&format!("{model}/{name}"), fs::read(from.join(name)).unwrap());
    }
    let tokenizer = tokenizer(model, &scene.lines("sentences.txt"));
    scene.write(&format!("{model}/tokenizer.json"), serde_json::to_vec(&tokenizer).unwrap());
    scene
}

/// Splits at spaces; the words of the sentences share fifty ids.
fn tokenizer(model: &str, sentences: &[String]) -> Value {
    let words = sentences.iter().flat_map(|sentence| sentence.split_whitespace()).map(str::to_lowercase);
    let mut vocabulary = BTreeMap::new();
    for word in words {
        let id = 10 + vocabulary.len() % 50;
        vocabulary.entry(word).or_insert(json!(id));
    }
    vocabulary.insert("[UNK]".to_owned(), json!(5));
    vocabulary.insert("[LAST]".to_owned(), json!(63));
    vocabulary.insert("[PAD]".to_owned(), json!(1));
    let token = |name: &str| json!({"SpecialToken": {"id": name, "type_id": 0}});
    let mut template = vec![json!({"Sequence": {"id": "A", "type_id": 0}}), token("[LAST]")];
    let mut specials = json!({"[LAST]": {"id": "[LAST]", "ids": [63], "tokens": ["[LAST]"]}});
    if model == "clip" {
        vocabulary.insert("[FIRST]".to_owned(), json!(62));
        template.insert(0, token("[FIRST]"));
        specials["[FIRST]"] = json!({"id": "[FIRST]", "ids": [62], "tokens": ["[FIRST]"]});
    }
    json!({
        "version": "1.0", "truncation": null, "added_tokens": [], "normalizer": {"type": "Lowercase"},
        "padding": {"strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": null,
                    "pad_id": 1, "pad_type_id": 0, "pad_token": "[PAD]"},
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": {"type": "TemplateProcessing", "single": template, "pair": template,
                           "special_tokens": specials},
        "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"},
    })
}

fn rsum(scene: &Scene, model: &str) -> f64 {
    scene.run(&format!("eval --model {model} --data test.jsonl --json")).ok().json()["rsum"].as_f64().unwrap()
}

#[test]
fn a_dual_encoder_is_a_model_as_it_is() {
    for model in ["clip", "siglip"] {
        let scene = scene(model);
        let before = names(&scene, model);
        let bank = "--query-bank sentences.txt --image-bank images.txt";
        let found = scene.run(&format!("eval --model {model} --data test.jsonl {bank} --json")).ok().json();
        assert!((0.0..=600.0).contains(&found["rsum"].as_f64().unwrap()));
        assert!(found["corrected"]["csls"].is_object(), "{found}");
        let index = format!("index --model {model} --images images.txt --query-bank sentences.txt");
        scene.run(&format!("{index} --correction csls --output idx")).ok();
        let hits = scene.run("search --index idx dog --json").ok();
        assert!(!hits.stdout.is_empty());
        // The index holds the model: the folder is not needed any more, and another model's index is refused by its fingerprint.
        let image = &scene.lines("images.txt")[0];
        scene.run_all(&["search", "--index", "idx", "--image", image.as_str(), "--json"]).ok();
        scene
            .run(&format!("pairs export --model {model} {SETS} --output pairs.jsonl --html pairs.html"))
            .ok();
        assert_eq!(scene.lines("pairs.jsonl").len(), 30);
        assert_eq!(names(&scene, model), before, "nothing is left in somebody else's folder");
    }
}

#[test]
fn a_dual_encoder_is_diagnosed_and_adapted_without_source_pairs() {
    for model in ["clip", "siglip"] {
        let scene = scene(model);
        let found = scene.run(&format!("diagnose --model {model} {SETS} --output d.html --json")).ok().json();
        assert!(found["domains"].is_null() && found["modalities"]["source"].is_null(), "{found}");
        assert!(found["overlap"]["skewness"]["p_value"].is_number(), "{found}");
        let told = scene.run(&format!("diagnose --model {model} {SETS}")).ok();
        assert!(told.stdout.contains("Without source pairs"), "{told:?}");

        let train = format!("train --method adapt --model {model} {SETS} --epochs 4");
        let switches = [
            ("plain", ""),
            ("raw", "--set adapt.standardise=none"),
            ("white", "--set adapt.standardise=whiten"),
            ("whole", "--set adapt.geometry_weight=0.5 --set adapt.interpolate=[0.0,0.5,1.0]"),
            ("still", "--set adapt.standardise=none --set adapt.interpolate=[1.0]"),
        ];
        for (name, switch) in switches {
            scene.run(&format!("{train} {switch} --output {name}")).ok();
            let text = String::from_utf8(scene.read(&format!("{name}/config.toml"))).unwrap();
            assert!(
                text.contains("start = \"zero-shot\"") && text.contains("selection = \"target-similarity\"")
            );
            rsum(&scene, name);
        }
        // The pre-trained weights alone, features as they are: the pre-trained model.
        assert!((rsum(&scene, "still") - rsum(&scene, model)).abs() < 1e-9);
        let card = String::from_utf8(scene.read("plain/README.md")).unwrap();
        assert!(card.contains("no source pairs"), "{card}");
        scene.run("index --model white --images images.txt --output idx").ok();
        let other = scene.run(&format!("pairs export --model white {SETS} --output pairs.jsonl --json")).ok();
        assert_eq!(other.json()["pairs"], 30);
    }
}

#[test]
fn a_dual_encoder_takes_source_pairs_as_well_and_is_planned() {
    let scene = scene("clip");
    let source = "--source source.jsonl";
    scene.run(&format!("train --method adapt --model clip {source} {SETS} --epochs 4 --output both")).ok();
    scene.run(&format!("train --method source-only --model clip {source} --epochs 2 --output tuned")).ok();
    let planned = scene.run(&format!("train --method adapt --model clip {SETS} --dry-run")).ok();
    assert!(
        planned.stdout.contains("start = \"zero-shot\"") && planned.stdout.contains("# steps"),
        "{planned:?}"
    );
}

#[test]
fn what_does_not_go_with_a_dual_encoder_is_said() {
    let scene = scene("clip");
    let train = |flags: &str| scene.run(&format!("train {flags} --output run"));
    for (flags, code, expected) in [
        (format!("--model clip {SETS}"), 2, "--source is missing"),
        (format!("--method adapt --model clip --text-encoder words {SETS}"), 2, "--text-encoder words"),
        (format!("--method adapt --model clip --image-encoder clip {SETS}"), 2, "--image-encoder"),
        (format!("--method adapt --model nowhere {SETS}"), 4, "nowhere"),
        (
            format!("--method adapt --model clip {SETS} --set model.hidden_dimension=8"),
            2,
            "model.hidden_dimension",
        ),
        (format!("--method cca --model clip --source source.jsonl {SETS}"), 2, "`method`"),
        ("--method adapt --model clip".to_owned(), 2, "--target-images and --target-sentences are missing"),
        (format!("--method adapt --source source.jsonl {SETS} --set model.start=zero-shot"), 2, "--model"),
    ] {
        let refused = train(&flags);
        assert_eq!(refused.code, Some(code), "{flags}: {refused:?}");
        assert!(refused.stderr.contains(expected), "{flags}: {refused:?}");
    }
    // An encoder that is no dual encoder.
    let encoder = fixtures("backbones/efficientnet-lite0");
    let refused = train(&format!("--method adapt --model {} {SETS}", encoder.display()));
    assert_ne!(refused.code, Some(0));
    assert!(refused.stderr.contains("clip") && refused.stderr.contains("siglip"), "{refused:?}");
    let refused = scene.run("push clip --to me/model --dry-run");
    assert_eq!(refused.code, Some(2), "{refused:?}");
    fs::remove_file(scene.path("clip/tokenizer.json")).unwrap();
    let refused = scene.run("eval --model clip --data test.jsonl");
    assert!(refused.code != Some(0) && refused.stderr.contains("tokenizer.json"), "{refused:?}");
}

/// The names in a folder.
fn names(scene: &Scene, folder: &str) -> Vec<String> {
    let entries = fs::read_dir(scene.path(folder)).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}
