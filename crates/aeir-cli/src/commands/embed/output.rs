//! Where everything goes: into a folder, or into a file with the rest beside it.

use std::path::{Path, PathBuf};

use super::part::Kind;
use crate::failure::CliError;
use crate::flags::ArrayFormat;

/// What the output is, told by its suffix and by `--format`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Output {
    /// As it was named.
    path: PathBuf,
    /// Where the files lie.
    folder: PathBuf,
    /// What the names begin with; none in a folder.
    stem: Option<String>,
    pub(super) format: ArrayFormat,
    /// Whether images and sentences are embedded both.
    both: bool,
}

impl Output {
    /// A name that ends in `.npy`, `.safetensors` or `.parquet` is a file, unless there is a folder of that name.
    ///
    /// # Errors
    /// Where suffix and `--format` contradict each other, or the build has no Parquet.
    pub(super) fn of(path: &Path, format: Option<ArrayFormat>, both: bool) -> anyhow::Result<Self> {
        let suffix = path.extension().map(|suffix| suffix.to_string_lossy().to_ascii_lowercase());
        let by_suffix = ArrayFormat::ALL.into_iter().find(|format| Some(format.name()) == suffix.as_deref());
        let stem = path.file_stem().filter(|_| by_suffix.is_some() && !path.is_dir());
        let stem = stem.map(|stem| stem.to_string_lossy().into_owned());
        let by_suffix = by_suffix.filter(|_| stem.is_some());
        if let (Some(by_suffix), Some(format)) = (by_suffix, format)
            && by_suffix != format
        {
            return Err(CliError::Usage {
                message: format!("`{}` is not the name of a {} file", path.display(), format.name()),
                hint: "leave out --format: the suffix says it; or name a folder".into(),
            }
            .into());
        }
        let folder = match &stem {
            Some(_) => {
                path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
            }
            None => path,
        };
        let format = by_suffix.or(format).unwrap_or(ArrayFormat::Npy);
        if format == ArrayFormat::Parquet && cfg!(not(feature = "parquet")) {
            return Err(CliError::Usage {
                message: "this build writes no Parquet".into(),
                hint: "build with `--features parquet`, or take another --format".into(),
            }
            .into());
        }
        Ok(Self { path: path.to_owned(), folder: folder.to_owned(), stem, format, both })
    }

    /// As it was named.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(super) fn is_folder(&self) -> bool {
        self.stem.is_none()
    }

    /// The file of an array, within the folder.
    pub(super) fn array(&self, kind: Kind) -> String {
        let suffix = self.format.name();
        match (&self.stem, self.format) {
            (None, ArrayFormat::Safetensors) => format!("embeddings.{suffix}"),
            (None, _) => format!("{}.{suffix}", kind.name()),
            (Some(stem), ArrayFormat::Safetensors) => format!("{stem}.{suffix}"),
            (Some(stem), _) => format!("{stem}{}.{suffix}", self.second(kind)),
        }
    }

    /// The file that names the rows of an array; Parquet has the names in it.
    pub(super) fn names(&self, kind: Kind) -> Option<String> {
        if self.format == ArrayFormat::Parquet {
            return None;
        }
        Some(match &self.stem {
            None => format!("{}.jsonl", kind.name()),
            Some(stem) => format!("{stem}{}.jsonl", self.second(kind)),
        })
    }

    /// What stands behind the stem: images have the file's own name, and so have sentences where they are alone.
    fn second(&self, kind: Kind) -> &'static str {
        if self.both && kind == Kind::Sentences { ".sentences" } else { "" }
    }

    pub(super) fn skipped(&self) -> PathBuf {
        self.folder.join(self.beside("skipped.jsonl"))
    }

    pub(super) fn manifest(&self) -> PathBuf {
        self.folder.join(self.beside("manifest.json"))
    }

    /// Where a run works until everything is whole.
    pub(super) fn work(&self) -> PathBuf {
        self.folder.join(match &self.stem {
            None => ".unfinished".to_owned(),
            Some(stem) => format!(".{stem}.{}.unfinished", self.format.name()),
        })
    }

    fn beside(&self, name: &str) -> String {
        match &self.stem {
            None => name.to_owned(),
            // With the suffix: the same vectors in two formats may lie side by side.
            Some(stem) => format!("{stem}.{}.{name}", self.format.name()),
        }
    }

    /// The first thing that is in the way of a run that begins anew.
    pub(super) fn occupied(&self) -> std::io::Result<bool> {
        if !self.is_folder() {
            let kinds = [Kind::Images, Kind::Sentences];
            let files = kinds.iter().flat_map(|kind| [Some(self.array(*kind)), self.names(*kind)]);
            return Ok(files.flatten().any(|file| self.folder.join(file).exists()));
        }
        match std::fs::read_dir(&self.folder) {
            Ok(entries) => Ok(entries.flatten().any(|entry| entry.path() != self.skipped())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(path: &str, format: Option<ArrayFormat>, both: bool) -> Vec<String> {
        let output = Output::of(Path::new(path), format, both).unwrap();
        let kinds = [Kind::Images, Kind::Sentences];
        let mut names: Vec<String> = kinds
            .iter()
            .flat_map(|kind| [Some(output.array(*kind)), output.names(*kind)])
            .flatten()
            .collect();
        names.dedup();
        let last = |path: PathBuf| path.file_name().unwrap().to_string_lossy().into_owned();
        names.extend([last(output.skipped()), last(output.work())]);
        names
    }

    #[test]
    fn the_suffix_says_what_is_written() {
        assert_eq!(
            names("out", None, true),
            [
                "images.npy",
                "images.jsonl",
                "sentences.npy",
                "sentences.jsonl",
                "skipped.jsonl",
                ".unfinished"
            ]
        );
        assert_eq!(
            names("a/v.npy", None, true),
            [
                "v.npy",
                "v.jsonl",
                "v.sentences.npy",
                "v.sentences.jsonl",
                "v.npy.skipped.jsonl",
                ".v.npy.unfinished"
            ]
        );
        assert_eq!(
            names("v.SAFETENSORS", None, false),
            [
                "v.safetensors",
                "v.jsonl",
                "v.safetensors",
                "v.jsonl",
                "v.safetensors.skipped.jsonl",
                ".v.safetensors.unfinished"
            ]
        );
        assert!(Output::of(Path::new("v.npy"), Some(ArrayFormat::Safetensors), false).is_err());
        // No suffix of an array: a folder, whatever its name.
        let folder = Output::of(Path::new("v.2"), Some(ArrayFormat::Safetensors), false).unwrap();
        assert!(folder.is_folder() && folder.array(Kind::Images) == "embeddings.safetensors");
    }
}
