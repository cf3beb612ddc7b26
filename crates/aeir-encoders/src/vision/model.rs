//! An image network with its pooling, from pixel values to vectors.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use serde_json::Value;

use super::clip::{ClipVision, SiglipVision};
use super::convnext::ConvNext;
use super::network::ImageNetwork;
use super::resnet::ResNet;
use super::vit::Vit;
use crate::checkpoint::{Checkpoint, Source};
use crate::config::Config;
use crate::error::{EncoderError, Result};
use crate::fine_tuning::{FineTuning, Parameters, WEIGHTS};
use crate::fragments::Fragments;
use crate::load::{CONFIG, IMAGE_ARCHITECTURES, model_type, parse_json, read_file, unsupported};
use crate::mode::Mode;
use crate::preprocess::Size;

/// Values of the largest tensor that one image makes, at most: bounds what a configuration can make the program allocate.
const IMAGE_VALUES: usize = 1 << 28;

/// A network from pixel values to image vectors: CLIP's and SigLIP's image towers, ViT, DINOv2, ResNet, ConvNeXt.
///
/// It is built from `config.json` and `model.safetensors`, the names of the tensors being Hugging Face's.
///
/// | `model_type` | vector | fragments |
/// |---|---|---|
/// | `clip`, `clip_vision_model` | class token, last norm, projection | patches, the same norm and projection |
/// | `siglip`, `siglip_vision_model` | attention pooling head | patches after the last norm |
/// | `vit` | pooler of the class token where the checkpoint has one, else the class token | patches after the last norm |
/// | `dinov2`, `dinov2_with_registers` | class token after the last norm | patches after the last norm, no registers |
/// | `resnet` | mean over the grid | grid cells |
/// | `convnext` | mean over the grid, normalised | grid cells, not normalised |
///
/// Fragments go row by row, and their mask is all ones: every image has the same number of them. DINOv2 takes images of any size, its
/// positions interpolated as the reference does it (bicubic); other transformers take the size that they were made for.
///
/// In training, ResNet's batch normalisation goes on using the checkpoint's running statistics: its weight and bias are trained, its
/// statistics stay, since those of small batches would spoil them. Stochastic depth (`drop_path_rate`) is not applied.
///
/// [`VisionBackbone`](crate::VisionBackbone) is this model, frozen, with its preprocessing.
///
/// # Parity files
/// `fixtures/parity/tiny-models`: last hidden states and vectors within 1e-5 of Hugging Face transformers.
///
/// # Example
/// ```no_run
/// use aeir_encoders::{FineTuning, ImageModel, ImagePreprocessor, Mode};
/// use candle_core::Device;
/// use std::path::Path;
///
/// let folder = Path::new("dinov2-small");
/// let preprocessor = ImagePreprocessor::from_hugging_face(&folder.join("preprocessor_config.json"))?;
/// let pixel_values = preprocessor.pixel_values(&[image::open("photo.jpg")?], &Device::Cpu)?;
/// let (model, parameters) = ImageModel::load_trainable(folder, &Device::Cpu, &FineTuning::default())?;
/// let embedding = model.forward(&pixel_values, &mut Mode::Evaluation)?; // [1, 384]
/// let gradients = embedding.sqr()?.sum_all()?.backward()?;
/// assert!(parameters.variables().values().any(|variable| gradients.get(variable).is_some()));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct ImageModel {
    network: Box<dyn ImageNetwork>,
    device: Device,
}

impl ImageModel {
    /// Loads a frozen model: nothing it computes remembers a graph.
    ///
    /// # Errors
    /// As [`crate::load_image_backbone`].
    pub fn load(folder: &Path, device: &Device) -> Result<Self> {
        let config = read_file(&folder.join(CONFIG))?;
        let file = folder.join(WEIGHTS);
        let bytes = read_file(&file)?;
        Self::build(&config, folder, &Checkpoint::frozen(&file, &bytes, device)?.root())
    }

    /// Loads a model to train, and its parameters.
    ///
    /// # Errors
    /// As [`crate::load_image_backbone`], and [`EncoderError::Argument`] for a plan that does not fit the model.
    pub fn load_trainable(folder: &Path, device: &Device, plan: &FineTuning) -> Result<(Self, Parameters)> {
        let config = read_file(&folder.join(CONFIG))?;
        Parameters::build(folder, device, plan, |source| Self::build(&config, folder, source))
    }

    /// Takes the tensors that a configuration asks for.
    pub(crate) fn build(config: &[u8], folder: &Path, source: &Source<'_>) -> Result<Self> {
        let file = folder.join(CONFIG);
        let value: Value = parse_json(config, &file)?;
        let config = Config::new(&file, &value)?;
        let network: Box<dyn ImageNetwork> = match model_type(&value).as_str() {
            "resnet" => Box::new(ResNet::load(&config, source)?),
            "convnext" => Box::new(ConvNext::load(&config, source)?),
            "vit" => Box::new(Vit::load(&config, source)?),
            "dinov2" => Box::new(Vit::load_dino(&config, false, source)?),
            "dinov2_with_registers" => Box::new(Vit::load_dino(&config, true, source)?),
            "clip" => Box::new(ClipVision::load(&config.part("vision_config")?, Some(&config), source)?),
            "clip_vision_model" => Box::new(ClipVision::load(&config, None, source)?),
            "siglip" => Box::new(SiglipVision::load(&config.part("vision_config")?, source)?),
            "siglip_vision_model" => Box::new(SiglipVision::load(&config, source)?),
            other => return Err(unsupported(&file, other, IMAGE_ARCHITECTURES)),
        };
        Ok(Self { network, device: source.device().clone() })
    }

    /// Dimension F of vectors and fragments.
    #[must_use]
    pub fn dimension(&self) -> usize {
        self.network.dimension()
    }

    /// Where its tensors are.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The vectors of images: [`pool`](Self::pool) of [`states`](Self::states).
    ///
    /// # Shapes
    /// `pixel_values [B, 3, H, W]` f32 to `[B, F]`.
    ///
    /// # Errors
    /// As [`states`](Self::states).
    pub fn forward(&self, pixel_values: &Tensor, mode: &mut Mode<'_>) -> Result<Tensor> {
        let states = self.states(pixel_values, mode)?;
        self.pool(&states, mode)
    }

    /// The last hidden states of preprocessed images.
    ///
    /// # Shapes
    /// `pixel_values [B, 3, H, W]` f32 to tokens `[B, N, C]`, the class token and registers first, or to cells `[B, h, w, C]`.
    ///
    /// # Errors
    /// [`EncoderError::Shape`] for images of a size that the network does not take, [`EncoderError::Tensor`] from candle.
    pub fn states(&self, pixel_values: &Tensor, mode: &mut Mode<'_>) -> Result<Tensor> {
        let &[_, 3, height, width] = pixel_values.dims() else {
            return Err(wrong_pixels(pixel_values, "[batch, 3, height, width]"));
        };
        let size = u32::try_from(height).and_then(|height| Ok(Size { width: u32::try_from(width)?, height }));
        match size.map(|size| self.check_size(size)) {
            Ok(Ok(_)) => self.network.states(&pixel_values.to_device(&self.device)?, mode),
            Ok(Err(expected)) => {
                Err(wrong_pixels(pixel_values, &format!("[batch, 3, height, width], {expected}")))
            }
            Err(_) => Err(wrong_pixels(pixel_values, "[batch, 3, height, width], smaller sides")),
        }
    }

    /// One vector an image.
    ///
    /// # Shapes
    /// What [`states`](Self::states) gave to `[B, F]`.
    ///
    /// # Errors
    /// [`EncoderError::Tensor`] from candle, such as for states of another shape.
    pub fn pool(&self, states: &Tensor, mode: &mut Mode<'_>) -> Result<Tensor> {
        self.network.pooled(states, mode)
    }

    /// Patches or grid cells as fragments in the space of the vectors, row by row.
    ///
    /// # Shapes
    /// What [`states`](Self::states) gave to `[B, T, F]` with a mask of ones.
    ///
    /// # Errors
    /// [`EncoderError::Tensor`] from candle, such as for states of another shape.
    pub fn fragments(&self, states: &Tensor) -> Result<Fragments> {
        Fragments::unpadded(self.network.fragments(states)?)
    }

    /// Values of the largest tensor for one image of this size; what size is expected, if the network does not take it.
    pub(crate) fn check_size(&self, size: Size) -> std::result::Result<usize, String> {
        self.network.takes(size)?;
        match self.network.largest_activation(size) {
            largest if largest > IMAGE_VALUES => {
                Err(format!("a size that needs at most {IMAGE_VALUES} values in a layer, not {largest}"))
            }
            largest => Ok(largest),
        }
    }

    /// The fragments of no images.
    pub(crate) fn no_fragments(&self) -> Result<Fragments> {
        Fragments::unpadded(Tensor::zeros((0, 1, self.dimension()), DType::F32, &self.device)?)
    }
}

fn wrong_pixels(pixel_values: &Tensor, expected: &str) -> EncoderError {
    EncoderError::Shape {
        what: "pixel values",
        expected: expected.to_owned(),
        got: pixel_values.dims().to_vec(),
    }
}
