//! Flags of hubness corrections, shared by `eval` and `index`.

use aeir_retrieve::Correction;
use clap::ValueEnum;

/// Rounds of the transport plan: its marginals then agree to far below what changes a rank.
const SINKHORN_ITERATIONS: usize = 20;
/// Neighbours of CSLS, as published.
const CSLS_NEIGHBOURS: usize = 10;

/// A correction by name.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum CorrectionFlag {
    /// Cross-domain similarity local scaling
    Csls,
    /// Inverted softmax over the bank
    InvertedSoftmax,
    /// Inverted softmax, for queries alone whose best item is the best of a bank sentence (QB-Norm)
    DynamicInvertedSoftmax,
    /// Optimal transport between the bank and the gallery
    Sinkhorn,
}

impl CorrectionFlag {
    /// With the inverse temperature of those that have one.
    pub(crate) fn correction(self, beta: f64) -> Correction {
        match self {
            Self::Csls => Correction::Csls { k: CSLS_NEIGHBOURS },
            Self::InvertedSoftmax => Correction::InvertedSoftmax { beta },
            Self::DynamicInvertedSoftmax => Correction::DynamicInvertedSoftmax { beta },
            Self::Sinkhorn => Correction::Sinkhorn { beta, iterations: SINKHORN_ITERATIONS },
        }
    }
}

/// Refuses what is no inverse temperature.
pub(crate) fn inverse_temperature(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(beta) if beta > 0.0 && beta.is_finite() => Ok(beta),
        _ => Err("expected a number above 0".to_owned()),
    }
}

/// Refuses what is no share.
pub(crate) fn share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if share > 0.0 && share < 1.0 => Ok(share),
        _ => Err("expected a number between 0 and 1".to_owned()),
    }
}
