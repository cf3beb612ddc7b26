//! How a failure is told: `error:`, its causes, a `hint:`, and an exit code by kind.

use std::process::ExitCode;

use aeir_data::DataError;
use aeir_encoders::EncoderError;
use aeir_train::TrainError;

/// Something general failed.
const FAILED: u8 = 1;
/// Flags or configuration.
const USAGE: u8 = 2;
/// The data can't be used.
const BAD_DATA: u8 = 3;
/// A model, index or encoder is missing or unusable.
const NO_MODEL: u8 = 4;

/// A failure that the command line itself finds.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    /// Flags that don't go together, or a value that can't be used.
    #[error("{message}")]
    Usage { message: String, hint: String },
    /// An encoder or data folder that isn't there.
    #[error("{message}")]
    Missing { message: String, hint: String },
    /// Data without anything usable.
    #[error("{message}")]
    Data { message: String, hint: String },
}

impl CliError {
    fn code_and_hint(&self) -> (u8, Option<&str>) {
        let (code, hint) = match self {
            Self::Usage { hint, .. } => (USAGE, hint),
            Self::Missing { hint, .. } => (NO_MODEL, hint),
            Self::Data { hint, .. } => (BAD_DATA, hint),
        };
        (code, Some(hint.as_str()).filter(|hint| !hint.is_empty()))
    }
}

/// Prints a failure to stderr and gives its exit code.
#[allow(clippy::print_stderr)]
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    let mut message = String::new();
    for cause in error.chain() {
        let text = cause.to_string();
        // Wrappers repeat what they wrap: say it once.
        if !message.ends_with(&text) {
            if !message.is_empty() {
                message.push_str(": ");
            }
            message.push_str(&text);
        }
    }
    eprintln!("error: {message}");
    let (code, hint) = code_and_hint(error);
    if let Some(hint) = hint {
        eprintln!("\nhint: {hint}");
    }
    ExitCode::from(code)
}

fn code_and_hint(error: &anyhow::Error) -> (u8, Option<String>) {
    for cause in error.chain() {
        if let Some(error) = cause.downcast_ref::<CliError>() {
            let (code, hint) = error.code_and_hint();
            return (code, hint.map(str::to_owned));
        }
        if let Some(error) = cause.downcast_ref::<TrainError>()
            && let Some(found) = of_training(error)
        {
            return found;
        }
        if let Some(error) = cause.downcast_ref::<DataError>() {
            return of_data(error);
        }
        if let Some(error) = cause.downcast_ref::<EncoderError>() {
            return of_encoder(error);
        }
        if let Some(error) = cause.downcast_ref::<aeir_retrieve::Error>() {
            return of_retrieval(error);
        }
    }
    (FAILED, None)
}

fn of_training(error: &TrainError) -> Option<(u8, Option<String>)> {
    let found = match error {
        TrainError::Setting { .. } | TrainError::ConfigSyntax { .. } => (USAGE, None),
        TrainError::Output { reason, .. } if reason.contains("finished") => (
            USAGE,
            Some("name another --output, add --overwrite, or --resume latest to keep it as it is".into()),
        ),
        TrainError::Output { .. } => (USAGE, None),
        TrainError::Checkpoint { .. } => {
            (USAGE, Some("start afresh without --resume, or give the settings and data it was made with".into()))
        }
        TrainError::Data { .. } => (BAD_DATA, None),
        TrainError::NotFinite { .. } => {
            (FAILED, Some("lower --lr, or set `clip_norm` under [optimizer]; the last checkpoint is kept".into()))
        }
        TrainError::Reading(inner) => of_data(inner),
        TrainError::Encoder(inner) => of_encoder(inner),
        TrainError::Retrieve(inner) => of_retrieval(inner),
        _ => return None,
    };
    Some(found)
}

fn of_data(error: &DataError) -> (u8, Option<String>) {
    match error {
        DataError::CacheFormat { .. } | DataError::CacheManifest { .. } => (
            FAILED,
            Some("remove that folder: features are computed again; AEIR_CACHE_DIR chooses another cache".into()),
        ),
        DataError::CacheWrite { .. } => {
            (FAILED, Some("free some space, or set AEIR_CACHE_DIR to a folder on another disk".into()))
        }
        _ => (BAD_DATA, None),
    }
}

fn of_encoder(error: &EncoderError) -> (u8, Option<String>) {
    match error {
        EncoderError::Write { .. } => (FAILED, None),
        EncoderError::Bundle { reason, .. } if reason.contains("did not finish") => {
            (NO_MODEL, Some("run the same `aeir train` command with --resume latest".into()))
        }
        EncoderError::Bundle { .. }
        | EncoderError::MissingFile { .. }
        | EncoderError::Read { .. }
        | EncoderError::Json { .. }
        | EncoderError::Config { .. }
        | EncoderError::Unsupported { .. }
        | EncoderError::Safetensors { .. }
        | EncoderError::MissingTensor { .. }
        | EncoderError::TensorShape { .. }
        | EncoderError::TensorType { .. }
        | EncoderError::TensorValue { .. }
        | EncoderError::Tokenizer { .. } => (NO_MODEL, None),
        _ => (FAILED, None),
    }
}

fn of_retrieval(error: &aeir_retrieve::Error) -> (u8, Option<String>) {
    use aeir_retrieve::Error;
    match error {
        Error::Setting { .. } => (USAGE, None),
        Error::Io { .. } | Error::Empty { .. } | Error::Shape { .. } | Error::NotFinite { .. } => (FAILED, None),
        _ => (NO_MODEL, None),
    }
}
