//! A few pairs of the target that a person labelled: some to learn from, some to measure with.

use std::collections::HashMap;
use std::path::Path;

use serde::Deserialize;

use crate::dataset::ReadOptions;
use crate::domains::CaptionedImage;
use crate::error::DataError;
use crate::formats::image_root::ImageRoot;
use crate::formats::jsonl::inside_a_line;
use crate::image_source::ImageSource;
use crate::lines::{LineContent, open_lines};
use crate::sentence::sentence;
use crate::skipped::Skipped;
use crate::split::Split;

const EXPECTED: &str = "a labelled pair a line";
/// More bytes than this on one line is no labelled pair.
const MAX_LABEL_BYTES: usize = 1024 * 1024;

/// Labels of target images: one `{"image": path, "captions": [..], "split"?: "train" | "test"}` a line.
///
/// What is marked `train`, or not at all, is for learning. What is marked `test` was drawn at random to measure with, and no
/// training takes it. An image without a caption is one that no sentence fits: it teaches nothing, and where it is
/// of the measuring part it is a query that can't be answered.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("pairs.jsonl");
/// std::fs::write(&path, concat!(
///     r#"{"image": "1.jpg", "captions": ["a dog"]}"#, "\n",
///     r#"{"image": "2.jpg", "captions": ["a cat"], "split": "test"}"#, "\n",
///     r#"{"image": "3.jpg", "captions": [], "split": "test"}"#, "\n",
/// ))?;
/// let labelled = aeir_data::LabelledPairs::read(&path)?;
/// assert_eq!((labelled.learn().len(), labelled.measure().len(), labelled.unanswered()), (1, 1, 1));
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct LabelledPairs {
    learn: Vec<CaptionedImage>,
    measure: Vec<CaptionedImage>,
    unanswered: usize,
    divided: bool,
    notes: Vec<String>,
    skipped: Vec<Skipped>,
}

#[derive(Deserialize)]
struct Record {
    image: String,
    captions: Vec<String>,
    #[serde(default)]
    split: Option<Split>,
}

/// What is known of one image.
struct Label {
    image: ImageSource,
    captions: Vec<String>,
    split: Split,
    line: usize,
}

impl LabelledPairs {
    /// Reads a file of labels. Paths are absolute or relative to the folder of the file.
    ///
    /// Lines that say the same image again add their captions to it; that it fits no sentence must not be said of an image that has
    /// one. Whether an image exists and decodes is seen when it is decoded.
    ///
    /// # Errors
    /// [`DataError::CaptionRecord`], [`DataError::NotUtf8`] or [`DataError::LineTooLong`] with the line;
    /// [`DataError::LabelsDisagree`] where two lines contradict each other; [`DataError::EmptyFile`],
    /// [`DataError::NothingUsable`] where no image has a caption, [`DataError::WrongKind`], [`DataError::Io`].
    pub fn read(path: &Path) -> Result<Self, DataError> {
        Self::read_with(path, &ReadOptions::default())
    }

    /// [`LabelledPairs::read`], with options.
    ///
    /// # Errors
    /// Those of [`LabelledPairs::read`].
    pub fn read_with(path: &Path, options: &ReadOptions) -> Result<Self, DataError> {
        let mut reader = Reader::new(path, options);
        let mut lines = open_lines(path, MAX_LABEL_BYTES, EXPECTED)?;
        lines.refuse_image(path, EXPECTED)?;
        while let Some((line, content)) =
            lines.next_line().map_err(|error| DataError::io(path, "read", error))?
        {
            match content {
                LineContent::Text(text) if text.trim().is_empty() => {}
                LineContent::Text(text) => reader.take(line, &text)?,
                LineContent::NotUtf8 => return Err(DataError::NotUtf8 { path: path.to_path_buf(), line }),
                LineContent::TooLong => {
                    return Err(DataError::LineTooLong {
                        path: path.to_path_buf(),
                        line,
                        limit: MAX_LABEL_BYTES,
                    });
                }
            }
        }
        reader.finish()
    }

    /// The pairs to learn from. May be empty.
    pub fn learn(&self) -> &[CaptionedImage] {
        &self.learn
    }

    /// With the first `count` of the pairs to learn from, at least one.
    #[must_use]
    pub fn first(mut self, count: usize) -> Self {
        self.learn.truncate(count.max(1));
        self
    }

    /// The pairs to measure with. May be empty.
    pub fn measure(&self) -> &[CaptionedImage] {
        &self.measure
    }

    /// How many images of the measuring part fit no sentence.
    pub fn unanswered(&self) -> usize {
        self.unanswered
    }

    /// Whether any line says which part it belongs to.
    pub fn is_divided(&self) -> bool {
        self.divided
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

struct Reader<'a> {
    path: &'a Path,
    root: ImageRoot,
    labels: Vec<Label>,
    positions: HashMap<ImageSource, usize>,
    divided: bool,
    repeated: usize,
    skipped: Vec<Skipped>,
}

impl<'a> Reader<'a> {
    fn new(path: &'a Path, options: &ReadOptions) -> Self {
        Self {
            path,
            root: ImageRoot::here(path, options),
            labels: Vec::new(),
            positions: HashMap::new(),
            divided: false,
            repeated: 0,
            skipped: Vec::new(),
        }
    }

    fn take(&mut self, line: usize, text: &str) -> Result<(), DataError> {
        let refused =
            |reason: String| DataError::CaptionRecord { path: self.path.to_path_buf(), line, reason };
        let record: Record = serde_json::from_str(text).map_err(|error| refused(inside_a_line(&error)))?;
        if record.image.trim().is_empty() {
            return Err(refused("the image path is empty".into()));
        }
        if record.split == Some(Split::Validation) {
            return Err(refused("a labelled pair is of split `train` or `test`, got `val`".into()));
        }
        self.divided |= record.split.is_some();
        let given = record.captions.len();
        let mut captions: Vec<String> = Vec::new();
        for caption in &record.captions {
            match sentence(caption) {
                Ok(caption) if captions.iter().any(|other| other == caption) => {}
                Ok(caption) => captions.push(caption.to_owned()),
                Err(reason) => {
                    self.skipped.push(Skipped::line(self.path, line, &record.image, reason));
                }
            }
        }
        if given > 0 && captions.is_empty() {
            // Not the same as to say that none fits.
            return Ok(());
        }
        let image = self.root.source(&record.image)?;
        let split = record.split.unwrap_or(Split::Train);
        self.add(Label { image, captions, split, line })
    }

    fn add(&mut self, label: Label) -> Result<(), DataError> {
        let earlier = self.positions.get(&label.image).and_then(|place| self.labels.get_mut(*place));
        let Some(earlier) = earlier else {
            self.positions.insert(label.image.clone(), self.labels.len());
            self.labels.push(label);
            return Ok(());
        };
        let disagree = |reason: &'static str| DataError::LabelsDisagree {
            path: self.path.to_path_buf(),
            line: label.line,
            earlier: earlier.line,
            image: label.image.to_string(),
            reason,
        };
        if earlier.split != label.split {
            return Err(disagree("one says to learn from it, the other to measure with it"));
        }
        if earlier.captions.is_empty() != label.captions.is_empty() {
            return Err(disagree("one names a sentence, the other says that none fits"));
        }
        let known = earlier.captions.len();
        for caption in label.captions {
            if !earlier.captions.contains(&caption) {
                earlier.captions.push(caption);
            }
        }
        self.repeated += usize::from(earlier.captions.len() == known);
        Ok(())
    }

    fn finish(self) -> Result<LabelledPairs, DataError> {
        let mut pairs = LabelledPairs {
            learn: Vec::new(),
            measure: Vec::new(),
            unanswered: 0,
            divided: self.divided,
            notes: Vec::new(),
            skipped: self.skipped,
        };
        if self.repeated > 0 {
            pairs.notes.push(format!(
                "`{}`: lines that say again what an earlier one says: {}",
                self.path.display(),
                self.repeated
            ));
        }
        for Label { image, captions, split, .. } in self.labels {
            match (split, captions.is_empty()) {
                (Split::Test, true) => pairs.unanswered += 1,
                (_, true) => {}
                (Split::Test, false) => pairs.measure.push(CaptionedImage { image, captions }),
                (_, false) => pairs.learn.push(CaptionedImage { image, captions }),
            }
        }
        if pairs.learn.is_empty() && pairs.measure.is_empty() {
            return Err(DataError::NothingUsable {
                path: self.path.to_path_buf(),
                expected: "labelled pair",
                skipped: pairs.skipped.len(),
            });
        }
        Ok(pairs)
    }
}
