//! Every file of `fixtures/parity/metrics` that concerns this crate, with the tolerances of its README.
//! `cca` and `procrustes` belong to other crates.

use std::path::Path;

use aeir_retrieve::{
    DirectionMetrics, DomainClassifier, Hubness, Matrix, QueryBank, Ranks, Relevance, RetrievalMetrics, Ties,
    anti_hubs, classic_inverted_softmax, csls, csls_with_bank, dynamic_inverted_softmax, evaluate,
    evaluate_embeddings_folds, evaluate_folds, inverted_softmax, k_occurrence, mean_top_k_columns,
    mean_top_k_rows, rank_embeddings, rank_scores, similarity, skewness, skewness_adjusted,
};
use safetensors::{Dtype, SafeTensors};

struct Fixture(Vec<u8>);

impl Fixture {
    fn read(name: &str) -> Self {
        Self::of("metrics", name)
    }

    fn of(folder: &str, name: &str) -> Self {
        let parity = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/parity");
        let place = parity.join(folder).join(name);
        Self(std::fs::read(place).expect("the fixture is in the repository"))
    }

    /// Shape and values of a tensor, whatever its type, as f64 (all are exact in it).
    fn tensor(&self, name: &str) -> (Vec<usize>, Vec<f64>) {
        let file = SafeTensors::deserialize(&self.0).expect("safetensors");
        let view = file.tensor(name).expect(name);
        let data = view.data();
        let values = match view.dtype() {
            Dtype::F64 => data.chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect(),
            Dtype::I64 => {
                data.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as f64).collect()
            }
            Dtype::I16 => {
                data.chunks_exact(2).map(|b| i16::from_le_bytes(b.try_into().unwrap()).into()).collect()
            }
            Dtype::U8 => data.iter().map(|b| f64::from(*b)).collect(),
            other => panic!("{name}: {other:?}"),
        };
        (view.shape().to_vec(), values)
    }

    fn values(&self, name: &str) -> Vec<f64> {
        self.tensor(name).1
    }

    fn number(&self, name: &str) -> f64 {
        self.values(name)[0]
    }

    fn counts(&self, name: &str) -> Vec<usize> {
        self.values(name).into_iter().map(|value| value as usize).collect()
    }

    fn ranks(&self, name: &str) -> Vec<u32> {
        self.values(name).into_iter().map(|value| value as u32).collect()
    }

    fn matrix(&self, name: &str) -> Matrix {
        let (shape, values) = self.tensor(name);
        Matrix::new(values.into_iter().map(|value| value as f32).collect(), shape[0], shape[1])
            .expect("matrix")
    }
}

/// The README's `f32 rtol 2e-5`. `scale` is the size of the terms that a difference was taken of: where they cancel,
/// no f32 result is nearer than that, relative to the difference itself.
fn assert_close(got: &[f32], expected: &[f64], scale: f64, what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (place, (got, expected)) in got.iter().zip(expected).enumerate() {
        let tolerance = 2e-5 * expected.abs().max(scale);
        assert!((f64::from(*got) - expected).abs() <= tolerance, "{what}[{place}]: {got} is not {expected}");
    }
}

fn assert_near(got: f64, expected: f64, what: &str) {
    assert!((got - expected).abs() <= 1e-9 * expected.abs().max(1.0), "{what}: {got} is not {expected}");
}

/// The 10 best positions of every row, best first, lower position first in ties.
fn ranking_top10(scores: &Matrix) -> Vec<usize> {
    let mut all = Vec::new();
    for row in scores.iter_rows() {
        let mut order: Vec<usize> = (0..row.len()).collect();
        order.sort_by(|a, b| row[*b].partial_cmp(&row[*a]).expect("no NaN"));
        all.extend(order.into_iter().take(10));
    }
    all
}

#[test]
fn csls_file() {
    let file = Fixture::read("csls.safetensors");
    let (scores, bank) = (file.matrix("scores"), file.matrix("bank_scores"));
    let f32s = |values: Vec<f64>| values.into_iter().map(|value| value as f32).collect::<Vec<_>>();
    assert_close(
        &f32s(mean_top_k_rows(&scores, 10).unwrap()),
        &file.values("query_mean_top10"),
        0.0,
        "query mean",
    );
    let gallery = f32s(mean_top_k_columns(&scores, 10).unwrap());
    assert_close(&gallery, &file.values("gallery_mean_top10"), 0.0, "gallery mean");
    let from_bank = f32s(mean_top_k_columns(&bank, 10).unwrap());
    assert_close(&from_bank, &file.values("gallery_mean_top10_from_bank"), 0.0, "gallery mean from bank");

    let corrected = csls(&scores, 10).unwrap();
    assert_close(corrected.values(), &file.values("csls"), CSLS_SCALE, "csls");
    let corrected = csls_with_bank(&scores, &bank, 10).unwrap();
    assert_close(corrected.values(), &file.values("csls_bank"), CSLS_SCALE, "csls_bank");
}

/// csls is a difference of cosines: see [`assert_close`].
const CSLS_SCALE: f64 = 0.01;

#[test]
fn qbnorm_dis_file() {
    let file = Fixture::read("qbnorm_dis.safetensors");
    let (scores, bank) = (file.matrix("scores"), file.matrix("bank_scores"));
    let query_bank = QueryBank::new(&bank, 20.0, 1).unwrap();
    let activation: Vec<usize> =
        query_bank.activation_set().iter().map(|active| usize::from(*active)).collect();
    assert_eq!(activation, file.counts("activation_set"));

    let plain = inverted_softmax(&scores, &bank, 20.0).unwrap();
    assert_close(plain.values(), &file.values("inverted_softmax"), 0.0, "inverted softmax");
    let logarithm = query_bank.log_inverted_softmax(&scores).unwrap();
    assert_close(logarithm.values(), &file.values("log_inverted_softmax"), 0.0, "log inverted softmax");
    let classic = classic_inverted_softmax(&scores, 20.0).unwrap();
    assert_close(classic.values(), &file.values("classic_inverted_softmax_own_queries"), 0.0, "classic");

    let dynamic = dynamic_inverted_softmax(&scores, &bank, 20.0, 1).unwrap();
    assert_close(dynamic.scores.values(), &file.values("dis"), 0.0, "dis");
    let activated: Vec<usize> = dynamic.activated.iter().map(|active| usize::from(*active)).collect();
    assert_eq!(activated, file.counts("query_activated"));

    assert_eq!(ranking_top10(&scores), file.counts("ranking_top10.raw"));
    assert_eq!(ranking_top10(&plain), file.counts("ranking_top10.inverted_softmax"));
    assert_eq!(ranking_top10(&logarithm), file.counts("ranking_top10.inverted_softmax"));
    assert_eq!(ranking_top10(&dynamic.scores), file.counts("ranking_top10.dis"));
    assert_eq!(
        ranking_top10(&query_bank.dynamic_log(&scores).unwrap().scores),
        file.counts("ranking_top10.dis")
    );
}

#[test]
fn hubness_file() {
    let file = Fixture::read("hubness.safetensors");
    let scores = file.matrix("scores");
    let occurrences = k_occurrence(&scores, 10).unwrap();
    assert_eq!(occurrences, file.counts("k_occurrence"));
    assert_near(skewness(&occurrences), file.number("skewness"), "skewness");
    assert_near(skewness_adjusted(&occurrences), file.number("skewness_adjusted"), "skewness_adjusted");
    assert_eq!(anti_hubs(&occurrences), file.counts("anti_hubs")[0]);
    let measured = Hubness::measure(&scores, 10).unwrap();
    assert_eq!(measured.anti_hubs, file.counts("anti_hubs")[0]);
    assert_eq!(measured.hubs_above_2k, file.counts("hubs_above_2k")[0]);
    assert_eq!(measured.max_occurrence, file.counts("max_occurrence")[0]);
}

fn check_direction(
    file: &Fixture,
    prefix: &str,
    figures: &DirectionMetrics,
    ranks: &[u32],
    precision: &[f64],
) {
    assert_eq!(ranks, file.ranks(&format!("{prefix}.ranks")), "{prefix}");
    let expected = |name: &str| file.number(&format!("{prefix}.{name}"));
    assert_near(figures.r1, expected("recall_at_1"), prefix);
    assert_near(figures.r5, expected("recall_at_5"), prefix);
    assert_near(figures.r10, expected("recall_at_10"), prefix);
    assert_near(figures.medr, expected("median_rank"), prefix);
    assert_near(figures.meanr, expected("mean_rank"), prefix);
    assert_near(figures.map.expect("asked for"), expected("map"), prefix);
    for (got, expected) in precision.iter().zip(file.values(&format!("{prefix}.average_precision"))) {
        assert_near(*got, expected, prefix);
    }
}

#[test]
fn recall_multicaption_file() {
    let file = Fixture::read("recall_multicaption.safetensors");
    let scores = file.matrix("scores");
    let relevance = Relevance::consecutive(40, 5).unwrap();
    for (ties, name) in [(Ties::Pessimistic, "pessimistic"), (Ties::Optimistic, "optimistic")] {
        let ranks = rank_scores(&scores, &relevance, ties).unwrap();
        let figures = ranks.metrics_with_map();
        let prefix = format!("{name}.image_to_text");
        check_direction(&file, &prefix, &figures.i2t, ranks.i2t(), ranks.i2t_average_precision());
        let prefix = format!("{name}.text_to_image");
        check_direction(&file, &prefix, &figures.t2i, ranks.t2i(), ranks.t2i_average_precision());
        assert_near(figures.rsum, file.number(&format!("{name}.rsum")), "rsum");
    }
    let pessimistic = rank_scores(&scores, &relevance, Ties::Pessimistic).unwrap().metrics();
    assert_eq!(evaluate(&scores, &relevance).unwrap(), pessimistic);
}

fn assert_figures(got: &RetrievalMetrics, expected: &[f64], what: &str) {
    let (i2t, t2i) = (&got.i2t, &got.t2i);
    let got = [
        i2t.r1, i2t.r5, i2t.r10, t2i.r1, t2i.r5, t2i.r10, got.rsum, i2t.medr, i2t.meanr, t2i.medr, t2i.meanr,
    ];
    assert_eq!(got.len(), expected.len());
    for (got, expected) in got.iter().zip(expected) {
        assert_near(*got, *expected, what);
    }
}

fn assert_ranks(file: &Fixture, ranks: &Ranks, prefix: &str) {
    assert_eq!(ranks.i2t(), file.ranks(&format!("{prefix}.image_to_text.ranks")), "{prefix}");
    assert_eq!(ranks.t2i(), file.ranks(&format!("{prefix}.text_to_image.ranks")), "{prefix}");
}

#[test]
fn five_fold_file() {
    let file = Fixture::read("five_fold.safetensors");
    let (images, sentences) = (file.matrix("image_factors"), file.matrix("caption_factors"));
    let scores = similarity(&images, &sentences).unwrap();
    let total: f64 = scores.values().iter().map(|score| f64::from(*score)).sum();
    let ends = [scores.values()[0], scores.values()[scores.values().len() - 1]].map(f64::from);
    assert_eq!([total, ends[0], ends[1]].to_vec(), file.values("score_checksum"));

    let relevance = Relevance::consecutive(500, 5).unwrap();
    let full = rank_scores(&scores, &relevance, Ties::Pessimistic).unwrap();
    assert_ranks(&file, &full, "full");
    assert_ranks(
        &file,
        &rank_embeddings(&images, &sentences, &relevance, Ties::Pessimistic).unwrap(),
        "full",
    );
    assert_figures(&full.metrics(), &file.values("full"), "full");

    let folds = evaluate_folds(&scores, &relevance, 5).unwrap();
    assert_eq!(evaluate_embeddings_folds(&images, &sentences, &relevance, 5).unwrap(), folds);
    for (fold, expected) in folds.folds.iter().zip(file.values("per_fold").chunks(11)) {
        assert_figures(fold, expected, "fold");
    }
    assert_figures(&folds.mean, &file.values("mean_over_folds"), "mean");
    for fold in 0..5 {
        let rows = |each: usize| (fold * each..(fold + 1) * each).collect::<Vec<_>>();
        let part = rank_embeddings(
            &images.select_rows(&rows(100)).unwrap(),
            &sentences.select_rows(&rows(500)).unwrap(),
            &Relevance::consecutive(100, 5).unwrap(),
            Ties::Pessimistic,
        );
        assert_ranks(&file, &part.unwrap(), &format!("fold_{fold}"));
    }
}

/// Features are rounded to f32 on the way in; the weights still agree to the file's tolerance.
#[test]
fn proxy_a_distance_file() {
    let file = Fixture::read("proxy_a_distance.safetensors");
    let [source, target, source_test, target_test] =
        ["source_train", "target_train", "source_test", "target_test"].map(|name| file.matrix(name));
    for (c, text) in [(0.1, "0.1"), (1.0, "1.0")] {
        let key = |name: &str| format!("c_{text}.{name}");
        let found = DomainClassifier::fit(&source, &target, c).unwrap();
        let near = |got: f64, expected: f64, what: &str| {
            assert!((got - expected).abs() <= 1e-6, "{}: {got} is not {expected}", key(what));
        };
        for (got, expected) in found.weights().iter().zip(file.values(&key("weights"))) {
            near(*got, expected, "weights");
        }
        near(found.intercept(), file.number(&key("intercept")), "intercept");
        let probabilities =
            [&source_test, &target_test].map(|items| found.target_probabilities(items).unwrap());
        for (got, expected) in probabilities.concat().iter().zip(file.values(&key("test_probability"))) {
            near(*got, expected, "test_probability");
        }
        let error = found.error(&source_test, &target_test).unwrap();
        assert_near(error, file.number(&key("test_error")), "test_error");
        assert_near(2.0 * (1.0 - 2.0 * error), file.number(&key("proxy_a_distance")), "proxy_a_distance");
    }
}

#[test]
fn mean_discrepancy() {
    let fixture = Fixture::of("losses", "mmd.safetensors");
    let options = aeir_retrieve::MeanDiscrepancyOptions::default();
    let found = aeir_retrieve::maximum_mean_discrepancy(&fixture.matrix("x"), &fixture.matrix("y"), &options)
        .expect("mmd");
    // The inputs are rounded to f32.
    let (got, expected) = (found.squared, fixture.number("scaled.unbiased"));
    assert!((got - expected).abs() <= 2e-6 + 2e-5 * expected, "{got} is not {expected}");
}

#[test]
fn sinkhorn_potentials() {
    use aeir_retrieve::{Correction, GalleryCorrection};
    let fixture = Fixture::of("losses", "sinkhorn.safetensors");
    let cost = fixture.matrix("cost");
    // The file's square case: the first five rows. A gallery of unit vectors turns any bank into its own scores.
    let bank: Vec<Vec<f32>> =
        cost.iter_rows().take(5).map(|row| row.iter().map(|cost| -cost).collect()).collect();
    let bank = Matrix::from_rows(&bank).expect("bank");
    let axes: Vec<[f32; 5]> =
        (0..5).map(|i| std::array::from_fn(|j| if i == j { 1.0 } else { 0.0 })).collect();
    let axes = Matrix::from_rows(&axes).expect("axes");
    let correction = Correction::Sinkhorn { beta: 10.0, iterations: 50 };
    let found = GalleryCorrection::of_bank(correction, &axes, &bank).expect("correction");
    let plan = fixture.values("square_uniform.eps_0.1.iterations_50.plan");
    for (row, expected) in bank.iter_rows().zip(plan.chunks(5)) {
        let terms: Vec<f64> = (row.iter().zip(found.penalties()))
            .map(|(score, penalty)| (10.0 * f64::from(score - penalty)).exp())
            .collect();
        let sum: f64 = terms.iter().sum();
        for (term, expected) in terms.iter().zip(expected) {
            // Rows agree as far as the rounds have converged.
            assert!((term / sum / 5.0 - expected).abs() < 1e-4, "{terms:?} is not {expected:?}");
        }
    }
}
