//! Image networks in Hugging Face's layout: CLIP, SigLIP, ViT, DINOv2, ResNet, ConvNeXt.

mod backbone;
mod clip;
mod convnext;
mod model;
mod network;
mod patches;
mod resnet;
mod vit;

pub use backbone::VisionBackbone;
pub use model::ImageModel;
