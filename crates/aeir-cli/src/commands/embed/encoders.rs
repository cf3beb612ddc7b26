//! What turns images and sentences into embeddings: a trained model, or frozen encoders as they are.

use aeir_data::FeatureRow;
use aeir_encoders::{Bundle, ImageBackbone, ImagePreprocessor, PreparedImage, TextBackbone, l2_normalise};
use aeir_train::items::{FragmentTable, ItemTable};
use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::backbones::{load_image, load_sentence};
use crate::flags::EmbedFlags;
use crate::terminal::Terminal;

/// A model, or one or two frozen encoders.
pub(super) struct Encoders {
    of: Of,
    normalise: bool,
}

enum Of {
    Model(Box<Bundle>),
    Backbones { image: Option<Box<dyn ImageBackbone>>, sentence: Option<Box<dyn TextBackbone>> },
}

/// Which encoder made an array: what another array has to agree in to be compared with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Fingerprints {
    /// Of the model.
    pub(super) model: Option<String>,
    /// Of the frozen image encoder.
    pub(super) image_encoder: Option<String>,
    /// Of the frozen sentence encoder.
    pub(super) text_encoder: Option<String>,
}

impl Encoders {
    pub(super) fn load(flags: &EmbedFlags, device: &Device, terminal: &Terminal) -> anyhow::Result<Self> {
        let of = match &flags.model {
            Some(folder) => Of::Model(Box::new(Bundle::load(folder, device)?)),
            None => Of::Backbones {
                image: flags
                    .image_encoder
                    .as_deref()
                    .map(|name| load_image(name, device, terminal))
                    .transpose()?,
                sentence: flags
                    .text_encoder
                    .as_deref()
                    .map(|name| load_sentence(name, device, terminal))
                    .transpose()?,
            },
        };
        // A model gives unit vectors: scaling them again would change their last bits.
        Ok(Self { of, normalise: flags.normalise && flags.model.is_none() })
    }

    /// How images are prepared where they are decoded; none where no image files are taken.
    pub(super) fn preprocessor(&self) -> Option<&ImagePreprocessor> {
        match &self.of {
            Of::Model(model) => model.image_backbone().map(ImageBackbone::preprocessor),
            Of::Backbones { image, .. } => image.as_ref().map(|image| image.preprocessor()),
        }
    }

    /// Whether images come as region features.
    pub(super) fn takes_features(&self) -> bool {
        matches!(&self.of, Of::Model(model) if model.image_backbone().is_none())
    }

    pub(super) fn takes_sentences(&self) -> bool {
        match &self.of {
            Of::Model(_) => true,
            Of::Backbones { sentence, .. } => sentence.is_some(),
        }
    }

    pub(super) fn fingerprints(&self) -> Fingerprints {
        match &self.of {
            Of::Model(model) => Fingerprints {
                model: Some(model.fingerprint().to_owned()),
                image_encoder: None,
                text_encoder: None,
            },
            Of::Backbones { image, sentence } => Fingerprints {
                model: None,
                image_encoder: image.as_ref().map(|image| image.fingerprint().to_owned()),
                text_encoder: sentence.as_ref().map(|sentence| sentence.fingerprint().to_owned()),
            },
        }
    }

    /// A row an image that [`Encoders::preprocessor`] has prepared.
    pub(super) fn images(&self, images: &[PreparedImage]) -> anyhow::Result<Vec<Vec<f32>>> {
        match &self.of {
            _ if images.is_empty() => Ok(Vec::new()),
            Of::Model(model) => self.rows(&model.encode_images(&model.prepared_items(images)?)?.pooled()?),
            Of::Backbones { image: Some(backbone), .. } => self.rows(&backbone.encode_prepared(images)?),
            Of::Backbones { image: None, .. } => Ok(Vec::new()),
        }
    }

    /// A row an image of region features.
    pub(super) fn features(&self, images: &[&FeatureRow]) -> anyhow::Result<Vec<Vec<f32>>> {
        match &self.of {
            Of::Model(model) if !images.is_empty() => {
                let table = ItemTable::Fragments(FragmentTable::of_rows(images)?);
                let rows: Vec<usize> = (0..images.len()).collect();
                self.rows(&model.encode_images(&table.items(&rows, model.device())?)?.pooled()?)
            }
            _ => Ok(Vec::new()),
        }
    }

    /// A row a sentence.
    pub(super) fn sentences(&self, sentences: &[&str]) -> anyhow::Result<Vec<Vec<f32>>> {
        match &self.of {
            Of::Model(model) => self.rows(&model.embed_sentences(sentences)?),
            Of::Backbones { sentence: Some(backbone), .. } => self.rows(&backbone.encode(sentences)?),
            Of::Backbones { sentence: None, .. } => Ok(Vec::new()),
        }
    }

    fn rows(&self, embeddings: &Tensor) -> anyhow::Result<Vec<Vec<f32>>> {
        let embeddings = if self.normalise { l2_normalise(embeddings)? } else { embeddings.clone() };
        Ok(embeddings.to_vec2()?)
    }
}
