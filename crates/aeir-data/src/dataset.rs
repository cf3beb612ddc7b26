//! A data set of any format, as one list of images and sentences.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::{Path, PathBuf};

use crate::error::DataError;
use crate::formats;
pub use crate::formats::table::Columns;
use crate::image_source::ImageSource;
use crate::sentence::sentence;
use crate::skipped::Skipped;
use crate::split::Split;

/// What a data set is written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Format {
    /// One `{"image": path, "captions": [..], "split"?: ".."}` a line.
    JsonLines,
    /// CSV or TSV with named columns.
    Table,
    /// A folder of images, each with a text file of the same name where it has sentences.
    Folder,
    /// A text file with one image path a line.
    ImageList,
    /// A text file with one sentence a line.
    SentenceList,
    /// MSCOCO's caption files: `images` and `annotations` in JSON.
    Coco,
    /// Karpathy's `dataset_*.json`: images with their split and sentences.
    Karpathy,
    /// SCAN's layout: `{train,dev,test}_ims.npy` with `_caps.txt`.
    Scan,
    /// A table of bottom-up attention: region features in base64, a line an image.
    FeatureTable,
    /// Tar archives whose members of one key are one item.
    WebDataset,
    /// Parquet files as the Hugging Face hub has them.
    Parquet,
    /// An array of features in NumPy's format.
    Npy,
    /// Features in a safetensors file.
    Safetensors,
}

impl fmt::Display for Format {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::JsonLines => "JSON lines",
            Self::Table => "table with named columns",
            Self::Folder => "folder of images",
            Self::ImageList => "list of images",
            Self::SentenceList => "list of sentences",
            Self::Coco => "COCO captions",
            Self::Karpathy => "Karpathy's splits",
            Self::Scan => "SCAN's region features",
            Self::FeatureTable => "table of bottom-up attention",
            Self::WebDataset => "WebDataset",
            Self::Parquet => "Parquet",
            Self::Npy => "array of features (.npy)",
            Self::Safetensors => "features (.safetensors)",
        })
    }
}

/// How to read a data set, where its files alone don't say it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReadOptions {
    /// Which column is which, for tables and Parquet.
    pub columns: Columns,
    /// The folder that image paths are relative to; else that of the file, or one of the usual folders around it.
    pub image_root: Option<PathBuf>,
    /// Of a format with a file a split, open the files of these splits only, and those that name none.
    pub split_files: Option<Vec<Split>>,
    /// Leave sentences that lie in files of their own alone.
    pub images_only: bool,
}

impl ReadOptions {
    /// Whether a file of this split is to be opened.
    pub(crate) fn wants(&self, split: Option<Split>) -> bool {
        match (&self.split_files, split) {
            (Some(splits), Some(split)) => splits.contains(&split),
            _ => true,
        }
    }

    /// The same, where nothing else is asked for, with the files of these splits only.
    pub(crate) fn of_splits(&self, splits: &[Split]) -> Self {
        Self { split_files: self.split_files.clone().or_else(|| Some(splits.to_vec())), ..self.clone() }
    }
}

/// One entry of a data set: an image with its sentences, an image alone, or sentences alone.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Item {
    /// What the data set calls it: a path as it is written there, a key, a number. Need not be unique.
    pub id: String,
    /// The image. `None` where the set has sentences alone.
    pub image: Option<ImageSource>,
    /// Trimmed, none empty, in the order of the set. Empty where the set has images alone.
    pub sentences: Vec<String>,
    /// As the set says it; see [`Item::effective_split`].
    pub split: Option<Split>,
    /// The 1-based line or row it stands on, where the format has such (the first one, of several).
    pub line: Option<usize>,
}

impl Item {
    /// The split, [`Split::Train`] where the set names none.
    pub fn effective_split(&self) -> Split {
        self.split.unwrap_or(Split::Train)
    }
}

/// A data set as read: every item, with where its image is. No image is read yet.
///
/// One interface to all formats; what a file or folder holds is told by what is there. To train or to score, a data set
/// becomes one of the types of a role: [`ParallelDomain`](crate::ParallelDomain), [`TargetImages`](crate::TargetImages),
/// [`TargetSentences`](crate::TargetSentences), [`TestPairs`](crate::TestPairs).
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("captions.jsonl");
/// std::fs::write(&path, r#"{"image": "dog.jpg", "captions": ["a dog", "a brown dog runs"]}"#)?;
/// use aeir_data::{Dataset, Format, ReadOptions};
/// let data = Dataset::open(&path, &ReadOptions::default())?;
/// assert_eq!((data.format, data.items.len()), (Format::JsonLines, 1));
/// assert_eq!((data.items[0].id.as_str(), data.items[0].sentences.len()), ("dog.jpg", 2));
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Dataset {
    /// The file or folder.
    pub path: PathBuf,
    /// What it was read as.
    pub format: Format,
    /// In the order of the set. Never empty.
    pub items: Vec<Item>,
    /// Remarks to show to the user.
    pub notes: Vec<String>,
    /// What was left out, and why.
    pub skipped: Vec<Skipped>,
}

impl Dataset {
    /// Finds out what `path` holds and reads it.
    ///
    /// Whether an image exists and decodes is seen when it is decoded. Items that name the same image and the same split are
    /// one item with the sentences of all of them: the same image twice would be its own hardest negative in training and its
    /// own rival in scoring.
    ///
    /// # Errors
    /// [`DataError::UnknownFormat`], which lists what was looked for; [`DataError::NothingUsable`] where no item is left;
    /// [`DataError::Io`]; and what the reader of the format finds wrong, with the file and the line.
    pub fn open(path: &Path, options: &ReadOptions) -> Result<Self, DataError> {
        formats::read(path, formats::detect(path)?, options)
    }

    /// [`Dataset::open`] where images are asked for: any text file that is no other format is a list of images.
    ///
    /// # Errors
    /// Those of [`Dataset::open`].
    pub fn open_images(path: &Path, options: &ReadOptions) -> Result<Self, DataError> {
        let expected = "a folder or a list with an image path a line";
        let options = &ReadOptions { images_only: true, ..options.clone() };
        // A folder of images may also hold the captions of some of them.
        if formats::is_folder_of_images(path)? {
            return formats::read(path, Format::Folder, options);
        }
        let format = match Self::detect_for(path, "an image path a line", expected) {
            Err(DataError::UnknownFormat { path, .. }) => {
                return Err(DataError::NothingUsable { path, expected: "image path", skipped: 0 });
            }
            Ok(Format::SentenceList) => Format::ImageList,
            found => found?,
        };
        formats::read(path, format, options)
    }

    /// [`Dataset::open`] where sentences are asked for: any text file that is no other format is a list of sentences.
    ///
    /// # Errors
    /// Those of [`Dataset::open`].
    pub fn open_sentences(path: &Path, options: &ReadOptions) -> Result<Self, DataError> {
        let format = match Self::detect_for(path, "a sentence a line", "a sentence a line")? {
            Format::ImageList => Format::SentenceList,
            format => format,
        };
        formats::read(path, format, options)
    }

    /// Finds out what `path` holds; what an empty file or an image should have been is said in the words of the role.
    fn detect_for(path: &Path, of_empty: &'static str, of_other: &'static str) -> Result<Format, DataError> {
        formats::detect(path).map_err(|error| match error {
            DataError::EmptyFile { path, .. } => DataError::EmptyFile { path, expected: of_empty },
            DataError::WrongKind { path, line, got: "an image", .. } => {
                DataError::WrongKind { path, line, expected: of_other, got: "an image" }
            }
            error => error,
        })
    }

    /// All images, of whatever split, each once.
    pub fn images(&self) -> Vec<ImageSource> {
        let mut seen = HashSet::new();
        self.items
            .iter()
            .filter_map(|item| item.image.clone())
            .filter(|image| seen.insert(image.clone()))
            .collect()
    }

    /// How many images there are.
    pub fn image_count(&self) -> usize {
        self.items.iter().filter(|item| item.image.is_some()).count()
    }

    /// How many sentences there are.
    pub fn sentence_count(&self) -> usize {
        self.items.iter().map(|item| item.sentences.len()).sum()
    }

    /// Images that stand in more than one split: what was trained on would be scored on.
    pub fn images_in_several_splits(&self) -> Vec<&ImageSource> {
        let mut first: HashMap<&ImageSource, (Split, bool)> = HashMap::new();
        let mut several = Vec::new();
        for item in &self.items {
            let Some(image) = &item.image else { continue };
            let split = item.effective_split();
            let (seen, told) = first.entry(image).or_insert((split, false));
            if *seen != split && !*told {
                *told = true;
                several.push(image);
            }
        }
        several
    }
}

/// What a reader fills: items, one an image and split, and what is left out on the way.
#[derive(Debug, Default)]
pub(crate) struct Collector {
    items: Vec<Item>,
    positions: HashMap<(ImageSource, Split), usize>,
    pub(crate) notes: Vec<String>,
    pub(crate) skipped: Vec<Skipped>,
}

impl Collector {
    /// What is usable of the sentences of one item; the others are listed. `shown` names the item where a sentence is empty.
    pub(crate) fn usable<'a>(
        &mut self,
        file: &Path,
        line: Option<usize>,
        shown: &str,
        sentences: impl IntoIterator<Item = &'a str>,
    ) -> Vec<String> {
        let mut usable = Vec::new();
        for text in sentences {
            match sentence(text) {
                Ok(text) => usable.push(text.to_owned()),
                Err(reason) => {
                    let shown = if text.trim().is_empty() { shown } else { text };
                    self.skipped.push(Skipped::in_file(file, line, shown, reason));
                }
            }
        }
        usable
    }

    /// Adds an item, to an earlier one of the same image and split if there is one.
    pub(crate) fn add(&mut self, item: Item) {
        let Some(image) = item.image.clone() else {
            self.items.push(item);
            return;
        };
        // Without a split an item means the training split: both spellings are the same item.
        let key = (image, item.effective_split());
        match self.positions.get(&key).and_then(|position| self.items.get_mut(*position)) {
            Some(earlier) => {
                earlier.sentences.extend(item.sentences);
                earlier.split = earlier.split.or(item.split);
            }
            None => {
                self.positions.insert(key, self.items.len());
                self.items.push(item);
            }
        }
    }

    /// The data set.
    ///
    /// # Errors
    /// [`DataError::NothingUsable`] where there is no item.
    pub(crate) fn finish(
        self,
        path: &Path,
        format: Format,
        expected: &'static str,
    ) -> Result<Dataset, DataError> {
        if self.items.is_empty() {
            return Err(DataError::NothingUsable {
                path: path.to_path_buf(),
                expected,
                skipped: self.skipped.len(),
            });
        }
        Ok(Dataset {
            path: path.to_path_buf(),
            format,
            items: self.items,
            notes: self.notes,
            skipped: self.skipped,
        })
    }
}
