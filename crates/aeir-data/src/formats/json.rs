//! Data sets that are one JSON document: which of them it is, and what they have in common.

use std::fmt;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use serde::Deserialize;
use serde::de::{DeserializeOwned, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::dataset::Format;
use crate::durable;
use crate::error::DataError;

/// Which data set a document is, told by the keys of its first image.
///
/// # Errors
/// [`DataError::Malformed`] where it does not parse, [`DataError::UnknownFormat`] where it is something else.
pub(crate) fn detect(path: &Path) -> Result<Format, DataError> {
    let document: Outline = read(path, Format::Coco)?;
    match document {
        Outline { of_first_image: Some(keys), .. } if keys.sentences => Ok(Format::Karpathy),
        Outline { of_first_image: Some(_), annotations: true } => Ok(Format::Coco),
        _ => Err(DataError::UnknownFormat {
            path: path.to_path_buf(),
            looked_for:
                "COCO captions (`images` and `annotations`) and Karpathy's splits (`images` with `sentences`)"
                    .to_owned(),
        }),
    }
}

/// Reads a document.
///
/// # Errors
/// [`DataError::Malformed`] with the line where the parser stopped; [`DataError::EmptyFile`], [`DataError::Io`].
pub(crate) fn read<T: DeserializeOwned>(path: &Path, format: Format) -> Result<T, DataError> {
    let (file, length) = durable::open_regular(path)?;
    if length == 0 {
        return Err(DataError::EmptyFile { path: path.to_path_buf(), expected: "a JSON document" });
    }
    from_reader(file).map_err(|error| match error.io_error_kind() {
        Some(kind) => DataError::io(path, "read", kind.into()),
        None => {
            let text = error.to_string();
            let answer = text.split(" at line ").next().unwrap_or(&text).to_owned();
            DataError::Malformed {
                path: path.to_path_buf(),
                format,
                line: Some(error.line()).filter(|line| *line > 0),
                expected: "a JSON document of this kind".to_owned(),
                got: format!("{answer} at column {}", error.column()),
            }
        }
    })
}

fn from_reader<T: DeserializeOwned>(file: File) -> serde_json::Result<T> {
    let mut reader = BufReader::with_capacity(1 << 20, file);
    if std::io::BufRead::fill_buf(&mut reader).is_ok_and(|start| start.starts_with(b"\xef\xbb\xbf")) {
        std::io::BufRead::consume(&mut reader, 3);
    }
    serde_json::from_reader(reader)
}

/// A number or a text that names something.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Id(pub(crate) String);

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl Visitor<'_> for Any {
            type Value = Id;
            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a number or a text")
            }
            fn visit_u64<E>(self, value: u64) -> Result<Id, E> {
                Ok(Id(value.to_string()))
            }
            fn visit_i64<E>(self, value: i64) -> Result<Id, E> {
                Ok(Id(value.to_string()))
            }
            fn visit_str<E>(self, value: &str) -> Result<Id, E> {
                Ok(Id(value.to_owned()))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

/// What tells the documents apart. Nothing else of them is kept.
#[derive(Default)]
struct Outline {
    annotations: bool,
    of_first_image: Option<ImageKeys>,
}

#[derive(Default)]
struct ImageKeys {
    sentences: bool,
}

impl<'de> Deserialize<'de> for Outline {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(OutlineVisitor)
    }
}

struct OutlineVisitor;

impl<'de> Visitor<'de> for OutlineVisitor {
    type Value = Outline;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object with `images`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Outline, A::Error> {
        let mut outline = Outline::default();
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "images" => outline.of_first_image = map.next_value_seed(FirstImage)?,
                "annotations" => {
                    outline.annotations = true;
                    map.next_value::<IgnoredAny>()?;
                }
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(outline)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Outline, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Outline::default())
    }
}

/// The keys of the first element of a list.
struct FirstImage;

impl<'de> DeserializeSeed<'de> for FirstImage {
    type Value = Option<ImageKeys>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for FirstImage {
    type Value = Option<ImageKeys>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a list of images")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let first = list.next_element::<serde_json::Map<String, serde_json::Value>>()?;
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(first.map(|image| ImageKeys { sentences: image.contains_key("sentences") }))
    }
}
