//! What can be wrong with data, as one type whose fields say where and what.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};

use crate::hash::ContentHash;

/// Everything that can be wrong with captions, lists, images and cached features.
///
/// The message of an error does not repeat its source: print the whole chain, or use
/// [`DataError::with_causes`] where only one line fits.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// The operating system refused an operation (a missing file has `source.kind() == NotFound`).
    #[error("cannot {operation} `{}`", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was attempted, as a verb phrase.
        operation: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// A file was expected and the path leads to something else.
    #[error("`{}`: expected a file, got a {got}", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
        /// What is there.
        got: &'static str,
    },
    /// A text file of zero bytes.
    #[error("`{}` is empty: expected {expected}", path.display())]
    EmptyFile {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        expected: &'static str,
    },
    /// Everything was read and nothing of it can be used.
    #[error("`{}` has no usable {expected}{}", path.display(), how_many(*skipped))]
    NothingUsable {
        /// The file or folder.
        path: PathBuf,
        /// What was looked for.
        expected: &'static str,
        /// How many entries were skipped on the way.
        skipped: usize,
    },
    /// A line of a file that must be UTF-8 is not.
    #[error("`{}` line {line}: not UTF-8", path.display())]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// 1-based.
        line: usize,
    },
    /// A line longer than the reader accepts.
    #[error("`{}` line {line}: longer than {limit} bytes", path.display())]
    LineTooLong {
        /// The file.
        path: PathBuf,
        /// 1-based.
        line: usize,
        /// Bytes.
        limit: usize,
    },
    /// A line that is no caption record.
    #[error("`{}` line {line}: expected {{\"image\": path, \"captions\": [..], \"split\"?: ..}}: {reason}", path.display())]
    CaptionRecord {
        /// The file.
        path: PathBuf,
        /// 1-based.
        line: usize,
        /// What the parser met, with the column where it stopped if it did.
        reason: String,
    },
    /// Two lines that can't both be right about an image.
    #[error("`{}` lines {earlier} and {line} disagree on `{image}`: {reason}", path.display())]
    LabelsDisagree {
        /// The file.
        path: PathBuf,
        /// The later line, 1-based.
        line: usize,
        /// The earlier one.
        earlier: usize,
        /// What they are about.
        image: String,
        /// How they disagree.
        reason: &'static str,
    },
    /// A file of another kind than the reader's, which would otherwise be read without complaint.
    #[error("`{}`{}: expected {expected}, got {got}", path.display(), at_line(*line))]
    WrongKind {
        /// The file.
        path: PathBuf,
        /// 1-based; `None` where it is the file as a whole.
        line: Option<usize>,
        /// What the reader takes.
        expected: &'static str,
        /// What the line or the file looks like.
        got: &'static str,
    },
    /// A file or folder that no reader knows.
    #[error("`{}`: no data set found; looked for {looked_for}", path.display())]
    UnknownFormat {
        /// The file or folder.
        path: PathBuf,
        /// What would have been recognised.
        looked_for: String,
    },
    /// A data set that is not what its format says.
    #[error("`{}`{} ({format}): expected {expected}, got {got}", path.display(), at_line(*line))]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What it was read as.
        format: crate::dataset::Format,
        /// 1-based, where the place is known.
        line: Option<usize>,
        /// What the reader takes.
        expected: String,
        /// What is there.
        got: String,
    },
    /// The name of an image that a file which holds several does not have.
    #[error("`{}`: expected the row, id or member of an image in this file, got `{got}`", path.display())]
    NoSuchImage {
        /// The file.
        path: PathBuf,
        /// What stood behind `#`.
        got: String,
    },
    /// Features where an encoded image is needed.
    #[error("`{item}` is a row of features: there is no image to decode")]
    NotEncoded {
        /// The item.
        item: String,
    },
    /// A name that is none of the allowed ones.
    #[error("expected {expected}, got `{got}`")]
    UnknownName {
        /// The allowed names.
        expected: &'static str,
        /// The name given.
        got: String,
    },
    /// An image of zero bytes.
    #[error("{}: no bytes", shown(path))]
    ImageEmpty {
        /// The file, where there is one.
        path: Option<PathBuf>,
    },
    /// Bytes that no supported image format starts with.
    #[error("{}: no jpeg, png, webp, gif or bmp image", shown(path))]
    ImageFormatUnknown {
        /// The file, where there is one.
        path: Option<PathBuf>,
    },
    /// An encoded image of more bytes than allowed.
    #[error("{}: {got} bytes, at most {limit} allowed", shown(path))]
    ImageTooManyBytes {
        /// The file, where there is one.
        path: Option<PathBuf>,
        /// Bytes allowed.
        limit: u64,
        /// Bytes found.
        got: u64,
    },
    /// An image whose header announces more than allowed. Nothing was decoded.
    #[error("{}: {width}x{height}, at most {max_pixels} pixels and {max_side} a side allowed", shown(path))]
    ImageTooLarge {
        /// The file, where there is one.
        path: Option<PathBuf>,
        /// Pixels.
        width: u32,
        /// Pixels.
        height: u32,
        /// Pixels allowed in all.
        max_pixels: u64,
        /// Pixels allowed along one side.
        max_side: u32,
    },
    /// An image that ends before its end marker.
    #[error("{}: the image is cut short ({got} bytes)", shown(path))]
    ImageTruncated {
        /// The file, where there is one.
        path: Option<PathBuf>,
        /// Bytes that are there.
        got: u64,
    },
    /// The decoder refused the image.
    #[error("{}: cannot decode the image", shown(path))]
    ImageDecode {
        /// The file, where there is one.
        path: Option<PathBuf>,
        /// The decoder's answer.
        source: Box<image::ImageError>,
    },
    /// The decoder broke off inside: a bug in the decoder that this image sets off.
    #[error("{}: the image decoder failed: {message}", shown(path))]
    ImageDecoderPanicked {
        /// The file, where there is one.
        path: Option<PathBuf>,
        /// What it said.
        message: String,
    },
    /// Text that is no SHA-256 in hexadecimal.
    #[error("expected a hash of 64 hexadecimal digits, got `{got}`")]
    InvalidHash {
        /// The text, cut to a readable length.
        got: String,
    },
    /// A cache file that this version cannot read. Nothing was changed in it.
    #[error("`{}`: expected {expected}, got {got}", path.display())]
    CacheFormat {
        /// The file.
        path: PathBuf,
        /// What this version reads.
        expected: String,
        /// What the file says.
        got: String,
    },
    /// A cache manifest that does not parse.
    #[error("`{}` is no feature cache manifest", path.display())]
    CacheManifest {
        /// The manifest.
        path: PathBuf,
        /// The parser's answer.
        source: serde_json::Error,
    },
    /// Appending to the cache failed (a full disk has `source.kind() == StorageFull`); the file was set back to
    /// its length before.
    #[error("cannot add features to `{}`", path.display())]
    CacheWrite {
        /// The data file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Features whose values do not fill their shape.
    #[error("features {rows}x{columns} of {key}: expected {expected} values, got {got}")]
    FeatureShape {
        /// Whose features.
        key: ContentHash,
        /// Rows of the shape.
        rows: usize,
        /// Columns of the shape.
        columns: usize,
        /// Values the shape needs (or the most a record may hold).
        expected: usize,
        /// Values given.
        got: usize,
    },
    /// A value that is not finite in the precision of the cache.
    #[error("features of {key}: value {got} at position {index} is not finite in {precision}")]
    FeatureNotFinite {
        /// Whose features.
        key: ContentHash,
        /// Position, row by row.
        index: usize,
        /// The value.
        got: f32,
        /// The precision of the cache.
        precision: crate::cache::Precision,
    },
    /// An array file that the reader does not take: another kind of file, element type, order or number of dimensions.
    #[error("`{}`: expected {expected}, got {got}", path.display())]
    ArrayFormat {
        /// The file.
        path: PathBuf,
        /// What the reader takes.
        expected: &'static str,
        /// What the file says.
        got: String,
    },
    /// An array file that is shorter or longer than its header says.
    #[error("`{}`: expected {expected} bytes as its header says, got {got}", path.display())]
    ArrayLength {
        /// The file.
        path: PathBuf,
        /// Bytes of header and values.
        expected: u64,
        /// Bytes of the file.
        got: u64,
    },
    /// A value of an array file that is not finite.
    #[error("`{}` row {row}, region {region}, column {column}: {got} is not finite in f32", path.display())]
    ArrayNotFinite {
        /// The file.
        path: PathBuf,
        /// 0-based, as the others.
        row: usize,
        /// 0 in an array of two dimensions.
        region: usize,
        /// Position in the vector of the region.
        column: usize,
        /// The value as it is stored.
        got: f64,
    },
    /// A row that an array file does not have.
    #[error("`{}`: expected a row below {rows}, got {got}", path.display())]
    ArrayRow {
        /// The file.
        path: PathBuf,
        /// How many rows (or images) there are.
        rows: usize,
        /// The row asked for.
        got: usize,
    },
    /// Room for a row that is not of the row's length.
    #[error("a row of `{}` has {expected} values, got room for {got}", path.display())]
    ArrayBuffer {
        /// The file.
        path: PathBuf,
        /// Values of a row.
        expected: usize,
        /// Values there is room for.
        got: usize,
    },
    /// Region features of another shape than those they are to be used with.
    #[error(
        "`{}`: expected {expected_regions} regions of {expected_dimension} values an image, got {regions} of {dimension}",
        path.display()
    )]
    RegionShape {
        /// The file.
        path: PathBuf,
        /// Regions an image, of the others.
        expected_regions: usize,
        /// Values a region, of the others.
        expected_dimension: usize,
        /// Regions an image of this file.
        regions: usize,
        /// Values a region of this file.
        dimension: usize,
    },
    /// A caption file that does not have the same number of lines for each image.
    #[error(
        "`{}`: expected a whole number of lines an image, got {lines} lines for {images} images of `{}`",
        path.display(),
        features.display()
    )]
    CaptionCount {
        /// The caption file.
        path: PathBuf,
        /// The file of the images' features.
        features: PathBuf,
        /// How many images there are.
        images: usize,
        /// How many lines there are, empty ones counted.
        lines: usize,
    },
}

impl DataError {
    /// The file or folder the error is about, where there is one.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Io { path, .. }
            | Self::NotAFile { path, .. }
            | Self::EmptyFile { path, .. }
            | Self::NothingUsable { path, .. }
            | Self::NotUtf8 { path, .. }
            | Self::LineTooLong { path, .. }
            | Self::CaptionRecord { path, .. }
            | Self::LabelsDisagree { path, .. }
            | Self::WrongKind { path, .. }
            | Self::UnknownFormat { path, .. }
            | Self::Malformed { path, .. }
            | Self::NoSuchImage { path, .. }
            | Self::CacheFormat { path, .. }
            | Self::CacheManifest { path, .. }
            | Self::CacheWrite { path, .. }
            | Self::ArrayFormat { path, .. }
            | Self::ArrayLength { path, .. }
            | Self::ArrayNotFinite { path, .. }
            | Self::ArrayRow { path, .. }
            | Self::ArrayBuffer { path, .. }
            | Self::RegionShape { path, .. }
            | Self::CaptionCount { path, .. } => Some(path),
            Self::ImageEmpty { path }
            | Self::ImageFormatUnknown { path }
            | Self::ImageTooManyBytes { path, .. }
            | Self::ImageTooLarge { path, .. }
            | Self::ImageTruncated { path, .. }
            | Self::ImageDecode { path, .. }
            | Self::ImageDecoderPanicked { path, .. } => path.as_deref(),
            Self::UnknownName { .. }
            | Self::NotEncoded { .. }
            | Self::InvalidHash { .. }
            | Self::FeatureShape { .. }
            | Self::FeatureNotFinite { .. } => None,
        }
    }

    /// The 1-based line the error is about, where there is one.
    pub fn line(&self) -> Option<usize> {
        match self {
            Self::NotUtf8 { line, .. }
            | Self::LineTooLong { line, .. }
            | Self::CaptionRecord { line, .. }
            | Self::LabelsDisagree { line, .. } => Some(*line),
            Self::WrongKind { line, .. } | Self::Malformed { line, .. } => *line,
            _ => None,
        }
    }

    /// The message and those of its causes in one line, `a: b: c`.
    pub fn with_causes(&self) -> String {
        self.followed_by_causes(self.to_string())
    }

    /// [`DataError::with_causes`] without the name of `file`, for where it is said already.
    pub(crate) fn with_causes_about(&self, file: &Path) -> String {
        let (text, name) = (self.to_string(), format!("`{}`", file.display()));
        let text = match text.strip_prefix(&name) {
            Some(rest) => rest.trim_start_matches([':', ' ']).to_owned(),
            None => text.replacen(&format!(" {name}"), "", 1),
        };
        self.followed_by_causes(text)
    }

    fn followed_by_causes(&self, mut text: String) -> String {
        let mut cause = self.source();
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }

    /// Names the file in an image error that was made from bytes alone.
    pub(crate) fn at(mut self, file: &Path) -> Self {
        match &mut self {
            Self::ImageEmpty { path }
            | Self::ImageFormatUnknown { path }
            | Self::ImageTooManyBytes { path, .. }
            | Self::ImageTooLarge { path, .. }
            | Self::ImageTruncated { path, .. }
            | Self::ImageDecode { path, .. }
            | Self::ImageDecoderPanicked { path, .. } => *path = Some(file.to_path_buf()),
            _ => {}
        }
        self
    }

    pub(crate) fn io(path: &Path, operation: &'static str, source: io::Error) -> Self {
        Self::Io { path: path.to_path_buf(), operation, source }
    }
}

fn how_many(skipped: usize) -> String {
    if skipped == 0 { String::new() } else { format!(" ({skipped} skipped)") }
}

fn at_line(line: Option<usize>) -> String {
    line.map_or_else(String::new, |line| format!(" line {line}"))
}

fn shown(path: &Option<PathBuf>) -> String {
    path.as_ref().map_or_else(|| "image".to_owned(), |path| format!("`{}`", path.display()))
}
