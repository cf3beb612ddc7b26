//! The flags of every command that decodes images: how large they may be, and with how many threads.

use aeir_data::ImageLimits;
use clap::Args;

use crate::flags::at_least_one;

/// Limits that the header of an image is held against before it is decoded.
#[derive(Args)]
pub(crate) struct LoadingFlags {
    /// Skip images of more pixels than this: a decoded image takes 3 to 8 bytes a pixel of memory
    #[arg(long, value_name = "N", default_value_t = ImageLimits::default().max_pixels, help_heading = "Images", env = "AEIR_MAX_PIXELS")]
    max_pixels: u64,
    /// Skip images with a side of more pixels than this
    #[arg(long, value_name = "N", default_value_t = ImageLimits::default().max_side, help_heading = "Images", env = "AEIR_MAX_SIDE")]
    max_side: u32,
    /// Skip image files of more bytes than this
    #[arg(long, value_name = "N", default_value_t = ImageLimits::default().max_bytes, help_heading = "Images", env = "AEIR_MAX_IMAGE_BYTES")]
    max_image_bytes: u64,
    /// Threads in all, for decoding images and for our kernels [default: RAYON_NUM_THREADS, else all cores]
    #[arg(long, value_name = "N", value_parser = at_least_one, help_heading = "Images", env = "AEIR_WORKERS")]
    pub(crate) workers: Option<usize>,
}

impl LoadingFlags {
    pub(crate) fn limits(&self) -> ImageLimits {
        ImageLimits { max_pixels: self.max_pixels, max_side: self.max_side, max_bytes: self.max_image_bytes }
    }
}
