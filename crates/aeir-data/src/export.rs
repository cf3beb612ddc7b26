//! Data sets written anew: as JSON lines with the images beside them, as WebDataset shards, in splits, or without their pairs.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Component, Path, PathBuf};

use serde::Serialize;

use crate::dataset::{Dataset, Item};
use crate::decode::ImageLimits;
use crate::durable;
use crate::error::DataError;
use crate::hash::ContentHash;
use crate::image_source::ImageSource;
use crate::sampler::ShuffledSampler;
use crate::skipped::Skipped;
use crate::split::Split;

/// Uses of one seed, which must not share random numbers.
#[derive(Clone, Copy)]
enum Stream {
    Split = 0,
    Images = 1,
    Sentences = 2,
}

fn order(len: usize, seed: u64, stream: Stream) -> Vec<usize> {
    ShuffledSampler::new(len, seed, stream as u64).epoch_order(0)
}

/// What was written.
#[derive(Debug, Clone, Default, Serialize)]
#[non_exhaustive]
pub struct Exported {
    /// The files, without the images.
    pub files: Vec<PathBuf>,
    /// Images of each split.
    pub images: [usize; 3],
    /// Sentences of all splits.
    pub sentences: usize,
    /// What was left out.
    pub skipped: Vec<Skipped>,
}

impl Exported {
    fn count(&mut self, item: &Item) {
        if let Some(count) = self.images.get_mut(item.effective_split() as usize) {
            *count += 1;
        }
        self.sentences += item.sentences.len();
    }
}

#[derive(Serialize)]
struct Record<'a> {
    image: &'a str,
    captions: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    split: Option<Split>,
}

fn line_of(image: &str, item: &Item, split: Option<Split>) -> Vec<u8> {
    let record = Record { image, captions: &item.sentences, split };
    // Texts and a name: there is nothing that JSON has no form for.
    let mut line = serde_json::to_vec(&record).unwrap_or_default();
    line.push(b'\n');
    line
}

/// Copies the images into `folder/images`, byte by byte, and writes `folder/captions.jsonl`; where the set has no sentence,
/// `folder/images.txt`. Features are not copied: they are named where they are.
///
/// An image that can't be read, and one without a sentence among others that have some, is left out and listed.
///
/// # Errors
/// [`DataError::Io`] where a file can't be written; [`DataError::NothingUsable`] where nothing was left.
pub fn write_json_lines(data: &Dataset, folder: &Path, limits: &ImageLimits) -> Result<Exported, DataError> {
    let with_sentences = data.items.iter().any(|item| !item.sentences.is_empty());
    let mut exported = Exported { skipped: data.skipped.clone(), ..Exported::default() };
    let mut names = Names::default();
    let images = folder.join("images");
    fs::create_dir_all(&images).map_err(|error| DataError::io(&images, "make", error))?;
    let mut lines = Vec::new();
    for item in &data.items {
        let Some(image) = &item.image else { continue };
        if with_sentences && item.sentences.is_empty() {
            exported.skipped.push(left_out(image, "no usable caption"));
            continue;
        }
        let name = if image.features().is_some() {
            relative(folder, image)?
        } else {
            match image.read(limits.max_bytes) {
                Ok(bytes) => {
                    let name = names.of(&item.id, &bytes);
                    let path = images.join(&name);
                    fs::write(&path, bytes).map_err(|error| DataError::io(&path, "write", error))?;
                    format!("images/{name}")
                }
                Err(error) => {
                    exported.skipped.push(Skipped::image(image, &error));
                    continue;
                }
            }
        };
        exported.count(item);
        if with_sentences {
            lines.extend(line_of(&name, item, item.split));
        } else {
            lines.extend(name.into_bytes());
            lines.push(b'\n');
        }
    }
    finish(data, folder, if with_sentences { "captions.jsonl" } else { "images.txt" }, &lines, exported)
}

fn finish(
    data: &Dataset,
    folder: &Path,
    name: &str,
    lines: &[u8],
    mut exported: Exported,
) -> Result<Exported, DataError> {
    if lines.is_empty() {
        return Err(DataError::NothingUsable {
            path: data.path.clone(),
            expected: "image",
            skipped: exported.skipped.len(),
        });
    }
    let file = folder.join(name);
    durable::replace(&file, lines)?;
    exported.files.push(file);
    Ok(exported)
}

fn left_out(image: &ImageSource, reason: &str) -> Skipped {
    Skipped { item: image.to_string(), line: None, file: None, reason: reason.to_owned() }
}

/// Names for files, each once.
#[derive(Default)]
struct Names {
    taken: HashSet<String>,
}

impl Names {
    /// The last part of the id, with letters that every file system takes, and the suffix of what the bytes are.
    fn of(&mut self, id: &str, bytes: &[u8]) -> String {
        let suffix = image::guess_format(bytes)
            .ok()
            .and_then(|format| format.extensions_str().first().copied())
            .unwrap_or("bin");
        let last = id.rsplit(['/', '\\', '#']).next().unwrap_or(id);
        let stem = last.rsplit_once('.').map_or(last, |(stem, _)| stem);
        let safe = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '-' | '_');
        let stem: String =
            stem.chars().take(80).map(|letter| if safe(letter) { letter } else { '_' }).collect();
        let stem = if stem.is_empty() { "image".to_owned() } else { stem };
        let mut name = format!("{stem}.{suffix}");
        let mut number = 2;
        // Some systems don't tell large letters from small ones.
        while !self.taken.insert(name.to_ascii_lowercase()) {
            name = format!("{stem}-{number}.{suffix}");
            number += 1;
        }
        name
    }
}

/// Writes tar archives `SPLIT-000000.tar` of at most `per_shard` items: each image as it is, with its sentences in a text of one a
/// line.
///
/// # Errors
/// [`DataError::Io`]; [`DataError::NotEncoded`] for features; [`DataError::NothingUsable`].
pub fn write_webdataset(
    data: &Dataset,
    folder: &Path,
    per_shard: usize,
    limits: &ImageLimits,
) -> Result<Exported, DataError> {
    let mut exported = Exported { skipped: data.skipped.clone(), ..Exported::default() };
    fs::create_dir_all(folder).map_err(|error| DataError::io(folder, "make", error))?;
    for split in Split::ALL {
        let mut shard: Option<Shard> = None;
        let (mut number, mut key) = (0, 0);
        for item in data.items.iter().filter(|item| item.effective_split() == split) {
            let Some(image) = &item.image else { continue };
            if image.features().is_some() {
                return Err(DataError::NotEncoded { item: image.to_string() });
            }
            let bytes = match image.read(limits.max_bytes) {
                Ok(bytes) => bytes,
                Err(error) => {
                    exported.skipped.push(Skipped::image(image, &error));
                    continue;
                }
            };
            if shard.as_ref().is_some_and(|shard| shard.items >= per_shard.max(1)) {
                shard.take().into_iter().try_for_each(|shard| shard.close(&mut exported))?;
            }
            let open = match &mut shard {
                Some(open) => open,
                none => {
                    let name = format!("{split}-{number:06}.tar");
                    number += 1;
                    none.insert(Shard::create(folder.join(name))?)
                }
            };
            open.add(key, &bytes, item)?;
            exported.count(item);
            key += 1;
        }
        shard.into_iter().try_for_each(|shard| shard.close(&mut exported))?;
    }
    if exported.files.is_empty() {
        return Err(DataError::NothingUsable {
            path: data.path.clone(),
            expected: "image",
            skipped: exported.skipped.len(),
        });
    }
    Ok(exported)
}

struct Shard {
    path: PathBuf,
    builder: tar::Builder<BufWriter<File>>,
    items: usize,
}

impl Shard {
    fn create(path: PathBuf) -> Result<Self, DataError> {
        let file = File::create(&path).map_err(|error| DataError::io(&path, "write", error))?;
        Ok(Self { builder: tar::Builder::new(BufWriter::new(file)), path, items: 0 })
    }

    fn add(&mut self, key: usize, bytes: &[u8], item: &Item) -> Result<(), DataError> {
        let suffix = image::guess_format(bytes)
            .ok()
            .and_then(|format| format.extensions_str().first().copied())
            .unwrap_or("bin");
        self.member(&format!("{key:09}.{suffix}"), bytes)?;
        if !item.sentences.is_empty() {
            let lines: Vec<String> = item.sentences.iter().map(|sentence| one_line(sentence)).collect();
            self.member(&format!("{key:09}.txt"), lines.join("\n").as_bytes())?;
        }
        self.items += 1;
        Ok(())
    }

    fn member(&mut self, name: &str, content: &[u8]) -> Result<(), DataError> {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        // No time and no owner: the same data gives the same bytes.
        self.builder
            .append_data(&mut header, name, content)
            .map_err(|error| DataError::io(&self.path, "write", error))
    }

    fn close(self, exported: &mut Exported) -> Result<(), DataError> {
        let Self { path, builder, .. } = self;
        builder
            .into_inner()
            .and_then(|mut file| file.flush().map(|()| file))
            .and_then(|file| file.into_inner().map_err(std::io::IntoInnerError::into_error))
            .and_then(|file| file.sync_all())
            .map_err(|error| DataError::io(&path, "write", error))?;
        exported.files.push(path);
        Ok(())
    }
}

/// The sentence without line ends, which would make two of it.
fn one_line(sentence: &str) -> String {
    sentence.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Shares of a data set.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shares {
    /// To choose a checkpoint with.
    pub validation: f64,
    /// To score with.
    pub test: f64,
}

/// Writes `train.jsonl`, `val.jsonl` and `test.jsonl`, drawn by image: all sentences of an image stay together, and images of the
/// same content too. The images stay where they are. The same seed gives the same splits.
///
/// # Errors
/// [`DataError::Io`]; [`DataError::NothingUsable`] where there is no pair.
pub fn write_splits(
    data: &Dataset,
    folder: &Path,
    shares: Shares,
    seed: u64,
    limits: &ImageLimits,
) -> Result<Exported, DataError> {
    let mut exported = Exported { skipped: data.skipped.clone(), ..Exported::default() };
    let mut groups: Vec<Vec<&Item>> = Vec::new();
    let mut by_content: HashMap<ContentHash, usize> = HashMap::new();
    for item in data.items.iter().filter(|item| !item.sentences.is_empty()) {
        let Some(image) = &item.image else { continue };
        // Features have no content to compare.
        let known = match image.features() {
            Some(_) => None,
            None => match image.hash(limits) {
                Ok(hash) => Some(*by_content.entry(hash).or_insert(groups.len())),
                Err(error) => {
                    exported.skipped.push(Skipped::image(image, &error));
                    continue;
                }
            },
        };
        match known.and_then(|group| groups.get_mut(group)) {
            Some(group) => group.push(item),
            None => groups.push(vec![item]),
        }
    }
    let count = |share: f64| (groups.len() as f64 * share.clamp(0.0, 1.0)).round() as usize;
    let (validation, test) = (count(shares.validation), count(shares.test));
    let mut drawn: Vec<Split> = vec![Split::Train; groups.len()];
    for (place, group) in order(groups.len(), seed, Stream::Split).into_iter().enumerate() {
        if let Some(split) = drawn.get_mut(group) {
            *split = match place {
                place if place < test => Split::Test,
                place if place < test.saturating_add(validation) => Split::Validation,
                _ => Split::Train,
            };
        }
    }
    let mut files: [Vec<u8>; 3] = Default::default();
    for (group, split) in groups.into_iter().zip(drawn) {
        for item in group {
            let Some(image) = &item.image else { continue };
            let name = relative(folder, image)?;
            if let (Some(file), Some(count)) =
                (files.get_mut(split as usize), exported.images.get_mut(split as usize))
            {
                file.extend(line_of(&name, item, Some(split)));
                *count += 1;
            }
            exported.sentences += item.sentences.len();
        }
    }
    if exported.images.iter().all(|count| *count == 0) {
        return Err(DataError::NothingUsable {
            path: data.path.clone(),
            expected: "image with captions",
            skipped: exported.skipped.len(),
        });
    }
    for (split, lines) in Split::ALL.into_iter().zip(files).filter(|(_, lines)| !lines.is_empty()) {
        let file = folder.join(format!("{split}.jsonl"));
        durable::replace(&file, &lines)?;
        exported.files.push(file);
    }
    Ok(exported)
}

/// Makes two unpaired sets of the training split: `images.txt` and `sentences.txt`, each shuffled by itself. The truth is kept in
/// `alignment.jsonl`, for an oracle and for reports alone; validation and test pairs go to `val.jsonl` and `test.jsonl`.
///
/// # Errors
/// [`DataError::Io`]; [`DataError::NothingUsable`] where the training split has no pair.
pub fn write_unpaired(data: &Dataset, folder: &Path, seed: u64) -> Result<Exported, DataError> {
    let mut exported = Exported { skipped: data.skipped.clone(), ..Exported::default() };
    let (mut images, mut sentences) = (Vec::new(), Vec::new());
    let mut files: [Vec<u8>; 3] = Default::default();
    for item in data.items.iter().filter(|item| !item.sentences.is_empty()) {
        let Some(image) = &item.image else { continue };
        let name = relative(folder, image)?;
        if name.contains(['\n', '\r']) {
            exported.skipped.push(left_out(image, "a line end in the name"));
            continue;
        }
        if let Some(file) = files.get_mut(item.effective_split() as usize) {
            file.extend(line_of(&name, item, item.split));
        }
        exported.count(item);
        if item.effective_split() == Split::Train {
            images.push(name);
            sentences.extend(item.sentences.iter().map(|sentence| one_line(sentence)));
        }
    }
    if images.is_empty() {
        return Err(DataError::NothingUsable {
            path: data.path.clone(),
            expected: "image with captions in the training split",
            skipped: exported.skipped.len(),
        });
    }
    let lists = [("images.txt", images, Stream::Images), ("sentences.txt", sentences, Stream::Sentences)];
    for (name, entries, stream) in lists {
        let order = order(entries.len(), seed, stream);
        let lines: String =
            order.iter().filter_map(|at| entries.get(*at)).flat_map(|entry| [entry.as_str(), "\n"]).collect();
        let file = folder.join(name);
        durable::replace(&file, lines.as_bytes())?;
        exported.files.push(file);
    }
    let names = ["alignment.jsonl", "val.jsonl", "test.jsonl"];
    for (name, lines) in names.into_iter().zip(files).filter(|(_, lines)| !lines.is_empty()) {
        let file = folder.join(name);
        durable::replace(&file, &lines)?;
        exported.files.push(file);
    }
    Ok(exported)
}

/// The name of an image as a file in `folder` says it.
fn relative(folder: &Path, image: &ImageSource) -> Result<String, DataError> {
    let absolute = |path: &Path| path.canonicalize().or_else(|_| std::path::absolute(path));
    let failed = |error| DataError::io(image.path(), "find", error);
    let (from, to) = (absolute(folder).map_err(failed)?, absolute(image.path()).map_err(failed)?);
    let path = relative_path(&from, &to).to_string_lossy().into_owned();
    Ok(match image.place() {
        Some(place) => format!("{path}#{place}"),
        None => path,
    })
}

/// `to` as it is reached from the folder `from`, both absolute.
fn relative_path(from: &Path, to: &Path) -> PathBuf {
    let (from, to): (Vec<Component<'_>>, Vec<Component<'_>>) =
        (from.components().collect(), to.components().collect());
    let common = from.iter().zip(&to).take_while(|(from, to)| from == to).count();
    // Only the root in common: the way up and down again would be longer, and break when either moves.
    if common <= 1 {
        return to.iter().collect();
    }
    let up = from.iter().skip(common).map(|_| Component::ParentDir);
    up.chain(to.iter().skip(common).copied()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lead_from_the_folder_to_the_image() {
        let way = |from: &str, to: &str| {
            relative_path(Path::new(from), Path::new(to)).to_string_lossy().into_owned()
        };
        assert_eq!(way("/data/out", "/data/out/a/b.jpg"), "a/b.jpg");
        assert_eq!(way("/data/out", "/data/photos/b.jpg"), "../photos/b.jpg");
        assert_eq!(way("/data/out", "/other/b.jpg"), "/other/b.jpg");
    }

    #[test]
    fn names_are_safe_and_stand_once() {
        let mut names = Names::default();
        let png = b"\x89PNG\r\n\x1a\n";
        assert_eq!(names.of("a/b c.jpg", png), "b_c.png");
        assert_eq!(names.of("x/B_C.gif", png), "B_C-2.png");
        assert_eq!(names.of("../..", b"?"), "_.bin");
        assert_eq!(names.of("shard.tar#..", png), "_.png");
    }
}
