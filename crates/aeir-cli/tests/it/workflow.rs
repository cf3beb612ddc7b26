//! The way that a user goes: train, eval, index, search.

use std::fs;

use serde_json::Value;

use crate::{BOTH, SHORT, Scene, copy_folder, fixtures, odd_image};

fn keys(value: &Value) -> Vec<&str> {
    let mut keys: Vec<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

fn results(answer: &Value) -> Vec<(u64, f64, String)> {
    assert_eq!(keys(answer), ["results"]);
    let results = answer["results"].as_array().unwrap().iter();
    let read = |result: &Value| {
        assert_eq!(keys(result), ["path", "rank", "score"]);
        let path = result["path"].as_str().unwrap().to_owned();
        (result["rank"].as_u64().unwrap(), result["score"].as_f64().unwrap(), path)
    };
    results.map(read).collect()
}

#[test]
fn source_only_needs_no_target() {
    let scene = Scene::new();
    let trained = scene.run(SHORT).ok();
    assert_eq!(trained.stderr, "");
    let words: Vec<&str> = trained.stdout.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(words, ["model", "method", "epoch", "next"]);
    assert_eq!(scene.lines("run/metrics.jsonl").len(), 2);
    assert!(scene.read("run/skipped.jsonl").is_empty());
    scene.run("eval --model run --data test.jsonl").ok();
}

#[test]
fn the_adapted_model_is_scored_both_ways() {
    let scene = Scene::with_model();
    let scores = scene.run("eval --model model --data test.jsonl --json").ok();
    assert_eq!(scores.stdout.lines().count(), 1);
    let scores = scores.json();
    assert_eq!(
        keys(&scores),
        ["i2t", "intervals", "n_images", "n_sentences", "protocol", "rsum", "t2i", "ties"]
    );
    let interval = &scores["intervals"]["rsum"];
    assert!(
        interval["low"].as_f64() <= scores["rsum"].as_f64()
            && scores["rsum"].as_f64() <= interval["high"].as_f64()
    );
    assert_eq!((scores["n_images"].as_u64(), scores["n_sentences"].as_u64()), (Some(20), Some(20)));
    let mut sum = 0.0;
    for direction in ["i2t", "t2i"] {
        let direction = &scores[direction];
        assert_eq!(keys(direction), ["map", "meanr", "medr", "r1", "r10", "r5"]);
        let value = |key: &str| direction[key].as_f64().unwrap();
        assert!(0.0 <= value("r1") && value("r1") <= value("r5") && value("r5") <= value("r10"));
        assert!(value("r10") <= 100.0, "per cent, at most all");
        for rank in ["medr", "meanr"] {
            assert!((1.0..=20.0).contains(&value(rank)), "{rank}");
        }
        sum += value("r1") + value("r5") + value("r10");
    }
    assert!((scores["rsum"].as_f64().unwrap() - sum).abs() < 1e-6);

    let table = scene.run("eval --model model --data test.jsonl").ok();
    let first: Vec<&str> = table.stdout.lines().take(3).collect();
    assert_eq!(
        first,
        [
            "20 images, 20 sentences",
            "",
            "                  R@1    R@5   R@10   median rank   mean rank      mAP"
        ]
    );
    let rsum = format!("rSum {:.1}, 95 % interval", scores["rsum"].as_f64().unwrap());
    assert!(table.stdout.contains(&rsum), "{table:?}");
    scene.run("eval --model model --data source.jsonl --split val").ok();
}

#[test]
fn several_sources_are_domains_of_their_own() {
    let scene = Scene::new();
    let records = scene.lines("source.jsonl");
    scene.write_lines("first/pairs.jsonl", &records[..25]);
    scene.write_lines("second/pairs.jsonl", &records[25..]);
    let both =
        BOTH.replace("--source source.jsonl", "--source first/pairs.jsonl --source second/pairs.jsonl");
    scene.run(&format!("train {both} --standardise --epochs 4 --output run")).ok();
    let card = String::from_utf8(scene.read("run/README.md")).unwrap();
    assert!(
        card.contains("source `first`: 25 images") && card.contains("source `second`: 25 images"),
        "{card}"
    );
    let (head, body) = card.strip_prefix("---\n").unwrap().split_once("\n---\n").unwrap();
    assert!(
        head.lines().all(|line| line.starts_with("- ") || line.contains(": ") || line.ends_with(':')),
        "{head}"
    );
    assert!(
        head.contains("license: other\nlicense_name: ") && head.contains("pipeline_tag: feature-extraction"),
        "{head}"
    );
    for section in ["## Data", "## Training", "## Metrics", "## Use", "## Licence"] {
        assert!(body.contains(section), "{section}: {card}");
    }
    scene.run("eval --model run --data test.jsonl").ok();
    // The same folder name twice must not make one domain of two.
    scene.write_lines("other/first/pairs.jsonl", &records[25..]);
    let same = both.replace("second/", "other/first/");
    scene.run(&format!("train {same} --standardise --epochs 4 --output twins")).ok();
    scene.run("eval --model twins --data test.jsonl").ok();
}

#[test]
fn images_come_from_a_folder_a_list_or_a_caption_file() {
    let scene = Scene::with_model();
    let listed = scene.lines("images.txt");
    for (number, image) in listed.iter().take(4).enumerate() {
        fs::create_dir_all(scene.path("photos/more")).unwrap();
        let name = if number < 2 { format!("{number}.WEBP") } else { format!("more/{number}.webp") };
        fs::copy(image, scene.path("photos").join(name)).unwrap();
    }
    scene.write("photos/notes.txt", "not an image");
    for (images, count) in [("photos", 4), ("images.txt", 30), ("test.jsonl", 20)] {
        let made = scene.run(&format!("index --model model --images {images} --output made")).ok();
        assert!(made.stdout.contains(&format!("images  {count}\n")), "{made:?}");
        let found = scene.run("search --index made dog -k 1000 --json").ok().json();
        assert_eq!(results(&found).len(), count, "an earlier index is replaced, and -k may go past its end");
    }
}

#[test]
fn search_finds_by_sentence_and_by_image() {
    let scene = Scene::with_model();
    let by_sentence = scene.run_all(&["search", "--index", "index", "a red car", "-k", "5", "--json"]).ok();
    assert_eq!(by_sentence.stdout.lines().count(), 1);
    let found = results(&by_sentence.json());
    assert_eq!(found.iter().map(|(rank, ..)| *rank).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
    assert!(found.windows(2).all(|pair| pair[0].1 >= pair[1].1), "larger is better: {found:?}");
    assert!(found.iter().all(|(_, score, _)| (-1.0..=1.0).contains(score)));

    let printed = scene.run_all(&["search", "--index", "index", "a red car", "-k", "5"]).ok();
    for (line, (rank, score, path)) in printed.stdout.lines().zip(&found) {
        assert_eq!(line, format!("{rank:>4}  {score:.4}  {path}"));
    }
    assert_eq!(scene.run_all(&["search", "--index", "index", "a red car"]).ok().stdout.lines().count(), 10);

    for image in scene.lines("images.txt").iter().take(3) {
        let found = results(&scene.run(&format!("search --index index --image {image} --json")).ok().json());
        let (rank, score, path) = &found[0];
        assert_eq!(
            (*rank, path.as_str()),
            (1, scene.shown(image.as_bytes()).as_str()),
            "it is most like itself"
        );
        assert!((score - 1.0).abs() < 1e-4);
    }
}

#[test]
fn models_and_indexes_move() {
    let scene = Scene::with_model();
    scene.copy("model", "here/model");
    let eval = |model: &str| scene.run(&format!("eval --model {model} --data test.jsonl --json")).ok().stdout;
    let before = eval("here/model");
    fs::rename(scene.path("here"), scene.path("there")).unwrap();
    assert_eq!(eval("there/model"), before);

    scene.run("index --model there/model --images images.txt --output index-here").ok();
    let search = |index: &str| scene.run(&format!("search --index {index} dog --json")).ok().stdout;
    let before = search("index-here");
    fs::rename(scene.path("index-here"), scene.path("index-there")).unwrap();
    fs::remove_dir_all(scene.path("there")).unwrap();
    assert_eq!(search("index-there"), before);

    // Also where the encoders that it was trained with are gone.
    let mut command = crate::program();
    command.args(["search", "--index", "index-there", "dog", "--json"]);
    command.env("AEIR_CACHE_DIR", scene.path("empty")).env("AEIR_IMAGE_ENCODER", "gone");
    assert_eq!(scene.outcome(command).ok().stdout, before);
}

#[test]
fn features_are_computed_once() {
    let scene = Scene::new();
    let cache = scene.path("my-cache");
    let run = |arguments: &str| {
        let mut command = crate::program();
        command.args(arguments.split_whitespace()).env("AEIR_CACHE_DIR", &cache);
        scene.outcome(command).ok()
    };
    let stored = || {
        let mut found = Vec::new();
        let mut open = vec![cache.clone()];
        while let Some(folder) = open.pop() {
            for entry in fs::read_dir(folder).unwrap().flatten() {
                if entry.path().is_dir() {
                    open.push(entry.path());
                } else if entry.file_name() == "features.bin" {
                    found.push((entry.path(), fs::read(entry.path()).unwrap()));
                }
            }
        }
        found.sort();
        found
    };
    run(SHORT);
    let first = stored();
    assert_eq!(first.len(), 2, "images and sentences");
    assert!(first.iter().all(|(_, bytes)| bytes.len() > 60 * 256 * 4), "AEIR_CACHE_DIR holds the features");
    run(&SHORT.replace("--output run", "--output again"));
    assert!(stored() == first, "a second run adds nothing");
    assert_eq!(scene.read("run/model.safetensors"), scene.read("again/model.safetensors"));
    run("eval --model run --data test.jsonl");
    let more = stored();
    for ((_, before), (_, after)) in first.iter().zip(&more) {
        assert!(after.len() > before.len() && after.starts_with(before), "new items are added at the end");
    }
    // What a cut-off write left is no features.
    for (file, bytes) in &more {
        fs::write(file, &bytes[..bytes.len() - 100]).unwrap();
    }
    run("eval --model run --data test.jsonl");
}

#[test]
fn the_seed_decides_every_byte() {
    let scene = Scene::new();
    for (output, seed) in [("one", 7), ("two", 7), ("other", 8)] {
        scene.run(&format!("train {BOTH} --epochs 3 --batch-size 16 --seed {seed} --output {output}")).ok();
    }
    for file in ["model.safetensors", "metrics.jsonl", "manifest.json", "config.toml"] {
        let read = |run: &str| scene.read(&format!("{run}/{file}"));
        assert!(read("one") == read("two"), "{file}");
        assert!(read("one") != read("other"), "{file}");
    }
}

#[test]
fn unusable_items_are_skipped_and_listed() {
    let scene = Scene::with_model();
    scene.write("zero.png", "");
    scene.write("text.png", "no image");
    fs::create_dir(scene.path("folder.png")).unwrap();
    let whole = fs::read(odd_image("baseline.jpg")).unwrap();
    scene.write("cut.jpg", &whole[..300]);
    let usable =
        ["cmyk.jpg", "animated.webp", "animated.gif", "one.png", "one.jpg", "grey16.png"].map(odd_image);
    let bombs =
        ["bomb.png", "bomb.jpg", "bomb.webp", "bomb.gif", "bomb.bmp", "bomb_frame.gif"].map(odd_image);
    let unusable = ["gone.webp", "zero.png", "text.png", "folder.png", "cut.jpg"].map(str::to_owned);
    let images = scene.lines("images.txt");
    scene.write_lines("mixed.txt", &[&images[..5], &usable, &bombs, &unusable].concat());

    let made = scene.run("index --model model --images mixed.txt --output made").ok();
    assert!(made.stdout.contains("images  11\n"), "{made:?}");
    insta::assert_snapshot!(made.stderr, @r"
    warning: 11 items were skipped; all of them in `made/skipped.jsonl`
    warning:   `[REPOSITORY]/crates/aeir-data/tests/images/bomb.png`: 60000x60000, at most 50000000 pixels and 65535 a side allowed
    warning:   `[REPOSITORY]/crates/aeir-data/tests/images/bomb.jpg`: 65500x65500, at most 50000000 pixels and 65535 a side allowed
    warning:   `[REPOSITORY]/crates/aeir-data/tests/images/bomb.webp`: 16384x16384, at most 50000000 pixels and 65535 a side allowed
    warning:   `[REPOSITORY]/crates/aeir-data/tests/images/bomb.gif`: 65535x65535, at most 50000000 pixels and 65535 a side allowed
    warning:   `[REPOSITORY]/crates/aeir-data/tests/images/bomb.bmp`: 60000x60000, at most 50000000 pixels and 65535 a side allowed
    warning:   and 6 more
    ");
    insta::assert_snapshot!(scene.shown(&scene.read("made/skipped.jsonl")), @r#"
    {"item":"[REPOSITORY]/crates/aeir-data/tests/images/bomb.png","reason":"60000x60000, at most 50000000 pixels and 65535 a side allowed"}
    {"item":"[REPOSITORY]/crates/aeir-data/tests/images/bomb.jpg","reason":"65500x65500, at most 50000000 pixels and 65535 a side allowed"}
    {"item":"[REPOSITORY]/crates/aeir-data/tests/images/bomb.webp","reason":"16384x16384, at most 50000000 pixels and 65535 a side allowed"}
    {"item":"[REPOSITORY]/crates/aeir-data/tests/images/bomb.gif","reason":"65535x65535, at most 50000000 pixels and 65535 a side allowed"}
    {"item":"[REPOSITORY]/crates/aeir-data/tests/images/bomb.bmp","reason":"60000x60000, at most 50000000 pixels and 65535 a side allowed"}
    {"item":"[REPOSITORY]/crates/aeir-data/tests/images/bomb_frame.gif","reason":"cannot decode the image: Memory limit exceeded"}
    {"item":"gone.webp","reason":"cannot read: No such file or directory (os error 2)"}
    {"item":"zero.png","reason":"no bytes"}
    {"item":"text.png","reason":"no jpeg, png, webp, gif or bmp image"}
    {"item":"folder.png","reason":"expected a file, got a folder"}
    {"item":"cut.jpg","reason":"the image is cut short (300 bytes)"}
    "#);

    let mut sentences = scene.read("sentences.txt");
    sentences.extend(b"\n   \nfine\nbroken \xff\xfe\n");
    sentences.extend(vec![b'x'; 3_000_000]);
    sentences.extend(b"\nlast, without line end");
    scene.write("mixed-sentences.txt", sentences);
    let flags = BOTH.replace("images.txt", "mixed.txt").replace("sentences.txt", "mixed-sentences.txt");
    let trained = scene.run(&format!("train {flags} --epochs 4 --output run")).ok();
    insta::assert_snapshot!(trained.stderr, @"
    warning: the target has 11 images and 32 sentences: below 20 of each there is hardly a domain to adapt to
    warning: 15 items were skipped; all of them in `run/skipped.jsonl`
    warning:   mixed-sentences.txt:31: empty line
    warning:   mixed-sentences.txt:32: empty line
    warning:   mixed-sentences.txt:34: not UTF-8
    warning:   mixed-sentences.txt:35: longer than 10000 characters
    warning:   `[REPOSITORY]/crates/aeir-data/tests/images/bomb.png`: 60000x60000, at most 50000000 pixels and 65535 a side allowed
    warning:   and 10 more
    ");
    assert_eq!(scene.lines("run/skipped.jsonl").len(), 15);
    let card = String::from_utf8(scene.read("run/README.md")).unwrap();
    assert!(card.contains("- target, unpaired: 11 images, 32 sentences"), "{card}");

    let mut records = scene.lines("test.jsonl");
    records.push(r#"{"image": "gone.webp", "captions": ["a", ""]}"#.to_owned());
    scene.write_lines("mixed.jsonl", &records);
    let scored = scene.run("eval --model model --data mixed.jsonl --json").ok();
    assert_eq!(scored.json()["n_images"], 20);
    insta::assert_snapshot!(scored.stderr, @r"
    warning: 2 items were skipped
    warning:   `gone.webp`: cannot read: No such file or directory (os error 2)
    warning:   mixed.jsonl:21: gone.webp: empty caption
    ");
}

#[test]
fn sets_shorter_than_a_batch_train() {
    let scene = Scene::new();
    scene.write_lines("images.txt", &scene.lines("images.txt")[..1]);
    scene.write_lines("sentences.txt", &scene.lines("sentences.txt")[..2]);
    for standardise in ["", "--standardise"] {
        scene.run(&format!("train {BOTH} {standardise} --epochs 4 --overwrite --output run")).ok();
        scene.run("eval --model run --data test.jsonl").ok();
    }
}

#[test]
fn one_epoch_makes_a_whole_model() {
    // However short, the last epoch adapts.
    let scene = Scene::new();
    for epochs in [1, 2, 3] {
        scene.run(&format!("train {BOTH} --epochs {epochs} --overwrite --output run")).ok();
        scene.run("eval --model run --data test.jsonl").ok();
    }
}

#[test]
fn an_index_is_replaced_only_by_a_whole_one() {
    let scene = Scene::with_model();
    scene.copy("index", "mine");
    let before = scene.run("search --index mine dog --json").ok().stdout;
    scene.write_lines("bad.txt", &["gone.webp"]);
    assert_eq!(scene.run("index --model model --images bad.txt --output mine").code, Some(3));
    assert_eq!(scene.run("search --index mine dog --json").ok().stdout, before);
    let left: Vec<_> =
        fs::read_dir(scene.folder.path()).unwrap().flatten().map(|entry| entry.file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().starts_with('.')), "{left:?}");
}

#[test]
fn a_trained_folder_is_a_copy_away_from_another_machine() {
    // No path of the training leaks into what search needs.
    let scene = Scene::with_model();
    copy_folder(&scene.path("model").canonicalize().unwrap(), &scene.path("alone"));
    fs::remove_dir_all(scene.path("alone/checkpoints")).unwrap();
    let mut command = crate::program();
    command.args(["eval", "--model", "alone", "--data", "test.jsonl"]);
    command.env_remove("AEIR_IMAGE_ENCODER").env_remove("AEIR_TEXT_ENCODER");
    scene.outcome(command).ok();
}

#[test]
fn region_features_and_words_go_all_the_way() {
    let scene = Scene::new();
    copy_folder(&fixtures("formats/scan"), &scene.path("scan"));
    let trained = scene
        .run(
            "train --source scan --target-images scan/train_ims.npy --target-sentences scan/train_caps.txt \
             --text-encoder words --method aeir --head sgr --epochs 2 --batch-size 4 -o model",
        )
        .ok();
    assert!(trained.stdout.contains("head sgr") && trained.stdout.contains("proxy A-distance"));
    assert!(scene.path("model/vocabulary.json").is_file() && !scene.path("model/encoders").exists());
    for rerank in ["0", "2", "all"] {
        let scores =
            scene.run(&format!("eval --model model --data scan --rerank {rerank} --json")).ok().json();
        assert_eq!((scores["n_images"].as_u64(), scores["n_sentences"].as_u64()), (Some(6), Some(30)));
    }
    scene.run("index --model model --images scan/test_ims.npy -o index").ok();
    let found = results(&scene.run("search --index index sentence --json -k 6").ok().json());
    assert_eq!(found.len(), 6);
    assert!(found.windows(2).all(|pair| pair[0].1 >= pair[1].1), "ordered by the head: {found:?}");
    assert!(found.iter().all(|(_, _, item)| item.contains("test_ims.npy#")));
    let image = odd_image("one.png");
    let refused = scene.run(&format!("search --index index --image {image}"));
    assert!(refused.code != Some(0) && refused.stderr.contains("region features"), "{refused:?}");
}

#[test]
fn a_cross_attentive_head_re_ranks_what_the_cosine_finds() {
    let scene = Scene::new();
    scene.run(&format!("{SHORT} --head saf --batch-size 16")).ok();
    let rsum = |rerank: &str| {
        let scored = scene.run(&format!("eval --model run --data test.jsonl --rerank {rerank} --json"));
        scored.ok().json()["rsum"].as_f64().unwrap()
    };
    // As many as there are items is the same as all.
    assert!((rsum("1000") - rsum("all")).abs() < 1e-9);
    scene.run("index --model run --images images.txt -o index").ok();
    let order = |rerank: &str| {
        let found =
            scene.run_all(&["search", "--index", "index", "a cat", "--json", "-k", "5", "--rerank", rerank]);
        results(&found.ok().json())
    };
    assert_ne!(order("0"), order("all"));
    assert!(order("all").windows(2).all(|pair| pair[0].1 >= pair[1].1));
}

#[test]
fn a_model_trained_for_its_head_alone_is_scored_in_full() {
    let scene = Scene::new();
    scene.run("train --method saf --epochs 1 --batch-size 16 --source source.jsonl --output run").ok();
    let plain = scene.run("eval --model run --data test.jsonl --json").ok();
    assert_eq!(plain.stderr, "");
    assert_eq!(plain.stdout, scene.run("eval --model run --data test.jsonl --rerank all --json").ok().stdout);
    let warned = scene.run("eval --model run --data test.jsonl --rerank 5").ok();
    assert!(warned.stderr.contains("trained for its head alone"), "{warned:?}");

    scene.run("index --model run --images images.txt -o index").ok();
    let search = |more: &[&str]| {
        scene.run_all(&[&["search", "--index", "index", "a cat", "--json", "-k", "5"], more].concat()).ok()
    };
    let plain = search(&[]);
    assert_eq!(
        (plain.stdout.as_str(), plain.stderr.as_str()),
        (search(&["--rerank", "all"]).stdout.as_str(), "")
    );
    assert!(search(&["--rerank", "5"]).stderr.contains("trained for its head alone"));
}

#[test]
fn the_benchmark_of_training_prints_what_the_peers_read() {
    let scene = Scene::new();
    let report = scene.run("bench train --quick --repeats 1 --json").ok().json();
    for key in [
        "threads",
        "matmul_gflops",
        "step_seconds",
        "scored_pairs_per_second",
        "scoring_share_of_matmul_rate",
        "towers_step_seconds",
        "words_step_seconds",
    ] {
        assert!(report[key].as_f64().is_some_and(|value| value > 0.0), "{key}: {report}");
    }
    let towers = scene.run("bench train --quick --repeats 1 --only towers").ok().stdout;
    assert!(towers.contains("linear towers") && !towers.contains("SAF"), "{towers}");
}

#[test]
fn an_encoder_by_its_id_is_found_in_the_hubs_cache() {
    let scene = Scene::new();
    let snapshot = scene.path("hub/models--org--static/snapshots/main");
    crate::copy_folder(&crate::fixtures("backbones/static-minilm"), &snapshot);
    let mut command = crate::program();
    command.args(crate::SHORT.split_whitespace()).args(["--text-encoder", "org/static"]);
    command.env("HF_HUB_CACHE", scene.path("hub"));
    scene.outcome(command).ok();
    assert!(scene.path("run/encoders/sentence/tokenizer.json").is_file());
}
