//! Source and target domains. Each role has its own type, and none turns into another: the pairs of the target
//! cannot get into training by a slip.

use std::collections::HashMap;
use std::path::Path;

use crate::dataset::{Dataset, Format, Item, ReadOptions};
use crate::error::DataError;
use crate::hash::hash_text;
use crate::image_source::ImageSource;
use crate::skipped::Skipped;
use crate::split::Split;

/// An image with its sentences: at least one, trimmed, none empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaptionedImage {
    /// Where the image is.
    pub image: ImageSource,
    /// In the order of the data set.
    pub captions: Vec<String>,
}

/// The items that are whole pairs; how many are not.
fn pairs(items: Vec<Item>) -> (Vec<(Split, CaptionedImage)>, usize) {
    let count = items.len();
    let pairs: Vec<_> = items
        .into_iter()
        .filter_map(|item| {
            let split = item.effective_split();
            let image = item.image.filter(|_| !item.sentences.is_empty())?;
            Some((split, CaptionedImage { image, captions: item.sentences }))
        })
        .collect();
    let left_out = count - pairs.len();
    (pairs, left_out)
}

/// Refuses a list that has one half of the pairs alone.
fn refuse_half(data: &Dataset) -> Result<(), DataError> {
    let got = match data.format {
        Format::ImageList => "a list of images",
        Format::SentenceList => "a list of sentences",
        _ => return Ok(()),
    };
    Err(DataError::WrongKind {
        path: data.path.clone(),
        line: None,
        expected: "images with their sentences",
        got,
    })
}

/// The source domain: images with their sentences, for training. No test item is in it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ParallelDomain {
    /// For people to read: the folder, or the folder the file lies in.
    pub name: String,
    /// The training split. Never empty.
    pub train: Vec<CaptionedImage>,
    /// The validation split. May be empty.
    pub validation: Vec<CaptionedImage>,
    /// How many test items the data set had. They are not here.
    pub test_left_out: usize,
    /// Remarks to show to the user.
    pub notes: Vec<String>,
    /// What the reader left out.
    pub skipped: Vec<Skipped>,
}

impl ParallelDomain {
    /// Takes the training and the validation items; test items are left out.
    ///
    /// # Errors
    /// [`DataError::NothingUsable`] where no item is for training; [`DataError::WrongKind`] for a list of images or sentences
    /// alone.
    pub fn from_dataset(data: Dataset) -> Result<Self, DataError> {
        refuse_half(&data)?;
        let (pairs, without) = pairs(data.items);
        let mut domain = Self {
            name: domain_name(&data.path),
            train: Vec::new(),
            validation: Vec::new(),
            test_left_out: 0,
            notes: data.notes,
            skipped: data.skipped,
        };
        domain.notes.extend(without_pair(&data.path, without));
        for (split, item) in pairs {
            match split {
                Split::Train => domain.train.push(item),
                Split::Validation => domain.validation.push(item),
                Split::Test => domain.test_left_out += 1,
            }
        }
        if domain.train.is_empty() {
            return Err(DataError::NothingUsable {
                path: data.path,
                expected: "image with captions in the training split",
                skipped: domain.skipped.len() + domain.validation.len() + domain.test_left_out + without,
            });
        }
        Ok(domain)
    }

    /// [`Dataset::open`], then [`ParallelDomain::from_dataset`]. Where a format has a file a split, the test split is not
    /// opened.
    ///
    /// # Errors
    /// Those of the two.
    pub fn read(path: &Path) -> Result<Self, DataError> {
        Self::read_with(path, &ReadOptions::default())
    }

    /// [`ParallelDomain::read`], with options.
    ///
    /// # Errors
    /// Those of [`ParallelDomain::read`].
    pub fn read_with(path: &Path, options: &ReadOptions) -> Result<Self, DataError> {
        let options = options.of_splits(&[Split::Train, Split::Validation]);
        Self::from_dataset(Dataset::open(path, &options)?)
    }
}

fn without_pair(path: &Path, count: usize) -> Option<String> {
    (count > 0).then(|| {
        format!("`{}`: {count} items have no image or no usable sentence and are left out", path.display())
    })
}

fn domain_name(path: &Path) -> String {
    let folder = if path.is_dir() { Some(path) } else { path.parent() };
    folder
        .and_then(Path::file_name)
        .or_else(|| path.file_stem())
        .map_or_else(|| "source".to_owned(), |name| name.to_string_lossy().into_owned())
}

/// The images of the target domain, without any sentence.
///
/// Not even by way of a parallel data set does a sentence come with its image:
/// ```compile_fail
/// # fn main() -> Result<(), aeir_data::DataError> {
/// let images = aeir_data::TargetImages::read("target.jsonl".as_ref())?;
/// let pairs: &[aeir_data::CaptionedImage] = images.images();
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct TargetImages {
    images: Vec<ImageSource>,
    notes: Vec<String>,
    skipped: Vec<Skipped>,
}

impl TargetImages {
    /// Reads a list file (one path a line, absolute or relative to the folder of the file), a folder, or the images of any
    /// other data set.
    ///
    /// A list keeps its order; a path that stands twice is taken once. A folder is searched with its subfolders for
    /// files with one of the [`IMAGE_SUFFIXES`](crate::IMAGE_SUFFIXES), sorted by path; names that start with a dot are passed
    /// over, links are followed, each folder is entered once. Of a data set with splits the training images are taken, and
    /// nothing of its sentences. Whether an image exists and decodes is seen when it is decoded.
    ///
    /// # Errors
    /// [`DataError::Io`], [`DataError::EmptyFile`], [`DataError::WrongKind`] where the list is an image,
    /// [`DataError::NothingUsable`] where no image is left, and what the reader of a data set finds wrong.
    pub fn read(path: &Path) -> Result<Self, DataError> {
        Self::read_with(path, &ReadOptions::default())
    }

    /// [`TargetImages::read`], with options.
    ///
    /// # Errors
    /// Those of [`TargetImages::read`].
    pub fn read_with(path: &Path, options: &ReadOptions) -> Result<Self, DataError> {
        Self::from_dataset(Dataset::open_images(path, &options.of_splits(&[Split::Train]))?)
    }

    /// The images of the training split, each once.
    ///
    /// # Errors
    /// [`DataError::NothingUsable`] where there is none.
    pub fn from_dataset(data: Dataset) -> Result<Self, DataError> {
        let mut images = Self { images: Vec::new(), notes: data.notes, skipped: data.skipped };
        let mut held_out = 0;
        for item in data.items {
            match (item.effective_split(), item.image) {
                (Split::Train, Some(image)) => images.images.push(image),
                (_, Some(_)) => held_out += 1,
                (_, None) => {}
            }
        }
        images.notes.extend(held_out_note(&data.path, held_out, "images"));
        if images.images.is_empty() {
            return Err(DataError::NothingUsable {
                path: data.path,
                expected: "image for training",
                skipped: images.skipped.len() + held_out,
            });
        }
        Ok(images)
    }

    /// The first `count` of them, at least one.
    #[must_use]
    pub fn first(mut self, count: usize) -> Self {
        self.images.truncate(count.max(1));
        self
    }

    /// The images, in the order of the list, or sorted for a folder. Never empty.
    pub fn images(&self) -> &[ImageSource] {
        &self.images
    }

    /// Remarks to show to the user.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// What was left out.
    pub fn skipped(&self) -> &[Skipped] {
        &self.skipped
    }
}

fn held_out_note(path: &Path, count: usize, what: &str) -> Option<String> {
    (count > 0)
        .then(|| format!("`{}`: {count} {what} of the val and test splits are left out", path.display()))
}

/// The sentences of the target domain, without any image.
#[derive(Debug, Clone)]
pub struct TargetSentences {
    sentences: Vec<String>,
    notes: Vec<String>,
    skipped: Vec<Skipped>,
}

impl TargetSentences {
    /// Reads one sentence a line, trimmed, or the sentences of any other data set. The same sentence may stand in it several
    /// times.
    ///
    /// Empty lines, lines that are not UTF-8 and those over [`crate::MAX_SENTENCE_CHARACTERS`] are left out and
    /// listed in [`TargetSentences::skipped`]. Of a data set with splits the training sentences are taken. Where it also has
    /// images, the sentences are put into an order that says nothing about which image they belong to.
    ///
    /// # Errors
    /// [`DataError::Io`], [`DataError::EmptyFile`], [`DataError::WrongKind`] for an image, [`DataError::NothingUsable`] where no
    /// sentence is left, and what the reader of a data set finds wrong.
    pub fn read(path: &Path) -> Result<Self, DataError> {
        Self::read_with(path, &ReadOptions::default())
    }

    /// [`TargetSentences::read`], with options.
    ///
    /// # Errors
    /// Those of [`TargetSentences::read`].
    pub fn read_with(path: &Path, options: &ReadOptions) -> Result<Self, DataError> {
        Self::from_dataset(Dataset::open_sentences(path, &options.of_splits(&[Split::Train]))?)
    }

    /// The sentences of the training split.
    ///
    /// # Errors
    /// [`DataError::NothingUsable`] where there is none.
    pub fn from_dataset(data: Dataset) -> Result<Self, DataError> {
        let mut sentences = Self { sentences: Vec::new(), notes: data.notes, skipped: data.skipped };
        let (mut held_out, mut with_image) = (0, false);
        for item in data.items {
            with_image |= item.image.is_some();
            match item.effective_split() {
                Split::Train => sentences.sentences.extend(item.sentences),
                Split::Validation | Split::Test => held_out += item.sentences.len(),
            }
        }
        sentences.notes.extend(held_out_note(&data.path, held_out, "sentences"));
        if sentences.sentences.is_empty() {
            return Err(DataError::NothingUsable {
                path: data.path,
                expected: "sentence",
                skipped: sentences.skipped.len() + held_out,
            });
        }
        if with_image {
            // A sentence's place in the set would give its image away.
            sentences.sentences.sort_by_cached_key(|sentence| hash_text(sentence));
        }
        Ok(sentences)
    }

    /// The first `count` of them, at least one.
    #[must_use]
    pub fn first(mut self, count: usize) -> Self {
        self.sentences.truncate(count.max(1));
        self
    }

    /// The sentences, in the order of the list. Never empty.
    pub fn sentences(&self) -> &[String] {
        &self.sentences
    }

    /// Remarks to show to the user.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// What was left out.
    pub fn skipped(&self) -> &[Skipped] {
        &self.skipped
    }
}

/// Images and captions whose alignment is known, for scoring alone.
///
/// No type of training takes it, whatever the format was:
/// ```compile_fail
/// # fn main() -> Result<(), aeir_data::DataError> {
/// let pairs = aeir_data::TestPairs::read("test.jsonl".as_ref(), None)?;
/// let domain: aeir_data::ParallelDomain = pairs.into();
/// # Ok(()) }
/// ```
/// Nor can its items be put among those of training:
/// ```compile_fail
/// # fn main() -> Result<(), aeir_data::DataError> {
/// let mut domain = aeir_data::ParallelDomain::read("source.parquet".as_ref())?;
/// let pairs = aeir_data::TestPairs::read("test.parquet".as_ref(), None)?;
/// domain.train.extend(pairs.images().to_vec());
/// # Ok(()) }
/// ```
/// A data set becomes one role; it is used up by it:
/// ```compile_fail
/// # fn main() -> Result<(), aeir_data::DataError> {
/// let data = aeir_data::Dataset::open("shards".as_ref(), &aeir_data::ReadOptions::default())?;
/// let pairs = aeir_data::TestPairs::from_dataset(data, None)?;
/// let domain = aeir_data::ParallelDomain::from_dataset(data)?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct TestPairs {
    images: Vec<ImageSource>,
    captions: Vec<String>,
    owners: Vec<usize>,
    notes: Vec<String>,
    skipped: Vec<Skipped>,
}

impl TestPairs {
    /// Reads a data set and takes one split of it.
    ///
    /// Without `split`: the items marked `test`, if there are any; else, if no item names a split, all of them; else
    /// all of them too, but then [`TestPairs::notes`] says that items were scored that are marked for something else.
    /// With `split`, an item that names none counts as `train`.
    ///
    /// # Errors
    /// Those of [`Dataset::open`] and [`TestPairs::from_dataset`].
    pub fn read(path: &Path, split: Option<Split>) -> Result<Self, DataError> {
        Self::read_with(path, split, &ReadOptions::default())
    }

    /// [`TestPairs::read`], with options.
    ///
    /// # Errors
    /// Those of [`TestPairs::read`].
    pub fn read_with(path: &Path, split: Option<Split>, options: &ReadOptions) -> Result<Self, DataError> {
        let wanted = options.of_splits(&[split.unwrap_or(Split::Test)]);
        let data = match Dataset::open(path, &wanted) {
            // No file is of the test split.
            Err(DataError::NothingUsable { skipped: 0, .. }) if split.is_none() => {
                Dataset::open(path, options)?
            }
            opened => opened?,
        };
        Self::from_dataset(data, split)
    }

    /// Takes one split of a data set, as [`TestPairs::read`] does.
    ///
    /// # Errors
    /// [`DataError::NothingUsable`] where the split has no item; [`DataError::WrongKind`] for a list of images or sentences
    /// alone.
    pub fn from_dataset(data: Dataset, split: Option<Split>) -> Result<Self, DataError> {
        refuse_half(&data)?;
        let (path, mut items, mut notes) = (data.path, data.items, data.notes);
        let marked_test = items.iter().any(|item| item.split == Some(Split::Test));
        match split {
            Some(split) => items.retain(|item| item.effective_split() == split),
            None if marked_test => items.retain(|item| item.split == Some(Split::Test)),
            None if items.iter().any(|item| item.split.is_some()) => notes.push(format!(
                "`{}` marks no {} as test: all {} images are scored, those marked train or val among them",
                path.display(),
                if data.format == Format::JsonLines { "line" } else { "item" },
                items.len()
            )),
            None => {}
        }
        let (pairs, without) = pairs(items);
        notes.extend(without_pair(&path, without));
        if pairs.is_empty() {
            return Err(DataError::NothingUsable {
                path,
                expected: "image with captions in the chosen split",
                skipped: data.skipped.len() + without,
            });
        }
        Ok(Self::flatten(pairs, notes, data.skipped))
    }

    fn flatten(items: Vec<(Split, CaptionedImage)>, notes: Vec<String>, skipped: Vec<Skipped>) -> Self {
        let mut pairs = Self { images: Vec::new(), captions: Vec::new(), owners: Vec::new(), notes, skipped };
        // Taken from several splits an image can still be there twice; it is one candidate.
        let mut position: HashMap<ImageSource, usize> = HashMap::new();
        for (_, item) in items {
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
    pub fn images(&self) -> &[ImageSource] {
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

    /// Warnings to show beside the scores.
    pub fn notes(&self) -> &[String] {
        &self.notes
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
    /// Reads the training items of a data set; validation and test items are left out.
    ///
    /// # Errors
    /// Those of [`ParallelDomain::read`].
    pub fn read(path: &Path) -> Result<Self, DataError> {
        let domain = ParallelDomain::read(path)?;
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
