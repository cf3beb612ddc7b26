//! Similarity heads: gradients by finite differences, the fused against the composed form, padding, order, naive loops.

use std::collections::{BTreeMap, HashMap};

use aeir_encoders::{
    EncoderError, Fragments, HeadConfig, HeadKind, Mode, ScanConfig, ScanPooling, ShardSize, SimilarityHead,
    UnitNorm, l2_normalise, released_names,
};
use candle_core::{DType, Device, Tensor, Var};
use candle_nn::VarBuilder;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::fixtures::flat;

const KINDS: [HeadKind; 4] = [HeadKind::Saf, HeadKind::Sgr, HeadKind::ScanT2i, HeadKind::ScanI2t];

fn noise(seed: u64, shape: &[usize], scale: f64) -> Tensor {
    let mut generator = ChaCha8Rng::seed_from_u64(seed);
    let count = shape.iter().product::<usize>();
    let values: Vec<f64> =
        (0..count).map(|_| (f64::from(generator.next_u32()) / 2_147_483_648.0 - 1.0) * scale).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// A head, its parameters by name, and inputs, all as variables of one type.
struct Case {
    config: HeadConfig,
    parameters: BTreeMap<String, Var>,
    images: Var,
    words: Var,
    image_mask: Tensor,
    word_mask: Tensor,
    dtype: DType,
}

impl Case {
    fn new(config: HeadConfig, dtype: DType, image_lengths: &[usize], word_lengths: &[usize]) -> Self {
        let HeadConfig { dimension, regions, similarity_dimension: similarity, .. } = config;
        let variable = |x: &Tensor| Var::from_tensor(&x.to_dtype(dtype).unwrap()).unwrap();
        let mut parameters = BTreeMap::new();
        for (index, name) in released_names(config.kind, config.graph_steps)
            .into_iter()
            .filter_map(|name| name.ours)
            .enumerate()
        {
            let shape = shape_of(&name, dimension, regions, similarity);
            let seed = 100 + index as u64;
            let value = match name.rsplit('.').next().unwrap() {
                "running_var" => (noise(seed, &shape, 0.4).abs().unwrap() + 0.3).unwrap(),
                "weight" if name.contains("norm") => (noise(seed, &shape, 0.4) + 1.0).unwrap(),
                "weight" => noise(seed, &shape, 1.7 / (*shape.last().unwrap() as f64).sqrt()),
                _ => noise(seed, &shape, 0.2),
            };
            parameters.insert(name, variable(&value));
        }
        let length = word_lengths.iter().copied().max().unwrap().max(1);
        let rows = |seed, items: usize, count| {
            let x = l2_normalise(&noise(seed, &[items, count, dimension], 1.0)).unwrap();
            variable(&x)
        };
        let mask = |lengths: &[usize], width: usize| {
            let values: Vec<f32> = lengths
                .iter()
                .flat_map(|&real| (0..width).map(move |at| f32::from(u8::from(at < real))))
                .collect();
            Tensor::from_vec(values, (lengths.len(), width), &Device::Cpu).unwrap()
        };
        Self {
            images: rows(1, image_lengths.len(), regions),
            words: rows(2, word_lengths.len(), length),
            image_mask: mask(image_lengths, regions),
            word_mask: mask(word_lengths, length),
            config,
            parameters,
            dtype,
        }
    }

    fn small(kind: HeadKind, dtype: DType) -> Self {
        let config = HeadConfig {
            similarity_dimension: 4,
            graph_steps: 2,
            dropout: 0.0,
            ..HeadConfig::new(kind, 5, 3)
        };
        Self::new(config, dtype, &[3, 2, 3], &[3, 1, 2, 0])
    }

    fn head(&self) -> SimilarityHead {
        let named: HashMap<String, Tensor> =
            self.parameters.iter().map(|(name, var)| (name.clone(), var.as_tensor().clone())).collect();
        let vb = VarBuilder::from_tensors(named, self.dtype, &Device::Cpu);
        SimilarityHead::new(&self.config, vb).unwrap()
    }

    fn image_fragments(&self) -> Fragments {
        Fragments::new(self.images.as_tensor().clone(), self.image_mask.clone()).unwrap()
    }

    fn word_fragments(&self) -> Fragments {
        Fragments::new(self.words.as_tensor().clone(), self.word_mask.clone()).unwrap()
    }

    fn scores(&self, training: bool) -> Tensor {
        let mut generator = ChaCha8Rng::seed_from_u64(3);
        let mut mode = if training { Mode::Training(&mut generator) } else { Mode::Evaluation };
        self.head().scores(&self.image_fragments(), &self.word_fragments(), &mut mode).unwrap()
    }

    /// A number that depends on every score in its own way.
    fn objective(&self, training: bool) -> Tensor {
        let scores = self.scores(training);
        let weights = noise(77, scores.dims(), 1.0).to_dtype(self.dtype).unwrap();
        (scores * weights).unwrap().sum_all().unwrap()
    }

    /// Everything that should get a gradient.
    fn variables(&self) -> Vec<(String, &Var)> {
        let trained = self.parameters.iter().filter(|(name, _)| !name.contains("running_"));
        let mut all: Vec<(String, &Var)> = trained.map(|(name, var)| (name.clone(), var)).collect();
        all.push(("images".to_owned(), &self.images));
        all.push(("words".to_owned(), &self.words));
        all
    }

    fn gradients(&self, training: bool) -> Vec<(String, Vec<f32>)> {
        let store = self.objective(training).backward().unwrap();
        let gradient = |(name, var): (String, &Var)| {
            let gradient = store.get(var).unwrap_or_else(|| panic!("no gradient: {name}"));
            (name, flat(gradient))
        };
        self.variables().into_iter().map(gradient).collect()
    }
}

fn shape_of(name: &str, dimension: usize, regions: usize, similarity: usize) -> Vec<usize> {
    let (module, part) = name.rsplit_once('.').unwrap();
    let (output, input) = match module {
        "local" | "global" => (similarity, dimension),
        "score" | "filter" => (1, similarity),
        "filter.norm" => (1, 0),
        "image_attention.local_norm" => (regions, 0),
        "image_attention.global_norm" => (dimension, 0),
        _ if module.starts_with("graph") => (similarity, similarity),
        _ if module.ends_with("score") => (1, dimension),
        _ => (dimension, dimension),
    };
    if part == "weight" && input > 0 { vec![output, input] } else { vec![output] }
}

/// Shifts of these cancel, so that their gradient is zero: in a softmax, or under batch statistics.
fn cancels(name: &str, training: bool) -> bool {
    name.ends_with("attention.score.bias")
        || name.ends_with("key.bias")
        || (training && ["filter.bias", "image_attention.global.bias"].contains(&name))
}

#[test]
fn gradients_by_finite_differences() {
    for kind in KINDS {
        for norm in [UnitNorm::Smooth, UnitNorm::Released] {
            for training in [false, true] {
                let mut case = Case::small(kind, DType::F64);
                case.config.norm = norm;
                if kind == HeadKind::ScanI2t {
                    case.config.scan.pooling = ScanPooling::Mean;
                }
                finite_differences(&case, training);
            }
        }
    }
}

fn finite_differences(case: &Case, training: bool) {
    let store = case.objective(training).backward().unwrap();
    let step = 1e-6;
    for (name, variable) in case.variables() {
        let gradient: Vec<f64> = store.get(variable).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        let start: Vec<f64> = variable.copy().unwrap().flatten_all().unwrap().to_vec1().unwrap();
        let shape = variable.shape().clone();
        let at = |index: usize, shift: f64| {
            let mut moved = start.clone();
            moved[index] += shift;
            variable.set(&Tensor::from_vec(moved, shape.clone(), &Device::Cpu).unwrap()).unwrap();
            case.objective(training).to_scalar::<f64>().unwrap()
        };
        // Running values move with every pass in training, but do not enter it.
        for index in 0..start.len() {
            let numeric = (at(index, step) - at(index, -step)) / (2.0 * step);
            assert!(
                (gradient[index] - numeric).abs() < 1e-7 * numeric.abs().max(1.0),
                "{:?} training {training} {name}[{index}]: {} {numeric}",
                case.config.kind,
                gradient[index]
            );
        }
        at(0, 0.0);
    }
}

/// f32 runs in the fused operations, f64 in candle's: two implementations of one thing.
#[test]
fn fused_and_composed_forms_agree() {
    let sizes: [(usize, usize, usize, &[usize], &[usize]); 6] = [
        (5, 3, 4, &[3, 2, 3], &[3, 1, 2, 0]),
        (16, 7, 8, &[7], &[4]),
        (24, 9, 12, &[9, 0, 5, 9], &[6, 6]),
        (33, 5, 17, &[5; 11], &[1]),
        (20, 4, 16, &[4], &[3, 7, 2, 5, 1, 9, 8]),
        (
            40,
            6,
            32,
            &[6; 9],
            &[12, 20, 3, 17, 15, 9, 11, 20, 20, 18, 13, 12, 16, 5, 1, 0, 19, 14, 12, 17, 16],
        ),
    ];
    for kind in KINDS {
        for norm in [UnitNorm::Smooth, UnitNorm::Released] {
            for (dimension, regions, similarity, images, words) in sizes {
                for training in [false, true] {
                    let config = HeadConfig {
                        similarity_dimension: similarity,
                        dropout: 0.0,
                        norm,
                        ..HeadConfig::new(kind, dimension, regions)
                    };
                    let single = Case::new(config.clone(), DType::F32, images, words);
                    let double = Case::new(config, DType::F64, images, words);
                    compare(&single, &double, training);
                }
            }
        }
    }
}

#[test]
fn fused_and_composed_stacked_attention_agree_in_every_setting() {
    let settings = [
        ScanConfig { temperature: 4.0, pooling: ScanPooling::Mean, negative_slope: 0.1 },
        ScanConfig {
            temperature: 30.0,
            pooling: ScanPooling::LogSumExp { lambda: 2.0 },
            negative_slope: 1.0,
        },
    ];
    for kind in [HeadKind::ScanT2i, HeadKind::ScanI2t] {
        for scan in settings {
            let config = HeadConfig { scan, ..HeadConfig::new(kind, 24, 9) };
            let (images, words): (&[usize], &[usize]) = (&[9, 0, 5, 9], &[6, 1, 0, 6, 3]);
            let single = Case::new(config.clone(), DType::F32, images, words);
            compare(&single, &Case::new(config, DType::F64, images, words), true);
        }
        // Far beyond what e^x can hold without a maximum that is taken off.
        let scan = ScanConfig { temperature: 1e4, ..ScanConfig::default() };
        let config = HeadConfig { scan, ..HeadConfig::new(kind, 24, 9) };
        let sharp = Case::new(config, DType::F32, &[9, 4], &[6, 1, 0]);
        assert!(flat(&sharp.scores(true)).iter().all(|score| score.abs() <= 2.0));
        assert!(sharp.gradients(true).iter().all(|(_, of)| of.iter().all(|value| value.is_finite())));
    }
}

fn compare(single: &Case, double: &Case, training: bool) {
    let label = format!(
        "{:?} {:?} training {training} images {:?} words {:?}",
        single.config.kind,
        single.config.norm,
        single.images.dims(),
        single.words.dims()
    );
    let (a, b) = (flat(&single.scores(training)), flat(&double.scores(training)));
    for (a, b) in a.iter().zip(&b) {
        assert!(a.is_finite() && (a - b).abs() < 1e-5, "{label}: {a} {b}");
    }
    for ((name, var), other) in single.parameters.iter().zip(double.parameters.values()) {
        for (a, b) in flat(var).iter().zip(flat(other)) {
            assert!((a - b).abs() < 1e-5, "{label} {name} after one pass: {a} {b}");
        }
    }
    let expected = double.gradients(training);
    for ((name, got), (_, expected)) in single.gradients(training).iter().zip(&expected) {
        // With few entries a region's or a sentence's variance is small, and f32 loses digits with it.
        let largest = expected.iter().fold(0f32, |largest, value| largest.max(value.abs())).max(0.05);
        for (index, (a, b)) in got.iter().zip(expected).enumerate() {
            assert!(a.is_finite() && (a - b).abs() < 2e-3 * largest, "{label} {name}[{index}]: {a} {b}");
        }
    }
}

#[test]
fn every_parameter_gets_a_finite_gradient_that_is_not_zero() {
    for kind in KINDS {
        for training in [false, true] {
            let mut case = Case::small(kind, DType::F32);
            case.config.dropout = if training { 0.4 } else { 0.0 };
            for (name, gradient) in case.gradients(training) {
                assert!(gradient.iter().all(|value| value.is_finite()), "{kind:?} {name}");
                let largest = gradient.iter().fold(0f32, |largest, value| largest.max(value.abs()));
                assert!(cancels(&name, training) || largest > 1e-6, "{kind:?} {name}: {largest}");
                assert!(!cancels(&name, training) || largest < 1e-6, "{kind:?} {name}: {largest}");
            }
        }
    }
}

/// More padding, with any finite values in it, changes no bit of a score, and no gradient reaches it.
#[test]
fn padding_changes_nothing() {
    for kind in KINDS {
        for training in [false, true] {
            let case = Case::small(kind, DType::F32);
            let store = case.objective(training).backward().unwrap();
            let plain = (flat(&case.scores(training)), flat(store.get(&case.images).unwrap()));
            let mut padded = Case::small(kind, DType::F32);
            let (sentences, length, dimension) = padded.words.dims3().unwrap();
            let garbage = noise(9, &[sentences, 4, dimension], 50.0).to_dtype(DType::F32).unwrap();
            let words = Tensor::cat(&[padded.words.as_tensor(), &garbage], 1).unwrap();
            // Garbage under the mask of shorter sentences as well.
            let mask = padded.word_mask.pad_with_zeros(1, 0, 4).unwrap();
            let loud = noise(8, words.dims(), 50.0).to_dtype(DType::F32).unwrap();
            let real = mask.unsqueeze(2).unwrap().broadcast_as(words.shape()).unwrap().ne(0f64).unwrap();
            padded.words = Var::from_tensor(&real.where_cond(&words, &loud).unwrap()).unwrap();
            padded.word_mask = mask;
            let scores = flat(&padded.scores(training));
            let tolerance = if matches!(kind, HeadKind::Saf | HeadKind::Sgr) { 0.0 } else { 1e-6 };
            for (a, b) in scores.iter().zip(&plain.0) {
                assert!((a - b).abs() <= tolerance, "{kind:?} training {training}: {a} {b}");
            }
            let store = padded.objective(training).backward().unwrap();
            for (a, b) in flat(store.get(&padded.images).unwrap()).iter().zip(&plain.1) {
                assert!((a - b).abs() <= 1e-6 * b.abs().max(1.0), "{kind:?} training {training}: {a} {b}");
            }
            let by_word = store.get(&padded.words).unwrap().abs().unwrap().sum(2).unwrap();
            for (gradient, mask) in flat(&by_word).iter().zip(flat(&padded.word_mask)) {
                assert!(mask != 0.0 || *gradient == 0.0, "{kind:?}: gradient on padding");
            }
            assert_eq!(by_word.dims(), &[sentences, length + 4]);
        }
    }
}

#[test]
fn order_of_images_and_sentences_permutes_scores() {
    for kind in KINDS {
        for training in [false, true] {
            let case = Case::small(kind, DType::F32);
            let plain = case.scores(training).to_vec2::<f32>().unwrap();
            let mut moved = Case::small(kind, DType::F32);
            let (rows, columns) = ([2u32, 0, 1], [3u32, 1, 0, 2]);
            let pick = |x: &Tensor, order: &[u32]| {
                x.index_select(&Tensor::new(order, &Device::Cpu).unwrap(), 0).unwrap()
            };
            moved.images = Var::from_tensor(&pick(&moved.images, &rows)).unwrap();
            moved.image_mask = pick(&moved.image_mask, &rows);
            moved.words = Var::from_tensor(&pick(&moved.words, &columns)).unwrap();
            moved.word_mask = pick(&moved.word_mask, &columns);
            let scores = moved.scores(training).to_vec2::<f32>().unwrap();
            for (i, row) in rows.iter().enumerate() {
                for (j, column) in columns.iter().enumerate() {
                    let (a, b) = (scores[i][j], plain[*row as usize][*column as usize]);
                    assert!((a - b).abs() < 2e-6, "{kind:?} training {training}: {a} {b}");
                }
            }
        }
    }
}

#[test]
fn a_pair_scores_the_same_alone_in_a_batch_and_in_shards() {
    for kind in KINDS {
        let case = Case::small(kind, DType::F32);
        let head = case.head();
        let (images, words) = (case.image_fragments(), case.word_fragments());
        let all = case.scores(false).to_vec2::<f32>().unwrap();
        let part = |x: &Fragments, at: usize| {
            let cut = |x: &Tensor| x.narrow(0, at, 1).unwrap();
            Fragments::new(cut(x.features()), cut(x.mask())).unwrap()
        };
        for (j, column) in (0..4).enumerate() {
            let candidates = head.scores(&images, &part(&words, column), &mut Mode::Evaluation).unwrap();
            assert_eq!(candidates.dims(), &[3, 1]);
            for (i, score) in flat(&candidates).iter().enumerate() {
                assert!((score - all[i][j]).abs() < 1e-6, "{kind:?}");
            }
        }
        let candidates = head.scores(&part(&images, 1), &words, &mut Mode::Evaluation).unwrap();
        assert_eq!(candidates.dims(), &[1, 4]);
        for (score, expected) in flat(&candidates).iter().zip(&all[1]) {
            assert!((score - expected).abs() < 1e-6, "{kind:?}");
        }
        for size in [
            ShardSize { images: 2, sentences: 3 },
            ShardSize { images: 1, sentences: 1 },
            ShardSize::default(),
        ] {
            let mut seen = Vec::new();
            let sharded =
                head.scores_in_shards(&images, &words, size, |done, total| seen.push((done, total))).unwrap();
            assert_eq!(seen.last(), Some(&(12, 12)));
            for (score, expected) in sharded.iter().zip(all.iter().flatten()) {
                assert!((score - expected).abs() < 1e-6, "{kind:?}");
            }
        }
    }
}

#[test]
fn one_image_and_one_word_stay_finite_in_training() {
    for kind in KINDS {
        let config = HeadConfig { similarity_dimension: 4, ..HeadConfig::new(kind, 5, 3) };
        for lengths in [[1], [0]] {
            let case = Case::new(config.clone(), DType::F32, &[3], &lengths);
            assert!(flat(&case.scores(true)).iter().all(|score| score.is_finite()), "{kind:?}");
            for (name, gradient) in case.gradients(true) {
                assert!(gradient.iter().all(|value| value.is_finite()), "{kind:?} {name}");
            }
            for (name, parameter) in &case.parameters {
                assert!(flat(parameter).iter().all(|value| value.is_finite()), "{kind:?} {name}");
            }
        }
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    let run = |kind: HeadKind, threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let config = HeadConfig { similarity_dimension: 24, ..HeadConfig::new(kind, 48, 9) };
            let case = Case::new(config, DType::F32, &[9; 13], &[12, 20, 3, 17, 15, 9, 11, 20, 20, 18, 13]);
            (flat(&case.scores(true)), case.gradients(true))
        })
    };
    for kind in [HeadKind::Saf, HeadKind::Sgr] {
        assert!(run(kind, 1) == run(kind, 3), "{kind:?}");
    }
}

#[test]
fn dropout_follows_the_generator() {
    for kind in [HeadKind::Saf, HeadKind::Sgr] {
        let mut case = Case::small(kind, DType::F32);
        case.config.dropout = 0.4;
        let scores = |seed: u64| {
            let mut generator = ChaCha8Rng::seed_from_u64(seed);
            let mode = &mut Mode::Training(&mut generator);
            flat(&case.head().scores(&case.image_fragments(), &case.word_fragments(), mode).unwrap())
        };
        assert_eq!(scores(1), scores(1));
        assert_ne!(scores(1), scores(2));
    }
}

#[test]
fn scan_equals_the_loops_of_the_paper() {
    for kind in [HeadKind::ScanT2i, HeadKind::ScanI2t] {
        for pooling in [ScanPooling::LogSumExp { lambda: 6.0 }, ScanPooling::Mean] {
            for negative_slope in [0.0, 0.1] {
                let mut case = Case::small(kind, DType::F64);
                case.config.scan = ScanConfig { temperature: 9.0, pooling, negative_slope };
                let scores = case.scores(false).to_vec2::<f64>().unwrap();
                let images = real_rows(&case.images, &case.image_mask);
                let sentences = real_rows(&case.words, &case.word_mask);
                for (i, image) in images.iter().enumerate() {
                    for (j, sentence) in sentences.iter().enumerate() {
                        let expected = if kind == HeadKind::ScanT2i {
                            naive_scan(image, sentence, &case.config.scan)
                        } else {
                            naive_scan(sentence, image, &case.config.scan)
                        };
                        assert!((scores[i][j] - expected).abs() < 1e-9, "{}: {expected}", scores[i][j]);
                    }
                }
            }
        }
    }
}

fn real_rows(x: &Tensor, mask: &Tensor) -> Vec<Vec<Vec<f64>>> {
    let mask = mask.to_vec2::<f32>().unwrap();
    let real = |(rows, mask): (Vec<Vec<f64>>, &Vec<f32>)| {
        rows.into_iter().zip(mask).filter(|(_, mask)| **mask != 0.0).map(|(row, _)| row).collect()
    };
    x.to_vec3::<f64>().unwrap().into_iter().zip(&mask).map(real).collect()
}

/// `asking` fragments attend to `asked` ones.
fn naive_scan(asked: &[Vec<f64>], asking: &[Vec<f64>], config: &ScanConfig) -> f64 {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let cosine = |a: &[f64], b: &[f64]| dot(a, b) / (dot(a, a) * dot(b, b)).sqrt();
    let clip = |x: f64| if x > 0.0 { x } else { config.negative_slope * x };
    let mut relevances = Vec::new();
    for query in asking {
        let mut attended = vec![0.0; query.len()];
        let mut weights = Vec::new();
        for key in asked {
            let norm = asking.iter().map(|other| clip(cosine(key, other)).powi(2)).sum::<f64>().sqrt();
            let normalised = if norm > 0.0 { clip(cosine(key, query)) / norm } else { 0.0 };
            weights.push((config.temperature * normalised).exp());
        }
        let total: f64 = weights.iter().sum();
        for (key, weight) in asked.iter().zip(&weights) {
            for (sum, value) in attended.iter_mut().zip(key) {
                *sum += weight / total * value;
            }
        }
        relevances.push(cosine(query, &attended));
    }
    let count = relevances.len() as f64;
    match config.pooling {
        _ if relevances.is_empty() || asked.is_empty() => 0.0,
        ScanPooling::Mean => relevances.iter().sum::<f64>() / count,
        ScanPooling::LogSumExp { lambda } => {
            relevances.iter().map(|relevance| (lambda * relevance).exp()).sum::<f64>().ln() / lambda
        }
    }
}

#[test]
fn bad_input_and_settings_are_named() {
    let build =
        |config: &HeadConfig| SimilarityHead::new(config, VarBuilder::zeros(DType::F32, &Device::Cpu));
    let config = HeadConfig::new(HeadKind::Saf, 5, 3);
    for bad in [
        HeadConfig { dimension: 0, ..config.clone() },
        HeadConfig { regions: 0, ..config.clone() },
        HeadConfig { similarity_dimension: 0, ..config.clone() },
        HeadConfig { dropout: 1.0, ..config.clone() },
        HeadConfig { scan: ScanConfig { temperature: 0.0, ..ScanConfig::default() }, ..config.clone() },
        HeadConfig {
            scan: ScanConfig { negative_slope: f64::NAN, ..ScanConfig::default() },
            ..config.clone()
        },
    ] {
        assert!(matches!(build(&bad), Err(EncoderError::Argument { .. })), "{bad:?}");
    }
    let head = build(&config).unwrap();
    let fragments = |shape: (usize, usize, usize)| {
        Fragments::unpadded(Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap()).unwrap()
    };
    for (images, words) in
        [((2, 4, 5), (2, 2, 5)), ((2, 3, 6), (2, 2, 5)), ((2, 3, 5), (2, 2, 4)), ((0, 3, 5), (2, 2, 5))]
    {
        let result = head.scores(&fragments(images), &fragments(words), &mut Mode::Evaluation);
        assert!(matches!(result, Err(EncoderError::Shape { .. })), "{images:?} {words:?}");
    }
    let empty = head.scores_in_shards(
        &fragments((2, 3, 5)),
        &fragments((2, 2, 5)),
        ShardSize { images: 0, sentences: 1 },
        |_, _| {},
    );
    assert!(matches!(empty, Err(EncoderError::Argument { .. })));
}

#[test]
fn settings_are_read_strictly() {
    let minimal = r#"{"kind": "scan-t2i", "dimension": 8, "regions": 4}"#;
    let config: HeadConfig = serde_json::from_str(minimal).unwrap();
    assert_eq!(config, HeadConfig::new(HeadKind::ScanT2i, 8, 4));
    let written = serde_json::to_string(&config).unwrap();
    assert_eq!(serde_json::from_str::<HeadConfig>(&written).unwrap(), config);
    let unknown = r#"{"kind": "saf", "dimension": 8, "regions": 4, "similarity": 3}"#;
    assert!(serde_json::from_str::<HeadConfig>(unknown).is_err());
    for kind in KINDS {
        assert_eq!(serde_json::to_string(&kind).unwrap(), format!("\"{}\"", kind.as_str()));
    }
}
