//! The crate's one error type.

use std::path::PathBuf;

/// What this crate's functions return.
pub type Result<T> = std::result::Result<T, Error>;

/// Everything that can go wrong, with the figures a message or a caller needs.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Two sizes that have to agree do not.
    #[error("{what}: expected {expected}, got {got}")]
    Shape {
        /// Which size, in words.
        what: &'static str,
        /// The size that was needed.
        expected: usize,
        /// The size that came.
        got: usize,
    },
    /// Something that needs at least one entry has none.
    #[error("{what} is empty")]
    Empty {
        /// What is empty, in words.
        what: &'static str,
    },
    /// A NaN or an infinity where a finite number is needed.
    #[error("{what}: row {row}, column {column} is {got}, not a finite number")]
    NotFinite {
        /// Which matrix, in words.
        what: &'static str,
        /// The first offending row.
        row: usize,
        /// Its first offending column.
        column: usize,
        /// The value there.
        got: f32,
    },
    /// An embedding that should have length 1 (or be all zero) has another length.
    #[error("{what}: row {row} has length {got}, expected 1: normalise with Matrix::l2_normalised first")]
    NotNormalised {
        /// Which matrix, in words.
        what: &'static str,
        /// The first offending row.
        row: usize,
        /// Its Euclidean length.
        got: f64,
    },
    /// A setting outside the range that makes sense.
    #[error("{name}: expected {expected}, got {got}")]
    Setting {
        /// The setting's name.
        name: &'static str,
        /// What it may be.
        expected: String,
        /// What it was.
        got: String,
    },
    /// A sentence names an image that does not exist.
    #[error("sentence {sentence} belongs to image {got}, but there are {images} images (0 to {})", images.saturating_sub(1))]
    Owner {
        /// The first offending sentence.
        sentence: usize,
        /// The image it names.
        got: usize,
        /// How many images there are.
        images: usize,
    },
    /// An image without any sentence can't be a query: it has no right answer.
    #[error("image {image} has no sentence: leave it out, or give it one")]
    ImageWithoutSentence {
        /// The first such image.
        image: usize,
    },
    /// The operating system refused to read, write, rename or lock.
    #[error("`{file}`: {source}", file = file.display())]
    Io {
        /// The file or folder.
        file: PathBuf,
        /// The system's own error.
        source: std::io::Error,
    },
    /// The folder holds no finished index.
    #[error("`{folder}` can't be used as an index: {reason}", folder = folder.display())]
    NotAnIndex {
        /// The folder that was opened.
        folder: PathBuf,
        /// What is missing or other.
        reason: String,
    },
    /// The folder exists and is no index: it is not replaced.
    #[error("`{folder}` exists and is not an index (no `{manifest}` of one): choose another folder, or remove it first", folder = folder.display(), manifest = crate::MANIFEST_FILE)]
    WouldOverwrite {
        /// The folder that was to be written.
        folder: PathBuf,
    },
    /// An index, or the graph of one, of another format version.
    #[error("`{file}`: expected index version {expected}, got {got}: rebuild the index", file = file.display())]
    Version {
        /// The manifest, or the file of the graph.
        file: PathBuf,
        /// The version this crate reads and writes.
        expected: u64,
        /// The version in the file.
        got: u64,
    },
    /// A file of the index is not what was written.
    #[error("`{file}` is damaged: expected {expected}, got {got}: rebuild the index", file = file.display())]
    Damaged {
        /// The file.
        file: PathBuf,
        /// What the manifest says, with its unit.
        expected: String,
        /// What the file has.
        got: String,
    },
    /// A file name that an index does not hold: the index's own, or a link.
    #[error("`{file}`: {reason}", file = file.display())]
    ExtraFile {
        /// The file.
        file: PathBuf,
        /// Why it is refused.
        reason: &'static str,
    },
    /// An item is named twice among those that are added at once.
    #[error("item `{item}` comes twice: every item of an index has a name of its own")]
    DuplicateItem {
        /// Its path or id.
        item: String,
    },
    /// An index holds no item of this name.
    #[error("`{folder}` holds no item `{item}`", folder = folder.display())]
    UnknownItem {
        /// The index's folder.
        folder: PathBuf,
        /// The path or id that was asked for.
        item: String,
    },
    /// A filter asks for metadata that the index has not.
    #[error("`{folder}` holds no metadata to filter by: give some when the items are added", folder = folder.display())]
    NoMetadata {
        /// The index's folder.
        folder: PathBuf,
    },
    /// A selection of items was made in another generation of the index.
    #[error("a selection of items of `{folder}` is of another generation: select again", folder = folder.display())]
    OtherGeneration {
        /// The index's folder.
        folder: PathBuf,
    },
    /// Somebody else is writing into the index.
    #[error("`{folder}` is being changed by another writer: wait until it has finished", folder = folder.display())]
    Locked {
        /// The index's folder.
        folder: PathBuf,
    },
    /// The index was built with another model than the one that encodes the query.
    #[error("`{folder}` was built with model `{expected}`, the query's model is `{got}`: rebuild the index with this model, or search it with the one that built it", folder = folder.display())]
    ModelMismatch {
        /// The index's folder.
        folder: PathBuf,
        /// The fingerprint the index was built with.
        expected: String,
        /// The fingerprint that was asked for.
        got: String,
    },
}
