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
    /// By place in the plan: the line that the file had for an image when it was opened.
    found: Vec<Option<Pair>>,
    /// Lines of the file that are of no image of this plan. They stay as they are.
    others: Vec<String>,
    sentences: Vec<Sentence>,
    output: PathBuf,
    /// The file as it was read or written last.
    written: Option<Vec<u8>>,
}

/// A line of the file of pairs, as every reader of caption files takes it.
#[derive(Clone, Serialize, Deserialize)]
struct Pair {
    /// A path, absolute or relative to the folder of the file.
    image: String,
    captions: Vec<String>,
    /// Missing in what was written by hand: to learn from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    split: Option<Split>,
    /// What else the line says. It stays.
    #[serde(flatten)]
    rest: serde_json::Map<String, serde_json::Value>,
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
    /// Reads a plan and the pairs that are there already, whose relative paths are relative to `root`.
    pub(super) fn open(
        plan_file: &Path,
        output: &Path,
        root: Option<&Path>,
        sentences: &[String],
    ) -> anyhow::Result<Self> {
        let (plan, _) = lines::<PlannedImage>(plan_file, "a line of `aeir label plan`")?;
        let plan: Vec<PlannedImage> = plan.into_iter().map(|(planned, _)| planned).collect();
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
            found: vec![None; plan.len()],
            plan,
            images,
            others: Vec::new(),
            sentences: sentences.collect(),
            output: output.to_owned(),
            written: None,
        };
        desk.take_up(&places, root.or(output.parent()).unwrap_or(Path::new("")))?;
        Ok(desk)
    }

    /// Goes on with a file of pairs, where there is one.
    fn take_up(&mut self, places: &HashMap<String, usize>, root: &Path) -> anyhow::Result<()> {
        if !self.output.exists() {
            return Ok(());
        }
        let (pairs, bytes) = lines::<Pair>(&self.output, "a labelled pair")?;
        self.written = Some(bytes);
        let files: HashMap<String, usize> =
            places.iter().map(|(name, place)| (on_disk(root, name), *place)).collect();
        for (pair, line) in pairs {
            let place = places.get(&pair.image).or_else(|| files.get(&on_disk(root, &pair.image))).copied();
            match place {
                Some(place) => self.take(place, pair)?,
                None => self.others.push(line),
            }
        }
        Ok(())
    }

    /// Takes a line of the file as the answer to an image of the plan.
    fn take(&mut self, place: usize, pair: Pair) -> anyhow::Result<()> {
        let (Some(planned), Some(answer), Some(found)) =
            (self.plan.get(place), self.answers.get_mut(place), self.found.get_mut(place))
        else {
            return Ok(());
        };
        let (file, image) = (self.output.display(), &pair.image);
        if pair.split.unwrap_or(Split::Train) != planned.part.split() {
            let said =
                pair.split.map_or("says no split for".to_owned(), |split| format!("says `{split}` for"));
            let wanted = match planned.part {
                Part::Learn => "to learn from, which is `train`",
                Part::Measure => "to measure with, which is `test`",
            };
            return Err(refused(format!("`{file}` {said} `{image}`, and the plan wants it {wanted}")).into());
        }
        if answer.is_some() {
            return Err(refused(format!("`{file}` has two answers for `{image}`")).into());
        }
        *answer = Some(pair.captions.clone());
        *found = Some(pair);
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
                || self
                    .found
                    .get(place)
                    .and_then(Option::as_ref)
                    .is_some_and(|own| own.captions.contains(text))
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
        let mut bytes = Vec::new();
        for line in &self.others {
            bytes.extend(line.bytes());
            bytes.push(b'\n');
        }
        for ((planned, found), answer) in self.plan.iter().zip(&self.found).zip(&self.answers) {
            let Some(captions) = answer.clone() else { continue };
            let pair = match found.clone() {
                Some(found) => Pair { captions, ..found },
                None => Pair {
                    image: planned.image.clone(),
                    captions,
                    split: Some(planned.part.split()),
                    rest: serde_json::Map::new(),
                },
            };
            serde_json::to_writer(&mut bytes, &pair)?;
            bytes.push(b'\n');
        }
        Ok(bytes)
    }
}

/// A name by which the same image is the same, however its path was written.
fn on_disk(root: &Path, name: &str) -> String {
    let file = ImageSource::file_of_name(name);
    let place = file.to_str().and_then(|file| name.strip_prefix(file)).unwrap_or_default();
    let path = root.join(file);
    let path = fs::canonicalize(&path).or_else(|_| std::path::absolute(&path)).unwrap_or(path);
    format!("{}{place}", path.display())
}

fn refused(message: String) -> CliError {
    let hint = "mend it, name another file with --output, or make the plan anew";
    CliError::Data { message, hint: hint.into() }
}

/// Values, each with the line that it stands on, and the bytes of the file.
type Lines<T> = (Vec<(T, String)>, Vec<u8>);

fn lines<T: DeserializeOwned>(file: &Path, expected: &str) -> anyhow::Result<Lines<T>> {
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
        values.push((value, line.to_owned()));
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
            Desk::open(&self.file("plan.jsonl"), &self.file("pairs.jsonl"), None, &sentences)
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
        refused(
            "{\"image\":\"/1.png\",\"captions\":[],\"split\":\"test\"}\n",
            "says `test` for `/1.png`, and the plan wants it to learn from, which is `train`",
        );
        refused(
            "{\"image\":\"/2.png\",\"captions\":[]}\n",
            "says no split for `/2.png`, and the plan wants it to measure with, which is `test`",
        );
        let line = "{\"image\":\"/1.png\",\"captions\":[],\"split\":\"train\"}\n";
        refused(&[line, line].concat(), "two answers");
        refused(&format!("{line}{}", &line[..30]), "line 2: expected a labelled pair");
        refused("a,table\n", "line 1");
    }

    #[test]
    fn what_was_written_by_hand_is_taken_up_and_stays() {
        let scene = Scene::new();
        fs::create_dir(scene.file("photos")).unwrap();
        fs::write(scene.file("photos/1.png"), "").unwrap();
        let image = scene.file("photos/1.png").display().to_string();
        let lines = [planned(&image, Part::Learn), planned("/2.png", Part::Measure)]
            .map(|image| serde_json::to_string(&image).unwrap() + "\n");
        fs::write(scene.file("plan.jsonl"), lines.concat()).unwrap();
        // A path that is relative to the file, no split, a sentence of nobody's list, and what no reader asks for.
        let by_hand = [
            r#"{"who": "me",  "image": "elsewhere/9.png", "captions": ["else"]}"#,
            r#"{"image": "photos/../photos/1.png", "captions": ["my own words"], "note": {"sure": false}}"#,
        ];
        fs::write(scene.file("pairs.jsonl"), by_hand.join("\n")).unwrap();
        let mut desk = scene.open().unwrap();
        assert_eq!(desk.progress(), (1, 2));
        assert_eq!(desk.images().next().unwrap().1, Some(&["my own words".to_owned()][..]));
        desk.answer(0, said("a cat")).unwrap();
        let changed = r#"{"image":"photos/../photos/1.png","captions":["a cat"],"note":{"sure":false}}"#;
        assert_eq!(scene.pairs(), format!("{}\n{changed}\n", by_hand[0]));
        // Taken back, as the page does it: the sentence is no candidate and in no list.
        desk.answer(0, said("my own words")).unwrap();
        assert_eq!(scene.pairs(), format!("{}\n{}\n", by_hand[0], changed.replace("a cat", "my own words")));
        desk.answer(0, None).unwrap();
        assert_eq!(scene.pairs(), format!("{}\n", by_hand[0]));
        assert!(matches!(desk.answer(1, said("my own words")), Err(NotTaken::Unknown(_))));
    }

    #[test]
    fn relative_paths_are_relative_to_the_folder_that_is_named() {
        let scene = Scene::new();
        fs::write(scene.file("pairs.jsonl"), "{\"image\":\"1.png\",\"captions\":[]}\n").unwrap();
        let open = |root| Desk::open(&scene.file("plan.jsonl"), &scene.file("pairs.jsonl"), root, &[]);
        assert_eq!(open(None).unwrap().progress(), (0, 2), "another image");
        assert_eq!(open(Some(Path::new("/"))).unwrap().progress(), (1, 2));
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
