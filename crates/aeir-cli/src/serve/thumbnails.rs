//! Small pictures of indexed images, made when they are asked for and kept while there is room.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::UNIX_EPOCH;

use aeir_data::{Containers, DataError, ImageLimits, ImageSource};
use axum::body::Bytes;
use axum::http::StatusCode;
use image::{DynamicImage, Rgb, RgbImage};
use jpeg_encoder::{ColorType, Encoder};

use super::library::ItemId;
use super::limits;
use super::measures;
use super::refusal::Refusal;

/// The longer side of a thumbnail, in pixels, and of a larger view.
pub(super) const SIDES: [u32; 2] = [320, 1024];
const QUALITY: u8 = 85;
/// Files with several images whose lists are kept.
const MOST_LISTED: usize = 16;

/// A picture and which one it is.
#[derive(Clone)]
pub(super) struct Thumbnail {
    pub(super) jpeg: Bytes,
    pub(super) etag: String,
}

struct Kept {
    thumbnail: Thumbnail,
    used: u64,
}

#[derive(Default)]
struct Shelf {
    kept: HashMap<(ItemId, u32), Kept>,
    bytes: usize,
    clock: u64,
}

/// Changes with a file.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp {
    length: u64,
    modified: u128,
}

/// A file that holds several images, and where they lie in it.
struct Listed {
    file: PathBuf,
    stamp: Stamp,
    containers: Arc<Mutex<Containers>>,
}

/// What was made lately, the longest unused goes first.
pub(super) struct Thumbnails {
    shelf: Mutex<Shelf>,
    listed: Mutex<VecDeque<Listed>>,
    room: usize,
}

impl Thumbnails {
    pub(super) fn new(room: usize) -> Self {
        Self { shelf: Mutex::default(), listed: Mutex::default(), room }
    }

    /// The picture of an item, made anew where its file has changed. Reads and decodes: not for threads that talk to clients.
    pub(super) fn get(
        &self,
        id: ItemId,
        item: &str,
        side: u32,
        limits: &ImageLimits,
    ) -> Result<Thumbnail, Refusal> {
        let file = ImageSource::file_of_name(item);
        let stamp = Stamp::of(file).map_err(|error| gone(&error))?;
        let etag = format!("\"{id}-{side}-{:x}-{:x}\"", stamp.length, stamp.modified);
        if let Some(kept) = self.kept(id, side, &etag) {
            measures::thumbnail("memory");
            return Ok(kept);
        }
        let source = self.source(item, file, stamp).map_err(|error| refusal_of(&error))?;
        if source.features().is_some() {
            return Err(Refusal::new(
                StatusCode::NOT_FOUND,
                "this item is indexed by its features: it has no image",
            ));
        }
        let decoded = source.decode(limits).map_err(|error| refusal_of(&error))?;
        let jpeg = jpeg_of(&decoded.image, side)?;
        let thumbnail = Thumbnail { jpeg: jpeg.into(), etag };
        measures::thumbnail("file");
        self.keep(id, side, thumbnail.clone());
        Ok(thumbnail)
    }

    /// Where an image lies. A file that holds several is listed once, and again where it has changed.
    fn source(&self, item: &str, file: &Path, stamp: Stamp) -> Result<ImageSource, DataError> {
        if file == Path::new(item) {
            return Ok(file.to_owned().into());
        }
        let listed = self.listed(file, stamp);
        // Whoever wants another image of the same file waits for the list.
        let mut containers = listed.lock().unwrap_or_else(PoisonError::into_inner);
        containers.image(item)
    }

    fn listed(&self, file: &Path, stamp: Stamp) -> Arc<Mutex<Containers>> {
        let mut listed = self.listed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = listed.iter().find(|known| known.file == file && known.stamp == stamp) {
            return Arc::clone(&known.containers);
        }
        listed.retain(|known| known.file != file);
        if listed.len() >= MOST_LISTED {
            listed.pop_front();
        }
        let containers = Arc::default();
        listed.push_back(Listed { file: file.to_owned(), stamp, containers: Arc::clone(&containers) });
        containers
    }

    fn kept(&self, id: ItemId, side: u32, etag: &str) -> Option<Thumbnail> {
        let mut shelf = self.shelf.lock().unwrap_or_else(PoisonError::into_inner);
        shelf.clock += 1;
        let now = shelf.clock;
        let kept = shelf.kept.get_mut(&(id, side)).filter(|kept| kept.thumbnail.etag == etag)?;
        kept.used = now;
        Some(kept.thumbnail.clone())
    }

    fn keep(&self, id: ItemId, side: u32, thumbnail: Thumbnail) {
        let size = thumbnail.jpeg.len();
        if size > self.room {
            return;
        }
        let mut shelf = self.shelf.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = Kept { thumbnail, used: shelf.clock };
        shelf.bytes += size;
        if let Some(old) = shelf.kept.insert((id, side), kept) {
            shelf.bytes -= old.thumbnail.jpeg.len();
        }
        while shelf.bytes > self.room {
            let Some(oldest) = shelf.kept.iter().min_by_key(|(_, kept)| kept.used).map(|(key, _)| *key)
            else {
                return;
            };
            if let Some(old) = shelf.kept.remove(&oldest) {
                shelf.bytes -= old.thumbnail.jpeg.len();
            }
        }
    }
}

impl Stamp {
    fn of(file: &Path) -> io::Result<Self> {
        let metadata = std::fs::metadata(file)?;
        let modified = metadata.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
        Ok(Self { length: metadata.len(), modified: modified.as_nanos() })
    }
}

fn gone(error: &io::Error) -> Refusal {
    match error.kind() {
        io::ErrorKind::NotFound => Refusal::new(
            StatusCode::GONE,
            "the image file is gone: it was removed or moved after it was indexed",
        )
        .hint("index the images again; until then searches still find it by its vector"),
        _ => Refusal::failed("the image file can't be read"),
    }
}

/// Says what is wrong without saying where the file lies.
fn refusal_of(error: &DataError) -> Refusal {
    match error {
        DataError::Io { source, .. } => gone(source),
        DataError::NoSuchImage { .. } => Refusal::new(StatusCode::GONE, "the image is no longer in its file"),
        DataError::ImageTooLarge { width, height, .. } => too_large(*width, *height, error),
        _ => Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, "the image file can't be decoded any more"),
    }
}

/// Names the limit that a size breaks.
pub(super) fn too_large(width: u32, height: u32, error: &DataError) -> Refusal {
    let DataError::ImageTooLarge { max_pixels, max_side, .. } = error else {
        return Refusal::failed("the image is too large");
    };
    let refusal = |limit: String| {
        Refusal::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("the image is too large: expected at most {limit}, got {width} x {height}"),
        )
    };
    if width.max(height) > *max_side {
        refusal(format!("{max_side} pixels a side")).limit(limits::SIDE, u64::from(*max_side))
    } else {
        refusal(format!("{max_pixels} pixels")).limit(limits::PIXELS, *max_pixels)
    }
}

/// At most `side` pixels a side, never enlarged, what is transparent on white.
fn jpeg_of(image: &DynamicImage, side: u32) -> Result<Vec<u8>, Refusal> {
    let small;
    let image = if image.width().max(image.height()) > side {
        small = image.thumbnail(side, side);
        &small
    } else {
        image
    };
    let image = on_white(image);
    let failed = || Refusal::failed("the thumbnail could not be written");
    let size = |length: u32| u16::try_from(length).map_err(|_| failed());
    let (width, height) = (size(image.width())?, size(image.height())?);
    let mut bytes = Vec::new();
    Encoder::new(&mut bytes, QUALITY)
        .encode(image.as_raw(), width, height, ColorType::Rgb)
        .map_err(|_| failed())?;
    Ok(bytes)
}

fn on_white(image: &DynamicImage) -> RgbImage {
    if !image.color().has_alpha() {
        return image.to_rgb8();
    }
    let pixels = image.to_rgba8();
    RgbImage::from_fn(pixels.width(), pixels.height(), |x, y| {
        let [red, green, blue, alpha] = pixels.get_pixel(x, y).0;
        let blend = |value: u8| {
            let (value, alpha) = (u32::from(value), u32::from(alpha));
            ((value * alpha + 255 * (255 - alpha) + 127) / 255) as u8
        };
        Rgb([red, green, blue].map(blend))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{Rgba, RgbaImage};

    #[test]
    fn what_is_longest_unused_goes_first() {
        let thumbnails = Thumbnails::new(10);
        let picture = |etag: &str| Thumbnail { jpeg: vec![0; 4].into(), etag: etag.into() };
        let [a, b, c] = ["a", "b", "c"].map(ItemId::of);
        thumbnails.keep(a, 320, picture("a"));
        thumbnails.keep(b, 320, picture("b"));
        assert!(thumbnails.kept(a, 320, "a").is_some() && thumbnails.kept(a, 320, "changed").is_none());
        thumbnails.keep(c, 320, picture("c"));
        assert!(thumbnails.kept(b, 320, "b").is_none(), "b was used least lately");
        assert!(thumbnails.kept(a, 320, "a").is_some() && thumbnails.kept(c, 320, "c").is_some());
        thumbnails.keep(a, 1024, Thumbnail { jpeg: vec![0; 11].into(), etag: "large".into() });
        assert!(thumbnails.kept(a, 320, "a").is_some(), "what has no room at all pushes nothing out");
    }

    #[test]
    fn a_file_of_many_images_is_listed_once_until_it_changes() {
        let thumbnails = Thumbnails::new(10);
        let stamp = |length| Stamp { length, modified: 0 };
        let listed = |name: &str, length| thumbnails.listed(Path::new(name), stamp(length));
        let first = listed("a.tar", 1);
        assert!(Arc::ptr_eq(&first, &listed("a.tar", 1)));
        assert!(!Arc::ptr_eq(&first, &listed("a.tar", 2)), "it has changed");
        (0..2 * MOST_LISTED).for_each(|i| drop(listed(&format!("{i}.tar"), 1)));
        assert_eq!(thumbnails.listed.lock().unwrap().len(), MOST_LISTED);
    }

    #[test]
    fn transparency_becomes_white_and_nothing_is_enlarged() {
        let clear = DynamicImage::ImageRgba8(RgbaImage::from_pixel(3, 2, Rgba([200, 0, 0, 0])));
        assert_eq!(on_white(&clear).get_pixel(0, 0), &Rgb([255, 255, 255]));
        let half = DynamicImage::ImageRgba8(RgbaImage::from_pixel(1, 1, Rgba([0, 0, 0, 128])));
        assert_eq!(on_white(&half).get_pixel(0, 0), &Rgb([127, 127, 127]));
        let size = |image: &DynamicImage, side| {
            let decoded = image::load_from_memory(&jpeg_of(image, side).unwrap()).unwrap();
            (decoded.width(), decoded.height())
        };
        assert_eq!(size(&clear, 320), (3, 2));
        assert_eq!(size(&DynamicImage::new_rgb8(4000, 2), 320), (320, 1));
        assert_eq!(size(&DynamicImage::new_rgb16(640, 320), 320), (320, 160));
    }
}
