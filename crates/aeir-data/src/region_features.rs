//! Region features computed beforehand, in the layout that SCAN and its successors publish: a folder with
//! `{train,dev,test}_ims.npy` (`[N, R, F]`) and `{train,dev,test}_caps.txt`, one sentence a line, the sentences of an image one
//! after the other. Each role has its own type, as with image files, and none turns into another.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::DataError;
use crate::lines::{LineContent, open_lines};
use crate::npy::FeatureArray;
use crate::sentence::{MAX_SENTENCE_CHARACTERS, sentence};
use crate::skipped::Skipped;
use crate::split::Split;

/// A character takes at most four bytes, and each of them four (`\xf0`) in a line that is a printed byte string.
const MAX_LINE_BYTES: usize = 16 * MAX_SENTENCE_CHARACTERS;

/// Whether a folder has the features of any split in SCAN's layout.
pub fn is_region_folder(path: &Path) -> bool {
    [Split::Train, Split::Validation, Split::Test].iter().any(|split| features_file(path, *split).is_file())
}

fn stem(split: Split) -> &'static str {
    match split {
        Split::Train => "train",
        Split::Validation => "dev",
        Split::Test => "test",
    }
}

fn features_file(folder: &Path, split: Split) -> PathBuf {
    folder.join(format!("{}_ims.npy", stem(split)))
}

fn captions_file(folder: &Path, split: Split) -> PathBuf {
    folder.join(format!("{}_caps.txt", stem(split)))
}

/// Region features of a set of images, memory-mapped. Clones share the file.
///
/// In some published files every image stands as often as it has sentences. Where all rows come in such groups of the same
/// bytes, a group is one image: in several rows it would be its own hardest negative in training and its own rival in
/// scoring. [`RegionFeatures::note`] says so.
#[derive(Debug, Clone)]
pub struct RegionFeatures {
    array: Arc<FeatureArray>,
    rows_per_image: usize,
}

impl RegionFeatures {
    /// Opens an array of `[N, R, F]`, or of `[N, F]` for one vector an image.
    ///
    /// Reads two rows; the whole file where every image stands in it several times.
    ///
    /// # Errors
    /// Those of [`FeatureArray::open`].
    pub fn open(path: &Path) -> Result<Self, DataError> {
        let array = FeatureArray::open(path)?;
        let rows_per_image = rows_per_image(&array);
        Ok(Self { array: Arc::new(array), rows_per_image })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        self.array.path()
    }

    /// How many images there are. Never zero.
    #[allow(clippy::len_without_is_empty, reason = "an array without rows is refused")]
    pub fn len(&self) -> usize {
        self.array.rows() / self.rows_per_image
    }

    /// R: regions an image.
    pub fn regions(&self) -> usize {
        self.array.regions()
    }

    /// F: values a region.
    pub fn dimension(&self) -> usize {
        self.array.dimension()
    }

    /// R times F: values an image.
    pub fn image_len(&self) -> usize {
        self.array.row_len()
    }

    /// In how many rows of the file each image stands; usually 1.
    pub fn rows_per_image(&self) -> usize {
        self.rows_per_image
    }

    /// Reads the features of an image, region by region.
    ///
    /// # Errors
    /// [`DataError::ArrayRow`] where there is no such image, [`DataError::ArrayBuffer`] where `into` has another length than
    /// [`RegionFeatures::image_len`].
    pub fn read_into(&self, image: usize, into: &mut [f32]) -> Result<(), DataError> {
        if image >= self.len() {
            return Err(DataError::ArrayRow {
                path: self.path().to_path_buf(),
                rows: self.len(),
                got: image,
            });
        }
        self.array.read_into(self.row_of(image), into)
    }

    /// The name of an image in an index or a report: `FILE#ROW`, with the row as NumPy counts it.
    pub fn name(&self, image: usize) -> String {
        format!("{}#{}", self.path().display(), self.place(image))
    }

    /// What the file calls an image: its row as NumPy counts it.
    pub fn place(&self, image: usize) -> String {
        self.row_of(image).to_string()
    }

    fn row_of(&self, image: usize) -> usize {
        image.saturating_mul(self.rows_per_image)
    }

    /// Reads the whole file once and refuses values that are not finite, naming the first.
    ///
    /// # Errors
    /// [`DataError::ArrayNotFinite`].
    pub fn check_finite(&self) -> Result<(), DataError> {
        self.array.check_finite()
    }

    /// Refuses features that an encoder made for other regions or another dimension can't take.
    ///
    /// # Errors
    /// [`DataError::RegionShape`].
    pub fn check_shape(&self, regions: usize, dimension: usize) -> Result<(), DataError> {
        if (self.regions(), self.dimension()) == (regions, dimension) {
            return Ok(());
        }
        Err(DataError::RegionShape {
            path: self.path().to_path_buf(),
            expected_regions: regions,
            expected_dimension: dimension,
            regions: self.regions(),
            dimension: self.dimension(),
        })
    }

    /// A remark to show to the user.
    pub fn note(&self) -> Option<String> {
        (self.rows_per_image > 1).then(|| {
            format!(
                "`{}`: every image stands in {} rows, so that {} rows are {} images",
                self.path().display(),
                self.rows_per_image,
                self.array.rows(),
                self.len()
            )
        })
    }
}

/// The largest number such that all rows come in groups of so many equal ones. Rows that are all equal are no groups.
fn rows_per_image(array: &FeatureArray) -> usize {
    let (mut common, mut run) = (0, 1);
    for row in 1..array.rows() {
        if array.row_bytes(row) == array.row_bytes(row - 1) {
            run += 1;
            continue;
        }
        common = greatest_common_divisor(common, run);
        if common == 1 {
            return 1;
        }
        run = 1;
    }
    if common == 0 { 1 } else { greatest_common_divisor(common, run) }
}

fn greatest_common_divisor(mut a: usize, mut b: usize) -> usize {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

/// Region features of the target domain's images, without any sentence.
///
/// Its sentences are read by [`TargetSentences`](crate::TargetSentences), which takes `train_caps.txt` as it is.
#[derive(Debug, Clone)]
pub struct TargetRegions {
    features: RegionFeatures,
}

impl TargetRegions {
    /// Opens a file such as `train_ims.npy`.
    ///
    /// # Errors
    /// Those of [`RegionFeatures::open`].
    pub fn open(path: &Path) -> Result<Self, DataError> {
        Ok(Self { features: RegionFeatures::open(path)? })
    }

    /// The images.
    pub fn features(&self) -> &RegionFeatures {
        &self.features
    }
}

/// An image with its sentences: at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegionItem {
    /// The image in [`CaptionedRegions::features`].
    pub image: usize,
    /// Its sentences in [`CaptionedRegions::sentences`].
    pub sentences: Range<usize>,
}

/// One split for training or validation: images, and sentences that belong to them.
#[derive(Debug, Clone)]
pub struct CaptionedRegions {
    features: RegionFeatures,
    captions_per_image: usize,
    sentences: Vec<String>,
    items: Vec<RegionItem>,
}

impl CaptionedRegions {
    /// The features of all images of the file, those without a usable sentence among them.
    pub fn features(&self) -> &RegionFeatures {
        &self.features
    }

    /// The images with their sentences, in the order of the file. Never empty.
    pub fn items(&self) -> &[RegionItem] {
        &self.items
    }

    /// The sentences of all items, trimmed, in the order of the file. Never empty.
    pub fn sentences(&self) -> &[String] {
        &self.sentences
    }

    /// The sentences of one item.
    pub fn captions(&self, item: &RegionItem) -> &[String] {
        self.sentences.get(item.sentences.clone()).unwrap_or_default()
    }

    /// How many lines the caption file has an image, unusable ones counted.
    pub fn captions_per_image(&self) -> usize {
        self.captions_per_image
    }

    fn read(features: &Path, captions: &Path, remarks: &mut Remarks) -> Result<Self, DataError> {
        let features = RegionFeatures::open(features)?;
        remarks.notes.extend(features.note());
        let lines = read_lines(captions)?;
        let (images, count) = (features.len(), lines.len());
        let captions_per_image = count / images;
        if count == 0 || captions_per_image * images != count {
            return Err(DataError::CaptionCount {
                path: captions.to_path_buf(),
                features: features.path().to_path_buf(),
                images,
                lines: count,
            });
        }
        let lines = as_text(captions, lines, remarks);
        let mut split = Self { features, captions_per_image, sentences: Vec::new(), items: Vec::new() };
        let skipped_before = remarks.skipped.len();
        for (image, lines) in lines.chunks(captions_per_image).enumerate() {
            split.add(captions, image, lines, remarks);
        }
        if split.items.is_empty() {
            return Err(DataError::NothingUsable {
                path: captions.to_path_buf(),
                expected: "sentence",
                skipped: remarks.skipped.len() - skipped_before,
            });
        }
        Ok(split)
    }

    /// Takes what is usable of the lines of one image. The others keep their place: what follows belongs to the next image.
    fn add(&mut self, file: &Path, image: usize, lines: &[Line], remarks: &mut Remarks) {
        let start = self.sentences.len();
        for (position, line) in lines.iter().enumerate() {
            match line.as_deref().map_err(Clone::clone).and_then(sentence) {
                Ok(text) => self.sentences.push(text.to_owned()),
                Err(reason) => {
                    let number = image * self.captions_per_image + position + 1;
                    let shown = line.as_deref().map_or("", str::trim);
                    remarks.skipped.push(Skipped::line(file, number, shown, reason));
                }
            }
        }
        if self.sentences.len() > start {
            self.items.push(RegionItem { image, sentences: start..self.sentences.len() });
        } else {
            let line = image * self.captions_per_image + 1;
            remarks.skipped.push(Skipped::line(file, line, &self.features.name(image), "no usable caption"));
        }
    }
}

/// What is to be told about the files beside their content.
#[derive(Debug, Default)]
struct Remarks {
    notes: Vec<String>,
    skipped: Vec<Skipped>,
}

/// The source domain in SCAN's layout: region features with their sentences, for training.
///
/// # Example
/// ```
/// # fn main() -> Result<(), aeir_data::DataError> {
/// # let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/formats/scan");
/// let source = aeir_data::RegionDomain::read(&folder)?;
/// let features = source.train.features();
/// assert_eq!((features.len(), features.regions(), features.dimension()), (12, 4, 8));
///
/// let item = &source.train.items()[3];
/// let mut regions = vec![0.0; features.image_len()];
/// features.read_into(item.image, &mut regions)?;
/// assert_eq!(source.train.captions(item).len(), 5);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct RegionDomain {
    /// For people to read: the name of the folder.
    pub name: String,
    /// The training split.
    pub train: CaptionedRegions,
    /// The validation split, `dev`, where the folder has one. Its features have the shape of the training split's.
    pub validation: Option<CaptionedRegions>,
    /// Remarks to show to the user.
    pub notes: Vec<String>,
    /// What the reader left out.
    pub skipped: Vec<Skipped>,
}

impl RegionDomain {
    /// Reads `train_ims.npy` and `train_caps.txt`, and the same for `dev` where there is one of the two. The test split is
    /// not looked at.
    ///
    /// How many sentences an image has follows from the number of lines. A line that can't be used (empty, not UTF-8, over
    /// [`MAX_SENTENCE_CHARACTERS`]) leaves its image with one sentence fewer; an image without any is left out. Lines of a file
    /// where most are printed byte strings (`b'a dog'`) are read as the text they stand for, and a note says so. Whether the
    /// features are finite is seen by [`RegionFeatures::check_finite`].
    ///
    /// # Errors
    /// Those of [`RegionFeatures::open`]; [`DataError::CaptionCount`] where the lines are no whole multiple of the images;
    /// [`DataError::RegionShape`] where the splits differ; [`DataError::Io`], [`DataError::NotAFile`],
    /// [`DataError::EmptyFile`], [`DataError::WrongKind`] and [`DataError::NothingUsable`] for the caption files.
    pub fn read(folder: &Path) -> Result<Self, DataError> {
        let mut remarks = Remarks::default();
        let train = read_split(folder, Split::Train, &mut remarks)?;
        let validation = if features_file(folder, Split::Validation).exists()
            || captions_file(folder, Split::Validation).exists()
        {
            let validation = read_split(folder, Split::Validation, &mut remarks)?;
            validation.features.check_shape(train.features.regions(), train.features.dimension())?;
            Some(validation)
        } else {
            None
        };
        let name = folder
            .file_name()
            .map_or_else(|| "source".to_owned(), |name| name.to_string_lossy().into_owned());
        Ok(Self { name, train, validation, notes: remarks.notes, skipped: remarks.skipped })
    }
}

fn read_split(folder: &Path, split: Split, remarks: &mut Remarks) -> Result<CaptionedRegions, DataError> {
    CaptionedRegions::read(&features_file(folder, split), &captions_file(folder, split), remarks)
}

/// Region features and captions whose alignment is known, for scoring alone.
///
/// No type of training takes it:
/// ```compile_fail
/// # fn main() -> Result<(), aeir_data::DataError> {
/// let pairs = aeir_data::RegionTestPairs::read("features".as_ref(), None)?;
/// let domain: aeir_data::RegionDomain = pairs.into();
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct RegionTestPairs {
    features: RegionFeatures,
    images: Vec<usize>,
    captions: Vec<String>,
    owners: Vec<usize>,
    notes: Vec<String>,
    skipped: Vec<Skipped>,
}

impl RegionTestPairs {
    /// Reads one split of a folder, the test split without `split`. Lines are taken as by [`RegionDomain::read`].
    ///
    /// # Errors
    /// Those of [`RegionTestPairs::read_files`].
    pub fn read(folder: &Path, split: Option<Split>) -> Result<Self, DataError> {
        let split = split.unwrap_or(Split::Test);
        Self::read_files(&features_file(folder, split), &captions_file(folder, split))
    }

    /// Reads features and captions from files of any name, such as `testall_ims.npy` and `testall_caps.txt`.
    ///
    /// # Errors
    /// Those of [`RegionDomain::read`] but [`DataError::RegionShape`].
    pub fn read_files(features: &Path, captions: &Path) -> Result<Self, DataError> {
        let mut remarks = Remarks::default();
        let split = CaptionedRegions::read(features, captions, &mut remarks)?;
        let owners = split
            .items
            .iter()
            .enumerate()
            .flat_map(|(owner, item)| item.sentences.clone().map(move |_| owner));
        Ok(Self {
            owners: owners.collect(),
            images: split.items.iter().map(|item| item.image).collect(),
            features: split.features,
            captions: split.sentences,
            notes: remarks.notes,
            skipped: remarks.skipped,
        })
    }

    /// The features of all images of the file.
    pub fn features(&self) -> &RegionFeatures {
        &self.features
    }

    /// The images that are scored, as positions in [`RegionTestPairs::features`]: all but those without a usable caption.
    /// Never empty.
    pub fn images(&self) -> &[usize] {
        &self.images
    }

    /// The captions of these images.
    pub fn captions(&self) -> &[String] {
        &self.captions
    }

    /// For each caption the position of its image in [`RegionTestPairs::images`].
    pub fn owners(&self) -> &[usize] {
        &self.owners
    }

    /// Remarks to show to the user.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// What the reader left out.
    pub fn skipped(&self) -> &[Skipped] {
        &self.skipped
    }
}

/// A line of a caption file, or why it has no text.
type Line = Result<String, String>;

/// All lines, also those that can't be used: their places count.
fn read_lines(path: &Path) -> Result<Vec<Line>, DataError> {
    const EXPECTED: &str = "a sentence a line";
    let mut lines = open_lines(path, MAX_LINE_BYTES, EXPECTED)?;
    lines.refuse_image(path, EXPECTED)?;
    let mut read = Vec::new();
    while let Some((_, content)) = lines.next_line().map_err(|error| DataError::io(path, "read", error))? {
        read.push(match content {
            LineContent::Text(text) => Ok(text),
            LineContent::NotUtf8 => Err("not UTF-8".to_owned()),
            LineContent::TooLong => Err(format!("longer than {MAX_SENTENCE_CHARACTERS} characters")),
        });
    }
    Ok(read)
}

/// The lines as text. A file written from bytes that were printed instead of decoded has `b'a dog'` for `a dog`: the first
/// word of every sentence would be another one. One such line may be a sentence about Python; a file of them is not.
fn as_text(path: &Path, mut lines: Vec<Line>, remarks: &mut Remarks) -> Vec<Line> {
    let with_words = lines.iter().flatten().filter(|line| !line.trim().is_empty()).count();
    let printed = lines.iter().flatten().filter(|line| printed_bytes(line).is_some()).count();
    if printed == 0 {
        return lines;
    }
    let most = printed > with_words / 2;
    let done = if most { "read as the text they stand for" } else { "taken as they are" };
    remarks.notes.push(format!(
        "`{}`: {printed} of {with_words} lines are printed byte strings like b'a dog'; they are {done}",
        path.display()
    ));
    if most {
        for line in &mut lines {
            if let Some(bytes) = line.as_deref().ok().and_then(printed_bytes) {
                *line = String::from_utf8(bytes).map_err(|_| "not UTF-8".to_owned());
            }
        }
    }
    lines
}

/// The bytes that Python prints as `text`, if it prints any so: `b'a dog'`, `b"a dog's"`, `b'caf\xc3\xa9'`.
fn printed_bytes(text: &str) -> Option<Vec<u8>> {
    let (quote, rest) = text.trim().as_bytes().strip_prefix(b"b")?.split_first()?;
    if !matches!(quote, b'\'' | b'"') {
        return None;
    }
    let mut bytes = Vec::new();
    let mut rest = rest.strip_suffix(&[*quote])?.iter().copied();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'\\' => match rest.next()? {
                b'n' => b'\n',
                b'r' => b'\r',
                b't' => b'\t',
                b'x' => hexadecimal(rest.next()?)? << 4 | hexadecimal(rest.next()?)?,
                escaped @ (b'\\' | b'\'' | b'"') => escaped,
                _ => return None,
            },
            // A quote inside would have ended it, and what is not ASCII is printed as an escape.
            byte if byte == *quote || !byte.is_ascii() => return None,
            byte => byte,
        });
    }
    Some(bytes)
}

fn hexadecimal(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn printed_bytes_are_what_python_prints() {
        let read = |text: &str| printed_bytes(text).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        for (printed, text) in [
            ("b'a dog'", "a dog"),
            (" b'a dog' ", "a dog"),
            ("b\"a dog's\"", "a dog's"),
            (r#"b'caf\xc3\xa9 \\ \'both\' "'"#, "café \\ 'both' \""),
            (r"b'a\tb\r\n'", "a\tb\r\n"),
            ("b''", ""),
        ] {
            assert_eq!(read(printed).as_deref(), Some(text), "{printed}");
        }
        for text in [
            "",
            "b",
            "b'",
            "a dog",
            "b'a dog",
            "b'a dog\"",
            "'a dog'",
            "b'a' and b'c'",
            "b'café'",
            r"b'\xg0'",
            r"b'\x4'",
            r"b'\q'",
            r"b'a\'",
        ] {
            assert_eq!(read(text), None, "{text}");
        }
    }
}
