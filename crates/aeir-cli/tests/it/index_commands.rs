//! `aeir index add`, `remove`, `compact`, `info` and `export`.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::Scene;

/// An index of the first 20 images, with a bank, and the other 10 apart.
fn scene() -> Scene {
    let scene = Scene::with_model();
    let images = scene.lines("images.txt");
    scene.write_lines("first.txt", &images[..20]);
    scene.write_lines("rest.txt", &images[20..]);
    let metadata: Vec<String> = (0..20)
        .map(|i| {
            serde_json::json!({"image": images[i], "even": i % 2 == 0, "kind": format!("k{}", i % 3)})
                .to_string()
        })
        .collect();
    scene.write_lines("metadata.jsonl", &metadata);
    scene
        .run(
            "index --model model --images first.txt --metadata metadata.jsonl --query-bank sentences.txt \
             --correction csls -o mine",
        )
        .ok();
    scene
}

fn info(scene: &Scene) -> Value {
    scene.run("index info --index mine --json").ok().json()
}

fn search(scene: &Scene, index: &str) -> Value {
    scene.run_all(&["search", "--index", index, "a cat", "--json", "-k", "50"]).ok().json()
}

#[test]
fn an_index_that_grew_is_the_one_built_at_once() {
    let scene = scene();
    let before = info(&scene);
    assert_eq!(
        (&before["items"], &before["query_bank"], &before["correction"]),
        (&20.into(), &30.into(), &"csls".into())
    );
    let added = scene.run("index add --index mine --images rest.txt").ok();
    assert_eq!(added.stdout, "added     10\nreplaced  0\nitems     30\n");
    let again = scene.run("index add --index mine --images rest.txt").ok();
    assert_eq!(again.stdout, "added     0\nreplaced  10\nitems     30\n");
    scene
        .run("index --model model --images images.txt --query-bank sentences.txt --correction csls -o whole")
        .ok();
    let whole = search(&scene, "whole");
    assert_eq!(search(&scene, "mine"), whole, "results, correction and confidence");
    let after = info(&scene);
    assert_eq!(
        (&after["generation"], &after["items"], &after["deleted"], &after["segments"]),
        (&3.into(), &30.into(), &10.into(), &3.into())
    );
    scene.run("index compact --index mine").ok();
    assert_eq!(search(&scene, "mine"), whole);
    let compact = info(&scene);
    assert_eq!((&compact["deleted"], &compact["segments"]), (&0.into(), &1.into()));
    let text = scene.run("index info --index mine").ok().stdout;
    assert!(
        text.contains("query bank  30 sentences, correction csls") && text.contains("search      exact"),
        "{text}"
    );
}

#[test]
fn items_are_removed_by_name() {
    let scene = scene();
    let images = scene.lines("images.txt");
    scene.write_lines("gone.txt", &images[1..4]);
    let removed = scene.run(&format!("index remove --index mine {} --ids gone.txt", images[0])).ok();
    assert_eq!(removed.stdout, "removed  4\nitems    16\n");
    let found = search(&scene, "mine");
    let paths: Vec<&str> =
        found["results"].as_array().unwrap().iter().map(|hit| hit["path"].as_str().unwrap()).collect();
    assert_eq!(paths.len(), 16);
    for (place, image) in images[..20].iter().enumerate() {
        assert_eq!(paths.contains(&scene.shown(image.as_bytes()).as_str()), place >= 4, "{image}");
    }
    insta::assert_snapshot!(scene.run("index remove --index mine nowhere.jpg").failure(), @"
    exit 2
    error: `[FOLDER]/mine` holds no item `nowhere.jpg`

    hint: items are named as `aeir search` prints them; nothing was changed
    ");
    insta::assert_snapshot!(scene.run("index remove --index mine").failure(), @"
    exit 2
    error: the following required arguments were not provided:
      <ID|--ids <FILE>>

    Usage: aeir index remove --index <IDX> <ID|--ids <FILE>>

    For more information, try '--help'.
    ");
    assert_eq!(info(&scene)["items"], 16);
    scene.write_lines("all.txt", &images[4..20]);
    scene.run("index remove --index mine --ids all.txt").ok();
    assert_eq!(info(&scene)["items"], 0);
    assert!(scene.run("search --index mine cat").failure().contains("holds no images any more"));
}

#[test]
fn storage_and_graph_are_told() {
    let scene = Scene::with_model();
    scene.run("index --model model --images images.txt --storage int8 --approximate -o mine").ok();
    let info = info(&scene);
    assert_eq!((&info["storage"], &info["graphs"][0]["items"]), (&"int8".into(), &30.into()));
    assert!(info["graphs"][0]["recall_at_10"].as_f64().unwrap() >= 0.95);
    let text = scene.run("index info --index mine").ok().stdout;
    assert!(text.contains("kept as int8") && text.contains("of the ten best found"), "{text}");
    assert_eq!(search(&scene, "mine")["results"].as_array().unwrap().len(), 30);
}

#[test]
fn searches_are_limited_and_say_what_a_graph_finds() {
    let scene = scene();
    let images = scene.lines("images.txt");
    let paths = |more: &[&str]| -> Vec<String> {
        let found =
            scene.run_all(&[&["search", "--index", "mine", "a cat", "--json", "-k", "50"], more].concat());
        let hits = found.ok().json()["results"].as_array().unwrap().clone();
        hits.iter().map(|hit| hit["path"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(paths(&["--filter", "even=true"]).len(), 10);
    assert_eq!(paths(&["--where", "even=true", "--where", "kind=k1"]).len(), 3);
    assert_eq!(paths(&["--filter", "kind=k9"]), Vec::<String>::new());
    scene.write_lines("ids.txt", &[&images[3], &images[4], "elsewhere.jpg"]);
    let mut found = paths(&["--ids", "ids.txt"]);
    found.sort();
    let mut expected = vec![scene.shown(images[3].as_bytes()), scene.shown(images[4].as_bytes())];
    expected.sort();
    assert_eq!(found, expected);
    assert!(scene.run("search --index index cat --where a=1").failure().contains("holds no metadata"));
    scene.run("index --model model --images images.txt --approximate -o graph").ok();
    let answer = scene.run("search --index graph cat --json").ok().json();
    assert!(answer["approximate"]["recall_at_10"].as_f64().unwrap() >= 0.95, "{answer}");
    assert!(scene.run("search --index graph cat --json --exact").ok().json().get("approximate").is_none());
}

#[test]
fn what_is_no_metadata_is_refused() {
    let scene = Scene::with_model();
    let images = scene.lines("images.txt");
    let build = |lines: &[String]| {
        scene.write_lines("metadata.jsonl", lines);
        scene.run("index --model model --images images.txt --metadata metadata.jsonl -o mine")
    };
    let line = |name: &str| serde_json::json!({"image": name, "a": 1}).to_string();
    insta::assert_snapshot!(build(&[line(&images[0]), "[1]".into()]).failure(), @r#"
    exit 3
    error: `metadata.jsonl:2`: expected a JSON object: invalid type: sequence, expected a map at line 1 column 0

    hint: a line is an object such as {"image": "photos/1.jpg", "licence": "cc0"}
    "#);
    insta::assert_snapshot!(build(&["{\"a\": 1}".into()]).failure(), @r#"
    exit 3
    error: `metadata.jsonl:1`: neither `image` nor `item` is a text

    hint: a line is an object such as {"image": "photos/1.jpg", "licence": "cc0"}
    "#);
    assert!(build(&[line("x.jpg"), line("x.jpg")]).failure().contains("was described before"));
    let told = build(&[line("elsewhere.jpg")]).ok();
    assert!(told.stderr.contains("1 lines of `metadata.jsonl` are of no image that is indexed"), "{told:?}");
    insta::assert_snapshot!(scene.run("index add --index nowhere --images images.txt").failure(), @"
    exit 4
    error: `[FOLDER]/nowhere` can't be used as an index: no such folder

    hint: make one with `aeir index --model RUN --images PHOTOS --output INDEX`
    ");
}

/// What numpy would say of an array file: shape and values.
fn array(file: &Path) -> (usize, usize, Vec<f32>) {
    let bytes = fs::read(file).unwrap();
    let header = String::from_utf8_lossy(&bytes[10..128]).into_owned();
    assert!(header.contains("'<f4'") && header.contains("'fortran_order': False"), "{header}");
    let shape = header.split("'shape': (").nth(1).unwrap().split(')').next().unwrap();
    let sizes: Vec<usize> = shape.split(", ").map(|size| size.parse().unwrap()).collect();
    let values = bytes[128..].as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    (sizes[0], sizes[1], values)
}

#[test]
fn an_export_holds_the_vectors_names_and_metadata() {
    let scene = scene();
    let images = scene.lines("images.txt");
    scene.run(&format!("index remove --index mine {}", images[2])).ok();
    scene.run("index export --index mine --output out").ok();
    let (rows, dimension, values) = array(&scene.path("out/embeddings.npy"));
    assert_eq!((rows, dimension, values.len()), (19, 256, 19 * 256));
    // The table is a data set of features for our own reader: the model finds the same in it.
    let data = scene.run("data check out/items.parquet --json").ok().json();
    assert_eq!(data["parts"][0]["usable_images"], 19, "{data}");
    assert!(scene.run("index export --index mine --output out").failure().contains("is not empty"));
    let script = "import json, numpy, pyarrow.parquet
vectors = numpy.load('out/embeddings.npy')
table = pyarrow.parquet.read_table('out/items.parquet').to_pydict()
assert numpy.array_equal(numpy.array(table['embedding'], dtype='f4'), vectors)
assert abs((vectors ** 2).sum(1) - 1).max() < 1e-5
try:
    import faiss
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    scores, rows = index.search(vectors, 1)
    assert abs(scores - 1).max() < 1e-5, scores
except ImportError:
    pass
print(json.dumps([table['id'], [json.loads(line) for line in table['metadata']]]))";
    let program = std::env::var_os("AEIR_PYTHON").unwrap_or("python3".into());
    let python =
        |script: &str| Command::new(&program).args(["-c", script]).current_dir(scene.path(".")).output();
    if !python("import numpy, pyarrow.parquet").is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: no python3 with numpy and pyarrow to load the export (AEIR_PYTHON names one)");
        return;
    }
    let output = python(script).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let loaded: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(loaded[0].as_array().unwrap().len(), 19);
    assert_eq!((&loaded[0][2], &loaded[1][2]["kind"]), (&images[3].clone().into(), &"k0".into()));
}

#[test]
fn a_second_writer_is_told_to_wait() {
    let scene = scene();
    let lock = fs::File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(scene.path("mine/.writer.lock"))
        .unwrap();
    lock.lock().unwrap();
    insta::assert_snapshot!(scene.run("index add --index mine --images rest.txt").failure(), @"
    exit 1
    error: `[FOLDER]/mine` is being changed by another writer: wait until it has finished
    ");
    insta::assert_snapshot!(scene.run("index --model model --images rest.txt -o mine").failure(), @"
    exit 1
    error: `[FOLDER]/mine` is being changed by another writer: wait until it has finished
    ");
    assert_eq!(info(&scene)["items"], 20, "readers don't wait");
}

#[test]
fn an_index_that_was_emptied_still_corrects() {
    let scene = scene();
    let whole = search(&scene, "mine");
    scene.run("index remove --index mine --ids first.txt").ok();
    scene.run("index add --index mine --images first.txt").ok();
    assert_eq!(info(&scene)["correction"], "csls");
    let scores = |found: &Value| -> Vec<Value> {
        found["results"].as_array().unwrap().iter().map(|result| result["score"].clone()).collect()
    };
    assert_eq!(scores(&search(&scene, "mine")), scores(&whole));
}
