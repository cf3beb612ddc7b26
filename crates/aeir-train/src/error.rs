//! What can go wrong in training, with the fields a caller needs to act.

use std::path::{Path, PathBuf};

/// Errors of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// A setting of the configuration has a value that can't be used.
    #[error("`{key}` must be {expected}, got {got}")]
    Setting {
        /// Dotted key, as in the TOML file.
        key: &'static str,
        /// What would be accepted.
        expected: String,
        /// What was given.
        got: String,
    },
    /// The configuration text can't be read.
    #[error("configuration `{file}`: {message}")]
    ConfigSyntax {
        /// The file, or what stands for it.
        file: String,
        /// What the parser says, key path included.
        message: String,
    },
    /// The data given does not suffice for what the configuration asks.
    #[error("{what}: expected {expected}, got {got}")]
    Data {
        /// The part of the data.
        what: String,
        /// What is needed.
        expected: String,
        /// What is there.
        got: String,
    },
    /// A loss or gradient stopped being finite.
    #[error("step {step}: `{tensor}` is not finite")]
    NotFinite {
        /// First offending quantity.
        tensor: String,
        /// Optimiser step, from 1.
        step: usize,
    },
    /// A training would take more memory than it may.
    #[error("this training takes about {needed} of memory, and `memory_budget` allows {budget}")]
    Budget {
        /// What it may take.
        budget: String,
        /// What it is estimated to take.
        needed: String,
        /// What would fit.
        hint: String,
    },
    /// Training was asked to stop, and did after a whole step.
    #[error("stopped after step {step} of {steps}{}", if *saved { "; the state is saved" } else { "" })]
    Interrupted {
        /// Steps done.
        step: usize,
        /// Steps in all.
        steps: usize,
        /// Whether a run folder holds the state.
        saved: bool,
    },
    /// A run would go on under other settings or with other data than it began with.
    #[error("`{}` was begun with {}", run.display(), differences.join("; "))]
    OtherRun {
        /// The run's folder.
        run: PathBuf,
        /// What differs: each key with both values, or that the data are others.
        differences: Vec<String>,
    },
    /// The output folder holds something that must not be overwritten.
    #[error("`{}` {reason}", folder.display())]
    Output {
        /// The folder.
        folder: PathBuf,
        /// What is in the way.
        reason: String,
    },
    /// A checkpoint can't be used.
    #[error("checkpoint `{}`: {reason}", file.display())]
    Checkpoint {
        /// The file or folder.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A file or folder can't be read.
    #[error("could not read `{}`", file.display())]
    Read {
        /// The file or folder.
        file: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file or folder can't be written.
    #[error("could not write `{}`", file.display())]
    Write {
        /// The file or folder.
        file: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The training thread ended without a result.
    #[error("the training thread stopped: {message}")]
    Thread {
        /// What it left behind.
        message: String,
    },
    /// From candle.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
    /// From the data crate.
    #[error(transparent)]
    Reading(#[from] aeir_data::DataError),
    /// From the encoders.
    #[error(transparent)]
    Encoder(#[from] aeir_encoders::EncoderError),
    /// From a loss.
    #[error(transparent)]
    Loss(#[from] aeir_losses::LossError),
    /// From scoring.
    #[error(transparent)]
    Retrieve(#[from] aeir_retrieve::Error),
    /// From the tensor file format.
    #[error("could not read tensors from `{}`", file.display())]
    Safetensors {
        /// The file.
        file: PathBuf,
        /// What the format's reader said.
        source: safetensors::SafeTensorError,
    },
}

/// Result with [`TrainError`].
pub type Result<T> = std::result::Result<T, TrainError>;

impl TrainError {
    pub(crate) fn read(file: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let file = file.to_owned();
        move |source| Self::Read { file, source }
    }

    pub(crate) fn write(file: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let file = file.to_owned();
        move |source| Self::Write { file, source }
    }
}
