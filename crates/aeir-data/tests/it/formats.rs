//! Every format, read back exactly; and what is wrong in each of them.

use std::path::{Path, PathBuf};

use aeir_data::{
    Columns, DataError, Dataset, Format, ImageLimits, ImageSource, LabelledPairs, ParallelDomain,
    ReadOptions, Split, TargetImages, TargetSentences, TestPairs,
};
use proptest::prelude::*;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use tempfile::tempdir;

use crate::write;

fn formats(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/formats").join(name)
}

fn open(path: &Path) -> Result<Dataset, DataError> {
    Dataset::open(path, &ReadOptions::default())
}

fn columns(text: &str) -> ReadOptions {
    ReadOptions { columns: text.parse::<Columns>().unwrap(), ..ReadOptions::default() }
}

type Expected<'a> = (&'a str, [u8; 3], Split, [&'a str; 2]);

/// What `fixtures/formats/README.md` says.
const ITEMS: [Expected; 4] = [
    ("red.png", [200, 30, 20], Split::Train, ["a red card", "something red"]),
    ("green.jpg", [20, 160, 40], Split::Train, ["a green card", "something, \"green\""]),
    ("blue sky.webp", [40, 60, 220], Split::Validation, ["a blue card", "the sky"]),
    ("été.png", [240, 220, 60], Split::Test, ["a yellow card", "l'été"]),
];

/// Every item with its image, sentences and split.
fn check(data: &Dataset, expected: &[Expected]) {
    assert_eq!(data.items.len(), expected.len(), "{data:?}");
    for (item, (name, colour, split, sentences)) in data.items.iter().zip(expected) {
        assert_eq!(item.sentences, sentences, "{name}");
        assert_eq!(item.split, Some(*split), "{name}");
        check_image(item.image.as_ref().unwrap(), *colour);
    }
    assert!(data.skipped.is_empty(), "{:?}", data.skipped);
}

fn check_image(image: &ImageSource, colour: [u8; 3]) {
    let limits = ImageLimits::default();
    let decoded = image.decode(&limits).unwrap();
    assert_eq!(decoded.hash, image.hash(&limits).unwrap());
    let pixel = decoded.image.to_rgb8().get_pixel(4, 3).0;
    // JPEG is not exact.
    assert!(pixel.iter().zip(colour).all(|(got, colour)| got.abs_diff(colour) <= 2), "{pixel:?} {colour:?}");
}

#[test]
fn a_folder_is_read_by_its_caption_file() {
    let folder = open(&formats("json-lines")).unwrap();
    assert_eq!(folder.items, open(&formats("json-lines/captions.jsonl")).unwrap().items);
    assert_eq!(ParallelDomain::read(&formats("json-lines")).unwrap().name, "json-lines");
    // Under another name it is not taken unasked, but named.
    let other = tempdir().unwrap();
    let file = write(other.path(), "train.jsonl", "{}");
    let told = open(other.path()).unwrap_err().to_string();
    assert!(told.ends_with(&format!("; `{}` can be read by itself", file.display())), "{told}");
}

#[test]
fn json_lines() {
    let data = open(&formats("json-lines/captions.jsonl")).unwrap();
    assert_eq!((data.format, data.items[2].id.as_str()), (Format::JsonLines, "images/blue sky.webp"));
    check(&data, &ITEMS);
}

#[test]
fn tables() {
    let data = open(&formats("table/captions.csv")).unwrap();
    assert_eq!((data.format, data.items[1].line), (Format::Table, Some(4)));
    assert!(data.notes[0].contains("the images are taken from"), "{:?}", data.notes);
    check(&data, &ITEMS);

    let options = columns("image=file,caption=title_0,caption=title_1,split=set");
    let mut wide = Dataset::open(&formats("table/wide.tsv"), &options).unwrap();
    assert_eq!(wide.items[1].sentences, ["a green card", "something, green"]);
    wide.items[1].sentences[1] = ITEMS[1].3[1].to_owned();
    check(&wide, &ITEMS);
    let told = Dataset::open(&formats("table/wide.tsv"), &columns("image=photo")).unwrap_err().to_string();
    assert!(
        told.contains("line 1") && told.contains("expected a column `photo`, got the columns file, "),
        "{told}"
    );
}

#[test]
fn a_folder_with_texts() {
    let data = open(&formats("folder")).unwrap();
    assert_eq!(data.format, Format::Folder);
    let ids: Vec<&str> = data.items.iter().map(|item| item.id.as_str()).collect();
    assert_eq!(ids, ["deep/blue sky.webp", "deep/green.jpg", "deep/red.png", "deep/été.png"]);
    assert!(data.items.iter().all(|item| item.split.is_none()));
    for (item, expected) in data.items.iter().zip([2, 1, 0, 3]) {
        check_image(item.image.as_ref().unwrap(), ITEMS[expected].1);
        let sentences: &[&str] = if expected == 3 { &[] } else { &ITEMS[expected].3 };
        assert_eq!(item.sentences, sentences);
    }
    let domain = ParallelDomain::read(&formats("folder")).unwrap();
    assert_eq!((domain.train.len(), domain.notes.len()), (3, 1));
    assert_eq!(TargetImages::read(&formats("folder")).unwrap().images().len(), 4);
}

#[test]
fn coco_captions() {
    let data = open(&formats("coco")).unwrap();
    assert_eq!((data.format, data.items[1].id.as_str()), (Format::Coco, "101"));
    check(&data, &ITEMS[..3]);
    let one = open(&formats("coco/annotations/captions_val2017.json")).unwrap();
    check(&one, &ITEMS[2..3]);
    let domain = ParallelDomain::read(&formats("coco")).unwrap();
    assert_eq!((domain.train.len(), domain.validation.len()), (2, 1));
}

#[test]
fn karpathy_splits() {
    let mut data = open(&formats("karpathy")).unwrap();
    assert_eq!((data.format, data.items[3].id.as_str()), (Format::Karpathy, "103"));
    assert!(data.notes[0].contains("1 images of `restval` count as training"), "{:?}", data.notes);
    for item in &mut data.items {
        assert_eq!(item.sentences.len(), 5);
        item.sentences.truncate(2);
    }
    check(&data, &ITEMS);
    assert_eq!(TestPairs::read(&formats("karpathy/dataset_tiny.json"), None).unwrap().captions().len(), 5);
}

#[test]
fn webdataset_shards() {
    let data = open(&formats("webdataset")).unwrap();
    assert_eq!(data.format, Format::WebDataset);
    let ids: Vec<&str> = data.items.iter().map(|item| item.id.as_str()).collect();
    // Shards by name.
    assert_eq!(ids, ["000003", "000000", "000001", "000002"]);
    check(&data, &[ITEMS[3], ITEMS[0], ITEMS[1], ITEMS[2]]);
    let some = open(&formats("webdataset/train-{000..001}.tar")).unwrap();
    check(&some, &ITEMS[..2]);
    let named = some.items[1].image.as_ref().unwrap().to_string();
    assert!(named.ends_with("train-001.tar#000001.jpg"), "{named}");
    check_image(&ImageSource::of_names(&[named]).unwrap()[0], ITEMS[1].1);
    // The test shard is not opened for training.
    let domain = ParallelDomain::read(&formats("webdataset")).unwrap();
    assert_eq!((domain.train.len(), domain.validation.len(), domain.test_left_out), (2, 1, 0));
    let missing = open(&formats("webdataset/train-{000..002}.tar")).unwrap_err();
    assert!(
        matches!(missing, DataError::Io { ref path, .. } if path.ends_with("train-002.tar")),
        "{missing}"
    );
}

#[test]
fn bottom_up_tables() {
    let data = open(&formats("bottom-up/features.tsv")).unwrap();
    assert_eq!((data.format, data.items.len(), data.items[3].id.as_str()), (Format::FeatureTable, 4, "103"));
    let read = |image: &ImageSource| {
        let row = image.features().unwrap();
        let mut values = vec![0.0; row.features.image_len()];
        row.features.read_into(row.image, &mut values).unwrap();
        row.features.check_finite().unwrap();
        values
    };
    let values = read(data.items[2].image.as_ref().unwrap());
    assert_eq!(values, (24..36).map(|value| value as f32).collect::<Vec<_>>());
    let pairs = open(&formats("bottom-up/captions.jsonl")).unwrap();
    assert_eq!(pairs.items[2].sentences, ITEMS[2].3);
    assert_eq!(read(pairs.items[2].image.as_ref().unwrap()), values);
    let told = data.items[0].image.as_ref().unwrap().decode(&ImageLimits::default()).unwrap_err();
    assert!(matches!(told, DataError::NotEncoded { .. }));
}

/// Lines with other numbers of boxes: padded to the most.
#[test]
fn bottom_up_tables_with_a_different_number_of_boxes() {
    let folder = tempdir().unwrap();
    let line = |id: usize, boxes: usize| {
        let values: Vec<u8> = (0..boxes * 2).flat_map(|at| ((10 * id + at) as f32).to_le_bytes()).collect();
        let coordinates = base64(&vec![0; boxes * 16]);
        format!("{id}\t8\t6\t{boxes}\t{coordinates}\t{}\n", base64(&values))
    };
    let text: String = [(1, 2), (2, 3), (3, 1)].iter().map(|(id, boxes)| line(*id, *boxes)).collect();
    let data = open(&write(folder.path(), "f.tsv", text)).unwrap();
    assert!(data.skipped.is_empty(), "{:?}", data.skipped);
    assert!(data.notes[0].contains("1 to 3 regions"), "{:?}", data.notes);
    let features = &data.items[0].image.as_ref().unwrap().features().unwrap().features;
    assert_eq!((features.regions(), features.dimension(), features.regions_vary()), (3, 2, true));
    let expected = [
        [10.0, 11.0, 12.0, 13.0, 0.0, 0.0],
        [20.0, 21.0, 22.0, 23.0, 24.0, 25.0],
        [30.0, 31.0, 0.0, 0.0, 0.0, 0.0],
    ];
    let mut values = [f32::NAN; 6];
    for (image, (regions, expected)) in [2, 3, 1].into_iter().zip(expected).enumerate() {
        features.read_into(image, &mut values).unwrap();
        assert_eq!((features.regions_of(image), values), (regions, expected));
    }
    assert_eq!(features.regions_of(3), 0);
    features.check_finite().unwrap();
    // Another number of values a box is another kind of features.
    let text = format!("{}{}", line(1, 2), line(2, 1).replace("\t1\t", "\t2\t"));
    let data = open(&write(folder.path(), "g.tsv", text)).unwrap();
    assert_eq!(data.skipped[0].reason, "expected boxes of 2 values as before, got 2 of 1");
    let fixed = open(&formats("bottom-up/features.tsv")).unwrap();
    assert!(!fixed.items[0].image.as_ref().unwrap().features().unwrap().features.regions_vary());
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

#[test]
fn embeddings() {
    for (file, format) in [("images.npy", Format::Npy), ("tower.safetensors", Format::Safetensors)] {
        let data = open(&formats("embeddings").join(file)).unwrap();
        assert_eq!((data.format, data.items.len()), (format, 4));
        let row = data.items[2].image.as_ref().unwrap().features().unwrap();
        assert_eq!((row.features.regions(), row.features.dimension()), (1, 4));
        let mut values = [0.0; 4];
        row.features.read_into(row.image, &mut values).unwrap();
        assert_eq!(values, [24.0, 25.0, 26.0, 27.0]);
        let id = if format == Format::Npy { "blue sky.webp" } else { "2" };
        assert_eq!(data.items[2].id, id);
    }
    let folder = tempdir().unwrap();
    let path = folder.path().join("a.npy");
    std::fs::copy(formats("embeddings/images.npy"), &path).unwrap();
    // As `aeir embed` writes them.
    let records: String = (0..4).map(|row| format!("{{\"row\": {row}, \"id\": \"n{row}\"}}\n")).collect();
    write(folder.path(), "a.jsonl", &records);
    assert_eq!(open(&path).unwrap().items[3].id, "n3");
    // A caption file of the same name gives none.
    write(folder.path(), "a.jsonl", "{\"image\": \"x.jpg\", \"captions\": [\"x\"]}\n");
    assert_eq!(open(&path).unwrap().items[3].id, "3");
    // A file of several tensors: the names of the images lie beside it.
    let path = folder.path().join("embeddings.safetensors");
    std::fs::copy(formats("embeddings/tower.safetensors"), &path).unwrap();
    write(folder.path(), "sentences.jsonl", "{\"item\": 0, \"id\": \"other\"}\n");
    write(folder.path(), "images.jsonl", &records);
    assert_eq!(open(&path).unwrap().items[3].id, "n3");
    let path = folder.path().join("a.npy");
    write(folder.path(), "ids.txt", "one\ntwo\n");
    let told = open(&path).unwrap_err().to_string();
    assert!(told.contains("ids.txt` (array of features (.npy)): expected 4 names, as many as"), "{told}");
}

#[cfg(feature = "parquet")]
#[test]
fn parquet_files() {
    let data = open(&formats("parquet/flickr30k")).unwrap();
    assert_eq!((data.format, data.items[3].id.as_str()), (Format::Parquet, "été.png"));
    check(&data, &ITEMS);
    let domain = ParallelDomain::read(&formats("parquet/flickr30k")).unwrap();
    assert_eq!((domain.train.len(), domain.validation.len(), domain.test_left_out), (2, 1, 1));
    let named = data.items[3].image.as_ref().unwrap().to_string();
    assert!(named.ends_with("TEST-00000-of-00001.parquet#3"), "{named}");
    check_image(&ImageSource::of_names(&[named]).unwrap()[0], ITEMS[3].1);

    let data = open(&formats("parquet/coco")).unwrap();
    check(&data, &[ITEMS[3], ITEMS[0], ITEMS[1], ITEMS[2]]);
    assert_eq!(TargetImages::read(&formats("parquet/coco")).unwrap().images().len(), 2);

    let told = open(&formats("parquet/other.parquet")).unwrap_err().to_string();
    assert!(told.contains("(Parquet): expected a column with images (image, "), "{told}");
    assert!(told.ends_with("got the columns question, answers"), "{told}");
    for name in ["zstd.parquet", "zstd-2.parquet"] {
        check(&open(&formats("parquet").join(name)).unwrap(), &ITEMS);
    }
    let told = open(&formats("parquet/brotli.parquet")).unwrap_err().to_string();
    for part in ["BROTLI in column `image.bytes`", "compression=\"zstd\""] {
        assert!(told.contains(part), "{told}");
    }
}

/// Readers stand where they read last: whatever the order, and with several threads, each row gives its own image.
#[cfg(feature = "parquet")]
#[test]
fn images_of_a_parquet_file_come_in_any_order() {
    use rayon::prelude::*;
    for name in ["parquet/flickr30k", "parquet/zstd-2.parquet"] {
        let images = open(&formats(name)).unwrap().images();
        let colour = |row: &usize| check_image(&images[*row], ITEMS[*row].1);
        for order in [[0, 1, 2, 3], [3, 2, 1, 0], [1, 1, 3, 0], [2, 0, 3, 3]] {
            order.iter().for_each(colour);
        }
        (0..200_usize).into_par_iter().for_each(|at| colour(&(at * 7 % 4)));
    }
}

#[cfg(feature = "parquet")]
#[test]
fn vectors_in_parquet_files() {
    let data = open(&formats("parquet/vectors.parquet")).unwrap();
    let ids: Vec<&str> = data.items.iter().map(|item| item.id.as_str()).collect();
    assert_eq!(ids, ["red.png", "green.jpg", "blue sky.webp"]);
    let row = data.items[2].image.as_ref().unwrap().features().unwrap();
    assert_eq!((row.features.len(), row.features.regions(), row.features.dimension()), (3, 1, 4));
    let mut values = [0.0; 4];
    row.features.read_into(row.image, &mut values).unwrap();
    assert_eq!(values, [48.0, 49.0, 50.0, 51.0]);
    let skipped: Vec<_> = data.skipped.iter().map(|it| (it.line.unwrap(), it.reason.as_str())).collect();
    assert_eq!(skipped, [(1, "no vector"), (3, "expected 4 values as before, got 5")]);
    // The name of an image is its row, as everywhere.
    let named = data.items[1].image.as_ref().unwrap().to_string();
    assert!(named.ends_with("vectors.parquet#2"), "{named}");
    assert_eq!(ImageSource::of_names(&[named]).unwrap()[0], *data.items[1].image.as_ref().unwrap());
}

#[cfg(feature = "parquet")]
#[test]
fn embeddings_that_were_written_are_read_back() {
    use aeir_data::{EmbeddingColumns, EmbeddingName, EmbeddingWriter};
    let folder = tempdir().unwrap();
    let name = |item: u64, sentence: Option<&str>| EmbeddingName {
        item,
        id: format!("é{item}"),
        sentence: sentence.map(str::to_owned),
        metadata: None,
    };
    for half_precision in [false, true] {
        let path = folder.path().join(format!("images-{half_precision}.parquet"));
        let columns = EmbeddingColumns {
            half_precision,
            metadata: vec![("model", "x".into())],
            ..EmbeddingColumns::default()
        };
        let mut writer = EmbeddingWriter::create(&path, &columns).unwrap();
        for item in 0..50 {
            writer.add(&name(item, None), &[item as f32, -0.5, 1.0 / 3.0]).unwrap();
        }
        assert!(!path.exists(), "a file that is not whole has its name already");
        writer.finish().unwrap();
        let data = open(&path).unwrap();
        assert_eq!((data.items.len(), data.items[49].id.as_str()), (50, "é49"));
        let row = data.items[49].image.as_ref().unwrap().features().unwrap();
        let mut values = [0.0; 3];
        row.features.read_into(row.image, &mut values).unwrap();
        let third = 1.0_f32 / 3.0;
        let third = if half_precision { half::f16::from_f32(third).to_f32() } else { third };
        assert_eq!(values, [49.0, -0.5, third]);
    }
    // Beside sentences, vectors are those of the sentences, and no images.
    let path = folder.path().join("sentences.parquet");
    let columns = EmbeddingColumns { sentences: true, ..EmbeddingColumns::default() };
    let mut writer = EmbeddingWriter::create(&path, &columns).unwrap();
    writer.add(&name(7, Some("a dog")), &[1.0]).unwrap();
    writer.finish().unwrap();
    let data = open(&path).unwrap();
    assert_eq!(
        (data.items[0].sentences.as_slice(), &data.items[0].image),
        (&["a dog".to_owned()][..], &None)
    );
    let empty = folder.path().join("empty.parquet");
    EmbeddingWriter::create(&empty, &columns).unwrap().finish().unwrap();
    assert!(matches!(open(&empty), Err(DataError::NothingUsable { .. })));
}

/// Images of one format, sentences of another, and neither knows of the other.
#[test]
fn target_sets_of_two_formats() {
    let images = TargetImages::read(&formats("webdataset")).unwrap();
    let sentences = TargetSentences::read(&formats("table/captions.csv")).unwrap();
    assert_eq!((images.images().len(), sentences.sentences().len()), (2, 4));
    let sentences = TargetSentences::read(&formats("coco")).unwrap();
    assert_eq!(sentences.sentences().len(), 4);
}

#[test]
fn what_is_no_data_set_is_said_with_what_was_looked_for() {
    let folder = tempdir().unwrap();
    let told = open(folder.path()).unwrap_err().to_string();
    for name in ["train_ims.npy", "dataset*.json", "captions_*.json", "*.parquet", "*.tar", ".jpg"] {
        assert!(told.contains(name), "{told}");
    }
    let path = write(folder.path(), "a.json", "{\"images\": [], \"more\": 1}");
    assert!(open(&path).unwrap_err().to_string().contains("looked for COCO captions"));
    let path = write(folder.path(), "b.json", "{\"images\": [{\"id\": 1}");
    let told = open(&path).unwrap_err().to_string();
    assert!(told.contains("b.json` line 1 (COCO captions): expected a JSON document"), "{told}");
}

#[test]
fn rows_that_cannot_be_used_are_left_out_with_their_line() {
    let folder = tempdir().unwrap();
    let text =
        b"image,caption,split\r\na.jpg,one,train\r\n,two,train\r\nb.jpg\r\nc.jpg,,val\r\nd.jpg,\xff,val\r\n\
        e.jpg,five,tset\r\nf.jpg,\"two\nlines\",test\r\na\0.jpg,x,\r\ng.jpg,last,RESTVAL\r\n";
    let data = open(&write(folder.path(), "t.csv", text)).unwrap();
    let items: Vec<_> = data.items.iter().map(|item| (item.id.as_str(), item.split, item.line)).collect();
    assert_eq!(
        items,
        [
            ("a.jpg", Some(Split::Train), Some(2)),
            ("f.jpg", Some(Split::Test), Some(8)),
            ("g.jpg", Some(Split::Train), Some(11)),
        ]
    );
    assert_eq!(data.items[1].sentences, ["two\nlines"]);
    let skipped: Vec<_> = data.skipped.iter().map(|it| (it.line.unwrap(), it.reason.as_str())).collect();
    assert_eq!(
        skipped,
        [
            (3, "the image path is empty"),
            (4, "the row has no column for the sentence"),
            (4, "no usable caption"),
            (5, "empty caption"),
            (5, "no usable caption"),
            (6, "not UTF-8"),
            (6, "no usable caption"),
            (7, "expected train, val or test as the split"),
            (10, "contains a NUL character"),
        ]
    );
    // A quote that nobody closes: 20 MiB of one row.
    let endless = [b"image,caption\na,\"".as_slice(), &vec![b'x'; 20 << 20]].concat();
    let told = open(&write(folder.path(), "e.csv", endless)).unwrap_err();
    assert!(matches!(told, DataError::LineTooLong { line: 2, .. }), "{told}");
    for (name, text) in [("n.csv", "a,b\n1,2\n"), ("h.csv", "image\n")] {
        let told = open(&write(folder.path(), name, text)).unwrap_err();
        assert!(matches!(told, DataError::Malformed { .. } | DataError::NothingUsable { .. }), "{told}");
    }
}

#[test]
fn coco_and_karpathy_entries_that_cannot_be_used() {
    let folder = tempdir().unwrap();
    let coco = r#"{"images": [{"id": 1, "file_name": "a.jpg"}, {"id": 1, "file_name": "b.jpg"}, {"id": "x", "file_name": "c.jpg"}],
        "annotations": [{"image_id": 1, "caption": "one"}, {"image_id": 9, "caption": "lost"}, {"image_id": "x", "caption": " "},
        {"image_id": 1, "bbox": []}]}"#;
    let data = open(&write(folder.path(), "captions.json", coco)).unwrap();
    let items: Vec<_> = data.items.iter().map(|item| (item.id.as_str(), item.sentences.len())).collect();
    assert_eq!(items, [("1", 1), ("x", 0)]);
    let reasons: Vec<&str> = data.skipped.iter().map(|skipped| skipped.reason.as_str()).collect();
    assert_eq!(reasons, ["image id 1 stands before", "image id 9 is not in the file", "empty caption"]);
    let karpathy = r#"{"images": [{"filename": "a.jpg", "split": "train", "sentences": [{"tokens": ["a", "dog"]}]},
        {"filename": "b.jpg", "split": "tset", "sentences": []}, {"filename": "", "sentences": [{"raw": "x"}]}]}"#;
    let data = open(&write(folder.path(), "k.json", karpathy)).unwrap();
    assert_eq!((data.format, data.items.len()), (Format::Karpathy, 1));
    assert_eq!(data.items[0].sentences, ["a dog"]);
    assert_eq!(data.skipped.len(), 2);
    let twice = r#"{"images": [{"filename": "a", "filename": "b", "sentences": []}]}"#;
    let told = open(&write(folder.path(), "d.json", twice)).unwrap_err().to_string();
    assert!(told.contains("got duplicate field `filename`"), "{told}");
}

/// A tar archive of these members, as `tar` writes it.
fn archive(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in members {
        let mut header = tar::Header::new_ustar();
        // The crate refuses such names in its own interface.
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        builder.append(&header, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

#[test]
fn members_that_cannot_be_used_are_left_out() {
    let folder = tempdir().unwrap();
    let red = std::fs::read(formats("json-lines/images/red.png")).unwrap();
    let members: [(&str, &[u8]); 12] = [
        ("a.png", &red),
        ("a.txt", b"\xef\xbb\xbfone\r\n\r\ntwo\r\n"),
        ("../out.png", &red),
        ("/abs.png", &red),
        ("b.txt", b"no image"),
        ("c.png", &red),
        ("c.txt", b"\xff"),
        ("a.png", &red),
        ("d.png", &red),
        ("d.json", b"[1, 2"),
        (".hidden.png", &red),
        ("deep/x/e.PNG", &red),
    ];
    let whole = archive(&members);
    let path = write(folder.path(), "shard.tar", &whole);
    let data = open(&path).unwrap();
    let items: Vec<_> = data.items.iter().map(|item| (item.id.as_str(), item.sentences.len())).collect();
    assert_eq!(items, [("a", 2), ("c", 0), ("d", 0), ("deep/x/e", 0)]);
    check_image(data.items[3].image.as_ref().unwrap(), ITEMS[0].1);
    let skipped: Vec<_> = data.skipped.iter().map(|it| (it.item.as_str(), it.reason.as_str())).collect();
    assert_eq!(
        skipped,
        [
            ("../out.png", "the name leads out of the archive"),
            ("/abs.png", "the name leads out of the archive"),
            ("b", "no image among its members"),
            ("c.txt", "not UTF-8"),
            ("a", "the key stands before in this archive"),
            ("d.json", "no JSON object"),
        ]
    );
    // Nothing was written anywhere.
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);

    // Cut within a member: it is left out, and what stands before it is kept.
    write(folder.path(), "shard.tar", &whole[..512 + 20]);
    let told = open(&path).unwrap_err();
    assert!(matches!(told, DataError::NothingUsable { skipped: 1, .. }), "{told}");
    for (name, content, got) in [
        ("gzip.tar", &b"\x1f\x8b\x08\0\0\0\0\0"[..], "got gzip: unpack it first"),
        ("text.tar", &[b'x'; 1024][..], "expected an uncompressed tar archive"),
    ] {
        let told = open(&write(folder.path(), name, content)).unwrap_err().to_string();
        assert!(told.contains(got), "{told}");
    }
    // A size that the archive does not have.
    let mut lies = archive(&[("a.png", &red)]);
    lies[124..135].copy_from_slice(b"77777777777");
    let sum: u32 = lies[..512]
        .iter()
        .enumerate()
        .map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u32::from(*byte) })
        .sum();
    lies[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    assert!(open(&write(folder.path(), "lies.tar", &lies)).is_err());
}

#[test]
fn lines_of_features_that_cannot_be_used() {
    let folder = tempdir().unwrap();
    let good = std::fs::read_to_string(formats("bottom-up/features.tsv")).unwrap();
    let lines: Vec<&str> = good.lines().collect();
    let other = lines[1].replace("\t3\t", "\t2\t");
    let cut = &lines[2][..lines[2].len() - 5];
    let text = [lines[0], &other, cut, lines[0], "104\t8\t6", lines[3]].join("\r\n");
    let data = open(&write(folder.path(), "f.tsv", text)).unwrap();
    let ids: Vec<&str> = data.items.iter().map(|item| item.id.as_str()).collect();
    assert_eq!(ids, ["100", "103"]);
    let skipped: Vec<_> = data.skipped.iter().map(|it| (it.line.unwrap(), it.item.as_str())).collect();
    assert_eq!(skipped, [(2, "101"), (3, "102"), (4, "100"), (5, "104")]);
    // Characters that are no base64 are found when they are read.
    let bad = good.replacen("AAAAAAAAgD8", "AAAA****gD8", 1);
    assert_ne!(bad, good);
    let data = open(&write(folder.path(), "b.tsv", bad)).unwrap();
    let row = data.items[0].image.as_ref().unwrap().features().unwrap();
    let told = row.features.check_finite().unwrap_err().to_string();
    assert!(told.contains("line 1") && told.contains("in the features"), "{told}");
}

#[test]
fn names_of_images_in_other_files() {
    let folder = tempdir().unwrap();
    std::fs::copy(formats("embeddings/images.npy"), folder.path().join("f.npy")).unwrap();
    let line = |place: &str| format!("{{\"image\": \"f.npy#{place}\", \"captions\": [\"x\"]}}");
    let data = open(&write(folder.path(), "a.jsonl", line("3"))).unwrap();
    assert_eq!(data.items[0].image.as_ref().unwrap().features().unwrap().image, 3);
    for place in ["4", "x", "-1"] {
        let told = open(&write(folder.path(), "a.jsonl", line(place))).unwrap_err();
        assert!(matches!(told, DataError::NoSuchImage { .. }), "{told}");
    }
}

/// A few hundred damaged copies of each fixture: read or refused, and never a panic. What is read can be decoded or is refused.
#[test]
fn mutated_files_are_read_or_refused() {
    let folder = tempdir().unwrap();
    let mut random = ChaCha8Rng::seed_from_u64(23);
    let mut below = move |bound: usize| (random.next_u32() as usize) % bound.max(1);
    let mut files = vec![
        "json-lines/captions.jsonl",
        "table/captions.csv",
        "table/wide.tsv",
        "coco/annotations/captions_train2017.json",
        "karpathy/dataset_tiny.json",
        "bottom-up/features.tsv",
        "webdataset/train-001.tar",
        "embeddings/images.npy",
        "embeddings/tower.safetensors",
    ];
    if cfg!(feature = "parquet") {
        files.extend([
            "parquet/flickr30k/TEST-00000-of-00001.parquet",
            "parquet/coco/data/train-00000-of-00001.parquet",
            "parquet/zstd.parquet",
            "parquet/zstd-2.parquet",
            "parquet/vectors.parquet",
        ]);
    }
    let limits = ImageLimits { max_pixels: 1 << 20, max_bytes: 1 << 20, ..ImageLimits::default() };
    for name in files {
        let good = std::fs::read(formats(name)).unwrap();
        let file_name = Path::new(name).file_name().unwrap().to_str().unwrap();
        let (mut read, mut refused) = (0, 0);
        for _ in 0..300 {
            let mut bytes = good.clone();
            for _ in 0..1 + below(4) {
                let place = below(bytes.len());
                match below(4) {
                    0 => bytes[place] = below(256) as u8,
                    1 => bytes[place] ^= 1 << below(8),
                    2 => drop(bytes.splice(place..place, std::iter::repeat_n(b'9', below(6)))),
                    _ => drop(bytes.drain(place..(place + below(6)).min(bytes.len()))),
                }
            }
            if below(8) == 0 {
                bytes.truncate(below(bytes.len()));
            }
            let file = write(folder.path(), file_name, &bytes);
            // Whatever it says: read as labels or refused.
            let _ = LabelledPairs::read(&file);
            match open(&file) {
                Ok(data) => {
                    read += 1;
                    for image in data.images() {
                        match image.features() {
                            Some(row) => drop(row.features.check_finite()),
                            None => drop(image.decode(&limits)),
                        }
                    }
                }
                Err(_) => refused += 1,
            }
        }
        assert!(refused > 0 || read == 300, "{name}: {read} read, {refused} refused");
        assert!(read > 0, "{name}: {refused} refused");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Shards come in the order of their names or of the pattern, members in the order of the archive, each once.
    #[test]
    fn shards_and_their_members_come_in_order(sizes in prop::collection::vec(1..6_usize, 1..12)) {
        let folder = tempdir().unwrap();
        let mut expected = Vec::new();
        // Written from the last to the first: the order on disk says nothing.
        for (shard, size) in sizes.iter().enumerate().rev() {
            let names: Vec<String> = (0..*size).map(|member| format!("{shard:02}-{member}.png")).collect();
            let members: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), &b"bytes"[..])).collect();
            write(folder.path(), &format!("train-{shard:03}.tar"), archive(&members));
            let ids = names.iter().map(|name| name.trim_end_matches(".png").to_owned());
            expected.splice(0..0, ids);
        }
        let pattern = folder.path().join(format!("train-{{000..{:03}}}.tar", sizes.len() - 1));
        for path in [folder.path(), &pattern] {
            let data = open(path).unwrap();
            let ids: Vec<String> = data.items.iter().map(|item| item.id.clone()).collect();
            prop_assert_eq!(&ids, &expected);
            let names: Vec<String> = data.images().iter().map(ImageSource::to_string).collect();
            prop_assert_eq!(ImageSource::of_names(&names).unwrap(), data.images());
        }
    }
}

#[cfg(unix)]
#[test]
fn files_that_may_not_be_read_are_named() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempdir().unwrap();
    let path = write(folder.path(), "locked.csv", "image,caption\na.jpg,x\n");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o000)).unwrap();
    if std::fs::File::open(&path).is_ok() {
        // Root may read everything.
        return;
    }
    assert!(matches!(open(&path), Err(DataError::Io { .. })));
}
