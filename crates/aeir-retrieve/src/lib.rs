#![doc = include_str!("../README.md")]

mod domain_distance;
mod error;
mod files;
mod hubness;
mod index;
mod label_free;
mod matrix;
mod metrics;
mod rank_correlation;
mod relevance;
mod rerank;
mod scores;
mod search;
mod tiles;
mod uncertainty;

pub use domain_distance::{DomainClassifier, ProxyADistance, ProxyADistanceOptions, proxy_a_distance};
pub use error::{Error, Result};
pub use hubness::{
    DynamicInvertedSoftmax, Hubness, QueryBank, anti_hubs, classic_inverted_softmax, csls, csls_with_bank,
    dynamic_inverted_softmax, inverted_softmax, k_occurrence, mean_top_k_columns, mean_top_k_rows, skewness,
    skewness_adjusted,
};
pub use index::{
    EMBEDDINGS_FILE, FORMAT, Hit, ITEMS_FILE, Index, IndexBuilder, IndexContent, MANIFEST_FILE, VERSION,
};
pub use label_free::{LabelFree, LabelFreeOptions, MutualPair, label_free, mutual_neighbours};
pub use matrix::Matrix;
pub use metrics::{
    DirectionMetrics, FoldMetrics, Ranks, RetrievalMetrics, Ties, chance, evaluate, evaluate_directions,
    evaluate_embeddings, evaluate_embeddings_folds, evaluate_folds, five_fold_1k, rank_embeddings,
    rank_scores,
};
pub use rank_correlation::spearman;
pub use relevance::Relevance;
pub use rerank::{
    Query, RerankError, RerankedHit, Reranker, evaluate_two_stage, rank_two_stage, rank_two_stage_embeddings,
    rerank_hits,
};
pub use scores::similarity;
pub use search::{Neighbour, mean_top_k_similarity, nearest};
pub use uncertainty::{BootstrapOptions, DirectionIntervals, Interval, MetricIntervals, bootstrap};
