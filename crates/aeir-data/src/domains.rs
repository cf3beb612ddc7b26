//! Source and target domains. Each role has its own type, and none turns into another: the pairs of the target
//! cannot get into training by a slip.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::captions::{CaptionFile, CaptionedImage, Split, read_captions, sentence};
use crate::error::DataError;
use crate::lines::{LineContent, open_lines};
use crate::skipped::Skipped;

/// Files with one of these suffixes (in any case) are taken from a folder. What they are is decided by their
/// content.
pub const IMAGE_SUFFIXES: &[&str] = &["jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp"];

/// No path is longer; some systems end at 4,096.
const MAX_PATH_BYTES: usize = 32 * 1024;

/// Four bytes are the most a character takes: the limit in characters is checked afterwards.
const MAX_SENTENCE_BYTES: usize = 4 * crate::captions::MAX_SENTENCE_CHARACTERS;

/// The source domain: images with their sentences, for training.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ParallelDomain {
    /// For people to read: the folder the caption file lies in.
    pub name: String,
    /// The training split. Never empty.
    pub train: Vec<CaptionedImage>,
    /// The validation split. May be empty.
    pub validation: Vec<CaptionedImage>,
    /// How many test items the file had. They are not here.
    pub test_left_out: usize,
    /// What the reader left out.
    pub skipped: Vec<Skipped>,
}

impl ParallelDomain {
    /// Takes the training and the validation items; test items are left out.
    ///
    /// # Errors
    /// [`DataError::NothingUsable`] where no item is for training.
    pub fn from_captions(file: CaptionFile) -> Result<Self, DataError> {
        let name = domain_name(&file.path);
        let mut domain =
            Self { name, train: Vec::new(), validation: Vec::new(), test_left_out: 0, skipped: file.skipped };
        for item in file.items {
            match item.effective_split() {
                Split::Train => domain.train.push(item),
                Split::Validation => domain.validation.push(item),
                Split::Test => domain.test_left_out += 1,
            }
        }
        if domain.train.is_empty() {
            return Err(DataError::NothingUsable {
                path: file.path,
                expected: "image with captions in the training split",
                skipped: domain.skipped.len() + domain.validation.len() + domain.test_left_out,
            });
        }
        Ok(domain)
    }

    /// [`read_captions`], then [`ParallelDomain::from_captions`].
    ///
    /// # Errors
    /// Those of the two.
    pub fn read(path: &Path) -> Result<Self, DataError> {
        Self::from_captions(read_captions(path)?)
    }
}

fn domain_name(path: &Path) -> String {
    path.parent()
        .and_then(Path::file_name)
        .or_else(|| path.file_stem())
        .map_or_else(|| "source".to_owned(), |name| name.to_string_lossy().into_owned())
}

/// The images of the target domain, without any sentence.
#[derive(Debug, Clone)]
pub struct TargetImages {
    paths: Vec<PathBuf>,
    skipped: Vec<Skipped>,
}

impl TargetImages {
    /// Reads a list file (one path a line, absolute or relative to the folder of the file) or a folder.
    ///
    /// A list keeps its order; a path that stands twice is taken once. A folder is searched with its subfolders for
    /// files with one of the [`IMAGE_SUFFIXES`], sorted by path; names that start with a dot are passed over
    /// (previews and bookkeeping of other programs), links are followed, each folder is entered once. Whether an image
    /// exists and decodes is seen when it is decoded.
    ///
    /// # Errors
    /// [`DataError::Io`], [`DataError::EmptyFile`], [`DataError::WrongKind`] where the list is a caption file or an image,
    /// [`DataError::NothingUsable`] where no path is left.
    pub fn read(path: &Path) -> Result<Self, DataError> {
        let metadata = fs::metadata(path).map_err(|error| DataError::io(path, "read", error))?;
        let images = if metadata.is_dir() { Self::from_folder(path)? } else { Self::from_list(path)? };
        if images.paths.is_empty() {
            return Err(DataError::NothingUsable {
                path: path.to_path_buf(),
                expected: "image path",
                skipped: images.skipped.len(),
            });
        }
        Ok(images)
    }

    fn from_list(path: &Path) -> Result<Self, DataError> {
        let folder = path.parent().unwrap_or(Path::new(""));
        let mut images = Self { paths: Vec::new(), skipped: Vec::new() };
        let mut first_line: HashMap<PathBuf, usize> = HashMap::new();
        let mut lines = open_lines(path, MAX_PATH_BYTES, "an image path a line")?;
        lines.refuse_image(path, "a folder or a list with an image path a line")?;
        while let Some((line, content)) =
            lines.next_line().map_err(|error| DataError::io(path, "read", error))?
        {
            let text = match content {
                LineContent::Text(text) => text,
                LineContent::NotUtf8 => {
                    images.skipped.push(Skipped::line(path, line, "", "not UTF-8"));
                    continue;
                }
                LineContent::TooLong => {
                    let reason = format!("longer than {MAX_PATH_BYTES} bytes");
                    images.skipped.push(Skipped::line(path, line, "", reason));
                    continue;
                }
            };
            let text = text.trim();
            if text.is_empty() {
                continue;
            }
            if images.paths.is_empty() {
                refuse_json_lines(path, line, text, "an image path a line")?;
            }
            let image = folder.join(text);
            match first_line.get(&image) {
                Some(first) => {
                    let reason = format!("listed before, on line {first}");
                    images.skipped.push(Skipped::line(path, line, text, reason));
                }
                None => {
                    first_line.insert(image.clone(), line);
                    images.paths.push(image);
                }
            }
        }
        Ok(images)
    }

    fn from_folder(root: &Path) -> Result<Self, DataError> {
        let mut images = Self { paths: Vec::new(), skipped: Vec::new() };
        // A link may lead back up, or to a folder that is reached by two ways: entered once, by its real path.
        let mut entered = HashSet::new();
        let mut waiting = vec![root.to_path_buf()];
        while let Some(folder) = waiting.pop() {
            match images.enter(&folder, &mut entered) {
                Ok(subfolders) => waiting.extend(subfolders.into_iter().rev()),
                // The folder the user named must be readable; one below it is left out and named.
                Err(error) if folder == root => return Err(DataError::io(root, "read", error)),
                Err(error) => images.skipped.push(Skipped {
                    item: folder.display().to_string(),
                    line: None,
                    file: None,
                    reason: format!("cannot read the folder: {error}"),
                }),
            }
        }
        images.paths.sort();
        Ok(images)
    }

    /// Takes the images of one folder and returns its subfolders, sorted.
    fn enter(&mut self, folder: &Path, entered: &mut HashSet<PathBuf>) -> std::io::Result<Vec<PathBuf>> {
        if !entered.insert(folder.canonicalize()?) {
            return Ok(Vec::new());
        }
        let mut subfolders = Vec::new();
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            if entry.file_name().as_encoded_bytes().starts_with(b".") {
                continue;
            }
            let path = entry.path();
            // Follows links. One that leads nowhere counts by its suffix: decoding will say that it is missing.
            if path.is_dir() {
                subfolders.push(path);
            } else if has_image_suffix(&path) {
                self.paths.push(path);
            }
        }
        subfolders.sort();
        Ok(subfolders)
    }

    /// The images, in the order of the list, or sorted for a folder. Never empty.
    pub fn paths(&self) -> &[PathBuf] {
        &self.paths
    }

    /// What was left out.
    pub fn skipped(&self) -> &[Skipped] {
        &self.skipped
    }
}

fn has_image_suffix(path: &Path) -> bool {
    path.extension()
        .and_then(|suffix| suffix.to_str())
        .is_some_and(|suffix| IMAGE_SUFFIXES.iter().any(|known| known.eq_ignore_ascii_case(suffix)))
}

/// A caption file given as a list would be read without complaint, its braces as words, its pairs in order.
fn refuse_json_lines(path: &Path, line: usize, text: &str, expected: &'static str) -> Result<(), DataError> {
    let looks_like_json = text.starts_with('{')
        && serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(text).is_ok();
    if !looks_like_json {
        return Ok(());
    }
    Err(DataError::WrongKind { path: path.to_path_buf(), line: Some(line), expected, got: "a line of JSON" })
}

/// The sentences of the target domain, without any image.
#[derive(Debug, Clone)]
pub struct TargetSentences {
    sentences: Vec<String>,
    skipped: Vec<Skipped>,
}

impl TargetSentences {
    /// Reads one sentence a line, trimmed. The same sentence may stand in it several times.
    ///
    /// Empty lines, lines that are not UTF-8 and those over [`crate::MAX_SENTENCE_CHARACTERS`] are left out and
    /// listed in [`TargetSentences::skipped`].
    ///
    /// # Errors
    /// [`DataError::Io`], [`DataError::NotAFile`], [`DataError::EmptyFile`], [`DataError::WrongKind`] where it is a
    /// caption file or an image, [`DataError::NothingUsable`] where no sentence is left.
    pub fn read(path: &Path) -> Result<Self, DataError> {
        let mut sentences = Vec::new();
        let mut skipped = Vec::new();
        let mut lines = open_lines(path, MAX_SENTENCE_BYTES, "a sentence a line")?;
        lines.refuse_image(path, "a sentence a line")?;
        while let Some((line, content)) =
            lines.next_line().map_err(|error| DataError::io(path, "read", error))?
        {
            let text = match content {
                LineContent::Text(text) => text,
                LineContent::NotUtf8 => {
                    skipped.push(Skipped::line(path, line, "", "not UTF-8"));
                    continue;
                }
                LineContent::TooLong => {
                    let reason =
                        format!("longer than {} characters", crate::captions::MAX_SENTENCE_CHARACTERS);
                    skipped.push(Skipped::line(path, line, "", reason));
                    continue;
                }
            };
            if text.trim().is_empty() {
                skipped.push(Skipped::line(path, line, "", "empty line"));
                continue;
            }
            if sentences.is_empty() {
                refuse_json_lines(path, line, text.trim(), "a sentence a line")?;
            }
            match sentence(&text) {
                Ok(text) => sentences.push(text.to_owned()),
                Err(reason) => skipped.push(Skipped::line(path, line, &text, reason)),
            }
        }
        if sentences.is_empty() {
            return Err(DataError::NothingUsable {
                path: path.to_path_buf(),
                expected: "sentence",
                skipped: skipped.len(),
            });
        }
        Ok(Self { sentences, skipped })
    }

    /// The sentences, in the order of the file. Never empty.
    pub fn sentences(&self) -> &[String] {
        &self.sentences
    }

    /// What was left out.
    pub fn skipped(&self) -> &[Skipped] {
        &self.skipped
    }
}

/// Images and captions whose alignment is known, for scoring alone.
///
/// No type of training takes it:
/// ```compile_fail
/// # fn main() -> Result<(), aeir_data::DataError> {
/// let pairs = aeir_data::TestPairs::read("test.jsonl".as_ref(), None)?;
/// let domain: aeir_data::ParallelDomain = pairs.into();
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct TestPairs {
    images: Vec<PathBuf>,
    captions: Vec<String>,
    owners: Vec<usize>,
    note: Option<String>,
    skipped: Vec<Skipped>,
}

impl TestPairs {
    /// Reads a caption file and takes one split of it.
    ///
    /// Without `split`: the lines marked `test`, if there are any; else, if no line names a split, all of them; else
    /// all of them too, but then [`TestPairs::note`] says that lines were scored that are marked for something else.
    /// With `split`, a line that names none counts as `train`.
    ///
    /// # Errors
    /// Those of [`read_captions`], and [`DataError::NothingUsable`] where the split has no item.
    pub fn read(path: &Path, split: Option<Split>) -> Result<Self, DataError> {
        let CaptionFile { path, mut items, skipped } = read_captions(path)?;
        let mut note = None;
        let marked_test = items.iter().any(|item| item.split == Some(Split::Test));
        match split {
            Some(split) => items.retain(|item| item.effective_split() == split),
            None if marked_test => items.retain(|item| item.split == Some(Split::Test)),
            None if items.iter().any(|item| item.split.is_some()) => {
                note = Some(format!(
                    "`{}` marks no line as test: all {} images are scored, those marked train or val among them",
                    path.display(),
                    items.len()
                ));
            }
            None => {}
        }
        if items.is_empty() {
            return Err(DataError::NothingUsable {
                path,
                expected: "image with captions in the chosen split",
                skipped: skipped.len(),
            });
        }
        Ok(Self::flatten(items, note, skipped))
    }

    fn flatten(items: Vec<CaptionedImage>, note: Option<String>, skipped: Vec<Skipped>) -> Self {
        let mut pairs = Self { images: Vec::new(), captions: Vec::new(), owners: Vec::new(), note, skipped };
        // Taken from several splits an image can still be there twice; it is one candidate.
        let mut position: HashMap<PathBuf, usize> = HashMap::new();
        for item in items {
            let owner = *position.entry(item.image.clone()).or_insert(pairs.images.len());
            if owner == pairs.images.len() {
                pairs.images.push(item.image);
            }
            pairs.owners.extend(item.captions.iter().map(|_| owner));
            pairs.captions.extend(item.captions);
        }
        pairs
    }

    /// The images, each once. Never empty.
    pub fn images(&self) -> &[PathBuf] {
        &self.images
    }

    /// The captions of all images.
    pub fn captions(&self) -> &[String] {
        &self.captions
    }

    /// For each caption the index of its image in [`TestPairs::images`].
    pub fn owners(&self) -> &[usize] {
        &self.owners
    }

    /// A warning to show beside the scores.
    pub fn note(&self) -> Option<&str> {
        self.note.as_deref()
    }

    /// What the reader left out.
    pub fn skipped(&self) -> &[Skipped] {
        &self.skipped
    }
}

/// The true pairing of the target's training halves: for the oracle and for reports, never for a method.
#[derive(Debug, Clone)]
pub struct AlignedTarget {
    items: Vec<CaptionedImage>,
    skipped: Vec<Skipped>,
}

impl AlignedTarget {
    /// Reads the training items of a caption file; validation and test items are left out.
    ///
    /// # Errors
    /// Those of [`read_captions`], and [`DataError::NothingUsable`] where no item is for training.
    pub fn read(path: &Path) -> Result<Self, DataError> {
        let domain = ParallelDomain::from_captions(read_captions(path)?)?;
        Ok(Self { items: domain.train, skipped: domain.skipped })
    }

    /// The pairs. Never empty.
    pub fn items(&self) -> &[CaptionedImage] {
        &self.items
    }

    /// What the reader left out.
    pub fn skipped(&self) -> &[Skipped] {
        &self.skipped
    }
}
