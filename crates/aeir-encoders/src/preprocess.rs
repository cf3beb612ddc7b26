//! From a decoded image to the numbers a network was trained on.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use image::{DynamicImage, RgbaImage};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::error::{EncoderError, Result};
use crate::resample::{Window, resample};

/// Largest side of the network input.
const MAX_SIDE: u32 = 4096;
const CHANNELS: usize = 3;

/// Width and height in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Size {
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
}

/// How the target size is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Resize {
    /// Straight to this size; the aspect ratio is not kept.
    Exact(Size),
    /// The shorter side to this many pixels; the longer side keeps the aspect ratio, rounded down. Needs a crop,
    /// since images of a batch have one size.
    ShortestEdge(u32),
}

/// Resampling filter, antialiased when it shrinks. All are Pillow's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Filter {
    /// Cubic convolution with a = -0.5.
    Bicubic,
    /// Triangle.
    Bilinear,
    /// The pixel under the middle of each output pixel; not antialiased.
    Nearest,
    /// The mean of the pixels that an output pixel covers.
    Box,
    /// Sinc under a Hamming window, as wide as the triangle.
    Hamming,
    /// Sinc with three lobes under a sinc window.
    Lanczos,
}

/// What happens to transparency.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Alpha {
    /// Composited on white at the original size, before resizing.
    CompositeOnWhite,
    /// Left out: the colour under transparent pixels shows (Hugging Face's processors do this).
    Drop,
}

/// The settings of an [`ImagePreprocessor`], not checked yet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PreprocessorConfig {
    /// How images are resized.
    pub resize: Resize,
    /// The resampling filter.
    pub filter: Filter,
    /// Centre crop after resizing, if any. What it takes beyond the picture is black.
    #[serde(default)]
    pub crop: Option<Size>,
    /// Factor on the 0..255 values, such as 1/255.
    pub rescale: f64,
    /// Subtracted after rescaling, by channel (red, green, blue).
    pub mean: [f32; 3],
    /// Divided by after that, by channel.
    pub std: [f32; 3],
    /// What happens to transparency.
    pub alpha: Alpha,
}

/// An image after resizing and cropping, before any scaling of values: all that a network needs of it, in far less memory.
///
/// Whoever decodes images in threads of their own prepares them there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreparedImage {
    /// `[H, W, 3]`.
    bytes: Vec<u8>,
    size: Size,
}

impl PreparedImage {
    /// The pixels, `[H, W, 3]`, row by row.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Width and height.
    #[must_use]
    pub fn size(&self) -> Size {
        self.size
    }
}

/// Turns decoded, oriented images into network input. [`open_image`](fn@crate::open_image) decodes and orients a file.
///
/// Of 16-bit images the upper bytes are taken, as Pillow does; grey and palette become RGB.
/// The order is: alpha, RGB, resize, centre crop, rescale, subtract mean, divide by std. Resizing gives the bytes that
/// Pillow up to version 12 gives: width first, rounded to bytes, then height, in fixed point.
///
/// # Parity file
/// `fixtures/parity/preprocessing`: the same bytes, apart from what JPEG decoders differ in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "PreprocessorConfig", into = "PreprocessorConfig")]
pub struct ImagePreprocessor {
    config: PreprocessorConfig,
    output: Size,
    /// The value of each byte, by channel: 256 values are all there is to compute.
    values: Vec<[f32; CHANNELS]>,
}

impl TryFrom<PreprocessorConfig> for ImagePreprocessor {
    type Error = EncoderError;

    fn try_from(config: PreprocessorConfig) -> Result<Self> {
        Self::new(config)
    }
}

impl From<ImagePreprocessor> for PreprocessorConfig {
    fn from(preprocessor: ImagePreprocessor) -> Self {
        preprocessor.config
    }
}

impl ImagePreprocessor {
    /// Checks the settings.
    ///
    /// # Errors
    /// [`EncoderError::Config`] for a size of 0 or above 4096, shortest-edge resizing without a crop, or a rescale, mean or std that is not usable.
    pub fn new(config: PreprocessorConfig) -> Result<Self> {
        Self::checked(config, Path::new(""))
    }

    pub(crate) fn checked(config: PreprocessorConfig, file: &Path) -> Result<Self> {
        let fail = |key: &str, expected: &str, got: String| EncoderError::Config {
            file: file.to_path_buf(),
            key: key.to_owned(),
            expected: expected.to_owned(),
            got,
        };
        let valid = |side: u32| (1..=MAX_SIDE).contains(&side);
        let resized = match config.resize {
            Resize::Exact(size) => size,
            Resize::ShortestEdge(edge) => Size { width: edge, height: edge },
        };
        if !valid(resized.width) || !valid(resized.height) {
            return Err(fail(
                "resize",
                "sides of 1 to 4096 pixels",
                format!("{}x{}", resized.width, resized.height),
            ));
        }
        let output = match (config.crop, config.resize) {
            (Some(crop), _) => crop,
            (None, Resize::Exact(size)) => size,
            (None, Resize::ShortestEdge(_)) => {
                return Err(fail("crop", "a crop size with shortest-edge resizing", "none".to_owned()));
            }
        };
        if !valid(output.width) || !valid(output.height) {
            return Err(fail(
                "crop",
                "sides of 1 to 4096 pixels",
                format!("{}x{}", output.width, output.height),
            ));
        }
        if !(config.rescale.is_finite() && config.rescale > 0.0) {
            return Err(fail("rescale", "a positive number", config.rescale.to_string()));
        }
        if let Some(mean) = config.mean.iter().find(|mean| !mean.is_finite()) {
            return Err(fail("mean", "finite numbers", mean.to_string()));
        }
        if let Some(std) = config.std.iter().find(|std| !(std.is_finite() && **std > 0.0)) {
            return Err(fail("std", "positive numbers", std.to_string()));
        }
        let ([mean_r, mean_g, mean_b], [std_r, std_g, std_b]) = (config.mean, config.std);
        let values = (0..=u8::MAX)
            .map(|byte| {
                // In f64 and then rounded, as NumPy does it for the reference values.
                let scaled = (f64::from(byte) * config.rescale) as f32;
                [(scaled - mean_r) / std_r, (scaled - mean_g) / std_g, (scaled - mean_b) / std_b]
            })
            .collect();
        Ok(Self { config, output, values })
    }

    /// Reads a Hugging Face `preprocessor_config.json`.
    ///
    /// Understood are the image processors of CLIP, SigLIP, ViT, DeiT, BiT (DINOv2) and ConvNeXt (ResNet): `size` as a number, as
    /// `height` and `width`, or as `shortest_edge`; `resample` 0 to 5, Pillow's filters; centre crop, ConvNeXt's `crop_pct`, rescale
    /// and normalise. Alpha is dropped, as those processors do.
    ///
    /// # Errors
    /// [`EncoderError::MissingFile`], [`EncoderError::Read`], [`EncoderError::Json`], and [`EncoderError::Config`] for a
    /// setting that would need another computation.
    pub fn from_hugging_face(file: &Path) -> Result<Self> {
        let bytes = crate::load::read_file(file)?;
        let parsed: HuggingFaceConfig = crate::load::parse_json(&bytes, file)?;
        Self::checked(parsed.into_config(file)?, file)
    }

    /// The settings.
    #[must_use]
    pub fn config(&self) -> &PreprocessorConfig {
        &self.config
    }

    /// Size of the network input.
    #[must_use]
    pub fn output_size(&self) -> Size {
        self.output
    }

    /// The image after resizing and cropping, before any scaling of values.
    ///
    /// # Shapes
    /// `[3, H, W]` u8, on the CPU.
    ///
    /// # Errors
    /// [`EncoderError::ImageSize`] for an image without pixels.
    pub fn pixels_u8(&self, image: &DynamicImage) -> Result<Tensor> {
        let interleaved = self.interleaved(image)?;
        let Size { width, height } = self.output;
        let hwc = Tensor::from_vec(interleaved, (height as usize, width as usize, CHANNELS), &Device::Cpu)?;
        Ok(hwc.permute((2, 0, 1))?.contiguous()?)
    }

    /// The image after resizing and cropping, as [`pixels_u8`](Self::pixels_u8), with channels last.
    ///
    /// # Errors
    /// [`EncoderError::ImageSize`] for an image without pixels.
    pub fn prepare(&self, image: &DynamicImage) -> Result<PreparedImage> {
        Ok(PreparedImage { bytes: self.interleaved(image)?, size: self.output })
    }

    /// [`prepare`](Self::prepare) of each image, in parallel.
    ///
    /// # Errors
    /// As [`prepare`](Self::prepare).
    pub fn prepare_all(&self, images: &[DynamicImage]) -> Result<Vec<PreparedImage>> {
        images.par_iter().map(|image| self.prepare(image)).collect()
    }

    /// The network input of a batch; images are processed in parallel.
    ///
    /// # Shapes
    /// B images to `[B, 3, H, W]` f32 on `device`.
    ///
    /// # Errors
    /// [`EncoderError::ImageSize`] as in [`pixels_u8`](Self::pixels_u8); [`EncoderError::Tensor`] if the device refuses.
    pub fn pixel_values(&self, images: &[DynamicImage], device: &Device) -> Result<Tensor> {
        self.prepared_values(&self.prepare_all(images)?, device)
    }

    /// [`pixel_values`](Self::pixel_values) of images that are prepared.
    ///
    /// # Errors
    /// [`EncoderError::ImageSize`] for an image that was prepared for another size; [`EncoderError::Tensor`] if the device
    /// refuses.
    pub fn prepared_values(&self, images: &[PreparedImage], device: &Device) -> Result<Tensor> {
        #[cfg(feature = "cuda")]
        if device.is_cuda() && !images.is_empty() {
            return self.values_on_card(images, device);
        }
        let Size { width, height } = self.output;
        let plane = width as usize * height as usize;
        let mut values = vec![0f32; images.len() * CHANNELS * plane];
        values.par_chunks_mut(CHANNELS * plane).zip(images).try_for_each(|(output, image)| {
            let bytes = self.checked_bytes(image)?;
            for (channel, output) in output.chunks_exact_mut(plane).enumerate() {
                let bytes = bytes.iter().skip(channel).step_by(CHANNELS);
                for (output, byte) in output.iter_mut().zip(bytes) {
                    *output = self.value(*byte, channel);
                }
            }
            Ok::<(), EncoderError>(())
        })?;
        let shape = (images.len(), CHANNELS, height as usize, width as usize);
        Ok(Tensor::from_vec(values, shape, &Device::Cpu)?.to_device(device)?)
    }

    /// The same numbers by a table, from bytes that a card is sent: a quarter of the floats.
    #[cfg(feature = "cuda")]
    fn values_on_card(&self, images: &[PreparedImage], device: &Device) -> Result<Tensor> {
        let Size { width, height } = self.output;
        let bytes = images.iter().map(|image| self.checked_bytes(image)).collect::<Result<Vec<_>>>()?;
        let of_channel = |channel| (0..=u8::MAX).map(move |byte| self.value(byte, channel));
        let table: Vec<f32> = (0..CHANNELS).flat_map(of_channel).collect();
        let table = Tensor::from_vec(table, (CHANNELS, 256), device)?;
        Ok(aeir_kernels::pixel_values(&bytes, (height as usize, width as usize), &table)?)
    }

    /// The network input of one image, `[H, W, 3]`, for the path that keeps channels last.
    pub(crate) fn interleaved_values(&self, image: &PreparedImage, output: &mut [f32]) -> Result<()> {
        let bytes = self.checked_bytes(image)?;
        for (output, bytes) in output.chunks_exact_mut(CHANNELS).zip(bytes.chunks_exact(CHANNELS)) {
            for (channel, (output, byte)) in output.iter_mut().zip(bytes).enumerate() {
                *output = self.value(*byte, channel);
            }
        }
        Ok(())
    }

    /// The pixels of an image that was prepared for this size.
    fn checked_bytes<'a>(&self, image: &'a PreparedImage) -> Result<&'a [u8]> {
        let (Size { width, height }, got) = (self.output, image.size);
        if self.output == got {
            return Ok(&image.bytes);
        }
        let expected = format!("an image prepared as {width}x{height}");
        Err(EncoderError::ImageSize { expected, width: got.width, height: got.height })
    }

    fn value(&self, byte: u8, channel: usize) -> f32 {
        self.values.get(usize::from(byte)).and_then(|values| values.get(channel)).copied().unwrap_or(0.0)
    }

    /// Resized and cropped bytes, `[H, W, 3]`.
    fn interleaved(&self, image: &DynamicImage) -> Result<Vec<u8>> {
        let source = Size { width: image.width(), height: image.height() };
        if source.width == 0 || source.height == 0 {
            return Err(EncoderError::ImageSize {
                expected: "at least 1x1".to_owned(),
                width: source.width,
                height: source.height,
            });
        }
        let rgb = to_rgb(image, self.config.alpha);
        let window = self.window(source);
        let visible = resample(&rgb, source, &window, self.config.filter);
        if window.size == self.output {
            return Ok(visible);
        }
        Ok(pad(&visible, window.size, self.output))
    }

    /// What the centre crop sees of the resized picture. Offsets are rounded down.
    fn window(&self, source: Size) -> Window {
        let target = match self.config.resize {
            Resize::Exact(size) => (u64::from(size.width), u64::from(size.height)),
            Resize::ShortestEdge(edge) => {
                let (edge, width, height) =
                    (u64::from(edge), u64::from(source.width), u64::from(source.height));
                // Rounded down, as the reference processors do.
                if width <= height { (edge, edge * height / width) } else { (edge * width / height, edge) }
            }
        };
        let offset = |target: u64, output: u32| target.saturating_sub(u64::from(output)) / 2;
        let first = (offset(target.0, self.output.width), offset(target.1, self.output.height));
        let visible =
            |target: u64, output: u32| u32::try_from(target).map_or(output, |target| target.min(output));
        let size = Size {
            width: visible(target.0, self.output.width),
            height: visible(target.1, self.output.height),
        };
        Window { target, first, size }
    }
}

/// Puts a picture into the middle of a larger black one; an odd pixel of the border goes before it.
fn pad(rgb: &[u8], size: Size, output: Size) -> Vec<u8> {
    let before = |inner: u32, outer: u32| outer.saturating_sub(inner).div_ceil(2) as usize;
    let line = output.width as usize * CHANNELS;
    let start = before(size.width, output.width) * CHANNELS;
    let row = size.width as usize * CHANNELS;
    let mut padded = vec![0; line * output.height as usize];
    let lines = padded.chunks_exact_mut(line.max(1)).skip(before(size.height, output.height));
    for (padded, rgb) in lines.zip(rgb.chunks_exact(row.max(1))) {
        if let Some(padded) = padded.get_mut(start..start + row) {
            padded.copy_from_slice(rgb);
        }
    }
    padded
}

fn to_rgb(image: &DynamicImage, alpha: Alpha) -> Cow<'_, [u8]> {
    let is_transparent = alpha == Alpha::CompositeOnWhite && image.color().has_alpha();
    Cow::Owned(match image {
        // Most photographs are what is wanted, and large.
        DynamicImage::ImageRgb8(rgb) => return Cow::Borrowed(rgb.as_raw()),
        // Pillow keeps the upper byte; scaling would round.
        DynamicImage::ImageLuma16(_)
        | DynamicImage::ImageLumaA16(_)
        | DynamicImage::ImageRgb16(_)
        | DynamicImage::ImageRgba16(_) => {
            let wide = image.to_rgba16();
            let bytes = wide.as_raw().iter().map(|value| (value >> 8) as u8).collect();
            let rgba = RgbaImage::from_raw(wide.width(), wide.height(), bytes).unwrap_or_default();
            if is_transparent { composited(&rgba) } else { DynamicImage::from(rgba).to_rgb8().into_raw() }
        }
        image if is_transparent => composited(&image.to_rgba8()),
        image => image.to_rgb8().into_raw(),
    })
}

/// Colours over white, as far as they are transparent.
fn composited(rgba: &RgbaImage) -> Vec<u8> {
    rgba.pixels()
        .flat_map(|pixel| {
            let [red, green, blue, alpha] = pixel.0;
            [red, green, blue].map(|value| over_white(value, alpha))
        })
        .collect()
}

/// `value * alpha + white * (1 - alpha)` with Pillow's rounding of a division by 255.
fn over_white(value: u8, alpha: u8) -> u8 {
    let (value, alpha) = (u32::from(value), u32::from(alpha));
    let sum = value * alpha + 255 * (255 - alpha) + 128;
    u8::try_from(((sum >> 8) + sum) >> 8).unwrap_or(u8::MAX)
}

#[derive(Deserialize)]
struct HuggingFaceConfig {
    #[serde(alias = "feature_extractor_type")]
    image_processor_type: Option<String>,
    #[serde(default = "yes")]
    do_resize: bool,
    size: Option<HuggingFaceSize>,
    resample: Option<u32>,
    #[serde(default)]
    do_center_crop: Option<bool>,
    crop_size: Option<HuggingFaceSize>,
    crop_pct: Option<f64>,
    #[serde(default = "yes")]
    do_rescale: bool,
    rescale_factor: Option<f64>,
    #[serde(default = "yes")]
    do_normalize: bool,
    image_mean: Option<[f32; 3]>,
    image_std: Option<[f32; 3]>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum HuggingFaceSize {
    Side(u32),
    Exact(Size),
    ShortestEdge { shortest_edge: u32, longest_edge: Option<u32> },
}

/// The processors, and what each does where its file says nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    /// CLIP, and BiT, which DINOv2 has.
    Clip,
    Siglip,
    Vit,
    Deit,
    /// ConvNeXt and ResNet: a share of the picture is cut off, except from large ones.
    ConvNext,
}

impl Family {
    fn of(kind: &str) -> Self {
        let families = [
            ("CLIP", Self::Clip),
            ("Bit", Self::Clip),
            ("Siglip", Self::Siglip),
            ("DeiT", Self::Deit),
            ("ConvNext", Self::ConvNext),
        ];
        families.iter().find(|(start, _)| kind.starts_with(start)).map_or(Self::Vit, |(_, family)| *family)
    }

    /// Whether a bare number is the shorter side, not both.
    fn keeps_ratio(self) -> bool {
        matches!(self, Self::Clip | Self::ConvNext)
    }

    fn crops(self) -> bool {
        matches!(self, Self::Clip | Self::Deit)
    }

    fn filter(self) -> Filter {
        match self {
            Self::Clip | Self::Siglip | Self::Deit => Filter::Bicubic,
            Self::Vit | Self::ConvNext => Filter::Bilinear,
        }
    }
}

/// From this size on ConvNeXt's processor cuts nothing off and does not keep the ratio.
const CONVNEXT_LARGE: u32 = 384;
/// What is left after cutting, where the file says nothing.
const CONVNEXT_CROP: f64 = 224.0 / 256.0;

fn yes() -> bool {
    true
}

impl HuggingFaceConfig {
    fn into_config(self, file: &Path) -> Result<PreprocessorConfig> {
        let fail = |key: &str, expected: &str, got: String| EncoderError::Config {
            file: PathBuf::from(file),
            key: key.to_owned(),
            expected: expected.to_owned(),
            got,
        };
        if !self.do_resize {
            return Err(fail("do_resize", "true", "false".to_owned()));
        }
        let kind = self.image_processor_type.unwrap_or_default();
        if kind.starts_with("Siglip2") {
            let expected = "a processor that gives all images one size";
            return Err(fail("image_processor_type", expected, kind));
        }
        let family = match self.crop_pct {
            Some(_) => Family::ConvNext,
            None => Family::of(&kind),
        };
        let filter = match self.resample {
            Some(0) => Filter::Nearest,
            Some(1) => Filter::Lanczos,
            Some(2) => Filter::Bilinear,
            Some(3) => Filter::Bicubic,
            Some(4) => Filter::Box,
            Some(5) => Filter::Hamming,
            None => family.filter(),
            Some(other) => return Err(fail("resample", "a filter of Pillow, 0 to 5", other.to_string())),
        };
        let resize = match self.size {
            Some(HuggingFaceSize::Exact(size)) => Resize::Exact(size),
            Some(HuggingFaceSize::ShortestEdge { longest_edge: Some(edge), .. }) => {
                return Err(fail("size", "no longest_edge", edge.to_string()));
            }
            Some(HuggingFaceSize::ShortestEdge { shortest_edge, .. }) => Resize::ShortestEdge(shortest_edge),
            Some(HuggingFaceSize::Side(side)) if family.keeps_ratio() => Resize::ShortestEdge(side),
            Some(HuggingFaceSize::Side(side)) => Resize::Exact(Size { width: side, height: side }),
            None => return Err(fail("size", "a size", "nothing".to_owned())),
        };
        let square = |side: u32| Size { width: side, height: side };
        let (resize, crop) = match (family, resize) {
            (Family::ConvNext, Resize::ShortestEdge(edge)) if edge >= CONVNEXT_LARGE => {
                (Resize::Exact(square(edge)), None)
            }
            (Family::ConvNext, Resize::ShortestEdge(edge)) => {
                let share = self.crop_pct.unwrap_or(CONVNEXT_CROP);
                if !(share > 0.0 && share <= 1.0) {
                    return Err(fail("crop_pct", "more than 0 and at most 1", share.to_string()));
                }
                // Truncated, as the reference does; an absurd share is refused with the size.
                (Resize::ShortestEdge((f64::from(edge) / share) as u32), Some(square(edge)))
            }
            (_, resize) => (resize, None),
        };
        let crop = match (self.do_center_crop.unwrap_or(family.crops()), self.crop_size) {
            (false, _) => crop,
            (true, Some(HuggingFaceSize::Exact(size))) => Some(size),
            (
                true,
                Some(HuggingFaceSize::Side(side) | HuggingFaceSize::ShortestEdge { shortest_edge: side, .. }),
            ) => Some(square(side)),
            (true, None) if crop.is_some() => crop,
            (true, None) => {
                return Err(fail("crop_size", "a size with do_center_crop", "nothing".to_owned()));
            }
        };
        let normalise = |key: &str, values: Option<[f32; 3]>, neutral: f32| match (self.do_normalize, values)
        {
            (false, _) => Ok([neutral; 3]),
            (true, Some(values)) => Ok(values),
            (true, None) => Err(fail(key, "three numbers with do_normalize", "nothing".to_owned())),
        };
        Ok(PreprocessorConfig {
            resize,
            filter,
            crop,
            rescale: if self.do_rescale { self.rescale_factor.unwrap_or(1.0 / 255.0) } else { 1.0 },
            mean: normalise("image_mean", self.image_mean, 0.0)?,
            std: normalise("image_std", self.image_std, 1.0)?,
            alpha: Alpha::Drop,
        })
    }
}
