//! Files that are missing, empty, of another kind, or hold nothing usable.

use std::fs;

use crate::{BOTH, SHORT, Scene, odd_image};

#[test]
fn sources() {
    let scene = Scene::new();
    let train = |name: &str, content: Option<&[u8]>| {
        if let Some(content) = content {
            scene.write(name, content);
        }
        let told = scene.run(&SHORT.replace("source.jsonl", name)).failure();
        assert!(told.starts_with("exit 3"), "{told}");
        assert!(!scene.path("run/manifest.json").exists());
        told
    };
    let good = br#"{"image": "a.png", "captions": ["a"]}"#;
    let after = |line: &[u8]| [good.as_slice(), b"\n", line, b"\n"].concat();
    insta::assert_snapshot!(train("gone.jsonl", None), @r"
    exit 3
    error: cannot read `gone.jsonl`: No such file or directory (os error 2)
    ");
    insta::assert_snapshot!(train("empty.jsonl", Some(b"")), @r"
    exit 3
    error: `empty.jsonl` is empty: expected an image with captions a line
    ");
    insta::assert_snapshot!(train("blank.jsonl", Some(b"\n\n")), @r"
    exit 3
    error: `blank.jsonl` has no usable image with captions
    ");
    insta::assert_snapshot!(train("sentences.txt", None), @r#"
    exit 3
    error: `sentences.txt`: expected images with their sentences, got a list of sentences
    "#);
    insta::assert_snapshot!(train("s.jsonl", Some(&after(b"{\"image\": "))), @r#"
    exit 3
    error: `s.jsonl` line 2: expected {"image": path, "captions": [..], "split"?: ..}: EOF while parsing a value at column 10
    "#);
    insta::assert_snapshot!(train("s.jsonl", Some(&after(br#"{"image": "b.png"}"#))), @r#"
    exit 3
    error: `s.jsonl` line 2: expected {"image": path, "captions": [..], "split"?: ..}: missing field `captions`
    "#);
    insta::assert_snapshot!(train("s.jsonl", Some(&after(br#"{"image": "b.png", "captions": "b"}"#))), @r#"
    exit 3
    error: `s.jsonl` line 2: expected {"image": path, "captions": [..], "split"?: ..}: invalid type: string "b", expected a sequence
    "#);
    insta::assert_snapshot!(
        train("s.jsonl", Some(&after(br#"{"image": "b.png", "captions": ["b"], "split": "tset"}"#))), @r#"
    exit 3
    error: `s.jsonl` line 2: expected {"image": path, "captions": [..], "split"?: ..}: unknown variant `tset`, expected one of `train`, `dev`, `val`, `validation`, `test`
    "#
    );
    insta::assert_snapshot!(train("s.jsonl", Some(&after(b"{\"image\": \"\xff.png\", \"captions\": [\"b\"]}"))), @r"
    exit 3
    error: `s.jsonl` line 2: not UTF-8
    ");
    insta::assert_snapshot!(train("s.jsonl", Some(b"\xff\xfe{\0\"\0")), @r"
    exit 3
    error: `s.jsonl`: expected UTF-8 text, got UTF-16 text
    ");
    insta::assert_snapshot!(train("s.jsonl", Some(br#"{"image": "a.png", "captions": []}"#)), @r"
    exit 3
    error: `s.jsonl` has no usable image with captions (1 skipped)
    ");
    insta::assert_snapshot!(train("s.jsonl", Some(br#"{"image": "a.png", "captions": ["a"], "split": "test"}"#)), @r"
    exit 3
    error: `s.jsonl` has no usable image with captions in the training split (1 skipped)
    ");
    insta::assert_snapshot!(train("s.jsonl", Some(good)), @r"
    exit 3
    error: s images: expected at least one usable image, got none; the first of 1: `a.png`: cannot read: No such file or directory (os error 2)
    ");
    let one = scene.lines("source.jsonl").remove(0);
    insta::assert_snapshot!(train("one.jsonl", Some(one.as_bytes())), @r"
    exit 3
    error: source pairs to train on: expected 2 or more, got 1
    ");
}

#[test]
fn targets() {
    let scene = Scene::new();
    scene.write("empty.txt", "");
    scene.write("blank.txt", "\n \n");
    scene.write_lines("broken.txt", &["gone.png", "empty.txt"]);
    fs::create_dir(scene.path("no-images")).unwrap();
    let train = |from: &str, to: &str| {
        let told = scene.run(&format!("train {} --epochs 1 --output run", BOTH.replace(from, to))).failure();
        assert!(told.starts_with("exit 3"), "{told}");
        assert!(!scene.path("run/manifest.json").exists());
        told
    };
    insta::assert_snapshot!(train("images.txt", "gone.txt"), @r"
    exit 3
    error: cannot read `gone.txt`: No such file or directory (os error 2)
    ");
    insta::assert_snapshot!(train("images.txt", "empty.txt"), @r"
    exit 3
    error: `empty.txt` is empty: expected an image path a line
    ");
    insta::assert_snapshot!(train("images.txt", "blank.txt"), @r"
    exit 3
    error: `blank.txt` has no usable image path
    ");
    insta::assert_snapshot!(train("images.txt", "no-images"), @r"
    exit 3
    error: `no-images` has no usable image path

    hint: a folder is searched, with its subfolders, for files that end in .jpg, .jpeg, .jpe, .jfif, .png, .webp, .gif, .bmp
    ");
    scene.write("one.png", fs::read(odd_image("one.png")).unwrap());
    insta::assert_snapshot!(train("images.txt", "one.png"), @r"
    exit 3
    error: `one.png`: expected a folder or a list with an image path a line, got an image
    ");
    insta::assert_snapshot!(train("sentences.txt", "one.png"), @r"
    exit 3
    error: `one.png`: expected a sentence a line, got an image
    ");
    insta::assert_snapshot!(train("images.txt", "broken.txt"), @r"
    exit 3
    error: target images: expected at least one usable image, got none; the first of 2: `gone.png`: cannot read: No such file or directory (os error 2)
    ");
    insta::assert_snapshot!(train("sentences.txt", "gone.txt"), @r"
    exit 3
    error: cannot read `gone.txt`: No such file or directory (os error 2)
    ");
    insta::assert_snapshot!(train("sentences.txt", "blank.txt"), @r"
    exit 3
    error: `blank.txt` has no usable sentence (2 skipped)
    ");
    insta::assert_snapshot!(train("sentences.txt", "no-images"), @r"
    exit 3
    error: `no-images`: no data set found; looked for train_ims.npy (or dev_, test_), dataset*.json, captions_*.json, *.parquet, *.tar, captions.jsonl, and images (files that end in .jpg, .jpeg, .jpe, .jfif, .png, .webp, .gif, .bmp)
    ");
}

#[test]
fn pairs_to_score() {
    let scene = Scene::with_model();
    let eval = |arguments: &str| scene.run(&format!("eval --model model {arguments}")).failure();
    insta::assert_snapshot!(eval("--data gone.jsonl"), @r"
    exit 3
    error: cannot read `gone.jsonl`: No such file or directory (os error 2)
    ");
    insta::assert_snapshot!(eval("--data test.jsonl --split test"), @r"
    exit 3
    error: `test.jsonl` has no usable image with captions in the chosen split
    ");
    insta::assert_snapshot!(eval("--data images.txt"), @r#"
    exit 3
    error: `images.txt`: expected images with their sentences, got a list of images
    "#);
    scene.write("bad.jsonl", r#"{"image": "gone.png", "captions": ["a"]}"#);
    insta::assert_snapshot!(eval("--data bad.jsonl"), @r"
    exit 3
    error: test images: expected at least one usable image, got none; the first of 1: `gone.png`: cannot read: No such file or directory (os error 2)
    ");
    let marked = scene.run("eval --model model --data source.jsonl --json").ok();
    insta::assert_snapshot!(marked.stderr, @r"
    warning: `source.jsonl` marks no line as test: all 60 images are scored, those marked train or val among them
    ");
}

#[test]
fn images_to_index() {
    let scene = Scene::with_model();
    fs::create_dir(scene.path("no-images")).unwrap();
    scene.write("empty.txt", "");
    scene.write("bad.jsonl", r#"{"image": "gone.png", "captions": ["a"]}"#);
    let index = |images: &str| {
        let told = scene.run(&format!("index --model model --images {images} --output made")).failure();
        assert!(!scene.path("made").exists());
        told
    };
    insta::assert_snapshot!(index("gone"), @r"
    exit 3
    error: cannot read `gone`: No such file or directory (os error 2)
    ");
    insta::assert_snapshot!(index("no-images"), @r"
    exit 3
    error: `no-images` has no usable image path

    hint: a folder is searched, with its subfolders, for files that end in .jpg, .jpeg, .jpe, .jfif, .png, .webp, .gif, .bmp
    ");
    insta::assert_snapshot!(index("empty.txt"), @r"
    exit 3
    error: `empty.txt` is empty: expected an image path a line
    ");
    insta::assert_snapshot!(index("bad.jsonl"), @r"
    exit 3
    error: images: expected at least one usable image, got none; the first of 1: `gone.png`: cannot read: No such file or directory (os error 2)
    ");
    insta::assert_snapshot!(index("sentences.txt"), @r"
    exit 3
    error: images: expected at least one usable image, got none; the first of 30: `a man singing, people, music`: cannot read: No such file or directory (os error 2)
    ");
}

#[test]
fn queries() {
    let scene = Scene::with_model();
    scene.write("zero.png", "");
    scene.write("text.png", "no image");
    scene.write("cut.jpg", &fs::read(odd_image("baseline.jpg")).unwrap()[..300]);
    let search = |image: &str| scene.run(&format!("search --index index --image {image}")).failure();
    insta::assert_snapshot!(search("gone.png"), @r"
    exit 3
    error: cannot read `gone.png`: No such file or directory (os error 2)
    ");
    insta::assert_snapshot!(search("zero.png"), @r"
    exit 3
    error: `zero.png`: no bytes
    ");
    insta::assert_snapshot!(search("text.png"), @r"
    exit 3
    error: `text.png`: no jpeg, png, webp, gif or bmp image
    ");
    insta::assert_snapshot!(search("cut.jpg"), @r"
    exit 3
    error: `cut.jpg`: the image is cut short (300 bytes)
    ");
    insta::assert_snapshot!(search("."), @r"
    exit 3
    error: `.`: expected a file, got a folder
    ");
    insta::assert_snapshot!(search(&odd_image("bomb.png")), @r"
    exit 3
    error: `[REPOSITORY]/crates/aeir-data/tests/images/bomb.png`: 60000x60000, at most 50000000 pixels and 65535 a side allowed
    ");
    insta::assert_snapshot!(scene.run_all(&["search", "--index", "index", "  "]).failure(), @r#"
    exit 2
    error: the sentence is empty

    hint: say what the image shows, for instance "a red car"
    "#);
    for usable in ["cmyk.jpg", "animated.gif", "one.png"] {
        scene.run(&format!("search --index index --image {}", odd_image(usable))).ok();
    }
    let long = "word ".repeat(20_000);
    for sentence in ["🦄", "???", "\u{200b}", "a\nb", long.as_str()] {
        scene.run_all(&["search", "--index", "index", sentence]).ok();
    }
}
