//! `aeir diagnose` on sets whose truth is known.

use std::fs;

use serde_json::Value;

use crate::{Scene, absolute_record, fixtures, lines};

/// Enough of the real data to tell: all target halves, and the source.
fn scene() -> Scene {
    let scene = Scene::new();
    let (source, target) = (fixtures("datasets/noto-cldr"), fixtures("datasets/openclipart"));
    let records = |wanted: fn(usize) -> bool| -> Vec<String> {
        let all = lines(&source.join("captions.jsonl"), usize::MAX, |_| true);
        let chosen = all.iter().enumerate().filter(|(number, _)| wanted(*number)).map(|(_, line)| line);
        chosen.map(|line| absolute_record(&source, &line.replace("\"val\"", "\"train\""))).collect()
    };
    scene.write_lines("even.jsonl", &records(|number| number % 2 == 0));
    scene.write_lines("odd.jsonl", &records(|number| number % 2 == 1));
    let images = lines(&target.join("train_images.txt"), usize::MAX, |_| true);
    let images: Vec<String> = images.iter().map(|image| target.join(image).display().to_string()).collect();
    scene.write_lines("clipart.txt", &images);
    scene.write_lines(
        "clipart_sentences.txt",
        &lines(&target.join("train_sentences.txt"), usize::MAX, |_| true),
    );
    scene.write_lines("licence.txt", &licence_sentences());
    scene
}

/// Sentences that speak of no picture at all: the licences that lie in this repository.
fn licence_sentences() -> Vec<String> {
    let texts = [
        "datasets/noto-cldr/LICENSE-Apache-2.0.txt",
        "datasets/openclipart/LICENSE",
        "datasets/noto-cldr/LICENSE-Unicode-3.0.txt",
    ];
    let text: String = texts.iter().map(|file| fs::read_to_string(fixtures(file)).unwrap() + ". ").collect();
    let words: Vec<&str> = text.split_whitespace().collect();
    words.chunks(9).map(|words| words.join(" ")).take(300).collect()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value}"))
}

/// One test for all: the features are encoded once.
#[test]
fn three_cases_whose_truth_is_known() {
    let scene = scene();
    a_domain_cut_in_two_has_no_shift(&scene);
    clip_art_is_another_domain_whose_sets_fit(&scene);
    sentences_of_something_else_do_not_fit(&scene);
}

fn a_domain_cut_in_two_has_no_shift(scene: &Scene) {
    let sets = "--target-images odd.jsonl --target-sentences odd.jsonl";
    let found = scene.run(&format!("diagnose --source even.jsonl {sets} --json")).ok().json();
    for modality in ["images", "sentences"] {
        for space in ["features", "standardised", "joint"] {
            // Below 0 where standardising has made the means equal: what was learned on one half is wrong on the other.
            let distance = number(&found["domains"][modality][space]["proxy_a_distance"]["distance"]);
            assert!(distance < 0.35, "{modality}, {space}: {distance}");
        }
    }
    assert_eq!(found["verdict"]["advice"], "no-shift", "{}", found["verdict"]);
    assert!(number(&found["overlap"]["skewness"]["p_value"]) < 0.01);
}

fn clip_art_is_another_domain_whose_sets_fit(scene: &Scene) {
    let arguments =
        "diagnose --source even.jsonl --target-images clipart.txt --target-sentences clipart_sentences.txt";
    let found = scene.run(&format!("{arguments} --json --output page.html")).ok().json();
    assert!(number(&found["domains"]["images"]["features"]["proxy_a_distance"]["distance"]) > 1.0);
    assert!(number(&found["domains"]["images"]["features"]["mean_discrepancy"]["p_value"]) < 0.01);
    let advice = found["verdict"]["advice"].as_str().unwrap();
    assert!(["adapt", "standardise"].contains(&advice), "{}", found["verdict"]);
    let page = String::from_utf8(scene.read("page.html")).unwrap();
    assert!(page.contains("role=\"img\"") && page.contains("<th scope=\"row\">"));
    let elsewhere = page.matches("http://").count() - page.matches("http://www.w3.org").count();
    assert!(elsewhere == 0 && !page.contains("https://") && !page.contains("<script"), "needs nothing else");
    let text = scene.run(arguments).ok().stdout;
    for part in ["proxy A-distance", "uniformity", "hubness in the target", "skewness of all scores"] {
        assert!(text.contains(part), "{text}");
    }
}

fn sentences_of_something_else_do_not_fit(scene: &Scene) {
    let arguments =
        "diagnose --source even.jsonl --target-images clipart.txt --target-sentences licence.txt --json";
    let found = scene.run(arguments).ok().json();
    assert_eq!(found["verdict"]["advice"], "sets-do-not-fit", "{} {}", found["verdict"], found["overlap"]);
    assert!(found["verdict"]["text"][0].as_str().unwrap().contains("can't be expected to help"));
}

#[test]
fn a_model_is_looked_at_and_few_items_are_refused() {
    let scene = Scene::with_model();
    let sets = "--target-images images.txt --target-sentences sentences.txt";
    let found = scene.run(&format!("diagnose --source source.jsonl {sets} --model model --json")).ok().json();
    assert_eq!(found["joint_space"], "the model in `model`");
    assert_eq!(number(&found["items"]["target_images"]), 30.0);
    scene.write_lines("few.txt", &scene.lines("sentences.txt")[..3]);
    let told = scene
        .run("diagnose --source source.jsonl --target-images images.txt --target-sentences few.txt")
        .failure();
    insta::assert_snapshot!(told, @r"
    exit 3
    error: target sentences: expected 20 or more to compare domains, got 3

    hint: with so few items every figure is chance
    ");
}
