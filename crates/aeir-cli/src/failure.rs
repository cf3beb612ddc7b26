//! How a failure is told: `error:`, its causes, a `hint:`, and an exit code by kind.

use std::io;
use std::path::Path;
use std::process::ExitCode;

use aeir_data::{DataError, IMAGE_SUFFIXES};
use aeir_encoders::EncoderError;
use aeir_train::TrainError;
use aeir_train::run::CONFIG_FILE;

use crate::collection::is_within_collection;
use crate::interrupt::INTERRUPTED;
use crate::place::cache_folder;
use crate::search_engine::QueryError;
use crate::terminal::say;

/// Something general failed.
pub(crate) const FAILED: u8 = 1;
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
    /// A signal asked to end.
    #[error("interrupted")]
    Interrupted { hint: String },
    /// A device does not compute what the CPU computes; the table has said where.
    #[error(
        "{what} does not give what the fused operations of the CPU give: {differ} checks differ, {failed} failed"
    )]
    Selftest { differ: usize, failed: usize, what: String },
    /// No check that was asked for is done in a type that was asked for.
    #[error("nothing was compared: no check that was asked for is done in that type")]
    NothingCompared,
    /// Something on this machine does not work; the list has said what.
    #[error("{broken} of the things above {} not work", if *broken == 1 { "does" } else { "do" })]
    Doctor { broken: usize },
    /// Another run of this program failed, and has said why.
    #[error("`{command}` failed")]
    Child { command: String, code: u8 },
}

impl CliError {
    fn code_and_hint(&self) -> (u8, Option<&str>) {
        let (code, hint) = match self {
            Self::Usage { hint, .. } => (USAGE, hint),
            Self::Missing { hint, .. } => (NO_MODEL, hint),
            Self::Data { hint, .. } => (BAD_DATA, hint),
            Self::Interrupted { hint } => (INTERRUPTED, hint),
            Self::Selftest { .. } | Self::NothingCompared | Self::Doctor { .. } => return (FAILED, None),
            Self::Child { code, .. } => return (*code, None),
        };
        (code, Some(hint.as_str()).filter(|hint| !hint.is_empty()))
    }
}

/// Prints a failure to stderr and gives its exit code. A command with `--memory-budget` is told of it where it helps.
pub(crate) fn report(error: &anyhow::Error, has_budget: bool) -> ExitCode {
    let mut message = String::new();
    for cause in error.chain() {
        let text = cause.to_string();
        let text = without_backtrace(&text);
        // Wrappers repeat what they wrap: say it once.
        if !message.ends_with(text) {
            if !message.is_empty() {
                message.push_str(": ");
            }
            message.push_str(text);
        }
    }
    say(&format!("error: {message}"));
    let (code, hint) = code_and_hint(error, has_budget);
    if let Some(hint) = hint.or_else(|| hint_of_system(error)) {
        say(&format!("\nhint: {hint}"));
    }
    ExitCode::from(code)
}

/// The message without the stack that candle appends where `RUST_BACKTRACE` is set.
pub(crate) fn without_backtrace(message: &str) -> &str {
    message.split_once("\n   0: ").map_or(message, |(told, _)| told).trim_end()
}

/// What to do about a full disk, wherever it was met.
fn hint_of_system(error: &anyhow::Error) -> Option<String> {
    let full = error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>()).any(|error| {
        matches!(
            error.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
        )
    });
    full.then(|| "free some space there, or write to another disk".to_owned())
}

/// How errors of device libraries say that no memory is left: the CUDA driver, cuBLAS, Metal.
const NO_MEMORY: [&str; 4] = [
    "CUDA_ERROR_OUT_OF_MEMORY",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "Failed to create metal resource: Buffer",
    "out of memory",
];

/// Whether a device had no memory left.
fn is_out_of_memory(error: &anyhow::Error) -> bool {
    // What the command line found has a hint of its own.
    if error.chain().any(|cause| cause.is::<CliError>()) {
        return false;
    }
    error.chain().any(|cause| {
        let text = cause.to_string();
        NO_MEMORY.iter().any(|name| text.contains(name))
    })
}

/// What to do where a device has no memory left.
fn hint_of_memory(has_budget: bool) -> String {
    const BATCHES: &str = "lower --batch-size (`--set optimizer.accumulate=N` keeps the sum of N batches in one step) or \
         `target_batch_size`";
    const BUDGET: &str = "--memory-budget SIZE names a batch that fits before the first step";
    const OTHERS: &str =
        "`nvidia-smi` shows what other programs hold there; --device cpu uses the machine's own memory";
    let less = if has_budget {
        format!("{BATCHES}; {BUDGET}")
    } else {
        format!("in training {BATCHES}; other commands take less with a smaller model")
    };
    format!("the device has no memory left: {less}. {OTHERS}")
}

fn code_and_hint(error: &anyhow::Error, has_budget: bool) -> (u8, Option<String>) {
    #[cfg(feature = "cuda")]
    if let Some(error) = error.chain().find_map(|cause| cause.downcast_ref::<aeir_retrieve::CardError>()) {
        return (FAILED, Some(crate::search_card::hint_of(error)));
    }
    if is_out_of_memory(error) {
        return (FAILED, Some(hint_of_memory(has_budget)));
    }
    for cause in error.chain() {
        if let Some(error) = cause.downcast_ref::<CliError>() {
            let (code, hint) = error.code_and_hint();
            return (code, hint.map(str::to_owned));
        }
        if let Some(error) = cause.downcast_ref::<QueryError>() {
            return of_query(error);
        }
        if let Some(error) = cause.downcast_ref::<TrainError>()
            && let Some(found) = of_training(error)
        {
            return found;
        }
        #[cfg(feature = "milvus")]
        if let Some(error) = cause.downcast_ref::<aeir_retrieve::MilvusError>() {
            return of_milvus(error);
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

fn of_query(error: &QueryError) -> (u8, Option<String>) {
    match error {
        QueryError::Empty | QueryError::NoItem(_) => (USAGE, None),
        QueryError::Cancelled => (USAGE, Some("take something else away, or give it less weight".into())),
        QueryError::NotFinite => (FAILED, Some("the model's weights are broken: train it again".into())),
    }
}

fn of_training(error: &TrainError) -> Option<(u8, Option<String>)> {
    let found = match error {
        TrainError::Setting { .. } | TrainError::ConfigSyntax { .. } => (USAGE, None),
        TrainError::Budget { hint, .. } => (USAGE, Some(hint.clone())),
        TrainError::Interrupted { .. } => {
            (INTERRUPTED, Some("go on with the same command and --resume latest".into()))
        }
        TrainError::OtherRun { .. } => (
            USAGE,
            Some("give the settings and data it was begun with, start afresh with --overwrite, or name another --output".into()),
        ),
        TrainError::Output { reason, .. } if reason.contains("unfinished") => (
            USAGE,
            Some(
                "go on with --resume latest, start afresh with --overwrite, or name another --output".into(),
            ),
        ),
        TrainError::Output { reason, .. } if reason.contains("finished") => (
            USAGE,
            Some("name another --output, add --overwrite, or --resume latest to keep it as it is".into()),
        ),
        TrainError::Output { .. } => (USAGE, None),
        TrainError::Checkpoint { .. } => (
            USAGE,
            Some("start afresh with --overwrite, or give the settings and data it was made with".into()),
        ),
        TrainError::Data { .. } => (BAD_DATA, None),
        TrainError::NotFinite { .. } | TrainError::Retrieve(aeir_retrieve::Error::NotFinite { .. }) => (
            FAILED,
            Some("lower --lr, or set `clip_norm` under [optimizer]; the last checkpoint is kept".into()),
        ),
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
            Some(
                "remove that folder: features are computed again; AEIR_CACHE_DIR chooses another cache"
                    .into(),
            ),
        ),
        DataError::CacheWrite { .. } => {
            (FAILED, Some("free some space, or set AEIR_CACHE_DIR to a folder on another disk".into()))
        }
        DataError::Io { path, operation, .. } if *operation != "read" => {
            let cached = cache_folder().is_ok_and(|cache| path.starts_with(cache));
            (FAILED, cached.then(|| "set AEIR_CACHE_DIR to a folder that can be written".into()))
        }
        DataError::Malformed { expected, .. } if expected.starts_with("a column") => {
            (BAD_DATA, Some("name them with --columns image=NAME,caption=NAME,split=NAME".into()))
        }
        DataError::NothingUsable { path, expected: "image path", .. } if path.is_dir() => {
            let suffixes = IMAGE_SUFFIXES.join(", .");
            (
                BAD_DATA,
                Some(format!("a folder is searched, with its subfolders, for files that end in .{suffixes}")),
            )
        }
        _ => (BAD_DATA, None),
    }
}

fn of_encoder(error: &EncoderError) -> (u8, Option<String>) {
    match error {
        EncoderError::Write { .. } => (FAILED, None),
        EncoderError::Bundle { folder, reason } => (NO_MODEL, hint_of_model(folder, reason)),
        EncoderError::MissingFile { .. } => {
            (NO_MODEL, Some("the folder is not whole: copy it again, or name another".into()))
        }
        EncoderError::NotCached { folder, .. } => (NO_MODEL, Some(hint_of_cache(folder))),
        EncoderError::HubStatus { status, .. } => (NO_MODEL, hint_of_status(*status)),
        EncoderError::HubTransport { .. } => (
            NO_MODEL,
            Some("without network, give a folder with the files in place of the id; HF_ENDPOINT names a mirror".into()),
        ),
        EncoderError::HubPush { source, .. } => (NO_MODEL, hint_of_push(source)),
        EncoderError::HubToken { .. } => (
            USAGE,
            Some("set HF_TOKEN to a token that may write, or log in once with Hugging Face's own tool".into()),
        ),
        EncoderError::HubOffline { .. } => (USAGE, Some("unset HF_HUB_OFFLINE".into())),
        EncoderError::HubReply { .. } | EncoderError::HubHash { .. } | EncoderError::ModelId { .. } => {
            (NO_MODEL, None)
        }
        EncoderError::CheckpointKey { .. } => {
            (USAGE, Some("give --key one of these names; --list shows every tensor".into()))
        }
        EncoderError::Read { .. }
        | EncoderError::FileSize { .. }
        | EncoderError::Checkpoint { .. }
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

fn hint_of_cache(folder: &Path) -> String {
    let fill = format!("put the model's files into `{}`, or name a folder that holds them", folder.display());
    let fetch =
        if cfg!(feature = "hub") { "unset HF_HUB_OFFLINE" } else { "build aeir with `--features hub`" };
    format!("{fill}; to fetch them, {fetch}")
}

fn hint_of_status(status: u16) -> Option<String> {
    let hint = match status {
        401 | 403 => {
            "the model is private or gated, or there is no such model: set HF_TOKEN to a token that may read it"
        }
        404 => "look at the id and the revision: `org/name` or `org/name@revision`",
        429 => "the hub is asked too often: wait, or set HF_TOKEN",
        _ => return None,
    };
    Some(hint.to_owned())
}

/// What to do about a push that a hub did not take.
fn hint_of_push(error: &EncoderError) -> Option<String> {
    let hint = match error {
        EncoderError::HubStatus { status: 401, .. } => {
            "the hub does not know this token: set HF_TOKEN to one that is valid"
        }
        EncoderError::HubStatus { status: 403, .. } => {
            "this token may not write there: it needs the right to write, and you a part in that organisation"
        }
        EncoderError::HubStatus { status: 404, .. } => "look at owner, name and --revision",
        EncoderError::HubStatus { status: 409 | 412, .. } => {
            "others commit to this branch at the same time: push again in a while"
        }
        EncoderError::HubStatus { status: 413, .. } => "a file is larger than the hub takes",
        EncoderError::HubStatus { status: 429, .. } => {
            "the hub is asked too often: push again later; what was sent is kept"
        }
        EncoderError::HubStatus { .. } | EncoderError::HubTransport { .. } => {
            "push again: what was sent whole is not sent again"
        }
        EncoderError::HubReply { got, .. } if got == "a public one" => {
            "name another repository, or leave --private out"
        }
        _ => return None,
    };
    Some(hint.to_owned())
}

fn hint_of_model(folder: &Path, reason: &str) -> Option<String> {
    let hint = if folder.join(CONFIG_FILE).is_file() && reason.contains("did not finish") {
        "run the same `aeir train` command with --resume latest"
    } else if reason.contains("no such folder") || reason.contains("not a model") {
        "name the --output folder of an `aeir train` that finished"
    } else if reason.contains("damaged")
        || reason.contains("was changed")
        || reason.contains("is not the one")
    {
        "copy the folder again from where it was trained, or train it again"
    } else {
        return None;
    };
    Some(hint.to_owned())
}

#[cfg(feature = "milvus")]
fn of_milvus(error: &aeir_retrieve::MilvusError) -> (u8, Option<String>) {
    use aeir_retrieve::MilvusError;
    const AGAIN: &str = "run the same command again: what was sent is not sent again";
    let (code, hint) = match error {
        MilvusError::Index(inner) => return of_retrieval(inner),
        MilvusError::Place { .. } => (
            USAGE,
            "for instance `milvus://localhost:19530/photos`, `milvuss://` with TLS; a token goes into AEIR_MILVUS_TOKEN",
        ),
        MilvusError::Unreachable { .. } => {
            (NO_MODEL, "is the server running? Milvus listens at port 19530 if nothing else is said")
        }
        MilvusError::NotMilvus { .. } => (
            NO_MODEL,
            "is that Milvus's gRPC port (19530), and not that of its web page? With TLS it is `milvuss://`, with a certificate that this system trusts or SSL_CERT_FILE \
             names; a server that was just started takes a while",
        ),
        MilvusError::Denied { .. } => {
            (NO_MODEL, "set AEIR_MILVUS_TOKEN to `user:password` or an API key that may use this collection")
        }
        MilvusError::NoCollection { place } => {
            return (NO_MODEL, Some(format!("fill it with `aeir index upload --index INDEX --to {place}`")));
        }
        MilvusError::Foreign { .. } => (
            NO_MODEL,
            "name another collection, or drop this one and make it anew with `aeir index upload --overwrite`",
        ),
        MilvusError::OtherItems { .. } => {
            (USAGE, "name another collection, or add --delete-others to delete those items")
        }
        MilvusError::TooLong { .. } => (BAD_DATA, ""),
        MilvusError::Timeout { .. } => (FAILED, "give it more time with --milvus-timeout"),
        MilvusError::Broken { .. } => (FAILED, AGAIN),
        MilvusError::Count { .. } => {
            (FAILED, "somebody else may be changing this collection; run the same command again")
        }
        MilvusError::Answer { reason, .. } if reason.contains("message length") => {
            (FAILED, "ask for fewer results with -k")
        }
        _ => (FAILED, ""),
    };
    (code, Some(hint.to_owned()).filter(|hint| !hint.is_empty()))
}

fn of_retrieval(error: &aeir_retrieve::Error) -> (u8, Option<String>) {
    use aeir_retrieve::Error;
    match error {
        Error::Setting { .. } | Error::WouldOverwrite { .. } => (USAGE, None),
        Error::NotAnIndex { folder, .. } if is_within_collection(folder) => (
            USAGE,
            Some(
                "Milvus collections are for `aeir search`, `aeir index --to` and `aeir index upload`".into(),
            ),
        ),
        Error::NotAnIndex { .. } => {
            (NO_MODEL, Some("make one with `aeir index --model RUN --images PHOTOS --output INDEX`".into()))
        }
        Error::Locked { .. } => (FAILED, None),
        Error::DuplicateItem { .. } => (BAD_DATA, None),
        Error::UnknownItem { .. } => {
            (USAGE, Some("items are named as `aeir search` prints them; nothing was changed".into()))
        }
        Error::NoMetadata { .. } => (
            USAGE,
            Some("give it with `aeir index --metadata FILE.jsonl`, or `aeir index add --metadata`".into()),
        ),
        Error::Io { .. } | Error::Empty { .. } | Error::Shape { .. } | Error::NotFinite { .. } => {
            (FAILED, None)
        }
        _ => (NO_MODEL, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_without_memory_gets_a_hint_whatever_is_around_the_error() {
        for told in [
            "DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")",
            "CublasError(CUBLAS_STATUS_ALLOC_FAILED)",
            "Failed to create metal resource: Buffer",
        ] {
            let error = candle_core::Error::Msg(told.to_owned());
            let error = anyhow::Error::from(TrainError::from(error)).context("could not train");
            for has_budget in [false, true] {
                let (code, hint) = code_and_hint(&error, has_budget);
                let hint = hint.unwrap();
                assert_eq!((code, hint.contains("--memory-budget")), (FAILED, has_budget), "{told}");
                assert!(hint.contains("--batch-size"), "{told}");
            }
        }
        let other = anyhow::Error::from(TrainError::from(candle_core::Error::Msg("something".into())));
        assert_eq!(code_and_hint(&other, true), (FAILED, None));
    }
}
