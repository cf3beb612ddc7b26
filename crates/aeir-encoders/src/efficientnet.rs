//! EfficientNet-lite as a frozen image backbone.
//!
//! On a CPU the network runs channels-last in plain buffers: batch norm folded into the convolutions, 1x1
//! convolutions as matrix products with bias and ReLU6 inside, depthwise convolutions vectorised over channels. On
//! other devices it is composed of candle's convolutions, with the same folded weights.

use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use rayon::prelude::*;
use serde::Deserialize;

use crate::depthwise::{Depthwise, Plane, same_padding};
use crate::error::{EncoderError, Result};
use crate::fingerprint::sha256_parts;
use crate::fragments::Fragments;
use crate::image_backbone::ImageBackbone;
use crate::load::{parse_json, read_file};
use crate::ops::Activation;
use crate::packed::{After, Packed};
use crate::preprocess::{Alpha, Filter, ImagePreprocessor, PreparedImage, PreprocessorConfig, Resize, Size};
use crate::rehearsal;
use crate::weights::Weights;

/// Images a thread takes at a time; one set of buffers serves them all.
const IMAGES_PER_TASK: usize = 8;
/// Images that run through a device at once.
const IMAGES_PER_DEVICE_BATCH: usize = 64;
/// Largest activation, in values an image: bounds what a configuration can make the program allocate.
const MAX_ACTIVATION: usize = 1 << 26;
const STEM_KERNEL: usize = 3;
const STEM_STRIDE: usize = 2;
const COLOURS: usize = 3;

/// EfficientNet-lite0: 224x224 pixels to a 7x7 grid of 1280 values, and their mean.
///
/// No squeeze-and-excitation, ReLU6, TensorFlow's SAME padding (an odd pixel goes to the right and bottom). The feature is
/// the head's ReLU6 output, averaged over the grid. Weights may be stored as f16 and are computed in f32.
///
/// # Numerical notes
/// On CPU the features of an image are the same bits whatever else is in the batch and however many threads there are.
///
/// # Parity file
/// `golden.json` beside the weights; `fixtures/parity/backbones/efficientnet_lite0.safetensors`: pooled features within 2e-5 with
/// f32 weights, cosine at least 0.9999 with f16 weights.
pub struct EfficientNet {
    preprocessor: ImagePreprocessor,
    folded: Network<Folded>,
    fused: Fused,
    composed: Option<Network<Convolution>>,
    device: Device,
    fingerprint: String,
    files: Vec<PathBuf>,
}

#[derive(Deserialize)]
struct Config {
    image_size: u32,
    mean: [f32; 3],
    std: [f32; 3],
    resize: Filter,
    crop: String,
    alpha: String,
    activation: String,
    padding: String,
    batch_norm_eps: f64,
    stem_channels: usize,
    feature_dim: usize,
    stages: Vec<Stage>,
}

#[derive(Deserialize)]
struct Stage {
    repeats: usize,
    kernel: usize,
    stride: usize,
    expand: usize,
    #[serde(rename = "in")]
    inputs: usize,
    #[serde(rename = "out")]
    outputs: usize,
}

/// The shape of the network around whatever stands for a convolution.
struct Network<T> {
    stem: T,
    blocks: Vec<Block<T>>,
    head: T,
}

/// An inverted residual block.
struct Block<T> {
    expand: Option<T>,
    depthwise: T,
    project: T,
    kernel: usize,
    stride: usize,
    /// Whether the input is added to the output.
    residual: bool,
}

/// A convolution with the batch norm behind it folded in.
struct Folded {
    /// `[outputs, inputs / groups, kernel, kernel]`, row-major.
    weight: Vec<f32>,
    shape: [usize; 4],
    bias: Vec<f32>,
}

struct Convolution {
    weight: Tensor,
    /// `[1, outputs, 1, 1]`.
    bias: Tensor,
}

impl EfficientNet {
    /// What `architecture` says in `config.json`.
    pub const ARCHITECTURE: &str = "efficientnet-lite0";
    /// Changes whenever the same files would give other features.
    const ALGORITHM: &str = "efficientnet-lite/1";

    /// Loads a folder with `config.json` and `model.safetensors`.
    ///
    /// # Errors
    /// As [`crate::load_image_backbone`].
    pub fn load(folder: &Path, device: &Device) -> Result<Self> {
        let files = ["config.json", "model.safetensors"].map(|name| folder.join(name));
        let [config_file, weights_file] = &files;
        let config_bytes = read_file(config_file)?;
        let config: Config = parse_json(&config_bytes, config_file)?;
        config.check(config_file)?;
        let preprocessor = config.preprocessor(config_file)?;
        let weights_bytes = read_file(weights_file)?;
        let folded = fold_network(&config, &Weights::parse(weights_file, &weights_bytes)?)?;
        let fingerprint = sha256_parts([
            (Self::ALGORITHM, &[][..]),
            ("config.json", &config_bytes),
            ("model.safetensors", &weights_bytes),
        ]);
        let fused = Fused::new(&folded, Plane::square(config.image_size as usize));
        let composed = if device.is_cpu() { None } else { Some(compose_network(&folded, device)?) };
        Ok(Self {
            preprocessor,
            folded,
            fused,
            composed,
            device: device.clone(),
            fingerprint,
            files: files.to_vec(),
        })
    }

    /// Height and width of the feature grid.
    #[must_use]
    pub fn grid_size(&self) -> (usize, usize) {
        (self.fused.grid.height, self.fused.grid.width)
    }

    /// Grid features of preprocessed images.
    ///
    /// # Shapes
    /// `pixel_values [B, 3, H, W]` f32, H and W as the preprocessor gives them, to `[B, cells, F]`, cells row by row.
    ///
    /// # Errors
    /// [`EncoderError::Shape`] for another shape; [`EncoderError::Tensor`] from candle.
    pub fn grid(&self, pixel_values: &Tensor) -> Result<Tensor> {
        if !self.is_fused() {
            return self.grid_composed(pixel_values);
        }
        let batch = self.check_pixels(pixel_values)?;
        let per_image = self.fused.image.pixels() * COLOURS;
        let pixels = pixel_values.permute((0, 2, 3, 1))?.flatten_all()?.to_vec1::<f32>()?;
        let images: Vec<&[f32]> = pixels.chunks_exact(per_image).collect();
        let copy = |image: &&[f32], output: &mut [f32]| {
            output.copy_from_slice(image);
            Ok(())
        };
        let grid = self.fused.run(&images, copy, Keep::Grid)?;
        Ok(Tensor::from_vec(grid, (batch, self.fused.grid.pixels(), self.dimension()), &self.device)?)
    }

    /// As [`grid`](Self::grid), composed of candle's own convolutions: what other devices run, and on a CPU a slow
    /// second opinion.
    ///
    /// # Errors
    /// As [`grid`](Self::grid).
    pub fn grid_composed(&self, pixel_values: &Tensor) -> Result<Tensor> {
        self.check_pixels(pixel_values)?;
        let pixel_values = pixel_values.to_device(&self.device)?;
        let grid = match &self.composed {
            Some(network) => network.forward(&pixel_values)?,
            None => compose_network(&self.folded, &self.device)?.forward(&pixel_values)?,
        };
        Ok(grid.flatten_from(2)?.transpose(1, 2)?.contiguous()?)
    }

    fn is_fused(&self) -> bool {
        self.device.is_cpu() && rehearsal::current().is_none()
    }

    fn check_pixels(&self, pixel_values: &Tensor) -> Result<usize> {
        let Plane { height, width } = self.fused.image;
        match *pixel_values.dims() {
            [batch, COLOURS, h, w] if (h, w) == (height, width) => Ok(batch),
            _ => Err(EncoderError::Shape {
                what: "pixel values",
                expected: format!("[batch, 3, {height}, {width}]"),
                got: pixel_values.dims().to_vec(),
            }),
        }
    }

    fn features(&self, images: &[PreparedImage], keep: Keep) -> Result<Tensor> {
        let (cells, dimension) = (self.fused.grid.pixels(), self.dimension());
        let shape = match keep {
            Keep::Grid => vec![images.len(), cells, dimension],
            Keep::Mean => vec![images.len(), dimension],
        };
        if self.is_fused() {
            let prepare = |image: &PreparedImage, output: &mut [f32]| {
                self.preprocessor.interleaved_values(image, output)
            };
            return Ok(Tensor::from_vec(self.fused.run(images, prepare, keep)?, shape, &self.device)?);
        }
        let batches = images
            .chunks(IMAGES_PER_DEVICE_BATCH)
            .map(|images| {
                let grid = self.grid_composed(&self.preprocessor.prepared_values(images, &self.device)?)?;
                Ok(match keep {
                    Keep::Grid => grid,
                    Keep::Mean => grid.mean(1)?,
                })
            })
            .collect::<Result<Vec<_>>>()?;
        if batches.is_empty() {
            return Ok(Tensor::zeros(shape, candle_core::DType::F32, &self.device)?);
        }
        Ok(Tensor::cat(&batches, 0)?)
    }
}

impl ImageBackbone for EfficientNet {
    fn dimension(&self) -> usize {
        self.fused.head.outputs()
    }

    fn preprocessor(&self) -> &ImagePreprocessor {
        &self.preprocessor
    }

    fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    fn encode_prepared(&self, images: &[PreparedImage]) -> Result<Tensor> {
        self.features(images, Keep::Mean)
    }

    fn fragments_prepared(&self, images: &[PreparedImage]) -> Result<Fragments> {
        Fragments::unpadded(self.features(images, Keep::Grid)?)
    }

    fn files(&self) -> &[PathBuf] {
        &self.files
    }
}

impl Config {
    fn check(&self, file: &Path) -> Result<()> {
        let fail = |key: String, expected: &str, got: String| {
            Err(EncoderError::Config { file: file.to_path_buf(), key, expected: expected.to_owned(), got })
        };
        let settings = [
            ("activation", "relu6", &self.activation),
            ("padding", "tf-same", &self.padding),
            ("crop", "none", &self.crop),
        ];
        if let Some((key, expected, got)) = settings.into_iter().find(|(_, expected, got)| expected != got) {
            return fail(key.to_owned(), expected, got.clone());
        }
        if !(self.batch_norm_eps.is_finite() && self.batch_norm_eps > 0.0) {
            return fail("batch_norm_eps".to_owned(), "a positive number", self.batch_norm_eps.to_string());
        }
        if !(32..=1024).contains(&self.image_size) {
            return fail("image_size".to_owned(), "32 to 1024", self.image_size.to_string());
        }
        let channels = 1..=8192;
        for (key, value) in [("stem_channels", self.stem_channels), ("feature_dim", self.feature_dim)] {
            if !channels.contains(&value) {
                return fail(key.to_owned(), "1 to 8192", value.to_string());
            }
        }
        if self.stages.is_empty() || self.stages.len() > 16 {
            return fail("stages".to_owned(), "1 to 16 stages", self.stages.len().to_string());
        }
        let mut inputs = self.stem_channels;
        let mut plane = Plane::square(self.image_size as usize).strided(STEM_STRIDE);
        for (index, stage) in self.stages.iter().enumerate() {
            let key = |name: &str| format!("stages[{index}].{name}");
            if stage.inputs != inputs {
                return fail(key("in"), &format!("{inputs}, what comes before"), stage.inputs.to_string());
            }
            let limits = [
                ("repeats", 1..=32, stage.repeats),
                ("stride", 1..=2, stage.stride),
                ("expand", 1..=16, stage.expand),
                ("out", channels.clone(), stage.outputs),
            ];
            if let Some((name, range, value)) =
                limits.into_iter().find(|(_, range, value)| !range.contains(value))
            {
                return fail(key(name), &format!("{} to {}", range.start(), range.end()), value.to_string());
            }
            if ![3, 5, 7].contains(&stage.kernel) {
                return fail(key("kernel"), "3, 5 or 7", stage.kernel.to_string());
            }
            let activation = plane.pixels() * stage.expand * inputs.max(stage.outputs);
            if activation > MAX_ACTIVATION {
                return fail(
                    key("expand"),
                    &format!("at most {MAX_ACTIVATION} values"),
                    activation.to_string(),
                );
            }
            inputs = stage.outputs;
            plane = plane.strided(stage.stride);
        }
        Ok(())
    }

    fn preprocessor(&self, file: &Path) -> Result<ImagePreprocessor> {
        let alpha = match self.alpha.as_str() {
            "composite on white" => Alpha::CompositeOnWhite,
            "drop" => Alpha::Drop,
            other => {
                return Err(EncoderError::Config {
                    file: file.to_path_buf(),
                    key: "alpha".to_owned(),
                    expected: "`composite on white` or `drop`".to_owned(),
                    got: other.to_owned(),
                });
            }
        };
        let config = PreprocessorConfig {
            resize: Resize::Exact(Size { width: self.image_size, height: self.image_size }),
            filter: self.resize,
            crop: None,
            rescale: 1.0 / 255.0,
            mean: self.mean,
            std: self.std,
            alpha,
        };
        ImagePreprocessor::checked(config, file)
    }
}

fn fold_network(config: &Config, weights: &Weights<'_>) -> Result<Network<Folded>> {
    let fold = |convolution: &str, norm: &str, shape: [usize; 4]| {
        fold_batch_norm(weights, convolution, norm, shape, config.batch_norm_eps)
    };
    let stem = fold("_conv_stem", "_bn0", [config.stem_channels, COLOURS, STEM_KERNEL, STEM_KERNEL])?;
    let mut blocks = Vec::new();
    for stage in &config.stages {
        for repeat in 0..stage.repeats {
            let (inputs, stride) =
                if repeat == 0 { (stage.inputs, stage.stride) } else { (stage.outputs, 1) };
            let wide = inputs * stage.expand;
            let prefix = format!("_blocks.{}", blocks.len());
            let fold = |convolution: &str, norm: &str, shape| {
                fold(&format!("{prefix}.{convolution}"), &format!("{prefix}.{norm}"), shape)
            };
            let expand = match stage.expand {
                1 => None,
                _ => Some(fold("_expand_conv", "_bn0", [wide, inputs, 1, 1])?),
            };
            blocks.push(Block {
                expand,
                depthwise: fold("_depthwise_conv", "_bn1", [wide, 1, stage.kernel, stage.kernel])?,
                project: fold("_project_conv", "_bn2", [stage.outputs, wide, 1, 1])?,
                kernel: stage.kernel,
                stride,
                residual: stride == 1 && inputs == stage.outputs,
            });
        }
    }
    let last = config.stages.last().map_or(config.stem_channels, |stage| stage.outputs);
    let head = fold("_conv_head", "_bn1", [config.feature_dim, last, 1, 1])?;
    Ok(Network { stem, blocks, head })
}

/// Equation: `w' = w g / sqrt(v + eps)`, `b' = b - m g / sqrt(v + eps)`, computed in f64.
fn fold_batch_norm(
    weights: &Weights<'_>,
    convolution: &str,
    norm: &str,
    shape: [usize; 4],
    epsilon: f64,
) -> Result<Folded> {
    let [outputs, ..] = shape;
    let mut weight = weights.take(&format!("{convolution}.weight"), &shape)?;
    let take = |name: &str| weights.take(&format!("{norm}.{name}"), &[outputs]);
    let (gain, shift, mean, variance) =
        (take("weight")?, take("bias")?, take("running_mean")?, take("running_var")?);
    if let Some(value) = variance.iter().find(|value| **value < 0.0) {
        return Err(weights.bad_value(&format!("{norm}.running_var"), "values of 0 and more", *value));
    }
    let scales: Vec<f64> = gain
        .iter()
        .zip(&variance)
        .map(|(gain, variance)| f64::from(*gain) / (f64::from(*variance) + epsilon).sqrt())
        .collect();
    let filter = (weight.len() / outputs).max(1);
    for (weight, scale) in weight.chunks_exact_mut(filter).zip(&scales) {
        weight.iter_mut().for_each(|weight| *weight = (f64::from(*weight) * scale) as f32);
    }
    let bias = shift
        .iter()
        .zip(&mean)
        .zip(&scales)
        .map(|((shift, mean), scale)| (f64::from(*shift) - f64::from(*mean) * scale) as f32)
        .collect();
    Ok(Folded { weight, shape, bias })
}

fn compose_network(folded: &Network<Folded>, device: &Device) -> Result<Network<Convolution>> {
    let convolution = |folded: &Folded| -> Result<Convolution> {
        let weight = Tensor::from_slice(&folded.weight, folded.shape.to_vec(), device)?;
        let bias = Tensor::from_slice(&folded.bias, (1, folded.bias.len(), 1, 1), device)?;
        Ok(Convolution { weight, bias })
    };
    let blocks = folded
        .blocks
        .iter()
        .map(|block| {
            Ok(Block {
                expand: block.expand.as_ref().map(convolution).transpose()?,
                depthwise: convolution(&block.depthwise)?,
                project: convolution(&block.project)?,
                kernel: block.kernel,
                stride: block.stride,
                residual: block.residual,
            })
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(Network { stem: convolution(&folded.stem)?, blocks, head: convolution(&folded.head)? })
}

impl Convolution {
    fn forward(&self, x: &Tensor, kernel: usize, stride: usize, groups: usize) -> Result<Tensor> {
        let (_, _, height, width) = x.dims4()?;
        let (top, bottom) = same_padding(height, kernel, stride);
        let (left, right) = same_padding(width, kernel, stride);
        let x = x.pad_with_zeros(2, top, bottom)?.pad_with_zeros(3, left, right)?;
        Ok(x.conv2d(&self.weight, 0, stride, 1, groups)?.broadcast_add(&self.bias)?)
    }

    fn forward_relu6(&self, x: &Tensor, kernel: usize, stride: usize, groups: usize) -> Result<Tensor> {
        Ok(self.forward(x, kernel, stride, groups)?.clamp(0f32, 6f32)?)
    }
}

impl Network<Convolution> {
    /// `[B, 3, H, W]` to `[B, F, h, w]`.
    fn forward(&self, pixel_values: &Tensor) -> Result<Tensor> {
        let mut x = self.stem.forward_relu6(pixel_values, STEM_KERNEL, STEM_STRIDE, 1)?;
        for block in &self.blocks {
            let wide = match &block.expand {
                Some(expand) => expand.forward_relu6(&x, 1, 1, 1)?,
                None => x.clone(),
            };
            let channels = wide.dim(1)?;
            let wide = block.depthwise.forward_relu6(&wide, block.kernel, block.stride, channels)?;
            let narrow = block.project.forward(&wide, 1, 1, 1)?;
            x = if block.residual { (narrow + x)? } else { narrow };
        }
        self.head.forward_relu6(&x, 1, 1, 1)
    }
}

/// What is kept of the grid.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Keep {
    Grid,
    Mean,
}

const RELU6: After<'static> = After { residual: None, activation: Some(Activation::Relu6) };

/// The network for a CPU, channels last.
struct Fused {
    image: Plane,
    grid: Plane,
    stem: Packed,
    blocks: Vec<FusedBlock>,
    head: Packed,
    /// Values of the largest activation between blocks and inside one, an image.
    narrow: usize,
    wide: usize,
}

struct FusedBlock {
    plane: Plane,
    output: Plane,
    expand: Option<Packed>,
    depthwise: Depthwise,
    project: Packed,
    wide: usize,
    residual: bool,
}

/// Buffers of one thread.
struct Buffers {
    image: Vec<f32>,
    current: Vec<f32>,
    next: Vec<f32>,
    expanded: Vec<f32>,
    filtered: Vec<f32>,
    grid: Vec<f32>,
}

impl Fused {
    fn new(folded: &Network<Folded>, image: Plane) -> Self {
        let pointwise = |folded: &Folded| {
            let [_, inputs, ..] = folded.shape;
            Packed::new(&folded.weight, Some(&folded.bias), inputs)
        };
        let mut plane = image.strided(STEM_STRIDE);
        let stem = fused_stem(&folded.stem);
        let mut narrow = plane.pixels() * stem.outputs();
        let mut wide = 0;
        let blocks = folded
            .blocks
            .iter()
            .map(|block| {
                let output = plane.strided(block.stride);
                let [channels, ..] = block.depthwise.shape;
                let fused = FusedBlock {
                    plane,
                    output,
                    expand: block.expand.as_ref().map(pointwise),
                    depthwise: Depthwise::new(
                        &block.depthwise.weight,
                        &block.depthwise.bias,
                        (block.kernel, block.stride),
                        true,
                    ),
                    project: pointwise(&block.project),
                    wide: channels,
                    residual: block.residual,
                };
                wide = wide.max(plane.pixels() * channels);
                narrow = narrow.max(output.pixels() * fused.project.outputs());
                plane = output;
                fused
            })
            .collect();
        Self { image, grid: plane, stem, blocks, head: pointwise(&folded.head), narrow, wide }
    }

    /// Runs images, each made into channels-last pixels by `prepare`. Gives `[B, cells, F]` or `[B, F]`, flat.
    ///
    /// With at least one image a thread the threads share out the images; with fewer they share each layer.
    fn run<T: Sync>(
        &self,
        images: &[T],
        prepare: impl Fn(&T, &mut [f32]) -> Result<()> + Sync,
        keep: Keep,
    ) -> Result<Vec<f32>> {
        let cells = self.grid.pixels();
        let per_image = match keep {
            Keep::Grid => cells * self.head.outputs(),
            Keep::Mean => self.head.outputs(),
        };
        let mut output = vec![0f32; images.len() * per_image];
        let threads = rayon::current_num_threads();
        let parallel_layers = images.len() < threads;
        let run_images = |(output, images): (&mut [f32], &[T])| -> Result<()> {
            let mut buffers = self.buffers();
            for (output, image) in output.chunks_exact_mut(per_image).zip(images) {
                prepare(image, &mut buffers.image)?;
                self.run_image(&mut buffers, parallel_layers);
                match keep {
                    Keep::Grid => output.copy_from_slice(&buffers.grid),
                    Keep::Mean => mean_of_rows(&buffers.grid, output),
                }
            }
            Ok(())
        };
        if parallel_layers {
            run_images((&mut output, images))?;
        } else {
            let task = images.len().div_ceil(threads).min(IMAGES_PER_TASK);
            output.par_chunks_mut(task * per_image).zip(images.par_chunks(task)).try_for_each(run_images)?;
        }
        Ok(output)
    }

    fn buffers(&self) -> Buffers {
        Buffers {
            image: vec![0.0; self.image.pixels() * COLOURS],
            current: vec![0.0; self.narrow],
            next: vec![0.0; self.narrow],
            expanded: vec![0.0; self.wide],
            filtered: vec![0.0; self.wide],
            grid: vec![0.0; self.grid.pixels() * self.head.outputs()],
        }
    }

    /// From `buffers.image` to `buffers.grid`.
    fn run_image(&self, buffers: &mut Buffers, parallel: bool) {
        let Buffers { image, current, next, expanded, filtered, grid } = buffers;
        let mut channels = self.stem.outputs();
        self.run_stem(image, prefix(current, self.image.strided(STEM_STRIDE).pixels() * channels), parallel);
        for block in &self.blocks {
            let input = prefix(current, block.plane.pixels() * channels);
            let wide: &[f32] = match &block.expand {
                Some(expand) => {
                    let expanded = prefix(expanded, block.plane.pixels() * block.wide);
                    expand.forward(input, RELU6, expanded, parallel);
                    expanded
                }
                None => input,
            };
            let filtered = prefix(filtered, block.output.pixels() * block.wide);
            block.depthwise.forward(wide, block.plane, filtered, parallel);
            channels = block.project.outputs();
            let output = prefix(next, block.output.pixels() * channels);
            let after = After { residual: block.residual.then_some(&*input), activation: None };
            block.project.forward(filtered, after, output, parallel);
            std::mem::swap(current, next);
        }
        self.head.forward(prefix(current, self.grid.pixels() * channels), RELU6, grid, parallel);
    }

    /// The 3x3 convolution on the picture, one output row at a time as a matrix product over its patches.
    fn run_stem(&self, image: &[f32], output: &mut [f32], parallel: bool) {
        let plane = self.image.strided(STEM_STRIDE);
        let row = plane.width * self.stem.outputs();
        let run = |patches: &mut Vec<f32>, (y, output): (usize, &mut [f32])| {
            self.gather_patches(image, y, patches);
            self.stem.forward(patches, RELU6, output, false);
        };
        if parallel {
            output.par_chunks_mut(row).enumerate().for_each_init(Vec::new, run);
        } else {
            let mut patches = Vec::new();
            output.chunks_mut(row).enumerate().for_each(|row| run(&mut patches, row));
        }
    }

    /// The 3x3x3 patches under an output row, zero outside the picture.
    fn gather_patches(&self, image: &[f32], y: usize, patches: &mut Vec<f32>) {
        const PATCH: usize = STEM_KERNEL * STEM_KERNEL * COLOURS;
        let Plane { height, width } = self.image;
        let (top, left) = (
            same_padding(height, STEM_KERNEL, STEM_STRIDE).0,
            same_padding(width, STEM_KERNEL, STEM_STRIDE).0,
        );
        patches.clear();
        patches.resize(width.div_ceil(STEM_STRIDE) * PATCH, 0.0);
        let line = width * COLOURS;
        for ky in 0..STEM_KERNEL {
            let Some(row) = (y * STEM_STRIDE + ky).checked_sub(top).filter(|row| *row < height) else {
                continue;
            };
            let row = image.get(row * line..(row + 1) * line).unwrap_or_default();
            for (x, patch) in patches.chunks_exact_mut(PATCH).enumerate() {
                let start = x * STEM_STRIDE;
                let skipped = left.saturating_sub(start);
                let from = (start + skipped).saturating_sub(left).min(width);
                let count = (STEM_KERNEL - skipped.min(STEM_KERNEL)).min(width - from) * COLOURS;
                let to = (ky * STEM_KERNEL + skipped) * COLOURS;
                let source = row.get(from * COLOURS..from * COLOURS + count);
                if let Some((patch, source)) = patch.get_mut(to..to + count).zip(source) {
                    patch.copy_from_slice(source);
                }
            }
        }
    }
}

/// The stem as a matrix product: its filters in the order of a channels-last patch.
fn fused_stem(folded: &Folded) -> Packed {
    let taps = STEM_KERNEL * STEM_KERNEL;
    let weight: Vec<f32> = folded
        .weight
        .chunks_exact(COLOURS * taps)
        .flat_map(|filter| {
            (0..taps).flat_map(move |tap| filter.iter().skip(tap).step_by(taps).take(COLOURS).copied())
        })
        .collect();
    Packed::new(&weight, Some(&folded.bias), COLOURS * taps)
}

fn mean_of_rows(rows: &[f32], output: &mut [f32]) {
    let count = (rows.len() / output.len().max(1)).max(1);
    output.fill(0.0);
    for row in rows.chunks_exact(output.len()) {
        output.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
    }
    output.iter_mut().for_each(|sum| *sum /= count as f32);
}

/// The first values of a buffer that is made as large as the largest layer needs.
fn prefix(buffer: &mut [f32], length: usize) -> &mut [f32] {
    let length = length.min(buffer.len());
    let (used, _) = buffer.split_at_mut(length);
    used
}
