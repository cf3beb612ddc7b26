//! Labels of target images: their two parts, and what can be wrong with a file of them.

use std::path::PathBuf;

use aeir_data::{DataError, LabelledPairs};

fn read(content: impl AsRef<[u8]>) -> Result<LabelledPairs, DataError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pairs.jsonl");
    std::fs::write(&path, content).unwrap();
    LabelledPairs::read(&path)
}

#[test]
fn the_two_parts_are_kept_apart() {
    let pairs = read(concat!(
        r#"{"image": "/1.jpg", "captions": ["one", "uno"], "split": "train"}"#,
        "\n\n",
        r#"{"image": "/2.jpg", "captions": ["two"], "split": "test"}"#,
        "\n",
        r#"{"image": "/3.jpg", "captions": [], "split": "test"}"#,
        "\n",
        r#"{"image": "/4.jpg", "captions": [], "split": "train"}"#,
    ))
    .unwrap();
    assert_eq!((pairs.learn().len(), pairs.measure().len()), (1, 1));
    assert_eq!(pairs.learn()[0].captions, ["one", "uno"]);
    assert_eq!(pairs.measure()[0].image, PathBuf::from("/2.jpg").into());
    assert!(pairs.is_divided());
    assert_eq!(pairs.unanswered(), 1, "an image to learn from that fits nothing is no query");
    let plain = read(r#"{"image": "/1.jpg", "captions": ["one"]}"#).unwrap();
    assert!(!plain.is_divided() && plain.learn().len() == 1 && plain.measure().is_empty());
}

#[test]
fn lines_that_repeat_or_add_are_joined() {
    let line = r#"{"image": "/1.jpg", "captions": ["one"]}"#;
    let more = r#"{"image": "/1.jpg", "captions": ["one", "uno"]}"#;
    let pairs = read(format!("{line}\n{line}\n{more}\n")).unwrap();
    assert_eq!(pairs.learn()[0].captions, ["one", "uno"]);
    assert!(pairs.notes()[0].contains("says: 1"), "{:?}", pairs.notes());
}

#[test]
fn lines_that_contradict_each_other_are_named() {
    let train = r#"{"image": "/1.jpg", "captions": ["one"], "split": "train"}"#;
    let told = |second: &str| read(format!("{train}\n{second}\n")).unwrap_err().to_string();
    let test = told(r#"{"image": "/1.jpg", "captions": ["one"], "split": "test"}"#);
    assert!(test.contains("lines 1 and 2") && test.contains("to measure with it"), "{test}");
    let none = told(r#"{"image": "/1.jpg", "captions": [], "split": "train"}"#);
    assert!(none.contains("none fits"), "{none}");
}

#[test]
fn what_is_no_file_of_labels_is_refused_with_its_line() {
    let good = r#"{"image": "/1.jpg", "captions": ["one"]}"#;
    for (content, part) in [
        (String::new(), "is empty"),
        ("\n \n".into(), "no usable labelled pair"),
        (format!("{good}\n{}", &good[..20]), "line 2"),
        (r#"{"image": "", "captions": ["one"]}"#.into(), "path is empty"),
        (r#"{"image": "/1.jpg", "captions": ["one"], "split": "val"}"#.into(), "`train` or `test`"),
        (r#"{"image": "/1.jpg", "captions": ["  "]}"#.into(), "no usable labelled pair (1 "),
        (r#"{"image": "/1.jpg", "captions": []}"#.into(), "no usable labelled pair"),
        (r#"{"image": "/1.jpg", "sentence": "one"}"#.into(), "missing field `captions`"),
    ] {
        let told = read(&content).unwrap_err().to_string();
        assert!(told.contains(part), "{content}: {told}");
    }
    let told = read([good.as_bytes(), b"\n\xff\xfe\n"].concat()).unwrap_err().to_string();
    assert!(told.contains("line 2: not UTF-8"), "{told}");
    assert!(matches!(LabelledPairs::read("/none/pairs.jsonl".as_ref()), Err(DataError::Io { .. })));
}
