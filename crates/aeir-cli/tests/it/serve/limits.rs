//! Each limit: its status, its figure and its flag in the answer.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use super::{base64, form, form_type, rest};
use crate::Scene;

/// The head of a search whose body is announced.
fn head(length: &str) -> String {
    format!(
        "POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{length}\r\n\r\n"
    )
}

#[test]
fn a_large_body_is_refused_before_it_is_read() {
    let scene = Scene::with_model();
    let mut server = scene.serve("index", &["--max-body-bytes", "1000"]);
    // Nothing of the body is sent: the length in the head is enough.
    let mut stream = server.connect();
    let began = Instant::now();
    stream.write_all(head("Content-Length: 20000000\r\nConnection: close").as_bytes()).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let answer = rest(&mut stream);
    assert!(answer.starts_with("HTTP/1.1 413") && began.elapsed() < Duration::from_secs(5), "{answer}");
    assert!(answer.contains(r#""limit":1000,"flag":"--max-body-bytes""#), "{answer}");
    // Without a length it is followed up to the limit.
    let chunk = format!("{:x}\r\n{}\r\n", 600, " ".repeat(600));
    let request = head("Transfer-Encoding: chunked\r\nConnection: close") + &chunk.repeat(4) + "0\r\n\r\n";
    let answer = server.raw(request.as_bytes());
    assert!(answer.starts_with("HTTP/1.1 413") && answer.contains("--max-body-bytes"), "{answer}");
    // A whole upload that is refused is answered, not reset.
    let large = vec![b' '; 12 << 20];
    server.post("/v1/search", "application/json", &large).refused(413, "at most 1000 bytes");
    server.lives();
    let measures = server.get("/metrics").text();
    assert!(measures.contains(r#"aeir_refused_total{limit="--max-body-bytes"} 3"#), "{measures}");
}

#[test]
fn a_long_sentence_is_refused() {
    let scene = Scene::with_model();
    let mut server = scene.serve("index", &[]);
    let book = "a dog ".repeat(10_000_000 / 6);
    let refused = server.search(&json!({"text": book})).refused(413, "too long");
    assert_eq!((&refused["limit"], &refused["flag"]), (&json!(8192), &json!("--max-text-bytes")));
    server.search(&json!({"text": "a dog", "minus": [book]})).refused(413, "too long");
    server.search(&json!({"text": "dog ".repeat(2000)})).ok();
    server.lives();
}

#[test]
fn image_bombs_are_refused_before_they_are_decoded() {
    let scene = Scene::with_model();
    let mut server = scene.serve("index", &[]);
    for name in ["bomb.png", "bomb.jpg", "bomb.gif", "bomb.bmp", "bomb.webp"] {
        let bytes = std::fs::read(crate::odd_image(name)).unwrap();
        let refused = server.search(&json!({"image": base64(&bytes)})).refused(413, "too large");
        assert!(refused["flag"] == "--max-pixels" || refused["flag"] == "--max-side", "{refused}");
        server.post("/v1/embed", &form_type(), &form(&[], Some(&bytes))).refused(413, "too large");
    }
    let bytes = std::fs::read(crate::odd_image("bomb_frame.gif")).unwrap();
    server.search(&json!({"image": base64(&bytes)})).refused(400, "can't be used");
    server.lives();
    let small = scene.serve("index", &["--max-pixels", "100"]);
    let bytes = std::fs::read(&scene.lines("images.txt")[0]).unwrap();
    let refused = small.search(&json!({"image": base64(&bytes)})).refused(413, "at most 100 pixels");
    assert_eq!((&refused["limit"], &refused["flag"]), (&json!(100), &json!("--max-pixels")));
    let id = small.get("/v1/items").ok()["items"][0]["id"].as_str().unwrap().to_owned();
    small.get(&format!("/v1/items/{id}/thumbnail")).refused(413, "at most 100 pixels");
}

#[test]
fn the_number_of_results_is_bounded() {
    let scene = Scene::with_model();
    let mut server = scene.serve("index", &["--max-results", "50"]);
    server.search(&json!({"text": "a dog", "k": 0})).refused(400, "at least 1");
    assert_eq!(server.names(&json!({"text": "a dog", "k": 50})).len(), 30, "more than there are are all");
    let refused = server.search(&json!({"text": "a dog", "k": 51})).refused(400, "at most 50");
    assert_eq!((&refused["limit"], &refused["flag"]), (&json!(50), &json!("--max-results")));
    server.search(&json!({"text": "a dog", "k": -1})).refused(400, "-1");
    server.lives();
}

#[test]
fn too_many_requests_at_once_are_turned_away() {
    let scene = Scene::with_model();
    let mut server = scene.serve("index", &["--max-requests", "1"]);
    let until = Instant::now() + Duration::from_secs(30);
    let over = AtomicBool::new(false);
    let first_refused = || {
        while !over.load(Ordering::Relaxed) && Instant::now() < until {
            let reply = server.search(&json!({"text": "a dog"}));
            if reply.status != 200 {
                over.store(true, Ordering::Relaxed);
                return Some(reply);
            }
        }
        None
    };
    let refused = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..4).map(|_| scope.spawn(first_refused)).collect();
        clients.into_iter().filter_map(|client| client.join().unwrap()).next()
    });
    let refused = refused.unwrap();
    assert_eq!(refused.header("retry-after"), "1");
    let body = refused.refused(429, "too many requests");
    assert_eq!((&body["limit"], &body["flag"]), (&json!(1), &json!("--max-requests")));
    server.lives();
}

#[test]
fn bodies_count_by_what_has_come_of_them() {
    let scene = Scene::with_model();
    let flags = ["--max-requests", "1", "--max-body-bytes", "100000", "--body-timeout", "20"];
    let mut server = scene.serve("index", &flags);
    // Many who send next to nothing keep nobody out.
    let slow: Vec<_> = (0..20)
        .map(|_| {
            let mut slow = server.connect();
            slow.write_all(head("Content-Length: 17\r\nConnection: close").as_bytes()).unwrap();
            slow.write_all(b"{").unwrap();
            slow
        })
        .collect();
    std::thread::sleep(Duration::from_millis(200));
    server.lives();
    drop(slow);
    // One who sends much does, for as long as it takes: so much that it fits beside those, should they not be gone yet. The one that
    // comes first keeps the other out, and the server may be slow to read: what was sent gets more and more time to come in.
    let large = [&[b' '; 50_000][..], br#"{"text": "a dog"}"#].concat();
    let (mut slow, refused) = (0..8)
        .find_map(|attempt| {
            let mut slow = server.connect();
            slow.write_all(head("Content-Length: 70017\r\nConnection: close").as_bytes()).unwrap();
            slow.write_all(&[b' '; 70_000]).unwrap();
            std::thread::sleep(Duration::from_millis(50 << attempt));
            let reply = server.post("/v1/search", "application/json", &large);
            (reply.status != 200).then_some((slow, reply))
        })
        .unwrap();
    let body = refused.refused(429, "too many requests");
    assert_eq!((&body["limit"], &body["flag"]), (&json!(1), &json!("--max-requests")));
    // Whether it lives is not a question of how busy it is.
    assert_eq!(server.get("/healthz").status, 200);
    slow.write_all(br#"{"text": "a dog"}"#).unwrap();
    assert!(rest(&mut slow).starts_with("HTTP/1.1 200"));
    server.lives();
}

#[test]
fn checks_of_health_do_not_keep_the_encoder_busy() {
    let scene = Scene::with_model();
    let server = scene.serve("index", &[]);
    for _ in 0..50 {
        server.get("/healthz").ok();
    }
    let measures = server.get("/metrics").text();
    let embedded = measures.lines().find_map(|line| line.strip_prefix("aeir_batch_size_sum "));
    assert!(embedded.unwrap().parse::<f64>().unwrap() <= 20.0, "{measures}");
}

#[test]
fn whoever_waits_too_long_for_the_encoder_is_told() {
    let scene = Scene::with_model();
    let server = scene.serve("index", &["--queue-timeout", "0"]);
    // No wait at all is allowed: some come through all the same, where the encoder is at once at hand.
    let refused =
        (0..1000).map(|_| server.search(&json!({"text": "a dog"}))).find(|reply| reply.status != 200);
    let refused = refused.unwrap();
    let body = refused.refused(503, "too busy");
    assert_eq!((&body["flag"], refused.header("retry-after")), (&json!("--queue-timeout"), "1"));
}

#[test]
fn slow_clients_are_hung_up_on_and_keep_nobody_else_waiting() {
    let scene = Scene::with_model();
    let mut server = scene.serve("index", &["--head-timeout", "1", "--body-timeout", "1"]);
    let mut silent = server.connect();
    let mut halting = server.connect();
    halting.write_all(b"POST /v1/search HTTP/1.1\r\nHost: loc").unwrap();
    let mut unfinished = server.connect();
    unfinished.write_all(head("Content-Length: 100\r\nConnection: close").as_bytes()).unwrap();
    unfinished.write_all(b"{\"text\"").unwrap();
    server.lives();
    let began = Instant::now();
    assert_eq!(rest(&mut silent), "");
    // A byte now and then does not help.
    for _ in 0..6 {
        std::thread::sleep(Duration::from_millis(100));
        let _ = halting.write_all(b"a");
    }
    assert!(!rest(&mut halting).contains("200"));
    let answer = rest(&mut unfinished);
    assert!(answer.starts_with("HTTP/1.1 408") && answer.contains("--body-timeout"), "{answer}");
    assert!(began.elapsed() < Duration::from_secs(10));
    server.lives();
}
