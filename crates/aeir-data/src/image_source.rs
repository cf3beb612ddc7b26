//! Where an image is: in a file of its own, within a larger file, or as features that were computed beforehand.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::decode::{DecodedImage, ImageLimits, decode_bytes, decode_file};
use crate::durable;
use crate::error::DataError;
#[cfg(feature = "parquet")]
use crate::formats::parquet::ParquetCell;
use crate::hash::{ContentHash, hash_bytes, hash_file};
use crate::region_features::RegionFeatures;

/// Where the bytes of an image are, or its features. Cheap to clone: what it points into is shared.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("red.png");
/// # image::RgbImage::from_pixel(8, 6, image::Rgb([200, 30, 20])).save(&path)?;
/// use aeir_data::{ImageLimits, ImageSource};
/// let source = ImageSource::from(path);
/// let decoded = source.decode(&ImageLimits::default())?;
/// assert_eq!((decoded.image.width(), decoded.hash), (8, source.hash(&ImageLimits::default())?));
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ImageSource {
    /// A file of its own.
    File(PathBuf),
    /// A run of bytes within a file, such as a member of an archive.
    Part(FilePart),
    /// A value in a Parquet file.
    #[cfg(feature = "parquet")]
    Parquet(ParquetCell),
    /// Features computed beforehand: there is nothing to decode.
    Features(FeatureRow),
}

/// A run of bytes within a file.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct FilePart {
    /// The file.
    pub file: Arc<Path>,
    /// What the file calls it.
    pub name: String,
    /// Where it begins, in bytes.
    pub offset: u64,
    /// How long it is, in bytes.
    pub length: u64,
}

/// One image of a file of features.
#[derive(Debug, Clone)]
pub struct FeatureRow {
    /// The file, opened.
    pub features: RegionFeatures,
    /// Which of its images.
    pub image: usize,
}

impl PartialEq for FeatureRow {
    fn eq(&self, other: &Self) -> bool {
        self.image == other.image && self.features.path() == other.features.path()
    }
}

impl Eq for FeatureRow {}

impl std::hash::Hash for FeatureRow {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.features.path().hash(state);
        self.image.hash(state);
    }
}

impl From<PathBuf> for ImageSource {
    fn from(path: PathBuf) -> Self {
        Self::File(path)
    }
}

impl From<FilePart> for ImageSource {
    fn from(part: FilePart) -> Self {
        Self::Part(part)
    }
}

impl ImageSource {
    /// The file that holds it.
    pub fn path(&self) -> &Path {
        match self {
            Self::File(path) => path,
            Self::Part(part) => &part.file,
            #[cfg(feature = "parquet")]
            Self::Parquet(cell) => cell.path(),
            Self::Features(row) => row.features.path(),
        }
    }

    /// The file, where the image is one of its own.
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::File(path) => Some(path),
            _ => None,
        }
    }

    /// The features, where the image comes as such.
    pub fn features(&self) -> Option<&FeatureRow> {
        match self {
            Self::Features(row) => Some(row),
            _ => None,
        }
    }

    /// What the file that holds it calls it; `None` for a file of its own.
    pub fn place(&self) -> Option<String> {
        match self {
            Self::File(_) => None,
            Self::Part(part) => Some(part.name.clone()),
            #[cfg(feature = "parquet")]
            Self::Parquet(cell) => Some(cell.row().to_string()),
            Self::Features(row) => Some(row.features.place(row.image)),
        }
    }

    /// The encoded image.
    ///
    /// # Errors
    /// [`DataError::Io`], [`DataError::NotAFile`]; [`DataError::ImageTooManyBytes`] above `max_bytes`, before anything is
    /// read; [`DataError::NotEncoded`] for features.
    pub fn read(&self, max_bytes: u64) -> Result<Vec<u8>, DataError> {
        match self {
            Self::File(path) => crate::decode::read_within(path, max_bytes),
            Self::Part(part) => part.read(max_bytes),
            #[cfg(feature = "parquet")]
            Self::Parquet(cell) => {
                let bytes = cell.read()?;
                let got = bytes.len() as u64;
                if got > max_bytes {
                    return Err(too_many(PathBuf::from(self.to_string()), max_bytes, got));
                }
                Ok(bytes)
            }
            Self::Features(_) => Err(DataError::NotEncoded { item: self.to_string() }),
        }
    }

    /// Reads, hashes and decodes the image.
    ///
    /// # Errors
    /// Those of [`ImageSource::read`] and [`decode_bytes`], all with the place of the image.
    pub fn decode(&self, limits: &ImageLimits) -> Result<DecodedImage, DataError> {
        if let Self::File(path) = self {
            return decode_file(path, limits);
        }
        let bytes = self.read(limits.max_bytes)?;
        let image = decode_bytes(&bytes, limits).map_err(|error| error.at(Path::new(&self.to_string())))?;
        Ok(DecodedImage { image, hash: hash_bytes(&bytes) })
    }

    /// The hash of the encoded image, as [`ImageSource::decode`] gives it, without decoding. A file that is too large to be
    /// decoded anyway is not read.
    ///
    /// # Errors
    /// Those of [`ImageSource::read`].
    pub fn hash(&self, limits: &ImageLimits) -> Result<ContentHash, DataError> {
        match self {
            Self::File(path) => {
                let (_, length) = durable::open_regular(path)?;
                if length > limits.max_bytes {
                    return Err(too_many(path.clone(), limits.max_bytes, length));
                }
                hash_file(path)
            }
            _ => Ok(hash_bytes(&self.read(limits.max_bytes)?)),
        }
    }

    /// The name with the path made absolute, as an index keeps it.
    ///
    /// # Errors
    /// Where the path is empty or the working folder is gone.
    pub fn absolute_name(&self) -> io::Result<String> {
        let path = std::path::absolute(self.path())?;
        Ok(named(&path, self.place().as_deref()))
    }
}

/// The path; with `#` and the place where the file holds more than this image.
impl fmt::Display for ImageSource {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&named(self.path(), self.place().as_deref()))
    }
}

fn named(path: &Path, place: Option<&str>) -> String {
    match place {
        None => path.to_string_lossy().into_owned(),
        Some(place) => format!("{}#{place}", path.display()),
    }
}

fn too_many(path: PathBuf, limit: u64, got: u64) -> DataError {
    DataError::ImageTooManyBytes { path: Some(path), limit, got }
}

impl FilePart {
    fn read(&self, max_bytes: u64) -> Result<Vec<u8>, DataError> {
        let failed = |error| DataError::io(&self.file, "read", error);
        if self.length > max_bytes {
            let name = PathBuf::from(named(&self.file, Some(&self.name)));
            return Err(too_many(name, max_bytes, self.length));
        }
        let mut file = File::open(&self.file).map_err(failed)?;
        file.seek(SeekFrom::Start(self.offset)).map_err(failed)?;
        let mut bytes = Vec::new();
        file.take(self.length).read_to_end(&mut bytes).map_err(failed)?;
        if bytes.len() as u64 != self.length {
            // The file was whole when it was opened.
            return Err(failed(io::ErrorKind::UnexpectedEof.into()));
        }
        Ok(bytes)
    }
}
