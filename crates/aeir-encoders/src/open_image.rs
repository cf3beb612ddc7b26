//! An image from its file, upright.

use std::io::Cursor;
use std::path::Path;

use image::{DynamicImage, ImageDecoder, ImageError, ImageReader, Limits};

use crate::error::{EncoderError, Result};
use crate::load::read_file;

/// Largest width and height.
const MAX_SIDE: u32 = 1 << 16;
/// Bytes that decoding may take.
const MAX_BYTES: u64 = 1 << 30;

/// Reads an image file (JPEG, PNG, WebP, GIF, BMP; known by its first bytes) and turns it as its Exif orientation says.
///
/// Backbones and preprocessing take images that are upright; `image::open` alone leaves them as they are stored.
///
/// # Errors
/// [`EncoderError::MissingFile`], [`EncoderError::Read`], and [`EncoderError::Image`] for a file that is no image, is cut off, has sides
/// above 65,536 pixels or needs more than 1 GB.
///
/// # Example
/// ```no_run
/// let image = aeir_encoders::open_image(std::path::Path::new("photo.jpg"))?;
/// # Ok::<(), aeir_encoders::EncoderError>(())
/// ```
pub fn open_image(file: &Path) -> Result<DynamicImage> {
    let bytes = read_file(file)?;
    decode(&bytes).map_err(|source| EncoderError::Image { file: file.to_path_buf(), source })
}

fn decode(bytes: &[u8]) -> Result<DynamicImage, ImageError> {
    let mut limits = Limits::default();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    limits.max_alloc = Some(MAX_BYTES);
    let mut reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format()?;
    reader.limits(limits);
    let mut decoder = reader.into_decoder()?;
    let orientation = decoder.orientation()?;
    let mut image = DynamicImage::from_decoder(decoder)?;
    image.apply_orientation(orientation);
    Ok(image)
}
