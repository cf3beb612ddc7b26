//! Transfers made of the fixtures: source pairs, the target's unpaired sets, its test pairs, and the alignment that the oracle alone sees.

use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// A source and a target.
pub(super) struct Transfer {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
}

/// How they are made.
pub(super) enum Kind {
    /// As the fixtures have it.
    NotoToOpenclipart,
    /// The other way round: all clip art as source; half of the emoji unpaired, half to test on.
    OpenclipartToNoto,
    /// Emoji whose first code point lies in a range as target, all others as source.
    NotoBlock(u32, u32),
}

/// Where a transfer's data lie.
pub(super) struct Files {
    pub(super) source: PathBuf,
    pub(super) images: PathBuf,
    pub(super) sentences: PathBuf,
    pub(super) test: PathBuf,
    pub(super) alignment: PathBuf,
}

impl Files {
    /// A hash of all of them.
    pub(super) fn digest(&self) -> anyhow::Result<String> {
        let mut hash = Sha256::new();
        for file in [&self.source, &self.images, &self.sentences, &self.test, &self.alignment] {
            let bytes =
                std::fs::read(file).with_context(|| format!("could not read `{}`", file.display()))?;
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        }
        Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

/// An image with its sentences.
#[derive(Clone)]
struct Item {
    image: String,
    captions: Vec<String>,
    /// Whether the source's data holds it out for validation.
    held_out: bool,
}

impl Transfer {
    /// The files, written under `results` where the fixtures don't have them.
    pub(super) fn prepare(&self, root: &Path, results: &Path) -> anyhow::Result<Files> {
        let fixtures = root.join("fixtures").join("datasets");
        let clip_art = fixtures.join("openclipart");
        let emoji = fixtures.join("noto-cldr").join("captions.jsonl");
        match self.kind {
            Kind::NotoToOpenclipart => Ok(Files {
                source: emoji,
                images: clip_art.join("train_images.txt"),
                sentences: clip_art.join("train_sentences.txt"),
                test: clip_art.join("test.jsonl"),
                alignment: clip_art.join("train_alignment.jsonl"),
            }),
            Kind::OpenclipartToNoto => {
                let mut source = read(&clip_art.join("train_alignment.jsonl"))?;
                source.extend(read(&clip_art.join("test.jsonl"))?);
                write(&results.join(self.name).join("data"), &source, read(&emoji)?)
            }
            Kind::NotoBlock(first, last) => {
                let within =
                    |item: &Item| code_point(&item.image).is_some_and(|at| (first..=last).contains(&at));
                let (target, source): (Vec<Item>, Vec<Item>) = read(&emoji)?.into_iter().partition(within);
                write(&results.join(self.name).join("data"), &source, target)
            }
        }
    }
}

/// The first code point that the name of an emoji's file says.
fn code_point(image: &str) -> Option<u32> {
    let name = Path::new(image).file_stem()?.to_str()?;
    u32::from_str_radix(name.split('-').next()?, 16).ok()
}

fn read(file: &Path) -> anyhow::Result<Vec<Item>> {
    let text =
        std::fs::read_to_string(file).with_context(|| format!("could not read `{}`", file.display()))?;
    let folder = file.parent().unwrap_or(Path::new(""));
    let item = |line: &str| {
        let value: Value = serde_json::from_str(line)?;
        let image = value["image"].as_str().context("no `image`")?;
        let captions = value["captions"].as_array().context("no `captions`")?;
        Ok::<_, anyhow::Error>(Item {
            image: folder.join(image).display().to_string(),
            captions: captions.iter().filter_map(|caption| Some(caption.as_str()?.to_owned())).collect(),
            held_out: value["split"] == "val",
        })
    };
    text.lines()
        .map(|line| item(line).with_context(|| format!("`{}`", file.display())))
        .collect::<anyhow::Result<Vec<_>>>()
}

/// Writes the source, a tenth of it held out for validation where it says nothing of that; of the target one half unpaired, the other to test on. A target item has one sentence, its longest:
/// an emoji's bare name would say too much of which it is.
fn write(folder: &Path, source: &[Item], mut target: Vec<Item>) -> anyhow::Result<Files> {
    std::fs::create_dir_all(folder).with_context(|| format!("could not make `{}`", folder.display()))?;
    for item in &mut target {
        item.captions.sort_by_key(String::len);
        item.captions = item.captions.pop().into_iter().collect();
    }
    // By hash, so that neither half is of one kind, nor do equal places in the two sets belong together.
    target.sort_by_key(|item| hash(file_name(&item.image)));
    let test = target.split_off(target.len() / 2);
    let mut sentences: Vec<&str> =
        target.iter().flat_map(|item| &item.captions).map(String::as_str).collect();
    sentences.sort_by_key(|sentence| hash(sentence));
    let images: Vec<&str> = target.iter().map(|item| item.image.as_str()).collect();
    let files = Files {
        source: folder.join("source.jsonl"),
        images: folder.join("images.txt"),
        sentences: folder.join("sentences.txt"),
        test: folder.join("test.jsonl"),
        alignment: folder.join("alignment.jsonl"),
    };
    let put = |file: &Path, text: String| {
        std::fs::write(file, text).with_context(|| format!("could not write `{}`", file.display()))
    };
    let says = source.iter().any(|item| item.held_out);
    // By the name alone, wherever the checkout lies.
    let tenth = |item: &Item| hash(file_name(&item.image)).first().is_some_and(|byte| byte % 10 == 0);
    let held_out = |item: &Item| if says { item.held_out } else { tenth(item) };
    put(&files.source, lines(source, held_out))?;
    put(&files.images, images.join("\n") + "\n")?;
    put(&files.sentences, sentences.join("\n") + "\n")?;
    put(&files.test, lines(&test, |_| false))?;
    put(&files.alignment, lines(&target, |_| false))?;
    Ok(files)
}

fn lines(items: &[Item], held_out: impl Fn(&Item) -> bool) -> String {
    let line = |item: &Item| {
        let mut line = json!({ "image": item.image, "captions": item.captions });
        if held_out(item) {
            line["split"] = "val".into();
        }
        line.to_string() + "\n"
    };
    items.iter().map(line).collect()
}

fn file_name(image: &str) -> &str {
    image.rsplit('/').next().unwrap_or_default()
}

fn hash(text: &str) -> Vec<u8> {
    Sha256::digest(text.as_bytes()).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_and_sets_have_nothing_in_common_but_the_pairs() {
        let folder = std::env::temp_dir().join(format!("aeir-transfer-{}", std::process::id()));
        let item = |number: usize| Item {
            image: format!("images/{number:x}.webp"),
            captions: vec![format!("name {number}"), format!("name {number}: and more")],
            held_out: number == 3,
        };
        let (source, target): (Vec<Item>, Vec<Item>) =
            ((0..5).map(item).collect(), (10..30).map(item).collect());
        let files = write(&folder, &source, target).unwrap();
        let text = |file: &Path| std::fs::read_to_string(file).unwrap();
        let (images, sentences, test) = (text(&files.images), text(&files.sentences), text(&files.test));
        assert_eq!((images.lines().count(), sentences.lines().count(), test.lines().count()), (10, 10, 10));
        assert!(images.lines().all(|image| !test.contains(image)));
        assert!(sentences.lines().all(|sentence| sentence.ends_with("and more") && !test.contains(sentence)));
        assert_eq!(text(&files.source).matches("\"val\"").count(), 1, "the source's own split");
        let alignment = text(&files.alignment);
        assert!(images.lines().all(|image| alignment.contains(image)));
        assert_eq!(code_point("images/1f400-fe0f.webp"), Some(0x1F400));
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
