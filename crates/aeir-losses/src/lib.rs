#![doc = include_str!("../README.md")]

pub mod rehearsal;

mod canonical_correlation;
mod conditional_adversarial;
mod coral;
mod domain_adversarial;
mod domain_critic;
mod error;
mod fragment_similarity;
mod gradient_reversal;
mod infonce;
mod matched_rows;
mod mean_discrepancy;
mod reduction;
mod siglip;
mod sinkhorn;
mod stable;
mod structure_transfer;
mod triplet;
mod wasserstein;

pub use canonical_correlation::{CanonicalCorrelation, DeepCcaLoss, Rows};
pub use conditional_adversarial::{ConditionalAdversarialLoss, ConditionalMap};
pub use coral::CoralLoss;
pub use domain_adversarial::DomainAdversarialLoss;
pub use domain_critic::DomainCritic;
pub use error::LossError;
pub use fragment_similarity::{
    fragment_similarity, fragment_similarity_released, neighbour_similarity, pooled_similarity,
    unit_fragment_similarity,
};
pub use gradient_reversal::{dann_schedule, gradient_reversal};
pub use infonce::InfoNceLoss;
pub use mean_discrepancy::{Bandwidths, Estimator, MaximumMeanDiscrepancy};
pub use reduction::Reduction;
pub use siglip::SigLipLoss;
pub use sinkhorn::{SinkhornDivergence, SinkhornPlan, sinkhorn_plan};
pub use structure_transfer::{Divergence, StructureTransferLoss};
pub use triplet::{Negatives, TripletRankingLoss};
pub use wasserstein::WassersteinCriticLoss;
