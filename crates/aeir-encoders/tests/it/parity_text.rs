//! Text transformers against what Hugging Face transformers computed with the same weights.

use std::collections::HashMap;
use std::fs;

use aeir_encoders::{Fragments, Mode, Pooling, TextModel, TokenBatch, l2_normalise};
use candle_core::{Device, Tensor};

use crate::fixtures::{flat, max_difference, path, tensors};

const TOLERANCE: f32 = 1e-5;

struct Case {
    model: TextModel,
    golden: HashMap<String, Tensor>,
    tokens: TokenBatch,
    mask: Tensor,
}

impl Case {
    fn load(name: &str) -> Self {
        let folder = format!("parity/tiny-models/{name}");
        let golden = tensors(&format!("{folder}/golden.safetensors"));
        let ids = &golden["input_ids"];
        let mask = golden.get("attention_mask").cloned().unwrap_or_else(|| ids.ones_like().unwrap());
        let tokens = TokenBatch::new(ids, &mask).unwrap();
        let tokens = match golden.get("token_type_ids") {
            Some(types) => tokens.with_types(types).unwrap(),
            None => tokens,
        };
        let model = TextModel::load(&path(&folder), &Device::Cpu).unwrap();
        Self { model, golden, tokens, mask }
    }

    fn states(&self) -> Tensor {
        self.model.states(&self.tokens, &mut Mode::Evaluation).unwrap()
    }

    fn embeddings(&self) -> Tensor {
        self.model.forward(&self.tokens, &mut Mode::Evaluation).unwrap()
    }

    fn assert_close(&self, got: &Tensor, name: &str) {
        let difference = max_difference(got, &self.golden[name]);
        assert!(difference < TOLERANCE, "{name}: {difference}");
    }

    /// Compares the states of real tokens.
    fn assert_states(&self, name: &str) {
        let (states, expected) = (self.states(), &self.golden[name]);
        assert_eq!(states.dims(), expected.dims());
        let hidden = self.model.hidden_dimension();
        let mask = self.mask.to_dtype(candle_core::DType::U8).unwrap().flatten_all().unwrap();
        for (token, is_real) in mask.to_vec1::<u8>().unwrap().into_iter().enumerate() {
            let row = |tensor: &Tensor| flat(&tensor.flatten(0, 1).unwrap().get(token).unwrap());
            let (got, expected) = (row(&states), row(expected));
            assert_eq!(got.len(), hidden);
            let difference = got.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(is_real == 0 || difference < TOLERANCE, "{name}, token {token}: {difference}");
        }
    }

    /// What the BERT family's files hold.
    fn assert_bert(&self) {
        self.assert_states("last_hidden_state");
        assert_eq!(self.model.pooling(), Pooling::Mean);
        self.assert_close(&self.embeddings(), "mean_pooled");
        self.assert_close(&l2_normalise(&self.embeddings()).unwrap(), "mean_pooled_l2");
        self.assert_close(&self.states().narrow(1, 0, 1).unwrap().squeeze(1).unwrap(), "cls");
    }
}

#[test]
fn bert() {
    Case::load("bert").assert_bert();
}

#[test]
fn distilbert() {
    let case = Case::load("distilbert");
    case.assert_bert();
    // The tensor that a GELU by tanh gives is another one.
    assert!(max_difference(&case.states(), &case.golden["last_hidden_state_tanh_gelu"]) > 1e-4);
}

#[test]
fn xlm_roberta() {
    Case::load("xlm-roberta").assert_bert();
}

#[test]
fn modern_bert() {
    Case::load("modernbert").assert_bert();
}

#[test]
fn clip_text() {
    let case = Case::load("clip");
    case.assert_states("text_last_hidden_state");
    assert_eq!(case.model.pooling(), Pooling::FirstOf(63));
    case.assert_close(&case.embeddings(), "text_features");
    case.assert_close(&l2_normalise(&case.embeddings()).unwrap(), "text_embeds");
}

#[test]
fn siglip_text() {
    let case = Case::load("siglip");
    case.assert_states("text_last_hidden_state");
    assert_eq!(case.model.pooling(), Pooling::LastPosition);
    case.assert_close(&case.embeddings(), "text_features");
    case.assert_close(&l2_normalise(&case.embeddings()).unwrap(), "text_embeds");
}

/// The first files of CLIP have `eos_token_id` 2 and end sentences with the largest id: here that is the same token.
#[test]
fn clip_text_of_the_first_files() {
    let folder = tempfile::tempdir().unwrap();
    let from = path("parity/tiny-models/clip");
    fs::copy(from.join("model.safetensors"), folder.path().join("model.safetensors")).unwrap();
    let config = fs::read_to_string(from.join("config.json")).unwrap();
    let config = config.replacen(r#""eos_token_id": 63"#, r#""eos_token_id": 2"#, 1);
    fs::write(folder.path().join("config.json"), config).unwrap();
    let case = Case::load("clip");
    let model = TextModel::load(folder.path(), &Device::Cpu).unwrap();
    assert_eq!(model.pooling(), Pooling::LargestId);
    case.assert_close(&model.forward(&case.tokens, &mut Mode::Evaluation).unwrap(), "text_features");
}

/// Fragments are in the space of the embedding: that of the token where CLIP pools is the embedding.
#[test]
fn clip_fragments_are_projected() {
    let case = Case::load("clip");
    let fragments: Fragments =
        case.model.fragments(&case.states(), &case.tokens, &mut Mode::Evaluation).unwrap();
    assert_eq!(fragments.features().dims(), [4, 12, case.model.dimension()]);
    let expected = flat(&case.golden["text_features"]);
    for (sentence, expected) in expected.chunks(case.model.dimension()).enumerate() {
        let ids = &case.tokens.ids()[sentence * 12..][..12];
        let end = ids.iter().position(|id| *id == 63).unwrap();
        let got = flat(&fragments.features().get(sentence).unwrap().get(end).unwrap());
        assert!(got.iter().zip(expected).all(|(a, b)| (a - b).abs() < TOLERANCE));
    }
}
