//! Region features in the text format of bottom-up attention: a line an image, `image_id`, `image_w`, `image_h`, `num_boxes`,
//! `boxes` and `features`, separated by tabs, the last two in base64.
//!
//! The file is memory-mapped; where each line begins is kept, and a line is decoded when it is wanted. Lines may differ in their
//! number of boxes (10 to 100 in one of the published versions).

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use memmap2::Mmap;
use rayon::iter::{IntoParallelIterator, ParallelIterator};

use crate::dataset::Format;
use crate::error::DataError;
use crate::npy::mapped;
use crate::skipped::Skipped;

/// Fields of a line before the features.
const FIELDS_BEFORE: usize = 5;

/// Id, width, height and number of boxes are shorter than this together with the tabs.
const MAX_NUMBERS_BYTES: usize = 4 * 1024;

/// A memory-mapped table of region features.
pub(crate) struct FeatureTable {
    path: PathBuf,
    map: Arc<Mmap>,
    rows: Vec<Row>,
    /// The row of each id.
    positions: HashMap<String, usize>,
    skipped: Vec<Skipped>,
    /// The most boxes of a line.
    regions: usize,
    dimension: usize,
}

struct Row {
    id: String,
    line: usize,
    /// Where the features begin; how long they are follows from the number of boxes.
    start: usize,
    boxes: usize,
}

impl fmt::Debug for FeatureTable {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("FeatureTable").field("path", &self.path).finish_non_exhaustive()
    }
}

/// What the numbers of a line say.
struct Line<'a> {
    id: &'a str,
    boxes: usize,
    features: &'a [u8],
}

/// Whether a line looks like one of this format.
pub(crate) fn is_line(line: &[u8]) -> bool {
    let mut fields = line.split(|byte| *byte == b'\t');
    let number = |field: Option<&[u8]>| {
        field.is_some_and(|field| {
            !field.is_empty() && field.len() < 20 && field.iter().all(u8::is_ascii_digit)
        })
    };
    let id = fields.next().is_some_and(|id| !id.is_empty() && id.len() < MAX_NUMBERS_BYTES);
    id && number(fields.next()) && number(fields.next()) && number(fields.next()) && fields.next().is_some()
}

impl FeatureTable {
    /// Maps the file and looks at the numbers of every line; the features are decoded when they are read.
    ///
    /// Lines that can't be used (cut short, another number of values a box than the first, an id that stood before) are left out
    /// and listed.
    ///
    /// # Errors
    /// [`DataError::Malformed`] where the first line is none of this format; [`DataError::EmptyFile`], [`DataError::Io`].
    pub(crate) fn open(path: &Path) -> Result<Self, DataError> {
        let map = mapped(path, "a line an image")?;
        let mut table = Self {
            path: path.to_path_buf(),
            map: Arc::new(map),
            rows: Vec::new(),
            positions: HashMap::new(),
            skipped: Vec::new(),
            regions: 0,
            dimension: 0,
        };
        table.index()?;
        Ok(table)
    }

    fn index(&mut self) -> Result<(), DataError> {
        let map = Arc::clone(&self.map);
        let mut at = 0;
        let mut number = 0;
        while let Some(rest) = map.get(at..).filter(|rest| !rest.is_empty()) {
            number += 1;
            let end = memchr::memchr(b'\n', rest).unwrap_or(rest.len());
            let line = rest.get(..end).unwrap_or_default();
            let start = at;
            at += end + 1;
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            if line.is_empty() {
                continue;
            }
            let parsed = parse(line).and_then(|parsed| {
                let dimension = dimension_of(&parsed)?;
                if self.dimension == 0 {
                    self.dimension = dimension;
                }
                if self.dimension != dimension {
                    return Err(format!(
                        "expected boxes of {} values as before, got {} of {dimension}",
                        self.dimension, parsed.boxes
                    ));
                }
                Ok(parsed)
            });
            match parsed {
                Ok(parsed) if self.positions.contains_key(parsed.id) => {
                    self.skipped.push(Skipped::line(&self.path, number, parsed.id, "the id stands before"));
                }
                Ok(parsed) => {
                    let into_line = line.len() - parsed.features.len();
                    self.positions.insert(parsed.id.to_owned(), self.rows.len());
                    self.regions = self.regions.max(parsed.boxes);
                    let (id, boxes) = (parsed.id.to_owned(), parsed.boxes);
                    self.rows.push(Row { id, line: number, start: start + into_line, boxes });
                }
                Err(got) if self.rows.is_empty() && self.skipped.is_empty() => {
                    return Err(self.refusal(number, got));
                }
                Err(reason) => {
                    let shown = line.split(|byte| *byte == b'\t').next().unwrap_or_default();
                    self.skipped.push(Skipped::line(
                        &self.path,
                        number,
                        &String::from_utf8_lossy(shown),
                        reason,
                    ));
                }
            }
        }
        if self.rows.is_empty() {
            return Err(self.refusal(1, "no line with features".to_owned()));
        }
        Ok(())
    }

    fn refusal(&self, line: usize, got: String) -> DataError {
        DataError::Malformed {
            path: self.path.clone(),
            format: Format::FeatureTable,
            line: Some(line),
            expected: "image_id, image_w, image_h, num_boxes, boxes and features, separated by tabs"
                .to_owned(),
            got,
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows.len()
    }

    pub(crate) fn regions(&self) -> usize {
        self.regions
    }

    /// The boxes of a row; 0 where there is no such row.
    pub(crate) fn regions_of(&self, row: usize) -> usize {
        self.rows.get(row).map_or(0, |row| row.boxes)
    }

    pub(crate) fn dimension(&self) -> usize {
        self.dimension
    }

    /// The row of an image id.
    pub(crate) fn position(&self, id: &str) -> Option<usize> {
        self.positions.get(id).copied()
    }

    /// Lines that were left out.
    pub(crate) fn skipped(&self) -> &[Skipped] {
        &self.skipped
    }

    /// Decodes all rows and finds the first value that is not finite.
    pub(crate) fn check_finite(&self) -> Result<(), DataError> {
        (0..self.rows.len()).into_par_iter().try_for_each(|row| {
            let mut values = vec![0.0; self.regions * self.dimension];
            self.read_into(row, &mut values)?;
            match values.iter().position(|value| !value.is_finite()) {
                None => Ok(()),
                Some(place) => Err(DataError::ArrayNotFinite {
                    path: self.path.clone(),
                    row,
                    region: place / self.dimension,
                    column: place % self.dimension,
                    got: values.get(place).copied().map_or(f64::NAN, f64::from),
                }),
            }
        })
    }

    /// The image id of a row.
    pub(crate) fn id(&self, row: usize) -> Option<&str> {
        self.rows.get(row).map(|row| row.id.as_str())
    }

    /// Decodes a row. `into` has room for the largest; what a row has less is zero.
    pub(crate) fn read_into(&self, row: usize, into: &mut [f32]) -> Result<(), DataError> {
        let count = self.regions * self.dimension;
        let found = self.rows.get(row).ok_or_else(|| DataError::ArrayRow {
            path: self.path.clone(),
            rows: self.rows.len(),
            got: row,
        })?;
        if into.len() != count {
            return Err(DataError::ArrayBuffer { path: self.path.clone(), expected: count, got: into.len() });
        }
        let own = found.boxes * self.dimension;
        let encoded = encoded_len(own * 4);
        let text = self.map.get(found.start..found.start + encoded).unwrap_or_default();
        let bytes = STANDARD
            .decode(text)
            .map_err(|error| self.refusal(found.line, format!("{error} in the features")))?;
        let (values, padding) = into.split_at_mut(own.min(into.len()));
        for (into, value) in values.iter_mut().zip(bytes.as_chunks::<4>().0) {
            *into = f32::from_le_bytes(*value);
        }
        padding.fill(0.0);
        Ok(())
    }
}

/// Characters that base64 has for so many bytes.
fn encoded_len(bytes: usize) -> usize {
    bytes.div_ceil(3) * 4
}

fn parse(line: &[u8]) -> Result<Line<'_>, String> {
    // Boxes and features have no tab in them, and are long: only the beginning is looked through.
    let mut rest = line;
    let mut fields = [&b""[..]; FIELDS_BEFORE];
    for (count, field) in fields.iter_mut().enumerate() {
        let tab = memchr::memchr(b'\t', rest).ok_or_else(|| format!("{} fields", count + 1))?;
        let (text, behind) = rest.split_at_checked(tab).ok_or("a line without fields")?;
        *field = text;
        rest = behind.get(1..).unwrap_or_default();
    }
    let [id, width, height, count, _] = fields;
    let text = |field: &[u8]| -> Result<String, String> {
        std::str::from_utf8(field)
            .map(|text| text.trim().to_owned())
            .map_err(|_| "a field that is not UTF-8".to_owned())
    };
    for size in [width, height] {
        let size = text(size)?;
        size.parse::<f64>().map_err(|_| format!("`{}` as an image size", shown(&size)))?;
    }
    let count = text(count)?;
    let boxes = count.parse().ok().filter(|boxes| *boxes > 0);
    let boxes = boxes.ok_or_else(|| format!("`{}` as the number of boxes", shown(&count)))?;
    let id = std::str::from_utf8(id).map_err(|_| "an id that is not UTF-8")?.trim();
    if id.is_empty() || id.contains('\0') {
        return Err("an empty id".to_owned());
    }
    Ok(Line { id, boxes, features: rest })
}

fn shown(text: &str) -> String {
    text.chars().take(40).collect()
}

/// F, from the length of the features.
fn dimension_of(line: &Line<'_>) -> Result<usize, String> {
    let padding = line.features.iter().rev().take_while(|byte| **byte == b'=').count();
    let bytes = (line.features.len() / 4).checked_mul(3).and_then(|bytes| bytes.checked_sub(padding));
    let bytes = bytes.filter(|_| line.features.len().is_multiple_of(4));
    let of_box = line.boxes.checked_mul(4).ok_or("a number of boxes beyond all bounds")?;
    match bytes {
        Some(bytes) if bytes > 0 && bytes.is_multiple_of(of_box) && padding < 3 => Ok(bytes / of_box),
        _ => Err(format!("{} characters of features for {} boxes", line.features.len(), line.boxes)),
    }
}
