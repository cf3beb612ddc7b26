//! Arrays of features in NumPy's `.npy` format, or in a safetensors file, memory-mapped: a file of 100 GB costs no memory but what is read of it.
//!
//! The header is parsed here. The crates that read the format build a tree from the header first, by recursion and into
//! memory that the file asks for, and multiply the shape without a check for overflow: a file that nobody vouches for could
//! end the process. What a feature file needs of the format is three keys in a dictionary.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use memmap2::{Mmap, MmapOptions};
use rayon::iter::{IndexedParallelIterator, ParallelIterator};
use rayon::slice::ParallelSlice;
use safetensors::tensor::TensorInfo;
use safetensors::{Dtype, SafeTensors};

use crate::durable;
use crate::error::DataError;

const MAGIC: &[u8] = b"\x93NUMPY";

/// Headers of numeric arrays have 128 bytes: what announces more than this is none.
const MAX_HEADER_BYTES: usize = 64 * 1024;

/// Bytes that one thread looks through at a time.
const SCANNED_BYTES: usize = 1 << 20;

/// A memory-mapped array of features: one vector a row, or several regions with a vector each.
///
/// Rows are converted to `f32` as they are read. Nothing else is held in memory: the system keeps what it has room for.
///
/// # Shapes
/// `[N, F]`: N rows of one vector, which counts as one region; `[N, R, F]`: N rows of R regions.
///
/// # Numerical notes
/// `f2` and `f4` are exact in `f32`; `f8` is rounded to the nearest, and what is beyond the range of `f32` becomes infinite,
/// which [`FeatureArray::check_finite`] finds.
///
/// # Limits
/// Versions 1.0, 2.0 and 3.0 of the format; floating-point numbers of 2, 4 or 8 bytes, of either byte order; rows one after
/// the other (C order). The file must not be cut short by another program while it is open: the system ends a process that
/// reads mapped bytes which are gone.
///
/// # Example
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("features.npy");
/// let header = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }\n";
/// let mut file = [b"\x93NUMPY\x01\x00".as_slice(), &(header.len() as u16).to_le_bytes(), header.as_bytes()].concat();
/// file.extend([1.0_f32, 2.0, 3.0, 4.0, 5.0, 6.0].iter().flat_map(|value| value.to_le_bytes()));
/// std::fs::write(&path, file)?;
///
/// let array = aeir_data::FeatureArray::open(&path)?;
/// assert_eq!((array.rows(), array.regions(), array.dimension()), (2, 1, 3));
/// array.check_finite()?;
/// let mut row = vec![0.0; array.row_len()];
/// array.read_into(1, &mut row)?;
/// assert_eq!(row, [4.0, 5.0, 6.0]);
/// # Ok(()) }
/// ```
pub struct FeatureArray {
    path: PathBuf,
    map: Mmap,
    /// Where the values lie.
    values: Range<usize>,
    format: Format,
    shape: Vec<usize>,
    rows: usize,
    regions: usize,
    dimension: usize,
}

impl fmt::Debug for FeatureArray {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("FeatureArray")
            .field("path", &self.path)
            .field("format", &self.format)
            .field("shape", &self.shape)
            .finish_non_exhaustive()
    }
}

impl FeatureArray {
    /// Opens a file and holds its header against its length. No value is read.
    ///
    /// # Errors
    /// [`DataError::Io`], [`DataError::NotAFile`], [`DataError::EmptyFile`]; [`DataError::ArrayFormat`] for another kind of
    /// file, a header that does not parse, another element type, Fortran order, an extent of zero and another number of
    /// dimensions; [`DataError::ArrayLength`] where values are missing or something stands behind them.
    pub fn open(path: &Path) -> Result<Self, DataError> {
        Self::from_map(path, mapped(path, "an array in .npy format")?)
    }

    /// Opens the tensor of images in a safetensors file, and holds the header against the file's length. No value is read.
    ///
    /// The tensor is the one named `images`, `image_embeddings`, `image_features`, `embeddings` or `features`, or the only one of
    /// two or three dimensions.
    ///
    /// # Errors
    /// Those of [`FeatureArray::open`], for what safetensors files can be wrong in.
    pub fn open_safetensors(path: &Path) -> Result<Self, DataError> {
        const EXPECTED: &str = "a file in safetensors format";
        let map = mapped(path, EXPECTED)?;
        let refused = |expected: &'static str, got: String| DataError::ArrayFormat {
            path: path.to_path_buf(),
            expected,
            got,
        };
        let (header, metadata) =
            SafeTensors::read_metadata(&map).map_err(|error| refused(EXPECTED, error.to_string()))?;
        let tensors = metadata.tensors();
        let name = image_tensor(&tensors).ok_or_else(|| {
            let mut names: Vec<&str> = tensors.keys().map(String::as_str).collect();
            names.sort_unstable();
            refused(
                "one tensor of 2 or 3 dimensions, or one named images, image_embeddings, image_features, embeddings or features",
                names.join(", "),
            )
        })?;
        let info = tensors.get(&name).ok_or_else(|| refused(EXPECTED, name.clone()))?;
        let element = match info.dtype {
            Dtype::F16 => Element::F16,
            Dtype::BF16 => Element::Bf16,
            Dtype::F32 => Element::F32,
            Dtype::F64 => Element::F64,
            other => return Err(refused("elements of type F16, BF16, F32 or F64", format!("{other:?}"))),
        };
        let shape = info.shape.clone();
        let (rows, regions, dimension) = extents(&shape).map_err(|(expected, got)| refused(expected, got))?;
        // The length of the header stands before it. The crate has held the offsets against the shape and the file.
        let start = header.saturating_add(8);
        let values = start.saturating_add(info.data_offsets.0)..start.saturating_add(info.data_offsets.1);
        let format = Format { element, order: ByteOrder::Little };
        if values.len() != rows * regions * dimension * element.bytes() || map.get(values.clone()).is_none() {
            let (expected, got) = (values.end as u64, map.len() as u64);
            return Err(DataError::ArrayLength { path: path.to_path_buf(), expected, got });
        }
        Ok(Self { path: path.to_path_buf(), map, values, format, shape, rows, regions, dimension })
    }
}

/// Maps a file that is not empty.
pub(crate) fn mapped(path: &Path, expected: &'static str) -> Result<Mmap, DataError> {
    let (file, length) = durable::open_regular(path)?;
    if length == 0 {
        return Err(DataError::EmptyFile { path: path.to_path_buf(), expected });
    }
    let failed = |error| DataError::io(path, "map", error);
    let length = usize::try_from(length).map_err(|_| failed(std::io::ErrorKind::FileTooLarge.into()))?;
    // SAFETY: mapped read-only and only ever seen as bytes, any of which are valid; the type's documentation says what
    // it means for the process if the file is cut short.
    unsafe { MmapOptions::new().len(length).map(&file) }.map_err(failed)
}

/// The tensor that holds the images.
fn image_tensor(tensors: &HashMap<String, &TensorInfo>) -> Option<String> {
    const NAMES: [&str; 5] = ["images", "image_embeddings", "image_features", "embeddings", "features"];
    if let Some(name) = NAMES.iter().find(|name| tensors.contains_key(**name)) {
        return Some((*name).to_owned());
    }
    let mut arrays = tensors.iter().filter(|(_, info)| matches!(info.shape.len(), 2 | 3));
    let (name, _) = arrays.next()?;
    arrays.next().is_none().then(|| name.clone())
}

/// N, R and F of a shape.
fn extents(shape: &[usize]) -> Result<(usize, usize, usize), Refusal> {
    let shown = || format!("{shape:?}");
    let extents = match *shape {
        [rows, dimension] => (rows, 1, dimension),
        [rows, regions, dimension] => (rows, regions, dimension),
        _ => return Err(("a shape of 2 or 3 dimensions", shown())),
    };
    if shape.contains(&0) {
        return Err(("a shape without a zero", shown()));
    }
    Ok(extents)
}

impl FeatureArray {
    fn from_map(path: &Path, map: Mmap) -> Result<Self, DataError> {
        let refused = |(expected, got)| DataError::ArrayFormat { path: path.to_path_buf(), expected, got };
        let (text, start) = header_of(&map).map_err(refused)?;
        let header = Header::parse(text).map_err(refused)?;
        let (rows, regions, dimension) = extents(&header.shape).map_err(refused)?;
        let end = (header.shape.iter())
            .try_fold(header.format.element.bytes(), |bytes, extent| bytes.checked_mul(*extent))
            .and_then(|bytes| bytes.checked_add(start))
            .ok_or_else(|| refused(("a shape that fits into memory addresses", header.shape_text())))?;
        if end != map.len() {
            let (expected, got) = (end as u64, map.len() as u64);
            return Err(DataError::ArrayLength { path: path.to_path_buf(), expected, got });
        }
        let Header { format, shape } = header;
        Ok(Self {
            path: path.to_path_buf(),
            map,
            values: start..end,
            format,
            shape,
            rows,
            regions,
            dimension,
        })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The shape as the file has it: two or three extents, none of them zero.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// N: how many rows there are.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// R: how many vectors a row has; 1 in an array of two dimensions.
    pub fn regions(&self) -> usize {
        self.regions
    }

    /// F: the length of a vector.
    pub fn dimension(&self) -> usize {
        self.dimension
    }

    /// R times F: how many values a row has.
    pub fn row_len(&self) -> usize {
        // Within the length of the file, which `open` has checked.
        self.regions * self.dimension
    }

    /// Reads a row, region by region.
    ///
    /// # Errors
    /// [`DataError::ArrayRow`] where there is no such row, [`DataError::ArrayBuffer`] where `into` has another length than
    /// [`FeatureArray::row_len`].
    pub fn read_into(&self, row: usize, into: &mut [f32]) -> Result<(), DataError> {
        let bytes = self.row_bytes(row).ok_or_else(|| DataError::ArrayRow {
            path: self.path.clone(),
            rows: self.rows,
            got: row,
        })?;
        if into.len() != self.row_len() {
            return Err(DataError::ArrayBuffer {
                path: self.path.clone(),
                expected: self.row_len(),
                got: into.len(),
            });
        }
        self.format.decode(bytes, into);
        Ok(())
    }

    /// A row as it is in the file; `None` where there is none.
    pub(crate) fn row_bytes(&self, row: usize) -> Option<&[u8]> {
        let length = self.row_len() * self.format.element.bytes();
        let start = row.checked_mul(length)?;
        self.values().get(start..start.checked_add(length)?)
    }

    fn values(&self) -> &[u8] {
        self.map.get(self.values.clone()).unwrap_or_default()
    }

    /// Reads the whole file once and finds the first value that is not finite in `f32`.
    ///
    /// # Errors
    /// [`DataError::ArrayNotFinite`] with its place.
    pub fn check_finite(&self) -> Result<(), DataError> {
        let size = self.format.element.bytes();
        let found = self.values().par_chunks(SCANNED_BYTES).enumerate().find_map_first(|(index, bytes)| {
            let (position, got) = self.format.first_not_finite(bytes)?;
            Some((index * (SCANNED_BYTES / size) + position, got))
        });
        let Some((index, got)) = found else { return Ok(()) };
        let (row, in_row) = (index / self.row_len(), index % self.row_len());
        Err(DataError::ArrayNotFinite {
            path: self.path.clone(),
            row,
            region: in_row / self.dimension,
            column: in_row % self.dimension,
            got,
        })
    }
}

/// How a value is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Element {
    F16,
    Bf16,
    F32,
    F64,
}

impl Element {
    fn bytes(self) -> usize {
        match self {
            Self::F16 | Self::Bf16 => 2,
            Self::F32 => 4,
            Self::F64 => 8,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ByteOrder {
    Little,
    Big,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Format {
    element: Element,
    order: ByteOrder,
}

impl Format {
    const EXPECTED: &str = "elements of type f2, f4 or f8";

    fn parse(description: &[u8]) -> Result<Self, Refusal> {
        let refused = || (Self::EXPECTED, shown(description));
        let (order, element) = description.split_first().ok_or_else(refused)?;
        let order = match order {
            b'<' => ByteOrder::Little,
            b'>' => ByteOrder::Big,
            _ => return Err(refused()),
        };
        let element = match element {
            b"f2" => Element::F16,
            b"f4" => Element::F32,
            b"f8" => Element::F64,
            _ => return Err(refused()),
        };
        Ok(Self { element, order })
    }

    fn decode(self, bytes: &[u8], into: &mut [f32]) {
        match (self.element, self.order) {
            (Element::F16, ByteOrder::Little) => {
                fill(bytes, into, |value| f16::from_le_bytes(value).to_f32())
            }
            (Element::F16, ByteOrder::Big) => fill(bytes, into, |value| f16::from_be_bytes(value).to_f32()),
            (Element::Bf16, ByteOrder::Little) => {
                fill(bytes, into, |value| bf16::from_le_bytes(value).to_f32())
            }
            (Element::Bf16, ByteOrder::Big) => fill(bytes, into, |value| bf16::from_be_bytes(value).to_f32()),
            (Element::F32, ByteOrder::Little) => fill(bytes, into, f32::from_le_bytes),
            (Element::F32, ByteOrder::Big) => fill(bytes, into, f32::from_be_bytes),
            (Element::F64, ByteOrder::Little) => fill(bytes, into, |value| f64::from_le_bytes(value) as f32),
            (Element::F64, ByteOrder::Big) => fill(bytes, into, |value| f64::from_be_bytes(value) as f32),
        }
    }

    /// The position of the first value in `bytes` that is not finite in `f32`, and that value.
    fn first_not_finite(self, bytes: &[u8]) -> Option<(usize, f64)> {
        match (self.element, self.order) {
            (Element::F16, ByteOrder::Little) => find(bytes, |value| f16::from_le_bytes(value).to_f64()),
            (Element::F16, ByteOrder::Big) => find(bytes, |value| f16::from_be_bytes(value).to_f64()),
            (Element::Bf16, ByteOrder::Little) => find(bytes, |value| bf16::from_le_bytes(value).to_f64()),
            (Element::Bf16, ByteOrder::Big) => find(bytes, |value| bf16::from_be_bytes(value).to_f64()),
            (Element::F32, ByteOrder::Little) => find(bytes, |value| f64::from(f32::from_le_bytes(value))),
            (Element::F32, ByteOrder::Big) => find(bytes, |value| f64::from(f32::from_be_bytes(value))),
            (Element::F64, ByteOrder::Little) => find(bytes, f64::from_le_bytes),
            (Element::F64, ByteOrder::Big) => find(bytes, f64::from_be_bytes),
        }
    }
}

fn fill<const SIZE: usize>(bytes: &[u8], into: &mut [f32], convert: impl Fn([u8; SIZE]) -> f32) {
    for (to, from) in into.iter_mut().zip(bytes.as_chunks::<SIZE>().0) {
        *to = convert(*from);
    }
}

fn find<const SIZE: usize>(bytes: &[u8], convert: impl Fn([u8; SIZE]) -> f64) -> Option<(usize, f64)> {
    let broken = |bytes: &[u8; SIZE]| !(convert(*bytes) as f32).is_finite();
    let values = bytes.as_chunks::<SIZE>().0;
    // Nearly always there is none. Without a way out of the loop it runs on whole vectors of values.
    if !values.iter().fold(false, |any, value| any | broken(value)) {
        return None;
    }
    values.iter().enumerate().find(|(_, value)| broken(value)).map(|(index, value)| (index, convert(*value)))
}

/// What was expected and what is there instead.
type Refusal = (&'static str, String);

/// Bytes of a file as a message can show them.
fn shown(bytes: &[u8]) -> String {
    const SHOWN: usize = 100;
    let mut text = String::from("`");
    for byte in bytes.iter().take(SHOWN) {
        match byte {
            b' '..=b'~' => text.push(char::from(*byte)),
            _ => text.extend(byte.escape_ascii().map(char::from)),
        }
    }
    text.push_str(if bytes.len() > SHOWN { "`…" } else { "`" });
    text
}

/// The text of the header and where the values begin.
fn header_of(bytes: &[u8]) -> Result<(&[u8], usize), Refusal> {
    const EXPECTED: &str = "an array in .npy format";
    let start = bytes.get(..MAGIC.len()).unwrap_or(bytes);
    let rest = bytes
        .strip_prefix(MAGIC)
        .ok_or_else(|| (EXPECTED, format!("a file that begins with {}", shown(start))))?;
    let cut = || (EXPECTED, format!("a header cut short after {} bytes", bytes.len()));
    let ([major, minor], rest) = rest.split_first_chunk::<2>().ok_or_else(cut)?;
    let (length, rest) = match (major, minor) {
        (1, 0) => {
            rest.split_first_chunk().map(|(length, rest)| (usize::from(u16::from_le_bytes(*length)), rest))
        }
        (2 | 3, 0) => rest
            .split_first_chunk()
            .map(|(length, rest)| (usize::try_from(u32::from_le_bytes(*length)).unwrap_or(usize::MAX), rest)),
        _ => return Err(("version 1.0, 2.0 or 3.0 of the .npy format", format!("{major}.{minor}"))),
    }
    .ok_or_else(cut)?;
    if length > MAX_HEADER_BYTES {
        return Err(("a header of at most 65536 bytes", format!("{length}")));
    }
    let text = rest.get(..length).ok_or_else(|| {
        ("a header within the file", format!("{length} bytes of it in {} bytes of file", bytes.len()))
    })?;
    Ok((text, bytes.len() - rest.len() + length))
}

/// What the header says: `{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }`.
#[derive(Debug, PartialEq, Eq)]
struct Header {
    format: Format,
    shape: Vec<usize>,
}

impl Header {
    const EXPECTED: &str = "a header with descr, fortran_order and shape, each once";

    fn parse(text: &[u8]) -> Result<Self, Refusal> {
        let (mut format, mut c_order, mut shape) = (None, None, None);
        let mut scanner = Scanner { text, rest: text };
        scanner.expect(b'{')?;
        while !scanner.take(b'}') {
            let key = scanner.string()?;
            scanner.expect(b':')?;
            let first = match key {
                b"descr" => format.replace(Format::parse(scanner.description()?)?).is_none(),
                b"fortran_order" => c_order.replace(scanner.c_order()?).is_none(),
                b"shape" => shape.replace(scanner.shape()?).is_none(),
                _ => false,
            };
            if !first {
                return Err(scanner.refusal());
            }
            // The last comma may be missing.
            if !scanner.take(b',') && !scanner.next_is(b'}') {
                return Err(scanner.refusal());
            }
        }
        scanner.end()?;
        match (format, c_order, shape) {
            (Some(format), Some(()), Some(shape)) => Ok(Self { format, shape }),
            _ => Err(scanner.refusal()),
        }
    }

    fn shape_text(&self) -> String {
        let extents: Vec<String> = self.shape.iter().map(ToString::to_string).collect();
        format!("[{}]", extents.join(", "))
    }
}

/// A place in the text of a header. White space before a token is passed over.
struct Scanner<'a> {
    text: &'a [u8],
    rest: &'a [u8],
}

impl<'a> Scanner<'a> {
    fn refusal(&self) -> Refusal {
        (Header::EXPECTED, shown(self.text.trim_ascii()))
    }

    fn skip_space(&mut self) {
        self.rest = self.rest.trim_ascii_start();
    }

    fn next_is(&mut self, byte: u8) -> bool {
        self.skip_space();
        self.rest.first() == Some(&byte)
    }

    fn take(&mut self, byte: u8) -> bool {
        let there = self.next_is(byte);
        if there {
            self.rest = self.rest.get(1..).unwrap_or_default();
        }
        there
    }

    fn expect(&mut self, byte: u8) -> Result<(), Refusal> {
        if self.take(byte) { Ok(()) } else { Err(self.refusal()) }
    }

    /// What stands before the first byte that is not `wanted`.
    fn run(&mut self, wanted: impl Fn(u8) -> bool) -> &'a [u8] {
        let end = self.rest.iter().position(|byte| !wanted(*byte)).unwrap_or(self.rest.len());
        let (run, rest) = self.rest.split_at_checked(end).unwrap_or_default();
        self.rest = rest;
        run
    }

    /// A string in either kind of quotes; there is none with an escape in it among the keys and the types we take.
    fn string(&mut self) -> Result<&'a [u8], Refusal> {
        let quote = if self.take(b'"') { b'"' } else { b'\'' };
        if quote == b'\'' {
            self.expect(quote)?;
        }
        let content = self.run(|byte| byte != quote);
        self.expect(quote)?;
        Ok(content)
    }

    /// The element type; a list stands for records.
    fn description(&mut self) -> Result<&'a [u8], Refusal> {
        if self.next_is(b'[') || self.next_is(b'(') {
            return Err((Format::EXPECTED, "records".to_owned()));
        }
        self.string()
    }

    fn c_order(&mut self) -> Result<(), Refusal> {
        self.skip_space();
        match self.run(|byte| byte.is_ascii_alphabetic()) {
            b"False" => Ok(()),
            b"True" => Err(("rows one after the other (C order)", "Fortran order".to_owned())),
            _ => Err(self.refusal()),
        }
    }

    /// A tuple of any length: which lengths are taken is said by number, not as a header that does not parse.
    fn shape(&mut self) -> Result<Vec<usize>, Refusal> {
        self.expect(b'(')?;
        let mut shape = Vec::new();
        while !self.take(b')') {
            shape.push(self.extent()?);
            if !self.take(b',') && !self.next_is(b')') {
                return Err(self.refusal());
            }
        }
        Ok(shape)
    }

    fn extent(&mut self) -> Result<usize, Refusal> {
        self.skip_space();
        let digits = self.run(|byte| byte.is_ascii_digit());
        // Python 2 wrote long integers as `3L`.
        if !digits.is_empty() && self.rest.first() == Some(&b'L') {
            self.rest = self.rest.get(1..).unwrap_or_default();
        }
        let extent = std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok());
        extent.ok_or_else(|| self.refusal())
    }

    /// Nothing but white space up to the values.
    fn end(&mut self) -> Result<(), Refusal> {
        self.skip_space();
        if self.rest.is_empty() { Ok(()) } else { Err(self.refusal()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Header, Refusal> {
        Header::parse(text.as_bytes())
    }

    #[test]
    fn headers_of_numpy() {
        let f4 = Format { element: Element::F32, order: ByteOrder::Little };
        for text in [
            "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }          \n",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3)}",
            " { \"shape\" : ( 2,3, ) ,\"descr\":\"<f4\",'fortran_order':False,}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (2L, 3L), }\n",
        ] {
            assert_eq!(parse(text), Ok(Header { format: f4, shape: vec![2, 3] }), "{text}");
        }
        let header = parse("{'descr': '>f8', 'fortran_order': False, 'shape': (), }").unwrap();
        assert_eq!(header.format, Format { element: Element::F64, order: ByteOrder::Big });
        assert_eq!((header.shape_text(), header.shape.len()), ("[]".to_owned(), 0));
    }

    #[test]
    fn other_headers_are_refused_with_what_they_say() {
        let with = |descr: &str, order: &str, shape: &str| {
            let text = format!("{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n");
            parse(&text).unwrap_err()
        };
        for descr in ["'<i4'", "'|u1'", "'=f4'", "'<f16'", "'<c8'", "'|O'", "''", "'<'"] {
            assert_eq!(with(descr, "False", "(2, 3)").0, Format::EXPECTED, "{descr}");
        }
        assert_eq!(with("[('a', '<f4')]", "False", "(2, 3)"), (Format::EXPECTED, "records".to_owned()));
        assert_eq!(with("'<f4'", "True", "(2, 3)").1, "Fortran order");
        for (order, shape) in [
            ("false", "(2, 3)"),
            ("0", "(2, 3)"),
            ("False", "(2, -3)"),
            ("False", "(2 3)"),
            ("False", "(,)"),
            ("False", "(2,, 3)"),
            ("False", "[2, 3]"),
            ("False", "(2, 3.0)"),
            ("False", "(L, 3)"),
            ("False", "(2, 99999999999999999999999999)"),
            ("False", "((2), 3)"),
        ] {
            assert_eq!(with("'<f4'", order, shape).0, Header::EXPECTED, "{order} {shape}");
        }
        for text in [
            "",
            "{",
            "{}",
            "{'descr': '<f4', 'fortran_order': False}",
            "{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (2, 3)}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), 'more': 1}",
            "{'descr': '<f4' 'fortran_order': False, 'shape': (2, 3)}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3)} x",
            "{'descr': '<f4",
        ] {
            assert_eq!(parse(text).unwrap_err().0, Header::EXPECTED, "{text}");
        }
        let deep = format!("{{'descr': {}", "[".repeat(60_000));
        assert_eq!(parse(&deep).unwrap_err().1, "records");
        let long = parse(&"x\n\u{1b}".repeat(100)).unwrap_err().1;
        assert!(long.ends_with('…') && !long.contains(['\n', '\u{1b}']), "{long}");
    }

    #[test]
    fn values_out_of_range_are_found_in_every_format() {
        let broken = |element, order, bytes: &[u8]| Format { element, order }.first_not_finite(bytes);
        for order in [ByteOrder::Little, ByteOrder::Big] {
            let turned = |mut bytes: Vec<u8>| {
                if order == ByteOrder::Big {
                    bytes.reverse();
                }
                bytes
            };
            let f2 = |value: f32| turned(f16::from_f32(value).to_le_bytes().to_vec());
            let f4 = |value: f32| turned(value.to_le_bytes().to_vec());
            let f8 = |value: f64| turned(value.to_le_bytes().to_vec());
            assert_eq!(broken(Element::F16, order, &[f2(1.0), f2(-2.0)].concat()), None);
            let infinite = [f2(1.0), f2(f32::NEG_INFINITY), f2(1.0)].concat();
            assert_eq!(broken(Element::F16, order, &infinite), Some((1, f64::NEG_INFINITY)));
            assert_eq!(
                broken(Element::F32, order, &[f4(f32::MAX), f4(f32::MIN_POSITIVE / 2.0)].concat()),
                None
            );
            let nan = broken(Element::F32, order, &[f4(0.0), f4(0.0), f4(f32::NAN)].concat()).unwrap();
            assert!(nan.0 == 2 && nan.1.is_nan());
            assert_eq!(broken(Element::F64, order, &[f8(3e38), f8(1e-300)].concat()), None);
            assert_eq!(broken(Element::F64, order, &[f8(0.0), f8(1e39)].concat()), Some((1, 1e39)));
        }
    }
}
