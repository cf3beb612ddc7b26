//! SCAN's layout: a folder with `{train,dev,test}_ims.npy` (`[N, R, F]`) and `{train,dev,test}_caps.txt`, one sentence a line,
//! the sentences of an image one after the other.

use std::path::{Path, PathBuf};

use crate::dataset::{Collector, Dataset, Format, Item, ReadOptions};
use crate::error::DataError;
use crate::image_source::{FeatureRow, ImageSource};
use crate::lines::{LineContent, open_lines};
use crate::region_features::RegionFeatures;
use crate::sentence::{MAX_SENTENCE_CHARACTERS, sentence};
use crate::skipped::Skipped;
use crate::split::Split;

/// A character takes at most four bytes, and each of them four (`\xf0`) in a line that is a printed byte string.
const MAX_LINE_BYTES: usize = 16 * MAX_SENTENCE_CHARACTERS;

/// Whether a folder has the features of any split in SCAN's layout.
pub(crate) fn is_folder(path: &Path) -> bool {
    Split::ALL.iter().any(|split| features_file(path, *split).is_file())
}

fn stem(split: Split) -> &'static str {
    match split {
        Split::Train => "train",
        Split::Validation => "dev",
        Split::Test => "test",
    }
}

fn features_file(folder: &Path, split: Split) -> PathBuf {
    folder.join(format!("{}_ims.npy", stem(split)))
}

fn captions_file(folder: &Path, split: Split) -> PathBuf {
    folder.join(format!("{}_caps.txt", stem(split)))
}

/// The captions that lie beside an array of this layout: `testall_caps.txt` beside `testall_ims.npy`.
pub(crate) fn captions_beside(features: &Path) -> Option<PathBuf> {
    let stem = features.file_stem()?.to_str()?.strip_suffix("_ims")?;
    Some(features.with_file_name(format!("{stem}_caps.txt"))).filter(|captions| captions.is_file())
}

/// Reads the splits of a folder of which there is one of the two files.
///
/// How many sentences an image has follows from the number of lines. A line that can't be used (empty, not UTF-8, over
/// [`MAX_SENTENCE_CHARACTERS`]) leaves its image with one sentence fewer; an image without any is left out. Lines of a file
/// where most are printed byte strings (`b'a dog'`) are read as the text they stand for, and a note says so. Whether the
/// features are finite is seen by [`RegionFeatures::check_finite`].
///
/// # Errors
/// Those of [`RegionFeatures::open`]; [`DataError::CaptionCount`] where the lines are no whole multiple of the images;
/// [`DataError::RegionShape`] where the splits differ; [`DataError::Io`], [`DataError::NotAFile`],
/// [`DataError::EmptyFile`], [`DataError::WrongKind`] and [`DataError::NothingUsable`] for the caption files.
pub(crate) fn read(folder: &Path, options: &ReadOptions) -> Result<Dataset, DataError> {
    let mut collector = Collector::default();
    let mut first: Option<RegionFeatures> = None;
    for split in Split::ALL.into_iter().filter(|split| options.wants(Some(*split))) {
        let (features, captions) = (features_file(folder, split), captions_file(folder, split));
        if !features.exists() && !captions.exists() {
            continue;
        }
        let features = read_files(&features, &captions, Some(split), &mut collector)?;
        let shape = first.get_or_insert_with(|| features.clone());
        features.check_shape(shape)?;
    }
    collector.finish(folder, Format::Scan, "image with captions")
}

/// Reads an array and its captions.
///
/// # Errors
/// Those of [`read`].
pub(crate) fn read_files(
    features: &Path,
    captions: &Path,
    split: Option<Split>,
    collector: &mut Collector,
) -> Result<RegionFeatures, DataError> {
    let features = RegionFeatures::open(features)?;
    collector.notes.extend(features.note());
    let lines = read_lines(captions)?;
    let (images, count) = (features.len(), lines.len());
    let captions_per_image = count / images;
    if count == 0 || captions_per_image * images != count {
        return Err(DataError::CaptionCount {
            path: captions.to_path_buf(),
            features: features.path().to_path_buf(),
            images,
            lines: count,
        });
    }
    let lines = as_text(captions, lines, &mut collector.notes);
    let (before, mut added) = (collector.skipped.len(), 0);
    for (image, lines) in lines.chunks(captions_per_image).enumerate() {
        let first_line = image * captions_per_image + 1;
        let sentences = usable(captions, first_line, lines, collector);
        if sentences.is_empty() {
            let name = features.name(image);
            collector.skipped.push(Skipped::line(captions, first_line, &name, "no usable caption"));
            continue;
        }
        added += 1;
        collector.add(Item {
            id: features.place(image),
            image: Some(ImageSource::Features(FeatureRow { features: features.clone(), image })),
            sentences,
            split,
            line: Some(first_line),
        });
    }
    if added == 0 {
        return Err(DataError::NothingUsable {
            path: captions.to_path_buf(),
            expected: "sentence",
            skipped: collector.skipped.len() - before,
        });
    }
    Ok(features)
}

/// What is usable of the lines of one image. The others keep their place: what follows belongs to the next image.
fn usable(file: &Path, first_line: usize, lines: &[Line], collector: &mut Collector) -> Vec<String> {
    let mut sentences = Vec::new();
    for (position, line) in lines.iter().enumerate() {
        match line.as_deref().map_err(Clone::clone).and_then(sentence) {
            Ok(text) => sentences.push(text.to_owned()),
            Err(reason) => {
                let shown = line.as_deref().map_or("", str::trim);
                collector.skipped.push(Skipped::line(file, first_line + position, shown, reason));
            }
        }
    }
    sentences
}

/// A line of a caption file, or why it has no text.
type Line = Result<String, String>;

/// All lines, also those that can't be used: their places count.
fn read_lines(path: &Path) -> Result<Vec<Line>, DataError> {
    const EXPECTED: &str = "a sentence a line";
    let mut lines = open_lines(path, MAX_LINE_BYTES, EXPECTED)?;
    lines.refuse_image(path, EXPECTED)?;
    let mut read = Vec::new();
    while let Some((_, content)) = lines.next_line().map_err(|error| DataError::io(path, "read", error))? {
        read.push(match content {
            LineContent::Text(text) => Ok(text),
            LineContent::NotUtf8 => Err("not UTF-8".to_owned()),
            LineContent::TooLong => Err(format!("longer than {MAX_SENTENCE_CHARACTERS} characters")),
        });
    }
    Ok(read)
}

/// The lines as text. A file written from bytes that were printed instead of decoded has `b'a dog'` for `a dog`: the first
/// word of every sentence would be another one. One such line may be a sentence about Python; a file of them is not.
fn as_text(path: &Path, mut lines: Vec<Line>, notes: &mut Vec<String>) -> Vec<Line> {
    let with_words = lines.iter().flatten().filter(|line| !line.trim().is_empty()).count();
    let printed = lines.iter().flatten().filter(|line| printed_bytes(line).is_some()).count();
    if printed == 0 {
        return lines;
    }
    let most = printed > with_words / 2;
    let done = if most { "read as the text they stand for" } else { "taken as they are" };
    notes.push(format!(
        "`{}`: {printed} of {with_words} lines are printed byte strings like b'a dog'; they are {done}",
        path.display()
    ));
    if most {
        for line in &mut lines {
            if let Some(bytes) = line.as_deref().ok().and_then(printed_bytes) {
                *line = String::from_utf8(bytes).map_err(|_| "not UTF-8".to_owned());
            }
        }
    }
    lines
}

/// The bytes that Python prints as `text`, if it prints any so: `b'a dog'`, `b"a dog's"`, `b'caf\xc3\xa9'`.
fn printed_bytes(text: &str) -> Option<Vec<u8>> {
    let (quote, rest) = text.trim().as_bytes().strip_prefix(b"b")?.split_first()?;
    if !matches!(quote, b'\'' | b'"') {
        return None;
    }
    let mut bytes = Vec::new();
    let mut rest = rest.strip_suffix(&[*quote])?.iter().copied();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'\\' => match rest.next()? {
                b'n' => b'\n',
                b'r' => b'\r',
                b't' => b'\t',
                b'x' => hexadecimal(rest.next()?)? << 4 | hexadecimal(rest.next()?)?,
                escaped @ (b'\\' | b'\'' | b'"') => escaped,
                _ => return None,
            },
            // A quote inside would have ended it, and what is not ASCII is printed as an escape.
            byte if byte == *quote || !byte.is_ascii() => return None,
            byte => byte,
        });
    }
    Some(bytes)
}

fn hexadecimal(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn printed_bytes_are_what_python_prints() {
        let read = |text: &str| printed_bytes(text).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        for (printed, text) in [
            ("b'a dog'", "a dog"),
            (" b'a dog' ", "a dog"),
            ("b\"a dog's\"", "a dog's"),
            (r#"b'caf\xc3\xa9 \\ \'both\' "'"#, "café \\ 'both' \""),
            (r"b'a\tb\r\n'", "a\tb\r\n"),
            ("b''", ""),
        ] {
            assert_eq!(read(printed).as_deref(), Some(text), "{printed}");
        }
        for text in [
            "",
            "b",
            "b'",
            "a dog",
            "b'a dog",
            "b'a dog\"",
            "'a dog'",
            "b'a' and b'c'",
            "b'café'",
            r"b'\xg0'",
            r"b'\x4'",
            r"b'\q'",
            r"b'a\'",
        ] {
            assert_eq!(read(text), None, "{text}");
        }
    }
}
