//! The data file: where its records are, and what is whole.

use std::fs::File;
use std::io;
use std::path::Path;

use super::{Features, MAX_VALUES, Precision};
use crate::error::DataError;
use crate::hash::ContentHash;

const MAGIC: &[u8; 8] = b"AEIRFEAT";
const LAYOUT: u32 = 1;

/// Magic, layout version, bytes a value.
pub(super) const FILE_HEADER: u64 = 16;
/// Rows, columns, key, checksum of these.
pub(super) const RECORD_HEADER: usize = 4 + 4 + 32 + 4;
const CHECKSUM: usize = 4;

/// Where a record is and what shape its header gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Location {
    offset: u64,
    rows: u32,
    columns: u32,
}

impl Location {
    fn values(&self) -> Option<usize> {
        let count = u64::from(self.rows) * u64::from(self.columns);
        usize::try_from(count).ok().filter(|count| *count <= MAX_VALUES)
    }

    /// Bytes from the first of the header to the last of the checksum.
    fn length(&self, precision: Precision) -> Option<usize> {
        Some(RECORD_HEADER + self.values()? * precision.bytes() + CHECKSUM)
    }
}

pub(super) fn encode_record(
    key: &ContentHash,
    features: &Features,
    precision: Precision,
    offset: u64,
    into: &mut Vec<u8>,
) -> Location {
    let start = into.len();
    // Both were held against the range of u32 before.
    let location = Location { offset, rows: features.rows as u32, columns: features.columns as u32 };
    into.extend(location.rows.to_le_bytes());
    into.extend(location.columns.to_le_bytes());
    into.extend(key.0);
    into.extend(checksum(into.get(start..)).to_le_bytes());
    precision.encode(&features.values, into);
    into.extend(checksum(into.get(start..)).to_le_bytes());
    location
}

fn checksum(bytes: Option<&[u8]>) -> u32 {
    crc32fast::hash(bytes.unwrap_or_default())
}

/// `None` where the bytes are not what was written.
pub(super) fn read_record(
    data: &File,
    key: &ContentHash,
    location: Location,
    precision: Precision,
) -> io::Result<Option<Features>> {
    let Some(length) = location.length(precision) else { return Ok(None) };
    let mut bytes = vec![0; length];
    match read_exact_at(data, &mut bytes, location.offset) {
        Ok(()) => {}
        // Somebody set the file back in the meantime.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    Ok(whole_record(&bytes, key, location).map(|values| Features {
        rows: location.rows as usize,
        columns: location.columns as usize,
        values: precision.decode(values),
    }))
}

/// The bytes of the values, if header and checksum are right.
fn whole_record<'a>(bytes: &'a [u8], key: &ContentHash, location: Location) -> Option<&'a [u8]> {
    let (record, stored) = bytes.split_last_chunk::<CHECKSUM>()?;
    let (header, values) = record.split_first_chunk::<RECORD_HEADER>()?;
    let found = parse_header(header, location.offset)?;
    (crc32fast::hash(record) == u32::from_le_bytes(*stored) && found == (*key, location)).then_some(values)
}

fn parse_header(header: &[u8; RECORD_HEADER], offset: u64) -> Option<(ContentHash, Location)> {
    let (fields, stored) = header.split_last_chunk::<CHECKSUM>()?;
    if crc32fast::hash(fields) != u32::from_le_bytes(*stored) {
        return None;
    }
    let (rows, rest) = fields.split_first_chunk::<4>()?;
    let (columns, key) = rest.split_first_chunk::<4>()?;
    let location =
        Location { offset, rows: u32::from_le_bytes(*rows), columns: u32::from_le_bytes(*columns) };
    Some((ContentHash(*key.first_chunk::<32>()?), location))
}

/// What a scan found: the records, and where the last whole one ends.
pub(super) struct Scan {
    pub(super) records: Vec<(ContentHash, Location)>,
    pub(super) end: u64,
}

/// Reads the headers from `from` (0, or the end of a record) to `length`. `end` is where the first thing that is no
/// whole record begins, 0 where not even the file header is whole.
pub(super) fn scan(
    data: &File,
    from: u64,
    length: u64,
    precision: Precision,
    path: &Path,
) -> Result<Scan, DataError> {
    let failed = |error| DataError::io(path, "read", error);
    let mut scan = Scan { records: Vec::new(), end: from };
    if from == 0 {
        if length < FILE_HEADER {
            return Ok(scan);
        }
        if !has_header(data, precision, path)? {
            return Ok(scan);
        }
        scan.end = FILE_HEADER;
    }
    let mut header = [0; RECORD_HEADER];
    while length - scan.end >= RECORD_HEADER as u64 {
        read_exact_at(data, &mut header, scan.end).map_err(failed)?;
        let Some((key, location)) = parse_header(&header, scan.end) else { break };
        let Some(record) = location.length(precision).map(|record| record as u64) else { break };
        if length - scan.end < record {
            break;
        }
        // A key that stands twice was damaged the first time: the later record holds.
        scan.records.push((key, location));
        scan.end += record;
    }
    Ok(scan)
}

fn header(precision: Precision) -> [u8; FILE_HEADER as usize] {
    let mut header = [0; FILE_HEADER as usize];
    let parts =
        MAGIC.iter().copied().chain(LAYOUT.to_le_bytes()).chain((precision.bytes() as u32).to_le_bytes());
    header.iter_mut().zip(parts).for_each(|(place, byte)| *place = byte);
    header
}

/// Whether the file begins with the header of this layout; a header of anything else is an error.
fn has_header(data: &File, precision: Precision, path: &Path) -> Result<bool, DataError> {
    let mut found = [0; FILE_HEADER as usize];
    read_exact_at(data, &mut found, 0).map_err(|error| DataError::io(path, "read", error))?;
    let expected = header(precision);
    if found == expected {
        return Ok(true);
    }
    // The power went when the file had its length already, but not its content.
    if found.iter().all(|byte| *byte == 0) {
        return Ok(false);
    }
    Err(DataError::CacheFormat {
        path: path.to_path_buf(),
        expected: format!("a {precision} feature file of layout {LAYOUT} (`{}`)", expected.escape_ascii()),
        got: format!("`{}`", found.escape_ascii()),
    })
}

pub(super) fn write_header(data: &File, precision: Precision) -> io::Result<()> {
    write_all_at(data, &header(precision), 0)?;
    data.sync_data()
}

// Reads and writes name their place: no shared position that threads could move under each other.

#[cfg(unix)]
pub(super) fn read_exact_at(data: &File, bytes: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(data, bytes, offset)
}

#[cfg(unix)]
pub(super) fn write_all_at(data: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(data, bytes, offset)
}

#[cfg(windows)]
pub(super) fn read_exact_at(data: &File, mut bytes: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(data, bytes, offset) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                bytes = bytes.get_mut(count..).unwrap_or_default();
                offset += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(windows)]
pub(super) fn write_all_at(data: &File, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match std::os::windows::fs::FileExt::seek_write(data, bytes, offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => {
                bytes = bytes.get(count..).unwrap_or_default();
                offset += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
