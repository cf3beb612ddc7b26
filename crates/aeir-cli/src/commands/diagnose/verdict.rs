//! What the figures mean for the user.

use aeir_retrieve::{RetrievalMetrics, SetOverlap};
use serde::Serialize;

use super::measure::{BothHubness, Difference, Differences, Domains};

/// Below this the target sets fit by more than chance. Stricter than usual: to adapt to sets that don't fit is the worse mistake.
const SIGNIFICANT: f64 = 0.01;
/// Skewness of k-occurrences above which hubs are worth a correction.
const HUBBY: f64 = 1.0;
/// A joint space whose recall on held-out source pairs is below this many times chance says nothing about the target.
const TIMES_CHANCE: f64 = 3.0;

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Advice {
    /// The domains differ and the target sets fit: adapt.
    Adapt,
    /// Standardising each domain removes what could be seen: begin with that.
    Standardise,
    /// No difference was found: nothing to adapt to.
    NoShift,
    /// The sentences show no sign of speaking of these images: adaptation can't help.
    SetsDoNotFit,
    /// The joint space is too poor to tell.
    CannotTell,
}

/// The advice and the reasons, a sentence each.
#[derive(Serialize)]
pub(super) struct Verdict {
    pub(super) advice: Advice,
    pub(super) text: Vec<String>,
}

/// Reads the figures.
pub(super) fn verdict(
    domains: Option<&Domains>,
    hubness: &BothHubness,
    overlap: &SetOverlap,
    validation: Option<&RetrievalMetrics>,
) -> Verdict {
    let poor = validation.filter(|metrics| is_poor(metrics));
    let fits = overlap.skewness.p_value < SIGNIFICANT;
    let shift = domains.map(Shift::of);
    let advice = match (poor, fits, shift) {
        (Some(_), ..) => Advice::CannotTell,
        (None, false, _) => Advice::SetsDoNotFit,
        (None, true, Some(Shift::None)) => Advice::NoShift,
        (None, true, Some(Shift::MeanAndSpread)) => Advice::Standardise,
        (None, true, None | Some(Shift::More)) => Advice::Adapt,
    };
    let mut text = vec![what_to_do(advice, domains.is_some())];
    match domains {
        Some(domains) => {
            text.push(of_domain("images", &domains.images));
            text.push(of_domain("sentences", &domains.sentences));
        }
        None => text.push(
            "Without source pairs (--source) nothing is said of the distance between domains.".to_owned(),
        ),
    }
    if let Some(metrics) = poor {
        text.push(format!(
            "The joint space finds only {:.1} % of held-out source pairs among the first ten (text to image, {} images): it is too \
             poor to say anything about the target. Give more source pairs, or a better encoder.",
            metrics.t2i.r10, metrics.n_images
        ));
    } else {
        text.push(of_overlap(overlap, fits));
    }
    // Of images alone: an index holds images, and its correction is of them.
    let skew = hubness.images.figures.skewness;
    if skew > HUBBY {
        text.push(format!(
            "Some images are found for everything and {:.0} % of the images for nothing (k-occurrence skewness {skew:.1}): compare \
             `aeir eval --query-bank SENTENCES`, and index with `--correction csls --query-bank SENTENCES` if it helps.",
            100.0 * hubness.images.anti_hub_share
        ));
    }
    Verdict { advice, text }
}

/// In what the domains differ.
#[derive(Clone, Copy)]
enum Shift {
    None,
    MeanAndSpread,
    More,
}

impl Shift {
    fn of(domains: &Domains) -> Self {
        let differs = before(&domains.images).is_there() || before(&domains.sentences).is_there();
        let remains = [domains.images, domains.sentences]
            .iter()
            .any(|differences| differences.standardised.is_none_or(|difference| difference.is_there()));
        match (differs, remains) {
            (false, _) => Self::None,
            (true, false) => Self::MeanAndSpread,
            (true, true) => Self::More,
        }
    }
}

fn is_poor(metrics: &RetrievalMetrics) -> bool {
    let chance = 100.0 * 10.0_f64.min(metrics.n_images as f64) / metrics.n_images.max(1) as f64;
    // Few held-out pairs can't be told from chance by a multiple of it.
    chance < 30.0 && metrics.t2i.r10 < TIMES_CHANCE * chance
}

/// The features where there are any.
fn before(differences: &Differences) -> Difference {
    differences.features.unwrap_or(differences.joint)
}

fn what_to_do(advice: Advice, has_source: bool) -> String {
    match advice {
        Advice::Adapt if !has_source => {
            "Adapt: `aeir train --method adapt --model MODEL` needs no source pairs where MODEL is a CLIP or SigLIP; compare with MODEL \
             as it is."
        }
        Advice::Adapt => {
            "Adapt: `aeir train --method adapt`, and compare with `--method source-only --standardise`."
        }
        Advice::Standardise => {
            "Standardise, and adapt: the domains differ in the mean and spread of their features, and little else that could be \
             seen. `aeir train --method adapt` standardises each and does more; compare with `--method source-only --standardise`."
        }
        Advice::NoShift => {
            "No shift was found between source and target: train on the source (`aeir train --method source-only`). Adaptation has \
             little to close."
        }
        Advice::SetsDoNotFit => {
            "Adaptation can't be expected to help: the sentences show no sign of speaking of these images. Check that both files \
             are of the same domain; methods that mine pairs would mine chance."
        }
        Advice::CannotTell => "Can't tell: see below.",
    }
    .to_owned()
}

fn of_domain(what: &str, differences: &Differences) -> String {
    let first = before(differences);
    let distance = first.proxy_a_distance.distance;
    let size = match distance {
        _ if !first.is_there() => {
            return format!(
                "Target {what}: no difference from the source's that exceeds chance (proxy A-distance {distance:.2}, p {}).",
                p_value(first.mean_discrepancy.p_value)
            );
        }
        distance if distance < 0.5 => "differ slightly from",
        distance if distance < 1.3 => "differ clearly from",
        _ => "are almost always told apart from",
    };
    let after = differences.standardised.map_or_else(String::new, |after| {
        let left = if after.is_there() { "" } else { ", no more than chance" };
        format!(" Each domain standardised by itself: {:.2}{left}.", after.proxy_a_distance.distance)
    });
    format!("Target {what} {size} the source's (proxy A-distance {distance:.2} of 2).{after}")
}

fn of_overlap(overlap: &SetOverlap, fits: bool) -> String {
    let skewness = &overlap.skewness;
    let figures = format!(
        "score skewness {:.2}, {:.2} ± {:.2} if turned away, p {}",
        skewness.observed,
        // Rounded to 0 it has no sign.
        (100.0 * skewness.null_mean).round() / 100.0 + 0.0,
        skewness.null_deviation,
        p_value(skewness.p_value)
    );
    if fits {
        format!("The target sentences speak of things that the target images show ({figures}).")
    } else {
        format!("The target sentences fit the target images no better than chance ({figures}).")
    }
}

/// A p-value as people write it.
pub(super) fn p_value(value: f64) -> String {
    if value < 0.001 { "< 0.001".to_owned() } else { format!("{value:.3}") }
}
