//! The proxy A-distance on domains whose distance is known.

use aeir_retrieve::{DomainClassifier, Error, FeatureScale, Matrix, ProxyADistanceOptions, proxy_a_distance};

use crate::properties::scattered;

fn moved(domain: &Matrix, by: f32) -> Matrix {
    let values = domain.values().iter().map(|value| value + by).collect();
    Matrix::new(values, domain.rows(), domain.columns()).unwrap()
}

fn distance(source: &Matrix, target: &Matrix, seed: u64) -> f64 {
    proxy_a_distance(source, target, &ProxyADistanceOptions { seed, ..Default::default() }).unwrap().distance
}

#[test]
fn alike_is_near_0_and_apart_is_2() {
    let (a, b) = (scattered(1_200, 16, 1), scattered(900, 16, 2));
    for seed in 0..5 {
        // 450 test items a domain: the error's standard deviation is 1.7 %, the distance's 0.07.
        assert!(distance(&a, &b, seed).abs() < 0.25);
        let apart = distance(&a, &moved(&b, 3.0), seed);
        assert_eq!(apart, 2.0);
        let between = distance(&a, &moved(&b, 0.2), seed);
        assert!((0.4..1.6).contains(&between), "{between}");
    }
}

#[test]
fn the_seed_decides_the_draw() {
    let (a, b) = (scattered(300, 4, 3), moved(&scattered(300, 4, 4), 0.2));
    let options = |seed| ProxyADistanceOptions { seed, per_domain: 101, ..Default::default() };
    let found = |seed| proxy_a_distance(&a, &b, &options(seed)).unwrap();
    assert_eq!(found(1), found(1));
    assert!((2..8).any(|seed| found(seed) != found(1)));
    assert_eq!((found(1).n_train, found(1).n_test), (50, 51));
    // The smaller domain decides how many are drawn.
    let few = b.select_rows(&[0, 1, 2, 3, 4]).unwrap();
    let few = proxy_a_distance(&a, &few, &options(0)).unwrap();
    assert_eq!((few.n_train, few.n_test), (2, 3));
}

/// Statistics of all items centre the test halves on each other: they say less than nothing of new items.
#[test]
fn standardised_domains_are_tested_on_items_that_the_statistics_have_not_seen() {
    let mean = |standardise: bool, by: f32, whole: bool| -> f64 {
        let distance = |seed: u64| {
            let (mut a, mut b) =
                (scattered(200, 40, 2 * seed + 1), moved(&scattered(200, 40, 2 * seed + 2), by));
            if whole {
                let scaled =
                    |set: &Matrix| FeatureScale::of(set).applied(set).unwrap().l2_normalised().unwrap();
                (a, b) = (scaled(&a), scaled(&b));
            }
            let options = ProxyADistanceOptions { seed, standardise, ..Default::default() };
            proxy_a_distance(&a, &b, &options).unwrap().distance
        };
        (0..20).map(distance).sum::<f64>() / 20.0
    };
    assert!(mean(false, 1.0, false) > 1.0, "the domains are apart");
    let (alike, apart) = (mean(true, 0.0, false), mean(true, 1.0, false));
    assert!(alike.abs() < 0.2, "alike: {alike}");
    assert!((apart - alike).abs() < 0.05, "apart in the mean alone: {apart}");
    let whole = mean(false, 1.0, true);
    assert!(whole < -0.4, "with statistics of all items: {whole}");
    let (one, other) = (scattered(4, 3, 1), scattered(4, 2, 1));
    assert!(FeatureScale::of(&one).applied(&other).is_err());
}

/// At the minimum the gradient is zero: `w = c sum_i (label_i - p_i) x_i` and `sum_i (label_i - p_i) = 0`.
#[test]
fn weights_are_at_the_minimum() {
    // Separable or not, wide or narrow, near or far from the origin, weak or strong.
    for (items, columns, by, far) in
        [(40, 3, 0.3, 0.0), (30, 50, 0.1, 0.0), (40, 3, 5.0, 0.0), (40, 4, 0.3, 100.0)]
    {
        let source = moved(&scattered(items, columns, 7), far);
        let target = moved(&scattered(items + 9, columns, 8), far + by);
        for c in [1e-3, 1.0, 100.0] {
            let found = DomainClassifier::fit(&source, &target, c).unwrap();
            let residuals = |domain: &Matrix, label: f64| -> Vec<f64> {
                found.target_probabilities(domain).unwrap().into_iter().map(|p| label - p).collect()
            };
            let residuals = [residuals(&source, 0.0), residuals(&target, 1.0)].concat();
            let rows = || source.iter_rows().chain(target.iter_rows());
            assert!(c * residuals.iter().sum::<f64>().abs() < 1e-7 * (1.0 + c), "{c}");
            for (j, weight) in found.weights().iter().enumerate() {
                let pull: f64 = rows().zip(&residuals).map(|(row, r)| f64::from(row[j]) * r).sum();
                assert!(
                    (weight - c * pull).abs() < 1e-7 * (1.0 + weight.abs()) * (1.0 + f64::from(far)),
                    "{c}: {weight}, {pull}"
                );
            }
        }
    }
}

#[test]
fn exchanging_the_domains_turns_the_sign() {
    let (a, b) = (scattered(50, 5, 9), moved(&scattered(60, 5, 10), 0.2));
    let (there, back) =
        (DomainClassifier::fit(&a, &b, 1.0).unwrap(), DomainClassifier::fit(&b, &a, 1.0).unwrap());
    for (x, y) in there.weights().iter().zip(back.weights()) {
        assert!((x + y).abs() < 1e-9);
    }
    assert!((there.intercept() + back.intercept()).abs() < 1e-9);
}

#[test]
fn refusals() {
    let (a, one) = (scattered(10, 3, 11), scattered(1, 3, 12));
    let default = ProxyADistanceOptions::default();
    let with = |options| proxy_a_distance(&a, &a, &options);
    assert!(matches!(proxy_a_distance(&one, &a, &default), Err(Error::Setting { name: "source items", .. })));
    assert!(matches!(proxy_a_distance(&a, &one, &default), Err(Error::Setting { name: "target items", .. })));
    let one = ProxyADistanceOptions { per_domain: 1, ..default };
    assert!(matches!(with(one), Err(Error::Setting { name: "per_domain", .. })));
    for c in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let options = ProxyADistanceOptions { c, ..default };
        assert!(matches!(with(options), Err(Error::Setting { name: "c", .. })));
    }
    let wide = scattered(10, 4, 13);
    assert!(matches!(proxy_a_distance(&a, &wide, &default), Err(Error::Shape { expected: 3, got: 4, .. })));
    let none = Matrix::new(vec![], 0, 3).unwrap();
    assert!(matches!(DomainClassifier::fit(&a, &none, 1.0), Err(Error::Empty { .. })));
    let mut values = a.values().to_vec();
    values[4] = f32::NAN;
    let nan = Matrix::new(values, 10, 3).unwrap();
    assert!(matches!(DomainClassifier::fit(&nan, &a, 1.0), Err(Error::NotFinite { row: 1, column: 1, .. })));
    let classifier = DomainClassifier::fit(&a, &a, 1.0).unwrap();
    assert!(matches!(classifier.error(&wide, &a), Err(Error::Shape { .. })));
    assert!(matches!(classifier.error(&none, &none), Err(Error::Empty { .. })));
    // The same items on both sides: nothing to learn, and at a half the guess is source.
    assert!(classifier.weights().iter().all(|weight| weight.abs() < 1e-12));
}

/// Features of any size are solved or refused, never answered with a NaN.
#[test]
fn huge_and_tiny_features() {
    for scale in [1e-30_f32, 1e10, 1e30] {
        let scaled = |domain: &Matrix| {
            let values = domain.values().iter().map(|value| value * scale).collect();
            Matrix::new(values, domain.rows(), domain.columns()).unwrap()
        };
        let (a, b) = (scaled(&scattered(20, 30, 14)), scaled(&moved(&scattered(20, 30, 15), 0.5)));
        match proxy_a_distance(&a, &b, &ProxyADistanceOptions::default()) {
            Ok(found) => assert!((-2.0..=2.0).contains(&found.distance), "{scale}"),
            Err(error) => assert!(matches!(error, Error::Setting { .. }), "{scale}: {error}"),
        }
    }
}
