//! TensorBoard's event files: TFRecord framing around `Event` messages with scalar summaries.
//!
//! A record is a length (u64), its checksum, the message and its checksum, little-endian; a checksum is CRC-32C, rotated
//! and shifted. Of the messages only what scalars need is written: `Event { wall_time = 1, step = 2, file_version = 3,
//! summary = 5, session_log = 7 }`, `Summary { value = 1 }`, `Summary.Value { tag = 1, simple_value = 2 }`.
//!
//! After an interruption no step is there twice and none is missing: [`EventWriter::resume`] cuts the files back to the step
//! that the run goes on from, and writes into a further file. That one begins with a session start, at which a TensorBoard
//! that has the cut part in memory drops it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// What all event files have in their names.
const MARK: &str = ".tfevents.";
/// What stands before the number in the names of the files that are written here.
const WRITER: &str = ".aeir.";
const MASK_DELTA: u32 = 0xa282_ead8;
/// Length and its checksum.
const HEAD_BYTES: usize = 12;
const CHECKSUM_BYTES: usize = 4;

/// Appends scalars to the newest event file of a folder.
#[derive(Debug)]
pub(crate) struct EventWriter {
    path: PathBuf,
    file: File,
}

/// An event as it is read back, the scalars of its summary apart from all else.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Event {
    pub(crate) step: u64,
    pub(crate) scalars: Vec<(String, f32)>,
}

impl EventWriter {
    /// Goes on after `step` steps in `folder`: cuts off what is later, and opens a further file. Gives the events that stay.
    ///
    /// # Errors
    /// When a file can't be read, cut or written.
    pub(crate) fn resume(folder: &Path, step: u64) -> io::Result<(Self, Vec<Event>)> {
        fs::create_dir_all(folder)?;
        let old = event_files(folder)?;
        let mut kept = Vec::new();
        for path in &old {
            let bytes = fs::read(path)?;
            let (events, length) = read_until(&bytes, step);
            if length < bytes.len() {
                OpenOptions::new().write(true).open(path)?.set_len(length as u64)?;
            }
            kept.extend(events);
        }
        // Readers follow the files in the order of their names: the time is that of the first, the number decides.
        let started = old.first().and_then(|path| start_of(path)).unwrap_or_else(|| wall_time() as u64);
        // Not how many there are: one may have been removed, and the next must still be a new one.
        let last = old.iter().filter_map(|path| number_of(path)).max();
        let number = last.map_or(0, |last| last.saturating_add(1));
        let path = folder.join(format!("events.out{MARK}{started:010}{WRITER}{number:04}"));
        let file = OpenOptions::new().create_new(true).append(true).open(&path)?;
        let mut writer = Self { path, file };
        writer.record(&version_event())?;
        if step > 0 || !old.is_empty() {
            writer.record(&session_start(step + 1))?;
        }
        Ok((writer, kept))
    }

    /// The file that is written to.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes scalars of a step, by tag. They are with the system when this returns, so that a killed process loses none.
    ///
    /// # Errors
    /// When the file can't be written.
    pub(crate) fn scalars(&mut self, step: u64, values: &[(String, f64)]) -> io::Result<()> {
        let mut summary = Vec::new();
        for (tag, value) in values {
            let mut message = Vec::new();
            put_bytes(&mut message, 1, tag.as_bytes());
            put_key(&mut message, 2, Wire::Fixed32);
            message.extend_from_slice(&(*value as f32).to_le_bytes());
            put_bytes(&mut summary, 1, &message);
        }
        let mut event = event_at(step);
        put_bytes(&mut event, 5, &summary);
        self.record(&event)
    }

    /// One system call a record: a kill leaves whole records, and at most a torn one after a power cut.
    fn record(&mut self, message: &[u8]) -> io::Result<()> {
        let length = (message.len() as u64).to_le_bytes();
        let mut record = Vec::with_capacity(message.len() + HEAD_BYTES + CHECKSUM_BYTES);
        record.extend_from_slice(&length);
        record.extend_from_slice(&masked_checksum(&length).to_le_bytes());
        record.extend_from_slice(message);
        record.extend_from_slice(&masked_checksum(message).to_le_bytes());
        self.file.write_all(&record)
    }
}

/// Event files of a folder in the order in which they were written.
fn event_files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().contains(MARK)) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// The time in a file's name.
fn start_of(path: &Path) -> Option<u64> {
    let name = path.file_name()?.to_str()?;
    name.split(MARK).nth(1)?.split('.').next()?.parse().ok()
}

/// The number in a file's name.
fn number_of(path: &Path) -> Option<u64> {
    path.file_name()?.to_str()?.rsplit_once(WRITER)?.1.parse().ok()
}

/// The scalar events of the first records that are whole and of no later step, and the length of all these records.
fn read_until(bytes: &[u8], last_step: u64) -> (Vec<Event>, usize) {
    let (mut events, mut length) = (Vec::new(), 0);
    while let Some((message, size)) = bytes.get(length..).and_then(whole_record) {
        let Some(event) = parse_event(message).filter(|event| {
            // A start of a session stands for the step after it.
            event.step <= last_step || (event.scalars.is_empty() && event.step == last_step + 1)
        }) else {
            break;
        };
        length += size;
        if !event.scalars.is_empty() {
            events.push(event);
        }
    }
    (events, length)
}

/// The message of the first record and the record's size; none where it is torn or damaged.
fn whole_record(bytes: &[u8]) -> Option<(&[u8], usize)> {
    let word = |range: std::ops::Range<usize>| Some(u32::from_le_bytes(bytes.get(range)?.try_into().ok()?));
    let head = bytes.get(..8)?;
    let length = usize::try_from(u64::from_le_bytes(head.try_into().ok()?)).ok()?;
    let end = HEAD_BYTES.checked_add(length)?;
    let message = bytes.get(HEAD_BYTES..end)?;
    let whole = word(8..HEAD_BYTES)? == masked_checksum(head)
        && word(end..end + CHECKSUM_BYTES)? == masked_checksum(message);
    whole.then_some((message, end + CHECKSUM_BYTES))
}

fn masked_checksum(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(MASK_DELTA)
}

/// How a field of a message is stored.
#[derive(Clone, Copy)]
enum Wire {
    Varint = 0,
    Fixed64 = 1,
    Bytes = 2,
    Fixed32 = 5,
}

fn put_varint(message: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        message.push(value as u8 | 0x80);
        value >>= 7;
    }
    message.push(value as u8);
}

fn put_key(message: &mut Vec<u8>, field: u64, wire: Wire) {
    put_varint(message, field << 3 | wire as u64);
}

fn put_bytes(message: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    put_key(message, field, Wire::Bytes);
    put_varint(message, bytes.len() as u64);
    message.extend_from_slice(bytes);
}

/// Seconds since 1970.
fn wall_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |elapsed| elapsed.as_secs_f64())
}

/// An event of this moment.
fn event_at(step: u64) -> Vec<u8> {
    let mut event = Vec::new();
    put_key(&mut event, 1, Wire::Fixed64);
    event.extend_from_slice(&wall_time().to_le_bytes());
    put_key(&mut event, 2, Wire::Varint);
    put_varint(&mut event, step);
    event
}

/// The first event of each file.
fn version_event() -> Vec<u8> {
    let mut event = event_at(0);
    put_bytes(&mut event, 3, b"brain.Event:2");
    event
}

/// Says that all of `step` and later comes again.
fn session_start(step: u64) -> Vec<u8> {
    const START: u64 = 1;
    let mut log = Vec::new();
    put_key(&mut log, 1, Wire::Varint);
    put_varint(&mut log, START);
    let mut event = event_at(step);
    put_bytes(&mut event, 7, &log);
    event
}

/// The fields of a message that are understood here, in order; none where it is no message.
fn fields(mut message: &[u8]) -> Option<Vec<(u64, Field<'_>)>> {
    let mut fields = Vec::new();
    while !message.is_empty() {
        let key = take_varint(&mut message)?;
        let field = match key & 7 {
            0 => Field::Number(take_varint(&mut message)?),
            1 => Field::Bytes(message.split_off(..8)?),
            2 => {
                let length = usize::try_from(take_varint(&mut message)?).ok()?;
                Field::Bytes(message.split_off(..length)?)
            }
            5 => Field::Bytes(message.split_off(..4)?),
            _ => return None,
        };
        fields.push((key >> 3, field));
    }
    Some(fields)
}

enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

fn take_varint(message: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = *message.split_off_first()?;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

fn parse_event(message: &[u8]) -> Option<Event> {
    let mut event = Event { step: 0, scalars: Vec::new() };
    for field in fields(message)? {
        match field {
            (2, Field::Number(step)) => event.step = step,
            (5, Field::Bytes(summary)) => {
                for value in fields(summary)? {
                    let (1, Field::Bytes(value)) = value else { continue };
                    event.scalars.push(parse_value(value)?);
                }
            }
            _ => {}
        }
    }
    Some(event)
}

fn parse_value(message: &[u8]) -> Option<(String, f32)> {
    let (mut tag, mut number) = (String::new(), 0.0);
    for field in fields(message)? {
        match field {
            (1, Field::Bytes(text)) => tag = String::from_utf8(text.to_vec()).ok()?,
            (2, Field::Bytes(value)) => number = f32::from_le_bytes(value.try_into().ok()?),
            _ => {}
        }
    }
    Some((tag, number))
}

/// All scalar events of a folder, as a reader finds them.
#[cfg(test)]
pub(crate) fn read_folder(folder: &Path) -> Vec<Event> {
    event_files(folder)
        .unwrap()
        .iter()
        .flat_map(|path| read_until(&fs::read(path).unwrap(), u64::MAX - 1).0)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scalar(writer: &mut EventWriter, step: u64) {
        writer.scalars(step, &[("loss".to_owned(), 1.0 / step as f64), ("norm".to_owned(), 2.0)]).unwrap();
    }

    fn steps(folder: &Path) -> Vec<u64> {
        read_folder(folder).iter().map(|event| event.step).collect()
    }

    #[test]
    fn a_record_has_the_published_bytes() {
        // CRC-32C of RFC 3720 (32 zero bytes); masked: ((crc >> 15) | (crc << 17)) + 0xa282ead8 in 32 bits.
        assert_eq!(crc32c::crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(masked_checksum(&[0; 32]), 0xfd7_fffa);
        // Protocol buffers' documentation: 150 as a varint, and a field of bytes.
        let mut message = Vec::new();
        put_key(&mut message, 1, Wire::Varint);
        put_varint(&mut message, 150);
        put_bytes(&mut message, 2, b"testing");
        assert_eq!(message, b"\x08\x96\x01\x12\x07testing");
    }

    #[test]
    fn what_is_written_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let (mut writer, kept) = EventWriter::resume(folder.path(), 0).unwrap();
        assert!(kept.is_empty());
        scalar(&mut writer, 1);
        scalar(&mut writer, 300);
        let events = read_folder(folder.path());
        assert_eq!(events[1].scalars, [("loss".to_owned(), 1.0 / 300.0), ("norm".to_owned(), 2.0)]);
        assert_eq!(steps(folder.path()), [1, 300]);
    }

    #[test]
    fn after_a_resume_every_step_is_there_once() {
        let folder = tempfile::tempdir().unwrap();
        let write = |from: u64, steps: std::ops::RangeInclusive<u64>| {
            let (mut writer, kept) = EventWriter::resume(folder.path(), from).unwrap();
            steps.for_each(|step| scalar(&mut writer, step));
            (writer.path().to_owned(), kept.len())
        };
        write(0, 1..=7);
        assert_eq!(write(4, 5..=9).1, 4, "killed after a checkpoint at 4");
        assert_eq!(write(9, 10..=12).1, 9, "nothing to cut");
        let (torn, _) = write(2, 3..=6);
        assert_eq!(steps(folder.path()), [1, 2, 3, 4, 5, 6]);
        // A power cut in the middle of a record.
        let bytes = fs::read(&torn).unwrap();
        fs::write(&torn, &bytes[..bytes.len() - 3]).unwrap();
        assert_eq!(write(5, 6..=8).1, 5);
        assert_eq!(steps(folder.path()), [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(write(0, 1..=2).1, 0, "killed before a checkpoint: from the start");
        assert_eq!(steps(folder.path()), [1, 2]);
        let names = event_files(folder.path()).unwrap();
        assert!(names.windows(2).all(|pair| pair[0] < pair[1]) && names.len() == 6);
    }

    #[test]
    fn a_removed_file_does_not_keep_the_next_from_being_made() {
        let folder = tempfile::tempdir().unwrap();
        let write = |step: u64| {
            let (mut writer, _) = EventWriter::resume(folder.path(), step - 1).unwrap();
            scalar(&mut writer, step);
            writer.path().to_owned()
        };
        let first = write(1);
        let second = write(2);
        fs::remove_file(first).unwrap();
        assert!(write(3) > second, "the newest file comes last");
        assert_eq!(steps(folder.path()), [2, 3]);
    }

    #[test]
    fn damage_ends_a_file_where_it_begins() {
        let folder = tempfile::tempdir().unwrap();
        let (mut writer, _) = EventWriter::resume(folder.path(), 0).unwrap();
        (1..=5).for_each(|step| scalar(&mut writer, step));
        let path = writer.path().to_owned();
        let whole = fs::read(&path).unwrap();
        for length in 0..whole.len() {
            let (events, kept) = read_until(&whole[..length], 10);
            assert!(kept <= length && events.len() <= 5);
        }
        for position in 0..whole.len() {
            let mut spoilt = whole.clone();
            spoilt[position] ^= 1;
            let (events, _) = read_until(&spoilt, 10);
            assert!(events.len() < 5, "byte {position}");
        }
        // A length beyond all memory.
        let mut endless = whole;
        endless[..8].fill(0xff);
        assert_eq!(read_until(&endless, 10).1, 0);
    }
}
