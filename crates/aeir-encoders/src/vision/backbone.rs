//! A frozen image network with its preprocessing.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};

use super::model::ImageModel;
use crate::checkpoint::Checkpoint;
use crate::error::{EncoderError, Result};
use crate::fine_tuning::WEIGHTS;
use crate::fingerprint::sha256_parts;
use crate::fragments::Fragments;
use crate::image_backbone::ImageBackbone;
use crate::load::{CONFIG, read_file};
use crate::mode::Mode;
use crate::preprocess::{ImagePreprocessor, PreparedImage};

const PREPROCESSOR: &str = "preprocessor_config.json";
/// Images that run through a network at once on the CPU, at most, and values of the largest tensor of such a batch: 256 MB.
const ON_CPU: (usize, usize) = (16, 1 << 26);
/// On another device, which few images leave idle: 1 GB.
const ON_DEVICE: (usize, usize) = (128, 1 << 28);

/// An image network as an [`ImageBackbone`]: an [`ImageModel`] without variables and an [`ImagePreprocessor`].
///
/// The folder has `config.json`, `model.safetensors` and `preprocessor_config.json`. Images go through the network in batches of up to
/// 16, on a GPU 128, fewer where they are large.
pub struct VisionBackbone {
    model: ImageModel,
    preprocessor: ImagePreprocessor,
    images_at_once: usize,
    fingerprint: String,
    files: Vec<PathBuf>,
}

impl VisionBackbone {
    /// Changes whenever the same files would give other features.
    const ALGORITHM: &str = "vision/1";

    /// Loads a folder.
    ///
    /// # Errors
    /// As [`crate::load_image_backbone`].
    pub fn load(folder: &Path, device: &Device) -> Result<Self> {
        let files = [CONFIG, WEIGHTS, PREPROCESSOR].map(|name| folder.join(name));
        let [config_file, weights_file, preprocessor_file] = &files;
        let (config, settings) = (read_file(config_file)?, read_file(preprocessor_file)?);
        let preprocessor = ImagePreprocessor::from_hugging_face(preprocessor_file)?;
        let weights = read_file(weights_file)?;
        let checkpoint = Checkpoint::frozen(weights_file, &weights, device)?;
        let model = ImageModel::build(&config, folder, &checkpoint.root())?;
        let size = preprocessor.output_size();
        let largest = model.check_size(size).map_err(|expected| EncoderError::Config {
            file: preprocessor_file.clone(),
            key: "size".to_owned(),
            expected,
            got: format!("{}x{}", size.width, size.height),
        })?;
        let (most, values) = if device.is_cpu() { ON_CPU } else { ON_DEVICE };
        let fingerprint = sha256_parts([
            (Self::ALGORITHM, &[][..]),
            (CONFIG, &config),
            (WEIGHTS, &weights),
            (PREPROCESSOR, &settings),
        ]);
        Ok(Self {
            model,
            preprocessor,
            images_at_once: (values / largest.max(1)).clamp(1, most),
            fingerprint,
            files: files.to_vec(),
        })
    }

    /// The network.
    #[must_use]
    pub fn model(&self) -> &ImageModel {
        &self.model
    }

    /// The states of a few images at a time.
    fn batches<'a>(&'a self, images: &'a [PreparedImage]) -> impl Iterator<Item = Result<Tensor>> + 'a {
        images.chunks(self.images_at_once).map(|images| {
            let pixel_values = self.preprocessor.prepared_values(images, self.model.device())?;
            self.model.states(&pixel_values, &mut Mode::Evaluation)
        })
    }
}

impl ImageBackbone for VisionBackbone {
    fn dimension(&self) -> usize {
        self.model.dimension()
    }

    fn preprocessor(&self) -> &ImagePreprocessor {
        &self.preprocessor
    }

    fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    fn encode_prepared(&self, images: &[PreparedImage]) -> Result<Tensor> {
        if images.is_empty() {
            return Ok(Tensor::zeros((0, self.dimension()), DType::F32, self.model.device())?);
        }
        let pooled = self.batches(images).map(|states| self.model.pool(&states?, &mut Mode::Evaluation));
        Ok(Tensor::cat(&pooled.collect::<Result<Vec<_>>>()?, 0)?)
    }

    fn fragments_prepared(&self, images: &[PreparedImage]) -> Result<Fragments> {
        if images.is_empty() {
            return self.model.no_fragments();
        }
        let parts = self.batches(images).map(|states| Ok(self.model.fragments(&states?)?.features().clone()));
        Fragments::unpadded(Tensor::cat(&parts.collect::<Result<Vec<_>>>()?, 0)?)
    }

    fn files(&self) -> &[PathBuf] {
        &self.files
    }
}
