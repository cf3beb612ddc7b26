//! The parts of a data set: what is trained on, what chooses a checkpoint, what is scored.

use std::fmt;
use std::path::Path;
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

    /// The split that public data sets mean by a name: those of [`Split::from_str`] in any case, and `restval`, the part of
    /// COCO's validation images that everybody trains on.
    pub(crate) fn published(name: &str) -> Option<Self> {
        match name.trim().to_ascii_lowercase().as_str() {
            "restval" => Some(Self::Train),
            name => name.parse().ok(),
        }
    }

    /// The split in the name of a file such as `train-00000-of-00002.parquet` or `captions_val2014.json`; `None` where the name
    /// has none, or several.
    pub(crate) fn of_file_name(file: &Path) -> Option<Self> {
        let name = file.file_name()?.to_string_lossy().to_ascii_lowercase();
        let words = name.split(|letter: char| !letter.is_ascii_alphanumeric());
        let named = words.filter_map(|word| {
            let word = word.trim_end_matches(|letter: char| letter.is_ascii_digit());
            word.parse::<Self>().ok()
        });
        let mut found = None;
        for split in named {
            if found.is_some_and(|found| found != split) {
                return None;
            }
            found = Some(split);
        }
        found
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_names_say_their_split() {
        let of = |name: &str| Split::of_file_name(Path::new(name));
        assert_eq!(of("train-00000-of-00002.parquet"), Some(Split::Train));
        assert_eq!(of("annotations/captions_val2014.json"), Some(Split::Validation));
        assert_eq!(of("shard-Test-01.tar"), Some(Split::Test));
        assert_eq!((of("captions.json"), of("trainval.tsv"), of("train-test.tar")), (None, None, None));
        assert_eq!(Split::published(" RestVal"), Some(Split::Train));
    }
}
