//! CSV and TSV files with named columns: a row an image, or a row a sentence.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::rc::Rc;
use std::str::Utf8Error;

use csv::{ByteRecord, ReaderBuilder, Terminator};

use super::image_root::ImageRoot;
use crate::dataset::{Collector, Dataset, Format, Item, ReadOptions};
use crate::durable;
use crate::error::DataError;
use crate::skipped::Skipped;
use crate::split::Split;

/// A row may have many captions; more bytes than this are a quote that nobody closed.
const MAX_ROW_BYTES: usize = 16 * 1024 * 1024;

/// A line of column names is shorter.
const MAX_HEADER_BYTES: u64 = 64 * 1024;

/// Column names that hold an image's path, in any case, the first that is there.
pub(crate) const IMAGE_COLUMNS: &[&str] = &[
    "image",
    "image_path",
    "img_path",
    "filepath",
    "file_path",
    "file_name",
    "filename",
    "image_name",
    "img",
    "path",
    "file",
];

/// Column names that hold sentences, in any case, each of them also with a number behind (`caption_0`).
pub(crate) const SENTENCE_COLUMNS: &[&str] = &[
    "caption",
    "captions",
    "sentence",
    "sentences",
    "sentences_raw",
    "text",
    "texts",
    "title",
    "raw",
    "comment",
    "description",
];

/// Which column is which. What is not named is found by the usual names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Columns {
    /// The column of the image's path, or of its bytes.
    pub image: Option<String>,
    /// The columns of the sentences.
    pub captions: Vec<String>,
    /// The column of the split.
    pub split: Option<String>,
}

impl std::str::FromStr for Columns {
    type Err = DataError;

    /// `image=FILE,caption=TITLE,split=SET`; `caption` may stand several times.
    fn from_str(text: &str) -> Result<Self, DataError> {
        let mut columns = Self::default();
        for part in text.split(',') {
            let unknown = || DataError::UnknownName {
                expected: "image=NAME, caption=NAME or split=NAME, separated by commas",
                got: part.chars().take(80).collect(),
            };
            let (role, name) = part.split_once('=').ok_or_else(unknown)?;
            let name = Some(name.trim().to_owned()).filter(|name| !name.is_empty()).ok_or_else(unknown)?;
            match role.trim() {
                "image" => columns.image = Some(name),
                "caption" | "captions" | "sentence" => columns.captions.push(name),
                "split" => columns.split = Some(name),
                _ => return Err(unknown()),
            }
        }
        Ok(columns)
    }
}

/// The positions of the columns in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) image: Option<usize>,
    pub(crate) captions: Vec<usize>,
    pub(crate) split: Option<usize>,
}

impl Columns {
    /// Where the columns are among `names`; what is missing where that is not possible.
    pub(crate) fn find(&self, names: &[String]) -> Result<Found, String> {
        let named = |wanted: &str| {
            names.iter().position(|name| name == wanted).ok_or_else(|| format!("a column `{wanted}`"))
        };
        let usual = |usual: &[&str]| {
            usual.iter().find_map(|usual| names.iter().position(|name| name.eq_ignore_ascii_case(usual)))
        };
        let image = match &self.image {
            Some(name) => Some(named(name)?),
            None => usual(IMAGE_COLUMNS),
        };
        let captions = if self.captions.is_empty() {
            (0..names.len())
                .filter(|place| names.get(*place).is_some_and(|name| is_sentence_column(name)))
                .collect()
        } else {
            self.captions.iter().map(|name| named(name)).collect::<Result<Vec<_>, _>>()?
        };
        let split = match &self.split {
            Some(name) => Some(named(name)?),
            None => usual(&["split"]),
        };
        if image.is_none() && captions.is_empty() {
            return Err(format!(
                "a column with images ({}) or with sentences ({})",
                IMAGE_COLUMNS.join(", "),
                SENTENCE_COLUMNS.join(", ")
            ));
        }
        Ok(Found { image, captions, split })
    }
}

/// Whether a column's name, without a number behind, is one of those for sentences.
fn is_sentence_column(name: &str) -> bool {
    let without = name.trim_end_matches(|letter: char| letter.is_ascii_digit()).trim_end_matches('_');
    SENTENCE_COLUMNS
        .iter()
        .any(|usual| without.eq_ignore_ascii_case(usual) || name.eq_ignore_ascii_case(usual))
}

/// Whether a line names an image column and a sentence column: a table under a name that does not say so.
pub(crate) fn is_header(line: &str) -> bool {
    let names = header_names(line, delimiter_of(line));
    Columns::default().find(&names).is_ok_and(|found| found.image.is_some() && !found.captions.is_empty())
}

fn delimiter_of(header: &str) -> u8 {
    let count = |delimiter: u8| header.bytes().filter(|byte| *byte == delimiter).count();
    // Of equal counts the first: a line without any is one column.
    let most = [b'\t', b',', b';', b'|'].into_iter().rev().max_by_key(|delimiter| count(*delimiter));
    most.filter(|delimiter| count(*delimiter) > 0).unwrap_or(b',')
}

fn header_names(line: &str, delimiter: u8) -> Vec<String> {
    let mut reader =
        ReaderBuilder::new().has_headers(false).delimiter(delimiter).from_reader(line.as_bytes());
    let mut record = ByteRecord::new();
    match reader.read_byte_record(&mut record) {
        Ok(true) => names_of(&record),
        _ => Vec::new(),
    }
}

fn names_of(record: &ByteRecord) -> Vec<String> {
    record.iter().map(|name| String::from_utf8_lossy(name).trim().to_owned()).collect()
}

/// Ends a row that has no end.
struct Bounded<R> {
    inner: R,
    left: Rc<Cell<usize>>,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(into)?;
        match self.left.get().checked_sub(count) {
            Some(left) => self.left.set(left),
            None => return Err(io::ErrorKind::FileTooLarge.into()),
        }
        Ok(count)
    }
}

/// Reads a table: the first line names the columns, separated by commas, tabs, semicolons or vertical bars.
///
/// A row has an image and a sentence, or several sentence columns, or a list in JSON in one column; rows of the same image are
/// one item. Paths are absolute or relative to the folder of the file, or to `images` in it. Rows that can't be used are left
/// out and listed.
///
/// # Errors
/// [`DataError::Malformed`] where the columns are missing; [`DataError::LineTooLong`]; [`DataError::EmptyFile`],
/// [`DataError::WrongKind`], [`DataError::Io`], [`DataError::NothingUsable`].
pub(crate) fn read(path: &Path, options: &ReadOptions) -> Result<Dataset, DataError> {
    const EXPECTED: &str = "a table with named columns";
    let failed = |error| DataError::io(path, "read", error);
    let (file, length) = durable::open_regular(path)?;
    if length == 0 {
        return Err(DataError::EmptyFile { path: path.to_path_buf(), expected: EXPECTED });
    }
    let header = first_line(path)?;
    let delimiter = delimiter_of(&header);
    let left = Rc::new(Cell::new(MAX_ROW_BYTES));
    let mut reader = ReaderBuilder::new()
        .delimiter(delimiter)
        .flexible(true)
        // With CRLF the crate counts a record to the line before it; so the carriage return is trimmed with the blanks.
        .terminator(Terminator::Any(b'\n'))
        .has_headers(false)
        .from_reader(Bounded { inner: without_mark(file).map_err(failed)?, left: Rc::clone(&left) });
    let mut record = ByteRecord::new();
    let mut collector = Collector::default();
    let mut root = ImageRoot::new(path, options);
    let mut columns: Option<Found> = None;
    loop {
        left.set(MAX_ROW_BYTES);
        let line = usize::try_from(reader.position().line()).unwrap_or(usize::MAX);
        match reader.read_byte_record(&mut record) {
            Ok(false) => break,
            Ok(true) => {}
            Err(error) => return Err(refusal(path, line, error)),
        }
        // Blank lines before it are passed over.
        let line = record.position().map_or(line, |at| usize::try_from(at.line()).unwrap_or(line));
        if record.len() == 1 && record.iter().all(|cell| cell.trim_ascii().is_empty()) {
            continue;
        }
        match &columns {
            None => {
                let names = names_of(&record);
                columns = Some(options.columns.find(&names).map_err(|expected| DataError::Malformed {
                    path: path.to_path_buf(),
                    format: Format::Table,
                    line: Some(line),
                    expected,
                    got: format!("the columns {}", names.join(", ")),
                })?);
            }
            Some(columns) => add_row(path, line, &record, columns, &mut root, &mut collector)?,
        }
    }
    collector.notes.extend(root.note());
    collector.finish(path, Format::Table, "row")
}

fn first_line(path: &Path) -> Result<String, DataError> {
    let failed = |error| DataError::io(path, "read", error);
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed)?;
    BufReader::new(file.take(MAX_HEADER_BYTES)).read_until(b'\n', &mut bytes).map_err(failed)?;
    if matches!(bytes.as_slice(), [0xff, 0xfe, ..] | [0xfe, 0xff, ..]) {
        return Err(DataError::WrongKind {
            path: path.to_path_buf(),
            line: None,
            expected: "UTF-8 text",
            got: "UTF-16 text",
        });
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The file behind its byte order mark.
fn without_mark(file: File) -> io::Result<BufReader<File>> {
    let mut reader = BufReader::new(file);
    if reader.fill_buf()?.starts_with(b"\xef\xbb\xbf") {
        reader.consume(3);
    }
    Ok(reader)
}

fn refusal(path: &Path, line: usize, error: csv::Error) -> DataError {
    match error.into_kind() {
        csv::ErrorKind::Io(error) if error.kind() == io::ErrorKind::FileTooLarge => {
            DataError::LineTooLong { path: path.to_path_buf(), line, limit: MAX_ROW_BYTES }
        }
        csv::ErrorKind::Io(error) => DataError::io(path, "read", error),
        // The other kinds are about UTF-8, lengths and types, which are not asked for.
        other => DataError::Malformed {
            path: path.to_path_buf(),
            format: Format::Table,
            line: Some(line),
            expected: "a row".to_owned(),
            got: format!("{other:?}"),
        },
    }
}

fn add_row(
    path: &Path,
    line: usize,
    record: &ByteRecord,
    columns: &Found,
    root: &mut ImageRoot,
    collector: &mut Collector,
) -> Result<(), DataError> {
    let (split, image) = match split_and_image(record, columns) {
        Ok(found) => found,
        Err((shown, reason)) => {
            collector.skipped.push(Skipped::line(path, line, shown, reason));
            return Ok(());
        }
    };
    let shown = image.unwrap_or("");
    let mut sentences = Vec::new();
    for column in &columns.captions {
        match text_of(record, *column) {
            // A row may have fewer captions than there are columns, but not none.
            None | Some(Ok("")) if columns.captions.len() > 1 => {}
            None => {
                let reason = "the row has no column for the sentence";
                collector.skipped.push(Skipped::line(path, line, shown, reason));
            }
            Some(Err(_)) => collector.skipped.push(Skipped::line(path, line, shown, "not UTF-8")),
            Some(Ok(cell)) => sentences.extend(sentences_of(cell)),
        }
    }
    let sentences = collector.usable(path, Some(line), shown, sentences.iter().map(String::as_str));
    if sentences.is_empty() && (image.is_none() || !columns.captions.is_empty()) {
        if let Some(image) = image {
            collector.skipped.push(Skipped::line(path, line, image, "no usable caption"));
        }
        return Ok(());
    }
    let id = image.map_or_else(|| line.to_string(), str::to_owned);
    let image = image.map(|name| root.source(name)).transpose()?;
    collector.add(Item { id, image, sentences, split, line: Some(line) });
    Ok(())
}

/// A cell without the blanks around it; `None` where the row is too short.
fn text_of(record: &ByteRecord, column: usize) -> Option<Result<&str, Utf8Error>> {
    record.get(column).map(|cell| std::str::from_utf8(cell).map(str::trim))
}

/// The split of a row and the path of its image.
type SplitAndImage<'a> = (Option<Split>, Option<&'a str>);

/// The split and the image's path, where the table has such columns; or what can't be used, and why.
fn split_and_image<'a>(
    record: &'a ByteRecord,
    columns: &Found,
) -> Result<SplitAndImage<'a>, (&'a str, &'static str)> {
    let text = |column: usize| text_of(record, column);
    let split = match columns.split.and_then(text) {
        None | Some(Ok("")) => None,
        Some(Err(_)) => return Err(("", "the split is not UTF-8")),
        Some(Ok(name)) => {
            Some(Split::published(name).ok_or((name, "expected train, val or test as the split"))?)
        }
    };
    let image = match columns.image.map(text) {
        None => None,
        Some(None) => return Err(("", "the row has no column for the image")),
        Some(Some(Err(_))) => return Err(("", "the image path is not UTF-8")),
        Some(Some(Ok(""))) => return Err(("", "the image path is empty")),
        Some(Some(Ok(name))) if name.contains('\0') => return Err((name, "contains a NUL character")),
        Some(Some(Ok(name))) => Some(name),
    };
    Ok((split, image))
}

/// A cell is a sentence, or a list of sentences in JSON.
fn sentences_of(cell: &str) -> Vec<String> {
    match cell.trim_start().starts_with('[').then(|| serde_json::from_str::<Vec<String>>(cell)) {
        Some(Ok(list)) => list,
        _ => vec![cell.to_owned()],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(names: &[&str], columns: &str) -> Result<Found, String> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let columns = if columns.is_empty() { Columns::default() } else { columns.parse().unwrap() };
        columns.find(&names)
    }

    #[test]
    fn columns_are_found_by_name() {
        let all = found(&["Id", "Caption_0", "caption1", "FilePath", "split"], "").unwrap();
        assert_eq!(all, Found { image: Some(3), captions: vec![1, 2], split: Some(4) });
        assert_eq!(found(&["text"], "").unwrap(), Found { image: None, captions: vec![0], split: None });
        assert!(found(&["a", "b"], "").unwrap_err().starts_with("a column with images (image, "));
        let named = found(&["a", "b", "image"], "image=b,caption=a").unwrap();
        assert_eq!(named, Found { image: Some(1), captions: vec![0], split: None });
        assert_eq!(found(&["a"], "image=b").unwrap_err(), "a column `b`");
        for wrong in ["", "image", "image=", "img=a", "image=a;caption=b,"] {
            assert!(wrong.parse::<Columns>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn delimiters_are_told_by_the_header() {
        for (header, delimiter) in [
            ("a,b", b','),
            ("a\tb,c\td", b'\t'),
            ("a;b", b';'),
            ("image_name| comment_number| comment", b'|'),
            ("a", b','),
        ] {
            assert_eq!(delimiter_of(header), delimiter, "{header}");
        }
        assert!(is_header("image,caption") && is_header("image_name| comment_number| comment"));
        assert!(!is_header("image") && !is_header("a dog, a caption") && !is_header(""));
    }
}
