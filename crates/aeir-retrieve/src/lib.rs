#![doc = include_str!("../README.md")]

mod ask_for;
mod bits;
// Its plain parts are tested without a card, and without the feature.
#[cfg(any(feature = "cuda", test))]
#[cfg_attr(not(feature = "cuda"), allow(dead_code, unreachable_pub))]
mod card;
mod confidence;
mod correction;
mod domain_distance;
mod error;
mod files;
mod graph;
mod hubness;
mod index;
mod int8;
mod label_free;
mod label_plan;
mod mapped;
mod matrix;
mod mean_discrepancy;
mod metrics;
#[cfg(feature = "milvus")]
mod milvus;
mod modality_gap;
mod principal_axes;
mod rank_correlation;
mod relevance;
mod rerank;
mod sampled_recall;
mod sampling;
mod scores;
mod search;
mod set_overlap;
mod storage;
mod tiles;
mod uncertainty;

#[cfg(feature = "cuda")]
pub use card::{CardError, CardGallery, CardIndex, CardOptions, MOST_ON_CARD};
pub use confidence::{CONFIDENCE_FILE, Confidence, ConformalSets};
pub use correction::{CORRECTION_FILE, Correction, GalleryCorrection, PENALTIES_FILE, rank_corrected};
pub use domain_distance::{
    DomainClassifier, FeatureScale, ProxyADistance, ProxyADistanceOptions, proxy_a_distance,
};
pub use error::{Error, Result};
pub use hubness::{
    DynamicInvertedSoftmax, Hubness, QueryBank, anti_hubs, classic_inverted_softmax, csls, csls_with_bank,
    dynamic_inverted_softmax, inverted_softmax, k_occurrence, k_occurrence_embeddings, mean_top_k_columns,
    mean_top_k_rows, skewness, skewness_adjusted,
};
pub use index::{
    CommitStage, FORMAT, Filter, GraphReport, Hit, Index, IndexBuilder, IndexContent, IndexWriter,
    MANIFEST_FILE, Metadata, SearchOptions, Selection, VERSION,
};
pub use label_free::{LabelFree, LabelFreeOptions, MutualPair, label_free, mutual_neighbours};
pub use label_plan::{LabelPlan, LabelPlanOptions, PlannedLabel, plan_labels};
pub use matrix::Matrix;
pub use mean_discrepancy::{MeanDiscrepancy, MeanDiscrepancyOptions, maximum_mean_discrepancy};
pub use metrics::{
    DirectionMetrics, FoldMetrics, Ranks, RetrievalMetrics, Ties, chance, evaluate, evaluate_directions,
    evaluate_embeddings, evaluate_embeddings_folds, evaluate_folds, five_fold_1k, mean_over_folds,
    rank_embeddings, rank_scores,
};
#[cfg(feature = "milvus")]
pub use milvus::{
    MilvusAccess, MilvusCollection, MilvusError, MilvusIndexKind, MilvusPlace, MilvusSearch, UploadOptions,
    UploadProgress, UploadReport,
};
pub use modality_gap::{ModalityGap, uniformity};
pub use principal_axes::PrincipalAxes;
pub use rank_correlation::spearman;
pub use relevance::{Fold, Relevance};
pub use rerank::{
    Query, RerankError, RerankedHit, Reranker, evaluate_two_stage, rank_two_stage, rank_two_stage_embeddings,
    rerank_hits,
};
pub use sampled_recall::{SampledRecall, SampledRecalls, ranks_in_gallery, sampled_recalls};
pub use scores::similarity;
pub use search::{Neighbour, mean_top_k_similarity, nearest};
pub use set_overlap::{AgainstNull, OverlapOptions, SetOverlap, set_overlap};
pub use storage::Storage;
pub use uncertainty::{
    BootstrapOptions, Comparison, Difference, DirectionDifferences, DirectionIntervals, Interval,
    MetricIntervals, bootstrap, bootstrap_folds, compare,
};
