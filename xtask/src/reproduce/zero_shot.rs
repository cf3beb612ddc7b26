//! The suite of models that were trained on neither domain: CLIP and SigLIP as they are, with a query bank, and adapted without a source.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::stand_in::clip_folder;
use super::trial::{Evaluation, Trial};

/// Models by the names that `cargo xtask fetch` gives them.
const MODELS: [&str; 4] =
    ["clip-vit-base-patch32", "clip-vit-base-patch16", "clip-vit-large-patch14", "siglip-base-patch16-224"];
pub(super) const STAND_IN: &str = "clip-stand-in";
/// Training sentences in the bank. All 566,747 of COCO would need a score matrix of 11 GB.
const BANK_SENTENCES: usize = 60_000;
/// What QB-Norm does is this correction.
const CORRECTION: &str = "dynamic-inverted-softmax";

/// Scenarios with their titles.
pub(super) const SCENARIOS: [(&str, &str); 3] = [
    ("zero-shot-f30k", "Flickr30K without training"),
    ("zero-shot-coco", "COCO without training, and adapted to its unpaired sets"),
    (
        "query-bank",
        "Text to image on COCO with a query bank (dynamic inverted softmax, 60,000 training sentences)",
    ),
];

/// The protocol of a scenario.
pub(super) fn protocol(scenario: &str) -> &'static str {
    if scenario == "zero-shot-f30k" { "1k" } else { "5k" }
}

/// Folders of what was fetched, or of the stand-ins.
pub(super) struct Place<'a> {
    pub(super) assets: &'a Path,
    pub(super) stand_in: bool,
    /// For the bank.
    pub(super) results: &'a Path,
    pub(super) settings: &'a [&'static str],
}

/// A cell, or what it lacks.
pub(super) struct Candidate {
    pub(super) scenario: &'static str,
    pub(super) row: String,
    pub(super) lacking: Vec<PathBuf>,
    kind: Kind,
    model: PathBuf,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Plain,
    Bank,
    Adapted,
}

impl Place<'_> {
    fn coco(&self) -> PathBuf {
        self.assets.join("datasets").join("coco").join("dataset_coco.json")
    }

    fn flickr(&self) -> PathBuf {
        let sets = self.assets.join("datasets");
        if self.stand_in {
            sets.join("flickr30k-parquet")
        } else {
            sets.join("flickr30k").join("dataset_flickr30k.json")
        }
    }

    fn data(&self, scenario: &str) -> PathBuf {
        if scenario == "zero-shot-f30k" { self.flickr() } else { self.coco() }
    }

    fn models(&self) -> Vec<(String, PathBuf)> {
        if self.stand_in {
            return vec![(STAND_IN.to_owned(), clip_folder(self.assets))];
        }
        MODELS.iter().map(|name| ((*name).to_owned(), self.assets.join("backbones").join(name))).collect()
    }

    /// All cells.
    pub(super) fn candidates(&self) -> Vec<Candidate> {
        let mut all = Vec::new();
        for (name, model) in self.models() {
            for (scenario, _) in SCENARIOS {
                let lacking: Vec<PathBuf> = [model.join("model.safetensors"), self.data(scenario)]
                    .into_iter()
                    .filter(|it| !it.exists())
                    .collect();
                let mut add = |kind: Kind, suffix: &str| {
                    let (row, model) = (format!("{name}{suffix}"), model.clone());
                    all.push(Candidate { scenario, row, lacking: lacking.clone(), kind, model });
                };
                add(Kind::Plain, "");
                match scenario {
                    "query-bank" => add(Kind::Bank, "-query-bank"),
                    "zero-shot-coco" => add(Kind::Adapted, "-adapted"),
                    _ => {}
                }
            }
        }
        all
    }

    /// The cell of a candidate that lacks nothing.
    pub(super) fn trial(&self, candidate: &Candidate, seed: u64) -> anyhow::Result<Trial> {
        let data = self.data(candidate.scenario);
        let mut arguments: Vec<OsString> = vec!["--data".into(), data.clone().into()];
        let mut correction = None;
        if candidate.kind == Kind::Bank {
            arguments.extend(["--query-bank".into(), self.bank()?.into()]);
            correction = Some(CORRECTION);
        }
        let train = (candidate.kind == Kind::Adapted).then(|| {
            let mut train: Vec<OsString> =
                vec!["--method".into(), "adapt".into(), "--model".into(), candidate.model.clone().into()];
            train.extend([
                "--target-images".into(),
                data.clone().into(),
                "--target-sentences".into(),
                data.into(),
            ]);
            train.extend(self.settings.iter().flat_map(|setting| [OsString::from("--set"), setting.into()]));
            train
        });
        Ok(Trial {
            suite: "zero-shot",
            scenario: candidate.scenario.to_owned(),
            row: candidate.row.clone(),
            seed,
            stand_in: self.stand_in,
            train,
            config: None,
            model: candidate.model.clone(),
            evaluations: vec![Evaluation { protocol: protocol(candidate.scenario), arguments, correction }],
            examples: None,
        })
    }

    /// Training sentences of COCO, drawn by their hash: the same ones each time.
    fn bank(&self) -> anyhow::Result<PathBuf> {
        let file = self.results.join("query-bank.txt");
        if !file.is_file() {
            std::fs::create_dir_all(self.results)?;
            let coco = self.coco();
            let text = std::fs::read_to_string(&coco)
                .with_context(|| format!("could not read `{}`", coco.display()))?;
            let sentences = training_sentences(&text).with_context(|| format!("`{}`", coco.display()))?;
            std::fs::write(&file, sentences.join("\n") + "\n")?;
        }
        Ok(file)
    }
}

impl Candidate {
    /// Whether a seed changes anything.
    pub(super) fn is_trained(&self) -> bool {
        self.kind == Kind::Adapted
    }
}

/// The bank's sentences of a file with Karpathy's splits.
fn training_sentences(text: &str) -> anyhow::Result<Vec<String>> {
    let value: Value = serde_json::from_str(text)?;
    let images = value["images"].as_array().context("no `images`")?;
    let training = images.iter().filter(|image| matches!(image["split"].as_str(), Some("train" | "restval")));
    let sentences = training.flat_map(|image| image["sentences"].as_array().into_iter().flatten());
    let mut sentences: Vec<String> = sentences
        .filter_map(|sentence| Some(sentence["raw"].as_str()?.replace('\n', " ").trim().to_owned()))
        .collect();
    sentences.sort_by_cached_key(|sentence| Sha256::digest(sentence.as_bytes()).to_vec());
    sentences.truncate(BANK_SENTENCES);
    Ok(sentences)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bank_holds_no_test_sentence() {
        let image =
            |split: &str, raw: &str| serde_json::json!({ "split": split, "sentences": [{ "raw": raw }] });
        let images = [image("train", "a"), image("test", "b"), image("restval", "c"), image("val", "d")];
        let mut found = training_sentences(&serde_json::json!({ "images": images }).to_string()).unwrap();
        found.sort();
        assert_eq!(found, ["a", "c"]);
        assert!(training_sentences("{}").is_err());
    }

    #[test]
    fn cells_say_what_they_lack() {
        let place =
            Place { assets: Path::new("nowhere"), stand_in: false, results: Path::new(""), settings: &[] };
        let candidates = place.candidates();
        assert_eq!(candidates.len(), MODELS.len() * 5);
        assert!(candidates.iter().all(|candidate| candidate.lacking.len() == 2));
    }
}
