//! Scores of all pairs on an NVIDIA card, where kernels do what lies between the matrix products.

use aeir_kernels::{Alignment, Gate, Layer};
use candle_core::{DType, Tensor};

use super::linear::Linear;
use super::{AlignmentHead, Reasoning};
use crate::error::Result;
use crate::fragments::Fragments;

/// Whether the kernels can take these.
pub(super) fn applies(images: &Fragments, sentences: &Fragments, head: &AlignmentHead) -> bool {
    let fits = match (images.features().dims(), sentences.features().dims()) {
        (&[_, regions, dimension], &[_, words, _]) => {
            aeir_kernels::takes_alignment(regions, words, dimension)
        }
        _ => false,
    };
    fits && aeir_kernels::takes(&[images.features(), sentences.features(), &head.local.weight])
}

/// Fragments, zeros in their padding, and self-attended vectors to `[N, M]`.
pub(super) fn scores(
    head: &AlignmentHead,
    (images, image_global): (&Fragments, &Tensor),
    (sentences, sentence_global): (&Fragments, &Tensor),
    training: bool,
) -> Result<Tensor> {
    let image_mask = images.mask().to_dtype(DType::F32)?;
    let sentence_mask = sentences.mask().to_dtype(DType::F32)?;
    let alignment = Alignment {
        images: images.features(),
        image_mask: &image_mask,
        sentences: sentences.features(),
        sentence_mask: &sentence_mask,
        image_global,
        sentence_global,
        local: layer(&head.local),
        global: layer(&head.global),
        unit: head.norm.of_kernels(),
    };
    let read = match &head.reasoning {
        Reasoning::Filter(filter) => {
            let norm = &filter.batch_norm;
            let gate = Gate {
                layer: layer(&filter.gate),
                norm: [norm.weight(), norm.bias()],
                running: (!training).then(|| [norm.running_mean(), norm.running_variance()]),
            };
            let filtered = aeir_kernels::filtered(&alignment, &gate)?;
            if let Some([mean, variance, count]) = &filtered.statistics {
                norm.update_on_device(mean, variance, count)?;
            }
            head.norm.apply(&filtered.vectors)?
        }
        Reasoning::Graph(graph) => {
            let [local, global] = aeir_kernels::aligned(&alignment)?;
            let (count, words) = sentence_mask.dims2()?;
            let (images, _, similarity) = local.dims3()?;
            // The global vector comes first.
            let local = local.reshape((images, count, words, similarity))?;
            let vectors = Tensor::cat(&[&global.unsqueeze(2)?, &local], 2)?;
            let first = Tensor::ones((count, 1), DType::F32, sentence_mask.device())?;
            let mask = Tensor::cat(&[&first, &sentence_mask], 1)?;
            graph.forward(&vectors, &mask.unsqueeze(0)?.unsqueeze(2)?)?
        }
    };
    Ok(candle_nn::ops::sigmoid(&head.score.forward(&read)?.squeeze(2)?)?)
}

fn layer(linear: &Linear) -> Layer<'_> {
    Layer { weight: &linear.weight, bias: &linear.bias }
}
