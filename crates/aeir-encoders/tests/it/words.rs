//! Word tokens, the vocabulary, and the encoder that is trained on it.

use std::collections::HashMap;
use std::fs;

use aeir_encoders::{
    EncoderError, Fragments, Mode, UnitNorm, Vocabulary, WordBatch, WordEncoder, WordEncoderConfig,
    tokenise_words,
};
use candle_core::{DType, Device, Tensor, Var};
use candle_nn::VarBuilder;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde_json::json;

use crate::fixtures::flat;

/// Sentences with the words that NLTK's `word_tokenize` makes of them in lower case.
const TOKENISED: [(&str, &str); 22] = [
    ("A man is riding a horse.", "a man is riding a horse ."),
    ("Two dogs don't bark; they can't.", "two dogs do n't bark ; they ca n't ."),
    ("The dog's owner, who's tall, isn't here!", "the dog 's owner , who 's tall , is n't here !"),
    (
        "I'm sure we'll see they've won, you're it, he'd go",
        "i 'm sure we 'll see they 've won , you 're it , he 'd go",
    ),
    ("the boys' ball", "the boys ' ball"),
    ("A sign reads \"STOP\" (in red).", "a sign reads `` stop '' ( in red ) ."),
    ("\"No parking\" says the sign.", "`` no parking '' says the sign ."),
    ("He said 'hello' to them.", "he said ' hello ' to them ."),
    ("A t-shirt, a well-known brand", "a t-shirt , a well-known brand"),
    ("It costs $3.88, or 3,500 yen at 10:30.", "it costs $ 3.88 , or 3,500 yen at 10:30 ."),
    ("A man -- old -- sits...", "a man -- old -- sits ..."),
    ("wait... what?!", "wait ... what ? !"),
    ("You cannot gonna wanna gimme", "you can not gon na wan na gim me"),
    ("'Tis the season, 'twas fun", "' tis the season , ' twas fun"),
    ("50% of R&D #1 @home *", "50 % of r & d # 1 @ home *"),
    ("A man rides. A dog runs.", "a man rides . a dog runs ."),
    ("Mr. Smith of the U.S. army on St. James ave", "mr. smith of the u.s. army on st. james ave"),
    (
        "A caf\u{e9} \u{201c}bar\u{201d} \u{2014} na\u{ef}ve",
        "a caf\u{e9} \u{201c} bar \u{201d} \u{2014} na\u{ef}ve",
    ),
    ("the man\u{2019}s hat", "the man \u{2019} s hat"),
    ("and/or [sic] {x} <tag>", "and/or [ sic ] { x } < tag >"),
    ("he said: go", "he said : go"),
    ("   \t\n ", ""),
];

#[test]
fn words_are_those_of_the_treebank() {
    for (sentence, expected) in TOKENISED {
        let expected: Vec<&str> = expected.split_whitespace().collect();
        assert_eq!(tokenise_words(sentence), expected, "{sentence}");
    }
}

#[test]
fn any_string_becomes_ids() {
    let vocabulary = Vocabulary::build(["a man . a dog ."].into_iter(), 1);
    let long = "dog ".repeat(10_000);
    let odd = [
        "",
        " ",
        "\0",
        "a\0b",
        "\u{1f469}\u{200d}\u{1f680} \u{1f1eb}\u{1f1f7}",
        "e\u{301}\u{327}\u{308}",
        "\u{130}\u{df}",
        "'",
        "''",
        "'''",
        "\"",
        "``",
        ".",
        "..",
        ". .",
        "n't",
        "'s",
        "' '",
        "--",
        "---",
        "-",
        ",,:",
        "\u{feff}a",
        "\u{2028}",
        "\u{202e}abc",
        long.as_str(),
    ];
    for sentence in odd {
        let ids = vocabulary.ids(sentence);
        assert_eq!((ids.first(), ids.last()), (Some(&1), Some(&2)), "{sentence:?}");
        assert!(ids.len() <= vocabulary.maximum_length());
        assert!(ids.iter().all(|id| (*id as usize) < vocabulary.size()));
        let spaced: String = tokenise_words(sentence).concat();
        assert!(!spaced.contains(char::is_whitespace), "{sentence:?}");
    }
}

#[test]
fn time_grows_with_the_length_alone() {
    // Half a million of each: a quadratic scan would take minutes.
    for character in ["a", "'", "-", ".", "`", "\"", ". ", ".)", "' ", "'s ", ")"] {
        let words = tokenise_words(&character.repeat(500_000));
        assert!(!words.is_empty(), "{character}");
    }
}

#[test]
fn the_vocabulary_counts_lower_cased_words() {
    let sentences = ["The cat.", "the Dog.", "THE bird", "a cat", "<unk> <start>"];
    let vocabulary = Vocabulary::build(sentences.into_iter(), 2);
    assert_eq!(vocabulary.words(), ["<pad>", "<start>", "<end>", "<unk>", "the", ".", "<", ">", "cat"]);
    assert_eq!(vocabulary.size(), 9);
    assert_eq!((vocabulary.id("the"), vocabulary.id("dog"), vocabulary.id("<unk>")), (Some(4), None, None));
    assert_eq!(vocabulary.ids("The dog, the cat"), [1, 4, 3, 3, 4, 8, 2]);
    let coverage = vocabulary.coverage(["The dog", "the cat"].into_iter());
    assert_eq!((coverage.words, coverage.known, coverage.unknown_share()), (4, 3, 0.25));
    assert_eq!(vocabulary.coverage(std::iter::empty()).unknown_share(), 0.0);
    assert_eq!(Vocabulary::build(std::iter::empty(), 4).size(), 4);
}

#[test]
fn the_order_of_sentences_changes_nothing() {
    let sentences = ["one two three", "three two", "three four five six seven", "zwei \u{e9}t\u{e9}"];
    let forward = Vocabulary::build(sentences.into_iter(), 1);
    let backward = Vocabulary::build(sentences.into_iter().rev(), 1);
    assert_eq!(forward, backward);
    assert_eq!(forward.fingerprint(), backward.fingerprint());
}

#[test]
fn long_sentences_keep_their_end() {
    let vocabulary = Vocabulary::build(["a b c d e"].into_iter(), 1).with_maximum_length(5).unwrap();
    assert_eq!(vocabulary.ids("a b c d e"), [1, 4, 5, 6, 2]);
    assert_eq!(vocabulary.ids("a b c"), [1, 4, 5, 6, 2]);
    assert!(matches!(vocabulary.with_maximum_length(2), Err(EncoderError::Argument { .. })));
}

#[test]
fn a_vocabulary_survives_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vocabulary.json");
    let vocabulary = Vocabulary::build(["caf\u{e9} \u{1f600} \"quoted\" a\0b"].into_iter(), 1);
    let vocabulary = vocabulary.with_maximum_length(40).unwrap();
    vocabulary.save(&path).unwrap();
    let loaded = Vocabulary::load(&path).unwrap();
    assert_eq!(loaded, vocabulary);
    assert_eq!(loaded.fingerprint(), vocabulary.fingerprint());
    let shorter = vocabulary.clone().with_maximum_length(39).unwrap();
    assert_ne!(shorter.fingerprint(), vocabulary.fingerprint());
    assert!(matches!(vocabulary.save(&folder.path().join("none/file")), Err(EncoderError::Write { .. })));
}

#[test]
fn what_is_no_vocabulary_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vocabulary.json");
    assert!(matches!(Vocabulary::load(&path), Err(EncoderError::MissingFile { .. })));
    Vocabulary::build(["a b"].into_iter(), 1).save(&path).unwrap();
    let whole: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let refuse = |key: &str, value: serde_json::Value| {
        let mut changed = whole.clone();
        changed[key] = value;
        fs::write(&path, changed.to_string()).unwrap();
        let error = Vocabulary::load(&path).unwrap_err();
        assert!(error.to_string().contains("vocabulary.json"), "{error}");
        error
    };
    let is_config = |error: EncoderError, name: &str| {
        assert!(matches!(&error, EncoderError::Config { key, .. } if key == name), "{error:?}");
    };
    is_config(refuse("version", json!(2)), "version");
    is_config(refuse("format", json!("other")), "format");
    is_config(refuse("maximum_length", json!(2)), "maximum_length");
    is_config(refuse("words", json!(["<pad>", "<start>", "<end>", "a"])), "words[3]");
    is_config(refuse("words", json!([])), "words[0]");
    is_config(refuse("words", json!(["<pad>", "<start>", "<end>", "<unk>", "a", "a"])), "words[5]");
    is_config(refuse("words", json!(["<pad>", "<start>", "<end>", "<unk>", "<pad>"])), "words[4]");
    assert!(matches!(refuse("words", json!("a")), EncoderError::Json { .. }));
    assert!(matches!(refuse("extra", json!(1)), EncoderError::Json { .. }));
    for text in ["", "[]", "{", "\0\0", "null"] {
        fs::write(&path, text).unwrap();
        assert!(Vocabulary::load(&path).unwrap_err().to_string().contains("vocabulary.json"), "{text:?}");
    }
}

#[test]
fn a_batch_is_padded_to_its_longest_sentence() {
    let words = WordBatch::new(&[vec![1, 5, 2], vec![], vec![7]], &Device::Cpu).unwrap();
    assert_eq!(words.ids().to_vec2::<u32>().unwrap(), [[1, 5, 2], [0, 0, 0], [7, 0, 0]]);
    assert_eq!(words.mask().to_vec2::<f32>().unwrap(), [[1., 1., 1.], [0., 0., 0.], [1., 0., 0.]]);
    assert_eq!(WordBatch::new(&[&[][..]], &Device::Cpu).unwrap().ids().dims(), [1, 1]);
    let none: [&[u32]; 0] = [];
    assert!(matches!(WordBatch::new(&none, &Device::Cpu), Err(EncoderError::Argument { .. })));
}

/// Named parameters of an encoder, the same values in any float type.
struct Parameters {
    config: WordEncoderConfig,
    values: Vec<(String, Vec<usize>, Vec<f64>)>,
}

impl Parameters {
    fn new(config: WordEncoderConfig, seed: u64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let (words, units) = (config.word_dimension, config.dimension);
        let mut shapes = vec![("words.weight".to_owned(), vec![config.vocabulary_size, words])];
        let directions = if config.bidirectional { &["forward", "backward"][..] } else { &["forward"] };
        for direction in directions {
            shapes.push((format!("gru.{direction}.input.weight"), vec![3 * units, words]));
            shapes.push((format!("gru.{direction}.input.bias"), vec![3 * units]));
            shapes.push((format!("gru.{direction}.hidden.weight"), vec![3 * units, units]));
            shapes.push((format!("gru.{direction}.hidden.bias"), vec![3 * units]));
        }
        let scale = 2.0 / (units as f64).sqrt();
        let values = shapes.into_iter().map(|(name, shape)| {
            let count = shape.iter().product();
            // Values that f32 holds exactly.
            let draw =
                |_| f64::from((f64::from(random.next_u32()) / 2f64.powi(32) - 0.5) as f32 * scale as f32);
            (name, shape, (0..count).map(draw).collect())
        });
        Self { config, values: values.collect() }
    }

    fn encoder(&self, dtype: DType) -> (WordEncoder, Vec<Var>) {
        let variables: Vec<Var> = self
            .values
            .iter()
            .map(|(_, shape, values)| {
                let tensor = Tensor::from_vec(values.clone(), shape.as_slice(), &Device::Cpu).unwrap();
                Var::from_tensor(&tensor.to_dtype(dtype).unwrap()).unwrap()
            })
            .collect();
        let named: HashMap<_, _> = self
            .values
            .iter()
            .zip(&variables)
            .map(|((name, ..), variable)| (name.clone(), variable.as_tensor().clone()))
            .collect();
        let vb = VarBuilder::from_tensors(named, dtype, &Device::Cpu);
        (WordEncoder::new(self.config, vb).unwrap(), variables)
    }

    /// A weighted sum of the output, the output, and the gradient of the sum by every parameter.
    fn gradients(&self, words: &WordBatch, dtype: DType) -> (f64, Tensor, Vec<Tensor>) {
        let (encoder, variables) = self.encoder(dtype);
        let features = encoder.forward(words, &mut Mode::Evaluation).unwrap().features().clone();
        let loss = (&features * coefficients(&features)).unwrap().sum_all().unwrap();
        let gradients = loss.backward().unwrap();
        let gradients = variables.iter().map(|variable| gradients.get(variable).unwrap().clone()).collect();
        (loss.to_dtype(DType::F64).unwrap().to_scalar().unwrap(), features, gradients)
    }
}

fn coefficients(x: &Tensor) -> Tensor {
    let values: Vec<f64> = (0..x.elem_count()).map(|i| ((i * 37 % 23) as f64 - 11.0) / 11.0).collect();
    Tensor::from_vec(values, x.shape(), &Device::Cpu).unwrap().to_dtype(x.dtype()).unwrap()
}

fn config(vocabulary_size: usize, word_dimension: usize, dimension: usize) -> WordEncoderConfig {
    WordEncoderConfig {
        vocabulary_size,
        word_dimension,
        dimension,
        dropout: 0.4,
        bidirectional: true,
        norm: UnitNorm::Smooth,
    }
}

fn sentences(lengths: &[usize], vocabulary_size: u32, seed: u64) -> Vec<Vec<u32>> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    lengths.iter().map(|length| (0..*length).map(|_| random.next_u32() % vocabulary_size).collect()).collect()
}

#[test]
fn every_parameter_by_finite_differences() {
    // Words that come again, within a sentence and across; one word; none.
    let words = WordBatch::new(&[vec![1, 5, 5, 2], vec![1, 3, 2], vec![4], vec![], vec![5, 5]], &Device::Cpu)
        .unwrap();
    for (norm, bidirectional) in
        [(UnitNorm::Smooth, true), (UnitNorm::Released, true), (UnitNorm::Smooth, false)]
    {
        let config = WordEncoderConfig { norm, bidirectional, ..config(6, 3, 4) };
        let mut parameters = Parameters::new(config, 3);
        let (_, _, gradients) = parameters.gradients(&words, DType::F64);
        let step = 1e-5;
        for (index, gradient) in gradients.iter().enumerate() {
            let gradient = gradient.flatten_all().unwrap().to_vec1::<f64>().unwrap();
            assert!(gradient.iter().any(|value| *value != 0.0), "{}", parameters.values[index].0);
            for (entry, gradient) in gradient.iter().enumerate() {
                let mut at = |shift: f64| {
                    parameters.values[index].2[entry] += shift;
                    let (encoder, _) = parameters.encoder(DType::F64);
                    let features = encoder.forward(&words, &mut Mode::Evaluation).unwrap().features().clone();
                    parameters.values[index].2[entry] -= shift;
                    let loss = (&features * coefficients(&features)).unwrap().sum_all().unwrap();
                    loss.to_scalar::<f64>().unwrap()
                };
                let numeric = (at(step) - at(-step)) / (2.0 * step);
                let name = &parameters.values[index].0;
                assert!((gradient - numeric).abs() < 1e-7, "{name}[{entry}]: {gradient} {numeric}");
            }
        }
    }
}

#[test]
fn single_precision_is_the_double_one_rounded() {
    // f32 on the CPU has kernels of its own, f64 is candle's own operations: sizes that fill tiles of 6 rows and 16 units,
    // and sizes that do not.
    for (seed, (batch, longest, word_dimension, dimension)) in
        (0u64..).zip([(1, 1, 2, 1), (3, 5, 4, 16), (7, 9, 17, 33), (13, 6, 30, 48), (20, 12, 24, 65)])
    {
        let mut random = ChaCha8Rng::seed_from_u64(100 + seed);
        let lengths: Vec<usize> = (0..batch)
            .map(|row| match row {
                0 => longest,
                1 => 1,
                2 => 0,
                _ => random.next_u32() as usize % (longest + 1),
            })
            .collect();
        let words = WordBatch::new(&sentences(&lengths, 11, seed), &Device::Cpu).unwrap();
        for bidirectional in [true, false] {
            let config = WordEncoderConfig { bidirectional, ..config(11, word_dimension, dimension) };
            let parameters = Parameters::new(config, seed);
            let (_, double, double_gradients) = parameters.gradients(&words, DType::F64);
            let (_, single, single_gradients) = parameters.gradients(&words, DType::F32);
            close("features", &single, &double);
            for ((name, ..), (single, double)) in
                parameters.values.iter().zip(single_gradients.iter().zip(&double_gradients))
            {
                close(name, single, double);
            }
        }
    }
}

fn close(name: &str, single: &Tensor, double: &Tensor) {
    assert_eq!(single.dims(), double.dims());
    let double = double.flatten_all().unwrap().to_vec1::<f64>().unwrap();
    let scale = double.iter().fold(1.0, |scale: f64, value| scale.max(value.abs()));
    for (index, (single, double)) in flat(single).iter().zip(&double).enumerate() {
        let difference = (f64::from(*single) - double).abs();
        assert!(difference <= 1e-5 * scale, "{name}[{index}]: {single} {double}");
    }
}

#[test]
fn padding_changes_no_bit() {
    let parameters = Parameters::new(config(30, 20, 40), 5);
    let (encoder, _) = parameters.encoder(DType::F32);
    let lengths = [5, 1, 9, 0, 3, 7, 2, 9];
    let sentences = sentences(&lengths, 30, 6);
    let whole = WordBatch::new(&sentences, &Device::Cpu).unwrap();
    let whole = encoder.forward(&whole, &mut Mode::Evaluation).unwrap();
    let whole = whole.features().to_vec3::<f32>().unwrap();
    let others = [vec![3; 25], vec![4; 12]];
    for (sentence, together) in sentences.iter().zip(&whole) {
        let longer = [&others[..], std::slice::from_ref(sentence)].concat();
        for batch in [vec![sentence.clone()], longer] {
            let batch = WordBatch::new(&batch, &Device::Cpu).unwrap();
            let fragments = encoder.forward(&batch, &mut Mode::Evaluation).unwrap();
            let features = fragments.features().to_vec3::<f32>().unwrap();
            let alone = features.last().unwrap();
            for (position, row) in alone.iter().enumerate() {
                if position < sentence.len() {
                    assert_eq!(row, &together[position]);
                    let norm: f32 = row.iter().map(|value| value * value).sum();
                    assert!((norm - 1.0).abs() < 1e-5);
                } else {
                    assert!(row.iter().all(|value| value.to_bits() == 0));
                }
            }
        }
    }
}

#[test]
fn batches_encoded_together_come_out_as_alone() {
    let parameters = Parameters::new(config(30, 8, 12), 5);
    for dtype in [DType::F32, DType::F64] {
        let (encoder, variables) = parameters.encoder(dtype);
        let batch =
            |lengths: &[usize], seed| WordBatch::new(&sentences(lengths, 30, seed), &Device::Cpu).unwrap();
        let batches = [batch(&[5, 1, 9, 0], 6), batch(&[2, 3], 7)];
        let together =
            encoder.forward_all(&batches.iter().collect::<Vec<_>>(), &mut Mode::Evaluation).unwrap();
        let alone = batches.each_ref().map(|batch| encoder.forward(batch, &mut Mode::Evaluation).unwrap());
        let gradients = |fragments: &[Fragments]| -> Vec<Tensor> {
            let loss =
                |it: &Fragments| (it.features() * coefficients(it.features())).unwrap().sum_all().unwrap();
            let store = (loss(&fragments[0]) + loss(&fragments[1])).unwrap().backward().unwrap();
            variables.iter().map(|variable| store.get(variable).unwrap().clone()).collect()
        };
        for (together, alone) in together.iter().zip(&alone) {
            assert_eq!(together.features().dims(), alone.features().dims());
            close("features", together.features(), &alone.features().to_dtype(DType::F64).unwrap());
        }
        for (together, alone) in gradients(&together).iter().zip(gradients(&alone)) {
            close("gradient", together, &alone.to_dtype(DType::F64).unwrap());
        }
    }
}

#[test]
fn sentences_of_padding_alone_stay_zero_with_finite_gradients() {
    let empty: Vec<Vec<u32>> = vec![vec![], vec![]];
    let some = vec![vec![], vec![4], vec![]];
    for norm in [UnitNorm::Smooth, UnitNorm::Released] {
        let parameters = Parameters::new(WordEncoderConfig { norm, ..config(6, 3, 5) }, 8);
        for dtype in [DType::F32, DType::F64] {
            let (encoder, _) = parameters.encoder(dtype);
            let words = WordBatch::new(&empty, &Device::Cpu).unwrap();
            let features = encoder.forward(&words, &mut Mode::Evaluation).unwrap().features().clone();
            assert_eq!((features.dims(), features.dtype()), (&[2, 1, 5][..], dtype));
            assert!(flat(&features).iter().all(|value| *value == 0.0));

            let words = WordBatch::new(&some, &Device::Cpu).unwrap();
            let (_, features, gradients) = parameters.gradients(&words, dtype);
            let features = features.to_dtype(DType::F32).unwrap().to_vec3::<f32>().unwrap();
            assert!(features[0][0].iter().chain(&features[2][0]).all(|value| *value == 0.0));
            assert!(gradients.iter().all(|gradient| flat(gradient).iter().all(|value| value.is_finite())));
        }
    }
}

#[test]
fn gradients_reach_every_parameter_and_only_the_rows_of_words() {
    let parameters = Parameters::new(config(9, 8, 16), 2);
    let words = WordBatch::new(&[vec![1, 6, 6, 2], vec![1, 7, 2]], &Device::Cpu).unwrap();
    let (_, _, gradients) = parameters.gradients(&words, DType::F32);
    for ((name, ..), gradient) in parameters.values.iter().zip(&gradients) {
        let gradient = flat(gradient);
        assert!(gradient.iter().all(|value| value.is_finite()), "{name}");
        assert!(gradient.iter().any(|value| *value != 0.0), "{name}");
    }
    let by_row = gradients[0].abs().unwrap().sum(1).unwrap().to_vec1::<f32>().unwrap();
    let reached: Vec<bool> = by_row.iter().map(|value| *value != 0.0).collect();
    assert_eq!(reached, [false, true, true, false, false, false, true, true, false]);
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let parameters = Parameters::new(config(40, 24, 300), 4);
    let lengths: Vec<usize> = (0..23).map(|row| row * 7 % 11).collect();
    let words = WordBatch::new(&sentences(&lengths, 40, 9), &Device::Cpu).unwrap();
    let with = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).stack_size(1 << 25).build().unwrap();
        let (_, features, gradients) = pool.install(|| parameters.gradients(&words, DType::F32));
        (flat(&features), gradients.iter().map(flat).collect::<Vec<_>>())
    };
    let one = with(1);
    for threads in [2, 3, 5] {
        assert!(with(threads) == one, "{threads} threads");
    }
}

#[test]
fn two_losses_of_one_pass_each_have_their_gradient() {
    let parameters = Parameters::new(config(9, 8, 16), 2);
    let words = WordBatch::new(&[vec![1, 6, 6, 2], vec![1, 7, 2]], &Device::Cpu).unwrap();
    let (encoder, variables) = parameters.encoder(DType::F32);
    let features = encoder.forward(&words, &mut Mode::Evaluation).unwrap().features().clone();
    let loss = (&features * coefficients(&features)).unwrap().sum_all().unwrap();
    let first = loss.backward().unwrap();
    let twice = (&loss * 2.0).unwrap().backward().unwrap();
    for variable in &variables {
        let (first, twice) = (flat(first.get(variable).unwrap()), flat(twice.get(variable).unwrap()));
        assert!(first.iter().zip(&twice).all(|(first, twice)| (2.0 * first - twice).abs() <= 1e-6));
    }
}

#[test]
fn dropout_is_seeded_and_padding_does_not_change_it() {
    let parameters = Parameters::new(config(9, 8, 16), 2);
    let (encoder, _) = parameters.encoder(DType::F32);
    let run = |sentences: &[Vec<u32>], seed| {
        let words = WordBatch::new(sentences, &Device::Cpu).unwrap();
        let mut generator = ChaCha8Rng::seed_from_u64(seed);
        let fragments = encoder.forward(&words, &mut Mode::Training(&mut generator)).unwrap();
        fragments.features().to_vec3::<f32>().unwrap()
    };
    let sentence = vec![1, 6, 2];
    let alone = run(std::slice::from_ref(&sentence), 1);
    assert_eq!(alone, run(std::slice::from_ref(&sentence), 1));
    assert_ne!(alone, run(std::slice::from_ref(&sentence), 2));
    let padded = run(&[sentence, vec![5; 8]], 1);
    assert_eq!(alone[0][..], padded[0][..3]);
}

#[test]
fn wrong_ids_and_sizes_are_refused() {
    let parameters = Parameters::new(config(9, 8, 16), 2);
    let (encoder, _) = parameters.encoder(DType::F32);
    let words = WordBatch::new(&[vec![1, 9, 2]], &Device::Cpu).unwrap();
    let error = encoder.forward(&words, &mut Mode::Evaluation).unwrap_err();
    assert!(matches!(&error, EncoderError::Argument { got, .. } if got == "9"), "{error:?}");
    let zeros = || VarBuilder::zeros(DType::F32, &Device::Cpu);
    for wrong in [config(0, 8, 16), config(9, 0, 16), config(9, 8, 0)] {
        assert!(matches!(WordEncoder::new(wrong, zeros()), Err(EncoderError::Argument { .. })));
    }
    let wrong = WordEncoderConfig { dropout: 1.0, ..config(9, 8, 16) };
    assert!(matches!(WordEncoder::new(wrong, zeros()), Err(EncoderError::Argument { .. })));
}

#[test]
fn the_configuration_refuses_unknown_keys() {
    let config = WordEncoderConfig::paper(1000);
    let json = serde_json::to_value(config).unwrap();
    assert_eq!(serde_json::from_value::<WordEncoderConfig>(json.clone()).unwrap(), config);
    let mut unknown = json;
    unknown["layers"] = json!(2);
    assert!(serde_json::from_value::<WordEncoderConfig>(unknown).is_err());
}

#[test]
fn long_sentences_do_not_nest_the_backward_pass() {
    let parameters = Parameters::new(config(9, 4, 8), 2);
    let words = WordBatch::new(&[vec![5; 10_000], vec![6; 3]], &Device::Cpu).unwrap();
    // The stack of a plain test thread: a graph node a word would overflow it.
    let run = move || parameters.gradients(&words, DType::F32).0;
    let loss = std::thread::Builder::new().stack_size(2 << 20).spawn(run).unwrap().join().unwrap();
    assert!(loss.is_finite());
}
