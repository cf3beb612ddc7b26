//! The two file formats around a checkpoint's pickle: where it lies, and where the numbers of each storage lie.

use std::collections::HashMap;
use std::io::Cursor;
use std::ops::Range;
use std::sync::Arc;

use safetensors::Dtype;
use zip::{CompressionMethod, ZipArchive};

use super::pickle::{Node, Pickle, PickleError};

/// The first object of a file before PyTorch 1.6, an integer of ten bytes.
const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
const PROTOCOL: i64 = 1001;
const PICKLE_ENTRY: &str = "data.pkl";
/// Where the name of a tar archive's format lies.
const TAR_MARK: Range<usize> = 257..262;

/// What is wrong with a file, and where.
#[derive(Debug)]
pub(super) struct Damage {
    pub(super) place: String,
    pub(super) expected: String,
    pub(super) got: String,
}

impl Damage {
    pub(super) fn new(place: impl Into<String>, expected: impl Into<String>, got: impl Into<String>) -> Self {
        Self { place: place.into(), expected: expected.into(), got: got.into() }
    }

    fn pickle(what: &str, start: usize) -> impl FnOnce(PickleError) -> Self {
        move |error| Self::new(format!("byte {} of {what}", start + error.at), error.expected, error.got)
    }

    fn zip(error: &zip::result::ZipError) -> Self {
        Self::new("the zip archive", "one that is whole", error.to_string())
    }
}

/// A checkpoint taken apart.
pub(super) struct Container {
    pub(super) pickle: Pickle,
    /// The bytes of each storage in the file, by key.
    pub(super) storages: HashMap<Arc<str>, Range<usize>>,
}

impl Container {
    pub(super) fn read(bytes: &[u8]) -> Result<Self, Damage> {
        if bytes.starts_with(b"PK") {
            return Self::of_zip(bytes);
        }
        if bytes.get(TAR_MARK) == Some(b"ustar") {
            return Err(Damage::new(
                "the file",
                "a file that `torch.save` wrote",
                "a tar archive: unpack it, or save it again with PyTorch 0.2 or later",
            ));
        }
        if bytes.first() == Some(&0x80) {
            return Self::of_legacy(bytes);
        }
        Err(Damage::new(
            "the file",
            "a file that `torch.save` wrote (zip, or pickle before PyTorch 1.6)",
            "another format",
        ))
    }

    /// Since PyTorch 1.6: `NAME/data.pkl` and `NAME/data/KEY`, stored without compression.
    fn of_zip(bytes: &[u8]) -> Result<Self, Damage> {
        let mut archive = ZipArchive::new(Cursor::new(bytes)).map_err(|error| Damage::zip(&error))?;
        let mut entries = HashMap::new();
        for index in 0..archive.len() {
            let entry = archive.by_index_raw(index).map_err(|error| Damage::zip(&error))?;
            let name = entry.name().map_err(|error| Damage::zip(&error))?.into_owned();
            entries.insert(name, stored(&entry, bytes.len())?);
        }
        let folder = entries
            .keys()
            .filter_map(|name| name.strip_suffix(PICKLE_ENTRY))
            .find(|folder| folder.ends_with('/') && folder.matches('/').count() == 1)
            .map(str::to_owned)
            .ok_or_else(|| Damage::new("the zip archive", format!("an entry `*/{PICKLE_ENTRY}`"), "none"))?;
        let content =
            |name: &str| entries.get(&format!("{folder}{name}")).and_then(|range| bytes.get(range.clone()));
        if let Some(order) = content("byteorder").filter(|order| *order != b"little") {
            let order = String::from_utf8_lossy(order).chars().take(16).collect::<String>();
            return Err(Damage::new("entry `byteorder`", "little", order));
        }
        let pickle = Pickle::read(content(PICKLE_ENTRY).unwrap_or_default())
            .map_err(Damage::pickle(&format!("`{PICKLE_ENTRY}`"), 0))?;
        let data = format!("{folder}data/");
        let storages = entries
            .iter()
            .filter_map(|(name, range)| Some((name.strip_prefix(&data)?.into(), range.clone())))
            .collect();
        Ok(Self { pickle, storages })
    }

    /// Before PyTorch 1.6: five pickles (magic number, protocol, system, the object, the keys of its storages), then each
    /// storage as its number of elements and their bytes.
    fn of_legacy(bytes: &[u8]) -> Result<Self, Damage> {
        let mut at = 0;
        let mut next = |what: &'static str| -> Result<Pickle, Damage> {
            let start = at;
            let pickle = Pickle::read(bytes.get(start..).unwrap_or_default())
                .map_err(Damage::pickle("the file", start))
                .map_err(|damage| {
                    Damage::new(format!("{what}, {}", damage.place), damage.expected, damage.got)
                })?;
            at += pickle.length;
            Ok(pickle)
        };
        let magic = next("magic number")?;
        match magic.node(magic.root) {
            Node::LongInteger(found) if *found == MAGIC => {}
            _ => {
                return Err(Damage::new(
                    "magic number",
                    "that of PyTorch",
                    "another value: a pickle, but no checkpoint",
                ));
            }
        }
        let protocol = next("protocol")?;
        match protocol.node(protocol.root) {
            Node::Integer(PROTOCOL) => {}
            other => return Err(Damage::new("protocol", PROTOCOL.to_string(), describe(other))),
        }
        let system = next("system")?;
        check_byte_order(&system)?;
        let pickle = next("object")?;
        let keys = next("storage keys")?;
        let storages = legacy_storages(bytes, at, &pickle, &keys)?;
        Ok(Self { pickle, storages })
    }
}

/// Where the bytes of an entry lie, in a file of `length` bytes.
fn stored<R: std::io::Read + ?Sized>(
    entry: &zip::read::ZipFile<'_, R>,
    length: usize,
) -> Result<Range<usize>, Damage> {
    let name = || entry.name().map_or_else(|_| "an entry".to_owned(), |name| format!("entry `{name}`"));
    if entry.compression() != CompressionMethod::Stored || entry.encrypted() {
        return Err(Damage::new(
            name(),
            "stored bytes, as PyTorch writes them",
            "compressed or encrypted ones",
        ));
    }
    let start = entry.data_start().and_then(|start| usize::try_from(start).ok());
    let range = start.zip(usize::try_from(entry.size()).ok()).and_then(|(start, size)| {
        let end = start.checked_add(size)?;
        (end <= length).then_some(start..end)
    });
    range.ok_or_else(|| Damage::new(name(), format!("{} bytes in the file", entry.size()), "fewer"))
}

fn check_byte_order(system: &Pickle) -> Result<(), Damage> {
    let Node::Mapping(entries) = system.node(system.root) else { return Ok(()) };
    let big = entries.iter().any(|(key, value)| {
        matches!(system.node(*key), Node::Text(key) if &**key == "little_endian")
            && matches!(system.node(*value), Node::Bool(false))
    });
    if big {
        return Err(Damage::new("byte order", "little-endian numbers", "big-endian ones"));
    }
    Ok(())
}

fn legacy_storages(
    bytes: &[u8],
    start: usize,
    pickle: &Pickle,
    keys: &Pickle,
) -> Result<HashMap<Arc<str>, Range<usize>>, Damage> {
    let Node::Sequence(order) = keys.node(keys.root) else {
        return Err(Damage::new("storage keys", "a list", describe(keys.node(keys.root))));
    };
    let sizes: HashMap<&str, (usize, u64)> = pickle
        .nodes
        .iter()
        .filter_map(|node| match node {
            Node::Storage(storage) => Some((&*storage.key, (element_bytes(storage.dtype), storage.elements))),
            _ => None,
        })
        .collect();
    let mut storages = HashMap::with_capacity(sizes.len());
    let mut at = start;
    for key in order {
        let Node::Text(key) = keys.node(*key) else {
            return Err(Damage::new("storage keys", "text", describe(keys.node(*key))));
        };
        let place = || format!("storage `{key}` at byte {at}");
        let Some((width, elements)) = sizes.get(&**key).copied() else {
            return Err(Damage::new(place(), "a storage that a tensor uses", "one of unknown type"));
        };
        let count = bytes
            .get(at..)
            .and_then(|rest| rest.first_chunk::<8>())
            .map(|count| u64::from_le_bytes(*count))
            .ok_or_else(|| Damage::new(place(), "its number of elements", "the end of the file"))?;
        if count != elements {
            return Err(Damage::new(place(), format!("{elements} elements"), count.to_string()));
        }
        let end = usize::try_from(count)
            .ok()
            .and_then(|count| count.checked_mul(width)?.checked_add(at)?.checked_add(8))
            .filter(|end| *end <= bytes.len())
            .ok_or_else(|| {
                let left = bytes.len().saturating_sub(at + 8);
                Damage::new(
                    place(),
                    format!("{count} elements of {width} bytes"),
                    format!("{left} bytes until the end of the file"),
                )
            })?;
        storages.insert(Arc::clone(key), at + 8..end);
        at = end;
    }
    Ok(storages)
}

pub(super) fn element_bytes(dtype: Option<Dtype>) -> usize {
    dtype.map_or(1, |dtype| dtype.bitsize() / 8)
}

/// A value in words.
pub(super) fn describe(node: &Node) -> String {
    match node {
        Node::None => "nothing".into(),
        Node::Bool(value) => value.to_string(),
        Node::Integer(value) => value.to_string(),
        Node::LongInteger(bytes) => format!("an integer of {} bytes", bytes.len()),
        Node::Float(value) => value.to_string(),
        Node::Text(text) => {
            let mut start: String = text.chars().take(40).collect();
            if start.len() < text.len() {
                start.push('…');
            }
            format!("text \"{start}\"")
        }
        Node::Bytes(length) => format!("{length} bytes"),
        Node::Sequence(items) => format!("a list of {}", items.len()),
        Node::Mapping(entries) => format!("a dictionary of {}", entries.len()),
        Node::Global(name) => format!("class or function `{name}`"),
        Node::Object(class) => format!("an object of `{class}`"),
        Node::Storage(_) => "a storage without a tensor".into(),
        Node::Tensor(_) => "a tensor".into(),
    }
}
