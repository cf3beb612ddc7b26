//! Bad input and faults: an answer that says what is wrong, and a server that goes on.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;

use aeir_encoders::bundle::save;
use aeir_encoders::{BackbonePlacement, Bundle, BundleParts, Standardisation, WEIGHTS_FILE};
use aeir_retrieve::{Index, IndexBuilder, IndexContent};
use candle_core::{Device, Tensor};
use serde_json::json;

use super::life::wait_for;
use super::{base64, form, form_type};
use crate::{Scene, program};

#[test]
fn requests_that_make_no_sense() {
    let scene = Scene::with_model();
    let mut server = scene.serve("index", &[]);
    let json_of = |body: &[u8]| server.post("/v1/search", "application/json", body);
    json_of(b"").refused(400, "EOF");
    json_of(b"{\"text\": ").refused(400, "EOF");
    json_of(b"[1, 2]").refused(400, "can't be used");
    json_of(b"{\"text\": \"\xff\xfe\"}").refused(400, "can't be used");
    json_of(&b"[".repeat(100_000)).refused(400, "can't be used");
    json_of(br#"{"txt": "a dog"}"#).refused(400, "unknown field `txt`");
    json_of(br#"{"text": 7}"#).refused(400, "string");
    for empty in [json!({}), json!({"minus": ["a cat"]}), json!({"text": null})] {
        server.search(&empty).refused(400, "the query is empty");
    }
    for empty in [json!({"text": ""}), json!({"text": " \t"}), json!({"text": "a dog", "minus": [" "]})] {
        server.search(&empty).refused(400, "the sentence is empty");
    }
    server.search(&json!({"text": "a dog", "minus": vec!["a"; 17]})).refused(400, "at most 16");
    server.search(&json!({"text": "a dog", "image_weight": -1})).refused(400, "image_weight");
    server.search(&json!({"text": "a dog", "minus_weight": 1e30})).refused(400, "minus_weight");
    server.search(&json!({"text": "a dog", "duplicate_threshold": 2})).refused(400, "duplicate_threshold");
    server.search(&json!({"text": "a dog", "min_confidence": 0.5})).refused(400, "no query bank");
    let of_more = json!({"text": "a dog", "minus": ["a cat"], "min_confidence": 0.5});
    server.search(&of_more).refused(400, "of queries by sentence");
    server.search(&json!({"item": "0", "min_confidence": 0.5})).refused(400, "of queries by sentence");
    server.search(&json!({"text": "a dog", "duplicates": "some"})).refused(400, "some");
    server.post("/v1/search", "text/plain", b"a dog").refused(415, "application/json");
    server.lives();
}

#[test]
fn images_that_are_none() {
    let scene = Scene::with_model();
    let mut server = scene.serve("index", &[]);
    server.search(&json!({"image": "this is no base64!"})).refused(400, "no base64");
    server.search(&json!({"image": base64(b"")})).refused(400, "no bytes");
    server.search(&json!({"image": base64(b"a page about a missing image")})).refused(400, "can't be used");
    let whole = fs::read(crate::odd_image("baseline.jpg")).unwrap();
    server.search(&json!({"image": base64(&whole[..whole.len() / 2])})).refused(400, "can't be used");
    for name in ["one.png", "one.jpg", "grey16.png", "palette_transparent.png", "cmyk.jpg", "still.gif"] {
        let bytes = fs::read(crate::odd_image(name)).unwrap();
        let answer = server.search(&json!({"image": base64(&bytes), "k": 3})).ok();
        assert_eq!(answer["results"].as_array().unwrap().len(), 3, "{name}");
        server.post("/v1/search", &form_type(), &form(&[], Some(&bytes))).ok();
    }
    server.lives();
}

#[test]
fn forms_that_are_broken() {
    let scene = Scene::with_model();
    let mut server = scene.serve("index", &[]);
    let send = |kind: &str, body: &[u8]| server.post("/v1/search", kind, body);
    let whole = form(&[("text", "a dog")], None);
    send("multipart/form-data", &whole).refused(400, "boundary");
    send(&form_type(), &whole[..whole.len() / 2]).refused(400, "the form can't be read");
    send(&form_type(), b"").refused(400, "the form can't be read");
    send(&form_type(), b"\x00\xff no form at all").refused(400, "the form can't be read");
    send("multipart/form-data; boundary=other", &whole).refused(400, "the form can't be read");
    send(&form_type(), &form(&[("k", "3")], None)).refused(400, "the query is empty");
    send(&form_type(), &form(&[("k", "three"), ("text", "a dog")], None)).refused(400, "`k`");
    send(&form_type(), &form(&[("colour", "red")], None)).refused(400, "no field `colour`");
    let mut broken = form(&[("text", "a dog?")], None);
    let place = broken.iter().position(|byte| *byte == b'?').unwrap();
    broken[place] = 0xff;
    send(&form_type(), &broken).refused(400, "not UTF-8");
    server.lives();
}

#[test]
fn ids_are_looked_up_and_never_become_paths() {
    let scene = Scene::with_model();
    let mut server = scene.serve("index", &[]);
    let absolute = scene.lines("images.txt")[0].replace('/', "%2F");
    for id in [
        "..%2F..%2F..%2Fetc%2Fpasswd",
        "%2Fetc%2Fpasswd",
        &absolute,
        "..",
        "%00",
        "%ff%fe",
        "0000000000000000",
        "manifest.json",
        "AAAAAAAAAAAAAAAA",
    ] {
        for path in [format!("/v1/items/{id}"), format!("/v1/items/{id}/thumbnail")] {
            let answer = server.raw(
                format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").as_bytes(),
            );
            assert!(answer.starts_with("HTTP/1.1 404") && answer.contains("{\"error\":"), "{path}: {answer}");
        }
        server.search(&json!({"item": id})).refused(404, "no such item");
    }
    server.lives();
}

#[test]
fn routes_that_are_none() {
    let scene = Scene::with_model();
    let mut server = scene.serve("index", &[]);
    server.get("/nothing/here").refused(404, "no route `/nothing/here`");
    server.get("/v1/search").refused(405, "does not take GET");
    server.json("/healthz", &json!({})).refused(405, "does not take POST");
    assert!(server.raw(b"nonsense\r\n\r\n").starts_with("HTTP/1.1 400"));
    assert!(server.raw(b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n").starts_with("HTTP/1.1 400"));
    let endless = format!("GET / HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "x".repeat(1 << 20));
    assert!(!server.raw(endless.as_bytes()).contains(" 200 "));
    server.lives();
}

#[test]
fn other_names_and_other_pages_are_turned_away() {
    let scene = Scene::with_model();
    let mut server = scene.serve("index", &[]);
    let with = |lines: &str| {
        server.raw(format!("GET /v1/model HTTP/1.1\r\n{lines}Connection: close\r\n\r\n").as_bytes())
    };
    assert!(with("Host: localhost\r\n").starts_with("HTTP/1.1 200"));
    let rebound = with("Host: evil.example\r\n");
    assert!(rebound.starts_with("HTTP/1.1 403") && rebound.contains("--allow-host"), "{rebound}");
    assert!(with("").starts_with("HTTP/1.1 403"));
    assert!(with("Host: localhost\r\nOrigin: https://evil.example\r\n").starts_with("HTTP/1.1 403"));
    let known = scene.serve("index", &["--allow-host", "search.example"]);
    assert_eq!(known.get_with("/v1/model", &[("Host", "search.example")]).status, 200);
    server.lives();
}

#[test]
fn a_key_opens_what_is_locked() {
    let scene = Scene::with_model();
    scene.write("key", "a-secret\n");
    let server = scene.serve("index", &["--api-key-file", "key"]);
    for path in ["/v1/model", "/v1/items", "/metrics"] {
        server.get(path).refused(401, "API key");
        server.get_with(path, &[("Authorization", "Bearer wrong")]).refused(401, "API key");
        assert_eq!(server.get_with(path, &[("Authorization", "Bearer a-secret")]).status, 200, "{path}");
        assert_eq!(server.get_with(path, &[("X-Api-Key", "a-secret")]).status, 200, "{path}");
    }
    let refused = server.search(&json!({"text": "a dog"}));
    assert_eq!(refused.header("www-authenticate"), "Bearer");
    refused.refused(401, "API key");
    for path in ["/", "/style.css", "/page.js", "/healthz", "/openapi.json"] {
        assert_eq!(server.get(path).status, 200, "{path} is open");
    }
    let told = scene.run("serve --index index --port 0 --api-key=").failure();
    assert!(told.starts_with("exit 2") && told.contains("the API key is empty"), "{told}");
}

#[test]
fn a_removed_image_is_gone_and_searches_go_on() {
    let scene = Scene::with_model();
    let images: Vec<String> = (0..5)
        .map(|i| {
            let copy = scene.path(&format!("photos/{i}.webp"));
            fs::create_dir_all(copy.parent().unwrap()).unwrap();
            fs::copy(&scene.lines("images.txt")[i], &copy).unwrap();
            copy.display().to_string()
        })
        .collect();
    scene.run("index --model model --images photos --output mine").ok();
    let mut server = scene.serve("mine", &[]);
    let before = server.names(&json!({"text": "a dog"}));
    let id = server.search(&json!({"text": "a dog"})).ok()["results"][0]["id"].as_str().unwrap().to_owned();
    let path = format!("/v1/items/{id}/thumbnail");
    assert_eq!(server.get(&path).status, 200);
    fs::remove_file(images.iter().find(|image| image.ends_with(&before[0])).unwrap()).unwrap();
    let gone = server.get(&path).refused(410, "gone");
    assert!(!gone.to_string().contains("photos"), "where it lay is not told: {gone}");
    assert_eq!(server.names(&json!({"text": "a dog"})), before);
    server.search(&json!({"item": id})).ok();
    // What was put in its place and is no image.
    fs::write(images.iter().find(|image| image.ends_with(&before[0])).unwrap(), "no image").unwrap();
    server.get(&path).refused(422, "decoded");
    server.lives();
}

#[test]
fn items_of_features_have_no_picture() {
    let scene = Scene::new();
    crate::copy_folder(&crate::fixtures("formats/scan"), &scene.path("scan"));
    let flags = "train --source scan --text-encoder words --method source-only --head sgr --epochs 1 --batch-size 4 -o model";
    scene.run(flags).ok();
    scene.run("index --model model --images scan/test_ims.npy --output index").ok();
    let mut server = scene.serve("index", &[]);
    let id = server.search(&json!({"text": "a dog"})).ok()["results"][0]["id"].as_str().unwrap().to_owned();
    server.get(&format!("/v1/items/{id}/thumbnail")).refused(404, "no image");
    let bytes = fs::read(crate::odd_image("one.png")).unwrap();
    server.search(&json!({"image": base64(&bytes)})).refused(400, "region features");
    server.lives();
}

/// An index that is whole and sound, but whose vectors are of another model than the one that lies in it.
fn mix_up(scene: &Scene, name: &str) {
    let own = Index::open(scene.path("index")).unwrap();
    let items: Vec<String> = own.items().map(str::to_owned).collect();
    let builder = IndexBuilder::begin(scene.path(name)).unwrap();
    crate::copy_folder(&scene.path("index/model"), &builder.staging().join("model"));
    builder.commit(IndexContent::new(&own.embeddings().unwrap(), &items, "another model")).unwrap();
}

#[test]
fn an_index_of_another_model_is_not_served_nor_searched() {
    let scene = Scene::with_model();
    mix_up(&scene, "mixed");
    for command in ["serve --index mixed --port 0", "search --index mixed dog"] {
        let told = scene.run(command).failure();
        assert!(told.starts_with("exit 4\nerror: `mixed` was built with model `another model`"), "{told}");
        assert!(told.contains("rebuild the index with this model"), "{told}");
    }
    let told = scene.run("index add --index mixed --images images.txt").failure();
    assert!(told.starts_with("exit 4") && told.contains("was built with model `another model`"), "{told}");

    // In the place of one that is served it is told of and not taken over.
    scene.copy("index", "mine");
    let mut server = scene.serve("mine", &["--reload-every", "0.1"]);
    let before = server.names(&json!({"text": "a dog"}));
    mix_up(&scene, "mine");
    wait_for(&server, "the other model's index", |health| health["status"] == "stale");
    assert_eq!(server.names(&json!({"text": "a dog"})), before);
    scene.run("index --model model --images images.txt --output mine").ok();
    wait_for(&server, "an index of this model", |health| health["status"] == "ok");
    server.lives();
}

#[test]
fn every_answer_keeps_other_pages_out() {
    let scene = Scene::with_model();
    scene.write("key", "a-secret\n");
    let server = scene.serve("index", &["--api-key-file", "key", "--max-body-bytes", "1000"]);
    let with_key = |path: &str| server.get_with(path, &[("X-Api-Key", "a-secret")]);
    let id = with_key("/v1/items").ok()["items"][0]["id"].as_str().unwrap().to_owned();
    let foreign = server.get_with("/", &[("Host", "evil.example")]);
    let answers = [
        (200, server.get("/")),
        (200, server.get("/page.js")),
        (200, server.get("/healthz")),
        (200, server.get("/openapi.json")),
        (200, with_key("/metrics")),
        (200, with_key("/v1/model")),
        (200, with_key(&format!("/v1/items/{id}/thumbnail"))),
        (401, server.get("/v1/model")),
        (403, foreign),
        (404, server.get("/nothing")),
        (405, with_key("/v1/search")),
        (401, server.post("/v1/search", "application/json", &[b' '; 2000])),
    ];
    for (status, answer) in answers {
        assert_eq!(answer.status, status, "{}", answer.text());
        for (name, value) in [
            ("x-content-type-options", "nosniff"),
            ("x-frame-options", "DENY"),
            ("referrer-policy", "no-referrer"),
            ("cross-origin-resource-policy", "same-origin"),
            ("cross-origin-opener-policy", "same-origin"),
        ] {
            assert_eq!(answer.header(name), value, "{status} {name}");
        }
        let policy = answer.header("content-security-policy");
        assert!(policy.starts_with("default-src 'none'; script-src 'self'; style-src 'self'; "), "{policy}");
        assert!(policy.contains("frame-ancestors 'none'") && !policy.contains("unsafe"), "{policy}");
        assert_eq!(answer.header("access-control-allow-origin"), "", "no other origin may read it");
    }
    // What the policy forbids, the page does without.
    let page = server.get("/").text();
    for forbidden in ["<style", "style=", "onclick=", "javascript:", "<script>"] {
        assert!(!page.contains(forbidden), "{forbidden}");
    }
}

#[test]
fn an_index_that_is_damaged_or_none_is_not_served() {
    let scene = Scene::with_model();
    let refused = |index: &str| scene.run(&format!("serve --index {index} --port 0")).failure();
    scene.copy("index", "flipped");
    crate::flip_a_bit(&scene.path("flipped/segment-000001/vectors.f32"));
    assert!(refused("flipped").contains("is damaged"));
    scene.copy("index", "cut");
    crate::cut(&scene.path("cut/model/model.safetensors"));
    assert!(refused("cut").starts_with("exit 4"));
    let told = refused("model");
    assert!(told.starts_with("exit 4") && told.contains("can't be used as an index"), "{told}");
    let told = refused("nowhere");
    assert!(told.starts_with("exit 4") && told.contains("no such folder"), "{told}");
}

#[test]
fn a_port_in_use_is_told() {
    let scene = Scene::with_model();
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = other.local_addr().unwrap().port();
    let told = scene
        .run(&format!("serve --index index --port {port}"))
        .failure()
        .replace(&port.to_string(), "[PORT]");
    insta::assert_snapshot!(told, @"
    exit 2
    error: could not listen on 127.0.0.1:[PORT]: Address already in use (os error 98)

    hint: another program listens there: choose another port with --port, or 0 for any that is free
    ");
    let told = scene.run("serve --index index --host 192.0.2.1 --port 0").failure();
    assert!(told.starts_with("exit 2") && told.contains("--host takes an address of this machine"), "{told}");
    let told = scene.run("serve --index index --host example.com").failure();
    assert!(told.starts_with("exit 2") && told.contains("expected an address"), "{told}");
}

/// A model of which one tower gives NaN, whole in every other respect.
fn spoil(scene: &Scene, tower: &str) {
    let (model, device) = (scene.path("model"), Device::Cpu);
    let bundle = Bundle::load(&model, &device).unwrap();
    let file = model.join(WEIGHTS_FILE);
    let mut tensors: BTreeMap<String, Tensor> =
        candle_core::safetensors::load(&file, &device).unwrap().into_iter().collect();
    let standardisation =
        Standardisation::from_tensors(&tensors, &bundle.manifest().serving_domain, &file).unwrap();
    tensors.retain(|name, _| !standardisation.tensors().contains_key(name));
    let spoiled = tensors.iter_mut().filter(|(name, _)| name.contains(tower)).map(|(_, tensor)| {
        *tensor = tensor.affine(f64::NAN, 0.0).unwrap();
    });
    assert!(spoiled.count() > 0);
    std::fs::create_dir(scene.path("spoiled")).unwrap();
    let parts = BundleParts {
        method: "spoiled",
        encoder: *bundle.encoder().config(),
        parameters: &tensors,
        standardisation: &standardisation,
        image_backbone: bundle.image_backbone(),
        sentence_backbone: bundle.sentence_backbone(),
        vocabulary: bundle.vocabulary(),
        backbones: BackbonePlacement::Copied,
    };
    save(&scene.path("spoiled"), &parts).unwrap();
}

#[test]
fn a_model_that_gives_nan_is_told_and_kills_nothing() {
    let scene = Scene::with_model();
    spoil(&scene, "sentence");
    scene.run("index --model spoiled --images images.txt --output index-of-it").ok();
    let server = scene.serve("index-of-it", &[]);
    server.search(&json!({"text": "a dog"})).refused(500, "not finite");
    server.json("/v1/embed", &json!({"text": "a dog"})).refused(500, "not finite");
    server.get("/healthz").refused(500, "not finite");
    let bytes = fs::read(&scene.lines("images.txt")[0]).unwrap();
    assert_eq!(server.search(&json!({"image": base64(&bytes)})).status, 200, "its images are as they were");
    server.search(&json!({"image": base64(&bytes), "minus": ["a dog"]})).refused(500, "not finite");
    let told = scene.run("search --index index-of-it dog").failure();
    assert!(told.starts_with("exit 1") && told.contains("not finite"), "{told}");
}

#[test]
fn images_that_become_nan_are_not_indexed() {
    let scene = Scene::with_model();
    spoil(&scene, "image");
    let told = scene.run("index --model spoiled --images images.txt --output index-of-it").failure();
    assert!(told.starts_with("exit 1") && told.contains("is NaN, not a finite number"), "{told}");
    assert!(!scene.path("index-of-it").exists());
    scene.copy("index", "mine");
    let bytes = fs::read(&scene.lines("images.txt")[0]).unwrap();
    let mut server = scene.serve("mine", &["--reload-every", "0.1"]);
    let told = scene.run("index --model spoiled --images images.txt --output mine").failure();
    assert!(told.contains("is NaN, not a finite number"), "{told}");
    assert_eq!(server.search(&json!({"image": base64(&bytes)})).status, 200, "the old index stays");
    server.lives();
}

#[test]
fn an_open_address_is_warned_of() {
    let scene = Scene::with_model();
    let mut command = program();
    command.args(["serve", "--index", "index", "--port", "0", "--host", "0.0.0.0"]);
    let server = scene.serve_by(command);
    #[cfg(unix)]
    {
        server.signal(libc::SIGTERM);
        let (code, said) = server.end(std::time::Duration::from_secs(20));
        assert!(code == Some(0) && said.contains("everybody who can reach"), "{said}");
    }
    #[cfg(not(unix))]
    drop(server);
}
