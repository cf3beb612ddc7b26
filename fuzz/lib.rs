//! What the targets share: bytes become a file, the file is read as a data set.

use std::fs;
use std::path::PathBuf;

use aeir_data::{Dataset, ImageLimits, ReadOptions};
use tempfile::TempDir;

/// Small, so that a header that grew by a mutation costs no time.
pub const LIMITS: ImageLimits = ImageLimits { max_pixels: 200_000, max_side: 20_000, max_bytes: 1 << 20 };

/// A file of one name in a folder of its own, written anew for each input.
pub struct Input {
    path: PathBuf,
    _folder: TempDir,
}

impl Input {
    /// # Panics
    /// Where there is no temporary folder: nothing can be fuzzed then.
    pub fn new(name: &str) -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        Self { path: folder.path().join(name), _folder: folder }
    }

    /// # Panics
    /// Where the file can't be written.
    pub fn write(&self, bytes: &[u8]) -> &PathBuf {
        fs::write(&self.path, bytes).expect("a file in the temporary folder");
        &self.path
    }

    /// Reads the bytes as a data set, and its first images.
    ///
    /// # Panics
    /// Where the file can't be written.
    pub fn read_as_dataset(&self, bytes: &[u8]) {
        let Ok(data) = Dataset::open(self.write(bytes), &ReadOptions::default()) else { return };
        for image in data.images().iter().take(4) {
            let _ = image.decode(&LIMITS);
        }
    }
}
