//! Image networks against what Hugging Face transformers computed with the same weights.

use std::collections::HashMap;

use aeir_encoders::{ImageModel, Mode, l2_normalise};
use candle_core::{Device, Tensor};

use crate::fixtures::{max_difference, path, tensors};

const TOLERANCE: f32 = 1e-5;

struct Case {
    model: ImageModel,
    golden: HashMap<String, Tensor>,
}

impl Case {
    fn load(name: &str) -> Self {
        let folder = format!("parity/tiny-models/{name}");
        let golden = tensors(&format!("{folder}/golden.safetensors"));
        Self { model: ImageModel::load(&path(&folder), &Device::Cpu).unwrap(), golden }
    }

    fn states(&self) -> Tensor {
        self.states_of(&self.golden["pixel_values"])
    }

    fn states_of(&self, pixel_values: &Tensor) -> Tensor {
        let states = self.model.states(pixel_values, &mut Mode::Evaluation).unwrap();
        assert!(!states.track_op(), "a frozen network remembers no graph");
        states
    }

    fn pooled(&self, states: &Tensor) -> Tensor {
        let pooled = self.model.pool(states, &mut Mode::Evaluation).unwrap();
        assert_eq!(pooled.dims().last(), Some(&self.model.dimension()));
        pooled
    }

    fn assert_close(&self, got: &Tensor, name: &str) {
        let difference = max_difference(got, &self.golden[name]);
        println!("{name}: {difference}");
        assert!(difference < TOLERANCE, "{name}: {difference}");
    }

    /// Cells `[B, h, w, C]` against a recorded `[B, C, h, w]`.
    fn assert_grid(&self, states: &Tensor) {
        self.assert_close(&states.permute((0, 3, 1, 2)).unwrap(), "last_hidden_state");
        let fragments = self.model.fragments(states).unwrap();
        let (batch, height, width, channels) = states.dims4().unwrap();
        assert_eq!(fragments.features().dims(), [batch, height * width, channels]);
        assert_eq!(fragments.mask().dims(), [batch, height * width]);
    }

    /// The fragments are the states from token `first` on.
    fn assert_patches(&self, states: &Tensor, first: usize) {
        let fragments = self.model.fragments(states).unwrap();
        let patches = states.narrow(1, first, states.dim(1).unwrap() - first).unwrap();
        assert_eq!(max_difference(fragments.features(), &patches), 0.0);
    }
}

fn class_token(states: &Tensor) -> Tensor {
    states.narrow(1, 0, 1).unwrap().squeeze(1).unwrap()
}

fn patch_mean(states: &Tensor) -> Tensor {
    states.narrow(1, 1, states.dim(1).unwrap() - 1).unwrap().mean(1).unwrap()
}

/// Each value repeated 7 by 7.
fn enlarged(pixels: &Tensor) -> Tensor {
    let (_, _, height, width) = pixels.dims4().unwrap();
    pixels.upsample_nearest2d(height * 7, width * 7).unwrap()
}

fn every(states: &Tensor, step: usize) -> Tensor {
    let indices: Vec<u32> = (0..states.dim(1).unwrap()).step_by(step).map(|index| index as u32).collect();
    let count = indices.len();
    states.index_select(&Tensor::from_vec(indices, count, &Device::Cpu).unwrap(), 1).unwrap()
}

#[test]
fn vit() {
    let case = Case::load("vit");
    let states = case.states();
    case.assert_close(&states, "last_hidden_state");
    case.assert_close(&class_token(&states), "cls");
    case.assert_close(&case.pooled(&states), "pooler_output");
    case.assert_patches(&states, 1);
}

#[test]
fn dinov2() {
    let case = Case::load("dinov2");
    let states = case.states();
    case.assert_close(&states, "last_hidden_state");
    case.assert_close(&patch_mean(&states), "patch_mean");
    case.assert_close(&case.pooled(&states), "pooler_output");
    case.assert_patches(&states, 1);
}

#[test]
fn dinov2_with_interpolated_positions() {
    let case = Case::load("dinov2");
    let states = case.states_of(&case.golden["pixel_values_42x70"]);
    case.assert_close(&states, "last_hidden_state_42x70");
    case.assert_close(&case.pooled(&states), "cls_42x70");
    case.assert_close(&patch_mean(&states), "patch_mean_42x70");
}

#[test]
fn dinov2_of_518_pixels() {
    let case = Case::load("dinov2-518");
    let states = case.states_of(&enlarged(&case.golden["pixel_values_div7"]));
    case.assert_close(&case.pooled(&states), "cls");
    case.assert_close(&patch_mean(&states), "patch_mean");
    case.assert_close(&every(&states, 37), "last_hidden_state_every_37th");
    let states = case.states_of(&enlarged(&case.golden["pixel_values_224_div7"]));
    case.assert_close(&case.pooled(&states), "cls_224");
    case.assert_close(&patch_mean(&states), "patch_mean_224");
    case.assert_close(&every(&states, 8), "last_hidden_state_224_every_8th");
}

#[test]
fn dinov2_with_registers_and_gated_layers() {
    let case = Case::load("dinov2-registers");
    let states = case.states();
    case.assert_close(&states, "last_hidden_state");
    case.assert_close(&case.pooled(&states), "pooler_output");
    // The class token and three registers.
    case.assert_patches(&states, 4);
    let states = case.states_of(&case.golden["pixel_values_28x70"]);
    case.assert_close(&states, "last_hidden_state_28x70");
    case.assert_close(&case.pooled(&states), "pooler_output_28x70");
}

#[test]
fn resnet_basic() {
    let case = Case::load("resnet-basic");
    let states = case.states();
    case.assert_grid(&states);
    case.assert_close(&case.pooled(&states).unsqueeze(2).unwrap().unsqueeze(3).unwrap(), "pooler_output");
}

#[test]
fn resnet_bottleneck() {
    let case = Case::load("resnet-bottleneck");
    let states = case.states();
    case.assert_grid(&states);
    case.assert_close(&case.pooled(&states).unsqueeze(2).unwrap().unsqueeze(3).unwrap(), "pooler_output");
}

#[test]
fn convnext() {
    let case = Case::load("convnext");
    let states = case.states();
    case.assert_grid(&states);
    case.assert_close(&states.flatten(1, 2).unwrap().mean(1).unwrap(), "pooled_before_norm");
    case.assert_close(&case.pooled(&states), "pooler_output");
}

#[test]
fn clip() {
    let case = Case::load("clip");
    let states = case.states();
    case.assert_close(&states, "image_last_hidden_state");
    let pooled = case.pooled(&states);
    case.assert_close(&pooled, "image_features");
    case.assert_close(&l2_normalise(&pooled).unwrap(), "image_embeds");
    // Patches go the way of the class token: with its states in their place they give its embedding.
    let (batch, tokens, _) = states.dims3().unwrap();
    let classes = states.narrow(1, 0, 1).unwrap().broadcast_as(states.shape()).unwrap();
    let fragments = case.model.fragments(&classes.contiguous().unwrap()).unwrap();
    let expected =
        pooled.unsqueeze(1).unwrap().broadcast_as((batch, tokens - 1, pooled.dim(1).unwrap())).unwrap();
    assert!(max_difference(fragments.features(), &expected) < 1e-6);
}

#[test]
fn siglip() {
    let case = Case::load("siglip");
    let states = case.states();
    case.assert_close(&states, "image_last_hidden_state");
    let pooled = case.pooled(&states);
    case.assert_close(&pooled, "image_features");
    case.assert_close(&l2_normalise(&pooled).unwrap(), "image_embeds");
    case.assert_patches(&states, 0);
}
