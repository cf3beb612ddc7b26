//! Images by the names that reports, indexes and caption files give them: a path, or `FILE#PLACE` within a file that holds
//! several.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::dataset::{Dataset, ReadOptions};
use crate::error::DataError;
use crate::image_source::{FeatureRow, ImageSource};
use crate::region_features::{RegionFeatures, is_feature_file};

/// Suffixes of files that hold several images.
const SUFFIXES: [&str; 5] = [".npy", ".safetensors", ".tsv", ".tar", ".parquet"];

/// Files that hold several images, each opened once. Files that change meanwhile are not looked at again.
#[derive(Default)]
pub struct Containers {
    opened: HashMap<PathBuf, Content>,
}

enum Content {
    Features(RegionFeatures),
    /// By their place in the file.
    Images(HashMap<String, ImageSource>),
}

/// `FILE` and `PLACE` of `FILE#PLACE`; `None` for the name of a file of its own.
pub(crate) fn split(name: &str) -> Option<(&str, &str)> {
    name.match_indices('#').find_map(|(at, _)| {
        let (file, place) = name.split_at_checked(at)?;
        let lower = file.to_ascii_lowercase();
        let place = place.strip_prefix('#')?;
        SUFFIXES.iter().any(|suffix| lower.ends_with(suffix)).then_some((file, place))
    })
}

impl Containers {
    /// The image of a name, as [`ImageSource::of_names`] finds it.
    ///
    /// # Errors
    /// As there.
    pub fn image(&mut self, name: &str) -> Result<ImageSource, DataError> {
        match split(name) {
            Some((file, place)) => self.image_at(Path::new(file), place),
            None => Ok(PathBuf::from(name).into()),
        }
    }

    /// The image at a place of a file.
    ///
    /// # Errors
    /// What opening the file finds wrong; [`DataError::NoSuchImage`] where it has nothing at this place.
    pub(crate) fn image_at(&mut self, file: &Path, place: &str) -> Result<ImageSource, DataError> {
        if !self.opened.contains_key(file) {
            self.opened.insert(file.to_path_buf(), open(file)?);
        }
        let found = match self.opened.get(file) {
            Some(Content::Features(features)) => features
                .find(place)
                .map(|image| ImageSource::Features(FeatureRow { features: features.clone(), image })),
            Some(Content::Images(images)) => images.get(place).cloned(),
            None => None,
        };
        found.ok_or_else(|| DataError::NoSuchImage { path: file.to_path_buf(), got: place.to_owned() })
    }
}

fn open(file: &Path) -> Result<Content, DataError> {
    if is_feature_file(file) {
        return Ok(Content::Features(RegionFeatures::open(file)?));
    }
    let data = Dataset::open_images(file, &ReadOptions::default())?;
    let images = data.items.into_iter().filter_map(|item| item.image);
    Ok(Content::Images(images.filter_map(|image| Some((image.place()?, image))).collect()))
}

impl ImageSource {
    /// Images by the names that their display gives them, as an index keeps them.
    ///
    /// ```
    /// # fn main() -> Result<(), aeir_data::DataError> {
    /// # let array = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/formats/scan/dev_ims.npy");
    /// let names = ["photos/1.jpg".to_owned(), format!("{array}#3")];
    /// let images = aeir_data::ImageSource::of_names(&names)?;
    /// assert_eq!(images[1].features().map(|row| row.image), Some(3));
    /// assert_eq!(images[0].to_string(), names[0]);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// What opening a file that holds several images finds wrong; [`DataError::NoSuchImage`].
    pub fn of_names(names: &[impl AsRef<str>]) -> Result<Vec<Self>, DataError> {
        let mut containers = Containers::default();
        names.iter().map(|name| containers.image(name.as_ref())).collect()
    }

    /// The file that an image of this name lies in, by the name alone.
    #[must_use]
    pub fn file_of_name(name: &str) -> &Path {
        Path::new(split(name).map_or(name, |(file, _)| file))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_stand_behind_the_suffix_of_a_container() {
        assert_eq!(split("a/b.npy#3"), Some(("a/b.npy", "3")));
        assert_eq!(split("a#b/s.TAR#x#y.jpg"), Some(("a#b/s.TAR", "x#y.jpg")));
        assert_eq!(
            (split("a#1.jpg"), split("a.npy"), split("#"), split("é.jpg#2")),
            (None, None, None, None)
        );
    }
}
