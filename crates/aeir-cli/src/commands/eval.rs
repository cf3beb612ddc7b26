//! `aeir eval`.

use std::fmt::Write;

use aeir_data::TestPairs;
use aeir_encoders::Bundle;
use aeir_retrieve::{DirectionMetrics, Relevance, RetrievalMetrics};
use aeir_train::EvaluationPairs;
use aeir_train::score::{HeadReranker, full_scores};
use aeir_train::validate::{embed_table, encode_table};

use super::{print, print_json, tell_skipped};
use crate::backbones::extractor_of;
use crate::flags::{EvalFlags, Rerank};
use crate::place::feature_cache;
use crate::progress::extraction;
use crate::report::runs::Evaluation;
use crate::run_files::add_evaluation;
use crate::terminal::Terminal;

/// Scores a model on test pairs.
pub(crate) fn run(flags: &EvalFlags, terminal: &Terminal) -> anyhow::Result<()> {
    let device = flags.device.device.open(terminal)?;
    let bundle = Bundle::load(&flags.model, &device)?;
    let split = flags.split.map(crate::flags::SplitFlag::split);
    let mut extractor = extractor_of(&bundle)?
        .with_cache(&feature_cache()?)?
        .with_limits(flags.loading.limits())
        .with_progress(extraction(terminal));
    let pairs = TestPairs::read_with(&flags.data, split, &flags.reading.options())?;
    pairs.notes().iter().for_each(|note| terminal.warn(note));
    let (test, mut skipped) = extractor.test(&pairs)?;
    skipped.extend(pairs.skipped().iter().cloned());
    let rerank = Rerank::of_model(flags.rerank, bundle.encoder().config(), terminal);
    let metrics = score_with_head(&bundle, &test, rerank, terminal)?;
    tell_skipped(terminal, &skipped, None);
    remember(flags, &bundle, rerank, &metrics, terminal)?;
    if flags.json {
        return print_json(&metrics);
    }
    let how = match (bundle.encoder().config().head, rerank) {
        (head, _) if !head.is_cross_attentive() => String::new(),
        (_, Rerank::First(0)) => "pooled vectors alone, without the head\n".to_owned(),
        (head, Rerank::First(count)) => {
            format!("the first {count} of each query re-ranked by head {}\n", head.as_str())
        }
        (head, Rerank::All) => format!("all pairs scored by head {}\n", head.as_str()),
    };
    print(&format!("{how}{}", table(&metrics)))
}

/// Leaves the figures in the model's folder, where `aeir report` finds them.
fn remember(
    flags: &EvalFlags,
    bundle: &Bundle,
    rerank: Rerank,
    metrics: &RetrievalMetrics,
    terminal: &Terminal,
) -> anyhow::Result<()> {
    let has_head = bundle.encoder().config().head.is_cross_attentive();
    let evaluation = Evaluation {
        data: std::path::absolute(&flags.data)?,
        split: flags.split.map(crate::flags::SplitFlag::name),
        rerank: has_head.then(|| rerank.to_string()),
        metrics: *metrics,
    };
    if let Err(error) = add_evaluation(&flags.model, &evaluation) {
        terminal.warn(&format!(
            "the result is not left in `{}` for `aeir report`: {error}",
            flags.model.display()
        ));
    }
    Ok(())
}

/// The metrics of a model's pooled vectors on features of test pairs.
pub(crate) fn score(bundle: &Bundle, test: &EvaluationPairs) -> anyhow::Result<RetrievalMetrics> {
    let images = embed_table(&test.images, bundle.device(), |items| bundle.encode_images(items))?;
    let sentences = embed_table(&test.sentences, bundle.device(), |items| bundle.encode_sentences(items))?;
    let relevance = Relevance::from_owners(images.rows(), &test.owners)?;
    Ok(aeir_retrieve::evaluate_embeddings(&images, &sentences, &relevance)?)
}

/// The same with the second stage, where the model has one.
fn score_with_head(
    bundle: &Bundle,
    test: &EvaluationPairs,
    rerank: Rerank,
    terminal: &Terminal,
) -> anyhow::Result<RetrievalMetrics> {
    let encoder = bundle.encoder();
    if !encoder.config().head.is_cross_attentive() || rerank == Rerank::First(0) {
        return score(bundle, test);
    }
    let images = encode_table(&test.images, bundle.device(), |items| bundle.encode_images(items))?;
    let sentences = encode_table(&test.sentences, bundle.device(), |items| bundle.encode_sentences(items))?;
    let relevance = Relevance::from_owners(test.images.len(), &test.owners)?;
    match rerank {
        Rerank::All => {
            let bar = terminal.bar("scoring pairs", 0);
            let scores = full_scores(encoder, &images, &sentences, |done, total| {
                bar.set_length(total as u64);
                bar.set_position(done as u64);
            })?;
            bar.finish();
            Ok(aeir_retrieve::evaluate(&scores, &relevance)?)
        }
        Rerank::First(count) => {
            let bar = terminal.bar("re-ranking queries", test.images.len() + test.sentences.len());
            let mut second = HeadReranker::new(encoder, &images, &sentences, || bar.inc(1));
            let vectors = |encoded: &aeir_encoders::Encoded| -> anyhow::Result<aeir_retrieve::Matrix> {
                let pooled = encoded.pooled()?;
                let (rows, columns) = pooled.dims2()?;
                Ok(aeir_retrieve::Matrix::new(pooled.flatten_all()?.to_vec1::<f32>()?, rows, columns)?)
            };
            let (image_vectors, sentence_vectors) = (vectors(&images)?, vectors(&sentences)?);
            let ranks = aeir_retrieve::rank_two_stage_embeddings(
                &image_vectors,
                &sentence_vectors,
                &relevance,
                count,
                &mut second,
            )?;
            bar.finish();
            Ok(ranks.metrics())
        }
    }
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
