//! What queries find, in every form they come in.

use std::collections::BTreeMap;
use std::fs;

use serde_json::{Value, json};

use super::{base64, form, form_type, names};
use crate::Scene;

/// File names of what the command finds.
fn found_by_command(scene: &Scene, arguments: &[&str]) -> Vec<String> {
    let all = [&["search", "--index", "index", "--json"], arguments].concat();
    let answer = scene.run_all(&all).ok().json();
    let results = answer["results"].as_array().unwrap().clone();
    results
        .iter()
        .map(|result| result["path"].as_str().unwrap().rsplit('/').next().unwrap().to_owned())
        .collect()
}

#[test]
fn the_server_finds_what_the_command_finds() {
    let scene = Scene::with_model();
    let server = scene.serve("index", &[]);
    let image = scene.lines("images.txt")[3].clone();
    let bytes = fs::read(&image).unwrap();

    let by_text = server.search(&json!({"text": "a dog", "k": 5})).ok();
    assert_eq!(names(&by_text), found_by_command(&scene, &["a dog", "-k", "5"]));
    assert_eq!(by_text["generation"], 1);
    let scores: Vec<f64> =
        by_text["results"].as_array().unwrap().iter().map(|hit| hit["score"].as_f64().unwrap()).collect();
    assert!(scores.is_sorted_by(|a, b| a >= b), "{scores:?}");

    let by_image = server.names(&json!({"image": base64(&bytes), "k": 5}));
    assert_eq!(by_image, found_by_command(&scene, &["--image", &image, "-k", "5"]));
    assert!(image.ends_with(&by_image[0]), "an image is nearest to itself");
    let upload = server.post("/v1/search", &form_type(), &form(&[("k", "5")], Some(&bytes))).ok();
    assert_eq!(names(&upload), by_image);

    let mixed = server.names(&json!({"text": "a dog", "image": base64(&bytes), "minus": ["a cat"], "k": 30}));
    assert_eq!(
        mixed,
        found_by_command(&scene, &["a dog", "--image", &image, "--minus", "a cat", "-k", "30"])
    );
    assert_ne!(mixed, found_by_command(&scene, &["a dog", "-k", "30"]));
    assert_ne!(mixed, found_by_command(&scene, &["--image", &image, "-k", "30"]));
    let large = [&bytes[..], &vec![0; 3 << 20]].concat();
    let upload = server.post("/v1/search", &form_type(), &form(&[("k", "5")], Some(&large))).ok();
    assert_eq!(names(&upload), by_image, "what lies behind an image does not change it");

    let upload = form(&[("text", "a dog"), ("minus", "a cat"), ("k", "30")], Some(&bytes));
    assert_eq!(names(&server.post("/v1/search", &form_type(), &upload).ok()), mixed);
    let heavy = server.names(&json!({"text": "a dog", "image": base64(&bytes), "image_weight": 100, "k": 3}));
    assert_eq!(heavy, by_image[..3]);
}

#[test]
fn more_like_this_is_a_search_by_the_items_own_vector() {
    let scene = Scene::with_model();
    let server = scene.serve("index", &[]);
    let first = server.search(&json!({"text": "a dog", "k": 1})).ok()["results"][0].clone();
    let like = server.search(&json!({"item": first["id"], "k": 3})).ok();
    assert_eq!(like["results"][0]["id"], first["id"]);
    let image =
        scene.lines("images.txt").into_iter().find(|path| path.ends_with(first["name"].as_str().unwrap()));
    assert_eq!(names(&like), found_by_command(&scene, &["--image", &image.unwrap(), "-k", "3"]));
    server.search(&json!({"item": "0000000000000000"})).refused(404, "no such item");
}

#[test]
fn a_filter_lets_some_items_through() {
    let scene = Scene::with_model();
    let server = scene.serve("index", &[]);
    let all = server.search(&json!({"text": "a dog", "k": 30})).ok();
    let ids: Vec<&Value> =
        all["results"].as_array().unwrap().iter().skip(5).step_by(3).map(|hit| &hit["id"]).collect();
    for _ in 0..2 {
        let some = server.search(&json!({"text": "a dog", "k": 30, "filter": {"items": ids}})).ok();
        let found: Vec<&Value> = some["results"].as_array().unwrap().iter().map(|hit| &hit["id"]).collect();
        assert_eq!(found, ids, "in the order of the whole");
    }
    let none =
        server.search(&json!({"text": "a dog", "filter": {"items": ["0000000000000000", "../x"]}})).ok();
    assert!(names(&none).is_empty());
    // Duplicates are looked for among those alone, however few.
    for (some, kept) in [(json!([]), 0), (json!(ids), ids.len())] {
        let asked = json!({"text": "a dog", "k": 30, "duplicates": "collapse", "filter": {"items": some}});
        assert_eq!(server.names(&asked).len(), kept);
    }
    let by_form = form(&[("text", "a dog"), ("filter", &json!({"items": [ids[0]]}).to_string())], None);
    assert_eq!(names(&server.post("/v1/search", &form_type(), &by_form).ok()).len(), 1);
    server.search(&json!({"text": "a dog", "filter": {"equal": {"year": 2019}}})).refused(400, "no metadata");
    server.search(&json!({"text": "a dog", "filter": {"equal": {"year": [1]}}})).refused(400, "single value");
    server.search(&json!({"text": "a dog", "filter": {"item": []}})).refused(400, "unknown field `item`");
}

#[test]
fn metadata_are_searched_by_and_told() {
    let scene = Scene::with_model();
    let images = scene.lines("images.txt");
    let lines: Vec<String> = (images.iter().enumerate())
        .map(|(i, image)| json!({"image": image, "year": 2000 + i % 3, "tags": ["all", "drawn"]}).to_string())
        .collect();
    scene.write_lines("facts.jsonl", &lines);
    scene.run("index --model model --images images.txt --metadata facts.jsonl --output facts").ok();
    let server = scene.serve("facts", &[]);
    let asked = json!({"text": "a dog", "k": 30, "filter": {"equal": {"year": 2001, "tags": "drawn"}}});
    let found = server.search(&asked).ok();
    let results = found["results"].as_array().unwrap();
    assert_eq!(results.len(), 10);
    assert!(results.iter().all(|hit| hit["metadata"]["year"] == 2001), "{found}");
    let flags = ["search", "--index", "facts", "a dog", "-k", "30", "--where", "year=2001", "--json"];
    for collapsed in [&[][..], &["--duplicates", "collapse"]] {
        let by_command = scene.run_all(&[&flags[..], collapsed].concat()).ok().json();
        assert_eq!(by_command["results"].as_array().unwrap().len(), 10);
    }
    let id = results[0]["id"].as_str().unwrap();
    assert_eq!(server.get(&format!("/v1/items/{id}")).ok()["metadata"], results[0]["metadata"]);
    let none = json!({"text": "a dog", "filter": {"equal": {"year": "none"}}});
    assert!(server.names(&none).is_empty());
}

#[test]
fn vectors_of_queries_are_unit_vectors() {
    let scene = Scene::with_model();
    let server = scene.serve("index", &[]);
    let vector = |body: Value| {
        let answer = server.json("/v1/embed", &body).ok();
        let vector: Vec<f64> =
            answer["embedding"].as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect();
        assert_eq!(answer["dimension"], vector.len());
        let length = vector.iter().map(|value| value * value).sum::<f64>().sqrt();
        assert!((length - 1.0).abs() < 1e-4, "{length}");
        vector
    };
    let (dog, cat) = (vector(json!({"text": "a dog"})), vector(json!({"text": "a cat"})));
    let between = vector(json!({"text": "a dog", "minus": ["a cat"]}));
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    assert!(dot(&between, &cat) < dot(&dog, &cat), "less of a cat than before");
    server
        .json("/v1/embed", &json!({"text": "a dog", "minus": ["a dog"], "minus_weight": 1}))
        .refused(400, "cancel out");
}

#[test]
fn confidence_and_correction_are_the_indexs() {
    let scene = Scene::with_model();
    scene
        .run("index --model model --images images.txt --query-bank sentences.txt --correction csls --output banked")
        .ok();
    let server = scene.serve("banked", &[]);
    let answer = server.search(&json!({"text": "a dog", "k": 30})).ok();
    assert_eq!(answer["correction"], "csls");
    let command = scene.run_all(&["search", "--index", "banked", "a dog", "--json"]).ok().json();
    assert_eq!(answer["confidence"], command["confidence"]);
    assert_eq!(answer["results"][0]["score"], command["results"][0]["score"]);
    let shares: Vec<f64> =
        answer["results"].as_array().unwrap().iter().map(|hit| hit["confidence"].as_f64().unwrap()).collect();
    let best = shares.iter().copied().fold(0.0, f64::max);
    assert_eq!(best, answer["confidence"].as_f64().unwrap(), "the best plain score is the query's");
    let plain = server.search(&json!({"text": "a dog", "plain": true})).ok();
    assert!(plain.get("correction").is_none());
    let other = server.search(&json!({"text": "a dog", "minus": ["a cat"]})).ok();
    assert!(other.get("confidence").is_none(), "the bank is of whole sentences");
    let none = server.search(&json!({"text": "a dog", "min_confidence": 0.999})).ok();
    assert_eq!((&none["no_good_match"], names(&none).len()), (&Value::Bool(true), 0));
    let card = server.get("/v1/model").ok();
    assert_eq!((&card["correction"], &card["bank_sentences"]), (&json!("csls"), &json!(30)));
}

#[test]
fn copies_of_an_image_are_one_result() {
    let scene = Scene::with_model();
    let mut images = scene.lines("images.txt");
    for copy in ["copy-1.webp", "copy-2.webp"] {
        fs::copy(&images[0], scene.path(copy)).unwrap();
        images.push(scene.path(copy).display().to_string());
    }
    scene.write_lines("twice.txt", &images);
    scene.run("index --model model --images twice.txt --output copies").ok();
    let all = scene.run_all(&["search", "--index", "copies", "--image", &images[0], "-k", "32", "--json"]);
    assert_eq!(all.ok().json()["results"].as_array().unwrap().len(), 32, "kept unless asked for");
    let flags = [
        "search",
        "--index",
        "copies",
        "--image",
        &images[0],
        "-k",
        "2",
        "--duplicates",
        "collapse",
        "--duplicate-threshold",
        "0.999",
    ];
    let told = scene.run_all(&flags).ok().stdout;
    assert_eq!(told.matches("(the same)").count(), 2, "{told}");
    let answer = scene.run_all(&[&flags[..], &["--json"]].concat()).ok().json();
    assert_eq!(answer["results"][0]["duplicates"].as_array().unwrap().len(), 2);
    assert_eq!(answer["results"].as_array().unwrap().len(), 2, "as many as wanted, whatever is set aside");

    let server = scene.serve("copies", &[]);
    let answer = server
        .search(&json!({"text": "a dog", "k": 32, "duplicates": "collapse", "duplicate_threshold": 0.999}))
        .ok();
    let results = answer["results"].as_array().unwrap();
    assert_eq!(results.len(), 30);
    let groups: Vec<usize> = results
        .iter()
        .map(|hit| hit["duplicates"].as_array().map_or(0, Vec::len))
        .filter(|size| *size > 0)
        .collect();
    assert_eq!(groups, [2]);
    let ranks: Vec<u64> = results.iter().map(|hit| hit["rank"].as_u64().unwrap()).collect();
    assert_eq!(ranks, (1..=30).collect::<Vec<_>>());
    let apart = server.search(&json!({"text": "a dog", "k": 32, "duplicates": "keep"})).ok();
    assert_eq!(names(&apart).len(), 32);
}

#[test]
fn a_head_re_ranks_in_the_server_too() {
    let scene = Scene::new();
    scene.run(&format!("{} --head saf --batch-size 16", crate::SHORT)).ok();
    scene.run("index --model run --images images.txt --output index").ok();
    let server = scene.serve("index", &[]);
    assert_eq!(
        server.names(&json!({"text": "a cat", "k": 30})),
        found_by_command(&scene, &["a cat", "-k", "30"])
    );
    let plain = scene.serve("index", &["--rerank", "0"]);
    assert_eq!(
        plain.names(&json!({"text": "a cat", "k": 30})),
        found_by_command(&scene, &["a cat", "-k", "30", "--rerank", "0"])
    );
    assert_eq!(server.get("/v1/model").ok()["head"], "saf");
}

#[test]
fn items_and_their_pictures() {
    let scene = Scene::with_model();
    let server = scene.serve("index", &[]);
    let sample = server.get("/v1/items?sample=4").ok();
    assert_eq!((sample["items"].as_array().unwrap().len(), &sample["total"]), (4, &json!(30)));
    let item = sample["items"][1].clone();
    let id = item["id"].as_str().unwrap();
    assert_eq!(server.get(&format!("/v1/items/{id}")).ok(), item);
    assert!(!item["name"].as_str().unwrap().contains('/'), "where images lie is not told: {item}");

    let path = format!("/v1/items/{id}/thumbnail");
    let picture = server.get(&path);
    assert_eq!((picture.status, picture.header("content-type")), (200, "image/jpeg"));
    let decoded = image::load_from_memory(&picture.body).unwrap();
    assert!(decoded.width().max(decoded.height()) <= 320);
    let tag = picture.header("etag");
    assert!(picture.header("cache-control").contains("private") && !tag.is_empty());
    let again = server.get_with(&path, &[("If-None-Match", tag)]);
    assert_eq!((again.status, again.body.len()), (304, 0));
    assert_eq!(server.get_with(&path, &[("If-None-Match", "\"other\"")]).status, 200);
    assert_eq!(server.get(&format!("{path}?size=1024")).status, 200);
    server.get(&format!("{path}?size=9999")).refused(400, "expected 320 or 1024");
    server.get("/v1/items?sample=0").refused(400, "1 to 100");
}

#[test]
fn queries_that_come_together_are_answered_together() {
    let scene = Scene::with_model();
    let server = scene.serve("index", &["--batch-window", "0.05"]);
    let sentences = scene.lines("sentences.txt");
    let alone: Vec<Vec<String>> =
        sentences.iter().take(16).map(|sentence| server.names(&json!({"text": sentence, "k": 5}))).collect();
    let together: Vec<Vec<String>> = std::thread::scope(|scope| {
        let asked: Vec<_> = sentences
            .iter()
            .take(16)
            .map(|sentence| (sentence, &server))
            .map(|(sentence, server)| scope.spawn(move || server.names(&json!({"text": sentence, "k": 5}))))
            .collect();
        asked.into_iter().map(|asked| asked.join().unwrap()).collect()
    });
    assert_eq!(together, alone);
    let measures = server.get("/metrics").text();
    let measure = |name: &str| {
        let line =
            measures.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{measures}"));
        line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()
    };
    assert_eq!(measure("aeir_batch_size_sum"), 32.0);
    assert!(measure("aeir_batch_size_count") <= 32.0);
    assert_eq!((measure("aeir_index_items"), measure("aeir_index_generation")), (30.0, 1.0));
    assert_eq!(measure("aeir_queue_length"), 0.0);
    let answered = r#"aeir_http_requests_total{route="/v1/search",method="POST",status="200"}"#;
    assert_eq!(measure(answered), 32.0, "{measures}");
    assert!(
        measures.contains(r#"aeir_http_request_seconds_bucket{route="/v1/search",le="0.1"}"#),
        "{measures}"
    );
}

#[test]
fn the_description_is_of_the_routes_there_are() {
    let scene = Scene::with_model();
    let server = scene.serve("index", &[]);
    let described = server.get("/openapi.json").ok();
    assert_eq!(described["openapi"], "3.1.0");
    let paths: BTreeMap<String, Value> = serde_json::from_value(described["paths"].clone()).unwrap();
    assert!(paths.len() >= 9, "{paths:?}");
    for (path, methods) in &paths {
        let real = path.replace("{id}", "0000000000000000");
        for method in ["get", "post", "put", "delete"] {
            let answer = server.raw(
                format!(
                    "{} {real} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
                    method.to_uppercase()
                )
                .as_bytes(),
            );
            let there = !answer.contains(" 405 ") && !answer.contains("no route");
            assert_eq!(there, methods.get(method).is_some(), "{method} {path}: {answer}");
        }
    }
    // What a query may say, and every refusal, has its description.
    for name in ["Wanted", "Results", "RefusalBody", "Card", "Health"] {
        assert!(described["components"]["schemas"][name].is_object(), "{name}");
    }
}

#[test]
fn the_load_generator_counts_answers_and_errors() {
    let scene = Scene::with_model();
    let server = scene.serve("index", &[]);
    let flags = format!(
        "bench serve --url http://{}/ --sentences sentences.txt --clients 1,4 --seconds 0.3 --json",
        server.address
    );
    let report = scene.run(&flags).ok().json();
    for (round, clients) in report["rounds"].as_array().unwrap().iter().zip([1, 4]) {
        assert_eq!((&round["clients"], &round["errors"]), (&json!(clients), &json!(0)), "{report}");
        assert!(
            round["answers"].as_u64().unwrap() >= clients
                && round["p99_ms"].as_f64() >= round["p50_ms"].as_f64()
        );
    }
    // Answers that are refusals are errors.
    let refused = scene.run(&flags.replace("--json", "-k 9999 --json")).ok().json();
    assert_eq!(refused["rounds"][0]["answers"], 0);
    assert!(refused["rounds"][0]["errors"].as_u64().unwrap() > 0);
    drop(server);
    let told = scene.run(&flags).failure();
    assert!(told.starts_with("exit 1") && told.contains("could not reach"), "{told}");
}
