//! Indexes in collections of a Milvus server, from the command line.

#[cfg(not(feature = "milvus"))]
use crate::Scene;

// The server of the library's tests: a second copy would drift from it.
#[cfg(feature = "milvus")]
#[allow(dead_code, reason = "these tests need a part of it")]
#[path = "../../../aeir-retrieve/tests/it/milvus/lite_server.rs"]
mod lite_server;

#[cfg(not(feature = "milvus"))]
#[test]
fn a_build_without_milvus_says_how_to_get_one_with_it() {
    let scene = Scene::with_model();
    let place = "milvus://localhost/photos";
    let outcomes = [
        scene.run(&format!("index --model model --images images.txt --to {place}")),
        scene.run(&format!("index upload --index index --to {place}")),
        scene.run(&format!("search --index {place} --model model cat")),
    ];
    for outcome in outcomes {
        insta::allow_duplicates! {
            insta::assert_snapshot!(outcome.failure(), @r"
            exit 2
            error: this aeir was built without Milvus: it can't use collections

            hint: build one that can: `cargo build --release -p aeir-cli --features milvus`
            ");
        }
    }
    let local = scene.run("search --index index --model model cat");
    insta::assert_snapshot!(local.failure(), @r"
    exit 2
    error: --model is of Milvus collections

    hint: leave it out: an index holds its model
    ");
}

#[cfg(feature = "milvus")]
mod with_milvus {
    use std::net::TcpListener;

    use serde_json::Value;

    use crate::{Outcome, SHORT, Scene, program};

    use super::lite_server::LiteServer;

    fn results(scene: &Scene, arguments: &str) -> Value {
        scene.run(&format!("search {arguments} --json")).ok().json()
    }

    #[test]
    fn a_collection_answers_as_the_index_does() {
        let Some(server) = LiteServer::start() else { return };
        let scene = Scene::with_model();
        let place = server.place("photos");
        let made = scene.run(&format!("index --model model --images images.txt --to {place}")).ok();
        assert!(made.stdout.contains("images     30: 30 sent, 0 were there\n"), "{made:?}");
        assert!(made.stdout.contains("recall@10  1.0000 of an exact search of the index\n"), "{made:?}");
        assert!(!made.stdout.contains("index   "), "no index was asked for: {made:?}");
        let again = scene.run(&format!("index upload --index index --to {place}")).ok();
        assert!(again.stdout.contains("images     30: 0 sent, 30 were there\n"), "{again:?}");
        assert!(again.stdout.contains(&format!("aeir search --index {place} --model index")), "{again:?}");

        let image = scene.lines("images.txt")[3].clone();
        for query in [
            "cat",
            "cat -k 3",
            "cat -k 500",
            &format!("--image {image}"),
            &format!("--image {image} --minus dog red"),
        ] {
            let expected = results(&scene, &format!("--index index {query}"));
            for model in ["model", "index"] {
                let found = results(&scene, &format!("--index {place} --model {model} {query}"));
                assert_eq!(found, expected, "{query}");
            }
        }

        scene.run("index --model model --images images.txt --query-bank sentences.txt --correction csls --output corrected").ok();
        let place = server.place("corrected");
        scene.run(&format!("index upload --index corrected --to {place}")).ok();
        for query in ["cat", "cat --plain", "cat --min-confidence 0.99", &format!("--image {image}")] {
            let found = results(&scene, &format!("--index {place} --model corrected {query}"));
            assert_eq!(found, results(&scene, &format!("--index corrected {query}")), "{query}");
        }
        refusals_name_the_collection(&scene, &server);
    }

    fn refusals_name_the_collection(scene: &Scene, server: &LiteServer) {
        let place = server.place("photos");
        let told =
            |arguments: &str| scene.run(arguments).failure().replace(&server.port().to_string(), "[PORT]");
        scene.run(SHORT).ok();
        let other = told(&format!("search --index {place} --model run cat"));
        assert!(other.contains("exit 4") && other.contains("was built with model"), "{other}");
        insta::assert_snapshot!(told(&format!("search --index {place} cat")), @r"
        exit 2
        error: `milvus://127.0.0.1:[PORT]/photos` holds vectors, not the model that makes them

        hint: name it with --model: the trained model, or the index that the collection was made of
        ");
        insta::assert_snapshot!(told(&format!("search --index {} --model model cat", server.place("nowhere"))), @r"
        exit 4
        error: `milvus://127.0.0.1:[PORT]/nowhere`: there is no such collection

        hint: fill it with `aeir index upload --index INDEX --to milvus://127.0.0.1:[PORT]/nowhere`
        ");
        insta::assert_snapshot!(told(&format!("index upload --index corrected --to {place}")), @r"
        exit 4
        error: `milvus://127.0.0.1:[PORT]/photos` can't be used as an index: it is without a correction, the index with one

        hint: name another collection, or drop this one and make it anew with `aeir index upload --overwrite`
        ");
    }

    #[test]
    fn connections_are_encrypted_and_the_certificate_is_checked() {
        let Some(server) = LiteServer::start() else { return };
        let scene = Scene::with_model();
        let folder = scene.path("tls");
        let Some(secure) = server.secure("root:a-secret", &folder) else { return };
        let port = secure.port().to_string();
        let run = |arguments: &str, token: &str, trusted: bool| {
            let mut command = program();
            command.args(arguments.split(' ')).env("AEIR_MILVUS_TOKEN", token).env_remove("SSL_CERT_FILE");
            if trusted {
                command.env("SSL_CERT_FILE", folder.join("certificate.pem"));
            }
            scene.outcome(command)
        };
        let upload = format!("index upload --index index --to milvuss://127.0.0.1:{port}/photos");
        let refused = |outcome: Outcome, part: &str| {
            let told = outcome.failure();
            assert!(told.starts_with("exit 4\n") && told.contains(part), "{told}");
        };
        refused(
            run(&upload, "root:a-secret", false),
            "a certificate that this system trusts or SSL_CERT_FILE names",
        );
        refused(run(&upload, "root:wrong", true), "AEIR_MILVUS_TOKEN");
        let plain = upload.replace("milvuss:", "milvus:");
        refused(run(&plain, "root:a-secret", true), "With TLS it is `milvuss://`");

        let uploaded = run(&upload, "root:a-secret", true).ok();
        assert!(uploaded.stdout.contains("images     30: 30 sent, 0 were there\n"), "{uploaded:?}");
        let search = format!("search --index milvuss://127.0.0.1:{port}/photos --model model cat --json");
        let found = run(&search, "root:a-secret", true).ok().json();
        assert_eq!(found, results(&scene, "--index index cat"));
        // A server without TLS is no such server.
        let other = format!("search --index milvuss://127.0.0.1:{}/photos --model model cat", server.port());
        assert!(run(&other, "", true).failure().starts_with("exit 4"));
    }

    #[test]
    fn bad_places_and_missing_servers_are_told() {
        let scene = Scene::with_model();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
        let told = |arguments: &str| scene.run(arguments).failure().replace(&port, "[PORT]");
        insta::assert_snapshot!(told("index upload --index index --to milvus://localhost"), @r"
        exit 2
        error: `milvus://localhost` names no Milvus collection: the collection is missing

        hint: for instance `milvus://localhost:19530/photos`, `milvuss://` with TLS; a token goes into AEIR_MILVUS_TOKEN
        ");
        insta::assert_snapshot!(told("index upload --index index --to qdrant://localhost/photos"), @r"
        exit 2
        error: `qdrant://localhost/photos` names no Milvus collection: it does not begin with `milvus://` or `milvuss://`

        hint: for instance `milvus://localhost:19530/photos`, `milvuss://` with TLS; a token goes into AEIR_MILVUS_TOKEN
        ");
        insta::assert_snapshot!(told(&format!("index upload --index index --to milvus://127.0.0.1:{port}/photos")), @r"
        exit 4
        error: could not reach `127.0.0.1:[PORT]`: Connection refused (os error 111)

        hint: is the server running? Milvus listens at port 19530 if nothing else is said
        ");
        insta::assert_snapshot!(told(&format!("search --index milvus://127.0.0.1:{port}/photos --model model --duplicates collapse cat")), @r"
        exit 2
        error: --duplicates collapse needs all of an index: a Milvus collection can't answer it

        hint: search the index that the collection was made of, or leave it out
        ");
    }
}
