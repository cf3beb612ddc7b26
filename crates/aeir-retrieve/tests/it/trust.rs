//! Corrections by gallery, comparison of models, confidence and conformal sets.

use std::fs;
use std::path::Path;

use aeir_retrieve::{
    BootstrapOptions, CONFIDENCE_FILE, CORRECTION_FILE, Confidence, ConformalSets, Correction, Error,
    GalleryCorrection, Index, IndexBuilder, IndexContent, Matrix, PENALTIES_FILE, QueryBank, Ranks,
    Relevance, Ties, bootstrap, bootstrap_folds, compare, csls_with_bank, rank_corrected, rank_embeddings,
    rank_scores, similarity,
};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

fn unit(items: usize, dimension: usize, seed: u64) -> Matrix {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let values = (0..items * dimension).map(|_| random.next_u32() as f32 / u32::MAX as f32 - 0.4).collect();
    Matrix::new(values, items, dimension).unwrap().l2_normalised().unwrap()
}

/// Uniform between 0 and 1.
fn uniform(random: &mut ChaCha8Rng) -> f64 {
    f64::from(random.next_u32()) / (f64::from(u32::MAX) + 1.0)
}

const BETA: f64 = 20.0;

#[test]
fn penalties_rank_as_the_published_corrections_do() {
    let (images, sentences, bank) = (unit(30, 6, 1), unit(60, 6, 2), unit(40, 6, 3));
    let relevance = Relevance::consecutive(30, 2).unwrap();
    let queries = similarity(&sentences, &images).unwrap();
    let bank_scores = similarity(&bank, &images).unwrap();
    let softmax = QueryBank::new(&bank_scores, BETA, 1).unwrap();
    let published = [
        (Correction::Csls { k: 10 }, csls_with_bank(&queries, &bank_scores, 10).unwrap()),
        (Correction::InvertedSoftmax { beta: BETA }, softmax.log_inverted_softmax(&queries).unwrap()),
        (Correction::DynamicInvertedSoftmax { beta: BETA }, softmax.dynamic_log(&queries).unwrap().scores),
    ];
    for (correction, scores) in published {
        let by_gallery = GalleryCorrection::of_bank(correction, &images, &bank).unwrap();
        let ranks = rank_corrected(&images, &sentences, &relevance, Some(&by_gallery), None).unwrap();
        let expected = rank_scores(&scores.transposed(), &relevance, Ties::Pessimistic).unwrap();
        assert_eq!(ranks.t2i(), expected.t2i(), "{correction:?}");
        let plain = rank_embeddings(&images, &sentences, &relevance, Ties::Pessimistic).unwrap();
        assert_eq!(ranks.i2t(), plain.i2t(), "the other direction stays");
    }
}

#[test]
fn both_directions_are_corrected_each_by_its_own_bank() {
    let (images, sentences) = (unit(20, 5, 1), unit(20, 5, 2));
    let relevance = Relevance::consecutive(20, 1).unwrap();
    let of = |gallery: &Matrix, seed| {
        GalleryCorrection::of_bank(
            Correction::DynamicInvertedSoftmax { beta: BETA },
            gallery,
            &unit(9, 5, seed),
        )
        .unwrap()
    };
    let (of_images, of_sentences) = (of(&images, 7), of(&sentences, 8));
    let both =
        rank_corrected(&images, &sentences, &relevance, Some(&of_images), Some(&of_sentences)).unwrap();
    // With the roles exchanged the ranks are exchanged.
    let mirrored =
        rank_corrected(&sentences, &images, &relevance, Some(&of_sentences), Some(&of_images)).unwrap();
    assert_eq!((both.i2t(), both.t2i()), (mirrored.t2i(), mirrored.i2t()));
    let other =
        GalleryCorrection::of_bank(Correction::Csls { k: 3 }, &unit(4, 5, 1), &unit(9, 5, 2)).unwrap();
    let refused = rank_corrected(&images, &sentences, &relevance, Some(&other), None);
    assert!(matches!(refused, Err(Error::Shape { expected: 20, got: 4, .. })));
}

#[test]
fn sinkhorn_gives_every_item_its_share_of_the_bank() {
    let (gallery, bank) = (unit(12, 4, 1), unit(25, 4, 2));
    let of = |iterations| {
        let correction = Correction::Sinkhorn { beta: BETA, iterations };
        GalleryCorrection::of_bank(correction, &gallery, &bank).unwrap()
    };
    // The share of each item: over the bank, the softmax of corrected scores.
    let penalties = of(200).penalties().to_vec();
    let scores = similarity(&bank, &gallery).unwrap();
    let mut shares = vec![0.0; 12];
    for row in scores.iter_rows() {
        let terms: Vec<f64> = row
            .iter()
            .zip(&penalties)
            .map(|(score, penalty)| (BETA * f64::from(score - penalty)).exp())
            .collect();
        let sum: f64 = terms.iter().sum();
        shares.iter_mut().zip(terms).for_each(|(share, term)| *share += term / sum / 25.0);
    }
    assert!(shares.iter().all(|share| (share - 1.0 / 12.0).abs() < 1e-4), "{shares:?}");
}

#[test]
fn settings_and_banks_that_make_no_sense_are_refused() {
    let gallery = unit(5, 3, 1);
    let of = |correction, bank: &Matrix| GalleryCorrection::of_bank(correction, &gallery, bank).unwrap_err();
    assert!(matches!(of(Correction::Csls { k: 0 }, &gallery), Error::Setting { name: "k", .. }));
    for beta in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert!(matches!(
            of(Correction::InvertedSoftmax { beta }, &gallery),
            Error::Setting { name: "beta", .. }
        ));
    }
    let none = Matrix::new(Vec::new(), 0, 3).unwrap();
    assert!(matches!(of(Correction::Csls { k: 3 }, &none), Error::Empty { what: "query bank" }));
    assert!(matches!(of(Correction::Csls { k: 3 }, &unit(2, 4, 1)), Error::Shape { .. }));
    // A bank smaller than k is taken whole.
    assert!(GalleryCorrection::of_bank(Correction::Csls { k: 10 }, &gallery, &unit(2, 3, 2)).is_ok());
}

#[test]
fn a_stored_correction_is_read_back_and_searched_with() {
    let place = tempfile::tempdir().unwrap();
    let (gallery, bank, queries) = (unit(40, 6, 1), unit(30, 6, 2), unit(15, 6, 3));
    let folder = place.path().join("index");
    let index = index_with(&folder, &gallery, |_| ());
    assert_eq!(GalleryCorrection::read(&index).unwrap(), None);
    for correction in [
        Correction::Csls { k: 10 },
        Correction::DynamicInvertedSoftmax { beta: BETA },
        Correction::Sinkhorn { beta: BETA, iterations: 5 },
    ] {
        let made = GalleryCorrection::of_bank(correction, &gallery, &bank).unwrap();
        let index = index_with(&folder, &gallery, |staging| made.write(staging).unwrap());
        let read = GalleryCorrection::read(&index).unwrap().unwrap();
        assert_eq!((&read, read.bank()), (&made, 30));
        for query in queries.iter_rows() {
            let raw = index.search(query, 1).unwrap()[0].position;
            let found = index.search_with(query, 40, &read).unwrap();
            let mut expected: Vec<(f64, usize)> = (0..40)
                .map(|i| {
                    let penalty = if read.applies(raw) { f64::from(read.penalties()[i]) } else { 0.0 };
                    let row = gallery.row(i).unwrap();
                    (query.iter().zip(row).map(|(a, b)| f64::from(a * b)).sum::<f64>() - penalty, i)
                })
                .collect();
            expected.sort_by(|a, b| b.0.total_cmp(&a.0));
            for (hit, (score, _)) in found.iter().zip(&expected) {
                assert!((f64::from(hit.score) - score).abs() < 1e-5);
            }
        }
    }
    let made = GalleryCorrection::of_bank(Correction::Csls { k: 10 }, &gallery, &bank).unwrap();
    let of_others = index_with(&folder, &unit(39, 6, 1), |staging| made.write(staging).unwrap());
    assert!(matches!(GalleryCorrection::read(&of_others), Err(Error::Damaged { .. })));
    let index = index_with(&folder, &gallery, |staging| {
        made.write(staging).unwrap();
        fs::write(staging.join(PENALTIES_FILE), [0xff; 160]).unwrap();
    });
    assert!(matches!(GalleryCorrection::read(&index), Err(Error::Damaged { .. })), "NaN");
}

#[test]
fn what_the_manifest_does_not_list_is_no_part_of_an_index() {
    let place = tempfile::tempdir().unwrap();
    let (gallery, bank) = (unit(12, 6, 1), unit(30, 6, 2));
    let correction = GalleryCorrection::of_bank(Correction::Csls { k: 10 }, &gallery, &bank).unwrap();
    let confidence = Confidence::of_bank(&gallery, &bank).unwrap();
    let index = index_with(&place.path().join("index"), &gallery, |_| ());
    correction.write(index.folder()).unwrap();
    confidence.write(index.folder()).unwrap();
    assert_eq!(index.read_file(CORRECTION_FILE).unwrap(), None);
    assert_eq!(GalleryCorrection::read(&index).unwrap(), None);
    assert_eq!(Confidence::read(&index).unwrap(), None);
    // Listed, and changed after the index was opened.
    let index =
        index_with(&place.path().join("listed"), &gallery, |staging| confidence.write(staging).unwrap());
    assert_eq!(Confidence::read(&index).unwrap().as_ref(), Some(&confidence));
    fs::write(index.folder().join(CONFIDENCE_FILE), br#"{"version":1,"bank":3,"best":[1.0]}"#).unwrap();
    assert!(matches!(Confidence::read(&index), Err(Error::Damaged { .. })));
}

/// An index of `gallery` with what `add` writes into its staging folder.
fn index_with(folder: &Path, gallery: &Matrix, add: impl Fn(&Path)) -> Index {
    let items: Vec<String> = (0..gallery.rows()).map(|i| format!("{i}.jpg")).collect();
    let builder = IndexBuilder::begin(folder).unwrap();
    add(builder.staging());
    builder.commit(IndexContent::new(gallery, &items, "m")).unwrap();
    Index::open(folder).unwrap()
}

fn ranks(images: usize, noise: f32, seed: u64) -> Ranks {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let values = (0..images * images)
        .map(|i| noise * uniform(&mut random) as f32 + if i / images == i % images { 1.0 } else { 0.0 })
        .collect();
    let scores = Matrix::new(values, images, images).unwrap();
    rank_scores(&scores, &Relevance::consecutive(images, 1).unwrap(), Ties::Pessimistic).unwrap()
}

fn options(replicates: usize) -> BootstrapOptions {
    BootstrapOptions { replicates, ..BootstrapOptions::default() }
}

#[test]
fn a_better_model_is_told_from_an_equal_one() {
    let (good, bad) = (ranks(100, 1.1, 1), ranks(100, 3.0, 2));
    let found = compare(&bad, &good, &options(400)).unwrap();
    assert!(
        found.rsum.difference > 0.0 && found.rsum.p_value < 0.01 && found.rsum.interval.low > 0.0,
        "{found:?}"
    );
    let mirrored = compare(&good, &bad, &options(400)).unwrap();
    assert!((mirrored.rsum.difference + found.rsum.difference).abs() < 1e-9);
    let itself = compare(&good, &good, &options(50)).unwrap();
    assert_eq!((itself.t2i.r5.difference, itself.t2i.r5.p_value), (0.0, 1.0));
    assert!(matches!(compare(&good, &ranks(99, 1.0, 1), &options(5)), Err(Error::Shape { .. })));
    // Equally good models, drawn anew: 2 of 40 below 0.05 are expected.
    let low = (0..40)
        .map(|run| {
            compare(&ranks(60, 2.5, 2 * run), &ranks(60, 2.5, 2 * run + 1), &options(99))
                .unwrap()
                .rsum
                .p_value
        })
        .filter(|p| *p <= 0.05)
        .count();
    assert!(low <= 8, "{low}");
}

#[test]
fn one_fold_is_the_whole_and_folds_join() {
    let (first, second) = (ranks(30, 2.0, 1), ranks(30, 2.0, 2));
    let one = bootstrap_folds(std::slice::from_ref(&first), &options(100)).unwrap();
    assert_eq!(one, bootstrap(&first, &options(100)).unwrap());
    let joined = Ranks::joined(&[first.clone(), second.clone()]).unwrap();
    assert_eq!(joined.relevance().n_images(), 60);
    assert_eq!(joined.t2i(), [first.t2i(), second.t2i()].concat());
    let mean = (first.metrics().rsum + second.metrics().rsum) / 2.0;
    assert!((joined.metrics().rsum - mean).abs() < 1e-9);
    let interval = bootstrap_folds(&[first, second], &options(200)).unwrap().rsum;
    assert!(interval.low < mean && mean < interval.high);
    assert!(matches!(bootstrap_folds(&[], &options(1)), Err(Error::Empty { .. })));
}

#[test]
fn confidence_turns_away_as_many_of_the_own_kind_as_it_says() {
    let gallery = unit(50, 6, 1);
    let (mut own, mut foreign) = (0, 0);
    for run in 0..40 {
        let confidence = Confidence::of_bank(&gallery, &unit(60, 6, 100 + run)).unwrap();
        let below = |queries: &Matrix| {
            let best = queries.iter_rows().map(|query| {
                let scores =
                    gallery.iter_rows().map(|row| row.iter().zip(query).map(|(a, b)| a * b).sum::<f32>());
                scores.fold(f32::MIN, f32::max)
            });
            best.filter(|best| confidence.of(*best) <= 0.1).count()
        };
        own += below(&unit(25, 6, 500 + run));
        let turned: Vec<f32> = unit(25, 6, 900 + run).values().iter().map(|value| -value).collect();
        foreign += below(&Matrix::new(turned, 25, 6).unwrap());
    }
    // 1,000 queries each; at most 100 are expected of the bank's kind.
    assert!(own <= 130, "{own}");
    assert!(foreign > 400, "{foreign}");
}

#[test]
fn confidence_is_kept_on_disk_and_a_large_bank_is_thinned() {
    let place = tempfile::tempdir().unwrap();
    let (folder, gallery) = (place.path().join("index"), unit(10, 4, 1));
    assert_eq!(Confidence::read(&index_with(&folder, &gallery, |_| ())).unwrap(), None);
    let confidence = Confidence::of_bank(&gallery, &unit(2_500, 4, 2)).unwrap();
    assert_eq!(confidence.bank(), 2_500);
    let index = index_with(&folder, &gallery, |staging| confidence.write(staging).unwrap());
    assert_eq!(Confidence::read(&index).unwrap().as_ref(), Some(&confidence));
    assert!((confidence.of(f32::MAX) - 1.0).abs() < 1e-12 && confidence.of(f32::MIN) < 0.0011);
    let index = index_with(&folder, &gallery, |staging| {
        let unsorted = br#"{"version":1,"bank":3,"best":[2.0,1.0]}"#;
        fs::write(staging.join(CONFIDENCE_FILE), unsorted).unwrap();
    });
    assert!(matches!(Confidence::read(&index), Err(Error::Damaged { .. })));
}

#[test]
fn conformal_sets_cover_as_often_as_promised() {
    let mut random = ChaCha8Rng::seed_from_u64(4);
    let mut gap = move || (-uniform(&mut random).max(1e-12).ln()).max(0.0) * 0.1;
    for (labels, coverage) in [(50, 0.9), (50, 0.5), (9, 0.8)] {
        let mut covered = 0;
        for _ in 0..2_000 {
            let gaps: Vec<f64> = (0..labels).map(|_| gap()).collect();
            let sets = ConformalSets::calibrate(&gaps, coverage).unwrap();
            covered += usize::from(gap() <= sets.gap);
        }
        let share = covered as f64 / 2_000.0;
        // At least the promise, at most one label more; four standard errors either side.
        let (low, high) = (coverage - 0.045, coverage + 1.0 / (labels as f64 + 1.0) + 0.045);
        assert!((low..=high).contains(&share), "{labels} labels, {coverage}: {share}");
    }
    assert_eq!(
        ConformalSets::calibrate(&[0.1; 8], 0.9).unwrap().gap,
        f64::INFINITY,
        "too few to promise that"
    );
    assert!(matches!(ConformalSets::calibrate(&[], 0.9), Err(Error::Empty { .. })));
    assert!(matches!(ConformalSets::calibrate(&[0.1], 1.0), Err(Error::Setting { name: "coverage", .. })));
    assert!(matches!(ConformalSets::calibrate(&[-0.1], 0.5), Err(Error::Setting { name: "gap", .. })));
}
