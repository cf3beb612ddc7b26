//! The diagnosis as text.

use std::fmt::Write;

use super::measure::{Diagnosis, Difference, Differences, GalleryHubness};
use super::verdict::p_value;

/// Everything as a readable table, the verdict first.
pub(super) fn text(diagnosis: &Diagnosis) -> String {
    let mut text = String::new();
    for sentence in &diagnosis.verdict.text {
        let _ = writeln!(text, "{sentence}");
    }
    let items = &diagnosis.items;
    // Writing to a String can't fail.
    let _ = writeln!(
        text,
        "\nLooked at {} source images with {} sentences, {} target images and {} target sentences.\nJoint space: {}.",
        items.source_images,
        items.source_sentences,
        items.target_images,
        items.target_sentences,
        diagnosis.joint_space
    );
    if let Some(domains) = &diagnosis.domains {
        text.push_str("\nsource and target               proxy A-distance     MMD^2         p\n");
        domain(&mut text, "images", &domains.images);
        domain(&mut text, "sentences", &domains.sentences);
    }
    text.push_str("\nimages and sentences                         gap    uniformity: images   sentences\n");
    for (name, gap) in diagnosis.modalities.named() {
        let _ = writeln!(
            text,
            "  {name:38} {:7.2} {:21.2} {:11.2}",
            gap.gap, gap.uniformity_images, gap.uniformity_sentences
        );
    }
    text.push_str(
        "\nhubness in the target (first 10)        skewness   found for nothing   most often found\n",
    );
    gallery(&mut text, "images, asked with sentences", &diagnosis.hubness.images);
    gallery(&mut text, "sentences, asked with images", &diagnosis.hubness.sentences);
    text.push_str("\noverlap of the target sets              observed     turned away         p\n");
    let overlap = &diagnosis.overlap;
    for (name, figure) in [
        ("skewness of all scores", &overlap.skewness),
        ("mean CSLS of mutual neighbours", &overlap.mutual_similarity),
        ("share with a mutual neighbour", &overlap.mutual_share),
    ] {
        let _ = writeln!(
            text,
            "  {name:36} {:9.3}   {:6.3} ± {:.3}   {:>7}",
            figure.observed,
            figure.null_mean,
            figure.null_deviation,
            p_value(figure.p_value)
        );
    }
    if let Some(metrics) = &diagnosis.source_validation {
        let _ = writeln!(
            text,
            "\nheld-out source pairs in this space: R@10 {:.1} image to text, {:.1} text to image ({} images)",
            metrics.i2t.r10, metrics.t2i.r10, metrics.n_images
        );
    }
    text
}

fn domain(text: &mut String, modality: &str, differences: &Differences) {
    let mut line = |space: &str, difference: &Difference| {
        let name = format!("{modality}, {space}");
        let _ = writeln!(
            text,
            "  {name:28} {:8.2} ± {:.2} {:10.4}   {:>7}",
            difference.proxy_a_distance.distance,
            difference.standard_error(),
            difference.mean_discrepancy.squared,
            p_value(difference.mean_discrepancy.p_value)
        );
    };
    if let Some(features) = &differences.features {
        line("features", features);
    }
    if let Some(standardised) = &differences.standardised {
        line("standardised", standardised);
    }
    line("joint space", &differences.joint);
}

fn gallery(text: &mut String, name: &str, gallery: &GalleryHubness) {
    let most = gallery.hubs.first().map_or_else(
        || "-".to_owned(),
        |hub| format!("{} of {}: {}", hub.occurrences, gallery.figures.queries, hub.item),
    );
    let _ = writeln!(
        text,
        "  {name:36} {:9.2}   {:15.1} %   {most}",
        gallery.figures.skewness,
        100.0 * gallery.anti_hub_share
    );
}
