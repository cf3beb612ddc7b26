//! Bad input gets a typed error with the figures in it.

use aeir_retrieve::{
    BootstrapOptions, Error, Matrix, QueryBank, Relevance, Ties, bootstrap, csls, csls_with_bank, evaluate,
    evaluate_embeddings, evaluate_folds, five_fold_1k, k_occurrence, mean_top_k_similarity, nearest,
    rank_scores, similarity,
};

fn two() -> Matrix {
    Matrix::from_rows(&[[1.0, 0.0], [0.0, 1.0]]).unwrap()
}

#[test]
fn matrices() {
    assert!(matches!(Matrix::new(vec![0.0; 5], 2, 3), Err(Error::Shape { expected: 6, got: 5, .. })));
    assert!(matches!(Matrix::new(vec![], usize::MAX, 2), Err(Error::Shape { .. })));
    assert!(matches!(Matrix::from_rows(&[vec![1.0], vec![]]), Err(Error::Shape { expected: 1, got: 0, .. })));
    assert!(two().row(2).is_none() && two().get(0, 2).is_none());
    assert!(matches!(two().select_rows(&[2]), Err(Error::Shape { expected: 2, got: 2, .. })));
    let bad = Matrix::from_rows(&[[1.0, 0.0], [1.0, f32::NAN], [f32::INFINITY, 0.0]]).unwrap();
    assert!(matches!(bad.l2_normalised(), Err(Error::NotFinite { row: 1, column: 1, .. })));
    let extremes = Matrix::from_rows(&[[3e38, 3e38], [1e-45, 0.0], [0.0, 0.0]]).unwrap();
    let unit = extremes.l2_normalised().unwrap();
    assert!((unit.get(0, 0).unwrap() - 0.5_f32.sqrt()).abs() < 1e-6);
    assert_eq!((unit.row(1), unit.row(2)), (Some(&[1.0, 0.0][..]), Some(&[0.0, 0.0][..])));
}

#[test]
fn empty_matrices_are_no_accident() {
    let none = Matrix::new(vec![], 0, 4).unwrap();
    let flat = Matrix::new(vec![], 3, 0).unwrap();
    assert_eq!(similarity(&none, &none).unwrap().rows(), 0);
    assert_eq!(similarity(&flat, &flat).unwrap().values(), &[0.0; 9]);
    assert_eq!(nearest(&none, &none, 1).unwrap().len(), 0);
    assert_eq!(nearest(&flat, &flat, 2).unwrap()[2].len(), 2);
    let query = Matrix::new(vec![0.0; 4], 1, 4).unwrap();
    assert_eq!(nearest(&query, &none, 1).unwrap(), vec![vec![]]);
    assert_eq!(flat.l2_normalised().unwrap(), flat);
}

#[test]
fn relevance() {
    assert!(matches!(Relevance::from_owners(0, &[]), Err(Error::Empty { .. })));
    assert!(matches!(
        Relevance::from_owners(2, &[0, 2, 1]),
        Err(Error::Owner { sentence: 1, got: 2, images: 2 })
    ));
    assert!(matches!(Relevance::from_owners(3, &[0, 2]), Err(Error::ImageWithoutSentence { image: 1 })));
    assert!(matches!(Relevance::consecutive(2, 0), Err(Error::ImageWithoutSentence { image: 0 })));
}

#[test]
fn scores() {
    let pairs = Relevance::consecutive(2, 1).unwrap();
    let wide = Matrix::new(vec![0.0; 6], 2, 3).unwrap();
    assert!(matches!(evaluate(&wide, &pairs), Err(Error::Shape { expected: 2, got: 3, .. })));
    let nan = Matrix::from_rows(&[[1.0, 0.0], [f32::NAN, 0.0]]).unwrap();
    assert!(matches!(evaluate(&nan, &pairs), Err(Error::NotFinite { row: 1, column: 0, .. })));
    assert!(matches!(evaluate_embeddings(&nan, &two(), &pairs), Err(Error::NotFinite { row: 1, .. })));
    let endless = Matrix::from_rows(&[[f32::INFINITY, f32::NEG_INFINITY]; 2]).unwrap();
    assert!(evaluate(&endless, &pairs).is_ok());
    // Finite embeddings whose products leave f32: infinity less infinity.
    let huge = Matrix::from_rows(&[[3e38, 3e38]; 2]).unwrap();
    let opposed = Matrix::from_rows(&[[3e38, -3e38]; 2]).unwrap();
    assert!(matches!(evaluate_embeddings(&huge, &opposed, &pairs), Err(Error::NotFinite { .. })));
    assert!(matches!(nearest(&huge, &opposed, 1), Err(Error::Setting { .. })));
    assert!(matches!(similarity(&two(), &wide), Err(Error::Shape { expected: 2, got: 3, .. })));
}

#[test]
fn settings() {
    let pairs = Relevance::consecutive(2, 1).unwrap();
    let ranks = rank_scores(&two(), &pairs, Ties::Pessimistic).unwrap();
    let refused = |options| matches!(bootstrap(&ranks, &options), Err(Error::Setting { .. }));
    assert!(refused(BootstrapOptions { replicates: 0, ..BootstrapOptions::default() }));
    for confidence in [0.0, 1.0, -1.0, f64::NAN] {
        assert!(refused(BootstrapOptions { confidence, ..BootstrapOptions::default() }));
    }
    for folds in [0, 3] {
        assert!(matches!(evaluate_folds(&two(), &pairs, folds), Err(Error::Setting { name: "folds", .. })));
    }
    assert!(matches!(five_fold_1k(&two(), &pairs), Err(Error::Shape { expected: 5_000, got: 2, .. })));
    for k in [0, 3] {
        assert!(matches!(csls(&two(), k), Err(Error::Setting { name: "k", .. })));
        assert!(matches!(k_occurrence(&two(), k), Err(Error::Setting { name: "k", .. })));
        assert!(matches!(mean_top_k_similarity(&two(), &two(), k), Err(Error::Setting { name: "k", .. })));
        assert!(matches!(QueryBank::new(&two(), 20.0, k), Err(Error::Setting { name: "k", .. })));
    }
    for beta in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert!(matches!(QueryBank::new(&two(), beta, 1), Err(Error::Setting { name: "beta", .. })));
    }
    let none = Matrix::new(vec![], 0, 2).unwrap();
    assert!(matches!(QueryBank::new(&none, 20.0, 1), Err(Error::Empty { .. })));
    let wide = Matrix::new(vec![0.0; 6], 2, 3).unwrap();
    assert!(matches!(csls_with_bank(&two(), &wide, 1), Err(Error::Shape { .. })));
    assert!(matches!(QueryBank::new(&two(), 20.0, 1).unwrap().dynamic(&wide), Err(Error::Shape { .. })));
}
