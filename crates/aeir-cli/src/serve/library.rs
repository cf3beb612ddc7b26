//! The index that is served: opened, verified, and exchanged when a new one is committed.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use aeir_retrieve::MANIFEST_FILE;
use candle_core::Device;
use sha2::{Digest, Sha256};

use super::measures;
use crate::search_engine::{SearchEngine, Shelf};
use crate::terminal::Terminal;

/// Longest pause between two looks at an index that can't be served, unless looks are farther apart anyway.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// An item by name: stays the same when an index is built anew, and says nothing of where the file lies.
///
/// The first 64 bits of the name's SHA-256. What a request names is looked up in a table of these and nothing else: no path is made of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct ItemId(u64);

impl ItemId {
    pub(super) fn of(item: &str) -> Self {
        let hash: [u8; 32] = Sha256::digest(item.as_bytes()).into();
        Self(hash.iter().take(8).fold(0, |value, byte| (value << 8) | u64::from(*byte)))
    }

    /// As it is written; none for anything that is not exactly so.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let written = text.len() == 16 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        written.then(|| u64::from_str_radix(text, 16).ok().map(Self)).flatten()
    }
}

impl fmt::Display for ItemId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:016x}", self.0)
    }
}

/// One state of the index with its model.
pub(crate) struct Volume {
    pub(super) engine: SearchEngine,
    positions: HashMap<ItemId, usize>,
    /// What all names begin with: the folder of the images, which is nobody's business.
    prefix: usize,
    pub(super) generation: u64,
}

impl Volume {
    fn new(engine: SearchEngine) -> Self {
        let index = &engine.shelf.index;
        let mut positions = HashMap::with_capacity(index.len());
        for (position, item) in index.items().enumerate() {
            // An image that is indexed twice is the first of its kind.
            positions.entry(ItemId::of(item)).or_insert(position);
        }
        let (prefix, generation) = (common_folder(index.items()), index.generation());
        Self { prefix, positions, engine, generation }
    }

    pub(crate) fn items(&self) -> usize {
        self.engine.shelf.index.len()
    }

    pub(super) fn position(&self, id: ItemId) -> Option<usize> {
        self.positions.get(&id).copied()
    }

    /// An item's name below the folder that all of them share.
    pub(super) fn name<'a>(&self, item: &'a str) -> &'a str {
        item.get(self.prefix..).unwrap_or(item)
    }
}

/// Length of the longest folder that all names begin with, with its last `/`.
fn common_folder<'a>(mut items: impl Iterator<Item = &'a str>) -> usize {
    let Some(first) = items.next() else { return 0 };
    let mut common = first.rfind(['/', '\\']).map_or(0, |place| place + 1);
    for item in items {
        let shared = first.bytes().zip(item.bytes()).take(common).take_while(|(a, b)| a == b).count();
        let folder = first.as_bytes().get(..shared).unwrap_or_default();
        common = folder.iter().rposition(|byte| matches!(byte, b'/' | b'\\')).map_or(0, |place| place + 1);
    }
    common
}

/// What is served now.
pub(crate) struct Library {
    folder: PathBuf,
    device: Device,
    current: RwLock<Arc<Volume>>,
    /// Whether the newest index can't be served.
    trouble: AtomicBool,
}

impl Library {
    /// Opens an index with its model.
    pub(crate) fn open(folder: &Path, device: &Device) -> anyhow::Result<Self> {
        let engine = SearchEngine::new(Shelf::open(folder)?, device)?.searching_on(device);
        // Each thread has an order of its own of what it asks of a card, and another one answers.
        device.synchronize()?;
        let volume = Volume::new(engine);
        measures::of_index(volume.engine.shelf.index.len(), volume.generation);
        Ok(Self {
            folder: folder.to_owned(),
            device: device.clone(),
            current: RwLock::new(Arc::new(volume)),
            trouble: AtomicBool::new(false),
        })
    }

    pub(crate) fn current(&self) -> Arc<Volume> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether there is a newer index that can't be served. Why is told on stderr alone: it says where files lie.
    pub(super) fn trouble(&self) -> bool {
        self.trouble.load(Ordering::Acquire)
    }

    /// Compares the index that is served with the one in the folder every so often, and serves the new one when there is one. Requests
    /// under way keep the old one.
    ///
    /// One that can't be opened is told of once for each reason, and the old one stays. It is tried again, less and less often: it may
    /// be large, and broken for good.
    pub(crate) fn follow(self: Arc<Self>, every: Duration, terminal: Terminal) -> anyhow::Result<()> {
        let watch = move || {
            let (mut pause, mut told) = (every, None);
            loop {
                std::thread::sleep(pause);
                match self.renew() {
                    Ok(renewed) => {
                        (pause, told) = (every, None);
                        self.trouble.store(false, Ordering::Release);
                        if let Some(items) = renewed {
                            terminal.note(&format!("serving the new index: {items} images"));
                        }
                    }
                    // Between two indexes there may be none for a moment.
                    Err(_) if !self.folder.join(MANIFEST_FILE).exists() => {}
                    Err(error) => {
                        pause = (2 * pause).min(LONGEST_PAUSE.max(every));
                        self.trouble.store(true, Ordering::Release);
                        let why = Some(format!("{error:#}"));
                        if told != why {
                            measures::reload_failed();
                            let what = "the new index can't be served, the old one stays";
                            terminal.warn(&format!("{what}: {error:#}"));
                            told = why;
                        }
                    }
                }
            }
        };
        std::thread::Builder::new().name("aeir-follow".into()).spawn(watch)?;
        Ok(())
    }

    /// Opens the newest index, unless it is the one that is served; what has not changed, such as its model, is kept.
    fn renew(&self) -> anyhow::Result<Option<usize>> {
        let old = self.current();
        let Some(shelf) = old.engine.shelf.newer()? else { return Ok(None) };
        let engine = if shelf.index.model_fingerprint() == old.engine.bundle.fingerprint() {
            SearchEngine::with_bundle(shelf, Arc::clone(&old.engine.bundle))?
        } else {
            SearchEngine::new(shelf, &self.device)?
        };
        let volume = Volume::new(engine.searching_on(&self.device));
        // Another thread answers.
        self.device.synchronize()?;
        let items = volume.engine.shelf.index.len();
        measures::of_index(items, volume.generation);
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(volume);
        Ok(Some(items))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_names_and_no_paths() {
        let id = ItemId::of("/photos/1.jpg");
        assert_eq!(ItemId::parse(&id.to_string()), Some(id));
        assert_ne!(id, ItemId::of("/photos/2.jpg"));
        for other in
            ["", "..", "../../etc/passwd", "/photos/1.jpg", "0", "+23456789abcdef0", "0123456789ABCDEF"]
        {
            assert_eq!(ItemId::parse(other), None, "{other}");
        }
    }

    #[test]
    fn names_are_told_without_the_folder_they_share() {
        let folder = |items: &[&str]| common_folder(items.iter().copied());
        assert_eq!(folder(&["/a/b/1.jpg", "/a/b/2.jpg"]), "/a/b/".len());
        assert_eq!(folder(&["/a/b/1.jpg", "/a/bc/2.jpg"]), "/a/".len());
        assert_eq!(folder(&["/a/b/1.jpg"]), "/a/b/".len());
        assert_eq!((folder(&["1.jpg", "2.jpg"]), folder(&[])), (0, 0));
        assert_eq!(folder(&["/é/1.jpg", "/è/2.jpg"]), "/".len());
    }
}
