//! `aeir label`, `train --labelled` and `eval --labelled`: from a plan to recall with an interval.

use std::fs;

use serde_json::{Value, json};

use crate::{BOTH, Scene, cut};

const SETS: &str = "--target-images images.txt --target-sentences sentences.txt";

/// A scene with a plan of `budget` images.
fn planned(budget: usize, flags: &str) -> Scene {
    let scene = Scene::with_model();
    scene.run(&format!("label plan --model model {SETS} --budget {budget} --output plan.jsonl {flags}")).ok();
    scene
}

fn records(scene: &Scene, file: &str) -> Vec<Value> {
    scene.lines(file).iter().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn images(plan: &[Value], part: &str) -> Vec<String> {
    let of_part = plan.iter().filter(|line| line["part"] == part);
    of_part.map(|line| line["image"].as_str().unwrap().to_owned()).collect()
}

/// Answers every image of the plan with its candidate of that place.
fn answered(scene: &Scene, candidate: usize) {
    let split = |line: &Value| if line["part"] == "learn" { "train" } else { "test" };
    let pairs: Vec<String> = records(scene, "plan.jsonl")
        .iter()
        .map(|line| {
            let sentence = &line["candidates"][candidate]["sentence"];
            json!({ "image": line["image"], "captions": [sentence], "split": split(line) }).to_string()
        })
        .collect();
    scene.write_lines("pairs.jsonl", &pairs);
}

#[test]
fn a_plan_has_two_parts_and_is_the_same_again() {
    let scene = planned(10, "--json");
    let plan = records(&scene, "plan.jsonl");
    assert_eq!((images(&plan, "learn").len(), images(&plan, "measure").len()), (7, 3));
    for line in &plan {
        let candidates = line["candidates"].as_array().unwrap();
        assert_eq!(candidates.len(), 9);
        let scores: Vec<f64> = candidates.iter().map(|it| it["score"].as_f64().unwrap()).collect();
        assert!(scores.windows(2).all(|pair| pair[0] >= pair[1]), "the likeliest first: {scores:?}");
        assert!((0.0..=1.0).contains(&line["uncertainty"].as_f64().unwrap()));
        assert!(scene.lines("images.txt").contains(&line["image"].as_str().unwrap().to_owned()));
    }
    let first = scene.read("plan.jsonl");
    let plan_of = |flags: &str| format!("label plan --model model {SETS} --output plan.jsonl {flags}");
    let told = scene.run(&plan_of("--budget 10")).ok();
    assert!(told.stdout.contains("7 to learn from, 3 drawn at random"), "{told:?}");
    assert_eq!(scene.read("plan.jsonl"), first, "an earlier plan is replaced, by the same");
    scene.run(&plan_of("--budget 10 --seed 5")).ok();
    assert_ne!(images(&records(&scene, "plan.jsonl"), "measure"), images(&plan, "measure"));
    let all = scene.run(&plan_of("--budget 1000 --measure-share 1 --candidates 2 --json")).ok();
    let told = all.json();
    assert_eq!(
        (told["learn"].as_u64(), told["measure"].as_u64(), told["images"].as_u64()),
        (Some(0), Some(30), Some(30))
    );
    assert!(all.stderr.contains("all of them are planned"), "{all:?}");
}

#[test]
fn what_can_not_be_planned_is_said() {
    let scene = Scene::with_model();
    let plan = format!("label plan --model model {SETS} --output plan.jsonl");
    for (flag, part) in [
        ("--budget 0", "whole number of at least 1"),
        ("--measure-share 1.5", "a number from 0 to 1"),
        ("--candidates 10", "from 1 to 9"),
    ] {
        let outcome = scene.run(&format!("{plan} {flag}"));
        assert_eq!(outcome.code, Some(2), "{outcome:?}");
        assert!(outcome.stderr.contains(part), "{outcome:?}");
    }
    scene.write("plan.jsonl", "my notes\n");
    insta::assert_snapshot!(scene.run(&plan).failure(), @"
    exit 2
    error: `plan.jsonl` is there already and is not a plan

    hint: name another file: nothing is written over it
    ");
    assert_eq!(scene.read("plan.jsonl"), b"my notes\n");
}

#[test]
fn pairs_to_learn_from_are_learned_from_and_the_others_measure() {
    let scene = planned(20, "");
    answered(&scene, 0);
    let train = format!("train {BOTH} --method source-only --standardise --epochs 2 --labelled pairs.jsonl");
    let told = scene.run(&format!("{train} --output run")).ok();
    assert!(
        told.stderr.contains("14 labelled pairs to learn from; 6 marked `test` are left out"),
        "{told:?}"
    );
    assert!(told.stdout.contains("learned from 14 labelled pairs"), "{told:?}");
    let learned = String::from_utf8(scene.read("run/labelled.jsonl")).unwrap();
    let plan = records(&scene, "plan.jsonl");
    assert!(images(&plan, "learn").iter().all(|image| learned.contains(image)));
    assert!(images(&plan, "measure").iter().all(|image| !learned.contains(image)));
    let card = String::from_utf8(scene.read("run/README.md")).unwrap();
    assert!(card.contains("labelled pairs of the target: 14 images"), "{card}");

    // The part to measure with changes nothing in the model; the part to learn from does.
    let pairs = scene.lines("pairs.jsonl");
    let learn: Vec<&String> = pairs.iter().filter(|line| line.contains("train")).collect();
    scene.write_lines("learn.jsonl", &learn);
    scene
        .run(&format!("{train} --output same --labelled learn.jsonl").replacen(
            "--labelled pairs.jsonl ",
            "",
            1,
        ))
        .ok();
    assert_eq!(scene.read("same/model.safetensors"), scene.read("run/model.safetensors"));
    scene.run(&train.replace("--labelled pairs.jsonl", "--output without")).ok();
    assert_ne!(scene.read("without/model.safetensors"), scene.read("run/model.safetensors"));

    let told = scene.run(&format!("eval --model run --labelled pairs.jsonl {SETS}")).ok();
    assert!(told.stdout.contains("6 labelled images and"), "{told:?}");
    let scores = scene.run(&format!("eval --model run --labelled pairs.jsonl {SETS} --json")).ok().json();
    assert_eq!((scores["n_images"].as_u64(), scores["gallery"]["images"].as_u64()), (Some(6), Some(30)));
    assert_eq!(scores["gallery"]["whole"], true);
    for direction in ["i2t", "t2i"] {
        for recall in ["r1", "r5", "r10"] {
            let recall = &scores[direction][recall];
            let number = |of: &Value| of.as_f64().unwrap();
            let (low, high) = (number(&recall["interval"]["low"]), number(&recall["interval"]["high"]));
            assert!(low <= number(&recall["value"]) && number(&recall["value"]) <= high && high - low > 20.0);
        }
    }
    let alone = scene.run("eval --model run --labelled pairs.jsonl --json").ok();
    assert!(alone.stderr.contains("far easier than in use"), "{alone:?}");
    assert_eq!(alone.json()["gallery"]["whole"], false);
}

#[test]
fn every_method_takes_labels_or_says_that_it_does_not() {
    let scene = planned(12, "");
    answered(&scene, 0);
    for method in ["aeir", "adapt", "vsepp"] {
        scene
            .run(&format!(
                "train {BOTH} --method {method} --epochs 2 --labelled pairs.jsonl --output {method}"
            ))
            .ok();
        scene.run(&format!("eval --model {method} --labelled pairs.jsonl {SETS}")).ok();
    }
    // What the recipe remembers: 50 source pairs and 8 labelled ones.
    let plan = scene.run(&format!("train {BOTH} --method adapt --labelled pairs.jsonl --dry-run")).ok();
    assert!(plan.stdout.contains("labelled_share = 0.125"), "{plan:?}");
    for method in ["dann", "cca"] {
        let outcome =
            scene.run(&format!("train {BOTH} --method {method} --labelled pairs.jsonl --output {method}"));
        assert_eq!(outcome.code, Some(2), "{outcome:?}");
        assert!(outcome.stderr.contains("learns from labelled pairs"), "{outcome:?}");
        assert!(!scene.path(method).exists(), "nothing was begun");
    }
    let released = scene
        .run(&format!("train {BOTH} --method aeir --fidelity released --labelled pairs.jsonl --output r"));
    assert!(released.code == Some(2) && released.stderr.contains("fidelity"), "{released:?}");
}

#[test]
fn a_run_goes_on_with_the_labels_that_it_was_begun_with() {
    let scene = planned(12, "");
    answered(&scene, 0);
    let train =
        format!("train {BOTH} --method adapt --epochs 4 --set checkpoint_every=1 --labelled pairs.jsonl");
    scene.run(&format!("{train} --output whole")).ok();
    scene.run(&format!("{train} --output run")).ok();
    // As a kill after the last checkpoint but one leaves it.
    fs::remove_file(scene.path("run/manifest.json")).unwrap();
    fs::remove_dir_all(scene.path("run/checkpoints/step-00000004")).unwrap();
    answered(&scene, 1);
    let other = scene.run(&format!("{train} --output run --resume latest"));
    assert_eq!(other.code, Some(2), "{other:?}");
    answered(&scene, 0);
    scene.run(&format!("{train} --output run --resume latest")).ok();
    assert_eq!(scene.read("run/model.safetensors"), scene.read("whole/model.safetensors"));
}

#[test]
fn pairs_that_tell_nothing_are_refused() {
    let scene = planned(12, "");
    answered(&scene, 0);
    let run = |command: &str| scene.run(&format!("{command} --labelled pairs.jsonl {SETS}"));
    let train = "train --source source.jsonl --method source-only --epochs 1 --output run";
    let lines = scene.lines("pairs.jsonl");
    let of = |split: &str| -> Vec<&String> { lines.iter().filter(|line| line.contains(split)).collect() };

    scene.write_lines("pairs.jsonl", &of("\"test\""));
    insta::assert_snapshot!(run(train).failure(), @"
    exit 3
    error: `pairs.jsonl`: all 4 pairs are marked `test`, to measure with: none is left to learn from

    hint: label some of the plan's part to learn from, or leave --labelled out
    ");
    scene.write_lines("pairs.jsonl", &of("\"train\""));
    insta::assert_snapshot!(run("eval --model model").failure(), @"
    exit 3
    error: `pairs.jsonl`: no pair is marked `test`, to measure with

    hint: label the random part of a plan (`aeir label plan --measure-share`): pairs that were chosen to learn from say nothing of the rest
    ");

    // Learned from, and then said to be there to measure with.
    run(train).ok();
    let turned: Vec<String> =
        of("\"train\"").iter().map(|line| line.replace("\"train\"", "\"test\"")).collect();
    scene.write_lines("pairs.jsonl", &turned);
    insta::assert_snapshot!(run("eval --model run").failure(), @r#"
    exit 3
    error: 8 of the 8 pairs to score are among those that the model learned from

    hint: mark pairs to measure with as `"split": "test"` before training: `train --labelled` leaves those out
    "#);

    let stranger = json!({ "image": lines_image(&lines[0]), "captions": ["never said"], "split": "test" });
    scene.write_lines("pairs.jsonl", &[stranger.to_string()]);
    insta::assert_snapshot!(run("eval --model model").failure(), @"
    exit 3
    error: the labelled sentence `never said` is not in the target sets

    hint: give --target-images and --target-sentences that the plan was made of
    ");

    cut(&scene.path("pairs.jsonl"));
    let told = run("eval --model model").failure();
    assert!(told.starts_with("exit 3") && told.contains("line 1"), "{told}");
    for (content, part) in [(&b""[..], "is empty"), (b"\xff\xfe\xff", "UTF-"), (b"a sentence\n", "line 1")] {
        scene.write("pairs.jsonl", content);
        let told = run("eval --model model").failure();
        assert!(told.starts_with("exit 3") && told.contains(part), "{told}");
    }
    fs::remove_file(scene.path("pairs.jsonl")).unwrap();
    assert_eq!(run("eval --model model").code, Some(3));
    let half = scene.run("eval --model model --labelled pairs.jsonl --target-images images.txt");
    assert!(half.code.is_some_and(|code| code > 1), "{half:?}");
    let both = scene.run("eval --model model --labelled pairs.jsonl --data test.jsonl");
    assert_eq!(both.code, Some(2), "{both:?}");
}

fn lines_image(line: &str) -> Value {
    serde_json::from_str::<Value>(line).unwrap()["image"].clone()
}

#[test]
fn an_image_that_was_deleted_is_named_and_left_out() {
    let scene = planned(12, "");
    answered(&scene, 0);
    let mut lines = scene.lines("pairs.jsonl");
    let gone = json!({ "image": scene.path("gone.webp"), "captions": ["a sentence"], "split": "train" });
    lines.push(gone.to_string());
    scene.write_lines("pairs.jsonl", &lines);
    let told = scene
        .run(&format!("train {BOTH} --method source-only --epochs 1 --labelled pairs.jsonl --output run"))
        .ok();
    assert!(
        told.stderr.contains("1 of the labelled images and 1 of their sentences are not in the target sets"),
        "{told:?}"
    );
    assert!(told.stderr.contains("gone.webp"), "{told:?}");
    assert!(told.stdout.contains("learned from 8 labelled pairs"), "{told:?}");
}

#[cfg(feature = "serve")]
mod served {
    use std::io::{BufRead, BufReader, Read};
    use std::net::TcpListener;
    use std::process::{Child, Stdio};

    use super::*;

    /// A served plan; killed when the test ends.
    struct Served {
        child: Child,
        address: String,
    }

    impl Drop for Served {
        fn drop(&mut self) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }

    const SERVE: &str = "label serve --plan plan.jsonl --output pairs.jsonl --target-sentences sentences.txt";

    fn serve(scene: &Scene) -> Served {
        let mut command = crate::program();
        command.args(SERVE.split(' ')).args(["--port", "0"]).current_dir(scene.folder.path());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let address = line.split_whitespace().last().unwrap().trim_end_matches('/').to_owned();
        assert!(address.starts_with("http://127.0.0.1:"), "{line}");
        Served { child, address }
    }

    fn agent() -> ureq::Agent {
        ureq::Agent::config_builder().http_status_as_error(false).build().new_agent()
    }

    impl Served {
        fn get(&self, path: &str) -> (u16, Vec<u8>) {
            let mut response = agent().get(format!("{}{path}", self.address)).call().unwrap();
            (response.status().as_u16(), response.body_mut().read_to_vec().unwrap())
        }

        fn json(&self, path: &str) -> Value {
            serde_json::from_slice(&self.get(path).1).unwrap()
        }

        fn post(&self, body: &str, headers: &[(&str, &str)]) -> u16 {
            let address = format!("{}/api/answer", self.address);
            let mut request = agent().post(address).header("content-type", "application/json");
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            request.send(body).unwrap().status().as_u16()
        }

        fn answer(&self, image: usize, sentences: &Value) -> u16 {
            self.post(&json!({ "image": image, "sentences": sentences }).to_string(), &[])
        }
    }

    #[test]
    fn answers_are_kept_through_a_kill_and_are_what_training_takes() {
        let scene = planned(8, "");
        let served = serve(&scene);
        let plan = served.json("/api/plan");
        assert_eq!((plan["images"].as_array().unwrap().len(), plan["searchable"].as_u64()), (8, Some(30)));
        assert!(plan["images"][0]["part"].is_null(), "the page does not know which part an image is of");
        for image in 0..6 {
            assert_eq!(served.answer(image, &json!([plan["images"][image]["candidates"][1]])), 200);
        }
        // By the search, none fits, and taken back.
        let found = served.json("/api/sentences?words=a");
        assert!(found["count"].as_u64().unwrap() >= found["sentences"].as_array().unwrap().len() as u64);
        assert_eq!(served.answer(6, &json!([found["sentences"][0]])), 200);
        assert_eq!(served.answer(7, &json!([])), 200);
        assert_eq!(served.answer(0, &Value::Null), 200);
        // Killed, as by a power failure.
        drop(served);
        let pairs = records(&scene, "pairs.jsonl");
        assert_eq!(pairs.len(), 7);
        let parts: Vec<&Value> = pairs.iter().map(|pair| &pair["split"]).collect();
        assert!(parts.contains(&&json!("train")) && parts.contains(&&json!("test")));
        let again = serve(&scene);
        let plan = again.json("/api/plan");
        assert!(plan["images"][0]["answer"].is_null());
        assert_eq!(plan["images"][7]["answer"], json!([]));
        assert_eq!(plan["images"][1]["answer"][0], plan["images"][1]["candidates"][1]);
        assert_eq!(again.answer(0, &json!([plan["images"][0]["candidates"][0]])), 200);
        drop(again);
        let train =
            format!("train {BOTH} --method source-only --epochs 1 --labelled pairs.jsonl --output run");
        scene.run(&train).ok();
        scene.run(&format!("eval --model run --labelled pairs.jsonl {SETS}")).ok();
    }

    #[test]
    fn the_page_needs_nothing_from_elsewhere_and_shows_the_images_of_the_plan_alone() {
        let scene = planned(3, "");
        let served = serve(&scene);
        let page = String::from_utf8(served.get("/").1).unwrap();
        assert!(page.contains("Which sentence belongs to this image?"));
        for part in ["/", "/page.js", "/page.css"] {
            let text = String::from_utf8(served.get(part).1).unwrap();
            assert!(!text.contains("http:") && !text.contains("https:") && !text.contains("\"//"), "{part}");
        }
        let (status, bytes) = served.get("/image/0");
        assert!(status == 200 && bytes.starts_with(b"\x89PNG"));
        for path in ["/image/3", "/image/-1", "/image/..%2Fplan.jsonl", "/plan.jsonl", "/nothing"] {
            let status = served.get(path).0;
            assert!(status == 404 || status == 400, "{path}: {status}");
        }
    }

    #[test]
    fn no_other_site_can_answer() {
        let scene = planned(3, "");
        let served = serve(&scene);
        let good = json!({ "image": 0, "sentences": [] }).to_string();
        assert_eq!(served.post(&good, &[("host", "example.org")]), 403, "a name that leads to this machine");
        assert_eq!(served.post(&good, &[("origin", "http://example.org")]), 403, "a page of another site");
        for body in
            ["", "{", "[]", "{\"image\": 99, \"sentences\": null}", "{\"image\": 0, \"sentences\": [\"x\"]}"]
        {
            let status = served.post(body, &[]);
            assert!((400..500).contains(&status), "{body}: {status}");
        }
        assert!(!scene.path("pairs.jsonl").exists());
        assert_eq!(served.post(&good, &[("origin", &served.address)]), 200);
        // What another program wrote is not written over.
        let other = fs::read_to_string(scene.path("pairs.jsonl")).unwrap().replace("[]", "[\"by hand\"]");
        scene.write("pairs.jsonl", &other);
        assert_eq!(served.post(&good, &[]), 409);
        assert_eq!(fs::read_to_string(scene.path("pairs.jsonl")).unwrap(), other);
    }

    #[test]
    fn it_ends_in_order_and_says_where_it_stands() {
        let scene = planned(3, "");
        let mut served = serve(&scene);
        assert_eq!(served.answer(1, &json!([])), 200);
        let id = served.child.id().to_string();
        assert!(std::process::Command::new("kill").args(["-INT", &id]).status().unwrap().success());
        assert_eq!(served.child.wait().unwrap().code(), Some(0));
        let mut told = String::new();
        served.child.stderr.as_mut().unwrap().read_to_string(&mut told).unwrap();
        assert!(told.contains("eval --labelled pairs.jsonl"), "{told}");
    }

    #[test]
    fn what_can_not_be_served_is_said() {
        let scene = planned(3, "");
        let taken = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        let told = scene.run(&format!("{SERVE} --port {port}")).failure();
        assert!(told.starts_with("exit 2") && told.contains("--port"), "{told}");
        cut(&scene.path("plan.jsonl"));
        let told = scene.run(SERVE).failure();
        assert!(
            told.starts_with("exit 3") && told.contains("expected a line of `aeir label plan`"),
            "{told}"
        );
        fs::remove_file(scene.path("plan.jsonl")).unwrap();
        insta::assert_snapshot!(scene.run(SERVE).failure(), @"
        exit 3
        error: could not read `plan.jsonl`: No such file or directory (os error 2)
        ");
    }
}
