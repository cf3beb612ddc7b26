//! Caption files.

use aeir_data::{DataError, Dataset, ReadOptions, Skipped, Split, write_skipped};
use proptest::prelude::*;
use tempfile::tempdir;

use crate::write;

fn read_captions(path: &std::path::Path) -> Result<Dataset, DataError> {
    Dataset::open(path, &ReadOptions::default())
}

#[test]
fn reads_what_the_format_allows() {
    let folder = tempdir().unwrap();
    let text = "\u{feff}{\"image\": \"a.jpg\", \"captions\": [\" one \", \"two\"], \"split\": \"train\"}\r\n\
        \r\n  \n\
        {\"image\": \"/abs/b.jpg\", \"captions\": [\"drei – 三\"], \"split\": \"dev\", \"id\": 7}\n\
        {\"image\": \"sub/c.jpg\", \"captions\": [\"x\"], \"split\": null}\n\
        {\"image\": \"old\", \"image\": \"d.jpg\", \"captions\": [\"y\"], \"split\": \"test\"}\n\
        {\"captions\": [\"z\"], \"split\": \"validation\", \"image\": \"e.jpg\"}";
    let path = write(folder.path(), "captions.jsonl", text);
    let file = read_captions(&path).unwrap();
    let images: Vec<_> =
        file.items.iter().map(|item| item.image.clone().unwrap().path().to_path_buf()).collect();
    let base = folder.path();
    assert_eq!(
        images,
        [
            base.join("a.jpg"),
            "/abs/b.jpg".into(),
            base.join("sub/c.jpg"),
            base.join("d.jpg"),
            base.join("e.jpg")
        ]
    );
    let splits: Vec<_> = file.items.iter().map(|item| item.split).collect();
    assert_eq!(
        splits,
        [Some(Split::Train), Some(Split::Validation), None, Some(Split::Test), Some(Split::Validation)]
    );
    let lines: Vec<_> = file.items.iter().map(|item| item.line.unwrap()).collect();
    assert_eq!(lines, [1, 4, 5, 6, 7]);
    assert_eq!(file.items[0].sentences, ["one", "two"]);
    assert_eq!(file.items[1].sentences, ["drei – 三"]);
    assert!(file.skipped.is_empty());
}

#[test]
fn a_relative_path_without_a_folder_stays_relative() {
    // `captions.jsonl` alone has the empty path for a parent.
    let error = read_captions("no-such-file.jsonl".as_ref()).unwrap_err();
    assert!(matches!(&error, DataError::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound));
    assert_eq!(error.path().unwrap(), "no-such-file.jsonl");
    assert!(error.with_causes().contains("cannot read `no-such-file.jsonl`: "), "{}", error.with_causes());
}

#[test]
fn lines_of_the_same_image_and_split_are_one_item() {
    let folder = tempdir().unwrap();
    let text = r#"{"image": "a.jpg", "captions": ["one"]}
{"image": "b.jpg", "captions": ["b"], "split": "test"}
{"image": "./a.jpg", "captions": ["two"], "split": "train"}
{"image": "a.jpg", "captions": ["three"], "split": "test"}"#;
    let file = read_captions(&write(folder.path(), "c.jsonl", text)).unwrap();
    assert_eq!(file.items.len(), 3);
    assert_eq!(file.items[0].sentences, ["one", "two"]);
    assert_eq!(file.items[0].split, Some(Split::Train));
    assert_eq!(file.images_in_several_splits(), [&folder.path().join("a.jpg").into()]);
}

#[test]
fn unusable_captions_are_left_out_and_listed() {
    let folder = tempdir().unwrap();
    let long = "é".repeat(10_001);
    let fits = "é".repeat(10_000);
    let text = format!(
        "{{\"image\": \"a.jpg\", \"captions\": [\"\", \"kept\", \" \\t\"]}}\n\
         {{\"image\": \"b.jpg\", \"captions\": [\"{long}\"]}}\n\
         {{\"image\": \"c.jpg\", \"captions\": []}}\n\
         {{\"image\": \"\", \"captions\": [\"x\"]}}\n\
         {{\"image\": \"d.jpg\", \"captions\": [\"{fits}\"]}}\n"
    );
    let file = read_captions(&write(folder.path(), "c.jsonl", text)).unwrap();
    assert_eq!(file.items.len(), 2);
    assert_eq!(file.items[0].sentences, ["kept"]);
    assert_eq!(file.items[1].line, Some(5));
    let found: Vec<_> =
        file.skipped.iter().map(|skipped| (skipped.line.unwrap(), skipped.reason.as_str())).collect();
    assert_eq!(
        found,
        [
            (1, "empty caption"),
            (1, "empty caption"),
            (2, "longer than 10000 characters"),
            (2, "no usable caption"),
            (3, "no usable caption"),
            (4, "the image path is empty"),
        ]
    );
    assert!(file.skipped.iter().all(|skipped| skipped.item.chars().count() <= 81));

    let report = folder.path().join("skipped.jsonl");
    write_skipped(&report, &file.skipped).unwrap();
    let read: Vec<Skipped> = std::fs::read_to_string(&report)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(read, file.skipped);
    // Nothing of the temporary file is left.
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
}

#[cfg(unix)]
#[test]
fn a_report_takes_names_that_are_not_utf8() {
    use std::os::unix::ffi::OsStrExt;
    let folder = tempdir().unwrap();
    let report = folder.path().join("skipped.jsonl");
    let file = std::path::PathBuf::from(std::ffi::OsStr::from_bytes(b"a\xff.txt"));
    let skipped = Skipped { item: "x".into(), line: Some(1), file: Some(file), reason: "y".into() };
    write_skipped(&report, &[skipped]).unwrap();
    assert!(std::fs::read_to_string(report).unwrap().contains("a\u{fffd}.txt"));
}

#[test]
fn bad_lines_are_errors_with_their_place() {
    let folder = tempdir().unwrap();
    let good = "{\"image\": \"a.jpg\", \"captions\": [\"x\"]}\n";
    let bad: [&[u8]; 12] = [
        b"{",
        b"[]",
        b"7",
        b"{}",
        b"{\"image\": \"a.jpg\"}",
        b"{\"captions\": [\"x\"]}",
        b"{\"image\": 7, \"captions\": [\"x\"]}",
        b"{\"image\": \"a.jpg\", \"captions\": \"x\"}",
        b"{\"image\": \"a.jpg\", \"captions\": [7]}",
        b"{\"image\": \"a.jpg\", \"captions\": [\"x\"], \"split\": \"Tset\"}",
        b"{\"image\": \"a.jpg\", \"captions\": [\"x\"]} trailing",
        b"{\"image\": \"a.jpg\", \"captions\": [\"\\ud800\"]}",
    ];
    for line in bad {
        let path = write(folder.path(), "c.jsonl", [good.as_bytes(), b"\n", line].concat());
        let error = read_captions(&path).unwrap_err();
        assert!(matches!(error, DataError::CaptionRecord { line: 3, .. }), "{error:?}");
        assert_eq!((error.line(), error.path()), (Some(3), Some(path.as_path())));
        let told = error.to_string();
        assert!(told.contains("line 3: expected ") && !told.contains("line 1"), "{told}");
    }
    let path = write(
        folder.path(),
        "c.jsonl",
        [good.as_bytes(), b"{\"image\": \"\xff\", \"captions\": [\"x\"]}"].concat(),
    );
    assert!(matches!(read_captions(&path), Err(DataError::NotUtf8 { line: 2, .. })));
    let nested = format!("{good}{{\"image\": {}", "[".repeat(100_000));
    assert!(matches!(
        read_captions(&write(folder.path(), "c.jsonl", nested)),
        Err(DataError::CaptionRecord { line: 2, .. })
    ));
    let endless = format!("{good}{}", "x".repeat(17 * 1024 * 1024));
    assert!(matches!(
        read_captions(&write(folder.path(), "c.jsonl", endless)),
        Err(DataError::LineTooLong { line: 2, .. })
    ));
}

#[test]
fn files_without_content_have_their_own_errors() {
    let folder = tempdir().unwrap();
    assert!(matches!(read_captions(&write(folder.path(), "a.jsonl", "")), Err(DataError::EmptyFile { .. })));
    let told = read_captions(folder.path()).unwrap_err().to_string();
    assert!(told.contains("no data set found; looked for "), "{told}");
    for text in ["\n\n", "\u{feff}", " \r\n"] {
        let result = read_captions(&write(folder.path(), "b.jsonl", text));
        assert!(matches!(result, Err(DataError::NothingUsable { skipped: 0, .. })), "{text:?}");
    }
    let nothing = "{\"image\": \"a.jpg\", \"captions\": [\"\"]}";
    let result = read_captions(&write(folder.path(), "b.jsonl", nothing));
    assert!(matches!(result, Err(DataError::NothingUsable { skipped: 2, .. })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_was_written_is_read(records in prop::collection::vec(
        ("[a-z]{1,12}", prop::collection::vec("\\PC{0,20}", 0..4), 0..4_u8), 1..20)
    ) {
        let folder = tempdir().unwrap();
        let mut text = String::new();
        for (number, (name, captions, split)) in records.iter().enumerate() {
            let mut record = serde_json::json!({"image": format!("{number}-{name}.png"), "captions": captions});
            if let Some(split) = [None, Some("train"), Some("val"), Some("test")][*split as usize] {
                record["split"] = split.into();
            }
            text.push_str(&record.to_string());
            text.push_str(if number % 2 == 0 { "\n" } else { "\r\n" });
        }
        let expected: Vec<Vec<String>> = records.iter()
            .map(|(_, captions, _)| {
                captions.iter().map(|text| text.trim().to_owned()).filter(|text| !text.is_empty()).collect()
            })
            .filter(|captions: &Vec<String>| !captions.is_empty())
            .collect();
        match read_captions(&write(folder.path(), "c.jsonl", text)) {
            Ok(file) => {
                let found: Vec<_> = file.items.into_iter().map(|item| item.sentences).collect();
                prop_assert_eq!(found, expected);
            }
            Err(error) => {
                let nothing = matches!(error, DataError::NothingUsable { .. });
                prop_assert!(nothing && expected.is_empty());
            }
        }
    }

    #[test]
    fn mutated_files_are_read_or_refused(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        end in any::<prop::sample::Index>(),
    ) {
        let mut bytes = br#"{"image": "a.jpg", "captions": ["one", "two"], "split": "train"}
{"image": "b.jpg", "captions": ["three"], "split": "test"}
"#.to_vec();
        for (place, byte) in changes {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        bytes.truncate(end.index(bytes.len()) + 1);
        let folder = tempdir().unwrap();
        let path = write(folder.path(), "c.jsonl", &bytes);
        // Any of the readers may refuse it; none may fall over.
        let _ = read_captions(&path);
        let _ = aeir_data::TestPairs::read(&path, None);
        let _ = aeir_data::TargetImages::read(&path);
        let _ = aeir_data::TargetSentences::read(&path);
    }
}
