//! `aeir eval`.

use std::fmt::Write;

use aeir_data::TestPairs;
use aeir_encoders::Bundle;
use aeir_retrieve::{DirectionMetrics, Relevance, RetrievalMetrics};
use aeir_train::EvaluationPairs;
use aeir_train::features::FeatureExtractor;
use aeir_train::validate::embed_in_blocks;

use super::{print, print_json, tell_skipped};
use crate::flags::EvalFlags;
use crate::place::feature_cache;
use crate::progress::extraction;
use crate::terminal::Terminal;

/// Scores a model on test pairs.
pub(crate) fn run(flags: &EvalFlags, terminal: &Terminal) -> anyhow::Result<()> {
    let device = flags.device.device.open(terminal)?;
    let bundle = Bundle::load(&flags.model, &device)?;
    let pairs = TestPairs::read(&flags.data, flags.split.map(crate::flags::SplitFlag::split))?;
    if let Some(note) = pairs.note() {
        terminal.warn(note);
    }
    let mut extractor = FeatureExtractor::new(bundle.image_backbone(), bundle.sentence_backbone())
        .with_cache(&feature_cache()?)?
        .with_progress(extraction(terminal));
    let (test, mut skipped) = extractor.test(&pairs)?;
    skipped.extend(pairs.skipped().iter().cloned());
    let metrics = score(&bundle, &test)?;
    tell_skipped(terminal, &skipped, None);
    if flags.json { print_json(&metrics) } else { print(&table(&metrics)) }
}

/// The metrics of a model on features of test pairs.
pub(crate) fn score(bundle: &Bundle, test: &EvaluationPairs) -> anyhow::Result<RetrievalMetrics> {
    let images = embed_in_blocks(&test.images.tensor(bundle.device())?, |features| {
        bundle.embed_image_features(features)
    })?;
    let sentences = embed_in_blocks(&test.sentences.tensor(bundle.device())?, |features| {
        bundle.embed_sentence_features(features)
    })?;
    let relevance = Relevance::from_owners(images.rows(), &test.owners)?;
    Ok(aeir_retrieve::evaluate_embeddings(&images, &sentences, &relevance)?)
}

fn table(metrics: &RetrievalMetrics) -> String {
    let mut text = format!("{} images, {} sentences\n\n", metrics.n_images, metrics.n_sentences);
    text.push_str("                  R@1    R@5   R@10   median rank   mean rank\n");
    for (name, direction) in [("image to text", &metrics.i2t), ("text to image", &metrics.t2i)] {
        let DirectionMetrics { r1, r5, r10, medr, meanr, .. } = direction;
        // Writing to a String can't fail.
        let _ = writeln!(text, "{name:14} {r1:6.1} {r5:6.1} {r10:6.1} {medr:13.1} {meanr:11.1}");
    }
    let _ = writeln!(
        text,
        "\nrSum {:.1}. R@K: per cent of queries with at least one right item in the first K; of items with equal scores \
         the wrong ones count first.",
        metrics.rsum
    );
    text
}
