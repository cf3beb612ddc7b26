//! Properties that hold for any input.

use aeir_retrieve::{
    BootstrapOptions, Hubness, Matrix, Relevance, Ties, bootstrap, chance, csls, csls_with_bank, evaluate,
    evaluate_directions, evaluate_embeddings, k_occurrence, mean_top_k_similarity, nearest, rank_embeddings,
    rank_scores, similarity,
};
use proptest::prelude::*;

use crate::naive;

/// A split of up to 12 images with 1 to 4 sentences each, sentences in any order.
pub(crate) fn split() -> impl Strategy<Value = Relevance> {
    prop::collection::vec(1_usize..=4, 1..12)
        .prop_flat_map(|counts| {
            let images = counts.len();
            let owners: Vec<usize> =
                counts.iter().enumerate().flat_map(|(i, count)| std::iter::repeat_n(i, *count)).collect();
            (Just(images), Just(owners).prop_shuffle())
        })
        .prop_map(|(images, owners)| Relevance::from_owners(images, &owners).expect("every image has one"))
}

/// Scores on a coarse grid, so that ties abound.
fn split_with_scores() -> impl Strategy<Value = (Relevance, Matrix)> {
    split().prop_flat_map(|relevance| {
        let (rows, columns) = (relevance.n_images(), relevance.n_sentences());
        let values = prop::collection::vec((-4_i8..=4).prop_map(|v| f32::from(v) / 4.0), rows * columns);
        (Just(relevance), values.prop_map(move |v| Matrix::new(v, rows, columns).expect("sizes agree")))
    })
}

fn matrix(
    rows: impl Strategy<Value = usize>,
    columns: impl Strategy<Value = usize>,
) -> impl Strategy<Value = Matrix> {
    (rows, columns).prop_flat_map(|(rows, columns)| {
        prop::collection::vec(-1.0_f32..1.0, rows * columns)
            .prop_map(move |values| Matrix::new(values, rows, columns).expect("sizes agree"))
    })
}

/// Numbers that look random, without a generator.
pub(crate) fn scattered(rows: usize, columns: usize, seed: u64) -> Matrix {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(1);
    let values = (0..rows * columns)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
        })
        .collect();
    Matrix::new(values, rows, columns).expect("sizes agree")
}

proptest! {
    #[test]
    fn ranks_are_the_naive_loops((relevance, scores) in split_with_scores()) {
        for ties in [Ties::Pessimistic, Ties::Optimistic] {
            let ranks = rank_scores(&scores, &relevance, ties).unwrap();
            let (i2t, t2i) = naive::ranks(&scores, &relevance, ties);
            prop_assert_eq!(ranks.i2t(), &i2t[..]);
            prop_assert_eq!(ranks.t2i(), &t2i[..]);
            for precision in ranks.i2t_average_precision() {
                prop_assert!(*precision > 0.0 && *precision <= 1.0);
            }
        }
        let optimistic = rank_scores(&scores, &relevance, Ties::Optimistic).unwrap().metrics().rsum;
        prop_assert!(optimistic >= evaluate(&scores, &relevance).unwrap().rsum);
    }

    #[test]
    fn one_sentence_an_image_is_symmetric(scores in (1_usize..20).prop_flat_map(|n| matrix(Just(n), Just(n)))) {
        let relevance = Relevance::consecutive(scores.rows(), 1).unwrap();
        let straight = evaluate(&scores, &relevance).unwrap();
        let transposed = evaluate(&scores.transposed(), &relevance).unwrap();
        prop_assert_eq!(straight.i2t, transposed.t2i);
        prop_assert_eq!(straight.t2i, transposed.i2t);
        prop_assert_eq!(evaluate_directions(&scores, &scores.transposed(), &relevance).unwrap(), straight);
    }

    #[test]
    fn transposing_twice_changes_nothing(scores in matrix(0_usize..70, 0_usize..70)) {
        prop_assert_eq!(scores.transposed().transposed(), scores);
    }

    #[test]
    fn the_order_of_images_and_sentences_changes_nothing((relevance, scores) in split_with_scores()) {
        let (images, sentences) = (relevance.n_images(), relevance.n_sentences());
        let rows: Vec<usize> = (0..images).rev().collect();
        let columns: Vec<usize> = (0..sentences).rev().collect();
        let moved = scores.select_rows(&rows).unwrap().transposed().select_rows(&columns).unwrap().transposed();
        let owners: Vec<usize> = relevance.owners().iter().rev().map(|owner| images - 1 - owner).collect();
        let moved_relevance = Relevance::from_owners(images, &owners).unwrap();
        let (one, other) = (evaluate(&scores, &relevance).unwrap(), evaluate(&moved, &moved_relevance).unwrap());
        prop_assert!((one.rsum - other.rsum).abs() < 1e-9);
        prop_assert!((one.i2t.meanr - other.i2t.meanr).abs() < 1e-9);
    }

    #[test]
    fn a_dot_product_does_not_depend_on_its_place(
        (rows, columns, dimension) in (1_usize..40, 1_usize..200, 1_usize..70), seed in any::<u64>(),
    ) {
        let (left, right) = (scattered(rows, dimension, seed), scattered(columns, dimension, seed ^ 7));
        let whole = similarity(&left, &right).unwrap();
        let alone = similarity(&left.select_rows(&[rows / 2]).unwrap(), &right).unwrap();
        prop_assert_eq!(alone.row(0), whole.row(rows / 2));
        prop_assert_eq!(similarity(&right, &left).unwrap().transposed(), whole.clone());
        let one = similarity(&left, &right.select_rows(&[columns - 1]).unwrap()).unwrap();
        for i in 0..rows {
            prop_assert_eq!(one.get(i, 0), whole.get(i, columns - 1));
            let exact: f64 = left.row(i).unwrap().iter().zip(right.row(0).unwrap())
                .map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            prop_assert!((f64::from(whole.get(i, 0).unwrap()) - exact).abs() < 1e-4);
        }
    }

    #[test]
    fn search_is_the_naive_sort(
        gallery in matrix(1_usize..60, Just(7)), copies in 1_usize..4, k in 1_usize..80, seed in any::<u64>(),
    ) {
        // Copies of the whole gallery: every score is tied.
        let positions: Vec<usize> = (0..gallery.rows() * copies).map(|i| i % gallery.rows()).collect();
        let gallery = gallery.select_rows(&positions).unwrap();
        let queries = scattered(5, 7, seed);
        let found = nearest(&queries, &gallery, k).unwrap();
        for (query, found) in queries.iter_rows().zip(&found) {
            let naive = naive::nearest(query, &gallery, None);
            let found: Vec<(usize, f32)> = found.iter().map(|n| (n.position, n.score)).collect();
            prop_assert_eq!(&found[..], &naive[..k.min(gallery.rows())]);
        }
        prop_assert_eq!(&nearest(&queries.select_rows(&[3]).unwrap(), &gallery, k).unwrap()[0], &found[3]);
    }

    #[test]
    fn csls_with_the_own_scores_as_bank_is_csls(scores in matrix(3_usize..20, 3_usize..20)) {
        prop_assert_eq!(csls(&scores, 3).unwrap(), csls_with_bank(&scores, &scores, 3).unwrap());
        let raised: Vec<f32> = scores.values().iter().map(|v| v + 0.5).collect();
        let raised = csls(&Matrix::new(raised, scores.rows(), scores.columns()).unwrap(), 3).unwrap();
        for (a, b) in raised.values().iter().zip(csls(&scores, 3).unwrap().values()) {
            prop_assert!((a - b).abs() < 1e-5, "a constant cancels");
        }
    }

    #[test]
    fn k_occurrence_is_the_naive_sort(
        values in (1_usize..6, 1_usize..300).prop_flat_map(|(rows, columns)| {
            (Just(columns), prop::collection::vec((-9_i8..=9).prop_map(f32::from), rows * columns))
        }),
        k in 1_usize..40,
    ) {
        let (columns, values) = values;
        let k = k.min(columns);
        let scores = Matrix::new(values.clone(), values.len() / columns, columns).unwrap();
        let mut counts = vec![0; columns];
        for (row, mean) in scores.iter_rows().zip(aeir_retrieve::mean_top_k_rows(&scores, k).unwrap()) {
            let mut order: Vec<usize> = (0..columns).collect();
            order.sort_by(|a, b| row[*b].partial_cmp(&row[*a]).unwrap());
            order[..k].iter().for_each(|j| counts[*j] += 1);
            prop_assert_eq!(mean, order[..k].iter().map(|j| f64::from(row[*j])).sum::<f64>() / k as f64);
        }
        prop_assert_eq!(k_occurrence(&scores, k).unwrap(), counts);
    }

    #[test]
    fn every_query_names_k_neighbours(scores in matrix(1_usize..30, 1_usize..30), k in 1_usize..30) {
        let k = k.min(scores.columns());
        prop_assert_eq!(k_occurrence(&scores, k).unwrap().iter().sum::<usize>(), k * scores.rows());
    }
}

#[test]
fn embeddings_give_the_figures_of_their_scores() {
    // More than a tile each way, sizes that fill none, sentences in and out of order, many equal embeddings.
    for (images, per_image, dimension) in [(700, 3, 33), (1030, 1, 4), (300, 8, 130), (3, 2, 600), (1, 1, 1)]
    {
        let owners: Vec<usize> = (0..images * per_image).map(|j| (j * 7919) % images).collect();
        let Ok(relevance) = Relevance::from_owners(images, &owners) else { panic!("7919 shares no factor") };
        let of_image = scattered(images, dimension, 3);
        let noise = scattered(owners.len(), dimension, 5);
        let values = (owners.iter().zip(noise.iter_rows()))
            .flat_map(|(owner, noise)| {
                of_image
                    .row(owner / 2)
                    .unwrap()
                    .iter()
                    .zip(noise)
                    .map(|(a, b)| a + 1.5 * b)
                    .collect::<Vec<_>>()
            })
            .collect();
        let sentences = Matrix::new(values, owners.len(), dimension).unwrap().l2_normalised().unwrap();
        let of_image = of_image.l2_normalised().unwrap();
        let scores = similarity(&of_image, &sentences).unwrap();
        for ties in [Ties::Pessimistic, Ties::Optimistic] {
            let streamed = rank_embeddings(&of_image, &sentences, &relevance, ties).unwrap();
            assert_eq!(streamed, rank_scores(&scores, &relevance, ties).unwrap());
        }
        let (i2t, t2i) = naive::ranks(&scores, &relevance, Ties::Pessimistic);
        let ranks = rank_scores(&scores, &relevance, Ties::Pessimistic).unwrap();
        assert_eq!((ranks.i2t(), ranks.t2i()), (&i2t[..], &t2i[..]));
        assert_eq!(
            evaluate_embeddings(&of_image, &sentences, &relevance).unwrap(),
            evaluate(&scores, &relevance).unwrap()
        );
    }
}

#[test]
fn equal_embeddings_tie_against_the_query() {
    // All images alike: every wrong image scores as the right one, so every rank is the worst.
    let images = Matrix::new([0.3, -0.7, 0.648].repeat(300), 300, 3).unwrap();
    let sentences = scattered(300, 3, 11).l2_normalised().unwrap();
    let metrics = evaluate_embeddings(&images, &sentences, &Relevance::consecutive(300, 1).unwrap()).unwrap();
    assert_eq!((metrics.t2i.r1, metrics.t2i.meanr), (0.0, 300.0));
}

#[test]
fn search_over_several_tiles_is_the_naive_sort() {
    let gallery = scattered(5_000, 40, 1).l2_normalised().unwrap();
    let queries = scattered(300, 40, 2);
    for k in [1, 10, 4_999, 6_000] {
        let queries = if k > 10 { queries.select_rows(&[0, 1, 2, 3, 299]).unwrap() } else { queries.clone() };
        for (query, found) in queries.iter_rows().zip(nearest(&queries, &gallery, k).unwrap()) {
            let found: Vec<(usize, f32)> = found.iter().map(|n| (n.position, n.score)).collect();
            assert_eq!(found, naive::nearest(query, &gallery, None)[..k.min(5_000)]);
        }
    }
}

#[test]
fn search_settles_a_gallery_of_copies() {
    // 30,000 copies of two vectors and zeros: no fast score tells them apart.
    let rows: Vec<[f32; 3]> =
        (0..30_000).map(|i| [[0.6, 0.8, 0.0], [0.0, 0.0, 0.0], [0.6, 0.8, 0.0]][i % 3]).collect();
    let gallery = Matrix::from_rows(&rows).unwrap();
    let queries =
        Matrix::from_rows(&[[0.6, 0.8, 0.0], [0.0, 0.0, 0.0], [-0.6, -0.8, 0.0], [1e-40, 0.0, 0.0]]).unwrap();
    let found = nearest(&queries, &gallery, 5).unwrap();
    let positions = |q: usize| found[q].iter().map(|n| n.position).collect::<Vec<_>>();
    assert_eq!(positions(0), [0, 2, 3, 5, 6]);
    assert_eq!(positions(1), [0, 1, 2, 3, 4]);
    assert_eq!(positions(2), [1, 4, 7, 10, 13]);
    assert_eq!(positions(3), [0, 2, 3, 5, 6]);
}

#[test]
fn huge_and_tiny_queries_keep_the_order() {
    let gallery = scattered(400, 9, 4).l2_normalised().unwrap();
    let query = scattered(1, 9, 6);
    let expected: Vec<usize> = nearest(&query, &gallery, 20).unwrap()[0].iter().map(|n| n.position).collect();
    for scale in [1e30_f32, 1e-30] {
        let scaled: Vec<f32> = query.values().iter().map(|value| value * scale).collect();
        let found = nearest(&Matrix::new(scaled, 1, 9).unwrap(), &gallery, 20).unwrap();
        assert_eq!(found[0].iter().map(|n| n.position).collect::<Vec<_>>(), expected, "scale {scale}");
    }
}

#[test]
fn hubness_of_embeddings_is_that_of_their_scores() {
    let (queries, gallery) = (scattered(200, 6, 8), scattered(90, 6, 9));
    let scores = similarity(&queries, &gallery).unwrap();
    assert_eq!(
        Hubness::measure_embeddings(&queries, &gallery, 10).unwrap(),
        Hubness::measure(&scores, 10).unwrap()
    );
    let means = mean_top_k_similarity(&queries, &gallery, 10).unwrap();
    for (a, b) in means.iter().zip(aeir_retrieve::mean_top_k_rows(&scores, 10).unwrap()) {
        assert!((a - b).abs() < 1e-6);
    }
}

#[test]
fn chance_is_the_mean_over_all_rankings() {
    // 6 images with 1 to 3 sentences each: every set of places that the right items can take, counted.
    let owners = [0, 0, 0, 1, 1, 2, 3, 3, 4, 5, 5, 5];
    let relevance = Relevance::from_owners(6, &owners).unwrap();
    let expected = chance(&relevance).i2t;
    let mut recalls = [0.0; 3];
    let (mut mean_rank, mut precision, mut share_of_rank) = (0.0, 0.0, vec![0.0; 13]);
    for image in 0..6 {
        let right = relevance.sentences_of(image).len() as u32;
        let sets: Vec<u32> = (0_u32..1 << 12).filter(|places| places.count_ones() == right).collect();
        let weight = 1.0 / (6.0 * sets.len() as f64);
        for places in sets {
            let rank = 1 + places.trailing_zeros();
            recalls
                .iter_mut()
                .zip([1, 5, 10])
                .for_each(|(r, k)| *r += weight * f64::from(u8::from(rank <= k)) * 100.0);
            mean_rank += weight * f64::from(rank);
            share_of_rank[rank as usize] += weight;
            let taken = (1..=12).filter(|place| places >> (place - 1) & 1 == 1);
            let precisions = (1..).zip(taken).map(|(t, place)| f64::from(t) / f64::from(place));
            precision += weight * precisions.sum::<f64>() / f64::from(right);
        }
    }
    let mut reached = 0.0;
    let median = share_of_rank
        .iter()
        .position(|share| {
            reached += share;
            reached >= 0.5
        })
        .unwrap();
    let pairs = [
        (expected.r1, recalls[0]),
        (expected.r5, recalls[1]),
        (expected.r10, recalls[2]),
        (expected.meanr, mean_rank),
        (expected.map.unwrap(), precision),
        (expected.medr, median as f64),
    ];
    for (place, (got, counted)) in pairs.into_iter().enumerate() {
        assert!((got - counted).abs() < 1e-9, "figure {place}: {got}, counted {counted}");
    }
}

#[test]
fn chance_in_figures() {
    let coco = chance(&Relevance::consecutive(1_000, 5).unwrap());
    assert!((coco.t2i.r1 - 0.1).abs() < 1e-12 && (coco.t2i.r10 - 1.0).abs() < 1e-12);
    assert!((coco.i2t.r1 - 0.1).abs() < 1e-12, "5 right among 5,000");
    assert!((coco.t2i.meanr - 500.5).abs() < 1e-9 && (coco.t2i.medr - 500.5).abs() < 1e-9);
    assert!((coco.i2t.meanr - 5_001.0 / 6.0).abs() < 1e-9);
    let one = chance(&Relevance::consecutive(1, 1).unwrap());
    assert_eq!((one.rsum, one.i2t.medr, one.t2i.map), (600.0, 1.0, Some(1.0)));
    let three = chance(&Relevance::consecutive(3, 1).unwrap());
    assert_eq!((three.t2i.r5, three.t2i.medr), (100.0, 2.0));
}

#[test]
fn bootstrap_repeats_and_brackets() {
    let scores = scattered(60, 120, 21);
    let ranks = rank_scores(&scores, &Relevance::consecutive(60, 2).unwrap(), Ties::Pessimistic).unwrap();
    let options = BootstrapOptions { seed: 5, ..BootstrapOptions::default() };
    let intervals = bootstrap(&ranks, &options).unwrap();
    assert_eq!(intervals, bootstrap(&ranks, &options).unwrap());
    assert_ne!(intervals, bootstrap(&ranks, &BootstrapOptions { seed: 6, ..options }).unwrap());
    let metrics = ranks.metrics();
    assert!(intervals.rsum.low < metrics.rsum && metrics.rsum < intervals.rsum.high);
    assert!(intervals.i2t.r10.low <= metrics.i2t.r10 && metrics.i2t.r10 <= intervals.i2t.r10.high);
    let narrow = bootstrap(&ranks, &BootstrapOptions { confidence: 0.5, ..options }).unwrap();
    assert!(narrow.rsum.high - narrow.rsum.low < intervals.rsum.high - intervals.rsum.low);
}

#[test]
fn metrics_as_json() {
    let relevance = Relevance::consecutive(1, 1).unwrap();
    let ranks = rank_scores(&Matrix::new(vec![0.5], 1, 1).unwrap(), &relevance, Ties::Pessimistic).unwrap();
    let json = serde_json::to_string(&ranks.metrics()).unwrap();
    let direction = r#"{"r1":100.0,"r5":100.0,"r10":100.0,"medr":1.0,"meanr":1.0}"#;
    assert_eq!(
        json,
        format!(r#"{{"n_images":1,"n_sentences":1,"i2t":{direction},"t2i":{direction},"rsum":600.0}}"#)
    );
    assert_eq!(serde_json::from_str::<aeir_retrieve::RetrievalMetrics>(&json).unwrap(), ranks.metrics());
    assert!(serde_json::to_string(&ranks.metrics_with_map()).unwrap().contains(r#""map":1.0"#));
}
