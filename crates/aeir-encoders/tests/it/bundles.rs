//! Trained models as folders: what comes back, and that nothing damaged does.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use aeir_encoders::bundle::{
    BackbonePlacement, Bundle, BundleParts, MANIFEST_FILE, Manifest, WEIGHTS_FILE, copy_backbones, save,
};
use aeir_encoders::standardise::{DomainStatistics, Standardisation};
use aeir_encoders::{
    DualEncoderConfig, EncoderError, VOCABULARY_FILE, Vocabulary, load_image_backbone, load_text_backbone,
};
use aeir_encoders::{ImageInput, SentenceInput, WordOptions, tower};
use candle_core::{Device, Tensor};

use crate::fixtures::{flat, image, path};

const DIMENSION: usize = 4;

fn ramp(shape: &[usize]) -> Tensor {
    let count: usize = shape.iter().product();
    let values: Vec<f32> = (0..count).map(|index| ((index * 37 % 101) as f32 - 50.0) / 500.0).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn raw_features() -> Standardisation {
    Standardisation::new(BTreeMap::from([("target".to_owned(), DomainStatistics::default())]), "target")
        .unwrap()
}

/// A model with both backbones of the fixtures.
fn with_backbones(folder: &Path) -> Manifest {
    with_backbones_placed(folder, BackbonePlacement::Copied)
}

fn with_backbones_placed(folder: &Path, backbones: BackbonePlacement<'_>) -> Manifest {
    let image = load_image_backbone(&path("backbones/efficientnet-lite0"), &Device::Cpu).unwrap();
    let sentence = load_text_backbone(&path("backbones/static-minilm"), &Device::Cpu).unwrap();
    let (images, sentences) = (image.dimension(), sentence.dimension());
    let parameters = BTreeMap::from([
        ("image.projection.weight".to_owned(), ramp(&[DIMENSION, images])),
        ("image.projection.bias".to_owned(), ramp(&[DIMENSION])),
        ("sentence.projection.weight".to_owned(), ramp(&[DIMENSION, sentences])),
        ("sentence.projection.bias".to_owned(), ramp(&[DIMENSION])),
        ("log_scale".to_owned(), Tensor::new(2f32, &Device::Cpu).unwrap()),
    ]);
    let parts = BundleParts {
        method: "source-only",
        encoder: DualEncoderConfig::pooled(images, sentences, DIMENSION),
        parameters: &parameters,
        standardisation: &raw_features(),
        image_backbone: Some(image.as_ref()),
        sentence_backbone: Some(sentence.as_ref()),
        vocabulary: None,
        backbones,
    };
    save(folder, &parts).unwrap()
}

/// A small model of region features and words.
fn with_words(folder: &Path) -> Manifest {
    let vocabulary = Vocabulary::build(["a red ball", "a blue kite"].into_iter(), 1);
    let words = WordOptions { word_dimension: 3, dropout: 0.0, bidirectional: false };
    let encoder = DualEncoderConfig {
        image_input: ImageInput::Fragments(2),
        sentence_input: SentenceInput::Words(words),
        head: tower::Head::ScanT2i,
        ..DualEncoderConfig::pooled(5, vocabulary.size(), DIMENSION)
    };
    let gates = 3 * DIMENSION;
    let mut parameters = BTreeMap::from([
        ("image.projection.weight".to_owned(), ramp(&[DIMENSION, 5])),
        ("image.projection.bias".to_owned(), ramp(&[DIMENSION])),
        ("sentence.words.weight".to_owned(), ramp(&[vocabulary.size(), 3])),
        ("log_scale".to_owned(), Tensor::new(2f32, &Device::Cpu).unwrap()),
    ]);
    for (part, width) in [("input", 3), ("hidden", DIMENSION)] {
        parameters.insert(format!("sentence.gru.forward.{part}.weight"), ramp(&[gates, width]));
        parameters.insert(format!("sentence.gru.forward.{part}.bias"), ramp(&[gates]));
    }
    let parts = BundleParts {
        method: "scan",
        encoder,
        parameters: &parameters,
        standardisation: &raw_features(),
        image_backbone: None,
        sentence_backbone: None,
        vocabulary: Some(&vocabulary),
        backbones: BackbonePlacement::Copied,
    };
    save(folder, &parts).unwrap()
}

fn load(folder: &Path) -> Result<Bundle, EncoderError> {
    Bundle::load(folder, &Device::Cpu)
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

/// What may be said of a damaged folder: everything about its files, nothing about the caller or candle.
fn is_about_files(error: &EncoderError) -> bool {
    matches!(
        error,
        EncoderError::Bundle { .. }
            | EncoderError::MissingFile { .. }
            | EncoderError::Read { .. }
            | EncoderError::Json { .. }
            | EncoderError::Config { .. }
            | EncoderError::Unsupported { .. }
            | EncoderError::Safetensors { .. }
            | EncoderError::MissingTensor { .. }
            | EncoderError::TensorShape { .. }
            | EncoderError::TensorType { .. }
            | EncoderError::TensorValue { .. }
            | EncoderError::Tokenizer { .. }
    )
}

#[track_caller]
fn refused(folder: &Path, what: &str) {
    match load(folder) {
        Err(error) => assert!(is_about_files(&error), "{what}: {error}"),
        Ok(_) => panic!("{what}: it was loaded"),
    }
}

#[test]
fn a_moved_folder_embeds_as_before() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (folder.path().join("first"), folder.path().join("second"));
    fs::create_dir(&first).unwrap();
    let manifest = with_backbones(&first);
    let embed = |folder: &Path| {
        let bundle = load(folder).unwrap();
        assert_eq!(bundle.fingerprint(), manifest.fingerprint);
        let images = bundle.embed_images(&[image("datasets/noto-cldr/images/1f600.webp")]).unwrap();
        let sentences = bundle.embed_sentences(&["a smiling face", "a train"]).unwrap();
        [flat(&images), flat(&sentences)]
    };
    let before = embed(&first);
    fs::rename(&first, &second).unwrap();
    assert_eq!(embed(&second), before);
    let names: Vec<_> =
        files(&second).iter().map(|file| file.strip_prefix(&second).unwrap().to_owned()).collect();
    let expected = [
        "encoders/image/config.json",
        "encoders/image/model.safetensors",
        "encoders/sentence/config.json",
        "encoders/sentence/model.safetensors",
        "encoders/sentence/tokenizer.json",
        MANIFEST_FILE,
        WEIGHTS_FILE,
    ];
    assert_eq!(names, expected.map(PathBuf::from));
}

#[test]
fn every_damaged_file_is_refused() {
    for (make, count) in [(with_backbones as fn(&Path) -> Manifest, 7), (with_words, 3)] {
        let folder = tempfile::tempdir().unwrap();
        make(folder.path());
        let files = files(folder.path());
        assert_eq!(files.len(), count);
        for file in files {
            let name = file.display();
            let whole = fs::read(&file).unwrap();
            fs::remove_file(&file).unwrap();
            refused(folder.path(), &format!("{name} missing"));
            for length in [0, 1, whole.len() / 2, whole.len() - 1] {
                fs::write(&file, &whole[..length]).unwrap();
                refused(folder.path(), &format!("{name} cut to {length}"));
            }
            for part in [0, 1, 3, 6, 7] {
                let at = (whole.len() - 1) * part / 7;
                let mut flipped = whole.clone();
                flipped[at] ^= 1 << (part % 7);
                fs::write(&file, &flipped).unwrap();
                refused(folder.path(), &format!("{name}, a bit of byte {at}"));
            }
            fs::write(&file, whole).unwrap();
        }
        load(folder.path()).unwrap();
    }
}

#[test]
fn every_byte_of_the_manifest_counts() {
    let folder = tempfile::tempdir().unwrap();
    with_words(folder.path());
    let file = folder.path().join(MANIFEST_FILE);
    let whole = fs::read(&file).unwrap();
    for at in 0..whole.len() {
        let bit = at % 8;
        let mut flipped = whole.clone();
        flipped[at] ^= 1 << bit;
        fs::write(&file, &flipped).unwrap();
        match Manifest::read(folder.path()) {
            Err(error) => assert!(is_about_files(&error), "bit {bit} of byte {at}: {error}"),
            Ok(_) => panic!("bit {bit} of byte {at}: {}", String::from_utf8_lossy(&flipped)),
        }
    }
}

#[test]
fn manifests_of_other_formats_and_versions() {
    let folder = tempfile::tempdir().unwrap();
    with_words(folder.path());
    let file = folder.path().join(MANIFEST_FILE);
    let whole = fs::read_to_string(&file).unwrap();
    let told = |from: &str, to: &str| {
        assert!(whole.contains(from));
        fs::write(&file, whole.replacen(from, to, 1)).unwrap();
        match load(folder.path()) {
            Err(EncoderError::Bundle { reason, .. }) => reason,
            Err(other) => panic!("{other}"),
            Ok(_) => panic!("{to} was loaded"),
        }
    };
    assert!(told("\"version\": 1", "\"version\": 2").starts_with("expected model format version 1, got 2"));
    assert_eq!(told("aeir-model", "aeir-index"), "expected format `aeir-model`, got `aeir-index`");
    assert!(told("\"method\": \"scan\"", "\"method\": \"saf\"").starts_with("`manifest.json` was changed"));
}

#[test]
fn parts_of_another_model_are_refused() {
    let (ours, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    with_words(ours.path());
    with_backbones(other.path());
    fs::copy(other.path().join(WEIGHTS_FILE), ours.path().join(WEIGHTS_FILE)).unwrap();
    refused(ours.path(), "weights");
    with_words(ours.path());
    Vocabulary::build(["other words"].into_iter(), 1).save(&ours.path().join(VOCABULARY_FILE)).unwrap();
    refused(ours.path(), "vocabulary");
    let config = other.path().join("encoders/image/config.json");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("224x224, aspect", "224x224; aspect")).unwrap();
    refused(other.path(), "a backbone");
}

#[test]
fn a_published_dual_encoder_is_a_model_as_it_is() {
    use aeir_encoders::PretrainedDualEncoder;
    use aeir_encoders::bundle::ZERO_SHOT;

    for name in ["clip", "siglip"] {
        let folder = crate::tiny_models::copy(name);
        let bundle = load(folder.path()).unwrap();
        let dual = PretrainedDualEncoder::load(folder.path(), &Device::Cpu).unwrap();
        assert!(bundle.is_zero_shot() && bundle.manifest().method == ZERO_SHOT);
        assert_eq!(bundle.dimension(), dual.dimension());
        let (pictures, sentences) =
            ([image("datasets/noto-cldr/images/1f004.webp")], ["a red dog", "two children"]);
        let images = bundle.embed_images(&pictures).unwrap();
        let texts = bundle.embed_sentences(&sentences).unwrap();
        for (got, expected) in
            [(&images, dual.encode_images(&pictures)), (&texts, dual.encode_sentences(&sentences))]
        {
            for (a, b) in flat(got).iter().zip(flat(&expected.unwrap())) {
                assert!((a - b).abs() < 1e-6, "{name}: {a} {b}");
            }
        }
        let scale = bundle.encoder().log_scale().to_scalar::<f32>().unwrap();
        let (one, other) =
            (dual.logits(&images, &texts).unwrap(), images.matmul(&texts.t().unwrap()).unwrap());
        // A bias apart, the scores are the cosines by this scale.
        let slope = (flat(&one)[0] - flat(&one)[1]) / (flat(&other)[0] - flat(&other)[1]);
        assert!((slope - scale.exp()).abs() < 1e-2 * scale.exp(), "{name}: {slope}, {}", scale.exp());

        let copied = tempfile::tempdir().unwrap();
        bundle.copy_to(copied.path()).unwrap();
        let again = load(copied.path()).unwrap();
        assert!(!again.is_zero_shot(), "a model of this project now");
        assert_eq!(again.fingerprint(), bundle.fingerprint());
        assert_eq!(flat(&again.embed_sentences(&sentences).unwrap()), flat(&texts));
        assert_eq!(files(folder.path()).len(), 4, "nothing is written beside it");
    }
    let (clip, siglip) = (crate::tiny_models::copy("clip"), crate::tiny_models::copy("siglip"));
    assert_ne!(load(clip.path()).unwrap().fingerprint(), load(siglip.path()).unwrap().fingerprint());
    let text_alone = crate::tiny_models::copy("bert");
    refused(text_alone.path(), "not a model");
}

#[test]
fn a_copy_of_a_model_with_shared_encoders_stands_alone() {
    let home = tempfile::tempdir().unwrap();
    let (model, copy) = (home.path().join("runs/a"), home.path().join("elsewhere/copy"));
    fs::create_dir_all(&model).unwrap();
    fs::create_dir_all(&copy).unwrap();
    let image = load_image_backbone(&path("backbones/efficientnet-lite0"), &Device::Cpu).unwrap();
    let sentence = load_text_backbone(&path("backbones/static-minilm"), &Device::Cpu).unwrap();
    copy_backbones(&home.path().join("runs/encoders"), Some(image.as_ref()), Some(sentence.as_ref()))
        .unwrap();
    let manifest = with_backbones_placed(&model, BackbonePlacement::Shared("../encoders"));
    Bundle::load(&model, &Device::Cpu).unwrap().copy_to(&copy).unwrap();
    fs::remove_dir_all(home.path().join("runs")).unwrap();
    assert_eq!(Bundle::load(&copy, &Device::Cpu).unwrap().fingerprint(), manifest.fingerprint);
}
