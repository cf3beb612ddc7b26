//! The text encoder against the recorded run of the released procedure.

use std::collections::HashMap;

use aeir_encoders::{Mode, RELEASED_PARAMETER_NAMES, UnitNorm, WordBatch, WordEncoder, WordEncoderConfig};
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;

use crate::fixtures::{max_difference, tensors};

const TOLERANCE: f32 = 2e-6;

/// The encoder of a recording; sizes and the number of directions as its weights have them.
fn encoder(recorded: &HashMap<String, Tensor>, dtype: DType) -> WordEncoder {
    let weight = |name: &str| recorded.get(&format!("weights.{name}"));
    let (vocabulary_size, word_dimension) = weight("txt_enc.embed.weight").unwrap().dims2().unwrap();
    let config = WordEncoderConfig {
        vocabulary_size,
        word_dimension,
        dimension: weight("txt_enc.cap_rnn.weight_hh_l0").unwrap().dim(1).unwrap(),
        dropout: 0.4,
        bidirectional: weight("txt_enc.cap_rnn.weight_hh_l0_reverse").is_some(),
        norm: UnitNorm::Released,
    };
    let named = RELEASED_PARAMETER_NAMES
        .iter()
        .filter_map(|(name, released)| Some(((*name).to_owned(), weight(released)?.to_dtype(dtype).unwrap())))
        .collect();
    WordEncoder::new(config, VarBuilder::from_tensors(named, dtype, &Device::Cpu)).unwrap()
}

fn sentences(recorded: &HashMap<String, Tensor>, domain: &str) -> Vec<Vec<u32>> {
    let tokens = recorded[&format!("in.{domain}.tokens")].to_vec2::<i64>().unwrap();
    let lengths = recorded[&format!("in.{domain}.lengths")].to_vec1::<i64>().unwrap();
    let real = |(tokens, length): (&Vec<i64>, &i64)| {
        tokens.iter().take(*length as usize).map(|token| *token as u32).collect()
    };
    tokens.iter().zip(&lengths).map(real).collect()
}

#[test]
fn word_embeddings_of_both_recordings() {
    for file in ["saf", "sgr"] {
        let recorded = tensors(&format!("parity/aecr/{file}.safetensors"));
        for (domain, dtype) in
            [("source", DType::F32), ("target", DType::F32), ("source", DType::F64), ("target", DType::F64)]
        {
            let words = WordBatch::new(&sentences(&recorded, domain), &Device::Cpu).unwrap();
            let fragments = encoder(&recorded, dtype).forward(&words, &mut Mode::Evaluation).unwrap();
            let expected = &recorded[&format!("eval.{domain}.text_emb")];
            let difference = max_difference(fragments.features(), expected);
            assert!(difference < TOLERANCE, "{file}, {domain}, {dtype:?}: {difference}");
        }
    }
}

#[test]
fn without_the_backward_weights_there_is_one_direction() {
    let mut recorded = tensors("parity/aecr/saf.safetensors");
    let words = WordBatch::new(&sentences(&recorded, "source"), &Device::Cpu).unwrap();
    let both = encoder(&recorded, DType::F32).forward(&words, &mut Mode::Evaluation).unwrap();
    recorded.retain(|name, _| !name.ends_with("_reverse"));
    let encoder = encoder(&recorded, DType::F32);
    assert!(!encoder.config().bidirectional);
    let one = encoder.forward(&words, &mut Mode::Evaluation).unwrap();
    assert_eq!(one.features().dims(), both.features().dims());
    assert!(max_difference(one.features(), both.features()) > 0.1);
}
