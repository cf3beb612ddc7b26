//! `aeir search`.

use std::fmt::Write;

use aeir_encoders::Bundle;
use aeir_retrieve::{Hit, Index};
use serde::Serialize;

use super::index::MODEL_FOLDER;
use super::{decode_query, print, print_json};
use crate::failure::CliError;
use crate::flags::SearchFlags;
use crate::terminal::Terminal;

#[derive(Serialize)]
struct Answer<'a> {
    results: Vec<Result<'a>>,
}

#[derive(Serialize)]
struct Result<'a> {
    rank: usize,
    score: f32,
    path: &'a str,
}

/// Answers one query.
pub(crate) fn run(flags: &SearchFlags, terminal: &Terminal) -> anyhow::Result<()> {
    let sentence = flags.sentence.as_deref().map(str::trim);
    if sentence == Some("") {
        return Err(CliError::Usage {
            message: "the sentence is empty".into(),
            hint: "say what the image shows, for instance \"a red car\"".into(),
        }
        .into());
    }
    let index = Index::open(&flags.index)?;
    let device = flags.device.device.open(terminal)?;
    let bundle = Bundle::load(&flags.index.join(MODEL_FOLDER), &device)?;
    index.check_model(bundle.fingerprint())?;
    let query = match (&flags.image, sentence) {
        (Some(image), _) => bundle.embed_images(&[decode_query(image)?.image])?,
        (None, sentence) => bundle.embed_sentences(&[sentence.unwrap_or_default()])?,
    };
    let hits = index.search(&query.flatten_all()?.to_vec1::<f32>()?, flags.k)?;
    if flags.json {
        let results = hits.iter().map(|Hit { rank, score, item, .. }| Result {
            rank: *rank,
            score: *score,
            path: item,
        });
        return print_json(&Answer { results: results.collect() });
    }
    let mut text = String::new();
    for Hit { rank, score, item, .. } in &hits {
        // Writing to a String can't fail.
        let _ = writeln!(text, "{rank:>4}  {score:.4}  {item}");
    }
    print(&text)
}
