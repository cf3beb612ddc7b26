//! SAF and SGR against the recorded run of the released procedure.

use std::collections::HashMap;

use aeir_encoders::{Fragments, HeadConfig, HeadKind, Mode, SimilarityHead, UnitNorm, released_names};
use candle_core::{DType, Device, Tensor, Var};
use candle_nn::VarBuilder;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use crate::fixtures::{flat, max_difference, tensors};

const HEADS: [(HeadKind, &str); 2] = [(HeadKind::Saf, "saf"), (HeadKind::Sgr, "sgr")];
const MARGIN: f64 = 0.2;

struct Recorded {
    file: HashMap<String, Tensor>,
    parameters: HashMap<String, Tensor>,
    head: SimilarityHead,
    images: Var,
    words: Var,
    mask: Tensor,
}

impl Recorded {
    fn new(kind: HeadKind, name: &str, norm: UnitNorm, dtype: DType) -> Self {
        let file = tensors(&format!("parity/aecr/{name}.safetensors"));
        let variable = |tensor: &Tensor| Var::from_tensor(&tensor.to_dtype(dtype).unwrap()).unwrap();
        let parameters: HashMap<String, Tensor> = released_names(kind, 3)
            .into_iter()
            .filter_map(|name| {
                let recorded = file.get(&format!("weights.{}", name.released)).expect(&name.released);
                Some((name.ours?, variable(recorded).as_tensor().clone()))
            })
            .collect();
        // Nothing of the file's head is left over.
        let known = released_names(kind, 3).len();
        assert_eq!(file.keys().filter(|key| key.starts_with("weights.sim_enc.")).count(), known);
        let config =
            HeadConfig { similarity_dimension: 8, dropout: 0.0, norm, ..HeadConfig::new(kind, 16, 36) };
        let vb = VarBuilder::from_tensors(parameters.clone(), dtype, &Device::Cpu);
        let head = SimilarityHead::new(&config, vb).unwrap();
        let images = variable(&file["eval.source.image_emb"]);
        let words = variable(&file["eval.source.text_emb"]);
        let length = words.dim(1).unwrap();
        let lengths = file["in.source.lengths"].to_vec1::<i64>().unwrap();
        let mask: Vec<f32> = lengths
            .iter()
            .flat_map(|&real| (0..length).map(move |word| f32::from(u8::from((word as i64) < real))))
            .collect();
        let mask = Tensor::from_vec(mask, (lengths.len(), length), &Device::Cpu).unwrap();
        Self { file, parameters, head, images, words, mask }
    }

    fn scores(&self, training: bool) -> Tensor {
        let images = Fragments::unpadded(self.images.as_tensor().clone()).unwrap();
        let words = Fragments::new(self.words.as_tensor().clone(), self.mask.clone()).unwrap();
        let mut generator = ChaCha8Rng::seed_from_u64(0);
        let mut mode = if training { Mode::Training(&mut generator) } else { Mode::Evaluation };
        self.head.scores(&images, &words, &mut mode).unwrap()
    }
}

/// With the hardest negatives, summed over both directions.
fn triplet(scores: &Tensor) -> Tensor {
    let rows = scores.to_dtype(DType::F64).unwrap().to_vec2::<f64>().unwrap();
    let count = rows.len();
    let hardest = |score: &dyn Fn(usize) -> f64, own: usize| {
        (0..count).filter(|other| *other != own).max_by(|a, b| score(*a).total_cmp(&score(*b))).unwrap()
    };
    let at = |i: usize, j: usize| scores.get(i).unwrap().get(j).unwrap();
    let mut total = Tensor::zeros((), scores.dtype(), scores.device()).unwrap();
    for own in 0..count {
        let sentence = hardest(&|j| rows[own][j], own);
        let image = hardest(&|i| rows[i][own], own);
        for negative in [at(own, sentence), at(image, own)] {
            let hinge = ((negative - at(own, own)).unwrap() + MARGIN).unwrap().relu().unwrap();
            total = (total + hinge).unwrap();
        }
    }
    total
}

#[test]
fn recorded_scores() {
    for (kind, name) in HEADS {
        for dtype in [DType::F32, DType::F64] {
            for (norm, tolerance) in [(UnitNorm::Released, 1e-5), (UnitNorm::Smooth, 1e-4)] {
                let run = Recorded::new(kind, name, norm, dtype);
                let difference = max_difference(&run.scores(false), &run.file["eval.source.similarity"]);
                println!("{name} {dtype:?} {norm:?} evaluation {difference:e}");
                assert!(difference < tolerance, "{name} {norm:?} evaluation: {difference}");
                let difference = max_difference(&run.scores(true), &run.file["train.source.similarity"]);
                println!("{name} {dtype:?} {norm:?} training {difference:e}");
                assert!(difference < tolerance, "{name} {norm:?} training: {difference}");
            }
        }
    }
}

#[test]
fn recorded_triplet_gradients() {
    for (kind, name) in HEADS {
        for dtype in [DType::F32, DType::F64] {
            for (norm, tolerance) in [(UnitNorm::Released, 1e-4), (UnitNorm::Smooth, 1e-4)] {
                let run = Recorded::new(kind, name, norm, dtype);
                let loss = triplet(&run.scores(true));
                let expected = flat(&run.file["train.loss.triplet"])[0];
                assert!((flat(&loss)[0] - expected).abs() < 1e-5 * expected.abs().max(1.0), "{name}");
                let gradients = loss.backward().unwrap();
                for (input, key) in [(&run.images, "image"), (&run.words, "text")] {
                    let expected = &run.file[&format!("train.grad.triplet.source_{key}_emb")];
                    let difference = max_difference(gradients.get(input).unwrap(), expected);
                    println!(
                        "{name} {dtype:?} {norm:?} {key} {difference:e} of {:e}",
                        flat(expected).iter().fold(0f32, |a, b| a.max(b.abs()))
                    );
                    assert!(difference < tolerance, "{name} {norm:?} {key}: {difference}");
                }
                // Buffers get none.
                for (parameter, tensor) in &run.parameters {
                    assert_eq!(
                        gradients.get(tensor).is_none(),
                        parameter.contains("running_"),
                        "{parameter}"
                    );
                }
            }
        }
    }
}

/// The naive loop for the running values, in f64: one update a call for the image branch.
#[test]
fn running_statistics_of_the_image_branch() {
    for (kind, name) in HEADS {
        let run = Recorded::new(kind, name, UnitNorm::Released, DType::F32);
        let before = |ours: &str| -> Vec<f64> {
            run.parameters[ours]
                .copy()
                .unwrap()
                .to_vec1::<f32>()
                .unwrap()
                .into_iter()
                .map(f64::from)
                .collect()
        };
        let (old_mean, old_variance) = (
            before("image_attention.local_norm.running_mean"),
            before("image_attention.local_norm.running_var"),
        );
        let weight = run.parameters["image_attention.local.weight"].to_vec2::<f32>().unwrap();
        let bias = run.parameters["image_attention.local.bias"].to_vec1::<f32>().unwrap();
        let images = run.images.to_vec3::<f32>().unwrap();
        run.scores(true);
        let mean = before("image_attention.local_norm.running_mean");
        let variance = before("image_attention.local_norm.running_var");
        for region in 0..36 {
            let mut values = Vec::new();
            for image in &images {
                for (row, bias) in weight.iter().zip(&bias) {
                    let dot: f64 =
                        row.iter().zip(&image[region]).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
                    values.push(dot + f64::from(*bias));
                }
            }
            let count = values.len() as f64;
            let average = values.iter().sum::<f64>() / count;
            let spread = values.iter().map(|value| (value - average).powi(2)).sum::<f64>() / (count - 1.0);
            assert!((mean[region] - (0.9 * old_mean[region] + 0.1 * average)).abs() < 1e-6);
            assert!((variance[region] - (0.9 * old_variance[region] + 0.1 * spread)).abs() < 1e-6);
        }
    }
}

/// SAF's gate: an update a sentence, in order. The logits come from scoring one sentence at a time.
#[test]
fn running_statistics_of_the_gate_move_once_a_sentence() {
    let together = Recorded::new(HeadKind::Saf, "saf", UnitNorm::Released, DType::F32);
    together.scores(true);
    let apart = Recorded::new(HeadKind::Saf, "saf", UnitNorm::Released, DType::F32);
    let mut generator = ChaCha8Rng::seed_from_u64(0);
    let images = Fragments::unpadded(apart.images.as_detached_tensor()).unwrap();
    for sentence in 0..6 {
        let words = apart.words.as_detached_tensor().narrow(0, sentence, 1).unwrap();
        let words = Fragments::new(words, apart.mask.narrow(0, sentence, 1).unwrap()).unwrap();
        apart.head.scores(&images, &words, &mut Mode::Training(&mut generator)).unwrap();
    }
    for name in ["filter.norm.running_mean", "filter.norm.running_var"] {
        let difference = max_difference(&together.parameters[name], &apart.parameters[name]);
        assert!(difference < 1e-6, "{name}: {difference}");
        let start =
            &together.file[&format!("weights.sim_enc.SAF_module.bn.{}", &name["filter.norm.".len()..])];
        assert!(max_difference(&together.parameters[name], start) > 1e-3, "{name} did not move");
    }
}
