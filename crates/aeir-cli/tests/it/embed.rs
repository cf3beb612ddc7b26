//! `aeir embed`: arrays and their names, shards, interruptions, collections as they are.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::{Outcome, Scene, fixtures, odd_image, program};

/// Both frozen encoders, by folder.
fn encoders() -> String {
    format!(
        "--image-encoder {} --text-encoder {}",
        fixtures("backbones/efficientnet-lite0").display(),
        fixtures("backbones/static-minilm").display()
    )
}

fn embed(scene: &Scene, flags: &str) -> Outcome {
    scene.run(&format!("embed {flags}"))
}

/// A two-dimensional little-endian f32 `.npy` file, read as its format is described: shape and values.
fn npy(bytes: &[u8]) -> (Vec<usize>, Vec<f32>) {
    assert_eq!(&bytes[..8], b"\x93NUMPY\x01\x00");
    let length = usize::from(u16::from_le_bytes([bytes[8], bytes[9]])) + 10;
    assert!(length.is_multiple_of(64) && bytes[length - 1] == b'\n');
    let header = String::from_utf8(bytes[10..length].to_vec()).unwrap();
    assert!(header.contains("'descr': '<f4', 'fortran_order': False"), "{header}");
    let shape = header.split('(').nth(1).unwrap().split(')').next().unwrap();
    let shape: Vec<usize> = shape.split(", ").map(|side| side.parse().unwrap()).collect();
    let values =
        bytes[length..].as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect::<Vec<_>>();
    assert_eq!(values.len(), shape.iter().product::<usize>());
    (shape, values)
}

fn records(text: &[u8]) -> Vec<Value> {
    String::from_utf8(text.to_vec())
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// What a finished folder holds, byte for byte.
fn content(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()))
        .collect();
    files.sort();
    files
}

#[test]
fn a_finished_output_that_was_cut_is_not_finished() {
    let scene = Scene::new();
    for (format, file) in [
        ("npy", "images.npy"),
        ("safetensors", "embeddings.safetensors"),
        ("parquet", "images.parquet"),
        ("npy", "images.jsonl"),
    ] {
        let _ = fs::remove_dir_all(scene.path("out"));
        let command = format!("{} --data test.jsonl --output out --format {format}", encoders());
        embed(&scene, &command).ok();
        assert!(embed(&scene, &command).ok().stderr.contains("is finished: nothing to do"));
        crate::cut(&scene.path("out").join(file));
        let cut = embed(&scene, &command).failure();
        assert!(
            cut.starts_with("exit 3") && cut.contains(file) && cut.contains("as its manifest says"),
            "{cut}"
        );
        fs::remove_file(scene.path("out").join(file)).unwrap();
        assert!(embed(&scene, &command).failure().contains("it is gone"));
    }
}

#[test]
fn a_row_belongs_to_the_line_of_its_number() {
    let scene = Scene::new();
    let told = embed(&scene, &format!("{} --data test.jsonl --output out --json", encoders())).ok().json();
    assert_eq!((&told["images"]["rows"], &told["images"]["dimension"]), (&20.into(), &1280.into()));
    assert_eq!(told["this_call"]["images"], 20);
    let names: Vec<String> = content(&scene.path("out")).into_iter().map(|(name, _)| name).collect();
    let expected =
        ["images.jsonl", "images.npy", "manifest.json", "sentences.jsonl", "sentences.npy", "skipped.jsonl"];
    assert_eq!(names, expected);
    let (shape, images) = npy(&scene.read("out/images.npy"));
    assert_eq!(shape, [20, 1280]);
    let lines = records(&scene.read("out/images.jsonl"));
    assert_eq!(lines.len(), 20);
    // Each alone gives its row again.
    let test = scene.lines("test.jsonl");
    for number in [0, 7, 19] {
        assert_eq!(lines[number]["item"], number);
        let record: Value = serde_json::from_str(&test[number]).unwrap();
        assert_eq!(lines[number]["id"], record["image"]);
        scene.write_lines("alone.jsonl", &[&test[number]]);
        let out = format!("alone-{number}");
        embed(&scene, &format!("{} --data alone.jsonl --output {out}", encoders())).ok();
        let (_, alone) = npy(&scene.read(&format!("{out}/images.npy")));
        assert!(alone == images[number * 1280..(number + 1) * 1280], "image {number}");
        let sentences = records(&scene.read("out/sentences.jsonl"));
        let row = sentences.iter().position(|line| line["item"] == number).unwrap();
        assert_eq!(sentences[row]["id"], record["image"]);
        let sentence = sentences[row]["sentence"].as_str().unwrap();
        assert!(record["captions"].as_array().unwrap().iter().any(|caption| caption == sentence));
        let ((shape, all), (_, alone)) =
            (npy(&scene.read("out/sentences.npy")), npy(&scene.read(&format!("{out}/sentences.npy"))));
        let columns = shape[1];
        assert!(alone[..columns] == all[row * columns..(row + 1) * columns], "sentence {row}");
    }
}

#[test]
fn one_kind_alone_other_formats_and_a_model() {
    let scene = Scene::with_model();
    let image = format!("--image-encoder {}", fixtures("backbones/efficientnet-lite0").display());
    let text = format!("--text-encoder {}", fixtures("backbones/static-minilm").display());
    embed(&scene, &format!("{image} --data images.txt --output images")).ok();
    embed(&scene, &format!("{text} --data sentences.txt --output sentences")).ok();
    assert_eq!(npy(&scene.read("images/images.npy")).0, [30, 1280]);
    assert!(!scene.path("images/sentences.npy").exists());
    let sentences = records(&scene.read("sentences/sentences.jsonl"));
    assert_eq!(sentences[4]["sentence"], scene.lines("sentences.txt")[4]);

    embed(&scene, "--model model --data test.jsonl --output model-out").ok();
    let (shape, values) = npy(&scene.read("model-out/images.npy"));
    for row in values.chunks_exact(shape[1]) {
        let length: f32 = row.iter().map(|value| value * value).sum();
        assert!((length - 1.0).abs() < 1e-4, "{length}");
    }
    embed(&scene, "--model model --only sentences --data test.jsonl --output words --normalise").ok();
    assert!(!scene.path("words/images.npy").exists());
    assert_eq!(scene.read("words/sentences.npy"), scene.read("model-out/sentences.npy"));

    // Half precision, in a safetensors file: header, then both tensors.
    embed(&scene, "--model model --data test.jsonl --output half --format safetensors --precision f16").ok();
    let bytes = scene.read("half/embeddings.safetensors");
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let of = |name: &str| {
        let tensor = &header[name];
        assert_eq!(tensor["dtype"], "F16");
        let offsets: Vec<usize> = serde_json::from_value(tensor["data_offsets"].clone()).unwrap();
        bytes[8 + length..][offsets[0]..offsets[1]].to_vec()
    };
    assert_eq!(header["images"]["shape"], serde_json::json!(shape));
    let half: Vec<u8> = values.iter().flat_map(|value| half::f16::from_f32(*value).to_le_bytes()).collect();
    assert!(of("images") == half);
    assert_eq!(8 + length + of("images").len() + of("sentences").len(), bytes.len());
}

/// The ids of a data set of features, and the values of each of its images.
fn read_back(path: &Path) -> Vec<(String, Vec<f32>)> {
    let data = aeir_data::Dataset::open(path, &aeir_data::ReadOptions::default()).unwrap();
    let row = |item: &aeir_data::Item| {
        let row = item.image.as_ref().unwrap().features().unwrap();
        let mut values = vec![0.0; row.features.image_len()];
        row.features.read_into(row.image, &mut values).unwrap();
        (item.id.clone(), values)
    };
    data.items.iter().map(row).collect()
}

#[test]
fn every_format_is_read_back() {
    let scene = Scene::with_model();
    let names = |folder: &str| -> Vec<String> {
        content(&scene.path(folder)).into_iter().map(|(name, _)| name).collect()
    };
    embed(&scene, "--model model --data test.jsonl --output folder --format npy").ok();
    let expected = read_back(&scene.path("folder/images.npy"));
    assert_eq!(expected.len(), 20);
    let first: Value = serde_json::from_str(&scene.lines("test.jsonl")[0]).unwrap();
    assert_eq!(first["image"], expected[0].0);
    for suffix in ["npy", "safetensors", "parquet"] {
        let out = format!("{suffix}/vectors.{suffix}");
        let told =
            embed(&scene, &format!("--model model --data test.jsonl --output {out} --json")).ok().json();
        assert_eq!(told["images"]["file"], format!("vectors.{suffix}"));
        assert!(read_back(&scene.path(&out)) == expected, "{out}");
        let again = embed(&scene, &format!("--model model --data test.jsonl --output {out}")).ok();
        assert!(again.stderr.contains("nothing to do"), "{again:?}");
        // As a user sees it.
        scene.run(&format!("data check {out} --json")).ok();

        let folder = format!("{suffix}-folder");
        embed(&scene, &format!("--model model --data test.jsonl --output {folder} --format {suffix}")).ok();
        let file =
            if suffix == "safetensors" { "embeddings.safetensors" } else { &format!("images.{suffix}") };
        assert!(read_back(&scene.path(&format!("{folder}/{file}"))) == expected, "{folder}");
    }
    assert_eq!(
        names("npy"),
        [
            "vectors.jsonl",
            "vectors.npy",
            "vectors.npy.manifest.json",
            "vectors.npy.skipped.jsonl",
            "vectors.sentences.jsonl",
            "vectors.sentences.npy"
        ]
    );
    assert_eq!(
        names("parquet"),
        [
            "vectors.parquet",
            "vectors.parquet.manifest.json",
            "vectors.parquet.skipped.jsonl",
            "vectors.sentences.parquet"
        ]
    );
    assert_eq!(
        names("parquet-folder"),
        ["images.parquet", "manifest.json", "sentences.parquet", "skipped.jsonl"]
    );
    let sentences =
        aeir_data::Dataset::open(&scene.path("parquet-folder/sentences.parquet"), &Default::default())
            .unwrap();
    assert_eq!((sentences.sentence_count(), sentences.image_count()), (20, 0));

    // Half precision, and one kind alone under the file's own name.
    let flags = "--model model --only sentences --data test.jsonl --precision f16 --output";
    for suffix in ["npy", "parquet"] {
        embed(&scene, &format!("{flags} half/words.{suffix}")).ok();
    }
    assert!(scene.path("half/words.parquet").exists() && !scene.path("half/words.sentences.npy").exists());
    let rows = read_back(&scene.path("half/words.npy"));
    assert!(rows.iter().flat_map(|(_, row)| row).all(|value| half::f16::from_f32(*value).to_f32() == *value));

    let refused = embed(&scene, "--model model --data test.jsonl --output x.npy --format parquet").failure();
    insta::assert_snapshot!(refused, @r"
    exit 2
    error: `x.npy` is not the name of a parquet file

    hint: leave out --format: the suffix says it; or name a folder
    ");
    scene.write("taken.npy", "");
    let refused = embed(&scene, "--model model --data test.jsonl --output taken.npy").failure();
    assert!(refused.contains("`taken.npy` holds other things"), "{refused}");
    assert_eq!(scene.read("taken.npy"), b"");
}

#[test]
fn region_features_are_embedded_by_a_model_of_them() {
    let scene = Scene::new();
    crate::copy_folder(&fixtures("formats/scan"), &scene.path("scan"));
    let train = "train --source scan --target-images scan/train_ims.npy --target-sentences scan/train_caps.txt \
                 --text-encoder words --epochs 1 --batch-size 4 -o model";
    scene.run(train).ok();
    embed(&scene, "--model model --data scan --split test --output whole").ok();
    let whole = read_back(&scene.path("whole/images.npy"));
    assert_eq!((whole.len(), records(&scene.read("whole/sentences.jsonl")).len()), (6, 30));
    // One at a time, and in parts.
    embed(&scene, "--model model --data scan/test_ims.npy --batch-size 1 --only images --output alone.npy")
        .ok();
    for ((_, alone), (_, whole)) in read_back(&scene.path("alone.npy")).iter().zip(&whole) {
        let length: f32 = alone.iter().map(|value| value * value).sum();
        assert!((length - 1.0).abs() < 1e-4, "{length}");
        assert!(alone.iter().zip(whole).all(|(a, b)| (a - b).abs() < 1e-5));
    }
    embed(&scene, "--model model --data scan --split test --shard 2/3 --output part").ok();
    assert_eq!(records(&scene.read("part/images.jsonl")), records(&scene.read("whole/images.jsonl"))[2..4]);
    let refused = embed(&scene, "--model model --data images.txt --output files").failure();
    assert!(
        refused.contains("exit 3") && refused.contains("a model of region features embeds no image files"),
        "{refused}"
    );
}

#[test]
fn the_shards_one_after_the_other_are_the_whole() {
    let scene = Scene::new();
    // A broken image in the middle of the second of three parts.
    let mut lines = scene.lines("test.jsonl");
    lines.insert(10, r#"{"image": "gone.png", "captions": ["nobody has seen it"]}"#.to_owned());
    lines.insert(3, r#"{"image": "gone.png", "captions": [" "]}"#.to_owned());
    scene.write_lines("all.jsonl", &lines);
    let flags = format!("{} --data all.jsonl --batch-size 4", encoders());
    embed(&scene, &format!("{flags} --output whole")).ok();
    for number in 1..=3 {
        embed(&scene, &format!("{flags} --output part-{number} --shard {number}/3")).ok();
    }
    let joined = |file: &str| -> Vec<u8> {
        (1..=3).flat_map(|number| scene.read(&format!("part-{number}/{file}"))).collect()
    };
    for file in ["images.jsonl", "sentences.jsonl", "skipped.jsonl"] {
        assert_eq!(joined(file), scene.read(&format!("whole/{file}")), "{file}");
    }
    // A blank sentence, the item that it leaves without any, a missing file.
    assert_eq!(records(&scene.read("whole/skipped.jsonl")).len(), 3);
    for file in ["images.npy", "sentences.npy"] {
        let parts: Vec<f32> =
            (1..=3).flat_map(|number| npy(&scene.read(&format!("part-{number}/{file}"))).1).collect();
        assert!(parts == npy(&scene.read(&format!("whole/{file}"))).1, "{file}");
    }
    // More parts than items: one of them is empty, and is no failure.
    embed(&scene, &format!("{flags} --output empty --shard 1/1000")).ok();
    assert_eq!(records(&scene.read("empty/images.jsonl")).len(), 0);
    assert_eq!(fs::metadata(scene.path("empty/images.npy")).unwrap().len(), 128);
}

#[test]
fn a_killed_run_goes_on_to_the_same_bytes() {
    let scene = Scene::new();
    // Enough to be killed in the middle of.
    let mut lines = scene.lines("source.jsonl");
    lines.insert(5, r#"{"image": "gone.png", "captions": ["nobody has seen it"]}"#.to_owned());
    let images = lines.clone().into_iter().chain(scene.lines("test.jsonl")).collect::<Vec<_>>();
    scene.write_lines("all.jsonl", &images);
    let flags = format!("embed {} --data all.jsonl --batch-size 1 --workers 1 --output", encoders());
    scene.run(&format!("{flags} whole")).ok();
    let whole = content(&scene.path("whole"));
    let mut in_the_middle = 0;
    for (number, rows) in [0, 5, 20, 40].into_iter().enumerate() {
        let out = format!("killed-{number}");
        let mut command = program();
        command.args(flags.split_whitespace()).arg(&out).current_dir(scene.folder.path());
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let started = Instant::now();
        let marked = || -> usize {
            let mark =
                fs::read(scene.path(&format!("{out}/.unfinished/images.mark.json"))).unwrap_or_default();
            serde_json::from_slice::<Value>(&mark)
                .map_or(0, |mark| mark["done"].as_u64().unwrap_or(0) as usize)
        };
        let begun = || scene.path(&format!("{out}/.unfinished/identity.json")).exists();
        while !(begun() && marked() >= rows) && child.try_wait().unwrap().is_none() {
            assert!(started.elapsed() < Duration::from_secs(60), "image {rows} never came");
            std::thread::sleep(Duration::from_millis(1));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let unfinished = !scene.path(&format!("{out}/manifest.json")).exists();
        in_the_middle += usize::from(unfinished && marked() > 0);
        if unfinished {
            let other = scene.run(&format!("{flags} {out} --normalise"));
            assert_eq!(other.code, Some(2), "{other:?}");
            assert!(other.stderr.contains("unfinished embeddings of other settings"), "{other:?}");
        }
        let resumed = scene.run(&format!("{flags} {out}")).ok();
        assert!(!unfinished || marked() == 0, "{resumed:?}");
        assert!(content(&scene.path(&out)) == whole, "killed after image {rows}");
    }
    assert!(in_the_middle >= 2, "killed in the middle {in_the_middle} times");

    // Killed between the arrays and the manifest.
    let again = scene.run(&format!("{flags} whole")).ok();
    assert!(again.stderr.contains("nothing to do"), "{again:?}");
}

#[test]
fn killed_while_the_arrays_are_put_in_place() {
    let scene = Scene::new();
    let flags = format!("embed {} --data test.jsonl --output", encoders());
    scene.run(&format!("{flags} whole")).ok();
    let mut command = program();
    command.args(flags.split_whitespace()).arg("killed").current_dir(scene.folder.path());
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    while !scene.path("killed/.unfinished/images.rows").exists() && child.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    if scene.path("killed/.unfinished/images.rows").exists() {
        fs::rename(scene.path("killed/.unfinished/images.rows"), scene.path("killed/images.npy")).unwrap();
    }
    scene.run(&format!("{flags} killed")).ok();
    assert!(content(&scene.path("killed")) == content(&scene.path("whole")));
}

#[test]
fn embeddings_are_never_mixed() {
    let scene = Scene::with_model();
    embed(&scene, "--model model --data test.jsonl --output out").ok();
    let before = content(&scene.path("out"));
    let refused = |flags: &str| {
        let told = embed(&scene, flags).failure();
        assert!(content(&scene.path("out")) == before);
        told
    };
    insta::assert_snapshot!(refused(&format!("{} --data test.jsonl --output out", encoders())), @r"
    exit 2
    error: `out` holds the embeddings of another encoder

    hint: name another --output: embeddings of different encoders or data are never mixed
    ");
    insta::assert_snapshot!(refused("--model model --data source.jsonl --output out"), @r"
    exit 2
    error: `out` holds the embeddings of other data

    hint: name another --output: embeddings of different encoders or data are never mixed
    ");
    insta::assert_snapshot!(refused("--model model --data test.jsonl --output out --shard 1/2"), @r"
    exit 2
    error: `out` holds the embeddings of other data

    hint: name another --output: embeddings of different encoders or data are never mixed
    ");
    insta::assert_snapshot!(refused("--model model --data test.jsonl --output model"), @r"
    exit 2
    error: `model` holds other things

    hint: name another --output: embeddings of different encoders or data are never mixed
    ");
    insta::assert_snapshot!(refused("--model model --data test.jsonl --output test.jsonl"), @r"
    exit 2
    error: `test.jsonl` is a file, not a folder

    hint: name another --output: embeddings of different encoders or data are never mixed
    ");
    insta::assert_snapshot!(refused("--model model --data sentences.txt --only images --output new"), @r"
    exit 3
    warning: 30 items were skipped; all of them in `new/skipped.jsonl`
    warning:   `a man singing, people, music`: cannot read: No such file or directory (os error 2)
    warning:   `flying wasp, insect, animal`: cannot read: No such file or directory (os error 2)
    warning:   `handstand, dancing, human, brisgeek, gymnastic, people`: cannot read: No such file or directory (os error 2)
    warning:   `paint brush, education, tool, work`: cannot read: No such file or directory (os error 2)
    warning:   `stylized wolf head, mammal, animal`: cannot read: No such file or directory (os error 2)
    warning:   and 25 more
    error: `sentences.txt`: nothing could be embedded

    hint: `new/skipped.jsonl` says why
    ");
    insta::assert_snapshot!(refused(&format!("{} --data sentences.txt --output new", encoders())), @r"
    exit 3
    error: `sentences.txt` has no images to embed

    hint: leave out --image-encoder
    ");
    let usage = embed(&scene, "--data test.jsonl --output new").failure();
    assert!(usage.contains("<--model <RUN>|--image-encoder <DIR|ID>|--text-encoder <DIR|ID>>"), "{usage}");
    let usage = embed(&scene, "--model model --data test.jsonl --output new --shard 3/2").failure();
    assert!(usage.contains("expected I/N with I from 1 to N, such as 2/8"), "{usage}");
}

/// A folder as people have it: what can be used is, everything else is listed with its reason.
#[test]
fn one_bad_file_kills_nothing() {
    let scene = Scene::new();
    let good = fs::read(odd_image("baseline.jpg")).unwrap();
    scene.write("photos/good.jpg", &good);
    scene.write("photos/with spaces/日本 été.jpg", &good);
    scene.write("photos/a jpeg.png", &good);
    scene.write("photos/cut.jpg", &good[..good.len() - 40]);
    scene.write("photos/empty.jpg", "");
    scene.write("photos/a page.png", "<html>not found</html>");
    for name in ["one.png", "animated.gif", "bomb.png", "bomb.gif", "exif6.jpg", "grey16.png"] {
        fs::copy(odd_image(name), scene.path(&format!("photos/{name}"))).unwrap();
    }
    scene.write("photos/.hidden.jpg", "");
    #[cfg(unix)]
    {
        use std::os::unix::fs::{PermissionsExt, symlink};
        symlink("..", scene.path("photos/with spaces/up")).unwrap();
        symlink("loop.jpg", scene.path("photos/loop.jpg")).unwrap();
        symlink("nowhere.jpg", scene.path("photos/lost.jpg")).unwrap();
        scene.write("photos/locked.jpg", &good);
        fs::set_permissions(scene.path("photos/locked.jpg"), fs::Permissions::from_mode(0o000)).unwrap();
    }
    let image = format!("--image-encoder {}", fixtures("backbones/efficientnet-lite0").display());
    let outcome = embed(&scene, &format!("{image} --data photos --output out")).ok();
    let ids: Vec<String> = records(&scene.read("out/images.jsonl"))
        .iter()
        .map(|line| line["id"].as_str().unwrap().to_owned())
        .filter(|id| id != "locked.jpg")
        .collect();
    let used = [
        "a jpeg.png",
        "animated.gif",
        "exif6.jpg",
        "good.jpg",
        "grey16.png",
        "one.png",
        "with spaces/日本 été.jpg",
    ];
    assert_eq!(ids, used);
    let reasons: String = records(&scene.read("out/skipped.jsonl"))
        .iter()
        .filter(|line| !line["item"].as_str().unwrap().ends_with("locked.jpg"))
        .map(|line| format!("{}: {}\n", line["item"].as_str().unwrap(), line["reason"].as_str().unwrap()))
        .collect();
    insta::assert_snapshot!(reasons, @r"
    photos/a page.png: no jpeg, png, webp, gif or bmp image
    photos/bomb.gif: 65535x65535, at most 50000000 pixels and 65535 a side allowed
    photos/bomb.png: 60000x60000, at most 50000000 pixels and 65535 a side allowed
    photos/cut.jpg: the image is cut short (616 bytes)
    photos/empty.jpg: no bytes
    photos/loop.jpg: cannot read: Too many levels of symbolic links (os error 40)
    photos/lost.jpg: cannot read: No such file or directory (os error 2)
    ");
    assert!(outcome.stderr.contains("items were skipped; all of them in `out/skipped.jsonl`"), "{outcome:?}");
    // Whoever may read everything, such as root, reads that one too.
    let locked = fs::read(scene.path("photos/locked.jpg")).is_ok();
    let text = String::from_utf8(scene.read("out/skipped.jsonl")).unwrap();
    assert_eq!(text.contains("locked.jpg"), !locked);

    // Tighter limits, by flag.
    let told = embed(&scene, &format!("{image} --data photos --output small --max-pixels 10")).ok();
    assert_eq!(records(&scene.read("small/images.jsonl")).len(), 2, "{told:?}");
    let text = String::from_utf8(scene.read("small/skipped.jsonl")).unwrap();
    assert!(text.contains("16x12, at most 10 pixels"), "{text}");
    let told = embed(&scene, &format!("{image} --data photos --output none --max-image-bytes 3")).failure();
    insta::assert_snapshot!(told.lines().filter(|line| !line.starts_with("warning")).collect::<Vec<_>>().join("\n"), @"
    exit 3
    error: `photos`: nothing could be embedded

    hint: `none/skipped.jsonl` says why
    ");
    let text = String::from_utf8(scene.read("none/skipped.jsonl")).unwrap();
    assert!(text.contains("at most 3"), "{text}");
    // And once there is something, the same command works.
    embed(&scene, &format!("{image} --data photos --output none")).ok();
}
