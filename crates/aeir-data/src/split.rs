//! The parts of a data set: what is trained on, what chooses a checkpoint, what is scored.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::DataError;

/// The part of a data set an image belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Split {
    /// For training; also what an item without a split means.
    #[serde(rename = "train")]
    Train,
    /// For choosing a checkpoint: `val`; `validation` and `dev` are read too.
    #[serde(rename = "val", alias = "validation", alias = "dev")]
    Validation,
    /// For scoring alone.
    #[serde(rename = "test")]
    Test,
}

impl Split {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Train, Self::Validation, Self::Test];
}

impl fmt::Display for Split {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Train => "train",
            Self::Validation => "val",
            Self::Test => "test",
        })
    }
}

impl FromStr for Split {
    type Err = DataError;

    fn from_str(text: &str) -> Result<Self, DataError> {
        match text {
            "train" => Ok(Self::Train),
            "val" | "validation" | "dev" => Ok(Self::Validation),
            "test" => Ok(Self::Test),
            other => Err(DataError::UnknownName {
                expected: "train, val or test",
                got: other.chars().take(80).collect(),
            }),
        }
    }
}
