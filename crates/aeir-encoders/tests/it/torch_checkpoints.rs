//! PyTorch's files against what PyTorch says is in them, and against hostile bytes.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use aeir_encoders::{EncoderError, TorchCheckpoint};
use safetensors::{Dtype, SafeTensors};

use crate::fixtures::path;
use crate::mutation::Mutations;

fn file(name: &str) -> PathBuf {
    path("formats/pth").join(name)
}

fn open(name: &str) -> TorchCheckpoint {
    TorchCheckpoint::open(&file(name)).unwrap()
}

/// Type, sizes and bytes by name.
type Content = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

fn safetensors(bytes: &[u8]) -> Content {
    let tensors = SafeTensors::deserialize(bytes).unwrap();
    let content = |(name, view): (&str, safetensors::tensor::TensorView<'_>)| {
        (name.to_owned(), (view.dtype(), view.shape().to_vec(), view.data().to_vec()))
    };
    tensors.iter().map(content).collect()
}

fn refusal(name: &str) -> String {
    match TorchCheckpoint::open(&file(name)) {
        Err(error @ EncoderError::Checkpoint { .. }) => {
            error.to_string().replace(&*file(name).to_string_lossy(), name)
        }
        Err(other) => panic!("{name}: {other}"),
        Ok(_) => panic!("{name} was read"),
    }
}

#[test]
fn every_format_gives_the_tensors_that_pytorch_saved() {
    let expected = safetensors(&fs::read(file("network.safetensors")).unwrap());
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("model.safetensors");
    for name in ["network_zip.pth", "network_legacy.pth", "network_protocol4.pth"] {
        let checkpoint = open(name);
        for key in [None, Some("model")] {
            checkpoint.save(&checkpoint.select(key).unwrap(), &output).unwrap();
            let got = safetensors(&fs::read(&output).unwrap());
            assert_eq!(got.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{name}");
            for (tensor, expected) in &expected {
                assert_eq!(&got[tensor], expected, "{name}: {tensor}");
            }
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "{name}: a temporary file is left");
    }
}

#[test]
fn what_is_no_tensor_is_named() {
    for name in ["network_zip.pth", "network_legacy.pth", "network_protocol4.pth"] {
        let left: Vec<String> =
            open(name).left_out().iter().map(|other| format!("{}: {}", other.name, other.what)).collect();
        assert_eq!(
            left,
            [
                "epoch: 3",
                "best_rsum: an object of `numpy._core.multiarray.scalar`",
                "opt: an object of `argparse.Namespace`"
            ],
            "{name}"
        );
    }
}

#[test]
fn several_networks_need_a_key() {
    let checkpoint = open("several.pth.tar");
    let names = |key| -> Vec<String> {
        checkpoint.select(Some(key)).unwrap().into_iter().map(|(name, _)| name).collect()
    };
    assert_eq!(names("model"), ["0.weight", "0.bias", "1.rnn.weight"]);
    assert_eq!(names("model.0"), ["weight", "bias"]);
    assert_eq!(names("optimizer.state.0"), ["step", "exp_avg", "exp_avg_sq"]);
    let told = |key| checkpoint.select(key).unwrap_err().to_string();
    let without = told(None);
    assert!(
        without
            .contains("expected one value that holds them, got `model` (3 tensors), `optimizer` (3 tensors)"),
        "{without}"
    );
    let unknown = told(Some("state_dict"));
    assert!(unknown.contains("expected some under `state_dict`, got `model` (3 tensors)"), "{unknown}");
    // A part of a name is no key, and neither is a value without tensors.
    assert!(told(Some("mod")).contains("`mod`"));
    assert!(told(Some("Eiters")).contains("got 17"));
}

#[test]
fn bytes_without_a_type_take_that_of_the_tensor() {
    let checkpoint = open("untyped.pth");
    let tensor = &checkpoint.tensors()[0];
    assert_eq!((tensor.dtype(), tensor.shape()), (Dtype::U16, &[2][..]));
    assert_eq!(*checkpoint.data(tensor), [1, 0, 255, 255]);
}

#[test]
fn nothing_that_is_pickled_runs() {
    let checkpoint = open("harmful.pth");
    assert_eq!(checkpoint.select(None).unwrap()[0].0, "weight");
    assert_eq!(checkpoint.left_out()[0].what, "an object of `posix.system`");
    assert!(!Path::new("harm.txt").exists(), "the command ran");
}

#[test]
fn tensors_that_are_not_plain_numbers_in_rows() {
    assert_eq!(
        refusal("sparse.pth"),
        "byte 375 of `data.pkl`: expected a dense tensor (`torch._utils._rebuild_tensor_v2`), got \
         `torch._utils._rebuild_sparse_tensor` in `sparse.pth`"
    );
    assert_eq!(
        refusal("expanded.pth"),
        "`weight`: expected at most the 1 elements of its storage, got shape [1000] in `expanded.pth`"
    );
    assert!(refusal("complex.pth").contains("got `torch.ComplexFloatStorage`"));
    let module = open("module.pth");
    let told = module.select(None).unwrap_err().to_string();
    assert!(
        told.contains("expected a dictionary of tensors, got an object of `torch.nn.modules.linear.Linear`"),
        "{told}"
    );
}

#[test]
fn files_of_other_formats() {
    let folder = tempfile::tempdir().unwrap();
    let told = |bytes: &[u8]| {
        let path = folder.path().join("file.pth");
        fs::write(&path, bytes).unwrap();
        match TorchCheckpoint::open(&path) {
            Err(EncoderError::Checkpoint { place, expected, got, .. }) => {
                format!("{place}: {expected} / {got}")
            }
            other => panic!("{other:?}"),
        }
    };
    assert!(told(b"").contains("another format"));
    assert!(told(&fs::read(file("network.safetensors")).unwrap()).contains("another format"));
    assert_eq!(
        told(b"\x80\x02K\x01."),
        "magic number: that of PyTorch / another value: a pickle, but no checkpoint"
    );
    assert_eq!(told(b"\x80\x09K\x01."), "magic number, byte 0 of the file: pickle protocol 2 to 5 / 9");
    assert_eq!(
        told(b"\x80\x02(S'text'\n"),
        "magic number, byte 3 of the file: an instruction that checkpoints use / 0x53"
    );
    assert!(told(b"PK\x03\x04 and no more").starts_with("the zip archive"));
    let mut tar = vec![0; 512];
    tar[257..262].copy_from_slice(b"ustar");
    assert!(told(&tar).contains("a tar archive: unpack it"));
    assert!(matches!(
        TorchCheckpoint::open(&folder.path().join("none.pth")),
        Err(EncoderError::MissingFile { .. })
    ));
}

/// A pickle behind the four others of the old format.
fn legacy(object: &[u8]) -> Vec<u8> {
    let mut bytes =
        b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03.\x80\x02}.".to_vec();
    bytes.extend_from_slice(object);
    bytes.extend_from_slice(b"\x80\x02].");
    bytes
}

#[test]
fn pickles_that_ask_for_more_than_they_have() {
    let folder = tempfile::tempdir().unwrap();
    let read = |object: &[u8]| {
        let path = folder.path().join("file.pth");
        fs::write(&path, legacy(object)).unwrap();
        TorchCheckpoint::open(&path)
    };
    // A million tuples, each in the next: no recursion, and too deep to walk only where something is inside.
    let mut nested = b"\x80\x02".to_vec();
    nested.extend(std::iter::repeat_n(b']', 1_000_000));
    nested.extend(std::iter::repeat_n(b'a', 999_999));
    nested.push(b'.');
    assert!(read(&nested).unwrap_err().to_string().contains("32 deep"));
    // A list in itself.
    assert!(read(b"\x80\x02]q\x00h\x00a.").unwrap_err().to_string().contains("32 deep"));
    // A list of two lists of two lists, thirty times, is a billion places.
    let mut doubled = b"\x80\x02}q\x00".to_vec();
    for key in 1..31_u8 {
        doubled.extend([b']', b'q', key, b'h', key - 1, b'a', b'h', key - 1, b'a']);
    }
    doubled.push(b'.');
    assert!(read(&doubled).unwrap_err().to_string().contains("more"));
    // Lengths that no file has.
    for object in [
        &b"\x80\x02X\xff\xff\xff\xff."[..],
        b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\xff.",
        b"\x80\x02\x8b\xff\xff\xff\x7f.",
    ] {
        assert!(matches!(read(object), Err(EncoderError::Checkpoint { .. })));
    }
    // Too many values.
    let mut many = b"\x80\x02".to_vec();
    many.extend(std::iter::repeat_n(b'N', (1 << 21) + 1));
    many.push(b'.');
    assert!(read(&many).unwrap_err().to_string().contains("at most 2097152 values"));
}

#[test]
fn mutated_checkpoints_are_read_or_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file.pth");
    let output = folder.path().join("model.safetensors");
    for (seed, name) in ["network_zip.pth", "network_legacy.pth", "network_protocol4.pth", "several.pth.tar"]
        .into_iter()
        .enumerate()
    {
        let whole = fs::read(file(name)).unwrap();
        for mutated in Mutations::new(seed as u64, &whole).take(400) {
            fs::write(&path, &mutated).unwrap();
            check(&path, &output, mutated.len());
        }
    }
}

/// Reads a file that may be anything: it gives tensors that lie in it, or a typed error.
fn check(path: &Path, output: &Path, length: usize) {
    let checkpoint = match TorchCheckpoint::open(path) {
        Ok(checkpoint) => checkpoint,
        Err(EncoderError::Checkpoint { .. }) => return,
        Err(other) => panic!("{other}"),
    };
    for tensor in checkpoint.tensors() {
        let elements: usize = tensor.shape().iter().product();
        assert_eq!(checkpoint.data(tensor).len(), elements * tensor.dtype().bitsize() / 8);
    }
    let all: Vec<_> = checkpoint.tensors().iter().map(|tensor| (tensor.name(), tensor)).collect();
    match checkpoint.save(&all, output) {
        Ok(()) => assert!(fs::metadata(output).unwrap().len() as usize <= 16 * length + 100_000),
        Err(EncoderError::Checkpoint { .. } | EncoderError::Safetensors { .. }) => {}
        Err(other) => panic!("{other}"),
    }
}
