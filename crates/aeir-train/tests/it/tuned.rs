//! Pre-trained encoders that are trained together with the towers.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test's helpers")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aeir_data::{ImageLimits, ImageSource};
use aeir_encoders::{Head, load_image_backbone, load_text_backbone};
use aeir_train::config::{BackboneConfig, IMAGE_BACKBONE, TEXT_BACKBONE, Tuning};
use aeir_train::features::{FeatureExtractor, ImageEncoder, SentenceEncoder};
use aeir_train::run::{Existing, METRICS_FILE, Opened, RunFolder};
use aeir_train::{
    EvaluationPairs, MethodName, Observer, Silent, SourceData, TargetData, TrainConfig, TrainError,
    TrainingData, TunedEncoder, train,
};
use candle_core::{Device, Tensor};

const DEVICE: Device = Device::Cpu;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")
}

/// A tiny BERT with a vocabulary of colours.
fn text_folder(place: &Path) -> PathBuf {
    let folder = place.join("bert");
    fs::create_dir(&folder).unwrap();
    for name in ["config.json", "model.safetensors"] {
        fs::copy(fixtures().join("parity/tiny-models/bert").join(name), folder.join(name)).unwrap();
    }
    let words: Vec<String> = ["[PAD]", "[UNK]", "a", "of"]
        .into_iter()
        .map(str::to_owned)
        .chain((0..24).map(|number| format!("w{number}")))
        .collect();
    let vocabulary: Vec<String> =
        words.iter().enumerate().map(|(id, word)| format!("\"{word}\":{id}")).collect();
    let tokenizer = format!(
        r#"{{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],"normalizer":null,
        "pre_tokenizer":{{"type":"Whitespace"}},"post_processor":null,"decoder":null,
        "model":{{"type":"WordLevel","vocab":{{{}}},"unk_token":"[UNK]"}}}}"#,
        vocabulary.join(",")
    );
    fs::write(folder.join("tokenizer.json"), tokenizer).unwrap();
    folder
}

struct Scene {
    place: tempfile::TempDir,
    text: PathBuf,
}

impl Scene {
    fn new() -> Self {
        let place = tempfile::tempdir().unwrap();
        let text = text_folder(place.path());
        Self { place, text }
    }

    fn image_folder() -> PathBuf {
        fixtures().join("parity/tiny-models/vit")
    }

    fn config(&self, image: Tuning, text: Tuning) -> TrainConfig {
        let mut config = TrainConfig {
            method: MethodName::Aeir,
            epochs: 4,
            batch_size: 6,
            target_batch_size: 4,
            checkpoint_every: 1,
            ..TrainConfig::default()
        };
        config.model.embedding_dimension = 8;
        config.adaptation.source_share = 0.5;
        let backbone =
            |train| BackboneConfig { train, learning_rate: 1e-3, rank: 2, ..BackboneConfig::default() };
        (config.model.image_backbone, config.model.text_backbone) = (backbone(image), backbone(text));
        config.resolved().unwrap()
    }

    /// The same items each time, with encoders as they were published.
    fn data(&self, config: &TrainConfig) -> TrainingData {
        let images = load_image_backbone(&Self::image_folder(), &DEVICE).unwrap();
        let sentences = load_text_backbone(&self.text, &DEVICE).unwrap();
        let (image, text) = (&config.model.image_backbone, &config.model.text_backbone);
        let limits = ImageLimits::default();
        let tuned_images = (image.train != Tuning::Frozen)
            .then(|| TunedEncoder::images(&Self::image_folder(), &DEVICE, image, 1, limits).unwrap());
        let tuned_sentences = (text.train != Tuning::Frozen)
            .then(|| TunedEncoder::sentences(&self.text, &DEVICE, text, 1).unwrap());
        let mut extractor = FeatureExtractor::new(
            ImageEncoder::Pooled(images.as_ref()),
            SentenceEncoder::Pooled(sentences.as_ref()),
        )
        .with_tuned(tuned_images.map(Arc::new), tuned_sentences.map(Arc::new));
        let files: Vec<ImageSource> = self.images();
        let mut of = |from: usize, count: usize| {
            let images = extractor.images("images", &files[from..from + count]).unwrap().table;
            let words: Vec<String> =
                (from..from + count).map(|item| format!("a w{} of w{}", item % 24, item % 7)).collect();
            (images, extractor.sentences("sentences", &words).unwrap())
        };
        let ((images, sentences), (held_images, held_sentences)) = (of(0, 14), of(14, 5));
        let (target_images, target_sentences) = (of(19, 6).0, of(25, 9).1);
        TrainingData {
            sources: vec![SourceData {
                name: "toy".into(),
                images,
                sentences,
                sentences_of: (0..14).map(|row| vec![row]).collect(),
                validation: Some(EvaluationPairs {
                    images: held_images,
                    sentences: held_sentences,
                    owners: (0..5).collect(),
                }),
            }],
            target: Some(TargetData { images: target_images, sentences: target_sentences }),
            labelled: None,
        }
    }

    fn images(&self) -> Vec<ImageSource> {
        let captions = fs::read_to_string(fixtures().join("datasets/noto-cldr/captions.jsonl")).unwrap();
        captions
            .lines()
            .take(34)
            .map(|line| {
                let record: serde_json::Value = serde_json::from_str(line).unwrap();
                let file = fixtures().join("datasets/noto-cldr").join(record["image"].as_str().unwrap());
                ImageSource::File(file)
            })
            .collect()
    }

    fn run(&self, name: &str, existing: Existing) -> RunFolder {
        match RunFolder::open(&self.place.path().join(name), existing).unwrap() {
            Opened::Ready(run) => run,
            Opened::Finished => panic!("finished"),
        }
    }
}

/// The vectors of the source's images, as the trained encoder gives them.
fn vectors(data: &TrainingData) -> Tensor {
    match data.sources[0].images.items(&[0, 1, 2], &DEVICE).unwrap() {
        aeir_encoders::Items::Pooled(vectors) => vectors,
        _ => panic!("not pooled"),
    }
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn encoders_learn_by_adapters_and_as_a_whole_and_are_saved() {
    let scene = Scene::new();
    for (image, text) in
        [(Tuning::Lora, Tuning::Frozen), (Tuning::Frozen, Tuning::Full), (Tuning::Full, Tuning::Lora)]
    {
        let config = scene.config(image, text);
        let data = scene.data(&config);
        let before = vectors(&data);
        let trained = train(&config, &data, None, &DEVICE, &mut Silent).unwrap();
        let names = || trained.parameters.keys();
        assert!(!names().any(|name| name.starts_with(IMAGE_BACKBONE) || name.starts_with(TEXT_BACKBONE)));
        let after = vectors(&data);
        assert_eq!(values(&before) == values(&after), image == Tuning::Frozen, "{image:?} {text:?}");
        let last = trained.history.last().unwrap();
        assert!(last.means.contains_key("structure_loss") && last.target_mutual_similarity.is_some());

        let aeir_train::ItemTable::Tuned(_) = &data.sources[0].images else { continue };
        // What is saved computes the same, frozen.
        let folder = scene.place.path().join(format!("{image:?}-{text:?}"));
        data.tuned_images().unwrap().save(&folder).unwrap();
        let frozen = load_image_backbone(&folder, &DEVICE).unwrap();
        let files: Vec<_> =
            scene.images().iter().take(3).map(|it| it.decode(&ImageLimits::default())).collect();
        let images: Vec<_> = files.into_iter().map(|it| it.unwrap().image).collect();
        let loaded = frozen.encode(&images).unwrap();
        for (got, expected) in values(&loaded).into_iter().zip(values(&after)) {
            assert!((got - expected).abs() < 1e-5, "{got}, expected {expected}");
        }
    }
}

/// Ends the training after so many steps.
struct StopAfter(usize);

impl Observer for StopAfter {
    fn interrupts(&mut self) -> bool {
        self.0 = self.0.saturating_sub(1);
        self.0 == 0
    }
}

#[test]
fn an_interruption_changes_no_byte_of_encoders_either() {
    let scene = Scene::new();
    let mut config = scene.config(Tuning::Lora, Tuning::Full);
    config.optimizer.ema_decay = 0.9;
    let data = scene.data(&config);
    let whole =
        train(&config, &data, Some(&scene.run("whole", Existing::Refuse)), &DEVICE, &mut Silent).unwrap();
    let (kept, features) = (whole.parameters, values(&vectors(&data)));
    let data = scene.data(&config);
    let stopped =
        train(&config, &data, Some(&scene.run("cut", Existing::Refuse)), &DEVICE, &mut StopAfter(5));
    assert!(matches!(stopped, Err(TrainError::Interrupted { step: 4, .. })), "{stopped:?}");
    // As another process would begin: with the encoders as they were published.
    let data = scene.data(&config);
    let resumed =
        train(&config, &data, Some(&scene.run("cut", Existing::Resume)), &DEVICE, &mut Silent).unwrap();
    for (name, value) in &kept {
        assert_eq!(values(value), values(&resumed.parameters[name]), "{name}");
    }
    assert_eq!(features, values(&vectors(&data)));
    let read = |run: &str| fs::read(scene.place.path().join(run).join(METRICS_FILE)).unwrap();
    assert!(read("cut") == read("whole"));
}

#[test]
fn what_can_not_be_trained_is_refused() {
    let scene = Scene::new();
    let mut config = scene.config(Tuning::Lora, Tuning::Frozen);
    config.method = MethodName::Adda;
    let told = config.resolved().unwrap_err().to_string();
    assert!(told.contains("`model.image_backbone.train` must be `frozen` with method `adda`"), "{told}");
    config.method = MethodName::Aeir;
    config.model.head = Some(Head::Saf);
    assert!(config.resolved().unwrap_err().to_string().contains("compares fragments"));
    let settings = BackboneConfig { train: Tuning::Full, ..BackboneConfig::default() };
    let folder = fixtures().join("backbones/static-minilm");
    assert!(TunedEncoder::sentences(&folder, &DEVICE, &settings, 1).is_err(), "a table of tokens");
    let freeze = vec!["no.such.*".to_owned()];
    let settings = BackboneConfig { freeze, ..settings };
    let told = TunedEncoder::sentences(&scene.text, &DEVICE, &settings, 1).unwrap_err().to_string();
    assert!(told.contains("no.such"), "{told}");
}
