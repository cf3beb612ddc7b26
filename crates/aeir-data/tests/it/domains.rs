//! Source, target and test domains.

use aeir_data::{
    AlignedTarget, DataError, Dataset, ImageSource, ParallelDomain, ReadOptions, Split, TargetImages,
    TargetSentences, TestPairs,
};
use tempfile::tempdir;

use crate::{images, write};

const MIXED: &str = r#"{"image": "a.jpg", "captions": ["a1", "a2"]}
{"image": "b.jpg", "captions": ["b"], "split": "val"}
{"image": "c.jpg", "captions": ["c1", "c2"], "split": "test"}
{"image": "d.jpg", "captions": ["d"], "split": "train"}"#;

fn names(images: &[ImageSource]) -> Vec<&str> {
    images.iter().map(|image| image.path().file_name().unwrap().to_str().unwrap()).collect()
}

fn files(images: &TargetImages) -> Vec<std::path::PathBuf> {
    images.images().iter().map(|image| image.file().unwrap().to_path_buf()).collect()
}

fn open(path: &std::path::Path) -> Result<Dataset, DataError> {
    Dataset::open(path, &ReadOptions::default())
}

#[test]
fn the_parallel_domain_has_no_test_item() {
    let folder = tempdir().unwrap();
    let path = write(folder.path(), "shop/captions.jsonl", MIXED);
    let domain = ParallelDomain::from_dataset(open(&path).unwrap()).unwrap();
    assert_eq!(domain.name, "shop");
    assert_eq!((domain.train.len(), domain.validation.len(), domain.test_left_out), (2, 1, 1));
    let all = domain.train.iter().chain(&domain.validation);
    assert!(
        names(&all.clone().map(|item| item.image.clone()).collect::<Vec<_>>()) == ["a.jpg", "d.jpg", "b.jpg"]
    );
    assert!(all.flat_map(|item| &item.captions).all(|caption| !caption.starts_with('c')));

    let only_test = write(folder.path(), "t.jsonl", r#"{"image": "a", "captions": ["x"], "split": "test"}"#);
    assert!(matches!(ParallelDomain::read(&only_test), Err(DataError::NothingUsable { .. })));
    assert!(matches!(AlignedTarget::read(&only_test), Err(DataError::NothingUsable { .. })));
    assert_eq!(AlignedTarget::read(&path).unwrap().items().len(), 2);
}

#[test]
fn test_pairs_choose_their_lines() {
    let folder = tempdir().unwrap();
    let mixed = write(folder.path(), "mixed.jsonl", MIXED);
    let pairs = TestPairs::read(&mixed, None).unwrap();
    assert_eq!(
        (names(pairs.images()), pairs.captions(), pairs.owners()),
        (vec!["c.jpg"], &["c1", "c2"].map(String::from)[..], &[0, 0][..])
    );
    assert!(pairs.notes().is_empty());
    let pairs = TestPairs::read(&mixed, Some(Split::Train)).unwrap();
    assert_eq!((names(pairs.images()), pairs.owners()), (vec!["a.jpg", "d.jpg"], &[0, 0, 1][..]));

    let unmarked = write(
        folder.path(),
        "u.jsonl",
        "{\"image\": \"a\", \"captions\": [\"x\"]}\n{\"image\": \"b\", \"captions\": [\"x\"]}",
    );
    let pairs = TestPairs::read(&unmarked, None).unwrap();
    assert_eq!((pairs.images().len(), pairs.notes().len()), (2, 0));
    assert!(matches!(TestPairs::read(&unmarked, Some(Split::Test)), Err(DataError::NothingUsable { .. })));

    let no_test = MIXED.replace("\"test\"", "\"train\"").replace("d.jpg", "b.jpg");
    let pairs = TestPairs::read(&write(folder.path(), "n.jsonl", no_test), None).unwrap();
    assert!(pairs.notes()[0].contains("marks no line as test"));
    // b.jpg stands in two splits and is one image.
    assert_eq!(names(pairs.images()), ["a.jpg", "b.jpg", "c.jpg"]);
    assert_eq!(pairs.captions(), ["a1", "a2", "b", "c1", "c2", "d"]);
    assert_eq!(pairs.owners(), [0, 0, 1, 2, 2, 1]);
}

#[test]
fn image_lists() {
    let folder = tempdir().unwrap();
    let text = "\u{feff}b.jpg\r\n\r\nsub/a.png\n./b.jpg\n/abs/c.gif \nwith space.jpg".to_owned().into_bytes();
    let path =
        write(folder.path(), "list.txt", [text, b"\n\xff.jpg\n".to_vec(), vec![b'x'; 40_000]].concat());
    let images = TargetImages::read(&path).unwrap();
    let base = folder.path();
    assert_eq!(
        files(&images),
        [base.join("b.jpg"), base.join("sub/a.png"), "/abs/c.gif".into(), base.join("with space.jpg")]
    );
    let skipped: Vec<_> =
        images.skipped().iter().map(|skipped| (skipped.line.unwrap(), skipped.reason.as_str())).collect();
    assert_eq!(skipped, [(4, "listed before, on line 1"), (7, "not UTF-8"), (8, "longer than 32768 bytes")]);

    assert!(matches!(TargetImages::read(&write(base, "e", "")), Err(DataError::EmptyFile { .. })));
    assert!(matches!(TargetImages::read(&write(base, "e", "\n \n")), Err(DataError::NothingUsable { .. })));
    assert!(matches!(TargetImages::read(&base.join("missing")), Err(DataError::Io { .. })));
    // A caption file under any name: its images of the training split, without a sentence.
    let images = TargetImages::read(&write(base, "e", MIXED)).unwrap();
    assert_eq!(names(images.images()), ["a.jpg", "d.jpg"]);
    assert!(images.notes()[0].ends_with("2 images of the val and test splits are left out"));
}

#[test]
fn image_folders() {
    let folder = tempdir().unwrap();
    let base = folder.path();
    for name in [
        "b.JPG",
        "a/z.webp",
        "a/deep/er/y.png",
        "notes.txt",
        ".hidden.png",
        ".thumbs/t.png",
        "c.jpeg",
        "noext",
    ] {
        write(base, name, "");
    }
    let images = TargetImages::read(base).unwrap();
    let expected = ["a/deep/er/y.png", "a/z.webp", "b.JPG", "c.jpeg"].map(|name| base.join(name));
    assert_eq!(files(&images), expected);
    assert!(
        matches!(TargetImages::read(&base.join(".thumbs/../a/deep")), Ok(images) if images.images().len() == 1)
    );
    std::fs::create_dir(base.join("empty")).unwrap();
    assert!(matches!(TargetImages::read(&base.join("empty")), Err(DataError::NothingUsable { .. })));
}

#[cfg(unix)]
#[test]
fn links_are_followed_and_loops_end() {
    use std::os::unix::fs::symlink;
    let folder = tempdir().unwrap();
    let base = folder.path().join("root");
    write(&base, "a/x.png", "");
    write(folder.path(), "outside/o.png", "");
    symlink(&base, base.join("a/loop")).unwrap();
    symlink("loop2", base.join("loop2")).unwrap();
    symlink(folder.path().join("outside"), base.join("linked")).unwrap();
    symlink(folder.path().join("outside/o.png"), base.join("o2.png")).unwrap();
    let images = TargetImages::read(&base).unwrap();
    assert_eq!(files(&images), ["a/x.png", "linked/o.png", "o2.png"].map(|name| base.join(name)));
}

#[test]
fn sentence_lists() {
    let folder = tempdir().unwrap();
    let base = folder.path();
    let lines: [&[u8]; 7] = [
        b"\xef\xbb\xbf one \r",
        b"",
        b"two \xff",
        b"{ not json",
        &[b'a'; 10_001],
        &[b'a'; 50_000],
        "même".as_bytes(),
    ];
    let sentences = TargetSentences::read(&write(base, "s.txt", lines.join(&b'\n'))).unwrap();
    assert_eq!(sentences.sentences(), ["one", "{ not json", "même"]);
    let skipped: Vec<_> =
        sentences.skipped().iter().map(|skipped| (skipped.line.unwrap(), skipped.reason.as_str())).collect();
    assert_eq!(
        skipped,
        [
            (2, "empty line"),
            (3, "not UTF-8"),
            (5, "longer than 10000 characters"),
            (6, "longer than 10000 characters"),
        ]
    );
    assert!(matches!(TargetSentences::read(&write(base, "s", "")), Err(DataError::EmptyFile { .. })));
    assert!(matches!(
        TargetSentences::read(&write(base, "s", "\n\n")),
        Err(DataError::NothingUsable { skipped: 2, .. })
    ));
    // A caption file under any name: its sentences of the training split, in an order that is not that of the images.
    let sentences = TargetSentences::read(&write(base, "s", MIXED)).unwrap();
    let mut sorted = sentences.sentences().to_vec();
    sorted.sort();
    assert_eq!(sorted, ["a1", "a2", "d"]);
    assert!(sentences.notes()[0].ends_with("3 sentences of the val and test splits are left out"));
    assert!(matches!(TargetSentences::read(base), Err(DataError::UnknownFormat { .. })));
    for (mark, units) in
        [([0xff, 0xfe], u16::to_le_bytes as fn(u16) -> [u8; 2]), ([0xfe, 0xff], u16::to_be_bytes)]
    {
        let utf16: Vec<u8> = "a house\n".repeat(3).encode_utf16().flat_map(units).collect();
        let path = write(base, "s", [&mark[..], &utf16].concat());
        assert!(matches!(TargetSentences::read(&path), Err(DataError::WrongKind { got: "UTF-16 text", .. })));
        assert!(matches!(TargetImages::read(&path), Err(DataError::WrongKind { .. })));
        assert!(matches!(open(&path), Err(DataError::WrongKind { .. })));
    }
    let sentences = TargetSentences::read(&write(base, "s", "a\0b\nc")).unwrap();
    assert_eq!((sentences.sentences(), sentences.skipped().len()), (&["c".to_owned()][..], 1));
}

/// Nothing of the alignment is left: the order of the sentences is the same whatever image they belonged to.
#[test]
fn the_order_of_target_sentences_says_nothing_about_their_images() {
    let folder = tempdir().unwrap();
    let read = |order: &[usize]| {
        let text: String = order
            .iter()
            .enumerate()
            .map(|(place, sentence)| {
                format!("{{\"image\": \"{place}.jpg\", \"captions\": [\"s{sentence}\"]}}\n")
            })
            .collect();
        TargetSentences::read(&write(folder.path(), "c.jsonl", text)).unwrap().sentences().to_vec()
    };
    let there: Vec<usize> = (0..50).collect();
    let back: Vec<usize> = (0..50).rev().collect();
    assert_eq!(read(&there), read(&back));
}

#[test]
fn an_image_is_no_list() {
    for image in images() {
        let told = TargetImages::read(&image).unwrap_err().to_string();
        let name = image.display();
        assert_eq!(
            told,
            format!("`{name}`: expected a folder or a list with an image path a line, got an image")
        );
        for error in [TargetSentences::read(&image).unwrap_err(), open(&image).unwrap_err()] {
            assert!(matches!(error, DataError::WrongKind { line: None, got: "an image", .. }), "{error}");
        }
    }
    let folder = tempdir().unwrap();
    for text in ["BMW.jpg\nb.jpg", "GIF89a of a dog\nb", "RIFF: a WEBPage\nb"] {
        let path = write(folder.path(), "list.txt", text);
        assert_eq!(TargetImages::read(&path).unwrap().images().len(), 2);
        assert_eq!(TargetSentences::read(&path).unwrap().sentences().len(), 2);
    }
}

/// A line is never held whole: 300 MiB without a line end.
#[test]
fn an_endless_line_is_skipped() {
    use std::io::Write;
    let folder = tempdir().unwrap();
    let path = folder.path().join("s.txt");
    let mut file = std::fs::File::create(&path).unwrap();
    // Sparse: the zeros take no room on disk.
    file.set_len(300 << 20).unwrap();
    std::io::Seek::seek(&mut file, std::io::SeekFrom::End(0)).unwrap();
    file.write_all(b"\nafter\n").unwrap();
    let sentences = TargetSentences::read(&path).unwrap();
    assert_eq!(sentences.sentences(), ["after"]);
    assert_eq!(sentences.skipped().len(), 1);
}
