//! Region features computed beforehand: one or several vectors an image, in an array or a table, memory-mapped.

use std::path::Path;
use std::sync::Arc;

use crate::error::DataError;
use crate::feature_table::FeatureTable;
#[cfg(feature = "parquet")]
use crate::formats::parquet::VectorColumn;
use crate::npy::FeatureArray;
use crate::skipped::Skipped;

/// Whether a file is one of features, by its suffix: `.npy`, `.safetensors`, or `.tsv` of bottom-up attention.
pub(crate) fn is_feature_file(path: &Path) -> bool {
    suffix_of(path).is_some_and(|suffix| matches!(suffix.as_str(), "npy" | "safetensors" | "tsv"))
}

fn suffix_of(path: &Path) -> Option<String> {
    path.extension().map(|suffix| suffix.to_string_lossy().to_ascii_lowercase())
}

/// Region features of a set of images, memory-mapped. Clones share the file.
///
/// In some published arrays every image stands as often as it has sentences. Where all rows come in such groups of the same
/// bytes, a group is one image: in several rows it would be its own hardest negative in training and its own rival in
/// scoring. [`RegionFeatures::note`] says so.
#[derive(Debug, Clone)]
pub struct RegionFeatures {
    store: Arc<Store>,
    rows_per_image: usize,
}

#[derive(Debug)]
enum Store {
    Array(FeatureArray),
    Table(FeatureTable),
    #[cfg(feature = "parquet")]
    Vectors(VectorColumn),
}

impl RegionFeatures {
    /// Opens an array of `[N, R, F]`, or of `[N, F]` for one vector an image, in `.npy` or `.safetensors`, or a table of
    /// bottom-up attention in `.tsv`.
    ///
    /// Of an array reads two rows, and the whole file where every image stands in it several times; of a table the numbers of
    /// each line.
    ///
    /// # Errors
    /// Those of [`FeatureArray::open`] and [`FeatureArray::open_safetensors`]; [`DataError::Malformed`] for a table.
    pub fn open(path: &Path) -> Result<Self, DataError> {
        let store = match suffix_of(path).as_deref() {
            Some("tsv") => Store::Table(FeatureTable::open(path)?),
            Some("safetensors") => Store::Array(FeatureArray::open_safetensors(path)?),
            _ => Store::Array(FeatureArray::open(path)?),
        };
        let rows_per_image = match &store {
            Store::Array(array) => rows_per_image(array),
            _ => 1,
        };
        Ok(Self { store: Arc::new(store), rows_per_image })
    }

    /// A column of a Parquet file.
    #[cfg(feature = "parquet")]
    pub(crate) fn of_column(column: VectorColumn) -> Self {
        Self { store: Arc::new(Store::Vectors(column)), rows_per_image: 1 }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        match &*self.store {
            Store::Array(array) => array.path(),
            Store::Table(table) => table.path(),
            #[cfg(feature = "parquet")]
            Store::Vectors(column) => column.path(),
        }
    }

    /// How many images there are. Never zero.
    #[allow(clippy::len_without_is_empty, reason = "a file without rows is refused")]
    pub fn len(&self) -> usize {
        self.rows() / self.rows_per_image
    }

    fn rows(&self) -> usize {
        match &*self.store {
            Store::Array(array) => array.rows(),
            Store::Table(table) => table.rows(),
            #[cfg(feature = "parquet")]
            Store::Vectors(column) => column.rows(),
        }
    }

    /// R: regions an image, of the image that has most.
    pub fn regions(&self) -> usize {
        match &*self.store {
            Store::Array(array) => array.regions(),
            Store::Table(table) => table.regions(),
            #[cfg(feature = "parquet")]
            Store::Vectors(_) => 1,
        }
    }

    /// The regions of an image: fewer than [`RegionFeatures::regions`] where the lines of a table differ; 0 where there is no such
    /// image.
    pub fn regions_of(&self, image: usize) -> usize {
        match &*self.store {
            Store::Table(table) => table.regions_of(image),
            _ if image < self.len() => self.regions(),
            _ => 0,
        }
    }

    /// Whether images differ in their number of regions.
    pub fn regions_vary(&self) -> bool {
        match &*self.store {
            Store::Table(table) => (0..table.rows()).any(|row| table.regions_of(row) != table.regions()),
            _ => false,
        }
    }

    /// F: values a region.
    pub fn dimension(&self) -> usize {
        match &*self.store {
            Store::Array(array) => array.dimension(),
            Store::Table(table) => table.dimension(),
            #[cfg(feature = "parquet")]
            Store::Vectors(column) => column.dimension(),
        }
    }

    /// R times F: values of the image that has most.
    pub fn image_len(&self) -> usize {
        // Within the length of the file, which opening it has checked.
        self.regions() * self.dimension()
    }

    /// In how many rows of the file each image stands; usually 1.
    pub fn rows_per_image(&self) -> usize {
        self.rows_per_image
    }

    /// Reads the features of an image, region by region. What it has less than [`RegionFeatures::regions`] is filled with zeros,
    /// which a mask has to leave out.
    ///
    /// # Errors
    /// [`DataError::ArrayRow`] where there is no such image, [`DataError::ArrayBuffer`] where `into` has another length than
    /// [`RegionFeatures::image_len`]; [`DataError::Malformed`] for a line of a table that does not decode.
    pub fn read_into(&self, image: usize, into: &mut [f32]) -> Result<(), DataError> {
        if image >= self.len() {
            return Err(DataError::ArrayRow {
                path: self.path().to_path_buf(),
                rows: self.len(),
                got: image,
            });
        }
        match &*self.store {
            Store::Array(array) => array.read_into(self.row_of(image), into),
            Store::Table(table) => table.read_into(image, into),
            #[cfg(feature = "parquet")]
            Store::Vectors(column) => column.read_into(image, into),
        }
    }

    /// The name of an image in an index or a report: `FILE#ROW`, with the row as NumPy counts it, or `FILE#ID`.
    pub fn name(&self, image: usize) -> String {
        format!("{}#{}", self.path().display(), self.place(image))
    }

    /// What the file calls an image: its row as NumPy counts it, or its id in a table.
    pub fn place(&self, image: usize) -> String {
        match &*self.store {
            Store::Array(_) => self.row_of(image).to_string(),
            Store::Table(table) => table.id(image).unwrap_or_default().to_owned(),
            #[cfg(feature = "parquet")]
            Store::Vectors(column) => column.row_of(image).map_or_else(String::new, |row| row.to_string()),
        }
    }

    /// The image that [`RegionFeatures::place`] calls so; `None` where there is none.
    pub fn find(&self, place: &str) -> Option<usize> {
        match &*self.store {
            Store::Array(_) => {
                let row: usize = place.parse().ok()?;
                Some(row / self.rows_per_image).filter(|image| *image < self.len())
            }
            Store::Table(table) => table.position(place),
            #[cfg(feature = "parquet")]
            Store::Vectors(column) => column.find(place.parse().ok()?),
        }
    }

    fn row_of(&self, image: usize) -> usize {
        image.saturating_mul(self.rows_per_image)
    }

    /// Reads the whole file once and refuses values that are not finite, naming the first.
    ///
    /// # Errors
    /// [`DataError::ArrayNotFinite`]; [`DataError::Malformed`] for a line of a table that does not decode.
    pub fn check_finite(&self) -> Result<(), DataError> {
        match &*self.store {
            Store::Array(array) => array.check_finite(),
            Store::Table(table) => table.check_finite(),
            #[cfg(feature = "parquet")]
            Store::Vectors(column) => column.check_finite(),
        }
    }

    /// Refuses features that don't go with others: of another dimension, or of another number of regions where neither varies.
    ///
    /// # Errors
    /// [`DataError::RegionShape`].
    pub fn check_shape(&self, other: &Self) -> Result<(), DataError> {
        let (regions, dimension) = (other.regions(), other.dimension());
        let alike = self.regions() == regions || self.regions_vary() || other.regions_vary();
        if alike && self.dimension() == dimension {
            return Ok(());
        }
        Err(DataError::RegionShape {
            path: self.path().to_path_buf(),
            expected_regions: regions,
            expected_dimension: dimension,
            regions: self.regions(),
            dimension: self.dimension(),
        })
    }

    /// A remark to show to the user.
    pub fn note(&self) -> Option<String> {
        if self.regions_vary() {
            let fewest = (0..self.len()).map(|image| self.regions_of(image)).min().unwrap_or(0);
            let path = self.path().display();
            return Some(format!(
                "`{path}`: images have {fewest} to {} regions; those with fewer are padded and masked",
                self.regions()
            ));
        }
        (self.rows_per_image > 1).then(|| {
            format!(
                "`{}`: every image stands in {} rows, so that {} rows are {} images",
                self.path().display(),
                self.rows_per_image,
                self.rows(),
                self.len()
            )
        })
    }

    /// Lines of a table that were left out.
    pub fn skipped(&self) -> &[Skipped] {
        match &*self.store {
            Store::Table(table) => table.skipped(),
            _ => &[],
        }
    }
}

/// The largest number such that all rows come in groups of so many equal ones. Rows that are all equal are no groups.
fn rows_per_image(array: &FeatureArray) -> usize {
    let (mut common, mut run) = (0, 1);
    for row in 1..array.rows() {
        if array.row_bytes(row) == array.row_bytes(row - 1) {
            run += 1;
            continue;
        }
        common = greatest_common_divisor(common, run);
        if common == 1 {
            return 1;
        }
        run = 1;
    }
    if common == 0 { 1 } else { greatest_common_divisor(common, run) }
}

fn greatest_common_divisor(mut a: usize, mut b: usize) -> usize {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}
