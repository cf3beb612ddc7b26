//! Mean discrepancy, modality gap, principal axes and overlap, on sets whose truth is known.

use aeir_retrieve::{
    AgainstNull, Error, Matrix, MeanDiscrepancyOptions, ModalityGap, OverlapOptions, PrincipalAxes,
    maximum_mean_discrepancy, set_overlap, uniformity,
};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// Roughly normal numbers: sums of twelve uniform ones.
fn normal(random: &mut ChaCha8Rng) -> f32 {
    (0..12).map(|_| random.next_u32() as f32 / u32::MAX as f32).sum::<f32>() - 6.0
}

fn cloud(items: usize, dimension: usize, shift: f32, seed: u64) -> Matrix {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let values = (0..items * dimension).map(|_| normal(&mut random) + shift).collect();
    Matrix::new(values, items, dimension).unwrap()
}

/// Items around topics: `topic` numbers the centre of each, the same number the same centre in every set.
fn around(topics: impl Iterator<Item = u64>, dimension: usize, noise: f32, seed: u64) -> Matrix {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let rows: Vec<Vec<f32>> = topics
        .map(|topic| {
            let mut centre = ChaCha8Rng::seed_from_u64(1_000 + topic);
            (0..dimension).map(|_| normal(&mut centre) + noise * normal(&mut random)).collect()
        })
        .collect();
    Matrix::from_rows(&rows).unwrap()
}

fn discrepancy(source: &Matrix, target: &Matrix, seed: u64) -> f64 {
    let options = MeanDiscrepancyOptions { permutations: 99, seed, ..MeanDiscrepancyOptions::default() };
    maximum_mean_discrepancy(source, target, &options).unwrap().p_value
}

#[test]
fn one_domain_cut_in_two_has_p_values_that_are_spread_evenly() {
    let p_values: Vec<f64> = (0..60)
        .map(|run| discrepancy(&cloud(40, 8, 0.0, 2 * run), &cloud(50, 8, 0.0, 2 * run + 1), run))
        .collect();
    let below = |limit: f64| p_values.iter().filter(|p| **p <= limit).count();
    // Binomial with 60 draws: 5 % and 50 % are 3 and 30; these bounds are four deviations wide.
    assert!(below(0.05) <= 10, "{p_values:?}");
    assert!((14..=46).contains(&below(0.5)), "{p_values:?}");
}

#[test]
fn a_shift_and_a_wider_spread_are_both_seen() {
    let plain = cloud(60, 8, 0.0, 1);
    assert!(discrepancy(&plain, &cloud(60, 8, 0.6, 2), 0) <= 0.01);
    let values = cloud(60, 8, 0.0, 3).values().iter().map(|value| value * 1.8).collect();
    assert!(discrepancy(&plain, &Matrix::new(values, 60, 8).unwrap(), 0) <= 0.01, "means alone are equal");
}

#[test]
fn discrepancy_refuses_what_it_cannot_compare() {
    let plain = cloud(5, 3, 0.0, 1);
    let options = MeanDiscrepancyOptions::default();
    let refused = |source: &Matrix, target: &Matrix, options| {
        maximum_mean_discrepancy(source, target, &options).unwrap_err()
    };
    assert!(matches!(refused(&plain, &cloud(5, 4, 0.0, 1), options), Error::Shape { .. }));
    assert!(matches!(
        refused(&cloud(1, 3, 0.0, 1), &plain, options),
        Error::Setting { name: "source items", .. }
    ));
    let none = MeanDiscrepancyOptions { permutations: 0, ..options };
    assert!(matches!(refused(&plain, &plain, none), Error::Setting { name: "permutations", .. }));
    let nan = Matrix::new(vec![f32::NAN; 6], 2, 3).unwrap();
    assert!(matches!(refused(&nan, &plain, options), Error::NotFinite { row: 0, .. }));
    // Equal items have no distance to scale by.
    let same = Matrix::new(vec![1.0; 12], 4, 3).unwrap();
    let found = maximum_mean_discrepancy(&same, &same, &options).unwrap();
    assert!(found.squared.abs() < 1e-12 && found.p_value > 0.99, "{found:?}");
}

#[test]
fn gap_and_uniformity_of_known_shapes() {
    let pole = Matrix::new(vec![0.0, 2.0, 0.0, 5.0], 2, 2).unwrap();
    let other = Matrix::new(vec![0.0, -1.0, 0.0, -3.0], 2, 2).unwrap();
    let measured = ModalityGap::measure(&pole, &other).unwrap();
    assert!((measured.gap - 2.0).abs() < 1e-9 && measured.uniformity_images.abs() < 1e-9, "{measured:?}");
    // Two opposite points: ln exp(-2 * 4).
    let opposite = Matrix::new(vec![1.0, 0.0, -1.0, 0.0], 2, 2).unwrap();
    assert!((uniformity(&opposite).unwrap() + 8.0).abs() < 1e-9);
    assert!(matches!(uniformity(&cloud(1, 2, 0.0, 1)), Err(Error::Setting { .. })));
}

#[test]
fn axes_follow_the_spread() {
    let values: Vec<f32> =
        cloud(200, 3, 0.0, 5).values().chunks(3).flat_map(|v| [v[0], 10.0 * v[1], 3.0 * v[2]]).collect();
    let points = Matrix::new(values, 200, 3).unwrap();
    let axes = PrincipalAxes::fit(&points, 2).unwrap();
    assert!((0.95..1.0).contains(&axes.explained()), "{}", axes.explained());
    let projected = axes.project(&points).unwrap();
    let spread = |column: usize| projected.iter_rows().map(|row| f64::from(row[column]).powi(2)).sum::<f64>();
    let ratio = (spread(0) / spread(1)).sqrt();
    assert!((2.5..4.5).contains(&ratio), "{ratio}");
    assert!(matches!(axes.project(&cloud(2, 4, 0.0, 1)), Err(Error::Shape { expected: 3, got: 4, .. })));
}

fn overlap(images: &Matrix, sentences: &Matrix) -> aeir_retrieve::SetOverlap {
    let options = OverlapOptions { draws: 49, ..OverlapOptions::default() };
    set_overlap(images, sentences, &options).unwrap()
}

#[test]
fn sets_of_the_same_topics_fit_and_sets_of_others_do_not() {
    let images = around((0..120).map(|i| i % 12), 24, 0.8, 1);
    let same = overlap(&images, &around((0..90).map(|i| i % 12), 24, 0.8, 2));
    assert!(same.skewness.p_value <= 0.02 && same.mutual_similarity.p_value <= 0.02, "{same:?}");
    let other = overlap(&images, &around((0..90).map(|i| 50 + i % 12), 24, 0.8, 2));
    assert!(other.skewness.p_value > 0.05, "{other:?}");
    // What the share of mutual neighbours alone would have told.
    assert!(other.mutual_share.observed > 0.2, "{other:?}");
}

#[test]
fn a_modality_gap_is_no_misfit() {
    let images = around((0..120).map(|i| i % 12), 24, 0.8, 1);
    let shifted: Vec<f32> =
        around((0..90).map(|i| i % 12), 24, 0.8, 2).values().iter().map(|value| value + 5.0).collect();
    let found = overlap(&images, &Matrix::new(shifted, 90, 24).unwrap());
    assert!(found.skewness.p_value <= 0.02, "{found:?}");
}

#[test]
fn sets_without_relation_get_any_p_value() {
    let p_values: Vec<f64> = (0..40)
        .map(|run| overlap(&cloud(40, 12, 0.0, 2 * run), &cloud(45, 12, 0.0, 2 * run + 1)).skewness.p_value)
        .collect();
    // Binomial with 40 draws: 2 and 20 are expected.
    assert!(p_values.iter().filter(|p| **p <= 0.05).count() <= 8, "{p_values:?}");
    assert!((8..=32).contains(&p_values.iter().filter(|p| **p <= 0.5).count()), "{p_values:?}");
}

#[test]
fn the_order_of_items_and_of_threads_changes_nothing() {
    let images = around((0..60).map(|i| i % 6), 10, 0.8, 1);
    let sentences = around((0..50).map(|i| i % 6), 10, 0.8, 2);
    let once = overlap(&images, &sentences);
    let single = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    assert_eq!(once, single.install(|| overlap(&images, &sentences)));
    let AgainstNull { null, .. } = once.skewness;
    assert_eq!(null.len(), 49);
    assert!(set_overlap(&images, &cloud(1, 10, 0.0, 1), &OverlapOptions::default()).is_err());
}
