//! Lines of a text file, numbered, each held in bounded memory however long it is in the file.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use crate::error::DataError;

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// What a line turned out to be. Line ends (`\n`, `\r\n`) and a leading byte order mark are gone.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum LineContent {
    Text(String),
    NotUtf8,
    TooLong,
}

/// Reads lines of at most `limit` bytes; of a longer one it keeps nothing beyond the limit.
pub(crate) struct NumberedLines<R> {
    reader: R,
    number: usize,
    limit: usize,
}

impl<R: BufRead> NumberedLines<R> {
    pub(crate) fn new(reader: R, limit: usize) -> Self {
        Self { reader, number: 0, limit }
    }

    /// The next line with its 1-based number, `None` at the end.
    pub(crate) fn next_line(&mut self) -> io::Result<Option<(usize, LineContent)>> {
        // Room for what is stripped afterwards.
        let keep = self.limit.saturating_add(BYTE_ORDER_MARK.len() + 2);
        let mut line = Vec::new();
        let mut any = false;
        let mut cut = false;
        loop {
            let available = match self.reader.fill_buf() {
                Ok(available) => available,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if available.is_empty() {
                break;
            }
            any = true;
            let end = available.iter().position(|byte| *byte == b'\n');
            let part = available.get(..end.unwrap_or(available.len())).unwrap_or_default();
            let room = keep.saturating_sub(line.len());
            cut |= part.len() > room;
            line.extend(part.iter().take(room));
            let used = part.len() + usize::from(end.is_some());
            self.reader.consume(used);
            if end.is_some() {
                break;
            }
        }
        if !any {
            return Ok(None);
        }
        self.number += 1;
        Ok(Some((self.number, self.content(line, cut))))
    }

    fn content(&self, line: Vec<u8>, cut: bool) -> LineContent {
        let mut bytes = line.as_slice();
        if self.number == 1 {
            bytes = bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(bytes);
        }
        if !cut {
            bytes = bytes.strip_suffix(b"\r").unwrap_or(bytes);
        }
        if cut || bytes.len() > self.limit {
            return LineContent::TooLong;
        }
        match std::str::from_utf8(bytes) {
            Ok(text) => LineContent::Text(text.to_owned()),
            Err(_) => LineContent::NotUtf8,
        }
    }
}

impl<R: Read> NumberedLines<BufReader<R>> {
    /// Refuses an image given in place of a text: some of its lines might pass. To be called before the first line.
    pub(crate) fn refuse_image(&self, path: &Path, expected: &'static str) -> Result<(), DataError> {
        // Sentences may begin as a GIF or a BMP does, but hold no NUL.
        const HEADER_BYTES: usize = 64;
        let start = self.reader.buffer();
        if !start.iter().take(HEADER_BYTES).any(|byte| *byte == 0) || image::guess_format(start).is_err() {
            return Ok(());
        }
        Err(DataError::WrongKind { path: path.to_path_buf(), line: None, expected, got: "an image" })
    }
}

/// Opens a text file for reading by lines. Pipes are welcome (`--sentences <(...)`), folders are not.
pub(crate) fn open_lines(
    path: &Path,
    limit: usize,
    expected: &'static str,
) -> Result<NumberedLines<BufReader<File>>, DataError> {
    let metadata = fs::metadata(path).map_err(|error| DataError::io(path, "read", error))?;
    if metadata.is_dir() {
        return Err(DataError::NotAFile { path: path.to_path_buf(), got: "folder" });
    }
    if metadata.is_file() && metadata.len() == 0 {
        return Err(DataError::EmptyFile { path: path.to_path_buf(), expected });
    }
    let failed = |error| DataError::io(path, "read", error);
    let mut reader = BufReader::new(File::open(path).map_err(failed)?);
    // Some Windows programs write it unasked. Read as lines of UTF-8 most of it would pass, with a NUL between any
    // two letters.
    if matches!(reader.fill_buf().map_err(failed)?, [0xff, 0xfe, ..] | [0xfe, 0xff, ..]) {
        return Err(DataError::WrongKind {
            path: path.to_path_buf(),
            line: None,
            expected: "UTF-8 text",
            got: "UTF-16 text",
        });
    }
    Ok(NumberedLines::new(reader, limit))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(bytes: &[u8], limit: usize) -> Vec<(usize, LineContent)> {
        // A tiny buffer, so that lines, marks and line ends fall across its border.
        let mut lines = NumberedLines::new(BufReader::with_capacity(3, bytes), limit);
        std::iter::from_fn(|| lines.next_line().unwrap()).collect()
    }

    fn text(text: &str) -> LineContent {
        LineContent::Text(text.to_owned())
    }

    #[test]
    fn line_ends_and_byte_order_mark() {
        let lines = all(b"\xef\xbb\xbfone\r\n\r\ntwo\nthree\r", 10);
        assert_eq!(lines, [(1, text("one")), (2, text("")), (3, text("two")), (4, text("three"))]);
        assert_eq!(all(b"", 10), []);
        assert_eq!(all(b"\n", 10), [(1, text(""))]);
        assert_eq!(all(b"\xef\xbb\xbf", 10), [(1, text(""))]);
    }

    #[test]
    fn limits_hold_exactly() {
        assert_eq!(all(b"12345\r\n", 5), [(1, text("12345"))]);
        assert_eq!(all(b"\xef\xbb\xbf12345\r\n", 5), [(1, text("12345"))]);
        assert_eq!(all(b"123456\nx", 5), [(1, LineContent::TooLong), (2, text("x"))]);
        let long = [vec![b'a'; 10_000], b"\nafter".to_vec()].concat();
        assert_eq!(all(&long, 5), [(1, LineContent::TooLong), (2, text("after"))]);
    }

    #[test]
    fn other_bytes_are_named() {
        assert_eq!(all(b"\xff\xfe\nok", 9), [(1, LineContent::NotUtf8), (2, text("ok"))]);
    }
}
