//! The crate's one error type.

use std::path::{Path, PathBuf};

/// What can go wrong while loading an encoder or running one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EncoderError {
    /// A tensor operation failed inside candle.
    #[error("tensor operation failed")]
    Tensor {
        /// The error as candle gave it.
        #[from]
        source: candle_core::Error,
    },
    /// A file that belongs to a model folder is not there.
    #[error("no such file: `{}`", file.display())]
    MissingFile {
        /// The file that was looked for.
        file: PathBuf,
    },
    /// A file could not be read.
    #[error("could not read `{}`", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// The error of the file system.
        source: std::io::Error,
    },
    /// A configuration or tokenizer is larger than any that can be meant.
    #[error("`{}` is too large: expected at most {expected} bytes", file.display())]
    FileSize {
        /// The file.
        file: PathBuf,
        /// Bytes that it may have.
        expected: u64,
    },
    /// A file could not be written.
    #[error("could not write `{}`", file.display())]
    Write {
        /// The file.
        file: PathBuf,
        /// The error of the file system.
        source: std::io::Error,
    },
    /// A JSON file does not parse, or has a key of another type.
    #[error("could not parse `{}`", file.display())]
    Json {
        /// The file.
        file: PathBuf,
        /// The error of the parser, with line and column.
        source: serde_json::Error,
    },
    /// A key of a configuration has a value that can't be used.
    #[error("`{key}`: expected {expected}, got {got} in `{}`", file.display())]
    Config {
        /// The file the configuration came from (empty when it did not come from a file).
        file: PathBuf,
        /// The key.
        key: String,
        /// What was expected.
        expected: String,
        /// What was found.
        got: String,
    },
    /// A model folder holds an architecture that this crate does not have.
    #[error("unsupported `{key}` {got} in `{}` (supported: {})", file.display(), supported.join(", "))]
    Unsupported {
        /// The configuration file.
        file: PathBuf,
        /// The key, or the keys, that name the architecture.
        key: String,
        /// What was found.
        got: String,
        /// What this crate can load.
        supported: &'static [&'static str],
    },
    /// A safetensors file is truncated or its header is wrong.
    #[error("could not read tensors from `{}`", file.display())]
    Safetensors {
        /// The file.
        file: PathBuf,
        /// The error of the parser.
        source: safetensors::SafeTensorError,
    },
    /// A tensor is not in the file.
    #[error("no tensor `{key}` (expected shape {expected:?}) in `{}`", file.display())]
    MissingTensor {
        /// The file.
        file: PathBuf,
        /// The tensor's name.
        key: String,
        /// The shape it should have.
        expected: Vec<usize>,
    },
    /// A stored tensor has another shape.
    #[error("tensor `{key}`: expected shape {expected:?}, got {got:?} in `{}`", file.display())]
    TensorShape {
        /// The file.
        file: PathBuf,
        /// The tensor's name.
        key: String,
        /// The shape it should have.
        expected: Vec<usize>,
        /// The shape it has.
        got: Vec<usize>,
    },
    /// A stored tensor has an element type that can't be used.
    #[error("tensor `{key}`: expected {expected}, got {got} in `{}`", file.display())]
    TensorType {
        /// The file.
        file: PathBuf,
        /// The tensor's name.
        key: String,
        /// The types that can be used.
        expected: &'static str,
        /// The type it has.
        got: String,
    },
    /// A stored tensor holds NaN or infinite values, or a variance below zero.
    #[error("tensor `{key}`: expected {expected}, got {got} in `{}`", file.display())]
    TensorValue {
        /// The file.
        file: PathBuf,
        /// The tensor's name.
        key: String,
        /// What its values should be.
        expected: &'static str,
        /// The first value that is not.
        got: f32,
    },
    /// A tokenizer file could not be loaded.
    #[error("could not load the tokenizer `{}`", file.display())]
    Tokenizer {
        /// The file.
        file: PathBuf,
        /// The error of the tokenizer library.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A sentence could not be tokenised.
    #[error("could not tokenise sentence {index}")]
    Tokenise {
        /// Position of the sentence in the batch.
        index: usize,
        /// The error of the tokenizer library.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A tokenizer gave an id that the embedding table does not have.
    #[error("token `{token}`: expected an id below {expected}, got {got}")]
    TokenId {
        /// The token.
        token: String,
        /// Rows of the embedding table.
        expected: usize,
        /// The id.
        got: u32,
    },
    /// A tensor passed to a function has the wrong shape.
    #[error("{what}: expected {expected}, got {got:?}")]
    Shape {
        /// The argument.
        what: &'static str,
        /// The shape in words.
        expected: String,
        /// The shape it has.
        got: Vec<usize>,
    },
    /// An argument is out of range.
    #[error("{what}: expected {expected}, got {got}")]
    Argument {
        /// The argument.
        what: &'static str,
        /// What was expected.
        expected: String,
        /// What was passed.
        got: String,
    },
    /// A folder is not a model bundle that this version can use.
    #[error("`{}` can't be used as a model: {reason}", folder.display())]
    Bundle {
        /// The folder.
        folder: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A PyTorch checkpoint is damaged, or holds what can't be read without running code.
    #[error("{place}: expected {expected}, got {got} in `{}`", file.display())]
    Checkpoint {
        /// The checkpoint.
        file: PathBuf,
        /// Where in it: a byte, an entry or a tensor.
        place: String,
        /// What was expected there.
        expected: String,
        /// What was found.
        got: String,
    },
    /// A PyTorch checkpoint has no tensors under a name, or under several and none was chosen.
    #[error("tensors: expected {}, got {got} in `{}`", wanted(key.as_deref()), file.display())]
    CheckpointKey {
        /// The checkpoint.
        file: PathBuf,
        /// The name that was asked for, if one was.
        key: Option<String>,
        /// What there is, in words.
        got: String,
    },
    /// A file could not be decoded as an image.
    #[error("could not decode the image `{}`", file.display())]
    Image {
        /// The file.
        file: PathBuf,
        /// The error of the decoder.
        source: image::ImageError,
    },
    /// A text is no id of a model on a hub.
    #[error("model id: expected `org/name` or `org/name@revision`, got `{got}`")]
    ModelId {
        /// The text.
        got: String,
    },
    /// The cache of a hub does not have a model, or not all of it.
    #[error("the model `{id}` is not in the cache: no {} in `{}`", missing.join(", "), folder.display())]
    NotCached {
        /// The model.
        id: String,
        /// Where its files would be, and may be put by hand.
        folder: PathBuf,
        /// Files that are not there.
        missing: Vec<String>,
    },
    /// A hub refuses a request.
    #[error("`{url}` answers with status {status}{}{message}", if message.is_empty() { "" } else { ": " })]
    HubStatus {
        /// What was asked for.
        url: String,
        /// The status of HTTP.
        status: u16,
        /// What the hub says about it; may be empty.
        message: String,
    },
    /// A hub can't be reached, or the connection ended.
    #[error("could not fetch `{url}`")]
    HubTransport {
        /// What was asked for.
        url: String,
        /// The error of the connection.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A hub says something that can't be used.
    #[error("`{url}`: expected {expected}, got {got}")]
    HubReply {
        /// What was asked for.
        url: String,
        /// What was expected.
        expected: String,
        /// What came.
        got: String,
    },
    /// Something that changes a hub was refused or cut off.
    #[error("could not {what}")]
    HubPush {
        /// What was tried.
        what: String,
        /// What came in the way.
        source: Box<EncoderError>,
    },
    /// A hub takes nothing from someone it does not know.
    #[error("`{id}` can't be put on the hub without a token")]
    HubToken {
        /// The model.
        id: String,
    },
    /// The hub is not to be used.
    #[error("`{id}` can't be put on the hub: offline was asked for")]
    HubOffline {
        /// The model.
        id: String,
    },
    /// A file from a hub is not what the hub says that it is.
    #[error("`{url}` is damaged: expected hash {expected}, got {got}")]
    HubHash {
        /// What was fetched.
        url: String,
        /// The hash that the hub gives.
        expected: String,
        /// The hash of what came.
        got: String,
    },
    /// An image has no pixels.
    #[error("image size: expected {expected}, got {width}x{height}")]
    ImageSize {
        /// What was expected.
        expected: String,
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
    },
}

fn wanted(key: Option<&str>) -> String {
    key.map_or_else(|| "one value that holds them".to_owned(), |key| format!("some under `{key}`"))
}

/// The crate's result type.
pub type Result<T, E = EncoderError> = std::result::Result<T, E>;

impl EncoderError {
    /// Turns a file system error on reading `file` into one of this crate.
    pub(crate) fn read(file: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let file = file.to_owned();
        move |source| match source.kind() {
            std::io::ErrorKind::NotFound => Self::MissingFile { file },
            _ => Self::Read { file, source },
        }
    }

    /// Turns a file system error on writing `file` into one of this crate.
    pub(crate) fn write(file: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let file = file.to_owned();
        move |source| Self::Write { file, source }
    }
}
