//! From the first request to the last: new indexes, broken models, and the end.

use std::io::Write;
use std::time::{Duration, Instant};

use serde_json::json;

use super::{Served, rest};
use crate::Scene;

/// Asks how the server is until it is so.
pub(super) fn wait_for(server: &Served, what: &str, reached: impl Fn(&serde_json::Value) -> bool) {
    let until = Instant::now() + Duration::from_secs(30);
    loop {
        let health = server.get("/healthz").ok();
        if reached(&health) {
            return;
        }
        assert!(Instant::now() < until, "{what}: {health}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_new_index_is_taken_over_and_a_broken_one_is_not() {
    let scene = Scene::with_model();
    let images = scene.lines("images.txt");
    scene.write_lines("few.txt", &images[..10]);
    scene.run("index --model model --images few.txt --output mine").ok();
    let mut server = scene.serve("mine", &["--reload-every", "0.1"]);
    assert_eq!(server.names(&json!({"text": "a dog", "k": 50})).len(), 10);
    let id = server.get("/v1/items").ok()["items"][0]["id"].as_str().unwrap().to_owned();

    scene.run("index --model model --images images.txt --output mine").ok();
    wait_for(&server, "the new index", |health| health["items"] == 30);
    assert_eq!(server.names(&json!({"text": "a dog", "k": 50})).len(), 30);
    assert_eq!(server.get(&format!("/v1/items/{id}")).ok()["id"], id.as_str(), "an id stays");
    let health = server.get("/healthz").ok();
    assert_eq!(health["status"], "ok");

    let manifest = scene.path("mine/manifest.json");
    let whole = std::fs::read(&manifest).unwrap();
    std::fs::write(&manifest, &whole[..whole.len() / 2]).unwrap();
    wait_for(&server, "the broken index", |health| health["status"] == "stale");
    assert_eq!(server.names(&json!({"text": "a dog", "k": 50})).len(), 30, "the old one stays");
    assert!(server.get("/metrics").text().contains("aeir_index_reload_failures_total 1"));
    std::fs::write(&manifest, &whole).unwrap();
    wait_for(&server, "the mended index", |health| health["status"] == "ok");
    server.lives();
}

#[test]
fn an_index_whose_files_come_late_is_tried_again() {
    let scene = Scene::with_model();
    scene.write_lines("few.txt", &scene.lines("images.txt")[..10]);
    scene.run("index --model model --images few.txt --output mine").ok();
    scene.run("index --model model --images images.txt --output next").ok();
    let mut server = scene.serve("mine", &["--reload-every", "0.1"]);
    let (next, mine) = (scene.path("next"), scene.path("mine"));
    std::fs::rename(next.join("manifest.json"), mine.join("manifest.json")).unwrap();
    wait_for(&server, "files of another index", |health| health["status"] == "stale");
    let told = server.get("/healthz").ok()["trouble"].as_str().unwrap().to_owned();
    assert!(told.contains("stderr") && !told.contains("mine"), "where files lie is not told: {told}");
    // The manifest stays as it is.
    for entry in std::fs::read_dir(&next).unwrap() {
        let (from, to) = (entry.as_ref().unwrap().path(), mine.join(entry.unwrap().file_name()));
        if to.is_dir() {
            std::fs::remove_dir_all(&to).unwrap();
        }
        std::fs::rename(from, to).unwrap();
    }
    wait_for(&server, "the whole index", |health| health["status"] == "ok" && health["items"] == 30);
    server.lives();
}

#[cfg(unix)]
#[test]
fn what_has_begun_is_answered_before_the_end() {
    let scene = Scene::with_model();
    for signal in [libc::SIGTERM, libc::SIGINT] {
        let server = scene.serve("index", &[]);
        let mut slow = server.connect();
        slow.write_all(
            b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 17\r\n\r\n",
        )
        .unwrap();
        // The head has been read once another request on the same server was answered after it.
        server.get("/healthz").ok();
        std::thread::sleep(Duration::from_millis(200));
        server.signal(signal);
        std::thread::sleep(Duration::from_millis(300));
        slow.write_all(br#"{"text": "a dog"}"#).unwrap();
        assert!(rest(&mut slow).starts_with("HTTP/1.1 200"));
        let (code, said) = server.end(Duration::from_secs(20));
        assert!(code == Some(0) && said.contains("everything that had begun was answered"), "{said}");
    }
}

#[cfg(unix)]
#[test]
fn the_end_does_not_wait_for_ever() {
    let scene = Scene::with_model();
    let server = scene.serve("index", &["--shutdown-timeout", "0.3"]);
    let mut stuck = server.connect();
    stuck
        .write_all(b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 17\r\n\r\n{")
        .unwrap();
    std::thread::sleep(Duration::from_millis(200));
    server.signal(libc::SIGTERM);
    let (code, said) = server.end(Duration::from_secs(10));
    assert!(code == Some(0) && said.contains("ended before all requests were answered"), "{said}");
    drop(stuck);
}
