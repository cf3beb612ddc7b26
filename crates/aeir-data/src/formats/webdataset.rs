//! WebDataset: tar archives whose members of one key are one item, `000012.jpg` beside `000012.txt` or `000012.json`.
//!
//! Archives are gone through once, from header to header: what is kept is where each image lies, and the sentences. Images are
//! read from the archive when they are wanted.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use tar::{Archive, Entry, EntryType};

use super::folder::IMAGE_SUFFIXES;
use super::table::SENTENCE_COLUMNS;
use crate::dataset::{Collector, Dataset, Format, Item, ReadOptions};
use crate::durable;
use crate::error::DataError;
use crate::image_source::FilePart;
use crate::skipped::Skipped;
use crate::split::Split;

/// A text or record of more bytes than this is no caption.
const MAX_TEXT_BYTES: u64 = 1024 * 1024;

/// A pattern that gives more archives than this is a mistake.
const MAX_SHARDS: usize = 100_000;

/// Suffixes of members that hold sentences, one a line.
const TEXT_SUFFIXES: &[&str] = &["txt", "caption", "captions", "text", "cap"];

/// Whether a path is a pattern such as `shards/{000..012}.tar`.
pub(crate) fn is_pattern(path: &Path) -> bool {
    let text = path.to_string_lossy();
    text.contains('{') && text.contains('}') && text.ends_with(".tar")
}

/// The archives of a folder.
pub(crate) fn files_in(folder: &Path) -> Vec<PathBuf> {
    super::files_named(folder, |name| name.ends_with(".tar"))
}

/// The archives that a pattern stands for, in order: `{000..012}` counts, with as many digits, `{a,b}` lists.
///
/// # Errors
/// [`DataError::Malformed`] for a pattern that can't be read or gives too many.
pub(crate) fn expand(pattern: &Path) -> Result<Vec<PathBuf>, DataError> {
    let refused = |got: &str| DataError::Malformed {
        path: pattern.to_path_buf(),
        format: Format::WebDataset,
        line: None,
        expected: format!("a pattern such as {{000..012}} or {{a,b}} for at most {MAX_SHARDS} archives"),
        got: got.to_owned(),
    };
    let mut done = Vec::new();
    let mut waiting = vec![pattern.to_string_lossy().into_owned()];
    while let Some(text) = waiting.pop() {
        let Some((before, rest)) = text.split_once('{') else {
            done.push(PathBuf::from(text));
            if done.len() > MAX_SHARDS {
                return Err(refused("more"));
            }
            continue;
        };
        let (inside, after) = rest.split_once('}').ok_or_else(|| refused("a brace that nothing closes"))?;
        let alternatives = alternatives(inside).ok_or_else(|| refused(&format!("`{{{inside}}}`")))?;
        // Taken from the end: the first alternative is the next to be looked at.
        waiting.extend(alternatives.iter().rev().map(|alternative| format!("{before}{alternative}{after}")));
        if waiting.len() > MAX_SHARDS {
            return Err(refused("more"));
        }
    }
    Ok(done)
}

fn alternatives(inside: &str) -> Option<Vec<String>> {
    let Some((first, last)) = inside.split_once("..") else {
        return inside.contains(',').then(|| inside.split(',').map(str::to_owned).collect());
    };
    let number =
        |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse::<usize>().ok())?;
    let (from, to) = (number(first)?, number(last)?);
    let digits = if first.starts_with('0') { first.len() } else { 0 };
    (from <= to && to - from < MAX_SHARDS).then(|| (from..=to).map(|at| format!("{at:0digits$}")).collect())
}

/// Reads archives, in this order.
///
/// A member that can't be used (a name that leads outside, a link, a text that is not UTF-8) is left out and listed; so is the
/// rest of an archive that is damaged behind its first member. The split is in the names of the archives, where they have one.
///
/// # Errors
/// [`DataError::Malformed`] for a file that is no tar archive, [`DataError::Io`], [`DataError::NothingUsable`].
pub(crate) fn read(path: &Path, files: &[PathBuf], options: &ReadOptions) -> Result<Dataset, DataError> {
    let mut collector = Collector::default();
    for file in files {
        let split = Split::of_file_name(file);
        if options.wants(split) {
            read_archive(file, split, &mut collector)?;
        }
    }
    collector.finish(path, Format::WebDataset, "image in an archive")
}

fn read_archive(file: &Path, split: Option<Split>, collector: &mut Collector) -> Result<(), DataError> {
    let failed = |error| DataError::io(file, "read", error);
    let (handle, length) = durable::open_regular(file)?;
    if length == 0 {
        return Err(DataError::EmptyFile { path: file.to_path_buf(), expected: "a tar archive" });
    }
    let mut archive = Archive::new(BufReader::new(handle));
    let shared: Arc<Path> = Arc::from(file);
    let mut shard = Shard { file: &shared, length, split, open: None, seen: HashSet::new() };
    let mut first = true;
    for entry in archive.entries_with_seek().map_err(failed)? {
        match entry {
            Ok(mut entry) => shard.take(&mut entry, collector),
            Err(error) if first => return Err(no_archive(file, &error)),
            Err(error) => {
                let reason = format!("the archive is damaged from here on: {error}");
                let name = shard.open.as_ref().map_or_else(String::new, |open| open.key.clone());
                collector.skipped.push(Skipped::in_file(file, None, &format!("behind `{name}`"), reason));
                break;
            }
        }
        first = false;
    }
    shard.close(collector);
    Ok(())
}

fn no_archive(file: &Path, error: &io::Error) -> DataError {
    let compressed = File::open(file)
        .and_then(|mut file| {
            let mut start = [0; 2];
            file.read_exact(&mut start).map(|()| start == [0x1f, 0x8b])
        })
        .unwrap_or(false);
    DataError::Malformed {
        path: file.to_path_buf(),
        format: Format::WebDataset,
        line: None,
        expected: "an uncompressed tar archive".to_owned(),
        got: if compressed { "gzip: unpack it first".to_owned() } else { error.to_string() },
    }
}

/// One archive while it is gone through.
struct Shard<'a> {
    file: &'a Arc<Path>,
    length: u64,
    split: Option<Split>,
    open: Option<Open>,
    seen: HashSet<String>,
}

/// The item whose members are being collected.
struct Open {
    key: String,
    image: Option<FilePart>,
    sentences: Vec<String>,
    split: Option<Split>,
    /// A key that stood before: its members are left out.
    repeated: bool,
    /// Why it can't be used.
    broken: Option<String>,
}

impl Shard<'_> {
    fn take<R: Read + Seek>(&mut self, entry: &mut Entry<'_, R>, collector: &mut Collector) {
        let kind = entry.header().entry_type();
        if matches!(kind, EntryType::Directory | EntryType::XGlobalHeader) {
            return;
        }
        let name = match name_of(entry) {
            Ok(name) => name,
            Err((shown, reason)) => {
                collector.skipped.push(Skipped::in_file(self.file, None, &shown, reason));
                return;
            }
        };
        if !matches!(kind, EntryType::Regular | EntryType::Continuous) {
            collector.skipped.push(Skipped::in_file(self.file, None, &name, "no regular file"));
            return;
        }
        let Some((key, suffix)) = key_and_suffix(&name) else { return };
        if self.open.as_ref().is_none_or(|open| open.key != key) {
            self.close(collector);
            let repeated = !self.seen.insert(key.clone());
            self.open = Some(Open {
                key,
                image: None,
                sentences: Vec::new(),
                split: self.split,
                repeated,
                broken: None,
            });
        }
        let (file, length) = (self.file, self.length);
        let Some(open) = self.open.as_mut().filter(|open| !open.repeated) else { return };
        let part = FilePart {
            file: Arc::clone(file),
            offset: entry.raw_file_position(),
            length: entry.size(),
            name,
        };
        if part.offset.checked_add(part.length).is_none_or(|end| end > length) {
            open.broken = Some(format!("the archive ends within `{}`", part.name));
            return;
        }
        let last = suffix.rsplit('.').next().unwrap_or(&suffix);
        if IMAGE_SUFFIXES.contains(&last) {
            // Of several, the first: webdataset's readers take it too.
            open.image.get_or_insert(part);
        } else if TEXT_SUFFIXES.contains(&last) || last == "json" {
            match text_of(entry) {
                Ok(text) => open.add_text(file, &part.name, &text, last == "json", collector),
                Err(reason) => collector.skipped.push(Skipped::in_file(file, None, &part.name, reason)),
            }
        }
    }

    /// The item is whole: the next member has another key.
    fn close(&mut self, collector: &mut Collector) {
        let Some(open) = self.open.take() else { return };
        let reason = match (&open.image, open.broken, open.repeated) {
            (_, _, true) => Some("the key stands before in this archive".to_owned()),
            (_, Some(reason), _) => Some(reason),
            (None, None, false) => Some("no image among its members".to_owned()),
            _ => None,
        };
        if let Some(reason) = reason {
            collector.skipped.push(Skipped::in_file(self.file, None, &open.key, reason));
            return;
        }
        collector.add(Item {
            id: open.key,
            image: open.image.map(Into::into),
            sentences: open.sentences,
            split: open.split,
            line: None,
        });
    }
}

impl Open {
    fn add_text(&mut self, file: &Path, name: &str, text: &str, json: bool, collector: &mut Collector) {
        if !json {
            let lines = text.lines().filter(|line| !line.trim().is_empty());
            self.sentences.extend(collector.usable(file, None, name, lines));
            return;
        }
        let Ok(record) = serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(text) else {
            collector.skipped.push(Skipped::in_file(file, None, name, "no JSON object"));
            return;
        };
        self.split =
            record.get("split").and_then(serde_json::Value::as_str).and_then(Split::published).or(self.split);
        // A text beside it says the same in most sets.
        if !self.sentences.is_empty() {
            return;
        }
        let found = SENTENCE_COLUMNS.iter().find_map(|key| record.get(*key)).map(texts_of);
        let found = found.unwrap_or_default();
        self.sentences.extend(collector.usable(file, None, name, found.iter().map(String::as_str)));
    }
}

/// A sentence, a list of sentences, or a list of objects with a sentence each.
pub(crate) fn texts_of(value: &serde_json::Value) -> Vec<String> {
    match value {
        serde_json::Value::String(text) => vec![text.clone()],
        serde_json::Value::Array(list) => list.iter().flat_map(texts_of).collect(),
        serde_json::Value::Object(object) => {
            SENTENCE_COLUMNS.iter().find_map(|key| object.get(*key)).map(texts_of).unwrap_or_default()
        }
        _ => Vec::new(),
    }
}

fn name_of<R: Read>(entry: &Entry<'_, R>) -> Result<String, (String, String)> {
    let bytes = entry.path_bytes();
    let shown = String::from_utf8_lossy(&bytes).into_owned();
    let refused = |reason: &str| Err((shown.clone(), reason.to_owned()));
    let Ok(name) = std::str::from_utf8(&bytes) else { return refused("the name is not UTF-8") };
    if name.contains('\0') {
        return refused("the name has a NUL character");
    }
    let outside = Path::new(name)
        .components()
        .any(|part| matches!(part, Component::ParentDir | Component::RootDir | Component::Prefix(_)));
    if outside {
        return refused("the name leads out of the archive");
    }
    Ok(name.strip_prefix("./").unwrap_or(name).to_owned())
}

/// `a/000012` and `jpg`, of `a/000012.jpg`: the key ends at the first dot of the last part. Names that begin with a dot are
/// passed over.
fn key_and_suffix(name: &str) -> Option<(String, String)> {
    let start = name.rfind('/').map_or(0, |slash| slash + 1);
    let last = name.get(start..)?;
    let dot = last.find('.').filter(|dot| *dot > 0)?;
    Some((name.get(..start + dot)?.to_owned(), last.get(dot + 1..)?.to_ascii_lowercase()))
}

fn text_of<R: Read>(entry: &mut Entry<'_, R>) -> Result<String, String> {
    if entry.size() > MAX_TEXT_BYTES {
        return Err(format!("a text of more than {MAX_TEXT_BYTES} bytes"));
    }
    let mut bytes = Vec::new();
    entry.take(MAX_TEXT_BYTES).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    let text = String::from_utf8(bytes).map_err(|_| "not UTF-8".to_owned())?;
    Ok(text.strip_prefix('\u{feff}').map_or_else(|| text.clone(), str::to_owned))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(pattern: &str) -> Option<Vec<String>> {
        let paths = expand(Path::new(pattern)).ok()?;
        Some(paths.iter().map(|path| path.to_string_lossy().into_owned()).collect())
    }

    #[test]
    fn patterns_count_and_list() {
        assert_eq!(
            expanded("a-{008..011}.tar").unwrap(),
            ["a-008.tar", "a-009.tar", "a-010.tar", "a-011.tar"]
        );
        assert_eq!(expanded("{9..10}.tar").unwrap(), ["9.tar", "10.tar"]);
        assert_eq!(
            expanded("{train,val}-{0..1}.tar").unwrap(),
            ["train-0.tar", "train-1.tar", "val-0.tar", "val-1.tar"]
        );
        for wrong in [
            "{.tar",
            "{3..1}.tar",
            "{a}.tar",
            "{a..b}.tar",
            "{0..999999999}.tar",
            "{0..99999}{0..9}.tar",
            "{-1..2}.tar",
            "{..}.tar",
        ] {
            assert_eq!(expanded(wrong), None, "{wrong}");
        }
        assert!(is_pattern(Path::new("a/{0..1}.tar")) && !is_pattern(Path::new("a/0.tar")));
    }

    #[test]
    fn keys_end_at_the_first_dot_of_the_last_part() {
        let parts = |name: &str| key_and_suffix(name).map(|(key, suffix)| format!("{key}|{suffix}"));
        assert_eq!(parts("a.b/c.seg.PNG").as_deref(), Some("a.b/c|seg.png"));
        assert_eq!(parts("000.jpg").as_deref(), Some("000|jpg"));
        assert_eq!((parts("a/.hidden"), parts("noext"), parts("")), (None, None, None));
    }
}
