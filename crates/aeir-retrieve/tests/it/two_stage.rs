//! Re-ranking: what a second stage may change, and what it must not.

use std::convert::Infallible;

use aeir_retrieve::{
    Error, Hit, Matrix, Query, Ranks, Relevance, RerankError, Reranker, Ties, evaluate_two_stage,
    rank_scores, rank_two_stage, rank_two_stage_embeddings, rerank_hits, similarity,
};
use proptest::prelude::*;

use crate::properties::{scattered, split};

/// A second stage that reads a whole score matrix, and counts what it was asked for.
struct Table<'a> {
    scores: &'a Matrix,
    asked: usize,
}

impl Reranker for Table<'_> {
    type Error = Infallible;

    fn scores(&mut self, query: Query, candidates: &[usize]) -> Result<Vec<f32>, Infallible> {
        self.asked += candidates.len();
        let score = |candidate: &usize| match query {
            Query::Image(image) => self.scores.get(image, *candidate),
            Query::Sentence(sentence) => self.scores.get(*candidate, sentence),
        };
        Ok(candidates.iter().map(|candidate| score(candidate).expect("inside")).collect())
    }
}

fn two_stage(first: &Matrix, second: &Matrix, relevance: &Relevance, k: usize) -> Ranks {
    rank_two_stage(first, relevance, k, &mut Table { scores: second, asked: 0 }).unwrap()
}

/// By its definition: the ranking is written out, wrong items first at every tie, and right items are looked up in it.
fn naive_rank(first: &[f32], second: &[f32], right: &[usize], k: usize) -> u32 {
    let by = |scores: &[f32], a: usize, b: usize| {
        let tie = right.contains(&a).cmp(&right.contains(&b)).then(a.cmp(&b));
        scores[b].partial_cmp(&scores[a]).unwrap().then(tie)
    };
    let mut order: Vec<usize> = (0..first.len()).collect();
    order.sort_by(|a, b| by(first, *a, *b));
    let k = k.min(order.len());
    order[..k].sort_by(|a, b| by(second, *a, *b));
    1 + order.iter().position(|item| right.contains(item)).unwrap() as u32
}

fn coarse(rows: usize, columns: usize) -> impl Strategy<Value = Matrix> {
    prop::collection::vec((-4_i8..=4).prop_map(|v| f32::from(v) / 4.0), rows * columns)
        .prop_map(move |values| Matrix::new(values, rows, columns).expect("sizes agree"))
}

fn split_with_two_stages() -> impl Strategy<Value = (Relevance, Matrix, Matrix)> {
    split().prop_flat_map(|relevance| {
        let (rows, columns) = (relevance.n_images(), relevance.n_sentences());
        (Just(relevance), coarse(rows, columns), coarse(rows, columns))
    })
}

proptest! {
    #[test]
    fn ranks_are_the_written_out_ranking((relevance, first, second) in split_with_two_stages(), k in 1_usize..20) {
        let ranks = two_stage(&first, &second, &relevance, k);
        for image in 0..relevance.n_images() {
            let rows = (first.row(image).unwrap(), second.row(image).unwrap());
            prop_assert_eq!(ranks.i2t()[image], naive_rank(rows.0, rows.1, relevance.sentences_of(image), k));
        }
        let (first, second) = (first.transposed(), second.transposed());
        for sentence in 0..relevance.n_sentences() {
            let rows = (first.row(sentence).unwrap(), second.row(sentence).unwrap());
            let owner = [relevance.owner_of(sentence).unwrap()];
            prop_assert_eq!(ranks.t2i()[sentence], naive_rank(rows.0, rows.1, &owner, k));
            prop_assert_eq!(ranks.t2i_average_precision()[sentence], 1.0 / f64::from(ranks.t2i()[sentence]));
        }
    }

    #[test]
    fn whole_gallery_is_the_second_stage_alone((relevance, first, second) in split_with_two_stages(), more in 0_usize..3) {
        let k = relevance.n_sentences() + more;
        let alone = rank_scores(&second, &relevance, Ties::Pessimistic).unwrap();
        prop_assert_eq!(&two_stage(&first, &second, &relevance, k), &alone);
        let mut table = Table { scores: &second, asked: 0 };
        prop_assert_eq!(evaluate_two_stage(&first, &relevance, k, &mut table).unwrap(), alone.metrics());
    }

    #[test]
    fn repeating_the_first_stage_changes_nothing((relevance, first, _) in split_with_two_stages(), k in 1_usize..20) {
        let alone = rank_scores(&first, &relevance, Ties::Pessimistic).unwrap();
        prop_assert_eq!(two_stage(&first, &first, &relevance, k), alone);
    }

    #[test]
    fn ranks_move_inside_the_first_k_only((relevance, first, second) in split_with_two_stages(), k in 1_usize..20) {
        let alone = rank_scores(&first, &relevance, Ties::Pessimistic).unwrap();
        let ranks = two_stage(&first, &second, &relevance, k);
        let pairs = alone.i2t().iter().zip(ranks.i2t()).chain(alone.t2i().iter().zip(ranks.t2i()));
        for (before, after) in pairs {
            let inside = *before as usize <= k;
            prop_assert!(if inside { *after as usize <= k } else { after == before }, "{} to {}", before, after);
        }
    }

    #[test]
    fn hits_move_inside_the_first_k_only(second in prop::collection::vec((-3_i8..=3).prop_map(f32::from), 1..20), k in 1_usize..25) {
        let found = rerank(&second, k);
        let k = k.min(second.len());
        for (place, found) in found.iter().enumerate() {
            prop_assert_eq!(found.hit.rank, place + 1);
            prop_assert_eq!(found.first_score, first_score(found.first_rank));
            prop_assert_eq!(found.rescored, place < k);
            let expected = if place < k { second[found.hit.position] } else { found.first_score };
            prop_assert_eq!(found.hit.score, expected);
            prop_assert!(place < k || found.first_rank == place + 1);
        }
        for pair in found[..k].windows(2) {
            let (a, b) = (&pair[0], &pair[1]);
            prop_assert!(a.hit.score > b.hit.score || (a.hit.score == b.hit.score && a.first_rank < b.first_rank));
        }
    }
}

fn first_score(rank: usize) -> f32 {
    1.0 - rank as f32 / 64.0
}

/// As many hits as there are second-stage scores; positions run against the ranks.
fn hits(count: usize) -> Vec<Hit> {
    (1..=count)
        .map(|rank| {
            let position = count - rank;
            Hit { rank, score: first_score(rank), position, item: format!("{position}.jpg") }
        })
        .collect()
}

fn rerank(second: &[f32], k: usize) -> Vec<aeir_retrieve::RerankedHit> {
    let mut reranker = |query: Query, candidates: &[usize]| -> Result<Vec<f32>, Infallible> {
        assert_eq!(query, Query::Sentence(7));
        Ok(candidates.iter().map(|position| second[*position]).collect())
    };
    rerank_hits(hits(second.len()), Query::Sentence(7), k, &mut reranker).unwrap()
}

#[test]
fn only_the_candidates_are_scored() {
    let (first, second) = (scattered(130, 260, 1), scattered(130, 260, 2));
    let relevance = Relevance::consecutive(130, 2).unwrap();
    let mut table = Table { scores: &second, asked: 0 };
    rank_two_stage(&first, &relevance, 7, &mut table).unwrap();
    assert_eq!(table.asked, 130 * 7 + 260 * 7);
    let mut table = Table { scores: &second, asked: 0 };
    rank_two_stage(&first, &relevance, 200, &mut table).unwrap();
    assert_eq!(table.asked, 130 * 200 + 260 * 130);
}

#[test]
fn candidates_come_best_first() {
    let first = Matrix::from_rows(&[[0.1, 0.9, 0.5, 0.9], [0.0, 0.3, 0.2, 0.1]]).unwrap();
    let relevance = Relevance::from_owners(2, &[0, 0, 1, 1]).unwrap();
    let mut seen = Vec::new();
    let mut second = |query: Query, candidates: &[usize]| -> Result<Vec<f32>, Infallible> {
        seen.push((query, candidates.to_vec()));
        Ok(vec![0.0; candidates.len()])
    };
    rank_two_stage(&first, &relevance, 3, &mut second).unwrap();
    // Sentence 3 is wrong for image 0 and ties with the right one: it goes first.
    assert_eq!(seen[0], (Query::Image(0), vec![3, 1, 2]));
    assert_eq!(seen[1], (Query::Image(1), vec![1, 2, 3]));
    assert_eq!(seen[2], (Query::Sentence(0), vec![0, 1]));
    assert_eq!(seen.len(), 6);
}

#[test]
fn embeddings_give_the_ranks_of_their_scores() {
    let (images, sentences) = (scattered(150, 12, 3), scattered(300, 12, 4));
    let relevance = Relevance::consecutive(150, 2).unwrap();
    let (first, second) = (similarity(&images, &sentences).unwrap(), scattered(150, 300, 5));
    for k in [1, 10, 1_000] {
        let mut table = Table { scores: &second, asked: 0 };
        let streamed = rank_two_stage_embeddings(&images, &sentences, &relevance, k, &mut table).unwrap();
        assert_eq!(streamed, two_stage(&first, &second, &relevance, k));
    }
}

#[derive(Debug, thiserror::Error)]
#[error("out of memory")]
struct OutOfMemory;

#[test]
fn refusals_name_query_and_candidate() {
    let first = Matrix::from_rows(&[[0.9, 0.1], [0.2, 0.8]]).unwrap();
    let relevance = Relevance::consecutive(2, 1).unwrap();
    let run = |k: usize, answer: fn(Query) -> Result<Vec<f32>, OutOfMemory>| {
        let mut second = |query: Query, _: &[usize]| answer(query);
        rank_two_stage(&first, &relevance, k, &mut second).unwrap_err()
    };
    let fine = |_: Query| Ok(vec![0.0, 1.0]);
    assert!(matches!(run(0, fine), RerankError::Retrieve(Error::Setting { name: "k", .. })));
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut second = |query: Query, candidates: &[usize]| -> Result<Vec<f32>, Infallible> {
            let bad =
                |candidate: &usize| if query == Query::Sentence(1) && *candidate == 0 { bad } else { 0.5 };
            Ok(candidates.iter().map(bad).collect())
        };
        let error = rank_two_stage(&first, &relevance, 2, &mut second).unwrap_err();
        assert!(matches!(error, RerankError::NotFinite { query: Query::Sentence(1), candidate: 0, .. }));
        assert!(error.to_string().starts_with("second-stage score of sentence 1 with candidate 0 is"));
    }
    let error = run(2, |_| Ok(vec![0.0]));
    assert!(matches!(error, RerankError::Count { query: Query::Image(0), expected: 2, got: 1 }));
    let error = run(2, |_| Err(OutOfMemory));
    assert!(matches!(error, RerankError::Reranker { query: Query::Image(0), source: OutOfMemory }));
    assert_eq!(std::error::Error::source(&error).unwrap().to_string(), "out of memory");

    let nan = Matrix::from_rows(&[[0.9, f32::NAN], [0.2, 0.8]]).unwrap();
    let mut table = Table { scores: &first, asked: 0 };
    let error = rank_two_stage(&nan, &relevance, 1, &mut table).unwrap_err();
    assert!(matches!(error, RerankError::Retrieve(Error::NotFinite { row: 0, column: 1, .. })));
    let wide = Matrix::new(vec![0.0; 6], 2, 3).unwrap();
    let error = rank_two_stage(&wide, &relevance, 1, &mut table).unwrap_err();
    assert!(matches!(error, RerankError::Retrieve(Error::Shape { expected: 2, got: 3, .. })));
    assert_eq!(table.asked, 0);
    assert!(rerank_hits(Vec::new(), Query::Image(0), 5, &mut table).unwrap().is_empty());
    let refused = rerank_hits(hits(3), Query::Image(0), 0, &mut table);
    assert!(matches!(refused, Err(RerankError::Retrieve(Error::Setting { name: "k", .. }))));
}

#[test]
fn reranked_hits_as_json() {
    let found = rerank(&[0.25, 0.75], 1);
    let json = serde_json::to_string(&found[0]).unwrap();
    let expected = r#"{"rank":1,"score":0.75,"position":1,"item":"1.jpg","rescored":true,"first_rank":1,"first_score":0.984375}"#;
    assert_eq!(json, expected);
    assert_eq!(serde_json::from_str::<aeir_retrieve::RerankedHit>(&json).unwrap(), found[0]);
}
