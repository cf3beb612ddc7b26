//! A small training on the fixtures, from files to a model that can be loaded and scored.

use std::path::PathBuf;

use aeir_data::{ParallelDomain, TargetImages, TargetSentences, TestPairs};
use aeir_encoders::bundle::{BackbonePlacement, BundleParts, save};
use aeir_encoders::{Bundle, load_image_backbone, load_text_backbone};
use aeir_retrieve::Relevance;
use aeir_train::config::Standardise;
use aeir_train::features::{FeatureExtractor, ImageEncoder, SentenceEncoder};
use aeir_train::validate::embed_table;
use aeir_train::{Silent, TrainConfig, TrainingData, train};
use candle_core::Device;

fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")
}

#[test]
fn a_model_trained_on_the_fixtures_beats_chance_by_far_and_survives_its_folder() {
    let device = Device::Cpu;
    let folder = tempfile::tempdir().unwrap();
    let images = load_image_backbone(&fixtures().join("backbones/efficientnet-lite0"), &device).unwrap();
    let sentences = load_text_backbone(&fixtures().join("backbones/static-minilm"), &device).unwrap();
    let mut extractor = FeatureExtractor::new(
        ImageEncoder::Pooled(images.as_ref()),
        SentenceEncoder::Pooled(sentences.as_ref()),
    )
    .with_cache(&folder.path().join("cache"))
    .unwrap();

    let mut domain = ParallelDomain::read(&fixtures().join("datasets/noto-cldr/captions.jsonl")).unwrap();
    domain.train.truncate(300);
    domain.validation.truncate(40);
    let clip_art = fixtures().join("datasets/openclipart");
    let (source, skipped) = extractor.source(&domain).unwrap();
    assert!(skipped.is_empty());
    let list = folder.path().join("images.txt");
    let names: Vec<String> = TargetImages::read(&clip_art.join("train_images.txt"))
        .unwrap()
        .images()
        .iter()
        .take(60)
        .map(|image| image.absolute_name().unwrap())
        .collect();
    std::fs::write(&list, names.join("\n")).unwrap();
    let target = extractor
        .target(
            &TargetImages::read(&list).unwrap(),
            &TargetSentences::read(&clip_art.join("train_sentences.txt")).unwrap(),
        )
        .unwrap();
    assert_eq!((target.0.images.len(), target.0.sentences.len()), (60, 366), "the two sets differ in size");

    let data = TrainingData { sources: vec![source], target: Some(target.0), labelled: None };
    let config = TrainConfig {
        standardise: Standardise::Standardise,
        epochs: 8,
        batch_size: 64,
        ..TrainConfig::default()
    };
    let trained = train(&config, &data, None, &device, &mut Silent).unwrap();

    let model = folder.path().join("model");
    std::fs::create_dir(&model).unwrap();
    save(
        &model,
        &BundleParts {
            method: config.method.as_str(),
            encoder: trained.encoder,
            parameters: &trained.parameters,
            standardisation: &trained.standardisation,
            image_backbone: Some(images.as_ref()),
            sentence_backbone: Some(sentences.as_ref()),
            vocabulary: None,
            backbones: BackbonePlacement::Copied,
        },
    )
    .unwrap();
    // Moved, and read back with nothing but what is in it.
    let moved = folder.path().join("moved");
    std::fs::rename(&model, &moved).unwrap();
    let bundle = Bundle::load(&moved, &device).unwrap();

    let held_out = data.sources[0].validation.as_ref().unwrap();
    let pairs = TestPairs::read(&clip_art.join("test.jsonl"), None).unwrap();
    assert_eq!(pairs.images().len(), 365);
    // Source statistics don't apply here: the bundle serves the target. Held-out source pairs are still far above chance.
    let images = embed_table(&held_out.images, &device, |items| bundle.encode_images(items)).unwrap();
    let sentences =
        embed_table(&held_out.sentences, &device, |items| bundle.encode_sentences(items)).unwrap();
    let relevance = Relevance::from_owners(images.rows(), &held_out.owners).unwrap();
    let scored = aeir_retrieve::evaluate_embeddings(&images, &sentences, &relevance).unwrap();
    let chance = aeir_retrieve::chance(&relevance);
    assert!(scored.rsum > 2.0 * chance.rsum, "{} against chance {}", scored.rsum, chance.rsum);

    // The same features from the cache give the same model.
    let again = train(&config, &data, None, &device, &mut Silent).unwrap();
    let bytes = |parameters| aeir_encoders::bundle::tensor_bytes(parameters).unwrap();
    assert_eq!(bytes(&again.parameters), bytes(&trained.parameters));
}

#[test]
fn broken_images_are_left_out_and_named() {
    let device = Device::Cpu;
    let folder = tempfile::tempdir().unwrap();
    let images = load_image_backbone(&fixtures().join("backbones/efficientnet-lite0"), &device).unwrap();
    let sentences = load_text_backbone(&fixtures().join("backbones/static-minilm"), &device).unwrap();
    let good = fixtures().join("datasets/openclipart/images/002c693f44bc.webp");
    let broken = folder.path().join("cut.webp");
    let bytes = std::fs::read(&good).unwrap();
    std::fs::write(&broken, &bytes[..bytes.len() / 2]).unwrap();
    let missing = folder.path().join("missing.webp");
    let sources = [&broken, &good, &missing, &good].map(|path| aeir_data::ImageSource::from(path.clone()));
    let mut extractor = FeatureExtractor::new(
        ImageEncoder::Pooled(images.as_ref()),
        SentenceEncoder::Pooled(sentences.as_ref()),
    );
    let extracted = extractor.images("images", &sources).unwrap();
    assert_eq!(extracted.rows, [None, Some(0), None, Some(1)]);
    let named: Vec<&str> = extracted.skipped.iter().map(|skipped| skipped.item.as_str()).collect();
    assert_eq!(named, [broken.to_str().unwrap(), missing.to_str().unwrap()]);
    assert!(extractor.images("images", &sources[..1]).is_err(), "nothing left is an error");
}
