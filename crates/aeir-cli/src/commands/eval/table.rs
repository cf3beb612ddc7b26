//! The figures as text.

use std::fmt::Write;

use aeir_retrieve::{Comparison, Difference, DirectionMetrics, Interval, RetrievalMetrics};

use super::{Compared, Corrected, Evaluation};
use crate::report::runs::Reliability;

pub(super) fn text(evaluation: &Evaluation) -> String {
    let Evaluation { metrics, intervals, .. } = evaluation;
    // Writing to a String can't fail.
    let mut text = format!("{} images, {} sentences\n\n", metrics.n_images, metrics.n_sentences);
    text.push_str("                  R@1    R@5   R@10   median rank   mean rank      mAP\n");
    for (name, direction) in [("image to text", &metrics.i2t), ("text to image", &metrics.t2i)] {
        let DirectionMetrics { r1, r5, r10, medr, meanr, map } = direction;
        let map = map.unwrap_or_default();
        let _ = writeln!(text, "{name:14} {r1:6.1} {r5:6.1} {r10:6.1} {medr:13.1} {meanr:11.1} {map:8.3}");
    }
    let of = |interval: &Interval| format!("{:.1} to {:.1}", interval.low, interval.high);
    let _ = writeln!(
        text,
        "\nrSum {:.1}, {:.0} % interval {}; R@1 {} image to text, {} text to image ({} resamples of the test images).",
        metrics.rsum,
        100.0 * intervals.confidence,
        of(&intervals.rsum),
        of(&intervals.i2t.r1),
        of(&intervals.t2i.r1),
        intervals.replicates
    );
    if evaluation.protocol != "full" {
        text.push_str("Protocol five-fold-1k: the mean of five folds of 1,000 images, each with its own sentences alone.\n");
    }
    let _ = writeln!(
        text,
        "R@K: per cent of queries with at least one right item in the first K; {}.",
        evaluation.ties
    );
    if !evaluation.corrected.is_empty() {
        corrections(&mut text, evaluation);
    }
    if !evaluation.reliability.is_empty() {
        reliability(&mut text, evaluation);
    }
    if let Some(compared) = &evaluation.comparison {
        comparison(&mut text, compared);
    }
    text
}

fn corrections(text: &mut String, evaluation: &Evaluation) {
    let banks = evaluation
        .corrected
        .values()
        .next()
        .map(|corrected| (corrected.bank_sentences, corrected.bank_images));
    let (sentences, images) = banks.unwrap_or_default();
    text.push_str("\nHubness correction");
    match (sentences, images) {
        (Some(sentences), Some(images)) => {
            let _ = writeln!(text, ", by {sentences} unpaired sentences and {images} unpaired images");
        }
        (Some(sentences), None) => {
            let _ = writeln!(
                text,
                " of sentence queries, by {sentences} unpaired sentences (image to text stays as it is)"
            );
        }
        (None, images) => {
            let images = images.unwrap_or_default();
            let _ = writeln!(
                text,
                " of image queries, by {images} unpaired images (text to image stays as it is)"
            );
        }
    }
    text.push_str("                           i2t R@1    R@5   R@10   t2i R@1    R@5   R@10    rSum   change        p\n");
    line(text, "plain", &evaluation.metrics, None);
    for (name, Corrected { metrics, difference, .. }) in &evaluation.corrected {
        line(text, name, metrics, Some(difference));
    }
}

fn reliability(text: &mut String, evaluation: &Evaluation) {
    text.push_str(
        "\nConfidence of sentence queries: the share of the bank's sentences whose best match is no better\n  \
         confidence    test sentences   own image first\n",
    );
    for Reliability { above, up_to, share, r1 } in &evaluation.reliability {
        let right = r1.map_or_else(|| "-".to_owned(), |r1| format!("{r1:.1} %"));
        let _ = writeln!(text, "  {above:.2} to {up_to:.2}  {:14.1} %   {right:>15}", 100.0 * share);
    }
}

fn line(text: &mut String, name: &str, metrics: &RetrievalMetrics, difference: Option<&Comparison>) {
    let RetrievalMetrics { i2t, t2i, rsum, .. } = metrics;
    let change = difference.map_or_else(String::new, |it| {
        format!("   {:+6.1}   {:>6}", it.rsum.difference, p_value(it.rsum.p_value))
    });
    let _ = writeln!(
        text,
        "  {name:24} {:7.1} {:6.1} {:6.1}   {:7.1} {:6.1} {:6.1}  {rsum:6.1}{change}",
        i2t.r1, i2t.r5, i2t.r10, t2i.r1, t2i.r5, t2i.r10
    );
}

fn comparison(text: &mut String, compared: &Compared) {
    let Compared { model, metrics, difference } = compared;
    let _ = writeln!(
        text,
        "\n`{model}` on the same pairs: rSum {:.1}. Its figures less this model's, with interval and p of a paired test:",
        metrics.rsum
    );
    for (direction, it) in [("image to text", &difference.i2t), ("text to image", &difference.t2i)] {
        for (name, figure) in [("R@1", &it.r1), ("R@5", &it.r5), ("R@10", &it.r10)] {
            told(text, &format!("{direction} {name}"), figure);
        }
    }
    told(text, "rSum", &difference.rsum);
}

fn told(text: &mut String, name: &str, figure: &Difference) {
    let Difference { difference, interval, p_value: p } = figure;
    let interval = format!("{:+.1} to {:+.1}", interval.low, interval.high);
    let _ = writeln!(text, "  {name:20} {difference:+7.1}   {interval:>16}   p {}", p_value(*p));
}

fn p_value(value: f64) -> String {
    if value < 0.001 { "<0.001".to_owned() } else { format!("{value:.3}") }
}
