//! Hubness corrections, comparison of models, confidence and sets of results.

use serde_json::Value;

use crate::Scene;

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value}"))
}

/// The paths of the results, in order.
fn paths(answer: &Value) -> Vec<String> {
    answer["results"]
        .as_array()
        .unwrap()
        .iter()
        .map(|result| result["path"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn a_recall_of_one_pair_is_warned_of() {
    let scene = Scene::with_model();
    let lines = scene.lines("test.jsonl");
    scene.write_lines("one.jsonl", &lines[..1]);
    let one = scene.run("eval --model model --data one.jsonl").ok();
    assert!(one.stderr.contains("1 test image: a recall of fewer than 20 says little"), "{one:?}");
    assert!(!scene.run("eval --model model --data test.jsonl").ok().stderr.contains("says little"));
}

#[test]
fn eval_shows_plain_and_corrected_side_by_side() {
    let scene = Scene::with_model();
    let plain = scene.run("eval --model model --data test.jsonl --json").ok().json();
    assert!(plain.get("corrected").is_none() && plain.get("comparison").is_none());
    let both = scene
        .run("eval --model model --data test.jsonl --query-bank sentences.txt --image-bank images.txt --json")
        .ok()
        .json();
    for key in ["i2t", "t2i", "rsum", "intervals"] {
        assert_eq!(plain[key], both[key], "top-level figures are plain");
    }
    let corrected = both["corrected"].as_object().unwrap();
    let names: Vec<&str> = corrected.keys().map(String::as_str).collect();
    assert_eq!(names, ["csls", "dynamic-inverted-softmax", "inverted-softmax", "sinkhorn"]);
    for figures in corrected.values() {
        assert_eq!((number(&figures["bank_sentences"]), number(&figures["bank_images"])), (30.0, 30.0));
        let change = number(&figures["rsum"]) - number(&plain["rsum"]);
        assert!((change - number(&figures["difference"]["rsum"]["difference"])).abs() < 1e-6);
    }
    let one = scene.run("eval --model model --data test.jsonl --query-bank sentences.txt --json").ok().json();
    assert_eq!(one["corrected"]["csls"]["i2t"], plain["i2t"], "no bank of images, no correction");
    assert_eq!(one["corrected"]["csls"]["t2i"], both["corrected"]["csls"]["t2i"]);
    let text = scene.run("eval --model model --data test.jsonl --query-bank sentences.txt").ok().stdout;
    assert!(
        text.contains("of sentence queries, by 30 unpaired sentences (image to text stays as it is)"),
        "{text}"
    );
}

#[test]
fn a_bank_with_test_sentences_is_told() {
    let scene = Scene::with_model();
    let told = scene.run("eval --model model --data test.jsonl --query-bank test.jsonl").ok();
    assert!(told.stderr.contains("of the query bank are test sentences too"), "{told:?}");
    let told = scene.run("eval --model model --data test.jsonl --image-bank test.jsonl").ok();
    assert!(told.stderr.contains("images of the image bank are test images too"), "{told:?}");
}

#[test]
fn a_model_differs_from_itself_in_nothing() {
    let scene = Scene::with_model();
    let found = scene.run("eval --model model --data test.jsonl --compare model --json").ok().json();
    let difference = &found["comparison"]["difference"];
    assert_eq!(number(&difference["rsum"]["difference"]), 0.0);
    assert_eq!(number(&difference["t2i"]["r1"]["p_value"]), 1.0);
    assert_eq!(found["comparison"]["rsum"], found["rsum"]);
}

#[test]
fn the_five_folds_are_cocos() {
    let scene = Scene::with_model();
    insta::assert_snapshot!(scene.run("eval --model model --data test.jsonl --protocol five-fold-1k").failure(), @r"
    exit 3
    error: protocol five-fold-1k: expected 5000 images, got 20

    hint: it is COCO's, of the 5,000 images of its test split; other data sets are scored with `full`
    ");
}

/// Region features of made-up images and five captions for each, as SCAN's files have them: a part of the 5,000 that there are.
fn write_images(scene: &Scene, folder: &str, images: std::ops::Range<u32>) {
    let mut array = format!(
        "\u{93}NUMPY\u{1}\0v\0{:<117}\n",
        format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({}, 4, 8), }}", images.len())
    )
    .chars()
    .map(|character| character as u8)
    .collect::<Vec<u8>>();
    assert_eq!(array.len(), 128);
    for number in images.clone().flat_map(|image| (0..32).map(move |place| 32 * image + place)) {
        let scattered = number.wrapping_mul(2_654_435_761) >> 8;
        array.extend((scattered as f32 / (1 << 24) as f32).to_le_bytes());
    }
    scene.write(&format!("{folder}/test_ims.npy"), array);
    let captions: Vec<String> =
        (5 * images.start..5 * images.end).map(|caption| format!("number {caption} of all")).collect();
    scene.write_lines(&format!("{folder}/test_caps.txt"), &captions);
}

#[test]
fn the_five_folds_are_the_mean_of_their_thousands() {
    let scene = Scene::new();
    crate::copy_folder(&crate::fixtures("formats/scan"), &scene.path("scan"));
    scene.run("train --source scan --method source-only --epochs 1 --batch-size 6 --output run").ok();
    let eval = |data: &str, flags: &str| {
        scene.run(&format!("eval --model run --data {data} --split test {flags} --json")).ok().json()
    };
    write_images(&scene, "whole", 0..5_000);
    let folds = eval("whole", "--protocol five-fold-1k");
    assert_eq!((&folds["protocol"], &folds["n_images"]), (&"five-fold-1k".into(), &1_000.into()), "{folds}");
    let each: Vec<Value> = (0..5)
        .map(|fold| {
            let folder = format!("fold-{fold}");
            write_images(&scene, &folder, 1_000 * fold..1_000 * (fold + 1));
            eval(&folder, "")
        })
        .collect();
    for (direction, metric) in
        [("i2t", "r10"), ("t2i", "r10"), ("i2t", "medr"), ("t2i", "meanr"), ("i2t", "map")]
    {
        let of = |figures: &Value| number(&figures[direction][metric]);
        let mean = each.iter().map(of).sum::<f64>() / 5.0;
        assert!((of(&folds) - mean).abs() < 1e-9 && mean > 0.0, "{direction} {metric}: {folds} {mean}");
    }
    let full = eval("whole", "");
    assert_eq!((&full["n_images"], &full["n_sentences"]), (&5_000.into(), &25_000.into()));
    assert!(number(&full["rsum"]) < number(&folds["rsum"]), "five times as many wrong ones");
}

#[test]
fn an_index_keeps_its_correction_and_its_bank() {
    let scene = Scene::with_model();
    let make = |flags: &str| {
        scene
            .run(&format!(
                "index --model model --images images.txt --query-bank sentences.txt {flags} --output made"
            ))
            .ok()
    };
    assert!(make("--correction csls").stdout.contains("bank    30 sentences, csls\n"));
    let ask = |flags: &str| {
        scene.run_all(
            &[
                &["search", "--index", "made", "a dog", "--json"][..],
                &flags.split_whitespace().collect::<Vec<_>>(),
            ]
            .concat(),
        )
    };
    let corrected = ask("").ok().json();
    assert_eq!(corrected["correction"], "csls");
    let plain = ask("--plain").ok().json();
    assert_eq!(
        paths(&plain),
        paths(&scene.run_all(&["search", "--index", "index", "a dog", "--json"]).ok().json())
    );
    assert!(plain.get("correction").is_none());
    assert_ne!(corrected["results"][0]["score"], plain["results"][0]["score"]);
    for correction in ["inverted-softmax", "dynamic-inverted-softmax", "sinkhorn"] {
        make(&format!("--correction {correction}"));
        assert_eq!(ask("").ok().json()["correction"], correction);
    }
    crate::flip_a_bit(&scene.path("made/penalties.f32"));
    let told = ask("").failure();
    assert!(told.starts_with("exit 4") && told.contains("penalties.f32` is damaged"), "{told}");
}

#[test]
fn a_poor_match_is_said_to_be_none() {
    let scene = Scene::with_model();
    scene.run("index --model model --images images.txt --query-bank sentences.txt --output made").ok();
    let ask = |sentence: &str, flags: &str| {
        scene.run_all(
            &[&["search", "--index", "made", sentence][..], &flags.split_whitespace().collect::<Vec<_>>()]
                .concat(),
        )
    };
    let own = scene.lines("sentences.txt");
    let confidences: Vec<f64> =
        own.iter().map(|sentence| number(&ask(sentence, "--json").ok().json()["confidence"])).collect();
    // Each of the bank's own sentences has a rank of its own among them.
    let mut sorted = confidences.clone();
    sorted.sort_by(f64::total_cmp);
    for (place, confidence) in sorted.iter().enumerate() {
        assert!((confidence - (place + 2) as f64 / 31.0).abs() < 0.07, "{sorted:?}");
    }
    let worst = own.iter().zip(&confidences).min_by(|a, b| a.1.total_cmp(b.1)).unwrap().0;
    let refused = ask(worst, "--min-confidence 0.5 --json").ok().json();
    assert_eq!((&refused["no_good_match"], paths(&refused).len()), (&Value::Bool(true), 0));
    let told = ask(worst, "--min-confidence 0.5").ok().stdout;
    assert!(
        told.starts_with("no good match: ")
            && told.ends_with("% of the target's own sentences find no better one\n"),
        "{told}"
    );
    let best = own.iter().zip(&confidences).max_by(|a, b| a.1.total_cmp(b.1)).unwrap().0;
    assert_eq!(ask(best, "--min-confidence 0.5 --json").ok().json()["no_good_match"], false);
    insta::assert_snapshot!(scene.run("search --index index dog --min-confidence 0.1").failure(), @r"
    exit 2
    error: this index has no query bank: it can't tell how good a match is

    hint: index again with --query-bank SENTENCES, unpaired sentences of the target
    ");
}

#[test]
fn labelled_pairs_decide_how_many_results_are_shown() {
    let scene = Scene::with_model();
    scene.run("index --model model --images test.jsonl --output made").ok();
    let ask = |coverage: &str| {
        let flags = [
            "search",
            "--index",
            "made",
            "a dog",
            "--calibration",
            "test.jsonl",
            "--coverage",
            coverage,
            "-k",
            "20",
            "--json",
        ];
        scene.run_all(&flags).ok().json()
    };
    let (few, many) = (ask("0.3"), ask("0.9"));
    assert_eq!(number(&few["set"]["labelled"]), 20.0);
    assert!(number(&few["set"]["size"]) <= number(&many["set"]["size"]));
    assert_eq!(paths(&many).len(), (number(&many["set"]["size"]) as usize).min(20));
    // 20 labels can't promise 99 %: everything belongs to the set.
    assert_eq!(number(&ask("0.99")["set"]["size"]), 20.0);
    // Further captions of an image are no further labels.
    let more: Vec<String> = (scene.lines("test.jsonl").iter())
        .map(|line| {
            let mut pair: serde_json::Value = serde_json::from_str(line).unwrap();
            pair["captions"].as_array_mut().unwrap().push("a thing".into());
            pair.to_string()
        })
        .collect();
    scene.write_lines("more.jsonl", &more);
    let set = &scene.run("search --index made dog --calibration more.jsonl --json").ok().json()["set"];
    assert_eq!(number(&set["labelled"]), 20.0);
    let told = scene.run("search --index index dog --calibration test.jsonl").failure();
    assert!(
        told.starts_with("exit 3") && told.contains("no labelled pair is of an image that can be"),
        "{told}"
    );
}

#[test]
fn labelled_images_that_a_filter_leaves_out_are_told_and_not_counted() {
    let scene = Scene::with_model();
    let images: std::collections::BTreeSet<String> = (scene.lines("test.jsonl").iter())
        .map(|line| {
            serde_json::from_str::<serde_json::Value>(line).unwrap()["image"].as_str().unwrap().to_owned()
        })
        .collect();
    let part = |i: usize| if i < 5 { "few" } else { "many" };
    let metadata: Vec<String> = (images.iter().enumerate())
        .map(|(i, image)| serde_json::json!({"image": image, "part": part(i)}).to_string())
        .collect();
    scene.write_lines("metadata.jsonl", &metadata);
    scene.run("index --model model --images test.jsonl --metadata metadata.jsonl --output made").ok();
    let search = |more: &str| {
        scene.run(&format!("search --index made dog --calibration test.jsonl --coverage 0.5 --json {more}"))
    };
    let all = number(&search("").ok().json()["set"]["labelled"]);
    let many = search("--where part=many").ok();
    assert!(many.stderr.contains("labelled images are left out by --where and --ids"), "{}", many.stderr);
    let set = &many.json()["set"];
    assert!(number(&set["labelled"]) < all && number(&set["size"]) <= images.len() as f64 - 5.0, "{set}");
    assert!(search("--where part=none").failure().contains("no labelled pair"));
}
