//! Folders that are not what they should be: a typed error each, never a panic.

use std::fs;
use std::path::Path;

use aeir_encoders::{EncoderError, load_image_backbone, load_text_backbone};
use candle_core::Device;
use tempfile::TempDir;

use crate::fixtures::path;

fn copy(backbone: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(path(&format!("backbones/{backbone}"))).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    folder
}

fn image_error(folder: &Path) -> EncoderError {
    load_image_backbone(folder, &Device::Cpu).err().expect("an error")
}

fn text_error(folder: &Path) -> EncoderError {
    load_text_backbone(folder, &Device::Cpu).err().expect("an error")
}

fn replace(file: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(file).unwrap();
    assert!(text.contains(from), "{from}");
    fs::write(file, text.replacen(from, to, 1)).unwrap();
}

/// Changes bytes of a safetensors header without changing its length.
fn replace_in_header(file: &Path, from: &str, to: &str) {
    assert_eq!(from.len(), to.len());
    let mut bytes = fs::read(file).unwrap();
    let at = bytes.windows(from.len()).position(|window| window == from.as_bytes()).expect("in the header");
    bytes[at..at + from.len()].copy_from_slice(to.as_bytes());
    fs::write(file, bytes).unwrap();
}

#[test]
fn missing_files() {
    for name in ["config.json", "model.safetensors"] {
        let folder = copy("efficientnet-lite0");
        fs::remove_file(folder.path().join(name)).unwrap();
        let error = image_error(folder.path());
        assert!(matches!(&error, EncoderError::MissingFile { file } if file.ends_with(name)), "{error}");
    }
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        let folder = copy("static-minilm");
        fs::remove_file(folder.path().join(name)).unwrap();
        let error = text_error(folder.path());
        assert!(matches!(&error, EncoderError::MissingFile { file } if file.ends_with(name)), "{error}");
    }
}

#[test]
fn another_architecture_names_those_that_there_are() {
    let error = image_error(&path("backbones/static-minilm"));
    assert!(
        error.to_string().contains("model2vec") && error.to_string().contains("efficientnet-lite0"),
        "{error}"
    );
    let error = text_error(&path("backbones/efficientnet-lite0"));
    assert!(matches!(error, EncoderError::Unsupported { supported: ["model2vec", ..], .. }), "{error}");
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("config.json"), "{}").unwrap();
    assert!(matches!(image_error(folder.path()), EncoderError::Unsupported { .. }));
}

#[test]
fn configurations_that_do_not_fit() {
    for (from, to, key) in [
        (r#""image_size": 224"#, r#""image_size": 0"#, "image_size"),
        (r#""activation": "relu6""#, r#""activation": "swish""#, "activation"),
        (r#""kernel": 3, "stride": 2"#, r#""kernel": 3, "stride": 0"#, "stages[1].stride"),
        (r#""kernel": 5"#, r#""kernel": 4"#, "stages[2].kernel"),
        (r#""in": 24"#, r#""in": 25"#, "stages[2].in"),
        (r#""repeats": 4"#, r#""repeats": 4000000000"#, "stages[5].repeats"),
        (r#""std": [0.5"#, r#""std": [0.0"#, "std"),
        (r#""feature_dim": 1280"#, r#""feature_dim": 18446744073709551615"#, "feature_dim"),
    ] {
        let folder = copy("efficientnet-lite0");
        replace(&folder.path().join("config.json"), from, to);
        let error = image_error(folder.path());
        assert!(matches!(&error, EncoderError::Config { key: got, .. } if got == key), "{to}: {error}");
    }
    let folder = copy("efficientnet-lite0");
    fs::write(folder.path().join("config.json"), r#"{"architecture": "efficientnet-lite0", "#).unwrap();
    assert!(matches!(image_error(folder.path()), EncoderError::Json { .. }));
}

#[test]
fn tensors_that_do_not_fit() {
    let folder = copy("efficientnet-lite0");
    let config = folder.path().join("config.json");
    replace(&config, r#""feature_dim": 1280"#, r#""feature_dim": 1281"#);
    let error = image_error(folder.path());
    let EncoderError::TensorShape { key, expected, got, .. } = &error else { panic!("{error}") };
    assert_eq!((key.as_str(), expected.as_slice()), ("_conv_head.weight", &[1281, 320, 1, 1][..]));
    assert_eq!(got, &[1280, 320, 1, 1]);

    let folder = copy("efficientnet-lite0");
    replace_in_header(&folder.path().join("model.safetensors"), "_conv_head.weight", "_conv_tail.weight");
    assert!(
        matches!(image_error(folder.path()), EncoderError::MissingTensor { key, .. } if key == "_conv_head.weight")
    );

    let folder = copy("static-minilm");
    replace(&folder.path().join("config.json"), r#""hidden_dim": 256"#, r#""hidden_dim": 300"#);
    let error = text_error(folder.path());
    assert!(matches!(&error, EncoderError::TensorShape { got, .. } if got == &[17000, 256]), "{error}");
}

#[test]
fn weights_that_are_not_numbers() {
    let folder = copy("efficientnet-lite0");
    let file = folder.path().join("model.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    let end = bytes.len();
    bytes[end - 4..].fill(0xff);
    fs::write(&file, bytes).unwrap();
    assert!(matches!(image_error(folder.path()), EncoderError::TensorValue { .. }));
}

#[test]
fn truncated_and_hostile_weight_files() {
    let whole = fs::read(path("backbones/static-minilm/model.safetensors")).unwrap();
    let mut huge_header = whole.clone();
    huge_header[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    let mut wrong_header = whole.clone();
    wrong_header[8..16].fill(0);
    let offsets = br#"{"embeddings":{"dtype":"F16","shape":[18446744073709551615,2],"data_offsets":[0,4]}}"#;
    let mut overflowing = (offsets.len() as u64).to_le_bytes().to_vec();
    overflowing.extend_from_slice(offsets);
    overflowing.extend_from_slice(&[0; 4]);
    let cases = [
        Vec::new(),
        whole[..7].to_vec(),
        whole[..whole.len() - 1].to_vec(),
        huge_header,
        wrong_header,
        overflowing,
    ];
    for (index, bytes) in cases.iter().enumerate() {
        let folder = copy("static-minilm");
        fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
        let error = text_error(folder.path());
        assert!(matches!(&error, EncoderError::Safetensors { .. }), "case {index}: {error}");
        assert!(std::error::Error::source(&error).is_some());
    }
}

#[test]
fn a_tokenizer_that_does_not_load() {
    let folder = copy("static-minilm");
    fs::write(folder.path().join("tokenizer.json"), "{}").unwrap();
    assert!(matches!(text_error(folder.path()), EncoderError::Tokenizer { .. }));
}

#[test]
fn configurations_that_are_no_text_or_no_end() {
    let folder = copy("static-minilm");
    let config = folder.path().join("config.json");
    for bytes in [&b"\xff\xfe\x00"[..], b"{\"model_type\": \"\xff\"}", b"", b"[1, 2", &[b'['; 100_000]] {
        fs::write(&config, bytes).unwrap();
        let error = text_error(folder.path());
        assert!(matches!(&error, EncoderError::Json { file, .. } if *file == config), "{error}");
    }
    // Sparse: takes no room on the disk.
    fs::File::create(&config).unwrap().set_len(1 << 40).unwrap();
    let error = text_error(folder.path());
    assert!(
        matches!(&error, EncoderError::FileSize { file, expected: 16_777_216 } if *file == config),
        "{error}"
    );

    let folder = copy("static-minilm");
    fs::File::create(folder.path().join("tokenizer.json")).unwrap().set_len(1 << 40).unwrap();
    assert!(matches!(text_error(folder.path()), EncoderError::FileSize { expected: 134_217_728, .. }));
}

/// A safetensors file with this header and `length` bytes after it.
fn with_header(header: &str, length: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.resize(bytes.len() + length, 0);
    bytes
}

#[test]
fn headers_whose_tensors_overlap_repeat_or_leave_gaps() {
    let folder = copy("static-minilm");
    for (header, length) in [
        (
            r#"{"a":{"dtype":"F16","shape":[2],"data_offsets":[0,4]},"b":{"dtype":"F16","shape":[2],"data_offsets":[2,6]}}"#,
            6,
        ),
        (
            r#"{"a":{"dtype":"F16","shape":[2],"data_offsets":[0,4]},"b":{"dtype":"F16","shape":[2],"data_offsets":[6,10]}}"#,
            10,
        ),
        (r#"{"a":{"dtype":"F16","shape":[2],"data_offsets":[4,0]}}"#, 4),
        (r#"{"a":{"dtype":"F16","shape":[3],"data_offsets":[0,4]}}"#, 4),
        (r#"{"a":{"dtype":"F99","shape":[2],"data_offsets":[0,4]}}"#, 4),
        (r#"{"a":{"dtype":"F16","shape":[2],"data_offsets":[0,18446744073709551615]}}"#, 4),
        (r#"{"a":{"dtype":"F16","shape":[4294967296,4294967296,4294967296],"data_offsets":[0,4]}}"#, 4),
        (r#"{"a":{"dtype":"F16","shape":[-1],"data_offsets":[0,4]}}"#, 4),
    ] {
        fs::write(folder.path().join("model.safetensors"), with_header(header, length)).unwrap();
        let error = text_error(folder.path());
        assert!(matches!(error, EncoderError::Safetensors { .. }), "{header}: {error}");
    }
    // Of a name that comes twice the parser keeps the last; then the tensors do not fill the file.
    let twice = r#"{"embeddings":{"dtype":"F16","shape":[2],"data_offsets":[0,4]},"embeddings":{"dtype":"F16","shape":[2],"data_offsets":[4,8]}}"#;
    fs::write(folder.path().join("model.safetensors"), with_header(twice, 8)).unwrap();
    assert!(matches!(text_error(folder.path()), EncoderError::Safetensors { .. }));
}

#[test]
fn mutated_weights_load_or_are_refused() {
    let folder = copy("static-minilm");
    let file = folder.path().join("model.safetensors");
    let whole = fs::read(&file).unwrap();
    // The header alone is mutated: a changed number among the values is another model, not a damaged file.
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    for mutated in crate::mutation::Mutations::new(5, &whole[..header]).take(100) {
        let bytes = [&mutated, &whole[header..]].concat();
        fs::write(&file, bytes).unwrap();
        if let Err(error) = load_text_backbone(folder.path(), &Device::Cpu) {
            let typed = matches!(
                error,
                EncoderError::Safetensors { .. }
                    | EncoderError::MissingTensor { .. }
                    | EncoderError::TensorShape { .. }
                    | EncoderError::TensorType { .. }
                    | EncoderError::TensorValue { .. }
            );
            assert!(typed, "{error}");
        }
    }
}
