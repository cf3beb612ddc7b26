//! CLIP and SigLIP whole: both towers, their projections, and the scale of their scores.

use std::path::Path;

use candle_core::{Device, Tensor};
use image::DynamicImage;

use crate::checkpoint::{Checkpoint, Source};
use crate::error::{EncoderError, Result};
use crate::fine_tuning::{FineTuning, Parameters, WEIGHTS};
use crate::image_backbone::ImageBackbone;
use crate::load::{CONFIG, model_type, parse_json, read_file, unsupported};
use crate::mode::Mode;
use crate::normalise::l2_normalise;
use crate::rehearsal::Product;
use crate::text::{TextModel, TextSetup, TextTransformer, TokenBatch};
use crate::text_backbone::TextBackbone;
use crate::vision::{ImageModel, VisionBackbone};

const ARCHITECTURES: &[&str] = &["clip", "siglip"];

/// How cosines of a pre-trained dual encoder become scores.
///
/// Equation: `score = exp(scale) cosine + bias`; CLIP has no bias.
#[derive(Debug, Clone)]
pub struct LogitScale {
    scale: Tensor,
    bias: Option<Tensor>,
}

impl LogitScale {
    /// The scale of the CLIP or SigLIP in a folder.
    ///
    /// # Errors
    /// As [`ContrastiveModel::load`].
    pub fn load_from(folder: &Path, device: &Device) -> Result<Self> {
        let file = folder.join(WEIGHTS);
        let bytes = read_file(&file)?;
        Self::load(&kind(folder)?, &Checkpoint::frozen(&file, &bytes, device)?.root())
    }

    /// The natural logarithm of what cosines are multiplied by.
    ///
    /// # Errors
    /// [`EncoderError::Tensor`] when it can't be read from its device.
    pub fn logarithm(&self) -> Result<f64> {
        Ok(f64::from(self.scale.flatten_all()?.get(0)?.to_scalar::<f32>()?))
    }

    fn load(kind: &str, source: &Source<'_>) -> Result<Self> {
        match kind {
            "clip" => Ok(Self { scale: source.tensor("logit_scale", &[])?, bias: None }),
            _ => Ok(Self {
                scale: source.tensor("logit_scale", &[1])?,
                bias: Some(source.tensor("logit_bias", &[1])?),
            }),
        }
    }

    /// The scores of all images with all sentences.
    ///
    /// # Shapes
    /// Unit rows `images [N, F]` and `sentences [M, F]` to `[N, M]`.
    ///
    /// # Errors
    /// [`EncoderError::Tensor`] from candle, such as for vectors of different lengths.
    pub fn logits(&self, images: &Tensor, sentences: &Tensor) -> Result<Tensor> {
        let cosines = images.product(&sentences.t()?.contiguous()?)?;
        let scores = cosines.broadcast_mul(&self.scale.exp()?)?;
        match &self.bias {
            Some(bias) => Ok(scores.broadcast_add(bias)?),
            None => Ok(scores),
        }
    }
}

/// What [`ContrastiveModel::forward`] gives.
#[derive(Debug, Clone)]
pub struct Contrast {
    /// Unit vectors of the images, `[N, F]`.
    pub images: Tensor,
    /// Unit vectors of the sentences, `[M, F]`.
    pub sentences: Tensor,
    /// Scores, `[N, M]`: a row an image, a column a sentence.
    pub logits: Tensor,
}

/// CLIP (Radford et al., ICML 2021) or SigLIP (Zhai et al., ICCV 2023) from pixel values and tokens to scores, to be trained.
///
/// [`PretrainedDualEncoder`] is the same, frozen, from images and sentences.
///
/// # Parity files
/// `fixtures/parity/tiny-models/clip` and `siglip`: vectors and scores within 1e-5 of Hugging Face transformers.
pub struct ContrastiveModel {
    text: TextModel,
    image: ImageModel,
    scale: LogitScale,
}

impl ContrastiveModel {
    /// Loads a frozen model.
    ///
    /// # Errors
    /// As [`crate::load_text_backbone`] and [`crate::load_image_backbone`]; [`EncoderError::Unsupported`] for anything but a whole CLIP or
    /// SigLIP.
    pub fn load(folder: &Path, device: &Device) -> Result<Self> {
        let file = folder.join(WEIGHTS);
        let bytes = read_file(&file)?;
        Self::build(folder, &Checkpoint::frozen(&file, &bytes, device)?.root())
    }

    /// Loads a model to train, and its parameters: those of both towers, the projections, and the scale of the scores.
    ///
    /// # Errors
    /// As [`load`](Self::load), and [`EncoderError::Argument`] for a plan that does not fit the model.
    pub fn load_trainable(folder: &Path, device: &Device, plan: &FineTuning) -> Result<(Self, Parameters)> {
        Parameters::build(folder, device, plan, |source| Self::build(folder, source))
    }

    fn build(folder: &Path, source: &Source<'_>) -> Result<Self> {
        let kind = kind(folder)?;
        let config = read_file(&folder.join(CONFIG))?;
        let model = Self {
            text: TextSetup::read(folder)?.build(source)?,
            image: ImageModel::build(&config, folder, source)?,
            scale: LogitScale::load(&kind, source)?,
        };
        check_dimensions(folder, model.image.dimension(), model.text.dimension())?;
        Ok(model)
    }

    /// The text tower.
    #[must_use]
    pub fn text(&self) -> &TextModel {
        &self.text
    }

    /// The image tower.
    #[must_use]
    pub fn image(&self) -> &ImageModel {
        &self.image
    }

    /// How cosines become scores.
    #[must_use]
    pub fn scale(&self) -> &LogitScale {
        &self.scale
    }

    /// Unit vectors of both sides and their scores.
    ///
    /// # Shapes
    /// `pixel_values [N, 3, H, W]`, M sentences.
    ///
    /// # Errors
    /// As [`TextModel::forward`] and [`ImageModel::forward`].
    pub fn forward(
        &self,
        pixel_values: &Tensor,
        tokens: &TokenBatch,
        mode: &mut Mode<'_>,
    ) -> Result<Contrast> {
        let images = l2_normalise(&self.image.forward(pixel_values, mode)?)?;
        let sentences = l2_normalise(&self.text.forward(tokens, mode)?)?;
        let logits = self.scale.logits(&images, &sentences)?;
        Ok(Contrast { images, sentences, logits })
    }
}

/// CLIP or SigLIP as published: images and sentences to unit vectors of one space, and scores as the model was trained to give them.
///
/// The towers are those of [`crate::load_image_backbone`] and [`crate::load_text_backbone`] of the same folder, whose vectors are
/// the same but for their length.
///
/// # Example
/// ```no_run
/// use aeir_encoders::PretrainedDualEncoder;
/// use candle_core::Device;
/// use std::path::Path;
///
/// let clip = PretrainedDualEncoder::load(Path::new("clip-vit-base-patch32"), &Device::Cpu)?;
/// let images = clip.encode_images(&[image::open("photo.jpg")?])?;
/// let sentences = clip.encode_sentences(&["a photo of a dog", "a photo of a cat"])?;
/// let scores = clip.logits(&images, &sentences)?; // [1, 2]
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct PretrainedDualEncoder {
    text: TextTransformer,
    image: VisionBackbone,
    scale: LogitScale,
}

impl PretrainedDualEncoder {
    /// Loads a folder with both towers, `preprocessor_config.json` and `tokenizer.json`.
    ///
    /// # Errors
    /// As [`ContrastiveModel::load`].
    pub fn load(folder: &Path, device: &Device) -> Result<Self> {
        // Said before anything large is read.
        kind(folder)?;
        let (text, image) = (TextTransformer::load(folder, device)?, VisionBackbone::load(folder, device)?);
        check_dimensions(folder, image.dimension(), text.dimension())?;
        let scale = LogitScale::load_from(folder, device)?;
        Ok(Self { text, image, scale })
    }

    /// Dimension F of the joint space.
    #[must_use]
    pub fn dimension(&self) -> usize {
        self.text.dimension()
    }

    /// The text tower with its tokenizer.
    #[must_use]
    pub fn text(&self) -> &TextTransformer {
        &self.text
    }

    /// The image tower with its preprocessing.
    #[must_use]
    pub fn image(&self) -> &VisionBackbone {
        &self.image
    }

    /// Unit vectors of images.
    ///
    /// # Shapes
    /// `[N, F]`; nothing gives `[0, F]`.
    ///
    /// # Errors
    /// As [`ImageBackbone::encode`].
    pub fn encode_images(&self, images: &[DynamicImage]) -> Result<Tensor> {
        l2_normalise(&self.image.encode(images)?)
    }

    /// Unit vectors of sentences.
    ///
    /// # Shapes
    /// `[M, F]`; nothing gives `[0, F]`.
    ///
    /// # Errors
    /// As [`TextBackbone::encode`].
    pub fn encode_sentences(&self, sentences: &[&str]) -> Result<Tensor> {
        l2_normalise(&self.text.encode(sentences)?)
    }

    /// The scores of unit vectors: [`LogitScale::logits`].
    ///
    /// # Shapes
    /// `images [N, F]` and `sentences [M, F]` to `[N, M]`.
    ///
    /// # Errors
    /// As [`LogitScale::logits`].
    pub fn logits(&self, images: &Tensor, sentences: &Tensor) -> Result<Tensor> {
        self.scale.logits(images, sentences)
    }
}

/// `clip` or `siglip`.
pub(crate) fn kind(folder: &Path) -> Result<String> {
    let file = folder.join(CONFIG);
    let kind = model_type(&parse_json(&read_file(&file)?, &file)?);
    if ARCHITECTURES.contains(&kind.as_str()) {
        Ok(kind)
    } else {
        Err(unsupported(&file, &kind, ARCHITECTURES))
    }
}

pub(crate) fn check_dimensions(folder: &Path, image: usize, text: usize) -> Result<()> {
    if image == text {
        return Ok(());
    }
    Err(EncoderError::Config {
        file: folder.join(CONFIG),
        key: "text_config and vision_config".to_owned(),
        expected: format!("vectors of one length, {image} as the images'"),
        got: format!("{text} for sentences"),
    })
}
