//! Where the images are that a file names by relative paths, or as `FILE#PLACE` in a file that holds several.

use std::path::{Path, PathBuf};

use crate::containers::{self, Containers};
use crate::dataset::ReadOptions;
use crate::error::DataError;
use crate::image_source::ImageSource;

/// Resolves the names of images. The folder is decided by the first relative one: the one given, else that of the file, else
/// the first of the usual folders around it in which the image is there.
pub(crate) struct ImageRoot {
    file: PathBuf,
    given: Option<PathBuf>,
    /// Folders to look into, relative to that of the file.
    usual: Vec<PathBuf>,
    decided: Option<PathBuf>,
    containers: Containers,
}

impl ImageRoot {
    pub(crate) fn new(file: &Path, options: &ReadOptions) -> Self {
        let usual = ["images", "Images"].map(PathBuf::from).to_vec();
        Self {
            file: file.to_path_buf(),
            given: options.image_root.clone(),
            usual,
            decided: None,
            containers: Containers::default(),
        }
    }

    /// Relative paths are relative to the folder given, or else to that of the file and no other.
    pub(crate) fn here(file: &Path, options: &ReadOptions) -> Self {
        Self { usual: Vec::new(), ..Self::new(file, options) }
    }

    /// Further folders to look into, before the others.
    pub(crate) fn also(mut self, folders: impl IntoIterator<Item = PathBuf>) -> Self {
        self.usual.splice(0..0, folders);
        self
    }

    /// An image by its name: a path, or `FILE#PLACE`.
    ///
    /// # Errors
    /// What opening the file finds wrong; [`DataError::NoSuchImage`] where it has no such image.
    pub(crate) fn source(&mut self, name: &str) -> Result<ImageSource, DataError> {
        let Some((file, place)) = containers::split(name) else {
            return Ok(self.resolve(name).into());
        };
        let path = self.resolve(file);
        self.containers.image_at(&path, place)
    }

    /// The path of an image.
    pub(crate) fn resolve(&mut self, name: &str) -> PathBuf {
        let name = Path::new(name);
        if name.is_absolute() {
            return name.to_path_buf();
        }
        if self.decided.is_none() {
            self.decided = Some(self.decide(name));
        }
        self.decided.as_deref().unwrap_or(Path::new("")).join(name)
    }

    fn decide(&self, name: &Path) -> PathBuf {
        if let Some(given) = &self.given {
            return given.clone();
        }
        let own = self.file.parent().unwrap_or(Path::new(""));
        std::iter::once(own.to_path_buf())
            .chain(self.usual.iter().map(|folder| own.join(folder)))
            .find(|folder| folder.join(name).is_file())
            .unwrap_or_else(|| own.to_path_buf())
    }

    /// Says where the images were found, if not where one would look first.
    pub(crate) fn note(&self) -> Option<String> {
        let decided = self.decided.as_deref()?;
        let own = self.file.parent().unwrap_or(Path::new(""));
        (self.given.is_none() && decided != own)
            .then(|| format!("`{}`: the images are taken from `{}`", self.file.display(), decided.display()))
    }
}
