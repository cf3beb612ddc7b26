//! A plan and its answers: what a person clicks, on disk before the click counts as done.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use aeir_data::{ImageSource, Split};
use aeir_encoders::write_atomically;
use anyhow::Context;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{Part, PlannedImage};
use crate::failure::CliError;

/// Results of a search among the sentences.
const MOST_FOUND: usize = 20;

/// The plan, the answers, and where they are kept.
pub(super) struct Desk {
    plan: Vec<PlannedImage>,
    images: Vec<ImageSource>,
    /// By place in the plan: the sentences of an image, none of them where none fits.
    answers: Vec<Option<Vec<String>>>,
    /// Pairs of the file that are not of this plan. They stay.
    others: Vec<Pair>,
    sentences: Vec<Sentence>,
    output: PathBuf,
    /// The file as it was read or written last.
    written: Option<Vec<u8>>,
}

/// A line of the file of pairs, as every reader of caption files takes it.
#[derive(Clone, Serialize, Deserialize)]
struct Pair {
    image: String,
    captions: Vec<String>,
    split: Split,
}

/// A sentence that can be searched for.
struct Sentence {
    text: String,
    folded: String,
}

/// Why an answer was not taken.
#[derive(Debug)]
pub(super) enum NotTaken {
    /// It is not one of this plan.
    Unknown(&'static str),
    /// Somebody else wrote the file.
    Changed,
    /// It could not be written.
    Failed(anyhow::Error),
}

impl Desk {
    /// Reads a plan and the pairs that are there already.
    pub(super) fn open(plan_file: &Path, output: &Path, sentences: &[String]) -> anyhow::Result<Self> {
        let (plan, _) = lines::<PlannedImage>(plan_file, "a line of `aeir label plan`")?;
        if plan.is_empty() {
            return Err(refused(format!("`{}` holds no image to label", plan_file.display())).into());
        }
        let names: Vec<&str> = plan.iter().map(|planned| planned.image.as_str()).collect();
        let mut places = HashMap::new();
        for (place, name) in names.iter().enumerate() {
            if let Some(earlier) = places.insert((*name).to_owned(), place) {
                return Err(refused(format!(
                    "`{}` plans `{name}` twice, as image {} and as image {}",
                    plan_file.display(),
                    earlier + 1,
                    place + 1
                ))
                .into());
            }
        }
        let images = ImageSource::of_names(&names)?;
        let mut seen = HashSet::new();
        let sentences = sentences
            .iter()
            .filter(|text| seen.insert(text.as_str()))
            .map(|text| Sentence { text: text.clone(), folded: text.to_lowercase() });
        let mut desk = Self {
            answers: vec![None; plan.len()],
            plan,
            images,
            others: Vec::new(),
            sentences: sentences.collect(),
            output: output.to_owned(),
            written: None,
        };
        desk.take_up(&places)?;
        Ok(desk)
    }

    /// Goes on with a file of pairs, where there is one.
    fn take_up(&mut self, places: &HashMap<String, usize>) -> anyhow::Result<()> {
        if !self.output.exists() {
            return Ok(());
        }
        let (pairs, bytes) = lines::<Pair>(&self.output, "a labelled pair with its split")?;
        self.written = Some(bytes);
        for pair in pairs {
            let Some(place) = places.get(&pair.image).copied() else {
                self.others.push(pair);
                continue;
            };
            let (Some(planned), Some(answer)) = (self.plan.get(place), self.answers.get_mut(place)) else {
                continue;
            };
            if pair.split != planned.part.split() {
                return Err(refused(format!(
                    "`{}` marks `{}` as `{}`, and the plan wants it {}: the pairs are of another plan",
                    self.output.display(),
                    pair.image,
                    pair.split,
                    match planned.part {
                        Part::Learn => "to learn from",
                        Part::Measure => "to measure with",
                    }
                ))
                .into());
            }
            if answer.is_some() {
                return Err(refused(format!(
                    "`{}` has two answers for `{}`",
                    self.output.display(),
                    pair.image
                ))
                .into());
            }
            *answer = Some(pair.captions);
        }
        Ok(())
    }

    /// The images in the plan's order, each with its answer.
    pub(super) fn images(&self) -> impl Iterator<Item = (&PlannedImage, Option<&[String]>)> {
        self.plan.iter().zip(self.answers.iter().map(Option::as_deref))
    }

    /// Where an image of the plan is.
    pub(super) fn image(&self, place: usize) -> Option<&ImageSource> {
        self.images.get(place)
    }

    /// How many images have an answer, and how many there are.
    pub(super) fn progress(&self) -> (usize, usize) {
        (self.answers.iter().filter(|answer| answer.is_some()).count(), self.plan.len())
    }

    /// How many sentences can be searched.
    pub(super) fn searchable(&self) -> usize {
        self.sentences.len()
    }

    /// Sentences that hold all the words, those that begin with them first; and how many there are.
    pub(super) fn search(&self, words: &str) -> (Vec<&str>, usize) {
        let folded = words.trim().to_lowercase();
        let words: Vec<&str> = folded.split_whitespace().collect();
        if words.is_empty() {
            return (Vec::new(), 0);
        }
        let holds = |sentence: &&Sentence| words.iter().all(|word| sentence.folded.contains(word));
        let mut found: Vec<&Sentence> = self.sentences.iter().filter(holds).collect();
        found.sort_by_key(|sentence| (!sentence.folded.starts_with(&folded), sentence.text.len()));
        let count = found.len();
        (found.into_iter().take(MOST_FOUND).map(|sentence| sentence.text.as_str()).collect(), count)
    }

    /// Takes an answer, or takes one back, and writes the file. Where it can't be written nothing has changed.
    pub(super) fn answer(&mut self, place: usize, answer: Option<Vec<String>>) -> Result<(), NotTaken> {
        let Some(planned) = self.plan.get(place) else {
            return Err(NotTaken::Unknown("the plan has no such image"));
        };
        let offered = |text: &String| {
            planned.candidates.iter().any(|candidate| candidate.sentence == *text)
                || self.sentences.iter().any(|sentence| sentence.text == *text)
                || self.answers.get(place).and_then(Option::as_ref).is_some_and(|own| own.contains(text))
        };
        if !answer.iter().flatten().all(offered) {
            return Err(NotTaken::Unknown("a sentence that was not offered"));
        }
        let before = match self.answers.get_mut(place) {
            Some(slot) => std::mem::replace(slot, answer),
            None => return Err(NotTaken::Unknown("the plan has no such image")),
        };
        self.write().inspect_err(|_| {
            if let Some(slot) = self.answers.get_mut(place) {
                *slot = before;
            }
        })
    }

    fn write(&mut self) -> Result<(), NotTaken> {
        let there = match fs::read(&self.output) {
            Ok(bytes) => Some(bytes),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(NotTaken::Failed(error.into())),
        };
        if there != self.written {
            return Err(NotTaken::Changed);
        }
        let bytes = self.bytes().map_err(NotTaken::Failed)?;
        write_atomically(&self.output, &bytes)
            .with_context(|| format!("could not write `{}`", self.output.display()))
            .map_err(NotTaken::Failed)?;
        self.written = Some(bytes);
        Ok(())
    }

    fn bytes(&self) -> anyhow::Result<Vec<u8>> {
        let own = self.plan.iter().zip(&self.answers).filter_map(|(planned, answer)| {
            let captions = answer.clone()?;
            Some(Pair { image: planned.image.clone(), captions, split: planned.part.split() })
        });
        let mut bytes = Vec::new();
        for pair in self.others.iter().cloned().chain(own) {
            serde_json::to_writer(&mut bytes, &pair)?;
            bytes.push(b'\n');
        }
        Ok(bytes)
    }
}

fn refused(message: String) -> CliError {
    CliError::Data { message, hint: "name another file with --output, or make the plan anew".into() }
}

/// A value a line, and the bytes they were read from.
fn lines<T: DeserializeOwned>(file: &Path, expected: &str) -> anyhow::Result<(Vec<T>, Vec<u8>)> {
    let bytes = fs::read(file).map_err(|error| CliError::Data {
        message: format!("could not read `{}`: {error}", file.display()),
        hint: String::new(),
    })?;
    let text = std::str::from_utf8(&bytes).map_err(|error| {
        let line = 1 + bytes.iter().take(error.valid_up_to()).filter(|byte| **byte == b'\n').count();
        refused(format!("`{}` line {line}: not UTF-8", file.display()))
    })?;
    let mut values = Vec::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let value = serde_json::from_str(line).map_err(|error| {
            // The parser counts lines within the line.
            let told = error.to_string();
            let told = told.split(" at line ").next().unwrap_or_default();
            let place = format!("`{}` line {}", file.display(), number + 1);
            refused(format!("{place}: expected {expected}: {told} at column {}", error.column()))
        })?;
        values.push(value);
    }
    Ok((values, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::label::Candidate;

    fn planned(image: &str, part: Part) -> PlannedImage {
        let candidate = |sentence: &str| Candidate { sentence: sentence.into(), score: 0.5 };
        PlannedImage {
            image: image.into(),
            part,
            uncertainty: 0.5,
            candidates: vec![candidate("a dog"), candidate("a cat")],
        }
    }

    struct Scene(tempfile::TempDir);

    impl Scene {
        fn new() -> Self {
            let scene = Self(tempfile::tempdir().unwrap());
            let plan = [planned("/1.png", Part::Learn), planned("/2.png", Part::Measure)];
            let lines: Vec<String> =
                plan.iter().map(|image| serde_json::to_string(image).unwrap() + "\n").collect();
            fs::write(scene.file("plan.jsonl"), lines.concat()).unwrap();
            scene
        }

        fn file(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn open(&self) -> anyhow::Result<Desk> {
            let sentences = ["a dog runs".to_owned(), "A Dog".to_owned(), "a dog runs".to_owned()];
            Desk::open(&self.file("plan.jsonl"), &self.file("pairs.jsonl"), &sentences)
        }

        fn pairs(&self) -> String {
            fs::read_to_string(self.file("pairs.jsonl")).unwrap()
        }
    }

    fn said(text: &str) -> Option<Vec<String>> {
        Some(vec![text.to_owned()])
    }

    #[test]
    fn answers_are_on_disk_at_once_and_come_back() {
        let scene = Scene::new();
        let mut desk = scene.open().unwrap();
        desk.answer(0, said("a cat")).unwrap();
        desk.answer(1, Some(Vec::new())).unwrap();
        assert_eq!(
            scene.pairs(),
            "{\"image\":\"/1.png\",\"captions\":[\"a cat\"],\"split\":\"train\"}\n\
             {\"image\":\"/2.png\",\"captions\":[],\"split\":\"test\"}\n"
        );
        drop(desk);
        let mut again = scene.open().unwrap();
        assert_eq!(again.progress(), (2, 2));
        again.answer(1, None).unwrap();
        again.answer(0, said("a dog runs")).unwrap();
        assert_eq!(
            scene.pairs(),
            "{\"image\":\"/1.png\",\"captions\":[\"a dog runs\"],\"split\":\"train\"}\n"
        );
        assert!(matches!(again.answer(0, said("never offered")), Err(NotTaken::Unknown(_))));
        assert!(matches!(again.answer(2, None), Err(NotTaken::Unknown(_))));
    }

    #[test]
    fn a_file_that_somebody_else_wrote_is_left_alone() {
        let scene = Scene::new();
        let mut desk = scene.open().unwrap();
        desk.answer(0, said("a cat")).unwrap();
        let mut other = scene.open().unwrap();
        other.answer(1, said("a dog")).unwrap();
        assert!(matches!(desk.answer(0, said("a dog")), Err(NotTaken::Changed)));
        assert!(scene.pairs().contains("a cat"), "the other's file is as it was");
        assert_eq!(
            desk.images().next().unwrap().1,
            Some(&["a cat".to_owned()][..]),
            "nothing has changed here"
        );
    }

    #[test]
    fn pairs_of_other_plans_stay_and_contradictions_are_refused() {
        let scene = Scene::new();
        let other = "{\"image\":\"/9.png\",\"captions\":[\"else\"],\"split\":\"train\"}\n";
        fs::write(scene.file("pairs.jsonl"), other).unwrap();
        scene.open().unwrap().answer(0, said("a dog")).unwrap();
        assert!(scene.pairs().starts_with(other));
        let refused = |pairs: &str, part: &str| {
            fs::write(scene.file("pairs.jsonl"), pairs).unwrap();
            let told = scene.open().err().unwrap().to_string();
            assert!(told.contains(part), "{told}");
        };
        refused("{\"image\":\"/1.png\",\"captions\":[],\"split\":\"test\"}\n", "of another plan");
        let line = "{\"image\":\"/1.png\",\"captions\":[],\"split\":\"train\"}\n";
        refused(&[line, line].concat(), "two answers");
        refused(&format!("{line}{}", &line[..30]), "line 2: expected a labelled pair");
        refused("a,table\n", "line 1");
    }

    #[test]
    fn sentences_are_found_by_their_words() {
        let scene = Scene::new();
        let desk = scene.open().unwrap();
        assert_eq!(desk.searchable(), 2);
        assert_eq!(desk.search("DOG a"), (vec!["A Dog", "a dog runs"], 2));
        assert_eq!(desk.search("runs dog"), (vec!["a dog runs"], 1));
        assert_eq!(desk.search("  "), (Vec::new(), 0));
    }

    #[test]
    fn what_is_no_plan_is_refused() {
        let scene = Scene::new();
        let line = serde_json::to_string(&planned("/1.png", Part::Learn)).unwrap();
        for (plan, part) in [
            (String::new(), "no image to label"),
            (line[..40].to_owned(), "line 1: expected a line of `aeir label plan`"),
            (format!("{line}\n{line}\n"), "twice, as image 1 and as image 2"),
            ("{\"image\": \"/1.png\", \"captions\": []}".into(), "line 1"),
        ] {
            fs::write(scene.file("plan.jsonl"), plan).unwrap();
            let told = scene.open().err().unwrap().to_string();
            assert!(told.contains(part), "{told}");
        }
        fs::write(scene.file("plan.jsonl"), [line.as_bytes(), b"\n\xff\n"].concat()).unwrap();
        assert!(scene.open().err().unwrap().to_string().contains("line 2: not UTF-8"));
        fs::remove_file(scene.file("plan.jsonl")).unwrap();
        assert!(scene.open().err().unwrap().to_string().contains("could not read"));
    }
}
