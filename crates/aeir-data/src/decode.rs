//! Decoding of images that nobody vouches for: the header is held against limits before a pixel is decoded.

use std::io::{Cursor, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits};

use crate::durable;
use crate::error::DataError;
use crate::hash::{ContentHash, hash_bytes};

/// How large an image may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageLimits {
    /// Width times height, in pixels.
    pub max_pixels: u64,
    /// The longer side, in pixels.
    pub max_side: u32,
    /// The encoded file, in bytes.
    pub max_bytes: u64,
}

impl Default for ImageLimits {
    /// 50 megapixels, 65,535 a side (the most a JPEG can say), 256 MiB.
    fn default() -> Self {
        Self { max_pixels: 50_000_000, max_side: 65_535, max_bytes: 256 * 1024 * 1024 }
    }
}

impl ImageLimits {
    /// Memory a decoder may ask for: the largest allowed image at 16 bits and four channels twice over (result and
    /// working copy), and room for colour profiles and tables.
    fn max_allocation(&self) -> u64 {
        self.max_pixels.saturating_mul(16).saturating_add(64 * 1024 * 1024)
    }

    fn check(&self, width: u32, height: u32) -> Result<(), DataError> {
        let within =
            u64::from(width) * u64::from(height) <= self.max_pixels && width.max(height) <= self.max_side;
        if within {
            return Ok(());
        }
        Err(DataError::ImageTooLarge {
            path: None,
            width,
            height,
            max_pixels: self.max_pixels,
            max_side: self.max_side,
        })
    }
}

/// A decoded image and the hash of the file it came from.
#[derive(Debug, Clone)]
pub struct DecodedImage {
    /// Upright, with the channels and the depth of the file: what becomes of alpha and of 16 bits is decided by the
    /// preprocessing.
    pub image: DynamicImage,
    /// SHA-256 of the encoded file.
    pub hash: ContentHash,
}

/// Reads, hashes and decodes an image file. The format is told by the content, not by the suffix.
///
/// # Errors
/// [`DataError::Io`], [`DataError::NotAFile`], and the errors of [`decode_bytes`], all with the path.
pub fn decode_file(path: &Path, limits: &ImageLimits) -> Result<DecodedImage, DataError> {
    let bytes = read_within(path, limits.max_bytes)?;
    let image = decode_bytes(&bytes, limits).map_err(|error| error.at(path))?;
    Ok(DecodedImage { image, hash: hash_bytes(&bytes) })
}

pub(crate) fn read_within(path: &Path, limit: u64) -> Result<Vec<u8>, DataError> {
    let too_many = |got| DataError::ImageTooManyBytes { path: Some(path.to_path_buf()), limit, got };
    let (file, length) = durable::open_regular(path)?;
    if length > limit {
        return Err(too_many(length));
    }
    // The length is a moment's truth: the file may grow while it is read.
    let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or(0));
    file.take(limit.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(|error| DataError::io(path, "read", error))?;
    let got = bytes.len() as u64;
    if got > limit {
        return Err(too_many(got));
    }
    Ok(bytes)
}

/// Decodes a JPEG, PNG, WebP, GIF or BMP image; of an animation the first frame. The orientation in the EXIF data is
/// applied, alpha is kept.
///
/// # Errors
/// [`DataError::ImageEmpty`], [`DataError::ImageFormatUnknown`]; [`DataError::ImageTooManyBytes`] and
/// [`DataError::ImageTooLarge`] before anything is decoded; [`DataError::ImageTruncated`],
/// [`DataError::ImageDecode`] and [`DataError::ImageDecoderPanicked`].
pub fn decode_bytes(bytes: &[u8], limits: &ImageLimits) -> Result<DynamicImage, DataError> {
    let got = bytes.len() as u64;
    if got == 0 {
        return Err(DataError::ImageEmpty { path: None });
    }
    if got > limits.max_bytes {
        return Err(DataError::ImageTooManyBytes { path: None, limit: limits.max_bytes, got });
    }
    let format = image::guess_format(bytes).map_err(|_| DataError::ImageFormatUnknown { path: None })?;
    if !matches!(
        format,
        ImageFormat::Jpeg | ImageFormat::Png | ImageFormat::WebP | ImageFormat::Gif | ImageFormat::Bmp
    ) {
        return Err(DataError::ImageFormatUnknown { path: None });
    }
    let whole = match format {
        ImageFormat::Jpeg => jpeg_is_whole(bytes),
        ImageFormat::WebP => webp_is_whole(bytes),
        // These decoders miss what is missing themselves.
        _ => true,
    };
    if !whole {
        return Err(DataError::ImageTruncated { path: None, got });
    }
    if format == ImageFormat::WebP
        && let Some((width, height)) = webp_lossy_size(bytes)
    {
        limits.check(width, height)?;
    }
    // The decoders are other people's code reading bytes of unknown origin, with `unwrap`s of their own in it, and
    // they run on pool threads: a panic there would end a night's run for one image. Millions of mutated images set
    // none off, which is no proof for the next version. Nothing outlives the call but its result, so nothing
    // half-changed can be seen afterwards.
    match catch_unwind(AssertUnwindSafe(|| decode_as(bytes, format, limits))) {
        Ok(result) => result,
        Err(panic) => {
            let message = panic
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
                .unwrap_or_default();
            Err(DataError::ImageDecoderPanicked { path: None, message })
        }
    }
}

fn decode_as(bytes: &[u8], format: ImageFormat, limits: &ImageLimits) -> Result<DynamicImage, DataError> {
    let refused = |error| refusal(error, bytes.len());
    let mut allocation = Limits::no_limits();
    allocation.max_alloc = Some(limits.max_allocation());
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    reader.limits(allocation.clone());
    let mut decoder = reader.into_decoder().map_err(refused)?;
    let (width, height) = decoder.dimensions();
    limits.check(width, height)?;
    allocation.reserve(decoder.total_bytes()).map_err(refused)?;
    decoder.set_limits(allocation).map_err(refused)?;
    // Broken EXIF data are no reason to lose an image that decodes.
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let mut image = DynamicImage::from_decoder(decoder).map_err(refused)?;
    image.apply_orientation(orientation);
    Ok(image)
}

fn refusal(error: ImageError, length: usize) -> DataError {
    match &error {
        ImageError::IoError(source) if source.kind() == std::io::ErrorKind::UnexpectedEof => {
            DataError::ImageTruncated { path: None, got: length as u64 }
        }
        _ => DataError::ImageDecode { path: None, source: Box::new(error) },
    }
}

/// Whether a JPEG reaches its end marker after image data. The decoder fills what is missing with grey, as most
/// viewers do: in a training set that is a wrong picture with a right caption.
fn jpeg_is_whole(bytes: &[u8]) -> bool {
    const END_OF_IMAGE: u8 = 0xd9;
    const START_OF_SCAN: u8 = 0xda;
    let mut at = 2;
    let mut scanned = false;
    // Segment by segment, as an embedded preview has an end marker of its own.
    while let Some((marker, after)) = next_marker(bytes, at) {
        match marker {
            END_OF_IMAGE => return scanned,
            // Markers without a length: TEM and another start of image.
            0x01 | 0xd8 => at = after,
            _ => {
                let Some(length) = bytes.get(after..after + 2) else { return false };
                let length = length.iter().fold(0, |sum, byte| (sum << 8) | usize::from(*byte));
                at = after + length.max(2);
                scanned |= marker == START_OF_SCAN;
            }
        }
    }
    false
}

/// The next marker from `at` on and the position after it. Entropy-coded bytes and stray ones are passed over: in
/// them a 0xff is followed by 0 or a restart marker.
fn next_marker(bytes: &[u8], at: usize) -> Option<(u8, usize)> {
    let rest = bytes.get(at..)?;
    memchr::memchr_iter(0xff, rest).find_map(|offset| {
        let marker = *rest.get(offset + 1)?;
        (!matches!(marker, 0x00 | 0xff | 0xd0..=0xd7)).then_some((marker, at + offset + 2))
    })
}

/// Whether a WebP has the length its first chunk announces. Behind the pixels stands the orientation: without it the
/// image would decode, turned.
fn webp_is_whole(bytes: &[u8]) -> bool {
    let announced =
        bytes.get(4..).and_then(|bytes| bytes.first_chunk::<4>()).map(|size| u32::from_le_bytes(*size));
    announced.is_some_and(|size| u64::from(size) + 8 <= bytes.len() as u64)
}

/// The size in the first lossy frame of a WebP. The decoder takes memory by it, and looks only afterwards whether it
/// is the size of the header.
fn webp_lossy_size(bytes: &[u8]) -> Option<(u32, u32)> {
    let mut at = 12;
    loop {
        let (name, rest) = bytes.get(at..)?.split_first_chunk::<4>()?;
        let (size, payload) = rest.split_first_chunk::<4>()?;
        let size = u32::from_le_bytes(*size) as usize;
        at = match name {
            b"VP8 " => {
                let side = |place: usize| {
                    let side = payload.get(place..)?.first_chunk::<2>()?;
                    // The two bits above are a hint for scaling.
                    Some(u32::from(u16::from_le_bytes(*side) & 0x3fff))
                };
                return Some((side(6)?, side(8)?));
            }
            // A frame of an animation has a header of its own, then chunks.
            b"ANMF" => at.checked_add(8 + 16)?,
            // Chunks are padded to even length.
            _ => at.checked_add(8)?.checked_add(size)?.checked_add(size % 2)?,
        };
    }
}
