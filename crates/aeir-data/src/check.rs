//! What is in data sets, and what is wrong with them: broken images, duplicates, leaks between training and test, texts that were
//! read in the wrong encoding.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use serde::Serialize;

use crate::dataset::{Dataset, Item};
use crate::decode::ImageLimits;
use crate::error::DataError;
use crate::hash::{ContentHash, hash_text};
use crate::image_source::ImageSource;
use crate::loader::{LoadOptions, Prepared, for_each_prepared_batch};
use crate::skipped::Skipped;
use crate::split::Split;

/// Examples that a report keeps of each finding.
const EXAMPLES: usize = 5;

/// Images decoded at once.
const BATCH: usize = 64;

/// What was found in one or several data sets.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct CheckReport {
    /// One entry a split of each data set.
    pub parts: Vec<PartReport>,
    /// Images that stand several times, by content.
    pub duplicate_images: Finding,
    /// Images of training, by content, that are also among those to validate or test with.
    pub leaked_images: Finding,
    /// Sentences to validate or test with that are also among those of training, in any case.
    pub leaked_sentences: Finding,
    /// Images of training and of test whose names differ in case, punctuation or suffix alone.
    pub near_names: Finding,
    /// Whether there is anything to train or to score with.
    pub usable: bool,
}

/// One split of one data set.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct PartReport {
    /// The file or folder.
    pub path: PathBuf,
    /// What it was read as.
    pub format: String,
    /// The split; as the name of the file says where the items don't.
    pub split: Split,
    /// Images, those that can't be used among them.
    pub images: usize,
    /// Images that decode, or are features whose values are finite.
    pub usable_images: usize,
    /// Sentences that can be used.
    pub sentences: usize,
    /// Different sentences among them.
    pub different_sentences: usize,
    /// Images with at least one sentence.
    pub pairs: usize,
    /// Sentences an image.
    pub captions_per_image: Option<Spread>,
    /// Words a sentence.
    pub words: Option<Spread>,
    /// Characters a sentence.
    pub characters: Option<Spread>,
    /// Whether the images come as features.
    pub features: bool,
    /// Pixels; of features the number of regions.
    pub width: Option<Spread>,
    /// Pixels; of features the length of a vector.
    pub height: Option<Spread>,
    /// Files that are not there.
    pub missing: Finding,
    /// Images that are there and can't be used.
    pub broken: Finding,
    /// Items that the reader left out.
    pub skipped: Finding,
    /// Sentences that were probably read or written in a wrong encoding.
    pub encoding: Finding,
    /// Remarks of the reader.
    pub notes: Vec<String>,
}

/// How often something was found, with the first few.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How often.
    pub count: usize,
    /// The first few.
    pub examples: Vec<String>,
}

impl Finding {
    fn add(&mut self, example: impl FnOnce() -> String) {
        self.count += 1;
        if self.examples.len() < EXAMPLES {
            self.examples.push(example());
        }
    }
}

/// Smallest, middle and largest of some numbers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// The smallest.
    pub min: usize,
    /// Half of them are below.
    pub median: usize,
    /// The mean.
    pub mean: f64,
    /// The largest.
    pub max: usize,
}

impl Spread {
    fn of(mut numbers: Vec<usize>) -> Option<Self> {
        numbers.sort_unstable();
        let (min, max) = (*numbers.first()?, *numbers.last()?);
        let mean = numbers.iter().map(|number| *number as f64).sum::<f64>() / numbers.len() as f64;
        Some(Self { min, median: *numbers.get(numbers.len() / 2)?, mean, max })
    }
}

/// An image while it is checked.
struct Checked<'a> {
    part: usize,
    split: Split,
    item: &'a Item,
    source: &'a ImageSource,
}

/// Looks at every image and sentence. `progress` is told how many images of how many are done.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # image::RgbImage::from_pixel(8, 6, image::Rgb([200, 30, 20])).save(folder.path().join("red.png"))?;
/// let path = folder.path().join("pairs.jsonl");
/// std::fs::write(&path, r#"{"image": "red.png", "captions": ["a red card"]}
/// {"image": "red.png", "captions": ["A red card"], "split": "test"}"#)?;
/// use aeir_data::{Dataset, ImageLimits, ReadOptions, check};
/// let data = Dataset::open(&path, &ReadOptions::default())?;
/// let report = check(&[data], &ImageLimits::default(), |_, _| ());
/// assert_eq!((report.leaked_images.count, report.leaked_sentences.count), (1, 1));
/// # Ok(()) }
/// ```
pub fn check(data: &[Dataset], limits: &ImageLimits, mut progress: impl FnMut(usize, usize)) -> CheckReport {
    let mut parts = Vec::new();
    let mut images = Vec::new();
    for data in data {
        let of_name = Split::of_file_name(&data.path);
        let mut of_split: BTreeMap<Split, Vec<&Item>> = BTreeMap::new();
        for item in &data.items {
            of_split.entry(item.split.or(of_name).unwrap_or(Split::Train)).or_default().push(item);
        }
        let first = parts.len();
        for (split, items) in of_split {
            let part = parts.len();
            images.extend(
                items
                    .iter()
                    .filter_map(|item| Some(Checked { part, split, item, source: item.image.as_ref()? })),
            );
            parts.push(part_of(data, split, &items));
        }
        if let Some(part) = parts.get_mut(first) {
            // What was left out has no split: it is told once.
            part.notes.clone_from(&data.notes);
            for Skipped { item, line, reason, .. } in &data.skipped {
                let line = line.map_or_else(String::new, |line| format!("line {line}: "));
                // An empty line has no name.
                let item = if item.is_empty() { String::new() } else { format!("{item}: ") };
                part.skipped.add(|| format!("{line}{item}{reason}"));
            }
        }
    }
    let (duplicate_images, leaked_images) = look_at_images(&mut parts, &images, limits, &mut progress);
    let usable = parts.iter().any(|part| part.usable_images > 0)
        || parts.iter().all(|part| part.images == 0) && parts.iter().any(|part| part.sentences > 0);
    CheckReport {
        duplicate_images,
        leaked_images,
        leaked_sentences: leaked_sentences(data),
        near_names: near_names(&images),
        parts,
        usable,
    }
}

/// What the table of contents says of one split.
fn part_of(data: &Dataset, split: Split, items: &[&Item]) -> PartReport {
    let sentences: Vec<&String> = items.iter().flat_map(|item| &item.sentences).collect();
    let mut different: Vec<ContentHash> = sentences.iter().map(|sentence| hash_text(sentence)).collect();
    different.sort_unstable();
    different.dedup();
    let with_image = || items.iter().filter(|item| item.image.is_some());
    let mut encoding = Finding::default();
    for sentence in &sentences {
        if let Some(what) = wrong_encoding(sentence) {
            encoding.add(|| format!("{}: {what}", shown(sentence)));
        }
    }
    PartReport {
        path: data.path.clone(),
        format: data.format.to_string(),
        split,
        images: with_image().count(),
        usable_images: 0,
        sentences: sentences.len(),
        different_sentences: different.len(),
        pairs: with_image().filter(|item| !item.sentences.is_empty()).count(),
        captions_per_image: Spread::of(with_image().map(|item| item.sentences.len()).collect()),
        words: Spread::of(sentences.iter().map(|text| text.split_whitespace().count()).collect()),
        characters: Spread::of(sentences.iter().map(|text| text.chars().count()).collect()),
        features: false,
        width: None,
        height: None,
        missing: Finding::default(),
        broken: Finding::default(),
        skipped: Finding::default(),
        encoding,
        notes: Vec::new(),
    }
}

/// What one image turned out to be.
struct Seen {
    width: usize,
    height: usize,
    hash: Option<ContentHash>,
}

/// Decodes all images; finds those that stand several times, and those that stand in training and elsewhere.
fn look_at_images(
    parts: &mut [PartReport],
    images: &[Checked<'_>],
    limits: &ImageLimits,
    progress: &mut impl FnMut(usize, usize),
) -> (Finding, Finding) {
    let sources: Vec<ImageSource> = images.iter().map(|image| image.source.clone()).collect();
    let finite = finite_files(&sources);
    let mut seen: Vec<Result<Seen, DataError>> = Vec::with_capacity(images.len());
    let look = |index: usize, decoded: Result<crate::decode::DecodedImage, DataError>| {
        let value = match sources.get(index).and_then(ImageSource::features) {
            Some(row) => Ok(Seen {
                width: row.features.regions_of(row.image),
                height: row.features.dimension(),
                hash: None,
            }),
            None => decoded.map(|decoded| Seen {
                width: decoded.image.width() as usize,
                height: decoded.image.height() as usize,
                hash: Some(decoded.hash),
            }),
        };
        Prepared { value, bytes: size_of::<Seen>() }
    };
    let options = LoadOptions { limits: *limits, batch_size: BATCH, ..LoadOptions::default() };
    let Ok(()) = for_each_prepared_batch(&sources, &options, look, |batch| {
        seen.extend(batch);
        progress(seen.len(), images.len());
        Ok::<(), std::convert::Infallible>(())
    });
    let mut sizes: Vec<(Vec<usize>, Vec<usize>)> = vec![Default::default(); parts.len()];
    let mut by_content: HashMap<ContentHash, Vec<usize>> = HashMap::new();
    for (index, (image, seen)) in images.iter().zip(&seen).enumerate() {
        let (Some(part), Some(sizes)) = (parts.get_mut(image.part), sizes.get_mut(image.part)) else {
            continue;
        };
        let of_file = finite.get(image.source.path()).and_then(|reason| reason.as_ref());
        match (seen, of_file) {
            (_, Some(reason)) => part.broken.add(|| format!("{}: {reason}", image.source)),
            (Ok(seen), None) => {
                part.usable_images += 1;
                part.features |= image.source.features().is_some();
                sizes.0.push(seen.width);
                sizes.1.push(seen.height);
                if let Some(hash) = seen.hash {
                    by_content.entry(hash).or_default().push(index);
                }
            }
            (Err(DataError::Io { source, .. }), None) if source.kind() == std::io::ErrorKind::NotFound => {
                part.missing.add(|| image.source.to_string());
            }
            (Err(error), None) => part.broken.add(|| {
                let Skipped { item, reason, .. } = Skipped::image(image.source, error);
                format!("{item}: {reason}")
            }),
        }
    }
    for (part, (widths, heights)) in parts.iter_mut().zip(sizes) {
        part.width = Spread::of(widths);
        part.height = Spread::of(heights);
    }
    repeated(images, by_content)
}

/// For each file of features, why its values can't be used.
fn finite_files(sources: &[ImageSource]) -> HashMap<PathBuf, Option<String>> {
    let mut files = HashMap::new();
    for row in sources.iter().filter_map(ImageSource::features) {
        files
            .entry(row.features.path().to_path_buf())
            .or_insert_with(|| row.features.check_finite().err().map(|error| error.with_causes()));
    }
    files
}

fn repeated(images: &[Checked<'_>], by_content: HashMap<ContentHash, Vec<usize>>) -> (Finding, Finding) {
    let mut groups: Vec<Vec<usize>> = by_content.into_values().filter(|group| group.len() > 1).collect();
    groups.sort_unstable();
    let (mut duplicates, mut leaked) = (Finding::default(), Finding::default());
    for group in groups {
        let of_group: Vec<&Checked<'_>> = group.iter().filter_map(|index| images.get(*index)).collect();
        let names =
            || of_group.iter().take(3).map(|image| image.source.to_string()).collect::<Vec<_>>().join(" = ");
        let training = of_group.iter().any(|image| image.split == Split::Train);
        if training && of_group.iter().any(|image| image.split != Split::Train) {
            leaked.add(names);
        }
        // The same file under two splits is a leak and no duplicate.
        let first = of_group.first().map(|image| image.source);
        if of_group.iter().any(|image| Some(image.source) != first) {
            duplicates.add(names);
        }
    }
    (duplicates, leaked)
}

fn leaked_sentences(data: &[Dataset]) -> Finding {
    let split_of = |data: &Dataset, item: &Item| {
        item.split.or_else(|| Split::of_file_name(&data.path)).unwrap_or(Split::Train)
    };
    let normal = |sentence: &str| hash_text(&sentence.to_lowercase());
    let items =
        || data.iter().flat_map(|data| data.items.iter().map(move |item| (split_of(data, item), item)));
    let training: std::collections::HashSet<ContentHash> = items()
        .filter(|(split, _)| *split == Split::Train)
        .flat_map(|(_, item)| &item.sentences)
        .map(|sentence| normal(sentence))
        .collect();
    let mut leaked = Finding::default();
    let held_out = items().filter(|(split, _)| *split != Split::Train).flat_map(|(_, item)| &item.sentences);
    for sentence in held_out.filter(|sentence| training.contains(&normal(sentence))) {
        leaked.add(|| shown(sentence));
    }
    leaked
}

/// Names that differ in case, punctuation or suffix alone: often one picture, saved twice.
fn near_names(images: &[Checked<'_>]) -> Finding {
    let mut training: HashMap<String, &str> = HashMap::new();
    for image in images.iter().filter(|image| image.split == Split::Train) {
        training.entry(plain(&image.item.id)).or_insert(&image.item.id);
    }
    let mut near = Finding::default();
    for image in images.iter().filter(|image| image.split != Split::Train) {
        let name = plain(&image.item.id);
        match training.get(&name) {
            Some(other) if !name.is_empty() && *other != image.item.id => {
                near.add(|| format!("{other} ~ {}", image.item.id));
            }
            _ => {}
        }
    }
    near
}

/// The name without its suffix, in small letters, without what is neither letter nor digit.
fn plain(id: &str) -> String {
    let start = id.rfind(['/', '\\']).map_or(0, |slash| slash + 1);
    let end = id.rfind('.').filter(|dot| *dot > start).unwrap_or(id.len());
    let name = id.get(..end).unwrap_or(id).to_lowercase();
    let name = name.trim_end_matches(" - copy").trim_end_matches("_copy").trim_end_matches(" copy");
    name.chars().filter(|letter| letter.is_alphanumeric()).collect()
}

/// What is wrong with the letters of a sentence.
fn wrong_encoding(text: &str) -> Option<&'static str> {
    // UTF-8 that was read as Latin-1 or Windows-1252.
    const READ_WRONG: [&str; 7] = ["Ã©", "Ã¨", "Ã¤", "Ã¶", "Ã¼", "â€", "Â "];
    const ENTITIES: [&str; 5] = ["&amp;", "&quot;", "&#39;", "&lt;", "&nbsp;"];
    if text.contains('\u{fffd}') {
        return Some("a replacement character");
    }
    if READ_WRONG.iter().any(|wrong| text.contains(wrong)) {
        return Some("UTF-8 read as Latin-1");
    }
    if text.chars().any(|letter| letter.is_control() && !matches!(letter, '\t' | '\n' | '\r')) {
        return Some("a control character");
    }
    if ENTITIES.iter().any(|entity| text.contains(entity)) {
        return Some("an HTML entity");
    }
    (text.starts_with("b'") && text.ends_with('\'') && text.len() > 3).then_some("printed bytes")
}

fn shown(text: &str) -> String {
    const SHOWN: usize = 60;
    let mut shown: String = text.chars().take(SHOWN).flat_map(char::escape_debug).collect();
    if text.chars().nth(SHOWN).is_some() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_compared_without_suffix_and_punctuation() {
        assert_eq!(plain("photos/IMG_12.JPG"), plain("photos/img-12.png"));
        assert_eq!(plain("a/Red car - Copy.jpg"), plain("a/red_car.jpg"));
        assert_ne!(plain("a/1.jpg"), plain("b/1.jpg"));
        assert_eq!(plain("a.b/c"), "abc");
    }

    #[test]
    fn letters_that_tell_of_a_wrong_encoding() {
        for (text, wrong) in [
            ("a cafÃ©", true),
            ("itâ€™s", true),
            ("a \u{fffd} b", true),
            ("tom &amp; jerry", true),
            ("bell\u{7}", true),
            ("b'a dog'", true),
            ("a café, it’s fine", false),
            ("b is a letter'", false),
        ] {
            assert_eq!(wrong_encoding(text).is_some(), wrong, "{text}");
        }
    }

    #[test]
    fn a_spread_has_its_middle() {
        assert_eq!(Spread::of(vec![5, 1, 3]), Some(Spread { min: 1, median: 3, mean: 3.0, max: 5 }));
        assert_eq!(Spread::of(Vec::new()), None);
    }
}
