//! `aeir data`: check, split, convert, unpair; and training on what they read and write.

use std::fs;

use serde_json::Value;

use crate::{Scene, fixtures};

fn formats(name: &str) -> String {
    fixtures("formats").join(name).display().to_string()
}

fn records(scene: &Scene, name: &str) -> Vec<Value> {
    scene.lines(name).iter().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn check_counts_and_finds_leaks() {
    let scene = Scene::new();
    let report = scene.run("data check source.jsonl --json").ok().json();
    let train = &report["parts"][0];
    assert_eq!((train["images"].as_u64(), train["usable_images"].as_u64()), (Some(50), Some(50)));
    assert_eq!((train["split"].as_str(), report["parts"][1]["images"].as_u64()), (Some("train"), Some(10)));
    assert_eq!(report["leaked_images"]["count"].as_u64(), Some(0));
    assert_eq!(report["usable"], true);

    // The first two training items once more, as a test set of their own; one image broken, one gone, one text wrong.
    let lines = scene.lines("source.jsonl");
    let broken = scene.path("broken.jpg").display().to_string();
    scene.write("broken.jpg", "no image");
    let more = [
        lines[0].clone(),
        lines[1].clone(),
        format!("{{\"image\": \"{broken}\", \"captions\": [\"itâ€™s\", \"\"]}}"),
        "{\"image\": \"gone.jpg\", \"captions\": [\"x\"]}".to_owned(),
    ];
    let more: Vec<&str> = more.iter().map(String::as_str).collect();
    scene.write_lines(
        "test-pairs.jsonl",
        &more
            .iter()
            .map(|line| line.replace("\"train\"", "\"test\""))
            .collect::<Vec<_>>()
            .iter()
            .map(String::as_str)
            .collect::<Vec<_>>(),
    );
    let report = scene.run("data check source.jsonl test-pairs.jsonl --json").ok().json();
    assert_eq!(report["leaked_images"]["count"].as_u64(), Some(2), "{report}");
    assert!(report["leaked_sentences"]["count"].as_u64().unwrap() >= 2);
    let test = &report["parts"][2];
    let count = |what: &str| test[what]["count"].as_u64().unwrap();
    assert_eq!((count("missing"), count("broken"), count("encoding"), count("skipped")), (1, 1, 1, 1));
    let told = scene.run("data check source.jsonl test-pairs.jsonl").ok().stdout;
    for part in [
        "LEAK: images of training that are also held out: 2",
        "gone.jpg",
        "no jpeg, png",
        "UTF-8 read as Latin-1",
    ] {
        assert!(told.contains(part), "{told}");
    }
    scene.write("lines.txt", "a dog\n\na cat\n");
    let told = scene.run("data check lines.txt").ok().stdout;
    assert!(told.contains("line 2: empty line") && !told.contains(": :"), "{told}");
    scene.write("nothing.jsonl", r#"{"image": "gone.jpg", "captions": ["x"]}"#);
    let refused = scene.run("data check nothing.jsonl");
    assert_eq!(refused.code, Some(3));
    assert!(
        refused.stderr.starts_with("error: no image can be used: 1 are missing or broken"),
        "{refused:?}"
    );
    assert!(refused.stdout.contains("missing: 1\n    gone.jpg"), "{refused:?}");
    // The limits that training will have.
    let small = scene.run("data check test.jsonl --max-pixels 10 --workers 1");
    assert!(small.code == Some(3) && small.stdout.contains("at most 10 pixels"), "{small:?}");
    assert!(scene.run("data check gone.csv").failure().starts_with("exit 3"));
}

#[test]
fn check_reads_every_format() {
    let scene = Scene::new();
    for (name, images) in [
        ("json-lines/captions.jsonl", 4),
        ("table/captions.csv", 4),
        ("folder", 4),
        ("coco", 3),
        ("karpathy", 4),
        ("scan", 22),
        ("bottom-up/features.tsv", 4),
        ("bottom-up/captions.jsonl", 4),
        ("webdataset", 4),
        ("webdataset/train-{000..001}.tar", 2),
        ("parquet/flickr30k", 4),
        ("parquet/coco", 4),
        ("parquet/zstd.parquet", 4),
        ("parquet/vectors.parquet", 3),
        ("embeddings/images.npy", 4),
        ("embeddings/tower.safetensors", 4),
    ] {
        let path = formats(name);
        let report = scene.run_all(&["data", "check", &path, "--json"]).ok().json();
        let parts = report["parts"].as_array().unwrap();
        let usable: u64 = parts.iter().map(|part| part["usable_images"].as_u64().unwrap()).sum();
        assert_eq!(usable, images, "{name}: {report}");
    }
}

#[test]
fn splits_are_drawn_by_image_and_seed() {
    let scene = Scene::new();
    scene.run("data split source.jsonl --val 0.2 --test 0.25 --seed 3 -o one").ok();
    scene.run("data split source.jsonl --val 0.2 --test 0.25 --seed 3 -o two").ok();
    scene.run("data split source.jsonl --val 0.2 --test 0.25 --seed 4 -o three").ok();
    let read = |folder: &str, split: &str| {
        fs::read_to_string(scene.path(&format!("{folder}/{split}.jsonl"))).unwrap()
    };
    for split in ["train", "val", "test"] {
        assert_eq!(read("one", split), read("two", split));
    }
    assert_ne!(read("one", "test"), read("three", "test"));
    assert_eq!((records(&scene, "one/val.jsonl").len(), records(&scene, "one/test.jsonl").len()), (12, 15));
    let report = scene.run("data check one/train.jsonl one/val.jsonl one/test.jsonl --json").ok().json();
    assert_eq!(report["leaked_images"]["count"].as_u64(), Some(0));
    let used: u64 =
        report["parts"].as_array().unwrap().iter().map(|part| part["usable_images"].as_u64().unwrap()).sum();
    assert_eq!(used, 60);
    insta::assert_snapshot!(scene.run("data split source.jsonl -o one").failure(), @r"
    exit 2
    error: `one` is not empty

    hint: name another --output, or remove it first
    ");
    insta::assert_snapshot!(scene.run("data split source.jsonl --val 0.5 --test 0.5 -o four").failure(), @r"
    exit 2
    error: --val 0.5 and --test 0.5 leave nothing to train on

    hint: their sum must be below 1
    ");
}

/// From every format to both, and back: the same images, sentences and splits.
#[test]
fn conversions_keep_everything() {
    let scene = Scene::new();
    let summary = |path: &str| {
        let report = scene.run_all(&["data", "check", path, "--json"]).ok().json();
        let mut parts: Vec<String> = report["parts"]
            .as_array()
            .unwrap()
            .iter()
            .map(|part| {
                format!(
                    "{} {} {} {}",
                    part["split"], part["usable_images"], part["sentences"], part["characters"]
                )
            })
            .collect();
        parts.sort();
        parts
    };
    for (number, name) in
        ["json-lines/captions.jsonl", "table/captions.csv", "karpathy", "webdataset", "parquet/flickr30k"]
            .iter()
            .enumerate()
    {
        let (path, plain, shards) = (formats(name), format!("plain{number}"), format!("shards{number}"));
        scene.run_all(&["data", "convert", &path, "-o", &plain]).ok();
        scene
            .run_all(&["data", "convert", &path, "--to", "webdataset", "--per-shard", "1", "-o", &shards])
            .ok();
        let expected = summary(&path);
        assert_eq!(summary(&format!("{plain}/captions.jsonl")), expected, "{name}");
        assert_eq!(summary(&shards), expected, "{name}");
        assert!(scene.path(&shards).join("train-000001.tar").is_file());
    }
    // Features stay where they are.
    scene.run_all(&["data", "convert", &formats("scan"), "-o", "features"]).ok();
    let first = &records(&scene, "features/captions.jsonl")[0];
    assert!(first["image"].as_str().unwrap().ends_with("scan/train_ims.npy#0"), "{first}");
    assert_eq!(summary("features/captions.jsonl"), summary(&formats("scan")));
    let refused =
        scene.run_all(&["data", "convert", &formats("scan"), "--to", "webdataset", "-o", "no"]).failure();
    assert!(refused.contains("is a row of features: there is no image to decode"), "{refused}");
}

#[test]
fn unpaired_copies_keep_the_truth_apart() {
    let scene = Scene::new();
    scene.run("data unpair source.jsonl --seed 5 -o unpaired").ok();
    let (mut images, mut sentences) =
        (scene.lines("unpaired/images.txt"), scene.lines("unpaired/sentences.txt"));
    let truth = records(&scene, "unpaired/alignment.jsonl");
    assert_eq!((images.len(), truth.len(), records(&scene, "unpaired/val.jsonl").len()), (50, 50, 10));
    let of_truth = |key: &str| -> Vec<String> {
        let texts = |value: &Value| match value {
            Value::Array(list) => list.iter().map(|text| text.as_str().unwrap().to_owned()).collect(),
            value => vec![value.as_str().unwrap().to_owned()],
        };
        truth.iter().flat_map(|record| texts(&record[key])).collect()
    };
    let (mut true_images, mut true_sentences) = (of_truth("image"), of_truth("captions"));
    // Neither list is in the order of the pairs.
    assert!(images != true_images && sentences != true_sentences);
    for list in [&mut images, &mut sentences, &mut true_images, &mut true_sentences] {
        list.sort();
    }
    assert!(images == true_images && sentences == true_sentences);
    scene
        .run(
            "train --source source.jsonl --target-images unpaired/images.txt --target-sentences unpaired/sentences.txt \
             --epochs 1 -o run",
        )
        .ok();
}

/// One training each on formats that lie in other files: source, both target sets, test and index.
#[test]
fn training_scoring_and_indexing_take_other_formats() {
    let scene = Scene::new();
    scene.run("data convert source.jsonl --to webdataset --per-shard 20 -o shards").ok();
    let csv: String = scene
        .lines("test.jsonl")
        .iter()
        .flat_map(|line| {
            let record: Value = serde_json::from_str(line).unwrap();
            let image = record["image"].as_str().unwrap().to_owned();
            let captions = record["captions"].as_array().unwrap().clone();
            captions.into_iter().map(move |text| format!("{image},{}\n", text))
        })
        .collect();
    scene.write("test.csv", format!("FILE,TITLE\n{csv}"));
    let trained = scene.run(
        "train --source shards --target-images test.csv --target-sentences shards --columns image=FILE,caption=TITLE \
         --epochs 2 -o run",
    );
    trained.ok();
    let scores =
        scene.run("eval --model run --data test.csv --columns image=FILE,caption=TITLE --json").ok().json();
    assert_eq!(scores["n_images"].as_u64(), Some(20));
    scene.run("index --model run --images shards -o idx").ok();
    let found = scene.run("search --index idx cat --json -k 3").ok().json();
    let item =
        found["results"][0]["path"].as_str().or(found["results"][0]["item"].as_str()).unwrap().to_owned();
    assert!(item.contains(".tar#"), "{found}");

    let features = formats("bottom-up/captions.jsonl");
    let table = formats("bottom-up/features.tsv");
    scene
        .run_all(&[
            "train",
            "--source",
            &features,
            "--target-images",
            &table,
            "--target-sentences",
            &features,
            "--text-encoder",
            "words",
            "--epochs",
            "1",
            "--batch-size",
            "2",
            "-o",
            "regions",
        ])
        .ok();
    let scores = scene.run_all(&["eval", "--model", "regions", "--data", &features, "--json"]).ok().json();
    assert_eq!(scores["n_images"].as_u64(), Some(1));
}

#[test]
fn columns_that_are_not_there_are_named() {
    let scene = Scene::new();
    scene.write("t.csv", "PICTURE,WORDS\na.jpg,x\n");
    insta::assert_snapshot!(scene.run("data check t.csv").failure(), @r"
    exit 3
    error: `t.csv` line 1 (table with named columns): expected a column with images (image, image_path, img_path, filepath, file_path, file_name, filename, image_name, img, path, file) or with sentences (caption, captions, sentence, sentences, sentences_raw, text, texts, title, raw, comment, description), got the columns PICTURE, WORDS

    hint: name them with --columns image=NAME,caption=NAME,split=NAME
    ");
    insta::assert_snapshot!(scene.run("data check t.csv --columns image=PHOTO").failure(), @r"
    exit 3
    error: `t.csv` line 1 (table with named columns): expected a column `PHOTO`, got the columns PICTURE, WORDS

    hint: name them with --columns image=NAME,caption=NAME,split=NAME
    ");
    let refused = scene.run("data check t.csv --columns photo=FILE").failure();
    assert!(
        refused.starts_with("exit 2") && refused.contains("expected image=NAME, caption=NAME or split=NAME"),
        "{refused}"
    );
}
