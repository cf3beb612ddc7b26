//! Static embeddings against recorded tokens and vectors.

use aeir_encoders::{StaticEmbedding, TextBackbone};
use candle_core::Device;

use crate::fixtures::{flat, json, path};

fn fixture() -> StaticEmbedding {
    StaticEmbedding::load(&path("backbones/static-minilm"), &Device::Cpu).unwrap()
}

#[test]
fn golden_tokens_ids_and_embeddings() {
    let backbone = fixture();
    let golden = json("backbones/static-minilm/golden.json");
    let cases = golden.as_array().unwrap();
    let sentences: Vec<&str> = cases.iter().map(|case| case["text"].as_str().unwrap()).collect();
    let features = backbone.encode(&sentences).unwrap();
    assert_eq!(features.dims(), [sentences.len(), backbone.dimension()]);
    for (index, case) in cases.iter().enumerate() {
        let (tokens, ids): (Vec<String>, Vec<u32>) =
            backbone.tokenise(sentences[index]).unwrap().into_iter().unzip();
        assert_eq!(serde_json::json!(tokens), case["tokens"]);
        assert_eq!(serde_json::json!(ids), case["ids"]);
        let row = flat(&features.get(index).unwrap());
        for (got, expected) in row.iter().zip(case["embedding_head"].as_array().unwrap()) {
            assert!((f64::from(*got) - expected.as_f64().unwrap()).abs() < 1e-5);
        }
        let norm: f32 = row.iter().map(|value| value * value).sum();
        assert!((norm - 1.0).abs() < 1e-5);
    }
}
