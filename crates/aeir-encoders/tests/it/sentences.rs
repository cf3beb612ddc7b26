//! Text transformers from sentences: tokens, pooling, batches, and what goes wrong.

use std::fs;
use std::path::Path;

use aeir_encoders::{
    EncoderError, Mode, Pooling, SentenceTokenizer, TextBackbone, TextModel, TextTransformer, TokenBatch,
    l2_normalise, load_text_backbone,
};
use candle_core::{Device, Tensor};
use serde_json::{Value, json};

use crate::fixtures::{flat, max_difference, path};
use crate::tiny_models::{TEXT, copy, set, write_json};

const SENTENCES: [&str; 5] =
    ["a dog on the beach", "", "two children", "the red apple runs in the beach", "unheard words"];

fn error(folder: &Path) -> EncoderError {
    load_text_backbone(folder, &Device::Cpu).err().expect("an error")
}

/// Adds the modules of sentence-transformers to a folder.
fn add_modules(folder: &Path, mode: &str, limit: usize) {
    let module = |path: &str, kind: &str| json!({"path": path, "type": format!("sentence_transformers.models.{kind}")});
    let modules = json!([
        module("", "Transformer"),
        module("1_Pooling", "Pooling"),
        module("2_Normalize", "Normalize")
    ]);
    write_json(&folder.join("modules.json"), &modules);
    let mut pooling =
        json!({"word_embedding_dimension": 32, "include_prompt": true, "pooling_mode_mean_tokens": false});
    pooling[mode] = json!(true);
    write_json(&folder.join("1_Pooling/config.json"), &pooling);
    write_json(&folder.join("sentence_bert_config.json"), &json!({"max_seq_length": limit}));
}

#[test]
fn a_sentence_is_the_same_alone_and_in_any_batch() {
    for name in TEXT {
        let folder = copy(name);
        let backbone = load_text_backbone(folder.path(), &Device::Cpu).unwrap();
        let many: Vec<&str> = SENTENCES.iter().cycle().take(40).copied().collect();
        let together = backbone.encode(&many).unwrap();
        assert_eq!(together.dims(), [40, backbone.dimension()]);
        let fragments = backbone.fragments(&many).unwrap();
        assert_eq!(fragments.features().dims()[0], 40);
        for (index, sentence) in many.iter().enumerate() {
            let alone = backbone.encode(&[sentence]).unwrap();
            let difference = max_difference(&alone, &together.narrow(0, index, 1).unwrap());
            assert!(difference < 2e-6, "{name}, `{sentence}`: {difference}");
            let own = backbone.fragments(&[sentence]).unwrap();
            let length = own.features().dim(1).unwrap();
            let row = fragments.features().narrow(0, index, 1).unwrap().narrow(1, 0, length).unwrap();
            let difference = max_difference(own.features(), &row);
            assert!(difference < 1e-5, "{name}, fragments of `{sentence}`: {difference}");
            let counts = flat(&fragments.counts().unwrap());
            assert_eq!(counts[index], flat(&own.counts().unwrap())[0]);
        }
        assert!(flat(&together).iter().all(|value| value.is_finite()));
    }
}

#[test]
fn nothing_in_nothing_out() {
    for name in TEXT {
        let folder = copy(name);
        let backbone = load_text_backbone(folder.path(), &Device::Cpu).unwrap();
        assert_eq!(backbone.encode(&[]).unwrap().dims(), [0, backbone.dimension()]);
        assert_eq!(backbone.fragments(&[]).unwrap().features().dims(), [0, 1, backbone.dimension()]);
    }
}

/// What stands under the mask changes nothing, for any length of padding. SigLIP reads its padding: its tokens are fixed.
#[test]
fn padding_changes_nothing() {
    for name in TEXT.into_iter().filter(|name| *name != "siglip") {
        let model = TextModel::load(&path(&format!("parity/tiny-models/{name}")), &Device::Cpu).unwrap();
        let (real, padding) = ([10u32, 14, 11, 12, 21], if name == "xlm-roberta" { 1 } else { 0 });
        let run = |missing: usize| {
            let ids: Vec<u32> = real.into_iter().chain(std::iter::repeat_n(padding, missing)).collect();
            let mask: Vec<u32> = (0..ids.len()).map(|index| u32::from(index < real.len())).collect();
            let row = |values: Vec<u32>| {
                let length = values.len();
                Tensor::from_vec(values, (1, length), &Device::Cpu).unwrap()
            };
            let tokens = TokenBatch::new(&row(ids), &row(mask)).unwrap();
            let states = model.states(&tokens, &mut Mode::Evaluation).unwrap();
            (model.forward(&tokens, &mut Mode::Evaluation).unwrap(), states.narrow(1, 0, real.len()).unwrap())
        };
        let (pooled, states) = run(0);
        for missing in [1, 2, 5, 9] {
            let (padded, padded_states) = run(missing);
            assert!(max_difference(&pooled, &padded) < 2e-6, "{name}, {missing}");
            assert!(max_difference(&states, &padded_states) < 1e-5, "{name}, {missing}");
        }
    }
}

#[test]
fn pooling_and_length_are_those_of_the_modules() {
    let folder = copy("bert");
    let plain = TextTransformer::load(folder.path(), &Device::Cpu).unwrap();
    assert_eq!((plain.model().pooling(), plain.tokenizer().longest()), (Pooling::Mean, 24));
    let tokens = plain.tokenizer().batch(&SENTENCES).unwrap();
    let states = plain.model().states(&tokens, &mut Mode::Evaluation).unwrap();
    let first = l2_normalise(&states.narrow(1, 0, 1).unwrap().squeeze(1).unwrap()).unwrap();
    // A sentence's largest values, by a loop.
    let real = flat(&tokens.mask(&Device::Cpu).unwrap());
    let values = states.to_vec3::<f32>().unwrap();
    let mut largest = Vec::new();
    for (sentence, rows) in values.iter().enumerate() {
        let rows: Vec<_> =
            rows.iter().enumerate().filter(|(t, _)| real[sentence * rows.len() + t] != 0.0).collect();
        largest.extend((0..32).map(|i| rows.iter().map(|(_, row)| row[i]).fold(f32::MIN, f32::max)));
    }
    let largest = l2_normalise(&Tensor::from_vec(largest, (5, 32), &Device::Cpu).unwrap()).unwrap();
    let mean = l2_normalise(&plain.encode(&SENTENCES).unwrap()).unwrap();
    for (mode, pooling, expected) in [
        ("pooling_mode_cls_token", Pooling::First, &first),
        ("pooling_mode_mean_tokens", Pooling::Mean, &mean),
        ("pooling_mode_max_tokens", Pooling::Max, &largest),
    ] {
        add_modules(folder.path(), mode, 12);
        let backbone = TextTransformer::load(folder.path(), &Device::Cpu).unwrap();
        assert_eq!((backbone.model().pooling(), backbone.tokenizer().longest()), (pooling, 12));
        assert!(max_difference(&backbone.encode(&SENTENCES).unwrap(), expected) < 2e-6, "{mode}");
        assert_ne!(backbone.fingerprint(), plain.fingerprint());
        let names: Vec<_> = backbone
            .files()
            .iter()
            .map(|file| file.strip_prefix(folder.path()).unwrap().to_string_lossy().into_owned())
            .collect();
        assert!(names.contains(&"1_Pooling/config.json".to_owned()), "{names:?}");
        assert_eq!(names.first().map(String::as_str), Some("modules.json"));
    }
}

#[test]
fn a_bundle_keeps_the_folders_of_a_backbone() {
    let (folder, target) = (copy("bert"), tempfile::tempdir().unwrap());
    add_modules(folder.path(), "pooling_mode_cls_token", 12);
    let backbone = load_text_backbone(folder.path(), &Device::Cpu).unwrap();
    aeir_encoders::copy_backbones(target.path(), None, Some(backbone.as_ref())).unwrap();
    let copied = load_text_backbone(&target.path().join("sentence"), &Device::Cpu).unwrap();
    assert_eq!(copied.fingerprint(), backbone.fingerprint());
}

#[test]
fn sentences_are_cut_as_the_files_say() {
    let folder = copy("bert");
    let longest = || SentenceTokenizer::load(folder.path()).unwrap().longest();
    assert_eq!(longest(), 24);
    write_json(&folder.path().join("tokenizer_config.json"), &json!({"model_max_length": 20}));
    assert_eq!(longest(), 20);
    write_json(&folder.path().join("tokenizer_config.json"), &json!({"model_max_length": 1e30}));
    assert_eq!(longest(), 24);
    let truncation = json!({"max_length": 7, "strategy": "LongestFirst", "stride": 0, "direction": "Right"});
    set(&folder.path().join("tokenizer.json"), "/truncation", truncation);
    assert_eq!(longest(), 7);
    let ids =
        SentenceTokenizer::load(folder.path()).unwrap().ids(&["a dog on the beach in the beach"]).unwrap();
    assert_eq!(ids, [[1, 10, 11, 13, 14, 15, 2]]);
    // sentence-transformers ignores what the tokenizer's file says.
    add_modules(folder.path(), "pooling_mode_mean_tokens", 9);
    assert_eq!(longest(), 9);
    add_modules(folder.path(), "pooling_mode_mean_tokens", 1000);
    assert_eq!(longest(), 24);
}

#[test]
fn siglip_is_padded_to_its_length_and_clip_to_the_longest() {
    let batch = |name: &str| {
        let folder = copy(name);
        SentenceTokenizer::load(folder.path()).unwrap().batch(&["a dog", "a red dog"]).unwrap()
    };
    let siglip = batch("siglip");
    assert_eq!((siglip.count(), siglip.length()), (2, 12));
    assert_eq!(siglip.ids()[..12], [10, 11, 63, 1, 1, 1, 1, 1, 1, 1, 1, 1]);
    assert_eq!(flat(&siglip.mask(&Device::Cpu).unwrap()).iter().sum::<f32>(), 7.0);
    assert_eq!(batch("clip").ids(), [62, 10, 11, 63, 1, 62, 10, 16, 11, 63]);
}

#[test]
fn long_and_odd_sentences() {
    let long = "the red apple beside a dog ".repeat(2000);
    let sentences = [long.as_str(), "", " ", "\u{0}\u{fffd}", "Ünïcödé 苹果 🍎", "\n\t"];
    for name in TEXT {
        let folder = copy(name);
        let backbone = load_text_backbone(folder.path(), &Device::Cpu).unwrap();
        let features = backbone.encode(&sentences).unwrap();
        assert!(flat(&features).iter().all(|value| value.is_finite()), "{name}");
        assert_eq!(features.dims(), [6, backbone.dimension()]);
    }
}

/// A tokenizer without special tokens makes nothing of an empty sentence.
#[test]
fn a_sentence_without_any_token_is_finite() {
    for name in TEXT {
        let folder = copy(name);
        set(&folder.path().join("tokenizer.json"), "/post_processor", Value::Null);
        for pooling in ["pooling_mode_cls_token", "pooling_mode_mean_tokens", "pooling_mode_max_tokens"] {
            if name == "bert" {
                add_modules(folder.path(), pooling, 12);
            }
            let backbone = load_text_backbone(folder.path(), &Device::Cpu).unwrap();
            for sentences in [&["", "a dog"][..], &[""]] {
                let features = backbone.encode(sentences).unwrap();
                assert!(flat(&features).iter().all(|value| value.is_finite()), "{name}, {pooling}");
            }
        }
    }
}

#[test]
fn a_tokenizer_without_padding_is_an_error() {
    let folder = copy("bert");
    set(&folder.path().join("tokenizer.json"), "/padding", Value::Null);
    // `pad_token_id` of the configuration is enough, and so is a name beside the tokenizer.
    assert!(load_text_backbone(folder.path(), &Device::Cpu).is_ok());
    set(&folder.path().join("config.json"), "/pad_token_id", Value::Null);
    let got = error(folder.path());
    assert!(matches!(&got, EncoderError::Config { key, .. } if key == "padding"), "{got}");
    write_json(&folder.path().join("special_tokens_map.json"), &json!({"pad_token": {"content": "[PAD]"}}));
    assert!(load_text_backbone(folder.path(), &Device::Cpu).is_ok());
    write_json(&folder.path().join("special_tokens_map.json"), &json!({"pad_token": "[NOWHERE]"}));
    assert!(matches!(error(folder.path()), EncoderError::Config { .. }));
}

#[test]
fn ids_that_the_model_does_not_have() {
    let folder = copy("bert");
    set(&folder.path().join("tokenizer.json"), "/model/vocab/dog", json!(80));
    let backbone = load_text_backbone(folder.path(), &Device::Cpu).unwrap();
    let got = backbone.encode(&["a dog"]).expect_err("an error");
    assert!(matches!(&got, EncoderError::TokenId { expected: 80, got: 80, .. }), "{got}");
}

#[test]
fn token_batches_that_do_not_fit() {
    let model = TextModel::load(&path("parity/tiny-models/bert"), &Device::Cpu).unwrap();
    let zeros = |shape: (usize, usize)| Tensor::zeros(shape, candle_core::DType::U32, &Device::Cpu).unwrap();
    assert!(matches!(TokenBatch::new(&zeros((2, 3)), &zeros((2, 4))), Err(EncoderError::Shape { .. })));
    let tokens = TokenBatch::new(&zeros((2, 3)), &zeros((2, 3))).unwrap();
    assert!(matches!(tokens.with_types(&zeros((3, 2))), Err(EncoderError::Shape { .. })));
    let long = TokenBatch::new(&zeros((1, 25)), &zeros((1, 25))).unwrap();
    let got = model.forward(&long, &mut Mode::Evaluation).expect_err("an error");
    assert!(matches!(&got, EncoderError::Shape { expected, .. } if expected.contains("24")), "{got}");
}

#[test]
fn configurations_that_do_not_fit() {
    for (model, pointer, to, key) in [
        ("bert", "/hidden_act", json!("glu"), "hidden_act"),
        ("bert", "/num_attention_heads", json!(5), "num_attention_heads"),
        ("bert", "/hidden_size", json!(0), "hidden_size"),
        ("bert", "/hidden_size", json!("wide"), "hidden_size"),
        ("bert", "/num_hidden_layers", json!(18446744073709551615u64), "num_hidden_layers"),
        ("modernbert", "/num_hidden_layers", json!(4_000_000_000u64), "num_hidden_layers"),
        ("bert", "/hidden_dropout_prob", json!(1.5), "hidden_dropout_prob"),
        ("bert", "/layer_norm_eps", json!(-1.0), "layer_norm_eps"),
        ("bert", "/position_embedding_type", json!("relative_key"), "position_embedding_type"),
        ("distilbert", "/activation", json!(7), "activation"),
        ("modernbert", "/layer_types", json!(["full_attention"]), "layer_types"),
        ("modernbert", "/num_attention_heads", json!(32), "num_attention_heads"),
        (
            "modernbert",
            "/rope_parameters/full_attention/rope_type",
            json!("yarn"),
            "rope_parameters.full_attention.rope_type",
        ),
        ("clip", "/text_config", json!([1]), "text_config"),
        ("clip", "/text_config/eos_token_id", json!("end"), "text_config.eos_token_id"),
    ] {
        let folder = copy(model);
        set(&folder.path().join("config.json"), pointer, to.clone());
        let got = error(folder.path());
        assert!(
            matches!(&got, EncoderError::Config { key: named, .. } if named == key),
            "{model} {to}: {got}"
        );
    }
}

#[test]
fn weights_that_do_not_fit() {
    for (model, pointer, to) in [
        ("bert", "/vocab_size", json!(81)),
        ("distilbert", "/hidden_dim", json!(65)),
        ("xlm-roberta", "/max_position_embeddings", json!(4_000_000_000u64)),
        ("modernbert", "/intermediate_size", json!(4_000_000_000u64)),
        ("clip", "/projection_dim", json!(25)),
        ("siglip", "/text_config/vocab_size", json!(1)),
    ] {
        let folder = copy(model);
        set(&folder.path().join("config.json"), pointer, to);
        let got = error(folder.path());
        assert!(matches!(&got, EncoderError::TensorShape { .. }), "{model}: {got}");
    }
    for (model, pointer) in [
        ("bert", "/num_hidden_layers"),
        ("distilbert", "/n_layers"),
        ("clip", "/text_config/num_hidden_layers"),
    ] {
        let folder = copy(model);
        set(&folder.path().join("config.json"), pointer, json!(9999));
        let got = error(folder.path());
        assert!(matches!(&got, EncoderError::MissingTensor { key, .. } if key.contains(".2.")), "{got}");
    }
    let folder = copy("bert");
    let file = folder.path().join("model.safetensors");
    let bytes = fs::read(&file).unwrap();
    fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
    assert!(matches!(error(folder.path()), EncoderError::Safetensors { .. }));
    fs::remove_file(&file).unwrap();
    assert!(matches!(error(folder.path()), EncoderError::MissingFile { .. }));
}

#[test]
fn modules_that_are_not_there() {
    let folder = copy("bert");
    add_modules(folder.path(), "pooling_mode_weightedmean_tokens", 12);
    let got = error(folder.path());
    assert!(matches!(&got, EncoderError::Config { key, .. } if key == "pooling_mode"), "{got}");
    add_modules(folder.path(), "pooling_mode_mean_tokens", 12);
    set(&folder.path().join("1_Pooling/config.json"), "/pooling_mode_cls_token", json!(true));
    assert!(matches!(error(folder.path()), EncoderError::Config { .. }));
    for (index, to) in
        [json!("sentence_transformers.models.Dense"), json!("x.WordWeights")].iter().enumerate()
    {
        let modules = json!([{"path": "", "type": "sentence_transformers.models.Transformer"}, {"path": "1", "type": to}]);
        write_json(&folder.path().join("modules.json"), &modules);
        let got = error(folder.path());
        assert!(matches!(&got, EncoderError::Unsupported { .. }), "{index}: {got}");
    }
    let outside = json!([{"path": "../elsewhere", "type": "sentence_transformers.models.Transformer"}]);
    write_json(&folder.path().join("modules.json"), &outside);
    let got = error(folder.path());
    assert!(matches!(&got, EncoderError::Config { key, .. } if key == "path"), "{got}");
}

#[test]
fn the_architecture_may_stand_in_architectures_alone() {
    for name in TEXT {
        let folder = copy(name);
        let before = load_text_backbone(folder.path(), &Device::Cpu).unwrap();
        set(&folder.path().join("config.json"), "/model_type", Value::Null);
        let backbone = load_text_backbone(folder.path(), &Device::Cpu).unwrap();
        let difference =
            max_difference(&before.encode(&SENTENCES).unwrap(), &backbone.encode(&SENTENCES).unwrap());
        assert_eq!(difference, 0.0, "{name}");
        set(&folder.path().join("config.json"), "/architectures", json!(["GPTModel"]));
        let got = error(folder.path());
        assert!(matches!(&got, EncoderError::Unsupported { got, .. } if got == "GPTModel"), "{got}");
    }
}
